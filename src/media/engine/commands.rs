//! What the engine does with each order of the shell.

use std::time::Instant;

use bytes::Bytes;
use flotilla_model::id::{Epoch, TrackSid};
use flotilla_model::track::Track;

use super::Engine;
use super::peer::{Peer, Plan};
use crate::command::{Channel, Command, PeerId, PeerRole, Settings};
use crate::discard::Discard;
use crate::event::Event;
use crate::peer::sctp::SendError;

impl Engine {
    pub(super) fn execute(&mut self, now: Instant, command: Command) {
        match command {
            Command::CreatePeer {
                peer,
                role,
                negotiated_channels,
                restore,
            } => {
                let plan = Plan {
                    role,
                    negotiated_channels,
                    restore,
                };
                self.create_peer(now, peer, plan);
            }
            Command::GoOn {
                peer,
                role,
                negotiated_channels,
                lender,
                from,
            } => self.go_on(now, peer, (role, negotiated_channels), lender, *from),
            Command::Export { peer } => self.checkpoint(now, peer),
            Command::ClosePeer { peer } => self.close_peer(now, peer),
            Command::Offer { peer, id, sdp } => self.take_offer(now, peer, id, &sdp),
            Command::Answer { peer, id, sdp } => self.take_answer(now, peer, id, &sdp),
            Command::RestartIce { peer } => self.restart_ice(now, peer),
            Command::SetQuiet { peer: id, quiet } => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.quiet = quiet;
                    self.advance(now, id);
                }
            }
            Command::Candidate { candidate, .. } => self.take_candidate(&candidate),
            Command::Publish { peer, track, epoch } => self.publish(now, peer, track, epoch),
            Command::Unpublish { track } => self.unpublish(now, &track),
            Command::SetMuted { track, muted } => self.router.set_muted(now, &track, muted),
            Command::Subscribe {
                peer,
                track,
                stream,
                settings,
            } => {
                self.subscribe(now, peer, track, stream, settings);
            }
            Command::Unsubscribe { peer, track } => self.unsubscribe(now, peer, &track),
            Command::SetSettings {
                peer,
                track,
                settings,
            } => {
                self.router.set_settings(now, peer, &track, settings);
            }
            Command::SendData {
                peer,
                channel,
                payload,
            } => {
                self.send_data(now, peer, channel, payload);
            }
            Command::DataSafe { peer: id, number } => {
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.transport.data_safe(now, number);
                    self.advance(now, id);
                }
            }
            Command::SetLink {
                node,
                boot,
                address,
            } => {
                self.router.set_link(now, node, boot, address);
            }
            Command::SetDetour { node, via } => self.router.set_detour(now, node, via),
            Command::RemoveLink { node } => self.router.remove_link(now, node),
            Command::RelayTo { track, node } => self.router.relay_to(now, &track, node),
            Command::StopRelayTo { track, node } => self.router.stop_relay_to(now, &track, node),
            Command::RelayFrom { track, node, epoch } => {
                self.router.relay_from(now, &track, node, epoch);
                self.announce(now, &track, None);
            }
        }
    }

    pub(super) fn create_peer(&mut self, now: Instant, id: PeerId, plan: Plan) {
        let Some(plan) = self.welcome(now, id, plan) else {
            return;
        };
        if self.peers.contains_key(&id) {
            tracing::warn!(peer = id.0, "a peer was created twice");
            return;
        }
        if self.peers.len() >= self.config.peers_max {
            let reason = "this shard has no room for another peer connection";
            self.push_event(Event::Failed { peer: id, reason });
            return;
        }
        let peer = match Peer::new(now, &self.config, plan, &mut self.rng) {
            Ok(peer) => peer,
            Err(reason) => {
                self.push_event(Event::Failed { peer: id, reason });
                return;
            }
        };
        self.ufrags
            .insert(peer.transport.local_credentials().ufrag.clone(), id);
        self.peers.insert(id, Box::new(peer));
        self.advance(now, id);
    }

    /// Silently: a client that leaves closes its side itself, and one that moves to another node
    /// must not see its data channels die.
    pub(super) fn close_peer(&mut self, now: Instant, id: PeerId) {
        let Some(mut peer) = self.peers.remove(&id) else {
            return;
        };
        peer.clear_addresses(id, &mut self.addresses);
        self.ufrags.retain(|_, owner| *owner != id);
        self.tracks.remove_peer(id);
        self.router.remove_peer(now, id);
        self.return_path(id);
    }

    fn take_offer(&mut self, now: Instant, id: PeerId, number: u32, sdp: &str) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let outcome = match peer.negotiation.read_offer(sdp) {
            Ok(offer) => {
                if offer.restarts_ice {
                    peer.transport.restart_ice(now, &mut self.rng);
                    self.ufrags
                        .insert(peer.transport.local_credentials().ufrag.clone(), id);
                }
                let answered = peer.answer(now, offer, &self.config, &mut self.rng);
                if let Ok(written) = &answered {
                    peer.described.agree(sdp.to_owned(), written.sdp.clone());
                }
                answered.map_err(|refusal| refusal.to_string())
            }
            Err(refusal) => Err(refusal.to_string()),
        };
        match outcome {
            Ok(written) => {
                self.push_event(Event::Answer {
                    peer: id,
                    id: number,
                    sdp: written.sdp,
                    mid_to_track: written.mid_to_track,
                });
                self.sync(now, id);
            }
            Err(reason) => self.refuse_description(id, number, reason),
        }
        self.advance(now, id);
    }

    fn take_answer(&mut self, now: Instant, id: PeerId, number: u32, sdp: &str) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        let outcome = peer.negotiation.handle_answer(now, number, sdp);
        let outcome = outcome
            .map_err(|refusal| refusal.to_string())
            .and_then(|()| peer.take_remote(now).map_err(|refusal| refusal.to_string()));
        if outcome.is_ok() {
            peer.described.answered(sdp);
        }
        match outcome {
            Ok(()) => self.sync(now, id),
            Err(reason) => self.refuse_description(id, number, reason),
        }
        self.advance(now, id);
    }

    fn refuse_description(&mut self, peer: PeerId, id: u32, reason: String) {
        self.push_event(Event::DescriptionRefused { peer, id, reason });
    }

    fn restart_ice(&mut self, now: Instant, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.role == PeerRole::Subscriber {
            // Credentials that no client has seen are as good as new.
            if !peer.is_restored || peer.negotiation.has_offered() {
                peer.transport.restart_ice(now, &mut self.rng);
                self.ufrags
                    .insert(peer.transport.local_credentials().ufrag.clone(), id);
            }
            peer.negotiation.restart(now);
            self.advance(now, id);
        }
    }

    /// A lite agent learns addresses from checks; an empty candidate is the end of them.
    fn take_candidate(&mut self, candidate: &str) {
        let value = candidate.strip_prefix("a=").unwrap_or(candidate);
        if value.is_empty() || value.starts_with("candidate:") {
            self.candidates += 1;
        } else {
            self.discards.add(Discard::Malformed);
        }
    }

    fn publish(&mut self, now: Instant, id: PeerId, track: Box<Track>, epoch: Epoch) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.role == PeerRole::Subscriber || !peer.negotiation.publish(now, track.clone()) {
            tracing::warn!(peer = id.0, track = %track.sid, "a track cannot be published");
            return;
        }
        self.router.publish(now, id, &track, epoch);
        self.announce(now, &track, Some(id));
        self.sync(now, id);
        if self.peers.get(&id).is_some_and(|peer| peer.is_unmissed) {
            // It is connected already: its picture is missing now.
            self.router.peer_resumed(now, id);
        }
        self.advance(now, id);
    }

    /// A track became known here: those who waited for it can have it negotiated.
    fn announce(&mut self, now: Instant, track: &Track, publisher: Option<PeerId>) {
        self.tracks.announce(track, publisher);
        let Some(entry) = self.tracks.get(&track.sid) else {
            return;
        };
        let (format, subscribers) = (entry.format, entry.subscribers.clone());
        for (id, stream) in subscribers {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.negotiation
                    .subscribe(now, &track.sid, &stream, track.kind, format);
                self.router
                    .set_send(now, id, peer.negotiation.send_sections());
                self.advance(now, id);
            }
        }
    }

    fn unpublish(&mut self, now: Instant, track: &TrackSid) {
        self.router.unpublish(now, track);
        let Some(entry) = self.tracks.remove(track) else {
            return;
        };
        if let Some(id) = entry.publisher
            && let Some(peer) = self.peers.get_mut(&id)
        {
            peer.negotiation.unpublish(now, track);
            self.sync(now, id);
            self.advance(now, id);
        }
        for (id, _) in entry.subscribers {
            self.stop_sending(now, id, track);
        }
    }

    pub(super) fn subscribe(
        &mut self,
        now: Instant,
        id: PeerId,
        track: TrackSid,
        stream: String,
        settings: Settings,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.role == PeerRole::Publisher {
            tracing::warn!(peer = id.0, %track, "a v0 publisher connection receives no tracks");
            return;
        }
        let known = self.tracks.get(&track);
        let known = known.and_then(|entry| Some((entry.kind?, entry.format)));
        let assumed = || Some((peer.negotiation.assumed_kind(&track)?, None));
        if let Some((kind, format)) = known.or_else(assumed)
            && !peer
                .negotiation
                .subscribe(now, &track, &stream, kind, format)
        {
            tracing::warn!(peer = id.0, %track, "a peer subscribes to too many tracks");
            return;
        }
        self.router.subscribe(now, id, &track, settings);
        self.tracks.subscribe(&track, id, stream);
        self.advance(now, id);
    }

    fn unsubscribe(&mut self, now: Instant, id: PeerId, track: &TrackSid) {
        self.tracks.unsubscribe(track, id);
        self.router.unsubscribe(now, id, track);
        self.stop_sending(now, id, track);
    }

    fn stop_sending(&mut self, now: Instant, id: PeerId, track: &TrackSid) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.negotiation.unsubscribe(now, track);
            self.router
                .set_send(now, id, peer.negotiation.send_sections());
            self.advance(now, id);
        }
    }

    fn send_data(&mut self, now: Instant, id: PeerId, channel: Channel, payload: Bytes) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        match peer.transport.send_data(now, channel, payload) {
            Ok(()) => {}
            // What was promised to arrive cannot be dropped: the client must start anew.
            Err(SendError::Full) if channel == Channel::Reliable => {
                let reason = "the client does not take its reliable data";
                self.push_event(Event::Failed { peer: id, reason });
            }
            Err(_) => self.data_refused += 1,
        }
        self.advance(now, id);
    }

    /// Reports a peer's tracks whose encodings became known better. Gives those whose codec did.
    pub(super) fn report_tracks(&mut self, id: PeerId) -> Vec<TrackSid> {
        let Some(peer) = self.peers.get_mut(&id) else {
            return Vec::new();
        };
        let mut formats = Vec::new();
        for (track, codecs) in peer.negotiation.take_described() {
            if self.tracks.describe(&track, &codecs) {
                formats.push(track.clone());
            }
            self.push_event(Event::TrackDescribed {
                peer: id,
                track,
                codecs,
            });
        }
        formats
    }

    /// A track's codec became known or changed: its subscribers' payload types follow.
    pub(super) fn apply_format(&mut self, now: Instant, track: &TrackSid) {
        let Some(entry) = self.tracks.get(track) else {
            return;
        };
        let Some(format) = entry.format else {
            return;
        };
        let subscribers: Vec<PeerId> = entry.subscribers.iter().map(|(peer, _)| *peer).collect();
        for id in subscribers {
            if let Some(peer) = self.peers.get_mut(&id)
                && peer.negotiation.set_format(track, format)
            {
                self.router
                    .set_send(now, id, peer.negotiation.send_sections());
            }
        }
    }
}
