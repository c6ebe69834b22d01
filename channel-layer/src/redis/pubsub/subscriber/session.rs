//! One connection's conversation: what is to be asked, and what the answers mean. One pipeline is under way at a
//! time; what is wanted meanwhile goes with the next.

use std::collections::{HashMap, VecDeque};

use redis::{Pipeline, PushInfo, PushKind, Value};

use super::{
    registry::Topic,
    subscription::{Answers, Question},
};
use crate::redis::answer::{Answer, command, text_of};

/// How many commands go together, and how many topics one SUBSCRIBE names.
const BATCH: usize = 500;
/// With more than this unsent, no further orders are taken.
const CONGESTED: usize = 20_000;
/// With this much more unsent than a new connection had to be told at first, it is given up.
const HOPELESS: usize = 400_000;

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
    next: VecDeque<Ask>,
    /// Under way.
    asked: Vec<Ask>,
    /// Subscriptions asked for and not yet confirmed, by topic. A topic that was left and joined
    /// again counts only with its last confirmation.
    open: HashMap<Topic, u32>,
    /// Sharded topics that are being left: only the end of others is news.
    leaving: HashMap<Topic, u32>,
    /// How much had to be asked at first.
    at_first: usize,
}

/// Each is one command, with one answer.
#[derive(Debug)]
enum Ask {
    Subscribe(Kind, Topic),
    Unsubscribe(Kind, Topic),
    /// A pattern, for a relay.
    Psubscribe(u64, Vec<u8>),
    Punsubscribe(Vec<u8>),
    Ping,
    /// A PING behind all subscriptions of a new connection.
    Restored,
}

/// What an answer means, or what was pushed.
#[derive(Debug)]
pub(super) enum Heard {
    Message {
        topic: Vec<u8>,
        payload: Vec<u8>,
    },
    PatternMessage {
        pattern: Vec<u8>,
        topic: Vec<u8>,
        payload: Vec<u8>,
    },
    Confirmed(Topic),
    RelayConfirmed(u64),
    Restored,
    /// The server has ended a subscription without being asked: the topic's slot has gone elsewhere.
    Moved(Topic),
    Refused {
        topic: Topic,
        why: String,
    },
    Nothing,
}

/// Why the conversation cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The answers do not fit the questions: a subscription that the server ended while something was under
    /// way is taken for an answer by the crate.
    #[error("the server's answer fits no question: {0}")]
    OutOfStep(String),
    /// A relay's pattern or a PING was refused.
    #[error("the server refused: {0}")]
    Refused(String),
}

impl Ask {
    /// The topic of a subscription that can share a command.
    fn plain_topic(&self) -> Option<&Topic> {
        match self {
            Self::Subscribe(Kind::Plain, topic) => Some(topic),
            _ => None,
        }
    }
}

impl Session {
    pub(super) fn subscribe(&mut self, kind: Kind, topics: &[Topic]) {
        for topic in topics {
            *self.open.entry(topic.clone()).or_default() += 1;
            self.next.push_back(Ask::Subscribe(kind, topic.clone()));
        }
    }

    pub(super) fn unsubscribe(&mut self, kind: Kind, topics: &[Topic]) {
        for topic in topics {
            if kind == Kind::Sharded {
                *self.leaving.entry(topic.clone()).or_default() += 1;
            }
            self.next.push_back(Ask::Unsubscribe(kind, topic.clone()));
        }
    }

    pub(super) fn psubscribe(&mut self, relay: u64, pattern: &[u8]) {
        self.next.push_back(Ask::Psubscribe(relay, pattern.to_vec()));
    }

    pub(super) fn punsubscribe(&mut self, pattern: &[u8]) {
        self.next.push_back(Ask::Punsubscribe(pattern.to_vec()));
    }

    pub(super) fn ping(&mut self) {
        self.next.push_back(Ask::Ping);
    }

    /// Asks for a sign that everything asked so far is in place.
    pub(super) fn mark_restored(&mut self) {
        self.next.push_back(Ask::Restored);
        self.at_first = self.next.len();
    }

    pub(super) fn is_congested(&self) -> bool {
        self.next.len() > CONGESTED
    }

    /// Whether there is nothing to ask.
    pub(super) fn is_silent(&self) -> bool {
        self.next.is_empty()
    }

    /// Whether so much is unsent that the peer can hardly be reading.
    pub(super) fn is_hopeless(&self) -> bool {
        self.next.len() > self.at_first + HOPELESS
    }

    /// What is to be asked now that nothing is under way, if there is anything.
    pub(super) fn take(&mut self) -> Option<Question> {
        let plain = self.next.front()?.plain_topic().is_some();
        let alike = self.next.iter().take(BATCH).take_while(|ask| ask.plain_topic().is_some() == plain);
        let count = alike.count();
        self.asked.extend(self.next.drain(..count));
        if plain {
            return Some(Question::Subscribe(self.asked.iter().filter_map(Ask::plain_topic).cloned().collect()));
        }
        let mut pipeline = Pipeline::with_capacity(count);
        for ask in &self.asked {
            pipeline.add_command(match ask {
                // One command must not name topics of several slots.
                Ask::Subscribe(_, topic) => command([&b"SSUBSCRIBE"[..], topic]),
                Ask::Unsubscribe(Kind::Plain, topic) => command([&b"UNSUBSCRIBE"[..], topic]),
                Ask::Unsubscribe(Kind::Sharded, topic) => command([&b"SUNSUBSCRIBE"[..], topic]),
                Ask::Psubscribe(_, pattern) => command([&b"PSUBSCRIBE"[..], pattern]),
                Ask::Punsubscribe(pattern) => command([&b"PUNSUBSCRIBE"[..], pattern]),
                Ask::Ping | Ask::Restored => command([&b"PING"[..]]),
            });
        }
        Some(Question::Each(pipeline))
    }

