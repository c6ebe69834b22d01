//! What every program tells of its process.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Named as Prometheus' own clients name it, and read when it is asked for.
#[derive(Debug)]
pub(super) struct Process {
    /// Seconds since 1970.
    started: f64,
}

/// Ticks of the processor's time in a second: Linux says 100 to programs on every architecture there is.
const TICKS: f64 = 100.0;

impl Process {
    pub(super) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // The process began a little before, which its times and the system's tell.
        let age = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
            let began: f64 = fields(&stat)?.nth(19)?.parse().ok()?;
            let up: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
            Some(up - began / TICKS)
        });
        Self { started: now.as_secs_f64() - age.unwrap_or_default() }
    }
}

/// The fields of `/proc/self/stat` behind the name, which may hold anything.
fn fields(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

/// User and system time.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let ticks = fields(stat)?.skip(11).take(2).filter_map(|text| text.parse::<f64>().ok());
    Some(ticks.sum::<f64>() / TICKS)
}

/// What a line of `/proc/self/status` says in KiB.
fn bytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (stat, status, limits) = (read("stat"), read("status"), read("limits"));
        let threads = fields(&stat).and_then(|mut fields| fields.nth(17)?.parse::<f64>().ok());
        let files = std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
        let limit = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
            match line.split_whitespace().next()? {
                // As the clients of other languages have it.
                "unlimited" => Some(-1.0),
                number => number.parse::<f64>().ok(),
            }
        };
        if let Some(seconds) = cpu_seconds(&stat) {
            let counter = ConstCounter::new(seconds);
            let metric = encoder.encode_descriptor(
                "process_cpu_seconds",
                "User and system time of the process",
                None,
                counter.metric_type(),
            )?;
            counter.encode(metric)?;
        }
        for (name, help, value) in [
            ("process_open_fds", "Open files of the process", files),
            ("process_max_fds", "The most there may be", limit("Max open files")),
            ("process_virtual_memory_bytes", "Virtual memory of the process", bytes(&status, "VmSize:")),
            ("process_virtual_memory_max_bytes", "The most it may be, -1 for no limit", limit("Max address space")),
            ("process_resident_memory_bytes", "Resident memory of the process", bytes(&status, "VmRSS:")),
            ("process_threads", "Threads of the process", threads),
            ("process_start_time_seconds", "When the process began, since 1970", Some(self.started)),
        ] {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Seconds of the processor's time that the process has taken, and bytes of memory that it has now.
pub(crate) fn process_usage() -> (f64, u64) {
    let (seconds, bytes) = (cpu_seconds(&read("stat")), bytes(&read("status"), "VmRSS:"));
    (seconds.unwrap_or_default(), bytes.unwrap_or_default() as u64)
}
