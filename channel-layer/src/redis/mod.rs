//! The layers on Redis. No other part of the crate knows the word.
//!
//! The crate `redis` reads the URLs; the two connections are our own. Its pub/sub connection puts an
//! unbounded queue between the socket and the reader, and its managed one makes callers wait out a
//! whole outage; here a slow reader slows Redis down, and a publish fails at once while Redis is away.

mod backoff;
mod commander;
mod commands;
mod connection;
mod core;
mod hand_over;
mod inbox;
mod layer;
mod publisher;
mod relay;
mod subscriber;
mod tls;
mod topic;
mod wire;

pub use core::{RedisCoreBuilder, RedisCoreLayer};
pub use layer::{RedisPubSubBuilder, RedisPubSubLayer};
