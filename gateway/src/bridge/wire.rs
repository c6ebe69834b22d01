//! The frames of a link, as `docs/bridge-protocol.md` has them.

use super::class::{About, Said};
use super::msgpack::{self, Unreadable, Value};
use super::settings::MAX_MESSAGE;

/// Bytes of a frame: the largest message, and what goes with it.
pub(super) const MAX_FRAME: usize = MAX_MESSAGE + 64 * 1024;

/// Bytes of a frame before both sides have proven themselves.
pub(super) const MAX_HELLO: usize = 4 * 1024;

/// Bytes of kind and number.
const HEAD: usize = 1 + 8;

/// Bytes of a refusal's body.
const MAX_DENIAL: usize = 1 << 20;

/// What a frame is.
pub(super) mod kind {
    pub(crate) const HELLO: u8 = 1;
    pub(crate) const WELCOME: u8 = 2;
    pub(crate) const PROOF: u8 = 3;
    pub(crate) const PING: u8 = 4;
    pub(crate) const PONG: u8 = 5;
    pub(crate) const DRAIN: u8 = 6;
    pub(crate) const OPEN: u8 = 16;
    pub(crate) const ACCEPT: u8 = 17;
    pub(crate) const DENY: u8 = 18;
    pub(crate) const TEXT: u8 = 19;
    pub(crate) const BINARY: u8 = 20;
    pub(crate) const CLOSE: u8 = 21;
    pub(crate) const CLOSED: u8 = 22;
    pub(crate) const PAUSE: u8 = 23;
    pub(crate) const RESUME: u8 = 24;
    pub(crate) const CREDIT: u8 = 25;
    pub(crate) const END: u8 = 26;
    pub(crate) const WAITING: u8 = 27;
    pub(crate) const LAYER: u8 = 32;
    pub(crate) const JOIN: u8 = 33;
    pub(crate) const LEAVE: u8 = 34;
    pub(crate) const JOINED: u8 = 35;
    pub(crate) const PUBLISH: u8 = 36;
    pub(crate) const SEND: u8 = 37;
    pub(crate) const SENT: u8 = 38;
    pub(crate) const PUBLISHED: u8 = 39;
    pub(crate) const EVENT: u8 = 40;
    pub(crate) const CLASS: u8 = 41;
    pub(crate) const RENDER: u8 = 42;
    pub(crate) const RENDERED: u8 = 43;
    pub(crate) const DETACH: u8 = 44;
    pub(crate) const STATE: u8 = 45;
    pub(crate) const READY: u8 = 46;
    /// From here on what is unknown is ignored.
    pub(crate) const LATER: u8 = 128;
    /// What the worker has dropped since it began, by reason.
    pub(crate) const COUNTS: u8 = 128;
}

/// A frame that has come.
#[derive(Debug, PartialEq)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    /// The socket's number; 0 is the link itself.
    pub(super) sid: u64,
    pub(super) body: &'a [u8],
}

/// The first frame in the bytes and what it takes of them, or how many bytes have to be there for it.
pub(super) fn split(bytes: &[u8], most: usize) -> Result<Result<(Frame<'_>, usize), usize>, Unreadable> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(Err(4 + HEAD)) };
    let length = u32::from_le_bytes(*length) as usize;
    if !(HEAD..=most).contains(&length) {
        return Err(Unreadable);
    }
    let Some(frame) = rest.get(..length) else { return Ok(Err(4 + length)) };
    let Some((kind, frame)) = frame.split_first() else { return Err(Unreadable) };
    let Some((sid, body)) = frame.split_first_chunk::<8>() else { return Err(Unreadable) };
    Ok(Ok((Frame { kind: *kind, sid: u64::from_le_bytes(*sid), body }, 4 + length)))
}

/// Writes a frame behind others; its body is in pieces.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, sid: u64, body: &[&[u8]]) {
    let length = HEAD + body.iter().map(|piece| piece.len()).sum::<usize>();
    out.reserve(4 + length);
    // What is written is ours, and far below 4 GiB.
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&sid.to_le_bytes());
    body.iter().for_each(|piece| out.extend_from_slice(piece));
}

