//! Python pickles read as data: no name is imported and nothing is called, because nothing here could.
//!
//! Cached sessions are pickles. Of such a dict three fields matter; everything else only has to be plain data. Values
//! are not built: a list is a mark that a list was there, so a pickle that would unfold to gigabytes takes its own size.

use std::collections::HashMap;

use super::payload::{Field, Fields};

/// Operations of one pickle, so that what is kept of them has a bound: some 24 bytes each.
const OPERATIONS: usize = 1 << 18;

/// What a value is, as far as it matters.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    None,
    Integer(i64),
    Text(&'a str),
    /// A dict, by its number.
    Dict(u32),
    /// A list or a set.
    List,
    /// Any other plain data.
    Plain,
}

#[derive(Default)]
struct Machine<'a> {
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    dicts: u32,
    /// Fields of each dict that has one of ours.
    fields: HashMap<u32, Fields>,
}

/// The fields of a dict of plain data; nothing if it is anything else.
pub(super) fn read(pickle: &[u8]) -> Option<Fields> {
    let (mut machine, mut rest) = (Machine::default(), Bytes(pickle));
    for _ in 0..OPERATIONS {
        match rest.byte()? {
            b'.' => {
                let Some(Value::Dict(number)) = machine.stack.pop() else { return None };
                return machine.stack.is_empty().then(|| machine.fields.remove(&number).unwrap_or_default());
            }
            operation => machine.run(operation, &mut rest)?,
        }
    }
    None
}

