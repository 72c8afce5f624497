//! DTLS 1.2, always as the server: rtc-dtls behind what it needs to be robust.
//!
//! The transport feeds datagrams and polls datagrams and events. Between it and rtc-dtls stand
//! - `record`: only whole, well-formed records pass; the library never sees a fragment, a repeated
//!   handshake message, or a plain-text record that has no business being there;
//! - `flight`: datagrams of the last flight, sent again on our own timer or when the client repeats
//!   itself. The library alone stops for good when part of a flight is lost;
//! - the choice of the SRTP profile, made from the ClientHello before the library's endpoint exists,
//!   because it would follow the client's order of preference instead of ours.
//!
//! RFC 6347, RFC 5764, RFC 8842.

mod certificate;
mod flight;
mod hello;
mod record;
mod snapshot;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use bytes::{Bytes, BytesMut};
use rtc_dtls::endpoint::{Endpoint, EndpointEvent};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use rtc_dtls::state::State;
use rtc_shared::TransportProtocol;
use rtc_shared::error::Error;

pub use certificate::{Certificate, CertificateError, Fingerprint};
pub use snapshot::DtlsSnapshot;

use flight::Flight;
use record::{Content, Reassembly, Record};

use crate::discard::Discard;
use crate::peer::contain::contain;
use crate::peer::srtp::{self, Profile, SrtpReceiver, SrtpSender};

/// rtc-dtls tells its connections apart by address. Here each has an endpoint of its own, so that
/// it survives a change of the client's address.
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// Longest handshake; the client gives up by itself after about 30 s.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of records of the next epoch that the library may hold before the handshake is through.
const EARLY_BYTES_MAX: usize = 64 * 1024;
/// Encrypted handshake records after the handshake. The client repeats its last message when our
/// last flight is lost; the library keeps each such record for good.
const LATE_HANDSHAKES_MAX: u32 = 32;
/// Records of data kept from a client that is not verified yet; more count as lost.
const HELD_MAX: usize = 16;
/// Label of RFC 5764 §4.2.
const EXPORTER_LABEL: &str = "EXTRACTOR-dtls_srtp";

/// What happened.
pub(super) enum DtlsEvent {
    /// The handshake is through and the client is who its description says.
    Connected,
    /// Decrypted application data.
    Data(Bytes),
    /// The connection is over.
    Failed(&'static str),
}

/// Where a connection stands.
enum Phase {
    /// No complete ClientHello yet.
    Listening,
    /// Handshake.
    Handshaking(Box<Endpoint>),
    /// Handshake done, but the client's fingerprint is not known or not checked yet.
    Unverified(Box<Endpoint>),
    /// Up.
    Connected(Box<Endpoint>),
    /// Over.
    Closed,
}

/// One connection's DTLS.
pub(super) struct Dtls {
    certificate: Arc<Certificate>,
    phase: Phase,
    /// The client's, from its description.
    fingerprint: Option<Fingerprint>,
    reassembly: Reassembly,
    flight: Flight,
    /// Numbers the plain-text records that the library gets to see.
    records_in: u64,
    early_bytes: usize,
    late_handshakes: u32,
    /// Data of a client that is not verified yet.
    held: Vec<Bytes>,
    give_up: Option<Instant>,
    /// The session since it is established, and the number of its next record.
    session: Option<DtlsSnapshot>,
    sequence: u64,
    transmits: VecDeque<Bytes>,
    events: VecDeque<DtlsEvent>,
}

impl Dtls {
    pub(super) fn new(certificate: Arc<Certificate>) -> Self {
        Self {
            certificate,
            phase: Phase::Listening,
            fingerprint: None,
            reassembly: Reassembly::default(),
            flight: Flight::new(flight::INTERVAL_MIN),
            records_in: 0,
            early_bytes: 0,
            late_handshakes: 0,
            held: Vec::new(),
            give_up: None,
            session: None,
            sequence: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Continues a session from another node. `skip` record numbers are left out, because that node
    /// may have sent more records than the snapshot knows of and the client refuses used numbers.
    pub(super) fn import(
        now: Instant,
        certificate: Arc<Certificate>,
        snapshot: &DtlsSnapshot,
        skip: u32,
    ) -> Result<Self, Discard> {
        let session = snapshot.skip(skip);
        let bytes = session.write().ok_or(Discard::LimitReached)?;
        let mut state = State::new(certificate.provider(), false);
        let restored = contain("dtls", || {
            state.unmarshal_binary(&bytes).is_ok().then_some(state)
        });
        let state = restored
            .map_err(|_| Discard::DtlsRefused)?
            .ok_or(Discard::Malformed)?;

        let mut endpoint = Endpoint::new(PEER, TransportProtocol::UDP, None);
        let config = certificate.config_for(None);
        endpoint
            .connect(now, PEER, config, Some(state))
            .map_err(|_| Discard::Malformed)?;
        let mut this = Self::new(certificate);
        this.phase = Phase::Connected(Box::new(endpoint));
        this.fingerprint = Some(session.client());
        this.sequence = session.sequence();
        this.session = Some(session);
        Ok(this)
    }

    /// The session as it is now; `None` before the handshake is through.
    pub(super) fn export(&self) -> Option<DtlsSnapshot> {
        if !self.is_connected() {
            return None;
        }
        Some(self.session.as_ref()?.at(self.sequence))
    }

    /// Number of the next record.
    pub(super) const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// SRTP in both directions; `None` if not connected or the client did not ask for SRTP.
    pub(super) fn srtp(&self) -> Option<(SrtpSender, SrtpReceiver)> {
        let Phase::Connected(endpoint) = &self.phase else {
            return None;
        };
        let state = endpoint.get_connection_state(PEER)?;
        let profile = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => Profile::Aes128Gcm,
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => Profile::Aes128CmSha1_80,
            _ => return None,
        };
        let len = profile.material_len();
        let material = state
            .export_keying_material(EXPORTER_LABEL, &[], len)
            .ok()?;
        srtp::server_ends(profile, material.as_ref())
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.phase, Phase::Connected(_))
    }

