//! History, the inbox, typing, presence, and a sign-in renewed in place.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Client, Door, TestNode, eventually, token, token_with};
use serde_json::{Value, json};

async fn v1(door: Door, path: &str, user: &str) -> Client {
    let bearer = format!("Bearer {}", token(user));
    door.try_connect(path, &[("authorization", &bearer), ("sec-websocket-protocol", "gateway.v1")]).await.unwrap()
}

async fn ask(client: &mut Client, frame: Value) -> Value {
    let kind = frame["cate"].clone();
    client.send(frame).await;
    client.until(|frame| frame["type"] == kind || frame["type"] == "error").await
}

fn seqs(frame: &Value, list: &str) -> Vec<u64> {
    frame[list].as_array().unwrap().iter().map(|entry| entry["seq"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn history_is_paged_both_ways_and_ascends() {
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let mut alice = node.join("alice", "lobby").await;
    for n in 1..=7 {
        alice.say_acked("lobby", &n.to_string(), &n.to_string()).await;
    }
    let history = |more: Value| {
        let mut frame = json!({"cate": "history", "group_name": "lobby", "limit": 3});
        frame.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        frame
    };
    let newest = ask(&mut alice, history(json!({}))).await;
    assert_eq!((seqs(&newest, "messages"), newest["has_more"].as_bool()), (vec![5, 6, 7], Some(true)));
    assert_eq!(
        (newest["messages"][0]["type"].as_str(), newest["messages"][0]["message"].as_str()),
        (Some("chat"), Some("5"))
    );
    let before = ask(&mut alice, history(json!({"before": 3}))).await;
    assert_eq!((seqs(&before, "messages"), before["has_more"].as_bool()), (vec![1, 2], Some(false)));
    let after = ask(&mut alice, history(json!({"after": 2}))).await;
    assert_eq!((seqs(&after, "messages"), after["has_more"].as_bool()), (vec![3, 4, 5], Some(true)));
    let foreign = ask(&mut alice, json!({"cate": "history", "group_name": "elsewhere"})).await;
    assert_eq!(foreign["code"], "room_not_found");
}

#[tokio::test]
async fn what_is_seen_is_told_to_the_users_other_sockets() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let mut phone = v1(door, "/ws/chat/", "alice").await;
    let mut laptop = v1(door, "/ws/notifications/", "alice").await;
    let mut plain = door.connect("/ws/chat/", "alice").await;
    for n in 1..=3 {
        let event = json!({"type": "notification", "to": "user:alice", "data": {"message": n.to_string(), "from_user": "shop"}});
        assert_eq!(door.api("POST", "/api/events", Some(event)).await.0, 200);
    }
    let inbox = ask(&mut phone, json!({"cate": "notifications", "limit": 2})).await;
    assert_eq!(
        (seqs(&inbox, "notifications"), inbox["unseen"].as_u64(), inbox["has_more"].as_bool()),
        (vec![2, 3], Some(3), Some(true))
    );
    let seen = ask(&mut phone, json!({"cate": "seen", "ids": [inbox["notifications"][0]["id"]]})).await;
    assert_eq!(seen["unseen"], 2);
    let told = laptop.until(|frame| frame["type"] == "seen").await;
    assert_eq!((&told["unseen"], &told["ids"]), (&json!(2), &seen["ids"]));
    let unseen = ask(&mut laptop, json!({"cate": "notifications", "unseen": true})).await;
    assert_eq!(seqs(&unseen, "notifications"), [1, 3]);
    assert_eq!(ask(&mut laptop, json!({"cate": "seen", "up_to": 3})).await["unseen"], 0);
    assert_eq!(phone.until(|frame| frame["type"] == "seen").await["up_to"], 3);
    // A plain client that asked for nothing hears nothing of it.
    for _ in 0..3 {
        assert_eq!(plain.frame().await["type"], "notification");
    }
    plain.send(json!({"cate": "rooms"})).await;
    assert_eq!(plain.frame().await["type"], "rooms");
}

#[tokio::test]
async fn typing_and_presence_are_for_members() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let mut alice = v1(door, "/ws/chat/lobby/", "alice").await;
    let mut bob = v1(door, "/ws/chat/lobby/", "bob").await;
    let mut carol = v1(door, "/ws/chat/other/", "carol").await;
    alice.send(json!({"cate": "typing", "group_name": "lobby"})).await;
    assert_eq!(bob.frame().await, json!({"type": "typing", "group_name": "lobby", "from_user": "alice"}));
    let presence = ask(&mut alice, json!({"cate": "presence", "group_name": "lobby"})).await;
    assert_eq!(presence["users"], json!(["alice", "bob"]), "and no typing of one's own came before it");
    assert_eq!(ask(&mut carol, json!({"cate": "presence", "group_name": "lobby"})).await["code"], "room_not_found");
    assert_eq!(ask(&mut carol, json!({"cate": "typing", "group_name": "lobby"})).await["code"], "room_not_found");
    bob.close().await;
    eventually("bob is gone", || async { !node.running.node().registry.is_online("bob") }).await;
    let presence = ask(&mut alice, json!({"cate": "presence", "group_name": "lobby"})).await;
    assert_eq!(presence["users"], json!(["alice"]));
}

#[tokio::test]
async fn a_sign_in_is_renewed_in_place() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let path = format!("/ws/chat/old/?token={}", token_with("alice", &["old"], 6));
    let mut alice = node.at().try_connect(&path, &[]).await.unwrap();
    let other = ask(&mut alice, json!({"cate": "auth", "token": token("bob")})).await;
    assert_eq!(other["code"], "forbidden");
    assert_eq!(ask(&mut alice, json!({"cate": "auth", "token": "nonsense"})).await["code"], "invalid");
    // Who calls something critical that nobody knows is let in neither now nor at first.
    let critical = jsonwebtoken::Header { crit: Some(vec!["b64".into()]), ..jsonwebtoken::Header::default() };
    let key = jsonwebtoken::EncodingKey::from_secret(common::SECRET.as_bytes());
    let claims = json!({"sub": "alice", "exp": jsonwebtoken::get_current_timestamp() + 60});
    let critical = jsonwebtoken::encode(&critical, &claims, &key).unwrap();
    assert_eq!(ask(&mut alice, json!({"cate": "auth", "token": critical})).await["code"], "invalid");
    let refused = node.at().try_connect(&format!("/ws/chat/?token={critical}"), &[]).await;
    assert_eq!(refused.err(), Some(401));
    let renewed = ask(&mut alice, json!({"cate": "auth", "token": token_with("alice", &["new"], 60)})).await;
    assert!(renewed["expires_at"].as_str().unwrap().ends_with('Z'));
    let rooms = ask(&mut alice, json!({"cate": "rooms"})).await;
    assert_eq!((rooms["rooms"].as_array().unwrap().len(), rooms["rooms"][0]["group_name"].as_str()), (1, Some("new")));
    assert_eq!(alice.say_acked("old", "still?", "1").await["code"], "room_not_found");
    // Past the end of the first token the socket is still there.
    assert_eq!(alice.hear_within(std::time::Duration::from_secs(8)).await, None);
    assert_eq!(alice.say_acked("new", "here", "2").await["seq"], 1);
}

