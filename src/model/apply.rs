//! The state machine: one entry in, events and a reply out, the same on every node.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::Node;
use crate::command::{Entry, Rejection, Reply};
use crate::event::Event;
use crate::id::{NodeId, Revision, RoomName};
use crate::room::Room;

/// Everything one region's group agrees on. Cheap to share: readers hold an `Arc<State>`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct State {
    /// Entries applied.
    pub revision: Revision,
    /// Nodes by id.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Rooms by name.
    pub rooms: BTreeMap<RoomName, Arc<Room>>,
}

/// What applying one entry gave.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Applied {
    /// The answer for whoever asked.
    pub result: Result<Reply, Rejection>,
    /// What changed, in order.
    pub events: Vec<Event>,
}

impl State {
    /// Applies one entry. An entry whose request id was applied before changes nothing and gets the
    /// same answer.
    pub fn apply(&mut self, _entry: &Entry) -> Applied {
        Applied {
            result: Err(Rejection::RoomNotFound),
            events: Vec::new(),
        }
    }
}
