//! TLS to Redis: `rediss://`.

use std::{io, sync::Arc};

use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::{BoxError, LayerError};

/// Whom to trust, and who we are. Holds a key: it has no `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct TlsOptions {
    /// The certificates (PEM) to trust; without them the public authorities.
    pub(super) roots: Option<Vec<u8>>,
    /// Our own certificate with its chain, and its key (both PEM).
    pub(super) client: Option<(Vec<u8>, Vec<u8>)>,
}

impl TlsOptions {
    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_none() && self.client.is_none()
    }

    /// These, and where they say nothing, the others.
    pub(super) fn or(&self, others: &Self) -> Self {
        Self {
            roots: self.roots.clone().or_else(|| others.roots.clone()),
            client: self.client.clone().or_else(|| others.client.clone()),
        }
    }
}

/// `insecure` accepts whatever certificate the server shows.
pub(super) fn config(options: &TlsOptions, insecure: bool) -> Result<ClientConfig, LayerError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| LayerError::Config(error.to_string()))?;
    let builder = if insecure {
        tracing::warn!("TLS to Redis does not check the server's certificate");
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
    } else {
        builder.with_root_certificates(trusted(options.roots.as_deref())?)
    };
    match &options.client {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => {
            let chain = certificates(chain, "client certificate")?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| wrong("client key", "there is none in it"))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong("client certificate and key", error))
        }
    }
}

fn trusted(roots: Option<&[u8]>) -> Result<RootCertStore, LayerError> {
    const WHAT: &str = "root certificates";
    let mut store = RootCertStore::empty();
    match roots {
        None => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in certificates(pem, WHAT)? {
                store.add(certificate).map_err(|error| wrong(WHAT, error))?;
            }
        }
    }
    Ok(store)
}

fn certificates(pem: &[u8], what: &str) -> Result<Vec<CertificateDer<'static>>, LayerError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(wrong(what, "there is none in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(what, error)),
    }
}

fn wrong(what: &str, why: impl std::fmt::Display) -> LayerError {
    LayerError::Config(format!("{what}: {why}"))
}

/// An error of a connection with TLS, in the words of whoever has to mend it. `certified` if we showed
/// a certificate of our own.
pub(super) fn explain(error: BoxError, certified: bool) -> BoxError {
    let Some(io) = error.downcast_ref::<io::Error>() else { return error };
    let why = match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => "the server does not speak TLS on this port",
        Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
            "the server wants a client certificate"
        }
        Some(rustls::Error::AlertReceived(alert)) if certified && is_of_certificate(*alert) => {
            "the server refuses the client certificate"
        }
        Some(rustls::Error::AlertReceived(AlertDescription::HandshakeFailure)) if !certified => {
            "the server ended the handshake; does it want a client certificate?"
        }
        // With TLS 1.3 a server refuses a client after the handshake, and the reason may get lost.
        None if is_end(io) && !certified => "the server ended the connection; does it want a client certificate?",
        None if is_end(io) => "the server ended the connection; does it trust the client certificate?",
        _ => return error,
    };
    format!("{why} ({io})").into()
}

fn is_of_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
    )
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// For URLs that end in `#insecure`: any certificate will do, but signatures are still checked.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
