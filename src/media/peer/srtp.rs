//! SRTP and SRTCP in place: RFC 3711 with AES128_CM_HMAC_SHA1_80, RFC 7714 with AEAD_AES_128_GCM.
//!
//! The transport makes both ends from the keys that DTLS exports; the engine calls
//! [`SrtpReceiver`] on what arrives and [`SrtpSender`] on each packet as it is written into the
//! transmit queue. The two own the packet indices of every SSRC, which is all the state that a
//! takeover needs besides the keys. A packet costs no allocation; a new SSRC may.

mod cipher;
mod index;

#[cfg(test)]
mod tests;

use cipher::{Cipher, SessionKeys};
use index::{Streams, Window};

use crate::discard::Discard;

/// How packets are protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// `SRTP_AEAD_AES_128_GCM`, a third of the cost of the other; taken whenever the client has it.
    Aes128Gcm,
    /// `SRTP_AES128_CM_HMAC_SHA1_80`, which every WebRTC client has.
    Aes128CmSha1_80,
}

impl Profile {
    /// Bytes of a master salt.
    const fn salt_len(self) -> usize {
        match self {
            Self::Aes128Gcm => 12,
            Self::Aes128CmSha1_80 => 14,
        }
    }

    /// Bytes of keying material to export from DTLS: both ends' key and salt (RFC 5764 §4.2).
    #[must_use]
    pub const fn material_len(self) -> usize {
        2 * (KEY_LEN + self.salt_len())
    }
}

/// Bytes of a master key.
const KEY_LEN: usize = 16;

/// Most bytes that protection adds to an RTP packet.
pub const RTP_OVERHEAD_MAX: usize = 16;

/// Most bytes that protection adds to an RTCP packet.
pub const RTCP_OVERHEAD_MAX: usize = 20;

/// SSRCs that one receiver keeps apart; beyond that the one heard least recently is forgotten.
const RECEIVE_STREAMS_MAX: usize = 1024;

/// SSRCs that one sender may ever use. None is forgotten, since an index used twice under one key
/// gives away what both packets say.
const SEND_STREAMS_MAX: usize = 65_536;

/// The flag in the last word of an SRTCP packet that says it is encrypted.
const ENCRYPTED: u32 = 1 << 31;

/// Both ends of one connection's SRTP, as the DTLS server has them. `None` if `material` has not [`Profile::material_len`] bytes.
#[must_use]
pub fn server_ends(profile: Profile, material: &[u8]) -> Option<(SrtpSender, SrtpReceiver)> {
    if material.len() != profile.material_len() {
        return None;
    }
    let (client_key, rest) = material.split_at(KEY_LEN);
    let (server_key, salts) = rest.split_at(KEY_LEN);
    let (client_salt, server_salt) = salts.split_at(profile.salt_len());
    Some((
        SrtpSender::new(profile, server_key, server_salt)?,
        SrtpReceiver::new(profile, client_key, client_salt)?,
    ))
}

/// Protects what this end sends.
pub struct SrtpSender {
    cipher: Cipher,
    /// Indices used, per SSRC.
    streams: Streams<Sent>,
    /// Last SRTCP index used; one count for all SSRCs is as good as one for each.
    rtcp_index: u32,
    /// SSRCs that another node used with this key, which are never used here.
    forbidden: Vec<u32>,
    /// RTP packets protected.
    packets: u64,
    /// How many of an SSRC may follow each call of [`SrtpSender::allow`]; `None`: any number.
    allowed: Option<u32>,
}

/// What was sent under an SSRC.
#[derive(Clone, Default)]
struct Sent {
    window: Window,
    /// Highest index that may be used.
    limit: Option<u64>,
}

impl SrtpSender {
    /// From a master key of 16 bytes and a salt of the profile's length.
    fn new(profile: Profile, key: &[u8], salt: &[u8]) -> Option<Self> {
        Some(Self {
            cipher: Cipher::new(&SessionKeys::derive(profile, key, salt)?)?,
            streams: Streams::new(SEND_STREAMS_MAX),
            rtcp_index: 0,
            forbidden: Vec::new(),
            packets: 0,
            allowed: None,
        })
    }

