//! The Python layers do what they are told.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};
use testkit::{
    python::{Kind, Peer},
    redis::{RedisServer, SentinelOptions, Sentinels},
    wait,
};

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

#[test]
fn a_core_layer_sends_receives_and_tells_its_errors() {
    let redis = RedisServer::start();
    let peer = Peer::core(&json!({"hosts": [redis.database(0), redis.database(1)], "capacity": 3, "prefix": "site"}));
    let message = json!({"type": "t", "bytes": {"hex": "00ff"}, "list": [1, null, {"hex": "00", "other": 1}]});
    let own = peer.new_channel();
    assert_eq!(peer.receive(&own, SHORT), None);
    peer.group_add("room", &own);
    peer.group_send("room", &message);
    assert_eq!(peer.receive(&own, PATIENCE), Some(message.clone()));
    peer.group_discard("room", &own);

    // Two readers of a plain channel, begun before anything is there.
    let (one, two) = (peer.receive_all("work", PATIENCE), peer.receive_all("work", SHORT));
    assert_eq!(two.list_within(PATIENCE), Vec::<Json>::new());
    drop(one);
    assert_eq!(peer.send_many("full", &message, 8).value(), json!(6), "three on each of two shards");
    let error = peer.order("send", &[json!("full"), message.clone()]).result().unwrap_err();
    assert_eq!(error.kind, "ChannelFull");
    let error = peer.order("send", &[json!("=+135!"), message.clone()]).result().unwrap_err();
    assert!(error.kind == "TypeError" && error.text.contains("Channel name"), "{error}");
    let got = peer.receive_many("full", 3, PATIENCE);
    assert_eq!(got.iter().map(|message| message["n"].as_i64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    peer.flush();
    assert_eq!(peer.receive("other", SHORT), None);
    assert_eq!(peer.call("capacity", &[]), json!(3));
}

#[test]
fn a_pubsub_layer_keeps_its_channel_when_a_receive_runs_out_of_time() {
    let redis = RedisServer::start();
    let peer = Peer::pubsub(&json!({"hosts": [redis.url()], "symmetric_encryption_keys": ["k"]}));
    let own = peer.new_channel();
    peer.group_add("room", &own);
    let topics = ["PUBSUB", "NUMSUB", &own, "asgi__group__room"];
    wait::until("the subscriptions", PATIENCE, || redis.cli(&topics).matches("\n1").count() == 2);
    assert_eq!(peer.receive(&own, SHORT), None);
    let sent = peer.group_send_many("room", &json!({"type": "t"}), 3, Duration::from_millis(1));
    let got = peer.receive_many(&own, 3, PATIENCE);
    assert_eq!(got.len(), 3);
    assert_eq!(sent.value(), json!(null));
    let churned = peer.churn(2, SHORT).value_within(SHORT);
    assert!(churned.as_u64().unwrap() >= 2, "{churned}");
}

#[test]
fn a_wrong_clock_is_wrong_and_time_spans_stay_right() {
    let redis = RedisServer::start();
    let peer = Peer::with_clock(Kind::Core, &json!({"hosts": [redis.url()]}), "+2d");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let ahead = peer.time() - now - 2.0 * 86_400.0;
    assert!(ahead.abs() < 30.0, "{ahead}");
    peer.send("work", &json!({"type": "t"}));
    assert_eq!(peer.receive("work", PATIENCE), Some(json!({"type": "t"})));
}

#[test]
fn a_layer_finds_its_primary_through_sentinels_with_passwords() {
    let options = SentinelOptions { password: Some("data".into()), sentinel_password: Some("watch".into()) };
    let mut set = Sentinels::start_with(&options);
    let peer = Peer::core(&json!({"hosts": [set.python_host()]}));
    peer.send("work", &json!({"type": "t"}));
    assert_eq!(set.primary().cli(&["ZCARD", "asgiwork"]), "1");
    assert_eq!(peer.receive("work", PATIENCE), Some(json!({"type": "t"})));
}
