//! A worker of the tests' own: it speaks the links' protocol as a script tells it, also where no real one would.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub const SECRET: &str = "a secret of the bridge's";
const PATIENCE: Duration = Duration::from_secs(20);

pub const HELLO: u8 = 1;
pub const WELCOME: u8 = 2;
pub const PROOF: u8 = 3;
pub const PING: u8 = 4;
pub const PONG: u8 = 5;
pub const DRAIN: u8 = 6;
pub const OPEN: u8 = 16;
pub const ACCEPT: u8 = 17;
pub const DENY: u8 = 18;
pub const TEXT: u8 = 19;
pub const BINARY: u8 = 20;
pub const CLOSE: u8 = 21;
pub const CLOSED: u8 = 22;
pub const PAUSE: u8 = 23;
pub const RESUME: u8 = 24;
pub const CREDIT: u8 = 25;
pub const END: u8 = 26;
pub const WAITING: u8 = 27;
pub const LAYER: u8 = 32;
pub const JOIN: u8 = 33;
pub const LEAVE: u8 = 34;
pub const JOINED: u8 = 35;
pub const PUBLISH: u8 = 36;
pub const SEND: u8 = 37;
pub const SENT: u8 = 38;
pub const PUBLISHED: u8 = 39;
pub const EVENT: u8 = 40;
pub const CLASS: u8 = 41;
pub const RENDER: u8 = 42;
pub const RENDERED: u8 = 43;
pub const DETACH: u8 = 44;
pub const STATE: u8 = 45;
pub const READY: u8 = 46;
pub const COUNTS: u8 = 128;

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub sid: u64,
    pub body: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// A close code and its reason.
    pub fn code(&self) -> (u16, &str) {
        (u16::from_le_bytes(self.body[..2].try_into().unwrap()), std::str::from_utf8(&self.body[2..]).unwrap())
    }
}

/// How a worker presents itself.
#[derive(Clone)]
pub struct Manner {
    pub secret: String,
    pub max_sockets: u64,
    pub max_opening: u64,
    /// Whether it knows groups.
    pub groups: bool,
    /// Whether it gives back the node's nonce as its own, and so could give back its proof.
    pub mirrors: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self { secret: SECRET.to_owned(), max_sockets: 0, max_opening: 0, groups: false, mirrors: false }
    }
}

/// A listening worker.
pub struct Worker {
    pub path: PathBuf,
    listener: UnixListener,
    pub manner: Manner,
}

impl Worker {
    pub fn at(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        Self { path: path.to_owned(), listener: UnixListener::bind(path).unwrap(), manner: Manner::default() }
    }

    pub fn with(self, manner: Manner) -> Self {
        Self { manner, ..self }
    }

    /// The next link that a node makes, both proofs done.
    pub async fn link(&self) -> Link {
        timeout(PATIENCE, self.try_link()).await.expect("a node dials in time").expect("a node that knows the secret")
    }

    /// The same; an error where the proofs come to nothing.
    pub async fn try_link(&self) -> std::io::Result<Link> {
        let (stream, _) = self.listener.accept().await?;
        Link::greet(Box::new(stream), &self.manner).await
    }

    /// Serves as many links as come: accepts every socket, gives everything back, and says `name` for `who`.
    pub fn echo(self, name: &'static str) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut links = JoinSet::new();
            loop {
                let link = self.link().await;
                links.spawn(link.echo(name));
            }
        });
        tasks
    }
}

/// A link, as the worker has it.
pub struct Link {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Whether pings are answered.
    pub lives: bool,
}

impl Link {
    pub async fn greet(stream: Box<dyn Stream>, manner: &Manner) -> std::io::Result<Self> {
        let mut link = Self { stream, buffer: Vec::new(), lives: true };
        let hello = link.try_next().await?;
        assert_eq!((hello.kind, hello.sid), (HELLO, 0));
        let hello = Value::read(&hello.body);
        let theirs = hello.get("nonce").bin().to_vec();
        assert_eq!((hello.get("v"), theirs.len()), (&Value::Int(1), 32));
        assert!(!hello.get("node").str().is_empty() && !hello.get("deployment").str().is_empty());
        let own = if manner.mirrors { theirs.clone() } else { vec![7; 32] };
        let mut welcome = vec![0x88];
        welcome.extend(named("groups", &int(manner.groups.into())));
        welcome.extend(named("v", &[1]));
        welcome.extend(named("worker", &str("a worker of the tests'")));
        welcome.extend(named("app", &str("tests:application")));
        welcome.extend(named("max_sockets", &int(manner.max_sockets)));
        welcome.extend(named("max_opening", &int(manner.max_opening)));
        welcome.extend(named("nonce", &bin(&own)));
        welcome.extend(named("mac", &bin(&mac(&manner.secret, "worker", &theirs, &own))));
        link.send(WELCOME, 0, &welcome).await;
        let proof = link.try_next().await?;
        assert_eq!((proof.kind, proof.sid), (PROOF, 0));
        assert_eq!(Value::read(&proof.body).get("mac").bin(), mac(&manner.secret, "node", &theirs, &own));
        Ok(link)
    }

