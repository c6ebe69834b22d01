//! Signatures of `django.core.signing`, and the hash that binds a session to a password.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What Django adds to the secret key for the hash of a password.
const AUTH_SALT: &str = "django.contrib.auth.models.AbstractBaseUser.get_session_auth_hash";

/// Digits of Django's numbers, the smallest first.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Bytes of a hash that are enough to see that a password has changed.
pub(crate) const HALF: usize = 16;

type Sign = Hmac<Sha256>;

/// The site's secret key and its fallbacks, ready to check with.
pub(crate) struct Keys(Vec<Key>);

struct Key {
    text: Sign,
    password: Sign,
    mark: u32,
}

/// A text whose signature is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signed<'a> {
    pub(crate) payload: &'a str,
    /// Seconds since 1970.
    pub(crate) at: i64,
    /// Of the key that signed it, see [`Keys::has`].
    pub(crate) mark: u32,
}

impl Keys {
    /// For texts signed with this salt.
    pub(crate) fn new(secrets: &[SecretString], salt: &str) -> Self {
        let key = |secret: &SecretString| {
            let secret = secret.expose_secret();
            let password = derive(&[AUTH_SALT, secret]);
            // Says nothing about the key, and stays the same over a restart.
            let mark = Sha256::digest([&b"mark"[..], &password].concat());
            let mark = mark.iter().take(4).fold(0, |mark, byte| mark << 8 | u32::from(*byte));
            Key { text: keyed(&derive(&[salt, "signer", secret])), password: keyed(&password), mark }
        };
        Self(secrets.iter().map(key).collect())
    }

    /// Reads `payload:timestamp:signature`, if one of the keys made it.
    pub(crate) fn unsign<'a>(&self, signed: &'a str) -> Option<Signed<'a>> {
        let (text, signature) = signed.rsplit_once(':')?;
        let (payload, at) = text.rsplit_once(':')?;
        let key = self.0.iter().find(|key| {
            let good = URL_SAFE_NO_PAD.encode(key.text.clone().chain_update(text).finalize().into_bytes());
            good.as_bytes().ct_eq(signature.as_bytes()).into()
        })?;
        Some(Signed { payload, at: base62(at)?, mark: key.mark })
    }

    /// Whether a session with this hash, or with one that begins with this half of it, was made for the password that is
    /// stored now.
    pub(crate) fn fit(&self, hash: &[u8], stored: &str) -> bool {
        self.0.iter().any(|key| {
            let good: [u8; 32] = key.password.clone().chain_update(stored).finalize().into_bytes().into();
            hash.len() >= HALF && good.get(..hash.len()).is_some_and(|good| good.ct_eq(hash).into())
        })
    }

    /// Whether the key that signed something is one of these.
    pub(crate) fn has(&self, mark: u32) -> bool {
        self.0.iter().any(|key| key.mark == mark)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Keys").field(&self.0.len()).finish()
    }
}

/// Django joins the texts without anything in between.
fn derive(texts: &[&str]) -> [u8; 32] {
    Sha256::digest(texts.concat()).into()
}

fn keyed(key: &[u8; 32]) -> Sign {
    // A key shorter than a block is filled up with zeros, so it is filled up here, where no length can be wrong.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    Sign::new(&block.into())
}

/// The bytes of 64 hex digits in lower case.
pub(super) fn hash(text: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut hash = [0; 32];
    let pairs = text.as_bytes().chunks_exact(2);
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(pairs) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(hash)
}

fn base62(text: &str) -> Option<i64> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0_i64, |number, byte| {
        let digit = DIGITS.iter().position(|digit| *digit == byte)?;
        number.checked_mul(62)?.checked_add(digit as i64)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::vectors;
    use super::*;

    #[test]
    fn numbers_are_djangos() {
        let vectors = vectors();
        for case in vectors["signing"]["base62"].as_array().unwrap() {
            assert_eq!(base62(case["text"].as_str().unwrap()), case["number"].as_i64(), "{case}");
        }
        for text in ["", "-1", "a b", "zzzzzzzzzzzzzzzz", "é"] {
            assert_eq!(base62(text), None, "{text}");
        }
    }

    #[test]
    fn signatures_are_djangos_and_nothing_else_is() {
        let vectors = vectors();
        let cases = vectors["signing"]["signatures"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = |field: &str| case[field].as_str().unwrap();
            let derived: String = derive(&[text("salt"), "signer", text("secret_key")])
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(derived, text("derived_key_hex"));
            let keys = Keys::new(&["another".into(), text("secret_key").into()], text("salt"));
            let signed = format!("{}:{}", text("value"), text("signature"));
            let (payload, at) = text("value").rsplit_once(':').unwrap_or((text("value"), ""));
            match keys.unsign(&signed) {
                Some(read) => {
                    assert_eq!((read.payload, Some(read.at)), (payload, base62(at)));
                    assert!(keys.has(read.mark) && !Keys::new(&["another".into()], text("salt")).has(read.mark));
                }
                None => assert!(base62(at).is_none(), "{case}"),
            }
            // Whatever is changed, it is refused.
            for at in 0..signed.len() {
                let mut other = signed.clone().into_bytes();
                other[at] ^= 1;
                assert_eq!(String::from_utf8(other).ok().and_then(|other| keys.unsign(&other).map(|_| ())), None);
            }
            assert_eq!(keys.unsign(&signed[..signed.len() - 1]), None);
            assert_eq!(Keys::new(&[text("secret_key").into()], "other").unsign(&signed), None);
        }
        assert_eq!(Keys::new(&["k".into()], "s").unsign(""), None);
    }

    #[test]
    fn hashes_of_passwords_are_djangos() {
        let vectors = vectors();
        let cases = vectors["signing"]["salted_hmac"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = |field: &str| case[field].as_str().unwrap();
            assert_eq!(text("key_salt"), AUTH_SALT);
            let given = hash(text("session_auth_hash")).unwrap();
            let keys = Keys::new(&["another".into(), text("secret_key").into()], "");
            assert!(keys.fit(&given, text("password_column")));
            assert!(!keys.fit(&given, "another password"));
            assert!(keys.fit(&given[..HALF], text("password_column")) && !keys.fit(&given[..HALF], "another password"));
            assert!(!keys.fit(&given[..HALF - 1], text("password_column")) && !keys.fit(&[0; 33], ""));
            assert!(!Keys::new(&["another".into()], "").fit(&given, text("password_column")));
        }
        for wrong in ["", "ab", &"AB".repeat(32), &"ab".repeat(33), &"xy".repeat(32)] {
            assert_eq!(hash(wrong), None);
        }
    }
}
