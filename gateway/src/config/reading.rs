//! From the collected texts to the types of [`Config`]; every mistake is noted.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

use super::{Anonymous, ClientNotifications, Collected, Config, Drain, Limits, Retention, RoomPolicy, UserName};
use crate::origin::Origins;
use crate::proxies;
use crate::tokens::{JwksSource, Key};

/// Reads typed values, notes mistakes and goes on.
pub(super) struct Reading<'a> {
    pub(super) collected: &'a Collected,
    pub(super) errors: Vec<String>,
}

impl Reading<'_> {
    pub(super) fn read(&mut self) -> Config {
        let dev = self.flag("dev");
        // It is `collect` that goes by it, and notes no mistakes.
        self.flag("strict-env");
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
        Config {
            listen: self.address("listen"),
            internal_listen: self.address("internal-listen"),
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
        }
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

    pub(super) fn wrong<T>(&mut self, key: &str, what: &str, fallback: T) -> T {
        self.errors.push(format!("{key}: {what}"));
        fallback
    }

    pub(super) fn text(&mut self, key: &str) -> String {
        self.collected.get(key).unwrap_or_default().to_owned()
    }

    /// An empty value is an unset one.
    pub(super) fn set(&mut self, key: &str) -> Option<String> {
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

    pub(super) fn flag(&mut self, key: &str) -> bool {
        match self.collected.get(key).map(str::to_ascii_lowercase).as_deref() {
            None | Some("" | "0" | "false" | "no" | "off") => false,
            Some("1" | "true" | "yes" | "on") => true,
            Some(_) => self.wrong(key, "must be true or false", false),
        }
    }

    /// A time that must be some: what is given up at once is never had.
    pub(super) fn some_time(&mut self, key: &str) -> Duration {
        const LEAST: Duration = Duration::from_millis(100);
        let seconds = self.text(key).parse().ok().map(Duration::try_from_secs_f64);
        let time = seconds.and_then(Result::ok).filter(|time| *time >= LEAST);
        time.unwrap_or_else(|| self.wrong(key, "must be a number of seconds, at least 0.1", LEAST))
    }

    /// A number of things that happen at the same time, of which there must be one.
    fn at_once(&mut self, key: &str) -> usize {
        const MOST: usize = 65_536;
        match self.text(key).parse() {
            Ok(number) if (1..=MOST).contains(&number) => number,
            _ => self.wrong(key, "must be a number from 1 to 65536", 1),
        }
    }

    /// Less than an envelope may have would let nothing large through.
    fn publish_bytes(&mut self) -> u32 {
        const LEAST: u32 = 4 << 20;
        match self.text("limits.publish_bytes").parse() {
            Ok(bytes) if bytes >= LEAST => bytes,
            _ => self.wrong("limits.publish_bytes", "must be a number, at least 4194304", LEAST),
        }
    }

    pub(super) fn number<T: std::str::FromStr + Default>(&mut self, key: &str) -> T {
        match self.text(key).parse() {
            Ok(number) => number,
            Err(_) => self.wrong(key, "must be a number, 0 or more", T::default()),
        }
    }

    /// 0 is no limit but that of what is stored.
    fn data_bytes(&mut self) -> usize {
        match self.text("limits.data_bytes").parse() {
            Ok(0) => persistence::MAX_DATA_BYTES,
            Ok(bytes) if bytes <= persistence::MAX_DATA_BYTES => bytes,
            _ => self.wrong("limits.data_bytes", "must be a number, at most 1048576", 0),
        }
    }

    pub(super) fn list(&mut self, key: &str) -> Vec<String> {
        let text = self.text(key);
        if text.contains('\n') {
            return text.lines().filter(|entry| !entry.is_empty()).map(str::to_owned).collect();
        }
        text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
    }

    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        self.collected.get(key).filter(|text| !text.is_empty()).map(SecretString::from)
    }

    pub(super) fn secrets(&mut self, key: &str) -> Vec<SecretString> {
        self.list(key).into_iter().map(SecretString::from).collect()
    }

    fn address(&mut self, key: &str) -> SocketAddr {
        let text = self.text(key);
        // `localhost:8000` is what people type.
        let parsed =
            text.strip_prefix("localhost:").map_or_else(|| text.parse(), |port| format!("127.0.0.1:{port}").parse());
        parsed.unwrap_or_else(|_| {
            self.wrong(key, "must be an address and a port, like 127.0.0.1:8000", ([127, 0, 0, 1], 0).into())
        })
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
