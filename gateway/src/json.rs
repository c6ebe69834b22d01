//! JSON as browsers and Python write it. Both let through what the standard does not: `"\ud83d"` for a
//! text that was cut in an emoji, a byte order mark, and Python `NaN`, `Infinity` and integers of any size.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;

/// Reads JSON. What the strict reader refuses is read as Python would: half of a surrogate pair is U+FFFD,
/// a byte order mark is skipped, a number that JSON cannot write is null, as in `JSON.stringify`.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json).or_else(|error| match error.classify() {
        Category::Syntax => mended(json).map_or(Err(error), |json| serde_json::from_slice(&json)),
        Category::Data | Category::Eof | Category::Io => Err(error),
    })
}

/// The longest list or body that is mended: while that is done, it takes dozens of times as much memory.
const MENDED: usize = 256 * 1024;

/// The same for what may be long; then only the strict reader reads it.
pub(crate) fn read_long<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    if json.len() <= MENDED { read(json) } else { serde_json::from_slice(json) }
}

/// What the strict reader has refused, written by the standard's rules, if Python could read it and it is not long.
pub(crate) fn mended_short(json: &str) -> Option<String> {
    if json.len() > MENDED {
        return None;
    }
    String::from_utf8(mended(json.as_bytes())?).ok()
}

/// The same written by the standard's rules, if Python could read it.
fn mended(json: &[u8]) -> Option<Vec<u8>> {
    serde_json::to_vec(&channel_layer::Value::from_json(json).ok()?).ok()
}

/// A whole number, 0 or more, that a database can count to: `2` and `2.0` alike.
pub(crate) fn whole(value: &Value) -> Option<u64> {
    // 2^63 as a float, which is the first that is too large.
    const END: f64 = i64::MAX as f64;
    match (value.as_u64(), value.as_f64()) {
        (Some(number), _) => Some(number).filter(|number| i64::try_from(*number).is_ok()),
        (None, Some(number)) => ((0.0..END).contains(&number) && number.fract() == 0.0).then_some(number as u64),
        (None, None) => None,
    }
}

/// The same as a field that may be missing.
pub(crate) fn optional_whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value: Option<Value> = serde::Deserialize::deserialize(deserializer)?;
    let whole = |value| whole(&value).ok_or_else(|| serde::de::Error::custom("not a whole number, 0 or more"));
    value.map(whole).transpose()
}

/// Bytes of a JSON text without the blanks between its values, and with each character as short as it can be
/// written: what a sender's library makes of it should not count.
/// One that is `enough` short as it is is not looked into.
pub(crate) fn compact_len(json: &str, enough: usize) -> usize {
    if json.len() <= enough {
        return json.len();
    }
    let (mut len, mut in_text) = (0, false);
    let mut bytes = json.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b' ' | b'\n' | b'\r' | b'\t' if !in_text => {}
            b'\\' => {
                let short = match bytes.next() {
                    Some((_, b'u')) => {
                        let code = json.get(at + 2..at + 6).and_then(|digits| u32::from_str_radix(digits, 16).ok());
                        bytes.nth(3);
                        match code.unwrap_or_default() {
                            0x22 | 0x5c => 2,
                            0..0x20 => 6,
                            0x20..0x80 => 1,
                            // Half of one that has four.
                            0x80..0x800 | 0xd800..0xe000 => 2,
                            _ => 3,
                        }
                    }
                    Some((_, b'/')) => 1,
                    _ => 2,
                };
                len += short;
            }
            _ => {
                in_text ^= byte == b'"';
                len += 1;
            }
        }
    }
    len
}

/// A field of the outermost object as it stands there, if it can be read.
pub(crate) fn raw_field(json: &str, field: &str) -> Option<Box<RawValue>> {
    read::<HashMap<String, Box<RawValue>>>(json.as_bytes()).ok()?.remove(field)
}

/// The text of a field of the outermost object, as far as that can be told, of what is no JSON: cut off,
/// with a comma too many, with quotes inside a text, or as a program prints its own objects.
pub(crate) fn salvage(broken: &str, field: &str) -> Option<String> {
    let (mut rest, mut depth) = (broken.trim_start_matches('\u{feff}'), 0_usize);
    let (mut is_key, mut is_value, mut found) = (false, false, None);
    while let Some(first) = rest.chars().next() {
        let (token, behind) = match first {
            '"' | '\'' => {
                // Without an end there is nothing behind it either.
                let Some(end) = closing_quote(rest, first) else { break };
                rest.split_at(end + 1)
            }
            '_' | 'a'..='z' | 'A'..='Z' => {
                rest.split_at(rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(rest.len()))
            }
            _ => rest.split_at(first.len_utf8()),
        };
        rest = behind;
        match first {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            ':' if is_key => {
                (is_key, is_value) = (false, true);
                continue;
            }
            _ if first.is_whitespace() => continue,
            '"' | '\'' if is_value => found = text_of(token),
            _ => {}
        }
        is_value = false;
        is_key = depth == 1 && token.trim_matches(['"', '\'']) == field;
    }
    found
}

