//! MessagePack as Python's `msgpack.packb(use_bin_type=True)` writes it and `unpackb` reads it.

use rmp::{Marker, encode};

use super::{MAX_DEPTH, MAX_VALUES, Text, Value, value::last_wins};
use crate::EventError;

/// The caller has checked depth and number of values.
pub(super) fn encode(entries: &[(Text, Value)]) -> Result<Vec<u8>, EventError> {
    let mut out = Vec::with_capacity(128);
    write_map(&mut out, entries)?;
    Ok(out)
}

fn write_map(out: &mut Vec<u8>, entries: &[(Text, Value)]) -> Result<(), EventError> {
    write_map_len(out, entries.len())?;
    entries.iter().try_for_each(|(key, value)| write_entry(out, key, value))
}

/// What comes before the entries of a map.
pub(crate) fn write_map_len(out: &mut Vec<u8>, entries: usize) -> Result<(), EventError> {
    done(encode::write_map_len(out, length(entries)?))
}

/// One key and its value.
pub(crate) fn write_entry(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), EventError> {
    write_text(out, key)?;
    write_value(out, value)
}

/// Text, also as the key of a map.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) -> Result<(), EventError> {
    length(text.len())?;
    done(encode::write_str(out, text))
}

/// A list of texts.
pub(crate) fn write_texts(out: &mut Vec<u8>, texts: &[&str]) -> Result<(), EventError> {
    done(encode::write_array_len(out, length(texts.len())?))?;
    texts.iter().try_for_each(|text| write_text(out, text))
}

fn write_value(out: &mut Vec<u8>, value: &Value) -> Result<(), EventError> {
    match value {
        Value::Null => done(encode::write_nil(out)),
        Value::Bool(v) => done(encode::write_bool(out, *v)),
        Value::Int(v) => done(encode::write_sint(out, *v)),
        Value::UInt(v) => done(encode::write_uint(out, *v)),
        Value::Float(v) => done(encode::write_f64(out, *v)),
        Value::Text(v) => write_text(out, v),
        Value::Bytes(v) => {
            length(v.len())?;
            done(encode::write_bin(out, v))
        }
        Value::List(items) => {
            done(encode::write_array_len(out, length(items.len())?))?;
            items.iter().try_for_each(|item| write_value(out, item))
        }
        Value::Map(entries) => write_map(out, entries),
    }
}

fn length(len: usize) -> Result<u32, EventError> {
    u32::try_from(len).map_err(|_| EventError::TooLarge)
}

/// Writing into a `Vec` cannot fail; the error type of `rmp` does not know that.
fn done<T, E>(result: Result<T, E>) -> Result<(), EventError> {
    result.map(|_| ()).map_err(|_| EventError::Malformed("writing to memory failed"))
}

