//! What of the settings a running node takes over when it reads them again.

use channel_layer::Host;
use persistence::Store;
use secrecy::{ExposeSecret, SecretString};

use super::{Config, Limits};
use crate::bridge::Settings as BridgeSettings;
use crate::traces;

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

impl Config {
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
}
