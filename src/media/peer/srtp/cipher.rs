//! The two ciphers of SRTP over aws-lc: key derivation, nonces, sealing and opening in place.
//! Nothing here knows of windows or streams. RFC 3711 §4, RFC 7714 §8-11.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;

use super::{ENCRYPTED, KEY_LEN, Profile, RtpHead};
use crate::discard::Discard;

/// Bytes of a GCM tag.
const GCM_TAG_LEN: usize = 16;
/// Bytes kept of an HMAC-SHA1.
const SHA1_TAG_LEN: usize = 10;
/// Bytes of the word with the SRTCP index.
const INDEX_WORD_LEN: usize = 4;
/// Bytes of an RTCP packet that stay in the clear.
const RTCP_HEAD_LEN: usize = 8;
/// Bytes of an HMAC-SHA1 key.
const AUTH_KEY_LEN: usize = 20;

/// The session keys derived from a master key and salt; no key derivation rate, as in DTLS-SRTP.
pub(super) struct SessionKeys {
    profile: Profile,
    rtp: Keys,
    rtcp: Keys,
}

struct Keys {
    key: [u8; KEY_LEN],
    auth: [u8; AUTH_KEY_LEN],
    salt: [u8; 14],
}

impl SessionKeys {
    /// `None` if a length is wrong.
    pub(super) fn derive(profile: Profile, key: &[u8], salt: &[u8]) -> Option<Self> {
        if key.len() != KEY_LEN || salt.len() != profile.salt_len() {
            return None;
        }
        let cipher = EncryptingKey::ctr(UnboundCipherKey::new(&AES_128, key).ok()?).ok()?;
        // A salt shorter than 112 bits is padded on the right (RFC 7714 §11).
        let mut block = [0; 16];
        block.get_mut(..salt.len())?.copy_from_slice(salt);
        let keys = |labels: [u8; 3]| {
            let [key, auth, salt] = labels;
            Some(Keys {
                key: generate(&cipher, block, key)?,
                auth: generate(&cipher, block, auth)?,
                salt: generate(&cipher, block, salt)?,
            })
        };
        Some(Self {
            profile,
            rtp: keys([0, 1, 2])?,
            rtcp: keys([3, 4, 5])?,
        })
    }
}

/// One output of the key derivation function for `label` (RFC 3711 §4.3).
fn generate<const N: usize>(
    cipher: &EncryptingKey,
    mut block: [u8; 16],
    label: u8,
) -> Option<[u8; N]> {
    block[7] ^= label;
    let mut out = [0; N];
    cipher
        .less_safe_encrypt(&mut out, EncryptionContext::Iv128(FixedLength::from(block)))
        .ok()?;
    Some(out)
}

/// One direction's ciphers.
pub(super) enum Cipher {
    Gcm {
        rtp: GcmKey,
        rtcp: GcmKey,
    },
    /// Boxed: the hash states of its keys take kilobytes.
    Cm(Box<CmKeys>),
}

pub(super) struct CmKeys {
    rtp: CmKey,
    rtcp: CmKey,
}

impl Cipher {
    pub(super) fn new(keys: &SessionKeys) -> Option<Self> {
        Some(match keys.profile {
            Profile::Aes128Gcm => Self::Gcm {
                rtp: GcmKey::new(&keys.rtp)?,
                rtcp: GcmKey::new(&keys.rtcp)?,
            },
            Profile::Aes128CmSha1_80 => Self::Cm(Box::new(CmKeys {
                rtp: CmKey::new(&keys.rtp)?,
                rtcp: CmKey::new(&keys.rtcp)?,
            })),
        })
    }

    pub(super) const fn rtp_overhead(&self) -> usize {
        match self {
            Self::Gcm { .. } => GCM_TAG_LEN,
            Self::Cm(_) => SHA1_TAG_LEN,
        }
    }

