//! I8: once a token is revoked in the log, no join with it is let in, by whichever leader and after
//! whatever restart; and nothing is sent to or for whoever was removed, except for what nodes cannot know
//! yet.

use std::collections::BTreeMap;

use flotilla_model::command::Command;
use flotilla_model::event::{Event, RoomEvent};
use flotilla_model::id::{Identity, ParticipantSid, RoomName, UnixMillis};

use super::Invariant;
use crate::time::{Time, secs};
use crate::witness::{Fact, Packet, Scene};

/// A node out of touch with the leader alone goes on for so long.
const KNOWN_AFTER: u64 = secs(13);

/// Revocations and removals.
#[derive(Default)]
pub struct Holds {
    revoked: BTreeMap<(RoomName, Identity), UnixMillis>,
    removed: BTreeMap<ParticipantSid, Time>,
    seen: u64,
}

impl Holds {
    fn apply(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        let Fact::Applied { advance, .. } = fact else {
            return Ok(());
        };
        for ((_, command), (_, result)) in advance.entry.commands.iter().zip(&advance.outcomes) {
            match command {
                Command::Leave {
                    room,
                    identity,
                    revoke_before: Some(before),
                    ..
                } => {
                    let key = (room.clone(), identity.clone());
                    let known = self.revoked.entry(key).or_default();
                    if result.is_ok() {
                        *known = (*known).max(*before);
                    }
                }
                Command::Join(join) if result.is_ok() => {
                    let key = (join.room.clone(), join.identity.clone());
                    if self
                        .revoked
                        .get(&key)
                        .is_some_and(|before| join.token_issued_at < *before)
                    {
                        return Err(format!("{} joined with a revoked token", join.sid));
                    }
                }
                _ => {}
            }
        }
        for event in advance.changes.iter().flat_map(|change| &change.events) {
            if let Event::Room {
                change: RoomEvent::ParticipantLeft { participant, .. },
                ..
            } = event
            {
                self.removed.insert(participant.sid.clone(), scene.now);
            }
        }
        Ok(())
    }
}

impl Invariant for Holds {
    fn name(&self) -> &'static str {
        "revocation"
    }

    fn see(&mut self, scene: &Scene, fact: &Fact<'_>) -> Result<(), String> {
        match fact {
            Fact::Applied { advance, .. } => {
                if advance.entry.index > self.seen {
                    self.seen = advance.entry.index;
                    return self.apply(scene, fact);
                }
                Ok(())
            }
            Fact::Sent(Packet {
                node, subscriber, ..
            }) => match self.removed.get(*subscriber) {
                Some(since) if scene.now - *since > KNOWN_AFTER => Err(format!(
                    "node {node} sends to {subscriber}, who left {} s ago",
                    (scene.now - *since) / 1_000_000
                )),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}
