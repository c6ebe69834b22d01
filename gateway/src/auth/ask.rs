//! Asking Django who somebody is, for sites that share no secret: one GET with what the browser showed.
//!
//! Equal credentials are asked once, however many sockets come with them, and remembered for a moment. What fails is
//! not remembered. Credentials are kept as long as their socket must be asked about again, and are never logged.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use http::header::{ACCEPT, AUTHORIZATION, COOKIE, ORIGIN};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::{Mutex, RwLock};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::{NotSignedIn, Request};
use crate::health::Health;
use crate::http_client::{self, BodyError};
use crate::metrics::ByResult;
use crate::names;
use crate::scope;
use crate::seldom::SeldomOfKind;
use crate::tokens::text_or_whole;

/// How long it is remembered.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Bytes of an answer, and of all that are remembered; over it the memory starts afresh.
const MAX_ANSWER: usize = 64 * 1024;
const REMEMBERED_BYTES: usize = 8 << 20;

/// What one takes beside its texts, about.
const ANSWER_COST: usize = 256;

/// Questions that nobody waits for any more, until they are looked for.
const FORGOTTEN: usize = 1024;

/// How often Django is asked whether it answers, while it does not.
const EVERY: Duration = Duration::from_secs(5);

/// The name of this part in `/readyz`.
const NAME: &str = "ask_django";

/// What the browser showed, and what it wanted: enough to ask, and to ask again.
#[derive(Clone)]
pub(crate) struct Question {
    cookie: Option<HeaderValue>,
    authorization: Option<HeaderValue>,
    origin: Option<HeaderValue>,
    uri: HeaderValue,
    client: IpAddr,
    host: Option<HeaderValue>,
    scheme: &'static str,
    /// What Django's own trace goes on with. Of equal questions, the first one's.
    traceparent: Option<HeaderValue>,
}

/// Whom Django names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) id: Arc<str>,
    pub(crate) username: Arc<str>,
    pub(crate) rooms: Vec<String>,
    pub(crate) expires_at: Option<i64>,
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question")
    }
}

/// What Django answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    User(Arc<Named>),
    /// Nobody is logged in: `{"user":null}`.
    Nobody,
    Unauthorized,
    Forbidden,
}

type Outcome = Result<Reply, Failed>;

/// Why there is no answer, as a word for the log and the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed(pub(crate) &'static str);

type Asking = Shared<BoxFuture<'static, Outcome>>;

/// Credentials, hashed.
type Fingerprint = [u8; 32];

/// See the [module](self).
pub(crate) struct AskDjango {
    url: RwLock<reqwest::Url>,
    secret: RwLock<Option<HeaderValue>>,
    http: reqwest::Client,
    turns: Semaphore,
    /// How long an answer may take, from when the question is sent.
    time: Duration,
    known: Mutex<Known>,
    health: Arc<Health>,
    lines: SeldomOfKind,
}

#[derive(Default)]
struct Known {
    replies: HashMap<Fingerprint, (Reply, Instant)>,
    bytes: usize,
    asking: HashMap<Fingerprint, WeakShared<BoxFuture<'static, Outcome>>>,
}

impl Question {
    /// What this visitor shows. `None` when there is nothing to ask with: no cookie, no authorization.
    pub(crate) fn of(request: &Request<'_>) -> Result<Option<Self>, NotSignedIn> {
        let malformed = |_| NotSignedIn::Nobody("malformed");
        let authorization = match request.deliberate_token() {
            Some(token) => Some(HeaderValue::from_str(&format!("Bearer {token}")).map_err(malformed)?),
            None => request.headers.get(AUTHORIZATION).cloned(),
        };
        let mut cookie = one_cookie_header(request.headers);
        let origin = request.headers.get_all(ORIGIN).iter().next_back().cloned();
        if cookie.is_some() && origin.is_none() {
            // Whom a cookie would name is not to be asked then.
            match authorization {
                Some(_) => cookie = None,
                None => request.needs_origin()?,
            }
        }
        if cookie.is_none() && authorization.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            cookie,
            authorization,
            origin,
            uri: HeaderValue::from_str(&uri(request.path, request.query_string)).map_err(malformed)?,
            client: request.client,
            host: request.own_host.and_then(|host| HeaderValue::from_str(host).ok()),
            scheme: request.scheme,
            traceparent: request.traceparent.and_then(|trace| HeaderValue::from_str(trace).ok()),
        }))
    }

    /// The same, asked on its own.
    pub(crate) fn without_trace(self) -> Self {
        Self { traceparent: None, ..self }
    }

    /// One that shows nothing.
    pub(crate) fn empty() -> Self {
        let uri = HeaderValue::from_static("/");
        let client = IpAddr::from([127, 0, 0, 1]);
        Self {
            cookie: None,
            authorization: None,
            origin: None,
            uri,
            client,
            host: None,
            scheme: "http",
            traceparent: None,
        }
    }

    /// Only what says who it is, and from which page.
    fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        for part in [&self.cookie, &self.authorization, &self.origin] {
            let bytes = part.as_ref().map_or(&[][..], HeaderValue::as_bytes);
            hash.update([u8::from(part.is_some())]);
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }

    /// Nothing that a visitor says in other headers is passed on.
    fn headers(&self, secret: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let client = HeaderValue::from_str(&self.client.to_string()).ok();
        let scheme = HeaderValue::from_static(self.scheme);
        let sensitive = |value: &HeaderValue| {
            let mut value = value.clone();
            value.set_sensitive(true);
            value
        };
        for (name, value) in [
            ("cookie", self.cookie.as_ref().map(sensitive)),
            ("authorization", self.authorization.as_ref().map(sensitive)),
            ("x-gateway-secret", secret.map(sensitive)),
            ("origin", self.origin.clone()),
            ("x-original-uri", Some(self.uri.clone())),
            ("x-forwarded-for", client),
            ("x-forwarded-host", self.host.clone()),
            ("x-forwarded-proto", Some(scheme)),
            ("traceparent", self.traceparent.clone()),
        ] {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        headers
    }
}

