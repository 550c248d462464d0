//! Where the device's keys are: in a file, or where they never leave: a token (PKCS#11).
//!
//! Whatever holds it, a key is a [`Signer`]: TLS and certificate requests ask it to sign, and see no more of it. What lies in
//! `device.key` is either the key itself, in PEM, or which key it is: a PKCS#11 URI (RFC 7512).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use countersign_factory::SoftwareKey;
use countersign_factory::key::KeyFault;
use countersign_identity::signed::{Signer, SigningFailed};
use countersign_keystore_pkcs11::{TokenError, TokenKey, TokenUri};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{Error as TlsError, OtherError, SignatureAlgorithm, SignatureScheme};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Where new keys are made. In `device.json` and on the command line: `file`, or a PKCS#11 URI.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum KeyStore {
    /// In the identity folder, readable by its owner only.
    #[default]
    File,
    /// In a token. The URI names the first key; the key of each renewal has the number of its slot after that name.
    Token(Box<TokenUri>),
}

/// Why a key cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreFault {
    /// What lies in `device.key` is no key, and names none.
    #[error("it is no private key in PEM, and no pkcs11: URI ({0}); hint: put the key back, or enrol anew")]
    Malformed(String),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A key in software.
    #[error(transparent)]
    Software(#[from] KeyFault),
    /// TLS has no use for it.
    #[error("TLS cannot use it: {0}; hint: use P-256, P-384, Ed25519 or RSA")]
    Unusable(String),
}

impl FromStr for KeyStore {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        match text {
            "file" => Ok(Self::File),
            uri => Ok(Self::Token(Box::new(uri.parse()?))),
        }
    }
}

impl TryFrom<String> for KeyStore {
    type Error = TokenError;

    fn try_from(text: String) -> Result<Self, TokenError> {
        text.parse()
    }
}

impl From<KeyStore> for String {
    fn from(store: KeyStore) -> Self {
        store.to_string()
    }
}

impl fmt::Display for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Token(uri) => write!(f, "{uri}"),
        }
    }
}

impl KeyStore {
    /// Whether keys are made in the folder itself.
    pub fn is_file(&self) -> bool {
        *self == Self::File
    }

    /// Makes a key. What of it belongs into `device.key`. In a token, a key that is there under that name already is
    /// taken: an attempt that was cut off before it was written down made it, or the token's maker did.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn make(&self, slot: Option<u64>) -> Result<Zeroizing<Vec<u8>>, KeyStoreFault> {
        match self {
            Self::File => {
                let key = SoftwareKey::generate()?;
                Ok(Zeroizing::new(key.to_pem().as_bytes().to_vec()))
            }
            Self::Token(first) => {
                let suffix = slot.map(|n| format!("-{n}")).unwrap_or_default();
                let uri = TokenUri::clone(first).with_suffix(&suffix)?;
                if TokenKey::generate(uri.clone())?.is_none() {
                    TokenKey::open(uri.clone())?;
                }
                Ok(Zeroizing::new(format!("{uri}\n").into_bytes()))
            }
        }
    }
}

/// A key of the device: itself, or where it is.
pub enum DeviceKey {
    /// In software.
    Software(PrivateKeyDer<'static>),
    /// In a token.
    Token(TokenUri),
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Software(_) => f.write_str("Software"),
            Self::Token(uri) => write!(f, "Token({uri})"),
        }
    }
}

impl DeviceKey {
    /// Reads what a key file holds. A token is not asked yet.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub fn read(text: &[u8]) -> Result<Self, KeyStoreFault> {
        if let Some(uri) = std::str::from_utf8(text).ok().map(str::trim)
            && uri.starts_with("pkcs11:")
        {
            return Ok(Self::Token(uri.parse()?));
        }
        PrivateKeyDer::from_pem_slice(text)
            .map(Self::Software)
            .map_err(|e| KeyStoreFault::Malformed(e.to_string()))
    }

    /// Where it is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Software(_) => "in a file".into(),
            Self::Token(uri) => format!("{} in the token {}", uri.key_text(), uri.token_text()),
        }
    }

    /// It as what signs requests; `None` for a key in software of another kind than we make.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn signer(&self) -> Result<Option<Arc<dyn Signer>>, KeyStoreFault> {
        Ok(match self {
            Self::Software(PrivateKeyDer::Pkcs8(der)) => SoftwareKey::from_pkcs8(der.secret_pkcs8_der())
                .ok()
                .map(|key| Arc::new(key) as Arc<dyn Signer>),
            Self::Software(_) => None,
            Self::Token(uri) => Some(Arc::new(TokenKey::open(uri.clone())?)),
        })
    }

    /// It as what TLS signs with, under a certificate.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn certified(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<Arc<CertifiedKey>, KeyStoreFault> {
        let key: Arc<dyn SigningKey> = match self {
            Self::Software(der) => rustls::crypto::aws_lc_rs::sign::any_supported_type(der)
                .map_err(|e| KeyStoreFault::Unusable(e.to_string()))?,
            Self::Token(uri) => Arc::new(TlsKey(Arc::new(TokenKey::open(uri.clone())?))),
        };
        let certified = CertifiedKey::new(chain.to_vec(), key);
        match certified.keys_match() {
            // A key of this kind does not tell its public half to TLS; it was held against the certificate when that came.
            Ok(()) | Err(TlsError::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Arc::new(certified))
            }
            Err(e) => Err(KeyStoreFault::Unusable(e.to_string())),
        }
    }

    /// Removes it from where it is, if that is not the key file. Whether there was one.
    ///
    /// # Errors
    /// [`KeyStoreFault`].
    pub(crate) fn destroy(&self) -> Result<bool, KeyStoreFault> {
        match self {
            Self::Software(_) => Ok(false),
            Self::Token(uri) => Ok(TokenKey::destroy(uri.clone())?),
        }
    }
}

impl Clone for DeviceKey {
    fn clone(&self) -> Self {
        match self {
            Self::Software(der) => Self::Software(der.clone_key()),
            Self::Token(uri) => Self::Token(uri.clone()),
        }
    }
}

impl From<PrivateKeyDer<'static>> for DeviceKey {
    fn from(key: PrivateKeyDer<'static>) -> Self {
        Self::Software(key)
    }
}

/// A [`Signer`] as TLS wants it.
struct TlsKey(Arc<dyn Signer>);

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey")
    }
}

impl TlsKey {
    fn scheme(&self) -> Option<SignatureScheme> {
        // RFC 8446 section 4.2.3: in TLS 1.3 the curve is the hash's.
        match self.0.algorithm().oid.to_string().as_str() {
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
            key: self.0.clone(),
            scheme,
        }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }

    fn public_key(&self) -> Option<rustls::pki_types::SubjectPublicKeyInfoDer<'_>> {
        None
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
