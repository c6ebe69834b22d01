//! The OpenAPI document that a node serves: valid, and what a node really answers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{Door, TestNode, eventually};
use serde_json::{Value, json};
use testkit::postgres::Postgres;
use testkit::redis::RedisServer;
use tokio::process::Command;

/// Runs a Python program of the tests' environment, which must find nothing wrong.
async fn python(arguments: &[&str]) {
    let output = Command::new(testkit::python::python()).args(arguments).output().await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("No module named"), "run ./test.sh --install-only: {said}");
    assert!(output.status.success(), "{said}");
}

async fn served(door: Door, directory: &Path) -> String {
    // Without a key.
    let (status, document) = door.api_with("GET", "/api/openapi.json", None, &[]).await;
    assert_eq!(status, 200);
    let file = directory.join("openapi.json");
    std::fs::write(&file, document.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_accepts_the_document_that_is_served() {
    let (node, directory) = (TestNode::start(&[]).await, tempfile::tempdir().unwrap());
    python(&["-m", "openapi_spec_validator", &served(node.at(), directory.path()).await]).await;
}

/// Calls, and keeps what was answered.
struct Recorder {
    door: Door,
    records: Vec<Value>,
}

impl Recorder {
    /// `path` is the template; the names go into its braces. With a key, a body as JSON.
    async fn call(&mut self, method: &str, path: &str, names: &[&str], query: &str, body: Option<Value>) -> Value {
        let headers = [("authorization", "Bearer key"), ("content-type", "application/json")];
        let text = body.as_ref().map(Value::to_string);
        self.raw(method, path, names, query, text, &headers).await
    }

    async fn raw(
        &mut self,
        method: &str,
        path: &str,
        names: &[&str],
        query: &str,
        body: Option<String>,
        headers: &[(&str, &str)],
    ) -> Value {
        let record = record(self.door, method, path, names, query, body, headers).await;
        self.records.push(record.clone());
        record
    }
}

async fn record(
    door: Door,
    method: &str,
    path: &str,
    names: &[&str],
    query: &str,
    body: Option<String>,
    headers: &[(&str, &str)],
) -> Value {
    let mut names = names.iter();
    let filled: Vec<&str> =
        path.split('/').map(|part| if part.starts_with('{') { *names.next().unwrap() } else { part }).collect();
    let url = format!("http://{}{}{query}", door.internal, filled.join("/"));
    let mut request = common::http_client().request(method.parse().unwrap(), url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(body) = &body {
        request = request.body(body.clone());
    }
    // A database that is away takes its time to be given up.
    let answer = request.timeout(common::PATIENCE * 4).send().await.unwrap();
    let names: Vec<String> = answer.headers().keys().map(ToString::to_string).collect();
    let kind = answer.headers()["content-type"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    json!({
        "method": method, "path": path, "sent": body.and_then(|body| serde_json::from_str::<Value>(&body).ok()),
        "status": status, "content_type": kind, "headers": names,
        "body": serde_json::from_str(&text).unwrap_or(Value::String(text)),
    })
}

const ROOM: &str = "/api/rooms/{room}";
const HISTORY: &str = "/api/rooms/{room}/history";
const MEMBER: &str = "/api/rooms/{room}/members/{user}";
const USER: &str = "/api/users/{user}";
const INBOX: &str = "/api/users/{user}/notifications";
const MESSAGE: &str = "/api/rooms/{room}/messages/{id}";
const NIL: &str = "00000000-0000-0000-0000-000000000000";
const ONLINE: &str = "/api/users/online";
const DISCONNECT: &str = "/api/users/{user}/disconnect";
const USER_ROOMS: &str = "/api/users/{user}/rooms";
const SEEN: &str = "/api/users/{user}/seen";
const DEAD: &str = "/api/dead/{dead_id}";
const RETRY: &str = "/api/dead/{dead_id}/retry";

/// Every operation with a name that may stand in it, and a body it takes.
fn operations() -> Vec<(&'static str, &'static str, Vec<&'static str>, Option<Value>)> {
    let event = json!({"type": "notification", "to": "user:alice", "data": {"message": "x"}});
    vec![
        ("POST", "/api/events", vec![], Some(event)),
        ("POST", "/api/announce", vec![], Some(json!({"message": "x"}))),
        ("POST", ONLINE, vec![], Some(json!({"users": ["alice"]}))),
        ("POST", DISCONNECT, vec!["nobody"], Some(json!({"code": 4401}))),
        ("GET", "/api/rooms", vec![], None),
        ("GET", ROOM, vec!["lobby"], None),
        ("PUT", ROOM, vec!["lobby"], None),
        ("DELETE", ROOM, vec!["lobby"], None),
        ("GET", HISTORY, vec!["lobby"], None),
        ("PUT", MEMBER, vec!["lobby", "alice"], None),
        ("DELETE", MEMBER, vec!["lobby", "alice"], None),
        ("DELETE", MESSAGE, vec!["lobby", NIL], None),
        ("GET", USER, vec!["alice"], None),
        ("DELETE", USER, vec!["nobody"], None),
        ("GET", USER_ROOMS, vec!["alice"], None),
        ("GET", INBOX, vec!["alice"], None),
        ("POST", SEEN, vec!["alice"], Some(json!({"up_to": 1}))),
        ("GET", "/api/nodes", vec![], None),
        ("GET", "/api/stream", vec![], None),
        ("GET", "/api/tail", vec![], None),
        ("GET", "/api/dead", vec![], None),
        ("GET", DEAD, vec!["1-1"], None),
        ("DELETE", DEAD, vec!["1-1"], None),
        ("POST", RETRY, vec!["1-1"], None),
    ]
}

async fn what_works(api: &mut Recorder, redis: &RedisServer) {
    for path in ["/healthz", "/readyz", "/metrics", "/api/openapi.json"] {
        api.call("GET", path, &[], "", None).await;
    }
    api.call("PUT", ROOM, &["lobby"], "", Some(json!({"display_name": "Lobby"}))).await;
    api.call("PUT", ROOM, &["caf%C3%A9%20%231"], "", None).await;
    api.call("PUT", MEMBER, &["lobby", "alice"], "", None).await;
    let _alice = api.door.connect("/ws/chat/", "alice").await;
    let many = json!([
        {"type": "chat", "to": "room:lobby", "data": {"message": "hi", "from_user": "shop", "own": 1}, "source": "shop", "id": "1"},
        {"type": "notification", "to": ["user:alice", "user:bob"], "data": {"message": "Paid"},
         "time": "2026-11-24T20:15:00Z", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"type": "notification", "to": "user:bob", "data": {"message": "late"}, "expires_at": "2020-01-01T00:00:00Z"},
        {"type": "gateway.disconnect", "to": "user:carol", "data": {"code": 4403, "reason": "bye"}},
        {"type": "room.put", "to": "room:lobby", "data": {"display_name": "Ours"}},
        {"type": "member.add", "to": "room:lobby", "data": {"users": ["bob", "carol"]}},
        {"type": "member.remove", "to": "room:lobby", "data": {"users": ["carol", "bob"]}},
        {"type": "gateway.send", "to": "everyone", "data": {"text": "{\"type\":\"cart\"}"}},
    ]);
    let published = api.call("POST", "/api/events", &[], "", Some(many)).await;
    assert_eq!(published["body"]["results"].as_array().unwrap().len(), 9);
    for query in ["", "?limit=1", "?after=a&limit=5"] {
        api.call("GET", "/api/rooms", &[], query, None).await;
    }
    for query in ["", "?before=2", "?after=0&limit=1"] {
        api.call("GET", HISTORY, &["lobby"], query, None).await;
        api.call("GET", INBOX, &["bob"], query, None).await;
    }
    api.call("GET", INBOX, &["alice"], "?unseen=true", None).await;
    let shown = api.call("GET", ROOM, &["lobby"], "", None).await;
    assert_eq!(shown["body"]["online"], json!(["alice"]));
    let user = api.call("GET", USER, &["alice"], "", None).await;
    assert_eq!(user["body"]["sockets"].as_array().unwrap().len(), 1);
    let said = published["body"]["results"][0]["id"].as_str().unwrap();
    api.call("DELETE", MESSAGE, &["lobby", said], "", None).await;
    api.call("GET", HISTORY, &["lobby"], "", None).await;
    api.call("DELETE", USER, &["carol"], "?keep_messages=true", None).await;
    let id = published["body"]["results"][1]["id"].clone();
    api.call("POST", SEEN, &["alice"], "", Some(json!({"ids": [id]}))).await;
    api.call("POST", SEEN, &["alice"], "", Some(json!({"up_to": 1}))).await;
    let rooms = api.call("GET", USER_ROOMS, &["alice"], "", None).await;
    assert_eq!(rooms["body"]["rooms"][0]["name"], "lobby");
    api.call("DELETE", MEMBER, &["lobby", "alice"], "", None).await;
    api.call("DELETE", ROOM, &["lobby"], "", None).await;
    api.call("GET", "/api/nodes", &[], "", None).await;
    let online = api.call("POST", ONLINE, &[], "", Some(json!({"users": ["alice", "bob"]}))).await;
    assert_eq!(online["body"]["online"], json!(["alice"]));
    let tail = api.call("GET", "/api/tail", &[], "", None).await["body"]["next"].clone();
    api.call("POST", "/api/announce", &[], "", Some(json!({"message": "soon", "data": {"n": 1}}))).await;
    api.call("POST", DISCONNECT, &["alice"], "", Some(json!({"code": 4401, "reason": "bye"}))).await;
    api.call("POST", DISCONNECT, &["nobody"], "", None).await;
    eventually("what passed is seen", || async {
        let seen = api.door.api("GET", &format!("/api/tail?after={tail}&texts=true"), None).await.1;
        seen["events"].as_array().unwrap().iter().any(|event| event["what"] == "socket closed")
    })
    .await;
    api.call("GET", "/api/tail", &[], &format!("?after={tail}&texts=true"), None).await;
    for id in ["1", "2"] {
        redis.cli(&[
            "XADD",
            "gateway:events",
            "*",
            "id",
            id,
            "source",
            "s",
            "type",
            "none",
            "to",
            "user:a",
            "data",
            "{}",
        ]);
    }
    eventually("two dead letters", || async {
        api.door.api("GET", "/api/dead", None).await.1["dead"].as_array().unwrap().len() == 2
    })
    .await;
    eventually("the stream is empty", || async { redis.cli(&["XLEN", "gateway:events"]).trim() == "0" }).await;
    let stream = api.call("GET", "/api/stream", &[], "", None).await;
    assert_eq!((&stream["body"]["length"], &stream["body"]["dead"]), (&json!(0), &json!(2)));
    let listed = api.call("GET", "/api/dead", &[], "?limit=1", None).await;
    let newest = listed["body"]["dead"][0]["dead_id"].as_str().unwrap();
    let rest = api.call("GET", "/api/dead", &[], &format!("?before={newest}"), None).await;
    assert_eq!(rest["body"]["dead"].as_array().unwrap().len(), 1);
    api.call("GET", DEAD, &[newest], "", None).await;
    api.call("DELETE", DEAD, &[newest], "", None).await;
    let oldest = rest["body"]["dead"][0]["dead_id"].as_str().unwrap();
    api.call("POST", RETRY, &[oldest], "", None).await;
}

async fn what_is_refused(api: &mut Recorder, redis: &RedisServer) {
    // The room is gone, and such a dead letter never was.
    for (method, path, names, body) in operations() {
        if path == ROOM && method == "PUT" {
            continue;
        }
        api.call(method, path, &names, "", body.clone()).await;
        api.raw(method, path, &names, "", body.map(|body| body.to_string()), &[]).await;
        api.call(method, path, &vec!["x%0Ay"; names.len()], "?limit=x&before=x", Some(json!(1))).await;
    }
    api.raw("PUT", ROOM, &["x"], "", None, &[]).await;
    api.call("PUT", ROOM, &["x"], "", Some(json!([]))).await;
    let huge = format!("\"{}\"", "x".repeat(8 * 1024 * 1024));
    let json = [("authorization", "Bearer key"), ("content-type", "application/json")];
    for (method, path, names) in [
        ("POST", "/api/events", vec![]),
        ("PUT", ROOM, vec!["x"]),
        ("POST", SEEN, vec!["x"]),
        ("POST", "/api/announce", vec![]),
        ("POST", ONLINE, vec![]),
        ("POST", DISCONNECT, vec!["x"]),
    ] {
        api.raw(method, path, &names, "", Some(huge.clone()), &json).await;
        api.raw(method, path, &names, "", Some("{}".into()), &json[..1]).await;
    }
    let value = vec![b'x'; 2000];
    let mut large: Vec<&[u8]> = vec![b"XADD", b"gateway:events:dead", b"9999999999999-0"];
    large.extend([&b"name"[..], &value].repeat(4000));
    redis.raw(&large);
    api.call("POST", RETRY, &["9999999999999-0"], "", None).await;
    redis.cli(&["DEL", "gateway:events:dead"]);
    let event = |to: &str, text: &str| json!({"type": "chat", "to": to, "data": {"message": text}, "id": "1"});
    api.call("POST", "/api/events", &[], "", Some(event("room:lobby", "x"))).await;
    api.call("PUT", ROOM, &["again"], "", None).await;
    api.call("POST", "/api/events", &[], "", Some(json!([event("room:again", "x"), event("room:again", "y")]))).await;
}

async fn what_is_away(api: &mut Recorder, database: bool) {
    let calls: Vec<_> = operations()
        .into_iter()
        .filter(|(method, path, ..)| {
            (path.starts_with("/api/dead") || *path == "/api/stream") != database
                && (*path != USER || *method == "DELETE")
                && ![ONLINE, "/api/nodes", "/api/tail"].contains(path)
        })
        .collect();
    let headers = [("authorization", "Bearer key"), ("content-type", "application/json")];
    let answers = calls.iter().map(|(method, path, names, body)| {
        record(api.door, method, path, names, "", body.as_ref().map(Value::to_string), &headers)
    });
    let answers = futures_util::future::join_all(answers).await;
    for answer in &answers {
        assert_eq!(answer["status"], 503, "{answer}");
    }
    api.records.extend(answers);
    api.call("GET", "/readyz", &[], "", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_a_node_answers_is_as_the_document_says() {
    let (mut redis, mut postgres) = (RedisServer::start(), Postgres::start());
    let settings = [("redis-url", redis.url()), ("database-url", postgres.url()), ("room-policy", "members".into())];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let node = TestNode::start(&settings).await;
    let mut api = Recorder { door: node.at(), records: Vec::new() };
    what_works(&mut api, &redis).await;
    assert!(api.records.iter().all(|record| record["status"] == 200), "{:#?}", api.records);
    what_is_refused(&mut api, &redis).await;
    redis.kill();
    what_is_away(&mut api, false).await;
    postgres.kill9();
    what_is_away(&mut api, true).await;
    // Without Redis there are no dead letters.
    let alone = TestNode::start(&[]).await;
    api.door = alone.at();
    api.call("GET", "/api/dead", &[], "", None).await;
    api.call("GET", "/api/stream", &[], "", None).await;
    let directory = tempfile::tempdir().unwrap();
    let records = directory.path().join("records.json");
    std::fs::write(&records, json!(api.records).to_string()).unwrap();
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openapi/check.py");
    let document = served(node.at(), directory.path()).await;
    python(&[check.to_str().unwrap(), &document, records.to_str().unwrap()]).await;
}
