//! What a request must say to become a WebSocket, and the 101 that answers it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};
use sha1::{Digest, Sha1};

/// Why a request is no WebSocket handshake, as the status that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotWebSocket {
    /// Another method than GET.
    Method,
    /// No upgrade asked for: the path is right, the way of asking is not.
    NoUpgrade,
    /// Another version than 13.
    Version,
    /// A handshake with a part missing or malformed.
    Malformed(&'static str),
}

impl NotWebSocket {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoUpgrade | Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Method => "a WebSocket handshake is a GET",
            Self::NoUpgrade => "this is a WebSocket endpoint",
            Self::Version => "only version 13 is spoken here",
            Self::Malformed(what) => what,
        }
    }
}

/// Checks a handshake (RFC 6455, section 4.2.1) and returns the value of `Sec-WebSocket-Accept`.
pub(crate) fn accept_key(method: &Method, version: Version, headers: &HeaderMap) -> Result<HeaderValue, NotWebSocket> {
    if method != Method::GET {
        return Err(NotWebSocket::Method);
    }
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return Err(NotWebSocket::NoUpgrade);
    }
    if version != Version::HTTP_11 {
        return Err(NotWebSocket::Malformed("a handshake needs HTTP/1.1"));
    }
    match headers.get(SEC_WEBSOCKET_VERSION) {
        Some(version) if version == "13" => {}
        _ => return Err(NotWebSocket::Version),
    }
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(NotWebSocket::Malformed("exactly one Sec-WebSocket-Key is needed"));
    };
    match STANDARD.decode(key.as_bytes()) {
        Ok(nonce) if nonce.len() == 16 => {}
        _ => return Err(NotWebSocket::Malformed("Sec-WebSocket-Key must be 16 bytes in base64")),
    }
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    HeaderValue::from_str(&STANDARD.encode(hash.finalize())).map_err(|_| NotWebSocket::Malformed("bad key"))
}

/// The subprotocols a client offers, in its order.
pub(crate) fn offered_subprotocols(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|entry| entry.trim().to_owned())
        .filter(|entry| !entry.is_empty())
        .collect()
}

/// The 101 that makes the connection a WebSocket.
pub(crate) fn switching_protocols(accept: HeaderValue, subprotocol: Option<&str>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(Ok(subprotocol)) = subprotocol.map(HeaderValue::from_str) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    response
}

fn has_token(headers: &HeaderMap, name: &http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|entry| entry.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut HeaderMap)) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        change(&mut headers);
        headers
    }

    fn verdict(method: Method, version: Version, headers: &HeaderMap) -> Result<HeaderValue, u16> {
        accept_key(&method, version, headers).map_err(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn the_key_of_the_rfc_is_answered() {
        let accept = verdict(Method::GET, Version::HTTP_11, &request(|_| {}));
        assert_eq!(accept, Ok(HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
    }

    #[test]
    fn what_is_not_a_handshake_is_refused_with_its_status() {
        let (get, http) = (Method::GET, Version::HTTP_11);
        assert_eq!(verdict(Method::POST, http, &request(|_| {})), Err(405));
        assert_eq!(verdict(get.clone(), Version::HTTP_10, &request(|_| {})), Err(400));
        assert_eq!(verdict(get.clone(), http, &HeaderMap::new()), Err(426));
        let changed = |name: http::HeaderName, value: &'static str| {
            verdict(get.clone(), http, &request(|headers| drop(headers.insert(name, HeaderValue::from_static(value)))))
        };
        assert_eq!(changed(SEC_WEBSOCKET_VERSION, "8"), Err(426));
        assert_eq!(changed(SEC_WEBSOCKET_KEY, "abc"), Err(400));
        assert_eq!(changed(UPGRADE, "h2c"), Err(426));
        assert_eq!(verdict(get.clone(), http, &request(|headers| drop(headers.remove(SEC_WEBSOCKET_KEY)))), Err(400));
        let twice = request(|headers| {
            headers.append(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        });
        assert_eq!(verdict(get, http, &twice), Err(400));
    }
}
