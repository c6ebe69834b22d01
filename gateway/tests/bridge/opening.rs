//! Handshakes: what an application is told, what it may answer, and what the node decides by itself.

use tokio_tungstenite::tungstenite::Message;

use super::common::collector::Collector;
use super::common::{eventually, http_client, token};
use super::worker::{self, ACCEPT, CLOSED, DENY, OPEN, TEXT, Value, Worker};
use super::{Guest, Site};

#[tokio::test(flavor = "multi_thread")]
async fn an_application_goes_on_with_the_trace_of_the_handshake() {
    let collector = Collector::start().await;
    let (site, _worker, mut link) = Site::linked(&[("otlp-endpoint", &collector.endpoint())]).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let guest = site.knock("/ws/orders/", &[("traceparent", parent)]);
    let (sid, open) = link.open().await;
    let given = open.get("traceparent").str().to_owned();
    link.send(ACCEPT, sid, &worker::accept(None, &[])).await;
    let guest = guest.await.unwrap().unwrap();
    let connect = collector.span("connect", |span| parent.contains(&span.parent) && !span.parent.is_empty()).await;
    let bridge = collector.span("bridge", |span| span.parent == connect.id).await;
    assert_eq!((given, bridge.get("gateway.bridge")), (bridge.traceparent(), "/ws/orders/".to_owned()));
    drop(guest);
    // It would come before or after the next one's OPEN.
    link.expect(CLOSED).await;
    // What is not kept is passed on as it came.
    let dropped = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203331-00";
    let guest = site.knock("/ws/orders/", &[("traceparent", dropped)]);
    let (sid, open) = link.open().await;
    assert_eq!(open.get("traceparent").str(), dropped);
    link.send(ACCEPT, sid, &worker::accept(None, &[])).await;
    guest.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_application_gets_its_scope_and_accepts_with_subprotocol_and_headers() {
    let (site, _worker, mut link) = Site::linked(&[("bridge.frame_bytes", "2000000")]).await;
    let headers = [
        ("cookie", "sessionid=abc; a=1"),
        ("x-twice", "one"),
        ("x-twice", "two"),
        ("x_smuggled", "no"),
        ("sec-websocket-protocol", "gateway.v1, bearer.x, chat"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-forwarded-for", "10.9.9.9"),
        ("x-forwarded-proto", "https"),
    ];
    let guest = site.knock("/ws/orders/caf%C3%A9/7?a=%20&token=x", &headers);
    let (sid, open) = link.open().await;
    let scope = open.get("scope");
    let of = |name: &str| scope.get(name);
    assert_eq!((of("type").str(), of("path").str()), ("websocket", "/ws/orders/café/7"));
    assert_eq!(of("raw_path").bin(), b"/ws/orders/caf%C3%A9/7");
    assert_eq!((of("query_string").bin(), of("root_path").str()), (&b"a=%20&token=x"[..], ""));
    assert_eq!((of("scheme").str(), of("http_version").str()), ("ws", "1.1"), "nobody trusted says it is wss");
    let text = |text: &str| Value::Str(text.to_owned());
    assert_eq!(of("subprotocols").list(), [text("gateway.v1"), text("bearer.x"), text("chat")]);
    assert_eq!(of("client").list()[0], text("127.0.0.1"));
    assert_eq!(of("server").list(), [text("127.0.0.1"), Value::Int(site.door().public.port().into())]);
    assert_eq!(scope.header("cookie"), ["sessionid=abc; a=1"]);
    assert_eq!(scope.header("x-twice"), ["one", "two"]);
    assert!(scope.header("x_smuggled").is_empty() && scope.header("host").len() == 1);
    assert_eq!(scope.get("gateway_auth"), &Value::Nil);
    assert!(open.get("traceparent").str().starts_with("00-0af7") && open.get("attempt") == &Value::Int(0));
    assert!(of("channel_name").str().starts_with("specific."));
    assert_eq!(site.metric("gateway_bridge_opening{path=\"/ws/orders/\"}").await, 1.0);
    let added = [("set-cookie", "a=1"), ("set-cookie", "b=2"), ("connection", "close"), ("x-own", "yes")];
    link.send(ACCEPT, sid, &worker::accept(Some("chat"), &added)).await;
    // Before the client has the answer.
    link.send(TEXT, sid, b"early").await;
    let mut guest = guest.await.unwrap().unwrap();
    let answer = guest.response.headers();
    assert_eq!(answer["sec-websocket-protocol"], "chat");
    assert_eq!(answer.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!((answer["x-own"].to_str().unwrap(), answer["connection"].to_str().unwrap()), ("yes", "upgrade"));
    assert_eq!(guest.text().await, "early");
    assert_eq!(site.metric("gateway_bridge_sockets{path=\"/ws/orders/\"}").await, 1.0);
    assert_eq!(site.metric("gateway_connections").await, 1.0);

    // Text, bytes and large ones, there and back.
    let large = "é".repeat(200_000);
    for message in [Message::text("hello"), Message::binary(vec![0, 255]), Message::text(""), Message::text(large)] {
        guest.send(message.clone()).await;
        let heard = link.next().await;
        assert_eq!((heard.kind == TEXT, heard.sid), (message.is_text(), sid));
        assert_eq!(heard.body, message.clone().into_data().to_vec());
        link.credit(sid, 1).await;
        link.send(heard.kind, sid, &heard.body).await;
        assert_eq!(guest.next().await, message);
    }
    assert_eq!(site.metric("gateway_bridge_receive_seconds_count").await, 4.0);

    // The client's own close is told with its reason.
    guest.close(4321, "enough").await;
    assert_eq!(link.expect(CLOSED).await.code(), (4321, "enough"));
    link.end(sid, 0, "").await;
    eventually("nobody is left", || async { site.metric("gateway_bridge_sockets{path=\"/ws/orders/\"}").await == 0.0 })
        .await;
    assert_eq!(site.metric("gateway_bridge_closed_total{path=\"/ws/orders/\",code=\"4999\"}").await, 1.0);
    // Frames for it can cross: they are dropped and counted.
    link.send(TEXT, sid, b"late").await;
    eventually("the late frame is counted", || async {
        site.metric("gateway_bridge_dropped_total{reason=\"unknown_sid\"}").await == 1.0
    })
    .await;
}

#[tokio::test]
async fn an_application_refuses_fails_or_says_nothing() {
    let (site, _worker, mut link) = Site::linked(&[("limits.handshake_seconds", "2")]).await;
    for (status, headers, body, wanted) in [
        (403, &[][..], &b""[..], "not allowed"),
        (
            401,
            &[("content-type", "text/plain"), ("x-why", "no"), ("content-length", "99")],
            b"\xffwho?",
            "\u{fffd}who?",
        ),
        (500, &[], b"", "internal error"),
    ] {
        let guest = site.knock("/ws/orders/", &[]);
        let (sid, _) = link.open().await;
        link.send(DENY, sid, &worker::deny(status, headers, body)).await;
        let refusal = guest.await.unwrap().err().unwrap();
        assert_eq!(refusal.status(), status);
        assert_eq!(String::from_utf8_lossy(refusal.body().as_deref().unwrap_or_default()), wanted);
        assert_eq!(refusal.headers().contains_key("x-why"), status == 401);
        assert_eq!(link.expect(CLOSED).await.code(), (1006, ""), "{status}");
        link.end(sid, 0, "").await;
    }
    for outcome in [0, 1] {
        let guest = site.knock("/ws/orders/", &[]);
        let (sid, _) = link.open().await;
        link.end(sid, outcome, "ValueError: no").await;
        assert_eq!(guest.await.unwrap().err().unwrap().status(), 500);
        assert_eq!(link.expect(CLOSED).await.code(), (1006, ""));
    }
    // What no answer can carry is the application's failure.
    for (subprotocol, headers) in [(Some("a\r\nb"), &[][..]), (None, &[("x y", "z")])] {
        let guest = site.knock("/ws/orders/", &[]);
        let (sid, _) = link.open().await;
        link.send(ACCEPT, sid, &worker::accept(subprotocol, headers)).await;
        assert_eq!(guest.await.unwrap().err().unwrap().status(), 500);
        assert_eq!(link.expect(CLOSED).await.code(), (1006, ""));
        link.end(sid, 0, "").await;
    }
    // Who says nothing has its handshake taken back; what it says later is nobody's.
    let guest = site.knock("/ws/orders/", &[]);
    let (sid, _) = link.open().await;
    let refusal = guest.await.unwrap().err().unwrap();
    assert_eq!((refusal.status().as_u16(), refusal.headers()["retry-after"].to_str().unwrap()), (503, "5"));
    assert_eq!(link.expect(CLOSED).await.code(), (1006, ""));
    link.accept(sid).await;
    link.send(TEXT, sid, b"hello?").await;
    link.end(sid, 0, "").await;
    let (_, mut guest) = site.open(&mut link).await;
    guest.send(Message::text("well")).await;
    assert_eq!(link.expect(TEXT).await.text(), "well");
    // One that goes while it is looked at, too.
    drop(link);
    assert_eq!(guest.closed().await.0, 1012);
    for (reason, count) in [("app_denied", 2.0), ("app_failed", 5.0), ("app_late", 1.0)] {
        assert_eq!(site.metric(&format!("gateway_handshakes_rejected_total{{reason=\"{reason}\"}}")).await, count);
    }
    eventually("nobody is left", || async { site.metric("gateway_connections").await == 0.0 }).await;
}

#[tokio::test]
async fn without_a_worker_it_is_503_and_readyz_says_so_and_stays_200() {
    let site = Site::start(&[]).await;
    assert_eq!(site.refused("/ws/orders/", &[]).await, 503);
    let (status, text) = site.door().get("/readyz").await;
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &report["status"], &report["bridge_workers"]),
        (200, &"degraded".into(), &"unavailable".into())
    );
    let worker = Worker::at(&site.socket(1));
    let mut link = worker.link().await;
    let (sid, _guest) = site.open(&mut link).await;
    let (_, text) = site.door().get("/readyz").await;
    assert!(text.contains("\"bridge_workers\":\"ok\""), "{text}");
    // A worker that goes in the middle of a handshake.
    let guest = site.knock("/ws/orders/", &[]);
    assert_eq!(link.open().await.0, sid + 1);
    drop((link, worker));
    assert_eq!(guest.await.unwrap().err().unwrap().status(), 503);
    assert_eq!(site.metric("gateway_handshakes_rejected_total{reason=\"no_worker\"}").await, 1.0);
    assert_eq!(site.metric("gateway_handshakes_rejected_total{reason=\"worker_lost\"}").await, 1.0);
}

#[tokio::test]
async fn plain_requests_stay_the_nodes_and_bridged_paths_are_426() {
    let (site, _worker, mut link) = Site::linked(&[("bridge.path", "/")]).await;
    let door = site.door();
    assert_eq!(door.get("/healthz").await.0, 200);
    assert!(door.get("/client.js").await.1.contains("export"));
    let (status, text) = door.get("/orders/7").await;
    assert!(status == 426 && text.contains("the site's own consumers"), "{text}");
    // WebSockets go to the application, wherever they go.
    for path in ["/ws/chat/lobby/", "/healthz", "/client.js", "/"] {
        let guest = site.knock(path, &[]);
        let (sid, open) = link.open().await;
        assert_eq!(open.get("scope").get("path").str(), path);
        link.send(DENY, sid, &worker::deny(404, &[], b"")).await;
        assert_eq!(guest.await.unwrap().err().unwrap().status(), 404);
        link.expect(CLOSED).await;
    }
    let bad = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-version", "8")];
    let mut request = http_client().get(format!("http://{}/orders/", door.public));
    for (name, value) in bad {
        request = request.header(name, value);
    }
    assert_eq!(request.send().await.unwrap().status(), 426);
}

#[tokio::test]
async fn the_node_decides_on_origin_limits_and_who_is_signed_in() {
    let own = [("bridge.auth", "gateway"), ("limits.connections_per_user", "1"), ("limits.connections", "2")];
    let (site, _worker, mut link) = Site::linked(&own).await;
    assert_eq!(site.refused("/ws/orders/", &[]).await, 401);
    assert_eq!(site.refused("/ws/orders/", &[("sec-websocket-protocol", "gateway.v1, bearer.x")]).await, 401);
    assert_eq!(site.refused("/ws/orders/", &[("origin", "https://elsewhere.example")]).await, 403);
    let bearer = |user: &str| format!("Bearer {}", token(user));
    let (alice, bob, eve) = (bearer("alice"), bearer("bob"), bearer("eve"));
    let first = site.knock("/ws/orders/", &[("authorization", &alice)]);
    let (sid, open) = link.open().await;
    let auth = open.get("scope").get("gateway_auth");
    assert_eq!((auth.get("user").str(), auth.get("id")), ("alice", &Value::Nil));
    link.accept(sid).await;
    let mut first = first.await.unwrap().unwrap();
    let of_alice = sid;
    assert_eq!(site.refused("/ws/orders/", &[("authorization", &alice)]).await, 429);
    let second = site.knock("/ws/orders/", &[("authorization", &bob)]);
    let (sid, _) = link.open().await;
    link.accept(sid).await;
    let mut second = second.await.unwrap().unwrap();
    assert_eq!(site.refused("/ws/orders/", &[("authorization", &eve)]).await, 503, "limits.connections");
    // The node's size limit; its rate limit does not hold here.
    for _ in 0..300 {
        second.send(Message::text("x")).await;
        assert_eq!(link.expect(TEXT).await.sid, sid);
        link.credit(sid, 1).await;
    }
    second.send(Message::text("x".repeat(70_000))).await;
    assert_eq!(second.closed().await.0, 1009);
    assert_eq!(link.expect(CLOSED).await.code().0, 1009);
    // Who is signed in here can be disconnected by name.
    let (status, _) = site.door().api("POST", "/api/users/alice/disconnect", None).await;
    assert_eq!(status, 200);
    let (code, _) = first.closed().await;
    let closed = link.expect(CLOSED).await;
    assert_eq!((closed.sid, closed.code().0), (of_alice, code));
    assert!(code >= 4400, "{code}");
}

#[tokio::test]
async fn who_is_whose_is_the_applications_business_by_default() {
    let (site, _worker, mut link) = Site::linked(&[("limits.connections_per_user", "1")]).await;
    assert_eq!(site.refused("/ws/orders/", &[("origin", "https://elsewhere.example")]).await, 403);
    let guests = [site.open(&mut link).await, site.open(&mut link).await, site.open(&mut link).await];
    assert_eq!(guests.len(), 3, "nobody's sockets are not counted together");
    let (status, _) = site.door().api("GET", "/api/users/alice", None).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn handshakes_at_once_are_bounded_for_each_worker_and_wait_their_turn() {
    let (site, _worker, mut link) = Site::linked(&[("bridge.max_opening", "2")]).await;
    let mut waiting: Vec<_> = (0..6).map(|_| site.knock("/ws/orders/", &[])).collect();
    let mut opened = vec![link.open().await.0, link.open().await.0];
    eventually("all of them are there", || async {
        site.metric("gateway_bridge_opening{path=\"/ws/orders/\"}").await == 6.0
    })
    .await;
    let mut guests: Vec<Guest> = Vec::new();
    while let Some(sid) = opened.pop() {
        // No third one before one of two is answered.
        link.accept(sid).await;
        if guests.len() + opened.len() + 1 < 6 {
            let frame = link.next().await;
            assert_eq!(frame.kind, OPEN);
            opened.insert(0, frame.sid);
        }
        let (done, _, rest) = futures_util::future::select_all(waiting).await;
        guests.push(done.unwrap().unwrap());
        waiting = rest;
        if waiting.is_empty() {
            break;
        }
    }
    assert_eq!(guests.len(), 6);
}

#[tokio::test]
async fn two_workers_share_the_sockets_and_a_full_one_gets_none() {
    let site = Site::start(&[]).await;
    let _one = Worker::at(&site.socket(1)).echo("one");
    let _two = Worker::at(&site.socket(2)).echo("two");
    eventually("both are linked", || async { site.metric("gateway_bridge_links{path=\"/ws/orders/\"}").await == 2.0 })
        .await;
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    let mut guests = Vec::new();
    for _ in 0..40 {
        let mut guest = site.knock("/ws/orders/", &[]).await.unwrap().unwrap();
        guest.send(Message::text("who")).await;
        *counts.entry(guest.text().await).or_default() += 1;
        guests.push(guest);
    }
    // Of two the less loaded: they never differ by more than one.
    assert_eq!(counts, [("one".to_owned(), 20), ("two".to_owned(), 20)].into());
}

#[tokio::test]
async fn a_worker_that_has_no_room_is_passed_over() {
    let site = Site::start(&[]).await;
    let full = Worker::at(&site.socket(1));
    let mut link = full.link().await;
    // It says so only now: other nodes have filled it.
    let guest = site.knock("/ws/orders/", &[]);
    let (sid, _) = link.open().await;
    link.end(sid, 3, "").await;
    assert_eq!(guest.await.unwrap().err().unwrap().status(), 503);
    let _other = Worker::at(&site.socket(2)).echo("two");
    eventually("both are linked", || async { site.metric("gateway_bridge_links{path=\"/ws/orders/\"}").await == 2.0 })
        .await;
    for _ in 0..8 {
        let guest = site.knock("/ws/orders/", &[]);
        let mut guest = loop {
            if guest.is_finished() {
                break guest.await.unwrap().unwrap();
            }
            if let Ok(frame) = tokio::time::timeout(std::time::Duration::from_millis(20), link.next()).await {
                assert_eq!(frame.kind, OPEN);
                link.end(frame.sid, 3, "").await;
            }
        };
        guest.send(Message::text("who")).await;
        assert_eq!(guest.text().await, "two");
        guest.close(1000, "").await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_during_the_handshake_is_noticed_at_once() {
    let (site, _worker, mut link) = Site::linked(&[("bridge.max_opening", "1")]).await;
    let mut leaves = tokio::net::TcpStream::connect(site.door().public).await.unwrap();
    let request = "GET /ws/orders/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut leaves, request.as_bytes()).await.unwrap();
    let (sid, _) = link.open().await;
    // One that waits for the worker's only place goes as well, and never gets there.
    let waits = site.knock("/ws/orders/", &[]);
    eventually("it waits", || async { site.metric("gateway_bridge_opening{path=\"/ws/orders/\"}").await == 2.0 }).await;
    waits.abort();
    drop(leaves);
    let closed = link.expect(CLOSED).await;
    assert_eq!((closed.sid, closed.code().0), (sid, 1006));
    eventually("both are counted", || async {
        site.metric("gateway_handshakes_rejected_total{reason=\"client_left\"}").await == 2.0
    })
    .await;
    // The place is taken until the worker has said something.
    link.end(sid, 0, "").await;
    let (sid, _guest) = site.open(&mut link).await;
    assert_eq!(sid, 2);
}
