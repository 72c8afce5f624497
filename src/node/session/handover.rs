//! What a session needs besides the log to go on at another node: sealed, kept at home and at the
//! participant's standby, collected by the node that takes the session over.
//!
//! ```text
//! engine ─ checkpoint ─┐                        ┌─ standby's Checkpoints
//! session ─ keepsake ──┴─ seal ─ own Checkpoints┴── Claim ── the next home ─ open ─ engine
//! ```
//!
//! None of it is needed for a takeover: without keys a client's transport starts with a handshake.
//! Every part is small, replaces the one before, and goes when its participant leaves.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use bytes::Bytes;
use flotilla_media::command::Continuation;
use flotilla_media::peer::passage::Passage;
use flotilla_media::peer::transport::TransportSnapshot;
use flotilla_media::via;
use flotilla_model::State;
use flotilla_model::id::{Epoch, NodeId, ParticipantSid};
use flotilla_signal::session::Keepsake;
use serde::{Deserialize, Serialize};

use crate::mesh::{enroll, proto};

/// Sessions of other nodes' participants, and own ones, that are remembered. Beyond it new ones are
/// not: they start with a handshake when they move.
const HELD_MAX: usize = 64 * 1024;
/// Longest part of a checkpoint that is kept.
const PART_BYTES_MAX: usize = 64 * 1024;
/// How long one sealing key is used.
const PERIOD_MS: u64 = 3_600_000;
/// Layout of what is sealed. A node that does not know it does without.
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 12;
const HEADER_BYTES: usize = 1 + 8 + NONCE_BYTES;

/// Seals parts of sessions with keys that follow from the cluster's secret and the hour.
pub struct Vault {
    secret: String,
}

/// What is sealed.
#[derive(Serialize, Deserialize)]
enum Part {
    Transport(Box<TransportSnapshot>),
    Keepsake(Keepsake),
    /// Path and streams of a connection, as bytes; by which address of its node the client is heard.
    Passage(Vec<u8>, IpAddr),
    /// Its last offer and answer.
    Descriptions(Box<(String, String)>),
    /// A connection whose path is lent.
    Lent(Box<LentPart>),
}

/// All of a connection, with the number of the lender's address by which its client is heard.
#[derive(Serialize, Deserialize)]
struct LentPart {
    transport: TransportSnapshot,
    passage: Vec<u8>,
    own: via::Local,
    descriptions: (String, String),
}

