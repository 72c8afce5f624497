//! Consensus as the nodes see it: a log with leaders, terms, elections and quorums, under the real state
//! machine. A model of openraft's behaviour, not openraft itself; that one is exercised elsewhere.
//!
//! ```text
//! World ─ tick, handle ─ Replica ─ Out::Send ── network
//!                           ├──── Out::Sync ── disk, later Replica::synced
//!                           └──── Out::Applied ─ feed of the node
//! ```
//! Faithful in: one vote per term, kept on disk; acknowledgement only of what is synced; pre-votes and
//! leases of followers; commit by a majority of the voters in the leader's own term; read index; snapshots
//! in the product's own encoding; one change of the voters at a time. A killed node loses what it had not
//! synced. Raft (Ongaro 2014) §3, §4.1, §6.4, §9.6.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use flotilla_model::State;
use flotilla_model::command::{Command, Entry};
use flotilla_model::encoding::{decode_snapshot, encode_snapshot, state_hash};
use flotilla_model::id::{RequestId, UnixMillis};
use flotilla_model::request::Requests;
use flotilla_raft::Change;

mod election;
mod message;

pub use message::{Advance, Logged, Members, Out, RaftMessage, Snapshot};

use crate::bug::Bug;
use crate::rng::Rng;
use crate::time::{Time, ms};

/// How often a leader makes itself known.
const HEARTBEAT: u64 = ms(50);
/// Least and most time without a leader before a voter stands; as `GroupConfig` has it.
const ELECTION: (u64, u64) = (ms(150), ms(300));
/// Entries in the log after which a snapshot takes their place.
const SNAPSHOT_AFTER: usize = 40;
/// Every so many entries the state's hash is taken.
const HASHED: u64 = 16;
/// Entries per append.
const APPEND_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    matched: u64,
    next: u64,
    round: u64,
    heard: Time,
}

#[derive(Clone, Debug)]
struct Read {
    asker: Option<u64>,
    id: u64,
    index: u64,
    round: u64,
}

/// One node's share of the log.
#[derive(Debug)]
pub struct Replica {
    id: u64,
    bug: Option<Bug>,
    // On disk.
    term: u64,
    voted: Option<u64>,
    base: Snapshot,
    log: VecDeque<Arc<Logged>>,
    synced: u64,
    // In memory.
    role: Role,
    leader: Option<u64>,
    votes: BTreeSet<u64>,
    commit: u64,
    applied: u64,
    at: UnixMillis,
    state: State,
    published: Arc<State>,
    members: Members,
    heard: Time,
    timeout: u64,
    beat: Time,
    round: u64,
    peers: BTreeMap<u64, Peer>,
    reads: Vec<Read>,
    /// Leader, its term and the place up to which the log is known to be like its.
    owed: Option<(u64, u64, u64)>,
    gone: Option<u64>,
}

impl Replica {
    /// A replica with an empty disk; `members` are those of the founder's first entry.
    #[must_use]
    pub fn new(id: u64, members: Members, bug: Option<Bug>) -> Self {
        let state = State::default();
        let base = Snapshot {
            index: 0,
            term: 0,
            at: UnixMillis(0),
            members: members.clone(),
            bytes: Arc::new(encode_snapshot(&state)),
        };
        Self {
            id,
            bug,
            term: 0,
            voted: None,
            base,
            log: VecDeque::new(),
            synced: 0,
            role: Role::Follower,
            leader: None,
            votes: BTreeSet::new(),
            commit: 0,
            applied: 0,
            at: UnixMillis(0),
            published: Arc::new(state.clone()),
            state,
            members,
            heard: Time(0),
            timeout: ELECTION.1,
            beat: Time(0),
            round: 0,
            peers: BTreeMap::new(),
            reads: Vec::new(),
            owed: None,
            gone: None,
        }
    }

