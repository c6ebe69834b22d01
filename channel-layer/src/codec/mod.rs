//! Payloads: an event in one of the two formats, with or without encryption and routing.

mod body;
mod fernet;
#[cfg(test)]
#[path = "../../tests/golden/mod.rs"]
pub(crate) mod golden;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::SystemTime};

use parking_lot::RwLock;

use self::fernet::Keys;
use crate::{
    Event, EventError, LayerError, Text, Value,
    event::{RESERVED_KEY, json, msgpack},
};

pub(crate) use self::{
    body::{Body, Route},
    fernet::AgeLimit,
};

/// The format of payloads, `serializer_format` of `channels_redis`. All processes of a site must agree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Serializer {
    /// MessagePack: everything an [`Event`] can hold.
    #[default]
    MsgPack,
    /// JSON: no bytes. Since `channels_redis` 4.2.1.
    Json,
}

/// Turns events into payloads and back. Cheap to clone; clones share the keys.
#[derive(Clone)]
pub(crate) struct Codec {
    serializer: Serializer,
    /// `None` for plain payloads, which no key changes.
    keys: Option<Arc<RwLock<Arc<Keys>>>>,
}

/// Who a message of the core layer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Routing {
    /// Nobody in particular: the reader of the queue.
    None,
    /// One channel, by its full name.
    One(Text),
    /// Several, as they are listed: a name may be there twice, and may be no valid name.
    Many(Vec<Text>),
}

impl Codec {
    /// Encrypts with the first of `encryption_keys` and reads with all of them; none means plain
    /// payloads. A key is any text but the empty one.
    pub(crate) fn new(serializer: Serializer, encryption_keys: &[String]) -> Result<Self, LayerError> {
        let keys = Keys::new(encryption_keys)?;
        Ok(Self { serializer, keys: keys.map(|keys| Arc::new(RwLock::new(Arc::new(keys)))) })
    }

    /// Encrypts with the first of these from now on, and reads with all of them. Whether payloads are encrypted at all
    /// does not change.
    pub(crate) fn set_keys(&self, encryption_keys: &[String]) -> Result<(), LayerError> {
        match (&self.keys, Keys::new(encryption_keys)?) {
            (Some(own), Some(new)) => *own.write() = Arc::new(new),
            (None, None) => {}
            _ => return Err(LayerError::Config("encryption can be neither begun nor ended while it runs".into())),
        }
        Ok(())
    }

    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.as_ref().map(|keys| Arc::clone(&keys.read()))
    }

    /// The payload of an event sent to a channel without a routing key. Refuses the reserved key.
    pub(crate) fn encode(&self, event: &Event) -> Result<Vec<u8>, EventError> {
        event.refuse_reserved()?;
        self.encode_whole(event)
    }

    /// The payload of an event sent to a group on the pub/sub layer: the reserved key is left out.
    pub(crate) fn encode_for_group(&self, event: &Event) -> Result<Vec<u8>, EventError> {
        match event.get(RESERVED_KEY) {
            None => self.encode_whole(event),
            Some(_) => self.payload(&self.body(event)?, Route::None),
        }
    }

    fn encode_whole(&self, event: &Event) -> Result<Vec<u8>, EventError> {
        let plain = match self.serializer {
            Serializer::MsgPack => event.to_msgpack()?,
            Serializer::Json => event.to_json()?,
        };
        let Some(keys) = self.keys() else { return Ok(plain) };
        let mut out = Vec::new();
        keys.seal(&mut out, unix_seconds(), rand::random(), plain.len(), |raw| {
            raw.extend_from_slice(&plain);
            Ok(())
        })?;
        Ok(out)
    }

    /// Serializes an event for [`payload`](Self::payload), once for all its receivers. The reserved key
    /// is left out.
    pub(crate) fn body(&self, event: &Event) -> Result<Body, EventError> {
        Body::new(self.serializer, event)
    }

    /// The payload of a body with its routing key.
    pub(crate) fn payload(&self, body: &Body, route: Route<'_>) -> Result<Vec<u8>, EventError> {
        let mut out = Vec::new();
        self.append_payload(&mut out, body, route, None)?;
        Ok(out)
    }

    /// As [`payload`](Self::payload), behind what `out` already holds: the random prefix. `now` is the
    /// Unix time, in seconds, an encrypted payload says it was made at; `None` is this machine's clock.
    pub(crate) fn append_payload(
        &self,
        out: &mut Vec<u8>,
        body: &Body,
        route: Route<'_>,
        now: Option<u64>,
    ) -> Result<(), EventError> {
        let length = body.payload_len(route);
        match self.keys() {
            None => {
                out.reserve(length);
                body.write(out, route)
            }
            Some(keys) => {
                let now = now.unwrap_or_else(unix_seconds);
                keys.seal(out, now, rand::random(), length, |raw| body.write(raw, route))
            }
        }
    }

    /// Reads a payload. `age` limits the age of an encrypted one; `None` takes any.
    pub(crate) fn decode(&self, payload: &[u8], age: Option<AgeLimit>) -> Result<Event, EventError> {
        match self.keys() {
            None => self.read(payload),
            Some(keys) => keys.open(payload, age, |plain| self.read(plain)),
        }
    }

    /// Reads a payload and takes the routing key out of it. A value that names no channel is no routing.
    pub(crate) fn decode_routed(&self, payload: &[u8], age: Option<AgeLimit>) -> Result<(Event, Routing), EventError> {
        let mut event = self.decode(payload, age)?;
        let routing = match event.remove(RESERVED_KEY) {
            Some(Value::Text(name)) => Routing::One(name),
            Some(Value::List(names)) => Routing::Many(
                names
                    .into_iter()
                    .filter_map(|name| match name {
                        Value::Text(name) => Some(name),
                        _ => None,
                    })
                    .collect(),
            ),
            _ => Routing::None,
        };
        Ok((event, routing))
    }

    /// A payload that is signed with the first key, whatever it holds; `None` without keys.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn sign_anything(&self, bytes: &[u8]) -> Option<String> {
        self.keys().map(|keys| keys.sign_anything(bytes))
    }

    fn read(&self, plain: &[u8]) -> Result<Event, EventError> {
        match self.serializer {
            Serializer::MsgPack => Event::from_msgpack(plain),
            Serializer::Json => Event::from_json(plain),
        }
    }
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let encrypted = self.keys.is_some();
        f.debug_struct("Codec").field("serializer", &self.serializer).field("encrypted", &encrypted).finish()
    }
}

fn unix_seconds() -> u64 {
    // A clock before 1970 makes tokens nobody accepts, which is all one can do.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
