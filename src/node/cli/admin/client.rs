//! Calls of the admin service, whole lists instead of pages, and errors that name the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::admin::proto;
use crate::admin::proto::admin_client::AdminClient;

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for an answer: above the service's own deadlines.
const ANSWER_MAX: Duration = Duration::from_secs(100);
/// Longest wait for the leader's view in `status`, which is only a supplement.
const LEADER_MAX: Duration = Duration::from_secs(1);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Entries asked for at once.
const PAGE: u32 = 1000;

/// Files for TLS.
#[derive(Clone, Default)]
pub(super) struct TlsFiles {
    pub(super) authority: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) domain: Option<String>,
}

impl TlsFiles {
    fn is_given(&self) -> bool {
        self.authority.is_some() || self.certificate.is_some() || self.domain.is_some()
    }

    fn config(&self) -> anyhow::Result<ClientTlsConfig> {
        let mut config = ClientTlsConfig::new();
        if let Some(authority) = &self.authority {
            config = config.ca_certificate(Certificate::from_pem(read(authority)?));
        }
        if let (Some(certificate), Some(key)) = (&self.certificate, &self.key) {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        if let Some(domain) = &self.domain {
            config = config.domain_name(domain);
        }
        Ok(config)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A whole list.
pub(super) struct List<T> {
    pub(super) entries: Vec<T>,
    pub(super) room_version: u64,
    pub(super) position: Option<proto::Position>,
}

/// One page of a list.
struct Part<T> {
    entries: Vec<T>,
    /// Empty with the last page.
    next_page_token: String,
    room_version: u64,
    position: Option<proto::Position>,
}

/// All pages of a list of one room, as of the last page.
async fn collect<T>(
    mut fetch: impl AsyncFnMut(Option<proto::Page>) -> anyhow::Result<Part<T>>,
) -> anyhow::Result<List<T>> {
    let mut entries = Vec::new();
    let mut token = String::new();
    loop {
        let part = fetch(page(token)).await?;
        entries.extend(part.entries);
        token = part.next_page_token;
        if token.is_empty() {
            return Ok(List {
                entries,
                room_version: part.room_version,
                position: part.position,
            });
        }
    }
}

/// What `status` shows: the asked node's view, its records of the nodes, and what only the leader
/// knows about the members.
pub(super) struct StatusView {
    pub(super) status: proto::GetStatusResponse,
    pub(super) nodes: Vec<proto::Node>,
}

impl StatusView {
    /// The region's group.
    pub(super) fn group(&self) -> proto::GroupStatus {
        self.status.groups.first().cloned().unwrap_or_default()
    }
}

pub(super) struct Client {
    service: AdminClient<Channel>,
    address: String,
    token: Option<MetadataValue<Ascii>>,
    tls: TlsFiles,
    consistency: proto::Consistency,
}

impl Client {
    /// Connects at the first call.
    pub(super) fn new(
        address: &str,
        token: Option<&str>,
        tls: &TlsFiles,
        consistency: proto::Consistency,
    ) -> anyhow::Result<Self> {
        let token = token.map(|token| format!("Bearer {token}").parse());
        Ok(Self {
            service: connect(address, tls)?,
            address: address.to_owned(),
            token: token
                .transpose()
                .context("--token has characters that no token has")?,
            tls: tls.clone(),
            consistency,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        request
    }

    fn unary<T>(&self, message: T) -> Request<T> {
        let mut request = self.request(message);
        request.set_timeout(ANSWER_MAX);
        request
    }

    fn answer<T>(&self, answer: Result<Response<T>, Status>) -> anyhow::Result<T> {
        answer
            .map(Response::into_inner)
            .map_err(|status| self.explain(&status))
    }

    /// What a status means to whoever typed the command.
    pub(super) fn explain(&self, status: &Status) -> anyhow::Error {
        let source = std::error::Error::source(status);
        let unreachable = source.is_some_and(|source| source.is::<tonic::transport::Error>());
        let address = &self.address;
        match status.code() {
            _ if unreachable => anyhow!(
                "the admin port {address} cannot be reached ({}): does the node run, and is this \
                 its `admin.bind`? --address names another",
                innermost(status)
            ),
            Code::Unauthenticated => anyhow!(
                "{}; give it with --token or FLOTILLA_ADMIN_TOKEN",
                status.message()
            ),
            Code::Unimplemented => anyhow!("{address} is no admin port, or of an older version"),
            _ => anyhow!("{}", status.message()),
        }
    }

    pub(super) async fn status(&mut self) -> anyhow::Result<StatusView> {
        let request = self.unary(proto::GetStatusRequest {});
        let answer = self.service.get_status(request).await;
        let mut status = self.answer(answer)?;
        let request = self.unary(proto::ListNodesRequest {
            consistency: proto::Consistency::Stale.into(),
        });
        let answer = self.service.list_nodes(request).await;
        let nodes = self.answer(answer)?.nodes;
        if let Some(group) = status.groups.first_mut()
            && group.leader.is_some()
            && group.role() != proto::GroupRole::Leader
            && let Some(leader) = nodes.iter().find(|node| Some(node.id) == group.leader)
            && let Some(members) = self.members_by_leader(leader).await
        {
            group.members = members;
        }
        Ok(StatusView { status, nodes })
    }

    /// Lag is known to the leader alone. Its admin port may be out of reach from here; then it
    /// stays unknown.
    async fn members_by_leader(&self, leader: &proto::Node) -> Option<Vec<proto::Member>> {
        let scheme = if self.address.starts_with("https://") {
            "https://"
        } else {
            ""
        };
        let address = format!("{scheme}{}", leader.admin_address);
        let mut service = connect(&address, &self.tls).ok()?;
        let mut request = self.request(proto::GetStatusRequest {});
        request.set_timeout(LEADER_MAX);
        let asked = tokio::time::timeout(LEADER_MAX, service.get_status(request));
        let status = asked.await.ok()?.ok()?.into_inner();
        let group = status.groups.into_iter().next()?;
        (group.role() == proto::GroupRole::Leader).then_some(group.members)
    }

    pub(super) async fn nodes(&mut self) -> anyhow::Result<proto::ListNodesResponse> {
        let request = self.unary(proto::ListNodesRequest {
            consistency: self.consistency.into(),
        });
        let answer = self.service.list_nodes(request).await;
        self.answer(answer)
    }

    pub(super) async fn rooms(
        &mut self,
    ) -> anyhow::Result<(Vec<proto::Room>, Option<proto::Position>)> {
        let mut rooms = Vec::new();
        let mut token = String::new();
        loop {
            let request = self.unary(proto::ListRoomsRequest {
                consistency: self.consistency.into(),
                page: page(token),
            });
            let answer = self.service.list_rooms(request).await;
            let part = self.answer(answer)?;
            rooms.extend(part.rooms);
            token = part.next_page_token;
            if token.is_empty() {
                return Ok((rooms, part.position));
            }
        }
    }

    pub(super) async fn room(&mut self, room: &str) -> anyhow::Result<proto::GetRoomResponse> {
        let request = self.unary(proto::GetRoomRequest {
            room: room.to_owned(),
            consistency: self.consistency.into(),
        });
        let answer = self.service.get_room(request).await;
        self.answer(answer)
    }

    pub(super) async fn participants(
        &mut self,
        room: &str,
    ) -> anyhow::Result<List<proto::Participant>> {
        collect(async |page| {
            let request = self.unary(proto::ListParticipantsRequest {
                room: room.to_owned(),
                consistency: self.consistency.into(),
                page,
            });
            let answer = self.service.list_participants(request).await;
            let part = self.answer(answer)?;
            Ok(Part {
                entries: part.participants,
                next_page_token: part.next_page_token,
                room_version: part.room_version,
                position: part.position,
            })
        })
        .await
    }

    pub(super) async fn tracks(&mut self, room: &str) -> anyhow::Result<List<proto::Track>> {
        collect(async |page| {
            let request = self.unary(proto::ListTracksRequest {
                room: room.to_owned(),
                consistency: self.consistency.into(),
                page,
            });
            let answer = self.service.list_tracks(request).await;
            let part = self.answer(answer)?;
            Ok(Part {
                entries: part.tracks,
                next_page_token: part.next_page_token,
                room_version: part.room_version,
                position: part.position,
            })
        })
        .await
    }

    pub(super) async fn routes(&mut self, room: &str) -> anyhow::Result<List<proto::Route>> {
        collect(async |page| {
            let request = self.unary(proto::ListRoutesRequest {
                room: room.to_owned(),
                consistency: self.consistency.into(),
                page,
            });
            let answer = self.service.list_routes(request).await;
            let part = self.answer(answer)?;
            Ok(Part {
                entries: part.routes,
                next_page_token: part.next_page_token,
                room_version: part.room_version,
                position: part.position,
            })
        })
        .await
    }

    pub(super) async fn hash(
        &mut self,
        log_index: u64,
    ) -> anyhow::Result<proto::GetStateHashResponse> {
        let request = self.unary(proto::GetStateHashRequest { log_index });
        let answer = self.service.get_state_hash(request).await;
        self.answer(answer)
    }

    /// A stream; its errors are told apart by the caller.
    pub(super) async fn watch(
        &mut self,
        room: &str,
        after_revision: Option<u64>,
    ) -> Result<Streaming<proto::WatchResponse>, Status> {
        let request = self.request(proto::WatchRequest {
            room: room.to_owned(),
            after_revision,
        });
        self.service.watch(request).await.map(Response::into_inner)
    }

    pub(super) async fn trigger_snapshot(
        &mut self,
        purge_log: bool,
    ) -> anyhow::Result<proto::TriggerSnapshotResponse> {
        let request = self.unary(proto::TriggerSnapshotRequest { purge_log });
        let answer = self.service.trigger_snapshot(request).await;
        self.answer(answer)
    }

    pub(super) async fn transfer_leader(
        &mut self,
        node: u64,
    ) -> anyhow::Result<proto::TransferLeaderResponse> {
        let request = self.unary(proto::TransferLeaderRequest { node });
        let answer = self.service.transfer_leader(request).await;
        self.answer(answer)
    }

    pub(super) async fn add_node(
        &mut self,
        node: u64,
        cluster_address: String,
        incarnation: u64,
    ) -> anyhow::Result<proto::AddNodeResponse> {
        let request = self.unary(proto::AddNodeRequest {
            node,
            cluster_address,
            incarnation,
        });
        let answer = self.service.add_node(request).await;
        self.answer(answer)
    }

    pub(super) async fn takeovers(&mut self) -> anyhow::Result<List<proto::Takeover>> {
        collect(async |page| {
            let request = self.unary(proto::ListTakeoversRequest { page });
            let answer = self.service.list_takeovers(request).await;
            let answer = self.answer(answer)?;
            Ok(Part {
                entries: answer.takeovers,
                next_page_token: answer.next_page_token,
                room_version: 0,
                position: answer.position,
            })
        })
        .await
    }

    pub(super) async fn drain_node(
        &mut self,
        node: u64,
    ) -> anyhow::Result<proto::DrainNodeResponse> {
        let request = self.unary(proto::DrainNodeRequest { node });
        let answer = self.service.drain_node(request).await;
        self.answer(answer)
    }

    pub(super) async fn resume_node(
        &mut self,
        node: u64,
    ) -> anyhow::Result<proto::ResumeNodeResponse> {
        let request = self.unary(proto::ResumeNodeRequest { node });
        let answer = self.service.resume_node(request).await;
        self.answer(answer)
    }

    pub(super) async fn remove_node(
        &mut self,
        node: u64,
    ) -> anyhow::Result<proto::RemoveNodeResponse> {
        let request = self.unary(proto::RemoveNodeRequest { node });
        let answer = self.service.remove_node(request).await;
        self.answer(answer)
    }

    pub(super) async fn close_room(
        &mut self,
        room: &str,
    ) -> anyhow::Result<proto::CloseRoomResponse> {
        let request = self.unary(proto::CloseRoomRequest {
            room: room.to_owned(),
        });
        let answer = self.service.close_room(request).await;
        self.answer(answer)
    }

    pub(super) async fn remove_participant(
        &mut self,
        room: &str,
        identity: &str,
        revoke_tokens: bool,
    ) -> anyhow::Result<proto::RemoveParticipantResponse> {
        let request = self.unary(proto::RemoveParticipantRequest {
            room: room.to_owned(),
            identity: identity.to_owned(),
            revoke_tokens,
        });
        let answer = self.service.remove_participant(request).await;
        self.answer(answer)
    }
}

fn connect(address: &str, tls: &TlsFiles) -> anyhow::Result<AdminClient<Channel>> {
    let encrypted = address.starts_with("https://") || tls.is_given();
    let authority = address
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let scheme = if encrypted { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{authority}"));
    let mut endpoint = endpoint
        .with_context(|| format!("{address:?} is no address: it looks like `host:7891`"))?
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10));
    if encrypted {
        endpoint = endpoint.tls_config(tls.config()?)?;
    }
    let service = AdminClient::new(endpoint.connect_lazy());
    Ok(service.max_decoding_message_size(ANSWER_BYTES_MAX))
}

#[expect(clippy::unnecessary_wraps, reason = "the field is optional")]
fn page(token: String) -> Option<proto::Page> {
    Some(proto::Page { size: PAGE, token })
}

/// The cause at the bottom of an error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
