//! A key with its certificates as PKCS#12 (RFC 7292): the private key under PBES2 (PBKDF2 with HMAC-SHA-256,
//! AES-256-CBC), the whole under an HMAC-SHA-256, as OpenSSL 3 writes it. Certificates are public and stay readable.
//!
//! Written here because it is a page of DER over the cryptography that is here already, and nothing of it is ever read
//! back by us: the one test that counts is that OpenSSL reads it.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::{digest, hmac, pbkdf2};
use const_oid::ObjectIdentifier;
use zeroize::Zeroizing;

use crate::key::KeyFault;
use crate::tlv::{oid, sequence, tlv};

/// Rounds of the key derivation. OpenSSL takes 2048; a line makes thousands of files, each in a few milliseconds.
const ITERATIONS: u32 = 10_000;
/// The shortest password that is taken, in characters.
pub const PASSWORD_CHARACTERS_MIN: usize = 8;
/// The longest.
pub const PASSWORD_CHARACTERS_MAX: usize = 256;

const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SHROUDED_KEY_BAG: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.2");
const CERT_BAG: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.12.10.1.3");
const X509_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.22.1");
const FRIENDLY_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.20");
const LOCAL_KEY_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.21");
const PBES2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.5.13");
const PBKDF2: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.5.12");
const HMAC_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.2.9");
const AES_256_CBC: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.42");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// Why no file was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Pkcs12Fault {
    /// The password is too short, too long, or not text that every reader spells alike.
    #[error(
        "the password must have {PASSWORD_CHARACTERS_MIN} to {PASSWORD_CHARACTERS_MAX} printable ASCII characters; hint: openssl rand -base64 24"
    )]
    Password,
    /// The random source or the library failed.
    #[error(transparent)]
    Key(#[from] KeyFault),
}

fn octets(bytes: &[u8]) -> Vec<u8> {
    tlv(0x04, &[bytes])
}

/// An INTEGER that is not negative.
fn integer(n: u32) -> Vec<u8> {
    let bytes = n.to_be_bytes();
    let first = bytes.iter().position(|b| *b != 0).unwrap_or(3);
    let sign: &[u8] = if bytes[first] & 0x80 != 0 { &[0] } else { &[] };
    tlv(0x02, &[sign, &bytes[first..]])
}

fn explicit(content: &[u8]) -> Vec<u8> {
    tlv(0xa0, &[content])
}

fn bmp(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn random<const N: usize>() -> Result<[u8; N], KeyFault> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyFault::Failed)?;
    Ok(bytes)
}

/// Checks a password.
///
/// # Errors
/// [`Pkcs12Fault::Password`].
pub fn check_password(password: &str) -> Result<(), Pkcs12Fault> {
    // Beyond ASCII, readers differ in which bytes they derive a key from.
    let fits = password.chars().all(|c| (' '..='~').contains(&c))
        && (PASSWORD_CHARACTERS_MIN..=PASSWORD_CHARACTERS_MAX).contains(&password.len());
    if fits { Ok(()) } else { Err(Pkcs12Fault::Password) }
}

/// Makes a file: a private key (PKCS#8 DER) and its certificates (DER, the key's own first), under a password.
///
/// # Errors
/// [`Pkcs12Fault`].
pub fn encode(
    name: &str,
    key: &[u8],
    certificates: &[Vec<u8>],
    password: &str,
) -> Result<Zeroizing<Vec<u8>>, Pkcs12Fault> {
    check_password(password)?;
    let id = certificates
        .first()
        .map(|c| digest::digest(&digest::SHA256, c))
        .map(|d| d.as_ref()[..20].to_vec())
        .unwrap_or_default();
    let attribute = |kind, value: Vec<u8>| sequence(&[&oid(kind), &tlv(0x31, &[&value])]);
    // A SET OF is in order of its encodings: the longer friendlyName after localKeyId, whatever their length says.
    let mut attributes = [
        attribute(LOCAL_KEY_ID, octets(&id)),
        attribute(FRIENDLY_NAME, tlv(0x1e, &[&bmp(name)])),
    ];
    attributes.sort();
    let attributes = tlv(0x31, &[&attributes[0], &attributes[1]]);
    let mut bags = Vec::new();
    for (n, certificate) in certificates.iter().enumerate() {
        let bag = sequence(&[&oid(X509_CERTIFICATE), &explicit(&octets(certificate))]);
        let of_key: &[u8] = if n == 0 { &attributes } else { &[] };
        bags.extend(sequence(&[&oid(CERT_BAG), &explicit(&bag), of_key]));
    }
    let key_bag = sequence(&[
        &oid(SHROUDED_KEY_BAG),
        &explicit(&encrypted(key, password)?),
        &attributes,
    ]);
    let content = |safe: &[u8]| sequence(&[&oid(DATA), &explicit(&octets(&sequence(&[safe])))]);
    let safe = sequence(&[&content(&bags), &content(&key_bag)]);
    let auth_safe = sequence(&[&oid(DATA), &explicit(&octets(&safe))]);

    let salt = random::<16>()?;
    let mac_key = mac_key(password, &salt);
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &mac_key), &safe);
    let digest_info = sequence(&[&sequence(&[&oid(SHA256), &tlv(0x05, &[])]), &octets(mac.as_ref())]);
    let mac_data = sequence(&[&digest_info, &octets(&salt), &integer(ITERATIONS)]);
    Ok(Zeroizing::new(sequence(&[&integer(3), &auth_safe, &mac_data])))
}

