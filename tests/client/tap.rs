//! For load: counts a client's media where it arrives and hands on only samples of it.
//!
//! Sits between the socket and the peer connection, as the runtime that the connection takes its
//! sockets from. The header of an SRTP packet is in the clear, so that sequence numbers are counted of
//! every packet; one of [`SAMPLE`] goes on to be decrypted. A subscriber then costs about as much as
//! its `recvfrom`, and a thousand of them do not take more of the machine than what they measure. The
//! socket does not ask the kernel to join datagrams, as browsers do not. Reports and transport-wide
//! feedback go back as a browser would send them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_media::rtp::extension::elements;
use flotilla_media::rtp::packet::Header;
use flotilla_media::rtp::rtcp::Writer;
use flotilla_media::rtp::twcc::Arrivals;
use rtc::rtcp::Packet as RtcpPacket;
use rtc::rtcp::raw_packet::RawPacket;
use rtc::rtcp::receiver_report::ReceiverReport;
use rtc::rtcp::reception_report::ReceptionReport;
use tokio::io::ReadBuf;
use webrtc::runtime::{
    AsyncInterval, AsyncTcpListener, AsyncTcpStream, AsyncUdpSocket, JoinHandle, RecvMeta, Runtime,
    Transmit,
};

/// One packet of so many is decrypted; the others are counted alone.
const SAMPLE: u64 = 64;
/// The first packets of a stream are all decrypted: they open the track.
const OPENING: u64 = 8;

/// URI of transport-wide sequence numbers.
pub(super) const TWCC: &str =
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
/// Under which a client reports.
const OWN_SSRC: u32 = 1;

/// What arrived at all clients that share it.
#[derive(Debug, Default)]
pub struct Tap {
    packets: AtomicU64,
    bytes: AtomicU64,
    missing: AtomicI64,
}

/// Readings of a [`Tap`]; differences of two are what happened between them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// RTP packets.
    pub packets: u64,
    /// Bytes of the datagrams that carried them.
    pub bytes: u64,
    /// Sequence numbers that were passed over and have not come since.
    pub missing: i64,
}

impl Tap {
    /// The counters now.
    #[must_use]
    pub fn read(&self) -> Reading {
        Reading {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            missing: self.missing.load(Ordering::Relaxed),
        }
    }
}

/// One stream of one client.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    packets: u64,
    /// Highest sequence number, with the times it wrapped.
    highest: u32,
}

/// What one client receives, and the feedback that it owes for it.
#[derive(Debug)]
pub(super) struct Streams {
    tap: Arc<Tap>,
    epoch: Instant,
    /// Id of the transport-wide sequence number, once negotiated; 0: none.
    twcc: AtomicU8,
    /// Shared by the socket's task and the one that reports.
    received: Mutex<Received>,
}

#[derive(Default)]
struct Received {
    streams: HashMap<u32, Stream>,
    arrivals: Arrivals,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.streams.fmt(f)
    }
}

impl Streams {
    pub(super) fn new(tap: Arc<Tap>) -> Arc<Self> {
        Arc::new(Self {
            tap,
            epoch: Instant::now(),
            twcc: AtomicU8::new(0),
            received: Mutex::default(),
        })
    }

    /// Notes what the server's offer says of transport-wide sequence numbers.
    pub(super) fn offered(&self, sdp: &str) {
        let ids = sdp
            .lines()
            .filter_map(|line| line.strip_prefix("a=extmap:")?.split_once(' '));
        if let Some((id, _)) = ids.into_iter().find(|(_, uri)| uri.trim() == TWCC)
            && let Ok(id) = id.parse()
        {
            self.twcc.store(id, Ordering::Relaxed);
        }
    }

