//! What a sender gives beside the text of a message: `data`, a JSON object of the site's own (`docs/protocol.md`).
//!
//! It is stored as it came and nothing of it is looked at. On the layer it is a map, as Python has it.

use std::sync::Arc;

use channel_layer::{Event, Value};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::json;

/// Levels of objects and lists, at most; events and answers have more around it.
const MAX_DEPTH: usize = 64;

/// The field of an event with the data as a map; from anybody.
const DATA: &str = "data";
/// And with its text, where a map would not hold its numbers; believed of a stored message only.
const DATA_JSON: &str = "data_json";

/// Why data cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    TooLarge,
    NotAnObject,
    TooDeep,
}

impl Wrong {
    /// For people.
    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::TooLarge => "data is over the limit",
            Self::NotAnObject => "data must be a JSON object",
            Self::TooDeep => "data has too many levels",
        }
    }
}

/// What is stored of it, at most so many bytes: the text as it came, or as short as it can be written if that is too long
/// or if JSON is more than what a strict reader takes. `null` is none.
pub(crate) fn read(json: &str, most: usize) -> Result<Option<Arc<str>>, Wrong> {
    let json = json.trim();
    if json == "null" {
        return Ok(None);
    }
    if !json.starts_with('{') {
        return Err(Wrong::NotAnObject);
    }
    if json::compact_len(json, most) > most {
        return Err(Wrong::TooLarge);
    }
    if Facts::of(json).depth > MAX_DEPTH {
        return Err(Wrong::TooDeep);
    }
    if json.len() <= most && serde_json::from_str::<serde_json::Value>(json).is_ok() {
        return Ok(Some(json.into()));
    }
    let value = Value::from_json(json.as_bytes()).map_err(|_| Wrong::NotAnObject)?;
    let json = serde_json::to_string(&value).map_err(|_| Wrong::NotAnObject)?;
    if json.len() > most { Err(Wrong::TooLarge) } else { Ok(Some(json.into())) }
}

/// Puts the data of a stored message into its event.
pub(crate) fn into_event(event: Event, data: Option<&str>) -> Event {
    let Some(json) = data else { return event };
    let Ok(value) = Value::from_json(json.as_bytes()) else { return event };
    let event = event.with(DATA, value);
    if Facts::of(json).fit_a_double { event } else { event.with(DATA_JSON, json) }
}

