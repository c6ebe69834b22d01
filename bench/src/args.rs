//! The command line.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::measure::{Bench, Place};
use crate::scenarios::{SCENARIOS, Scenario};
use crate::servers::{Database, Site, gateway_binary};
use crate::usage::Watched;

/// Measures what a socket and a delivery cost, and prints one table.
///
/// Starts a redis-server and the release gateway for each scenario, with the gateway's defaults but for
/// the limits that the load exceeds, on free ports of 127.0.0.1, and stops them afterwards. Or measures
/// a gateway that runs already (--url). docs/benchmarks.md says what the columns mean.
#[derive(Debug, Parser)]
#[command(name = "gateway-bench", after_help = scenarios())]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Scenarios or groups of them, comma between
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    pub(crate) only: Vec<String>,
    /// Seconds that each measurement takes, after a second of warming up (shorter ones warm up as long)
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    duration: f64,
    /// Repeat each scenario, and show the run with the median cost
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    pub(crate) runs: usize,
    /// Sockets that hear messages
    #[arg(long, default_value_t = 1_000, value_name = "COUNT")]
    members: usize,
    /// Sockets that stand still, come and go
    #[arg(long, default_value_t = 5_000, value_name = "COUNT")]
    crowd: usize,
    /// The same as --crowd 19000; a process may need as many open files, and some more
    #[arg(long, conflicts_with = "crowd")]
    large: bool,
    /// JSON instead of Markdown
    #[arg(long)]
    pub(crate) json: bool,
    /// The gateway's binary [default: the one beside this program]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) gateway: Option<PathBuf>,
    /// Sign in by these cookies, NAME=VALUE a line, instead of tokens (bench/sessions.py)
    #[arg(long, global = true, value_name = "FILE")]
    cookies: Option<PathBuf>,
    /// The nodes' database
    #[arg(long, value_enum, default_value = "sqlite")]
    pub(crate) database: Database,
    /// Measure these nodes, that run already, instead: ws://HOST:PORT, comma between. They need
    /// `--room-policy open`, and limits that the load does not exceed
    #[arg(long, value_delimiter = ',', requires = "token_secret")]
    url: Vec<String>,
    /// Their JWT secret (HS256)
    #[arg(long, value_name = "SECRET", env = "GATEWAY_JWT_SECRET", hide_env_values = true)]
    token_secret: Option<String>,
    /// Their Redis (pub/sub layer), for events that are not stored; without it those are left out
    #[arg(long, value_name = "URL", requires = "url")]
    redis_url: Option<String>,
    /// Their process ids, comma between, if they run on this machine; without it there are no figures for CPU and memory
    #[arg(long, value_delimiter = ',', requires = "url")]
    pid: Vec<u32>,
    /// The process id of their Redis
    #[arg(long, requires = "url")]
    redis_pid: Option<u32>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Counts instructions per delivery and per connect under valgrind, which is repeatable
    Instructions,
}

fn scenarios() -> String {
    let mut text = "Scenarios (group, name, what):\n".to_owned();
    for Scenario { name, group, about, .. } in SCENARIOS {
        text.push_str(&format!("  {group:8} {name:15} {about}\n"));
    }
    text
}

impl Args {
    /// The scenarios that are wanted.
    pub(crate) fn scenarios(&self) -> Result<Vec<&'static Scenario>> {
        let is = |scenario: &Scenario, word: &String| word == scenario.name || word == scenario.group;
        if let Some(word) = self.only.iter().find(|word| !SCENARIOS.iter().any(|scenario| is(scenario, word))) {
            anyhow::bail!("no scenario {word}: see --help");
        }
        let wanted = |scenario: &&Scenario| self.only.is_empty() || self.only.iter().any(|word| is(scenario, word));
        Ok(SCENARIOS.iter().filter(wanted).collect())
    }

    pub(crate) fn bench(&self) -> Result<Bench> {
        let duration = Duration::try_from_secs_f64(self.duration).context("--duration")?;
        anyhow::ensure!(
            !duration.is_zero() && self.members > 0 && self.crowd > 0,
            "nothing can be measured in no time"
        );
        Ok(Bench {
            place: self.place()?,
            members: self.members,
            crowd: if self.large { 19_000 } else { self.crowd },
            duration,
            warm_up: duration.min(Duration::from_secs(1)),
            cookies: self.cookies()?,
        })
    }

    /// What is measured, in words.
    pub(crate) fn servers(&self) -> String {
        if !self.url.is_empty() {
            return self.url.join(", ");
        }
        let redis = std::process::Command::new("redis-server").arg("--version").output();
        let redis = redis.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let redis = redis.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or("?").to_owned();
        format!("gateway {}, redis-server {redis}, database {:?}", env!("CARGO_PKG_VERSION"), self.database)
    }

    pub(crate) fn cookies(&self) -> Result<Vec<String>> {
        let Some(file) = &self.cookies else { return Ok(Vec::new()) };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn place(&self) -> Result<Place> {
        if self.url.is_empty() {
            return Ok(Place::Own { gateway: gateway_binary(self.gateway.as_deref())?, database: self.database });
        }
        Ok(Place::Theirs(Rc::new(Site {
            addresses: self.url.iter().map(|url| address(url)).collect::<Result<_>>()?,
            secret: self.token_secret.clone().context("--token-secret")?,
            redis_url: self.redis_url.clone(),
            watched: Watched {
                gateway: self.pid.clone(),
                redis: self.redis_pid.into_iter().collect(),
                database: Vec::new(),
            },
            own: None,
        })))
    }
}

fn address(url: &str) -> Result<SocketAddr> {
    let host = url.strip_prefix("ws://").with_context(|| format!("{url} is not ws://HOST:PORT"))?;
    let mut found = host.trim_end_matches('/').to_socket_addrs().with_context(|| url.to_owned())?;
    found.next().with_context(|| format!("{url} has no address"))
}