    /// Protects the RTP packet in the first `len` bytes of `buf`, which needs
    /// [`RTP_OVERHEAD_MAX`] spare bytes behind them. Gives the protected length.
    ///
    /// `None`: not an RTP packet, no room, its sequence number was used or passed long ago, and
    /// using it again would break the cipher, or [`SrtpSender::allow`] has to be called first.
    pub fn protect_rtp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        let head = RtpHead::parse(buf.get(..len)?)?;
        if buf.len() < len + self.cipher.rtp_overhead() {
            return None;
        }
        let forbidden = &self.forbidden;
        let sent = self
            .streams
            .get_or_insert(head.ssrc, || forbidden.contains(&head.ssrc))?;
        let index = sent.window.index_to_send(head.sequence)?;
        if let Some(allowed) = self.allowed {
            let limit = *sent.limit.get_or_insert(index + u64::from(allowed));
            if index > limit {
                return None;
            }
        }
        if !sent.window.accept(index) {
            return None;
        }
        self.packets += 1;
        self.cipher.seal_rtp(buf, head, len, index)
    }

    /// Protects an RTP packet again that was protected before and is the same bit by bit: a
    /// retransmission to a receiver without RTX. Its index is used a second time for the same
    /// ciphertext, which gives nothing away; any other bytes would break the cipher, so the caller
    /// must rebuild the packet from what it sent. Otherwise as [`SrtpSender::protect_rtp`].
    ///
    /// `None` also for a sequence number ahead of everything sent: that is no repetition.
    pub fn repeat_rtp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        let head = RtpHead::parse(buf.get(..len)?)?;
        if buf.len() < len + self.cipher.rtp_overhead() {
            return None;
        }
        let forbidden = &self.forbidden;
        let sent = self
            .streams
            .get_or_insert(head.ssrc, || forbidden.contains(&head.ssrc))?;
        let window = &mut sent.window;
        let highest = window.highest()?;
        let index = window
            .index_to_send(head.sequence)
            .filter(|index| *index <= highest)?;
        // It may never have left: the queue was full then. From now on it is used.
        window.accept(index);
        self.cipher.seal_rtp(buf, head, len, index)
    }

    /// Protects the RTCP packet in the first `len` bytes of `buf`, which needs
    /// [`RTCP_OVERHEAD_MAX`] spare bytes behind them. Gives the protected length.
    ///
    /// `None`: not an RTCP packet, no room, or 2³¹ packets were sent.
    pub fn protect_rtcp(&mut self, buf: &mut [u8], len: usize) -> Option<usize> {
        let ssrc = rtcp_ssrc(buf.get(..len)?)?;
        if buf.len() < len + self.cipher.rtcp_overhead() {
            return None;
        }
        let index = self
            .rtcp_index
            .checked_add(1)
            .filter(|index| index & ENCRYPTED == 0)?;
        self.rtcp_index = index;
        self.cipher.seal_rtcp(buf, ssrc, len, index)
    }

    /// Highest index sent of an SSRC: rollover counter and sequence number, 48 bits.
    #[must_use]
    pub fn index(&self, ssrc: u32) -> Option<u64> {
        self.streams.get(ssrc)?.window.highest()
    }

    /// Every SSRC that was ever sent under with this key, here or elsewhere.
    pub fn ssrcs(&self) -> impl Iterator<Item = u32> + '_ {
        let own = self.streams.iter().map(|(ssrc, _)| ssrc);
        self.forbidden.iter().copied().chain(own)
    }

    /// How many they are.
    #[must_use]
    pub fn ssrc_count(&self) -> usize {
        self.forbidden.len() + self.streams.len()
    }

    /// Never sends under these SSRCs: another node did with this key.
    pub fn forbid(&mut self, ssrcs: &[u32]) {
        self.forbidden = ssrcs.to_vec();
    }

    /// Goes on above `index` under an SSRC that another node sent under with this key.
    pub fn go_on(&mut self, ssrc: u32, index: u64) {
        self.forbidden.retain(|forbidden| *forbidden != ssrc);
        if let Some(sent) = self.streams.get_or_insert(ssrc, || false) {
            sent.window.advance(index);
        }
    }

    /// Lets so many RTP packets of each SSRC be protected from now on, and no more until this is called
    /// again: what another node has to leave out when it goes on from what is known now.
    pub fn allow(&mut self, packets: u32) {
        self.allowed = Some(packets);
        for sent in self.streams.values_mut() {
            let highest = sent.window.highest();
            sent.limit = highest.map(|highest| highest + u64::from(packets));
        }
    }

    /// RTP packets protected, if they are counted against a limit; 0 if not.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.allowed.map_or(0, |_| self.packets)
    }

    /// Last SRTCP index used.
    #[must_use]
    pub const fn rtcp_index(&self) -> u32 {
        self.rtcp_index
    }

    /// Continues SRTCP above `index`; never goes back.
    pub fn set_rtcp_index(&mut self, index: u32) {
        self.rtcp_index = self.rtcp_index.max(index & !ENCRYPTED);
    }
}

/// Checks and opens what the other end sent.
pub struct SrtpReceiver {
    cipher: Cipher,
    streams: Streams<Window>,
    rtcp_streams: Streams<Window>,
    /// An SSRC was heard for the first time, or its sequence numbers began anew.
    has_news: bool,
}

impl SrtpReceiver {
    /// From a master key of 16 bytes and a salt of the profile's length.
    fn new(profile: Profile, key: &[u8], salt: &[u8]) -> Option<Self> {
        Some(Self {
            cipher: Cipher::new(&SessionKeys::derive(profile, key, salt)?)?,
            streams: Streams::new(RECEIVE_STREAMS_MAX),
            rtcp_streams: Streams::new(RECEIVE_STREAMS_MAX),
            has_news: false,
        })
    }