/// A client may send several, which HTTP means as one.
fn one_cookie_header(headers: &HeaderMap) -> Option<HeaderValue> {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.is_empty() { None } else { HeaderValue::from_bytes(&all.join(&b"; "[..])).ok() }
}

/// Path and query as they were sent, without `token`.
fn uri(path: &str, query: &str) -> String {
    let is_token =
        |pair: &&str| scope::query(&format!("{}=", pair.split('=').next().unwrap_or_default()), "token").is_some();
    let rest: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !is_token(pair)).collect();
    if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) }
}

fn header(secret: Option<&SecretString>) -> Option<HeaderValue> {
    HeaderValue::from_str(secret?.expose_secret()).ok()
}

impl AskDjango {
    pub(crate) fn new(
        url: reqwest::Url,
        secret: Option<&SecretString>,
        time: Duration,
        at_once: usize,
        health: &Arc<Health>,
    ) -> Result<Self, reqwest::Error> {
        let http = client(at_once)?;
        health.note_part(NAME, true, false);
        Ok(Self {
            url: RwLock::new(url),
            secret: RwLock::new(header(secret)),
            http,
            turns: Semaphore::new(at_once),
            time,
            known: Mutex::default(),
            health: Arc::clone(health),
            lines: SeldomOfKind::default(),
        })
    }

    /// Asks as somebody who shows nothing. Nobody is known then, or kept out; anything else is an error.
    pub(crate) async fn try_once(
        url: &reqwest::Url,
        secret: Option<&SecretString>,
        time: Duration,
    ) -> Result<(), Silence> {
        let http = client(1).map_err(BodyError::from)?;
        let headers = Question::empty().headers(header(secret).as_ref());
        timeout(time, exchange(&http, url.clone(), headers)).await.unwrap_or(Err(Silence::Late(time))).map(drop)
    }

    /// Another place and another secret from now on. What another place has said counts no more.
    pub(crate) fn set(&self, url: &reqwest::Url, secret: Option<&SecretString>) {
        *self.secret.write() = header(secret);
        if *self.url.read() != *url {
            *self.url.write() = url.clone();
            *self.known.lock() = Known::default();
        }
    }

    /// Asks, unless it is known or being asked already.
    pub(crate) async fn ask(self: &Arc<Self>, question: &Question) -> Outcome {
        let fingerprint = question.fingerprint();
        let asking = {
            let known = &mut *self.known.lock();
            if let Some(reply) = known.get(&fingerprint, Instant::now()) {
                return Ok(reply);
            }
            match known.asking.get(&fingerprint).and_then(WeakShared::upgrade) {
                Some(asking) => asking,
                None => {
                    let asking = Arc::clone(self).ask_once(fingerprint, question.clone()).boxed().shared();
                    known.note_asking(fingerprint, &asking);
                    asking
                }
            }
        };
        asking.await
    }

    async fn ask_once(self: Arc<Self>, fingerprint: Fingerprint, question: Question) -> Outcome {
        let outcome = match self.turns.acquire().await {
            Ok(_turn) => self.send(&question).await,
            Err(_) => Err(Failed("django_late")),
        };
        let known = &mut *self.known.lock();
        known.asking.remove(&fingerprint);
        if let Ok(reply) = &outcome {
            known.add(fingerprint, reply.clone(), Instant::now());
        }
        outcome
    }

