//! Who is signed in, and from where a page may connect.

mod ask;
pub(crate) mod django;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod jwks;
pub(crate) mod recheck;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{AUTHORIZATION, ORIGIN};

pub(crate) use ask::AskDjango;
pub(crate) use jwks::{Jwks, NAME as JWKS};

use crate::auth::ask::{Named, Question, Reply};
use crate::auth::django::{Away, Django, NoSession, Person, SiteProof, UNREADABLE};
use crate::clock::Clock;
use crate::config::{Anonymous, UserName};
use crate::names;
use crate::scope::{self, Access, SignedInBy, User};
use crate::seldom::Seldom;
use crate::tokens::{ClaimedUser, Claims, JwtAuth, Token, TokenError, Verdict};

/// The subprotocol of clients that speak the whole protocol.
pub(crate) const V1: &str = "gateway.v1";

/// Letters of a name that is made up.
const LETTERS: usize = 12;

/// What a visitor shows of themselves.
#[derive(Debug, Clone, Copy)]
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
    /// `http` or `https`, as the browser sees it.
    pub(crate) scheme: &'static str,
    /// The trace that a question to the site is a part of.
    pub(crate) traceparent: Option<&'a str>,
}

/// Who somebody is, and what that is known by.
#[derive(Debug)]
pub(crate) struct SignedIn {
    pub(crate) user: User,
    /// What has to be looked at again while the socket is open, where the sign-in has no end of its own.
    pub(crate) proof: Option<Proof>,
    /// Seconds since 1970 when the proof ends as things stand.
    pub(crate) ends: Option<i64>,
}

/// What somebody is known by.
#[derive(Debug, Clone)]
pub(crate) enum Proof {
    /// What is read at the site.
    Site(SiteProof),
    /// Django was asked this.
    Asked(Box<Question>),
}

/// Why somebody is not signed in. Each holds the reason, one word of the program's, as logs and metrics show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    pub(crate) tokens: Tokens,
    pub(crate) django: Option<Arc<Django>>,
    pub(crate) ask: Option<Arc<AskDjango>>,
    pub(crate) user_name: UserName,
    pub(crate) anonymous: Anonymous,
    /// By which ends and beginnings are judged: the same on all nodes.
    pub(crate) clock: Clock,
}

/// What checks tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) auth: JwtAuth,
    pub(crate) jwks: Option<Arc<Jwks>>,
}

impl SignIn {
    /// Who this is. The methods are tried in the order of the documents, and the first one whose credentials are there
    /// decides: what it refuses, no other method is asked about. Only what it cannot read is Django's to judge.
    pub(crate) async fn sign_in(&self, request: &Request<'_>) -> Result<SignedIn, NotSignedIn> {
        if let Some(signed_in) = self.by_token(request).await? {
            return Ok(signed_in);
        }
        if let Some(signed_in) = self.by_session(request).await? {
            return Ok(signed_in);
        }
        let mut nobody = "no_credentials";
        if let Some(question) = self.ask.as_ref().map(|_| Question::of(request)).transpose()?.flatten() {
            match self.by_django(question).await? {
                Some(signed_in) => return Ok(signed_in),
                None => nobody = "django_nobody",
            }
        } else if request.shows_authorization() {
            // There is no way to sign in that it would be for.
            return Err(NotSignedIn::Nobody("no_credentials"));
        }
        self.by_nobody().ok_or(NotSignedIn::Nobody(nobody))
    }

    async fn by_token(&self, request: &Request<'_>) -> Result<Option<SignedIn>, NotSignedIn> {
        if !self.tokens.are_on() {
            return Ok(None);
        }
        let (token, is_cookie) = match (request.deliberate_token(), request.cookie_token()) {
            (Some(token), _) => (token, false),
            (None, Some(token)) => (token, true),
            (None, None) => return Ok(None),
        };
        if is_cookie {
            request.needs_origin()?;
        }
        self.user_of(&token).await.map(Some)
    }

