//! The judge on planted observations: each thing it is to see, it sees.

use super::super::agents::{Event, Numbered};
use super::*;

fn steady(from: Ms, to: Ms, step: Ms) -> Vec<Ms> {
    let count = ((to - from) / step) as usize;
    (0..=count).map(|n| from + n as Ms * step).collect()
}

fn client(identity: &str, home: u64, others: &[&str]) -> Client {
    let mut seen = Seen::default();
    for other in others {
        for media in Media::ALL {
            let stamps = steady(0.0, 10_000.0, media.cadence_ms());
            seen.stamps.insert((media, (*other).to_owned()), stamps);
        }
        let messages = (0..200).map(|number| Numbered {
            number,
            at: number as Ms * 50.0 + 1.0,
        });
        seen.received
            .insert((*other).to_owned(), messages.collect());
    }
    seen.sent = (0..200)
        .map(|number| Numbered {
            number,
            at: number as Ms * 50.0,
        })
        .collect();
    Client {
        index: usize::from(identity == "b"),
        identity: identity.to_owned(),
        kind: Kind::Python,
        home,
        hears: None,
        seen,
    }
}

fn window(touched: Touched) -> Window {
    Window {
        touched,
        fault: 4000.0,
        end: 10_000.0,
        knocks: Vec::new(),
        listed: vec!["a".to_owned(), "b".to_owned()],
    }
}

fn pair() -> [Client; 2] {
    [client("a", 1, &["b"]), client("b", 2, &["a"])]
}

fn silence(client: &mut Client, media: Media, sender: &str, from: Ms, to: Ms) {
    let stamps = client.seen.stamps.get_mut(&(media, sender.to_owned()));
    stamps
        .expect("a stream of the sender")
        .retain(|stamp| *stamp <= from || *stamp >= to);
}

#[test]
fn nothing_is_found_where_nothing_happened() {
    let judged = judge(&window(Touched::Node(1)), &pair());
    assert_eq!(judged.counts, Counts::default());
    assert!(judged.gaps.iter().all(|gap| gap.ms < 1.0 && !gap.open));
    assert!(judged.counts.violated().is_empty());
}

#[test]
fn a_silence_is_measured_where_it_is() {
    let mut clients = pair();
    silence(&mut clients[1], Media::Audio, "a", 4000.0, 4300.0);
    let judged = judge(&window(Touched::Node(1)), &clients);
    let gap = |path, media| {
        judged
            .gaps
            .iter()
            .find(|gap| gap.path == path && gap.media == media)
            .map(|gap| gap.ms)
    };
    assert_eq!(gap(Path::HitToOthers, Media::Audio), Some(280.0));
    assert!(gap(Path::OthersToHit, Media::Audio).is_some_and(|ms| ms < 1.0));
    assert!(gap(Path::HitToOthers, Media::Video).is_some_and(|ms| ms < 1.0));
}

#[test]
fn a_silence_before_the_fault_does_not_count() {
    let mut clients = pair();
    silence(&mut clients[1], Media::Audio, "a", 2000.0, 3900.0);
    let judged = judge(&window(Touched::Node(1)), &clients);
    assert!(judged.gaps.iter().all(|gap| gap.ms < 1.0));
}

#[test]
fn a_stream_that_does_not_come_back_is_a_lost_track() {
    let mut clients = pair();
    silence(&mut clients[1], Media::Video, "a", 4000.0, 11_000.0);
    let judged = judge(&window(Touched::Node(1)), &clients);
    assert_eq!(judged.counts.tracks_lost, 1);
    assert!(judged.gaps.iter().any(|gap| gap.open && gap.ms > 5000.0));
    clients[1].seen.stamps.clear();
    assert_eq!(
        judge(&window(Touched::Node(1)), &clients)
            .counts
            .tracks_lost,
        2
    );
}

#[test]
fn a_stream_that_nobody_subscribed_to_is_not_missed() {
    let mut clients = pair();
    clients[1].seen.stamps.clear();
    clients[1].hears = Some(Vec::new());
    let judged = judge(&window(Touched::Node(1)), &clients);
    assert_eq!((judged.counts.tracks_lost, judged.gaps.len()), (0, 2));
}

