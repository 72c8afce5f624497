//! Keeps a panic inside a protocol library from taking a shard, and every call on it, down.
//!
//! Our own parsers do not panic, and what the rtc-* crates are fed is checked first; this is the
//! last line for what nobody has found yet. The state that was being worked on must be thrown away
//! by the caller: it may be half changed.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The library panicked; its state is not to be used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Panicked;

/// Runs `work`, turning a panic into an error.
pub(super) fn contain<T>(what: &'static str, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        tracing::error!(
            what,
            "a protocol library panicked; its connection is given up"
        );
        Panicked
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(contain("test", || 7), Ok(7));
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let outcome = contain("test", || -> u32 { panic!("on purpose") });
        std::panic::set_hook(hook);
        assert_eq!(outcome, Err(Panicked));
    }
}
