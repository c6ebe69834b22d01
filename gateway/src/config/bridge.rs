//! The bridges: `[[bridge]]` in the file, or a single one in the environment.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::{Reading, SETTINGS, Source};
use crate::bridge::{Auth, MAX_MESSAGE, Pattern, Settings, Tls, Workers};

/// The texts of one `[[bridge]]` of the file, by key.
pub(super) type Table = BTreeMap<String, String>;

/// How settings of a bridge are named.
pub(super) const PREFIX: &str = "bridge.";

/// A key of the file only: the name of the file that holds the secret.
pub(super) const SECRET_FILE: &str = "secret_file";

/// The shortest secret, in bytes.
const LEAST_SECRET: usize = 16;

/// The keys that a `[[bridge]]` may have.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter_map(|setting| setting.name.strip_prefix(PREFIX)).chain([SECRET_FILE])
}

impl Reading<'_> {
    pub(super) fn bridges(&mut self) -> Vec<Settings> {
        let collected = self.collected;
        let given: Vec<&str> =
            keys().filter(|key| collected.source(&format!("{PREFIX}{key}")) != Source::Default).collect();
        let is_single = given.iter().any(|key| *key != "secret");
        if collected.bridges.is_empty() {
            // A secret alone is a worker's, in an environment that both share.
            return if is_single { self.bridge("bridge", None).into_iter().collect() } else { Vec::new() };
        }
        let has_secret =
            collected.bridges.iter().any(|table| table.contains_key("secret") || table.contains_key(SECRET_FILE));
        if is_single || (has_secret && given.contains(&"secret")) {
            self.errors.push(
                "bridge: there are [[bridge]] in the file and a single one in GATEWAY_BRIDGE__…: keep one of the two"
                    .to_owned(),
            );
        }
        let tables = collected.bridges.iter().enumerate();
        tables.filter_map(|(number, table)| self.bridge(&format!("bridge {}", number + 1), Some(table))).collect()
    }

    /// One bridge, of its table or of the environment. `which` names it where something is wrong.
    fn bridge(&mut self, which: &str, table: Option<&Table>) -> Option<Settings> {
        let collected = self.collected;
        let get = |key: &str| {
            let own = table.and_then(|table| table.get(key)).map(String::as_str);
            own.or_else(|| collected.get(&format!("{PREFIX}{key}"))).filter(|text| !text.trim().is_empty())
        };
        let before = self.errors.len();
        let mut wrong = |key: &str, what: &str| self.errors.push(format!("{which}: {key}: {what}"));
        let path = match get("path").map(Pattern::parse) {
            Some(Ok(path)) => Some(path),
            Some(Err(why)) => {
                wrong("path", why);
                None
            }
            None => {
                wrong("path", "is missing: the path whose sockets the site's own consumers serve, such as /ws/orders/");
                None
            }
        };
        let workers = match get("workers").map(Workers::parse) {
            Some(Ok(workers)) => Some(workers),
            Some(Err(why)) => {
                wrong("workers", &why);
                None
            }
            None => {
                wrong("workers", "is missing: where gateway_worker listens, such as unix:/run/site/worker-*.sock");
                None
            }
        };
        let secret = match (get("secret"), get(SECRET_FILE)) {
            (Some(secret), None) => Ok(secret.to_owned()),
            (None, Some(path)) => std::fs::read_to_string(path)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|error| format!("{path} cannot be read: {error}")),
            (Some(_), Some(_)) => Err("there is a secret_file beside it".to_owned()),
            (None, None) => Err("is missing: what node and workers prove to each other".to_owned()),
        };
        let secret = match secret {
            Ok(secret) if secret.len() >= LEAST_SECRET => SecretString::from(secret),
            Ok(_) => {
                wrong("secret", "must have at least 16 bytes");
                SecretString::default()
            }
            Err(why) => {
                wrong("secret", &why);
                SecretString::default()
            }
        };
        let auth = match get("auth") {
            None | Some("app") => Auth::App,
            Some("gateway") => Auth::Gateway,
            Some(_) => {
                wrong("auth", "must be app or gateway");
                Auth::App
            }
        };
        let mut pem = |key: &str| {
            let path = get(key)?;
            std::fs::read(path).map_err(|error| wrong(key, &format!("{path} cannot be read: {error}"))).ok()
        };
        let (ca, certificate, key) = (pem("ca"), pem("certificate"), pem("key"));
        let wants_tls = ["ca", "certificate", "key"].iter().any(|key| get(key).is_some());
        if get("certificate").is_some() != get("key").is_some() {
            wrong("certificate", "certificate and key need each other");
        }
        if wants_tls && get("ca").is_none() {
            wrong("ca", "is missing: TLS to the workers needs the certificates (PEM) to trust");
        }
        if wants_tls && matches!(workers, Some(Workers::Unix(_))) {
            wrong("ca", "socket files need no TLS: only with workers at tcp://");
        }
        let own = certificate.as_deref().zip(key.as_deref());
        let tls = ca.and_then(|ca| Tls::new(&ca, own).map_err(|why| wrong("ca", &why)).ok());
        let mut bytes = |key: &str, most: usize| -> Option<usize> {
            match get(key)?.parse::<usize>() {
                Ok(bytes) if bytes <= most => Some(bytes),
                Ok(_) => {
                    wrong(key, &format!("at most {most}"));
                    None
                }
                Err(_) => {
                    wrong(key, "must be a number of bytes");
                    None
                }
            }
        };
        let frame_bytes = bytes("frame_bytes", MAX_MESSAGE).filter(|bytes| *bytes > 0);
        let outbox_bytes = bytes("outbox_bytes", u32::MAX as usize).filter(|bytes| *bytes > 0);
        let slow =
            get("slow_seconds").and_then(|text| text.parse().ok()).and_then(|s| Duration::try_from_secs_f64(s).ok());
        if slow.is_none() {
            wrong("slow_seconds", "must be a number of seconds");
        }
        let max_opening =
            get("max_opening").and_then(|text| text.parse().ok()).filter(|most| (1..=4096).contains(most));
        if max_opening.is_none() {
            wrong("max_opening", "must be a number from 1 to 4096");
        }
        if self.errors.len() > before {
            return None;
        }
        debug_assert!(!secret.expose_secret().is_empty());
        Some(Settings {
            path: path?,
            workers: workers?,
            secret,
            auth,
            tls,
            frame_bytes,
            outbox_bytes,
            slow: slow?,
            max_opening: max_opening?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    const FILE: &str =
        "[[bridge]]\npath = \"/ws/orders/\"\nworkers = \"unix:/run/w-*.sock\"\nsecret = \"0123456789abcdef\"\n";

    #[test]
    fn bridges_come_from_the_file_or_one_from_the_environment() {
        let two = format!(
            "{FILE}auth = \"gateway\"\nslow_seconds = 2.5\nmax_opening = 7\nframe_bytes = 1000\n\n[[bridge]]\npath = \"/ws/\"\n\
             workers = \"tcp://workers:9100-9101\"\nsecret = \"another-0123456789\"\n"
        );
        let bridges = config(&[], &[], &two).unwrap().bridges;
        let [one, other] = &bridges[..] else { panic!("{bridges:?}") };
        assert_eq!((one.path.as_str(), one.auth, one.max_opening), ("/ws/orders/", Auth::Gateway, 7));
        assert_eq!((one.slow, one.frame_bytes, one.outbox_bytes), (Duration::from_millis(2500), Some(1000), None));
        assert_eq!((other.auth, other.max_opening, other.slow), (Auth::App, 32, Duration::from_secs(10)));
        assert_eq!(other.secret.expose_secret(), "another-0123456789");
        assert!(!format!("{bridges:?}").contains("0123456789"), "secrets stay out of Debug");
        let env = [
            ("GATEWAY_BRIDGE__PATH", "/ws/"),
            ("GATEWAY_BRIDGE__WORKERS", "unix:/run/w.sock"),
            ("GATEWAY_BRIDGE__SECRET", "0123456789abcdef"),
            ("GATEWAY_BRIDGE__AUTH", "gateway"),
        ];
        let single = config(&[], &env, "").unwrap().bridges;
        assert_eq!((single.len(), single[0].auth), (1, Auth::Gateway));
        // A worker's secret in an environment that both share is none, or that of bridges that have none.
        assert!(config(&[], &env[2..3], "").unwrap().bridges.is_empty());
        let without = FILE.replace("secret = \"0123456789abcdef\"\n", "");
        assert_eq!(config(&[], &env[2..3], &without).unwrap().bridges.len(), 1);
        for file in [FILE, &without] {
            let errors = config(&[], &env, file).unwrap_err();
            assert!(errors.iter().any(|error| error.contains("keep one of the two")), "{errors:?}");
        }
        assert!(config(&[], &env[2..3], FILE).unwrap_err()[0].contains("keep one of the two"));
    }

    #[test]
    fn what_differs_is_the_secret_or_something_else() {
        let collected = |file: &str| super::super::collect(&Default::default(), &|_| None, Some(file)).unwrap();
        let (now, secret) = (collected(FILE), collected(&FILE.replace("abcdef", "fedcba")));
        let path = collected(&FILE.replace("orders", "other"));
        assert_eq!(now.differences(&secret).collect::<Vec<_>>(), ["bridge.secret"]);
        assert_eq!(now.differences(&path).collect::<Vec<_>>(), ["bridge"]);
        assert!(super::super::is_changeable("bridge.secret") && !super::super::is_changeable("bridge"));
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from-a-file-0123456789\n").unwrap();
        let path = file.path().to_str().unwrap();
        let text = FILE.replace("secret = \"0123456789abcdef\"", &format!("secret_file = \"{path}\""));
        assert_eq!(config(&[], &[], &text).unwrap().bridges[0].secret.expose_secret(), "from-a-file-0123456789");
        let env = [
            ("GATEWAY_BRIDGE__PATH", "/"),
            ("GATEWAY_BRIDGE__WORKERS", "unix:/w"),
            ("GATEWAY_BRIDGE__SECRET_FILE", path),
        ];
        assert_eq!(config(&[], &env, "").unwrap().bridges.len(), 1);
    }

    #[test]
    fn every_mistake_of_every_bridge_is_told_with_its_number() {
        let file = "[[bridge]]\npath = \"ws\"\nworkers = \"http://x\"\nsecret = \"short\"\nauth = \"both\"\nslow_seconds = \"soon\"\n\
                    max_opening = 0\nframe_bytes = 99999999\ncertificate = \"/nowhere.pem\"\n\n[[bridge]]\nca = \"/dev/null\"\n";
        let errors = config(&[], &[], file).unwrap_err();
        for wanted in [
            "bridge 1: path: must begin with /",
            "bridge 1: workers: must be unix:",
            "bridge 1: secret: must have at least 16 bytes",
            "bridge 1: auth: must be app or gateway",
            "bridge 1: slow_seconds: must be",
            "bridge 1: max_opening: must be",
            "bridge 1: frame_bytes: at most 16777216",
            "bridge 1: certificate: /nowhere.pem cannot be read",
            "bridge 1: certificate: certificate and key need each other",
            "bridge 1: ca: is missing",
            "bridge 2: path: is missing",
            "bridge 2: workers: is missing",
            "bridge 2: secret: is missing",
            "bridge 2: ca: ca: there is no certificate",
        ] {
            assert!(errors.iter().any(|error| error.starts_with(wanted)), "{wanted}: {errors:#?}");
        }
        let errors = config(&[], &[], "[[bridge]]\npaht = \"/ws/\"\n").unwrap_err();
        assert_eq!(errors, ["bridge 1: paht: no such key; did you mean path?"]);
    }

    #[test]
    fn an_application_that_decides_is_a_way_in() {
        assert!(config(&[], &[], FILE).unwrap().check_serve().is_ok());
        let gateway = format!("{FILE}auth = \"gateway\"\n");
        assert!(config(&[], &[], &gateway).unwrap().check_serve().is_err());
    }
}
