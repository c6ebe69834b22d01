//! What lets us in to a server: its address, an account, certificates; and the stream that is opened and signed in with
//! them.
//!
//! The streams are our own because the crate's `Client` gives none away: a [`Connector`](super::Connector) hands one
//! out, a certificate may hold another name than the host's (which is part of its
//! [issue 463](https://github.com/redis-rs/redis-rs/issues/463)), and an error says what was under way.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use redis::{Pipeline, Value};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    answer::{Answer, command, text_of},
    connection::{Connection, Stream},
    refusal::{Failed, Refused},
    tls::{self, TlsOptions},
    trust::Server,
};
use crate::{BoxError, LayerError};

/// The longest a connection may take to be made and to answer its first commands; finding out from
/// Sentinels where to connect may take as long again.
pub(super) const OPENING: Duration = Duration::from_secs(2);
/// The most bytes of answers to the first commands.
const GREETING: usize = 64 << 10;

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
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
}

/// How to sign in from now on, and with which certificates. Shared by all that connect to a host.
#[derive(Default)]
pub(super) struct Login {
    account: RwLock<Account>,
    /// What the host says for itself.
    certificates: RwLock<Arc<TlsOptions>>,
    /// Rises with each change.
    version: AtomicU64,
}

impl Login {
    pub(super) fn new(account: Account, certificates: TlsOptions) -> Self {
        let certificates = RwLock::new(Arc::new(certificates));
        Self { account: RwLock::new(account), certificates, version: AtomicU64::new(0) }
    }

    pub(super) fn account(&self) -> Account {
        self.account.read().clone()
    }

    pub(super) fn certificates(&self) -> Arc<TlsOptions> {
        Arc::clone(&self.certificates.read())
    }

    /// For new connections.
    pub(super) fn set(&self, other: &Self) {
        let (account, certificates) = (other.account(), other.certificates());
        let mut own = self.account.write();
        let mut own_certificates = self.certificates.write();
        if *own != account || *own_certificates != certificates {
            *own = account;
            // The same ones stay the same, and with them what was made of them.
            if *own_certificates != certificates {
                *own_certificates = certificates;
            }
            self.version.fetch_add(1, Ordering::Release);
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }
}

/// TLS: made anew when the host has other certificates.
pub(super) struct Tls {
    /// What holds where the host says nothing.
    others: TlsOptions,
    insecure: bool,
    /// The name the server's certificate must hold, if it is not the host's.
    name: Option<String>,
    made: Mutex<Made>,
}

/// What was made of which certificates.
#[derive(Clone)]
struct Made {
    of: Arc<TlsOptions>,
    config: Arc<ClientConfig>,
    /// Whether we show a certificate of our own.
    certified: bool,
}

impl Tls {
    pub(super) fn new(
        certificates: Arc<TlsOptions>,
        others: TlsOptions,
        insecure: bool,
        name: Option<String>,
    ) -> Result<Self, LayerError> {
        let made = Mutex::new(Made::new(certificates, &others, insecure)?);
        Ok(Self { others, insecure, name, made })
    }

    /// What is used with these certificates of the host.
    fn with(&self, certificates: Arc<TlsOptions>) -> Result<Made, LayerError> {
        let mut made = self.made.lock();
        if !Arc::ptr_eq(&made.of, &certificates) {
            *made = Made::new(certificates, &self.others, self.insecure)?;
        }
        Ok(made.clone())
    }
}

impl Made {
    fn new(of: Arc<TlsOptions>, others: &TlsOptions, insecure: bool) -> Result<Self, LayerError> {
        let options = of.or(others);
        let config = Arc::new(tls::config(&options, insecure)?);
        Ok(Self { of, config, certified: options.client.is_some() })
    }
}

/// What it takes to be let in, at whatever address.
pub(super) struct Access {
    pub(super) login: Arc<Login>,
    pub(super) tls: Option<Tls>,
}

impl Access {
    /// A connection to ask questions on; within 2 seconds.
    pub(super) async fn open(&self, address: &Address, client_name: &str) -> Result<Connection, BoxError> {
        Connection::on(self.stream(address, client_name, false).await?, Server::default().trust()).await
    }

