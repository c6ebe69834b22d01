//! How a node is, for balancers (`/readyz`), for Prometheus, and for the log: whether Redis and the database answer,
//! and what is wrong but no reason to send clients elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use channel_layer::{ChannelName, LayerError};
use parking_lot::Mutex;
use persistence::{Store, StoreError};
use prometheus_client::metrics::gauge::Gauge;
use redis::RedisError;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::clock::Clock;
use crate::layer::SharedLayer;
use crate::metrics::{ByOf, ByTask, Metrics};
use crate::seldom::SeldomOfKind;

/// How soon a part must answer. A page must come within half a second.
const ANSWER: Duration = Duration::from_millis(400);

/// How often a part is asked when nobody wants to know.
const EVERY: Duration = Duration::from_secs(5);

/// How late an answer may be before the log is told that there is none.
const LATE: Duration = Duration::from_secs(2);

/// The same while it is away.
const SOON: Duration = Duration::from_secs(1);

/// How long a server may fail to serve before that is told though it answers; and when an earlier time is forgotten.
const GRACE: Duration = Duration::from_secs(10);
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Clocks that are further apart are named.
const APART: f64 = 2.0;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    redis: Part,
    database: Part,
    /// Background tasks that failed the last time, and whether the log has been told.
    failing: Mutex<BTreeMap<&'static str, bool>>,
    clocks: Mutex<Clocks>,
    /// What else a way to sign in needs: whether it is there, and whether the node is of no use without it.
    needed: Mutex<BTreeMap<&'static str, Needed>>,
    /// What has gone wrong for want of a server: since when, and when again.
    troubles: Mutex<BTreeMap<&'static str, (Instant, Instant)>>,
    seldom: SeldomOfKind,
}

#[derive(Debug, Clone, Copy)]
struct Needed {
    up: bool,
    counts: bool,
}

/// A server the node cannot do without. It is asked one question at a time, whoever wants to know.
#[derive(Debug)]
struct Part {
    name: &'static str,
    wanted: Notify,
    answers: watch::Sender<Answer>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Answer {
    number: u64,
    up: bool,
}

/// How far another clock is ahead of this node's, and how wrong that may be; in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Skew {
    pub(crate) seconds: f64,
    pub(crate) uncertainty: f64,
}

#[derive(Debug, Default)]
struct Clocks {
    skews: BTreeMap<&'static str, Skew>,
    apart: BTreeSet<&'static str>,
}