impl Vault {
    /// A vault of the cluster with this secret.
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self { secret }
    }

    /// Seals a connection's keys and indices. `wall_ms` is the wall clock.
    #[must_use]
    pub fn seal_transport(
        &self,
        sid: &ParticipantSid,
        snapshot: Box<TransportSnapshot>,
        wall_ms: u64,
    ) -> Bytes {
        self.seal(sid, &Part::Transport(snapshot), wall_ms)
    }

    /// Seals what a session keeps.
    #[must_use]
    pub fn seal_keepsake(&self, sid: &ParticipantSid, keepsake: Keepsake, wall_ms: u64) -> Bytes {
        self.seal(sid, &Part::Keepsake(keepsake), wall_ms)
    }

    /// Opens a connection's keys; `None` if they are somebody else's, damaged or of another version.
    #[must_use]
    pub fn open_transport(
        &self,
        sid: &ParticipantSid,
        sealed: &[u8],
    ) -> Option<Box<TransportSnapshot>> {
        match self.open(sid, sealed)? {
            Part::Transport(snapshot) => Some(snapshot),
            _ => None,
        }
    }

    /// Opens what a session keeps; `None` as with [`Vault::open_transport`].
    #[must_use]
    pub fn open_keepsake(&self, sid: &ParticipantSid, sealed: &[u8]) -> Option<Keepsake> {
        match self.open(sid, sealed)? {
            Part::Keepsake(keepsake) => Some(keepsake),
            _ => None,
        }
    }

    /// Seals a connection's path and streams, with the address by which its client is heard.
    #[must_use]
    pub fn seal_passage(
        &self,
        sid: &ParticipantSid,
        (passage, address): (&Passage, IpAddr),
        wall_ms: u64,
    ) -> Bytes {
        self.seal(sid, &Part::Passage(passage.to_bytes(), address), wall_ms)
    }

    /// Opens them; `None` as with [`Vault::open_transport`].
    #[must_use]
    pub fn open_passage(&self, sid: &ParticipantSid, sealed: &[u8]) -> Option<(Passage, IpAddr)> {
        match self.open(sid, sealed)? {
            Part::Passage(bytes, address) => Some((Passage::from_bytes(&bytes).ok()?, address)),
            _ => None,
        }
    }

    /// Seals a connection's last offer and answer.
    #[must_use]
    pub fn seal_descriptions(
        &self,
        sid: &ParticipantSid,
        descriptions: Box<(String, String)>,
        wall_ms: u64,
    ) -> Bytes {
        self.seal(sid, &Part::Descriptions(descriptions), wall_ms)
    }

    /// Opens them; `None` as with [`Vault::open_transport`].
    #[must_use]
    pub fn open_descriptions(
        &self,
        sid: &ParticipantSid,
        sealed: &[u8],
    ) -> Option<Box<(String, String)>> {
        match self.open(sid, sealed)? {
            Part::Descriptions(descriptions) => Some(descriptions),
            _ => None,
        }
    }

    /// Seals a connection for the node that its path is lent to.
    #[must_use]
    pub fn seal_lent(&self, sid: &ParticipantSid, lent: Continuation, wall_ms: u64) -> Bytes {
        let part = LentPart {
            transport: lent.transport,
            passage: lent.passage.to_bytes(),
            own: lent.passage.local(),
            descriptions: lent.descriptions,
        };
        self.seal(sid, &Part::Lent(Box::new(part)), wall_ms)
    }

    /// Opens it; `None` as with [`Vault::open_transport`].
    #[must_use]
    pub fn open_lent(&self, sid: &ParticipantSid, sealed: &[u8]) -> Option<Continuation> {
        match self.open(sid, sealed)? {
            Part::Lent(part) => Some(Continuation {
                transport: part.transport,
                passage: Passage::from_bytes(&part.passage).ok()?.heard_by(part.own),
                descriptions: part.descriptions,
            }),
            _ => None,
        }
    }

    fn key(&self, period: u64) -> RandomizedNonceKey {
        let bytes = enroll::derive(&self.secret, &format!("sessions {period}"));
        RandomizedNonceKey::new(&AES_256_GCM, &bytes).expect("the key has the cipher's length")
    }

    fn seal(&self, sid: &ParticipantSid, part: &Part, wall_ms: u64) -> Bytes {
        let Ok(mut sealed) = postcard::to_allocvec(part) else {
            return Bytes::new();
        };
        let period = wall_ms / PERIOD_MS;
        let aad = Aad::from(sid.as_str().as_bytes());
        let nonce = self
            .key(period)
            .seal_in_place_append_tag(aad, &mut sealed)
            .expect("a part is far below the cipher's limit");
        let mut whole = Vec::with_capacity(HEADER_BYTES + sealed.len());
        whole.push(VERSION);
        whole.extend_from_slice(&period.to_be_bytes());
        whole.extend_from_slice(nonce.as_ref());
        whole.append(&mut sealed);
        whole.into()
    }

    fn open(&self, sid: &ParticipantSid, sealed: &[u8]) -> Option<Part> {
        let (header, body) = sealed.split_at_checked(HEADER_BYTES)?;
        let (version, rest) = header.split_first()?;
        let (period, nonce) = rest.split_first_chunk::<8>()?;
        if *version != VERSION {
            return None;
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let plain = self
            .key(u64::from_be_bytes(*period))
            .open_in_place(nonce, Aad::from(sid.as_str().as_bytes()), &mut body)
            .ok()?;
        postcard::from_bytes(plain).ok()
    }
}

/// Highest number of a client's reliable messages that every node of the room has, by what they say. 1 if none has any, or can
/// say so, and the client has sent something; 0 if it may have sent nothing.
#[must_use]
pub fn last_sequence(replies: &[proto::ClaimReply]) -> u32 {
    // The first message is with whoever knows that the client has sent something. JavaScript's SDK takes 0 for no answer, and does not send what it held back.
    let known = replies
        .iter()
        .map(|reply| reply.last_sequence.max(reply.reached));
    let first = known.max().unwrap_or_default().min(1);
    of_room(replies).min().unwrap_or_default().max(first)
}

/// Highest number of a client's reliable messages that can have been acknowledged to it, by what nodes say: whatever was is
/// with all nodes of the room or, if there is none but its home, with the one that keeps its messages. A node that has none is
/// of the room since somebody joined there, and says nothing of what was before.
#[must_use]
pub fn acknowledged(replies: &[proto::ClaimReply]) -> u32 {
    let reached = || replies.iter().map(|reply| reply.reached).max();
    let least = of_room(replies).filter(|number| *number > 0).min();
    least.or_else(reached).unwrap_or_default()
}

