//! The two peer connections of a test client, on the `webrtc` crate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use livekit_protocol as proto;
use prost::Message as _;
use rtc::data_channel::RTCDataChannelInit;
use rtc::ice::mdns::MulticastDnsMode;
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::configuration::RTCOfferOptions;
use rtc::peer_connection::transport::RTCDtlsRole;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters,
    RTCRtpEncodingParameters, RTCRtpHeaderExtensionCapability, RtpCodecKind,
};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use webrtc::data_channel::{DataChannel, DataChannelEvent};
use webrtc::media_stream::track_local::TrackLocal;
use webrtc::media_stream::track_local::static_rtp::TrackLocalStaticRTP;
use webrtc::media_stream::track_remote::{TrackRemote, TrackRemoteEvent};
use webrtc::peer_connection::{
    MediaEngine, PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler,
    RTCConfigurationBuilder, RTCIceCandidateInit, RTCPeerConnectionState, RTCSessionDescription,
    Registry, SettingEngineBuilder, register_default_interceptors,
};
use webrtc::runtime::default_runtime;

use super::resume::{Opened, Received, Sent, State};
use super::tap::{Streams, TWCC, Tapped};
use super::{Message, Options, Packet, SharedChannel};

/// A server that has acknowledged nothing for so long takes no messages any more. The crate repeats them ever more
/// seldom: after a silence of some seconds it takes as long again until it notices that the server is back.
const STUCK_MAX: Duration = Duration::from_secs(10);

/// Publisher and subscriber connection of one client.
pub(super) struct Peers {
    publisher: Arc<dyn PeerConnection>,
    subscriber: Arc<dyn PeerConnection>,
    pub(super) channels: Channels,
    offers: u32,
    /// What a tapped client receives.
    streams: Option<Arc<Streams>>,
    /// The server's candidates that came before its description: publisher's, subscriber's.
    early: [Option<Vec<RTCIceCandidateInit>>; 2],
    /// Fingerprints of the certificates that the server has shown: publisher's, subscriber's.
    shown: [Option<String>; 2],
    /// What a resume has to tell.
    pub(super) state: State,
    /// While something waits on the reliable channel: how many bytes the server has acknowledged, and since when that has
    /// not changed, as far as it was looked at.
    waits: Option<(u64, Instant)>,
    /// How the connections that are in use stand.
    standings: Vec<watch::Receiver<RTCPeerConnectionState>>,
}

/// The publisher's data channels, which open after the first offer.
#[derive(Clone)]
pub(super) struct Channels {
    reliable: SharedChannel,
    lossy: SharedChannel,
    open: watch::Receiver<u8>,
    sequence: Arc<AtomicU32>,
    sent: Sent,
    /// Bytes on the reliable channel so far.
    handed_over: Arc<AtomicU64>,
    /// Held while a message is handed over, and by a resume while it sends again: what is new comes after it,
    /// or the server would take what is old for repeated.
    turn: Arc<Mutex<()>>,
}

/// Sends RTP packets of one published track.
pub struct Sender {
    track: Arc<TrackLocalStaticRTP>,
    ssrc: u32,
    payload_type: u8,
    sequence: Mutex<u16>,
}

impl Sender {
    /// Sends one packet; sequence numbers count up by themselves.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn write(&self, timestamp: u32, marker: bool, payload: Bytes) -> Result<()> {
        let mut sequence = self.sequence.lock().await;
        *sequence = sequence.wrapping_add(1);
        let header = rtc::rtp::header::Header {
            version: 2,
            marker,
            payload_type: self.payload_type,
            sequence_number: *sequence,
            timestamp,
            ssrc: self.ssrc,
            ..Default::default()
        };
        self.track
            .write_rtp(rtc::rtp::Packet { header, payload })
            .await
            .context("write_rtp")
    }
}

fn codec(mime: &str) -> (RTCRtpCodec, RtpCodecKind, u8) {
    let audio = mime.starts_with("audio/");
    let codec = RTCRtpCodec {
        mime_type: mime.to_owned(),
        clock_rate: if audio { 48_000 } else { 90_000 },
        channels: if audio { 2 } else { 0 },
        sdp_fmtp_line: if audio {
            "minptime=10;useinbandfec=1".to_owned()
        } else {
            String::new()
        },
        rtcp_feedback: vec![],
    };
    if audio {
        (codec, RtpCodecKind::Audio, 111)
    } else {
        (codec, RtpCodecKind::Video, 96)
    }
}

