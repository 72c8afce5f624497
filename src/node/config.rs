//! Configuration: one YAML file with LiveKit's keys and ours, environment variables over it,
//! parsed once into an immutable [`Config`].
//!
//! `cli` loads it, `run` hands it round in an `Arc`. [`ClusterConfig`] must be equal on all nodes:
//! its hash is compared when a node joins. [`keys`] is the table of all keys.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_norway::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

pub mod keys;
pub mod reference;
pub mod strict;
mod value;

pub use value::parse_duration;
use value::{Period, PortRange};

use crate::moving::Means;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not YAML.
    #[error("{origin} is not valid YAML: {reason}")]
    Yaml {
        /// File or variable.
        origin: String,
        /// Where and why.
        reason: String,
    },
    /// The top is a list or a scalar.
    #[error("the configuration must be a map of keys, such as `port: 7880`")]
    NotAMap,
    /// A key nobody knows.
    #[error("unknown configuration key `{path}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_else(|| "; docs/config.md lists all keys".into()))]
    UnknownKey {
        /// The key.
        path: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// A value of the wrong kind or out of range.
    #[error("configuration key `{path}`: {reason}")]
    Value {
        /// The key.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigError {
    fn value(path: &str, reason: impl Into<String>) -> Self {
        Self::Value {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// What must be equal on all nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterConfig {
    /// Name of the cluster.
    pub name: String,
    /// Media threads per node.
    pub shards: u16,
    /// Voters per region.
    pub voters: u16,
    /// Leader's heartbeat.
    pub heartbeat: Duration,
    /// Least election time.
    pub election_timeout_min: Duration,
    /// Greatest election time.
    pub election_timeout_max: Duration,
    /// When a dead voter is replaced.
    pub voter_replace_after: Duration,
    /// Silence that makes a node unreachable.
    pub failure_detection: Duration,
    /// When a node that lives but does not work is taken for lost.
    pub node_lost_after: Duration,
    /// Greatest difference of clocks.
    pub clock_skew_max: Duration,
    /// Defaults of rooms.
    pub room: RoomConfig,
    /// Limits.
    pub limit: LimitConfig,
}

/// Defaults of rooms.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default)]
pub struct RoomConfig {
    /// Rooms come into being by joining them.
    pub auto_create: bool,
    /// Most participants; 0: no limit.
    pub max_participants: u32,
    /// Seconds an unused room is kept.
    pub empty_timeout: u32,
    /// Seconds a left room is kept.
    pub departure_timeout: u32,
    /// The server API may unmute.
    pub enable_remote_unmute: bool,
}

impl Default for RoomConfig {
    fn default() -> Self {
        Self {
            auto_create: true,
            max_participants: 0,
            empty_timeout: 300,
            departure_timeout: 20,
            enable_remote_unmute: false,
        }
    }
}

/// Limits; 0 means no limit where the reference says so.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(default)]
pub struct LimitConfig {
    /// Bytes of metadata.
    pub max_metadata_size: usize,
    /// Bytes of attributes.
    pub max_attributes_size: usize,
    /// Characters of a room name.
    pub max_room_name_length: usize,
    /// Characters of an identity.
    pub max_participant_identity_length: usize,
    /// Characters of a name.
    pub max_participant_name_length: usize,
    /// Bytes of a signal message.
    pub signal_message_size_limit: usize,
    /// Bytes of an API request.
    pub max_api_request_body_size: usize,
    /// Participants on this node; belongs to [`Config::participants_max`].
    #[serde(rename = "num_participants")]
    participants_max: u32,
}

impl Default for LimitConfig {
    fn default() -> Self {
        Self {
            max_metadata_size: 512 * 1024,
            max_attributes_size: 64 * 1024,
            max_room_name_length: 256,
            max_participant_identity_length: 256,
            max_participant_name_length: 256,
            signal_message_size_limit: 2 * 1024 * 1024,
            max_api_request_body_size: 10 * 1024 * 1024,
            participants_max: 0,
        }
    }
}

/// An API key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Key: `iss` of tokens.
    pub key: String,
    /// Secret that signs them.
    pub secret: String,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({})", self.key)
    }
}

/// Files of a TLS identity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Private key, PEM.
    pub key_file: PathBuf,
    /// Authority of the other side, PEM.
    pub ca_file: Option<PathBuf>,
    /// Name expected in the other side's certificate.
    pub domain: String,
}

