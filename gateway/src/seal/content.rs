//! An event as bytes under a seal: different events, or the same for different groups, have different bytes.
//!
//! Every part says how long it is or has a fixed length, so that the bytes could be read back in one way
//! only. It is not the layer's encoding, as a site may change its serializer while events are under way.

use channel_layer::{Event, Value};

/// What is gathered before it is handed on: a chat message of common length.
const GATHERED: usize = 512;

/// Hands the bytes of all but the field `except` to `sink`, in as few pieces as may be.
pub(super) fn write(event: &Event, target: &str, except: &str, sink: impl FnMut(&[u8])) {
    let mut gathering = Gathering { bytes: [0; GATHERED], length: 0, sink };
    let mut gather = |piece: &[u8]| gathering.add(piece);
    write_bytes(target.as_bytes(), &mut gather);
    for (key, value) in event.iter().filter(|(key, _)| *key != except) {
        write_bytes(key.as_bytes(), &mut gather);
        write_value(value, &mut gather);
    }
    gathering.hand_on();
}

/// A hash takes many small pieces at three times the price of the same bytes together.
struct Gathering<S> {
    bytes: [u8; GATHERED],
    length: usize,
    sink: S,
}

impl<S: FnMut(&[u8])> Gathering<S> {
    fn add(&mut self, piece: &[u8]) {
        if piece.len() > GATHERED - self.length {
            self.hand_on();
        }
        match self.bytes.get_mut(self.length..self.length + piece.len()) {
            Some(place) => {
                place.copy_from_slice(piece);
                self.length += piece.len();
            }
            None => (self.sink)(piece),
        }
    }

    fn hand_on(&mut self) {
        (self.sink)(&self.bytes[..self.length]);
        self.length = 0;
    }
}

fn write_value(value: &Value, sink: &mut impl FnMut(&[u8])) {
    match value {
        Value::Null => sink(b"0"),
        Value::Bool(false) => sink(b"-"),
        Value::Bool(true) => sink(b"+"),
        Value::Int(number) => write_fixed(b'i', number.to_le_bytes(), sink),
        Value::UInt(number) => write_fixed(b'u', number.to_le_bytes(), sink),
        Value::Float(number) => write_fixed(b'f', number.to_bits().to_le_bytes(), sink),
        Value::Text(text) => {
            sink(b"t");
            write_bytes(text.as_bytes(), sink);
        }
        Value::Bytes(bytes) => {
            sink(b"b");
            write_bytes(bytes, sink);
        }
        Value::List(items) => {
            sink(b"l");
            write_length(items.len(), sink);
            items.iter().for_each(|item| write_value(item, sink));
        }
        Value::Map(entries) => {
            sink(b"m");
            write_length(entries.len(), sink);
            for (key, value) in entries {
                write_bytes(key.as_bytes(), sink);
                write_value(value, sink);
            }
        }
    }
}

fn write_fixed(kind: u8, number: [u8; 8], sink: &mut impl FnMut(&[u8])) {
    sink(&[kind]);
    sink(&number);
}

fn write_bytes(bytes: &[u8], sink: &mut impl FnMut(&[u8])) {
    write_length(bytes.len(), sink);
    sink(bytes);
}

/// Seven bits a byte, the low ones first; the last byte is below 128.
fn write_length(mut length: usize, sink: &mut impl FnMut(&[u8])) {
    while length >= 128 {
        sink(&[length as u8 | 128]);
        length >>= 7;
    }
    sink(&[length as u8]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(event: &Event, target: &str) -> Vec<u8> {
        let mut out = Vec::new();
        write(event, target, "seal", |piece| out.extend_from_slice(piece));
        out
    }

    /// Reads the bytes back: who can do that for every event has shown that no two have the same.
    struct Reader<'a>(&'a [u8]);

    impl<'a> Reader<'a> {
        fn take(&mut self, count: usize) -> &'a [u8] {
            let (taken, rest) = self.0.split_at(count);
            self.0 = rest;
            taken
        }

        fn length(&mut self) -> usize {
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.take(1)[0];
                length |= usize::from(byte & 127) << shift;
                if byte < 128 {
                    return length;
                }
                shift += 7;
            }
        }

        fn text(&mut self) -> String {
            let length = self.length();
            String::from_utf8(self.take(length).to_vec()).unwrap()
        }

        fn value(&mut self) -> Value {
            let eight = |reader: &mut Self| <[u8; 8]>::try_from(reader.take(8)).unwrap();
            match self.take(1)[0] {
                b'0' => Value::Null,
                b'-' => Value::Bool(false),
                b'+' => Value::Bool(true),
                b'i' => Value::Int(i64::from_le_bytes(eight(self))),
                b'u' => Value::UInt(u64::from_le_bytes(eight(self))),
                b'f' => Value::Float(f64::from_bits(u64::from_le_bytes(eight(self)))),
                b't' => Value::Text(self.text().into()),
                b'b' => {
                    let length = self.length();
                    Value::Bytes(self.take(length).to_vec())
                }
                b'l' => Value::List((0..self.length()).map(|_| self.value()).collect()),
                b'm' => Value::Map((0..self.length()).map(|_| (self.text().into(), self.value())).collect()),
                other => panic!("{other}"),
            }
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (1 << 63..=u64::MAX).prop_map(Value::UInt),
            (-1e9..1e9).prop_map(Value::Float),
            "\\PC{0,200}".prop_map(|text| Value::Text(text.into())),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Bytes),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
                prop::collection::vec(("[a-c]{0,2}".prop_map(Into::into), inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    fn events() -> impl Strategy<Value = Event> {
        prop::collection::vec(("[a-z]{0,3}", values()), 0..6).prop_map(|entries| {
            entries.into_iter().fold(Event::new("x"), |event, (key, value)| event.with(&key, value))
        })
    }

    proptest! {
        #[test]
        fn the_bytes_can_be_read_back_so_no_two_events_have_the_same(event in events(), target in "\\PC{0,200}") {
            let written = bytes(&event, &target);
            let mut reader = Reader(&written);
            prop_assert_eq!(reader.text(), target);
            let mut read = Event::default();
            while !reader.0.is_empty() {
                let key = reader.text();
                read.set(&key, reader.value());
            }
            prop_assert_eq!(read, event);
        }
    }

    #[test]
    fn what_moves_from_one_field_to_the_next_changes_the_bytes() {
        let event = |one: &str, other: &str| Event::new("x").with("a", one).with("b", other);
        assert_ne!(bytes(&event("12", "3"), "g"), bytes(&event("1", "23"), "g"));
        assert_ne!(bytes(&event("1", "2"), "gx"), bytes(&event("1", "2"), "g"));
        assert_ne!(bytes(&Event::new("x").with("a", 1), "g"), bytes(&Event::new("x").with("a", "1"), "g"));
        assert_ne!(bytes(&Event::new("x").with("a", 1), "g"), bytes(&Event::new("x").with("b", 1), "g"));
        assert_eq!(
            bytes(&Event::new("x").with("seal", "s"), "g"),
            bytes(&Event::new("x"), "g"),
            "but for the seal itself"
        );
    }
}
