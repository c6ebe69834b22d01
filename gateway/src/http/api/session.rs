//! Operators' sessions over HTTP: the cookie, signing in and out, and whose page it is that asks.

use std::net::{IpAddr, SocketAddr};

use bytes::Buf;
use futures_util::Stream;
use http::header::{COOKIE, HOST, ORIGIN, SET_COOKIE, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::{Problem, keys, lenient, object, read};
use crate::config::ApiKey;
use crate::events::rfc3339;
use crate::http::answers::{self, Answer};
use crate::node::Node;
use crate::operators::Session;
use crate::origin::Origins;
use crate::proxies::{self, Seen};
use crate::scope::parse_cookies;

/// The cookie; over HTTPS with the prefix by which browsers take it from nobody else's page.
const COOKIE_NAME: &str = "gateway_admin";
const SECURE_COOKIE_NAME: &str = "__Host-gateway_admin";

/// Characters of a browser's name that are written to the log.
const LOGGED_AGENT: usize = 200;

/// What the page sends with each call. A page of another origin cannot, unless it asks first and is allowed to.
const PAGE_HEADER: &str = "x-gateway-page";

/// What a browser says of the page that asks.
const FETCH_SITE: &str = "sec-fetch-site";

/// The session that a request goes by, and the key that it was begun with.
pub(super) fn of<'a>(headers: &HeaderMap, node: &'a Node) -> Option<(Session, &'a ApiKey)> {
    if !headers.contains_key(COOKIE) {
        return None;
    }
    let now = node.clock.unix_seconds();
    let cookies = parse_cookies(headers);
    let mut ours = cookies.iter().filter(|(name, _)| [COOKIE_NAME, SECURE_COOKIE_NAME].contains(&name.as_str()));
    ours.find_map(|(_, cookie)| {
        let mut keys = node.config.api_keys.iter();
        keys.find_map(|key| Some((node.peers.sessions.read(cookie, &key.secret(), now)?, key)))
    })
}

/// Whether a browser's request comes from a page of this very node. Cookies are sent to every port of a host, and
/// `SameSite` counts other ports and sub-domains as the same site: neither keeps those pages away.
pub(super) fn is_of_own_page(headers: &HeaderMap, seen: &Seen) -> bool {
    match headers.get(FETCH_SITE).map(HeaderValue::as_bytes) {
        Some(site) => site == b"same-origin",
        // Browsers leave it out where there is neither HTTPS nor loopback.
        None => match headers.get(ORIGIN).map(HeaderValue::to_str) {
            None => true,
            Some(origin) => origin.is_ok_and(|origin| Origins::default().allows(origin, seen.host.as_deref())),
        },
    }
}

/// Whether somebody has typed the address, or taken it from their bookmarks.
pub(super) fn is_typed(headers: &HeaderMap) -> bool {
    headers.get(FETCH_SITE).is_some_and(|site| site.as_bytes() == b"none")
}

/// Refuses what some other page has made a browser send by an operator's cookie.
pub(super) fn check_page(headers: &HeaderMap, seen: &Seen) -> Result<(), Problem> {
    match headers.contains_key(PAGE_HEADER) && is_of_own_page(headers, seen) {
        true => Ok(()),
        false => Err(foreign_page()),
    }
}

pub(super) fn foreign_page() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "the page that asks is not this node's: where there is a proxy, it must pass on the browser's Host header",
    )
}

