//! What both built-in consumers do with a client's frames: read them, keep the limits, store
//! messages, and answer with `ack` or `error`.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use persistence::{Append, AppendError, Appended, Key, Range, Seen, StoreError, Stream};

use super::limits::{Guard, Verdict};
use crate::config::ClientNotifications;
use crate::consumer::{Context, Frame, Outcome, Streams};
use crate::events;
use crate::frames::{Ack, ClientFrame, ErrorCode, ErrorFrame};
use crate::metrics::{ByCate, ByReason};
use crate::pages;
use crate::resume::Place;
use crate::writer::WriteError;

/// Reads a frame, within the limits. `None` when it has been answered already.
pub(super) fn read(
    ctx: &Context,
    guard: &mut Option<Guard>,
    frame: Frame,
) -> Result<Option<ClientFrame>, crate::CloseReason> {
    let limits = &ctx.node().config.limits;
    let guard = guard.get_or_insert_with(|| Guard::new(limits));
    match guard.frame(limits, Instant::now())? {
        Verdict::Serve => {}
        Verdict::Warn => {
            answer_error(ctx, &ErrorFrame::new(ErrorCode::RateLimited, "too many frames", None));
            return Ok(None);
        }
        Verdict::Ignore => {
            count_bad(ctx, ErrorCode::RateLimited.as_str());
            return Ok(None);
        }
    }
    let parsed = match frame {
        Frame::Text(text) => ClientFrame::parse(&text),
        Frame::Binary(_) => Err(ErrorFrame::new(ErrorCode::Invalid, "binary frames mean nothing here", None)),
    };
    match parsed {
        Ok(frame) => {
            guard.good();
            ctx.node().metrics.frames_received.get_or_create(&ByCate { cate: frame.cate() }).inc();
            Ok(Some(frame))
        }
        Err(error) => {
            ctx.node().metrics.frames_received.get_or_create(&ByCate { cate: "bad" }).inc();
            answer_error(ctx, &error);
            guard.bad()?;
            Ok(None)
        }
    }
}

/// Sends an `error` frame and counts it.
pub(super) fn answer_error(ctx: &Context, error: &ErrorFrame) {
    count_bad(ctx, error.code());
    // An error frame of ours always serializes.
    let _ = ctx.send_frame("error", error);
}

fn count_bad(ctx: &Context, reason: &'static str) {
    ctx.node().metrics.frames_bad.get_or_create(&ByReason { reason }).inc();
}

/// Says that the database is away, and why to the operator.
pub(super) fn answer_unavailable(ctx: &Context, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(error, "a frame could not be served");
    answer_error(ctx, &ErrorFrame::new(ErrorCode::Unavailable, "try again", None));
}

/// Sends a page, or says that the database is away.
pub(super) fn answer_page(ctx: &Context, kind: &'static str, page: Result<serde_json::Value, StoreError>) -> Outcome {
    match page {
        Ok(frame) => ctx.send_frame(kind, &frame),
        Err(error) => {
            answer_unavailable(ctx, &error);
            Ok(())
        }
    }
}

/// A page of the user's inbox.
pub(super) async fn inbox(ctx: &Context, range: Range, unseen: bool, limit: u64) -> Outcome {
    let page = pages::notifications(ctx.node(), ctx.username(), range, unseen, limit).await;
    answer_page(ctx, "notifications", page)
}

/// Marks notifications as seen.
pub(super) async fn seen(ctx: &Context, which: Seen) -> Outcome {
    let frame = pages::mark_seen(ctx.node(), ctx.username(), which, Some(ctx.channel_name().as_str())).await;
    answer_page(ctx, "seen", frame)
}

/// Catches up in all streams that the client names, then says where that worked. `heard` tells which
/// rooms are the user's. When the database is away the streams stay held until the client asks again.
pub(super) async fn resume(
    ctx: &mut Context,
    rooms: Vec<(String, Place)>,
    inbox: Option<Place>,
    heard: impl Fn(&str) -> bool,
) -> Outcome {
    ctx.set_streams(Streams::Resuming);
    match catch_up(ctx, rooms, inbox, heard).await {
        Ok(frame) => {
            // Streams that the client did not name go on too.
            ctx.release_streams();
            ctx.send_frame("resumed", &frame)
        }
        Err(error) => {
            answer_unavailable(ctx, &error);
            Ok(())
        }
    }
}

