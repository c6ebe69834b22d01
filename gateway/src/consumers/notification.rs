//! `/ws/notifications/`: the user's notifications and nothing else.

use persistence::Stream;

use super::limits::Guard;
use super::send;
use crate::admission::Ask;
use crate::consumer::{Consumer, Context, Frame, Handlers, Outcome, Refusal};
use crate::events;
use crate::frames::{ClientFrame, ErrorCode, ErrorFrame};

/// Serves one notification connection.
#[derive(Default)]
pub struct NotificationConsumer {
    guard: Option<Guard>,
}

impl Consumer for NotificationConsumer {
    const KEEPS_SCOPE: bool = false;

    fn handlers(handlers: &mut Handlers<Self>) {
        // Rooms are of no interest here, so news of them are no unknown events either.
        handlers
            .shared("notification.message", events::notification_message)
            .shared(events::ROOMS_CHANGED, |_| None)
            .shared(events::SEEN, events::seen);
    }

    async fn connect(&mut self, ctx: &mut Context) -> Result<(), Refusal> {
        // Makes the user known; rooms are of no interest here.
        let ask = Ask { user: ctx.username().clone(), enter: None, named: Vec::new(), open: false };
        ctx.node().admissions.admit(ask).await.map_err(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, "the user could not be noted");
            Refusal::Unavailable
        })?;
        let group = ctx.node().names.user(ctx.username()).map_err(|_| Refusal::Failed)?;
        let stream = Stream::Inbox(ctx.username().to_string());
        ctx.join_streams(vec![(group, stream)]).await
    }

    async fn receive(&mut self, ctx: &mut Context, frame: Frame) -> Outcome {
        match send::read(ctx, &mut self.guard, frame)? {
            Some(ClientFrame::Notification { user_name, message, client_id }) => {
                send::notification(ctx, user_name, message, client_id).await
            }
            Some(ClientFrame::Notifications { range, limit, unseen }) => send::inbox(ctx, range, unseen, limit).await,
            Some(ClientFrame::Seen(which)) => send::seen(ctx, which).await,
            Some(ClientFrame::Resume { rooms, notifications }) => {
                send::resume(ctx, rooms, notifications, |_| false).await
            }
            Some(ClientFrame::Auth { token }) => send::renew(ctx, &token).map(|_| ()),
            // This socket hears no rooms, so none is its own.
            Some(ClientFrame::Chat { client_id, .. }) => no_room(ctx, client_id),
            Some(ClientFrame::History { .. } | ClientFrame::Typing { .. } | ClientFrame::Presence { .. }) => {
                no_room(ctx, None)
            }
            Some(ClientFrame::Rooms) => ctx.send_frame("rooms", &serde_json::json!({"type": "rooms", "rooms": []})),
            None => Ok(()),
        }
    }
}

fn no_room(ctx: &Context, client_id: Option<String>) -> Outcome {
    send::answer_error(ctx, &ErrorFrame::new(ErrorCode::RoomNotFound, "no such room", client_id));
    Ok(())
}
