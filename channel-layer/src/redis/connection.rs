//! One connection to Redis, opened and signed in.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    refusal::{Failed, Refused},
    tls,
    topology::Sentinels,
    trust::{Server, Trust},
    wire::{self, Answer, Progress},
};
use crate::BoxError;

/// The longest a connection may take to be made and to answer its first commands; finding out from
/// Sentinels where to connect may take as long again.
pub(super) const OPENING: Duration = Duration::from_secs(2);
/// What a read makes room for, and the size an emptied buffer goes back to.
const READ: usize = 64 << 10;

/// Where one server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Tcp(Arc<str>, u16),
    Unix(Arc<PathBuf>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How to sign in. Holds a password: it has no `Debug`.
#[derive(Clone, Default)]
pub(super) struct Account {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

/// TLS, ready to use.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// The name the server's certificate must hold, if it is not the host's.
    pub(super) name: Option<String>,
    /// Whether we show a certificate of our own.
    pub(super) certified: bool,
}

/// What it takes to be let in, at whatever address.
pub(super) struct Access {
    pub(super) account: Account,
    pub(super) tls: Option<Tls>,
}

/// How to reach one logical server. Cheap to clone. Holds a password: it has no `Debug`.
#[derive(Clone)]
pub(super) struct Target {
    way: Way,
    access: Arc<Access>,
    server: Server,
}

#[derive(Clone)]
enum Way {
    Direct(Address),
    Sentinel(Arc<Sentinels>),
}

impl Target {
    pub(super) fn direct(address: Address, access: Arc<Access>, server: Server) -> Self {
        Self { way: Way::Direct(address), access, server }
    }

    /// `access` is for the primary that the Sentinels name.
    pub(super) fn sentinel(sentinels: Sentinels, access: Arc<Access>) -> Self {
        Self { way: Way::Sentinel(Arc::new(sentinels)), access, server: Server::default() }
    }

    /// Connects, signs in, chooses the database, makes sure that the server is a primary and hears a PONG;
    /// within 2 seconds. With Sentinels it asks them first, within 2 seconds of their own.
    pub(super) async fn open(&self, client_name: &str) -> Result<Connection, BoxError> {
        let trust = self.server.trust();
        let opened = self.open_any(client_name).await;
        opened.map(|connection| Connection { trust, ..connection })
    }

    async fn open_any(&self, client_name: &str) -> Result<Connection, BoxError> {
        match &self.way {
            Way::Direct(address) => self.access.open(address, client_name, true).await,
            Way::Sentinel(sentinels) => {
                let verdict = sentinels.ask().await?;
                let opened = self.access.open(&verdict.primary, client_name, true).await;
                if opened.is_err() {
                    // It may be the one that has not heard of a failover: others first, next time.
                    sentinels.distrust(&verdict.by);
                }
                opened
            }
        }
    }
}

impl Access {
    /// `primary` if nothing but a primary will do.
    pub(super) async fn open(
        &self,
        address: &Address,
        client_name: &str,
        primary: bool,
    ) -> Result<Connection, BoxError> {
        let mut stage = "connecting";
        let result = match timeout(OPENING, self.open_slowly(address, client_name, primary, &mut stage)).await {
            Ok(result) => result,
            Err(_) => Err(format!("{stage} took more than 2 seconds").into()),
        };
        result.map_err(|error| {
            let error = match &self.tls {
                Some(tls) => tls::explain(error, tls.certified),
                None => error,
            };
            Failed::at(address.to_string(), &error).into()
        })
    }

    /// `stage` says what is under way.
    async fn open_slowly(
        &self,
        address: &Address,
        client_name: &str,
        primary: bool,
        stage: &mut &'static str,
    ) -> Result<Connection, BoxError> {
        let stream: Box<dyn Stream> = match (address, &self.tls) {
            (Address::Tcp(host, port), None) => Box::new(tcp(host, *port).await?),
            (Address::Tcp(host, port), Some(tls)) => {
                let name = ServerName::try_from(tls.name.clone().unwrap_or_else(|| host.to_string()))?;
                let tcp = tcp(host, *port).await?;
                // A server without TLS may just wait for the end of what it takes for a command.
                *stage = "the TLS handshake (does the server speak TLS on this port?)";
                Box::new(TlsConnector::from(tls.config.clone()).connect(name, tcp).await?)
            }
            (Address::Unix(path), _) => Box::new(UnixStream::connect(path.as_path()).await?),
        };
        let mut connection = Connection { stream, buffer: BytesMut::new(), trust: Server::default().trust() };
        *stage = "signing in";
        connection.sign_in(&self.account, client_name, primary).await?;
        Ok(connection)
    }
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
    pub(super) trust: Trust,
}

impl Connection {
    /// All in one round trip.
    async fn sign_in(&mut self, account: &Account, client_name: &str, primary: bool) -> Result<(), BoxError> {
        let database = account.database.to_string();
        let mut commands: Vec<(Step, Vec<&str>)> = Vec::new();
        if let Some(password) = &account.password {
            let words = ["AUTH"].into_iter().chain(account.user.as_deref()).chain([password.as_str()]);
            commands.push((Step::Needed, words.collect()));
        }
        if account.database != 0 {
            commands.push((Step::Needed, vec!["SELECT", &database]));
        }
        // Helps whoever looks at CLIENT LIST; a user without the right to do it may go on.
        commands.push((Step::Optional, vec!["CLIENT", "SETNAME", client_name]));
        if primary {
            commands.push((Step::Primary, vec!["ROLE"]));
        }
        // A server that is still loading its data accepts connections and refuses everything.
        commands.push((Step::Needed, vec!["PING"]));
        let (steps, commands): (Vec<Step>, Vec<Vec<&str>>) = commands.into_iter().unzip();
        let answers = self.ask(&commands).await?;
        for (step, answer) in steps.into_iter().zip(answers) {
            step.check(answer)?;
        }
        Ok(())
    }

    /// Sends commands together and waits for all their answers, in order.
    pub(super) async fn ask(&mut self, commands: &[Vec<&str>]) -> Result<Vec<Answer>, BoxError> {
        let mut out = Vec::new();
        for words in commands {
            wire::command(&mut out, words.iter().map(|word| word.as_bytes()));
        }
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        let mut answers = Vec::with_capacity(commands.len());
        for _ in commands {
            answers.push(self.next_answer().await?);
        }
        Ok(answers)
    }

    /// Waits for the next answer of a command. Cancel-safe.
    pub(super) async fn next_answer(&mut self) -> Result<Answer, BoxError> {
        let mut progress = Progress::default();
        loop {
            if progress.is_complete(&self.buffer)?
                && let Some((answer, length)) = wire::parse_answer(&self.buffer)?
            {
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

/// What the answer to a command of the opening has to be.
enum Step {
    /// No error.
    Needed,
    /// Anything.
    Optional,
    /// Not the role of a replica. A user without the right to ask has to believe the address or the Sentinel.
    Primary,
}

impl Step {
    fn check(self, answer: Answer) -> Result<(), BoxError> {
        match (self, answer) {
            (Self::Optional, _) => Ok(()),
            (Self::Primary, Answer::Error(_)) => Ok(()),
            (_, Answer::Error(text)) => Err(Refused(text).into()),
            (Self::Primary, answer) if is_no_primary(&answer) => {
                Err(Refused("READONLY it is no primary".into()).into())
            }
            (Self::Primary, _) => Ok(()),
            (Self::Needed, _) => Ok(()),
        }
    }
}

/// Reads the answer of `ROLE`. What stands between us and Redis may not know the question.
pub(super) fn is_no_primary(role: &Answer) -> bool {
    role.as_list().and_then(|items| items.first()?.as_text()).is_some_and(|role| role != "master")
}
