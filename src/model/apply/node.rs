//! Nodes that come, change and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Context, State, done};
use crate::cluster::{Node, NodeState};
use crate::command::{Rehome, Rejection, Reply};
use crate::event::{Event, RoomEvent};
use crate::id::{BootId, Identity, NodeId, RoomName, Version};
use crate::limit;
use crate::participant::LeaveReason;

impl State {
    /// TEMPORARY shim: replaced by the real one on merge.
    #[must_use]
    pub fn standby(&self, participant: &crate::participant::Participant) -> Option<NodeId> {
        self.nodes
            .values()
            .filter(|node| node.id != participant.home && node.state == NodeState::Serving)
            .max_by_key(|node| {
                crate::id::fnv1a(format!("{}{}", participant.sid, node.id).as_bytes())
            })
            .map(|node| node.id)
    }

    /// A new start of a node's process ends what the earlier one served: nobody else will.
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
        match self.nodes.get(&node.id) {
            Some(present) if **present == *node => return Ok(done(Version(0))),
            Some(present) if present.boot != node.boot => {
                self.remove_all_at(context, node.id, LeaveReason::SignalClose);
            }
            Some(_) => {}
            None => limit::check("nodes", self.nodes.len() + 1, limit::NODES_MAX)?,
        }
        self.nodes.insert(node.id, Arc::new(node.clone()));
        context.events.push(Event::NodeChanged(node.id));
        Ok(done(Version(0)))
    }

    pub(super) fn set_node_state(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
        state: NodeState,
    ) -> Result<Reply, Rejection> {
        let present = self.nodes.get(&id).ok_or(Rejection::NodeNotFound)?;
        if present.state != state {
            let mut node = Node::clone(present);
            node.state = state;
            self.nodes.insert(id, Arc::new(node));
            context.events.push(Event::NodeChanged(id));
        }
        Ok(done(Version(0)))
    }

    pub(super) fn remove_node(
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

    pub(super) fn lose_node(
        &mut self,
        context: &mut Context<'_>,
        id: NodeId,
        boot: BootId,
    ) -> Result<Reply, Rejection> {
        let node = self.nodes.get(&id).ok_or(Rejection::NodeNotFound)?;
        if node.boot != boot {
            return Err(Rejection::StaleEpoch);
        }
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
        if !self.nodes.contains_key(&rehome.home) {
            return Err(Rejection::NodeNotFound);
        }
        Ok(())
    }

    /// Looks at every participant of the region: nodes are lost rarely.
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
