//! The machine's monotonic clock in milliseconds, as Python's `time.monotonic`, Node's `process.hrtime`
//! and Chromium read it too: one time line for everything that happens on one machine.

/// Milliseconds of CLOCK_MONOTONIC.
pub(crate) type Ms = f64;

/// Now.
#[expect(
    unsafe_code,
    reason = "the standard library's Instant cannot be compared with other processes' readings"
)]
pub(crate) fn now_ms() -> Ms {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec that lives across the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    assert_eq!(failed, 0, "every Linux has a monotonic clock");
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// Milliseconds since 1970 at a moment of the monotonic clock, to within the wall clock's steadiness.
pub(crate) fn wall_ms(at: Ms) -> f64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64() * 1e3);
    now - (now_ms() - at)
}
