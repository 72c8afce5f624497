//! Watchers: `flotilla admin watch` at every node, as an operator's tool would run it. It goes on by itself
//! where a broken stream ended; where it gives up, it is started anew.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use testkit::cluster::{Node, binary};

use super::Shift;
use crate::check::feed::{Feed, Told, What};
use crate::check::owner::Served;

/// A watcher of one node.
pub(crate) struct Watcher {
    process: Arc<Mutex<Option<Child>>>,
    thread: JoinHandle<Result<(Feed, Vec<Served>)>>,
}

/// Starts one.
pub(crate) fn start(shift: &Shift, node: &Node) -> Result<Watcher> {
    let mut arguments = vec!["admin".to_owned()];
    arguments.extend(node.admin_arguments().map(str::to_owned));
    arguments.extend(["--json".to_owned(), "watch".to_owned()]);
    // The child has two owners: the thread that reads from it and whoever ends it.
    let process = Arc::new(Mutex::new(None));
    let (own, shift, id) = (process.clone(), shift.clone(), node.id);
    let thread = std::thread::Builder::new()
        .name(format!("watch-{id}"))
        .spawn(move || {
            let mut feed = Feed {
                node: id,
                told: Vec::new(),
            };
            let mut served = Vec::new();
            while !shift.is_released() {
                read(&arguments, &own, &mut feed, &mut served)?;
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            Ok((feed, served))
        })?;
    Ok(Watcher { process, thread })
}

impl Watcher {
    /// Ends it, after everybody was released, and gives what it was told.
    pub(crate) fn end(self) -> Result<(Feed, Vec<Served>)> {
        while !self.thread.is_finished() {
            if let Some(process) = self.process.lock().expect("no holder panics").as_mut() {
                let _ = process.kill();
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        self.thread
            .join()
            .map_err(|_| anyhow!("a watcher panicked"))?
    }
}

fn read(
    arguments: &[String],
    process: &Mutex<Option<Child>>,
    feed: &mut Feed,
    served: &mut Vec<Served>,
) -> Result<()> {
    let mut child = Command::new(binary()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let out = child.stdout.take().context("a piped stdout")?;
    *process.lock().expect("no holder panics") = Some(child);
    for line in BufReader::new(out).lines() {
        // The last line of one that was killed may be half a line.
        let Ok(message) = serde_json::from_str::<Value>(&line?) else {
            break;
        };
        take(&message, feed, served);
    }
    if let Some(mut child) = process.lock().expect("no holder panics").take() {
        let _ = child.kill();
        child.wait()?;
    }
    Ok(())
}

fn take(message: &Value, feed: &mut Feed, served: &mut Vec<Served>) {
    let Some(revision) = message["position"]["revision"].as_u64() else {
        return;
    };
    let what = match (message.get("snapshot"), message.get("events")) {
        (Some(_), _) => What::Snapshot,
        (None, Some(events)) => {
            for event in events.as_array().into_iter().flatten() {
                served.extend(home(event, feed.node));
            }
            What::Change(events.to_string())
        }
        (None, None) => What::Progress,
    };
    feed.told.push(Told { revision, what });
}

/// What an event says of a participant's home.
fn home(event: &Value, teller: u64) -> Option<Served> {
    let kind = event["event"].as_str()?;
    if !matches!(
        kind,
        "participant_joined" | "participant_updated" | "participant_moved"
    ) {
        return None;
    }
    let what = &event["what"];
    Some(Served {
        teller,
        sid: what["sid"].as_str()?.to_owned(),
        epoch: what["epoch"].as_u64()?,
        home: what["home"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_become_a_feed_and_homes() {
        let position = json!({ "revision": 7, "node": 2 });
        let moved = json!({
            "event": "participant_moved", "room": "a", "room_version": 3,
            "what": { "sid": "PA_x", "home": 3, "epoch": 2 },
        });
        let mut feed = Feed::default();
        let mut served = Vec::new();
        for message in [
            json!({ "snapshot": {}, "position": position }),
            json!({ "events": [moved], "position": position }),
            json!({ "progress": {}, "position": position }),
            json!({ "nonsense": 1 }),
        ] {
            take(&message, &mut feed, &mut served);
        }
        assert_eq!(feed.told.len(), 3);
        assert!(matches!(&feed.told[1].what, What::Change(text) if text.contains("PA_x")));
        assert_eq!((served[0].home, served[0].epoch), (3, 2));
    }
}
