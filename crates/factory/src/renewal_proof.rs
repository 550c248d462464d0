//! That whoever holds the key of a certificate asks for another one for a new key.
//!
//! TLS proves that to the server that the device talks to, and to nobody behind it. Whoever must not take that server's
//! word (a CA in a process of its own) needs a signature by the old key over the very request:
//!
//! ```text
//! "countersign renewal 1" LF || SHA-256(old certificate, DER) || SHA-256(PKCS#10, DER)
//! ```
//!
//! signed as the old key signs (P-256 with SHA-256, P-384 with SHA-384, Ed25519, RSA PKCS#1 with SHA-256). In EST it
//! travels in the header [`HEADER`], base64. A request for the same key needs none: PKCS#10 is signed by that key itself.

use countersign_identity::Fingerprint;
use countersign_identity::signed::{SignatureFault, Signer, SigningFailed, key_of};

use crate::key::verify_by;

/// The header of an EST request that carries the proof.
pub const HEADER: &str = "countersign-renewal-proof";

/// What the old key signs.
pub fn content(certificate: &[u8], request: &[u8]) -> Vec<u8> {
    let mut content = b"countersign renewal 1\n".to_vec();
    content.extend(Fingerprint::of(certificate).as_bytes());
    content.extend(Fingerprint::of(request).as_bytes());
    content
}

/// Makes the proof, on the device.
///
/// # Errors
/// [`SigningFailed`].
pub fn create(old_key: &dyn Signer, certificate: &[u8], request: &[u8]) -> Result<Vec<u8>, SigningFailed> {
    old_key.sign(&content(certificate, request))
}

/// Checks the proof.
///
/// # Errors
/// [`SignatureFault`] if the certificate's key did not sign this.
pub fn verify(certificate: &[u8], request: &[u8], proof: &[u8]) -> Result<(), SignatureFault> {
    verify_by(&key_of(certificate)?, &content(certificate, request), proof)
}
