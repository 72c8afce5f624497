//! Logs and metrics: all names in one place.
//!
//! Metrics carry LiveKit's names where the meaning is the same, so that its Grafana boards work;
//! ours begin with `flotilla_`. No metric has a room or participant label.

use std::sync::Arc;

use flotilla_model::id::NodeId;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// Libraries that log per message or per client what is no news to an operator.
const QUIET: [(&str, &str); 3] = [
    // Every call that fails while a peer is away, and its own end; `flotilla_raft` says what matters.
    ("openraft", "off"),
    // Both log whatever a client sends as a warning or an error of ours.
    ("rtc_dtls", "off"),
    ("rtc_sctp", "off"),
];

/// Our crates, whose level follows the configured one down to `debug` and `trace`.
const OURS: [&str; 6] = [
    "flotilla",
    "flotilla_node",
    "flotilla_signal",
    "flotilla_media",
    "flotilla_raft",
    "flotilla_storage",
];

/// Starts logging to standard error. `RUST_LOG` wins over the configuration.
///
/// # Errors
/// The filter does not parse, or logging has been started before.
pub fn start_logging(level: &str, json: bool) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => quiet(&filter),
        _ => quiet(level),
    };
    let logs = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr);
    let started = if json {
        logs.json().flatten_event(true).try_init()
    } else {
        logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init()
    };
    started.map_err(|error| anyhow::anyhow!("logging cannot start: {error}"))
}

/// The filter for a level, or a given filter with the noisy libraries turned down unless it names
/// them.
fn quiet(level: &str) -> String {
    let level = level.trim();
    let mut filter = match level {
        "debug" | "trace" => {
            let ours = OURS.map(|name| format!("{name}={level}"));
            format!("info,{}", ours.join(","))
        }
        "warning" => "warn".to_owned(),
        "" => "info".to_owned(),
        other => other.to_owned(),
    };
    for (library, most) in QUIET {
        if !filter.contains(library) && !matches!(filter.as_str(), "off" | "error") {
            filter.push_str(&format!(",{library}={most}"));
        }
    }
    filter
}

/// Every metric of the process.
pub struct Metrics {
    registry: Registry,
    /// Rooms with participants here.
    pub rooms: IntGauge,
    /// Participants here.
    pub participants: IntGauge,
    /// Tracks published here, by kind.
    pub tracks_published: IntGaugeVec,
    /// Joins, by outcome.
    pub joins: IntCounterVec,
    /// Milliseconds from the upgrade request to the join response.
    pub join_latency: HistogramVec,
    /// Milliseconds that sessions lasted.
    pub session_duration: Histogram,
    /// API requests.
    pub twirp_requests: IntCounterVec,
    /// Milliseconds that API requests took.
    pub twirp_latency: HistogramVec,
    /// Signal messages refused, by reason.
    pub signal_refused: IntCounterVec,
    /// Upgrade requests refused, by status.
    pub upgrades_refused: IntCounterVec,
    /// Clients cut off because they did not read.
    pub slow_sockets: IntCounter,
    /// Sessions that could not keep up.
    pub session_overruns: IntCounter,
    /// Sessions ended by a panic.
    pub session_panics: IntCounter,
    /// Engines ended by a panic.
    pub shard_panics: IntCounter,
    /// Node-wide events of shards dropped.
    pub shard_events_dropped: IntCounter,
    /// Datagrams received.
    pub datagrams_received: IntCounter,
    /// Datagrams sent.
    pub datagrams_sent: IntCounter,
    /// Datagrams the kernel refused.
    pub datagrams_unsent: IntCounter,
    /// Datagrams held back because the node's lease had ended.
    pub datagrams_fenced: IntCounter,
    /// System calls used for sending.
    pub send_calls: IntCounter,
    /// Frames received from other nodes.
    pub mesh_received: IntCounter,
    /// Frames not sent or not taken because a queue was full.
    pub mesh_dropped: IntCounter,
    /// Frames of other nodes that made no sense.
    pub mesh_malformed: IntCounter,
    /// Times the feed of the log had a gap.
    pub feed_lags: IntCounter,
    /// This node's view of its group, by name: term, applied, committed, leader.
    pub group: IntGaugeVec,
    /// States and counters of the media engines.
    pub media: IntGaugeVec,
    /// Datagrams and packets that were not used, by reason.
    pub discards: IntGaugeVec,
    /// What sessions threw away, by reason.
    pub session_discards: IntCounterVec,
    /// Whether this node holds its lease.
    pub lease_held: IntGauge,
    /// Times the lease lapsed.
    pub lease_lapses: IntCounter,
    /// Nodes that are reached by way of another one.
    pub links_round: IntGauge,
    /// Participants at home here without a session.
    pub orphans: IntGauge,
    /// Takeovers in the log, by cause.
    pub takeovers: IntCounterVec,
    /// Milliseconds from the last sign of a lost node until its loss was certain, by cause.
    pub takeover_detection: HistogramVec,
    /// Milliseconds from then until a participant's new home was applied, by cause.
    pub takeover_decision: HistogramVec,
    /// Milliseconds from then until its session went on, by how.
    pub takeover_adoption: HistogramVec,
    /// Milliseconds from the decision to the first packet, by cause.
    pub takeover_first_packet: HistogramVec,
}

