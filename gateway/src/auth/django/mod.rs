//! Logins made by Django: who is there, by the session cookie alone.
//!
//! The check goes as Django's own: find the cookie, find the session, check its signature, read its payload, look at the
//! three fields of the login, load the user, compare the password's hash. Nothing is ever written: Django extends, rotates
//! and deletes its sessions itself.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod payload;
mod pickle;
mod signing;
mod users;

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use parking_lot::RwLock;
use persistence::{Site, SiteMoment, SiteSession, SiteUser, Store, StoreError, StoreOptions};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::payload::{Field, Fields, Unreadable};
use self::signing::{HALF, Keys, Signed};
use self::users::away;
use crate::clock::Clock;
use crate::config::{Config, DjangoConfig, SessionEngine};
use crate::metrics::Metrics;
use crate::redis::{Cached, RedisFailed, SessionCache};
use crate::scope;
use crate::seldom::Seldom;
use crate::storing::batch::Batcher;

pub(crate) use users::{Person, Users};

/// Sessions and users read by one statement, and sessions asked for at once in a cache.
const BATCH: usize = 1_000;

/// Bytes of an id.
const LONGEST_ID: usize = 1024;

/// Backends that let in users who are not active.
const LET_IN_INACTIVE: [&str; 2] = [
    "django.contrib.auth.backends.AllowAllUsersModelBackend",
    "django.contrib.auth.backends.AllowAllUsersRemoteUserBackend",
];

/// What cannot be judged now, because a server of the site does not answer: `site_database` or `session_cache`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Away(pub(crate) &'static str);

/// Why a session lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSession {
    /// It is not good; the reason in a word.
    Refused(&'static str),
    /// It cannot be judged now.
    Away(Away),
}

/// Who is signed in, and what to look at again.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub(crate) person: Person,
    /// Seconds since 1970 when the session ends as things stand. Django may extend it.
    pub(crate) ends: Option<i64>,
    pub(crate) kept: SiteProof,
}

/// What is kept of a sign-in while the socket is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SiteProof {
    /// The key of a session that is stored.
    Session(Box<str>),
    /// What a signed cookie has said.
    Cookie(Box<SignedCookie>),
    /// The id of a user who came by a token.
    User(Box<str>),
}

/// A session that is only in its cookie: no more of it than shows whether it still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SignedCookie {
    user_id: Box<str>,
    hash: [u8; HALF],
    /// Seconds since 1970 when it was signed.
    at: i64,
    /// Of the key that signed it.
    mark: u32,
    inactive_too: bool,
}

/// How it stands with a sign-in now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) person: Person,
    /// As [`LoggedIn::ends`].
    pub(crate) ends: Option<i64>,
}

/// What a session says of its user.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    user_id: Box<str>,
    hash: [u8; 32],
    /// Whether the backend lets in who is not active.
    inactive_too: bool,
}

/// What is held against the user's row.
#[derive(Debug, Clone, Copy)]
struct Shown<'a> {
    hash: &'a [u8],
    inactive_too: bool,
}

/// A session that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Opened {
    /// None: nobody is logged in.
    claim: Option<Claim>,
    ends: Option<i64>,
}

type Verdict = Result<Opened, &'static str>;

const UNKNOWN: Verdict = Err("session_unknown");

/// Why a session is refused that Django may be able to read.
pub(crate) const UNREADABLE: &str = "session_payload";

/// Reads the logins that Django has made.
#[derive(Debug)]
pub(crate) struct Django {
    pub(crate) users: Users,
    checker: Arc<Checker>,
    rows: Arc<Rows>,
    /// For sessions in a cache.
    cache: Batcher<Arc<str>, Verdict, SourceFailed>,
}

/// Reads the site's database for many: what waits together, sessions and users, is one statement. So a visitor takes two
/// of them, and the second one is the first one of those who came meanwhile.
type Rows = Batcher<Row, Found, StoreError>;

/// What is asked for: a session by its key, or a user by the id.
#[derive(Debug)]
enum Row {
    Session(Arc<str>),
    User(Arc<str>),
}

#[derive(Debug)]
enum Found {
    Session(Verdict),
    User(Option<SiteUser>),
}

