//! Nodes whose wall clock is wrong, or jumps. Rows are dated and judged by the database's clock, sockets by one that
//! never jumps; and that clocks differ is told.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, Door, NodeProcess, TestNode, eventually, eventually_within, token_with};
use gateway::{Event, GroupName};
use serde_json::{Value, json};
use testkit::clock::ShiftedClock;
use testkit::mariadb::MariaDb;
use testkit::postgres::Postgres;
use testkit::proxy::{ChaosProxy, Way};
use testkit::redis::RedisServer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

async fn join(door: Door, user: &str, seconds: u64) -> Result<Client, u16> {
    let bearer = format!("Bearer {}", token_with(user, &[], seconds));
    door.try_connect("/ws/chat/lobby/", &[("authorization", &bearer)]).await
}

async fn readyz(door: Door) -> (u16, Value) {
    let (status, text) = door.get("/readyz").await;
    (status, serde_json::from_str(&text).unwrap())
}

fn is_now(date: &Value) -> bool {
    let date = OffsetDateTime::parse(date.as_str().unwrap(), &Rfc3339).unwrap();
    (OffsetDateTime::now_utc() - date).abs() < time::Duration::MINUTE
}

/// How far from the clocks of the others this node's is, as its metrics have it.
async fn is_ahead(door: Door, seconds: i64) -> bool {
    let mut measured = Vec::new();
    for of in ["database", "redis"] {
        measured.push(door.metric(&format!("gateway_clock_skew_seconds{{of=\"{of}\"}}")).await);
    }
    measured.iter().all(|skew| (skew + seconds as f64).abs() < 2.0)
}

/// N9: what is open goes by no wall clock, and new tokens by the database's. The change is noticed and told at once.
#[tokio::test(flavor = "multi_thread")]
async fn n9_a_clock_that_jumps_ends_no_sign_in_and_prolongs_none() {
    const BOBS: u64 = 20;
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let clock = ShiftedClock::new();
    let node = NodeProcess::start_by(clock.command(), &[("redis-url", &redis.url()), ("database-url", &database)]);
    let door = node.door;
    let began = Instant::now();
    let mut alice = join(door, "alice", 600).await.unwrap();
    let mut bob = join(door, "bob", BOBS).await.unwrap();
    // Renewed: the first end counts no more.
    let mut carol = join(door, "carol", 5).await.unwrap();
    let renewed = carol.ask(json!({"cate": "auth", "token": token_with("carol", &[], 600)})).await;
    assert_eq!(renewed["type"], "auth");
    let before = readyz(door).await;
    assert_eq!((before.0, &before.1["status"]), (200, &json!("ok")), "{before:?}");
    for (number, jump) in [HOUR, -HOUR, 2 * DAY, -2 * DAY, 0].into_iter().enumerate() {
        clock.set(jump);
        eventually("it is noticed", || is_ahead(door, jump)).await;
        let (status, ready) = readyz(door).await;
        let apart = if jump == 0 { json!([]) } else { json!(["clock_skew_database", "clock_skew_redis"]) };
        let word = if jump == 0 { "ok" } else { "degraded" };
        assert_eq!((status, &ready["status"], &ready["degraded"]), (200, &json!(word), &apart), "{ready}");
        assert_eq!(join(door, "dave", 600).await.err(), None, "a token made just now, {jump}");
        assert_eq!(join(door, "dave", 0).await.err(), Some(401), "one that is over, {jump}");
        let ack = alice.say_acked("lobby", "still here", &number.to_string()).await;
        assert!(ack["seq"] == number + 1 && is_now(&ack["date"]), "{ack}");
        assert_eq!(carol.hears().await, "still here");
    }
    let told = |line: &str| node.log().matches(line).count();
    eventually("each is told once, and its end", || async {
        told("a clock differs from this node's") == 2 && told("a clock agrees with this node's again") == 2
    })
    .await;
    clock.set(-2 * DAY);
    bob.patience = Duration::from_secs(2 * BOBS);
    assert_eq!(bob.closed().await, 4401, "his sign-in ends when it was to end");
    // A token's end is a whole second.
    assert!(began.elapsed() >= Duration::from_secs(BOBS - 2), "and no sooner");
    assert_eq!(alice.say_acked("lobby", "still here", "last").await["type"], "ack");
}

