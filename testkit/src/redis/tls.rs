//! A server that speaks TLS as well.

use super::RedisServer;
use crate::{
    net::free_port,
    tls::{self, TlsOptions},
};

/// How to reach a server whose TLS was switched on. All certificates and keys are PEM.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The port that speaks TLS.
    pub port: u16,
    /// The authority that signed both sides' certificates. No other test has it.
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
    switch_on_at(redis, options, free_port())
}

/// Another authority and all that it signs, on the port of before.
pub(super) fn renew(redis: &RedisServer, options: &TlsOptions, tls: &Tls) -> Tls {
    switch_on_at(redis, options, tls.port)
}

fn switch_on_at(redis: &RedisServer, options: &TlsOptions, port: u16) -> Tls {
    let made = tls::make(redis.process().dir(), options);
    let [certificate, key, ca_file] =
        [&made.certificate, &made.key, &made.ca_file].map(|path| path.display().to_string());
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
        ca: made.ca.into_bytes(),
        client_certificate: made.client_certificate.into_bytes(),
        client_key: made.client_key.into_bytes(),
    }
}
