//! A run told in lines: what somebody reads who wants to know why a plan fails.

use flotilla_model::event::Event;

use crate::time::Time;
use crate::witness::Fact;

/// A fact in one line; `None` for those that come by the thousand.
#[must_use]
pub fn line(now: Time, fact: &Fact<'_>) -> Option<String> {
    let text = match fact {
        Fact::Sent(_)
        | Fact::Relayed { .. }
        | Fact::Fed { .. }
        | Fact::Committed { .. }
        | Fact::Watched { .. }
        | Fact::Read { .. } => return None,
        Fact::TakesData { node, from, data } => {
            let (sender, sequence) = (&data.from, data.sequence);
            let of = data.revision;
            let only = &data.only;
            format!(
                "node {node} takes {sequence} of {sender} from node {from}, of revision {of}, {only}"
            )
        }
        Fact::FedAnew { node, state, .. } => {
            format!("node {node} begins anew from revision {}", state.revision)
        }
        Fact::Installed { node, index, .. } => format!("node {node} installs entry {index}"),
        Fact::Applied { node, advance, .. } => {
            let entry = &advance.entry;
            let events = advance.changes.iter().flat_map(|change| &change.events);
            let events: Vec<String> = events.map(event).collect();
            let refused = advance
                .outcomes
                .iter()
                .filter_map(|(_, result)| result.as_ref().err());
            let refused: Vec<String> = refused.map(ToString::to_string).collect();
            if events.is_empty() && refused.is_empty() {
                return None;
            }
            let (index, term) = (entry.index, entry.term);
            format!(
                "node {node} applies {index} of term {term}: {} {}",
                events.join(", "),
                refused.join(", ")
            )
        }
        other => format!("{other:?}"),
    };
    Some(format!("{:10.3} {text}", now.0 as f64 / 1e6))
}

fn event(event: &Event) -> String {
    match event {
        Event::Room { room, change, .. } => {
            use flotilla_model::event::RoomEvent::{
                ParticipantJoined, ParticipantLeft, ParticipantMoved,
            };
            match change {
                ParticipantJoined(of) => format!(
                    "{room}: {} ({}) joined at {} epoch {}",
                    of.sid, of.identity, of.home, of.epoch
                ),
                ParticipantMoved(of) => format!(
                    "{room}: {} ({}) moved to {} epoch {}",
                    of.sid, of.identity, of.home, of.epoch
                ),
                ParticipantLeft {
                    participant,
                    reason,
                } => format!(
                    "{room}: {} ({}) left {reason:?}",
                    participant.sid, participant.identity
                ),
                other => {
                    let text = format!("{other:?}");
                    format!(
                        "{room}: {}",
                        text.split(['(', ' ', '{']).next().unwrap_or_default()
                    )
                }
            }
        }
        other => format!("{other:?}"),
    }
}
