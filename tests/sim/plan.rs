//! What a run consists of: a seed, a cluster and a list of faults. A plan follows from a seed, or is read
//! from a line per fault, so that a failing one can be shortened and kept.

use std::fmt;
use std::str::FromStr;

use crate::bug::Bug;
use crate::rng::Rng;

/// On whom a fault falls; found out when it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// This node.
    Node(u64),
    /// Whoever leads.
    Leader,
    /// A node that does not lead, by chance.
    Follower,
    /// The home of this client.
    Home(usize),
}

/// A fault's kind; each lasts for the time that stands beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The process is killed and starts again afterwards.
    Kill,
    /// The process is killed and starts again, over and over.
    Crashes,
    /// The machine loses its power and has it again afterwards.
    Power,
    /// Every machine does.
    Blackout,
    /// The process is stopped and goes on afterwards.
    Pause,
    /// The node is cut off from every other node.
    Isolate,
    /// The node is cut off from other nodes and from clients.
    Vanish,
    /// Nodes with this one on one side, the rest on the other.
    Halves,
    /// What the node sends to other nodes is lost; it hears them.
    Mute,
    /// What other nodes send to it is lost; they hear it.
    Deaf,
    /// The way between the node and one other is cut.
    Link,
    /// As [`Kind::Isolate`], on and off.
    Flap,
    /// The node is cut off from clients.
    Clients,
    /// A client is cut off from every node.
    Offline,
    /// Everything takes long, now more, now less.
    Slow,
    /// Everything takes long, and always equally long.
    Far,
    /// Much is lost, doubled and late; some of it wanders about for seconds.
    Lossy,
    /// The node's wall clock jumps and runs wrong.
    Clock,
    /// The node's disk takes long.
    Disk,
    /// The node is drained and serves again afterwards.
    Drain,
    /// The node is removed from the cluster; a new one joins afterwards.
    Replace,
    /// The node's follower has a gap.
    Lag,
    /// The node's follower is late with every change.
    Behind,
}

impl Kind {
    /// All of them.
    pub const ALL: &'static [(Self, &'static str)] = &[
        (Self::Kill, "kill"),
        (Self::Crashes, "crashes"),
        (Self::Power, "power"),
        (Self::Blackout, "blackout"),
        (Self::Pause, "pause"),
        (Self::Isolate, "isolate"),
        (Self::Vanish, "vanish"),
        (Self::Halves, "halves"),
        (Self::Mute, "mute"),
        (Self::Deaf, "deaf"),
        (Self::Link, "link"),
        (Self::Flap, "flap"),
        (Self::Clients, "clients"),
        (Self::Offline, "offline"),
        (Self::Slow, "slow"),
        (Self::Far, "far"),
        (Self::Lossy, "lossy"),
        (Self::Clock, "clock"),
        (Self::Disk, "disk"),
        (Self::Drain, "drain"),
        (Self::Replace, "replace"),
        (Self::Lag, "lag"),
        (Self::Behind, "behind"),
    ];

    /// Its name in plans.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(kind, _)| *kind == self);
        found.map_or("", |(_, name)| name)
    }
}

/// A fault at its time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timed {
    /// When it begins, milliseconds.
    pub at_ms: u64,
    /// What.
    pub kind: Kind,
    /// On whom.
    pub target: Target,
    /// How long it lasts, milliseconds.
    pub for_ms: u64,
}

/// A run's plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Chance.
    pub seed: u64,
    /// Nodes.
    pub nodes: u64,
    /// How many of them decide.
    pub voters: u64,
    /// Clients.
    pub clients: usize,
    /// Faults.
    pub faults: Vec<Timed>,
    /// The bug that is planted.
    pub bug: Option<Bug>,
}

/// Before it nothing goes wrong.
const QUIET_MS: u64 = 7_000;
/// From the last fault's end to the healing.
const REST_MS: u64 = 1_000;
/// From the healing to the end: people who were given up have gone, those who came have settled.
pub const SETTLE_MS: u64 = 42_000;

