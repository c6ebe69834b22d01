//! Every setting of a node: flag over environment over TOML file over default.
//!
//! `settings.rs` is the table of them; this module turns the collected texts into types and reports
//! every mistake at once.

mod bridge;
mod collect;
mod django;
mod layer;
mod observed;
mod settings;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use channel_layer::Host;
use ipnet::IpNet;
use persistence::Store;
use secrecy::{ExposeSecret, SecretString};

use crate::bridge::{Auth as BridgeAuth, Settings as BridgeSettings};
use crate::origin::Origins;
use crate::proxies;
use crate::tokens::{JwksSource, JwtAuth, Key};
use crate::traces;

pub use collect::{Collected, Source, collect, warnings};
pub use django::{DjangoConfig, SessionEngine};
pub use layer::{LayerConfig, LayerKind};
pub use observed::ApiKey;
pub use settings::{SETTINGS, Setting};

/// The settings that change when a running node reads them again. Those of a section are named by it.
pub const CHANGEABLE: &[&str] = &[
    "jwt-secret",
    "jwt-public-key",
    "jwks",
    "jwt-leeway",
    "jwt-user-claim",
    "jwt-audience",
    "jwt-issuer",
    "api-key",
    "auth-url",
    "auth-secret",
    "django-secret-key",
    "allowed-origins",
    "trusted-proxies",
    "room-policy",
    "client-notifications",
    "otlp-headers",
    "redis-url",
    "redis-ca",
    "redis-client-certificate",
    "redis-client-key",
    "layer-encryption-keys",
    "database-url",
    "django.database_url",
    "django.cache_url",
    "log-level",
    "bridge.secret",
    "bridge.certificates",
    "limits.",
    "drain.",
    "retention.",
];

/// Those of these sections that do not.
const FIXED: &[&str] = &[
    "limits.resumes_at_once",
    "limits.recent_bytes",
    "limits.write_queue_bytes",
    "limits.publish_bytes",
    "limits.memory_bytes",
];

