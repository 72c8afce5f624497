//! What the nodes agree on: rooms, participants, tracks, subscriptions, routes and nodes, and the
//! commands that change them.
//!
//! `flotilla-raft` feeds committed [`command::Entry`] values to [`State::apply`] on every node, in
//! log order; what comes out is the same everywhere. Sessions, the reconciler and the admin API
//! read [`State`] snapshots and the ordered [`event::Event`]s. Nothing here knows a clock, a socket
//! or a random number: those arrive as fields of commands.

pub mod apply;
pub mod cluster;
pub mod command;
pub mod deadline;
pub mod encoding;
pub mod event;
pub mod id;
pub mod limit;
pub mod map;
pub mod participant;
pub mod permission;
pub mod placement;
pub mod request;
pub mod room;
pub mod track;
pub mod unit;

pub use apply::State;
