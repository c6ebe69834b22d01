//! The real worker: Channels' consumers and an application by hand, in Python, behind a node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use testkit::process::{Guarded, private_dir};
use tokio_tungstenite::tungstenite::Message;

use super::common::{eventually, eventually_within};
use super::worker::SECRET;
use super::{Guest, Site};

/// A worker process with the application of the tests.
struct Python {
    process: Guarded,
}

fn interpreter() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/django/5.2/bin/python");
    assert!(path.is_file(), "{} is missing: run ./test.sh --install-only", path.display());
    path
}

impl Python {
    fn start(site: &Site, number: usize, own: &[&str]) -> Self {
        let dir = private_dir("worker");
        let (notes, listen) = (dir.join("notes"), format!("unix:{}", site.socket(number).display()));
        let path = [
            concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/django"),
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bridge"),
        ];
        let env = [
            ("PYTHONPATH", path.join(":")),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
            ("TEST_NOTES", notes.to_str().unwrap().to_owned()),
            ("GATEWAY_BRIDGE__SECRET", SECRET.to_owned()),
        ];
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let arguments = ["-m", "channel_gateway.worker", "application:application", "--listen", &listen];
        let arguments: Vec<&str> = arguments.iter().chain(own).copied().collect();
        Self { process: Guarded::spawn_with(dir, "KILL", &env, interpreter(), arguments) }
    }

    /// How its consumers have ended, so far.
    fn notes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.process.dir().join("notes")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn noted(&self, wanted: &[&str]) {
        eventually(&format!("{wanted:?} is noted"), || async { self.notes() == wanted }).await;
    }
}

async fn site_with(count: usize, own: &[(&str, &str)], of_worker: &[&str]) -> (Site, Vec<Python>) {
    let own: Vec<_> = own.iter().chain(&[("bridge.path", "/ws/")]).copied().collect();
    let site = Site::start(&own).await;
    let workers: Vec<_> = (1..=count).map(|number| Python::start(&site, number, of_worker)).collect();
    linked(&site, count).await;
    (site, workers)
}

async fn linked(site: &Site, count: usize) {
    eventually_within(Duration::from_secs(60), "the workers are linked", || async {
        site.metric("gateway_bridge_links{path=\"/ws/\"}").await == count as f64
    })
    .await;
}

async fn open(site: &Site, path: &str) -> Guest {
    site.knock(path, &[]).await.unwrap().unwrap()
}

async fn json_of(guest: &mut Guest) -> Value {
    serde_json::from_str(&guest.text().await).unwrap()
}

