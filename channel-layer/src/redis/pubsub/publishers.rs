//! Where the layer publishes: one connection to each host.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};

use crate::{LayerError, redis::publisher::Publisher, shard::shard};

/// One publisher a host, in the order of the hosts.
pub(super) struct Publishers(Vec<Publisher>);

impl Publishers {
    pub(super) fn new(publishers: Vec<Publisher>) -> Self {
        Self(publishers)
    }

    /// Returns when each of them has a connection.
    pub(super) async fn connected(&self) {
        join_all(self.0.iter().map(Publisher::connected)).await;
    }

    /// Publishes and waits until Redis has answered. Fails at once while the topic's host is away.
    pub(super) async fn publish(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        self.of(&topic)?.publish(topic, payload).await
    }

    /// Queues a publish and returns at once.
    pub(super) fn publish_later(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        self.of(&topic)?.publish_later(topic, payload)
    }

    /// Whether every host answers; everything queued before has been handled when this returns.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), LayerError> {
        try_join_all(self.0.iter().map(|publisher| publisher.ping(limit))).await.map(|_| ())
    }

    /// Publishes a probe to a host; tells whether it could be queued.
    pub(super) fn probe(&self, at: usize, topic: &[u8]) -> bool {
        self.0.get(at).is_some_and(|publisher| publisher.probe(topic))
    }

    /// Makes the connection to a host anew.
    pub(super) fn renew(&self, at: usize) {
        if let Some(publisher) = self.0.get(at) {
            publisher.renew();
        }
    }

    fn of(&self, topic: &[u8]) -> Result<&Publisher, LayerError> {
        self.0.get(shard(topic, self.0.len())).ok_or(LayerError::Closed)
    }
}
