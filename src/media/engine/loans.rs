//! A client's path at the node that served it before, used by the one that serves it now until the
//! client has a path of its own there: a session that leaves a node that lives loses no packet.
//!
//! ```text
//!  former home, lends              new home, borrows
//!  lend: closed here ────────────► GoOn
//!  from the client ──── Up ──────► as if it had come here
//!  to the client ◄──── Down ────── what would go there
//!                ◄──── Done ────── the client nominated a path to the new home
//! ```
//!
//! The former home no longer has the connection's keys in use: it passes on what it cannot read. The
//! borrower sees the client at a marked address ([`via::borrowed`]), so that ICE, the tables and the
//! packet path know no loans; what it queues for such an address is wrapped when the shell asks for it.
//! A loan is not lent on.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use flotilla_model::id::NodeId;

use super::Engine;
use super::wire::PeerWire;
use crate::command::{Continuation, PeerId};
use crate::discard::Discard;
use crate::index::IdMap;
use crate::peer::demux::{Class, classify};
use crate::relay::loan::{OnLoan, Way};
use crate::transmit::DATAGRAM_LEN_MAX;
use crate::via;

/// Longest loan: as long as a client may take to come for its session, and to restart ICE.
const LENT_MAX: Duration = Duration::from_secs(15);
/// How much longer a path is lent once it is no longer needed: packets on their way arrive.
const DONE_AFTER: Duration = Duration::from_millis(500);
/// Nodes that paths are borrowed from, one engine's life long.
const LENDERS_MAX: usize = 255;

/// Both sides of an engine's loans.
#[derive(Default)]
pub(super) struct Loans {
    /// Paths of former clients, by address as heard here.
    lent: HashMap<SocketAddr, Lent>,
    /// Nodes that paths are or were borrowed from, by slot.
    lenders: Vec<NodeId>,
    /// Connections on borrowed paths.
    borrowed: IdMap<PeerId, SocketAddr>,
}

struct Lent {
    to: NodeId,
    until: Instant,
}

impl Loans {
    /// Paths that are lent now.
    pub(super) fn lent(&self, now: Instant) -> usize {
        self.lent.values().filter(|lent| lent.until > now).count()
    }

    /// Who uses the path of this address.
    fn borrower(&self, now: Instant, address: SocketAddr) -> Option<NodeId> {
        let lent = self.lent.get(&address)?;
        (lent.until > now).then_some(lent.to)
    }

    fn slot(&self, lender: NodeId) -> Option<u8> {
        let slot = self.lenders.iter().position(|known| *known == lender)?;
        u8::try_from(slot).ok()
    }

    /// The number of an address of another node; `None` if there are too many nodes.
    pub(super) fn number(&mut self, lender: NodeId, own: via::Local) -> Option<via::Local> {
        let own = u8::try_from(own).ok()?;
        let slot = match self.slot(lender) {
            Some(slot) => slot,
            None if self.lenders.len() == LENDERS_MAX => return None,
            None => {
                self.lenders.push(lender);
                u8::try_from(self.lenders.len() - 1).ok()?
            }
        };
        Some(via::borrowed(slot, own))
    }

    pub(super) fn borrow(&mut self, id: PeerId, client: SocketAddr) {
        self.borrowed.insert(id, client);
    }

    /// The node and the client's address there of a marked address.
    fn course(&self, address: SocketAddr, way: Way) -> Option<(NodeId, OnLoan)> {
        let (slot, own) = via::lender(via::local(address))?;
        let lender = *self.lenders.get(usize::from(slot))?;
        let client = via::plain(address);
        Some((lender, OnLoan { way, client, own }))
    }
}

