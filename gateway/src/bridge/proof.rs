//! Node and worker prove to each other that they know the secret, without sending it.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

/// Bytes of a nonce.
pub(super) const NONCE: usize = 32;

/// A nonce: of each side one, fresh for each link.
pub(super) type Nonce = [u8; NONCE];

/// Who proves.
#[derive(Debug, Clone, Copy)]
pub(super) enum Role {
    Worker,
    Node,
}

impl Role {
    /// Each side's proof begins with its own words, so that one cannot be given back as the other.
    fn words(self) -> &'static [u8] {
        match self {
            Self::Worker => b"gateway.bridge.1 worker",
            Self::Node => b"gateway.bridge.1 node",
        }
    }
}

fn mac(secret: &SecretString, role: Role, node: &Nonce, worker: &Nonce) -> Option<Hmac<Sha256>> {
    // A key of any length is good.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).ok()?;
    [role.words(), node, worker].iter().for_each(|part| mac.update(part));
    Some(mac)
}

/// The proof of a side.
pub(super) fn prove(secret: &SecretString, role: Role, node: &Nonce, worker: &Nonce) -> Option<Vec<u8>> {
    Some(mac(secret, role, node, worker)?.finalize().into_bytes().to_vec())
}

/// Whether a proof is good; compared in constant time.
pub(super) fn holds(secret: &SecretString, role: Role, node: &Nonce, worker: &Nonce, proof: &[u8]) -> bool {
    mac(secret, role, node, worker).is_some_and(|mac| mac.verify_slice(proof).is_ok())
}

/// By what a worker knows a key of the layer, if it has it too.
pub(super) fn print(secret: &SecretString, key: &SecretString) -> Option<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).ok()?;
    [b"gateway.bridge.1 layer key ", key.expose_secret().as_bytes()].iter().for_each(|part| mac.update(part));
    Some(mac.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_its_side_its_secret_and_its_nonces() {
        let (secret, other) = (SecretString::from("0123456789abcdef"), SecretString::from("0123456789abcdeg"));
        let (a, b) = ([1; NONCE], [2; NONCE]);
        let proof = prove(&secret, Role::Worker, &a, &b).unwrap();
        assert!(holds(&secret, Role::Worker, &a, &b, &proof));
        assert!(!holds(&secret, Role::Node, &a, &b, &proof) && !holds(&other, Role::Worker, &a, &b, &proof));
        assert!(!holds(&secret, Role::Worker, &b, &a, &proof) && !holds(&secret, Role::Worker, &a, &b, &proof[1..]));
    }
}
