//! Rows of `docs/faults.md` that need a whole node, and of which no other file is.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, some of which tell figures")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Door, Heard, TestNode, eventually};
use proptest::strategy::{Strategy, ValueTree as _};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::proxy::ChaosProxy;
use testkit::redis::RedisServer;
use tokio::task::JoinSet;

// ---- R4: Redis that takes two seconds for a command ----

/// Until then a client may be without a ping that comes every second.
const PING_LATE: Duration = Duration::from_secs(4);

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Listens for so long: what was heard of the lobby, and the longest time without a ping.
async fn listen(mut client: Client, until: Instant) -> (Client, Vec<u64>, Duration) {
    let (mut seqs, mut pings, mut last, mut longest) = (Vec::new(), client.pings, Instant::now(), Duration::ZERO);
    while Instant::now() < until {
        match client.hear_within(Duration::from_millis(50)).await {
            Some(Heard::Frame(frame)) => seqs.extend(frame["seq"].as_u64()),
            None => {}
            ended => panic!("{ended:?}"),
        }
        if client.pings > pings {
            (pings, last) = (client.pings, Instant::now());
        }
        longest = longest.max(last.elapsed());
    }
    (client, seqs, longest)
}

/// R4: what is said is stored and acked, pings come on time, and no task is left waiting behind the others.
#[tokio::test(flavor = "multi_thread")]
async fn r4_a_slow_redis_delays_no_ping_and_no_ack_and_no_task_piles_up() {
    const LISTENERS: usize = 20;
    let slowness = Duration::from_secs(10);
    let redis = Arc::new(RedisServer::start());
    let node = TestNode::start(&[
        ("redis-url", &redis.url()),
        ("limits.ping_seconds", "1"),
        ("limits.pong_seconds", "9"),
        ("limits.frames_per_second", "0"),
    ])
    .await;
    let mut speaker = node.at().v1("/ws/chat/lobby/", "speaker").await;
    let mut listeners = Vec::new();
    for number in 0..LISTENERS {
        let mut listener = node.join(&format!("listener-{number}"), "lobby").await;
        listener.patience = Duration::from_secs(30);
        listeners.push(listener);
    }
    let quiet = tasks();
    let slow = Arc::new(AtomicBool::new(true));
    let nemesis = {
        let (redis, slow) = (redis.clone(), slow.clone());
        std::thread::spawn(move || {
            while slow.load(Ordering::SeqCst) {
                redis.cli(&["CLIENT", "PAUSE", "1800", "ALL"]);
            }
        })
    };
    let until = Instant::now() + slowness;
    let mut listening = JoinSet::new();
    for listener in listeners {
        listening.spawn(listen(listener, until));
    }
    // New ones want groups joined, which takes an answer of Redis: some are let in and some refused, and none stays.
    let mut knocking = JoinSet::new();
    for number in 0..50 {
        let door = node.at();
        knocking.spawn(async move {
            let bearer = format!("Bearer {}", common::token(&format!("new-{number}")));
            let path = format!("/ws/chat/room-{}/", number % 5);
            door.knock_patiently(&path, &[("authorization", &bearer)], Duration::from_secs(20)).await.is_some()
        });
    }
    let (mut said, mut slowest, mut most) = (0_u64, Duration::ZERO, 0);
    while Instant::now() < until {
        said += 1;
        let began = Instant::now();
        let ack = speaker.say_acked("lobby", &format!("{said}"), &said.to_string()).await;
        assert_eq!(ack["type"], "ack", "{ack}");
        slowest = slowest.max(began.elapsed());
        most = most.max(tasks().saturating_sub(listening.len() + knocking.len()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut late = Duration::ZERO;
    let mut heard = Vec::new();
    for (listener, seqs, longest) in listening.join_all().await {
        late = late.max(longest);
        heard.push((listener, seqs));
    }
    let let_in = knocking.join_all().await.into_iter().filter(|let_in| *let_in).count();
    slow.store(false, Ordering::SeqCst);
    nemesis.join().unwrap();
    println!(
        "{said} messages, the slowest ack {slowest:?}, the longest time without a ping {late:?}, \
         {let_in} of 50 let in, tasks {quiet} before and {most} at most"
    );
    assert!(slowest < Duration::from_secs(5), "an ack waits for the database alone: {slowest:?}");
    assert!(late < PING_LATE, "{late:?}");
    // A connection has a task, and one that waits for its groups may have another.
    assert!(most < quiet + 150, "{quiet} tasks before, {most} while Redis was slow");
    for (mut listener, mut seqs) in heard {
        while seqs.last() != Some(&said) {
            seqs.extend(listener.until(|frame| frame["type"] == "chat").await["seq"].as_u64());
        }
        assert_eq!(seqs, (1..=said).collect::<Vec<_>>(), "all, in order, once");
    }
    eventually("the tasks have ended", || async { tasks() <= quiet + 5 }).await;
}

// ---- D3: a firewall forgets the connections to the database ----

/// D3: who speaks meanwhile is told in time, nothing acked is lost, and it is over by itself.
#[tokio::test(flavor = "multi_thread")]
async fn d3_a_node_whose_database_connections_lead_nowhere_finds_new_ones() {
    let postgres = Postgres::shared();
    let (database, port) = (postgres.fresh_database(), postgres.port());
    let link = ChaosProxy::to(port);
    let url = database.replace(&format!(":{port}/"), &format!(":{}/", link.port()));
    let node = TestNode::start(&[("database-url", url.as_str()), ("limits.frames_per_second", "0")]).await;
    let mut alice = node.at().v1("/ws/chat/lobby/", "alice").await;
    let mut bob = node.at().v1("/ws/chat/lobby/", "bob").await;
    (alice.patience, bob.patience) = (Duration::from_secs(30), Duration::from_secs(120));
    // He reads all the time: who does not answer pings is closed.
    let (typing, mut heard) = tokio::sync::mpsc::channel(1);
    let mut bobs = JoinSet::new();
    bobs.spawn(async move {
        loop {
            bob.until(|frame| frame["type"] == "typing").await;
            typing.send(()).await.unwrap();
        }
    });
    let mut next = 0;
    let (mut acked, mut refused, mut longest) = (0, 0, Duration::ZERO);
    for _ in 0..3 {
        for _ in 0..10 {
            next += 1;
            assert_eq!(alice.say_acked("lobby", &next.to_string(), &next.to_string()).await["type"], "ack");
            acked += 1;
        }
        link.strand();
        next += 1;
        let began = Instant::now();
        // The same client_id until it is acked: stored once, whatever became of the first.
        while alice.say_acked("lobby", &next.to_string(), &next.to_string()).await["type"] != "ack" {
            refused += 1;
        }
        acked += 1;
        longest = longest.max(began.elapsed());
        // Live events need no database.
        alice.send(json!({"cate": "typing", "group_name": "lobby"})).await;
        tokio::time::timeout(Duration::from_secs(10), heard.recv()).await.expect("typing in time").unwrap();
    }
    println!("{acked} acked, {refused} refused, the longest took {longest:?}");
    // A call may take 12 s, and the next one finds new connections.
    assert!(longest < Duration::from_secs(20), "{longest:?}");
    assert!(node.metric("gateway_store_reconnects_total").await >= 1.0);
    let history = alice.ask(json!({"cate": "history", "group_name": "lobby", "limit": 100})).await;
    let texts: Vec<_> = history["messages"].as_array().unwrap().iter().map(|row| row["message"].clone()).collect();
    assert_eq!(texts, (1..=next).map(|number: u64| json!(number.to_string())).collect::<Vec<_>>());
    assert_eq!(node.metric("gateway_connections").await, 2.0);
}

// ---- S3: forged places ----

/// What a client hears up to the answer to its frame.
async fn answered(client: &mut Client, frame: &str) -> (Vec<Value>, Value) {
    client.send_text(frame).await;
    let mut before = Vec::new();
    loop {
        let frame = client.frame().await;
        match frame["type"].as_str() {
            Some("resumed" | "error") => return (before, frame),
            _ => before.push(frame),
        }
    }
}

/// Places that nobody was ever given, as JSON.
fn forged(ids: &[String]) -> impl Strategy<Value = String> + use<> {
    use proptest::prelude::*;
    let number = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        (0_u32..9).prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:e}")),
        Just("18446744073709551616".to_owned()),
        Just("-0.0".to_owned()),
        Just("1e400".to_owned()),
    ];
    let text = prop_oneof![
        any::<String>(),
        proptest::sample::select(vec![
            "1 OR 1=1",
            "0; DROP TABLE gateway_messages; --",
            "' UNION SELECT * FROM gateway_messages --",
            "\\",
            "\u{0}",
        ])
        .prop_map(str::to_owned),
    ];
    let text = text.prop_map(|text| Value::from(text).to_string());
    let id = prop_oneof![
        proptest::sample::select(ids.to_vec()).prop_map(|id| Value::from(id).to_string()),
        any::<u128>().prop_map(|id| Value::from(uuid::Uuid::from_u128(id).to_string()).to_string()),
        text.clone(),
        number.clone(),
        Just("null".to_owned()),
    ];
    let value =
        prop_oneof![number.clone(), text, Just("[]".to_owned()), Just("true".to_owned()), Just("{}".to_owned())];
    prop_oneof![
        value.clone(),
        (value, id.clone()).prop_map(|(seq, id)| format!("{{\"seq\":{seq},\"id\":{id}}}")),
        (number, id).prop_map(|(seq, id)| format!("{{\"seq\":{seq},\"id\":{id}}}")),
    ]
}

/// S3: whatever place a client makes up, in whatever stream, it is refused or `false`, or is one that it may have; and
/// it reads nothing of others.
#[tokio::test(flavor = "multi_thread")]
async fn s3_a_forged_place_is_refused_or_false_and_shows_nothing_of_others() {
    let node = TestNode::start(&[("room-policy", "members"), ("limits.frames_per_second", "0")]).await;
    let door = node.at();
    for path in ["/api/rooms/own/members/mallory", "/api/rooms/own/members/bob", "/api/rooms/secret/members/bob"] {
        let room = path.split("/members").next().unwrap();
        assert_eq!(door.api("PUT", room, None).await.0, 200);
        assert_eq!(door.api("PUT", path, None).await.0, 200);
    }
    let mut bob = door.v1("/ws/chat/", "bob").await;
    let mut ids = Vec::new();
    for n in 1..=5 {
        for (room, what) in [("own", "shared"), ("secret", "secret")] {
            let ack = bob.say_acked(room, what, &format!("{room} {n}")).await;
            ids.push(ack["id"].as_str().unwrap().to_owned());
        }
    }
    for user in ["bob", "mallory"] {
        let text = format!("for {user}");
        for _ in 0..2 {
            let event = json!({"type": "notification", "to": format!("user:{user}"), "data": {"message": text, "from_user": "shop"}});
            let (status, answer) = door.api("POST", "/api/events", Some(event)).await;
            assert_eq!(status, 200, "{answer}");
            ids.push(answer["results"][0]["id"].as_str().unwrap().to_owned());
        }
    }
    let rooms = ["secret", "absent", "own' OR '1'='1", "own%", "chat_secret", "r.00", "bob", "own"];
    let mut mallory = door.v1("/ws/chat/", "mallory").await;
    mallory.send(json!({"cate": "resume", "rooms": {}})).await;
    mallory.until(|frame| frame["type"] == "resumed").await;
    let mut runner = TestRunner::deterministic();
    let place = forged(&ids);
    let (mut refused, mut not, mut held) = (0, 0, 0);
    for number in 0..400 {
        let place = place.new_tree(&mut runner).unwrap().current();
        let room = rooms[number % rooms.len()];
        let name = Value::from(room).to_string();
        let frame = match number % 3 {
            0 => format!("{{\"cate\":\"resume\",\"rooms\":{{}},\"notifications\":{place}}}"),
            1 => format!("{{\"cate\":\"resume\",\"rooms\":{{{name}:{place}}}}}"),
            _ => format!("{{\"cate\":\"resume\",\"rooms\":{{{name}:{place},\"own\":{{\"seq\":5}}}}}}"),
        };
        let (shown, answer) = answered(&mut mallory, &frame).await;
        for row in &shown {
            let is_hers = match row["type"].as_str() {
                Some("chat") => row["group_name"] == "own" && row["message"] == "shared",
                Some("notification") => row["message"] == "for mallory",
                _ => false,
            };
            assert!(is_hers, "{frame}: {row}");
        }
        if answer["type"] == "error" {
            assert_eq!((&answer["code"], shown.len()), (&json!("invalid"), 0), "{frame}: {answer}");
            refused += 1;
            // Bad frames in a row would end the socket.
            mallory.ask(json!({"cate": "rooms"})).await;
            continue;
        }
        for (of, went_on) in answer["rooms"].as_object().unwrap() {
            assert!(of == "own" || went_on == false, "{frame}: {answer}");
        }
        // A place that was taken is one she may have, and what follows it is all there is behind it, and no more.
        for (stream, went_on, last) in
            [("chat", &answer["rooms"]["own"], 5), ("notification", &answer["notifications"], 2)]
        {
            let seqs: Vec<u64> =
                shown.iter().filter(|row| row["type"] == stream).map(|row| row["seq"].as_u64().unwrap()).collect();
            match went_on {
                Value::Bool(true) => {
                    assert!(seqs.iter().copied().eq(last + 1 - seqs.len() as u64..=last), "{frame}: {shown:?}");
                    held += 1;
                }
                _ => {
                    assert!(seqs.is_empty(), "{frame}: {shown:?}");
                    not += 1;
                }
            }
        }
    }
    println!("{refused} refused, {not} false or not asked for, {held} that she may have");
    assert!(refused > 20 && not > 20 && held > 5);
    // Everything is as it was.
    assert_eq!(door.api("GET", "/api/rooms/secret", None).await.1["seq"], 5);
    let (_, history) = door.api("GET", "/api/rooms/secret/history", None).await;
    assert_eq!(history["messages"].as_array().map(Vec::len), Some(5));
    assert_eq!(bob.say_acked("own", "still here", "last").await["seq"], 6);
    assert_eq!(mallory.hears().await, "still here");
}

// ---- A12: what is absent and what is forbidden ----

/// The statements that a piece of work takes at least: others of the node's may come in between.
async fn statements<F: Future<Output = ()>>(node: &TestNode, work: impl Fn() -> F) -> u64 {
    let store = &node.running.node().store;
    let mut least = u64::MAX;
    for _ in 0..5 {
        let before = store.statements();
        work().await;
        least = least.min(store.statements() - before);
    }
    least
}

/// The time of a quarter of them, which no neighbour has disturbed.
fn quick(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 4]
}

