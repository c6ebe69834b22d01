//! Whether the runtime's threads get to what waits for them. A task that computes, or waits in a way that the runtime does
//! not know of, keeps its thread; whatever waits for that thread is late.
//!
//! Two ways to see it. Timers tell how late they fire: what every task feels. A thread of its own looks at each of the
//! runtime's, which also tells of one that never comes back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, RuntimeMetrics};
use tokio::time::{Instant as TimerInstant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::seldom::Seldom;

/// How often a timer is set, for each thread of the runtime.
const TIMER: Duration = Duration::from_millis(250);

/// How often the threads are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A thread that has come to no end of what it does for so long stands still.
const STALL: Duration = Duration::from_millis(250);

/// Starts to watch the runtime that this is called on.
pub(crate) fn start(metrics: &Arc<Metrics>, tasks: &TaskTracker, stop: &CancellationToken) {
    let threads = Handle::current().metrics();
    let count = u32::try_from(threads.num_workers()).unwrap_or(1).max(1);
    for number in 0..count {
        let timer = timer(Arc::clone(metrics), TIMER * number / count);
        tasks.spawn(stop.clone().run_until_cancelled_owned(timer));
    }
    let (metrics, stop) = (Arc::clone(metrics), stop.clone());
    tasks.spawn_blocking(move || watch(&threads, &metrics, &stop));
}

/// Notes how late it is woken. Never returns.
async fn timer(metrics: Arc<Metrics>, first: Duration) {
    let mut due = TimerInstant::now() + first;
    loop {
        sleep_until(due).await;
        let now = TimerInstant::now();
        metrics.event_loop_lag_seconds.observe(now.saturating_duration_since(due).as_secs_f64());
        due = now + TIMER;
    }
}

fn watch(threads: &RuntimeMetrics, metrics: &Metrics, stop: &CancellationToken) {
    static LINE: Seldom = Seldom::new();
    let mut seen: Vec<Seen> = (0..threads.num_workers()).map(|_| Seen::new(Instant::now())).collect();
    let mut before = Instant::now();
    while !stop.is_cancelled() {
        std::thread::sleep(LOOK);
        let now = Instant::now();
        // Where this one got no time either, it is the process that stood still, or the machine.
        let blind = now.duration_since(before) >= STALL;
        before = now;
        for (number, seen) in seen.iter_mut().enumerate() {
            if blind {
                seen.since = now;
            }
            let sign = (threads.worker_park_unpark_count(number), threads.worker_total_busy_duration(number));
            match seen.look(sign, now) {
                Look::Fine => {}
                Look::Stands => {
                    metrics.event_loop_stalls.inc();
                    seen.told = LINE.again();
                    if let Some(times) = seen.told {
                        tracing::warn!(
                            thread = number,
                            milliseconds = STALL.as_millis() as u64,
                            times,
                            "a thread of the runtime stands still: its sockets wait. A consumer that computes or blocks?"
                        );
                    }
                }
                Look::GoesOn(stood) if seen.told.take().is_some() => {
                    let milliseconds = stood.as_millis() as u64;
                    tracing::warn!(thread = number, milliseconds, "a thread of the runtime goes on");
                }
                Look::GoesOn(_) => {}
            }
        }
    }
}

/// What moves while a thread works: how often it has gone to sleep and been woken, and how long it was busy, which it adds
/// up whenever it sleeps or has done some tasks.
type Sign = (u64, Duration);

/// A thread, as it was seen last.
#[derive(Debug)]
struct Seen {
    sign: Sign,
    /// Since when nothing has moved.
    since: Instant,
    stands: bool,
    /// The log has a line of it.
    told: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Fine,
    Stands,
    /// After so long.
    GoesOn(Duration),
}

impl Seen {
    fn new(now: Instant) -> Self {
        Self { sign: (0, Duration::ZERO), since: now, stands: false, told: None }
    }

    fn look(&mut self, sign: Sign, now: Instant) -> Look {
        // One that sleeps is there at once when it is needed. The count is odd then.
        if sign != self.sign || sign.0 % 2 == 1 {
            let stood = now.duration_since(self.since);
            (self.sign, self.since) = (sign, now);
            return if std::mem::take(&mut self.stands) { Look::GoesOn(stood) } else { Look::Fine };
        }
        if self.stands || now.duration_since(self.since) < STALL {
            return Look::Fine;
        }
        self.stands = true;
        Look::Stands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stands_still_when_it_neither_sleeps_nor_comes_to_an_end() {
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let busy = Duration::from_millis;
        let mut seen = Seen::new(start);
        assert_eq!(seen.look((1, busy(0)), at(0)), Look::Fine);
        assert_eq!(seen.look((1, busy(0)), at(5000)), Look::Fine, "it sleeps");
        assert_eq!(seen.look((2, busy(0)), at(5050)), Look::Fine);
        assert_eq!(seen.look((2, busy(200)), at(5290)), Look::Fine, "it is busy, with many tasks");
        assert_eq!(seen.look((2, busy(200)), at(5500)), Look::Fine);
        assert_eq!(seen.look((2, busy(200)), at(5540)), Look::Stands);
        assert_eq!(seen.look((2, busy(200)), at(9000)), Look::Fine, "once for each time");
        assert_eq!(seen.look((2, busy(4000)), at(9290)), Look::GoesOn(busy(4000)));
        assert_eq!(seen.look((3, busy(4000)), at(9300)), Look::Fine);
    }
}
