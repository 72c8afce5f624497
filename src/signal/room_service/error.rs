//! Twirp errors: code, status, JSON body.

use flotilla_model::command::Rejection;
use serde::Serialize;
use thiserror::Error;

use crate::session::CommitError;
use crate::token::TokenError;

/// Codes of the Twirp protocol, version 7, that we use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No such method.
    BadRoute,
    /// Body cannot be read.
    Malformed,
    /// Body says something impossible.
    InvalidArgument,
    /// Token is missing, bad or does not grant it. LiveKit uses this code for all three.
    Unauthenticated,
    /// Room, participant or track does not exist.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// A limit is reached.
    ResourceExhausted,
    /// Not configured.
    FailedPrecondition,
    /// Changed by somebody else meanwhile.
    Aborted,
    /// Not something we do.
    Unimplemented,
    /// No quorum, no leader: later perhaps.
    Unavailable,
    /// Our fault.
    Internal,
}

impl Code {
    /// HTTP status that Twirp gives it.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRoute | Self::NotFound => 404,
            Self::Malformed | Self::InvalidArgument => 400,
            Self::Unauthenticated => 401,
            Self::AlreadyExists | Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::FailedPrecondition => 412,
            Self::Unimplemented => 501,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }
}

/// An error response.
#[derive(Clone, PartialEq, Eq, Debug, Error, Serialize)]
#[error("{msg}")]
pub struct ApiError {
    /// Its code.
    pub code: Code,
    /// What is wrong.
    pub msg: String,
}

impl ApiError {
    /// An error response.
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
        }
    }

    /// The token does not grant it.
    #[must_use]
    pub fn not_permitted() -> Self {
        Self::from(TokenError::NotPermitted)
    }

    pub(super) fn missing(field: &str) -> Self {
        Self::new(Code::InvalidArgument, format!("{field} is required"))
    }

    /// HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.code.status()
    }

    /// Body, `application/json`.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        Self::new(Code::Unauthenticated, error.to_string())
    }
}

impl From<&CommitError> for ApiError {
    fn from(error: &CommitError) -> Self {
        let code = match error {
            CommitError::Unavailable(_) => Code::Unavailable,
            CommitError::Rejected(rejection) => match rejection {
                Rejection::RoomNotFound
                | Rejection::ParticipantNotFound
                | Rejection::TrackNotFound
                | Rejection::NodeNotFound => Code::NotFound,
                Rejection::TrackExists => Code::AlreadyExists,
                Rejection::RoomFull | Rejection::LimitExceeded(_) => Code::ResourceExhausted,
                Rejection::NotPermitted(_) | Rejection::TokenRevoked => Code::Unauthenticated,
                _ => Code::Aborted,
            },
        };
        Self::new(code, error.to_string())
    }
}
