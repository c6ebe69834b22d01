//! Replies of any shape, owned: for the rare commands whose answers are nested.

use bytes::{Buf, BytesMut};

use super::wire::{self, Reply};
use crate::BoxError;

/// How deep lists may be nested; `CLUSTER SLOTS` has four levels.
const DEEPEST: usize = 8;

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nil,
    Int(i64),
    Text(String),
    Error(String),
    List(Vec<Value>),
}

impl Value {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }
}

/// Takes one reply from the start of the buffer; `None`, and nothing taken, if it is not complete.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Value>, BoxError> {
    let mut at = 0;
    let value = read(buffer, &mut at, 0)?;
    if value.is_some() {
        buffer.advance(at);
    }
    Ok(value)
}

fn read(buffer: &[u8], at: &mut usize, depth: usize) -> Result<Option<Value>, BoxError> {
    let rest = &buffer[*at..];
    if rest.first() == Some(&b'*') {
        return list(buffer, at, depth);
    }
    let Some((reply, length)) = wire::parse(rest)? else { return Ok(None) };
    *at += length;
    let lossy = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    Ok(Some(match reply {
        Reply::Simple(text) | Reply::Bulk(Some(text)) => Value::Text(lossy(text)),
        Reply::Error(text) => Value::Error(lossy(text)),
        Reply::Int(number) => Value::Int(number),
        Reply::Bulk(None) => Value::Nil,
        Reply::Array(_) => return Err("an array where there cannot be one".into()),
    }))
}

fn list(buffer: &[u8], at: &mut usize, depth: usize) -> Result<Option<Value>, BoxError> {
    if depth == DEEPEST {
        return Err("a reply with too many levels".into());
    }
    let rest = &buffer[*at + 1..];
    let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
        return match rest.len() {
            0..32 => Ok(None),
            _ => Err("a list without a length".into()),
        };
    };
    let header = std::str::from_utf8(&rest[..end])?.trim_end();
    let count: i64 = header.parse()?;
    *at += end + 2;
    let Ok(count) = usize::try_from(count) else { return Ok(Some(Value::Nil)) };
    // The length is what somebody claims; only items that are really there take room.
    let mut items = Vec::new();
    for _ in 0..count {
        match read(buffer, at, depth + 1)? {
            Some(item) => items.push(item),
            None => return Ok(None),
        }
    }
    Ok(Some(Value::List(items)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_reply_is_taken_only_when_complete() {
        let whole = b"*3\r\n$6\r\nmaster\r\n:7\r\n*2\r\n*-1\r\n*1\r\n+OK\r\n-ERR x\r\n";
        let first = whole.len() - b"-ERR x\r\n".len();
        for end in 0..first {
            let mut buffer = BytesMut::from(&whole[..end]);
            assert_eq!(take(&mut buffer).unwrap(), None, "{end}");
            assert_eq!(buffer.len(), end);
        }
        let mut buffer = BytesMut::from(&whole[..]);
        let ok = Value::List(vec![Value::Text("OK".into())]);
        let wanted = Value::List(vec![Value::Text("master".into()), Value::Int(7), Value::List(vec![Value::Nil, ok])]);
        assert_eq!(take(&mut buffer).unwrap(), Some(wanted));
        assert_eq!(take(&mut buffer).unwrap(), Some(Value::Error("ERR x".into())));
        assert!(buffer.is_empty());
    }

    #[test]
    fn nonsense_is_an_error_and_never_an_allocation() {
        for bytes in [&b"*x\r\n"[..], &b"*1\r\n".repeat(9), b"*1234567890123456789012345678901234567890"] {
            assert!(take(&mut BytesMut::from(bytes)).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(take(&mut BytesMut::from(&b"*999999999999\r\n:1\r\n"[..])).unwrap(), None);
    }
}
