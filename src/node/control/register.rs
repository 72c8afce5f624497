//! Writes this node's record at its start. Whom its previous start served stays at home here, under a
//! new epoch, and waits for its client ([`super::orphans`]).

use std::time::Duration;

use anyhow::bail;
use flotilla_model::cluster::Node;
use flotilla_model::command::Command;
use flotilla_raft::{Group, ProposeError};
use tracing::{info, warn};

use crate::session::new_request;

/// Pause before trying again while the group has no leader.
const RETRY: Duration = Duration::from_millis(200);

/// Registers, trying until the group takes it.
///
/// # Errors
/// The group will never take it: this program is too old for the cluster, or a setting is out of range.
pub async fn register(group: &Group, record: Node) -> anyhow::Result<()> {
    loop {
        match attempt(group, &record).await {
            Ok(()) => {
                info!(node = %record.id, "registered");
                return Ok(());
            }
            Err(ProposeError::Rejected(reason)) => {
                bail!("the cluster does not take this node: {reason}");
            }
            Err(reason) => {
                warn!(%reason, "registering will be tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Writes the record once.
///
/// # Errors
/// Why the group did not take it.
pub(super) async fn attempt(group: &Group, record: &Node) -> Result<(), ProposeError> {
    let command = Command::PutNode(record.clone());
    group.propose(new_request(), command).await.map(drop)
}