    /// Counts a datagram; whether the connection is to see it.
    fn passes(&self, datagram: &[u8]) -> bool {
        let Some(&[first, second, s0, s1, _, _, _, _, r0, r1, r2, r3]) = datagram.first_chunk()
        else {
            return true;
        };
        // RFC 7983 §7 and RFC 5761 §4: neither STUN nor DTLS, and not RTCP.
        if !(128..=191).contains(&first) || (192..=223).contains(&second) {
            return true;
        }
        let sequence = u16::from_be_bytes([s0, s1]);
        let ssrc = u32::from_be_bytes([r0, r1, r2, r3]);
        self.tap.packets.fetch_add(1, Ordering::Relaxed);
        self.tap
            .bytes
            .fetch_add(datagram.len() as u64, Ordering::Relaxed);
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = self.transport_number(datagram) {
            let at = self.epoch.elapsed().as_micros() as u64;
            received.arrivals.record(number, at);
        }
        let stream = received.streams.entry(ssrc).or_default();
        stream.packets += 1;
        if stream.packets == 1 {
            stream.highest = u32::from(sequence);
            return true;
        }
        let step = sequence.wrapping_sub(stream.highest as u16).cast_signed();
        if step > 0 {
            stream.highest += u32::from(step.unsigned_abs());
        }
        // A late packet was counted as missing when its successor came.
        let missing = if step > 0 { i64::from(step) - 1 } else { -1 };
        self.tap.missing.fetch_add(missing, Ordering::Relaxed);
        stream.packets <= OPENING || stream.packets.is_multiple_of(SAMPLE)
    }

    fn transport_number(&self, datagram: &[u8]) -> Option<u16> {
        let wanted = self.twcc.load(Ordering::Relaxed);
        if wanted == 0 {
            return None;
        }
        let (profile, range) = Header::parse(datagram).ok()?.extension?;
        let (_, value) = elements(profile, &datagram[range]).find(|(id, _)| *id == wanted)?;
        Some(u16::from_be_bytes(*value.first_chunk()?))
    }

    /// Transport-wide feedback on what arrived since the last, if the server counts its packets.
    pub(super) fn feedback(&self, ssrc: u32) -> Vec<Box<dyn RtcpPacket>> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packets: Vec<Box<dyn RtcpPacket>> = vec![];
        while received.arrivals.is_pending() {
            let mut buffer = [0; 1200];
            let mut writer = Writer::new(&mut buffer);
            if !writer.twcc(|body| received.arrivals.write(OWN_SSRC, ssrc, body)) {
                break;
            }
            let len = writer.len();
            packets.push(Box::new(RawPacket(Bytes::copy_from_slice(&buffer[..len]))));
        }
        packets
    }

    /// A receiver report.
    pub(super) fn report(&self, ssrc: u32) -> Option<Box<dyn RtcpPacket>> {
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = received.streams.get(&ssrc)?;
        Some(Box::new(ReceiverReport {
            ssrc: OWN_SSRC,
            reports: vec![ReceptionReport {
                ssrc,
                last_sequence_number: stream.highest,
                ..Default::default()
            }],
            ..Default::default()
        }))
    }
}

/// A runtime whose sockets count; in all else the one it wraps.
#[derive(Debug)]
pub(super) struct Tapped {
    pub(super) inner: Arc<dyn Runtime>,
    pub(super) streams: Arc<Streams>,
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Runtime for Tapped {
    fn spawn(&self, future: Boxed<'static, ()>) -> Box<dyn JoinHandle> {
        self.inner.spawn(future)
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        socket.set_nonblocking(true)?;
        Ok(Arc::new(Socket {
            socket: tokio::net::UdpSocket::from_std(socket)?,
            streams: self.streams.clone(),
        }))
    }

    fn wrap_tcp_listener(
        &self,
        listener: std::net::TcpListener,
    ) -> io::Result<Arc<dyn AsyncTcpListener>> {
        self.inner.wrap_tcp_listener(listener)
    }

    fn connect_tcp(&self, address: SocketAddr) -> Boxed<'_, io::Result<Arc<dyn AsyncTcpStream>>> {
        self.inner.connect_tcp(address)
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> Boxed<'a, io::Result<Vec<SocketAddr>>> {
        self.inner.resolve_host(host)
    }

