//! What storing costs: `cargo bench -p gateway --bench durable [--profile quick] [-- [DATABASE]…]`.
//!
//! A node with Redis and a database that syncs to the disk; a process of its own publishes through
//! sockets. DATABASE is `postgresql`, `mariadb` or `sqlite`; without one, all three.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark may panic")]
#![allow(clippy::print_stdout, reason = "that is what it is for")]

#[path = "../../tests/common/mod.rs"]
mod common;
mod load;
mod meter;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::mariadb::MariaDb;
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use common::TestNode;
use load::Order;
use meter::{Cpu, cpu_of};

const MEASURED: Duration = Duration::from_secs(6);
const WARM_UP: Duration = Duration::from_secs(2);
const DATABASES: [&str; 3] = ["postgresql", "mariadb", "sqlite"];
/// Entries of the stream that are taken in one measurement.
const ENTRIES: usize = 20_000;

/// A database and whose process it is.
struct Database {
    url: String,
    pid: Option<u32>,
    _keeps: Box<dyn std::any::Any>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if arguments.first().is_some_and(|first| first == "load") {
        return runtime.block_on(load::work(arguments[1].parse().unwrap()));
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == name);
    for name in DATABASES.into_iter().filter(|name| wanted(name)) {
        runtime.block_on(measure(name));
    }
}

fn start(name: &str) -> Database {
    match name {
        "postgresql" => {
            let server = Postgres::start_durable();
            Database { url: server.fresh_database(), pid: Some(server.pid()), _keeps: Box::new(server) }
        }
        "mariadb" => {
            let server = MariaDb::start_durable();
            Database { url: server.fresh_database(), pid: Some(server.pid()), _keeps: Box::new(server) }
        }
        _ => {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}?mode=rwc", directory.path().join("gateway.db").display());
            Database { url, pid: None, _keeps: Box::new(directory) }
        }
    }
}

/// The process that publishes.
struct Loader {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Loader {
    fn start(node: &TestNode) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["load", &node.running.public.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let orders = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, orders, answers }
    }

    async fn ask(&mut self, order: &Order) -> Value {
        let line = format!("{}\n", serde_json::to_string(order).unwrap());
        self.orders.write_all(line.as_bytes()).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Value {
        serde_json::from_str(&self.answers.next_line().await.unwrap().expect("the loader lives")).unwrap()
    }
}

async fn measure(name: &str) {
    let (redis, database) = (RedisServer::start(), start(name));
    let node = TestNode::start(&[
        ("redis-url", &redis.url()),
        ("database-url", &database.url),
        ("limits.frames_per_second", "0"),
        ("limits.outbox_bytes", "16777216"),
    ])
    .await;
    let mut loader = Loader::start(&node);
    println!("\n{name}");
    let cases = [
        ("1,000 inboxes, as fast as it goes", 1000, None),
        ("one inbox, as fast as it goes", 1, None),
        ("1,000 inboxes, 1,000 a second", 1000, Some(1000)),
    ];
    for (case, inboxes, per_second) in cases {
        loader.ask(&Order::Publish { inboxes, per_second, seconds: WARM_UP.as_secs() }).await;
        let pids = [Some(std::process::id()), database.pid, loader.process.id(), Some(redis.process().pid())];
        let (before, statements) = (Cpu::read(pids), node.running.node().store.statements());
        let order = Order::Publish { inboxes, per_second, seconds: MEASURED.as_secs() };
        let result = loader.ask(&order).await;
        let acked = result["acked"].as_f64().unwrap();
        let statements = (node.running.node().store.statements() - statements) as f64 / acked;
        let [own, server, load, redis] = Cpu::read(pids).since(&before).map(|time| time.as_secs_f64() * 1e6 / acked);
        println!(
            "  {case}: {:.0} a second, ack after {} (p99 {}), ping {}",
            acked / result["seconds"].as_f64().unwrap(),
            micros(&result["p50"]),
            micros(&result["p99"]),
            micros(&result["ping"])
        );
        println!(
            "    {statements:.3} statements a message; CPU µs a message: node {own:.0}, database {server:.0}, loader {load:.0}, Redis {redis:.0}"
        );
    }
    stream(&redis, &node, database.pid).await;
    resume(&node, &mut loader).await;
}

fn micros(value: &Value) -> String {
    format!("{:.2} ms", value.as_f64().unwrap_or_default() / 1e3)
}

/// How fast the stream of durable events is taken in.
async fn stream(server: &RedisServer, node: &TestNode, database: Option<u32>) {
    let mut connection = redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let store = &node.running.node().store;
    let (own, theirs) = (cpu_of(std::process::id()), database.map(cpu_of).unwrap_or_default());
    let (began, statements) = (Instant::now(), store.statements());
    for part in 0..ENTRIES / 500 {
        let mut pipe = redis::pipe();
        for number in 0..500 {
            let (id, to) = (format!("{part}/{number}"), format!("user:user-{}", number % 100));
            let data = json!({"message": load::TEXT, "from_user": "shop"}).to_string();
            let fields =
                [("id", id.as_str()), ("source", "bench"), ("type", "notification"), ("to", &to), ("data", &data)];
            pipe.cmd("XADD").arg("gateway:events").arg("*").arg(&fields).ignore();
        }
        pipe.query_async::<()>(&mut connection).await.unwrap();
    }
    loop {
        let left: usize = redis::cmd("XLEN").arg("gateway:events").query_async(&mut connection).await.unwrap();
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (took, entries) = (began.elapsed().as_secs_f64(), ENTRIES as f64);
    let own = (cpu_of(std::process::id()) - own).as_secs_f64() * 1e6 / entries;
    let theirs = (database.map(cpu_of).unwrap_or_default() - theirs).as_secs_f64() * 1e6 / entries;
    println!("  {ENTRIES} entries of the stream: {:.0} a second", entries / took);
    println!(
        "    {:.3} statements an entry; CPU µs an entry: node {own:.0} (the XADD included), database {theirs:.0}",
        (store.statements() - statements) as f64 / entries
    );
}

/// A thousand clients come back at once, each of whom has missed something.
async fn resume(node: &TestNode, loader: &mut Loader) {
    loader.ask(&Order::Connect { clients: 1000, room: "crowd".into() }).await;
    let missed: Vec<Value> = (0..20)
        .map(|_| json!({"type": "chat", "to": "room:crowd", "data": {"message": load::TEXT, "from_user": "shop"}}))
        .collect();
    assert_eq!(node.at().api("POST", "/api/events", Some(missed.into())).await.0, 200);
    loader.ask(&Order::Connect { clients: 1000, room: "crowd".into() }).await;
    let store = &node.running.node().store;
    let (own, statements) = (cpu_of(std::process::id()), store.statements());
    let result = loader.ask(&Order::Resume { frames: 20 }).await;
    println!(
        "  1,000 clients resume 20 frames each at once: all in {}, {} statements, node {:.0} ms CPU",
        micros(&result["all"]),
        store.statements() - statements,
        (cpu_of(std::process::id()) - own).as_secs_f64() * 1e3
    );
}
