//! Two namespaces and a veth pair between them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) const SERVER_ADDRESS: &str = "10.77.0.1";
pub(crate) const CLIENT_ADDRESS: &str = "10.77.0.2";
/// Descriptors that a process may open (the soft limit): a client takes three, a server up to as many
/// for each of them.
const FILES_MAX: u32 = 16_384;

/// Namespaces that end with the value.
pub(crate) struct Network {
    server: String,
    client: String,
    realtime: bool,
}

/// Which end of the pair.
#[derive(Clone, Copy)]
pub(crate) enum End {
    Server,
    Client,
}

impl Network {
    pub(crate) fn new(realtime: bool) -> Result<Self> {
        let id = std::process::id();
        let network = Self {
            server: format!("fl-srv-{id}"),
            client: format!("fl-cli-{id}"),
            realtime,
        };
        for name in [&network.server, &network.client] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        let (here, there) = (format!("fs{id}"), format!("fc{id}"));
        ip(&format!(
            "link add {here} netns {} type veth peer name {there} netns {}",
            network.server, network.client
        ))?;
        for (name, link, address) in [
            (&network.server, &here, SERVER_ADDRESS),
            (&network.client, &there, CLIENT_ADDRESS),
        ] {
            ip(&format!("-n {name} address add {address}/24 dev {link}"))?;
            ip(&format!("-n {name} link set {link} up"))?;
        }
        Ok(network)
    }

    /// A command at one end, on a core of its own.
    pub(crate) fn command(&self, end: End, program: &Path) -> Command {
        let (namespace, core) = match end {
            End::Server => (&self.server, "0"),
            End::Client => (&self.client, "1"),
        };
        let mut command = Command::new("ip");
        // Each of these becomes the next, so that the child's id is the program's.
        command
            .args(["netns", "exec", namespace])
            .args(["prlimit", &format!("--nofile={FILES_MAX}:")])
            .args(["taskset", "-c", core]);
        if self.realtime {
            command.args(["chrt", "--rr", "1"]);
        }
        command.arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    let done = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("ip (package iproute2)")?;
    ensure!(
        done.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}
