//! How far the clocks of the database and of Redis are from this node's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::time::{sleep, timeout};

use crate::health::Skew;
use crate::node::Node;

/// How often they are compared; sooner after a failure.
const EVERY: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(5);

/// How often the node's own clock is looked at: when it has jumped, all are compared at once.
const LOOK: Duration = Duration::from_secs(1);
const JUMP: Duration = Duration::from_secs(1);

/// A start waits no longer for it.
const AT_START: Duration = Duration::from_secs(2);

/// A clock is read again when its answer took longer, a few times.
const SOON: Duration = Duration::from_millis(50);
const READINGS: usize = 3;

/// Why a clock could not be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("the database's clock cannot be read")]
    Database(#[from] persistence::StoreError),
    #[error("Redis' clock cannot be read")]
    Redis(#[from] crate::redis::RedisFailed),
    #[error("the clocks were not read in time")]
    Late,
}

/// The first comparison.
pub(crate) async fn at_start(node: &Node) {
    let compared = timeout(AT_START, compare(node)).await.unwrap_or(Err(Unread::Late));
    node.health.note("clocks", &compared);
}

/// Compares again and again until the node stops.
pub(crate) async fn watch(node: Arc<Node>) {
    let (mut wait, mut system) = (EVERY, node.clock.system_at_start());
    loop {
        let since = Instant::now();
        while since.elapsed() < wait && node.clock.system_at_start().abs_diff(system) < JUMP.as_micros() as u64 {
            sleep(LOOK).await;
        }
        system = node.clock.system_at_start();
        let compared = compare(&node).await;
        node.health.note("clocks", &compared);
        wait = if compared.is_ok() { EVERY } else { AGAIN };
    }
}

/// Reads both, also when one of them cannot be read.
async fn compare(node: &Node) -> Result<(), Unread> {
    let database = async {
        let reading = Reading::of(|| node.store.clock()).await?;
        node.clock.set_database(reading.time, reading.ago());
        node.health.note_clock("database", reading.skew());
        Ok(())
    };
    let redis = async {
        if let Some(server) = &node.redis {
            node.health.note_clock("redis", Reading::of(|| server.time()).await?.skew());
        }
        Ok(())
    };
    let (database, redis) = tokio::join!(database, redis);
    database.and(redis)
}

/// What another clock has said.
struct Reading {
    time: OffsetDateTime,
    /// When the answer came, by both of the node's clocks, and how long after the question.
    here: OffsetDateTime,
    at: Instant,
    took: Duration,
}

impl Reading {
    /// Of a few readings the one that took the least, as half of that may be wrong.
    async fn of<E, F: Future<Output = Result<OffsetDateTime, E>>>(read: impl Fn() -> F) -> Result<Self, E> {
        let mut best = Self::once(read()).await?;
        for _ in 1..READINGS {
            if best.took <= SOON {
                break;
            }
            let reading = Self::once(read()).await?;
            if reading.took < best.took {
                best = reading;
            }
        }
        Ok(best)
    }

    async fn once<E>(read: impl Future<Output = Result<OffsetDateTime, E>>) -> Result<Self, E> {
        let asked = Instant::now();
        let time = read.await?;
        Ok(Self { time, here: OffsetDateTime::now_utc(), at: Instant::now(), took: asked.elapsed() })
    }

    /// How long ago it was what was said: half of the way lies behind the answer.
    fn ago(&self) -> Duration {
        self.took / 2 + self.at.elapsed()
    }

    fn skew(&self) -> Skew {
        let half = self.took / 2;
        Skew { seconds: (self.time + half - self.here).as_seconds_f64(), uncertainty: half.as_secs_f64() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_of_the_way_is_taken_off_and_a_slow_answer_is_asked_for_again() {
        let asked = std::cell::Cell::new(0);
        let ahead = time::Duration::hours(1);
        // The first answer is long under way, the second is not.
        let reading = Reading::of(|| async {
            asked.set(asked.get() + 1);
            let said = OffsetDateTime::now_utc() + ahead;
            sleep(Duration::from_millis(if asked.get() == 1 { 300 } else { 0 })).await;
            Ok::<_, ()>(said)
        });
        let skew = reading.await.unwrap().skew();
        assert!(asked.get() >= 2);
        assert!((skew.seconds - 3600.0).abs() <= skew.uncertainty + 0.5, "{skew:?}");
    }
}
