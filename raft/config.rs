//! Settings of a group on this node.

use std::path::PathBuf;
use std::time::Duration;

use flotilla_model::id::{NodeId, Region};
use openraft::SnapshotPolicy;

use crate::clock::Clock;
use crate::error::StartError;
use crate::network::Deadlines;

/// Longest name of a group on disk.
const NAME_MAX: usize = 64;

/// Which group: its key in the registry, on the wire and on disk.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum GroupId {
    /// A region's rooms, participants, tracks and nodes.
    Region(Region),
    /// What regions have in common.
    Cluster,
}

impl GroupId {
    /// Its name on the wire and on disk.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Region(region) => format!("region-{region}"),
            Self::Cluster => "cluster".to_owned(),
        }
    }
}

/// Settings of a group on this node.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// Which group.
    pub id: GroupId,
    /// This node.
    pub node: NodeId,
    /// Where other nodes reach this node's cluster port (`host:port`).
    pub address: String,
    /// Folder that keeps the log and the snapshots.
    pub data: PathBuf,
    /// How often a leader makes itself known. Falls: a dead leader is noticed sooner, idle traffic
    /// rises. 50 ms by default.
    pub heartbeat: Duration,
    /// Least and most time without a leader before a voter stands for election, drawn anew each
    /// time. Has to be well above the heartbeat and the network's round trip, or leaders change
    /// under load. 150–300 ms by default.
    pub election: (Duration, Duration),
    /// How long `propose` tries.
    pub propose_timeout: Duration,
    /// How long `read` tries.
    pub read_timeout: Duration,
    /// Deadline of a single call between nodes.
    pub call_timeout: Duration,
    /// Deadline of an append that waits for a peer's disk.
    pub append_timeout: Duration,
    /// Deadline of the transfer of a snapshot.
    pub snapshot_timeout: Duration,
    /// How many voters the group makes of its members; 3 or 5. Others stay learners.
    pub voters_target: usize,
    /// How long a voter may be unreachable before a live learner takes its place.
    pub replace_dead_after: Duration,
    /// Most difference between the clocks of a joining node and the cluster.
    pub clock_skew_max: Duration,
    /// Log entries after which a snapshot is built.
    pub snapshot_entries: u64,
    /// Bytes of commands after which a snapshot is built.
    pub snapshot_bytes: u64,
    /// Entries kept behind a snapshot, so that a node which was away shortly needs no snapshot.
    pub log_kept: u64,
    /// Largest snapshot accepted from a leader, bytes.
    pub snapshot_bytes_max: u64,
    /// The wall clock.
    pub clock: Clock,
}

impl GroupConfig {
    /// Defaults for a node of the region `default`.
    #[must_use]
    pub fn new(node: NodeId, address: impl Into<String>, data: impl Into<PathBuf>) -> Self {
        Self {
            id: GroupId::Region(Region::from("default")),
            node,
            address: address.into(),
            data: data.into(),
            heartbeat: Duration::from_millis(50),
            election: (Duration::from_millis(150), Duration::from_millis(300)),
            propose_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(1),
            append_timeout: Duration::from_secs(3),
            snapshot_timeout: Duration::from_secs(120),
            voters_target: 3,
            replace_dead_after: Duration::from_secs(60),
            clock_skew_max: Duration::from_secs(5),
            snapshot_entries: 20_000,
            snapshot_bytes: 64 << 20,
            log_kept: 5_000,
            snapshot_bytes_max: 4 << 30,
            clock: Clock::default(),
        }
    }

    pub(crate) fn deadlines(&self) -> Deadlines {
        Deadlines {
            call: self.call_timeout,
            append: self.append_timeout,
            snapshot: self.snapshot_timeout,
        }
    }

    /// openraft's view of the settings.
    pub(crate) fn openraft(&self) -> Result<openraft::Config, StartError> {
        let wrong = |text: String| Err(StartError::Config(text));
        let (least, most) = self.election;
        if self.node.0 == 0 {
            return wrong("node id 0 is not allowed: choose one from 1 up".to_owned());
        }
        let name = self.id.name();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.len() > NAME_MAX || !name.chars().all(fits) {
            return wrong(format!(
                "{name:?} is no name for a group: at most {NAME_MAX} letters, digits, '-', '_' and '.'"
            ));
        }
        if self.heartbeat * 2 > least {
            return wrong(format!(
                "the least election timeout ({least:?}) has to be at least twice the heartbeat \
                 ({:?})",
                self.heartbeat
            ));
        }
        if ![1, 3, 5, 7].contains(&self.voters_target) {
            return wrong(format!(
                "{} voters are not possible: choose 3 or 5",
                self.voters_target
            ));
        }
        let heartbeat = millis(self.heartbeat);
        let config = openraft::Config {
            cluster_name: self.id.name(),
            heartbeat_interval: heartbeat,
            // Appends that were confirmed within half an interval serve as heartbeats.
            heartbeat_min_interval: Some(heartbeat / 2),
            election_timeout_min: millis(least),
            election_timeout_max: millis(most),
            install_snapshot_timeout: millis(self.snapshot_timeout),
            max_payload_entries: 64,
            max_append_entries: Some(1024),
            replication_lag_threshold: self.snapshot_entries.saturating_mul(2),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.log_kept,
            // Small steps: a purge of thousands of keys takes tens of milliseconds.
            purge_batch_size: (self.snapshot_entries / 8).clamp(1, 256),
            enable_pre_vote: Some(true),
            // Not before the log says that this node's data is a member's (`follow_members`).
            enable_elect: false,
            // The committed index is not synced to disk on its own, so a restarted leader must not
            // lead without an election.
            enable_leader_restore: Some(false),
            ..openraft::Config::default()
        };
        config
            .validate()
            .map_err(|error| StartError::Config(error.to_string()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> GroupConfig {
        GroupConfig::new(NodeId(1), "127.0.0.1:1", "data")
    }

    #[test]
    fn the_defaults_are_valid() {
        let openraft = config().openraft().expect("valid");
        assert_eq!(openraft.heartbeat_interval, 50);
        assert_eq!(openraft.election_timeout_min, 150);
    }

    #[test]
    fn impossible_settings_are_named() {
        let mut election = config();
        election.election.0 = Duration::from_millis(60);
        let mut voters = config();
        voters.voters_target = 2;
        let mut node = config();
        node.node = NodeId(0);
        let mut region = config();
        region.id = GroupId::Region(Region::from("Überall"));
        for wrong in [election, voters, node, region] {
            assert!(matches!(wrong.openraft(), Err(StartError::Config(_))));
        }
    }
}
