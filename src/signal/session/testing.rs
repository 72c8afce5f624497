//! What the tests of this crate share.

use std::time::Instant;

/// The one place where tests take an instant: an epoch to count from.
#[expect(
    clippy::disallowed_methods,
    reason = "tests need one instant to count from"
)]
pub(crate) fn start() -> Instant {
    Instant::now()
}
