//! This crate is Django Channels' channel layer in Rust.
//!
//! A **channel layer** carries **events** between the processes of a site: to one **channel** (a
//! consumer's mailbox) or to a **group** of channels. The crate's bytes are those of Python's
//! `channels_redis`, so Rust services and Django processes share groups.
//!
//! Every [`ChannelLayer`] promises:
//! - **at most once**: an event never reaches a reader twice; when in doubt it is lost;
//! - `group_add`, `new_channel` and [`Relay::join`] return only when events sent from then on are heard;
//! - one sender's events to one channel or group arrive in the order they were sent;
//! - every queue is bounded, and what a bound costs is counted in [`LayerStats`];
//! - nothing that arrives from outside, however malformed, stops a reader.
//!
//! | layer | reaches | use it for |
//! | --- | --- | --- |
//! | [`MemoryLayer`] | this process | tests, development, one node |
//! | [`RedisCoreLayer`] | all processes with `channels_redis.core.RedisChannelLayer` on the same Redis | production, as the Python side needs it |
//! | [`RedisPubSubLayer`] | all processes with `channels_redis.pubsub.RedisPubSubChannelLayer` on the same Redis | production |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, reason = "tests"))]

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod capacity;
mod codec;
#[cfg(feature = "contract")]
pub mod contract;
mod error;
mod event;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod layer;
mod memory;
mod name;
mod redis;
mod shard;
mod stats;

pub use capacity::ChannelPattern;
pub use codec::Serializer;
pub use error::{BoxError, EventError, LayerError, NameError};
pub use event::{Event, MAX_DEPTH, MAX_VALUES, Text, Value};
pub use layer::{ChannelLayer, Delivery, LayerStats, Missed, Relay, RelayBackend, RelaySink};
pub use memory::{MemoryBuilder, MemoryLayer};
pub use name::{ChannelName, GroupName, MAX_ANY_NAME, MAX_NAME};
pub use redis::{
    Bounded, Connector, Host, Pool, Pooled, RedisCoreBuilder, RedisCoreLayer, RedisPubSubBuilder, RedisPubSubLayer,
};
