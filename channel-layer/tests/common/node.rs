//! A process of the test's own that holds a core layer: it can be stopped, killed, and have a wrong clock.
//!
//! It is the test's program itself, started once more for the one test `node_process`, which every file that
//! uses this must have, beside the module `log`:
//!
//! ```ignore
//! #[test]
//! fn node_process() {
//!     node::run();
//! }
//! ```
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio, exit},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, RedisCoreLayer, Relay, RelaySink};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

use crate::log::Log;

const CONFIG: &str = "TEST_NODE";
/// Before every answer, as the test program writes lines of its own.
const MARK: &str = "@node@";

/// The process; ends with its value, or with the test's process.
pub struct Node {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Node {
    /// `config`: `hosts`, and as far as it is to be changed `clients`, `heartbeat` and `alive` (milliseconds).
    pub fn start(config: &Json) -> Self {
        Self::with_env(config, Vec::new())
    }

    /// With a clock that is wrong by an offset such as `+2d`.
    pub fn with_clock(config: &Json, offset: &str) -> Self {
        Self::with_env(config, testkit::clock::shifted(offset))
    }

    fn with_env(config: &Json, env: Vec<(&'static str, String)>) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "node_process", "--nocapture", "--test-threads=2"])
            .env(CONFIG, config.to_string())
            .envs(env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut node = Self { process, orders, answers };
        node.answer();
        node
    }

    fn answer(&mut self) -> Json {
        loop {
            let line = self.answers.next().expect("the node lives").unwrap();
            if let Some((_, answer)) = line.split_once(MARK) {
                return serde_json::from_str(answer).unwrap();
            }
        }
    }

    fn order(&mut self, order: &Json) -> Json {
        writeln!(self.orders, "{order}").unwrap();
        self.answer()
    }

    /// The node's relay joins groups.
    pub fn join(&mut self, groups: &[&str]) {
        self.order(&json!({ "join": groups }));
    }

    /// So many channels of its own join a group; the names of all.
    pub fn open(&mut self, count: usize, group: &str) -> Vec<String> {
        let names = self.order(&json!({ "open": count, "group": group }));
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    /// A channel of its relay's.
    pub fn relay_channel(&mut self) -> String {
        self.order(&json!({ "channel": true })).as_str().unwrap().to_owned()
    }

    /// Sends to a group; whether that worked.
    pub fn group_send(&mut self, group: &str, n: i64) -> bool {
        self.order(&json!({ "send": group, "n": n })) == json!(true)
    }

    /// How many events the relay has been given.
    pub fn count(&mut self) -> u64 {
        self.order(&json!({ "count": true })).as_u64().unwrap()
    }

    /// The most memory the process ever had, in KiB.
    pub fn peak(&mut self) -> u64 {
        self.order(&json!({ "peak": true })).as_u64().unwrap()
    }

    /// Its wall clock, in Unix seconds.
    pub fn time(&mut self) -> f64 {
        self.order(&json!({ "time": true })).as_f64().unwrap()
    }

    /// The lines of its log that hold this text.
    pub fn log(&mut self, text: &str) -> Vec<String> {
        serde_json::from_value(self.order(&json!({ "log": text }))).unwrap()
    }

    /// How many payloads it could not read.
    pub fn undecodable(&mut self) -> u64 {
        self.order(&json!({ "undecodable": true })).as_u64().unwrap()
    }

    /// After `STOP` it returns when each thread stands still: they stop one by one.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success(), "kill -{signal}");
        if signal == "STOP" {
            testkit::wait::until("the node stands still", Duration::from_secs(30), || {
                testkit::process::stands_still(self.process.id())
            });
        }
    }

    /// Kills it, as a crash does.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the process does, if this is one.
pub fn run() {
    let Ok(config) = std::env::var(CONFIG) else { return };
    let config: Json = serde_json::from_str(&config).unwrap();
    let log = Log::of_all_threads();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(serve(&config, log));
}

struct Counter(Arc<AtomicU64>);

impl RelaySink for Counter {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        let events = batch.iter().filter(|it| matches!(it, Delivery::Group { .. } | Delivery::Channel { .. }));
        self.0.fetch_add(events.count() as u64, Ordering::SeqCst);
    }
}

struct State {
    layer: RedisCoreLayer,
    relay: Relay,
    count: Arc<AtomicU64>,
    log: Log,
}

async fn serve(config: &Json, log: Log) {
    let hosts: Vec<String> = serde_json::from_value(config["hosts"].clone()).unwrap();
    let millis = |key: &str, default| Duration::from_millis(config[key].as_u64().unwrap_or(default));
    let layer = RedisCoreLayer::builder_with_hosts(hosts)
        .client_ids(config["clients"].as_u64().unwrap_or(4) as usize)
        .intervals(millis("heartbeat", 5_000), millis("alive", 45_000))
        .connect()
        .await
        .unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let relay = layer.relay(Arc::new(Counter(count.clone()))).await.unwrap();
    let state = State { layer, relay, count, log };
    let (sender, mut orders) = mpsc::channel(100);
    thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { break };
            sender.blocking_send(line).unwrap();
        }
        // Whoever gave the orders is gone.
        exit(0);
    });
    tell(&json!("ready"));
    while let Some(order) = orders.recv().await {
        let order: Json = serde_json::from_str(&order).unwrap();
        tell(&obey(&state, &order).await);
    }
}

fn tell(answer: &Json) {
    let mut out = std::io::stdout();
    writeln!(out, "{MARK}{answer}").unwrap();
    out.flush().unwrap();
}

async fn obey(state: &State, order: &Json) -> Json {
    let (kind, argument) = order.as_object().unwrap().iter().find(|(key, _)| *key != "n" && *key != "group").unwrap();
    match &**kind {
        "join" => {
            let names: Vec<String> = serde_json::from_value(argument.clone()).unwrap();
            let groups: Vec<GroupName> = names.iter().map(|name| GroupName::parse(name).unwrap()).collect();
            state.relay.join(&groups).await.unwrap();
            json!(true)
        }
        "open" => {
            let group = GroupName::parse(order["group"].as_str().unwrap()).unwrap();
            let mut names = Vec::new();
            for _ in 0..argument.as_u64().unwrap() {
                let channel = state.layer.new_channel("").await.unwrap();
                state.layer.group_add(&group, &channel).await.unwrap();
                names.push(channel.as_str().to_owned());
            }
            json!(names)
        }
        "channel" => json!(state.relay.new_channel().as_str()),
        "send" => {
            let group = GroupName::parse(argument.as_str().unwrap()).unwrap();
            let event = Event::new("test.message").with("n", order["n"].as_i64().unwrap());
            json!(state.layer.group_send(&group, &event).await.is_ok())
        }
        "count" => json!(state.count.load(Ordering::SeqCst)),
        "log" => {
            let lines = state.log.lines();
            json!(lines.iter().filter(|line| line.contains(argument.as_str().unwrap())).collect::<Vec<_>>())
        }
        "undecodable" => json!(state.layer.stats().undecodable),
        "peak" => {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            json!(line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap())
        }
        "time" => json!(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()),
        other => panic!("{other}"),
    }
}
