//! The origin check, by Channels' rules (`OriginValidator`), with `host:port` entries that work.

/// Allowed origins of a node.
#[derive(Debug, Clone)]
pub(crate) struct Origins(Vec<Pattern>);

#[derive(Debug, Clone)]
enum Pattern {
    Any,
    /// Host only, or with a port; a leading dot also admits subdomains.
    Host {
        host: String,
        port: Option<u16>,
    },
    /// Scheme, host and port.
    Full {
        scheme: String,
        host: String,
        port: u16,
    },
}

#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origins {
    pub(crate) fn new(entries: &[String]) -> Self {
        Self(entries.iter().filter_map(|entry| Pattern::parse(entry)).collect())
    }

    /// Whether there are any; else the request's own host counts.
    pub(crate) fn are_configured(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether a page of this origin may connect to this host. Without configured origins the
    /// origin's host must be the request's own.
    pub(crate) fn allows(&self, origin: &str, own_host: Option<&str>) -> bool {
        if self.0.iter().any(|pattern| matches!(pattern, Pattern::Any)) {
            return true;
        }
        let Some(origin) = Parsed::origin(origin) else { return false };
        if self.0.is_empty() {
            return own_host.is_some_and(|own| hosts_equal(&origin, own));
        }
        self.0.iter().any(|pattern| pattern.admits(&origin))
    }
}

/// The port counts too: another service on the same host is another site's page.
fn hosts_equal(origin: &Parsed, own_host: &str) -> bool {
    let (Some((host, port)), true) = (split_port(own_host), origin.default_port().is_some()) else { return false };
    host.eq_ignore_ascii_case(&origin.host) && port.or(origin.default_port()) == origin.port.or(origin.default_port())
}

impl Parsed {
    fn origin(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (host, port) = split_port(rest)?;
        let valid =
            !host.is_empty() && !scheme.is_empty() && !rest.contains(['/', '@', '?', '#', ' ']) && !host.ends_with('.');
        valid.then(|| Self { scheme: scheme.to_ascii_lowercase(), host: host.to_ascii_lowercase(), port })
    }

    fn default_port(&self) -> Option<u16> {
        match self.scheme.as_str() {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        }
    }
}

impl Pattern {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::Any);
        }
        if entry.contains("://") {
            let parsed = Parsed::origin(entry)?;
            let port = parsed.port.or(parsed.default_port())?;
            return Some(Self::Full { scheme: parsed.scheme, host: parsed.host, port });
        }
        let (host, port) = split_port(entry)?;
        Some(Self::Host { host: host.to_ascii_lowercase(), port })
    }

    fn admits(&self, origin: &Parsed) -> bool {
        match self {
            Self::Any => true,
            Self::Host { host, port } => {
                host_matches(host, &origin.host)
                    && port.is_none_or(|port| origin.port.or(origin.default_port()) == Some(port))
            }
            Self::Full { scheme, host, port } => {
                *scheme == origin.scheme
                    && host_matches(host, &origin.host)
                    && origin.port.or(origin.default_port()) == Some(*port)
            }
        }
    }
}

/// `.example.com` admits the domain and its subdomains; nothing else is a wildcard.
fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('.') {
        Some(domain) => host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => pattern == host,
    }
}

/// Splits `host[:port]`; `[::1]:80` too. `None` for a port that is no number.
pub(crate) fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    if let Some(end) = text.strip_prefix('[').and(text.find(']')) {
        let (host, rest) = text.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port.parse().ok()?))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match text.rsplit_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((text, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(entries: &[&str], origin: &str) -> bool {
        let entries: Vec<String> = entries.iter().map(|entry| entry.to_string()).collect();
        Origins::new(&entries).allows(origin, Some("chat.example.com:8443"))
    }

    #[test]
    fn by_default_only_the_own_host_may() {
        assert!(allows(&[], "https://chat.example.com:8443"));
        assert!(allows(&[], "https://CHAT.example.com:8443"));
        for foreign in [
            "https://chat.example.com",
            "https://evil.com:8443",
            "https://chat.example.com.evil.com:8443",
            "https://evilchat.example.com:8443",
            "null",
            "",
            "file://",
            "https://",
            "https://a@chat.example.com:8443",
            "https://chat.example.com:8443/x",
            "https://chat.example.com:port",
            "file://chat.example.com:8443",
        ] {
            assert!(!allows(&[], foreign), "{foreign}");
        }
        assert!(Origins::new(&[]).allows("http://localhost", Some("localhost")));
        assert!(Origins::new(&[]).allows("http://[::1]:8000", Some("[::1]:8000")));
    }

    #[test]
    fn patterns_are_those_of_channels() {
        assert!(allows(&["example.com"], "http://example.com:81"));
        assert!(!allows(&["example.com"], "http://www.example.com"));
        assert!(allows(&[".example.com"], "http://www.example.com") && allows(&[".example.com"], "http://example.com"));
        assert!(!allows(&[".example.com"], "http://notexample.com"));
        assert!(allows(&["https://example.com"], "https://example.com:443"));
        assert!(!allows(&["https://example.com"], "http://example.com"));
        assert!(!allows(&["https://example.com:8443"], "https://example.com"));
        assert!(!allows(&["*.example.com"], "http://www.example.com"));
        assert!(allows(&["*"], "null") && allows(&["localhost:8000"], "http://localhost:8000"));
        assert!(!allows(&["localhost:8000"], "http://localhost:9000"));
        assert!(!allows(&["example.com"], "http://example.com."));
    }
}