    pub(super) const fn rtcp_overhead(&self) -> usize {
        self.rtp_overhead() + INDEX_WORD_LEN
    }

    /// Seals the packet of `len` bytes at the front of `buf`.
    pub(super) fn seal_rtp(
        &self,
        buf: &mut [u8],
        head: RtpHead,
        len: usize,
        index: u64,
    ) -> Option<usize> {
        match self {
            Self::Gcm { rtp, .. } => {
                let nonce = rtp.rtp_nonce(head.ssrc, index);
                let (header, rest) = buf.split_at_mut_checked(head.len)?;
                let (payload, rest) = rest.split_at_mut_checked(len - head.len)?;
                let tag = rtp
                    .key
                    .seal_in_place_separate_tag(nonce, Aad::from(&*header), payload)
                    .ok()?;
                rest.first_chunk_mut::<GCM_TAG_LEN>()?
                    .copy_from_slice(tag.as_ref());
                Some(len + GCM_TAG_LEN)
            }
            Self::Cm(keys) => {
                let rtp = &keys.rtp;
                rtp.apply(buf.get_mut(head.len..len)?, head.ssrc, index)?;
                let (packet, rest) = buf.split_at_mut_checked(len)?;
                let tag = rtp.tag(packet, &rollover(index));
                rest.first_chunk_mut::<SHA1_TAG_LEN>()?
                    .copy_from_slice(&tag);
                Some(len + SHA1_TAG_LEN)
            }
        }
    }

    /// Opens the packet that fills `buf`.
    pub(super) fn open_rtp(
        &self,
        buf: &mut [u8],
        head: RtpHead,
        index: u64,
    ) -> Result<usize, Discard> {
        match self {
            Self::Gcm { rtp, .. } => {
                let nonce = rtp.rtp_nonce(head.ssrc, index);
                let (header, body) = buf.split_at_mut(head.len);
                let payload = rtp
                    .key
                    .open_in_place(nonce, Aad::from(&*header), body)
                    .map_err(|_| Discard::Unauthenticated)?;
                Ok(head.len + payload.len())
            }
            Self::Cm(keys) => {
                let rtp = &keys.rtp;
                let len = buf
                    .len()
                    .checked_sub(SHA1_TAG_LEN)
                    .filter(|len| *len >= head.len);
                let len = len.ok_or(Discard::Malformed)?;
                let (packet, tag) = buf.split_at_mut(len);
                verify_slices_are_equal(&rtp.tag(packet, &rollover(index)), tag)
                    .map_err(|_| Discard::Unauthenticated)?;
                let payload = packet.get_mut(head.len..).ok_or(Discard::Malformed)?;
                rtp.apply(payload, head.ssrc, index)
                    .ok_or(Discard::Malformed)?;
                Ok(len)
            }
        }
    }

    /// Seals the RTCP packet of `len` bytes at the front of `buf`.
    pub(super) fn seal_rtcp(
        &self,
        buf: &mut [u8],
        ssrc: u32,
        len: usize,
        index: u32,
    ) -> Option<usize> {
        let word = (index | ENCRYPTED).to_be_bytes();
        match self {
            Self::Gcm { rtcp, .. } => {
                let nonce = rtcp.rtcp_nonce(ssrc, index);
                let (header, rest) = buf.split_at_mut_checked(RTCP_HEAD_LEN)?;
                let (payload, rest) = rest.split_at_mut_checked(len - RTCP_HEAD_LEN)?;
                let aad = Aad::from(gcm_rtcp_aad(header, word)?);
                let tag = rtcp
                    .key
                    .seal_in_place_separate_tag(nonce, aad, payload)
                    .ok()?;
                let (place, rest) = rest.split_first_chunk_mut::<GCM_TAG_LEN>()?;
                place.copy_from_slice(tag.as_ref());
                *rest.first_chunk_mut()? = word;
                Some(len + GCM_TAG_LEN + INDEX_WORD_LEN)
            }
            Self::Cm(keys) => {
                let rtcp = &keys.rtcp;
                rtcp.apply(buf.get_mut(RTCP_HEAD_LEN..len)?, ssrc, u64::from(index))?;
                let (packet, rest) = buf.split_at_mut_checked(len)?;
                let tag = rtcp.tag(packet, &word);
                let (place, rest) = rest.split_first_chunk_mut::<INDEX_WORD_LEN>()?;
                *place = word;
                rest.first_chunk_mut::<SHA1_TAG_LEN>()?
                    .copy_from_slice(&tag);
                Some(len + SHA1_TAG_LEN + INDEX_WORD_LEN)
            }
        }
    }

