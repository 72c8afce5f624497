//! Binding requests read and answered with rtc-stun. Short-term credentials (RFC 8489 §9.1) and
//! the attributes of ICE (RFC 8445 §7.1); nothing is believed that stands behind the signature.

use std::net::SocketAddr;

use bytes::Bytes;
use rtc_crypto::RTCCrypto;
use rtc_crypto::providers::AwsLcRsCrypto;
use rtc_stun::attributes::{
    ATTR_FINGERPRINT, ATTR_ICE_CONTROLLED, ATTR_MESSAGE_INTEGRITY, ATTR_PRIORITY,
    ATTR_USE_CANDIDATE, ATTR_USERNAME, AttrType, RawAttribute,
};
use rtc_stun::error_code::{CODE_ROLE_CONFLICT, CODE_UNKNOWN_ATTRIBUTE, ErrorCodeAttribute};
use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    BINDING_ERROR, BINDING_REQUEST, BINDING_SUCCESS, MAGIC_COOKIE, Message, MessageType, Setter,
};
use rtc_stun::uattrs::UnknownAttributes;
use rtc_stun::xoraddr::XorMappedAddress;

use crate::discard::Discard;
use crate::peer::contain::contain;
use crate::via;

/// Bytes of a STUN header.
const HEADER_LEN: usize = 20;
/// Longest message read; ICE checks have about 120 bytes.
const MESSAGE_LEN_MAX: usize = 1280;
/// Attributes read at most.
const ATTRIBUTES_MAX: usize = 32;
/// Our crypto; it has no state.
const CRYPTO: &dyn RTCCrypto = &AwsLcRsCrypto;

/// Our user fragment in a binding request, without checking or copying anything. The engine finds
/// the peer by it; `None` if the message is no binding request of ICE.
#[must_use]
pub fn request_ufrag(message: &[u8]) -> Option<&str> {
    let (header, mut rest) = message.split_first_chunk::<HEADER_LEN>()?;
    let &[t0, t1, l0, l1, c0, c1, c2, c3, ..] = header;
    if [t0, t1] != [0, 1] || u32::from_be_bytes([c0, c1, c2, c3]) != MAGIC_COOKIE {
        return None;
    }
    rest = rest.get(..usize::from(u16::from_be_bytes([l0, l1])))?;
    for _ in 0..ATTRIBUTES_MAX {
        let (&[t0, t1, l0, l1], value) = rest.split_first_chunk::<4>()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if u16::from_be_bytes([t0, t1]) == ATTR_USERNAME.0 {
            let username = std::str::from_utf8(value.get(..len)?).ok()?;
            return username.split_once(':').map(|(ours, _)| ours);
        }
        rest = value.get(len.next_multiple_of(4)..)?;
    }
    None
}

/// What a signed request is.
pub(super) enum Verdict {
    /// A connectivity check.
    Check {
        /// The client wants this pair.
        nominates: bool,
    },
    /// The client believes itself controlled, as we are.
    RoleConflict,
    /// It has attributes that must be understood and are not.
    UnknownAttributes(Vec<AttrType>),
}

/// A binding request.
pub(super) struct Request {
    message: Message,
}

