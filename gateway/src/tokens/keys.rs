//! Keys that tokens are signed with: shared secrets, PEM blocks, and the keys of a JWKS. A key decides which algorithms
//! it takes; what a token says only picks among those.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::PublicEncryptingKey;
use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

/// Bytes of a JWKS, and how many of its keys are used.
pub(crate) const MAX_JWKS: usize = 256 * 1024;
pub(crate) const MAX_KEYS: usize = 100;

/// The algorithms of RFC 7518 and RFC 8037 that sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::upper_case_acronyms, reason = "as the registry writes them")]
pub(crate) enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    EdDSA,
}

const SYMMETRIC: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

const RSA: [Algorithm; 6] = {
    use Algorithm::*;
    [RS256, RS384, RS512, PS256, PS384, PS512]
};

/// Each with the bytes of a coordinate.
const CURVES: [(&str, Algorithm, usize); 3] =
    [("P-256", Algorithm::ES256, 32), ("P-384", Algorithm::ES384, 48), ("P-521", Algorithm::ES512, 66)];

impl Algorithm {
    pub(crate) fn named(name: &str) -> Option<Self> {
        use Algorithm::*;
        Some(match name {
            "HS256" => HS256,
            "HS384" => HS384,
            "HS512" => HS512,
            "RS256" => RS256,
            "RS384" => RS384,
            "RS512" => RS512,
            "PS256" => PS256,
            "PS384" => PS384,
            "PS512" => PS512,
            "ES256" => ES256,
            "ES384" => ES384,
            "ES512" => ES512,
            // RFC 9864 names the curve.
            "EdDSA" | "Ed25519" => EdDSA,
            _ => return None,
        })
    }

    pub(crate) fn is_symmetric(self) -> bool {
        SYMMETRIC.contains(&self)
    }

    fn verification(self) -> Option<&'static dyn VerificationAlgorithm> {
        use Algorithm::*;
        Some(match self {
            HS256 | HS384 | HS512 => return None,
            RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            ES384 => &signature::ECDSA_P384_SHA384_FIXED,
            ES512 => &signature::ECDSA_P521_SHA512_FIXED,
            EdDSA => &signature::ED25519,
        })
    }

    fn mac(self) -> hmac::Algorithm {
        match self {
            Self::HS384 => hmac::HMAC_SHA384,
            Self::HS512 => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        }
    }
}

/// A key that checks signatures.
#[derive(Clone)]
pub(crate) struct Key {
    /// The `kid` of a JWK.
    id: Option<String>,
    takes: Vec<(Algorithm, Material)>,
}

#[derive(Clone)]
enum Material {
    Secret(Box<hmac::Key>),
    Public(ParsedPublicKey),
}

/// What keys say of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    Bad,
    /// There is a key of this id, or no id was named, and none takes this algorithm.
    NoSuchAlgorithm,
    /// No key has this id.
    NoSuchKey,
}

/// A signature, and what it is said to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signed<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) key_id: Option<&'a str>,
    pub(crate) message: &'a [u8],
    pub(crate) signature: &'a [u8],
}

/// Tries the keys that may have made it: those of the id that is named, or all where none is.
pub(crate) fn verify(keys: &[Key], signed: &Signed<'_>) -> Verdict {
    let is_named = |key: &Key| signed.key_id.is_none() || key.id.as_deref() == signed.key_id;
    let mut verdict = match keys.iter().any(is_named) {
        true => Verdict::NoSuchAlgorithm,
        false => Verdict::NoSuchKey,
    };
    for key in keys.iter().filter(|key| is_named(key)) {
        match key.verifies(signed) {
            Some(true) => return Verdict::Good,
            Some(false) => verdict = Verdict::Bad,
            None => {}
        }
    }
    verdict
}

impl Key {
    /// A shared secret.
    pub(crate) fn secret(secret: &[u8]) -> Self {
        let takes =
            SYMMETRIC.map(|algorithm| (algorithm, Material::Secret(hmac::Key::new(algorithm.mac(), secret).into())));
        Self { id: None, takes: takes.into() }
    }

