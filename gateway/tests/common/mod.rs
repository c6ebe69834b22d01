//! What the tests share: nodes in this process, nodes as processes, and a client.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "helpers of tests"
)]

pub mod balancer;
pub mod collector;
pub mod page;
pub mod site;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use gateway::config::{Config, collect};
use gateway::{JwtAuth, Router, RunningNode, consumers};
use serde_json::{Value, json};
use testkit::disk::Disk;
use testkit::postgres::Postgres;
use testkit::process::{Guarded, private_dir};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

pub const SECRET: &str = "test-secret-test-secret-test-secret";
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Settings every test node has; the test's own go over them.
fn settings(own: &[(&str, &str)]) -> HashMap<String, String> {
    let base = [
        ("listen", "127.0.0.1:0"),
        ("internal-listen", "127.0.0.1:0"),
        ("database-url", "sqlite::memory:"),
        ("jwt-secret", SECRET),
        ("api-key", "key"),
        ("room-policy", "open"),
        ("drain.delay_seconds", "0"),
        ("drain.window_seconds", "2"),
        // A test's client answers pings only while the test reads from it.
        ("limits.pong_seconds", "120"),
    ];
    base.iter().chain(own).map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// A node in this process.
pub struct TestNode {
    pub running: RunningNode,
}

impl TestNode {
    pub async fn start(own: &[(&str, &str)]) -> Self {
        Self::start_with(own, consumers::routes()).await
    }

    pub async fn start_with(own: &[(&str, &str)], router: Router) -> Self {
        Self::try_start(own, router).await.unwrap()
    }

    pub async fn try_start(own: &[(&str, &str)], router: Router) -> Result<Self, gateway::NodeError> {
        let collected = collect(&settings(own), &|_| None, None).unwrap();
        let config = Config::from_collected(&collected).unwrap();
        Ok(Self { running: RunningNode::start(config, router).await? })
    }

    /// Has the node read other settings, as on SIGHUP.
    pub fn reload(&self, own: &[(&str, &str)]) {
        let collected = collect(&settings(own), &|_| None, None).unwrap();
        self.running.reload(&Config::from_collected(&collected).unwrap()).unwrap();
    }

    pub fn at(&self) -> Door {
        Door { public: self.running.public, internal: self.running.internal }
    }

    pub async fn join(&self, user: &str, room: &str) -> Client {
        self.at().join(user, room).await
    }

    /// The value of a metric line that begins like this, 0 if there is none.
    pub async fn metric(&self, line: &str) -> f64 {
        self.at().metric(line).await
    }
}

/// The addresses of a node, wherever it runs.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    pub public: SocketAddr,
    pub internal: SocketAddr,
}

impl Door {
    /// Connects to a room and waits for the upgrade.
    pub async fn join(&self, user: &str, room: &str) -> Client {
        self.connect(&format!("/ws/chat/{room}/"), user).await
    }

    pub async fn connect(&self, path: &str, user: &str) -> Client {
        self.try_connect(path, &[("authorization", &format!("Bearer {}", token(user)))]).await.unwrap()
    }

    /// Connects a client that speaks `gateway.v1`.
    pub async fn v1(&self, path: &str, user: &str) -> Client {
        let bearer = format!("Bearer {}", token(user));
        let headers = [("authorization", bearer.as_str()), ("sec-websocket-protocol", "gateway.v1")];
        self.try_connect(path, &headers).await.unwrap()
    }

