//! The little of msgpack that links need: maps with names as keys are read, and what is unknown in them is passed over.

/// Levels of lists and maps in each other.
const MAX_DEPTH: usize = 16;

/// A value, as far as links have any use for it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Nil,
    Int(i64),
    Float(f64),
    Str(&'a str),
    Bin(&'a [u8]),
    List(Vec<Value<'a>>),
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// True, false, what an extension holds, a number past `i64`.
    Other,
}

/// The bytes are no msgpack, or not of the shape that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a body that cannot be read")]
pub(super) struct Unreadable;

/// Reads the one value that the bytes are.
pub(super) fn read(bytes: &[u8]) -> Result<Value<'_>, Unreadable> {
    let mut decoder = Decoder { rest: bytes };
    let value = decoder.value(MAX_DEPTH)?;
    if decoder.rest.is_empty() { Ok(value) } else { Err(Unreadable) }
}

impl<'a> Value<'a> {
    /// A field of a map; `Nil` where there is none.
    pub(super) fn get(&self, key: &str) -> &Self {
        let Self::Map(fields) = self else { return &Self::Nil };
        fields
            .iter()
            .find(|(name, _)| matches!(name, Self::Str(name) if *name == key))
            .map_or(&Self::Nil, |(_, value)| value)
    }

    pub(super) fn str(&self) -> Result<&'a str, Unreadable> {
        if let Self::Str(text) = self { Ok(text) } else { Err(Unreadable) }
    }

    /// Bytes; a text is as good.
    pub(super) fn bin(&self) -> Result<&'a [u8], Unreadable> {
        match self {
            Self::Bin(bytes) => Ok(bytes),
            Self::Str(text) => Ok(text.as_bytes()),
            _ => Err(Unreadable),
        }
    }

    /// A number that is not negative.
    pub(super) fn count(&self) -> Result<u64, Unreadable> {
        if let Self::Int(number) = self { u64::try_from(*number).map_err(|_| Unreadable) } else { Err(Unreadable) }
    }

    pub(super) fn float(&self) -> Result<f64, Unreadable> {
        match self {
            Self::Float(number) if number.is_finite() => Ok(*number),
            Self::Int(number) => Ok(*number as f64),
            _ => Err(Unreadable),
        }
    }

    pub(super) fn list(&self) -> Result<&[Self], Unreadable> {
        if let Self::List(items) = self { Ok(items) } else { Err(Unreadable) }
    }

    /// Whether it is absent, or nil.
    pub(super) fn is_nil(&self) -> bool {
        matches!(self, Self::Nil)
    }
}

struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Unreadable)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        self.take(N)?.try_into().map_err(|_| Unreadable)
    }

    fn length(&mut self, bytes: usize) -> Result<usize, Unreadable> {
        Ok(self.take(bytes)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, Unreadable> {
        let [marker] = self.number()?;
        Ok(match marker {
            0x00..=0x7f => Value::Int(marker.into()),
            0xe0..=0xff => Value::Int((marker as i8).into()),
            0x80..=0x8f => self.map(usize::from(marker & 0x0f), depth)?,
            0x90..=0x9f => self.items(usize::from(marker & 0x0f), depth)?,
            0xa0..=0xbf => self.text(usize::from(marker & 0x1f))?,
            0xc0 => Value::Nil,
            0xc1 => return Err(Unreadable),
            0xc2 | 0xc3 => Value::Other,
            0xc4..=0xc6 => {
                let length = self.length(1 << (marker - 0xc4))?;
                Value::Bin(self.take(length)?)
            }
            0xc7..=0xc9 => {
                let length = self.length(1 << (marker - 0xc7))?;
                self.take(length + 1)?;
                Value::Other
            }
            0xca => Value::Float(f32::from_be_bytes(self.number()?).into()),
            0xcb => Value::Float(f64::from_be_bytes(self.number()?)),
            0xcc => Value::Int(u8::from_be_bytes(self.number()?).into()),
            0xcd => Value::Int(u16::from_be_bytes(self.number()?).into()),
            0xce => Value::Int(u32::from_be_bytes(self.number()?).into()),
            0xcf => i64::try_from(u64::from_be_bytes(self.number()?)).map_or(Value::Other, Value::Int),
            0xd0 => Value::Int(i8::from_be_bytes(self.number()?).into()),
            0xd1 => Value::Int(i16::from_be_bytes(self.number()?).into()),
            0xd2 => Value::Int(i32::from_be_bytes(self.number()?).into()),
            0xd3 => Value::Int(i64::from_be_bytes(self.number()?)),
            0xd4..=0xd8 => {
                self.take((1 << (marker - 0xd4)) + 1)?;
                Value::Other
            }
            0xd9..=0xdb => {
                let length = self.length(1 << (marker - 0xd9))?;
                self.text(length)?
            }
            0xdc | 0xdd => {
                let length = self.length(2 << (marker - 0xdc))?;
                self.items(length, depth)?
            }
            0xde | 0xdf => {
                let length = self.length(2 << (marker - 0xde))?;
                self.map(length, depth)?
            }
        })
    }

    fn text(&mut self, length: usize) -> Result<Value<'a>, Unreadable> {
        std::str::from_utf8(self.take(length)?).map(Value::Str).map_err(|_| Unreadable)
    }

    fn items(&mut self, length: usize, depth: usize) -> Result<Value<'a>, Unreadable> {
        // Each takes a byte at least: what is announced and cannot be there is not made room for.
        if depth == 0 || length > self.rest.len() {
            return Err(Unreadable);
        }
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(self.value(depth - 1)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<Value<'a>, Unreadable> {
        if depth == 0 || length > self.rest.len() / 2 {
            return Err(Unreadable);
        }
        let mut fields = Vec::new();
        for _ in 0..length {
            fields.push((self.value(depth - 1)?, self.value(depth - 1)?));
        }
        Ok(Value::Map(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_and_what_is_unknown_is_passed_over() {
        let mut bytes = vec![0x86];
        bytes.extend_from_slice(b"\xa1v\x01\xa1f\xcb");
        bytes.extend_from_slice(&2.5_f64.to_be_bytes());
        bytes.extend_from_slice(b"\xa1b\xc4\x02\xff\x00\xa1l\x92\xc0\xa1x\xa1o\xd4\x05\x00\xa1n\xd1\xff\xff");
        let map = read(&bytes).unwrap();
        assert_eq!(
            (map.get("v").count(), map.get("f").float(), map.get("b").bin()),
            (Ok(1), Ok(2.5), Ok(&[255, 0][..]))
        );
        assert_eq!(map.get("l").list(), Ok(&[Value::Nil, Value::Str("x")][..]));
        assert_eq!((map.get("n").count(), map.get("n").clone()), (Err(Unreadable), Value::Int(-1)));
        assert!(map.get("nothing").is_nil() && *map.get("o") == Value::Other);
    }

    #[test]
    fn what_is_cut_too_deep_or_announced_only_is_unreadable() {
        let deep = [&[0x91; MAX_DEPTH + 1][..], &[0]].concat();
        for bytes in [
            &b""[..],
            b"\xc1",
            b"\xa5abc",
            b"\xdd\xff\xff\xff\xff\x00",
            b"\xdf\x7f\xff\xff\xff",
            b"\x01\x02",
            b"\xa1\xff",
            &deep,
        ] {
            assert_eq!(read(bytes), Err(Unreadable), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
