//! One value of an event.

use std::collections::HashMap;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};

/// Text of an event. Up to 24 bytes, which is most keys and names, need no memory of their own.
pub type Text = compact_str::CompactString;

/// A value inside an event: what Python's msgpack can carry, no more.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// Python's `None`.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// An integer of signed 64 bits.
    Int(i64),
    /// An integer above `i64::MAX`; smaller ones are always [`Value::Int`].
    UInt(u64),
    /// A 64-bit float.
    Float(f64),
    /// Text.
    Text(Text),
    /// Bytes, which msgpack keeps apart from text.
    Bytes(Vec<u8>),
    /// A list; Python's tuples become lists too.
    List(Vec<Value>),
    /// An ordered map with text keys.
    Map(Vec<(Text, Value)>),
}

fn text_weight(text: &Text) -> usize {
    if text.is_heap_allocated() { text.capacity() } else { 0 }
}

/// Bytes of memory behind a map.
pub(super) fn entries_weight(entries: &Vec<(Text, Value)>) -> usize {
    let behind: usize = entries.iter().map(|(key, value)| text_weight(key) + value.weight()).sum();
    entries.capacity() * size_of::<(Text, Value)>() + behind
}

impl Value {
    /// Reads any JSON value by the rules of [`Event::from_json`](crate::Event::from_json).
    pub fn from_json(json: &[u8]) -> Result<Self, crate::EventError> {
        super::json::read(json)
    }

    /// Bytes of memory behind it.
    fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text_weight(text),
            Self::Bytes(bytes) => bytes.capacity(),
            Self::List(items) => items.capacity() * size_of::<Self>() + items.iter().map(Self::weight).sum::<usize>(),
            Self::Map(entries) => entries_weight(entries),
            Self::Null | Self::Bool(_) | Self::Int(_) | Self::UInt(_) | Self::Float(_) => 0,
        }
    }

    /// The text, if it is text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one and fits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The integer, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Int(n) => u64::try_from(*n).ok(),
            Self::UInt(n) => Some(*n),
            _ => None,
        }
    }

    /// The number as a float, if it is a number; large integers lose precision.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::UInt(n) => Some(*n as f64),
            Self::Float(n) => Some(*n),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(truth) => Some(*truth),
            _ => None,
        }
    }

    /// The bytes, if it is bytes (text is not).
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The items, if it is a list.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// The entries, if it is a map.
    pub fn as_map(&self) -> Option<&[(Text, Value)]> {
        match self {
            Self::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of a key, if it is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.as_map()?.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

/// Equal keys keep the first one's place and the last one's value, as in a Python dict.
pub(crate) fn last_wins(mut entries: Vec<(Text, Value)>) -> Vec<(Text, Value)> {
    const FEW: usize = 16;
    if entries.len() <= FEW {
        let repeated = (1..entries.len()).any(|at| entries[..at].iter().any(|(key, _)| *key == entries[at].0));
        if !repeated {
            return entries;
        }
    }
    // A map of hostile size must not cost the square of its length.
    let mut places: HashMap<Text, usize> = HashMap::with_capacity(entries.len());
    let mut kept: Vec<(Text, Value)> = Vec::with_capacity(entries.len());
    for (key, value) in entries.drain(..) {
        match places.get(&key) {
            Some(&place) => kept[place].1 = value,
            None => {
                places.insert(key.clone(), kept.len());
                kept.push((key, value));
            }
        }
    }
    kept
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        i64::try_from(n).map_or(Self::UInt(n), Self::Int)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::from(n as u64)
    }
}

macro_rules! from {
    ($($from:ty => |$v:ident| $to:expr),* $(,)?) => {
        $(impl From<$from> for Value { fn from($v: $from) -> Self { $to } })*
    };
}

from! {
    () => |_nothing| Self::Null,
    bool => |v| Self::Bool(v),
    i8 => |v| Self::Int(v.into()),
    i16 => |v| Self::Int(v.into()),
    i32 => |v| Self::Int(v.into()),
    i64 => |v| Self::Int(v),
    u8 => |v| Self::Int(v.into()),
    u16 => |v| Self::Int(v.into()),
    u32 => |v| Self::Int(v.into()),
    f32 => |v| Self::Float(v.into()),
    f64 => |v| Self::Float(v),
    &str => |v| Self::Text(v.into()),
    String => |v| Self::Text(v.into()),
    &String => |v| Self::Text(v.into()),
    Text => |v| Self::Text(v),
    Vec<u8> => |v| Self::Bytes(v),
    &[u8] => |v| Self::Bytes(v.to_vec()),
    Vec<Value> => |v| Self::List(v),
    Vec<(Text, Value)> => |v| Self::Map(v),
    Vec<(String, Value)> => |v| Self::Map(v.into_iter().map(|(key, value)| (key.into(), value)).collect()),
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(v) => serializer.serialize_bool(*v),
            Self::Int(v) => serializer.serialize_i64(*v),
            Self::UInt(v) => serializer.serialize_u64(*v),
            Self::Float(v) => serializer.serialize_f64(*v),
            Self::Text(v) => serializer.serialize_str(v),
            Self::Bytes(v) => serializer.serialize_bytes(v),
            Self::List(v) => serializer.collect_seq(v),
            Self::Map(v) => serializer.collect_map(v.iter().map(|(key, value)| (key, value))),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value an event can carry")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        Value::deserialize(inner)
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
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_bytes<E>(self, v: &[u8]) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry::<Text, Value>()? {
            entries.push(entry);
        }
        Ok(Value::Map(last_wins(entries)))
    }
}

impl<'de> de::IntoDeserializer<'de, crate::EventError> for &'de Value {
    type Deserializer = Self;
    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;

    #[test]
    fn the_weight_is_about_what_the_values_take() {
        let base = Event::new("t").weight();
        assert!((100..2_000).contains(&base), "{base}");
        let weight = |value: Value| Event::new("t").with("v", value).weight() - base;
        assert_eq!(weight(Value::Int(1)), 0, "it has its place already");
        assert!((10_000..10_100).contains(&weight(Value::from("x".repeat(10_000)))));
        assert!((10_000..10_100).contains(&weight(Value::Bytes(vec![0; 10_000]))));
        let one = size_of::<Value>();
        assert_eq!(weight(Value::List(vec![Value::Null; 1000])), 1000 * one);
        assert!(weight(Value::Map(vec![("k".into(), Value::from("x".repeat(100)))])) > 100 + one);
    }
}
