//! Tokens and the keys they are signed with. What is configured of them is made here; `auth/` asks.

mod jwt;
mod keys;
mod source;

pub use jwt::{ClaimedUser, Claims, JwtAuth, TokenError};
pub(crate) use jwt::{Token, text_or_whole};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use keys::{Algorithm, Signed};
pub(crate) use keys::{Key, MAX_JWKS, MAX_KEYS, Verdict, keys_of_jwks, verify};
pub(crate) use source::JwksSource;
