//! JSON Web Tokens: HS256, HS384 and HS512 with a list of secrets, and RS, PS, ES and EdDSA with public keys.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::keys::{self, Algorithm, Key, Signed, Verdict};
use crate::{clock, names};

/// Longest token that is looked at, in bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// The largest whole number that every reader of JSON sees alike.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whose it is.
    pub user: ClaimedUser,
    /// Rooms that count for the socket; empty when the token names none.
    pub rooms: Vec<String>,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Whom a token names, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimedUser {
    /// By username.
    Name(String),
    /// By id: the username is in Django's user table.
    Id(String),
}

/// Why a token is no good. For logs; a client only learns that it is not signed in.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No secret to sign with is configured.
    #[error("no secret is configured")]
    NoSecret,
    /// Not a token.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Its header has `crit`.
    #[error("the token needs extensions (crit), of which none is known here")]
    Critical,
    /// `none`, an unknown one, or one that no key of ours takes.
    #[error("no key takes the token's algorithm")]
    Algorithm,
    /// Signed with something else, or changed.
    #[error("the token's signature is not good")]
    Signature,
    /// The JWKS has no key of this `kid`.
    #[error("the token's kid is not in the JWKS")]
    UnknownKey,
    /// The JWKS has never been had, or could not be read again for a `kid` that is not in it.
    #[error("the JWKS is not to be had")]
    KeysAway,
    /// `exp` has come.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` has not come, by more than the leeway.
    #[error("the token is not valid yet ({0})")]
    NotYetValid(&'static str),
    /// `aud` names nobody who is configured.
    #[error("the token is for another audience")]
    Audience,
    /// `iss` is not the configured one.
    #[error("the token is another issuer's")]
    Issuer,
    /// `token_type` is not `access`.
    #[error("the token is no access token")]
    TokenType,
    /// A claim is missing or has the wrong form.
    #[error("claim {0} is missing or malformed")]
    Claim(String),
    /// Signed in by a name that nobody can have here.
    #[error(
        "claim {0} holds a name that cannot be a user's: 1 to 150 characters, no / and no control characters, neither . \
         nor .., not beginning with anon."
    )]
    Name(String),
}

impl TokenError {
    /// The cause in a word, for the log and the metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSecret => "no_token_key",
            Self::Malformed(_) => "malformed",
            Self::Critical => "crit",
            Self::Algorithm => "algorithm",
            Self::Signature => "bad_signature",
            Self::UnknownKey => "unknown_key",
            Self::KeysAway => "jwks",
            Self::Expired => "expired",
            Self::NotYetValid(_) => "not_yet_valid",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::TokenType => "token_type",
            Self::Claim(_) => "claim",
            Self::Name(_) => "name",
        }
    }
}

/// Checks and makes tokens.
pub struct JwtAuth {
    keys: Vec<Key>,
    signing: Option<hmac::Key>,
    user_claim: String,
    user_id_claim: Option<String>,
    audience: Vec<String>,
    issuer: Option<String>,
    leeway: i64,
}

