//! Lets calls through that carry the admin token.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use sha2::{Digest as _, Sha256};
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Checks `authorization: Bearer <token>`. Tokens are compared by their digests and in constant
/// time: neither content nor length of the right one shows in how long a refusal takes.
#[derive(Clone)]
pub(super) struct Gate {
    token: Option<[u8; 32]>,
}

impl Gate {
    /// Without a token, every call passes.
    pub(super) fn new(token: Option<&str>) -> Self {
        Self {
            token: token.map(digest),
        }
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(expected) = &self.token else {
            return Ok(request);
        };
        let given = bearer(request.metadata()).ok_or_else(|| {
            Status::unauthenticated(
                "this node wants its admin token: send it as metadata `authorization: Bearer <token>`",
            )
        })?;
        verify_slices_are_equal(&digest(given), expected)
            .map_err(|_| Status::unauthenticated("this is not the node's admin token"))?;
        Ok(request)
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn bearer(metadata: &MetadataMap) -> Option<&str> {
    let value = metadata.get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(gate: Option<&str>, header: Option<&str>) -> Result<(), String> {
        let mut request = Request::new(());
        if let Some(header) = header {
            let value = header.parse().expect("is a header's value");
            request.metadata_mut().insert("authorization", value);
        }
        let passed = Gate::new(gate).call(request);
        passed
            .map(drop)
            .map_err(|status| status.message().to_owned())
    }

    #[test]
    fn only_the_token_opens() {
        assert_eq!(call(None, None), Ok(()));
        assert_eq!(call(Some("right"), Some("Bearer right")), Ok(()));
        assert_eq!(call(Some("right"), Some("bearer  right")), Ok(()));
        for header in [
            "Bearer wrong",
            "Bearer",
            "Bearer ",
            "Basic right",
            "right",
            "",
        ] {
            assert!(call(Some("right"), Some(header)).is_err(), "{header}");
        }
        let missing = call(Some("right"), None).expect_err("is refused");
        assert!(missing.contains("authorization: Bearer"));
    }
}