impl Metrics {
    /// A fresh registry with the constant labels of a node.
    ///
    /// # Errors
    /// Never in practice: two metrics of one name.
    pub fn new(node: NodeId) -> Result<Arc<Self>, prometheus::Error> {
        let labels = [
            ("node_id".to_owned(), node.livekit()),
            ("node_type".to_owned(), "SERVER".to_owned()),
        ];
        let registry = Registry::new_custom(None, Some(labels.into()))?;
        let make = Make(&registry);
        let metrics = Self {
            rooms: make.gauge("livekit_room_total", "Rooms with participants on this node")?,
            participants: make.gauge("livekit_participant_total", "Participants on this node")?,
            tracks_published: make.gauges(
                "livekit_track_published_total",
                "Tracks published on this node",
                &["kind"],
            )?,
            joins: make.counters("livekit_participant_join_total", "Joins", &["state"])?,
            join_latency: make.histograms(
                "livekit_session_join_latency_ms",
                "Time from the upgrade request to the join response",
                &["protocol_version"],
            )?,
            session_duration: make.histogram(
                "livekit_session_duration_ms",
                "Duration of sessions",
            )?,
            twirp_requests: make.counters(
                "livekit_node_twirp_request_status",
                "Server API requests",
                &["service", "method", "status", "code"],
            )?,
            twirp_latency: make.histograms(
                "livekit_node_twirp_request_latency_ms",
                "Time that server API requests took",
                &["service", "method", "status"],
            )?,
            signal_refused: make.counters(
                "flotilla_signal_messages_refused_total",
                "Signal messages that closed their connection",
                &["reason"],
            )?,
            upgrades_refused: make.counters(
                "flotilla_upgrades_refused_total",
                "Signal connections refused",
                &["status"],
            )?,
            slow_sockets: make.counter(
                "flotilla_slow_sockets_total",
                "Signal connections cut because the client did not read",
            )?,
            session_overruns: make.counter(
                "flotilla_session_overruns_total",
                "Sessions that could not keep up",
            )?,
            session_panics: make.counter(
                "flotilla_session_panics_total",
                "Sessions ended by a panic",
            )?,
            shard_panics: make.counter(
                "flotilla_shard_panics_total",
                "Media engines ended by a panic",
            )?,
            shard_events_dropped: make.counter(
                "flotilla_shard_events_dropped_total",
                "Events of media engines dropped because nobody took them in time",
            )?,
            datagrams_received: make.counter(
                "flotilla_datagrams_received_total",
                "Datagrams received on media ports",
            )?,
            datagrams_sent: make.counter(
                "flotilla_datagrams_sent_total",
                "Datagrams sent from media ports",
            )?,
            datagrams_unsent: make.counter(
                "flotilla_datagrams_unsent_total",
                "Datagrams that the kernel refused",
            )?,
            datagrams_fenced: make.counter(
                "flotilla_datagrams_fenced_total",
                "Datagrams held back because the node's lease had ended",
            )?,
            send_calls: make.counter(
                "flotilla_datagram_send_calls_total",
                "System calls used for sending datagrams",
            )?,
            mesh_received: make.counter(
                "flotilla_mesh_frames_received_total",
                "Frames received from other nodes",
            )?,
            mesh_dropped: make.counter(
                "flotilla_mesh_frames_dropped_total",
                "Frames to or from other nodes dropped because a queue was full",
            )?,
            mesh_malformed: make.counter(
                "flotilla_mesh_frames_malformed_total",
                "Frames of other nodes that made no sense",
            )?,
            feed_lags: make.counter(
                "flotilla_feed_lags_total",
                "Gaps in the feed of the log, after which sessions went on from the newest state",
            )?,
            group: make.gauges(
                "flotilla_group_state",
                "This node's view of its Raft group",
                &["what"],
            )?,
            media: make.gauges(
                "flotilla_media",
                "States and counters of present peers, tracks and subscriptions, summed over shards",
                &["what"],
            )?,
            discards: make.gauges(
                "flotilla_media_discards",
                "Datagrams and packets that were not used, summed over shards",
                &["reason"],
            )?,
            session_discards: make.counters(
                "flotilla_session_discards_total",
                "Requests and data messages that sessions did not use",
                &["reason"],
            )?,
            lease_held: make.gauge(
                "flotilla_lease_held",
                "1 while this node may serve, 0 while it is fenced",
            )?,
            lease_lapses: make.counter(
                "flotilla_lease_lapses_total",
                "Times this node stopped serving because others may have taken over",
            )?,
            links_round: make.gauge(
                "flotilla_links_round",
                "Nodes that this node reaches by way of another one, because the link to them is cut",
            )?,
            orphans: make.gauge(
                "flotilla_orphans",
                "Participants at home on this node whose client has not resumed yet",
            )?,
            takeovers: make.counters(
                "flotilla_takeovers_total",
                "Participants that got a new home or epoch, as applied on this node",
                &["cause"],
            )?,
            takeover_detection: make.histograms(
                "flotilla_takeover_detection_ms",
                "Time from the last sign of a node until its loss was certain, where that was found",
                &["cause"],
            )?,
            takeover_decision: make.histograms(
                "flotilla_takeover_decision_ms",
                "Time from there until the new home was applied, per participant",
                &["cause"],
            )?,
            takeover_adoption: make.histograms(
                "flotilla_takeover_adoption_ms",
                "Time from the decision until the session went on here, per participant",
                &["how"],
            )?,
            takeover_first_packet: make.histograms(
                "flotilla_takeover_first_packet_ms",
                "Time from the decision until the first packet of the session here, per participant",
                &["cause"],
            )?,
            registry: registry.clone(),
        };
        Ok(Arc::new(metrics))
    }

    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        // Writing into memory fails only if two families clash, which `new` rules out.
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

/// Upper bounds in milliseconds, for latencies and for whole sessions alike.
const BUCKETS_MS: [f64; 12] = [
    1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1e3, 5e3, 6e4, 6e5, 3.6e6,
];

struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn register<C: prometheus::core::Collector + Clone + 'static>(
        &self,
        metric: C,
    ) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::new(name, help)?)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str) -> Result<Histogram, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(BUCKETS_MS.to_vec());
        self.register(Histogram::with_opts(options)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(BUCKETS_MS.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }
}

