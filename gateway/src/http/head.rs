//! The head of a request, read whole before anything is made of it: whoever sends it slowly keeps nothing but the
//! bytes that have come, and it is seen as it was sent, which a parser does not tell.

use std::io;

use tokio::net::TcpStream;

use crate::websocket::Rewound;

/// Bytes of a request's head, at most.
pub(crate) const MAX_HEAD: usize = 16 * 1024;

/// What has come of a connection's first request, head and perhaps more.
#[derive(Debug)]
pub(crate) struct Head {
    bytes: Vec<u8>,
    /// Some line ends in a bare line feed.
    pub(crate) has_bare_lf: bool,
}

impl Head {
    /// Reads until the head is complete, or so long that it is for the parser to refuse it.
    pub(crate) async fn read(stream: &TcpStream) -> io::Result<Self> {
        thread_local! {
            static BUFFER: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; MAX_HEAD].into());
        }
        let (mut bytes, mut lines) = (Vec::new(), Lines::default());
        loop {
            stream.readable().await?;
            let read: io::Result<usize> = BUFFER.with_borrow_mut(|buffer| {
                let count = stream.try_read(&mut buffer[..MAX_HEAD - bytes.len()])?;
                bytes.extend_from_slice(&buffer[..count]);
                Ok(count)
            });
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    let from = bytes.len() - count;
                    // What is no HTTP, such as TLS, need not be waited for.
                    let may_be_http = bytes[0].is_ascii_alphabetic() || matches!(bytes[0], b'\r' | b'\n');
                    if lines.end_in(&bytes[from..]) || bytes.len() == MAX_HEAD || !may_be_http {
                        return Ok(Self { bytes, has_bare_lf: lines.has_bare_lf });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether it is the question of a balancer or a supervisor.
    pub(crate) fn is_about_health(&self) -> bool {
        [&b"GET /readyz"[..], b"GET /healthz"].iter().any(|line| self.bytes.starts_with(line))
    }

    /// The path that is asked for, as it was sent, where it is easily seen.
    pub(crate) fn path(&self) -> Option<&str> {
        let line = self.bytes.split(|byte| *byte == b'\n').next()?;
        let target = line.split(|byte| *byte == b' ').nth(1)?;
        std::str::from_utf8(target).ok()?.split('?').next()
    }

    /// The connection as if nothing had been read from it.
    pub(crate) fn before(self, stream: TcpStream) -> Rewound {
        Rewound::new(self.bytes, stream)
    }
}

/// Looks at the ends of lines, however the bytes are cut.
#[derive(Debug, Default)]
struct Lines {
    last: u8,
    /// Characters of the line so far, up to two of them.
    length: u8,
    has_begun: bool,
    has_bare_lf: bool,
}

impl Lines {
    /// Whether the head ends in these bytes: with an empty line after others. What follows it is not looked at.
    fn end_in(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            let before = std::mem::replace(&mut self.last, byte);
            if byte != b'\n' {
                self.length = (self.length + 1).min(2);
                continue;
            }
            let is_bare = before != b'\r';
            self.has_bare_lf |= is_bare;
            let is_empty = self.length == u8::from(!is_bare);
            self.length = 0;
            if is_empty && self.has_begun {
                return true;
            }
            self.has_begun |= !is_empty;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the head ends in the bytes, and whether a line feed was bare, however they are cut.
    fn look(bytes: &[u8]) -> (bool, bool) {
        let seen: Vec<_> = (1..=bytes.len())
            .map(|cut| {
                let mut lines = Lines::default();
                (bytes.chunks(cut).any(|piece| lines.end_in(piece)), lines.has_bare_lf)
            })
            .collect();
        assert!(seen.iter().all(|one| *one == seen[0]), "{seen:?}");
        seen[0]
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        assert_eq!(look(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), (true, false));
        assert_eq!(look(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"), (true, false), "empty lines before it do not count");
        assert_eq!(look(b"GET / HTTP/1.1\r\nHost: x\r\n\r\na\nb"), (true, false), "what follows is no head");
        assert_eq!(look(b"GET / HTTP/1.1\r\nHost: x\r\n\r"), (false, false));
        assert_eq!(look(b"\r\n\r\n\r\n"), (false, false));
    }

    #[test]
    fn a_bare_line_feed_is_seen_wherever_it_is() {
        for head in [
            &b"GET / HTTP/1.1\nHost: x\n\n"[..],
            b"GET / HTTP/1.1\r\nHost: x\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\n\n",
        ] {
            assert_eq!(look(head), (true, true), "{head:?}");
        }
        assert_eq!(look(b"\nGET / HTTP/1.1\r\n\r\n"), (true, true));
        assert_eq!(
            look(b"GET / HTTP/1.1\r\nA: b\r\r\n\r\n"),
            (true, false),
            "other control characters are the parser's"
        );
    }
}
