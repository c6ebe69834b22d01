//! The layer on Redis' PUBLISH and SUBSCRIBE: nothing waits in Redis, groups live in each process.

mod builder;
mod layer;
mod publishers;
mod relay;
mod subscriber;
mod topic;

pub use builder::RedisPubSubBuilder;
pub use layer::RedisPubSubLayer;
