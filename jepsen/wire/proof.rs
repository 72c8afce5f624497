//! The two promises of a takeover, checked packet by packet in the order of the wire.
//!
//! **One index, one packet.** A key generation begins with a DTLS handshake of a client's address. An
//! address that sends no handshake belongs to a session that came with its keys: it continues the
//! generation in which a media stream of its was last seen (reports do not tell: servers may use one
//! SSRC for all of theirs). If no stream of its was seen before, as after a move to another address with
//! new SSRCs, its generation is not known: media of a client's unknown generations is checked as if they
//! were one, reports as if each address had its own. Within a generation no SSRC may have two different
//! packets of one index (RFC 3711 §9.1); indices of media are estimated as a receiver does it (§3.3.1).
//!
//! **No older home after a newer one.** A node that sends protected packets to a client holds it until
//! another one does. It may send again only in an ICE session that the client began with it afterwards: one that the
//! node has answered in. A client that restarts ICE asks its former node in the new one too, which that one does not know.
//!
//! A node that lends a client's path sends what the newer home has protected, which begins a step beyond all
//! that the node sent itself ([`LENT_STEP`]): such packets are the newer home's, by whichever interface
//! they come. It passes on the client's checks as well, so that both nodes answer in one ICE session, which brings the
//! client to the first of them only.
//!
//! An address that moves brings a client back to an earlier node within one ICE session: that node is the
//! newer home then if it begins a step beyond everything that anybody has sent. Its reports may come first, under
//! an SSRC of its own: reports of an SSRC that nobody had used say nothing of whose the client is.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

use serde::Serialize;

use super::packet::{Check, Datagram, Hardware, Meaning};

/// Of each kind of breach so many are described; the rest is counted.
const TOLD_MAX: usize = 20;

/// So many of the latest turns of a client's life are told with a breach.
const TRAIL: usize = 12;

/// A newer home begins 2^13 indices beyond the older one's media, and further beyond its reports; half of
/// that tells whose packet one is. Losses do not come to that much at once.
const LENT_STEP: u64 = 1 << 12;

/// The same for DTLS records, of which a newer home leaves out 2^24.
const RECORD_STEP: u64 = 1 << 23;

/// What the captures of a run showed.
#[derive(Clone, Default, Debug, Serialize)]
pub(crate) struct Findings {
    /// Protected packets from nodes to clients.
    pub(crate) packets: u64,
    /// Handshakes seen, so key generations.
    pub(crate) generations: u64,
    /// Addresses that continued a generation without a handshake: sessions that moved with their keys.
    pub(crate) continued: u64,
    /// The first of them, in words.
    pub(crate) continuations: Vec<String>,
    /// Packets of addresses whose generation is not known: checked with the others of their client.
    pub(crate) unattributed: u64,
    /// Reports too long to be kept whole; their index is not known.
    pub(crate) unreadable: u64,
    /// Packets of a newer home that came by a path that the older one lends.
    pub(crate) lent: u64,
    /// Changes of the node that serves a client.
    pub(crate) moves: u64,
    pub(crate) index_reused: u64,
    pub(crate) older_after_newer: u64,
    /// The first of them, in words.
    pub(crate) told: Vec<String>,
}

