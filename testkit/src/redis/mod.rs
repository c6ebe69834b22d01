//! Redis: one server, a set watched by sentinels, a cluster.

mod cluster;
mod options;
mod sentinel;
mod server;
mod tls;
mod wire;

pub use cluster::Cluster;
pub use options::RedisOptions;
pub use sentinel::{SentinelOptions, Sentinels};
pub use server::RedisServer;
pub use tls::Tls;
