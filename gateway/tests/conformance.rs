//! RFC 6455 on the real upgrade path, by Autobahn's own cases, and requests that are no handshake.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;
#[allow(
    dead_code,
    clippy::unwrap_used,
    unused_imports,
    missing_docs,
    reason = "the example's consumer is tested here, its main is not"
)]
#[path = "../examples/echo.rs"]
mod echo;

use common::TestNode;
use futures_util::FutureExt;
use gateway::{Consumer, Context, Event, Frame, Handlers, Outcome, Refusal, Router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Echoes everything, as the conformance cases want it; and panics when told so.
#[derive(Default)]
struct Mirror;

impl Consumer for Mirror {
    fn handlers(handlers: &mut Handlers<Self>) {
        handlers.own("mirror.panic", |_, _, _| async { panic!("as asked") }.boxed());
    }

    async fn connect(&mut self, ctx: &mut Context) -> Result<(), Refusal> {
        if ctx.scope().and_then(|scope| scope.query("panic")).is_some() {
            panic!("as asked");
        }
        ctx.group_add(&gateway::GroupName::parse("mirrors").unwrap()).await
    }

    async fn receive(&mut self, ctx: &mut Context, frame: Frame) -> Outcome {
        match frame {
            Frame::Text(text) if text == "panic" => panic!("as asked"),
            Frame::Text(text) => ctx.send_text(&text),
            Frame::Binary(bytes) => ctx.send_bytes(&bytes.into()),
        }
        Ok(())
    }
}

async fn mirror() -> TestNode {
    let settings = [("limits.frame_bytes", "0"), ("limits.outbox_bytes", "0"), ("limits.frames_per_second", "0")];
    TestNode::start_with(&settings, Router::new().route("/echo/", Mirror::default)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn autobahn_cases_pass() {
    let node = mirror().await;
    let token = common::token("autobahn");
    let directory = tempfile::tempdir().unwrap();
    let kosoku = testkit::python::python().with_file_name("kosoku");
    assert!(kosoku.is_file(), "{} is missing: run ./test.sh", kosoku.display());
    let out = tokio::process::Command::new(kosoku)
        .args(["-m", "fuzzingclient", "-x", "9.*", "-x", "12.*", "-x", "13.*", "-p", "4", "-o"])
        .arg(directory.path())
        .arg(format!("ws://{}/echo/?token={token}", node.at().public))
        .output()
        .await
        .unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let index = std::fs::read_to_string(directory.path().join("index.json"));
    let index: serde_json::Value =
        serde_json::from_str(&index.unwrap_or_else(|_| panic!("no report: {printed}"))).unwrap();
    let (mut cases, mut bad) = (0, Vec::new());
    for agent in index.as_object().unwrap().values() {
        for (case, result) in agent.as_object().unwrap() {
            cases += 1;
            let good = |field: &str| matches!(result[field].as_str(), Some("OK" | "NON-STRICT" | "INFORMATIONAL"));
            if !good("behavior") || !good("behaviorClose") {
                bad.push(format!("{case}: {result}"));
            }
        }
    }
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(cases >= 240, "{cases} cases ran: {printed}");
}

#[tokio::test]
async fn requests_that_are_no_handshake_are_refused() {
    let node = mirror().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let (key, version) = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "Sec-WebSocket-Version: 13\r\n");
    let cases = [
        (format!("GET /echo/ HTTP/1.1\r\nHost: x\r\n{upgrade}{key}Sec-WebSocket-Version: 8\r\n\r\n"), "426"),
        (format!("GET /echo/ HTTP/1.1\r\nHost: x\r\n{upgrade}{version}\r\n"), "400"),
        (format!("GET /echo/ HTTP/1.1\r\nHost: x\r\n{upgrade}{version}Sec-WebSocket-Key: abc\r\n\r\n"), "400"),
        (format!("GET /echo/ HTTP/1.0\r\nHost: x\r\n{upgrade}{key}{version}\r\n"), "400"),
        (format!("POST /echo/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{upgrade}{key}{version}\r\n"), "405"),
        ("GET /echo/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "426"),
        (format!("GET /echo/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000)), "431"),
        ("\x16\x03\x01\x02\x00 no HTTP\r\n\r\n".to_owned(), "400"),
        (format!("GET /echo/ HTTP/1.1\r\nHost: x\r\n{upgrade}{key}{version}\r\n"), "401"),
    ];
    for (request, status) in cases {
        let mut stream = tokio::net::TcpStream::connect(node.at().public).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![0; 12];
        tokio::time::timeout(common::PATIENCE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&head[9..]), status, "{request:.80}");
    }
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_with_1011_and_leaves_the_groups() {
    let node = mirror().await;
    let door = node.at();
    let bearer = format!("Bearer {}", common::token("alice"));
    assert_eq!(door.try_connect("/echo/?panic=1", &[("authorization", &bearer)]).await.err(), Some(500));
    let mut other = door.connect("/echo/", "bob").await;
    let mut alice = door.connect("/echo/", "alice").await;
    alice.send_text("panic").await;
    assert_eq!(alice.closed().await, 1011);
    other.send_text("{}").await;
    assert_eq!(other.frame().await, serde_json::json!({}));
    // In a handler of a layer event too.
    node.running
        .node()
        .layer
        .group_send(&gateway::GroupName::parse("mirrors").unwrap(), &Event::new("mirror.panic"))
        .await
        .unwrap();
    assert_eq!(other.closed().await, 1011);
    common::eventually("all cleaned up", || async { door.metric("gateway_connections").await == 0.0 }).await;
    assert!(node.running.node().registry.is_empty());
    assert!(door.metric("gateway_handler_errors_total").await >= 3.0);
}

#[tokio::test]
async fn the_examples_consumer_does_what_it_says() {
    let node = TestNode::start_with(&[], Router::new().route("/ws/echo/", echo::Echo::default)).await;
    let (mut alice, mut bob) =
        (node.at().connect("/ws/echo/", "alice").await, node.at().connect("/ws/echo/", "bob").await);
    alice.send_text("1").await;
    assert_eq!(alice.frame().await, 1);
    alice.send_text("all: 2").await;
    assert_eq!((alice.frame().await, bob.frame().await), (2.into(), 2.into()));
}
