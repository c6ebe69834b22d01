//! The log of the process: lines to standard error, which may hang without holding up anybody. What cannot be seen, or
//! changes how the rest is seen, is written as its number: names may come from anybody.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::lines;

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
    /// Sets another filter.
    filter: Box<dyn Fn(EnvFilter) + Send + Sync>,
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
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.waiting.add(line.len()) { self.lines.write(line) } else { Ok(line.len()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where they come out.
struct Exit<W> {
    to: W,
    waiting: Arc<Waiting>,
}

impl<W: Write> Write for Exit<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let written = self.to.write_all(line);
        self.waiting.remove(line.len());
        if written.is_err() {
            // The terminal or whoever took it has gone; the node goes on.
            self.waiting.dropped.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
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

/// What passes: this level or these directives, else what `RUST_LOG` says, else `info`.
fn filter(level: Option<&str>) -> EnvFilter {
    let own = |level: &str| match level.contains(['=', ',']) {
        true => level.to_owned(),
        false => format!("{level},warp=off,sea_orm_migration=warn,sqlx=error"),
    };
    let given = level.map(own).or_else(|| std::env::var("RUST_LOG").ok().filter(|given| !given.is_empty()));
    given.and_then(|given| EnvFilter::try_new(given).ok()).unwrap_or_else(|| EnvFilter::new(own("info")))
}

/// Starts the thread that writes.
pub(crate) fn start(json: bool, level: Option<&str>) -> Log {
    let waiting = Arc::new(Waiting::default());
    let exit = Exit { to: io::stderr(), waiting: Arc::clone(&waiting) };
    let (lines, writer) = NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("log").finish(exit);
    let entrance = Entrance { lines, waiting: Arc::clone(&waiting) };
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    let shown = match (json, ansi) {
        (true, _) => Shown::Json,
        (false, true) => Shown::Colours,
        (false, false) => Shown::Text,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(move || Visible { lines: entrance.clone(), shown })
        .with_ansi(ansi);
    // A second subscriber in this process would be a mistake of ours, not the user's.
    let filter: Box<dyn Fn(EnvFilter) + Send + Sync> = if json {
        let subscriber = subscriber.json().map_event_format(|format| About { format, json }).with_filter_reloading();
        let handle = subscriber.reload_handle();
        let _ = subscriber.try_init();
        Box::new(move |filter| drop(handle.reload(filter)))
    } else {
        let subscriber = subscriber.with_target(false);
        // The writer that it gets says nothing of colours.
        let with_colours = |format: Format<Full, SystemTime>| About { format: format.with_ansi(ansi), json };
        let subscriber = subscriber.map_event_format(with_colours).with_filter_reloading();
        let handle = subscriber.reload_handle();
        let _ = subscriber.try_init();
        Box::new(move |filter| drop(handle.reload(filter)))
    };
    // The usual hook writes to standard error itself.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => {
                tracing::error!("{panic}");
                backtrace.to_string().lines().for_each(|line| tracing::error!("{line}"));
            }
            _ => tracing::error!("{panic}"),
        }
    }));
    Log { writer: Some(writer), waiting, filter }
}

/// A format whose lines also say which connection they are about.
struct About<F> {
    format: F,
    json: bool,
}

/// What stands before the fields of a line in JSON. Before it there are only the time and the level.
const FIELDS: &str = "\"fields\":{";

impl<S, N, F> FormatEvent<S, N> for About<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let has = event.metadata().fields();
        let more = lines::fields(|name| has.field(name).is_some(), self.json);
        if more.is_empty() {
            return self.format.format_event(context, out, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        match line.find(FIELDS) {
            Some(at) if self.json => {
                let (before, fields) = line.split_at(at + FIELDS.len());
                let more = if fields.starts_with('}') { more.trim_end_matches(',') } else { &more };
                write!(out, "{before}{more}{fields}")
            }
            _ => writeln!(out, "{}{more}", line.trim_end_matches('\n')),
        }
    }
}

/// Writes lines in which everything can be seen.
struct Visible {
    lines: Entrance,
    shown: Shown,
}

/// What a line may hold beside what can be seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Json,
    Text,
    /// Text with the colours of a terminal.
    Colours,
}

impl Write for Visible {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.write_all(&visible(line, self.shown))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }
}

/// Line ends inside of a line, directions, separators, marks without width, tags and the like as JSON or Rust would
/// escape them: whoever chooses a text of a line cannot make a second line of it.
fn visible(line: &[u8], shown: Shown) -> Cow<'_, [u8]> {
    let (text, end) = line.strip_suffix(b"\n").map_or((line, ""), |text| (text, "\n"));
    if text.iter().all(|byte| byte.is_ascii() && !byte.is_ascii_control()) {
        return Cow::Borrowed(line);
    }
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(line.len());
    for (at, character) in text.char_indices() {
        // Writing to a string does not fail.
        let _ = match character {
            seen if is_visible(seen) => out.write_char(seen),
            '\x1b' if shown == Shown::Colours && is_colour(&text[at..]) => out.write_char('\x1b'),
            hidden if shown == Shown::Json => {
                hidden.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
            }
            hidden => write!(out, "{}", hidden.escape_default()),
        };
    }
    out.push_str(end);
    Cow::Owned(out.into_bytes())
}

/// Whether the character shows in a text; one that combines with a letter does.
fn is_visible(character: char) -> bool {
    if character.is_ascii() {
        return !character.is_ascii_control();
    }
    let behind_a_letter: String = ['a', character].into_iter().collect();
    behind_a_letter.escape_debug().count() == 2
}

/// Whether the text begins with what changes the colour of a terminal, and does nothing else.
fn is_colour(text: &str) -> bool {
    let code =
        text.strip_prefix("\x1b[").map(|code| code.trim_start_matches(|it: char| it.is_ascii_digit() || it == ';'));
    code.is_some_and(|rest| rest.starts_with('m'))
}

impl Log {
    /// From now on this is the level.
    pub(crate) fn set_level(&self, level: Option<&str>) {
        (self.filter)(filter(level));
    }

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

    #[test]
    fn what_cannot_be_seen_is_written_as_its_number() {
        let line = "Łódź नमस्ते a\u{301} 🦀 \u{202e}x\u{2028}\u{feff}\u{e0041}\u{85}\n";
        let text = String::from_utf8(visible(line.as_bytes(), Shown::Text).into_owned()).unwrap();
        assert_eq!(text, "Łódź नमस्ते a\u{301} 🦀 \\u{202e}x\\u{2028}\\u{feff}\\u{e0041}\\u{85}\n");
        let json = visible(b"\"\xe2\x80\xae\xf3\xa0\x81\x81\"", Shown::Json).into_owned();
        assert_eq!(String::from_utf8(json).unwrap(), r#""\u202e\udb40\udc41""#);
        assert!(matches!(visible(b"plain\n", Shown::Text), Cow::Borrowed(_)));
    }

    #[test]
    fn no_text_of_a_line_makes_a_second_line_or_moves_the_cursor() {
        let line = b"reason=a\r\n2026-01-01 INFO WSCONNECT\x1b[31m\x1b[2J\x1b[\tz\x7f\n";
        let text = |shown| String::from_utf8(visible(line, shown).into_owned()).unwrap();
        let plain = "reason=a\\r\\n2026-01-01 INFO WSCONNECT\\u{1b}[31m\\u{1b}[2J\\u{1b}[\\tz\\u{7f}\n";
        assert_eq!(text(Shown::Text), plain);
        assert_eq!(text(Shown::Colours), plain.replace("\\u{1b}[31m", "\x1b[31m"));
    }
}