/// What it takes to judge a session.
#[derive(Debug)]
struct Checker {
    site: Site,
    source: Source,
    rules: Rules,
    clock: Clock,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Source {
    /// Sessions are not looked at.
    Nowhere,
    Rows,
    Cookies,
    Cache(SessionCache),
}

/// What needs no server.
#[derive(Debug)]
struct Rules {
    /// Another one where the settings are read again.
    keys: RwLock<Keys>,
    cookie_name: String,
    cookie_age: i64,
    backends: Vec<String>,
    zone: TimeZone,
    /// Whether Django is asked about what cannot be read here.
    asks: bool,
}

/// Why the site's sessions could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceFailed {
    /// The database is away, or has no such tables.
    #[error("the site's sessions cannot be read")]
    Database(#[from] StoreError),
    /// Redis is away.
    #[error("the site's cache cannot be read")]
    Cache(#[from] RedisFailed),
}

impl Django {
    /// `store` is where the site's tables are if they have no database of their own.
    pub(crate) fn start(
        config: &Config,
        store: &Store,
        clock: &Clock,
        metrics: &Arc<Metrics>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, SourceFailed> {
        let asks = config.auth_url.is_some();
        let config = &config.django;
        let site = match &config.database_url {
            None => Site::beside(store, config.tables.clone()),
            Some(url) => Site::at(options(config, url), config.tables.clone())?,
        };
        let source = match (config.engine, &config.cache) {
            _ if config.secret_keys.is_empty() => Source::Nowhere,
            (SessionEngine::Cookies, _) => Source::Cookies,
            (SessionEngine::Cache, Some(host)) => {
                Source::Cache(SessionCache::new(host, &config.cache_prefix).map_err(RedisFailed::from)?)
            }
            (SessionEngine::Rows | SessionEngine::Cache, _) => Source::Rows,
        };
        let rules = Rules { asks, ..Rules::of(config) };
        let checker = Arc::new(Checker { site, source, rules, clock: clock.clone(), metrics: Arc::clone(metrics) });
        let here = Arc::clone(&checker);
        let rows = Arc::new(Rows::spawn(tasks, stop, BATCH, move |rows: Vec<Row>| {
            let checker = Arc::clone(&here);
            async move { checker.read(&rows).await }
        }));
        let here = Arc::clone(&checker);
        let cache = Batcher::spawn(tasks, stop, BATCH, move |keys: Vec<Arc<str>>| {
            let checker = Arc::clone(&here);
            async move {
                let found = checker.open(&keys).await?;
                Ok(keys.iter().map(|key| found.get(key).cloned().unwrap_or(UNKNOWN)).collect())
            }
        });
        Ok(Self { users: Users::new(&rows), checker, rows, cache })
    }

    /// Whether there is a session cookie.
    pub(crate) fn has_cookie(&self, cookies: &[(String, String)]) -> bool {
        self.cookie(cookies).is_some()
    }

    fn cookie<'a>(&self, cookies: &'a [(String, String)]) -> Option<&'a str> {
        match self.checker.source {
            Source::Nowhere => None,
            _ => scope::cookie(cookies, &self.checker.rules.cookie_name).filter(|cookie| !cookie.is_empty()),
        }
    }

    /// Who is logged in by the session cookie. None: there is no such cookie, or a good session in which nobody is
    /// logged in.
    pub(crate) async fn check(&self, cookies: &[(String, String)]) -> Option<Result<LoggedIn, NoSession>> {
        let cookie = self.cookie(cookies)?;
        self.judge(cookie).await.transpose()
    }

    /// Other secret keys from now on; open sockets are judged by them when they are looked at again.
    pub(crate) fn set_keys(&self, config: &DjangoConfig) {
        *self.checker.rules.keys.write() = Keys::new(&config.secret_keys, &config.salt);
    }

    /// Signs in to the site's database as these settings say from now on.
    pub(crate) fn take_credentials(&self, config: &DjangoConfig) -> Result<bool, StoreError> {
        match &config.database_url {
            Some(url) => self.checker.site.take_credentials(url.expose_secret()),
            None => Ok(true),
        }
    }

    async fn judge(&self, cookie: &str) -> Result<Option<LoggedIn>, NoSession> {
        let rules = &self.checker.rules;
        let (claim, ends, kept) = match &self.checker.source {
            Source::Nowhere => return Ok(None),
            Source::Cookies => {
                let now = self.checker.clock.unix_micros();
                let Some((claim, signed)) = rules.open_cookie(cookie, now)? else { return Ok(None) };
                let ends = signed.at.saturating_add(rules.cookie_age).saturating_add(1);
                (claim, Some(ends), SiteProof::Cookie(signed.into()))
            }
            Source::Rows | Source::Cache(_) => {
                if !is_key(cookie) {
                    return Err(NoSession::Refused("session_key"));
                }
                let opened = self.stored(cookie.into()).await??;
                let Some(claim) = opened.claim else { return Ok(None) };
                (claim, opened.ends, SiteProof::Session(cookie.into()))
            }
        };
        let user = self.users.read(&claim.user_id).await?;
        let person = rules.admit(claim.shown(), user.as_ref())?;
        Ok(Some(LoggedIn { person, ends, kept }))
    }

    /// The stored session with this key.
    async fn stored(&self, key: Arc<str>) -> Result<Verdict, Away> {
        let away = |error: &(dyn std::error::Error + 'static)| self.checker.away(error);
        if self.has_cache() {
            return self.cache.load(key).await.map_err(|error| away(&error));
        }
        match self.rows.load(Row::Session(key)).await.map_err(|error| away(&error))? {
            Found::Session(verdict) => Ok(verdict),
            Found::User(_) => Ok(UNKNOWN),
        }
    }

    /// How it stands with these now: the sign-in, or why it is over.
    pub(crate) async fn again(&self, all: &[SiteProof]) -> Result<Vec<Result<Current, &'static str>>, Away> {
        let (checker, now) = (&self.checker, self.checker.clock.unix_micros());
        let keys: Vec<Arc<str>> = all
            .iter()
            .filter_map(|kept| if let SiteProof::Session(key) = kept { Some((**key).into()) } else { None })
            .collect();
        let sessions = match keys.is_empty() {
            true => HashMap::new(),
            false => checker.open(&keys).await.map_err(|error| checker.away(&error))?,
        };
        let claims: Vec<_> = all.iter().map(|kept| checker.claim_again(kept, &sessions, now)).collect();
        let ids: Vec<&str> = claims.iter().flatten().map(|(user_id, ..)| *user_id).collect();
        let users = match ids.is_empty() {
            true => HashMap::new(),
            false => {
                let users = checker.metrics.time_store("site_rows", checker.site.users(&ids)).await;
                users.map_err(|error| away("site_database", &error))?
            }
        };
        let current = |claim: Result<(&str, Option<Shown<'_>>, Option<i64>), &'static str>| {
            let (user_id, claim, ends) = claim?;
            let user = users.get(user_id);
            let person = match claim {
                Some(claim) => checker.rules.admit(claim, user)?,
                None => active(user)?.into(),
            };
            Ok(Current { person, ends })
        };
        Ok(claims.into_iter().map(current).collect())
    }

    /// The parts that `/readyz` names: each with what asks whether it is there.
    pub(crate) async fn check_database(&self) -> Result<(), StoreError> {
        self.checker.site.check(matches!(self.checker.source, Source::Rows)).await
    }

    /// Whether the cache with the sessions answers, if there is one.
    pub(crate) async fn check_cache(&self) -> Result<(), RedisFailed> {
        match &self.checker.source {
            Source::Cache(cache) => cache.ping().await,
            Source::Nowhere | Source::Rows | Source::Cookies => Ok(()),
        }
    }

    /// Whether sessions are in a cache.
    pub(crate) fn has_cache(&self) -> bool {
        matches!(self.checker.source, Source::Cache(_))
    }
}

impl Checker {
    /// These rows, in their order.
    async fn read(&self, rows: &[Row]) -> Result<Vec<Found>, StoreError> {
        let now = self.clock.unix_micros();
        let (mut keys, mut ids): (Vec<&str>, Vec<&str>) = Default::default();
        for row in rows {
            match row {
                Row::Session(key) => keys.push(key),
                Row::User(id) => ids.push(id),
            }
        }
        let read = self.site.read(&keys, &ids, |session| self.rules.open_row(&session, now));
        let found = self.metrics.time_store("site_rows", read).await?;
        let found = |row: &Row| match row {
            Row::Session(key) => Found::Session(found.sessions.get(&**key).cloned().unwrap_or(UNKNOWN)),
            Row::User(id) => Found::User(found.users.get(&**id).cloned()),
        };
        Ok(rows.iter().map(found).collect())
    }

    /// The stored sessions with these keys; one that is missing is in no map.
    async fn open(&self, keys: &[Arc<str>]) -> Result<HashMap<Arc<str>, Verdict>, SourceFailed> {
        let now = self.clock.unix_micros();
        match &self.source {
            Source::Nowhere | Source::Cookies => Ok(HashMap::new()),
            Source::Rows => {
                let asked: Vec<&str> = keys.iter().map(|key| &**key).collect();
                let read = self.site.sessions(&asked, |session| self.rules.open_row(&session, now));
                let found = self.metrics.time_store("site_rows", read).await?;
                Ok(found.into_iter().map(|(key, session)| (key.into(), session)).collect())
            }
            Source::Cache(cache) => {
                let read = cache.read(keys, now, |value| value.map_or(Err(Unreadable::TooLarge), Fields::of_cached));
                let found = self.metrics.time_store("site_cache", read).await?;
                let open = |Cached { content, ends }: Cached<Result<Fields, Unreadable>>| {
                    let fields = content.map_err(|error| self.rules.unreadable(error))?;
                    Ok(Opened { claim: self.rules.claim(fields)?, ends: ends.map(seconds) })
                };
                let pairs = keys.iter().zip(found);
                Ok(pairs.filter_map(|(key, found)| Some((Arc::clone(key), open(found?)))).collect())
            }
        }
    }

    /// The id of the user, what else the session says of them, and when it ends.
    fn claim_again<'a>(
        &self,
        kept: &'a SiteProof,
        sessions: &'a HashMap<Arc<str>, Verdict>,
        now: i64,
    ) -> Result<(&'a str, Option<Shown<'a>>, Option<i64>), &'static str> {
        match kept {
            SiteProof::User(id) => Ok((id, None, None)),
            SiteProof::Cookie(signed) => {
                if !self.rules.keys.read().has(signed.mark) {
                    return Err("session_signature");
                }
                let ends = self.rules.cookie_end(signed.at, now)?;
                Ok((&signed.user_id, Some(signed.shown()), Some(ends)))
            }
            SiteProof::Session(key) => {
                let opened =
                    sessions.get(&**key).map_or(Err("session_unknown"), |found| found.as_ref().map_err(|why| *why))?;
                // Logged out within the session, which goes on.
                let claim = opened.claim.as_ref().ok_or("session_nobody")?;
                Ok((&claim.user_id, Some(claim.shown()), opened.ends))
            }
        }
    }

