//! Catching up where it is large, slow, or in doubt.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Client, Door, Heard, NodeProcess, PATIENCE, TestNode, eventually, token};
use persistence::{Store, StoreOptions};
use serde_json::{Value, json};
use testkit::postgres::Postgres;

async fn v1(door: Door, path: &str, user: &str) -> Client {
    let bearer = format!("Bearer {}", token(user));
    let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
    door.try_connect(path, &headers).await.unwrap()
}

async fn resume(client: &mut Client, place: Value) {
    client.send(json!({"cate": "resume", "rooms": {"lobby": place}})).await;
}

/// What comes up to `resumed`: the `seq`s of the chat frames, and the answer for the room.
async fn resumed(client: &mut Client) -> (Vec<u64>, Value) {
    let mut seqs = Vec::new();
    loop {
        let frame = match client.hear_within(PATIENCE * 3).await {
            Some(Heard::Frame(frame)) => frame,
            other => panic!("{other:?}"),
        };
        match frame["type"].as_str() {
            Some("chat") => seqs.push(frame["seq"].as_u64().unwrap()),
            Some("resumed") => return (seqs, frame["rooms"]["lobby"].clone()),
            _ => panic!("{frame}"),
        }
    }
}

/// The bytes of memory that a process has in use.
fn memory_of(node: &NodeProcess) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_reach_a_client_with_a_small_outbox() {
    const MESSAGES: u64 = 120;
    for recent_bytes in ["0", "33554432"] {
        let node = TestNode::start(&[
            ("limits.outbox_bytes", "150000"),
            ("limits.frames_per_second", "0"),
            ("limits.recent_bytes", recent_bytes),
        ])
        .await;
        let mut bob = node.join("bob", "lobby").await;
        let text = "x".repeat(60_000);
        for n in 1..=MESSAGES {
            bob.say_acked("lobby", &text, &n.to_string()).await;
        }
        let mut alice = v1(node.at(), "/ws/chat/lobby/", "alice").await;
        resume(&mut alice, json!(0)).await;
        // While she does not read, what is live waits behind; much more than may wait for a client.
        for n in 1..=5 {
            bob.say_acked("lobby", &text, &format!("live {n}")).await;
        }
        let (mut seqs, went_on) = resumed(&mut alice).await;
        assert_eq!(went_on, true);
        while seqs.len() < MESSAGES as usize + 5 {
            seqs.push(alice.until(|frame| frame["type"] == "chat").await["seq"].as_u64().unwrap());
        }
        assert_eq!(seqs, (1..=MESSAGES + 5).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_costs_no_statement_and_more_than_that_is_paged() {
    // Statements are counted, and retention has some of its own.
    let settings =
        [("limits.frames_per_second", "0"), ("limits.resume_frames", "0"), ("retention.interval_seconds", "0")];
    let node = TestNode::start(&settings).await;
    let mut bob = node.join("bob", "lobby").await;
    let mut ids = vec![Value::Null];
    for n in 1..=1100 {
        ids.push(bob.say_acked("lobby", &n.to_string(), &n.to_string()).await["id"].clone());
    }
    let mut alice = v1(node.at(), "/ws/chat/lobby/", "alice").await;
    alice.send(json!({"cate": "rooms"})).await;
    alice.until(|frame| frame["type"] == "rooms").await;
    let store = &node.running.node().store;
    for (from, statements) in [(1100, 0), (1090, 0), (900, 0), (300, 10), (0, 14)] {
        let before = store.statements();
        resume(&mut alice, json!({"seq": from, "id": if from > 0 { ids[from].clone() } else { Value::Null }})).await;
        let (seqs, went_on) = resumed(&mut alice).await;
        assert_eq!((seqs, went_on), ((from as u64 + 1..=1100).collect(), json!(true)), "{from}");
        assert!(store.statements() - before <= statements, "{from}: {} statements", store.statements() - before);
    }
    for kind in ["nothing", "memory", "database"] {
        assert!(node.metric(&format!("gateway_resumes_total{{kind=\"{kind}\"}}")).await > 0.0, "{kind}");
    }
    eventually("the memory is measured", || async { node.metric("gateway_recent_bytes").await > 0.0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_made_again_does_not_show_what_was_in_it() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let mut bob = node.join("bob", "lobby").await;
    let first = bob.say_acked("lobby", "secret 1", "1").await;
    let second = bob.say_acked("lobby", "secret 2", "2").await;
    assert_eq!(door.api("DELETE", "/api/rooms/lobby", None).await.0, 200);
    assert_eq!(door.api("PUT", "/api/rooms/lobby", None).await.0, 200);
    let with_id = |message: &Value| json!({"seq": message["seq"], "id": message["id"]});
    for place in [with_id(&first), with_id(&second), json!(1), json!(2), json!({"seq": 2, "id": first["id"]})] {
        let mut alice = v1(door, "/ws/chat/lobby/", "alice").await;
        resume(&mut alice, place).await;
        assert_eq!(resumed(&mut alice).await, (vec![], json!(false)));
        alice.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_of_100_000_unseen_is_a_count_and_a_page() {
    const UNSEEN: u64 = 100_000;
    let database = Postgres::shared().fresh_database();
    let store = Store::connect(StoreOptions::new(&database)).await.unwrap();
    store.migrate().await.unwrap();
    store.see_users(&["alice".to_owned()]).await.unwrap();
    Postgres::shared().sql(
        &database,
        &format!(
            "INSERT INTO gateway_notifications (inbox_id, seq, id, from_user, message, date) \
             SELECT id, n, gen_random_uuid(), 'shop', repeat('x', 200), n FROM gateway_inboxes, generate_series(1, {UNSEEN}) n; \
             UPDATE gateway_inboxes SET last_seq = {UNSEEN}"
        ),
    );
    let node = NodeProcess::start(&[("database-url", &database)]);
    let mut alice = v1(node.door, "/ws/notifications/", "alice").await;
    let ask = json!({"cate": "notifications", "unseen": true});
    alice.send(ask.clone()).await;
    alice.until(|frame| frame["type"] == "notifications").await;
    let before = memory_of(&node);
    for _ in 0..5 {
        alice.send(ask.clone()).await;
        let page = alice.until(|frame| frame["type"] == "notifications").await;
        assert_eq!((&page["unseen"], &page["has_more"]), (&json!(UNSEEN), &json!(true)));
        assert_eq!(page["notifications"].as_array().unwrap().len(), 50);
        // Not everything is sent: the client is told to page.
        alice.send(json!({"cate": "resume", "rooms": {}, "notifications": 0})).await;
        assert_eq!(alice.frame().await, json!({"type": "resumed", "rooms": {}, "notifications": false}));
    }
    let after = memory_of(&node);
    assert!(after < before + (16 << 20), "memory grew from {before} to {after}");
    // What is within the bound is sent, all of it.
    alice.send(json!({"cate": "resume", "rooms": {}, "notifications": UNSEEN - 900})).await;
    for seq in UNSEEN - 899..=UNSEEN {
        assert_eq!(alice.frame().await["seq"], seq);
    }
    assert_eq!(alice.frame().await["notifications"], true);
    alice.send(json!({"cate": "seen", "up_to": UNSEEN})).await;
    assert_eq!(alice.until(|frame| frame["type"] == "seen").await["unseen"], 0);
    eventually("the node is as before", || async { node.door.metric("gateway_connections").await == 1.0 }).await;
}