    fn sleep(&self, duration: Duration) -> Boxed<'static, ()> {
        self.inner.sleep(duration)
    }

    fn interval(&self, period: Duration) -> Box<dyn AsyncInterval> {
        self.inner.interval(period)
    }

    fn block_on(&self, future: Pin<Box<dyn Future<Output = ()> + '_>>) {
        self.inner.block_on(future);
    }
}

struct Socket {
    socket: tokio::net::UdpSocket,
    streams: Arc<Streams>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.socket).finish()
    }
}

impl AsyncUdpSocket for Socket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn poll_send(&self, cx: &mut Context<'_>, transmit: &Transmit<'_>) -> Poll<io::Result<usize>> {
        self.socket
            .poll_send_to(cx, transmit.contents, transmit.destination)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        loop {
            let mut read = ReadBuf::new(buffer);
            let from = ready!(self.socket.poll_recv_from(cx, &mut read))?;
            let datagram = read.filled();
            if self.streams.passes(datagram) {
                *meta = RecvMeta::default();
                meta.addr = from;
                meta.len = datagram.len();
                meta.stride = datagram.len().max(1);
                return Poll::Ready(Ok(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u16) -> [u8; 20] {
        let mut packet = [0; 20];
        packet[0] = 0x80;
        packet[1] = 96;
        packet[2..4].copy_from_slice(&sequence.to_be_bytes());
        packet[8..12].copy_from_slice(&7_u32.to_be_bytes());
        packet
    }

    #[test]
    fn gaps_are_counted_until_they_are_filled() {
        let tap = Arc::new(Tap::default());
        let streams = Streams::new(tap.clone());
        for sequence in [65_533_u16, 65_534, 1, 2, 0] {
            streams.passes(&packet(sequence));
        }
        let reading = tap.read();
        assert_eq!((reading.packets, reading.bytes), (5, 100));
        // 65,535 is the one that never came.
        assert_eq!(reading.missing, 1);
        let received = streams.received.lock().expect("one thread");
        assert_eq!(received.streams[&7].highest, 65_538);
    }

    #[test]
    fn control_passes_and_media_is_sampled() {
        let streams = Streams::new(Arc::default());
        assert!(streams.passes(&[0, 1, 0, 0]), "STUN");
        assert!(streams.passes(&[22; 60]), "DTLS");
        assert!(
            streams.passes(&[0x80, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            "RTCP"
        );
        assert_eq!(streams.tap.read().packets, 0);
        let passed = (0..640).filter(|number| streams.passes(&packet(*number)));
        assert_eq!(passed.count() as u64, OPENING + 10);
        assert!(streams.report(7).is_some());
        assert!(streams.report(8).is_none());
    }
    #[test]
    fn packets_that_are_numbered_are_reported() {
        let streams = Streams::new(Arc::default());
        streams.offered(&format!("v=0\r\na=extmap:2 urn:x\r\na=extmap:5 {TWCC}\r\n"));
        for number in 0..20_u16 {
            let mut numbered = packet(number).to_vec();
            numbered[0] |= 0x10;
            let [high, low] = (900 + number).to_be_bytes();
            numbered.splice(12..12, [0xbe, 0xde, 0, 1, 5 << 4 | 1, high, low, 0]);
            streams.passes(&numbered);
        }
        let feedback = streams.feedback(7);
        assert_eq!(feedback.len(), 1);
        let raw = feedback[0].as_any().downcast_ref::<RawPacket>();
        let bytes = &raw.expect("is made here").0;
        assert_eq!(bytes[1], 205, "transport feedback");
        assert_eq!(bytes[12..16], [3, 132, 0, 20], "from 900 on, 20 packets");
        assert!(streams.feedback(7).is_empty(), "once");
    }
}
