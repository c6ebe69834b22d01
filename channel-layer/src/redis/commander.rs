//! Commands: one task with a connection of its own, fed by a bounded queue. Whatever is waiting
//! leaves as one pipeline, in the order of the calls, and every wait has an end.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use parking_lot::Mutex;
use redis::{Cmd, Pipeline, Value};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, Sleep, sleep, timeout, timeout_at},
};

use super::{
    access::is_no_primary,
    answer::{Answer, command, size, text_of},
    backoff::Backoff,
    connection::{Connection, poll_quietly},
    gather::gather,
    refusal::{ErrorClass, is_failover_error},
    topology::Target,
    trust::Trust,
};
use crate::{BoxError, LayerError};

/// How many commands may wait.
const QUEUE: usize = 8_192;
/// How many bytes may wait.
const QUEUE_BYTES: usize = 64 << 20;
/// How many commands, and about how many bytes, leave together.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// How long Redis may take to answer a pipeline.
const ANSWER: Duration = Duration::from_secs(2);
/// How long answers that nobody waits for may lie unread: until the next command in most cases. A wake-up for
/// each would cost more than the command, and so would a timer for each.
const UNREAD: Duration = Duration::from_millis(100);
/// How long the connection may be idle before a PING checks it.
const IDLE: Duration = Duration::from_secs(2);
/// How long a connection must live for the next one to follow it without a pause.
const WORKED: Duration = Duration::from_secs(1);
/// The longest a caller waits, for room in the queue and for the answer together.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Redis answered with an error; nothing was done.
    #[error("the server said: {0}")]
    Refused(String),
    /// It was never sent.
    #[error("not connected")]
    NotConnected,
    /// It was sent, and whether it was done is unknown.
    #[error("connection lost: {0}")]
    Lost(Arc<str>),
    /// Too much is waiting already; it was never sent.
    #[error("the queue is full")]
    QueueFull,
    /// No answer in time; whether it was or will be done is unknown.
    #[error("no answer in time")]
    Timeout,
    /// The layer is gone.
    #[error("closed")]
    Closed,
}

impl From<Failure> for LayerError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::QueueFull => Self::QueueFull,
            Failure::Timeout => Self::Timeout,
            Failure::Closed => Self::Closed,
            other => Self::Unavailable(other.into()),
        }
    }
}

/// What becomes of a command's answer: called once, on the commander's task, so it must not block.
pub(super) trait Ending: Send {
    fn end(self: Box<Self>, result: Result<Value, Failure>);

    /// The ending it was put around, if it was not used.
    fn give_back(self: Box<Self>) -> Option<Box<dyn Ending>> {
        None
    }
}

impl<F: FnOnce(Result<Value, Failure>) + Send> Ending for F {
    fn end(self: Box<Self>, result: Result<Value, Failure>) {
        self(result);
    }
}

/// When an ending hears of the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    AtOnce,
    /// Nobody waits for it: with the next pipeline's, or a little later.
    Later,
}

/// Why nothing was queued, and the ending that therefore has not been used.
pub(super) type Refusal = (Failure, Option<Box<dyn Ending>>);

/// The answer of a command that is under way.
pub(super) struct Pending(oneshot::Receiver<Result<Value, Failure>>);

impl Pending {
    /// Waits for it, [`PATIENCE`] at most.
    pub(super) async fn answer(self) -> Result<Value, Failure> {
        self.answer_by(Instant::now() + PATIENCE).await
    }

    pub(super) async fn answer_by(self, deadline: Instant) -> Result<Value, Failure> {
        match timeout_at(deadline, self.0).await {
            Ok(Ok(result)) => result,
            Ok(Err(_gone)) => Err(Failure::Closed),
            Err(_late) => Err(Failure::Timeout),
        }
    }
}

/// The sending end of the queue. Clones share it.
#[derive(Clone)]
pub(super) struct Commander {
    queue: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Rises with every connection; odd while there is one.
    connection: watch::Sender<u64>,
    queued_bytes: AtomicUsize,
    /// Of the present connection, or the last one.
    trust: Mutex<Option<Trust>>,
    /// Whether the log says that nobody can ask for the role.
    roleless: AtomicBool,
}

struct Job {
    command: Cmd,
    /// About how many bytes it has.
    size: usize,
    ending: Option<Box<dyn Ending>>,
    heard: Heard,
    /// Whether it has been refused once because the server was no primary.
    again: bool,
    /// Whether a cluster has sent the command here with `ASK`.
    asking: bool,
}

