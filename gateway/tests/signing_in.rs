//! The ways to sign in, and how a node says no.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::balancer::{Balancer, changed};
use common::site::{Site, header, ok, response};
use common::{
    Client, Door, Heard, NodeProcess, SECRET, TestNode, eventually, eventually_within, printed, token, token_with,
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use testkit::process::{Guarded, private_dir};
use testkit::redis::RedisServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

// ---- keys and tokens, as sites and their identity providers make them ----

struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    public_pem: String,
    jwk: Value,
}

impl Signer {
    fn rsa(kid: &str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let private: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let (n, e) = (pair.public_key().modulus(), pair.public_key().exponent());
        let (n, e) = (n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
        Self {
            algorithm: Algorithm::RS256,
            key: EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap(),
            public_pem: pem("PUBLIC KEY", public.as_ref()),
            jwk: json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid,
                "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e)}),
        }
    }

    fn ec(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let private = pair.to_pkcs8v1().unwrap();
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        let point = pair.public_key().as_ref();
        Self {
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).unwrap(),
            public_pem: pem("PUBLIC KEY", public.as_ref()),
            jwk: json!({"kty": "EC", "crv": "P-256", "kid": kid,
                "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])}),
        }
    }

    fn kid(&self) -> String {
        self.jwk["kid"].as_str().unwrap().to_owned()
    }

    fn token(&self, claims: Value) -> String {
        let header = Header { kid: Some(self.kid()), ..Header::new(self.algorithm) };
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }

    fn token_of(&self, user: &str) -> String {
        self.token(json!({"sub": user, "exp": now() + 600}))
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn hs(claims: Value) -> String {
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn now() -> i64 {
    jsonwebtoken::get_current_timestamp() as i64
}

async fn with_token(door: Door, path: &str, token: &str) -> Result<Client, u16> {
    door.try_connect(path, &[("authorization", &format!("Bearer {token}"))]).await
}

/// What a client is called: what its messages say.
async fn name(mut client: Client, room: &str) -> String {
    let mark = uuid::Uuid::new_v4().to_string();
    client.say(room, &mark).await;
    client.until(|frame| frame["message"] == mark).await["from_user"].as_str().unwrap().to_owned()
}

async fn rejected(door: Door, reason: &str) -> f64 {
    door.metric(&format!("gateway_handshakes_rejected_total{{reason=\"{reason}\"}}")).await
}

// ---- why somebody was refused ----

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_of_a_refusal_has_its_own_reason_in_the_metric() {
    let node = TestNode::start(&[("jwt-audience", "chat"), ("jwt-issuer", "site")]).await;
    let door = node.at();
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = json!({"sub": "alice", "exp": now() + 600, "aud": "chat", "iss": "site"});
        change(&mut claims);
        hs(claims)
    };
    assert!(with_token(door, "/ws/chat/", &claims(&|_| {})).await.is_ok());
    let other = jsonwebtoken::encode(&Header::default(), &json!({}), &EncodingKey::from_secret(b"x")).unwrap();
    let mut expected: HashMap<&str, f64> = HashMap::new();
    for (bad, reason) in [
        (claims(&|claims| claims["exp"] = json!(now() - 1)), "expired"),
        (claims(&|claims| claims["nbf"] = json!(now() + 300)), "not_yet_valid"),
        (claims(&|claims| claims["iat"] = json!(now() + 300)), "not_yet_valid"),
        (claims(&|claims| claims["aud"] = json!("shop")), "audience"),
        (claims(&|claims| claims["iss"] = json!("shop")), "issuer"),
        (claims(&|claims| claims["sub"] = json!("a/b")), "name"),
        (claims(&|claims| claims["sub"] = json!("anon.abcdefghijkl")), "name"),
        (claims(&|claims| claims["sub"] = Value::Null), "claim"),
        (claims(&|claims| claims["token_type"] = json!("refresh")), "token_type"),
        (other, "bad_signature"),
        (Signer::ec("1").token_of("alice"), "algorithm"),
        ("not.a.token".to_owned(), "malformed"),
    ] {
        assert_eq!(with_token(door, "/ws/chat/", &bad).await.err(), Some(401), "{reason}");
        *expected.entry(reason).or_default() += 1.0;
        assert_eq!(rejected(door, reason).await, expected[reason], "{reason}");
        // Who speaks the protocol is told by a code, as browsers hide the status.
        let headers = [("sec-websocket-protocol", format!("gateway.v1, bearer.{bad}"))];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(door.try_connect("/ws/chat/", &headers).await.unwrap().closed().await, 4401);
        *expected.entry(reason).or_default() += 1.0;
    }
    assert_eq!(door.try_connect("/ws/chat/", &[]).await.err(), Some(401));
    assert_eq!(rejected(door, "no_credentials").await, 1.0);
    let cookie = format!("gateway_token={}", claims(&|_| {}));
    for headers in
        [vec![("cookie", cookie.as_str())], vec![("cookie", cookie.as_str()), ("origin", "https://evil.example")]]
    {
        assert_eq!(door.try_connect("/ws/chat/", &headers).await.err(), Some(403));
    }
    assert_eq!(rejected(door, "origin").await, 2.0);
}

/// The status line and headers that a bare handshake is answered with.
async fn answered(door: Door, lines: &str) -> String {
    let mut stream = TcpStream::connect(door.public).await.unwrap();
    let request = format!(
        "GET /ws/chat/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(answer).unwrap().to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_offered_alone_is_answered_as_if_the_protocol_were_beside_it() {
    let node = TestNode::start(&[]).await;
    for offered in [format!("gateway.v1, bearer.{}", token("alice")), format!("bearer.{}", token("alice"))] {
        let answer = answered(node.at(), &format!("Sec-WebSocket-Protocol: {offered}\r\n")).await;
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains("sec-websocket-protocol: gateway.v1\r\n"), "{answer}");
    }
    let answer = answered(node.at(), "Sec-WebSocket-Protocol: bearer.wrong\r\n").await;
    assert!(answer.starts_with("http/1.1 101"), "a code that a browser can read: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_who_was_refused_why_and_what_to_change_and_how_a_socket_ended() {
    let own = [("log-format", "json"), ("node-id", "node-one"), ("trusted-proxies", "127.0.0.0/8")];
    let node = NodeProcess::start(&own);
    let line = |path: &'static str| {
        let log = node.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let fields = lines.map(|line| if line["fields"].is_object() { line["fields"].clone() } else { line });
        fields.into_iter().find(|fields| fields["message"].as_str().is_some_and(|message| message.contains(path)))
    };
    let logged = async |path: &'static str| {
        eventually("a line of the log", || async { line(path).is_some() }).await;
        line(path).unwrap()
    };
    let expired = hs(json!({"sub": "alice", "exp": now() - 1}));
    let bearer = format!("Bearer {expired}");
    let hops = ("x-forwarded-for", "203.0.113.7:4711, [2001:db8::9]:1");
    assert_eq!(node.door.try_connect("/ws/chat/one/", &[("authorization", &bearer), hops]).await.err(), Some(401));
    let refused = logged("WSREJECT /ws/chat/one/").await;
    assert_eq!(
        (&refused["reason"], &refused["client"], &refused["node"]),
        (&json!("expired"), &json!("2001:db8::9"), &json!("node-one"))
    );
    let origin = [("origin", "https://shop.example.com"), ("x-forwarded-host", "chat.example.com"), hops];
    assert_eq!(node.door.try_connect("/ws/chat/two/", &origin).await.err(), Some(403));
    let refused = logged("WSREJECT /ws/chat/two/").await;
    assert_eq!((&refused["reason"], &refused["origin"]), (&json!("origin"), &json!("https://shop.example.com")));
    assert_eq!(refused["forwarded_host"], "chat.example.com");
    assert_eq!(refused["host"], node.door.public.to_string());
    assert!(refused["change"].as_str().unwrap().contains("GATEWAY_ALLOWED_ORIGINS"), "{refused}");
    let mut alice = node.door.join("alice", "three").await;
    alice.say("three", "hello").await;
    alice.hears().await;
    alice.close().await;
    let ended = logged("WSDISCONNECT /ws/chat/three/").await;
    assert_eq!((&ended["code"], &ended["frames"]), (&json!(1005), &json!(2)), "{ended}");
    assert!(ended["seconds"].is_number() && ended["reason"].is_string() && ended["user"] == "alice", "{ended}");
    assert!(!node.log().contains(&expired), "no credential is logged");
}

// ---- tokens ----

/// Claims as the usual makers write them, and what the node has to be told of each.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_the_usual_makers_sign_in() {
    let signer = Signer::rsa("2026-01");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({"keys": [signer.jwk]}).to_string()).unwrap();
    let jwks = ("jwks", file.path().to_str().unwrap());
    let (iat, exp) = (now(), now() + 300);
    let simplejwt = json!({"token_type": "access", "exp": exp, "iat": iat, "jti": "6cbf…", "user_id": 7});
    let old_simplejwt = json!({"token_type": "access", "exp": exp, "iat": iat, "jti": "6cbf…", "user_id": "7"});
    let allauth = json!({"iat": iat, "exp": exp, "sid": "yqx…", "jti": "1f…", "token_use": "access", "sub": "7"});
    let auth0 = json!({"iss": "https://site.eu.auth0.com/", "sub": "auth0|507f1f77", "iat": iat, "exp": exp,
        "aud": ["https://chat.example.com", "https://site.eu.auth0.com/userinfo"], "azp": "my", "scope": "openid profile",
        "https://example.com/username": "alice"});
    let keycloak = json!({"exp": exp, "iat": iat, "auth_time": iat, "jti": "onrtac:…", "iss": "https://id.example.com/realms/site",
        "aud": "account", "sub": "f3a0c1f2-…", "typ": "Bearer", "azp": "web", "sid": "…", "preferred_username": "alice",
        "realm_access": {"roles": ["user"]}});
    let firebase = json!({"iss": "https://securetoken.google.com/site-1", "aud": "site-1", "auth_time": iat, "user_id": "Zx9",
        "sub": "Zx9", "iat": iat, "exp": exp, "email": "a@b.c", "firebase": {"identities": {}, "sign_in_provider": "google.com"}});
    let by_secret = |claims: &Value| hs(claims.clone());
    let by_key = |claims: &Value| signer.token(claims.clone());
    type Settings<'a> = Vec<(&'a str, &'a str)>;
    let shapes: [(&str, Settings<'_>, String, &str); 9] = [
        ("simplejwt", vec![("jwt-user-claim", "user_id")], by_secret(&simplejwt), "7"),
        ("simplejwt before 5.5", vec![("jwt-user-claim", "user_id")], by_secret(&old_simplejwt), "7"),
        ("simplejwt with a key", vec![("jwt-user-claim", "user_id"), jwks], by_key(&simplejwt), "7"),
        ("allauth headless", vec![jwks], by_key(&allauth), "7"),
        (
            "Auth0",
            vec![
                jwks,
                ("jwt-user-claim", "https://example.com/username"),
                ("jwt-audience", "https://chat.example.com"),
                ("jwt-issuer", "https://site.eu.auth0.com/"),
            ],
            by_key(&auth0),
            "alice",
        ),
        ("Auth0 by sub", vec![jwks, ("jwt-audience", "https://chat.example.com")], by_key(&auth0), "auth0|507f1f77"),
        (
            "Keycloak",
            vec![
                jwks,
                ("jwt-user-claim", "preferred_username"),
                ("jwt-audience", "account"),
                ("jwt-issuer", "https://id.example.com/realms/site"),
            ],
            by_key(&keycloak),
            "alice",
        ),
        (
            "Firebase",
            vec![jwks, ("jwt-audience", "site-1"), ("jwt-issuer", "https://securetoken.google.com/site-1")],
            by_key(&firebase),
            "Zx9",
        ),
        ("a key, and no secret", vec![jwks, ("jwt-secret", "")], signer.token_of("alice"), "alice"),
    ];
    for (maker, settings, token, user) in shapes {
        let node = TestNode::start(&settings).await;
        let door = node.at();
        if settings.contains(&jwks) {
            eventually("the keys are there", || async { door.get("/readyz").await.0 == 200 }).await;
        }
        let client =
            with_token(door, "/ws/chat/lobby/", &token).await.unwrap_or_else(|status| panic!("{maker}: {status}"));
        assert_eq!(name(client, "lobby").await, user, "{maker}");
        let refresh = json!({"token_type": "refresh", "exp": exp, "iat": iat, "user_id": 7, "sub": "7"});
        assert!(with_token(door, "/ws/chat/lobby/", &by_secret(&refresh)).await.is_err(), "{maker}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn public_keys_come_from_a_file_and_stand_beside_secrets() {
    let (rsa, ec, foreign) = (Signer::rsa("a"), Signer::ec("b"), Signer::rsa("a"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{}{}", rsa.public_pem, ec.public_pem)).unwrap();
    let node = NodeProcess::start(&[("jwt-public-key_file", file.path().to_str().unwrap())]);
    for token in [rsa.token_of("alice"), ec.token_of("alice"), token("alice")] {
        let client = with_token(node.door, "/ws/chat/lobby/", &token).await.unwrap();
        assert_eq!(name(client, "lobby").await, "alice");
    }
    assert_eq!(with_token(node.door, "/ws/chat/", &foreign.token_of("alice")).await.err(), Some(401));
    // An open socket is renewed by any of them.
    let mut alice = with_token(node.door, "/ws/chat/lobby/", &token_with("alice", &[], 600)).await.unwrap();
    let renewed = alice.ask(json!({"cate": "auth", "token": ec.token_of("alice")})).await;
    assert_eq!(renewed["type"], "auth");
    let refused = alice.ask(json!({"cate": "auth", "token": foreign.token_of("alice"), "client_id": "1"})).await;
    assert_eq!((&refused["code"], &refused["client_id"]), (&json!("invalid"), &json!("1")));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_jwks_other_keys_and_another_view_are_taken_over_while_sockets_stay() {
    let (old, new, pem) = (Signer::ec("old"), Signer::ec("new"), Signer::rsa("pem"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({"keys": [old.jwk]}).to_string()).unwrap();
    let keys = json!({"keys": [new.jwk]});
    let provider = Site::start(move |_| ok(&keys)).await;
    let view =
        async |user: &'static str| Site::start(move |_| ok(&json!({"user": {"id": "1", "username": user}}))).await;
    let (first, second) = (view("bob").await, view("dave").await);
    let urls = [first.url("/auth"), second.url("/auth"), provider.url("/jwks")];
    let before = [
        ("jwks", file.path().to_str().unwrap()),
        ("auth-url", urls[0].as_str()),
        ("auth-secret", "the first secret of all"),
        ("room-policy", "members"),
    ];
    let node = TestNode::start(&before).await;
    let door = node.at();
    eventually("the keys are there", async || door.get("/readyz").await.0 == 200).await;
    let mut tab = with_token(door, "/ws/chat/", &old.token_of("alice")).await.unwrap();
    assert_eq!(with_token(door, "/ws/chat/", &new.token_of("alice")).await.err(), Some(401));
    let asked = async |path: &str| door.try_connect(path, &[("authorization", "Token x")]).await;
    assert!(asked("/ws/chat/").await.is_ok());
    assert_eq!(asked("/ws/chat/lobby/").await.err(), Some(404));

    let after = [
        ("jwks", urls[2].as_str()),
        ("jwt-public-key", pem.public_pem.as_str()),
        ("auth-url", urls[1].as_str()),
        ("auth-secret", "the second secret of all"),
        ("room-policy", "open"),
    ];
    node.reload(&after);
    // Who comes before it has been read waits for it.
    assert_eq!(
        name(with_token(door, "/ws/chat/lobby/", &new.token_of("carol")).await.unwrap(), "lobby").await,
        "carol"
    );
    assert!(with_token(door, "/ws/chat/", &pem.token_of("erin")).await.is_ok());
    assert_eq!(with_token(door, "/ws/chat/", &old.token_of("alice")).await.err(), Some(401));
    // What another place has said of these credentials counts no more.
    assert_eq!(name(asked("/ws/chat/lobby/").await.unwrap(), "lobby").await, "dave");
    assert_eq!(header(&second.heads.lock()[0], "X-Gateway-Secret"), Some("the second secret of all"));
    assert_eq!(tab.ask(json!({"cate": "rooms"})).await["type"], "rooms", "who was there stays");
    eventually("it is ready", || async { door.get("/readyz").await.0 == 200 }).await;

    node.reload(&after[1..]);
    assert_eq!(with_token(door, "/ws/chat/", &new.token_of("carol")).await.err(), Some(401));
    assert!(!door.get("/readyz").await.1.contains("jwks"));
    node.reload(&before);
    assert!(with_token(door, "/ws/chat/", &old.token_of("alice")).await.is_ok());
    assert_eq!(tab.ask(json!({"cate": "rooms"})).await["type"], "rooms");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwks_that_is_not_there_yet_is_503_for_who_needs_it_and_nobody_else() {
    let (old, new, never) = (Signer::rsa("old"), Signer::ec("new"), Signer::rsa("never"));
    let address: SocketAddr = ([127, 0, 0, 1], testkit::net::free_port()).into();
    let url = format!("http://{address}/.well-known/jwks.json");
    let node = TestNode::start(&[("jwks", &url)]).await;
    let door = node.at();
    let v1 = async |token: &str| {
        let protocols = format!("gateway.v1, bearer.{token}");
        door.try_connect("/ws/chat/", &[("sec-websocket-protocol", &protocols)]).await
    };
    assert_eq!(with_token(door, "/ws/chat/", &old.token_of("alice")).await.err(), Some(503));
    assert_eq!(v1(&old.token_of("alice")).await.err(), Some(503), "before the upgrade for everybody");
    assert!(rejected(door, "jwks").await >= 2.0);
    assert!(with_token(door, "/ws/chat/", &token("bob")).await.is_ok(), "a secret needs no JWKS");
    let (status, ready) = door.get("/readyz").await;
    assert!(status == 503 && ready.contains(r#""jwks":"unavailable""#), "{ready}");
    eventually("the log and metrics know", || async {
        door.metric("gateway_background_failures_total{task=\"jwks\"}").await > 0.0
    })
    .await;
    // It comes, and is then read as often as a key is unknown, but at most every 10 s.
    let jwks = json!({"keys": [old.jwk, {"kty": "oct", "k": "c2VjcmV0", "kid": "oct"}, {"kty": "RSA", "use": "enc"}]});
    let site = Site::start_at(address, move |_| ok(&jwks)).await;
    eventually("the JWKS is had", || async { door.get("/readyz").await.0 == 200 }).await;
    assert!(with_token(door, "/ws/chat/", &old.token_of("alice")).await.is_ok());
    assert!(v1(&old.token_of("alice")).await.is_ok());
    let asked = site.asked();
    for _ in 0..20 {
        assert_eq!(with_token(door, "/ws/chat/", &never.token_of("alice")).await.err(), Some(401));
    }
    assert_eq!((site.asked(), rejected(door, "unknown_key").await), (asked, 20.0));
    let jwks = json!({"keys": [old.jwk, new.jwk]});
    site.answers(move |_| ok(&jwks));
    eventually_within(Duration::from_secs(20), "a new key is found", || async {
        with_token(door, "/ws/chat/", &new.token_of("alice")).await.is_ok()
    })
    .await;
    assert_eq!(site.asked(), asked + 1);
    // Keys once had stay while it is away; only who names another one cannot be judged then.
    drop(site);
    assert!(with_token(door, "/ws/chat/", &new.token_of("alice")).await.is_ok());
    eventually_within(Duration::from_secs(20), "nobody can tell", || async {
        with_token(door, "/ws/chat/", &never.token_of("alice")).await.err() == Some(503)
    })
    .await;
    assert!(with_token(door, "/ws/chat/", &old.token_of("alice")).await.is_ok());
    eventually("it is ready", || async { door.get("/readyz").await.0 == 200 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jwks_is_read_again_when_its_time_is_over_and_what_it_does_not_say_any_more_is_refused() {
    let (old, new) = (Signer::rsa("old"), Signer::rsa("new"));
    let jwks = json!({"keys": [old.jwk]});
    let site =
        Site::start(move |_| response("200 OK", "Cache-Control: public, max-age=1\r\n", &jwks.to_string())).await;
    let url = site.url("/jwks");
    let node = TestNode::start(&[("jwks", &url)]).await;
    let door = node.at();
    eventually("the keys are there", || async { with_token(door, "/ws/chat/", &old.token_of("a")).await.is_ok() })
        .await;
    let jwks = json!({"keys": [new.jwk]});
    site.answers(move |_| ok(&jwks));
    eventually_within(Duration::from_secs(20), "the new one is taken", || async {
        with_token(door, "/ws/chat/", &new.token_of("a")).await.is_ok()
    })
    .await;
    assert_eq!(with_token(door, "/ws/chat/", &old.token_of("a")).await.err(), Some(401));
}

// ---- ask Django ----

fn alice() -> Value {
    json!({"user": {"id": 7, "username": "alice"}})
}

const ASK_SECRET: &str = "between-node-and-site";

async fn node_that_asks(site: &Site, own: &[(&str, &str)]) -> TestNode {
    let url = site.url("/gateway/auth/");
    let base = [("jwt-secret", ""), ("auth-url", url.as_str()), ("auth-secret", ASK_SECRET)];
    TestNode::start(&base.iter().chain(own).copied().collect::<Vec<_>>()).await
}

fn page(door: Door) -> String {
    format!("http://{}", door.public)
}

/// Connects as a page of the site does: with a cookie.
async fn with_cookie(door: Door, path: &str, cookie: &str) -> Result<Client, u16> {
    door.try_connect(path, &[("cookie", cookie), ("origin", &page(door))]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn django_is_asked_with_what_the_browser_showed_and_nothing_a_visitor_made_up() {
    let site = Site::start(|_| ok(&alice())).await;
    let node = node_that_asks(&site, &[("trusted-proxies", "127.0.0.1")]).await;
    let door = node.at();
    let origin = "https://chat.example.com";
    let headers = [
        ("cookie", "sessionid=s1; theme=dark"),
        ("cookie", "more=1"),
        ("origin", origin),
        ("x-forwarded-for", "6.6.6.6, 203.0.113.7:55"),
        ("x-forwarded-host", "chat.example.com"),
        ("x-forwarded-proto", "https"),
        ("x-gateway-secret", "made-up"),
        ("x-original-uri", "/made/up"),
        ("x-other", "made-up"),
    ];
    let client = door.try_connect("/ws/chat/lobby/?a=1&token=t0&b=2", &headers).await.unwrap();
    assert_eq!(name(client, "lobby").await, "alice");
    let head = site.heads.lock()[0].clone();
    assert!(head.starts_with("GET /gateway/auth/ HTTP/1.1\r\n"), "{head}");
    for (header_name, value) in [
        ("host", site.address.to_string().as_str()),
        ("cookie", "sessionid=s1; theme=dark; more=1"),
        ("origin", origin),
        ("authorization", "Bearer t0"),
        ("x-gateway-secret", ASK_SECRET),
        ("x-original-uri", "/ws/chat/lobby/?a=1&b=2"),
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-host", "chat.example.com"),
        ("x-forwarded-proto", "https"),
    ] {
        assert_eq!(header(&head, header_name), Some(value), "{head}");
    }
    assert!(!head.contains("made-up") && !head.contains("/made/up") && !head.contains("6.6.6.6"), "{head}");
    // The other places of a token; a scheme of the site's own is passed on as it is.
    let basic = door.try_connect("/ws/chat/", &[("authorization", "Token abc")]).await;
    let entry = door.try_connect("/ws/chat/", &[("sec-websocket-protocol", "gateway.v1, bearer.t1")]).await;
    assert!(basic.is_ok() && entry.is_ok());
    let authorizations: Vec<_> =
        site.heads.lock().iter().skip(1).map(|head| header(head, "authorization").map(str::to_owned)).collect();
    assert_eq!(authorizations, [Some("Token abc".to_owned()), Some("Bearer t1".to_owned())]);
    // A cookie without an origin signs nobody in, and is not passed on beside a token.
    let asked = site.asked();
    assert_eq!(door.try_connect("/ws/chat/", &[("cookie", "sessionid=s1")]).await.err(), Some(403));
    assert_eq!(site.asked(), asked);
    assert!(door.try_connect("/ws/chat/", &[("cookie", "sessionid=s1"), ("authorization", "Token def")]).await.is_ok());
    assert_eq!(header(&site.heads.lock()[asked], "cookie"), None);
    // Who shows nothing is nobody, and Django is not asked.
    assert_eq!(door.try_connect("/ws/chat/", &[]).await.err(), Some(401));
    assert_eq!(site.asked(), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_credentials_are_asked_about_once_and_others_never_get_their_answer() {
    let site = Site::start(|head| {
        let cookie = header(head, "cookie").unwrap_or_default();
        let user = cookie.split('=').nth(1).unwrap_or_default().to_owned();
        ok(&json!({"user": {"id": user, "username": user}}))
    })
    .await;
    let node = node_that_asks(&site, &[]).await;
    let door = node.at();
    site.open.send_replace(false);
    let mut visits = JoinSet::new();
    for number in 0..30 {
        let cookie = format!("sessionid=user-{}", number % 3);
        visits.spawn(async move {
            (number % 3, name(with_cookie(door, "/ws/chat/lobby/", &cookie).await.unwrap(), "lobby").await)
        });
    }
    eventually("all three are asked about", || async { site.asked() == 3 }).await;
    site.open.send_replace(true);
    while let Some(visit) = visits.join_next().await {
        let (number, user) = visit.unwrap();
        assert_eq!(user, format!("user-{number}"));
    }
    assert!(with_cookie(door, "/ws/chat/", "sessionid=user-1").await.is_ok());
    assert_eq!(site.asked(), 3, "remembered");
    // Another page of the same browser is another question.
    let headers = [("cookie", "sessionid=user-1"), ("authorization", "Token x"), ("origin", &*page(door))];
    assert!(door.try_connect("/ws/chat/", &headers).await.is_ok());
    assert_eq!(site.asked(), 4);
    // Not for long.
    eventually_within(Duration::from_secs(20), "it is asked again", || async {
        let _ = with_cookie(door, "/ws/chat/", "sessionid=user-1").await;
        site.asked() > 4
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_django_says_decides_and_what_it_does_not_say_is_503_with_a_line_in_the_log() {
    let site = Site::start(|_| ok(&alice())).await;
    let url = site.url("/gateway/auth/");
    let node = NodeProcess::start(&[("jwt-secret", ""), ("auth-url", &url), ("auth-secret", ASK_SECRET)]);
    let door = node.door;
    let number = AtomicUsize::new(0);
    let connect = async |v1: bool| {
        let cookie = format!("sessionid=canary-{}", number.fetch_add(1, Ordering::Relaxed));
        let origin = page(door);
        let mut headers = vec![("cookie", cookie.as_str()), ("origin", origin.as_str())];
        if v1 {
            headers.push(("sec-websocket-protocol", "gateway.v1"));
        }
        match door.try_connect("/ws/chat/", &headers).await {
            Ok(mut client) if v1 => client.closed().await,
            Ok(_) => 101,
            Err(status) => status,
        }
    };
    let with = |change: fn(&mut Value)| {
        let mut answer = alice();
        change(&mut answer);
        ok(&answer)
    };
    for (answer, status, code, reason) in [
        (response("401 Unauthorized", "", ""), 401, 4401, "django_unauthorized"),
        (response("403 Forbidden", "", ""), 403, 4403, "django_forbidden"),
        (ok(&json!({"user": null})), 401, 4401, "django_nobody"),
        (with(|answer| answer["expires_at"] = json!("2001-01-01T00:00:00Z")), 401, 4401, "expired"),
        (with(|answer| answer["user"]["username"] = json!("a/b")), 401, 4401, "name"),
        (with(|answer| answer["user"]["username"] = json!("anon.aaaaaaaaaaaa")), 401, 4401, "name"),
        (response("302 Found", "Location: /login/?next=/secret\r\n", ""), 503, 503, "django_redirect"),
        (response("500 Internal Server Error", "", "oops"), 503, 503, "django_status"),
        (response("204 No Content", "", ""), 503, 503, "django_status"),
        (response("200 OK", "", "<html>login</html>"), 503, 503, "django_malformed"),
        (with(|answer| answer["user"]["id"] = Value::Null), 503, 503, "django_malformed"),
        (with(|answer| answer["rooms"] = json!("lobby")), 503, 503, "django_malformed"),
        (with(|answer| answer["more"] = json!("x".repeat(64 * 1024))), 503, 503, "django_too_large"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n".to_owned(),
            503,
            503,
            "django_unreachable",
        ),
    ] {
        site.answers(move |_| answer.clone());
        assert_eq!((connect(false).await, connect(true).await), (status, code), "{reason}");
        assert!(rejected(door, reason).await >= 2.0, "{reason}");
    }
    let ready = door.get("/readyz").await;
    assert!(ready.0 == 200 && ready.1.contains(r#""ask_django":"unavailable""#), "{ready:?}");
    // Whatever failed is not remembered, and whoever is let in is let in.
    site.answers(|_| ok(&alice()));
    assert_eq!(connect(false).await, 101);
    // Nobody answers within the time.
    site.open.send_replace(false);
    assert_eq!(connect(false).await, 503);
    assert_eq!(rejected(door, "django_late").await, 1.0);
    let log = node.log();
    assert!(log.contains("ask Django answered 302 to /login/"), "{log}");
    for words in ["ask Django answered 500", "64 KiB", "did not answer within 2 s", "it is no JSON"] {
        let words = if words == "64 KiB" { "more than 65536 bytes" } else { words };
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(!log.contains("canary") && !log.contains(ASK_SECRET) && !log.contains("next="), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn django_s_rooms_count_as_a_token_s_and_its_end_ends_the_socket() {
    let site = Site::start(|head| {
        let rooms =
            if header(head, "cookie") == Some("sessionid=short") { json!(["red"]) } else { json!(["red", "blue"]) };
        let end = time::OffsetDateTime::now_utc() + time::Duration::seconds(3);
        let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
        let mut answer = json!({"user": {"id": 7, "username": "alice"}, "rooms": rooms});
        if header(head, "cookie") == Some("sessionid=short") {
            answer["expires_at"] = json!(end);
        }
        ok(&answer)
    })
    .await;
    let node = node_that_asks(&site, &[("room-policy", "members"), ("user-name", "id")]).await;
    let door = node.at();
    let mut long = with_cookie(door, "/ws/chat/blue/", "sessionid=long").await.unwrap();
    assert_eq!(long.rooms().await, ["blue", "red"]);
    assert_eq!(with_cookie(door, "/ws/chat/green/", "sessionid=long").await.err(), Some(404));
    assert_eq!(name(with_cookie(door, "/ws/chat/", "sessionid=long").await.unwrap(), "red").await, "7", "by its id");
    let mut short = with_cookie(door, "/ws/chat/red/", "sessionid=short").await.unwrap();
    assert_eq!(short.closed().await, 4401);
    long.say("blue", "still here").await;
    assert_eq!(long.until(|frame| frame["message"] == "still here").await["from_user"], "7");
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_django_let_in_without_an_end_it_is_asked_about_again_and_only_its_no_ends_a_socket() {
    let site = Site::start(|_| ok(&alice())).await;
    let node = node_that_asks(&site, &[("django.recheck_seconds", "0.5")]).await;
    let door = node.at();
    let rechecked =
        async |result: &str| door.metric(&format!("gateway_sign_ins_rechecked_total{{result=\"{result}\"}}")).await;
    let mut alice = with_cookie(door, "/ws/chat/lobby/", "sessionid=a").await.unwrap();
    let mut other = with_cookie(door, "/ws/chat/lobby/", "sessionid=b").await.unwrap();
    alice.patience = Duration::from_secs(30);
    eventually("it is asked about again", || async { rechecked("good").await >= 2.0 }).await;
    site.answers(|_| response("500 Internal Server Error", "", ""));
    eventually_within(Duration::from_secs(30), "nobody can tell", || async { rechecked("unavailable").await >= 1.0 })
        .await;
    other.say("lobby", "still here").await;
    assert_eq!(alice.hears().await, "still here");
    site.answers(|_| response("403 Forbidden", "", ""));
    assert_eq!(alice.closed().await, 4403);
    assert!(rechecked("django_forbidden").await >= 1.0);
}

/// A word of an operator goes by way of Redis; what a node looks at by itself does not.
#[tokio::test(flavor = "multi_thread")]
async fn a4_while_redis_is_away_a_disconnect_is_refused_and_who_may_not_stay_is_found_and_closed() {
    let on = async |layer: &str| {
        let mut redis = RedisServer::start();
        let site = Site::start(|_| ok(&alice())).await;
        let own = [("redis-url", &*redis.url()), ("layer", layer), ("django.recheck_seconds", "0.5")];
        let node = node_that_asks(&site, &own).await;
        let door = node.at();
        let mut alice = with_cookie(door, "/ws/chat/lobby/", "sessionid=a").await.unwrap();
        alice.patience = Duration::from_secs(30);
        redis.kill();
        assert_eq!(door.api("POST", "/api/users/alice/disconnect", None).await.0, 503, "{layer}");
        site.answers(|_| response("403 Forbidden", "", ""));
        assert_eq!(alice.closed().await, 4403, "{layer}");
    };
    tokio::join!(on("pubsub"), on("core"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_64_questions_are_under_way() {
    let site = Site::start(|head| {
        let user = header(head, "authorization").unwrap_or_default().replace("Token ", "");
        ok(&json!({"user": {"id": user, "username": user}}))
    })
    .await;
    // The first question waits until the last one has come.
    let node = node_that_asks(&site, &[("auth-seconds", "30")]).await;
    let door = node.at();
    site.open.send_replace(false);
    let mut visits = JoinSet::new();
    for number in 0..100 {
        visits.spawn(async move {
            door.try_connect("/ws/chat/", &[("authorization", &format!("Token u{number}"))]).await.is_ok()
        });
    }
    eventually("as many as may be are under way", || async { site.at_once.0.load(Ordering::SeqCst) == 64 }).await;
    site.open.send_replace(true);
    while let Some(visit) = visits.join_next().await {
        assert!(visit.unwrap());
    }
    assert_eq!(site.at_once.1.load(Ordering::SeqCst), 64);
}

// ---- nobody by name ----

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_nothing_hears_the_open_room_of_the_url_and_may_talk_where_that_is_allowed() {
    for setting in ["listen", "talk"] {
        let node = TestNode::start(&[("anonymous", setting)]).await;
        let door = node.at();
        let mut alice = door.join("alice", "lobby").await;
        assert_eq!(door.try_connect("/ws/chat/nowhere/", &[]).await.err(), Some(404));
        assert_eq!(door.try_connect("/ws/notifications/", &[]).await.err(), Some(401));
        assert_eq!(rejected(door, "anonymous").await, 1.0);
        let v1 = [("sec-websocket-protocol", "gateway.v1")];
        assert_eq!(door.try_connect("/ws/notifications/", &v1).await.unwrap().closed().await, 4401);
        assert_eq!(door.try_connect("/ws/chat/nowhere/", &v1).await.unwrap().closed().await, 4404);
        assert_eq!(with_token(door, "/ws/chat/lobby/", "wrong").await.err(), Some(401), "wrong credentials stay wrong");
        assert_eq!(door.try_connect("/ws/chat/lobby/", &[("authorization", "Basic eA==")]).await.err(), Some(401));
        let mut plain = door.try_connect("/ws/chat/", &[]).await.unwrap();
        let mut nobody = door.try_connect("/ws/chat/lobby/", &v1).await.unwrap();
        nobody.send(json!({"cate": "ping"})).await;
        assert_eq!(nobody.frame().await, json!({"type": "pong"}));
        alice.say_acked("lobby", "hello", "1").await;
        assert_eq!(nobody.hears().await, "hello");
        let history = nobody.ask(json!({"cate": "history", "group_name": "lobby"})).await;
        assert_eq!(history["messages"].as_array().unwrap().len(), 1, "{history}");
        let other = nobody.ask(json!({"cate": "history", "group_name": "elsewhere", "client_id": "h"})).await;
        assert_eq!((&other["code"], &other["client_id"]), (&json!("room_not_found"), &json!("h")));
        for frame in [
            json!({"cate": "notification", "user_name": "alice", "message": "x"}),
            json!({"cate": "notifications"}),
            json!({"cate": "seen", "up_to": 1}),
            json!({"cate": "rooms"}),
            json!({"cate": "presence", "group_name": "lobby"}),
            json!({"cate": "auth", "token": token("alice")}),
        ] {
            let answer = nobody.ask(frame.clone()).await;
            assert_eq!(answer["code"], "forbidden", "{frame}: {answer}");
        }
        nobody.send(json!({"cate": "resume", "rooms": {"lobby": {"seq": 0}}, "notifications": {"seq": 0}})).await;
        let resumed = nobody.until(|frame| frame["type"] == "resumed").await;
        assert_eq!(resumed, json!({"type": "resumed", "rooms": {"lobby": true}, "notifications": false}));
        let said = nobody.say_acked("lobby", "hi", "c1").await;
        let heard = if setting == "listen" {
            assert_eq!(said["code"], "forbidden");
            plain.send(json!({"cate": "typing", "group_name": "lobby"})).await;
            assert_eq!(plain.frame().await["code"], "forbidden");
            None
        } else {
            assert_eq!(said["type"], "ack");
            let heard = alice.until(|frame| frame["message"] == "hi").await;
            plain.send(json!({"cate": "chat", "group_name": "lobby", "message": "x"})).await;
            assert_eq!(plain.frame().await["code"], "room_not_found");
            heard["from_user"].as_str().map(str::to_owned)
        };
        if let Some(name) = heard {
            let letters = name.strip_prefix("anon.").unwrap();
            assert!(letters.len() == 12 && letters.bytes().all(|letter| letter.is_ascii_lowercase()), "{name}");
            let notify = alice.ask(json!({"cate": "notification", "user_name": name, "message": "x"})).await;
            assert_eq!(notify["code"], "user_not_found", "nobody is known by it");
        }
        // No membership was made, and nobody sees them among the members.
        let (_, room) = door.api("GET", "/api/rooms/lobby", None).await;
        assert_eq!((&room["members"], &room["online"]), (&json!(["alice"]), &json!(["alice"])));
        let (status, _) = door
            .api(
                "POST",
                "/api/events",
                Some(json!({"type": "notification", "to": "user:anon.abcdefghijkl",
            "data": {"message": "x", "from_user": "shop"}, "id": "1"})),
            )
            .await;
        assert_eq!(status, 400);
        assert_eq!(door.api("PUT", "/api/rooms/lobby/members/anon.abcdefghijkl", None).await.0, 400);
        // A deleted room is nobody's.
        assert_eq!(door.api("DELETE", "/api/rooms/lobby", None).await.0, 200);
        assert_eq!(door.try_connect("/ws/chat/lobby/", &[]).await.err(), Some(404));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_open_policy_there_is_no_room_for_nobody() {
    let node = TestNode::start(&[("anonymous", "talk"), ("room-policy", "members")]).await;
    let door = node.at();
    assert_eq!(door.api("PUT", "/api/rooms/lobby", None).await.0, 200);
    assert_eq!(door.try_connect("/ws/chat/lobby/", &[]).await.err(), Some(404));
    assert!(door.try_connect("/ws/chat/", &[]).await.is_ok());
    let site = Site::start(|_| ok(&json!({"user": null}))).await;
    let node = node_that_asks(&site, &[("anonymous", "listen")]).await;
    node.at().api("PUT", "/api/rooms/lobby", None).await;
    let mut nobody = with_cookie(node.at(), "/ws/chat/lobby/", "theme=dark").await.unwrap();
    nobody.send(json!({"cate": "chat", "group_name": "lobby", "message": "x"})).await;
    assert_eq!(
        nobody.hear().await,
        Heard::Frame(json!({"type": "error", "code": "forbidden", "detail": "who is not signed in may not do this"}))
    );
}

// ---- settings ----

async fn check_config(own: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .arg("check-config")
        .env_clear()
        .envs(own.iter().copied())
        .output()
        .await
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_ways_to_sign_in_are_wrong_settings_that_say_what_to_change() {
    let secret = ("GATEWAY_JWT_SECRET", SECRET);
    let (code, errors) = check_config(&[
        secret,
        ("GATEWAY_ALLOWED_ORIGINS", "https://good.example.com,null"),
        ("GATEWAY_TRUSTED_PROXIES", "10.0.0.0/8,balancer"),
        ("GATEWAY_JWT_USER_CLAIM", "exp"),
    ])
    .await;
    assert_eq!(code, Some(2), "{errors}");
    for words in ["null", "balancer", "jwt-user-claim"] {
        assert!(errors.contains(words), "{words}: {errors}");
    }
    let (code, errors) =
        check_config(&[secret, ("GATEWAY_USER_NAME", "id"), ("GATEWAY_AUTH_URL", "http://site.internal/auth/")]).await;
    assert!(code == Some(2) && errors.contains("two names") && errors.contains("--jwt-user-id-claim"), "{errors}");
    assert_eq!(
        check_config(&[("GATEWAY_AUTH_URL", "http://site.internal/auth/"), ("GATEWAY_USER_NAME", "id")]).await.0,
        Some(0)
    );
    let (code, errors) = check_config(&[]).await;
    assert!(code == Some(2) && errors.contains("--auth-url"), "{errors}");
}

// ---- a real Django, with what the documents print ----

/// The site of `serve.py`.
struct DjangoSite {
    _process: Guarded,
    dir: PathBuf,
    url: String,
}

impl DjangoSite {
    async fn start() -> Self {
        let dir = private_dir("django");
        let tokens = printed("Tokens", "python");
        let views = [("token", &tokens[1]), ("key", &tokens[2]), ("ask", &printed("Ask Django", "python")[0])];
        for (name, text) in views {
            assert!(text.starts_with("# views.py\n"), "{text}");
            std::fs::write(dir.join(format!("views_{name}.py")), text).unwrap();
        }
        assert!(tokens[0].starts_with("# settings.py\n"), "{}", tokens[0]);
        std::fs::write(dir.join("settings_token.py"), &tokens[0]).unwrap();
        std::fs::write(dir.join("page.js"), &printed("Tokens", "js")[0]).unwrap();
        std::fs::write(dir.join("client.js"), include_str!("../../clients/js/client.js")).unwrap();
        std::fs::write(dir.join("serve.py"), include_str!("signing_in/serve.py")).unwrap();
        let keys = std::process::Command::new("sh")
            .current_dir(&dir)
            .args(["-ec", &printed("Tokens", "sh")[0]])
            .output()
            .unwrap();
        assert!(keys.status.success(), "{keys:?}");
        let port = testkit::net::free_port().to_string();
        let env = [("SITE_PORT", port.as_str()), ("GATEWAY_JWT_SECRET", SECRET), ("GATEWAY_AUTH_SECRET", ASK_SECRET)];
        let program = testkit::python::python();
        let process = Guarded::spawn_with(dir.clone(), "KILL", &env, program, [dir.join("serve.py")]);
        let site = Self { _process: process, dir, url: format!("http://127.0.0.1:{port}") };
        eventually_within(Duration::from_secs(180), "Django answers", || async {
            common::http_client().get(format!("{}/", site.url)).send().await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        site
    }

    async fn get(&self, path: &str, cookie: &str) -> reqwest::Response {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        http.get(format!("{}{path}", self.url)).header("cookie", cookie).send().await.unwrap()
    }

    /// Logs in and returns the cookie.
    async fn log_in(&self, user: &str) -> String {
        let answer = self.get(&format!("/log-in/{user}/"), "").await;
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with("sessionid="), "{cookie}");
        cookie
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_django_signs_its_users_in_by_the_views_of_the_documents() {
    let site = DjangoSite::start().await;
    let public_key = std::fs::read_to_string(site.dir.join("chat-public.pem")).unwrap();
    let auth_url = format!("{}/gateway/auth/", site.url);
    let node = TestNode::start(&[
        ("jwt-public-key", &public_key),
        ("auth-url", &auth_url),
        ("auth-secret", ASK_SECRET),
        ("django.recheck_seconds", "0.5"),
    ])
    .await;
    let door = node.at();
    for user in ["alice", "bob@example.com"] {
        let cookie = site.log_in(user).await;
        for path in ["/chat-token/", "/chat-token-of-a-key/"] {
            let answer = site.get(path, &cookie).await;
            assert_eq!(answer.status(), 200, "{path}");
            let client = with_token(door, "/ws/chat/lobby/", &answer.text().await.unwrap()).await.unwrap();
            assert_eq!(name(client, "lobby").await, user, "{path}");
            assert_eq!(site.get(path, "").await.status(), 302, "nobody gets a token");
        }
        let client = with_cookie(door, "/ws/chat/lobby/", &cookie).await.unwrap();
        assert_eq!(name(client, "lobby").await, user);
    }
    assert_eq!(with_cookie(door, "/ws/chat/lobby/", "sessionid=made-up").await.err(), Some(401));
    let headers = [("cookie", "sessionid=made-up"), ("sec-websocket-protocol", "gateway.v1"), ("origin", &*page(door))];
    assert_eq!(door.try_connect("/ws/chat/", &headers).await.unwrap().closed().await, 4401);
    // Who logs out is out, also of a socket that is open: it is asked about again.
    let cookie = site.log_in("alice").await;
    let mut alice = with_cookie(door, "/ws/chat/lobby/", &cookie).await.unwrap();
    site.get("/log-out/", &cookie).await;
    alice.patience = Duration::from_secs(30);
    assert_eq!(alice.closed().await, 4401);
    // The node as the document starts it.
    std::fs::write(site.dir.join("gateway-auth"), ASK_SECRET).unwrap();
    let line = printed("Ask Django", "sh").remove(0);
    let line = changed(&line, "http://django.internal:8000", &site.url);
    let line = changed(&line, "/run/secrets/gateway-auth", &site.dir.join("gateway-auth").display().to_string());
    let cookie = site.log_in("alice").await;
    let printed = node_of(&line);
    let client = with_cookie(printed.door, "/ws/chat/lobby/", &cookie).await.unwrap();
    assert_eq!(name(client, "lobby").await, "alice");
    // A site that does not know the node tells it nothing.
    let stranger = NodeProcess::start(&[("auth-url", &auth_url), ("auth-secret", "another-secret-than-that")]);
    let cookie = site.log_in("alice").await;
    assert_eq!(with_cookie(stranger.door, "/ws/chat/", &cookie).await.err(), Some(503));
    eventually("the log says so", || async { stranger.log().contains("ask Django answered 404") }).await;
}

/// The lines for `settings.py`, for `views.py` and for the page, in a real browser, with site and node behind one address.
#[tokio::test(flavor = "multi_thread")]
async fn the_documents_page_gets_a_token_of_the_documents_view_and_chats_in_a_real_browser() {
    let site = DjangoSite::start().await;
    let node = NodeProcess::start(&[]);
    let config = format!(
        "events {{}}\nhttp {{\n access_log off;\n upstream gateways {{ server {}; }}\n server {{\n listen 8000;\n{}\n\
         location / {{ proxy_pass {}; proxy_set_header Host 127.0.0.1; }}\n location /readyz {{ proxy_pass http://gateways; }}\n}}\n}}\n",
        node.door.public,
        printed("Origins, and proxies in front", "nginx").remove(0),
        site.url,
    );
    let nginx = Balancer::nginx_with(&[node.door], &config);
    let cookie = site.log_in("alice").await;
    let (page, wanted) = (format!("http://{}/chat/", nginx.door.public), "alice: from the page");
    common::browser("shows.mjs", &[("PAGE", &page), ("COOKIE", &cookie), ("WANTED", wanted)]).await;
}

/// A node started as a printed line does, whose settings are all in its environment.
fn node_of(line: &str) -> NodeProcess {
    let (settings, _) = line.split_once(" gateway serve").unwrap();
    let settings: Vec<(String, &str)> = settings
        .split_whitespace()
        .map(|setting| setting.strip_prefix("GATEWAY_").unwrap().split_once('=').unwrap())
        .map(|(name, value)| (name.to_lowercase().replace('_', "-"), value))
        .collect();
    let settings = settings.iter().map(|(name, value)| (name.as_str(), *value));
    NodeProcess::start(&std::iter::once(("jwt-secret", "")).chain(settings).collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_the_documents_lets_in_nobody_by_name() {
    let node = node_of(&printed("Nobody by name", "sh")[0]);
    assert_eq!(node.door.api("PUT", "/api/rooms/lobby", None).await.0, 200);
    let mut nobody = node.door.try_connect("/ws/chat/lobby/", &[]).await.unwrap();
    let event = json!({"type": "chat", "to": "room:lobby", "data": {"message": "hello", "from_user": "shop"}});
    assert_eq!(node.door.api("POST", "/api/events", Some(event)).await.0, 200);
    assert_eq!(nobody.hears().await, "hello");
}

/// The lines of the documents, as they stand, in front of a site and a node; and those without `Host`.
#[tokio::test(flavor = "multi_thread")]
async fn pages_behind_the_documents_nginx_may_connect_and_without_its_host_line_the_log_says_why() {
    let readme = include_str!("../../README.md");
    let (_, readme) = readme.split_once("```nginx\n").unwrap();
    let readme = readme.split("\n```").next().unwrap().to_owned();
    let document = printed("Origins, and proxies in front", "nginx").remove(0);
    let node = NodeProcess::start(&[]);
    let site = Site::start(|_| response("200 OK", "", "the site")).await;
    let without_host = document.replace("proxy_set_header Host $http_host;", "");
    for (lines, works) in [(&readme, true), (&document, true), (&without_host, false)] {
        let config = format!(
            "events {{}}\nhttp {{\n access_log off;\n upstream gateways {{ server {}; }}\n server {{\n listen 8000;\n{lines}\n\
             location / {{ proxy_pass http://{}; }}\n location /readyz {{ proxy_pass http://gateways; }}\n}}\n}}\n",
            node.door.public, site.address
        );
        let nginx = Balancer::nginx_with(&[node.door], &config);
        assert_eq!(nginx.door.get("/").await, (200, "the site".to_owned()));
        let bearer = format!("Bearer {}", token("alice"));
        let headers = [("authorization", bearer.as_str()), ("origin", &*page(nginx.door))];
        match nginx.door.try_connect("/ws/chat/lobby/", &headers).await {
            Ok(client) if works => assert_eq!(name(client, "lobby").await, "alice"),
            other => {
                assert!(!works && other.err() == Some(403), "{lines}");
                eventually("the log says what to do", || async {
                    let log = node.log();
                    log.contains(&nginx.door.public.to_string())
                        && log.contains("let the proxy pass on the browser's Host header")
                })
                .await;
            }
        }
    }
}
