//! Nodes that come, change and go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Context, State, done};
use crate::cluster::{LossCause, Node, NodeState, Stint};
use crate::command::{Rehome, Rejection, Reply};
use crate::event::{Event, RoomEvent};
use crate::id::{BootId, Identity, NodeId, RoomName, Version};
use crate::limit;
use crate::participant::{LeaveReason, Participant};

/// Encoding version from which on the log counts a node's returns.
const STINTS_SINCE: u8 = 5;

impl State {
    /// Whom an earlier start of the node's process served stays, under a new epoch: their sessions
    /// are gone, their clients resume here or anywhere. A start that writes another record begins another
    /// stint, as soon as every node knows what that is.
    pub(super) fn put_node(
        &mut self,
        context: &mut Context<'_>,
        node: &Node,
    ) -> Result<Reply, Rejection> {
        limit::check_name("bytes of a region", node.region.as_str())?;
        for text in [
            &node.cluster_address,
            &node.admin_address,
            &node.client_url,
            &node.version,
        ] {
            limit::check_name("bytes of a node's address", text)?;
        }
        limit::check("shards", node.relay_addresses.len(), limit::SHARDS_MAX)?;
        self.check_formats(node)?;
        let mut node = node.clone();
        let before = self.nodes.get(&node.id).cloned();
        match &before {
            Some(present) if self.all_read(STINTS_SINCE) => {
                let returns = present.stint().returns;
                if **present == node.clone().with_returns(returns) {
                    return Ok(done(Version(0)));
                }
                let is_same_start = present.boot == node.boot;
                node = node.with_returns(if is_same_start { returns + 1 } else { 0 });
            }
            Some(present) if **present == node => return Ok(done(Version(0))),
            Some(_) => {}
            None => limit::check("nodes", self.nodes.len() + 1, limit::NODES_MAX)?,
        }
        let (id, boot) = (node.id, node.boot);
        self.set_node(context, node);
        if before.is_some_and(|before| before.boot != boot) {
            self.move_all_at(context, id, |_, _| Some(id));
        }
        Ok(done(Version(0)))
    }

    /// Puts another record in a node's place.
    fn set_node(&mut self, context: &mut Context<'_>, node: Node) {
        context.events.push(Event::NodeChanged(node.id));
        self.nodes.insert(node.id, Arc::new(node));
    }

    /// A node whose present start is this one.
    fn start(&self, id: NodeId, boot: BootId) -> Result<&Arc<Node>, Rejection> {
        let node = self.nodes.get(&id).ok_or(Rejection::NodeNotFound)?;
        if node.boot == boot {
            Ok(node)
        } else {
            Err(Rejection::StaleEpoch)
        }
    }

    /// Another stint of the same start, for a node that is not taken for lost.
    pub(super) fn return_node(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
        boot: BootId,
    ) -> Result<Reply, Rejection> {
        let node = self.start(id, boot)?;
        if node.state.is_lost() {
            return Err(Rejection::NodeNotFound);
        }
        let returns = node.stint().returns + 1;
        let node = Node::clone(node).with_returns(returns);
        self.set_node(context, node);
        Ok(done(Version(0)))
    }

    /// Whether a node reads whatever may be in the log. A refusal in words that older versions know.
    fn check_formats(&self, node: &Node) -> Result<(), Rejection> {
        let (reads, needed) = (node.formats().log, self.log_version());
        if reads < needed {
            return Err(Rejection::NotPermitted(format!(
                "this cluster's log has version {needed}, node {} reads up to {reads}",
                node.id
            )));
        }
        Ok(())
    }

    /// Whether participants may be placed on a node.
    pub(super) fn check_home(&self, id: NodeId) -> Result<(), Rejection> {
        match self.nodes.get(&id) {
            Some(node) if !node.state.is_lost() => Ok(()),
            _ => Err(Rejection::NodeNotFound),
        }
    }

    pub(super) fn set_node_state(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
        state: NodeState,
    ) -> Result<Reply, Rejection> {
        let present = self.nodes.get(&id).ok_or(Rejection::NodeNotFound)?;
        if present.state.is_lost() {
            return Err(Rejection::NodeNotFound);
        }
        if state.is_lost() {
            let text = "a node is lost by a verdict, not by a wish";
            return Err(Rejection::NotPermitted(text.to_owned()));
        }
        if present.state != state {
            let mut node = Node::clone(present);
            node.state = state;
            self.set_node(context, node);
        }
        Ok(done(Version(0)))
    }