/// EncryptedPrivateKeyInfo (RFC 5958 section 3) under PBES2 (RFC 8018 section 6.2).
fn encrypted(key: &[u8], password: &str) -> Result<Vec<u8>, KeyFault> {
    let salt = random::<16>()?;
    let iv = random::<16>()?;
    let mut derived = Zeroizing::new([0; 32]);
    let rounds = NonZeroU32::new(ITERATIONS).ok_or(KeyFault::Failed)?;
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        rounds,
        &salt,
        password.as_bytes(),
        &mut *derived,
    );
    let cipher = UnboundCipherKey::new(&AES_256, &*derived).map_err(|_| KeyFault::Failed)?;
    let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(cipher).map_err(|_| KeyFault::Failed)?;
    let mut sealed = key.to_vec();
    cipher
        .less_safe_encrypt(&mut sealed, EncryptionContext::Iv128(FixedLength::from(iv)))
        .map_err(|_| KeyFault::Failed)?;
    let derivation = sequence(&[
        &oid(PBKDF2),
        &sequence(&[
            &octets(&salt),
            &integer(ITERATIONS),
            &sequence(&[&oid(HMAC_SHA256), &tlv(0x05, &[])]),
        ]),
    ]);
    let encryption = sequence(&[&oid(AES_256_CBC), &octets(&iv)]);
    let algorithm = sequence(&[&oid(PBES2), &sequence(&[&derivation, &encryption])]);
    Ok(sequence(&[&algorithm, &octets(&sealed)]))
}

/// The key of the MAC: the derivation of RFC 7292 appendix B.2 with SHA-256, for one block of output.
fn mac_key(password: &str, salt: &[u8]) -> Zeroizing<Vec<u8>> {
    const BLOCK: usize = 64;
    /// What the derived bytes are for: a MAC key.
    const PURPOSE: u8 = 3;
    let fill = |bytes: &[u8]| -> Vec<u8> {
        let length = bytes.len().div_ceil(BLOCK) * BLOCK;
        bytes.iter().copied().cycle().take(length).collect()
    };
    let mut text = Zeroizing::new(bmp(password));
    text.extend([0, 0]);
    let password = Zeroizing::new(fill(&text));
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[PURPOSE; BLOCK]);
    context.update(&fill(salt));
    context.update(&password);
    let mut hash = context.finish();
    for _ in 1..ITERATIONS {
        hash = digest::digest(&digest::SHA256, hash.as_ref());
    }
    Zeroizing::new(hash.as_ref().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_der() {
        assert_eq!(integer(0), [2, 1, 0]);
        assert_eq!(integer(127), [2, 1, 127]);
        assert_eq!(integer(128), [2, 2, 0, 128]);
        assert_eq!(integer(10_000), [2, 2, 0x27, 0x10]);
    }

    #[test]
    fn passwords_that_readers_spell_differently_are_refused() {
        for bad in ["", "short", "passwörter", "tab\tulator"] {
            assert_eq!(check_password(bad), Err(Pkcs12Fault::Password), "{bad:?}");
        }
        assert_eq!(check_password("correct horse"), Ok(()));
    }

    #[test]
    fn the_key_is_never_in_the_clear() {
        let file = encode("SN-1", &[0x5a; 100], &[vec![1, 2, 3]], "correct horse").unwrap();
        assert!(!file.windows(8).any(|w| w == [0x5a; 8]));
    }
}
