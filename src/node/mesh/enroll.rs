//! Letting nodes in: whether a node fits the cluster, and what it needs to take part.
//!
//! A node enrolls before it starts to take part, with a new or with a kept data folder. It proves
//! the cluster's secret (as every call does), shows its settings' hash and its clock, and gets the
//! cluster's id and DTLS certificate, sealed with a key that follows from the secret.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf;
use flotilla_model::State;
use flotilla_model::cluster::Formats;
use flotilla_model::id::{BootId, NodeId};
use flotilla_raft::{Channels, Lane};
use thiserror::Error;

use super::Mesh;
use super::proto::mesh_client::MeshClient;
use super::proto::{EnrollReply, EnrollRequest};

/// How long a node may be silent and still keep its number from another one.
const SILENT_MAX: Duration = Duration::from_secs(2);
/// Longest wait for a seed's answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);
const NONCE_BYTES: usize = 12;

/// Why a node is not let in. The text reaches its operator.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Another cluster's name.
    #[error(
        "the cluster here is called `{here}`, not `{asked}`: check cluster.name and the address"
    )]
    OtherName {
        /// Ours.
        here: String,
        /// Theirs.
        asked: String,
    },
    /// A data folder of another cluster.
    #[error(
        "your data folder belongs to another cluster (id {asked}, here {here}): use another cluster.data_dir, or empty it if its data may go"
    )]
    OtherCluster {
        /// Ours.
        here: String,
        /// Theirs.
        asked: String,
    },
    /// The number is taken.
    #[error(
        "node id {node} is in use by the node at {address}: give this node another cluster.node_id, or stop that one"
    )]
    Duplicate {
        /// Number.
        node: NodeId,
        /// Who has it.
        address: String,
    },
    /// Clocks differ.
    #[error(
        "your clock is {seconds:.1} s {direction} this node's: set it right (NTP) and start again"
    )]
    Clock {
        /// By how much.
        seconds: f64,
        /// `ahead of` or `behind`.
        direction: &'static str,
    },
    /// An old program.
    #[error(
        "this cluster's log has version {needed}, your program reads up to {reads}: start the version that the \
         other nodes run (`flotilla admin nodes` shows it)"
    )]
    TooOld {
        /// What every node here reads.
        needed: u8,
        /// What the caller reads.
        reads: u8,
    },
    /// Settings differ.
    #[error(
        "settings that must be equal on all nodes differ from this cluster's: compare the keys marked **cluster** in docs/config.md with the other nodes' files"
    )]
    Settings,
}

/// Checks nodes that want in.
pub struct Doorkeeper {
    /// This node.
    pub node: NodeId,
    /// This start.
    pub boot: BootId,
    /// Where it is reached.
    pub address: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Its id.
    pub cluster_id: String,
    /// Hash of the equal settings.
    pub config_hash: [u8; 32],
    /// Greatest difference of clocks.
    pub clock_skew_max: Duration,
    /// The certificate as it is handed over.
    pub sealed_certificate: Vec<u8>,
    /// What the cluster knows.
    pub state: Box<dyn Fn() -> std::sync::Arc<State> + Send + Sync>,
    /// Who is alive.
    pub mesh: Mesh,
}

impl Doorkeeper {
    /// Checks a request and answers it.
    ///
    /// # Errors
    /// The first reason found not to let the node in.
    pub fn enroll(&self, request: EnrollRequest) -> Result<EnrollReply, Refusal> {
        let now = wall_clock_ms();
        if request.cluster != self.cluster {
            return Err(Refusal::OtherName {
                here: self.cluster.clone(),
                asked: request.cluster,
            });
        }
        if !request.cluster_id.is_empty() && request.cluster_id != self.cluster_id {
            return Err(Refusal::OtherCluster {
                here: self.cluster_id.clone(),
                asked: request.cluster_id,
            });
        }
        check_clock(request.wall_clock_ms, now, self.clock_skew_max)?;
        // A member may differ for a while: settings are changed by restarting one node at a time.
        if request.cluster_id.is_empty() && request.config_hash[..] != self.config_hash {
            return Err(Refusal::Settings);
        }
        let state = (self.state)();
        check_formats(&request.version, &state)?;
        self.check_number(&request, &state)?;
        Ok(EnrollReply {
            cluster_id: self.cluster_id.clone(),
            sealed_certificate: self.sealed_certificate.clone().into(),
            wall_clock_ms: now,
            members: state
                .nodes
                .values()
                .map(|node| node.cluster_address.clone())
                .collect(),
        })
    }

