//! A client's checks, made with rtc-stun, against the agent.

use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rtc_crypto::providers::AwsLcRsCrypto;
use rtc_stun::attributes::{
    ATTR_ICE_CONTROLLED, ATTR_ICE_CONTROLLING, ATTR_PRIORITY, ATTR_USE_CANDIDATE, ATTR_USERNAME,
    AttrType, RawAttribute,
};
use rtc_stun::error_code::ErrorCodeAttribute;
use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    BINDING_ERROR, BINDING_REQUEST, BINDING_SUCCESS, Getter, Message, Setter, TransactionId,
};
use rtc_stun::xoraddr::XorMappedAddress;

use super::*;

/// A connectivity check as a client makes it.
pub(crate) struct Check<'a> {
    pub(crate) to: &'a Credentials,
    pub(crate) from_ufrag: &'a str,
    pub(crate) nominates: bool,
    pub(crate) extra: Vec<(AttrType, Vec<u8>)>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(to: &'a Credentials, nominates: bool) -> Self {
        Self {
            to,
            from_ufrag: "them",
            nominates,
            extra: vec![],
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let attribute = |typ, value: Vec<u8>| -> Box<dyn Setter> {
            Box::new(RawAttribute {
                typ,
                length: 0,
                value,
            })
        };
        let username = format!("{}:{}", self.to.ufrag, self.from_ufrag);
        let mut setters: Vec<Box<dyn Setter>> = vec![
            Box::new(TransactionId([7; 12])),
            Box::new(BINDING_REQUEST),
            attribute(ATTR_USERNAME, username.into_bytes()),
            attribute(ATTR_PRIORITY, vec![1, 2, 3, 4]),
        ];
        if self
            .extra
            .iter()
            .all(|(typ, _)| *typ != ATTR_ICE_CONTROLLED)
        {
            setters.push(attribute(ATTR_ICE_CONTROLLING, vec![1; 8]));
        }
        if self.nominates {
            setters.push(attribute(ATTR_USE_CANDIDATE, vec![]));
        }
        setters.extend(
            self.extra
                .iter()
                .map(|(typ, value)| attribute(*typ, value.clone())),
        );
        setters.push(Box::new(
            MessageIntegrity::new_short_term_integrity_with_provider(
                self.to.pwd.clone(),
                &AwsLcRsCrypto,
            ),
        ));
        setters.push(Box::new(FINGERPRINT));
        let mut message = Message::new();
        message.build(&setters).expect("builds");
        message.raw
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], port))
}

fn agent(now: Instant) -> (IceAgent, Credentials, ChaCha8Rng) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut agent = IceAgent::new(IceTimeouts::default(), &mut rng);
    agent.set_remote(now, "them");
    let local = agent.local().clone();
    (agent, local, rng)
}

fn answer(agent: &mut IceAgent, to: SocketAddr) -> Message {
    let (destination, bytes) = agent.poll_transmit().expect("answered");
    assert_eq!(destination, to);
    let mut message = Message::new();
    message.unmarshal_binary(&bytes).expect("parses");
    FINGERPRINT.check(&message).expect("has a fingerprint");
    message
}

#[test]
fn a_check_is_answered_with_its_address() {
    let now = crate::test_epoch();
    let (mut agent, local, _) = agent(now);
    for from in [
        address(5000),
        "[2001:db8::1]:6000".parse().expect("address"),
    ] {
        agent
            .handle(now, from, &Check::new(&local, false).bytes())
            .expect("valid");
        let mut message = answer(&mut agent, from);
        assert_eq!(message.typ, BINDING_SUCCESS);
        assert_eq!(message.transaction_id.0, [7; 12]);
        let mut mapped = XorMappedAddress::default();
        mapped.get_from(&message).expect("has the address");
        assert_eq!((mapped.ip, mapped.port), (from.ip(), from.port()));
        MessageIntegrity::check(&mut message, local.pwd.as_bytes(), &AwsLcRsCrypto)
            .expect("signed");
    }
    assert_eq!(agent.nominated(), None);
    assert_eq!(agent.remote(), Some(address(5000)));
}

#[test]
fn the_last_nomination_counts() {
    let now = crate::test_epoch();
    let (mut agent, local, _) = agent(now);
    let first = agent.handle(now, address(1), &Check::new(&local, true).bytes());
    assert_eq!(first, Ok(Some(IceChange::Connected)));
    assert_eq!(agent.nominated(), Some(address(1)));
    assert_eq!(
        agent.handle(now, address(2), &Check::new(&local, false).bytes()),
        Ok(None)
    );
    assert_eq!(agent.nominated(), Some(address(1)));
    assert_eq!(
        agent.handle(now, address(2), &Check::new(&local, true).bytes()),
        Ok(None)
    );
    assert_eq!(agent.nominated(), Some(address(2)));
    for port in 10..30 {
        agent
            .handle(now, address(port), &Check::new(&local, false).bytes())
            .expect("valid");
    }
    assert!(agent.knows(address(2)) && agent.knows(address(29)) && !agent.knows(address(10)));
}

