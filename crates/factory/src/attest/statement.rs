//! The TPM's statement that it holds a key: a TPMS_ATTEST of TPM2_Certify (TPM 2.0 part 2, section "TPMS_ATTEST").

use aws_lc_rs::digest::{Context, SHA256};
use aws_lc_rs::signature as sig;
use countersign_identity::{DeviceId, TenantId};

use super::public::{ALG_ECDSA, ALG_RSASSA, AttestationKey, Curve, Hash, HeldKey, Key, point};
use super::refusal::{Refusal, Refused};
use super::wire::Reader;

/// TPM_GENERATED_VALUE: no restricted key signs what begins with it, unless the TPM made it.
const MAGIC: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_CERTIFY.
const CERTIFY: u16 = 0x8017;

/// The length of a nonce, in bytes.
pub const NONCE_BYTES: usize = 32;

/// What the statement must carry as its extra data: the nonce, bound to the device that it was given out for, so that
/// nobody has one device's TPM speak for another.
pub fn qualifying_data(nonce: &[u8; NONCE_BYTES], tenant: &TenantId, device: &DeviceId) -> [u8; 32] {
    let mut digest = Context::new(&SHA256);
    digest.update(b"countersign attestation 1\n");
    digest.update(nonce);
    digest.update(tenant.as_str().as_bytes());
    digest.update(b"\n");
    digest.update(device.as_str().as_bytes());
    let mut data = [0; 32];
    data.copy_from_slice(digest.finish().as_ref());
    data
}

/// Checks a statement: made by a TPM, signed by the attestation key, for these data, of this key: what it certifies.
///
/// Its clock, its counts of resets and the version of its firmware are not looked at: for an attestation key of the owner's
/// hierarchy the TPM hides them (TPM 2.0 part 1, section "Attestation Data").
///
/// # Errors
/// The first [`Refusal`] of [`Refusal::ALL`] from [`Refusal::Magic`] to [`Refusal::KeyAttributes`]; [`Refusal::Malformed`].
pub fn check(
    attestation: &AttestationKey,
    statement: &[u8],
    signature: &[u8],
    key: &[u8],
    qualifying: &[u8; 32],
) -> Result<HeldKey, Refused> {
    let mut r = Reader::new("the statement", statement)?;
    // Before anything else: only behind this mark does the signature say that a TPM speaks.
    let magic = r.u32()?;
    if magic != MAGIC {
        return Err(Refusal::Magic.because(format!("it begins with {magic:#010x}")));
    }
    let kind = r.u16()?;
    if kind != CERTIFY {
        return Err(Refusal::StatementType.because(format!("it is of type {kind:#06x}")));
    }
    let _qualified_signer = r.sized()?;
    let extra = r.sized()?;
    let _clock_resets_restarts_safe = (r.u64()?, r.u32()?, r.u32()?, r.u8()?);
    let _firmware_version = r.u64()?;
    let name = r.sized()?;
    let _qualified_name = r.sized()?;
    r.end()?;
    if extra != qualifying {
        return Err(Refusal::Nonce.into());
    }
    verify(attestation, statement, signature)?;
    let key = HeldKey::parse(key)?;
    // The name is made of the public area here: what a device calls it means nothing.
    if key.area.name() != name {
        return Err(Refusal::KeyName.into());
    }
    Ok(key)
}

fn verify(attestation: &AttestationKey, statement: &[u8], signature: &[u8]) -> Result<(), Refused> {
    let mut r = Reader::new("the signature", signature)?;
    let (algorithm, hash) = (r.u16()?, r.u16()?);
    let wrong = |what: &str| Err(Refusal::Signature.because(what));
    let hash = match hash {
        0x000b => Hash::Sha256,
        0x000c => Hash::Sha384,
        _ => return wrong("its hash is neither SHA-256 nor SHA-384"),
    };
    let held = match &attestation.area.key {
        Key::Ecc { curve, x, y } if algorithm == ALG_ECDSA => {
            let mut signed = Vec::new();
            for part in [r.sized()?, r.sized()?] {
                let Some(lacking) = curve.bytes().checked_sub(part.len()) else {
                    return wrong("it is too long");
                };
                signed.extend(std::iter::repeat_n(0, lacking));
                signed.extend(part);
            }
            r.end()?;
            let by: &dyn sig::VerificationAlgorithm = match (curve, hash) {
                (Curve::P256, Hash::Sha256) => &sig::ECDSA_P256_SHA256_FIXED,
                (Curve::P384, Hash::Sha384) => &sig::ECDSA_P384_SHA384_FIXED,
                _ => return wrong("its hash is not that of the curve"),
            };
            sig::UnparsedPublicKey::new(by, point(x, y)).verify(statement, &signed)
        }
        Key::Rsa { .. } if algorithm == ALG_RSASSA => {
            let signed = r.sized()?;
            r.end()?;
            let by: &dyn sig::VerificationAlgorithm = match hash {
                Hash::Sha256 => &sig::RSA_PKCS1_2048_8192_SHA256,
                Hash::Sha384 => &sig::RSA_PKCS1_2048_8192_SHA384,
            };
            sig::UnparsedPublicKey::new(by, attestation.area.info()?).verify(statement, signed)
        }
        _ => return wrong("its algorithm is not that of the attestation key"),
    };
    held.map_err(|_| Refusal::Signature.into())
}
