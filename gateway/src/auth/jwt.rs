//! JSON Web Tokens: HS256, HS384 and HS512 with a list of secrets.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::names;

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// The algorithms a shared secret is good for; what the token says only picks among them.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The username.
    pub username: String,
    /// Rooms that count for the socket; empty when the token names none.
    pub rooms: Vec<String>,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Why a token is no good. For logs; a client only learns that it is not signed in.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No way to check tokens is configured.
    #[error("no secret is configured")]
    NoSecret,
    /// Not a token, or signed with something else.
    #[error("the token is not valid")]
    Invalid(#[from] jsonwebtoken::errors::Error),
    /// A claim is missing or has the wrong form.
    #[error("claim {0} is missing or malformed")]
    Claim(String),
    /// Signed in by a name that nobody can have here.
    #[error(
        "claim {0} holds a name that cannot be a user's: 1 to 150 characters, no / and no control characters, neither . nor .."
    )]
    Name(String),
    /// Longer than any real token.
    #[error("the token is too long")]
    TooLong,
    /// Its header has `crit`.
    #[error("the token needs extensions (crit), of which none is known here")]
    Critical,
}

impl TokenError {
    /// The cause in a word, for the log and the metric.
    pub fn reason(&self) -> &'static str {
        use jsonwebtoken::errors::ErrorKind;
        match self {
            Self::NoSecret => "no_token_key",
            Self::Invalid(error) => match error.kind() {
                ErrorKind::ExpiredSignature => "expired",
                ErrorKind::ImmatureSignature => "not_yet_valid",
                ErrorKind::InvalidSignature => "bad_signature",
                ErrorKind::InvalidAudience => "audience",
                ErrorKind::InvalidIssuer => "issuer",
                ErrorKind::InvalidAlgorithm => "algorithm",
                _ => "malformed",
            },
            Self::Claim(claim) if claim == "exp" => "expired",
            Self::Claim(claim) if claim == "token_type" => "token_type",
            Self::Claim(_) => "claim",
            Self::Name(_) => "name",
            Self::TooLong => "malformed",
            Self::Critical => "crit",
        }
    }
}

/// Checks and makes tokens.
pub struct JwtAuth {
    keys: Vec<DecodingKey>,
    signing: Option<EncodingKey>,
    validation: Validation,
    user_claim: String,
}

impl JwtAuth {
    /// `secrets` are tried in turn; the first one signs. Empty `audience` and no `issuer` are not checked.
    pub fn new(secrets: &[SecretString], user_claim: &str, audience: &[String], issuer: Option<&str>) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.algorithms = ALGORITHMS.to_vec();
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        validation.validate_aud = !audience.is_empty();
        if !audience.is_empty() {
            validation.set_audience(audience);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        let bytes = |secret: &SecretString| secret.expose_secret().as_bytes().to_vec();
        Self {
            keys: secrets.iter().map(|secret| DecodingKey::from_secret(&bytes(secret))).collect(),
            signing: secrets.first().map(|secret| EncodingKey::from_secret(&bytes(secret))),
            validation,
            user_claim: user_claim.to_owned(),
        }
    }

    /// Checks a token.
    pub fn check(&self, token: &str) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        if is_critical(token) {
            return Err(TokenError::Critical);
        }
        let mut last = TokenError::NoSecret;
        for key in &self.keys {
            match jsonwebtoken::decode::<Unambiguous>(token, key, &self.validation) {
                Ok(data) => return self.claims(&data.claims.0),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Makes a token with the first secret.
    pub fn sign(&self, username: &str, rooms: Option<&[String]>, lifetime_seconds: u64) -> Result<String, TokenError> {
        let key = self.signing.as_ref().ok_or(TokenError::NoSecret)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut claims = json!({ self.user_claim.as_str(): username, "iat": now, "exp": now + lifetime_seconds });
        if let Some(rooms) = rooms {
            claims["rooms"] = json!(rooms);
        }
        if let Some(audience) = self.validation.aud.as_ref().and_then(|audience| audience.iter().next()) {
            claims["aud"] = json!(audience);
        }
        if let Some(issuer) = self.validation.iss.as_ref().and_then(|issuer| issuer.iter().next()) {
            claims["iss"] = json!(issuer);
        }
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, key)?)
    }

    fn claims(&self, claims: &Map<String, Value>) -> Result<Claims, TokenError> {
        let malformed = |claim: &str| TokenError::Claim(claim.to_owned());
        let username = match claims.get(&self.user_claim) {
            Some(Value::String(name)) => name.clone(),
            // simplejwt before 5.5 writes ids as numbers.
            Some(Value::Number(id)) => id.to_string(),
            _ => return Err(malformed(&self.user_claim)),
        };
        if !names::is_valid_name(&username) {
            return Err(TokenError::Name(self.user_claim.clone()));
        }
        // simplejwt: a refresh token is not for signing in.
        if claims.get("token_type").is_some_and(|kind| kind != "access") {
            return Err(malformed("token_type"));
        }
        let expires_at = claims.get("exp").and_then(Value::as_f64).ok_or_else(|| malformed("exp"))? as i64;
        // The library lets the last second pass; a socket opened in it would only be closed again.
        if expires_at <= crate::clock::unix_seconds() {
            return Err(malformed("exp"));
        }
        let rooms = match claims.get("rooms") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(rooms)) => rooms
                .iter()
                .map(|room| room.as_str().filter(|room| names::is_valid_name(room)).map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| malformed("rooms"))?,
            Some(_) => return Err(malformed("rooms")),
        };
        Ok(Claims { username, rooms, expires_at })
    }
}