impl Job {
    fn new(command: Cmd, ending: Option<Box<dyn Ending>>, heard: Heard) -> Self {
        Self { size: size(&command), command, ending, heard, again: false, asking: false }
    }

    fn end(self, shared: &Shared, result: Result<Value, Failure>) {
        shared.queued_bytes.fetch_sub(self.size, Ordering::Relaxed);
        if let Some(ending) = self.ending {
            ending.end(result);
        }
    }
}

impl Commander {
    /// The commander and the task to run for it. The task ends with the last commander.
    pub(super) fn new(target: Target, name: &'static str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            connection: watch::Sender::new(0),
            queued_bytes: AtomicUsize::new(0),
            trust: Mutex::default(),
            roleless: AtomicBool::new(false),
        });
        let worker =
            Worker { target, name, jobs, shared: shared.clone(), again: Vec::new(), backoff: Backoff::default() };
        (Self { queue, shared }, worker.run())
    }

    /// Rises with every connection and every loss of one; odd while there is a connection.
    pub(super) fn connections(&self) -> watch::Receiver<u64> {
        self.shared.connection.subscribe()
    }

    pub(super) fn is_connected(&self) -> bool {
        *self.shared.connection.borrow() % 2 == 1
    }

    /// Runs a command and waits for its answer; fails at once while Redis is away. Waits for room in
    /// the queue.
    pub(super) async fn call(&self, command: Cmd, limit: Duration) -> Result<Value, Failure> {
        let deadline = Instant::now() + limit;
        let (ending, pending) = ending();
        self.admit()?;
        match timeout_at(deadline, self.queue.reserve()).await {
            // The bytes count from here on, so that a cancelled wait leaves nothing counted.
            Ok(Ok(permit)) => {
                let job = Job::new(command, Some(ending), Heard::AtOnce);
                self.shared.queued_bytes.fetch_add(job.size, Ordering::Relaxed);
                permit.send(job);
            }
            Ok(Err(_closed)) => return Err(Failure::Closed),
            Err(_late) => return Err(Failure::Timeout),
        }
        pending.answer_by(deadline).await
    }

    /// Queues a command at once, in the order of the calls; `ending` hears what became of it. It comes
    /// back if nothing was queued.
    pub(super) fn start_with(
        &self,
        command: Cmd,
        ending: Option<Box<dyn Ending>>,
        heard: Heard,
    ) -> Result<(), Refusal> {
        self.queue(Job::new(command, ending, heard))
    }

    /// Like [`start_with`](Self::start_with), for a command that a cluster has sent here with `ASK`.
    pub(super) fn start_asking(&self, command: Cmd, ending: Option<Box<dyn Ending>>) -> Result<(), Refusal> {
        self.queue(Job { asking: true, ..Job::new(command, ending, Heard::AtOnce) })
    }

    fn queue(&self, job: Job) -> Result<(), Refusal> {
        if let Err(failure) = self.admit() {
            return Err((failure, job.ending));
        }
        let bytes = job.size;
        self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.queue.try_send(job).map_err(|error| {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(job) => (Failure::QueueFull, job.ending),
                mpsc::error::TrySendError::Closed(job) => (Failure::Closed, job.ending),
            }
        })
    }

    /// Whether Redis answers; everything queued before has been handled when this returns.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), Failure> {
        self.call(command([&b"PING"[..]]), limit).await.map(|_| ())
    }

    /// Makes all connections to the server anew, because they may lead to the wrong one.
    pub(super) fn renew(&self) {
        if let Some(trust) = &*self.shared.trust.lock() {
            trust.lose();
        }
    }

    /// Asks whether the server is a primary still; if it is not, all connections to it are made anew.
    pub(super) fn check_role(&self) {
        let Some(trust) = self.shared.trust.lock().clone() else { return };
        let commander = self.clone();
        let ending = move |answer| match answer {
            Ok(role) if is_no_primary(&role) => trust.lose(),
            Err(Failure::Refused(text)) if ErrorClass::of(&text) == ErrorClass::Denied => {
                commander.check_role_by_info(trust);
            }
            _ => {}
        };
        // Whoever has no connection will ask when it makes the next.
        let _ = self.start_with(command([&b"ROLE"[..]]), Some(Box::new(ending)), Heard::AtOnce);
    }

    /// The same for a user who may not use ROLE.
    fn check_role_by_info(&self, trust: Trust) {
        let shared = Arc::downgrade(&self.shared);
        let ending = move |answer: Result<Value, Failure>| match answer {
            Ok(info) if info.as_text().is_some_and(|info| info.contains("role:slave")) => trust.lose(),
            Err(Failure::Refused(_))
                if shared.upgrade().is_some_and(|it| !it.roleless.swap(true, Ordering::Relaxed)) =>
            {
                tracing::warn!(
                    "the Redis user may use neither ROLE nor INFO: a server that becomes a replica while it is \
                     connected to is not noticed (ACL SETUSER … +role)"
                );
            }
            _ => {}
        };
        let _ = self.start_with(command([&b"INFO"[..], b"replication"]), Some(Box::new(ending)), Heard::AtOnce);
    }

    fn admit(&self) -> Result<(), Failure> {
        if !self.is_connected() {
            return Err(Failure::NotConnected);
        }
        if self.shared.queued_bytes.load(Ordering::Relaxed) > QUEUE_BYTES {
            return Err(Failure::QueueFull);
        }
        Ok(())
    }
}

