//! The messages between nodes, generated from `proto/raft.proto`, and their conversion from and to
//! openraft's types, so that the wire does not change when openraft does.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_model::id::{NodeId, UnixMillis};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse as RaftSnapshotResponse,
    TransferLeaderRequest as RaftTransferRequest, VoteRequest as RaftVoteRequest,
    VoteResponse as RaftVoteResponse,
};
use tonic::Status;

use crate::types;
use crate::types::TypeConfig;

#[expect(
    unreachable_pub,
    reason = "generated code; raft.proto documents the messages"
)]
mod generated {
    tonic::include_proto!("flotilla.raft.v1");
}

pub(crate) use generated::*;

/// The answer to a message that lacks a field it must have, or contradicts itself.
fn malformed(why: &str) -> Status {
    Status::invalid_argument(format!("malformed message: {why}"))
}

impl From<types::LogId> for LogId {
    fn from(id: types::LogId) -> Self {
        Self {
            term: id.leader_id.term,
            node: id.leader_id.node_id.0,
            index: id.index,
        }
    }
}

impl From<LogId> for types::LogId {
    fn from(id: LogId) -> Self {
        Self {
            leader_id: types::LeaderId {
                term: id.term,
                node_id: NodeId(id.node),
            },
            index: id.index,
        }
    }
}

impl From<types::Vote> for Vote {
    fn from(vote: types::Vote) -> Self {
        Self {
            term: vote.leader_id.term,
            node: vote.leader_id.node_id.0,
            committed: vote.committed,
        }
    }
}

impl From<Vote> for types::Vote {
    fn from(vote: Vote) -> Self {
        Self {
            leader_id: types::LeaderId {
                term: vote.term,
                node_id: NodeId(vote.node),
            },
            committed: vote.committed,
        }
    }
}

fn vote(vote: Option<Vote>) -> Result<types::Vote, Status> {
    vote.map(Into::into).ok_or_else(|| malformed("no vote"))
}

impl Member {
    pub(crate) fn new(id: NodeId, member: &types::Member) -> Self {
        Self {
            id: id.0,
            address: member.address.clone(),
            incarnation: member.incarnation,
        }
    }

    pub(crate) fn into_parts(self) -> (NodeId, types::Member) {
        let member = types::Member {
            address: self.address,
            incarnation: self.incarnation,
        };
        (NodeId(self.id), member)
    }
}

impl From<&types::Membership> for MembershipConfig {
    fn from(membership: &types::Membership) -> Self {
        Self {
            voters: membership
                .get_joint_config()
                .iter()
                .map(|ids| Voters {
                    ids: ids.iter().map(|id| id.0).collect(),
                })
                .collect(),
            members: membership
                .nodes()
                .map(|(id, member)| Member::new(*id, member))
                .collect(),
        }
    }
}

impl TryFrom<MembershipConfig> for types::Membership {
    type Error = Status;

    fn try_from(config: MembershipConfig) -> Result<Self, Status> {
        let voters: Vec<BTreeSet<NodeId>> = config
            .voters
            .into_iter()
            .map(|voters| voters.ids.into_iter().map(NodeId).collect())
            .collect();
        let members: BTreeMap<NodeId, types::Member> =
            config.members.into_iter().map(Member::into_parts).collect();
        Self::new(voters, members).map_err(|_| malformed("membership contradicts itself"))
    }
}

impl From<types::Entry> for Entry {
    fn from(entry: types::Entry) -> Self {
        let payload = match entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(batch) => Some(entry::Payload::Batch(Batch {
                at_ms: batch.at.0,
                commands: batch.commands,
            })),
            EntryPayload::Membership(membership) => {
                Some(entry::Payload::Membership((&membership).into()))
            }
        };
        Self {
            id: Some(entry.log_id.into()),
            payload,
        }
    }
}

impl Entry {
    fn into_entry(self) -> Result<types::Entry, Status> {
        let log_id = self.id.ok_or_else(|| malformed("entry without id"))?.into();
        let payload = match self.payload {
            None => EntryPayload::Blank,
            Some(entry::Payload::Batch(batch)) => EntryPayload::Normal(types::Batch {
                at: UnixMillis(batch.at_ms),
                commands: batch.commands,
            }),
            Some(entry::Payload::Membership(config)) => {
                EntryPayload::Membership(config.try_into()?)
            }
        };
        Ok(types::Entry { log_id, payload })
    }
}

