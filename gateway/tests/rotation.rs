//! Every secret of a node gets another value while its sockets stay. Those of the bridge are in `bridge/links.rs`, Django's
//! in `django.rs`; other ways to sign in are in `signing_in.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::path::Path;
use std::process::Command;

use channel_layer::{ChannelLayer, Event, GroupName, RedisCoreLayer, RedisPubSubLayer};
use common::collector::Collector;
use common::{Door, NodeProcess, SECRET, eventually, token};
use gateway::JwtAuth;
use testkit::postgres::Postgres;
use testkit::process::private_dir;
use testkit::redis::RedisServer;
use testkit::tls::TlsOptions;

const NEW_SECRET: &str = "another-secret-another-secret-another";

fn token_by(secret: &str, user: &str) -> String {
    JwtAuth::new(&[secret.into()], "sub", &[], None).sign(user, None, 600).unwrap()
}

async fn status(door: Door, bearer: &str) -> u16 {
    door.api_with("GET", "/api/rooms", None, &[("authorization", &format!("Bearer {bearer}"))]).await.0
}

async fn enter(door: Door, token: &str) -> Result<common::Client, u16> {
    door.try_connect("/ws/chat/lobby/", &[("authorization", &format!("Bearer {token}"))]).await
}

/// A program of the site on the same layer.
async fn site(layer: &str, redis: &RedisServer, keys: &[&str]) -> Box<dyn ChannelLayer> {
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    match layer {
        "core" => Box::new(RedisCoreLayer::builder(&redis.url()).encryption_keys(keys).connect().await.unwrap()),
        _ => Box::new(RedisPubSubLayer::builder(&redis.url()).encryption_keys(keys).connect().await.unwrap()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_secret_is_rotated_without_a_lost_socket() {
    for layer in ["pubsub", "core"] {
        rotate(layer).await;
    }
}

async fn rotate(layer: &str) {
    let (redis, postgres, collector) = (RedisServer::start(), Postgres::shared(), Collector::start().await);
    let database = postgres.fresh_database();
    let name = database.rsplit('/').next().unwrap().to_owned();
    let role = |which: &str| format!("rotated_{which}_{layer}_{}", std::process::id());
    let as_role = |which: &str| database.replacen("postgres@", &format!("{}@", role(which)), 1);
    for which in ["old", "new"] {
        postgres.sql("postgres", &format!("CREATE ROLE {} LOGIN SUPERUSER", role(which)));
    }
    redis.cli(&["ACL", "SETUSER", "node", "on", ">old-password", "~*", "&*", "+@all"]);
    let as_user = |password: &str| redis.url().replacen("redis://", &format!("redis://node:{password}@"), 1);

    let dir = private_dir("rotation");
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    write("jwt", SECRET);
    write("api", "shop:first-key");
    write("layer", "first layer key");
    write("redis", &as_user("old-password"));
    write("database", &as_role("old"));
    write("headers", "x-token=first");
    let files: Vec<(String, String)> = [
        ("jwt-secret", "jwt"),
        ("api-key", "api"),
        ("layer-encryption-keys", "layer"),
        ("redis-url", "redis"),
        ("database-url", "database"),
        ("otlp-headers", "headers"),
    ]
    .map(|(setting, name)| (format!("{setting}_file"), file(name)))
    .into();
    let endpoint = collector.endpoint();
    let mut own = vec![("layer", layer), ("otlp-endpoint", endpoint.as_str()), ("jwt-secret", ""), ("api-key", "")];
    own.push(("database-url", ""));
    own.extend(files.iter().map(|(setting, path)| (setting.as_str(), path.as_str())));
    let node = NodeProcess::start(&own);
    let reread = async |times: usize| {
        hangup(&node);
        eventually("they are read again", async || node.log().matches("the settings were read again").count() == times)
            .await;
    };
    let mut alice = enter(node.door, &token("alice")).await.unwrap();
    let mut sent = 0;
    let mut still_here = async |alice: &mut common::Client| {
        sent += 1;
        let id = format!("id-{sent}");
        // Where its connection was cut nobody knows whether it is stored, and it is said again.
        let mut answer = serde_json::Value::Null;
        while answer["type"] != "ack" {
            answer = alice.say_acked("lobby", "still here", &id).await;
            assert!(answer["type"] == "ack" || answer["code"] == "unavailable", "{answer}");
        }
    };
    still_here(&mut alice).await;
    assert_eq!((status(node.door, "first-key").await, status(node.door, "second-key").await), (200, 401));

    // First both, so that nobody has to change at the same moment; then the old ones are taken away.
    redis.cli(&["ACL", "SETUSER", "node", ">new-password"]);
    write("jwt", &format!("{NEW_SECRET}\n{SECRET}\n"));
    write("api", "shop:first-key\nbilling:second-key\n");
    write("layer", "second layer key\nfirst layer key\n");
    write("redis", &as_user("new-password"));
    write("database", &as_role("new"));
    write("headers", "x-token=second");
    reread(1).await;
    let log = node.log();
    let line = log.lines().find(|line| line.contains("the settings were read again")).unwrap();
    for (setting, _) in &files {
        assert!(line.contains(setting.strip_suffix("_file").unwrap()), "{setting}: {line}");
    }
    assert!(!log.contains("needs a restart"), "{log}");
    assert!(!log.contains("first-key") && !log.contains("old-password") && !log.contains("new-password"), "{log}");
    still_here(&mut alice).await;
    assert_eq!((status(node.door, "first-key").await, status(node.door, "second-key").await), (200, 200));
    let carol = enter(node.door, &token_by(NEW_SECRET, "carol")).await.unwrap();
    let dora = enter(node.door, &token("dora")).await.unwrap();
    for key in ["first layer key", "second layer key"] {
        let event = Event::new("chat_message").with("message", key).with("from_user", "site");
        let site = site(layer, &redis, &[key]).await;
        site.group_send(&GroupName::parse("chat_lobby").unwrap(), &event).await.unwrap();
        alice.until(|frame| frame["message"] == key).await;
    }
    eventually("the collector is told the new one", async || {
        status(node.door, "first-key").await;
        collector.head().contains("x-token: second")
    })
    .await;

    // What connects from now on does so by the new ones, and the old ones are gone.
    redis.cli(&["ACL", "SETUSER", "node", "<old-password"]);
    redis.cli(&["CLIENT", "KILL", "USER", "node"]);
    let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'", role("old"));
    postgres.sql(&name, &cut);
    postgres.sql("postgres", &format!("ALTER ROLE {} NOLOGIN", role("old")));
    write("jwt", NEW_SECRET);
    write("api", "billing:second-key");
    write("layer", "second layer key");
    reread(2).await;
    eventually("it is ready", async || common::ready(node.door.internal)).await;
    still_here(&mut alice).await;
    let users = postgres.sql(
        &name,
        &format!(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'gateway'"
        ),
    );
    assert_eq!(users.trim(), role("new"));
    let users = redis.cli(&["CLIENT", "LIST"]);
    assert!(users.contains("user=node"), "{users}");
    assert_eq!((status(node.door, "first-key").await, status(node.door, "second-key").await), (401, 200));
    assert_eq!(enter(node.door, &token("eve")).await.err(), Some(401));
    // The log says by whose key a call came.
    let bearer = [("authorization", "Bearer second-key")];
    assert_eq!(node.door.api_with("GET", "/api/rooms/nowhere", None, &bearer).await.0, 404);
    eventually("it is told", async || {
        node.log().lines().any(|line| line.contains("an API call was refused") && line.contains("key=billing"))
    })
    .await;
    // Also what is made anew, as after an answer that came too late.
    let mut frank = enter(node.door, &token_by(NEW_SECRET, "frank")).await.unwrap();
    let event = Event::new("chat_message").with("message", "both hear it").with("from_user", "site");
    let site = site(layer, &redis, &["second layer key"]).await;
    site.group_send(&GroupName::parse("chat_lobby").unwrap(), &event).await.unwrap();
    alice.until(|frame| frame["message"] == "both hear it").await;
    frank.until(|frame| frame["message"] == "both hear it").await;
    assert_eq!(node.door.metric("gateway_connections").await, 4.0, "nobody was lost");
    drop((carol, dora));

    // What is another place, or begins or ends something, is named and left as it is.
    write("redis", "redis://127.0.0.1:1");
    write("database", &database.replacen(&name, "another", 1));
    write("layer", "");
    reread(3).await;
    for setting in ["redis-url", "database-url", "layer-encryption-keys"] {
        let named = format!("setting=\"{setting}\"");
        let log = node.log();
        assert!(log.lines().any(|line| line.contains("needs a restart") && line.contains(&named)), "{setting}: {log}");
    }
    still_here(&mut alice).await;
    drop(node);
    remove(&dir);
}

fn hangup(node: &NodeProcess) {
    let pid = node.process.pid().to_string();
    assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
}

fn remove(dir: &Path) {
    std::fs::remove_dir_all(dir).unwrap();
}

/// The client's files: those of an authority that nobody else knows.
fn write_certificates(dir: &Path, ca: &[u8], certificate: &[u8], key: &[u8]) {
    for (name, pem) in [("ca.pem", ca), ("client.pem", certificate), ("client.key", key)] {
        // As whoever renews them does: a new file in the place of the old one.
        std::fs::write(dir.join("new"), pem).unwrap();
        std::fs::rename(dir.join("new"), dir.join(name)).unwrap();
    }
}

/// Whoever renews certificates writes new files in the place of the old ones: the node's own, and those it trusts.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_without_a_lost_socket() {
    for layer in ["pubsub", "core"] {
        renew_certificates(layer).await;
    }
}

async fn renew_certificates(layer: &str) {
    let wants = TlsOptions { client_certificates: true, ..TlsOptions::default() };
    let (redis, postgres) = (RedisServer::start(), Postgres::start());
    let tls = redis.switch_tls_on(&wants);
    let dir = private_dir("certificates");
    let file = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (ca, certificate, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let trust_database = |postgres: &Postgres| {
        let authority = postgres.switch_tls_on(&TlsOptions::default());
        std::fs::copy(authority, dir.join("database.pem")).unwrap();
    };
    write_certificates(&dir, &tls.ca, &tls.client_certificate, &tls.client_key);
    trust_database(&postgres);
    let database = format!("{}?sslmode=verify-full&sslrootcert={}", postgres.fresh_database(), file("database.pem"));
    let name = database.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let start = || {
        NodeProcess::start(&[
            ("layer", layer),
            ("redis-url", &tls.url()),
            ("redis-ca", &ca),
            ("redis-client-certificate", &certificate),
            ("redis-client-key", &key),
            ("database-url", &database),
        ])
    };
    let node = start();
    let reread = async |times: usize| {
        hangup(&node);
        eventually("they are read again", async || node.log().matches("the settings were read again").count() == times)
            .await;
    };
    let mut alice = enter(node.door, &token("alice")).await.unwrap();
    alice.say_acked("lobby", "before", "1").await;

    // Files that do not fit together, as for a moment between two of them, change nothing.
    let renewed = redis.renew_tls(&wants, &tls);
    std::fs::write(&key, &renewed.client_key).unwrap();
    hangup(&node);
    eventually("it is told", async || node.log().contains("the settings stay as they were: redis-url")).await;
    assert_eq!(alice.say_acked("lobby", "between", "2").await["type"], "ack");
    // What is made from now on is made with the new ones, and only those are let in.
    write_certificates(&dir, &renewed.ca, &renewed.client_certificate, &renewed.client_key);
    trust_database(&postgres);
    reread(1).await;
    let log = node.log();
    let line = log.lines().find(|line| line.contains("the settings were read again")).unwrap();
    assert!(line.contains("redis-url") && !log.contains("needs a restart"), "{log}");
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    postgres.sql(&name, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gateway'");
    eventually("it is ready", async || common::ready(node.door.internal)).await;
    alice.say_acked("lobby", "after", "3").await;
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'gateway'";
    assert_eq!(postgres.sql(&name, encrypted).trim(), "t");
    // Over Redis, from another node with the new ones.
    let other = start();
    let mut bob = enter(other.door, &token("bob")).await.unwrap();
    bob.say_acked("lobby", "from bob", "1").await;
    alice.until(|frame| frame["message"] == "from bob").await;
    assert_eq!(node.door.metric("gateway_connections").await, 1.0, "nobody was lost");
    // Nothing is new any more.
    reread(2).await;
    assert!(node.log().contains("changed=\"\""), "{}", node.log());
    drop((node, other));
    remove(&dir);
}
