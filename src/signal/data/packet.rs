//! `livekit.DataPacket` as bytes: read and rewritten field by field, unknown fields kept.
//!
//! Clients put fields into packets that no server knows yet, and receivers must get them. So the
//! packet is never decoded into a message; a walker over the wire format (tag, wire type, payload)
//! replaces the fields that are the server's to set and copies all others.

use bytes::Bytes;
use flotilla_model::id::Identity;
use thiserror::Error;

/// Field numbers of `livekit.DataPacket`'s content.
pub mod content {
    /// `UserPacket`.
    pub const USER: u32 = 2;
    /// `ActiveSpeakerUpdate`: the server's to send.
    pub const SPEAKER: u32 = 3;
    /// `Transcription`: only agents send it.
    pub const TRANSCRIPTION: u32 = 7;
    /// `MetricsBatch`: only for those who may see metrics.
    pub const METRICS: u32 = 8;
    /// `DataStream.Header`.
    pub const STREAM_HEADER: u32 = 13;
    /// `DataStream.Chunk`.
    pub const STREAM_CHUNK: u32 = 14;
    /// `DataStream.Trailer`.
    pub const STREAM_TRAILER: u32 = 15;
}

const KIND: u32 = 1;
const PARTICIPANT_IDENTITY: u32 = 4;
const DESTINATION_IDENTITIES: u32 = 5;
const SEQUENCE: u32 = 16;
const PARTICIPANT_SID: u32 = 17;

const USER_PARTICIPANT_SID: u32 = 1;
const USER_DESTINATION_SIDS: u32 = 3;
const USER_PARTICIPANT_IDENTITY: u32 = 5;
const USER_DESTINATION_IDENTITIES: u32 = 6;

/// Most destinations that a packet may name.
const DESTINATIONS_MAX: usize = 10_000;

/// Why a packet is discarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PacketError {
    /// A tag, length or number is cut off or too long.
    #[error("data packet is malformed")]
    Malformed,
    /// A text is not UTF-8.
    #[error("data packet holds a text that is not UTF-8")]
    Text,
    /// Names too many destinations.
    #[error("data packet names too many destinations")]
    Destinations,
}

/// What a packet says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Inspected {
    /// Identity the sender wrote into it.
    pub participant_identity: String,
    /// Who is to get it, from the packet or, failing that, from its `UserPacket`.
    pub destinations: Vec<Identity>,
    /// Sids that old clients name instead.
    pub destination_sids: Vec<String>,
    /// Sender's number.
    pub sequence: u32,
    /// Field number of its content; 0: none that we know.
    pub content: u32,
}

/// What the server writes into a packet.
#[derive(Clone, Copy, Debug)]
pub struct Rewrite<'a> {
    /// `kind`: lossy or not.
    pub lossy: bool,
    /// Sender's identity; empty: hidden.
    pub identity: &'a str,
    /// Sender's sid; empty: hidden.
    pub sid: &'a str,
    /// Number; 0: none.
    pub sequence: u32,
    /// Who is to get it.
    pub destinations: &'a [Identity],
}

/// Reads what the server needs to know.
///
/// # Errors
/// [`PacketError`] if the bytes are not a protobuf message.
pub fn inspect(packet: &[u8]) -> Result<Inspected, PacketError> {
    let mut seen = Inspected::default();
    let mut user_destinations = Vec::new();
    for field in Fields(packet) {
        let field = field?;
        match (field.number, field.value) {
            (PARTICIPANT_IDENTITY, Value::Bytes(text)) => {
                seen.participant_identity = string(text)?;
            }
            (DESTINATION_IDENTITIES, Value::Bytes(text)) => {
                push(&mut seen.destinations, Identity(string(text)?))?;
            }
            (SEQUENCE, Value::Varint(number)) => seen.sequence = number as u32,
            (number, Value::Bytes(bytes)) if is_content(number) => {
                seen.content = number;
                if number == content::USER {
                    inspect_user(bytes, &mut seen.destination_sids, &mut user_destinations)?;
                }
            }
            _ => {}
        }
    }
    if seen.destinations.is_empty() {
        seen.destinations = user_destinations;
    }
    Ok(seen)
}