#[derive(Clone)]
struct Handler {
    packets: mpsc::Sender<Packet>,
    messages: mpsc::Sender<Message>,
    received: Received,
    opened: Opened,
    up: Arc<Mutex<Option<oneshot::Sender<()>>>>,
    standing: watch::Sender<RTCPeerConnectionState>,
    streams: Option<Arc<Streams>>,
}

/// Time between transport-wide feedback of a tapped client, as libwebrtc sends it.
const FEEDBACK_INTERVAL: Duration = Duration::from_millis(100);
/// Receiver reports come with one feedback of so many.
const FEEDBACKS_PER_REPORT: usize = 10;

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        self.standing.send_replace(state);
        if state == RTCPeerConnectionState::Connected
            && let Some(up) = self.up.lock().await.take()
        {
            let _ = up.send(());
        }
    }

    async fn on_track(&self, track: Arc<dyn TrackRemote>) {
        let packets = self.packets.clone();
        if let Some(streams) = self.streams.clone() {
            tokio::spawn(report(track.clone(), streams));
        }
        tokio::spawn(async move {
            let sid = track.track_id().await;
            while let Some(event) = track.poll().await {
                if let TrackRemoteEvent::OnRtpPacket(packet) = event {
                    let _ = packets.try_send(Packet {
                        track: sid.clone(),
                        ssrc: packet.header.ssrc,
                        sequence: packet.header.sequence_number,
                        timestamp: packet.header.timestamp,
                        marker: packet.header.marker,
                        payload: packet.payload,
                        at: Instant::now(),
                    });
                }
            }
        });
    }

    async fn on_data_channel(&self, channel: Arc<dyn DataChannel>) {
        let label = channel.label().await.unwrap_or_default();
        self.opened
            .note(&label, u32::try_from(channel.id()).unwrap_or(0));
        let reliable = label == "_reliable";
        let messages = self.messages.clone();
        let received = self.received.clone();
        tokio::spawn(async move {
            while let Some(event) = channel.poll().await {
                if let DataChannelEvent::OnMessage(message) = event
                    && let Ok(packet) = proto::DataPacket::decode(&message.data[..])
                    && (!reliable || received.is_new(&packet))
                {
                    let _ = messages.try_send(Message {
                        reliable,
                        packet,
                        at: Instant::now(),
                    });
                }
            }
        });
    }
}

/// Sends a tapped client's reports of a track until its connection is gone. Others send them through
/// their interceptors.
async fn report(track: Arc<dyn TrackRemote>, streams: Arc<Streams>) {
    let mut tick = tokio::time::interval(FEEDBACK_INTERVAL);
    for count in 0_usize.. {
        tick.tick().await;
        for ssrc in track.ssrcs().await {
            let mut packets = streams.feedback(ssrc);
            if count.is_multiple_of(FEEDBACKS_PER_REPORT) {
                packets.extend(streams.report(ssrc));
            }
            if !packets.is_empty() && track.write_rtcp(packets).await.is_err() {
                return;
            }
        }
    }
}

/// Lets a tapped client agree to what browsers agree to.
fn agree_to_feedback(media: &mut MediaEngine) -> Result<()> {
    let kinds = [
        ("nack", ""),
        ("nack", "pli"),
        ("ccm", "fir"),
        ("transport-cc", ""),
    ];
    for (kind, parameter) in kinds {
        let feedback = RTCPFeedback {
            typ: kind.to_owned(),
            parameter: parameter.to_owned(),
        };
        media.register_feedback(feedback, RtpCodecKind::Video);
    }
    for uri in [
        TWCC,
        "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
        "urn:ietf:params:rtp-hdrext:sdes:mid",
    ] {
        let extension = RTCRtpHeaderExtensionCapability {
            uri: uri.to_owned(),
        };
        media.register_header_extension(extension, RtpCodecKind::Video, None)?;
    }
    Ok(())
}

