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
        let first = self.next.min(count);
        for at in (first..count).chain(0..first) {
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

    pub(super) fn peek(&self, at: usize) -> Option<&Link> {
        self.links.get(at)
    }

    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    /// Routes otherwise from now on; returns how it was before.
    pub(super) fn reroute(&mut self, router: Router) -> Router {
        std::mem::replace(&mut self.router, router)
    }

    /// The link of this name, made if there is none.
    pub(super) fn named(&mut self, name: &str, make: impl FnOnce() -> Link) -> usize {
        self.links.iter().position(|link| link.name == name).unwrap_or_else(|| {
            self.links.push(make());
            self.links.len() - 1
        })
    }

    /// Whether each of them that is needed has a connection.
    pub(super) fn are_up(&self) -> bool {
        self.router.is_known() && self.links.iter().all(|link| link.is_up() || link.is_idle())
    }

    /// Whether every subscription of each is in place.
    pub(super) fn are_restored(&self) -> bool {
        self.router.is_known() && self.links.iter().all(|link| link.is_restored() || link.is_idle())
    }

    /// Whether further orders should wait until what is to be sent has been sent.
    pub(super) fn are_congested(&self) -> bool {
        self.links.iter().any(Link::is_congested)
    }

    /// Tells Redis what has changed. A link without a connection is told nothing: its next connection
    /// subscribes to everything.
    pub(super) fn apply(&mut self, changes: Changes) {
        let Changes { subscribe, unsubscribe } = changes;
        self.unsubscribe(None, unsubscribe);
        self.subscribe(subscribe);
    }

    /// Tells the links on which these topics are, or were in the days of another router.
    pub(super) fn unsubscribe(&mut self, router: Option<&Router>, topics: Vec<Topic>) {
        for (at, kind, topics) in parts(router.unwrap_or(&self.router), topics) {
            if let Some(session) = self.links.get_mut(at).and_then(Link::session) {
                session.unsubscribe(kind, &topics);
            }
        }
    }

    /// Tells the links to which these topics belong; returns which were told.
    pub(super) fn subscribe(&mut self, topics: Vec<Topic>) -> Vec<usize> {
        let mut told = Vec::new();
        for (at, kind, topics) in parts(&self.router, topics) {
            if let Some(session) = self.links.get_mut(at).and_then(Link::session) {
                session.subscribe(kind, &topics);
                told.push(at);
            }
        }
        told
    }

    /// The sessions that have, or should have, this pattern.
    pub(super) fn with_pattern(&mut self, pattern: &[u8]) -> impl Iterator<Item = &mut Session> {
        let router = &self.router;
        let links = self.links.iter_mut().enumerate().filter(|(at, _)| router.has_pattern(pattern, *at));
        links.filter_map(|(_, link)| link.session())
    }
}

/// Sorts topics by link and kind. What has no place yet is left out.
fn parts(router: &Router, topics: Vec<Topic>) -> Vec<(usize, Kind, Vec<Topic>)> {
    let mut parts: Vec<(usize, Kind, Vec<Topic>)> = Vec::new();
    for topic in topics {
        let Some(at) = router.link_of(&topic) else { continue };
        let kind = router.kind_of(&topic);
        match parts.iter_mut().find(|part| part.0 == at && part.1 == kind) {
            Some(part) => part.2.push(topic),
            None => parts.push((at, kind, vec![topic])),
        }
    }
    parts
}