/// A secret that does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The whole configuration of a node.
#[derive(Clone, Debug)]
pub struct Config {
    /// What all nodes share.
    pub cluster: ClusterConfig,
    /// This node's number.
    pub node_id: u64,
    /// Its region.
    pub region: String,
    /// Its data.
    pub data_dir: PathBuf,
    /// HTTP port.
    pub port: u16,
    /// Addresses of HTTP and media.
    pub bind_addresses: Vec<IpAddr>,
    /// HTTP port shared with other nodes of the machine.
    pub shared_port: Option<u16>,
    /// API keys, the signing one first.
    pub keys: Vec<ApiKey>,
    /// Development mode.
    pub development: bool,
    /// Log filter.
    pub log_level: String,
    /// Logs as JSON.
    pub log_json: bool,
    /// Metrics port.
    pub prometheus_port: Option<u16>,
    /// User and password of the metrics port.
    pub prometheus_auth: Option<(String, Secret)>,
    /// First UDP port of media.
    pub udp_port: u16,
    /// Address that media listens on.
    pub media_ip: IpAddr,
    /// Address for media that moves to another node with this node's people.
    pub floating: Option<Floating>,
    /// Address offered for media.
    pub node_ip: Option<IpAddr>,
    /// Offer loopback.
    pub loopback_candidate: bool,
    /// Seconds between clients' pings.
    pub ping_interval_s: u32,
    /// Seconds of silence.
    pub ping_timeout_s: u32,
    /// Cluster port.
    pub cluster_bind: SocketAddr,
    /// Where others reach it.
    pub cluster_advertise: Option<String>,
    /// Where others send media.
    pub relay_ip: Option<IpAddr>,
    /// Where clients reach this node.
    pub client_url: Option<String>,
    /// Shared secret.
    pub secret: Option<Secret>,
    /// Nodes to join at.
    pub seeds: Vec<String>,
    /// TLS between nodes.
    pub cluster_tls: Option<TlsFiles>,
    /// Admin port.
    pub admin_bind: SocketAddr,
    /// Where operators reach it.
    pub admin_advertise: Option<String>,
    /// Token of admin calls.
    pub admin_token: Option<Secret>,
    /// TLS of the admin port.
    pub admin_tls: Option<TlsFiles>,
    /// Serve the demo page.
    pub demo: bool,
    /// Let the demo page end this process.
    pub demo_kill: bool,
    /// Most participants here; 0: no limit.
    pub participants_max: u32,
    /// How long a draining node tells balancers so before the first participant moves.
    pub drain_notice: Duration,
    /// Participants asked to resume elsewhere per second while this node has more than its share; 0:
    /// none.
    pub rebalance_per_second: u32,
    /// How long it must have had more.
    pub rebalance_after: Duration,
    /// Participants moved off this node per second while it drains.
    pub drain_per_second: u32,
    /// Longest wait for that when the process is asked to stop.
    pub drain_timeout: Duration,
    /// LiveKit's keys that were given and have no effect.
    pub ignored: Vec<strict::Ignored>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    port: Option<u16>,
    bind_addresses: Vec<String>,
    shared_port: Option<u16>,
    keys: serde_norway::Mapping,
    key_file: Option<PathBuf>,
    region: Option<String>,
    development: bool,
    log_level: Option<String>,
    prometheus_port: Option<u16>,
    logging: Logging,
    prometheus: Prometheus,
    rtc: Rtc,
    room: RoomConfig,
    limit: LimitConfig,
    signal: Signal,
    cluster: Cluster,
    admin: Admin,
    drain: Drain,
    rebalance: Rebalance,
    demo: Demo,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Logging {
    level: Option<String>,
    json: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Prometheus {
    port: Option<u16>,
    username: Option<String>,
    password: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Rtc {
    udp_port: Option<PortRange>,
    bind_address: Option<IpAddr>,
    node_ip: Option<IpAddr>,
    floating_ip: Option<IpAddr>,
    floating_interface: Option<String>,
    floating_command: Option<PathBuf>,
    enable_loopback_candidate: Option<bool>,
    shards: Option<u16>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Signal {
    ping_interval: Option<u32>,
    ping_timeout: Option<u32>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Cluster {
    name: Option<String>,
    region: Option<String>,
    node_id: Option<u64>,
    data_dir: Option<PathBuf>,
    bind: Option<String>,
    advertise: Option<String>,
    relay_ip: Option<IpAddr>,
    client_url: Option<String>,
    secret: Option<String>,
    secret_file: Option<PathBuf>,
    seeds: Vec<String>,
    voters: Option<u16>,
    heartbeat: Option<Period>,
    election_timeout_min: Option<Period>,
    election_timeout_max: Option<Period>,
    voter_replace_after: Option<Period>,
    failure_detection: Option<Period>,
    node_lost_after: Option<Period>,
    clock_skew_max: Option<Period>,
    tls: Tls,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tls {
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    client_ca_file: Option<PathBuf>,
    domain: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Admin {
    bind: Option<String>,
    advertise: Option<String>,
    token: Option<String>,
    token_file: Option<PathBuf>,
    tls: Tls,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Drain {
    notice: Option<Period>,
    participants_per_second: Option<u32>,
    timeout: Option<Period>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Rebalance {
    participants_per_second: Option<u32>,
    after: Option<Period>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Demo {
    enabled: bool,
    allow_kill: bool,
}

impl Config {
    /// Reads a file, lays the environment over it and parses.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(
        path: Option<&Path>,
        body: Option<&str>,
        overrides: &[(&str, Value)],
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut root = match (path, body) {
            (Some(path), _) => {
                let text = read(path)?;
                parse_yaml(&path.display().to_string(), &text)?
            }
            (None, Some(body)) => parse_yaml("the configuration given as text", body)?,
            (None, None) => Value::Mapping(serde_norway::Mapping::new()),
        };
        let ignored = strict::check(&root)?;
        strict::overlay(&mut root, &environment);
        if let Some(text) = environment("LIVEKIT_KEYS") {
            let keys = parse_yaml("LIVEKIT_KEYS", &text)?;
            strict::set(&mut root, "keys", keys);
        }
        for (path, value) in overrides {
            strict::set(&mut root, path, value.clone());
        }
        Self::from_tree(root, ignored)
    }

    fn from_tree(root: Value, ignored: Vec<strict::Ignored>) -> Result<Self, ConfigError> {
        let file: File = match root {
            Value::Null => File::default(),
            root => serde_path_to_error::deserialize(root).map_err(|error| {
                ConfigError::value(&error.path().to_string(), error.inner().to_string())
            })?,
        };
        let mut keys = parse_keys(&file.keys)?;
        if let Some(path) = &file.key_file {
            let tree = parse_yaml(&path.display().to_string(), &read(path)?)?;
            let Value::Mapping(map) = tree else {
                return Err(ConfigError::value(
                    "key_file",
                    "the file must hold a map of API key to secret",
                ));
            };
            keys.extend(parse_keys(&map)?);
        }
        let shards = range("rtc.shards", u64::from(file.rtc.shards.unwrap_or(1)), 1, 64)? as u16;
        let udp = file.rtc.udp_port.unwrap_or(PortRange {
            first: 7882,
            last: None,
        });
        check_ports(udp, shards)?;
        let cluster = parse_cluster(&file, shards)?;
        let secret = secret(
            "cluster.secret",
            file.cluster.secret,
            file.cluster.secret_file.as_deref(),
        )?;
        if let Some(secret) = &secret
            && secret.0.len() < 16
        {
            return Err(ConfigError::value(
                "cluster.secret",
                "must have at least 16 characters; `flotilla generate-keys` prints good ones",
            ));
        }
        let signal_interval = file.signal.ping_interval.unwrap_or(5);
        let signal_timeout = file.signal.ping_timeout.unwrap_or(15);
        if signal_interval == 0 || signal_timeout < signal_interval {
            return Err(ConfigError::value(
                "signal.ping_timeout",
                "must not be less than signal.ping_interval, and neither may be 0",
            ));
        }
        let bind_addresses: Vec<IpAddr> = file
            .bind_addresses
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse().map_err(|_| {
                    ConfigError::value("bind_addresses", format!("`{text}` is not an IP address"))
                })
            })
            .collect::<Result<_, _>>()?;
        let floating = floating(&file.rtc, &bind_addresses, udp)?;
        let prometheus_auth = file.prometheus.username.map(|user| {
            (
                user,
                Secret(file.prometheus.password.clone().unwrap_or_default()),
            )
        });
        Ok(Self {
            node_id: range(
                "cluster.node_id",
                file.cluster.node_id.unwrap_or(1),
                1,
                u64::MAX,
            )?,
            region: file
                .cluster
                .region
                .or(file.region)
                .unwrap_or_else(|| "default".into()),
            data_dir: file
                .cluster
                .data_dir
                .unwrap_or_else(|| "flotilla-data".into()),
            port: file.port.unwrap_or(7880),
            media_ip: file
                .rtc
                .bind_address
                .or_else(|| bind_addresses.first().copied())
                .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            bind_addresses,
            shared_port: file.shared_port,
            keys,
            development: file.development,
            log_level: file
                .logging
                .level
                .or(file.log_level)
                .unwrap_or_else(|| if file.development { "debug" } else { "info" }.into()),
            log_json: file.logging.json,
            prometheus_port: file.prometheus.port.or(file.prometheus_port),
            prometheus_auth,
            udp_port: udp.first,
            node_ip: file.rtc.node_ip,
            floating,
            loopback_candidate: file
                .rtc
                .enable_loopback_candidate
                .unwrap_or(file.development),
            ping_interval_s: signal_interval,
            ping_timeout_s: signal_timeout,
            cluster_bind: address("cluster.bind", file.cluster.bind.as_deref(), 7890, false)?,
            cluster_advertise: file.cluster.advertise,
            relay_ip: file.cluster.relay_ip,
            client_url: file.cluster.client_url,
            secret,
            seeds: file.cluster.seeds,
            cluster_tls: tls_files("cluster.tls", file.cluster.tls, true)?,
            admin_bind: address("admin.bind", file.admin.bind.as_deref(), 7891, true)?,
            admin_advertise: file.admin.advertise,
            admin_token: secret_value(
                "admin.token",
                file.admin.token,
                file.admin.token_file.as_deref(),
            )?,
            admin_tls: tls_files("admin.tls", file.admin.tls, false)?,
            demo: file.demo.enabled,
            demo_kill: file.demo.allow_kill,
            participants_max: file.limit.participants_max,
            rebalance_per_second: range(
                "rebalance.participants_per_second",
                u64::from(file.rebalance.participants_per_second.unwrap_or(0)),
                0,
                100_000,
            )? as u32,
            rebalance_after: file
                .rebalance
                .after
                .map_or(Duration::from_secs(30), |period| period.0),
            drain_notice: file
                .drain
                .notice
                .map_or(Duration::from_secs(2), |period| period.0),
            drain_per_second: range(
                "drain.participants_per_second",
                u64::from(file.drain.participants_per_second.unwrap_or(100)),
                1,
                100_000,
            )? as u32,
            drain_timeout: file
                .drain
                .timeout
                .map_or(Duration::from_secs(30), |period| period.0),
            cluster,
            ignored,
        })
    }

    /// UDP addresses that the shards bind, in shard order.
    #[must_use]
    pub fn media_bind(&self) -> Vec<SocketAddr> {
        (0..self.cluster.shards)
            .map(|shard| {
                let port = match self.udp_port {
                    0 => 0,
                    first => first + shard,
                };
                SocketAddr::new(self.media_ip, port)
            })
            .collect()
    }

    /// The secret of one API key.
    #[must_use]
    pub fn secret_of(&self, key: &str) -> Option<&str> {
        self.keys
            .iter()
            .find(|known| known.key == key)
            .map(|known| known.secret.as_str())
    }
}

impl ClusterConfig {
    /// Equal on nodes whose configuration fits together.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        // `Debug` of these plain values is stable within a version, and nodes of different versions
        // compare versions first.
        Sha256::digest(format!("{self:?}")).into()
    }
}

fn parse_cluster(file: &File, shards: u16) -> Result<ClusterConfig, ConfigError> {
    let given = &file.cluster;
    let period = |given: &Option<Period>, default_ms: u64| {
        given
            .as_ref()
            .map_or(Duration::from_millis(default_ms), |period| period.0)
    };
    let cluster = ClusterConfig {
        name: given.name.clone().unwrap_or_else(|| "flotilla".into()),
        shards,
        voters: given.voters.unwrap_or(3),
        heartbeat: period(&given.heartbeat, 50),
        election_timeout_min: period(&given.election_timeout_min, 150),
        election_timeout_max: period(&given.election_timeout_max, 300),
        voter_replace_after: period(&given.voter_replace_after, 300_000),
        failure_detection: period(&given.failure_detection, 500),
        node_lost_after: period(&given.node_lost_after, 10_000),
        clock_skew_max: period(&given.clock_skew_max, 5_000),
        room: file.room.clone(),
        limit: LimitConfig {
            participants_max: 0,
            ..file.limit.clone()
        },
    };
    if !matches!(cluster.voters, 1 | 3 | 5 | 7) {
        return Err(ConfigError::value("cluster.voters", "must be 1, 3, 5 or 7"));
    }
    if cluster.heartbeat.is_zero() || cluster.election_timeout_min < cluster.heartbeat * 2 {
        return Err(ConfigError::value(
            "cluster.election_timeout_min",
            "must be at least twice cluster.heartbeat",
        ));
    }
    if cluster.election_timeout_max <= cluster.election_timeout_min {
        return Err(ConfigError::value(
            "cluster.election_timeout_max",
            "must be greater than cluster.election_timeout_min",
        ));
    }
    // Below, a scheduling delay of a busy machine looks like death; above, nobody waits so long.
    let sane = Duration::from_millis(100)..=Duration::from_secs(60);
    if !sane.contains(&cluster.failure_detection) {
        return Err(ConfigError::value(
            "cluster.failure_detection",
            "must be between 100ms and 60s",
        ));
    }
    if cluster.node_lost_after < cluster.failure_detection {
        return Err(ConfigError::value(
            "cluster.node_lost_after",
            "must not be less than cluster.failure_detection",
        ));
    }
    Ok(cluster)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse_yaml(origin: &str, text: &str) -> Result<Value, ConfigError> {
    serde_norway::from_str(text).map_err(|error| ConfigError::Yaml {
        origin: origin.to_owned(),
        reason: error.to_string(),
    })
}

fn parse_keys(map: &serde_norway::Mapping) -> Result<Vec<ApiKey>, ConfigError> {
    map.iter()
        .map(|(key, secret)| match (text(key), text(secret)) {
            (Some(key), Some(secret)) if !key.is_empty() && !secret.is_empty() => {
                Ok(ApiKey { key, secret })
            }
            _ => Err(ConfigError::value(
                "keys",
                "each entry must read `API key: secret`",
            )),
        })
        .collect()
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn range(path: &str, value: u64, min: u64, max: u64) -> Result<u64, ConfigError> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else if max == u64::MAX {
        Err(ConfigError::value(path, format!("must be at least {min}")))
    } else {
        Err(ConfigError::value(
            path,
            format!("must be between {min} and {max}"),
        ))
    }
}

/// An address that moves, and how.
#[derive(Clone, Debug)]
pub struct Floating {
    /// The address.
    pub address: IpAddr,
    /// How it is brought to a node.
    pub means: Means,
}

fn floating(
    rtc: &Rtc,
    bind_addresses: &[IpAddr],
    udp: PortRange,
) -> Result<Option<Floating>, ConfigError> {
    let Some(address) = rtc.floating_ip else {
        let needless = [
            ("rtc.floating_interface", rtc.floating_interface.is_some()),
            ("rtc.floating_command", rtc.floating_command.is_some()),
        ];
        return match needless.into_iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => Err(ConfigError::value(
                key,
                "has no effect without rtc.floating_ip",
            )),
            None => Ok(None),
        };
    };
    let is_in_use = bind_addresses.contains(&address)
        || [rtc.bind_address, rtc.node_ip].contains(&Some(address));
    if is_in_use || address.is_unspecified() || address.is_multicast() {
        let reason =
            "must be an address that nothing else of this node uses: it moves to another node";
        return Err(ConfigError::value("rtc.floating_ip", reason));
    }
    if udp.first == 0 {
        let reason = "needs a fixed rtc.udp_port, the same on all nodes";
        return Err(ConfigError::value("rtc.floating_ip", reason));
    }
    Ok(Some(Floating {
        address,
        means: Means {
            command: rtc.floating_command.clone(),
            interface: rtc.floating_interface.clone(),
        },
    }))
}

fn check_ports(udp: PortRange, shards: u16) -> Result<(), ConfigError> {
    let room = udp
        .last
        .map_or(u16::MAX - udp.first, |last| last.saturating_sub(udp.first));
    if udp.first != 0 && room < shards - 1 {
        return Err(ConfigError::value(
            "rtc.udp_port",
            format!("{shards} shards need {shards} ports from the first one on"),
        ));
    }
    Ok(())
}

fn address(
    path: &str,
    given: Option<&str>,
    port: u16,
    loopback: bool,
) -> Result<SocketAddr, ConfigError> {
    let host = if loopback {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    let Some(text) = given else {
        return Ok(SocketAddr::new(host, port));
    };
    text.parse()
        .ok()
        .or_else(|| {
            text.parse()
                .ok()
                .map(|ip: IpAddr| SocketAddr::new(ip, port))
        })
        .or_else(|| {
            text.trim_start_matches(':')
                .parse()
                .ok()
                .map(|port: u16| SocketAddr::new(host, port))
        })
        .ok_or_else(|| {
            ConfigError::value(path, format!("`{text}` is not of the form address:port"))
        })
}

fn secret(
    path: &str,
    text: Option<String>,
    file: Option<&Path>,
) -> Result<Option<Secret>, ConfigError> {
    secret_value(path, text, file)
}

fn secret_value(
    path: &str,
    text: Option<String>,
    file: Option<&Path>,
) -> Result<Option<Secret>, ConfigError> {
    match (text, file) {
        (Some(_), Some(_)) => Err(ConfigError::value(
            path,
            "give either the value or the file",
        )),
        (Some(text), None) => Ok(Some(Secret(text))),
        (None, Some(file)) => Ok(Some(Secret(read(file)?.trim().to_owned()))),
        (None, None) => Ok(None),
    }
}

fn tls_files(section: &str, tls: Tls, needs_ca: bool) -> Result<Option<TlsFiles>, ConfigError> {
    let ca_file = tls.ca_file.or(tls.client_ca_file);
    match (tls.cert_file, tls.key_file, ca_file) {
        (None, None, None) => Ok(None),
        (Some(cert_file), Some(key_file), ca_file) if ca_file.is_some() || !needs_ca => {
            Ok(Some(TlsFiles {
                cert_file,
                key_file,
                ca_file,
                domain: tls.domain.unwrap_or_else(|| "flotilla".into()),
            }))
        }
        _ => Err(ConfigError::value(
            section,
            if needs_ca {
                "needs cert_file, key_file and ca_file together"
            } else {
                "needs cert_file and key_file together"
            },
        )),
    }
}

#[cfg(test)]
mod tests;
