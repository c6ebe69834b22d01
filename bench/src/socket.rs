//! One WebSocket of the generator.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use anyhow::Result;
use jsonwebtoken::{EncodingKey, Header};
use socket2::{Domain, Protocol, Socket as Plain, Type};

use crate::frames;
use crate::tally::Place;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Closed,
    /// Until the kernel has connected it.
    Connecting,
    /// Until the server has answered 101.
    Upgrading,
    /// Until `resumed` has come.
    Resuming,
    Open,
}

pub(crate) struct Socket {
    pub(crate) state: State,
    pub(crate) stream: Option<TcpStream>,
    pub(crate) room: usize,
    pub(crate) place: Place,
    /// When connecting began, ns.
    pub(crate) began: u64,
    /// The beginning of a frame whose end has not come yet.
    pub(crate) rest: Vec<u8>,
    pub(crate) unsent: Vec<u8>,
    pub(crate) address: SocketAddr,
    /// The request for the upgrade.
    pub(crate) request: Vec<u8>,
}

impl Socket {
    pub(crate) fn new(address: SocketAddr, room: usize, request: Vec<u8>) -> Self {
        Self {
            state: State::Closed,
            stream: None,
            room,
            place: Place::default(),
            began: 0,
            rest: Vec::new(),
            unsent: Vec::new(),
            address,
            request,
        }
    }

    /// Reads what is there; an end is `Ok(0)`, nothing an error of the kind `WouldBlock`.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.as_ref().map_or(Ok(0), |mut stream| stream.read(into))
    }

    /// Sends a frame, or keeps what the kernel does not take; says whether anything is kept.
    pub(crate) fn send(&mut self, opcode: u8, payload: &[u8]) -> bool {
        frames::encode(opcode, payload, &mut self.unsent);
        self.flush()
    }

    /// Sends what was kept; says whether anything still is. An error is left to the reader.
    pub(crate) fn flush(&mut self) -> bool {
        let Some(mut stream) = self.stream.as_ref() else { return false };
        if !self.unsent.is_empty()
            && let Ok(sent) = stream.write(&self.unsent)
        {
            self.unsent.drain(..sent);
        }
        !self.unsent.is_empty()
    }

    pub(crate) fn close(&mut self) {
        self.state = State::Closed;
        self.stream = None;
        self.rest = Vec::new();
        self.unsent = Vec::new();
    }
}

/// Begins to connect; the socket is writable when that is done. On loopback the sockets take turns at
/// some addresses: where one address has used half of its ports, the kernel searches long for a free one.
pub(crate) fn connect(address: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = Plain::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if address.ip() == Ipv4Addr::LOCALHOST {
        let source = Ipv4Addr::new(127, 0, 0, 1 + (number % SOURCES) as u8);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    match socket.connect(&address.into()) {
        // EINPROGRESS has no kind of its own.
        Err(error) if error.kind() != ErrorKind::WouldBlock && error.raw_os_error() != Some(EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

const SOURCES: usize = 8;
const EINPROGRESS: i32 = nix::errno::Errno::EINPROGRESS as i32;

/// The request of a user for a room; `shown` are the headers that say who it is.
pub(crate) fn request(host: SocketAddr, room: &str, shown: &str, resume: bool) -> Vec<u8> {
    let protocol = if resume { "Sec-WebSocket-Protocol: gateway.v1\r\n" } else { "" };
    format!(
        "GET /ws/chat/{room}/ HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         {shown}\r\n{protocol}\r\n"
    )
    .into_bytes()
}

/// Signs users' tokens.
pub(crate) struct Tokens {
    key: EncodingKey,
    /// Seconds since 1970.
    ends: u64,
}

#[derive(serde::Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
}

impl Tokens {
    /// They are good for an hour.
    pub(crate) fn new(secret: &str) -> Self {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        Self { key: EncodingKey::from_secret(secret.as_bytes()), ends: now + 3600 }
    }

    pub(crate) fn sign(&self, user: &str) -> Result<String> {
        Ok(jsonwebtoken::encode(&Header::default(), &Claims { sub: user, exp: self.ends }, &self.key)?)
    }
}