impl Findings {
    /// Whether both promises held.
    pub(crate) fn hold(&self) -> bool {
        self.index_reused == 0 && self.older_after_newer == 0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Generation(usize);

/// Media and reports of one SSRC have indices of their own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Stream {
    Rtp(u32),
    Rtcp(u32),
}

/// Which node holds a client.
struct Tenure {
    node: Hardware,
    /// Number of the datagram that began it.
    since: u64,
}

#[derive(Default)]
struct Sessions {
    known: HashSet<String>,
    newest: String,
    /// Number of the client's check that began the newest.
    begun: u64,
}

/// Feeds on datagrams in order.
pub(crate) struct Proof {
    is_node: fn(Ipv4Addr) -> bool,
    findings: Findings,
    datagrams: u64,
    /// Generation of a client's address and the handshake that began it.
    generations: HashMap<SocketAddrV4, (Generation, Option<[u8; 32]>)>,
    /// Stands for those of a client that are not known.
    unknown: HashMap<Ipv4Addr, Generation>,
    unknown_reports: HashMap<SocketAddrV4, Generation>,
    /// How many there are, known or not.
    count: usize,
    /// Where a stream to a client was last seen.
    last_seen: HashMap<(Ipv4Addr, Stream), Generation>,
    /// Highest index of a stream.
    highest: HashMap<(Generation, Stream), u64>,
    /// Digest of each index.
    digests: HashMap<(Generation, Stream, u64), u64>,
    /// Checks of clients that were not answered: their sessions, and when they came.
    unanswered: HashMap<(SocketAddrV4, [u8; 12]), (String, u64)>,
    /// The ICE sessions between a client's and a node's address.
    sessions: HashMap<(SocketAddrV4, SocketAddrV4), Sessions>,
    /// Nodes that have answered in a session, in turn.
    answered: HashMap<(Ipv4Addr, String), Vec<Hardware>>,
    tenures: HashMap<Ipv4Addr, (Tenure, Vec<Hardware>)>,
    /// Highest index that a node sent of a stream itself, and the first that it passed on.
    reach: HashMap<(Hardware, Generation, Stream), Reach>,
    /// Highest DTLS record to a client's address.
    records: HashMap<SocketAddrV4, u64>,
    /// Streams of reports by the node that sent them first.
    newcomers: HashSet<(Hardware, Generation, Stream)>,
    /// By which nodes paths to a client are lent, since which datagram.
    lenders: HashMap<(Hardware, Ipv4Addr), u64>,
    /// What happened last to a client, and whether it was told since.
    trails: HashMap<Ipv4Addr, (VecDeque<String>, bool)>,
}

#[derive(Default)]
struct Reach {
    own: u64,
    lent_from: Option<u64>,
}

impl Proof {
    /// `is_node` tells the addresses of nodes from those of clients.
    pub(crate) fn new(is_node: fn(Ipv4Addr) -> bool) -> Self {
        Self {
            is_node,
            findings: Findings::default(),
            datagrams: 0,
            generations: HashMap::new(),
            unknown: HashMap::new(),
            unknown_reports: HashMap::new(),
            count: 0,
            last_seen: HashMap::new(),
            highest: HashMap::new(),
            digests: HashMap::new(),
            unanswered: HashMap::new(),
            sessions: HashMap::new(),
            answered: HashMap::new(),
            tenures: HashMap::new(),
            reach: HashMap::new(),
            records: HashMap::new(),
            newcomers: HashSet::new(),
            lenders: HashMap::new(),
            trails: HashMap::new(),
        }
    }

    /// What was found.
    pub(crate) fn findings(self) -> Findings {
        self.findings
    }

    /// Takes the next datagram.
    pub(crate) fn take(&mut self, datagram: &Datagram) {
        self.datagrams += 1;
        let down = (self.is_node)(*datagram.from.ip());
        match (datagram.meaning(), down) {
            (Meaning::Check(check), false) => self.check(datagram, check),
            (Meaning::Answer(transaction), true) => self.answer(datagram, transaction),
            (Meaning::Hello(random), false) => self.hello(datagram.from, random),
            (Meaning::Rtp { ssrc, sequence }, true) => self.media(datagram, ssrc, sequence),
            (Meaning::Rtcp { ssrc, index }, true) => self.report(datagram, ssrc, index),
            (Meaning::Dtls(record), true) => self.record(datagram, record),
            _ => {}
        }
    }

    fn record(&mut self, datagram: &Datagram, record: Option<u64>) {
        let lends = (datagram.hardware, *datagram.to.ip());
        if let Some(record) = record {
            let highest = self.records.entry(datagram.to).or_insert(record);
            let is_step = record >= *highest + RECORD_STEP;
            *highest = (*highest).max(record);
            if is_step && !self.begins(datagram) {
                self.lenders.entry(lends).or_insert(self.datagrams);
            }
        }
        if !self.passes_on(datagram) {
            self.held_by(datagram);
        }
    }

