//! One connection to Redis, opened and signed in.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    tls,
    wire::{self, Answer, Reply},
};
use crate::{BoxError, LayerError};

/// The longest a connection may take to be made and to answer its first commands.
const OPENING: Duration = Duration::from_secs(2);
/// What a read makes room for, and the size an emptied buffer goes back to.
const READ: usize = 64 << 10;

/// Where Redis is and how to sign in. Holds a password: it has no `Debug`.
#[derive(Clone)]
pub(super) struct Target {
    info: ConnectionInfo,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// Reads a URL: `redis://`, `rediss://` or `unix://`. Errors do not repeat it, as it may hold a
    /// password.
    pub(super) fn parse(url: &str, roots: Option<&[u8]>) -> Result<Self, LayerError> {
        let info =
            url.into_connection_info().map_err(|error| LayerError::Config(format!("the URL of Redis: {error}")))?;
        let tls = match info.addr() {
            ConnectionAddr::TcpTls { insecure, .. } => Some(Arc::new(tls::config(roots, *insecure)?)),
            _ => None,
        };
        Ok(Self { info, tls })
    }

    /// Connects, signs in and hears a PONG; within 2 seconds.
    pub(super) async fn open(&self, client_name: &str) -> Result<Connection, BoxError> {
        match timeout(OPENING, self.open_slowly(client_name)).await {
            Ok(result) => result,
            Err(_) => Err("connecting took more than 2 seconds".into()),
        }
    }

    async fn open_slowly(&self, client_name: &str) -> Result<Connection, BoxError> {
        let stream: Box<dyn Stream> = match (self.info.addr(), &self.tls) {
            (ConnectionAddr::Tcp(host, port), _) => Box::new(tcp(host, *port).await?),
            (ConnectionAddr::TcpTls { host, port, .. }, Some(config)) => {
                let name = ServerName::try_from(host.clone())?;
                let tcp = tcp(host, *port).await?;
                Box::new(TlsConnector::from(config.clone()).connect(name, tcp).await?)
            }
            (ConnectionAddr::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
            _ => return Err("this kind of address is not supported".into()),
        };
        let mut connection = Connection { stream, buffer: BytesMut::new() };
        let settings = self.info.redis_settings();
        if let Some(password) = settings.password() {
            let user = settings.username();
            let words = ["AUTH"].into_iter().chain(user).chain([password]);
            connection.ask(words).await?.map_err(refused)?;
        }
        // Helps whoever looks at CLIENT LIST; a user without the right to do it may go on.
        let _ = connection.ask(["CLIENT", "SETNAME", client_name]).await?;
        // A server that is still loading its data accepts connections and refuses everything.
        connection.ask(["PING"]).await?.map_err(refused)?;
        Ok(connection)
    }
}

fn refused(error: String) -> BoxError {
    format!("the server said: {error}").into()
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// TCP, TLS over TCP, or a Unix socket.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An open connection and what has been read from it but not yet used.
pub(super) struct Connection {
    pub(super) stream: Box<dyn Stream>,
    pub(super) buffer: BytesMut,
}

impl Connection {
    /// Sends one command and waits for its reply; an error reply is the inner `Err`.
    async fn ask<'a>(&mut self, words: impl IntoIterator<Item = &'a str>) -> Result<Result<(), String>, BoxError> {
        let words: Vec<&[u8]> = words.into_iter().map(str::as_bytes).collect();
        let mut out = Vec::new();
        wire::command(&mut out, words.into_iter());
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        self.next_reply(|reply| match reply {
            Reply::Error(text) => Err(String::from_utf8_lossy(text).into_owned()),
            _ => Ok(()),
        })
        .await
    }

    /// Waits for the next reply and shows it to `look`.
    pub(super) async fn next_reply<T>(&mut self, look: impl FnOnce(Reply<'_>) -> T) -> Result<T, BoxError> {
        loop {
            if let Some((reply, length)) = wire::parse(&self.buffer)? {
                let seen = look(reply);
                self.buffer.advance(length);
                return Ok(seen);
            }
            fill(&mut self.stream, &mut self.buffer).await?;
        }
    }

    /// Waits for the next answer of a command. Cancel-safe.
    pub(super) async fn next_answer(&mut self) -> Result<Answer, BoxError> {
        loop {
            if let Some((answer, length)) = wire::parse_answer(&self.buffer)? {
                self.buffer.advance(length);
                return Ok(answer);
            }
            fill(&mut self.stream, &mut self.buffer).await?;
        }
    }
}

/// Reads what is there into the buffer. The end of the stream is an error. Cancel-safe.
pub(super) async fn fill(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<()> {
    if buffer.is_empty() && buffer.capacity() > 16 * READ {
        // One huge payload must not occupy memory for ever.
        *buffer = BytesMut::new();
    }
    buffer.reserve(READ);
    match stream.read_buf(buffer).await? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
        _ => Ok(()),
    }
}
