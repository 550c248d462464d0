//! What a leaf must be by itself, whoever issued it.

use super::{ChainFault, Purpose};
use crate::certificate::CertificateFacts;
use crate::raw::RawCertificate;

/// Whether a certificate may be registered by its fingerprint: self-signed, for clients, with a strong key.
///
/// # Errors
/// [`ChainFault`].
pub fn check_pinned(leaf: &CertificateFacts, leaf_der: &[u8]) -> Result<(), ChainFault> {
    let raw = RawCertificate::parse(leaf_der).map_err(|e| ChainFault::Malformed(e.to_string()))?;
    let key = raw.key;
    if !leaf.is_self_issued() || raw.signed.verify(&key).is_err() {
        return Err(ChainFault::UnknownCa {
            issuer: leaf.issuer_text.clone(),
        });
    }
    check_pinned_facts(leaf)
}

pub(super) fn check_pinned_facts(leaf: &CertificateFacts) -> Result<(), ChainFault> {
    if let Some(why) = &leaf.path.fault {
        return Err(ChainFault::Malformed(why.to_string()));
    }
    if !leaf.allows_client_auth() {
        return Err(ChainFault::WrongUsage(Purpose::Client.lacks()));
    }
    check_leaf(leaf)
}

/// An endorsement key decrypts; what kind of key it must be, attestation says. A certificate must say that it is of one: by
/// its extKeyUsage, or, as old ones do, by a keyUsage without digitalSignature. Else any certificate of that CA would do.
pub(super) fn check_endorsement(leaf: &CertificateFacts) -> Result<(), ChainFault> {
    let signs_nothing = leaf.key_usage.is_some_and(|u| !u.digital_signature);
    if leaf.extended_key_usage.is_none() && !signs_nothing {
        return Err(ChainFault::WrongUsage(Purpose::Endorsement.lacks()));
    }
    Ok(())
}

pub(super) fn check_leaf(leaf: &CertificateFacts) -> Result<(), ChainFault> {
    if leaf.key_usage.is_some_and(|u| !u.digital_signature) {
        return Err(ChainFault::WrongUsage("keyUsage lacks digitalSignature"));
    }
    if !leaf.key_algorithm.is_strong_enough() {
        return Err(ChainFault::WeakKey);
    }
    Ok(())
}
