//! Chat and notifications on one node: what they do, their refusals and their limits.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Heard, TestNode, eventually, token, token_with};
use serde_json::json;

#[tokio::test]
async fn members_hear_each_other_and_the_sender_hears_itself() {
    let node = TestNode::start(&[]).await;
    let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);
    alice.say("lobby", "hello").await;
    let frame = bob.frame().await;
    assert_eq!(
        (frame["type"].as_str(), frame["seq"].as_u64(), frame["group_name"].as_str(), frame["from_user"].as_str()),
        (Some("chat"), Some(1), Some("lobby"), Some("alice"))
    );
    assert_eq!(frame["display_name"], "lobby");
    let date = frame["date"].as_str().unwrap();
    assert!(date.len() == 27 && date.ends_with('Z'), "{date}");
    assert_eq!(frame["id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap().get_version_num(), 7);
    assert_eq!(alice.frame().await, frame);
}

#[tokio::test]
async fn an_ack_tells_the_commit_and_a_repeat_is_answered_alike_and_delivered_once() {
    let node = TestNode::start(&[]).await;
    let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);
    let ack = alice.say_acked("lobby", "once", "c-1").await;
    assert_eq!((ack["type"].as_str(), ack["seq"].as_u64()), (Some("ack"), Some(1)));
    let again = alice.say_acked("lobby", "once", "c-1").await;
    assert_eq!((&again["id"], &again["seq"]), (&ack["id"], &ack["seq"]));
    let reused = alice.say_acked("lobby", "twice", "c-1").await;
    assert_eq!((reused["type"].as_str(), reused["code"].as_str()), (Some("error"), Some("invalid")));
    assert_eq!(bob.hears().await, "once");
    bob.hears_nothing_before_own("lobby").await;
}

#[tokio::test]
async fn all_of_a_users_sockets_get_all_rooms_and_all_notifications() {
    let node = TestNode::start(&[]).await;
    let mut kitchen = node.join("alice", "kitchen").await;
    let mut lobby = node.join("alice", "lobby").await;
    let mut plain = node.at().connect("/ws/chat/", "alice").await;
    let mut bell = node.at().connect("/ws/notifications", "alice").await;
    let mut bob = node.join("bob", "kitchen").await;
    bob.say("kitchen", "to the kitchen").await;
    assert_eq!(kitchen.hears().await, "to the kitchen");
    assert_eq!(plain.hears().await, "to the kitchen");
    // This socket was opened when its user was a member of the kitchen already.
    assert_eq!(lobby.hears().await, "to the kitchen");
    bob.send(json!({"cate": "notification", "user_name": "alice", "message": "ring", "from_user": "mallory"})).await;
    for socket in [&mut kitchen, &mut lobby, &mut plain, &mut bell] {
        let frame = socket.until(|frame| frame["type"] == "notification").await;
        assert_eq!(
            (frame["message"].as_str(), frame["from_user"].as_str(), frame["seq"].as_u64()),
            (Some("ring"), Some("bob"), Some(1))
        );
        assert!(frame.get("group_name").is_none());
    }
}

#[tokio::test]
async fn a_room_joined_by_one_socket_is_heard_by_the_users_others() {
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let mut first = node.at().connect("/ws/chat/", "alice").await;
    let mut second = node.join("alice", "new").await;
    loop {
        first.send(json!({"cate": "rooms"})).await;
        if first.frame().await["rooms"].as_array().unwrap().len() == 1 {
            break;
        }
    }
    second.say("new", "both hear it").await;
    assert_eq!((first.hears().await, second.hears().await), ("both hear it".into(), "both hear it".into()));
}

#[tokio::test]
async fn leaving_takes_this_socket_out_and_leaves_the_users_others() {
    let node = TestNode::start(&[]).await;
    let first = node.join("alice", "lobby").await;
    let mut second = node.join("alice", "lobby").await;
    eventually("two sockets", || async {
        node.at().api("GET", "/api/users/alice", None).await.1["sockets"].as_array().unwrap().len() == 2
    })
    .await;
    first.close().await;
    eventually("one socket", || async {
        node.at().api("GET", "/api/users/alice", None).await.1["sockets"].as_array().unwrap().len() == 1
    })
    .await;
    second.say("lobby", "still here").await;
    assert_eq!(second.hears().await, "still here");
    assert_eq!(node.metric("gateway_connections").await, 1.0);
    assert_eq!(node.metric("gateway_connections_opened_total").await, 2.0);
}

