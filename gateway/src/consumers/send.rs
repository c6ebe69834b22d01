//! What both built-in consumers do with a client's frames: read them, keep the limits, store
//! messages, and answer with `ack` or `error`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use persistence::{Append, AppendError, Appended, Key, Range, Seen, StoreError, Stream};
use serde::Serialize;

use crate::auth::NotSignedIn;
use crate::close::CloseReason;
use crate::config::ClientNotifications;
use crate::consumers::frames::{self, Ack, Asked, ClientFrame, Content, ErrorCode, ErrorFrame};
use crate::consumers::framework::{Context, Frame, Outcome, Streams};
use crate::consumers::history;
use crate::data;
use crate::events;
use crate::hub::ClientPosition;
use crate::metrics::{ByCate, ByReason};
use crate::scope::Access;
use crate::storing::writer::WriteError;
use crate::words::FrameType;

/// Bad frames in a row that end a connection.
const BAD_FRAMES: u8 = 20;

/// Reads a frame. `None` when it has been answered already; `bad` counts bad ones in a row.
pub(super) fn read(ctx: &Context, bad: &mut u8, frame: Frame) -> Result<Option<Asked>, CloseReason> {
    let parsed = match &frame {
        Frame::Text(text) => ClientFrame::parse(text),
        Frame::Binary(_) => {
            Err(ErrorFrame::new(ErrorCode::Invalid, "binary frames mean nothing here", client_id(&frame)))
        }
    };
    match parsed {
        Ok(asked) => {
            // Of this kind only a good token makes a good frame.
            if !matches!(asked.frame, ClientFrame::Auth { .. }) {
                *bad = 0;
            }
            let (cate, client_id) = (asked.frame.cate().as_str(), asked.client_id.as_deref());
            tracing::debug!(cate, client_id, channel = %ctx.channel_name(), user = &**ctx.username(), "a frame has come");
            ctx.node().metrics.frames_received.get_or_create(&ByCate { cate }).inc();
            Ok(Some(asked))
        }
        Err(error) => {
            ctx.node().metrics.frames_received.get_or_create(&ByCate { cate: "bad" }).inc();
            answer_error(ctx, &error);
            one_more(bad).map(|()| None)
        }
    }
}

/// Counts a bad frame; after so many in a row the socket is closed.
fn one_more(bad: &mut u8) -> Outcome {
    *bad += 1;
    if *bad < BAD_FRAMES { Ok(()) } else { Err(CloseReason::PolicyViolation("too many bad frames")) }
}

/// Says that frames are dropped; they are counted already.
pub(super) fn rate_limited(ctx: &Context, dropped: Option<&Frame>) -> Outcome {
    let frame = ErrorFrame::new(ErrorCode::RateLimited, "too many frames", dropped.and_then(client_id));
    ctx.send_frame(FrameType::Error, &frame)
}

/// The `client_id` of a frame that is not served.
fn client_id(frame: &Frame) -> Option<String> {
    match frame {
        Frame::Text(text) => frames::client_id(text),
        Frame::Binary(bytes) => frames::client_id(std::str::from_utf8(bytes).ok()?),
    }
}

/// Answers a frame: what it asked for, and its `client_id`.
pub(super) fn answer(ctx: &Context, kind: FrameType, frame: &impl Serialize, client_id: Option<String>) -> Outcome {
    #[derive(Serialize)]
    struct Answer<'a, T> {
        #[serde(flatten)]
        frame: &'a T,
        #[serde(skip_serializing_if = "Option::is_none")]
        client_id: Option<String>,
    }
    ctx.send_frame(kind, &Answer { frame, client_id })
}

/// Sends an `error` frame and counts it.
pub(super) fn answer_error(ctx: &Context, error: &ErrorFrame) {
    ctx.node().metrics.frames_bad.get_or_create(&ByReason { reason: error.code() }).inc();
    // An error frame of ours always serializes.
    let _ = ctx.send_frame(FrameType::Error, error);
}

