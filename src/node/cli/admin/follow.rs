//! `flotilla admin watch`: prints changes as they come, and resumes when the connection breaks.

use std::time::{Duration, Instant};

use anyhow::bail;
use tonic::{Code, Status};

use super::client::Client;
use super::{emit, json, table};
use crate::admin::proto;
use crate::admin::proto::watch_response::Message;

/// Pause before the next try.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the node may be away.
const AWAY_MAX: Duration = Duration::from_secs(60);

pub(super) async fn run(
    client: &mut Client,
    room: String,
    after: Option<u64>,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut after = after;
    let mut heard = Instant::now();
    loop {
        let status = match client.watch(&room, after).await {
            Err(status) => status,
            Ok(mut messages) => loop {
                match messages.message().await {
                    Err(status) => break status,
                    Ok(None) => break Status::unavailable("the node ended the stream"),
                    Ok(Some(response)) => {
                        heard = Instant::now();
                        let Some(message) = response.message else {
                            continue;
                        };
                        // A snapshot in parts counts once its last part is here.
                        if let Some(revision) = revision(&message) {
                            after = Some(revision);
                        }
                        print(&message, as_json)?;
                    }
                }
            },
        };
        let resumable = matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled
        );
        let Some(revision) = after.filter(|_| resumable) else {
            return Err(client.explain(&status));
        };
        if heard.elapsed() > AWAY_MAX {
            bail!(
                "{} (resume with --after {revision})",
                client.explain(&status)
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn revision(message: &Message) -> Option<u64> {
    let position = match message {
        Message::Snapshot(snapshot) if snapshot.more => None,
        Message::Snapshot(proto::Snapshot { position, .. })
        | Message::Change(proto::Change { position, .. })
        | Message::Progress(proto::Progress { position }) => position.as_ref(),
    };
    position.map(|position| position.revision)
}

fn print(message: &Message, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return emit(&format!("{}\n", json::message(message)));
    }
    match message {
        Message::Snapshot(snapshot) => emit(&table::snapshot(snapshot)),
        Message::Change(change) => emit(&table::change(change)),
        Message::Progress(_) => Ok(()),
    }
}