/// Whether a running node can take over another value of this setting, at least some; see [`Config::takes`].
pub fn is_changeable(setting: &str) -> bool {
    let is_changeable = |changeable: &&str| match changeable.strip_suffix('.') {
        Some(_) => setting.starts_with(*changeable),
        None => setting == *changeable,
    };
    CHANGEABLE.iter().any(is_changeable) && !FIXED.contains(&setting)
}

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
        match config {
            Some(config) if reader.errors.is_empty() => Ok(config),
            _ => Err(ConfigErrors(reader.errors)),
        }
    }

    /// These settings, with what is [changeable](is_changeable) of others.
    pub(crate) fn with_changes_of(&self, new: &Self) -> Self {
        let Limits { resumes_at_once, recent_bytes, write_queue_bytes, publish_bytes, memory_bytes, .. } = self.limits;
        let new = new.clone();
        let mut bridges = self.bridges.clone();
        for (bridge, new) in bridges.iter_mut().zip(&new.bridges).filter(|(bridge, new)| bridge.path == new.path) {
            bridge.secret = new.secret.clone();
            if bridge.tls.is_some() == new.tls.is_some() {
                bridge.tls = new.tls.clone();
            }
        }
        let traces = match (self.traces.clone(), &new.traces) {
            (Some(own), Some(new)) => Some(traces::Settings { headers: new.headers.clone(), ..own }),
            (own, _) => own,
        };
        let same = self.takes(&new, "database-url");
        let database_url = if same { new.database_url.clone() } else { self.database_url.clone() };
        let mut layer = self.layer.clone();
        if self.takes(&new, "layer-encryption-keys") {
            layer.encryption_keys = new.layer.encryption_keys.clone();
        }
        let mut django = self.django.clone();
        if self.takes(&new, "django.database_url") {
            django.database_url = new.django.database_url.clone();
        }
        // Whether sessions are read at all is for the next start.
        if django.secret_keys.is_empty() == new.django.secret_keys.is_empty() {
            django.secret_keys = new.django.secret_keys;
        }
        Self {
            bridges,
            traces,
            django,
            layer,
            database_url,
            auth_url: if self.auth_url.is_some() { new.auth_url.or(self.auth_url.clone()) } else { None },
            auth_secret: new.auth_secret,
            jwks: new.jwks,
            jwt_secrets: new.jwt_secrets,
            jwt_public_keys: new.jwt_public_keys,
            jwt_leeway: new.jwt_leeway,
            jwt_user_claim: new.jwt_user_claim,
            jwt_audience: new.jwt_audience,
            jwt_issuer: new.jwt_issuer,
            api_keys: new.api_keys,
            allowed_origins: new.allowed_origins,
            trusted_proxies: new.trusted_proxies,
            room_policy: new.room_policy,
            client_notifications: new.client_notifications,
            log_level: new.log_level,
            limits: Limits {
                resumes_at_once,
                recent_bytes,
                write_queue_bytes,
                publish_bytes,
                memory_bytes,
                ..new.limits
            },
            drain: new.drain,
            retention: new.retention,
            ..self.clone()
        }
    }

    /// Whether a running node of these settings takes over what the new ones say of this: of servers only who signs in,
    /// and whether something is used at all is for the next start.
    pub fn takes(&self, new: &Self, setting: &str) -> bool {
        let same_hosts = |own: &[Host], new: &[Host]| {
            own.len() == new.len() && own.iter().zip(new).all(|(own, new)| own.is_same_place(new))
        };
        let same_database =
            |own: &SecretString, new: &SecretString| Store::is_same_place(own.expose_secret(), new.expose_secret());
        match setting {
            "redis-url" | "redis-ca" | "redis-client-certificate" | "redis-client-key" => {
                same_hosts(&self.layer.hosts, &new.layer.hosts)
            }
            "bridge.certificates" => {
                let tls = |config: &Self| -> Vec<bool> { config.bridges.iter().map(|it| it.tls.is_some()).collect() };
                tls(self) == tls(new)
            }
            "django.cache_url" => same_hosts(self.django.cache.as_slice(), new.django.cache.as_slice()),
            "database-url" => same_database(&self.database_url, &new.database_url),
            "django.database_url" => match (&self.django.database_url, &new.django.database_url) {
                (Some(own), Some(new)) => same_database(own, new),
                _ => false,
            },
            "layer-encryption-keys" => self.layer.encryption_keys.is_empty() == new.layer.encryption_keys.is_empty(),
            "django-secret-key" => self.django.secret_keys.is_empty() == new.django.secret_keys.is_empty(),
            "auth-url" => self.auth_url.is_some() == new.auth_url.is_some(),
            "otlp-headers" => self.traces.is_some() || new.traces.is_none(),
            _ => is_changeable(setting),
        }
    }

    /// Whose files with certificates hold others than those that are used, of those that can be taken over. They have
    /// the same names as a rule: whoever renews them writes in their place.
    pub(crate) fn renewed_certificates(&self, new: &Self) -> Vec<&'static str> {
        let renewed = |own: &[Host], new: &[Host]| own.iter().zip(new).any(|(own, new)| !own.has_certificates_of(new));
        let renewed_link = |(own, new): (&BridgeSettings, &BridgeSettings)| matches!((&own.tls, &new.tls), (Some(own), Some(new)) if !own.is_like(new));
        let (own_cache, new_cache) = (self.django.cache.as_slice(), new.django.cache.as_slice());
        let all = [
            ("redis-url", renewed(&self.layer.hosts, &new.layer.hosts)),
            ("django.cache_url", renewed(own_cache, new_cache)),
            ("bridge.certificates", self.bridges.iter().zip(&new.bridges).any(renewed_link)),
        ];
        let taken = all.into_iter().filter(|(setting, renewed)| *renewed && self.takes(new, setting));
        taken.map(|(setting, _)| setting).collect()
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

/// Reads typed values, notes mistakes and goes on.
struct Reading<'a> {
    collected: &'a Collected,
    errors: Vec<String>,
}

