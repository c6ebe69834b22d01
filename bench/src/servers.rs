//! The servers that are measured: nodes of the gateway, their Redis and their database.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use testkit::net::free_port;
use testkit::postgres::Postgres;
use testkit::process::{Guarded, private_dir};
use testkit::redis::RedisServer;

use crate::usage::Watched;

const SECRET: &str = "bench-secret-bench-secret-bench-secret";
const READY: Duration = Duration::from_secs(60);

/// Which database the nodes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Database {
    /// In the gateway's own memory (a file if there are two nodes), so its CPU time is the gateway's.
    Sqlite,
    /// A server with its own settings for buffers and the disk.
    Postgres,
}

/// Whether the limits that the load would exceed are in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limits {
    Default,
    /// No limit of frames per second, of sockets per user and per address.
    Off,
}

/// What a scenario runs on.
pub(crate) struct Site {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) secret: String,
    pub(crate) redis_url: Option<String>,
    pub(crate) watched: Watched,
    pub(crate) own: Option<OwnServers>,
}

/// Servers of our own, dead when this is dropped.
pub(crate) struct OwnServers {
    pub(crate) nodes: Vec<Node>,
    pub(crate) postgres: Option<Postgres>,
    _redis: RedisServer,
}

/// A node of the gateway.
pub(crate) struct Node {
    pub(crate) process: Guarded,
    pub(crate) internal: SocketAddr,
    public: SocketAddr,
}

impl Site {
    /// Starts everything and waits until it is ready. `wrapper` is put before the gateway's command.
    pub(crate) fn start(
        gateway: &Path,
        wrapper: &[String],
        nodes: usize,
        limits: Limits,
        database: Database,
    ) -> Result<Self> {
        let redis = RedisServer::start();
        let postgres = (database == Database::Postgres).then(Postgres::start_durable);
        let directory = private_dir("gateway-bench");
        let database_url = match &postgres {
            Some(postgres) => postgres.fresh_database(),
            None => format!("sqlite://{}/gateway.db?mode=rwc", directory.display()),
        };
        let mut directories = vec![directory];
        directories.extend((1..nodes).map(|_| private_dir("gateway-bench")));
        let mut own = OwnServers { nodes: Vec::new(), postgres, _redis: redis };
        for directory in directories {
            let node = Node::start(gateway, wrapper, directory, &own._redis.url(), &database_url, limits)?;
            own.nodes.push(node);
        }
        Ok(Self {
            addresses: own.nodes.iter().map(|node| node.public).collect(),
            secret: SECRET.to_owned(),
            redis_url: Some(own._redis.url()),
            watched: Watched {
                gateway: own.nodes.iter().map(|node| node.process.pid()).collect(),
                redis: vec![own._redis.process().pid()],
                database: own.postgres.iter().map(Postgres::pid).collect(),
            },
            own: Some(own),
        })
    }
}

impl Node {
    fn start(
        gateway: &Path,
        wrapper: &[String],
        directory: PathBuf,
        redis_url: &str,
        database_url: &str,
        limits: Limits,
    ) -> Result<Self> {
        let public = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let internal = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (listen, internal_listen) = (public.to_string(), internal.to_string());
        let mut env = vec![
            ("RUST_LOG", "warn"),
            ("GATEWAY_LISTEN", listen.as_str()),
            ("GATEWAY_INTERNAL_LISTEN", internal_listen.as_str()),
            ("GATEWAY_REDIS_URL", redis_url),
            ("GATEWAY_DATABASE_URL", database_url),
            ("GATEWAY_JWT_SECRET", SECRET),
            ("GATEWAY_ROOM_POLICY", "open"),
            // Nobody waits for a node to leave.
            ("GATEWAY_DRAIN__DELAY_SECONDS", "0"),
            ("GATEWAY_DRAIN__WINDOW_SECONDS", "1"),
        ];
        if limits == Limits::Off {
            env.extend([
                ("GATEWAY_LIMITS__FRAMES_PER_SECOND", "0"),
                ("GATEWAY_LIMITS__FRAMES_BURST", "0"),
                ("GATEWAY_LIMITS__CONNECTIONS_PER_USER", "0"),
                ("GATEWAY_LIMITS__CONNECTIONS_PER_ADDRESS", "0"),
            ]);
        }
        let mut command: Vec<String> = wrapper.to_vec();
        command.extend([gateway.display().to_string(), "serve".to_owned()]);
        let program = command.remove(0);
        let process = Guarded::spawn_with(directory, "KILL", &env, program, command);
        let ready = process.try_ready(READY, || get(internal, "/readyz").is_ok_and(|answer| answer.contains(" 200 ")));
        ready.map_err(|why| anyhow::anyhow!("the gateway {why}{}", process.log_tail()))?;
        Ok(Self { process, internal, public })
    }

    /// The value of the metric line that begins like this, 0 if there is none.
    pub(crate) fn metric(&self, line: &str) -> Result<f64> {
        let metrics = get(self.internal, "/metrics")?;
        let value = metrics.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        Ok(value.unwrap_or(0.0))
    }
}

/// Head and body of an answer.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The gateway's binary beside our own, if none is named.
pub(crate) fn gateway_binary(named: Option<&Path>) -> Result<PathBuf> {
    let binary = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()?.with_file_name("gateway"),
    };
    let found = binary.canonicalize();
    found.with_context(|| format!("no gateway at {}: use bench/run.sh, or name it with --gateway", binary.display()))
}