async fn connection(options: &Options, handler: Handler) -> Result<Arc<dyn PeerConnection>> {
    let mut media = MediaEngine::default();
    for mime in ["audio/opus", "video/VP8"] {
        let (rtp_codec, kind, payload_type) = codec(mime);
        let parameters = RTCRtpCodecParameters {
            rtp_codec,
            payload_type,
        };
        media.register_codec(parameters, kind)?;
    }
    let registry = match (options.feedback, &options.tap) {
        (true, None) => register_default_interceptors(Registry::new(), &mut media)?,
        (true, Some(_)) => {
            agree_to_feedback(&mut media)?;
            Registry::new()
        }
        (false, _) => Registry::new(),
    };
    // Browsers answer `actpass` as DTLS client; this crate would not when the offerer is ICE-lite.
    let settings = SettingEngineBuilder::new()
        .with_answering_dtls_role(RTCDtlsRole::Client)
        // No names are looked up: candidates here are addresses.
        .with_multicast_dns_mode(MulticastDnsMode::Disabled)
        .build();
    let streams = handler.streams.clone();
    let mut builder = PeerConnectionBuilder::new()
        .with_configuration(RTCConfigurationBuilder::new().build())
        .with_media_engine(media)
        .with_interceptor_registry(registry)
        .with_setting_engine(settings)
        .with_handler(Arc::new(handler))
        .with_udp_addrs(vec![options.bind.clone()]);
    if let Some(streams) = streams {
        let inner = default_runtime().context("the crate is built with tokio")?;
        builder = builder.with_runtime(Arc::new(Tapped { inner, streams }));
    }
    Ok(Arc::new(builder.build().await?))
}

impl Peers {
    pub(super) async fn new(
        options: &Options,
        packets: mpsc::Sender<Packet>,
        messages: mpsc::Sender<Message>,
        up: oneshot::Sender<()>,
    ) -> Result<Self> {
        let streams = options.tap.clone().map(Streams::new);
        let (received, opened) = (Received::default(), Opened::default());
        let (subscribed, subscriber_stands) = watch::channel(RTCPeerConnectionState::New);
        let (published, publisher_stands) = watch::channel(RTCPeerConnectionState::New);
        let mut standings = vec![subscriber_stands];
        if options.publishes {
            standings.push(publisher_stands);
        }
        let handler = |up, standing| Handler {
            received: received.clone(),
            opened: opened.clone(),
            packets: packets.clone(),
            messages: messages.clone(),
            up: Arc::new(Mutex::new(up)),
            standing,
            streams: streams.clone(),
        };
        let subscriber = connection(options, handler(Some(up), subscribed)).await?;
        let publisher = connection(options, handler(None, published)).await?;
        let reliable = publisher.create_data_channel("_reliable", None).await?;
        let lossy = publisher
            .create_data_channel(
                "_lossy",
                Some(RTCDataChannelInit {
                    ordered: false,
                    max_retransmits: Some(0),
                    ..Default::default()
                }),
            )
            .await?;
        let (has_opened, open) = watch::channel(0);
        for channel in [reliable.clone(), lossy.clone()] {
            let has_opened = has_opened.clone();
            tokio::spawn(async move {
                while let Some(event) = channel.poll().await {
                    if matches!(event, DataChannelEvent::OnOpen) {
                        has_opened.send_modify(|count| *count += 1);
                    }
                }
            });
        }
        let sequence = Arc::new(AtomicU32::new(0));
        let channels = Channels {
            reliable,
            lossy,
            open,
            sequence,
            sent: Sent::default(),
            handed_over: Arc::default(),
            turn: Arc::default(),
        };
        Ok(Self {
            state: State::new(received, opened),
            standings,
            publisher,
            subscriber,
            channels,
            offers: 0,
            streams: streams.filter(|_| options.feedback),
            early: [Some(vec![]), Some(vec![])],
            shown: [None, None],
            waits: None,
        })
    }

    /// Notes what certificate the server shows. Another one than before asks for a new DTLS handshake (RFC 8842,
    /// section 5.5), which SDKs do and the `webrtc` crate does not: it goes on with the old keys, and nothing that it
    /// sends is understood any more.
    fn note_certificate(&mut self, target: proto::SignalTarget, sdp: &str) -> Result<()> {
        let fingerprint = sdp
            .lines()
            .find_map(|line| line.strip_prefix("a=fingerprint:"))
            .context("a description without a fingerprint")?;
        let before = &mut self.shown[target as usize % 2];
        if before
            .as_deref()
            .is_some_and(|before| before != fingerprint)
        {
            bail!("the server wants a new handshake, for which this client needs a new connection");
        }
        *before = Some(fingerprint.to_owned());
        Ok(())
    }

