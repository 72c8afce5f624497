//! What becomes of a client's reliable message until every node that is to have it does: while anything holds the
//! message's receipt, the client is not told that it arrived, and would send it again to whoever takes it over.
//!
//! ```text
//! engine ─ number ─ session ─ hub ─┬─ link ─ kept until acknowledged ─┐
//!                                  └─ link ─ kept until acknowledged ─┴─ last one dropped ─ DataSafe ─ engine
//! ```
//!
//! A link that ends by itself has not brought what it kept: only an acknowledgement lets go of a [`Leg`] in earnest.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flotilla_media::command::{Command, PeerId};

use crate::shard::{Order, ShardHandle};

/// Held by whatever has the message under way. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Receipt(Arc<Open>);

struct Open {
    is_lost: AtomicBool,
    done: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Receipt {
    /// Calls `done` once the last clone is dropped, unless the message was lost on one of its ways.
    #[must_use]
    pub fn new(done: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Arc::new(Open {
            is_lost: AtomicBool::new(false),
            done: Some(Box::new(done)),
        }))
    }

    /// The receipt of a message that the engine has numbered; `None` if it does not wait for one.
    #[must_use]
    pub fn of(shard: &ShardHandle, peer: PeerId, number: u64) -> Option<Self> {
        if number == 0 {
            return None;
        }
        let shard = shard.clone();
        Some(Self::new(move || {
            // A shard that has no room for it has its own bound for the wait.
            let safe = Command::DataSafe { peer, number };
            let _ = shard.offer(Order::Engine(safe));
        }))
    }

    /// For a way by which the message goes to somebody who is to have it.
    #[must_use]
    pub fn leg(&self) -> Leg {
        Leg(Some(self.clone()))
    }
}

/// A way by which a message goes. If it ends before the message has arrived, for example with the process, the message is
/// lost on it: nobody says that it is safe, and whoever waits has a bound.
#[derive(Debug)]
pub struct Leg(Option<Receipt>);

impl Leg {
    /// The message is where it was to go, or nobody is there any more who would miss it.
    pub fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        if let Some(receipt) = self.0.take() {
            receipt.0.is_lost.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !*self.is_lost.get_mut()
            && let Some(done) = self.done.take()
        {
            done();
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("is_lost", &self.is_lost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_safe_when_all_have_let_go_and_none_has_lost_it() {
        for is_lost in [false, true] {
            let done = Arc::new(AtomicBool::new(false));
            let told = done.clone();
            let receipt = Receipt::new(move || told.store(true, Ordering::Relaxed));
            let (one, other) = (receipt.leg(), receipt.leg());
            drop(receipt);
            one.end();
            assert!(!done.load(Ordering::Relaxed));
            if is_lost {
                drop(other);
            } else {
                other.end();
            }
            assert_eq!(done.load(Ordering::Relaxed), !is_lost);
        }
    }
}
