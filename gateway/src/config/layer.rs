//! The settings of the channel layer and of its Redis.

use channel_layer::{Host, LayerError, Serializer};
use secrecy::{ExposeSecret, SecretString};

use super::{Reading, SETTINGS};

/// Which channel layer a node uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// One node, nothing installed.
    Memory,
    /// `channels_redis.pubsub.RedisPubSubChannelLayer`.
    PubSub,
    /// `channels_redis.core.RedisChannelLayer`.
    Core,
}

/// The channel layer of a node.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each one's meaning stands in the table of settings")]
pub struct LayerConfig {
    pub kind: LayerKind,
    /// The shards in their order; none with the in-memory layer.
    pub hosts: Vec<Host>,
    pub prefix: String,
    pub raw_group_names: bool,
    pub serializer: Serializer,
    pub encryption_keys: Vec<SecretString>,
    pub expiry: u64,
    pub group_expiry: u64,
    pub capacity: usize,
}

/// Settings that mean something on these layers only.
const ONLY: &[(&str, &[LayerKind])] = &[
    ("raw-group-names", &[LayerKind::PubSub]),
    ("layer-serializer", &[LayerKind::PubSub, LayerKind::Core]),
    ("layer-encryption-keys", &[LayerKind::PubSub, LayerKind::Core]),
    ("layer-expiry", &[LayerKind::Core]),
    ("layer-group-expiry", &[LayerKind::Core]),
    ("layer-capacity", &[LayerKind::Core]),
];

impl Reading<'_> {
    pub(super) fn layer(&mut self) -> LayerConfig {
        let urls = self.secret("redis-url");
        let hosts = self.hosts(urls.as_ref().map_or("", |urls| urls.expose_secret()));
        let kind = match self.collected.get("layer") {
            None | Some("") if urls.is_some() => LayerKind::PubSub,
            None | Some("" | "memory") => LayerKind::Memory,
            Some("pubsub") => LayerKind::PubSub,
            Some("core") => LayerKind::Core,
            Some(_) => self.wrong("layer", "must be memory, pubsub or core", LayerKind::Memory),
        };
        match (kind, urls.is_some()) {
            (LayerKind::Memory, true) => {
                self.errors
                    .push("layer: memory does not use a Redis; leave out --redis-url or choose pubsub or core".into());
            }
            (LayerKind::PubSub | LayerKind::Core, false) => {
                self.errors.push(format!("layer: {} needs --redis-url (GATEWAY_REDIS_URL)", kind.name()));
            }
            _ => {}
        }
        for (setting, kinds) in ONLY {
            // The default, written out, asks for nothing: a file may hold every setting.
            let default = SETTINGS.iter().find(|known| known.name == *setting).and_then(|known| known.default);
            let text = self.collected.get(setting).unwrap_or_default().to_ascii_lowercase();
            let asked = Some(text.as_str()) != default && !matches!(text.as_str(), "" | "0" | "false" | "no" | "off");
            if asked && !kinds.contains(&kind) {
                let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
                self.errors.push(format!("{setting}: only with --layer {}", names.join(" or ")));
            }
        }
        let serializer = match self.text("layer-serializer").as_str() {
            "msgpack" | "" => Serializer::MsgPack,
            "json" => Serializer::Json,
            _ => self.wrong("layer-serializer", "must be msgpack or json", Serializer::MsgPack),
        };
        let prefix = self.text("layer-prefix");
        if prefix.len() > 100 || prefix.chars().any(char::is_control) {
            self.errors.push("layer-prefix: at most 100 bytes, no control characters".to_owned());
        }
        LayerConfig {
            kind,
            hosts,
            prefix,
            raw_group_names: self.flag("raw-group-names"),
            serializer,
            encryption_keys: self.secrets("layer-encryption-keys"),
            expiry: self.at_least_one("layer-expiry"),
            group_expiry: self.at_least_one("layer-group-expiry"),
            capacity: self.at_least_one("layer-capacity") as usize,
        }
    }

    fn at_least_one(&mut self, key: &str) -> u64 {
        match self.text(key).parse() {
            Ok(number) if number > 0 => number,
            _ => self.wrong(key, "must be a number, 1 or more", 1),
        }
    }

    fn hosts(&mut self, urls: &str) -> Vec<Host> {
        let (urls, certificates) = (split(urls), self.certificates());
        let mut hosts = Vec::with_capacity(urls.len());
        for (number, url) in urls.iter().enumerate() {
            let host = url.parse::<Host>().map(|host| certificates.put_on(host));
            // Making the connector looks at the certificates as well.
            match host.and_then(|host| host.connector().map(|_| host)) {
                Ok(host) => hosts.push(host),
                Err(error) => {
                    let which = if urls.len() > 1 { format!("entry {}: ", number + 1) } else { String::new() };
                    let why = match error {
                        LayerError::Config(why) => why,
                        other => other.to_string(),
                    };
                    self.errors.push(format!("redis-url: {which}{why}"));
                }
            }
        }
        if hosts.len() > 1 && hosts.iter().any(Host::is_cluster) {
            self.errors.push("redis-url: a Redis Cluster must be the only entry".to_owned());
        }
        if !certificates.is_empty() && !hosts.iter().any(Host::uses_tls) {
            self.errors
                .push("redis-ca, redis-client-certificate: no entry of --redis-url uses TLS (rediss://)".to_owned());
        }
        hosts
    }

    fn certificates(&mut self) -> Certificates {
        let found = Certificates {
            ca: self.pem("redis-ca"),
            certificate: self.pem("redis-client-certificate"),
            key: self.pem("redis-client-key"),
        };
        if found.certificate.is_some() != found.key.is_some() {
            self.errors.push("redis-client-certificate, redis-client-key: they need each other".to_owned());
        }
        found
    }

    fn pem(&mut self, key: &str) -> Option<Vec<u8>> {
        let path = self.collected.get(key).filter(|path| !path.is_empty())?;
        match std::fs::read(path) {
            Ok(pem) => Some(pem),
            Err(error) => self.wrong(key, &format!("{path} cannot be read: {error}"), None),
        }
    }
}