impl JwtAuth {
    /// `secrets` are tried in turn; the first one signs. Empty `audience` and no `issuer` are not checked.
    pub fn new(secrets: &[SecretString], user_claim: &str, audience: &[String], issuer: Option<&str>) -> Self {
        let bytes = |secret: &SecretString| secret.expose_secret().as_bytes().to_vec();
        Self {
            keys: secrets.iter().map(|secret| Key::secret(&bytes(secret))).collect(),
            signing: secrets.first().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, &bytes(secret))),
            user_claim: user_claim.to_owned(),
            user_id_claim: None,
            audience: audience.to_vec(),
            issuer: issuer.map(str::to_owned),
            leeway: 30,
        }
    }

    /// Reads the user's id from this claim; the one of the username then means nothing.
    #[must_use]
    pub fn with_user_id_claim(mut self, claim: Option<&str>) -> Self {
        self.user_id_claim = claim.map(str::to_owned);
        self
    }

    /// Seconds that `nbf` and `iat` may be ahead of the clock; 30 unless set.
    #[must_use]
    pub fn with_leeway(mut self, seconds: u32) -> Self {
        self.leeway = seconds.into();
        self
    }

    pub(crate) fn with_public_keys(mut self, keys: &[Key]) -> Self {
        self.keys.extend_from_slice(keys);
        self
    }

    /// Whether any token could be good.
    pub(crate) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Checks a token with the keys that are configured, by the system's clock.
    pub fn check(&self, token: &str) -> Result<Claims, TokenError> {
        let token = Token::parse(token)?;
        match self.verify(&token) {
            Verdict::Good => self.claims(&token, clock::system_micros() / 1_000_000),
            Verdict::Bad => Err(TokenError::Signature),
            Verdict::NoSuchAlgorithm | Verdict::NoSuchKey => Err(TokenError::Algorithm),
        }
    }

    /// What the keys that are configured say of its signature.
    pub(crate) fn verify(&self, token: &Token<'_>) -> Verdict {
        // They have no ids, so a token's means nothing to them.
        keys::verify(&self.keys, &Signed { key_id: None, ..token.signed() })
    }

    /// Makes a token with the first secret. The name is an id where tokens name ids.
    pub fn sign(&self, username: &str, rooms: Option<&[String]>, lifetime_seconds: u64) -> Result<String, TokenError> {
        let key = self.signing.as_ref().ok_or(TokenError::NoSecret)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut claims = json!({ self.claim_of_user(): username, "iat": now, "exp": now + lifetime_seconds });
        if let Some(rooms) = rooms {
            claims["rooms"] = json!(rooms);
        }
        if let Some(audience) = self.audience.first() {
            claims["aud"] = json!(audience);
        }
        if let Some(issuer) = &self.issuer {
            claims["iss"] = json!(issuer);
        }
        let encode = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(json!({"typ": "JWT", "alg": "HS256"})), encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(key, message.as_bytes()));
        Ok(format!("{message}.{signature}"))
    }

    fn claim_of_user(&self) -> &str {
        self.user_id_claim.as_deref().unwrap_or(&self.user_claim)
    }

    /// What a token says whose signature is good. `now` is in seconds since 1970.
    pub(crate) fn claims(&self, token: &Token<'_>, now: i64) -> Result<Claims, TokenError> {
        let Unambiguous(claims) = decode(token.payload)
            .ok_or(TokenError::Malformed("its claims are no object that has each of them once"))?;
        // To the second: a socket opened after it would only be closed again.
        let expires_at = seconds(&claims, "exp")?.ok_or_else(|| malformed("exp"))?;
        if expires_at <= now {
            return Err(TokenError::Expired);
        }
        for claim in ["nbf", "iat"] {
            if seconds(&claims, claim)?.is_some_and(|from| from > now.saturating_add(self.leeway)) {
                return Err(TokenError::NotYetValid(claim));
            }
        }
        if !self.audience.is_empty() && !is_for(claims.get("aud"), &self.audience) {
            return Err(TokenError::Audience);
        }
        if self.issuer.as_ref().is_some_and(|issuer| claims.get("iss").and_then(Value::as_str) != Some(issuer)) {
            return Err(TokenError::Issuer);
        }
        // simplejwt: a refresh token is not for signing in.
        if claims.get("token_type").is_some_and(|kind| kind != "access") {
            return Err(TokenError::TokenType);
        }
        let user = self.claimed_user(&claims)?;
        let rooms = match claims.get("rooms") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(rooms)) => rooms
                .iter()
                .map(|room| room.as_str().filter(|room| names::is_valid_name(room)).map(str::to_owned))
                .collect::<Option<_>>()
                .ok_or_else(|| malformed("rooms"))?,
            Some(_) => return Err(malformed("rooms")),
        };
        Ok(Claims { user, rooms, expires_at })
    }

    fn claimed_user(&self, claims: &Map<String, Value>) -> Result<ClaimedUser, TokenError> {
        let claim = self.claim_of_user();
        let name = claims.get(claim).and_then(text_or_whole).ok_or_else(|| malformed(claim))?;
        if self.user_id_claim.is_some() {
            // An id is looked up, whatever it looks like; what is found is a name that must be possible.
            return Ok(ClaimedUser::Id(name));
        }
        if !names::is_user_name(&name) {
            return Err(TokenError::Name(claim.to_owned()));
        }
        Ok(ClaimedUser::Name(name))
    }
}

fn malformed(claim: &str) -> TokenError {
    TokenError::Claim(claim.to_owned())
}

