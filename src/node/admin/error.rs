//! What went wrong, as a gRPC status: the code says whose fault it is, the text what to do.

use flotilla_model::command::Rejection;
use flotilla_raft::{ChangeError, FeedError, Lagged, ProposeError, ReadError};
use tonic::{Code, Status};

pub(super) fn of_proposal(error: &ProposeError) -> Status {
    let code = match error {
        ProposeError::Rejected(rejection) => of_rejection(rejection),
        ProposeError::NoLeader { .. } | ProposeError::Stopped => Code::Unavailable,
        ProposeError::Timeout { .. } => Code::DeadlineExceeded,
        ProposeError::Overloaded => Code::ResourceExhausted,
        ProposeError::TooLarge { .. } => Code::InvalidArgument,
        ProposeError::Refused(_) | ProposeError::NotYet { .. } => Code::FailedPrecondition,
    };
    Status::new(code, error.to_string())
}

fn of_rejection(rejection: &Rejection) -> Code {
    match rejection {
        Rejection::RoomNotFound
        | Rejection::ParticipantNotFound
        | Rejection::TrackNotFound
        | Rejection::NodeNotFound => Code::NotFound,
        Rejection::StaleSession | Rejection::StaleEpoch => Code::FailedPrecondition,
        Rejection::TrackExists => Code::AlreadyExists,
        Rejection::RoomFull | Rejection::LimitExceeded(_) => Code::ResourceExhausted,
        Rejection::NotPermitted(_) | Rejection::TokenRevoked => Code::PermissionDenied,
    }
}

pub(super) fn of_read(error: &ReadError) -> Status {
    match error {
        ReadError::NoLeader { .. } | ReadError::Lagging { .. } | ReadError::Stopped => {
            Status::unavailable(format!(
                "{error}; ask with stale consistency for what this node has applied"
            ))
        }
        ReadError::Overloaded => Status::resource_exhausted(error.to_string()),
    }
}

pub(super) fn of_change(error: &ChangeError) -> Status {
    let code = match error {
        ChangeError::Refused(_) => Code::FailedPrecondition,
        ChangeError::Timeout { .. } | ChangeError::Stopped => Code::Unavailable,
        ChangeError::UnknownNode(_) => Code::NotFound,
    };
    Status::new(code, error.to_string())
}

pub(super) fn of_lag(error: &Lagged) -> Status {
    Status::out_of_range(error.to_string())
}

pub(super) fn of_feed(error: &FeedError) -> Status {
    match error {
        FeedError::Lagged(lagged) => of_lag(lagged),
        FeedError::Stopped => Status::unavailable(error.to_string()),
    }
}
