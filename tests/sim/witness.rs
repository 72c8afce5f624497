//! Who watches a run: every fact goes to every invariant, and what a run met is counted, so that one that
//! met nothing is not taken for a proof.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use flotilla_model::State;
use flotilla_model::cluster::LossCause;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{BootId, Epoch, ParticipantSid, RequestId, TrackSid};
use flotilla_model::participant::LeaveReason;
use flotilla_raft::Change;

use crate::invariants::{self, Invariant};
use crate::plan::Kind;
use crate::raft::{Advance, Logged};
use crate::time::Time;
use crate::world::World;

/// A packet that a node sends to a subscriber.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Who sends.
    pub node: u64,
    /// To whom.
    pub subscriber: &'a ParticipantSid,
    /// Subscriber's epoch, as the sender knows it.
    pub own_epoch: Option<Epoch>,
    /// Track.
    pub track: &'a TrackSid,
    /// Publisher's epoch.
    pub epoch: Epoch,
    /// Its number.
    pub number: u64,
}

/// Something that happened. Whose field is not explained means what it is called.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Fact<'a> {
    /// A process started.
    Started { node: u64, boot: BootId },
    /// A process ended.
    Ended { node: u64, boot: BootId },
    /// A replica leads.
    Elected { node: u64, term: u64 },
    /// A leader takes an entry for committed.
    Committed { node: u64, entry: &'a Arc<Logged> },
    /// A replica applied an entry; sometimes with the hash of its state.
    Applied {
        node: u64,
        advance: &'a Advance,
        hash: Option<u64>,
    },
    /// A replica installed a snapshot.
    Installed {
        node: u64,
        index: u64,
        state: &'a State,
    },
    /// Whoever proposed a change has its answer.
    Acknowledged {
        node: u64,
        request: RequestId,
        index: u64,
    },
    /// Two ids of one wish.
    SameAs {
        request: RequestId,
        other: RequestId,
    },
    /// A linearizable read ended with this much applied; `floor` was acknowledged before it began.
    Read { node: u64, applied: u64, floor: u64 },
    /// A node passed a change on.
    Fed {
        node: u64,
        boot: BootId,
        change: &'a Arc<Change>,
    },
    /// A node began anew from a state.
    FedAnew {
        node: u64,
        boot: BootId,
        state: &'a State,
    },
    /// A node may send again.
    LeaseHeld { node: u64, boot: BootId },
    /// A verdict is in the log: was the process alive, could it send?
    Condemned {
        node: u64,
        cause: LossCause,
        alive: bool,
        holds: bool,
    },
    /// A node serves a participant.
    Serves {
        node: u64,
        sid: &'a ParticipantSid,
        epoch: Epoch,
    },
    /// A node relays.
    Relayed {
        from: u64,
        to: u64,
        track: &'a TrackSid,
    },
    /// A node sends a packet to a subscriber.
    Sent(&'a Packet<'a>),
    /// A client is in.
    Joined {
        client: usize,
        sid: &'a ParticipantSid,
        instead_of: Option<&'a ParticipantSid>,
    },
    /// A client has its session back.
    Resumed {
        client: usize,
        node: u64,
        sid: &'a ParticipantSid,
    },
    /// A client is told to join anew.
    ToldToRejoin {
        client: usize,
        sid: &'a ParticipantSid,
        unwell_since: Option<Time>,
    },
    /// A client is shown that somebody left.
    SeenLeaving {
        client: usize,
        sid: &'a ParticipantSid,
    },
    /// The log says that somebody left whose client has not gone; how long it has been unwell.
    LeftInLog {
        client: usize,
        sid: &'a ParticipantSid,
        reason: LeaveReason,
        unwell: Option<u64>,
    },
    /// A client leaves of its own wish.
    Leaves {
        client: usize,
        sid: &'a ParticipantSid,
    },
    /// An administrator is about to remove a client.
    Removes { client: usize },
    /// A client sends a numbered message.
    SentData {
        client: usize,
        sid: &'a ParticipantSid,
        sequence: u32,
    },
    /// A node takes a message that another one hands on.
    TakesData {
        node: u64,
        from: u64,
        data: &'a flotilla_node::mesh::proto::Data,
    },
    /// A client gets one; `last` is the one before of that sender; `away` for how long it was unwell last, if that
    /// was a moment ago.
    Received {
        client: usize,
        own: &'a ParticipantSid,
        sender: &'a ParticipantSid,
        sequence: u32,
        last: Option<u32>,
        away: u64,
    },
    /// A look at the whole, several times a second: for how long there has been a majority that can talk, and
    /// nobody of it leads.
    Watched { leaderless: u64 },
    /// Everything is healed.
    Healed { at: Time },
}

