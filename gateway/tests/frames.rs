//! Frames as browsers and Python write them, and answers that name their question.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Client, Heard, TestNode, token};
use serde_json::{Value, json};
use testkit::redis::RedisServer;

/// Sends a frame with a `client_id` of its own; the answer is the next frame that carries it.
async fn answer(client: &mut Client, mut frame: Value, id: &str) -> Value {
    frame["client_id"] = id.into();
    client.send(frame).await;
    client.until(|frame| frame["client_id"] == id).await
}

#[tokio::test]
async fn every_answer_repeats_the_client_id_of_its_question() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let mut alice = door.v1("/ws/chat/lobby/", "alice").await;
    let mut inbox = door.v1("/ws/notifications/", "alice").await;
    for (frame, kind) in [
        (json!({"cate": "rooms"}), "rooms"),
        (json!({"cate": "history", "group_name": "lobby"}), "history"),
        (json!({"cate": "notifications"}), "notifications"),
        (json!({"cate": "presence", "group_name": "lobby"}), "presence"),
        (json!({"cate": "resume", "rooms": {"lobby": 0}, "notifications": 0}), "resumed"),
        (json!({"cate": "auth", "token": token("alice")}), "auth"),
        (json!({"cate": "ping"}), "pong"),
        (json!({"cate": "seen", "up_to": 0}), "seen"),
        // Errors.
        (json!({"cate": "history", "group_name": "elsewhere"}), "room_not_found"),
        (json!({"cate": "history"}), "invalid"),
        (json!({"cate": "presence", "group_name": "elsewhere"}), "room_not_found"),
        (json!({"cate": "typing", "group_name": "elsewhere"}), "room_not_found"),
        (json!({"cate": "chat", "group_name": "elsewhere", "message": "x"}), "room_not_found"),
        (json!({"cate": "notification", "user_name": "nobody", "message": "x"}), "user_not_found"),
        (json!({"cate": "resume", "rooms": 5}), "invalid"),
        (json!({"cate": "auth", "token": "nonsense"}), "invalid"),
        (json!({"cate": "auth", "token": token("bob")}), "forbidden"),
        (json!({"cate": "seen"}), "invalid"),
        (json!({"cate": "nonsense"}), "unknown_cate"),
    ] {
        let heard = answer(&mut alice, frame.clone(), "of the chat socket").await;
        let what = |heard: &Value| heard[if heard["type"] == "error" { "code" } else { "type" }].clone();
        assert_eq!(what(&heard), kind, "{frame}");
        // On the other consumer rooms are nobody's, and everything else is the same.
        let kind = if frame.get("group_name").is_some() && kind != "invalid" { "room_not_found" } else { kind };
        let heard = answer(&mut inbox, frame.clone(), "of the inbox").await;
        assert_eq!(what(&heard), kind, "{frame}");
    }
    // What the other socket has seen is news here and no answer.
    let mut news = door.v1("/ws/notifications/", "alice").await;
    answer(&mut news, json!({"cate": "ping"}), "streams go on").await;
    answer(&mut alice, json!({"cate": "seen", "up_to": 1}), "mine").await;
    let told = news.until(|frame| frame["type"] == "seen").await;
    assert_eq!(told, json!({"type": "seen", "up_to": 1, "unseen": 0}));
}

#[tokio::test]
async fn who_gives_no_client_id_sees_none() {
    let node = TestNode::start(&[]).await;
    let mut alice = node.at().v1("/ws/chat/lobby/", "alice").await;
    for frame in [
        json!({"cate": "rooms"}),
        json!({"cate": "history", "group_name": "lobby"}),
        json!({"cate": "notifications"}),
        json!({"cate": "seen", "up_to": 0}),
        json!({"cate": "presence", "group_name": "lobby"}),
        json!({"cate": "resume"}),
        json!({"cate": "auth", "token": token("alice")}),
        json!({"cate": "ping"}),
        json!({"cate": "nonsense"}),
    ] {
        alice.send(frame.clone()).await;
        assert_eq!(alice.frame().await.get("client_id"), None, "{frame}");
    }
}