#[tokio::test]
async fn nobody_posts_to_or_hears_a_room_they_are_not_in() {
    let node = TestNode::start(&[("limits.frames_per_second", "0"), ("room-policy", "members")]).await;
    let door = node.at();
    assert_eq!(door.api("PUT", "/api/rooms/secret", Some(json!({"display_name": "Secret!"}))).await.0, 200);
    assert_eq!(door.api("PUT", "/api/rooms/secret/members/alice", None).await.0, 200);
    let bearer = format!("Bearer {}", token("bob"));
    let refused = |path: &'static str| door.try_connect(path, &[]);
    assert_eq!(refused("/ws/chat/secret/").await.err(), Some(401));
    // A room that exists and one that does not are told apart by nothing.
    for room in ["/ws/chat/secret/", "/ws/chat/no-such-room/"] {
        assert_eq!(door.try_connect(room, &[("authorization", &bearer)]).await.err(), Some(404));
    }
    let mut alice = door.join("alice", "secret").await;
    let mut bob = door.connect("/ws/chat/", "bob").await;
    for room in ["secret", "no-such-room"] {
        let error = bob.say_acked(room, "let me in", "x").await;
        assert_eq!((error["code"].as_str(), error["client_id"].as_str()), (Some("room_not_found"), Some("x")));
    }
    alice.say("secret", "among us").await;
    let frame = alice.frame().await;
    assert_eq!((frame["message"].as_str(), frame["display_name"].as_str()), (Some("among us"), Some("Secret!")));
    // Membership changes while the sockets are open.
    assert_eq!(door.api("PUT", "/api/rooms/secret/members/bob", None).await.0, 200);
    while bob.rooms().await != ["secret"] {}
    alice.say("secret", "welcome bob").await;
    assert_eq!(bob.hears().await, "welcome bob");
    assert_eq!(door.api("DELETE", "/api/rooms/secret/members/bob", None).await.1["removed"], true);
    // The removal reaches the socket before its own next frames are served from another membership.
    loop {
        bob.send(json!({"cate": "rooms"})).await;
        if bob.until(|frame| frame["type"] == "rooms").await["rooms"] == json!([]) {
            break;
        }
    }
    alice.say("secret", "without bob").await;
    let error = bob.say_acked("secret", "still in?", "y").await;
    assert_eq!(error["code"], "room_not_found");
}

#[tokio::test]
async fn rooms_of_a_token_count_for_the_socket_and_are_made() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let token = token_with("alice", &["from-the-token"], 60);
    let path = format!("/ws/chat/from-the-token/?token={token}");
    let mut alice = node.at().try_connect(&path, &[]).await.unwrap();
    alice.send(json!({"cate": "rooms"})).await;
    let rooms = alice.frame().await;
    assert_eq!(rooms["rooms"][0], json!({"group_name": "from-the-token", "display_name": "from-the-token", "seq": 0}));
    let mut plain = node.at().connect("/ws/chat/", "alice").await;
    plain.send(json!({"cate": "rooms"})).await;
    assert_eq!(plain.frame().await["rooms"], json!([]));
    let ack = alice.say_acked("from-the-token", "hi", "1").await;
    alice.send(json!({"cate": "rooms"})).await;
    let rooms = alice.until(|frame| frame["type"] == "rooms").await;
    assert_eq!((&rooms["rooms"][0]["seq"], &rooms["rooms"][0]["id"]), (&ack["seq"], &ack["id"]));
}

