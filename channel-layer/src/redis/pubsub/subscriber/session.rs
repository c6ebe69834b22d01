//! One connection's conversation: what was asked, in which order, and what the answers mean.

use std::{collections::VecDeque, io};

use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::registry::Topic;
use crate::redis::wire::{self, Items, Reply};

/// How many topics one SUBSCRIBE names.
const BATCH: usize = 500;
/// With more than this unsent, no further orders are taken.
const CONGESTED: usize = 1 << 20;
/// With this much more unsent than a new connection had to be told at first, it is given up.
const HOPELESS: usize = 16 << 20;

/// How a topic is subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// SUBSCRIBE.
    Plain,
    /// SSUBSCRIBE: in a cluster, heard only from the nodes that serve the topic's slot.
    Sharded,
}

#[derive(Default)]
pub(super) struct Session {
    asked: VecDeque<Asked>,
    /// Subscriptions asked for and not yet confirmed, by topic. A topic that was left and joined
    /// again counts only with its last confirmation.
    open: std::collections::HashMap<Topic, u32>,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// Whether anything was written since the last look.
    moving: bool,
    /// How much had to be told at first.
    at_first: usize,
}

enum Asked {
    Subscribe(std::vec::IntoIter<Topic>),
    Psubscribe(u64),
    /// This many confirmations that interest nobody.
    Unsubscribe(usize),
    Sunsubscribe(Topic),
    Ping,
    /// A PING behind all subscriptions of a new connection.
    Restored,
}

/// What an answer means.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    Message {
        topic: &'a [u8],
        payload: &'a [u8],
    },
    PatternMessage {
        pattern: &'a [u8],
        topic: &'a [u8],
        payload: &'a [u8],
    },
    Confirmed(Topic),
    RelayConfirmed(u64),
    Restored,
    /// The server has ended a subscription without being asked: the topic's slot has gone elsewhere.
    Moved(Topic),
    Refused {
        topics: Vec<Topic>,
        why: String,
    },
    Nothing,
}

/// Why the conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The answers do not fit the questions.
    #[error("the server's answer fits no question: {0}")]
    OutOfStep(String),
    /// A relay's pattern or a PING was refused.
    #[error("the server refused: {0}")]
    Refused(String),
}

impl Session {
    pub(super) fn subscribe(&mut self, kind: Kind, topics: &[Topic]) {
        let (name, batch) = match kind {
            Kind::Plain => (&b"SUBSCRIBE"[..], BATCH),
            // One command must not name topics of several slots.
            Kind::Sharded => (&b"SSUBSCRIBE"[..], 1),
        };
        for topics in topics.chunks(batch) {
            self.command(name, topics);
            for topic in topics {
                *self.open.entry(topic.clone()).or_default() += 1;
            }
            let asked: Vec<Topic> = topics.to_vec();
            self.asked.push_back(Asked::Subscribe(asked.into_iter()));
        }
    }

    pub(super) fn unsubscribe(&mut self, kind: Kind, topics: &[Topic]) {
        match kind {
            Kind::Plain => topics.chunks(BATCH).for_each(|topics| {
                self.command(b"UNSUBSCRIBE", topics);
                self.asked.push_back(Asked::Unsubscribe(topics.len()));
            }),
            Kind::Sharded => topics.iter().for_each(|topic| {
                self.command(b"SUNSUBSCRIBE", std::slice::from_ref(topic));
                self.asked.push_back(Asked::Sunsubscribe(topic.clone()));
            }),
        }
    }

    fn command(&mut self, name: &[u8], topics: &[Topic]) {
        let words: Vec<&[u8]> = [name].into_iter().chain(topics.iter().map(|topic| &**topic)).collect();
        wire::command(&mut self.out, words.into_iter());
    }

    pub(super) fn psubscribe(&mut self, relay: u64, pattern: &[u8]) {
        wire::command(&mut self.out, [&b"PSUBSCRIBE"[..], pattern].into_iter());
        self.asked.push_back(Asked::Psubscribe(relay));
    }

    pub(super) fn punsubscribe(&mut self, pattern: &[u8]) {
        wire::command(&mut self.out, [&b"PUNSUBSCRIBE"[..], pattern].into_iter());
        self.asked.push_back(Asked::Unsubscribe(1));
    }

    pub(super) fn ping(&mut self) {
        wire::command(&mut self.out, [&b"PING"[..]].into_iter());
        self.asked.push_back(Asked::Ping);
    }

    /// Asks for a sign that everything asked so far is in place.
    pub(super) fn mark_restored(&mut self) {
        wire::command(&mut self.out, [&b"PING"[..]].into_iter());
        self.asked.push_back(Asked::Restored);
        self.at_first = self.out.len();
    }

    pub(super) fn has_output(&self) -> bool {
        !self.out.is_empty() || self.unflushed
    }

