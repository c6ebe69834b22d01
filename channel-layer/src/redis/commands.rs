//! Where commands go: one commander per shard.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    commander::{Commander, Ending, Failure, Pending},
    connection::Target,
    wire::Answer,
};

/// All commanders of a layer.
pub(super) struct Commands {
    commanders: Vec<Commander>,
}

impl Commands {
    /// The commanders and the tasks to run for them.
    pub(super) fn new(
        targets: &[Target],
        name: &'static str,
    ) -> (Self, Vec<impl Future<Output = ()> + Send + 'static>) {
        let (commanders, tasks) = targets.iter().map(|target| Commander::new(target.clone(), name)).unzip();
        (Self { commanders }, tasks)
    }

    /// How many shards there are, at least one.
    pub(super) fn shards(&self) -> usize {
        self.commanders.len()
    }

    /// How many keys one command may name.
    pub(super) fn keys_per_command(&self) -> usize {
        200
    }

    fn of(&self, shard: usize, _key: &[u8]) -> &Commander {
        &self.commanders[shard]
    }

    /// See [`Commander::call`].
    pub(super) async fn call(
        &self,
        shard: usize,
        key: &[u8],
        command: Bytes,
        limit: Duration,
    ) -> Result<Answer, Failure> {
        self.of(shard, key).call(command, limit).await
    }

    /// See [`Commander::start`].
    pub(super) fn start(&self, shard: usize, key: &[u8], command: Bytes) -> Result<Pending, Failure> {
        self.of(shard, key).start(command)
    }

    /// See [`Commander::start_with`].
    pub(super) fn start_with(
        &self,
        shard: usize,
        key: &[u8],
        command: Bytes,
        ending: Option<Box<dyn Ending>>,
    ) -> Result<(), (Failure, Option<Box<dyn Ending>>)> {
        self.of(shard, key).start_with(command, ending)
    }

    /// One handle per server of a shard, for commands about whole servers.
    pub(super) fn servers(&self, shard: usize) -> Vec<Commander> {
        vec![self.commanders[shard].clone()]
    }

    pub(super) fn is_connected(&self, shard: usize) -> bool {
        self.commanders[shard].is_connected()
    }

    /// See [`Commander::connections`].
    pub(super) fn connections(&self, shard: usize) -> watch::Receiver<u64> {
        self.commanders[shard].connections()
    }

    /// Waits until every shard has answered; what was queued before has then been handled.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), Failure> {
        for commander in &self.commanders {
            commander.ping(limit).await?;
        }
        Ok(())
    }
}
