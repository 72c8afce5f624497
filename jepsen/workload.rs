//! People who join and publish and an administrator who creates rooms, through one node, one after the
//! other and each acknowledged; and what the cluster says afterwards of what they did.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};
use testkit::client::{Client, Options};
use testkit::{room_service, token};

use crate::checker;
use crate::history::{History, Kind, Operation};

/// Where and for how long to work.
#[derive(Clone)]
pub(crate) struct Worker {
    /// Node that is asked.
    pub(crate) node: u64,
    /// Its base URL.
    pub(crate) url: String,
    /// Where clients gather from, e.g. `127.0.0.1:0`.
    pub(crate) bind: String,
    /// Room that people join; created ones are named after it.
    pub(crate) room: String,
    pub(crate) history: History,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Worker {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Joins and publishes one identity after the other; returns who is still in.
    pub(crate) async fn join_and_publish(self) -> Vec<Client> {
        let process = format!("join-{}", self.node);
        let record = |kind, f, value: &str, failure: Option<anyhow::Error>| {
            let failure = failure.map(|failure| format!("{failure:#}"));
            self.history
                .record(&process, kind, f, value, self.node, failure);
        };
        let mut clients = Vec::new();
        let mut count = 0;
        while self.goes_on() {
            let identity = format!("{}-{}-{count}", self.room, self.node);
            count += 1;
            record(Kind::Invoke, "join", &identity, None);
            let mut options =
                Options::new(&self.url, token::join(&self.room, &identity, &json!({})));
            options.auto_subscribe = false;
            options.bind.clone_from(&self.bind);
            options.timeout = Duration::from_secs(5);
            match Client::connect(options).await {
                Ok(client) => {
                    record(Kind::Ok, "join", &identity, None);
                    record(Kind::Invoke, "publish", &identity, None);
                    match client.publish("tone", "audio/opus").await {
                        Ok((_, sender)) => {
                            record(Kind::Ok, "publish", &identity, None);
                            let _ = sender.write(0, false, Bytes::from_static(&[0xf8])).await;
                        }
                        Err(failure) => record(Kind::Info, "publish", &identity, Some(failure)),
                    }
                    clients.push(client);
                }
                Err(failure) => record(Kind::Info, "join", &identity, Some(failure)),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        clients
    }

    /// Creates rooms with metadata.
    pub(crate) fn write(&self) {
        let mut count = 0;
        while self.goes_on() {
            let name = format!("{}-room-{}-{count}", self.room, self.node);
            count += 1;
            let body = json!({ "name": name, "metadata": name, "emptyTimeout": 600 });
            self.call("write", &name, "CreateRoom", &name, &body);
        }
    }

    /// Gives a participant numbers for metadata, each higher than the one before.
    pub(crate) fn count_up(&self, room: &str, identity: &str) {
        /// Everybody in the room is told.
        const PAUSE: Duration = Duration::from_millis(50);
        let mut count = 0;
        while self.goes_on() {
            count += 1;
            let number = format!("{count:08}");
            let body = json!({ "room": room, "identity": identity, "metadata": number });
            self.call("metadata", &number, "UpdateParticipant", room, &body);
            std::thread::sleep(PAUSE);
        }
    }

    fn call(&self, f: &'static str, value: &str, method: &str, room: &str, body: &Value) {
        let process = format!("{f}-{}", self.node);
        let record = |kind, failure| {
            self.history
                .record(&process, kind, f, value, self.node, failure);
        };
        record(Kind::Invoke, None);
        match room_service::call(&self.url, method, room, body) {
            Ok(_) => record(Kind::Ok, None),
            Err(failure) => record(outcome_of(&failure), Some(format!("{failure:#}"))),
        }
    }
}

/// A refusal in so many words was not applied; of anything else the outcome is unknown.
fn outcome_of(failure: &anyhow::Error) -> Kind {
    let text = format!("{failure:#}");
    let refusals = [
        "permission_denied",
        "invalid_argument",
        "unauthenticated",
        "resource_exhausted",
    ];
    if refusals.iter().any(|code| text.contains(code)) {
        Kind::Fail
    } else {
        Kind::Info
    }
}

/// What a node says is there.
pub(crate) struct Survey {
    joined: BTreeSet<String>,
    published: BTreeSet<String>,
    written: BTreeSet<String>,
}

impl Survey {
    /// Who joined `room`, who publishes there and which rooms were created beside it.
    pub(crate) fn ask(url: &str, room: &str) -> Result<Self> {
        let listed = room_service::call(url, "ListParticipants", room, &json!({ "room": room }))?;
        let participants = listed["participants"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let identity = |value: &Value| value["identity"].as_str().map(str::to_owned);
        let publishes = |value: &&Value| {
            let tracks = value["tracks"].as_array();
            tracks.is_some_and(|tracks| !tracks.is_empty())
        };
        let rooms = room_service::call(url, "ListRooms", "", &json!({}))?;
        Ok(Self {
            joined: participants.iter().filter_map(identity).collect(),
            published: participants
                .iter()
                .filter(publishes)
                .filter_map(identity)
                .collect(),
            written: rooms["rooms"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|value| value["metadata"].as_str())
                .filter(|name| name.starts_with(&format!("{room}-room-")))
                .map(str::to_owned)
                .collect(),
        })
    }

    /// What was acknowledged and is not there, and what is there although nobody asked for it.
    pub(crate) fn check(&self, operations: &[Operation]) -> Vec<String> {
        let mut violations = checker::lost(operations, "join", &self.joined);
        violations.extend(checker::lost(operations, "publish", &self.published));
        violations.extend(checker::lost(operations, "write", &self.written));
        violations.extend(checker::phantoms(operations, "join", &self.joined));
        violations.extend(checker::phantoms(operations, "write", &self.written));
        violations
    }
}
