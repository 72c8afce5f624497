//! Who wants to receive what, and who may.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::participant::participant_reply;
use super::{Context, State};
use crate::command::{Rejection, Reply};
use crate::event::RoomEvent;
use crate::id::{Identity, RoomName, TrackSid};
use crate::limit;
use crate::participant::{Participant, Subscriptions};
use crate::permission::SubscriptionPermission;
use crate::placement::may_subscribe;
use crate::room::Room;

impl State {
    /// Wishes are kept whether or not permissions allow them now, and whether or not the track is
    /// there yet. Only what differs from `auto` takes space.
    pub(super) fn update_subscriptions(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        identity: &Identity,
        tracks: &BTreeMap<TrackSid, bool>,
    ) -> Result<Reply, Rejection> {
        let (present, participant) = self.present(room, identity)?;
        let (after, changed) = wished(present, &participant.subscriptions, tracks)?;
        if changed.is_empty() {
            return Ok(participant_reply(present.version, participant));
        }
        let mut edit = self.edit(room, context.at);
        let participant = edit.participant_unseen(identity, |participant| {
            participant.subscriptions = after;
        });
        for track in &changed {
            edit.subscription_changed(identity, track);
        }
        edit.push(RoomEvent::SubscriptionsChanged {
            identity: identity.clone(),
        });
        Ok(participant_reply(edit.finish(context), &participant))
    }

    pub(super) fn set_subscription_permission(
        &mut self,
        context: &mut Context<'_>,
        room: &RoomName,
        identity: &Identity,
        permission: &SubscriptionPermission,
    ) -> Result<Reply, Rejection> {
        let (present, before) = self.present(room, identity)?;
        check_size(permission)?;
        if before.subscription_permission == *permission {
            return Ok(participant_reply(present.version, before));
        }
        let before = Arc::clone(before);
        let mut edit = self.edit(room, context.at);
        let after = edit.participant_unseen(identity, |participant| {
            participant.subscription_permission = permission.clone();
        });
        for change in permission_changes(edit.room, &before, &after) {
            edit.push(change);
        }
        edit.route_all_of(&after);
        Ok(participant_reply(edit.finish(context), &after))
    }
}

/// The wishes after an update, and the tracks about which they changed. When they grow over the
/// limit, those about tracks that are gone are forgotten.
fn wished(
    room: &Room,
    before: &Subscriptions,
    tracks: &BTreeMap<TrackSid, bool>,
) -> Result<(Subscriptions, Vec<TrackSid>), Rejection> {
    let mut after = before.clone();
    let mut changed = Vec::new();
    for (track, wanted) in tracks {
        limit::check_name("bytes of a track's sid", track.as_str())?;
        let was = if *wanted == before.auto {
            after.explicit.remove(track).is_none()
        } else {
            after.explicit.insert(track.clone(), *wanted).is_some()
        };
        if !was {
            changed.push(track.clone());
        }
    }
    if after.explicit.len() > limit::SUBSCRIPTIONS_MAX {
        after
            .explicit
            .retain(|track, _| room.publishers.contains_key(track));
    }
    limit::check(
        "subscriptions",
        after.explicit.len(),
        limit::SUBSCRIPTIONS_MAX,
    )?;
    Ok((after, changed))
}

fn check_size(permission: &SubscriptionPermission) -> Result<(), Rejection> {
    let mut named = permission.allowed.len();
    for (identity, tracks) in &permission.allowed {
        limit::check_name("bytes of an identity", identity.as_str())?;
        for track in tracks.iter().flatten() {
            limit::check_name("bytes of a track's sid", track.as_str())?;
            named += 1;
        }
    }
    limit::check(
        "subscription permissions",
        named,
        limit::SUBSCRIPTION_PERMISSIONS_MAX,
    )
}

/// Per subscriber: the tracks for which the answer changed, then that its subscriptions may have.
fn permission_changes(room: &Room, before: &Participant, after: &Participant) -> Vec<RoomEvent> {
    let mut changes = Vec::new();
    for subscriber in room.participants.values() {
        if subscriber.identity == after.identity {
            continue;
        }
        let known = changes.len();
        for track in after.tracks.keys() {
            let allowed = may_subscribe(subscriber, after, track);
            if allowed != may_subscribe(subscriber, before, track) {
                changes.push(RoomEvent::SubscriptionPermissionChanged {
                    publisher: after.identity.clone(),
                    subscriber: subscriber.identity.clone(),
                    track: track.clone(),
                    allowed,
                });
            }
        }
        if changes.len() > known {
            changes.push(RoomEvent::SubscriptionsChanged {
                identity: subscriber.identity.clone(),
            });
        }
    }
    changes
}