async fn refused(door: Door, room: &str) -> Duration {
    let began = Instant::now();
    let bearer = format!("Bearer {}", common::token("mallory"));
    let answer = door.try_connect(&format!("/ws/chat/{room}/"), &[("authorization", &bearer)]).await;
    assert_eq!(answer.err(), Some(404));
    began.elapsed()
}

/// A12: nobody can tell a room that may not be entered from one that does not exist by the work or the time its answer
/// takes; nor a user whom they may not write to from one who does not exist.
#[tokio::test(flavor = "multi_thread")]
async fn a12_what_is_forbidden_takes_the_work_and_the_time_of_what_is_absent() {
    let own = [("room-policy", "members"), ("client-notifications", "shared-room"), ("limits.frames_per_second", "0")];
    let node = TestNode::start(&own).await;
    let door = node.at();
    for path in ["/api/rooms/secret", "/api/rooms/secret/members/bob"] {
        assert_eq!(door.api("PUT", path, None).await.0, 200);
    }
    let mut bob = door.v1("/ws/chat/", "bob").await;
    for n in 0..50 {
        bob.say_acked("secret", "secret", &n.to_string()).await;
    }
    let mallory = tokio::sync::Mutex::new(door.v1("/ws/chat/", "mallory").await);
    let frames = |room: &str, user: &str| {
        [
            json!({"cate": "chat", "group_name": room, "message": "x", "client_id": "1"}),
            json!({"cate": "history", "group_name": room}),
            json!({"cate": "typing", "group_name": room}),
            json!({"cate": "presence", "group_name": room}),
            json!({"cate": "resume", "rooms": {room: {"seq": 0}}}),
            json!({"cate": "notification", "user_name": user, "message": "x", "client_id": "1"}),
        ]
    };
    let (forbidden, absent) = (frames("secret", "bob"), frames("absent", "nobody"));
    for (forbidden, absent) in forbidden.iter().zip(&absent) {
        let ask = async |frame: &Value| {
            let mut mallory = mallory.lock().await;
            let began = Instant::now();
            mallory.send(frame.clone()).await;
            let answer = mallory.frame().await;
            (began.elapsed(), answer.to_string().replace("secret", "X").replace("absent", "X"))
        };
        assert_eq!(ask(forbidden).await.1, ask(absent).await.1, "{forbidden}");
        let work = async |frame: &Value| statements(&node, || async { drop(ask(frame).await) }).await;
        assert_eq!(work(forbidden).await, work(absent).await, "statements: {forbidden}");
        compare(&forbidden["cate"], async || ask(forbidden).await.0, async || ask(absent).await.0).await;
    }
    let work = async |room: &str| statements(&node, || async { _ = refused(door, room).await }).await;
    assert_eq!(work("secret").await, work("absent").await, "statements of a connect");
    compare(&json!("connect"), async || refused(door, "secret").await, async || refused(door, "absent").await).await;
}

/// Asks for both in turn; a machine that is busy with other things may need several tries.
async fn compare(what: &Value, one: impl AsyncFn() -> Duration, other: impl AsyncFn() -> Duration) {
    let mut tries = 0;
    loop {
        let (mut ones, mut others) = (Vec::new(), Vec::new());
        for _ in 0..100 {
            ones.push(one().await);
            others.push(other().await);
        }
        let (one, other) = (quick(ones), quick(others));
        println!("{what}: {one:?} and {other:?}");
        if one.abs_diff(other) < (one.min(other) / 4).max(Duration::from_micros(100)) {
            return;
        }
        tries += 1;
        assert!(tries < 5, "{what}: {one:?} and {other:?}");
    }
}
