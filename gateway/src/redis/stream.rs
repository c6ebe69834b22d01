//! The stream `gateway:events` (contract, section 8.2): one `XADD` from any language, stored before it
//! is delivered, at least once; the identity of an entry makes that once.
//!
//! An entry is acknowledged and deleted after its commit, so the stream's length is the true backlog.
//! What a dead node had taken is claimed by others; what can never work goes to the dead letters.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use redis::aio::MultiplexedConnection;
use redis::{self, Cmd, Value};
use serde_json::Map;
use tokio::time::Instant;

use super::RedisFailed;
use super::server::Server;
use crate::envelope::{self, Envelope, Failed, Outcome, Recipients, Unusable};
use crate::events::rfc3339;
use crate::metrics::{ByReason, ByResult};
use crate::node::Node;

/// The one consumer group.
const GROUP: &str = "gateway";

/// Entries taken at a time.
const BATCH: usize = 200;

/// How long the server waits for a new entry. Shorter than the answer's time-out, so that an answer
/// that is given up is none that carries entries.
const BLOCK_MS: usize = 1000;
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Entries that nobody has finished for so long are taken over.
const IDLE_MS: usize = 30_000;

/// How often that is looked for, and how often the backlog is measured.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Pause after an error, and between two tries to write.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// What a dead letter has beside its original fields.
pub(super) const ADDED: [&str; 3] = ["reason", "deliveries", "at"];

/// An entry of the stream.
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) fields: Vec<(String, Vec<u8>)>,
}

