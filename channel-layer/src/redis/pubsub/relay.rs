//! A relay's handle.

use std::sync::Arc;

use async_trait::async_trait;

use super::{layer::Inner, subscriber::Member};
use crate::{ChannelName, GroupName, LayerError, RelayBackend, name};

pub(super) struct RedisRelay {
    pub(super) inner: Arc<Inner>,
    pub(super) id: u64,
    /// What its channel names begin with.
    pub(super) prefix: String,
    /// The subscriber holds the weak end of it.
    pub(super) alive: Option<Arc<()>>,
}

#[async_trait]
impl RelayBackend for RedisRelay {
    fn new_channel(&self) -> ChannelName {
        ChannelName::trusted(format!("{}{}", self.prefix, name::random_hex16()))
    }

    async fn join(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        groups.iter().try_for_each(|group| self.inner.check(group))?;
        self.inner.subscriber.join(Member::Relay(self.id), groups.to_vec()).await
    }

    async fn leave(&self, groups: &[GroupName]) -> Result<(), LayerError> {
        self.inner.subscriber.leave(Member::Relay(self.id), groups.to_vec()).await
    }
}

impl Drop for RedisRelay {
    fn drop(&mut self) {
        self.alive = None;
        self.inner.subscriber.relay_gone.notify_one();
    }
}
