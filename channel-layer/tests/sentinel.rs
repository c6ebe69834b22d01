//! A primary that Sentinels watch: found, followed through failovers (R8, R9), and what can be wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/site.rs"]
mod site;

use std::time::Duration;

use channel_layer::{Delivery, LayerError, RedisPubSubLayer};
use common::until;
use site::{PATIENCE, Site};
use testkit::net::free_port;
use testkit::process::{Guarded, private_dir};
use testkit::redis::{RedisServer, SentinelOptions, Sentinels, Tls};
use testkit::tls::TlsOptions;
use tokio::time::Instant;

/// From the primary's death on: the Sentinels need about 3 seconds of it.
const FAILOVER: Duration = Duration::from_secs(30);

/// Waits for the loss of a connection to be told.
async fn lost(site: &mut Site) {
    site.until("the loss is told", |_, last| matches!(last, Some(Delivery::Disconnected))).await;
}

/// Waits for all subscriptions to be in place again.
async fn restored(site: &mut Site) {
    site.until("the return is told", |_, last| matches!(last, Some(Delivery::Reconnected(_)))).await;
}

fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// How many of this server's clients have the layer's names; `None` if the question itself was cut off,
/// as Sentinels do to all clients of a server that they demote.
fn clients(redis: &RedisServer) -> Option<usize> {
    let clients = redis.try_cli(&["CLIENT", "LIST"])?;
    Some(clients.lines().filter(|line| line.contains("name=channel-layer:")).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn r9_a_killed_primary_is_replaced_within_ten_seconds() {
    let mut redis = Sentinels::start();
    let mut site = Site::start(&redis.url()).await;
    site.works().await;
    for _ in 0..2 {
        let began = Instant::now();
        redis.kill_primary();
        lost(&mut site).await;
        assert!(site.layer.ping().await.is_err(), "not ready without a primary");
        restored(&mut site).await;
        site.works().await;
        site.layer.ping().await.unwrap();
        assert!(began.elapsed() < FAILOVER, "{:?}", began.elapsed());
        redis.wait_failover();
        assert_eq!(clients(redis.primary()), Some(2), "on the new primary");
        redis.bring_back();
        site.works().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r8_a_demoted_primary_is_left_for_the_new_one() {
    let mut redis = Sentinels::start();
    let mut site = Site::start(&redis.url()).await;
    redis.switch_over();
    redis.wait_failover();
    // The Sentinels close the connections to the old primary when they make it a replica.
    // A connection that has its name is not subscribed yet, and what is published before is lost.
    let moved = || {
        clients(redis.replica()) == Some(0)
            && clients(redis.primary()) == Some(2)
            && redis.primary().try_cli(&["PUBSUB", "NUMSUB", "asgi__group__room"])
                == Some("asgi__group__room\n1".into())
    };
    until("the move to the new primary", moved).await;
    site.works().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_of_both_are_used_and_never_told() {
    let options =
        SentinelOptions { password: Some("data/secret".into()), sentinel_password: Some("watch secret".into()) };
    let redis = Sentinels::start_with(&options);
    Site::start(&redis.url()).await.works().await;
    let (bare, _) = redis.url().split_once('?').map(|(url, query)| (url.to_owned(), query.to_owned())).unwrap();
    for (url, word) in [
        (bare.clone(), "NOAUTH"),
        (format!("{bare}?sentinel_password=guessed"), "WRONGPASS"),
        (redis.url().replace("data%2Fsecret", "guessed"), "WRONGPASS"),
    ] {
        let error = RedisPubSubLayer::connect(&url).await.unwrap_err();
        let text = causes(&error);
        assert!(matches!(error, LayerError::Unavailable(_)) && text.contains(word), "{text}");
        assert!(!text.contains("secret") && !text.contains("guessed"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sentinel_that_answers_is_enough() {
    let mut redis = Sentinels::start();
    redis.kill_sentinel(0);
    redis.pause_sentinel(1);
    let mut site = Site::start(&redis.url()).await;
    site.works().await;
    // Also for the next connection, with the dead and the hanging ones still first in the text.
    for _ in 0..3 {
        redis.primary().client_kill("pubsub");
        restored(&mut site).await;
    }
    site.works().await;
    redis.kill_sentinel(2);
    let error = RedisPubSubLayer::connect(&redis.url()).await.unwrap_err();
    assert!(causes(&error).contains("no Sentinel names a primary for \"mymaster\""), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_name_is_named() {
    let redis = Sentinels::start();
    let url = redis.url().replace(redis.master_name(), "nobody");
    let error = RedisPubSubLayer::connect(&url).await.unwrap_err();
    let text = causes(&error);
    assert!(text.contains("\"nobody\"") && text.contains("does not know the name"), "{text}");
    assert!(redis.addresses().iter().all(|address| text.contains(address)), "every Sentinel was asked: {text}");
}

/// A Sentinel that speaks TLS only, over which it also watches the primary; with the primary's own
/// certificate.
fn secure_sentinel(primary: &RedisServer, tls: &Tls) -> (Guarded, u16) {
    let port = free_port();
    let dir = private_dir("sentinel");
    let files = primary.process().dir().display();
    let config = format!(
        "port 0\ntls-port {port}\nbind 127.0.0.1\ntls-replication yes\ntls-auth-clients no\n\
         tls-cert-file {files}/server.pem\ntls-key-file {files}/server.key\ntls-ca-cert-file {files}/ca.pem\n\
         sentinel monitor site 127.0.0.1 {} 1\n",
        tls.port
    );
    std::fs::write(dir.join("sentinel.conf"), config).unwrap();
    let process = Guarded::spawn(dir, "redis-server", ["sentinel.conf", "--sentinel"]);
    process.wait_ready(PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (process, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_used_to_the_sentinels_and_to_the_primary() {
    let primary = RedisServer::start();
    let tls = primary.switch_tls_on(&TlsOptions::default());
    let (_sentinel, port) = secure_sentinel(&primary, &tls);
    let url = format!("rediss+sentinel://127.0.0.1:{port}/site");
    let layer = RedisPubSubLayer::builder(&url).root_certificates(&tls.ca).connect().await.unwrap();
    Site::new(layer, &["room"]).await.works().await;
    let error = RedisPubSubLayer::connect(&url).await.unwrap_err();
    assert!(causes(&error).contains("UnknownIssuer"), "{error:?}");
    let plain = format!("redis+sentinel://127.0.0.1:{port}/site");
    assert!(RedisPubSubLayer::connect(&plain).await.is_err());
}

/// Sentinels name addresses, and many certificates hold names only.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_may_hold_a_name_although_sentinels_name_an_address() {
    let primary = RedisServer::start();
    let tls = primary.switch_tls_on(&TlsOptions { names: vec!["redis.example.org".into()], ..TlsOptions::default() });
    let (_sentinel, port) = secure_sentinel(&primary, &tls);
    let url = format!("rediss+sentinel://127.0.0.1:{port}/site");
    let named = format!("{url}?tls_server_name=redis.example.org");
    let layer = RedisPubSubLayer::builder(&named).root_certificates(&tls.ca).connect().await.unwrap();
    Site::new(layer, &["room"]).await.works().await;
    let error = RedisPubSubLayer::builder(&url).root_certificates(&tls.ca).connect().await.unwrap_err();
    assert!(causes(&error).contains("not valid for name"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_role_and_info_believes_the_sentinels() {
    let mut redis = Sentinels::start();
    redis.primary().cli(&["ACL", "SETUSER", "site", "on", ">pw", "allchannels", "allkeys", "+@all", "-role", "-info"]);
    Site::start(&redis.url().replace("://", "://site:pw@")).await.works().await;
}