    /// The public keys of all PEM blocks in a text. The error is a sentence for the operator.
    pub(crate) fn all_of_pem(text: &str) -> Result<Vec<Self>, String> {
        // In an environment the lines of a block are often written as one, with `\n` between.
        let text = text.replace("\\n", "\n");
        let (mut keys, mut rest) = (Vec::new(), text.as_str());
        while let Some((label, body, behind)) = next_block(rest)? {
            let wrong = |what: &str| format!("block {} (BEGIN {label}) {what}", keys.len() + 1);
            if label.contains("PRIVATE KEY") {
                return Err(wrong(
                    "is a private key: it stays with who signs; give its public key (openssl pkey -pubout)",
                ));
            }
            if label == "CERTIFICATE" {
                return Err(wrong("is a certificate: give its public key (openssl x509 -noout -pubkey)"));
            }
            let der = STANDARD.decode(body).map_err(|_| wrong("is not Base64"))?;
            keys.push(Self::of_der(&der).ok_or_else(|| wrong(NO_KEY))?);
            rest = behind;
        }
        if keys.is_empty() { Err("no -----BEGIN PUBLIC KEY----- line is in it".to_owned()) } else { Ok(keys) }
    }

    fn of_der(der: &[u8]) -> Option<Self> {
        let rsa = public(None, &RSA, der).filter(Self::is_long_enough);
        let curves = || CURVES.iter().find_map(|(_, algorithm, _)| public(None, &[*algorithm], der));
        rsa.or_else(curves).or_else(|| public(None, &[Algorithm::EdDSA], der))
    }

    /// Of an RSA key: whether it has the 2,048 bits that the algorithms want.
    fn is_long_enough(&self) -> bool {
        let Some((_, Material::Public(key))) = self.takes.first() else { return false };
        let der: Result<PublicKeyX509Der<'_>, _> = key.as_der();
        der.is_ok_and(|der| PublicEncryptingKey::from_der(der.as_ref()).is_ok())
    }

    /// A key of a JWKS; `None` for one that checks no signature here: another use, a shared secret, an unknown curve.
    pub(crate) fn of_jwk(jwk: &Value) -> Option<Self> {
        let jwk = jwk.as_object()?;
        if jwk.get("use").is_some_and(|what| what != "sig") {
            return None;
        }
        if jwk.get("key_ops").is_some_and(|ops| !ops.as_array().is_some_and(|ops| ops.iter().any(|op| op == "verify")))
        {
            return None;
        }
        let id = match jwk.get("kid") {
            None | Some(Value::Null) => None,
            Some(id) => Some(id.as_str()?.to_owned()),
        };
        let only = match jwk.get("alg") {
            None | Some(Value::Null) => None,
            Some(name) => Some(Algorithm::named(name.as_str()?)?),
        };
        let bytes = |name| bytes(jwk, name);
        let (possible, key): (&[Algorithm], Vec<u8>) = match jwk.get("kty")?.as_str()? {
            "RSA" => (&RSA, rsa_der(&bytes("n")?, &bytes("e")?)),
            "EC" => {
                let curve = jwk.get("crv")?.as_str()?;
                let (_, algorithm, size) = CURVES.iter().find(|(name, ..)| *name == curve)?;
                let point = [vec![4], padded(&bytes("x")?, *size)?, padded(&bytes("y")?, *size)?].concat();
                (std::slice::from_ref(algorithm), point)
            }
            "OKP" if jwk.get("crv")? == "Ed25519" => (&[Algorithm::EdDSA], bytes("x")?),
            _ => return None,
        };
        let algorithms: Vec<_> = possible.iter().filter(|one| only.is_none_or(|only| only == **one)).copied().collect();
        let key = public(id, &algorithms, &key)?;
        (!RSA.contains(&key.takes.first()?.0) || key.is_long_enough()).then_some(key)
    }

    fn verifies(&self, signed: &Signed<'_>) -> Option<bool> {
        let (_, material) = self.takes.iter().find(|(algorithm, _)| *algorithm == signed.algorithm)?;
        Some(match material {
            Material::Secret(key) => {
                let tag = hmac::sign(key, signed.message);
                constant_time::verify_slices_are_equal(tag.as_ref(), signed.signature).is_ok()
            }
            Material::Public(key) => key.verify_sig(signed.message, signed.signature).is_ok(),
        })
    }
}

