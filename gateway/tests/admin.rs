//! The operators' page `/admin/`: who gets in, what is told of what they do, and the page in a browser.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Door, NodeProcess, TestNode, eventually, http_client, token};
use reqwest::header::{HeaderMap, LOCATION, SET_COOKIE};
use serde_json::{Value, json};
use testkit::redis::RedisServer;

const PAGE: (&str, &str) = ("x-gateway-page", "admin");

/// A call to the internal listener as the page makes it: status, headers, body.
async fn page(
    door: Door,
    method: &str,
    path: &str,
    body: Option<Value>,
    headers: &[(&str, &str)],
) -> (u16, HeaderMap, Value) {
    let mut request = http_client().request(method.parse().unwrap(), format!("http://{}{path}", door.internal));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.json().await.unwrap_or_default())
}

/// Signs in with the key of test nodes: the cookie as it is set, and what is sent back of it.
async fn sign_in(door: Door, headers: &[(&str, &str)]) -> (String, String) {
    let all = [&[PAGE], headers].concat();
    let (status, answered, _) = page(door, "POST", "/admin/session", Some(json!({"key": "key"})), &all).await;
    assert_eq!(status, 200);
    let set = answered[SET_COOKIE].to_str().unwrap().to_owned();
    let cookie = set.split(';').next().unwrap().to_owned();
    (set, cookie)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_taken_by_every_node_and_signing_out_ends_it_on_all() {
    let (redis, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("x.db").display());
    let start = async |name| {
        TestNode::start(&[("redis-url", &redis.url()), ("database-url", &database), ("node-id", name)]).await
    };
    let (one, two) = (start("one").await, start("two").await);
    let (one, two) = (one.at(), two.at());
    eventually("they know each other", || async {
        let nodes = [one.api("GET", "/api/nodes", None).await.1, two.api("GET", "/api/nodes", None).await.1];
        nodes.iter().all(|nodes| {
            let states = nodes["states"].as_array().unwrap();
            states.len() == 2 && states.iter().all(|state| state["state"] == "ready")
        })
    })
    .await;
    let (set, cookie) = sign_in(one, &[]).await;
    assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Strict") && !set.contains("key"), "{set}");
    let headers = [PAGE, ("cookie", &*cookie)];
    for door in [one, two] {
        assert_eq!(page(door, "GET", "/api/rooms", None, &headers).await.0, 200);
        let told = page(door, "GET", "/admin/session", None, &headers).await.2;
        assert_eq!((&told["signed_in"], &told["needs_key"]), (&json!(true), &json!(true)));
    }
    // A cookie is nothing to who has changed a letter of it.
    let forged = cookie.replace('.', ".0");
    assert_eq!(page(two, "GET", "/api/rooms", None, &[PAGE, ("cookie", &forged)]).await.0, 401);
    let (status, answered, _) = page(two, "DELETE", "/admin/session", None, &headers).await;
    assert_eq!((status, answered[SET_COOKIE].to_str().unwrap().contains("Max-Age=0")), (200, true));
    assert_eq!(page(two, "GET", "/api/rooms", None, &headers).await.0, 401);
    eventually("the other node has heard of it", || async {
        page(one, "GET", "/api/rooms", None, &headers).await.0 == 401
    })
    .await;
}

/// Cookies go to every port of a host, and `SameSite` takes those ports for the same site.
#[tokio::test]
async fn pages_of_others_can_do_nothing_with_an_operators_cookie() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let (_, cookie) = sign_in(door, &[]).await;
    let cookie = ("cookie", &*cookie);
    let (own, other) = (format!("http://{}", door.internal), format!("http://{}", door.public));
    let put = async |headers: &[(&str, &str)]| page(door, "PUT", "/api/rooms/made", None, headers).await.0;
    for headers in [
        &[cookie][..],
        &[cookie, ("origin", &own)],
        &[cookie, PAGE, ("origin", &other)],
        &[cookie, PAGE, ("origin", "null")],
        &[cookie, PAGE, ("sec-fetch-site", "same-site")],
        &[cookie, PAGE, ("sec-fetch-site", "cross-site")],
    ] {
        assert_eq!(put(headers).await, 403, "{headers:?}");
    }
    assert_eq!(door.api("GET", "/api/rooms/made", None).await.0, 404);
    assert_eq!(put(&[cookie, PAGE, ("origin", &own), ("sec-fetch-site", "same-origin")]).await, 200);
    // Nor can another page sign somebody in, or out.
    let key = || Some(json!({"key": "key"}));
    assert_eq!(page(door, "POST", "/admin/session", key(), &[("origin", &own)]).await.0, 403);
    assert_eq!(page(door, "POST", "/admin/session", key(), &[PAGE, ("origin", &other)]).await.0, 403);
    assert_eq!(page(door, "DELETE", "/admin/session", None, &[cookie]).await.0, 403);
    let form = http_client().post(format!("{own}/admin/session")).header(PAGE.0, PAGE.1).body("key=key");
    assert_eq!(form.send().await.unwrap().status(), 415);
    // No answer allows another origin to read it, or to ask.
    let asked = http_client().request(reqwest::Method::OPTIONS, format!("{own}/api/rooms/made"));
    let asked = asked.header("origin", &other).header("access-control-request-method", "DELETE").send().await.unwrap();
    assert!(!asked.status().is_success() && !asked.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn behind_https_the_cookie_is_for_https_only() {
    let node = TestNode::start(&[("trusted-proxies", "127.0.0.1")]).await;
    let door = node.at();
    let proxied = [("x-forwarded-proto", "https"), ("x-forwarded-host", "ops.example.com")];
    let origin = ("origin", "https://ops.example.com");
    let (set, cookie) = sign_in(door, &[proxied[0], proxied[1], origin]).await;
    assert!(set.starts_with("__Host-gateway_admin=") && set.contains("; Secure"), "{set}");
    let headers = [PAGE, ("cookie", &*cookie), proxied[0], proxied[1], origin];
    assert_eq!(page(door, "PUT", "/api/rooms/made", None, &headers).await.0, 200);
}

#[tokio::test]
async fn wrong_keys_at_the_sign_in_are_counted_and_take_longer_and_longer() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let began = Instant::now();
    let tries = (0..5).map(|_| page(door, "POST", "/admin/session", Some(json!({"key": "canary"})), &[PAGE]));
    for (status, headers, problem) in futures_util::future::join_all(tries).await {
        assert_eq!((status, headers.contains_key(SET_COOKIE)), (401, false));
        assert_eq!(problem["detail"], "the API key is missing or wrong");
    }
    // One after the other, a tenth of a second each.
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!(node.metric("gateway_api_refused_total{reason=\"key\"}").await, 5.0);
    for body in [json!({}), json!({"key": 1}), json!([]), json!({"key": "key", "more": 1})] {
        assert_eq!(page(door, "POST", "/admin/session", Some(body), &[PAGE]).await.0, 400);
    }
    // Without a key nobody gets in, but for --dev.
    let closed = TestNode::start(&[("api-key", "")]).await;
    let (status, _, problem) = page(closed.at(), "POST", "/admin/session", Some(json!({"key": ""})), &[PAGE]).await;
    assert_eq!((status, &problem["detail"]), (401, &json!("no API key is configured")));
}

/// Any page that a browser on this machine shows can ask 127.0.0.1, also under a name of its own.
#[tokio::test]
async fn with_dev_there_is_no_sign_in_and_no_other_page_gets_in() {
    let node = TestNode::start(&[("dev", "true"), ("api-key", "")]).await;
    let door = node.at();
    let told = page(door, "GET", "/admin/session", None, &[]).await.2;
    assert_eq!((&told["signed_in"], &told["needs_key"]), (&json!(true), &json!(false)));
    let own = format!("http://{}", door.internal);
    let close =
        async |headers: &[(&str, &str)]| page(door, "POST", "/api/users/alice/disconnect", None, headers).await.0;
    assert_eq!(close(&[PAGE, ("origin", &own), ("sec-fetch-site", "same-origin")]).await, 200);
    assert_eq!(close(&[]).await, 200, "programs on this machine");
    assert_eq!(close(&[("sec-fetch-site", "none")]).await, 200, "an address that was typed");
    assert_eq!(close(&[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")]).await, 403);
    assert_eq!(close(&[("origin", "https://evil.example")]).await, 403);
    let rebound = [("host", "evil.example"), ("origin", "http://evil.example"), ("sec-fetch-site", "same-origin")];
    assert_eq!(close(&rebound).await, 403);
}

#[tokio::test]
async fn every_answer_of_the_page_has_its_headers() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    // With the provider of TLS that the other clients of tests have.
    drop(http_client());
    let redirect = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = redirect.get(format!("http://{}/admin", door.internal)).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()[LOCATION].to_str().unwrap()), (308, "admin/"));
    let html = door.internal_get("/admin/").await.1;
    let modules = ["main", "api", "dom", "charts", "overview", "users", "rooms", "stream", "publish"];
    let modules: Vec<String> = modules.iter().map(|name| format!("/admin/{name}.js")).collect();
    let others =
        ["/admin", "/admin/", "/admin/style.css", "/admin/icon.svg", "/admin/session", "/admin/no", "/admin/a/b"];
    for path in others.into_iter().chain(modules.iter().map(String::as_str)) {
        let answer = redirect.get(format!("http://{}{path}", door.internal)).send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap());
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'") && policy.contains("trusted-types"), "{path}: {policy}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("cache-control"), "no-store", "{path}");
        assert_eq!((header("x-frame-options"), header("referrer-policy")), ("DENY", "no-referrer"), "{path}");
        assert_eq!(header("cross-origin-opener-policy"), "same-origin", "{path}");
    }
    // The policy would forbid them; there are none.
    assert!(!html.contains("<style") && !html.contains(" style=") && !html.contains("onclick"), "{html}");
    assert!(html.matches("<script").count() == 1 && html.contains(r#"<script type="module" src="main.js"></script>"#));
    assert_eq!(page(door, "POST", "/admin/", None, &[PAGE]).await.0, 405);
    assert_eq!(page(door, "PUT", "/admin/session", None, &[PAGE]).await.0, 405);
    // The API's answers are no page either.
    let answer = http_client().get(format!("http://{}/api/openapi.json", door.internal)).send().await.unwrap();
    assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_does_is_in_the_log_with_the_session_and_the_address() {
    let node = NodeProcess::start(&[("trusted-proxies", "127.0.0.1")]);
    let door = node.door;
    let from = ("x-forwarded-for", "203.0.113.7");
    let (_, cookie) = sign_in(door, &[from, ("user-agent", "Opera")]).await;
    let headers = [PAGE, ("cookie", &*cookie), from];
    let session = cookie.split('.').nth(1).unwrap().to_owned();
    let envelope = json!({"type": "notification", "to": "user:alice", "data": {"message": "canary words"}});
    for (method, path, body, status) in [
        ("PUT", "/api/rooms/lobby", None, 200),
        ("PUT", "/api/rooms/lobby/members/alice%0Abob", None, 400),
        ("POST", "/api/users/alice/disconnect", Some(json!({"code": 4403})), 200),
        ("POST", "/api/events", Some(envelope), 200),
        ("GET", "/api/users/alice/notifications", None, 200),
        ("GET", "/api/nodes", None, 200),
    ] {
        assert_eq!(page(door, method, path, body, &headers).await.0, status, "{method} {path}");
    }
    page(door, "DELETE", "/admin/session", None, &headers).await;
    eventually("all of it is written", || async { node.log().contains("signed out of /admin/") }).await;
    let log = node.log();
    let told = |parts: &[&str]| {
        let wanted = [&[session.as_str(), "203.0.113.7"], parts].concat();
        assert!(log.lines().any(|line| wanted.iter().all(|part| line.contains(part))), "{parts:?}: {log}");
    };
    told(&["an operator signed in"]);
    told(&["an operator asked", "PUT", "rooms/lobby", "status=200"]);
    told(&["an operator asked", "members/alice%0Abob", "status=400"]);
    told(&["an operator asked", "users/alice/disconnect"]);
    told(&["an operator asked", "events", "user:alice"]);
    told(&["an operator asked", "users/alice/notifications"]);
    told(&["an operator signed out"]);
    assert!(!log.contains("canary words") && !log.contains(&cookie), "{log}");
    let is_look = |line: &str| line.contains("an operator asked") && line.contains("/nodes");
    assert!(!log.lines().any(is_look), "what the page asks for all the time is no action: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_in_a_real_browser() {
    const BOB: &str = "<i>bob";
    let (redis, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let database = format!("sqlite://{}?mode=rwc", directory.path().join("x.db").display());
    let start = async |name| {
        let settings = [
            ("redis-url", redis.url()),
            ("database-url", database.clone()),
            ("node-id", name),
            ("room-policy", "members".into()),
        ];
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        TestNode::start(&settings).await
    };
    let (one, two) = (start("one".to_owned()).await, start("two".to_owned()).await);
    let door = one.at();
    assert_eq!(door.api("PUT", "/api/rooms/lobby", Some(json!({"display_name": "The lobby"}))).await.0, 200);
    for user in ["alice", "%3Ci%3Ebob"] {
        let (status, answer) = door.api("PUT", &format!("/api/rooms/lobby/members/{user}"), None).await;
        assert_eq!(status, 200, "{answer}");
    }
    for (from, text) in [("alice", "good morning"), (BOB, "שלום לכולם"), ("alice", "x".repeat(300).as_str())] {
        let event =
            json!({"type": "chat", "to": "room:lobby", "data": {"message": text, "from_user": from, "data": {"n": 1}}});
        assert_eq!(door.api("POST", "/api/events", Some(event)).await.0, 200);
    }
    for (id, kind, to) in
        [("1", "chat", "room:new room"), ("2", "no_such_type", "user:alice"), ("3", "chat", "room:gone")]
    {
        let fields = ["id", id, "source", "shop", "type", kind, "to", to, "data", r#"{"message":"too early"}"#];
        redis.cli(&[&["XADD", "gateway:events", "*"], &fields[..]].concat());
    }
    eventually("three dead letters", || async {
        door.api("GET", "/api/stream", None).await.1["dead"] == 3
            && door.api("GET", "/api/nodes", None).await.1["states"].as_array().unwrap().len() == 2
    })
    .await;
    let tokens = json!({"alice": token("alice"), BOB: token(BOB)}).to_string();
    let (internal, socket) = (format!("http://{}/", door.internal), format!("ws://{}/", two.at().public));
    let env = [("GATEWAY_INTERNAL", &*internal), ("GATEWAY_SOCKET", &*socket), ("TOKENS", &*tokens)];
    common::browser("admin.mjs", &env).await;
}