/// What each node of the room that can say so has.
fn of_room(replies: &[proto::ClaimReply]) -> impl Iterator<Item = u32> {
    let of_room = replies.iter().filter(|reply| reply.in_room);
    of_room.map(|reply| reply.last_sequence)
}

/// The reply with the last checkpoint of the newest epoch among those that have what is looked for: older homes,
/// and nodes that kept a session's checkpoints for a while, still hold what they had.
pub fn newest(
    replies: &[proto::ClaimReply],
    has: impl Fn(&proto::ClaimReply) -> bool,
) -> Option<&proto::ClaimReply> {
    let having = replies.iter().filter(|reply| has(reply));
    having.max_by_key(|reply| (reply.epoch, reply.number))
}

/// Opened keys of a session's connections.
#[derive(Default)]
pub struct Transports {
    /// The connection that the client publishes on.
    pub publisher: Option<Box<TransportSnapshot>>,
    /// The one it receives on (v0).
    pub subscriber: Option<Box<TransportSnapshot>>,
}

/// Sealed parts of a session; empty: not known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// Epoch of the home that sent them.
    pub epoch: Epoch,
    /// Number of the last checkpoint among them; 0 if it had none.
    pub number: u64,
    /// The connection that the client publishes on.
    pub publisher: Bytes,
    /// The one it receives on (v0).
    pub subscriber: Bytes,
    /// What the session keeps.
    pub keepsake: Bytes,
    /// Path and streams of the two connections, where the home's address moves.
    pub passages: [Bytes; 2],
    /// Last offers and answers of the two, there.
    pub descriptions: [Bytes; 2],
    /// When the path and streams of each were last said.
    pub passed_at: [Option<Instant>; 2],
    /// Since when this node is neither the participant's home nor among its keepers.
    unneeded_since: Option<Instant>,
}

impl Held {
    fn put(&mut self, now: Instant, checkpoint: proto::Checkpoint) {
        let epoch = Epoch(checkpoint.epoch);
        if epoch < self.epoch {
            return;
        }
        // Wishes outlive the connections of an epoch; keys do not.
        if epoch > self.epoch {
            let keepsake = std::mem::take(&mut self.keepsake);
            *self = Self {
                keepsake,
                ..Self::default()
            };
        }
        self.epoch = epoch;
        self.number = self.number.max(checkpoint.number);
        let passages = [
            &checkpoint.passage_publisher,
            &checkpoint.passage_subscriber,
        ];
        for (at, passage) in self.passed_at.iter_mut().zip(passages) {
            if !passage.is_empty() {
                *at = Some(now);
            }
        }
        let [passage_publisher, passage_subscriber] = &mut self.passages;
        let [described_publisher, described_subscriber] = &mut self.descriptions;
        for (slot, part) in [
            (&mut self.publisher, checkpoint.publisher),
            (&mut self.subscriber, checkpoint.subscriber),
            (&mut self.keepsake, checkpoint.keepsake),
            (passage_publisher, checkpoint.passage_publisher),
            (passage_subscriber, checkpoint.passage_subscriber),
            (described_publisher, checkpoint.described_publisher),
            (described_subscriber, checkpoint.described_subscriber),
        ] {
            if !part.is_empty() && part.len() <= PART_BYTES_MAX {
                *slot = part;
            }
        }
    }
}

/// Sessions' parts that this node holds.
#[derive(Default)]
pub struct Checkpoints {
    /// Written by sessions and the mesh, read by claims; nothing waits while it is held.
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    held: HashMap<ParticipantSid, Held>,
}

/// What a node holds of a session without being its home or a keeper is forgotten after so long: it gets no newer
/// one, and what is that old does more harm than none. Longer than a takeover takes, in which former keepers are asked.
/// A part that came before its participant, or after the departure, is one of these.
const UNNEEDED: Duration = Duration::from_secs(10);

impl Known {
    fn put(&mut self, checkpoint: proto::Checkpoint) {
        let sid = ParticipantSid(checkpoint.sid.clone());
        if self.held.len() < HELD_MAX || self.held.contains_key(&sid) {
            let held = self.held.entry(sid).or_default();
            held.put(Instant::now(), checkpoint);
        }
    }
}

impl Checkpoints {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes parts of a session; those of an older epoch than known are ignored.
    pub fn put(&self, checkpoint: proto::Checkpoint) {
        self.lock().put(checkpoint);
    }

