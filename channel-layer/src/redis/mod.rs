//! The layers on Redis. No other part of the crate knows the word.
//!
//! Commands and answers are those of the crate `redis`, on its multiplexed connections; these are supervised here.
//! Its managed connections make callers wait out a whole outage; here a publish fails at once while Redis is away.

mod answer;
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
