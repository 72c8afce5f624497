//! Tests of the store as its users see it: openraft's conformance suite, reopening, damage,
//! failure, and random operations against a model.

mod conformance;
mod damage;
mod journal;
mod model;
#[cfg(feature = "simulation")]
mod simulation;
mod support;
