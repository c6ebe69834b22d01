//! The log of the process: lines to standard error, which may hang without holding up anybody.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for standard error to take them; more are dropped, and counted.
const WAITING: usize = 16_384;

/// The same in bytes.
const WAITING_BYTES: usize = 8 << 20;

/// How often the count is taken over into the metrics.
const EVERY: Duration = Duration::from_secs(1);

/// How long the last lines may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Dropped, it writes what waits, if somebody takes it.
pub(crate) struct Log {
    writer: Option<WorkerGuard>,
    waiting: Arc<Waiting>,
}

/// What waits, and what found no room.
#[derive(Default)]
struct Waiting {
    lines: AtomicUsize,
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

impl Waiting {
    /// Whether there is room for one more line.
    fn add(&self, bytes: usize) -> bool {
        let lines = self.lines.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = lines <= WAITING && all <= WAITING_BYTES;
        if !fits {
            self.remove(bytes);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    fn remove(&self, bytes: usize) {
        self.lines.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Where lines go in; each comes in one piece.
#[derive(Clone)]
struct Entrance {
    lines: NonBlocking,
    waiting: Arc<Waiting>,
}

impl Write for Entrance {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.waiting.add(line.len()) { self.lines.write(line) } else { Ok(line.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where they come out.
struct Exit<W> {
    to: W,
    waiting: Arc<Waiting>,
}

impl<W: Write> Write for Exit<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> std::io::Result<()> {
        let written = self.to.write_all(line);
        self.waiting.remove(line.len());
        written
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
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
    let waiting = Arc::new(Waiting::default());
    let exit = Exit { to: std::io::stderr(), waiting: Arc::clone(&waiting) };
    let (lines, writer) = NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("log").finish(exit);
    let entrance = Entrance { lines, waiting: Arc::clone(&waiting) };
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,warp=off,sea_orm_migration=warn"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || entrance.clone())
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
    Log { writer: Some(writer), waiting }
}

impl Log {
    /// Tells how many lines have been dropped so far, again and again. Never returns.
    pub(crate) async fn count_dropped(&self, tell: impl Fn(u64)) {
        loop {
            tokio::time::sleep(EVERY).await;
            tell(self.waiting.dropped.load(Ordering::Relaxed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_wait_are_bounded_in_number_and_in_bytes() {
        for (bytes, most) in [(10, WAITING), (1 << 20, WAITING_BYTES >> 20)] {
            let waiting = Arc::new(Waiting::default());
            let taken = (0..WAITING + 10).filter(|_| waiting.add(bytes)).count();
            assert_eq!((taken, waiting.dropped.load(Ordering::Relaxed)), (most, (WAITING + 10 - most) as u64));
            let mut exit = Exit { to: Vec::new(), waiting: Arc::clone(&waiting) };
            exit.write_all(&vec![b'x'; bytes]).unwrap();
            assert!(waiting.add(bytes) && !waiting.add(bytes));
            assert_eq!(exit.to.len(), bytes);
        }
    }
}
