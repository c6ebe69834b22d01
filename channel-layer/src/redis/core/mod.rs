//! The core layer: events wait in sorted sets, as in `channels_redis.core`.

mod builder;
mod clock;
mod closing;
mod eviction;
mod health;
mod keeper;
mod keys;
mod layer;
mod plain;
mod queues;
mod reader;
mod relay;
mod scripts;
mod sender;
mod settings;
mod shared;
mod state;

pub use builder::RedisCoreBuilder;
pub use layer::RedisCoreLayer;
