//! What must hold for any bytes: one function for each target of `fuzz/`. They panic if it does not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a fuzz target fails by panicking")]

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::auth;
use crate::scope::{cookie, parse_cookies};

/// Looks at some bytes and panics if a rule does not hold for them.
pub type Check = fn(&[u8]);

/// The names of the targets, with their functions.
pub const TARGETS: [(&str, Check); 4] =
    [("session", session), ("pickle", pickle), ("cookies", cookies), ("jwks", jwks)];

/// As the payload of a signed session, and as the JSON in one.
pub fn session(bytes: &[u8]) {
    auth::fuzzing::session(bytes);
}

/// As what stands in a cache.
pub fn pickle(bytes: &[u8]) {
    auth::fuzzing::pickle(bytes);
}

/// As what stands at the URL of a JWKS.
pub fn jwks(bytes: &[u8]) {
    auth::fuzzing::jwks(bytes);
}

/// As the header that a browser sends. There are no more cookies than parts, the last of equal names is taken, and what
/// was read and has no quotes means the same when it is written again.
pub fn cookies(bytes: &[u8]) {
    let read = |value: &[u8]| {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_bytes(value).ok()?);
        Some(parse_cookies(&headers))
    };
    let Some(cookies) = read(bytes) else { return };
    assert!(cookies.len() <= 1 + bytes.iter().filter(|byte| **byte == b';').count());
    for (name, _) in &cookies {
        let last = cookies.iter().rfind(|(other, _)| other == name).unwrap();
        assert_eq!(cookie(&cookies, name), Some(last.1.as_str()));
    }
    if !bytes.contains(&b'"') {
        let written: Vec<String> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let latin: Vec<u8> = written.join("; ").chars().map(|letter| u8::try_from(letter).unwrap()).collect();
        assert_eq!(read(&latin).unwrap(), cookies);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_stored_input_keeps_the_rules() {
        for (target, check) in TARGETS {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
            let mut checked = 0;
            for entry in std::fs::read_dir(corpus).unwrap() {
                check(&std::fs::read(entry.unwrap().path()).unwrap());
                checked += 1;
            }
            assert!(checked >= 20, "{checked} for {target}");
        }
    }
}
