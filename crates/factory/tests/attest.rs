//! Attestation, one bit at a time: of what a TPM says, nothing can be changed that is looked at, and nothing that is sent makes
//! the platform fall over.
#![allow(missing_docs, clippy::unwrap_used)]

use countersign_factory::SoftwareKey;
use countersign_factory::attest::{
    AttestationKey, Challenge, EndorsementKey, HeldKey, Refusal, SECRET_BYTES, check, qualifying_data,
};
use countersign_identity::{DeviceId, TenantId};
use countersign_testkit::forged_tpm::{ForgedTpm, KEY, Statement, public_of};

/// Each with one bit changed.
fn changed(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> + '_ {
    (0..bytes.len() * 8).map(|bit| {
        let mut other = bytes.to_vec();
        other[bit / 8] ^= 1 << (bit % 8);
        (bit, other)
    })
}

#[test]
fn each_bit_of_statement_signature_and_key_counts() {
    let tpm = ForgedTpm::default();
    let ak = AttestationKey::parse(&tpm.attestation_public()).unwrap();
    let key = public_of(&SoftwareKey::generate().unwrap(), KEY);
    let data = qualifying_data(
        &[7; 32],
        &TenantId::default_tenant(),
        &DeviceId::new("d1").unwrap(),
    );
    let statement = Statement::of(&key, &data).bytes();
    let signature = tpm.signature(&statement);
    let good = check(&ak, &statement, &signature, &key, &data).unwrap();
    assert_eq!(good, HeldKey::parse(&key).unwrap());
    for (bit, other) in changed(&statement) {
        assert!(
            check(&ak, &other, &signature, &key, &data).is_err(),
            "statement, bit {bit}"
        );
    }
    for (bit, other) in changed(&signature) {
        assert!(
            check(&ak, &statement, &other, &key, &data).is_err(),
            "signature, bit {bit}"
        );
    }
    for (bit, other) in changed(&key) {
        assert!(
            check(&ak, &statement, &signature, &other, &data).is_err(),
            "key, bit {bit}"
        );
    }
    for (bit, other) in changed(&data) {
        let other = other.try_into().unwrap();
        let refused = check(&ak, &statement, &signature, &key, &other).unwrap_err();
        assert_eq!(refused.refusal, Refusal::Nonce, "data, bit {bit}");
    }
    // Nothing behind its end, and nothing missing.
    for cut in 0..statement.len() {
        assert!(check(&ak, &statement[..cut], &signature, &key, &data).is_err());
    }
    for (what, longer) in [(&statement, 0), (&signature, 1), (&key, 2)] {
        let longer_one = [what.as_slice(), &[0]].concat();
        let parts = [&statement, &signature, &key];
        let part = |n: usize| if n == longer { &longer_one } else { parts[n] };
        assert!(check(&ak, part(0), part(1), part(2), &data).is_err(), "{longer}");
    }
}

#[test]
fn a_challenge_opens_for_its_two_keys_and_unchanged_only() {
    let (tpm, other) = (ForgedTpm::default(), ForgedTpm::default());
    let ek = EndorsementKey::parse(&tpm.endorsement_public()).unwrap();
    let ak = AttestationKey::parse(&tpm.attestation_public()).unwrap();
    let secret = [9; SECRET_BYTES];
    let challenge = Challenge::new(&ek, &ak, &secret).unwrap();
    let open = |tpm: &ForgedTpm, c: &Challenge| tpm.activate(&c.credential, &c.secret);
    assert_eq!(open(&tpm, &challenge), Some(secret.to_vec()));
    assert_eq!(open(&other, &challenge), None);
    // For another attestation key of the same TPM.
    let foreign = AttestationKey::parse(&other.attestation_public()).unwrap();
    assert_eq!(open(&tpm, &Challenge::new(&ek, &foreign, &secret).unwrap()), None);
    // No two are alike: seed and point are fresh.
    assert_ne!(Challenge::new(&ek, &ak, &secret).unwrap(), challenge);
    for (bit, credential) in changed(&challenge.credential) {
        let changed = Challenge {
            credential,
            ..challenge.clone()
        };
        // The length of the MAC is not looked at by our TPM.
        if bit >= 16 {
            assert_eq!(open(&tpm, &changed), None, "bit {bit}");
        }
    }
}

#[test]
fn whatever_is_sent_as_a_key_is_read_or_refused() {
    let tpm = ForgedTpm::default();
    let key = public_of(&SoftwareKey::generate().unwrap(), KEY);
    let ak = AttestationKey::parse(&tpm.attestation_public()).unwrap();
    for seed in [tpm.endorsement_public(), tpm.attestation_public(), key] {
        for (_, bytes) in changed(&seed) {
            let _ = (AttestationKey::parse(&bytes), HeldKey::parse(&bytes));
            if let Ok(ek) = EndorsementKey::parse(&bytes) {
                // A point that is none on the curve is a refusal too.
                let _ = Challenge::new(&ek, &ak, &[9; SECRET_BYTES]);
            }
        }
        for cut in 0..seed.len() {
            assert!(EndorsementKey::parse(&seed[..cut]).is_err());
            assert!(AttestationKey::parse(&seed[..cut]).is_err());
            assert!(HeldKey::parse(&seed[..cut]).is_err());
        }
    }
}
