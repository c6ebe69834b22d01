//! The stream `gateway:events` (`docs/publishing.md`): one `XADD` from any language, stored before it
//! is delivered, at least once; the identity of an entry makes that once.
//!
//! An entry is acknowledged and deleted after its commit, so the stream's length is the true backlog.
//! What a dead node had taken is taken up by others; what can never work goes to the dead letters.
//!
//! An entry may be of any size, and may be what killed the node that took it. So answers have a bound
//! (`channel_layer::Bounded`), and an entry is done in pieces for which there is a share of the node's budget. What was taken before
//! is taken up one by one, and after [`MAX_TAKEN`] times without an outcome not at all. Times in which the database was
//! away do not count.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::{join, join_all};
use persistence::ChangeTime;
use redis::{self, Cmd};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use tokio::sync::{Notify, OnceCell};
use tokio::task::coop::unconstrained;
use tokio::time::Instant;

use super::envelope::{self, Delivery, Envelope, Failed, Outcome, Recipients, Unusable, unusable};
use crate::events::rfc3339;
use crate::json;
use crate::metrics::{ByReason, ByResult};
use crate::node::Node;
use crate::redis::{
    ANSWER, Backlog, Connection, Entry, GROUP, LETTER_TIME, RedisFailed, Server, entries, entries_of_read, unread,
};
use crate::traces::{Parent, Span, SpanKind};

/// Entries taken at a time, fewer while they are large.
const BATCH: usize = 200;

/// Bytes of the fields of an entry, at most; of the known ones each has a bound of its own.
const MAX_ENTRY: usize = ANSWER - 512 * 1024;

/// Fields of an entry, at most.
const MAX_FIELDS: usize = 2048;

/// How often an entry is taken. Then it is given up, unread.
const MAX_TAKEN: i64 = 5;

/// How often it is tried while it is taken, if the database answers and does not store it.
const TRIES: usize = 3;

/// How often a room is looked for that an earlier entry makes, which another node may be at.
const ROOM_EVERY: Duration = Duration::from_millis(200);
const ROOM_LOOKS: usize = 15;

/// Entries that are not finished, at most, of those that may make a room.
const MAX_PENDING: usize = 1000;

/// How long the server waits for a new entry. Shorter than the answer's time-out, so that an answer
/// that is given up is none that carries entries.
const BLOCK_MS: usize = 1000;
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Entries that nobody has finished for so long are taken over.
const IDLE_MS: usize = 30_000;

/// How often a node that works on entries says so, lest others take them over.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// How often that is looked for, and how often the backlog is measured.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Pause after an error, and between two tries to write.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Characters of a field that the log shows.
const SHOWN: usize = 256;

/// What to do about a stream that cannot be read, or whose dead letters cannot be written.
const STREAM_HINT: &str = ": the key must be a stream or none, and the Redis user needs the rights to X* on it. \
                           gateway check-config --live tries every command";
const DEAD_HINT: &str = ": the key must be a stream or none, Redis must have memory for it, and what is large or given \
                         up needs the right to EVAL. Until then its event stays in the stream";

/// An entry that this node has taken.
struct Taken {
    entry: Entry,
    /// How often it was taken, this time included.
    times: i64,
    /// The database was away, so this time does not count.
    is_excused: AtomicBool,
}