#[test]
fn bad_checks_are_refused_in_silence() {
    let now = crate::test_epoch();
    let (mut agent, local, _) = agent(now);
    let good = Check::new(&local, true).bytes();
    let mut wrong = local.clone();
    wrong.pwd.push('x');
    assert_eq!(
        agent.handle(now, address(1), &Check::new(&wrong, true).bytes()),
        Err(Discard::StunRefused)
    );
    wrong = local.clone();
    wrong.ufrag.push('x');
    assert_eq!(
        agent.handle(now, address(1), &Check::new(&wrong, true).bytes()),
        Err(Discard::UnknownPeer)
    );
    let mut stranger = Check::new(&local, true);
    stranger.from_ufrag = "other";
    assert_eq!(
        agent.handle(now, address(1), &stranger.bytes()),
        Err(Discard::StunRefused)
    );
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        assert!(agent.handle(now, address(1), &bad).is_err(), "byte {at}");
        assert!(agent.handle(now, address(1), &good[..at]).is_err());
    }
    let mut longer = good.clone();
    longer.extend([0; 4]);
    assert!(agent.handle(now, address(1), &longer).is_err());
    assert!(agent.poll_transmit().is_none());
    assert_eq!(agent.remote(), None);
}

#[test]
fn nothing_behind_the_signature_is_believed() {
    let now = crate::test_epoch();
    let (mut agent, local, _) = agent(now);
    let mut message = Message::new();
    message
        .unmarshal_binary(&Check::new(&local, false).bytes())
        .expect("parses");
    message.attributes.0.pop();
    let mut forged = Message::new();
    forged.transaction_id = message.transaction_id;
    forged.set_type(BINDING_REQUEST);
    forged.write_header();
    for attribute in &message.attributes.0 {
        forged.add(attribute.typ, &attribute.value);
    }
    forged.add(ATTR_USE_CANDIDATE, &[]);
    FINGERPRINT.add_to(&mut forged).expect("adds");
    agent
        .handle(now, address(1), &forged.raw)
        .expect("the signed part is valid");
    assert_eq!(agent.nominated(), None);
}

#[test]
fn role_conflict_and_unknown_attributes_are_answered_with_errors() {
    let now = crate::test_epoch();
    let (mut agent, local, _) = agent(now);
    for (typ, code) in [(ATTR_ICE_CONTROLLED, 487), (AttrType(0x7777), 420)] {
        let mut check = Check::new(&local, true);
        check.extra = vec![(typ, vec![0; 8])];
        assert_eq!(
            agent.handle(now, address(1), &check.bytes()),
            Err(Discard::StunRefused)
        );
        let message = answer(&mut agent, address(1));
        assert_eq!(message.typ, BINDING_ERROR);
        let mut error = ErrorCodeAttribute::default();
        error.get_from(&message).expect("has a code");
        assert_eq!(error.code.0, code);
    }
    assert_eq!(agent.remote(), None);
    let mut check = Check::new(&local, true);
    check.extra = vec![(AttrType(0xc057), vec![0; 4])];
    assert!(
        agent.handle(now, address(1), &check.bytes()).is_ok(),
        "optional ones are ignored"
    );
}

#[test]
fn silence_disconnects_then_fails() {
    let start = crate::test_epoch();
    let (mut agent, local, _) = agent(start);
    assert_eq!(agent.state(), IceState::Waiting);
    let check = Check::new(&local, true).bytes();
    agent.handle(start, address(1), &check).expect("valid");
    let due = start + Duration::from_secs(10);
    assert_eq!(agent.deadline(), Some(due));
    assert_eq!(agent.handle_timeout(due - Duration::from_millis(1)), None);
    assert_eq!(agent.state(), IceState::Connected);
    assert_eq!(agent.handle_timeout(due), None);
    assert_eq!(agent.state(), IceState::Disconnected);
    assert_eq!(
        agent.handle(due, address(1), &check),
        Ok(Some(IceChange::Connected))
    );
    assert_eq!(agent.handle_timeout(due + Duration::from_secs(10)), None);
    assert_eq!(
        agent.handle_timeout(due + Duration::from_secs(15)),
        Some(IceChange::Failed)
    );
    assert_eq!((agent.state(), agent.deadline()), (IceState::Failed, None));
}

#[test]
fn a_client_that_never_checks_fails() {
    let start = crate::test_epoch();
    let (mut agent, _, _) = agent(start);
    assert_eq!(agent.handle_timeout(start + Duration::from_secs(29)), None);
    assert_eq!(
        agent.handle_timeout(start + Duration::from_secs(30)),
        Some(IceChange::Failed)
    );
}