async fn catch_up(
    ctx: &Context,
    rooms: Vec<(String, Place)>,
    inbox: Option<Place>,
    heard: impl Fn(&str) -> bool,
) -> Result<serde_json::Value, StoreError> {
    let names = &ctx.node().names;
    let mut resumed = serde_json::Map::new();
    for (room, place) in rooms {
        let group = names.room(&room).ok().filter(|_| heard(&room));
        let went_on = match group {
            Some(group) => crate::resume::resume(ctx, &group, &Stream::Room(room.clone()), place).await?,
            None => false,
        };
        resumed.insert(room, went_on.into());
    }
    let mut frame = serde_json::json!({"type": "resumed", "rooms": resumed});
    if let (Some(place), Ok(group)) = (inbox, names.user(ctx.username())) {
        let stream = Stream::Inbox(ctx.username().to_string());
        frame["notifications"] = crate::resume::resume(ctx, &group, &stream, place).await?.into();
    }
    Ok(frame)
}

/// Renews the sign-in in place. Returns the rooms that the new token names, or `None` when it was refused.
pub(super) fn renew(ctx: &Context, token: &str) -> Result<Option<Vec<String>>, crate::CloseReason> {
    let claims = match ctx.node().auth.check(token) {
        Ok(claims) => claims,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "token refused");
            answer_error(ctx, &ErrorFrame::new(ErrorCode::Invalid, "the token is not valid", None));
            return Ok(None);
        }
    };
    if claims.username != **ctx.username() {
        answer_error(ctx, &ErrorFrame::new(ErrorCode::Forbidden, "the token is another user's", None));
        return Ok(None);
    }
    ctx.socket().expires_at.store(claims.expires_at, std::sync::atomic::Ordering::Relaxed);
    let expires_at = time::OffsetDateTime::from_unix_timestamp(claims.expires_at)
        .unwrap_or(time::macros::datetime!(9999-12-31 23:59:59 UTC));
    ctx.send_frame("auth", &serde_json::json!({"type": "auth", "expires_at": events::rfc3339(expires_at)}))?;
    Ok(Some(claims.rooms))
}

/// Stores a chat message; it reaches the room when it is committed.
pub(super) async fn chat(ctx: &Context, room: String, message: String, client_id: Option<String>) -> Outcome {
    store(ctx, Stream::Room(room), message, client_id).await
}

/// Stores a notification; it reaches the user when it is committed.
pub(super) async fn notification(ctx: &Context, user: String, message: String, client_id: Option<String>) -> Outcome {
    let allowed = match ctx.node().config.client_notifications {
        ClientNotifications::Any => true,
        ClientNotifications::Off => false,
        ClientNotifications::SharedRoom => match share_a_room(ctx, &user).await {
            Ok(shared) => shared,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "rooms could not be compared");
                answer_error(ctx, &ErrorFrame::new(ErrorCode::Unavailable, "try again", client_id));
                return Ok(());
            }
        },
    };
    if !allowed {
        answer_error(ctx, &ErrorFrame::new(ErrorCode::Forbidden, "you may not notify this user", client_id));
        return Ok(());
    }
    store(ctx, Stream::Inbox(user), message, client_id).await
}

async fn share_a_room(ctx: &Context, user: &str) -> Result<bool, StoreError> {
    Ok(**ctx.username() == *user || ctx.store().share_room(ctx.username(), user).await?)
}

/// Hands over to the writer. The answer goes to the socket from there, so the next frame of this
/// client need not wait for this one's commit, and many share one transaction. It waits only while too much
/// of this client's waits to be stored.
async fn store(ctx: &Context, stream: Stream, message: String, client_id: Option<String>) -> Outcome {
    let username = ctx.username().to_string();
    let key = client_id.clone().map(|client_id| Key::Client { user: username.clone(), client_id });
    let append = Append { stream, from_user: username, message, key, create_inbox: false, origin: None };
    let (node, socket) = (Arc::clone(ctx.node()), Arc::clone(ctx.socket()));
    let writer = &ctx.node().writer;
    let bytes = writer.cost(&append);
    socket.begin_storing(bytes);
    let done = move |result: Result<Appended, WriteError>| {
        socket.end_storing(bytes);
        let (kind, text) = match result {
            Ok(appended) => match client_id {
                Some(client_id) => ("ack", ack(&client_id, &appended)),
                None => return,
            },
            Err(error) => {
                let error = write_error(&error, client_id);
                node.metrics.frames_bad.get_or_create(&ByReason { reason: error.code() }).inc();
                ("error", serde_json::to_string(&error))
            }
        };
        if let Ok(text) = text {
            node.send_to(&socket, &crate::websocket::WireFrame::text(&text), kind);
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
        r#type: "ack",
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
        WriteError::Unavailable => (ErrorCode::Unavailable, "try again".to_owned()),
    };
    ErrorFrame::new(code, detail, client_id)
}
