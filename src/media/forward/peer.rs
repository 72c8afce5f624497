//! What the router keeps of a peer: the streams it sends us, and the sections we send it.

use std::time::{Duration, Instant};

use flotilla_model::id::TrackSid;
use rand::Rng;

use crate::forward::parameters::SendSection;
use crate::index::IdMap;
use crate::peer::passage::SentStream;
use crate::receive::demux::Demux;
use crate::rtp::twcc::Arrivals;
use crate::send::congestion::Congestion;

/// Round trip to a publisher assumed until a repair measures it.
const RTT_DEFAULT: Duration = Duration::from_millis(100);

/// A peer.
pub struct Peer {
    /// SSRC of this side in RTCP about what it sends. Its own and new, because a connection that had
    /// another home has keys with which that home sent under its SSRC.
    pub ssrc: u32,
    /// It can receive.
    pub is_connected: bool,
    /// Streams it sends.
    pub demux: Demux,
    /// Arrival times of its packets, if it wants to know them.
    pub arrivals: Option<Arrivals>,
    /// An SSRC of it, for feedback about all of its streams.
    pub any_ssrc: u32,
    /// Sections it receives on.
    pub sections: Vec<SendSection>,
    /// Tracks by the SSRC (media or repair) they are sent under.
    pub sent: IdMap<u32, TrackSid>,
    /// Streams that began at another node and go on here once their subscriptions are bound.
    pub going_on: Vec<SentStream>,
    /// Since when.
    pub going_on_since: Option<Instant>,
    /// What its path can take.
    pub congestion: Congestion,
    /// When it is sent reception reports next.
    pub report_at: Instant,
    /// Bandwidth estimate last reported to it, bits per second.
    pub remb_bps: u64,
    rtt: Option<Duration>,
}

impl Peer {
    /// A peer of which nothing is known.
    #[must_use]
    pub fn new(now: Instant, rng: &mut impl Rng) -> Self {
        Self {
            ssrc: rng.random_range(1..u32::MAX),
            is_connected: false,
            demux: Demux::default(),
            arrivals: None,
            any_ssrc: 0,
            sections: vec![],
            sent: IdMap::default(),
            going_on: Vec::new(),
            going_on_since: None,
            congestion: Congestion::default(),
            report_at: now,
            remb_bps: 0,
            rtt: None,
        }
    }

    /// Round trip of repairs, smoothed.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.rtt.unwrap_or(RTT_DEFAULT)
    }

    /// A repair measured the round trip.
    pub fn measured(&mut self, sample: Duration) {
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
    }

    /// Neither publishes nor receives.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.demux.sections().is_empty() && self.sections.is_empty()
    }
}
