//! Traces: what a collector gets to see, and what of it goes on to others. The bridge's are in `bridge/opening.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use common::collector::Collector;
use common::site::{Site, header, ok};
use common::{NodeProcess, TestNode, eventually, token};
use serde_json::{Value, json};
use testkit::redis::RedisServer;

/// A trace that somebody has begun, and whether it is kept.
fn begun(number: u8, kept: bool) -> String {
    format!("00-4bf92f3577b34da6a3ce929d0e0e47{number:02x}-00f067aa0ba902b7-0{}", u8::from(kept))
}

fn trace_of(traceparent: &str) -> &str {
    traceparent.split('-').nth(1).unwrap()
}

const CALLER: &str = "00f067aa0ba902b7";

const SERVER: i32 = 2;
const CONSUMER: i32 = 5;

async fn publish(node: &TestNode, header: Option<&str>, own: Option<&str>) {
    let mut envelope = json!({"type": "notification", "to": "user:alice", "data": {"message": "x"}});
    if let Some(own) = own {
        envelope["traceparent"] = json!(own);
    }
    let mut headers = vec![("authorization", "Bearer s3cret")];
    headers.extend(header.map(|header| ("traceparent", header)));
    assert_eq!(node.at().api_with("POST", "/api/events", Some(envelope), &headers).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_goes_on_with_its_callers_trace_down_to_the_event_on_the_layer() {
    let collector = Collector::start().await;
    let node = TestNode::start(&[
        ("otlp-endpoint", &collector.endpoint()),
        ("otlp-headers", "x-team=shop, authorization=Bearer abc"),
        ("api-key", "shop:s3cret"),
        ("node-id", "one"),
    ])
    .await;
    let layer = &node.running.node().layer;
    let channel = layer.new_channel("").await.unwrap();
    layer.group_add(&channel_layer::GroupName::parse("alice").unwrap(), &channel).await.unwrap();
    let event = async || layer.receive(&channel).await.unwrap().text("traceparent").map(str::to_owned);
    let parent = begun(1, true);
    publish(&node, Some(&parent), None).await;
    let passed_on = event().await.unwrap();
    let call = collector.span("POST /api/events", |span| span.trace == trace_of(&parent)).await;
    assert_eq!((call.parent.as_str(), call.kind, call.failed), (CALLER, SERVER, false));
    assert_eq!((call.get("http.response.status_code"), call.get("gateway.api_key")), ("200".into(), "shop".into()));
    let store = collector.span("store", |span| span.parent == call.id).await;
    assert_eq!(passed_on, store.traceparent());
    // Whose they are, and what the collector wants to hear.
    let own = |key| collector.resource(key);
    assert_eq!(own("service.name").as_deref(), Some("channel-gateway"));
    assert_eq!(own("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(own("service.instance.id").as_deref(), Some("one"));
    let head = collector.head();
    assert!(head.starts_with("post /v1/traces ") && head.contains("application/x-protobuf"), "{head}");
    assert!(head.contains("x-team: shop") && head.contains("authorization: bearer abc"), "{head}");

    // An envelope's own trace is the message's.
    let other = begun(2, true);
    publish(&node, Some(&parent), Some(&other)).await;
    let passed_on = event().await.unwrap();
    let store = collector.span("store", |span| span.trace == trace_of(&other)).await;
    assert_eq!((passed_on, store.parent.as_str()), (store.traceparent(), CALLER));

    // Whoever has decided that a trace is not kept has decided; it is passed on as it came.
    let dropped = begun(3, false);
    publish(&node, Some(&dropped), None).await;
    assert_eq!(event().await, Some(dropped.clone()));
    // Without one, a trace begins here.
    publish(&node, None, None).await;
    let passed_on = event().await.unwrap();
    let root = collector.span("POST /api/events", |span| span.parent.is_empty()).await;
    assert_eq!(trace_of(&passed_on), root.trace);
    assert!(!collector.spans().iter().any(|span| span.trace == trace_of(&dropped)));
    eventually("they are counted", async || {
        let sent = node.metric("gateway_traces_spans_total{result=\"sent\"}").await;
        sent > 0.0 && sent == collector.spans().len() as f64
    })
    .await;

    // A refused call says so, and a list has a part for each trace.
    let one = json!({"type": "chat", "to": "room:nowhere", "data": {"message": "x"}});
    let bearer = [("authorization", "Bearer s3cret"), ("traceparent", &parent)];
    assert_eq!(node.at().api_with("POST", "/api/events", Some(one), &bearer).await.0, 404);
    collector.span("POST /api/events", |span| span.get("http.response.status_code") == "404").await;
    let message = |own: Option<&str>| {
        let mut envelope = json!({"type": "notification", "to": "user:alice", "data": {"message": "x"}});
        if let Some(own) = own {
            envelope["traceparent"] = json!(own);
        }
        envelope
    };
    let (third, before) = (begun(4, true), collector.spans().iter().filter(|span| span.name == "store").count());
    let list = json!([message(None), message(Some(&third)), message(None), message(Some(&third))]);
    assert_eq!(node.at().api_with("POST", "/api/events", Some(list), &bearer).await.0, 200);
    collector.span("store", |span| span.trace == trace_of(&third)).await;
    eventually("both parts are here", async || {
        collector.spans().iter().filter(|span| span.name == "store").count() == before + 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_is_a_span_with_its_parts_and_one_that_is_refused_says_why() {
    let collector = Collector::start().await;
    let node = TestNode::start(&[("otlp-endpoint", &collector.endpoint()), ("room-policy", "members")]).await;
    for path in ["/api/rooms/lobby", "/api/rooms/lobby/members/alice"] {
        assert_eq!(node.at().api("PUT", path, None).await.0, 200);
    }
    let (bearer, parent) = (format!("Bearer {}", token("alice")), begun(1, true));
    let headers = [("authorization", bearer.as_str()), ("traceparent", &parent)];
    let open = node.at().try_connect("/ws/chat/lobby/", &headers).await.unwrap();
    let connect = collector.span("connect", |span| span.trace == trace_of(&parent)).await;
    assert_eq!((connect.parent.as_str(), connect.kind), (CALLER, SERVER));
    assert_eq!(
        (connect.get("url.path"), connect.get("client.address")),
        ("/ws/chat/lobby/".into(), "127.0.0.1".into())
    );
    assert_eq!((connect.get("http.response.status_code"), connect.get("user.name")), ("101".into(), "alice".into()));
    assert!(connect.get("gateway.channel").starts_with("specific."));
    let sign_in = collector.span("sign_in", |span| span.parent == connect.id).await;
    assert_eq!(sign_in.get("gateway.signed_in_by"), "token");
    collector.span("consumer_connect", |span| span.parent == connect.id).await;
    drop(open);
    for (path, headers, status, reason) in [
        ("/ws/chat/secret/", &headers[..], 404, "no_room"),
        ("/ws/chat/lobby/", &headers[1..], 401, "no_credentials"),
        ("/ws/chat/lobby/", &[headers[0], headers[1], ("origin", "https://evil.example.com")], 403, "origin"),
    ] {
        assert_eq!(node.at().try_connect(path, headers).await.err(), Some(status), "{reason}");
        let refused = collector.span("connect", |span| span.get("gateway.refused") == reason).await;
        assert_eq!((refused.get("http.response.status_code"), refused.failed), (status.to_string(), false));
    }
    // A page is no handshake.
    node.at().get("/nothing").await;
    // Its span would have been sent before this one.
    let later = begun(9, true);
    node.at().try_connect("/ws/chat/lobby/", &[headers[0], ("traceparent", &later)]).await.unwrap();
    collector.span("connect", |span| span.trace == trace_of(&later)).await;
    assert!(!collector.spans().iter().any(|span| span.get("url.path") == "/nothing"));
}

/// The site's own trace of a question goes on with the handshake's.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_to_django_goes_on_with_the_trace_of_the_handshake() {
    let (collector, site) =
        (Collector::start().await, Site::start(|_| ok(&json!({"user": {"id": 7, "username": "alice"}}))).await);
    let (endpoint, url) = (collector.endpoint(), site.url("/gateway/auth/"));
    let ask = [("jwt-secret", ""), ("auth-url", url.as_str())];
    let traced = [&ask[..], &[("otlp-endpoint", &*endpoint), ("django.recheck_seconds", "1")]].concat();
    let node = TestNode::start(&traced).await;
    // Each with a cookie of its own, as equal questions are asked once.
    let asked_by = async |node: &TestNode, cookie: &str, trace: Option<&str>| {
        let (cookie, origin) = (format!("sessionid={cookie}"), format!("http://{}", node.at().public));
        let mut headers = vec![("cookie", cookie.as_str()), ("origin", origin.as_str())];
        headers.extend(trace.map(|trace| ("traceparent", trace)));
        let client = node.at().try_connect("/ws/chat/lobby/", &headers).await.unwrap();
        let heads: Vec<_> = site.heads.lock().iter().filter(|head| head.contains(&cookie)).cloned().collect();
        (client, header(&heads[0], "traceparent").map(str::to_owned))
    };
    let parent = begun(1, true);
    let (alice, passed_on) = asked_by(&node, "kept", Some(&parent)).await;
    let connect = collector.span("connect", |span| span.trace == trace_of(&parent)).await;
    let sign_in = collector.span("sign_in", |span| span.parent == connect.id).await;
    assert_eq!(passed_on, Some(sign_in.traceparent()));
    // Asked again later, it is no part of that.
    eventually("it is asked again", async || {
        site.heads.lock().iter().any(|head| head.contains("sessionid=kept") && header(head, "traceparent").is_none())
    })
    .await;
    drop(alice);
    // Whoever has decided that a trace is not kept has decided, for Django too.
    let dropped = begun(2, false);
    assert_eq!(asked_by(&node, "dropped", Some(&dropped)).await.1, Some(dropped));
    // What is none means nothing: a trace begins here, as it does without one.
    for (cookie, none) in [("malformed", Some("00-made-up-01")), ("without", None)] {
        let passed_on = asked_by(&node, cookie, none).await.1.unwrap();
        let sign_in = collector.span("sign_in", |span| span.traceparent() == passed_on).await;
        collector.span("connect", |span| span.id == sign_in.parent && span.parent.is_empty()).await;
    }
    let plain = TestNode::start(&ask).await;
    assert_eq!(asked_by(&plain, "plain", Some(&parent)).await.1, None, "without traces nothing is passed on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_stream_goes_on_with_its_publishers_trace() {
    let (collector, redis) = (Collector::start().await, RedisServer::start());
    let node = NodeProcess::start(&[
        ("redis-url", &redis.url()),
        ("otlp-endpoint", &collector.endpoint()),
        ("log-level", "debug"),
    ]);
    let mut alice = node.door.v1("/ws/chat/lobby/", "alice").await;
    let parent = begun(1, true);
    let data = r#"{"message":"paid","from_user":"shop"}"#;
    let add = |fields: &[&str]| {
        redis.cli(&[&["XADD", "gateway:events", "*", "source", "shop", "data", data], fields].concat())
    };
    add(&["id", "order-42", "type", "notification", "to", "user:alice", "traceparent", &parent]);
    alice.until(|frame| frame["type"] == "notification").await;
    let event = collector.span("event", |span| span.trace == trace_of(&parent)).await;
    assert_eq!((event.parent.as_str(), event.kind), (CALLER, CONSUMER));
    assert_eq!((event.get("gateway.event.id"), event.get("gateway.result")), ("order-42".into(), "stored".into()));
    let store = collector.span("store", |span| span.parent == event.id).await;
    // The lines at each step have what went on.
    eventually("it is in the log", async || {
        node.log().lines().filter(|line| line.contains(&store.traceparent())).count() >= 3
    })
    .await;
    add(&["id", "order-43", "type", "chat", "to", "room:nowhere", "traceparent", &parent]);
    let dead = collector.span("event", |span| span.get("gateway.result") == "dead").await;
    assert!(dead.failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_traces_that_begin_here_a_share_is_kept_and_of_others_what_their_beginner_says() {
    let collector = Collector::start().await;
    let node =
        TestNode::start(&[("otlp-endpoint", &collector.endpoint()), ("otlp-sample-ratio", "0"), ("api-key", "s3cret")])
            .await;
    for _ in 0..20 {
        publish(&node, None, None).await;
    }
    let parent = begun(1, true);
    publish(&node, Some(&parent), None).await;
    collector.span("POST /api/events", |span| span.trace == trace_of(&parent)).await;
    assert!(collector.spans().iter().all(|span| span.trace == trace_of(&parent)));
}

/// Whoever collects traces may be away: that is told once, counted, and costs nobody anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_is_told_of_once_and_holds_up_nobody() {
    let collector = Collector::start().await;
    collector.answers(503);
    let node = NodeProcess::start(&[("otlp-endpoint", &collector.endpoint())]);
    let told = |what: &str| node.log().lines().filter(|line| line.contains(what) && line.contains("traces")).count();
    let spans =
        async |result: &str| node.door.metric(&format!("gateway_traces_spans_total{{result=\"{result}\"}}")).await;
    let report = async || -> Value { serde_json::from_str(&node.door.internal_get("/readyz").await.1).unwrap() };
    // More than may wait.
    for _ in 0..30 {
        let list: Vec<Value> = (0..100_u8)
            .map(|number| {
                json!({"type": "notification", "to": "user:alice", "data": {"message": "x"}, "traceparent": begun(number, true)})
            })
            .collect();
        assert_eq!(node.door.api("POST", "/api/events", Some(json!(list))).await.0, 200);
    }
    eventually("it is told", async || told("fails, and is tried again") == 1).await;
    eventually("spans are given up", async || spans("failed").await > 0.0).await;
    assert!(spans("overflowed").await + spans("failed").await > 512.0);
    let degraded = report().await;
    assert_eq!((degraded["status"].as_str(), degraded["degraded"][0].as_str()), (Some("degraded"), Some("traces")));
    assert!(node.door.metric("gateway_background_failures_total{task=\"traces\"}").await > 0.0);
    assert_eq!(spans("sent").await, 0.0);
    collector.answers(200);
    eventually("it works again", async || {
        node.door.api("GET", "/api/nodes", None).await;
        told("works again") == 1
    })
    .await;
    assert_eq!(report().await["status"], "ok");
    // It may refuse some of what it takes.
    collector.answers(206);
    eventually("that is told too", async || {
        node.door.api("GET", "/api/nodes", None).await;
        told("refuses 1 spans: too many") > 0
    })
    .await;
}

/// Each line of a connection says which, whose, and what trace it is a part of.
#[tokio::test(flavor = "multi_thread")]
async fn every_line_of_a_connection_has_its_channel_its_user_and_its_trace() {
    let collector = Collector::start().await;
    for format in ["json", "text"] {
        let node = NodeProcess::start(&[
            ("otlp-endpoint", &collector.endpoint()),
            ("log-format", format),
            ("log-level", "debug"),
        ]);
        let (bearer, parent) = (format!("Bearer {}", token("alice")), begun(1, true));
        let headers = [("authorization", bearer.as_str()), ("traceparent", &parent)];
        let mut alice = node.door.try_connect("/ws/chat/lobby/", &headers).await.unwrap();
        alice.say_acked("lobby", "hi", "mine").await;
        alice.send_text("no frame").await;
        alice.until(|frame| frame["type"] == "error").await;
        drop(alice);
        eventually("it is closed", async || node.log().contains("WSDISCONNECT")).await;
        let refused = [("authorization", "Bearer x"), ("traceparent", &parent)];
        assert_eq!(node.door.try_connect("/ws/chat/lobby/", &refused).await.err(), Some(401));
        eventually("it is told", async || node.log().contains("WSREJECT")).await;
        let (log, trace) = (node.log(), trace_of(&parent));
        if format == "text" {
            let of = |what: &str| log.lines().find(|line| line.contains(what)).unwrap().to_owned();
            for what in ["WSCONNECT", "WSDISCONNECT", "a frame has come"] {
                let line = of(what);
                assert!(
                    line.contains("specific.") && line.contains("user=\"alice\"") && line.contains(trace),
                    "{line}"
                );
            }
            assert!(of("WSREJECT").contains(&format!("trace_id=\"{trace}\"")), "{}", of("WSREJECT"));
            continue;
        }
        let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let fields = |what: &str| -> Value {
            let found = lines.iter().find(|line| line["fields"]["message"].as_str().unwrap_or_default().contains(what));
            found.unwrap_or_else(|| panic!("{what}: {log}"))["fields"].clone()
        };
        let channel = fields("WSCONNECT")["channel"].clone();
        for what in ["WSCONNECT", "WSDISCONNECT", "a frame has come"] {
            let fields = fields(what);
            assert!(fields["channel"] == channel && fields["user"].as_str().unwrap().contains("alice"), "{fields}");
            assert_eq!(fields["trace_id"], trace, "{fields}");
        }
        assert_eq!(fields("WSREJECT")["trace_id"], trace);
    }
}