/// A text, or a whole number as text: ids are written either way.
pub(crate) fn text_or_whole(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        Value::Number(number) => {
            let number = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < EXACT)?;
            Some((number as i64).to_string())
        }
        _ => None,
    }
}

/// A moment of a claim that may be absent, in whole seconds.
fn seconds(claims: &Map<String, Value>, claim: &str) -> Result<Option<i64>, TokenError> {
    match claims.get(claim) {
        None => Ok(None),
        Some(moment) => moment.as_f64().map(|moment| Some(moment as i64)).ok_or_else(|| malformed(claim)),
    }
}

fn is_for(claim: Option<&Value>, audience: &[String]) -> bool {
    let is_one = |value: &Value| value.as_str().is_some_and(|value| audience.iter().any(|one| one == value));
    match claim {
        Some(Value::Array(all)) => all.iter().any(is_one),
        Some(one) => is_one(one),
        None => false,
    }
}

/// A token taken apart, its signature not looked at.
#[derive(Debug)]
pub(crate) struct Token<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) key_id: Option<String>,
    message: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed("it is too long"));
        }
        let three_parts = || TokenError::Malformed("it has not three parts of Base64");
        let (message, signature) = token.rsplit_once('.').ok_or_else(three_parts)?;
        let (header, payload) =
            message.split_once('.').filter(|(_, rest)| !rest.contains('.')).ok_or_else(three_parts)?;
        let Unambiguous(header) =
            decode(header).ok_or(TokenError::Malformed("its header is no object that has each parameter once"))?;
        // It names what must be understood, and nothing of it is.
        if header.contains_key("crit") {
            return Err(TokenError::Critical);
        }
        let algorithm =
            header.get("alg").and_then(Value::as_str).ok_or(TokenError::Malformed("it names no algorithm"))?;
        let algorithm = Algorithm::named(algorithm).ok_or(TokenError::Algorithm)?;
        let key_id = match header.get("kid") {
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(TokenError::Malformed("its kid is no text")),
        };
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| three_parts())?;
        Ok(Self { algorithm, key_id, message, payload, signature })
    }

    pub(crate) fn signed(&self) -> Signed<'_> {
        Signed {
            algorithm: self.algorithm,
            key_id: self.key_id.as_deref(),
            message: self.message.as_bytes(),
            signature: &self.signature,
        }
    }
}

fn decode(part: &str) -> Option<Unambiguous> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// An object in which each name stands once: of two, another reader of the same token may take the other one.
#[derive(Debug, Clone)]
struct Unambiguous(Map<String, Value>);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Unambiguous;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unambiguous, A::Error> {
                let mut found = Map::new();
                while let Some((name, value)) = entries.next_entry()? {
                    if found.insert(name, value).is_some() {
                        return Err(Error::custom("a name stands there twice"));
                    }
                }
                Ok(Unambiguous(found))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

impl fmt::Debug for JwtAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuth").field("keys", &self.keys).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::tests::{Pair, ec, ed25519, pem, rsa};
    use super::*;
    use jsonwebtoken::{Algorithm as By, EncodingKey, Header};
    use proptest::prelude::*;

    const SECRET: &str = "secret-secret-secret-secret-1";

    fn auth() -> JwtAuth {
        JwtAuth::new(&["another-secret-another".into(), SECRET.into()], "sub", &[], None)
    }

    /// A token of another maker.
    fn token(algorithm: By, claims: Value) -> String {
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
    }

    fn soon() -> i64 {
        jsonwebtoken::get_current_timestamp() as i64 + 60
    }

