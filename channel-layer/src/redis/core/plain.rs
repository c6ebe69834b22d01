//! Receiving on plain channels, which processes share: whoever pops a message has it.
//!
//! One task and one connection per channel and shard, all shards at once. A message is popped only
//! while somebody here waits; what comes for a receiver that has given up meanwhile goes back to where
//! it was, for whoever wants it. Python's backup queue (`$inflight`) is left alone: then nothing we
//! take is ever delivered a second time.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use redis::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};

use super::{scripts, shared::Shared};
use crate::{
    BoxError, Event, LayerError,
    codec::AgeLimit,
    redis::{
        answer::{Answer, text_of},
        backoff::Backoff,
        commander::{Failure, Heard},
        connection::Connection,
        refusal::is_failover_error,
    },
};

/// Seconds Redis keeps a pop waiting; so long may a message wait for a receiver that has given up.
const BLOCK: u64 = 1;
/// How long an answer may take beyond that.
const ANSWER: Duration = Duration::from_secs(2);
/// How long what could not be put back waits for the next attempt.
const AGAIN: Duration = Duration::from_secs(1);
/// How long nobody must have waited for the connections to be given up.
const IDLE: Duration = Duration::from_secs(30);

/// A plain channel somebody here receives on.
pub(super) struct PlainChannel {
    key: Bytes,
    inside: Mutex<Inside>,
    /// A receiver has come or gone.
    changed: Notify,
    arrived: Notify,
    /// Nobody may receive any more, and the tasks are to end.
    retired: AtomicBool,
    /// How many tasks read it.
    readers: watch::Sender<usize>,
}

#[derive(Default)]
struct Inside {
    taken: VecDeque<Taken>,
    /// Receivers that have found nothing: so many messages may be taken.
    waiting: usize,
}

/// A message as Redis gave it, so that it can go back.
struct Taken {
    shard: usize,
    message: Vec<u8>,
    score: Vec<u8>,
}

/// Somebody inside `receive`.
struct Waiting<'a> {
    channel: &'a PlainChannel,
    counted: bool,
}

impl Waiting<'_> {
    /// The next message, and then it waits no longer; or none, and it does from now on.
    fn pop(&mut self) -> Option<Taken> {
        let mut inside = self.channel.inside.lock();
        let taken = inside.taken.pop_front();
        match (&taken, self.counted) {
            (Some(_), true) => inside.waiting -= 1,
            (None, false) => inside.waiting += 1,
            _ => return taken,
        }
        drop(inside);
        self.counted = taken.is_none();
        if self.counted {
            self.channel.changed.notify_waiters();
        }
        taken
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.channel.inside.lock().waiting -= 1;
        }
        // Perhaps something was taken for us: the tasks put back what nobody waits for.
        self.channel.changed.notify_waiters();
        self.channel.arrived.notify_one();
    }
}

impl PlainChannel {
    pub(super) fn new(key: Bytes, shards: usize) -> Self {
        Self {
            key,
            inside: Mutex::default(),
            changed: Notify::new(),
            arrived: Notify::new(),
            retired: AtomicBool::new(false),
            readers: watch::Sender::new(shards),
        }
    }

    /// Waits for the next event. A message leaves `taken` only in the moment it is returned, so dropping
    /// the future loses nothing.
    pub(super) async fn receive(&self, shared: &Shared) -> Result<Event, LayerError> {
        let mut waiting = Waiting { channel: self, counted: false };
        loop {
            let mut arrived = pin!(self.arrived.notified());
            // Of two messages that come between the look and the wait, only one would be remembered.
            arrived.as_mut().enable();
            match waiting.pop() {
                Some(taken) => {
                    if let Some(event) = shared.decode_plain(&taken) {
                        return Ok(event);
                    }
                    // It could not be used, so this receiver waits again.
                }
                None if self.retired.load(Ordering::Acquire) => return Err(LayerError::Closed),
                None => arrived.await,
            }
        }
    }

    /// Ends it: receivers hear [`LayerError::Closed`], and what was taken for nobody goes back.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.arrived.notify_waiters();
        self.changed.notify_waiters();
    }

    /// Returns when no task reads it any more.
    pub(super) async fn ended(&self) {
        // Fails only if the sender is gone, and that is part of ourselves.
        let _ = self.readers.subscribe().wait_for(|readers| *readers == 0).await;
    }

    /// Whether it holds nothing for anybody.
    pub(super) fn is_empty(&self) -> bool {
        self.inside.lock().taken.is_empty()
    }

    /// How many more messages may be taken.
    fn wanted(&self) -> usize {
        if self.retired.load(Ordering::Acquire) {
            return 0;
        }
        let inside = self.inside.lock();
        inside.waiting.saturating_sub(inside.taken.len())
    }

    fn take(&self, taken: Taken) {
        self.inside.lock().taken.push_back(taken);
        self.arrived.notify_one();
    }

    /// What has been taken for nobody, the newest first.
    fn excess(&self) -> Option<Taken> {
        let mut inside = self.inside.lock();
        let wanted = if self.retired.load(Ordering::Acquire) { 0 } else { inside.waiting };
        (inside.taken.len() > wanted).then(|| inside.taken.pop_back()).flatten()
    }
}

