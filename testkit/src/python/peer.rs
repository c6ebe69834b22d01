//! A Python process that holds a real layer of `channels_redis`.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value as Json, json};

use super::python;
use crate::clock;

const SCRIPT: &str = include_str!("peer.py");
/// The longest an answer may take beyond the time that the order itself gives.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which of Python's two layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `channels_redis.core.RedisChannelLayer`.
    Core,
    /// `channels_redis.pubsub.RedisPubSubChannelLayer`.
    PubSub,
}

/// A layer of `channels_redis` in a process of its own, which ends with this. Methods wait for the answer
/// and panic with Python's error; [`order`](Self::order) does neither. Messages are JSON; bytes in them are
/// `{"hex": "00ff"}` in both directions.
#[derive(Debug)]
pub struct Peer {
    process: Child,
    orders: Mutex<Option<ChildStdin>>,
    waiting: Arc<Mutex<Waiting>>,
    last: AtomicU64,
    reader: Option<JoinHandle<()>>,
    errors: Arc<File>,
}

/// Who waits for which answer; `None` when the process has ended.
type Waiting = Option<HashMap<u64, SyncSender<Result<Json, PeerError>>>>;

/// What Python raised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerError {
    /// The class, such as `ChannelFull`.
    pub kind: String,
    /// Its text.
    pub text: String,
}

/// An answer to come.
#[derive(Debug)]
pub struct Pending {
    answer: Receiver<Result<Json, PeerError>>,
    order: String,
    errors: Arc<File>,
}

impl Peer {
    /// Starts a layer. `config` is the `CONFIG` of Django's settings: `hosts` (a list), `prefix`,
    /// `symmetric_encryption_keys`, `serializer_format`, and for core `capacity`, `expiry`, `group_expiry`,
    /// `channel_capacity`, `random_prefix_length`.
    pub fn start(kind: Kind, config: &Json) -> Self {
        Self::launch(kind, config, &[])
    }

    /// [`start`](Self::start) of a core layer.
    pub fn core(config: &Json) -> Self {
        Self::start(Kind::Core, config)
    }

    /// [`start`](Self::start) of a pub/sub layer.
    pub fn pubsub(config: &Json) -> Self {
        Self::start(Kind::PubSub, config)
    }

    /// Starts a layer whose clock is wrong by an offset such as `+2d`, `+90s` or `-5s`.
    pub fn with_clock(kind: Kind, config: &Json, offset: &str) -> Self {
        Self::launch(kind, config, &clock::shifted(offset))
    }

