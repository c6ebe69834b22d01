//! The golden bytes of the Python packages, as far as the public types know them. Shards, capacities,
//! encryption and routing are checked beside their code.
#![allow(clippy::unwrap_used, reason = "tests")]

mod golden;

use channel_layer::{ChannelName, Event, EventError, GroupName, Value};
use golden::{bytes, event, is_payload, list, same, vectors};
use serde_json::Value as Json;

#[test]
fn names() {
    let vectors = vectors();
    for case in list(&vectors, "names") {
        let name = case["name"].as_str().unwrap();
        // Where Python's expressions are looser than they look (Unicode digits, a trailing newline) we are strict.
        let ascii = name.is_ascii() && !name.contains('\n');
        let channel = ChannelName::parse(name);
        assert_eq!(channel.is_ok(), ascii && case["channel_ok"] == true, "{name:?}");
        assert_eq!(GroupName::parse(name).is_ok(), ascii && case["group_ok"] == true, "{name:?}");
        if let Ok(channel) = channel {
            assert_eq!(channel.non_local(), case["non_local_name"].as_str().unwrap());
        }
    }
    assert_eq!(list(&vectors, "names").len(), 37);
}

#[test]
fn handler_names() {
    let vectors = vectors();
    for case in list(&vectors, "handler_names") {
        let event = event(&case["message"]).unwrap();
        assert_eq!(event.handler_name().ok().as_deref(), case["handler"].as_str(), "{case}");
        assert_eq!(event.handler_name().is_err(), case["error"].is_string(), "{case}");
    }
    assert_eq!(list(&vectors, "handler_names").len(), 18);
}

type Write = fn(&Event) -> Result<Vec<u8>, EventError>;
type Read = fn(&[u8]) -> Result<Event, EventError>;

/// Written as Python writes it, byte for byte, and read back to what it was.
fn check_encode(section: &str, write: Write, read: Read) {
    let vectors = vectors();
    for case in list(&vectors, section) {
        let name = case["name"].as_str().unwrap();
        let event = event(&case["message"]).unwrap();
        let payload = write(&event).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(is_payload(&case["payload"], &payload), "{name}: {:?}", String::from_utf8_lossy(&payload));
        let again = read(&payload).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(same(&again, &event), "{name}: {again:?}");
    }
}

#[test]
fn msgpack_is_written_and_read_byte_for_byte() {
    check_encode("msgpack.encode", Event::to_msgpack, Event::from_msgpack);
    assert_eq!(list(&vectors(), "msgpack.encode").len(), 38);
}

#[test]
fn json_is_written_and_read_byte_for_byte() {
    check_encode("json.encode", Event::to_json, Event::from_json);
    assert_eq!(list(&vectors(), "json.encode").len(), 31);
}

/// The bytes of a case; the two that are too long for the file are built again.
fn payload(case: &Json) -> Option<Vec<u8>> {
    let expected = &case["payload"];
    if let Some(hex) = expected["hex"].as_str() {
        return Some(bytes(hex));
    }
    let built = match (case["name"].as_str().unwrap(), expected.is_null()) {
        (_, true) => return None,
        ("nested_1100_arrays", _) => [vec![0x91; 1100], vec![0x01]].concat(),
        ("nested_500_deep", _) => [r#"{"type": "t", "v": "#, &"[".repeat(501), &"]".repeat(501), "}"].concat().into(),
        (name, _) => panic!("{name} is new"),
    };
    assert!(is_payload(expected, &built), "{case}");
    Some(built)
}

/// What Python's reader refuses is refused; what it accepts is read to the same value, but for the
/// cases named in `stricter`, which are refused, and in `nearest`, whose values have no form here. Returns
/// how many cases have a payload.
fn check_read(section: &str, read: Read, stricter: &[&str], nearest: &[&str]) -> usize {
    let vectors = vectors();
    let (mut refused, mut others) = (Vec::new(), Vec::new());
    let mut checked = 0;
    for case in list(&vectors, section) {
        let name = case["name"].as_str().unwrap();
        let Some(payload) = payload(case) else {
            assert!(case["encode_error"].is_string(), "{name}");
            continue;
        };
        checked += 1;
        match (read(&payload), case["decode_error"].is_string()) {
            (Ok(event), false) => match golden::event(&case["decodes_to"]) {
                Some(wanted) => assert!(same(&event, &wanted), "{name}: {event:?}"),
                None => others.push(name),
            },
            (Ok(event), true) => panic!("{name}: Python refuses it, we read {event:?}"),
            (Err(_), true) => {}
            (Err(_), false) => refused.push(name),
        }
    }
    assert_eq!((&refused[..], &others[..]), (stricter, nearest), "{section}");
    checked
}

#[test]
fn msgpack_of_other_writers_is_read_or_refused_as_by_python() {
    let unusual = ["bytes_key", "msgpack_timestamp", "msgpack_ext", "nested_500_deep"];
    assert_eq!(check_read("msgpack.unusual", Event::from_msgpack, &unusual, &[]), 12);
    let foreign = [
        "bin_key",
        "timestamp32_ext",
        "fixext1_code5",
        "top_level_int",
        "top_level_array",
        "top_level_str",
        "nested_500_arrays",
    ];
    assert_eq!(check_read("msgpack.foreign", Event::from_msgpack, &foreign, &[]), 24);
}

#[test]
fn json_of_other_writers_is_read_or_refused_as_by_python() {
    let nearest = ["int_too_big", "int_too_small", "lone_surrogate"];
    assert_eq!(check_read("json.unusual", Event::from_json, &["nested_500_deep"], &nearest), 10);
    let (stricter, nearest) = (["utf16_le", "top_level_number"], ["escaped_lone_surrogate", "big_int"]);
    assert_eq!(check_read("json.foreign", Event::from_json, &stricter, &nearest), 18);
}

#[test]
fn what_python_cannot_write_we_do_not_write() {
    let vectors = vectors();
    let mut checked = 0;
    for case in list(&vectors, "json.unusual").iter().chain(list(&vectors, "msgpack.unusual")) {
        // The others are Python objects that have no counterpart here.
        let Some(event) = event(&case["message"]) else { continue };
        assert!(matches!(event.to_json(), Err(EventError::Unsupported(_))), "{case}");
        checked += 1;
    }
    assert_eq!(checked, 7);
    // Python writes 500 levels and we do not: our readers stop earlier than its own.
    let nested = (0..500).fold(Value::List(Vec::new()), |inner, _| Value::List(vec![inner]));
    let nested = Event::new("t").with("v", nested);
    assert_eq!((nested.to_msgpack(), nested.to_json()), (Err(EventError::TooDeep), Err(EventError::TooDeep)));
}
