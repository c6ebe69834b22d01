//! A server never outlives its test, however the test ends.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use testkit::redis::RedisServer;

fn wait_for(what: &str, mut yes: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !yes() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
    }
}

#[test]
fn a_dropped_server_is_dead_and_its_directory_gone() {
    let redis = RedisServer::start();
    let (pid, dir) = (redis.process().pid(), redis.process().dir().to_owned());
    assert_eq!(redis.cli(&["PING"]), "PONG");
    assert!(dir.is_dir());
    drop(redis);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!dir.exists());
}

#[test]
fn a_server_dies_with_a_killed_test_process() {
    // This test starts itself as another process that starts a server and waits to be killed.
    if std::env::var_os("TESTKIT_VICTIM").is_some() {
        let redis = RedisServer::start();
        eprintln!("victim {} {}", redis.process().pid(), redis.process().dir().display());
        loop {
            std::thread::park();
        }
    }
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_dies_with_a_killed_test_process", "--nocapture"])
        .env("TESTKIT_VICTIM", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(victim.stderr.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|line| line.starts_with("victim ")).unwrap();
    let mut words = line.split(' ').skip(1);
    let pid = words.next().unwrap().to_owned();
    let dir = words.next().unwrap().to_owned();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_for("the server's end", || !Path::new(&format!("/proc/{pid}")).exists());
    wait_for("the directory's end", || !Path::new(&dir).exists());
}

#[test]
fn a_server_can_be_paused_killed_and_restarted_empty() {
    let mut redis = RedisServer::start();
    redis.cli(&["SET", "key", "value"]);
    redis.pause();
    redis.resume();
    assert_eq!(redis.cli(&["GET", "key"]), "value");
    let port = redis.port();
    redis.kill();
    assert!(!redis.process().running());
    redis.restart_empty();
    assert_eq!(redis.port(), port);
    assert_eq!(redis.cli(&["GET", "key"]), "");
}
