//! The layers on Redis. No other part of the crate knows the word.
//!
//! The connections are our own and not those of the crate `redis`. Its pub/sub connection puts an
//! unbounded queue between the socket and the reader, and its managed one makes callers wait out a
//! whole outage; here a slow reader slows Redis down, and a publish fails at once while Redis is away.

mod backoff;
mod commander;
mod commands;
mod connection;
mod core;
mod hand_over;
mod inbox;
mod pattern;
mod pubsub;
mod refusal;
mod site;
mod tls;
mod topology;
mod trust;
mod wire;

pub use core::{RedisCoreBuilder, RedisCoreLayer};
pub use pubsub::{RedisPubSubBuilder, RedisPubSubLayer};
pub use topology::{Connector, Host};
