//! Rooms and members through the stream and `POST /api/events`: what the API's calls do, once, in the order of the stream.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Client, TestNode, eventually};
use persistence::{Membership, Store, StoreOptions};
use serde_json::{Value, json};
use testkit::mariadb::MariaDb;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;

async fn start(redis: &str, database: &str, name: &str) -> TestNode {
    TestNode::start(&[
        ("redis-url", redis),
        ("database-url", database),
        ("node-id", name),
        ("room-policy", "members"),
        ("limits.frames_per_second", "0"),
    ])
    .await
}

/// Writes an entry and returns its id in the stream.
fn add(redis: &RedisServer, id: &str, kind: &str, to: &str, data: &Value) -> String {
    let data = data.to_string();
    let fields = ["id", id, "source", "shop", "type", kind, "to", to, "data", &data];
    redis.cli(&[&["XADD", "gateway:events", "*"], &fields[..]].concat()).trim().to_owned()
}

fn joins(redis: &RedisServer, id: &str, room: &str, users: &[&str]) {
    add(redis, id, "member.add", &format!("room:{room}"), &json!({ "users": users }));
}

fn leaves(redis: &RedisServer, id: &str, room: &str, users: &[&str]) {
    add(redis, id, "member.remove", &format!("room:{room}"), &json!({ "users": users }));
}

async fn is_empty(redis: &RedisServer) {
    eventually("everything is acked and deleted", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "0" })
        .await;
}

async fn room(node: &TestNode, room: &str) -> Value {
    node.at().api("GET", &format!("/api/rooms/{room}"), None).await.1
}

