//! Keeps a room's routes true by small steps.
//!
//! The definition is [`crate::placement::routes`]; computing it anew for every join would cost a
//! look at every track for every participant. A step looks at the tracks concerned only, and at
//! participants only until one is found that still needs a route.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::edit::Edit;
use crate::id::{Identity, NodeId, TrackSid};
use crate::participant::Participant;
use crate::placement::{is_subscribed, route, routes, track_routes};
use crate::room::{Room, Route};
use crate::track::Track;

impl Edit<'_> {
    /// A track came, changed or is to be looked at again.
    pub(super) fn route(&mut self, publisher: &Participant, track: &Track) {
        let routes = track_routes(self.room, publisher, track);
        if routes.is_empty() {
            self.unroute(&track.sid);
        } else if self.room.routes.get(&track.sid) != Some(&routes) {
            self.room.routes.insert(track.sid.clone(), routes);
            self.routes_changed = true;
        }
    }

    /// A track went.
    pub(super) fn unroute(&mut self, track: &TrackSid) {
        self.routes_changed |= self.room.routes.remove(track).is_some();
    }

    /// All tracks of a publisher are to be looked at again.
    pub(super) fn route_all_of(&mut self, publisher: &Participant) {
        for track in publisher.tracks.values() {
            self.route(publisher, track);
        }
    }

    /// So much has changed that looking at every track once is cheapest.
    pub(super) fn route_everything(&mut self) {
        let routes = routes(self.room);
        if routes != self.room.routes {
            self.room.routes = routes;
            self.routes_changed = true;
        }
    }

    /// A participant came, or may now subscribe.
    pub(super) fn subscriber_came(&mut self, subscriber: &Participant) {
        for (publisher, track) in remote_tracks(self.room, subscriber) {
            self.add_route(subscriber.home, &publisher, &track);
        }
    }

    /// A participant went from its home, or may no longer subscribe. `before` is its record from
    /// before; the room no longer shows it.
    pub(super) fn subscriber_went(&mut self, before: &Participant) {
        let tracks = remote_tracks(self.room, before);
        if tracks.is_empty() {
            return;
        }
        let remaining = participants_at(self.room, before.home);
        for (publisher, track) in tracks {
            if !is_needed(&remaining, &publisher, &track) {
                self.remove_route(before.home, &publisher, &track);
            }
        }
    }

    /// A participant changed its mind about one track.
    pub(super) fn subscription_changed(&mut self, identity: &Identity, track: &TrackSid) {
        let (Some(subscriber), Some((publisher, track))) = (
            self.room.participants.get(identity).cloned(),
            self.room.track(track),
        ) else {
            return;
        };
        let (publisher, track) = (Arc::clone(publisher), Arc::clone(track));
        if is_subscribed(&subscriber, &publisher, &track)
            || is_needed(
                &participants_at(self.room, subscriber.home),
                &publisher,
                &track,
            )
        {
            self.add_route(subscriber.home, &publisher, &track);
        } else {
            self.remove_route(subscriber.home, &publisher, &track);
        }
    }

    fn add_route(&mut self, to: NodeId, publisher: &Participant, track: &Track) {
        let Some(route) = route(to, publisher).filter(|_| track.announced) else {
            return;
        };
        if let Some(routes) = self.room.routes.get(&track.sid) {
            if routes.contains(&route) {
                return;
            }
        } else {
            self.room.routes.insert(track.sid.clone(), BTreeSet::new());
        }
        if let Some(routes) = self.room.routes.get_mut(&track.sid) {
            routes.insert(route);
        }
        self.routes_changed = true;
    }

    fn remove_route(&mut self, to: NodeId, publisher: &Participant, track: &Track) {
        let Some(route) = route(to, publisher) else {
            return;
        };
        if !has_route(self.room, &track.sid, &route) {
            return;
        }
        self.routes_changed = true;
        if let Some(routes) = self.room.routes.get_mut(&track.sid) {
            routes.remove(&route);
            if routes.is_empty() {
                self.room.routes.remove(&track.sid);
            }
        }
    }
}

fn has_route(room: &Room, track: &TrackSid, route: &Route) -> bool {
    room.routes
        .get(track)
        .is_some_and(|routes| routes.contains(route))
}

/// Tracks of other nodes that a participant is subscribed to.
fn remote_tracks(room: &Room, subscriber: &Participant) -> Vec<(Arc<Participant>, Arc<Track>)> {
    let somewhere_else = room.homes.keys().any(|node| *node != subscriber.home);
    if !somewhere_else || !subscriber.permission.can_subscribe {
        return Vec::new();
    }
    let wanted = |(publisher, track): &(&Arc<Participant>, &Arc<Track>)| {
        publisher.home != subscriber.home && is_subscribed(subscriber, publisher, track)
    };
    let shared = |(publisher, track): (&Arc<Participant>, &Arc<Track>)| {
        (Arc::clone(publisher), Arc::clone(track))
    };
    if subscriber.subscriptions.auto {
        return room.tracks().filter(wanted).map(shared).collect();
    }
    let explicit = subscriber.subscriptions.explicit.keys();
    explicit
        .filter_map(|sid| room.track(sid))
        .filter(wanted)
        .map(shared)
        .collect()
}

fn participants_at(room: &Room, home: NodeId) -> Vec<Arc<Participant>> {
    if !room.homes.contains_key(&home) {
        return Vec::new();
    }
    room.participants
        .values()
        .filter(|present| present.home == home)
        .cloned()
        .collect()
}

fn is_needed(subscribers: &[Arc<Participant>], publisher: &Participant, track: &Track) -> bool {
    subscribers
        .iter()
        .any(|subscriber| is_subscribed(subscriber, publisher, track))
}
