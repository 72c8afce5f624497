//! Namespaces for a run: one for each node, one for each client, one with the bridge between them.
//!
//! The outer `chaos` process makes them and starts itself again in the bridge's namespace; what it made
//! goes away with its value. Faults are an nft table on the bridge: a change of topology is one atomic
//! load, nothing is installed at the nodes, and a packet that is cut off just never arrives. Nothing has
//! a way out of the namespaces. Needs root.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::Verdict;

/// Nodes of the cluster.
pub(crate) const NODES: u64 = 3;

/// The names of a lab's namespaces; made of a number so that both processes know them.
#[derive(Clone, Copy)]
pub(crate) struct Names(pub(crate) u32);

impl Names {
    /// Where the bridge is, and the process that judges.
    pub(crate) fn switch(self) -> String {
        format!("fo{}-sw", self.0)
    }

    /// A node's.
    pub(crate) fn node(self, id: u64) -> String {
        format!("fo{}-n{id}", self.0)
    }

    /// A client's.
    pub(crate) fn client(self, index: usize) -> String {
        format!("fo{}-c{index}", self.0)
    }
}

/// Address of the judging process, where the fronts listen.
pub(crate) const SWITCH_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 254);

/// Address of a node.
pub(crate) fn node_address(id: u64) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, u8::try_from(id).unwrap_or(u8::MAX))
}

/// Address for media that moves from one node to another.
pub(crate) fn floating_address(id: u64) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, 200 + u8::try_from(id).unwrap_or(50))
}

/// Address of a client.
pub(crate) fn client_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 79, 0, 101 + u8::try_from(index).unwrap_or(100))
}

/// Namespaces that end with the value, together with every process in them.
pub(crate) struct Lab {
    pub(crate) names: Names,
    namespaces: Vec<String>,
}

impl Lab {
    /// Makes the bridge, the nodes' and the clients' namespaces.
    ///
    /// # Errors
    /// The command that failed; without root it is the first.
    pub(crate) fn new(clients: usize) -> Result<Self> {
        let names = Names(std::process::id());
        let mut lab = Self {
            names,
            namespaces: Vec::new(),
        };
        let switch = names.switch();
        lab.add(&switch)
            .context("namespaces need root and iproute2")?;
        ip(&["-n", &switch, "link", "add", "sw", "type", "bridge"])?;
        // No spanning tree and no learning delay: ports forward at once.
        ip(&[
            "-n",
            &switch,
            "link",
            "set",
            "sw",
            "type",
            "bridge",
            "forward_delay",
            "0",
        ])?;
        ip(&[
            "-n",
            &switch,
            "address",
            "add",
            &format!("{SWITCH_ADDRESS}/24"),
            "dev",
            "sw",
        ])?;
        ip(&["-n", &switch, "link", "set", "sw", "up"])?;
        for id in 1..=NODES {
            lab.plug(&names.node(id), &format!("n{id}"), node_address(id))?;
        }
        for index in 0..clients {
            lab.plug(
                &names.client(index),
                &format!("c{index}"),
                client_address(index),
            )?;
        }
        load(&switch, FAULTS)?;
        Ok(lab)
    }

    /// Makes the namespaces of so many nodes and of the judge, with nothing between them: an emulator
    /// will be.
    ///
    /// # Errors
    /// The command that failed; without root it is the first.
    pub(crate) fn bare(nodes: u64) -> Result<Self> {
        let names = Names(std::process::id());
        let mut lab = Self {
            names,
            namespaces: Vec::new(),
        };
        lab.add(&names.switch())
            .context("namespaces need root and iproute2")?;
        for id in 1..=nodes {
            lab.add(&names.node(id))?;
        }
        Ok(lab)
    }

    fn add(&mut self, name: &str) -> Result<()> {
        ip(&["netns", "add", name])?;
        self.namespaces.push(name.to_owned());
        ip(&["-n", name, "link", "set", "lo", "up"])
    }

    fn plug(&mut self, name: &str, port: &str, address: Ipv4Addr) -> Result<()> {
        let switch = self.names.switch();
        self.add(name)?;
        ip(&[
            "link", "add", port, "netns", &switch, "type", "veth", "peer", "name", "eth0", "netns",
            name,
        ])?;
        ip(&["-n", &switch, "link", "set", port, "master", "sw"])?;
        ip(&["-n", &switch, "link", "set", port, "up"])?;
        // One packet per datagram on the wire, so that a capture shows each as the receiver gets it.
        ip(&["-n", name, "link", "set", "eth0", "gso_max_segs", "1"])?;
        ip(&[
            "-n",
            name,
            "address",
            "add",
            &format!("{address}/24"),
            "dev",
            "eth0",
        ])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        // Browsers look for the address of a default route; it leads to the bridge and ends there.
        ip(&["-n", name, "route", "add", "default", "dev", "eth0"])
    }
}

