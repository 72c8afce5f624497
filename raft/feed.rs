//! What this node has applied: the newest state, and the ordered changes that led to it.
//!
//! [`crate::machine`] publishes here after each applied batch; sessions, the reconciler and watch
//! streams read through [`Feed`] or ask for changes since a revision. The last [`HISTORY_MAX`]
//! changes are kept; a reader that falls further behind gets [`Lagged`] and starts again from the
//! newest state. States share their structure, so the history costs what the changes changed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_model::State;
use flotilla_model::event::Event;
use flotilla_model::id::{Revision, UnixMillis};
use thiserror::Error;
use tokio::sync::watch;

use crate::stop::stopped;

/// Changes kept. Rises: slower readers and longer broken watch streams can resume, memory rises.
pub const HISTORY_MAX: usize = 4096;

/// One applied command.
#[derive(Clone, Debug)]
pub struct Change {
    /// State's revision after it; each change raises it by one.
    pub revision: Revision,
    /// Log entry that carried it. Commands that share an entry share the index.
    pub log_index: u64,
    /// Leader's wall clock when it accepted it; never falls from one change to the next.
    pub at: UnixMillis,
    /// What happened, in order; may be empty.
    pub events: Vec<Event>,
    /// The state right before its log entry.
    pub before: Arc<State>,
    /// The state right after its log entry: after this change and those that share the entry.
    /// Without the remembered requests, which nobody but the state machine needs.
    pub state: Arc<State>,
}

/// What is applied here.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The state, without the remembered requests.
    pub state: Arc<State>,
    /// Index of the last log entry in it; `None`: none yet.
    pub log_index: Option<u64>,
    /// Time of the last command in it.
    pub at: UnixMillis,
}

/// A reader was too slow, or asked for changes that are no longer, or not yet, there.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("changes after revision {after} are no longer kept: start again from the newest state")]
pub struct Lagged {
    /// Where the reader was.
    pub after: Revision,
}

/// Why a feed has no next change.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum FeedError {
    /// The reader was too slow; [`Feed::restart`] goes on from the newest state.
    #[error(transparent)]
    Lagged(#[from] Lagged),
    /// The group stopped on this node.
    #[error("the group stopped on this node")]
    Stopped,
}

/// The published state and its history. The lock has the state machine and all feeds as owners; it
/// is held to append or copy references, never while anything is applied.
#[derive(Debug)]
pub(crate) struct History {
    changes: Mutex<VecDeque<Arc<Change>>>,
    applied: watch::Sender<Applied>,
}

