//! Everything that goes on in the cluster during a run, started and ended together.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use testkit::cluster::wait;

use super::Common;
use super::plan::Plan;
use super::timeline::{Fault, Outcome as Installation};
use super::world::World;
use crate::api::{Answer, Api};
use crate::check::coverage::Need;
use crate::check::feed::{self, Feed};
use crate::check::leak::{self, Holding};
use crate::check::media;
use crate::check::owner::{self, Served};
use crate::check::revocation::{self, LastHeard};
use crate::check::sets::{self, Scan};
use crate::check::{Opinion, data};
use crate::history::{History, Operation};
use crate::nemesis::Class;
use crate::wire::packet::Datagram;
use crate::wire::proof::{Findings, Proof};
use crate::workers::registers::{self, Registers};
use crate::workers::stream::{self, Probed, Progress, Setting};
use crate::workers::{Shift, churn, revoke, watch};

/// Register workers per node.
const REGISTERS_PER_NODE: u64 = 2;
/// Departed clients' participants may stay for LiveKit's departure timeout.
const EMPTY_MAX: Duration = Duration::from_secs(40);
/// The last join or departure may take so long.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// What is on its way when everybody stops arrives within this.
const DRAIN: Duration = Duration::from_secs(2);
/// Media may take so long after a fault; what takes longer is for the judge to find.
const MEDIA_MAX: Duration = Duration::from_secs(20);
/// Messages that a publisher has kept while its node was out of reach may take so long.
const LAST_MAX: Duration = Duration::from_secs(15);

/// The workers of a run.
pub(crate) struct Work {
    shift: Shift,
    seed: u64,
    registers: Arc<Registers>,
    writers: Vec<JoinHandle<()>>,
    churns: Vec<churn::Churn>,
    revoker: revoke::Revoker,
    probes: Vec<stream::Probe>,
    progress: Vec<Arc<Progress>>,
    watchers: Vec<watch::Watcher>,
    wire: JoinHandle<Findings>,
    before: Vec<Holding>,
}

/// What they saw besides the history.
pub(crate) struct Seen {
    pub(crate) probes: Vec<Probed>,
    /// Of the streams of messages that did not come back: how far they got.
    unread: Vec<String>,
    stayed: BTreeSet<String>,
    scans: Vec<Scan>,
    feeds: Vec<Feed>,
    served: Vec<Served>,
    heard: Vec<LastHeard>,
    wire: Findings,
    untapped: u64,
    before: Vec<Holding>,
    after: Vec<Holding>,
    left: Option<String>,
}

impl Work {
    /// Starts all of it.
    pub(crate) fn start(
        world: &World,
        history: &History,
        common: &Common,
        plan: &Plan,
    ) -> Result<Self> {
        let before = holdings(world)?;
        let (shift, seed, urls) = (Shift::new(history.clone()), plan.seed, world.urls());
        let tap = world.control.tap();
        let wire = std::thread::Builder::new()
            .name("wire".to_owned())
            .spawn(move || {
                let mut proof = Proof::new(|address| address.octets()[3] < 100);
                tap.into_iter()
                    .for_each(|datagram: Datagram| proof.take(&datagram));
                proof.findings()
            })?;
        let registers = Arc::new(Registers::new(&format!("r{seed}")));
        let watchers: Result<Vec<_>> = world
            .cluster
            .nodes
            .iter()
            .map(|node| watch::start(&shift, node))
            .collect();
        let progress: Vec<Arc<Progress>> = world.ids().map(|_| Arc::default()).collect();
        let probes: std::io::Result<Vec<_>> = (0_u32..)
            .zip(world.ids())
            .zip(&progress)
            .map(|((number, from), progress)| {
                stream::start(Setting {
                    progress: progress.clone(),
                    shift: shift.clone(),
                    registers: registers.clone(),
                    urls: urls.clone(),
                    number,
                    from,
                    to: stream::reader_of(from, world.count()),
                    seed,
                    hz: common.probe_hz,
                    message_hz: common.message_hz,
                })
            })
            .collect();
        let churns: std::io::Result<Vec<_>> = world
            .ids()
            .map(|node| churn::start(&shift, node, &urls, seed))
            .collect();
        Ok(Self {
            writers: registers::start(&shift, &registers, &urls, REGISTERS_PER_NODE, seed)?,
            revoker: revoke::start(&shift, &urls, seed)?,
            churns: churns?,
            probes: probes?,
            progress,
            watchers: watchers?,
            shift,
            seed,
            registers,
            wire,
            before,
        })
    }

    /// Waits until every stream is heard, so that the next fault finds somebody to hurt.
    pub(crate) fn await_media(&self) {
        let since = self.shift.history.now();
        let _ = wait(MEDIA_MAX, "every stream is heard", || {
            Ok(self.progress.iter().all(|one| one.is_heard_since(since)))
        });
    }

