//! What the machine runs short of, or does to a node.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{NodeProcess, eventually, token};
use futures_util::future::join_all;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;

/// A pipe for all output that is open but that nobody reads: what a log collector that hangs looks like.
const NOBODY_READS: &str = r#"export RUST_LOG=trace; mkfifo pipe && exec 3<>pipe && exec "$@" >pipe 2>&1"#;

/// N11: a full pipe takes 64 KiB; after that a line is dropped and counted, and nobody waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn n11_a_log_that_nobody_reads_holds_up_nobody() {
    const SOCKETS: usize = 100;
    let redis = RedisServer::start();
    let settings = [("redis-url", redis.url()), ("log-format", "json".to_owned())];
    let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let command = ["sh", "-c", NOBODY_READS, "sh"].map(str::to_owned).to_vec();
    let mut node = NodeProcess::start_by(command, &settings);
    let mut alice = node.door.join("alice", "lobby").await;
    let dropped = async || node.door.metric("gateway_log_lines_dropped_total").await;
    let mut said = 0;
    while dropped().await == 0.0 {
        for _ in 0..SOCKETS {
            node.door.join("bob", "lobby").await.close().await;
        }
        said += 1;
        let ack = alice.say_acked("lobby", "still here", &said.to_string()).await;
        assert_eq!((ack["type"].as_str(), ack["seq"].as_u64()), (Some("ack"), Some(said)));
    }
    node.process.signal("TERM");
    assert_eq!(alice.closed().await, 1012);
    eventually("the process ends", || async { !node.process.running() }).await;
}

/// N6: sockets and silent connections leave files for what the node itself needs.
#[tokio::test(flavor = "multi_thread")]
async fn n6_files_that_are_used_up_are_not_redis_s_and_the_database_s() {
    const FILES: usize = 200;
    let (redis, postgres) = (RedisServer::start(), Postgres::shared());
    let database = postgres.fresh_database();
    let command = ["sh", "-c", &format!("ulimit -n {FILES} && exec \"$@\""), "sh"].map(str::to_owned).to_vec();
    let node = NodeProcess::start_by(command, &[("redis-url", &redis.url()), ("database-url", &database)]);
    let (mut alice, mut bob) = (node.door.join("alice", "lobby").await, node.door.join("bob", "lobby").await);
    let mut sockets = Vec::new();
    let refused = loop {
        let bearer = format!("Bearer {}", token(&format!("user-{}", sockets.len())));
        match node.door.try_connect("/ws/chat/crowd/", &[("authorization", &bearer)]).await {
            Ok(socket) => sockets.push(socket),
            Err(status) => break status,
        }
        assert!(sockets.len() < FILES);
    };
    assert_eq!(refused, 503);
    eventually("the balancer may go on asking", async || node.door.get("/readyz").await.0 == 200).await;
    // Nor are those that are told that they are not signed in, until they leave.
    let unknown = [("authorization", "Bearer unknown"), ("sec-websocket-protocol", "gateway.v1")];
    let mut strangers = Vec::new();
    for _ in 0..60 {
        strangers.push(node.door.try_connect("/ws/chat/lobby/", &unknown).await.unwrap());
    }
    // Connections that say nothing are no sockets; the system takes those that the node does not.
    let silent: Vec<_> = (0..2 * FILES).map(|_| TcpStream::connect(node.door.public).unwrap()).collect();
    let waits = async || node.door.metric("gateway_accept_pauses_total").await > 0.0;
    eventually("the node takes no more", waits).await;

    // Now everything the node has of its own breaks, and has to be made anew.
    redis.client_kill("pubsub");
    redis.client_kill("normal");
    let backends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                    WHERE application_name = 'gateway' AND datname = current_database()";
    postgres.sql(&database, backends);
    eventually("all is connected", || async { node.door.internal_get("/readyz").await.0 == 200 }).await;
    let ack = alice.say_acked("lobby", "still here", "1").await;
    assert_eq!(ack["type"], "ack", "{ack}");
    assert_eq!(bob.hears().await, "still here");

    drop((silent, strangers, sockets));
    eventually("there is room again", || async {
        let bearer = format!("Bearer {}", token("carol"));
        node.door.try_connect("/ws/chat/lobby/", &[("authorization", &bearer)]).await.is_ok()
    })
    .await;
}

/// N4: a node that was frozen goes on where it was. The time it was away is no silence of its clients', whose answers
/// wait in its buffers; and what was said meanwhile follows.
#[tokio::test(flavor = "multi_thread")]
async fn n4_a_node_that_was_frozen_keeps_its_sockets_and_brings_what_they_missed() {
    const USERS: usize = 20;
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let pings = [("limits.ping_seconds", "1"), ("limits.pong_seconds", "6")];
    let settings = [("redis-url", &redis.url()[..]), ("database-url", &database)];
    let mut one = NodeProcess::start(&[&settings[..], &pings].concat());
    let two = NodeProcess::start(&settings);
    // All at once: of the first ones no answer to a ping is missed while the last ones come.
    let names: Vec<_> = (0..USERS).map(|number| format!("user-{number}")).collect();
    let mut users = join_all(names.iter().map(|name| one.door.join(name, "lobby"))).await;
    let mut bob = two.door.join("bob", "lobby").await;
    let pings = async || one.door.metric("gateway_frames_sent_total{type=\"ping\"}").await as usize;
    eventually("pings are out, which nobody has read yet", async || pings().await >= USERS).await;
    one.process.pause();
    let frozen = Instant::now();
    let mut said = 0;
    while frozen.elapsed() < Duration::from_secs(9) {
        said += 1;
        let ack = bob.say_acked("lobby", &said.to_string(), &said.to_string()).await;
        assert_eq!(ack["type"], "ack", "{ack}{}", two.log());
        for (user, name) in users.iter_mut().zip(&names) {
            // The answers to the pings.
            assert_eq!(user.hear_within(Duration::from_millis(1)).await, None, "{name} {said}{}", one.log());
        }
    }
    one.process.resume();
    for user in &mut users {
        for number in 1..=said {
            assert_eq!(user.hears().await, number.to_string());
        }
    }
}