/// A message of a client's or of an application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

impl Message<'_> {
    pub(super) fn kind(self) -> u8 {
        match self {
            Self::Text(_) => kind::TEXT,
            Self::Binary(_) => kind::BINARY,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) worker: String,
    pub(super) app: String,
    /// 0 is no limit.
    pub(super) max_sockets: usize,
    /// 0 is no wish of its own.
    pub(super) max_opening: usize,
    /// It knows the frames of groups.
    pub(super) groups: bool,
    pub(super) nonce: Vec<u8>,
    pub(super) mac: Vec<u8>,
}

impl Welcome {
    pub(super) fn read(body: &[u8]) -> Result<Self, Unreadable> {
        let map = msgpack::read(body)?;
        if map.get("v").count()? != 1 {
            return Err(Unreadable);
        }
        let count = |name: &str| match map.get(name) {
            Value::Nil => Ok(0),
            value => usize::try_from(value.count()?).map_err(|_| Unreadable),
        };
        Ok(Self {
            worker: map.get("worker").str()?.to_owned(),
            app: map.get("app").str().unwrap_or_default().to_owned(),
            max_sockets: count("max_sockets")?,
            max_opening: count("max_opening")?,
            groups: count("groups")? > 0,
            nonce: map.get("nonce").bin()?.to_vec(),
            mac: map.get("mac").bin()?.to_vec(),
        })
    }
}

/// Names and values of headers.
pub(crate) type Headers = Vec<(Vec<u8>, Vec<u8>)>;

fn headers(value: &Value<'_>) -> Result<Headers, Unreadable> {
    if value.is_nil() {
        return Ok(Vec::new());
    }
    let pair = |pair: &Value<'_>| match pair.list()? {
        [name, value] => Ok((name.bin()?.to_vec(), value.bin()?.to_vec())),
        _ => Err(Unreadable),
    };
    value.list()?.iter().map(pair).collect()
}

pub(super) fn accept(body: &[u8]) -> Result<(Option<String>, Headers), Unreadable> {
    let map = msgpack::read(body)?;
    let subprotocol = match map.get("subprotocol") {
        Value::Nil => None,
        text => Some(text.str()?.to_owned()),
    };
    Ok((subprotocol, headers(map.get("headers"))?))
}

pub(super) fn deny(body: &[u8]) -> Result<(u16, Headers, Vec<u8>), Unreadable> {
    let map = msgpack::read(body)?;
    let status = u16::try_from(map.get("status").count()?).map_err(|_| Unreadable)?;
    let answer = if map.get("body").is_nil() { &[] } else { map.get("body").bin()? };
    if answer.len() > MAX_DENIAL {
        return Err(Unreadable);
    }
    Ok((status, headers(map.get("headers"))?, answer.to_vec()))
}

/// Over how many seconds a worker's sockets are to leave it.
pub(super) fn drain(body: &[u8]) -> Result<f64, Unreadable> {
    let window = msgpack::read(body)?.get("window").float()?;
    if window >= 0.0 { Ok(window.min(3600.0)) } else { Err(Unreadable) }
}

/// So many of each kind.
pub(super) fn counts(body: &[u8]) -> Result<Vec<(String, u64)>, Unreadable> {
    let Value::Map(fields) = msgpack::read(body)? else { return Err(Unreadable) };
    fields.iter().map(|(reason, count)| Ok((reason.str()?.to_owned(), count.count()?))).collect()
}

/// A close code and its reason.
pub(super) fn code(body: &[u8]) -> Result<(u16, &str), Unreadable> {
    let (code, reason) = body.split_first_chunk::<2>().ok_or(Unreadable)?;
    Ok((u16::from_le_bytes(*code), std::str::from_utf8(reason).map_err(|_| Unreadable)?))
}

pub(super) fn number(body: &[u8]) -> Result<u32, Unreadable> {
    body.try_into().map(u32::from_le_bytes).map_err(|_| Unreadable)
}

pub(super) fn text(body: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(body).map_err(|_| Unreadable)
}