    /// The word with the encrypted flag and the index of an SRTCP packet.
    pub(super) fn rtcp_index_word(&self, packet: &[u8]) -> Option<u32> {
        let after = match self {
            Self::Gcm { .. } => 0,
            Self::Cm(_) => SHA1_TAG_LEN,
        };
        if packet.len() < RTCP_HEAD_LEN + self.rtcp_overhead() {
            return None;
        }
        let end = packet.len() - after;
        let word = packet.get(end - INDEX_WORD_LEN..end)?;
        Some(u32::from_be_bytes(word.try_into().ok()?))
    }

    /// Opens the SRTCP packet that fills `buf`; `word` is its [`Cipher::rtcp_index_word`].
    pub(super) fn open_rtcp(&self, buf: &mut [u8], ssrc: u32, word: u32) -> Result<usize, Discard> {
        let index = word & !ENCRYPTED;
        match self {
            Self::Gcm { rtcp, .. } => {
                let end = buf
                    .len()
                    .checked_sub(INDEX_WORD_LEN)
                    .ok_or(Discard::Malformed)?;
                let sealed = buf.get_mut(..end).ok_or(Discard::Malformed)?;
                let (header, body) = sealed
                    .split_at_mut_checked(RTCP_HEAD_LEN)
                    .ok_or(Discard::Malformed)?;
                let aad = gcm_rtcp_aad(header, word.to_be_bytes()).ok_or(Discard::Malformed)?;
                let payload = rtcp
                    .key
                    .open_in_place(rtcp.rtcp_nonce(ssrc, index), Aad::from(aad), body)
                    .map_err(|_| Discard::Unauthenticated)?;
                Ok(RTCP_HEAD_LEN + payload.len())
            }
            Self::Cm(keys) => {
                let rtcp = &keys.rtcp;
                let len = buf.len().checked_sub(SHA1_TAG_LEN + INDEX_WORD_LEN);
                let len = len
                    .filter(|len| *len >= RTCP_HEAD_LEN)
                    .ok_or(Discard::Malformed)?;
                let (packet, trailer) = buf.split_at_mut(len);
                let tag = trailer.get(INDEX_WORD_LEN..).ok_or(Discard::Malformed)?;
                verify_slices_are_equal(&rtcp.tag(packet, &word.to_be_bytes()), tag)
                    .map_err(|_| Discard::Unauthenticated)?;
                let payload = packet.get_mut(RTCP_HEAD_LEN..).ok_or(Discard::Malformed)?;
                rtcp.apply(payload, ssrc, u64::from(index))
                    .ok_or(Discard::Malformed)?;
                Ok(len)
            }
        }
    }
}

/// The rollover counter of an index, as HMAC takes it in.
fn rollover(index: u64) -> [u8; 4] {
    let [_, _, r0, r1, r2, r3, _, _] = index.to_be_bytes();
    [r0, r1, r2, r3]
}

/// What GCM authenticates of an RTCP packet besides the payload (RFC 7714 §9.2).
fn gcm_rtcp_aad(header: &[u8], word: [u8; 4]) -> Option<[u8; 12]> {
    let mut aad = [0; 12];
    let (front, back) = aad.split_at_mut(RTCP_HEAD_LEN);
    front.copy_from_slice(header.get(..RTCP_HEAD_LEN)?);
    back.copy_from_slice(&word);
    Some(aad)
}

