//! How a socket hears its groups whose consumer is the site's own: event by event, or, where its class has said so,
//! rendered once for all sockets of the class.

use std::sync::Arc;

use channel_layer::{Event, GroupName};

use crate::websocket::WireFrame;

/// What hears for a socket. It must only queue.
pub(crate) trait Ear: Send + Sync {
    /// Hands an event to the consumer's own handler.
    fn hear(&self, event: &Arc<Event>);

    /// The class of the consumer, where some of its handlers are shared.
    fn class(&self) -> Option<Arc<dyn Class>>;

    /// Whether the consumer is in a group, or would be if the layer were there.
    fn wants(&self, group: &GroupName) -> bool;
}

/// A class of consumers.
pub(crate) trait Class: Send + Sync {
    /// Its number; no two have the same.
    fn id(&self) -> u64;

    /// Whether an event is rendered once for all its sockets.
    fn shares(&self, event: &Event) -> bool;

    /// Has an event rendered. It must only queue.
    fn render(self: Arc<Self>, event: &Arc<Event>, done: Done);
}

/// Takes what became of a rendering. Dropped unused, the event is for own handlers.
pub(crate) type Done = Box<dyn FnOnce(Shown) + Send>;

/// What became of a rendering.
#[derive(Debug, Clone)]
pub(crate) enum Shown {
    /// What every socket is sent; nothing is fine.
    Frames(Vec<WireFrame>),
    /// Each socket's own handler is to have it.
    Own,
}
