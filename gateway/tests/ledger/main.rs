//! The ledger: what was acknowledged reaches every member, in order, once, whatever happens to nodes,
//! Redis, PostgreSQL, the nodes' clocks and the clients' network.
//!
//! Publishers write down what was acknowledged, clients what they were shown; faults come by a schedule
//! that a seed makes. `GATEWAY_LONG=1` runs 200 clients through a minute of them, with several seeds;
//! `GATEWAY_LEDGER_SEED` is another seed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod book;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod doors;
mod missed;
mod random;
mod repeats;
mod run;
mod schedule;
mod site;
mod soak;
mod wire;

use std::time::Duration;

use run::Load;
use schedule::Schedule;
use site::Kind;
use tokio::sync::Mutex;

/// The stream of durable events.
const EVENTS: &str = "gateway:events";
const NODES: usize = 3;

const SHORT: Load = Load { clients: 60, rooms: 6, per_second: 25, seconds: 15 };
const LONG: Load = Load { clients: 200, rooms: 12, per_second: 30, seconds: 60 };

/// One run at a time: each is as much as a small machine can do.
static MACHINE: Mutex<()> = Mutex::const_new(());

fn is_long() -> bool {
    std::env::var_os("GATEWAY_LONG").is_some()
}

fn seeds(usual: &[u64]) -> Vec<u64> {
    let given = std::env::var("GATEWAY_LEDGER_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    given.map_or_else(|| usual.to_vec(), |seed| vec![seed])
}

fn schedule(seed: u64, load: Load) -> Schedule {
    Schedule::new(seed, Duration::from_secs(load.seconds), NODES)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_reaches_every_member_in_order_and_once() {
    let _machine = MACHINE.lock().await;
    let (load, seeds) = if is_long() { (LONG, seeds(&[1, 2, 3])) } else { (SHORT, seeds(&[1])) };
    for seed in seeds {
        let verdict = run::gateway(load, &schedule(seed, load), Kind::Gateway { lossy: false }).await;
        assert!(verdict.is_clean(), "seed {seed}: {verdict}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_hole_filling_and_resume_the_same_seed_is_seen_to_lose() {
    let _machine = MACHINE.lock().await;
    let (load, seeds) = if is_long() { (LONG, seeds(&[1])) } else { (SHORT, seeds(&[1])) };
    for seed in seeds {
        let verdict = run::gateway(load, &schedule(seed, load), Kind::Gateway { lossy: true }).await;
        assert!(!verdict.lost.is_empty() && !verdict.wrong.is_empty(), "seed {seed}: {verdict}");
        // Nothing is lost in the database: a lossy node stores as every other does.
        assert!(verdict.duplicates.is_empty(), "seed {seed}: {verdict}");
    }
}

/// N2: nodes are replaced one after another, as an update does it, and clients only know the balancer.
#[tokio::test(flavor = "multi_thread")]
async fn n2_a_rolling_restart_behind_a_balancer_loses_nothing_and_brings_nothing_twice() {
    let _machine = MACHINE.lock().await;
    let (load, rounds) = if is_long() { (Load { clients: 200, ..LONG }, 5) } else { (SHORT, 1) };
    let schedule = Schedule::rolling(NODES, rounds);
    let load = Load { seconds: schedule.length.as_secs(), ..load };
    let verdict = run::gateway(load, &schedule, Kind::Balanced).await;
    assert!(verdict.is_clean(), "{verdict}");
    // Of three nodes that go one after another each client may meet every one.
    assert!(verdict.connects <= load.clients * (1 + NODES * rounds), "{verdict}");
}

/// Ten minutes of load, churn and faults: memory, files, tasks and gauges are back where they were. The curves are drawn
/// into `target/soak.svg`, or with `GATEWAY_WRITE_DOCUMENTS=1` into `docs/soak.svg`. `GATEWAY_SOAK_SECONDS` is another
/// length.
#[tokio::test(flavor = "multi_thread")]
async fn what_nodes_take_in_ten_minutes_of_load_and_faults_is_given_back() {
    if !is_long() {
        return;
    }
    let _machine = MACHINE.lock().await;
    let given = std::env::var("GATEWAY_SOAK_SECONDS").ok();
    let seconds = given.map_or(600, |seconds| seconds.parse().expect("seconds are a number"));
    soak::soak(Load { clients: 90, rooms: 8, per_second: 20, seconds }, seeds(&[1])[0]).await;
}

/// The numbers are for reading: how the Python stack fares under the same load and the same faults.
#[tokio::test(flavor = "multi_thread")]
async fn the_python_stack_under_the_same_load_is_reported_beside_it() {
    if !is_long() {
        return;
    }
    let _machine = MACHINE.lock().await;
    let has_daphne = std::process::Command::new(testkit::python::python()).args(["-c", "import daphne"]).output();
    assert!(has_daphne.is_ok_and(|done| done.status.success()), "daphne is missing: run ./test.sh --long");
    for layer in ["core", "pubsub"] {
        let verdict = run::channels(LONG, &schedule(seeds(&[1])[0], LONG), layer).await;
        assert!(verdict.acked > 0, "{layer}: {verdict}");
    }
}
