//! Signing in, rights, TLS and Unix sockets, on real servers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use channel_layer::{
    ChannelLayer, Delivery, Event, GroupName, Host, LayerError, RedisPubSubBuilder, RedisPubSubLayer, RelaySink,
};
use common::{PATIENCE, until, until_ok};
use testkit::redis::RedisServer;
use testkit::tls::TlsOptions;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

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

/// Everything logged by this process so far, whatever its level.
fn log() -> String {
    static LOG: OnceLock<Log> = OnceLock::new();
    let log = LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).init();
        log
    });
    String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned()
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_a_password_rotated_while_running_is_retried_slowly_and_never_told() {
    log();
    let mut redis = RedisServer::options().password("first-secret").start();
    let layer = RedisPubSubLayer::connect(&redis.url()).await.unwrap();
    redis.set_password("second-secret");
    let began = Instant::now();
    redis.client_kill("pubsub");
    redis.client_kill("normal");
    // What Redis has refused; entries of one kind within a minute are counted together.
    let refused = |redis: &RedisServer| {
        let log = redis.cli(&["ACL", "LOG"]);
        let counts = log.lines().zip(log.lines().skip(1)).filter(|(key, _)| *key == "count");
        counts.map(|(_, count)| count.parse::<usize>().unwrap()).sum::<usize>()
    };
    until("both connections are refused twice", || refused(&redis) >= 4).await;
    assert!(began.elapsed() > Duration::from_secs(2), "retries are slow: {:?}", began.elapsed());
    let error = layer.ping().await.unwrap_err();
    assert!(matches!(error, LayerError::Unavailable(_)), "not ready: {error:?}");
    redis.set_password("first-secret");
    until_ok("a ping", async || layer.ping().await).await;
    works(&layer).await;
    let log = log();
    assert!(log.contains("WRONGPASS"), "whoever reads the log is told: {log}");
    for secret in ["first-secret", "second-secret"] {
        assert!(!log.contains(secret) && !causes(&error).contains(secret), "{secret}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_a_refused_start_names_the_reason() {
    let redis = RedisServer::options().password("the-secret").start();
    redis.set_user("silent", "the-secret", &["allchannels", "+@all", "-ping"]);
    let bare = format!("redis://127.0.0.1:{}", redis.port());
    for (url, word) in [
        (bare, "NOAUTH"),
        (redis.url_as("", "another-secret"), "WRONGPASS"),
        (redis.url_as("nobody", "the-secret"), "WRONGPASS"),
        (redis.url_as("silent", "the-secret"), "NOPERM"),
    ] {
        let error = RedisPubSubLayer::connect(&url).await.unwrap_err();
        let text = causes(&error);
        assert!(matches!(error, LayerError::Unavailable(_)) && text.contains(word), "{text}");
        assert!(text.contains(&redis.port().to_string()) && !text.contains("secret"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_it_is_never_another_database() {
    let redis = RedisServer::start_with(&["--databases", "4"]);
    redis.set_user("bound", "pw", &["allchannels", "+@all", "-select"]);
    let layer = RedisPubSubLayer::connect(&redis.database(3)).await.unwrap();
    let databases = || {
        let clients = redis.cli(&["CLIENT", "LIST"]);
        let ours = clients.lines().filter(|line| line.contains("name=channel-layer:"));
        ours.map(|line| line.split(' ').find(|word| word.starts_with("db=")).unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(databases(), ["db=3", "db=3"]);
    redis.client_kill("pubsub");
    redis.client_kill("normal");
    until("both connections are back", || databases().len() == 2).await;
    assert_eq!(databases(), ["db=3", "db=3"], "also after a reconnection");
    works(&layer).await;
    for (url, word) in
        [(redis.database(4), "DB index is out of range"), (format!("{}/1", redis.url_as("bound", "pw")), "NOPERM")]
    {
        let error = RedisPubSubLayer::connect(&url).await.unwrap_err();
        assert!(causes(&error).contains(word), "{error:?}");
    }
    let error = RedisPubSubLayer::connect(&format!("{}/x", redis.url())).await.unwrap_err();
    assert!(matches!(error, LayerError::Config(_)), "{error:?}");
}

/// The reason why no layer can be had.
async fn refusal(builder: RedisPubSubBuilder) -> String {
    causes(&builder.connect().await.unwrap_err())
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_tls_fails_closed_and_says_why() {
    let redis = RedisServer::start();
    let tls = redis.switch_tls_on(&TlsOptions::default());
    let trusting = |url: &str| RedisPubSubLayer::builder(url).root_certificates(&tls.ca);
    works(&trusting(&tls.url()).connect().await.unwrap()).await;

    let text = refusal(RedisPubSubLayer::builder(&tls.url())).await;
    assert!(text.contains("UnknownIssuer"), "no public authority knows it: {text}");
    let other = redis.switch_tls_on(&TlsOptions::default());
    let text = refusal(trusting(&other.url())).await;
    assert!(text.contains("invalid peer certificate"), "another authority: {text}");
    let plain = format!("rediss://127.0.0.1:{}", redis.port());
    let text = refusal(trusting(&plain)).await;
    assert!(text.contains("speak TLS on this port"), "a plain server: {text}");
    let plain = format!("redis://127.0.0.1:{}", other.port);
    assert!(RedisPubSubLayer::connect(&plain).await.is_err(), "a plain client");

    let expired = redis.switch_tls_on(&TlsOptions { expired: true, ..TlsOptions::default() });
    let text = refusal(RedisPubSubLayer::builder(&expired.url()).root_certificates(&expired.ca)).await;
    assert!(text.contains("expired"), "out of date: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_the_certificate_must_be_of_the_right_name() {
    let redis = RedisServer::start();
    let tls = redis.switch_tls_on(&TlsOptions { names: vec!["redis.example.org".into()], ..TlsOptions::default() });
    let trusting = |url: &str| RedisPubSubLayer::builder(url).root_certificates(&tls.ca);
    let text = refusal(trusting(&tls.url())).await;
    assert!(text.contains("not valid for name"), "{text}");
    works(&trusting(&format!("{}/?tls_server_name=redis.example.org", tls.url())).connect().await.unwrap()).await;
    let host = Host::tcp("127.0.0.1", tls.port).tls(Some("redis.example.org"));
    works(&RedisPubSubLayer::builder_with_hosts([host]).root_certificates(&tls.ca).connect().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_a_server_that_wants_a_client_certificate_gets_it() {
    let redis = RedisServer::start();
    let wants = TlsOptions { client_certificates: true, ..TlsOptions::default() };
    let other = redis.switch_tls_on(&wants);
    let tls = redis.switch_tls_on(&wants);
    let trusting = || RedisPubSubLayer::builder(&tls.url()).root_certificates(&tls.ca);
    works(&trusting().client_certificate(&tls.client_certificate, &tls.client_key).connect().await.unwrap()).await;

    let text = refusal(trusting()).await;
    assert!(text.contains("client certificate"), "none shown: {text}");
    let text = refusal(trusting().client_certificate(&other.client_certificate, &other.client_key)).await;
    assert!(text.contains("client certificate"), "another authority's: {text}");
    for (chain, key) in [
        (&tls.client_certificate, &other.client_key),
        (&tls.client_key, &tls.client_key),
        (&tls.client_certificate, &tls.client_certificate),
    ] {
        let error = trusting().client_certificate(chain, key).connect().await.unwrap_err();
        assert!(matches!(&error, LayerError::Config(text) if text.contains("client")), "{error:?}");
    }

    let dir = redis.process().dir();
    std::fs::write(dir.join("client.pem"), &tls.client_certificate).unwrap();
    std::fs::write(dir.join("client.key"), &tls.client_key).unwrap();
    let dir = dir.display();
    let files = format!("ssl_ca_certs={dir}/ca.pem&ssl_certfile={dir}/client.pem&ssl_keyfile={dir}/client.key");
    works(&RedisPubSubLayer::connect(&format!("{}?{files}", tls.url())).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_checks_are_skipped_only_with_a_warning() {
    log();
    let redis = RedisServer::start();
    let tls = redis.switch_tls_on(&TlsOptions { expired: true, ..TlsOptions::default() });
    works(&RedisPubSubLayer::connect(&format!("{}/#insecure", tls.url())).await.unwrap()).await;
    let warned = log().lines().any(|line| line.contains("WARN") && line.contains("does not check"));
    assert!(warned, "{}", log());
    for (url, roots) in [(tls.url(), &b"no certificate"[..]), (redis.url(), &tls.ca)] {
        let none = RedisPubSubLayer::builder(&url).root_certificates(roots).connect().await;
        assert!(matches!(none, Err(LayerError::Config(_))), "{none:?}");
    }
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
    assert!(matches!(timeout(PATIENCE, deliveries.recv()).await.unwrap(), Some(Delivery::Reconnected(_))));
    until_ok("a send", async || layer.group_send(&room, &Event::new("t")).await).await;
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
        if let Delivery::Reconnected(_) = timeout(PATIENCE, deliveries.recv()).await.unwrap().unwrap() {
            break;
        }
    }
    until_ok("a ping", async || layer.ping().await).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_gives_whoever_has_commands_of_their_own_what_the_layer_would_use() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let redis = RedisServer::options().password("s3cret").start();
    let host = Host::from(redis.database(3));
    let mut stream = host.connector().unwrap().open("mine", b"any key").await.unwrap();
    stream.write_all(b"SET a b\r\n").await.unwrap();
    let mut answer = [0; 5];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"+OK\r\n");
    let clients = redis.cli(&["CLIENT", "LIST"]);
    assert!(clients.lines().any(|client| client.contains("name=mine") && client.contains("db=3")), "{clients}");
    let wrong = Host::from(redis.url_as("", "hidden")).connector().unwrap().open("mine", b"").await.err().unwrap();
    assert!(matches!(wrong, LayerError::Unavailable(_)) && !causes(&wrong).contains("hidden"), "{}", causes(&wrong));
    assert!(matches!(Host::from("hidden").connector(), Err(LayerError::Config(_))));
}
