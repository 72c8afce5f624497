//! Media probes: how long a stream stood still, and that what arrives is what was sent.

use super::Opinion;

/// A stream may be silent for so long beyond the longest fault in it, nanoseconds: a client gives a resume up after ten
/// seconds, and then joins anew.
const SILENT_MAX: u64 = 15_000_000_000;

/// A packet that a probe received. Times are nanoseconds of the history's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Arrival {
    /// Number that its sender gave it, from 0, over all of its sessions.
    pub(crate) number: u64,
    pub(crate) sent: u64,
    pub(crate) at: u64,
    pub(crate) ssrc: u32,
    pub(crate) sequence: u16,
    /// Payload and its digest belong together, and to this stream.
    pub(crate) sound: bool,
}

/// One stream from a sender to a receiver.
#[derive(Clone, Default, Debug)]
pub(crate) struct Stream {
    /// Who to whom.
    pub(crate) name: String,
    /// Nanoseconds between two packets.
    pub(crate) cadence: u64,
    /// When each packet was sent, by number.
    pub(crate) sent: Vec<u64>,
    pub(crate) arrivals: Vec<Arrival>,
}

impl Stream {
    /// The longest silence at the receiver that begins or lasts within a window, less the cadence and less the time for
    /// which the sender itself was late.
    pub(crate) fn gap(&self, from: u64, to: u64) -> u64 {
        let mut longest = 0;
        // From the last arrival before the window to the first after it.
        let first = self.arrivals.partition_point(|one| one.at < from);
        let last = self.arrivals.partition_point(|one| one.at <= to);
        let start = first.saturating_sub(1);
        let end = (last + 1).min(self.arrivals.len());
        for pair in self.arrivals[start..end].windows(2) {
            let silence = pair[1].at.saturating_sub(pair[0].at);
            longest = longest.max(silence.saturating_sub(self.paused(pair[0].at, pair[1].at)));
        }
        if last == self.arrivals.len() {
            let since = self.arrivals.last().map_or(from, |one| one.at);
            let silence = to.saturating_sub(since);
            longest = longest.max(silence.saturating_sub(self.paused(since, to)));
        }
        longest.saturating_sub(self.cadence)
    }

    /// For how long the sender did not send although it should have, within a time.
    fn paused(&self, from: u64, to: u64) -> u64 {
        let first = self.sent.partition_point(|at| *at < from);
        let last = self.sent.partition_point(|at| *at <= to);
        let mut edges = vec![from];
        edges.extend(&self.sent[first..last.max(first)]);
        edges.push(to);
        edges
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]))
            .map(|between| between.saturating_sub(2 * self.cadence))
            .sum()
    }
}

/// Judges whether every stream comes back. Faults are given by when they began and when the cluster was well again.
pub(crate) fn judge_silence(streams: &[Stream], faults: &[(u64, u64)]) -> Opinion {
    let mut opinion = Opinion::new("media silence");
    let mut longest = 0;
    for stream in streams {
        let Some(last_sent) = stream.sent.last() else {
            continue;
        };
        // Time before the first packet is not silence: there is nobody yet.
        let mut times: Vec<u64> = stream.arrivals.iter().map(|one| one.at).collect();
        if times.is_empty() {
            opinion.violated(format!("{}: no packet ever came", stream.name));
        }
        times.push(*last_sent);
        for pair in times.windows(2) {
            let silence = pair[1].saturating_sub(pair[0]);
            longest = longest.max(silence);
            let overlapping = faults
                .iter()
                .filter(|(began, over)| *began < pair[1] && *over > pair[0]);
            let fault = overlapping
                .map(|(began, over)| over.saturating_sub(*began))
                .max();
            let bound = SILENT_MAX + fault.unwrap_or(0);
            if silence > bound {
                let seconds = |ns: u64| ns as f64 / 1e9;
                opinion.violated(format!(
                    "{}: silent for {:.1} s from {:.1} s on, the bound is {:.1} s",
                    stream.name,
                    seconds(silence),
                    seconds(pair[0]),
                    seconds(bound)
                ));
            }
        }
    }
    opinion.looked_at = format!(
        "{} streams; the longest silence is {:.1} s",
        streams.len(),
        longest as f64 / 1e9
    );
    opinion
}

