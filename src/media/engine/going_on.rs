//! Connections whose clients do not know that their node is gone: the address has moved here, or the
//! former home lends the path, and this engine goes on in its place.
//!
//! ```text
//! GoOn ─► path, keys, sections, SSRCs as they were ─► media both ways, at once
//! CreatePeer of the same id (the client has come) ─► data channels go on, the rest stays
//! ```

use std::time::Instant;

use flotilla_model::id::NodeId;

use super::Engine;
use super::peer::{Peer, Plan};
use crate::command::{Continuation, PeerId, PeerRole};
use crate::event::Event;
use crate::via;

impl Engine {
    /// Goes on with another node's connection. One that cannot be waits for its client to resume.
    pub(super) fn go_on(
        &mut self,
        now: Instant,
        id: PeerId,
        kind: (PeerRole, bool),
        lender: Option<NodeId>,
        mut from: Continuation,
    ) {
        if self.peers.contains_key(&id) || self.peers.len() >= self.config.peers_max {
            tracing::warn!(peer = id.0, "there is no place for a connection to go on");
            return;
        }
        if let Some(lender) = lender {
            let own = from.passage.local();
            let Some(number) = self.loans.number(lender, own) else {
                tracing::warn!(peer = id.0, "too many nodes lend paths");
                return;
            };
            from.passage = from.passage.heard_by(number);
        }
        let mut peer = match Peer::go_on(now, &self.config, kind, &from, &mut self.rng) {
            Ok(peer) => peer,
            Err(reason) => {
                tracing::warn!(peer = id.0, reason, "a connection waits for its client");
                return;
            }
        };
        for ufrag in peer.transport.ufrags() {
            self.ufrags.insert(ufrag.to_owned(), id);
        }
        let client = via::mark(from.passage.client, from.passage.local);
        peer.add_address(id, client, &mut self.addresses);
        if lender.is_some() {
            self.loans.borrow(id, client);
        }
        let assigned = peer.negotiation.assigned();
        let assigned: Vec<_> = assigned
            .filter_map(|(track, stream)| {
                let mut streams = from.passage.streams.iter();
                let sent = streams.find(|sent| sent.track == *track)?;
                Some((track.clone(), stream.to_owned(), sent.settings))
            })
            .collect();
        tracing::info!(
            peer = id.0,
            is_lent = lender.is_some(),
            sent = from.passage.streams.len(),
            assigned = assigned.len(),
            "a connection goes on"
        );
        self.peers.insert(id, Box::new(peer));
        self.router.go_on(now, id, from.passage.streams);
        for (track, stream, settings) in assigned {
            self.subscribe(now, id, track, stream, settings);
        }
        self.sync(now, id);
        self.advance(now, id);
    }

    /// The client of a connection that went on without its knowing has come: the plan is carried out
    /// with what is here, or given back to begin with if client and engine have other sections.
    pub(super) fn welcome(&mut self, now: Instant, id: PeerId, mut plan: Plan) -> Option<Plan> {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.is_unmissed) else {
            return Some(plan);
        };
        let Some(restore) = &mut plan.restore else {
            return Some(plan);
        };
        let descriptions = restore.descriptions.as_ref();
        let descriptions = descriptions.map(|(offer, answer)| (offer.as_str(), answer.as_str()));
        if !peer.negotiation.welcome(now, descriptions) {
            tracing::info!(peer = id.0, "client and engine have other sections");
            restore.transport = peer.transport.export();
            self.close_peer(now, id);
            return Some(plan);
        }
        peer.is_unmissed = false;
        if !restore.channels.is_empty() || peer.opens_channels() {
            peer.transport
                .revive_channels(&restore.channels, restore.sequence);
            peer.transport.resume_channels(now);
        }
        self.push_event(Event::Connected { peer: id });
        self.advance(now, id);
        None
    }
}