    async fn send(&self, question: &Question) -> Outcome {
        let outcome =
            timeout(self.time, self.exchange(question)).await.unwrap_or(Err(Silence::Late(self.time))).map_err(|why| {
                if let Some(times) = self.lines.again(NAME, why.reason()) {
                    tracing::warn!(url = http_client::shown(&self.url.read()), times, "ask Django {why}");
                }
                Failed(why.reason())
            });
        self.health.note_part(NAME, outcome.is_ok(), false);
        let result = match &outcome {
            Ok(Reply::User(_)) => "user",
            Ok(Reply::Nobody) => "nobody",
            Ok(Reply::Unauthorized) => "unauthorized",
            Ok(Reply::Forbidden) => "forbidden",
            Err(_) => "failed",
        };
        self.health.metrics.django_asked.get_or_create(&ByResult { result }).inc();
        outcome
    }

    async fn exchange(&self, question: &Question) -> Result<Reply, Silence> {
        let headers = question.headers(self.secret.read().as_ref());
        let url = self.url.read().clone();
        exchange(&self.http, url, headers).await
    }

    /// Asks now and then, while Django does not answer, whether it does; runs until the node stops.
    pub(crate) async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            if !self.health.is_there(NAME) {
                // Whatever it says, the send notes it.
                let _ = self.send(&Question::empty()).await;
            }
        }
    }
}

fn client(at_once: usize) -> Result<reqwest::Client, reqwest::Error> {
    // A proxy from the environment is for the way out; Django is on this network.
    http_client::builder().no_proxy().pool_max_idle_per_host(at_once).build()
}

async fn exchange(http: &reqwest::Client, url: reqwest::Url, headers: HeaderMap) -> Result<Reply, Silence> {
    let answer = http.get(url).headers(headers).send().await.map_err(BodyError::from)?;
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => return Ok(Reply::Unauthorized),
        StatusCode::FORBIDDEN => return Ok(Reply::Forbidden),
        status => return Err(Silence::Status { status, to: http_client::redirected_to(answer.headers()) }),
    }
    let body = http_client::body(answer, MAX_ANSWER).await?;
    reply(&body).map_err(Silence::Malformed)
}

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Silence {
    #[error("did not answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    #[error("answered {}{to}", status.as_u16())]
    Status { status: StatusCode, to: String },
    #[error("answered something else than it should: {0}")]
    Malformed(&'static str),
    #[error("did not answer: {}", causes(.0))]
    Body(#[from] BodyError),
}

/// An error of HTTP says least at its top.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl Silence {
    fn reason(&self) -> &'static str {
        match self {
            Self::Late(_) => "django_late",
            Self::Status { status, .. } if status.is_redirection() => "django_redirect",
            Self::Status { .. } => "django_status",
            Self::Malformed(_) => "django_malformed",
            Self::Body(BodyError::TooLong(_)) => "django_too_large",
            Self::Body(BodyError::Http(_)) => "django_unreachable",
        }
    }
}

/// Reads `{"user":{"id","username"},"rooms":[…]?,"expires_at"?}`.
fn reply(body: &[u8]) -> Result<Reply, &'static str> {
    let answer: Value = crate::json::read(body).map_err(|_| "it is no JSON")?;
    let answer = answer.as_object().ok_or("it is no object")?;
    let user = match answer.get("user") {
        None => return Err("user is missing"),
        Some(Value::Null) => return Ok(Reply::Nobody),
        Some(user) => user.as_object().ok_or("user is no object")?,
    };
    let id =
        user.get("id").and_then(text_or_whole).filter(|id| !id.is_empty()).ok_or("user.id is no text and no number")?;
    let username = user.get("username").and_then(Value::as_str).ok_or("user.username is no text")?;
    let rooms = match answer.get("rooms") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(rooms)) => {
            let room = |room: &Value| room.as_str().filter(|room| names::is_valid_name(room)).map(str::to_owned);
            rooms.iter().map(room).collect::<Option<_>>().ok_or("rooms has what cannot be a room's name")?
        }
        Some(_) => return Err("rooms is no list"),
    };
    let expires_at = match answer.get("expires_at") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => {
            Some(OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "expires_at is not RFC 3339")?.unix_timestamp())
        }
        Some(_) => return Err("expires_at is no text"),
    };
    Ok(Reply::User(Arc::new(Named { id: id.into(), username: username.into(), rooms, expires_at })))
}

impl Known {
    fn get(&self, fingerprint: &Fingerprint, now: Instant) -> Option<Reply> {
        let (reply, at) = self.replies.get(fingerprint)?;
        (now.duration_since(*at) < REMEMBERED).then(|| reply.clone())
    }