/// A name and what follows it.
pub(super) fn named(body: &[u8]) -> Result<(&str, &[u8]), Unreadable> {
    let (length, rest) = body.split_first_chunk::<2>().ok_or(Unreadable)?;
    let (name, rest) = rest.split_at_checked(u16::from_le_bytes(*length).into()).ok_or(Unreadable)?;
    Ok((text(name)?, rest))
}

/// What a consumer's class is called, and which of its handlers are shared.
pub(super) fn class(body: &[u8]) -> Result<About, Unreadable> {
    let map = msgpack::read(body)?;
    let shared = map.get("shared").list()?.iter().map(|name| Ok(name.str()?.to_owned()));
    Ok(About {
        name: map.get("class").str()?.to_owned(),
        shared: shared.collect::<Result<_, _>>()?,
        reattaches: !map.get("reattach").is_nil() && map.get("reattach").count()? > 0,
    })
}

/// The body of OPEN for a socket that is open already, made of the first one's.
pub(super) fn reopen(first: &[u8], attempt: u64, state: Option<&[u8]>) -> Vec<u8> {
    let (fields, rest) = first.split_first().map_or((0x80, &[][..]), |(fields, rest)| (*fields, rest));
    // A small map, which has room for one more.
    let mut out = Writer(vec![fields + 1]);
    out.0.extend_from_slice(rest);
    out.str("reattach");
    let _ = rmp::encode::write_map_len(&mut out.0, 2);
    out.str("attempt").int(attempt).str("state");
    match state {
        Some(state) => out.bin(state),
        None => out.nil(),
    };
    out.0
}

/// What a worker has rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rendered {
    Said(Vec<Said>),
    /// The handler is not shared, and why.
    NotShared(String),
    Failed(String),
}

/// The number of what was to be rendered, and what became of it.
pub(super) fn rendered(body: &[u8]) -> Result<(u64, Rendered), Unreadable> {
    let (request, rest) = body.split_first_chunk::<8>().ok_or(Unreadable)?;
    let (outcome, mut rest) = rest.split_first().ok_or(Unreadable)?;
    let why = || String::from_utf8_lossy(rest).into_owned();
    let rendered = match outcome {
        0 => {
            let mut said = Vec::new();
            while let Some((kind, after)) = rest.split_first() {
                let (length, after) = after.split_first_chunk::<4>().ok_or(Unreadable)?;
                let (message, after) =
                    after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(Unreadable)?;
                said.push(match *kind {
                    kind::TEXT => Said::Text(text(message)?.to_owned()),
                    kind::BINARY => Said::Binary(message.to_vec()),
                    _ => return Err(Unreadable),
                });
                rest = after;
            }
            Rendered::Said(said)
        }
        1 => Rendered::NotShared(why()),
        2 => Rendered::Failed(why()),
        _ => return Err(Unreadable),
    };
    Ok((u64::from_le_bytes(*request), rendered))
}

/// Which layer the node has: what a worker compares the site's own with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layer {
    /// `memory`, `pubsub` or `core`.
    pub(crate) kind: &'static str,
    pub(crate) prefix: String,
    /// `msgpack` or `json`.
    pub(crate) serializer: &'static str,
    /// Where its hosts are, in their order; without credentials.
    pub(crate) hosts: Vec<String>,
    /// Any name of a group is good.
    pub(crate) raw_group_names: bool,
    pub(crate) keys: Vec<secrecy::SecretString>,
}

impl Layer {
    /// The body of LAYER. Keys are told by their prints.
    pub(super) fn body(&self, prints: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Writer::map(6);
        out.str("kind").str(self.kind).str("prefix").str(&self.prefix).str("serializer").str(self.serializer);
        out.str("raw").int(self.raw_group_names.into()).str("hosts").list(self.hosts.len());
        for host in &self.hosts {
            out.str(host);
        }
        out.str("keys").list(prints.len());
        for print in prints {
            out.bin(print);
        }
        out.0
    }
}

/// Writes msgpack. Writing into memory cannot fail.
struct Writer(Vec<u8>);

