//! Encodings beyond the golden msgpack bytes: JSON, limits, serde, and whatever a generator thinks of.
#![allow(clippy::unwrap_used, reason = "tests")]

use channel_layer::{Event, EventError, MAX_DEPTH, MAX_VALUES, Value};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[test]
fn json_is_one_object_of_which_the_last_equal_key_counts() {
    assert_eq!(Event::from_json(b"5"), Err(EventError::NotAMap));
    assert_eq!(Event::from_json(b"[{}]"), Err(EventError::NotAMap));
    assert_eq!(Event::from_json(br#"{"a": 1} {}"#), Err(EventError::Malformed("not JSON")));
    assert_eq!(Event::from_json(br#"{"a": "#), Err(EventError::Malformed("JSON ends too early")));
    assert_eq!(Event::from_json(br#"{"a": 1, "b": 0, "a": 2}"#).unwrap().to_json().unwrap(), br#"{"a": 2, "b": 0}"#);
    assert_eq!(Event::from_json(b"\xef\xbb\xbf{}").unwrap(), Event::default());
    assert!(matches!(Event::new("t").with("b", vec![0_u8]).to_json(), Err(EventError::Unsupported(_))));
}

#[test]
fn a_number_of_any_size_is_read_and_costs_no_other_value() {
    let read = |number: &str| {
        let event =
            Event::from_json(format!(r#"{{"a\"9": "1{number}", "v": [{number}], "e": 1e30}}"#).as_bytes()).unwrap();
        assert_eq!(event.get("e"), Some(&Value::Float(1e30)), "{number}");
        event.get("v").and_then(Value::as_list).unwrap()[0].clone()
    };
    for (number, value) in [
        ("18446744073709551615", Value::UInt(u64::MAX)),
        ("-9223372036854775808", Value::Int(i64::MIN)),
        ("-0", Value::Int(0)),
        ("2.0", Value::Float(2.0)),
        ("1E+2", Value::Float(100.0)),
        ("18446744073709551616.0", Value::Float(18_446_744_073_709_551_616.0)),
        ("1e19", Value::Float(1e19)),
        // What a browser makes of them.
        ("18446744073709551616", Value::Float(18_446_744_073_709_551_616.0)),
        ("-9223372036854775809", Value::Float(-9_223_372_036_854_775_808.0)),
        ("1180591620717411303424", Value::Float(1_180_591_620_717_411_303_424.0)),
        // What Python makes of them.
        ("1e400", Value::Float(f64::INFINITY)),
        ("-1e400", Value::Float(f64::NEG_INFINITY)),
        ("Infinity", Value::Float(f64::INFINITY)),
        ("-Infinity", Value::Float(f64::NEG_INFINITY)),
    ] {
        assert_eq!(read(number), value, "{number}");
    }
    assert!(matches!(read("NaN"), Value::Float(v) if v.is_nan()));
}

#[test]
fn half_of_a_surrogate_pair_is_one_unknown_character() {
    for (json, text) in [
        (r#""\ud83d""#, "\u{fffd}"),
        (r#""\ude00""#, "\u{fffd}"),
        (r#""a\ud83d b""#, "a\u{fffd} b"),
        (r#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
        (r#""\ude00\ud83d""#, "\u{fffd}\u{fffd}"),
        (r#""\ud83d\n""#, "\u{fffd}\n"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
        (r#""\uD83D\uDE00""#, "\u{1f600}"),
        (r#""\/\"\\\b\f\n\r\t\u00e9é""#, "/\"\\\u{8}\u{c}\n\r\té\u{e9}"),
    ] {
        assert_eq!(Value::from_json(json.as_bytes()), Ok(Value::from(text)), "{json}");
        // In a key too.
        let event = Event::from_json(format!("{{{json}: 1}}").as_bytes()).unwrap();
        assert_eq!(event.get(text), Some(&Value::Int(1)), "{json}");
    }
}

#[test]
fn what_python_does_not_read_either_is_refused() {
    for json in [
        "",
        " ",
        "nul",
        "nan",
        "-",
        "-I",
        "Infinit",
        "01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "+1",
        "0x1",
        "\"",
        "\"\\",
        "\"\\u12",
        "\"\\u12x4\"",
        "\"\\x\"",
        "\"\n\"",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "[1]]",
        "truefalse",
    ] {
        assert!(matches!(Value::from_json(json.as_bytes()), Err(EventError::Malformed(_))), "{json}");
    }
    assert_eq!(Value::from_json(b"\"\xff\""), Err(EventError::Malformed("not JSON")));
    assert_eq!(
        Value::from_json(b" [ 1 , { } , [ ] ] \n"),
        Ok(Value::List(vec![1.into(), Value::Map(vec![]), Value::List(vec![])]))
    );
}

/// The texts are `json.dumps`' own.
#[test]
fn floats_are_written_as_python_writes_them() {
    for (number, text) in [
        (851_507_290_906_250.3, "851507290906250.2"),
        (1e16, "1e+16"),
        (9999999999999998.0, "9999999999999998.0"),
        (123456789012345680.0, "1.2345678901234568e+17"),
        (0.0001, "0.0001"),
        (0.00009999, "9.999e-05"),
        (1e-5, "1e-05"),
        (2.5e-5, "2.5e-05"),
        (1.5e-9, "1.5e-09"),
        (1e-10, "1e-10"),
        (-2.5e-7, "-2.5e-07"),
        (1e22, "1e+22"),
        (1e23, "1e+23"),
        (1.2345e100, "1.2345e+100"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (2.2250738585072014e-308, "2.2250738585072014e-308"),
        (-0.0, "-0.0"),
        (1700000000.123456, "1700000000.123456"),
        (100.0, "100.0"),
        (0.1, "0.1"),
    ] {
        let json = Event::default().with("v", number).to_json().unwrap();
        assert_eq!(String::from_utf8(json).unwrap(), format!(r#"{{"v": {text}}}"#));
    }
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

    assert_eq!(Event::from_json(&deepest.to_json().unwrap()).unwrap(), deepest);
    assert_eq!(nested(MAX_DEPTH + 1).to_json(), Err(EventError::TooDeep));
    let deeper = [r#"{"v": "#, &"[".repeat(MAX_DEPTH), &"]".repeat(MAX_DEPTH), "}"].concat();
    assert_eq!(Event::from_json(deeper.as_bytes()), Err(EventError::TooDeep));

    let many = Event::default().with("v", Value::List(vec![Value::Null; MAX_VALUES]));
    assert_eq!((many.to_msgpack(), many.to_json()), (Err(EventError::TooLarge), Err(EventError::TooLarge)));
    let json = [r#"{"v": [0"#, &",0".repeat(MAX_VALUES - 1), "]}"].concat();
    assert_eq!(Event::from_json(json.as_bytes()), Err(EventError::TooLarge));
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

/// What both formats can carry.
fn leaves() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("a NaN equals nothing", |v| !v.is_nan()).prop_map(Value::from),
        "(?s).{0,40}".prop_map(Value::from),
    ]
}

fn values(leaf: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::List),
            proptest::collection::btree_map(".{0,5}", inner, 0..20)
                .prop_map(|map| Value::Map(map.into_iter().map(|(key, value)| (key.into(), value)).collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_event_survives_msgpack(
        value in values(prop_oneof![
            leaves(),
            prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY)].prop_map(Value::from),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::from),
        ]),
        key in ".{0,10}",
    ) {
        let event = Event::new("t").with(&key, value);
        prop_assert_eq!(Event::from_msgpack(&event.to_msgpack().unwrap()).unwrap(), event);
    }

    #[test]
    fn every_event_without_bytes_survives_json(value in values(leaves()), key in ".{0,10}") {
        let event = Event::new("t").with(&key, value);
        let json = event.to_json().unwrap();
        prop_assert!(json.iter().all(|byte| matches!(byte, b' '..=b'~')));
        prop_assert_eq!(Event::from_json(&json).unwrap(), event);
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