#[tokio::test]
async fn a_token_is_taken_from_four_places() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let (path, token) = ("/ws/chat/lobby/", token("alice"));
    let origin = format!("http://{}", door.public);
    let protocols = format!("gateway.v1, bearer.{token}");
    let client = door.try_connect(path, &[("sec-websocket-protocol", &protocols)]).await.unwrap();
    assert_eq!(client.protocol.as_deref(), Some("gateway.v1"), "the token is not echoed");
    assert!(door.try_connect(path, &[("authorization", &format!("Bearer {token}"))]).await.is_ok());
    assert!(door.try_connect(&format!("{path}?token={token}"), &[]).await.is_ok());
    let cookie = format!("other=1; gateway_token={token}");
    assert!(door.try_connect(path, &[("cookie", &cookie), ("origin", &origin)]).await.is_ok());
    // A cookie alone may be any page's doing.
    assert_eq!(door.try_connect(path, &[("cookie", &cookie)]).await.err(), Some(403));
}

#[tokio::test]
async fn refusals_have_their_status_or_for_v1_their_close_code() {
    let node = TestNode::start(&[("limits.connections_per_user", "1"), ("room-policy", "members")]).await;
    let door = node.at();
    let bearer = format!("Bearer {}", token("alice"));
    let expired = token_with("alice", &[], 0);
    assert_eq!(door.try_connect("/ws/chat/", &[]).await.err(), Some(401));
    assert_eq!(door.try_connect(&format!("/ws/chat/?token={expired}"), &[]).await.err(), Some(401));
    assert_eq!(door.try_connect("/ws/chat/", &[("authorization", "Bearer nonsense")]).await.err(), Some(401));
    assert_eq!(
        door.try_connect("/ws/chat/", &[("authorization", &bearer), ("origin", "https://evil.example")]).await.err(),
        Some(403)
    );
    assert_eq!(door.try_connect("/ws/chat/x/", &[("authorization", &bearer)]).await.err(), Some(404));
    assert_eq!(door.try_connect("/ws/nowhere/", &[("authorization", &bearer)]).await.err(), Some(404));
    let v1 = ("sec-websocket-protocol", "gateway.v1");
    assert_eq!(door.try_connect("/ws/chat/", &[v1]).await.unwrap().closed().await, 4401);
    assert_eq!(door.try_connect("/ws/chat/x/", &[v1, ("authorization", &bearer)]).await.unwrap().closed().await, 4404);
    // Origin and limits are refused before the upgrade for everybody.
    assert_eq!(
        door.try_connect("/ws/chat/", &[v1, ("authorization", &bearer), ("origin", "null")]).await.err(),
        Some(403)
    );
    let _held = door.connect("/ws/chat/", "alice").await;
    assert_eq!(door.try_connect("/ws/chat/", &[v1, ("authorization", &bearer)]).await.err(), Some(429));
    assert_eq!(node.metric("gateway_connections").await, 1.0);
    assert_eq!(door.get("/ws/chat/").await.0, 426);
    assert_eq!(door.get("/nothing").await.0, 404);
    assert_eq!(door.get("/metrics").await.0, 404, "metrics are for the internal listener");
    assert_eq!(door.get("/").await.0, 404, "the page is for --dev");
    assert_eq!(door.get("/client.js").await.0, 200);
    assert!(node.metric(r#"gateway_handshakes_rejected_total{reason="origin"}"#).await >= 2.0);
}

#[tokio::test]
async fn addresses_are_limited_by_what_trusted_proxies_say() {
    let node = TestNode::start(&[("limits.connections_per_address", "1"), ("trusted-proxies", "127.0.0.1")]).await;
    let door = node.at();
    let bearer = format!("Bearer {}", token("alice"));
    let from = |hops: &'static str| {
        let bearer = bearer.clone();
        async move { door.try_connect("/ws/chat/", &[("authorization", &bearer), ("x-forwarded-for", hops)]).await }
    };
    let held = from("6.6.6.6, 10.0.0.1").await.unwrap();
    // The right-most hop that is no proxy of ours counts; what stands before it is the client's own claim.
    assert_eq!(from("7.7.7.7, 10.0.0.1").await.err(), Some(429));
    assert!(from("10.0.0.1, 10.0.0.2").await.is_ok());
    held.close().await;
    eventually("the place is free again", || async { from("10.0.0.1").await.is_ok() }).await;
}

#[tokio::test]
async fn many_messages_share_few_statements() {
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let mut alice = node.join("alice", "lobby").await;
    let statements = || node.running.node().store.statements();
    alice.say_acked("lobby", "warm", "0").await;
    let before = statements();
    alice.say("lobby", "one").await;
    alice.until(|frame| frame["message"] == "one").await;
    let lone = statements() - before;
    assert!(lone <= 5, "{lone} statements for one message, BEGIN and COMMIT included");
    let before = statements();
    for n in 0..200 {
        alice.say("lobby", &n.to_string()).await;
    }
    alice.until(|frame| frame["message"] == "199").await;
    let many = statements() - before;
    assert!(many < 200, "{many} statements for 200 messages");
}

#[tokio::test]
async fn whom_a_browser_may_notify_is_a_setting() {
    for (setting, stranger, neighbour) in [("any", true, true), ("shared-room", false, true), ("off", false, false)] {
        let node = TestNode::start(&[("client-notifications", setting)]).await;
        let mut alice = node.join("alice", "lobby").await;
        let (_bob, _carol) = (node.join("bob", "lobby").await, node.join("carol", "elsewhere").await);
        for (user, allowed) in [("bob", neighbour), ("carol", stranger)] {
            alice.send(json!({"cate": "notification", "user_name": user, "message": "x", "client_id": user})).await;
            let answer = alice.until(|frame| frame["client_id"] == user).await;
            assert_eq!(answer["type"] == "ack", allowed, "{setting} {user}: {answer}");
            assert!(allowed || answer["code"] == "forbidden");
        }
    }
}

#[tokio::test]
async fn a_signed_in_socket_ends_with_its_token() {
    let node = TestNode::start(&[]).await;
    let path = format!("/ws/chat/?token={}", token_with("alice", &[], 4));
    let mut alice = node.at().try_connect(&path, &[]).await.unwrap();
    assert_eq!(alice.closed().await, 4401);
}

#[tokio::test]
async fn bad_input_costs_its_sender_an_error_and_nobody_else_anything() {
    let node = TestNode::start(&[]).await;
    let (mut alice, mut bob) = (node.join("alice", "lobby").await, node.join("bob", "lobby").await);
    for (text, code) in [
        ("no json", "invalid"),
        (r#"{"cate":"nope"}"#, "unknown_cate"),
        (r#"{"cate":"chat","group_name":"elsewhere","message":"x"}"#, "room_not_found"),
        (r#"{"cate":"notification","user_name":"nobody-knows","message":"x"}"#, "user_not_found"),
        (r#"{"cate":"chat","group_name":"lobby","message":5}"#, "invalid"),
    ] {
        alice.send_text(text).await;
        let frame = alice.frame().await;
        assert_eq!((frame["type"].as_str(), frame["code"].as_str()), (Some("error"), Some(code)), "{text}");
    }
    alice.send_binary(b"\x00\x01").await;
    assert_eq!(alice.frame().await["code"], "invalid");
    bob.hears_nothing_before_own("lobby").await;
    for _ in 0..19 {
        alice.send_text("no json").await;
    }
    assert_eq!(alice.closed().await, 1008);
    // A token that is not good makes a bad frame, and a good one ends the row.
    let auth = |token: &str| json!({"cate": "auth", "token": token});
    let mut alice = node.at().v1("/ws/chat/lobby/", "alice").await;
    for good in [true, false] {
        for _ in 0..19 {
            assert_eq!(alice.ask(auth("no token")).await["code"], "invalid");
        }
        if good {
            assert_eq!(alice.ask(auth(&token("alice"))).await["type"], "auth");
        }
    }
    alice.send(auth("no token")).await;
    assert_eq!(alice.closed().await, 1008);
}

#[tokio::test]
async fn too_large_a_message_closes_with_1009_from_its_header() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = TestNode::start(&[("limits.frame_bytes", "1000")]).await;
    let mut alice = node.join("alice", "lobby").await;
    alice.send_text(&format!("{:?}", "x".repeat(998))).await;
    assert_eq!(alice.frame().await["code"], "invalid", "1000 bytes pass");
    let mut raw = alice.into_tcp();
    // A header that promises a gigabyte, and nothing behind it.
    raw.write_all(&[0x81, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0]).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(common::PATIENCE, raw.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer[..4], [0x88, 2 + 15, 0x03, 0xf1]);
}

#[tokio::test]
async fn who_floods_is_warned_and_then_closed() {
    let node = TestNode::start(&[("limits.frames_per_second", "10"), ("limits.frames_burst", "10")]).await;
    let mut alice = node.join("alice", "lobby").await;
    for _ in 0..100 {
        if !alice.try_send_text(r#"{"cate":"rooms"}"#).await {
            break;
        }
    }
    let mut warned = 0;
    let code = loop {
        match alice.hear().await {
            Heard::Frame(frame) => warned += usize::from(frame["code"] == "rate_limited"),
            Heard::Closed(code, _) => break code,
            Heard::Gone => panic!("a close frame was expected"),
        }
    };
    assert_eq!((code, warned), (1008, 1));
}

/// Both with one system call for all of them and with one for each.
#[tokio::test]
async fn a_slow_reader_is_closed_and_nobody_waits_for_it() {
    for no_io_uring in ["false", "true"] {
        slow_reader(no_io_uring).await;
    }
}

async fn slow_reader(no_io_uring: &str) {
    let limits = [("limits.outbox_bytes", "100000"), ("limits.frames_per_second", "0")];
    let node = TestNode::start(&[&limits[..], &[("no-io-uring", no_io_uring)]].concat()).await;
    // Connected, and never read from again.
    let mut slow = node.join("slow", "lobby").await;
    let mut others = Vec::new();
    for user in ["alice", "bob", "carol", "dave"] {
        others.push(node.join(user, "lobby").await);
    }
    let text = "x".repeat(15_000);
    let mut sent = 0u64;
    while node.metric("gateway_outbox_full_total").await == 0.0 {
        for _ in 0..50 {
            others[0].say("lobby", &text).await;
            sent += 1;
            for other in &mut others {
                assert_eq!(other.until(|frame| frame["type"] == "chat").await["seq"], sent);
            }
        }
        assert!(sent < 2000, "the outbox is bounded");
    }
    let (mut heard, mut code) = (0, None);
    while code.is_none() {
        match slow.hear().await {
            Heard::Closed(closed, _) => code = Some(closed),
            Heard::Gone => code = Some(1006),
            Heard::Frame(frame) => {
                heard += 1;
                assert_eq!(frame["seq"], heard, "what the kernel took is whole and in order");
            }
        }
    }
    // The close frame comes after what the kernel had taken, unless the client was cut off first.
    assert!(matches!(code, Some(4008 | 1006)), "{code:?}");
    eventually("4008", || async { node.metric(r#"gateway_connections_closed_total{code="4008"}"#).await == 1.0 }).await;
}

#[tokio::test]
async fn a_dead_peer_is_found_by_its_silence() {
    let node = TestNode::start(&[("limits.ping_seconds", "1"), ("limits.pong_seconds", "1")]).await;
    let dead = node.join("dead", "lobby").await.into_tcp();
    let mut live = node.join("live", "lobby").await;
    let reading = tokio::spawn(async move {
        // Hearing answers pings.
        live.hear_within(Duration::from_secs(5)).await
    });
    eventually("4000", || async { node.metric(r#"gateway_connections_closed_total{code="4000"}"#).await == 1.0 }).await;
    assert_eq!(reading.await.unwrap(), None, "who answers pings stays");
    drop(dead);
}

#[tokio::test]
async fn a_silent_connection_and_half_a_request_are_closed() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = TestNode::start(&[("limits.handshake_seconds", "1")]).await;
    for bytes in [&b""[..], b"GET /ws/chat/ HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(node.at().public).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(common::PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed in time").unwrap();
    }
}

#[tokio::test]
async fn drain_says_when_to_come_back_and_takes_no_new_sockets() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let mut alice = node.join("alice", "lobby").await;
    assert_eq!(door.get("/readyz").await.0, 200);
    let drained = tokio::spawn(node.running.drain());
    let (code, reason) = loop {
        match alice.hear().await {
            Heard::Closed(code, reason) => break (code, reason),
            Heard::Frame(_) => {}
            Heard::Gone => panic!("a close frame was expected"),
        }
    };
    // Nobody has to wait for the crowd that is not there.
    assert_eq!((code, reason.as_str()), (1012, "retry=0-100"));
    // Answers the close, as every client does.
    alice.close().await;
    assert_eq!(drained.await.unwrap(), 0);
    assert!(tokio::net::TcpStream::connect(door.public).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_sockets_leaves_at_once() {
    let node = TestNode::start(&[]).await;
    // Its tasks get 5 seconds for their last words, and need none of them.
    let left = tokio::time::timeout(Duration::from_secs(4), node.running.drain()).await;
    assert_eq!(left, Ok(0));
}

#[tokio::test]
async fn publishing_over_http_is_answered_after_the_commit() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let mut alice = node.join("alice", "lobby").await;
    let envelope = json!({"type": "notification", "to": "user:alice", "source": "shop", "id": "order-42",
        "data": {"message": "Paid", "from_user": "shop"}});
    let (status, answer) = door.api("POST", "/api/events", Some(envelope.clone())).await;
    assert_eq!(
        (status, &answer["results"][0]["seq"], &answer["results"][0]["repeated"]),
        (200, &json!(1), &json!(false))
    );
    let frame = alice.frame().await;
    assert_eq!((&frame["id"], frame["message"].as_str()), (&answer["results"][0]["id"], Some("Paid")));
    let (_, again) = door.api("POST", "/api/events", Some(envelope.clone())).await;
    assert_eq!(again["results"][0]["repeated"], true);
    let mut other = envelope;
    other["data"]["message"] = json!("Refunded");
    assert_eq!(door.api("POST", "/api/events", Some(other)).await.0, 422);
    let missing = json!({"type": "chat", "to": "room:nowhere", "data": {"message": "x"}});
    let (status, problem) = door.api("POST", "/api/events", Some(missing)).await;
    assert_eq!((status, problem["status"].as_u64()), (404, Some(404)));
    let many =
        json!({"type": "chat", "to": ["room:lobby", "room:lobby"], "data": {"message": "hi", "from_user": "shop"}});
    let (_, answer) = door.api("POST", "/api/events", Some(many)).await;
    assert_eq!(answer["results"].as_array().unwrap().len(), 2, "{answer}");
    assert_eq!(alice.hears().await, "hi");
    assert_eq!(door.api_with("GET", "/api/rooms", None, &[]).await.0, 401);
    assert_eq!(door.api("POST", "/api/events", Some(json!({"type": "x"}))).await.0, 400);
    let (_, history) = door.api("GET", "/api/rooms/lobby/history?limit=1", None).await;
    assert_eq!(history["messages"].as_array().unwrap().len(), 1);
    let (_, inbox) = door.api("GET", "/api/users/alice/notifications", None).await;
    assert_eq!((inbox["unseen"].as_u64(), inbox["notifications"][0]["seen"].as_bool()), (Some(1), Some(false)));
    // To kick somebody out is an event too.
    let kick = json!({"type": "gateway.disconnect", "to": "user:alice", "data": {"reason": "bye"}});
    assert_eq!(door.api("POST", "/api/events", Some(kick)).await.0, 200);
    assert_eq!(alice.closed().await, 4403);
}

#[tokio::test]
async fn a_room_of_any_valid_name_works() {
    let node = TestNode::start(&[]).await;
    for (encoded, room) in [("caf%C3%A9%20%F0%9F%8C%8D", "café 🌍"), ("a%27%3B%20DROP", "a'; DROP"), ("x%2A", "x*")]
    {
        let mut alice = node.join("alice", encoded).await;
        alice.say(room, "hi").await;
        assert_eq!(alice.until(|frame| frame["group_name"] == room).await["message"], "hi");
    }
    assert_eq!(
        node.at().try_connect("/ws/chat/a%2Fb/", &[("authorization", &format!("Bearer {}", token("a")))]).await.err(),
        Some(404)
    );
}
