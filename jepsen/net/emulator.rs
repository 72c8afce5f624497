//! The emulator: one thread that hands every packet on to the namespace of its destination, as late and
//! as damaged as the faults in force say.
//!
//! The thread runs at a real-time priority, so that a busy machine adds little: `late_max_ms` says how much, and a
//! run's timing counts only where that is small. Chance is seeded; packets of a link keep their order
//! unless reordering is asked for. Datagrams between nodes and clients can be copied to a judge
//! (its tap).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

use super::End;
use super::impairment::{Effects, Impairment, Pairs};
use super::tun::{self, Tun};
use crate::clock::now_ms;
use crate::wire::packet::{Datagram, Hardware};

/// Longest wait without a packet: how late the end of a run may be noticed.
const IDLE_NS: u64 = 20_000_000;
/// Packets taken from one device before the others get a turn.
const BATCH: usize = 64;
/// Copies that wait for the judge; what does not fit is counted and makes the proof undecided.
const TAPPED_MAX: usize = 100_000;
/// Packets that wait to be delayed; more are dropped, as a real queue would.
const WAITING_MAX: usize = 200_000;

/// What the emulator has done so far.
#[derive(Default)]
struct Counters {
    forwarded: AtomicU64,
    cut: AtomicU64,
    lost: AtomicU64,
    queue_full: AtomicU64,
    duplicated: AtomicU64,
    corrupted: AtomicU64,
    reordered: AtomicU64,
    untapped: AtomicU64,
    late_max_ns: AtomicU64,
}

/// A reading of the counters.
#[derive(Clone, Copy, Default, Debug, serde::Serialize)]
pub(crate) struct Stats {
    /// Packets handed on.
    pub(crate) forwarded: u64,
    /// Packets that met a cut link.
    pub(crate) cut: u64,
    pub(crate) lost: u64,
    /// Packets for which a rate's queue had no room.
    pub(crate) queue_full: u64,
    pub(crate) duplicated: u64,
    pub(crate) corrupted: u64,
    pub(crate) reordered: u64,
    /// Copies that the judge was too slow for.
    pub(crate) untapped: u64,
    /// How late a delayed packet was handed on, at most, since the last reading.
    pub(crate) late_max_ms: f64,
}

/// What the thread and its owner share. The effects have two owners because faults are injected
/// while packets pass; the thread takes the lock only when `version` has changed.
struct Shared {
    effects: Mutex<Effects>,
    version: AtomicU64,
    stop: AtomicBool,
    counters: Counters,
    tap: Mutex<Option<SyncSender<Datagram>>>,
}

/// A running emulator; ends with its value.
pub(crate) struct Emulator {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// An effect in force; it ends with its value.
pub(crate) struct InForce {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for InForce {
    fn drop(&mut self) {
        let mut effects = self.shared.effects.lock().expect("no holder panics");
        effects.remove(self.number);
        self.shared.version.fetch_add(1, Ordering::Release);
    }
}

/// Handle by which faults are injected.
#[derive(Clone)]
pub(crate) struct Control(Arc<Shared>);

impl Control {
    /// Puts an impairment into force with the next packet.
    pub(crate) fn impair(&self, pairs: Pairs, impairment: Impairment) -> InForce {
        let mut effects = self.0.effects.lock().expect("no holder panics");
        let number = effects.add(pairs, impairment);
        self.0.version.fetch_add(1, Ordering::Release);
        InForce {
            shared: self.0.clone(),
            number,
        }
    }

    /// Whether nothing is impaired.
    pub(crate) fn is_calm(&self) -> bool {
        self.0.effects.lock().expect("no holder panics").is_empty()
    }

