//! A connection to Redis whose answers have bounds.
//!
//! What others have written there may be of any size, and a client that reads it whole is at their mercy. Here a text
//! that is too long, or one text too many, is read past as it comes: what is left of it is its beginning and its
//! length ([`Text`]). Only what goes from one key to another is passed on whole, piece by piece ([`move_fields`]).

use std::io::{Error, ErrorKind};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisFuture, RedisResult, Value};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::time::timeout;

/// Most bytes of one text that are kept: more than the longest list of recipients there can be.
pub(super) const TEXT: usize = 2 * 1024 * 1024;

/// Most bytes of an answer that are kept.
pub(super) const ANSWER: usize = 4 * 1024 * 1024;

/// Texts up to this are kept in any case: ids, the names of fields, what nodes put at the end of a dead letter.
const SHORT: usize = 256;

/// Elements of an array that are kept, and of one that comes when the answer is full already. All are even.
const ELEMENTS: usize = 4096;
const FEW_ELEMENTS: usize = 16;

/// As many of them are its last.
const LAST_ELEMENTS: usize = 6;

/// What an element takes beside its text.
const ELEMENT: usize = 48;

/// Longest line that is no text: a number, a status, an error.
const LINE: usize = 64 * 1024;

/// Bytes that are passed on at a time.
const PIECE: usize = 64 * 1024;

/// How deep arrays may lie in each other.
const DEEPEST: usize = 8;

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One command at a time.
pub(super) struct Connection {
    io: BufReader<Box<dyn Io>>,
    /// Longest wait for the peer to go on.
    patience: Duration,
    /// A command has been written whose answer was not read to its end.
    under_way: bool,
    /// The server said no. It may be another one's replica by now, or have given the key away.
    refused: bool,
}

/// A text as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    /// All of it, or its beginning.
    pub(super) bytes: Vec<u8>,
    /// How long it is.
    pub(super) len: usize,
}

/// What begins with the next line of an answer.
enum Token {
    Array(usize),
    Text(usize),
    Other(Value),
}

/// What may still be kept of an answer.
struct Room {
    each: usize,
    left: usize,
}

impl Text {
    pub(super) fn is_whole(&self) -> bool {
        self.bytes.len() == self.len
    }

