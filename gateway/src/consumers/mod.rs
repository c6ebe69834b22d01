//! The consumer framework, and the built-in consumers with their routes.

pub(crate) mod bridged;
mod chat;
pub(crate) mod connection;
pub(crate) mod frames;
pub(crate) mod framework;
pub(crate) mod history;
mod notification;
pub(crate) mod resume;
pub(crate) mod routing;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumers::framework::ConsumerClass;
    use crate::handlers::Lookup;
    use crate::words::EventType;

    /// An event of ours that a consumer hears and does not know would be counted as somebody's mistake.
    #[test]
    fn every_event_of_ours_has_a_handler_wherever_it_comes() {
        let (chat, inbox) = (
            ConsumerClass::new(ChatConsumer::default, |_| {}),
            ConsumerClass::new(NotificationConsumer::default, |_| {}),
        );
        for kind in EventType::ALL {
            assert!(!matches!(chat.table.lookup(kind.as_str()), Lookup::Unknown), "{kind:?}");
            let is_of_rooms = matches!(kind, EventType::ChatMessage | EventType::Typing | EventType::Redacted);
            let is_known = !matches!(inbox.table.lookup(kind.as_str()), Lookup::Unknown);
            assert_eq!(is_known, !is_of_rooms, "{kind:?}");
        }
    }
}