#[test]
fn events_that_should_not_be_are_counted_after_the_fault_only() {
    let mut clients = pair();
    for (at, name) in [
        (3000.0, "participant_disconnected"),
        (4500.0, "participant_disconnected"),
        (4600.0, "participant_connected"),
        (4700.0, "track_unpublished"),
        (4800.0, "disconnected"),
    ] {
        clients[1].seen.events.push(Event {
            at,
            name: name.to_owned(),
            who: None,
            text: None,
            sid: None,
        });
    }
    let counts = judge(&window(Touched::Node(1)), &clients).counts;
    assert_eq!((counts.left_events, counts.joined_events), (1, 1));
    assert_eq!(
        (counts.unpublished_events, counts.disconnected_events),
        (1, 1)
    );
    assert_eq!(counts.violated().len(), 4);
}

#[test]
fn messages_lost_and_twice_are_counted() {
    let mut clients = pair();
    let received = clients[1].seen.received.get_mut("a").expect("planted");
    let twice = received[100];
    received.retain(|message| message.number != 90);
    received.push(twice);
    let counts = judge(&window(Touched::Node(1)), &clients).counts;
    assert_eq!((counts.messages_lost, counts.messages_duplicated), (1, 1));
}

#[test]
fn full_reconnects_and_missing_participants_are_counted() {
    let mut window = window(Touched::Node(1));
    let knock = |at, ask| Knock {
        at,
        client: 0,
        node: 2,
        ask,
    };
    window.knocks = vec![
        knock(3000.0, Ask::Join),
        knock(4100.0, Ask::Resume),
        knock(4200.0, Ask::Join),
        knock(4300.0, Ask::Other),
    ];
    window.listed.pop();
    let judged = judge(&window, &pair());
    let counts = judged.counts;
    assert_eq!((counts.full_reconnects, counts.participants_lost), (1, 1));
    let back = &judged.returns[0];
    assert_eq!((back.resumes, back.joins, back.knocked_at), (1, 1, Some(2)));
    assert!(back.knocked_ms.is_some_and(|ms| (ms - 100.0).abs() < 1e-6));
}

#[test]
fn the_way_back_is_timed_for_the_clients_of_the_hit_node() {
    let mut clients = pair();
    clients[0].seen.events.push(Event {
        at: 4350.0,
        name: "reconnected".to_owned(),
        who: None,
        text: None,
        sid: None,
    });
    let judged = judge(&window(Touched::Node(1)), &clients);
    assert_eq!(judged.returns.len(), 1);
    assert_eq!(judged.returns[0].reconnected_ms, Some(350.0));
}

#[test]
fn a_cut_link_touches_what_passes_it() {
    let of = |from, to| Path::of(Touched::Link(1, 2), from, to);
    assert_eq!((of(1, 2), of(2, 1)), (Path::AcrossLink, Path::AcrossLink));
    assert_eq!((of(1, 3), of(1, 1)), (Path::Untouched, Path::Untouched));
}

#[test]
fn percentiles_are_by_nearest_rank() {
    let spread = Spread::of((1..=200).map(f64::from));
    let expected = Spread {
        n: 200,
        p50: 100.0,
        p99: 198.0,
        max: 200.0,
    };
    assert_eq!(spread, Some(expected));
    assert_eq!(Spread::of([]), None);
}

#[test]
fn a_stream_that_waits_for_a_cut_link_to_heal_is_held_up() {
    let touched = Touched::Link(1, 2);
    let mut clients = pair();
    silence(&mut clients[1], Media::Audio, "a", 4000.0, 4400.0);
    let judged = judge(&window(touched), &clients);
    assert_eq!(judged.counts.streams_held_up, 0, "it went round");
    silence(&mut clients[1], Media::Audio, "a", 4000.0, 8100.0);
    let judged = judge(&window(touched), &clients);
    assert_eq!(judged.counts.streams_held_up, 1);
    assert_eq!(judged.counts.violated(), ["1 streams held up"]);
}