    /// Connects with these headers; the error is the status of a refusal.
    pub async fn try_connect(&self, path: &str, headers: &[(&str, &str)]) -> Result<Client, u16> {
        match timeout(PATIENCE, self.open(path, headers)).await.expect("an answer in time") {
            Ok(client) => Ok(client),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// The same where there may be nobody, or nobody who answers.
    pub async fn knock(&self, path: &str, headers: &[(&str, &str)]) -> Option<Client> {
        self.knock_patiently(path, headers, Duration::from_secs(3)).await
    }

    /// The same for who waits longer for the answer.
    pub async fn knock_patiently(&self, path: &str, headers: &[(&str, &str)], patience: Duration) -> Option<Client> {
        timeout(patience, self.open(path, headers)).await.ok()?.ok()
    }

    async fn open(&self, path: &str, headers: &[(&str, &str)]) -> Result<Client, Error> {
        let mut request = format!("ws://{}{path}", self.public).into_client_request().unwrap();
        for (name, value) in headers {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let (socket, response) = tokio_tungstenite::connect_async(request).await?;
        let protocol = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap().to_owned());
        Ok(Client { socket, protocol, pings: 0, patience: PATIENCE, aside: None })
    }

    /// A call to the API: status and JSON.
    pub async fn api(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.api_with(method, path, body, &[("authorization", "Bearer key")]).await
    }

    pub async fn api_with(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> (u16, Value) {
        let mut request = http_client().request(method.parse().unwrap(), format!("http://{}{path}", self.internal));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// GET on the public listener: status and text.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.public, path).await
    }

    /// The same on the internal listener.
    pub async fn internal_get(&self, path: &str) -> (u16, String) {
        get(self.internal, path).await
    }

    pub async fn metric(&self, line: &str) -> f64 {
        let (_, text) = self.internal_get("/metrics").await;
        let found = text.lines().find_map(|text| text.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0.0)
    }
}

async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let answer = http_client().get(format!("http://{at}{path}")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

pub fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().timeout(PATIENCE).build().unwrap()
}

pub fn token(user: &str) -> String {
    JwtAuth::new(&[SECRET.into()], "sub", &[], None).sign(user, None, 600).unwrap()
}

pub fn token_with(user: &str, rooms: &[&str], seconds: u64) -> String {
    let rooms: Vec<String> = rooms.iter().map(|room| room.to_string()).collect();
    JwtAuth::new(&[SECRET.into()], "sub", &[], None).sign(user, Some(&rooms), seconds).unwrap()
}

/// A client; every wait has an end.
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The subprotocol the node chose.
    pub protocol: Option<String>,
    /// How many pings came in between.
    pub pings: usize,
    /// How long to wait for something to hear.
    pub patience: Duration,
    /// What was said last, where it came before its ack and was not heard since.
    aside: Option<Value>,
}

/// What a client hears.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Frame(Value),
    Closed(u16, String),
    Gone,
}

impl Client {
    pub async fn send(&mut self, frame: Value) {
        self.send_text(&frame.to_string()).await;
    }

    pub async fn send_text(&mut self, text: &str) {
        self.socket.send(Message::text(text.to_owned())).await.unwrap();
    }

    pub async fn try_send_text(&mut self, text: &str) -> bool {
        self.socket.send(Message::text(text.to_owned())).await.is_ok()
    }

    pub async fn send_binary(&mut self, bytes: &[u8]) {
        self.socket.send(Message::binary(bytes.to_vec())).await.unwrap();
    }

    pub async fn say(&mut self, room: &str, text: &str) {
        self.send(json!({"cate": "chat", "group_name": room, "message": text})).await;
    }

    /// Says something and waits until it is committed: the ack. What was said is heard after it, in whatever order the
    /// two came; all else that came before the ack is skipped.
    pub async fn say_acked(&mut self, room: &str, text: &str, id: &str) -> Value {
        self.aside = None;
        self.send(json!({"cate": "chat", "group_name": room, "message": text, "client_id": id})).await;
        let mut own = None;
        loop {
            let frame = self.frame().await;
            if frame["client_id"] == id {
                self.aside = own;
                return frame;
            }
            if frame["type"] == "chat" && frame["group_name"] == room && frame["message"] == text {
                own = Some(frame);
            }
        }
    }

    /// Asks for something: the frame of the same type, or an error.
    pub async fn ask(&mut self, frame: Value) -> Value {
        let kind = frame["cate"].clone();
        self.send(frame).await;
        self.until(|frame| frame["type"] == kind || frame["type"] == "error").await
    }

