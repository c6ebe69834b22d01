//! Entries of the streams, as they are read.

use redis::Value;

/// An entry, read whole.
pub(crate) struct Entry {
    pub(crate) id: String,
    /// Names and values.
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Whether nothing is left of it but its id: it was deleted while it was pending.
    pub(crate) fn is_gone(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes of its fields.
    pub(crate) fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    pub(crate) fn field(&self, wanted: &str) -> Option<&[u8]> {
        // Of two that have the same name the later one counts.
        self.fields.iter().rfind(|(name, _)| name == wanted.as_bytes()).map(|(_, value)| &**value)
    }
}

/// The entries of a list.
pub(crate) fn entries(list: Value) -> Vec<Entry> {
    let Value::Array(list) = list else { return Vec::new() };
    list.into_iter().filter_map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let id = String::from_utf8(text(parts.next()?)?).ok()?;
    let texts = match parts.next()? {
        Value::Array(texts) => texts,
        _ => Vec::new(),
    };
    let mut fields = Vec::with_capacity(texts.len() / 2);
    let mut texts = texts.into_iter();
    while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
        fields.push((text(name)?, text(value)?));
    }
    Some(Entry { id, fields })
}

fn text(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

/// The entries of all streams that were read: `[[stream, entries], …]`, or nothing when nothing came.
pub(crate) fn entries_of_read(answer: Value) -> Vec<Entry> {
    let Value::Array(streams) = answer else { return Vec::new() };
    let lists = streams.into_iter().filter_map(|stream| match stream {
        Value::Array(parts) => parts.into_iter().nth(1),
        _ => None,
    });
    lists.flat_map(entries).collect()
}