    /// What the answers mean to what was [taken](Self::take) last.
    pub(super) fn answered(&mut self, answers: Answers) -> Result<Vec<Heard>, Broken> {
        let asked = std::mem::take(&mut self.asked);
        let answers = match answers {
            Answers::Each(answers) => answers,
            Answers::Subscribed => return Ok(self.subscribed(asked, |_| Heard::Nothing, Heard::Confirmed)),
            Answers::Refused(why) => {
                let refused = |topic| Heard::Refused { topic, why: why.clone() };
                return Ok(self.subscribed(asked, refused, refused));
            }
        };
        if asked.len() != answers.len() {
            return Err(Broken::OutOfStep("another number of answers".into()));
        }
        asked.into_iter().zip(answers).map(|(ask, answer)| self.answer(ask, answer)).collect()
    }

    /// What has become of the topics of one SUBSCRIBE: of those that were asked for again since, and of the rest.
    fn subscribed(
        &mut self,
        asked: Vec<Ask>,
        again: impl Fn(Topic) -> Heard,
        last: impl Fn(Topic) -> Heard,
    ) -> Vec<Heard> {
        let topics = asked.iter().filter_map(Ask::plain_topic);
        topics
            .map(|topic| match count_down(&mut self.open, topic) {
                true => last(topic.clone()),
                false => again(topic.clone()),
            })
            .collect()
    }

    fn answer(&mut self, ask: Ask, answer: Value) -> Result<Heard, Broken> {
        let error = match &answer {
            Value::ServerError(error) => Some(text_of(error)),
            _ => None,
        };
        let is = |kind: PushKind, topic: &[u8]| confirms(&answer, &kind, topic);
        let pong = || answer.as_text() == Some("PONG");
        match (ask, error) {
            (Ask::Subscribe(_, topic), Some(why)) => {
                count_down(&mut self.open, &topic);
                Ok(Heard::Refused { topic, why })
            }
            (Ask::Subscribe(_, topic), None) if is(PushKind::SSubscribe, &topic) => {
                Ok(match count_down(&mut self.open, &topic) {
                    true => Heard::Confirmed(topic),
                    false => Heard::Nothing,
                })
            }
            // A node that has lost the slot has ended the subscription with it.
            (Ask::Unsubscribe(Kind::Sharded, topic), error)
                if error.is_some() || is(PushKind::SUnsubscribe, &topic) =>
            {
                count_down(&mut self.leaving, &topic);
                Ok(Heard::Nothing)
            }
            (Ask::Unsubscribe(Kind::Plain, topic), None) if is(PushKind::Unsubscribe, &topic) => Ok(Heard::Nothing),
            (Ask::Punsubscribe(pattern), None) if is(PushKind::PUnsubscribe, &pattern) => Ok(Heard::Nothing),
            (Ask::Psubscribe(relay, pattern), None) if is(PushKind::PSubscribe, &pattern) => {
                Ok(Heard::RelayConfirmed(relay))
            }
            (Ask::Ping, None) if pong() => Ok(Heard::Nothing),
            (Ask::Restored, None) if pong() => Ok(Heard::Restored),
            // Without its pattern a relay is deaf, and a refused PING means the server is unwell.
            (_, Some(why)) => Err(Broken::Refused(why)),
            (ask, None) => Err(Broken::OutOfStep(format!("{ask:?}"))),
        }
    }

    /// What was pushed.
    pub(super) fn hear(&self, push: PushInfo) -> Heard {
        let mut texts = push.data.into_iter().map(|value| value.into_text().unwrap_or_default());
        let mut text = || texts.next().unwrap_or_default();
        match push.kind {
            PushKind::Message | PushKind::SMessage => Heard::Message { topic: text(), payload: text() },
            PushKind::PMessage => Heard::PatternMessage { pattern: text(), topic: text(), payload: text() },
            PushKind::SUnsubscribe => {
                let topic: Topic = text().into();
                match self.leaving.contains_key(&topic) {
                    true => Heard::Nothing,
                    false => Heard::Moved(topic),
                }
            }
            _ => Heard::Nothing,
        }
    }
}

/// One less to wait for; tells whether it was the topic's last.
fn count_down(counts: &mut HashMap<Topic, u32>, topic: &Topic) -> bool {
    let Some(count) = counts.get_mut(topic) else { return true };
    *count -= 1;
    let last = *count == 0;
    if last {
        counts.remove(topic);
    }
    last
}

fn confirms(answer: &Value, wanted: &PushKind, topic: &[u8]) -> bool {
    match answer {
        Value::Push { kind, data } => {
            kind == wanted && matches!(data.first(), Some(Value::BulkString(text)) if text == topic)
        }
        _ => false,
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
