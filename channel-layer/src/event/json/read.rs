//! The reader: what Python's `json.loads` reads, which is more than JSON allows.
//!
//! It is our own because the usual ones refuse a whole event for a value that nobody may ever look at:
//! `NaN`, `1e400`, an integer beyond 64 bits, or half of a surrogate pair from a text that was cut in an emoji.

use crate::{
    EventError,
    event::{MAX_DEPTH, MAX_VALUES, Text, Value, value::last_wins},
};

/// What some editors and writers put in front of UTF-8; Python's reader skips it too.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const NOT_JSON: EventError = EventError::Malformed("not JSON");
const TOO_SHORT: EventError = EventError::Malformed("JSON ends too early");

pub(in crate::event) fn decode(payload: &[u8]) -> Result<Vec<(Text, Value)>, EventError> {
    match read(payload)? {
        Value::Map(entries) => Ok(entries),
        _ => Err(EventError::NotAMap),
    }
}

/// Reads one value of any kind.
pub(in crate::event) fn read(payload: &[u8]) -> Result<Value, EventError> {
    let mut reader = Reader { rest: payload.strip_prefix(BYTE_ORDER_MARK).unwrap_or(payload), values: 0 };
    let value = reader.value(0)?;
    match reader.next() {
        None => Ok(value),
        Some(_) => Err(NOT_JSON),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Values read, without the outermost.
    values: usize,
}

impl<'a> Reader<'a> {
    /// The next byte that is not white space. It stays where it is.
    fn next(&mut self) -> Option<u8> {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
        self.rest.first().copied()
    }

    /// Takes the byte that must come next.
    fn take(&mut self, wanted: u8) -> Result<(), EventError> {
        match self.next() {
            Some(byte) if byte == wanted => {
                self.rest = &self.rest[1..];
                Ok(())
            }
            Some(_) => Err(NOT_JSON),
            None => Err(TOO_SHORT),
        }
    }

    /// Takes the byte if it comes next.
    fn took(&mut self, wanted: u8) -> bool {
        self.take(wanted).is_ok()
    }

    /// One value at a given depth, the outermost being at depth 0.
    fn value(&mut self, depth: usize) -> Result<Value, EventError> {
        if depth > 0 {
            self.values += 1;
            if self.values > MAX_VALUES {
                return Err(EventError::TooLarge);
            }
        }
        match self.next().ok_or(TOO_SHORT)? {
            b'"' => self.text().map(Value::Text),
            b'-' | b'0'..=b'9' => self.number(),
            b'{' | b'[' if depth >= MAX_DEPTH => Err(EventError::TooDeep),
            b'{' => self.map(depth),
            b'[' => self.list(depth),
            _ => self.word(),
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, EventError> {
        self.take(b'{')?;
        let mut entries = Vec::new();
        if self.took(b'}') {
            return Ok(Value::Map(entries));
        }
        loop {
            // `text` expects to stand at its quote.
            self.next();
            let key = self.text()?;
            self.take(b':')?;
            entries.push((key, self.value(depth + 1)?));
            if !self.took(b',') {
                self.take(b'}')?;
                return Ok(Value::Map(last_wins(entries)));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, EventError> {
        self.take(b'[')?;
        let mut items = Vec::new();
        if self.took(b']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if !self.took(b',') {
                self.take(b']')?;
                return Ok(Value::List(items));
            }
        }
    }

    fn word(&mut self) -> Result<Value, EventError> {
        for (word, value) in [
            (&b"null"[..], Value::Null),
            (b"true", Value::Bool(true)),
            (b"false", Value::Bool(false)),
            (b"NaN", Value::Float(f64::NAN)),
            (b"Infinity", Value::Float(f64::INFINITY)),
            (b"-Infinity", Value::Float(f64::NEG_INFINITY)),
        ] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
            if word.starts_with(self.rest) {
                return Err(TOO_SHORT);
            }
        }
        Err(NOT_JSON)
    }

    fn number(&mut self) -> Result<Value, EventError> {
        let start = self.rest;
        let mut whole = true;
        if let [b'-', rest @ ..] = self.rest {
            self.rest = rest;
        }
        match self.rest {
            [b'0', rest @ ..] => self.rest = rest,
            [b'1'..=b'9', ..] => self.digits()?,
            [b'I', ..] => {
                self.rest = start;
                return self.word();
            }
            [] => return Err(TOO_SHORT),
            _ => return Err(NOT_JSON),
        }
        if let [b'.', rest @ ..] = self.rest {
            (self.rest, whole) = (rest, false);
            self.digits()?;
        }
        if let [b'e' | b'E', rest @ ..] = self.rest {
            (self.rest, whole) = (rest, false);
            if let [b'+' | b'-', rest @ ..] = self.rest {
                self.rest = rest;
            }
            self.digits()?;
        }
        let number = std::str::from_utf8(&start[..start.len() - self.rest.len()]).map_err(|_| NOT_JSON)?;
        if whole {
            if let Ok(number) = number.parse::<i64>() {
                return Ok(Value::Int(number));
            }
            if let Ok(number) = number.parse::<u64>() {
                return Ok(Value::UInt(number));
            }
        }
        // What is too large for a float is an infinity, as in Python. An integer beyond 64 bits, which Python
        // keeps as it is, becomes the float that a browser would make of it.
        number.parse().map(Value::Float).map_err(|_| NOT_JSON)
    }

    /// Skips digits, at least one.
    fn digits(&mut self) -> Result<(), EventError> {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        match count {
            0 if self.rest.is_empty() => Err(TOO_SHORT),
            0 => Err(NOT_JSON),
            _ => Ok(()),
        }
    }

    /// Text from its quote on.
    fn text(&mut self) -> Result<Text, EventError> {
        self.take(b'"')?;
        let plain = self.plain()?;
        if self.rest.first() == Some(&b'"') {
            self.rest = &self.rest[1..];
            return Ok(Text::new(plain));
        }
        let mut text = Text::with_capacity(plain.len() + 16);
        text.push_str(plain);
        while let [b'\\', rest @ ..] = self.rest {
            self.rest = rest;
            text.push(self.escaped()?);
            text.push_str(self.plain()?);
        }
        self.take(b'"')?;
        Ok(text)
    }

    /// Text up to the next quote or escape.
    fn plain(&mut self) -> Result<&'a str, EventError> {
        // By blocks without a branch inside, of which the compiler makes vector instructions.
        let (blocks, _) = self.rest.as_chunks::<16>();
        let plain = blocks.iter().take_while(|block| !block.iter().fold(false, |ends, byte| ends | ends_plain(*byte)));
        let skipped = plain.count() * 16;
        let end = self.rest[skipped..].iter().position(|byte| ends_plain(*byte)).ok_or(TOO_SHORT)? + skipped;
        let (plain, rest) = self.rest.split_at(end);
        if rest[0] < 0x20 {
            return Err(NOT_JSON);
        }
        self.rest = rest;
        std::str::from_utf8(plain).map_err(|_| NOT_JSON)
    }

    /// The character behind a backslash.
    fn escaped(&mut self) -> Result<char, EventError> {
        let [kind, rest @ ..] = self.rest else { return Err(TOO_SHORT) };
        self.rest = rest;
        Ok(match kind {
            b'"' | b'\\' | b'/' => char::from(*kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.unit()?;
                let behind = self.rest;
                if (0xd800..0xdc00).contains(&first)
                    && let [b'\\', b'u', rest @ ..] = self.rest
                {
                    self.rest = rest;
                    let pair = [first, self.unit()?];
                    if let Some(Ok(whole)) = char::decode_utf16(pair).next() {
                        return Ok(whole);
                    }
                    // What follows is no other half, so it stands for itself.
                    self.rest = behind;
                }
                char::from_u32(first.into()).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => return Err(NOT_JSON),
        })
    }

    /// Four hex digits.
    fn unit(&mut self) -> Result<u16, EventError> {
        let [a, b, c, d, rest @ ..] = self.rest else { return Err(TOO_SHORT) };
        let mut unit = 0;
        for digit in [a, b, c, d] {
            let digit = char::from(*digit).to_digit(16).ok_or(NOT_JSON)?;
            unit = unit << 4 | digit as u16;
        }
        self.rest = rest;
        Ok(unit)
    }
}

/// Quotes and backslashes, and control characters, which no text may contain.
fn ends_plain(byte: u8) -> bool {
    (byte == b'"') | (byte == b'\\') | (byte < 0x20)
}
