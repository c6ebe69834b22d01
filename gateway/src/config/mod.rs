//! Every setting of a node: flag over environment over TOML file over default.
//!
//! `settings.rs` is the table of them, `collect.rs` finds their texts, `reading.rs` turns these into types and reports
//! every mistake at once. `changes.rs` says what a running node takes over.

mod bridge;
mod changes;
mod collect;
mod django;
mod layer;
mod observed;
mod reading;
mod settings;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

use self::reading::Reading;
use crate::bridge::{Auth as BridgeAuth, Settings as BridgeSettings};
use crate::origin::Origins;
use crate::tokens::{JwksSource, JwtAuth, Key};
use crate::traces;

pub use changes::{CHANGEABLE, is_changeable};
pub use collect::{Collected, Source, collect, warnings};
pub use django::{DjangoConfig, SessionEngine};
pub use layer::{LayerConfig, LayerKind};
pub use observed::ApiKey;
pub use settings::{SETTINGS, Setting};

/// All mistakes in the settings, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// The text of a file with settings.
pub(crate) fn read_settings(path: &str) -> Result<String, ConfigErrors> {
    std::fs::read_to_string(path).map_err(|error| ConfigErrors(vec![format!("{path} cannot be read: {error}")]))
}

/// Who may enter rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomPolicy {
    /// Members only.
    Members,
    /// Connecting to a room makes it and joins it.
    Open,
}

/// What a user is called everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserName {
    /// By username.
    Username,
    /// By id, as Django writes it.
    Id,
}

/// What visitors may do who show no credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    /// Nothing.
    Off,
    /// Hear the open room of the URL.
    Listen,
    /// And post there.
    Talk,
}

/// Whom a browser may notify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientNotifications {
    /// Every known user.
    Any,
    /// Users with whom the sender shares a room.
    SharedRoom,
    /// Nobody.
    Off,
}

/// Limits; 0 is off.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each one's meaning stands in the table of settings")]
pub struct Limits {
    pub connections: usize,
    pub connections_per_user: usize,
    pub connections_per_address: usize,
    pub frame_bytes: usize,
    pub data_bytes: usize,
    pub outbox_bytes: usize,
    pub frames_per_second: u32,
    pub frames_burst: u32,
    pub rooms_per_user: usize,
    pub resume_frames: u64,
    pub resumes_at_once: usize,
    pub recent_bytes: usize,
    pub handshakes_per_second: u32,
    pub write_queue_bytes: usize,
    pub publish_bytes: u32,
    pub memory_bytes: u64,
    pub handshake: Duration,
    pub ping: Duration,
    pub pong: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 0,
            connections_per_user: 100,
            connections_per_address: 0,
            frame_bytes: 65_536,
            data_bytes: 16_384,
            outbox_bytes: 1_048_576,
            frames_per_second: 50,
            frames_burst: 100,
            rooms_per_user: 1000,
            resume_frames: 1000,
            resumes_at_once: 16,
            recent_bytes: 33_554_432,
            handshakes_per_second: 0,
            write_queue_bytes: 67_108_864,
            publish_bytes: 16_777_216,
            memory_bytes: 0,
            handshake: Duration::from_secs(10),
            ping: Duration::from_secs(25),
            pong: Duration::from_secs(10),
        }
    }
}

/// How a node leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Between "not ready" and the first close, so that balancers notice.
    pub delay: Duration,
    /// Over which sockets are closed and waited for, at most.
    pub window: Duration,
    /// Sockets that the other nodes can take in a second; 0 is no limit of theirs, and takes the whole window.
    pub reconnects_per_second: u32,
    /// Between SIGTERM and the kill by what runs the node; zero where it is not known.
    pub grace: Duration,
}

impl Drain {
    /// Says so if the node is killed while it may still drain.
    pub fn warning(&self) -> Option<String> {
        let longest = self.delay + self.window;
        (!self.grace.is_zero() && self.grace < longest).then(|| {
            format!(
                "this node is killed {:?} after it was asked to stop (drain.grace_seconds), and may drain for {longest:?}: \
                 let what runs it wait longer, or lower drain.delay_seconds or drain.window_seconds",
                self.grace
            )
        })
    }
}

