//! A Redis that refuses: R11 and R12.

use std::time::Duration;

use channel_layer::{Event, LayerError, RedisCoreLayer};
use testkit::{proxy::ChaosProxy, redis::RedisServer};
use tokio::time::timeout;

use crate::{
    common::{PATIENCE, channel, group, heard, until},
    errors::{ERRORS, Errors},
    log::Log,
    number, numbered, ready, site,
    site::Site,
};

fn told(result: Result<RedisCoreLayer, LayerError>, reason: &str, secrets: &[&str]) {
    match result {
        Err(LayerError::Unavailable(why)) => {
            let text = why.to_string();
            assert!(text.contains(reason), "{reason}: {text}");
            assert!(secrets.iter().all(|secret| !text.contains(secret)), "{text}");
        }
        other => panic!("{reason}: {other:?}"),
    }
}

#[tokio::test]
async fn r11_a_wrong_password_and_missing_rights_are_told_at_the_start() {
    let mut server = RedisServer::start();
    server.set_password("rotten-secret");
    told(RedisCoreLayer::connect(&server.url_as("", "wrong-secret")).await, "WRONGPASS", &["wrong-secret"]);
    let plain = format!("redis://127.0.0.1:{}", server.port());
    told(RedisCoreLayer::connect(&plain).await, "NOAUTH", &[]);
    // Everything is allowed but the scripts.
    server.set_user("site", "site-secret", &["~*", "+@all", "-eval"]);
    told(RedisCoreLayer::connect(&server.url_as("site", "site-secret")).await, "NOPERM", &["site-secret"]);
    // And all but the keys.
    server.set_user("site", "site-secret", &["~other*", "+@all"]);
    told(RedisCoreLayer::connect(&server.url_as("site", "site-secret")).await, "NOPERM", &["site-secret"]);
    assert_eq!(server.cli(&["DBSIZE"]), "0");
}

/// The commands of the layer's documentation are enough.
#[tokio::test(flavor = "multi_thread")]
async fn r11_the_documented_rights_are_enough() {
    let server = RedisServer::start();
    let commands = "+zadd +zrem +zrange +zcount +zscore +zremrangebyscore +zrangebyscore +zpopmin +bzpopmin +expire +eval +time +set +del +type +scan +ping";
    let rights: Vec<&str> = ["~asgi*", "~gateway*"].into_iter().chain(commands.split(' ')).collect();
    server.set_user("site", "site-secret", &rights);
    let mut site = site(&server.url_as("site", "site-secret")).await;
    site.works().await;
    let (own, job) = (site.layer.new_channel("").await.unwrap(), channel("job"));
    for name in [&own, &job] {
        site.layer.send(name, &numbered(1)).await.unwrap();
        assert_eq!(number(&heard(&*site.layer, name).await), 1);
    }
    site.layer.flush().await.unwrap();
    site.layer.group_add(&group("room"), &own).await.unwrap();
    site.layer.close().await.unwrap();
}

#[tokio::test]
async fn r11_a_password_changed_while_running_makes_it_not_ready_until_it_is_right_again() {
    let (log, _guard) = Log::collect();
    let mut server = RedisServer::start();
    server.set_password("first-secret");
    let proxy = ChaosProxy::to(server.port());
    let url = proxy.url().replace("redis://", "redis://:first-secret@");
    let mut site = site(&url).await;
    site.works().await;
    server.set_password("second-secret");
    server.client_kill("normal");
    site.is_down(1).await;
    assert!(site.layer.ping().await.is_err());
    assert!(site.layer.group_send(&site.group, &Event::new("x")).await.is_err());
    // It goes on trying, slowly.
    let before = proxy.accepted();
    crate::pass(Duration::from_secs(3)).await;
    let made = proxy.accepted() - before;
    assert!(made <= 60, "{made} attempts of five connections in 3 seconds");
    server.set_password("first-secret");
    site.is_up(1).await;
    site.works().await;
    let lines = log.lines().join("\n");
    assert!(lines.contains("WRONGPASS"), "{lines}");
    assert!(!lines.contains("-secret"), "{lines}");
}