/// An entry that becomes a dead letter.
#[derive(Clone, Copy)]
enum Body<'a> {
    Read(&'a Entry),
    /// It is too large, or may be what ended who read it.
    Unread(&'a str),
}

/// How far an entry has come.
struct Progress {
    /// The first recipient that has nothing yet.
    next: usize,
    result: &'static str,
    unusable: Option<Unusable>,
    /// Recipients that are rooms and not there, by their places.
    missing: Vec<(usize, String)>,
    /// Only these recipients are served, the others were before.
    only: Option<Vec<usize>>,
}

/// An entry that makes rooms and is not finished, and those rooms.
type Making = ((u64, u64), Vec<String>);

/// Those among the entries that are taken, once somebody has asked.
type Makings = OnceCell<Vec<Making>>;

/// What became of an entry.
enum Verdict {
    Done(&'static str),
    Dead(Unusable),
    /// It stays where it is, and is taken up again when it was idle for long.
    Later,
    /// The same, as an earlier entry makes its room. It has not been tried in vain.
    Early,
}

/// Reads the stream until the node stops.
pub(crate) async fn ingest(node: Arc<Node>, server: Server) {
    let stream = format!("{}:events", node.config.namespace);
    let dead = format!("{stream}:dead");
    let (batch, excuses) = (AtomicUsize::new(BATCH), Notify::new());
    let reader = Ingest { node, server, stream, dead, batch, excuses };
    let read = async {
        loop {
            reader.node.health.note_with("stream", &reader.read().await, STREAM_HINT);
            tokio::time::sleep(RETRY_EVERY).await;
        }
    };
    // Beside it: the backlog is of most interest while nothing is read.
    let measure = async {
        loop {
            reader.node.health.note("backlog", &reader.measure().await);
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    join(read, measure).await;
}

struct Ingest {
    node: Arc<Node>,
    server: Server,
    stream: String,
    dead: String,
    /// Entries to take at a time.
    batch: AtomicUsize,
    /// An entry waits for the database.
    excuses: Notify,
}

impl Ingest {
    async fn read(&self) -> Result<(), RedisFailed> {
        let mut redis = self.open().await?;
        match self.make_group(&mut redis).await {
            // A Redis without memory makes none, and has one all the same, or else says so in what follows.
            Err(error) if error.code() == Some("OOM") => {}
            made => made?,
        }
        // What this node took before the connection broke comes first.
        let mut behind = self.take_up(&mut redis, Some("-")).await?;
        let mut looked: Option<Instant> = None;
        loop {
            self.until_database_answers().await;
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                self.take_up(&mut redis, None).await?;
                looked = Some(Instant::now());
            }
            if let Err(error) = self.take(&mut redis, &mut behind).await {
                // Somebody flushed Redis; whatever is written from now on is there from the beginning.
                if error.code() != Some("NOGROUP") {
                    return Err(error);
                }
                self.make_group(&mut redis).await?;
            }
            self.node.health.note("stream", &Ok::<_, RedisFailed>(()));
        }
    }

    async fn open(&self) -> Result<Connection, RedisFailed> {
        self.server.open_own(&self.stream, ANSWER_TIME).await
    }

    /// A node that cannot write takes nothing: others may be able to.
    async fn until_database_answers(&self) {
        while self.node.store.ping().await.is_err() {
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    async fn make_group(&self, redis: &mut Connection) -> Result<(), RedisFailed> {
        let made: Result<(), redis::RedisError> = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(&self.stream)
            .arg(GROUP)
            .arg("0")
            .arg("MKSTREAM")
            .query_async(redis)
            .await;
        match made {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// A command about entries that are taken, up to its consumer.
    fn claim(&self) -> Cmd {
        let mut command = redis::cmd("XCLAIM");
        command.arg(&self.stream).arg(GROUP).arg(&self.node.config.node_id);
        command
    }

    /// Takes new entries, which are those `behind` what was taken before.
    async fn take(&self, redis: &mut Connection, behind: &mut String) -> Result<(), RedisFailed> {
        let batch = self.batch.load(Ordering::Relaxed);
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&self.node.config.node_id).arg("COUNT").arg(batch);
        command.arg("BLOCK").arg(BLOCK_MS).arg("STREAMS").arg(&self.stream).arg(">");
        let Some(answer) = redis.ask(&command).await? else {
            // They are this node's now, though it has not read them.
            self.batch.store((batch / 4).max(1), Ordering::Relaxed);
            *redis = self.open().await?;
            *behind = self.take_up(redis, Some(behind)).await?;
            return Ok(());
        };
        let taken: Vec<_> = entries_of_read(answer).into_iter().map(|entry| Taken::new(entry, 1)).collect();
        if let Some(last) = taken.last() {
            *behind = self::behind(&last.entry.id);
        }
        let bytes: usize = taken.iter().map(|taken| taken.entry.bytes()).sum();
        let fitting = taken.len() * (ANSWER / 2) / bytes.max(1);
        let next = if taken.is_empty() { batch } else { fitting.clamp(1, batch * 2) };
        self.batch.store(next.min(BATCH), Ordering::Relaxed);
        self.serve(redis, &taken).await
    }

    /// Takes up what was taken before and not finished: by this node, before its connection broke (`mine`, from an id
    /// on), or by anybody long ago. One by one, as one of them may be what ended whoever had it. Returns where it ended.
    async fn take_up(&self, redis: &mut Connection, mine: Option<&str>) -> Result<String, RedisFailed> {
        let mut from = mine.unwrap_or("-").to_owned();
        let mine = mine.is_some();
        loop {
            // As Redis has it since 5.0: IDLE, exclusive bounds and XAUTOCLAIM came with 6.2.
            let mut command = redis::cmd("XPENDING");
            command.arg(&self.stream).arg(GROUP).arg(&from).arg("+").arg(BATCH);
            if mine {
                command.arg(&self.node.config.node_id);
            }
            let mut pending: Vec<(String, String, i64, i64)> = command.query_async(redis).await?;
            let Some((last, ..)) = pending.last() else { return Ok(from) };
            from = behind(last);
            pending.retain(|(_, _, idle, _)| mine || *idle >= IDLE_MS as i64);
            // What was taken least is least suspicious, and does not have to wait for the others.
            pending.sort_by_key(|(.., times)| *times);
            for (id, _, _, times) in pending {
                self.until_database_answers().await;
                self.take_up_one(redis, &id, times, mine).await?;
            }
        }
    }

    async fn take_up_one(&self, redis: &mut Connection, id: &str, times: i64, mine: bool) -> Result<(), RedisFailed> {
        let mut claim = self.claim();
        claim.arg(if mine { 0 } else { IDLE_MS }).arg(id);
        if times >= MAX_TAKEN {
            let ours: Vec<String> = claim.arg("JUSTID").query_async(redis).await?;
            if ours.is_empty() {
                return Ok(());
            }
            let detail = format!("taken {times} times without an outcome while the database answered");
            return self.bury(redis, Body::Unread(id), times, &unusable("gave_up", detail)).await;
        }
        let Some(answer) = redis.ask(&claim).await? else {
            *redis = self.open().await?;
            let detail = format!("it was not read, as it is larger than {} MiB", ANSWER >> 20);
            return self.bury(redis, Body::Unread(id), times + 1, &unusable("too_large", detail)).await;
        };
        let taken: Vec<_> = entries(answer).into_iter().map(|entry| Taken::new(entry, times + 1)).collect();
        if taken.is_empty() && self.is_deleted(id).await? {
            // It was deleted while it was pending, by hand or by a publisher that trims.
            // What was another node's may as well have been finished by it just now.
            self.forget(redis, &[id]).await?;
            if mine {
                self.count("deleted");
            }
        }
        self.serve(redis, &taken).await
    }

    async fn is_deleted(&self, id: &str) -> Result<bool, RedisFailed> {
        let mut redis = self.server.open(&self.stream).await?;
        let answer = redis.ask(redis::cmd("XRANGE").arg(&self.stream).arg(id).arg(id)).await?;
        Ok(answer.is_some_and(|answer| entries(answer).is_empty()))
    }

    async fn measure(&self) -> Result<(), RedisFailed> {
        let backlog = Backlog::read(&self.server, &self.stream).await?;
        self.node.metrics.stream_length.set(backlog.length);
        self.node.metrics.stream_pending.set(backlog.pending);
        Ok(())
    }

    /// Stores what the entries say, then acknowledges and deletes them together.
    async fn serve(&self, redis: &mut Connection, taken: &[Taken]) -> Result<(), RedisFailed> {
        if taken.is_empty() {
            return Ok(());
        }
        let makings = Makings::new();
        // Each comes to its place in the writer's queue at its first turn, which Tokio must not end early: so they are
        // stored in their order.
        let mut finished = pin!(unconstrained(join_all(taken.iter().map(|taken| self.finish(taken, &makings)))));
        let verdicts = loop {
            tokio::select! {
                verdicts = &mut finished => break verdicts,
                () = self.excuses.notified() => {}
                () = tokio::time::sleep(KEEP_EVERY) => {}
            }
            if let Err(error) = self.keep(redis, taken).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "taken entries could not be kept");
            }
        };
        let settled = taken.iter().zip(verdicts);
        let (done, others): (Vec<_>, Vec<_>) = settled.partition(|(_, verdict)| matches!(verdict, Verdict::Done(_)));
        if !done.is_empty() {
            let ids: Vec<&str> = done.iter().map(|(taken, _)| &*taken.entry.id).collect();
            self.forget(redis, &ids).await?;
        }
        for (_, verdict) in done {
            if let Verdict::Done(result) = verdict {
                self.count(result);
            }
        }
        for (Taken { entry, times, .. }, verdict) in others {
            match verdict {
                Verdict::Done(_) => {}
                Verdict::Dead(unusable) => self.bury(redis, Body::Read(entry), *times, &unusable).await?,
                Verdict::Later => self.postponed("not_stored"),
                Verdict::Early => {
                    self.postponed("no_room_yet");
                    self.hold(redis, &[&entry.id], Some(*times - 1)).await?;
                }
            }
        }
        Ok(())
    }

    /// Says that this node is still at it. Where the database is away, this time is taken back.
    async fn keep(&self, redis: &mut Connection, taken: &[Taken]) -> Result<(), RedisFailed> {
        let mut by_times: BTreeMap<Option<i64>, Vec<&str>> = BTreeMap::new();
        for Taken { entry, times, is_excused } in taken {
            let times = is_excused.load(Ordering::Relaxed).then_some(times - 1);
            by_times.entry(times).or_default().push(&entry.id);
        }
        for (times, ids) in by_times {
            self.hold(redis, &ids, times).await?;
        }
        Ok(())
    }

    /// Keeps entries, which then have been taken so many times.
    async fn hold(&self, redis: &mut Connection, ids: &[&str], times: Option<i64>) -> Result<(), RedisFailed> {
        let mut claim = self.claim();
        claim.arg(0).arg(ids);
        if let Some(times) = times {
            claim.arg("RETRYCOUNT").arg(times);
        }
        Ok(claim.arg("JUSTID").query_async(redis).await?)
    }

    /// Deletes and acknowledges entries, at once and in this order: one that is gone and still pending is finished when
    /// it is taken up. Not by `MULTI`, which a Redis without memory refuses: this is what gives it memory again.
    async fn forget(&self, redis: &mut Connection, ids: &[&str]) -> Result<(), RedisFailed> {
        let mut forget = redis::pipe();
        forget.cmd("XDEL").arg(&self.stream).arg(ids).ignore();
        forget.cmd("XACK").arg(&self.stream).arg(GROUP).arg(ids).ignore();
        Ok(forget.query_async(redis).await?)
    }

    fn count(&self, result: &'static str) {
        self.node.metrics.stream_events.get_or_create(&ByResult { result }).inc();
    }

    fn postponed(&self, reason: &'static str) {
        self.node.metrics.stream_postponed.get_or_create(&ByReason { reason }).inc();
    }

    /// Makes an entry a dead letter. Until that is written, the entry stays in the stream.
    async fn bury(
        &self,
        redis: &mut Connection,
        body: Body<'_>,
        times: i64,
        unusable: &Unusable,
    ) -> Result<(), RedisFailed> {
        let id = body.id();
        let Unusable { reason, detail } = unusable;
        let written = match self.write_dead_letter(body, times, unusable).await {
            Ok(written) => written,
            Err(error) => {
                self.postponed("no_dead_letter");
                self.node.health.note_with("dead_letters", &Err::<(), _>(error), DEAD_HINT);
                // It is not the entry's fault, and it is to keep its reason.
                return self.hold(redis, &[id], Some(times - 1)).await;
            }
        };
        self.node.health.note("dead_letters", &Ok::<_, RedisFailed>(()));
        self.forget(redis, &[id]).await?;
        if !written {
            self.count("deleted");
            return Ok(());
        }
        // As the publisher knows it; of an entry that was not read only its place in the stream is known.
        let field = |name| match body {
            Body::Read(entry) => shown(entry.field(name).unwrap_or_default()),
            Body::Unread(_) => String::new(),
        };
        let [event, source, to] = ["id", "source", "to"].map(field);
        let [kind, traceparent] = ["type", "traceparent"].map(field);
        tracing::warn!(
            entry = id,
            id = event,
            source,
            to,
            r#type = kind,
            traceparent,
            reason,
            detail,
            "an event went to the dead letters"
        );
        self.node.metrics.stream_dead.get_or_create(&ByReason { reason }).inc();
        self.count("dead");
        Ok(())
    }

    /// `false` if the entry is gone.
    async fn write_dead_letter(
        &self,
        body: Body<'_>,
        times: i64,
        Unusable { reason, detail }: &Unusable,
    ) -> Result<bool, RedisFailed> {
        let mut added = [format!("{reason}: {detail}"), times.to_string(), rfc3339(self.node.clock.database())];
        let id = match body {
            Body::Read(entry) => return self.add_dead(&entry.fields, &added).await.map(|()| true),
            Body::Unread(id) => id,
        };
        let mut redis = self.server.open_own(&self.stream, LETTER_TIME).await?;
        if !self.server.is_cluster {
            return Ok(unread::bury(&mut redis, [&self.stream, &self.dead], id, &added).await?);
        }
        // The two streams may be on two servers: it has to come through here, as far as it can.
        if let Some(answer) = redis.ask(redis::cmd("XRANGE").arg(&self.stream).arg(id).arg(id)).await? {
            return match entries(answer).first() {
                Some(entry) => self.add_dead(&entry.fields, &added).await.map(|()| true),
                None => Ok(false),
            };
        }
        let mut redis = self.server.open_own(&self.stream, LETTER_TIME).await?;
        let Some(beginning) = unread::beginning(&mut redis, &self.stream, [id, id]).await? else { return Ok(false) };
        let (kept, count) = (beginning.fields.len(), beginning.count);
        let _ = write!(added[0], "; of {count} fields {kept} are kept, of each at most {} bytes", unread::CUT);
        let fields: Vec<_> = beginning.fields.into_iter().map(|(name, value, _)| (name, value)).collect();
        self.add_dead(&fields, &added).await.map(|()| true)
    }

    async fn add_dead(&self, fields: &[(Vec<u8>, Vec<u8>)], added: &[String; 3]) -> Result<(), RedisFailed> {
        let mut redis = self.server.open(&self.dead).await?;
        let mut add = redis::cmd("XADD");
        add.arg(&self.dead).arg("*").arg(fields);
        for (name, value) in unread::ADDED.into_iter().zip(added) {
            add.arg(name).arg(value);
        }
        Ok(add.query_async(&mut *redis).await?)
    }

    /// Does what an entry says. A database that is away is not the entry's fault: it waits.
    async fn finish(&self, taken: &Taken, makings: &Makings) -> Verdict {
        let mut progress = Progress { next: 0, result: "repeated", unusable: None, missing: Vec::new(), only: None };
        let mut span = self.begin(taken);
        let verdict = self.finish_within(taken, makings, &mut progress, &span).await;
        match &verdict {
            Verdict::Done(result) => span.set("gateway.result", || *result),
            Verdict::Dead(unusable) => {
                span.set("gateway.result", || "dead");
                span.fail(unusable.reason);
            }
            Verdict::Later | Verdict::Early => span.fail("postponed"),
        }
        verdict
    }

    /// Begins its span, as its publisher's trace goes on.
    fn begin(&self, Taken { entry, times, .. }: &Taken) -> Span {
        let text = |name| entry.field(name).and_then(|text| std::str::from_utf8(text).ok());
        let parent = Parent { traceparent: text("traceparent"), tracestate: None };
        let mut span = self.node.traces.begin("event", SpanKind::Consumer, parent);
        span.set("messaging.system", || "redis");
        span.set("messaging.destination.name", || self.stream.clone());
        span.set("messaging.message.id", || entry.id.clone());
        span.set("gateway.times_taken", || *times);
        for (field, name) in
            [("id", "gateway.event.id"), ("source", "gateway.event.source"), ("type", "gateway.event.type")]
        {
            span.set(name, || shown(entry.field(field).unwrap_or_default()));
        }
        span
    }

    async fn finish_within(&self, taken: &Taken, makings: &Makings, progress: &mut Progress, span: &Span) -> Verdict {
        let (mut tries, mut looks, mut is_sure) = (0, 0, false);
        loop {
            match self.attempt(&taken.entry, progress, span).await {
                Ok(()) if !progress.missing.is_empty() && !is_sure => {
                    if self.comes_yet(&taken.entry, progress, makings).await {
                        looks += 1;
                        if looks > ROOM_LOOKS {
                            return Verdict::Early;
                        }
                        tokio::time::sleep(ROOM_EVERY).await;
                    } else {
                        // What would have made it may have been finished between the two looks.
                        is_sure = true;
                    }
                    progress.next = 0;
                    progress.only = Some(progress.missing.drain(..).map(|(place, _)| place).collect());
                    continue;
                }
                Ok(()) => {
                    let no_room = || unusable("no_room", "no such room");
                    let unusable = progress.unusable.take().or_else(|| (!progress.missing.is_empty()).then(no_room));
                    return unusable.map_or(Verdict::Done(progress.result), Verdict::Dead);
                }
                Err(Failed::Unusable(unusable)) => return Verdict::Dead(unusable),
                Err(Failed::Unavailable(_)) => {
                    if !taken.is_excused.swap(true, Ordering::Relaxed) {
                        self.excuses.notify_one();
                    }
                }
                Err(Failed::NotStored) => {
                    tries += 1;
                    if tries == TRIES {
                        return Verdict::Later;
                    }
                }
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }

    /// Whether a room that an entry lacks is made by an earlier one that is not finished: another node may have that, or
    /// have died with it.
    async fn comes_yet(&self, entry: &Entry, progress: &Progress, makings: &Makings) -> bool {
        let makings = match makings.get_or_try_init(|| self.makings()).await {
            Ok(makings) => makings,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "unfinished entries could not be looked at");
                return false;
            }
        };
        let own = numbers(&entry.id);
        makings.iter().any(|(id, rooms)| {
            *id < own && rooms.iter().any(|made| progress.missing.iter().any(|(_, room)| room == made))
        })
    }

    /// The unfinished entries that make rooms.
    async fn makings(&self) -> Result<Vec<Making>, RedisFailed> {
        let mut redis = self.server.open(&self.stream).await?;
        let mut pending = redis::cmd("XPENDING");
        pending.arg(&self.stream).arg(GROUP).arg("-").arg("+").arg(MAX_PENDING);
        let pending: Vec<(String, String, i64, i64)> = pending.query_async(&mut *redis).await?;
        let mut makings = Vec::new();
        for (id, ..) in pending {
            let read = redis.ask(redis::cmd("XRANGE").arg(&self.stream).arg(&id).arg(&id)).await?;
            let Some(read) = read else {
                // Too large to be one of those.
                redis = self.server.open(&self.stream).await?;
                continue;
            };
            for entry in entries(read).iter().filter(|entry| entry.field("type") == Some(b"room.put")) {
                let to = entry.field("to").and_then(|to| recipients(std::str::from_utf8(to).ok()?).ok());
                let rooms = to.into_iter().flat_map(|to| to.0);
                let rooms = rooms.filter_map(|to| envelope::room_of(&to).map(str::to_owned)).collect();
                makings.push((numbers(&entry.id), rooms));
            }
        }
        Ok(makings)
    }

    /// Goes on with an entry where it has come to, with a share of the node's budget.
    async fn attempt(&self, entry: &Entry, progress: &mut Progress, span: &Span) -> Result<(), Failed> {
        if entry.is_gone() {
            progress.result = "deleted";
            return Ok(());
        }
        let bytes = check_lengths(entry).map_err(Failed::Unusable)?;
        let _share = self.node.publishing.take(bytes + expansion(entry)).await;
        let data_bytes = self.node.config.limits.data_bytes;
        let mut delivery = delivery(entry, self.node.clock.database(), data_bytes).map_err(Failed::Unusable)?;
        let (ms, seq) = numbers(&entry.id);
        delivery.set_time(ChangeTime::At(ms, seq));
        let [source, id] = delivery.identity();
        tracing::debug!(entry = entry.id, id, source, to = ?delivery.names(), "an entry of the stream is worked on");
        let all = match &progress.only {
            Some(only) => only.clone(),
            None => (0..delivery.recipients()).collect(),
        };
        let storing = match delivery.content() {
            Some(_) => span.child("store", SpanKind::Internal),
            None => Span::default(),
        };
        delivery.set_part(storing.traceparent().or_else(|| span.traceparent()));
        let piece = delivery.piece(0).len();
        while progress.next < all.len() {
            let end = (progress.next + piece).min(all.len());
            let places = &all[progress.next..end];
            let items: Result<Vec<_>, _> = places.iter().map(|place| delivery.item(&self.node, *place)).collect();
            let items = items.map_err(Failed::Unusable)?;
            let outcomes = join_all(items.into_iter().map(|item| envelope::run(&self.node, item.what))).await;
            let missed = progress.missing.len();
            for (place, outcome) in places.iter().zip(outcomes) {
                match outcome {
                    Ok(Outcome::Stored(stored)) if !stored.repeated => progress.result = "stored",
                    Ok(Outcome::Changed(changed)) if !changed.repeated => progress.result = "changed",
                    Ok(Outcome::Stored(_) | Outcome::Changed(_) | Outcome::Reused) => {}
                    Ok(Outcome::Sent) => progress.result = "sent",
                    Ok(Outcome::Expired) => progress.result = "expired",
                    Err(Failed::Unusable(why)) => {
                        let to = delivery.names().get(*place).filter(|_| why.reason == "no_room");
                        match to.and_then(|to| envelope::room_of(to)) {
                            Some(room) => progress.missing.push((*place, room.to_owned())),
                            None => progress.unusable = Some(why),
                        }
                    }
                    // Repeating is harmless for the recipients that worked.
                    Err(failed) => {
                        progress.missing.truncate(missed);
                        return Err(failed);
                    }
                }
            }
            progress.next = end;
        }
        Ok(())
    }
}

/// The beginning of a field, for the log.
fn shown(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(field);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into_owned(),
    }
}

/// The first id that comes after this one.
fn behind(id: &str) -> String {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    match seq.parse::<u64>().ok().and_then(|seq| seq.checked_add(1)) {
        Some(next) => format!("{ms}-{next}"),
        None => format!("{}-0", ms.parse::<u64>().unwrap_or_default().saturating_add(1)),
    }
}

impl<'a> Body<'a> {
    fn id(&self) -> &'a str {
        match self {
            Self::Read(entry) => &entry.id,
            Self::Unread(id) => id,
        }
    }
}

impl Taken {
    fn new(entry: Entry, times: i64) -> Self {
        Self { entry, times, is_excused: AtomicBool::new(false) }
    }
}

/// Bytes of an entry, if it is one that can work, before anything of it is looked into.
fn check_lengths(entry: &Entry) -> Result<usize, Unusable> {
    let too_large = |what: &str, bytes: usize, most: usize| {
        Err(unusable("too_large", format!("{what} has {bytes} bytes, {most} are allowed")))
    };
    for (name, most) in [("data", envelope::MAX_DATA), ("to", envelope::MAX_TO)] {
        if let Some(value) = entry.field(name).filter(|value| value.len() > most) {
            return too_large(name, value.len(), most);
        }
    }
    if entry.fields.len() > MAX_FIELDS {
        let detail = format!("the entry has {} fields, {MAX_FIELDS} are allowed", entry.fields.len());
        return Err(unusable("too_large", detail));
    }
    match entry.bytes() {
        bytes if bytes > MAX_ENTRY => too_large("the entry", bytes, MAX_ENTRY),
        bytes => Ok(bytes),
    }
}

/// What an entry may become while it is worked on, beside its own bytes.
fn expansion(entry: &Entry) -> usize {
    let len = |name| entry.field(name).map_or(0, <[u8]>::len);
    // `"user:a",` is a recipient.
    let recipients = (len("to") / 9 + 1).min(envelope::MAX_RECIPIENTS);
    (recipients * (len("data") + 512)).min(envelope::PIECE)
}

/// Whom an entry is for.
fn recipients(to: &str) -> Result<Recipients, Unusable> {
    if !to.starts_with(['[', '\u{feff}']) {
        return Ok(Recipients(vec![to.to_owned()]));
    }
    json::read_long(to.as_bytes()).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => unusable("malformed", format!("to is malformed: {error}")),
        _ => unusable("not_json", "to is not a JSON list of names"),
    })
}

