//! Encodings beyond the golden msgpack bytes: JSON, limits, serde, and whatever a generator thinks of.
#![allow(clippy::unwrap_used, reason = "tests")]

use channel_layer::{Event, EventError, MAX_DEPTH, MAX_VALUES, Value};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

fn json_cases(section: &str) -> Vec<Json> {
    let all: Json = serde_json::from_str(include_str!("data/json.json")).unwrap();
    all["json"][section].as_array().unwrap().clone()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Python's own bytes, read and written again, are the same bytes; so both directions are right.
#[test]
fn json_is_pythons_json() {
    let mut checked = 0;
    for case in json_cases("encode") {
        let (name, Some(hex)) = (case["name"].as_str().unwrap(), case["payload"]["hex"].as_str()) else { continue };
        let python = bytes(hex);
        if name == "floats_special" {
            // NaN and infinities are written as Python writes them; this reader refuses them.
            let event = Event::default()
                .with("type", "t")
                .with("v", vec![f64::INFINITY.into(), f64::NEG_INFINITY.into(), Value::from(f64::NAN)]);
            assert_eq!(event.to_json().unwrap(), python);
            assert!(Event::from_json(&python).is_err());
            continue;
        }
        let event = Event::from_json(&python).unwrap_or_else(|error| panic!("{name}: {error}"));
        let ours = event.to_json().unwrap();
        assert_eq!(String::from_utf8(ours).unwrap(), String::from_utf8(python).unwrap(), "{name}");
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
}

#[test]
fn json_that_python_refuses_is_refused() {
    for case in json_cases("foreign") {
        let Some(hex) = case["payload"]["hex"].as_str() else { continue };
        if !case["decode_error"].is_null() {
            assert!(Event::from_json(&bytes(hex)).is_err(), "{case}");
        }
    }
    assert_eq!(Event::from_json(b"5"), Err(EventError::NotAMap));
    assert_eq!(Event::from_json(br#"{"a": 1, "b": 0, "a": 2}"#).unwrap().to_json().unwrap(), br#"{"a": 2, "b": 0}"#);
    assert!(matches!(Event::new("t").with("b", vec![0_u8]).to_json(), Err(EventError::Unsupported(_))));
}

fn nested(levels: usize) -> Event {
    let inner = (1..levels).fold(Value::Null, |inner, _| Value::List(vec![inner]));
    Event::new("t").with("v", inner)
}

#[test]
fn depth_and_size_are_limited_alike_in_both_directions() {
    let deepest = nested(MAX_DEPTH);
    assert_eq!(Event::from_msgpack(&deepest.to_msgpack().unwrap()).unwrap(), deepest);
    assert_eq!(nested(MAX_DEPTH + 1).to_msgpack(), Err(EventError::TooDeep));
    let mut deeper = b"\x81\xa1v".to_vec();
    deeper.resize(3 + MAX_DEPTH, 0x91);
    deeper.push(0xc0);
    assert_eq!(Event::from_msgpack(&deeper), Err(EventError::TooDeep));

    let many = Value::List(vec![Value::Null; MAX_VALUES]);
    assert_eq!(Event::default().with("v", many).to_msgpack(), Err(EventError::TooLarge));
    let mut nulls = b"\x81\xa1v\xdd".to_vec();
    nulls.extend_from_slice(&(MAX_VALUES as u32).to_be_bytes());
    nulls.resize(nulls.len() + MAX_VALUES, 0xc0);
    assert_eq!(Event::from_msgpack(&nulls), Err(EventError::TooLarge));
}

/// Many equal keys must not cost the square of their number.
#[test]
fn a_map_of_equal_keys_is_read_in_one_pass() {
    let count: u32 = 500_000;
    let mut payload = b"\xdf".to_vec();
    payload.extend_from_slice(&count.to_be_bytes());
    for n in 0..count {
        payload.extend_from_slice(if n % 2 == 0 { b"\xa1a" } else { b"\xa1b" });
        payload.push((n % 100) as u8);
    }
    let event = Event::from_msgpack(&payload).unwrap();
    assert_eq!(event.iter().collect::<Vec<_>>(), [("a", &Value::Int(98)), ("b", &Value::Int(99))]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Chat {
    r#type: String,
    message: String,
    seq: Option<u64>,
    #[serde(flatten)]
    route: Route,
    marks: Vec<Mark>,
    weight: f64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Route {
    group_name: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Read,
    Edited { by: String },
    Star(u8),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
enum Tagged {
    #[serde(rename = "chat.message")]
    Message { text: String },
}

#[test]
fn typed_events_are_maps_and_come_back() {
    let chat = Chat {
        r#type: "chat.message".into(),
        message: "héllo".into(),
        seq: None,
        route: Route { group_name: "lobby".into() },
        marks: vec![Mark::Read, Mark::Edited { by: "bob".into() }, Mark::Star(3)],
        weight: 0.5,
    };
    let event = Event::from_serialize(&chat).unwrap();
    assert_eq!(event.handler_name().unwrap(), "chat_message");
    assert_eq!(event.text("group_name"), Some("lobby"));
    let arrived = Event::from_msgpack(&event.to_msgpack().unwrap()).unwrap();
    assert_eq!(arrived.deserialize::<Chat>().unwrap(), chat);

    let tagged = Tagged::Message { text: "hi".into() };
    let event = Event::from_serialize(&tagged).unwrap();
    assert_eq!(event.deserialize::<Tagged>().unwrap(), tagged);
    assert_eq!(event.deserialize::<Event>().unwrap(), event);
    assert!(Event::new("other").deserialize::<Tagged>().is_err());
    assert_eq!(Event::from_serialize(&[1]), Err(EventError::NotAMap));
    assert!(Event::from_serialize(&std::collections::BTreeMap::from([(1, 2)])).is_err());
    assert!(Event::from_serialize(&std::collections::BTreeMap::from([("n", u128::MAX)])).is_err());
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("NaN is not equal to itself", |v| !v.is_nan()).prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::List),
            proptest::collection::btree_map(".{0,5}", inner, 0..20)
                .prop_map(|map| Value::Map(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_event_survives_msgpack(value in values(), key in ".{0,10}") {
        let event = Event::new("t").with(&key, value);
        prop_assert_eq!(Event::from_msgpack(&event.to_msgpack().unwrap()).unwrap(), event);
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused(mut payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Event::from_msgpack(&payload);
        let _ = Event::from_json(&payload);
        // And as the body of a map, where most of them get further.
        payload.splice(0..0, *b"\x84\xa1a");
        if let Ok(event) = Event::from_msgpack(&payload) {
            prop_assert!(Event::from_msgpack(&event.to_msgpack().unwrap()).is_ok());
        }
    }
}
