//! A message to ourselves now and then: the only way to notice a subscription that answers every PING
//! and hears nothing, because what is published goes to another server.

use std::time::Duration;

use tokio::time::Instant;

use super::{registry::Topic, session::Kind};

/// So many misses in a row, and the connections are made anew.
const MISSES: u32 = 2;

pub(super) struct Probe {
    pub(super) topic: Topic,
    pub(super) kind: Kind,
    every: Duration,
    /// When to look next; `None` before the first connection.
    next: Option<Instant>,
    /// Whether the server does not let us subscribe to it.
    refused: bool,
    /// Whether one is on its way.
    awaited: bool,
    missed: u32,
}

/// What a look at the probe has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is not yet time.
    Early,
    /// The last one was heard, or there was none.
    Heard,
    /// The last one was not heard.
    Missed,
    /// Nor was the one before it.
    Deaf,
}

impl Probe {
    pub(super) fn new(topic: Topic, kind: Kind, every: Duration) -> Self {
        Self { topic, kind, every, next: None, refused: false, awaited: false, missed: 0 }
    }

    /// Starts anew, on a new connection.
    pub(super) fn rest(&mut self, now: Instant) {
        // Spread out, because the nodes of a site come back together.
        self.next = Some(now + self.every.mul_f64(0.5 + rand::random::<f64>() / 2.0));
        (self.awaited, self.missed) = (false, 0);
    }

    /// To be called often; anything but `Early` asks for the next probe to be sent.
    pub(super) fn look(&mut self, now: Instant) -> Verdict {
        if self.refused || self.next.is_none_or(|next| now < next) {
            return Verdict::Early;
        }
        self.next = Some(now + self.every);
        if !std::mem::take(&mut self.awaited) {
            return Verdict::Heard;
        }
        self.missed += 1;
        match self.missed {
            MISSES.. => Verdict::Deaf,
            _ => Verdict::Missed,
        }
    }

    /// One has been given to the publisher.
    pub(super) fn sent(&mut self) {
        self.awaited = true;
    }

    pub(super) fn heard(&mut self, topic: &[u8]) {
        if *self.topic == *topic {
            (self.awaited, self.missed) = (false, 0);
        }
    }

    pub(super) fn is_allowed(&self) -> bool {
        !self.refused
    }

    /// Whether the server lets us subscribe to it.
    pub(super) fn allow(&mut self, allowed: bool) {
        self.refused = !allowed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_misses_in_a_row_mean_deaf_and_any_answer_clears_them() {
        let every = Duration::from_secs(10);
        let topic: Topic = b"asgispecific.1".as_slice().into();
        let mut probe = Probe::new(topic, Kind::Plain, every);
        assert_eq!(probe.look(Instant::now()), Verdict::Early, "nothing before the first connection");
        probe.rest(Instant::now());
        assert_eq!(probe.look(Instant::now()), Verdict::Early);
        let mut next = async |sent: bool| {
            tokio::time::advance(every).await;
            let verdict = probe.look(Instant::now());
            if sent {
                probe.sent();
            }
            (verdict, probe.missed)
        };
        assert_eq!(next(true).await, (Verdict::Heard, 0));
        assert_eq!(next(true).await, (Verdict::Missed, 1));
        assert_eq!(next(false).await, (Verdict::Deaf, 2));
        probe.rest(Instant::now());
        for topic in [&b"asgispecific.1"[..], b"asgispecific.1", b"other"] {
            tokio::time::advance(every).await;
            assert_eq!(probe.look(Instant::now()), Verdict::Heard);
            probe.sent();
            probe.heard(topic);
        }
        tokio::time::advance(every).await;
        assert_eq!(probe.look(Instant::now()), Verdict::Missed, "another topic is no answer");
    }
}