    fn check(&mut self, datagram: &Datagram, check: Check) {
        let key = (datagram.from, check.transaction);
        self.unanswered.insert(key, (check.session, self.datagrams));
    }

    fn answer(&mut self, datagram: &Datagram, transaction: [u8; 12]) {
        let Some((session, asked)) = self.unanswered.remove(&(datagram.to, transaction)) else {
            return;
        };
        let key = (datagram.to, datagram.from);
        let named = (*datagram.to.ip(), session.clone());
        let nodes = self.answered.entry(named).or_default();
        if !nodes.contains(&datagram.hardware) {
            nodes.push(datagram.hardware);
        }
        let sessions = self.sessions.entry(key).or_default();
        if sessions.known.insert(session.clone()) {
            sessions.begun = asked;
            sessions.newest.clone_from(&session);
            self.turn(datagram, &format!("answers in session {session}"));
        }
    }

    fn hello(&mut self, client: SocketAddrV4, random: [u8; 32]) {
        let known = self.generations.get(&client);
        if known.is_some_and(|(_, begun_by)| *begun_by == Some(random)) {
            return;
        }
        self.findings.generations += 1;
        self.records.remove(&client);
        let generation = self.begin();
        self.generations.insert(client, (generation, Some(random)));
    }

    fn begin(&mut self) -> Generation {
        self.count += 1;
        Generation(self.count)
    }

    fn media(&mut self, datagram: &Datagram, ssrc: u32, sequence: u16) {
        self.findings.packets += 1;
        let stream = Stream::Rtp(ssrc);
        let generation = self.generation(datagram, stream);
        let highest = self.highest.get(&(generation, stream));
        let index = highest.map_or(u64::from(sequence), |highest| estimate(*highest, sequence));
        if !self.is_lent(datagram, generation, stream, index) {
            self.held_by(datagram);
        }
        self.note(generation, stream, index, datagram);
    }

    fn report(&mut self, datagram: &Datagram, ssrc: u32, index: Option<u32>) {
        self.findings.packets += 1;
        let Some(index) = index else {
            self.held_by(datagram);
            self.findings.unreadable += 1;
            return;
        };
        let stream = Stream::Rtcp(ssrc);
        let generation = self.generation(datagram, stream);
        let key = (datagram.hardware, generation, stream);
        if !self.highest.contains_key(&(generation, stream)) {
            self.newcomers.insert(key);
        }
        if !self.is_lent(datagram, generation, stream, index.into())
            && !self.newcomers.contains(&key)
        {
            self.held_by(datagram);
        }
        self.note(generation, stream, u64::from(index), datagram);
    }

    /// Whether the sender passes on what a newer home has protected.
    fn is_lent(
        &mut self,
        datagram: &Datagram,
        generation: Generation,
        stream: Stream,
        index: u64,
    ) -> bool {
        let client = *datagram.to.ip();
        let highest = self.highest.entry((generation, stream)).or_insert(index);
        let is_step = index >= *highest + LENT_STEP;
        *highest = (*highest).max(index);
        let lends = (datagram.hardware, client);
        let key = (datagram.hardware, generation, stream);
        let own = Reach {
            own: index,
            lent_from: None,
        };
        if is_step && self.begins(datagram) {
            self.reach.insert(key, own);
            return false;
        }
        if let Some(since) = self.lenders.get(&lends)
            && self.is_back(datagram, *since)
        {
            // The client is back at the node.
            self.lenders.remove(&lends);
            let of_client = |known: &(Hardware, Generation, Stream)| {
                known.0 != lends.0 || known.1 != generation
            };
            self.reach.retain(|known, _| of_client(known));
        }
        // A stream that the lender had not begun is not its own.
        let is_new_of_lender = !self.reach.contains_key(&key) && self.passes_on(datagram);
        let is_lent = match self.reach.get_mut(&key) {
            None if is_new_of_lender => true,
            None => {
                self.reach.insert(key, own);
                false
            }
            Some(Reach { lent_from, .. }) if lent_from.is_some_and(|from| index >= from) => true,
            Some(reach) if index >= reach.own + LENT_STEP => {
                reach.lent_from = Some(index.saturating_sub(LENT_STEP / 2));
                self.lenders.entry(lends).or_insert(self.datagrams);
                true
            }
            Some(reach) => {
                reach.own = reach.own.max(index);
                false
            }
        };
        self.findings.lent += u64::from(is_lent);
        is_lent
    }

