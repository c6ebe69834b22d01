//! See [`crate::fuzzing`].
#![allow(clippy::expect_used, reason = "a fuzz target fails by panicking")]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::payload::{Field, Fields};

/// What is compressed means what it means uncompressed; and what JSON's own reader takes, ours reads alike.
pub(crate) fn session(bytes: &[u8]) {
    let _ = Fields::of_signed(&String::from_utf8_lossy(bytes));
    let plain = Fields::of_signed(&URL_SAFE_NO_PAD.encode(bytes));
    let packed = miniz_oxide::deflate::compress_to_vec_zlib(bytes, 1);
    assert_eq!(Fields::of_signed(&format!(".{}", URL_SAFE_NO_PAD.encode(packed))), plain);
    let Ok(strict) = serde_json::from_slice::<serde_json::Map<_, _>>(bytes) else { return };
    let fields = plain.expect("an object is read");
    // Django reads Latin-1.
    if bytes.is_ascii() {
        for (name, field) in [("_auth_user_id", fields.user_id), ("_auth_user_hash", fields.hash)] {
            let expected: Field = match strict.get(name) {
                None | Some(serde_json::Value::Null) => Field::None,
                Some(serde_json::Value::String(text)) => Field::Text(text.clone()),
                Some(serde_json::Value::Number(_)) => continue,
                Some(_) => Field::Other,
            };
            assert_eq!(field, expected, "{name}");
        }
    }
}

/// What stands behind the end of a pickle changes nothing, and nothing is read of half of one.
pub(crate) fn pickle(bytes: &[u8]) {
    let Ok(fields) = Fields::of_cached(bytes) else { return };
    if bytes.iter().find(|byte| !b" \t\r\n".contains(byte)) == Some(&b'{') {
        return;
    }
    assert_eq!(Fields::of_cached(&[bytes, b"more"].concat()), Ok(fields));
    let whole = &bytes[..bytes.len().min(2048)];
    let Some(end) = (1..=whole.len()).find(|end| Fields::of_cached(&whole[..*end]).is_ok()) else { return };
    assert_eq!(bytes[end - 1], b'.', "the end of a pickle");
}