const NO_KEY: &str = "holds no key that is known here: RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519";

/// The usable keys of a JWKS, and how many of its keys were not.
pub(crate) fn keys_of_jwks(json: &[u8]) -> Result<(Vec<Key>, usize), &'static str> {
    if json.len() > MAX_JWKS {
        return Err("the JWKS has more than 256 KiB");
    }
    let document: Value = serde_json::from_slice(json).map_err(|_| "the JWKS is not JSON")?;
    let Some(entries) = document.get("keys").and_then(Value::as_array) else {
        return Err("the JWKS is not an object with a list of keys");
    };
    let keys: Vec<Key> = entries.iter().filter_map(Key::of_jwk).take(MAX_KEYS).collect();
    let unused = entries.len() - keys.len();
    Ok((keys, unused))
}

/// A key for these algorithms, whose parameters fit.
fn public(id: Option<String>, algorithms: &[Algorithm], key: &[u8]) -> Option<Key> {
    let parse = |algorithm: &Algorithm| {
        let parsed = ParsedPublicKey::new(algorithm.verification()?, key).ok()?;
        Some((*algorithm, Material::Public(parsed)))
    };
    let takes: Vec<_> = algorithms.iter().map(parse).collect::<Option<_>>()?;
    (!takes.is_empty()).then_some(Key { id, takes })
}

/// The label and the Base64 of the next block, and what comes behind it.
fn next_block(text: &str) -> Result<Option<(&str, String, &str)>, String> {
    const BEGIN: &str = "-----BEGIN ";
    let Some((_, begun)) = text.split_once(BEGIN) else { return Ok(None) };
    let Some((label, rest)) = begun.split_once("-----") else { return Err("a BEGIN line has no end".to_owned()) };
    let end = format!("-----END {label}-----");
    let Some((body, behind)) = rest.split_once(&end) else { return Err(format!("there is no line {end}")) };
    if body.contains(BEGIN) {
        return Err(format!("there is no line {end}"));
    }
    Ok(Some((label, body.split_whitespace().collect(), behind)))
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(jwk.get(name)?.as_str()?.trim_end_matches('=')).ok()
}

fn padded(number: &[u8], size: usize) -> Option<Vec<u8>> {
    Some([vec![0; size.checked_sub(number.len())?], number.to_vec()].concat())
}

/// `RSAPublicKey` of RFC 8017.
fn rsa_der(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    der(0x30, &[der_integer(modulus), der_integer(exponent)].concat())
}

