//! ICE-lite: answers checks, follows the client's nomination, and notices when checks stop.
//!
//! The transport feeds it STUN messages that carry one of its user fragments and sends what it
//! answers. A lite agent is always controlled, sends no check of its own, and learns every address
//! of the client from the checks that arrive. The client's checks are its consent as well
//! (RFC 7675 is for agents that send them). RFC 8445 §2.5, §7.3, §8.2; RFC 8489.

mod message;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::{Rng, RngCore};

pub use message::request_ufrag;
use message::{Request, Verdict};

use crate::discard::Discard;
use crate::peer::passage::Passage;
use crate::via;

/// User fragment and password of one end.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `a=ice-ufrag`.
    pub ufrag: String,
    /// `a=ice-pwd`.
    pub pwd: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("ufrag", &self.ufrag)
            .finish_non_exhaustive()
    }
}

/// Characters of a user fragment: 72 bits, so that no two in a cluster are ever equal.
const UFRAG_LEN: usize = 12;
/// Characters of a password: 192 bits, RFC 8445 wants 128.
const PWD_LEN: usize = 32;
/// The alphabet of both.
const ICE_CHARS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

impl Credentials {
    fn random(rng: &mut (impl RngCore + ?Sized)) -> Self {
        let mut text = |len: usize| -> String {
            (0..len)
                .map(|_| char::from(ICE_CHARS[rng.random_range(0..ICE_CHARS.len())]))
                .collect()
        };
        Self {
            ufrag: text(UFRAG_LEN),
            pwd: text(PWD_LEN),
        }
    }
}

/// How long to wait for checks.
#[derive(Clone, Copy, Debug)]
pub struct IceTimeouts {
    /// First check after the client's description is known.
    pub connect: Duration,
    /// Without a check for so long a connection counts as disconnected.
    pub disconnected: Duration,
    /// So much longer and it failed.
    pub failed: Duration,
}

impl Default for IceTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            disconnected: Duration::from_secs(10),
            failed: Duration::from_secs(5),
        }
    }
}

/// Where ICE stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IceState {
    /// No check arrived yet.
    Waiting,
    /// Checks arrive.
    Connected,
    /// Checks stopped a while ago; they may come back.
    Disconnected,
    /// Given up. A restart may revive it.
    Failed,
}

/// What a check or the time changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IceChange {
    /// The first check arrived, or the first after [`IceState::Disconnected`].
    Connected,
    /// The client nominated an address with the newest credentials after a restart.
    Restarted,
    /// Checks stopped for good.
    Failed,
}

/// Addresses of the client kept at most; the one checked least recently goes.
const REMOTES_MAX: usize = 8;
/// Generations of credentials that are valid at once: the current one and those of restarts that
/// the client has not finished.
const GENERATIONS_MAX: usize = 3;
/// Answers kept at most until the transport takes them; more are not sent.
const TRANSMITS_MAX: usize = 64;

/// One connection's agent.
pub(super) struct IceAgent {
    timeouts: IceTimeouts,
    /// Newest first.
    local: VecDeque<Credentials>,
    /// Client's user fragment, once its description is known.
    remote_ufrag: Option<String>,
    /// The address the client nominated last.
    nominated: Option<SocketAddr>,
    /// Addresses that passed a check, most recent last.
    remotes: Vec<SocketAddr>,
    state: IceState,
    /// A restart waits for its nomination.
    restarting: bool,
    /// When what is waited for must have come.
    deadline: Option<Instant>,
    transmits: VecDeque<(SocketAddr, Bytes)>,
    retired: VecDeque<String>,
}

impl IceAgent {
    pub(super) fn new(timeouts: IceTimeouts, rng: &mut (impl RngCore + ?Sized)) -> Self {
        Self {
            timeouts,
            local: VecDeque::from([Credentials::random(rng)]),
            remote_ufrag: None,
            nominated: None,
            remotes: Vec::new(),
            state: IceState::Waiting,
            restarting: false,
            deadline: None,
            transmits: VecDeque::new(),
            retired: VecDeque::new(),
        }
    }

