//! Chance and time of a simulation: what the C library would answer, from the seed and the virtual clock.
//!
//! Hash maps, tokio's `select!` and every generator below the raft crate ask the operating system for
//! randomness, and the standard library asks it for the time, whatever a runtime thinks. Both end in a
//! function of the C library; the ones here take their place in this program. Before [`begin`] they
//! ask the kernel. A process simulates once, so nothing of one run reaches another.

#![expect(unsafe_code, reason = "these functions are called by C's rules")]
#![expect(unreachable_pub, reason = "the linker reaches them")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Wall clock at the start of every simulation: 1 January 2027.
const EPOCH_SECS: i64 = 1_798_761_600;
/// Monotonic clock at the start, so that it may be gone back from.
const UPTIME_SECS: i64 = 1_000_000;

static SIMULATED: AtomicBool = AtomicBool::new(false);
static RANDOM: AtomicU64 = AtomicU64::new(0);
static ELAPSED_NS: AtomicU64 = AtomicU64::new(0);

/// From here on chance comes from `seed`, and time stands still until it is [set](set_elapsed).
pub(crate) fn begin(seed: u64) {
    RANDOM.store(seed ^ 0x5eed_0f0f_5eed_0f0f, Ordering::Relaxed);
    SIMULATED.store(true, Ordering::Relaxed);
}

/// Sets the clock to so long after the start.
pub(crate) fn set_elapsed(elapsed: Duration) {
    let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    ELAPSED_NS.store(nanos, Ordering::Relaxed);
}

/// Ends this process when its parent ends, so that a sweep which is cut off leaves nothing behind.
pub(crate) fn end_with_parent() {
    // SAFETY: it takes a signal's number, and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Ends this process when it has used this much processor time: a loop without a pause has no end in a
/// simulation, whose clock stands still meanwhile.
pub(crate) fn limit_processor_time(most: Duration) {
    let limit = libc::rlimit {
        rlim_cur: most.as_secs(),
        rlim_max: most.as_secs(),
    };
    // SAFETY: the kernel reads one limit from where `limit` is.
    unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) };
}

/// Processor time of this process, which the simulation does not touch.
pub(crate) fn processor_time() -> Duration {
    kernel_time(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn kernel_time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec to where `time` is.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) };
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

/// SplitMix64; one thread simulates, so the order of the draws is the program's.
fn draw() -> u64 {
    let state = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The C library's `getrandom`.
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    if !SIMULATED.load(Ordering::Relaxed) {
        // SAFETY: the kernel's function with the caller's arguments.
        let written = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return libc::ssize_t::try_from(written).unwrap_or(-1);
    }
    // SAFETY: the caller says that the room is there.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&draw().to_le_bytes()[..chunk.len()]);
    }
    libc::ssize_t::try_from(length).unwrap_or(-1)
}

/// The C library's `clock_gettime`.
///
/// # Safety
/// `time` points to a timespec.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    let start = match clock {
        libc::CLOCK_REALTIME => EPOCH_SECS,
        libc::CLOCK_MONOTONIC => UPTIME_SECS,
        _ => -1,
    };
    if start < 0 || !SIMULATED.load(Ordering::Relaxed) {
        // SAFETY: the kernel's function with the caller's arguments.
        let outcome = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        return libc::c_int::try_from(outcome).unwrap_or(-1);
    }
    let elapsed = ELAPSED_NS.load(Ordering::Relaxed);
    let seconds = i64::try_from(elapsed / 1_000_000_000).unwrap_or(i64::MAX);
    let nanos = i64::try_from(elapsed % 1_000_000_000).unwrap_or(0);
    // SAFETY: the caller says that there is a timespec.
    unsafe {
        (*time).tv_sec = start + seconds;
        (*time).tv_nsec = nanos;
    }
    0
}
