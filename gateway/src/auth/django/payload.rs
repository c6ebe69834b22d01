//! What stands in a session: of all that a site keeps there, three fields matter, and the rest is passed over.
//!
//! Django writes JSON as Python does. What JSON does not know (`NaN`, integers of any size, halves of surrogate pairs)
//! is passed over like the rest, so such a session counts, as it does in Django.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::pickle;

/// Bytes that a session may have, decompressed.
pub(super) const LARGEST: usize = 1 << 20;

/// Lists and objects inside of each other; Python does not read more either.
const DEEPEST: usize = 900;

/// Python does not look at the bits behind the last byte.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// The names of the three fields.
const NAMES: [&str; 3] = ["_auth_user_id", "_auth_user_backend", "_auth_user_hash"];

/// A session that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("it is not encoded as Django does")]
    Encoding,
    #[error("it is larger than 1 MiB")]
    TooLarge,
    #[error("it is no JSON object")]
    Json,
    #[error("it is no Python pickle of plain data")]
    Pickle,
}

/// A value of one of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Field {
    /// Missing, or null.
    #[default]
    None,
    Text(String),
    /// Anything else.
    Other,
}

/// The fields of a session that say who is logged in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(super) user_id: Field,
    pub(super) backend: Field,
    pub(super) hash: Field,
}

impl Fields {
    /// Reads a payload whose signature is good.
    pub(crate) fn of_signed(payload: &str) -> Result<Self, Unreadable> {
        let (packed, is_packed) = payload.strip_prefix('.').map_or((payload, false), |packed| (packed, true));
        let bytes = BASE64.decode(packed).map_err(|_| Unreadable::Encoding)?;
        let json = if is_packed { inflate(&bytes)? } else { bytes };
        Self::of_json(&json, Charset::Latin1)
    }

    /// Reads a value of a cache: a pickle, or JSON.
    pub(crate) fn of_cached(value: &[u8]) -> Result<Self, Unreadable> {
        if value.len() > LARGEST {
            return Err(Unreadable::TooLarge);
        }
        match value.iter().find(|byte| !b" \t\r\n".contains(byte)) {
            Some(b'{') => Self::of_json(value, Charset::Utf8),
            _ => pickle::read(value).ok_or(Unreadable::Pickle),
        }
    }

    fn of_json(json: &[u8], charset: Charset) -> Result<Self, Unreadable> {
        if json.len() > LARGEST {
            return Err(Unreadable::TooLarge);
        }
        if charset == Charset::Utf8 && std::str::from_utf8(json).is_err() {
            return Err(Unreadable::Json);
        }
        let mut reader = JsonReader { rest: json, charset };
        let mut fields = Self::default();
        reader.session(&mut fields).filter(|()| reader.is_at_end()).map(|()| fields).ok_or(Unreadable::Json)
    }

    pub(super) fn set(&mut self, name: &str, value: Field) {
        match NAMES.iter().position(|known| *known == name) {
            Some(0) => self.user_id = value,
            Some(1) => self.backend = value,
            Some(_) => self.hash = value,
            None => {}
        }
    }

    /// Whether a field of this name matters.
    pub(super) fn knows(name: &str) -> bool {
        NAMES.contains(&name)
    }
}

/// Straight into one buffer, so that nothing is copied and no window is needed.
fn inflate(packed: &[u8]) -> Result<Vec<u8>, Unreadable> {
    const FLAGS: u32 =
        inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut engine = DecompressorOxide::new();
    let mut data = vec![0; (packed.len() * 4).clamp(1024, LARGEST + 1)];
    let (mut read, mut written) = (0, 0);
    loop {
        let (status, taken, made) = decompress(&mut engine, &packed[read..], &mut data, written, FLAGS);
        (read, written) = (read + taken, written + made);
        match status {
            TINFLStatus::Done | TINFLStatus::HasMoreOutput if written > LARGEST => return Err(Unreadable::TooLarge),
            TINFLStatus::Done if read == packed.len() => {
                data.truncate(written);
                return Ok(data);
            }
            TINFLStatus::HasMoreOutput if data.len() <= LARGEST => data.resize((data.len() * 2).min(LARGEST + 1), 0),
            // Cut short, damaged, or with something behind it.
            _ => return Err(Unreadable::Encoding),
        }
    }
}

/// What the bytes of a text are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Charset {
    /// Each is a character.
    Latin1,
    Utf8,
}

/// Reads JSON as Python does and keeps nothing but the three fields.
struct JsonReader<'a> {
    rest: &'a [u8],
    charset: Charset,
}

