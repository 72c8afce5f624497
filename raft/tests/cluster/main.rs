//! Groups of several nodes in one process: real gRPC on loopback, real storage in folders of their
//! own, each node on a runtime of its own so that it can be killed at once.

mod failure;
mod feed;
mod harness;
mod joining;
mod replication;
mod voters;