/// What became of an entry.
enum Verdict {
    Done(&'static str),
    Dead(Unusable),
}

/// Reads the stream until the node stops.
pub(crate) async fn ingest(node: Arc<Node>, server: Server) {
    let stream = format!("{}:events", node.config.namespace);
    let reader = Reader { dead: format!("{stream}:dead"), stream, node, server };
    let read = async {
        loop {
            if let Err(error) = reader.read().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the event stream cannot be read");
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    };
    // Beside it: the backlog is of most interest while nothing is read.
    let measure = async {
        loop {
            if let Err(error) = reader.measure().await {
                tracing::debug!(error = &error as &dyn std::error::Error, "the event stream cannot be measured");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    join(read, measure).await;
}

struct Reader {
    node: Arc<Node>,
    server: Server,
    stream: String,
    dead: String,
}

impl Reader {
    async fn read(&self) -> Result<(), RedisFailed> {
        let mut redis = self.server.open_own(&self.stream, ANSWER_TIME).await?;
        let redis = &mut redis.connection;
        self.make_group(redis).await?;
        // What this node took before the connection broke comes first.
        while self.take(redis, "0").await? > 0 {}
        let mut looked: Option<Instant> = None;
        loop {
            // A node that cannot write takes nothing: others may be able to.
            while self.node.store.ping().await.is_err() {
                tokio::time::sleep(RETRY_EVERY).await;
            }
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                self.claim(redis).await?;
                looked = Some(Instant::now());
            }
            if let Err(error) = self.take(redis, ">").await {
                // Somebody flushed Redis; whatever is written from now on is there from the beginning.
                if error.code() != Some("NOGROUP") {
                    return Err(error);
                }
                self.make_group(redis).await?;
            }
        }
    }

    async fn make_group(&self, redis: &mut MultiplexedConnection) -> Result<(), RedisFailed> {
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

    /// Takes new entries (`>`), or those this node already has (`0`). Returns how many.
    async fn take(&self, redis: &mut MultiplexedConnection, from: &str) -> Result<usize, RedisFailed> {
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(GROUP).arg(&self.node.config.node_id).arg("COUNT").arg(BATCH);
        if from == ">" {
            command.arg("BLOCK").arg(BLOCK_MS);
        }
        let answer: Value = command.arg("STREAMS").arg(&self.stream).arg(from).query_async(redis).await?;
        let entries = entries_of_read(answer);
        let count = entries.len();
        self.serve(redis, entries).await?;
        Ok(count)
    }

    /// Takes over what other nodes have not finished for long.
    async fn claim(&self, redis: &mut MultiplexedConnection) -> Result<(), RedisFailed> {
        let mut from = "0-0".to_owned();
        loop {
            let mut command = redis::cmd("XAUTOCLAIM");
            command
                .arg(&self.stream)
                .arg(GROUP)
                .arg(&self.node.config.node_id)
                .arg(IDLE_MS)
                .arg(&from)
                .arg("COUNT")
                .arg(BATCH);
            let Value::Array(answer) = command.query_async(redis).await? else { return Ok(()) };
            let mut answer = answer.into_iter();
            from = answer.next().and_then(text).unwrap_or_else(|| "0-0".to_owned());
            let entries = answer.next().map(entries).unwrap_or_default();
            self.serve(redis, entries).await?;
            if from == "0-0" {
                return Ok(());
            }
        }
    }

    async fn measure(&self) -> Result<(), RedisFailed> {
        let mut redis = self.server.open(&self.stream).await?;
        let length: i64 = redis::cmd("XLEN").arg(&self.stream).query_async(&mut *redis).await?;
        self.node.metrics.stream_length.set(length);
        let pending: Result<Value, _> =
            redis::cmd("XPENDING").arg(&self.stream).arg(GROUP).query_async(&mut *redis).await;
        let pending = match pending {
            Ok(Value::Array(pending)) => pending.first().and_then(|count| redis::from_redis_value_ref(count).ok()),
            Err(error) if error.code() != Some("NOGROUP") => return Err(error.into()),
            _ => None,
        };
        self.node.metrics.stream_pending.set(pending.unwrap_or(0));
        Ok(())
    }

    /// Stores what the entries say, then acknowledges and deletes them together.
    async fn serve(&self, redis: &mut MultiplexedConnection, entries: Vec<Entry>) -> Result<(), RedisFailed> {
        if entries.is_empty() {
            return Ok(());
        }
        let verdicts = join_all(entries.iter().map(|entry| self.finish(entry))).await;
        let mut done = redis::pipe();
        done.atomic();
        for (entry, verdict) in entries.iter().zip(&verdicts) {
            if let Verdict::Dead(unusable) = verdict {
                let burial = self.burial(redis, entry, unusable).await?;
                if self.server.is_cluster {
                    // The two streams may be on two servers: first one, then the other.
                    let mut graveyard = self.server.open(&self.dead).await?;
                    burial.query_async::<()>(&mut *graveyard).await?;
                } else {
                    done.add_command(burial).ignore();
                }
            }
            done.cmd("XACK").arg(&self.stream).arg(GROUP).arg(&entry.id).ignore();
            done.cmd("XDEL").arg(&self.stream).arg(&entry.id).ignore();
        }
        done.query_async::<()>(redis).await?;
        for verdict in verdicts {
            let result = match verdict {
                Verdict::Done(result) => result,
                Verdict::Dead(unusable) => {
                    tracing::warn!(
                        reason = unusable.reason,
                        detail = unusable.detail,
                        "an event went to the dead letters"
                    );
                    self.node.metrics.stream_dead.get_or_create(&ByReason { reason: unusable.reason }).inc();
                    "dead"
                }
            };
            self.node.metrics.stream_events.get_or_create(&ByResult { result }).inc();
        }
        Ok(())
    }

    /// Writes an entry to the dead letters.
    async fn burial(
        &self,
        redis: &mut MultiplexedConnection,
        entry: &Entry,
        unusable: &Unusable,
    ) -> Result<Cmd, RedisFailed> {
        let deliveries = self.deliveries(redis, &entry.id).await?;
        let mut bury = redis::cmd("XADD");
        bury.arg(&self.dead).arg("*");
        for (name, value) in &entry.fields {
            bury.arg(name).arg(value);
        }
        bury.arg("reason").arg(format!("{}: {}", unusable.reason, unusable.detail));
        bury.arg("deliveries").arg(deliveries).arg("at").arg(rfc3339(self.node.clock.database()));
        Ok(bury)
    }

    async fn deliveries(&self, redis: &mut MultiplexedConnection, id: &str) -> Result<i64, RedisFailed> {
        let answer: Vec<(String, String, i64, i64)> =
            redis::cmd("XPENDING").arg(&self.stream).arg(GROUP).arg(id).arg(id).arg(1).query_async(redis).await?;
        Ok(answer.first().map_or(1, |(_, _, _, deliveries)| *deliveries))
    }

    /// Does what an entry says. A database that is away is not the entry's fault: it waits.
    async fn finish(&self, entry: &Entry) -> Verdict {
        loop {
            match self.attempt(entry).await {
                Ok(result) => return Verdict::Done(result),
                Err(Failed::Unusable(unusable)) => return Verdict::Dead(unusable),
                Err(Failed::Unavailable(_)) => tokio::time::sleep(RETRY_EVERY).await,
            }
        }
    }

    async fn attempt(&self, entry: &Entry) -> Result<&'static str, Failed> {
        if entry.fields.is_empty() {
            return Ok("deleted");
        }
        let items = envelope(&entry.fields)
            .and_then(|envelope| envelope.items(&self.node, "", None))
            .map_err(Failed::Unusable)?;
        let outcomes = join_all(items.into_iter().map(|item| envelope::run(&self.node, item.what))).await;
        let mut result = "repeated";
        let mut unusable = None;
        for outcome in outcomes {
            match outcome {
                Ok(Outcome::Stored(stored)) if !stored.repeated => result = "stored",
                Ok(Outcome::Stored(_) | Outcome::Reused) => {}
                Ok(Outcome::Sent) => result = "sent",
                Ok(Outcome::Expired) => result = "expired",
                // Repeating is harmless for the recipients that worked.
                Err(Failed::Unavailable(what)) => return Err(Failed::Unavailable(what)),
                Err(Failed::Unusable(why)) => unusable = Some(why),
            }
        }
        unusable.map_or(Ok(result), |why| Err(Failed::Unusable(why)))
    }
}

/// The envelope of an entry's fields.
fn envelope(fields: &[(String, Vec<u8>)]) -> Result<Envelope, Unusable> {
    let malformed = |reason, detail: String| Unusable { reason, detail };
    let mut texts = HashMap::new();
    for (name, value) in fields {
        let value = std::str::from_utf8(value).map_err(|_| malformed("malformed", format!("{name} is not UTF-8")))?;
        texts.insert(name.as_str(), value);
    }
    let must = |name: &str| {
        texts
            .get(name)
            .map(|text| (*text).to_owned())
            .ok_or_else(|| malformed("missing_field", format!("{name} is missing")))
    };
    let data = must("data")?;
    if data.len() > envelope::MAX_DATA {
        return Err(malformed("too_large", "data is over 64 KiB".to_owned()));
    }
    let data: Map<String, serde_json::Value> =
        serde_json::from_str(&data).map_err(|_| malformed("not_json", "data is not a JSON object".to_owned()))?;
    let to = must("to")?;
    let to = if to.starts_with('[') {
        let list = serde_json::from_str(&to)
            .map_err(|_| malformed("not_json", "to is not a JSON list of names".to_owned()))?;
        Recipients::Many(list)
    } else {
        Recipients::One(to)
    };
    Ok(Envelope {
        r#type: must("type")?,
        to,
        data,
        id: Some(must("id")?),
        source: Some(must("source")?),
        expires_at: texts.get("expires_at").map(|text| (*text).to_owned()),
        time: None,
        _traceparent: None,
    })
}

fn entries_of_read(answer: Value) -> Vec<Entry> {
    // [[stream, entries]], or nil when nothing came.
    let Value::Array(streams) = answer else { return Vec::new() };
    streams
        .into_iter()
        .filter_map(|stream| match stream {
            Value::Array(parts) => parts.into_iter().nth(1),
            _ => None,
        })
        .flat_map(entries)
        .collect()
}

pub(super) fn entries(list: Value) -> Vec<Entry> {
    let Value::Array(list) = list else { return Vec::new() };
    list.into_iter()
        .filter_map(|entry| {
            let Value::Array(parts) = entry else { return None };
            let mut parts = parts.into_iter();
            let id = text(parts.next()?)?;
            // Deleted while it was pending, by hand or by a publisher that trims: nothing left but its id.
            let fields = match parts.next()? {
                Value::Array(fields) => fields,
                _ => Vec::new(),
            };
            let mut fields = fields.into_iter();
            let mut pairs = Vec::new();
            while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
                pairs.push((text(name)?, bytes(value)?));
            }
            Some(Entry { id, fields: pairs })
        })
        .collect()
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

fn text(value: Value) -> Option<String> {
    bytes(value).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
