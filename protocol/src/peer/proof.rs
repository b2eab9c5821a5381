//! The proof that both ends of a connection know the cluster's secret.
//!
//! Owns: what is proved, and how: HMAC-SHA256 over a label of the side, HELLO and CHALLENGE as
//! they were on the wire.
//! Never: shows a secret; makes a nonce; compares in a time that tells how far two proofs agree.
//! Invariant: the label differs by side, so a proof of one side is none of the other.

use super::limits::{SECRET_BYTES_MAX, SECRET_BYTES_MIN};
use super::link::Side;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use std::fmt;

/// Random bytes that are used for one connection, never again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonce(pub [u8; 32]);

/// What one side proves with. To be compared only by [`Trust`](super::Trust).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 32]);

impl Mac {
    /// Without a secret there is nothing to prove.
    pub(super) const NONE: Self = Self([0; 32]);
}

/// Why bytes are no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the secret has {bytes} bytes; use {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} random ones")]
pub struct SecretError {
    /// How long it is.
    pub bytes: usize,
}

/// What all brokers of a cluster know and nobody else does.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// Checks the length. Whoever accepts a connection can try guesses against what the dialer
    /// proves, so only random bytes will do.
    pub fn new(bytes: &[u8]) -> Result<Self, SecretError> {
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&bytes.len()) {
            return Err(SecretError { bytes: bytes.len() });
        }
        Ok(Self(Hmac::new_from_slice(bytes).expect("a key of any length is one")))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Both frames that a proof covers, whole, as they were on the wire: fields that a newer peer adds
/// are covered too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transcript {
    pub(super) hello: Bytes,
    pub(super) challenge: Bytes,
}

impl Transcript {
    pub(super) fn prove(&self, secret: &Secret, side: Side) -> Mac {
        Mac(self.mac(secret, side).finalize().into_bytes().into())
    }

    pub(super) fn is_proved(&self, secret: &Secret, side: Side, mac: &Mac) -> bool {
        self.mac(secret, side).verify_slice(&mac.0).is_ok()
    }

    fn mac(&self, secret: &Secret, side: Side) -> Hmac<Sha256> {
        let label: &[u8] = match side {
            Side::Dialer => b"weir peer 1 dialer\0",
            Side::Acceptor => b"weir peer 1 acceptor\0",
        };
        // A frame begins with its length: where one ends and the next begins is proved too.
        secret.0.clone().chain_update(label).chain_update(&self.hello).chain_update(&self.challenge)
    }
}