    /// Ends all of it: changes first, then everybody is asked who is there, then everybody leaves.
    pub(crate) fn end(self, world: &mut World) -> Result<Seen> {
        self.shift.end();
        for writer in self.writers {
            writer.join().map_err(|_| anyhow!("a writer panicked"))?;
        }
        wait(QUIET_MAX, "nobody changes anything", || {
            Ok(self.shift.is_quiet())
        })?;
        std::thread::sleep(DRAIN);
        for progress in &self.progress {
            progress.close();
        }
        // Whether all of them come is for the judges to say.
        let _ = wait(LAST_MAX, "every message has been read", || {
            Ok(self.progress.iter().all(|one| one.is_all_read()))
        });
        let unread = world.ids().zip(&self.progress);
        let unread = unread.filter(|(_, one)| !one.is_all_read());
        let unread = unread
            .map(|(from, one)| {
                let (to, told) = (stream::reader_of(from, world.count()), one.told());
                format!("{from} to {to}: {told}")
            })
            .collect();
        self.registers.read_all(&self.shift, &world.urls());
        let room = churn::room(self.seed);
        let scans: Vec<Scan> = world
            .urls()
            .iter()
            .filter_map(|(node, url)| scan(*node, url, &room))
            .collect();
        self.shift.release();
        let mut stayed = BTreeSet::new();
        for churn in self.churns {
            stayed.extend(churn.join().map_err(|_| anyhow!("a churn panicked"))??);
        }
        let heard = self.revoker.join();
        let heard = heard.map_err(|_| anyhow!("the revoker panicked"))??;
        let mut probes = Vec::new();
        for probe in self.probes {
            probes.push(probe.join().map_err(|_| anyhow!("a probe panicked"))??);
        }
        let (after, left) = emptied(world)?;
        let (mut feeds, mut served) = (Vec::new(), Vec::new());
        for watcher in self.watchers {
            let (feed, homes) = watcher.end()?;
            feeds.push(feed);
            served.extend(homes);
        }
        world.control.untap();
        let wire = self
            .wire
            .join()
            .map_err(|_| anyhow!("the wire's judge panicked"))?;
        Ok(Seen {
            probes,
            unread,
            stayed,
            scans,
            feeds,
            served,
            heard,
            wire,
            untapped: world.control.stats().untapped,
            before: self.before,
            after,
            left,
        })
    }
}

impl Seen {
    /// What the judges of it say.
    pub(crate) fn judge(&self, operations: &[Operation], faults: &[Fault]) -> Vec<Opinion> {
        let streams: Vec<media::Stream> =
            self.probes.iter().map(|one| one.stream.clone()).collect();
        let received: Vec<data::Received> = self
            .probes
            .iter()
            .flat_map(|probe| probe.data.clone())
            .collect();
        let span = |fault: &Fault| (fault.at, fault.recovered);
        let spans: Vec<(u64, u64)> = faults.iter().map(span).collect();
        let loses_power = |fault: &&Fault| {
            matches!(
                fault.class,
                Class::PowerAll | Class::PowerQuorum | Class::PowerOne
            )
        };
        let power: Vec<(u64, u64)> = faults.iter().filter(loses_power).map(span).collect();
        let cuts_off = |fault: &&Fault| fault.class.cuts_off();
        let cuts: Vec<(u64, u64)> = faults.iter().filter(cuts_off).map(span).collect();
        let mut opinions = vec![
            sets::judge(operations, &self.stayed, &self.scans),
            owner::judge(&self.served),
            feed::judge(&self.feeds),
            media::judge(&streams),
            data::judge(&received, &power, &self.unread),
            revocation::judge(operations, &self.heard, &cuts),
            leak::judge(&self.before, &self.after),
            self.wire(),
            media::judge_silence(&streams, &spans),
        ];
        if let Some(left) = &self.left {
            opinions[6].violated(left.clone());
        }
        opinions
    }

    fn wire(&self) -> Opinion {
        let mut opinion = Opinion::new("wire");
        let found = &self.wire;
        opinion.looked_at = format!(
            "{} protected packets, {} handshakes, {} connections that moved with their keys, {} moves",
            found.packets, found.generations, found.continued, found.moves
        );
        opinion.extend(found.told.iter().cloned());
        let more = (found.index_reused + found.older_after_newer) as usize;
        opinion.count = opinion.count.max(more);
        if self.untapped > 0 {
            opinion
                .undecided
                .push(format!("{} packets were not looked at", self.untapped));
        }
        opinion
    }