    fn away(&self, error: &(dyn std::error::Error + 'static)) -> Away {
        away(if matches!(self.source, Source::Cache(_)) { "session_cache" } else { "site_database" }, error)
    }
}

impl Claim {
    fn shown(&self) -> Shown<'_> {
        Shown { hash: &self.hash, inactive_too: self.inactive_too }
    }
}

impl SignedCookie {
    fn new(claim: &Claim, signed: &Signed<'_>) -> Self {
        let mut hash = [0; HALF];
        hash.copy_from_slice(&claim.hash[..HALF]);
        let (user_id, inactive_too) = (claim.user_id.clone(), claim.inactive_too);
        Self { user_id, hash, at: signed.at, mark: signed.mark, inactive_too }
    }

    fn shown(&self) -> Shown<'_> {
        Shown { hash: &self.hash, inactive_too: self.inactive_too }
    }
}

impl Rules {
    fn of(config: &DjangoConfig) -> Self {
        Self {
            keys: RwLock::new(Keys::new(&config.secret_keys, &config.salt)),
            cookie_name: config.cookie_name.clone(),
            cookie_age: config.cookie_age,
            backends: config.auth_backends.clone(),
            zone: config.time_zone.clone(),
            asks: false,
        }
    }

    /// Judges a row at a moment, in microseconds since 1970.
    fn open_row(&self, session: &SiteSession, now: i64) -> Verdict {
        let ends = self.ends(session.expires, now).ok_or("session_expired")?;
        let Some(data) = &session.data else { return Err(self.unreadable(Unreadable::TooLarge)) };
        let signed = self.keys.read().unsign(data).ok_or("session_signature")?;
        let fields = Fields::of_signed(signed.payload).map_err(|error| self.unreadable(error))?;
        Ok(Opened { claim: self.claim(fields)?, ends: Some(ends) })
    }

