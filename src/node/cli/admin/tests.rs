//! The command line against a real admin port.

use clap::Parser;
use serde_json::Value;

use super::{AdminArgs, answer, client};
use crate::admin::tests::{Port, TOKEN};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: AdminArgs,
}

fn parse(address: &str, arguments: &[&str]) -> AdminArgs {
    let before = ["admin", "--address", address, "--token", TOKEN];
    let all = before.iter().chain(arguments);
    Cli::try_parse_from(all).expect("are valid arguments").args
}

async fn ask(port: &Port, arguments: &[&str]) -> anyhow::Result<(Value, String)> {
    let args = parse(&port.address.to_string(), arguments);
    answer(&mut client(&args)?, args.command).await
}

async fn done(port: &Port, arguments: &[&str]) -> (Value, String) {
    ask(port, arguments).await.expect("is answered")
}

#[tokio::test]
async fn prints_what_operators_and_scripts_read() {
    let port = Port::open().await;
    port.call().await;

    let (status, table) = done(&port, &["status"]).await;
    assert_eq!((&status["leader"], &status["node"]), (&1.into(), &1.into()));
    assert_eq!(status["nodes"][0]["role"], "voter");
    assert_eq!(status["nodes"][0]["lag"], 0);
    assert!(status["applied"].as_u64() > Some(0));
    assert!(table.contains("leader    1, term 1"), "{table}");

    let (routes, table) = done(&port, &["routes", "call"]).await;
    let routes = routes["routes"].as_array().expect("is a list");
    assert_eq!(routes.len(), 1);
    let route = &routes[0];
    assert_eq!((&route["from"], &route["to"]), (&1.into(), &2.into()));
    assert_eq!(route["live"]["packets"], 1234);
    assert!(table.contains("1234") && table.contains("TR_1"), "{table}");

    let (hash, _) = done(&port, &["hash"]).await;
    assert_eq!(hash["state_hash"].as_str().map(str::len), Some(16));
    assert_eq!(hash["applied"], status["applied"]);

    let (room, table) = done(&port, &["room", "call", "--consistency", "stale"]).await;
    assert_eq!(room["participants"][0]["state"], "joined");
    assert_eq!(room["tracks"][0]["source"], "camera");
    assert_eq!(room["room"]["homes"]["2"], 1);
    assert!(table.contains("640x360"), "{table}");
    for command in [
        &["nodes"][..],
        &["rooms"],
        &["participants", "call"],
        &["tracks", "call"],
    ] {
        let (json, table) = done(&port, command).await;
        assert!(json["position"]["log_index"].as_u64() > Some(0), "{json}");
        assert!(table.lines().count() > 2, "{table}");
    }

    let (takeovers, table) = done(&port, &["takeovers"]).await;
    assert_eq!(takeovers["takeovers"], Value::Array(Vec::new()));
    assert_eq!(table, "No takeover.\n");
    let (_, table) = done(&port, &["drain-node", "2"]).await;
    assert!(table.contains("Node 2 takes nobody new"), "{table}");
    let (nodes, _) = done(&port, &["nodes"]).await;
    assert_eq!(nodes["nodes"][1]["state"], "draining");
    let error = ask(&port, &["drain-node", "1"])
        .await
        .expect_err("is refused");
    assert!(error.to_string().contains("no other node"), "{error}");
    done(&port, &["resume-node", "2"]).await;
    port.lose_node_1().await;
    let (takeovers, table) = done(&port, &["takeovers"]).await;
    let takeover = &takeovers["takeovers"][0];
    assert_eq!((&takeover["from"], &takeover["to"]), (&1.into(), &2.into()));
    assert_eq!(takeover["cause"], "crashed");
    assert_eq!(takeover["adopted_at_ms"], Value::Null);
    assert!(table.contains("crashed"), "{table}");
    let (nodes, _) = done(&port, &["nodes"]).await;
    assert_eq!(nodes["nodes"][0]["state"], "lost");
    assert_eq!(nodes["nodes"][0]["participants"], 0);

    let (removed, table) = done(&port, &["remove-participant", "call", "b"]).await;
    assert_eq!(removed["room_version"], 6);
    assert_eq!(table, "b is removed from room call.\n");
    done(&port, &["close-room", "call"]).await;
    let (rooms, table) = done(&port, &["rooms"]).await;
    assert_eq!(rooms["rooms"], Value::Array(Vec::new()));
    assert_eq!(table, "No room.\n");
    let (snapshot, _) = done(&port, &["snapshot"]).await;
    assert!(snapshot["snapshot"].as_u64() > Some(0));
    assert_eq!(snapshot["purged"], Value::Null);
    let (purged, text) = done(&port, &["snapshot", "--purge-log"]).await;
    assert_eq!(purged["purged"], purged["snapshot"]);
    let told = format!("The log begins after index {}.", purged["purged"]);
    assert!(text.contains(&told), "{text}");
    port.close().await;
}

#[tokio::test]
async fn says_what_is_wrong_and_what_to_do() {
    let port = Port::open().await;
    let missing = ask(&port, &["close-room", "nowhere"]).await;
    let missing = missing.expect_err("does not exist").to_string();
    assert_eq!(missing, "requested room does not exist");
    let mut args = parse(&port.address.to_string(), &["nodes"]);
    args.token = Some("another".to_owned());
    let refused = answer(&mut client(&args).expect("parses"), args.command).await;
    let refused = refused.expect_err("is refused").to_string();
    assert!(refused.contains("FLOTILLA_ADMIN_TOKEN"), "{refused}");

    let address = port.address.to_string();
    port.close().await;
    let args = parse(&address, &["nodes"]);
    let nobody = answer(&mut client(&args).expect("parses"), args.command).await;
    let nobody = nobody.expect_err("is not reached").to_string();
    assert!(nobody.contains("cannot be reached"), "{nobody}");
    assert!(nobody.contains(&address), "{nobody}");
}