async fn hears_only(client: &mut Client, rooms: &[&str]) {
    let until = tokio::time::Instant::now() + common::PATIENCE * 2;
    while client.rooms().await != rooms {
        assert!(tokio::time::Instant::now() < until, "{rooms:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_sockets_on_all_nodes_follow_the_stream() {
    for database in [Postgres::shared().fresh_database(), MariaDb::shared().fresh_database()] {
        let redis = RedisServer::start();
        let (one, two) = (start(&redis.url(), &database, "one").await, start(&redis.url(), &database, "two").await);
        let mut alice = [one.at().v1("/ws/chat/", "alice").await, two.at().connect("/ws/chat/", "alice").await];
        add(&redis, "1", "room.put", r#"["room:lobby","room:attic"]"#, &json!({"display_name": "Ours"}));
        joins(&redis, "2", "lobby", &["alice", "bob"]);
        add(&redis, "3", "member.add", r#"["room:lobby","room:attic"]"#, &json!({"users": ["alice"]}));
        for socket in &mut alice {
            hears_only(socket, &["attic", "lobby"]).await;
        }
        is_empty(&redis).await;
        let lobby = room(&one, "lobby").await;
        assert_eq!((&lobby["display_name"], &lobby["members"]), (&json!("Ours"), &json!(["alice", "bob"])));
        add(&redis, "4", "chat", "room:lobby", &json!({"message": "hello"}));
        for socket in &mut alice {
            assert_eq!(socket.hears().await, "hello");
        }
        leaves(&redis, "5", "lobby", &["alice", "nobody"]);
        joins(&redis, "2", "lobby", &["alice", "bob"]);
        for socket in &mut alice {
            hears_only(socket, &["attic"]).await;
        }
        is_empty(&redis).await;
        assert_eq!(room(&two, "lobby").await["members"], json!(["bob"]), "a repeat changes nothing");
        assert_eq!(redis.cli(&["XLEN", "gateway:events:dead"]).trim(), "0");
        // A room named by a token is taken away like the API does it.
        let token = common::token_with("carol", &["attic"], 600);
        let bearer = format!("Bearer {token}");
        let mut carol = two.at().try_connect("/ws/chat/", &[("authorization", &bearer)]).await.unwrap();
        hears_only(&mut carol, &["attic"]).await;
        leaves(&redis, "6", "attic", &["carol"]);
        hears_only(&mut carol, &[]).await;
        let changed = async |node: &TestNode| node.metric(r#"gateway_stream_events_total{result="changed"}"#).await;
        eventually("all are counted", || async { changed(&one).await + changed(&two).await == 5.0 }).await;
    }
}

/// Entries that another consumer took and does not finish come to a node long after what was written behind them.
#[tokio::test(flavor = "multi_thread")]
async fn the_later_entry_counts_though_a_dead_node_had_the_earlier_one() {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let store = Store::connect(StoreOptions::new(&database)).await.unwrap();
    store.migrate().await.unwrap();
    store.add_members(&[Membership { room: "lobby".into(), user: "erin".into(), create_room: true }]).await.unwrap();
    redis.cli(&["XGROUP", "CREATE", "gateway:events", "gateway", "0", "MKSTREAM"]);
    joins(&redis, "1", "lobby", &["alice", "bob"]);
    leaves(&redis, "2", "lobby", &["dave", "erin"]);
    add(&redis, "3", "room.put", "room:lobby", &json!({"display_name": "old"}));
    add(&redis, "4", "room.put", "room:made", &json!({}));
    redis.cli(&["XREADGROUP", "GROUP", "gateway", "dead", "COUNT", "4", "STREAMS", "gateway:events", ">"]);
    let ids = redis.cli(&["XPENDING", "gateway:events", "gateway", "-", "+", "4", "dead"]);
    let ids: Vec<String> = ids.lines().map(|line| line.trim().to_owned()).filter(|line| line.contains('-')).collect();
    assert_eq!(ids.len(), 4, "{ids:?}");

    leaves(&redis, "5", "lobby", &["alice"]);
    joins(&redis, "6", "lobby", &["dave"]);
    add(&redis, "7", "room.put", "room:lobby", &json!({"display_name": "new"}));
    // The same identity again, behind what says the contrary.
    joins(&redis, "1", "lobby", &["alice", "bob"]);
    // Of rooms that the dead node was about to make: they wait.
    joins(&redis, "8", "made", &["alice"]);
    add(&redis, "9", "chat", "room:made", &json!({"message": "patience"}));
    joins(&redis, "10", "never", &["alice"]);
    let two = start(&redis.url(), &database, "two").await;
    eventually("the rest is done", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "6" }).await;
    // Directly, later than what the dead node had and earlier than what follows.
    assert_eq!(two.at().api("DELETE", "/api/rooms/lobby/members/bob", None).await.1["removed"], true);
    let before = room(&two, "lobby").await;
    assert_eq!((&before["display_name"], &before["members"]), (&json!("new"), &json!(["alice", "dave", "erin"])));
    // As if half a minute had passed.
    let mut claim = vec!["XCLAIM", "gateway:events", "gateway", "dead", "0"];
    claim.extend(ids.iter().map(String::as_str));
    claim.extend(["IDLE", "40000", "JUSTID"]);
    redis.cli(&claim);
    eventually("the room is made", || async { room(&two, "made").await["name"] == "made" }).await;
    eventually("alice is out", || async { room(&two, "lobby").await["members"] == json!(["dave"]) }).await;
    assert_eq!(room(&two, "lobby").await["display_name"], "new");
    // What waited for its room is taken up as anything that a node did not finish.
    let waits = redis.cli(&["XPENDING", "gateway:events", "gateway", "-", "+", "9", "two"]);
    let waits: Vec<String> =
        waits.lines().map(|line| line.trim().to_owned()).filter(|line| line.contains('-')).collect();
    if !waits.is_empty() {
        let mut claim = vec!["XCLAIM", "gateway:events", "gateway", "two", "0"];
        claim.extend(waits.iter().map(String::as_str));
        claim.extend(["IDLE", "40000", "RETRYCOUNT", "1", "JUSTID"]);
        redis.cli(&claim);
    }
    is_empty(&redis).await;
    let made = room(&two, "made").await;
    assert_eq!((&made["members"], &made["seq"]), (&json!(["alice"]), &json!(1)));
    let (_, dead) = two.at().api("GET", "/api/dead", None).await;
    let dead = dead["dead"].as_array().unwrap();
    assert_eq!((dead.len(), &dead[0]["fields"]["id"]), (1, &json!("10")), "{dead:#?}");
    assert!(dead[0]["fields"]["reason"].as_str().unwrap().starts_with("no_room"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_change_is_dead_or_refused() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url()), ("room-policy", "members")]).await;
    let long = "x".repeat(256);
    let wrong = [
        ("member.add", "room:nowhere", json!({"users": ["alice"]}), "no_room", 404),
        ("member.remove", "room:nowhere", json!({"users": ["alice"]}), "no_room", 404),
        ("member.add", "user:alice", json!({"users": ["alice"]}), "malformed", 400),
        ("member.add", "everyone", json!({"users": ["alice"]}), "malformed", 400),
        ("room.put", "user:alice", json!({}), "malformed", 400),
        ("member.add", "room:lobby", json!({}), "missing_field", 400),
        ("member.add", "room:lobby", json!({"users": []}), "malformed", 400),
        ("member.add", "room:lobby", json!({"users": "alice"}), "malformed", 400),
        ("member.add", "room:lobby", json!({"users": ["alice", "a/b"]}), "malformed", 400),
        ("member.add", "room:lobby", json!({"users": ["anon.x"]}), "malformed", 400),
        ("member.add", "room:lobby", json!({"users": [7]}), "malformed", 400),
        ("room.put", "room:lobby", json!({"display_name": ""}), "malformed", 400),
        ("room.put", "room:lobby", json!({"display_name": long}), "malformed", 400),
        ("room.put", "room:lobby", json!({"display_name": 7}), "malformed", 400),
    ];
    node.at().api("PUT", "/api/rooms/lobby", None).await;
    for (index, (kind, to, data, reason, status)) in wrong.iter().enumerate() {
        add(&redis, &index.to_string(), kind, to, data);
        let event = json!({"type": kind, "to": to, "data": data});
        let (given, problem) = node.at().api("POST", "/api/events", Some(event)).await;
        assert_eq!(given, *status, "{kind} {data}: {problem}");
        is_empty(&redis).await;
        let (_, dead) = node.at().api("GET", "/api/dead?limit=1", None).await;
        let fields = &dead["dead"][0]["fields"];
        let said = fields["reason"].as_str().unwrap_or_default();
        assert!(fields["id"] == *index.to_string() && said.starts_with(reason), "{kind} {data}: {dead}");
    }
    assert_eq!(room(&node, "lobby").await["members"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_they_are_done_in_their_turn_and_once() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let mut alice = node.at().v1("/ws/chat/", "alice").await;
    let call = async |body: Value| node.at().api("POST", "/api/events", Some(body)).await;
    let all = json!([
        {"type": "room.put", "to": "room:lobby", "data": {"display_name": "Ours"}, "id": "1"},
        {"type": "member.add", "to": "room:lobby", "data": {"users": ["alice", "bob", "carol"]}, "id": "2"},
        {"type": "chat", "to": "room:lobby", "data": {"message": "welcome"}, "id": "3"},
        {"type": "member.remove", "to": "room:lobby", "data": {"users": ["bob"]}, "id": "4"},
    ]);
    let (status, answer) = call(all.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    assert!(results.iter().all(|result| result["repeated"] == false && result["date"].is_string()), "{results:?}");
    assert_eq!(
        (&results[1]["to"], &results[1]["seq"], &results[2]["seq"]),
        (&json!("room:lobby"), &json!(null), &json!(1))
    );
    hears_only(&mut alice, &["lobby"]).await;
    let (_, again) = call(all).await;
    assert!(again["results"].as_array().unwrap().iter().all(|result| result["repeated"] == true), "{again}");
    let lobby = room(&node, "lobby").await;
    assert_eq!((&lobby["members"], &lobby["display_name"]), (&json!(["alice", "carol"]), &json!("Ours")));
    // The same identity with other content.
    let other = json!({"type": "member.add", "to": "room:lobby", "data": {"users": ["dave"]}, "id": "2"});
    assert_eq!(call(other).await.0, 422);
    let twice = json!([
        {"type": "member.add", "to": "room:lobby", "data": {"users": ["dave"]}, "id": "5"},
        {"type": "member.add", "to": "room:lobby", "data": {"users": ["erin"]}, "id": "5"},
    ]);
    assert_eq!(call(twice).await.0, 422);
    // What is missing is found before anything is done.
    let (status, problem) = call(json!([
        {"type": "member.remove", "to": "room:lobby", "data": {"users": ["alice"]}},
        {"type": "member.add", "to": "room:nowhere", "data": {"users": ["alice"]}},
    ]))
    .await;
    assert_eq!((status, &problem["envelope"]), (404, &json!(1)));
    assert_eq!(room(&node, "lobby").await["members"], json!(["alice", "carol"]));
    let late = json!({"type": "member.add", "to": "room:lobby", "data": {"users": ["dave"]}, "expires_at": "2020-01-01T00:00:00Z"});
    assert_eq!(call(late).await.1["results"][0]["expired"], true);
}

/// Who is put into more rooms than one may hear is a member of all, and hears the oldest.
#[tokio::test(flavor = "multi_thread")]
async fn rooms_per_user_holds() {
    let redis = RedisServer::start();
    let node =
        TestNode::start(&[("redis-url", &redis.url()), ("room-policy", "members"), ("limits.rooms_per_user", "2")])
            .await;
    for name in ["a", "b", "c"] {
        add(&redis, name, "room.put", &format!("room:{name}"), &json!({}));
        joins(&redis, &format!("in {name}"), name, &["alice"]);
        is_empty(&redis).await;
    }
    let mut alice = node.at().v1("/ws/chat/", "alice").await;
    hears_only(&mut alice, &["a", "b"]).await;
    assert_eq!(room(&node, "c").await["members"], json!(["alice"]));
    leaves(&redis, "out", "a", &["alice"]);
    hears_only(&mut alice, &["b", "c"]).await;
}