    /// Whose token this is.
    pub(crate) async fn user_of(&self, token: &str) -> Result<SignedIn, NotSignedIn> {
        let claims = self.tokens.check(token, self.clock.unix_seconds()).await.map_err(|error| {
            let refused = refused_token(&error);
            tracing::debug!(error = &error as &dyn std::error::Error, "token refused");
            refused
        })?;
        let Claims { user, rooms, expires_at } = claims;
        let (name, id, proof) = match user {
            ClaimedUser::Name(name) => (Arc::from(name), None, None),
            ClaimedUser::Id(id) => {
                let person = self.user_by_id(&id).await?;
                let name = self.known_name(&person, "the user of a signed token")?;
                (name, Some(Arc::clone(&person.id)), Some(Proof::Site(SiteProof::User((*person.id).into()))))
            }
        };
        let expires_at = Some(expires_at);
        let user = User { name, id, by: SignedInBy::Token, access: Access::Full, rooms, expires_at };
        Ok(SignedIn { user, proof, ends: None })
    }

    /// The user of the site with this id, who may sign in.
    async fn user_by_id(&self, id: &str) -> Result<Person, NotSignedIn> {
        let Some(django) = &self.django else { return Err(NotSignedIn::Unavailable("site_database")) };
        match django.users.find(id).await {
            Ok(Some(person)) if person.active => Ok(person),
            Ok(Some(_)) => Err(NotSignedIn::Nobody("user_inactive")),
            Ok(None) => Err(NotSignedIn::Nobody("user_unknown")),
            Err(Away(what)) => Err(NotSignedIn::Unavailable(what)),
        }
    }

    /// Whose Django session the cookie is; `None` where nobody is logged in by it, or where only Django can read it and
    /// is asked next.
    async fn by_session(&self, request: &Request<'_>) -> Result<Option<SignedIn>, NotSignedIn> {
        let Some(django) = self.django.as_ref().filter(|django| django.has_cookie(request.cookies)) else {
            return Ok(None);
        };
        request.needs_origin()?;
        let logged_in = match django.check(request.cookies).await {
            None => return Ok(None),
            Some(Ok(logged_in)) => logged_in,
            Some(Err(NoSession::Refused(UNREADABLE))) if self.ask.is_some() => return Ok(None),
            Some(Err(NoSession::Refused(reason))) => return Err(NotSignedIn::Nobody(reason)),
            Some(Err(NoSession::Away(Away(what)))) => return Err(NotSignedIn::Unavailable(what)),
        };
        let user = User {
            name: self.known_name(&logged_in.person, "a Django session")?,
            id: Some(logged_in.person.id),
            by: SignedInBy::Session,
            access: Access::Full,
            rooms: Vec::new(),
            // Django may extend it: it is looked at again then.
            expires_at: None,
        };
        Ok(Some(SignedIn { user, proof: Some(Proof::Site(logged_in.kept)), ends: logged_in.ends }))
    }

    /// What a person of the site is called here, if that is possible.
    fn known_name(&self, person: &Person, by: &'static str) -> Result<Arc<str>, NotSignedIn> {
        let name = self.name_of(person);
        if names::is_user_name(name) { Ok(Arc::clone(name)) } else { Err(impossible_name(by)) }
    }

