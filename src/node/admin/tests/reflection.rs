//! What grpcurl does: learns the service from the node, then calls it without generated code.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;

/// Messages known only by their reflected descriptors.
#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = item.encode(buffer);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let decoded = DynamicMessage::decode(self.0.clone(), buffer);
        decoded
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

async fn reflect(port: &Port, request: MessageRequest) -> MessageResponse {
    let channel = port.channel().await;
    let mut client = ServerReflectionClient::with_interceptor(channel, authorize);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let answers = client.server_reflection_info(tokio_stream::iter([request]));
    let mut answers = answers.await.expect("is let in").into_inner();
    let answer = answers.message().await.expect("answers");
    answer
        .and_then(|answer| answer.message_response)
        .expect("is not empty")
}

#[tokio::test]
async fn a_client_without_generated_code_lists_rooms() {
    let port = Port::open().await;
    port.call().await;
    let listed = reflect(&port, MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else {
        panic!("services are listed: {listed:?}");
    };
    let services: BTreeSet<String> = listed.service.into_iter().map(|s| s.name).collect();
    for service in ["flotilla.admin.v1.Admin", "grpc.health.v1.Health"] {
        assert!(services.contains(service), "{services:?}");
    }

    let symbol = "flotilla.admin.v1.Admin".to_owned();
    let described = reflect(&port, MessageRequest::FileContainingSymbol(symbol)).await;
    let MessageResponse::FileDescriptorResponse(described) = described else {
        panic!("the file is described: {described:?}");
    };
    let mut pool = DescriptorPool::new();
    for file in described.file_descriptor_proto {
        let file = prost_types::FileDescriptorProto::decode(&file[..]).expect("is a descriptor");
        pool.add_file_descriptor_proto(file).expect("is complete");
    }
    let service = pool.get_service_by_name("flotilla.admin.v1.Admin");
    let service = service.expect("is described");
    let method = service
        .methods()
        .find(|method| method.name() == "ListRooms");
    let method = method.expect("is described");

    let mut request = DynamicMessage::new(method.input());
    request.set_field_by_name("consistency", Value::EnumNumber(2));
    let mut request = Request::new(request);
    let value = format!("Bearer {TOKEN}").parse().expect("is a header");
    request.metadata_mut().insert("authorization", value);
    let mut grpc = tonic::client::Grpc::new(port.channel().await);
    grpc.ready().await.expect("is ready");
    let path = "/flotilla.admin.v1.Admin/ListRooms"
        .parse()
        .expect("is a path");
    let answer = grpc.unary(request, path, Dynamic(method.output())).await;
    let answer = answer.expect("answers").into_inner();
    let rooms = answer.get_field_by_name("rooms").expect("is a field");
    let rooms = rooms.as_list().expect("is a list");
    let name = rooms[0].as_message().and_then(|room| {
        let name = room.get_field_by_name("name")?;
        name.as_str().map(str::to_owned)
    });
    assert_eq!((rooms.len(), name.as_deref()), (1, Some("call")));
    port.close().await;
}