    fn add(&mut self, fingerprint: Fingerprint, reply: Reply, now: Instant) {
        let cost = cost(&reply);
        if self.bytes + cost > REMEMBERED_BYTES {
            self.replies.retain(|_, (_, at)| now.duration_since(*at) < REMEMBERED);
            self.bytes = self.replies.values().map(|(reply, _)| self::cost(reply)).sum();
            if self.bytes + cost > REMEMBERED_BYTES {
                self.replies = HashMap::new();
                self.bytes = 0;
            }
        }
        self.bytes += cost;
        if let Some((before, _)) = self.replies.insert(fingerprint, (reply, now)) {
            self.bytes -= self::cost(&before);
        }
    }

    /// Questions whose visitors have all gone are never answered, and are forgotten when there are many.
    fn note_asking(&mut self, fingerprint: Fingerprint, asking: &Asking) {
        if self.asking.len() >= FORGOTTEN {
            self.asking.retain(|_, asking| asking.upgrade().is_some());
        }
        if let Some(asking) = asking.downgrade() {
            self.asking.insert(fingerprint, asking);
        }
    }
}

fn cost(reply: &Reply) -> usize {
    let Reply::User(named) = reply else { return ANSWER_COST };
    let rooms: usize = named.rooms.iter().map(|room| size_of::<String>() + room.len()).sum();
    ANSWER_COST + named.id.len() + named.username.len() + rooms
}

impl fmt::Debug for AskDjango {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskDjango").field("url", &http_client::shown(&self.url.read())).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_strictly_and_what_it_does_not_need_is_ignored() {
        let user = |json: &str| match reply(json.as_bytes()) {
            Ok(Reply::User(named)) => {
                (named.id.to_string(), named.username.to_string(), named.rooms.len(), named.expires_at)
            }
            other => panic!("{json}: {other:?}"),
        };
        assert_eq!(
            user(r#"{"user":{"id":7,"username":"alice","email":"a"},"x":1}"#),
            ("7".into(), "alice".into(), 0, None)
        );
        assert_eq!(
            user(r#"{"user":{"id":"u-7","username":"a"},"rooms":["x","y"],"expires_at":"2030-01-01T00:00:00Z"}"#),
            ("u-7".into(), "a".into(), 2, Some(1_893_456_000))
        );
        assert_eq!(user(r#"{"user":{"id":7.0,"username":"a"},"rooms":null,"expires_at":null}"#).0, "7");
        assert_eq!(reply(br#"{"user":null}"#), Ok(Reply::Nobody));
        for wrong in [
            "<html>",
            "[]",
            "{}",
            r#"{"user":"alice"}"#,
            r#"{"user":{"id":7}}"#,
            r#"{"user":{"username":"a"}}"#,
            r#"{"user":{"id":null,"username":"a"}}"#,
            r#"{"user":{"id":1.5,"username":"a"}}"#,
            r#"{"user":{"id":true,"username":"a"}}"#,
            r#"{"user":{"id":7,"username":8}}"#,
            r#"{"user":{"id":7,"username":"a"},"rooms":"x"}"#,
            r#"{"user":{"id":7,"username":"a"},"rooms":["x/y"]}"#,
            r#"{"user":{"id":7,"username":"a"},"expires_at":"tomorrow"}"#,
            r#"{"user":{"id":7,"username":"a"},"expires_at":1893456000}"#,
        ] {
            assert!(reply(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_a_time() {
        let (mut known, now) = (Known::default(), Instant::now());
        let named = Named { id: "1".into(), username: "a".into(), rooms: vec!["r".repeat(100); 600], expires_at: None };
        let reply = Reply::User(Arc::new(named));
        for number in 0..1000_u32 {
            known.add(Sha256::digest(number.to_be_bytes()).into(), reply.clone(), now);
            assert!(known.bytes <= REMEMBERED_BYTES);
        }
        let last: Fingerprint = Sha256::digest(999_u32.to_be_bytes()).into();
        assert_eq!(known.get(&last, now), Some(reply));
        assert_eq!(known.get(&last, now + REMEMBERED), None);
    }

    #[test]
    fn the_uri_is_passed_on_without_the_token() {
        assert_eq!(uri("/ws/chat/", ""), "/ws/chat/");
        assert_eq!(uri("/ws/chat/", "token=x"), "/ws/chat/");
        assert_eq!(
            uri("/ws/chat/a%20b/", "a=1&token=x&b=%32&tok%65n=y&tokens=z"),
            "/ws/chat/a%20b/?a=1&b=%32&tokens=z"
        );
    }
}