    /// Whether the server has acknowledged nothing for [`STUCK_MAX`] of what waits for it. Where a node begins the SCTP
    /// association anew (RFC 9260, section 5.2.2), SDKs go on; the `webrtc` crate refuses, and nothing comes of it any
    /// more.
    pub(super) async fn is_stuck(&mut self) -> bool {
        let Ok(waiting) = self.channels.reliable.outstanding_bytes().await else {
            return false;
        };
        let handed_over = self.channels.handed_over.load(Ordering::Relaxed);
        let acknowledged = handed_over.saturating_sub(waiting as u64);
        if waiting == 0 {
            self.waits = None;
            return false;
        }
        let waits = self.waits.filter(|(before, _)| *before == acknowledged);
        let (_, since) = *self
            .waits
            .insert(waits.unwrap_or((acknowledged, Instant::now())));
        since.elapsed() > STUCK_MAX
    }

    /// Answers the server's offer.
    pub(super) async fn answer(
        &mut self,
        offer: &proto::SessionDescription,
    ) -> Result<proto::SessionDescription> {
        if let Some(streams) = &self.streams {
            streams.offered(&offer.sdp);
        }
        self.note_certificate(proto::SignalTarget::Subscriber, &offer.sdp)?;
        self.state.offer = Some(offer.clone());
        let remote = RTCSessionDescription::offer(offer.sdp.clone())?;
        self.subscriber
            .set_remote_description(remote)
            .await
            .context("server's offer")?;
        self.add_early(proto::SignalTarget::Subscriber).await?;
        let answer = self.subscriber.create_answer(None).await?;
        self.subscriber
            .set_local_description(answer.clone())
            .await?;
        let answer = description("answer", answer.sdp, offer.id);
        self.state.answer = Some(answer.clone());
        Ok(answer)
    }

    /// Takes the server's answer.
    pub(super) async fn answered(&mut self, answer: &proto::SessionDescription) -> Result<()> {
        self.note_certificate(proto::SignalTarget::Publisher, &answer.sdp)?;
        let remote = RTCSessionDescription::answer(answer.sdp.clone())?;
        self.publisher
            .set_remote_description(remote)
            .await
            .context("server's answer")?;
        self.add_early(proto::SignalTarget::Publisher).await
    }

    /// Takes one of the server's candidates. Only those over UDP are used.
    pub(super) async fn trickled(&mut self, trickle: &proto::TrickleRequest) -> Result<()> {
        let candidate: RTCIceCandidateInit =
            serde_json::from_str(&trickle.candidate_init).context("server's candidate")?;
        let transport = candidate.candidate.split(' ').nth(2);
        if !transport.is_some_and(|transport| transport.eq_ignore_ascii_case("udp")) {
            return Ok(());
        }
        match &mut self.early[trickle.target as usize % 2] {
            Some(early) => early.push(candidate),
            None => self.add_candidate(trickle.target(), candidate).await?,
        }
        Ok(())
    }

    async fn add_early(&mut self, target: proto::SignalTarget) -> Result<()> {
        for candidate in self.early[target as usize].take().into_iter().flatten() {
            self.add_candidate(target, candidate).await?;
        }
        Ok(())
    }

    async fn add_candidate(
        &self,
        target: proto::SignalTarget,
        candidate: RTCIceCandidateInit,
    ) -> Result<()> {
        let connection = match target {
            proto::SignalTarget::Publisher => &self.publisher,
            proto::SignalTarget::Subscriber => &self.subscriber,
        };
        connection
            .add_ice_candidate(candidate)
            .await
            .context("server's candidate")
    }

