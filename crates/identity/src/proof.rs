//! Proof that whoever registers a CA holds its key: a certificate that the CA issues for a code of ours.
//!
//! Without it a tenant could register a competitor's CA, claim its devices at first contact, or squat its name.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};

use crate::certificate::CertificateFacts;
use crate::signed::{SignatureFault, Signed, key_of};
use crate::timestamp::Timestamp;

/// How long a code may be used.
pub const CODE_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Why a proof does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofFault {
    /// Not a certificate.
    #[error("the proof is no certificate: {0}")]
    Malformed(String),
    /// Issued by somebody else.
    #[error("the proof was issued by {issuer:?}, the CA's subject is {subject:?}")]
    Issuer {
        /// The proof's issuer.
        issuer: String,
        /// The CA's subject.
        subject: String,
    },
    /// Its signature is not the CA's.
    #[error("the proof is not signed by the CA's key: {0}")]
    Signature(#[from] SignatureFault),
    /// It names something else.
    #[error("the proof's common name is not the code")]
    Code,
    /// Out of date.
    #[error("the proof is valid from {0} to {1}, not now")]
    Dates(Timestamp, Timestamp),
    /// A proof must be worth nothing else.
    #[error("the proof is a CA certificate itself")]
    Ca,
}

/// A new code: 32 random bytes as 52 characters of base32, which fit a common name. `None` if the system's random
/// source fails.
pub fn new_code() -> Option<String> {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).ok()?;
    let (mut text, mut bits, mut have) = (String::with_capacity(52), 0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(byte);
        have += 8;
        while have >= 5 {
            have -= 5;
            text.push(char::from(ALPHABET[(bits >> have & 31) as usize]));
        }
        bits &= (1 << have) - 1;
    }
    if have > 0 {
        text.push(char::from(ALPHABET[(bits << (5 - have) & 31) as usize]));
    }
    Some(text)
}

/// Checks that `proof` was issued by `ca` (both DER) for `code`.
///
/// # Errors
/// [`ProofFault`].
pub fn check(ca: &[u8], proof: &[u8], code: &str, now: Timestamp) -> Result<(), ProofFault> {
    let malformed = |e: crate::certificate::CertificateError| ProofFault::Malformed(e.to_string());
    let (ca_facts, facts) = (
        CertificateFacts::parse(ca).map_err(malformed)?,
        CertificateFacts::parse(proof).map_err(malformed)?,
    );
    if facts.issuer_der != ca_facts.subject_der {
        return Err(ProofFault::Issuer {
            issuer: facts.issuer_text,
            subject: ca_facts.subject_text,
        });
    }
    Signed::parse(proof)?.verify(&key_of(ca)?)?;
    let named = match facts.subject_common_names.as_slice() {
        [one] => verify_slices_are_equal(one.as_bytes(), code.as_bytes()).is_ok(),
        _ => false,
    };
    if !named {
        return Err(ProofFault::Code);
    }
    if !facts.is_valid_at(now) {
        return Err(ProofFault::Dates(facts.not_before, facts.not_after));
    }
    if facts.ca.is_some() {
        return Err(ProofFault::Ca);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

    fn ca(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    }

    fn proof(
        code: &str,
        (params, key): &(CertificateParams, KeyPair),
        edit: fn(&mut CertificateParams),
    ) -> Vec<u8> {
        let mut leaf = CertificateParams::new(vec![]).unwrap();
        leaf.distinguished_name.push(DnType::CommonName, code);
        edit(&mut leaf);
        let own = KeyPair::generate().unwrap();
        leaf.signed_by(&own, &Issuer::from_params(params, key))
            .unwrap()
            .der()
            .to_vec()
    }

    #[test]
    fn only_the_holder_of_the_key_can_prove_it() {
        let code = new_code().unwrap();
        assert_eq!(code.len(), 52);
        assert_ne!(Some(&code), new_code().as_ref());
        let (mine, other) = (ca("mine"), ca("other"));
        let impostor = (mine.0.clone(), KeyPair::generate().unwrap());
        let certificate = mine.0.self_signed(&mine.1).unwrap();
        let check = |proof: &[u8]| check(certificate.der(), proof, &code, NOW);
        assert_eq!(check(&proof(&code, &mine, |_| {})), Ok(()));
        assert!(matches!(
            check(&proof(&code, &other, |_| {})),
            Err(ProofFault::Issuer { .. })
        ));
        assert!(matches!(
            check(&proof(&code, &impostor, |_| {})),
            Err(ProofFault::Signature(SignatureFault::Invalid))
        ));
        assert_eq!(check(&proof("other", &mine, |_| {})), Err(ProofFault::Code));
        assert!(matches!(
            check(&proof(&code, &mine, |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1))),
            Err(ProofFault::Dates(..))
        ));
        assert_eq!(
            check(&proof(&code, &mine, |p| p.is_ca =
                IsCa::Ca(BasicConstraints::Unconstrained))),
            Err(ProofFault::Ca)
        );
        assert!(matches!(check(b"x"), Err(ProofFault::Malformed(_))));
    }
}
