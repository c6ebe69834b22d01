//! The origin check, by Channels' rules (`OriginValidator`), with `host:port` entries that work.

/// Allowed origins of a node.
#[derive(Debug, Clone, Default)]
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
        /// `None` where the scheme has no port of its own, and none is named: those of app shells.
        port: Option<u16>,
    },
}

#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origins {
    /// What cannot be read is refused with a sentence each.
    pub(crate) fn parse(entries: &[String]) -> Result<Self, Vec<String>> {
        let (mut patterns, mut wrong) = (Vec::new(), Vec::new());
        for entry in entries {
            match Pattern::parse(entry) {
                Ok(pattern) => patterns.push(pattern),
                Err(why) => wrong.push(format!("{entry:?} {why}")),
            }
        }
        if wrong.is_empty() { Ok(Self(patterns)) } else { Err(wrong) }
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
    fn parse(entry: &str) -> Result<Self, &'static str> {
        if entry == "*" {
            return Ok(Self::Any);
        }
        if entry.eq_ignore_ascii_case("null") {
            return Err("is sent by any sandboxed page and any file, whoever made it: it cannot be allowed");
        }
        if entry.contains('*') {
            return Err("has a * in it: for a domain and its subdomains write .example.com");
        }
        if let Some((scheme, rest)) = entry.split_once("://") {
            let is_scheme = |scheme: &str| {
                scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                    && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
            };
            if rest.trim_end_matches('/').contains(['/', '?', '#']) || rest.ends_with('/') {
                return Err("has a path: an origin is scheme://host[:port]");
            }
            let parsed = Parsed::origin(entry).filter(|parsed| is_scheme(scheme) && is_host(&parsed.host));
            let parsed = parsed.ok_or("is no origin: write scheme://host or scheme://host:port")?;
            let port = parsed.port.or(parsed.default_port());
            return Ok(Self::Full { scheme: parsed.scheme, host: parsed.host, port });
        }
        let (host, port) = split_port(entry).ok_or("has a port that is no number")?;
        if !is_host(host) {
            return Err("is no host: write example.com, .example.com or scheme://host[:port]");
        }
        Ok(Self::Host { host: host.to_ascii_lowercase(), port })
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
                    && origin.port.or(origin.default_port()) == *port
            }
        }
    }
}

/// A name as DNS or an app shell has it, with a dot in front for subdomains, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let labels = host.strip_prefix('.').unwrap_or(host);
    // What browsers send of any other name is its ASCII form (xn--).
    let is_label =
        |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    labels.split('.').all(is_label)
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
        Origins::parse(&entries).unwrap().allows(origin, Some("chat.example.com:8443"))
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
        assert!(Origins::parse(&[]).unwrap().allows("http://localhost", Some("localhost")));
        assert!(Origins::parse(&[]).unwrap().allows("http://[::1]:8000", Some("[::1]:8000")));
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
        assert!(allows(&["*"], "null") && allows(&["localhost:8000"], "http://localhost:8000"));
        assert!(!allows(&["localhost:8000"], "http://localhost:9000"));
        assert!(!allows(&["example.com"], "http://example.com."));
    }

    #[test]
    fn app_shells_have_origins_of_their_own() {
        for shell in ["capacitor://localhost", "ionic://localhost", "tauri://localhost", "app://bundle"] {
            assert!(allows(&[shell], shell), "{shell}");
            assert!(!allows(&[shell], "http://localhost") && !allows(&["localhost.example"], shell), "{shell}");
        }
        assert!(!allows(&["capacitor://localhost"], "capacitor://localhost:81"));
        assert!(!Origins::parse(&[]).unwrap().allows("capacitor://localhost", Some("localhost")));
        assert!(allows(&["chrome-extension://abcdef"], "chrome-extension://abcdef"));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let wrong = |entry: &str| Origins::parse(&["good.example.com".into(), entry.into()]).unwrap_err().remove(0);
        for entry in [
            "null",
            "*.example.com",
            "https://*.example.com",
            "https://",
            "https://example.com/",
            "https://example.com/chat",
            "https://user@example.com",
            "https://example.com:port",
            "example.com/",
            "example.com:port",
            "://example.com",
            "exam ple.com",
            "https://example.com.",
            "https:/example.com",
        ] {
            assert!(wrong(entry).contains(entry), "{entry}");
        }
        for entry in
            ["*", "localhost:8000", ".example.com", "[::1]", "https://[::1]:8443", "my_host", "xn--bcher-kva.example"]
        {
            assert!(Origins::parse(&[entry.into()]).is_ok(), "{entry}");
        }
    }
}
