//! A private key that only a passphrase opens: EncryptedPrivateKeyInfo (RFC 5958 section 3) by PBES2 (RFC 8018 section
//! 6.2), as OpenSSL reads and writes it.

use std::path::Path;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use der::{Decode, Encode};
use pkcs5::EncryptionScheme;
use pkcs5::pbes2::{Kdf, Parameters};
use pkcs8::EncryptedPrivateKeyInfoRef;
use zeroize::Zeroizing;

use super::KeyStoreError;

const LABEL: &str = "ENCRYPTED PRIVATE KEY";
/// scrypt's cost: N = 2^14, r = 8 (16 MiB, the most that OpenSSL takes without being told), five lanes: some 0.2 s.
const LOG_N: u8 = 14;
const BLOCK: u32 = 8;
const LANES: u32 = 5;
/// The most that a key's file may ask for, so that a planted one cannot exhaust the machine: 128 · N · r · p bytes.
const SCRYPT_WORK_MAX: u64 = 1 << 30;
const ITERATIONS_MAX: u32 = 10_000_000;

/// Encrypts a key in PKCS#8 DER by scrypt and AES-256-CBC: PEM.
///
/// # Errors
/// [`KeyStoreError::Encryption`].
pub fn encrypt(pkcs8: &[u8], passphrase: &[u8]) -> Result<String, KeyStoreError> {
    let failed = |what: &dyn std::fmt::Display| KeyStoreError::Encryption(what.to_string());
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    let random = SystemRandom::new();
    random
        .fill(&mut salt)
        .and_then(|()| random.fill(&mut iv))
        .map_err(|_| failed(&"the system's random source failed"))?;
    let cost = pkcs5::scrypt::Params::new(LOG_N, BLOCK, LANES).map_err(|e| failed(&e))?;
    let scheme = Parameters::generate_scrypt_aes256cbc(cost, &salt, iv).map_err(|e| failed(&e))?;
    let data = scheme.encrypt(passphrase, pkcs8).map_err(|e| failed(&e))?;
    let info = EncryptedPrivateKeyInfoRef {
        encryption_algorithm: scheme.into(),
        encrypted_data: der::asn1::OctetStringRef::new(&data).map_err(|e| failed(&e))?,
    };
    let der = info.to_der().map_err(|e| failed(&e))?;
    Ok(countersign_factory::request::pem(LABEL, &der))
}

/// Opens a key: PKCS#8 DER.
///
/// # Errors
/// [`KeyStoreError::Unreadable`] or [`KeyStoreError::WrongPassphrase`].
pub fn decrypt(pem: &[u8], passphrase: &[u8], path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyStoreError> {
    let unreadable = |what: String| KeyStoreError::Unreadable {
        path: path.display().to_string(),
        what,
    };
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
        Ok(_) | Err(pkcs5::Error::DecryptFailed) => {
            Err(KeyStoreError::WrongPassphrase(path.display().to_string()))
        }
        Err(e) => Err(unreadable(e.to_string())),
    }
}