fn der_integer(number: &[u8]) -> Vec<u8> {
    let from = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let sign: &[u8] = if number.get(from).is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
    der(2, &[sign, &number[from..]].concat())
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let from = length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1);
    let mut out = vec![tag];
    if content.len() >= 0x80 {
        out.push(0x80 | (length.len() - from) as u8);
    }
    out.extend_from_slice(&length[from..]);
    out.extend_from_slice(content);
    out
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let takes: Vec<_> = self.takes.iter().map(|(algorithm, _)| algorithm).collect();
        f.debug_struct("Key").field("id", &self.id).field("takes", &takes).finish()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use aws_lc_rs::encoding::Pkcs8V1Der;
    use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
    use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use proptest::prelude::*;
    use serde_json::json;

    /// A key pair: its public key in every form.
    pub(crate) struct Pair {
        pub(crate) public_der: Vec<u8>,
        /// PKCS #8.
        pub(crate) private_der: Vec<u8>,
        pub(crate) jwk: Value,
    }

    fn encode(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub(crate) fn rsa() -> Pair {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let key = pair.public_key();
        let (n, e) =
            (key.modulus().big_endian_without_leading_zero(), key.exponent().big_endian_without_leading_zero());
        let jwk = json!({"kty": "RSA", "n": encode(n), "e": encode(e)});
        Pair { public_der: public.as_ref().into(), private_der: private.as_ref().into(), jwk }
    }

    pub(crate) fn ec(curve: &str) -> Pair {
        let algorithm = match curve {
            "P-256" => &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            "P-384" => &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
            _ => &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
        };
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let jwk = json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)});
        Pair { public_der: public.as_ref().into(), private_der: pair.to_pkcs8v1().unwrap().as_ref().into(), jwk }
    }

    pub(crate) fn ed25519() -> Pair {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref())});
        Pair { public_der: public.as_ref().into(), private_der: pair.to_pkcs8v1().unwrap().as_ref().into(), jwk }
    }

    pub(crate) fn pem(label: &str, der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    fn algorithms(keys: &[Key]) -> Vec<Vec<Algorithm>> {
        keys.iter().map(|key| key.takes.iter().map(|(algorithm, _)| *algorithm).collect()).collect()
    }

    #[test]
    fn pem_blocks_are_found_by_their_lines_and_the_key_decides_the_algorithm() {
        let pairs = [rsa(), ec("P-256"), ec("P-384"), ec("P-521"), ed25519()];
        let blocks: Vec<String> = pairs.iter().map(|pair| pem("PUBLIC KEY", &pair.public_der)).collect();
        let expected: Vec<Vec<Algorithm>> = vec![
            RSA.to_vec(),
            vec![Algorithm::ES256],
            vec![Algorithm::ES384],
            vec![Algorithm::ES512],
            vec![Algorithm::EdDSA],
        ];
        let all = blocks.concat();
        // As a file, with words between; in one line with `\n`; as a list of TOML is joined; in Windows' lines.
        for text in [
            all.clone(),
            format!("# ours\n{}", blocks.join("\n-- and --\n")),
            all.replace('\n', "\\n"),
            blocks.join(","),
            all.replace('\n', "\r\n"),
            all.replace('\n', " "),
        ] {
            assert_eq!(algorithms(&Key::all_of_pem(&text).unwrap()), expected);
        }
        let jwks = json!({"keys": pairs.iter().map(|pair| pair.jwk.clone()).collect::<Vec<_>>()});
        assert_eq!(algorithms(&keys_of_jwks(jwks.to_string().as_bytes()).unwrap().0), expected);
    }

    #[test]
    fn what_is_no_public_key_is_refused_with_what_to_do() {
        let refused = |text: &str| Key::all_of_pem(text).unwrap_err();
        let (pair, good) = (ed25519(), pem("PUBLIC KEY", &rsa().public_der));
        assert!(refused(&pem("PRIVATE KEY", &pair.private_der)).contains("-pubout"));
        assert!(refused(&pem("RSA PRIVATE KEY", b"x")).contains("private key"));
        assert!(refused(&pem("CERTIFICATE", b"x")).contains("openssl x509"));
        assert!(refused(&format!("{good}{}", pem("PUBLIC KEY", b"x"))).contains("block 2"));
        assert!(refused("").contains("BEGIN PUBLIC KEY") && refused("AAAA").contains("BEGIN PUBLIC KEY"));
        assert!(refused(&good.replace("-----END PUBLIC KEY-----", "")).contains("END PUBLIC KEY"));
        assert!(refused(&format!("-----BEGIN PUBLIC KEY-----\nAAAA\n{good}")).contains("END PUBLIC KEY"));
        assert!(refused("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----").contains("Base64"));
    }

    #[test]
    fn keys_of_another_use_are_ignored_and_alg_narrows() {
        let with = |pair: &Pair, more: Value| {
            let mut jwk = pair.jwk.clone();
            jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            Key::of_jwk(&jwk).map(|key| algorithms(&[key]).remove(0))
        };
        let (rsa, ec) = (rsa(), ec("P-256"));
        assert_eq!(with(&rsa, json!({"use": "sig", "alg": "PS384"})), Some(vec![Algorithm::PS384]));
        assert_eq!(with(&rsa, json!({"key_ops": ["verify"], "kid": "1", "x5c": ["…"]})), Some(RSA.to_vec()));
        for ignored in [
            json!({"use": "enc"}),
            json!({"use": null}),
            json!({"alg": "RSA-OAEP"}),
            json!({"alg": "ES256"}),
            json!({"alg": "HS256"}),
            json!({"alg": 1}),
            json!({"kid": 1}),
            json!({"kty": "oct", "k": "AAAA"}),
            json!({"key_ops": ["sign"]}),
            json!({"n": "AQAB"}),
            json!({"n": ""}),
            json!({"e": "!"}),
        ] {
            assert_eq!(with(&rsa, ignored.clone()), None, "{ignored}");
        }
        for ignored in
            [json!({"crv": "P-384"}), json!({"crv": "secp256k1"}), json!({"x": "AAAA"}), json!({"alg": "ES384"})]
        {
            assert_eq!(with(&ec, ignored.clone()), None, "{ignored}");
        }
    }

    #[test]
    fn a_jwks_is_bounded_in_bytes_and_in_keys() {
        let jwk = ed25519().jwk;
        let many = json!({"keys": vec![jwk; MAX_KEYS + 7]}).to_string();
        let (keys, unused) = keys_of_jwks(many.as_bytes()).unwrap();
        assert_eq!((keys.len(), unused), (MAX_KEYS, 7));
        assert!(keys_of_jwks(&vec![b' '; MAX_JWKS + 1]).is_err());
        assert_eq!(keys_of_jwks(br#"{"keys":[]}"#).unwrap().0.len(), 0);
        for wrong in ["", "null", "[]", "{}", r#"{"keys":{}}"#, "<html>"] {
            assert!(keys_of_jwks(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_names_no_key_is_tried_with_all_and_who_names_one_with_that() {
        let key = |id: Option<&str>| Key { id: id.map(str::to_owned), ..Key::secret(b"0123456789abcdef") };
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef"), b"message");
        let say = |keys: &[Key], key_id, algorithm| {
            verify(keys, &Signed { algorithm, key_id, message: b"message", signature: tag.as_ref() })
        };
        let (hs, rs) = (Algorithm::HS256, Algorithm::RS256);
        assert_eq!(say(&[key(Some("a"))], Some("a"), hs), Verdict::Good);
        assert_eq!(say(&[key(Some("a"))], None, hs), Verdict::Good);
        assert_eq!(say(&[key(None), key(Some("b"))], Some("a"), hs), Verdict::NoSuchKey);
        assert_eq!(say(&[key(Some("a"))], Some("b"), hs), Verdict::NoSuchKey);
        assert_eq!(say(&[key(Some("a"))], Some("a"), rs), Verdict::NoSuchAlgorithm);
        assert_eq!(say(&[Key::secret(b"another secret..")], None, hs), Verdict::Bad);
        assert_eq!(say(&[], None, hs), Verdict::NoSuchKey);
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let words = [
            "RSA", "EC", "OKP", "oct", "sig", "enc", "P-256", "P-521", "Ed25519", "RS256", "ES512", "verify", "AQAB",
            "", "=",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            proptest::sample::select(words.to_vec()).prop_map(Value::from),
            "[A-Za-z0-9_=-]{0,90}".prop_map(Value::from),
        ];
        let names = ["keys", "kty", "use", "key_ops", "alg", "kid", "n", "e", "crv", "x", "y", "k"];
        leaf.prop_recursive(4, 64, 12, move |inner| {
            let name = proptest::sample::select(names.to_vec()).prop_map(str::to_owned);
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(name, inner, 0..12).prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_jwks_of_anything_is_read_or_refused(keys in proptest::collection::vec(json_value(), 0..8), bytes: Vec<u8>) {
            let document = json!({ "keys": keys }).to_string();
            let (usable, unused) = keys_of_jwks(document.as_bytes()).unwrap();
            prop_assert_eq!(usable.len() + unused, keys.len());
            let _ = keys_of_jwks(&bytes);
            let _ = Key::all_of_pem(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn der_is_what_other_readers_read(modulus in proptest::collection::vec(any::<u8>(), 257..300)) {
            // Whatever the number, the length and the sign are right: the reader finds the exponent behind it.
            let written = rsa_der(&modulus, &[1, 0, 1]);
            prop_assert!(written.ends_with(&[2, 3, 1, 0, 1]));
            prop_assert_eq!(usize::from(u16::from_be_bytes([written[2], written[3]])), written.len() - 4);
        }
    }
}
