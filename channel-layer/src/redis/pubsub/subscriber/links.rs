//! All connections of the subscriber, polled as one: none waits for another.

use std::task::{Context, Poll};

use super::{
    link::{Event, Link},
    registry::{Changes, Topic},
    route::Router,
    session::{Kind, Session},
};

pub(super) struct Links {
    links: Vec<Link>,
    router: Router,
    /// Which is asked first, in turn, so that a busy one does not starve the others.
    next: usize,
}

impl Links {
    pub(super) fn new(links: Vec<Link>, router: Router) -> Self {
        Self { links, router, next: 0 }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(usize, Event)> {
        let count = self.links.len();
        for at in (self.next..count).chain(0..self.next.min(count)) {
            if let Poll::Ready(event) = self.links[at].poll(cx) {
                self.next = at + 1;
                return Poll::Ready((at, event));
            }
        }
        Poll::Pending
    }

    pub(super) fn count(&self) -> usize {
        self.links.len()
    }

    pub(super) fn get(&mut self, at: usize) -> Option<&mut Link> {
        self.links.get_mut(at)
    }

    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    /// Whether each of them has a connection.
    pub(super) fn are_up(&self) -> bool {
        self.links.iter().all(Link::is_up)
    }

    /// Whether every subscription of each is in place.
    pub(super) fn are_restored(&self) -> bool {
        self.links.iter().all(Link::is_restored)
    }

    /// Whether further orders should wait until what is to be sent has been sent.
    pub(super) fn are_congested(&self) -> bool {
        self.links.iter().any(Link::is_congested)
    }

    /// Tells Redis what has changed. A link without a connection is told nothing: its next connection
    /// subscribes to everything.
    pub(super) fn apply(&mut self, changes: Changes) {
        let Changes { subscribe, unsubscribe } = changes;
        self.each(unsubscribe, Session::unsubscribe);
        self.each(subscribe, Session::subscribe);
    }

    fn each(&mut self, topics: Vec<Topic>, tell: fn(&mut Session, Kind, &[Topic])) {
        let mut parts: Vec<(usize, Kind, Vec<Topic>)> = Vec::new();
        for topic in topics {
            let Some(at) = self.router.link_of(&topic) else { continue };
            let kind = self.router.kind_of(&topic);
            match parts.iter_mut().find(|part| part.0 == at && part.1 == kind) {
                Some(part) => part.2.push(topic),
                None => parts.push((at, kind, vec![topic])),
            }
        }
        for (at, kind, topics) in parts {
            if let Some(session) = self.links.get_mut(at).and_then(Link::session) {
                tell(session, kind, &topics);
            }
        }
    }

    /// Subscribes a relay's pattern wherever a message for it may come from; tells on how many
    /// connections it was asked for.
    pub(super) fn psubscribe(&mut self, relay: u64, pattern: &[u8]) -> usize {
        let sessions = self.links.iter_mut().filter_map(Link::session);
        sessions.map(|session| session.psubscribe(relay, pattern)).count()
    }

    pub(super) fn punsubscribe(&mut self, pattern: &[u8]) {
        let sessions = self.links.iter_mut().filter_map(Link::session);
        sessions.for_each(|session| session.punsubscribe(pattern));
    }
}
