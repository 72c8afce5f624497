//! Callers that wait for their command to be applied on this node.
//!
//! [`crate::proposer`] registers a command here before it goes anywhere; [`crate::machine`] answers
//! it when the entry is applied *here*, whichever leader committed it. So an answer never has to
//! travel, survives a change of leader, and the caller's own node shows the change when `propose`
//! returns. The table has two owners (the tasks that propose and the state machine), hence the lock;
//! it is taken once per command and once per applied batch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use flotilla_model::command::{Rejection, Reply};
use flotilla_model::id::RequestId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::ProposeError;

/// Commands of this node that may wait at once; more are refused as overload.
pub(crate) const PENDING_MAX: usize = 16_384;

pub(crate) type CommandResult = Result<Reply, Rejection>;
type Answer = Result<Reply, ProposeError>;

/// A command on its way.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) request: RequestId,
    pub(crate) command: Bytes,
}

#[derive(Default)]
pub(crate) struct Pending {
    waiting: Mutex<HashMap<RequestId, Waiting>>,
}

struct Waiting {
    callers: Vec<oneshot::Sender<Answer>>,
    command: Bytes,
    /// Sends whose entry may be in the log.
    uncertain: u32,
    /// When the leader last said that the entry is applied there, and nobody sends it now.
    acknowledged: Option<Instant>,
}

/// A caller's place in the table; leaves it when dropped.
pub(crate) struct Ticket {
    pending: Arc<Pending>,
    request: RequestId,
    pub(crate) answer: oneshot::Receiver<Answer>,
    /// Whether this caller is the first with this request, and so has to send it.
    pub(crate) first: bool,
}