impl LayerKind {
    /// As the setting has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::PubSub => "pubsub",
            Self::Core => "core",
        }
    }
}

struct Certificates {
    ca: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

impl Certificates {
    fn is_empty(&self) -> bool {
        self.ca.is_none() && self.certificate.is_none() && self.key.is_none()
    }

    fn put_on(&self, host: Host) -> Host {
        let host = match &self.ca {
            Some(ca) => host.root_certificates(ca),
            None => host,
        };
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => host.client_certificate(certificate, key),
            _ => host,
        }
    }
}

/// Splits a list of URLs: at commas that a scheme follows, because Sentinels and nodes of a cluster are
/// lists with commas inside of one URL.
fn split(urls: &str) -> Vec<&str> {
    let mut entries = Vec::new();
    let mut begin = 0;
    for (at, _) in urls.match_indices(',') {
        let scheme = urls[at + 1..].trim_start().split_once("://").map(|(scheme, _)| scheme);
        if scheme
            .is_some_and(|scheme| !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphabetic() || c == '+'))
        {
            entries.push(urls[begin..at].trim());
            begin = at + 1;
        }
    }
    entries.push(urls[begin..].trim().trim_end_matches(','));
    entries.retain(|entry| !entry.is_empty());
    entries
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    #[test]
    fn a_list_of_urls_is_split_between_them_and_not_inside() {
        assert_eq!(split("redis://a"), ["redis://a"]);
        assert_eq!(split("redis://a/0, rediss://:p,w@b ,unix:///c,"), ["redis://a/0", "rediss://:p,w@b", "unix:///c"]);
        assert_eq!(
            split("redis+sentinel://a:1,b:2/one,redis+sentinel://a:1,b:2/two"),
            ["redis+sentinel://a:1,b:2/one", "redis+sentinel://a:1,b:2/two"]
        );
        assert!(split("").is_empty());
    }

    #[test]
    fn layers_and_what_belongs_to_them() {
        let url = ("redis-url", "redis://127.0.0.1:1/0,redis://127.0.0.1:1/1");
        let file = "layer_encryption_keys = [\"new\", \"old\"]\n";
        let core =
            [url, ("layer", "core"), ("layer-serializer", "json"), ("layer-capacity", "7"), ("layer-expiry", "5")];
        let layer = config(&core, &[], file).unwrap().layer;
        assert_eq!((layer.kind, layer.hosts.len(), layer.serializer), (LayerKind::Core, 2, Serializer::Json));
        assert_eq!((layer.capacity, layer.expiry, layer.group_expiry), (7, 5, 86_400));
        let keys: Vec<_> = layer.encryption_keys.iter().map(|key| key.expose_secret()).collect();
        assert_eq!(keys, ["new", "old"]);
        assert!(!format!("{layer:?}").contains("old"), "secrets stay out of Debug");
        assert_eq!(config(&[url], &[], "").unwrap().layer.kind, LayerKind::PubSub);
    }

    #[test]
    fn what_does_not_go_together_is_told_at_once() {
        let errors = |flags: &[(&str, &str)]| config(flags, &[], "").unwrap_err();
        let url = ("redis-url", "redis://127.0.0.1:1");
        let core = ("layer", "core");
        let found =
            errors(&[url, core, ("raw-group-names", "true"), ("layer-serializer", "xml"), ("layer-expiry", "0")]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(config(&[url, core, ("raw-group-names", "false")], &[], "").unwrap().layer.kind, LayerKind::Core);
        let found = errors(&[url, ("layer-capacity", "7"), ("layer-group-expiry", "7")]);
        assert_eq!(found, ["layer-capacity: only with --layer core", "layer-group-expiry: only with --layer core"]);
        for flags in [
            &[core][..],
            &[url, ("layer", "memory")],
            &[("layer-encryption-keys", "canary")],
            &[url, ("redis-ca", "/nowhere/ca.pem")],
            &[url, ("redis-ca", "/dev/null")],
            &[("redis-url", "rediss://127.0.0.1:1"), ("redis-client-key", "/dev/null")],
            &[("redis-url", "redis://:canary@h:canary")],
            &[("redis-url", "redis://:canary@h,http://canary")],
            &[("redis-url", "redis+cluster://h,redis://h")],
        ] {
            let found = errors(flags);
            assert!(found.len() == 1 && !found[0].contains("canary"), "{flags:?}: {found:?}");
        }
    }
}
