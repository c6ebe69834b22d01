//! The reader: serde_json, with the limits of [`Event`](crate::Event) kept while reading.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::{
    EventError,
    event::{MAX_DEPTH, MAX_VALUES, Text, Value, value::last_wins},
};

/// What some editors and writers put in front of UTF-8; Python's reader skips it too.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(in crate::event) fn decode(payload: &[u8]) -> Result<Vec<(Text, Value)>, EventError> {
    let payload = payload.strip_prefix(BYTE_ORDER_MARK).unwrap_or(payload);
    let mut limits = Limits::default();
    let mut reader = serde_json::Deserializer::from_slice(payload);
    // `Limits` counts levels as the msgpack reader does; the library's own count is one short of it.
    reader.disable_recursion_limit();
    let read = Reader { limits: &mut limits, depth: 0 }.deserialize(&mut reader);
    let value = read.and_then(|value| reader.end().map(|()| value)).map_err(|error| match limits.refused.take() {
        Some(refused) => refused,
        None if error.is_eof() => EventError::Malformed("JSON ends too early"),
        None => EventError::Malformed("not JSON"),
    })?;
    let Value::Map(entries) = value else { return Err(EventError::NotAMap) };
    if limits.huge_number && has_huge_integer(payload) {
        return Err(EventError::Unsupported("an integer beyond 64 bits"));
    }
    Ok(entries)
}

#[derive(Default)]
struct Limits {
    values: usize,
    /// The library reads an integer beyond 64 bits as a float. It only shows in the text.
    huge_number: bool,
    /// Why reading was stopped, if we stopped it.
    refused: Option<EventError>,
}

impl Limits {
    fn refuse<E: Error>(&mut self, why: EventError) -> E {
        let error = E::custom(&why);
        self.refused = Some(why);
        error
    }
}

/// Reads one value at a given depth, the event itself being at depth 1.
struct Reader<'a> {
    limits: &'a mut Limits,
    depth: usize,
}

impl Reader<'_> {
    fn inner(&mut self) -> Reader<'_> {
        Reader { limits: self.limits, depth: self.depth + 1 }
    }

    fn enter<E: Error>(&mut self) -> Result<(), E> {
        match self.depth < MAX_DEPTH {
            true => Ok(()),
            false => Err(self.limits.refuse(EventError::TooDeep)),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        // The event itself is not one of its values.
        if self.depth > 0 {
            self.limits.values += 1;
            if self.limits.values > MAX_VALUES {
                return Err(self.limits.refuse(EventError::TooLarge));
            }
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        // 2^63 as a float; no integer of 64 bits comes as a float, and none beyond is less.
        self.limits.huge_number |= v.abs() >= i64::MAX as f64;
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Text>()? {
            entries.push((key, map.next_value_seed(self.inner())?));
        }
        Ok(Value::Map(last_wins(entries)))
    }
}

/// Whether valid JSON holds an integer that fits neither 64-bit form. Called only when it holds a
/// number of that size at all, which may also be a float.
fn has_huge_integer(json: &[u8]) -> bool {
    let mut rest = json;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'"' => loop {
                match rest {
                    [b'\\', _, tail @ ..] => rest = tail,
                    [b'"', tail @ ..] => break rest = tail,
                    [_, tail @ ..] => rest = tail,
                    [] => break,
                }
            },
            b'-' | b'0'..=b'9' => {
                let length =
                    rest.iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
                let (tail, after) = rest.split_at(length.count());
                rest = after;
                if tail.iter().all(u8::is_ascii_digit) && !fits(*first, tail) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

fn fits(first: u8, tail: &[u8]) -> bool {
    // The longest of 64 bits is 20 digits or a sign and 19.
    if tail.len() > 19 {
        return false;
    }
    let mut number = [first; 20];
    let number = &mut number[..=tail.len()];
    number[1..].copy_from_slice(tail);
    let Ok(text) = std::str::from_utf8(number) else { return false };
    text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok()
}
