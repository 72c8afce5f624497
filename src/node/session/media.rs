//! Translates between a session's words for media and the engine's: one to one.
//!
//! `signal` and `media` do not know each other. A session's two connections become two peers whose
//! numbers follow from the session's.

use flotilla_media::command::{self as engine, PeerId, PeerRole};
use flotilla_media::event as engine_event;
use flotilla_media::peer::transport::TransportSnapshot;
use flotilla_signal::media::{Channel, Command, Event, Restore, Settings, Target};

use super::handover::Transports;

/// A session, unique within the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionKey(pub u64);

impl SessionKey {
    /// The session that a peer belongs to.
    #[must_use]
    pub fn of(peer: PeerId) -> Self {
        Self(peer.0 >> 1)
    }

    /// Its peer for a connection.
    #[must_use]
    pub fn peer(self, target: Target) -> PeerId {
        PeerId(self.0 << 1 | u64::from(target == Target::Subscriber))
    }

    /// Both peers it may have.
    #[must_use]
    pub fn peers(self) -> [PeerId; 2] {
        [self.peer(Target::Publisher), self.peer(Target::Subscriber)]
    }
}

/// Which of its session's connections a peer is.
#[must_use]
pub fn target(peer: PeerId) -> Target {
    if peer.0 & 1 == 0 {
        Target::Publisher
    } else {
        Target::Subscriber
    }
}

fn channel(channel: Channel) -> engine::Channel {
    match channel {
        Channel::Reliable => engine::Channel::Reliable,
        Channel::Lossy => engine::Channel::Lossy,
        Channel::DataTrack => engine::Channel::DataTrack,
    }
}

/// A channel of the engine's as sessions know it.
#[must_use]
pub fn channel_back(channel: engine::Channel) -> Channel {
    match channel {
        engine::Channel::Reliable => Channel::Reliable,
        engine::Channel::Lossy => Channel::Lossy,
        engine::Channel::DataTrack => Channel::DataTrack,
    }
}

fn settings(settings: Settings) -> engine::Settings {
    engine::Settings {
        enabled: settings.enabled,
        quality: settings.quality,
        fps_max: settings.fps_max,
    }
}

/// What a peer of a session that is taken over starts from.
fn restore(
    restore: Option<&Restore>,
    only: Option<Target>,
    transport: Option<Box<TransportSnapshot>>,
) -> Option<Box<engine::Restore>> {
    let restore = restore?;
    let channels = restore.channels.iter();
    let here = |target: Target| only.is_none_or(|only| only == target);
    Some(Box::new(engine::Restore {
        transport: transport.map(|transport| *transport),
        // Clients describe the connection that they receive on.
        descriptions: restore
            .descriptions
            .clone()
            .filter(|_| only != Some(Target::Publisher)),
        channels: channels
            .filter(|(target, ..)| here(*target))
            .map(|(_, label, id)| (channel(*label), *id))
            .collect(),
        sequence: restore.sequence,
    }))
}

