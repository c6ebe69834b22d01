//! Reading our own queues: one task and one connection per client id and shard for all queues of that id,
//! owned by the layer and never by whoever receives. In a cluster, where a command can only name keys of one
//! slot, each queue has its own.
//!
//! A pop that waits has a connection of its own, because whoever gives up waiting for its answer loses what
//! Redis hands over a moment later; here only a broken connection does that.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use redis::{Cmd, Pipeline, Value};
use tokio::time::{Instant, sleep, timeout};

use super::{
    health::Part,
    queues::Readers,
    scripts,
    shared::{Arrival, Shared},
};
use crate::{
    BoxError,
    redis::{
        answer::{Answer, text_of},
        backoff::Backoff,
        connection::Connection,
        refusal::is_failover_error,
    },
};

/// How many messages leave a queue at once.
const BATCH: usize = 100;
/// About how many bytes may come at once: with larger messages fewer are asked for.
const BATCH_BYTES: usize = 4 << 20;
/// Seconds Redis keeps a pop waiting.
const BLOCK: u64 = 5;
/// How long an answer may take beyond that.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a connection must live for the next one to follow it without a pause.
const WORKED: Duration = Duration::from_secs(1);

/// Reads some queues on one shard, until there are none any more.
pub(super) async fn read(shared: Arc<Shared>, shard: usize, readers: Arc<Readers>) {
    let part = || Part::Reader(shard, readers.name.clone());
    let mut backoff = Backoff::default();
    let mut refused = false;
    while let Some(key) = readers.any_key() {
        match shared.commands.open(shard, &key, "channel-layer:read").await {
            Ok(connection) => {
                // One that only ever refuses is not there: whether this one is, its first answer says.
                if !refused {
                    shared.set_part(part(), true);
                }
                let since = Instant::now();
                let mut reader = Reader {
                    shared: &shared,
                    readers: &readers,
                    shard,
                    connection,
                    count: BATCH,
                    both: true,
                    asked: false,
                    answered: false,
                    announced: !refused,
                };
                let trust = reader.connection.trust.clone();
                let error = tokio::select! {
                    error = reader.serve() => error,
                    () = trust.lost() => Some("the server is no primary any more".into()),
                    () = readers.reset(shard).notified() => Some("the probe did not come through".into()),
                };
                refused = reader.asked && !reader.answered;
                readers.end(shard);
                let Some(error) = error else { break };
                if since.elapsed() > WORKED && !refused {
                    backoff.reset();
                }
                tracing::warn!(%error, shard, "connection to a queue lost");
            }
            Err(error) => tracing::debug!(%error, shard, "no connection to a queue"),
        }
        shared.set_part(part(), false);
        sleep(backoff.next_pause()).await;
    }
    // What nobody wants to be read any more is not missing.
    shared.set_part(part(), true);
}

struct Reader<'a> {
    shared: &'a Shared,
    readers: &'a Readers,
    shard: usize,
    connection: Connection,
    /// How many messages to ask for.
    count: usize,
    /// Whether the server may know `BZMPOP`: Redis does since 7.0.
    both: bool,
    asked: bool,
    answered: bool,
    /// Whether the layer knows that these queues are read.
    announced: bool,
}