    /// What [`Connection::ask`] makes of a text.
    pub(super) fn of(value: Value) -> Option<Self> {
        match value {
            Value::BulkString(bytes) => Some(Self { len: bytes.len(), bytes }),
            Value::SimpleString(text) => Some(Self { len: text.len(), bytes: text.into_bytes() }),
            Value::Array(cut) => match <[Value; 2]>::try_from(cut) {
                Ok([Value::Int(len), Value::BulkString(bytes)]) => {
                    Some(Self { bytes, len: usize::try_from(len).ok()? })
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn into_value(self) -> Value {
        if self.is_whole() {
            return Value::BulkString(self.bytes);
        }
        Value::Array(vec![Value::Int(self.len as i64), Value::BulkString(self.bytes)])
    }
}

impl Connection {
    pub(super) fn new(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, patience: Duration) -> Self {
        Self { io: BufReader::with_capacity(16 * 1024, Box::new(io)), patience, under_way: false, refused: false }
    }

    /// Whether somebody else may use it.
    pub(super) fn is_fit(&self) -> bool {
        !self.under_way && !self.refused
    }

    /// Sends a command and reads its answer, of each text no more than `each` bytes. A text that is cut comes as an
    /// array of its length and its beginning; an array that is cut is one of an odd number: its first elements, its last ones, and nothing.
    pub(super) async fn ask(&mut self, command: &Cmd, each: usize) -> RedisResult<Value> {
        self.send(&command.get_packed_command()).await?;
        let answer = self.value(&mut Room { each, left: ANSWER }, 0).await?;
        self.done(&answer);
        answer.extract_error()
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.under_way {
            return Err(Error::new(ErrorKind::BrokenPipe, "the connection was given up"));
        }
        self.under_way = true;
        self.write(bytes).await
    }

    fn done(&mut self, answer: &Value) {
        self.under_way = false;
        self.refused |= matches!(answer, Value::ServerError(_));
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let io = self.io.get_mut();
        let writing = async {
            io.write_all(bytes).await?;
            io.flush().await
        };
        timeout(self.patience, writing).await.map_err(|_late| ErrorKind::TimedOut)?
    }

    /// What has come, at least a byte of it.
    async fn fill(&mut self) -> Result<&[u8], Error> {
        if self.io.buffer().is_empty() {
            let come = timeout(self.patience, self.io.fill_buf()).await.map_err(|_late| ErrorKind::TimedOut)??;
            if come.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.io.buffer())
    }

    async fn token(&mut self) -> Result<Token, redis::RedisError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let bytes = self.fill().await?;
            let part = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |end| end + 1);
            line.extend_from_slice(&bytes[..part]);
            self.io.consume(part);
            if line.len() > LINE {
                return Err(nonsense("a line is too long").into());
            }
        }
        let (Some(kind @ (b'$' | b'*')), length) = (line.first().copied(), line.get(1..).unwrap_or_default()) else {
            return redis::parse_redis_value(&line).map(Token::Other);
        };
        let length = std::str::from_utf8(length).ok().and_then(|length| length.trim().parse::<i64>().ok());
        let length = length.ok_or_else(|| nonsense("a length is no number"))?;
        Ok(match (usize::try_from(length), kind) {
            // Nothing is of length -1.
            (Err(_), _) => Token::Other(Value::Nil),
            (Ok(length), b'$') => Token::Text(length),
            (Ok(length), _) => Token::Array(length),
        })
    }

    /// The first `keep` of `len` bytes; reads past the rest.
    async fn text(&mut self, len: usize, keep: usize) -> Result<Text, Error> {
        let mut bytes = Vec::with_capacity(len.min(keep));
        let mut left = len;
        while left > 0 {
            let come = self.fill().await?;
            let part = come.len().min(left);
            let wanted = part.min(keep - bytes.len());
            bytes.extend_from_slice(&come[..wanted]);
            self.io.consume(part);
            left -= part;
        }
        self.end_of_text().await?;
        Ok(Text { bytes, len })
    }

    async fn end_of_text(&mut self) -> Result<(), Error> {
        for expected in *b"\r\n" {
            if self.fill().await?.first() != Some(&expected) {
                return Err(nonsense("a text is longer than it says"));
            }
            self.io.consume(1);
        }
        Ok(())
    }

    async fn value(&mut self, room: &mut Room, depth: usize) -> RedisResult<Value> {
        match self.token().await? {
            Token::Other(value) => Ok(value),
            Token::Text(len) => {
                let keep = if len <= SHORT { len } else { room.each.min(room.left) };
                let text = self.text(len, keep).await?;
                room.left = room.left.saturating_sub(text.bytes.len() + ELEMENT);
                Ok(text.into_value())
            }
            Token::Array(_) if depth == DEEPEST => Err(nonsense("arrays lie too deep").into()),
            Token::Array(count) => self.array(count, room, depth + 1).await,
        }
    }

    fn array<'a>(&'a mut self, count: usize, room: &'a mut Room, depth: usize) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let kept = count.min(if room.left > 0 { ELEMENTS } else { FEW_ELEMENTS });
            let mut values = Vec::with_capacity(kept);
            for place in 0..kept {
                if kept < count && place == kept - LAST_ELEMENTS {
                    self.skip(count - kept).await?;
                }
                values.push(self.value(room, depth).await?);
            }
            if kept < count {
                values.push(Value::Nil);
            }
            Ok(Value::Array(values))
        })
    }

    /// Reads past so many values.
    async fn skip(&mut self, mut count: usize) -> RedisResult<()> {
        while count > 0 {
            count -= 1;
            match self.token().await? {
                Token::Text(len) => drop(self.text(len, 0).await?),
                Token::Array(more) => count = count.saturating_add(more),
                Token::Other(_) => {}
            }
        }
        Ok(())
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.ask(command, TEXT))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            self.send(&pipeline.get_packed_pipeline()).await?;
            let (mut answers, mut refused) = (Vec::with_capacity(count), None);
            for place in 0..offset + count {
                let answer = self.value(&mut Room { each: TEXT, left: ANSWER }, 0).await?;
                // The answers before tell only whether a command was taken into the transaction.
                match answer.extract_error() {
                    Ok(answer) if place >= offset => answers.push(answer),
                    Ok(_) => {}
                    Err(error) => refused = refused.or(Some(error)),
                }
            }
            self.under_way = false;
            self.refused |= refused.is_some();
            refused.map_or(Ok(answers), Err)
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}

