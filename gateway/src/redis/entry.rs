//! Entries of the streams, as they are read.

use redis::Value;

use super::connection::Text;

/// An entry, or its beginning if it is too large.
pub(super) struct Entry {
    pub(super) id: String,
    /// Names and values.
    pub(super) fields: Vec<(Text, Text)>,
    /// There are more.
    pub(super) has_more: bool,
}

impl Entry {
    /// Whether all of it is here.
    pub(super) fn is_whole(&self) -> bool {
        !self.has_more && self.fields.iter().all(|(name, value)| name.is_whole() && value.is_whole())
    }

    /// Whether nothing is left of it but its id: it was deleted while it was pending.
    pub(super) fn is_gone(&self) -> bool {
        self.fields.is_empty() && !self.has_more
    }

    /// Bytes of its fields, also of those that were not kept.
    pub(super) fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len + value.len).sum()
    }

    pub(super) fn field(&self, wanted: &str) -> Option<&Text> {
        // Of two that have the same name the later one counts.
        self.fields.iter().rfind(|(name, _)| name.bytes == wanted.as_bytes() && name.is_whole()).map(|(_, value)| value)
    }
}

/// The entries of a list.
pub(super) fn entries(list: Value) -> Vec<Entry> {
    let Value::Array(list) = list else { return Vec::new() };
    list.into_iter().filter_map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let id = String::from_utf8(Text::of(parts.next()?)?.bytes).ok()?;
    let texts = match parts.next()? {
        Value::Array(texts) => texts,
        _ => Vec::new(),
    };
    // Names and values are an even number; one that is not was cut.
    let has_more = texts.len() % 2 == 1;
    let mut texts = texts.into_iter();
    let mut fields = Vec::with_capacity(texts.len() / 2);
    while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
        fields.push((Text::of(name)?, Text::of(value)?));
    }
    Some(Entry { id, fields, has_more })
}

/// The entries of all streams that were read: `[[stream, entries], …]`, or nothing when nothing came.
pub(super) fn entries_of_read(answer: Value) -> Vec<Entry> {
    let Value::Array(streams) = answer else { return Vec::new() };
    let lists = streams.into_iter().filter_map(|stream| match stream {
        Value::Array(parts) => parts.into_iter().nth(1),
        _ => None,
    });
    lists.flat_map(entries).collect()
}
