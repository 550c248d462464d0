//! Signed time for devices that have none: a JWS (RFC 7515) by a key of its own that the platform's CA vouches for.
//!
//! The server's TLS key does not sign it: what signs documents must not be what answers handshakes. The key lives in
//! memory alone, and its certificate not longer than a week, since nobody would hear of its revocation.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_factory::SoftwareKey;
use countersign_identity::Timestamp;
use countersign_identity::signed::{Signer, SigningFailed};
use der::asn1::UintRef;
use der::{Decode, Reader, SliceReader};

use crate::hierarchy::{Hierarchy, IssuingAuthority};
use crate::mint::{self, Issued, MintError};

/// How long the certificate of a time key lasts.
pub const TIME_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest nonce, in bytes.
pub const NONCE_BYTES_MAX: usize = 128;

/// Signs the time.
pub struct TimeSigner {
    key: SoftwareKey,
    issued: Issued,
    header: String,
}

impl std::fmt::Debug for TimeSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TimeSigner")
            .field("certificate", &self.issued.facts().fingerprint)
            .finish_non_exhaustive()
    }
}

impl IssuingAuthority {
    /// A signer of time with a new key, for the platform's hierarchy.
    ///
    /// # Errors
    /// [`MintError::WrongHierarchy`] for any other.
    pub fn time_signer(&self, now: Timestamp) -> Result<TimeSigner, MintError> {
        if self.hierarchy != Hierarchy::Platform {
            return Err(MintError::WrongHierarchy {
                hierarchy: self.hierarchy,
                kind: "time",
            });
        }
        let key = SoftwareKey::generate()?;
        let issued = mint::time(self, &key, now)?;
        let chain: Vec<_> = issued
            .chain()
            .iter()
            .map(|c| format!("\"{}\"", STANDARD.encode(c)))
            .collect();
        let header = format!(
            "{{\"alg\":\"ES256\",\"typ\":\"countersign-time+jws\",\"x5c\":[{}]}}",
            chain.join(",")
        );
        Ok(TimeSigner {
            key,
            issued,
            header: URL_SAFE_NO_PAD.encode(header),
        })
    }
}

impl TimeSigner {
    /// The last moment at which its certificate is valid.
    pub fn not_after(&self) -> Timestamp {
        self.issued.facts().not_after
    }

    /// `{"unix_ms", "accuracy_ms", "nonce"}`, signed with ES256, in compact form. The nonce, at most
    /// [`NONCE_BYTES_MAX`] of `A-Z a-z 0-9 - _`, says that it was signed for this question.
    ///
    /// # Errors
    /// [`SigningFailed`].
    pub fn sign(&self, now: Timestamp, accuracy: Duration, nonce: &str) -> Result<String, SigningFailed> {
        let payload = format!(
            "{{\"unix_ms\":{},\"accuracy_ms\":{},\"nonce\":\"{nonce}\"}}",
            now.unix_ms(),
            accuracy.as_millis()
        );
        let signed = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(payload));
        let signature = self.key.sign(signed.as_bytes())?;
        let fixed = fixed(&signature).map_err(|e| SigningFailed(e.to_string()))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fixed)))
    }
}

/// Whether a nonce needs no escape in JSON and is not too long.
pub fn is_nonce(text: &str) -> bool {
    text.len() <= NONCE_BYTES_MAX
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// An ECDSA signature as two numbers of 32 octets (RFC 7518 section 3.4), from the DER that X.509 has.
fn fixed(signature: &[u8]) -> der::Result<[u8; 64]> {
    let mut out = [0; 64];
    let mut reader = SliceReader::new(signature)?;
    reader.sequence(|r| {
        for half in out.chunks_exact_mut(32) {
            let number = UintRef::decode(r)?;
            let bytes = number.as_bytes();
            let start = half
                .len()
                .checked_sub(bytes.len())
                .ok_or(der::Error::from(der::ErrorKind::Overflow))?;
            half[start..].copy_from_slice(bytes);
        }
        Ok::<_, der::Error>(())
    })?;
    reader.finish()?;
    Ok(out)
}