impl Plan {
    /// The plan of a seed. Each enables a few kinds of faults only, so that some are met often and
    /// together (swarm testing, Groce 2012).
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed).fork(1);
        let nodes = [3, 3, 3, 4, 5][rng.below(5) as usize];
        let voters = if nodes == 5 && rng.per_mille(400) {
            5
        } else {
            3
        };
        let clients = rng.range(3, 9) as usize;
        let mut kinds = Vec::new();
        while kinds.len() < rng.range(1, 5) as usize {
            if let Some((kind, _)) = rng.pick(Kind::ALL) {
                kinds.push(*kind);
            }
        }
        let count = rng.range(1, 8);
        let mut faults = Vec::new();
        let mut at_ms = QUIET_MS;
        for _ in 0..count {
            at_ms += rng.range(0, 9_000);
            let kind = *rng.pick(&kinds).unwrap_or(&Kind::Kill);
            let target = match rng.below(4) {
                0 => Target::Leader,
                1 => Target::Follower,
                2 => Target::Home(rng.below(clients as u64) as usize),
                _ => Target::Node(rng.range(1, nodes)),
            };
            let for_ms = match rng.below(3) {
                0 => rng.range(100, 1_000),
                1 => rng.range(1_000, 5_000),
                _ => rng.range(5_000, 14_000),
            };
            faults.push(Timed {
                at_ms,
                kind,
                target,
                for_ms,
            });
        }
        Self {
            seed,
            nodes,
            voters,
            clients,
            faults,
            bug: None,
        }
    }

    /// When everything is healed, milliseconds.
    #[must_use]
    pub fn heal_ms(&self) -> u64 {
        let ends = self.faults.iter().map(|fault| fault.at_ms + fault.for_ms);
        ends.max().unwrap_or(QUIET_MS) + REST_MS
    }

    /// When the run ends, milliseconds.
    #[must_use]
    pub fn end_ms(&self) -> u64 {
        self.heal_ms() + SETTLE_MS
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node{node}"),
            Self::Leader => f.write_str("leader"),
            Self::Follower => f.write_str("follower"),
            Self::Home(client) => write!(f, "home{client}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("no number: {text}"));
        match text {
            "leader" => Ok(Self::Leader),
            "follower" => Ok(Self::Follower),
            _ => {
                if let Some(node) = text.strip_prefix("node") {
                    Ok(Self::Node(number(node)?))
                } else if let Some(client) = text.strip_prefix("home") {
                    Ok(Self::Home(number(client)? as usize))
                } else {
                    Err(format!("no target: {text}"))
                }
            }
        }
    }
}

impl fmt::Display for Plan {
    /// A line for the cluster, a line per fault; `#` begins a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} nodes {} voters {} clients {}",
            self.seed, self.nodes, self.voters, self.clients
        )?;
        if let Some(bug) = self.bug {
            write!(f, " bug {bug}")?;
        }
        writeln!(f)?;
        for fault in &self.faults {
            let name = fault.kind.name();
            writeln!(
                f,
                "at {} {name} {} for {}",
                fault.at_ms, fault.target, fault.for_ms
            )?;
        }
        Ok(())
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut plan = None;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |text: &str| {
                let parsed: Result<u64, _> = text.parse();
                parsed.map_err(|_| format!("no number: {text}"))
            };
            match words[..] {
                [] => {}
                [
                    "seed",
                    seed,
                    "nodes",
                    nodes,
                    "voters",
                    voters,
                    "clients",
                    clients,
                    ref rest @ ..,
                ] => {
                    let bug = match rest {
                        [] => None,
                        ["bug", name] => {
                            let found = Bug::ALL.iter().find(|bug| bug.name() == *name);
                            Some(*found.ok_or_else(|| format!("no bug: {name}"))?)
                        }
                        _ => return Err(format!("what is {rest:?}?")),
                    };
                    plan = Some(Self {
                        seed: number(seed)?,
                        nodes: number(nodes)?,
                        voters: number(voters)?,
                        clients: number(clients)? as usize,
                        faults: Vec::new(),
                        bug,
                    });
                }
                ["at", at, kind, target, "for", span] => {
                    let found = Kind::ALL.iter().find(|(_, name)| *name == kind);
                    let (kind, _) = found.ok_or_else(|| format!("no fault: {kind}"))?;
                    let plan = plan.as_mut().ok_or("the cluster's line comes first")?;
                    plan.faults.push(Timed {
                        at_ms: number(at)?,
                        kind: *kind,
                        target: target.parse()?,
                        for_ms: number(span)?,
                    });
                }
                _ => return Err(format!("cannot read: {line}")),
            }
        }
        plan.ok_or_else(|| "no cluster".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_reads_what_it_writes() {
        for seed in 0..200 {
            let mut plan = Plan::of_seed(seed);
            plan.bug = Bug::ALL.get(seed as usize).copied();
            assert_eq!(plan.to_string().parse(), Ok(plan));
        }
    }
}
