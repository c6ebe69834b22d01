//! Path → consumer, as `routing.py` does it.

use std::sync::Arc;

use crate::consumers::framework::{Consumer, ConsumerClass, Handlers};

/// The routes of a node, tried in order; the first that matches wins.
#[derive(Debug, Clone, Default)]
pub struct Router {
    routes: Vec<Route>,
}

#[derive(Debug, Clone)]
struct Route {
    segments: Vec<Segment>,
    class: Arc<ConsumerClass>,
}

#[derive(Debug, Clone)]
enum Segment {
    Literal(String),
    Named(String),
}

/// The consumer class of a route, and the named parts of the path.
pub(crate) type RouteMatch = (Arc<ConsumerClass>, Vec<(String, String)>);

impl Router {
    /// A router without routes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a route. `{name}` in the pattern takes one path segment; a trailing slash may be left out
    /// by clients. `make` makes the consumer of each connection.
    pub fn route<C: Consumer>(self, pattern: &str, make: impl Fn() -> C + Send + Sync + 'static) -> Self {
        self.route_with(pattern, make, |_| {})
    }

    /// The same with handlers beside those of the class, for what they hold is known here: a client of a database, say,
    /// or words from the settings.
    pub fn route_with<C: Consumer>(
        mut self,
        pattern: &str,
        make: impl Fn() -> C + Send + Sync + 'static,
        handlers: impl FnOnce(&mut Handlers<C>),
    ) -> Self {
        let segments = pattern
            .trim_matches('/')
            .split('/')
            .map(|segment| match segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => Segment::Named(name.to_owned()),
                None => Segment::Literal(segment.to_owned()),
            })
            .collect();
        self.routes.push(Route { segments, class: Arc::new(ConsumerClass::new(make, handlers)) });
        self
    }

    /// Finds the consumer for a raw request path. Each segment is percent-decoded by itself, so an
    /// encoded slash stays inside its segment.
    pub(crate) fn find(&self, raw_path: &str) -> Option<RouteMatch> {
        let path = raw_path.strip_prefix('/')?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let parts: Vec<String> = path
            .split('/')
            .map(|part| percent_encoding::percent_decode_str(part).decode_utf8().map(|part| part.into_owned()))
            .collect::<Result<_, _>>()
            .ok()?;
        self.routes.iter().find_map(|route| Some((Arc::clone(&route.class), route.matches(&parts)?)))
    }
}

impl Route {
    fn matches(&self, parts: &[String]) -> Option<Vec<(String, String)>> {
        if parts.len() != self.segments.len() {
            return None;
        }
        let mut named = Vec::new();
        for (segment, part) in self.segments.iter().zip(parts) {
            match segment {
                Segment::Literal(literal) if literal == part => {}
                Segment::Literal(_) => return None,
                Segment::Named(_) if part.is_empty() => return None,
                Segment::Named(name) => named.push((name.clone(), part.clone())),
            }
        }
        Some(named)
    }
}
