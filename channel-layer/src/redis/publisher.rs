//! Publishing events to topics through a commander.

use std::{sync::Arc, time::Duration};

use super::{
    commander::{Commander, Failure, PATIENCE},
    connection::Target,
    wire,
};
use crate::{LayerError, stats::Counters};

/// The sending end.
pub(super) struct Publisher {
    commander: Commander,
    counters: Arc<Counters>,
}

impl Publisher {
    /// The publisher and the task to run for it.
    pub(super) fn new(target: Target, counters: Arc<Counters>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (commander, task) = Commander::new(target, "channel-layer:publish");
        (Self { commander, counters }, task)
    }

    /// Returns when there is a connection.
    pub(super) async fn connected(&self) {
        self.commander.connected().await;
    }

    /// Publishes and waits until Redis has answered. Fails at once while Redis is away.
    pub(super) async fn publish(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        let command = wire::bytes(&[b"PUBLISH", &topic, &payload]);
        let result = self.commander.call(command, PATIENCE).await;
        self.counters.publish_result(result.is_ok());
        Ok(result.map(|_| ())?)
    }

    /// Queues a publish and returns at once.
    pub(super) fn publish_later(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        let command = wire::bytes(&[b"PUBLISH", &topic, &payload]);
        let counters = self.counters.clone();
        let ending = move |result: Result<_, Failure>| counters.publish_result(result.is_ok());
        self.commander.start_with(command, Some(Box::new(ending))).map_err(|(failure, _)| {
            self.counters.publish_result(false);
            failure.into()
        })
    }

    /// Publishes nothing to a topic and does not count it; tells whether it could be queued.
    pub(super) fn probe(&self, topic: &[u8]) -> bool {
        self.commander.start_with(wire::bytes(&[b"PUBLISH", topic, b""]), None).is_ok()
    }

    /// Makes the connection anew.
    pub(super) fn renew(&self) {
        self.commander.renew();
    }

    /// Whether Redis answers; everything queued before has been handled when this returns.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), LayerError> {
        Ok(self.commander.ping(limit).await?)
    }
}
