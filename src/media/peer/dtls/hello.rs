//! The SRTP profiles that a ClientHello offers (RFC 5764 §4.1.1), and no more of it.

use crate::peer::srtp::Profile;

/// Handshake type of a ClientHello.
const CLIENT_HELLO: u8 = 1;
/// Extension type of `use_srtp`.
const USE_SRTP: u16 = 14;
/// Extensions looked at.
const EXTENSIONS_MAX: usize = 64;

/// IANA's number of a profile.
pub(super) const fn profile_number(profile: Profile) -> u16 {
    match profile {
        Profile::Aes128CmSha1_80 => 0x0001,
        Profile::Aes128Gcm => 0x0007,
    }
}

/// Numbers of the offered profiles, none if the client does not want SRTP. `None` if the handshake
/// message, given with its header, is no ClientHello.
pub(super) fn srtp_profiles(message: &[u8]) -> Option<Vec<u16>> {
    let (header, mut body) = message.split_at_checked(12)?;
    if header.first() != Some(&CLIENT_HELLO) {
        return None;
    }
    let body = &mut body;
    take(body, 2 + 32)?; // version, random
    take_prefixed(body, 1)?; // session id
    take_prefixed(body, 1)?; // cookie
    take_prefixed(body, 2)?; // cipher suites
    take_prefixed(body, 1)?; // compression methods
    if body.is_empty() {
        return Some(Vec::new());
    }
    let mut extensions = take_prefixed(body, 2)?;
    for _ in 0..EXTENSIONS_MAX {
        if extensions.is_empty() {
            break;
        }
        let kind = take(&mut extensions, 2)?;
        let mut value = take_prefixed(&mut extensions, 2)?;
        if kind == USE_SRTP.to_be_bytes() {
            let profiles = take_prefixed(&mut value, 2)?;
            return Some(
                profiles
                    .chunks_exact(2)
                    .map(|p| u16::from_be_bytes([p[0], p[1]]))
                    .collect(),
            );
        }
    }
    Some(Vec::new())
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (front, back) = rest.split_at_checked(len)?;
    *rest = back;
    Some(front)
}

/// Takes what a length of `width` bytes stands before.
fn take_prefixed<'a>(rest: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let len = take(rest, width)?
        .iter()
        .fold(0, |len, byte| len << 8 | usize::from(*byte));
    take(rest, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut message = vec![CLIENT_HELLO, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&[0xfe, 0xfd]);
        message.extend_from_slice(&[7; 32]);
        message.extend_from_slice(&[0, 2, 9, 9, 0, 2, 0xc0, 0x2b, 1, 0]);
        message.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        message.extend_from_slice(extensions);
        message
    }

    #[test]
    fn profiles_are_found_among_extensions() {
        let message = hello(&[
            0, 23, 0, 0, 0, 14, 0, 9, 0, 6, 0, 8, 0, 7, 0, 1, 0, 0, 10, 0, 1, 5,
        ]);
        assert_eq!(srtp_profiles(&message), Some(vec![8, 7, 1]));
        assert_eq!(srtp_profiles(&hello(&[0, 23, 0, 0])), Some(vec![]));
    }

    #[test]
    fn truncated_hellos_are_refused() {
        let message = hello(&[0, 14, 0, 5, 0, 2, 0, 7, 0]);
        assert_eq!(srtp_profiles(&message), Some(vec![7]));
        for len in 0..message.len() {
            let profiles = srtp_profiles(&message[..len]);
            assert!(profiles.is_none_or(|profiles| profiles.is_empty()), "{len}");
        }
    }
}
