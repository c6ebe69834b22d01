//! What proxies say of a request: whose it is, and how the browser sees the site. Only what proxies of ours say counts.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HOST, HeaderName};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A setting's entry: an address, or a network. `None` for what is neither.
pub(crate) fn network(entry: &str) -> Option<IpNet> {
    let unbracketed = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']')).unwrap_or(entry);
    let network = match unbracketed.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address.to_canonical()),
        Err(_) => entry.parse().ok()?,
    };
    Some(network)
}

/// A request as it is seen from outside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The right-most hop that is no proxy of ours.
    pub(crate) client: IpAddr,
    /// The host that the browser asked for, with its port where it has one.
    pub(crate) host: Option<String>,
    /// What the proxy says of the browser's scheme.
    pub(crate) scheme: Option<&'static str>,
}

/// Looks through the proxies. Where there is an `X-Forwarded-` header, `Forwarded` does not count: of two that
/// contradict each other a proxy has written one only, and that is the usual one.
pub(crate) fn see(headers: &HeaderMap, peer: IpAddr, trusts: impl Fn(IpAddr) -> bool) -> Seen {
    let peer = peer.to_canonical();
    let own_host = || headers.get(HOST).and_then(|host| host.to_str().ok()).map(|host| host.trim().to_owned());
    if !trusts(peer) {
        return Seen { client: peer, host: own_host(), scheme: None };
    }
    let forwarded = forwarded(headers);
    let hops: Vec<Option<IpAddr>> = match list(headers, &X_FORWARDED_FOR) {
        Some(hops) => hops.iter().map(|text| hop(text)).collect(),
        None => forwarded.iter().map(|element| element.r#for.as_deref().and_then(hop)).collect(),
    };
    let mut client = peer;
    for address in hops.into_iter().rev() {
        match address {
            Some(address) if trusts(client) => client = address,
            _ => break,
        }
    }
    let last = |name: &HeaderName| list(headers, name).and_then(|list| list.last().map(|text| (*text).to_owned()));
    let said_host = || forwarded.iter().rev().find_map(|element| element.host.clone());
    let said_scheme = || forwarded.iter().rev().find_map(|element| element.proto.clone());
    let scheme = last(&X_FORWARDED_PROTO).or_else(said_scheme).and_then(|scheme| {
        ["http", "https"].into_iter().find(|known| {
            scheme.eq_ignore_ascii_case(known) || scheme.eq_ignore_ascii_case(&known.replace("http", "ws"))
        })
    });
    Seen { client, host: last(&X_FORWARDED_HOST).or_else(said_host).or_else(own_host), scheme }
}

/// The entries of all headers of this name; `None` when there is none.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Vec<&'a str>> {
    let mut entries = headers.get_all(name).iter().peekable();
    entries.peek()?;
    Some(entries.flat_map(|value| value.to_str().unwrap_or_default().split(',').map(str::trim)).collect())
}

/// An address as a hop has it: with a port, in brackets, or bare. `None` for `unknown` and made-up names.
fn hop(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|at| at.ip()));
    address.map(|address| address.to_canonical())
}

/// An element of RFC 7239.
#[derive(Debug, Default, PartialEq, Eq)]
struct Element {
    r#for: Option<String>,
    host: Option<String>,
    proto: Option<String>,
}

fn forwarded(headers: &HeaderMap) -> Vec<Element> {
    let values = headers.get_all(FORWARDED).iter().map(|value| value.to_str().unwrap_or_default());
    values.flat_map(|value| split(value, ',')).map(|element| read(&element)).collect()
}

fn read(element: &str) -> Element {
    let mut found = Element::default();
    for pair in split(element, ';') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        let value = unquoted(value.trim());
        match name.trim().to_ascii_lowercase().as_str() {
            "for" => found.r#for = Some(value),
            "host" => found.host = Some(value),
            "proto" => found.proto = Some(value),
            _ => {}
        }
    }
    found
}

/// Splits where no quotes are round it.
fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut part, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for character in text.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if character == separator && !quoted => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(character);
    }
    parts.push(part);
    parts
}

