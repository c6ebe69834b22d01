//! The consumer framework, and the built-in consumers with their routes.

mod chat;
pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod framework;
mod notification;
pub(crate) mod pages;
pub(crate) mod resume;
pub(crate) mod routing;
pub(crate) mod scope;
mod send;

pub use chat::ChatConsumer;
pub use notification::NotificationConsumer;

use crate::consumers::routing::Router;

/// The built-in routes (`docs/protocol.md`).
pub fn routes() -> Router {
    Router::new()
        .route("/ws/chat/{room_name}/", ChatConsumer::default)
        .route("/ws/chat/", ChatConsumer::default)
        .route("/ws/notifications/", NotificationConsumer::default)
}
