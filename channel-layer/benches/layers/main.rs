//! This crate against Python's `channels_redis`, on the same Redis in one run:
//! `cargo bench -p channel-layer --bench layers [--profile quick] [-- [--quick] [FILTER]…]`.
//!
//! Sender and receiver are processes of their own, of either language, told what to do by this one, which
//! reads their CPU time and Redis' counters before and after. Each case is warmed up while the number of
//! events that fills its time is found; then that number is measured three times, and the median counts.
//! FILTER picks rows whose case, layer and peer contain all of the words.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark may panic")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "that is what it is for")]

mod meter;
mod process;
mod setup;
mod worker;

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::redis::RedisServer;

use self::{
    meter::{Counter, cpu},
    process::Process,
    setup::{CALLERS, GROUP, Kind, Layer, Peer, Setup},
};

const REPETITIONS: usize = 3;

/// Whose CPU time is compared with Python's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    Both,
    Sender,
    /// The sender is ours also for Python: it is fast enough for every receiver.
    Receiver,
}

struct Case {
    name: &'static str,
    /// The case of Python's to compare with.
    against: &'static str,
    kind: Kind,
    members: usize,
    callers: usize,
    compared: Compared,
    peers: &'static [Peer],
}

const ALL: &[Peer] = &[Peer::Relay, Peer::Channels, Peer::Python];

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { name: "group_send, 1 member, 1 caller", against: "group_send, 1 member, 1 caller",
           kind: Kind::Group, members: 1, callers: 1, compared: Compared::Both, peers: ALL },
    Case { name: "group_send, 1 member", against: "group_send, 1 member",
           kind: Kind::Group, members: 1, callers: CALLERS, compared: Compared::Both, peers: ALL },
    Case { name: "group_send_later, 1 member", against: "group_send, 1 member",
           kind: Kind::Later, members: 1, callers: 1, compared: Compared::Both, peers: &[Peer::Relay] },
    Case { name: "group_send, 100 members", against: "group_send, 100 members",
           kind: Kind::Group, members: 100, callers: CALLERS, compared: Compared::Both, peers: ALL },
    Case { name: "group_send, 10000 members", against: "group_send, 10000 members",
           kind: Kind::Group, members: 10_000, callers: CALLERS, compared: Compared::Both, peers: ALL },
    Case { name: "send", against: "send",
           kind: Kind::Direct, members: 1, callers: CALLERS, compared: Compared::Sender,
           peers: &[Peer::Channels, Peer::Python] },
    Case { name: "receive", against: "receive",
           kind: Kind::Direct, members: 1, callers: CALLERS, compared: Compared::Receiver, peers: ALL },
];

/// All values are per event, times in microseconds; or, in `events` and `rate`, of a repetition.
#[derive(Clone, Copy, Default)]
struct Sample {
    events: f64,
    rate: f64,
    sender: f64,
    receiver: f64,
    server: f64,
    commands: f64,
    bytes_in: f64,
    bytes_out: f64,
}

struct Row {
    case: &'static Case,
    layer: Layer,
    peer: Peer,
    sample: Sample,
}

impl Row {
    fn compared(&self) -> f64 {
        match self.case.compared {
            Compared::Both => self.sample.sender + self.sample.receiver,
            Compared::Sender => self.sample.sender,
            Compared::Receiver => self.sample.receiver,
        }
    }
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "worker") {
        return worker::run(&serde_json::from_str(&words[1]).unwrap());
    }
    if !words.iter().any(|word| word == "--bench") {
        println!("only `cargo bench` measures anything");
        return;
    }
    let quick = words.iter().any(|word| word == "--quick");
    words.retain(|word| !word.starts_with("--"));
    let budget = Duration::from_millis(if quick { 120 } else { 600 });
    let redis = RedisServer::start();
    let mut rows = Vec::new();
    for layer in [Layer::Core, Layer::PubSub] {
        for case in CASES {
            for &peer in case.peers {
                let title = format!("{} / {} / {}", layer.name(), case.name, peer.name());
                if words.iter().all(|word| title.contains(word.as_str())) {
                    eprintln!("{title}");
                    let sample = measure(&redis, layer, case, peer, budget, rows.len());
                    rows.push(Row { case, layer, peer, sample });
                }
            }
        }
    }
    print(&rows);
}

