//! `/ws/chat/` and `/ws/chat/{room_name}/`: all the user's rooms, and the user's notifications.

use std::sync::atomic::Ordering;

use channel_layer::Event;
use futures_util::FutureExt;
use persistence::{Range, Room, Stream};
use serde::Serialize;

use super::send;
use crate::close::CloseReason;
use crate::config::RoomPolicy;
use crate::consumers::frames::{Asked, ClientFrame, ErrorCode, ErrorFrame};
use crate::consumers::framework::{Consumer, Context, Frame, Handlers, Outcome, Refusal};
use crate::consumers::history;
use crate::events;
use crate::names;
use crate::scope::Access;
use crate::seldom::Seldom;
use crate::storing::admission::{Admitted, Ask, NotAdmitted};
use crate::words::{EventType, FrameType};

/// Serves one chat connection.
#[derive(Default)]
pub struct ChatConsumer {
    /// Names of the rooms this socket hears, sorted.
    rooms: Vec<Box<str>>,
    /// Rooms that the token names, for as long as the socket lives.
    named: Box<[String]>,
    /// Rooms that this socket has heard and hears no more. Nearly always there are none.
    left: Option<Box<Left>>,
    /// Bad frames in a row.
    bad: u8,
}

/// Names of rooms.
#[derive(Default)]
struct Left(Vec<Box<str>>);

/// Rooms that are remembered as left; over it the oldest go.
const MAX_LEFT: usize = 1000;

impl Consumer for ChatConsumer {
    const KEEPS_SCOPE: bool = false;
    const TAKES_ANONYMOUS: bool = true;

    fn handlers(handlers: &mut Handlers<Self>) {
        handlers
            .shared(EventType::ChatMessage.as_str(), events::chat_message)
            .shared(EventType::NotificationMessage.as_str(), events::notification_message)
            .shared(EventType::Seen.as_str(), events::seen)
            .shared(EventType::Typing.as_str(), events::typing)
            .shared(EventType::Redacted.as_str(), events::redacted)
            .own(EventType::RoomsChanged.as_str(), |consumer, ctx, event| consumer.rooms_changed(ctx, event).boxed());
    }

    /// Joins the user's group and the rooms' groups; from then on everything committed is heard.
    async fn connect(&mut self, ctx: &mut Context) -> Result<(), Refusal> {
        let scope = ctx.scope().ok_or(Refusal::Failed)?;
        let enter = scope.kwarg("room_name").map(str::to_owned);
        if enter.as_deref().is_some_and(|room| !names::is_valid_name(room)) {
            return Err(Refusal::NotFound);
        }
        if ctx.access() != Access::Full {
            return self.connect_anonymous(ctx, enter).await;
        }
        self.named = scope.user.rooms.as_slice().into();
        let Admitted { rooms, unheard, version, joined } = self.load_rooms(ctx, enter.clone()).await?;
        // Who is in too many rooms to hear this one is let in all the same: the others are theirs.
        let is_theirs = |enter: &String| rooms.iter().any(|room| room.name == *enter) || unheard.contains(enter);
        if enter.is_some_and(|enter| !is_theirs(&enter)) {
            return Err(Refusal::NotFound);
        }
        self.join(ctx, &rooms, true).await?;
        ctx.socket().memberships.store(version, Ordering::Relaxed);
        if joined {
            self.tell_other_sockets(ctx);
        }
        Ok(())
    }

    fn rate_limited(&mut self, ctx: &mut Context, dropped: Option<&Frame>) -> Outcome {
        send::rate_limited(ctx, dropped)
    }

