//! `flotilla token create`: an access token with any of LiveKit's grants.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use flotilla_signal::token::{self, Claims, VideoGrant};

use super::dev::{DEV_KEY, DEV_SECRET};
use super::print;

#[derive(Subcommand)]
pub(super) enum TokenCommand {
    /// Prints an access token.
    Create(Box<CreateArgs>),
}

#[derive(Args)]
pub(super) struct CreateArgs {
    /// API key.
    #[arg(long, env = "LIVEKIT_API_KEY", default_value = DEV_KEY)]
    api_key: String,
    /// Its secret.
    #[arg(long, env = "LIVEKIT_API_SECRET", hide_env_values = true, default_value = DEV_SECRET)]
    api_secret: String,
    /// Where clients connect; only for the hint that is printed.
    #[arg(long, env = "LIVEKIT_URL", default_value = "ws://127.0.0.1:7880")]
    url: String,
    /// How long it is valid, with unit: `30m`, `6h`.
    #[arg(long, default_value = "6h")]
    valid_for: String,
    /// Participant's identity.
    #[arg(long)]
    identity: Option<String>,
    /// Participant's display name.
    #[arg(long)]
    name: Option<String>,
    /// Participant's kind: standard, agent, egress, ingress, sip.
    #[arg(long)]
    kind: Option<String>,
    /// Participant's metadata.
    #[arg(long)]
    metadata: Option<String>,
    /// Participant's attributes; may be repeated.
    #[arg(long = "attribute", value_name = "KEY=VALUE")]
    attributes: Vec<String>,
    /// Room that the grants are for.
    #[arg(long)]
    room: Option<String>,
    /// May join the room.
    #[arg(long)]
    join: bool,
    /// May create and delete rooms.
    #[arg(long)]
    create: bool,
    /// May list rooms.
    #[arg(long)]
    list: bool,
    /// May administer the room.
    #[arg(long)]
    admin: bool,
    /// May record.
    #[arg(long)]
    record: bool,
    /// May administer ingress.
    #[arg(long)]
    ingress_admin: bool,
    /// Room that participants may be moved to.
    #[arg(long)]
    destination_room: Option<String>,
    /// May publish; `--can-publish=false` forbids it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    can_publish: Option<bool>,
    /// May subscribe.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    can_subscribe: Option<bool>,
    /// May send data.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    can_publish_data: Option<bool>,
    /// Sources that may be published: camera, microphone, screen_share, screen_share_audio.
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    can_publish_sources: Vec<String>,
    /// May change its own name, metadata and attributes.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    can_update_own_metadata: Option<bool>,
    /// May receive others' metrics.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    can_subscribe_metrics: Option<bool>,
    /// Not shown to others.
    #[arg(long)]
    hidden: bool,
    /// Marked as a recorder.
    #[arg(long)]
    recorder: bool,
    /// Marked as an agent.
    #[arg(long)]
    agent: bool,
    /// Only the token, without the hints.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(command: TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create(args) = command;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = claims(&args, now)?;
    let token = token::create(claims, &args.api_key, &args.api_secret)?;
    if args.quiet {
        print(&format!("{token}\n"));
        return Ok(());
    }
    let mut text = format!("token: {token}\nurl:   {}\n", args.url);
    if args.join {
        text.push_str(&format!(
            "try:   https://meet.livekit.io/custom?liveKitUrl={}&token={token}\n",
            args.url
        ));
    }
    print(&text);
    Ok(())
}

fn claims(args: &CreateArgs, now: u64) -> anyhow::Result<Claims> {
    if args.join && (args.room.is_none() || args.identity.is_none()) {
        bail!("--join needs --room and --identity");
    }
    if args.admin && args.room.is_none() {
        bail!("--admin needs --room");
    }
    let grants = args.join || args.create || args.list || args.admin || args.record;
    if !grants && !args.ingress_admin {
        bail!(
            "a token without a grant opens nothing: give --join, --create, --list, --admin, --record or --ingress-admin"
        );
    }
    let life = crate::config::parse_duration(&args.valid_for).with_context(|| {
        format!(
            "--valid-for {}: write for example 30m or 6h",
            args.valid_for
        )
    })?;
    let attributes = args
        .attributes
        .iter()
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("--attribute {pair}: write KEY=VALUE"))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    Ok(Claims {
        sub: args.identity.clone().unwrap_or_default(),
        name: args.name.clone().unwrap_or_default(),
        kind: args.kind.clone().unwrap_or_default(),
        metadata: args.metadata.clone().unwrap_or_default(),
        attributes,
        nbf: Some(now),
        exp: Some(now + life.as_secs()),
        video: Some(VideoGrant {
            room_create: args.create,
            room_list: args.list,
            room_record: args.record,
            room_admin: args.admin,
            room_join: args.join,
            room: args.room.clone().unwrap_or_default(),
            destination_room: args.destination_room.clone().unwrap_or_default(),
            can_publish: args.can_publish,
            can_subscribe: args.can_subscribe,
            can_publish_data: args.can_publish_data,
            can_publish_sources: args.can_publish_sources.clone(),
            can_update_own_metadata: args.can_update_own_metadata,
            can_subscribe_metrics: args.can_subscribe_metrics,
            ingress_admin: args.ingress_admin,
            hidden: args.hidden,
            recorder: args.recorder,
            agent: args.agent,
            ..VideoGrant::default()
        }),
        ..Claims::default()
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn parse(line: &str) -> anyhow::Result<Claims> {
        let words = std::iter::once("token").chain(line.split_whitespace());
        claims(&Only::try_parse_from(words)?.args, 1000)
    }

    #[test]
    fn grants_follow_the_arguments() {
        let made =
            parse("--join --room r --identity i --can-publish=false --hidden --attribute a=b")
                .expect("valid");
        let video = made.video.expect("grants");
        assert!(video.room_join && video.hidden && !video.room_admin);
        assert_eq!(video.can_publish, Some(false));
        assert_eq!(video.can_subscribe, None);
        assert_eq!(made.attributes["a"], "b");
        assert_eq!(made.exp, Some(1000 + 6 * 3600));
    }

    #[test]
    fn useless_tokens_are_refused_with_a_reason() {
        for (line, part) in [
            ("--join --identity i", "--room"),
            ("--admin", "--room"),
            ("--room r", "without a grant"),
            ("--list --valid-for soon", "--valid-for"),
            ("--list --attribute x", "KEY=VALUE"),
        ] {
            let error = format!("{:#}", parse(line).expect_err(line));
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
