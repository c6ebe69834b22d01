//! The Rust side of the benchmark: a process of its own, so that its CPU time can be told apart.
//!
//! Reads a number per line: a sender sends as many events, a receiver waits for as many more; each answers
//! "done". Ends when its standard input ends.

use std::{
    io::{BufRead, Write},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use channel_layer::{
    ChannelLayer, ChannelName, Delivery, Event, GroupName, LayerError, RedisCoreLayer, RedisPubSubLayer, Relay,
    RelaySink,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinSet};

use crate::setup::GROUP;

type Layer = Arc<dyn ChannelLayer>;

/// One thread for everything the layer does, as in Python.
pub(crate) fn run(setup: &Value) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut tasks = JoinSet::new();
    let worker = on(&runtime, &mut tasks, start(setup.clone()));
    for line in std::io::stdin().lock().lines() {
        let count = line.unwrap().parse().unwrap();
        on(&runtime, &mut tasks, worker.clone().obey(count));
        say("done");
    }
    // The layer's connections end with the process, also if something still waits.
    std::process::exit(0);
}

/// Runs it on the runtime's own thread.
fn on<T: Send + 'static>(
    runtime: &tokio::runtime::Runtime,
    tasks: &mut JoinSet<()>,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let task = async move {
        sender.send(work.await).unwrap();
    };
    tasks.spawn_on(task, runtime.handle());
    receiver.recv().unwrap()
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").unwrap();
    out.flush().unwrap();
}

#[derive(Clone)]
enum Worker {
    Sender(Sender),
    Receiver(Arc<Receiver>),
}

impl Worker {
    async fn obey(self, count: usize) {
        match self {
            Self::Sender(sender) => sender.send(count).await,
            Self::Receiver(receiver) => receiver.tally.wait(count * receiver.fan_out).await,
        }
    }
}

async fn start(setup: Value) -> Worker {
    let (url, prefix) = (setup["url"].as_str().unwrap(), setup["prefix"].as_str().unwrap());
    let layer: Layer = match setup["layer"].as_str() {
        Some("core") => {
            let capacity = setup["capacity"].as_u64().unwrap() as usize;
            Arc::new(RedisCoreLayer::builder(url).prefix(prefix).capacity(capacity).connect().await.unwrap())
        }
        _ => Arc::new(RedisPubSubLayer::builder(url).prefix(prefix).connect().await.unwrap()),
    };
    match setup["role"].as_str() {
        Some("sender") => {
            say("{}");
            Worker::Sender(Sender {
                layer,
                event: Arc::new(Event::from_serialize(&setup["event"]).unwrap()),
                kind: setup["kind"].as_str().unwrap().to_owned(),
                channel: ChannelName::parse_any(setup["channel"].as_str().unwrap()).unwrap(),
                callers: setup["callers"].as_u64().unwrap() as usize,
            })
        }
        _ => {
            let receiver = Receiver::start(layer, &setup).await;
            say(&json!({"channel": receiver.channel.as_str()}).to_string());
            Worker::Receiver(Arc::new(receiver))
        }
    }
}

fn group() -> GroupName {
    GroupName::parse(GROUP).unwrap()
}

// ---- sending ----

#[derive(Clone)]
struct Sender {
    layer: Layer,
    event: Arc<Event>,
    kind: String,
    channel: ChannelName,
    callers: usize,
}

impl Sender {
    async fn send(self, count: usize) {
        if self.kind == "later" {
            return self.send_later(count).await;
        }
        let mut callers = JoinSet::new();
        for at in 0..self.callers {
            let share = count / self.callers + usize::from(at < count % self.callers);
            callers.spawn(self.clone().call(share));
        }
        callers.join_all().await;
    }

    async fn call(self, count: usize) {
        let group = group();
        for _ in 0..count {
            match self.kind.as_str() {
                "group" => self.layer.group_send(&group, &self.event).await.unwrap(),
                _ => self.layer.send(&self.channel, &self.event).await.unwrap(),
            }
        }
    }

    async fn send_later(&self, count: usize) {
        let group = group();
        for _ in 0..count {
            match self.layer.group_send_later(&group, &self.event) {
                Ok(()) => {}
                Err(LayerError::QueueFull) => {
                    self.layer.ping().await.unwrap();
                    self.layer.group_send_later(&group, &self.event).unwrap();
                }
                Err(error) => panic!("{error}"),
            }
        }
        self.layer.ping().await.unwrap();
    }
}

// ---- receiving ----

/// Deliveries still to come.
#[derive(Default)]
struct Tally {
    left: AtomicI64,
    complete: Notify,
}

impl Tally {
    fn add(&self, count: usize) {
        let count = count as i64;
        let left = self.left.fetch_sub(count, Ordering::AcqRel);
        if left > 0 && left <= count {
            self.complete.notify_one();
        }
    }

    async fn wait(&self, count: usize) {
        let before = self.left.fetch_add(count as i64, Ordering::AcqRel);
        if before + count as i64 > 0 {
            self.complete.notified().await;
        }
    }
}

struct Receiver {
    channel: ChannelName,
    tally: Arc<Tally>,
    fan_out: usize,
    _relay: Option<Relay>,
    _readers: JoinSet<()>,
}

/// A relay's members: each keeps the last event it was given.
struct Members {
    tally: Arc<Tally>,
    members: Mutex<Vec<Option<Arc<Event>>>>,
}

impl RelaySink for Members {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        let mut members = self.members.lock();
        for delivery in batch.drain(..) {
            match delivery {
                Delivery::Group { event, .. } => {
                    members.iter_mut().for_each(|member| *member = Some(event.clone()));
                    self.tally.add(members.len());
                }
                Delivery::Channel { event, .. } => {
                    members[0] = Some(event);
                    self.tally.add(1);
                }
                _ => {}
            }
        }
    }
}

impl Receiver {
    async fn start(layer: Layer, setup: &Value) -> Self {
        let tally = Arc::new(Tally::default());
        let members = setup["members"].as_u64().unwrap() as usize;
        let grouped = setup["kind"] == "group";
        let fan_out = if grouped { members } else { 1 };
        let mut readers = JoinSet::new();
        if setup["relay"] == true {
            let sink = Members { tally: tally.clone(), members: Mutex::new(vec![None; members]) };
            let relay = layer.relay(Arc::new(sink)).await.unwrap();
            if grouped {
                relay.join(&[group()]).await.unwrap();
            }
            return Self { channel: relay.new_channel(), tally, fan_out, _relay: Some(relay), _readers: readers };
        }
        let mut last = None;
        for _ in 0..fan_out {
            let channel = layer.new_channel("").await.unwrap();
            if grouped {
                layer.group_add(&group(), &channel).await.unwrap();
            }
            readers.spawn(read(layer.clone(), channel.clone(), tally.clone()));
            last = Some(channel);
        }
        Self { channel: last.unwrap(), tally, fan_out, _relay: None, _readers: readers }
    }
}

async fn read(layer: Layer, channel: ChannelName, tally: Arc<Tally>) {
    loop {
        layer.receive(&channel).await.unwrap();
        tally.add(1);
    }
}
