//! Reading our own queues: one task and one connection per queue and shard, owned by the layer and
//! never by whoever receives.
//!
//! A pop that waits has a connection of its own, because whoever gives up waiting for its answer loses what
//! Redis hands over a moment later; here only a broken connection does that.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::AsyncWriteExt,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    health::Part,
    scripts,
    shared::{Arrival, Shared},
};
use crate::{
    BoxError,
    redis::{
        backoff::Backoff,
        connection::{Connection, fill},
        wire::Answer,
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

/// One of our queues, on all shards.
pub(super) struct Queue {
    /// The channel names' part up to the `!`.
    pub(super) name: String,
    pub(super) key: Bytes,
    /// How many receivers on its channels have no event. What is taken out of the queue beyond that would
    /// be taken for nobody.
    pub(super) hungry: Arc<AtomicUsize>,
    /// Ends the connection to a shard: the probe has found it deaf.
    pub(super) reset: Vec<Notify>,
}

impl Queue {
    pub(super) fn new(name: String, key: Bytes, shards: usize) -> Self {
        let reset = (0..shards).map(|_| Notify::new()).collect();
        Self { name, key, hungry: Arc::default(), reset }
    }
}

/// Reads one queue on one shard; for ever.
pub(super) async fn read(shared: Arc<Shared>, shard: usize, queue: Arc<Queue>) {
    let part = || Part::Queue(shard, queue.name.as_str().into());
    let mut backoff = Backoff::default();
    let mut refused = false;
    loop {
        match shared.commands.open(shard, &queue.key, "channel-layer:read").await {
            Ok(connection) => {
                // One that only ever refuses is not there: whether this one is, its first answer says.
                if !refused {
                    shared.set_part(part(), true);
                }
                let since = Instant::now();
                let mut reader = Reader {
                    shared: &shared,
                    queue: &queue,
                    shard,
                    connection,
                    count: BATCH,
                    both: true,
                    asked: false,
                    answered: false,
                    announced: !refused,
                };
                let error = tokio::select! {
                    error = reader.serve() => error,
                    () = queue.reset[shard].notified() => "the probe did not come through".into(),
                };
                refused = reader.asked && !reader.answered;
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
}

struct Reader<'a> {
    shared: &'a Shared,
    queue: &'a Queue,
    shard: usize,
    connection: Connection,
    /// How many messages to ask for.
    count: usize,
    /// Whether the server may know `BZMPOP`: Redis does since 7.0.
    both: bool,
    asked: bool,
    answered: bool,
    /// Whether the layer knows that this queue is read.
    announced: bool,
}

impl Reader<'_> {
    /// Reads until the connection cannot be used any more; says why.
    async fn serve(&mut self) -> BoxError {
        loop {
            let turn = async {
                self.wanted().await?;
                match self.shared.demand.has_relays() {
                    _ if self.both => self.drain().await,
                    true => self.drain_and_wait().await,
                    false => self.drain_or_wait().await,
                }
            };
            if let Err(error) = turn.await {
                return error;
            }
        }
    }

    /// Waits until somebody wants a message; a connection that ends meanwhile is an error.
    async fn wanted(&mut self) -> Result<(), BoxError> {
        tokio::select! {
            () = self.shared.demand.wanted(&self.queue.hungry) => Ok(()),
            read = fill(&mut self.connection.stream, &mut self.connection.buffer) => {
                read?;
                Err("unasked reply".into())
            }
        }
    }

    /// What is there now, or the next message when there is none, in one command.
    async fn drain(&mut self) -> Result<(), BoxError> {
        self.ask(&[&scripts::pop_or_wait(&self.queue.key, BLOCK, self.count)]).await?;
        let limit = Duration::from_secs(BLOCK) + ANSWER;
        let answer = timeout(limit, self.connection.next_answer()).await??;
        if let Answer::Error(text) = &answer
            && (text.starts_with("ERR unknown command") || text.starts_with("NOPERM"))
        {
            self.both = false;
            return Ok(());
        }
        let Some(items) = self.list(answer).await? else { return Ok(()) };
        let [_key, messages] = <[Answer; 2]>::try_from(items).map_err(|_| "an odd answer to a pop")?;
        let pairs = messages.into_list().unwrap_or_default().into_iter();
        self.take(pairs.flat_map(|pair| pair.into_list().unwrap_or_default()).collect());
        Ok(())
    }

    /// Both commands in one go: what is there now, and the next message when there is none.
    async fn drain_and_wait(&mut self) -> Result<(), BoxError> {
        let waiting = scripts::pop_waiting(&self.queue.key, BLOCK);
        self.ask(&[&scripts::pop(&self.queue.key, self.count), &waiting]).await?;
        self.take_popped().await?;
        self.take_waited().await
    }

    /// Waits only if there is nothing, so that nothing is taken that nobody is waiting for.
    async fn drain_or_wait(&mut self) -> Result<(), BoxError> {
        self.ask(&[&scripts::pop(&self.queue.key, self.count)]).await?;
        if self.take_popped().await? > 0 {
            return Ok(());
        }
        self.ask(&[&scripts::pop_waiting(&self.queue.key, BLOCK)]).await?;
        self.take_waited().await
    }

    async fn ask(&mut self, commands: &[&[u8]]) -> Result<(), BoxError> {
        self.asked = true;
        let write = async {
            self.connection.stream.write_all(&commands.concat()).await?;
            self.connection.stream.flush().await
        };
        Ok(timeout(ANSWER, write).await??)
    }

    /// The answer of `ZPOPMIN`: message, score, message, score …; returns how many there were.
    async fn take_popped(&mut self) -> Result<usize, BoxError> {
        let answer = timeout(ANSWER, self.connection.next_answer()).await??;
        Ok(self.list(answer).await?.map_or(0, |items| self.take(items)))
    }

    /// Messages, each with its score behind it; returns how many there were.
    fn take(&mut self, items: Vec<Answer>) -> usize {
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

    /// The answer of `BZPOPMIN`: key, message, score; or nothing.
    async fn take_waited(&mut self) -> Result<(), BoxError> {
        let limit = Duration::from_secs(BLOCK) + ANSWER;
        let answer = timeout(limit, self.connection.next_answer()).await??;
        let Some(items) = self.list(answer).await? else { return Ok(()) };
        let [_key, message, score] = <[Answer; 3]>::try_from(items).map_err(|_| "an odd answer to a pop")?;
        self.shared.take_in(self.shard, arrival(message, score).into_iter().collect());
        Ok(())
    }

    /// The items of an answer, if there are any.
    async fn list(&mut self, answer: Answer) -> Result<Option<Vec<Answer>>, BoxError> {
        let items = match answer {
            Answer::List(items) => Some(items),
            Answer::Null => None,
            Answer::Error(text) if text.starts_with("WRONGTYPE") => {
                // Somebody has put something else under our queue's name; until it goes nothing arrives.
                tracing::error!("a queue of ours was no sorted set: deleted");
                let delete = scripts::delete_foreign(&self.queue.key);
                self.shared.commands.call(self.shard, &self.queue.key, delete, ANSWER).await?;
                None
            }
            Answer::Error(text) => return Err(text.into()),
            other => return Err(format!("an odd answer to a pop: {other:?}").into()),
        };
        self.answered = true;
        if !std::mem::replace(&mut self.announced, true) {
            self.shared.set_part(Part::Queue(self.shard, self.queue.name.as_str().into()), true);
        }
        Ok(items)
    }
}

fn size(answer: &Answer) -> usize {
    match answer {
        Answer::Text(text) => text.len(),
        _ => 0,
    }
}

fn arrival(message: Answer, score: Answer) -> Option<Arrival> {
    let message = message.into_text()?;
    let score = String::from_utf8(score.into_text()?).ok()?.parse().ok()?;
    Some(Arrival { message, score })
}
