//! Catching up: what a client missed is sent before anything newer, from memory or from the database.
//!
//! The stream is held first, then read, then released: live frames that came in between follow what
//! was missed, without a hole and without a repetition.

use std::future::poll_fn;
use std::task::Poll;

use channel_layer::GroupName;
use persistence::{Head, Message, Page, Range, StoreError, Stream};
use uuid::Uuid;

use crate::consumers::framework::Context;
use crate::events;
use crate::hub::{ClientPosition, PAGE_BYTES, Released, renderer};
use crate::metrics::{ByKind, ByType};
use crate::socket::Socket;
use crate::websocket::WireFrame;

/// Rows read at a time: at first, and at most. How many it is in between depends on what the client takes.
const FIRST_PAGE: u64 = 50;
const MAX_PAGE: u64 = 200;
const MIN_PAGE: u64 = 4;

/// How often a stream that is busier than its client is read again before the client is sent away.
const ROUNDS: usize = 10;

/// Sends what is missing after `place` and lets the stream go on. `false`: the place is unknown, too
/// old or of another history, and the stream goes on from now; or it is not, or no more, the socket's.
pub(crate) async fn resume(
    ctx: &Context,
    group: &GroupName,
    stream: &Stream,
    mut place: ClientPosition,
) -> Result<bool, StoreError> {
    let (node, socket) = (ctx.node(), ctx.socket());
    let count = |kind| node.metrics.resumes.get_or_create(&ByKind { kind }).inc();
    node.hub.hold(socket, group);
    if crate::lossy::is_lossy() {
        node.hub.release(socket, group, place.seq);
        return Ok(true);
    }
    for _ in 0..ROUNDS {
        if !node.hub.has(socket, group) {
            return Ok(false);
        }
        let most = node.config.limits.resume_frames;
        let at = match node.hub.recall(group, stream, place, most, &node.resume_reads).await? {
            Some((frames, last)) => {
                count(if frames.is_empty() { "nothing" } else { "memory" });
                if !send_all(ctx, group, stream, &frames).await {
                    return Ok(false);
                }
                last
            }
            None => match from_database(ctx, group, stream, place).await? {
                Some(last) => {
                    count("database");
                    last
                }
                None => {
                    count("refused");
                    // Also if some of what was held had to be dropped: the client reloads.
                    while node.hub.release(socket, group, 0) == Released::Overflowed {}
                    return Ok(false);
                }
            },
        };
        match node.hub.release(socket, group, at) {
            Released::Live => return Ok(true),
            // More came meanwhile than may be held; it is in the database.
            Released::Overflowed => {
                count("overflowed");
                place = ClientPosition { seq: at, id: None };
            }
        }
    }
    socket.close(crate::CloseReason::SlowConsumer);
    Ok(true)
}

/// Sends frames at the pace of the client. `false` when the stream was taken from it meanwhile.
async fn send_all(ctx: &Context, group: &GroupName, stream: &Stream, frames: &[WireFrame]) -> bool {
    let mut sent = 0;
    while let Some(next) = frames.get(sent) {
        room_for(ctx, next.len()).await;
        if ctx.socket().closing().is_some() {
            return true;
        }
        if !ctx.node().hub.has(ctx.socket(), group) {
            return false;
        }
        sent += send_what_fits(ctx, stream, &frames[sent..]);
    }
    true
}

