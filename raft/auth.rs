//! Proof that a caller knows the cluster secret, on every call between nodes.
//!
//! [`Authenticated`] wraps the client's channel and adds the metadata `flotilla-proof`:
//! HMAC-SHA-256, keyed by the secret, of the called method's path, in hexadecimal. [`Guarded`] wraps
//! a service and refuses calls whose proof does not fit, in constant time and before the body is
//! read. The secret itself never travels. A proof has no time in it, because agreement must not
//! depend on clocks: whoever can read the traffic can repeat a call, so networks that are not
//! trusted need TLS as well ([`crate::channels::Tls`]).

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use aws_lc_rs::hmac;
use futures_util::future::Either;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

const PROOF: &str = "flotilla-proof";
const CONTEXT: &[u8] = b"flotilla cluster call 1\n";

/// The secret that all nodes of a cluster share.
#[derive(Clone)]
pub struct Secret {
    key: Arc<hmac::Key>,
}

impl Secret {
    /// A secret from its text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self {
            key: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes())),
        }
    }

    fn proof(&self, path: &str) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(CONTEXT);
        context.update(path.as_bytes());
        let tag = context.sign();
        let mut text = String::with_capacity(64);
        for byte in tag.as_ref() {
            text.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
        }
        text
    }

    fn verify(&self, path: &str, proof: &[u8]) -> bool {
        let Some(tag) = from_hex(proof) else {
            return false;
        };
        let mut message = Vec::with_capacity(CONTEXT.len() + path.len());
        message.extend_from_slice(CONTEXT);
        message.extend_from_slice(path.as_bytes());
        hmac::verify(&self.key, &message, &tag).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

fn from_hex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(bytes)
}

/// A client channel that proves the secret on every call.
#[derive(Clone, Debug)]
pub struct Authenticated<S> {
    inner: S,
    secret: Secret,
}

impl<S> Authenticated<S> {
    pub(crate) fn new(inner: S, secret: Secret) -> Self {
        Self { inner, secret }
    }
}

impl<S, B> Service<http::Request<B>> for Authenticated<S>
where
    S: Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let proof = self.secret.proof(request.uri().path());
        let value = http::HeaderValue::from_str(&proof).expect("hexadecimal digits are valid");
        request.headers_mut().insert(PROOF, value);
        self.inner.call(request)
    }
}

/// A service that refuses calls without the proof.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    secret: Secret,
}

impl<S> Guarded<S> {
    pub(crate) fn new(inner: S, secret: Secret) -> Self {
        Self { inner, secret }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let text = match request.headers().get(PROOF) {
            None => "no proof of the cluster secret: is this a node of the cluster?",
            Some(proof) if self.secret.verify(request.uri().path(), proof.as_bytes()) => {
                return Either::Left(self.inner.call(request));
            }
            Some(_) => "wrong cluster secret: both nodes need the same one in their configuration",
        };
        Either::Right(ready(Ok(tonic::Status::unauthenticated(text).into_http())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_and_path_pass() {
        let secret = Secret::new("correct horse");
        let proof = secret.proof("/flotilla.raft.v1.Consensus/Vote");
        assert!(secret.verify("/flotilla.raft.v1.Consensus/Vote", proof.as_bytes()));
        assert!(!secret.verify("/flotilla.raft.v1.Consensus/Append", proof.as_bytes()));
        let other = Secret::new("battery staple");
        assert!(!other.verify("/flotilla.raft.v1.Consensus/Vote", proof.as_bytes()));
    }

    #[test]
    fn malformed_proofs_are_refused() {
        let secret = Secret::new("s");
        let long = "0".repeat(66);
        let wrong = "g".repeat(64);
        for proof in ["", "00", long.as_str(), wrong.as_str(), "ü"] {
            assert!(!secret.verify("/a/b", proof.as_bytes()), "{proof}");
        }
    }

    #[test]
    fn debug_hides_the_secret() {
        assert_eq!(format!("{:?}", Secret::new("hush")), "Secret(…)");
    }
}