/// Which fields of an entry go where.
pub(super) struct Move<'a> {
    pub(super) from: &'a str,
    pub(super) id: &'a str,
    /// All fields but the last so many.
    pub(super) without_last: usize,
    pub(super) to: &'a str,
    /// What is put behind them.
    pub(super) added: &'a [(&'a str, String)],
}

/// Adds an entry's fields to another stream, byte by byte as they are, whatever their length: they pass through a
/// buffer. The entry stays where it was. `false` if there is none.
pub(super) async fn move_fields(from: &mut Connection, to: &mut Connection, what: &Move<'_>) -> RedisResult<bool> {
    let mut read = redis::cmd("XRANGE");
    read.arg(what.from).arg(what.id).arg(what.id);
    from.send(&read.get_packed_command()).await?;
    let Some(texts) = texts_of_entry(from).await? else { return Ok(false) };
    let moved = texts.saturating_sub(what.without_last * 2);
    if moved + what.added.len() == 0 {
        from.skip(texts).await?;
        from.under_way = false;
        return Ok(false);
    }
    let mut head = format!("*{}\r\n", 3 + moved + what.added.len() * 2).into_bytes();
    for text in ["XADD", what.to, "*"] {
        put(&mut head, text.as_bytes());
    }
    to.send(&head).await?;
    let mut piece = Vec::with_capacity(PIECE);
    for _ in 0..moved {
        pass_text(from, to, &mut piece).await?;
    }
    from.skip(texts - moved).await?;
    from.under_way = false;
    for (name, value) in what.added {
        put(&mut piece, name.as_bytes());
        put(&mut piece, value.as_bytes());
    }
    to.write(&piece).await?;
    let answer = to.value(&mut Room { each: SHORT, left: ANSWER }, 0).await?;
    to.done(&answer);
    answer.extract_error().map(|_id| true)
}

/// How many texts the one entry of an answer has: names and values. They are what comes next.
async fn texts_of_entry(from: &mut Connection) -> RedisResult<Option<usize>> {
    match from.token().await? {
        Token::Array(1) => {}
        Token::Array(0) => {
            from.under_way = false;
            return Ok(None);
        }
        Token::Other(answer) => {
            from.done(&answer);
            answer.extract_error()?;
            return Ok(None);
        }
        _ => return Err(nonsense("not one entry").into()),
    }
    if !matches!(from.token().await?, Token::Array(2)) {
        return Err(nonsense("not an entry").into());
    }
    from.skip(1).await?;
    match from.token().await? {
        Token::Array(texts) => Ok(Some(texts)),
        _ => Err(nonsense("not the fields of an entry").into()),
    }
}

async fn pass_text(from: &mut Connection, to: &mut Connection, piece: &mut Vec<u8>) -> RedisResult<()> {
    let Token::Text(len) = from.token().await? else { return Err(nonsense("not a text").into()) };
    piece.extend_from_slice(format!("${len}\r\n").as_bytes());
    let mut left = len;
    while left > 0 {
        let come = from.fill().await?;
        let part = come.len().min(left);
        piece.extend_from_slice(&come[..part]);
        from.io.consume(part);
        left -= part;
        if piece.len() >= PIECE {
            to.write(piece).await?;
            piece.clear();
        }
    }
    from.end_of_text().await?;
    piece.extend_from_slice(b"\r\n");
    Ok(())
}

fn put(bytes: &mut Vec<u8>, text: &[u8]) {
    bytes.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
    bytes.extend_from_slice(text);
    bytes.extend_from_slice(b"\r\n");
}

