//! What waits has a bound in bytes: a database that hangs, readers that do not read, and a storm of connects do not
//! fill the memory, and the node says what it refuses.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which tell figures")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Client, Door, Heard, NodeProcess, TestNode, eventually, eventually_within, http_client, token};
use gateway::Event;
use serde_json::{Value, json};
use testkit::cgroup::Cgroup;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

const MIB: u64 = 1 << 20;

/// Sockets that send, how much in a frame, and how many of those a second: a little less than each may.
const SENDERS: usize = 100;
const TEXT: usize = 65_000;
const PER_SECOND: f64 = 45.0;
const FLOOD: Duration = Duration::from_secs(8);

/// Long enough for a busy machine to store what is for crowds.
const CROWDED: Duration = Duration::from_secs(400);

/// The most memory the process has had.
fn peak(node: &NodeProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// A text frame as a client sends it; masked with zeros, so that it can be shared.
fn client_frame(text: &str) -> Arc<[u8]> {
    let mut frame = vec![0x81, 0x80 | 127];
    frame.extend((text.len() as u64).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    frame.into()
}

/// All clients send at the rate that each may, as far as the node reads them.
async fn flood(clients: Vec<TcpStream>) -> Vec<TcpStream> {
    let end = Instant::now() + FLOOD;
    let mut tasks = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        let room = format!("room-{}", number % 10);
        let frame = client_frame(&json!({"cate": "chat", "group_name": room, "message": "x".repeat(TEXT)}).to_string());
        tasks.spawn(async move {
            let mut ticks = interval(Duration::from_secs_f64(1.0 / PER_SECOND));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // A node that does not read lets the time pass.
            let _ = timeout_at(end, async {
                loop {
                    ticks.tick().await;
                    client.write_all(&frame).await.unwrap();
                }
            })
            .await;
            client
        });
    }
    tasks.join_all().await
}

async fn senders(door: Door) -> Vec<TcpStream> {
    let mut clients = Vec::new();
    for number in 0..SENDERS {
        clients.push(door.join(&format!("user-{number}"), &format!("room-{}", number % 10)).await.into_tcp());
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_at_the_allowed_rate_do_not_fill_the_memory_while_the_database_hangs() {
    let mut postgres = Postgres::start();
    let database = postgres.fresh_database();
    let node = NodeProcess::start(&[("database-url", &database)]);
    let clients = senders(node.door).await;
    let before = peak(&node);
    postgres.pause();
    let clients = flood(clients).await;
    let (after, queued) = (peak(&node), node.door.metric("gateway_write_queue_bytes").await);
    postgres.resume();
    println!("peak memory {} MiB, {} MiB before; {queued} bytes waited", after / MIB, before / MIB);
    assert!(queued <= 64.0 * MIB as f64 && node.door.metric("gateway_write_waits_total").await > 0.0);
    assert!(after - before < 192 * MIB, "{} MiB", (after - before) / MIB);
    eventually_within(Duration::from_secs(60), "the database is used again", || async {
        node.door.metric("gateway_write_queue_bytes").await == 0.0
    })
    .await;
    let mut alice = node.door.join("alice", "quiet").await;
    assert_eq!(alice.say_acked("quiet", "still here", "1").await["type"], "ack");
    drop(clients);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_to_be_stored_in_is_told_so_and_what_was_taken_is_stored() {
    const ROOM: &str = "lobby";
    let mut postgres = Postgres::start();
    let database = postgres.fresh_database();
    let own = [("database-url", database.as_str()), ("limits.write_queue_bytes", "100000")];
    let node = TestNode::start(&own).await;
    let mut clients = Vec::new();
    for number in 0..6 {
        clients.push(node.join(&format!("user-{number}"), ROOM).await);
    }
    postgres.pause();
    let text = "x".repeat(30_000);
    let mut refused = 0;
    let waiting = async || node.metric("gateway_write_queue_bytes").await;
    let ask = |id: &str| json!({"cate": "chat", "group_name": ROOM, "message": text, "client_id": id});
    for client in &mut clients[..3] {
        let before = waiting().await;
        client.send(ask("1")).await;
        eventually("it waits to be stored", || async { waiting().await > before }).await;
        // Not read from until the first is stored, although there may be room.
        client.send(ask("2")).await;
    }
    for client in &mut clients[3..] {
        client.send(ask("1")).await;
    }
    for client in &mut clients[3..] {
        let error = client.until(|frame| frame["client_id"] == "1").await;
        assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("error"), Some("unavailable")));
        refused += 1;
    }
    assert!(node.metric("gateway_writes_refused_total").await >= f64::from(refused));
    assert!(node.metric("gateway_write_waits_total").await >= 3.0);
    postgres.resume();
    for client in &mut clients[..3] {
        for id in ["1", "2"] {
            assert_eq!(client.until(|frame| frame["client_id"] == id).await["type"], "ack");
        }
    }
    eventually("nothing waits", || async { node.metric("gateway_write_queue_bytes").await == 0.0 }).await;
}

/// Long messages: pages, resumes and what fills holes are bounded in bytes, and nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn long_messages_come_in_short_pages_without_a_hole() {
    const MESSAGES: u64 = 60;
    let node = TestNode::start(&[("limits.recent_bytes", "0")]).await;
    node.join("alice", "lobby").await.close().await;
    let text = "x".repeat(60_000);
    for number in 1..=MESSAGES {
        let event =
            json!({"type": "chat", "to": "room:lobby", "data": {"message": text, "from_user": number.to_string()}});
        assert_eq!(node.at().api("POST", "/api/events", Some(event)).await.0, 200);
    }
    let mut alice = node.join("alice", "lobby").await;
    let (mut before, mut seqs) = (Value::Null, Vec::new());
    loop {
        let mut ask = json!({"cate": "history", "group_name": "lobby", "limit": 100});
        if !before.is_null() {
            ask["before"] = before;
        }
        let page = alice.ask(ask).await;
        assert!(page.to_string().len() < 400_000, "a page is bounded");
        let found: Vec<u64> =
            page["messages"].as_array().unwrap().iter().map(|row| row["seq"].as_u64().unwrap()).collect();
        before = json!(found[0]);
        seqs.splice(0..0, found);
        if page["has_more"] != true {
            break;
        }
    }
    assert_eq!(seqs, (1..=MESSAGES).collect::<Vec<_>>());

    let mut bob = node.at().v1("/ws/chat/lobby/", "bob").await;
    bob.send(json!({"cate": "resume", "rooms": {"lobby": {"seq": 0}}})).await;
    for seq in 1..=MESSAGES {
        assert_eq!(bob.until(|frame| frame["type"] == "chat").await["seq"], seq);
    }
    let resumed = bob.until(|frame| frame["type"] == "resumed").await;
    assert_eq!(resumed["rooms"]["lobby"], true, "{resumed}");
}

/// A client that takes hardly anything: its kernel keeps little, and so does the node's for it.
async fn slow_reader(door: Door, user: &str, room: &str) -> Result<TcpStream, u16> {
    slow_reader_with(door, user, room, "").await
}

/// The same with a header more.
async fn slow_reader_with(door: Door, user: &str, room: &str, header: &str) -> Result<TcpStream, u16> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut stream = tokio::net::TcpSocket::from_std_stream(socket.into()).connect(door.public).await.unwrap();
    let request = format!(
        "GET /ws/chat/{room}/ HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {}\r\n{header}\r\n",
        door.public,
        token(user)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(tokio::time::timeout(common::PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    match answer[9..12].parse().unwrap() {
        101 => Ok(stream),
        503 => {
            assert!(answer.to_lowercase().contains("retry-after: "), "{answer}");
            Err(503)
        }
        status => Err(status),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_reading_while_it_catches_up_is_closed_as_dead() {
    let limits = [("limits.outbox_bytes", "200000"), ("limits.ping_seconds", "1"), ("limits.pong_seconds", "3")];
    let node = TestNode::start(&[&limits[..], &[("limits.frames_per_second", "0")]].concat()).await;
    let mut alice = node.join("alice", "lobby").await;
    for n in 0..100 {
        alice.say_acked("lobby", &"x".repeat(60_000), &n.to_string()).await;
    }
    alice.close().await;
    let header = "Sec-WebSocket-Protocol: gateway.v1\r\n";
    let mut reader = slow_reader_with(node.at(), "bob", "lobby", header).await.unwrap();
    // Masked with nothing.
    let resume = br#"{"cate":"resume","rooms":{"lobby":{"seq":0}}}"#;
    reader.write_all(&[&[0x81, 0x80 | resume.len() as u8, 0, 0, 0, 0], &resume[..]].concat()).await.unwrap();
    let open = async || node.at().api("GET", "/api/users/bob", None).await.1["sockets"].as_array().unwrap().len();
    assert_eq!(open().await, 1);
    eventually("the node gives it up", || async { open().await == 0 }).await;
    assert!(node.metric(r#"gateway_connections_closed_total{code="4000"}"#).await == 1.0);
    // Who takes little, but steadily, goes on.
    let mut slow = slow_reader_with(node.at(), "carol", "lobby", header).await.unwrap();
    slow.write_all(&[&[0x81, 0x80 | resume.len() as u8, 0, 0, 0, 0], &resume[..]].concat()).await.unwrap();
    let (mut taken, mut buffer) = (0, vec![0; 100_000]);
    let begin = Instant::now();
    while taken < 100 * 60_000 {
        let bytes = tokio::time::timeout(common::PATIENCE, slow.read(&mut buffer)).await.unwrap().unwrap();
        assert!(bytes > 0, "closed after {taken} bytes");
        taken += bytes;
        // Longer than a ping and its answer may take.
        tokio::time::sleep_until(begin + Duration::from_secs(9) * (taken as u32 / 1000) / 6000).await;
    }
}

/// Sends each reader events that are its own until the node has refused somebody for want of memory and sent slow
/// readers away. The publisher is another node.
async fn flood_readers(node: &mut NodeProcess, publisher: &TestNode, readers: usize) -> Vec<TcpStream> {
    let mut sockets = Vec::new();
    for number in 0..readers {
        sockets.push(slow_reader(node.door, &format!("reader-{number}"), "readers").await.unwrap());
    }
    let publisher = publisher.running.node();
    let event =
        Event::new("gateway.send").with("text", json!({"type": "site", "text": "x".repeat(60_000)}).to_string());
    let deadline = Instant::now() + Duration::from_secs(240);
    let mut refused = false;
    // 3 MB of events between two looks of the node at its memory, which are 50 ms apart.
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !(refused && node.door.metric("gateway_memory_closed_total").await > 0.0) {
        assert!(Instant::now() < deadline && node.process.running(), "{}", node.log());
        for number in 0..readers {
            let group = publisher.names.user(&format!("reader-{number}")).unwrap();
            while publisher.layer.group_send_later(&group, &event).is_err() {
                publisher.layer.ping().await.unwrap();
            }
            // Not more than the layer's own queues hold on the way.
            if number % 50 == 49 {
                looks.tick().await;
                publisher.layer.ping().await.unwrap();
                // A storm of connects at the same time.
                let mut storm = JoinSet::new();
                for visitor in 0..20 {
                    let door = node.door;
                    storm.spawn(async move { slow_reader(door, &format!("visitor-{visitor}"), "lobby").await.err() });
                }
                refused |= storm.join_all().await.contains(&Some(503));
            }
        }
    }
    sockets
}

/// Entries of the stream and calls of the API, each with 64 KB of text for 1,000 users, at the same time.
async fn flood_with_crowds(door: Door, redis: &RedisServer) {
    let (entries, calls) = if std::env::var_os("GATEWAY_LONG").is_some() { (20, 24) } else { (3, 4) };
    let users: Vec<String> = (0..1000).map(|number| format!("user:u{number}")).collect();
    let (to, data) = (json!(users), json!({"message": "x".repeat(TEXT)}));
    let (to_text, data_text) = (to.to_string(), data.to_string());
    for number in 0..entries {
        let id = number.to_string();
        let fields =
            [["id", &id], ["source", "shop"], ["type", "notification"], ["to", &to_text], ["data", &data_text]];
        let entry = ["XADD", "gateway:events", "*"].into_iter().chain(fields.into_iter().flatten());
        redis.raw(&entry.map(str::as_bytes).collect::<Vec<_>>());
    }
    let mut publishers = JoinSet::new();
    for number in 0..calls {
        let call = json!({"id": format!("call-{number}"), "type": "notification", "to": to, "data": data});
        publishers.spawn(async move {
            // As a publisher does: again until it is stored.
            let stored = || async {
                let call = http_client().post(format!("http://{}/api/events", door.internal)).json(&call);
                call.bearer_auth("key").timeout(CROWDED).send().await.unwrap().status() == 200
            };
            eventually_within(CROWDED, "a call is stored", stored).await;
        });
    }
    publishers.join_all().await;
    eventually_within(CROWDED, "the stream is empty", || async {
        redis.cli(&["XLEN", "gateway:events"]).trim() == "0"
    })
    .await;
    assert_eq!(redis.cli(&["EXISTS", "gateway:events:dead"]).trim(), "0");
    let inbox = door.api("GET", "/api/users/u999/notifications?limit=1", None).await.1;
    assert_eq!(inbox["unseen"], entries + calls);
}

/// What both tests of N5 see of a node that had too much memory.
async fn has_survived(mut node: NodeProcess, readers: Vec<TcpStream>) -> NodeProcess {
    assert!(node.process.running(), "{}", node.log());
    let rejected = node.door.metric("gateway_handshakes_rejected_total{reason=\"memory\"}").await;
    let closed = node.door.metric("gateway_memory_closed_total").await;
    println!("{rejected} refused, {closed} slow readers closed, peak {} MiB", peak(&node) / MIB);
    assert!(rejected > 0.0 && closed > 0.0);
    drop(readers);
    let door = node.door;
    eventually_within(Duration::from_secs(60), "there is memory again", || async {
        slow_reader(door, "carol", "lobby").await.is_ok()
    })
    .await;
    let mut alice = door.join("alice", "lobby").await;
    assert_eq!(alice.say_acked("lobby", "still here", "1").await["type"], "ack");
    let log = node.log();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    let (begins, ends) = (lines("too much memory"), lines("memory is under its limit again"));
    assert!(begins > 0 && (begins == ends || begins == ends + 1), "{begins} {ends}");
    node.process.signal("TERM");
    assert_eq!(closed_with(&mut alice).await, 1012);
    node
}

async fn closed_with(client: &mut Client) -> u16 {
    loop {
        match client.hear().await {
            Heard::Closed(code, _) => return code,
            Heard::Gone => return 1006,
            Heard::Frame(_) => {}
        }
    }
}

/// N5: a database that hangs, 500 slow readers and a storm of connects, in a cgroup of 256 MiB: it is not killed.
#[tokio::test(flavor = "multi_thread")]
async fn n5_a_node_in_a_small_cgroup_refuses_and_is_not_killed() {
    const READERS: usize = 500;
    let cgroup = Cgroup::with_memory(256 * MIB);
    let (redis, mut postgres) = (RedisServer::start(), Postgres::start());
    let database = postgres.fresh_database();
    let settings = [("redis-url", redis.url()), ("database-url", database)];
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut node = NodeProcess::start_by(cgroup.command(), &settings);

    let clients = senders(node.door).await;
    postgres.pause();
    let clients = flood(clients).await;
    assert!(node.process.running(), "killed by the flood of writes");
    println!("after the flood of writes: peak {} MiB", peak(&node) / MIB);
    postgres.resume();
    drop(clients);
    eventually_within(Duration::from_secs(60), "all is written", || async {
        node.door.metric("gateway_write_queue_bytes").await == 0.0
    })
    .await;

    assert_eq!(node.door.metric("gateway_memory_limit_bytes").await as u64, 256 * MIB / 10 * 9);
    flood_with_crowds(node.door, &redis).await;
    assert!(node.process.running(), "killed by what was for crowds");
    println!("after entries and calls for crowds: peak {} MiB", peak(&node) / MIB);
    let publisher = TestNode::start(&settings).await;
    let readers = flood_readers(&mut node, &publisher, READERS).await;
    let node = has_survived(node, readers).await;
    println!("the cgroup's peak {} MiB", cgroup.peak() / MIB);
    assert_eq!(cgroup.kills(), 0);
    drop(node);
}

/// N5: the same with a limit of the settings, wherever the test runs.
#[tokio::test(flavor = "multi_thread")]
async fn n5_a_node_keeps_to_the_memory_that_the_settings_allow() {
    const READERS: usize = 200;
    const LIMIT: u64 = 160 * MIB;
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let limit = LIMIT.to_string();
    let settings = [("redis-url", redis.url()), ("database-url", database)];
    let mut settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let publisher = TestNode::start(&settings).await;
    settings.push(("limits.memory_bytes", &limit));
    let mut node = NodeProcess::start(&settings);
    let readers = flood_readers(&mut node, &publisher, READERS).await;
    let node = has_survived(node, readers).await;
    assert!(peak(&node) < LIMIT + LIMIT / 9, "{} MiB", peak(&node) / MIB);
}