/// Days of a node's clock are nothing to what is stored.
async fn a_node_far_off(seconds: i64, database: &str, sql: impl Fn(&str)) {
    // What another node has stored, whose clock is right.
    let right = TestNode::start(&[("database-url", database), ("retention.interval_seconds", "0")]).await;
    let mut alice = right.join("alice", "lobby").await;
    let first = alice.say_acked("lobby", "one", "1").await;

    let clock = ShiftedClock::new();
    clock.set(seconds);
    let days = [("retention.messages_days", "1"), ("retention.notifications_days", "1")];
    let own = [("database-url", database), ("retention.interval_seconds", "1")];
    let node = NodeProcess::start_by(clock.command(), &[&own[..], &days].concat());
    let door = node.door;
    let mut alice = join(door, "alice", 600).await.unwrap();
    let second = alice.say_acked("lobby", "two", "2").await;
    assert!(is_now(&second["date"]), "{second}");
    let expires = |hours: i64| (OffsetDateTime::now_utc() + time::Duration::hours(hours)).format(&Rfc3339).unwrap();
    let event = |hours: i64| {
        json!({"type": "notification", "to": "user:carol", "id": hours.to_string(), "expires_at": expires(hours),
               "data": {"message": "paid", "from_user": "shop"}})
    };
    let (_, results) = door.api("POST", "/api/events", Some(json!([event(1), event(2), event(-1)]))).await;
    let results = &results["results"];
    assert!(is_now(&results[0]["date"]) && results[1]["seq"] == 2 && results[2]["expired"] == true, "{results}");

    let runs = async || door.metric("gateway_retention_runs_total{result=\"done\"}").await;
    let before = runs().await;
    eventually("what is old has been looked for", async || runs().await >= before + 2.0).await;
    let deleted = async |kind: &str| door.metric(&format!("gateway_retention_deleted_total{{kind=\"{kind}\"}}")).await;
    assert_eq!((deleted("message").await, deleted("notification").await, deleted("receipt").await), (0.0, 0.0, 0.0));
    // No repeat is stored a second time, whoever stored it first and wherever it comes.
    let mut again = right.join("alice", "lobby").await;
    for speaker in [&mut alice, &mut again] {
        for (text, id, ack) in [("one", "1", &first), ("two", "2", &second)] {
            let repeated = speaker.say_acked("lobby", text, id).await;
            assert_eq!((&repeated["seq"], &repeated["id"]), (&ack["seq"], &ack["id"]), "{repeated}");
        }
    }
    let history =
        async || door.api("GET", "/api/rooms/lobby/history", None).await.1["messages"].as_array().unwrap().len();
    assert_eq!(history().await, 2);
    // What is old by the database's clock goes.
    sql(&format!("UPDATE gateway_messages SET date = date - {} WHERE seq = 1", 2 * DAY * 1_000_000));
    eventually("it is gone", async || history().await == 1).await;
    assert_eq!((deleted("message").await, deleted("notification").await, deleted("receipt").await), (1.0, 0.0, 0.0));
    let (status, ready) = readyz(door).await;
    let apart = (200, &json!("degraded"), &json!(["clock_skew_database"]));
    assert_eq!((status, &ready["status"], &ready["degraded"]), apart, "since the start");
    assert!(node.log().contains("a clock differs from this node's"), "{}", node.log());
}

async fn far_off_on_postgres(seconds: i64) {
    let (server, database) = (Postgres::shared(), Postgres::shared().fresh_database());
    a_node_far_off(seconds, &database, |sql| drop(server.sql(&database, sql))).await;
}

