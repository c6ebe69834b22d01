//! What a bridge is: which paths, whose workers, and its limits.

use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};

use super::discovery::Workers;
use super::path::Pattern;

/// Bytes of a message that a link can carry.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// Who says who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    /// The application.
    App,
    /// The node: only who is signed in gets to the application, which is told.
    Gateway,
}

/// One `[[bridge]]` of the settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) path: Pattern,
    pub(crate) workers: Workers,
    pub(crate) secret: SecretString,
    pub(crate) auth: Auth,
    pub(crate) tls: Option<Tls>,
    /// Bytes of a client's frame or message; none: as everywhere on the node.
    pub(crate) frame_bytes: Option<usize>,
    /// Bytes that may wait for a client; none: as everywhere on the node.
    pub(crate) outbox_bytes: Option<usize>,
    /// How long the application may wait for a client to take something.
    pub(crate) slow: Duration,
    /// Handshakes at once, for each worker.
    pub(crate) max_opening: usize,
}

/// How links are encrypted.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    /// Of what it was made, hashed.
    made_of: [u8; 32],
}

impl Tls {
    /// Trusts these authorities, and shows this certificate with its key if the worker asks; all PEM.
    pub(crate) fn new(ca: &[u8], own: Option<(&[u8], &[u8])>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca, "ca")? {
            roots.add(certificate).map_err(|error| format!("ca: {error}"))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots);
        let config = match own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = certificates(chain, "certificate")?;
                let key =
                    PrivateKeyDer::from_pem_slice(key).map_err(|_| "key: there is none in the file".to_owned())?;
                builder.with_client_auth_cert(chain, key).map_err(|error| format!("certificate and key: {error}"))?
            }
        };
        let (chain, key) = own.unwrap_or_default();
        let parts = [ca, chain, key].map(Sha256::digest);
        Ok(Self { config: Arc::new(config), made_of: Sha256::digest(parts.concat()).into() })
    }

    /// Whether the two are made of the same certificates.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.made_of == other.made_of
    }
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(format!("{what}: there is no certificate in the file")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("{what}: {error}")),
    }
}