impl<'a> Machine<'a> {
    fn run(&mut self, operation: u8, rest: &mut Bytes<'a>) -> Option<()> {
        match operation {
            // PROTO, FRAME
            0x80 => (rest.byte()? <= 5).then_some(())?,
            0x95 => drop(rest.take(8)?),
            b'N' => self.push(Value::None),
            // NEWTRUE, NEWFALSE
            0x88 | 0x89 => self.push(Value::Plain),
            // BININT1, BININT2, BININT
            b'K' => {
                let number = rest.byte()?;
                self.push(Value::Integer(number.into()));
            }
            b'M' => {
                let number = rest.number(2)?;
                self.push(Value::Integer(number as i64));
            }
            b'J' => {
                let number = rest.number(4)? as u32;
                self.push(Value::Integer((number as i32).into()));
            }
            // LONG1, LONG4
            0x8a => {
                let length = rest.byte()?.into();
                let value = whole(rest.take(length)?);
                self.push(value);
            }
            0x8b => {
                let length = rest.number(4)?;
                let value = whole(rest.take(length)?);
                self.push(value);
            }
            b'I' => {
                let line = rest.line()?;
                let value = match line {
                    "00" | "01" => Value::Plain,
                    number => Value::Integer(number.trim().parse().ok()?),
                };
                self.push(value);
            }
            b'L' => {
                let line = rest.line()?;
                let digits = line.strip_suffix('L').unwrap_or(line);
                let is_whole = digits.strip_prefix('-').unwrap_or(digits).bytes().all(|byte| byte.is_ascii_digit());
                (is_whole && !digits.is_empty()).then_some(())?;
                self.push(digits.parse().map_or(Value::Plain, Value::Integer));
            }
            // BINFLOAT, FLOAT
            b'G' => {
                rest.take(8)?;
                self.push(Value::Plain);
            }
            b'F' => {
                rest.line()?;
                self.push(Value::Plain);
            }
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c => self.push_text(rest, 1)?,
            b'X' => self.push_text(rest, 4)?,
            0x8d => self.push_text(rest, 8)?,
            // UNICODE, whose backslashes would mean something
            b'V' => {
                let line = rest.line()?;
                self.push(if line.is_ascii() && !line.contains('\\') { Value::Text(line) } else { Value::Plain });
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => self.push_bytes(rest, 1)?,
            b'B' => self.push_bytes(rest, 4)?,
            0x8e | 0x96 => self.push_bytes(rest, 8)?,
            // EMPTY_DICT, EMPTY_LIST, EMPTY_SET, EMPTY_TUPLE
            b'}' => {
                let dict = self.new_dict();
                self.push(dict);
            }
            b']' | 0x8f => self.push(Value::List),
            b')' => self.push(Value::Plain),
            b'(' => self.marks.push(self.stack.len()),
            // DICT, LIST, TUPLE, FROZENSET
            b'd' => {
                let items = self.marked()?;
                let dict = self.new_dict();
                self.set_items(dict, &items)?;
                self.push(dict);
            }
            b'l' => {
                self.marked()?;
                self.push(Value::List);
            }
            b't' | 0x91 => {
                self.marked()?;
                self.push(Value::Plain);
            }
            // TUPLE1 to TUPLE3
            0x85..=0x87 => {
                let length = self.stack.len().checked_sub(usize::from(operation - 0x84))?;
                self.stack.truncate(length);
                self.push(Value::Plain);
            }
            // SETITEM, SETITEMS
            b's' => {
                let (value, name) = (self.stack.pop()?, self.stack.pop()?);
                self.set_items(*self.stack.last()?, &[name, value])?;
            }
            b'u' => {
                let items = self.marked()?;
                self.set_items(*self.stack.last()?, &items)?;
            }
            // APPEND, APPENDS and ADDITEMS
            b'a' => {
                self.stack.pop()?;
                matches!(self.stack.last()?, Value::List).then_some(())?;
            }
            b'e' | 0x90 => {
                self.marked()?;
                matches!(self.stack.last()?, Value::List).then_some(())?;
            }
            // MEMOIZE, BINPUT, LONG_BINPUT, PUT
            0x94 => self.remember(self.memo.len() as u64)?,
            b'q' => {
                let at = rest.byte()?.into();
                self.remember(at)?;
            }
            b'r' => {
                let at = rest.number(4)? as u64;
                self.remember(at)?;
            }
            b'p' => {
                let at = rest.line()?.parse().ok()?;
                self.remember(at)?;
            }
            // BINGET, LONG_BINGET, GET
            b'h' => {
                let at = rest.byte()?.into();
                self.recall(at)?;
            }
            b'j' => {
                let at = rest.number(4)? as u64;
                self.recall(at)?;
            }
            b'g' => {
                let at = rest.line()?.parse().ok()?;
                self.recall(at)?;
            }
            // All that names or calls something, and all that nobody knows.
            _ => return None,
        }
        Some(())
    }

    fn push(&mut self, value: Value<'a>) {
        self.stack.push(value);
    }

    fn push_text(&mut self, rest: &mut Bytes<'a>, width: usize) -> Option<()> {
        let length = rest.number(width)?;
        // Python writes halves of surrogate pairs, which are no UTF-8.
        let text = std::str::from_utf8(rest.take(length)?);
        self.push(text.map_or(Value::Plain, Value::Text));
        Some(())
    }

    fn push_bytes(&mut self, rest: &mut Bytes<'a>, width: usize) -> Option<()> {
        let length = rest.number(width)?;
        rest.take(length)?;
        self.push(Value::Plain);
        Some(())
    }

    fn new_dict(&mut self) -> Value<'a> {
        self.dicts += 1;
        Value::Dict(self.dicts)
    }

    /// Takes what is above the last mark.
    fn marked(&mut self) -> Option<Vec<Value<'a>>> {
        let mark = self.marks.pop()?;
        (mark <= self.stack.len()).then(|| self.stack.split_off(mark))
    }

    fn set_items(&mut self, dict: Value<'a>, items: &[Value<'a>]) -> Option<()> {
        let Value::Dict(number) = dict else { return None };
        if !items.len().is_multiple_of(2) {
            return None;
        }
        for pair in items.chunks_exact(2) {
            if let Value::Text(name) = pair[0]
                && Fields::knows(name)
            {
                self.fields.entry(number).or_default().set(name, pair[1].into());
            }
        }
        Some(())
    }

    fn remember(&mut self, at: u64) -> Option<()> {
        self.memo.insert(at, *self.stack.last()?);
        Some(())
    }

    fn recall(&mut self, at: u64) -> Option<()> {
        let value = *self.memo.get(&at)?;
        self.push(value);
        Some(())
    }
}

impl From<Value<'_>> for Field {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::None => Self::None,
            Value::Text(text) => Self::Text(text.to_owned()),
            Value::Integer(number) => Self::Text(number.to_string()),
            Value::Dict(_) | Value::List | Value::Plain => Self::Other,
        }
    }
}

