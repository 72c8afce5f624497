//! Compares the relays that the log wants with what the engines were told, and closes the gap.
//!
//! Pure: state in, orders out. The feed task calls it for each change, before sessions hear of it,
//! so that an engine knows of a relayed track before anybody subscribes to it. A start, a lag and an
//! engine's restart all go through [`Reconciler::everything`]: there is no special path.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use flotilla_media::command::Command;
use flotilla_model::State;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{BootId, Epoch, NodeId, RoomName, TrackSid, fnv1a};
use flotilla_model::track::Track;

/// An order and the shard that it is for.
#[derive(Clone, Debug)]
pub struct ShardOrder {
    /// Shard.
    pub shard: usize,
    /// The room that it is about; `None`: it is about another node.
    pub room: Option<RoomName>,
    /// Order.
    pub command: Command,
}

/// What the engines were told.
pub struct Reconciler {
    node: NodeId,
    shards: usize,
    links: Vec<BTreeMap<NodeId, (BootId, SocketAddr)>>,
    rooms: HashMap<RoomName, Told>,
}

/// What a room's shard was told of its relays.
#[derive(Default)]
struct Told {
    outgoing: BTreeSet<(TrackSid, NodeId)>,
    incoming: BTreeMap<TrackSid, Incoming>,
}

#[derive(Clone, PartialEq)]
struct Incoming {
    from: NodeId,
    epoch: Epoch,
    track: Arc<Track>,
}

impl Incoming {
    /// The same relay of the same description; whether it is muted is told apart.
    fn is_like(&self, other: &Self) -> bool {
        self.from == other.from
            && self.epoch == other.epoch
            && (Arc::ptr_eq(&self.track, &other.track)
                || (self.track.codecs == other.track.codecs
                    && self.track.size == other.track.size
                    && self.track.simulcast == other.track.simulcast))
    }
}

impl Reconciler {
    /// Nothing told yet.
    #[must_use]
    pub fn new(node: NodeId, shards: usize) -> Self {
        Self {
            node,
            shards,
            links: vec![BTreeMap::new(); shards],
            rooms: HashMap::new(),
        }
    }

    fn shard_of(&self, room: &RoomName) -> usize {
        (fnv1a(room.as_str().as_bytes()) % self.shards as u64) as usize
    }

    /// Orders that follow from a change's events.
    pub fn change(&mut self, events: &[Event], state: &State) -> Vec<ShardOrder> {
        let mut orders = Vec::new();
        let mut rooms = BTreeSet::new();
        for event in events {
            match event {
                Event::NodeChanged(_) | Event::NodeRemoved(_) => self.links(state, &mut orders),
                Event::Room { room, change, .. } => match change {
                    RoomEvent::RoutesChanged
                    | RoomEvent::Closed(_)
                    | RoomEvent::TrackUpdated { .. }
                    | RoomEvent::ParticipantLeft { .. } => {
                        rooms.insert(room);
                    }
                    _ => {}
                },
            }
        }
        for room in rooms {
            self.room(room, state, &mut orders);
        }
        orders
    }

    /// Orders that bring every engine to where the state wants it.
    pub fn everything(&mut self, state: &State) -> Vec<ShardOrder> {
        let mut orders = Vec::new();
        self.links(state, &mut orders);
        let mut rooms: BTreeSet<RoomName> = self.rooms.keys().cloned().collect();
        rooms.extend(
            state
                .rooms
                .iter()
                .filter(|(_, room)| !room.routes.is_empty())
                .map(|(name, _)| name.clone()),
        );
        for room in &rooms {
            self.room(room, state, &mut orders);
        }
        orders
    }

    /// Whether an order ends a relay of a track that is still there, only no longer wanted at this node.
    /// Sessions that have just moved from here may still be on it for a moment.
    #[must_use]
    pub fn may_wait(order: &ShardOrder, state: &State) -> bool {
        let Command::Unpublish { track } = &order.command else {
            return false;
        };
        let room = order.room.as_ref().and_then(|room| state.rooms.get(room));
        room.is_some_and(|room| room.track(track).is_some())
    }

