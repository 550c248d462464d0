//! What a TPM says, made by hand, so that each part of it can be made wrong: a program that claims to be one.
//!
//! It opens challenges as a TPM would (TPM 2.0 part 1, annex C.6.4), written apart from what it is held against.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
};
use countersign_factory::SoftwareKey;
use countersign_identity::signed::Signer;

/// Bits of TPMA_OBJECT: bound to its TPM; for an attestation key; for a device's key; for an endorsement key.
const BOUND: u32 = 1 << 1 | 1 << 4 | 1 << 5;
/// An attestation key's attributes.
pub const AK: u32 = BOUND | 1 << 16 | 1 << 18;
/// A device key's attributes.
pub const KEY: u32 = BOUND | 1 << 18;
/// An endorsement key's attributes.
pub const EK: u32 = BOUND | 1 << 16 | 1 << 17;
/// The attribute `restricted`.
pub const RESTRICTED: u32 = 1 << 16;
/// The attribute `fixedTPM`.
pub const FIXED_TPM: u32 = 1 << 1;
/// The attribute `sensitiveDataOrigin`.
pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
/// The attribute `decrypt`.
pub const DECRYPT: u32 = 1 << 17;

/// An endorsement key and an attestation key in software.
pub struct ForgedTpm {
    endorsement: PrivateKey,
    attestation: EcdsaKeyPair,
    /// What the attestation key says that it is.
    pub ak_attributes: u32,
}

/// A statement before it is written.
#[derive(Debug, Clone)]
pub struct Statement {
    /// TPM_GENERATED_VALUE of a right one.
    pub magic: u32,
    /// TPM_ST_ATTEST_CERTIFY of a right one.
    pub kind: u16,
    /// Its extra data.
    pub extra: Vec<u8>,
    /// The name of what is certified.
    pub name: Vec<u8>,
}

impl Statement {
    /// A right one of a public area.
    pub fn of(public: &[u8], extra: &[u8]) -> Self {
        Self {
            magic: 0xff54_4347,
            kind: 0x8017,
            extra: extra.to_vec(),
            name: name(public),
        }
    }

    /// TPMS_ATTEST.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = self.magic.to_be_bytes().to_vec();
        all.extend(self.kind.to_be_bytes());
        all.extend(sized(&[0, 11]));
        all.extend(sized(&self.extra));
        // Clock, reset count, restart count, safe; firmware version.
        all.extend([0; 8 + 4 + 4 + 1 + 8]);
        all.extend(sized(&self.name));
        all.extend(sized(&[0, 11]));
        all
    }
}

/// TPM2B.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short one");
    [&length.to_be_bytes(), bytes].concat()
}

/// The name of a public area.
pub fn name(public: &[u8]) -> Vec<u8> {
    [&[0, 11], digest(&SHA256, public).as_ref()].concat()
}

/// TPMT_PUBLIC of a P-256 key: `point` is uncompressed.
pub fn public(attributes: u32, symmetric: &[u8], scheme: &[u8], point: &[u8]) -> Vec<u8> {
    let mut all = vec![0, 0x23, 0, 0x0b];
    all.extend(attributes.to_be_bytes());
    all.extend(sized(&[]));
    all.extend(symmetric);
    all.extend(scheme);
    all.extend([0, 3, 0, 0x10]);
    all.extend(sized(&point[1..33]));
    all.extend(sized(&point[33..65]));
    all
}

const NULL: [u8; 2] = [0, 0x10];
const AES_128_CFB: [u8; 6] = [0, 6, 0, 128, 0, 0x43];
const ECDSA_SHA256: [u8; 4] = [0, 0x18, 0, 0x0b];

/// The public area that says of a software key that it is in a TPM.
pub fn public_of(key: &SoftwareKey, attributes: u32) -> Vec<u8> {
    let point = key.public_key().subject_public_key.raw_bytes().to_vec();
    public(attributes, &NULL, &NULL, &point)
}

impl Default for ForgedTpm {
    fn default() -> Self {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        Self {
            endorsement: PrivateKey::generate(&ECDH_P256).expect("a key"),
            attestation: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.as_ref())
                .expect("a key"),
            ak_attributes: AK,
        }
    }
}

impl ForgedTpm {
    fn endorsement_point(&self) -> Vec<u8> {
        let point = self.endorsement.compute_public_key().expect("a point");
        point.as_ref().to_vec()
    }

    /// TPMT_PUBLIC of the endorsement key.
    pub fn endorsement_public(&self) -> Vec<u8> {
        public(EK, &AES_128_CFB, &NULL, &self.endorsement_point())
    }

    /// SubjectPublicKeyInfo of the endorsement key, DER.
    pub fn endorsement_info(&self) -> Vec<u8> {
        const HEAD: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
            0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        [HEAD.as_slice(), &self.endorsement_point()].concat()
    }

    /// TPMT_PUBLIC of the attestation key.
    pub fn attestation_public(&self) -> Vec<u8> {
        let point = self.attestation.public_key().as_ref();
        public(self.ak_attributes, &NULL, &ECDSA_SHA256, point)
    }

    /// TPM2_ActivateCredential: the secret; `None` if the challenge is for another endorsement or attestation key.
    pub fn activate(&self, credential: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
        let (x, y) = (secret.get(2..34)?, secret.get(36..68)?);
        let peer = UnparsedPublicKey::new(&ECDH_P256, [&[4], x, y].concat());
        let own = self.endorsement_point();
        let seed = agree(&self.endorsement, peer, (), |z| {
            let kdf = [&1_u32.to_be_bytes(), z, b"IDENTITY\0", x, &own[1..33]].concat();
            Ok(digest(&SHA256, &kdf).as_ref().to_vec())
        })
        .ok()?;
        let name = name(&self.attestation_public());
        let kdf_a = |label: &[u8], context: &[u8], bits: u32| {
            let input = [&1_u32.to_be_bytes(), label, &[0], context, &bits.to_be_bytes()].concat();
            sign(&Key::new(HMAC_SHA256, &seed), &input).as_ref()[..bits as usize / 8].to_vec()
        };
        let (mac, encrypted) = (credential.get(2..34)?, credential.get(34..)?);
        let expected = sign(
            &Key::new(HMAC_SHA256, &kdf_a(b"INTEGRITY", b"", 256)),
            &[encrypted, &name].concat(),
        );
        if expected.as_ref() != mac {
            return None;
        }
        let key = UnboundCipherKey::new(&AES_128, &kdf_a(b"STORAGE", &name, 128)).ok()?;
        let mut plain = encrypted.to_vec();
        DecryptingKey::cfb128(key)
            .ok()?
            .decrypt(&mut plain, DecryptionContext::Iv128(FixedLength::from([0; 16])))
            .ok()?;
        plain.get(2..).map(<[u8]>::to_vec)
    }

    /// TPMT_SIGNATURE of a statement by the attestation key.
    pub fn signature(&self, statement: &[u8]) -> Vec<u8> {
        let signed = self
            .attestation
            .sign(&SystemRandom::new(), statement)
            .expect("a signature");
        let signed = signed.as_ref();
        [&ECDSA_SHA256[..], &sized(&signed[..32]), &sized(&signed[32..])].concat()
    }
}
