//! CPU time of processes.

use std::fs;
use std::time::Duration;

/// The CPU time that four processes with their children have used.
pub(crate) struct Cpu([Duration; 4]);

impl Cpu {
    pub(crate) fn read(pids: [Option<u32>; 4]) -> Self {
        Self(pids.map(|pid| pid.map(cpu_of).unwrap_or_default()))
    }

    pub(crate) fn since(&self, before: &Self) -> [Duration; 4] {
        std::array::from_fn(|at| self.0[at].saturating_sub(before.0[at]))
    }
}

/// What a process and its children have used so far. The loader is a child of the node, and not counted
/// with it.
pub(crate) fn cpu_of(pid: u32) -> Duration {
    let children = if pid == std::process::id() { Vec::new() } else { children(pid) };
    children.into_iter().map(own).sum::<Duration>() + own(pid)
}

fn own(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = threads.map(|thread| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        stat.split(' ').next().and_then(|run| run.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanos.sum())
}

fn children(pid: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_child = |child: &u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // "pid (name) state parent …"; the name may hold anything.
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)) == Some(&pid.to_string())
    };
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_child).collect()
}