#[test]
fn a_restart_keeps_the_old_path_until_the_new_one_is_nominated() {
    let now = crate::test_epoch();
    let (mut agent, old, mut rng) = agent(now);
    agent
        .handle(now, address(1), &Check::new(&old, true).bytes())
        .expect("valid");
    agent.restart(now, &mut rng);
    let new = agent.local().clone();
    assert!(new.ufrag != old.ufrag && new.pwd != old.pwd);

    // The client's new fragment is not known yet, and its old path lives on.
    let mut check = Check::new(&new, false);
    check.from_ufrag = "themtoo";
    assert_eq!(agent.handle(now, address(2), &check.bytes()), Ok(None));
    assert_eq!(
        agent.handle(now, address(1), &Check::new(&old, true).bytes()),
        Ok(None)
    );
    assert_eq!(agent.nominated(), Some(address(1)));
    agent.set_remote(now, "themtoo");
    check.nominates = true;
    assert_eq!(
        agent.handle(now, address(2), &check.bytes()),
        Ok(Some(IceChange::Restarted))
    );
    assert_eq!(agent.nominated(), Some(address(2)));
    assert_eq!(agent.poll_retired(), Some(old.ufrag.clone()));
    assert_eq!(
        agent.handle(now, address(1), &Check::new(&old, true).bytes()),
        Err(Discard::UnknownPeer)
    );
}

#[test]
fn restarts_that_are_not_finished_do_not_pile_up() {
    let now = crate::test_epoch();
    let (mut agent, first, mut rng) = agent(now);
    for _ in 0..5 {
        agent.restart(now, &mut rng);
    }
    assert_eq!(agent.poll_retired(), Some(first.ufrag));
    let retired = std::iter::from_fn(|| agent.poll_retired()).count();
    assert_eq!(retired, 2);
}

#[test]
fn ufrag_is_read_from_a_request_alone() {
    let now = crate::test_epoch();
    let (agent, local, _) = agent(now);
    let request = Check::new(agent.local(), true).bytes();
    assert_eq!(request_ufrag(&request), Some(local.ufrag.as_str()));
    let mut response = request.clone();
    response[0] = 1;
    assert_eq!(request_ufrag(&response), None);
    for len in 0..request.len() {
        assert_eq!(request_ufrag(&request[..len]), None);
    }
}

#[test]
fn candidates_are_in_order_of_preference() {
    assert_eq!(
        candidate(0, address(7882)),
        "candidate:3221225991 1 udp 2130706431 192.0.2.7 7882 typ host"
    );
    let second = candidate(1, "[2001:db8::1]:7882".parse().expect("address"));
    assert!(
        second.ends_with(" 1 udp 2130706175 2001:db8::1 7882 typ host"),
        "{second}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn arbitrary_messages_do_no_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        keep in 0_usize..60,
    ) {
        let now = crate::test_epoch();
        let (mut agent, local, _) = agent(now);
        let _ = request_ufrag(&bytes);
        prop_assert!(agent.handle(now, address(1), &bytes).is_err());
        // A valid beginning gets deeper.
        let mut mixed = Check::new(&local, true).bytes();
        mixed.truncate(keep);
        mixed.extend_from_slice(&bytes);
        if let Some(len) = mixed.len().checked_sub(20) {
            mixed[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        }
        let _ = request_ufrag(&mixed);
        prop_assert!(agent.handle(now, address(1), &mixed).is_err());
    }
}

#[test]
fn an_agent_goes_on_where_another_was() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let now = crate::test_epoch();
    let timeouts = IceTimeouts::default();
    let client = SocketAddr::from(([192, 0, 2, 7], 5000));
    let mut before = IceAgent::new(timeouts, &mut rng);
    assert!(before.passage().is_none(), "there is no path");
    before.set_remote(now, "them");
    let credentials = before.local().clone();
    let check = Check::new(&credentials, true).bytes();
    before
        .handle(now, via::mark(client, 1), &check)
        .expect("valid");
    let passage = before.passage().expect("a path");
    assert_eq!((passage.client, passage.local), (client, 1));

    // At the other node the address has another number.
    let mut after = IceAgent::go_on(now, timeouts, &passage.heard_by(3));
    let heard = via::mark(client, 3);
    assert_eq!(after.remote(), Some(heard));
    assert!(after.knows(heard) && !after.knows(client));
    assert_eq!(
        after.ufrags().collect::<Vec<_>>(),
        [credentials.ufrag.as_str()]
    );
    let change = after
        .handle(now, heard, &check)
        .expect("the same credentials");
    assert_eq!(change, None, "nothing begins");
    let (to, answer) = after.poll_transmit().expect("an answer");
    assert_eq!(to, heard);
    let mut message = Message::new();
    message.unmarshal_binary(&answer).expect("a message");
    let mut mapped = XorMappedAddress::default();
    mapped.get_from(&message).expect("an address");
    assert_eq!(
        SocketAddr::new(mapped.ip, mapped.port),
        client,
        "as the client is"
    );
    // Without checks it fails like any.
    let end = now + timeouts.disconnected + timeouts.failed;
    after.handle_timeout(now + timeouts.disconnected);
    assert_eq!(after.handle_timeout(end), Some(IceChange::Failed));
}
