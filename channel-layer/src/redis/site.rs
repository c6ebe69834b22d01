//! What the builders of both layers are told alike.

use super::{Host, tls::TlsOptions, topology::Topology};
use crate::{LayerError, Serializer, codec::Codec};

/// Where a site's Redis is, and what all processes of the site must agree on.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) hosts: Vec<Host>,
    pub(super) prefix: String,
    pub(super) serializer: Serializer,
    pub(super) encryption_keys: Vec<String>,
    pub(super) tls: TlsOptions,
}

impl Site {
    pub(super) fn new(hosts: Vec<Host>) -> Self {
        Self {
            hosts,
            prefix: "asgi".to_owned(),
            serializer: Serializer::default(),
            encryption_keys: Vec::new(),
            tls: TlsOptions::default(),
        }
    }

    /// What can be found wrong without any Redis, or else what a layer is made of.
    pub(super) fn check(&self) -> Result<(Codec, Topology), LayerError> {
        check_name("prefix", &self.prefix)?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(LayerError::Config("it must be started inside a Tokio runtime".into()));
        }
        Ok((Codec::new(self.serializer, &self.encryption_keys)?, Topology::of(&self.hosts, &self.tls)?))
    }
}

/// Whether a text may stand before keys.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), LayerError> {
    match name.len() > 100 || name.chars().any(char::is_control) {
        true => Err(LayerError::Config(format!("the {what} must be at most 100 bytes without control characters"))),
        false => Ok(()),
    }
}

/// The methods of a builder for its field `site`. Not a trait's, which everybody would have to import.
macro_rules! site_settings {
    () => {
        /// The text before every key and topic in Redis, `asgi` by default as in Python; all processes of
        /// a site must agree on it. At most 100 bytes.
        #[must_use]
        pub fn prefix(mut self, prefix: &str) -> Self {
            self.site.prefix = prefix.to_owned();
            self
        }

        /// The format of payloads, [`Serializer::MsgPack`](crate::Serializer::MsgPack) by default;
        /// `serializer_format` in Python. All processes of a site must agree on it.
        #[must_use]
        pub fn serializer(mut self, serializer: crate::Serializer) -> Self {
            self.site.serializer = serializer;
            self
        }

        /// Encrypts payloads with the first key and reads them with each in turn, as
        /// `symmetric_encryption_keys` in Python; none by default. A key is any text but the empty one,
        /// which `connect` and `start` refuse. Names of groups and channels stay readable. A payload without
        /// encryption, or under another key, counts as undecodable. Python's pub/sub layer encrypts from
        /// `channels_redis` 4.2.1; the core layer's events are refused when they are `expiry` + 10 seconds old.
        #[must_use]
        pub fn encryption_keys(mut self, keys: impl IntoIterator<Item: Into<String>>) -> Self {
            self.site.encryption_keys = keys.into_iter().map(Into::into).collect();
            self
        }

        /// The certificates (PEM) to trust for `rediss://`, instead of the public authorities.
        #[must_use]
        pub fn root_certificates(mut self, pem: &[u8]) -> Self {
            self.site.tls.roots = Some(pem.to_vec());
            self
        }

        /// The certificate to show to servers that want one, with its chain, and its key (both PEM); for
        /// `rediss://`.
        #[must_use]
        pub fn client_certificate(mut self, chain: &[u8], key: &[u8]) -> Self {
            self.site.tls.client = Some((chain.to_vec(), key.to_vec()));
            self
        }
    };
}

pub(super) use site_settings;
