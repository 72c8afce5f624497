//! Proof from the wire: what subscribers were sent, read from a capture, judged without any key.
//!
//! [`capture`] runs tcpdump on the bridge and reads its file packet by packet; [`proof`] holds the two
//! promises: one key never protects two packets with one index, and nothing of an older home reaches a
//! subscriber after something of a newer one.

pub(crate) mod capture;
pub(crate) mod packet;
pub(crate) mod proof;
