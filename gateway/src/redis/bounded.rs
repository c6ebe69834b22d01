//! A stream whose answers have a bound: what others have written to Redis may be of any size, and a client that reads
//! it whole is at their mercy.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an answer may weigh.
pub(super) const ANSWER: usize = 4 * 1024 * 1024;

/// What a text of an answer takes in memory beside its bytes. A `$` stands before each.
const TEXT: usize = 32;

/// Fails a read once an answer is too large. One command at a time is sent over it, so what is read after a write is
/// the answer to it.
pub(super) struct Bounded<S> {
    stream: S,
    left: usize,
    is_flooded: Arc<AtomicBool>,
}

impl<S> Bounded<S> {
    /// The stream, and what tells whether an answer was too large.
    pub(super) fn new(stream: S) -> (Self, Arc<AtomicBool>) {
        let is_flooded = Arc::new(AtomicBool::new(false));
        (Self { stream, left: ANSWER, is_flooded: Arc::clone(&is_flooded) }, is_flooded)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        let weight = read.len() + TEXT * read.iter().filter(|byte| **byte == b'$').count();
        let Some(left) = self.left.checked_sub(weight) else {
            self.is_flooded.store(true, Ordering::Relaxed);
            return Poll::Ready(Err(Error::new(ErrorKind::InvalidData, "an answer is too large")));
        };
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
        self.left = ANSWER;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Whether answers of such bytes pass, one after the other.
    async fn passes(answers: &[Vec<u8>]) -> bool {
        let (here, mut there) = tokio::io::duplex(2 * ANSWER);
        let (mut here, is_flooded) = Bounded::new(here);
        for answer in answers {
            here.write_all(b"command").await.unwrap();
            there.write_all(answer).await.unwrap();
            let mut read = vec![0; answer.len()];
            if here.read_exact(&mut read).await.is_err() {
                assert!(is_flooded.load(Ordering::Relaxed));
                return false;
            }
            assert_eq!(&read, answer);
        }
        !is_flooded.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn each_answer_has_its_bound_and_many_texts_weigh_more_than_their_bytes() {
        assert!(passes(&[vec![b'x'; ANSWER], vec![b'x'; ANSWER]]).await);
        assert!(!passes(&[vec![b'x'; ANSWER], vec![b'x'; ANSWER + 1]]).await);
        assert!(passes(&[vec![b'$'; 100_000]]).await);
        assert!(!passes(&[b"$0\r\n\r\n".repeat(200_000)]).await);
    }
}
