//! Certificates made for one test.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

/// How a server's certificate is made. The default is a good certificate for 127.0.0.1, and a server that wants none
/// from its clients.
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

/// Certificates and keys, PEM: files of a server and texts of a client.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is what its name says")]
pub struct Certificates {
    pub ca_file: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: String,
    pub client_certificate: String,
    pub client_key: String,
}

/// Makes an authority of the test's own, and the certificates that it signs, in a server's private directory. The files
/// belong to the directory's owner.
pub fn make(dir: &Path, options: &TlsOptions) -> Certificates {
    let ca = CertifiedIssuer::self_signed(authority(), key()).expect("a certificate of our own");
    let owner = fs::metadata(dir).expect("the directory is ours");
    let write = |name: &str, pem: &str| {
        let path = dir.join(name);
        fs::write(&path, pem).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("the directory's owner is us, or we are root");
        path
    };
    let mut server = named(&options.names, "server");
    if options.expired {
        server.not_after = date_time_ymd(2001, 1, 1);
    }
    let server_key = key();
    let server = server.signed_by(&server_key, &ca).expect("signed by our own authority");
    let client_key = key();
    let client = named(&[], "client").signed_by(&client_key, &ca).expect("signed by our own authority");
    Certificates {
        ca_file: write("ca.pem", &ca.pem()),
        certificate: write("server.pem", &server.pem()),
        key: write("server.key", &server_key.serialize_pem()),
        ca: ca.pem(),
        client_certificate: client.pem(),
        client_key: client_key.serialize_pem(),
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