    async fn try_next(&mut self) -> std::io::Result<Frame> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize)
                && self.buffer.len() >= 4 + length
            {
                let rest = self.buffer.split_off(4 + length);
                let frame = std::mem::replace(&mut self.buffer, rest);
                let sid = u64::from_le_bytes(frame[5..13].try_into().unwrap());
                let frame = Frame { kind: frame[4], sid, body: frame[13..].to_vec() };
                if frame.kind == PING && self.lives {
                    self.send(PONG, 0, &frame.body).await;
                }
                if !matches!(frame.kind, PING | PONG) {
                    return Ok(frame);
                }
                continue;
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next frame that is no ping.
    pub async fn next(&mut self) -> Frame {
        timeout(PATIENCE, self.try_next()).await.expect("a frame in time").unwrap()
    }

    /// The next frame, which is of this kind.
    pub async fn expect(&mut self, kind: u8) -> Frame {
        let frame = self.next().await;
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// Waits until the node has closed the link.
    pub async fn closed(&mut self) {
        let closed = async { while self.try_next().await.is_ok() {} };
        timeout(PATIENCE, closed).await.expect("the node closes the link in time");
    }

    pub async fn send(&mut self, kind: u8, sid: u64, body: &[u8]) {
        let length = (9 + body.len()) as u32;
        let frame = [&length.to_le_bytes()[..], &[kind], &sid.to_le_bytes(), body].concat();
        // A node that has closed it is what some tests wait for.
        let _ = self.stream.write_all(&frame).await;
    }

    pub async fn bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next socket, its `scope`, and whatever else OPEN has.
    pub async fn open(&mut self) -> (u64, Value) {
        let open = self.expect(OPEN).await;
        (open.sid, Value::read(&open.body))
    }

    pub async fn accept(&mut self, sid: u64) {
        self.send(ACCEPT, sid, &accept(None, &[])).await;
    }

    pub async fn credit(&mut self, sid: u64, count: u32) {
        self.send(CREDIT, sid, &count.to_le_bytes()).await;
    }

    pub async fn end(&mut self, sid: u64, outcome: u8, why: &str) {
        self.send(END, sid, &[&[outcome], why.as_bytes()].concat()).await;
    }

    /// A socket joins a group; returns when it has.
    pub async fn join(&mut self, sid: u64, group: &str) {
        self.send(JOIN, sid, group.as_bytes()).await;
        let joined = self.expect(JOINED).await;
        assert_eq!((joined.sid, joined.body), (sid, [b"\0", group.as_bytes()].concat()));
    }

    pub async fn publish(&mut self, sid: u64, group: &str, event: &[u8]) {
        self.send(PUBLISH, sid, &[&(group.len() as u16).to_le_bytes()[..], group.as_bytes(), event].concat()).await;
    }

    /// The next event, and the sockets it is for; PUBLISHED is passed over.
    pub async fn event(&mut self) -> (Value, Vec<u64>) {
        let frame = loop {
            let frame = self.next().await;
            if frame.kind != PUBLISHED {
                break frame;
            }
        };
        assert_eq!((frame.kind, frame.sid), (EVENT, 0), "{frame:?}");
        let length = u32::from_le_bytes(frame.body[..4].try_into().unwrap()) as usize;
        let (event, sids) = frame.body[4..].split_at(length);
        let sids = sids.chunks(8).map(|sid| u64::from_le_bytes(sid.try_into().unwrap())).collect();
        (Value::read(event), sids)
    }

    /// What is to be rendered next: its number, the class, the event.
    pub async fn rendering(&mut self) -> (u64, String, Value) {
        let frame = loop {
            let frame = self.next().await;
            if frame.kind != PUBLISHED {
                break frame;
            }
        };
        assert_eq!((frame.kind, frame.sid), (RENDER, 0), "{frame:?}");
        let (request, rest) = frame.body.split_at(8);
        let length = u16::from_le_bytes(rest[..2].try_into().unwrap()) as usize;
        let (class, event) = rest[2..].split_at(length);
        let request = u64::from_le_bytes(request.try_into().unwrap());
        (request, String::from_utf8(class.to_vec()).unwrap(), Value::read(event))
    }

    pub async fn rendered(&mut self, request: u64, texts: &[&str]) {
        let mut body = [&request.to_le_bytes()[..], &[0]].concat();
        for text in texts {
            body.push(TEXT);
            body.extend((text.len() as u32).to_le_bytes());
            body.extend(text.as_bytes());
        }
        self.send(RENDERED, 0, &body).await;
    }

    async fn echo(mut self, name: &'static str) {
        while let Ok(frame) = self.try_next().await {
            match frame.kind {
                OPEN => self.accept(frame.sid).await,
                TEXT | BINARY => {
                    self.credit(frame.sid, 1).await;
                    let answer = if frame.body == b"who" { name.as_bytes() } else { &frame.body };
                    self.send(frame.kind, frame.sid, answer).await;
                }
                CLOSED => self.end(frame.sid, 0, "").await,
                _ => {}
            }
        }
    }
}

/// The bodies of ACCEPT and DENY.
pub fn accept(subprotocol: Option<&str>, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![0x82];
    out.extend(named("subprotocol", &subprotocol.map_or(vec![0xc0], str)));
    out.extend(named("headers", &list(headers)));
    out
}

pub fn deny(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x83];
    out.extend(named("status", &int(status.into())));
    out.extend(named("headers", &list(headers)));
    out.extend(named("body", &bin(body)));
    out
}

