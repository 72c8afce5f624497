//! Whole clusters of Flotilla's cores on a virtual clock: a seeded network, seeded clients as the SDKs behave,
//! seeded faults, and every invariant checked at every step.
//!
//! ```text
//! seed ─ Plan ─ World ─┬─ nodes: model, signal sessions, hub rooms, judge, guard, plans (the product's own)
//!                      ├─ consensus, mesh transport, media engine (modelled)
//!                      ├─ clients, network, disks, clocks (modelled)
//!                      └─ facts ─ invariants ─ Outcome
//! ```
//! What is real and what is modelled, and why: `docs/adr/2026-11-28-simulator.md`.

pub mod bug;
pub mod client;
pub mod consensus;
pub mod detect;
pub mod engine;
pub mod faults;
pub mod invariants;
pub mod links;
pub mod message;
pub mod net;
pub mod node;
pub mod plan;
pub mod planted;
pub mod raft;
pub mod rng;
pub mod run;
pub mod sessions;
pub mod tell;
pub mod time;
pub mod ways;
pub mod witness;
pub mod world;
