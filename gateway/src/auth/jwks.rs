//! The keys of a JWKS, from a file or a URL: kept, read again when their time is over or a token names a key that is
//! not among them. One task reads; whoever needs a newer one waits for it a moment.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, StatusCode};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::http_client::{self, BodyError};
use crate::tokens::{JwksSource as Source, Key, MAX_JWKS, MAX_KEYS, Token, TokenError, Verdict, keys_of_jwks, verify};

/// How often an unknown `kid` has it read again, at most.
const AGAIN: Duration = Duration::from_secs(10);

/// How long a visitor waits until it is read again.
const PATIENCE: Duration = Duration::from_secs(4);

/// How long reading it may take.
const READ_TIME: Duration = Duration::from_secs(3);

/// How long it is good where the answer does not say, and the bounds of what it may say.
const GOOD_FOR: Duration = Duration::from_secs(300);
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(86_400);

/// How often a file is read again.
const FILE_GOOD_FOR: Duration = Duration::from_secs(10);

/// The first wait after a failure, and the longest.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// The name of this part in `/readyz`, and of its task.
pub(crate) const NAME: &str = "jwks";

/// Why it was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JwksError {
    #[error("the JWKS {0} cannot be read")]
    File(String, #[source] std::io::Error),
    #[error("the JWKS at {0} cannot be fetched")]
    Url(String, #[source] BodyError),
    #[error("the JWKS at {0} answered {1}{2}")]
    Status(String, StatusCode, String),
    #[error("{1} ({0})")]
    Document(String, &'static str),
    #[error("the JWKS at {0} did not come within {READ_TIME:?}")]
    Late(String),
}

/// See the [module](self).
pub(crate) struct Jwks {
    source: Source,
    http: reqwest::Client,
    state: watch::Sender<Known>,
    wanted: Notify,
    /// Its reader ends.
    over: CancellationToken,
}

#[derive(Debug, Default, Clone)]
struct Known {
    /// Those that were had last; `None` when there have never been any.
    keys: Option<Arc<Vec<Key>>>,
    /// When what is here was asked for.
    fetched: Option<Instant>,
    /// When it was last asked for, with whatever outcome.
    tried: Option<Instant>,
}

impl Known {
    fn is_fresh(&self) -> bool {
        self.fetched.is_some_and(|at| at.elapsed() < AGAIN)
    }

    fn was_tried(&self) -> bool {
        self.tried.is_some_and(|at| at.elapsed() < AGAIN)
    }
}

impl Jwks {
    pub(crate) fn new(source: Source) -> Result<Self, reqwest::Error> {
        let http = http_client::builder().timeout(READ_TIME).build()?;
        let over = CancellationToken::new();
        Ok(Self { source, http, state: watch::Sender::default(), wanted: Notify::new(), over })
    }

    /// Reads it once; how many of its keys are of use.
    pub(crate) async fn try_once(source: &Source) -> Result<usize, JwksError> {
        let late = || JwksError::Late(source.to_string());
        let jwks = Self::new(source.clone()).map_err(|error| JwksError::Url(source.to_string(), error.into()))?;
        timeout(READ_TIME, jwks.read()).await.map_err(|_late| late())?.map(|(keys, _)| keys.len())
    }

    /// Whether it is read from there.
    pub(crate) fn is_of(&self, source: &Source) -> bool {
        self.source == *source
    }

    /// Another one has taken its place.
    pub(crate) fn give_up(&self) {
        self.over.cancel();
    }

    /// Checks a token's signature.
    pub(crate) async fn verify(&self, token: &Token<'_>) -> Result<(), TokenError> {
        let mut states = self.state.subscribe();
        let give_up = Instant::now() + PATIENCE;
        loop {
            let state = states.borrow_and_update().clone();
            let Some(keys) = &state.keys else {
                // One that is new is read just now.
                let is_new = state.tried.is_none();
                if is_new && matches!(tokio::time::timeout_at(give_up, states.changed()).await, Ok(Ok(()))) {
                    continue;
                }
                return Err(TokenError::KeysAway);
            };
            match verify(keys, &token.signed()) {
                Verdict::Good => return Ok(()),
                Verdict::Bad => return Err(TokenError::Signature),
                Verdict::NoSuchAlgorithm => return Err(TokenError::Algorithm),
                Verdict::NoSuchKey if token.key_id.is_none() || state.is_fresh() => return Err(TokenError::UnknownKey),
                Verdict::NoSuchKey if state.was_tried() => return Err(TokenError::KeysAway),
                Verdict::NoSuchKey => {}
            }
            self.wanted.notify_one();
            if !matches!(tokio::time::timeout_at(give_up, states.changed()).await, Ok(Ok(()))) {
                return Err(TokenError::KeysAway);
            }
        }
    }

    /// Reads it, again and again; runs until the node stops.
    pub(crate) async fn keep(self: Arc<Self>, health: Arc<Health>) {
        let over = self.over.clone();
        over.run_until_cancelled(self.keep_reading(&health)).await;
    }

    async fn keep_reading(&self, health: &Health) {
        let mut failures = 0_u32;
        loop {
            let asked = Instant::now();
            let read = match timeout(READ_TIME, self.read()).await {
                Ok(read) => read,
                Err(_) => Err(JwksError::Late(self.source.to_string())),
            };
            health.note(NAME, &read);
            let wait = match read {
                Ok((keys, good_for)) => {
                    failures = 0;
                    self.state.send_replace(Known {
                        keys: Some(Arc::new(keys)),
                        fetched: Some(asked),
                        tried: Some(asked),
                    });
                    health.note_part(NAME, true, true);
                    // Not all nodes at once.
                    good_for.mul_f64(rand::random_range(0.9..1.0))
                }
                Err(_) => {
                    failures += 1;
                    self.state.send_modify(|state| state.tried = Some(asked));
                    if self.state.borrow().keys.is_none() {
                        health.note_part(NAME, false, true);
                    }
                    RETRY_MOST.min(RETRY * 2_u32.saturating_pow(failures - 1))
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = async {
                    // What was asked for a moment ago is what another one would find.
                    sleep(AGAIN.saturating_sub(asked.elapsed())).await;
                    self.wanted.notified().await;
                } => {}
            }
        }
    }

    /// The keys, and how long they are good.
    async fn read(&self) -> Result<(Vec<Key>, Duration), JwksError> {
        let name = || self.source.to_string();
        let (json, good_for) = match &self.source {
            Source::File(path) => {
                (read_file(path).await.map_err(|error| JwksError::File(name(), error))?, FILE_GOOD_FOR)
            }
            Source::Url(url) => {
                let failed = |error| JwksError::Url(name(), error);
                let answer = self.http.get(url.clone()).send().await.map_err(|error| failed(error.into()))?;
                if answer.status() != StatusCode::OK {
                    let to = http_client::redirected_to(answer.headers());
                    return Err(JwksError::Status(name(), answer.status(), to));
                }
                let good_for = good_for(answer.headers());
                (http_client::body(answer, MAX_JWKS).await.map_err(failed)?, good_for)
            }
        };
        let (keys, unused) = keys_of_jwks(&json).map_err(|what| JwksError::Document(name(), what))?;
        if keys.is_empty() || keys.len() == MAX_KEYS {
            tracing::warn!(jwks = %self.source, used = keys.len(), unused, "the JWKS has no key that is of use here, or too many");
        } else {
            tracing::debug!(jwks = %self.source, used = keys.len(), unused, "the JWKS is read");
        }
        Ok((keys, good_for))
    }
}

async fn read_file(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt as _;
    let mut json = Vec::new();
    // One byte more than may be there shows that there is more.
    tokio::fs::File::open(path).await?.take(MAX_JWKS as u64 + 1).read_to_end(&mut json).await?;
    Ok(json)
}

/// What `Cache-Control` says. Who wants it not to be kept at all is asked as often as who says nothing.
fn good_for(headers: &HeaderMap) -> Duration {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let max_age = directives.flat_map(|value| value.split(',')).find_map(|directive| {
        let (name, seconds) = directive.split_once('=')?;
        let seconds = seconds.trim().trim_matches('"').parse().ok()?;
        name.trim().eq_ignore_ascii_case("max-age").then_some(seconds)
    });
    match max_age {
        None | Some(0) => GOOD_FOR,
        Some(seconds) => Duration::from_secs(seconds).clamp(SHORTEST, LONGEST),
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwks").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_it_is_good_is_what_the_answer_says_within_bounds() {
        let said = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, value.parse().unwrap());
            good_for(&headers)
        };
        assert_eq!(good_for(&HeaderMap::new()), GOOD_FOR);
        assert_eq!(said("public, max-age=20000, must-revalidate"), Duration::from_secs(20_000));
        assert_eq!([said("no-cache"), said("max-age=0"), said("max-age=x")], [GOOD_FOR; 3]);
        assert_eq!([said("max-age=1"), said("Max-Age=\"99999999\"")], [SHORTEST, LONGEST]);
    }

    #[test]
    fn a_source_is_a_url_or_a_file() {
        assert!(matches!(Source::parse("/etc/jwks.json"), Ok(Source::File(_))));
        assert!(matches!(Source::parse("file:///etc/jwks.json"), Ok(Source::File(_))));
        assert!(matches!(Source::parse("https://id.example.com/jwks"), Ok(Source::Url(_))));
        assert!(Source::parse("ftp://id.example.com/jwks").is_err() && Source::parse("https://").is_err());
        assert_eq!(
            Source::parse("https://a:b@id.example.com/jwks?key=c").unwrap().to_string(),
            "https://id.example.com/jwks"
        );
    }
}