impl Health {
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            clock: Clock::start(),
            redis: Part::new("Redis"),
            database: Part::new("the database"),
            failing: Mutex::default(),
            clocks: Mutex::default(),
            needed: Mutex::default(),
            troubles: Mutex::default(),
            seldom: SeldomOfKind::default(),
        }
    }

    /// Notes whether something is there that a way to sign in needs. `/readyz` names it, and says 503 without it if it
    /// counts.
    pub(crate) fn note_part(&self, part: &'static str, up: bool, counts: bool) {
        self.needed.lock().insert(part, Needed { up, counts });
    }

    /// A part that is not needed any more, and what it fails at.
    pub(crate) fn forget_part(&self, part: &'static str) {
        self.needed.lock().remove(part);
        self.failing.lock().remove(part);
    }

    /// Notes how a background task's turn ended. The log hears when it begins to fail and when it works again, but for
    /// want of a server that is away: of that there is one line for all.
    pub(crate) fn note<T, E: Error + 'static>(&self, task: &'static str, turn: &Result<T, E>) {
        self.note_with(task, turn, "");
    }

    /// The same, with what to do about it.
    pub(crate) fn note_with<T, E: Error + 'static>(&self, task: &'static str, turn: &Result<T, E>, hint: &str) {
        match turn {
            Ok(_) => self.note_good(task),
            Err(error) => self.note_failure(task, error, hint),
        }
    }

    fn note_good(&self, task: &'static str) {
        if self.failing.lock().remove(task) == Some(true) {
            tracing::warn!(task, "a background task works again");
        }
    }

    fn note_failure(&self, task: &'static str, error: &(dyn Error + 'static), hint: &str) {
        self.metrics.background_failures.get_or_create(&ByTask { task }).inc();
        let missing = self.missing(error);
        let mut failing = self.failing.lock();
        let (told, is_new) = match failing.get(task) {
            Some(told) => (*told, false),
            None => (false, true),
        };
        let silent = missing.is_some_and(|part| {
            // It may be away since just now.
            part.wanted.notify_one();
            is_new || !part.is_up()
        });
        if !told && !silent {
            tracing::warn!(task, error, "a background task fails, and is tried again{hint}");
        } else {
            tracing::debug!(task, error, "a background task fails");
        }
        failing.insert(task, told || !silent);
    }

    /// Says what went wrong for somebody, a line a minute at most of each kind; for want of a server that is away there is
    /// its own line. Something is counted for it already.
    pub(crate) fn tell(&self, what: &'static str, error: &(dyn Error + 'static)) {
        self.tell_of(what, error, None);
    }

    /// The same of a socket, with its channel name and its user.
    pub(crate) fn tell_of(
        &self,
        what: &'static str,
        error: &(dyn Error + 'static),
        socket: Option<(&ChannelName, &Arc<str>)>,
    ) {
        let is_due = match self.missing(error) {
            None => true,
            Some(part) => {
                // It may be away since just now.
                part.wanted.notify_one();
                let now = Instant::now();
                let mut troubles = self.troubles.lock();
                let (first, last) = troubles.entry(what).or_insert((now, now));
                if now.duration_since(*last) > FORGOTTEN {
                    *first = now;
                }
                *last = now;
                part.is_up() && now.duration_since(*first) > GRACE
            }
        };
        let channel = socket.map(|(channel, _)| tracing::field::display(channel));
        let user = socket.map(|(_, user)| &**user);
        match is_due.then(|| self.seldom.again(what, "")).flatten() {
            Some(times) => tracing::warn!(channel, user, error, times, "{what}"),
            None => tracing::debug!(channel, user, error, "{what}"),
        }
    }

    /// The server for want of which there is this error.
    fn missing(&self, error: &(dyn Error + 'static)) -> Option<&Part> {
        let mut next = Some(error);
        while let Some(error) = next {
            if error.downcast_ref::<StoreError>().is_some_and(StoreError::is_retryable) {
                return Some(&self.database);
            }
            let layer = error.downcast_ref::<LayerError>();
            let away = layer.is_some_and(|error| matches!(error, LayerError::Unavailable(_) | LayerError::Timeout));
            let broken = error.downcast_ref::<RedisError>().is_some_and(|error| {
                error.is_io_error()
                    || error.is_timeout()
                    || error.is_connection_dropped()
                    || error.is_connection_refusal()
            });
            if away || broken {
                return Some(&self.redis);
            }
            next = error.source();
        }
        None
    }

    /// Notes how far a clock is ahead. The log hears when it begins to differ and when that is over.
    pub(crate) fn note_clock(&self, of: &'static str, skew: Skew) {
        self.metrics.clock_skew_seconds.get_or_create(&ByOf { of }).set(skew.seconds);
        let clocks = &mut *self.clocks.lock();
        clocks.skews.insert(of, skew);
        let now = apart(&clocks.skews);
        for &of in now.difference(&clocks.apart) {
            let seconds = clocks.skews[of].seconds;
            tracing::warn!(
                of,
                ahead_seconds = seconds,
                "a clock differs from this node's: does NTP run on both hosts?"
            );
        }
        for &of in clocks.apart.difference(&now) {
            let seconds = clocks.skews.get(of).map(|skew| skew.seconds);
            tracing::warn!(of, ahead_seconds = seconds, "a clock agrees with this node's again");
        }
        clocks.apart = now;
    }

    /// Whether a part was there when it was last looked for.
    pub(crate) fn is_there(&self, part: &'static str) -> bool {
        self.needed.lock().get(part).is_none_or(|part| part.up)
    }

    /// Whether everything is there that the node is of no use without.
    fn has_what_it_needs(&self) -> bool {
        self.needed.lock().values().all(|part| part.up || !part.counts)
    }

    /// Whether it was ready when it was last looked, apart from leaving.
    pub(crate) fn was_ready(&self) -> bool {
        self.redis.is_up() && self.database.is_up() && self.has_what_it_needs()
    }

    /// Asks the parts, and tells how the node is: whether it is ready, and the words for it.
    pub(crate) async fn report(&self, draining: bool) -> (bool, Value) {
        let (redis, database) = tokio::join!(self.redis.answers_now(), self.database.answers_now());
        let needed = self.needed.lock().clone();
        let ready = redis && database && !draining && self.has_what_it_needs();
        let clocks = self.clocks.lock();
        let degraded = clocks.apart.iter().map(|of| format!("clock_skew_{of}"));
        let missing = needed.iter().filter(|(_, part)| !part.up && !part.counts).map(|(name, _)| (*name).to_owned());
        let failing = self.failing.lock();
        let failing = failing.iter().filter(|(_, told)| **told).map(|(task, _)| (*task).to_owned());
        let degraded: Vec<String> = degraded.chain(missing).chain(failing).collect();
        let status = match (ready, degraded.is_empty()) {
            (false, _) => "unavailable",
            (true, false) => "degraded",
            (true, true) => "ok",
        };
        let state = |up: bool| if up { "ok" } else { "unavailable" };
        let skews = clocks.skews.iter().map(|(of, skew)| ((*of).to_owned(), json!((skew.seconds * 1e3).round() / 1e3)));
        let mut report = json!({
            "status": status, "ready": ready, "redis": state(redis), "database": state(database), "draining": draining,
            "degraded": degraded, "clock_skew_seconds": skews.collect::<serde_json::Map<_, _>>(),
        });
        for (part, needed) in needed {
            report[part] = state(needed.up).into();
        }
        (ready, report)
    }
}

/// Whose clocks are too far from this node's. Of two that only differ from each other, Redis' is named.
fn apart(skews: &BTreeMap<&'static str, Skew>) -> BTreeSet<&'static str> {
    let is_apart = |skew: &Skew| skew.seconds.abs() - skew.uncertainty >= APART;
    let mut apart: BTreeSet<_> = skews.iter().filter(|(_, skew)| is_apart(skew)).map(|(of, _)| *of).collect();
    if let (true, Some(database), Some(redis)) = (apart.is_empty(), skews.get("database"), skews.get("redis")) {
        let between =
            Skew { seconds: redis.seconds - database.seconds, uncertainty: redis.uncertainty + database.uncertainty };
        if is_apart(&between) {
            apart.insert("redis");
        }
    }
    apart
}

/// Asks both parts whenever somebody wants to know, and otherwise from time to time, until the node stops.
pub(crate) async fn watch(health: Arc<Health>, layer: SharedLayer, store: Store, is_draining: impl Fn() -> bool) {
    let metrics = &health.metrics;
    let tell = || {
        let ready = health.redis.is_up() && health.database.is_up() && health.has_what_it_needs() && !is_draining();
        metrics.ready.set(i64::from(ready));
    };
    tokio::join!(
        health.redis.watch(|| layer.ping(), &metrics.redis_up, tell),
        health.database.watch(|| store.ping(), &metrics.database_up, tell),
    );
}

impl Part {
    fn new(name: &'static str) -> Self {
        Self { name, wanted: Notify::new(), answers: watch::Sender::default() }
    }

    /// Puts one question after the other. The log hears when it goes and when it is back.
    async fn watch<E, F>(&self, ask: impl Fn() -> F, gauge: &Gauge, tell: impl Fn())
    where
        F: Future<Output = Result<(), E>>,
        E: Error + 'static,
    {
        let note = |up| {
            self.answers.send_modify(|answer| *answer = Answer { number: answer.number + 1, up });
            gauge.set(i64::from(up));
            tell();
        };
        let mut away: Option<Instant> = None;
        loop {
            let mut answer = pin!(ask());
            let answer = match timeout(ANSWER, &mut answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    note(false);
                    // Not given up: each question that hangs costs a connection.
                    match timeout(LATE, &mut answer).await {
                        Ok(answer) => answer,
                        Err(_) => {
                            if away.is_none() {
                                tracing::warn!("{} does not answer", self.name);
                            }
                            away.get_or_insert_with(Instant::now);
                            answer.await
                        }
                    }
                }
            };
            note(answer.is_ok());
            match (&answer, away) {
                (Err(error), None) => {
                    tracing::warn!(error = error as &dyn Error, "{} is away", self.name);
                    away = Some(Instant::now());
                }
                (Ok(()), Some(since)) => {
                    tracing::warn!(seconds = since.elapsed().as_secs(), "{} is back", self.name);
                    away = None;
                }
                _ => {}
            }
            tokio::select! {
                () = self.wanted.notified() => {}
                () = sleep(if away.is_some() { SOON } else { EVERY }) => {}
            }
        }
    }

    fn is_up(&self) -> bool {
        self.answers.borrow().up
    }

    /// Whether it answers, within the time.
    async fn answers_now(&self) -> bool {
        let mut answers = self.answers.subscribe();
        let before = answers.borrow_and_update().number;
        self.wanted.notify_one();
        let answer = timeout(ANSWER, answers.wait_for(|answer| answer.number > before)).await;
        matches!(answer, Ok(Ok(answer)) if answer.up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart_of(database: f64, redis: f64) -> Vec<&'static str> {
        let skew = |seconds| Skew { seconds, uncertainty: 0.1 };
        apart(&BTreeMap::from([("database", skew(database)), ("redis", skew(redis))])).into_iter().collect()
    }

    #[test]
    fn clocks_are_apart_from_two_seconds_on_less_what_is_not_known() {
        assert_eq!(apart_of(1.9, -0.3), [""; 0]);
        assert_eq!(apart_of(2.05, 0.0), [""; 0]);
        assert_eq!(apart_of(-2.2, 0.0), ["database"]);
        assert_eq!(apart_of(172_800.0, 172_800.0), ["database", "redis"]);
        assert_eq!(apart_of(0.0, 3600.0), ["redis"]);
        // Each is near the node's, but not near the other's.
        assert_eq!(apart_of(-1.5, 1.5), ["redis"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_hangs_is_unavailable_in_time_and_asked_once_however_many_want_to_know() {
        let part = Part::new("it");
        let (asked, gauge) = (std::cell::Cell::new(0), Gauge::default());
        let hangs = || async {
            asked.set(asked.get() + 1);
            sleep(Duration::from_secs(60)).await;
            Ok::<(), std::io::Error>(())
        };
        let want = async {
            for _ in 0..20 {
                let began = tokio::time::Instant::now();
                assert!(!part.answers_now().await);
                assert!(began.elapsed() < Duration::from_millis(500));
            }
        };
        tokio::select! {
            () = part.watch(hangs, &gauge, || ()) => {}
            () = want => {}
        }
        assert_eq!((asked.get(), gauge.get()), (1, 0));
    }

    fn failing(health: &Health) -> Vec<(&'static str, bool)> {
        health.failing.lock().iter().map(|(task, told)| (*task, *told)).collect()
    }

    #[test]
    fn a_task_is_named_while_it_fails_and_every_failure_is_counted() {
        let metrics = Arc::new(Metrics::new());
        let health = Health::new(&metrics);
        let failed = || Err::<(), _>(std::io::Error::other("no"));
        health.note("retention", &failed());
        health.note("retention", &failed());
        assert_eq!(failing(&health), [("retention", true)]);
        health.note("retention", &Ok::<(), std::io::Error>(()));
        assert_eq!(failing(&health), []);
        assert!(metrics.encode().contains("gateway_background_failures_total{task=\"retention\"} 2"));
    }

    #[test]
    fn of_a_server_that_is_away_the_log_hears_once_and_not_from_every_task() {
        let metrics = Arc::new(Metrics::new());
        let health = Health::new(&metrics);
        let failed = || Err::<(), _>(StoreError::Unavailable("no route".into()));
        let set = |up| health.database.answers.send_modify(|answer| answer.up = up);
        set(true);
        health.note("positions", &failed());
        assert_eq!(failing(&health), [("positions", false)], "it may be away since just now");
        set(false);
        health.note("positions", &failed());
        health.note("retention", &failed());
        assert_eq!(failing(&health), [("positions", false), ("retention", false)]);
        set(true);
        health.note("positions", &failed());
        assert_eq!(failing(&health), [("positions", true), ("retention", false)], "it is there and does not serve");
    }
}
