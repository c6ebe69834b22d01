//! A server that speaks enough of Redis (RESP3) to publish and subscribe, and answers any command with any error.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinSet,
};

/// How it is heard (`message`, or `smessage` in a cluster), its topic and what it says.
type Message = (&'static str, Vec<u8>, Vec<u8>);

/// What a client hears.
#[derive(Default)]
struct Subscriptions {
    topics: HashSet<Vec<u8>>,
    sharded: HashSet<Vec<u8>>,
    patterns: HashSet<Vec<u8>>,
}

#[derive(Clone)]
struct Shared {
    port: u16,
    errors: Arc<Mutex<HashMap<&'static str, &'static str>>>,
    /// Whoever gives this command is hung up on.
    hang_up_on: Arc<Mutex<Option<&'static str>>>,
    /// How often that was.
    hung_up: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    published: broadcast::Sender<Message>,
}

/// Ends with its value.
pub(crate) struct FakeRedis {
    shared: Shared,
    _tasks: JoinSet<()>,
}

impl FakeRedis {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Shared {
            port,
            errors: Arc::default(),
            hang_up_on: Arc::default(),
            hung_up: Arc::default(),
            connections: Arc::default(),
            published: broadcast::channel(1_000).0,
        };
        let mut tasks = JoinSet::new();
        let own = shared.clone();
        tasks.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                clients.spawn(serve(client, own.clone()));
            }
        });
        Self { shared, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.shared.port)
    }

    /// Its address as a whole cluster.
    pub(crate) fn cluster_url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{}", self.shared.port)
    }

    /// From now on the connection that gives this command ends without an answer.
    pub(crate) fn hang_up_on(&self, command: &'static str) {
        *self.shared.hang_up_on.lock().unwrap() = Some(command);
    }

    /// How often that has been done.
    pub(crate) fn hung_up(&self) -> usize {
        self.shared.hung_up.load(Ordering::SeqCst)
    }

    /// Every command of this name is answered with the error from now on, or as usual.
    pub(crate) fn answer(&self, command: &'static str, error: Option<&'static str>) {
        let mut errors = self.shared.errors.lock().unwrap();
        match error {
            Some(error) => errors.insert(command, error),
            None => errors.remove(command),
        };
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn serve(client: TcpStream, shared: Shared) {
    let (reader, mut writer) = client.into_split();
    let (commands, mut received) = tokio::sync::mpsc::channel(1_000);
    let mut reading = JoinSet::new();
    reading.spawn(async move {
        let mut reader = BufReader::new(reader);
        while let Some(words) = command(&mut reader).await {
            if commands.send(words).await.is_err() {
                break;
            }
        }
    });
    let mut published = shared.published.subscribe();
    let mut heard = Subscriptions::default();
    loop {
        let mut out = Vec::new();
        tokio::select! {
            words = received.recv() => {
                let Some(words) = words else { return };
                if shared.hang_up_on.lock().unwrap().is_some_and(|it| it.as_bytes() == words[0]) {
                    shared.hung_up.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                reply(&mut out, &words, &shared, &mut heard);
            }
            Ok((how, topic, payload)) = published.recv() => {
                let topics = if how == "message" { &heard.topics } else { &heard.sharded };
                if topics.contains(&topic) {
                    push(&mut out, &[how.as_bytes(), &topic, &payload]);
                }
                let matches = |pattern: &&Vec<u8>| how == "message" && topic.starts_with(&pattern[..pattern.len() - 1]);
                for pattern in heard.patterns.iter().filter(matches) {
                    push(&mut out, &[b"pmessage", pattern, &topic, &payload]);
                }
            }
        }
        if writer.write_all(&out).await.is_err() {
            return;
        }
    }
}

fn reply(out: &mut Vec<u8>, words: &[Vec<u8>], shared: &Shared, heard: &mut Subscriptions) {
    let name = String::from_utf8_lossy(&words[0]).into_owned();
    if let Some(error) = shared.errors.lock().unwrap().get(&*name) {
        out.extend_from_slice(format!("-{error}\r\n").as_bytes());
        return;
    }
    match &*name {
        "PING" => out.extend_from_slice(b"+PONG\r\n"),
        "PUBLISH" | "SPUBLISH" => {
            let how = if name == "PUBLISH" { "message" } else { "smessage" };
            let count = shared.published.send((how, words[1].clone(), words[2].clone())).unwrap_or(0);
            out.extend_from_slice(format!(":{count}\r\n").as_bytes());
        }
        "CLUSTER" if words[1] == b"SLOTS" => {
            let slots = format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:{}\r\n", shared.port);
            out.extend_from_slice(slots.as_bytes());
        }
        "CLUSTER" => out.extend_from_slice(b"$41\r\ncluster_state:ok\r\ncluster_current_epoch:1\r\n"),
        "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "SUNSUBSCRIBE" => {
            let set = match name.as_bytes()[0] {
                b'P' => &mut heard.patterns,
                _ if name.starts_with("SS") || name.starts_with("SUN") => &mut heard.sharded,
                _ => &mut heard.topics,
            };
            for topic in &words[1..] {
                match name.contains("UNS") {
                    true => set.remove(topic),
                    false => set.insert(topic.clone()),
                };
                push(out, &[name.to_lowercase().as_bytes(), topic, b"1"]);
            }
        }
        _ => out.extend_from_slice(b"+OK\r\n"),
    }
}

fn push(out: &mut Vec<u8>, items: &[&[u8]]) {
    out.extend_from_slice(format!(">{}\r\n", items.len()).as_bytes());
    for item in items {
        out.extend_from_slice(format!("${}\r\n", item.len()).as_bytes());
        out.extend_from_slice(item);
        out.extend_from_slice(b"\r\n");
    }
}

async fn command(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    for _ in 0..number(reader).await? {
        let mut word = vec![0; number(reader).await? + 2];
        reader.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Some(words)
}

async fn number(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Option<usize> {
    let mut line = String::new();
    reader.read_line(&mut line).await.ok()?;
    line.get(1..)?.trim_end().parse().ok()
}