impl History {
    pub(crate) fn new() -> Self {
        let (applied, _) = watch::channel(Applied {
            state: Arc::default(),
            log_index: None,
            at: UnixMillis(0),
        });
        Self {
            changes: Mutex::default(),
            applied,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Change>>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends changes and shows the state after them.
    pub(crate) fn publish(&self, new: Vec<Arc<Change>>, applied: Applied) {
        {
            let mut changes = self.lock();
            for change in new {
                if let Some(last) = changes.back()
                    && last.revision.0 + 1 != change.revision.0
                {
                    changes.clear();
                }
                if changes.len() == HISTORY_MAX {
                    changes.pop_front();
                }
                changes.push_back(change);
            }
            // Shown before the lock is released: who has seen the state finds its changes.
            self.applied.send_replace(applied);
        }
    }

    /// Shows a state that came by snapshot; what led to it is not known here.
    pub(crate) fn replace(&self, applied: Applied) {
        let mut changes = self.lock();
        changes.clear();
        self.applied.send_replace(applied);
    }

    pub(crate) fn applied(&self) -> Applied {
        self.applied.borrow().clone()
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.applied.borrow().state)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    /// At most `limit` changes after `after`, oldest first; empty if there is none yet.
    pub(crate) fn since(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Change>>, Lagged> {
        let changes = self.lock();
        let newest = self.applied.borrow().state.revision;
        if after == newest {
            return Ok(Vec::new());
        }
        let skip = changes
            .front()
            .and_then(|first| (after.0 + 1).checked_sub(first.revision.0))
            .and_then(|skip| usize::try_from(skip).ok())
            .filter(|skip| *skip < changes.len())
            .ok_or(Lagged { after })?;
        Ok(changes.iter().skip(skip).take(limit).cloned().collect())
    }

    /// The last change up to this log entry, if it is kept.
    pub(crate) fn at(&self, log_index: u64) -> Option<Arc<Change>> {
        let changes = self.lock();
        let up_to = changes.partition_point(|change| change.log_index <= log_index);
        changes.get(up_to.checked_sub(1)?).cloned()
    }
}

/// Changes taken at once from the history by a feed.
const TAKE: usize = 256;

/// A reader of the changes of one group, in order and without a gap.
#[derive(Debug)]
pub struct Feed {
    history: Arc<History>,
    applied: watch::Receiver<Applied>,
    stop: watch::Receiver<bool>,
    start: Arc<State>,
    after: Revision,
    taken: VecDeque<Arc<Change>>,
}

impl Feed {
    /// Begins after the newest state.
    pub(crate) fn new(history: Arc<History>, stop: watch::Receiver<bool>) -> Self {
        let applied = history.watch();
        let start = history.state();
        let after = start.revision;
        Self {
            history,
            applied,
            stop,
            start,
            after,
            taken: VecDeque::new(),
        }
    }

    /// Begins after `after`, if those changes are still kept.
    pub(crate) fn resume(
        history: Arc<History>,
        stop: watch::Receiver<bool>,
        after: Revision,
    ) -> Result<Self, Lagged> {
        let mut feed = Self::new(history, stop);
        feed.after = after;
        feed.taken = feed.history.since(after, TAKE)?.into();
        Ok(feed)
    }

    /// The state this feed began with, before its first change. Not known to a resumed feed, whose
    /// reader has it already: there it is the newest state at the time.
    #[must_use]
    pub fn start(&self) -> &Arc<State> {
        &self.start
    }

    /// Revision of the last change given out, or of the start.
    #[must_use]
    pub fn after(&self) -> Revision {
        self.after
    }

    /// The next change, as soon as there is one. Cancel safe.
    pub async fn next(&mut self) -> Result<Arc<Change>, FeedError> {
        loop {
            if let Some(change) = self.try_next()? {
                return Ok(change);
            }
            tokio::select! {
                biased;
                changed = self.applied.changed() => changed.map_err(|_| FeedError::Stopped)?,
                () = stopped(&mut self.stop) => return Err(FeedError::Stopped),
            }
        }
    }

    /// The next change if it is there.
    pub fn try_next(&mut self) -> Result<Option<Arc<Change>>, Lagged> {
        if self.taken.is_empty() {
            // Marked as seen before looking, so that nothing published meanwhile is missed.
            self.applied.borrow_and_update();
            self.taken = self.history.since(self.after, TAKE)?.into();
        }
        let next = self.taken.pop_front();
        if let Some(change) = &next {
            self.after = change.revision;
        }
        Ok(next)
    }

    /// Goes on from the newest state, which it returns.
    pub fn restart(&mut self) -> Arc<State> {
        self.applied.borrow_and_update();
        self.taken.clear();
        self.start = self.history.state();
        self.after = self.start.revision;
        Arc::clone(&self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(revision: u64) -> Arc<State> {
        let mut state = State::default();
        state.revision = Revision(revision);
        Arc::new(state)
    }

    fn publish(history: &History, revisions: std::ops::RangeInclusive<u64>) {
        let last = *revisions.end();
        let changes = revisions
            .map(|revision| {
                Arc::new(Change {
                    revision: Revision(revision),
                    log_index: revision,
                    at: UnixMillis(revision),
                    events: Vec::new(),
                    before: state(revision - 1),
                    state: state(revision),
                })
            })
            .collect();
        history.publish(changes, applied(last));
    }

    fn applied(revision: u64) -> Applied {
        Applied {
            state: state(revision),
            log_index: Some(revision),
            at: UnixMillis(revision),
        }
    }

    fn setup() -> (Arc<History>, watch::Sender<bool>, Feed) {
        let history = Arc::new(History::new());
        let (stop, stopped) = watch::channel(false);
        let feed = Feed::new(Arc::clone(&history), stopped);
        (history, stop, feed)
    }

    #[tokio::test]
    async fn changes_come_in_order_without_gap() {
        let (history, _stop, mut feed) = setup();
        publish(&history, 1..=3);
        publish(&history, 4..=700);
        for revision in 1..=700 {
            let change = feed.next().await.expect("kept");
            assert_eq!(change.revision, Revision(revision));
            assert_eq!(change.state.revision, Revision(revision));
        }
        assert_eq!(feed.try_next().expect("kept").map(|c| c.revision), None);
    }

    #[test]
    fn a_state_is_found_as_long_as_the_change_before_it_is_kept() {
        let (history, _stop, _feed) = setup();
        let at = |log_index| history.at(log_index).map(|change| change.revision.0);
        assert_eq!(at(7), None);
        publish(&history, 1..=3);
        history.replace(applied(10));
        assert_eq!(at(10), None, "nobody here knows what led to it");
        publish(&history, 11..=13);
        assert_eq!((at(10), at(11), at(12)), (None, Some(11), Some(12)));
        assert_eq!(at(99), Some(13), "no change since");
    }

    #[tokio::test]
    async fn a_feed_wakes_up_for_a_change() {
        let (history, _stop, mut feed) = setup();
        let waiting = tokio::spawn(async move { feed.next().await });
        tokio::task::yield_now().await;
        publish(&history, 1..=1);
        let change = waiting.await.expect("no panic").expect("kept");
        assert_eq!(change.revision, Revision(1));
    }

    #[tokio::test]
    async fn a_slow_reader_lags_and_restarts() {
        let (history, _stop, mut feed) = setup();
        publish(&history, 1..=1);
        publish(&history, 2..=HISTORY_MAX as u64 + 5);
        assert_eq!(
            feed.next().await.expect_err("too slow"),
            FeedError::Lagged(Lagged { after: Revision(0) })
        );
        assert_eq!(feed.restart().revision, Revision(HISTORY_MAX as u64 + 5));
        publish(&history, HISTORY_MAX as u64 + 6..=HISTORY_MAX as u64 + 6);
        assert_eq!(
            feed.next().await.expect("kept").revision,
            Revision(HISTORY_MAX as u64 + 6)
        );
    }

    #[tokio::test]
    async fn a_snapshot_makes_readers_restart() {
        let (history, _stop, mut feed) = setup();
        publish(&history, 1..=4);
        history.replace(applied(90));
        assert!(matches!(feed.next().await, Err(FeedError::Lagged(_))));
        publish(&history, 91..=91);
        assert!(history.since(Revision(4), 10).is_err());
        assert_eq!(history.since(Revision(90), 10).expect("kept").len(), 1);
    }

    #[tokio::test]
    async fn feeds_resume_by_revision() {
        let (history, stop, _feed) = setup();
        publish(&history, 1..=10);
        let mut feed =
            Feed::resume(Arc::clone(&history), stop.subscribe(), Revision(7)).expect("still kept");
        assert_eq!(feed.next().await.expect("kept").revision, Revision(8));
        let ahead = Feed::resume(Arc::clone(&history), stop.subscribe(), Revision(11));
        assert!(ahead.is_err(), "a revision this node has not reached");
    }

    #[tokio::test]
    async fn feeds_end_when_the_group_stops() {
        let (_history, stop, mut feed) = setup();
        stop.send_replace(true);
        assert_eq!(feed.next().await.expect_err("stopped"), FeedError::Stopped);
    }
}
