//! Every key of the configuration file, with its meaning: the one table that the check for unknown
//! keys, the environment variables and `docs/config.md` come from.
//!
//! LiveKit's names come first wherever the meaning is equal. A key of LiveKit's that this server
//! does not act on yet stands in [`IGNORED`]: it is accepted with a warning instead of refused, so
//! that an existing file starts.

/// Where a key takes effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Must be equal on all nodes: part of the hash that is compared when a node joins.
    Cluster,
    /// Of this node alone.
    Node,
}

/// What a value looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A single value; may be given by environment variable.
    Scalar,
    /// A list.
    List,
    /// A map whose keys are free.
    Map,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Path with dots.
    pub path: &'static str,
    /// What its value looks like.
    pub shape: Shape,
    /// Type and unit, for the reader.
    pub kind: &'static str,
    /// Default, for the reader.
    pub default: &'static str,
    /// Where it takes effect.
    pub scope: Scope,
    /// Meaning and danger.
    pub doc: &'static str,
}

const fn node(
    path: &'static str,
    kind: &'static str,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        path,
        shape: Shape::Scalar,
        kind,
        default,
        scope: Scope::Node,
        doc,
    }
}

const fn cluster(
    path: &'static str,
    kind: &'static str,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key {
        path,
        shape: Shape::Scalar,
        kind,
        default,
        scope: Scope::Cluster,
        doc,
    }
}

const fn list(key: Key) -> Key {
    Key {
        shape: Shape::List,
        ..key
    }
}

const fn map(key: Key) -> Key {
    Key {
        shape: Shape::Map,
        ..key
    }
}

