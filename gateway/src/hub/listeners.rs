//! Sockets in a group whose consumers are the site's own. They hear what the layer brings as it was sent, and take no
//! part in streams, holes and positions.
//!
//! Most have own handlers: the event goes to each of them. What a class of consumers shares is rendered once, by
//! whoever the class asks, and shown to all its sockets. A class's events of a group stay in order: what comes while
//! something is being rendered waits behind it.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use channel_layer::{Event, GroupName};

use super::fan_out::Turn;
use super::group::Group;
use super::{Hub, JoinError, Work};
use crate::metrics::{ByReason, ByType};
use crate::socket::ear::{Class, Shown};
use crate::socket::{Pushed, Socket};
use crate::words::EventType;

/// Events of a group that wait for a class's renderings, and their bytes. Over it the newest are dropped.
const WAITING: usize = 4096;
const WAITING_BYTES: usize = 4 << 20;

/// The number of what was last to be rendered.
static LAST_TICKET: AtomicU64 = AtomicU64::new(0);

/// What frames of the site's consumers count as.
const BRIDGE: &str = "bridge";

/// The sockets of a group, by class. Boxed, as most groups have none.
#[derive(Default)]
pub(super) struct Listeners(Option<Box<Classes>>);

#[derive(Default)]
struct Classes(Vec<OfClass>);

/// Those of one class; without one, those whose handlers are all own.
struct OfClass {
    class: Option<Arc<dyn Class>>,
    sockets: Vec<Arc<Socket>>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
}

struct Waiting {
    ticket: u64,
    event: Arc<Event>,
    bytes: usize,
    shown: Option<Shown>,
}

/// A rendering that has come.
pub(super) struct Rendered {
    pub(super) group: Arc<Group>,
    class: u64,
    ticket: u64,
    shown: Shown,
}

impl Rendered {
    pub(super) fn bytes(&self) -> usize {
        match &self.shown {
            Shown::Frames(frames) => frames.iter().map(|frame| frame.len()).sum(),
            Shown::Own => 0,
        }
    }

    /// There is no room for it: nobody is shown anything, and what waits behind it goes on.
    pub(super) fn lose(self) {
        self.group.with_listeners(|listeners| {
            listeners.settle(self.class, self.ticket, Shown::Frames(Vec::new()));
        });
    }
}

/// Something to be rendered, outside of all locks.
struct Asked {
    class: Arc<dyn Class>,
    ticket: u64,
}

/// What becomes of an event, and for whom.
struct Settled {
    event: Arc<Event>,
    shown: Shown,
}

impl Listeners {
    fn of(&mut self, class: Option<Arc<dyn Class>>) -> &mut OfClass {
        let id = class.as_ref().map(|class| class.id());
        let Classes(classes) = &mut **self.0.get_or_insert_default();
        let at = classes.iter().position(|of| of.id() == id).unwrap_or_else(|| {
            let (sockets, waiting) = (Vec::with_capacity(1), VecDeque::new());
            classes.push(OfClass { class, sockets, waiting, waiting_bytes: 0 });
            classes.len() - 1
        });
        &mut classes[at]
    }

    fn classes(&self) -> &[OfClass] {
        self.0.as_ref().map_or(&[], |classes| &classes.0)
    }

    fn classes_mut(&mut self) -> &mut [OfClass] {
        self.0.as_mut().map_or(&mut [], |classes| &mut classes.0)
    }

    /// Adds a socket. `false` if it is there already.
    pub(super) fn add(&mut self, socket: &Arc<Socket>) -> bool {
        if self.has(socket) {
            return false;
        }
        self.of(socket.ear().and_then(|ear| ear.class())).sockets.push(Arc::clone(socket));
        true
    }

    pub(super) fn remove(&mut self, socket: &Socket) -> bool {
        let Some(Classes(classes)) = self.0.as_deref_mut() else { return false };
        for of in &mut *classes {
            if let Some(at) = of.sockets.iter().position(|other| std::ptr::eq(Arc::as_ptr(other), socket)) {
                of.sockets.swap_remove(at);
                if of.sockets.len() * 4 < of.sockets.capacity() {
                    of.sockets.shrink_to_fit();
                }
                classes.retain(|of| !of.sockets.is_empty());
                self.0.take_if(|classes| classes.0.is_empty());
                return true;
            }
        }
        false
    }

