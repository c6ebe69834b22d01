//! The programs of `docs/publishing.md`, run as they are printed there, on real nodes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{TestNode, eventually};
use serde_json::json;
use testkit::redis::RedisServer;
use tokio::process::Command;

/// What a shell, JSON and a Redis command might each trip over.
const AWKWARD: &str = "It's \"paid\": 5 € \\ $HOME `x` %s\n\t👍";

fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/publishers")
}

/// The blocks of code under a line that links a program, by the program's name.
fn printed() -> BTreeMap<String, String> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/publishing.md");
    let document = std::fs::read_to_string(document).unwrap();
    let mut blocks = BTreeMap::new();
    for part in document.split("\n[`examples/publishers/").skip(1) {
        let (name, rest) = part.split_once('`').unwrap();
        let (_, block) = rest.split_once("\n\n```").unwrap();
        let (_, block) = block.split_once('\n').unwrap();
        blocks.insert(name.to_owned(), block.split_once("```\n").unwrap().0.to_owned());
    }
    blocks
}

#[test]
fn the_document_prints_every_program_as_it_is() {
    let files = std::fs::read_dir(programs()).unwrap().map(|entry| entry.unwrap().path());
    let files: BTreeMap<String, String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension != "json") && path.is_file())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap()))
        .collect();
    assert_eq!(printed(), files);
    assert_eq!(files.len(), 5);
}

/// The function that says which group is whose goes by the gateway's own rule.
#[tokio::test]
async fn the_groups_that_the_documents_compute_are_the_gateways() {
    let function = |text: &str| {
        let (_, rest) = text.split_once("def group_of(").unwrap();
        format!("def group_of({}", rest.split("\n\n").next().unwrap().split("\n```").next().unwrap())
    };
    let shown = function(&printed()["group_send.py"]);
    let names =
        ["alice", "jose@example.com", "Café", "chat_x", "u.x", "r.x", "a b", "👍", &"x".repeat(95), &"x".repeat(120)];
    let script = format!(
        "import hashlib, json, re, sys\n{shown}\nprint(json.dumps([[group_of('user', n), group_of('room', n)] for n in json.loads(sys.argv[1])]))"
    );
    let mut python = Command::new(testkit::python::python());
    let output = python.args(["-c", &script, &json!(names).to_string()]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let computed: Vec<[String; 2]> = serde_json::from_slice(&output.stdout).unwrap();
    let rule = gateway::GroupNames::new("{username}", false);
    for (name, [user, room]) in names.iter().zip(computed) {
        assert_eq!((rule.user(name).unwrap().as_str(), rule.room(name).unwrap().as_str()), (&*user, &*room), "{name}");
    }
}

/// Runs a program and says whether it succeeded, and what it wrote.
async fn run(program: &str, arguments: &[&str], env: &[(&str, &str)]) -> (bool, String) {
    assert!(printed().contains_key(program), "{program} is printed");
    let path = programs().join(program);
    let interpreter = match path.extension().and_then(|extension| extension.to_str()) {
        Some("py") => Some(testkit::python::python()),
        Some("mjs") => {
            let installed = programs().join("node_modules/redis").is_dir();
            assert!(installed, "the package redis is missing: run ./test.sh --install-only, or npm ci there");
            Some("node".into())
        }
        _ => None,
    };
    let mut command = match interpreter {
        Some(interpreter) => {
            let mut command = Command::new(interpreter);
            command.arg(path);
            command
        }
        None => Command::new(path),
    };
    let output = command.args(arguments).envs(env.iter().copied()).kill_on_drop(true).output();
    let output = tokio::time::timeout(common::PATIENCE * 6, output).await.unwrap().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("not found"), "a program is missing, run ./test.sh --install-only: {said}");
    (output.status.success(), said)
}

async fn publishes(program: &str, arguments: &[&str], env: &[(&str, &str)]) -> String {
    let (success, said) = run(program, arguments, env).await;
    assert!(success, "{program} {arguments:?}: {said}");
    said
}

