//! When the survivors knew, from what they say themselves: their logs.

use crate::clock::{Ms, wall_ms};

/// Lines that mean that a peer was noticed to be gone.
const NOTICES: [&str; 2] = ["mesh link is down", "node is lost"];

/// From the fault to the first notice of `victim` in the logs of others.
pub(crate) fn from_logs(logs: &[String], victim: u64, fault: Ms) -> Option<Ms> {
    let began = wall_ms(fault);
    let peer = format!("peer={victim}");
    logs.iter()
        .flat_map(|log| log.lines())
        .filter(|line| NOTICES.iter().any(|notice| line.contains(notice)))
        .filter(|line| line.split_whitespace().any(|word| word == peer))
        .filter_map(wall_of)
        .map(|at| at - began)
        // A log line is stamped to the microsecond, the fault to the millisecond.
        .filter(|after| *after > -1.0)
        .min_by(f64::total_cmp)
        .map(|after| after.max(0.0))
}

/// Milliseconds since 1970 of a log line's `2026-11-24T10:26:31.822012Z`.
fn wall_of(line: &str) -> Option<f64> {
    let stamp = line.split_whitespace().next()?.strip_suffix('Z')?;
    let (date, time) = stamp.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':');
    let hours: f64 = time.next()?.parse().ok()?;
    let minutes: f64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    // Days since 1970 with years that begin in March, so that the leap day is a year's last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days =
        year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(((days as f64 * 24.0 + hours) * 60.0 + minutes) * 60_000.0 + seconds * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now_ms;

    #[test]
    fn log_times_are_read() {
        assert_eq!(wall_of("1970-01-01T00:00:00.000000Z INFO x"), Some(0.0));
        assert_eq!(
            wall_of("2024-02-29T12:00:00.500000Z x"),
            Some(1_709_208_000_500.0)
        );
        assert_eq!(wall_of("no time at all"), None);
    }

    #[test]
    fn only_a_notice_of_the_victim_after_the_fault_counts() {
        let log = |peer: u64| {
            format!("2024-02-29T12:00:00.500000Z  INFO m: mesh link is down peer={peer} reason=x")
        };
        let fault = now_ms() - (wall_ms(now_ms()) - 1_709_208_000_000.0);
        let after = from_logs(&[log(2)], 2, fault);
        assert!(
            after.is_some_and(|after| (after - 500.0).abs() < 5.0),
            "{after:?}"
        );
        assert_eq!(from_logs(&[log(3)], 2, fault), None);
        assert_eq!(from_logs(&[log(2)], 2, fault + 10_000.0), None);
    }
}
