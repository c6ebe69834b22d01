//! Publishing: one task with a connection of its own, fed by a bounded queue. Whatever is waiting
//! leaves as one pipeline, in the order of the calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    backoff::Backoff,
    connection::{Connection, Target, fill},
    wire::{self, Reply},
};
use crate::{BoxError, LayerError, stats::Counters};

/// How many publishes may wait.
const QUEUE: usize = 8_192;
/// How many bytes may wait.
const QUEUE_BYTES: usize = 64 << 20;
/// How many publishes, and about how many bytes, leave together.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// How long Redis may take to answer a pipeline.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the connection may be idle before a PING checks it.
const IDLE: Duration = Duration::from_secs(2);
/// How long a connection must live for the next one to follow it without a pause.
const WORKED: Duration = Duration::from_secs(1);
/// The longest a caller waits, for room in the queue and for the answer together.
const PATIENCE: Duration = Duration::from_secs(5);

/// The sending end of the queue.
pub(super) struct Publisher {
    queue: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
}

struct Shared {
    connected: watch::Sender<bool>,
    queued_bytes: AtomicUsize,
}

struct Job {
    /// `None` is a PING.
    publish: Option<(Box<[u8]>, Vec<u8>)>,
    reply: Option<oneshot::Sender<Result<(), LayerError>>>,
}

impl Job {
    fn bytes(&self) -> usize {
        self.publish.as_ref().map_or(0, |(topic, payload)| topic.len() + payload.len())
    }

    fn publishes(&self) -> u64 {
        u64::from(self.publish.is_some())
    }
}

impl Publisher {
    /// The publisher and the task to run for it.
    pub(super) fn new(target: Target, counters: Arc<Counters>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let connected = watch::Sender::new(false);
        let shared = Arc::new(Shared { connected, queued_bytes: AtomicUsize::new(0) });
        let worker = Worker {
            target,
            jobs,
            shared: shared.clone(),
            counters: counters.clone(),
            out: Vec::new(),
            backoff: Backoff::default(),
        };
        (Self { queue, shared, counters }, worker.run())
    }

    /// Returns when there is a connection.
    pub(super) async fn connected(&self) {
        // Fails only if the sender is gone, and that is part of ourselves.
        let _ = self.shared.connected.subscribe().wait_for(|connected| *connected).await;
    }

    /// Publishes and waits until Redis has answered. Fails at once while Redis is away.
    pub(super) async fn publish(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        self.wait_for(Some((topic, payload)), PATIENCE).await
    }

    /// Whether Redis answers; everything queued before has been handled when this returns.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), LayerError> {
        self.wait_for(None, limit).await
    }

    async fn wait_for(&self, publish: Option<(Box<[u8]>, Vec<u8>)>, limit: Duration) -> Result<(), LayerError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { publish, reply: Some(reply) };
        self.admit(&job)?;
        let deadline = Instant::now() + limit;
        let (bytes, publishes) = (job.bytes(), job.publishes());
        match tokio::time::timeout_at(deadline, self.queue.reserve()).await {
            // The bytes count from here on, so that a cancelled wait leaves nothing counted.
            Ok(Ok(permit)) => {
                self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
                permit.send(job);
            }
            Ok(Err(_closed)) => return Err(LayerError::Closed),
            Err(_late) => {
                self.counters.publish_failed(publishes);
                return Err(LayerError::Timeout);
            }
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_gone)) => Err(LayerError::Closed),
            Err(_late) => Err(LayerError::Timeout),
        }
    }

    /// Queues a publish and returns at once.
    pub(super) fn publish_later(&self, topic: Box<[u8]>, payload: Vec<u8>) -> Result<(), LayerError> {
        let job = Job { publish: Some((topic, payload)), reply: None };
        self.admit(&job)?;
        let bytes = job.bytes();
        self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.try_send(job).map_err(|error| {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counters.publish_failed(1);
            match error {
                mpsc::error::TrySendError::Full(_) => LayerError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => LayerError::Closed,
            }
        })
    }

    fn admit(&self, job: &Job) -> Result<(), LayerError> {
        let refusal = if !*self.shared.connected.borrow() {
            LayerError::Unavailable("not connected".into())
        } else if self.shared.queued_bytes.load(Ordering::Relaxed) > QUEUE_BYTES {
            LayerError::QueueFull
        } else {
            return Ok(());
        };
        self.counters.publish_failed(job.publishes());
        Err(refusal)
    }
}

/// Why a connection ended, and whether the next attempt deserves the queue's patience.
enum End {
    /// It broke: perhaps just this connection, so the queue waits for one attempt.
    Broken(BoxError),
    /// The server hangs: the queue fails at once.
    Hung,
    /// Nobody can publish any more.
    Closed,
}

struct Worker {
    target: Target,
    jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    out: Vec<u8>,
    backoff: Backoff,
}