    fn check_number(&self, request: &EnrollRequest, state: &State) -> Result<(), Refusal> {
        let node = NodeId(request.node);
        if node == self.node {
            return Err(Refusal::Duplicate {
                node,
                address: self.address.clone(),
            });
        }
        // A number belongs to the address that has it while somebody answers there.
        if let Some(known) = state.nodes.get(&node)
            && known.cluster_address != request.address
            && known.boot != BootId(request.boot)
            && self.mesh.is_alive(node, SILENT_MAX)
        {
            return Err(Refusal::Duplicate {
                node,
                address: known.cluster_address.clone(),
            });
        }
        Ok(())
    }
}

/// Whoever cannot read what may be in the log is told so, and not left to stop in the middle of it.
fn check_formats(version: &str, state: &State) -> Result<(), Refusal> {
    let (reads, needed) = (Formats::of(version).log, state.log_version());
    if reads < needed {
        return Err(Refusal::TooOld { needed, reads });
    }
    Ok(())
}

fn check_clock(theirs: u64, ours: u64, skew_max: Duration) -> Result<(), Refusal> {
    let difference = Duration::from_millis(theirs.abs_diff(ours));
    if difference > skew_max {
        return Err(Refusal::Clock {
            seconds: difference.as_secs_f64(),
            direction: if theirs > ours { "ahead of" } else { "behind" },
        });
    }
    Ok(())
}

/// Why enrolling failed.
#[derive(Debug, Error)]
pub enum EnrollError {
    /// No seed answered.
    #[error(
        "no node of the cluster answered ({tried}): check that one runs, cluster.seeds, and firewalls"
    )]
    Unreachable {
        /// Who was asked and what came of it.
        tried: String,
    },
    /// A seed said no.
    #[error("{seed}: {reason}")]
    Refused {
        /// Who.
        seed: String,
        /// Why.
        reason: String,
    },
    /// The answer cannot be opened.
    #[error("{seed} sent a certificate that this node's cluster.secret does not open")]
    Sealed {
        /// Who.
        seed: String,
    },
}

/// What enrolling gave.
#[derive(Debug)]
pub struct Enrolled {
    /// The cluster's id.
    pub cluster_id: String,
    /// The cluster's DTLS certificate, as it is kept in the data folder.
    pub certificate: Vec<u8>,
    /// Addresses of its nodes.
    pub members: Vec<String>,
}

/// Asks the seeds in turn to be let in.
///
/// # Errors
/// The refusal of the first seed that answers, or that none does.
pub async fn enroll(
    channels: &Channels,
    secret: &str,
    seeds: &[String],
    request: &EnrollRequest,
) -> Result<Enrolled, EnrollError> {
    let mut tried = Vec::new();
    for seed in seeds {
        let channel = match channels.get(seed, Lane::Mesh) {
            Ok(channel) => channel,
            Err(error) => {
                tried.push(error.to_string());
                continue;
            }
        };
        let mut request = request.clone();
        request.wall_clock_ms = wall_clock_ms();
        let mut client = MeshClient::new(channel);
        match tokio::time::timeout(ANSWER_MAX, client.enroll(request)).await {
            Err(_) => tried.push(format!("{seed}: no answer")),
            Ok(Err(status)) if unreachable(&status) => {
                tried.push(format!("{seed}: {}", status.message()));
            }
            Ok(Err(status)) => {
                return Err(EnrollError::Refused {
                    seed: seed.clone(),
                    reason: status.message().to_owned(),
                });
            }
            Ok(Ok(reply)) => {
                let reply = reply.into_inner();
                let certificate = open(secret, &reply.sealed_certificate)
                    .ok_or_else(|| EnrollError::Sealed { seed: seed.clone() })?;
                return Ok(Enrolled {
                    cluster_id: reply.cluster_id,
                    certificate,
                    members: reply.members,
                });
            }
        }
    }
    Err(EnrollError::Unreachable {
        tried: tried.join(", "),
    })
}

