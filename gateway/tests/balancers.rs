//! Nodes behind the balancers of `deploy/`: idle sockets, balancers that restart, nodes that freeze or leave, and
//! what the logs of both say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests, some of which tell figures")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::balancer::{self, Balancer, changed};
use common::page::{IMPATIENT, PATIENT, Page, say, try_open};
use common::{Door, Heard, NodeProcess, TestNode, eventually, eventually_within, token};
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::task::JoinSet;
use tokio::time::timeout;

fn is_long() -> bool {
    std::env::var_os("GATEWAY_LONG").is_some()
}

fn user(number: usize) -> String {
    format!("user-{number}")
}

// ---- L1: an idle socket ----

/// Time-outs of both balancers that are as long as this.
fn short(seconds: u32) -> (String, String) {
    let haproxy = changed(balancer::HAPROXY, "timeout tunnel 1h", &format!("timeout tunnel {seconds}s"));
    let nginx = changed(balancer::NGINX, "proxy_read_timeout 1h", &format!("proxy_read_timeout {seconds}s"));
    (haproxy, nginx)
}

async fn an_idle_socket(
    configs: &(String, String),
    pings: &[(&str, &str)],
    idle: Duration,
) -> Vec<(usize, Option<Heard>)> {
    let node = TestNode::start(pings).await;
    let balancers = [Balancer::haproxy_with(&[node.at()], &configs.0), Balancer::nginx_with(&[node.at()], &configs.1)];
    let mut waiting = JoinSet::new();
    for (number, balancer) in balancers.iter().enumerate() {
        let mut client = balancer.door.join(&user(number), &user(number)).await;
        waiting.spawn(async move {
            let heard = client.hear_within(idle).await;
            if heard.is_none() {
                client.hears_nothing_before_own(&user(number)).await;
            }
            (client.pings, heard)
        });
    }
    waiting.join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn l1_pings_keep_an_idle_socket_up_through_haproxy_and_nginx() {
    let often = [("limits.ping_seconds", "1")];
    for (pings, heard) in an_idle_socket(&short(4), &often, Duration::from_secs(10)).await {
        assert!(pings >= 4 && heard.is_none(), "{pings} pings, {heard:?}");
    }
    // Without pings the same time-outs end it: they are what was withstood.
    let never = [("limits.ping_seconds", "60")];
    for (_, heard) in an_idle_socket(&short(2), &never, Duration::from_secs(20)).await {
        assert_eq!(heard, Some(Heard::Gone));
    }
}

/// The files as they are, the node's own pings, and nginx with the time-out that it has by itself.
#[tokio::test(flavor = "multi_thread")]
async fn l1_five_minutes_through_both_as_they_are() {
    if !is_long() {
        return;
    }
    let nginx = changed(balancer::NGINX, "proxy_read_timeout 1h;", "");
    let configs = (balancer::HAPROXY.to_owned(), nginx);
    for (pings, heard) in an_idle_socket(&configs, &[], Duration::from_secs(300)).await {
        assert!(pings >= 8 && heard.is_none(), "{pings} pings, {heard:?}");
    }
}

// ---- L2: a balancer that restarts ----

/// L2: all clients are cut at once and come back at random times; what that costs the database does not grow with them.
#[tokio::test(flavor = "multi_thread")]
async fn l2_clients_of_a_restarted_balancer_come_back_and_share_the_statements() {
    let clients = if is_long() { 2000 } else { 300 };
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let settings = [("redis-url", &redis.url()[..]), ("database-url", &database), ("limits.handshake_seconds", "60")];
    let (one, two) = (TestNode::start(&settings).await, TestNode::start(&settings).await);
    let mut balancer = Balancer::haproxy(&[one.at(), two.at()]);
    let door = balancer.door;
    let (shown, came_back) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut pages = JoinSet::new();
    for number in 0..clients {
        let (shown, came_back) = (Arc::clone(&shown), Arc::clone(&came_back));
        pages.spawn(async move {
            let mut page = Page::open(door, &user(number)).await;
            page.client.patience = Duration::from_secs(120);
            assert!(page.shows(1).await);
            shown.fetch_add(1, Ordering::Relaxed);
            assert!(!page.shows(u64::MAX).await);
            let cut = Instant::now();
            page.come_back(door, PATIENT).await;
            came_back.fetch_add(1, Ordering::Relaxed);
            assert!(page.shows(6).await, "{} lost the connection again: {}", page.user, page.code);
            cut.elapsed().as_secs()
        });
        // As many at a time as a balancer's queue takes.
        if number % 100 == 99 {
            eventually("they are connected", || async {
                let open = one.metric("gateway_connections").await + two.metric("gateway_connections").await;
                open as usize > number
            })
            .await;
        }
    }
    let open = async || (one.metric("gateway_connections").await + two.metric("gateway_connections").await) as usize;
    eventually_within(Duration::from_secs(60), "all are connected", || async { open().await == clients }).await;
    say(one.at(), "1").await;
    eventually_within(Duration::from_secs(60), "all hear", || async { shown.load(Ordering::Relaxed) == clients }).await;
    balancer.kill();
    for text in 2..=6 {
        say(two.at(), &text.to_string()).await;
    }
    eventually("the nodes have noticed", || async { open().await == 0 }).await;
    let statements = || one.running.node().store.statements() + two.running.node().store.statements();
    let before = statements();
    balancer.start();
    let mut per_second = BTreeMap::new();
    while let Some(second) = pages.join_next().await {
        *per_second.entry(second.unwrap()).or_insert(0) += 1;
    }
    let statements = statements() - before;
    println!("{clients} clients were back and complete after so many seconds: {per_second:?}; {statements} statements");
    assert_eq!(came_back.load(Ordering::Relaxed), clients);
    // Each by itself would cost four: its user, its rooms, where they are, what it missed.
    assert!(statements < 2 * clients as u64, "{statements} statements");
    assert!(per_second.keys().all(|second| *second <= 60), "{per_second:?}");
}

// ---- N3: a drain that is cut short ----

const LEAVING: usize = 40;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Cut {
    Killed,
    SecondSignal,
}

async fn a_drain_cut_short(cut: Cut) {
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let settings = [("redis-url", &redis.url()[..]), ("database-url", &database), ("limits.frames_per_second", "0")];
    // So slowly that there is something to cut short.
    let slowly = [("drain.window_seconds", "20"), ("drain.reconnects_per_second", "4")];
    let mut one = NodeProcess::start(&[&settings[..], &slowly].concat());
    let two = NodeProcess::start(&settings);
    let (first, second) = (one.door, two.door);
    let mut opened = Vec::new();
    for number in 0..LEAVING {
        opened.push(Page::open(first, &user(number)).await);
    }
    let told = Arc::new(AtomicUsize::new(0));
    let mut pages = JoinSet::new();
    for mut page in opened {
        let told = Arc::clone(&told);
        pages.spawn(async move {
            assert!(!page.shows(u64::MAX).await);
            if page.code == 1012 {
                told.fetch_add(1, Ordering::Relaxed);
            }
            page
        });
    }
    // Who leaves in peace and who is cut off is acknowledged things all the time.
    let mut bob = second.join("bob", "lobby").await;
    let mut last = 0;
    let mut speak = async || {
        last += 1;
        let ack = bob.say_acked("lobby", &last.to_string(), &last.to_string()).await;
        assert_eq!((ack["type"].as_str(), ack["seq"].as_u64()), (Some("ack"), Some(last)));
        last
    };
    speak().await;
    one.process.signal("TERM");
    // One thing for each that leaves: who missed more than `limits.resume_frames` would be told to reload. Ten leave in a
    // second, so the others are cut off though this machine may be busy.
    for leaves in 0..LEAVING / 8 {
        speak().await;
        eventually("another one is told", || async { told.load(Ordering::Relaxed) > leaves }).await;
    }
    match cut {
        Cut::Killed => one.process.kill(),
        Cut::SecondSignal => {
            one.process.signal("TERM");
            eventually("it ends at once", || async { !one.process.running() }).await;
            assert_eq!(one.process.exit_code(), 3, "{}", one.log());
            assert!(one.log().contains("leaving at once"), "{}", one.log());
        }
    }
    let last = speak().await;
    let mut codes = BTreeMap::new();
    for mut page in pages.join_all().await {
        *codes.entry(page.code).or_insert(0) += 1;
        page.come_back(second, PATIENT).await;
        assert!(page.shows(last).await, "{}", page.code);
    }
    assert!(codes.len() == 2 && codes.contains_key(&1012) && codes.contains_key(&1006), "{codes:?}");
}

/// N3: a grace that is too short.
#[tokio::test(flavor = "multi_thread")]
async fn n3_clients_of_a_node_killed_in_its_drain_resume_elsewhere() {
    a_drain_cut_short(Cut::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn n3_a_second_signal_ends_the_drain_with_3_and_clients_resume_elsewhere() {
    a_drain_cut_short(Cut::SecondSignal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn n3_the_exit_code_says_whether_sockets_were_left() {
    for (window, code) in [("5", 0), ("0", 3)] {
        let mut node = NodeProcess::start(&[("drain.window_seconds", window)]);
        // Who does not answer the goodbye is waited for, within the window.
        let silent = node.door.join("alice", "lobby").await;
        node.process.signal("TERM");
        eventually("it ends", || async { !node.process.running() }).await;
        assert_eq!(node.process.exit_code(), code, "{}", node.log());
        drop(silent);
    }
}

/// It may wait for its servers half a minute, and is not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn n3_a_node_that_waits_for_its_servers_stops_when_asked_to() {
    let mut redis = RedisServer::start();
    redis.pause();
    let nowhere = format!("postgres://postgres@127.0.0.1:{}/x", testkit::net::free_port());
    for (settings, waits) in [
        (
            [("redis-url", redis.url()), ("database-url", "sqlite::memory:".to_owned())],
            "the channel layer is not there yet",
        ),
        ([("redis-url", redis.url()), ("database-url", nowhere)], "the database is not there yet"),
    ] {
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut node = NodeProcess::spawn(&settings);
        eventually("it waits", || async { node.log().contains(waits) }).await;
        node.process.signal("TERM");
        eventually_within(Duration::from_secs(5), "it ends", || async { !node.process.running() }).await;
        assert_eq!(node.process.exit_code(), 0, "{}", node.log());
    }
}

// ---- N4: a node that is frozen ----

/// Takes what comes; who hears nothing for some seconds, not even a ping, comes back.
async fn live(mut page: Page, door: Door, last: u64) -> Page {
    loop {
        let pings = page.client.pings;
        match page.client.hear_within(Duration::from_secs(4)).await {
            Some(Heard::Frame(frame)) => page.take(&frame),
            None if page.client.pings > pings => {}
            None | Some(Heard::Closed(..) | Heard::Gone) => page.come_back(door, IMPATIENT).await,
        }
        if page.seq >= last {
            return page;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn n4_a_frozen_node_is_taken_out_by_the_balancer_and_its_clients_come_back_elsewhere() {
    const CLIENTS: usize = 20;
    const LAST: u64 = 10;
    let (redis, database) = (RedisServer::start(), Postgres::shared().fresh_database());
    let node = |name| {
        NodeProcess::start(&[
            ("redis-url", &redis.url()),
            ("database-url", &database),
            ("node-id", name),
            ("limits.ping_seconds", "1"),
        ])
    };
    let (mut one, two) = (node("one"), node("two"));
    let balancer = Balancer::haproxy(&[one.door, two.door]);
    let mut pages = Vec::new();
    for number in 0..CLIENTS {
        pages.push(Page::open(balancer.door, &user(number)).await);
    }
    let (on_one, on_two) = (one.door.metric("gateway_connections").await, two.door.metric("gateway_connections").await);
    assert!(on_one >= 5.0 && on_two >= 5.0, "{on_one} and {on_two}");
    one.process.pause();
    let frozen = Instant::now();
    let mut living = JoinSet::new();
    for page in pages {
        living.spawn(live(page, balancer.door, LAST));
    }
    for text in 1..=LAST {
        assert_eq!(say(two.door, &text.to_string()).await, text);
    }
    let mut pages = timeout(Duration::from_secs(60), living.join_all()).await.expect("all come back and are complete");
    println!("the clients of a frozen node were complete elsewhere after {:.1} s", frozen.elapsed().as_secs_f64());
    eventually("nobody is there twice", || async { two.door.metric("gateway_connections").await as usize == CLIENTS })
        .await;
    eventually("the balancer says that it is away", || async { balancer.log().contains("gateway/gateway1 is DOWN") })
        .await;

    one.process.resume();
    eventually("it has dropped who has left", || async { one.door.metric("gateway_connections").await == 0.0 }).await;
    eventually("it is ready", || async { one.door.get("/readyz").await.0 == 200 }).await;
    // The next ones go to where fewer are.
    eventually("the balancer sends it clients again", || async {
        let _client = try_open(balancer.door, "carol", IMPATIENT).await;
        one.door.metric("gateway_connections_opened_total").await > on_one
    })
    .await;
    let mut dave = one.door.join("dave", "lobby").await;
    assert_eq!(say(one.door, "after").await, LAST + 1);
    assert_eq!(dave.hears().await, "after");
    for page in &mut pages {
        assert!(page.shows(LAST + 1).await, "{}", page.code);
    }
}

// ---- A2: no token in any log ----

/// Every way to hand a token over, through both balancers, let in and refused, while nodes are there and while none is.
#[tokio::test(flavor = "multi_thread")]
async fn a2_no_token_is_in_any_log_of_the_node_or_the_balancers() {
    const PATHS: [&str; 4] = ["/ws/chat/lobby/", "/ws/chat/", "/ws/nowhere/", "/readyz"];
    let command = ["sh", "-c", "RUST_LOG=trace exec \"$@\"", "sh"].map(str::to_owned).to_vec();
    let mut node = NodeProcess::start_by(command, &[]);
    let balancers = [Balancer::haproxy(&[node.door]), Balancer::nginx(&[node.door])];
    let doors = [balancers[0].door, balancers[1].door, node.door];
    let expired = common::token_with("alice", &[], 0);
    let mut secrets = Vec::new();
    let mut try_all = async |let_in: bool| {
        for door in doors {
            for good in [token("alice"), expired.clone(), format!("{}x", token("alice"))] {
                let signature = good.rsplit('.').next().unwrap().to_owned();
                secrets.push(signature);
                let bearer = format!("Bearer {good}");
                let protocol = format!("gateway.v1, bearer.{good}");
                let cookie = format!("gateway_token={good}");
                let origin = format!("http://{}", door.public);
                for path in PATHS {
                    let ways: [(String, Vec<(&str, &str)>); 4] = [
                        (format!("{path}?token={good}"), vec![]),
                        (path.to_owned(), vec![("authorization", &bearer)]),
                        (path.to_owned(), vec![("sec-websocket-protocol", &protocol)]),
                        (path.to_owned(), vec![("cookie", &cookie), ("origin", &origin)]),
                    ];
                    for (path, headers) in ways {
                        if let Some(client) = door.knock(&path, &headers).await {
                            assert!(let_in);
                            client.close().await;
                        }
                    }
                    // A plain request, and one that is none.
                    let query = format!("{path}?token={good}");
                    let _ = common::http_client().get(format!("http://{}{query}", door.public)).send().await;
                    for request in [
                        format!("GET {query} HTTP/1.1\r\nHost: x\r\nBad Header: {good}\r\n\r\n"),
                        format!("{query}\r\n\r\n"),
                    ] {
                        raw(door, &request).await;
                    }
                }
            }
        }
    };
    try_all(true).await;
    eventually("the log tells of them", || async {
        node.log().contains("WSREJECT") && node.log().contains("WSCONNECT")
    })
    .await;
    node.process.kill();
    try_all(false).await;
    for (name, log) in [("haproxy", balancers[0].log()), ("nginx", balancers[1].log()), ("the node", node.log())] {
        assert!(log.contains("/ws/chat/lobby/"), "{name} logs requests: {log}");
        for line in log.lines() {
            let told = secrets.iter().find(|secret| line.contains(secret.as_str()));
            assert!(told.is_none() && !line.contains("token="), "{name}: {line}");
        }
    }
}

async fn raw(door: Door, request: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let Ok(mut stream) = tokio::net::TcpStream::connect(door.public).await else { return };
    let _ = stream.write_all(request.as_bytes()).await;
    let _ = timeout(common::PATIENCE, stream.read(&mut [0; 1024])).await;
}

// ---- Overload ----

/// The status of a handshake, and how long the answer says to wait.
async fn handshake(door: Door, user: &str) -> (u16, Option<String>) {
    let request = common::http_client().get(format!("http://{}/ws/chat/lobby/", door.public));
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let answer = request.bearer_auth(token(user)).send().await.unwrap();
    let wait = answer.headers().get("retry-after").map(|wait| wait.to_str().unwrap().to_owned());
    (answer.status().as_u16(), wait)
}

/// A node that takes no more handshakes costs nobody anything while another one does; when none does, the answer is the
/// node's, which says when to come back.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_one_node_refuses_go_to_another_through_both_balancers() {
    let slow = [("limits.handshakes_per_second", "1")];
    let (one, two) = (TestNode::start(&slow).await, TestNode::start(&[]).await);
    let nodes = [one.at(), two.at()];
    for balancer in [Balancer::haproxy(&nodes), Balancer::nginx(&nodes)] {
        for number in 0..30 {
            assert_eq!(handshake(balancer.door, &user(number)).await.0, 101);
        }
    }
    let refused = "gateway_handshakes_rejected_total{reason=\"handshakes_per_second\"}";
    assert!(one.metric(refused).await > 0.0, "some were tried there first");
    for balancer in [Balancer::haproxy(&nodes[..1]), Balancer::nginx(&nodes[..1])] {
        let mut answers = Vec::new();
        for number in 0..20 {
            answers.push(handshake(balancer.door, &user(number)).await);
        }
        let refused: Vec<_> = answers.iter().filter(|(status, _)| *status == 503).collect();
        assert!(!refused.is_empty() && refused.iter().all(|(_, wait)| wait.as_deref() == Some("5")), "{answers:?}");
    }
}

/// What `HAPROXY_CONNECTIONS_PER_SECOND` does: a crowd is let in over time, and nobody is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_takes_so_many_a_second_lets_the_others_wait() {
    let node = TestNode::start(&[]).await;
    let rate = [("HAPROXY_CONNECTIONS_PER_SECOND", "20")];
    let balancer = Balancer::haproxy_in(&[node.at()], balancer::HAPROXY, &rate);
    let began = Instant::now();
    let mut crowd = JoinSet::new();
    for number in 0..80 {
        let door = balancer.door;
        crowd.spawn(async move { try_open(door, &user(number), PATIENT).await.is_some() });
    }
    assert!(crowd.join_all().await.into_iter().all(|let_in| let_in));
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(node.metric("gateway_connections_opened_total").await, 80.0);
}

/// What `GATEWAY_CONNECTIONS` does: who is one too many waits for a place.
#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_that_gives_a_node_so_many_sockets_lets_the_next_one_wait_for_a_place() {
    let node = TestNode::start(&[]).await;
    let balancer = Balancer::haproxy_in(&[node.at()], balancer::HAPROXY, &[("GATEWAY_CONNECTIONS", "3")]);
    let mut inside = Vec::new();
    for number in 0..3 {
        inside.push(balancer.door.join(&user(number), "lobby").await);
    }
    let next = balancer.door.join("next", "lobby");
    tokio::pin!(next);
    assert!(timeout(Duration::from_secs(1), &mut next).await.is_err(), "there is no place yet");
    inside.pop().unwrap().close().await;
    next.await.hears_nothing_before_own("lobby").await;
}

// ---- A14: a cache ----

/// A14: a cache in front that keeps what it may keeps no answer of a node; told to keep everything, it would.
#[tokio::test(flavor = "multi_thread")]
async fn a14_a_cache_in_front_stores_no_answer() {
    let node = TestNode::start(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let zone = format!("proxy_cache_path {} keys_zone=all:1m;", directory.path().display());
    let cached = |more: &str| {
        let config = changed(balancer::NGINX, "upstream gateway {", &format!("{zone}\n    upstream gateway {{"));
        let location = format!(
            "location / {{ proxy_cache all; proxy_cache_valid any 10m; {more} \
             add_header X-Cache $upstream_cache_status always;"
        );
        changed(&changed(&config, "location / {", &location), "proxy_buffering off;", "")
    };
    let ask = async |balancer: &Balancer, path: &str| {
        let url = format!("http://{}{path}", balancer.door.public);
        let answer = common::http_client().get(url).header("x-forwarded-host", "evil.example").send().await.unwrap();
        let told = answer.headers().get("x-cache").map(|told| told.to_str().unwrap().to_owned());
        (answer.status().as_u16(), told.unwrap_or_default(), answer.text().await.unwrap())
    };
    let paths =
        ["/readyz", "/healthz", "/client.js", "/ws/chat/lobby/", "/ws/nowhere/", "/ws/chat/?token=x", "/nowhere", "/"];
    let honest = Balancer::nginx_with(&[node.at()], &cached(""));
    for path in paths {
        for _ in 0..3 {
            let (status, told, body) = ask(&honest, path).await;
            assert_eq!(told, "MISS", "{path}: {status}");
            assert!(!body.contains("evil.example"), "{path}: {body}");
        }
    }
    drop(honest);
    let greedy = Balancer::nginx_with(&[node.at()], &cached("proxy_ignore_headers Cache-Control;"));
    for path in paths {
        ask(&greedy, path).await;
        assert_eq!(ask(&greedy, path).await.1, "HIT", "{path}: the cache was one");
    }
}