impl<'a> JsonReader<'a> {
    /// The outermost object.
    fn session(&mut self, fields: &mut Fields) -> Option<()> {
        self.skip_blanks();
        self.take(b'{')?;
        if self.is_empty_until(b'}') {
            return Some(());
        }
        loop {
            self.skip_blanks();
            let name = self.string()?;
            let name = self.text(name);
            self.skip_blanks();
            self.take(b':')?;
            self.skip_blanks();
            if Fields::knows(&name) {
                let value = self.field()?;
                fields.set(&name, value);
            } else {
                self.value(DEEPEST)?;
            }
            self.skip_blanks();
            match self.next()? {
                b',' => {}
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn field(&mut self) -> Option<Field> {
        let before = self.rest;
        match before.first()? {
            b'"' => {
                let value = self.string()?;
                Some(Field::Text(self.text(value).into_owned()))
            }
            b'n' => self.value(DEEPEST).map(|()| Field::None),
            b'-' | b'0'..=b'9' => {
                self.value(DEEPEST)?;
                let number = &before[..before.len() - self.rest.len()];
                // Python would write an integer like this.
                let whole = std::str::from_utf8(number).ok()?.parse::<i64>();
                Some(whole.map_or(Field::Other, |whole| Field::Text(whole.to_string())))
            }
            _ => self.value(DEEPEST).map(|()| Field::Other),
        }
    }

    /// Passes over a value.
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.rest.first()? {
            b'"' => self.string().map(drop),
            b'{' => self.all_of(b'}', depth, |reader, depth| {
                reader.string()?;
                reader.skip_blanks();
                reader.take(b':')?;
                reader.skip_blanks();
                reader.value(depth)
            }),
            b'[' => self.all_of(b']', depth, Self::value),
            b'n' => self.word(b"null"),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'N' => self.word(b"NaN"),
            b'I' => self.word(b"Infinity"),
            b'-' if self.rest.starts_with(b"-I") => self.word(b"-Infinity"),
            _ => self.number(),
        }
    }

    /// Passes over what is between brackets.
    fn all_of(&mut self, end: u8, depth: usize, one: fn(&mut Self, usize) -> Option<()>) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.next()?;
        if self.is_empty_until(end) {
            return Some(());
        }
        loop {
            self.skip_blanks();
            one(self, depth)?;
            self.skip_blanks();
            match self.next()? {
                b',' => {}
                byte => return (byte == end).then_some(()),
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        self.rest = self.rest.strip_prefix(b"-").unwrap_or(self.rest);
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => drop(self.digits()),
            _ => return None,
        }
        if let Some(fraction) = self.rest.strip_prefix(b".") {
            self.rest = fraction;
            self.digits()?;
        }
        if let Some(exponent) = self.rest.strip_prefix(b"e").or_else(|| self.rest.strip_prefix(b"E")) {
            self.rest = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        (count > 0).then_some(())
    }

    /// Passes over a text, and gives what is between the quotes.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.take(b'"')?;
        let begin = self.rest;
        loop {
            match self.next()? {
                b'"' => return Some(&begin[..begin.len() - self.rest.len() - 1]),
                b'\\' => match self.next()? {
                    b'u' => {
                        let digits = self.rest.get(..4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
                        self.rest = &self.rest[digits.len()..];
                    }
                    byte if br#""\/bfnrt"#.contains(&byte) => {}
                    _ => return None,
                },
                0..0x20 => return None,
                _ => {}
            }
        }
    }

    /// What such a text means. Half of a surrogate pair becomes U+FFFD, which none of our fields has.
    fn text(&self, quoted: &'a [u8]) -> Cow<'a, str> {
        if quoted.is_ascii() && !quoted.contains(&b'\\') {
            return String::from_utf8_lossy(quoted);
        }
        let plain: String = match self.charset {
            Charset::Latin1 => quoted.iter().map(|&byte| char::from(byte)).collect(),
            Charset::Utf8 => String::from_utf8_lossy(quoted).into_owned(),
        };
        let mut units: Vec<u16> = Vec::with_capacity(plain.len());
        let mut rest = plain.as_str();
        while let Some(at) = rest.find('\\') {
            units.extend(rest[..at].encode_utf16());
            let mark = rest[at + 1..].chars().next().unwrap_or('\\');
            let (unit, used) = match mark {
                'u' => (rest.get(at + 2..at + 6).and_then(|hex| u16::from_str_radix(hex, 16).ok()), 6),
                'b' => (Some(8), 2),
                'f' => (Some(12), 2),
                'n' => (Some(10), 2),
                'r' => (Some(13), 2),
                't' => (Some(9), 2),
                other => (u16::try_from(u32::from(other)).ok(), 1 + other.len_utf8()),
            };
            units.extend(unit);
            rest = rest.get(at + used..).unwrap_or_default();
        }
        units.extend(rest.encode_utf16());
        String::from_utf16_lossy(&units).into()
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(word)?;
        Some(())
    }

    fn skip_blanks(&mut self) {
        let count = self.rest.iter().take_while(|byte| b" \t\r\n".contains(byte)).count();
        self.rest = &self.rest[count..];
    }

    /// Whether nothing but blanks stands before this byte, which is taken then.
    fn is_empty_until(&mut self, end: u8) -> bool {
        self.skip_blanks();
        self.rest.first() == Some(&end) && self.next().is_some()
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest.is_empty()
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(json: &str) -> Option<Fields> {
        Fields::of_json(json.as_bytes(), Charset::Latin1).ok()
    }

    fn text(text: &str) -> Field {
        Field::Text(text.to_owned())
    }

    fn packed(data: &[u8]) -> Vec<u8> {
        miniz_oxide::deflate::compress_to_vec_zlib(data, 6)
    }

    #[test]
    fn three_fields_are_read_and_the_rest_is_passed_over() {
        let fields =
            of(r#" {"a": [1, {"_auth_user_id": "9"}, -2.5e+7], "_auth_user_id": "1", "n": NaN, "i": -Infinity,
            "big": 123456789012345678901234567890, "\ud83e": "\ud83e", "_auth_user_backend": "b", "x": {}, "y": [ ],
            "_auth_user_h\u0061sh": "h"} "#)
            .unwrap();
        assert_eq!(fields, Fields { user_id: text("1"), backend: text("b"), hash: text("h") });
        assert_eq!(of(r#"{"_auth_user_id":"1","_auth_user_id":2}"#).unwrap().user_id, text("2"));
        assert_eq!(of(r#"{"_auth_user_id":null}"#).unwrap().user_id, Field::None);
        assert_eq!(of(r#"{"_auth_user_id":["1"]}"#).unwrap().user_id, Field::Other);
        assert_eq!(of(r#"{"_auth_user_id":1.5}"#).unwrap().user_id, Field::Other);
        assert_eq!(of(r#"{"_auth_user_id":"\u00fc\ud83d\ude00\n\"\\\/"}"#).unwrap().user_id, text("ü😀\n\"\\/"));
        assert_eq!(of("{}").unwrap(), Fields::default());
        let utf8 = Fields::of_cached("{\"_auth_user_id\":\"Ж\"}".as_bytes()).unwrap();
        assert_eq!(utf8.user_id, text("Ж"));
    }

    #[test]
    fn what_python_does_not_read_is_refused() {
        for wrong in [
            "",
            "[]",
            "1",
            "\"x\"",
            "{",
            "{}x",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":.5}",
            "{\"a\":1.}",
            "{\"a\":1e}",
            "{\"a\":\"\t\"}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":nul}",
            "{\"a\":[1,]}",
            "{\"a\":-}",
            "{\"a\":infinity}",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(of(&deep(DEEPEST)).is_some());
        assert!(of(&deep(DEEPEST + 1)).is_none());
        assert!(of(&deep(200_000)).is_none());
    }

    #[test]
    fn what_is_decompressed_has_a_bound() {
        let json = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8));
        let read = |bytes: Vec<u8>| Fields::of_signed(&format!(".{}", BASE64.encode(bytes)));
        assert_eq!(read(packed(json(LARGEST).as_bytes())), Ok(Fields::default()));
        assert_eq!(read(packed(json(LARGEST + 1).as_bytes())), Err(Unreadable::TooLarge));
        assert_eq!(read(packed(&vec![b' '; 64 << 20])), Err(Unreadable::TooLarge));
        let good = packed(b"{}");
        assert_eq!(read(good.clone()), Ok(Fields::default()));
        assert_eq!(read([&good[..], b"x"].concat()), Err(Unreadable::Encoding));
        for end in 0..good.len() {
            assert_eq!(read(good[..end].to_vec()), Err(Unreadable::Encoding), "{end}");
        }
        assert_eq!(Fields::of_signed("e30"), Ok(Fields::default()));
        assert_eq!(Fields::of_signed("e30="), Err(Unreadable::Encoding));
        assert_eq!(Fields::of_signed("e3+"), Err(Unreadable::Encoding));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Fields::of_cached(&bytes);
            let _ = Fields::of_json(&bytes, Charset::Latin1);
            let _ = inflate(&bytes);
            let _ = Fields::of_signed(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn json_of_any_shape_is_passed_over(
            words in proptest::collection::vec(
                prop_oneof![
                    Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\"a\""), Just("1"),
                    Just("\"_auth_user_id\""), Just("null"), Just(" "), Just("NaN"), Just("-"), Just("\"\\ud800\""),
                ],
                0..30,
            )
        ) {
            let json = words.concat();
            // What the strict reader takes, ours does; it does not take half of a pair.
            if let Ok(serde_json::Value::Object(_)) = serde_json::from_str(&json) {
                prop_assert!(of(&json).is_some(), "{}", json);
            }
            let _ = of(&json);
        }
    }
}