fn unreachable(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable
            | tonic::Code::Unknown
            | tonic::Code::Cancelled
            | tonic::Code::DeadlineExceeded
    )
}

/// Derives a key for one purpose from the cluster's secret.
#[must_use]
pub fn derive(secret: &str, purpose: &str) -> [u8; 32] {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"flotilla");
    let mut key = [0; 32];
    salt.extract(secret.as_bytes())
        .expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
        .and_then(|expanded| expanded.fill(&mut key))
        .expect("the length is the hash's own");
    key
}

const SEAL: &str = "certificate hand-over";

/// Seals with a key from the secret.
#[must_use]
pub fn seal(secret: &str, plain: &[u8]) -> Vec<u8> {
    let key = RandomizedNonceKey::new(&AES_256_GCM, &derive(secret, SEAL))
        .expect("the key has the algorithm's length");
    let mut sealed = plain.to_vec();
    let nonce = key
        .seal_in_place_append_tag(Aad::empty(), &mut sealed)
        .expect("the message is short");
    let mut whole = nonce.as_ref().to_vec();
    whole.append(&mut sealed);
    whole
}

/// Opens what [`seal`] made; `None` if the secret is another one or the bytes were changed.
#[must_use]
pub fn open(secret: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, body) = sealed.split_at_checked(NONCE_BYTES)?;
    let key = RandomizedNonceKey::new(&AES_256_GCM, &derive(secret, SEAL)).ok()?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut body = body.to_vec();
    let length = key
        .open_in_place(nonce, Aad::empty(), &mut body)
        .ok()?
        .len();
    body.truncate(length);
    Some(body)
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn wall_clock_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_model::cluster::{Node, NodeState};

    use super::*;

    #[test]
    fn sealed_opens_with_the_same_secret_only() {
        let sealed = seal("one secret", b"certificate");
        assert_eq!(
            open("one secret", &sealed).as_deref(),
            Some(&b"certificate"[..])
        );
        assert_eq!(open("another", &sealed), None);
        for cut in 0..sealed.len() {
            assert_eq!(open("one secret", &sealed[..cut]), None);
        }
        let mut changed = sealed;
        changed[14] ^= 1;
        assert_eq!(open("one secret", &changed), None);
    }

    #[test]
    fn keys_differ_by_purpose() {
        assert_ne!(derive("s", "a"), derive("s", "b"));
        assert_eq!(derive("s", "a"), derive("s", "a"));
    }

    #[test]
    fn programs_that_cannot_read_the_log_are_named() {
        let mut state = State::default();
        let mut put = |id, version: &str| {
            let node = Node {
                id: NodeId(id),
                region: "here".into(),
                boot: BootId(1),
                cluster_address: String::new(),
                admin_address: String::new(),
                client_url: String::new(),
                relay_addresses: Vec::new(),
                capacity: 0,
                state: NodeState::Serving,
                version: version.to_owned(),
            };
            state.nodes.insert(NodeId(id), Arc::new(node));
            state.clone()
        };
        let newer = put(1, "9.0.0+log9.mesh1");
        let refused = check_formats("0.1.0", &newer).expect_err("reads too little");
        let text = refused.to_string();
        assert!(
            text.contains("version 9, your program reads up to 2"),
            "{text}"
        );
        assert!(check_formats("9.0.0+log9.mesh1", &newer).is_ok());
        // As long as one node reads no more, nothing newer is in the log.
        let mixed = put(2, "0.1.0");
        assert!(check_formats("0.1.0", &mixed).is_ok());
    }

    #[test]
    fn clocks_far_off_are_named_with_direction() {
        let skew = Duration::from_secs(5);
        assert!(check_clock(10_000, 14_000, skew).is_ok());
        let text = |theirs, ours| {
            check_clock(theirs, ours, skew)
                .expect_err("too far")
                .to_string()
        };
        assert!(text(100_000, 90_000).contains("10.0 s ahead of"));
        assert!(text(90_000, 100_000).contains("10.0 s behind"));
    }
}