/// Judges the integrity of all streams; gaps are figures, their bound is [`judge_silence`]'s.
pub(crate) fn judge(streams: &[Stream]) -> Opinion {
    let mut opinion = Opinion::new("media integrity");
    let packets: usize = streams.iter().map(|stream| stream.arrivals.len()).sum();
    opinion.looked_at = format!("{packets} packets on {} streams", streams.len());
    for stream in streams {
        let foreign = stream.arrivals.iter().filter(|one| !one.sound).count();
        if foreign > 0 {
            opinion.violated(format!(
                "{}: {foreign} packets are not what was sent",
                stream.name
            ));
        }
        let mut seen = std::collections::HashSet::new();
        let twice = stream
            .arrivals
            .iter()
            .filter(|one| one.sound && !seen.insert(one.number))
            .count();
        if twice > 0 {
            opinion.violated(format!("{}: {twice} packets came twice", stream.name));
        }
        let early = stream
            .arrivals
            .iter()
            .filter(|one| one.sound && one.at < one.sent)
            .count();
        if early > 0 {
            opinion.violated(format!(
                "{}: {early} packets came before they were sent",
                stream.name
            ));
        }
        let mut numbers: std::collections::HashMap<(u32, u16, u64), u64> =
            std::collections::HashMap::new();
        let reused = stream
            .arrivals
            .iter()
            .filter(|one| one.sound)
            .filter(|one| {
                // A sequence number comes again after 65,536 packets, not within a second.
                let key = (one.ssrc, one.sequence, one.at / 10_000_000_000);
                numbers
                    .insert(key, one.number)
                    .is_some_and(|other| other != one.number)
            })
            .count();
        if reused > 0 {
            opinion.violated(format!(
                "{}: {reused} packets have the sequence number of another of their SSRC",
                stream.name
            ));
        }
    }
    opinion
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Packets every 5 ms that arrive a millisecond later, but for those in `lost`.
    fn stream(count: u64, lost: std::ops::Range<u64>) -> Stream {
        let arrivals = (0..count)
            .filter(|number| !lost.contains(number))
            .map(|number| Arrival {
                number,
                sent: number * 5 * MS,
                at: number * 5 * MS + MS,
                ssrc: 1,
                sequence: number as u16,
                sound: true,
            });
        Stream {
            name: "a to b".to_owned(),
            cadence: 5 * MS,
            sent: (0..count).map(|number| number * 5 * MS).collect(),
            arrivals: arrivals.collect(),
        }
    }

    #[test]
    fn a_gap_is_found_where_it_is() {
        let stream = stream(400, 100..140);
        assert_eq!(stream.gap(500 * MS, 800 * MS), 200 * MS);
        assert_eq!(stream.gap(600 * MS, 650 * MS), 200 * MS);
        assert_eq!(stream.gap(900 * MS, 1500 * MS), 0);
    }

    #[test]
    fn a_stream_that_never_comes_back_is_silent_to_the_end() {
        let stream = stream(400, 200..400);
        assert_eq!(stream.gap(900 * MS, 1996 * MS), (1996 - 996 - 5) * MS);
        let mut nothing = stream.clone();
        nothing.arrivals.clear();
        assert!(nothing.gap(0, 1900 * MS) >= 1800 * MS);
    }

    #[test]
    fn a_pause_of_the_sender_is_taken_off() {
        let mut stream = stream(400, 0..0);
        for number in 200..400_usize {
            stream.sent[number] += 300 * MS;
            stream.arrivals[number].at += 300 * MS;
            stream.arrivals[number].sent += 300 * MS;
        }
        assert!(stream.gap(900 * MS, 1500 * MS) <= 10 * MS);
    }

    #[test]
    fn a_stream_that_stays_silent_is_found() {
        const S: u64 = 1000 * MS;
        let judged =
            |lost, faults: &[(u64, u64)]| judge_silence(&[stream(8000, lost)], faults).count;
        // Sixteen seconds in the middle, or up to the end.
        assert_eq!(judged(1000..4200, &[]), 1);
        assert_eq!(judged(4800..8000, &[]), 1);
        assert_eq!(judged(1000..3800, &[]), 0);
        // A fault of two seconds at its beginning, and one that was over before.
        assert_eq!(judged(1000..4200, &[(4 * S, 6 * S)]), 0);
        assert_eq!(judged(1000..4200, &[(S, 4 * S)]), 1);
        assert_eq!(judged(0..8000, &[]), 1);
    }

    #[test]
    fn foreign_doubled_and_reused_packets_are_found() {
        assert_eq!(judge(&[stream(100, 0..0)]).count, 0);
        let mut foreign = stream(100, 0..0);
        foreign.arrivals[7].sound = false;
        assert_eq!(judge(&[foreign]).count, 1);
        let mut doubled = stream(100, 0..0);
        doubled.arrivals.push(doubled.arrivals[3]);
        assert_eq!(judge(&[doubled]).count, 1);
        let mut reused = stream(100, 0..0);
        reused.arrivals[50].sequence = 49;
        assert_eq!(judge(&[reused]).count, 1);
        let mut early = stream(100, 0..0);
        early.arrivals[50].sent += 10 * MS;
        assert_eq!(judge(&[early]).count, 1);
    }
}
