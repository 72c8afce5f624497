//! Whole routers on a virtual clock: publishers and subscribers behind seeded, lossy networks, and
//! a judge that looks at every frame.

mod agents;
mod bad_input;
mod detours;
mod fan_out;
mod publish;
mod relay;
mod simulcast;
mod world;
