//! The settings of who looks at a node and calls it: keys of the API, and where traces go.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use subtle::ConstantTimeEq as _;

use super::Reading;
use crate::traces;

/// Characters of a key's name.
const MAX_NAME: usize = 64;

/// Where a collector takes traces, by the standard.
const TRACES_PATH: &str = "/v1/traces";

/// A key of the API.
#[derive(Clone)]
pub struct ApiKey {
    name: Arc<str>,
    /// As it stands in the settings, the name before it.
    whole: SecretString,
    /// The bytes of the name and the colon.
    prefix: usize,
}

impl ApiKey {
    /// `NAME:KEY`, or a key alone, which is called by its place.
    fn parse(text: &str, place: usize) -> Self {
        let name = text.split_once(':').filter(|(name, key)| {
            (1..=MAX_NAME).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
                && !key.is_empty()
        });
        let (name, prefix) = match name {
            Some((name, _)) => (name.into(), name.len() + 1),
            None => (place.to_string().into(), 0),
        };
        Self { name, whole: text.into(), prefix }
    }

    /// What the log calls it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What callers show.
    pub fn secret(&self) -> SecretString {
        self.whole.expose_secret()[self.prefix..].into()
    }

    /// Whether this is it, with its name or without: a key of before there were names may hold a colon.
    pub(crate) fn is(&self, given: &str) -> bool {
        let whole = self.whole.expose_secret().as_bytes();
        (given.as_bytes().ct_eq(whole) | given.as_bytes().ct_eq(&whole[self.prefix..])).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Reading<'_> {
    pub(super) fn api_keys(&mut self) -> Vec<ApiKey> {
        let keys: Vec<ApiKey> =
            self.list("api-key").iter().enumerate().map(|(index, text)| ApiKey::parse(text, index + 1)).collect();
        for (index, key) in keys.iter().enumerate() {
            let whole = key.whole.expose_secret();
            if key.prefix == 0 && whole.ends_with(':') {
                self.errors.push(format!("api-key: entry {} has a name and no key", index + 1));
            }
            if !whole.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                self.errors.push(format!("api-key: entry {} has characters that no header carries", index + 1));
            }
            if keys[..index].iter().any(|other| other.name == key.name) {
                self.errors.push(format!("api-key: two keys are called {}", key.name));
            }
        }
        keys
    }

    pub(super) fn traces(&mut self) -> Option<traces::Settings> {
        let headers = self.otlp_headers();
        let ratio = match self.text("otlp-sample-ratio").parse() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => ratio,
            _ => self.wrong("otlp-sample-ratio", "must be a number, 0 to 1", 1.0),
        };
        let text = self.set("otlp-endpoint")?;
        let url =
            reqwest::Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(mut endpoint) = url else {
            return self.wrong("otlp-endpoint", "must be a URL that begins with http:// or https://", None);
        };
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            return self.wrong("otlp-endpoint", "must hold no user and no password; use otlp-headers", None);
        }
        if endpoint.path() == "/" {
            endpoint.set_path(TRACES_PATH);
        }
        Some(traces::Settings { endpoint, headers, ratio })
    }

    fn otlp_headers(&mut self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (index, entry) in self.list("otlp-headers").iter().enumerate() {
            let header = entry.split_once('=').and_then(|(name, value)| {
                let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
                let mut value = HeaderValue::from_str(value.trim()).ok()?;
                value.set_sensitive(true);
                Some((name, value))
            });
            match header {
                Some((name, value)) => drop(headers.append(name, value)),
                // It may be a secret.
                None => self.errors.push(format!("otlp-headers: entry {} is no NAME=VALUE of a header", index + 1)),
            }
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;

    #[test]
    fn keys_of_the_api_have_names_or_places() {
        let keys = config(&[("api-key", "shop:s3cret, old:with:colon,bare,=:=")], &[], "").unwrap().api_keys;
        let names: Vec<&str> = keys.iter().map(|key| &**key.name()).collect();
        assert_eq!(names, ["shop", "old", "3", "4"]);
        assert_eq!(keys[0].secret().expose_secret(), "s3cret");
        assert!(keys[0].is("s3cret") && keys[0].is("shop:s3cret") && !keys[0].is("shop") && !keys[0].is(""));
        assert!(keys[1].is("old:with:colon") && keys[1].is("with:colon") && !keys[1].is("colon"));
        assert!(keys[2].is("bare") && keys[3].is("=:="));
        assert!(!format!("{keys:?}").contains("s3cret"));
        let file = "api_key = [\"shop:a,b\", \"c\"]\n";
        let keys = config(&[], &[], file).unwrap().api_keys;
        assert!(keys.len() == 2 && keys[0].is("a,b"), "{keys:?}");
        assert!(config(&[], &[], "").unwrap().api_keys.is_empty());
        for wrong in ["shop:", "shop:schlüssel", "a,b\u{7f}", "tab\there"] {
            let error = config(&[("api-key", wrong)], &[], "").unwrap_err().join("\n");
            assert!(error.contains("api-key: entry") && !error.contains(wrong), "{error}");
        }
        let twice = config(&[("api-key", "shop:one,shop:canary")], &[], "").unwrap_err();
        assert_eq!(twice, ["api-key: two keys are called shop"]);
    }

    #[test]
    fn traces_go_to_the_path_of_the_standard_where_none_is_named() {
        let to = |url: &str| config(&[("otlp-endpoint", url)], &[], "").unwrap().traces.unwrap().endpoint.to_string();
        assert_eq!(to("http://collector:4318"), "http://collector:4318/v1/traces");
        assert_eq!(to("https://otel.example.com/otlp/v1/traces"), "https://otel.example.com/otlp/v1/traces");
        let settings = config(
            &[
                ("otlp-endpoint", "http://c:4318"),
                ("otlp-headers", "api-key=canary, x=y=z"),
                ("otlp-sample-ratio", "0.1"),
            ],
            &[],
            "",
        );
        let traces = settings.unwrap().traces.unwrap();
        assert_eq!((traces.headers["x"].to_str().unwrap(), traces.ratio), ("y=z", 0.1));
        assert!(!format!("{traces:?}").contains("canary"));
        assert!(config(&[], &[], "").unwrap().traces.is_none());
        let wrong = config(
            &[("otlp-endpoint", "collector:4318"), ("otlp-headers", "canary"), ("otlp-sample-ratio", "2")],
            &[],
            "",
        );
        let wrong = wrong.unwrap_err();
        assert!(wrong.len() == 3 && !wrong.join(" ").contains("canary"), "{wrong:?}");
        assert_eq!(config(&[("otlp-endpoint", "http://a:b@c")], &[], "").unwrap_err().len(), 1);
    }
}