impl Reader<'_> {
    /// Reads until the connection cannot be used any more, and says why; or until there is nothing to read.
    async fn serve(&mut self) -> Option<BoxError> {
        loop {
            let turn = async {
                self.wanted().await?;
                let relays = self.shared.demand.has_relays();
                let keys = self.readers.begin(self.shard, relays);
                match (keys.is_empty(), self.both) {
                    (true, _) => return Ok(self.readers.any_key().is_some()),
                    (false, true) => self.drain(&keys).await?,
                    (false, false) => self.drain_or_wait(&keys).await?,
                }
                Ok(true)
            };
            let result = turn.await;
            self.readers.end(self.shard);
            match result {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(error),
            }
        }
    }

    /// Waits until somebody wants a message, or nobody ever will; a connection that ends meanwhile is an error.
    async fn wanted(&mut self) -> Result<(), BoxError> {
        let (readers, demand) = (self.readers, &self.shared.demand);
        tokio::select! {
            () = demand.wanted(|| readers.are_hungry() || readers.any_key().is_none()) => Ok(()),
            () = self.connection.ended() => Err("the server closed the connection".into()),
        }
    }

    /// What is there now, or the next message when there is none, in one command.
    async fn drain(&mut self, keys: &[Bytes]) -> Result<(), BoxError> {
        let answer = self.wait(scripts::pop_or_wait(keys, self.wake_key(), BLOCK, self.count)).await?;
        if let Value::ServerError(error) = &answer
            && let text = text_of(error)
            && (text.starts_with("ERR unknown command") || text.starts_with("NOPERM"))
        {
            self.both = false;
            return Ok(());
        }
        let Some(items) = self.list(answer, keys).await? else { return Ok(()) };
        let [key, messages] = <[Value; 2]>::try_from(items).map_err(|_| "an odd answer to a pop")?;
        if self.is_wake(&key) {
            return Ok(());
        }
        let pairs = messages.into_list().unwrap_or_default().into_iter();
        self.take(pairs.flat_map(|pair| pair.into_list().unwrap_or_default()).collect());
        Ok(())
    }

    /// The same with the commands of older servers. Waits only if there is nothing, so that nothing is taken that
    /// nobody is waiting for.
    async fn drain_or_wait(&mut self, keys: &[Bytes]) -> Result<(), BoxError> {
        let mut pops = Pipeline::with_capacity(keys.len());
        for key in keys {
            pops.add_command(scripts::pop(key, self.count));
        }
        self.asked = true;
        let mut count = 0;
        for (answer, key) in timeout(ANSWER, self.connection.ask(&pops)).await??.into_iter().zip(keys) {
            // Message, score, message, score …
            count += self.list(answer, std::slice::from_ref(key)).await?.map_or(0, |items| self.take(items));
        }
        if count > 0 {
            return Ok(());
        }
        let answer = self.wait(scripts::pop_waiting(keys, self.wake_key(), BLOCK)).await?;
        let Some(items) = self.list(answer, keys).await? else { return Ok(()) };
        let [key, message, score] = <[Value; 3]>::try_from(items).map_err(|_| "an odd answer to a pop")?;
        if !self.is_wake(&key) {
            self.shared.take_in(self.shard, arrival(message, score).into_iter().collect());
        }
        Ok(())
    }

    fn wake_key(&self) -> Option<&Bytes> {
        self.readers.wake_key.as_ref()
    }

    /// Whether a message only was to end the wait, because another queue is wanted too.
    fn is_wake(&self, key: &Value) -> bool {
        self.wake_key().is_some_and(|wake| matches!(key, Value::BulkString(key) if key == wake))
    }

    /// The answer to a command that waits.
    async fn wait(&mut self, pop: Cmd) -> Result<Value, BoxError> {
        self.asked = true;
        Ok(timeout(Duration::from_secs(BLOCK) + ANSWER, self.connection.ask_one(pop)).await??)
    }

    /// Messages, each with its score behind it; returns how many there were.
    fn take(&mut self, items: Vec<Value>) -> usize {
        let bytes: usize = items.iter().map(size).sum();
        let mut arrivals = Vec::with_capacity(items.len() / 2);
        let mut items = items.into_iter();
        while let (Some(message), Some(score)) = (items.next(), items.next()) {
            arrivals.extend(arrival(message, score));
        }
        let count = arrivals.len();
        if let Some(average) = bytes.checked_div(count) {
            self.count = (BATCH_BYTES / average.max(1)).clamp(1, BATCH);
        }
        self.shared.take_in(self.shard, arrivals);
        count
    }

    /// The items of an answer, if there are any.
    async fn list(&mut self, answer: Value, keys: &[Bytes]) -> Result<Option<Vec<Value>>, BoxError> {
        let items = match answer {
            Value::Array(items) => Some(items),
            Value::Nil => None,
            Value::ServerError(error) if text_of(&error).starts_with("WRONGTYPE") => {
                // Somebody has put something else under a queue's name; until it goes nothing arrives.
                tracing::error!("a queue of ours was no sorted set: deleted");
                for key in keys.iter().chain(self.wake_key()) {
                    self.shared.commands.call(self.shard, key, scripts::delete_foreign(key), ANSWER).await?;
                }
                None
            }
            Value::ServerError(error) => {
                let text = text_of(&error);
                if is_failover_error(&text) {
                    self.connection.trust.lose();
                }
                return Err(text.into());
            }
            other => return Err(format!("an odd answer to a pop: {other:?}").into()),
        };
        self.answered = true;
        if !std::mem::replace(&mut self.announced, true) {
            self.shared.set_part(Part::Reader(self.shard, self.readers.name.clone()), true);
        }
        Ok(items)
    }
}

fn size(answer: &Value) -> usize {
    match answer {
        Value::BulkString(text) => text.len(),
        _ => 0,
    }
}

fn arrival(message: Value, score: Value) -> Option<Arrival> {
    let message = message.into_text()?;
    let score = String::from_utf8(score.into_text()?).ok()?.parse().ok()?;
    Some(Arrival { message, score })
}