    /// Opens an SRTP packet in place and gives the length of the RTP packet at the front of `buf`.
    ///
    /// # Errors
    /// [`Discard`] if it is not one, was seen before, or is not the peer's; `buf` is then garbage.
    pub fn unprotect_rtp(&mut self, buf: &mut [u8]) -> Result<usize, Discard> {
        let head = RtpHead::parse(buf).ok_or(Discard::Malformed)?;
        let index = match self.streams.get(head.ssrc) {
            Some(window) => {
                let index = window.index_of(head.sequence);
                if !window.is_new(index) {
                    return Err(Discard::Replayed);
                }
                index
            }
            None => u64::from(head.sequence),
        };
        let len = self.cipher.open_rtp(buf, head, index)?;
        let window = self.streams.touch(head.ssrc);
        let before = window.highest();
        window.accept(index);
        self.has_news |= before.is_none_or(|before| index >> 16 > before >> 16);
        Ok(len)
    }

    /// Opens an SRTCP packet in place and gives the length of the RTCP packet at the front.
    ///
    /// # Errors
    /// As [`SrtpReceiver::unprotect_rtp`].
    pub fn unprotect_rtcp(&mut self, buf: &mut [u8]) -> Result<usize, Discard> {
        let ssrc = rtcp_ssrc(buf).ok_or(Discard::Malformed)?;
        let word = self.cipher.rtcp_index_word(buf).ok_or(Discard::Malformed)?;
        if word & ENCRYPTED == 0 {
            return Err(Discard::Unauthenticated);
        }
        let index = u64::from(word & !ENCRYPTED);
        if self
            .rtcp_streams
            .get(ssrc)
            .is_some_and(|window| !window.is_new(index))
        {
            return Err(Discard::Replayed);
        }
        let len = self.cipher.open_rtcp(buf, ssrc, word)?;
        self.rtcp_streams.touch(ssrc).accept(index);
        Ok(len)
    }

    /// Highest index received of an SSRC: rollover counter and sequence number, 48 bits.
    #[must_use]
    pub fn index(&self, ssrc: u32) -> Option<u64> {
        self.streams.get(ssrc)?.highest()
    }

    /// Every SSRC with its highest index received.
    pub fn indices(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.streams
            .iter()
            .filter_map(|(ssrc, window)| Some((ssrc, window.highest()?)))
    }

    /// The same for SRTCP.
    pub fn rtcp_indices(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.rtcp_streams
            .iter()
            .filter_map(|(ssrc, window)| Some((ssrc, window.highest()?)))
    }

    /// Whether, since this was last asked, something came that a takeover cannot guess: an SSRC's
    /// first packet or a rollover of its sequence numbers.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Rises with every packet received.
    #[must_use]
    pub const fn progress(&self) -> u64 {
        self.streams.clock()
    }

    /// Expects an SSRC's SRTCP to continue above `index`.
    pub fn set_rtcp_index(&mut self, ssrc: u32, index: u64) {
        self.rtcp_streams.touch(ssrc).advance(index);
    }

    /// Expects an SSRC to continue above `index`.
    pub fn set_index(&mut self, ssrc: u32, index: u64) {
        self.streams.touch(ssrc).advance(index);
    }
}

/// What protection must know of an RTP header.
#[derive(Clone, Copy, Debug)]
struct RtpHead {
    /// Bytes before the payload, extension included.
    len: usize,
    sequence: u16,
    ssrc: u32,
}

impl RtpHead {
    fn parse(packet: &[u8]) -> Option<Self> {
        let (fixed, rest) = packet.split_first_chunk::<12>()?;
        let &[first, _, s0, s1, _, _, _, _, r0, r1, r2, r3] = fixed;
        if first >> 6 != 2 {
            return None;
        }
        let csrcs = 4 * usize::from(first & 0x0f);
        let mut len = 12 + csrcs;
        if first & 0x10 != 0 {
            let &[_, _, l0, l1] = rest.get(csrcs..)?.first_chunk::<4>()?;
            len += 4 + 4 * usize::from(u16::from_be_bytes([l0, l1]));
        }
        (len <= packet.len()).then_some(Self {
            len,
            sequence: u16::from_be_bytes([s0, s1]),
            ssrc: u32::from_be_bytes([r0, r1, r2, r3]),
        })
    }
}

/// Sender's SSRC of an RTCP packet, `None` if it is not one.
fn rtcp_ssrc(packet: &[u8]) -> Option<u32> {
    let &[first, _, _, _, r0, r1, r2, r3] = packet.first_chunk::<8>()?;
    (first >> 6 == 2).then_some(u32::from_be_bytes([r0, r1, r2, r3]))
}
