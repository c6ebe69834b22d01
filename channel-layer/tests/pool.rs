//! Connections that short questions share, on real servers of every kind.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use channel_layer::{Host, LayerError, Pool};
use common::until_ok;
use redis::RedisResult;
use testkit::redis::{Cluster, RedisServer, Sentinels, Tls};
use testkit::tls::TlsOptions;

fn pool(url: &str) -> Pool {
    Host::from(url).pool(2).unwrap()
}

async fn ask<T: redis::FromRedisValue>(pool: &Pool, words: &[&str]) -> Result<RedisResult<T>, LayerError> {
    let mut redis = pool.get(words.get(1).unwrap_or(&"").as_bytes()).await?;
    Ok(redis::cmd(words[0]).arg(&words[1..]).query_async(&mut redis).await)
}

async fn works(url: &str) {
    let pool = pool(url);
    ask::<()>(&pool, &["SET", "key", "value"]).await.unwrap().unwrap();
    assert_eq!(ask::<String>(&pool, &["GETRANGE", "key", "0", "2"]).await.unwrap().unwrap(), "val");
}

fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_signs_in_and_chooses_the_database() {
    let redis = RedisServer::options().password("s3cret").start();
    works(&redis.database(3)).await;
    assert!(redis.cli(&["INFO", "keyspace"]).contains("db3:keys=1"));
    let wrong = pool(&redis.url_as("", "hidden")).get(b"").await.err().unwrap();
    assert!(matches!(wrong, LayerError::Unavailable(_)), "{wrong:?}");
    let text = causes(&wrong);
    assert!(text.contains("127.0.0.1") && !text.contains("hidden"), "{text}");
    assert!(matches!(Host::from("hidden").pool(1), Err(LayerError::Config(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_speaks_over_unix_sockets_and_tls_of_every_kind() {
    let redis = RedisServer::start_with(&["--unixsocket", "redis.sock"]);
    works(&format!("unix://{}", redis.process().dir().join("redis.sock").display())).await;
    let tls = redis.switch_tls_on(&TlsOptions {
        names: vec!["redis.example.org".into()],
        client_certificates: true,
        ..TlsOptions::default()
    });
    let dir = redis.process().dir();
    std::fs::write(dir.join("client.pem"), &tls.client_certificate).unwrap();
    std::fs::write(dir.join("client.key"), &tls.client_key).unwrap();
    let dir = dir.display();
    let files = format!("ssl_ca_certs={dir}/ca.pem&ssl_certfile={dir}/client.pem&ssl_keyfile={dir}/client.key");
    works(&format!("{}?{files}&tls_server_name=redis.example.org", tls.url())).await;
    let wrong = pool(&format!("{}?{files}", tls.url())).get(b"").await.err().unwrap();
    assert!(causes(&wrong).contains("127.0.0.1"), "{wrong:?}");
    works(&format!("{}?{files}#insecure", tls.url())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_certificates_are_taken_over_for_the_connections_to_come() {
    let (redis, wants) = (RedisServer::start(), TlsOptions { client_certificates: true, ..TlsOptions::default() });
    let first = redis.switch_tls_on(&wants);
    let host = |tls: &Tls| {
        let host = Host::from(tls.url()).root_certificates(&tls.ca);
        host.client_certificate(&tls.client_certificate, &tls.client_key)
    };
    let own = host(&first);
    let pool = own.pool(2).unwrap();
    ask::<()>(&pool, &["SET", "key", "1"]).await.unwrap().unwrap();
    let second = redis.renew_tls(&wants, &first);
    redis.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    let refused = pool.get(b"").await.err().unwrap();
    assert!(matches!(refused, LayerError::Unavailable(_)), "{refused:?}");
    let other = host(&second);
    assert!(own.is_same_place(&other) && !own.has_certificates_of(&other));
    for unusable in [
        Host::from(second.url()).root_certificates(b"no certificate"),
        Host::from("redis://127.0.0.1:1"),
        Host::from(format!("{}#insecure", second.url())),
    ] {
        assert!(!own.take_credentials(&unusable), "{unusable:?}");
    }
    assert!(own.take_credentials(&other) && own.has_certificates_of(&other));
    ask::<()>(&pool, &["SET", "key", "2"]).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_shared_and_one_that_failed_is_not_used_again() {
    let redis = RedisServer::start();
    let pool = pool(&redis.url());
    let id = async || ask::<i64>(&pool, &["CLIENT", "ID"]).await.unwrap().unwrap();
    let first = id().await;
    assert_eq!(id().await, first);
    redis.cli(&["SADD", "set", "x"]);
    assert!(ask::<String>(&pool, &["GETRANGE", "set", "0", "1"]).await.unwrap().is_err());
    let second = id().await;
    assert_ne!(second, first, "a refusal may mean that the server is not ours any more");
    redis.cli(&["CLIENT", "KILL", "ID", &second.to_string()]);
    assert_ne!(id().await, second);
    // There are two, and whoever comes third waits for a while.
    let (held, other) = (pool.get(b"").await.unwrap(), pool.get(b"").await.unwrap());
    assert!(matches!(pool.get(b"").await.err().unwrap(), LayerError::Timeout));
    drop((held, other));
    id().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r9_a_pool_follows_the_primary_that_sentinels_name() {
    let mut redis = Sentinels::start();
    let pool = pool(&redis.url());
    ask::<()>(&pool, &["SET", "key", "1"]).await.unwrap().unwrap();
    redis.kill_primary();
    until_ok("a write after the failover", async || {
        ask::<()>(&pool, &["SET", "key", "2"])
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| error.to_string())
    })
    .await;
    redis.wait_failover();
    assert_eq!(redis.primary().cli(&["GET", "key"]), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_of_a_cluster_is_asked_for_at_its_node() {
    let mut cluster = Cluster::start();
    let pool = pool(&cluster.url());
    let keys: Vec<String> = (0..12).map(|n| format!("key{n}")).collect();
    for key in &keys {
        ask::<()>(&pool, &["SET", key, "value"]).await.unwrap().unwrap();
    }
    let lost = cluster.kill_primary_of(&keys[0]);
    cluster.wait_failover(lost);
    for key in &keys {
        until_ok("a write after the failover", async || {
            let done = ask::<()>(&pool, &["SET", key, "again"]).await.map_err(|error| error.to_string())?;
            done.map_err(|error| error.to_string())
        })
        .await;
    }
}