fn unquoted(value: &str) -> String {
    match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, lines: &[(&'static str, &str)]) -> (String, String, &'static str) {
        let ours = ["10.0.0.0/8", "2001:db8:1::/48", "::1"].map(|entry| network(entry).unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "node:8000".parse().unwrap());
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let trusts = |address: IpAddr| ours.iter().any(|network| network.contains(&address));
        let Seen { client, host, scheme } = see(&headers, peer.parse().unwrap(), trusts);
        (client.to_string(), host.unwrap(), scheme.unwrap_or("-"))
    }

    fn client(peer: &str, forwarded_for: &str) -> String {
        seen(peer, &[("x-forwarded-for", forwarded_for)]).0
    }

    #[test]
    fn hops_carry_ports_and_brackets_and_proxies_are_networks() {
        assert_eq!(client("10.1.2.3", "203.0.113.7"), "203.0.113.7");
        assert_eq!(client("10.1.2.3", "203.0.113.7:51000"), "203.0.113.7");
        assert_eq!(client("10.1.2.3", "198.51.100.9, 203.0.113.7:1, 10.9.9.9:80"), "203.0.113.7");
        assert_eq!(client("::ffff:10.1.2.3", "[2001:db8:2::7]:443"), "2001:db8:2::7");
        assert_eq!(client("2001:db8:1::5", "[2001:db8:2::7], [2001:db8:1::9]:1"), "2001:db8:2::7");
        assert_eq!(client("10.1.2.3", "2001:db8:2::7"), "2001:db8:2::7");
        // Who is no proxy of ours says what they like.
        assert_eq!(client("192.0.2.1", "203.0.113.7"), "192.0.2.1");
        // What cannot be read ends the way back.
        assert_eq!(client("10.1.2.3", "203.0.113.7, unknown"), "10.1.2.3");
        assert_eq!(client("10.1.2.3", "203.0.113.7, 1.2.3.4.5, 10.9.9.9"), "10.9.9.9");
        assert_eq!(client("10.1.2.3", ""), "10.1.2.3");
    }

    #[test]
    fn forwarded_is_read_where_the_usual_headers_are_missing() {
        let value =
            r#"for=192.0.2.60;host=evil, for="[2001:db8:2::17]:4711";proto=https;host="chat.example.com:8443";by=_x"#;
        let all = ("2001:db8:2::17".to_owned(), "chat.example.com:8443".to_owned(), "https");
        assert_eq!(seen("10.0.0.1", &[("forwarded", value)]), all);
        assert_eq!(seen("10.0.0.1", &[("forwarded", value), ("x-forwarded-for", "203.0.113.7")]).0, "203.0.113.7");
        assert_eq!(seen("192.0.2.1", &[("forwarded", value)]), ("192.0.2.1".into(), "node:8000".into(), "-"));
        assert_eq!(seen("10.0.0.1", &[("forwarded", "for=_hidden")]).0, "10.0.0.1");
        let two = [("forwarded", "for=203.0.113.7"), ("forwarded", "For=\"10.5.5.5:1\"")];
        assert_eq!(seen("10.0.0.1", &two).0, "203.0.113.7");
        assert_eq!(seen("10.0.0.1", &[("forwarded", "for=\"a,b\";host=\"x\\\"y")]).0, "10.0.0.1");
    }

    #[test]
    fn host_and_scheme_are_what_the_nearest_proxy_says() {
        let lines = [("x-forwarded-host", "evil, chat.example.com"), ("x-forwarded-proto", "https")];
        assert_eq!(seen("10.0.0.1", &lines), ("10.0.0.1".into(), "chat.example.com".into(), "https"));
        assert_eq!(seen("10.0.0.1", &[("x-forwarded-proto", "WSS")]).2, "https");
        assert_eq!(seen("192.0.2.1", &lines), ("192.0.2.1".into(), "node:8000".into(), "-"));
    }

    #[test]
    fn what_is_no_network_is_none() {
        for good in ["10.0.0.0/8", "10.0.0.1", "::1", "[::1]", "2001:db8::/32", "::ffff:10.0.0.1"] {
            assert!(network(good).is_some(), "{good}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0", "proxy.example.com", "10.0.0.1:80", "*", "null", "10.0.0.0/255.0.0.0"]
        {
            assert!(network(bad).is_none(), "{bad}");
        }
    }
}