    /// The generation of a packet to a client.
    fn generation(&mut self, datagram: &Datagram, stream: Stream) -> Generation {
        let client = datagram.to;
        let at_address = self.generations.get(&client).copied();
        if let Some((begun, Some(_))) = at_address {
            self.last_seen.insert((*client.ip(), stream), begun);
            return begun;
        }
        let continued = at_address.map(|(generation, _)| generation);
        let unknown = self.unknown.get(client.ip()).copied();
        let generation = match stream {
            Stream::Rtp(_) => {
                let seen = self.last_seen.get(&(*client.ip(), stream)).copied();
                match seen.filter(|seen| Some(*seen) != unknown) {
                    Some(seen) => {
                        if continued.is_none() {
                            self.go_on(datagram, stream, seen);
                        }
                        Some(seen)
                    }
                    None => seen.or(continued),
                }
            }
            Stream::Rtcp(_) => continued,
        };
        let generation = generation.filter(|generation| Some(*generation) != unknown);
        let generation = generation.unwrap_or_else(|| {
            self.findings.unattributed += 1;
            let fresh = Generation(self.count + 1);
            let stands_for = match stream {
                Stream::Rtp(_) => *self.unknown.entry(*client.ip()).or_insert(fresh),
                Stream::Rtcp(_) => *self.unknown_reports.entry(client).or_insert(fresh),
            };
            self.count = self.count.max(stands_for.0);
            stands_for
        });
        self.last_seen.insert((*client.ip(), stream), generation);
        generation
    }

    /// An address continues a generation without a handshake.
    fn go_on(&mut self, datagram: &Datagram, stream: Stream, generation: Generation) {
        self.findings.continued += 1;
        if self.findings.continuations.len() < TOLD_MAX {
            let (at, from, client) = (datagram.at, datagram.from, datagram.to);
            let told = format!(
                "{at:.3} {from} -> {client}: {stream:?} of key {}",
                generation.0
            );
            self.findings.continuations.push(told);
        }
        self.generations.insert(datagram.to, (generation, None));
    }

    fn note(&mut self, generation: Generation, stream: Stream, index: u64, datagram: &Datagram) {
        let digest = datagram.digest();
        let before = self.digests.insert((generation, stream, index), digest);
        if before.is_some_and(|before| before != digest) {
            self.findings.index_reused += 1;
            self.tell(format!(
                "{:.3} {} -> {}: {stream:?} index {index} protects a second packet",
                datagram.at, datagram.from, datagram.to
            ));
        }
    }

    /// A newer home begins; whether that is on an interface of its own, not by way of the present home.
    fn begins(&mut self, datagram: &Datagram) -> bool {
        let tenure = self.tenures.get(datagram.to.ip());
        let begins = tenure.is_some_and(|(tenure, _)| tenure.node != datagram.hardware);
        if begins {
            self.comes(datagram);
        }
        begins
    }

    /// The client is the sender's from here on.
    fn comes(&mut self, datagram: &Datagram) {
        let (client, node) = (*datagram.to.ip(), datagram.hardware);
        let since = self.datagrams;
        let tenure = Tenure { node, since };
        match self.tenures.entry(client) {
            Entry::Vacant(first) => {
                first.insert((tenure, Vec::new()));
            }
            Entry::Occupied(mut known) => {
                let (present, earlier) = known.get_mut();
                let before = std::mem::replace(present, tenure);
                if !earlier.contains(&before.node) {
                    earlier.push(before.node);
                }
                self.findings.moves += 1;
            }
        }
        self.turn(datagram, &format!("serves, by {:?}", datagram.meaning()));
    }