    /// The client's fingerprint from its description. If the handshake is already through it is
    /// checked now, else when it is.
    pub(super) fn set_fingerprint(&mut self, now: Instant, fingerprint: Fingerprint) {
        self.fingerprint = Some(fingerprint);
        self.verify(now);
    }

    /// Takes a datagram.
    pub(super) fn handle(&mut self, now: Instant, datagram: &[u8]) -> Result<(), Discard> {
        if matches!(self.phase, Phase::Closed) {
            return Err(Discard::NotConnected);
        }
        let mut outcome = Ok(());
        let mut repeated = false;
        for record in record::split(datagram) {
            let result = record.and_then(|record| self.handle_record(now, &record));
            match result {
                Ok(again) => repeated |= again,
                Err(reason) => outcome = Err(reason),
            }
        }
        if repeated {
            self.flight.resend_for_repeat(now, &mut self.transmits);
        }
        outcome
    }

    /// Takes a record; true if it only repeats what was seen.
    fn handle_record(&mut self, now: Instant, record: &Record<'_>) -> Result<bool, Discard> {
        let established = matches!(self.phase, Phase::Unverified(_) | Phase::Connected(_));
        match (record.epoch, record.content) {
            // Once keys are in use, plain text is stale or forged; at best it shows that the client
            // repeats its last flight because it lacks ours.
            (0, Content::Handshake) if established => Ok(true),
            (0, _) if established => Err(Discard::DtlsRefused),
            (0, Content::Handshake) => self.handle_handshake(now, record.payload),
            (0, Content::ChangeCipherSpec) if record.payload == [1] => {
                let bytes = self.plain_record(Content::ChangeCipherSpec, record.payload);
                self.feed(now, &bytes)?;
                Ok(false)
            }
            (0, Content::Alert) => self.handle_plain_alert(record.payload),
            (1, Content::Handshake) if established => {
                self.late_handshakes += 1;
                if self.late_handshakes > LATE_HANDSHAKES_MAX {
                    return Err(Discard::LimitReached);
                }
                self.feed(now, record.bytes)?;
                Ok(false)
            }
            (1, Content::Handshake | Content::Alert | Content::ApplicationData) => {
                if !established {
                    self.early_bytes += record.bytes.len();
                    if self.early_bytes > EARLY_BYTES_MAX {
                        return Err(Discard::LimitReached);
                    }
                }
                self.feed(now, record.bytes)?;
                Ok(false)
            }
            _ => Err(Discard::DtlsRefused),
        }
    }