/// What invariants may know beside facts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scene {
    /// Now.
    pub now: Time,
    /// When a majority could last not decide.
    pub last_without_quorum: Time,
    /// When something was last wrong with nodes or ways.
    pub last_trouble: Time,
    /// When a way between two nodes was last cut.
    pub last_cut: Option<Time>,
    /// When the network was last known to lose much.
    pub last_lossy: Option<Time>,
}

impl Scene {
    /// Whether a majority could decide for all of this time.
    #[must_use]
    pub fn had_quorum_for(&self, micros: u64) -> bool {
        self.now - self.last_without_quorum >= micros
    }
}

/// An invariant does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// When.
    pub at: Time,
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.at.0 as f64 / 1e6;
        write!(f, "{} at {seconds:.3} s: {}", self.invariant, self.text)
    }
}

/// What runs met.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Coverage {
    pub joins: u64,
    pub resumes: u64,
    pub resumed_here: u64,
    pub adoptions: u64,
    pub refused: u64,
    pub takeovers: u64,
    pub nodes_lost: BTreeMap<&'static str, u64>,
    pub campaigns: u64,
    pub detours: u64,
    pub elections: u64,
    pub snapshots: u64,
    pub lapses: u64,
    pub orphans_left: u64,
    pub rebalanced: u64,
    pub sent_away: u64,
    pub repeats_dropped: u64,
    pub received: u64,
    pub sent: u64,
    pub relayed: u64,
    pub removed: u64,
    pub added: u64,
    pub administered: u64,
    pub revocations: u64,
    pub leaders_hit: u64,
    pub faults: BTreeMap<&'static str, u64>,
    pub commands: u64,
}

impl Coverage {
    /// A fault began.
    pub fn fault(&mut self, kind: Kind, leads: bool) {
        *self.faults.entry(kind.name()).or_default() += 1;
        self.leaders_hit += u64::from(leads);
    }

    /// An entry was applied somewhere.
    pub fn note(&mut self, _now: Time, advance: &Advance) {
        self.commands += advance.entry.commands.len() as u64;
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        let Self {
            joins,
            resumes,
            resumed_here,
            adoptions,
            refused,
            takeovers,
            nodes_lost,
            campaigns,
            detours,
            elections,
            snapshots,
            lapses,
            orphans_left,
            rebalanced,
            sent_away,
            repeats_dropped,
            received,
            sent,
            relayed,
            removed,
            added,
            administered,
            revocations,
            leaders_hit,
            faults,
            commands,
        } = other;
        for (own, other) in [
            (&mut self.joins, joins),
            (&mut self.resumes, resumes),
            (&mut self.resumed_here, resumed_here),
            (&mut self.adoptions, adoptions),
            (&mut self.refused, refused),
            (&mut self.takeovers, takeovers),
            (&mut self.campaigns, campaigns),
            (&mut self.detours, detours),
            (&mut self.elections, elections),
            (&mut self.snapshots, snapshots),
            (&mut self.lapses, lapses),
            (&mut self.orphans_left, orphans_left),
            (&mut self.rebalanced, rebalanced),
            (&mut self.sent_away, sent_away),
            (&mut self.repeats_dropped, repeats_dropped),
            (&mut self.received, received),
            (&mut self.sent, sent),
            (&mut self.relayed, relayed),
            (&mut self.removed, removed),
            (&mut self.added, added),
            (&mut self.administered, administered),
            (&mut self.revocations, revocations),
            (&mut self.leaders_hit, leaders_hit),
            (&mut self.commands, commands),
        ] {
            *own += other;
        }
        for (name, count) in faults {
            *self.faults.entry(name).or_default() += count;
        }
        for (name, count) in nodes_lost {
            *self.nodes_lost.entry(name).or_default() += count;
        }
    }
}

