//! What is known of a connection when it is made, as Channels calls it.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;

/// The signed-in user of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// What the user is called everywhere, compared by bytes.
    pub name: Arc<str>,
    /// The id as Django writes it, where the way to sign in knows it.
    pub id: Option<Arc<str>>,
    /// How they signed in.
    pub by: SignedInBy,
    /// What they may do.
    pub access: Access,
    /// Rooms that the token names; they count for this socket only.
    pub rooms: Vec<String>,
    /// Unix seconds when the sign-in ends, if it does.
    pub expires_at: Option<i64>,
}

/// How somebody signed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignedInBy {
    /// By a JSON Web Token, one of `--dev` included.
    Token,
    /// By a Django session.
    Session,
    /// Django was asked.
    Django,
    /// Not at all: the name is made up for this socket.
    Nobody,
}

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// What users may.
    Full,
    /// Nobody by name: hears the open room of the URL.
    Listen,
    /// Nobody by name: hears the open room of the URL and may post there.
    Talk,
}

/// What a consumer knows of its connection.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Percent-decoded path.
    pub path: Arc<str>,
    /// Query string as it was sent, without the `?`.
    pub query_string: String,
    /// All request headers, names in lower case, order and repeats kept.
    pub headers: HeaderMap,
    /// Cookies by Channels' rules: the first `Cookie` header, the last of equal names.
    pub cookies: Vec<(String, String)>,
    /// Who is signed in.
    pub user: User,
    /// Address of the client, as far as trusted proxies tell it.
    pub client: IpAddr,
    /// Subprotocols the client offers, in its order, without bearer tokens.
    pub subprotocols: Vec<String>,
    /// Named parts of the route's pattern.
    pub url_route: Vec<(String, String)>,
}

impl Scope {
    /// A named part of the path, percent-decoded.
    pub fn kwarg(&self, name: &str) -> Option<&str> {
        self.url_route.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A cookie's value.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        cookie(&self.cookies, name)
    }

    /// The value of a query parameter, percent-decoded; the first of equal names.
    pub fn query(&self, name: &str) -> Option<String> {
        query(&self.query_string, name)
    }
}

pub(crate) fn cookie<'a>(cookies: &'a [(String, String)], name: &str) -> Option<&'a str> {
    cookies.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

pub(crate) fn query(query_string: &str, name: &str) -> Option<String> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    query_string
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| decode(key) == name)
        .map(|(_, value)| decode(value))
}

/// Reads the first `Cookie` header by Channels' rules: split at
/// `;`, each part at its first `=`, trimmed, quoted values unquoted, nothing percent-decoded.
pub(crate) fn parse_cookies(headers: &HeaderMap) -> Vec<(String, String)> {
    let Some(header) = headers.get(http::header::COOKIE) else {
        return Vec::new();
    };
    // Latin-1, as HTTP headers are: every byte is a character.
    let text: String = header.as_bytes().iter().map(|&byte| char::from(byte)).collect();
    text.split(';')
        .map(|part| match part.split_once('=') {
            Some((name, value)) => (name.trim().to_owned(), unquote(value.trim())),
            None => (String::new(), part.trim().to_owned()),
        })
        .filter(|(name, value)| !name.is_empty() || !value.is_empty())
        .collect()
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut out = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        let rest = characters.as_str();
        let octal = rest.get(..3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()));
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(char::from(byte));
                characters = rest[3..].chars();
            }
            None => out.extend(characters.next()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_follow_channels() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", "a=1; b=x=y ;sessionid=old; c=\"q\\\"\\073\"; sessionid=new".parse().unwrap());
        headers.append("cookie", "late=1".parse().unwrap());
        let cookies = parse_cookies(&headers);
        assert_eq!(cookie(&cookies, "sessionid"), Some("new"));
        assert_eq!(cookie(&cookies, "b"), Some("x=y"));
        assert_eq!(cookie(&cookies, "c"), Some("q\";"));
        assert_eq!(cookie(&cookies, "late"), None);
        assert_eq!(unquote("\"\\+12\\400\\\\\\377\""), "+12400\\\u{ff}");
        for plain in ["\"", "\"a", "a\"", ""] {
            assert_eq!(unquote(plain), plain);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read(bytes in proptest::collection::vec(0x20_u8..0x7f, 0..200)) {
            let mut headers = HeaderMap::new();
            headers.insert("cookie", http::HeaderValue::from_bytes(&bytes).unwrap());
            parse_cookies(&headers);
        }
    }

    #[test]
    fn query_parameters_are_decoded() {
        assert_eq!(query("a=1&token=x%2By+z&token=2", "token").as_deref(), Some("x+y z"));
        assert_eq!(query("", "token"), None);
    }
}
