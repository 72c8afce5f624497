//! On loopback, with all that the kernel offers and with none of it.

use std::collections::BTreeMap;
use std::time::Instant;

use super::*;

const ALL: [Offload; 3] = [Offload::Single, Offload::Batches, Offload::Segments];

fn bind(address: &str, most: Offload) -> (Socket, Waker, SocketAddr) {
    let (socket, waker) = Socket::bind_with(address.parse().expect("address"), most).expect("bind");
    let address = socket.local_address().expect("bound");
    (socket, waker, address)
}

/// Everything that arrives within half a second of silence, in order.
fn drain(socket: &mut Socket, expected: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut seen = Vec::new();
    let give_up = Instant::now() + Duration::from_secs(5);
    while seen.len() < expected && Instant::now() < give_up {
        socket
            .wait(&[], Some(Duration::from_millis(500)))
            .expect("wait");
        socket
            .receive(|from, bytes| {
                seen.push((from, bytes.to_vec()));
                true
            })
            .expect("receive");
    }
    seen
}

#[test]
fn receives_what_was_sent_and_wakes() {
    for most in ALL {
        let (mut left, waker, to) = bind("127.0.0.1:0", most);
        let right = UdpSocket::bind("127.0.0.1:0").expect("bind");
        right.send_to(b"hello", to).expect("send");
        let seen = drain(&mut left, 1);
        let from = right.local_addr().expect("bound");
        assert_eq!(seen, [(from, b"hello".to_vec())]);

        let started = Instant::now();
        waker.wake();
        waker.wake();
        left.wait(&[], Some(Duration::from_secs(5))).expect("wait");
        assert!(started.elapsed() < Duration::from_secs(4));
        let started = Instant::now();
        left.wait(&[], Some(Duration::from_millis(20)))
            .expect("wait");
        assert!(
            started.elapsed() >= Duration::from_millis(20),
            "wake-up consumed"
        );
        left.wake_self();
        left.wait(&[], Some(Duration::from_secs(5))).expect("wait");
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}

#[test]
fn no_wake_up_is_lost() {
    let (mut socket, waker, _) = bind("127.0.0.1:0", Offload::Segments);
    let (orders, waiting) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        for order in 0..20_000_u32 {
            orders.send(order).expect("the receiver is there");
            waker.wake();
            if order % 64 == 0 {
                std::thread::yield_now();
            }
        }
    });
    let mut taken = 0;
    while taken < 20_000 {
        let started = Instant::now();
        socket
            .wait(&[], Some(Duration::from_secs(10)))
            .expect("wait");
        assert!(started.elapsed() < Duration::from_secs(9), "after {taken}");
        taken += waiting.try_iter().count();
    }
    thread.join().expect("sends all");
}

#[test]
fn queues_arrive_whole_and_in_order_per_destination() {
    for most in ALL {
        let (mut sender, _, from) = bind("127.0.0.1:0", most);
        let mut receivers: Vec<_> = (0..5).map(|_| bind("127.0.0.1:0", most)).collect();
        let mut queue = TransmitQueue::new(1024);
        let mut sent: BTreeMap<SocketAddr, Vec<Vec<u8>>> = BTreeMap::new();
        for index in 0..500_usize {
            let (_, _, to) = &receivers[index * 7 % 5];
            // Runs of one size, broken by shorter and longer ones, as media is.
            let len = if index % 23 < 20 {
                1200
            } else {
                40 + index % 300
            };
            let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + index) as u8).collect();
            assert!(queue.push(*to, &bytes));
            sent.entry(*to).or_default().push(bytes);
        }
        let report = sender.send(&queue);
        assert_eq!((report.sent, report.dropped), (500, 0), "{most:?}");
        match sender.offload() {
            Offload::Single => assert_eq!(report.calls, 500),
            Offload::Batches => assert!(report.calls < 10, "{}", report.calls),
            Offload::Segments => assert!(report.calls < 5, "{}", report.calls),
        }
        for (receiver, _, address) in &mut receivers {
            let expected = &sent[address];
            let seen = drain(receiver, expected.len());
            assert!(seen.iter().all(|(source, _)| *source == from));
            assert!(seen.iter().map(|(_, bytes)| bytes).eq(expected), "{most:?}");
        }
    }
}

#[test]
fn a_receiver_that_has_enough_gets_the_rest_later() {
    for most in ALL {
        let (mut sender, _, _) = bind("127.0.0.1:0", most);
        let (mut receiver, _, to) = bind("127.0.0.1:0", most);
        let mut queue = TransmitQueue::new(256);
        for index in 0..100_u8 {
            assert!(queue.push(to, &[index; 300]));
        }
        assert_eq!(sender.send(&queue).sent, 100);
        let mut seen = Vec::new();
        let started = Instant::now();
        while seen.len() < 100 {
            // Waiting does not sleep over datagrams that are kept here.
            receiver
                .wait(&[], Some(Duration::from_secs(10)))
                .expect("wait");
            let count = receiver
                .receive(|_, bytes| {
                    seen.push(bytes[0]);
                    seen.len() % 3 != 0
                })
                .expect("receive");
            assert!(count <= 3);
        }
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(seen, (0..100).collect::<Vec<u8>>());
    }
}

