//! The built-in consumers, written with the framework and nothing else, and their routes.

mod chat;
mod notification;
mod send;

pub use chat::ChatConsumer;
pub use notification::NotificationConsumer;

use crate::routing::Router;

/// The built-in routes (`docs/protocol.md`).
pub fn routes() -> Router {
    Router::new()
        .route("/ws/chat/{room_name}/", ChatConsumer::default)
        .route("/ws/chat/", ChatConsumer::default)
        .route("/ws/notifications/", NotificationConsumer::default)
}