    pub(super) fn is_congested(&self) -> bool {
        self.out.len() > CONGESTED
    }

    /// Whether so much is unsent that the peer can hardly be reading.
    pub(super) fn is_hopeless(&self) -> bool {
        self.out.len() > self.at_first + HOPELESS
    }

    /// Whether anything was written since the last call.
    pub(super) fn has_moved(&mut self) -> bool {
        std::mem::take(&mut self.moving)
    }

    /// Writes some of what is to be sent. Cancel-safe.
    pub(super) async fn write(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        if self.out.is_empty() {
            to.flush().await?;
            self.unflushed = false;
            return Ok(());
        }
        self.written += to.write(&self.out[self.written..]).await?;
        self.moving = true;
        if self.written == self.out.len() {
            self.out.clear();
            self.out.shrink_to(64 << 10);
            self.written = 0;
            self.unflushed = true;
        }
        Ok(())
    }

    pub(super) fn hear<'a>(&mut self, reply: Reply<'a>) -> Result<Heard<'a>, Broken> {
        match reply {
            Reply::Array(items) => self.hear_items(&items),
            Reply::Simple(_) => self.pong(),
            Reply::Error(text) => self.refused(&String::from_utf8_lossy(text)),
            Reply::Int(_) | Reply::Bulk(_) => Err(Broken::OutOfStep(format!("{reply:?}"))),
        }
    }

    fn hear_items<'a>(&mut self, items: &Items<'a>) -> Result<Heard<'a>, Broken> {
        match *items.as_slice() {
            [b"message" | b"smessage", topic, payload] => Ok(Heard::Message { topic, payload }),
            [b"pmessage", pattern, topic, payload] => Ok(Heard::PatternMessage { pattern, topic, payload }),
            [b"pong", _] => self.pong(),
            [b"subscribe" | b"ssubscribe", topic, _] => self.subscribed(topic),
            [b"psubscribe", ..] => match self.asked.pop_front() {
                Some(Asked::Psubscribe(relay)) => Ok(Heard::RelayConfirmed(relay)),
                _ => Err(Broken::OutOfStep("psubscribe".into())),
            },
            [b"unsubscribe" | b"punsubscribe", ..] => match self.asked.front_mut() {
                Some(Asked::Unsubscribe(1)) => {
                    self.asked.pop_front();
                    Ok(Heard::Nothing)
                }
                Some(Asked::Unsubscribe(left)) => {
                    *left -= 1;
                    Ok(Heard::Nothing)
                }
                _ => Err(Broken::OutOfStep("unsubscribe".into())),
            },
            [b"sunsubscribe", topic, _] => match self.asked.front() {
                Some(Asked::Sunsubscribe(asked)) if **asked == *topic => {
                    self.asked.pop_front();
                    Ok(Heard::Nothing)
                }
                _ => Ok(Heard::Moved(topic.into())),
            },
            _ => Err(Broken::OutOfStep("an unknown message".into())),
        }
    }

    fn subscribed(&mut self, confirmed: &[u8]) -> Result<Heard<'static>, Broken> {
        let Some(Asked::Subscribe(topics)) = self.asked.front_mut() else {
            return Err(Broken::OutOfStep("subscribe".into()));
        };
        let topic = topics.next().filter(|topic| **topic == *confirmed);
        let topic = topic.ok_or_else(|| Broken::OutOfStep("subscribe to something else".into()))?;
        if topics.len() == 0 {
            self.asked.pop_front();
        }
        Ok(match self.close(&topic) {
            true => Heard::Confirmed(topic),
            false => Heard::Nothing,
        })
    }

    /// One subscription less to wait for; tells whether it was the topic's last.
    fn close(&mut self, topic: &Topic) -> bool {
        let Some(count) = self.open.get_mut(topic) else { return true };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.open.remove(topic);
        }
        last
    }

    fn pong(&mut self) -> Result<Heard<'static>, Broken> {
        match self.asked.pop_front() {
            Some(Asked::Ping) => Ok(Heard::Nothing),
            Some(Asked::Restored) => Ok(Heard::Restored),
            _ => Err(Broken::OutOfStep("pong".into())),
        }
    }

    fn refused(&mut self, why: &str) -> Result<Heard<'static>, Broken> {
        match self.asked.pop_front() {
            Some(Asked::Subscribe(topics)) => {
                let topics: Vec<Topic> = topics.collect();
                topics.iter().for_each(|topic| {
                    self.close(topic);
                });
                Ok(Heard::Refused { topics, why: why.to_owned() })
            }
            // A node that has lost the slot has ended the subscription with it.
            Some(Asked::Sunsubscribe(_)) => Ok(Heard::Nothing),
            // Without its pattern a relay is deaf, and a refused PING means the server is unwell.
            _ => Err(Broken::Refused(why.to_owned())),
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