impl From<AppendEntriesRequest<TypeConfig>> for AppendRequest {
    fn from(request: AppendEntriesRequest<TypeConfig>) -> Self {
        Self {
            vote: Some(request.vote.into()),
            previous: request.prev_log_id.map(Into::into),
            committed: request.leader_commit.map(Into::into),
            entries: request.entries.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<AppendRequest> for AppendEntriesRequest<TypeConfig> {
    type Error = Status;

    fn try_from(request: AppendRequest) -> Result<Self, Status> {
        let entries: Vec<types::Entry> = request
            .entries
            .into_iter()
            .map(Entry::into_entry)
            .collect::<Result<_, _>>()?;
        let previous: Option<types::LogId> = request.previous.map(Into::into);
        // openraft takes for granted that entries follow each other.
        let indices = previous.map_or(0, |id| id.index.saturating_add(1))..;
        if !entries
            .iter()
            .map(|entry| entry.log_id.index)
            .eq(indices.take(entries.len()))
        {
            return Err(malformed("entries do not follow each other"));
        }
        Ok(Self {
            vote: vote(request.vote)?,
            prev_log_id: previous,
            leader_commit: request.committed.map(Into::into),
            entries,
        })
    }
}

impl From<RaftVoteRequest<TypeConfig>> for VoteRequest {
    fn from(request: RaftVoteRequest<TypeConfig>) -> Self {
        Self {
            vote: Some(request.vote.into()),
            last: request.last_log_id.map(Into::into),
            leadership_transfer: request.leadership_transfer,
        }
    }
}

impl TryFrom<VoteRequest> for RaftVoteRequest<TypeConfig> {
    type Error = Status;

    fn try_from(request: VoteRequest) -> Result<Self, Status> {
        Ok(Self {
            vote: vote(request.vote)?,
            last_log_id: request.last.map(Into::into),
            leadership_transfer: request.leadership_transfer,
        })
    }
}

impl From<RaftVoteResponse<TypeConfig>> for VoteResponse {
    fn from(response: RaftVoteResponse<TypeConfig>) -> Self {
        Self {
            vote: Some(response.vote.into()),
            granted: response.vote_granted,
            last: response.last_log_id.map(Into::into),
        }
    }
}

impl TryFrom<VoteResponse> for RaftVoteResponse<TypeConfig> {
    type Error = Status;

    fn try_from(response: VoteResponse) -> Result<Self, Status> {
        Ok(Self {
            vote: vote(response.vote)?,
            vote_granted: response.granted,
            last_log_id: response.last.map(Into::into),
        })
    }
}

impl From<&RaftTransferRequest<TypeConfig>> for TransferRequest {
    fn from(request: &RaftTransferRequest<TypeConfig>) -> Self {
        Self {
            from: Some((*request.from_leader()).into()),
            to: request.to_node_id().0,
            last: request.last_log_id().copied().map(Into::into),
        }
    }
}

impl TryFrom<TransferRequest> for RaftTransferRequest<TypeConfig> {
    type Error = Status;

    fn try_from(request: TransferRequest) -> Result<Self, Status> {
        Ok(Self::new(
            vote(request.from)?,
            NodeId(request.to),
            request.last.map(Into::into),
        ))
    }
}

impl From<&types::SnapshotMeta> for SnapshotMeta {
    fn from(meta: &types::SnapshotMeta) -> Self {
        Self {
            last: meta.last_log_id.map(Into::into),
            membership_id: meta.last_membership.log_id().map(Into::into),
            membership: Some(meta.last_membership.membership().into()),
        }
    }
}

impl TryFrom<SnapshotMeta> for types::SnapshotMeta {
    type Error = Status;

    fn try_from(meta: SnapshotMeta) -> Result<Self, Status> {
        let membership: types::Membership = meta
            .membership
            .ok_or_else(|| malformed("snapshot without membership"))?
            .try_into()?;
        Ok(Self {
            last_log_id: meta.last.map(Into::into),
            last_membership: types::StoredMembership::new(
                meta.membership_id.map(Into::into),
                membership,
            ),
        })
    }
}

impl SnapshotHeader {
    pub(crate) fn new(vote: types::Vote, meta: &types::SnapshotMeta, length: u64) -> Self {
        Self {
            vote: Some(vote.into()),
            meta: Some(meta.into()),
            length,
        }
    }

    pub(crate) fn into_parts(self) -> Result<(types::Vote, types::SnapshotMeta), Status> {
        let meta = self
            .meta
            .ok_or_else(|| malformed("snapshot without description"))?;
        Ok((vote(self.vote)?, meta.try_into()?))
    }
}

impl From<RaftSnapshotResponse<TypeConfig>> for SnapshotResponse {
    fn from(response: RaftSnapshotResponse<TypeConfig>) -> Self {
        Self {
            vote: Some(response.vote.into()),
        }
    }
}

impl TryFrom<SnapshotResponse> for RaftSnapshotResponse<TypeConfig> {
    type Error = Status;

    fn try_from(response: SnapshotResponse) -> Result<Self, Status> {
        Ok(Self::new(vote(response.vote)?))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn log_id(term: u64, node: u64, index: u64) -> types::LogId {
        LogId { term, node, index }.into()
    }

    fn membership() -> types::Membership {
        let member = |n: u64| types::Member {
            address: format!("h{n}:1"),
            incarnation: n * 7,
        };
        let ids = |range: std::ops::Range<u64>| range.map(NodeId).collect::<BTreeSet<_>>();
        let members: BTreeMap<_, _> = (1..6).map(|n| (NodeId(n), member(n))).collect();
        types::Membership::new(vec![ids(1..4), ids(2..5)], members).expect("valid")
    }

    #[test]
    fn appends_survive_the_wire() {
        let entry = |index, payload| types::Entry {
            log_id: log_id(3, 1, index),
            payload,
        };
        let request = AppendEntriesRequest::<TypeConfig> {
            vote: types::Vote::new_committed(3, NodeId(1)),
            prev_log_id: Some(log_id(2, 2, 4)),
            leader_commit: Some(log_id(2, 2, 3)),
            entries: vec![
                entry(5, EntryPayload::Blank),
                entry(
                    6,
                    EntryPayload::Normal(types::Batch {
                        at: UnixMillis(9),
                        commands: vec![Bytes::from_static(b"a"), Bytes::from_static(b"")],
                    }),
                ),
                entry(7, EntryPayload::Membership(membership())),
            ],
        };
        let wire: AppendRequest = request.clone().into();
        let back = AppendEntriesRequest::<TypeConfig>::try_from(wire).expect("valid");
        assert_eq!(back.vote, request.vote);
        assert_eq!(back.prev_log_id, request.prev_log_id);
        assert_eq!(back.leader_commit, request.leader_commit);
        assert_eq!(back.entries, request.entries);
    }

    #[test]
    fn appends_with_a_hole_are_refused() {
        let entry = |index| Entry {
            id: Some(LogId {
                term: 1,
                node: 1,
                index,
            }),
            payload: None,
        };
        let request = AppendRequest {
            vote: Some(Vote::default()),
            previous: None,
            committed: None,
            entries: vec![entry(0), entry(2)],
        };
        assert!(AppendEntriesRequest::<TypeConfig>::try_from(request).is_err());
    }

    #[test]
    fn a_voter_that_is_no_member_is_refused() {
        let config = MembershipConfig {
            voters: vec![Voters { ids: vec![1] }],
            members: Vec::new(),
        };
        assert!(types::Membership::try_from(config).is_err());
    }

    #[test]
    fn snapshot_headers_survive_the_wire() {
        let meta = types::SnapshotMeta {
            last_log_id: Some(log_id(3, 1, 9)),
            last_membership: types::StoredMembership::new(Some(log_id(1, 1, 1)), membership()),
        };
        let vote = types::Vote::new_committed(3, NodeId(1));
        let header = SnapshotHeader::new(vote, &meta, 5);
        let (vote_back, meta_back) = header.into_parts().expect("valid");
        assert_eq!((vote_back, meta_back), (vote, meta));
    }
}
