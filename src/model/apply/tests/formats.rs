//! Nodes whose programs read different versions: nothing gets into the log or a snapshot that one of
//! them could not read.

use proptest::prelude::*;

use super::property::commands;
use super::*;
use crate::cluster::Formats;
use crate::encoding::{encode_entry, encode_snapshot};

fn reading(id: u64, log: u8) -> Node {
    let formats = Formats { log, mesh: 1 };
    Node {
        version: formats.tell("0.1.0"),
        ..node(id, 1)
    }
}

#[test]
fn the_lowest_node_says_what_may_be_in_the_log() {
    let mut replica = Replica {
        state: State::default(),
        now: 0,
        request: 0,
    };
    assert!(replica.state.all_read(1) && !replica.state.all_read(2));
    replica.done(Command::PutNode(reading(1, 4)));
    assert_eq!(replica.state.log_version(), 4);
    let refused = replica.refused(Command::PutNode(reading(2, 3)));
    let text = "this cluster's log has version 4, node 2 reads up to 3";
    assert_eq!(refused, Rejection::NotPermitted(text.to_owned()));
    // Its own program cannot be taken back either, once there may be something new in the log.
    let refused = replica.refused(Command::PutNode(reading(1, 3)));
    assert!(matches!(refused, Rejection::NotPermitted(_)));
}

#[test]
fn an_upgrade_can_be_taken_back_until_its_last_node() {
    let mut replica = Replica::new();
    let untold = Formats::UNTOLD.log;
    assert_eq!(replica.state.log_version(), untold);
    for id in [1, 2] {
        replica.done(Command::PutNode(reading(id, untold + 1)));
        assert!(!replica.state.all_read(untold + 1));
    }
    replica.done(Command::PutNode(node(2, 1)));
    replica.done(Command::PutNode(reading(2, untold + 1)));
    replica.done(Command::PutNode(reading(3, untold + 1)));
    assert!(replica.state.all_read(untold + 1));
    let refused = replica.refused(Command::PutNode(node(2, 1)));
    assert!(matches!(refused, Rejection::NotPermitted(_)));
}

/// Nodes come and start again with programs that read version 1, 2 or 3, while all sorts of commands are
/// proposed.
fn steps() -> impl Strategy<Value = Vec<Command>> {
    let starts = (1u64..=4, 1u8..=3).prop_map(|(id, log)| Command::PutNode(reading(id, log)));
    prop::collection::vec(prop_oneof![1 => starts, 4 => commands()], 1..80)
}

proptest! {
    #[test]
    fn nothing_is_written_that_a_node_cannot_read(steps in steps()) {
        let mut replica = Replica { state: State::default(), now: 0, request: 0 };
        replica.done(Command::PutNode(reading(1, 1)));
        for command in steps {
            let before = replica.state.log_version();
            // What `Group::propose` does.
            let command = command.worded_for(before);
            if !replica.state.all_read(command.since_version()) {
                continue;
            }
            let entry = replica.entry(command);
            let readers = replica.state.nodes.values().map(|node| node.formats().log);
            let lowest = readers.min().unwrap_or(1);
            prop_assert!(encode_entry(&entry)[0] <= lowest);
            replica.state.apply(&entry);
            let after = replica.state.log_version();
            prop_assert!(after >= before || replica.state.nodes.is_empty());
            prop_assert!(encode_snapshot(&replica.state)[0] <= after.max(1));
        }
    }
}
