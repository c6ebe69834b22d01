//! What must hold for any bytes: one function for each target of `fuzz/`. They panic if it does not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fuzz target fails by panicking")]

use std::sync::LazyLock;

use regex::Regex;

use crate::{
    ChannelName, ChannelPattern, Event, EventError, GroupName, Serializer, Text,
    codec::{AgeLimit, Codec, Route, Routing},
    shard::{SLOTS, shard, slot},
};

/// Looks at some bytes and panics if a rule does not hold for them.
pub type Check = fn(&[u8]);

/// The names of the targets, with their functions.
pub const TARGETS: [(&str, Check); 5] =
    [("msgpack", msgpack), ("json", json), ("fernet", fernet), ("names", names), ("routed", routed)];

/// What can be read can be written, and read again to the same.
pub fn msgpack(payload: &[u8]) {
    let Ok(event) = Event::from_msgpack(payload) else { return };
    survives(&event, Event::to_msgpack, Event::from_msgpack);
    match event.to_json() {
        Ok(json) => assert!(same(&Event::from_json(&json).expect("what was written can be read"), &event)),
        Err(error) => assert!(matches!(error, EventError::Unsupported(_)), "{error}"),
    }
}

/// As [`msgpack()`]; and whatever comes as JSON can also go as msgpack.
pub fn json(payload: &[u8]) {
    let Ok(event) = Event::from_json(payload) else { return };
    survives(&event, Event::to_json, Event::from_json);
    survives(&event, Event::to_msgpack, Event::from_msgpack);
}

/// Equality to the bit: a NaN is itself, and 0.0 is not -0.0.
fn same(a: &Event, b: &Event) -> bool {
    a == b || format!("{a:?}") == format!("{b:?}")
}

fn survives(
    event: &Event,
    write: impl Fn(&Event) -> Result<Vec<u8>, EventError>,
    read: impl Fn(&[u8]) -> Result<Event, EventError>,
) {
    let payload = write(event).expect("what was read can be written");
    let again = read(&payload).expect("what was written can be read");
    assert!(same(&again, event), "{event:?} became {again:?}");
    assert_eq!(write(&again).unwrap(), payload);
}

/// Three views of the bytes: a token from a stranger, a token from somebody who has the key but not the
/// format, and a text to be sealed.
pub fn fernet(bytes: &[u8]) {
    let codec = keyed(&["fuzz", "old"]);
    let limit = AgeLimit { now: 1_700_000_000, max_age: 70 };
    for age in [None, Some(limit)] {
        // The golden tokens are in the corpus, and their keys are not configured here.
        assert_eq!(codec.decode(bytes, age), Err(EventError::WrongKey));
        let signed = codec.sign_anything(bytes).expect("there are keys");
        if let Ok(event) = codec.decode(signed.as_bytes(), age) {
            survives(&event, Event::to_msgpack, Event::from_msgpack);
        }
    }
    // A golden token may be read with its own key, in either format.
    for serializer in [Serializer::MsgPack, Serializer::Json] {
        let golden = Codec::new(serializer, &["a-test-key".to_owned()]).expect("a key");
        if let Ok(event) = golden.decode(bytes, None) {
            assert!(same(&golden.decode(&golden.encode_for_group(&event).unwrap(), None).unwrap(), &event));
        }
    }
    let event = Event::new("t").with("v", bytes);
    let mut token = codec.encode(&event).unwrap();
    assert_eq!(codec.decode(&token, None).unwrap(), event);
    let at = bytes.iter().map(|byte| usize::from(*byte)).sum::<usize>() % token.len();
    token[at] = if token[at] == b'A' { b'B' } else { b'A' };
    assert_eq!(codec.decode(&token, None), Err(EventError::WrongKey));
}

fn keyed(keys: &[&str]) -> Codec {
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    Codec::new(Serializer::MsgPack, &keys).expect("keys")
}

/// Python's own rules; a name also has to be shorter than 100 characters.
static CHANNEL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[a-zA-Z\d\-_.]+(!([\d\w\-_.]*))?$").expect("a regex"));
static GROUP: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[a-zA-Z\d\-_.]+$").expect("a regex"));

/// A name we accept Python accepts, and the reverse as far as it is ASCII. Patterns take any text.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let short = text.chars().count() < 100;
    for (ours, python) in [(ChannelName::parse(&text).is_ok(), &*CHANNEL), (GroupName::parse(&text).is_ok(), &*GROUP)] {
        let valid = short && python.is_match(&text);
        assert!(if text.is_ascii() { ours == valid } else { !ours }, "{text:?}");
    }
    if let Ok(channel) = ChannelName::parse(&text) {
        assert!(channel.as_str().starts_with(channel.non_local()));
        assert_eq!(channel.as_str().contains('!'), channel.non_local().ends_with('!'));
        assert!(ChannelName::parse(channel.non_local()).is_ok());
    }
    if let Ok(channel) = ChannelName::parse_any(&text) {
        assert_eq!(channel.as_str(), text);
        assert!(GroupName::parse_any(&text).is_ok());
    }
    for shards in [1, 3, 10, 1000] {
        assert!(shard(bytes, shards) < shards);
    }
    assert!(slot(bytes) < SLOTS);
    // As a pattern and a name.
    if let Some((pattern, name)) = text.split_once('\n') {
        let glob = ChannelPattern::glob(pattern);
        if !pattern.contains(['*', '?', '[']) {
            assert_eq!(glob.matches(name), pattern == name);
        }
        assert!(ChannelPattern::glob(&format!("*{pattern}*")).matches(name) || !glob.matches(name));
    }
}

/// A payload with its routing taken out and put back in is read to the same, in both formats, also
/// encrypted.
pub fn routed(payload: &[u8]) {
    for serializer in [Serializer::MsgPack, Serializer::Json] {
        let plain = Codec::new(serializer, &[]).expect("no keys");
        let sealed = Codec::new(serializer, &["fuzz".to_owned()]).expect("a key");
        let Ok((event, routing)) = plain.decode_routed(payload, None) else { continue };
        assert!(event.get("__asgi_channel__").is_none());
        let names: Vec<&str>;
        let route = match &routing {
            Routing::None => Route::None,
            Routing::One(name) => Route::One(name),
            Routing::Many(list) => {
                names = list.iter().map(Text::as_str).collect();
                Route::Many(&names)
            }
        };
        let body = plain.body(&event).expect("what was read can be written");
        for codec in [plain, sealed] {
            let (again, again_routing) = codec.decode_routed(&codec.payload(&body, route).unwrap(), None).unwrap();
            assert!(same(&again, &event) && again_routing == routing);
        }
    }
}