/// Where the text that begins `rest` ends: at a quote behind which something else begins.
fn closing_quote(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = true; // the opening quote
    for (at, c) in rest.char_indices() {
        if c == quote && !escaped {
            let behind = rest[at + 1..].trim_start().chars().next();
            if behind.is_none_or(|next| matches!(next, ',' | ':' | '}' | ']')) {
                return Some(at);
            }
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

fn text_of(quoted: &str) -> Option<String> {
    match quoted.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
        Some(text) => (!text.contains('\\')).then(|| text.to_owned()),
        None => read(quoted.as_bytes()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn data_is_measured_as_short_as_it_can_be_written() {
        const ENOUGH: usize = 1000;
        let long = "x".repeat(ENOUGH);
        for text in [long.clone(), format!("{long}é€👍\n\u{1}/\"\\")] {
            let value = serde_json::json!({"message": text, "more": [1, true, null]});
            let short = value.to_string();
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let spelled: String = short.chars().fold(String::new(), |mut spelled, char| {
                match char {
                    '\0'..='\x7f' => spelled.push(char),
                    _ => char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| spelled += &format!("\\u{unit:04x}")),
                }
                spelled
            });
            for json in [&short, &pretty, &spelled] {
                assert_eq!(compact_len(json, ENOUGH), short.len());
            }
        }
    }

    #[test]
    fn what_browsers_and_python_write_is_read() {
        for (text, value) in [
            (r#"{"a":"\ud83d"}"#, json!({"a": "\u{fffd}"})),
            (r#"{"a":"\ud83d\ude00"}"#, json!({"a": "\u{1f600}"})),
            ("\u{feff}[1]", json!([1])),
            (r#"{"a":NaN,"b":[-Infinity,1e400],"c":2}"#, json!({"a": null, "b": [null, null], "c": 2})),
        ] {
            assert_eq!(read::<Value>(text.as_bytes()).unwrap(), value, "{text}");
        }
        let large: Value = read(b"[1180591620717411303424]").unwrap();
        assert_eq!(large[0].as_f64(), Some(1_180_591_620_717_411_303_424.0));
        for text in ["", "{", "nope", "{'a':1}", "[1,]", "\u{feff}", "\"\u{1}\""] {
            assert!(read::<Value>(text.as_bytes()).is_err(), "{text}");
        }
        let raw: Box<serde_json::value::RawValue> = read("\u{feff}{\"a\":\"\\ud83d\"}".as_bytes()).unwrap();
        assert_eq!(raw.get(), "{\"a\":\"\u{fffd}\"}");
    }

    #[test]
    fn a_whole_number_may_have_a_point() {
        for (number, seq) in [
            ("2", Some(2)),
            ("2.0", Some(2)),
            ("2e0", Some(2)),
            ("-0", Some(0)),
            ("-0.0", Some(0)),
            ("9223372036854775807", Some(i64::MAX as u64)),
            ("9223372036854775808", None),
            ("1e19", None),
            ("2.5", None),
            ("-1", None),
            ("-1.0", None),
            ("\"2\"", None),
            ("null", None),
        ] {
            assert_eq!(whole(&serde_json::from_str(number).unwrap()), seq, "{number}");
        }
    }

    #[test]
    fn a_field_is_found_in_what_is_no_json() {
        for (broken, id) in [
            (r#"{"cate":"chat","client_id":"7","message":"cut o"#, Some("7")),
            (r#"{"client_id" : "7" , "cate":"chat",}"#, Some("7")),
            (r#"{"message":"say "hi", or 5" tall","client_id":"7"}"#, Some("7")),
            ("{\"message\":\"two\nlines\",\"client_id\":\"7\"}", Some("7")),
            (r#"{'cate': 'chat', 'client_id': '7', 'message': None}"#, Some("7")),
            (r#"{cate:"chat",client_id:"7"}"#, Some("7")),
            (r#"{"data":{"client_id":"inner"},"list":["client_id","x"],"client_id":"7","#, Some("7")),
            (r#"{"client_id":"a\u00e9\"\ud83d","#, Some("aé\"\u{fffd}")),
            ("\u{feff}{\"client_id\":\"7\",", Some("7")),
            // Nothing that is not the whole id of the frame itself.
            (r#"{"data":{"client_id":"inner","#, None),
            (r#"{"message":"\"client_id\":\"told\",","#, None),
            (r#"{"message":"client_id","x":"7","#, None),
            (r#"{"cate":"chat","client_id":"cut o"#, None),
            (r#"{"cate":"chat","client_id":7,"x":"y","#, None),
            (r#"[{"client_id":"7"},"#, None),
            (r#""client_id":"7""#, None),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(salvage(broken, "client_id").as_deref(), id, "{broken}");
        }
    }

    #[test]
    fn the_longest_nonsense_is_gone_through_once() {
        for part in ["\"", "{\"a\" ", "'\\", "\" ", "{", "client_id:"] {
            salvage(&part.repeat(100_000), "client_id");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_can_be_searched(text in "[\\PC\"'{}\\[\\]:,\\\\]*") {
            salvage(&text, "client_id");
        }

        #[test]
        fn in_good_json_it_is_what_the_reader_finds(id in "\\PC*", message in "\\PC*") {
            let text = json!({"cate": "chat", "data": {"client_id": "other"}, "message": message, "client_id": id}).to_string();
            proptest::prop_assert_eq!(salvage(&text, "client_id"), Some(id));
        }
    }
}