impl Engine {
    /// Closes a connection and lends its path to the node that goes on with it, which is to be given what
    /// this returns ([`crate::command::Command::GoOn`]). `was_cut_off`: whether others may not have heard this node
    /// until now.
    ///
    /// # Errors
    /// Why there is nothing to lend. Nothing has happened then.
    pub fn lend(
        &mut self,
        now: Instant,
        id: PeerId,
        to: NodeId,
        was_cut_off: bool,
    ) -> Result<Continuation, &'static str> {
        if !self.router.has_link(to) {
            return Err("the node cannot be reached");
        }
        let peer = self.peers.get_mut(&id);
        let peer = peer.ok_or("there is no such connection")?;
        if peer.transport.may_lose_data(now, was_cut_off) {
            // The client says it again to its next home, which may be another one than the borrower.
            return Err("others may not have what the client said last");
        }
        // This node lives: what has come is passed on, and need not come again to the borrower.
        peer.transport.all_data_safe(now);
        self.advance(now, id);
        let peer = self.peers.get(&id).ok_or("it has just ended")?;
        let transport = peer.transport.export().ok_or("it is not connected")?;
        let passage = peer.passage(now, id, &self.router);
        let passage = passage.ok_or("it has no path")?;
        if via::lender(passage.local()).is_some() {
            return Err("its path is borrowed itself");
        }
        let descriptions = peer.described.agreed().ok_or("nothing was agreed on yet")?;
        let descriptions = descriptions.clone();
        let own = |path: &&SocketAddr| via::lender(via::local(**path)).is_none();
        let paths: Vec<_> = peer.addresses().iter().filter(own).copied().collect();
        self.close_peer(now, id);
        let until = now + LENT_MAX;
        self.loans.lent.retain(|_, lent| lent.until > now);
        for address in paths {
            self.loans.lent.insert(address, Lent { to, until });
        }
        Ok(Continuation {
            transport,
            passage,
            descriptions,
        })
    }

    /// A datagram of nobody here: that of a client whose path is lent goes to the borrower.
    pub(super) fn pass_up(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Result<(), Discard> {
        let to = self.loans.borrower(now, from);
        let to = to.ok_or(Discard::UnknownPeer)?;
        let own = u8::try_from(via::local(from)).map_err(|_| Discard::UnknownPeer)?;
        let loan = OnLoan {
            way: Way::Up,
            client: via::plain(from),
            own,
        };
        self.carry(to, &loan, bytes);
        Ok(())
    }

    /// The relay packet taken last may have held a client's datagram.
    pub(super) fn take_on_loan(&mut self, now: Instant, bytes: &mut [u8]) -> Result<(), Discard> {
        let Some((node, loan, place)) = self.router.take_on_loan() else {
            return Ok(());
        };
        let OnLoan { way, client, own } = loan;
        let datagram = bytes.get_mut(place).ok_or(Discard::Truncated)?;
        let here = via::mark(client, own.into());
        match way {
            Way::Up => {
                let slot = self.loans.slot(node).ok_or(Discard::UnknownPeer)?;
                let from = via::mark(client, via::borrowed(slot, own));
                match classify(datagram) {
                    // Nodes do not reach each other this way.
                    Class::Relay | Class::Unknown => Err(Discard::UnknownProtocol),
                    class => self.handle_client(now, from, datagram, class),
                }
            }
            Way::Down if self.loans.borrower(now, here) == Some(node) => {
                self.transmits.push(here, datagram);
                Ok(())
            }
            Way::Done if self.loans.borrower(now, here) == Some(node) => {
                if let Some(lent) = self.loans.lent.get_mut(&here) {
                    lent.until = lent.until.min(now + DONE_AFTER);
                }
                Ok(())
            }
            Way::Down | Way::Done => Err(Discard::UnknownPeer),
        }
    }

    /// A connection that has left its borrowed path, or has ended, no longer needs it.
    pub(super) fn return_path(&mut self, id: PeerId) {
        let Some(&client) = self.loans.borrowed.get(&id) else {
            return;
        };
        let peer = self.peers.get(&id);
        if peer.is_some_and(|peer| peer.transport.destination() == Some(client)) {
            return;
        }
        self.loans.borrowed.remove(&id);
        if let Some((lender, done)) = self.loans.course(client, Way::Done) {
            self.carry(lender, &done, &[]);
        }
    }

    /// What waits in the queue for clients on borrowed paths goes to the lenders.
    pub(super) fn wrap_borrowed(&mut self) {
        if self.loans.lenders.is_empty() {
            return;
        }
        let is_borrowed = |to| via::lender(via::local(to)).is_some();
        let mut inside = [0; DATAGRAM_LEN_MAX];
        for at in 0..self.transmits.datagrams().len() {
            let datagram = self.transmits.datagrams()[at];
            let Some((lender, loan)) = self.loans.course(datagram.to, Way::Down) else {
                continue;
            };
            let len = usize::from(datagram.len);
            inside[..len].copy_from_slice(self.transmits.bytes(&datagram));
            self.carry(lender, &loan, &inside[..len]);
        }
        self.transmits.retain(|to| !is_borrowed(to));
    }

    fn carry(&mut self, node: NodeId, loan: &OnLoan, datagram: &[u8]) {
        let mut wire = PeerWire::new(&mut self.peers, &mut self.transmits);
        self.router.carry(node, loan, datagram, &mut wire);
    }
}