fn measure(redis: &RedisServer, layer: Layer, case: &Case, peer: Peer, budget: Duration, number: usize) -> Sample {
    let setup = Setup { layer, peer, kind: case.kind, members: case.members, callers: case.callers };
    let prefix = format!("bench{number}");
    redis.cli(&["FLUSHALL"]);
    let start = |role: &str, python: bool, channel: &str| {
        let argument = setup.argument(role, &redis.url(), &prefix, channel);
        let process = if python { Process::python(&argument) } else { Process::rust(&argument) };
        let ready: Value = serde_json::from_str(&process.answer()).unwrap();
        (process, ready)
    };
    let python = peer == Peer::Python;
    let (receiver, ready) = start("receiver", python, "");
    let channel = ready["channel"].as_str().unwrap();
    if layer == Layer::PubSub && python {
        let topic = if case.kind == Kind::Direct { channel.to_owned() } else { format!("{prefix}__group__{GROUP}") };
        subscribed(redis, &topic);
    }
    let (sender, _) = start("sender", python && case.compared != Compared::Receiver, channel);
    let mut run = Run { redis, sender, receiver, burst: setup.burst() };

    // The first one makes connections and wakes what sleeps.
    run.go(1);
    let mut events = 1;
    let events = loop {
        let start = Instant::now();
        run.go(events);
        let took = start.elapsed();
        if took * 3 > budget {
            break (events as f64 * budget.as_secs_f64() / took.as_secs_f64()).max(1.0) as usize;
        }
        events *= 2;
    };
    let samples: Vec<Sample> = (0..REPETITIONS).map(|_| run.measure(events)).collect();
    let median = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample {
        events: median(|it| it.events),
        rate: median(|it| it.rate),
        sender: median(|it| it.sender),
        receiver: median(|it| it.receiver),
        server: median(|it| it.server),
        commands: median(|it| it.commands),
        bytes_in: median(|it| it.bytes_in),
        bytes_out: median(|it| it.bytes_out),
    }
}

/// Python subscribes without waiting for Redis' confirmation, so we do.
fn subscribed(redis: &RedisServer, topic: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while redis.cli(&["PUBSUB", "NUMSUB", topic]) != format!("{topic}\n1") {
        assert!(Instant::now() < deadline, "nobody subscribes to {topic}");
        std::thread::yield_now();
    }
}

struct Run<'a> {
    redis: &'a RedisServer,
    sender: Process,
    receiver: Process,
    burst: usize,
}

impl Run<'_> {
    /// Sends so many events and waits until all of them have been received.
    fn go(&mut self, mut events: usize) {
        while events > 0 {
            let burst = events.min(self.burst);
            self.receiver.order(burst);
            self.sender.order(burst);
            self.sender.done();
            self.receiver.done();
            events -= burst;
        }
    }

    fn measure(&mut self, events: usize) -> Sample {
        let pids = [self.sender.pid(), self.receiver.pid(), self.redis.process().pid()];
        let counter = Counter::start(self.redis);
        let before = pids.map(cpu);
        let start = Instant::now();
        self.go(events);
        let took = start.elapsed();
        let after = pids.map(cpu);
        let counts = counter.stop(self.redis);
        let events = events as f64;
        let micros = |at: usize| (after[at] - before[at]).as_secs_f64() * 1e6 / events;
        Sample {
            events,
            rate: events / took.as_secs_f64(),
            sender: micros(0),
            receiver: micros(1),
            server: micros(2),
            commands: counts.commands as f64 / events,
            bytes_in: counts.bytes_in as f64 / events,
            bytes_out: counts.bytes_out as f64 / events,
        }
    }
}

fn print(rows: &[Row]) {
    let head = [
        "case",
        "layer",
        "peer",
        "events",
        "events/s",
        "sender µs",
        "receiver µs",
        "redis µs",
        "commands",
        "bytes in",
        "bytes out",
        "× Python",
    ];
    let mut table = vec![head.map(str::to_owned)];
    for row in rows {
        let python =
            rows.iter().find(|it| it.peer == Peer::Python && it.layer == row.layer && it.case.name == row.case.against);
        let ratio = python.map_or_else(String::new, |python| number(python.compared() / row.compared()));
        let Sample { events, rate, sender, receiver, server, commands, bytes_in, bytes_out } = row.sample;
        let sender = if row.case.compared == Compared::Receiver { "-".to_owned() } else { number(sender) };
        table.push([
            row.case.name.to_owned(),
            row.layer.name().to_owned(),
            row.peer.name().to_owned(),
            number(events),
            number(rate),
            sender,
            number(receiver),
            number(server),
            number(commands),
            number(bytes_in),
            number(bytes_out),
            ratio,
        ]);
    }
    println!("CPU time, Redis' commands (those inside scripts too) and bytes are per event; the last column compares");
    println!(
        "the rate per CPU second: of the sender for `send`, of the receiver for `receive`, else of both together.\n"
    );
    let width = |at: usize| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for (line, row) in table.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
            0..3 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        if line == 0 {
            let rules = widths.iter().enumerate().map(|(at, width)| match at {
                0..3 => "-".repeat(*width),
                _ => format!("{}:", "-".repeat(width - 1)),
            });
            println!("| {} |", rules.collect::<Vec<_>>().join(" | "));
        }
    }
}

fn number(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
