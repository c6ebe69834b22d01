//! Logs that nobody takes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{NodeProcess, eventually};
use testkit::redis::RedisServer;

/// A pipe as standard error that is open but that nobody reads: what a log collector that hangs looks like.
const NOBODY_READS: &str = r#"export RUST_LOG=trace; mkfifo pipe && exec 3<>pipe && exec "$@" 2>pipe"#;

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