/// How long stored things are kept; 0 keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each one's meaning stands in the table of settings")]
pub struct Retention {
    pub messages_days: u32,
    pub messages_per_room: u64,
    pub notifications_days: u32,
    pub interval: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { messages_days: 0, messages_per_room: 0, notifications_days: 0, interval: Duration::from_secs(600) }
    }
}

/// The settings of a node, checked.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each one's meaning stands in the table of settings")]
pub struct Config {
    pub listen: SocketAddr,
    pub internal_listen: SocketAddr,
    pub layer: LayerConfig,
    pub namespace: String,
    pub user_group: String,
    pub database_url: SecretString,
    pub database_connections: u32,
    pub database_wait: Duration,
    pub database_statement: Duration,
    pub jwt_secrets: Vec<SecretString>,
    pub(crate) jwt_public_keys: Vec<Key>,
    pub(crate) jwks: Option<JwksSource>,
    pub jwt_leeway: u32,
    pub jwt_user_claim: String,
    pub jwt_user_id_claim: Option<String>,
    pub jwt_audience: Vec<String>,
    pub jwt_issuer: Option<String>,
    pub user_name: UserName,
    pub anonymous: Anonymous,
    pub(crate) auth_url: Option<reqwest::Url>,
    pub auth_secret: Option<SecretString>,
    pub auth_time: Duration,
    pub auth_at_once: usize,
    pub django: DjangoConfig,
    pub api_keys: Vec<ApiKey>,
    pub(crate) allowed_origins: Origins,
    pub trusted_proxies: Vec<IpNet>,
    pub room_policy: RoomPolicy,
    pub client_notifications: ClientNotifications,
    pub dev: bool,
    pub io_uring: bool,
    pub node_id: String,
    pub(crate) traces: Option<traces::Settings>,
    pub log_json: bool,
    pub log_level: Option<String>,
    pub limits: Limits,
    pub drain: Drain,
    pub retention: Retention,
    pub(crate) bridges: Vec<BridgeSettings>,
}

impl Config {
    /// The settings of the environment: variables, and the file that `GATEWAY_CONFIG` names.
    pub fn from_env() -> Result<Self, ConfigErrors> {
        let file = match std::env::var("GATEWAY_CONFIG").ok().filter(|path| !path.is_empty()) {
            Some(path) => Some(read_settings(&path)?),
            None => None,
        };
        Self::from_collected(&collect(&HashMap::new(), &|name| std::env::var(name).ok(), file.as_deref())?)
    }

