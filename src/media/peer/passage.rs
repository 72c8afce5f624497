//! What lets another node go on with a connection without a word to its client, where the address
//! moves with it: both ends' ICE credentials, the client's address, and how far each stream was sent.
//!
//! Made by the engine with each checkpoint if the node's address can move, sealed and carried by the
//! shell beside the transport's snapshot, read by the engine of the node that takes the address.

use std::net::SocketAddr;
use std::time::Duration;

use flotilla_model::id::TrackSid;
use serde::{Deserialize, Serialize};

use crate::command::Settings;
use crate::discard::Discard;
use crate::via;

/// First byte of the encoding.
const VERSION: u8 = 1;
/// Longest encoding accepted: a thousand streams are half of it.
const BYTES_MAX: usize = 64 * 1024;
/// Most streams; a client has at most 250 subscriptions.
pub(crate) const STREAMS_MAX: usize = 512;
/// Generations of credentials, as [`crate::peer::ice`] keeps.
const GENERATIONS_MAX: usize = 3;

/// How far another node must begin beyond what a checkpoint says was sent under an SSRC.
///
/// The old home sends at most [`SENT_MAX`] packets of each stream between two checkpoints and makes one every half
/// second, so that even one that is lost on its way leaves room. It must stay below 2^15, from where
/// on a receiver takes the sequence number for one of the past (RFC 3711 §3.3.1); three homes in a row
/// may begin without sending anything.
pub const JUMP: u64 = 1 << 13;

/// Packets that a connection may send of a stream after a checkpoint before it must make another.
pub const SENT_MAX: u32 = 1 << 12;

/// See the module's documentation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// Our user fragments and passwords, newest first.
    pub(crate) credentials: Vec<(String, String)>,
    /// The client's user fragment.
    pub(crate) client_ufrag: Option<String>,
    /// Where the client is.
    pub(crate) client: SocketAddr,
    /// By which of the node's addresses it is heard.
    #[serde(skip)]
    pub(crate) local: via::Local,
    /// What is sent to it.
    pub(crate) streams: Vec<SentStream>,
}

/// One subscription as its client knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SentStream {
    /// Track.
    pub track: TrackSid,
    /// SSRC.
    pub ssrc: u32,
    /// SSRC of retransmissions.
    pub repair_ssrc: u32,
    /// Highest SRTP index sent, or the one before the first.
    pub index: u64,
    /// The same of retransmissions.
    pub repair_index: u64,
    /// Newest timestamp sent.
    pub timestamp: u32,
    /// When that was, in milliseconds before the checkpoint; `None`: nothing was sent.
    pub age_ms: Option<u32>,
    /// Last VP8 picture id sent.
    pub picture: u16,
    /// Last TL0PICIDX sent.
    pub tl0: u8,
    /// What is wanted of the track.
    pub settings: Settings,
}

impl Passage {
    /// Reads what [`Passage::to_bytes`] gave.
    ///
    /// # Errors
    /// [`Discard::TooLarge`], [`Discard::Malformed`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Discard> {
        if bytes.len() > BYTES_MAX {
            return Err(Discard::TooLarge);
        }
        let Some((&VERSION, body)) = bytes.split_first() else {
            return Err(Discard::Malformed);
        };
        match postcard::take_from_bytes::<Self>(body) {
            Ok((passage, [])) if passage.is_sane() => Ok(passage),
            _ => Err(Discard::Malformed),
        }
    }

    /// The bytes of it. They hold ICE passwords.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(postcard::to_stdvec(self).expect("a Vec takes everything"));
        bytes
    }

    /// By which of the node's own addresses the client is heard.
    #[must_use]
    pub const fn local(&self) -> via::Local {
        self.local
    }

    /// The same for the node that goes on, where the moved address has another number.
    #[must_use]
    pub fn heard_by(mut self, local: via::Local) -> Self {
        self.local = local;
        self
    }

    /// The same for whoever goes on with it so much later: the clocks of the streams have run meanwhile. To be
    /// taken too long rather than too short, since players drop what lies before what they have played.
    #[must_use]
    pub fn aged(mut self, by: Duration) -> Self {
        let by = u32::try_from(by.as_millis()).unwrap_or(u32::MAX);
        for stream in &mut self.streams {
            stream.age_ms = stream.age_ms.map(|age| age.saturating_add(by));
        }
        self
    }

    fn is_sane(&self) -> bool {
        let index_max = (1 << 48) - 1 - JUMP;
        let in_range = |index: u64| index <= index_max;
        (1..=GENERATIONS_MAX).contains(&self.credentials.len())
            && self.streams.len() <= STREAMS_MAX
            && self.streams.iter().all(|stream| {
                in_range(stream.index) && in_range(stream.repair_index) && stream.ssrc != 0
            })
    }
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Passage")
            .field("local", &self.local)
            .field("streams", &self.streams.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use flotilla_model::track::Quality;

    use super::*;

    fn passage() -> Passage {
        Passage {
            credentials: vec![("us".into(), "secret".into())],
            client_ufrag: Some("them".into()),
            client: SocketAddr::from(([192, 0, 2, 7], 300)),
            local: 0,
            streams: vec![SentStream {
                track: "TR_1".into(),
                ssrc: 7,
                repair_ssrc: 8,
                index: 300,
                repair_index: 5,
                timestamp: 9,
                age_ms: Some(10),
                picture: 11,
                tl0: 12,
                settings: Settings {
                    enabled: true,
                    quality: Quality::High,
                    fps_max: 0,
                },
            }],
        }
    }

    #[test]
    fn the_encoding_is_fixed() {
        let mut expected = vec![VERSION, 1];
        for text in ["us", "secret"] {
            expected.push(text.len() as u8);
            expected.extend(text.bytes());
        }
        expected.extend([1, 4]);
        expected.extend(b"them");
        expected.extend([0, 192, 0, 2, 7, 0xac, 0x02]);
        expected.extend([1, 4]);
        expected.extend(b"TR_1");
        let quality = postcard::to_stdvec(&Quality::High).expect("encodes");
        expected.extend([7, 8, 0xac, 0x02, 5, 9, 1, 10, 11, 12, 1]);
        expected.extend(quality);
        expected.push(0);
        assert_eq!(passage().to_bytes(), expected);
        let read = Passage::from_bytes(&expected).expect("reads");
        assert_eq!(read, passage());
        assert_eq!(read.heard_by(3).local(), 3);
        let text = format!("{:?}", passage());
        assert!(!text.contains("secret"), "passwords do not show: {text}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = passage().to_bytes();
        for len in 0..good.len() {
            let cut = Passage::from_bytes(&good[..len]);
            assert_eq!(cut, Err(Discard::Malformed), "{len}");
        }
        let mut nobody = passage();
        nobody.credentials.clear();
        let mut used_up = passage();
        used_up.streams[0].index = (1 << 48) - 2;
        for bytes in [
            [&good[..], &[0]].concat(),
            nobody.to_bytes(),
            used_up.to_bytes(),
        ] {
            assert_eq!(Passage::from_bytes(&bytes), Err(Discard::Malformed));
        }
        let huge = vec![VERSION; BYTES_MAX + 1];
        assert_eq!(Passage::from_bytes(&huge), Err(Discard::TooLarge));
    }
}