    async fn receive(&mut self, ctx: &mut Context, frame: Frame) -> Outcome {
        let Some(Asked { frame, client_id }) = send::read(ctx, &mut self.bad, frame)? else { return Ok(()) };
        if !may(ctx.access(), &frame) {
            let what = "who is not signed in may not do this";
            send::answer_error(ctx, &ErrorFrame::new(ErrorCode::Forbidden, what, client_id));
            return Ok(());
        }
        match frame {
            ClientFrame::Chat { group_name, content } => {
                if !self.hears_or_says(ctx, &group_name, client_id.as_deref()) {
                    return Ok(());
                }
                send::chat(ctx, group_name, content, client_id).await
            }
            ClientFrame::Notification { user_name, content } => {
                send::notification(ctx, user_name, content, client_id).await
            }
            ClientFrame::Rooms => self.answer_rooms(ctx, client_id).await,
            ClientFrame::History { group_name, range, limit } => {
                self.answer_history(ctx, &group_name, range, limit, client_id).await
            }
            ClientFrame::Notifications { range, limit, unseen } => {
                send::inbox(ctx, range, unseen, limit, client_id).await
            }
            ClientFrame::Seen(which) => send::seen(ctx, which, client_id).await,
            ClientFrame::Typing { group_name } => self.typing(ctx, &group_name, client_id),
            ClientFrame::Presence { group_name } => self.answer_presence(ctx, &group_name, client_id).await,
            ClientFrame::Resume { rooms, notifications } => {
                send::resume(ctx, rooms, notifications, |room| self.hears(room), client_id).await
            }
            ClientFrame::Ping => send::pong(ctx, client_id),
            ClientFrame::Auth { token } => match send::renew(ctx, &mut self.bad, &token, client_id).await? {
                Some(rooms) => {
                    self.named = rooms.into();
                    self.refresh(ctx).await
                }
                None => Ok(()),
            },
        }
    }
}

/// What somebody may ask for. The rooms are looked at after that.
fn may(access: Access, frame: &ClientFrame) -> bool {
    match frame {
        ClientFrame::Ping | ClientFrame::History { .. } | ClientFrame::Resume { .. } => true,
        ClientFrame::Chat { .. } | ClientFrame::Typing { .. } => access != Access::Listen,
        _ => access == Access::Full,
    }
}

fn tell_of_unheard(ctx: &Context, admitted: &Admitted) {
    static LINE: Seldom = Seldom::new();
    ctx.node().metrics.rooms_unheard.inc();
    if let Some(times) = LINE.again() {
        let (heard, unheard) = (admitted.rooms.len(), admitted.unheard.len());
        tracing::warn!(channel = %ctx.channel_name(), user = &**ctx.username(), heard, unheard, times,
            "a user is in more rooms than limits.rooms_per_user and hears the oldest: raise it, or take the user out of some");
    }
}

#[derive(Serialize)]
struct RoomsFrame<'a> {
    r#type: FrameType,
    rooms: Vec<RoomEntry<'a>>,
}

#[derive(Serialize)]
struct RoomEntry<'a> {
    group_name: &'a str,
    display_name: &'a str,
    seq: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

impl ChatConsumer {
    /// Hears the room of the path, if it is one that anybody may enter, and nothing else.
    async fn connect_anonymous(&mut self, ctx: &mut Context, enter: Option<String>) -> Result<(), Refusal> {
        let Some(room) = enter else { return Ok(()) };
        if ctx.node().config.room_policy != RoomPolicy::Open {
            return Err(Refusal::NotFound);
        }
        let Admitted { rooms, .. } = self.load_rooms(ctx, Some(room)).await?;
        if rooms.is_empty() {
            return Err(Refusal::NotFound);
        }
        self.join(ctx, &rooms, false).await
    }

    fn hears(&self, room: &str) -> bool {
        self.rooms.binary_search_by(|known| (**known).cmp(room)).is_ok()
    }

    /// Whether the room is the user's; if not, says what it would say of a room that does not exist.
    fn hears_or_says(&self, ctx: &Context, room: &str, client_id: Option<&str>) -> bool {
        let hears = self.hears(room);
        if !hears {
            let error = ErrorFrame::new(ErrorCode::RoomNotFound, "no such room", client_id.map(str::to_owned));
            send::answer_error(ctx, &error);
        }
        hears
    }