impl Writer {
    fn map(fields: u32) -> Self {
        let mut writer = Self(Vec::with_capacity(512));
        let _ = rmp::encode::write_map_len(&mut writer.0, fields);
        writer
    }

    fn str(&mut self, text: &str) -> &mut Self {
        let _ = rmp::encode::write_str(&mut self.0, text);
        self
    }

    fn bin(&mut self, bytes: &[u8]) -> &mut Self {
        let _ = rmp::encode::write_bin(&mut self.0, bytes);
        self
    }

    fn list(&mut self, items: usize) -> &mut Self {
        let _ = rmp::encode::write_array_len(&mut self.0, u32::try_from(items).unwrap_or(u32::MAX));
        self
    }

    fn int(&mut self, number: u64) -> &mut Self {
        let _ = rmp::encode::write_uint(&mut self.0, number);
        self
    }

    fn nil(&mut self) -> &mut Self {
        let _ = rmp::encode::write_nil(&mut self.0);
        self
    }

    fn host(&mut self, at: Option<&(String, u16)>) -> &mut Self {
        match at {
            Some((host, port)) => self.list(2).str(host).int((*port).into()),
            None => self.nil(),
        }
    }
}

pub(super) fn hello(node: &str, deployment: &str, nonce: &[u8]) -> Vec<u8> {
    let mut out = Writer::map(4);
    out.str("v").int(1).str("node").str(node).str("deployment").str(deployment).str("nonce").bin(nonce);
    out.0
}

pub(super) fn proof(mac: &[u8]) -> Vec<u8> {
    let mut out = Writer::map(1);
    out.str("mac").bin(mac);
    out.0
}

/// What an application is told of a socket: the `scope` of ASGI 3.
#[derive(Debug, Clone)]
pub(crate) struct Scope<'a> {
    /// As it was sent, percent-encoded.
    pub(crate) raw_path: &'a str,
    pub(crate) query_string: &'a str,
    /// Names in lower case, in their order.
    pub(crate) headers: Vec<(&'a [u8], &'a [u8])>,
    pub(crate) subprotocols: &'a [String],
    pub(crate) client: Option<(String, u16)>,
    pub(crate) server: Option<(String, u16)>,
    /// `ws` or `wss`.
    pub(crate) scheme: &'static str,
    pub(crate) channel_name: &'a str,
    /// Who is signed in, and their id if it is known: where the node decides that.
    pub(crate) user: Option<(&'a str, Option<&'a str>)>,
    pub(crate) traceparent: Option<&'a str>,
}

