//! Events: what travels on a layer, and its encodings.

mod de;
pub(crate) mod json;
pub(crate) mod msgpack;
mod ser;
mod value;

use std::{borrow::Cow, sync::Arc};

use serde::{Serialize, de::DeserializeOwned};

pub use value::{Text, Value};

use crate::EventError;

/// The deepest nesting of lists and maps an event may have, the event itself counted.
pub const MAX_DEPTH: usize = 128;
/// The most values one event may hold; more are refused before memory is spent on them.
pub const MAX_VALUES: usize = 1 << 20;
/// The key in which the core layer names the receivers of a message. No event may use it.
pub(crate) const RESERVED_KEY: &str = "__asgi_channel__";

/// A message of the layer: an ordered map with text keys, of which `type` picks the handler. Cheap to
/// clone: clones share the map until one of them is changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event(Arc<Vec<(Text, Value)>>);

impl Event {
    fn of(entries: Vec<(Text, Value)>) -> Self {
        Self(Arc::new(entries))
    }

    /// An event of one key, `type`.
    pub fn new(event_type: &str) -> Self {
        let mut entries = Vec::with_capacity(12);
        entries.push(("type".into(), Value::from(event_type)));
        Self::of(entries)
    }

    /// The event with one more key; a key that is there already is replaced in its place.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// Sets a key; a key that is there already is replaced in its place.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        let entries = Arc::make_mut(&mut self.0);
        match entries.iter_mut().find(|(name, _)| name == key) {
            Some((_, slot)) => *slot = value,
            None => entries.push((key.into(), value)),
        }
    }

    /// Takes a key out and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some(Arc::make_mut(&mut self.0).remove(at).1)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The value of a key, if it is text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// The value of `type`, if it is text.
    pub fn event_type(&self) -> Option<&str> {
        self.text("type")
    }

    /// The keys and values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// About how many bytes of memory it takes; its clones share them.
    pub fn weight(&self) -> usize {
        size_of::<Vec<(Text, Value)>>() + value::entries_weight(&self.0)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the handler: `type` with every `.` replaced by `_`. An event without a type, with
    /// one that is not text, or whose handler would start with `_` is an error.
    pub fn handler_name(&self) -> Result<Cow<'_, str>, EventError> {
        let event_type = match self.get("type") {
            None => return Err(EventError::NoType),
            Some(Value::Text(text)) => text.as_str(),
            Some(_) => return Err(EventError::TypeNotText),
        };
        if event_type.starts_with(['_', '.']) {
            return Err(EventError::PrivateType(event_type.to_owned()));
        }
        Ok(match event_type.contains('.') {
            true => Cow::Owned(event_type.replace('.', "_")),
            false => Cow::Borrowed(event_type),
        })
    }

    /// Makes an event of anything serde writes as a map or struct with text keys.
    pub fn from_serialize<T: Serialize + ?Sized>(value: &T) -> Result<Self, EventError> {
        Self::try_from(value.serialize(ser::ToValue)?)
    }

    /// Reads the event as a type of the caller's. Unknown keys are serde's business (ignored, unless
    /// the type denies them).
    pub fn deserialize<T: DeserializeOwned>(&self) -> Result<T, EventError> {
        T::deserialize(de::MapRef(&self.0))
    }

    /// The keys and values in order.
    pub(crate) fn entries(&self) -> &[(Text, Value)] {
        &self.0
    }

    /// Whether the event can be sent to a channel: `__asgi_channel__` is the layer's own key there.
    pub(crate) fn refuse_reserved(&self) -> Result<(), EventError> {
        match self.get(RESERVED_KEY) {
            None => Ok(()),
            Some(_) => Err(EventError::ReservedKey),
        }
    }

    /// Whether the event can travel at all: not nested too deeply, not too many values.
    pub(crate) fn check(&self) -> Result<(), EventError> {
        let mut values = 0;
        check_depth(self.0.iter().map(|(_, value)| value), 1, &mut values)
    }

    /// The bytes Python's `msgpack.packb` writes for the same map. Fails for what
    /// [`from_msgpack`](Self::from_msgpack) would refuse.
    pub fn to_msgpack(&self) -> Result<Vec<u8>, EventError> {
        self.check()?;
        msgpack::encode(&self.0)
    }

    /// Reads what Python's `msgpack.unpackb` reads as a map, and refuses what it refuses: keys that
    /// are not text, invalid UTF-8, trailing bytes. Also refused are *bin* keys and extension types,
    /// which no handler could use, and more than [`MAX_DEPTH`] levels or [`MAX_VALUES`] values. The
    /// last of equal keys counts.
    pub fn from_msgpack(payload: &[u8]) -> Result<Self, EventError> {
        msgpack::decode(payload).map(Self::of)
    }

    /// The bytes Python's `json.dumps` writes for the same map. Bytes have no form there.
    pub fn to_json(&self) -> Result<Vec<u8>, EventError> {
        self.check()?;
        json::encode(&self.0)
    }

    /// Reads a JSON object as Python's `json.loads` does: a byte order mark is skipped, the last of equal
    /// keys counts, and `NaN`, `Infinity` and numbers too large for a float are floats. What has no form
    /// here does not cost the event: half of a surrogate pair becomes U+FFFD, an integer beyond 64 bits the
    /// nearest float. Refused are more than [`MAX_DEPTH`] levels or [`MAX_VALUES`] values, and encodings
    /// other than UTF-8.
    pub fn from_json(payload: &[u8]) -> Result<Self, EventError> {
        json::decode(payload).map(Self::of)
    }
}

fn check_depth<'a>(values: impl Iterator<Item = &'a Value>, depth: usize, count: &mut usize) -> Result<(), EventError> {
    if depth > MAX_DEPTH {
        return Err(EventError::TooDeep);
    }
    for value in values {
        *count += 1;
        if *count > MAX_VALUES {
            return Err(EventError::TooLarge);
        }
        match value {
            Value::List(items) => check_depth(items.iter(), depth + 1, count)?,
            Value::Map(entries) => {
                check_depth(
                    &mut entries.iter().map(|(_, value)| value) as &mut dyn Iterator<Item = _>,
                    depth + 1,
                    count,
                )?;
            }
            _ => {}
        }
    }
    Ok(())
}

impl TryFrom<Value> for Event {
    type Error = EventError;
    fn try_from(value: Value) -> Result<Self, EventError> {
        match value {
            Value::Map(entries) => Ok(Self::of(value::last_wins(entries))),
            _ => Err(EventError::NotAMap),
        }
    }
}

impl From<Event> for Value {
    fn from(event: Event) -> Self {
        Value::Map(Arc::unwrap_or_clone(event.0))
    }
}

impl Serialize for Event {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> serde::Deserialize<'de> for Event {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(Value::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
