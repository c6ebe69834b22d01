//! Where commands go: to the commander of a shard, or to that of the cluster node that has the key.

mod cluster;

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use redis::{Cmd, Value};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use self::cluster::ClusterCommands;
use super::{
    commander::{Commander, Ending, Failure, Heard, Pending, Refusal, ending},
    connection::Connection,
    topology::{Target, Topology},
};
use crate::BoxError;

/// A task that somebody has to own.
pub(super) type Task = futures_util::future::BoxFuture<'static, ()>;

/// All commanders of a layer. Whoever gives a command names the shard it belongs to and one of its keys.
pub(super) enum Commands {
    /// One commander a host.
    Shards { targets: Box<[Target]>, commanders: Box<[Commander]> },
    /// One shard, from outside.
    Cluster(ClusterCommands),
}

impl Commands {
    /// The commanders and the tasks to run for them.
    pub(super) fn new(topology: &Topology, name: &'static str) -> (Self, Vec<Task>) {
        match topology {
            Topology::Shards(targets) => {
                let mut tasks: Vec<Task> = Vec::new();
                let commanders = targets.iter().map(|target| {
                    let (commander, task) = Commander::new(target.clone(), name);
                    tasks.push(Box::pin(task));
                    commander
                });
                (Self::Shards { commanders: commanders.collect(), targets: targets.to_vec().into() }, tasks)
            }
            Topology::Cluster(cluster) => {
                let (commands, task) = ClusterCommands::new(cluster.clone(), name);
                (Self::Cluster(commands), vec![Box::pin(task)])
            }
        }
    }

    /// How many shards there are, at least one.
    pub(super) fn shards(&self) -> usize {
        match self {
            Self::Shards { commanders, .. } => commanders.len(),
            Self::Cluster(_) => 1,
        }
    }

    /// How many keys one command may name: in a cluster they would have to be in one slot.
    pub(super) fn keys_per_command(&self) -> usize {
        match self {
            Self::Shards { .. } => 200,
            Self::Cluster(_) => 1,
        }
    }

    /// Runs a command and waits for its answer; fails at once while Redis is away.
    pub(super) async fn call(&self, shard: usize, key: &[u8], command: Cmd, limit: Duration) -> Result<Value, Failure> {
        match self {
            // Waits for room in the queue.
            Self::Shards { commanders, .. } => commanders[shard].call(command, limit).await,
            Self::Cluster(_) => self.start(shard, key, command)?.answer_by(Instant::now() + limit).await,
        }
    }

    /// Queues a command at once; those to one shard, or in a cluster to one node, in the order of the
    /// calls.
    pub(super) fn start(&self, shard: usize, key: &[u8], command: Cmd) -> Result<Pending, Failure> {
        let (ending, pending) = ending();
        self.start_with(shard, key, command, Some(ending), Heard::AtOnce)
            .map(|()| pending)
            .map_err(|(failure, _)| failure)
    }

    /// Like [`start`](Self::start); `ending` hears what became of it.
    pub(super) fn start_with(
        &self,
        shard: usize,
        key: &[u8],
        command: Cmd,
        ending: Option<Box<dyn Ending>>,
        heard: Heard,
    ) -> Result<(), Refusal> {
        match self {
            Self::Shards { commanders, .. } => commanders[shard].start_with(command, ending, heard),
            // Always at once: a node may send it to another one, and then it should not have waited.
            Self::Cluster(cluster) => cluster.start_with(key, command, ending),
        }
    }

    /// One handle per server of a shard, for commands about whole servers.
    pub(super) fn servers(&self, shard: usize) -> Vec<Commander> {
        match self {
            Self::Shards { commanders, .. } => vec![commanders[shard].clone()],
            Self::Cluster(cluster) => cluster.servers(),
        }
    }

    /// Opens a connection of one's own to where a key is.
    pub(super) async fn open(&self, shard: usize, key: &[u8], name: &str) -> Result<Connection, BoxError> {
        match self {
            Self::Shards { targets, .. } => targets[shard].open(name).await,
            Self::Cluster(cluster) => cluster.open(key, name).await,
        }
    }

    /// Whether a command for this key would be sent.
    pub(super) fn reaches(&self, shard: usize, key: &[u8]) -> bool {
        match self {
            Self::Shards { commanders, .. } => commanders[shard].is_connected(),
            Self::Cluster(cluster) => cluster.reaches(key),
        }
    }

    /// Makes the connection for a key anew, because it may lead to the wrong server.
    pub(super) fn renew(&self, shard: usize, key: &[u8]) {
        match self {
            Self::Shards { commanders, .. } => commanders[shard].renew(),
            Self::Cluster(cluster) => cluster.renew(key),
        }
    }

    /// Asks whether the server that has a key is a primary still; if not, all connections to it are made anew.
    pub(super) fn check_role(&self, shard: usize, key: &[u8]) {
        match self {
            Self::Shards { commanders, .. } => commanders[shard].check_role(),
            Self::Cluster(cluster) => cluster.check_role(key),
        }
    }

    /// Whether all of a shard can be used.
    pub(super) fn is_connected(&self, shard: usize) -> bool {
        *self.connections(shard).borrow() % 2 == 1
    }

    /// Rises with every connection and every loss of one; odd while a shard can be used, all of it.
    pub(super) fn connections(&self, shard: usize) -> watch::Receiver<u64> {
        match self {
            Self::Shards { commanders, .. } => commanders[shard].connections(),
            Self::Cluster(cluster) => cluster.connections(),
        }
    }

    /// Returns when all shards can be used.
    pub(super) async fn connected(&self) {
        let shards = (0..self.shards()).map(|shard| async move {
            // Fails only if the sender is gone, and that is part of ourselves.
            let _ = self.connections(shard).wait_for(|connection| connection % 2 == 1).await;
        });
        join_all(shards).await;
    }

    /// Waits until every server has answered; what was queued before has then been handled.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        for shard in 0..self.shards() {
            if !self.is_connected(shard) {
                return Err(Failure::NotConnected);
            }
            let servers = self.servers(shard);
            let pings = try_join_all(servers.iter().map(|server| server.ping(limit)));
            timeout_at(deadline, pings).await.map_err(|_late| Failure::Timeout)??;
        }
        Ok(())
    }
}
