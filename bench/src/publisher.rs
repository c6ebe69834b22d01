//! Events that nobody stores, sent as a Django process or any other service sends them: with
//! `group_send` on the channel layer.

use anyhow::{Context, Result};
use channel_layer::{ChannelLayer, Event, GroupName, RedisPubSubLayer};
use tokio::runtime::{Builder, Runtime};

/// Sends to groups; what is pending leaves together.
pub(crate) struct Publisher {
    layer: RedisPubSubLayer,
    runtime: Runtime,
}

impl Publisher {
    /// Connects to Redis.
    pub(crate) fn start(redis_url: &str) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let layer = runtime.block_on(RedisPubSubLayer::connect(redis_url)).context("no channel layer")?;
        Ok(Self { layer, runtime })
    }

    /// Sends a chat event to a room, whose name must be valid in a group's.
    pub(crate) fn chat(&self, room: &str, text: &str) -> Result<()> {
        let event = Event::new("chat_message")
            .with("message", text)
            .with("group_name", room)
            .with("from_user", "publisher")
            .with("cate", "chat");
        self.send(&format!("chat_{room}"), &event)
    }

    /// Sends a notification to a user, whose name must be valid as a group's.
    pub(crate) fn notify(&self, user: &str, text: &str) -> Result<()> {
        let event = Event::new("notification_message")
            .with("message", text)
            .with("from_user", "publisher")
            .with("cate", "notification")
            .with("id", 0);
        self.send(user, &event)
    }

    fn send(&self, group: &str, event: &Event) -> Result<()> {
        let _here = self.runtime.enter();
        Ok(self.layer.group_send_later(&GroupName::parse(group)?, event)?)
    }
}