/// Says that the database is away, and why to the operator.
pub(super) fn answer_unavailable(ctx: &Context, error: &(dyn std::error::Error + 'static), client_id: Option<String>) {
    ctx.tell("a frame could not be served", error);
    answer_error(ctx, &ErrorFrame::new(ErrorCode::Unavailable, "try again", client_id));
}

/// Sends a page, or says that the database is away.
pub(super) fn answer_page(
    ctx: &Context,
    kind: FrameType,
    page: Result<impl Serialize, StoreError>,
    client_id: Option<String>,
) -> Outcome {
    match page {
        Ok(frame) => answer(ctx, kind, &frame, client_id),
        Err(error) => {
            answer_unavailable(ctx, &error, client_id);
            Ok(())
        }
    }
}

/// A page of the user's inbox.
pub(super) async fn inbox(ctx: &Context, range: Range, unseen: bool, limit: u64, client_id: Option<String>) -> Outcome {
    let page = history::notifications(ctx.node(), ctx.username(), range, unseen, limit).await;
    answer_page(ctx, FrameType::Notifications, page, client_id)
}

/// Marks notifications as seen. Only who asked is answered; the user's other sockets are told.
pub(super) async fn seen(ctx: &Context, which: Seen, client_id: Option<String>) -> Outcome {
    let frame = history::mark_seen(ctx.node(), ctx.username(), which, Some(ctx.channel_name().as_str())).await;
    answer_page(ctx, FrameType::Seen, frame, client_id)
}

/// Catches up in all streams that the client names, then says where that worked. `heard` tells which
/// rooms are the user's. When the database is away the streams stay held until the client asks again.
pub(super) async fn resume(
    ctx: &mut Context,
    rooms: Vec<(String, ClientPosition)>,
    inbox: Option<ClientPosition>,
    heard: impl Fn(&str) -> bool,
    client_id: Option<String>,
) -> Outcome {
    ctx.set_streams(Streams::Resuming);
    match catch_up(ctx, rooms, inbox, heard).await {
        Ok(frame) => {
            // Streams that the client did not name go on too.
            ctx.release_streams();
            answer(ctx, FrameType::Resumed, &frame, client_id)
        }
        Err(error) => {
            answer_unavailable(ctx, &error, client_id);
            Ok(())
        }
    }
}

async fn catch_up(
    ctx: &Context,
    rooms: Vec<(String, ClientPosition)>,
    inbox: Option<ClientPosition>,
    heard: impl Fn(&str) -> bool,
) -> Result<events::Resumed, StoreError> {
    let names = &ctx.node().names;
    let mut resumed = Vec::new();
    for (room, place) in rooms {
        let group = names.room(&room).ok().filter(|_| heard(&room));
        let went_on = match group {
            Some(group) => crate::consumers::resume::resume(ctx, &group, &Stream::Room(room.clone()), place).await?,
            None => false,
        };
        resumed.push((room, went_on));
    }
    let mut notifications = None;
    if ctx.access() != Access::Full {
        // Who has no name has no inbox.
        return Ok(events::Resumed::new(resumed, inbox.map(|_| false)));
    }
    if let (Some(place), Ok(group)) = (inbox, names.user(ctx.username())) {
        let stream = Stream::Inbox(ctx.username().to_string());
        notifications = Some(crate::consumers::resume::resume(ctx, &group, &stream, place).await?);
    }
    Ok(events::Resumed::new(resumed, notifications))
}

/// Renews the sign-in in place. Returns the rooms that the new token names, or `None` when it was refused.
pub(super) async fn renew(
    ctx: &Context,
    bad: &mut u8,
    token: &str,
    client_id: Option<String>,
) -> Result<Option<Vec<String>>, crate::CloseReason> {
    let refuse = |code, detail: &str| answer_error(ctx, &ErrorFrame::new(code, detail, client_id.clone()));
    let (user, proof) = match ctx.node().sign_in.user_of(token).await {
        Ok(signed_in) => (signed_in.user, signed_in.proof),
        Err(NotSignedIn::Unavailable(_)) => {
            refuse(ErrorCode::Unavailable, "try again");
            return Ok(None);
        }
        Err(_) => {
            refuse(ErrorCode::Invalid, "the token is not valid");
            return one_more(bad).map(|()| None);
        }
    };
    *bad = 0;
    if user.name != *ctx.username() {
        refuse(ErrorCode::Forbidden, "the token is another user's");
        return Ok(None);
    }
    let Some(unix) = user.expires_at else { return Ok(Some(user.rooms)) };
    ctx.socket().expires_at.store(ctx.node().clock.deadline(unix), std::sync::atomic::Ordering::Relaxed);
    // From now on the token says how long, whatever was shown before.
    if let Some(recheck) = ctx.socket().recheck() {
        recheck.replace(proof, ctx.node().recheck(), &ctx.node().clock);
    }
    let expires_at =
        time::OffsetDateTime::from_unix_timestamp(unix).unwrap_or(time::macros::datetime!(9999-12-31 23:59:59 UTC));
    let frame = serde_json::json!({"type": FrameType::Auth, "expires_at": events::rfc3339(expires_at)});
    answer(ctx, FrameType::Auth, &frame, client_id)?;
    Ok(Some(user.rooms))
}

/// Says that somebody is there.
pub(super) fn pong(ctx: &Context, client_id: Option<String>) -> Outcome {
    answer(ctx, FrameType::Pong, &serde_json::json!({"type": FrameType::Pong}), client_id)
}

/// Stores a chat message; it reaches the room when it is committed.
pub(super) async fn chat(ctx: &Context, room: String, content: Content, client_id: Option<String>) -> Outcome {
    store(ctx, Stream::Room(room), content, client_id).await
}

/// Stores a notification; it reaches the user when it is committed.
pub(super) async fn notification(ctx: &Context, user: String, content: Content, client_id: Option<String>) -> Outcome {
    let allowed = match ctx.node().config.client_notifications {
        ClientNotifications::Any => true,
        ClientNotifications::Off => false,
        ClientNotifications::SharedRoom => match share_a_room(ctx, &user).await {
            Ok(shared) => shared,
            Err(error) => {
                ctx.tell("rooms could not be compared", &error);
                answer_error(ctx, &ErrorFrame::new(ErrorCode::Unavailable, "try again", client_id));
                return Ok(());
            }
        },
    };
    if !allowed {
        answer_error(ctx, &ErrorFrame::new(ErrorCode::Forbidden, "you may not notify this user", client_id));
        return Ok(());
    }
    store(ctx, Stream::Inbox(user), content, client_id).await
}

async fn share_a_room(ctx: &Context, user: &str) -> Result<bool, StoreError> {
    Ok(**ctx.username() == *user || ctx.store().share_room(ctx.username(), user).await?)
}

/// Hands over to the writer. The answer goes to the socket from there, so the next frame of this
/// client need not wait for this one's commit, and many share one transaction. It waits only while too much
/// of this client's waits to be stored.
async fn store(ctx: &Context, stream: Stream, content: Content, client_id: Option<String>) -> Outcome {
    let most = ctx.node().config.limits.data_bytes;
    let data = match content.data.map_or(Ok(None), |data| data::read(&data, most)) {
        Ok(data) => data,
        Err(wrong) => {
            let code = if wrong == data::Wrong::TooLarge { ErrorCode::TooLarge } else { ErrorCode::Invalid };
            answer_error(ctx, &ErrorFrame::new(code, wrong.detail(), client_id));
            return Ok(());
        }
    };
    let username = Arc::clone(ctx.username());
    let key = client_id.clone().map(|client_id| Key::Client { user: Arc::clone(&username), client_id });
    let message = content.message.into();
    let append = Append { stream, from_user: username, message, data, key, create_inbox: false, origin: None };
    let (node, socket) = (Arc::clone(ctx.node()), Arc::clone(ctx.socket()));
    let writer = &ctx.node().writer;
    let bytes = writer.cost(&append);
    socket.begin_storing(bytes);
    let done = move |result: Result<Appended, WriteError>| {
        socket.end_storing(bytes);
        let (kind, text) = match result {
            Ok(appended) => {
                let Appended { id, seq, .. } = &appended;
                tracing::debug!(%id, seq, client_id, channel = %socket.channel_name, user = &*socket.user, "a frame's message is committed");
                match client_id {
                    Some(client_id) => (FrameType::Ack, ack(&client_id, &appended)),
                    None => return,
                }
            }
            Err(error) => {
                let error = write_error(&error, client_id);
                node.metrics.frames_bad.get_or_create(&ByReason { reason: error.code() }).inc();
                (FrameType::Error, serde_json::to_string(&error))
            }
        };
        if let Ok(text) = text {
            node.send_to(&socket, &crate::websocket::WireFrame::text(&text), kind.as_str());
        }
    };
    writer.submit(append, bytes, Box::new(done));
    let socket = ctx.socket();
    if !socket.is_within(writer.share()) {
        ctx.node().metrics.write_waits.inc();
        poll_fn(|task| {
            socket.register(task.waker());
            let go_on = socket.is_within(writer.share()) || socket.closing().is_some();
            if go_on { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    Ok(())
}

fn ack(client_id: &str, appended: &Appended) -> serde_json::Result<String> {
    serde_json::to_string(&Ack {
        r#type: FrameType::Ack,
        client_id,
        id: appended.id.to_string(),
        seq: appended.seq,
        date: events::rfc3339(appended.date),
    })
}

fn write_error(error: &WriteError, client_id: Option<String>) -> ErrorFrame {
    let (code, detail) = match error {
        WriteError::Refused(AppendError::RoomNotFound) => (ErrorCode::RoomNotFound, "no such room".to_owned()),
        WriteError::Refused(AppendError::UserNotFound) => (ErrorCode::UserNotFound, "no such user".to_owned()),
        WriteError::Refused(AppendError::KeyReused) => {
            (ErrorCode::Invalid, "client_id was used before with other content".to_owned())
        }
        WriteError::Refused(AppendError::Invalid(field)) => (ErrorCode::Invalid, format!("{field} cannot be stored")),
        WriteError::Unavailable | WriteError::Failed => (ErrorCode::Unavailable, "try again".to_owned()),
    };
    ErrorFrame::new(code, detail, client_id)
}
