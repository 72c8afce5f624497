//! What tests share: a LiveKit client on webrtc-rs's own peer connection, so that test and tested
//! have no media code in common, and real clusters of `flotilla` processes.

pub mod client;
pub mod cluster;
pub mod room_service;
pub mod token;
