//! Certificates made for one test.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use super::RedisServer;
use crate::net::free_port;

/// What [`RedisServer::switch_tls_on`] makes. The default is a good certificate for 127.0.0.1 and a server
/// that wants none from its clients.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// Whether clients must show a certificate of the same authority.
    pub client_certificates: bool,
    /// The names and addresses in the server's certificate.
    pub names: Vec<String>,
    /// Whether the server's certificate is out of date.
    pub expired: bool,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self { client_certificates: false, names: vec!["127.0.0.1".to_owned()], expired: false }
    }
}

/// How to reach a server whose TLS was switched on. All certificates and keys are PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The port that speaks TLS.
    pub port: u16,
    /// The authority that signed both sides' certificates; no one else knows it.
    pub ca: Vec<u8>,
    /// A certificate that the server accepts from a client.
    pub client_certificate: Vec<u8>,
    /// The key of [`client_certificate`](Self::client_certificate).
    pub client_key: Vec<u8>,
}

impl Tls {
    /// The address as `rediss://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port)
    }
}

pub(super) fn switch_on(redis: &RedisServer, options: &TlsOptions) -> Tls {
    let ca = CertifiedIssuer::self_signed(authority(), key()).expect("a certificate of our own");
    let dir = redis.process().dir();
    let write = |name: &str, pem: &str| {
        let path = dir.join(name);
        fs::write(&path, pem).expect("the directory is ours");
        text(&path)
    };
    let mut server = named(&options.names, "redis");
    if options.expired {
        server.not_after = date_time_ymd(2001, 1, 1);
    }
    let server_key = key();
    let server = server.signed_by(&server_key, &ca).expect("signed by our own authority");
    let client_key = key();
    let client = named(&[], "client").signed_by(&client_key, &ca).expect("signed by our own authority");

    let ca_file = write("ca.pem", &ca.pem());
    let certificate = write("server.pem", &server.pem());
    let key = write("server.key", &server_key.serialize_pem());
    let port = free_port();
    let answer = redis.cli(&[
        "CONFIG",
        "SET",
        "tls-cert-file",
        &certificate,
        "tls-key-file",
        &key,
        "tls-ca-cert-file",
        &ca_file,
        "tls-auth-clients",
        if options.client_certificates { "yes" } else { "no" },
        "tls-port",
        &port.to_string(),
    ]);
    assert_eq!(answer, "OK", "this server has no TLS?");
    Tls {
        port,
        ca: ca.pem().into_bytes(),
        client_certificate: client.pem().into_bytes(),
        client_key: client_key.serialize_pem().into_bytes(),
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn authority() -> CertificateParams {
    let mut params = named(&[], "testkit authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn named(names: &[String], common: &str) -> CertificateParams {
    let mut params = CertificateParams::new(names).expect("names as certificates have them");
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
