//! The proxy does to a link what it is told.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use testkit::{
    proxy::{ChaosProxy, Way},
    redis::RedisServer,
    wait,
};

const PATIENCE: Duration = Duration::from_secs(10);

struct Client(TcpStream);

impl Client {
    fn of(proxy: &ChaosProxy) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&mut self, command: &str) {
        self.0.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    }

    #[track_caller]
    fn hears(&mut self, wanted: &str) {
        let mut bytes = vec![0; wanted.len()];
        self.0.read_exact(&mut bytes).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), wanted);
    }

    fn works(&mut self) {
        self.say("PING");
        self.hears("+PONG\r\n");
    }

    #[track_caller]
    fn is_reset(&mut self) {
        let mut rest = Vec::new();
        assert_eq!(self.0.read_to_end(&mut rest).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[track_caller]
    fn hears_nothing(&mut self) {
        self.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let silent = self.0.read(&mut [0]).unwrap_err().kind();
        assert!(matches!(silent, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silent}");
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

#[test]
fn connections_are_passed_cut_and_refused() {
    let redis = RedisServer::start();
    let proxy = ChaosProxy::to(redis.port());
    let (mut one, mut two) = (Client::of(&proxy), Client::of(&proxy));
    one.works();
    two.works();
    assert_eq!((proxy.connections(), proxy.accepted(), proxy.bytes(Way::ToServer)), (2, 2, 12));
    proxy.cut();
    assert_eq!(proxy.connections(), 0);
    one.is_reset();
    two.is_reset();
    let mut stays = Client::of(&proxy);
    stays.works();
    proxy.refuse();
    let refused = TcpStream::connect(("127.0.0.1", proxy.port())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    stays.works();
    proxy.accept();
    Client::of(&proxy).works();
    // An orderly end is one on both sides.
    stays.say("QUIT");
    let mut rest = String::new();
    stays.0.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "+OK\r\n");
    drop(stays);
    wait::until("the end of all connections", PATIENCE, || proxy.connections() == 0);
}

#[test]
fn bytes_are_held_swallowed_delayed_and_cut_off() {
    let redis = RedisServer::start();
    let proxy = ChaosProxy::to(redis.port());
    let mut client = Client::of(&proxy);
    client.works();
    proxy.hold(Way::ToClient);
    client.say("INCR n");
    wait::until("the command's arrival", PATIENCE, || redis.cli(&["GET", "n"]) == "1");
    client.hears_nothing();
    proxy.pass();
    client.hears(":1\r\n");

    proxy.black_hole(Way::ToServer);
    client.say("INCR n");
    client.hears_nothing();
    assert_eq!(redis.cli(&["GET", "n"]), "1");
    proxy.pass();
    client.is_reset();

    let mut client = Client::of(&proxy);
    client.works();
    proxy.delay(Duration::from_millis(100));
    let began = Instant::now();
    client.works();
    assert!(began.elapsed() >= Duration::from_millis(200));
    proxy.pass();

    proxy.cut_after(3, Way::ToClient);
    client.say("PING");
    client.hears("+PO");
    client.is_reset();
    Client::of(&proxy).works();
}

#[test]
fn a_subscriber_goes_deaf_and_still_hears_its_pongs() {
    let redis = RedisServer::start();
    let proxy = ChaosProxy::redis(redis.port());
    let mut client = Client::of(&proxy);
    client.say("SUBSCRIBE a");
    client.hears("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n");
    client.say("PSUBSCRIBE b*");
    client.hears("*3\r\n$10\r\npsubscribe\r\n$2\r\nb*\r\n:2\r\n");
    proxy.drop_messages(1);
    redis.cli(&["PUBLISH", "a", "lost"]);
    redis.cli(&["PUBLISH", "b1", "lost"]);
    wait::until("the loss", PATIENCE, || proxy.dropped() == 2);
    client.say("PING");
    client.hears("*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    proxy.drop_messages(2);
    for text in ["1\r\n", "2", "3"] {
        redis.cli(&["PUBLISH", "a", text]);
    }
    client.hears("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$3\r\n1\r\n\r\n");
    client.hears("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\n3\r\n");
    // A value larger than any read passes whole.
    let large = "x".repeat(1 << 20);
    redis.cli(&["PUBLISH", "a", "dropped"]);
    redis.cli(&["PUBLISH", "a", &large]);
    client.hears(&format!("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n${}\r\n{large}\r\n", 1 << 20));
    assert_eq!(proxy.dropped(), 4);
}

#[test]
fn new_connections_can_be_sent_elsewhere_and_a_dead_server_resets_them() {
    let (mut first, second) = (RedisServer::start(), RedisServer::start());
    let proxy = ChaosProxy::to(first.port());
    let mut old = Client::of(&proxy);
    old.works();
    proxy.retarget(second.port());
    let mut new = Client::of(&proxy);
    new.say("SET key value");
    new.hears("+OK\r\n");
    assert_eq!((first.cli(&["GET", "key"]).as_str(), second.cli(&["GET", "key"]).as_str()), ("", "value"));
    first.kill();
    let ended = old.0.read(&mut [0]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    proxy.retarget(first.port());
    let mut dead = Client::of(&proxy);
    let ended = dead.0.read(&mut [0]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[test]
fn connections_that_there_are_lead_nowhere_and_new_ones_pass() {
    let redis = RedisServer::start();
    let proxy = ChaosProxy::to(redis.port());
    let (mut old, mut idle) = (Client::of(&proxy), Client::of(&proxy));
    old.works();
    idle.works();
    proxy.strand();
    old.say("PING");
    old.hears_nothing();
    let mut new = Client::of(&proxy);
    new.works();
    proxy.pass();
    old.is_reset();
    idle.works();
    new.works();
}
