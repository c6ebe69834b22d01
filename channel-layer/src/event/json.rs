//! JSON as Python's `json.dumps` writes it in its default form.

use super::{Event, Value};
use crate::EventError;

/// The caller has checked depth and number of values.
pub(super) fn encode(entries: &[(String, Value)]) -> Result<Vec<u8>, EventError> {
    let mut out = String::with_capacity(128);
    write_map(&mut out, entries)?;
    Ok(out.into_bytes())
}

pub(super) fn decode(payload: &[u8]) -> Result<Event, EventError> {
    let event: Event = serde_json::from_slice(payload).map_err(|error| match error.classify() {
        serde_json::error::Category::Eof => EventError::Malformed("JSON ends too early"),
        serde_json::error::Category::Data => EventError::NotAMap,
        _ => EventError::Malformed("not JSON"),
    })?;
    event.check()?;
    Ok(event)
}

fn write_map(out: &mut String, entries: &[(String, Value)]) -> Result<(), EventError> {
    out.push('{');
    for (at, (key, value)) in entries.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_text(out, key);
        out.push_str(": ");
        write_value(out, value)?;
    }
    out.push('}');
    Ok(())
}

fn write_value(out: &mut String, value: &Value) -> Result<(), EventError> {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Int(v) => out.push_str(&v.to_string()),
        Value::UInt(v) => out.push_str(&v.to_string()),
        Value::Float(v) => write_float(out, *v),
        Value::Text(v) => write_text(out, v),
        Value::Bytes(_) => return Err(EventError::Unsupported("bytes in JSON")),
        Value::List(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                write_value(out, item)?;
            }
            out.push(']');
        }
        Value::Map(entries) => write_map(out, entries)?,
    }
    Ok(())
}

/// Python's `repr` of a float: the shortest digits that read back, plain between 1e-4 and 1e16.
fn write_float(out: &mut String, v: f64) {
    if v.is_nan() {
        return out.push_str("NaN");
    }
    if v.is_infinite() {
        return out.push_str(if v > 0.0 { "Infinity" } else { "-Infinity" });
    }
    if v == 0.0 || (1e-4..1e16).contains(&v.abs()) {
        return out.push_str(&format!("{v:?}"));
    }
    // Rust writes `1e16` and `1e-5`; Python writes `1e+16` and `1e-05`.
    let digits = format!("{v:e}");
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    out.push_str(mantissa);
    out.push('e');
    out.push(sign);
    if exponent.len() < 2 {
        out.push('0');
    }
    out.push_str(exponent);
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    out.push('"');
}