    /// Makes the settings of what was collected.
    pub fn from_collected(collected: &Collected) -> Result<Self, ConfigErrors> {
        let mut reader = Reading { collected, errors: Vec::new() };
        let config = reader.read();
        reader.errors.sort();
        reader.errors.dedup();
        if reader.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(reader.errors)) }
    }

    /// Whether this is a proxy of ours.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// Whether tokens are a way to sign in.
    pub(crate) fn has_tokens(&self) -> bool {
        !self.jwt_secrets.is_empty() || !self.jwt_public_keys.is_empty() || self.jwks.is_some()
    }

    /// What makes and checks tokens.
    pub fn jwt(&self) -> JwtAuth {
        let auth =
            JwtAuth::new(&self.jwt_secrets, &self.jwt_user_claim, &self.jwt_audience, self.jwt_issuer.as_deref());
        auth.with_user_id_claim(self.jwt_user_id_claim.as_deref())
            .with_leeway(self.jwt_leeway)
            .with_public_keys(&self.jwt_public_keys)
    }

    /// Whether sessions or users of the site are read.
    pub(crate) fn reads_site(&self) -> bool {
        !self.django.secret_keys.is_empty() || self.jwt_user_id_claim.is_some()
    }

    /// What `serve` needs beyond well-formed settings.
    pub fn check_serve(&self) -> Result<(), ConfigErrors> {
        let mut errors = Vec::new();
        let asks_the_site = self.auth_url.is_some() || !self.django.secret_keys.is_empty();
        let may_ask_applications = self.bridges.iter().any(|bridge| bridge.auth == BridgeAuth::App);
        let has_way_in = self.dev || self.has_tokens() || asks_the_site || may_ask_applications;
        if !has_way_in && self.anonymous == Anonymous::Off {
            errors.push(
                "nobody could sign in: set --jwt-secret (GATEWAY_JWT_SECRET) to the secret your site signs tokens with, \
                 --jwt-public-key or --jwks to its public keys, --django-secret-key to the SECRET_KEY of your Django \
                 project, --auth-url to a view that says who somebody is, or use \
                 --dev on your own machine"
                    .to_owned(),
            );
        }
        if self.user_name == UserName::Id && asks_the_site && self.has_tokens() && self.jwt_user_id_claim.is_none() {
            errors.push(format!(
                "one person would have two names: user-name is id, but tokens name the user by the claim {}: set \
                 --jwt-user-id-claim to the claim that holds the id, or --user-name to username",
                self.jwt_user_claim
            ));
        }
        if self.dev {
            for (name, address) in [("--listen", self.listen), ("--internal-listen", self.internal_listen)] {
                if !address.ip().is_loopback() {
                    errors.push(format!("--dev signs in anybody, so {name} must be a loopback address, not {address}"));
                }
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    pub(super) fn config(flags: &[(&str, &str)], env: &[(&str, &str)], file: &str) -> Result<Config, Vec<String>> {
        let flags = flags.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
        let collected = collect(&flags, &env, Some(file)).map_err(|errors| errors.0)?;
        Config::from_collected(&collected).map_err(|errors| errors.0)
    }

    #[test]
    fn defaults_are_those_of_the_documents() {
        let config = config(&[], &[], "").unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(config.internal_listen.to_string(), "127.0.0.1:9000");
        assert_eq!(config.layer.kind, LayerKind::Memory);
        assert_eq!(config.database_url.expose_secret(), "sqlite://gateway.db?mode=rwc");
        assert_eq!(config.limits, Limits::default());
        let (delay, window) = (Duration::from_secs(5), Duration::from_secs(20));
        assert_eq!(config.drain, Drain { delay, window, reconnects_per_second: 500, grace: Duration::ZERO });
        assert_eq!(config.retention, Retention::default());
        assert_eq!(config.room_policy, RoomPolicy::Members);
        assert!(config.check_serve().unwrap_err().to_string().contains("--jwt-secret"));
        assert_eq!((config.jwt_leeway, config.user_name, config.anonymous), (30, UserName::Username, Anonymous::Off));
    }

    #[test]
    fn times_and_numbers_that_let_nothing_through_are_mistakes() {
        let given = config(&[("database-statement-seconds", "0.5"), ("auth-at-once", "4")], &[], "").unwrap();
        assert_eq!(
            (given.database_wait, given.database_statement),
            (Duration::from_secs(2), Duration::from_millis(500))
        );
        assert_eq!((given.auth_time, given.auth_at_once), (Duration::from_secs(2), 4));
        assert_eq!((given.django.database_connections, given.django.database_statement), (4, Duration::from_secs(5)));
        for (setting, value) in [
            ("database-wait-seconds", "0"),
            ("database-statement-seconds", "0.01"),
            ("auth-seconds", "-1"),
            ("auth-at-once", "0"),
        ] {
            let errors = config(&[(setting, value)], &[], "").unwrap_err();
            assert!(errors.len() == 1 && errors[0].starts_with(setting), "{errors:?}");
        }
        for line in ["resumes_at_once = 0", "publish_bytes = 1000"] {
            let errors = config(&[], &[], &format!("[limits]\n{line}\n")).unwrap_err();
            assert!(errors.len() == 1 && errors[0].starts_with("limits."), "{errors:?}");
        }
        assert!(!is_changeable("limits.resumes_at_once") && is_changeable("limits.resume_frames"));
    }

    #[test]
    fn ways_to_sign_in_that_cannot_be_understood_are_mistakes_that_name_the_entry() {
        let wrong = |name: &str, value: &str| {
            let errors = config(&[(name, value)], &[], "").unwrap_err();
            assert!(errors.iter().any(|error| error.starts_with(name)), "{name}={value}: {errors:?}");
            errors.join(" ")
        };
        assert!(wrong("allowed-origins", "good.example.com,null").contains("null"));
        assert!(wrong("allowed-origins", "https://example.com/").contains("https://example.com/"));
        assert!(wrong("trusted-proxies", "10.0.0.0/8,proxy.example.com").contains("proxy.example.com"));
        assert!(wrong("trusted-proxies", "null").contains("null"));
        assert!(wrong("jwt-user-claim", "sub,name").contains("sub,name"));
        assert!(wrong("jwt-user-id-claim", "exp").contains("exp"));
        wrong("jwt-public-key", "-----BEGIN PUBLIC KEY-----");
        assert!(wrong("jwt-public-key", "not a key").contains("BEGIN PUBLIC KEY"));
        wrong("jwks", "ftp://id.example.com");
        wrong("jwt-leeway", "long");
        wrong("auth-url", "/auth/");
        wrong("auth-url", "http://user:password@site/auth/");
        wrong("auth-secret", "short");
        wrong("user-name", "email");
        wrong("anonymous", "yes");
        let empty = ["allowed-origins", "trusted-proxies", "jwt-user-claim", "jwt-user-id-claim", "jwt-issuer", "jwks"];
        let empty: Vec<_> =
            empty.into_iter().chain(["auth-url", "user-name", "anonymous"]).map(|name| (name, "")).collect();
        let config = config(&empty, &[], "").unwrap();
        assert_eq!((config.jwt_user_claim.as_str(), config.jwt_issuer), ("sub", None));
    }

    #[test]
    fn what_would_give_one_person_two_names_is_refused() {
        let by_id = ("user-name", "id");
        let (tokens, site) = (("jwt-secret", "0123456789abcdef"), ("auth-url", "http://site/auth/"));
        let error = config(&[by_id, tokens, site], &[], "").unwrap().check_serve().unwrap_err().to_string();
        assert!(error.contains("two names") && error.contains("--jwt-user-id-claim"), "{error}");
        for good in [vec![by_id, tokens], vec![by_id, site], vec![tokens, site]] {
            assert!(config(&good, &[], "").unwrap().check_serve().is_ok(), "{good:?}");
        }
        assert!(config(&[("anonymous", "listen")], &[], "").unwrap().check_serve().is_ok());
    }

    #[test]
    fn flag_over_environment_over_file() {
        let file = "listen = \"127.0.0.1:1\"\n[limits]\nframe_bytes = 10\nping_seconds = 0.5\n";
        let env = [("GATEWAY_LISTEN", "127.0.0.1:2"), ("GATEWAY_LIMITS__FRAME_BYTES", "20")];
        let config = config(&[("listen", "127.0.0.1:3")], &env, file).unwrap();
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.limits.frame_bytes, 20);
        assert_eq!(config.limits.ping, Duration::from_millis(500));
    }

    #[test]
    fn a_secret_in_a_flag_is_warned_of_by_name() {
        let warned = |name: &str, value: &str| {
            let flags = [(name.to_owned(), value.to_owned())].into();
            let warnings = warnings(&collect(&flags, &|_| None, None).unwrap());
            assert!(warnings.iter().all(|warning| !warning.contains("canary")));
            warnings.first().is_some_and(|warning| {
                warning.contains(&format!("--{name}"))
                    && warning.contains(&format!("GATEWAY_{}_FILE", name.replace('-', "_").to_uppercase()))
            })
        };
        for (name, value) in [
            ("jwt-secret", "canary-canary-canary"),
            ("api-key", "canary"),
            ("layer-encryption-keys", "canary"),
            ("database-url", "postgres://site:canary@db/site"),
            ("database-url", "postgres://db/site?user=site&password=canary"),
            ("redis-url", "redis://:canary@one:6379/0"),
            ("redis-url", "redis://one:6379,redis://site:canary@two:6379"),
            ("redis-url", "redis+sentinel://one,two/main?sentinel_password=canary"),
        ] {
            assert!(warned(name, value), "{name} {value}");
        }
        for (name, value) in [
            ("database-url", "sqlite://gateway.db?mode=rwc"),
            ("database-url", "postgres://site@db:5432/site"),
            ("redis-url", "redis://one:6379/0"),
            ("redis-url", "unix:///run/redis.sock"),
            ("listen", "127.0.0.1:1"),
        ] {
            assert!(!warned(name, value), "{name} {value}");
        }
        let env = |name: &str| (name == "GATEWAY_API_KEY").then(|| "canary".to_owned());
        assert!(warnings(&collect(&Default::default(), &env, None).unwrap()).is_empty());
    }

    #[test]
    fn n3_a_grace_period_shorter_than_the_drain_is_warned_of() {
        let warning = |lines: &str| config(&[], &[], &format!("[drain]\n{lines}")).unwrap().drain.warning();
        for enough in ["", "grace_seconds = 25", "grace_seconds = 8\ndelay_seconds = 3\nwindow_seconds = 5"] {
            assert_eq!(warning(enough), None, "{enough}");
        }
        for short in ["grace_seconds = 24.9", "grace_seconds = 30\nwindow_seconds = 26", "grace_seconds = 1"] {
            assert!(warning(short).is_some_and(|warning| warning.contains("drain.grace_seconds")), "{short}");
        }
        assert!(config(&[], &[], "[drain]\ngrace_seconds = -1").is_err());
    }

    #[test]
    fn every_mistake_is_reported_at_once_and_the_nearest_name_told() {
        let errors =
            config(&[], &[("GATEWAY_LISTEN", "nowhere"), ("GATEWAY_ROOM_POLICY", "all")], "[limits]\nframe_byte = 1\n")
                .unwrap_err();
        assert!(errors.iter().any(|error| error.contains("limits.frame_byte") && error.contains("limits.frame_bytes")));
        let wrong = [
            ("listen", "nowhere"),
            ("internal-listen", "9000"),
            ("room-policy", "all"),
            ("log-format", "xml"),
            ("database-wait-seconds", "long"),
            ("auth-at-once", "many"),
            ("strict-env", "maybe"),
        ];
        let errors = config(&wrong, &[], "").unwrap_err();
        assert!(errors.len() == wrong.len(), "{errors:?}");
        for section in ["[limts]\n", "[extra]", "limts = {}"] {
            let errors = config(&[], &[], section).unwrap_err();
            assert!(errors.len() == 1 && errors[0].contains("no such section; did you mean ["), "{errors:?}");
        }
        assert!(config(&[], &[], "[limits]\n[drain]\n").is_ok());
    }

    #[test]
    fn dev_opens_rooms_and_stays_on_loopback() {
        let dev = config(&[("dev", "true"), ("listen", "0.0.0.0:8000")], &[], "").unwrap();
        assert_eq!(dev.room_policy, RoomPolicy::Open);
        assert!(dev.check_serve().unwrap_err().to_string().contains("loopback"));
    }

    #[test]
    fn secrets_come_from_files_and_stay_out_of_debug() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from-a-file-0123456789\n").unwrap();
        let path = file.path().to_str().unwrap();
        let config = config(&[], &[("GATEWAY_JWT_SECRET_FILE", path), ("GATEWAY_API_KEY", "canary-key")], "").unwrap();
        assert_eq!(config.jwt_secrets[0].expose_secret(), "from-a-file-0123456789");
        let shown = format!("{config:?}");
        assert!(!shown.contains("canary-key") && !shown.contains("from-a-file"));
    }

    #[test]
    fn a_file_of_a_list_has_an_entry_a_line_and_a_key_may_hold_a_comma() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one, with a comma \r\n\ntwo\n").unwrap();
        let keys = |config: Config| -> Vec<String> {
            config.django.secret_keys.iter().map(|key| key.expose_secret().to_owned()).collect()
        };
        let path = file.path().to_str().unwrap();
        let of_file = config(&[], &[("GATEWAY_DJANGO_SECRET_KEY_FILE", path)], "").unwrap();
        assert_eq!(keys(of_file), ["one, with a comma ", "two"]);
        let of_list = config(&[], &[], "django_secret_key = [\"one, with a comma\"]\n").unwrap();
        assert_eq!(keys(of_list), ["one, with a comma"]);
        let of_environment = config(&[], &[("GATEWAY_DJANGO_SECRET_KEY", "one, two")], "").unwrap();
        assert_eq!(keys(of_environment), ["one", "two"]);
    }
}
