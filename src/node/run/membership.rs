//! How a starting node becomes, or goes on being, a member of its cluster: founds it, finds it at the
//! seeds, or is in it already. Called by [`super::Node::start`] around the opening of the cluster port.

use std::slice;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use flotilla_media::peer::dtls::Certificate;
use flotilla_model::id::BootId;
use flotilla_raft::{Channels, Group};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tracing::{debug, info};

use super::{Founding, SEEDS_MAX, SEEDS_RETRY};
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::mesh::enroll::{self, EnrollError};
use crate::mesh::proto::EnrollRequest;
use crate::mesh::software_version;

/// How long a member that starts again waits for others to say that it still fits. Rises: a node that
/// does not is told at once more often; falls: the cluster is back earlier after all its nodes stopped.
const ANSWER_SOON: Duration = Duration::from_millis(500);

/// How a node becomes, or goes on being, a member.
pub(super) struct Membership<'a> {
    pub(super) config: &'a Config,
    pub(super) boot: BootId,
    pub(super) address: &'a str,
    pub(super) secret: &'a str,
    pub(super) channels: &'a Channels,
    pub(super) data: &'a DataDir,
    pub(super) group: &'a Group,
}

/// What a member has.
pub(super) struct Joined {
    pub(super) cluster_id: String,
    pub(super) certificate: String,
    /// Whom to ask to be added; empty: nobody needs to be asked.
    seeds: Vec<String>,
}

