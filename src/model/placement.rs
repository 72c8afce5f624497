//! Which node relays which track to which, and who takes over from whom: pure functions of homes,
//! subscriptions and the node table.
//!
//! [`crate::apply`] keeps [`Room::routes`] equal to [`routes`] by small steps; [`routes`] is the
//! definition that its tests compare with.

use std::collections::BTreeSet;

use crate::State;
use crate::cluster::{Node, NodeState};
use crate::id::{NodeId, ParticipantSid, TrackSid, fnv1a};
use crate::map::Map;
use crate::participant::Participant;
use crate::room::{Room, Route};
use crate::track::Track;

/// Whether `subscriber` is to receive `track` of `publisher`: it may, it wants to, it is not its own.
#[must_use]
pub fn is_subscribed(subscriber: &Participant, publisher: &Participant, track: &Track) -> bool {
    subscriber.identity != publisher.identity
        && may_subscribe(subscriber, publisher, &track.sid)
        && track.announced
        && subscriber
            .subscriptions
            .explicit
            .get(&track.sid)
            .copied()
            .unwrap_or(subscriber.subscriptions.auto)
}

/// Whether permissions on both sides allow it.
#[must_use]
pub fn may_subscribe(subscriber: &Participant, publisher: &Participant, track: &TrackSid) -> bool {
    let allowed = &publisher.subscription_permission;
    subscriber.permission.can_subscribe
        && (allowed.all_participants
            || match allowed.allowed.get(&subscriber.identity) {
                None => false,
                Some(None) => true,
                Some(Some(tracks)) => tracks.contains(track),
            })
}

/// The routes a room needs now: every track goes once to each other node that has a subscriber.
#[must_use]
pub fn routes(room: &Room) -> Map<TrackSid, BTreeSet<Route>> {
    room.tracks()
        .map(|(publisher, track)| (track.sid.clone(), track_routes(room, publisher, track)))
        .filter(|(_, routes)| !routes.is_empty())
        .collect()
}

/// The routes one track needs now. Looks at participants only until every node is known to have a
/// subscriber, which with automatic subscription is after a few.
#[must_use]
pub fn track_routes(room: &Room, publisher: &Participant, track: &Track) -> BTreeSet<Route> {
    let mut routes = BTreeSet::new();
    let nodes = room
        .homes
        .keys()
        .filter(|node| **node != publisher.home)
        .count();
    if !track.announced || nodes == 0 {
        return routes;
    }
    for subscriber in room.participants.values() {
        let Some(route) = route(subscriber.home, publisher) else {
            continue;
        };
        if !routes.contains(&route) && is_subscribed(subscriber, publisher, track) {
            routes.insert(route);
            if routes.len() == nodes {
                break;
            }
        }
    }
    routes
}

/// The route on which a node gets a publisher's tracks; `None` on the publisher's own node.
#[must_use]
pub fn route(to: NodeId, publisher: &Participant) -> Option<Route> {
    (to != publisher.home).then_some(Route {
        from: publisher.home,
        to,
        epoch: publisher.epoch,
    })
}

impl State {
    /// Nodes besides its home that keep a participant's checkpoints: its successor and, in a region of five
    /// serving nodes and more, the standby after that one. Whichever two of five nodes are lost or cut off, one of
    /// the others can go on with a client's keys.
    pub fn keepers(&self, participant: &Participant) -> impl Iterator<Item = NodeId> {
        let first = self.successor(participant);
        let home = self.nodes.get(&participant.home);
        let second = home
            .filter(|home| self.serving_beside(home).count() >= TWO_KEEPERS_SINCE)
            .and_then(|home| {
                self.serving_beside(home)
                    .filter(|node| Some(*node) != first)
                    .max_by_key(|node| (weight(&participant.sid, *node), *node))
            });
        first.into_iter().chain(second)
    }

    /// Where a participant goes if its home is lost: to [`Self::taker`] if the home's address moves and
    /// every node knows how, to [`Self::standby`] otherwise.
    #[must_use]
    pub fn successor(&self, participant: &Participant) -> Option<NodeId> {
        self.taker(participant.home)
            .or_else(|| self.standby(participant))
    }

    /// The node that takes the place of one whose address moves, with everybody it serves: by rendezvous
    /// hashing as with [`Self::standby`], over the node's id, among those that have such an address
    /// themselves. `None` if its address does not move, if not every node reads version 4, or if there
    /// is no such node.
    #[must_use]
    pub fn taker(&self, lost: NodeId) -> Option<NodeId> {
        let node = self.nodes.get(&lost)?;
        if node.moving_addresses().is_empty() || !self.all_read(4) {
            return None;
        }
        self.serving_beside(node)
            .filter(|other| {
                let other = self.nodes.get(other);
                other.is_some_and(|other| !other.moving_addresses().is_empty())
            })
            .max_by_key(|other| (mix(mix(lost.0) ^ other.0), *other))
    }

    fn serving_beside<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = NodeId> + 'a {
        let others = self.nodes.values().filter(|other| {
            other.id != node.id && other.state == NodeState::Serving && other.region == node.region
        });
        others.map(|other| other.id)
    }

    /// The node that takes a participant over if its home is lost: by rendezvous hashing among the
    /// serving nodes of the home's region, so that a lost node's participants spread evenly and a
    /// change of one node moves only those that it concerns. `None` if there is no other such node.
    /// Costs a look at every node.
    #[must_use]
    pub fn standby(&self, participant: &Participant) -> Option<NodeId> {
        let home = self.nodes.get(&participant.home)?;
        self.serving_beside(home)
            .max_by_key(|node| (weight(&participant.sid, *node), *node))
    }
}

/// So many nodes beside the home have checkpoints kept twice: a majority can be without two of them.
const TWO_KEEPERS_SINCE: usize = 4;

/// What a node weighs for a participant; the heaviest is chosen.
fn weight(sid: &ParticipantSid, node: NodeId) -> u64 {
    mix(fnv1a(sid.as_str().as_bytes()) ^ mix(node.0))
}

/// Spreads each bit of the input over all of the output: the finalizer of SplitMix64 (Steele, Lea,
/// Flood 2014).
const fn mix(input: u64) -> u64 {
    let mut value = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
