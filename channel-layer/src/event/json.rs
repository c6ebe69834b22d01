//! JSON as Python's `json.dumps` writes it in its default form.

mod read;

use std::io::Write;

use super::{Text, Value};
use crate::EventError;

pub(super) use self::read::{decode, read};

/// The caller has checked depth and number of values.
pub(super) fn encode(entries: &[(Text, Value)]) -> Result<Vec<u8>, EventError> {
    let mut out = Vec::with_capacity(128);
    write_map(&mut out, entries)?;
    Ok(out)
}

fn write_map(out: &mut Vec<u8>, entries: &[(Text, Value)]) -> Result<(), EventError> {
    out.push(b'{');
    for (at, (key, value)) in entries.iter().enumerate() {
        write_entry(out, at == 0, key, value)?;
    }
    out.push(b'}');
    Ok(())
}

/// One key and its value, behind a comma unless it is the first.
pub(crate) fn write_entry(out: &mut Vec<u8>, first: bool, key: &str, value: &Value) -> Result<(), EventError> {
    write_key(out, first, key);
    write_value(out, value)
}

/// As [`write_entry`], but the caller writes the value.
pub(crate) fn write_key(out: &mut Vec<u8>, first: bool, key: &str) {
    separate(out, first);
    write_text(out, key);
    out.extend_from_slice(b": ");
}

fn separate(out: &mut Vec<u8>, first: bool) {
    if !first {
        out.extend_from_slice(b", ");
    }
}

/// A list of texts.
pub(crate) fn write_texts(out: &mut Vec<u8>, texts: &[&str]) {
    out.push(b'[');
    for (at, text) in texts.iter().enumerate() {
        separate(out, at == 0);
        write_text(out, text);
    }
    out.push(b']');
}

fn write_value(out: &mut Vec<u8>, value: &Value) -> Result<(), EventError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(v) => write_number(out, format_args!("{v}")),
        Value::UInt(v) => write_number(out, format_args!("{v}")),
        Value::Float(v) => write_float(out, *v),
        Value::Text(v) => write_text(out, v),
        Value::Bytes(_) => return Err(EventError::Unsupported("bytes in JSON")),
        Value::List(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                separate(out, at == 0);
                write_value(out, item)?;
            }
            out.push(b']');
        }
        Value::Map(entries) => write_map(out, entries)?,
    }
    Ok(())
}

fn write_number(out: &mut Vec<u8>, number: std::fmt::Arguments<'_>) {
    // Writing into memory cannot fail.
    let _ = out.write_fmt(number);
}

/// Python's `repr` of a float: the shortest digits that read back, plain between 1e-4 and 1e16.
fn write_float(out: &mut Vec<u8>, v: f64) {
    if v.is_nan() {
        return out.extend_from_slice(b"NaN");
    }
    if v.is_infinite() {
        return out.extend_from_slice(if v > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    // Of two shortest forms that are equally near, serde_json takes the even one, as Python does. Rust's
    // own formatting takes the larger one.
    let start = out.len();
    let _ = serde_json::to_writer(&mut *out, &v);
    if v != 0.0 && !(1e-4..1e16).contains(&v.abs()) {
        let digits = Digits::read(&out[start..]);
        out.truncate(start);
        digits.write(out);
    }
}

/// A number as `digits` with the point behind the first of them, times ten to the `exponent`.
struct Digits {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

impl Digits {
    /// Reads a JSON number that is not zero: `0.00002`, `2e-5` and `2.5e+20` alike.
    fn read(number: &[u8]) -> Self {
        let (mut digits, mut exponent) = (Vec::new(), -1);
        let mut rest = number.strip_prefix(b"-").unwrap_or(number);
        let mut behind_point = false;
        while let [byte, tail @ ..] = rest {
            rest = tail;
            match byte {
                b'.' => behind_point = true,
                b'e' | b'E' => break,
                // Zeros in front are not digits of it, but move the point.
                b'0' if digits.is_empty() => exponent -= i64::from(behind_point),
                digit => {
                    digits.push(*digit);
                    exponent += i64::from(!behind_point);
                }
            }
        }
        let power = std::str::from_utf8(rest).unwrap_or_default().trim_start_matches('+');
        exponent += power.parse().unwrap_or(0);
        digits.truncate(digits.iter().rposition(|digit| *digit != b'0').map_or(1, |last| last + 1));
        Self { negative: number.starts_with(b"-"), digits, exponent }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if self.negative {
            out.push(b'-');
        }
        if let [first, rest @ ..] = &self.digits[..] {
            out.push(*first);
            if !rest.is_empty() {
                out.push(b'.');
                out.extend_from_slice(rest);
            }
        }
        let sign = if self.exponent < 0 { '-' } else { '+' };
        write_number(out, format_args!("e{sign}{:02}", self.exponent.abs()));
    }
}

/// Text in quotes, everything beyond printable ASCII escaped.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text;
    while let Some(plain) = rest.bytes().position(|byte| !matches!(byte, b' '..=b'~') || matches!(byte, b'"' | b'\\')) {
        // The bytes before are ASCII, so this is a border of characters.
        let (before, after) = rest.split_at(plain);
        out.extend_from_slice(before.as_bytes());
        let mut chars = after.chars();
        if let Some(c) = chars.next() {
            write_escaped(out, c);
        }
        rest = chars.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
    out.push(b'"');
}

fn write_escaped(out: &mut Vec<u8>, c: char) {
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        '\u{8}' => out.extend_from_slice(b"\\b"),
        '\u{c}' => out.extend_from_slice(b"\\f"),
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.extend_from_slice(b"\\u");
                out.extend([12, 8, 4, 0].map(|shift| HEX[usize::from(*unit >> shift & 0xf)]));
            }
        }
    }
}
