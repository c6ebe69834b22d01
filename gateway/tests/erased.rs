//! What was said is taken away: a message by an operator, and all of a user.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{TestNode, eventually};
use serde_json::json;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;

async fn two() -> (RedisServer, [TestNode; 2]) {
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let url = redis.url();
    let node = async |name: &str| {
        TestNode::start(&[("redis-url", &url), ("database-url", &database), ("node-id", name)]).await
    };
    let nodes = [node("one").await, node("two").await];
    (redis, nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redacted_message_keeps_its_place_for_all_who_come_and_who_are_there() {
    let (_redis, [one, two]) = two().await;
    let (mut alice, mut bob) = (one.at().v1("/ws/chat/lobby/", "alice").await, two.join("bob", "lobby").await);
    alice.rooms().await;
    let mut ids = Vec::new();
    for (n, text) in ["first", "secret", "last"].into_iter().enumerate() {
        ids.push(alice.say_acked("lobby", text, &n.to_string()).await["id"].as_str().unwrap().to_owned());
        assert_eq!(bob.hears().await, text);
    }
    let path = format!("/api/rooms/lobby/messages/{}", ids[1]);
    let (status, answer) = two.at().api("DELETE", &path, None).await;
    assert_eq!((status, &answer), (200, &json!({"room": "lobby", "id": ids[1], "seq": 2, "redacted": true})));
    let frame = alice.until(|frame| frame["type"] == "redacted").await;
    assert_eq!(frame, json!({"type": "redacted", "group_name": "lobby", "id": ids[1], "seq": 2}));
    // Who does not speak gateway.v1 has not asked for such frames.
    bob.hears_nothing_before_own("lobby").await;
    // From the memory of the nodes that had the message, and from the database.
    for node in [&one, &two] {
        let mut carol = node.at().v1("/ws/chat/lobby/", "carol").await;
        carol.send(json!({"cate": "resume", "rooms": {"lobby": 1}})).await;
        let frame = carol.frame().await;
        assert_eq!(
            (&frame["seq"], &frame["message"], &frame["redacted"]),
            (&json!(2), &json!(""), &json!(true)),
            "{frame}"
        );
        assert_eq!((&frame["from_user"], carol.frame().await.get("redacted")), (&json!("alice"), None));
        let page = carol.ask(json!({"cate": "history", "group_name": "lobby"})).await;
        assert_eq!((&page["messages"][1]["redacted"], &page["messages"][1]["message"]), (&json!(true), &json!("")));
        assert!(!page.to_string().contains("secret"));
    }
    assert_eq!(two.at().api("DELETE", &path, None).await.0, 200, "again is fine");
    let none = "/api/rooms/lobby/messages/00000000-0000-0000-0000-000000000000";
    assert_eq!(two.at().api("DELETE", none, None).await.0, 404);
    assert_eq!(two.at().api("DELETE", "/api/rooms/lobby/messages/x", None).await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_that_nobody_could_be_told_of_is_told_when_redis_is_back() {
    let (mut redis, [one, two]) = two().await;
    let mut alice = one.at().v1("/ws/chat/lobby/", "alice").await;
    let mut bob = two.at().v1("/ws/chat/lobby/", "bob").await;
    alice.rooms().await;
    bob.rooms().await;
    let id = alice.say_acked("lobby", "secret", "1").await["id"].as_str().unwrap().to_owned();
    assert_eq!(bob.hears().await, "secret");
    redis.kill();
    let path = format!("/api/rooms/lobby/messages/{id}");
    assert_eq!(one.at().api("DELETE", &path, None).await.0, 200);
    redis.restart_empty();
    // On the node that did it, and on the other.
    for client in [&mut alice, &mut bob] {
        client.patience = Duration::from_secs(60);
        let frame = client.until(|frame| frame["type"] == "redacted").await;
        assert_eq!(frame["id"], json!(id));
    }
    for node in [&one, &two] {
        let mut carol = node.at().v1("/ws/chat/lobby/", "carol").await;
        carol.send(json!({"cate": "resume", "rooms": {"lobby": 0}})).await;
        let frame = carol.until(|frame| frame["type"] == "chat").await;
        assert_eq!((&frame["message"], &frame["redacted"]), (&json!(""), &json!(true)), "{frame}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redaction_comes_behind_what_a_client_catches_up_with() {
    let (_redis, [one, two]) = two().await;
    let mut alice = one.at().v1("/ws/chat/lobby/", "alice").await;
    let id = alice.say_acked("lobby", "secret", "1").await["id"].as_str().unwrap().to_owned();
    let mut carol = two.at().v1("/ws/chat/lobby/", "carol").await;
    carol.rooms().await;
    // Held until its first frame.
    let mut bob = two.at().v1("/ws/chat/lobby/", "bob").await;
    assert_eq!(one.at().api("DELETE", &format!("/api/rooms/lobby/messages/{id}"), None).await.0, 200);
    // The other node has it too.
    carol.until(|frame| frame["type"] == "redacted").await;
    bob.send(json!({"cate": "resume", "rooms": {"lobby": 0}})).await;
    let mut types = Vec::new();
    while types.last().is_none_or(|last| last != "resumed") {
        types.push(bob.frame().await["type"].as_str().unwrap().to_owned());
    }
    assert_eq!(types, ["chat", "redacted", "resumed"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_erased_leaves_nothing_but_places() {
    let (redis, [one, two]) = two().await;
    let mut sockets = [one.join("alice", "lobby").await, two.at().connect("/ws/chat/attic/", "alice").await];
    let mut bob = two.at().v1("/ws/chat/lobby/", "bob").await;
    bob.rooms().await;
    bob.say_acked("lobby", "stays", "0").await;
    sockets[0].say_acked("lobby", "goes", "1").await;
    let event = json!({"type": "notification", "to": "user:alice", "data": {"message": "inbox"}});
    assert_eq!(one.at().api("POST", "/api/events", Some(event)).await.0, 200);
    let (status, answer) = one.at().api("DELETE", "/api/users/alice", None).await;
    assert_eq!((status, &answer), (200, &json!({"user": "alice", "erased": true, "rooms": 2, "messages": 1})));
    for socket in &mut sockets {
        assert_eq!(socket.closed().await, 4403);
    }
    assert_eq!(bob.until(|frame| frame["type"] == "redacted").await["seq"], 2);
    eventually("she is in no room", || async {
        one.at().api("GET", "/api/rooms/lobby", None).await.1["members"] == json!(["bob"])
    })
    .await;
    let (_, page) = one.at().api("GET", "/api/rooms/lobby/history", None).await;
    let texts: Vec<&str> =
        page["messages"].as_array().unwrap().iter().map(|one| one["message"].as_str().unwrap()).collect();
    assert_eq!(texts, ["stays", ""]);
    let (_, inbox) = one.at().api("GET", "/api/users/alice/notifications", None).await;
    assert_eq!((&inbox["unseen"], &inbox["notifications"]), (&json!(0), &json!([])));
    // What the stream said before does not bring her back.
    redis.cli(&[
        "XADD",
        "gateway:events",
        "1-1",
        "id",
        "1",
        "source",
        "s",
        "type",
        "member.add",
        "to",
        "room:lobby",
        "data",
        r#"{"users":["alice"]}"#,
    ]);
    eventually("the entry is done", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "0" }).await;
    assert_eq!(one.at().api("GET", "/api/rooms/lobby", None).await.1["members"], json!(["bob"]));
    assert_eq!(one.at().api("DELETE", "/api/users/alice?keep_messages=true", None).await.1["messages"], 0);
    assert_eq!(one.at().api("DELETE", "/api/users/anon.x", None).await.0, 400);
    assert_eq!(one.at().api("DELETE", "/api/users/alice?keep_message=true", None).await.0, 400, "misspelt");
    // Who comes back is known anew, on the node that knew her before as well.
    let _again = one.at().connect("/ws/notifications/", "alice").await;
    bob.send(json!({"cate": "notification", "user_name": "alice", "message": "welcome", "client_id": "n"})).await;
    assert_eq!(bob.until(|frame| frame["client_id"] == "n").await["type"], "ack");
}
