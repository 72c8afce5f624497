//! One peer connection's way over the network: ICE, DTLS, SRTP and SCTP as one thing.
//!
//! The engine hands it the STUN and DTLS datagrams of its client, and the time; it polls events and
//! datagrams. Media packets do not pass through here: the engine takes [`Transport::sender`] and
//! [`Transport::receiver`] to them directly. An idle transport costs nothing but its one deadline.

mod snapshot;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rand::RngCore;

use crate::command::Channel;
use crate::discard::Discard;
use crate::peer::dtls::{Certificate, Dtls, DtlsEvent, Fingerprint};
use crate::peer::ice::{Credentials, IceAgent, IceChange, IceState, IceTimeouts};
use crate::peer::passage::{JUMP, Passage, SentStream};
use crate::peer::sctp::{ChannelPlan, DataLimits, Former, Sctp, SctpEvent, SendError, Standing};
use crate::peer::srtp::{SrtpReceiver, SrtpSender};
use snapshot::{Fields, STREAMS_MAX};

pub use snapshot::TransportSnapshot;

/// What a transport is made from.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// The certificate shown to the client.
    pub certificate: Arc<Certificate>,
    /// How long checks are waited for.
    pub timeouts: IceTimeouts,
    /// Who opens the data channels.
    pub channels: ChannelPlan,
    /// Limits of data channels.
    pub data: DataLimits,
}

/// The client's DTLS role, `a=setup`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setup {
    /// It sends the ClientHello.
    Active,
    /// It waits for one, which does not come from here.
    Passive,
    /// It leaves the choice to us, in an offer.
    ActPass,
}

/// What the client's description says of its transport.
#[derive(Clone, Debug)]
pub struct RemoteParameters {
    /// `a=ice-ufrag`.
    pub ufrag: String,
    /// `a=ice-pwd`. A lite agent sends no checks and has no use for it.
    pub pwd: String,
    /// `a=fingerprint:sha-256`.
    pub fingerprint: Fingerprint,
    /// `a=setup`.
    pub setup: Setup,
}

/// The client's description does not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RemoteError {
    /// It wants us to be the DTLS client.
    #[error("the client must take the active DTLS role")]
    Role,
    /// Another certificate than before; a new peer connection is needed for that.
    #[error("the certificate fingerprint may not change")]
    FingerprintChanged,
}

/// What happened to a transport.
#[derive(Debug)]
pub enum TransportEvent {
    /// ICE and DTLS are up: for the first time, or again on the path of an ICE restart.
    Connected,
    /// It is over, or checks stopped for too long. After the latter an ICE restart may revive it.
    Failed(&'static str),
    /// A data channel is open both ways.
    ChannelOpen(Channel),
    /// A message arrived on a data channel.
    Data {
        /// Which channel.
        channel: Channel,
        /// The message.
        payload: Bytes,
        /// Its number on this transport, to be given to [`Transport::data_safe`]; 0: that is not waited for.
        number: u64,
    },
    /// A user fragment of ours from before an ICE restart is no longer valid.
    UfragRetired(String),
}

/// How far ahead of its snapshot a transport continues elsewhere: farther than the old node can have
/// sent since.
#[derive(Clone, Copy, Debug)]
pub struct Skip {
    /// DTLS records.
    pub records: u32,
    /// SRTCP indices.
    pub rtcp: u32,
}

/// Counts of a transport that move with its traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    received: u64,
    records: u64,
    ssrcs: usize,
    sent: u64,
}

/// One peer connection's transport.
pub struct Transport {
    ice: IceAgent,
    dtls: Dtls,
    sctp: Sctp,
    sender: Option<Box<SrtpSender>>,
    receiver: Option<Box<SrtpReceiver>>,
    fingerprint: Option<Fingerprint>,
    /// Of the certificate that the client is shown.
    shown: Fingerprint,
    /// Continues a session and has no path yet.
    awaits_path: bool,
    /// Continues a session whose client has not been heard of: what comes of its association waits
    /// there, and is sent again.
    awaits_channels: bool,
    /// Where the former node's association with the client stood.
    standing: Option<Standing>,
    /// Datagrams besides those that wait in the layers: of DTLS, addressed.
    events: VecDeque<TransportEvent>,
}

