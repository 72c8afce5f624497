//! One peer connection: from datagrams to media packets and data-channel messages, and back.
//!
//! ```text
//! datagram -> demux -> stun -> ice ----.
//!                   -> dtls -> dtls ---+-> transport -> engine
//!                        '-> sctp -----'
//!                   -> rtp, rtcp -> srtp -> router
//! ```

mod contain;
pub mod demux;
pub mod dtls;
pub mod ice;
pub mod negotiation;
pub mod passage;
pub mod sctp;
pub mod sdp;
pub mod srtp;
pub mod transport;