impl Request {
    /// Reads a binding request with all that ICE demands of it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Discard> {
        let len = bytes.get(2..4).ok_or(Discard::Malformed)?;
        let len = HEADER_LEN + usize::from(u16::from_be_bytes([len[0], len[1]]));
        if len != bytes.len() || len > MESSAGE_LEN_MAX {
            return Err(Discard::Malformed);
        }
        let message = contain("stun", || {
            let mut message = Message::new();
            message.unmarshal_binary(bytes).map(|()| message)
        });
        let message = message
            .map_err(|_| Discard::StunRefused)?
            .map_err(|_| Discard::Malformed)?;
        if message.typ != BINDING_REQUEST {
            return Err(Discard::StunRefused);
        }
        let attributes = &message.attributes.0;
        if attributes.len() > ATTRIBUTES_MAX {
            return Err(Discard::LimitReached);
        }
        // The fingerprint is the last attribute and the signature stands before it.
        let last_is = |back: usize, wanted: AttrType| {
            let at = attributes.len().checked_sub(back);
            at.and_then(|at| attributes.get(at))
                .is_some_and(|attribute| attribute.typ == wanted)
        };
        let once = |wanted: AttrType| attributes.iter().filter(|a| a.typ == wanted).count() == 1;
        if !last_is(1, ATTR_FINGERPRINT) || !once(ATTR_MESSAGE_INTEGRITY) || !once(ATTR_FINGERPRINT)
        {
            return Err(Discard::Malformed);
        }
        FINGERPRINT
            .check(&message)
            .map_err(|_| Discard::Malformed)?;
        Ok(Self { message })
    }

    /// Our user fragment and the client's.
    pub(super) fn username(&self) -> Option<(&str, &str)> {
        let username = self
            .signed()
            .find(|attribute| attribute.typ == ATTR_USERNAME)?;
        std::str::from_utf8(&username.value).ok()?.split_once(':')
    }

    /// Checks the signature, then says what the request is.
    pub(super) fn verify(&self, pwd: &str) -> Result<Verdict, Discard> {
        // Checking rewrites the length field in place and needs its own copy.
        let mut message = self.message.clone();
        let verified = contain("stun", || {
            MessageIntegrity::check(&mut message, pwd.as_bytes(), CRYPTO)
        });
        verified
            .map_err(|_| Discard::StunRefused)?
            .map_err(|_| Discard::StunRefused)?;

        let known = [
            ATTR_USERNAME,
            ATTR_PRIORITY,
            ATTR_USE_CANDIDATE,
            ATTR_MESSAGE_INTEGRITY,
        ];
        let unknown: Vec<AttrType> = self
            .signed()
            .map(|attribute| attribute.typ)
            .filter(|typ| typ.required() && !known.contains(typ))
            .collect();
        if !unknown.is_empty() {
            return Ok(Verdict::UnknownAttributes(unknown));
        }
        if self.has(ATTR_ICE_CONTROLLED) {
            return Ok(Verdict::RoleConflict);
        }
        Ok(Verdict::Check {
            nominates: self.has(ATTR_USE_CANDIDATE),
        })
    }

    fn has(&self, wanted: AttrType) -> bool {
        self.signed().any(|attribute| attribute.typ == wanted)
    }

    /// The attributes before the signature.
    fn signed(&self) -> impl Iterator<Item = &RawAttribute> {
        self.message
            .attributes
            .0
            .iter()
            .take_while(|a| a.typ != ATTR_MESSAGE_INTEGRITY)
    }

    /// The answer to a check: the address it came from.
    pub(super) fn success(&self, from: SocketAddr, pwd: &str) -> Result<Bytes, Discard> {
        let from = via::plain(from);
        let mapped = XorMappedAddress {
            ip: from.ip(),
            port: from.port(),
        };
        self.answer(BINDING_SUCCESS, vec![Box::new(mapped)], pwd)
    }

    /// The answer to a client that must take the controlling role.
    pub(super) fn role_conflict(&self, pwd: &str) -> Result<Bytes, Discard> {
        let error = ErrorCodeAttribute {
            code: CODE_ROLE_CONFLICT,
            reason: b"Role Conflict".to_vec(),
        };
        self.answer(BINDING_ERROR, vec![Box::new(error)], pwd)
    }

    /// The answer that names what was not understood.
    pub(super) fn unknown_attributes(
        &self,
        unknown: Vec<AttrType>,
        pwd: &str,
    ) -> Result<Bytes, Discard> {
        let reason = b"Unknown Attribute".to_vec();
        let error = ErrorCodeAttribute {
            code: CODE_UNKNOWN_ATTRIBUTE,
            reason,
        };
        let unknown = UnknownAttributes(unknown);
        self.answer(BINDING_ERROR, vec![Box::new(error), Box::new(unknown)], pwd)
    }

    fn answer(
        &self,
        typ: MessageType,
        attributes: Vec<Box<dyn Setter>>,
        pwd: &str,
    ) -> Result<Bytes, Discard> {
        let signature =
            MessageIntegrity::new_short_term_integrity_with_provider(pwd.to_owned(), CRYPTO);
        let mut setters: Vec<Box<dyn Setter + '_>> =
            vec![Box::new(self.message.transaction_id), Box::new(typ)];
        setters.extend(
            attributes
                .into_iter()
                .map(|attribute| attribute as Box<dyn Setter>),
        );
        setters.push(Box::new(signature));
        setters.push(Box::new(FINGERPRINT));
        let mut message = Message::new();
        message.build(&setters).map_err(|_| Discard::StunRefused)?;
        Ok(Bytes::from(message.raw))
    }
}
