//! What processes use: CPU time by their own clocks, and memory.

use std::fs;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Whose CPU time and memory are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched {
    pub(crate) gateway: Vec<u32>,
    pub(crate) redis: Vec<u32>,
    pub(crate) database: Vec<u32>,
}

/// What has been used up to a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: Instant,
    gateway: Duration,
    redis: Duration,
    database: Duration,
    own: Duration,
    /// All processes of the machine.
    all: Duration,
    /// Pss of the gateway, KiB.
    pub(crate) memory: u64,
}

/// What was used between two moments.
pub(crate) struct Used {
    pub(crate) gateway: Duration,
    pub(crate) redis: Duration,
    pub(crate) database: Duration,
    pub(crate) seconds: f64,
    /// Cores that neither the servers nor the generator had.
    pub(crate) other_cores: f64,
}

impl Watched {
    pub(crate) fn read(&self) -> Reading {
        let cpu = |pids: &[u32]| pids.iter().flat_map(|&pid| tree(pid)).map(cpu_time).sum();
        Reading {
            at: Instant::now(),
            gateway: cpu(&self.gateway),
            redis: cpu(&self.redis),
            database: cpu(&self.database),
            own: cpu_time(std::process::id()),
            all: machine(),
            memory: self.gateway.iter().flat_map(|&pid| tree(pid)).map(pss).sum(),
        }
    }
}

impl Reading {
    pub(crate) fn until(&self, end: &Self) -> Used {
        let (gateway, redis, database) = (
            end.gateway.saturating_sub(self.gateway),
            end.redis.saturating_sub(self.redis),
            end.database - self.database,
        );
        let known = gateway + redis + database + (end.own - self.own);
        let seconds = (end.at - self.at).as_secs_f64();
        let other_cores = (end.all - self.all).saturating_sub(known).as_secs_f64() / seconds;
        Used { gateway, redis, database, seconds, other_cores }
    }
}

/// A process and those it has started.
fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    found
}

/// All that a process has run, also in threads that have ended; nothing for one that is gone.
fn cpu_time(pid: u32) -> Duration {
    let clock = i32::try_from(pid).ok().and_then(|pid| ClockId::pid_cpu_clock_id(Pid::from_raw(pid)).ok());
    clock.and_then(|clock| clock.now().ok()).map_or(Duration::ZERO, Duration::from)
}

/// The process' share of memory, KiB: pages that are shared count in parts.
fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Busy time of all cores, as the kernel counts it by ticks: rough.
fn machine() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .map(|line| line.split_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect())
        .unwrap_or_default();
    // user nice system idle iowait irq softirq steal
    let busy: u64 = ticks.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, ticks)| ticks).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Duration::from_secs_f64(busy as f64 / per_second as f64)
}

/// The machine in a line: processor, cores, kernel.
pub(crate) fn machine_name() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores, Linux {}", model.map_or("unknown processor", |(_, model)| model), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_time_and_memory() {
        let watched = Watched { gateway: vec![std::process::id()], ..Watched::default() };
        let before = watched.read();
        let mut sum = 0_u64;
        while before.at.elapsed() < Duration::from_millis(30) {
            sum = std::hint::black_box(sum + 1);
        }
        let used = before.until(&watched.read());
        assert!(used.gateway > Duration::ZERO, "{:?}", used.gateway);
        assert!(watched.read().memory > 100);
    }
}