    /// Judges a cookie that is the session.
    fn open_cookie(&self, cookie: &str, now: i64) -> Result<Option<(Claim, SignedCookie)>, &'static str> {
        let signed = self.keys.read().unsign(cookie).ok_or("session_signature")?;
        self.cookie_end(signed.at, now)?;
        let fields = Fields::of_signed(signed.payload).map_err(|error| self.unreadable(error))?;
        Ok(self.claim(fields)?.map(|claim| {
            let kept = SignedCookie::new(&claim, &signed);
            (claim, kept)
        }))
    }

    /// When a cookie signed then ends, if it has not.
    fn cookie_end(&self, at: i64, now: i64) -> Result<i64, &'static str> {
        let ends = at.saturating_add(self.cookie_age);
        // Django takes one of exactly that age.
        if now > ends.saturating_mul(1_000_000) { Err("session_expired") } else { Ok(ends.saturating_add(1)) }
    }

    /// When a session ends, in seconds, if it has not.
    fn ends(&self, expires: SiteMoment, now: i64) -> Option<i64> {
        match expires {
            SiteMoment::Unix(micros) => (micros > now).then(|| seconds(micros)),
            SiteMoment::Local(date) => {
                let date = DateTime::new(
                    date.year().try_into().ok()?,
                    u8::from(date.month()).try_into().ok()?,
                    date.day().try_into().ok()?,
                    date.hour().try_into().ok()?,
                    date.minute().try_into().ok()?,
                    date.second().try_into().ok()?,
                    date.nanosecond().try_into().ok()?,
                )
                .ok()?;
                // As Django compares them, also in the hour that comes twice.
                let here = Timestamp::from_microsecond(now).ok()?.to_zoned(self.zone.clone()).datetime();
                if date <= here {
                    return None;
                }
                let moment = self.zone.to_ambiguous_timestamp(date).compatible().ok()?;
                Some(seconds(moment.as_microsecond()))
            }
        }
    }

    /// Who is logged in, by the fields of a session.
    fn claim(&self, fields: Fields) -> Result<Option<Claim>, &'static str> {
        let (user_id, backend) = match (fields.user_id, fields.backend) {
            (Field::None, _) | (_, Field::None) => return Ok(None),
            (Field::Text(user_id), Field::Text(backend)) if user_id.len() <= LONGEST_ID => (user_id, backend),
            _ => return Err(UNREADABLE),
        };
        if !self.backends.contains(&backend) {
            return Err("session_backend");
        }
        let hash = match fields.hash {
            Field::Text(hash) if !hash.is_empty() => hash,
            _ => return Err("session_no_hash"),
        };
        let hash = signing::hash(&hash).ok_or("session_password")?;
        let inactive_too = LET_IN_INACTIVE.contains(&backend.as_str());
        Ok(Some(Claim { user_id: user_id.into(), hash, inactive_too }))
    }

    /// Why such a session is refused, and a line about it now and then.
    fn unreadable(&self, error: Unreadable) -> &'static str {
        static LINES: Seldom = Seldom::new();
        if !self.asks
            && let Some(times) = LINES.again()
        {
            tracing::warn!(
                times,
                error = &error as &dyn std::error::Error,
                "a session cannot be read here: where a site keeps more than plain data in its sessions, set --auth-url too"
            );
        }
        UNREADABLE
    }

    /// Whether the user's row is as the session says.
    fn admit(&self, claim: Shown<'_>, user: Option<&SiteUser>) -> Result<Person, &'static str> {
        let user = match claim.inactive_too {
            true => user.ok_or("user_unknown")?,
            false => active(user)?,
        };
        if self.keys.read().fit(claim.hash, &user.password) { Ok(user.into()) } else { Err("session_password") }
    }
}

