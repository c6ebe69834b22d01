//! A stream whose answers have a bound: what others have written to Redis may be of any size, and a client that reads
//! it whole is at their mercy. The crate `redis` has no such bound.

use std::{
    io::{Error, ErrorKind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a value of an answer takes in memory beside its bytes.
const VALUE: usize = 32;

/// A stream from a Redis server that fails once one answer, or one message that is pushed, weighs more than a limit:
/// its bytes, and 32 for each value in it. It fails at the length that is announced, before the bytes are there.
///
/// The format is that of the [Redis serialization protocol](https://redis.io/docs/latest/develop/reference/protocol-spec/),
/// versions 2 and 3.
#[derive(Debug)]
pub struct Bounded<S> {
    stream: S,
    meter: Meter,
    is_flooded: Arc<AtomicBool>,
}

impl<S> Bounded<S> {
    /// Bounds each answer of `stream` to `limit` bytes. The flag tells whether one was larger: what the crate `redis`
    /// makes of the failed read does not.
    pub fn new(stream: S, limit: usize) -> (Self, Arc<AtomicBool>) {
        let is_flooded = Arc::new(AtomicBool::new(false));
        (Self { stream, meter: Meter::new(limit), is_flooded: Arc::clone(&is_flooded) }, is_flooded)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<(), Error>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        if self.meter.passes(&buffer.filled()[before..]) {
            return Poll::Ready(Ok(()));
        }
        self.is_flooded.store(true, Ordering::Relaxed);
        let what = format!("an answer of Redis takes more than {} bytes", self.meter.limit);
        Poll::Ready(Err(Error::new(ErrorKind::InvalidData, what)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Follows answers from value to value, in whatever pieces they come.
#[derive(Debug)]
struct Meter {
    limit: usize,
    /// What the answer that is being read weighs so far.
    weight: usize,
    /// Values of it that are still to come.
    values: usize,
    /// Bytes of a text, and of its line end, that are still to come.
    text: usize,
    /// First byte of the line that is being read.
    kind: Option<u8>,
    /// The length in it.
    length: usize,
    /// A length of `-1`: there is nothing.
    is_nil: bool,
}

impl Meter {
    fn new(limit: usize) -> Self {
        Self { limit, weight: 0, values: 1, text: 0, kind: None, length: 0, is_nil: false }
    }

    /// Whether the answers are within the limit with these bytes behind the earlier ones.
    fn passes(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let taken = if self.text > 0 { self.text(bytes) } else { self.line(bytes) };
            if self.weight > self.limit {
                return false;
            }
            if self.values == 0 {
                (self.weight, self.values) = (0, 1);
            }
            bytes = &bytes[taken..];
        }
        true
    }

    /// Reads on in a text; its weight was counted when its length came.
    fn text(&mut self, bytes: &[u8]) -> usize {
        let taken = self.text.min(bytes.len());
        self.text -= taken;
        if self.text == 0 {
            self.values -= 1;
        }
        taken
    }

    /// Reads on in a line.
    fn line(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        self.weight += taken;
        let mut line = &bytes[..taken];
        if self.kind.is_none() {
            (self.kind, self.length, self.is_nil) = (Some(line[0]), 0, false);
            line = &line[1..];
        }
        if self.kind.is_some_and(|kind| b"$=!*~>%|".contains(&kind)) {
            for &byte in line {
                match byte {
                    b'0'..=b'9' => {
                        self.length = self.length.saturating_mul(10).saturating_add(usize::from(byte - b'0'));
                    }
                    b'-' => self.is_nil = true,
                    _ => {}
                }
            }
        }
        if end.is_some() {
            self.line_has_ended();
        }
        taken
    }

    fn line_has_ended(&mut self) {
        self.weight = self.weight.saturating_add(VALUE);
        let length = if self.is_nil { 0 } else { self.length };
        match self.kind.take() {
            Some(b'$' | b'=' | b'!') if !self.is_nil => {
                self.weight = self.weight.saturating_add(length);
                self.text = length.saturating_add(2);
            }
            // Pairs; what an attribute is of follows behind it.
            Some(kind @ (b'%' | b'|')) => self.expect(length.saturating_mul(2), kind == b'%'),
            Some(b'*' | b'~' | b'>') => self.expect(length, true),
            _ => self.values -= 1,
        }
    }

    /// So many values are in the one whose line has ended. Each will weigh something.
    fn expect(&mut self, values: usize, is_value: bool) {
        if self.weight.saturating_add(values.saturating_mul(VALUE)) > self.limit {
            self.weight = usize::MAX;
        }
        self.values = self.values.saturating_add(values) - usize::from(is_value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: usize = 4096;

    fn text(length: usize) -> Vec<u8> {
        [format!("${length}\r\n").as_bytes(), &vec![b'\n'; length], b"\r\n"].concat()
    }

    fn list(items: &[Vec<u8>]) -> Vec<u8> {
        [format!("*{}\r\n", items.len()).into_bytes(), items.concat()].concat()
    }

    fn passes(bytes: &[u8]) -> bool {
        Meter::new(LIMIT).passes(bytes)
    }

    #[test]
    fn one_answer_has_the_bound_and_not_all_together() {
        assert!(passes(&text(LIMIT - 100).repeat(10)));
        assert!(passes(&list(&vec![text(1000); 3]).repeat(10)));
        assert!(!passes(&list(&vec![text(1000); 4])));
        assert!(!passes(&list(&vec![text(0); 150])), "many small values weigh more than their bytes");
        assert!(!passes(&[b"+".to_vec(), vec![b'x'; LIMIT]].concat()), "a line without an end");
    }

    #[test]
    fn an_answer_is_too_large_once_its_length_is_known() {
        for announced in ["$5000\r\n", "*200\r\n", "%100\r\n", ">99999999999999999999999\r\n", "*1\r\n$4090\r\n"] {
            assert!(!passes(announced.as_bytes()), "{announced}");
        }
    }

    #[test]
    fn every_type_ends_where_it_ends() {
        let answers: [&[u8]; 15] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":-12\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"_\r\n",
            b"#t\r\n",
            b",1.5\r\n",
            b"(123456789012345678901234567890\r\n",
            b"=7\r\ntxt:abc\r\n",
            b"!5\r\nERR x\r\n",
            b"%1\r\n+a\r\n*2\r\n:1\r\n$0\r\n\r\n",
            b"~2\r\n:1\r\n:2\r\n",
            b">3\r\n$7\r\nmessage\r\n$1\r\nt\r\n$2\r\n\r\n\r\n",
            b"|1\r\n+ttl\r\n:3\r\n*0\r\n",
        ];
        for answer in answers {
            let mut meter = Meter::new(LIMIT);
            assert!(meter.passes(answer));
            assert_eq!((meter.weight, meter.values, meter.text), (0, 1, 0), "{}", answer.escape_ascii());
        }
        assert!(passes(&answers.concat().repeat(100)));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(cuts in proptest::collection::vec(0_usize..6000, 0..8), items in 1_usize..6) {
            let bytes = [text(700), list(&vec![list(&[text(700), b":1\r\n".to_vec()]); items])].concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut meter = Meter::new(LIMIT);
            let pieces = cuts.windows(2).all(|ends| meter.passes(&bytes[ends[0]..ends[1]]));
            prop_assert_eq!(pieces, passes(&bytes));
        }

        #[test]
        fn bytes_that_are_no_answer_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            passes(&bytes);
        }
    }

    #[tokio::test]
    async fn what_is_too_large_fails_the_read_and_says_so() {
        let (here, mut there) = tokio::io::duplex(64);
        let (mut here, is_flooded) = Bounded::new(here, LIMIT);
        there.write_all(b"+OK\r\n").await.unwrap();
        let mut read = [0; 5];
        here.read_exact(&mut read).await.unwrap();
        assert!(&read == b"+OK\r\n" && !is_flooded.load(Ordering::Relaxed));
        there.write_all(b"$5000\r\n").await.unwrap();
        let error = here.read_exact(&mut [0; 7]).await.unwrap_err();
        assert!(error.to_string().contains("4096") && is_flooded.load(Ordering::Relaxed));
    }
}
