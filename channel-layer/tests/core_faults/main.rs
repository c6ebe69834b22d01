//! What the core layer survives, on real servers and in real processes: R1 to R16 and R18. What is put into
//! Redis and asked of the layer (R17, R19, R21) is in `core_poison`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/errors.rs"]
mod errors;
mod failover;
#[path = "../common/log.rs"]
mod log;
#[path = "../common/node.rs"]
mod node;
mod nodes;
mod refusals;
mod server;
#[path = "../common/site.rs"]
mod site;

use std::time::Duration;

use channel_layer::{ChannelLayer, Event, RedisCoreBuilder, RedisCoreLayer, Value};
use site::Site;
use tokio::time::timeout;

#[test]
fn node_process() {
    node::run();
}

/// Counts as alive for so long after a heartbeat, in these tests that shorten the time between them.
const ALIVE: Duration = Duration::from_secs(45);

/// A relay in the group `room`.
async fn site(url: &str) -> Site {
    over(RedisCoreLayer::builder(url)).await
}

async fn over(builder: RedisCoreBuilder) -> Site {
    Site::new(builder.connect().await.unwrap(), &["room"]).await
}

fn numbered(n: i64) -> Event {
    Event::new("test.message").with("n", n)
}

fn number(event: &Event) -> i64 {
    event.get("n").and_then(Value::as_i64).expect("a number")
}

/// Waits until everything is there: an event may arrive while another queue is still being connected.
async fn ready(layer: &dyn ChannelLayer) {
    common::until_async("it is ready", async || layer.ping().await.is_ok()).await;
}

/// Lets time pass: what is tested is what time does.
async fn pass(time: Duration) {
    let _ = timeout(time, std::future::pending::<()>()).await;
}

/// Whether tests that take long are wanted.
fn long() -> bool {
    std::env::var_os("GATEWAY_LONG").is_some()
}