/// A right taken away while it runs: the queue that cannot be read is reported once, not in turns.
#[tokio::test(flavor = "multi_thread")]
async fn r11_a_right_taken_away_makes_it_not_ready_until_it_is_given_back() {
    let server = RedisServer::start();
    server.set_user("site", "site-secret", &["~*", "+@all"]);
    let mut site = site(&server.url_as("site", "site-secret")).await;
    site.works().await;
    server.cli(&["ACL", "SETUSER", "site", "-zpopmin", "-bzpopmin"]);
    site.until("it is not ready", |site, _| site.downs == 1).await;
    crate::pass(Duration::from_secs(2)).await;
    let _ = timeout(Duration::from_millis(300), site.until("", |_, _| false)).await;
    let (downs, ups) = (site.downs, site.ups);
    assert!(downs <= 2 && ups <= 1, "told {downs} times of a loss and {ups} times of a return");
    assert!(site.layer.ping().await.is_err());
    server.cli(&["ACL", "SETUSER", "site", "+zpopmin", "+bzpopmin"]);
    site.works_again().await;
    ready(&*site.layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_every_error_to_a_script_is_told_and_passes() {
    let server = RedisServer::start();
    let errors = Errors::to(server.port()).await;
    let mut site = site(&errors.url()).await;
    site.works().await;
    for (n, error) in ERRORS.into_iter().enumerate() {
        let word = error.split(' ').next().unwrap();
        let other = [group(&format!("other.{n}"))];
        errors.answer("EVAL", Some(error));
        let limit = Duration::from_secs(8);
        let attempts = [
            timeout(limit, site.layer.send(&channel("nobody"), &Event::new("x"))).await,
            timeout(limit, site.layer.group_send(&site.group, &Event::new("x"))).await,
            timeout(limit, site.relay.join(&other)).await,
        ];
        for attempt in attempts {
            match attempt.expect("every command has a deadline") {
                // On some errors the connection is made anew, and what waited meanwhile hears of that.
                Err(LayerError::Unavailable(why)) => {
                    let why = why.to_string();
                    assert!(why.contains(word) || why.contains("connect"), "{error}: {why}");
                }
                Err(LayerError::Timeout) => {}
                other => panic!("{error}: {other:?}"),
            }
        }
        errors.answer("EVAL", None);
        site.works_again().await;
        assert_eq!(server.cli(&["EXISTS", &format!("asgi:group:other.{n}")]), "0", "{error}: nothing was joined");
        site.relay.join(&other).await.unwrap();
    }
    until("it is ready", || site.layer.stats().reconnects > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_every_error_to_a_pop_passes() {
    let server = RedisServer::start();
    let errors = Errors::to(server.port()).await;
    let mut site = site(&errors.url()).await;
    let job = channel("job");
    for error in ERRORS {
        let before = errors.answered();
        errors.answer("ZPOPMIN", Some(error));
        errors.answer("BZPOPMIN", Some(error));
        let receiving = timeout(PATIENCE, site.layer.receive(&job));
        let passing = async {
            until("pops are refused", || errors.answered() >= before + 2).await;
            errors.answer("ZPOPMIN", None);
            errors.answer("BZPOPMIN", None);
            site.layer.send(&job, &numbered(1)).await.unwrap();
        };
        let (received, ()) = tokio::join!(receiving, passing);
        assert_eq!(number(&received.expect("the plain channel is read again").unwrap()), 1, "{error}");
        site.works_again().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_every_error_to_a_new_connection_is_told_and_tried_again() {
    let server = RedisServer::start();
    let errors = Errors::to(server.port()).await;
    for error in ERRORS {
        errors.answer("PING", Some(error));
        told(RedisCoreLayer::connect(&errors.url()).await, error, &[]);
    }
    errors.answer("PING", Some(ERRORS[0]));
    let layer = RedisCoreLayer::builder(&errors.url()).start().unwrap();
    let mut site = Site::new_later(layer).await;
    assert!(site.layer.ping().await.is_err());
    let before = errors.connections();
    until("it tries again and again", || errors.connections() >= before + 20).await;
    errors.answer("PING", None);
    site.is_up(1).await;
    site.relay.join(std::slice::from_ref(&site.group)).await.unwrap();
    site.works().await;
}

/// A script of somebody else's that never ends: everybody is refused until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn r12_a_busy_server_is_survived() {
    let server = RedisServer::start_with(&["--busy-reply-threshold", "200"]);
    let mut site = site(&server.url()).await;
    site.works().await;
    std::thread::scope(|threads| {
        threads.spawn(|| server.try_cli(&["EVAL", "while true do end", "0"]));
        testkit::wait::until("the server is busy", PATIENCE, || {
            server.try_cli(&["PING"]).is_some_and(|answer| answer.starts_with("-BUSY"))
        });
        assert_eq!(server.cli(&["SCRIPT", "KILL"]), "OK");
    });
    site.works_again().await;
    ready(&*site.layer).await;
}

/// A disk that is full refuses everything that writes.
#[tokio::test(flavor = "multi_thread")]
async fn r12_a_server_that_cannot_save_is_told_and_survived() {
    let server = RedisServer::start_with(&["--dbfilename", "full.rdb"]);
    let mut site = site(&server.url()).await;
    site.works().await;
    server.cli(&["CONFIG", "SET", "save", "3600 1"]);
    // Saving fails, as a directory is in its way.
    std::fs::create_dir(server.process().dir().join("full.rdb")).unwrap();
    std::fs::write(server.process().dir().join("full.rdb/x"), "x").unwrap();
    server.cli(&["BGSAVE"]);
    testkit::wait::until("saving fails", PATIENCE, || {
        server.cli(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err")
    });
    match site.layer.group_send(&site.group, &Event::new("x")).await {
        Err(LayerError::Unavailable(why)) => assert!(why.to_string().contains("MISCONF"), "{why}"),
        other => panic!("{other:?}"),
    }
    server.cli(&["CONFIG", "SET", "save", ""]);
    site.works_again().await;
}
