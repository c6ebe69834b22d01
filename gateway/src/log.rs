//! The log of the process: lines to standard error, which may hang without holding up anybody.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for standard error to take them; more are dropped, and counted.
const WAITING: usize = 16_384;

/// How often the count is taken over into the metrics.
const EVERY: Duration = Duration::from_secs(1);

/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Dropped, it writes what waits, if somebody takes it.
pub(crate) struct Log {
    writer: Option<WorkerGuard>,
    dropped: ErrorCounter,
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, written) = std::sync::mpsc::channel();
        let writer = self.writer.take();
        // Not here: it prints when it gets no answer, and then waits for who reads that.
        std::thread::spawn(move || {
            drop(writer);
            done.send(())
        });
        let _ = written.recv_timeout(LAST_LINES);
    }
}

/// Starts the thread that writes.
pub(crate) fn start(json: bool) -> Log {
    let (lines, writer) =
        NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("log").finish(std::io::stderr());
    let dropped = lines.error_counter();
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,warp=off,sea_orm_migration=warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // A second subscriber in this process would be a mistake of ours, not the user's.
    let _ = if json { subscriber.json().try_init() } else { subscriber.with_target(false).try_init() };
    // The usual hook writes to standard error itself.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => tracing::error!("{panic}\n{backtrace}"),
            _ => tracing::error!("{panic}"),
        }
    }));
    Log { writer: Some(writer), dropped }
}

impl Log {
    /// Tells how many lines have been dropped so far, again and again. Never returns.
    pub(crate) async fn count_dropped(&self, tell: impl Fn(u64)) {
        loop {
            tokio::time::sleep(EVERY).await;
            tell(self.dropped.dropped_lines() as u64);
        }
    }
}
