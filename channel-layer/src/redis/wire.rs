//! Redis' protocol (RESP2) for what is published, of which nothing is copied.

/// The longest text or payload accepted; Redis itself allows 512 MB. A longer one ends the
/// connection, and with it the need to hold it in memory.
pub(super) const LONGEST: usize = 64 << 20;

/// One reply or message, borrowed from the read buffer.
#[derive(Debug, PartialEq)]
pub(super) enum Reply<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Int(i64),
    Bulk(Option<&'a [u8]>),
    Array(Items<'a>),
}

/// The items of an array; pub/sub knows three and four.
#[derive(Debug, PartialEq, Default)]
pub(super) struct Items<'a> {
    items: [&'a [u8]; 4],
    len: usize,
}

impl<'a> Items<'a> {
    pub(super) fn as_slice(&self) -> &[&'a [u8]] {
        &self.items[..self.len]
    }
}

/// The peer does not speak the protocol, or sent more than we accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unexpected data from the server: {0}")]
pub(super) struct Malformed(&'static str);

/// Reads one reply from the start of `buffer`; `None` if it is not complete. Also returns its length.
pub(super) fn parse(buffer: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let mut parser = Parser { buffer, at: 0 };
    Ok(parser.reply()?.map(|reply| (reply, parser.at)))
}

struct Parser<'a> {
    buffer: &'a [u8],
    at: usize,
}

/// The type byte and the rest of a line.
type Line<'a> = (u8, &'a [u8]);

impl<'a> Parser<'a> {
    fn reply(&mut self) -> Result<Option<Reply<'a>>, Malformed> {
        let Some((kind, rest)) = self.line()? else { return Ok(None) };
        match kind {
            b'+' => Ok(Some(Reply::Simple(rest))),
            b'-' => Ok(Some(Reply::Error(rest))),
            b':' => Ok(Some(Reply::Int(number(rest)?))),
            b'$' => Ok(self.bulk(rest)?.map(Reply::Bulk)),
            b'*' => self.array(rest),
            _ => Err(Malformed("unknown type of reply")),
        }
    }

    fn line(&mut self) -> Result<Option<Line<'a>>, Malformed> {
        let rest = &self.buffer[self.at..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return match rest.len() {
                0..65_536 => Ok(None),
                _ => Err(Malformed("a line without an end")),
            };
        };
        let line = rest[..end].strip_suffix(b"\r").ok_or(Malformed("a line without CR"))?;
        self.at += end + 1;
        let (kind, rest) = line.split_first().ok_or(Malformed("an empty line"))?;
        Ok(Some((*kind, rest)))
    }

    /// The outer `None` means "not complete", the inner one a null.
    fn bulk(&mut self, header: &[u8]) -> Result<Option<Option<&'a [u8]>>, Malformed> {
        let Ok(len) = usize::try_from(number(header)?) else { return Ok(Some(None)) };
        if len > LONGEST {
            return Err(Malformed("a text of more than 64 MiB"));
        }
        let Some(bytes) = self.buffer.get(self.at..self.at + len + 2) else { return Ok(None) };
        self.at += len + 2;
        let bytes = bytes.strip_suffix(b"\r\n").ok_or(Malformed("a text without its end"))?;
        Ok(Some(Some(bytes)))
    }

    fn array(&mut self, header: &[u8]) -> Result<Option<Reply<'a>>, Malformed> {
        let mut items = Items::default();
        let Ok(len) = usize::try_from(number(header)?) else {
            return Ok(Some(Reply::Array(items)));
        };
        if len > items.items.len() {
            return Err(Malformed("an array of more than four"));
        }
        for slot in &mut items.items[..len] {
            let Some((kind, rest)) = self.line()? else { return Ok(None) };
            *slot = match kind {
                b'$' => match self.bulk(rest)? {
                    Some(bytes) => bytes.unwrap_or_default(),
                    None => return Ok(None),
                },
                b':' | b'+' => rest,
                _ => return Err(Malformed("an array inside an array")),
            };
        }
        items.len = len;
        Ok(Some(Reply::Array(items)))
    }
}

fn number(text: &[u8]) -> Result<i64, Malformed> {
    let text = std::str::from_utf8(text).map_err(|_| Malformed("a number that is none"))?;
    text.parse().map_err(|_| Malformed("a number that is none"))
}

/// Appends a command.
pub(super) fn command<'a>(out: &mut Vec<u8>, words: impl ExactSizeIterator<Item = &'a [u8]>) {
    header(out, b'*', words.len());
    for word in words {
        header(out, b'$', word.len());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn header(out: &mut Vec<u8>, kind: u8, mut number: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_only_when_complete() {
        let whole = b"*3\r\n$7\r\nmessage\r\n$1\r\nt\r\n$4\r\na\r\nb\r\n:1\r\n";
        let message = whole.len() - 4;
        for end in 0..message {
            assert_eq!(parse(&whole[..end]), Ok(None), "{end}");
        }
        let (reply, length) = parse(whole).unwrap().unwrap();
        assert_eq!(length, message);
        let Reply::Array(items) = reply else { panic!("{reply:?}") };
        assert_eq!(items.as_slice(), [&b"message"[..], b"t", b"a\r\nb"]);
        assert_eq!(parse(&whole[message..]), Ok(Some((Reply::Int(1), 4))));
    }

    #[test]
    fn nonsense_is_an_error_and_never_an_allocation() {
        for bytes in [&b"$999999999999\r\n"[..], b"*999999999\r\n", b"hello\r\n", b"\r\n", b"$x\r\n", b"$1\r\nabc"] {
            assert!(parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(parse(b"$-1\r\n"), Ok(Some((Reply::Bulk(None), 5))));
        assert_eq!(parse(b"+OK\r\n"), Ok(Some((Reply::Simple(b"OK"), 5))));
    }

    #[test]
    fn commands_are_written_as_arrays_of_texts() {
        let mut out = Vec::new();
        command(&mut out, [&b"PUBLISH"[..], b"topic", b""].into_iter());
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$5\r\ntopic\r\n$0\r\n\r\n");
    }
}
