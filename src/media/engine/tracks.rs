//! What the engine must know of tracks to negotiate them: kind, codec, and who wants them.
//!
//! Commands of different sessions come in any order, so a track may be wanted before it is known.

use std::collections::BTreeMap;

use flotilla_model::id::TrackSid;
use flotilla_model::track::{Kind, Track, TrackCodec};

use crate::command::PeerId;
use crate::peer::sdp::codec::Format;

/// One track.
#[derive(Default)]
pub(super) struct Entry {
    /// Known once the track is published or relayed here.
    pub(super) kind: Option<Kind>,
    /// Known once the publisher's section is negotiated.
    pub(super) format: Option<Format>,
    /// The local publisher.
    pub(super) publisher: Option<PeerId>,
    /// Who wants it, with the stream id for its msid.
    pub(super) subscribers: Vec<(PeerId, String)>,
}

#[derive(Default)]
pub(super) struct Tracks {
    map: BTreeMap<TrackSid, Entry>,
}

impl Tracks {
    pub(super) fn get(&self, track: &TrackSid) -> Option<&Entry> {
        self.map.get(track)
    }

    /// A track is published or relayed here.
    pub(super) fn announce(&mut self, track: &Track, publisher: Option<PeerId>) {
        let entry = self.map.entry(track.sid.clone()).or_default();
        entry.kind = Some(track.kind);
        entry.publisher = publisher;
        entry.format = format(&track.codecs).or(entry.format);
    }

    /// Takes a track's codec over from its description. Says whether it is news.
    pub(super) fn describe(&mut self, track: &TrackSid, codecs: &[TrackCodec]) -> bool {
        match (self.map.get_mut(track), format(codecs)) {
            (Some(entry), Some(format)) => entry.format.replace(format) != Some(format),
            _ => false,
        }
    }

    /// A peer wants a track.
    pub(super) fn subscribe(&mut self, track: &TrackSid, peer: PeerId, stream: String) {
        let entry = self.map.entry(track.clone()).or_default();
        match entry
            .subscribers
            .iter_mut()
            .find(|(subscriber, _)| *subscriber == peer)
        {
            Some((_, known)) => *known = stream,
            None => entry.subscribers.push((peer, stream)),
        }
    }

    /// A peer no longer wants a track.
    pub(super) fn unsubscribe(&mut self, track: &TrackSid, peer: PeerId) {
        if let Some(entry) = self.map.get_mut(track) {
            entry
                .subscribers
                .retain(|(subscriber, _)| *subscriber != peer);
            if entry.is_idle() {
                self.map.remove(track);
            }
        }
    }

    /// Ends a track.
    pub(super) fn remove(&mut self, track: &TrackSid) -> Option<Entry> {
        self.map.remove(track)
    }

    /// A peer is gone: it wants nothing and what it published has no source.
    pub(super) fn remove_peer(&mut self, peer: PeerId) {
        self.map.retain(|_, entry| {
            entry
                .subscribers
                .retain(|(subscriber, _)| *subscriber != peer);
            if entry.publisher == Some(peer) {
                entry.publisher = None;
                entry.kind = None;
            }
            !entry.is_idle()
        });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.kind.is_none() && self.subscribers.is_empty()
    }
}

fn format(codecs: &[TrackCodec]) -> Option<Format> {
    codecs
        .first()
        .and_then(|codec| Format::from_mime(&codec.mime, &codec.fmtp))
}
