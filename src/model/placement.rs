//! Which node relays which track to which: a pure function of homes and subscriptions.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::TrackSid;
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
pub fn routes(room: &Room) -> BTreeMap<TrackSid, BTreeSet<Route>> {
    let mut routes: BTreeMap<TrackSid, BTreeSet<Route>> = BTreeMap::new();
    for publisher in room.participants.values() {
        for track in publisher.tracks.values() {
            for subscriber in room.participants.values() {
                if subscriber.home != publisher.home && is_subscribed(subscriber, publisher, track)
                {
                    routes.entry(track.sid.clone()).or_default().insert(Route {
                        from: publisher.home,
                        to: subscriber.home,
                        epoch: publisher.epoch,
                    });
                }
            }
        }
    }
    routes
}
