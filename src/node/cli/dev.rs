//! `flotilla dev`: one node that founds its own cluster, with LiveKit's well-known development key.

use std::path::PathBuf;

use clap::Args;

use super::{ConfigArgs, print, setting};
use crate::run::Founding;
use crate::telemetry;

/// LiveKit's development key and secret, which SDK test suites assume.
pub(super) const DEV_KEY: &str = "devkey";
pub(super) const DEV_SECRET: &str = "secret";

#[derive(Args)]
pub(super) struct DevArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: DevArgs) -> anyhow::Result<()> {
    let given = args.config.data_dir.clone();
    let temporary = match &given {
        Some(_) => None,
        None => Some(TemporaryFolder::create()?),
    };
    let mut base = vec![
        setting("development", true),
        setting("rtc.bind_address", "0.0.0.0"),
        setting("rtc.enable_loopback_candidate", true),
        setting("cluster.bind", "127.0.0.1:7890"),
        setting("demo.enabled", true),
    ];
    if args.config.bind.is_empty() {
        let loopback = serde_norway::Value::String("127.0.0.1".into());
        base.push((
            "bind_addresses",
            serde_norway::Value::Sequence(vec![loopback]),
        ));
    }
    if let Some(folder) = &temporary {
        base.push(setting("cluster.data_dir", folder.path.display()));
    }
    let mut config = args.config.load(&base)?;
    if config.keys.is_empty() {
        config.keys.push(crate::config::ApiKey {
            key: DEV_KEY.into(),
            secret: DEV_SECRET.into(),
        });
    }
    telemetry::start_logging(&config.log_level, config.log_json)?;
    telemetry::warn_of_ignored_keys(&config);
    let key = &config.keys[0];
    let secret = if key.secret == DEV_SECRET {
        DEV_SECRET
    } else {
        "(as configured)"
    };
    print(&format!(
        "Development node\n  URL         ws://127.0.0.1:{port}\n  API key     {}\n  API secret  {secret}\n  demo page   http://127.0.0.1:{port}/demo/\n",
        key.key,
        port = config.port,
    ));
    super::serve(config, Founding::IfNew)
}

/// A folder that goes away with the process.
pub(super) struct TemporaryFolder {
    pub(super) path: PathBuf,
}

impl TemporaryFolder {
    pub(super) fn create() -> anyhow::Result<Self> {
        let name = format!("flotilla-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self { path })
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // What remains is in the system's folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