pub(super) fn decode(payload: &[u8]) -> Result<Vec<(Text, Value)>, EventError> {
    let mut reader = Reader { rest: payload, values: 0 };
    let marker = Marker::from_u8(reader.byte()?);
    let len = match marker {
        Marker::FixMap(len) => u32::from(len),
        Marker::Map16 => reader.u16()?.into(),
        Marker::Map32 => reader.u32()?,
        _ => return Err(EventError::NotAMap),
    };
    let entries = reader.map(len, 1)?;
    match reader.rest {
        [] => Ok(entries),
        _ => Err(EventError::Malformed("bytes after the value")),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    values: usize,
}

const TRUNCATED: EventError = EventError::Malformed("it ends too early");

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], EventError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EventError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(TRUNCATED)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, EventError> {
        Ok(u8::from_be_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16, EventError> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, EventError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn text(&mut self, len: u32) -> Result<Text, EventError> {
        match std::str::from_utf8(self.take(len as usize)?) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(EventError::Malformed("text is not UTF-8")),
        }
    }

    fn bytes(&mut self, len: u32) -> Result<Value, EventError> {
        Ok(Value::Bytes(self.take(len as usize)?.to_vec()))
    }

    fn value(&mut self, depth: usize) -> Result<Value, EventError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(EventError::TooLarge);
        }
        Ok(match Marker::from_u8(self.byte()?) {
            Marker::Null => Value::Null,
            Marker::True => Value::Bool(true),
            Marker::False => Value::Bool(false),
            Marker::FixPos(v) => v.into(),
            Marker::FixNeg(v) => v.into(),
            Marker::U8 => self.byte()?.into(),
            Marker::U16 => self.u16()?.into(),
            Marker::U32 => self.u32()?.into(),
            Marker::U64 => u64::from_be_bytes(self.array()?).into(),
            Marker::I8 => i8::from_be_bytes(self.array()?).into(),
            Marker::I16 => i16::from_be_bytes(self.array()?).into(),
            Marker::I32 => i32::from_be_bytes(self.array()?).into(),
            Marker::I64 => i64::from_be_bytes(self.array()?).into(),
            Marker::F32 => f32::from_be_bytes(self.array()?).into(),
            Marker::F64 => f64::from_be_bytes(self.array()?).into(),
            Marker::FixStr(len) => Value::Text(self.text(len.into())?),
            Marker::Str8 => {
                let len = self.byte()?.into();
                Value::Text(self.text(len)?)
            }
            Marker::Str16 => {
                let len = self.u16()?.into();
                Value::Text(self.text(len)?)
            }
            Marker::Str32 => {
                let len = self.u32()?;
                Value::Text(self.text(len)?)
            }
            Marker::Bin8 => {
                let len = self.byte()?.into();
                self.bytes(len)?
            }
            Marker::Bin16 => {
                let len = self.u16()?.into();
                self.bytes(len)?
            }
            Marker::Bin32 => {
                let len = self.u32()?;
                self.bytes(len)?
            }
            Marker::FixArray(len) => self.list(len.into(), depth + 1)?,
            Marker::Array16 => {
                let len = self.u16()?.into();
                self.list(len, depth + 1)?
            }
            Marker::Array32 => {
                let len = self.u32()?;
                self.list(len, depth + 1)?
            }
            Marker::FixMap(len) => Value::Map(self.map(len.into(), depth + 1)?),
            Marker::Map16 => {
                let len = self.u16()?.into();
                Value::Map(self.map(len, depth + 1)?)
            }
            Marker::Map32 => {
                let len = self.u32()?;
                Value::Map(self.map(len, depth + 1)?)
            }
            Marker::Reserved => return Err(EventError::Malformed("the reserved byte c1")),
            Marker::FixExt1
            | Marker::FixExt2
            | Marker::FixExt4
            | Marker::FixExt8
            | Marker::FixExt16
            | Marker::Ext8
            | Marker::Ext16
            | Marker::Ext32 => return Err(EventError::Malformed("an extension type")),
        })
    }

    /// What a declared length may reserve ahead: never more than the bytes that are really there.
    fn reserve(&self, len: u32) -> usize {
        (len as usize).min(self.rest.len()).min(64)
    }

    fn list(&mut self, len: u32, depth: usize) -> Result<Value, EventError> {
        if depth > MAX_DEPTH {
            return Err(EventError::TooDeep);
        }
        let mut items = Vec::with_capacity(self.reserve(len));
        for _ in 0..len {
            items.push(self.value(depth)?);
        }
        Ok(Value::List(items))
    }

    fn map(&mut self, len: u32, depth: usize) -> Result<Vec<(Text, Value)>, EventError> {
        if depth > MAX_DEPTH {
            return Err(EventError::TooDeep);
        }
        let mut entries = Vec::with_capacity(self.reserve(len));
        for _ in 0..len {
            let key = self.key()?;
            entries.push((key, self.value(depth)?));
        }
        Ok(last_wins(entries))
    }

    fn key(&mut self) -> Result<Text, EventError> {
        let len = match Marker::from_u8(self.byte()?) {
            Marker::FixStr(len) => len.into(),
            Marker::Str8 => self.byte()?.into(),
            Marker::Str16 => self.u16()?.into(),
            Marker::Str32 => self.u32()?,
            _ => return Err(EventError::Malformed("a map key that is not text")),
        };
        self.text(len)
    }
}