    /// The rooms that this socket hears.
    pub async fn rooms(&mut self) -> Vec<String> {
        let rooms = self.ask(json!({"cate": "rooms"})).await;
        let names = rooms["rooms"].as_array().unwrap().iter();
        names.map(|room| room["group_name"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn hear(&mut self) -> Heard {
        self.hear_within(self.patience).await.expect("something to hear in time")
    }

    /// The next frame or close; pings are answered on the way.
    pub async fn hear_within(&mut self, patience: Duration) -> Option<Heard> {
        if let Some(frame) = self.aside.take() {
            return Some(Heard::Frame(frame));
        }
        timeout(patience, async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => break Heard::Frame(serde_json::from_str(&text).unwrap()),
                    Some(Ok(Message::Close(Some(frame)))) => {
                        break Heard::Closed(frame.code.into(), frame.reason.to_string());
                    }
                    Some(Ok(Message::Close(None))) => break Heard::Closed(1005, String::new()),
                    Some(Ok(Message::Ping(_))) => self.pings += 1,
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break Heard::Gone,
                }
            }
        })
        .await
        .ok()
    }

    /// The next text frame as it came.
    pub async fn text(&mut self) -> String {
        let next = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => break text.to_string(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("a text was expected, not {other:?}"),
                }
            }
        };
        timeout(self.patience, next).await.expect("a text in time")
    }

    pub async fn frame(&mut self) -> Value {
        match self.hear().await {
            Heard::Frame(frame) => frame,
            other => panic!("a frame was expected, not {other:?}"),
        }
    }

    /// The next frame for which `wanted` holds; others are skipped.
    pub async fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let frame = self.frame().await;
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The text of the next chat frame.
    pub async fn hears(&mut self) -> String {
        self.until(|frame| frame["type"] == "chat").await["message"].as_str().unwrap().to_owned()
    }

    /// The code the connection ends with.
    pub async fn closed(&mut self) -> u16 {
        loop {
            match self.hear().await {
                Heard::Closed(code, _) => return code,
                Heard::Gone => return 1006,
                Heard::Frame(_) => {}
            }
        }
    }

    /// Says something of its own and hears nothing else before it: nothing was there to hear.
    pub async fn hears_nothing_before_own(&mut self, room: &str) {
        let mark = uuid::Uuid::new_v4().to_string();
        self.say(room, &mark).await;
        let frame = self.frame().await;
        assert_eq!(frame["message"], mark, "{frame}");
    }

    pub async fn close(mut self) {
        let _ = self.socket.close(None).await;
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// The bare connection, for bytes that no client would send.
    pub fn into_tcp(self) -> TcpStream {
        match self.socket.into_inner() {
            MaybeTlsStream::Plain(stream) => stream,
            _ => panic!("no TLS here"),
        }
    }
}

/// A node as a process of its own.
pub struct NodeProcess {
    pub process: Guarded,
    pub door: Door,
}

impl NodeProcess {
    /// Starts a node with these settings (as environment) and waits until it is ready.
    pub fn start(own: &[(&str, &str)]) -> Self {
        Self::start_by(Vec::new(), own)
    }

    /// The same with a SQLite file on a disk of so many MiB.
    pub fn start_on_small_disk(own: &[(&str, &str)], megabytes: u32) -> (Self, Disk) {
        let dir = private_dir("gateway");
        let files = dir.join("disk");
        std::fs::create_dir(&files).unwrap();
        let database = format!("sqlite://{}?mode=rwc", files.join("gateway.db").display());
        let own: Vec<_> = own.iter().copied().chain([("database-url", database.as_str())]).collect();
        let disk = Disk::mount(&files, megabytes);
        (Self::spawn_by(disk.command(), dir, &own).ready(), disk)
    }

    /// Starts a node through the command in front, and waits until it is ready.
    pub fn start_by(command: Vec<String>, own: &[(&str, &str)]) -> Self {
        Self::spawn_by(command, private_dir("gateway"), own).ready()
    }

    fn ready(self) -> Self {
        let internal = self.door.internal;
        self.process.wait_ready(Duration::from_secs(40), || ready(internal));
        self
    }

    /// Starts a node without waiting.
    pub fn spawn(own: &[(&str, &str)]) -> Self {
        Self::spawn_by(Vec::new(), private_dir("gateway"), own)
    }

