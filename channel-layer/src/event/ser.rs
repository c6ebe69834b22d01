//! Anything serde can write → [`Value`].

use serde::{Serialize, ser};

use super::{Text, Value};
use crate::EventError;

/// The serializer. Structs become maps, unlike in the usual msgpack crates, because Python expects
/// maps; enums take serde's external form (`"Unit"`, `{"Variant": …}`).
pub(super) struct ToValue;

pub(super) struct ListBuilder {
    variant: Option<&'static str>,
    items: Vec<Value>,
}

pub(super) struct MapBuilder {
    variant: Option<&'static str>,
    entries: Vec<(Text, Value)>,
    key: Option<Text>,
}

fn tagged(variant: Option<&'static str>, value: Value) -> Value {
    match variant {
        Some(variant) => Value::Map(vec![(variant.into(), value)]),
        None => value,
    }
}

fn list(variant: Option<&'static str>) -> ListBuilder {
    ListBuilder { variant, items: Vec::new() }
}

fn map(variant: Option<&'static str>) -> MapBuilder {
    MapBuilder { variant, entries: Vec::new(), key: None }
}

macro_rules! numbers {
    ($($method:ident: $from:ty),*) => {
        $(fn $method(self, v: $from) -> Result<Value, EventError> { Ok(v.into()) })*
    };
}

impl ser::Serializer for ToValue {
    type Ok = Value;
    type Error = EventError;
    type SerializeSeq = ListBuilder;
    type SerializeTuple = ListBuilder;
    type SerializeTupleStruct = ListBuilder;
    type SerializeTupleVariant = ListBuilder;
    type SerializeMap = MapBuilder;
    type SerializeStruct = MapBuilder;
    type SerializeStructVariant = MapBuilder;

    numbers!(serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_f32: f32,
        serialize_f64: f64, serialize_str: &str, serialize_bytes: &[u8]);

    fn serialize_i128(self, v: i128) -> Result<Value, EventError> {
        if let Ok(v) = i64::try_from(v) {
            return Ok(v.into());
        }
        u64::try_from(v).map(Value::from).map_err(|_| BEYOND)
    }
    fn serialize_u128(self, v: u128) -> Result<Value, EventError> {
        u64::try_from(v).map(Value::from).map_err(|_| BEYOND)
    }
    fn serialize_char(self, v: char) -> Result<Value, EventError> {
        Ok(v.to_string().into())
    }
    fn serialize_none(self) -> Result<Value, EventError> {
        Ok(Value::Null)
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, EventError> {
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<Value, EventError> {
        Ok(Value::Null)
    }
    fn serialize_unit_struct(self, _name: &'static str) -> Result<Value, EventError> {
        Ok(Value::Null)
    }
    fn serialize_unit_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
    ) -> Result<Value, EventError> {
        Ok(variant.into())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        value: &T,
    ) -> Result<Value, EventError> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, EventError> {
        Ok(tagged(Some(variant), value.serialize(self)?))
    }
    fn serialize_seq(self, _len: Option<usize>) -> Result<ListBuilder, EventError> {
        Ok(list(None))
    }
    fn serialize_tuple(self, _len: usize) -> Result<ListBuilder, EventError> {
        Ok(list(None))
    }
    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<ListBuilder, EventError> {
        Ok(list(None))
    }
    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<ListBuilder, EventError> {
        Ok(list(Some(variant)))
    }
    fn serialize_map(self, _len: Option<usize>) -> Result<MapBuilder, EventError> {
        Ok(map(None))
    }
    fn serialize_struct(self, _name: &'static str, _len: usize) -> Result<MapBuilder, EventError> {
        Ok(map(None))
    }
    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<MapBuilder, EventError> {
        Ok(map(Some(variant)))
    }
}

const BEYOND: EventError = EventError::Unsupported("an integer beyond 64 bits");

impl ListBuilder {
    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EventError> {
        self.items.push(value.serialize(ToValue)?);
        Ok(())
    }
    fn finish(self) -> Value {
        tagged(self.variant, Value::List(self.items))
    }
}

macro_rules! list_like {
    ($($trait:ident::$method:ident),*) => {
        $(impl ser::$trait for ListBuilder {
            type Ok = Value;
            type Error = EventError;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EventError> {
                self.push(value)
            }
            fn end(self) -> Result<Value, EventError> {
                Ok(self.finish())
            }
        })*
    };
}

list_like!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

impl ser::SerializeMap for MapBuilder {
    type Ok = Value;
    type Error = EventError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), EventError> {
        match key.serialize(ToValue)? {
            Value::Text(key) => self.key = Some(key),
            // Python's reader fails on such a key, and with it the consumer that reads it.
            _ => return Err(EventError::Unsupported("a map key that is not text")),
        }
        Ok(())
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), EventError> {
        let key = self.key.take().ok_or(EventError::Unsupported("a map value without its key"))?;
        self.entries.push((key, value.serialize(ToValue)?));
        Ok(())
    }
    fn end(self) -> Result<Value, EventError> {
        Ok(tagged(self.variant, Value::Map(super::value::last_wins(self.entries))))
    }
}

macro_rules! struct_like {
    ($($trait:ident),*) => {
        $(impl ser::$trait for MapBuilder {
            type Ok = Value;
            type Error = EventError;
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), EventError> {
                self.entries.push((key.into(), value.serialize(ToValue)?));
                Ok(())
            }
            fn end(self) -> Result<Value, EventError> {
                Ok(tagged(self.variant, Value::Map(self.entries)))
            }
        })*
    };
}

struct_like!(SerializeStruct, SerializeStructVariant);
