//! How the nodes agree: Raft groups over `flotilla-storage`, applied to `flotilla-model`.
//!
//! ```text
//!   propose ─► proposer ─► openraft ─► storage            network ═══ service of other nodes
//!      ▲          │ (follower: forward stream to the leader)  │
//!      │          ▼                                           ▼
//!   pending ◄── machine (applies, in log order) ─► feed ─► sessions, reconciler, watch streams
//! ```
//! A node has one [`Group`] per region it belongs to, and one for the cluster as a whole; all share
//! the connections in [`Channels`] and are reached through the services in [`Groups::routes`].
//! openraft is named nowhere above this crate.

mod auth;
mod blocking;
mod channels;
mod clock;
mod config;
mod connector;
mod duty;
mod envelope;
mod error;
mod feed;
mod forward;
mod group;
mod groups;
mod incarnation;
mod machine;
mod membership;
mod network;
mod pending;
mod proposer;
mod proto;
mod reader;
mod service;
mod status;
mod stop;
mod types;
#[cfg(feature = "fuzzing")]
mod wire;

pub use auth::{Authenticated, Guarded, Secret};
pub use channels::{
    ByteStream, ChannelError, Channels, ChannelsConfig, Connection, Dialer, Lane, PeerChannel,
    STOP_GRACE, ServeError, Tls, Tunnel,
};
pub use clock::Clock;
pub use config::{GroupConfig, GroupId};
pub use error::{BootstrapError, ChangeError, JoinError, ProposeError, ReadError, StartError};
pub use feed::{Applied, Change, Feed, FeedError, HISTORY_MAX, Lagged};
pub use group::Group;
pub use groups::Groups;
pub use status::{MemberStatus, Position, Role, StateHash, Status};
pub use types::Member;
#[cfg(feature = "fuzzing")]
pub use wire::check_wire;
