//! A private key that only a passphrase opens: EncryptedPrivateKeyInfo (RFC 5958 section 3) by PBES2 (RFC 8018 section
//! 6.2), as OpenSSL reads and writes it. CA keys and devices' keys are kept so.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use der::{Decode, Encode};
use pkcs5::EncryptionScheme;
use pkcs5::pbes2::{Kdf, Parameters};
use pkcs8::EncryptedPrivateKeyInfoRef;
use serde::{Deserialize, Serialize};
use std::path::Path;
use zeroize::Zeroizing;

const LABEL: &str = "ENCRYPTED PRIVATE KEY";
/// The shortest passphrase that a key is made with, in bytes.
pub const PASSPHRASE_BYTES_MIN: usize = 12;
const CREDENTIAL: &str = "credential:";
/// The most that a key's file may ask for, so that a planted one cannot exhaust the machine: 128 · N · r · p bytes.
const SCRYPT_WORK_MAX: u64 = 1 << 30;
const ITERATIONS_MAX: u32 = 10_000_000;

/// What it costs to try a passphrase: scrypt with N = 2^14, r = 8 (16 MiB, the most that OpenSSL takes without being told).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Five lanes: some 0.2 s. For a CA, whose passphrase a person may have made.
    Ca,
    /// One: some 40 ms. For a device, which opens its key with each connection, by a passphrase that a machine made.
    Device,
}

/// Why a key cannot be encrypted or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncryptedKeyFault {
    /// Not an encrypted key, or encrypted in a way that is not accepted.
    #[error(
        "it is no encrypted private key that can be read: {0}; hint: openssl pkcs8 -topk8 -scrypt makes one"
    )]
    Unreadable(String),
    /// The passphrase is another one.
    #[error(
        "the passphrase does not open it; hint: it must be the very bytes that the key was made with, line end aside"
    )]
    WrongPassphrase,
    /// Encryption failed.
    #[error("it could not be encrypted: {0}")]
    Failed(String),
}

/// Where a passphrase is: a file, or `credential:NAME`, a credential that systemd gives to the service. Never the command line,
/// never the value of an environment variable, both of which others on the machine can see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PassphraseSource(String);

impl TryFrom<String> for PassphraseSource {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PassphraseSource> for String {
    fn from(source: PassphraseSource) -> Self {
        source.0
    }
}

impl std::str::FromStr for PassphraseSource {
    type Err = String;

    /// A path must be absolute: who reads it runs elsewhere than the command that names it.
    fn from_str(text: &str) -> Result<Self, String> {
        let fits = match text.strip_prefix(CREDENTIAL) {
            Some(name) => !name.is_empty() && !name.contains('/') && name != "..",
            None => Path::new(text).is_absolute(),
        };
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} is neither an absolute path nor credential:NAME"
            ))
        }
    }
}

impl PassphraseSource {
    /// The folder that systemd puts a service's credentials in (systemd.exec(5), LoadCredential=).
    pub const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The credential's name, if it is one.
    pub fn credential(&self) -> Option<&str> {
        self.0.strip_prefix(CREDENTIAL)
    }

    /// The passphrase in what a file holds: one line end at its end is not part of it.
    pub fn trim(bytes: &mut Zeroizing<Vec<u8>>) {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
    }
}

/// Encrypts a key in PKCS#8 DER by scrypt and AES-256-CBC: PEM.
///
/// # Errors
/// [`EncryptedKeyFault::Failed`].
pub fn encrypt(pkcs8: &[u8], passphrase: &[u8], cost: Cost) -> Result<String, EncryptedKeyFault> {
    let failed = |what: &dyn std::fmt::Display| EncryptedKeyFault::Failed(what.to_string());
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    let random = SystemRandom::new();
    random
        .fill(&mut salt)
        .and_then(|()| random.fill(&mut iv))
        .map_err(|_| failed(&"the system's random source failed"))?;
    let lanes = match cost {
        Cost::Ca => 5,
        Cost::Device => 1,
    };
    let cost = pkcs5::scrypt::Params::new(14, 8, lanes).map_err(|e| failed(&e))?;
    let scheme = Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(|e| failed(&e))?;
    let data = scheme.encrypt(passphrase, pkcs8).map_err(|e| failed(&e))?;
    let info = EncryptedPrivateKeyInfoRef {
        encryption_algorithm: scheme.into(),
        encrypted_data: der::asn1::OctetStringRef::new(&data).map_err(|e| failed(&e))?,
    };
    let der = info.to_der().map_err(|e| failed(&e))?;
    Ok(crate::request::pem(LABEL, &der))
}

/// Whether a text is an encrypted key: by its first line, so that a damaged one is not taken for anything else.
pub fn is_encrypted(pem: &str) -> bool {
    pem.lines()
        .any(|line| line.trim_end() == format!("-----BEGIN {LABEL}-----"))
}

/// Opens a key: PKCS#8 DER.
///
/// # Errors
/// [`EncryptedKeyFault::Unreadable`] or [`EncryptedKeyFault::WrongPassphrase`].
pub fn decrypt(pem: &[u8], passphrase: &[u8]) -> Result<Zeroizing<Vec<u8>>, EncryptedKeyFault> {
    let unreadable = EncryptedKeyFault::Unreadable;
    let (label, der) = der::pem::decode_vec(pem).map_err(|e| unreadable(e.to_string()))?;
    if label != LABEL {
        return Err(unreadable(format!("it is a {label}")));
    }
    let info = EncryptedPrivateKeyInfoRef::from_der(&der).map_err(|e| unreadable(e.to_string()))?;
    let EncryptionScheme::Pbes2(scheme) = &info.encryption_algorithm else {
        return Err(unreadable("it is not encrypted by PBES2".into()));
    };
    match &scheme.kdf {
        Kdf::Scrypt(s) => {
            let lanes = u64::from(s.block_size) * u64::from(s.parallelization);
            if s.cost_parameter.saturating_mul(128 * lanes) > SCRYPT_WORK_MAX {
                return Err(unreadable("its scrypt parameters ask for too much".into()));
            }
        }
        Kdf::Pbkdf2(p) if p.iteration_count > ITERATIONS_MAX => {
            return Err(unreadable("its PBKDF2 iterations ask for too much".into()));
        }
        _ => {}
    }
    let opened = info
        .encryption_algorithm
        .decrypt(passphrase, info.encrypted_data.as_bytes());
    match opened {
        // By CBC a wrong passphrase may, once in 256, leave padding that looks right: then it is no PKCS#8.
        Ok(key) if key.first() == Some(&0x30) => Ok(Zeroizing::new(key)),
        Ok(_) | Err(pkcs5::Error::DecryptFailed) => Err(EncryptedKeyFault::WrongPassphrase),
        Err(e) => Err(unreadable(e.to_string())),
    }
}