impl Reading<'_> {
    fn read(&mut self) -> Option<Config> {
        let dev = self.flag("dev");
        let layer = self.layer();
        let user_group = self.text("user-group");
        if let Err(why) = crate::names::check_template(&user_group, layer.raw_group_names) {
            self.errors.push(format!("user-group: {why}"));
        }
        let namespace = self.text("namespace");
        if namespace.is_empty() || namespace.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_') {
            self.errors.push("namespace: letters, digits, - and _ only".to_owned());
        }
        let jwt_secrets = self.secrets("jwt-secret");
        if jwt_secrets.iter().any(|secret| secret.expose_secret().len() < 16) {
            self.errors.push("jwt-secret: a secret must have at least 16 bytes".to_owned());
        }
        let seconds = |reader: &mut Self, key: &str| {
            let value: f64 = reader.number(key);
            Duration::try_from_secs_f64(value)
                .unwrap_or_else(|_| reader.wrong(key, "must be a number of seconds, 0 or more", Duration::ZERO))
        };
        let limits = Limits {
            connections: self.number("limits.connections"),
            connections_per_user: self.number("limits.connections_per_user"),
            connections_per_address: self.number("limits.connections_per_address"),
            frame_bytes: self.number("limits.frame_bytes"),
            data_bytes: self.data_bytes(),
            outbox_bytes: self.number("limits.outbox_bytes"),
            frames_per_second: self.number("limits.frames_per_second"),
            frames_burst: self.number("limits.frames_burst"),
            rooms_per_user: self.number("limits.rooms_per_user"),
            resume_frames: self.number("limits.resume_frames"),
            resumes_at_once: self.at_once("limits.resumes_at_once"),
            recent_bytes: self.number("limits.recent_bytes"),
            handshakes_per_second: self.number("limits.handshakes_per_second"),
            write_queue_bytes: self.number("limits.write_queue_bytes"),
            publish_bytes: self.publish_bytes(),
            memory_bytes: self.number("limits.memory_bytes"),
            handshake: seconds(self, "limits.handshake_seconds"),
            ping: seconds(self, "limits.ping_seconds"),
            pong: seconds(self, "limits.pong_seconds"),
        };
        let drain = Drain {
            delay: seconds(self, "drain.delay_seconds"),
            window: seconds(self, "drain.window_seconds"),
            reconnects_per_second: self.number("drain.reconnects_per_second"),
            grace: seconds(self, "drain.grace_seconds"),
        };
        let retention = Retention {
            messages_days: self.number("retention.messages_days"),
            messages_per_room: self.number("retention.messages_per_room"),
            notifications_days: self.number("retention.notifications_days"),
            interval: seconds(self, "retention.interval_seconds"),
        };
        let room_policy = match self.collected.get("room-policy") {
            None if dev => RoomPolicy::Open,
            None | Some("members") => RoomPolicy::Members,
            Some("open") => RoomPolicy::Open,
            Some(_) => self.wrong("room-policy", "must be members or open", RoomPolicy::Members),
        };
        let client_notifications = match self.collected.get("client-notifications") {
            None | Some("any") => ClientNotifications::Any,
            Some("shared-room") => ClientNotifications::SharedRoom,
            Some("off") => ClientNotifications::Off,
            Some(_) => self.wrong("client-notifications", "must be any, shared-room or off", ClientNotifications::Off),
        };
        let database_url = self.secret("database-url").unwrap_or_default();
        let scheme = database_url.expose_secret().split(':').next().unwrap_or_default().to_owned();
        if !["sqlite", "postgres", "postgresql", "mysql", "mariadb"].contains(&scheme.as_str()) {
            self.errors.push("database-url: must begin with sqlite:, postgres:// or mysql://".to_owned());
        }
        Some(Config {
            listen: self.address("listen")?,
            internal_listen: self.address("internal-listen")?,
            layer,
            namespace,
            user_group,
            database_url,
            database_connections: self.number("database-connections"),
            database_wait: self.some_time("database-wait-seconds"),
            database_statement: self.some_time("database-statement-seconds"),
            jwt_secrets,
            jwt_public_keys: self.public_keys(),
            jwks: self.jwks(),
            jwt_leeway: self.number("jwt-leeway"),
            jwt_user_claim: self.claim("jwt-user-claim").unwrap_or_else(|| "sub".to_owned()),
            jwt_user_id_claim: self.claim("jwt-user-id-claim"),
            jwt_audience: self.list("jwt-audience"),
            jwt_issuer: self.set("jwt-issuer"),
            user_name: match self.text("user-name").as_str() {
                "username" | "" => UserName::Username,
                "id" => UserName::Id,
                _ => self.wrong("user-name", "must be username or id", UserName::Username),
            },
            anonymous: match self.text("anonymous").as_str() {
                "off" | "" => Anonymous::Off,
                "listen" => Anonymous::Listen,
                "talk" => Anonymous::Talk,
                _ => self.wrong("anonymous", "must be off, listen or talk", Anonymous::Off),
            },
            auth_url: self.auth_url(),
            auth_secret: self.auth_secret(),
            auth_time: self.some_time("auth-seconds"),
            auth_at_once: self.at_once("auth-at-once"),
            django: self.django(),
            api_keys: self.api_keys(),
            allowed_origins: self.origins(),
            trusted_proxies: self.networks("trusted-proxies"),
            room_policy,
            client_notifications,
            dev,
            io_uring: !self.flag("no-io-uring"),
            node_id: self.collected.get("node-id").map_or_else(random_node_id, str::to_owned),
            traces: self.traces(),
            log_json: match self.text("log-format").as_str() {
                "text" => false,
                "json" => true,
                _ => self.wrong("log-format", "must be text or json", false),
            },
            log_level: self.log_level(),
            limits,
            drain,
            retention,
            bridges: self.bridges(),
        })
    }

    fn log_level(&mut self) -> Option<String> {
        let level = self.collected.get("log-level")?.to_owned();
        let is_word = level.chars().all(|character| character.is_ascii_alphabetic());
        let is_known = is_word
            && ["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str());
        if is_known || (!is_word && tracing_subscriber::EnvFilter::try_new(&level).is_ok()) {
            return Some(level);
        }
        self.wrong("log-level", "must be error, warn, info, debug or trace, or directives as RUST_LOG has them", None)
    }

    fn wrong<T>(&mut self, key: &str, what: &str, fallback: T) -> T {
        self.errors.push(format!("{key}: {what}"));
        fallback
    }

    fn text(&mut self, key: &str) -> String {
        self.collected.get(key).unwrap_or_default().to_owned()
    }

    /// An empty value is an unset one.
    fn set(&mut self, key: &str) -> Option<String> {
        self.collected.get(key).filter(|text| !text.trim().is_empty()).map(str::to_owned)
    }

    /// The name of a claim that can hold a name.
    fn claim(&mut self, key: &str) -> Option<String> {
        let claim = self.set(key)?;
        if claim.trim() != claim || claim.contains(|c: char| c.is_control() || c == ',') {
            return self.wrong(key, &format!("{claim:?} is not the name of a claim"), None);
        }
        if ["exp", "nbf", "iat", "iss", "aud", "rooms", "token_type"].contains(&claim.as_str()) {
            return self.wrong(key, &format!("the claim {claim} says something else than who somebody is"), None);
        }
        Some(claim)
    }

    fn public_keys(&mut self) -> Vec<Key> {
        let Some(text) = self.set("jwt-public-key") else { return Vec::new() };
        match Key::all_of_pem(&text) {
            Ok(keys) => keys,
            Err(why) => self.wrong("jwt-public-key", &why, Vec::new()),
        }
    }

    fn jwks(&mut self) -> Option<JwksSource> {
        let text = self.set("jwks")?;
        match JwksSource::parse(&text) {
            Ok(source) => Some(source),
            Err(why) => self.wrong("jwks", why, None),
        }
    }

    fn auth_url(&mut self) -> Option<reqwest::Url> {
        let text = self.set("auth-url")?;
        let url =
            reqwest::Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(url) = url else {
            return self.wrong("auth-url", "must be a URL that begins with http:// or https://", None);
        };
        if !url.username().is_empty() || url.password().is_some() {
            let what =
                "must hold no user and no password: Django would get them in place of the visitor's; use auth-secret";
            return self.wrong("auth-url", what, None);
        }
        Some(url)
    }

    fn auth_secret(&mut self) -> Option<SecretString> {
        let secret = self.secret("auth-secret")?;
        if secret.expose_secret().len() < 16 {
            return self.wrong("auth-secret", "must have at least 16 bytes", None);
        }
        if http::HeaderValue::from_str(secret.expose_secret()).is_err() {
            return self.wrong("auth-secret", "has characters that no header can carry", None);
        }
        Some(secret)
    }

    fn origins(&mut self) -> Origins {
        let list = self.list("allowed-origins");
        Origins::parse(&list).unwrap_or_else(|wrong| {
            self.errors.extend(wrong.into_iter().map(|wrong| format!("allowed-origins: {wrong}")));
            Origins::default()
        })
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.collected.get(key).map(str::to_ascii_lowercase).as_deref() {
            None | Some("" | "0" | "false" | "no" | "off") => false,
            Some("1" | "true" | "yes" | "on") => true,
            Some(_) => self.wrong(key, "must be true or false", false),
        }
    }

    /// A time that must be some: what is given up at once is never had.
    fn some_time(&mut self, key: &str) -> Duration {
        const LEAST: Duration = Duration::from_millis(100);
        let seconds: f64 = self.number(key);
        let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time >= LEAST);
        time.unwrap_or_else(|| self.wrong(key, "must be a number of seconds, at least 0.1", LEAST))
    }

    /// A number of things that happen at the same time, of which there must be one.
    fn at_once(&mut self, key: &str) -> usize {
        const MOST: usize = 65_536;
        match self.number(key) {
            number if (1..=MOST).contains(&number) => number,
            _ => self.wrong(key, "must be a number from 1 to 65536", 1),
        }
    }

    /// Less than an envelope may have would let nothing large through.
    fn publish_bytes(&mut self) -> u32 {
        const LEAST: u32 = 4 << 20;
        match self.number("limits.publish_bytes") {
            bytes if bytes >= LEAST => bytes,
            _ => self.wrong("limits.publish_bytes", "must be at least 4194304", LEAST),
        }
    }

    fn number<T: std::str::FromStr + Default>(&mut self, key: &str) -> T {
        match self.text(key).parse() {
            Ok(number) => number,
            Err(_) => self.wrong(key, "must be a number, 0 or more", T::default()),
        }
    }

    fn data_bytes(&mut self) -> usize {
        match self.number("limits.data_bytes") {
            bytes if bytes <= persistence::MAX_DATA_BYTES => bytes,
            _ => self.wrong("limits.data_bytes", "at most 1048576", 0),
        }
    }

    fn list(&mut self, key: &str) -> Vec<String> {
        let text = self.text(key);
        if text.contains('\n') {
            return text.lines().filter(|entry| !entry.is_empty()).map(str::to_owned).collect();
        }
        text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    }

    fn secret(&mut self, key: &str) -> Option<SecretString> {
        self.collected.get(key).filter(|text| !text.is_empty()).map(SecretString::from)
    }

    fn secrets(&mut self, key: &str) -> Vec<SecretString> {
        self.list(key).into_iter().map(SecretString::from).collect()
    }

    fn address(&mut self, key: &str) -> Option<SocketAddr> {
        let text = self.text(key);
        // `localhost:8000` is what people type.
        let parsed =
            text.strip_prefix("localhost:").map_or_else(|| text.parse(), |port| format!("127.0.0.1:{port}").parse());
        match parsed {
            Ok(address) => Some(address),
            Err(_) => self.wrong(key, "must be an address and a port, like 127.0.0.1:8000", None),
        }
    }

    fn networks(&mut self, key: &str) -> Vec<IpNet> {
        let list = self.list(key);
        let network = |entry: &String| {
            let what = || format!("{entry:?} is no IP address, and no network like 10.0.0.0/8");
            proxies::network(entry).or_else(|| self.wrong(key, &what(), None))
        };
        list.iter().filter_map(network).collect()
    }
}

fn random_node_id() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "node" } else { host };
    format!("{host}-{:08x}", rand::random::<u32>())
}

#[cfg(test)]
mod tests {
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
        let errors = config(&[], &[("GATEWAY_LISTEN", "nowhere"), ("GATEWAY_ROOM_POLICY", "all")], "").unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
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