/// The keys that are acted on, in the order of the reference page.
pub const KEYS: &[Key] = &[
    node(
        "port",
        "port",
        "7880",
        "TCP port of HTTP and WebSocket: signalling, server API, health. Plain HTTP; put TLS in front.",
    ),
    list(node(
        "bind_addresses",
        "list of IP addresses",
        "[] (all interfaces)",
        "Addresses that HTTP and media listen on.",
    )),
    node(
        "shared_port",
        "port",
        "none",
        "A second HTTP port that several nodes on one machine may open together (`SO_REUSEPORT`), so that a client URL outlives a node.",
    ),
    map(node(
        "keys",
        "map: API key → secret",
        "{}",
        "API keys. The first one signs refreshed tokens. Give the same keys to all nodes; to rotate, add the new key everywhere before using it.",
    )),
    node(
        "key_file",
        "path",
        "none",
        "YAML file with a map as in `keys`, kept apart so that it can have tighter access rights.",
    ),
    node(
        "region",
        "text",
        "none",
        "LiveKit's place for `cluster.region`.",
    ),
    node(
        "development",
        "true or false",
        "false",
        "Readable logs at level debug, and loopback addresses for media.",
    ),
    node("log_level", "text", "none", "Old name of `logging.level`."),
    node(
        "prometheus_port",
        "port",
        "none",
        "Old name of `prometheus.port`.",
    ),
    node(
        "logging.level",
        "error, warn, info, debug, trace or a filter",
        "\"info\"",
        "Least severe level that is logged. A filter such as `info,flotilla_media=debug` works too.",
    ),
    node(
        "logging.json",
        "true or false",
        "false",
        "One JSON object a line instead of text.",
    ),
    node(
        "prometheus.port",
        "port",
        "none (off)",
        "Port that serves `/metrics`.",
    ),
    node(
        "prometheus.username",
        "text",
        "none",
        "User name asked for on the metrics port.",
    ),
    node(
        "prometheus.password",
        "text",
        "none",
        "Password asked for on the metrics port.",
    ),
    node(
        "rtc.udp_port",
        "port, or \"first-last\"",
        "7882",
        "First UDP port of media; shard number n uses this port plus n. Clients and the other nodes' relays must reach them all.",
    ),
    node(
        "rtc.bind_address",
        "IP address",
        "the first of `bind_addresses`",
        "Address that media listens on, where it differs from HTTP's.",
    ),
    node(
        "rtc.node_ip",
        "IP address",
        "the host's own addresses",
        "Address offered to clients for media. Set it when the host's address is not the one clients can reach (NAT, cloud).",
    ),
    node(
        "rtc.floating_ip",
        "IP address",
        "none",
        "Address for media that moves: offered to clients first, and taken over together with this node's participants when it dies, so that their media goes on before they notice. Each node has its own; `rtc.udp_port` must be the same on all. See docs/operations.md.",
    ),
    node(
        "rtc.floating_interface",
        "name",
        "the interface in whose network the address is",
        "Interface that floating addresses are added to, this node's and those it takes over. Needs `CAP_NET_ADMIN` and `CAP_NET_RAW`.",
    ),
    node(
        "rtc.floating_command",
        "path",
        "none: the address is added to an interface",
        "Program that moves floating addresses where an interface is not enough (clouds, load balancers): called as `PROGRAM take ADDRESS` and `PROGRAM release ADDRESS`. When `take` returns, the address must be one of this host's.",
    ),
    node(
        "rtc.enable_loopback_candidate",
        "true or false",
        "false (true with `dev` and `demo`)",
        "Offer 127.0.0.1 too. For clients on the same machine.",
    ),
    cluster(
        "rtc.shards",
        "number, 1 to 64",
        "1",
        "Media threads, each with its own UDP port. A room lives on one shard, the same on every node. About one per two cores; changing it needs a restart of the whole cluster.",
    ),
    cluster(
        "room.auto_create",
        "true or false",
        "true",
        "Create a room when the first participant joins. Otherwise joining an unknown room is refused with 404.",
    ),
    cluster(
        "room.max_participants",
        "number",
        "0 (no limit)",
        "Most participants in a room unless the room says otherwise.",
    ),
    cluster(
        "room.empty_timeout",
        "seconds",
        "300",
        "How long a room that nobody joined is kept.",
    ),
    cluster(
        "room.departure_timeout",
        "seconds",
        "20",
        "How long a room is kept after the last participant left.",
    ),
    cluster(
        "room.enable_remote_unmute",
        "true or false",
        "false",
        "Let the server API unmute tracks. Think of the people whose microphone that is.",
    ),
    cluster(
        "limit.max_metadata_size",
        "bytes",
        "524288",
        "Largest metadata of a participant or a room. 0: no limit.",
    ),
    cluster(
        "limit.max_attributes_size",
        "bytes",
        "65536",
        "Largest sum of a participant's attribute names and values. 0: no limit.",
    ),
    cluster(
        "limit.max_room_name_length",
        "characters",
        "256",
        "Longest room name. 0: no limit.",
    ),
    cluster(
        "limit.max_participant_identity_length",
        "characters",
        "256",
        "Longest identity. 0: no limit.",
    ),
    cluster(
        "limit.max_participant_name_length",
        "characters",
        "256",
        "Longest display name. 0: no limit.",
    ),
    cluster(
        "limit.signal_message_size_limit",
        "bytes",
        "2097152",
        "Largest message a client may send on its signal connection. A larger one closes it with code 1009.",
    ),
    cluster(
        "limit.max_api_request_body_size",
        "bytes",
        "10485760",
        "Largest request body of the server API.",
    ),
    node(
        "limit.num_participants",
        "number",
        "0 (no limit)",
        "Most participants on this node; more are refused with 503.",
    ),
    node(
        "signal.ping_interval",
        "seconds",
        "5",
        "How often clients are told to ping. Smaller values notice a frozen node sooner and cost traffic.",
    ),
    node(
        "signal.ping_timeout",
        "seconds",
        "15",
        "After how much silence clients give their signal connection up. Keep it at twice the interval or more.",
    ),
    cluster(
        "cluster.name",
        "text",
        "\"flotilla\"",
        "Name of the cluster. A data folder remembers it, so that a node never starts with another cluster's data.",
    ),
    node(
        "cluster.node_id",
        "number, 1 and up",
        "1",
        "Number of this node, unique in the cluster and never given to another machine while its old record exists.",
    ),
    node(
        "cluster.region",
        "text",
        "\"default\"",
        "Region of this node. Every node of a region belongs to the region's Raft group.",
    ),
    node(
        "cluster.data_dir",
        "path",
        "\"flotilla-data\"",
        "Folder of the Raft log, snapshots and the cluster's certificate. Back it up or lose the node, never share it.",
    ),
    node(
        "cluster.bind",
        "address:port",
        "0.0.0.0:7890",
        "Where this node listens for the other nodes: consensus and mesh (gRPC).",
    ),
    node(
        "cluster.advertise",
        "host:port",
        "`rtc.node_ip` or the host's address, with the port of `cluster.bind`",
        "Where the other nodes reach it.",
    ),
    node(
        "cluster.relay_ip",
        "IP address",
        "`rtc.node_ip` or the host's address",
        "Where the other nodes send media for this node.",
    ),
    node(
        "cluster.client_url",
        "URL",
        "http://<address>:<port>",
        "Where clients reach this very node; shown by the admin API and the demo page.",
    ),
    node(
        "cluster.secret",
        "text, 16 characters or more",
        "none (only `dev` works without)",
        "Shared by all nodes: authenticates every call between nodes and is the root of the relays' keys. Whoever has it is a node.",
    ),
    node(
        "cluster.secret_file",
        "path",
        "none",
        "File that holds `cluster.secret` instead.",
    ),
    list(node(
        "cluster.seeds",
        "list of host:port",
        "[]",
        "Cluster addresses of other nodes to join at. Needed once; afterwards the members are known.",
    )),
    cluster(
        "cluster.voters",
        "1, 3, 5 or 7",
        "3",
        "How many nodes of a region vote. The others follow and take over a dead voter's place.",
    ),
    cluster(
        "cluster.heartbeat",
        "duration",
        "50ms",
        "How often the leader is heard of. Below 30 ms a busy machine causes needless elections.",
    ),
    cluster(
        "cluster.election_timeout_min",
        "duration",
        "150ms",
        "Least time without the leader before an election. At least twice the heartbeat.",
    ),
    cluster(
        "cluster.election_timeout_max",
        "duration",
        "300ms",
        "Greatest such time.",
    ),
    cluster(
        "cluster.voter_replace_after",
        "duration",
        "5m",
        "How long a voter may be unreachable before another node takes its vote.",
    ),
    cluster(
        "cluster.failure_detection",
        "duration",
        "500ms",
        "How long a node may be silent before a majority of the voters takes it for lost and its participants move to other nodes; also how long it may be without contact before it stops sending media by itself. A process that has ended is noticed at once, without this. Smaller values find frozen nodes sooner and need a steadier network: the round trip and its variation must stay well below.",
    ),
    cluster(
        "cluster.node_lost_after",
        "duration",
        "10s",
        "How long a node that answers may fail to work (its disk or its log stalls, its sessions do not connect, or the leader cannot reach it while others can) before its participants move to other nodes.",
    ),
    cluster(
        "cluster.clock_skew_max",
        "duration",
        "5s",
        "A node whose clock differs by more is not let in: tokens and deadlines would be judged wrongly.",
    ),
    node(
        "cluster.tls.cert_file",
        "path",
        "none (plain)",
        "PEM certificate of this node for calls between nodes. With it all three of `cluster.tls` are needed, on all nodes.",
    ),
    node(
        "cluster.tls.key_file",
        "path",
        "none",
        "PEM private key of that certificate.",
    ),
    node(
        "cluster.tls.ca_file",
        "path",
        "none",
        "PEM certificates of the authority that both sides of a call are checked against.",
    ),
    node(
        "cluster.tls.domain",
        "text",
        "\"flotilla\"",
        "Name that the other nodes' certificates must carry.",
    ),
    node(
        "admin.bind",
        "address:port",
        "127.0.0.1:7891",
        "Where the admin gRPC listens.",
    ),
    node(
        "admin.advertise",
        "host:port",
        "`admin.bind`",
        "Where operators reach it; part of the node's record.",
    ),
    node(
        "admin.token",
        "text",
        "none",
        "Token that admin calls must carry. Needed unless `admin.bind` is a loopback address or mutual TLS is set.",
    ),
    node(
        "admin.token_file",
        "path",
        "none",
        "File that holds `admin.token` instead.",
    ),
    node(
        "admin.tls.cert_file",
        "path",
        "none (plain)",
        "PEM certificate of the admin port.",
    ),
    node(
        "admin.tls.key_file",
        "path",
        "none",
        "PEM private key of that certificate.",
    ),
    node(
        "admin.tls.client_ca_file",
        "path",
        "none",
        "PEM certificates of the authority that callers must be certified by.",
    ),
    node(
        "drain.notice",
        "duration",
        "2s",
        "How long a draining node answers health checks with 406 before the first participant moves. Longer than balancers take to notice: a client that is asked to resume too early is led back here.",
    ),
    node(
        "drain.participants_per_second",
        "number",
        "100",
        "How many participants per second move to other nodes while this one is drained. Each move costs its client a resume and the new home a session.",
    ),
    node(
        "drain.timeout",
        "duration",
        "30s",
        "How long a process that is asked to stop may take to move its participants, if there is another node. Whoever is left then moves at once.",
    ),
    node(
        "rebalance.after",
        "duration",
        "30s",
        "How long this node must have served clearly more than its share before it asks clients to resume elsewhere.",
    ),
    node(
        "rebalance.participants_per_second",
        "number",
        "0",
        "How many clients per second are asked to resume elsewhere while this node serves over 20 % (and two participants) more than its share, as after a node has joined. 0: none. Worth it with a balancer that leads new connections to the node with the fewest; each move costs its client a resume.",
    ),
    node(
        "demo.enabled",
        "true or false",
        "false (true with `dev` and `demo`)",
        "Serve the demo page and let anybody draw a token from it. Never on a server that strangers can reach.",
    ),
    node(
        "demo.allow_kill",
        "true or false",
        "false (true with `demo`)",
        "Let the demo page end the node's process.",
    ),
];