    /// Goes on with the agent of another node, as if its client had just been heard on the path that it
    /// nominated there.
    pub(super) fn go_on(now: Instant, timeouts: IceTimeouts, passage: &Passage) -> Self {
        let client = via::mark(passage.client, passage.local);
        let local = passage.credentials.iter().map(|(ufrag, pwd)| Credentials {
            ufrag: ufrag.clone(),
            pwd: pwd.clone(),
        });
        Self {
            timeouts,
            local: local.collect(),
            remote_ufrag: passage.client_ufrag.clone(),
            nominated: Some(client),
            remotes: vec![client],
            state: IceState::Connected,
            // A restart that was under way goes on: its credentials come first.
            restarting: passage.credentials.len() > 1,
            deadline: Some(now + timeouts.disconnected),
            transmits: VecDeque::new(),
            retired: VecDeque::new(),
        }
    }

    /// What [`Self::go_on`] needs elsewhere, without streams; `None` before there is a path.
    pub(super) fn passage(&self) -> Option<Passage> {
        let client = self.nominated?;
        let credentials = self.local.iter();
        Some(Passage {
            credentials: credentials
                .map(|c| (c.ufrag.clone(), c.pwd.clone()))
                .collect(),
            client_ufrag: self.remote_ufrag.clone(),
            client: via::plain(client),
            local: via::local(client),
            streams: Vec::new(),
        })
    }

    /// User fragments that checks may name.
    pub(super) fn ufrags(&self) -> impl Iterator<Item = &str> {
        self.local.iter().map(|local| local.ufrag.as_str())
    }

    /// Credentials for the next description.
    pub(super) fn local(&self) -> &Credentials {
        // There is always one: made in `new`, and `restart` adds before anything is removed.
        &self.local[0]
    }

    /// Makes new credentials. The old ones, and the old path, stay good until the client has
    /// nominated a path with the new ones.
    pub(super) fn restart(&mut self, now: Instant, rng: &mut (impl RngCore + ?Sized)) {
        self.local.push_front(Credentials::random(rng));
        while self.local.len() > GENERATIONS_MAX {
            self.retire_oldest();
        }
        self.restarting = true;
        // The client's checks may come before its description with the new fragment.
        self.remote_ufrag = None;
        if matches!(self.state, IceState::Failed | IceState::Waiting) {
            self.state = IceState::Waiting;
            self.deadline = Some(now + self.timeouts.connect);
        }
    }

    /// The client's description is known: from now on its checks are expected.
    pub(super) fn set_remote(&mut self, now: Instant, ufrag: &str) {
        self.remote_ufrag = Some(ufrag.to_owned());
        if self.state == IceState::Waiting && self.deadline.is_none() {
            self.deadline = Some(now + self.timeouts.connect);
        }
    }

