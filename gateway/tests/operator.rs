//! What an operator is told when something is wrong, and what can be done to a node while it runs.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{NodeProcess, PATIENCE, TestNode, eventually, eventually_within, ready, token_with};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use testkit::{process::private_dir, wait};
use tokio::io::{AsyncBufReadExt, BufReader};

struct Output {
    code: i32,
    out: String,
    err: String,
}

async fn gateway(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(arguments).env_remove("GATEWAY_LONG").envs(env.iter().copied()).current_dir(directory.path());
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(30), output).await.unwrap().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
}

fn lines<'a>(log: &'a str, parts: &[&str]) -> Vec<&'a str> {
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).collect()
}

async fn report(node: &NodeProcess) -> Value {
    serde_json::from_str(&node.door.internal_get("/readyz").await.1).unwrap()
}

async fn degraded(node: &NodeProcess, task: &str) -> bool {
    report(node).await["degraded"].as_array().unwrap().contains(&json!(task))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_read_is_told_when_it_begins_and_when_it_ends() {
    let redis = RedisServer::start();
    let may = |rights: &[&str]| redis.set_user("node", "pw", &[&["~*", "&*", "+@all"][..], rights].concat());
    may(&["-@stream"]);
    let node = NodeProcess::start(&[("redis-url", &redis.url_as("node", "pw"))]);
    eventually("it is told", async || degraded(&node, "stream").await && degraded(&node, "backlog").await).await;
    eventually("that is no reason to leave", async || {
        (report(&node).await["status"].as_str(), node.door.get("/readyz").await.0) == (Some("degraded"), 200)
    })
    .await;
    let failures = "gateway_background_failures_total{task=\"stream\"}";
    eventually("it goes on failing", async || node.door.metric(failures).await >= 3.0).await;
    let log = node.log();
    let told = lines(&log, &["WARN", "a background task fails", "task=\"stream\""]);
    assert!(told.len() == 1 && told[0].contains("no permissions") && told[0].contains("X*"), "{told:?}");
    may(&[]);
    eventually("it works", async || report(&node).await["status"] == "ok").await;
    // A key of another type, made while the node runs.
    redis.cli(&["DEL", "gateway:events"]);
    redis.cli(&["SET", "gateway:events", "somebody's"]);
    eventually("it is told", async || degraded(&node, "stream").await).await;
    redis.cli(&["DEL", "gateway:events"]);
    eventually("it works", async || report(&node).await["status"] == "ok").await;
    let said = |what: &str| lines(&node.log(), &["WARN", what, "task=\"stream\""]).len();
    // The log is written a moment after the report can be read.
    eventually("the end is told", async || said("a background task works again") >= 2).await;
    let log = node.log();
    let told = (said("a background task fails"), said("a background task works again"));
    assert_eq!(told, (2, 2), "{log}");
    // A read that waits is told so when the key goes, a new one what is there instead.
    assert!(log.contains("WRONGTYPE") || log.contains("UNBLOCKED"), "{log}");
}

/// Redis before 6.2 has no XAUTOCLAIM, no IDLE in XPENDING, and no exclusive bounds.
#[tokio::test(flavor = "multi_thread")]
async fn what_others_left_is_taken_up_without_xautoclaim() {
    let redis = RedisServer::start_with(&["--rename-command", "XAUTOCLAIM", ""]);
    redis.cli(&["XGROUP", "CREATE", "gateway:events", "gateway", "0", "MKSTREAM"]);
    let data = r#"{"message":"left","from_user":"shop"}"#;
    let fields = ["id", "1", "source", "s", "type", "notification", "to", "user:alice", "data", data];
    redis.cli(&[&["XADD", "gateway:events", "*"], &fields[..]].concat());
    redis.cli(&["XREADGROUP", "GROUP", "gateway", "dead-node", "STREAMS", "gateway:events", ">"]);
    let pending = redis.cli(&["XPENDING", "gateway:events", "gateway", "-", "+", "1"]);
    let id = pending.lines().next().unwrap();
    redis.cli(&["XCLAIM", "gateway:events", "gateway", "dead-node", "0", id, "IDLE", "60000", "JUSTID"]);
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let inbox = async || node.at().api("GET", "/api/users/alice/notifications", None).await.1;
    eventually("it is stored", async || inbox().await["unseen"] == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_node_could_not_do_is_told_before_it_starts() {
    let redis = RedisServer::start_with(&["--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"]);
    let postgres = Postgres::shared();
    let database = postgres.fresh_database();
    assert_eq!(gateway(&["migrate"], &[("GATEWAY_DATABASE_URL", &database)]).await.code, 0);
    let check = async |database: &str, redis: &str| {
        let env =
            [("GATEWAY_JWT_SECRET", common::SECRET), ("GATEWAY_DATABASE_URL", database), ("GATEWAY_REDIS_URL", redis)];
        gateway(&["check-config", "--live"], &env).await
    };
    let good = check(&database, &redis.url()).await;
    assert_eq!(good.code, 0, "{}", good.err);
    assert!(good.out.contains("maxmemory-policy allkeys-lru") && good.out.contains("append-only"), "{}", good.out);
    assert_eq!(redis.cli(&["KEYS", "*check*"]), "", "nothing stays");
    // Rights that are missing here and there, all at once, and a key that is somebody else's.
    redis.set_user("node", "pw", &["~*", "&*", "+@all", "-xreadgroup", "-xclaim", "-setnx", "-eval"]);
    redis.cli(&["SET", "gateway:events:dead", "x"]);
    postgres.sql(&database, "CREATE ROLE reader LOGIN");
    postgres.sql(&database, "GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader");
    let reader = database.replace("postgres@", "reader@");
    let bad = check(&reader, &redis.url_as("node", "pw")).await;
    assert_eq!(bad.code, 1);
    for what in [
        "INSERT on gateway_messages",
        "INSERT on gateway_receipts",
        "XREADGROUP",
        "XCLAIM",
        "SETNX",
        "gateway:events:dead",
    ] {
        assert!(bad.err.contains(what), "{what}: {}", bad.err);
    }
    assert!(!bad.err.contains("SELECT on") && !bad.err.contains("XADD"), "{}", bad.err);
    assert!(bad.out.contains("may not EVAL"), "{}", bad.out);
    // A node has been here, of another database than the one that is to be used.
    drop(TestNode::start(&[("redis-url", &redis.url()), ("database-url", &database), ("namespace", "taken")]).await);
    let sign_in = [
        ("GATEWAY_NAMESPACE", "taken"),
        ("GATEWAY_DATABASE_URL", "sqlite::memory:"),
        ("GATEWAY_REDIS_URL", &redis.url()),
        ("GATEWAY_JWKS", "/no/such/file"),
        ("GATEWAY_AUTH_URL", "http://127.0.0.1:1/who"),
    ];
    let foreign = gateway(&["check-config", "--live"], &sign_in).await;
    assert_eq!(foreign.code, 1);
    for what in ["another deployment", "the JWKS", "ask Django, http://127.0.0.1:1/who"] {
        assert!(foreign.err.contains(what), "{what}: {}", foreign.err);
    }
    // Nobody there.
    let nowhere = check("postgres://nobody@127.0.0.1:1/x", "redis://127.0.0.1:1").await;
    assert!(
        nowhere.code == 1 && nowhere.err.contains("the database") && nowhere.err.contains("Redis"),
        "{}",
        nowhere.err
    );
    // The layer's own commands.
    redis.set_user("node", "pw", &["~*", "&*", "+@all", "-publish"]);
    let mute = check(&database, &redis.url_as("node", "pw")).await;
    assert!(mute.code == 1 && mute.err.contains("the channel layer") && mute.err.contains("NOPERM"), "{}", mute.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_database_there_is_one_line_when_it_goes_and_one_when_it_is_back() {
    let (redis, mut postgres) = (RedisServer::start(), Postgres::start());
    let node = NodeProcess::start(&[("redis-url", &redis.url()), ("database-url", &postgres.fresh_database())]);
    let mut alice = node.door.v1("/ws/chat/lobby/", "alice").await;
    assert_eq!(alice.say_acked("lobby", "hi", "1").await["type"], "ack");
    postgres.kill9();
    // The fastest of some: this machine may be busy.
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(node.door.internal_get("/readyz").await.0, 503);
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_millis(900), "{fastest:?}");
    assert_eq!(alice.say_acked("lobby", "hi", "2").await["code"], "unavailable");
    let failures =
        async |task| node.door.metric(&format!("gateway_background_failures_total{{task=\"{task}\"}}")).await;
    // What hears of an absence tells everybody; whatever looks at the database has failed some times.
    redis.client_kill("pubsub");
    eventually("tasks fail", async || failures("positions").await >= 3.0 && failures("memberships").await >= 2.0).await;
    assert_eq!(node.door.metric("gateway_database_up").await, 0.0);
    postgres.restart();
    eventually("it is back", async || ready(node.door.internal)).await;
    eventually("a message is stored", async || {
        node.door
            .api("POST", "/api/events", Some(json!({"type": "chat", "to": "room:lobby", "data": {"message": "x"}})))
            .await
            .0
            == 200
    })
    .await;
    assert_eq!(node.door.metric("gateway_database_up").await, 1.0);
    eventually("all is well", async || report(&node).await["status"] == "ok").await;
    let log = node.log();
    let told: Vec<_> = log
        .lines()
        .filter(|line| ["WARN", "ERROR"].iter().any(|level| line.contains(level)))
        .filter(|line| line.contains("database") || line.contains("task="))
        .collect();
    assert!(
        told.len() == 2 && told[0].contains("database is away") && told[1].contains("database is back"),
        "{told:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_of_a_fresh_node_are_all_there_and_of_the_right_kind() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let (_, text) = node.at().internal_get("/metrics").await;
    let mut kind = ("", "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.split_once(' ').unwrap();
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(name.starts_with(kind.0), "{name} {kind:?}");
        assert_eq!(name == format!("{}_total", kind.0), kind.1 == "counter", "{name} is {kind:?}");
    }
    for series in [
        "gateway_connections_closed_total{code=\"1000\"} 0",
        "gateway_handshakes_rejected_total{reason=\"origin\"} 0",
        "gateway_frames_received_total{cate=\"chat\"} 0",
        "gateway_frames_sent_total{type=\"notification\"} 0",
        "gateway_store_errors_total{operation=\"append\"} 0",
        "gateway_store_seconds_count{operation=\"append\"} 0",
        "gateway_stream_events_total{result=\"stored\"} 0",
        "gateway_stream_dead_total{reason=\"no_room\"} 0",
        "gateway_background_failures_total{task=\"stream\"} 0",
        "gateway_api_refused_total{reason=\"key\"} 0",
        "gateway_layer_reconnects_total 0",
        "gateway_log_lines_dropped_total 0",
        "gateway_redis_up ",
        "gateway_database_up ",
        "gateway_ready ",
        "gateway_nodes 1",
        "process_cpu_seconds_total ",
        "process_open_fds ",
        "process_max_fds ",
        "process_virtual_memory_bytes ",
        "process_virtual_memory_max_bytes ",
        "process_resident_memory_bytes ",
        "process_start_time_seconds ",
        "process_threads ",
    ] {
        assert!(text.lines().any(|line| line.starts_with(series)), "{series}\n{text}");
    }
    let value =
        |name: &str| -> f64 { text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap() };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((0.0..3600.0).contains(&(now - value("process_start_time_seconds "))), "{text}");
    assert!(value("process_open_fds ") > 3.0 && value("process_cpu_seconds_total ") > 0.0);
}

#[test]
fn n12_a_thread_that_stands_still_is_counted_and_timers_tell_how_late_all_are() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let node = runtime.block_on(TestNode::start(&[]));
    let metrics = Arc::clone(&node.running.node().metrics);
    let stalls = || metrics.event_loop_stalls.get();
    let of = |text: &str, line: &str| -> u64 {
        let line = format!("gateway_event_loop_lag_seconds_{line} ");
        text.lines().find_map(|shown| shown.strip_prefix(&line)?.parse().ok()).unwrap()
    };
    let late = || {
        let text = metrics.encode();
        of(&text, "count") - of(&text, "bucket{le=\"0.1\"}")
    };
    wait::until("timers have fired", PATIENCE, || of(&metrics.encode(), "count") > 4);

    // One thread: it is told while it stands, and the other one serves.
    let (begun, (release, wait)) = (stalls(), std::sync::mpsc::channel::<()>());
    let blocked = runtime.spawn(async move { wait.recv() });
    wait::until("the stall is counted", PATIENCE, || stalls() > begun);
    assert!(runtime.block_on(node.metric("gateway_event_loop_stalls_total")) > begun as f64);
    release.send(()).unwrap();
    runtime.block_on(blocked).unwrap().unwrap();
    // Some looks later it is known to go on; until then another stall of it is the same one.
    let fired = of(&metrics.encode(), "count");
    wait::until("timers go on", PATIENCE, || of(&metrics.encode(), "count") > fired + 4);

    // All of them: everything is late.
    let (begun, before, both) = (stalls(), late(), Arc::new(std::sync::Barrier::new(3)));
    let blocked = [(); 2].map(|()| {
        let ((release, wait), both) = (std::sync::mpsc::channel::<()>(), Arc::clone(&both));
        runtime.spawn(async move {
            both.wait();
            wait.recv()
        });
        release
    });
    both.wait();
    wait::until("both stalls are counted", PATIENCE, || stalls() >= begun + 2);
    drop(blocked);
    wait::until("the timers tell", PATIENCE, || late() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_of_the_same_id_refuses_to_start_and_a_dead_one_leaves_it_in_seconds() {
    let redis = RedisServer::start();
    let database = Postgres::shared().fresh_database();
    let url = redis.url();
    let own = [("redis-url", url.as_str()), ("database-url", database.as_str()), ("node-id", "one")];
    let mut first = NodeProcess::start(&own);
    let mut second = NodeProcess::spawn(&own);
    assert_eq!(second.process.exit_code(), 2);
    assert!(second.log().contains("another node runs under the id \"one\"") && second.log().contains("--node-id"));
    eventually("the first one goes on", async || ready(first.door.internal)).await;
    // Redis forgets: the first one says it again.
    redis.cli(&["FLUSHALL"]);
    eventually("it is taken again", async || redis.cli(&["EXISTS", "gateway:node:one"]) == "1").await;
    first.process.kill();
    let began = Instant::now();
    let mut third = NodeProcess::start(&own);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // Who leaves gives it back.
    third.process.stop("TERM");
    // By itself it would end 5 s after it was last renewed, which was a second and a half ago at most.
    let free = async || redis.cli(&["EXISTS", "gateway:node:one"]) == "0";
    eventually_within(Duration::from_secs(2), "it is free", free).await;
}

#[tokio::test]
async fn an_empty_value_is_an_unset_one_everywhere_and_a_misspelt_variable_is_named() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), format!("{}\n", common::SECRET)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "layer-prefix = \"\"\nroom_policy = \"\"\nnode_id = \"from-file\"\n".replace("layer-", "layer_"),
    )
    .unwrap();
    let (secret, file) = (secret.path().to_str().unwrap(), file.path().to_str().unwrap());
    let empty = [
        ("GATEWAY_JWT_SECRET", ""),
        ("GATEWAY_JWT_SECRET_FILE", secret),
        ("GATEWAY_API_KEY_FILE", ""),
        ("GATEWAY_JWT_ISSUER", ""),
        ("GATEWAY_LIMITS__FRAME_BYTES", ""),
        ("GATEWAY_LISTEN", ""),
        ("GATEWAY_NODE_ID", ""),
        ("GATEWAY_LOG_LEVEL", ""),
        ("GATEWAY_API_URL", ""),
        ("GATEWAY_DEV", ""),
    ];
    let shown = gateway(&["config", "--config", file, "--user-group", ""], &empty).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    for (name, value) in [
        ("jwt-secret", "(hidden)"),
        ("jwt-issuer", "(not set)"),
        ("limits.frame_bytes", "65536"),
        ("listen", "127.0.0.1:8000"),
        ("layer-prefix", "asgi"),
        ("user-group", "{username}"),
        ("node-id", "from-file"),
    ] {
        let line = shown.out.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        assert!(line.contains(value), "{line}");
    }
    // A file that is not named is none.
    let shown = gateway(&["config", "--config", ""], &[("GATEWAY_CONFIG", "")]).await;
    assert_eq!(shown.code, 0, "{}", shown.err);
    let odd = [
        ("GATEWAY_JWT_SECRET", common::SECRET),
        ("GATEWAY_JWT_ISUER", "site"),
        ("GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("GATEWAY_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ];
    let output = gateway(&["check-config"], &odd).await;
    assert_eq!(output.code, 0);
    assert!(output.out.contains("GATEWAY_JWT_ISUER") && output.out.contains("did you mean GATEWAY_JWT_ISSUER?"));
    assert!(!output.out.contains("SERVICE_HOST") && !output.out.contains("8000_TCP"), "{}", output.out);
    let output = gateway(&["check-config", "--strict-env"], &odd).await;
    assert!(output.code == 2 && output.err.contains("GATEWAY_JWT_ISSUER?"), "{}", output.err);
}

#[tokio::test]
async fn a_template_by_which_a_user_would_be_a_room_is_refused_at_start() {
    let env = [("GATEWAY_JWT_SECRET", common::SECRET), ("GATEWAY_USER_GROUP", "chat_{username}")];
    for command in ["check-config", "serve"] {
        let output = gateway(&[command], &env).await;
        assert!(output.code == 2 && output.err.contains("user_{username}"), "{}", output.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_stop_is_obeyed_while_the_node_waits_for_redis_or_the_database() {
    let closed = format!("127.0.0.1:{}", testkit::net::free_port());
    let (redis, database) = (format!("redis://{closed}"), format!("postgres://x@{closed}/x"));
    for own in [("redis-url", redis.as_str()), ("database-url", database.as_str())] {
        for signal in ["TERM", "INT"] {
            let mut node = NodeProcess::spawn(&[own]);
            wait::until("it waits", Duration::from_secs(10), || node.log().contains("is not there yet"));
            // Nothing to reload yet, and no reason to die.
            node.process.signal("HUP");
            wait::until("it was heard", Duration::from_secs(10), || node.log().contains("not before the node runs"));
            node.process.signal(signal);
            assert_eq!(node.process.exit_code(), 0, "{}", node.log());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reads_the_settings_again_and_what_is_wrong_changes_nothing() {
    let dir = private_dir("reload");
    let (file, key) = (dir.join("gateway.toml"), dir.join("key"));
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("[limits]\nframe_bytes = 1000\n");
    std::fs::write(&key, "first-key").unwrap();
    // What the environment says goes over the file.
    let (public, internal) = (testkit::net::free_port(), testkit::net::free_port());
    let (public, internal) = (format!("127.0.0.1:{public}"), format!("127.0.0.1:{internal}"));
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(["serve", "--config"]).arg(&file).env_remove("GATEWAY_LONG").env_remove("RUST_LOG");
    let secret = dir.join("secret");
    std::fs::write(&secret, common::SECRET).unwrap();
    for (name, value) in [
        ("GATEWAY_LISTEN", public.as_str()),
        ("GATEWAY_INTERNAL_LISTEN", &internal),
        ("GATEWAY_DATABASE_URL", "sqlite::memory:"),
        ("GATEWAY_JWT_SECRET_FILE", secret.to_str().unwrap()),
        ("GATEWAY_API_KEY_FILE", key.to_str().unwrap()),
        ("GATEWAY_ROOM_POLICY", "open"),
        ("GATEWAY_DRAIN__DELAY_SECONDS", "0"),
    ] {
        command.env(name, value);
    }
    let mut node = command.current_dir(&dir).kill_on_drop(true).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(node.stderr.take().unwrap()).lines();
    let mut until = async |wanted: &str| -> String {
        loop {
            let line =
                tokio::time::timeout(common::PATIENCE, log.next_line()).await.expect(wanted).unwrap().expect(wanted);
            if line.contains(wanted) {
                return line;
            }
        }
    };
    until("listening").await;
    let pid = node.id().unwrap().to_string();
    let hangup = || assert!(std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let door = common::Door { public: public.parse().unwrap(), internal: internal.parse().unwrap() };
    let status = async |key: &str| {
        door.api_with("GET", "/api/rooms", None, &[("authorization", &format!("Bearer {key}"))]).await.0
    };
    let long = format!(r#"{{"cate":"ping","x":"{}"}}"#, "x".repeat(2000));
    let mut alice = door.connect("/ws/chat/lobby/", "alice").await;
    assert_eq!((status("first-key").await, status("second-key").await), (200, 401));

    write("listen = \"127.0.0.1:1\"\nnamespace = \"other\"\nlog_level = \"debug\"\n[limits]\nframe_bytes = 4000\n");
    std::fs::write(&key, "second-key").unwrap();
    std::fs::write(&secret, format!("another-secret-another-secret\n{}", common::SECRET)).unwrap();
    hangup();
    assert!(until("needs a restart").await.contains("namespace"));
    let line = until("the settings were read again").await;
    assert!(
        ["api-key", "limits.frame_bytes", "log-level", "jwt-secret"].iter().all(|name| line.contains(name)),
        "{line}"
    );
    assert_eq!((status("first-key").await, status("second-key").await), (401, 200));
    // Who was there stays, with the limits of then; who comes has those of now.
    let mut bob = door.connect("/ws/chat/lobby/", "bob").await;
    bob.send_text(&long).await;
    assert_eq!(bob.frame().await["type"], "pong");
    alice.say("lobby", "still here").await;
    assert_eq!(bob.hears().await, "still here");
    until("DEBUG").await;

    for bad in ["[limits]\nframe_bytes = \"many\"\n", "[limits]\nframe_byte = 1\n", "no TOML", "user_group = \"x\"\n"] {
        write(bad);
        hangup();
        until("the settings stay as they were").await;
    }
    assert_eq!(status("second-key").await, 200);
    let mut carol = door.connect("/ws/chat/lobby/", "carol").await;
    carol.send_text(&long).await;
    assert_eq!(carol.frame().await["type"], "pong");
    // A secret that is taken away signs in nobody any more.
    std::fs::write(&secret, "another-secret-another-secret").unwrap();
    write("");
    hangup();
    until("the settings were read again").await;
    let bearer = format!("Bearer {}", token_with("dora", &[], 60));
    assert_eq!(door.try_connect("/ws/chat/lobby/", &[("authorization", &bearer)]).await.err(), Some(401));
    drop((alice, bob, carol));
    node.kill().await.unwrap();
    std::fs::remove_dir_all(dir).unwrap();
}

/// What a terminal does that is closed: SIGHUP, and nobody who takes the output.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_terminal_ends_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let internal = format!("127.0.0.1:{}", testkit::net::free_port());
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--internal-listen", &internal]);
    command.args(["--database-url", "sqlite::memory:", "--log-level", "debug"]).current_dir(directory.path());
    let mut node = command.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (node.stdout.take().unwrap(), node.stderr.take().unwrap());
    assert!(out.as_raw_fd() > 0);
    drop((out, err));
    let address = internal.parse().unwrap();
    eventually("it is ready", async || ready(address)).await;
    let pid = node.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    let door = common::Door { public: address, internal: address };
    eventually("lines are lost and counted", async || door.metric("gateway_log_lines_dropped_total").await > 0.0).await;
    assert!(ready(address) && node.try_wait().unwrap().is_none());
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let ended = tokio::time::timeout(common::PATIENCE, node.wait()).await.expect("it ends").unwrap();
    assert_eq!(ended.code(), Some(0));
    // Other commands neither.
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    let mut print = command.arg("genconfig").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((print.stdout.take(), print.stderr.take()));
    assert_ne!(print.wait().await.unwrap().code(), Some(101), "no panic");
}

/// From its sender to its readers, on every way in.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_followed_by_its_id_its_place_and_its_trace() {
    let redis = RedisServer::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url()), ("log-level", "debug")]);
    let mut alice = node.door.v1("/ws/chat/lobby/", "alice").await;
    let ack = alice.say_acked("lobby", "hi", "mine-1").await;
    alice.until(|frame| frame["type"] == "chat").await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let data = r#"{"message":"paid","from_user":"shop"}"#;
    let add = |fields: &[&str]| {
        redis.cli(&[&["XADD", "gateway:events", "*", "source", "shop", "data", data], fields].concat())
    };
    add(&["id", "order-42", "type", "notification", "to", "user:alice", "traceparent", trace]);
    let paid = alice.until(|frame| frame["type"] == "notification").await;
    assert_eq!(paid.get("traceparent"), None, "it is not the browser's");
    let steps = |id: &Value, seq: &Value| {
        let (id, seq) = (id.as_str().unwrap(), format!("seq={seq}"));
        let of = |what: &str| lines(&node.log(), &["DEBUG", what, id, &seq]).len();
        [of("is stored"), of("on its way to the layer"), of("has come for a group"), of("in its sockets' outboxes")]
    };
    eventually("all steps are told", async || {
        steps(&ack["id"], &ack["seq"]) == [1; 4] && steps(&paid["id"], &paid["seq"]) == [1; 4]
    })
    .await;
    let log = node.log();
    assert_eq!(lines(&log, &["mine-1", "a frame has come", "alice"]).len(), 1, "{log}");
    assert_eq!(lines(&log, &["mine-1", "is committed", ack["id"].as_str().unwrap()]).len(), 1, "{log}");
    assert_eq!(lines(&log, &["order-42", "worked on", "user:alice"]).len(), 1, "{log}");
    assert_eq!(lines(&log, &[trace, paid["id"].as_str().unwrap()]).len(), 3, "stored, heard, queued: {log}");
    // What can never work is named as its publisher knows it.
    add(&["id", "order-43", "type", "chat", "to", "room:nowhere", "traceparent", trace]);
    eventually("it is told", async || {
        let log = node.log();
        let told = lines(&log, &["WARN", "dead letters"]);
        told.len() == 1
            && ["order-43", "shop", "room:nowhere", "no_room", trace].iter().all(|part| told[0].contains(part))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_api_call_has_an_id_and_a_refused_one_is_counted_and_told_by_it() {
    let node = NodeProcess::start(&[("room-policy", "members")]);
    let call = async |method: &str, path: &str, key: &str, id: Option<&str>, body: Option<Value>| {
        let url = format!("http://{}{path}", node.door.internal);
        let mut request = common::http_client().request(method.parse().unwrap(), url).bearer_auth(key);
        if let Some(id) = id {
            request = request.header("x-request-id", id);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.headers()["x-request-id"].to_str().unwrap().to_owned())
    };
    let (status, id) = call("GET", "/api/rooms", "key", None, None).await;
    assert!(status == 200 && uuid::Uuid::parse_str(&id).is_ok(), "{status} {id}");
    assert_eq!(call("GET", "/api/rooms", "key", Some("shop-7/a"), None).await, (200, "shop-7/a".to_owned()));
    assert_ne!(call("GET", "/api/rooms", "key", Some(&"x".repeat(200)), None).await.1, "x".repeat(200));
    let chat = json!({"type": "chat", "to": "room:nowhere", "data": {"message": "x"}});
    for (method, path, key, body, status, reason) in [
        ("GET", "/api/rooms/nowhere", "key", None, 404, "not_found"),
        ("POST", "/api/events", "key", Some(chat), 404, "not_found"),
        ("POST", "/api/events", "key", Some(json!({"type": "x"})), 400, "malformed"),
        ("DELETE", "/api/rooms", "key", None, 405, "method"),
        ("GET", "/api/rooms", "wrong", None, 401, "key"),
    ] {
        let counter = format!("gateway_api_refused_total{{reason=\"{reason}\"}}");
        let before = node.door.metric(&counter).await;
        let (was, id) = call(method, path, key, None, body).await;
        assert_eq!((was, node.door.metric(&counter).await), (status, before + 1.0), "{method} {path}");
        eventually("it is told", async || {
            lines(&node.log(), &["an API call was refused", &id, path.strip_prefix("/api/").unwrap()]).len() == 1
        })
        .await;
    }
}

/// What else is on the layer can go on with a trace.
#[tokio::test]
async fn a_trace_is_passed_on_with_the_event() {
    let node = TestNode::start(&[]).await;
    let layer = &node.running.node().layer;
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&channel_layer::GroupName::parse("alice").unwrap(), &channel).await.unwrap();
    let publish = async |own: Option<&str>, header: Option<&str>| {
        let mut envelope = json!({"type": "notification", "to": "user:alice", "data": {"message": "x"}});
        if let Some(own) = own {
            envelope["traceparent"] = json!(own);
        }
        let mut headers = vec![("authorization", "Bearer key")];
        headers.extend(header.map(|header| ("traceparent", header)));
        assert_eq!(node.at().api_with("POST", "/api/events", Some(envelope), &headers).await.0, 200);
        layer.receive(&channel).await.unwrap().text("traceparent").map(str::to_owned)
    };
    let trace = |number: u8| format!("00-4bf92f3577b34da6a3ce929d0e0e47{number:02}-00f067aa0ba902b7-01");
    let (one, two) = (trace(1), trace(2));
    assert_eq!(publish(Some(&one), Some(&two)).await, Some(one.clone()));
    assert_eq!(publish(None, Some(&two)).await, Some(two));
    assert_eq!(publish(Some("nonsense"), None).await, None);
}

/// An event that nobody is shown is counted, and one line says what its sender has to change.
#[tokio::test(flavor = "multi_thread")]
async fn f1_an_event_that_lacks_a_field_is_counted_each_time_and_named_once() {
    let redis = RedisServer::start();
    let node = NodeProcess::start(&[("redis-url", &redis.url()), ("layer-serializer", "json")]);
    let mut alice = node.door.join("alice", "lobby").await;
    for _ in 0..3 {
        redis.cli(&["PUBLISH", "asgi__group__chat_lobby", r#"{"type": "chat.message", "text": "hi"}"#]);
    }
    redis.cli(&["PUBLISH", "asgi__group__alice", r#"{"type": "chat.message", "message": "hi"}"#]);
    let dropped = "gateway_layer_events_dropped_total{reason=\"incomplete\"}";
    eventually("all are counted", async || node.door.metric(dropped).await == 4.0).await;
    alice.hears_nothing_before_own("lobby").await;
    let log = node.log();
    for (group, missing) in [("chat_lobby", "message"), ("alice", "group_name")] {
        let said = lines(&log, &["WARN", "chat_message", &format!("\"{group}\""), &format!("missing=\"{missing}\"")]);
        assert_eq!(said.len(), 1, "{group} {missing}: {log}");
    }
}