impl Waiting {
    fn answer(mut self, answer: Answer) {
        let last = self.callers.pop();
        for caller in self.callers {
            // A caller that gave up meanwhile is of no concern.
            let _ = caller.send(answer.clone());
        }
        if let Some(caller) = last {
            let _ = caller.send(answer);
        }
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, HashMap<RequestId, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a caller; `None` if there are too many.
    pub(crate) fn register(self: &Arc<Self>, item: &Item) -> Option<Ticket> {
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.len() >= PENDING_MAX {
            return None;
        }
        let entry = waiting.entry(item.request).or_insert_with(|| Waiting {
            callers: Vec::with_capacity(1),
            command: item.command.clone(),
            uncertain: 0,
            acknowledged: None,
        });
        let first = entry.callers.is_empty();
        entry.callers.push(sender);
        Some(Ticket {
            pending: Arc::clone(self),
            request: item.request,
            answer,
            first,
        })
    }

    /// Answers the callers of applied commands.
    pub(crate) fn complete(&self, results: impl Iterator<Item = (RequestId, CommandResult)>) {
        let mut waiting = self.lock();
        if waiting.is_empty() {
            return;
        }
        for (request, result) in results {
            if let Some(entry) = waiting.remove(&request) {
                entry.answer(result.map_err(ProposeError::Rejected));
            }
        }
    }

    /// Answers the callers of commands that will not be applied.
    pub(crate) fn fail(&self, items: &[Item], error: &ProposeError) {
        let mut waiting = self.lock();
        for item in items {
            if let Some(entry) = waiting.remove(&item.request) {
                entry.answer(Err(error.clone()));
            }
        }
    }

    /// Notes that the items are being sent, and drops those nobody waits for any more.
    pub(crate) fn sending(&self, items: &mut Vec<Item>) {
        let mut waiting = self.lock();
        items.retain(|item| match waiting.get_mut(&item.request) {
            None => false,
            Some(entry) => {
                entry.uncertain += 1;
                entry.acknowledged = None;
                true
            }
        });
    }

    /// Notes that the items are certainly not in the log from their last send.
    pub(crate) fn refused(&self, items: &[Item]) {
        let mut waiting = self.lock();
        for item in items {
            if let Some(entry) = waiting.get_mut(&item.request) {
                entry.uncertain = entry.uncertain.saturating_sub(1);
            }
        }
    }

    /// Notes that the items are applied at the leader.
    pub(crate) fn acknowledged(&self, items: &[Item], now: Instant) {
        let mut waiting = self.lock();
        for item in items {
            if let Some(entry) = waiting.get_mut(&item.request) {
                entry.acknowledged = Some(now);
            }
        }
    }

    /// Items that the leader applied more than `age` ago and this node has not: it got them by a
    /// snapshot, without their answers. Sent again, they are answered from the state.
    pub(crate) fn overdue(&self, now: Instant, age: Duration) -> Vec<Item> {
        let mut waiting = self.lock();
        waiting
            .iter_mut()
            .filter(|(_, entry)| {
                entry
                    .acknowledged
                    .is_some_and(|at| now.duration_since(at) > age)
            })
            .map(|(request, entry)| {
                entry.acknowledged = None;
                Item {
                    request: *request,
                    command: entry.command.clone(),
                }
            })
            .collect()
    }

    /// Gives up on all callers; their `propose` reports that the group stopped.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

impl Ticket {
    /// Whether the command may be in the log.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.pending
            .lock()
            .get(&self.request)
            .is_some_and(|entry| entry.uncertain > 0)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.answer.close();
        let mut waiting = self.pending.lock();
        if let Some(entry) = waiting.get_mut(&self.request) {
            entry.callers.retain(|caller| !caller.is_closed());
            if entry.callers.is_empty() {
                waiting.remove(&self.request);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_model::command::Outcome;
    use flotilla_model::id::Version;

    use super::*;

    fn item(n: u128) -> Item {
        Item {
            request: RequestId(n),
            command: Bytes::from_static(b"c"),
        }
    }

    fn done() -> CommandResult {
        Ok(Reply {
            version: Version(1),
            outcome: Outcome::Done,
        })
    }

    #[test]
    fn every_caller_of_a_request_is_answered_once() {
        let pending = Arc::new(Pending::default());
        let mut first = pending.register(&item(1)).expect("room");
        let mut second = pending.register(&item(1)).expect("room");
        assert!(first.first && !second.first);
        pending.complete([(RequestId(1), done()), (RequestId(2), done())].into_iter());
        assert!(first.answer.try_recv().expect("answered").is_ok());
        assert!(second.answer.try_recv().expect("answered").is_ok());
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_dropped_ticket_leaves_the_table() {
        let pending = Arc::new(Pending::default());
        let first = pending.register(&item(1)).expect("room");
        let second = pending.register(&item(1)).expect("room");
        drop(first);
        assert_eq!(pending.len(), 1);
        drop(second);
        assert_eq!(pending.len(), 0);
        let mut items = vec![item(1)];
        pending.sending(&mut items);
        assert!(items.is_empty(), "nobody waits for it");
    }

    #[test]
    fn certainty_follows_sends_and_refusals() {
        let pending = Arc::new(Pending::default());
        let ticket = pending.register(&item(1)).expect("room");
        assert!(!ticket.is_uncertain());
        let mut items = vec![item(1)];
        pending.sending(&mut items);
        assert!(ticket.is_uncertain());
        pending.refused(&items);
        assert!(!ticket.is_uncertain());
        pending.sending(&mut items);
        pending.sending(&mut items);
        pending.refused(&items);
        assert!(ticket.is_uncertain(), "the other send may have got through");
    }

    #[test]
    fn acknowledged_items_become_overdue_once() {
        let pending = Arc::new(Pending::default());
        let _ticket = pending.register(&item(1)).expect("room");
        let now = Instant::now();
        pending.acknowledged(&[item(1)], now);
        let age = Duration::from_secs(1);
        assert!(pending.overdue(now, age).is_empty());
        assert_eq!(pending.overdue(now + 2 * age, age).len(), 1);
        assert!(pending.overdue(now + 2 * age, age).is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let pending = Arc::new(Pending::default());
        let tickets: Vec<_> = (0..PENDING_MAX as u128)
            .map(|n| pending.register(&item(n)).expect("room"))
            .collect();
        assert!(pending.register(&item(u128::MAX)).is_none());
        drop(tickets);
        assert!(pending.register(&item(u128::MAX)).is_some());
    }
}