/// Whether a browser found this node by a name that means this machine. Any other may be that of a page whose host
/// has become an address of this machine.
pub(super) fn is_local(headers: &HeaderMap) -> bool {
    if !headers.contains_key(ORIGIN) && !headers.contains_key(FETCH_SITE) {
        return true;
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if host.parse::<SocketAddr>().is_ok() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// How the request looks from outside.
pub(super) fn seen(headers: &HeaderMap, peer: Option<SocketAddr>, node: &Node) -> Seen {
    let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.ip());
    proxies::see(headers, peer, |address| node.config.trusts(address))
}

fn is_https(headers: &HeaderMap, seen: &Seen) -> bool {
    seen.scheme == Some("https") || headers.get(ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

/// What the page is told of whoever looks at it.
pub(crate) fn show(headers: &HeaderMap, node: &Node) -> Answer {
    let open = node.config.api_keys.is_empty() && node.config.dev;
    let ends = of(headers, node).and_then(|(session, _)| time::OffsetDateTime::from_unix_timestamp(session.ends).ok());
    let told = json!({
        "signed_in": open || ends.is_some(), "needs_key": !open, "ends": ends.map(rfc3339),
        "node": node.config.node_id, "version": env!("CARGO_PKG_VERSION"),
    });
    answers::json(StatusCode::OK, &told)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    key: SecretString,
}

/// Begins a session for who has the key.
pub(crate) async fn sign_in(
    headers: &HeaderMap,
    peer: Option<SocketAddr>,
    node: &Node,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Unpin,
) -> Result<Answer, Problem> {
    let seen = seen(headers, peer, node);
    check_page(headers, &seen)?;
    let (body, _share) = read(node, headers, body).await?;
    let text = std::str::from_utf8(&body).map_err(|_| super::not_json())?;
    let Shown { key } = lenient(text, |json| object("the body", json))?;
    let key = keys::check(key.expose_secret(), peer, node).await?;
    let session = Session::begin(node.clock.unix_seconds());
    let agent = headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let agent: String = agent.chars().take(LOGGED_AGENT).collect();
    let (session_id, name) = (&session.id, key.name());
    tracing::info!(session = session_id, key = %name, client = %seen.client, "an operator signed in at /admin/ with {agent:?}");
    let mut answer = answers::json(StatusCode::OK, &json!({"signed_in": true}));
    set_cookie(&mut answer, &session.cookie(&key.secret()), is_https(headers, &seen), "");
    Ok(answer)
}

/// Ends the session, on all nodes.
pub(crate) async fn sign_out(headers: &HeaderMap, peer: Option<SocketAddr>, node: &Node) -> Result<Answer, Problem> {
    let seen = seen(headers, peer, node);
    check_page(headers, &seen)?;
    if let Some((session, key)) = of(headers, node) {
        let (session_id, name) = (&session.id, key.name());
        tracing::info!(session = session_id, key = %name, client = %seen.client, "an operator signed out of /admin/");
        node.peers.sessions.end(&session.id, session.ends, node.clock.unix_seconds());
        node.peers.signed_out(&session.id, session.ends).await;
    }
    let mut answer = answers::json(StatusCode::OK, &json!({"signed_in": false}));
    set_cookie(&mut answer, "", is_https(headers, &seen), "; Max-Age=0");
    Ok(answer)
}

/// For the whole host: the page is at `/admin/`, what it asks for at `/api/`.
fn set_cookie(answer: &mut Answer, value: &str, https: bool, more: &str) {
    let (name, secure) = if https { (SECURE_COOKIE_NAME, "; Secure") } else { (COOKIE_NAME, "") };
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{more}");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_nodes_own_page_may_use_the_cookie() {
        let check = |lines: &[(&'static str, &str)]| {
            let headers = headers(lines);
            check_page(&headers, &proxies::see(&headers, [127, 0, 0, 1].into(), |_| false)).is_ok()
        };
        let page = (PAGE_HEADER, "admin");
        let host = ("host", "10.0.0.1:9000");
        assert!(check(&[page, host]));
        assert!(!check(&[host]));
        assert!(check(&[page, host, ("origin", "http://10.0.0.1:9000")]));
        assert!(!check(&[page, host, ("origin", "http://10.0.0.1:8000")]), "another port is another page");
        assert!(!check(&[page, host, ("origin", "null")]));
        assert!(!check(&[page, host, ("sec-fetch-site", "same-site")]));
        assert!(!check(&[page, host, ("sec-fetch-site", "none")]));
        // The browser knows best, whatever a proxy has made of the host.
        assert!(check(&[page, host, ("origin", "https://ops.example.com"), ("sec-fetch-site", "same-origin")]));
    }

    #[test]
    fn a_browser_finds_a_node_without_a_key_by_a_name_of_this_machine_only() {
        for (host, local) in [
            ("127.0.0.1:9000", true),
            ("[::1]:9000", true),
            ("[::1]", true),
            ("localhost:9000", true),
            ("a.localhost", true),
            ("evil.example:9000", false),
            ("localhost.evil.example", false),
        ] {
            assert_eq!(is_local(&headers(&[("host", host), ("origin", "http://x")])), local, "{host}");
            assert!(is_local(&headers(&[("host", host)])), "no browser: {host}");
        }
    }
}
