//! The clients of a run: processes on LiveKit's own SDKs, driven over JSON lines and believed as to what
//! they saw and when. Their programs stand in `tests/interop`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::clock::{Ms, now_ms};
use crate::lab::Names;

/// Which SDK a client is built on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// `livekit` for Python.
    Python,
    /// `@livekit/rtc-node`.
    Node,
    /// `livekit-client` in Chromium.
    Chromium,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Chromium];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Node => "node",
            Self::Chromium => "chromium",
        }
    }

    fn command(self) -> (PathBuf, PathBuf) {
        let interop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interop");
        match self {
            Self::Python => (
                interop.join(".venv/bin/python"),
                interop.join("python/agent.py"),
            ),
            Self::Node => ("node".into(), interop.join("js/agent_node.mjs")),
            Self::Chromium => ("node".into(), interop.join("js/agent_chromium.mjs")),
        }
    }
}

/// Sound or picture.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Media {
    Audio,
    Video,
}

impl Media {
    pub(crate) const ALL: [Self; 2] = [Self::Audio, Self::Video];

    /// Time between two marks of an undisturbed stream.
    pub(crate) fn cadence_ms(self) -> Ms {
        match self {
            Self::Audio => 20.0,
            Self::Video => 100.0,
        }
    }
}

/// A line of an agent.
#[derive(Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line {
    Event(Event),
    Stamps {
        media: Media,
        sender: String,
        at: Vec<Ms>,
    },
    Data {
        sender: String,
        n: Vec<u64>,
        at: Vec<Ms>,
    },
    Sent {
        n: Vec<u64>,
        at: Vec<Ms>,
        failed: Vec<u64>,
    },
}

/// Something that an SDK told its user.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Event {
    pub(crate) at: Ms,
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) who: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sid: Option<String>,
}

/// A numbered message and when it was sent or arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) at: Ms,
}

/// What an agent saw since the last [`Agent::forget`].
#[derive(Clone, Default, Debug)]
pub(crate) struct Seen {
    pub(crate) events: Vec<Event>,
    /// When the stream of a publisher last moved on, in order.
    pub(crate) stamps: BTreeMap<(Media, String), Vec<Ms>>,
    pub(crate) received: BTreeMap<String, Vec<Numbered>>,
    /// Messages that the SDK accepted.
    pub(crate) sent: Vec<Numbered>,
    /// Messages that it refused.
    pub(crate) unsent: Vec<u64>,
}

/// A client's process. What it saw has two owners, the reading task and the judge, and so a lock.
pub(crate) struct Agent {
    pub(crate) index: usize,
    pub(crate) kind: Kind,
    pub(crate) identity: String,
    seen: Arc<Mutex<Seen>>,
    stdin: ChildStdin,
    child: Child,
}