/// AES-GCM with its salt.
pub(super) struct GcmKey {
    key: LessSafeKey,
    salt: [u8; 12],
}

impl GcmKey {
    fn new(keys: &Keys) -> Option<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &keys.key).ok()?);
        Some(Self {
            key,
            salt: *keys.salt.first_chunk()?,
        })
    }

    /// RFC 7714 §8.1: two zero bytes, SSRC, rollover counter, sequence number; all over the salt.
    fn rtp_nonce(&self, ssrc: u32, index: u64) -> Nonce {
        let plain = u128::from(ssrc) << 48 | u128::from(index & 0xffff_ffff_ffff);
        self.nonce(plain)
    }

    /// RFC 7714 §9.1: two zero bytes, SSRC, two zero bytes, index.
    fn rtcp_nonce(&self, ssrc: u32, index: u32) -> Nonce {
        self.nonce(u128::from(ssrc) << 48 | u128::from(index))
    }

    fn nonce(&self, plain: u128) -> Nonce {
        let mut nonce = self.salt;
        for (byte, plain) in nonce
            .iter_mut()
            .zip(plain.to_be_bytes().into_iter().skip(4))
        {
            *byte ^= plain;
        }
        Nonce::assume_unique_for_key(nonce)
    }
}

/// AES in counter mode with HMAC-SHA1.
pub(super) struct CmKey {
    key: EncryptingKey,
    auth: hmac::Key,
    salt: [u8; 14],
}

