//! A key that is held elsewhere, in TLS.

use std::fmt;
use std::sync::Arc;

use countersign_identity::signed::{Signer, SigningFailed};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::sign::SigningKey;
use rustls::{Error as TlsError, OtherError, SignatureAlgorithm, SignatureScheme};

/// A [`Signer`] as TLS wants it.
pub(super) struct TlsKey {
    key: Arc<dyn Signer>,
    /// DER of its public half, which TLS holds against the certificate.
    info: Option<Vec<u8>>,
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey")
    }
}

impl TlsKey {
    pub(super) fn of(key: Arc<dyn Signer>) -> Self {
        use der::Encode;
        let info = key.public_key().to_der().ok();
        Self { key, info }
    }

    fn scheme(&self) -> Option<SignatureScheme> {
        // RFC 8446 section 4.2.3: in TLS 1.3 the curve is the hash's.
        match self.key.algorithm().oid.to_string().as_str() {
            "1.2.840.10045.4.3.2" => Some(SignatureScheme::ECDSA_NISTP256_SHA256),
            "1.2.840.10045.4.3.3" => Some(SignatureScheme::ECDSA_NISTP384_SHA384),
            _ => None,
        }
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let scheme = self.scheme().filter(|s| offered.contains(s))?;
        Some(Box::new(TlsSigner {
            key: self.key.clone(),
            scheme,
        }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.info.as_deref().map(SubjectPublicKeyInfoDer::from)
    }
}

struct TlsSigner {
    key: Arc<dyn Signer>,
    scheme: SignatureScheme,
}

impl fmt::Debug for TlsSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsSigner({:?})", self.scheme)
    }
}

impl rustls::sign::Signer for TlsSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        self.key
            .sign(message)
            .map_err(|e: SigningFailed| TlsError::Other(OtherError(Arc::new(e))))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
