//! What must not get out: secrets, the inside of errors, and control characters in a log.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::Output;
use std::time::Duration;

use common::{Client, Door, NodeProcess, TestNode, eventually, eventually_within, token};
use gateway::config::{Config, SETTINGS, collect};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

fn traced() -> Vec<String> {
    ["sh", "-c", "RUST_LOG=trace exec \"$@\"", "sh"].map(str::to_owned).to_vec()
}

// ---- A10: secrets ----

/// What every secret of a test contains.
const CANARY: &str = "canary";

/// A canary in every setting that is secret, those that are yet to be made included. Redis and the database are
/// at these ports.
fn canaries(redis: u16, database: u16) -> Vec<(&'static str, String)> {
    let secrets = SETTINGS.iter().filter(|setting| setting.secret);
    secrets
        .map(|setting| {
            let value = match setting.name {
                "redis-url" | "django.cache_url" => format!("redis://:{CANARY}-redis@127.0.0.1:{redis}"),
                "database-url" | "django.database_url" => {
                    format!("postgres://postgres:{CANARY}-database@127.0.0.1:{database}/postgres")
                }
                "otlp-headers" => format!("x-key={CANARY}-of-otlp-headers"),
                name => format!("{CANARY}-of-{name}-{CANARY}-{CANARY}"),
            };
            (setting.name, value)
        })
        .collect()
}

fn environment(settings: &[(&str, String)]) -> Vec<(String, String)> {
    let name = |key: &str| format!("GATEWAY_{}", key.replace('.', "__").replace('-', "_").to_uppercase());
    settings.iter().map(|(key, value)| (name(key), value.clone())).collect()
}

/// Runs a command of the binary at the most talkative level, and looks at all that it prints.
async fn prints_no_secret(arguments: &[String], settings: &[(&str, String)]) -> Output {
    // A hundred of them at once would take all of the machine from the tests beside this one.
    static AT_ONCE: Semaphore = Semaphore::const_new(4);
    let _turn = AT_ONCE.acquire().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .args(arguments)
        .envs(environment(settings))
        .envs([("RUST_LOG", "trace"), ("RUST_BACKTRACE", "1")])
        .current_dir(directory.path())
        .output()
        .await
        .unwrap();
    for printed in [&output.stdout, &output.stderr] {
        has_no_canary(&arguments.join(" "), &String::from_utf8_lossy(printed));
    }
    output
}

fn has_no_canary(what: &str, text: &str) {
    let line = text.lines().find(|line| line.to_lowercase().contains(CANARY));
    assert!(line.is_none(), "{what} tells a secret: {line:?}");
}