/// The two numbers of an entry's id, by which entries are in order.
fn numbers(id: &str) -> (u64, u64) {
    let (ms, seq) = id.split_once('-').unwrap_or((id, "0"));
    (ms.parse().unwrap_or(0), seq.parse().unwrap_or(0))
}

/// Names of fields that mean something.
const FIELDS: [&str; 8] = ["id", "source", "type", "to", "data", "time", "expires_at", "traceparent"];

/// What an entry's fields say.
fn delivery(entry: &Entry, now: OffsetDateTime, data_bytes: usize) -> Result<Delivery, Unusable> {
    let mut texts = HashMap::new();
    for (name, value) in &entry.fields {
        // What no field of ours is means nothing.
        let Some(name) = FIELDS.into_iter().find(|known| known.as_bytes() == &**name) else { continue };
        let value = std::str::from_utf8(value).map_err(|_| unusable("malformed", format!("{name} is not UTF-8")))?;
        texts.insert(name, value);
    }
    let must =
        |name: &str| texts.get(name).copied().ok_or_else(|| unusable("missing_field", format!("{name} is missing")));
    let (data, to) = (must("data")?, must("to")?);
    let data: Box<RawValue> =
        json::read(data.as_bytes()).map_err(|_| unusable("not_json", "data is not a JSON object"))?;
    let to = recipients(to)?;
    let envelope = Envelope {
        r#type: must("type")?.to_owned(),
        to,
        data: &data,
        id: Some(must("id")?.to_owned()),
        source: Some(must("source")?.to_owned()),
        expires_at: texts.get("expires_at").map(|text| (*text).to_owned()),
        time: None,
        traceparent: texts.get("traceparent").map(|text| (*text).to_owned()),
    };
    envelope.delivery("", now, data_bytes)
}
