//! What publishers send must not fill the memory, whatever its size, and what cannot be done must not be lost.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they measured")]

mod common;

use std::time::Duration;

use common::{Client, Door, NodeProcess, TestNode, eventually, eventually_within, http_client};
use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::redis::{Cluster, RedisServer};

/// What an attack takes at its peak, at most. One entry or call for a thousand took as much.
const MOST: usize = 64 << 20;

/// Whether there is time for as much as has killed nodes.
fn is_long() -> bool {
    std::env::var_os("GATEWAY_LONG").is_some()
}

/// Long enough for a busy machine to store all of it.
const PATIENT: Duration = Duration::from_secs(400);

const MIB: usize = 1 << 20;

/// The most memory that a node has had.
fn peak(node: &NodeProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A node with a database on the disk, and the directory of it.
fn node_on_disk(settings: &[(&str, &str)]) -> (NodeProcess, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
    let settings = [settings, &[("database-url", database.as_str())]].concat();
    (NodeProcess::start(&settings), directory)
}

fn grown(what: &str, node: &NodeProcess, before: usize) -> usize {
    let grown = peak(node) - before;
    println!("{what}: {} MiB more at the peak", grown / MIB);
    grown
}

fn crowd() -> Vec<String> {
    (0..1000).map(|number| format!("user:u{number}")).collect()
}

fn add(redis: &RedisServer, fields: &[(&str, &[u8])]) -> String {
    let mut command: Vec<&[u8]> = vec![b"XADD", b"gateway:events", b"*"];
    command.extend(fields.iter().flat_map(|(name, value)| [name.as_bytes(), *value]));
    redis.raw(&command).trim().to_owned()
}

fn event(redis: &RedisServer, id: &str, to: &str, message: &str) -> String {
    let data = json!({"message": message}).to_string();
    add(
        redis,
        &[
            ("id", id.as_bytes()),
            ("source", b"shop"),
            ("type", b"notification"),
            ("to", to.as_bytes()),
            ("data", data.as_bytes()),
        ],
    )
}

fn length(redis: &RedisServer, stream: &str) -> usize {
    redis.cli(&["XLEN", stream]).trim().parse().unwrap_or(0)
}

async fn is_empty(redis: &RedisServer) {
    eventually_within(PATIENT, "the stream is empty", || async { length(redis, "gateway:events") == 0 }).await;
}

async fn unseen(door: Door, user: &str) -> Value {
    door.api("GET", &format!("/api/users/{user}/notifications?limit=1"), None).await.1["unseen"].clone()
}

/// The dead letters, the newest first. With large ones Redis may be busy for longer than an answer may take.
async fn letters(door: Door) -> Value {
    let letters = tokio::sync::OnceCell::new();
    eventually("the dead letters are shown", || async {
        let (status, page) = door.api("GET", "/api/dead", None).await;
        status == 200 && letters.set(page["dead"].clone()).is_ok()
    })
    .await;
    letters.into_inner().unwrap()
}

/// Their reasons.
async fn dead(door: Door) -> Vec<String> {
    let letters = letters(door).await;
    let letters = letters.as_array().unwrap().iter();
    letters.map(|letter| letter["fields"]["reason"].as_str().unwrap().split(':').next().unwrap().to_owned()).collect()
}

/// Hears so many notifications, and returns the text of the last one.
async fn hears(client: &mut Client, count: usize) -> String {
    client.patience = PATIENT;
    let mut last = Value::Null;
    for _ in 0..count {
        last = client.until(|frame| frame["type"] == "notification").await;
    }
    last["message"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_with_a_thousand_recipients_each_do_not_fill_the_memory() {
    let redis = RedisServer::start();
    let (node, _directory) = node_on_disk(&[("redis-url", &redis.url())]);
    let (mut reader, before) = (node.door.connect("/ws/notifications/", "u7").await, peak(&node));
    let (to, text) = (json!(crowd()).to_string(), "x".repeat(65_000));
    let count = if is_long() { 20 } else { 3 };
    for number in 0..count {
        event(&redis, &number.to_string(), &to, &text);
    }
    event(&redis, "behind", "user:u7", "behind");
    let last = hears(&mut reader, count + 1).await;
    is_empty(&redis).await;
    let grown = grown("entries for 1,000 recipients", &node, before);
    assert!(last == "behind" || last == text);
    assert_eq!((unseen(node.door, "u7").await, unseen(node.door, "u999").await), (json!(count + 1), json!(count)));
    assert_eq!(length(&redis, "gateway:events:dead"), 0);
    assert!(grown < MOST, "{} MiB", grown / MIB);
}

/// Publishes until it is stored, as a publisher does.
async fn publish(door: Door, body: String) -> Value {
    loop {
        let url = format!("http://{}/api/events", door.internal);
        let request =
            http_client().post(url).timeout(PATIENT).bearer_auth("key").header("content-type", "application/json");
        let answer = request.body(body.clone()).send().await.unwrap();
        match answer.status().as_u16() {
            200 => return answer.json().await.unwrap(),
            status => assert!(status == 503 && answer.headers().contains_key("retry-after"), "{status}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_thousand_recipients_each_do_not_fill_the_memory() {
    let (node, _directory) = node_on_disk(&[]);
    // The first call sets up more than a call takes.
    publish(node.door, json!({"type": "notification", "to": "user:u0", "data": {"message": "x"}}).to_string()).await;
    let before = peak(&node);
    let count = if is_long() { 24 } else { 4 };
    let calls = (0..count).map(|number| {
        let data = json!({"message": "x".repeat(60_000)});
        let body = json!({"type": "notification", "id": number.to_string(), "to": crowd(), "data": data});
        publish(node.door, body.to_string())
    });
    let answers = join_all(calls).await;
    let grown = grown("calls for 1,000 recipients", &node, before);
    for answer in answers {
        let results = answer["results"].as_array().unwrap();
        assert_eq!((results.len(), &results[999]["to"]), (1000, &json!("user:u999")));
    }
    assert_eq!((unseen(node.door, "u0").await, unseen(node.door, "u999").await), (json!(count + 1), json!(count)));
    assert!(grown < MOST, "{} MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_would_unfold_do_not_fill_the_memory() {
    let (node, _directory) = node_on_disk(&[]);
    let call = async |body: String| {
        let request = http_client().post(format!("http://{}/api/events", node.door.internal)).bearer_auth("key");
        let request = request.timeout(PATIENT).header("content-type", "application/json");
        let answer = request.body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(call("[]".to_owned()).await.0, 200);
    let before = peak(&node);
    // Zeros become sixteen times as much where all of JSON is read.
    let zeros = format!("[{}0]", "0,".repeat(3_900_000));
    let envelope = |to: &str, data: &str| format!(r#"{{"type":"notification","to":{to},"data":{data}}}"#);
    let names = format!("[{}\"user:a\"]", "\"user:a\",".repeat(990));
    let crowds = format!("[{}]", vec![envelope(&names, r#"{"message":"x"}"#); 800].join(","));
    let bodies = [
        (zeros.clone(), 400, "1000 envelopes"),
        (envelope(&zeros, "{}"), 400, "malformed"),
        (envelope("\"user:a\"", &zeros), 413, "64 KiB"),
        (envelope(&format!("[{}\"user:a\"]", "\"user:a\",".repeat(800_000)), "{}"), 400, "1 to 1000"),
        (crowds, 413, "50000 recipients"),
    ];
    let answers = bodies.into_iter().map(|(body, status, detail)| async move {
        let (answered, text) = call(body).await;
        assert!(answered == status && text.contains(detail), "{status} {detail}: {answered} {text}");
    });
    join_all(answers).await;
    let grown = grown("bodies of 8 MiB", &node, before);
    assert!(grown < MOST, "{} MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_any_size_become_dead_letters_as_they_are() {
    let redis = RedisServer::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url())]);
    let before = peak(&node);
    let huge = format!("[{}\"user:a\"]", "\"user:a\",".repeat(100 * MIB / 9));
    event(&redis, "huge", &huge, "x");
    event(&redis, "behind", "user:alice", "behind");
    is_empty(&redis).await;
    // Binary, with more fields than anybody looks at, all of them large, and some names twice.
    let bytes: Vec<u8> = (0..=255).cycle().take(MIB / 2).collect();
    let many: Vec<(&str, &[u8])> = (0..60).map(|_| ("reason", &*bytes)).collect();
    add(&redis, &many);
    let names: Vec<String> = (0..20_000).map(|number| format!("f{number}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
    add(&redis, &many);
    add(&redis, &[("id", b"1"), ("source", b"\xff\r\n\0"), ("type", b"x"), ("to", b"user:a"), ("data", b"{}")]);
    event(&redis, "behind again", "user:alice", "behind");
    is_empty(&redis).await;
    assert_eq!(dead(node.door).await, ["malformed", "too_large", "too_large", "too_large"]);
    assert_eq!(unseen(node.door, "alice").await, 2);
    let grown = grown("an entry of 100 MiB and others", &node, before);
    assert!(grown < MOST, "{} MiB", grown / MIB);
    // They are what they were.
    let letters: Vec<String> = {
        let letters = letters(node.door).await;
        let letters = letters.as_array().unwrap().iter().rev();
        letters.map(|letter| letter["dead_id"].as_str().unwrap().to_owned()).collect()
    };
    let raw = |id: &str| {
        let script = "local e = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1][2]; local f = {}; \
                      for i = 1, #e - 6 do f[i] = redis.sha1hex(e[i]) end; \
                      return redis.sha1hex(table.concat(f)) .. ' ' .. e[#e - 5] .. e[#e - 3] .. e[#e - 1]";
        redis.cli(&["EVAL", script, "1", "gateway:events:dead", id])
    };
    let twin = |fields: &[(&str, &[u8])]| {
        let mut command: Vec<&[u8]> = vec![b"XADD", b"twin", b"*"];
        command.extend(fields.iter().flat_map(|(name, value)| [name.as_bytes(), *value]));
        command.extend([&b"reason"[..], b"r", b"deliveries", b"1", b"at", b"a"]);
        let id = redis.raw(&command);
        let script = "local e = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1][2]; local f = {}; \
                      for i = 1, #e - 6 do f[i] = redis.sha1hex(e[i]) end; \
                      return redis.sha1hex(table.concat(f)) .. ' reasondeliveriesat'";
        redis.cli(&["EVAL", script, "1", "twin", id.trim()])
    };
    assert_eq!(raw(&letters[2]), twin(&many));
    let binary: [(&str, &[u8]); 5] =
        [("id", b"1"), ("source", b"\xff\r\n\0"), ("type", b"x"), ("to", b"user:a"), ("data", b"{}")];
    assert_eq!(raw(&letters[3]), twin(&binary));
    // And they are shown cut, with their length.
    let (status, letter) = node.door.api("GET", &format!("/api/dead/{}", letters[0]), None).await;
    assert_eq!((status, &letter["cut"]), (200, &json!({"to": huge.len()})));
    assert_eq!(letter["fields"]["to"].as_str().unwrap().len(), 65_536);
    let (_, letter) = node.door.api("GET", &format!("/api/dead/{}", letters[2]), None).await;
    assert_eq!(letter["has_more_fields"], true);
    // Trying again moves them as they are; the huge one comes back as a letter of its own.
    assert_eq!(node.door.api("POST", &format!("/api/dead/{}/retry", letters[0]), None).await.0, 200);
    eventually("it is back", || async { length(&redis, "gateway:events") == 0 && dead(node.door).await.len() == 4 })
        .await;
    let (_, page) = node.door.api("GET", "/api/dead?limit=1", None).await;
    assert_eq!(page["dead"][0]["cut"], json!({"to": huge.len()}));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_end_early_and_go_on_where_they_ended() {
    let redis = RedisServer::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url())]);
    let large = vec![b'x'; 60_000];
    for _ in 0..300 {
        redis.raw(&[b"XADD", b"gateway:events:dead", b"*", b"data", &large, b"to", &large, b"reason", b"y"]);
    }
    for number in 0..120 {
        let to = if number % 2 == 0 { "room:lobby" } else { "user:alice" };
        let kind = if number % 2 == 0 { "chat" } else { "notification" };
        node.door.api("PUT", "/api/rooms/lobby", None).await;
        let body = json!({"type": kind, "to": to, "data": {"message": "x".repeat(60_000)}});
        assert_eq!(node.door.api("POST", "/api/events", Some(body)).await.0, 200);
    }
    let before = peak(&node);
    // The ids of all pages, and the longest page.
    let all = async |path: &str, list: &str, cursor: &dyn Fn(&Value) -> String| {
        let (mut ids, mut longest, mut next) = (Vec::new(), 0, String::new());
        loop {
            let (status, page) = node.door.api("GET", &format!("{path}{next}"), None).await;
            assert_eq!(status, 200);
            longest = longest.max(page.to_string().len());
            let rows = page[list].as_array().unwrap();
            ids.extend(rows.iter().map(|row| row.get("dead_id").or(row.get("seq")).unwrap().to_string()));
            if page["has_more"] != true {
                return (ids, longest);
            }
            next = cursor(&page);
        }
    };
    let last = |page: &Value| {
        let letters = page["dead"].as_array().unwrap();
        format!("&before={}", letters.last().unwrap()["dead_id"].as_str().unwrap())
    };
    let (mut letters, longest) = all("/api/dead?limit=1000", "dead", &last).await;
    letters.sort();
    letters.dedup();
    assert!(letters.len() == 300 && longest < 3 * MIB, "{} letters, {longest} bytes", letters.len());
    for (path, list) in [("/api/rooms/lobby/history", "messages"), ("/api/users/alice/notifications", "notifications")]
    {
        let seqs =
            |numbers: std::ops::RangeInclusive<u32>| numbers.map(|number| number.to_string()).collect::<Vec<_>>();
        let oldest = |page: &Value| format!("&before={}", page[list].as_array().unwrap()[0]["seq"]);
        let (mut read, longest) = all(&format!("{path}?limit=100"), list, &oldest).await;
        read.sort_by_key(|seq| seq.parse::<u32>().unwrap());
        assert_eq!(read, seqs(1..=60));
        assert!(longest < 3 * MIB, "{longest}");
    }
    let grown = grown("pages", &node, before);
    assert!(grown < MOST, "{} MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_five_times_without_an_outcome_is_given_up_unread() {
    let redis = RedisServer::start();
    redis.cli(&["XGROUP", "CREATE", "gateway:events", "gateway", "0", "MKSTREAM"]);
    let ids = ["poison", "unlucky", "new"].map(|id| event(&redis, id, "user:alice", id));
    redis.cli(&["XREADGROUP", "GROUP", "gateway", "ghost", "COUNT", "2", "STREAMS", "gateway:events", ">"]);
    for (id, times) in [(&ids[0], "5"), (&ids[1], "4")] {
        redis.cli(&["XCLAIM", "gateway:events", "gateway", "ghost", "0", id, "IDLE", "60000", "RETRYCOUNT", times]);
    }
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    is_empty(&redis).await;
    assert_eq!(dead(node.at()).await, ["gave_up"]);
    assert_eq!(node.metric(r#"gateway_stream_dead_total{reason="gave_up"}"#).await, 1.0);
    let (_, page) = node.at().api("GET", "/api/dead", None).await;
    let fields = &page["dead"][0]["fields"];
    assert_eq!((&fields["id"], &fields["deliveries"]), (&json!("poison"), &json!("5")));
    assert_eq!(unseen(node.at(), "alice").await, 2);
}

fn times_taken(redis: &RedisServer) -> Vec<String> {
    let pending = redis.cli(&["XPENDING", "gateway:events", "gateway", "-", "+", "10"]);
    // id, consumer, idle, times
    pending.lines().skip(3).step_by(4).map(|line| line.trim().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_the_database_and_for_the_dead_letters_is_nobodys_fault() {
    let redis = RedisServer::start();
    let mut postgres = testkit::postgres::Postgres::start();
    let settings = [("redis-url", redis.url()), ("database-url", postgres.url()), ("node-id", "one".to_owned())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut node = NodeProcess::start(&settings);
    // The key of the dead letters is of another type.
    redis.cli(&["SET", "gateway:events:dead", "mine"]);
    add(&redis, &[("only", b"nonsense")]);
    eventually("it could not be written", || async {
        node.door.metric(r#"gateway_stream_postponed_total{reason="no_dead_letter"}"#).await > 0.0
    })
    .await;
    assert_eq!((length(&redis, "gateway:events"), redis.cli(&["GET", "gateway:events:dead"]).trim()), (1, "mine"));
    eventually("it does not count", || async { times_taken(&redis) == ["0"] }).await;
    assert!(node.log().contains("task=\"dead_letters\""), "{}", node.log());
    // A database that goes away while an entry is being stored.
    postgres.kill9();
    event(&redis, "waits", "user:alice", "waits");
    eventually("it does not count either", || async {
        let taken = times_taken(&redis);
        taken.is_empty() || taken.iter().all(|times| times == "0")
    })
    .await;
    node.process.kill();
    redis.cli(&["DEL", "gateway:events:dead"]);
    postgres.restart();
    node.process.start();
    is_empty(&redis).await;
    eventually("the node is ready", || async { node.door.internal_get("/readyz").await.0 == 200 }).await;
    assert_eq!(dead(node.door).await, ["missing_field"]);
    assert_eq!(unseen(node.door, "alice").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_loses_no_dead_letter() {
    let redis = RedisServer::start();
    let mut node = NodeProcess::start(&[("redis-url", &redis.url())]);
    event(&redis, "first", "user:alice", "the group is there");
    eventually("the stream is read", || async { unseen(node.door, "alice").await == 1 }).await;
    node.process.pause();
    add(&redis, &[("only", b"nonsense")]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    node.process.resume();
    eventually("it could not be written", || async {
        node.door.metric(r#"gateway_stream_postponed_total{reason="no_dead_letter"}"#).await > 0.0
    })
    .await;
    assert_eq!(length(&redis, "gateway:events"), 1);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    // It is tried again when it was idle for long.
    is_empty(&redis).await;
    assert_eq!(dead(node.door).await, ["missing_field"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_is_read_and_relieved_of_its_events() {
    let redis = RedisServer::start();
    let mut node = NodeProcess::start(&[("redis-url", &redis.url())]);
    event(&redis, "first", "user:alice", "the group is there");
    is_empty(&redis).await;
    let full = |is_full: bool| {
        redis.cli(&["CONFIG", "SET", "maxmemory", if is_full { "1" } else { "0" }]);
    };
    node.process.pause();
    event(&redis, "second", "user:alice", "written while there was memory");
    full(true);
    node.process.resume();
    is_empty(&redis).await;
    node.process.pause();
    full(false);
    event(&redis, "third", "user:alice", "read on another connection");
    full(true);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    node.process.resume();
    is_empty(&redis).await;
    assert_eq!(redis.cli(&["XPENDING", "gateway:events", "gateway"]).split_whitespace().next(), Some("0"));
    assert_eq!(unseen(node.door, "alice").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_the_database_refuses_stays_and_those_behind_it_go_on() {
    let redis = RedisServer::start();
    let (node, directory) = node_on_disk(&[("redis-url", &redis.url())]);
    // As a table does that is broken for some rows.
    let database = directory.path().join("gateway.db");
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON gateway_notifications WHEN NEW.message = 'refused' \
                  BEGIN SELECT RAISE(ABORT, 'broken'); END";
    let done = std::process::Command::new("python3")
        .args(["-c", "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute(sys.argv[2])"])
        .args([database.to_str().unwrap(), refuse])
        .status();
    assert!(done.unwrap().success());
    event(&redis, "refused", "user:alice", "refused");
    eventually("it is left for later", || async {
        node.door.metric(r#"gateway_stream_postponed_total{reason="not_stored"}"#).await > 0.0
    })
    .await;
    event(&redis, "behind", "user:bob", "behind");
    eventually("what is behind is stored", || async { unseen(node.door, "bob").await == 1 }).await;
    eventually("it is taken out of the stream", || async { length(&redis, "gateway:events") == 1 }).await;
    assert_eq!(times_taken(&redis), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_a_cluster_go_from_server_to_server() {
    let cluster = Cluster::start();
    let node = TestNode::start(&[("redis-url", &cluster.url())]).await;
    let at = |key: &str| cluster.node(cluster.primary_of(key));
    let events = at("gateway:events");
    let id = add(events, &[("only", b"\xff\0")]);
    assert!(!id.starts_with('-'), "{id}");
    eventually("it is a dead letter", || async { length(at("gateway:events:dead"), "gateway:events:dead") == 1 }).await;
    eventually("it is gone", || async { length(events, "gateway:events") == 0 }).await;
    let (_, page) = node.at().api("GET", "/api/dead", None).await;
    let id = page["dead"][0]["dead_id"].as_str().unwrap();
    assert_eq!(node.at().api("POST", &format!("/api/dead/{id}/retry"), None).await.0, 200);
    eventually("it is back", || async {
        let (_, page) = node.at().api("GET", "/api/dead", None).await;
        page["dead"].as_array().unwrap().iter().any(|letter| letter["dead_id"] != id)
    })
    .await;
    assert_eq!(node.at().api("GET", "/api/dead", None).await.1["dead"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_too_large_together_are_read_one_by_one() {
    let redis = RedisServer::start();
    redis.cli(&["XGROUP", "CREATE", "gateway:events", "gateway", "0", "MKSTREAM"]);
    let text = "x".repeat(60_000);
    for number in 0..100 {
        event(&redis, &number.to_string(), "user:alice", &text);
    }
    let (node, _directory) = node_on_disk(&[("redis-url", &redis.url())]);
    is_empty(&redis).await;
    assert_eq!((unseen(node.door, "alice").await, length(&redis, "gateway:events:dead")), (json!(100), 0));
    let grown = grown("6 MB in a hundred entries", &node, 0);
    assert!(grown < 2 * MOST, "{} MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_many_small_fields_do_not_fill_the_memory() {
    let redis = RedisServer::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url())]);
    event(&redis, "first", "user:alice", "first");
    is_empty(&redis).await;
    let before = peak(&node);
    for _ in 0..3 {
        add(&redis, &vec![("", &b""[..]); 300_000]);
    }
    is_empty(&redis).await;
    assert_eq!(dead(node.door).await, ["too_large"; 3]);
    let grown = grown("300,000 empty fields", &node, before);
    assert!(grown < MOST / 2, "{} MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_no_script_can_write_whole_says_so_and_is_not_lost() {
    let redis = RedisServer::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url())]);
    let names: Vec<String> = (0..4000).map(|number| format!("f{number}")).collect();
    let value = vec![b'x'; 2000];
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &*value)).collect();
    add(&redis, &many);
    is_empty(&redis).await;
    let (_, page) = node.door.api("GET", "/api/dead", None).await;
    let letter = &page["dead"][0];
    let reason = letter["fields"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("too_large: ") && reason.contains("the first 3497 of 4000 fields"), "{reason}");
    assert!(letter["has_more_fields"] == true && letter["fields"]["deliveries"] == "2", "{letter}");
    // One that somebody has written is not moved in part.
    let mut command: Vec<&[u8]> = vec![b"XADD", b"gateway:events:dead", b"9999999999999-0"];
    command.extend(many.iter().flat_map(|(name, value)| [name.as_bytes(), *value]));
    redis.raw(&command);
    let (status, problem) = node.door.api("POST", "/api/dead/9999999999999-0/retry", None).await;
    assert_eq!((status, length(&redis, "gateway:events:dead")), (413, 2), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_run_scripts_a_large_entry_stays_and_those_behind_it_go_on() {
    let redis = RedisServer::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url())]);
    redis.cli(&["ACL", "SETUSER", "default", "-eval"]);
    let huge = vec![b'x'; 5 * MIB];
    add(&redis, &[("data", &huge)]);
    add(&redis, &[("only", b"nonsense")]);
    event(&redis, "behind", "user:alice", "behind");
    eventually("it stays alone", || async { length(&redis, "gateway:events") == 1 }).await;
    assert_eq!(dead(node.door).await, ["missing_field"]);
    assert_eq!(unseen(node.door, "alice").await, 1);
    assert!(node.door.metric(r#"gateway_stream_postponed_total{reason="no_dead_letter"}"#).await > 0.0);
    assert!(node.log().contains("needs the right to EVAL"), "{}", node.log());
    eventually("it does not count", || async { times_taken(&redis) == ["1"] }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_the_beginnings_of_what_is_too_large_and_all_of_what_was_given_up() {
    let cluster = Cluster::start();
    let at = |key: &str| cluster.node(cluster.primary_of(key));
    let (events, graveyard) = (at("gateway:events"), at("gateway:events:dead"));
    events.cli(&["XGROUP", "CREATE", "gateway:events", "gateway", "0", "MKSTREAM"]);
    let poison = event(events, "poison", "user:alice", "poison");
    events.cli(&["XREADGROUP", "GROUP", "gateway", "ghost", "STREAMS", "gateway:events", ">"]);
    events.cli(&["XCLAIM", "gateway:events", "gateway", "ghost", "0", &poison, "IDLE", "60000", "RETRYCOUNT", "5"]);
    let node = TestNode::start(&[("redis-url", &cluster.url())]).await;
    is_empty(events).await;
    let huge = vec![b'x'; 5 * MIB];
    add(events, &[("data", &huge), ("id", b"huge")]);
    is_empty(events).await;
    assert_eq!(dead(node.at()).await, ["too_large", "gave_up"]);
    let (_, page) = node.at().api("GET", "/api/dead", None).await;
    let fields = &page["dead"][0]["fields"];
    assert_eq!((fields["data"].as_str().unwrap().len(), &fields["id"]), (65_536, &json!("huge")));
    assert!(fields["reason"].as_str().unwrap().contains("of 2 fields 2 are kept, of each at most 65536 bytes"));
    // What does not fit through the node stays where it is.
    graveyard.raw(&[b"XADD", b"gateway:events:dead", b"9999999999999-0", b"data", &huge]);
    let (_, letter) = node.at().api("GET", "/api/dead/9999999999999-0", None).await;
    assert_eq!(letter["cut"], json!({"data": huge.len()}));
    assert_eq!(node.at().api("POST", "/api/dead/9999999999999-0/retry", None).await.0, 413);
    assert_eq!(length(graveyard, "gateway:events:dead"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_are_counted_logged_and_slowed_and_the_right_one_is_not() {
    let node = NodeProcess::start(&[]);
    let ask = async |key: &str| {
        let header = format!("Bearer {key}");
        node.door.api_with("GET", "/api/nodes", None, &[("authorization", &header)]).await.0
    };
    let started = std::time::Instant::now();
    let wrong = async {
        let wrong: Vec<String> = (0..50).map(|number| format!("wrong{number}")).collect();
        let answers = join_all(wrong.iter().map(|key| ask(key))).await;
        assert_eq!(answers, [401; 50]);
        started.elapsed()
    };
    let right = async {
        for _ in 0..5 {
            assert_eq!(ask("key").await, 200);
        }
        started.elapsed()
    };
    let (wrong, right) = tokio::join!(wrong, right);
    assert!(wrong >= Duration::from_secs(5) && right < wrong, "{wrong:?} {right:?}");
    assert_eq!(node.door.metric(r#"gateway_api_refused_total{reason="key"}"#).await, 50.0);
    let lines = node.log().lines().filter(|line| line.contains("refused: the API key is missing or wrong")).count();
    assert!((1..=3).contains(&lines) && node.log().contains("peer=127.0.0.1:"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_of_an_envelope_mean_nothing() {
    let node = TestNode::start(&[]).await;
    let (door, mut alice) = (node.at(), node.at().connect("/ws/notifications/", "alice").await);
    let body = json!({
        "type": "notification", "to": "user:alice", "data": {"message": "hi", "more": {"a": [1]}},
        "expires": "never", "meta": {"a": [1, null]}, "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "time": "2026-11-24T20:15:00Z", "expires_at": "2999-01-01T00:00:00Z",
    });
    for (body, id) in [(body.clone(), "first"), (json!([body]), "second")] {
        let headers = [("authorization", "Bearer key"), ("idempotency-key", id)];
        let (status, answer) = door.api_with("POST", "/api/events", Some(body.clone()), &headers).await;
        assert_eq!((status, &answer["results"][0]["repeated"]), (200, &json!(false)));
        assert_eq!(alice.frame().await["message"], "hi");
        let (_, answer) = door.api_with("POST", "/api/events", Some(body), &headers).await;
        assert_eq!(answer["results"][0]["repeated"], true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_read_as_browsers_and_python_write_them() {
    let node = TestNode::start(&[]).await;
    let mut alice = node.at().connect("/ws/notifications/", "alice").await;
    let envelope = r#"{"type":"notification","to":"user:alice","data":{"message":"cut \ud83d","n":NaN}}"#;
    for body in [envelope.to_owned(), format!("\u{feff}{envelope}"), format!("[{envelope}]")] {
        let request = http_client().post(format!("http://{}/api/events", node.at().internal)).bearer_auth("key");
        let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(alice.frame().await["message"], "cut \u{fffd}");
    }
}