    fn reason(auth: &JwtAuth, token: &str) -> &'static str {
        auth.check(token).map_or_else(|error| error.reason(), |_| "good")
    }

    fn name(claims: &Claims) -> &str {
        match &claims.user {
            ClaimedUser::Name(name) => name,
            ClaimedUser::Id(_) => panic!("{claims:?}"),
        }
    }

    #[test]
    fn every_secret_and_algorithm_is_good() {
        for algorithm in [By::HS256, By::HS384, By::HS512] {
            let claims =
                auth().check(&token(algorithm, json!({"sub": "alice", "exp": soon(), "rooms": ["a", "b"]}))).unwrap();
            assert_eq!((name(&claims), claims.rooms.len()), ("alice", 2));
        }
        let signed = auth().sign("bob", None, 60).unwrap();
        assert_eq!(name(&auth().check(&signed).unwrap()), "bob");
        let validation = jsonwebtoken::Validation::new(By::HS256);
        let key = jsonwebtoken::DecodingKey::from_secret(b"another-secret-another");
        assert!(jsonwebtoken::decode::<Value>(&signed, &key, &validation).is_ok(), "others can read it");
    }

    #[test]
    fn a_whole_number_is_text_and_nothing_else_is() {
        let claim = |sub: &str| {
            let claims = format!(r#"{{"sub":{sub},"exp":{}}}"#, soon());
            auth().check(&signed(r#"{"alg":"HS256"}"#, &claims)).map(|claims| name(&claims).to_owned()).ok()
        };
        for (written, read) in
            [("17", "17"), ("17.0", "17"), ("-1", "-1"), ("18446744073709551615", "18446744073709551615")]
        {
            assert_eq!(claim(written).as_deref(), Some(read), "{written}");
        }
        for wrong in ["1.5", "1e300", "true", "null", "[17]", "{}", "\"\"", "123456789012345678901234567890"] {
            assert_eq!(claim(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bad_tokens_are_refused_each_for_its_own_reason() {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let none = format!("{}.{}.", part(json!({"alg": "none"})), part(json!({"sub": "alice", "exp": soon()})));
        let good = token(By::HS256, json!({"sub": "alice", "exp": soon()}));
        let (head, signature) = good.rsplit_once('.').unwrap();
        let header = head.split('.').next().unwrap();
        let swapped = format!("{header}.{}.{signature}", part(json!({"sub": "mallory", "exp": soon()})));
        let other =
            JwtAuth::new(&["a-wrong-secret-a-wrong-secret".into()], "sub", &[], None).sign("alice", None, 60).unwrap();
        let claims = |claims: Value| token(By::HS256, claims);
        for (bad, because) in [
            (String::new(), "malformed"),
            ("x".into(), "malformed"),
            ("x".repeat(MAX_TOKEN + 1), "malformed"),
            (format!("{good}.x"), "malformed"),
            (format!("{good}="), "malformed"),
            (none, "algorithm"),
            (swapped, "bad_signature"),
            (other, "bad_signature"),
            (claims(json!({"sub": "alice", "exp": soon() - 61})), "expired"),
            (claims(json!({"sub": "alice", "exp": soon() - 60})), "expired"),
            (claims(json!({"sub": "alice", "exp": soon(), "nbf": soon()})), "not_yet_valid"),
            (claims(json!({"sub": "alice", "exp": soon(), "iat": soon()})), "not_yet_valid"),
            (claims(json!({"sub": "alice", "exp": soon(), "iat": "now"})), "claim"),
            (claims(json!({"sub": "alice"})), "claim"),
            (claims(json!({"sub": "alice", "exp": soon().to_string()})), "claim"),
            (claims(json!({"exp": soon()})), "claim"),
            (claims(json!({"sub": "a/b", "exp": soon()})), "name"),
            (claims(json!({"sub": "..", "exp": soon()})), "name"),
            (claims(json!({"sub": "anon.abcdefghijkl", "exp": soon()})), "name"),
            (claims(json!({"sub": "alice", "exp": soon(), "rooms": ["lobby", "."]})), "claim"),
            (claims(json!({"sub": ["alice"], "exp": soon()})), "claim"),
            (claims(json!({"sub": "alice", "exp": soon(), "rooms": "lobby"})), "claim"),
            (claims(json!({"sub": "alice", "exp": soon(), "token_type": "refresh"})), "token_type"),
            (claims(json!({"sub": "alice", "exp": soon(), "token_type": null})), "token_type"),
            (signed(r#"{"alg":"HS256","alg":"HS256"}"#, &json!({"sub": "a", "exp": soon()}).to_string()), "malformed"),
            (signed(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"a","sub":"b","exp":{}}}"#, soon())), "malformed"),
            (signed(r#"{"alg":"HS256"}"#, "[]"), "malformed"),
            (signed(r#"{"alg":"RS256"}"#, &json!({"sub": "a", "exp": soon()}).to_string()), "algorithm"),
            (signed(r#"{"alg":"hs256"}"#, &json!({"sub": "a", "exp": soon()}).to_string()), "algorithm"),
        ] {
            assert_eq!(reason(&auth(), &bad), because, "{bad}");
        }
        assert_eq!(reason(&JwtAuth::new(&[], "sub", &[], None), &good), "algorithm");
    }

    #[test]
    fn a_clock_that_is_a_little_behind_refuses_nobody() {
        let now = soon() - 60;
        for (ahead, because) in [(25, "good"), (35, "not_yet_valid")] {
            let token = token(By::HS256, json!({"sub": "a", "exp": soon(), "nbf": now + ahead, "iat": now + ahead}));
            assert_eq!(reason(&auth(), &token), because);
            assert_eq!(reason(&auth().with_leeway(0), &token), "not_yet_valid");
        }
    }

    /// A good signature over this header and these claims.
    fn signed(header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", part(header), part(claims));
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, By::HS256).unwrap();
        format!("{message}.{signature}")
    }

    #[test]
    fn what_a_token_calls_critical_is_known_or_the_token_is_refused() {
        let claims = json!({"sub": "alice", "exp": soon()}).to_string();
        assert_eq!(reason(&auth(), &signed(r#"{"alg":"HS256"}"#, &claims)), "good");
        for crit in [r#"["exp"]"#, r#"["b64"],"b64":false"#, "[]", r#""exp""#, "null"] {
            assert_eq!(
                reason(&auth(), &signed(&format!(r#"{{"alg":"HS256","crit":{crit}}}"#), &claims)),
                "crit",
                "{crit}"
            );
        }
    }

    #[test]
    fn audience_and_issuer_count_when_configured() {
        let strict = JwtAuth::new(&[SECRET.into()], "sub", &["chat".into()], Some("site"));
        assert_eq!(reason(&strict, &strict.sign("alice", None, 60).unwrap()), "good");
        for (aud, iss, because) in [
            (json!("chat"), json!("site"), "good"),
            (json!(["shop", "chat"]), json!("site"), "good"),
            (json!("shop"), json!("site"), "audience"),
            (json!([]), json!("site"), "audience"),
            (json!(null), json!("site"), "audience"),
            (json!("chat"), json!("other"), "issuer"),
            (json!("chat"), json!(null), "issuer"),
            (json!("chat"), json!(["site"]), "issuer"),
        ] {
            let claims = json!({"sub": "alice", "exp": soon(), "aud": aud, "iss": iss});
            assert_eq!(reason(&strict, &token(By::HS256, claims.clone())), because, "{claims}");
        }
        let foreign = json!({"sub": "alice", "exp": soon(), "aud": "shop", "iss": "x"});
        assert_eq!(reason(&auth(), &token(By::HS256, foreign)), "good", "not checked unless configured");
    }

    /// A key of that maker for a pair of ours.
    fn encoding(algorithm: By, pair: &Pair) -> EncodingKey {
        let text = pem("PRIVATE KEY", &pair.private_der);
        match algorithm {
            By::ES256 | By::ES384 => EncodingKey::from_ec_pem(text.as_bytes()),
            By::EdDSA => EncodingKey::from_ed_pem(text.as_bytes()),
            _ => EncodingKey::from_rsa_pem(text.as_bytes()),
        }
        .unwrap()
    }

    #[test]
    fn tokens_of_public_keys_are_good_by_pem_and_nothing_else_is_tried_with_them() {
        let (rsa, p256, p384, p521, ed) = (rsa(), ec("P-256"), ec("P-384"), ec("P-521"), ed25519());
        let all = [&rsa, &p256, &p384, &p521, &ed];
        let text: String = all.iter().map(|pair| pem("PUBLIC KEY", &pair.public_der)).collect();
        let keys = Key::all_of_pem(&text).unwrap();
        let auth = JwtAuth::new(&[SECRET.into()], "sub", &[], None).with_public_keys(&keys);
        let claims = json!({"sub": "alice", "exp": soon()});
        for (algorithm, pair) in [
            (By::RS256, &rsa),
            (By::RS384, &rsa),
            (By::RS512, &rsa),
            (By::PS256, &rsa),
            (By::PS384, &rsa),
            (By::PS512, &rsa),
            (By::ES256, &p256),
            (By::ES384, &p384),
            (By::EdDSA, &ed),
        ] {
            let header = Header { kid: Some("any".into()), ..Header::new(algorithm) };
            let good = jsonwebtoken::encode(&header, &claims, &encoding(algorithm, pair)).unwrap();
            assert_eq!(reason(&auth, &good), "good", "{algorithm:?}");
            let (message, _) = good.rsplit_once('.').unwrap();
            assert_eq!(reason(&auth, &format!("{message}.AAAA")), "bad_signature");
            assert_eq!(reason(&auth, &format!("{message}.")), "bad_signature");
            let others = Key::all_of_pem(&pem("PUBLIC KEY", &rsa_or_ec(algorithm).public_der)).unwrap();
            let other = JwtAuth::new(&[], "sub", &[], None).with_public_keys(&others);
            assert_eq!(reason(&other, &good), "bad_signature", "{algorithm:?}");
        }
        // Side by side with a secret, while a site moves.
        assert_eq!(reason(&auth, &token(By::HS256, claims.clone())), "good");
        // The public key is no secret: signing with it as one is the oldest trick.
        for as_secret in [pem("PUBLIC KEY", &rsa.public_der).into_bytes(), rsa.public_der.clone()] {
            let forged =
                jsonwebtoken::encode(&Header::new(By::HS256), &claims, &EncodingKey::from_secret(&as_secret)).unwrap();
            assert_eq!(reason(&auth, &forged), "bad_signature");
            let only_public = JwtAuth::new(&[], "sub", &[], None).with_public_keys(&keys);
            assert_eq!(reason(&only_public, &forged), "algorithm");
        }
        // P-521 is unknown to that maker.
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"ES512"}"#), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signing = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
            &aws_lc_rs::signature::ECDSA_P521_SHA512_FIXED_SIGNING,
            &p521.private_der,
        )
        .unwrap();
        let signature = signing.sign(&aws_lc_rs::rand::SystemRandom::new(), message.as_bytes()).unwrap();
        assert_eq!(reason(&auth, &format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))), "good");
    }

    /// Another pair for this algorithm.
    fn rsa_or_ec(algorithm: By) -> Pair {
        match algorithm {
            By::ES256 => ec("P-256"),
            By::ES384 => ec("P-384"),
            By::EdDSA => ed25519(),
            _ => rsa(),
        }
    }

    #[test]
    fn where_an_id_claim_is_set_only_that_counts() {
        let by_id = auth().with_user_id_claim(Some("user_id"));
        let claimed = |claims: Value| by_id.check(&token(By::HS256, claims)).map(|claims| claims.user);
        for id in [json!(7), json!("7")] {
            let claims = json!({"user_id": id, "sub": "alice", "exp": soon()});
            assert_eq!(claimed(claims).unwrap(), ClaimedUser::Id("7".into()));
        }
        assert_eq!(claimed(json!({"sub": "alice", "exp": soon()})).unwrap_err().reason(), "claim");
        let signed = by_id.sign("7", None, 60).unwrap();
        assert_eq!(by_id.check(&signed).unwrap().user, ClaimedUser::Id("7".into()));
    }

    proptest! {
        #[test]
        fn a_token_of_anything_is_read_or_refused(header in "\\PC{0,80}", claims in "\\PC{0,80}", raw in "[A-Za-z0-9_.=-]{0,120}") {
            let _ = auth().check(&signed(&header, &claims));
            prop_assert!(auth().check(&raw).is_err());
        }

        #[test]
        fn a_header_of_known_parameters_is_good_only_as_it_should_be(
            alg in prop_oneof!["HS256", "HS384", "RS256", "none", "", "hs256"],
            extra in proptest::option::of(prop_oneof![Just("\"kid\":1"), Just("\"kid\":\"x\""), Just("\"crit\":[]"), Just("\"alg\":\"HS256\""), Just("\"typ\":\"JWT\"")]),
        ) {
            let more = extra.map(|extra| format!(",{extra}")).unwrap_or_default();
            let claims = json!({"sub": "a", "exp": soon()}).to_string();
            let is_good = auth().check(&signed(&format!("{{\"alg\":\"{alg}\"{more}}}"), &claims)).is_ok();
            prop_assert_eq!(is_good, alg == "HS256" && matches!(extra, None | Some("\"kid\":\"x\"" | "\"typ\":\"JWT\"")));
        }
    }
}
