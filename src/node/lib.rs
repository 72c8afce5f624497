//! How it all runs: sockets, tasks, clocks and files around the three cores.
//!
//! ```text
//! client ═ http ─ session ─┬─ signal (core)
//!                          ├─ group (flotilla-raft) ─ control ─ hub ─ sessions
//!                          └─ shard ─ media (core) ═ UDP
//! node ═ mesh ─ hub                        node ═ raft, admin
//! ```
//!
//! Nothing is decided here: the shell moves inputs to a core and outputs to where they belong. The
//! binary is `flotilla` ([`cli`]); [`run`] puts a node together.

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod data_dir;
pub mod http;
pub mod hub;
pub mod interfaces;
pub mod mesh;
pub mod moving;
pub mod run;
pub mod session;
pub mod shard;
pub mod telemetry;
pub mod udp;