    /// What a run must have seen of it.
    pub(crate) fn needs(&self, faults: &[Fault]) -> Vec<Need> {
        let need = |what: &str, least: u64, seen: usize| Need {
            what: what.to_owned(),
            least,
            seen: seen as u64,
        };
        let packets: usize = self
            .probes
            .iter()
            .map(|probe| probe.stream.arrivals.len())
            .sum();
        let resumes: u64 = self.probes.iter().map(|probe| probe.resumes).sum();
        let mut needs = vec![
            need("media packets", 1000, packets),
            need(
                "changes watched",
                20,
                self.feeds.iter().map(|feed| feed.told.len()).sum(),
            ),
        ];
        let moves_people = faults.iter().any(|fault| {
            fault.outcome == Installation::Installed
                && matches!(fault.class, Class::Kill | Class::Drain)
        });
        if moves_people {
            needs.push(need("sessions resumed", 1, resumes as usize));
        }
        needs
    }

    /// The longest silence of each stream around a fault, in milliseconds.
    pub(crate) fn gaps_ms(&self, fault: &Fault) -> Vec<f64> {
        self.probes
            .iter()
            .filter(|probe| !probe.stream.arrivals.is_empty())
            .map(|probe| probe.stream.gap(fault.at, fault.recovered) as f64 / 1e6)
            .collect()
    }
}

/// Who is in a room, as a node says.
fn scan(node: u64, url: &str, room: &str) -> Option<Scan> {
    let body = json!({ "room": room });
    let Answer::Done(listed) = Api::new(url).call("ListParticipants", room, &body) else {
        return None;
    };
    let mut scan = Scan {
        node,
        ..Scan::default()
    };
    for participant in listed["participants"].as_array()? {
        let identity = participant["identity"].as_str()?.to_owned();
        if participant["tracks"]
            .as_array()
            .is_some_and(|tracks| !tracks.is_empty())
        {
            scan.publishing.insert(identity.clone());
        }
        scan.present.insert(identity);
    }
    Some(scan)
}

/// Waits until nobody is left, and says what the nodes hold then, and who is left if somebody is.
fn emptied(world: &World) -> Result<(Vec<Holding>, Option<String>)> {
    let deadline = Instant::now() + EMPTY_MAX;
    loop {
        let after = holdings(world)?;
        let count = |one: &Holding| one.participants + one.tracks + one.routes;
        let is_empty = after.iter().all(|one| count(one) == 0);
        if is_empty || Instant::now() > deadline {
            let left = (!is_empty).then(|| who_is_left(world));
            return Ok((after, left));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn who_is_left(world: &World) -> String {
    let rooms = world.cluster.admin(&["rooms"]).unwrap_or_default();
    let rooms = rooms["rooms"].as_array().cloned().unwrap_or_default();
    let mut told = Vec::new();
    for room in rooms {
        let name = room["name"].as_str().unwrap_or_default();
        if room["participants"] == 0 || told.len() > 10 {
            continue;
        }
        let people = world
            .cluster
            .admin(&["participants", name])
            .unwrap_or_default();
        for one in people["participants"].as_array().into_iter().flatten() {
            told.push(format!(
                "{} in {name} at node {} ({}, epoch {})",
                one["identity"], one["home"], one["state"], one["epoch"]
            ));
        }
    }
    format!("after everybody has left: {}", told.join(", "))
}

fn holdings(world: &World) -> Result<Vec<Holding>> {
    let nodes = world.cluster.admin(&["nodes"])?;
    let routes = world.cluster.admin(&["routes"])?;
    let rooms = world.cluster.admin(&["rooms"])?;
    let sum = |list: &Value, field: &str| -> u64 {
        let list = list["rooms"].as_array().into_iter().flatten();
        list.filter_map(|room| room[field].as_u64()).sum()
    };
    world
        .ids()
        .map(|id| {
            let own = nodes["nodes"].as_array().context("a list")?;
            let own = own.iter().find(|node| node["id"] == id);
            let of_node = |route: &&Value| route["from"] == id;
            let all = routes["routes"].as_array().into_iter().flatten();
            let process = world.pid(id).unwrap_or(0);
            Ok(Holding {
                node: id,
                process,
                descriptors: count_of(process, "fd"),
                threads: count_of(process, "task"),
                memory: resident(process),
                participants: own
                    .and_then(|node| node["participants"].as_u64())
                    .unwrap_or(0),
                // Tracks belong to rooms; one node is made to answer for all.
                tracks: if id == 1 { sum(&rooms, "tracks") } else { 0 },
                routes: all.filter(of_node).count() as u64,
            })
        })
        .collect()
}

fn count_of(process: u32, what: &str) -> u64 {
    std::fs::read_dir(format!("/proc/{process}/{what}")).map_or(0, |all| all.count() as u64)
}

fn resident(process: u32) -> u64 {
    const PAGE: u64 = 4096;
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE
}