    async fn answer_history(
        &self,
        ctx: &Context,
        room: &str,
        range: Range,
        limit: u64,
        client_id: Option<String>,
    ) -> Outcome {
        if !self.hears_or_says(ctx, room, client_id.as_deref()) {
            return Ok(());
        }
        let page = async {
            match ctx.store().room(room).await? {
                Some(room) => history::history(ctx.node(), room, range, limit).await.map(Some),
                None => Ok(None),
            }
        };
        match page.await.transpose() {
            Some(page) => send::answer_page(ctx, FrameType::History, page, client_id),
            // Deleted this very moment.
            None => {
                send::answer_error(ctx, &ErrorFrame::new(ErrorCode::RoomNotFound, "no such room", client_id));
                Ok(())
            }
        }
    }

    fn typing(&self, ctx: &Context, room: &str, client_id: Option<String>) -> Outcome {
        if self.hears_or_says(ctx, room, client_id.as_deref())
            && let Ok(group) = ctx.node().names.room(room)
            && ctx.node().tell(&group, events::typing_event(room, ctx.username())).is_err()
        {
            tracing::debug!(channel = %ctx.channel_name(), user = &**ctx.username(), "typing could not be told");
        }
        Ok(())
    }

    async fn answer_presence(&self, ctx: &Context, room: &str, client_id: Option<String>) -> Outcome {
        if !self.hears_or_says(ctx, room, client_id.as_deref()) {
            return Ok(());
        }
        let members = match ctx.store().members(room).await {
            Ok(members) => members,
            Err(error) => {
                send::answer_unavailable(ctx, &error, client_id);
                return Ok(());
            }
        };
        let group = ctx.node().names.room(room).ok();
        let mut users: Vec<String> = ctx.node().peers.online(&members, group).await.into_iter().collect();
        users.sort();
        let frame = serde_json::json!({"type": FrameType::Presence, "group_name": room, "users": users});
        send::answer(ctx, FrameType::Presence, &frame, client_id)
    }

    async fn load_rooms(&self, ctx: &Context, enter: Option<String>) -> Result<Admitted, Refusal> {
        let open = ctx.node().config.room_policy == RoomPolicy::Open;
        let anonymous = ctx.access() != Access::Full;
        let ask = Ask { user: ctx.username().clone(), enter, named: self.named.to_vec(), open, anonymous };
        match ctx.node().admissions.admit(ask).await {
            Ok(admitted) => {
                if !admitted.unheard.is_empty() {
                    tell_of_unheard(ctx, &admitted);
                }
                Ok(admitted)
            }
            Err(NotAdmitted::TooManyRooms) => Err(Refusal::TooMany),
            Err(error) => {
                ctx.tell("memberships could not be loaded", &error);
                Err(Refusal::Unavailable)
            }
        }
    }

    async fn join(&mut self, ctx: &mut Context, rooms: &[Room], with_inbox: bool) -> Result<(), Refusal> {
        let group_names = &ctx.node().names;
        let mut streams = Vec::with_capacity(rooms.len() + 1);
        if with_inbox {
            let group = group_names.user(ctx.username()).map_err(|_| Refusal::Failed)?;
            streams.push((group, Stream::Inbox(ctx.username().to_string())));
        }
        for room in rooms {
            let group = group_names.room(&room.name).map_err(|_| Refusal::Failed)?;
            streams.push((group, Stream::Room(room.name.clone())));
        }
        ctx.join_streams(streams).await?;
        self.rooms = rooms.iter().map(|room| room.name.as_str().into()).collect();
        self.rooms.sort_unstable();
        Ok(())
    }

    /// All of a user's sockets hear all of the user's rooms, also one that this socket has just joined.
    fn tell_other_sockets(&self, ctx: &Context) {
        let news = Event::new(EventType::RoomsChanged.as_str()).with("by", ctx.channel_name().as_str());
        if !ctx.node().names.user(ctx.username()).is_ok_and(|group| ctx.node().tell(&group, news).is_ok()) {
            let (channel, user) = (ctx.channel_name(), ctx.username());
            tracing::warn!(%channel, ?user, "other sockets of this user could not be told of a new room");
        }
    }

