//! One connection to Redis: that of the crate `redis`, on a stream that we have opened and signed in (`access.rs`), and
//! driven by whoever uses it.
//!
//! The driver is not spawned, so that the end of an idle connection is noticed at once, answers that nobody waits for may
//! lie unread, and who does not read slows Redis down.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{bounded::Bounded, trust::Trust};
use crate::BoxError;

/// The most that an answer, or a message that is heard, may take.
pub(super) const ANSWER: usize = 64 << 20;

/// TCP, TLS over TCP, or a Unix socket.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// An open connection. It only lives while it is used or [waited for](Self::ended).
pub(super) struct Connection {
    /// Each use has a clone of it.
    commands: MultiplexedConnection,
    /// Writes and reads; `None` when it has come to its end.
    driver: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    pub(super) trust: Trust,
}

impl Connection {
    /// On a stream that is signed in.
    pub(super) async fn on(stream: Box<dyn Stream>, trust: Trust) -> Result<Self, BoxError> {
        // Every command has its own limit, and nothing is to be said twice.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let (stream, _) = Bounded::new(stream, ANSWER);
        let (commands, driver) = MultiplexedConnection::new_with_config(&info, stream, config).await?;
        Ok(Self { commands, driver: Some(Box::pin(driver)), trust })
    }

    /// Sends commands together and waits for all their answers, which may be errors. The connection is of no use
    /// if this is given up.
    pub(super) async fn ask(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let mut commands = self.commands.clone();
        let mut asking = pin!(commands.send_packed_commands(pipeline, 0, pipeline.len()));
        // The two wake each other, and this task is both: one that wakes itself goes to the end of the queue, and
        // another thread is woken for it. So none but the driver is told whom to wake, and not before it is asked.
        let mut begun = false;
        let answered = poll_fn(|task| {
            let Some(driver) = &mut self.driver else { return Poll::Ready(None) };
            let begins = !std::mem::replace(&mut begun, true);
            let mut ended = begins && poll_quietly(driver.as_mut()).is_ready();
            let mut answers = poll_quietly(asking.as_mut());
            if answers.is_pending() && !ended {
                ended = driver.as_mut().poll(task).is_ready();
                answers = poll_quietly(asking.as_mut());
            }
            if ended {
                self.driver = None;
            }
            match answers {
                Poll::Pending if !ended => Poll::Pending,
                Poll::Pending => Poll::Ready(None),
                Poll::Ready(answers) => Poll::Ready(Some(answers)),
            }
        });
        match answered.await {
            Some(answers) => answers,
            // What had an answer has it, and the rest hears that there will be none.
            None => asking.await,
        }
    }

    /// The same for one command.
    pub(super) async fn ask_one(&mut self, command: Cmd) -> Result<Value, RedisError> {
        let mut pipeline = Pipeline::with_capacity(1);
        pipeline.add_command(command);
        Ok(self.ask(&pipeline).await?.pop().unwrap_or_default())
    }

    /// Returns when the server has ended the connection. Cancel-safe.
    pub(super) async fn ended(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.await;
            self.driver = None;
        }
    }
}

/// Goes on with something once, and wakes nobody when there is more to do.
pub(super) fn poll_quietly<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::redis::trust::Server;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Nearly twice the CPU time for each message on a quiet day hangs on it.
    #[tokio::test]
    async fn who_asks_is_woken_by_the_answer_and_by_nothing_else() {
        let (here, mut there) = tokio::io::duplex(1024);
        let mut connection = Connection::on(Box::new(here), Server::default().trust()).await.unwrap();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut task = Context::from_waker(&waker);
        let times = || woken.0.load(Ordering::Relaxed);
        let mut pipeline = Pipeline::new();
        pipeline.cmd("PING");
        for asked in 1..=3 {
            // As who waits for something to ask, and for the end of the connection.
            assert!(pin!(connection.ended()).poll(&mut task).is_pending());
            let mut asking = pin!(connection.ask(&pipeline));
            assert!(asking.as_mut().poll(&mut task).is_pending());
            assert_eq!(times(), asked - 1);
            let mut question = [0; 64];
            assert!(there.read(&mut question).await.unwrap() > 0);
            there.write_all(b"+PONG\r\n").await.unwrap();
            assert_eq!(times(), asked);
            assert!(matches!(asking.as_mut().poll(&mut task), Poll::Ready(Ok(answers)) if answers.len() == 1));
            assert_eq!(times(), asked);
        }
    }
}
