//! What the tests of Channels and channels_redis assert, item by item: `docs/checklist.md` leads from
//! each item to its test here.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod core;
#[path = "../common/log.rs"]
mod log;
mod memory;
mod pubsub;
mod wire;

use std::time::Duration;

use channel_layer::{ChannelLayer, ChannelName, Event};
use tokio::time::timeout;

/// An event with a number.
fn numbered(n: i64) -> Event {
    Event::new("test.message").with("n", n)
}

fn number(event: &Event) -> i64 {
    event.get("n").and_then(channel_layer::Value::as_i64).expect("a number")
}

/// The next event's number, in time.
async fn next(layer: &dyn ChannelLayer, channel: &ChannelName) -> i64 {
    number(&common::heard(layer, channel).await)
}

/// The next events' numbers.
async fn several(layer: &dyn ChannelLayer, channel: &ChannelName, count: usize) -> Vec<i64> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(next(layer, channel).await);
    }
    numbers
}

/// Nothing arrives on the channel for so long.
async fn silent(layer: &dyn ChannelLayer, channel: &ChannelName, time: Duration) {
    if let Ok(event) = timeout(time, layer.receive(channel)).await {
        panic!("nothing was to come on {channel}, not {event:?}");
    }
}

/// Lets time pass: what is tested is what time does.
async fn pass(time: Duration) {
    let _ = timeout(time, std::future::pending::<()>()).await;
}

/// Runs something in a thread with an event loop of its own, as synchronous code does.
async fn elsewhere<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let run = move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    tokio::task::spawn_blocking(run).await.unwrap()
}