    fn handle_handshake(&mut self, now: Instant, payload: &[u8]) -> Result<bool, Discard> {
        let repeated = self.reassembly.push(payload)?;
        while let Some(message) = self.reassembly.pop() {
            if matches!(self.phase, Phase::Listening) {
                self.start(now, &message)?;
            }
            let bytes = self.plain_record(Content::Handshake, &message);
            self.feed(now, &bytes)?;
        }
        Ok(repeated)
    }

    /// Makes the library's endpoint for a first ClientHello.
    fn start(&mut self, now: Instant, message: &[u8]) -> Result<(), Discard> {
        let offered = hello::srtp_profiles(message).ok_or(Discard::Malformed)?;
        let profile = [Profile::Aes128Gcm, Profile::Aes128CmSha1_80]
            .into_iter()
            .find(|profile| offered.contains(&hello::profile_number(*profile)));
        let config = self.certificate.config_for(profile);
        let endpoint = Endpoint::new(PEER, TransportProtocol::UDP, Some(config));
        self.phase = Phase::Handshaking(Box::new(endpoint));
        self.give_up = Some(now + HANDSHAKE_TIMEOUT);
        Ok(())
    }

    /// A fatal plain-text alert before keys are in use ends the handshake: the client is saying that
    /// it does not like us. Others mean nothing.
    fn handle_plain_alert(&mut self, payload: &[u8]) -> Result<bool, Discard> {
        match payload {
            [2, _] if matches!(self.phase, Phase::Handshaking(_)) => {
                self.fail("the client refused the DTLS handshake");
                Ok(false)
            }
            [1 | 2, _] => Err(Discard::DtlsRefused),
            _ => Err(Discard::Malformed),
        }
    }

    /// A plain-text record with the next number of our own count. The client's numbers are of no
    /// use here: nothing signs them, and what the library must not see twice was filtered.
    fn plain_record(&mut self, content: Content, payload: &[u8]) -> Vec<u8> {
        self.records_in += 1;
        record::write(content, self.records_in, payload)
    }

    /// Gives the library one record and takes what it makes of it.
    fn feed(&mut self, now: Instant, record: &[u8]) -> Result<(), Discard> {
        let (endpoint, handshaking) = match &mut self.phase {
            Phase::Handshaking(endpoint) => (endpoint, true),
            Phase::Unverified(endpoint) | Phase::Connected(endpoint) => (endpoint, false),
            Phase::Listening => return Err(Discard::DtlsRefused),
            Phase::Closed => return Err(Discard::NotConnected),
        };
        let read = contain("dtls", || {
            endpoint.read(now, PEER, None, BytesMut::from(record))
        });
        let Ok(read) = read else {
            self.fail("DTLS broke");
            return Err(Discard::DtlsRefused);
        };
        let mut sent = Vec::new();
        while let Some(transmit) = endpoint.poll_transmit() {
            sent.push(transmit.message.freeze());
        }
        for datagram in &sent {
            let after = snapshot::sequence_after(datagram);
            self.sequence = self.sequence.max(after.unwrap_or(0));
        }
        if handshaking && !sent.is_empty() {
            self.flight.begin(now, &sent);
        }
        self.transmits.extend(sent);
        match read {
            Ok(events) => {
                for event in events {
                    self.handle_event(now, event);
                }
                Ok(())
            }
            Err(Error::ErrAlertFatalOrClose) if !handshaking => {
                self.fail("the client reported a DTLS error");
                Ok(())
            }
            Err(_) if handshaking => {
                self.fail("the DTLS handshake failed");
                Ok(())
            }
            Err(_) => Err(Discard::Malformed),
        }
    }