    /// The same through the command in front.
    pub fn spawn_by(mut command: Vec<String>, dir: PathBuf, own: &[(&str, &str)]) -> Self {
        let (public, internal) = (testkit::net::free_port(), testkit::net::free_port());
        let door = Door {
            public: SocketAddr::from(([127, 0, 0, 1], public)),
            internal: SocketAddr::from(([127, 0, 0, 1], internal)),
        };
        let mut all = settings(own);
        if !own.iter().any(|(key, _)| *key == "listen") {
            all.insert("listen".into(), door.public.to_string());
            all.insert("internal-listen".into(), door.internal.to_string());
        }
        let env: Vec<(String, String)> = all
            .into_iter()
            .map(|(key, value)| (format!("GATEWAY_{}", key.replace('.', "__").replace('-', "_").to_uppercase()), value))
            .collect();
        let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        command.extend([env!("CARGO_BIN_EXE_gateway").to_owned(), "serve".to_owned()]);
        let process = Guarded::spawn_with(dir, "KILL", &env, command.remove(0), command);
        Self { process, door }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.process.dir().join("log")).unwrap_or_default()
    }
}

/// A transaction that others have to wait for.
pub struct Lock {
    postgres: &'static Postgres,
    database: String,
    holder: JoinSet<String>,
}

impl Lock {
    /// Takes what the statement takes; `held` is a query that says `t` when that is so.
    pub async fn take(postgres: &'static Postgres, database: &str, statement: &str, held: &str) -> Self {
        postgres.sql(database, "CREATE TABLE let_go (now boolean)");
        let mut holder = JoinSet::new();
        let wait = "DO $$ BEGIN WHILE NOT EXISTS (SELECT 1 FROM let_go) AND clock_timestamp() < now() + interval '2 minutes' \
             LOOP PERFORM pg_sleep(0.02); END LOOP; END $$";
        let (of, locked) = (database.to_owned(), format!("BEGIN; {statement}; {wait}; COMMIT"));
        holder.spawn_blocking(move || postgres.sql(&of, &locked));
        eventually("the lock is held", || async { postgres.sql(database, held).trim() == "t" }).await;
        Self { postgres, database: database.to_owned(), holder }
    }

    pub async fn let_go(mut self) {
        self.postgres.sql(&self.database, "INSERT INTO let_go VALUES (true)");
        self.holder.join_next().await.unwrap().unwrap();
    }
}

/// Runs a script that drives a real browser; it says what is wrong.
pub async fn browser(script: &str, env: &[(&str, &str)]) {
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/js");
    assert!(PathBuf::from(client).join("node_modules/playwright-core").is_dir(), "run ./test.sh --install-only");
    let mut node = tokio::process::Command::new("node");
    let run = node.arg(format!("{client}/test/{script}")).envs(env.iter().copied()).output();
    let out = run.await.expect("node is missing: run ./test.sh");
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{printed}");
}

/// Whether who listens there says that it is ready.
pub fn ready(internal: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(internal) else { return false };
    let _ = stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.starts_with("HTTP/1.1 200")
}

/// Waits until something holds. The node's own times, such as the 15 to 20 seconds after which a node of the core layer
/// believes that another is dead, are well within the limit.
pub async fn eventually<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    eventually_within(Duration::from_secs(60), what, check).await;
}

/// The same with a limit of its own.
pub async fn eventually_within<F: Future<Output = bool>>(limit: Duration, what: &str, check: impl Fn() -> F) {
    let deadline = tokio::time::Instant::now() + limit;
    while !check().await {
        assert!(tokio::time::Instant::now() < deadline, "in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The blocks of one language in a section of `docs/signing-in.md`, as they are printed.
pub fn printed(section: &str, language: &str) -> Vec<String> {
    let (_, rest) =
        include_str!("../../../docs/signing-in.md").split_once(&format!("\n## {section}\n")).expect("such a section");
    let text = rest.split("\n## ").next().unwrap_or_default();
    text.split("\n```")
        .filter_map(|block| block.strip_prefix(&format!("{language}\n")))
        .map(|block| format!("{block}\n"))
        .collect()
}
