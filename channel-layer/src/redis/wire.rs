//! Redis' protocol (RESP2): borrowed for what is published, where nothing is copied, and owned for the
//! answers of commands.

use bytes::Bytes;

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

/// The answer of a command, copied out of the read buffer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Int(i64),
    /// A text of either kind.
    Text(Vec<u8>),
    Null,
    List(Vec<Answer>),
    Error(String),
}

impl Answer {
    /// The items, if it is a list.
    pub(super) fn into_list(self) -> Option<Vec<Answer>> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub(super) fn into_text(self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items, if it is a list.
    pub(super) fn as_list(&self) -> Option<&[Answer]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// The text, if it is one and UTF-8.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    pub(super) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(int) => Some(*int),
            _ => None,
        }
    }
}

/// The deepest nesting of an answer; no command of ours has more than three levels.
const DEEPEST: usize = 8;

/// Reads one answer from the start of `buffer`; `None` if it is not complete. Also returns its length.
pub(super) fn parse_answer(buffer: &[u8]) -> Result<Option<(Answer, usize)>, Malformed> {
    let mut parser = Parser { buffer, at: 0 };
    Ok(parser.answer(0)?.map(|answer| (answer, parser.at)))
}

/// How far an answer has come in that arrives bit by bit, so that a long one is read once and not again
/// with every bit.
pub(super) struct Progress {
    at: usize,
    /// How many values are still to come, of all levels.
    left: usize,
}

impl Default for Progress {
    fn default() -> Self {
        Self { at: 0, left: 1 }
    }
}

impl Progress {
    /// Whether the buffer, which has grown since the last time, holds the answer to its end.
    pub(super) fn is_complete(&mut self, buffer: &[u8]) -> Result<bool, Malformed> {
        let mut parser = Parser { buffer, at: self.at };
        while self.left > 0 {
            let Some((kind, rest)) = parser.line()? else { return Ok(false) };
            match kind {
                b'$' if parser.bulk(rest)?.is_none() => return Ok(false),
                b'*' => self.left = self.left.saturating_add(usize::try_from(number(rest)?).unwrap_or(0)),
                _ => {}
            }
            self.left -= 1;
            self.at = parser.at;
        }
        Ok(true)
    }
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

    fn answer(&mut self, depth: usize) -> Result<Option<Answer>, Malformed> {
        let Some((kind, rest)) = self.line()? else { return Ok(None) };
        Ok(match kind {
            b'+' => Some(Answer::Text(rest.to_vec())),
            b'-' => Some(Answer::Error(String::from_utf8_lossy(rest).into_owned())),
            b':' => Some(Answer::Int(number(rest)?)),
            b'$' => self.bulk(rest)?.map(|bulk| bulk.map_or(Answer::Null, |text| Answer::Text(text.to_vec()))),
            b'*' => {
                let Ok(len) = usize::try_from(number(rest)?) else { return Ok(Some(Answer::Null)) };
                if depth == DEEPEST {
                    return Err(Malformed("arrays nested too deeply"));
                }
                // The shortest item has three bytes: a declared length reserves no more than is there.
                let mut items = Vec::with_capacity(len.min(self.buffer.len() / 3));
                for _ in 0..len {
                    match self.answer(depth + 1)? {
                        Some(item) => items.push(item),
                        None => return Ok(None),
                    }
                }
                Some(Answer::List(items))
            }
            _ => return Err(Malformed("unknown type of reply")),
        })
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

/// One command as it goes over the wire.
pub(super) fn bytes(words: &[&[u8]]) -> Bytes {
    let mut out = Vec::with_capacity(words.iter().map(|word| word.len() + 16).sum());
    command(&mut out, words.iter().copied());
    out.into()
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
    fn answers_nest_and_are_read_only_when_complete() {
        let whole = b"*3\r\n:1\r\n*2\r\n$1\r\na\r\n$-1\r\n-ERR no\r\n";
        for end in 0..whole.len() {
            assert_eq!(parse_answer(&whole[..end]), Ok(None), "{end}");
        }
        let inner = Answer::List(vec![Answer::Text(b"a".to_vec()), Answer::Null]);
        let list = Answer::List(vec![Answer::Int(1), inner, Answer::Error("ERR no".into())]);
        assert_eq!(parse_answer(whole), Ok(Some((list, whole.len()))));
        assert!(parse_answer(&b"*1\r\n".repeat(20)).is_err());
        assert_eq!(parse_answer(b"*999999999\r\n"), Ok(None));
    }

    #[test]
    fn the_progress_of_an_answer_needs_no_second_look() {
        let whole = b"*3\r\n:1\r\n*2\r\n$3\r\n\r\na\r\n$-1\r\n*-1\r\n+next\r\n";
        let end = whole.len() - 7;
        let mut progress = Progress::default();
        for end in 0..end {
            assert_eq!(progress.is_complete(&whole[..end]), Ok(false), "{end}");
        }
        assert_eq!(progress.is_complete(whole), Ok(true));
        assert_eq!(parse_answer(whole).unwrap().unwrap().1, end);
        assert_eq!(Progress::default().is_complete(b"-ERR\r\n"), Ok(true));
        assert_eq!(Progress::default().is_complete(b"*999999999999999\r\n"), Ok(false));
        assert!(Progress::default().is_complete(b"$999999999999\r\n").is_err());
    }

    #[test]
    fn commands_are_written_as_arrays_of_texts() {
        let mut out = Vec::new();
        command(&mut out, [&b"PUBLISH"[..], b"topic", b""].into_iter());
        assert_eq!(out, b"*3\r\n$7\r\nPUBLISH\r\n$5\r\ntopic\r\n$0\r\n\r\n");
    }
}
