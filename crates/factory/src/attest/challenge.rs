//! The challenge: a secret that only the TPM of one endorsement key opens, and only for one attestation key
//! (TPM2_MakeCredential in software; TPM 2.0 part 1, section "Credential Protection" and annexes B.10.4 and C.6.4).

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P384, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::{digest, hmac};
use zeroize::Zeroizing;

use super::public::{AttestationKey, Curve, EndorsementKey, Hash, Key, point};
use super::refusal::{Refusal, Refused};
use super::wire::put_sized;

/// The length of a challenge's secret, in bytes: at most that of the shortest hash.
pub const SECRET_BYTES: usize = 32;

/// What goes to the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Contents of a TPM2B_ID_OBJECT.
    pub credential: Vec<u8>,
    /// Contents of a TPM2B_ENCRYPTED_SECRET.
    pub secret: Vec<u8>,
}

impl Challenge {
    /// For `secret`, which only a TPM that holds both keys can tell.
    ///
    /// # Errors
    /// [`Refusal::EkUnfit`] if nothing can be encrypted for the endorsement key.
    pub fn new(
        endorsement: &EndorsementKey,
        attestation: &AttestationKey,
        secret: &[u8; SECRET_BYTES],
    ) -> Result<Self, Refused> {
        let hash = endorsement.area.hash;
        let unfit = |what: &str| Refusal::EkUnfit.because(what);
        let (seed, encrypted) =
            seed_for(endorsement).ok_or_else(|| unfit("nothing can be encrypted for it"))?;
        let name = attestation.area.name();
        let key_bits = u32::from(endorsement.symmetric_bits);
        let mut inner = Zeroizing::new(Vec::with_capacity(SECRET_BYTES + 2));
        put_sized(&mut inner, secret);
        let key = kdf_a(hash, &seed, "STORAGE", name, key_bits);
        encrypt(&key, &mut inner).ok_or_else(|| unfit("its cipher does not work"))?;
        let hash_bits = u32::try_from(hash.digest().output_len() * 8).unwrap_or_default();
        let key = kdf_a(hash, &seed, "INTEGRITY", &[], hash_bits);
        let mut mac = hmac::Context::with_key(&hmac::Key::new(of_hmac(hash), &key));
        mac.update(&inner);
        mac.update(name);
        let mut credential = Vec::new();
        put_sized(&mut credential, mac.sign().as_ref());
        credential.extend_from_slice(&inner);
        Ok(Self {
            credential,
            secret: encrypted,
        })
    }
}

/// A fresh seed, and what its owner finds it by.
fn seed_for(endorsement: &EndorsementKey) -> Option<(Zeroizing<Vec<u8>>, Vec<u8>)> {
    const LABEL: &[u8] = b"IDENTITY\0";
    let hash = endorsement.area.hash;
    match &endorsement.area.key {
        Key::Rsa { .. } => {
            let mut seed = Zeroizing::new(vec![0; hash.digest().output_len()]);
            SystemRandom::new().fill(&mut seed).ok()?;
            let key =
                OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(endorsement.info()).ok()?).ok()?;
            let oaep = match hash {
                Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
                Hash::Sha384 => &OAEP_SHA384_MGF1SHA384,
            };
            let mut room = vec![0; key.ciphertext_size()];
            let encrypted = key.encrypt(oaep, &seed, &mut room, Some(LABEL)).ok()?.to_vec();
            Some((seed, encrypted))
        }
        Key::Ecc { curve, x, y } => {
            let algorithm = match curve {
                Curve::P256 => &ECDH_P256,
                Curve::P384 => &ECDH_P384,
            };
            let own = EphemeralPrivateKey::generate(algorithm, &SystemRandom::new()).ok()?;
            let own_public = own.compute_public_key().ok()?;
            // 04, x, y.
            let (own_x, own_y) = own_public.as_ref().get(1..)?.split_at_checked(curve.bytes())?;
            let (own_x, own_y) = (own_x.to_vec(), own_y.to_vec());
            let peer = UnparsedPublicKey::new(algorithm, point(x, y));
            let seed =
                agree_ephemeral(own, peer, (), |shared| Ok(kdf_e(hash, shared, LABEL, &own_x, x))).ok()?;
            let mut encrypted = Vec::new();
            put_sized(&mut encrypted, &own_x);
            put_sized(&mut encrypted, &own_y);
            Some((seed, encrypted))
        }
    }
}

fn of_hmac(hash: Hash) -> hmac::Algorithm {
    match hash {
        Hash::Sha256 => hmac::HMAC_SHA256,
        Hash::Sha384 => hmac::HMAC_SHA384,
    }
}

/// KDFa (TPM 2.0 part 1, section "KDFa"), of at most one block: no key here is longer than the hash.
fn kdf_a(hash: Hash, seed: &[u8], label: &str, context: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(of_hmac(hash), seed));
    mac.update(&1_u32.to_be_bytes());
    mac.update(label.as_bytes());
    mac.update(&[0]);
    mac.update(context);
    mac.update(&bits.to_be_bytes());
    let mut key = Zeroizing::new(mac.sign().as_ref().to_vec());
    key.truncate(usize::try_from(bits / 8).unwrap_or_default());
    key
}

/// KDFe (TPM 2.0 part 1, section "KDFe for ECDH"), of one block. The label has its zero.
fn kdf_e(hash: Hash, shared: &[u8], label: &[u8], ours: &[u8], theirs: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut digest = digest::Context::new(hash.digest());
    digest.update(&1_u32.to_be_bytes());
    digest.update(shared);
    digest.update(label);
    digest.update(ours);
    digest.update(theirs);
    Zeroizing::new(digest.finish().as_ref().to_vec())
}

/// AES in CFB mode from an IV of zeros: the key is used once.
fn encrypt(key: &[u8], content: &mut [u8]) -> Option<()> {
    let algorithm = match key.len() {
        16 => &AES_128,
        32 => &AES_256,
        _ => return None,
    };
    let key = EncryptingKey::cfb128(UnboundCipherKey::new(algorithm, key).ok()?).ok()?;
    let iv = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    key.less_safe_encrypt(content, iv).ok()?;
    Some(())
}