#[test]
fn a_dual_socket_speaks_ipv4() {
    for most in ALL {
        let Ok((mut dual, _)) = Socket::bind_with("[::]:0".parse().expect("address"), most) else {
            return; // no IPv6 here
        };
        let port = dual.local_address().expect("bound").port();
        let (mut v4, _, v4_address) = bind("127.0.0.1:0", most);
        let mut queue = TransmitQueue::new(16);
        for _ in 0..4 {
            assert!(queue.push(SocketAddr::from(([127, 0, 0, 1], port)), b"ping"));
        }
        assert_eq!(v4.send(&queue).sent, 4);
        let seen = drain(&mut dual, 4);
        assert_eq!(seen, vec![(v4_address, b"ping".to_vec()); 4]);
        queue.clear();
        for _ in 0..4 {
            assert!(queue.push(v4_address, b"pong"));
        }
        assert_eq!(dual.send(&queue).sent, 4);
        assert_eq!(drain(&mut v4, 4).len(), 4);
    }
}

#[test]
fn an_unreachable_destination_costs_only_its_own_datagrams() {
    for most in ALL {
        let (mut sender, _, _) = bind("127.0.0.1:0", most);
        let (mut receiver, _, to) = bind("127.0.0.1:0", most);
        let mut queue = TransmitQueue::new(64);
        // A socket bound to loopback cannot send elsewhere; port 0 is nobody's.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 0));
        for _ in 0..10 {
            assert!(queue.push(to, &[1; 500]));
            assert!(queue.push(nobody, &[2; 500]));
        }
        let report = sender.send(&queue);
        assert_eq!((report.sent, report.dropped), (10, 10), "{most:?}");
        assert_eq!(drain(&mut receiver, 10).len(), 10);
        queue.clear();
        assert!(queue.push(to, b"and again"));
        assert_eq!(sender.send(&queue).sent, 1);
    }
}

#[test]
fn a_taken_port_is_an_error() {
    let (_socket, _, address) = bind("127.0.0.1:0", Offload::Segments);
    let error = Socket::bind(address).err().expect("taken");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}

/// A shard that listens on all addresses and holds one of them for itself: what comes by it is told apart,
/// and what is marked with it leaves by it.
#[test]
fn an_address_beside_the_main_one_has_a_socket_of_its_own() {
    let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    let patience = Some(Duration::from_secs(5));
    client.set_read_timeout(patience).expect("is set");
    let to = client.local_addr().expect("is bound");
    let (mut main, _waker) = Socket::bind(([0, 0, 0, 0], 0).into()).expect("binds");
    let port = main.local_address().expect("is bound").port();
    let address = SocketAddr::from(([127, 0, 0, 9], port));
    assert!(Socket::bind_beside(address, 3).is_err(), "it has the port");
    main.allow_beside().expect("is allowed");
    let mut beside = vec![Socket::bind_beside(address, 3).expect("binds")];
    assert!(
        Socket::bind(([127, 0, 0, 9], port).into()).is_err(),
        "nobody else gets in"
    );

    client
        .send_to(b"main", ("127.0.0.1", port))
        .expect("is sent");
    client.send_to(b"beside", address).expect("is sent");
    let mut heard = Vec::new();
    while heard.len() < 2 {
        main.wait(&beside, patience).expect("waits");
        for socket in std::iter::once(&mut main).chain(&mut beside) {
            let local = socket.local();
            let received = socket.receive(|from, bytes| {
                heard.push((local, from, bytes.to_vec()));
                true
            });
            received.expect("receives");
        }
    }
    heard.sort();
    assert_eq!(
        heard,
        [(0, to, b"main".to_vec()), (3, to, b"beside".to_vec())]
    );

    let mut queue = TransmitQueue::new(16);
    queue.push(to, b"one");
    queue.push(via::mark(to, 3), b"two");
    queue.push(via::mark(to, 4), b"nobody's");
    let sent = main.send(&queue).sent + beside[0].send(&queue).sent;
    assert_eq!(sent, 2);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut buffer = [0; 32];
        let (len, from) = client.recv_from(&mut buffer).expect("arrives");
        answers.push((from.ip().to_string(), buffer[..len].to_vec()));
    }
    answers.sort();
    let expected = [("127.0.0.1", &b"one"[..]), ("127.0.0.9", b"two")];
    assert_eq!(
        answers,
        expected.map(|(ip, bytes)| (ip.to_owned(), bytes.to_vec()))
    );
}

#[test]
fn what_is_forbidden_in_the_last_moment_stays_here() {
    for most in ALL {
        let (mut sender, _, _) = bind("127.0.0.1:0", most);
        let (mut receiver, _, to) = bind("127.0.0.1:0", most);
        let mut queue = TransmitQueue::new(16);
        for index in 0..10_u8 {
            assert!(queue.push(to, &[index; 300]));
        }
        let report = sender.send_while(&queue, &|| false);
        assert_eq!((report.sent, report.dropped), (0, 10), "{most:?}");
        assert_eq!(sender.send(&queue).sent, 10, "nothing is left over");
        assert_eq!(drain(&mut receiver, 10).len(), 10);
    }
}
