//! How far an import is: a bar on a terminal, a line now and then elsewhere. What is wrong comes in between.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often the bar moves, and how often there is a line.
const BAR: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(5);

/// Columns of the bar.
const WIDTH: usize = 30;

pub(super) struct Progress {
    out: Box<dyn Write + Send>,
    is_bar: bool,
    what: &'static str,
    began: Instant,
    shown: Option<Instant>,
    /// The bar is what stands in the last line.
    stands: bool,
}

impl Progress {
    /// On standard error.
    pub(super) fn new() -> Self {
        let out = std::io::stderr();
        Self::on(out.is_terminal(), Box::new(out))
    }

    fn on(is_bar: bool, out: Box<dyn Write + Send>) -> Self {
        Self { out, is_bar, what: "", began: Instant::now(), shown: None, stands: false }
    }

    /// What is done from now on.
    pub(super) fn begin(&mut self, what: &'static str) {
        self.end();
        (self.what, self.began, self.shown) = (what, Instant::now(), None);
    }

    /// So many of so many bytes are done, if it is known how many there are, and so many lines.
    pub(super) fn at(&mut self, bytes: u64, all: Option<u64>, lines: u64) {
        let every = if self.is_bar { BAR } else { LINE };
        let since = self.shown.unwrap_or(self.began);
        if since.elapsed() < every {
            return;
        }
        self.shown = Some(Instant::now());
        let text = text(self.what, bytes, all, lines, self.began.elapsed(), self.is_bar);
        let _ = if self.is_bar { write!(self.out, "\r\x1b[K{text}") } else { writeln!(self.out, "{text}") };
        let _ = self.out.flush();
        self.stands = self.is_bar;
    }

    /// A line of its own. Whoever reads it may have gone, which ends nothing.
    pub(super) fn say(&mut self, line: impl Display) {
        self.end();
        let _ = writeln!(self.out, "{line}");
    }

    /// Takes the bar away.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.stands) {
            let _ = write!(self.out, "\r\x1b[K");
            let _ = self.out.flush();
        }
    }
}

fn text(what: &str, bytes: u64, all: Option<u64>, lines: u64, took: Duration, bar: bool) -> String {
    let speed = lines as f64 / took.as_secs_f64().max(0.001);
    let Some(all) = all.filter(|all| *all > 0) else {
        return format!("{what}: {lines} lines, {speed:.0} a second");
    };
    let part = (bytes as f64 / all as f64).min(1.0);
    let left = took.mul_f64((1.0 - part) / part.max(0.001)).as_secs();
    let full = (part * WIDTH as f64) as usize;
    let bar = if bar { format!("[{}{}] ", "#".repeat(full), ".".repeat(WIDTH - full)) } else { String::new() };
    let percent = part * 100.0;
    format!("{what}: {bar}{percent:.0} %, {lines} lines, {speed:.0} a second, {}:{:02} left", left / 60, left % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_for_people_and_lines_for_a_log() {
        let took = Duration::from_secs(10);
        let bar = "storing: [##########....................] 33 %, 1000 lines, 100 a second, 0:20 left";
        assert_eq!(text("storing", 1, Some(3), 1000, took, true), bar);
        assert_eq!(
            text("storing", 3, Some(3), 1000, took, false),
            "storing: 100 %, 1000 lines, 100 a second, 0:00 left"
        );
        assert_eq!(text("reading", 1, None, 1000, took, true), "reading: 1000 lines, 100 a second");
    }
}