    fn launch(kind: Kind, config: &Json, env: &[(&str, String)]) -> Self {
        let errors = Arc::new(tempfile::tempfile().expect("a temporary file"));
        let name = if kind == Kind::Core { "core" } else { "pubsub" };
        let mut process = Command::new(python())
            .args(["-c", SCRIPT, name, &config.to_string()])
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().expect("an open file"))
            .spawn()
            .expect("Python starts");
        let orders = process.stdin.take();
        let answers = process.stdout.take().expect("stdout is a pipe");
        let (started, ready) = sync_channel(1);
        let waiting = Arc::new(Mutex::new(Some(HashMap::from([(0, started)]))));
        let reader = {
            let waiting = waiting.clone();
            thread::spawn(move || read(answers, &waiting))
        };
        let start = Pending { answer: ready, order: format!("the start with {config}"), errors: errors.clone() };
        let (last, reader) = (AtomicU64::new(0), Some(reader));
        let peer = Self { process, orders: Mutex::new(orders), waiting, last, reader, errors };
        start.value();
        peer
    }

    /// Gives an order and does not wait. Orders run side by side; each begins after those before it have
    /// begun. What is not an operation of its own is a method or an attribute of the layer.
    pub fn order(&self, operation: &str, arguments: &[Json]) -> Pending {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut words = vec![json!(number), json!(operation)];
        words.extend_from_slice(arguments);
        let order = Json::Array(words).to_string();
        let (sender, answer) = sync_channel(1);
        if let Some(waiting) = locked(&self.waiting).as_mut() {
            waiting.insert(number, sender);
        }
        if let Some(orders) = locked(&self.orders).as_mut() {
            // If it has ended, whoever waits for the answer is told.
            let _ = writeln!(orders, "{order}");
        }
        Pending { answer, order, errors: self.errors.clone() }
    }

    /// Gives an order and waits for its answer.
    #[track_caller]
    pub fn call(&self, operation: &str, arguments: &[Json]) -> Json {
        self.order(operation, arguments).value()
    }

    /// A new channel with the layer's default prefix.
    #[track_caller]
    pub fn new_channel(&self) -> String {
        let name = self.call("new_channel", &[]);
        name.as_str().expect("a name").to_owned()
    }

    /// Sends to a channel.
    #[track_caller]
    pub fn send(&self, channel: &str, message: &Json) {
        self.call("send", &[json!(channel), message.clone()]);
    }

    /// Adds a channel to a group. The pub/sub layer does not wait for Redis' confirmation.
    #[track_caller]
    pub fn group_add(&self, group: &str, channel: &str) {
        self.call("group_add", &[json!(group), json!(channel)]);
    }

    /// Takes a channel out of a group.
    #[track_caller]
    pub fn group_discard(&self, group: &str, channel: &str) {
        self.call("group_discard", &[json!(group), json!(channel)]);
    }

    /// Sends to a group.
    #[track_caller]
    pub fn group_send(&self, group: &str, message: &Json) {
        self.call("group_send", &[json!(group), message.clone()]);
    }

    /// Deletes everything the layer has.
    #[track_caller]
    pub fn flush(&self) {
        self.call("flush", &[]);
    }

    /// The next message of a channel, or `None` if none comes within the time. Nothing is cancelled in
    /// Python then: the next call goes on waiting.
    #[track_caller]
    pub fn receive(&self, channel: &str, within: Duration) -> Option<Json> {
        list(self.order("receive", &[json!(channel), json!(within.as_secs_f64())]).value_within(within)).pop()
    }

    /// The next `count` messages of a channel, or those that came within the time.
    #[track_caller]
    pub fn receive_many(&self, channel: &str, count: usize, within: Duration) -> Vec<Json> {
        let arguments = [json!(channel), json!(count), json!(within.as_secs_f64())];
        list(self.order("receive_many", &arguments).value_within(within))
    }

    /// All messages of a channel until none comes for `quiet`; begun now, waited for later.
    pub fn receive_all(&self, channel: &str, quiet: Duration) -> Pending {
        self.order("receive_all", &[json!(channel), json!(quiet.as_secs_f64())])
    }

    /// Sends a message `count` times, numbered from 0 in its `n`; the answer is how many did not meet
    /// `ChannelFull`.
    pub fn send_many(&self, channel: &str, message: &Json, count: usize) -> Pending {
        self.order("send_many", &[json!(channel), message.clone(), json!(count)])
    }

    /// Sends a message to a group `count` times, numbered from 0 in its `n`, pausing after each.
    pub fn group_send_many(&self, group: &str, message: &Json, count: usize, pause: Duration) -> Pending {
        self.order("group_send_many", &[json!(group), message.clone(), json!(count), json!(pause.as_secs_f64())])
    }

    /// So many tasks that open a channel, receive for 0 to 10 ms and are cancelled, over and over; the
    /// answer is the number of rounds.
    pub fn churn(&self, tasks: usize, time: Duration) -> Pending {
        self.order("churn", &[json!(tasks), json!(time.as_secs_f64())])
    }

    /// The process' clock, in Unix seconds.
    #[track_caller]
    pub fn time(&self) -> f64 {
        self.call("time", &[]).as_f64().expect("a number")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What the process wrote to its standard error so far.
    pub fn log(&self) -> String {
        log(&self.errors)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Pending {
    /// Waits for the answer, a minute at most.
    #[track_caller]
    pub fn result(self) -> Result<Json, PeerError> {
        self.result_within(Duration::ZERO)
    }

    /// Waits for the answer; for orders that take a given time by themselves.
    #[track_caller]
    pub fn result_within(self, time: Duration) -> Result<Json, PeerError> {
        match self.answer.recv_timeout(time + PATIENCE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => panic!("Python does not answer {}\n{}", self.order, log(&self.errors)),
            Err(RecvTimeoutError::Disconnected) => panic!("Python ended at {}\n{}", self.order, log(&self.errors)),
        }
    }

    /// The answer; panics with Python's error.
    #[track_caller]
    pub fn value(self) -> Json {
        self.value_within(Duration::ZERO)
    }

    /// The answer to an order that takes a given time by itself; panics with Python's error.
    #[track_caller]
    pub fn value_within(self, time: Duration) -> Json {
        let order = self.order.clone();
        self.result_within(time).unwrap_or_else(|error| panic!("{order}: {error}"))
    }

    /// The answer as a list, such as the messages of [`Peer::receive_all`].
    #[track_caller]
    pub fn list_within(self, time: Duration) -> Vec<Json> {
        list(self.value_within(time))
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.text)
    }
}

impl std::error::Error for PeerError {}

/// Hands each line to the call that waits for it, until the process ends.
fn read(answers: ChildStdout, waiting: &Mutex<Waiting>) {
    for line in BufReader::new(answers).lines() {
        let Ok(line) = line else { break };
        // Anything else was printed by a library.
        let Ok(Json::Array(words)) = serde_json::from_str::<Json>(&line) else { continue };
        let number = words.first().and_then(Json::as_u64);
        let text = |at: usize| words[at].as_str().unwrap_or_default().to_owned();
        let result = match words.len() {
            4 => Err(PeerError { kind: text(2), text: text(3) }),
            _ => Ok(words.get(1).cloned().unwrap_or_default()),
        };
        let sender = locked(waiting).as_mut().and_then(|waiting| waiting.remove(&number?));
        if let Some(sender) = sender {
            // Whoever gave the order may not want to know.
            let _ = sender.try_send(result);
        }
    }
    *locked(waiting) = None;
}

fn list(answer: Json) -> Vec<Json> {
    match answer {
        Json::Array(items) => items,
        other => panic!("{other} is not a list"),
    }
}

fn log(file: &File) -> String {
    let len = file.metadata().map_or(0, |data| data.len());
    let mut text = vec![0; len as usize];
    // Python writes where the file's one position is, so that must stay.
    match file.read_exact_at(&mut text, 0) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => error.to_string(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
