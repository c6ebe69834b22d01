//! The operators' page `/admin/`, embedded in the binary: files, and signing in. What it shows and does goes through
//! the API, as everybody's calls do.

use std::sync::Arc;

use http::header::{ALLOW, CONTENT_SECURITY_POLICY, HeaderName, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use warp::Filter;
use warp::filters::BoxedFilter;

use crate::http::answers::{Answer, answer, plain};
use crate::http::api::session;
use crate::http::server::{Arrival, with};
use crate::node::Node;

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name below `/admin/`, type, text.
const FILES: &[(&str, &str, &str)] = &[
    ("", "text/html; charset=utf-8", include_str!("../../assets/admin/index.html")),
    ("style.css", "text/css; charset=utf-8", include_str!("../../assets/admin/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")),
    ("main.js", SCRIPT, include_str!("../../assets/admin/main.js")),
    ("api.js", SCRIPT, include_str!("../../assets/admin/api.js")),
    ("dom.js", SCRIPT, include_str!("../../assets/admin/dom.js")),
    ("charts.js", SCRIPT, include_str!("../../assets/admin/charts.js")),
    ("overview.js", SCRIPT, include_str!("../../assets/admin/overview.js")),
    ("users.js", SCRIPT, include_str!("../../assets/admin/users.js")),
    ("rooms.js", SCRIPT, include_str!("../../assets/admin/rooms.js")),
    ("stream.js", SCRIPT, include_str!("../../assets/admin/stream.js")),
    ("publish.js", SCRIPT, include_str!("../../assets/admin/publish.js")),
];

/// Nothing but what comes from here; no markup made of text, whatever a script tries.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// What every answer below `/admin/` carries beside it.
const HEADERS: [(&str, &str); 5] = [
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// `/admin/`, on the internal listener.
pub(crate) fn routes(node: &Arc<Node>) -> BoxedFilter<(Answer,)> {
    warp::path("admin")
        .and(with(node))
        .and(warp::method())
        .and(warp::path::full())
        .and(warp::path::tail())
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<Arrival>())
        .and(warp::body::stream())
        .then(
            |node: Arc<Node>,
             method: Method,
             path: warp::path::FullPath,
             tail: warp::path::Tail,
             headers: HeaderMap,
             arrival: Option<Arrival>,
             body| async move {
                let peer = arrival.map(|arrival| arrival.peer);
                let body = std::pin::pin!(body);
                let mut answer = match (tail.as_str(), &method) {
                    // Its files are named relative to it.
                    ("", _) if !path.as_str().ends_with('/') => elsewhere(),
                    ("session", &Method::GET) => session::show(&headers, &node),
                    ("session", &Method::POST) => {
                        let signed_in = session::sign_in(&headers, peer, &node, body).await;
                        signed_in.unwrap_or_else(|problem| problem.refused(&node, &method, "session", peer))
                    }
                    ("session", &Method::DELETE) => {
                        let signed_out = session::sign_out(&headers, peer, &node).await;
                        signed_out.unwrap_or_else(|problem| problem.refused(&node, &method, "session", peer))
                    }
                    ("session", _) => not_so("GET, POST, DELETE"),
                    (name, method) => match FILES.iter().find(|(known, ..)| *known == name) {
                        None => plain(StatusCode::NOT_FOUND, "not found"),
                        Some((_, kind, text)) if [Method::GET, Method::HEAD].contains(method) => {
                            self::answer(StatusCode::OK, kind, (*text).to_owned())
                        }
                        Some(_) => not_so("GET"),
                    },
                };
                let headers = answer.headers_mut();
                headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
                headers.extend(
                    HEADERS.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
                );
                answer
            },
        )
        .boxed()
}

fn elsewhere() -> Answer {
    let mut answer = plain(StatusCode::PERMANENT_REDIRECT, "");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static("admin/"));
    answer
}

fn not_so(allowed: &'static str) -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "not with this method");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}