    /// Reads the counters; the greatest lateness begins anew.
    pub(crate) fn stats(&self) -> Stats {
        let counters = &self.0.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            forwarded: read(&counters.forwarded),
            cut: read(&counters.cut),
            lost: read(&counters.lost),
            queue_full: read(&counters.queue_full),
            duplicated: read(&counters.duplicated),
            corrupted: read(&counters.corrupted),
            reordered: read(&counters.reordered),
            untapped: read(&counters.untapped),
            late_max_ms: counters.late_max_ns.swap(0, Ordering::Relaxed) as f64 / 1e6,
        }
    }

    /// Copies UDP between nodes and clients from now on.
    pub(crate) fn tap(&self) -> Receiver<Datagram> {
        let (sender, receiver) = sync_channel(TAPPED_MAX);
        *self.0.tap.lock().expect("no holder panics") = Some(sender);
        self.0.version.fetch_add(1, Ordering::Release);
        receiver
    }

    /// Ends the copying, so that the receiver comes to an end.
    pub(crate) fn untap(&self) {
        *self.0.tap.lock().expect("no holder panics") = None;
        self.0.version.fetch_add(1, Ordering::Release);
    }
}

impl Emulator {
    /// Opens a device in each namespace, with these ends, and begins to hand packets on.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) fn start(namespaces: &[(String, Vec<End>)], seed: u64) -> Result<Self> {
        let shared = Arc::new(Shared {
            effects: Mutex::default(),
            version: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            counters: Counters::default(),
            tap: Mutex::new(None),
        });
        let (own, namespaces) = (shared.clone(), namespaces.to_vec());
        let (started, has_started) = sync_channel(1);
        // Devices are opened on the thread, whose namespace changes meanwhile.
        let thread = std::thread::Builder::new()
            .name("emulator".to_owned())
            .spawn(move || match Router::new(&namespaces, seed, own) {
                Ok(mut router) => {
                    let _ = started.send(Ok(tun::go_first()));
                    router.run();
                }
                Err(failure) => drop(started.send(Err(failure))),
            })?;
        let goes_first = has_started
            .recv()
            .map_err(|_| anyhow!("the emulator's thread panicked"))?
            .context("the emulator")?;
        if !goes_first {
            crate::say("the emulator has no real-time priority: timing on a busy machine is rough");
        }
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The handle for faults.
    pub(crate) fn control(&self) -> Control {
        Control(self.shared.clone())
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A directed link while the emulator runs.
#[derive(Clone, Copy, Default)]
struct Link {
    impairment: Impairment,
    /// When the rate has sent what waits for it.
    free_at: u64,
    /// When the last packet that keeps its order is handed on.
    last_due: u64,
}

/// A packet that waits: when, in which order, to which device.
type Waiting = Reverse<(u64, u64, usize, usize)>;

struct Router {
    shared: Arc<Shared>,
    tuns: Vec<Tun>,
    /// Device of each address.
    device: [Option<u8>; 256],
    links: BTreeMap<(End, End), Link>,
    version: u64,
    tap: Option<SyncSender<Datagram>>,
    chance: Chance,
    waiting: BinaryHeap<Waiting>,
    sequence: u64,
    packets: Vec<Vec<u8>>,
    free: Vec<usize>,
}

impl Router {
    fn new(namespaces: &[(String, Vec<End>)], seed: u64, shared: Arc<Shared>) -> Result<Self> {
        let mut device = [None; 256];
        let mut tuns = Vec::new();
        for (index, (namespace, ends)) in namespaces.iter().enumerate() {
            let addresses: Vec<Ipv4Addr> = ends.iter().map(|end| end.address()).collect();
            tuns.push(Tun::open(namespace, &addresses)?);
            for end in ends {
                device[usize::from(end.0)] = Some(u8::try_from(index)?);
            }
        }
        Ok(Self {
            shared,
            tuns,
            device,
            links: BTreeMap::new(),
            version: 0,
            tap: None,
            chance: Chance(seed),
            waiting: BinaryHeap::new(),
            sequence: 0,
            packets: Vec::new(),
            free: Vec::new(),
        })
    }

    fn run(&mut self) {
        let mut polled: Vec<libc::pollfd> = self
            .tuns
            .iter()
            .map(|tun| libc::pollfd {
                fd: tun.fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        let mut buffer = [0_u8; 2048];
        while !self.shared.stop.load(Ordering::Acquire) {
            self.deliver_due(now_ns());
            let next = self.waiting.peek().map(|Reverse((due, ..))| *due);
            let wait = next.map_or(IDLE_NS, |due| due.saturating_sub(now_ns()).min(IDLE_NS));
            tun::wait(&mut polled, wait);
            self.refresh();
            for (index, poll) in polled.iter_mut().enumerate() {
                if poll.revents & libc::POLLIN == 0 {
                    continue;
                }
                for _ in 0..BATCH {
                    let Some(length) = self.tuns[index].read(&mut buffer) else {
                        break;
                    };
                    self.pass(&mut buffer[..length]);
                }
            }
        }
    }

    /// Takes over what was injected or healed meanwhile.
    fn refresh(&mut self) {
        let version = self.shared.version.load(Ordering::Acquire);
        if version == self.version {
            return;
        }
        self.version = version;
        let effects = self.shared.effects.lock().expect("no holder panics");
        let wanted = effects.links();
        drop(effects);
        self.links.retain(|pair, _| wanted.contains_key(pair));
        for (pair, impairment) in wanted {
            self.links.entry(pair).or_default().impairment = impairment;
        }
        self.tap
            .clone_from(&self.shared.tap.lock().expect("no holder panics"));
    }

    fn deliver_due(&mut self, now: u64) {
        while let Some(Reverse((due, _, device, slot))) = self.waiting.peek().copied() {
            if due > now {
                return;
            }
            self.waiting.pop();
            let late = &self.shared.counters.late_max_ns;
            late.fetch_max(now - due, Ordering::Relaxed);
            self.tuns[device].write(&self.packets[slot]);
            self.free.push(slot);
        }
    }

    /// One packet: where to, and what becomes of it on the way.
    fn pass(&mut self, packet: &mut [u8]) {
        let Some((from, to)) = ends(packet) else {
            return;
        };
        let Some(device) = self.device[usize::from(to.0)].map(usize::from) else {
            return;
        };
        let counters = &self.shared.counters;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let known = self.links.get(&(from, to));
        if !known.is_some_and(|link| link.impairment.cut) {
            // What the node sent is judged, not what the way made of it.
            self.copy(from, to, packet);
        }
        let Some(link) = self.links.get_mut(&(from, to)) else {
            count(&counters.forwarded);
            self.tuns[device].write(packet);
            return;
        };
        let fault = link.impairment;
        if fault.cut {
            count(&counters.cut);
            return;
        }
        if self.chance.hits(fault.loss) {
            count(&counters.lost);
            return;
        }
        let now = now_ns();
        let mut due = now;
        if fault.rate_bps > 0 {
            let backlog_ns = u128::from(link.free_at.saturating_sub(now));
            let backlog_bytes = backlog_ns * u128::from(fault.rate_bps) / 8_000_000_000;
            if backlog_bytes > u128::from(fault.queue_bytes) {
                count(&counters.queue_full);
                return;
            }
            let takes = packet.len() as u64 * 8_000_000_000 / fault.rate_bps;
            link.free_at = link.free_at.max(now) + takes;
            due = link.free_at;
        }
        due += fault.delay_ns;
        if fault.jitter_ns > 0 {
            let shift = self.chance.bell() * fault.jitter_ns as f64;
            due = due.saturating_add_signed(shift as i64).max(now);
        }
        if self.chance.hits(fault.reorder) {
            count(&counters.reordered);
            due = now;
        } else {
            due = due.max(link.last_due);
            link.last_due = due;
        }
        if self.chance.hits(fault.corrupt) && packet.len() > 28 {
            count(&counters.corrupted);
            let at = 28 + self.chance.below(packet.len() as u64 - 28) as usize;
            packet[at] ^= 1 << self.chance.below(8);
        }
        let copies = if self.chance.hits(fault.duplicate) {
            count(&counters.duplicated);
            2
        } else {
            1
        };
        count(&counters.forwarded);
        for _ in 0..copies {
            self.later(due, device, packet);
        }
    }

    fn later(&mut self, due: u64, device: usize, packet: &[u8]) {
        if self.waiting.len() >= WAITING_MAX {
            self.shared
                .counters
                .queue_full
                .fetch_add(1, Ordering::Relaxed);
            return;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.packets.push(Vec::new());
            self.packets.len() - 1
        });
        self.packets[slot].clear();
        self.packets[slot].extend_from_slice(packet);
        self.sequence += 1;
        self.waiting
            .push(Reverse((due, self.sequence, device, slot)));
    }

    /// Hands UDP between a node and a client to the judge of the wire; only of clients that have an address of
    /// their own.
    fn copy(&self, from: End, to: End, packet: &[u8]) {
        let Some(tap) = &self.tap else {
            return;
        };
        let node = match (from.is_alone(), to.is_alone()) {
            (true, false) => to,
            (false, true) => from,
            _ => return,
        };
        if let Some(datagram) = datagram(packet, node)
            && tap.try_send(datagram).is_err()
        {
            self.shared
                .counters
                .untapped
                .fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sender and receiver of a packet of our network.
fn ends(packet: &[u8]) -> Option<(End, End)> {
    let ours = |at: usize| {
        packet
            .get(at..at + 4)
            .filter(|bytes| bytes[..3] == [10, 79, 0])
    };
    (packet.first()? >> 4 == 4).then_some(())?;
    Some((End(ours(12)?[3]), End(ours(16)?[3])))
}

fn datagram(packet: &[u8], node: End) -> Option<Datagram> {
    let header = usize::from(packet[0] & 15) * 4;
    let udp = packet.get(header..).filter(|_| packet[9] == 17)?;
    if udp.len() < 8 {
        return None;
    }
    let address =
        |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let number = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    Some(Datagram {
        at: now_ms() / 1e3,
        hardware: Hardware([2, 0, 0, 0, 0, node.0]),
        from: SocketAddrV4::new(address(12), number(0)),
        to: SocketAddrV4::new(address(16), number(2)),
        length: usize::from(number(4)).saturating_sub(8),
        payload: udp[8..].to_vec(),
    })
}

fn now_ns() -> u64 {
    (now_ms() * 1e6) as u64
}

/// SplitMix64: small, and the same for the same seed.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below a limit, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// From 0 up to 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True with this probability.
    pub(crate) fn hits(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.share() < probability
    }

    /// Around 0, from -1 to 1, near to a bell curve.
    fn bell(&mut self) -> f64 {
        (self.share() + self.share() + self.share() + self.share() - 2.0) / 2.0
    }

    /// One of several.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_our_network_have_two_ends() {
        let mut packet = vec![0; 40];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[12..16].copy_from_slice(&[10, 79, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 79, 0, 101]);
        packet[20..28].copy_from_slice(&[0x1e, 0xca, 0, 80, 0, 20, 0, 0]);
        assert_eq!(ends(&packet), Some((End(1), End(101))));
        let datagram = datagram(&packet, End(1)).expect("UDP");
        assert_eq!(datagram.from.to_string(), "10.79.0.1:7882");
        assert_eq!((datagram.to.port(), datagram.length), (80, 12));
        packet[17] = 80;
        assert_eq!(ends(&packet), None);
        assert_eq!(ends(&packet[..15]), None);
    }

    #[test]
    fn chance_is_the_same_for_the_same_seed() {
        let draw = |seed| {
            let mut chance = Chance(seed);
            (0..100).map(|_| chance.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut chance = Chance(3);
        let hits = (0..10_000).filter(|_| chance.hits(0.05)).count();
        assert!((400..600).contains(&hits), "{hits}");
    }
}
