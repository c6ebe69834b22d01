//! `/ws/notifications/`: the user's notifications and nothing else.

use persistence::Stream;

use super::send;
use crate::consumers::frames::{Asked, ClientFrame, ErrorCode, ErrorFrame};
use crate::consumers::framework::{Consumer, Context, Frame, Handlers, Outcome, Refusal};
use crate::events;
use crate::storing::admission::Ask;
use crate::words::{EventType, FrameType};

/// Serves one notification connection.
#[derive(Default)]
pub struct NotificationConsumer {
    /// Bad frames in a row.
    bad: u8,
}

impl Consumer for NotificationConsumer {
    const KEEPS_SCOPE: bool = false;

    fn handlers(handlers: &mut Handlers<Self>) {
        // Rooms are of no interest here, so news of them are no unknown events either.
        handlers
            .shared(EventType::NotificationMessage.as_str(), events::notification_message)
            .shared(EventType::RoomsChanged.as_str(), |_| None)
            .shared(EventType::Seen.as_str(), events::seen);
    }

    async fn connect(&mut self, ctx: &mut Context) -> Result<(), Refusal> {
        // Makes the user known; rooms are of no interest here.
        let ask = Ask { user: ctx.username().clone(), enter: None, named: Vec::new(), open: false, anonymous: false };
        ctx.node().admissions.admit(ask).await.map_err(|error| {
            ctx.tell("the user could not be noted", &error);
            Refusal::Unavailable
        })?;
        let group = ctx.node().names.user(ctx.username()).map_err(|_| Refusal::Failed)?;
        let stream = Stream::Inbox(ctx.username().to_string());
        ctx.join_streams(vec![(group, stream)]).await
    }

    fn rate_limited(&mut self, ctx: &mut Context, dropped: Option<&Frame>) -> Outcome {
        send::rate_limited(ctx, dropped)
    }

    async fn receive(&mut self, ctx: &mut Context, frame: Frame) -> Outcome {
        let Some(Asked { frame, client_id }) = send::read(ctx, &mut self.bad, frame)? else { return Ok(()) };
        match frame {
            ClientFrame::Notification { user_name, content } => {
                send::notification(ctx, user_name, content, client_id).await
            }
            ClientFrame::Notifications { range, limit, unseen } => {
                send::inbox(ctx, range, unseen, limit, client_id).await
            }
            ClientFrame::Seen(which) => send::seen(ctx, which, client_id).await,
            ClientFrame::Resume { rooms, notifications } => {
                send::resume(ctx, rooms, notifications, |_| false, client_id).await
            }
            ClientFrame::Auth { token } => send::renew(ctx, &mut self.bad, &token, client_id).await.map(|_| ()),
            ClientFrame::Ping => send::pong(ctx, client_id),
            // This socket hears no rooms, so none is its own.
            ClientFrame::Chat { .. }
            | ClientFrame::History { .. }
            | ClientFrame::Typing { .. }
            | ClientFrame::Presence { .. } => no_room(ctx, client_id),
            ClientFrame::Rooms => {
                let frame = serde_json::json!({"type": FrameType::Rooms, "rooms": []});
                send::answer(ctx, FrameType::Rooms, &frame, client_id)
            }
        }
    }
}

fn no_room(ctx: &Context, client_id: Option<String>) -> Outcome {
    send::answer_error(ctx, &ErrorFrame::new(ErrorCode::RoomNotFound, "no such room", client_id));
    Ok(())
}