pub fn drain(window: f64) -> Vec<u8> {
    let mut out = vec![0x81];
    out.extend(named("window", &[&[0xcb], &window.to_be_bytes()[..]].concat()));
    out
}

pub fn counts(reason: &str, count: u64) -> Vec<u8> {
    let mut out = vec![0x81];
    out.extend(named(reason, &int(count)));
    out
}

/// An event of a type and a text.
pub fn event(kind: &str, text: &str) -> Vec<u8> {
    let mut out = vec![0x82];
    out.extend(named("type", &str(kind)));
    out.extend(named("text", &str(text)));
    out
}

/// The body of CLASS of one that goes on elsewhere.
pub fn reattaches(name: &str) -> Vec<u8> {
    let mut out = vec![0x83];
    out.extend(named("class", &str(name)));
    out.extend(named("shared", &[0x90]));
    out.extend(named("reattach", &[1]));
    out
}

/// The body of CLASS.
pub fn class(name: &str, shared: &[&str]) -> Vec<u8> {
    let mut out = vec![0x82];
    out.extend(named("class", &str(name)));
    let names: Vec<u8> = shared.iter().flat_map(|name| str(name)).collect();
    out.extend(named("shared", &[&[0x90 | shared.len() as u8], &names[..]].concat()));
    out
}

fn list(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut out = vec![0x90 | headers.len() as u8];
    for (name, value) in headers {
        out.push(0x92);
        out.extend(bin(name.as_bytes()));
        out.extend(bin(value.as_bytes()));
    }
    out
}

fn named(name: &str, value: &[u8]) -> Vec<u8> {
    [str(name), value.to_vec()].concat()
}

fn str(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_str(&mut out, text).unwrap();
    out
}

fn bin(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_bin(&mut out, bytes).unwrap();
    out
}

fn int(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    rmp::encode::write_uint(&mut out, number).unwrap();
    out
}

fn mac(secret: &str, role: &str, node: &[u8], worker: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("gateway.bridge.1 {role}").as_bytes());
    mac.update(node);
    mac.update(worker);
    mac.finalize().into_bytes().to_vec()
}

/// A value of msgpack, read without care.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Nil,
    Int(u64),
    Str(String),
    Bin(Vec<u8>),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
}

impl Value {
    pub fn read(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        let value = Self::next(&mut rest);
        assert!(rest.is_empty());
        value
    }

    fn next(rest: &mut &[u8]) -> Self {
        use rmp::Marker;
        let marker = rmp::decode::read_marker(&mut &**rest).unwrap();
        match marker {
            Marker::Null => {
                *rest = &rest[1..];
                Self::Nil
            }
            Marker::FixStr(_) | Marker::Str8 | Marker::Str16 | Marker::Str32 => {
                let length = rmp::decode::read_str_len(rest).unwrap() as usize;
                let (text, after) = rest.split_at(length);
                *rest = after;
                Self::Str(String::from_utf8(text.to_vec()).unwrap())
            }
            Marker::Bin8 | Marker::Bin16 | Marker::Bin32 => {
                let length = rmp::decode::read_bin_len(rest).unwrap() as usize;
                let (bytes, after) = rest.split_at(length);
                *rest = after;
                Self::Bin(bytes.to_vec())
            }
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
                let length = rmp::decode::read_array_len(rest).unwrap();
                Self::List((0..length).map(|_| Self::next(rest)).collect())
            }
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                let length = rmp::decode::read_map_len(rest).unwrap();
                Self::Map((0..length).map(|_| (Self::next(rest), Self::next(rest))).collect())
            }
            _ => Self::Int(rmp::decode::read_int(rest).unwrap()),
        }
    }

    pub fn get(&self, key: &str) -> &Self {
        let Self::Map(fields) = self else { return &Self::Nil };
        fields.iter().find(|(name, _)| *name == Self::Str(key.to_owned())).map_or(&Self::Nil, |(_, value)| value)
    }

    pub fn str(&self) -> &str {
        if let Self::Str(text) = self { text } else { panic!("{self:?} is no text") }
    }

    pub fn bin(&self) -> &[u8] {
        if let Self::Bin(bytes) = self { bytes } else { panic!("{self:?} is not bytes") }
    }

    pub fn list(&self) -> &[Self] {
        if let Self::List(items) = self { items } else { panic!("{self:?} is no list") }
    }

    /// The values of a header in a scope.
    pub fn header(&self, name: &str) -> Vec<String> {
        let headers = self.get("headers").list().iter().map(Self::list);
        let of_name = headers.filter(|pair| pair[0].bin() == name.as_bytes());
        of_name.map(|pair| String::from_utf8_lossy(pair[1].bin()).into_owned()).collect()
    }
}