impl CmKey {
    fn new(keys: &Keys) -> Option<Self> {
        Some(Self {
            key: EncryptingKey::ctr(UnboundCipherKey::new(&AES_128, &keys.key).ok()?).ok()?,
            auth: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, &keys.auth),
            salt: keys.salt,
        })
    }

    /// Encrypts or decrypts (RFC 3711 §4.1.1).
    fn apply(&self, bytes: &mut [u8], ssrc: u32, index: u64) -> Option<()> {
        let plain = u128::from(ssrc) << 64 | u128::from(index & 0xffff_ffff_ffff) << 16;
        let mut block = plain.to_be_bytes();
        for (byte, salt) in block.iter_mut().zip(self.salt) {
            *byte ^= salt;
        }
        let context = EncryptionContext::Iv128(FixedLength::from(block));
        self.key.less_safe_encrypt(bytes, context).ok()?;
        Some(())
    }

    /// Tag over a packet and what follows it unsent.
    fn tag(&self, packet: &[u8], suffix: &[u8; 4]) -> [u8; SHA1_TAG_LEN] {
        let mut context = hmac::Context::with_key(&self.auth);
        context.update(packet);
        context.update(suffix);
        let tag = context.sign();
        let mut out = [0; SHA1_TAG_LEN];
        out.iter_mut()
            .zip(tag.as_ref())
            .for_each(|(out, byte)| *out = *byte);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).expect("digits are ASCII");
            u8::from_str_radix(text, 16).expect("digits were picked")
        };
        digits.chunks(2).map(pair).collect()
    }

    fn array<const N: usize>(text: &str) -> [u8; N] {
        hex(text).try_into().expect("as many as asked for")
    }

    /// RFC 3711 Appendix B.3.
    #[test]
    fn key_derivation_of_rfc_3711() {
        let keys = SessionKeys::derive(
            Profile::Aes128CmSha1_80,
            &hex("E1F97A0D3E018BE0D64FA32C06DE4139"),
            &hex("0EC675AD498AFEEBB6960B3AABE6"),
        )
        .expect("lengths are right");
        assert_eq!(keys.rtp.key, array("C61E7A93744F39EE10734AFE3FF7A087"));
        assert_eq!(keys.rtp.salt, array("30CBBC08863D8C85D49DB34A9AE1"));
        assert_eq!(
            keys.rtp.auth,
            array("CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4")
        );
    }

    /// RFC 3711 Appendix B.2.
    #[test]
    fn keystream_of_rfc_3711() {
        let key = CmKey::new(&Keys {
            key: array("2B7E151628AED2A6ABF7158809CF4F3C"),
            auth: [0; 20],
            salt: array("F0F1F2F3F4F5F6F7F8F9FAFBFCFD"),
        })
        .expect("lengths are right");
        let mut stream = [0; 48];
        key.apply(&mut stream, 0, 0).expect("encrypts");
        assert_eq!(
            stream,
            array(
                "E03EAD0935C95E80E166B16DD92B4EB4 D23513162B02D0F72A43A2FE4A5F97AB
                 41E95B3BB0A2E8DD477901E4FCA894C0"
            )
        );
    }

    fn rfc_7714() -> Cipher {
        let mut salt = [0; 14];
        salt[..12].copy_from_slice(&hex("517569642070726f2071756f"));
        let keys = || Keys {
            key: array("000102030405060708090a0b0c0d0e0f"),
            auth: [0; 20],
            salt,
        };
        let keys = SessionKeys {
            profile: Profile::Aes128Gcm,
            rtp: keys(),
            rtcp: keys(),
        };
        Cipher::new(&keys).expect("lengths are right")
    }

    /// RFC 7714 §16.1.
    #[test]
    fn rtp_packet_of_rfc_7714() {
        let plain = hex(
            "8040f17b 8041f8d3 5501a0b2 47616c6c 69612065 7374206f 6d6e6973 20646976
             69736120 696e2070 61727465 73207472 6573",
        );
        let sealed = hex(
            "8040f17b 8041f8d3 5501a0b2 f24de3a3 fb34de6c acba861c 9d7e4bca be633bd5
             0d294e6f 42a5f47a 51c7d19b 36de3adf 8833899d 7f27beb1 6a9152cf 765ee439 0cce",
        );
        let cipher = rfc_7714();
        let head = RtpHead::parse(&plain).expect("is RTP");
        let mut buf = plain.clone();
        buf.resize(plain.len() + GCM_TAG_LEN, 0);
        let len = cipher.seal_rtp(&mut buf, head, plain.len(), 0xf17b);
        assert_eq!(len, Some(sealed.len()));
        assert_eq!(buf, sealed);
        assert_eq!(cipher.open_rtp(&mut buf, head, 0xf17b), Ok(plain.len()));
        assert_eq!(buf[..plain.len()], plain);
    }

    /// RFC 7714 §17.1.
    #[test]
    fn rtcp_packet_of_rfc_7714() {
        let plain = hex(
            "81c8000d 4d617273 4e545031 4e545032 52545020 0000042a 0000e930 4c756e61
             deadbeef deadbeef deadbeef deadbeef deadbeef",
        );
        let sealed = hex(
            "81c8000d 4d617273 63e94885 dcdab67c a727d766 2f6b7e99 7ff5c0f7 6c06f32d
             c676a5f1 730d6fda 4ce09b46 86303ded 0bb9275b c84aa458 96cf4d2f c5abf872
             45d9eade 800005d4",
        );
        let cipher = rfc_7714();
        let mut buf = plain.clone();
        buf.resize(sealed.len(), 0);
        let len = cipher.seal_rtcp(&mut buf, 0x4d61_7273, plain.len(), 0x5d4);
        assert_eq!(len, Some(sealed.len()));
        assert_eq!(buf, sealed);
        let word = cipher.rtcp_index_word(&buf).expect("long enough");
        assert_eq!(word, 0x8000_05d4);
        assert_eq!(
            cipher.open_rtcp(&mut buf, 0x4d61_7273, word),
            Ok(plain.len())
        );
        assert_eq!(buf[..plain.len()], plain);
    }
}
