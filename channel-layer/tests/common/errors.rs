//! A link to a Redis that answers any command with any error.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    task::JoinSet,
};

/// Every prefix an error of Redis may begin with.
pub const ERRORS: [&str; 16] = [
    "LOADING Redis is loading the dataset in memory",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "NOREPLICAS Not enough good replicas to write.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN Hash slot not served",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPERM this user has no permissions to run the command",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "ERR max number of clients reached",
];

#[derive(Clone, Default)]
struct Shared {
    errors: Arc<Mutex<HashMap<&'static str, &'static str>>>,
    answered: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

/// Ends with its value. One command after the other: the server is asked when the answer before has come.
pub struct Errors {
    port: u16,
    shared: Shared,
    _tasks: JoinSet<()>,
}

impl Errors {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_port = listener.local_addr().unwrap().port();
        let shared = Shared::default();
        let mut tasks = JoinSet::new();
        let own = shared.clone();
        tasks.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                own.connections.fetch_add(1, Ordering::SeqCst);
                let own = own.clone();
                clients.spawn(async move {
                    let _ = serve(client, port, own).await;
                });
            }
        });
        Self { port: own_port, shared, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Every command of this name is answered with the error from now on, or as usual.
    pub fn answer(&self, command: &'static str, error: Option<&'static str>) {
        let mut errors = self.shared.errors.lock().unwrap();
        match error {
            Some(error) => errors.insert(command, error),
            None => errors.remove(command),
        };
    }

    /// How many commands were answered with an error.
    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

async fn serve(client: TcpStream, port: u16, shared: Shared) -> io::Result<()> {
    let (client, mut to_client) = client.into_split();
    let (server, mut to_server) = TcpStream::connect(("127.0.0.1", port)).await?.into_split();
    let (mut client, mut server) = (BufReader::new(client), BufReader::new(server));
    loop {
        let command = value(&mut client).await?;
        let name = name_of(&command);
        let error = shared.errors.lock().unwrap().get(&*name).copied();
        match error {
            Some(error) => {
                shared.answered.fetch_add(1, Ordering::SeqCst);
                to_client.write_all(format!("-{error}\r\n").as_bytes()).await?;
            }
            None => {
                to_server.write_all(&command).await?;
                to_client.write_all(&value(&mut server).await?).await?;
            }
        }
    }
}

/// The first word of a command.
fn name_of(command: &[u8]) -> String {
    let line = command.split(|byte| *byte == b'\n').nth(2).unwrap_or_default();
    String::from_utf8_lossy(line).trim_end().to_uppercase()
}

/// One whole value as its bytes.
async fn value(from: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let (mut all, mut left) = (Vec::new(), 1_i64);
    while left > 0 {
        left -= 1;
        let start = all.len();
        if from.read_until(b'\n', &mut all).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let header = String::from_utf8_lossy(&all[start..]).trim_end().to_owned();
        let number = header.get(1..).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        match header.as_bytes().first() {
            Some(b'$') if number >= 0 => {
                let end = all.len();
                all.resize(end + number as usize + 2, 0);
                from.read_exact(&mut all[end..]).await?;
            }
            Some(b'*') => left += number.max(0),
            _ => {}
        }
    }
    Ok(all)
}
