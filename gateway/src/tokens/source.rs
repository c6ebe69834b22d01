//! Where the keys of a JWKS are.

use std::fmt;
use std::path::PathBuf;

use crate::http_client;

/// Where a JWKS is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JwksSource {
    File(PathBuf),
    Url(reqwest::Url),
}

impl JwksSource {
    /// A URL, or else the name of a file.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, is_url) = text.split_once("://").map_or(("", false), |(scheme, _)| (scheme, true));
        if !is_url {
            return Ok(Self::File(text.into()));
        }
        let url = reqwest::Url::parse(text).map_err(|_| "is no URL, and no name of a file")?;
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" if url.has_host() => Ok(Self::Url(url)),
            "file" => url.to_file_path().map(Self::File).map_err(|()| "names no file of this machine"),
            _ => Err("must be the name of a file, or begin with https:// or http://"),
        }
    }
}

impl fmt::Display for JwksSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(&http_client::shown(url)),
        }
    }
}