fn inspect_user(
    user: &[u8],
    sids: &mut Vec<String>,
    identities: &mut Vec<Identity>,
) -> Result<(), PacketError> {
    for field in Fields(user) {
        let field = field?;
        match (field.number, field.value) {
            (USER_DESTINATION_SIDS, Value::Bytes(text)) => push(sids, string(text)?)?,
            (USER_DESTINATION_IDENTITIES, Value::Bytes(text)) => {
                push(identities, Identity(string(text)?))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), PacketError> {
    if list.len() >= DESTINATIONS_MAX {
        return Err(PacketError::Destinations);
    }
    list.push(item);
    Ok(())
}

/// The oneof `value`; 9 to 12 are chat and RPC, 6 is SIP DTMF, 18 is encrypted.
fn is_content(number: u32) -> bool {
    matches!(number, 2 | 3 | 6..=15 | 18)
}

/// Writes the server's fields and copies all others as they are.
///
/// # Errors
/// [`PacketError`] if the bytes are not a protobuf message.
pub fn rewrite(packet: &[u8], with: &Rewrite<'_>) -> Result<Bytes, PacketError> {
    let mut out =
        Vec::with_capacity(packet.len() + with.identity.len() * 2 + with.sid.len() * 2 + 32);
    if with.lossy {
        put_varint_field(&mut out, KIND, 1);
    }
    put_text(&mut out, PARTICIPANT_IDENTITY, with.identity);
    for destination in with.destinations {
        put_text(&mut out, DESTINATION_IDENTITIES, destination.as_str());
    }
    for field in Fields(packet) {
        let field = field?;
        match (field.number, field.value) {
            (
                KIND | PARTICIPANT_IDENTITY | DESTINATION_IDENTITIES | SEQUENCE | PARTICIPANT_SID,
                _,
            ) => {}
            (content::USER, Value::Bytes(user)) => {
                let user = rewrite_user(user, with)?;
                put_bytes(&mut out, content::USER, &user);
            }
            _ => out.extend_from_slice(field.raw),
        }
    }
    if with.sequence != 0 {
        put_varint_field(&mut out, SEQUENCE, u64::from(with.sequence));
    }
    put_text(&mut out, PARTICIPANT_SID, with.sid);
    Ok(out.into())
}

fn rewrite_user(user: &[u8], with: &Rewrite<'_>) -> Result<Vec<u8>, PacketError> {
    let mut out = Vec::with_capacity(user.len() + with.identity.len() + with.sid.len() + 8);
    put_text(&mut out, USER_PARTICIPANT_SID, with.sid);
    for field in Fields(user) {
        let field = field?;
        if !matches!(
            field.number,
            USER_PARTICIPANT_SID | USER_PARTICIPANT_IDENTITY | USER_DESTINATION_IDENTITIES
        ) {
            out.extend_from_slice(field.raw);
        }
    }
    put_text(&mut out, USER_PARTICIPANT_IDENTITY, with.identity);
    for destination in with.destinations {
        put_text(&mut out, USER_DESTINATION_IDENTITIES, destination.as_str());
    }
    Ok(out)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, (u64::from(number) << 3) | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// An empty text is not written, as proto3 has it.
fn put_text(out: &mut Vec<u8>, number: u32, text: &str) {
    if !text.is_empty() {
        put_bytes(out, number, text.as_bytes());
    }
}

fn string(bytes: &[u8]) -> Result<String, PacketError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(PacketError::Text),
    }
}

struct Field<'a> {
    number: u32,
    value: Value<'a>,
    /// Tag and value as they stood.
    raw: &'a [u8],
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// Walks the top level of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<Field<'a>, PacketError> {
        let start = self.0;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| PacketError::Malformed)?;
        if number == 0 || number > 0x1fff_ffff {
            return Err(PacketError::Malformed);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.fixed(8)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| PacketError::Malformed)?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.fixed(4)?,
            // Groups have been gone since proto3 began.
            _ => return Err(PacketError::Malformed),
        };
        let raw = &start[..start.len() - self.0.len()];
        Ok(Field { number, value, raw })
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], PacketError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(PacketError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn fixed(&mut self, length: usize) -> Result<Value<'a>, PacketError> {
        self.take(length)?;
        Ok(Value::Fixed)
    }

    fn varint(&mut self) -> Result<u64, PacketError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(PacketError::Malformed)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(PacketError::Malformed)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, PacketError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
#[expect(deprecated, reason = "the deprecated fields are what is rewritten")]
mod tests {
    use super::*;
    use livekit_protocol::{DataPacket, UserPacket, data_packet};
    use proptest::prelude::*;
    use prost::Message as _;

    const UNKNOWN: [u8; 6] = [0xc2, 0x3e, 0x03, b'n', b'e', b'w']; // field 1000

    fn packet() -> DataPacket {
        DataPacket {
            participant_identity: "forged".into(),
            destination_identities: vec!["bob".into(), "eve".into()],
            sequence: 9,
            value: Some(data_packet::Value::User(UserPacket {
                payload: b"hello".to_vec(),
                topic: Some("greetings".into()),
                participant_identity: "forged too".into(),
                destination_sids: vec!["PA_bob".into()],
                ..UserPacket::default()
            })),
            ..DataPacket::default()
        }
    }