impl Scope<'_> {
    /// The body of OPEN.
    pub(super) fn open(&self, attempt: u64) -> Vec<u8> {
        let path = percent_encoding::percent_decode_str(self.raw_path).decode_utf8_lossy();
        let mut out = Writer::map(if self.traceparent.is_some() { 3 } else { 2 });
        out.str("scope");
        let fields = 12 + u32::from(self.user.is_some());
        let _ = rmp::encode::write_map_len(&mut out.0, fields);
        out.str("type").str("websocket").str("path").str(&path).str("raw_path").bin(self.raw_path.as_bytes());
        out.str("root_path").str("").str("query_string").bin(self.query_string.as_bytes());
        out.str("headers").list(self.headers.len());
        for (name, value) in &self.headers {
            out.list(2).bin(name).bin(value);
        }
        out.str("subprotocols").list(self.subprotocols.len());
        for entry in self.subprotocols {
            out.str(entry);
        }
        out.str("client").host(self.client.as_ref()).str("server").host(self.server.as_ref());
        out.str("scheme").str(self.scheme).str("http_version").str("1.1");
        out.str("channel_name").str(self.channel_name);
        if let Some((user, id)) = self.user {
            out.str("gateway_auth");
            let _ = rmp::encode::write_map_len(&mut out.0, 2);
            out.str("user").str(user).str("id");
            match id {
                Some(id) => out.str(id),
                None => out.nil(),
            };
        }
        out.str("attempt").int(attempt);
        if let Some(traceparent) = self.traceparent {
            out.str("traceparent").str(traceparent);
        }
        out.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_there_and_back_however_they_are_cut() {
        let mut out = Vec::new();
        put(&mut out, kind::TEXT, 7, &[b"a", b"bc"]);
        put(&mut out, kind::PAUSE, 8, &[]);
        assert_eq!(split(&out[..2], MAX_FRAME), Ok(Err(13)));
        assert_eq!(split(&out[..15], MAX_FRAME), Ok(Err(16)));
        let (first, length) = split(&out, MAX_FRAME).unwrap().unwrap();
        assert_eq!((first, length), (Frame { kind: kind::TEXT, sid: 7, body: b"abc" }, 16));
        let (second, _) = split(&out[16..], MAX_FRAME).unwrap().unwrap();
        assert_eq!(second, Frame { kind: kind::PAUSE, sid: 8, body: b"" });
        assert_eq!(split(&out, 11), Err(Unreadable), "over the bound, told from its length");
        assert_eq!(split(&8_u32.to_le_bytes(), MAX_FRAME), Err(Unreadable), "shorter than its own head");
    }

    #[test]
    fn a_scope_is_what_asgi_says() {
        let protocols = ["chat".to_owned()];
        let scope = Scope {
            raw_path: "/ws/caf%C3%A9/",
            query_string: "a=%20",
            headers: vec![(b"cookie", b"a=\xff")],
            subprotocols: &protocols,
            client: Some(("10.0.0.7".to_owned(), 0)),
            server: None,
            scheme: "wss",
            channel_name: "specific.x",
            user: Some(("alice", None)),
            traceparent: Some("00-1"),
        };
        let body = scope.open(2);
        let map = msgpack::read(&body).unwrap();
        let (found, of) = (map.get("scope"), |name: &str| map.get("scope").get(name).clone());
        assert_eq!((of("path"), of("raw_path")), (Value::Str("/ws/café/"), Value::Bin(b"/ws/caf%C3%A9/")));
        assert_eq!(of("headers"), Value::List(vec![Value::List(vec![Value::Bin(b"cookie"), Value::Bin(b"a=\xff")])]));
        assert_eq!(of("client"), Value::List(vec![Value::Str("10.0.0.7"), Value::Int(0)]));
        assert_eq!((of("server"), of("scheme"), of("root_path")), (Value::Nil, Value::Str("wss"), Value::Str("")));
        assert_eq!(found.get("gateway_auth").get("user"), &Value::Str("alice"));
        assert_eq!((map.get("attempt"), map.get("traceparent")), (&Value::Int(2), &Value::Str("00-1")));
    }

    #[test]
    fn a_socket_is_opened_again_with_what_its_consumer_has_left() {
        let mut out = Writer::map(2);
        out.str("scope").int(7).str("attempt").int(0);
        let body = reopen(&out.0, 2, Some(b"left"));
        let map = msgpack::read(&body).unwrap();
        assert_eq!(map.get("scope"), &Value::Int(7));
        assert_eq!(
            (map.get("reattach").get("attempt"), map.get("reattach").get("state")),
            (&Value::Int(2), &Value::Bin(b"left"))
        );
        assert!(msgpack::read(&reopen(&out.0, 1, None)).unwrap().get("reattach").get("state").is_nil());
    }

    #[test]
    fn answers_are_read() {
        let mut out = Writer::map(2);
        out.str("subprotocol").nil().str("headers").list(1).list(2).bin(b"x-a").str("b");
        assert_eq!(accept(&out.0), Ok((None, vec![(b"x-a".to_vec(), b"b".to_vec())])));
        let mut out = Writer::map(1);
        out.str("status").int(403);
        assert_eq!(deny(&out.0), Ok((403, Vec::new(), Vec::new())));
        assert!(deny(b"\x80").is_err() && accept(b"\x01").is_ok() && code(b"\x01").is_err());
        assert_eq!((code(b"\xe8\x03bye"), number(&[1, 0, 0, 0])), (Ok((1000, "bye")), Ok(1)));
    }
}