#[tokio::test]
async fn a_client_that_was_away_gets_what_it_missed_and_then_what_is_live() {
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let door = node.at();
    let mut bob = node.join("bob", "lobby").await;
    let mut alice = v1(door, "/ws/chat/lobby/", "alice").await;
    let first = bob.say_acked("lobby", "1", "1").await;
    alice.send(json!({"cate": "rooms"})).await;
    // What was held until the first frame follows it.
    assert_eq!(alice.hears().await, "1");
    alice.close().await;
    for n in 2..=450 {
        bob.say_acked("lobby", &n.to_string(), &n.to_string()).await;
    }
    let ring = json!({"type": "notification", "to": "user:alice", "data": {"message": "ring", "from_user": "shop"}});
    assert_eq!(door.api("POST", "/api/events", Some(ring)).await.0, 200);

    let mut alice = v1(door, "/ws/chat/", "alice").await;
    // Said while nothing has been asked for: held, and not told twice later.
    bob.say_acked("lobby", "451", "451").await;
    alice.send(json!({"cate": "resume", "rooms": {"lobby": {"seq": 1, "id": first["id"]}, "elsewhere": 5}, "notifications": {"seq": 0}})).await;
    bob.say_acked("lobby", "452", "452").await;
    let (mut seqs, mut rang, mut resumed) = (Vec::new(), 0, None);
    while seqs.len() < 451 || resumed.is_none() {
        let frame = alice.frame().await;
        match frame["type"].as_str() {
            Some("chat") => seqs.push(frame["seq"].as_u64().unwrap()),
            Some("notification") => rang += 1,
            Some("resumed") => resumed = Some(frame),
            _ => panic!("{frame}"),
        }
    }
    assert_eq!(seqs, (2..=452).collect::<Vec<_>>());
    assert_eq!(rang, 1);
    assert_eq!(
        resumed.unwrap(),
        json!({"type": "resumed", "rooms": {"lobby": true, "elsewhere": false}, "notifications": true})
    );
    bob.say("lobby", "453").await;
    assert_eq!(alice.frame().await["seq"], 453);
}

#[tokio::test]
async fn a_place_of_another_history_or_too_far_back_is_false() {
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let door = node.at();
    let mut bob = node.join("bob", "lobby").await;
    for n in 0..1002 {
        bob.say("lobby", &n.to_string()).await;
    }
    let last = bob.until(|frame| frame["seq"] == 1002).await;
    let _member = v1(door, "/ws/chat/lobby/", "alice").await;
    let wrong = uuid::Uuid::new_v4().to_string();
    for (place, good) in [
        (json!(2), true),
        // One more has been said by now, and by each client after it.
        (json!(2), false),
        (json!({"seq": 1002, "id": last["id"]}), true),
        (json!(1002), true),
        (json!({"seq": 1002, "id": wrong}), false),
        (json!({"seq": 1000, "id": wrong}), false),
        (json!(1_000_000), false),
    ] {
        let mut alice = v1(door, "/ws/chat/", "alice").await;
        alice.send(json!({"cate": "resume", "rooms": {"lobby": place}})).await;
        let resumed = alice.until(|frame| frame["type"] == "resumed").await;
        assert_eq!(resumed["rooms"]["lobby"], good, "{place}");
        // Either way it is live from here on, once.
        let text = uuid::Uuid::new_v4().to_string();
        bob.say("lobby", &text).await;
        alice.until(|frame| frame["message"] == text).await;
        alice.close().await;
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_is_live_after_two_seconds() {
    let node = TestNode::start(&[]).await;
    let mut bob = node.join("bob", "lobby").await;
    let began = std::time::Instant::now();
    let mut alice = v1(node.at(), "/ws/chat/lobby/", "alice").await;
    assert_eq!(bob.say_acked("lobby", "hello", "1").await["type"], "ack");
    assert_eq!(alice.hears().await, "hello");
    assert!(began.elapsed() >= std::time::Duration::from_secs(2), "{:?}", began.elapsed());
}