    /// The process ended and begins anew with what its disk has.
    pub fn restart(&mut self, now: Time, rng: &mut Rng) {
        while self.last().0 > self.synced {
            self.log.pop_back();
        }
        if self.bug == Some(Bug::VoteForgotten) {
            self.voted = None;
        }
        self.state = decode_snapshot(&self.base.bytes).expect("our own snapshot");
        if self.bug == Some(Bug::SnapshotForgetsRevocations) {
            self.state.revocations = flotilla_model::map::Map::new();
        }
        self.applied = self.base.index;
        self.commit = self.base.index;
        self.at = self.base.at;
        self.publish();
        self.role = Role::Follower;
        self.leader = None;
        self.votes.clear();
        self.peers.clear();
        self.reads.clear();
        self.owed = None;
        self.gone = None;
        self.heard = now;
        self.follow_members();
        self.resample(rng);
    }

    /// The newest state applied here, as the feed shows it.
    #[must_use]
    pub const fn state(&self) -> &Arc<State> {
        &self.published
    }

    /// The whole state, remembered requests and all.
    #[must_use]
    pub const fn full_state(&self) -> &State {
        &self.state
    }

    /// Place of the last entry applied here.
    #[must_use]
    pub const fn applied(&self) -> u64 {
        self.applied
    }

    /// Who leads, as far as is known here.
    #[must_use]
    pub const fn leader(&self) -> Option<u64> {
        self.leader
    }

    /// Its term.
    #[must_use]
    pub const fn term(&self) -> u64 {
        self.term
    }

