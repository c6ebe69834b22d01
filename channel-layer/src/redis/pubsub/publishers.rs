//! Where the layer publishes: through a commander for each host, or each node of a cluster.

use std::{sync::Arc, time::Duration};

use redis::Cmd;
use tokio::task::JoinSet;

use super::topic;
use crate::{
    LayerError,
    redis::{
        answer,
        commander::{Failure, Heard, PATIENCE},
        commands::Commands,
        topology::Topology,
    },
    shard::shard,
    stats::Counters,
};

pub(super) struct Publishers {
    commands: Commands,
    /// What topics begin with that are published with SPUBLISH; for a cluster.
    sharded: Option<String>,
    counters: Arc<Counters>,
}

impl Publishers {
    /// Their tasks run in `tasks`.
    pub(super) fn new(topology: &Topology, prefix: &str, counters: Arc<Counters>, tasks: &mut JoinSet<()>) -> Self {
        let (commands, own) = Commands::new(topology, "channel-layer:publish");
        for task in own {
            tasks.spawn(task);
        }
        let sharded = match topology {
            Topology::Shards(_) => None,
            Topology::Cluster(_) => Some(topic::group_prefix(prefix)),
        };
        Self { commands, sharded, counters }
    }

    /// Returns when each of them has a connection.
    pub(super) async fn connected(&self) {
        self.commands.connected().await;
    }

    /// Publishes and waits until Redis has answered. Fails at once while the topic's host is away.
    pub(super) async fn publish(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        let command = self.command(&topic, &payload);
        let result = self.commands.call(self.shard_of(&topic), &topic, command, PATIENCE).await;
        self.counters.publish_result(result.is_ok());
        Ok(result.map(|_| ())?)
    }

    /// Queues a publish and returns at once.
    pub(super) fn publish_later(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        let command = self.command(&topic, &payload);
        let counters = self.counters.clone();
        let ending = move |result: Result<_, Failure>| counters.publish_result(result.is_ok());
        let queued =
            self.commands.start_with(self.shard_of(&topic), &topic, command, Some(Box::new(ending)), Heard::Later);
        queued.map_err(|(failure, _)| {
            self.counters.publish_result(false);
            failure.into()
        })
    }

    /// Whether every server answers; everything queued before has been handled when this returns.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), LayerError> {
        Ok(self.commands.ping(limit).await?)
    }

    /// Publishes nothing to a topic of a link and does not count it; tells whether it could be queued. Also asks
    /// whether the link's server is a primary still: what is published on a replica is heard there, and by
    /// nobody else.
    pub(super) fn probe(&self, at: usize, topic: &[u8]) -> bool {
        self.commands.check_role(self.shard_at(at), topic);
        self.commands.start_with(self.shard_at(at), topic, self.command(topic, b""), None, Heard::AtOnce).is_ok()
    }

    /// Makes the connection that belongs to a link, and this topic of it, anew.
    pub(super) fn renew(&self, at: usize, topic: &[u8]) {
        self.commands.renew(self.shard_at(at), topic);
    }

    fn command(&self, topic: &[u8], payload: &[u8]) -> Cmd {
        let name = match &self.sharded {
            Some(prefix) if topic.starts_with(prefix.as_bytes()) => &b"SPUBLISH"[..],
            _ => b"PUBLISH",
        };
        answer::command([name, topic, payload])
    }

    fn shard_of(&self, topic: &[u8]) -> usize {
        shard(topic, self.commands.shards())
    }

    /// Links of hosts are in the order of the hosts; in a cluster the topic says it all.
    fn shard_at(&self, at: usize) -> usize {
        if self.sharded.is_some() { 0 } else { at }
    }
}