/// The settings with others in their place.
fn but(settings: &[(&'static str, String)], own: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let kept = settings.iter().filter(|(name, _)| !own.iter().any(|(own, _)| own == name)).cloned();
    kept.chain(own.iter().map(|(name, value)| (*name, (*value).to_owned()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a10_no_command_prints_a_secret_whatever_is_wrong() {
    let redis = RedisServer::options().password("another").start();
    let good = canaries(redis.port(), testkit::net::free_port());
    let mut running = JoinSet::new();
    let mut run = |command: &[&str], settings: Vec<(&'static str, String)>, works: Option<bool>| {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        running.spawn(async move {
            let output = prints_no_secret(&command, &settings).await;
            assert!(works.is_none_or(|works| works == output.status.success()), "{command:?}: {output:?}");
        });
    };
    run(&["config"], good.clone(), Some(true));
    run(&["check-config"], good.clone(), Some(true));
    // Nobody is at the database's port, and Redis wants another password.
    for command in [&["migrate"][..], &["migrate", "status"], &["check-config", "--live"], &["notify", "alice", "x"]] {
        run(command, good.clone(), Some(false));
    }
    let here = but(&good, &[("database-url", "sqlite::memory:"), ("listen", "127.0.0.1:0")]);
    for command in [&["check-config", "--live"][..], &["serve"]] {
        run(command, here.clone(), Some(false));
    }
    for wrong in [
        ("redis-url", "redis://:canary@[::1"),
        ("redis-url", "redis://:canary@host:port"),
        ("redis-url", "http://user:canary@127.0.0.1"),
        ("redis-url", "canary"),
        ("redis-url", "redis://:canary-1@127.0.0.1:1,redis+cluster://:canary-2@127.0.0.1:2"),
        ("redis-url", "redis+sentinel://:canary@127.0.0.1:1"),
        ("redis-url", "rediss://:canary@127.0.0.1:1/canary"),
        ("database-url", "postgres://user:canary@host:port/x"),
        ("database-url", "postgres://user:canary@[::1/x"),
        ("database-url", "oracle://user:canary@127.0.0.1/x"),
        ("database-url", "postgres://user:canary@127.0.0.1:1/x?sslmode=canary"),
        ("database-url", "mysql://user:canary@127.0.0.1:1/x?ssl-mode=canary"),
        ("database-url", "user:canary@127.0.0.1/x"),
        ("database-url", "sqlite:///canary/canary?mode=canary"),
        ("django.database_url", "oracle://user:canary@127.0.0.1/x"),
        ("django.database_url", "postgres://user:canary@host:port/x"),
        ("django.cache_url", "http://user:canary@127.0.0.1"),
        ("django.cache_url", "redis://:canary@host:port"),
        ("jwt-secret", "canary"),
        ("jwt-secret", "canary-canary-canary,canary"),
        ("api-key", "canary\u{7}canary"),
        ("layer-encryption-keys", ",canary"),
        ("jwks", "http://user:canary@127.0.0.1:1/x?key=canary"),
        ("auth-url", "http://127.0.0.1:1/x?key=canary"),
        ("otlp-endpoint", "http://127.0.0.1:1/x?key=canary"),
    ] {
        for command in [&["check-config", "--live"][..], &["migrate"], &["config"]] {
            run(command, but(&good, &[wrong]), None);
        }
    }
    // A wrong line of the file is told, and not with the secret in it.
    let directory = tempfile::tempdir().unwrap();
    for (number, text) in [
        "jwt_secret = canary-canary-canary",
        "jwt_secret = \"canary-canary-canary",
        "jwt_secret = [\"canary-canary-canary\"]",
        "[jwt_secret]\nvalue = \"canary-canary-canary\"",
        "jwt_secrets = \"canary-canary-canary\"",
        "api_key = \"canary\"\napi_key = \"canary\"",
    ]
    .iter()
    .enumerate()
    {
        let file = directory.path().join(format!("{number}.toml"));
        std::fs::write(&file, text).unwrap();
        run(&["check-config", "--config", file.to_str().unwrap()], Vec::new(), None);
    }
    running.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a10_no_log_answer_or_process_list_has_a_secret_while_everything_fails() {
    let mut redis = RedisServer::options().password("canary-redis").start();
    let mut postgres = Postgres::start();
    // Of a site whose sessions are read.
    let tables = "CREATE TABLE django_session (session_key text, session_data text, expire_date timestamptz);
        CREATE TABLE auth_user (id integer, username text, password text, is_active boolean)";
    postgres.sql("postgres", tables);
    let settings = canaries(redis.port(), postgres.port());
    let api_key = settings.iter().find(|(name, _)| *name == "api-key").unwrap().1.clone();
    let jwt_secret = settings.iter().find(|(name, _)| *name == "jwt-secret").unwrap().1.clone();
    let own: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let node = NodeProcess::start_by(traced(), &own);
    let door = node.door;
    let sign = gateway::JwtAuth::new(&[jwt_secret.into()], "sub", &[], None).sign("alice", None, 600).unwrap();
    let bearer = format!("Bearer {sign}");
    let mut alice = door.try_connect("/ws/chat/lobby/", &[("authorization", &bearer)]).await.unwrap();
    let mut said = 0;
    let mut look = async |alice: &mut Client, what: &str| {
        said += 1;
        let origin = format!("http://{}", door.public);
        let visitor = [("cookie", "sessionid=canary0123456789"), ("origin", &*origin)];
        assert!(door.try_connect("/ws/chat/lobby/", &visitor).await.is_err());
        let answer = alice.say_acked("lobby", "hello", &said.to_string()).await;
        has_no_canary(what, &answer.to_string());
        let with_key = format!("Bearer {api_key}");
        for key in [with_key.as_str(), "Bearer canari", "Basic canari", ""] {
            for (method, path, body) in [
                ("GET", "/api/nodes", None),
                ("GET", "/api/dead", None),
                ("GET", "/api/rooms/lobby", None),
                ("GET", "/api/nothing", None),
                ("POST", "/api/events", Some(json!({"type": 1}))),
            ] {
                let (_, answer) = door.api_with(method, path, body, &[("authorization", key)]).await;
                has_no_canary(what, &answer.to_string());
            }
        }
        for path in ["/metrics", "/readyz", "/healthz"] {
            has_no_canary(what, &door.internal_get(path).await.1);
        }
    };
    look(&mut alice, "well").await;
    postgres.kill9();
    look(&mut alice, "without a database").await;
    postgres.restart();
    redis.set_password("another");
    redis.client_kill("normal");
    redis.client_kill("pubsub");
    eventually("it is shut out", || async { door.get("/readyz").await.0 == 503 }).await;
    look(&mut alice, "with a wrong password").await;
    redis.kill();
    eventually("it has noticed", || async { door.get("/readyz").await.0 == 503 }).await;
    look(&mut alice, "without Redis").await;
    let list = std::fs::read(format!("/proc/{}/cmdline", node.process.pid())).unwrap();
    has_no_canary("the process list", &String::from_utf8_lossy(&list));
    let log = node.log();
    assert!(log.contains("TRACE") && log.contains("WSCONNECT"), "it tells much");
    has_no_canary("the log", &log);
}

/// A panic prints what it is given; what holds secrets does not show them.
#[tokio::test(flavor = "multi_thread")]
async fn a10_whatever_holds_a_secret_shows_it_to_nobody() {
    let settings = but(&canaries(1, 1), &[("database-url", "sqlite::memory:?canary"), ("node-id", "one")]);
    let flags = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let collected = collect(&flags, &|_| None, None).unwrap();
    let config = Config::from_collected(&collected).unwrap();
    has_no_canary("Config", &format!("{config:?} {config:#?}"));
    has_no_canary("StoreOptions", &format!("{:?}", gateway::store_options(&config)));
    has_no_canary("the settings as they are shown", &gateway::cli::show(&collected, &config));
    let wrong =
        Config::from_collected(&collect(&[("jwt-secret".into(), "canary".into())].into(), &|_| None, None).unwrap());
    has_no_canary("an error", &format!("{wrong:?} {}", wrong.as_ref().err().unwrap()));
    let node = TestNode::start(&[("jwt-secret", "canary-canary-canary-canary"), ("api-key", "canary")]).await;
    has_no_canary("Node", &format!("{:?}", node.running.node()));
}

// ---- A11: the inside of errors ----

/// Words that only somebody inside has a use for. Names of the protocol's own parts (`redis`, `database` of `/readyz`)
/// are none.
const INSIDE: [&str; 34] = [
    "select ",
    "insert ",
    "update ",
    "delete from",
    " where ",
    "constraint",
    "relation",
    "column",
    "syntax",
    "sqlx",
    "sqlstate",
    "sea-orm",
    "sea_orm",
    "postgres",
    "mysql",
    "sqlite",
    "gateway_",
    "errno",
    "os error",
    "refused",
    "broken pipe",
    "connection reset",
    "timed out",
    "panicked",
    "backtrace",
    "unwrap",
    ".rs:",
    "/src/",
    "/root",
    "/usr",
    "/tmp",
    "127.0.0.1",
    "serde",
    "expected value",
];

fn shows_nothing_inside(what: &str, text: &str) {
    let lower = text.to_lowercase();
    let word = INSIDE.iter().find(|word| lower.contains(*word));
    assert!(word.is_none(), "{what} shows {word:?}: {text}");
    assert!(!lower.contains(env!("CARGO_PKG_VERSION")), "{what} shows a version: {text}");
}

/// Every call that a client or service may make; each answer, headers included, is looked at.
async fn ask_everything(what: &str, door: Door, alice: &mut Client) -> Vec<u16> {
    for frame in [
        json!({"cate": "chat", "group_name": "lobby", "message": "x", "client_id": "1"}),
        json!({"cate": "chat", "group_name": "nowhere", "message": "x", "client_id": "2"}),
        json!({"cate": "notification", "user_name": "bob", "message": "x", "client_id": "3"}),
        json!({"cate": "history", "group_name": "lobby"}),
        json!({"cate": "notifications"}),
        json!({"cate": "seen", "up_to": 1}),
        json!({"cate": "rooms"}),
        json!({"cate": "presence", "group_name": "lobby"}),
        json!({"cate": "resume", "rooms": {"lobby": {"seq": 1}}}),
        json!({"cate": "auth", "token": "x"}),
        json!({"cate": "chat", "group_name": ["lobby"]}),
        json!({"cate": "nothing", "client_id": "last"}),
    ] {
        alice.send(frame).await;
    }
    // Those with an id are answered in any state, and what is asked last is answered last but for what is stored.
    let mut open = vec!["1", "2", "3", "last"];
    while !open.is_empty() {
        let frame = alice.frame().await;
        shows_nothing_inside(what, &frame.to_string());
        open.retain(|id| frame["client_id"] != *id);
    }
    let event = |kind: &str, to: &str| json!({"type": kind, "to": to, "data": {"message": "x", "from_user": "shop"}});
    let mut calls = JoinSet::new();
    for (method, path, body) in [
        ("POST", "/api/events", Some(event("chat", "room:lobby"))),
        ("POST", "/api/events", Some(event("notification", "user:bob"))),
        ("POST", "/api/events", Some(event("chat", "room:nowhere"))),
        ("POST", "/api/events", Some(json!("x"))),
        ("GET", "/api/rooms", None),
        ("PUT", "/api/rooms/other", None),
        ("GET", "/api/rooms/lobby", None),
        ("GET", "/api/rooms/lobby/history", None),
        ("GET", "/api/rooms/lobby/history?before=x'", None),
        ("PUT", "/api/rooms/lobby/members/bob", None),
        ("DELETE", "/api/rooms/lobby/members/bob", None),
        ("GET", "/api/users/bob/notifications", None),
        ("GET", "/api/dead", None),
        ("GET", "/api/dead/1-1", None),
        ("GET", "/api/%ff", None),
    ] {
        let at = format!("http://{}{path}", door.internal);
        let mut request = common::http_client().request(method.parse().unwrap(), at).bearer_auth("key");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let what = format!("{what}, {method} {path}");
        calls.spawn(async move {
            let answer = request.send().await.unwrap();
            let (status, headers) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
            shows_nothing_inside(&what, &headers);
            // What is asked for may hold any word; what went wrong may not.
            let body = answer.text().await.unwrap();
            if status >= 400 {
                shows_nothing_inside(&what, &body);
            }
            status
        });
    }
    let statuses = calls.join_all().await;
    for path in ["/ws/chat/lobby/", "/ws/nothing/", "/readyz", "/healthz", "/%00", "/ws/chat/%ff/"] {
        let answer = common::http_client().get(format!("http://{}{path}", door.public)).send().await.unwrap();
        shows_nothing_inside(what, &format!("{:?}", answer.headers()));
        shows_nothing_inside(what, &answer.text().await.unwrap());
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn a11_no_answer_shows_the_inside_of_what_went_wrong() {
    let mut redis = RedisServer::start();
    let mut postgres = Postgres::start();
    let node = NodeProcess::start(&[
        ("redis-url", &redis.url()),
        ("database-url", &postgres.url()),
        ("limits.frames_per_second", "0"),
    ]);
    let door = node.door;
    let mut alice = door.join("alice", "lobby").await;
    door.join("bob", "lobby").await.close().await;
    let statuses = ask_everything("well", door, &mut alice).await;
    assert!(statuses.contains(&200) && statuses.iter().all(|status| *status < 500), "{statuses:?}");
    // A table that is not as it should be: the server says so with the statement.
    let url = postgres.url();
    postgres.sql(&url, "ALTER TABLE gateway_messages RENAME TO elsewhere");
    let statuses = ask_everything("without a table", door, &mut alice).await;
    assert!(statuses.contains(&500) || statuses.contains(&503), "{statuses:?}");
    postgres.sql(&url, "ALTER TABLE elsewhere RENAME TO gateway_messages");
    postgres.kill9();
    let statuses = ask_everything("without a database", door, &mut alice).await;
    assert!(statuses.contains(&503), "{statuses:?}");
    postgres.restart();
    redis.kill();
    eventually("it has noticed", || async { door.get("/readyz").await.0 == 503 }).await;
    let statuses = ask_everything("without Redis", door, &mut alice).await;
    assert!(statuses.contains(&503), "{statuses:?}");
    // All of it stands in the log, for whoever runs it.
    assert!(node.log().contains("elsewhere") || node.log().contains("gateway_messages"), "{}", node.log());
}

// ---- A7: what people write ----

/// Scripts, markup, terminals, ends of lines, and characters that are none.
const WRITTEN: [&str; 16] = [
    "<script>alert(1)</script>",
    "<img src=x onerror=\"alert(1)\">",
    "</script><!--",
    "\u{1b}[2J\u{1b}[31mred\u{1b}[0m",
    "\u{1b}]0;title\u{7}",
    "\u{9b}31mred",
    "first\r\n2026-01-01T00:00:00.000000Z  INFO forged",
    "first\n{\"level\":\"INFO\",\"message\":\"forged\"}",
    "\r\rforged",
    "a\tb\u{b}c\u{c}d\u{8}e\u{7f}f",
    "\u{85}\u{2028}\u{2029}",
    "\u{202e}evil\u{2066}",
    "{\"type\":\"chat\",\"from_user\":\"admin\"}",
    "\\u001b[31m \\n \\\"",
    "%0d%0a%1b[31m",
    "'; DROP TABLE gateway_messages; --",
];

/// Whether a terminal or a reader of lines would take it for more than text.
fn is_control(character: char) -> bool {
    character.is_control() && character != '\n'
}

async fn written_is_data(log_format: &str) {
    let settings = [("log-format", log_format), ("limits.frames_per_second", "0")];
    let node = NodeProcess::start_by(traced(), &settings);
    let door = node.door;
    let mut alice = door.join("alice", "lobby").await;
    let mut bob = door.join("bob", "lobby").await;
    for (number, text) in WRITTEN.iter().enumerate() {
        let ack = alice.say_acked("lobby", text, &number.to_string()).await;
        assert_eq!(ack["type"], "ack", "{text:?}: {ack}");
        // As it was written, and as JSON: no character of it means anything to who reads the line.
        let raw = bob.text().await;
        assert!(!raw.chars().any(|character| character < ' '), "{raw:?}");
        assert_eq!(serde_json::from_str::<Value>(&raw).unwrap()["message"], *text);

        // The same as the name of everything.
        let notify =
            json!({"cate": "notification", "user_name": text, "message": text, "client_id": format!("n{number}")});
        alice.send(notify).await;
        alice.until(|frame| frame["client_id"] == format!("n{number}")).await;
        alice.send(json!({"cate": text, "client_id": text})).await;
        alice.until(|frame| frame["type"] == "error").await;
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let bearer = format!("Bearer {}", token(text));
        for path in [format!("/ws/chat/{encoded}/"), format!("/ws/{encoded}"), format!("/ws/chat/?x={encoded}")] {
            let _ = door.knock(&path, &[("authorization", &bearer)]).await;
            let _ = door.knock(&path, &[("authorization", &format!("Bearer {}", token("alice")))]).await;
        }
        let names = json!({"display_name": text});
        door.api("PUT", &format!("/api/rooms/{encoded}"), Some(names.clone())).await;
        assert_eq!(door.api("PUT", "/api/rooms/lobby", Some(names)).await.0, 200);
        assert_eq!(door.api("GET", "/api/rooms/lobby", None).await.1["display_name"], *text);
        door.api("GET", &format!("/api/{encoded}"), None).await;
        let event =
            json!({"type": text, "to": text, "id": text, "source": text, "data": {"message": text, "from_user": text}});
        door.api("POST", "/api/events", Some(event)).await;
    }
    let (_, history) = door.api("GET", "/api/rooms/lobby/history", None).await;
    let stored: Vec<_> = history["messages"].as_array().unwrap().iter().map(|row| row["message"].as_str()).collect();
    assert_eq!(stored, WRITTEN.map(Some), "stored as data");
    drop((alice, bob));
    eventually_within(Duration::from_secs(20), "the log is written", || async {
        node.log().matches("WSDISCONNECT").count() >= 2
    })
    .await;
    let log = node.log();
    for line in log.lines() {
        assert!(!line.chars().any(is_control), "{line:?}");
        let begins = if log_format == "json" {
            line.starts_with("{\"timestamp\"")
        } else {
            !line.contains("INFO forged") || line.starts_with("20")
        };
        assert!(begins, "{line:?}");
        assert!(!line.starts_with("2026-01-01") && !line.starts_with("{\"level\""), "a forged line: {line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a7_what_people_write_is_data_and_no_line_of_the_log() {
    written_is_data("text").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a7_what_people_write_is_data_and_no_line_of_the_log_in_json() {
    written_is_data("json").await;
}