/// Sends as many of these frames as may wait for the client, and returns how many that were. Some
/// room is left for what is live.
fn send_what_fits<'a>(ctx: &Context, stream: &Stream, frames: impl IntoIterator<Item = &'a WireFrame>) -> usize {
    let (socket, mut sent) = (ctx.socket(), 0);
    for frame in frames {
        if !has_room(socket, frame.len()) {
            socket.flush();
            if !has_room(socket, frame.len()) {
                break;
            }
        }
        socket.push(frame);
        sent += 1;
    }
    socket.flush();
    let label = ByType { r#type: kind(stream) };
    ctx.node().metrics.frames_sent.get_or_create(&label).inc_by(sent as u64);
    sent
}

fn has_room(socket: &Socket, bytes: usize) -> bool {
    let waiting = socket.waiting();
    waiting == 0 || waiting + bytes <= socket.outbox_limit() / 4 * 3
}

/// Waits until so many bytes more may wait for the client, or it is gone: closed by what else happens to it, or as one
/// that takes nothing, like any client that is silent for long.
async fn room_for(ctx: &Context, bytes: usize) {
    let socket = ctx.socket();
    if has_room(socket, bytes) {
        return;
    }
    socket.waits_for_client(ctx.node().clock.seconds());
    poll_fn(|task| {
        socket.register(task.waker());
        socket.poll_flush(task);
        let done = has_room(socket, bytes) || socket.closing().is_some();
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    socket.waits_no_more();
}

fn kind(stream: &Stream) -> &'static str {
    match stream {
        Stream::Room(_) => "chat",
        Stream::Inbox(_) => "notification",
    }
}

/// Reads and sends what is missing after `place`, and returns where the client stands then.
async fn from_database(
    ctx: &Context,
    group: &GroupName,
    stream: &Stream,
    place: ClientPosition,
) -> Result<Option<u64>, StoreError> {
    let Some(mut reader) = PageReader::new(ctx, group, stream, place).await? else { return Ok(None) };
    Ok(reader.send(ctx).await?.then_some(reader.at))
}

/// A row and its frame, if it can be shown.
type Row = (u64, Uuid, Option<WireFrame>);

/// Reads a stream from the database for one client.
struct PageReader<'a> {
    group: &'a GroupName,
    stream: &'a Stream,
    display_name: String,
    /// Where the client stands.
    at: u64,
    /// The id it must have there, until that has been checked.
    check: Option<Uuid>,
    /// Where the stream stood at first.
    last: u64,
    page: u64,
}

impl<'a> PageReader<'a> {
    /// `None` when the head alone says that the place is not one to go on from.
    async fn new(
        ctx: &Context,
        group: &'a GroupName,
        stream: &'a Stream,
        place: ClientPosition,
    ) -> Result<Option<Self>, StoreError> {
        let most = ctx.node().config.limits.resume_frames;
        let Some((head, display_name)) = head(ctx, stream).await? else {
            let reader =
                Self { group, stream, display_name: String::new(), at: 0, check: None, last: 0, page: FIRST_PAGE };
            return Ok((place.seq == 0).then_some(reader));
        };
        let check = place.id.filter(|_| place.seq > 0);
        let missed = head.last_seq.checked_sub(place.seq);
        let known = missed.is_some_and(|missed| {
            (most == 0 || missed <= most) && (missed > 0 || check.is_none() || check == head.last_id)
        });
        let check = check.filter(|_| missed != Some(0));
        let reader = Self { group, stream, display_name, at: place.seq, check, last: head.last_seq, page: FIRST_PAGE };
        Ok(known.then_some(reader))
    }

    /// Sends everything after the client's place, in pages. `false` when it is not there: of another
    /// history, or deleted; or when the stream was taken from the client meanwhile.
    async fn send(&mut self, ctx: &Context) -> Result<bool, StoreError> {
        while self.at < self.last {
            // Only reading is bounded over all clients; a slow one keeps nobody else from it.
            let (rows, was_cut) = self.rows(ctx).await?;
            if !ctx.node().hub.has(ctx.socket(), self.group) {
                return Ok(false);
            }
            let full = was_cut || rows.len() as u64 == self.limit();
            let rows = match self.check.take() {
                None => &rows[..],
                Some(id) => match &rows[..] {
                    [(seq, found, _), rows @ ..] if (*seq, *found) == (self.at, id) => rows,
                    _ => return Ok(false),
                },
            };
            let whole = (self.at + 1..).zip(rows).all(|(expected, (seq, ..))| *seq == expected);
            let Some((last, ..)) = rows.last().filter(|_| whole) else { return Ok(false) };
            let shown: Vec<_> = rows.iter().filter_map(|(seq, _, frame)| Some((*seq, frame.as_ref()?))).collect();
            let sent = send_what_fits(ctx, self.stream, shown.iter().map(|(_, frame)| *frame));
            if let Some((seq, frame)) = shown.get(sent) {
                let bytes = frame.len();
                self.at = seq - 1;
                // The rest of the page does not wait here for the client: it is read again.
                self.page = (self.page / 2).max(MIN_PAGE);
                drop(shown);
                room_for(ctx, bytes).await;
                if ctx.socket().closing().is_some() {
                    return Ok(true);
                }
            } else {
                self.at = *last;
                self.page = (self.page * 2).min(MAX_PAGE);
                if !full {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    fn limit(&self) -> u64 {
        self.page + u64::from(self.check.is_some())
    }

    /// The next rows, and whether there would have been more but for their bytes; the one that the client has
    /// comes first as long as its id has to be checked.
    async fn rows(&self, ctx: &Context) -> Result<(Vec<Row>, bool), StoreError> {
        let (store, render) = (ctx.store(), renderer(self.stream));
        let range = Range::After(self.at - u64::from(self.check.is_some()));
        let _permit = ctx.node().resume_reads.acquire().await;
        let read = async {
            let (rows, cut) = store.page(self.stream, Page::new(range, self.limit()).within(PAGE_BYTES)).await?;
            let event = |row: &Message| match self.stream {
                Stream::Room(room) => events::chat_event(room, &self.display_name, row),
                Stream::Inbox(_) => events::notification_event(row),
            };
            let row = |row: &Message| (row.seq, row.id, render(&event(row)).map(|shown| shown.frame));
            Ok((rows.iter().map(row).collect(), cut))
        };
        ctx.node().metrics.time_store("resume", read).await
    }
}

/// The head of a stream, and what people call it.
async fn head(ctx: &Context, stream: &Stream) -> Result<Option<(Head, String)>, StoreError> {
    let store = ctx.store();
    let _permit = ctx.node().resume_reads.acquire().await;
    let read = async {
        Ok(match stream {
            Stream::Room(room) => store.room(room).await?.map(|room| {
                let head = Head { epoch: room.epoch, last_seq: room.last_seq, last_id: room.last_id };
                (head, room.display_name)
            }),
            Stream::Inbox(user) => {
                let mut heads = store.inbox_heads(std::slice::from_ref(user)).await?;
                heads.remove(user).map(|head| (head, String::new()))
            }
        })
    };
    ctx.node().metrics.time_store("resume", read).await
}
