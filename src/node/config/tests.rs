//! Tests of the configuration: keys, values, environment, hash.

use std::collections::BTreeSet;
use std::time::Duration;

use super::keys::{IGNORED, KEYS};
use super::{Config, ConfigError, strict, value};

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::load(None, Some(text), &[], |_| None)
}

#[test]
fn livekit_file_starts() {
    let config = load(
        "port: 7880\nbind_addresses: ['']\nrtc:\n  udp_port: 7882-7892\n  tcp_port: 7881\n  use_external_ip: false\nredis:\n  address: localhost:6379\nkeys:\n  key1: secret1\n  key2: 42\nlogging:\n  level: info\n  pion_level: error\nroom:\n  auto_create: false\n",
    )
    .expect("valid");
    assert_eq!(config.udp_port, 7882);
    assert!(!config.cluster.room.auto_create);
    assert_eq!(config.keys[0].key, "key1");
    assert_eq!(config.secret_of("key2"), Some("42"));
    let ignored: Vec<_> = config.ignored.iter().map(|i| i.path.as_str()).collect();
    assert_eq!(
        ignored,
        [
            "rtc.tcp_port",
            "rtc.use_external_ip",
            "redis",
            "logging.pion_level"
        ]
    );
}

#[test]
fn a_floating_address_is_nothing_elses() {
    let text = |rtc: &str| format!("bind_addresses: [10.0.0.1]\nrtc:\n  node_ip: 10.0.0.2\n{rtc}");
    let config = load(&text(
        "  floating_ip: 10.0.0.9\n  floating_interface: eth1\n",
    ))
    .expect("valid");
    let floating = config.floating.expect("one");
    assert_eq!(floating.address.to_string(), "10.0.0.9");
    assert_eq!(floating.means.interface.as_deref(), Some("eth1"));
    assert!(load(&text("")).expect("valid").floating.is_none());
    for (rtc, key) in [
        ("  floating_ip: 10.0.0.1\n", "rtc.floating_ip"),
        ("  floating_ip: 10.0.0.2\n", "rtc.floating_ip"),
        ("  floating_ip: 0.0.0.0\n", "rtc.floating_ip"),
        (
            "  floating_ip: 10.0.0.9\n  udp_port: 0\n",
            "rtc.floating_ip",
        ),
        ("  floating_command: /bin/move\n", "rtc.floating_command"),
        ("  floating_interface: eth1\n", "rtc.floating_interface"),
    ] {
        let refused = load(&text(rtc)).expect_err(rtc).to_string();
        assert!(refused.contains(key), "{refused}");
    }
}

#[test]
fn unknown_key_is_named_with_the_nearest() {
    for (text, path, expected) in [
        ("rtc:\n  udp_prot: 1\n", "rtc.udp_prot", "rtc.udp_port"),
        ("prot: 1\n", "prot", "port"),
        (
            "cluster:\n  heartbeet: 1s\n",
            "cluster.heartbeet",
            "cluster.heartbeat",
        ),
        ("node_id: 3\n", "node_id", "cluster.node_id"),
        ("seeds: []\n", "seeds", "cluster.seeds"),
    ] {
        match load(text) {
            Err(ConfigError::UnknownKey {
                path: named,
                nearest,
            }) => {
                assert_eq!(named, path);
                assert_eq!(nearest.as_deref(), Some(expected));
            }
            other => panic!("{text}: {other:?}"),
        }
    }
    let far = load("zzzzqqq: 1\n").expect_err("unknown").to_string();
    assert!(
        far.contains("`zzzzqqq`") && far.contains("docs/config.md"),
        "{far}"
    );
}

#[test]
fn wrong_values_name_their_key() {
    for (text, part) in [
        ("port: many\n", "`port`"),
        ("rtc:\n  shards: 0\n", "`rtc.shards`"),
        ("rtc:\n  udp_port: 70000\n", "`rtc.udp_port`"),
        ("rtc:\n  udp_port: 7882-7883\n  shards: 4\n", "4 ports"),
        ("cluster:\n  voters: 2\n", "1, 3, 5 or 7"),
        ("cluster:\n  heartbeat: 50\n", "`cluster.heartbeat`"),
        ("cluster:\n  heartbeat: 100ms\n", "twice"),
        ("cluster:\n  secret: short\n", "16 characters"),
        ("cluster:\n  bind: nowhere\n", "address:port"),
        ("cluster: 7\n", "`cluster`"),
        ("- a\n- b\n", "map of keys"),
        ("admin:\n  tls:\n    cert_file: a\n", "`admin.tls`"),
        ("signal:\n  ping_timeout: 1\n", "ping_interval"),
    ] {
        let error = load(text).expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn environment_lies_over_the_file() {
    let environment = |name: &str| match name {
        "LIVEKIT_PORT" => Some("1000".to_owned()),
        "FLOTILLA_PORT" => Some("2000".to_owned()),
        "LIVEKIT_KEYS" => Some("a: b\nc: d".to_owned()),
        "FLOTILLA_CLUSTER_NODE_ID" => Some("7".to_owned()),
        _ => None,
    };
    let config =
        Config::load(None, Some("port: 1\nkeys:\n  x: y\n"), &[], environment).expect("valid");
    assert_eq!((config.port, config.node_id), (2000, 7));
    assert_eq!(config.secret_of("c"), Some("d"));
    assert_eq!(config.secret_of("x"), None);
    let overridden = [("port", strict::scalar("3000"))];
    let config = Config::load(None, None, &overridden, environment).expect("valid");
    assert_eq!(config.port, 3000);
}

#[test]
fn hash_covers_what_must_be_equal_and_nothing_else() {
    let base = load("").expect("valid").cluster.hash();
    assert_eq!(
        base,
        load("port: 99\nlimit:\n  num_participants: 3\n")
            .expect("valid")
            .cluster
            .hash()
    );
    for text in [
        "rtc:\n  shards: 2\n",
        "cluster:\n  voters: 5\n",
        "room:\n  empty_timeout: 1\n",
    ] {
        assert_ne!(base, load(text).expect("valid").cluster.hash(), "{text}");
    }
}

#[test]
fn table_names_each_key_once_and_none_is_both() {
    let mut seen = BTreeSet::new();
    for key in KEYS {
        assert!(seen.insert(key.path), "{} twice", key.path);
        assert!(!IGNORED.contains(&key.path), "{} is also ignored", key.path);
    }
}

#[test]
fn every_key_of_the_table_is_read() {
    // A value of a type that no key has must be an error for each of them.
    for key in KEYS.iter().filter(|key| key.path != "keys") {
        let mut root = serde_norway::Value::Null;
        let wrong = serde_norway::from_str("{a: [b]}").expect("yaml");
        strict::set(&mut root, key.path, wrong);
        let text = serde_norway::to_string(&root).expect("yaml");
        assert!(load(&text).is_err(), "{} is not read", key.path);
    }
}

#[test]
fn durations() {
    for (text, expected) in [
        ("50ms", Some(50)),
        ("1.5s", Some(1500)),
        ("1h30m", Some(5_400_000)),
        ("5", None),
        ("", None),
        ("s", None),
        ("5 parsecs", None),
    ] {
        assert_eq!(
            value::parse_duration(text),
            expected.map(Duration::from_millis),
            "{text}"
        );
    }
}