pub(super) fn ending() -> (Box<dyn Ending>, Pending) {
    let (sender, receiver) = oneshot::channel();
    // Whoever asked may have stopped waiting.
    let ending = move |result| drop(sender.send(result));
    (Box::new(ending), Pending(receiver))
}

/// Why a connection ended, and whether the next attempt deserves the queue's patience.
enum End {
    /// It broke: perhaps just this connection, so the queue waits for one attempt.
    Broken(BoxError),
    /// The server hangs: the queue fails at once.
    Hung,
    /// Nobody can give commands any more.
    Closed,
}

struct Worker {
    target: Target,
    name: &'static str,
    jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
    /// Refused because the server is no primary any more: sent again, once, on the next connection.
    again: Vec<Job>,
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
                    tracing::debug!(%error, connection = self.name, "connection to Redis lost");
                }
                End::Hung => {
                    tracing::warn!(connection = self.name, "Redis does not answer");
                    self.away();
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

    /// Notes that there is no connection; tells whether that is news.
    fn away(&self) -> bool {
        self.shared.connection.send_if_modified(|connection| {
            let up = *connection % 2 == 1;
            *connection += u64::from(up);
            up
        })
    }

    /// Tries for ever; from the first failure on, everything queued fails. `None` when closed.
    async fn connect(&mut self) -> Option<Connection> {
        loop {
            let pause = match self.target.open(self.name).await {
                Ok(connection) => {
                    *self.shared.trust.lock() = Some(connection.trust.clone());
                    // A new number also if nobody noticed the loss: the server may be another one.
                    self.shared.connection.send_modify(|connection| *connection += 1 + *connection % 2);
                    return Some(connection);
                }
                Err(error) => {
                    if self.away() {
                        tracing::warn!(%error, connection = self.name, "Redis is away: commands fail");
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
                    job = self.jobs.recv() => job?.end(&self.shared, Err(Failure::NotConnected)),
                }
            }
        }
    }

    async fn serve(&mut self, mut connection: Connection) -> End {
        let (mut batch, mut next) = (std::mem::take(&mut self.again), Vec::new());
        let lost = connection.trust.lost();
        // Set anew when they have rung, and not for each command: that would take longer than what they are for.
        let (idle, unread) = (sleep(IDLE), sleep(UNREAD));
        tokio::pin!(lost, idle, unread);
        let (mut since, mut crowded) = (Instant::now(), false);
        loop {
            if connection.trust.is_lost() {
                self.again = batch;
                return End::Broken("the server is no primary any more, or deaf".into());
            }
            if batch.is_empty() {
                tokio::select! {
                    taken = self.jobs.recv_many(&mut batch, BATCH) => {
                        if taken == 0 {
                            return End::Closed;
                        }
                    }
                    () = connection.ended() => return End::Broken("the server closed the connection".into()),
                    () = &mut lost => continue,
                    () = &mut idle => {
                        let now = Instant::now();
                        if now - since < IDLE {
                            idle.as_mut().reset(since + IDLE);
                            continue;
                        }
                        idle.as_mut().reset(now + IDLE);
                        let ping = Job::new(command([&b"PING"[..]]), None, Heard::AtOnce);
                        self.shared.queued_bytes.fetch_add(ping.size, Ordering::Relaxed);
                        batch.push(ping);
                    }
                }
            }
            gather(&mut self.jobs, &mut batch, BATCH, crowded).await;
            crowded = batch.len() > 1;
            let mut jobs = batch.drain(..);
            while jobs.len() > 0 {
                if let Err(end) = self.exchange(&mut connection, &mut jobs, &mut next, unread.as_mut()).await {
                    // These were never sent.
                    jobs.for_each(|job| job.end(&self.shared, Err(Failure::NotConnected)));
                    // Nor were these, and they came later: they wait as the queue does.
                    self.again.append(&mut next);
                    return end;
                }
            }
            drop(jobs);
            since = Instant::now();
            crowded |= !self.jobs.is_empty();
            std::mem::swap(&mut batch, &mut next);
        }
    }

    /// Sends some of the jobs, up to the size of a batch, and waits for their answers. What comes while nobody
    /// waits for an answer is put into `next`, until `unread` rings.
    async fn exchange(
        &mut self,
        connection: &mut Connection,
        jobs: &mut impl ExactSizeIterator<Item = Job>,
        next: &mut Vec<Job>,
        mut unread: Pin<&mut Sleep>,
    ) -> Result<(), End> {
        let (mut sent, mut bytes, mut later) = (Vec::with_capacity(jobs.len()), 0, true);
        let mut pipeline = Pipeline::with_capacity(jobs.len());
        for mut job in jobs.by_ref() {
            if job.asking {
                pipeline.add_command(command([&b"ASKING"[..]]));
            }
            pipeline.add_command(std::mem::take(&mut job.command));
            later &= job.heard == Heard::Later;
            bytes += job.size;
            sent.push(job);
            if bytes > BATCH_BYTES {
                break;
            }
        }
        later &= jobs.len() == 0;
        let deadline = Instant::now() + ANSWER;
        let answers = {
            let mut asking = pin!(connection.ask(&pipeline));
            let mut answers = None;
            if later {
                match poll_quietly(asking.as_mut()) {
                    Poll::Ready(early) => answers = Some(early),
                    Poll::Pending => {
                        if unread.is_elapsed() {
                            unread.as_mut().reset(Instant::now() + UNREAD);
                        }
                        tokio::select! {
                            _ = self.jobs.recv_many(next, BATCH) => {}
                            () = unread => {}
                        }
                    }
                }
            }
            match answers {
                Some(answers) => Ok(answers),
                None => timeout_at(deadline, asking).await,
            }
        };
        let (end, why): (End, Arc<str>) = match answers {
            Ok(Ok(answers)) => match self.answered(sent, &pipeline, answers) {
                false => return Ok(()),
                true => {
                    // Others may have connections to it that answer as ever.
                    let role = timeout(ANSWER, connection.ask_one(command([&b"ROLE"[..]]))).await;
                    if let Ok(Ok(role)) = role
                        && is_no_primary(&role)
                    {
                        connection.trust.lose();
                    }
                    return Err(End::Broken("the server is no primary any more".into()));
                }
            },
            Ok(Err(error)) => {
                let why = error.to_string().into();
                (End::Broken(error.into()), why)
            }
            Err(_late) => (End::Hung, "no answer in time".into()),
        };
        sent.into_iter().for_each(|job| job.end(&self.shared, Err(Failure::Lost(why.clone()))));
        Err(end)
    }

    /// Tells everybody; whoever was refused because the server is no primary tries once more. Tells whether
    /// there was one.
    fn answered(&mut self, sent: Vec<Job>, pipeline: &Pipeline, answers: Vec<Value>) -> bool {
        let (mut commands, mut answers) = (pipeline.cmd_iter(), answers.into_iter());
        let mut demoted = false;
        for mut job in sent {
            if job.asking {
                commands.next();
                answers.next();
            }
            let (command, answer) = (commands.next(), answers.next());
            match answer {
                Some(Value::ServerError(error)) => {
                    let text = text_of(&error);
                    let failover = is_failover_error(&text);
                    demoted |= failover;
                    if failover
                        && !job.again
                        && let Some(command) = command
                    {
                        (job.command, job.again) = (command.clone(), true);
                        self.again.push(job);
                    } else {
                        job.end(&self.shared, Err(Failure::Refused(text)));
                    }
                }
                Some(answer) => job.end(&self.shared, Ok(answer)),
                None => job.end(&self.shared, Err(Failure::Lost("an answer is missing".into()))),
            }
        }
        demoted
    }

    fn fail_queued(&mut self) {
        for job in self.again.drain(..) {
            job.end(&self.shared, Err(Failure::NotConnected));
        }
        while let Ok(job) = self.jobs.try_recv() {
            job.end(&self.shared, Err(Failure::NotConnected));
        }
    }
}
