//! Says which nodes are lost. Runs everywhere, acts on the group's leader alone.
//!
//! A node that nobody heard of for the configured time has no living clients: they have reconnected
//! elsewhere. What it still has in the log leaves with one command. Its next start says the same of
//! its previous one, in case nobody noticed.

use std::time::{Duration, Instant};

use flotilla_model::command::Command;
use flotilla_model::id::NodeId;
use flotilla_raft::Group;
use tracing::{info, warn};

use crate::mesh::Mesh;
use crate::session::new_request;

/// How often nodes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Watches the nodes until the task is dropped.
pub async fn watch(node: NodeId, group: Group, mesh: Mesh, lost_after: Duration) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leading_since = None;
    loop {
        look.tick().await;
        if group.status().leader != Some(node) {
            leading_since = None;
            continue;
        }
        // A new leader gives every node the full time: it may not have listened to it before.
        let since = *leading_since.get_or_insert_with(Instant::now);
        if since.elapsed() < lost_after {
            continue;
        }
        let state = group.state();
        for record in state.nodes.values() {
            let serves = state
                .rooms
                .values()
                .any(|room| room.homes.contains_key(&record.id));
            if !serves || mesh.is_alive(record.id, lost_after) {
                continue;
            }
            let lost = Command::NodeLost {
                node: record.id,
                boot: record.boot,
            };
            match group.propose(new_request(), lost).await {
                Ok(_) => info!(peer = %record.id, "node is lost; its participants left"),
                Err(error) => warn!(peer = %record.id, %error, "a lost node's participants remain"),
            }
        }
    }
}
