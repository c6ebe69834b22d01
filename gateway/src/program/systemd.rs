//! What the service manager is told (`sd_notify`): ready, leaving, alive. Without one, nothing.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// What follows the drain: the last writes, and leaving the groups on the layer.
const LAST_STEPS: Duration = Duration::from_secs(10);

/// Whom to tell, and how often that we live.
pub(crate) struct Systemd {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// As the environment says.
    pub(crate) fn from_env() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let socket = variable("NOTIFY_SOCKET").and_then(|path| match connect(&path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(path, %error, "the service manager is not told anything");
                None
            }
        });
        let meant = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = variable("WATCHDOG_USEC").and_then(|time| time.parse().ok()).filter(|time| meant && *time > 0);
        Self { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    pub(crate) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// Says that the node leaves, and how long that may take. A manager that waits for less waits for this; one that
    /// waits for more does not change.
    pub(crate) fn stopping(&self, at_most: Duration) {
        let micros = at_most.saturating_add(LAST_STEPS).as_micros();
        self.tell(&format!("STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={micros}"));
    }

    /// Says that the process lives, twice in the time in which it must be heard, for as long as its threads get to their work.
    pub(crate) async fn beat(&self) -> Infallible {
        let (Some(time), Some(_)) = (self.watchdog, &self.socket) else { return std::future::pending().await };
        let mut beats = interval(time / 2);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut workers = JoinSet::new();
        loop {
            beats.tick().await;
            // By way of a worker thread: this one alone says nothing of the others.
            workers.spawn(async {});
            if workers.join_next().await.is_some_and(|done| done.is_ok()) {
                self.tell("WATCHDOG=1");
            }
        }
    }

    fn tell(&self, what: &str) {
        let Some(socket) = &self.socket else { return };
        // It has a queue, and a full one is no reason to wait.
        if let Err(error) = socket.send(what.as_bytes()) {
            tracing::debug!(what, %error, "the service manager did not take it");
        }
    }
}

/// A path, or on Linux `@` and a name.
fn connect(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&match path.strip_prefix('@') {
        Some(name) => abstract_address(name)?,
        None => SocketAddr::from_pathname(path)?,
    })?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