#[tokio::test]
async fn consumers_of_channels_run_unchanged() {
    let (site, workers) = site_with(1, &[("bridge.frame_bytes", "2000000")], &[]).await;
    let python = &workers[0];
    let offered = [("sec-websocket-protocol", "chat, gateway.v1")];
    let mut guest = site.knock("/ws/sync/", &offered).await.unwrap().unwrap();
    let answer = guest.response.headers();
    assert!(answer["sec-websocket-protocol"] == "chat" && answer["x-from"] == "python", "{answer:?}");
    assert_eq!(answer.get_all("set-cookie").iter().count(), 2);
    let large = "é".repeat(900_000);
    for text in ["hello", "", "\u{1f600}", &large] {
        guest.send(Message::text(text)).await;
        assert_eq!(guest.text().await, text);
    }
    guest.send(Message::binary(vec![1, 2, 255])).await;
    assert_eq!(guest.next().await.into_data()[..], [255, 2, 1]);
    // One instance for each socket.
    let count = format!("{} 6", python.process.pid());
    guest.send(Message::text("pid")).await;
    assert_eq!(guest.text().await, count);
    guest.send(Message::text("close 4321 see you")).await;
    assert_eq!(guest.closed().await, (4321, "see you".to_owned()));
    python.noted(&["sync 4321"]).await;

    let mut guest = open(&site, "/ws/json/lobby/").await;
    assert_eq!(json_of(&mut guest).await, json!({"kwargs": {"name": "lobby"}, "path": "/ws/json/lobby/"}));
    guest.send(Message::text(r#"{"a":[1,2]}"#)).await;
    assert_eq!(json_of(&mut guest).await, json!({"a": [1, 2]}));
    guest.close(4004, "bye").await;
    python.noted(&["sync 4321", "json 4004"]).await;
    let mut guest = open(&site, "/ws/sync/").await;
    guest.send(Message::text("raise")).await;
    assert_eq!(guest.closed().await.0, 1011);
    let guest = open(&site, "/ws/sync/").await;
    drop(guest);
    eventually("the lost one is noted", || async { python.notes().contains(&"sync 1006".to_owned()) }).await;
}

#[tokio::test]
async fn refusals_of_every_kind_reach_the_browser() {
    let (site, _workers) = site_with(1, &[("limits.handshake_seconds", "3")], &[]).await;
    for (path, status) in [
        ("/ws/refuses/", 403),
        ("/ws/nowhere/", 500),
        ("/ws/by-hand/?raise", 500),
        ("/ws/by-hand/", 500),
        ("/ws/by-hand/?late", 503),
    ] {
        assert_eq!(site.refused(path, &[]).await, status, "{path}");
    }
    let response = site.knock("/ws/by-hand/?response", &[]).await.unwrap().err().unwrap();
    assert!(response.status() == 418 && response.headers()["x-tea"] == "pot", "{response:?}");
    assert_eq!(response.body().as_deref(), Some(&b"short"[..]));
    assert_eq!(open(&site, "/ws/by-hand/?ends").await.closed().await.0, 1000);
}

#[tokio::test]
async fn a_flood_either_way_waits_and_stays_in_order() {
    let (site, workers) = site_with(1, &[("bridge.slow_seconds", "60")], &[]).await;
    let mut guest = open(&site, "/ws/json/a/").await;
    json_of(&mut guest).await;
    let resident = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", workers[0].process.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    let before = resident();
    // 80 MB for a client that does not read at first.
    guest.send(Message::text("\"flood\"")).await;
    workers[0].noted(&["send waits"]).await;
    assert!(resident() < before + 30_000, "{} kB after {before}", resident());
    for number in 0..4_000_u32 {
        assert_eq!(guest.next().await.into_data()[..4], number.to_le_bytes());
    }
    assert_eq!(json_of(&mut guest).await, "flooded");
    // And 40 MB to a consumer that sleeps at first.
    guest.send(Message::text("\"sleep\"")).await;
    let before = resident();
    let long = "x".repeat(40_000);
    let (mut sent, mut heard) = (0, 0);
    assert_eq!(
        {
            let mut all = Vec::new();
            while heard < 1_000 {
                if sent < 1_000 && sent - heard < 40 {
                    guest.send(Message::text(format!("[{sent},\"{long}\"]"))).await;
                    sent += 1;
                    continue;
                }
                let next = json_of(&mut guest).await;
                if next == "sleep" {
                    assert!(resident() < before + 30_000);
                    continue;
                }
                all.push(next[0].as_u64().unwrap());
                heard += 1;
            }
            all
        },
        (0..1_000).collect::<Vec<u64>>()
    );
}

#[tokio::test]
async fn workers_that_die_hang_or_leave_send_their_sockets_elsewhere() {
    let (site, mut workers) = site_with(2, &[], &["--drain-seconds", "2"]).await;
    let mut guests = join_all((0..20).map(|_| open(&site, "/ws/sync/"))).await;
    let mut of: [Vec<Guest>; 2] = [Vec::new(), Vec::new()];
    for mut guest in guests.drain(..) {
        guest.send(Message::text("pid")).await;
        let pid = guest.text().await;
        let first = pid.starts_with(&format!("{} ", workers[0].process.pid()));
        of[usize::from(!first)].push(guest);
    }
    assert!(of.iter().all(|guests| guests.len() >= 5), "{} and {}", of[0].len(), of[1].len());
    // Killed: all of them at once, and nobody else.
    workers[0].process.kill();
    for guest in &mut of[0] {
        let (code, reason) = guest.closed().await;
        assert!(code == 1012 && reason.starts_with("retry=0-"), "{code} {reason}");
    }
    for guest in &mut of[1] {
        guest.send(Message::text("still here")).await;
        assert_eq!(guest.text().await, "still here");
    }
    // Asked to leave: told, spread, and their consumers hear it.
    let third = Python::start(&site, 3, &[]);
    linked(&site, 2).await;
    workers[1].process.signal("TERM");
    for guest in &mut of[1] {
        assert_eq!(guest.closed().await.0, 1012);
    }
    eventually("its consumers have heard it", || async {
        workers[1].notes().iter().filter(|note| *note == "sync 1012").count() == of[1].len()
    })
    .await;
    let mut guest = open(&site, "/ws/sync/").await;
    guest.send(Message::text("pid")).await;
    assert!(guest.text().await.starts_with(&format!("{} ", third.process.pid())));
    // A node that leaves tells the consumers, too.
    let Site { node, directory } = site;
    let (left, _) = tokio::join!(node.running.drain(), guest.closed());
    assert_eq!(left, 0);
    third.noted(&["sync 1012"]).await;
    drop(directory);
}

#[tokio::test]
async fn a_frozen_worker_keeps_its_sockets_and_gets_no_new_ones() {
    let (site, mut workers) = site_with(2, &[], &[]).await;
    let mut guest = open(&site, "/ws/sync/").await;
    guest.send(Message::text("pid")).await;
    let pid = guest.text().await;
    let frozen = usize::from(!pid.starts_with(&format!("{} ", workers[0].process.pid())));
    workers[frozen].process.pause();
    guest.send(Message::text("later")).await;
    eventually_within(Duration::from_secs(40), "it is missed", || async {
        let workers = site.door().api("GET", "/api/nodes", None).await.1["workers"].clone();
        workers.as_array().unwrap().iter().any(|worker| worker["state"] == "silent")
    })
    .await;
    for _ in 0..5 {
        let mut other = open(&site, "/ws/sync/").await;
        other.send(Message::text("pid")).await;
        assert!(other.text().await.starts_with(&format!("{} ", workers[1 - frozen].process.pid())));
    }
    workers[frozen].process.resume();
    assert_eq!(guest.text().await, "later");
}
