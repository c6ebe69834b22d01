//! What a sender gives beside the text of a message comes out of every door as it went in.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use channel_layer::{Event, GroupName};
use common::{Client, TestNode};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;

/// With what a reader might change: blanks, an order, numbers that no double holds, a key twice, escapes.
const DATA: &str = r#"{ "z":1.10, "a":[9007199254740993,12345678901234567890123,null], "é":{"\u0000":"👍\n"} ,"z":2}"#;
/// A site's own, as a Python program would send it live.
const OWN: &str = r#"{"z":[1.5,true,null],"a":{"é":"👍"}}"#;

async fn start(redis: &RedisServer, layer: &str, database: &str, name: &str) -> TestNode {
    TestNode::start(&[
        ("redis-url", &redis.url()),
        ("layer", layer),
        ("namespace", layer),
        ("layer-prefix", layer),
        ("database-url", database),
        ("node-id", name),
        ("limits.frames_per_second", "0"),
    ])
    .await
}

/// The text of the next frame of this type.
async fn text(client: &mut Client, kind: &str) -> String {
    loop {
        let text = client.text().await;
        if serde_json::from_str::<Value>(&text).unwrap()["type"] == kind {
            return text;
        }
    }
}

fn is_in(data: &str, text: &str) -> bool {
    text.contains(&format!("\"data\":{data}"))
}

fn frame(cate: &str, to: (&str, &str), data: &str, id: &str) -> String {
    let (field, name) = to;
    format!(r#"{{"cate":"{cate}","{field}":"{name}","message":"hi","data":{data},"client_id":"{id}"}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn data_comes_out_of_every_door_as_it_went_in() {
    let redis = RedisServer::start();
    for layer in ["pubsub", "core"] {
        let database = Postgres::shared().fresh_database();
        let one = start(&redis, layer, &database, "one").await;
        let two = start(&redis, layer, &database, "two").await;
        let (mut alice, mut bob) = (one.join("alice", "lobby").await, two.at().v1("/ws/chat/lobby/", "bob").await);
        bob.rooms().await;

        // Into: frames, the API, the stream. Out: live on another node, and on that which stored it.
        let (lobby, inbox) = (("group_name", "lobby"), ("user_name", "bob"));
        alice.send_text(&frame("chat", lobby, DATA, "1")).await;
        for client in [&mut alice, &mut bob] {
            let chat = text(client, "chat").await;
            assert!(is_in(DATA, &chat), "{chat}");
        }
        alice.send_text(&frame("notification", inbox, DATA, "1")).await;
        let rung = text(&mut bob, "notification").await;
        assert!(is_in(DATA, &rung), "{rung}");
        for (kind, to) in [("chat", "room:lobby"), ("notification", "user:bob")] {
            let inner = format!(r#"{{"message":"hi","data":{DATA}}}"#);
            let body = format!(r#"{{"type":"{kind}","to":"{to}","id":"api","data":{inner}}}"#);
            let url = format!("http://{}/api/events", one.at().internal);
            let call = common::http_client().post(url).bearer_auth("key").header("content-type", "application/json");
            assert_eq!(call.body(body).send().await.unwrap().status(), 200);
            let shown = text(&mut bob, kind).await;
            assert!(is_in(DATA, &shown), "{shown}");
            let stream = format!("{layer}:events");
            let fields = ["XADD", &stream, "*", "id", "1", "source", "shop", "type", kind, "to", to, "data", &inner];
            redis.cli(&fields);
            let shown = text(&mut bob, kind).await;
            assert!(is_in(DATA, &shown), "{shown}");
        }

        // Live only, by anybody on the layer.
        let own = channel_layer::Value::from_json(OWN.as_bytes()).unwrap();
        let event = Event::new("chat.message").with("message", "live").with("group_name", "lobby").with("data", own);
        let group = GroupName::parse("chat_lobby").unwrap();
        one.running.node().layer.group_send(&group, &event.clone().with("data_json", DATA)).await.unwrap();
        let live = text(&mut bob, "chat").await;
        assert!(is_in(OWN, &live) && !live.contains("seq"), "{live}");
        one.running.node().layer.group_send(&group, &event.with("data", "something else")).await.unwrap();
        assert!(!text(&mut bob, "chat").await.contains("data"));

        // Out of the database: pages for clients and the API, and what was missed.
        bob.send(json!({"cate": "history", "group_name": "lobby"})).await;
        let history = text(&mut bob, "history").await;
        bob.send(json!({"cate": "notifications"})).await;
        let inbox = text(&mut bob, "notifications").await;
        let read = async |path: &str| {
            let url = format!("http://{}{path}", two.at().internal);
            common::http_client().get(url).bearer_auth("key").send().await.unwrap().text().await.unwrap()
        };
        for page in [history, inbox, read("/api/rooms/lobby/history").await, read("/api/users/bob/notifications").await]
        {
            assert_eq!(page.matches(&format!("\"data\":{DATA}")).count(), 3, "{page}");
        }
        for node in [&one, &two] {
            let mut back = node.at().v1("/ws/chat/", "bob").await;
            back.send(json!({"cate": "resume", "rooms": {"lobby": 0}, "notifications": 0})).await;
            for _ in 0..6 {
                let missed = back.text().await;
                assert!(is_in(DATA, &missed), "{missed}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_cannot_be_taken_is_refused() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url()), ("limits.frames_per_second", "0")]).await;
    let mut alice = node.join("alice", "lobby").await;
    let answer = async |alice: &mut Client, data: &str, id: &str| {
        alice.send_text(&frame("chat", ("group_name", "lobby"), data, id)).await;
        alice.until(|frame| frame["client_id"] == id).await
    };
    let long = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));
    for (id, data, code) in [
        ("1", "[]", "invalid"),
        ("2", "\"{}\"", "invalid"),
        ("3", "7", "invalid"),
        ("4", &long(16 * 1024 + 1), "too_large"),
        ("5", &format!("{{\"a\":{}1{}}}", "[".repeat(70), "]".repeat(70)), "invalid"),
    ] {
        let error = answer(&mut alice, data, id).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{error}");
        let body = format!(r#"{{"message":"hi","data":{data}}}"#);
        let event = json!({"type": "chat", "to": "room:lobby", "data": serde_json::from_str::<Value>(&body).unwrap()});
        let (status, problem) = node.at().api("POST", "/api/events", Some(event)).await;
        assert_eq!(status, if code == "too_large" { 413 } else { 400 }, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("data"), "{problem}");
    }
    // Blanks and escapes do not count.
    let longest = long(16 * 1024).replace(':', " :\n ").replacen('x', "\\u0078", 1000);
    assert_eq!(answer(&mut alice, &longest, "6").await["type"], "ack");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_with_other_data_is_another_message() {
    let node = TestNode::start(&[]).await;
    let mut alice = node.join("alice", "lobby").await;
    let mut answers = Vec::new();
    for data in [r#"{"a":1}"#, r#"{"a":1}"#, r#"{"a":2}"#, "null"] {
        alice.send_text(&frame("chat", ("group_name", "lobby"), data, "1")).await;
        answers.push(alice.until(|frame| frame["client_id"] == "1").await);
    }
    assert_eq!((&answers[0]["seq"], &answers[0]), (&json!(1), &answers[1]));
    for other in &answers[2..] {
        assert_eq!(other["code"], "invalid", "{other}");
    }
}