/// Makes a lab and runs this program again, with the same arguments and `--lab`, in the bridge's namespace.
pub(crate) async fn play_in(clients: usize) -> Result<Verdict> {
    // Above whatever else runs on the machine, which is not what is measured.
    Lab::new(clients)?.play("-5", &[], &[]).await
}

/// The same with namespaces that nothing joins, and below whatever else runs on the machine.
pub(crate) async fn play_bare(nodes: u64, more: &[String]) -> Result<Verdict> {
    play_bare_with(nodes, more, &[]).await
}

/// The same with something in the environment of everything that runs in there.
pub(crate) async fn play_bare_with(
    nodes: u64,
    more: &[String],
    environment: &[(&str, String)],
) -> Result<Verdict> {
    Lab::bare(nodes)?.play("10", more, environment).await
}

impl Lab {
    async fn play(
        self,
        niceness: &str,
        more: &[String],
        environment: &[(&str, String)],
    ) -> Result<Verdict> {
        let mut child = tokio::process::Command::new("nice")
            .args(["-n", niceness, "ip", "netns", "exec", &self.names.switch()])
            .arg(std::env::current_exe().context("where is this program?")?)
            .args(std::env::args_os().skip(1))
            .args(["--lab", &self.names.0.to_string()])
            .args(more)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .kill_on_drop(true)
            .spawn()
            .context("ip (package iproute2)")?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ended = || Verdict::Vacuous("ended from outside".to_owned());
        let status = tokio::select! {
            status = child.wait() => status?,
            _ = terminate.recv() => return Ok(ended()),
            _ = tokio::signal::ctrl_c() => return Ok(ended()),
        };
        Ok(Verdict::Told(status.code()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.namespaces.iter().rev() {
            for pid in pids(name) {
                let _ = Command::new("kill").args(["-KILL", &pid]).status();
            }
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn pids(namespace: &str) -> Vec<String> {
    let listed = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output()
        .map(|done| String::from_utf8_lossy(&done.stdout).into_owned())
        .unwrap_or_default();
    listed.split_whitespace().map(str::to_owned).collect()
}

/// Sets of ports that are cut off from everybody, and of directed pairs that are cut off from each other.
const FAULTS: &str = "
table bridge chaos {
    set down { type ifname; }
    set cut { type ifname . ifname; }
    chain from_down { type filter hook prerouting priority 0; policy accept; iifname @down drop; }
    chain to_down { type filter hook postrouting priority 0; policy accept; oifname @down drop; }
    chain between { type filter hook forward priority 0; policy accept; iifname . oifname @cut drop; }
}
";

/// A network in which a node or a link is cut; only the process in the switch's namespace has one.
pub(crate) struct Network {
    switch: String,
}

impl Network {
    /// Of a lab that this process runs in.
    pub(crate) fn new(names: Names) -> Self {
        Self {
            switch: names.switch(),
        }
    }

    /// Cuts a node off from peers and clients.
    pub(crate) fn cut_node(&self, id: u64) -> Result<()> {
        load(
            &self.switch,
            &format!("add element bridge chaos down {{ n{id} }}"),
        )
    }

    /// Cuts every node off at one moment.
    pub(crate) fn cut_all(&self) -> Result<()> {
        let ports: Vec<String> = (1..=NODES).map(|id| format!("n{id}")).collect();
        let ports = ports.join(", ");
        load(
            &self.switch,
            &format!("add element bridge chaos down {{ {ports} }}"),
        )
    }

    /// Cuts the link between two nodes, both ways; clients reach both.
    pub(crate) fn cut_link(&self, a: u64, b: u64) -> Result<()> {
        load(
            &self.switch,
            &format!("add element bridge chaos cut {{ n{a} . n{b}, n{b} . n{a} }}"),
        )
    }

    /// Ends every cut.
    pub(crate) fn heal(&self) -> Result<()> {
        load(
            &self.switch,
            "flush set bridge chaos down\nflush set bridge chaos cut",
        )
    }
}

fn load(switch: &str, rules: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = Command::new("ip")
        .args(["netns", "exec", switch, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft (package nftables)")?;
    let mut stdin = child.stdin.take().context("a piped stdin")?;
    stdin.write_all(rules.as_bytes())?;
    drop(stdin);
    let done = child.wait_with_output()?;
    ensure!(
        done.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let done = Command::new("ip")
        .args(arguments)
        .output()
        .context("ip (package iproute2)")?;
    ensure!(
        done.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}