async fn far_off_on_mariadb(seconds: i64) {
    let (server, database) = (MariaDb::shared(), MariaDb::shared().fresh_database());
    a_node_far_off(seconds, &database, |sql| drop(server.sql(&database, sql))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_deletes_nothing_young_and_stores_no_repeat_on_postgres() {
    far_off_on_postgres(-10 * DAY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_node_deletes_nothing_young_and_stores_no_repeat_on_postgres() {
    far_off_on_postgres(10 * DAY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_node_deletes_nothing_young_and_stores_no_repeat_on_mariadb() {
    far_off_on_mariadb(-10 * DAY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_node_deletes_nothing_young_and_stores_no_repeat_on_mariadb() {
    far_off_on_mariadb(10 * DAY).await;
}

/// What the wrong clock has dated stays where it is, in order; nobody waits for its dates to come.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_whose_clock_goes_back_keeps_the_order_and_the_retention() {
    let (clock, redis) = (ShiftedClock::new(), RedisServer::start());
    clock.set(3 * DAY);
    let postgres = Postgres::start_with_clock(&clock);
    let database = postgres.fresh_database();
    let node = TestNode::start(&[
        ("database-url", &database),
        ("redis-url", &redis.url()),
        ("retention.messages_days", "1"),
        ("retention.interval_seconds", "1"),
    ])
    .await;
    let door = node.at();
    assert_eq!(readyz(door).await.1["degraded"], json!(["clock_skew_database"]));
    let mut alice = join(door, "alice", 10 * DAY as u64).await.unwrap();
    let mut dates = Vec::new();
    for number in 1..=6 {
        if number == 4 {
            let turns = node.metric("gateway_retention_runs_total{result=\"done\"}").await;
            eventually("there is a lease of that time", async || {
                node.metric("gateway_retention_runs_total{result=\"done\"}").await > turns
            })
            .await;
            clock.set(0);
        }
        let ack = alice.say_acked("lobby", "x", &number.to_string()).await;
        assert_eq!(ack["seq"], number);
        dates.push(OffsetDateTime::parse(ack["date"].as_str().unwrap(), &Rfc3339).unwrap());
    }
    assert!(dates[2] - dates[3] > time::Duration::DAY, "{dates:?}");
    let seqs = async || {
        let (_, history) = door.api("GET", "/api/rooms/lobby/history", None).await;
        let messages = history["messages"].as_array().unwrap().iter();
        messages.map(|message| message["seq"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let turns = async || node.metric("gateway_retention_runs_total{result=\"done\"}").await;
    let before = turns().await;
    eventually("it goes on", async || turns().await >= before + 2.0).await;
    assert_eq!(seqs().await, [1, 2, 3, 4, 5, 6]);
    postgres
        .sql(&database, &format!("UPDATE gateway_messages SET date = date - {} WHERE seq = 4", 2 * DAY * 1_000_000));
    eventually("what is old is gone, and what came before it", async || seqs().await == [5, 6]).await;
    // The other's clock was set, not the node's: that is noticed within a minute.
    eventually_within(Duration::from_secs(120), "the clocks agree", async || readyz(door).await.1["status"] == "ok")
        .await;
}

/// Nobody has stored it, so nobody has dated it: the node does, as the database would.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_from_outside_gets_the_database_s_time() {
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let settings = [("redis-url", &redis.url()[..]), ("database-url", &database)];
    let clock = ShiftedClock::new();
    clock.set(-2 * DAY);
    let node = NodeProcess::start_by(clock.command(), &settings);
    let other = TestNode::start(&settings).await;
    let mut alice = join(node.door, "alice", 600).await.unwrap();
    let send = async |group: &str, event: Event| {
        let group: GroupName = group.parse().unwrap();
        other.running.node().layer.group_send(&group, &event).await.unwrap();
    };
    let names = &other.running.node().names;
    let event = Event::new("chat.message").with("message", "hi").with("group_name", "lobby");
    send(names.room("lobby").unwrap().as_str(), event).await;
    let frame = alice.until(|frame| frame["message"] == "hi").await;
    assert!(is_now(&frame["date"]), "{frame}");
    for (date, stays) in [("2020-01-01T00:00:00Z", true), ("yesterday", false)] {
        let event = Event::new("notification.message").with("message", date).with("date", date);
        send(names.user("alice").unwrap().as_str(), event).await;
        let frame = alice.until(|frame| frame["message"] == date).await;
        assert!(if stays { frame["date"] == date } else { is_now(&frame["date"]) }, "{frame}");
    }
}

/// Half a second for an answer, whatever hangs, and a metric for who does not ask.
#[tokio::test(flavor = "multi_thread")]
async fn readyz_answers_in_time_whatever_hangs() {
    let (redis, postgres) = (RedisServer::start(), Postgres::shared());
    let (to_redis, to_postgres) = (ChaosProxy::redis(redis.port()), ChaosProxy::to(postgres.port()));
    let database = postgres.fresh_database();
    let database = database.replace(&format!(":{}/", postgres.port()), &format!(":{}/", to_postgres.port()));
    let node = TestNode::start(&[("redis-url", &to_redis.url()), ("database-url", &database)]).await;
    let door = node.at();
    let gauges = async || {
        let mut gauges = Vec::new();
        for name in ["redis_up", "database_up", "ready"] {
            gauges.push(door.metric(&format!("gateway_{name}")).await as u8);
        }
        gauges
    };
    let seen = async |part: &'static str| {
        let began = Instant::now();
        let (status, ready) = readyz(door).await;
        // A busy machine may take a while; a part that hangs would take longer.
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert_eq!((status, &ready["status"], &ready["ready"]), (503, &json!("unavailable"), &json!(false)), "{ready}");
        assert_eq!(ready[part], "unavailable", "{ready}");
    };
    eventually("all is well", async || gauges().await == [1, 1, 1]).await;
    to_postgres.black_hole(Way::Both);
    eventually("without being asked", async || gauges().await == [1, 0, 0]).await;
    for _ in 0..5 {
        seen("database").await;
    }
    to_redis.black_hole(Way::Both);
    eventually("without being asked", async || gauges().await == [0, 0, 0]).await;
    for _ in 0..5 {
        seen("redis").await;
    }
    to_postgres.pass();
    to_redis.pass();
    eventually("all is well again", async || readyz(door).await.0 == 200 && gauges().await == [1, 1, 1]).await;
}

/// Nothing fails in silence, and nothing of this is a reason to send clients elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_background_task_that_fails_is_named_until_it_works_again() {
    let (postgres, database) = (Postgres::shared(), Postgres::shared().fresh_database());
    let node = NodeProcess::start(&[("database-url", &database), ("retention.interval_seconds", "1")]);
    let failures = async || node.door.metric("gateway_background_failures_total{task=\"retention\"}").await;
    postgres.sql(&database, "ALTER TABLE gateway_leases RENAME TO gone");
    eventually("it fails", async || failures().await >= 3.0).await;
    let (status, ready) = readyz(node.door).await;
    assert_eq!(
        (status, &ready["status"], &ready["degraded"]),
        (200, &json!("degraded"), &json!(["retention"])),
        "{ready}"
    );
    postgres.sql(&database, "ALTER TABLE gone RENAME TO gateway_leases");
    eventually("it works again", async || readyz(node.door).await.1["status"] == "ok").await;
    let told = |line: &str| node.log().lines().filter(|text| text.contains(line) && text.contains("WARN")).count();
    eventually("both are told once", async || {
        (told("a background task fails"), told("a background task works again")) == (1, 1)
    })
    .await;
}