    /// `primary` if nothing but a primary will do.
    pub(super) async fn stream(
        &self,
        address: &Address,
        client_name: &str,
        primary: bool,
    ) -> Result<Box<dyn Stream>, BoxError> {
        let mut stage = "connecting";
        let result = match timeout(OPENING, self.open_slowly(address, client_name, primary, &mut stage)).await {
            Ok(result) => result,
            Err(_) => Err(format!("{stage} took more than 2 seconds").into()),
        };
        result.map_err(|error| {
            let error = match &self.tls {
                Some(tls) => tls::explain(error, tls.made.lock().certified),
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
    ) -> Result<Box<dyn Stream>, BoxError> {
        let mut stream: Box<dyn Stream> = match (address, &self.tls) {
            (Address::Tcp(host, port), None) => Box::new(tcp(host, *port).await?),
            (Address::Tcp(host, port), Some(tls)) => {
                let name = ServerName::try_from(tls.name.clone().unwrap_or_else(|| host.to_string()))?;
                let tcp = tcp(host, *port).await?;
                // A server without TLS may just wait for the end of what it takes for a command.
                *stage = "the TLS handshake (does the server speak TLS on this port?)";
                let config = tls.with(self.login.certificates())?.config;
                Box::new(TlsConnector::from(config).connect(name, tcp).await?)
            }
            (Address::Unix(path), _) => Box::new(UnixStream::connect(path.as_path()).await?),
        };
        *stage = "signing in";
        self.login.account().sign_in(&mut stream, client_name, primary).await?;
        Ok(stream)
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

impl Account {
    /// All in one round trip.
    async fn sign_in(&self, stream: &mut Box<dyn Stream>, client_name: &str, primary: bool) -> Result<(), BoxError> {
        let mut commands = Pipeline::new();
        let mut steps = Vec::new();
        let mut step = |step, words: &[&str]| {
            commands.add_command(command(words.iter().map(|word| word.as_bytes())));
            steps.push(step);
        };
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => step(Step::Needed, &["AUTH", user, password]),
            (None, Some(password)) => step(Step::Needed, &["AUTH", password]),
            (_, None) => {}
        }
        if self.database != 0 {
            step(Step::Needed, &["SELECT", &self.database.to_string()]);
        }
        // Helps whoever looks at CLIENT LIST; a user without the right to do it may go on.
        step(Step::Optional, &["CLIENT", "SETNAME", client_name]);
        if primary {
            step(Step::Primary, &["ROLE"]);
        }
        // A server that is still loading its data accepts connections and refuses everything.
        step(Step::Needed, &["PING"]);
        stream.write_all(&commands.get_packed_pipeline()).await?;
        stream.flush().await?;
        for (step, answer) in steps.into_iter().zip(read(stream, commands.len()).await?) {
            step.check(answer)?;
        }
        Ok(())
    }
}

/// Reads so many answers and nothing behind them; nothing else may be under way.
async fn read(stream: &mut Box<dyn Stream>, count: usize) -> Result<Vec<Value>, BoxError> {
    // One list of them is one value, complete or not.
    let mut bytes = format!("*{count}\r\n").into_bytes();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection").into());
        }
        match redis::parse_redis_value(&bytes) {
            Ok(answers) => return Ok(answers.into_list().unwrap_or_default()),
            Err(error) if error.is_io_error() && bytes.len() < GREETING => {}
            Err(error) => return Err(format!("unexpected data from the server: {error}").into()),
        }
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
    fn check(self, answer: Value) -> Result<(), BoxError> {
        match (self, answer) {
            (Self::Optional, _) | (Self::Primary, Value::ServerError(_)) => Ok(()),
            (_, Value::ServerError(error)) => Err(Refused(text_of(&error)).into()),
            (Self::Primary, answer) if is_no_primary(&answer) => {
                Err(Refused("READONLY it is no primary".into()).into())
            }
            (Self::Primary, _) => Ok(()),
            (Self::Needed, _) => Ok(()),
        }
    }
}

/// Reads the answer of `ROLE`. What stands between us and Redis may not know the question.
pub(super) fn is_no_primary(role: &Value) -> bool {
    role.as_list().and_then(|items| items.first()?.as_text()).is_some_and(|role| role != "master")
}