/// Who watches.
pub struct Witness {
    invariants: Vec<Box<dyn Invariant>>,
    violation: Option<Violation>,
    scene: Scene,
    led: Time,
    acknowledged: u64,
    applied: u64,
    /// Facts are told as they come.
    pub tells: bool,
    /// What was met.
    pub coverage: Coverage,
}

impl Witness {
    /// With every invariant.
    #[must_use]
    pub fn new() -> Self {
        Self {
            invariants: invariants::all(),
            violation: None,
            scene: Scene::default(),
            led: Time::default(),
            acknowledged: 0,
            applied: 0,
            tells: false,
            coverage: Coverage::default(),
        }
    }

    /// The first violation.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.violation.clone()
    }

    /// Highest place in the log of a change that somebody has an answer for.
    #[must_use]
    pub const fn acknowledged_index(&self) -> u64 {
        self.acknowledged
    }

    /// Whether this is the first time that a place in the log is applied anywhere.
    #[must_use]
    pub const fn is_first(&self, index: u64) -> bool {
        index > self.applied
    }

    /// Whether a majority can decide, and whether nothing is wrong at all.
    pub fn quorum(&mut self, now: Time, can: bool, well: bool) {
        if !can {
            self.scene.last_without_quorum = now;
        }
        if !well {
            self.scene.last_trouble = now;
        }
    }

    /// Whether nobody leads who could; for how long that has been so.
    pub fn leaderless(&mut self, now: Time, is_so: bool) -> u64 {
        if !is_so {
            self.led = now;
        }
        now - self.led
    }

    /// A way between two nodes is cut at present.
    pub const fn cut(&mut self, now: Time) {
        self.scene.last_cut = Some(now);
    }

    /// The network loses much.
    pub fn lossy(&mut self, now: Time) {
        self.scene.last_lossy = Some(now);
    }

    /// Takes a fact.
    pub fn see(&mut self, now: Time, fact: &Fact<'_>) {
        self.scene.now = now;
        if self.tells
            && let Some(line) = crate::tell::line(now, fact)
        {
            eprintln!("{line}");
        }
        self.count(fact);
        if self.violation.is_some() {
            return;
        }
        for invariant in &mut self.invariants {
            if let Err(text) = invariant.see(&self.scene, fact) {
                self.violation = Some(Violation {
                    at: now,
                    invariant: invariant.name(),
                    text,
                });
                break;
            }
        }
        match fact {
            Fact::Acknowledged { index, .. } => self.acknowledged = self.acknowledged.max(*index),
            Fact::Applied { advance, .. } => self.applied = self.applied.max(advance.entry.index),
            _ => {}
        }
    }

    fn count(&mut self, fact: &Fact<'_>) {
        let coverage = &mut self.coverage;
        match fact {
            Fact::Elected { .. } => coverage.elections += 1,
            Fact::Installed { .. } => coverage.snapshots += 1,
            Fact::Condemned { cause, .. } => {
                *coverage.nodes_lost.entry(cause.name()).or_default() += 1
            }
            Fact::Relayed { .. } => coverage.relayed += 1,
            Fact::Sent(_) => coverage.sent += 1,
            Fact::Received { .. } => coverage.received += 1,
            Fact::Removes { .. } => coverage.revocations += 1,
            Fact::Applied { advance, .. } if advance.entry.index > self.applied => {
                for change in &advance.changes {
                    for event in &change.events {
                        let moved = matches!(
                            event,
                            Event::Room {
                                change: RoomEvent::ParticipantMoved(_),
                                ..
                            }
                        );
                        coverage.takeovers += u64::from(moved);
                    }
                }
            }
            _ => {}
        }
    }

    /// The run is over: what has to hold in the end.
    pub fn end(&mut self, world: &World) -> Option<Violation> {
        for invariant in &mut self.invariants {
            if let Err(text) = invariant.end(world) {
                return Some(Violation {
                    at: world.now,
                    invariant: invariant.name(),
                    text,
                });
            }
        }
        None
    }
}

impl Default for Witness {
    fn default() -> Self {
        Self::new()
    }
}
