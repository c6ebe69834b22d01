//! Waking by what the operating system reports.
//!
//! A task that a thread outside the runtime wakes costs a second worker its sleep: the one that takes the task wakes
//! another to look for more. What comes on a socket wakes the worker that waits for sockets, and nobody else. So the
//! driver's thread for SQLite is given a socket of ours to write to, once for each message.

use std::{
    future::{Future, poll_fn},
    io::Write as _,
    os::unix::net::UnixStream as Far,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use tokio::{
    io::{AsyncRead as _, ReadBuf},
    net::UnixStream as Near,
};

/// The bell of a store, kept for the next who waits.
#[derive(Default)]
pub(crate) struct Bell(Mutex<Option<Pair>>);

struct Pair {
    near: Near,
    far: Waker,
}

struct Rope(Far);

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Where it takes no more, it rings already.
        let _ = (&self.0).write(&[0]);
    }
}

impl Bell {
    /// Goes on with a future whenever it rings. Without files to spare the future is woken as ever.
    pub(crate) async fn wait<F: Future>(&self, future: F) -> F::Output {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut pair) = kept.or_else(|| Pair::new().ok()) else { return future.await };
        let output = pair.wait(future).await;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(pair);
        output
    }
}

impl Pair {
    /// For the runtime that this is called in.
    fn new() -> std::io::Result<Self> {
        let (near, far) = Far::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        Ok(Self { near: Near::from_std(near)?, far: Waker::from(Arc::new(Rope(far))) })
    }

    async fn wait<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&self.far)) {
                    return Poll::Ready(output);
                }
                let mut rung = [0; 64];
                match Pin::new(&mut self.near).poll_read(cx, &mut ReadBuf::new(&mut rung)) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(())) => {}
                    // The runtime that it was made in is gone.
                    Poll::Ready(Err(_)) => return future.as_mut().poll(cx),
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn it_rings_whoever_wakes_and_also_for_the_next() {
        let bell = Bell::default();
        for answer in 0..3 {
            let (sender, receiver) = oneshot::channel();
            let thread = std::thread::spawn(move || sender.send(answer));
            assert_eq!(bell.wait(receiver).await, Ok(answer));
            thread.join().unwrap().unwrap();
        }
        // One that is given up may ring for the next, which does no harm.
        let (sender, receiver) = oneshot::channel();
        assert!(tokio::time::timeout(Duration::from_millis(1), bell.wait(receiver)).await.is_err());
        let _gone = sender.send(7);
        let timer = bell.wait(tokio::time::sleep(Duration::from_millis(1)));
        assert!(tokio::time::timeout(Duration::from_secs(60), timer).await.is_ok());
    }
}
