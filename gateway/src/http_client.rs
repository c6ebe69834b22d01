//! HTTP towards the site: no redirect is followed, no answer is read beyond its bound.

use http::HeaderMap;
use http::header::LOCATION;

/// Why an answer's body could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Http(reqwest::Error),
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
}

impl From<reqwest::Error> for BodyError {
    /// Without the URL, which may carry what is nobody's business.
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error.without_url())
    }
}

pub(crate) fn builder() -> reqwest::ClientBuilder {
    // A program that embeds a node may have installed another provider before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("channel-gateway/", env!("CARGO_PKG_VERSION")))
}

/// The whole body, if it has at most `most` bytes.
pub(crate) async fn body(mut answer: reqwest::Response, most: usize) -> Result<Vec<u8>, BodyError> {
    if answer.content_length().is_some_and(|length| length > most as u64) {
        return Err(BodyError::TooLong(most));
    }
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        if body.len() + piece.len() > most {
            return Err(BodyError::TooLong(most));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// A URL for the log: without user, password and query.
pub(crate) fn shown(url: &reqwest::Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// ` to /login/`, where the answer says so; without its query, which may carry what is nobody's business.
pub(crate) fn redirected_to(headers: &HeaderMap) -> String {
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok());
    let to = to.map(|to| to.split(['?', '#']).next().unwrap_or_default().chars().take(200).collect::<String>());
    to.map(|to| format!(" to {to}")).unwrap_or_default()
}