/// How to reach a database of the site's own.
fn options(config: &DjangoConfig, url: &SecretString) -> StoreOptions {
    // One statement is under way for connects, one for checks, one for `/readyz`.
    let (max_connections, statement_timeout) = (config.database_connections, config.database_statement);
    StoreOptions { max_connections, statement_timeout, ..StoreOptions::new(url.expose_secret()) }
}

/// Whether the users can be read, and the sessions where they are wanted. `own` is the gateway's database.
pub(crate) async fn check_tables(config: &DjangoConfig, own: &SecretString) -> Result<(), StoreError> {
    let site = Site::at(options(config, config.database_url.as_ref().unwrap_or(own)), config.tables.clone())?;
    site.check(!config.secret_keys.is_empty() && config.engine == SessionEngine::Rows).await
}

/// The user, if there is one who may sign in.
fn active(user: Option<&SiteUser>) -> Result<&SiteUser, &'static str> {
    let user = user.ok_or("user_unknown")?;
    if user.active { Ok(user) } else { Err("user_inactive") }
}

impl From<&'static str> for NoSession {
    fn from(reason: &'static str) -> Self {
        Self::Refused(reason)
    }
}

impl From<Away> for NoSession {
    fn from(away: Away) -> Self {
        Self::Away(away)
    }
}

/// Django's keys are 32 letters and digits; it looks up any of 8 characters or more, and its column holds 40.
fn is_key(cookie: &str) -> bool {
    (8..=40).contains(&cookie.len()) && cookie.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whole seconds, up.
fn seconds(micros: i64) -> i64 {
    micros.div_euclid(1_000_000) + i64::from(micros.rem_euclid(1_000_000) > 0)
}

#[cfg(test)]
mod tests;
