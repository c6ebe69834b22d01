//! An event serialized once, to which each queue's routing key is added.

use super::{RESERVED_KEY, Serializer, json, msgpack};
use crate::{Event, EventError};

/// The routing key of one message.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Route<'a> {
    /// Without it: for a plain channel, and on the pub/sub layer.
    None,
    /// For one channel, by its full name, as `send` writes it.
    One(&'a str),
    /// For several channels or, as a list of one, for one: as `group_send` writes it.
    Many(&'a [&'a str]),
}

/// The entries of an event without what comes before and behind them.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    serializer: Serializer,
    entries: Vec<u8>,
    count: usize,
}

impl Body {
    /// About how many bytes it has in memory.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn new(serializer: Serializer, event: &Event) -> Result<Self, EventError> {
        event.check()?;
        let mut body = Self { serializer, entries: Vec::with_capacity(128), count: 0 };
        for (key, value) in event.entries().iter().filter(|(key, _)| key != RESERVED_KEY) {
            match serializer {
                Serializer::MsgPack => msgpack::write_entry(&mut body.entries, key, value)?,
                Serializer::Json => json::write_entry(&mut body.entries, body.count == 0, key, value)?,
            }
            body.count += 1;
        }
        Ok(body)
    }

    /// How long the payload will be, or a little less if a name has to be escaped.
    pub(super) fn payload_len(&self, route: Route<'_>) -> usize {
        // The head of the map, the key, and the heads or quotes and commas around names.
        let name = |name: &str| name.len() + 5;
        let route = match route {
            Route::None => 0,
            Route::One(channel) => name(channel),
            Route::Many(channels) => channels.iter().map(|channel| name(channel)).sum::<usize>() + 5,
        };
        self.entries.len() + RESERVED_KEY.len() + 12 + route
    }

    pub(super) fn write(&self, out: &mut Vec<u8>, route: Route<'_>) -> Result<(), EventError> {
        match self.serializer {
            Serializer::MsgPack => self.write_msgpack(out, route),
            Serializer::Json => self.write_json(out, route),
        }
    }

    fn write_msgpack(&self, out: &mut Vec<u8>, route: Route<'_>) -> Result<(), EventError> {
        let routed = !matches!(route, Route::None);
        msgpack::write_map_len(out, self.count + usize::from(routed))?;
        out.extend_from_slice(&self.entries);
        if routed {
            msgpack::write_text(out, RESERVED_KEY)?;
        }
        match route {
            Route::None => Ok(()),
            Route::One(channel) => msgpack::write_text(out, channel),
            Route::Many(channels) => msgpack::write_texts(out, channels),
        }
    }

    fn write_json(&self, out: &mut Vec<u8>, route: Route<'_>) -> Result<(), EventError> {
        out.push(b'{');
        out.extend_from_slice(&self.entries);
        if !matches!(route, Route::None) {
            json::write_key(out, self.count == 0, RESERVED_KEY);
        }
        match route {
            Route::None => {}
            Route::One(channel) => json::write_text(out, channel),
            Route::Many(channels) => json::write_texts(out, channels),
        }
        out.push(b'}');
        Ok(())
    }
}