    /// Whether it leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.role == Role::Leader
    }

    /// The members as its log has them.
    #[must_use]
    pub const fn members(&self) -> &Members {
        &self.members
    }

    /// Time of the last command applied.
    #[must_use]
    pub const fn at(&self) -> UnixMillis {
        self.at
    }

    /// Since when a member has been silent, for a leader.
    #[must_use]
    pub fn silent_since(&self, member: u64) -> Option<Time> {
        self.peers.get(&member).map(|peer| peer.heard)
    }

    /// How far a member's log is behind, for a leader.
    #[must_use]
    pub fn lag(&self, member: u64) -> Option<u64> {
        let peer = self.peers.get(&member)?;
        Some(self.last().0.saturating_sub(peer.matched))
    }

    fn last(&self) -> (u64, u64) {
        self.log
            .back()
            .map_or((self.base.index, self.base.term), |entry| {
                (entry.index, entry.term)
            })
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.entry(index).map(|entry| entry.term)
    }

    /// An entry that is still in the log.
    #[must_use]
    pub fn entry(&self, index: u64) -> Option<&Arc<Logged>> {
        let offset = index.checked_sub(self.base.index + 1)?;
        self.log.get(usize::try_from(offset).ok()?)
    }

    /// Time of the newest entry, applied or not: what follows is not before it.
    fn newest_at(&self) -> UnixMillis {
        self.log
            .back()
            .map_or(self.base.at, |entry| entry.at)
            .max(self.at)
    }

    fn follow_members(&mut self) {
        let newest = self.log.iter().rev();
        let members = newest.filter_map(|entry| entry.members.as_ref()).next();
        self.members = members.unwrap_or(&self.base.members).clone();
        if self.role == Role::Leader {
            let (last, now) = (self.last().0, self.beat);
            let all: BTreeSet<u64> = self
                .members
                .voters
                .union(&self.members.learners)
                .copied()
                .collect();
            self.peers.retain(|id, _| all.contains(id));
            for id in all {
                self.peers.entry(id).or_insert_with(|| Peer {
                    next: last + 1,
                    heard: now,
                    ..Peer::default()
                });
            }
        }
    }

    fn resample(&mut self, rng: &mut Rng) {
        self.timeout = if self.bug == Some(Bug::ElectionTimeoutFixed) {
            ELECTION.1 * 2
        } else {
            ELECTION.1 + rng.range(ELECTION.0, ELECTION.1)
        };
    }

    fn is_majority(&self, count: usize) -> bool {
        count > self.members.voters.len() / 2
    }

    fn publish(&mut self) {
        let mut shown = self.state.clone();
        shown.requests = Requests::default();
        self.published = Arc::new(shown);
    }

    /// Some time has passed.
    pub fn tick(&mut self, now: Time, rng: &mut Rng, out: &mut Vec<Out>) {
        if self.role == Role::Leader {
            if now - self.beat >= HEARTBEAT {
                self.beat(now, out);
            }
        } else if self.members.voters.contains(&self.id) && now - self.heard >= self.timeout {
            // Who led last is taken for the leader until there is a vote for another, as openraft shows it.
            self.heard = now;
            self.resample(rng);
            self.stand(true, out);
        }
    }

    fn beat(&mut self, now: Time, out: &mut Vec<Out>) {
        self.beat = now;
        self.round += 1;
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        for peer in peers {
            if let Some(peer) = self.peers.get_mut(&peer) {
                peer.next = peer.next.min(peer.matched + 1).max(1);
            }
            self.send(peer, out);
        }
        self.settle_reads(out);
    }

    fn send(&mut self, to: u64, out: &mut Vec<Out>) {
        if to == self.id {
            return;
        }
        let Some(next) = self.peers.get(&to).map(|peer| peer.next) else {
            return;
        };
        let Some(term) = self.term_at(next - 1) else {
            let message = RaftMessage::Install {
                term: self.term,
                snapshot: self.base.clone(),
            };
            out.push(Out::Send(to, message));
            return;
        };
        let from = (next - 1 - self.base.index) as usize;
        let entries: Vec<_> = self
            .log
            .iter()
            .skip(from)
            .take(APPEND_MAX)
            .cloned()
            .collect();
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.next += entries.len() as u64;
        }
        let message = RaftMessage::Append {
            term: self.term,
            prev: (next - 1, term),
            entries,
            commit: self.commit,
            round: self.round,
        };
        out.push(Out::Send(to, message));
    }

    fn send_all(&mut self, out: &mut Vec<Out>) {
        let peers: Vec<u64> = self.peers.keys().copied().collect();
        for peer in peers {
            self.send(peer, out);
        }
    }

    /// Appends to the log; whether this node leads.
    pub fn propose(
        &mut self,
        wall: UnixMillis,
        commands: Vec<(RequestId, Command)>,
        out: &mut Vec<Out>,
    ) -> bool {
        if self.role != Role::Leader {
            return false;
        }
        let at = wall.max(self.newest_at());
        self.write(at, commands, None, out);
        true
    }

    /// Changes the members, if none of an earlier change is under way.
    pub fn change_members(&mut self, members: Members, out: &mut Vec<Out>) -> bool {
        let under_way = self
            .log
            .iter()
            .any(|entry| entry.index > self.commit && entry.members.is_some());
        let settled = self.term_at(self.commit) == Some(self.term);
        if self.role != Role::Leader || under_way || !settled {
            return false;
        }
        let at = self.newest_at();
        self.write(at, Vec::new(), Some(members), out);
        true
    }

    fn write(
        &mut self,
        at: UnixMillis,
        commands: Vec<(RequestId, Command)>,
        members: Option<Members>,
        out: &mut Vec<Out>,
    ) {
        let index = self.last().0 + 1;
        let changes = members.is_some();
        self.log.push_back(Arc::new(Logged {
            term: self.term,
            index,
            at,
            commands,
            members,
        }));
        if changes {
            self.follow_members();
        }
        out.push(Out::Sync(index));
        self.send_all(out);
        self.advance(out);
    }

    /// The disk has everything up to this place.
    pub fn synced(&mut self, index: u64, out: &mut Vec<Out>) {
        self.synced = self.synced.max(index.min(self.last().0));
        if self.role == Role::Leader {
            self.advance(out);
        } else if let Some((leader, term, like)) = self.owed
            && term == self.term
        {
            let matched = like.min(self.synced);
            if matched == like {
                self.owed = None;
            }
            let message = RaftMessage::Appended {
                term,
                fits: true,
                matched,
                round: 0,
            };
            out.push(Out::Send(leader, message));
        }
    }

    fn own_match(&self) -> u64 {
        if self.bug == Some(Bug::AckBeforeSync) {
            self.last().0
        } else {
            self.synced
        }
    }

    fn advance(&mut self, out: &mut Vec<Out>) {
        let mut matched: Vec<u64> = self
            .members
            .voters
            .iter()
            .map(|voter| {
                if *voter == self.id {
                    self.own_match()
                } else {
                    self.peers.get(voter).map_or(0, |peer| peer.matched)
                }
            })
            .collect();
        matched.sort_unstable_by(|one, other| other.cmp(one));
        let needed = if self.bug == Some(Bug::CommitAlone) {
            0
        } else {
            matched.len() / 2
        };
        let Some(agreed) = matched.get(needed).copied() else {
            return;
        };
        if agreed > self.commit && self.term_at(agreed) == Some(self.term) {
            for index in self.commit + 1..=agreed {
                if let Some(entry) = self.entry(index) {
                    out.push(Out::Committed(Arc::clone(entry)));
                }
            }
            self.commit = agreed;
            self.apply(out);
            self.send_all(out);
        }
    }

    fn apply(&mut self, out: &mut Vec<Out>) {
        while self.applied < self.commit
            && let Some(entry) = self.entry(self.applied + 1).cloned()
        {
            self.applied = entry.index;
            self.at = self.at.max(entry.at);
            let mut outcomes = Vec::new();
            let mut events = Vec::new();
            for (request, command) in &entry.commands {
                let skew = if self.bug == Some(Bug::ClockInApply) {
                    self.id * 1000
                } else {
                    0
                };
                let applied = self.state.apply(&Entry {
                    at: UnixMillis(entry.at.0 + skew),
                    request: *request,
                    command: command.clone(),
                });
                outcomes.push((*request, applied.result));
                events.push((self.state.revision, applied.events));
            }
            let before = Arc::clone(&self.published);
            self.publish();
            let changes = events
                .into_iter()
                .map(|(revision, events)| {
                    Arc::new(Change {
                        revision,
                        log_index: entry.index,
                        at: entry.at,
                        events,
                        before: Arc::clone(&before),
                        state: Arc::clone(&self.published),
                    })
                })
                .collect();
            let hash = entry
                .index
                .is_multiple_of(HASHED)
                .then(|| state_hash(&self.state));
            out.push(Out::Applied(Box::new(Advance {
                hash,
                entry,
                outcomes,
                changes,
            })));
        }
        if self.log.len() > SNAPSHOT_AFTER && self.synced >= self.applied {
            self.compact();
        }
    }

    fn compact(&mut self) {
        let Some(term) = self.term_at(self.applied) else {
            return;
        };
        let newest = self.log.iter().filter(|entry| entry.index <= self.applied);
        let members = newest.rev().find_map(|entry| entry.members.clone());
        self.base = Snapshot {
            index: self.applied,
            term,
            at: self.at,
            members: members.unwrap_or_else(|| self.base.members.clone()),
            bytes: Arc::new(encode_snapshot(&self.state)),
        };
        while self
            .log
            .front()
            .is_some_and(|entry| entry.index <= self.applied)
        {
            self.log.pop_front();
        }
    }

    fn step_down(&mut self, term: u64) {
        if term > self.term {
            self.term = term;
            self.voted = None;
        }
        if self.role == Role::Leader {
            self.leader = None;
        }
        self.role = Role::Follower;
        self.reads.clear();
        self.owed = None;
    }

    /// A message of another replica.
    pub fn handle(
        &mut self,
        now: Time,
        from: u64,
        message: RaftMessage,
        rng: &mut Rng,
        out: &mut Vec<Out>,
    ) {
        match message {
            RaftMessage::Append {
                term,
                prev,
                entries,
                commit,
                round,
            } => {
                if self.follow(now, from, term, rng, out) {
                    self.append(from, prev, entries, commit, round, out);
                }
            }
            RaftMessage::Install { term, snapshot } => {
                if self.follow(now, from, term, rng, out) {
                    self.install(from, snapshot, out);
                }
            }
            RaftMessage::Appended {
                term,
                fits,
                matched,
                round,
            } => self.appended(now, from, term, fits, (matched, round), out),
            RaftMessage::Vote {
                term,
                last,
                pre,
                gone,
            } => self.vote(now, from, term, last, pre, gone, out),
            RaftMessage::Voted { term, granted, pre } => {
                if pre.is_none() && term > self.term {
                    self.step_down(term);
                    return;
                }
                let expected = match pre {
                    Some(asked) => self.role == Role::PreCandidate && asked == self.term + 1,
                    None => self.role == Role::Candidate && term == self.term,
                };
                if expected && granted {
                    self.votes.insert(from);
                    self.count(out);
                } else if pre.is_some() && term > self.term {
                    self.step_down(term);
                }
            }
            RaftMessage::AskIndex { id } => self.read(id, Some(from), now, out),
            RaftMessage::Index { id, index } => out.push(Out::ReadIndex(id, index)),
            // The node's own.
            RaftMessage::Forward { .. } | RaftMessage::NotLeader { .. } => {}
        }
    }

    /// Takes note of a leader; whether it is one.
    fn follow(
        &mut self,
        now: Time,
        from: u64,
        term: u64,
        rng: &mut Rng,
        out: &mut Vec<Out>,
    ) -> bool {
        if term < self.term {
            let message = RaftMessage::Appended {
                term: self.term,
                fits: false,
                matched: 0,
                round: 0,
            };
            out.push(Out::Send(from, message));
            return false;
        }
        if term > self.term || self.role != Role::Follower {
            self.step_down(term);
        }
        if self.leader != Some(from) {
            self.gone = None;
            self.resample(rng);
        }
        self.leader = Some(from);
        self.heard = now;
        true
    }

    fn append(
        &mut self,
        from: u64,
        prev: (u64, u64),
        entries: Vec<Arc<Logged>>,
        commit: u64,
        round: u64,
        out: &mut Vec<Out>,
    ) {
        let like = prev.0 + entries.len() as u64;
        let fits = prev.0 < self.base.index || self.term_at(prev.0) == Some(prev.1);
        if !fits {
            let message = RaftMessage::Appended {
                term: self.term,
                fits: false,
                matched: self.last().0.min(prev.0.saturating_sub(1)),
                round,
            };
            out.push(Out::Send(from, message));
            return;
        }
        let mut wrote = false;
        for entry in entries {
            if entry.index <= self.base.index {
                continue;
            }
            match self.term_at(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) => {
                    while self.last().0 >= entry.index {
                        self.log.pop_back();
                    }
                    self.synced = self.synced.min(self.last().0);
                }
                None => {}
            }
            self.log.push_back(entry);
            wrote = true;
        }
        if wrote {
            self.follow_members();
            out.push(Out::Sync(self.last().0));
        }
        let matched = like.min(self.own_match());
        self.owed = (matched < like).then_some((from, self.term, like));
        let message = RaftMessage::Appended {
            term: self.term,
            fits: true,
            matched,
            round,
        };
        out.push(Out::Send(from, message));
        let commit = commit.min(like);
        if commit > self.commit {
            self.commit = commit;
            self.apply(out);
        }
    }

    fn install(&mut self, from: u64, snapshot: Snapshot, out: &mut Vec<Out>) {
        let index = snapshot.index;
        if snapshot.index > self.applied {
            self.state = decode_snapshot(&snapshot.bytes).expect("the leader's own encoding");
            if self.bug == Some(Bug::SnapshotForgetsRevocations) {
                self.state.revocations = flotilla_model::map::Map::new();
            }
            self.applied = snapshot.index;
            self.commit = snapshot.index;
            self.synced = snapshot.index;
            self.at = snapshot.at;
            self.log.clear();
            self.base = snapshot;
            self.publish();
            self.follow_members();
            out.push(Out::Replaced);
        }
        let message = RaftMessage::Appended {
            term: self.term,
            fits: true,
            // What is applied here is the same, whether it came by the log or by a snapshot.
            matched: self.synced.max(self.base.index).min(index),
            round: 0,
        };
        out.push(Out::Send(from, message));
    }

    fn appended(
        &mut self,
        now: Time,
        from: u64,
        term: u64,
        fits: bool,
        (matched, round): (u64, u64),
        out: &mut Vec<Out>,
    ) {
        if term > self.term {
            self.step_down(term);
            return;
        }
        if self.role != Role::Leader || term < self.term {
            return;
        }
        let last = self.last().0;
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.heard = now;
        peer.round = peer.round.max(round);
        if fits {
            peer.matched = peer.matched.max(matched);
            peer.next = peer.next.max(peer.matched + 1);
            let more = peer.next <= last;
            if more {
                self.send(from, out);
            }
            self.advance(out);
        } else {
            peer.next = (matched + 1).min(peer.next).max(1);
            self.send(from, out);
        }
        self.settle_reads(out);
    }
}
