//! What clients try: other sites' pages, forged tokens, frames that claim things, floods. Neighbours notice nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, some of which tell figures")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Client, Door, Heard, NodeProcess, PATIENCE, SECRET, TestNode, eventually, token};
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

// ---- A1: pages of other sites ----

#[tokio::test(flavor = "multi_thread")]
async fn a1_in_a_real_browser_only_its_own_page_is_let_in_with_the_victims_cookie() {
    let node = TestNode::start(&[]).await;
    let url = format!("http://{}/", node.at().public);
    common::browser("origins.mjs", &[("GATEWAY_URL", &url), ("TOKEN", &token("victim"))]).await;
    assert_eq!(node.metric("gateway_handshakes_rejected_total{reason=\"origin\"}").await, 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a1_origins_that_look_alike_are_refused_before_the_upgrade() {
    let node = TestNode::start(&[("allowed-origins", "https://example.com,.example.org")]).await;
    let cookie = format!("gateway_token={}", token("victim"));
    let knock = async |origin: Option<&str>| {
        let mut headers = vec![("cookie", cookie.as_str()), ("sec-websocket-protocol", "gateway.v1")];
        headers.extend(origin.map(|origin| ("origin", origin)));
        node.at().try_connect("/ws/chat/lobby/", &headers).await.map(drop).err().unwrap_or(101)
    };
    for good in ["https://example.com", "https://EXAMPLE.com", "https://example.com:443", "https://a.example.org"] {
        assert_eq!(knock(Some(good)).await, 101, "{good}");
    }
    for bad in [
        "http://example.com",
        "https://example.com:444",
        "https://example.com.evil.net",
        "https://evilexample.com",
        "https://evilexample.org",
        "https://example.com@evil.net",
        "https://evil.net/https://example.com",
        "https://evil.net#example.com",
        "https://examp1e.com",
        "null",
        "file://",
        "",
        "example.com",
        "*",
    ] {
        assert_eq!(knock(Some(bad)).await, 403, "{bad}");
    }
    assert_eq!(knock(None).await, 403, "a cookie without an origin");
}

// ---- A3: tokens ----

fn signed(header: &str, claims: &str, key: &str) -> String {
    let head = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(key.as_bytes());
    let signature = jsonwebtoken::crypto::sign(head.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{head}.{signature}")
}

fn now() -> u64 {
    jsonwebtoken::get_current_timestamp()
}

/// Claims that are good, with these in their place.
fn claims(own: Value) -> String {
    let mut claims = json!({"sub": "alice", "exp": now() + 600, "aud": "chat", "iss": "site"});
    let all = claims.as_object_mut().unwrap();
    for (name, value) in own.as_object().unwrap() {
        match value {
            Value::Null => all.remove(name),
            value => all.insert(name.clone(), value.clone()),
        };
    }
    claims.to_string()
}

/// Tokens that are no good, each for its own reason.
fn bad_tokens() -> Vec<(&'static str, String)> {
    const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;
    const ATTACKER: &str = "attacker-attacker-attacker-attacker";
    let good = claims(json!({}));
    let with = |own: Value| signed(HEADER, &claims(own), SECRET);
    let by_header = |header: &str, key: &str| signed(header, &good, key);
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let token = with(json!({}));
    let (head, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = head.split_once('.').unwrap();
    let jwk = json!({"kty": "oct", "k": part(ATTACKER), "alg": "HS256"});
    let twice = |claim: &str| good.replacen('{', &format!("{{{claim},"), 1);
    vec![
        ("no signature", format!("{head}.")),
        ("no algorithm", format!("{}.{payload}.", part(r#"{"alg":"none"}"#))),
        ("no algorithm, spelled otherwise", format!("{}.{payload}.", part(r#"{"alg":"nOnE"}"#))),
        ("no algorithm, signed", by_header(r#"{"alg":"none"}"#, SECRET)),
        ("no alg at all", by_header(r#"{"typ":"JWT"}"#, SECRET)),
        ("a secret taken for an RSA key", by_header(r#"{"alg":"RS256"}"#, SECRET)),
        ("a secret taken for another RSA key", by_header(r#"{"alg":"PS256"}"#, SECRET)),
        ("a secret taken for a curve's key", by_header(r#"{"alg":"ES256"}"#, SECRET)),
        ("a secret taken for an Ed25519 key", by_header(r#"{"alg":"EdDSA"}"#, SECRET)),
        ("an HS512 that is an HS256", by_header(r#"{"alg":"HS512"}"#, SECRET)),
        ("an unknown algorithm", by_header(r#"{"alg":"HS1"}"#, SECRET)),
        ("two algorithms", by_header(r#"{"alg":"none","alg":"HS256"}"#, SECRET)),
        ("another secret", by_header(HEADER, ATTACKER)),
        ("an empty secret", by_header(HEADER, "")),
        ("a key of its own", by_header(&json!({"alg": "HS256", "jwk": jwk}).to_string(), ATTACKER)),
        ("an address of keys", by_header(r#"{"alg":"HS256","jku":"https://evil.example/keys"}"#, ATTACKER)),
        ("an address of certificates", by_header(r#"{"alg":"HS256","x5u":"https://evil.example/pem"}"#, ATTACKER)),
        ("the name of a file as a key", by_header(r#"{"alg":"HS256","kid":"../../../../dev/null"}"#, "")),
        ("what must be understood and is not", by_header(r#"{"alg":"HS256","crit":["b64"],"b64":true}"#, SECRET)),
        ("a signature over other claims", format!("{header}.{}.{signature}", part(&claims(json!({"sub": "admin"}))))),
        ("a signature over another header", format!("{}.{payload}.{signature}", part(r#"{"alg":"HS256"}"#))),
        ("a signature over other spaces", format!("{header}.{}.{signature}", part(&format!("{good} ")))),
        ("half a signature", format!("{head}.{}", &signature[..signature.len() / 2])),
        ("a fourth part", format!("{token}.{signature}")),
        ("two parts", format!("{header}.{signature}")),
        ("padding", format!("{token}=")),
        ("a line end", format!("{head}%0a.{signature}")),
        ("no end", with(json!({"exp": null}))),
        ("an end that has passed", with(json!({"exp": now() - 1}))),
        ("an end that is text", with(json!({"exp": (now() + 600).to_string()}))),
        ("not yet", with(json!({"nbf": now() + 300}))),
        ("another audience", with(json!({"aud": "shop"}))),
        ("no audience", with(json!({"aud": null}))),
        ("another issuer", with(json!({"iss": "elsewhere"}))),
        ("no issuer", with(json!({"iss": null}))),
        ("another kind", with(json!({"token_type": "refresh"}))),
        ("no user", with(json!({"sub": null}))),
        ("a list of users", with(json!({"sub": ["alice", "admin"]}))),
        ("a name that is none", with(json!({"sub": "a/b"}))),
        ("a name with a line end", with(json!({"sub": "alice\nadmin"}))),
        ("rooms that are no list", with(json!({"rooms": "lobby"}))),
        ("two users", signed(HEADER, &twice(r#""sub":"admin""#), SECRET)),
        ("two ends", signed(HEADER, &twice(r#""exp":1"#), SECRET)),
        ("two lists of rooms", with_both_rooms(HEADER, &good)),
        ("claims that are a list", signed(HEADER, "[]", SECRET)),
        ("claims that are no JSON", signed(HEADER, "alice", SECRET)),
        ("far too long", with(json!({"more": "x".repeat(20_000)}))),
    ]
}

/// Which of the two a reader takes is chance.
fn with_both_rooms(header: &str, good: &str) -> String {
    signed(header, &good.replacen('{', r#"{"rooms":["lobby"],"rooms":["staff"],"#, 1), SECRET)
}

/// At the handshake and at `auth` alike: one answer, whatever the reason; and what was true before stays true.
#[tokio::test(flavor = "multi_thread")]
async fn a3_a_bad_token_is_refused_at_the_door_and_at_auth() {
    let settings = [("jwt-audience", "chat"), ("jwt-issuer", "site"), ("limits.frames_per_second", "0")];
    let node = TestNode::start(&settings).await;
    let good = signed(r#"{"alg":"HS256"}"#, &claims(json!({})), SECRET);
    let bearer = format!("Bearer {good}");
    let mut alice = node.at().try_connect("/ws/chat/lobby/", &[("authorization", &bearer)]).await.unwrap();
    assert_eq!(alice.ask(json!({"cate": "auth", "token": good})).await["type"], "auth");
    let cases = bad_tokens();
    for (number, (name, bad)) in cases.iter().enumerate() {
        let answer = alice.ask(json!({"cate": "auth", "token": bad})).await;
        let expected = json!({"type": "error", "code": "invalid", "detail": "the token is not valid"});
        assert_eq!(answer, expected, "{name}");
        // So many bad frames in a row would end it.
        alice.say_acked("lobby", name, &number.to_string()).await;
        assert_eq!(alice.hears().await, *name);

        let bearer = format!("Bearer {bad}");
        let status = node.at().try_connect("/ws/chat/lobby/", &[("authorization", &bearer)]).await.map(drop);
        if bad.len() > 16 * 1024 {
            assert_eq!(status, Err(431), "{name}");
            continue;
        }
        assert_eq!(status, Err(401), "{name}");
        let v1 = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
        let mut refused = node.at().try_connect("/ws/chat/lobby/", &v1).await.unwrap();
        assert_eq!(refused.hear().await, Heard::Closed(4401, "not signed in".into()), "{name}");
    }
    println!("{} bad tokens, each refused at both", cases.len());
}

// ---- A6: what frames claim ----

/// Any JSON, three levels deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("admin")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((".{0,8}", inner), 0..4).prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    })
}

/// Fields that a server sets, or that somebody may hope it reads.
const CLAIMED: [&str; 14] = [
    "from_user",
    "id",
    "seq",
    "date",
    "epoch",
    "user",
    "user_name",
    "username",
    "sub",
    "is_system",
    "display_name",
    "source",
    "seen",
    "data",
];

/// A frame with some of them, of any kind.
fn claims_anything() -> impl Strategy<Value = Map<String, Value>> {
    let field = prop_oneof![3 => proptest::sample::select(&CLAIMED[..]).prop_map(str::to_owned), 1 => ".{0,8}"];
    proptest::collection::vec((field, any_json()), 0..8).prop_map(|fields| fields.into_iter().collect())
}

/// A6: whatever a frame says, who wrote it, its id, its place and its time are the server's.
#[tokio::test(flavor = "multi_thread")]
async fn a6_a_stored_message_is_of_whom_the_token_names_whatever_the_frame_says() {
    const FRAMES: u64 = 200;
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let mut mallory = node.join("mallory", "lobby").await;
    let mut victim = node.join("victim", "lobby").await;
    let mut runner = TestRunner::deterministic();
    let (mut ids, mut dates) = (std::collections::HashSet::new(), Vec::new());
    for number in 1..=FRAMES {
        let mut frame = claims_anything().new_tree(&mut runner).unwrap().current();
        let claimed = frame.get("id").cloned();
        let (message, client_id) = (format!("message {number}"), number.to_string());
        frame.insert("cate".into(), "chat".into());
        frame.insert("group_name".into(), "lobby".into());
        frame.insert("message".into(), message.clone().into());
        frame.insert("client_id".into(), client_id.clone().into());
        // Of a site's own field the contents may be refused; everything else is no reason.
        if frame.get("data").is_some_and(|data| !data.is_object()) {
            frame.remove("data");
        }
        mallory.send(frame.clone().into()).await;
        let ack = mallory.until(|frame| frame["client_id"] == *client_id).await;
        let heard = victim.frame().await;
        let shown = (heard["type"].as_str(), heard["from_user"].as_str(), heard["message"].as_str());
        assert_eq!(shown, (Some("chat"), Some("mallory"), Some(message.as_str())), "{frame:?}");
        assert_eq!((heard["seq"].as_u64(), &heard["group_name"]), (Some(number), &json!("lobby")), "{frame:?}");
        assert_eq!((&heard["id"], &heard["seq"], &heard["date"]), (&ack["id"], &ack["seq"], &ack["date"]), "{frame:?}");
        assert_ne!(Some(&heard["id"]), claimed.as_ref());
        assert!(ids.insert(heard["id"].as_str().unwrap().to_owned()), "an id twice");
        dates.push(heard["date"].as_str().unwrap().to_owned());
        // A frame may say all of that and be no message.
        frame.insert("cate".into(), any_json().new_tree(&mut runner).unwrap().current());
        if frame["cate"].as_str().is_none_or(|cate| cate.len() > 3) {
            mallory.send(frame.into()).await;
        }
    }
    assert!(dates.is_sorted(), "{dates:?}");
    let (_, history) = node.at().api("GET", "/api/rooms/lobby/history?limit=100", None).await;
    let messages = history["messages"].as_array().unwrap();
    assert!(messages.len() == 100 && messages.iter().all(|message| message["from_user"] == "mallory"));
    assert_eq!(node.at().api("GET", "/api/rooms/lobby", None).await.1["seq"], FRAMES);
    let (_, inbox) = node.at().api("GET", "/api/users/victim/notifications", None).await;
    assert_eq!(inbox["notifications"], json!([]));
}

// ---- A9, A12, A14: what can be asked ----

/// A9: what is for operators is not on the public listener, whoever asks.
#[tokio::test(flavor = "multi_thread")]
async fn a9_nothing_for_operators_is_on_the_public_listener() {
    let node = TestNode::start(&[]).await;
    for path in [
        "/metrics",
        "/metrics/",
        "//metrics",
        "/api",
        "/api/",
        "/api/nodes",
        "/api/events",
        "/api/rooms/lobby",
        "/api/dead",
        "/openapi.json",
        "/api/openapi.json",
        "/admin",
        "/admin/",
        "/debug",
        "/debug/pprof/",
        "/status",
        "/config",
        "/dev/login",
        "/",
        "/ws/../metrics",
    ] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let answer = raw(node.at().public, &request).await;
            assert!(answer.starts_with("HTTP/1.1 404"), "{method} {path}: {answer}");
            assert!(!answer.contains("gateway_"), "{answer}");
        }
    }
    assert_eq!(node.at().internal_get("/metrics").await.0, 200);
}

/// Sends a request; all that comes back.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A12: a room that is not yours and one that does not exist are answered alike, at every door.
#[tokio::test(flavor = "multi_thread")]
async fn a12_a_room_that_is_not_yours_is_answered_like_one_that_does_not_exist() {
    let node = TestNode::start(&[("room-policy", "members")]).await;
    let door = node.at();
    for path in
        ["/api/rooms/secret", "/api/rooms/secret/members/bob", "/api/rooms/own", "/api/rooms/own/members/mallory"]
    {
        assert_eq!(door.api("PUT", path, None).await.0, 200);
    }
    let mut mallory = door.v1("/ws/chat/", "mallory").await;
    let mut answers = Vec::new();
    for room in ["secret", "absent"] {
        let mut all = Vec::new();
        for frame in [
            json!({"cate": "chat", "group_name": room, "message": "x", "client_id": "1"}),
            json!({"cate": "history", "group_name": room}),
            json!({"cate": "typing", "group_name": room}),
            json!({"cate": "presence", "group_name": room}),
            json!({"cate": "resume", "rooms": {room: {"seq": 0}}}),
        ] {
            mallory.send(frame).await;
            all.push(mallory.frame().await.to_string().replace(room, "ROOM"));
        }
        let bearer = format!("Bearer {}", token("mallory"));
        let request = format!(
            "GET /ws/chat/{room}/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: {bearer}\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(door.public, &request).await;
        all.push(answer.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n"));
        let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
        let mut refused = door.try_connect(&format!("/ws/chat/{room}/"), &headers).await.unwrap();
        all.push(format!("{:?}", refused.hear().await));
        answers.push(all);
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0][5].starts_with("HTTP/1.1 404") && answers[0][6].contains("4404"), "{answers:?}");
    let (_, secret) = door.api("GET", "/api/rooms/secret", None).await;
    assert_eq!((&secret["seq"], &secret["members"]), (&json!(0), &json!(["bob"])), "nothing was done");
}

/// A14: a handshake is a GET; and nobody on the way keeps an answer.
#[tokio::test(flavor = "multi_thread")]
async fn a14_other_methods_are_refused_and_no_answer_may_be_stored() {
    let node = TestNode::start(&[]).await;
    for (method, path, status) in [
        ("GET", "/ws/chat/lobby/", "426"),
        ("POST", "/ws/chat/lobby/", "405"),
        ("PUT", "/ws/chat/", "405"),
        ("DELETE", "/ws/notifications/", "405"),
        ("PATCH", "/ws/chat/lobby/", "405"),
        ("OPTIONS", "/ws/chat/lobby/", "405"),
        ("TRACE", "/ws/chat/lobby/", "405"),
        ("GET", "/nowhere", "404"),
        ("GET", "/readyz", "200"),
        ("GET", "/healthz", "200"),
    ] {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\nX-Mark: mark\r\n\r\n"
        );
        let answer = raw(node.at().public, &request).await.to_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status}")), "{method} {path}: {answer}");
        assert!(answer.contains("cache-control: no-store"), "{method} {path}: {answer}");
        assert!(!answer.contains("mark"), "nothing is sent back: {answer}");
    }
}

// ---- P6: extensions ----

/// P6: nothing is ever inflated, because no extension is ever accepted.
#[tokio::test(flavor = "multi_thread")]
async fn p6_no_extension_is_accepted_and_a_compressed_frame_is_1002() {
    let node = TestNode::start(&[]).await;
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=8, permessage-deflate",
        "x-webkit-deflate-frame",
        "permessage-bzip2, permessage-lz4",
    ] {
        let mut stream = tokio::net::TcpStream::connect(node.at().public).await.unwrap();
        let request = format!(
            "GET /ws/chat/lobby/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Authorization: Bearer {}\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n",
            token("alice")
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101") && !head.contains("extensions"), "{offer}: {head}");
        // FIN, RSV1 and text: a compressed `{}`, masked with nothing.
        stream.write_all(&[0xC1, 0x84, 0, 0, 0, 0, 0xAA, 0xAE, 0x05, 0x00]).await.unwrap();
        let mut answer = [0; 4];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!((answer[0], u16::from_be_bytes([answer[2], answer[3]])), (0x88, 1002), "{offer}");
    }
}

// ---- Neighbours ----

/// How long acks took.
struct Acks(Vec<Duration>);

impl Acks {
    fn of(&self, share: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0
    }
}

impl std::fmt::Display for Acks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (half, most, all) = (self.of(0.5), self.of(0.99), self.of(1.0));
        write!(f, "{} acks: half within {half:.1} ms, 99 % within {most:.1} ms, all within {all:.1} ms", self.0.len())
    }
}

/// Users who talk as people do. Everything they say is acknowledged and heard.
async fn talk(neighbours: Vec<Client>) -> (Vec<Client>, Acks) {
    let mut talking = JoinSet::new();
    for mut client in neighbours {
        talking.spawn(async move {
            let mut took = Vec::new();
            for _ in 0..10 {
                let id = uuid::Uuid::new_v4().to_string();
                let asked = Instant::now();
                let ack = client.say_acked("quiet", &id, &id).await;
                assert_eq!(ack["type"], "ack", "{ack}");
                took.push(asked.elapsed());
                // Their pace; meanwhile they hear the others.
                assert!(!matches!(client.hear_within(Duration::from_millis(100)).await, Some(Heard::Gone)));
            }
            (client, took)
        });
    }
    let mut clients = Vec::new();
    let mut acks = Vec::new();
    while let Some(done) = talking.join_next().await {
        let (client, took) = done.unwrap();
        clients.push(client);
        acks.extend(took);
    }
    acks.sort();
    (clients, Acks(acks))
}

async fn neighbours(door: Door, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for number in 0..count {
        clients.push(door.join(&format!("neighbour-{number}"), "quiet").await);
    }
    clients
}

/// P9: who floods is warned, then closed, comes back and floods again; everybody else is served all the time.
#[tokio::test(flavor = "multi_thread")]
async fn p9_who_floods_hinders_no_neighbour() {
    const FLOODERS: usize = 20;
    let node = NodeProcess::start(&[]);
    let door = node.door;
    let (clients, before) = talk(neighbours(door, 20).await).await;
    let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut flooders = JoinSet::new();
    for number in 0..FLOODERS {
        let (stop, ended) = (Arc::clone(&stop), Arc::clone(&ended));
        flooders.spawn(async move {
            let frame = json!({"cate": "chat", "group_name": "noise", "message": "x".repeat(200)}).to_string();
            while !stop.load(Ordering::Relaxed) {
                let bearer = format!("Bearer {}", token(&format!("flooder-{number}")));
                let Some(mut client) = door.knock("/ws/chat/noise/", &[("authorization", &bearer)]).await else {
                    continue;
                };
                while client.try_send_text(&frame).await {
                    tokio::task::yield_now().await;
                }
                if client.closed().await == 1008 {
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    eventually("they flood", || async { ended.load(Ordering::Relaxed) >= FLOODERS }).await;
    let (clients, during) = talk(clients).await;
    stop.store(true, Ordering::Relaxed);
    flooders.join_all().await;
    println!("without a flood, {before}\nbeside {FLOODERS} flooders, {during}");
    println!("{} times a flooder was closed", ended.load(Ordering::Relaxed));
    assert_eq!(clients.len(), 20);
    assert!(during.of(1.0) < 5000.0, "{during}");
    assert!(door.metric("gateway_connections_closed_total{code=\"1008\"}").await as usize >= FLOODERS);
}

/// Connects from this address of ours. Who is not let in is told why and when to come again, or 0: not told anything,
/// as a node may do far over a limit.
async fn from(address: [u8; 4], door: Door, user: &str, path: &str) -> Result<tokio::net::TcpStream, u16> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((address, 0))).unwrap();
    let mut stream = timeout(PATIENCE, socket.connect(door.public)).await.unwrap().unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer {}\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        token(user)
    );
    let _ = stream.write_all(request.as_bytes()).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match timeout(PATIENCE, stream.read_u8()).await.unwrap() {
            Ok(byte) => head.push(byte),
            Err(_) => return Err(0),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let status: u16 = head[9..12].parse().unwrap();
    assert!(status == 101 || head.to_lowercase().contains("retry-after"), "{head}");
    if status == 101 { Ok(stream) } else { Err(status) }
}

/// P13: one address, then one user, connects as often as it can; others go on and come in.
#[tokio::test(flavor = "multi_thread")]
async fn p13_a_flood_of_connections_is_answered_429_and_others_come_in() {
    const TRIES: usize = 600;
    let limits = [("limits.connections_per_address", "100"), ("limits.connections_per_user", "30")];
    let node = NodeProcess::start(&limits);
    let door = node.door;
    let (clients, before) = talk(neighbours(door, 20).await).await;
    let crowd = |number: usize| format!("flooder-{}", number % 50);
    let alone = |_: usize| "flooder".to_owned();
    // Every address has only so many, of however many users, and every user from however many addresses.
    for (what, user, spread, most) in
        [("an address", &crowd as &(dyn Fn(usize) -> String + Sync), 1, 100), ("a user", &alone, 100, 30)]
    {
        let mut flood = JoinSet::new();
        for part in 0..20 {
            let names: Vec<String> = (0..TRIES / 20).map(|number| user(part * 30 + number)).collect();
            flood.spawn(async move {
                let mut answers = Vec::new();
                for (number, name) in names.iter().enumerate() {
                    let address = [127, 0, 1, 1 + ((part * 30 + number) % spread) as u8];
                    answers.push(from(address, door, name, "/ws/chat/noise/").await);
                }
                answers
            });
        }
        // Meanwhile somebody new comes in, too.
        let (talked, newcomer) = tokio::join!(talk(neighbours(door, 5).await), door.join("newcomer", "quiet"));
        let answers: Vec<_> = flood.join_all().await.into_iter().flatten().collect();
        let open = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(429 | 0))), "429 and nothing else");
        assert!(open <= most && open > most / 2, "{what}: {open}");
        println!("{what} tried {} times, {open} let in; beside that, {}", answers.len(), talked.1);
        drop((answers, newcomer));
        eventually("the flood has gone", || async { door.metric("gateway_connections").await < 30.0 }).await;
    }
    println!("without a flood, {before}");
    let (clients, _) = talk(clients).await;
    assert_eq!(clients.len(), 20);
    assert!(door.metric("gateway_handshakes_rejected_total{reason=\"connections_per_address\"}").await > 0.0);
    assert!(door.metric("gateway_handshakes_rejected_total{reason=\"connections_per_user\"}").await > 0.0);
}

/// P10: over the limit of rooms every further join is refused, however many there are, and leaves nothing behind on
/// the node; the sockets there are go on.
#[tokio::test(flavor = "multi_thread")]
async fn p10_a_flood_of_joins_is_refused_and_leaves_nothing_on_the_node() {
    const ROOMS: usize = 5;
    const TRIES: usize = 300;
    let node = NodeProcess::start(&[("limits.rooms_per_user", "5")]);
    let door = node.door;
    let mut sockets = Vec::new();
    for number in 0..ROOMS {
        sockets.push(door.join("mallory", &format!("room-{number}")).await);
    }
    let (clients, _) = talk(neighbours(door, 10).await).await;
    let groups = async || (door.metric("gateway_groups").await, door.metric("gateway_connections").await);
    let before = groups().await;
    let mut joins = JoinSet::new();
    let began = Instant::now();
    for part in 0..10 {
        joins.spawn(async move {
            for number in 0..TRIES / 10 {
                let room = format!("/ws/chat/more-{part}-{number}/");
                assert_eq!(from([127, 0, 0, 1], door, "mallory", &room).await.map(drop), Err(429));
            }
        });
    }
    let (clients, during) = talk(clients).await;
    joins.join_all().await;
    println!("{TRIES} joins refused in {:.1} s; beside that, {during}", began.elapsed().as_secs_f64());
    assert_eq!(clients.len(), 10);
    eventually("as before", || async { groups().await == before }).await;
    let mut last = sockets.pop().unwrap();
    last.say("room-0", "still here").await;
    assert_eq!(last.hears().await, "still here");
    assert_eq!(last.rooms().await.len(), ROOMS);
}