/// LiveKit's keys that are accepted and not acted on; a path stands for everything below it.
pub const IGNORED: &[&str] = &[
    "enable_data_tracks",
    "enable_participant_data_blob",
    "logging.pion_level",
    "logging.sample",
    "logging.component_levels",
    "debug_handler",
    "debug_handler_port",
    "rtc.tcp_port",
    "rtc.port_range_start",
    "rtc.port_range_end",
    "rtc.use_external_ip",
    "rtc.advertise_internal_ip",
    "rtc.external_ip_only",
    "rtc.skip_external_ip_validation",
    "rtc.use_ice_lite",
    "rtc.stun_servers",
    "rtc.interfaces",
    "rtc.ips",
    "rtc.use_mdns",
    "rtc.batch_io",
    "rtc.force_tcp",
    "rtc.turn_servers",
    "rtc.enable_warp",
    "rtc.packet_buffer_size",
    "rtc.packet_buffer_size_video",
    "rtc.packet_buffer_size_audio",
    "rtc.pli_throttle",
    "rtc.congestion_control",
    "rtc.allow_tcp_fallback",
    "rtc.tcp_fallback_rtt_threshold",
    "rtc.allow_udp_unstable_fallback",
    "rtc.reconnect_on_publication_error",
    "rtc.reconnect_on_subscription_error",
    "rtc.reconnect_on_data_channel_error",
    "rtc.data_channel_max_buffered_amount",
    "rtc.datachannel_slow_threshold",
    "rtc.datachannel_lossy_target_latency",
    "rtc.datachannel_data_track_target_latency",
    "rtc.forward_stats",
    "rtc.enable_rtp_stream_restart_detection",
    "rtc.strict_acks",
    "redis",
    "audio",
    "video",
    "room.enabled_codecs",
    "room.playout_delay",
    "room.sync_streams",
    "room.create_room_enabled",
    "room.create_room_timeout",
    "room.create_room_attempts",
    "room.enable_full_room_in_webhooks",
    "room.update_batch_target_size",
    "room.room_configurations",
    "limit.num_tracks",
    "limit.bytes_per_sec",
    "limit.subscription_limit_video",
    "limit.subscription_limit_audio",
    "limit.max_data_blob_key_length",
    "limit.max_data_blobs_size",
    "limit.max_data_track_custom_encoding_length",
    "limit.agent_signal_message_size_limit",
    "node_selector",
    "signal_relay",
    "psrpc",
    "turn",
    "webhook",
    "ingress",
    "sip",
    "agents",
    "node_stats",
    "metric",
    "trace",
    "api",
];

/// What is said of an ignored key.
#[must_use]
pub fn ignored_because(path: &str) -> &'static str {
    match path.split('.').next().unwrap_or(path) {
        "redis" | "psrpc" | "signal_relay" | "node_selector" => {
            "the nodes agree among themselves and need nothing outside the cluster"
        }
        _ => "not supported by this version",
    }
}