/// Whether the header has `crit`, in whatever form: it names what must be understood, and nothing of it is.
fn is_critical(token: &str) -> bool {
    let header = token.split('.').next().and_then(|header| URL_SAFE_NO_PAD.decode(header).ok());
    let header = header.and_then(|header| serde_json::from_slice::<Map<String, Value>>(&header).ok());
    header.is_some_and(|header| header.contains_key("crit"))
}

/// Claims of which each stands there once: of two, another reader of the same token may take the other one.
#[derive(Debug, Clone)]
struct Unambiguous(Map<String, Value>);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Claims;

        impl<'de> Visitor<'de> for Claims {
            type Value = Unambiguous;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of claims")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unambiguous, A::Error> {
                let mut claims = Map::new();
                while let Some((name, value)) = entries.next_entry()? {
                    if claims.insert(name, value).is_some() {
                        return Err(Error::custom("a claim stands there twice"));
                    }
                }
                Ok(Unambiguous(claims))
            }
        }

        deserializer.deserialize_map(Claims)
    }
}

impl fmt::Debug for JwtAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuth").field("secrets", &self.keys.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "secret-secret-secret-secret-1";

    fn auth() -> JwtAuth {
        JwtAuth::new(&["another-secret-another".into(), SECRET.into()], "sub", &[], None)
    }

    fn token(algorithm: Algorithm, claims: Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    fn soon() -> i64 {
        jsonwebtoken::get_current_timestamp() as i64 + 60
    }

    #[test]
    fn every_secret_and_algorithm_is_good() {
        for algorithm in ALGORITHMS {
            let claims =
                auth().check(&token(algorithm, json!({"sub": "alice", "exp": soon(), "rooms": ["a", "b"]}))).unwrap();
            assert_eq!((claims.username.as_str(), claims.rooms.len()), ("alice", 2));
        }
        let signed = auth().sign("bob", None, 60).unwrap();
        assert_eq!(auth().check(&signed).unwrap().username, "bob");
        assert_eq!(auth().check(&token(Algorithm::HS256, json!({"sub": 17, "exp": soon()}))).unwrap().username, "17");
    }

    #[test]
    fn bad_tokens_are_refused() {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let none = format!("{}.{}.", part(json!({"alg": "none"})), part(json!({"sub": "alice", "exp": soon()})));
        let good = token(Algorithm::HS256, json!({"sub": "alice", "exp": soon()}));
        let (head, signature) = good.rsplit_once('.').unwrap();
        let header = head.split('.').next().unwrap();
        let swapped = format!("{header}.{}.{signature}", part(json!({"sub": "mallory", "exp": soon()})));
        let other =
            JwtAuth::new(&["a-wrong-secret-a-wrong-secret".into()], "sub", &[], None).sign("alice", None, 60).unwrap();
        for bad in [
            String::new(),
            "x".into(),
            "x".repeat(MAX_TOKEN + 1),
            none,
            swapped,
            other,
            token(Algorithm::HS256, json!({"sub": "alice", "exp": soon() - 61})),
            token(Algorithm::HS256, json!({"sub": "alice", "exp": soon(), "nbf": soon()})),
            token(Algorithm::HS256, json!({"sub": "alice"})),
            token(Algorithm::HS256, json!({"exp": soon()})),
            token(Algorithm::HS256, json!({"sub": "a/b", "exp": soon()})),
            token(Algorithm::HS256, json!({"sub": "..", "exp": soon()})),
            token(Algorithm::HS256, json!({"sub": "alice", "exp": soon(), "rooms": ["lobby", "."]})),
            token(Algorithm::HS256, json!({"sub": ["alice"], "exp": soon()})),
            token(Algorithm::HS256, json!({"sub": "alice", "exp": soon(), "rooms": "lobby"})),
            token(Algorithm::HS256, json!({"sub": "alice", "exp": soon(), "token_type": "refresh"})),
        ] {
            assert!(auth().check(&bad).is_err(), "{bad}");
        }
        assert!(JwtAuth::new(&[], "sub", &[], None).check(&good).is_err());
    }

    /// A good signature over this header.
    fn token_with_header(header: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part(header), part(&json!({"sub": "alice", "exp": soon()}).to_string()));
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).unwrap();
        format!("{signed}.{signature}")
    }

    #[test]
    fn what_a_token_calls_critical_is_known_or_the_token_is_refused() {
        assert!(auth().check(&token_with_header(r#"{"alg":"HS256"}"#)).is_ok());
        for crit in [r#"["exp"]"#, r#"["b64"],"b64":false"#, "[]", r#""exp""#, "null"] {
            let refused = auth().check(&token_with_header(&format!(r#"{{"alg":"HS256","crit":{crit}}}"#)));
            assert!(matches!(refused, Err(TokenError::Critical)), "{crit}: {refused:?}");
        }
    }

    #[test]
    fn audience_and_issuer_count_when_configured() {
        let strict = JwtAuth::new(&[SECRET.into()], "sub", &["chat".into()], Some("site"));
        assert!(strict.check(&strict.sign("alice", None, 60).unwrap()).is_ok());
        assert!(strict.check(&token(Algorithm::HS256, json!({"sub": "alice", "exp": soon()}))).is_err());
        let foreign = json!({"sub": "alice", "exp": soon(), "aud": "shop", "iss": "site"});
        assert!(strict.check(&token(Algorithm::HS256, foreign.clone())).is_err());
        assert!(auth().check(&token(Algorithm::HS256, foreign)).is_ok(), "aud is not checked unless configured");
    }
}
