//! The internal API, call by call (`docs/publishing.md`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{Door, TestNode};
use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::redis::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

fn notification(id: &str, to: &str, message: &str) -> Value {
    json!({"type": "notification", "source": "shop", "id": id, "to": to, "data": {"message": message}})
}

async fn publish(door: Door, body: Value, key: &str) -> (u16, Value) {
    let headers = [("authorization", "Bearer key"), ("idempotency-key", key)];
    door.api_with("POST", "/api/events", Some(body), if key.is_empty() { &headers[..1] } else { &headers }).await
}

async fn seq(door: Door, room: &str) -> u64 {
    door.api("GET", &format!("/api/rooms/{room}"), None).await.1["seq"].as_u64().unwrap()
}

async fn unseen(door: Door, user: &str) -> u64 {
    door.api("GET", &format!("/api/users/{user}/notifications"), None).await.1["unseen"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_stored_as_a_whole_or_not_at_all() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    door.api("PUT", "/api/rooms/lobby", None).await;
    assert_eq!(publish(door, notification("old", "user:alice", "first"), "").await.0, 200);
    let chat = json!({"type": "chat", "to": "room:lobby", "data": {"message": "hi"}});
    let good = || vec![chat.clone(), notification("a", "user:bob", "x")];
    let cases = [
        (notification("a", "user:bob", "one identity, other content"), 422),
        (notification("old", "user:alice", "used before"), 422),
        (json!({"type": "chat", "to": "room:nowhere", "data": {"message": "hi"}}), 404),
        (json!({"type": "chat", "to": "user:alice", "data": {"message": "hi"}}), 400),
        (json!({"type": "notification", "to": "user:bob", "data": {"message": "a\u{0}b"}}), 400),
        (
            json!({"type": "notification", "to": "user:bob", "data": {"message": "x", "from_user": "x".repeat(151)}}),
            400,
        ),
        (json!({"type": "notification", "to": "user:bob", "data": {"message": "x".repeat(65_600)}}), 413),
        (json!({"type": "notification", "to": [], "data": {"message": "x"}}), 400),
        (json!({"type": "notification", "to": "user:bob", "data": {"message": "x"}, "time": "noon"}), 400),
        (json!(["notification", "user:bob", {"message": "x"}]), 400),
    ];
    for (bad, status) in cases {
        let (answered, problem) = publish(door, json!([good(), vec![bad.clone()]].concat()), "").await;
        assert_eq!((answered, &problem["status"], &problem["envelope"]), (status, &json!(status), &json!(2)), "{bad}");
    }
    assert_eq!((seq(door, "lobby").await, unseen(door, "bob").await, unseen(door, "alice").await), (0, 0, 1));
    // Alone it is no place in a list.
    let (_, problem) = publish(door, notification("old", "user:alice", "used before"), "").await;
    assert!(problem["status"] == 422 && problem.get("envelope").is_none(), "{problem}");
    // More than is stored at a time: what is wrong within the call is found before anything is stored.
    let crowd: Vec<String> = (0..1000).map(|number| format!("user:u{number}")).collect();
    let wide = |id: &str, text: &str| json!({"type": "notification", "id": id, "to": crowd, "data": {"message": text}});
    let (status, _) = publish(door, json!([wide("1", "x"), wide("2", "x"), wide("1", "y")]), "").await;
    assert_eq!((status, unseen(door, "u0").await), (422, 0));
    let (status, answer) = publish(door, json!([wide("1", "x"), wide("2", "x"), chat]), "").await;
    let results = answer["results"].as_array().unwrap();
    assert_eq!((status, results.len(), &results[1999]["to"]), (200, 2001, &json!("user:u999")));
    assert_eq!((unseen(door, "u999").await, seq(door, "lobby").await), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn results_come_in_the_order_asked_and_sockets_hear_it() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let mut alice = node.join("alice", "lobby").await;
    let list: Vec<Value> = (0..1000)
        .map(|number| match number % 4 {
            0 => json!({"type": "chat", "to": "room:lobby", "data": {"message": number.to_string()}}),
            1 => json!({"type": "gateway.disconnect", "to": format!("user:x{number}"), "data": {}}),
            2 => json!({"type": "notification", "to": ["user:bob", "user:carol"], "data": {"message": "x"}}),
            _ => json!({"type": "notification", "to": "user:bob", "data": {"message": "x"},
                        "expires_at": "2020-01-01T00:00:00Z"}),
        })
        .collect();
    let (status, answer) = publish(door, json!(list), "").await;
    let results = answer["results"].as_array().unwrap();
    assert_eq!((status, results.len()), (200, 1250));
    for (place, five) in results.chunks(5).enumerate() {
        assert_eq!((&five[0]["to"], &five[0]["seq"]), (&json!("room:lobby"), &json!(place + 1)));
        assert_eq!(
            (&five[0]["repeated"], five[0]["id"].is_string(), five[0]["date"].is_string()),
            (&json!(false), true, true)
        );
        assert_eq!(five[1], json!({"to": format!("user:x{}", place * 4 + 1)}));
        assert_eq!((&five[2]["to"], &five[3]["to"]), (&json!("user:bob"), &json!("user:carol")));
        assert_eq!(five[4], json!({"to": "user:bob", "expired": true}));
    }
    for place in 0..250 {
        let frame = alice.frame().await;
        assert_eq!((&frame["message"], &frame["seq"]), (&json!((place * 4).to_string()), &json!(place + 1)));
    }
    let (status, problem) = publish(door, json!(vec![list[0].clone(); 1001]), "").await;
    assert!(status == 400 && problem["detail"].as_str().unwrap().contains("1000"), "{problem}");
    assert_eq!(publish(door, json!([]), "").await, (200, json!({"results": []})));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_to_many_rooms_at_once_leave_each_room_in_order() {
    // Several lanes write to a server; a list goes through one of them, whatever its rooms.
    let database = testkit::postgres::Postgres::shared().fresh_database();
    let node = TestNode::start(&[("database-url", &database)]).await;
    let door = node.at();
    let rooms = ["a", "b", "c", "d"];
    for room in rooms {
        door.join("alice", room).await.close().await;
    }
    let mut alice = door.connect("/ws/chat/", "alice").await;
    let chat = |room: &str| json!({"type": "chat", "to": format!("room:{room}"), "data": {"message": "x"}});
    let calls = (0..60).map(|number| {
        let mut order = rooms;
        order.rotate_left(number % 4);
        let body = if number % 3 == 0 { chat(order[0]) } else { json!(order.map(chat)) };
        publish(door, body, "")
    });
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    let total: usize = answers.iter().map(|(_, answer)| answer["results"].as_array().unwrap().len()).sum();
    let mut last = std::collections::HashMap::new();
    for _ in 0..total {
        let frame = alice.frame().await;
        let last = last.entry(frame["group_name"].as_str().unwrap().to_owned()).or_insert(0);
        *last += 1;
        assert_eq!(frame["seq"], *last, "{frame}");
    }
    for room in rooms {
        assert_eq!(seq(door, room).await, last[room]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_stands_in_for_the_id() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let paid = |message: &str| json!({"type": "notification", "to": "user:alice", "data": {"message": message}});
    let (_, first) = publish(door, paid("paid"), "order-42").await;
    let first = &first["results"][0];
    assert_eq!(first["repeated"], false);
    // Bare or quoted, it is the same key; and the same as the id.
    let mut with_id = paid("paid");
    with_id["id"] = json!("order-42");
    for (body, key) in [(paid("paid"), "order-42"), (paid("paid"), "\"order-42\""), (with_id, "")] {
        let (_, again) = publish(door, body, key).await;
        let again = &again["results"][0];
        assert_eq!((&again["id"], &again["seq"], &again["date"]), (&first["id"], &first["seq"], &first["date"]));
        assert_eq!(again["repeated"], true);
    }
    assert_eq!(publish(door, paid("not paid"), "order-42").await.0, 422);
    // The envelope's own id goes before, and with another recipient it is another event.
    let mut own = paid("own");
    own["id"] = json!("own");
    assert_eq!(publish(door, own.clone(), "order-42").await.1["results"][0]["seq"], 2);
    assert_eq!(publish(door, own, "other").await.1["results"][0]["repeated"], true);
    // In a list, each has its place.
    let list = json!([paid("a"), paid("b")]);
    for repeated in [false, true] {
        let (_, answer) = publish(door, list.clone(), "list").await;
        let results = answer["results"].as_array().unwrap();
        assert!(results.iter().all(|result| result["repeated"] == repeated), "{answer}");
    }
    assert_eq!(unseen(door, "alice").await, 4);
    for key in [" ", "\"\"", &"k".repeat(129), "é"] {
        assert_eq!(publish(door, paid("x"), key).await.0, 400, "{key:?}");
    }
    let twice = [("authorization", "Bearer key"), ("idempotency-key", "a"), ("idempotency-key", "b")];
    assert_eq!(door.api_with("POST", "/api/events", Some(paid("x")), &twice).await.0, 400);
    // Many at once with one key store one.
    let same = (0..20).map(|_| publish(door, paid("storm"), "storm"));
    let answers = futures_util::future::join_all(same).await;
    let new = answers.iter().filter(|(_, answer)| answer["results"][0]["repeated"] == false).count();
    assert_eq!((new, unseen(door, "alice").await), (1, 5));
}

/// An answer as it came: the head in lower case, and the body as JSON.
async fn raw(door: Door, request: String) -> (String, Value) {
    let mut stream = tokio::net::TcpStream::connect(door.internal).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(common::PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), serde_json::from_str(body).unwrap_or_default())
}

/// A path is matched as it was sent: what other servers would fold or skip is no such path, and does nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_path_with_dots_or_empty_segments_does_nothing() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let door = node.at();
    assert_eq!(door.api("PUT", "/api/rooms/lobby", None).await.0, 200);
    assert_eq!(door.api("PUT", "/api/rooms/lobby/members/alice", None).await.0, 200);
    for path in [
        "/api/rooms/lobby/members/..",
        "/api/rooms/lobby/members/%2E%2E",
        "/api/rooms/lobby/members/.%2e",
        "/api/rooms/lobby/members/.",
        "/api/rooms/lobby/members/alice/",
        "/api/rooms/lobby/",
        "/api/rooms//lobby",
        "/api//rooms/lobby",
        "//api/rooms/lobby",
        "/api/./rooms/lobby",
        "/api/rooms/other/../lobby",
        "/api/rooms/other/%2e%2E/lobby",
        "/healthz/../api/rooms/lobby",
        "/api/rooms/..",
    ] {
        let request =
            format!("DELETE {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nConnection: close\r\n\r\n");
        let (head, _) = raw(door, request).await;
        assert!(head.starts_with("http/1.1 404"), "{path}: {head}");
    }
    let (status, room) = door.api("GET", "/api/rooms/lobby", None).await;
    assert_eq!((status, &room["members"][0]), (200, &json!("alice")));
    // Recipients have the same rule.
    for to in ["user:..", "user:.", "room:..", "room:"] {
        let event = json!({"type": "notification", "to": to, "data": {"message": "hello", "from_user": "ops"}});
        assert_eq!(door.api("POST", "/api/events", Some(event)).await.0, 400, "{to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_a_problem_document() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let key = "Authorization: Bearer key\r\n";
    let json_type = "Content-Type: application/json\r\n";
    let cases = [
        ("GET /api/rooms", String::new(), 401, "www-authenticate: bearer"),
        ("GET /api/rooms", "Authorization: Bearer wrong\r\n".into(), 401, "www-authenticate: bearer"),
        ("GET /api/rooms", "Authorization: Basic key\r\n".into(), 401, ""),
        ("GET /api/nothing", String::new(), 401, ""),
        ("GET /api/nothing", key.into(), 404, ""),
        ("GET /api/", key.into(), 404, ""),
        ("GET /api", key.into(), 404, ""),
        ("GET /api/rooms/a/b/c", key.into(), 404, ""),
        ("GET /api/rooms/nowhere", key.into(), 404, ""),
        ("DELETE /api/rooms/nowhere", key.into(), 404, ""),
        ("PUT /api/rooms/nowhere/members/alice", key.into(), 404, ""),
        ("GET /api/dead", key.into(), 404, ""),
        ("POST /api/rooms", key.into(), 405, "allow: get\r\n"),
        ("PATCH /api/rooms/a", key.into(), 405, "allow: get, put, delete\r\n"),
        ("OPTIONS /api/events", key.into(), 405, "allow: post\r\n"),
        ("GET /api/rooms/%FF", key.into(), 400, ""),
        ("GET /api/rooms/%zz", key.into(), 400, ""),
        ("GET /api/rooms/a%2Fb", key.into(), 400, ""),
        ("GET /api/rooms//history", key.into(), 404, ""),
        ("DELETE /api/rooms//", key.into(), 404, ""),
        ("GET /api/rooms?limit=many", key.into(), 400, ""),
        ("GET /api/dead/-", key.into(), 400, ""),
        ("GET /api/dead/1-2-3", key.into(), 400, ""),
        ("POST /api/events", key.into(), 400, ""),
        ("POST /api/events", format!("{key}Content-Length: 2\r\n\r\n{{}}"), 415, ""),
        ("POST /api/events", format!("{key}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}"), 415, ""),
        ("POST /api/events", format!("{key}{json_type}Content-Length: 1\r\n\r\n{{"), 400, ""),
        // Neither sent nor waited for.
        ("POST /api/events", format!("{key}{json_type}Expect: 100-continue\r\nContent-Length: 9000000\r\n"), 413, ""),
        ("PUT /api/rooms/a", format!("{key}{json_type}Content-Length: 2\r\n\r\n[]"), 400, ""),
        ("PUT /api/rooms/a", format!("{key}{json_type}Content-Length: 19\r\n\r\n{{\"display_name\": 7 }}"), 400, ""),
        (
            "POST /api/users/a/seen",
            format!("{key}{json_type}Content-Length: 22\r\n\r\n{{\"ids\":[],\"up_to\":\"x\"}}"),
            400,
            "",
        ),
    ];
    for (line, headers, status, header) in cases {
        let (headers, body) = headers.split_once("\r\n\r\n").unwrap_or((headers.trim_end(), ""));
        let separator = if headers.is_empty() { "" } else { "\r\n" };
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close{separator}{headers}\r\n\r\n{body}");
        let (head, problem) = raw(door, request).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{line}: {head}");
        assert!(head.contains("content-type: application/problem+json"), "{line}: {head}");
        assert!(format!("{head}\r\n").contains(header), "{line}: {head}");
        assert_eq!((&problem["status"], &problem["type"]), (&json!(status), &json!("about:blank")), "{line}");
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{line}: {problem}");
    }
    // A body whose length nobody said ends at the limit too.
    let chunk = "x".repeat(1024 * 1024);
    let chunks = format!("100000\r\n{chunk}\r\n").repeat(9);
    let head = format!("POST /api/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}{json_type}");
    let (head, problem) = raw(door, format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n")).await;
    assert!(head.starts_with("http/1.1 413") && problem["status"] == 413, "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_are_shown_listed_by_page_and_their_members_are_online() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let door = node.at();
    for room in ["a", "b", "c"] {
        let (status, answer) = door.api("PUT", &format!("/api/rooms/{room}"), None).await;
        assert_eq!((status, answer), (200, json!({"name": room, "display_name": room, "seq": 0})));
    }
    door.api("PUT", "/api/rooms/a", Some(json!({"display_name": "A!"}))).await;
    assert_eq!(door.api("PUT", "/api/rooms/a", Some(json!({}))).await.1["display_name"], "A!");
    for user in ["alice", "bob"] {
        assert_eq!(door.api("PUT", &format!("/api/rooms/a/members/{user}"), None).await.0, 200);
    }
    let _alice = door.connect("/ws/notifications/", "alice").await;
    // Whoever hears the room by a token is there too, as in the presence frame.
    let carol = format!("Bearer {}", common::token_with("carol", &["a"], 600));
    let _carol = door.try_connect("/ws/chat/", &[("authorization", &carol)]).await.unwrap();
    let (_, shown) = door.api("GET", "/api/rooms/a", None).await;
    let wanted =
        json!({"name": "a", "display_name": "A!", "seq": 0, "members": ["alice", "bob"], "online": ["alice", "carol"]});
    assert_eq!(shown, wanted);
    let names = async |query: &str| {
        let (_, answer) = door.api("GET", &format!("/api/rooms{query}"), None).await;
        answer["rooms"].as_array().unwrap().iter().map(|room| room["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (names("?limit=2").await, names("?limit=2&after=b").await),
        (vec![json!("a"), json!("b")], vec![json!("c")])
    );
    let (status, removed) = door.api("DELETE", "/api/rooms/a/members/nobody", None).await;
    assert_eq!((status, &removed["removed"]), (200, &json!(false)));
    assert_eq!(door.api("DELETE", "/api/rooms/c", None).await.0, 200);
    assert_eq!(door.api("DELETE", "/api/rooms/c", None).await.0, 404);
    // HEAD as GET, without the body.
    let head = "HEAD /api/rooms HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer key\r\n\r\n";
    let (head, body) = raw(door, head.to_owned()).await;
    assert!(head.starts_with("http/1.1 200") && body == Value::Null, "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_come_in_pages() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let door = node.at();
    for number in 1..=5 {
        redis.cli(&["XADD", "gateway:events:dead", &format!("{number}-0"), "id", "x", "reason", "y"]);
    }
    let page = async |query: &str| {
        let (_, answer) = door.api("GET", &format!("/api/dead{query}"), None).await;
        let ids = answer["dead"].as_array().unwrap().iter().map(|dead| dead["dead_id"].as_str().unwrap().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(page("?limit=2").await, ["5-0", "4-0"]);
    assert_eq!(page("?limit=2&before=4-0").await, ["3-0", "2-0"]);
    assert_eq!(page("?before=2-0").await, ["1-0"]);
    assert_eq!(door.api("GET", "/api/dead?before=x", None).await.0, 400);
    assert_eq!(door.api("GET", "/api/dead/3-0", None).await.1["fields"]["reason"], "y");
    assert_eq!(door.api("DELETE", "/api/dead/3-0", None).await.1, json!({"dead_id": "3-0", "retried": false}));
    assert_eq!(door.api("DELETE", "/api/dead/3-0", None).await.0, 404);
}

/// Asks for the dead letters so often at once; returns the answers' codes.
async fn ask_for_dead_letters(door: Door, times: usize) -> Vec<u16> {
    let ask = || async { door.api("GET", "/api/dead", None).await.0 };
    join_all((0..times).map(|_| ask())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_to_redis_share_four_connections() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let connected = || -> usize {
        let stats = redis.cli(&["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.unwrap().trim().parse().unwrap()
    };
    let before = connected();
    for _ in 0..5 {
        assert_eq!(ask_for_dead_letters(node.at(), 20).await, [200; 20]);
    }
    let more = connected() - before;
    // This look is one, and the node may still be starting.
    assert!(more < 20, "four for a hundred questions: {more}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_holds_no_call_for_long_and_one_that_is_back_answers_at_once() {
    let mut redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    assert_eq!(ask_for_dead_letters(node.at(), 20).await, [200; 20]);
    redis.pause();
    let limit = Duration::from_secs(9);
    let answers = timeout(limit, ask_for_dead_letters(node.at(), 20)).await;
    assert_eq!(answers.expect("no call waits longer"), [503; 20]);
    redis.resume();
    assert_eq!(ask_for_dead_letters(node.at(), 20).await, [200; 20]);
    // The connections of the one that went are not used again.
    redis.restart_empty();
    assert_eq!(ask_for_dead_letters(node.at(), 20).await, [200; 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_asked_for_except_in_dev() {
    let dev = async |key| TestNode::start(&[("dev", "true"), ("api-key", key)]).await;
    let node = TestNode::start(&[("api-key", "")]).await;
    let (status, problem) = node.at().api_with("GET", "/api/nodes", None, &[("authorization", "Bearer ")]).await;
    assert_eq!((status, &problem["detail"]), (401, &json!("no API key is configured")));
    let node = dev("").await;
    assert_eq!(node.at().api_with("GET", "/api/nodes", None, &[]).await.0, 200);
    // Who sets a key wants it asked for.
    let node = dev("secret").await;
    assert_eq!(node.at().api_with("GET", "/api/nodes", None, &[]).await.0, 401);
    // The document is for everybody who reaches the listener.
    assert_eq!(node.at().api_with("GET", "/api/openapi.json", None, &[]).await.0, 200);
}
