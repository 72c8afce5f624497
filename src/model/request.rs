//! Requests that were applied, with their answers: why a command applies once.
//!
//! A proposer that does not know what became of its command proposes it again under the same id.
//! [`crate::apply`] asks here first. Answers are kept in a few bytes each: the record of a room, a
//! participant or a track is taken from the state when the same command comes again, so the second
//! answer shows the object at least as new as the first did.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::command::{Outcome, Rejection, Reply};
use crate::id::{RequestId, Revision, UnixMillis, Version};
use crate::limit::{REQUEST_AGE_MAX_MS, REQUESTS_MAX};
use crate::map::Map;

/// Most requests forgotten per entry, so that no entry is slow. Above 1, so that the window
/// shrinks after a burst.
const FORGET_MAX: usize = 16;

/// What is remembered of an answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Answer {
    /// It was refused.
    Refused(Rejection),
    /// It was done.
    Done {
        /// Room's version after it.
        version: Version,
        /// What the answer carried.
        carried: Carried,
    },
}

/// What an answer carried beside the version.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Carried {
    /// Nothing.
    Nothing,
    /// A room.
    Room,
    /// A room and the participant that joined it.
    Joined,
    /// A participant.
    Participant,
    /// A track.
    Track,
    /// Counts.
    Expired {
        /// Rooms closed.
        rooms: u32,
        /// Participants that left.
        participants: u32,
    },
}

impl Answer {
    /// What is to be remembered of a result.
    #[must_use]
    pub fn of(result: &Result<Reply, Rejection>) -> Self {
        let reply = match result {
            Ok(reply) => reply,
            Err(rejection) => return Self::Refused(rejection.clone()),
        };
        let carried = match &reply.outcome {
            Outcome::Done => Carried::Nothing,
            Outcome::Room(_) => Carried::Room,
            Outcome::Joined { .. } => Carried::Joined,
            Outcome::Participant(_) => Carried::Participant,
            Outcome::Track(_) => Carried::Track,
            Outcome::Expired {
                rooms,
                participants,
            } => Carried::Expired {
                rooms: *rooms,
                participants: *participants,
            },
        };
        Self::Done {
            version: reply.version,
            carried,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
struct Record {
    revision: Revision,
    id: RequestId,
    at: UnixMillis,
    answer: Answer,
}

/// The remembered requests: those of the last minutes, up to a number.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Requests {
    revisions: Map<RequestId, Revision>,
    records: Map<Revision, Record>,
}

impl Requests {
    /// The answer given to a request, if it was applied and is still remembered.
    #[must_use]
    pub fn answer(&self, id: RequestId) -> Option<&Answer> {
        let record = self.records.get(self.revisions.get(&id)?)?;
        Some(&record.answer)
    }

    /// Remembers an answer; forgets old ones. `revision` must rise, `id` must be new.
    pub fn remember(&mut self, revision: Revision, id: RequestId, at: UnixMillis, answer: Answer) {
        self.insert(Record {
            revision,
            id,
            at,
            answer,
        });
        for _ in 0..FORGET_MAX {
            let Some((_, oldest)) = self.records.first_key_value() else {
                return;
            };
            let too_old = oldest.at.0.saturating_add(REQUEST_AGE_MAX_MS) < at.0;
            if self.records.len() <= REQUESTS_MAX && !too_old {
                return;
            }
            let (revision, id) = (oldest.revision, oldest.id);
            self.records.remove(&revision);
            self.revisions.remove(&id);
        }
    }

    /// Number of requests remembered.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn insert(&mut self, record: Record) {
        self.revisions.insert(record.id, record.revision);
        self.records.insert(record.revision, record);
    }
}

impl Serialize for Requests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.records.values())
    }
}

impl<'de> Deserialize<'de> for Requests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut requests = Self::default();
        for record in Vec::<Record>::deserialize(deserializer)? {
            requests.insert(record);
        }
        Ok(requests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remember(requests: &mut Requests, number: u64, at: u64) {
        let answer = Answer::Refused(Rejection::RoomNotFound);
        let id = RequestId(u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060));
        requests.remember(Revision(number), id, UnixMillis(at), answer);
    }

    #[test]
    fn forgets_beyond_the_number_and_the_age() {
        let mut requests = Requests::default();
        for number in 1..=REQUESTS_MAX as u64 + 100 {
            remember(&mut requests, number, 1000);
        }
        assert_eq!(requests.len(), REQUESTS_MAX);
        let (first, _) = requests.records.first_key_value().expect("is not empty");
        assert_eq!(*first, Revision(101));

        let later = 1001 + REQUEST_AGE_MAX_MS;
        for number in 0..REQUESTS_MAX as u64 / 8 {
            remember(&mut requests, 200_000 + number, later);
        }
        assert!(requests.records.values().all(|record| record.at.0 == later));
        assert_eq!(requests.revisions.len(), requests.records.len());
    }

    #[test]
    fn survives_encoding() {
        let mut requests = Requests::default();
        for number in 1..100 {
            remember(&mut requests, number, 1000);
        }
        let bytes = postcard::to_stdvec(&requests).expect("encodes");
        let decoded: Requests = postcard::from_bytes(&bytes).expect("decodes");
        assert_eq!(decoded, requests);
    }
}
