//! A class of the site's consumers some of whose handlers are shared: one worker renders an event for all its sockets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use channel_layer::Event;
use parking_lot::Mutex;

use super::link::Link;
use super::metrics::{BridgeMetrics, Outcome};
use super::wire;

/// Workers that are asked for one rendering, one after the other.
const ATTEMPTS: u8 = 3;

/// What a worker says of a socket's consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct About {
    pub(super) name: String,
    /// Handlers, by their names.
    pub(super) shared: Vec<String>,
    /// Its sockets stay when their worker leaves.
    pub(super) reattaches: bool,
}

/// A message for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Text(String),
    Binary(Vec<u8>),
}

/// What became of a rendering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rendering {
    /// What all sockets of the class are sent.
    Said(Vec<Said>),
    /// Nothing that could be for all of them.
    Own,
}

/// Who waits for it. Dropped unused it counts as own.
pub(crate) type Done = Box<dyn FnOnce(Rendering) + Send>;

/// See the [module](self).
pub(crate) struct Class {
    id: u64,
    path: String,
    name: String,
    /// Handlers said to be shared, with the worker that has found out that one is not.
    handlers: Mutex<HashMap<String, Option<Weak<Link>>>>,
    links: Mutex<Vec<Weak<Link>>>,
    metrics: BridgeMetrics,
}

impl Class {
    pub(super) fn new(path: &str, about: &About, metrics: &BridgeMetrics) -> Arc<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            path: path.to_owned(),
            name: about.name.clone(),
            handlers: Mutex::default(),
            links: Mutex::default(),
            metrics: metrics.clone(),
        })
    }

    /// Its number; no two have the same.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether an event is rendered once for all its sockets.
    pub(crate) fn shares(&self, event: &Event) -> bool {
        let Ok(handler) = event.handler_name() else { return false };
        self.handlers.lock().get(&*handler).is_some_and(is_shared)
    }

    /// Takes over what a worker says of it. A handler that has turned out not to be shared stays so until the worker
    /// has gone that found it out: the next one may have other code.
    pub(super) fn learn(&self, about: &About) {
        let mut handlers = self.handlers.lock();
        for handler in &about.shared {
            if !handlers.contains_key(handler) {
                handlers.insert(handler.clone(), None);
            }
        }
    }

    /// This worker has it, too.
    pub(super) fn add_link(&self, link: &Arc<Link>) {
        let mut links = self.links.lock();
        links.retain(|known| known.strong_count() > 0);
        if !links.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(link))) {
            links.push(Arc::downgrade(link));
        }
    }

    /// Has an event rendered by any worker.
    pub(crate) fn render(self: Arc<Self>, event: &Arc<Event>, done: Done) {
        let render =
            Render { class: self, event: Arc::clone(event), done: Some(done), since: Instant::now(), attempts: 0 };
        render.again(None);
    }

    /// The least loaded worker that has it, one that stays if there is one.
    fn choose(&self, not: Option<&Link>) -> Option<Arc<Link>> {
        let links = self.links.lock();
        let links =
            links.iter().filter_map(Weak::upgrade).filter(|link| !not.is_some_and(|not| std::ptr::eq(not, &**link)));
        links
            .filter(|link| !link.is_over())
            .min_by_key(|link| (link.is_quiet(), link.is_draining(), link.groups.renders.lock().asked.len()))
    }
}

/// Whether a handler may be shared, by who has found out that it is not.
fn is_shared(not: &Option<Weak<Link>>) -> bool {
    not.as_ref().is_none_or(|link| link.upgrade().is_none_or(|link| link.is_over()))
}

/// A rendering that somebody waits for.
pub(super) struct Render {
    class: Arc<Class>,
    event: Arc<Event>,
    done: Option<Done>,
    pub(super) since: Instant,
    attempts: u8,
}

impl Render {
    pub(super) fn begin(mut self, now: Instant) -> Self {
        self.since = now;
        self
    }

    /// Takes it out of where it waits.
    pub(super) fn take(&mut self) -> Option<Self> {
        let done = self.done.take()?;
        let (class, event) = (Arc::clone(&self.class), Arc::clone(&self.event));
        Some(Self { class, event, done: Some(done), since: self.since, attempts: self.attempts })
    }

    /// Asks a worker, not this one. Without any, each socket's own handler has it.
    pub(super) fn again(mut self, not: Option<&Link>) {
        while self.attempts < ATTEMPTS {
            self.attempts += 1;
            let Some(link) = self.class.choose(not) else { break };
            let class = Arc::clone(&self.class);
            let event = Arc::clone(&self.event);
            match link.render(&class.name, &event, self) {
                Ok(()) => return,
                Err(render) => self = render,
            }
        }
        self.class.metrics.rendered(Outcome::Nobody);
        self.finish(Rendering::Own);
    }

    fn finish(mut self, rendering: Rendering) {
        if let Some(done) = self.done.take() {
            done(rendering);
        }
    }

    /// The worker has answered.
    pub(super) fn done(self, shown: wire::Rendered, link: &Link) {
        let worker = &link.worker;
        let handler = self.event.handler_name().map(|name| name.into_owned()).unwrap_or_default();
        match shown {
            wire::Rendered::Said(said) => {
                self.class.metrics.rendered(Outcome::Shared);
                self.finish(Rendering::Said(said));
            }
            wire::Rendered::NotShared(why) => {
                self.class.metrics.rendered(Outcome::NotShared);
                let by = self.class.links.lock().iter().find(|known| std::ptr::eq(known.as_ptr(), link)).cloned();
                let was = self.class.handlers.lock().insert(handler.clone(), by);
                if was.as_ref().is_none_or(is_shared) {
                    let (class, path) = (&self.class.name, &self.class.path);
                    let why = why.escape_debug();
                    tracing::warn!(
                        worker,
                        path,
                        "the handler {handler} of {class} is marked as shared and is not: {why}. It runs once for each \
                         socket from now on"
                    );
                }
                self.finish(Rendering::Own);
            }
            wire::Rendered::Failed(why) => {
                self.class.metrics.rendered(Outcome::Failed);
                let class = &self.class.name;
                let why = why.escape_debug();
                tracing::warn!(worker, "the shared handler {handler} of {class} failed: {why}");
                self.finish(Rendering::Own);
            }
        }
    }
}
