//! Servers come up, fail over, and do what the tests built on them count on.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};

use testkit::{
    redis::{Cluster, RedisServer, SentinelOptions, Sentinels},
    tls::TlsOptions,
    wait,
};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_persistent_server_keeps_its_data_and_an_empty_restart_forgets_it() {
    let mut redis = RedisServer::options().persistent().password("p w\"'").start();
    assert_eq!(redis.cli(&["SET", "key", "value"]), "OK");
    redis.restart_keeping();
    assert_eq!(redis.cli(&["GET", "key"]), "value");
    redis.restart_empty();
    assert_eq!(redis.cli(&["GET", "key"]), "");
    assert_eq!(redis.url(), format!("redis://:p%20w%22%27@127.0.0.1:{}", redis.port()));
}

#[test]
fn users_come_and_go_and_connections_are_killed_by_kind() {
    let mut redis = RedisServer::start();
    redis.set_user("site", "old", &["allchannels", "+@all"]);
    redis.set_user("site", "new", &["allkeys", "+get"]);
    assert!(redis.cli(&["AUTH", "site", "old"]).starts_with("-WRONGPASS"));
    assert_eq!(redis.cli(&["AUTH", "site", "new"]), "OK");
    redis.delete_user("site");
    assert!(redis.cli(&["AUTH", "site", "new"]).starts_with("-WRONGPASS"));
    redis.set_password("secret");
    assert_eq!(redis.cli(&["PING"]), "PONG");
    redis.restart_empty();
    assert_eq!(redis.url(), format!("redis://127.0.0.1:{}", redis.port()));

    let mut subscriber = TcpStream::connect(("127.0.0.1", redis.port())).unwrap();
    subscriber.write_all(b"SUBSCRIBE topic\r\n").unwrap();
    wait::until("the subscription", PATIENCE, || redis.cli(&["PUBSUB", "NUMSUB", "topic"]) == "topic\n1");
    assert_eq!((redis.client_kill("pubsub"), redis.client_kill("pubsub")), (1, 0));
}

#[test]
fn certificates_are_made_as_asked_for() {
    let redis = RedisServer::start();
    let plain = redis.switch_tls_on(&TlsOptions::default());
    assert!(plain.ca.starts_with(b"-----BEGIN CERTIFICATE-----"));
    assert!(plain.client_key.starts_with(b"-----BEGIN PRIVATE KEY-----"));
    assert!(TcpStream::connect(("127.0.0.1", plain.port)).is_ok());
    let odd = TlsOptions { client_certificates: true, names: vec!["elsewhere.test".into()], expired: true };
    let strict = redis.switch_tls_on(&odd);
    assert_ne!(plain.ca, strict.ca);
    assert_eq!(redis.cli(&["CONFIG", "GET", "tls-auth-clients"]), "tls-auth-clients\nyes");
    assert!(TcpStream::connect(("127.0.0.1", strict.port)).is_ok());
}

#[test]
fn sentinels_promote_the_replica_of_a_killed_primary_and_again_the_other_way() {
    let options = SentinelOptions { password: Some("data".into()), sentinel_password: Some("watch".into()) };
    let mut set = Sentinels::start_with(&options);
    let first = set.primary_port();
    assert_eq!(set.cli(1, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]), format!("127.0.0.1\n{first}"));
    set.kill_sentinel(0);
    set.kill_primary();
    let second = set.wait_failover();
    assert!(second != first && set.primary_port() == second);
    assert_eq!(set.primary().cli(&["SET", "key", "value"]), "OK");
    set.bring_back();
    set.switch_over();
    assert_eq!(set.wait_failover(), first);
    assert_eq!(set.primary().cli(&["GET", "key"]), "value");
    assert!(set.url().starts_with("redis+sentinel://:data@127.0.0.1:"));
    assert!(set.url().ends_with("/mymaster?sentinel_password=watch"));
}

#[test]
fn a_cluster_moves_slots_fails_over_and_heals() {
    let mut cluster = Cluster::start();
    let key = "key";
    let (slot, owner) = (cluster.slot_of(key), cluster.primary_of(key));
    assert_eq!(cluster.node(owner).cli(&["SET", key, "value"]), "OK");
    let to = (owner + 1) % 3;
    cluster.move_slot(slot, owner, to);
    assert_eq!(cluster.primary_of(key), to);
    assert_eq!(cluster.node(to).cli(&["GET", key]), "value");
    assert!(cluster.node(owner).cli(&["GET", key]).starts_with("-MOVED"));

    let lost = cluster.kill_primary_of(key);
    let heir = cluster.wait_failover(lost);
    assert_eq!((lost, heir, cluster.primary_of(key)), (to, to + 3, heir));
    assert_eq!(cluster.node(heir).cli(&["SET", key, "again"]), "OK");
    cluster.bring_back(lost);
    assert_eq!(cluster.switch_over(heir), lost);
    assert_eq!(cluster.node(lost).cli(&["GET", key]), "again");
}

#[test]
fn a_frozen_node_of_a_cluster_is_replaced_and_comes_back_as_a_replica() {
    let mut cluster = Cluster::with_password("secret");
    cluster.pause(0);
    let heir = cluster.wait_failover(0);
    assert_eq!((heir, cluster.owner_of(0)), (3, Some(3)));
    cluster.resume(0);
    wait::until("its end as a primary", PATIENCE, || !cluster.node(0).is_primary());
    let began = Instant::now();
    cluster.begin_move(0, 3, 1);
    let asked = cluster.node(3).cli(&["GET", "{06S}key"]);
    assert!(asked.starts_with("-ASK 0"), "{asked} {}", cluster.slot_of("{06S}key"));
    cluster.end_move(0, 3, 1);
    assert!(began.elapsed() < PATIENCE);
    assert!(cluster.url().starts_with("redis+cluster://:secret@127.0.0.1:"));
}