/// The data of an event, as it is shown to clients.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Shown<'a> {
    Map(&'a Value),
    Text(&'a RawValue),
}

impl<'a> Shown<'a> {
    /// Of one that was `stored`, or of anybody's.
    pub(crate) fn of(event: &'a Event, stored: bool) -> Option<Self> {
        let map = event.get(DATA).filter(|data| data.as_map().is_some())?;
        let text = event.text(DATA_JSON).filter(|_| stored);
        Some(text.and_then(|text| serde_json::from_str(text).ok()).map_or(Self::Map(map), Self::Text))
    }
}

/// What must be known of a JSON text before anybody reads it.
struct Facts {
    depth: usize,
    /// All numbers are read back as they are by who knows 64-bit integers and doubles only.
    fit_a_double: bool,
}

impl Facts {
    fn of(json: &str) -> Self {
        let mut facts = Self { depth: 0, fit_a_double: true };
        let (mut depth, mut rest) = (0_usize, json);
        while let Some(first) = rest.bytes().next() {
            let taken = match first {
                b'"' => text_len(rest),
                b'-' | b'0'..=b'9' => {
                    let ends = |c: char| !matches!(c, '0'..='9' | '-' | '+' | '.' | 'e' | 'E');
                    let number = rest.find(ends).unwrap_or(rest.len());
                    facts.fit_a_double &= fits(&rest[..number]);
                    number
                }
                b'{' | b'[' => {
                    depth += 1;
                    facts.depth = facts.depth.max(depth);
                    1
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    1
                }
                _ => rest.chars().next().map_or(1, char::len_utf8),
            };
            rest = &rest[taken..];
        }
        facts
    }
}

/// Bytes of the text that begins here, with its quotes.
fn text_len(json: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in json.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    json.len()
}

/// Whether a number is the same when it has been a 64-bit integer or a double.
fn fits(number: &str) -> bool {
    /// Digits that a double always keeps.
    const DIGITS: usize = 15;
    if !number.contains(['.', 'e', 'E']) {
        return number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
    }
    let digits = number.split(['e', 'E']).next().unwrap_or_default().replace(['-', '.'], "");
    let double = number.parse::<f64>().unwrap_or(f64::INFINITY);
    digits.trim_start_matches('0').len() <= DIGITS && (double == 0.0 || double.is_normal())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 100;

    fn stored(json: &str) -> Result<Option<String>, Wrong> {
        read(json, MOST).map(|data| data.map(|data| data.to_string()))
    }

    #[test]
    fn an_object_is_stored_as_it_came() {
        for json in [r#"{}"#, r#"{ "a" : 1.10, "b":[12345678901234567890123, null],"a":"\u0000" }"#] {
            assert_eq!(stored(json), Ok(Some(json.to_owned())));
        }
        assert_eq!((stored(" null "), stored("\n{} ")), (Ok(None), Ok(Some("{}".into()))));
        for json in ["[]", "1", "\"{}\"", "true", ""] {
            assert_eq!(stored(json), Err(Wrong::NotAnObject), "{json}");
        }
    }

    #[test]
    fn its_length_is_what_it_means_and_not_how_it_is_written() {
        let long = |char: &str, count| format!(r#"{{"a":"{}"}}"#, char.repeat(count));
        assert_eq!(stored(&long("x", MOST - 8)), Ok(Some(long("x", MOST - 8))));
        assert_eq!(stored(&long("x", MOST - 7)), Err(Wrong::TooLarge));
        assert_eq!(stored(&long("\\u0078", 50)), Ok(Some(long("x", 50))));
        assert_eq!(stored(&format!("{{{}}}", " ".repeat(MOST))), Ok(Some("{}".into())));
    }

    #[test]
    fn what_a_strict_reader_refuses_is_written_anew() {
        assert_eq!(stored(r#"{"a":"\ud83d","b":1e400}"#), Ok(Some("{\"a\":\"\u{fffd}\",\"b\":null}".into())));
        let deep = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(read(&deep(63), 1000).map(|data| data.is_some()), Ok(true));
        assert_eq!(read(&deep(64), 1000), Err(Wrong::TooDeep));
        assert_eq!(read(&deep(100_000), 1_000_000), Err(Wrong::TooDeep));
    }

    fn shown(event: &Event, stored: bool) -> Option<String> {
        Shown::of(event, stored).map(|shown| serde_json::to_string(&shown).unwrap())
    }

    #[test]
    fn an_event_has_it_as_a_map_and_its_text_where_that_says_more() {
        for (json, more) in [
            (r#"{"a":1.5,"b":[-7,18446744073709551615,1e3],"\"1e999":"12345678901234567890123"}"#, false),
            (r#"{"a":12345678901234567890123}"#, true),
            (r#"{"a":0.1234567890123456789}"#, true),
        ] {
            let event = into_event(Event::new("chat.message"), Some(json));
            assert_eq!(event.text(DATA_JSON).is_some(), more, "{json}");
            assert!(event.get(DATA).unwrap().as_map().is_some());
            if more {
                assert_eq!(shown(&event, true).as_deref(), Some(json));
                assert_ne!(shown(&event, false).as_deref(), Some(json), "anybody may say so");
            }
        }
        let plain = Event::new("chat.message");
        assert_eq!(into_event(plain.clone(), None), plain);
        for other in [Value::from("text"), Value::List(vec![]), Value::Null] {
            assert_eq!(shown(&plain.clone().with(DATA, other), false), None);
        }
    }
}
