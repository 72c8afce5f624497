//! Things that are taken away while their owner does all it can to keep them: a participant is removed and
//! tries to come back at every node with the token that it had; another loses its permission and
//! publishes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use testkit::client::{Client, Message, Options};
use testkit::token;

use super::stream::options;
use super::{Process, Shift, on_thread};
use crate::api::{Answer, Api};
use crate::check::revocation::LastHeard;
use crate::history::{History, Kind};
use crate::net::End;
use crate::net::emulator::Chance;

const PAUSE: Duration = Duration::from_millis(400);
/// How long a refused client may take to be refused.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// A running worker; gives when each participant said the last that was heard of it.
pub(crate) type Revoker = JoinHandle<Result<Vec<LastHeard>>>;

/// Starts one.
pub(crate) fn start(shift: &Shift, urls: &[(u64, String)], seed: u64) -> std::io::Result<Revoker> {
    let worker = Worker {
        process: shift.process(1),
        shift: shift.clone(),
        urls: urls.to_vec(),
        room: format!("revoke-{seed}"),
        chance: Chance(seed ^ 0x5eed),
    };
    on_thread("revoke".to_owned(), move || worker.run())
}

struct Worker {
    shift: Shift,
    process: Process,
    urls: Vec<(u64, String)>,
    room: String,
    chance: Chance,
}

impl Worker {
    async fn run(mut self) -> Vec<LastHeard> {
        // Told by the listener's task, read at the end: two owners.
        let heard: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let listener = tokio::spawn(listen(
            self.shift.clone(),
            self.urls.clone(),
            self.room.clone(),
            heard.clone(),
        ));
        let mut count = 0;
        while self.shift.goes_on() {
            count += 1;
            if count % 3 == 0 {
                self.forbid(&format!("muted-{count}")).await;
            } else {
                self.revoke(&format!("mallory-{count}")).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
        let _ = listener.await;
        let heard = heard.lock().expect("no holder panics");
        let last = heard.iter().map(|(identity, said)| LastHeard {
            identity: identity.clone(),
            said: *said,
        });
        last.collect()
    }

    fn options(&mut self, token: String) -> (u64, Options) {
        let (node, _) = self.chance.pick(&self.urls).clone();
        let mut wanted = options(&self.urls, node, token, End::client(120));
        wanted.auto_subscribe = false;
        wanted.timeout = CONNECT_MAX;
        (node, wanted)
    }

    async fn call(
        &mut self,
        f: &'static str,
        key: &str,
        method: &'static str,
        body: serde_json::Value,
    ) -> bool {
        let (node, url) = self.chance.pick(&self.urls).clone();
        self.process.ask(node);
        let action = self.process.begin(f, key, "");
        let room = self.room.clone();
        let asked = tokio::task::spawn_blocking(move || Api::new(&url).call(method, &room, &body));
        let (kind, error) = match asked.await {
            Ok(Answer::Done(_)) => (Kind::Ok, None),
            Ok(Answer::Refused(code, text)) => (Kind::Fail, Some(format!("{code}: {text}"))),
            Ok(Answer::Unknown(text)) => (Kind::Info, Some(text)),
            Err(failure) => (Kind::Info, Some(failure.to_string())),
        };
        self.process.end(&action, kind, None, error);
        kind == Kind::Ok
    }

    /// Somebody is removed while it sends, and tries to come back.
    async fn revoke(&mut self, identity: &str) {
        let token = token::join(&self.room, identity, &json!({}));
        let Some(client) = self.enter(identity, &token).await else {
            return;
        };
        // It sends until it is stopped, and asks for its session back wherever it can. Each message says when it was
        // said.
        let history = self.shift.history.clone();
        let sending = tokio::spawn(async move {
            while client.is_connected() {
                let said = history.now().to_le_bytes();
                if client.send(&said, "revoke", true).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            client
        });
        tokio::time::sleep(Duration::from_millis(100 + self.chance.below(300))).await;
        let body = json!({ "room": self.room, "identity": identity });
        self.call("revoke", identity, "RemoveParticipant", body)
            .await;
        for _ in 0..self.urls.len() {
            if let Some(client) = self.enter(identity, &token).await {
                client.leave().await;
            }
        }
        // One that cannot be ended goes on sending, which the listener hears.
        if let Ok(Ok(client)) = tokio::time::timeout(Duration::from_secs(5), sending).await {
            client.leave().await;
        }
    }

    async fn enter(&mut self, identity: &str, token: &str) -> Option<Client> {
        let (node, wanted) = self.options(token.to_owned());
        self.process.ask(node);
        let action = self.process.begin("enter", identity, "");
        match Client::connect(wanted).await {
            Ok(client) => {
                self.process.end(&action, Kind::Ok, None, None);
                Some(client)
            }
            Err(failure) => {
                let text = format!("{failure:#}");
                // An HTTP status is a refusal; anything else may have been a join.
                let refused = ["401", "403", "404"]
                    .iter()
                    .any(|status| text.starts_with(status));
                let kind = if refused { Kind::Fail } else { Kind::Info };
                self.process.end(&action, kind, None, Some(text));
                None
            }
        }
    }

    /// Somebody may not publish any more, and does.
    async fn forbid(&mut self, identity: &str) {
        let token = token::join(&self.room, identity, &json!({}));
        let Some(client) = self.enter(identity, &token).await else {
            return;
        };
        let permission =
            json!({ "canSubscribe": true, "canPublish": false, "canPublishData": false });
        let body = json!({ "room": self.room, "identity": identity, "permission": permission });
        self.call("forbid", identity, "UpdateParticipant", body)
            .await;
        let action = self.process.begin("publish", identity, "");
        let (kind, error) = match client.publish("defiance", "audio/opus").await {
            Ok(_) => (Kind::Ok, None),
            Err(failure) => {
                let text = format!("{failure:#}");
                let refused = text.starts_with("refused");
                (if refused { Kind::Fail } else { Kind::Info }, Some(text))
            }
        };
        self.process.end(&action, kind, None, error);
        client.leave().await;
    }
}

/// Hears everybody in the room, until it is over.
async fn listen(
    shift: Shift,
    urls: Vec<(u64, String)>,
    room: String,
    heard: Arc<Mutex<BTreeMap<String, u64>>>,
) {
    let history: History = shift.history.clone();
    let mut count = 0;
    while !shift.is_released() {
        count += 1;
        let token = token::join(&room, &format!("listener-{count}"), &json!({}));
        let Ok(mut client) =
            Client::connect(options(&urls, urls[0].0, token, End::client(121))).await
        else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        while client.is_connected() && !shift.is_released() {
            let next = tokio::time::timeout(Duration::from_millis(100), client.messages.recv());
            let Ok(Some(message)) = next.await else {
                continue;
            };
            let identity = message.packet.participant_identity.clone();
            if !identity.is_empty() {
                // A listener that moves or joins hears some of it again, late.
                let said = said(&message).unwrap_or_else(|| history.now());
                let mut heard = heard.lock().expect("no holder panics");
                let last = heard.entry(identity).or_default();
                *last = said.max(*last);
            }
        }
        client.leave().await;
    }
}

/// When a message was said, nanoseconds of the history's clock.
fn said(message: &Message) -> Option<u64> {
    message.user()?.try_into().ok().map(u64::from_le_bytes)
}
