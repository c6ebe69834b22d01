//! What things cost: the CPU time of processes, and what Redis has counted.

use std::{fs, time::Duration};

use testkit::redis::RedisServer;

/// The CPU time all threads of a process have used so far; to the nanosecond for threads that sleep.
pub(crate) fn cpu(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let nanos = threads.flatten().map(|thread| {
        let stat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        stat.split(' ').next().and_then(|run| run.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanos.sum())
}

/// Redis' counters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Commands, those inside scripts too.
    pub(crate) commands: i64,
    pub(crate) bytes_in: i64,
    pub(crate) bytes_out: i64,
}

impl Counts {
    fn read(redis: &RedisServer) -> Self {
        let mut counts = Self::default();
        for line in redis.cli(&["INFO", "commandstats"]).lines() {
            // cmdstat_zadd:calls=1,usec=2,…
            if let Some((name, rest)) = line.split_once(":calls=")
                && name != "cmdstat_info"
            {
                counts.commands += rest.split(',').next().and_then(|calls| calls.parse().ok()).unwrap_or(0);
            }
        }
        for line in redis.cli(&["INFO", "stats"]).lines() {
            match line.split_once(':') {
                Some(("total_net_input_bytes", bytes)) => counts.bytes_in = bytes.trim().parse().unwrap(),
                Some(("total_net_output_bytes", bytes)) => counts.bytes_out = bytes.trim().parse().unwrap(),
                _ => {}
            }
        }
        counts
    }

    fn minus(self, other: Self) -> Self {
        Self {
            commands: self.commands - other.commands,
            bytes_in: self.bytes_in - other.bytes_in,
            bytes_out: self.bytes_out - other.bytes_out,
        }
    }
}

/// Counts from when it was made, without what counting itself costs.
pub(crate) struct Counter {
    start: Counts,
    own: Counts,
}

impl Counter {
    pub(crate) fn start(redis: &RedisServer) -> Self {
        let before = Counts::read(redis);
        let start = Counts::read(redis);
        Self { start, own: start.minus(before) }
    }

    pub(crate) fn stop(self, redis: &RedisServer) -> Counts {
        Counts::read(redis).minus(self.start).minus(self.own)
    }
}