    pub(super) fn remove_node_v1(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
    ) -> Result<Reply, Rejection> {
        if !self.nodes.contains_key(&id) {
            return Err(Rejection::NodeNotFound);
        }
        self.remove_all_at(context, id, LeaveReason::ServerShutdown);
        self.nodes.remove(&id);
        context.events.push(Event::NodeRemoved(id));
        Ok(done(Version(0)))
    }

    /// Whom the standbys cannot take leaves: without its record, nobody could stay at the node.
    pub(super) fn remove_node(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
    ) -> Result<Reply, Rejection> {
        if !self.nodes.contains_key(&id) {
            return Err(Rejection::NodeNotFound);
        }
        self.move_all_at(context, id, Self::standby);
        self.remove_all_at(context, id, LeaveReason::ServerShutdown);
        self.nodes.remove(&id);
        context.events.push(Event::NodeRemoved(id));
        Ok(done(Version(0)))
    }

    /// Repeated for a node that is lost already, it moves those who could not be taken then.
    pub(super) fn lose_node(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
        boot: BootId,
        cause: LossCause,
    ) -> Result<Reply, Rejection> {
        let node = self.start(id, boot)?;
        if !node.state.is_lost() {
            let mut node = Node::clone(node);
            node.state = NodeState::Lost { cause };
            self.set_node(context, node);
        }
        self.move_all_at(context, id, Self::standby);
        Ok(done(Version(0)))
    }

    /// As [`Self::lose_node`], with one node that takes everybody, and the moving addresses with them.
    pub(super) fn lose_node_to(
        &mut self,
        context: &mut Context<'_>,
        lost: (NodeId, BootId),
        cause: LossCause,
        taker: NodeId,
    ) -> Result<Reply, Rejection> {
        let (id, boot) = lost;
        let node = self.start(id, boot)?;
        let is_fit = |taker: &&Arc<Node>| {
            taker.state == NodeState::Serving && taker.region == node.region && taker.id != id
        };
        let Some(heir) = self.nodes.get(&taker).filter(is_fit).cloned() else {
            return self.lose_node(context, id, boot, cause);
        };
        let mut moved = Node::clone(node).with_moving_addresses(&[]);
        moved.state = NodeState::Lost { cause };
        let moving = node.moving_addresses();
        if **node != moved {
            self.set_node(context, moved);
        }
        let before = heir.moving_addresses();
        let new = moving.iter().filter(|address| !before.contains(address));
        let held: Vec<IpAddr> = before.iter().chain(new).copied().collect();
        if held != before {
            let heir = Node::clone(&heir).with_moving_addresses(&held);
            self.set_node(context, heir);
        }
        self.move_all_at(context, id, |_, _| Some(taker));
        Ok(done(Version(0)))
    }

    /// A verdict by what was seen of one stint.
    pub(super) fn lose_node_in(
        &mut self,
        context: &mut Context<'_>,
        lost: (NodeId, Stint),
        cause: LossCause,
        taker: Option<NodeId>,
    ) -> Result<Reply, Rejection> {
        let (id, stint) = lost;
        let node = self.nodes.get(&id).ok_or(Rejection::NodeNotFound)?;
        if node.stint() != stint {
            return Err(Rejection::StaleEpoch);
        }
        match taker {
            Some(taker) => self.lose_node_to(context, (id, stint.boot), cause, taker),
            None => self.lose_node(context, id, stint.boot, cause),
        }
    }

    pub(super) fn release_addresses(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
        boot: BootId,
        addresses: &[IpAddr],
    ) -> Result<Reply, Rejection> {
        let node = self.start(id, boot)?;
        let before = node.moving_addresses();
        let kept: Vec<IpAddr> = before
            .iter()
            .filter(|a| !addresses.contains(a))
            .copied()
            .collect();
        if kept != before {
            let node = Node::clone(node).with_moving_addresses(&kept);
            self.set_node(context, node);
        }
        Ok(done(Version(0)))
    }

