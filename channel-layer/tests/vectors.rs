//! The golden bytes of the Python packages.
#![allow(clippy::unwrap_used, reason = "tests")]

use channel_layer::{ChannelName, Event, GroupName, Value};
use serde_json::Value as Json;

fn vectors() -> Json {
    serde_json::from_str(include_str!("data/vectors.json")).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// A tagged value of the file; `None` for what no event can hold.
fn value(tagged: &Json) -> Option<Value> {
    let v = &tagged["v"];
    let text = |v: &Json| v.as_str().unwrap().to_owned();
    let repeated = || {
        let (unit, count) = (tagged["repeat"].as_str()?, tagged["count"].as_u64()? as usize);
        Some(unit.repeat(count))
    };
    Some(match tagged["t"].as_str()? {
        "nil" => Value::Null,
        "bool" => Value::Bool(v.as_bool()?),
        "int" => match text(v).parse::<i64>() {
            Ok(int) => Value::Int(int),
            Err(_) => Value::UInt(text(v).parse().ok()?),
        },
        "f64" => Value::Float(f64::from_bits(u64::from_str_radix(tagged["bits"].as_str()?, 16).ok()?)),
        "str" => Value::Text(repeated().unwrap_or_else(|| text(v))),
        "bin" => Value::Bytes(bytes(&repeated().unwrap_or_else(|| text(v)))),
        "arr" => match (tagged["repeat"].is_null(), v.as_array()) {
            (true, Some(list)) => Value::List(list.iter().map(value).collect::<Option<_>>()?),
            _ => {
                let (unit, count) = (Value::Int(tagged["repeat"].as_i64()?), tagged["count"].as_u64()? as usize);
                Value::List(vec![unit; count])
            }
        },
        "map" => Value::Map(
            v.as_array()?
                .iter()
                .map(|pair| match value(&pair[0])? {
                    Value::Text(key) => Some((key, value(&pair[1])?)),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

fn event(tagged: &Json) -> Option<Event> {
    let Value::Map(pairs) = value(tagged)? else { return None };
    Some(pairs.into_iter().fold(Event::default(), |event, (key, value)| event.with(&key, value)))
}

#[test]
fn names() {
    for case in vectors()["names"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // Where Python's expressions are looser than they look (Unicode digits, a trailing newline) we are strict.
        let ascii = name.is_ascii() && !name.contains('\n');
        assert_eq!(ChannelName::parse(name).is_ok(), ascii && case["channel_ok"] == true, "{name:?}");
        assert_eq!(GroupName::parse(name).is_ok(), ascii && case["group_ok"] == true, "{name:?}");
    }
}

#[test]
fn handler_names() {
    let mut checked = 0;
    for case in vectors()["handler_names"].as_array().unwrap() {
        let Some(event) = event(&case["message"]) else { continue };
        checked += 1;
        assert_eq!(event.handler_name().ok().as_deref(), case["handler"].as_str(), "{case}");
    }
    assert!(checked >= 15, "{checked}");
}

#[test]
fn msgpack_is_written_byte_for_byte() {
    let mut checked = 0;
    for case in vectors()["msgpack"]["encode"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let Some(event) = event(&case["message"]) else { continue };
        let payload = event.to_msgpack().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(payload.len() as u64, case["payload"]["len"].as_u64().unwrap(), "{name}");
        let head = case["payload"]["hex"].as_str().or(case["payload"]["head_hex"].as_str()).unwrap();
        assert!(payload.starts_with(&bytes(head)), "{name}");
        let again = Event::from_msgpack(&payload).unwrap();
        assert!(again == event || name.contains("nan") || format!("{event:?}").contains("NaN"), "{name}");
        checked += 1;
    }
    assert!(checked == 38, "{checked} of 38 cases");
}

#[test]
fn foreign_payloads_are_read_or_refused_and_nothing_panics() {
    for section in ["foreign", "unusual"] {
        for case in vectors()["msgpack"][section].as_array().unwrap() {
            let Some(hex) = case["payload"]["hex"].as_str() else { continue };
            let read = Event::from_msgpack(&bytes(hex));
            let name = case["name"].as_str().unwrap();
            match (read, event(&case["decodes_to"])) {
                (Ok(read), Some(wanted)) => {
                    assert!(
                        read == wanted || format!("{wanted:?}").contains("NaN"),
                        "{name}: {read:?} is not {wanted:?}"
                    );
                }
                // What Python's reader refuses, we refuse.
                (Ok(read), None) => assert!(case["decode_error"].is_null(), "{name}: {read:?}"),
                // We may be stricter (extension types, deep nesting), never stuck.
                (Err(_), _) => {}
            }
        }
    }
}

#[test]
fn payloads_on_pubsub_topics() {
    let mut checked = 0;
    for step in vectors()["pubsub_one_host"].as_array().unwrap() {
        let (Some(event), Some(command)) = (event(&step["message"]), step["commands"].get(0)) else { continue };
        let Some(hex) = command["args"][2]["hex"].as_str() else { continue };
        if command["args"][0] == "PUBLISH" && hex.starts_with('8') {
            assert_eq!(event.to_msgpack().unwrap(), bytes(hex), "{step}");
            checked += 1;
        }
    }
    assert!(checked >= 2);
}