    /// What a person of the site is called here.
    pub(crate) fn name_of<'a>(&self, person: &'a Person) -> &'a Arc<str> {
        match self.user_name {
            UserName::Username => &person.username,
            UserName::Id => &person.id,
        }
    }

    /// Whom Django names; `None` when it says that nobody is logged in.
    async fn by_django(&self, question: Question) -> Result<Option<SignedIn>, NotSignedIn> {
        let Some(ask) = &self.ask else { return Ok(None) };
        match ask.ask(&question).await {
            Ok(Reply::User(named)) => {
                let user = self.user_named_by_django(&named)?;
                // Asked again it is no part of this handshake.
                let proof = user.expires_at.is_none().then(|| Proof::Asked(Box::new(question.without_trace())));
                Ok(Some(SignedIn { user, proof, ends: None }))
            }
            Ok(Reply::Nobody) => Ok(None),
            Ok(Reply::Unauthorized) => Err(NotSignedIn::Nobody("django_unauthorized")),
            Ok(Reply::Forbidden) => Err(NotSignedIn::Forbidden("django_forbidden")),
            Err(failed) => Err(NotSignedIn::Unavailable(failed.0)),
        }
    }

    fn user_named_by_django(&self, named: &Named) -> Result<User, NotSignedIn> {
        let name = Arc::clone(match self.user_name {
            UserName::Username => &named.username,
            UserName::Id => &named.id,
        });
        if !names::is_user_name(&name) {
            return Err(impossible_name("what Django answered"));
        }
        if named.expires_at.is_some_and(|end| end <= self.clock.unix_seconds()) {
            return Err(NotSignedIn::Nobody("expired"));
        }
        Ok(User {
            name,
            id: Some(Arc::clone(&named.id)),
            by: SignedInBy::Django,
            access: Access::Full,
            rooms: named.rooms.clone(),
            expires_at: named.expires_at,
        })
    }

    fn by_nobody(&self) -> Option<SignedIn> {
        let access = match self.anonymous {
            Anonymous::Off => return None,
            Anonymous::Listen => Access::Listen,
            Anonymous::Talk => Access::Talk,
        };
        let user = User {
            name: made_up_name(),
            id: None,
            by: SignedInBy::Nobody,
            access,
            rooms: Vec::new(),
            expires_at: None,
        };
        Some(SignedIn { user, proof: None, ends: None })
    }

    /// Who this is now, as Django says when it is asked again.
    pub(crate) async fn ask_again(&self, question: Question) -> Result<User, NotSignedIn> {
        match self.by_django(question).await? {
            Some(signed_in) => Ok(signed_in.user),
            None => Err(NotSignedIn::Nobody("django_nobody")),
        }
    }
}

impl Tokens {
    fn are_on(&self) -> bool {
        self.auth.has_keys() || self.jwks.is_some()
    }

    async fn check(&self, text: &str, now: i64) -> Result<Claims, TokenError> {
        let token = Token::parse(text)?;
        let verdict = self.auth.verify(&token);
        match &self.jwks {
            _ if verdict == Verdict::Good => {}
            Some(jwks) if !token.algorithm.is_symmetric() => jwks.verify(&token).await?,
            _ if verdict == Verdict::Bad => return Err(TokenError::Signature),
            _ => return Err(TokenError::Algorithm),
        }
        self.auth.claims(&token, now)
    }
}

fn refused_token(error: &TokenError) -> NotSignedIn {
    match error {
        TokenError::KeysAway => NotSignedIn::Unavailable(error.reason()),
        TokenError::Name(_) => impossible_name(&error.to_string()),
        _ => NotSignedIn::Nobody(error.reason()),
    }
}

/// Somebody is known who can have no name here: the site's people should hear of it.
fn impossible_name(by: &str) -> NotSignedIn {
    static LINE: Seldom = Seldom::new();
    if let Some(times) = LINE.again() {
        tracing::warn!(
            by,
            times,
            "somebody has a name that is impossible here (docs/protocol.md) and cannot sign in: see --user-name"
        );
    }
    NotSignedIn::Nobody("name")
}

fn made_up_name() -> Arc<str> {
    let letters: String = (0..LETTERS).map(|_| char::from(rand::random_range(b'a'..=b'z'))).collect();
    format!("{}{letters}", names::ANONYMOUS).into()
}

impl Request<'_> {
    /// A `bearer.<jwt>` subprotocol, `Authorization: Bearer`, or `?token=`, the most deliberate first.
    fn deliberate_token(&self) -> Option<String> {
        let offered = self.subprotocols.iter().find_map(|entry| entry.strip_prefix("bearer.")).map(str::to_owned);
        let authorized = || bearer(self.headers).map(str::to_owned);
        offered.or_else(authorized).or_else(|| scope::query(self.query_string, "token"))
    }

    fn cookie_token(&self) -> Option<String> {
        scope::cookie(self.cookies, "gateway_token").map(str::to_owned)
    }

    /// Whether there is anything, of whatever scheme, that was sent on purpose to say who this is.
    fn shows_authorization(&self) -> bool {
        self.headers.contains_key(AUTHORIZATION) || self.deliberate_token().is_some()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_nobody_s() {
        let (one, other) = (made_up_name(), made_up_name());
        assert_ne!(one, other);
        let letters = one.strip_prefix("anon.").unwrap();
        assert!(letters.len() == 12 && letters.bytes().all(|letter| letter.is_ascii_lowercase()), "{one}");
        assert!(names::is_valid_name(&one) && !names::is_user_name(&one));
    }
}