/// A session's order as the engine takes it. `single` tells on which peer tracks are received;
/// `transports` are used up by the creation of the peers.
#[must_use]
pub fn command(
    session: SessionKey,
    single: bool,
    command: Command,
    transports: &mut Transports,
) -> Vec<engine::Command> {
    let publisher = session.peer(Target::Publisher);
    let receiving = session.peer(if single {
        Target::Publisher
    } else {
        Target::Subscriber
    });
    let of = |target| session.peer(target);
    let one = match command {
        Command::CreatePeers {
            single: true,
            negotiated_channels,
            restore: what,
        } => engine::Command::CreatePeer {
            peer: publisher,
            role: PeerRole::Single,
            negotiated_channels,
            restore: restore(what.as_deref(), None, transports.publisher.take()),
        },
        Command::CreatePeers {
            single: false,
            negotiated_channels,
            restore: what,
        } => {
            let what = what.as_deref();
            let Transports {
                publisher: publishing,
                subscriber: receiving,
            } = std::mem::take(transports);
            return [
                (Target::Publisher, PeerRole::Publisher, publishing),
                (Target::Subscriber, PeerRole::Subscriber, receiving),
            ]
            .map(|(target, role, transport)| engine::Command::CreatePeer {
                peer: of(target),
                role,
                negotiated_channels,
                restore: restore(what, Some(target), transport),
            })
            .into();
        }
        Command::Offer { target, id, sdp } => engine::Command::Offer {
            peer: of(target),
            id,
            sdp,
        },
        Command::Answer { target, id, sdp } => engine::Command::Answer {
            peer: of(target),
            id,
            sdp,
        },
        Command::RestartIce => engine::Command::RestartIce {
            peer: of(Target::Subscriber),
        },
        Command::SetQuiet { quiet } => {
            let peers = [Target::Publisher, Target::Subscriber].map(of);
            return peers
                .map(|peer| engine::Command::SetQuiet { peer, quiet })
                .into();
        }
        Command::Candidate { target, candidate } => engine::Command::Candidate {
            peer: of(target),
            candidate,
        },
        Command::Publish { track, epoch } => engine::Command::Publish {
            peer: publisher,
            track,
            epoch,
        },
        Command::Unpublish { track } => engine::Command::Unpublish { track },
        Command::SetMuted { track, muted } => engine::Command::SetMuted { track, muted },
        Command::Subscribe {
            track,
            stream,
            settings: wanted,
        } => engine::Command::Subscribe {
            peer: receiving,
            track,
            stream,
            settings: settings(wanted),
        },
        Command::Unsubscribe { track } => engine::Command::Unsubscribe {
            peer: receiving,
            track,
        },
        Command::SetSettings {
            track,
            settings: wanted,
        } => engine::Command::SetSettings {
            peer: receiving,
            track,
            settings: settings(wanted),
        },
        Command::SendData {
            channel: to,
            payload,
        } => engine::Command::SendData {
            peer: receiving,
            channel: channel(to),
            payload,
        },
    };
    vec![one]
}

/// An event of a peer as its session hears it; `None` for those that are no session's, and for what clients
/// send, which has a message of its own.
#[must_use]
pub fn event(event: engine_event::Event) -> Option<(PeerId, Event)> {
    use engine_event::Event as From;
    Some(match event {
        From::Answer {
            peer,
            id,
            sdp,
            mid_to_track,
        } => (
            peer,
            Event::Answer {
                target: target(peer),
                id,
                sdp,
                mid_to_track,
            },
        ),
        From::Offer {
            peer,
            id,
            sdp,
            mid_to_track,
        } => (
            peer,
            Event::Offer {
                target: target(peer),
                id,
                sdp,
                mid_to_track,
            },
        ),
        From::SectionsNeeded { peer, audio, video } => {
            (peer, Event::SectionsNeeded { audio, video })
        }
        From::DescriptionRefused { peer, reason, .. } => (
            peer,
            Event::DescriptionRefused {
                target: target(peer),
                reason,
            },
        ),
        From::Connected { peer } => (
            peer,
            Event::Connected {
                target: target(peer),
            },
        ),
        From::Failed { peer, reason } => (
            peer,
            Event::Failed {
                target: target(peer),
                reason,
            },
        ),
        From::TrackDescribed {
            peer,
            track,
            codecs,
        } => (peer, Event::TrackDescribed { track, codecs }),
        From::TrackStarted { peer, track } => (peer, Event::TrackStarted { track }),
        From::TrackEnded { peer, track } => (peer, Event::TrackEnded { track }),
        From::SubscriptionStarted { peer, track } => (peer, Event::SubscriptionStarted { track }),
        From::ChannelOpen { peer, channel } => (
            peer,
            Event::ChannelOpen {
                target: target(peer),
                channel: channel_back(channel),
            },
        ),
        From::QualityWanted {
            peer,
            track,
            quality,
        } => (peer, Event::QualityWanted { track, quality }),
        From::AudioLevels { .. }
        | From::RelayStarted { .. }
        | From::Checkpoint { .. }
        | From::Data { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_lead_back_to_their_session() {
        let session = SessionKey(7);
        for target in [Target::Publisher, Target::Subscriber] {
            let peer = session.peer(target);
            assert_eq!(SessionKey::of(peer), session);
            assert_eq!(super::target(peer), target);
        }
    }

    #[test]
    fn subscriptions_go_to_the_receiving_peer() {
        let session = SessionKey(1);
        let unsubscribe = |single| {
            let track = "TR_1".into();
            let none = &mut Transports::default();
            match command(session, single, Command::Unsubscribe { track }, none).remove(0) {
                engine::Command::Unsubscribe { peer, .. } => peer,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(unsubscribe(true), session.peer(Target::Publisher));
        assert_eq!(unsubscribe(false), session.peer(Target::Subscriber));
    }
}
