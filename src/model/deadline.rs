//! What happens at which time if nothing else does: an index over the state.
//!
//! Kept up by [`crate::apply`] with every change of a room's `close_at`, a participant's
//! `activate_by` or a revocation's `until`, and derived from them when a snapshot is read. The
//! group's leader asks for the next one and proposes `Expire` when its clock has passed it.

use crate::id::{Identity, RoomName, UnixMillis};
use crate::map::Map;

/// Who or what a deadline is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Due {
    /// A participant that has to become active.
    Participant(RoomName, Identity),
    /// A room nobody is in.
    Room(RoomName),
    /// A revocation that need not be kept any longer.
    Revocation(RoomName, Identity),
}

/// Deadlines in order of time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Deadlines(Map<(UnixMillis, Due), ()>);

impl Deadlines {
    /// Replaces the deadline `before` by `after`.
    pub fn change(&mut self, due: Due, before: Option<UnixMillis>, after: Option<UnixMillis>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.0.remove(&(before, due.clone()));
        }
        if let Some(after) = after {
            self.0.insert((after, due), ());
        }
    }

    /// The earliest.
    #[must_use]
    pub fn next(&self) -> Option<UnixMillis> {
        self.0.first_key_value().map(|((at, _), ())| *at)
    }

    /// Those at or before `now`, earliest first.
    pub fn due(&self, now: UnixMillis) -> impl Iterator<Item = &Due> {
        self.0
            .keys()
            .take_while(move |(at, _)| *at <= now)
            .map(|(_, due)| due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_due_ones_in_order() {
        let room = |name: &str| Due::Room(RoomName::from(name));
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.next(), None);
        deadlines.change(room("b"), None, Some(UnixMillis(20)));
        deadlines.change(room("a"), None, Some(UnixMillis(30)));
        deadlines.change(room("c"), None, Some(UnixMillis(10)));
        deadlines.change(room("c"), Some(UnixMillis(10)), Some(UnixMillis(40)));
        assert_eq!(deadlines.next(), Some(UnixMillis(20)));
        let due: Vec<_> = deadlines.due(UnixMillis(30)).cloned().collect();
        assert_eq!(due, [room("b"), room("a")]);
        deadlines.change(room("b"), Some(UnixMillis(20)), None);
        assert_eq!(deadlines.next(), Some(UnixMillis(30)));
    }
}