/// A whole number of any size, the least byte first.
fn whole<'a>(bytes: &[u8]) -> Value<'a> {
    if bytes.len() > 8 {
        return Value::Plain;
    }
    let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut all = [if is_negative { 0xff } else { 0 }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Value::Integer(i64::from_le_bytes(all))
}

/// What is still to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes, the least first.
    fn number(&mut self, width: usize) -> Option<usize> {
        let bytes = self.take(width)?;
        let number = bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        usize::try_from(number).ok()
    }

    fn line(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Field {
        Field::Text(text.to_owned())
    }

    #[test]
    fn every_protocol_is_read() {
        // pickle.dumps({"_auth_user_id": "1", "_auth_user_hash": 7, "l": [1, 2.5, (1, b"x")], "s": {1}}, protocol)
        let zero: &[u8] = b"(dp0\nV_auth_user_id\np1\nV1\np2\nsV_auth_user_hash\np3\nI7\nsVl\np4\n(lp5\nI1\naF2.5\na(I1\nL12L\ntp6\nas.";
        let two: &[u8] = b"\x80\x02}q\x00(X\x0d\x00\x00\x00_auth_user_idq\x01X\x01\x00\x00\x001q\x02X\x0f\x00\x00\x00\
            _auth_user_hashq\x03K\x07X\x01\x00\x00\x00lq\x04]q\x05(K\x01G@\x04\x00\x00\x00\x00\x00\x00K\x01K\x02\x86q\x06eu.";
        let four: &[u8] =
            b"\x80\x04\x95\x40\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x0d_auth_user_id\x94\x8c\x011\x94\x8c\x0f\
            _auth_user_hash\x94K\x07\x8c\x01l\x94]\x94(K\x01K\x01C\x01x\x94\x86\x94e\x8c\x01s\x94\x8f\x94(K\x01\x90u.";
        for pickle in [zero, two, four] {
            let fields = read(pickle).unwrap();
            assert_eq!((fields.user_id, fields.hash, fields.backend), (text("1"), text("7"), Field::None));
        }
    }

    #[test]
    fn what_names_or_calls_something_is_refused() {
        let dict = |value: &[u8]| [b"\x80\x04}\x94\x8c\x01a", value, b"s."].concat();
        assert_eq!(read(&dict(b"N")), Some(Fields::default()));
        for wrong in [
            &b"\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R"[..],
            b"cos\nsystem\n(S'ls'\ntR",
            b"(S'ls'\nios\nsystem\n",
            b"\x82\x01",
            b"N\x85\x81",
            b"Nb",
            b"P1\n",
            b"NQ",
            b"\x97",
        ] {
            assert_eq!(read(&dict(wrong)), None, "{wrong:?}");
        }
        assert_eq!(read(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R."), None);
        assert_eq!(read(b"\x80\x06}."), None);
        assert_eq!(read(b"\x80\x04]."), None);
        assert_eq!(read(b"\x80\x04}"), None);
        assert_eq!(read(b""), None);
    }

    #[test]
    fn a_pickle_takes_no_more_than_its_size() {
        // Each list holds the one before it twice: 2^60 values, if they were built.
        let mut bomb = b"\x80\x04}\x94\x8c\x01a]\x94".to_vec();
        for _ in 0..60 {
            bomb.extend(b"]\x94(h\x01h\x01e");
        }
        bomb.extend(b"\x85s.");
        assert_eq!(read(&bomb), None);
        let pushes = [&b"\x80\x04"[..], &vec![b'}'; 2 * OPERATIONS]].concat();
        assert_eq!(read(&pushes), None);
        assert_eq!(read(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff."), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn any_operations_are_run_or_refused(
            operations in proptest::collection::vec(
                proptest::sample::select(vec![
                    &b"}"[..], &b"]"[..], &b"("[..], &b"u"[..], &b"e"[..], &b"s"[..], &b"a"[..], &b"t"[..],
                    &b"d"[..], &b"l"[..], &b"\x94"[..], &b"h\x00"[..], &b"h\x01"[..], &b"K\x01"[..], &b"N"[..],
                    &b"\x8c\x0d_auth_user_id"[..], &b"\x8c\x011"[..], &b"\x85"[..], &b"\x87"[..], &b"\x90"[..],
                ]),
                0..60,
            )
        ) {
            let _ = read(&[operations.concat(), b".".to_vec()].concat());
        }
    }
}