/// A durable publisher: both kinds arrive, and twice published is once stored.
async fn is_durable(node: &TestNode, program: &str, env: &[(&str, &str)]) {
    let (mut alice, user) = (node.join("alice", "lobby").await, format!("user:later {program}"));
    for id in ["order-1", "order-1", "order-2"] {
        publishes(program, &[&format!("{program} {id}"), "user:alice", AWKWARD], env).await;
        publishes(program, &[&format!("{program} {id}"), "room:lobby", AWKWARD], env).await;
        publishes(program, &[id, &user, AWKWARD], env).await;
    }
    let (mut notifications, mut messages) = (Vec::new(), Vec::new());
    while notifications.len() < 2 || messages.len() < 2 {
        let frame = alice.frame().await;
        assert_eq!((&frame["message"], &frame["from_user"]), (&json!(AWKWARD), &json!("shop")), "{program}");
        let seqs = if frame["type"] == "chat" { &mut messages } else { &mut notifications };
        seqs.push(frame["seq"].as_u64().unwrap());
    }
    // Each stored twice: what was repeated took no position.
    assert_eq!((notifications[1], messages[1]), (notifications[0] + 1, messages[0] + 1), "{program}");
    alice.hears_nothing_before_own("lobby").await;
    let path = format!("/api/users/later%20{program}/notifications");
    eventually("the inbox of somebody who is away", || async {
        node.at().api("GET", &path, None).await.1["unseen"] == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_is_written_to_from_python_node_and_a_shell() {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url())]).await;
    let env = [("REDIS_URL", redis.url())];
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for program in ["xadd.py", "publish.mjs", "xadd.sh"] {
        is_durable(&node, program, &env).await;
    }
    eventually("nothing waits", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "0" }).await;
    assert_eq!(redis.cli(&["XLEN", "gateway:events:dead"]).trim(), "0");
    // Without Redis they say so.
    drop((node, redis));
    for program in ["xadd.py", "publish.mjs", "xadd.sh"] {
        assert!(!run(program, &["x", "user:alice", "x"], &env).await.0, "{program}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_is_spoken_from_a_shell() {
    let node = TestNode::start(&[]).await;
    let url = format!("http://{}", node.at().internal);
    let env = [("GATEWAY_API_URL", url.as_str()), ("GATEWAY_API_KEY", "key")];
    is_durable(&node, "http.sh", &env).await;
    let said = publishes("http.sh", &["http.sh order-1", "user:alice", AWKWARD], &env).await;
    let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&answer["results"][0]["seq"], &answer["results"][0]["repeated"]), (&json!(1), &json!(true)));
    let (success, said) = run("http.sh", &["http.sh order-1", "user:alice", "other"], &env).await;
    assert!(!success && said.contains("used before with other content"), "{said}");
    let (success, said) = run("http.sh", &["x", "room:nowhere", "x"], &env).await;
    assert!(!success && said.contains("no such room"), "{said}");
    assert!(!run("http.sh", &["x", "user:alice", "x"], &env[..1]).await.0, "without a key");
}

async fn group_send_reaches(layer: &'static str) {
    let redis = RedisServer::start();
    let node = TestNode::start(&[("redis-url", &redis.url()), ("layer", layer)]).await;
    let url = redis.url();
    let env = [("REDIS_URL", url.as_str())];
    // Names that are groups as they are, and such as Channels would not take.
    for (user, room, path) in [("alice", "lobby", "lobby"), ("a@b.c", "caf\u{e9} 1", "caf%C3%A9%201")] {
        let mut socket = node.join(user, path).await;
        publishes("group_send.py", &[layer, &format!("user:{user}"), AWKWARD], &env).await;
        let frame = socket.frame().await;
        assert_eq!((&frame["type"], &frame["message"]), (&json!("notification"), &json!(AWKWARD)));
        assert!(frame.get("seq").is_none() && frame["id"].is_string(), "{frame}");
        publishes("group_send.py", &[layer, &format!("room:{room}"), AWKWARD], &env).await;
        let frame = socket.frame().await;
        assert_eq!((&frame["type"], &frame["message"]), (&json!("chat"), &json!(AWKWARD)));
        assert!(frame["group_name"] == room && frame.get("seq").is_none(), "{frame}");
    }
    // Live only.
    assert_eq!(node.at().api("GET", "/api/users/alice/notifications", None).await.1["unseen"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn group_send_reaches_browsers_on_the_pubsub_layer() {
    group_send_reaches("pubsub").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn group_send_reaches_browsers_on_the_core_layer() {
    group_send_reaches("core").await;
}
