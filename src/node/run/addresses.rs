//! Where a node is reached: by clients, by other nodes, by whoever runs it. Made once at the start, from the
//! configuration, the ports that are open and the host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context as _;

use super::Ports;
use crate::config::Config;

/// Where a node is reached, from the configuration and the host.
#[derive(Clone, Debug)]
pub(super) struct Addresses {
    pub(super) cluster: String,
    pub(super) admin: String,
    pub(super) client_url: String,
    pub(super) relay_ip: IpAddr,
    pub(super) candidates: Vec<IpAddr>,
}

impl Addresses {
    pub(super) fn of(config: &Config, ports: &Ports) -> anyhow::Result<Self> {
        let own = crate::interfaces::addresses();
        let bound = config.media_ip;
        let fits = |address: &IpAddr| bound.is_ipv6() || address.is_ipv4();
        let mut candidates: Vec<IpAddr> = match config.node_ip {
            Some(address) => vec![address],
            None if !bound.is_unspecified() => vec![bound],
            None => own.iter().copied().filter(fits).collect(),
        };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let reaches_loopback = bound.is_unspecified() || bound.is_loopback();
        if (config.loopback_candidate || candidates.is_empty())
            && reaches_loopback
            && !candidates.contains(&loopback)
        {
            candidates.push(loopback);
        }
        let is_own = |address: &&IpAddr| {
            let floating = config.floating.as_ref();
            floating.is_none_or(|floating| floating.address != **address)
        };
        let best = config
            .node_ip
            .or_else(|| candidates.iter().find(is_own).copied())
            .context("this host has no usable address: set rtc.node_ip")?;
        let cluster_bind = ports.cluster.local_addr()?;
        let cluster_ip = if cluster_bind.ip().is_unspecified() {
            best
        } else {
            cluster_bind.ip()
        };
        let http_bind = ports.http[0].local_addr()?;
        let http_ip = if http_bind.ip().is_unspecified() {
            best
        } else {
            http_bind.ip()
        };
        if let Some(floating) = &config.floating {
            candidates.retain(|candidate| *candidate != floating.address);
            // The best for clients, which need not know when it moves; not for other nodes.
            candidates.insert(0, floating.address);
        }
        Ok(Self {
            cluster: config
                .cluster_advertise
                .clone()
                .unwrap_or_else(|| SocketAddr::new(cluster_ip, cluster_bind.port()).to_string()),
            admin: match &config.admin_advertise {
                Some(address) => address.clone(),
                None => ports.admin.local_addr()?.to_string(),
            },
            client_url: config.client_url.clone().unwrap_or_else(|| {
                format!("http://{}", SocketAddr::new(http_ip, http_bind.port()))
            }),
            relay_ip: config.relay_ip.unwrap_or(best),
            candidates,
        })
    }
}
