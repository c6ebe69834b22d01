//! Signing in, rights, TLS and Unix sockets, on real servers.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use channel_layer::{ChannelLayer, Delivery, Event, GroupName, LayerError, RedisPubSubLayer, RelaySink};
use testkit::redis::RedisServer;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);

async fn works(layer: &RedisPubSubLayer) {
    let channel = layer.new_channel("").await.unwrap();
    layer.send(&channel, &Event::new("t")).await.unwrap();
    assert_eq!(timeout(PATIENCE, layer.receive(&channel)).await.unwrap().unwrap(), Event::new("t"));
    layer.ping().await.unwrap();
}

/// The whole chain of causes, as an operator would see it.
fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn with_user(redis: &RedisServer, user: &str) -> String {
    redis.url().replace("redis://", &format!("redis://{user}@"))
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_used_and_never_told() {
    let redis = RedisServer::start();
    redis.cli(&["ACL", "SETUSER", "site", "on", ">s3cret/word", "allchannels", "+@all"]);
    redis.cli(&["ACL", "SETUSER", "default", ">only-password"]);
    works(&RedisPubSubLayer::connect(&with_user(&redis, "site:s3cret%2Fword")).await.unwrap()).await;
    works(&RedisPubSubLayer::connect(&with_user(&redis, ":only-password")).await.unwrap()).await;
    let error = RedisPubSubLayer::connect(&with_user(&redis, "site:wrong-guess")).await.unwrap_err();
    let text = causes(&error);
    assert!(text.contains("WRONGPASS") && !text.contains("wrong-guess"), "{text}");
    let error = RedisPubSubLayer::connect("redis://:hidden@ho st:x").await.unwrap_err();
    assert!(matches!(error, LayerError::Config(_)) && !causes(&error).contains("hidden"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_the_right_to_it_is_refused_and_the_others_go_on() {
    let redis = RedisServer::start();
    let rules = ["resetchannels", "&asgispecific.*", "&asgi__group__open", "+@all"];
    redis.cli(&[&["ACL", "SETUSER", "site", "on", ">pw"], &rules[..]].concat());
    let layer = RedisPubSubLayer::connect(&with_user(&redis, "site:pw")).await.unwrap();
    let channel = layer.new_channel("").await.unwrap();
    let (open, shut) = (GroupName::parse("open").unwrap(), GroupName::parse("shut").unwrap());
    layer.group_add(&open, &channel).await.unwrap();
    for _ in 0..2 {
        let error = layer.group_add(&shut, &channel).await.unwrap_err();
        assert!(causes(&error).contains("NOPERM"), "{error:?}");
        let error = layer.group_send(&shut, &Event::new("t")).await.unwrap_err();
        assert!(causes(&error).contains("NOPERM"), "{error:?}");
    }
    layer.group_send(&open, &Event::new("t")).await.unwrap();
    timeout(PATIENCE, layer.receive(&channel)).await.unwrap().unwrap();
    assert_eq!(layer.stats().reconnects, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_works() {
    let redis = RedisServer::start_with(&["--unixsocket", "redis.sock"]);
    let url = format!("unix://{}", redis.process().dir().join("redis.sock").display());
    works(&RedisPubSubLayer::connect(&url).await.unwrap()).await;
}

/// Makes a certificate authority and a server certificate for 127.0.0.1 in the server's directory.
fn switch_tls_on(redis: &RedisServer) -> (u16, Vec<u8>) {
    let dir = redis.process().dir();
    let openssl = |arguments: &str| {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
        let done = done.unwrap_or_else(|_| panic!("openssl is missing: run ./test.sh, or apt-get install openssl"));
        assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let ca = "-newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2";
    openssl(&format!("req -x509 {ca}"));
    openssl("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=redis");
    std::fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem");
    let port = testkit::net::free_port();
    let path = |name: &str| dir.join(name).display().to_string();
    let answer = redis.cli(&[
        "CONFIG",
        "SET",
        "tls-cert-file",
        &path("server.pem"),
        "tls-key-file",
        &path("server.key"),
        "tls-ca-cert-file",
        &path("ca.pem"),
        "tls-auth-clients",
        "no",
        "tls-port",
        &port.to_string(),
    ]);
    assert_eq!(answer, "OK");
    (port, std::fs::read(dir.join("ca.pem")).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_fails_closed_and_works_with_the_right_roots() {
    let redis = RedisServer::start();
    let (port, ca) = switch_tls_on(&redis);
    let url = format!("rediss://127.0.0.1:{port}");
    let error = RedisPubSubLayer::connect(&url).await.unwrap_err();
    assert!(causes(&error).to_lowercase().contains("certificate"), "{error:?}");
    works(&RedisPubSubLayer::builder(&url).root_certificates(&ca).connect().await.unwrap()).await;
    let wrong_name = format!("rediss://localhost:{port}");
    assert!(RedisPubSubLayer::builder(&wrong_name).root_certificates(&ca).connect().await.is_err());
    works(&RedisPubSubLayer::connect(&format!("{url}/#insecure")).await.unwrap()).await;
    let plain = format!("rediss://127.0.0.1:{}", redis.port());
    assert!(RedisPubSubLayer::builder(&plain).root_certificates(&ca).connect().await.is_err());
    let none = RedisPubSubLayer::builder(&url).root_certificates(b"no certificate").connect().await;
    assert!(matches!(none, Err(LayerError::Config(_))));
}

struct Collector(mpsc::Sender<Delivery>);

impl RelaySink for Collector {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        batch.drain(..).for_each(|delivery| self.0.try_send(delivery).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_may_start_before_its_server() {
    let mut redis = RedisServer::start();
    redis.kill();
    assert!(matches!(RedisPubSubLayer::connect(&redis.url()).await, Err(LayerError::Unavailable(_))));
    let layer = RedisPubSubLayer::builder(&redis.url()).start().unwrap();
    let (sender, mut deliveries) = mpsc::channel(100);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    assert!(matches!(deliveries.recv().await, Some(Delivery::Disconnected)));
    let room = GroupName::parse("room").unwrap();
    assert!(matches!(layer.group_send_later(&room, &Event::new("t")), Err(LayerError::Unavailable(_))));
    assert!(layer.ping().await.is_err());
    // A join begun before the server is there succeeds when it comes in time.
    let rooms = [room.clone()];
    let joining = relay.join(&rooms);
    tokio::pin!(joining);
    assert!(timeout(Duration::from_millis(50), &mut joining).await.is_err());
    redis.restart_empty();
    timeout(PATIENCE, joining).await.unwrap().unwrap();
    assert!(matches!(timeout(PATIENCE, deliveries.recv()).await.unwrap(), Some(Delivery::Reconnected)));
    while layer.group_send(&room, &Event::new("t")).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(matches!(timeout(PATIENCE, deliveries.recv()).await.unwrap(), Some(Delivery::Group { .. })));
    assert_eq!(layer.stats().reconnects, 0, "there was nothing to come back from");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_groups_come_back_together() {
    let mut redis = RedisServer::start();
    let layer = RedisPubSubLayer::connect(&redis.url()).await.unwrap();
    let (sender, mut deliveries) = mpsc::channel(5_000);
    let relay = layer.relay(Arc::new(Collector(sender))).await.unwrap();
    let groups: Vec<GroupName> = (0..2_000).map(|n| GroupName::parse(&format!("room.{n}")).unwrap()).collect();
    relay.join(&groups).await.unwrap();
    let commands = redis.cli(&["INFO", "commandstats"]);
    assert!(commands.contains("cmdstat_subscribe:calls=5"), "500 to a command, and the probe: {commands}");
    redis.restart_empty();
    loop {
        if let Delivery::Reconnected = timeout(PATIENCE, deliveries.recv()).await.unwrap().unwrap() {
            break;
        }
    }
    while layer.ping().await.is_err() {
        tokio::task::yield_now().await;
    }
    for group in &groups {
        layer.group_send_later(group, &Event::new("t").with("group", group.as_str())).unwrap();
    }
    for wanted in &groups {
        match timeout(PATIENCE, deliveries.recv()).await.unwrap().unwrap() {
            Delivery::Group { group, event } => {
                assert_eq!((&group, event.text("group")), (wanted, Some(wanted.as_str())));
            }
            other => panic!("{other:?}"),
        }
    }
}