    /// Where to send: the nominated address, until there is one the first that passed a check.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.nominated.or_else(|| self.remotes.first().copied())
    }

    pub(super) fn nominated(&self) -> Option<SocketAddr> {
        self.nominated
    }

    /// Whether an address passed a check.
    pub(super) fn knows(&self, address: SocketAddr) -> bool {
        self.nominated == Some(address) || self.remotes.contains(&address)
    }

    pub(super) const fn state(&self) -> IceState {
        self.state
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.transmits.pop_front()
    }

    /// A user fragment of ours that is no longer valid.
    pub(super) fn poll_retired(&mut self) -> Option<String> {
        self.retired.pop_front()
    }

    /// Takes a STUN message.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Result<Option<IceChange>, Discard> {
        let request = Request::parse(bytes)?;
        let (ours, theirs) = request.username().ok_or(Discard::Malformed)?;
        let generation = self.local.iter().position(|local| local.ufrag == ours);
        let generation = generation.ok_or(Discard::UnknownPeer)?;
        if generation == 0
            && self
                .remote_ufrag
                .as_deref()
                .is_some_and(|remote| remote != theirs)
        {
            return Err(Discard::StunRefused);
        }
        match request.verify(&self.local[generation].pwd)? {
            Verdict::Check { nominates } => {
                let answer = request.success(from, &self.local[generation].pwd)?;
                self.send(from, answer);
                Ok(self.passed(now, from, nominates, generation))
            }
            Verdict::RoleConflict => {
                let answer = request.role_conflict(&self.local[generation].pwd)?;
                self.send(from, answer);
                Err(Discard::StunRefused)
            }
            Verdict::UnknownAttributes(unknown) => {
                let answer = request.unknown_attributes(unknown, &self.local[generation].pwd)?;
                self.send(from, answer);
                Err(Discard::StunRefused)
            }
        }
    }

    /// Notes a check that was answered.
    fn passed(
        &mut self,
        now: Instant,
        from: SocketAddr,
        nominates: bool,
        generation: usize,
    ) -> Option<IceChange> {
        self.remember(from);
        let connected = self.state != IceState::Connected;
        self.state = IceState::Connected;
        self.deadline = Some(now + self.timeouts.disconnected);

        // Once a new generation has a nominated path, a late check of the old path moves nothing.
        if nominates && (generation == 0 || self.restarting) {
            self.nominated = Some(from);
        }
        if nominates && generation == 0 && self.restarting {
            self.restarting = false;
            while self.local.len() > 1 {
                self.retire_oldest();
            }
            return Some(IceChange::Restarted);
        }
        connected.then_some(IceChange::Connected)
    }

    fn remember(&mut self, from: SocketAddr) {
        if let Some(at) = self.remotes.iter().position(|remote| *remote == from) {
            // Order matters only for what to forget and for the first address before nomination.
            if self.nominated.is_some() {
                self.remotes[at..].rotate_left(1);
            }
        } else {
            if self.remotes.len() == REMOTES_MAX {
                self.remotes.remove(0);
            }
            self.remotes.push(from);
        }
    }

    fn retire_oldest(&mut self) {
        if let Some(oldest) = self.local.pop_back() {
            self.retired.push_back(oldest.ufrag);
        }
    }

    fn send(&mut self, to: SocketAddr, answer: Bytes) {
        if self.transmits.len() < TRANSMITS_MAX {
            self.transmits.push_back((to, answer));
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<IceChange> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return None;
        }
        match self.state {
            IceState::Connected => {
                self.state = IceState::Disconnected;
                self.deadline = Some(now + self.timeouts.failed);
                None
            }
            IceState::Waiting | IceState::Disconnected => {
                self.state = IceState::Failed;
                self.deadline = None;
                Some(IceChange::Failed)
            }
            IceState::Failed => {
                self.deadline = None;
                None
            }
        }
    }
}

/// The `a=candidate` value of this end's `index`-th address: a UDP host candidate. Earlier
/// addresses are preferred (RFC 8445 §5.1.2.1).
#[must_use]
pub fn candidate(index: usize, address: SocketAddr) -> String {
    let local_preference = 65_535_u32.saturating_sub(u32::try_from(index).unwrap_or(u32::MAX));
    let priority = (126 << 24) | (local_preference << 8) | 255;
    // The foundation tells apart base addresses.
    let foundation = match address.ip() {
        IpAddr::V4(ip) => u32::from(ip),
        IpAddr::V6(ip) => ip.octets().chunks_exact(4).fold(1, |hash: u32, chunk| {
            chunk.iter().fold(hash, |hash, byte| {
                hash.wrapping_mul(16_777_619) ^ u32::from(*byte)
            })
        }),
    };
    format!(
        "candidate:{foundation} 1 udp {priority} {} {} typ host",
        address.ip(),
        address.port()
    )
}
