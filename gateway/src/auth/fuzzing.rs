//! See [`crate::fuzzing`].
#![allow(clippy::expect_used, reason = "a fuzz target fails by panicking")]

use super::django;
use crate::tokens::{Algorithm, MAX_KEYS, Signed, Verdict, keys_of_jwks, verify};

pub(crate) use django::fuzzing::{pickle, session};

/// There are no more keys than may be, and none takes a signature that nobody made.
pub(crate) fn jwks(bytes: &[u8]) {
    let Ok((keys, unused)) = keys_of_jwks(bytes) else { return };
    assert!(keys.len() <= MAX_KEYS && keys.len() + unused <= bytes.len());
    for algorithm in ["HS256", "RS256", "PS512", "ES256", "ES384", "ES512", "EdDSA"] {
        let algorithm = Algorithm::named(algorithm).expect("one of ours");
        let signed = Signed { algorithm, key_id: None, message: b"header.payload", signature: bytes };
        let verdict = verify(&keys, &signed);
        assert!(verdict != Verdict::Good && (!algorithm.is_symmetric() || verdict != Verdict::Bad), "{algorithm:?}");
    }
}