    /// Takes parts of a session of this node, and numbers them.
    #[must_use]
    pub fn keep(&self, mut checkpoint: proto::Checkpoint) -> proto::Checkpoint {
        let mut known = self.lock();
        let before = known.held.get(&ParticipantSid(checkpoint.sid.clone()));
        let before = before.filter(|held| held.epoch.0 == checkpoint.epoch);
        checkpoint.number = before.map_or(0, |held| held.number) + 1;
        known.put(checkpoint.clone());
        checkpoint
    }

    /// Forgets what is held of sessions that are not this node's to keep any more. To be called every few seconds.
    pub fn forget_unneeded(&self, now: Instant, here: NodeId, state: &State) {
        let participants = state
            .rooms
            .values()
            .flat_map(|room| room.participants.values());
        let needed: HashSet<&ParticipantSid> = participants
            .filter(|one| one.home == here || state.keepers(one).any(|keeper| keeper == here))
            .map(|one| &one.sid)
            .collect();
        self.lock().held.retain(|sid, held| {
            if needed.contains(sid) {
                held.unneeded_since = None;
                return true;
            }
            let since = *held.unneeded_since.get_or_insert(now);
            now.saturating_duration_since(since) < UNNEEDED
        });
    }

    /// What is held of a session.
    #[must_use]
    pub fn get(&self, sid: &ParticipantSid) -> Option<Held> {
        self.lock().held.get(sid).cloned()
    }

    /// The participant left.
    pub fn forget(&self, sid: &ParticipantSid) {
        self.lock().held.remove(sid);
    }

    /// Keeps only those whose participants are there, after events were lost.
    pub fn retain_present(&self, state: &State) {
        let present: HashSet<&ParticipantSid> = state
            .rooms
            .values()
            .flat_map(|room| room.participants.values().map(|p| &p.sid))
            .collect();
        self.lock().held.retain(|sid, _| present.contains(sid));
    }

    /// How many sessions parts are held of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 1_700_000_000_000;