fn nonsense(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A connection to somebody who says this, and that somebody.
    fn heard(says: &str) -> (Connection, tokio::io::DuplexStream, String) {
        let (here, there) = tokio::io::duplex(1 << 20);
        (Connection::new(here, PATIENCE), there, says.to_owned())
    }

    async fn answer(says: &str, each: usize) -> RedisResult<Value> {
        let (mut here, mut there, says) = heard(says);
        there.write_all(says.as_bytes()).await.unwrap();
        let answer = here.ask(&redis::cmd("X"), each).await;
        assert!(!here.under_way);
        answer
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[tokio::test]
    async fn what_fits_comes_as_it_is() {
        let says = "*4\r\n$2\r\nab\r\n:7\r\n$-1\r\n*1\r\n+OK\r\n";
        let wanted = [bulk("ab"), Value::Int(7), Value::Nil, Value::Array(vec![Value::Okay])];
        assert_eq!(answer(says, TEXT).await.unwrap(), Value::Array(wanted.into()));
        assert_eq!(answer("-NOGROUP none\r\n", TEXT).await.unwrap_err().code(), Some("NOGROUP"));
    }

    #[tokio::test]
    async fn a_long_text_is_its_beginning_and_its_length() {
        let long = "x".repeat(200_000);
        let says = format!("*2\r\n${}\r\n{long}\r\n$1\r\ny\r\n", long.len());
        let Value::Array(values) = answer(&says, 100).await.unwrap() else { panic!("an array") };
        let texts: Vec<Text> = values.into_iter().map(|value| Text::of(value).unwrap()).collect();
        assert_eq!((texts[0].len, texts[0].bytes.len(), texts[0].is_whole()), (200_000, 100, false));
        assert!(texts[1].is_whole());
    }

    #[tokio::test]
    async fn an_array_that_is_cut_has_an_odd_number_and_what_follows_is_there() {
        let says = format!("*2\r\n*10000\r\n{}$1\r\nz\r\n$1\r\ny\r\n", "$1\r\nx\r\n".repeat(9_999));
        let Value::Array(values) = answer(&says, TEXT).await.unwrap() else { panic!("an array") };
        let Value::Array(cut) = &values[0] else { panic!("an array") };
        assert_eq!((cut.len(), &values[1]), (ELEMENTS + 1, &bulk("y")));
        assert_eq!(cut[ELEMENTS - 2..], [bulk("x"), bulk("z"), Value::Nil]);
    }

    #[tokio::test]
    async fn an_answer_that_was_not_read_to_its_end_is_the_last() {
        let (mut here, mut there, _) = heard("");
        there.write_all(b"$10\r\nabc").await.unwrap();
        drop(there);
        here.ask(&redis::cmd("X"), TEXT).await.unwrap_err();
        assert!(here.under_way && !here.is_fit());
    }

    #[tokio::test]
    async fn fields_are_moved_as_they_are() {
        let (mut from, mut source, _) = heard("");
        let (mut to, mut target, _) = heard("");
        let long = "\u{0}\r\n\u{ff}".repeat(30_000);
        let entry =
            format!("*1\r\n*2\r\n$3\r\n1-1\r\n*4\r\n$1\r\na\r\n${0}\r\n{long}\r\n$1\r\nb\r\n$1\r\nc\r\n", long.len());
        source.write_all(entry.as_bytes()).await.unwrap();
        target.write_all(b"$3\r\n2-1\r\n").await.unwrap();
        let added = [("at", "now".to_owned())];
        let what = Move { from: "s", id: "1-1", without_last: 1, to: "d", added: &added };
        assert!(move_fields(&mut from, &mut to, &what).await.unwrap());
        assert!(from.is_fit() && to.is_fit());
        drop(to);
        let mut written = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut target, &mut written).await.unwrap();
        let mut wanted = b"*7\r\n".to_vec();
        for text in ["XADD", "d", "*", "a", &long, "at", "now"] {
            put(&mut wanted, text.as_bytes());
        }
        assert!(written == wanted);
    }
}