impl Membership<'_> {
    /// Founds a cluster, or finds the one to join, or recognises that it is in one.
    pub(super) async fn prepare(&self, founding: Founding) -> anyhow::Result<Joined> {
        let certificate = self.data.certificate()?;
        if !self.group.is_initialized() && founding == Founding::IfNew {
            self.group.bootstrap().await?;
            info!("founded a cluster");
        }
        if self.group.is_member() {
            return self.go_on(certificate).await;
        }
        let mut seeds = self.config.seeds.clone();
        for seed in self.data.seeds() {
            if !seeds.contains(seed) {
                seeds.push(seed.clone());
            }
        }
        if seeds.is_empty() {
            // It stopped before it heard that a majority had agreed to it; who is a member names others.
            if self.group.is_initialized() {
                return self.go_on(certificate).await;
            }
            bail!(
                "this node is in no cluster. Found one with `flotilla cluster init`, or join one with \
                 `flotilla cluster join --peer HOST:PORT` (or set cluster.seeds)"
            );
        }
        let enrolled = self.enroll_patiently(&seeds).await?;
        self.data.set_certificate(&enrolled.1)?;
        Ok(Joined {
            cluster_id: enrolled.0,
            certificate: enrolled.1,
            seeds,
        })
    }

    /// Nodes are often started together: the seeds may take a moment.
    async fn enroll_patiently(&self, seeds: &[String]) -> anyhow::Result<(String, String)> {
        let begun = Instant::now();
        loop {
            match enroll_at(self, seeds, String::new()).await {
                Err(error) if !is_refusal(&error) && begun.elapsed() < SEEDS_MAX => {
                    info!(%error, "waiting for a seed");
                    tokio::time::sleep(SEEDS_RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// A member starts again.
    async fn go_on(&self, certificate: Option<String>) -> anyhow::Result<Joined> {
        let cluster_id = self.group.cluster_id().unwrap_or_default();
        let others: Vec<String> = self
            .group
            .status()
            .members
            .into_iter()
            .filter(|member| member.node.0 != self.config.node_id)
            .map(|member| member.address)
            .collect();
        if !others.is_empty() {
            match self
                .enroll_again(&others, &cluster_id, certificate.is_some())
                .await
            {
                Ok((_, pem)) if certificate.is_none() => {
                    self.data.set_certificate(&pem)?;
                    return Ok(self.member(cluster_id, pem));
                }
                Ok(_) => {}
                Err(error) if is_refusal(&error) => return Err(error),
                Err(error) => debug!(%error, "no other node answers yet"),
            }
        }
        let pem = match certificate {
            Some(pem) => pem,
            None if others.is_empty() => {
                let pem = Certificate::generate()?.to_pem()?;
                self.data.set_certificate(&pem)?;
                pem
            }
            None => bail!(
                "dtls.pem is missing from the data folder and no other node answers to give it again: \
                 start another node first"
            ),
        };
        Ok(self.member(cluster_id, pem))
    }

    /// Asks everybody at once, since after a loss of power they all wait for each other. Who has what it
    /// needs to start does so without an answer; it is refused later then, if it is to be refused.
    async fn enroll_again(
        &self,
        others: &[String],
        cluster_id: &str,
        is_complete: bool,
    ) -> anyhow::Result<(String, String)> {
        let asked = others.iter().map(|other| {
            Box::pin(enroll_at(
                self,
                slice::from_ref(other),
                cluster_id.to_owned(),
            ))
        });
        let answered = first_answer(asked.collect());
        if !is_complete {
            return answered.await;
        }
        let within = tokio::time::timeout(ANSWER_SOON, answered).await;
        within.unwrap_or_else(|_| {
            let tried = format!("{}: no answer yet", others.join(", "));
            Err(EnrollError::Unreachable { tried }.into())
        })
    }

    fn member(&self, cluster_id: String, certificate: String) -> Joined {
        Joined {
            cluster_id,
            certificate,
            seeds: Vec::new(),
        }
    }

    /// Asks to be added, if that is needed. The cluster port must be served by now.
    pub(super) async fn join(&self, joined: &Joined) -> anyhow::Result<()> {
        if joined.seeds.is_empty() {
            return Ok(());
        }
        info!(seeds = joined.seeds.join(", "), "joining");
        self.group.join(&joined.seeds).await?;
        info!("joined the cluster");
        Ok(())
    }
}

/// The first answer, yes or no; that nobody can be reached only if that holds for all.
async fn first_answer<T>(
    asked: FuturesUnordered<impl Future<Output = anyhow::Result<T>>>,
) -> anyhow::Result<T> {
    let mut asked = asked;
    let mut unreachable = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Err(error) if !is_refusal(&error) => unreachable = Some(error),
            answer => return answer,
        }
    }
    Err(unreachable.unwrap_or_else(|| anyhow!("nobody was asked")))
}

fn is_refusal(error: &anyhow::Error) -> bool {
    !matches!(
        error.downcast_ref::<EnrollError>(),
        Some(EnrollError::Unreachable { .. })
    )
}

async fn enroll_at(
    member: &Membership<'_>,
    seeds: &[String],
    cluster_id: String,
) -> anyhow::Result<(String, String)> {
    let request = EnrollRequest {
        boot: member.boot.0,
        cluster_id,
        ..enroll_request(member.config, member.address)
    };
    let enrolled = enroll::enroll(member.channels, member.secret, seeds, &request).await?;
    let pem = String::from_utf8(enrolled.certificate).context("the cluster's certificate")?;
    Ok((enrolled.cluster_id, pem))
}

pub(super) fn enroll_request(config: &Config, address: &str) -> EnrollRequest {
    EnrollRequest {
        cluster: config.cluster.name.clone(),
        node: config.node_id,
        config_hash: config.cluster.hash().to_vec().into(),
        version: software_version(),
        address: address.to_owned(),
        ..EnrollRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::Pin;

    use super::*;

    type Asked = Pin<Box<dyn Future<Output = anyhow::Result<u8>>>>;

    fn silent() -> Asked {
        Box::pin(pending())
    }

    fn says(answer: anyhow::Result<u8>) -> Asked {
        Box::pin(ready(answer))
    }

    fn unreachable() -> Asked {
        let tried = "there: refused".to_owned();
        says(Err(EnrollError::Unreachable { tried }.into()))
    }

    async fn first(asked: Vec<Asked>) -> Result<u8, String> {
        let answer = first_answer(asked.into_iter().collect()).await;
        answer.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn whoever_answers_first_decides() {
        assert_eq!(
            first(vec![silent(), unreachable(), says(Ok(3))]).await,
            Ok(3)
        );
        let refused = EnrollError::Refused {
            seed: "there".to_owned(),
            reason: "too old".to_owned(),
        };
        let refused = first(vec![silent(), says(Err(refused.into()))]).await;
        assert_eq!(refused, Err("there: too old".to_owned()));
        let nobody = first(vec![unreachable(), unreachable()]).await;
        assert!(nobody.is_err_and(|text| text.contains("there: refused")));
    }
}