    /// Whether a relay that ended is wanted after all, or its track is published here by now.
    #[must_use]
    pub fn is_wanted_again(&self, order: &ShardOrder, state: &State) -> bool {
        let (Command::Unpublish { track }, Some(name)) = (&order.command, &order.room) else {
            return false;
        };
        let told = self.rooms.get(name);
        told.is_some_and(|told| told.incoming.contains_key(track))
            || self.is_published_here(name, track, state)
    }

    /// A track whose publisher moved here is the publisher's session's from then on.
    fn is_published_here(&self, name: &RoomName, track: &TrackSid, state: &State) -> bool {
        let room = state.rooms.get(name);
        room.and_then(|room| room.track(track))
            .is_some_and(|(publisher, _)| publisher.home == self.node)
    }

    /// Forgets what a shard was told: its engine is a new one.
    pub fn forget_shard(&mut self, shard: usize) {
        if let Some(links) = self.links.get_mut(shard) {
            links.clear();
        }
        let shards = self.shards as u64;
        self.rooms
            .retain(|name, _| (fnv1a(name.as_str().as_bytes()) % shards) as usize != shard);
    }

    fn links(&mut self, state: &State, orders: &mut Vec<ShardOrder>) {
        for shard in 0..self.shards {
            let wanted: BTreeMap<_, _> = state
                .nodes
                .values()
                .filter(|node| node.id != self.node)
                .filter_map(|node| {
                    let address = *node.relay_addresses.get(shard)?;
                    Some((node.id, (node.boot, address)))
                })
                .collect();
            let told = &mut self.links[shard];
            for node in told.keys().filter(|node| !wanted.contains_key(node)) {
                let command = Command::RemoveLink { node: *node };
                orders.push(ShardOrder {
                    shard,
                    room: None,
                    command,
                });
            }
            for (node, (boot, address)) in &wanted {
                if told.get(node) != Some(&(*boot, *address)) {
                    let command = Command::SetLink {
                        node: *node,
                        boot: *boot,
                        address: *address,
                    };
                    orders.push(ShardOrder {
                        shard,
                        room: None,
                        command,
                    });
                }
            }
            *told = wanted;
        }
    }

    fn room(&mut self, name: &RoomName, state: &State, orders: &mut Vec<ShardOrder>) {
        let shard = self.shard_of(name);
        let wanted = self.wanted(name, state);
        let told = self.rooms.remove(name).unwrap_or_default();
        let mut order = |command| {
            orders.push(ShardOrder {
                shard,
                room: Some(name.clone()),
                command,
            });
        };
        for (track, node) in told.outgoing.difference(&wanted.outgoing) {
            order(Command::StopRelayTo {
                track: track.clone(),
                node: *node,
            });
        }
        for track in told.incoming.keys() {
            if !wanted.incoming.contains_key(track) && !self.is_published_here(name, track, state) {
                order(Command::Unpublish {
                    track: track.clone(),
                });
            }
        }
        for (track, node) in wanted.outgoing.difference(&told.outgoing) {
            order(Command::RelayTo {
                track: track.clone(),
                node: *node,
            });
        }
        for (track, incoming) in &wanted.incoming {
            let before = told.incoming.get(track);
            if !before.is_some_and(|before| before.is_like(incoming)) {
                order(Command::RelayFrom {
                    track: Box::new((*incoming.track).clone()),
                    node: incoming.from,
                    epoch: incoming.epoch,
                });
            }
            if before.map_or(incoming.track.muted, |before| {
                before.track.muted != incoming.track.muted
            }) {
                order(Command::SetMuted {
                    track: track.clone(),
                    muted: incoming.track.muted,
                });
            }
        }
        if !wanted.outgoing.is_empty() || !wanted.incoming.is_empty() {
            self.rooms.insert(name.clone(), wanted);
        }
    }

    fn wanted(&self, name: &RoomName, state: &State) -> Told {
        let mut wanted = Told::default();
        let Some(room) = state.rooms.get(name) else {
            return wanted;
        };
        for (sid, routes) in room.routes.iter() {
            for route in routes {
                if route.from == self.node {
                    wanted.outgoing.insert((sid.clone(), route.to));
                } else if route.to == self.node
                    && let Some((_, track)) = room.track(sid)
                {
                    wanted.incoming.insert(
                        sid.clone(),
                        Incoming {
                            from: route.from,
                            epoch: route.epoch,
                            track: track.clone(),
                        },
                    );
                }
            }
        }
        wanted
    }
}

#[cfg(test)]
mod tests;
