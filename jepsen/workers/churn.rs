//! People who come and go: each joins with an identity that nobody has used, publishes, stays a while, and
//! leaves; through every node at once.

use std::collections::{BTreeSet, VecDeque};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;
use testkit::client::Client;
use testkit::token;

use super::stream::options;
use super::{Process, Shift, on_thread};
use crate::api::{Answer, Api};
use crate::history::Kind;
use crate::net::End;

/// So many stay at a node at a time.
const STAY: usize = 2;
/// Between two changes at a node.
const PAUSE: Duration = Duration::from_millis(350);
/// How long a departure may take to be seen.
const LEAVE_MAX: Duration = Duration::from_secs(4);

/// A running churn at one node; gives who was connected at the end.
pub(crate) type Churn = JoinHandle<Result<BTreeSet<String>>>;

/// Room that everybody comes to.
pub(crate) fn room(seed: u64) -> String {
    format!("churn-{seed}")
}

/// Starts one worker.
pub(crate) fn start(
    shift: &Shift,
    node: u64,
    urls: &[(u64, String)],
    seed: u64,
) -> std::io::Result<Churn> {
    shift.begins();
    let worker = Worker {
        process: shift.process(node),
        shift: shift.clone(),
        node,
        urls: urls.to_vec(),
        room: room(seed),
        inside: VecDeque::new(),
    };
    on_thread(format!("churn-{node}"), move || worker.run())
}

struct Worker {
    shift: Shift,
    process: Process,
    node: u64,
    urls: Vec<(u64, String)>,
    room: String,
    inside: VecDeque<(String, Client)>,
}

impl Worker {
    async fn run(mut self) -> BTreeSet<String> {
        let mut count = 0;
        while self.shift.goes_on() {
            count += 1;
            self.join(&format!("{}-{}-{count}", self.room, self.node))
                .await;
            if self.inside.len() > STAY
                && let Some((identity, client)) = self.inside.pop_front()
            {
                self.leave(&identity, client).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let stayed = self
            .inside
            .iter()
            .filter(|(_, client)| client.is_connected())
            .map(|(identity, _)| identity.clone())
            .collect();
        self.shift.is_done();
        self.shift.released().await;
        for (_, client) in self.inside {
            client.leave().await;
        }
        stayed
    }

    async fn join(&mut self, identity: &str) {
        let action = self.process.begin("join", "", identity);
        let token = token::join(&self.room, identity, &json!({}));
        let end = End::client(100 + usize::try_from(self.node).unwrap_or(0));
        let mut wanted = options(&self.urls, self.node, token, end);
        wanted.auto_subscribe = false;
        let client = match Client::connect(wanted).await {
            Ok(client) => client,
            Err(failure) => {
                let failure = format!("{failure:#}");
                return self.process.end(&action, Kind::Info, None, Some(failure));
            }
        };
        self.process.end(&action, Kind::Ok, None, None);
        let action = self.process.begin("announce", "", identity);
        match client.publish("voice", "audio/opus").await {
            Ok((_, sender)) => {
                self.process.end(&action, Kind::Ok, None, None);
                let _ = sender.write(0, false, Bytes::from_static(&[0xf8])).await;
            }
            Err(failure) => {
                let failure = format!("{failure:#}");
                self.process.end(&action, Kind::Info, None, Some(failure));
            }
        }
        self.inside.push_back((identity.to_owned(), client));
    }

    /// Says goodbye and looks whether it was heard: a departure has no answer of its own.
    async fn leave(&mut self, identity: &str, client: Client) {
        let was_connected = client.is_connected();
        let action = self.process.begin("leave", "", identity);
        client.leave().await;
        let gone = was_connected && self.is_gone(identity).await;
        let (kind, error) = if gone {
            (Kind::Ok, None)
        } else {
            (Kind::Info, Some("not seen to be gone".to_owned()))
        };
        self.process.end(&action, kind, None, error);
    }

    async fn is_gone(&self, identity: &str) -> bool {
        let urls: Vec<String> = self.urls.iter().map(|(_, url)| url.clone()).collect();
        let (room, identity) = (self.room.clone(), identity.to_owned());
        let own = usize::try_from(self.node).unwrap_or(1) - 1;
        let asked = tokio::task::spawn_blocking(move || {
            let deadline = std::time::Instant::now() + LEAVE_MAX;
            let body = json!({ "room": room, "identity": identity });
            while std::time::Instant::now() < deadline {
                for step in 0..urls.len() {
                    let api = Api::new(&urls[(own + step) % urls.len()]);
                    if let Answer::Refused(code, _) = api.call("GetParticipant", &room, &body)
                        && code == "not_found"
                    {
                        return true;
                    }
                }
                std::thread::sleep(Duration::from_millis(60));
            }
            false
        });
        asked.await.unwrap_or(false)
    }
}