    /// Memberships have changed somewhere: the database says what holds now.
    async fn rooms_changed(&mut self, ctx: &mut Context, event: &Event) -> Outcome {
        // This socket's own news.
        if event.text("by") == Some(ctx.channel_name().as_str()) {
            return Ok(());
        }
        // A room taken away counts also when the token named it. The hub has taken the socket out already.
        if let Some(removed) = event.text("removed") {
            self.named = std::mem::take(&mut self.named).into_iter().filter(|room| room != removed).collect();
            if let Ok(at) = self.rooms.binary_search_by(|known| (**known).cmp(removed)) {
                let room = self.rooms.remove(at);
                self.leave(ctx, room);
            }
        }
        if ctx.access() != Access::Full {
            return Ok(());
        }
        self.refresh(ctx).await
    }

    fn leave(&mut self, ctx: &mut Context, room: Box<str>) {
        if let Ok(group) = ctx.node().names.room(&room) {
            ctx.group_discard(&group);
        }
        let left = &mut self.left.get_or_insert_default().0;
        if left.len() >= MAX_LEFT {
            left.remove(0);
        }
        left.push(room);
    }

    /// Rooms heard before that are about to be heard again: what was said meanwhile was not this socket's,
    /// or it is another room by now. The client has to read them anew.
    fn tell_reload(&mut self, ctx: &Context, rooms: &[Room]) -> Outcome {
        let Some(left) = &mut self.left else { return Ok(()) };
        let again: Vec<_> = left
            .0
            .extract_if(.., |name| rooms.iter().any(|room| *room.name == **name))
            .map(|name| (name.into_string(), false))
            .collect();
        if left.0.is_empty() {
            self.left = None;
        }
        if again.is_empty() || !ctx.is_v1() {
            return Ok(());
        }
        ctx.send_frame(FrameType::Resumed, &events::Resumed::new(again, None))
    }

    /// Hears what the user may hear now, and nothing else.
    async fn refresh(&mut self, ctx: &mut Context) -> Outcome {
        let Admitted { rooms, version, .. } = match self.load_rooms(ctx, None).await {
            Ok(admitted) => admitted,
            // In doubt silence, not access: the client comes back and asks again.
            Err(_) => return Err(CloseReason::Overloaded),
        };
        let gone: Vec<_> = self.rooms.extract_if(.., |name| !rooms.iter().any(|room| *room.name == **name)).collect();
        for room in gone {
            self.leave(ctx, room);
        }
        self.tell_reload(ctx, &rooms)?;
        self.join(ctx, &rooms, false).await.map_err(|_| CloseReason::Overloaded)?;
        ctx.socket().memberships.store(version, Ordering::Relaxed);
        Ok(())
    }

    async fn answer_rooms(&self, ctx: &Context, client_id: Option<String>) -> Outcome {
        let names: Vec<String> = self.rooms.iter().map(|room| room.to_string()).collect();
        let heads = match ctx.store().room_heads(&names).await {
            Ok(heads) => heads,
            Err(error) => {
                send::answer_unavailable(ctx, &error, client_id);
                return Ok(());
            }
        };
        let entries = self.rooms.iter().filter_map(|name| {
            let head = heads.get(&**name)?;
            let group = ctx.node().names.room(name).ok()?;
            let (seq, id) = ctx.node().hub.position(&group)?;
            let id = id.map(|id| id.to_string());
            Some(RoomEntry { group_name: name, display_name: &head.display_name, seq, id })
        });
        let frame = RoomsFrame { r#type: FrameType::Rooms, rooms: entries.collect() };
        send::answer(ctx, FrameType::Rooms, &frame, client_id)
    }
}
