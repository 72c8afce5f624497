//! Rooms that span nodes, from outside: real processes, the test client, one file per subject.

mod failover;
mod floating;
mod leader_loss;
mod media;
mod shards;
