//! I5: towards a subscriber, no packet of an older home follows one of a newer home, neither of the
//! publisher's homes nor of its own.

use std::collections::BTreeMap;

use flotilla_model::id::{Epoch, ParticipantSid, TrackSid};

use super::Invariant;
use crate::witness::{Fact, Packet, Scene};

/// Highest epochs that were sent.
#[derive(Default)]
pub struct Order {
    own: BTreeMap<ParticipantSid, (Epoch, u64)>,
    tracks: BTreeMap<(ParticipantSid, TrackSid), (Epoch, u64)>,
}

impl Invariant for Order {
    fn name(&self) -> &'static str {
        "fence"
    }

    fn see(&mut self, _scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Sent(Packet {
            node,
            subscriber,
            own_epoch,
            track,
            epoch,
            ..
        }) = fact
        else {
            return Ok(());
        };
        if let Some(own) = own_epoch {
            match self.own.get_mut(*subscriber) {
                Some((highest, by)) if own < highest => {
                    return Err(format!(
                        "node {node} sends to {subscriber} under epoch {own} after node {by} did under {highest}"
                    ));
                }
                Some(highest) => *highest = (*own, *node),
                None => {
                    self.own.insert((*subscriber).clone(), (*own, *node));
                }
            }
        }
        let key = ((*subscriber).clone(), (*track).clone());
        let (highest, by) = self.tracks.entry(key).or_insert((*epoch, *node));
        if epoch < highest {
            return Err(format!(
                "node {node} sends {track} of epoch {epoch} to {subscriber} after node {by} sent epoch {highest}"
            ));
        }
        (*highest, *by) = (*epoch, *node);
        Ok(())
    }
}