    #[test]
    fn the_newest_home_and_the_least_sequence_count() {
        let reply = |epoch, keepsake: &'static [u8], in_room, last_sequence| proto::ClaimReply {
            epoch,
            keepsake: Bytes::from_static(keepsake),
            in_room,
            last_sequence,
            ..proto::ClaimReply::default()
        };
        let replies = [
            reply(3, b"old", true, 7),
            reply(5, b"new", true, 9),
            reply(6, b"", false, 2),
        ];
        let kept = newest(&replies, |reply| !reply.keepsake.is_empty());
        assert_eq!(kept.map(|reply| &reply.keepsake[..]), Some(&b"new"[..]));
        assert_eq!(newest(&replies, |_| true).map(|reply| reply.epoch), Some(6));
        assert_eq!(last_sequence(&replies), 7);
        assert_eq!(acknowledged(&replies), 7);
        let keeper = |reached| proto::ClaimReply {
            reached,
            ..proto::ClaimReply::default()
        };
        assert_eq!(acknowledged(&[keeper(3), keeper(8)]), 8);
        assert_eq!(last_sequence(&[keeper(8)]), 1, "the keeper has the first");
        assert_eq!(last_sequence(&[]), 0);
        // Somebody has just joined at a node that was not of the room before.
        let joined = [reply(5, b"", true, 0), reply(5, b"", true, 92), keeper(93)];
        assert_eq!((last_sequence(&joined), acknowledged(&joined)), (1, 92));
        let joined = [reply(5, b"", true, 0), keeper(93)];
        assert_eq!((last_sequence(&joined), acknowledged(&joined)), (1, 93));
        let alone = [reply(6, b"", false, 92), reply(5, b"", false, 0)];
        assert_eq!(last_sequence(&alone), 1, "from the second on");
        assert_eq!(last_sequence(&alone[1..]), 0, "it may have sent nothing");
    }

    /// Its SRTP indices may be more than 2¹⁵ packets behind those of the client, whom the next home would never
    /// understand (RFC 3711, 3.3.1).
    #[test]
    fn what_a_former_keeper_holds_is_older() {
        let former = Checkpoints::default();
        let (home, keeper) = (Checkpoints::default(), Checkpoints::default());
        for (keys, kept_by) in [
            (&b"first"[..], [&former, &keeper]),
            (b"last", [&keeper, &keeper]),
        ] {
            let numbered = home.keep(checkpoint(5, keys, b""));
            for kept_by in kept_by {
                kept_by.put(numbered.clone());
            }
        }
        let sid = ParticipantSid("PA_a".into());
        let reply = |of: &Checkpoints| {
            let held = of.get(&sid).unwrap_or_default();
            proto::ClaimReply {
                epoch: held.epoch.0,
                number: held.number,
                publisher: held.publisher,
                ..proto::ClaimReply::default()
            }
        };
        // Whoever claims it names its own last.
        for replies in [
            [reply(&keeper), reply(&former)],
            [reply(&former), reply(&keeper)],
            [reply(&home), reply(&former)],
        ] {
            let found = newest(&replies, |_| true).expect("there are some");
            assert_eq!((&found.publisher[..], found.number), (&b"last"[..], 2));
        }
        // Every home counts anew.
        assert_eq!(home.keep(checkpoint(6, b"next", b"")).number, 1);
        let replies = [reply(&home), reply(&keeper)];
        assert_eq!(newest(&replies, |_| true).map(|one| one.epoch), Some(6));
    }

    #[test]
    fn only_the_same_cluster_and_session_opens() {
        let vault = Vault::new("a cluster's secret".into());
        let (alice, bob) = (ParticipantSid("PA_a".into()), ParticipantSid("PA_b".into()));
        let sealed = vault.seal_keepsake(&alice, Keepsake::default(), HOUR);
        assert_eq!(
            vault.open_keepsake(&alice, &sealed),
            Some(Keepsake::default())
        );
        assert_eq!(vault.open_keepsake(&bob, &sealed), None);
        let other = Vault::new("another secret".into());
        assert_eq!(other.open_keepsake(&alice, &sealed), None);
        assert!(vault.open_transport(&alice, &sealed).is_none());
        for cut in 0..sealed.len() {
            assert_eq!(vault.open_keepsake(&alice, &sealed[..cut]), None);
        }
        let mut changed = sealed.to_vec();
        for at in 0..changed.len() {
            changed[at] ^= 1;
            assert_eq!(vault.open_keepsake(&alice, &changed), None);
            changed[at] ^= 1;
        }
    }

    #[test]
    fn keys_change_with_the_hour() {
        let vault = Vault::new("a cluster's secret".into());
        let sid = ParticipantSid("PA_a".into());
        let sealed = vault.seal_keepsake(&sid, Keepsake::default(), HOUR);
        let mut later = sealed.to_vec();
        later[8] ^= 1;
        assert_eq!(vault.open_keepsake(&sid, &later), None, "another period");
        let next = vault.seal_keepsake(&sid, Keepsake::default(), HOUR + PERIOD_MS);
        assert_ne!(next[1..9], sealed[1..9]);
        assert!(vault.open_keepsake(&sid, &next).is_some());
    }

    fn checkpoint(
        epoch: u64,
        publisher: &'static [u8],
        keepsake: &'static [u8],
    ) -> proto::Checkpoint {
        proto::Checkpoint {
            room: "room".into(),
            sid: "PA_a".into(),
            epoch,
            publisher: Bytes::from_static(publisher),
            subscriber: Bytes::new(),
            keepsake: Bytes::from_static(keepsake),
            ..proto::Checkpoint::default()
        }
    }

    #[test]
    fn parts_that_come_after_the_departure_are_forgotten() {
        let (checkpoints, state) = (Checkpoints::default(), State::default());
        let start = Instant::now();
        checkpoints.put(checkpoint(1, b"k", b""));
        for (after, left) in [(0, 1), (9, 1), (10, 0)] {
            checkpoints.forget_unneeded(start + Duration::from_secs(after), NodeId(1), &state);
            assert_eq!(checkpoints.len(), left, "after {after} s");
        }
    }

    #[test]
    fn parts_add_up_and_older_epochs_are_refused() {
        let checkpoints = Checkpoints::default();
        let sid = ParticipantSid("PA_a".into());
        checkpoints.put(checkpoint(2, b"keys", b""));
        checkpoints.put(checkpoint(2, b"", b"wishes"));
        checkpoints.put(checkpoint(1, b"old keys", b"old wishes"));
        let held = checkpoints.get(&sid).expect("it was put");
        assert_eq!(
            (&held.publisher[..], &held.keepsake[..]),
            (&b"keys"[..], &b"wishes"[..])
        );
        checkpoints.put(checkpoint(3, b"", b""));
        let held = checkpoints.get(&sid).expect("it was put");
        assert_eq!(
            (&held.publisher[..], &held.keepsake[..]),
            (&b""[..], &b"wishes"[..])
        );
        checkpoints.forget(&sid);
        assert!(checkpoints.is_empty());
    }
}
