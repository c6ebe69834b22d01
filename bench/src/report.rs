//! The table, for people and for programs.

use std::fmt::Write as _;

use serde::Serialize;

use crate::tally::{Tally, quantiles};
use crate::usage::Used;

/// What a scenario has shown.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: &'static str,
    /// What is counted: a delivery, a connect, or a socket for a second.
    pub(crate) unit: &'static str,
    pub(crate) sockets: usize,
    pub(crate) per_second: Option<f64>,
    /// CPU time per unit, µs.
    pub(crate) gateway_us: Option<f64>,
    pub(crate) redis_us: Option<f64>,
    pub(crate) database_us: Option<f64>,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) max_ms: Option<f64>,
    pub(crate) lost: Option<u64>,
    pub(crate) twice: Option<u64>,
    pub(crate) out_of_order: Option<u64>,
    /// Pss, KiB.
    pub(crate) kib_per_socket: Option<f64>,
    pub(crate) notes: Vec<String>,
}

impl Row {
    pub(crate) fn new(scenario: &'static str, unit: &'static str, sockets: usize) -> Self {
        Self { scenario, unit, sockets, ..Self::default() }
    }

    /// What `count` units have cost. A process that was not watched has no figure.
    pub(crate) fn cost(&mut self, used: &Used, count: f64) {
        let each = |used: std::time::Duration| (!used.is_zero()).then(|| used.as_secs_f64() * 1e6 / count);
        self.gateway_us = each(used.gateway);
        self.redis_us = each(used.redis);
        self.database_us = each(used.database);
        // Ticks are too rough to tell less, or of a moment.
        if used.other_cores > 0.3 && used.seconds > 1.0 {
            self.notes.push(format!("other processes used {:.1} cores", used.other_cores));
        }
    }

    /// Times in µs.
    pub(crate) fn latencies(&mut self, values: &mut [u32]) {
        let found = quantiles(values, [0.5, 0.99, 1.0]).map(|found| found.map(|value| f64::from(value) / 1e3));
        [self.p50_ms, self.p99_ms, self.max_ms] =
            found.map_or([None; 3], |[p50, p99, max]| [Some(p50), Some(p99), Some(max)]);
    }

    pub(crate) fn deliveries(&mut self, tally: &mut Tally) {
        self.latencies(&mut tally.latencies);
        (self.lost, self.twice, self.out_of_order) = (Some(tally.missing), Some(tally.twice), Some(tally.out_of_order));
        if tally.closed > 0 {
            self.notes.push(format!("{} sockets closed by the server", tally.closed));
        }
    }
}

/// All rows, with what they were measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) servers: String,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// One Markdown table.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("Machine: {}\nServers: {}\n\n", self.machine, self.servers);
        text.push_str(
            "| scenario | sockets | unit | units/s | gateway µs | Redis µs | database µs | p50 ms | p99 ms | max ms \
             | lost, twice, out of order | KiB/socket | notes |\n\
             | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n",
        );
        for row in &self.rows {
            let faults = match (row.lost, row.twice, row.out_of_order) {
                (Some(lost), Some(twice), Some(order)) => format!("{lost}, {twice}, {order}"),
                _ => String::new(),
            };
            // A `String` takes everything.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {faults} | {} | {} |",
                row.scenario,
                row.sockets,
                row.unit,
                row.per_second.map_or(String::new(), |value| format!("{value:.0}")),
                figure(row.gateway_us),
                figure(row.redis_us),
                figure(row.database_us),
                figure(row.p50_ms),
                figure(row.p99_ms),
                figure(row.max_ms),
                figure(row.kib_per_socket),
                row.notes.join("; "),
            );
        }
        text
    }
}

/// Three digits that mean something.
fn figure(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}