impl Agent {
    /// Starts the process in its namespace and waits until it takes orders.
    pub(crate) async fn start(
        names: Names,
        index: usize,
        kind: Kind,
        identity: String,
        log: &Path,
    ) -> Result<Self> {
        let (program, script) = kind.command();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(log)?;
        let mut child = Command::new("ip")
            .args(["netns", "exec", &names.client(index)])
            .arg(program)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("the clients need what `make setup` installs")?;
        let stdin = child.stdin.take().context("a piped stdin")?;
        let stdout = child.stdout.take().context("a piped stdout")?;
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let into = seen.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // The SDKs print lines of their own, too.
                if let Ok(line) = serde_json::from_str(&line) {
                    into.lock().expect("no holder panics").take(line);
                }
            }
        });
        let agent = Self {
            index,
            kind,
            identity,
            seen,
            stdin,
            child,
        };
        agent
            .wait_for(0.0, Duration::from_secs(60), &["ready"])
            .await?;
        Ok(agent)
    }

    /// Orders it to join and waits until it has published.
    pub(crate) async fn join(
        &mut self,
        url: &str,
        token: &str,
        hears: Option<&[String]>,
        pause_ms: u64,
    ) -> Result<()> {
        let asked = now_ms();
        self.order(
            &json!({ "do": "join", "url": url, "token": token, "hears": hears, "pause": pause_ms }),
        )
        .await?;
        let event = self
            .wait_for(asked, Duration::from_secs(40), &["joined", "join_failed"])
            .await?;
        if event.name == "join_failed" {
            bail!("{} did not join: {:?}", self.identity, event.text);
        }
        Ok(())
    }

    /// Orders it to leave and waits until it has.
    pub(crate) async fn leave(&mut self) -> Result<()> {
        let asked = now_ms();
        self.order(&json!({ "do": "leave" })).await?;
        self.wait_for(asked, Duration::from_secs(15), &["left"])
            .await?;
        Ok(())
    }

    /// Lets it leave and end; kills it if it does not.
    pub(crate) async fn quit(mut self) {
        let asked = self.order(&json!({ "do": "quit" })).await;
        let ended = tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await;
        if asked.is_err() || ended.is_err() {
            let _ = self.child.kill().await;
        }
    }

    async fn order(&mut self, order: &serde_json::Value) -> Result<()> {
        self.stdin
            .write_all(format!("{order}\n").as_bytes())
            .await
            .with_context(|| format!("{} has ended", self.identity))
    }

    async fn wait_for(&self, since: Ms, limit: Duration, names: &[&str]) -> Result<Event> {
        let deadline = tokio::time::Instant::now() + limit;
        while tokio::time::Instant::now() < deadline {
            let found = self.with(|seen| {
                seen.events
                    .iter()
                    .find(|event| event.at >= since && names.contains(&&*event.name))
                    .cloned()
            });
            if let Some(event) = found {
                return Ok(event);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!(
            "{}: no {} within {limit:?}",
            self.identity,
            names.join(" or ")
        )
    }

    /// Looks at what it has seen.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().expect("no holder panics"))
    }

    /// Forgets everything before `at`.
    pub(crate) fn forget(&self, at: Ms) {
        self.seen.lock().expect("no holder panics").forget(at);
    }
}

impl Seen {
    fn take(&mut self, line: Line) {
        let zip = |n: Vec<u64>, at: Vec<Ms>| {
            n.into_iter()
                .zip(at)
                .map(|(number, at)| Numbered { number, at })
        };
        match line {
            Line::Event(event) => self.events.push(event),
            Line::Stamps { media, sender, at } => {
                self.stamps.entry((media, sender)).or_default().extend(at);
            }
            Line::Data { sender, n, at } => {
                self.received.entry(sender).or_default().extend(zip(n, at));
            }
            Line::Sent { n, at, failed } => {
                self.sent.extend(zip(n, at));
                self.unsent.extend(failed);
            }
        }
    }

    fn forget(&mut self, at: Ms) {
        self.events.retain(|event| event.at >= at);
        for stamps in self.stamps.values_mut() {
            stamps.retain(|stamp| *stamp >= at);
        }
        for numbers in self.received.values_mut() {
            numbers.retain(|message| message.at >= at);
        }
        self.sent.retain(|message| message.at >= at);
        self.unsent.clear();
    }

    /// When the stream of a publisher last moved on.
    pub(crate) fn last(&self, media: Media, sender: &str) -> Option<Ms> {
        self.stamps
            .get(&(media, sender.to_owned()))
            .and_then(|stamps| stamps.last())
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_agent_are_kept_and_forgotten() -> Result<()> {
        let mut seen = Seen::default();
        for line in [
            r#"{"kind":"event","at":5,"name":"reconnected","who":null,"sid":"PA_x"}"#,
            r#"{"kind":"stamps","media":"audio","sender":"b","at":[10.5,30]}"#,
            r#"{"kind":"data","sender":"b","n":[1,2],"at":[10,60]}"#,
            r#"{"kind":"sent","n":[7],"at":[50],"failed":[8]}"#,
        ] {
            seen.take(serde_json::from_str(line)?);
        }
        assert_eq!(seen.last(Media::Audio, "b"), Some(30.0));
        assert_eq!(seen.last(Media::Video, "b"), None);
        assert_eq!(seen.events[0].sid.as_deref(), Some("PA_x"));
        assert_eq!((seen.sent[0].number, &seen.unsent[..]), (7, &[8][..]));
        seen.forget(30.0);
        assert!(seen.events.is_empty());
        assert_eq!(seen.stamps[&(Media::Audio, "b".to_owned())], [30.0]);
        assert_eq!(seen.received["b"].len(), 1);
        Ok(())
    }
}