    fn with(destinations: &[Identity]) -> Rewrite<'_> {
        Rewrite {
            lossy: true,
            identity: "alice",
            sid: "PA_alice",
            sequence: 7,
            destinations,
        }
    }

    #[test]
    fn inspection_reads_what_the_server_needs() {
        let seen = inspect(&packet().encode_to_vec()).expect("well formed");
        assert_eq!(seen.participant_identity, "forged");
        assert_eq!(
            seen.destinations,
            vec![Identity::from("bob"), Identity::from("eve")]
        );
        assert_eq!(seen.destination_sids, vec!["PA_bob".to_owned()]);
        assert_eq!((seen.sequence, seen.content), (9, content::USER));
    }

    #[test]
    fn destinations_of_the_user_packet_count_when_the_packet_has_none() {
        let packet = DataPacket {
            value: Some(data_packet::Value::User(UserPacket {
                destination_identities: vec!["bob".into()],
                ..UserPacket::default()
            })),
            ..DataPacket::default()
        };
        let seen = inspect(&packet.encode_to_vec()).expect("well formed");
        assert_eq!(seen.destinations, vec![Identity::from("bob")]);
    }

    #[test]
    fn rewriting_sets_the_servers_fields_and_keeps_the_rest() {
        let mut bytes = packet().encode_to_vec();
        bytes.extend(UNKNOWN);
        let destinations = [Identity::from("bob")];
        let out = rewrite(&bytes, &with(&destinations)).expect("well formed");
        assert!(out.windows(UNKNOWN.len()).any(|window| window == UNKNOWN));
        let out = DataPacket::decode(out).expect("well formed");
        assert_eq!(out.kind, data_packet::Kind::Lossy as i32);
        assert_eq!(out.participant_identity, "alice");
        assert_eq!(out.participant_sid, "PA_alice");
        assert_eq!(out.sequence, 7);
        assert_eq!(out.destination_identities, vec!["bob".to_owned()]);
        let Some(data_packet::Value::User(user)) = out.value else {
            panic!("user packet expected");
        };
        assert_eq!(user.participant_identity, "alice");
        assert_eq!(user.participant_sid, "PA_alice");
        assert_eq!(user.payload, b"hello");
        assert_eq!(user.topic.as_deref(), Some("greetings"));
    }

    #[test]
    fn a_hidden_sender_leaves_no_name() {
        let out = rewrite(
            &packet().encode_to_vec(),
            &Rewrite {
                lossy: false,
                identity: "",
                sid: "",
                sequence: 0,
                destinations: &[],
            },
        )
        .expect("well formed");
        let out = DataPacket::decode(out).expect("well formed");
        assert_eq!(out.participant_identity, "");
        assert_eq!(out.participant_sid, "");
        assert_eq!((out.kind, out.sequence), (0, 0));
        assert!(out.destination_identities.is_empty());
    }

    #[test]
    fn broken_packets_are_refused() {
        for bytes in [
            &[0x00][..],
            &[0x0a],
            &[0x0a, 0x05, 1],
            &[0x0b, 0x0c],
            &[0xff; 12],
            &[0x22, 0x01, 0xff],
        ] {
            assert!(inspect(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let seen = inspect(&bytes);
            let out = rewrite(&bytes, &with(&[]));
            if let (Ok(seen), Ok(out)) = (seen, out) {
                let again = inspect(&out).expect("what was rewritten is well formed");
                prop_assert_eq!(again.participant_identity, "alice");
                prop_assert_eq!(again.sequence, 7);
                prop_assert_eq!(again.content, seen.content);
            }
        }

        #[test]
        fn rewriting_agrees_with_the_library(payload in proptest::collection::vec(any::<u8>(), 0..64), sequence in any::<u32>(), sid in "[A-Z_a-z0-9]{0,20}") {
            let mut packet = packet();
            if let Some(data_packet::Value::User(user)) = &mut packet.value {
                user.payload.clone_from(&payload);
            }
            let out = rewrite(&packet.encode_to_vec(), &Rewrite { lossy: false, identity: "alice", sid: &sid, sequence, destinations: &[] }).expect("well formed");
            let out = DataPacket::decode(out).expect("well formed");
            prop_assert_eq!(out.sequence, sequence);
            prop_assert_eq!(&out.participant_sid, &sid);
            let Some(data_packet::Value::User(user)) = out.value else { panic!("user packet expected") };
            prop_assert_eq!(user.payload, payload);
        }
    }
}