impl Worker {
    async fn run(mut self) {
        while let Some(connection) = self.connect().await {
            let since = Instant::now();
            let end = self.serve(connection).await;
            let worked = since.elapsed() > WORKED;
            match end {
                End::Broken(error) => {
                    tracing::debug!(%error, "publishing connection to Redis lost");
                }
                End::Hung => {
                    tracing::warn!("Redis does not answer publishes");
                    self.shared.connected.send_replace(false);
                    self.fail_queued();
                }
                End::Closed => return,
            }
            match worked {
                true => self.backoff.reset(),
                // Connections that break at once are not made anew as fast as the network allows.
                false => sleep(self.backoff.next_pause()).await,
            }
        }
    }

    /// Tries for ever; from the first failure on, everything queued fails. `None` when closed.
    async fn connect(&mut self) -> Option<Connection> {
        loop {
            let attempt = self.target.open("channel-layer:publish").await;
            let pause = match attempt {
                Ok(connection) => {
                    self.shared.connected.send_replace(true);
                    return Some(connection);
                }
                Err(error) => {
                    if self.shared.connected.send_replace(false) {
                        tracing::warn!(%error, "Redis is away: publishing fails");
                    }
                    self.fail_queued();
                    self.backoff.pause_after(&error)
                }
            };
            let pause = sleep(pause);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    job = self.jobs.recv() => self.fail(job?, "not connected"),
                }
            }
        }
    }

    async fn serve(&mut self, mut connection: Connection) -> End {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                taken = self.jobs.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return End::Closed;
                    }
                }
                read = fill(&mut connection.stream, &mut connection.buffer) => {
                    // Nothing was asked, so this is the end or a protocol gone wrong.
                    let error = read.err().map_or_else(|| "unasked reply".into(), BoxError::from);
                    return End::Broken(error);
                }
                () = sleep(IDLE) => batch.push(Job { publish: None, reply: None }),
            }
            let mut jobs = batch.drain(..);
            while jobs.len() > 0 {
                if let Err(end) = self.exchange(&mut connection, &mut jobs).await {
                    let why = match &end {
                        End::Broken(error) => error.to_string(),
                        _ => "no answer in time".to_owned(),
                    };
                    jobs.for_each(|job| self.fail(job, &why));
                    return end;
                }
            }
        }
    }

    /// Sends some of the jobs, up to the size of a batch, and waits for their answers.
    async fn exchange(&mut self, connection: &mut Connection, jobs: &mut impl Iterator<Item = Job>) -> Result<(), End> {
        self.out.clear();
        let mut sent = std::collections::VecDeque::new();
        for job in jobs {
            match &job.publish {
                Some((topic, payload)) => {
                    let words = [&b"PUBLISH"[..], topic, payload];
                    wire::command(&mut self.out, words.into_iter());
                }
                None => wire::command(&mut self.out, [&b"PING"[..]].into_iter()),
            }
            sent.push_back(job);
            if self.out.len() > BATCH_BYTES {
                break;
            }
        }
        let out = &self.out;
        let shared = &self.shared;
        let counters = &self.counters;
        let waiting = &mut sent;
        let talk = async {
            connection.stream.write_all(out).await?;
            connection.stream.flush().await?;
            while let Some(job) = waiting.pop_front() {
                // Taken out only when answered: the answer of a job in hand cannot be awaited.
                waiting.push_front(job);
                let answer = connection.next_reply(|reply| match reply {
                    Reply::Error(text) => Err(String::from_utf8_lossy(text).into_owned()),
                    _ => Ok(()),
                });
                let answer = answer.await?;
                if let Some(job) = waiting.pop_front() {
                    answered(shared, counters, job, answer);
                }
            }
            Ok::<(), BoxError>(())
        };
        let end = match timeout(ANSWER, talk).await {
            Ok(Ok(())) => {
                if self.out.capacity() > 4 * BATCH_BYTES {
                    self.out = Vec::new();
                }
                return Ok(());
            }
            Ok(Err(error)) => End::Broken(error),
            Err(_late) => End::Hung,
        };
        let why = match &end {
            End::Broken(error) => error.to_string(),
            _ => "no answer in time".to_owned(),
        };
        sent.into_iter().for_each(|job| self.fail(job, &why));
        Err(end)
    }

    fn fail_queued(&mut self) {
        while let Ok(job) = self.jobs.try_recv() {
            self.fail(job, "not connected");
        }
    }

    fn fail(&self, job: Job, why: &str) {
        answered(&self.shared, &self.counters, job, Err(why.to_owned()));
    }
}

fn answered(shared: &Shared, counters: &Counters, job: Job, answer: Result<(), String>) {
    shared.queued_bytes.fetch_sub(job.bytes(), Ordering::Relaxed);
    match &answer {
        Ok(()) => counters.published(job.publishes()),
        Err(_) => counters.publish_failed(job.publishes()),
    }
    if let Some(reply) = job.reply {
        // Whoever asked may have stopped waiting.
        let _ = reply.send(answer.map_err(|error| LayerError::Unavailable(error.into())));
    }
}
