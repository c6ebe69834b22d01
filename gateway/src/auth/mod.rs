//! Who is signed in, and from where a page may connect.

mod jwt;
mod origin;

use http::HeaderMap;
use http::header::AUTHORIZATION;

pub use jwt::{Claims, JwtAuth, TokenError};
pub(crate) use origin::{Origins, split_port};

use crate::consumers::scope::{self, User};

/// The subprotocol of clients that speak the whole protocol.
pub(crate) const V1: &str = "gateway.v1";

/// Where a token was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenSource {
    Subprotocol,
    Header,
    Query,
    Cookie,
}

/// Finds the token of a request: a `bearer.<jwt>` subprotocol, `Authorization: Bearer`, `?token=`,
/// or the cookie `gateway_token`, the most deliberate first.
pub(crate) fn find_token(
    headers: &HeaderMap,
    subprotocols: &[String],
    query_string: &str,
    cookies: &[(String, String)],
) -> Option<(String, TokenSource)> {
    let offered = subprotocols.iter().find_map(|entry| entry.strip_prefix("bearer."));
    if let Some(token) = offered {
        return Some((token.to_owned(), TokenSource::Subprotocol));
    }
    if let Some(token) = bearer(headers) {
        return Some((token.to_owned(), TokenSource::Header));
    }
    if let Some(token) = scope::query(query_string, "token") {
        return Some((token, TokenSource::Query));
    }
    scope::cookie(cookies, "gateway_token").map(|token| (token.to_owned(), TokenSource::Cookie))
}

/// The token of an `Authorization: Bearer` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl From<Claims> for User {
    fn from(claims: Claims) -> Self {
        Self { name: claims.username.into(), rooms: claims.rooms, expires_at: Some(claims.expires_at) }
    }
}