    pub(super) fn lose_node_v1(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
        boot: BootId,
    ) -> Result<Reply, Rejection> {
        self.start(id, boot)?;
        self.remove_all_at(context, id, LeaveReason::SignalClose);
        Ok(done(Version(0)))
    }

    /// Moves that still hold are carried out. The command is refused if none does, with what was
    /// wrong with the first.
    pub(super) fn rehome(
        &mut self,
        context: &mut Context<'_>,
        moves: &[Rehome],
    ) -> Result<Reply, Rejection> {
        limit::check("moves", moves.len(), limit::MOVES_MAX)?;
        let mut holding: BTreeMap<&RoomName, BTreeMap<&Identity, &Rehome>> = BTreeMap::new();
        let mut refused = None;
        for rehome in moves {
            match self.check_move(rehome) {
                Ok(()) => {
                    let room = holding.entry(&rehome.room).or_default();
                    room.insert(&rehome.identity, rehome);
                }
                Err(rejection) => refused = refused.or(Some(rejection)),
            }
        }
        if holding.is_empty() {
            return refused.map_or(Ok(done(Version(0))), Err);
        }
        let single_room = holding.len() == 1;
        let mut version = Version(0);
        for (room, moves) in holding {
            let mut edit = self.edit(room, context.at);
            for (identity, rehome) in moves {
                edit.set_home(identity, rehome.home);
            }
            edit.route_everything();
            version = edit.finish(context);
        }
        Ok(done(if single_room { version } else { Version(0) }))
    }

    fn check_move(&self, rehome: &Rehome) -> Result<(), Rejection> {
        let (_, participant) = self.session(&rehome.room, &rehome.identity, &rehome.sid)?;
        if participant.epoch != rehome.epoch {
            return Err(Rejection::StaleEpoch);
        }
        self.check_home(rehome.home)
    }

    /// Moves whom a node serves to where `to` says; whom it says nothing of stays. Looks at every
    /// room of the region: nodes are lost rarely.
    fn move_all_at(
        &mut self,
        context: &mut Context<'_>,
        home: NodeId,
        to: impl Fn(&Self, &Participant) -> Option<NodeId>,
    ) {
        let moves: Vec<(RoomName, Vec<(Identity, NodeId)>)> = self
            .rooms
            .values()
            .filter(|room| room.homes.contains_key(&home))
            .map(|room| {
                let served = room.participants.values().filter(|p| p.home == home);
                let moves = served.filter_map(|p| Some((p.identity.clone(), to(self, p)?)));
                (room.name.clone(), moves.collect())
            })
            .collect();
        for (room, moves) in moves.iter().filter(|(_, moves)| !moves.is_empty()) {
            let mut edit = self.edit(room, context.at);
            for (identity, to) in moves {
                edit.set_home(identity, *to);
            }
            edit.route_everything();
            edit.finish(context);
        }
    }

    /// Lets everybody go whom a node serves.
    fn remove_all_at(&mut self, context: &mut Context<'_>, home: NodeId, reason: LeaveReason) {
        let rooms: Vec<(RoomName, Vec<Identity>)> = self
            .rooms
            .values()
            .filter(|room| room.homes.contains_key(&home))
            .map(|room| {
                let served = room.participants.values().filter(|p| p.home == home);
                let served = served.map(|p| p.identity.clone()).collect();
                (room.name.clone(), served)
            })
            .collect();
        for (room, served) in rooms {
            let mut edit = self.edit(&room, context.at);
            edit.remove_all(&served, reason);
            edit.finish(context);
        }
    }
}

impl super::edit::Edit<'_> {
    /// Gives a participant a new home, or a new epoch at the same one. The caller looks at the
    /// routes afterwards.
    fn set_home(&mut self, identity: &Identity, home: NodeId) {
        let epoch = self.new_epoch();
        let before = self.room.participants.get(identity).cloned();
        self.leave_home(&before.expect("the caller looked it up"));
        *self.room.homes.entry(home).or_default() += 1;
        let after = self.participant(identity, |participant| {
            participant.home = home;
            participant.epoch = epoch;
        });
        self.push(RoomEvent::ParticipantMoved(after));
    }
}
