//! A connection that hears what is published: one of the crate `redis`, in RESP3.
//!
//! It is not the crate's `PubSub`, which has an unbounded queue between the socket and the reader and no SSUBSCRIBE.
//! On a multiplexed connection any command is answered, and what is published is handed to a function by
//! the driver; as the driver is polled here and not spawned, it reads no more than is taken from it, and who does
//! not read slows Redis down.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Pipeline, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisResult, Value,
    aio::MultiplexedConnection,
};
use tokio::time::timeout;

use super::registry::Topic;
use crate::{
    BoxError,
    redis::{
        access::OPENING,
        bounded::Bounded,
        connection::{ANSWER, Stream},
    },
};

pub(super) struct Subscription {
    commands: MultiplexedConnection,
    /// Writes and reads; `None` when it has come to its end.
    driver: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// What the driver has read, in order. Empty between two calls of `poll`.
    pushed: Arc<Mutex<Vec<PushInfo>>>,
    exchange: Option<Exchange>,
    answers: Option<RedisResult<Answers>>,
}

type Exchange = Pin<Box<dyn Future<Output = RedisResult<Answers>> + Send>>;

/// What goes together.
pub(super) enum Question {
    /// Commands, each of which has one answer.
    Each(Pipeline),
    /// One SUBSCRIBE.
    Subscribe(Vec<Topic>),
}

#[derive(Debug)]
pub(super) enum Answers {
    Each(Vec<Value>),
    /// All topics are subscribed.
    Subscribed,
    /// None is, for the reason that the server gave.
    Refused(String),
}

/// What has come.
pub(super) enum Came {
    Pushed(Vec<PushInfo>),
    /// To what was asked last.
    Answers(RedisResult<Answers>),
    /// The server has ended the connection.
    End,
}

impl Subscription {
    /// On a stream that is signed in.
    pub(super) async fn on(stream: Box<dyn Stream>) -> Result<Self, BoxError> {
        let pushed = Arc::new(Mutex::new(Vec::new()));
        let sink = pushed.clone();
        let hear = move |push: PushInfo| {
            // The confirmations of what was asked come as answers too.
            if matches!(push.kind, PushKind::Message | PushKind::PMessage | PushKind::SMessage | PushKind::SUnsubscribe)
            {
                sink.lock().push(push);
            }
            Ok::<(), redis::aio::SendError>(())
        };
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(hear);
        let info = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        let (stream, _) = Bounded::new(stream, ANSWER);
        let opening = MultiplexedConnection::new_with_config(&info, stream, config);
        let late = |_late| BoxError::from("the change to RESP3 took more than 2 seconds");
        let (commands, driver) = timeout(OPENING, opening).await.map_err(late)??;
        Ok(Self { commands, driver: Some(Box::pin(driver)), pushed, exchange: None, answers: None })
    }

    /// Whether the answers to the last question have not been taken yet.
    pub(super) fn is_asking(&self) -> bool {
        self.exchange.is_some() || self.answers.is_some()
    }

    pub(super) fn ask(&mut self, question: Question) {
        let mut commands = self.commands.clone();
        self.exchange = Some(Box::pin(async move {
            match question {
                Question::Each(pipeline) => {
                    commands.send_packed_commands(&pipeline, 0, pipeline.len()).await.map(Answers::Each)
                }
                Question::Subscribe(topics) => {
                    let topics: Vec<&[u8]> = topics.iter().map(|topic| &**topic).collect();
                    match commands.subscribe(topics).await {
                        Ok(()) => Ok(Answers::Subscribed),
                        Err(error) => match (error.code(), error.detail()) {
                            (Some(code), detail) => {
                                Ok(Answers::Refused(format!("{code} {}", detail.unwrap_or_default())))
                            }
                            (None, _) => Err(error),
                        },
                    }
                }
            }
        }));
    }

    /// What was pushed before an answer comes before it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        // Once to give the driver what is to be sent, and once for what it has read.
        self.poll_exchange(cx);
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
        self.poll_exchange(cx);
        let pushed = std::mem::take(&mut *self.pushed.lock());
        if !pushed.is_empty() {
            return Poll::Ready(Came::Pushed(pushed));
        }
        if let Some(answers) = self.answers.take() {
            return Poll::Ready(Came::Answers(answers));
        }
        match self.driver {
            Some(_) => Poll::Pending,
            None => Poll::Ready(Came::End),
        }
    }

    fn poll_exchange(&mut self, cx: &mut Context<'_>) {
        if let Some(exchange) = &mut self.exchange
            && let Poll::Ready(answers) = exchange.as_mut().poll(cx)
        {
            self.exchange = None;
            self.answers = Some(answers);
        }
    }
}
