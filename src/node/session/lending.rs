//! A session that leaves for another node while this one lives: its connections go there whole, and their
//! paths are lent until the client has others.
//!
//! ```text
//! client ─ resume ─► new home ─ Rehome ─► log ─► here: lend ─ sealed ─► Lending
//!                        │ ◄──────── Claim ◄───────────────────────────────┘
//!                        └─ GoOn on the lent paths, before the client has said a word more
//! ```

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_media::command::Continuation;
use flotilla_model::id::{NodeId, ParticipantSid};
use flotilla_signal::media::{Channel, Target};
use flotilla_signal::session::Output;
use tokio::sync::oneshot;
use tracing::info;

use super::inbox::{Message, Outlet};
use super::media::SessionKey;
use super::{Sessions, Task};
use crate::mesh::enroll::wall_clock_ms;
use crate::shard::{Order, ShardHandle};

/// How long sealed connections wait for their borrower, which asks at once.
const KEPT_MAX: Duration = Duration::from_secs(10);
/// How long the shard may take to lend.
const LEND_MAX: Duration = Duration::from_millis(100);

/// Connections of former sessions, sealed for the nodes that serve them now.
#[derive(Default)]
pub struct Lending {
    /// Touched by ending sessions and by claims; nothing waits while it is held.
    all: Mutex<HashMap<ParticipantSid, Entry>>,
}

struct Entry {
    to: NodeId,
    at: Instant,
    /// Sealed, as in [`crate::mesh::proto::ClaimReply`]; `None`: not there yet.
    parts: Option<[Bytes; 2]>,
}

impl Lending {
    fn lock(&self) -> MutexGuard<'_, HashMap<ParticipantSid, Entry>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, entry| entry.at.elapsed() < KEPT_MAX);
        all
    }

    /// A node claims the session and could go on with its connections.
    pub fn ask(&self, sid: &ParticipantSid, to: NodeId) {
        let mut all = self.lock();
        if all.get(sid).is_none_or(|entry| entry.to != to) {
            let (at, parts) = (Instant::now(), None);
            all.insert(sid.clone(), Entry { to, at, parts });
        }
    }

    /// Who has asked for the session.
    #[must_use]
    pub fn borrower(&self, sid: &ParticipantSid) -> Option<NodeId> {
        self.lock().get(sid).map(|entry| entry.to)
    }

    /// The session's connections are lent to this node.
    pub fn put(&self, sid: &ParticipantSid, to: NodeId, parts: [Bytes; 2]) {
        let (at, parts) = (Instant::now(), Some(parts));
        self.lock().insert(sid.clone(), Entry { to, at, parts });
    }

    /// What is lent to this node of the session, once.
    #[must_use]
    pub fn take(&self, sid: &ParticipantSid, to: NodeId) -> Option<[Bytes; 2]> {
        let mut all = self.lock();
        if all.get(sid)?.to != to {
            return None;
        }
        all.remove(sid)?.parts
    }
}

impl Sessions {
    /// Ends a session's connections and lends their paths to the participant's home, which finds them in
    /// [`Lending`]. Nothing is sent to the client from here any more once this returns.
    pub(super) async fn lend(
        &self,
        shard: &ShardHandle,
        key: SessionKey,
        sid: &ParticipantSid,
        to: NodeId,
    ) {
        let lent = close_for(shard, key, to).await;
        self.offer(sid, to, lent);
    }

    /// Hands out what is lent when the borrower asks.
    fn offer(&self, sid: &ParticipantSid, to: NodeId, lent: Vec<(Target, Continuation)>) {
        let wall = wall_clock_ms();
        let mut parts = [Bytes::new(), Bytes::new()];
        for (target, connection) in lent {
            let sealed = self.vault.seal_lent(sid, connection, wall);
            parts[usize::from(target == Target::Subscriber)] = sealed;
        }
        if parts.iter().any(|part| !part.is_empty()) {
            info!(participant = %sid, %to, "a session's paths are lent");
            self.hub.lending().put(sid, to, parts);
        }
    }
}

/// Ends a session's connections here. Gives those whose paths can be lent; whatever came on them until then has been
/// given to the session.
async fn close_for(
    shard: &ShardHandle,
    key: SessionKey,
    to: NodeId,
) -> Vec<(Target, Continuation)> {
    let (answer, lent) = oneshot::channel();
    shard.send(Order::Lend(key, to, answer)).await;
    let lent = tokio::time::timeout(LEND_MAX, lent).await;
    lent.ok().and_then(Result::ok).unwrap_or_default()
}

impl Task {
    /// If the participant is another node's now, its connections end here and are lent to that.
    pub(super) async fn lend(&mut self, outlet: &mut Outlet) {
        let (node, sid) = (&self.node, self.session.sid());
        let to = node.hub.lending().borrower(sid).or_else(|| self.moved_to());
        let Some(to) = to.filter(|_| self.attached) else {
            return;
        };
        let (node, sid) = (node.clone(), sid.clone());
        let lent = close_for(&self.shard, self.key, to).await;
        self.pass_on_rest(outlet);
        node.offer(&sid, to, lent);
    }

    /// Passes on the client's last messages, which it takes for received.
    fn pass_on_rest(&mut self, outlet: &mut Outlet) {
        while let Some(message) = outlet.try_receive() {
            if let Message::Sent {
                channel: Channel::Reliable,
                payload,
                ..
            } = message
            {
                self.session.take_last_data(&payload);
            }
        }
        while let Some(output) = self.session.poll() {
            if let Output::Data(data) = output {
                self.node.hub.distribute(self.session.room(), data, None);
            }
        }
        self.count_discards();
    }

    /// The participant's home, if it is another node.
    fn moved_to(&self) -> Option<NodeId> {
        let state = self.node.group.state();
        let room = state.rooms.get(self.session.room())?;
        let present = room.participants.get(self.session.identity())?;
        let here = self.node.config.node;
        (present.sid == *self.session.sid() && present.home != here).then_some(present.home)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_goes_to_whom_it_is_lent_once() {
        let lending = Lending::default();
        let sid = ParticipantSid("PA_a".into());
        let parts = || [Bytes::from_static(b"one"), Bytes::new()];
        lending.ask(&sid, NodeId(2));
        assert_eq!(lending.borrower(&sid), Some(NodeId(2)));
        assert_eq!(lending.take(&sid, NodeId(2)), None, "not there yet");
        assert_eq!(lending.borrower(&sid), None);
        lending.put(&sid, NodeId(2), parts());
        lending.ask(&sid, NodeId(2));
        assert_eq!(lending.take(&sid, NodeId(3)), None, "not its own");
        assert_eq!(lending.take(&sid, NodeId(2)), Some(parts()));
        assert_eq!(lending.take(&sid, NodeId(2)), None);
        // Whoever asks last is the home.
        lending.put(&sid, NodeId(2), parts());
        lending.ask(&sid, NodeId(3));
        assert_eq!(lending.take(&sid, NodeId(3)), None);
    }
}
