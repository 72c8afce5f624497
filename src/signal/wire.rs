//! Signal messages on the WebSocket: protobuf in binary frames, protojson in text frames.
//!
//! The shell hands in each frame and sends what comes back. One [`Codec`] per connection remembers
//! the frame type the client used last, because answers go out in the same.

use bytes::Bytes;
use livekit_protocol::{SignalRequest, SignalResponse};
use prost::Message as _;
use thiserror::Error;

/// A WebSocket data frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// Protobuf.
    Binary(Bytes),
    /// Protojson.
    Text(String),
}

/// Why a frame is refused; the connection closes.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WireError {
    /// Longer than the limit.
    #[error("signal message of {bytes} bytes is longer than {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not a `SignalRequest`.
    #[error("signal message is malformed: {0}")]
    Malformed(String),
}

impl WireError {
    /// WebSocket close code (RFC 6455 §7.4.1).
    #[must_use]
    pub fn close_code(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 1009,
            Self::Malformed(_) => 1007,
        }
    }

    /// Name for a counter.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// Translates frames of one connection.
#[derive(Clone, Debug)]
pub struct Codec {
    text: bool,
    bytes_max: usize,
}

impl Codec {
    /// A codec that refuses frames longer than `bytes_max`; it answers in binary until the client
    /// sends text.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            text: false,
            bytes_max,
        }
    }

    /// Reads a binary frame.
    ///
    /// # Errors
    /// [`WireError`] if it is too long or not a `SignalRequest`.
    pub fn decode_binary(&mut self, bytes: &[u8]) -> Result<SignalRequest, WireError> {
        self.text = false;
        self.check_length(bytes)?;
        SignalRequest::decode(bytes).map_err(|error| WireError::Malformed(error.to_string()))
    }

    /// Reads a text frame.
    ///
    /// # Errors
    /// [`WireError`] if it is too long or not a `SignalRequest`.
    pub fn decode_text(&mut self, text: &[u8]) -> Result<SignalRequest, WireError> {
        self.text = true;
        self.check_length(text)?;
        serde_json::from_slice(text).map_err(|error| WireError::Malformed(error.to_string()))
    }

    fn check_length(&self, bytes: &[u8]) -> Result<(), WireError> {
        if bytes.len() > self.bytes_max {
            return Err(WireError::TooLarge {
                bytes: bytes.len(),
                limit: self.bytes_max,
            });
        }
        Ok(())
    }

    /// Writes a response in the frame type the client used last.
    #[must_use]
    pub fn encode(&self, response: &SignalResponse) -> Frame {
        if self.text
            && let Ok(text) = serde_json::to_string(response)
        {
            return Frame::Text(text);
        }
        Frame::Binary(response.encode_to_vec().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use livekit_protocol as proto;
    use proptest::prelude::*;

    fn ping(at: i64) -> SignalRequest {
        SignalRequest {
            message: Some(proto::signal_request::Message::Ping(at)),
        }
    }

    fn pong(at: i64) -> SignalResponse {
        SignalResponse {
            message: Some(proto::signal_response::Message::Pong(at)),
        }
    }

    #[test]
    fn answers_follow_the_clients_frame_type() {
        let mut codec = Codec::new(1024);
        let request = codec.decode_binary(&ping(5).encode_to_vec()).expect("ping");
        assert_eq!(request, ping(5));
        assert!(matches!(codec.encode(&pong(6)), Frame::Binary(_)));

        let request = codec.decode_text(br#"{"ping":"5"}"#).expect("ping");
        assert_eq!(request, ping(5));
        assert_eq!(
            codec.encode(&pong(6)),
            Frame::Text(r#"{"pong":"6"}"#.into())
        );

        codec.decode_binary(&ping(5).encode_to_vec()).expect("ping");
        assert!(matches!(codec.encode(&pong(6)), Frame::Binary(_)));
    }

    #[test]
    fn unknown_fields_are_ignored_in_both_forms() {
        let mut codec = Codec::new(1024);
        let mut bytes = ping(5).encode_to_vec();
        bytes.extend([0xfa, 0x7f, 0x01, 0x00]);
        assert_eq!(codec.decode_binary(&bytes), Ok(ping(5)));
        assert_eq!(
            codec.decode_text(br#"{"ping":"5","novelty":{"a":[1]}}"#),
            Ok(ping(5))
        );
    }

    #[test]
    fn refusals_have_their_close_codes() {
        let mut codec = Codec::new(8);
        let long = codec.decode_binary(&[0; 9]).expect_err("too long");
        assert_eq!(long.close_code(), 1009);
        let bad = codec.decode_binary(&[0x0a, 0x7f]).expect_err("malformed");
        assert_eq!(bad.close_code(), 1007);
        let bad = codec.decode_text(b"{").expect_err("malformed");
        assert_eq!(bad.close_code(), 1007);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut codec = Codec::new(400);
            let _ = codec.decode_binary(&bytes);
            let _ = codec.decode_text(&bytes);
        }
    }
}