/// Says once which of LiveKit's keys have no effect.
pub fn warn_of_ignored_keys(config: &Config) {
    if config.ignored.is_empty() {
        return;
    }
    let named: Vec<String> = config
        .ignored
        .iter()
        .map(|ignored| format!("{} ({})", ignored.path, ignored.because))
        .collect();
    tracing::warn!(
        keys = named.join(", "),
        "these configuration keys have no effect"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_livekits_and_labels_constant() {
        let metrics = Metrics::new(NodeId(3)).expect("no clash");
        metrics.rooms.set(2);
        metrics.joins.with_label_values(&["success"]).inc();
        let text = metrics.render();
        // Labels come in no certain order.
        for (metric, parts) in [
            (
                "livekit_room_total{",
                [
                    r#"node_id="ND_000000000003""#,
                    r#"node_type="SERVER""#,
                    "} 2",
                ],
            ),
            (
                "livekit_participant_join_total{",
                [r#"state="success""#, r#"node_type="SERVER""#, "} 1"],
            ),
        ] {
            let line = text.lines().find(|line| line.starts_with(metric));
            let line = line.expect("is counted");
            for part in parts {
                assert!(line.contains(part), "{line}");
            }
        }
    }

    #[test]
    fn filters_keep_libraries_quiet() {
        assert!(quiet("debug").contains("flotilla_media=debug"));
        assert_eq!(
            quiet("warn,openraft=trace"),
            "warn,openraft=trace,rtc_dtls=off,rtc_sctp=off"
        );
        for level in ["error", "warn", "info", "debug", "trace", "warning"] {
            EnvFilter::try_new(quiet(level)).expect("parses");
        }
    }
}
