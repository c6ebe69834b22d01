//! The golden bytes of the Python packages, for the tests of this crate from inside and outside.
#![allow(dead_code, reason = "each of them needs another part")]

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::{Event, Value};

pub(crate) fn vectors() -> Json {
    serde_json::from_str(include_str!("../data/channel-layer-vectors.json")).unwrap()
}

pub(crate) fn list<'a>(vectors: &'a Json, section: &str) -> &'a [Json] {
    section.split('.').fold(vectors, |at, name| &at[name]).as_array().unwrap()
}

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An argument of a command: text, or bytes as hex.
pub(crate) fn argument(argument: &Json) -> Vec<u8> {
    match argument["hex"].as_str() {
        Some(hex) => bytes(hex),
        None => argument.as_str().unwrap().as_bytes().to_vec(),
    }
}

/// Long payloads are in the file as length, hash and first bytes.
pub(crate) fn is_payload(expected: &Json, payload: &[u8]) -> bool {
    let head = expected["hex"].as_str().or(expected["head_hex"].as_str()).unwrap();
    let same = expected["sha256"].as_str().is_none_or(|sha256| hex(&Sha256::digest(payload)) == sha256);
    payload.len() as u64 == expected["len"].as_u64().unwrap() && payload.starts_with(&bytes(head)) && same
}

/// A tagged value of the file; `None` for what no event can hold.
pub(crate) fn value(tagged: &Json) -> Option<Value> {
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
        "str" => repeated().unwrap_or_else(|| text(v)).into(),
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

pub(crate) fn event(tagged: &Json) -> Option<Event> {
    let Value::Map(pairs) = value(tagged)? else { return None };
    Some(pairs.into_iter().fold(Event::default(), |event, (key, value)| event.with(&key, value)))
}

/// Equality to the bit: a NaN is itself, and 0.0 is not -0.0.
pub(crate) fn same(a: &Event, b: &Event) -> bool {
    format!("{a:?}") == format!("{b:?}")
}