    fn handle_event(&mut self, now: Instant, event: EndpointEvent) {
        match event {
            EndpointEvent::HandshakeComplete => {
                self.flight.mark_last();
                self.reassembly = Reassembly::default();
                self.give_up = None;
                self.phase = match std::mem::replace(&mut self.phase, Phase::Closed) {
                    Phase::Handshaking(endpoint) => Phase::Unverified(endpoint),
                    other => other,
                };
                self.verify(now);
            }
            EndpointEvent::ApplicationData(data) if self.is_connected() => {
                // The client has our last flight, or it would have no keys.
                self.flight.end();
                self.events.push_back(DtlsEvent::Data(data.freeze()));
            }
            // The description may come after the handshake; what the client says until then waits.
            EndpointEvent::ApplicationData(data) if self.held.len() < HELD_MAX => {
                self.held.push(data.freeze());
            }
            // A client that leaves says so on its signal connection, mostly a moment later: that it
            // closes its end is no failure. Connectivity checks tell whether it is gone.
            EndpointEvent::PeerClosed => {
                self.phase = Phase::Closed;
                self.flight.end();
                self.give_up = None;
            }
            _ => {}
        }
    }

    /// Compares the certificate that the client proved to own with its description.
    fn verify(&mut self, now: Instant) {
        let (Phase::Unverified(endpoint), Some(expected)) = (&self.phase, self.fingerprint) else {
            return;
        };
        let state = endpoint.get_connection_state(PEER);
        let certificate = state.and_then(|state| state.peer_certificates.first());
        let matches = certificate.is_some_and(|certificate| {
            digest::digest(&digest::SHA256, certificate).as_ref() == expected.0
        });
        if !matches {
            self.close(now, true);
            self.events.push_back(DtlsEvent::Failed(
                "the client's certificate is not the described one",
            ));
            return;
        }
        if let Phase::Unverified(endpoint) = std::mem::replace(&mut self.phase, Phase::Closed) {
            self.session = endpoint
                .get_connection_state(PEER)
                .and_then(|state| state.marshal_binary().ok())
                .and_then(|bytes| DtlsSnapshot::read(&bytes, expected));
            let sent = self.session.as_ref().map_or(0, DtlsSnapshot::sequence);
            self.sequence = self.sequence.max(sent);
            self.phase = Phase::Connected(endpoint);
            self.events.push_back(DtlsEvent::Connected);
            self.events.extend(self.held.drain(..).map(DtlsEvent::Data));
        }
    }

    fn fail(&mut self, reason: &'static str) {
        self.phase = Phase::Closed;
        self.flight.end();
        self.give_up = None;
        self.events.push_back(DtlsEvent::Failed(reason));
    }

    /// Encrypts and queues application data.
    pub(super) fn send(&mut self, now: Instant, data: &[u8]) -> Result<(), Discard> {
        let Phase::Connected(endpoint) = &mut self.phase else {
            return Err(Discard::NotConnected);
        };
        endpoint
            .write(now, PEER, data)
            .map_err(|_| Discard::NotConnected)?;
        while let Some(transmit) = endpoint.poll_transmit() {
            let datagram = transmit.message.freeze();
            let after = snapshot::sequence_after(&datagram);
            self.sequence = self.sequence.max(after.unwrap_or(0));
            self.transmits.push_back(datagram);
        }
        Ok(())
    }

    /// Ends the connection; with an alert to the client or, when another node takes the session
    /// over, without.
    pub(super) fn close(&mut self, now: Instant, alert: bool) {
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        if let Phase::Handshaking(mut endpoint)
        | Phase::Unverified(mut endpoint)
        | Phase::Connected(mut endpoint) = phase
            && alert
            && endpoint.close(now).is_ok()
        {
            while let Some(transmit) = endpoint.poll_transmit() {
                self.transmits.push_back(transmit.message.freeze());
            }
        }
        self.flight.end();
        self.give_up = None;
    }

    pub(super) fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmits.pop_front()
    }

    pub(super) fn poll_event(&mut self) -> Option<DtlsEvent> {
        self.events.pop_front()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.flight.deadline(), self.give_up]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.flight.handle_timeout(now, &mut self.transmits);
        if self.give_up.is_some_and(|give_up| now >= give_up) {
            self.fail("the DTLS handshake took too long");
        }
    }
}