    pub(super) fn has(&self, socket: &Socket) -> bool {
        self.classes().iter().any(|of| of.sockets.iter().any(|other| std::ptr::eq(Arc::as_ptr(other), socket)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn sockets(&self) -> impl Iterator<Item = &Arc<Socket>> {
        self.classes().iter().flat_map(|of| &of.sockets)
    }

    /// Takes an event: hands it on, or lets it wait. Returns who is to be asked for a rendering, and how many were lost.
    fn take(&mut self, event: &Arc<Event>) -> (Vec<Asked>, u64) {
        let (mut asked, mut lost) = (Vec::new(), 0);
        for of in self.classes_mut() {
            let shared = of.class.as_ref().filter(|class| class.shares(event)).map(Arc::clone);
            if shared.is_none() && of.waiting.is_empty() {
                hear(&of.sockets, event);
                continue;
            }
            let bytes = event.weight();
            if of.waiting.len() >= WAITING || (of.waiting_bytes + bytes > WAITING_BYTES && !of.waiting.is_empty()) {
                lost += 1;
                continue;
            }
            // Never used twice: what comes late is for nobody else.
            let ticket = LAST_TICKET.fetch_add(1, Ordering::Relaxed) + 1;
            let shown = if shared.is_none() { Some(Shown::Own) } else { None };
            of.waiting_bytes += bytes;
            of.waiting.push_back(Waiting { ticket, event: Arc::clone(event), bytes, shown });
            asked.extend(shared.map(|class| Asked { class, ticket }));
        }
        (asked, lost)
    }

    /// Notes what became of a rendering. Returns everything that can go on, with the sockets it is for.
    fn settle(&mut self, class: u64, ticket: u64, shown: Shown) -> Option<(&[Arc<Socket>], Vec<Settled>)> {
        let of = self.classes_mut().iter_mut().find(|of| of.id() == Some(class))?;
        of.waiting.iter_mut().find(|waiting| waiting.ticket == ticket)?.shown = Some(shown);
        let mut settled = Vec::new();
        while let Some(shown) = of.waiting.front().and_then(|first| first.shown.clone()) {
            let Some(first) = of.waiting.pop_front() else { break };
            of.waiting_bytes -= first.bytes;
            settled.push(Settled { event: first.event, shown });
        }
        if of.waiting.is_empty() && of.waiting.capacity() > 64 {
            of.waiting = VecDeque::new();
        }
        Some((&of.sockets, settled))
    }
}

impl OfClass {
    fn id(&self) -> Option<u64> {
        self.class.as_ref().map(|class| class.id())
    }
}

fn hear(sockets: &[Arc<Socket>], event: &Arc<Event>) {
    sockets.iter().filter_map(|socket| socket.ear()).for_each(|ear| ear.hear(event));
}

/// Settles a rendering even if nobody does.
struct Ticket {
    hub: Weak<Hub>,
    group: Arc<Group>,
    class: u64,
    ticket: u64,
    shown: Option<Shown>,
}

impl Ticket {
    fn settle(mut self, shown: Shown) {
        self.shown = Some(shown);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(hub) = self.hub.upgrade() else { return };
        let shown = self.shown.take().unwrap_or(Shown::Own);
        let rendered = Rendered { group: Arc::clone(&self.group), class: self.class, ticket: self.ticket, shown };
        let shard = hub.shard_of(&self.group.name);
        hub.push(shard, Work::Rendered(Box::new(rendered)));
        shard.ready.notify_one();
    }
}

impl Hub {
    /// Adds a socket of a consumer of the site's own to a group that this node hears already.
    pub(crate) fn listen_now(&self, socket: &Arc<Socket>, name: &GroupName) -> bool {
        self.group(name).is_some_and(|group| group.add_listener(socket))
    }

    /// The same, once this node hears the group.
    pub(crate) async fn listen(&self, socket: &Arc<Socket>, name: &GroupName) -> Result<(), JoinError> {
        let joins = self.joins.get().ok_or(JoinError::Stopped)?;
        while !self.listen_now(socket, name) {
            joins.make_live(vec![(name.clone(), None)]).await?;
        }
        Ok(())
    }

    /// The same, once the layer is there again.
    pub(crate) fn listen_later(&self, socket: &Arc<Socket>, name: &GroupName) {
        let mut late = self.late.lock();
        if late.len() == late.capacity() {
            // However often sockets come and go, join and leave meanwhile.
            keep_wanted(&mut late);
        }
        late.push((Arc::downgrade(socket), name.clone()));
    }

    /// Takes it out again.
    pub(crate) fn unlisten(&self, socket: &Socket, name: &GroupName) {
        if let Some(group) = self.group(name) {
            group.remove_listener(socket);
        }
    }

    /// Joins what could not be joined, of those that still want it.
    pub(super) async fn join_late(&self) -> Result<(), JoinError> {
        if self.late.lock().is_empty() || self.is_layer_down() {
            return Ok(());
        }
        let mut late = std::mem::take(&mut *self.late.lock());
        keep_wanted(&mut late);
        let groups: HashSet<GroupName> = late.iter().map(|(_, name)| name.clone()).collect();
        let joins = self.joins.get().ok_or(JoinError::Stopped)?;
        let joined = joins.make_live(groups.into_iter().map(|name| (name, None)).collect()).await;
        late.retain(|(socket, name)| match wants(socket, name) {
            Some(socket) => {
                let hears = joined.is_ok() && self.listen_now(&socket, name);
                if hears && wants(&Arc::downgrade(&socket), name).is_none() {
                    // It has left meanwhile.
                    self.unlisten(&socket, name);
                }
                !hears
            }
            None => false,
        });
        self.late.lock().append(&mut late);
        joined
    }

    /// Hands an event to the group's sockets of the site's own consumers, as it was sent.
    pub(super) fn deliver_to_listeners(&self, group: &Arc<Group>, event: &Arc<Event>, turn: &Turn) {
        match EventType::of_event(event) {
            None | Some(EventType::ChatMessage | EventType::NotificationMessage) => {}
            Some(EventType::Disconnect) => {
                let reason = super::fan_out::disconnect_reason(event);
                group.with_listeners(|listeners| listeners.sockets().for_each(|socket| socket.close(reason.clone())));
                return;
            }
            // Those are between nodes and the built-in consumers; no handler of the site's would know them.
            Some(_) => return,
        }
        let (asked, lost) = group.with_listeners(|listeners| listeners.take(event));
        if lost > 0 {
            self.metrics.layer_events_dropped.get_or_create(&ByReason { reason: "rendering" }).inc_by(lost);
            if let Some(times) = self.warnings.again("rendering", "full") {
                let group = group.name.as_str();
                tracing::warn!(
                    group,
                    times,
                    "an event was dropped: a shared handler takes longer than its events come"
                );
            }
        }
        for Asked { class, ticket } in asked {
            let (id, group) = (class.id(), Arc::clone(group));
            let settles = Ticket { hub: turn.hub.clone(), group, class: id, ticket, shown: None };
            class.render(event, Box::new(move |shown| settles.settle(shown)));
        }
    }

    /// A rendering has come: it is shown, and with it what has waited behind it.
    pub(super) fn show_rendered(&self, rendered: Rendered, turn: &mut Turn) {
        let Rendered { group, class, ticket, shown } = rendered;
        let mut sent = 0;
        group.with_listeners(|listeners| {
            let Some((sockets, settled)) = listeners.settle(class, ticket, shown) else { return };
            for Settled { event, shown } in settled {
                match shown {
                    Shown::Own => hear(sockets, &event),
                    Shown::Frames(frames) => {
                        for frame in &frames {
                            sent += sockets.iter().map(|socket| self.push_shown(socket, frame, turn)).sum::<u64>();
                        }
                    }
                }
            }
        });
        if sent > 0 {
            self.metrics.frames_sent.get_or_create(&ByType { r#type: BRIDGE }).inc_by(sent);
        }
    }

    fn push_shown(&self, socket: &Arc<Socket>, frame: &crate::websocket::WireFrame, turn: &mut Turn) -> u64 {
        match socket.push_of_group(frame) {
            Pushed::MustFlush => turn.dirty.push(Arc::clone(socket)),
            Pushed::Queued => {}
            Pushed::Full => {
                self.metrics.outbox_full.inc();
                return 0;
            }
            Pushed::Closed => return 0,
        }
        1
    }

    /// An event for one socket of the site's own consumers. `false` if it is none of those.
    pub(super) fn hear_alone(&self, socket: &Arc<Socket>, event: &Arc<Event>) -> bool {
        let Some(ear) = socket.ear() else { return false };
        match EventType::of_event(event) {
            None | Some(EventType::ChatMessage | EventType::NotificationMessage) => ear.hear(event),
            Some(EventType::Disconnect) => socket.close(super::fan_out::disconnect_reason(event)),
            Some(_) => {}
        }
        true
    }
}

/// Leaves each socket that still wants it once for each group.
fn keep_wanted(late: &mut Vec<(Weak<Socket>, GroupName)>) {
    let mut seen = HashSet::new();
    late.retain(|(socket, name)| {
        let wanted = wants(socket, name);
        wanted.is_some_and(|socket| seen.insert((Arc::as_ptr(&socket), name.clone())))
    });
}

/// The socket, if it lives and still wants to be in the group.
fn wants(socket: &Weak<Socket>, name: &GroupName) -> Option<Arc<Socket>> {
    socket.upgrade().filter(|socket| socket.ear().is_some_and(|ear| ear.wants(name)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::config::{Config, collect};
    use crate::socket::Identity;
    use crate::socket::ear::Ear;
    use crate::start::RunningNode;

    struct Wants(AtomicBool);

    impl Ear for Wants {
        fn hear(&self, _: &Arc<Event>) {}

        fn class(&self) -> Option<Arc<dyn Class>> {
            None
        }

        fn wants(&self, _: &GroupName) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn socket() -> (Arc<Socket>, Arc<Wants>) {
        let identity = Identity {
            channel_name: "specific.test!one".parse().unwrap(),
            user: "alice".into(),
            path: "/".into(),
            v1: false,
            recheck: None,
            expires_at: crate::clock::NEVER,
            access: crate::scope::Access::Full,
            counted_address: None,
        };
        let socket = Arc::new(Socket::new(identity, Arc::default(), 1000, 0).of_site(0));
        let wants = Arc::new(Wants(AtomicBool::new(true)));
        socket.hear_with(Arc::clone(&wants) as Arc<dyn Ear>);
        (socket, wants)
    }

    #[tokio::test]
    async fn what_is_to_be_joined_later_is_bounded_by_the_sockets_there_are_and_their_groups() {
        let given =
            [("listen", "127.0.0.1:0"), ("internal-listen", "127.0.0.1:0"), ("database-url", "sqlite::memory:")];
        let given = given.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let config = Config::from_collected(&collect(&given, &|_| None, None).unwrap()).unwrap();
        let node = RunningNode::start(config, crate::consumers::routes()).await.unwrap();
        let hub = &node.node().hub;
        hub.layer_down.store(true, Ordering::Relaxed);
        let names = ["a", "b"].map(|name| GroupName::parse(name).unwrap());
        let ((socket, _wants), (left, has_left)) = (self::socket(), self::socket());
        for _ in 0..1_000 {
            names.iter().for_each(|name| hub.listen_later(&socket, name));
            hub.listen_later(&left, &names[0]);
            hub.listen_later(&self::socket().0, &names[0]);
        }
        assert!(hub.late.lock().len() <= 16, "{}", hub.late.lock().len());
        has_left.0.store(false, Ordering::Relaxed);
        hub.layer_down.store(false, Ordering::Relaxed);
        let hears = |socket: &Socket, name| hub.group(name).is_some_and(|it| it.with_listeners(|all| all.has(socket)));
        while !names.iter().all(|name| hears(&socket, name)) {
            tokio::task::yield_now().await;
        }
        assert!(!hears(&left, &names[0]));
    }
}