#[tokio::test]
async fn what_browsers_and_python_write_is_read() {
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let mut alice = node.join("alice", "lobby").await;
    let chat =
        |message: &str| format!(r#"{{"cate":"chat","group_name":"lobby","message":{message},"x":NaN,"y":1e400}}"#);
    for (sent, heard) in
        [(r#""cut in an \ud83d""#, "cut in an \u{fffd}"), (r#""\ude00""#, "\u{fffd}"), (r#""\ud83d\ude00""#, "😀")]
    {
        alice.send_text(&chat(sent)).await;
        assert_eq!(alice.hears().await, heard);
    }
    alice.send_text(&format!("\u{feff}{}", chat(r#""behind a mark""#))).await;
    assert_eq!(alice.hears().await, "behind a mark");
    alice.send_text(r#"{"type":"history","groupname":"lobby","limit":2.0,"before":4.0}"#).await;
    let history = alice.until(|frame| frame["type"] == "history").await;
    assert_eq!(history["messages"].as_array().unwrap().len(), 2);
    assert_eq!(history["messages"][1]["seq"], 3);
}

#[tokio::test]
async fn of_a_frame_that_is_no_json_the_client_id_is_found() {
    let node = TestNode::start(&[]).await;
    let mut alice = node.join("alice", "lobby").await;
    for (frame, id) in [
        (r#"{"cate":"chat","client_id":"1","message":"cut o"#, json!("1")),
        (r#"{"cate":"chat","message":"5" tall","client_id":"2"}"#, json!("2")),
        ("nonsense", Value::Null),
    ] {
        alice.send_text(frame).await;
        let error = alice.frame().await;
        assert_eq!((&error["code"], &error["client_id"]), (&json!("invalid"), &id), "{frame}");
    }
    alice.send_binary(br#"{"cate":"ping","client_id":"3"}"#).await;
    let error = alice.frame().await;
    assert_eq!((&error["code"], &error["client_id"]), (&json!("invalid"), &json!("3")));
    alice.say("lobby", "still here").await;
    assert_eq!(alice.hears().await, "still here");
}

#[tokio::test]
async fn history_between_two_messages_begins_at_the_older() {
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let mut alice = node.join("alice", "lobby").await;
    for n in 1..=9 {
        alice.say_acked("lobby", &n.to_string(), &n.to_string()).await;
    }
    for (after, before, limit, seqs, has_more) in [
        (2, 8, json!(3), vec![3, 4, 5], true),
        (2, 6, json!(3), vec![3, 4, 5], false),
        (2, 4, json!(1000), vec![3], false),
        (5, 5, json!(3), vec![], false),
        (7, 100, json!(3), vec![8, 9], false),
    ] {
        let page = json!({"cate": "history", "group_name": "lobby", "after": after, "before": before, "limit": limit});
        let page = alice.ask(page).await;
        let found: Vec<i64> =
            page["messages"].as_array().unwrap().iter().map(|row| row["seq"].as_i64().unwrap()).collect();
        assert_eq!((found, page["has_more"].as_bool()), (seqs, Some(has_more)), "{after} {before}");
    }
    let (status, page) = node.at().api("GET", "/api/rooms/lobby/history?after=2&before=8&limit=2", None).await;
    assert_eq!((status, &page["messages"][0]["seq"], &page["has_more"]), (200, &json!(3), &json!(true)));
}

#[tokio::test]
async fn a_ping_is_answered_though_the_rate_is_used_up() {
    let node = TestNode::start(&[("limits.frames_per_second", "1"), ("limits.frames_burst", "5")]).await;
    let mut alice = node.join("alice", "lobby").await;
    // More than a pause of this machine may give back, fewer than would end it.
    for _ in 0..9 {
        alice.send(json!({"cate": "rooms", "client_id": "r"})).await;
    }
    let refused = alice.until(|frame| frame["type"] == "error").await;
    assert_eq!((&refused["code"], &refused["client_id"]), (&json!("rate_limited"), &json!("r")));
    assert_eq!(answer(&mut alice, json!({"cate": "ping"}), "there?").await["type"], "pong");
}

#[tokio::test]
async fn a_burst_or_a_rate_of_nothing_is_no_limit() {
    for off in ["limits.frames_burst", "limits.frames_per_second"] {
        let node = TestNode::start(&[(off, "0")]).await;
        let mut alice = node.join("alice", "lobby").await;
        for _ in 0..300 {
            alice.send(json!({"cate": "typing", "group_name": "lobby"})).await;
        }
        assert_eq!(answer(&mut alice, json!({"cate": "rooms"}), "still there").await["type"], "rooms", "{off}");
    }
}

#[tokio::test]
async fn data_of_no_limit_may_be_large() {
    let node = TestNode::start(&[("limits.data_bytes", "0")]).await;
    let mut alice = node.join("alice", "lobby").await;
    let data = json!({"a": "x".repeat(30_000)});
    let chat = json!({"cate": "chat", "group_name": "lobby", "message": "hi", "data": data, "client_id": "1"});
    assert_eq!(answer(&mut alice, chat, "1").await["type"], "ack");
}

#[tokio::test]
async fn a_number_of_a_call_may_have_a_point() {
    let node = TestNode::start(&[]).await;
    let mut alice = node.join("alice", "lobby").await;
    let seen = node.at().api("POST", "/api/users/alice/seen", Some(json!({"up_to": 1.0}))).await;
    assert_eq!(seen.0, 200, "{seen:?}");
    for code in [json!(99.0), json!(4001.5), json!(-1), json!(70_000)] {
        let refused = node.at().api("POST", "/api/users/alice/disconnect", Some(json!({"code": code}))).await;
        assert_eq!(refused.0, 400, "{refused:?}");
        let event = json!({"type": "gateway.disconnect", "to": "user:alice", "data": {"code": code}});
        let refused = node.at().api("POST", "/api/events", Some(event)).await;
        assert_eq!(refused.0, 400, "{refused:?}");
    }
    assert_eq!(node.at().api("POST", "/api/users/alice/disconnect", Some(json!({"code": 4001.0}))).await.0, 200);
    assert_eq!(alice.closed().await, 4001);
}

#[tokio::test]
async fn pages_of_any_origin_may_import_the_client_and_nothing_else() {
    let node = TestNode::start(&[]).await;
    let at = node.at().public;
    let allowed = async |path: &str| {
        let answer = common::http_client().get(format!("http://{at}{path}")).send().await.unwrap();
        answer.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(allowed("/client.js").await.as_deref(), Some("*"));
    for path in ["/healthz", "/readyz", "/", "/nothing", "/ws/chat/"] {
        assert_eq!(allowed(path).await, None, "{path}");
    }
}

#[tokio::test]
async fn an_event_in_json_is_dropped_only_for_what_a_frame_needs() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url()), ("layer-serializer", "json")]).await;
    let mut alice = node.join("alice", "lobby").await;
    // As `json.dumps` writes them; only the message is of any interest.
    for (message, heard) in [(r#""a""#, "a"), (r#""cut \ud83d""#, "cut \u{fffd}")] {
        for odd in ["NaN", "-Infinity", "1e400", "1180591620717411303424", r#"{"\udead": [NaN]}"#] {
            let event = format!(
                r#"{{"type": "chat.message", "message": {message}, "group_name": "lobby", "from_user": "django", "odd": {odd}}}"#
            );
            redis.cli(&["PUBLISH", "asgi__group__chat_lobby", &event]);
            assert_eq!(alice.hears().await, heard, "{event}");
        }
    }
    // An id that JSON cannot carry is left out, a large one is what a browser makes of it.
    let event = |id: &str| format!(r#"{{"type": "notification.message", "message": "x", "id": {id}}}"#);
    redis.cli(&["PUBLISH", "asgi__group__alice", &event("NaN")]);
    assert_eq!(alice.frame().await.get("id"), None);
    redis.cli(&["PUBLISH", "asgi__group__alice", &event("1180591620717411303424")]);
    assert_eq!(alice.frame().await["id"].as_f64(), Some(1_180_591_620_717_411_303_424.0));
}

#[tokio::test]
async fn the_twentieth_bad_frame_in_a_row_ends_it() {
    const PATIENCE: usize = 20;
    let node = TestNode::start(&[]).await;
    let mut alice = node.join("alice", "lobby").await;
    for _ in 1..PATIENCE {
        alice.send_text("no json").await;
        assert_eq!(alice.until(|frame| frame["type"] == "error").await["code"], "invalid");
    }
    assert_eq!(answer(&mut alice, json!({"cate": "ping"}), "good").await["type"], "pong");
    for _ in 0..PATIENCE {
        alice.send_text("no json").await;
    }
    let mut answers = Vec::new();
    let code = loop {
        match alice.hear().await {
            Heard::Closed(code, _) => break code,
            heard => answers.push(heard),
        }
    };
    assert_eq!((code, answers.len()), (1008, PATIENCE), "each is answered");
}
