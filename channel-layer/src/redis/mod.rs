//! The layers on Redis. No other part of the crate knows the word.
//!
//! The protocol is that of the crate `redis`, on its multiplexed connections, for commands, subscriptions and pops that
//! wait. They are supervised here: the crate's managed connections make callers wait out a whole outage, its pub/sub
//! connection has an unbounded queue; here a publish fails at once while Redis is away, and who reads slowly slows
//! Redis down. `access.rs`, `connection.rs` and `pubsub/subscriber/subscription.rs` say what that takes.

mod access;
mod answer;
mod backoff;
mod bounded;
mod commander;
mod commands;
mod connection;
mod core;
mod gather;
mod hand_over;
mod inbox;
mod pattern;
mod pubsub;
mod refusal;
mod site;
mod tls;
mod topology;
mod trust;

pub use bounded::Bounded;
pub use core::{RedisCoreBuilder, RedisCoreLayer};
pub use pubsub::{RedisPubSubBuilder, RedisPubSubLayer};
pub use topology::{Connector, Host, Pool, Pooled};
