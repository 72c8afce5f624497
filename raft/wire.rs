//! What arrives on the wire, checked without a group: for the fuzz target `raft_wire`.

use openraft::raft::AppendEntriesRequest;
use prost::Message;
use tonic::Status;

use crate::proto;
use crate::types::{SnapshotMeta, TypeConfig};

type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;

/// Decodes a message between nodes: the first byte says which kind, the rest is what a peer sent.
/// What can be read is written and read again, and has to be the same.
///
/// # Panics
/// If it is not the same.
pub fn check_wire(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    // What does not decode is refused; there is no more to see.
    let _ = match kind % 8 {
        0 => append(bytes),
        1 => twice::<proto::VoteRequest, VoteRequest>(bytes, |vote| vote.clone().into()),
        2 => twice::<proto::VoteResponse, VoteResponse>(bytes, |vote| vote.clone().into()),
        3 => twice::<proto::TransferRequest, TransferRequest>(bytes, |transfer| transfer.into()),
        4 => twice::<proto::SnapshotMeta, SnapshotMeta>(bytes, |meta| meta.into()),
        5 => proto::SnapshotChunk::decode(bytes)
            .map(drop)
            .map_err(unread),
        6 => proto::JoinRequest::decode(bytes).map(drop).map_err(unread),
        _ => proto::ChangeRequest::decode(bytes)
            .map(drop)
            .map_err(unread),
    };
}

fn unread(error: prost::DecodeError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn append(bytes: &[u8]) -> Result<(), Status> {
    let wire = proto::AppendRequest::decode(bytes).map_err(unread)?;
    let request: AppendEntriesRequest<TypeConfig> = wire.try_into()?;
    let written = proto::AppendRequest::from(request).encode_to_vec();
    let again = proto::AppendRequest::decode(&written[..]).expect("our own bytes");
    let again: AppendEntriesRequest<TypeConfig> = again.try_into().expect("our own message");
    assert_eq!(
        proto::AppendRequest::from(again).encode_to_vec(),
        written,
        "an append changes on the way"
    );
    Ok(())
}

fn twice<W, T>(bytes: &[u8], write: impl Fn(&T) -> W) -> Result<(), Status>
where
    W: Message + Default + TryInto<T, Error = Status>,
{
    let wire = W::decode(bytes).map_err(unread)?;
    let value: T = wire.try_into()?;
    let written = write(&value).encode_to_vec();
    let again = W::decode(&written[..]).expect("our own bytes");
    let again: T = again.try_into().expect("our own message");
    let again = write(&again).encode_to_vec();
    assert_eq!(again, written, "a message changes on the way");
    Ok(())
}
