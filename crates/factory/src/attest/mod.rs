//! TPM attestation, the platform's half: that a key was made in a TPM, and cannot leave it. No I/O, no libtss2.
//!
//! ```text
//! device                                               platform
//!   EK public and certificate, AK public        ──▶     1. is the EK one, and who vouches for it? ([`endorsed`])
//!                                               ◀──     2. [`Challenge`]: only the EK's TPM opens it, only for that AK
//!   secret, key public, TPM2_Certify by the AK  ──▶     3. the secret is right: AK and EK are in one TPM
//!                                                       4. [`check`]: that TPM says how the key is held
//! ```
//!
//! 1. [`EndorsementKey`], [`AttestationKey`], [`HeldKey`]: what each kind of key must be
//! 2. [`Challenge`]; 3. [`check`]; 4. [`Refusal`]: each reason with its code and cure
//! 5. [`messages`]: what goes over the wire, for both halves

mod challenge;
pub mod messages;
mod public;
mod refusal;
mod statement;
mod wire;

pub use challenge::{Challenge, SECRET_BYTES};
pub use public::{AttestationKey, Attributes, EndorsementKey, HeldKey};
pub use refusal::{Refusal, Refused};
pub use statement::{NONCE_BYTES, check, qualifying_data};

use countersign_identity::Fingerprint;
use countersign_identity::chain::{ChainDemands, ChainFault, Purpose};
use countersign_identity::{AnchorIndex, AuthorityId, CertificateFacts, TenantId, Timestamp, VerifiedChain};
use rustls_pki_types::CertificateDer;

/// The fingerprint of the endorsement key that a certificate is of: as [`EndorsementKey::fingerprint`].
///
/// # Errors
/// [`Refusal::Malformed`].
pub fn certified_key(certificate: &[u8]) -> Result<Fingerprint, Refused> {
    public::key_in(certificate).map(|info| Fingerprint::of(&info))
}

/// The fingerprint of an endorsement key that is given as a SubjectPublicKeyInfo (DER): as [`EndorsementKey::fingerprint`].
///
/// # Errors
/// [`Refusal::Malformed`]; [`Refusal::EkUnfit`] if no TPM's key is written so.
pub fn public_key(info: &[u8]) -> Result<Fingerprint, Refused> {
    public::plain_info(info).map(|info| Fingerprint::of(&info))
}

/// Whether an endorsement authority that a tenant trusts vouches for a key: which one. `certificates`: the key's own first,
/// then what lies above it, as far as the device has it.
///
/// # Errors
/// [`Refusal::EkCertificate`] if the certificate is another key's; [`Refusal::EkUnknown`] if no path leads to one that is
/// trusted, with the reason.
pub fn endorsed(
    key: &EndorsementKey,
    certificates: &[Vec<u8>],
    trusted: &AnchorIndex,
    tenant: &TenantId,
    now: Timestamp,
) -> Result<AuthorityId, Refused> {
    let Some((own, above)) = certificates.split_first() else {
        return Err(Refusal::EkUnknown.because("it has no certificate, and is not registered"));
    };
    if public::key_in(own)? != key.info() {
        return Err(Refusal::EkCertificate.into());
    }
    let unknown = |fault: ChainFault| Refusal::EkUnknown.because(fault.to_string());
    let facts = CertificateFacts::parse(own).map_err(|e| unknown(ChainFault::Malformed(e.to_string())))?;
    let demands = ChainDemands {
        purpose: Purpose::Endorsement,
        ..ChainDemands::default()
    };
    let above: Vec<_> = above
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let own = CertificateDer::from(own.as_slice());
    VerifiedChain::verify_for(&demands, trusted, Some(tenant), facts, &own, &above, now)
        .map(|chain| chain.anchor().authority.clone())
        .map_err(unknown)
}
