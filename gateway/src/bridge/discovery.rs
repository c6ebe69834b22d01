//! Where the workers are: socket files that a pattern matches, or every address that a name has.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;

/// Workers of one bridge that are dialled; more are no deployment but a mistake.
pub(crate) const MOST_WORKERS: usize = 256;

/// How long a look may take.
const LOOK_TIME: Duration = Duration::from_secs(4);

/// How often it is looked again: a directory costs nothing, a name a question.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);
const LOOK_UP_NAMES: Duration = Duration::from_secs(5);

/// The `workers` of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Workers {
    /// Socket files, as a pattern of the shell.
    Unix(String),
    /// All addresses of a name, each with these ports.
    Tcp {
        /// Name or address.
        host: String,
        /// One port, or a range.
        ports: RangeInclusive<u16>,
    },
}

/// Where one worker listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Why it could not be looked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookError {
    #[error("the name of the workers cannot be looked up")]
    Name(#[source] std::io::Error),
    #[error("looking for workers takes too long")]
    Late,
    #[error("the pattern of the workers' sockets cannot be followed")]
    Files,
}

impl Workers {
    /// Reads `unix:PATTERN` or `tcp://HOST:PORT[-PORT]`; the error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(pattern) = text.strip_prefix("unix:") {
            let pattern = pattern.strip_prefix("//").unwrap_or(pattern);
            if pattern.is_empty() {
                return Err("unix: needs the name of a socket, or a pattern".to_owned());
            }
            glob::Pattern::new(pattern).map_err(|error| format!("{pattern}: {error}"))?;
            return Ok(Self::Unix(pattern.to_owned()));
        }
        let usage = || "must be unix:/run/site/worker-*.sock, tcp://HOST:PORT or tcp://HOST:PORT-PORT".to_owned();
        let (host, ports) = text.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(usage)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let (first, last): (u16, u16) = (first.parse().map_err(|_| usage())?, last.parse().map_err(|_| usage())?);
        if host.is_empty() || host.contains(['/', '@']) {
            return Err(usage());
        }
        if first == 0 || first > last || usize::from(last - first) >= MOST_WORKERS {
            return Err(format!("{ports}: the ports must go upwards from 1, {MOST_WORKERS} of them at most"));
        }
        Ok(Self::Tcp { host: host.to_owned(), ports: first..=last })
    }

    /// How long to wait until it is looked again.
    pub(crate) fn interval(&self) -> Duration {
        match self {
            Self::Unix(_) => LOOK_AT_FILES,
            Self::Tcp { .. } => LOOK_UP_NAMES,
        }
    }

    /// Looks where workers are now, and whether there are more of them than are dialled.
    pub(crate) async fn look(&self) -> Result<(Vec<Address>, bool), LookError> {
        let mut found = timeout(LOOK_TIME, self.all()).await.map_err(|_| LookError::Late)??;
        found.sort();
        found.dedup();
        let too_many = found.len() > MOST_WORKERS;
        found.truncate(MOST_WORKERS);
        Ok((found, too_many))
    }

    async fn all(&self) -> Result<Vec<Address>, LookError> {
        match self {
            Self::Unix(pattern) => {
                let pattern = pattern.clone();
                tokio::task::spawn_blocking(move || sockets(&pattern)).await.map_err(|_| LookError::Files)?
            }
            Self::Tcp { host, ports } => {
                let found = tokio::net::lookup_host((host.as_str(), *ports.start())).await.map_err(LookError::Name)?;
                let with_ports = |at: SocketAddr| ports.clone().map(move |port| SocketAddr::new(at.ip(), port));
                Ok(found.flat_map(with_ports).map(Address::Tcp).take(MOST_WORKERS + 1).collect())
            }
        }
    }
}

fn sockets(pattern: &str) -> Result<Vec<Address>, LookError> {
    let found = glob::glob(pattern).map_err(|_| LookError::Files)?;
    // What cannot be looked at is no worker of ours now.
    let found = found
        .filter_map(Result::ok)
        .filter(|path| std::fs::metadata(path).is_ok_and(|file| file.file_type().is_socket()));
    Ok(found.map(Address::Unix).take(MOST_WORKERS + 1).collect())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(at) => write!(f, "tcp://{at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_named_in_three_ways() {
        let tcp = |host: &str, ports| Workers::Tcp { host: host.to_owned(), ports };
        for (text, workers) in [
            ("unix:/run/site/worker-*.sock", Workers::Unix("/run/site/worker-*.sock".to_owned())),
            ("unix:///run/w.sock", Workers::Unix("/run/w.sock".to_owned())),
            ("tcp://workers:9100", tcp("workers", 9100..=9100)),
            ("tcp://[::1]:9100-9103", tcp("::1", 9100..=9103)),
        ] {
            assert_eq!(Workers::parse(text), Ok(workers), "{text}");
        }
        for wrong in [
            "",
            "unix:",
            "unix:/a/***",
            "tcp://workers",
            "tcp://:9100",
            "tcp://a:0",
            "tcp://a:9-8",
            "tcp://a:1-300",
            "http://a:1",
            "tcp://a:x",
            "tcp://u@a:1",
        ] {
            assert!(Workers::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn only_sockets_are_workers() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _one = std::os::unix::net::UnixListener::bind(at("worker-1.sock")).unwrap();
        let _two = std::os::unix::net::UnixListener::bind(at("worker-2.sock")).unwrap();
        std::fs::write(at("worker-3.sock"), "a file").unwrap();
        let workers = Workers::parse(&format!("unix:{}", at("worker-*.sock").display())).unwrap();
        let wanted = ["worker-1.sock", "worker-2.sock"].map(|name| Address::Unix(at(name)));
        assert_eq!(workers.look().await.unwrap(), (wanted.to_vec(), false));
        let (found, _) = Workers::parse("tcp://127.0.0.1:9100-9102").unwrap().look().await.unwrap();
        assert_eq!(found.len(), 3);
        assert!(Workers::parse("tcp://no-such-name.invalid:1").unwrap().look().await.is_err());
    }
}
