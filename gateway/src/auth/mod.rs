//! Who is signed in, and from where a page may connect.

mod jwt;
mod origin;

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{AUTHORIZATION, ORIGIN};

pub use jwt::{Claims, JwtAuth, TokenError};
pub(crate) use origin::{Origins, split_port};

use crate::consumers::scope::{self, Access, SignedInBy, User};

/// The subprotocol of clients that speak the whole protocol.
pub(crate) const V1: &str = "gateway.v1";

/// What a visitor shows of themselves.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "path, client and host are for ways that ask Django")]
pub(crate) struct Request<'a> {
    pub(crate) headers: &'a HeaderMap,
    /// As offered, bearer entries included.
    pub(crate) subprotocols: &'a [String],
    pub(crate) query_string: &'a str,
    /// By Channels' rules, see [`scope::parse_cookies`].
    pub(crate) cookies: &'a [(String, String)],
    /// As it was sent, still encoded.
    pub(crate) path: &'a str,
    /// The client's address, as far as trusted proxies tell it.
    pub(crate) client: IpAddr,
    /// The host as the browser sees it, with its port where it has one.
    pub(crate) own_host: Option<&'a str>,
}

/// Why somebody is not signed in. Each holds the reason, one word of the program's, as logs and metrics show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "only what others decide can be forbidden or unavailable")]
pub(crate) enum NotSignedIn {
    /// 401, or 4401 for clients of `gateway.v1`.
    Nobody(&'static str),
    /// 403, or 4403 for clients of `gateway.v1`.
    Forbidden(&'static str),
    /// 403 before the upgrade for everybody: who signs in by cookie must say from which page.
    CookieWithoutOrigin,
    /// 503 before the upgrade for everybody: nobody can tell now.
    Unavailable(&'static str),
}

/// The ways to sign in.
#[derive(Debug)]
pub(crate) struct SignIn {
    pub(crate) tokens: JwtAuth,
}

impl SignIn {
    /// Who this is. The methods are tried in the order of the documents, and the first one whose credentials are there
    /// decides: what it refuses, no other method is asked about.
    pub(crate) async fn sign_in(&self, request: &Request<'_>) -> Result<User, NotSignedIn> {
        if let Some(user) = self.by_token(request).await? {
            return Ok(user);
        }
        // Django's sessions have their place here: after tokens, before Django is asked.
        Err(NotSignedIn::Nobody("no_credentials"))
    }

    async fn by_token(&self, request: &Request<'_>) -> Result<Option<User>, NotSignedIn> {
        let Some((token, source)) = request.token() else { return Ok(None) };
        if source == TokenSource::Cookie {
            request.needs_origin()?;
        }
        self.user_of(&token).await.map(Some)
    }

    /// Whose token this is.
    pub(crate) async fn user_of(&self, token: &str) -> Result<User, NotSignedIn> {
        match self.tokens.check(token) {
            Ok(claims) => Ok(claims.into()),
            Err(error) => {
                if matches!(error, TokenError::Name(_)) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a signed token is of no use here");
                } else {
                    tracing::debug!(error = &error as &dyn std::error::Error, "token refused");
                }
                Err(NotSignedIn::Nobody(error.reason()))
            }
        }
    }
}

/// Where a token was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenSource {
    Subprotocol,
    Header,
    Query,
    Cookie,
}

impl Request<'_> {
    /// A `bearer.<jwt>` subprotocol, `Authorization: Bearer`, `?token=`, or the cookie `gateway_token`, the most
    /// deliberate first.
    fn token(&self) -> Option<(String, TokenSource)> {
        let offered = self.subprotocols.iter().find_map(|entry| entry.strip_prefix("bearer."));
        if let Some(token) = offered {
            return Some((token.to_owned(), TokenSource::Subprotocol));
        }
        if let Some(token) = bearer(self.headers) {
            return Some((token.to_owned(), TokenSource::Header));
        }
        if let Some(token) = scope::query(self.query_string, "token") {
            return Some((token, TokenSource::Query));
        }
        scope::cookie(self.cookies, "gateway_token").map(|token| (token.to_owned(), TokenSource::Cookie))
    }

    /// Cookies are sent by any page's WebSocket, so whoever signs in by cookie must have an origin. Whether that one
    /// may connect has been looked at before.
    pub(crate) fn needs_origin(&self) -> Result<(), NotSignedIn> {
        if self.headers.contains_key(ORIGIN) { Ok(()) } else { Err(NotSignedIn::CookieWithoutOrigin) }
    }
}

/// The token of an `Authorization: Bearer` header.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl From<Claims> for User {
    fn from(claims: Claims) -> Self {
        Self {
            name: claims.username.into(),
            id: None,
            by: SignedInBy::Token,
            access: Access::Full,
            rooms: claims.rooms,
            expires_at: Some(claims.expires_at),
        }
    }
}
