//! What comes to the public listener before anybody has signed in, and what a signed-in client may send.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Door, Heard, NodeProcess, PATIENCE, TestNode, eventually, token, token_with};
use gateway::{Consumer, Context, Frame, Outcome, Refusal, Router};
use serde_json::json;
use testkit::postgres::Postgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A connection to the public listener from this address.
async fn from(address: &str, door: Door) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    socket.connect(door.public).await.unwrap()
}

/// Everything that comes until the connection ends.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end in time");
    bytes
}

/// Sends bytes to the public listener and returns all that comes back.
async fn say(door: Door, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(door.public).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    String::from_utf8_lossy(&rest(&mut stream).await).into_owned()
}

/// The status line of what is answered to a handshake with these lines in front of its own.
async fn status_of(door: Door, lines: &str) -> String {
    let request = format!("{lines}Authorization: Bearer {}\r\n{HANDSHAKE}\r\n", token("alice"));
    let mut stream = TcpStream::connect(door.public).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut status = vec![0; 12];
    timeout(PATIENCE, stream.read_exact(&mut status)).await.unwrap().unwrap();
    String::from_utf8_lossy(&status[9..]).into_owned()
}

/// P11: a node with 512 files, and more connections than that of people who finish nothing or read nothing.
#[tokio::test(flavor = "multi_thread")]
async fn p11_who_finishes_no_request_or_reads_no_answer_keeps_nobody_out() {
    const STRANGERS: usize = 200;
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let command = ["sh", "-c", "ulimit -n 512 && exec \"$@\"", "sh"].map(str::to_owned).to_vec();
    let node = NodeProcess::start_by(command, &[("limits.handshake_seconds", "4")]);
    let many = "GET /client.js HTTP/1.1\r\nHost: x\r\n\r\n".repeat(500);
    let mut strangers = Vec::new();
    for number in 0..STRANGERS {
        let address = format!("127.0.0.{}", 2 + number % 3);
        for bytes in ["", "GET /ws/chat/lobby/ HTTP/1.1\r\nHost: x\r\n", &many] {
            let mut stream = from(&address, node.door).await;
            // Who is closed at once may not take all of it.
            let _ = timeout(Duration::from_millis(50), stream.write_all(bytes.as_bytes())).await;
            strangers.push(stream);
        }
    }
    let begun = Instant::now();
    let mut alice = node.door.join("alice", "lobby").await;
    let (status, _) = node.door.get("/readyz").await;
    assert!(status == 200 && begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    alice.say("lobby", "hello").await;
    assert_eq!(alice.hears().await, "hello");
    // And those who are still there are not for long.
    for stream in &mut strangers {
        rest(stream).await;
    }
    let rejected = async |reason: &str| {
        node.door.metric(&format!("gateway_handshakes_rejected_total{{reason=\"{reason}\"}}")).await
    };
    assert!(rejected("displaced").await > 0.0 && rejected("too_slow").await > 0.0);
    eventually("the log says so", || async { node.log().contains("all places are taken") }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_unfinished_requests_do_not_delay_others() {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let node = TestNode::start(&[]).await;
    let mut unfinished = Vec::new();
    for _ in 0..600 {
        let mut stream = TcpStream::connect(node.at().public).await.unwrap();
        stream.write_all(b"GET /ws/chat/lobby/ HTTP/1.1\r\nHost: x\r\nX-Half: ").await.unwrap();
        unfinished.push(stream);
    }
    // One by one: each waited for half a second.
    let begun = Instant::now();
    for number in 0..20 {
        node.join(&format!("user-{number}"), "lobby").await.close().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_has_one_request_and_what_comes_with_it_is_the_sockets() {
    let node = TestNode::start(&[]).await;
    let twice = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
    let answer = say(node.at(), twice.as_bytes()).await.to_lowercase();
    assert_eq!(
        (answer.matches("http/1.1 200").count(), answer.matches("connection: close").count()),
        (1, 1),
        "{answer}"
    );
    // A frame right behind the handshake, and a large one that is cut.
    let mut request =
        format!("GET /ws/chat/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{HANDSHAKE}\r\n", token("alice"))
            .into_bytes();
    let text = format!("{{\"cate\":\"rooms\",\"filler\":\"{}\"}}", "\n".repeat(15_000));
    request.extend([0x81, 0xfe]);
    request.extend((text.len() as u16).to_be_bytes());
    request.extend([0; 4]);
    request.extend(text.replace('\n', " ").as_bytes());
    request.extend([0x88, 0x80, 0, 0, 0, 0]);
    let answer = say(node.at(), &request).await;
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("\"type\":\"rooms\""), "{answer}");
}

/// Takes its time to connect.
#[derive(Default)]
struct Slow;

impl Consumer for Slow {
    async fn connect(&mut self, _ctx: &mut Context) -> Result<(), Refusal> {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_not_answered_in_time_is_answered_503() {
    let settings = [("limits.handshake_seconds", "1")];
    let node = TestNode::start_with(&settings, Router::new().route("/slow/", Slow::default)).await;
    let bearer = format!("Bearer {}", token("alice"));
    let refused = node.at().try_connect("/slow/", &[("authorization", &bearer)]).await.err();
    assert_eq!(refused, Some(503));
    assert_eq!(node.running.node().registry.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_connections_of_an_address_count_before_they_are_sockets() {
    let node = TestNode::start(&[("limits.connections_per_address", "3")]).await;
    let bearer = format!("Bearer {}", token("alice"));
    let join = async || node.at().try_connect("/ws/chat/", &[("authorization", &bearer)]).await;
    let held = join().await.unwrap();
    let silent =
        [TcpStream::connect(node.at().public).await.unwrap(), TcpStream::connect(node.at().public).await.unwrap()];
    eventually("they count", || async { join().await.err() == Some(429) }).await;
    // Far over the limit nobody is told, and nobody holds more than that.
    let mut more = Vec::new();
    for _ in 0..30 {
        more.push(TcpStream::connect(node.at().public).await.unwrap());
    }
    let mut ended = 0;
    for stream in &mut more {
        ended += usize::from(timeout(Duration::from_millis(200), stream.read_u8()).await.is_ok());
    }
    assert!(ended >= 30 - 10, "{ended}");
    drop((silent, more, held));
    eventually("there is room again", || async { join().await.is_ok() }).await;
    // A proxy's connections are as many clients'.
    let node = TestNode::start(&[("limits.connections_per_address", "1"), ("trusted-proxies", "127.0.0.1")]).await;
    let mut of_proxy = Vec::new();
    for _ in 0..20 {
        of_proxy.push(TcpStream::connect(node.at().public).await.unwrap());
    }
    let headers = [("authorization", bearer.as_str()), ("x-forwarded-for", "6.6.6.6")];
    assert!(node.at().try_connect("/ws/chat/", &headers).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_over_the_rate_are_told_to_come_back() {
    let node = TestNode::start(&[("limits.handshakes_per_second", "2")]).await;
    let request = format!("GET /ws/chat/ HTTP/1.1\r\nHost: x\r\n{HANDSHAKE}\r\n");
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(say(node.at(), request.as_bytes()).await);
    }
    let refused = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 503")).collect::<Vec<_>>();
    assert!(!refused.is_empty() && refused.iter().all(|answer| answer.to_lowercase().contains("retry-after: ")));
    assert!(answers.iter().any(|answer| answer.starts_with("HTTP/1.1 401")), "they have had their turn");
    let counted = node.metric("gateway_handshakes_rejected_total{reason=\"handshakes_per_second\"}").await;
    assert_eq!(counted as usize, refused.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_has_one_host_and_its_lines_end_in_cr_lf() {
    let node = TestNode::start(&[]).await;
    let door = node.at();
    let path = "GET /ws/chat/ HTTP/1.1";
    assert_eq!(status_of(door, &format!("{path}\r\nHost: x\r\n")).await, "101");
    assert_eq!(status_of(door, &format!("{path}\r\n")).await, "400");
    assert_eq!(status_of(door, &format!("{path}\r\nHost: x\r\nHost: x\r\n")).await, "400");
    assert_eq!(status_of(door, &format!("{path}\nHost: x\r\n")).await, "400");
    assert_eq!(status_of(door, &format!("{path}\r\nHost: x\n")).await, "400");
    assert_eq!(status_of(door, &format!("\n{path}\r\nHost: x\r\n")).await, "400");
    // What old balancers ask is no handshake.
    assert!(say(door, b"GET /healthz HTTP/1.0\r\n\r\n").await.contains(" 200 "));
}

/// A page whose name was made to point to 127.0.0.1 is of the same origin as the node; its `Host` tells.
#[tokio::test(flavor = "multi_thread")]
async fn dev_answers_to_nobody_but_this_machine() {
    let node = TestNode::start(&[("dev", "true"), ("api-key", "")]).await;
    for at in [node.at().public, node.at().internal] {
        for path in ["/", "/client.js", "/readyz", "/api/nodes", "/metrics", "/ws/chat/", "/nothing"] {
            let status = async |host: &str| {
                let answer = common::http_client().get(format!("http://{at}{path}")).header("host", host).send().await;
                answer.unwrap().status().as_u16()
            };
            for host in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", ""] {
                assert_eq!(status(host).await, 403, "{host} {path}");
            }
            for host in ["localhost", "localhost:8000", "app.localhost:1", "127.0.0.1:8000", "[::1]:8000"] {
                assert_ne!(status(host).await, 403, "{host} {path}");
            }
        }
    }
    let login = async |host: &str| {
        let request = common::http_client().post(format!("http://{}/dev/login", node.at().public)).header("host", host);
        request.body(r#"{"username":"mallory"}"#).send().await.unwrap().status().as_u16()
    };
    assert_eq!((login("evil.example").await, login("localhost").await), (403, 200));
    // Without --dev a node is asked by the names that its balancer has.
    let node = TestNode::start(&[]).await;
    assert_eq!(status_of(node.at(), "GET /ws/chat/ HTTP/1.1\r\nHost: chat.example.com\r\n").await, "101");
}

/// A7: what is logged can be seen, and a path is logged as it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a7_names_and_paths_do_not_hide_or_turn_round_the_log() {
    let hidden = ['\u{202e}', '\u{2028}', '\u{feff}', '\u{e0041}', '\u{200b}'];
    for format in ["text", "json"] {
        let node = NodeProcess::start(&[("log-format", format)]);
        let name: String = ["a"].into_iter().map(str::to_owned).chain(hidden.map(String::from)).collect();
        let encoded = "%E2%80%AE%E2%80%A8%EF%BB%BF%F3%A0%81%81%e2%80%8b";
        node.door.connect(&format!("/ws/chat/a{encoded}/?token={}", "x"), &name).await.close().await;
        let long = "%E2%80%AE".repeat(200);
        let _ = node.door.try_connect(&format!("/ws/chat/{long}/"), &[]).await;
        // Bytes that no client should send.
        say(
            node.door,
            &[b"GET /\xe2\x80\xae\xf3\xa0\x81\x81 HTTP/1.1\r\nHost: x\r\n", HANDSHAKE.as_bytes(), b"\r\n"].concat(),
        )
        .await;
        let path = format!("/ws/chat/a{encoded}/");
        let (connect, disconnect) = (format!("WSCONNECT {path}"), format!("WSDISCONNECT {path}"));
        let has = |text: &str| node.log().contains(text);
        eventually("all is logged", || async { has(&connect) && has(&disconnect) && has("WSREJECT") }).await;
        let log = node.log();
        assert!(log.is_ascii(), "{log}");
        assert!(log.lines().all(|line| line.len() < 700), "{log}");
        assert!(log.contains(&format!("WSREJECT /ws/chat/{}", &long[..200])), "{log}");
        assert!(log.contains("u{202e}") || log.contains("u202e"), "the name, as numbers: {log}");
        if format == "json" {
            let lines = log.lines().filter(|line| line.starts_with('{'));
            lines.for_each(|line| drop(serde_json::from_str::<serde_json::Value>(line).unwrap()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_in_by_a_name_that_cannot_be_is_refused() {
    let node = NodeProcess::start(&[]);
    for name in ["..", "."] {
        let bearer = format!("Bearer {}", token(name));
        let headers = [("authorization", bearer.as_str())];
        assert_eq!(node.door.try_connect("/ws/chat/", &headers).await.err(), Some(401), "{name}");
        let v1 = [headers[0], ("sec-websocket-protocol", "gateway.v1")];
        assert_eq!(node.door.try_connect("/ws/chat/", &v1).await.unwrap().closed().await, 4401);
    }
    for room in ["..", "."] {
        let bearer = format!("Bearer {}", token_with("alice", &[room], 60));
        assert_eq!(node.door.try_connect("/ws/chat/", &[("authorization", &bearer)]).await.err(), Some(401), "{room}");
    }
    for path in ["/ws/chat/%2E%2E/", "/ws/chat/../", "/ws/chat/.%2e", "/ws/chat/./", "/ws/chat//"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n", token("alice"));
        let answer = say(node.door, format!("{request}{HANDSHAKE}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    let mut alice = node.door.connect("/ws/chat/", "alice").await;
    assert_eq!(alice.say_acked("..", "hello", "1").await["code"], "invalid");
    alice.send(json!({"cate": "notification", "user_name": ".", "message": "x", "client_id": "2"})).await;
    assert_eq!(alice.until(|frame| frame["client_id"] == "2").await["code"], "invalid");
    eventually("it is logged", || async { node.log().contains("holds a name that cannot be a user's") }).await;
}

/// The rooms of one database, by two nodes that share it where they can.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_over_the_limit_is_refused_before_anything_is_stored() {
    for database in ["sqlite::memory:".to_owned(), Postgres::shared().fresh_database()] {
        let settings = [("limits.rooms_per_user", "3"), ("database-url", database.as_str())];
        let node = TestNode::start(&settings).await;
        let door = node.at();
        for room in ["c", "a", "b"] {
            node.join("alice", room).await.close().await;
        }
        let bearer = format!("Bearer {}", token("alice"));
        for protocol in [&[][..], &[("sec-websocket-protocol", "gateway.v1")]] {
            let headers = [&[("authorization", bearer.as_str())], protocol].concat();
            assert_eq!(door.try_connect("/ws/chat/d/", &headers).await.err(), Some(429));
        }
        assert_eq!(door.api("GET", "/api/rooms/d", None).await.0, 404, "it was not even made");
        // A token's rooms count too, and those that are not heard are not made.
        let bearer = format!("Bearer {}", token_with("bob", &["t1", "t2"], 60));
        let headers = [("authorization", bearer.as_str())];
        door.try_connect("/ws/chat/a/", &headers).await.unwrap().close().await;
        assert_eq!(door.try_connect("/ws/chat/b/", &headers).await.err(), Some(429));
        let bearer = format!("Bearer {}", token_with("bob", &["t2", "t3", "t4"], 60));
        let mut bob = door.try_connect("/ws/chat/", &[("authorization", &bearer)]).await.unwrap();
        assert_eq!(bob.rooms().await, ["a", "t2", "t3"]);
        assert_eq!(door.api("GET", "/api/rooms/t4", None).await.0, 404);
        // Nobody is locked out.
        let mut alice = node.join("alice", "c").await;
        assert_eq!(alice.rooms().await, ["a", "b", "c"]);
        // Who was given more hears the oldest, wherever they connect, and the next when there is room.
        for room in ["0", "d"] {
            assert_eq!(door.api("PUT", &format!("/api/rooms/{room}"), None).await.0, 200);
            assert_eq!(door.api("PUT", &format!("/api/rooms/{room}/members/alice"), None).await.0, 200);
        }
        let mut again = [door.connect("/ws/chat/", "alice").await, door.connect("/ws/chat/d/", "alice").await];
        for socket in again.iter_mut().chain([&mut alice]) {
            assert_eq!(socket.rooms().await, ["a", "b", "c"]);
        }
        assert!(node.metric("gateway_rooms_unheard_total").await >= 2.0);
        if database.starts_with("postgres") {
            let other = TestNode::start(&settings).await;
            assert_eq!(other.at().connect("/ws/chat/", "alice").await.rooms().await, ["a", "b", "c"]);
        }
        assert_eq!(door.api("DELETE", "/api/rooms/a/members/alice", None).await.0, 200);
        for socket in again.iter_mut().chain([&mut alice]) {
            let since = Instant::now();
            while socket.rooms().await != ["0", "b", "c"] {
                assert!(since.elapsed() < PATIENCE);
            }
        }
    }
}

fn ping(payload: u8) -> [u8; 7] {
    [0x89, 0x81, 0, 0, 0, 0, payload]
}

/// Sends bytes over and over until so many have gone or the node closes; then what came back until the end.
async fn flood(node: &TestNode, path: &str, bytes: &[u8], times: usize) -> Vec<u8> {
    let stream = node.at().connect(path, "mallory").await.into_tcp();
    let (mut reading, mut writing) = stream.into_split();
    let begun = Instant::now();
    let (_, answer) = tokio::join!(
        async {
            // All of it in few writes; the node may have had enough before.
            let _ = writing.write_all(&bytes.repeat(times)).await;
        },
        async {
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, reading.read_to_end(&mut answer)).await.expect("closed in time");
            answer
        }
    );
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    answer
}

/// The code of the close frame that ends these bytes, and the payloads of the pongs before it.
fn read_back(mut bytes: &[u8]) -> (u16, Vec<u8>) {
    let (mut code, mut pongs) = (1006, Vec::new());
    while let &[first, len, ref more @ ..] = bytes {
        let payload = &more[..len.into()];
        match first {
            0x8a => pongs.extend(payload),
            0x88 => code = payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)),
            _ => {}
        }
        bytes = &more[len.into()..];
    }
    (code, pongs)
}

/// Says nothing to anything.
#[derive(Default)]
struct Own;

impl Consumer for Own {
    async fn receive(&mut self, _ctx: &mut Context, _frame: Frame) -> Outcome {
        Ok(())
    }
}

/// P5: control frames and pieces of messages are frames like others, on a site's own consumers too.
#[tokio::test(flavor = "multi_thread")]
async fn p5_floods_of_any_frame_end_with_1008() {
    let routes = gateway::consumers::routes().route("/own/", Own::default);
    let node = TestNode::start_with(&[], routes).await;
    let empty_piece = [0x00, 0x80, 0, 0, 0, 0];
    let begun = [0x01, 0x80, 0, 0, 0, 0];
    for path in ["/ws/chat/lobby/", "/ws/notifications/", "/own/"] {
        let (code, pongs) = read_back(&flood(&node, path, &ping(b'x'), 10_000).await);
        assert!(code == 1008 && pongs.len() < 100, "pings on {path}: {code}, {} pongs", pongs.len());
        let (code, _) = read_back(&flood(&node, path, &[0x8a, 0x80, 0, 0, 0, 0], 10_000).await);
        assert_eq!(code, 1008, "pongs on {path}");
        let pieces = [&begun[..], &empty_piece.repeat(2_000)].concat();
        assert_eq!(read_back(&flood(&node, path, &pieces, 1).await).0, 1008, "pieces on {path}");
    }
    assert!(node.metric("gateway_frames_bad_total{reason=\"rate_limited\"}").await > 500.0);
    // Without a limit the flood goes on, but is not amplified.
    let node = TestNode::start(&[("limits.frames_per_second", "0")]).await;
    let mut stream = node.join("alice", "lobby").await.into_tcp();
    let pings: Vec<u8> = (0..200).flat_map(ping).collect();
    stream.write_all(&[&pings[..], &[0x88, 0x80, 0, 0, 0, 0]].concat()).await.unwrap();
    let (_, pongs) = read_back(&rest(&mut stream).await);
    assert!(pongs.len() < 50 && pongs.last() == Some(&199), "few answers for those that come together: {pongs:?}");
}

/// P5: what follows a close frame is nothing, and who never closes is left.
#[tokio::test(flavor = "multi_thread")]
async fn p5_frames_after_close_are_nothing_and_data_without_close_ends() {
    let node = TestNode::start(&[]).await;
    let mut bob = node.join("bob", "lobby").await;
    let text = br#"{"cate":"chat","group_name":"lobby","message":"late"}"#;
    let late = [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0][..], text].concat();
    let mut stream = node.join("alice", "lobby").await.into_tcp();
    stream.write_all(&[&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8][..], &late, &ping(1)].concat()).await.unwrap();
    let (code, pongs) = read_back(&rest(&mut stream).await);
    assert_eq!((code, pongs.len()), (1000, 0));
    bob.hears_nothing_before_own("lobby").await;
    // Told to go, and sends on and on.
    let (mut reading, mut writing) = node.at().connect("/ws/chat/", "alice").await.into_tcp().into_split();
    let (status, _) = node
        .at()
        .api("POST", "/api/events", Some(json!({"type": "gateway.disconnect", "to": "user:alice", "data": {}})))
        .await;
    assert_eq!(status, 200);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE && writing.write_all(&late).await.is_ok() {
        let _ = timeout(Duration::from_millis(5), reading.read_u8()).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_the_nodes_own_pings_are_free() {
    let settings = [
        ("limits.frames_per_second", "1"),
        ("limits.frames_burst", "1"),
        ("limits.ping_seconds", "2"),
        ("limits.pong_seconds", "20"),
    ];
    let node = TestNode::start(&settings).await;
    let mut alice = node.join("alice", "lobby").await;
    for round in 0..3 {
        while alice.pings == round {
            assert_eq!(alice.hear_within(Duration::from_millis(100)).await, None);
        }
        // The pong goes with it.
        alice.send(json!({"cate": "rooms"})).await;
        assert!(matches!(alice.hear().await, Heard::Frame(frame) if frame["type"] == "rooms"));
    }
}