    /// Notes a turn in a client's life.
    fn turn(&mut self, datagram: &Datagram, what: &str) {
        let (trail, told) = self.trails.entry(*datagram.to.ip()).or_default();
        if trail.len() == TRAIL {
            trail.pop_front();
        }
        let node = datagram.hardware.0[5];
        trail.push_back(format!(
            "{:.3} {} ({node}) to port {} {what}",
            datagram.at,
            datagram.from,
            datagram.to.port()
        ));
        *told = false;
    }

    /// Whether the client has come to the sender after datagram `since`: by a session that is not the one by which
    /// another node holds it.
    fn is_back(&self, datagram: &Datagram, since: u64) -> bool {
        let session = self.sessions.get(&(datagram.to, datagram.from));
        session.is_some_and(|session| session.begun > since) && !self.answered_later(datagram)
    }

    /// Whether the sender has answered in its client's newest session, and only after the node that holds the client.
    fn answered_later(&self, datagram: &Datagram) -> bool {
        let client = *datagram.to.ip();
        let later = || {
            let (tenure, _) = self.tenures.get(&client)?;
            let session = self.sessions.get(&(datagram.to, datagram.from))?;
            let nodes = self.answered.get(&(client, session.newest.clone()))?;
            let place = |node| nodes.iter().position(|answered| *answered == node);
            Some(place(datagram.hardware)? > place(tenure.node)?)
        };
        later().unwrap_or(false)
    }

    /// Whether the sender lends its path to the client. Who has answered only after the node that holds the client, in the
    /// same session, does.
    fn passes_on(&mut self, datagram: &Datagram) -> bool {
        let lends = (datagram.hardware, *datagram.to.ip());
        if self.lenders.contains_key(&lends) {
            return true;
        }
        let passes_on = self.answered_later(datagram);
        if passes_on {
            self.lenders.insert(lends, self.datagrams);
            self.turn(datagram, "passes on what another node sends");
        }
        passes_on
    }

    /// Whose the client is, and whether the sender may still send.
    fn held_by(&mut self, datagram: &Datagram) {
        let client = *datagram.to.ip();
        if let Some((tenure, earlier)) = self.tenures.get(&client) {
            if tenure.node == datagram.hardware {
                return;
            }
            if earlier.contains(&datagram.hardware) && !self.is_back(datagram, tenure.since) {
                self.older(datagram);
                return;
            }
        }
        self.comes(datagram);
    }

    /// An older home has sent after a newer one.
    fn older(&mut self, datagram: &Datagram) {
        self.findings.older_after_newer += 1;
        if let Some((trail, told)) = self.trails.get_mut(datagram.to.ip())
            && !std::mem::replace(told, true)
        {
            let turns: Vec<String> = trail.iter().cloned().collect();
            self.tell(format!("before it: {}", turns.join("; ")));
        }
        self.tell(format!(
            "{:.3} {} -> {}: a packet of an older home after one of a newer, {:?}",
            datagram.at,
            datagram.from,
            datagram.to,
            datagram.meaning()
        ));
    }

    fn tell(&mut self, breach: String) {
        if self.findings.told.len() < TOLD_MAX {
            self.findings.told.push(breach);
        }
    }
}

/// The index that a receiver gives a sequence number (RFC 3711 §3.3.1), nearest to the highest.
fn estimate(highest: u64, sequence: u16) -> u64 {
    let last = (highest & 0xffff) as u16;
    let step = sequence.wrapping_sub(last).cast_signed();
    highest
        .checked_add_signed(i64::from(step))
        .unwrap_or(u64::from(sequence))
}

#[cfg(test)]
mod tests;