impl Transport {
    /// A transport that waits for its client.
    #[must_use]
    pub fn new(config: &TransportConfig, rng: &mut (impl RngCore + ?Sized)) -> Self {
        Self::with_dtls(config, Dtls::new(config.certificate.clone()), rng)
    }

    fn with_dtls(config: &TransportConfig, dtls: Dtls, rng: &mut (impl RngCore + ?Sized)) -> Self {
        Self {
            ice: IceAgent::new(config.timeouts, rng),
            dtls,
            sctp: Sctp::new(config.channels, config.data.clone()),
            sender: None,
            receiver: None,
            fingerprint: None,
            shown: config.certificate.fingerprint(),
            awaits_path: false,
            awaits_channels: false,
            standing: None,
            events: VecDeque::new(),
        }
    }

    /// Continues a session from another node. ICE starts anew: the client must be told the new
    /// credentials, as in any ICE restart. No handshake follows. What was sent under before the
    /// snapshot is not sent under again ([`TransportSnapshot::sent`]): media needs new SSRCs.
    ///
    /// # Errors
    /// [`Discard::Malformed`] if the snapshot is not one, [`Discard::LimitReached`] if its numbers
    /// are used up.
    pub fn import(
        now: Instant,
        config: &TransportConfig,
        snapshot: &TransportSnapshot,
        skip: Skip,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Self, Discard> {
        let state = snapshot.fields();
        let certificate = config.certificate.clone();
        let dtls = Dtls::import(now, certificate, &state.dtls, skip.records)?;
        let mut this = Self::with_dtls(config, dtls, rng);
        this.fingerprint = Some(state.dtls.client());
        this.shown = snapshot.shown();
        this.awaits_path = true;
        this.standing.clone_from(&state.sctp);
        this.start_srtp();
        if let Some(sender) = &mut this.sender {
            sender.forbid(&state.sent);
            sender.set_rtcp_index(state.rtcp_sent.saturating_add(skip.rtcp));
        }
        if let Some(receiver) = &mut this.receiver {
            for (ssrc, index) in &state.received {
                receiver.set_index(*ssrc, *index);
            }
            for (ssrc, index) in &state.rtcp_received {
                receiver.set_rtcp_index(*ssrc, *index);
            }
        }
        Ok(this)
    }

    /// Continues a session from another node on the path that its client knows, under the SSRCs of the
    /// passage, [`JUMP`] packets beyond what it says was sent. It is connected at once. Data waits for
    /// [`Self::revive_channels`].
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn go_on(
        now: Instant,
        config: &TransportConfig,
        (snapshot, passage): (&TransportSnapshot, &Passage),
        skip: Skip,
        rng: &mut (impl RngCore + ?Sized),
    ) -> Result<Self, Discard> {
        let mut this = Self::import(now, config, snapshot, skip, rng)?;
        this.ice = IceAgent::go_on(now, config.timeouts, passage);
        this.awaits_path = false;
        this.awaits_channels = true;
        let sender = this.sender.as_mut().ok_or(Discard::NotConnected)?;
        for stream in &passage.streams {
            sender.go_on(stream.ssrc, stream.index + JUMP);
            sender.go_on(stream.repair_ssrc, stream.repair_index + JUMP);
        }
        this.events.push_back(TransportEvent::Connected);
        Ok(this)
    }

    /// What another node needs, besides [`Self::export`], to go on without a word to the client: the
    /// path. Streams are to be filled in ([`Self::note_sent`]). `None` without a path.
    #[must_use]
    pub fn passage(&self) -> Option<Passage> {
        self.ice.passage()
    }

    /// Fills in how far a stream was sent, where anything was.
    pub fn note_sent(&self, stream: &mut SentStream) {
        let index = |ssrc| self.sender.as_ref().and_then(|sender| sender.index(ssrc));
        stream.index = index(stream.ssrc).unwrap_or(stream.index);
        stream.repair_index = index(stream.repair_ssrc).unwrap_or(stream.repair_index);
    }

    /// Lets so many media packets be sent until this is called again.
    pub fn allow(&mut self, packets: u32) {
        if let Some(sender) = &mut self.sender {
            sender.allow(packets);
        }
    }

    /// User fragments that the client's checks may name.
    pub fn ufrags(&self) -> impl Iterator<Item = &str> {
        self.ice.ufrags()
    }

    /// The client has come, and has told which channels it has: they go on.
    pub fn resume_channels(&mut self, now: Instant) {
        self.take_path(now);
    }

    /// The client believes its data channels to be open on these streams, with an association that
    /// another node had. As soon as there is a path the association goes on if the snapshot says where
    /// it stood, and is begun anew from this side otherwise (RFC 9260 §5.2). Both keep the client's
    /// channels, and they open without a word. `sequence`: number of the client's reliable messages
    /// up to which they have been passed on.
    pub fn revive_channels(&mut self, channels: &[(Channel, u16)], sequence: u32) {
        let standing = self.standing.take();
        self.awaits_channels = false;
        self.sctp.revive(
            channels,
            standing.map(|standing| Former { standing, sequence }),
        );
    }

    /// What another node needs to continue; `None` before the connection is up.
    #[must_use]
    pub fn export(&self) -> Option<TransportSnapshot> {
        let receiver = self.receiver.as_ref();
        let sender = self.sender.as_ref();
        let ssrcs = sender.map_or(0, |sender| sender.ssrc_count());
        Some(TransportSnapshot::new(Fields {
            dtls: self.dtls.export()?,
            shown: self.shown.0,
            sent: sender
                .into_iter()
                .flat_map(|sender| sender.ssrcs())
                .skip(ssrcs.saturating_sub(STREAMS_MAX))
                .collect(),
            rtcp_sent: sender.map_or(0, |sender| sender.rtcp_index()),
            received: receiver
                .into_iter()
                .flat_map(|receiver| receiver.indices())
                .take(STREAMS_MAX)
                .collect(),
            rtcp_received: receiver
                .into_iter()
                .flat_map(|receiver| receiver.rtcp_indices())
                .take(STREAMS_MAX)
                .collect(),
            sctp: self.sctp.standing().or(self.standing.as_ref()).cloned(),
        }))
    }

    /// Where its traffic stands: as long as this is the same, an earlier snapshot is as good as
    /// another. SRTCP does not count, as its numbers are skipped or harmless.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            received: self.receiver.as_ref().map_or(0, |r| r.progress()),
            records: self.dtls.sequence(),
            ssrcs: self.sender.as_ref().map_or(0, |s| s.ssrc_count()),
            sent: self.sender.as_ref().map_or(0, |s| s.counted()),
        }
    }

    /// Fingerprint for the next description: of the certificate that the client has been shown or
    /// is to be shown.
    #[must_use]
    pub const fn shown(&self) -> Fingerprint {
        self.shown
    }

    /// Our ICE credentials for the next description.
    #[must_use]
    pub fn local_credentials(&self) -> &Credentials {
        self.ice.local()
    }

    /// Begins an ICE restart: new credentials, see [`Transport::local_credentials`]. Those before
    /// stay valid until the client has moved, then [`TransportEvent::UfragRetired`] follows.
    pub fn restart_ice(&mut self, now: Instant, rng: &mut (impl RngCore + ?Sized)) {
        self.ice.restart(now, rng);
        self.take_retired();
    }

    /// Takes what the client's description says.
    ///
    /// # Errors
    /// [`RemoteError`] if it does not fit; nothing is changed then.
    pub fn set_remote(
        &mut self,
        now: Instant,
        remote: &RemoteParameters,
    ) -> Result<(), RemoteError> {
        if remote.setup == Setup::Passive {
            return Err(RemoteError::Role);
        }
        if self
            .fingerprint
            .is_some_and(|known| known != remote.fingerprint)
        {
            return Err(RemoteError::FingerprintChanged);
        }
        self.ice.set_remote(now, &remote.ufrag);
        if self.fingerprint.is_none() {
            self.fingerprint = Some(remote.fingerprint);
            self.dtls.set_fingerprint(now, remote.fingerprint);
            // What waited for the fingerprint has no packet left to be counted against.
            let _ = self.after_dtls(now);
        }
        Ok(())
    }

    /// Takes a STUN message that names one of our user fragments. If it is good, `from` is an
    /// address of the client from now on.
    ///
    /// # Errors
    /// [`Discard`] if it is no valid check.
    pub fn handle_stun(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Result<(), Discard> {
        let change = self.ice.handle(now, from, bytes)?;
        match change {
            Some(IceChange::Restarted) if self.dtls.is_connected() && !self.awaits_path => {
                self.events.push_back(TransportEvent::Connected);
            }
            _ => {}
        }
        self.take_retired();
        self.take_path(now);
        Ok(())
    }

    /// Does what waited for a path to a client whose keys are known.
    fn take_path(&mut self, now: Instant) {
        if !self.dtls.is_connected() {
            return;
        }
        // A client takes media on each path that it checks, and nominates one a round trip later.
        if self.ice.remote().is_some() && std::mem::take(&mut self.awaits_path) {
            self.events.push_back(TransportEvent::Connected);
        }
        if self.ice.nominated().is_none() {
            return;
        }
        // Its answer would go out on its former path, and be lost.
        self.sctp.begin(now);
        self.after_sctp(now);
    }

    /// Takes a DTLS datagram of the client.
    ///
    /// # Errors
    /// [`Discard`] if `from` never passed a check or nothing in the datagram is of use.
    pub fn handle_dtls(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Result<(), Discard> {
        if !self.ice.knows(from) {
            return Err(Discard::UnknownPeer);
        }
        let outcome = self.dtls.handle(now, bytes);
        let data = self.after_dtls(now);
        outcome.and(data)
    }

    /// Moves what DTLS brought up to SCTP, and what SCTP answers down.
    fn after_dtls(&mut self, now: Instant) -> Result<(), Discard> {
        let mut outcome = Ok(());
        while let Some(event) = self.dtls.poll_event() {
            match event {
                DtlsEvent::Connected => {
                    self.start_srtp();
                    self.events.push_back(TransportEvent::Connected);
                    self.take_path(now);
                }
                // Nobody knows yet what its packets belong to; the client sends them again.
                DtlsEvent::Data(_) if self.awaits_channels => {}
                DtlsEvent::Data(packet) => outcome = outcome.and(self.sctp.handle(now, packet)),
                DtlsEvent::Failed(reason) => self.events.push_back(TransportEvent::Failed(reason)),
            }
        }
        self.after_sctp(now);
        outcome
    }

    fn after_sctp(&mut self, now: Instant) {
        while let Some(event) = self.sctp.poll_event() {
            self.events.push_back(match event {
                SctpEvent::Open(channel) => TransportEvent::ChannelOpen(channel),
                SctpEvent::Data(channel, payload, number) => TransportEvent::Data {
                    channel,
                    payload,
                    number,
                },
            });
        }
        while let Some(packet) = self.sctp.poll_transmit() {
            // Not connected any more: as good as lost on the way.
            let _ = self.dtls.send(now, &packet);
        }
    }

    fn start_srtp(&mut self) {
        if let Some((sender, receiver)) = self.dtls.srtp() {
            self.sender = Some(Box::new(sender));
            self.receiver = Some(Box::new(receiver));
        }
    }

    fn take_retired(&mut self) {
        while let Some(ufrag) = self.ice.poll_retired() {
            self.events.push_back(TransportEvent::UfragRetired(ufrag));
        }
    }

    /// Lets time pass. To be called no later than [`Transport::deadline`]; harmless before.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ice.handle_timeout(now) == Some(IceChange::Failed) {
            self.events.push_back(TransportEvent::Failed(
                "connectivity checks of the client stopped",
            ));
        }
        self.dtls.handle_timeout(now);
        self.sctp.handle_timeout(now);
        // Only time passed: there is no packet whose fate could be told.
        let _ = self.after_dtls(now);
    }

    /// When [`Transport::handle_timeout`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        [
            self.ice.deadline(),
            self.dtls.deadline(),
            self.sctp.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next datagram to send. DTLS waits here while no address of the client is known.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        if let Some(answer) = self.ice.poll_transmit() {
            return Some(answer);
        }
        let remote = self.ice.remote()?;
        Some((remote, self.dtls.poll_transmit()?))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<TransportEvent> {
        self.events.pop_front()
    }

    /// Sends a message on a data channel. On the reliable channel it may wait for the channel to
    /// open; lossy channels drop their oldest messages when too much waits.
    ///
    /// # Errors
    /// [`SendError`] if it was not taken.
    pub fn send_data(
        &mut self,
        now: Instant,
        channel: Channel,
        message: Bytes,
    ) -> Result<(), SendError> {
        let sent = self.sctp.send(now, channel, message);
        self.after_sctp(now);
        sent
    }

    /// A message that arrived is kept elsewhere too: the client may forget it.
    pub fn data_safe(&mut self, now: Instant, number: u64) {
        self.sctp.safe(number);
        self.after_sctp(now);
    }

    /// Whether others may lack the messages that arrived last, since this node is cut off or was until now. They have
    /// not been acknowledged.
    #[must_use]
    pub fn may_lose_data(&self, now: Instant, was_cut_off: bool) -> bool {
        self.sctp.may_lose(now, was_cut_off)
    }

    /// As [`Transport::data_safe`], for all that arrived.
    pub fn all_data_safe(&mut self, now: Instant) {
        self.sctp.all_safe();
        self.after_sctp(now);
    }

    /// The address that the client nominated.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddr> {
        self.ice.nominated()
    }

    /// Where datagrams go: the nominated address, before that the first that passed a check.
    #[must_use]
    pub fn destination(&self) -> Option<SocketAddr> {
        self.ice.remote()
    }

    /// Whether media and data can flow.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.dtls.is_connected() && self.ice.remote().is_some()
    }

    /// Where ICE stands.
    #[must_use]
    pub const fn ice_state(&self) -> IceState {
        self.ice.state()
    }

    /// Whether a data channel is open.
    #[must_use]
    pub fn is_open(&self, channel: Channel) -> bool {
        self.sctp.is_open(channel)
    }

    /// Messages of a lossy channel that newer ones pushed out before they were sent.
    #[must_use]
    pub fn data_dropped(&self, channel: Channel) -> u64 {
        self.sctp.dropped_out(channel)
    }

    /// Received messages that belonged to no channel or were too long.
    #[must_use]
    pub fn data_refused(&self) -> u64 {
        self.sctp.dropped_in()
    }

    /// What protects outgoing media; `None` until connected, or if the client does not do SRTP.
    pub fn sender(&mut self) -> Option<&mut SrtpSender> {
        self.sender.as_deref_mut()
    }

    /// What opens incoming media; `None` until connected, or if the client does not do SRTP.
    pub fn receiver(&mut self) -> Option<&mut SrtpReceiver> {
        self.receiver.as_deref_mut()
    }

    /// Ends the connection. With `alert` the client is told; without, as when another node takes the
    /// session over, it notices nothing. Poll what is to be sent afterwards.
    pub fn close(&mut self, now: Instant, alert: bool) {
        self.dtls.close(now, alert);
        self.sender = None;
        self.receiver = None;
    }
}