    /// Adds a track and gives the offer that announces it.
    pub(super) async fn add_track(
        &mut self,
        mime: &str,
        cid: &str,
    ) -> Result<(Sender, proto::SessionDescription)> {
        let (codec, kind, payload_type) = codec(mime);
        let ssrc = rand::random::<u32>().max(1);
        let coding = RTCRtpCodingParameters {
            ssrc: Some(ssrc),
            ..Default::default()
        };
        let encoding = RTCRtpEncodingParameters {
            rtp_coding_parameters: coding,
            codec,
            ..Default::default()
        };
        let track = Arc::new(TrackLocalStaticRTP::new(MediaStreamTrack::new(
            "-".to_owned(),
            cid.to_owned(),
            cid.to_owned(),
            kind,
            vec![encoding],
        )));
        self.publisher.add_track(track.clone()).await?;
        let sender = Sender {
            track,
            ssrc,
            payload_type,
            sequence: Mutex::new(rand::random()),
        };
        Ok((sender, self.offer().await?))
    }

    /// Whether every connection in use is up.
    pub(super) fn are_up(&self) -> bool {
        let is_up =
            |standing: &watch::Receiver<_>| *standing.borrow() == RTCPeerConnectionState::Connected;
        self.standings.iter().all(is_up)
    }

    /// Remembers a track for a resume.
    pub(super) fn note_published(&mut self, published: proto::TrackPublishedResponse) {
        self.state.published.push(published);
    }

    /// The publisher connection's offer to go on at another place; candidates that come from now on
    /// are of the new place.
    pub(super) async fn offer_anew(&mut self) -> Result<proto::SessionDescription> {
        self.early = [Some(vec![]), Some(vec![])];
        let options = RTCOfferOptions { ice_restart: true };
        self.offer_with(Some(options)).await
    }

    /// A fresh offer of the publisher connection.
    pub(super) async fn offer(&mut self) -> Result<proto::SessionDescription> {
        self.offer_with(None).await
    }

    async fn offer_with(
        &mut self,
        options: Option<RTCOfferOptions>,
    ) -> Result<proto::SessionDescription> {
        let offer = self.publisher.create_offer(options).await?;
        self.publisher.set_local_description(offer.clone()).await?;
        self.offers += 1;
        Ok(description("offer", offer.sdp, self.offers))
    }

    pub(super) async fn close(&self) {
        let _ = self.publisher.close().await;
        let _ = self.subscriber.close().await;
    }
}

impl Channels {
    /// Sends a user packet once the channels are open.
    pub(super) async fn send(&self, payload: &[u8], topic: &str, reliable: bool) -> Result<()> {
        let mut open = self.open.clone();
        tokio::time::timeout(Duration::from_secs(10), open.wait_for(|count| *count >= 2))
            .await
            .context("the data channels did not open")?
            .context("the session has ended")?;
        let user = proto::UserPacket {
            payload: payload.to_vec(),
            topic: Some(topic.to_owned()),
            ..Default::default()
        };
        let _turn = self.turn.lock().await;
        let sequence = if reliable {
            self.sequence.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            0
        };
        let packet = proto::DataPacket {
            sequence,
            value: Some(proto::data_packet::Value::User(user)),
            ..Default::default()
        };
        let bytes = packet.encode_to_vec();
        let channel = if reliable {
            self.sent.add(sequence, &bytes);
            &self.reliable
        } else {
            &self.lossy
        };
        channel
            .send(BytesMut::from(&bytes[..]))
            .await
            .context("the data channel is gone")?;
        if reliable {
            self.hand_over(&bytes);
        }
        Ok(())
    }

    fn hand_over(&self, bytes: &[u8]) {
        self.handed_over
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
    }

    /// Sends again what the server does not have yet.
    pub(super) async fn send_again(&self, after: u32) -> Result<()> {
        let _turn = self.turn.lock().await;
        for bytes in self.sent.after(after) {
            self.reliable.send(BytesMut::from(&bytes[..])).await?;
            self.hand_over(&bytes);
        }
        Ok(())
    }

    /// The publisher's channels as a resume tells them.
    pub(super) fn infos(&self) -> Vec<proto::DataChannelInfo> {
        [("_reliable", &self.reliable), ("_lossy", &self.lossy)]
            .into_iter()
            .map(|(label, channel)| proto::DataChannelInfo {
                label: label.to_owned(),
                id: u32::try_from(channel.id()).unwrap_or(0),
                target: proto::SignalTarget::Publisher as i32,
            })
            .collect()
    }
}

fn description(kind: &str, sdp: String, id: u32) -> proto::SessionDescription {
    proto::SessionDescription {
        r#type: kind.to_owned(),
        sdp,
        id,
        ..Default::default()
    }
}
