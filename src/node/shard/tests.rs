//! A shard's thread on a real socket.

use flotilla_media::peer::dtls::Certificate;
use flotilla_model::id::BootId;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn start() -> (Shards, mpsc::Receiver<ShardEvent>, Arc<Metrics>) {
    let metrics = Metrics::new(NodeId(1)).expect("metrics");
    let certificate = Arc::new(Certificate::generate().expect("a certificate"));
    let config = EngineConfig::new(NodeId(1), BootId(1), [7; 32], certificate, vec![], [0; 32]);
    let socket = Socket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
    let lease = Lease::new(Instant::now());
    let (shards, events) =
        Shards::start(vec![socket], &config, &lease, &metrics).expect("threads start");
    (shards, events, metrics)
}

#[tokio::test]
async fn after_a_panic_every_session_hears_of_it_and_a_new_engine_answers() {
    let (shards, mut events, metrics) = start();
    let shard = &shards.handles()[0];
    let mut outlets = Vec::new();
    for key in [1, 2] {
        let (inbox, outlet) = Inbox::new();
        shard.send(Order::Attach(SessionKey(key), inbox)).await;
        outlets.push(outlet);
    }
    shard.send(Order::Panic).await;
    for outlet in &mut outlets {
        let heard = tokio::time::timeout(PATIENCE, outlet.receive()).await;
        let heard = heard.expect("in time");
        assert!(
            matches!(heard, Some(Message::EngineLost { is_cause: false })),
            "{heard:?}"
        );
    }
    let event = tokio::time::timeout(PATIENCE, events.recv()).await;
    assert!(matches!(
        event,
        Ok(Some(ShardEvent::Restarted { shard: 0 }))
    ));
    assert!(shard.inspect().await.is_some(), "a new engine answers");
    assert_eq!(metrics.shard_panics.get(), 1);
    shards.stop().await;
}

#[test]
fn what_waited_while_the_process_was_stopped_is_no_sign_of_life() {
    let start = Instant::now();
    let client = SocketAddr::from(([192, 0, 2, 7], 5));
    let mut lapsed = Lapsed::new(start);
    lapsed.turn(start, Duration::from_secs(1));
    // Reading what had come takes its time.
    let late = start + WAKING * 3;
    lapsed.hear(late, client);
    assert!(!lapsed.serves(late, client));
    lapsed.drained();
    lapsed.hear(late, client);
    assert!(lapsed.serves(late, client));
    // Stopped once more, and it is in doubt again.
    lapsed.turn(late, Duration::from_secs(1));
    assert!(!lapsed.serves(late, client));
    lapsed.hear(late + WAKING * 3, client);
    assert!(!lapsed.serves(late + WAKING * 3, client));
    // Even if all was read at once, what came just then may have been on its way for long.
    lapsed.drained();
    lapsed.hear(late + WAKING, client);
    assert!(!lapsed.serves(late + WAKING, client));
}

/// Its sessions would read too late that a client has gone to another node.
#[test]
fn a_process_with_a_few_milliseconds_of_each_period_serves_nobody_without_a_lease() {
    // Of the kernel's quota, of which 2 % are 2 ms.
    const PERIOD: Duration = Duration::from_millis(100);
    let client = SocketAddr::from(([192, 0, 2, 7], 5));
    let mut now = Instant::now();
    let mut lapsed = Lapsed::new(now);
    for _ in 0..30 {
        let turned = now;
        now += PERIOD;
        lapsed.turn(now, lateness(turned, Some(Duration::from_millis(20)), now));
        lapsed.drained();
        lapsed.hear(now, client);
        assert!(!lapsed.serves(now, client));
    }
    // It has its share again.
    now += WAKING;
    lapsed.hear(now, client);
    assert!(!lapsed.serves(now, client), "not for long enough");
    now += Duration::from_millis(1);
    lapsed.turn(now, Duration::from_millis(1));
    lapsed.hear(now, client);
    assert!(lapsed.serves(now, client));
}

/// A client that hears nothing leaves after 3 s at the earliest: its pings have to time out.
#[test]
fn a_client_that_may_have_left_meanwhile_is_not_served() {
    const PING_TIMEOUT: Duration = Duration::from_secs(3);
    // Of libwebrtc, for a path that carries nothing else.
    const CHECK_INTERVAL: Duration = Duration::from_millis(2500);
    let start = Instant::now();
    let client = SocketAddr::from(([192, 0, 2, 7], 5));
    let mut lapsed = Lapsed::new(start);
    let heard = start + LATE_MAX;
    lapsed.hear(heard, client);
    assert!(lapsed.serves(heard + CHECK_INTERVAL, client));
    let gone = heard + PING_TIMEOUT + Duration::from_millis(1);
    assert!(!lapsed.serves(gone, client));
    // It comes back to this node, because it found nobody else.
    lapsed.hear(gone, client);
    assert!(lapsed.serves(gone, client));
}

#[test]
fn a_thread_that_was_stopped_anywhere_in_its_turn_is_late() {
    let turned = Instant::now();
    let (wait, stopped) = (Duration::from_millis(20), Duration::from_secs(1));
    // While it waited, and on its way there: then the engine's deadline had passed, and it asked for none.
    assert_eq!(
        lateness(turned, Some(wait), turned + wait + stopped),
        stopped
    );
    assert_eq!(
        lateness(turned, Some(Duration::ZERO), turned + stopped),
        stopped
    );
    assert_eq!(
        lateness(turned, Some(wait), turned + wait / 2),
        Duration::ZERO
    );
    // Nothing was to wake it: whether it was stopped cannot be told, so it is taken to have been.
    assert_eq!(lateness(turned, None, turned + stopped), stopped);
}
