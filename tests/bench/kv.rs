//! The little of etcd's gRPC that the benchmark needs, spoken to both sides: `KV.Put`,
//! `KV.Range` of one key, and `Maintenance.Status` to find the leader. Field numbers are those of
//! etcd's `rpc.proto`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

const PUT: &str = "/etcdserverpb.KV/Put";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Sets a key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct PutRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
}

/// Done.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct PutResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
}

/// Who answered.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Header {
    #[prost(uint64, tag = "2")]
    pub(crate) member: u64,
    #[prost(int64, tag = "3")]
    pub(crate) revision: i64,
}

/// Asks who leads.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct StatusRequest {}

/// Who leads.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<Header>,
    #[prost(uint64, tag = "4")]
    pub(crate) leader: u64,
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
}

impl Client {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    pub(crate) async fn put(&self, request: PutRequest) -> Result<PutResponse, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        ready(&mut grpc).await?;
        let path = http::uri::PathAndQuery::from_static(PUT);
        let answer = grpc.unary(Request::new(request), path, ProstCodec::default());
        answer.await.map(Response::into_inner)
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        ready(&mut grpc).await?;
        let path = http::uri::PathAndQuery::from_static(STATUS);
        let answer = grpc.unary(Request::new(StatusRequest {}), path, ProstCodec::default());
        answer.await.map(Response::into_inner)
    }
}

async fn ready(grpc: &mut tonic::client::Grpc<Channel>) -> Result<(), Status> {
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// What a node answers with.
pub(crate) trait Handler: Send + Sync + 'static {
    fn put(
        self: Arc<Self>,
        request: PutRequest,
    ) -> impl Future<Output = Result<PutResponse, Status>> + Send;
    fn status(&self) -> StatusResponse;
}

struct Put<H>(Arc<H>);

impl<H: Handler> UnaryService<PutRequest> for Put<H> {
    type Response = PutResponse;
    type Future = Answer<PutResponse>;

    fn call(&mut self, request: Request<PutRequest>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move { Ok(Response::new(handler.put(request.into_inner()).await?)) })
    }
}

struct GetStatus<H>(Arc<H>);

impl<H: Handler> UnaryService<StatusRequest> for GetStatus<H> {
    type Response = StatusResponse;
    type Future = Answer<StatusResponse>;

    fn call(&mut self, _: Request<StatusRequest>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move { Ok(Response::new(handler.status())) })
    }
}

/// Both services; each is added to a server under its own name.
pub(crate) struct Server<H, const MAINTENANCE: bool>(Arc<H>);

impl<H, const MAINTENANCE: bool> Server<H, MAINTENANCE> {
    pub(crate) fn new(handler: Arc<H>) -> Self {
        Self(handler)
    }
}

impl<H, const MAINTENANCE: bool> Clone for Server<H, MAINTENANCE> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H> NamedService for Server<H, false> {
    const NAME: &'static str = "etcdserverpb.KV";
}

impl<H> NamedService for Server<H, true> {
    const NAME: &'static str = "etcdserverpb.Maintenance";
}

impl<H: Handler, const MAINTENANCE: bool> Service<http::Request<Body>> for Server<H, MAINTENANCE> {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(match request.uri().path() {
                PUT => {
                    let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
                    grpc.unary(Put(handler), request).await
                }
                STATUS => {
                    let mut grpc = tonic::server::Grpc::new(ProstCodec::default());
                    grpc.unary(GetStatus(handler), request).await
                }
                other => Status::unimplemented(other.to_owned()).into_http(),
            })
        })
    }
}
