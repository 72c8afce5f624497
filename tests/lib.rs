//! What tests share: a LiveKit client on webrtc-rs's own peer connection, so that test and tested
//! have no media code in common, real clusters of `flotilla` processes, and disks whose power can be cut.

pub mod client;
pub mod cluster;
pub mod disk;
pub mod room_service;
pub mod token;
