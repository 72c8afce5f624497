//! Who leads: standing, voting, and reads that a leader answers once it knows that it still leads.

use std::collections::BTreeSet;

use super::{ELECTION, Out, RaftMessage, Read, Replica, Role};
use crate::rng::Rng;
use crate::time::Time;

impl Replica {
    /// Stands for election at once: the leader's process has ended.
    pub fn campaign(&mut self, now: Time, gone: u64, rng: &mut Rng, out: &mut Vec<Out>) {
        if self.role != Role::Leader && self.members.voters.contains(&self.id) {
            self.gone = Some(gone);
            self.heard = now;
            self.resample(rng);
            self.stand(true, out);
        }
    }

    pub(super) fn stand(&mut self, pre: bool, out: &mut Vec<Out>) {
        let term = self.term + 1;
        self.votes = BTreeSet::from([self.id]);
        if pre {
            self.role = Role::PreCandidate;
        } else {
            self.role = Role::Candidate;
            self.leader = None;
            self.term = term;
            self.voted = Some(self.id);
        }
        let message = RaftMessage::Vote {
            term,
            last: self.last(),
            pre,
            gone: self.gone,
        };
        for voter in self
            .members
            .voters
            .iter()
            .filter(|voter| **voter != self.id)
        {
            out.push(Out::Send(*voter, message.clone()));
        }
        self.count(out);
    }

    pub(super) fn count(&mut self, out: &mut Vec<Out>) {
        if !self.is_majority(self.votes.len()) {
            return;
        }
        match self.role {
            Role::PreCandidate => self.stand(false, out),
            Role::Candidate => self.lead(out),
            Role::Follower | Role::Leader => {}
        }
    }

    pub(super) fn lead(&mut self, out: &mut Vec<Out>) {
        self.role = Role::Leader;
        self.leader = Some(self.id);
        self.gone = None;
        self.peers.clear();
        self.beat = self.heard;
        self.follow_members();
        out.push(Out::Elected(self.term));
        // Nothing of earlier terms is committed before something of this one is.
        let at = self.newest_at();
        self.write(at, Vec::new(), None, out);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    pub(super) fn vote(
        &mut self,
        now: Time,
        from: u64,
        term: u64,
        last: (u64, u64),
        pre: bool,
        gone: Option<u64>,
        out: &mut Vec<Out>,
    ) {
        let current = (self.last().1, self.last().0);
        let is_newer = (last.1, last.0) >= current;
        let led = self.leader.is_some()
            && self.leader != gone
            && (self.role == Role::Leader || now - self.heard < ELECTION.1);
        if pre {
            let message = RaftMessage::Voted {
                term: self.term,
                granted: is_newer && !led && term > self.term,
                pre: Some(term),
            };
            out.push(Out::Send(from, message));
            return;
        }
        if term > self.term && !led {
            self.step_down(term);
        }
        let free = self.voted.is_none_or(|voted| voted == from);
        let granted = term == self.term && self.role == Role::Follower && is_newer && free && !led;
        if granted {
            self.voted = Some(from);
            self.heard = now;
        }
        let message = RaftMessage::Voted {
            term: self.term,
            granted,
            pre: None,
        };
        out.push(Out::Send(from, message));
    }

    /// Asks how far the log certainly is; the answer comes as [`Out::ReadIndex`]. A follower asks the
    /// leader, which the caller does.
    pub fn read(&mut self, id: u64, asker: Option<u64>, now: Time, out: &mut Vec<Out>) {
        if self.role != Role::Leader {
            return;
        }
        // Only once something of this term is committed does a leader know what is.
        let index = if self.term_at(self.commit) == Some(self.term) {
            self.commit
        } else {
            self.last().0
        };
        self.reads.push(Read {
            asker,
            id,
            index,
            round: self.round + 1,
        });
        self.beat(now, out);
    }

    pub(super) fn settle_reads(&mut self, out: &mut Vec<Out>) {
        let mut rounds: Vec<u64> = self
            .members
            .voters
            .iter()
            .map(|voter| {
                if *voter == self.id {
                    self.round
                } else {
                    self.peers.get(voter).map_or(0, |peer| peer.round)
                }
            })
            .collect();
        rounds.sort_unstable_by(|one, other| other.cmp(one));
        let sure = rounds.get(rounds.len() / 2).copied().unwrap_or(0);
        let is_sure = |read: &Read| read.round <= sure;
        for read in self.reads.iter().filter(|read| is_sure(read)) {
            match read.asker {
                None => out.push(Out::ReadIndex(read.id, read.index)),
                Some(asker) => out.push(Out::Send(
                    asker,
                    RaftMessage::Index {
                        id: read.id,
                        index: read.index,
                    },
                )),
            }
        }
        self.reads.retain(|read| !is_sure(read));
    }
}