impl Shared {
    /// The event in a message of a plain channel; `None` if it is too old or cannot be read.
    fn decode_plain(&self, taken: &Taken) -> Option<Event> {
        let message = &taken.message;
        let score: f64 = std::str::from_utf8(&taken.score).ok()?.parse().ok()?;
        let clock = &self.clocks[taken.shard];
        if score < clock.oldest(self.longest_life()) {
            self.counters.expired(1);
            return None;
        }
        let age = AgeLimit { now: clock.now() as u64, max_age: self.settings.expiry + 10 };
        let payload = message.get(self.settings.random_prefix..).unwrap_or_default();
        match self.codec.decode_routed(payload, Some(age)) {
            Ok((event, _routing)) => {
                self.counters.received(1);
                Some(event)
            }
            Err(_) => {
                self.undecodable(message.len());
                None
            }
        }
    }
}

/// Reads a plain channel on one shard while somebody waits for it, until it is retired.
pub(super) async fn read(shared: Arc<Shared>, shard: usize, channel: Arc<PlainChannel>) {
    while_wanted(&shared, shard, &channel).await;
    channel.readers.send_modify(|readers| *readers -= 1);
}

async fn while_wanted(shared: &Shared, shard: usize, channel: &PlainChannel) {
    let mut backoff = Backoff::default();
    loop {
        let changed = channel.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        if channel.wanted() == 0 {
            let done = put_back(shared, channel).await;
            if channel.retired.load(Ordering::Acquire) {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = sleep(AGAIN), if !done => {}
            }
            continue;
        }
        let since = Instant::now();
        let result = match shared.commands.open(shard, &channel.key, "channel-layer:plain").await {
            Ok(connection) => serve(shared, shard, channel, connection).await,
            Err(error) => Err(error),
        };
        let Err(error) = result else { continue };
        tracing::debug!(%error, shard, "no connection to a plain channel");
        if since.elapsed() > ANSWER {
            backoff.reset();
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Serves receivers until nobody has come for a while.
async fn serve(
    shared: &Shared,
    shard: usize,
    channel: &PlainChannel,
    mut connection: Connection,
) -> Result<(), BoxError> {
    loop {
        let changed = channel.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let done = put_back(shared, channel).await;
        if channel.retired.load(Ordering::Acquire) {
            return Ok(());
        }
        if connection.trust.is_lost() {
            return Err("the server is no primary any more".into());
        }
        if channel.wanted() == 0 {
            tokio::select! {
                () = changed => {}
                () = connection.ended() => return Err("the server closed the connection".into()),
                () = sleep(AGAIN), if !done => {}
                () = sleep(IDLE) => return Ok(()),
            }
            continue;
        }
        let pop = scripts::pop_waiting(std::slice::from_ref(&channel.key), None, BLOCK);
        let answer = timeout(Duration::from_secs(BLOCK) + ANSWER, connection.ask_one(pop)).await??;
        match answer {
            Value::Nil => {}
            Value::Array(items) => {
                let [_key, message, score] = <[Value; 3]>::try_from(items).map_err(|_| "an odd answer to a pop")?;
                let (message, score) = (message.into_text(), score.into_text());
                let (message, score) = message.zip(score).ok_or("an odd answer to a pop")?;
                channel.take(Taken { shard, message, score });
            }
            Value::ServerError(error) => {
                let text = text_of(&error);
                if is_failover_error(&text) {
                    connection.trust.lose();
                }
                return Err(text.into());
            }
            other => return Err(format!("an odd answer to a pop: {other:?}").into()),
        }
    }
}

/// Gives back what nobody waits for any more, and tells whether all of it. What Redis certainly has not
/// taken stays for the next receiver or attempt; what it may have taken is given up, because it would
/// be there twice.
async fn put_back(shared: &Shared, channel: &PlainChannel) -> bool {
    while let Some(taken) = channel.excess() {
        let command = scripts::put_back(&channel.key, &taken.score, &taken.message);
        let done = match shared.commands.start(taken.shard, &channel.key, command) {
            Ok(pending) => {
                // A queue that the pop has emptied is a new key, and would live for ever.
                let expire = scripts::expire(&channel.key, shared.settings.expiry);
                let _ = shared.commands.start_with(taken.shard, &channel.key, expire, None, Heard::AtOnce);
                pending.answer().await.map(drop)
            }
            Err(failure) => Err(failure),
        };
        match done {
            Ok(()) => {}
            Err(failure @ (Failure::Lost(_) | Failure::Timeout)) => {
                tracing::debug!(%failure, "a message was perhaps put back");
                shared.counters.dropped(1);
            }
            Err(failure) => {
                tracing::debug!(%failure, "a message could not be put back");
                channel.take(taken);
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_wants_one_message_and_no_other_before_that_has_proved_useless() {
        let channel = PlainChannel::new(Bytes::new(), 1);
        let take = || channel.take(Taken { shard: 0, message: Vec::new(), score: Vec::new() });
        let mut receiver = Waiting { channel: &channel, counted: false };
        assert!(receiver.pop().is_none());
        assert_eq!(channel.wanted(), 1);
        take();
        assert_eq!(channel.wanted(), 0);
        assert!(receiver.pop().is_some());
        assert_eq!(channel.wanted(), 0, "while it looks at the message");
        assert!(receiver.pop().is_none());
        assert_eq!(channel.wanted(), 1);
        take();
        drop(receiver);
        assert!(channel.excess().is_some(), "what was taken for one that has gone goes back");
        assert_eq!(channel.wanted(), 0);
    }
}
