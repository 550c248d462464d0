//! The end of a device, by its own word: it states with its key that this key is destroyed, destroys it, and hands the
//! statement in, then or later. Nobody can prove that something is gone, so it is recorded as *declared*.
//!
//! ```text
//! "countersign destruction 1" LF || tenant LF || device LF || SHA-256(certificate, DER), hex LF || milliseconds since 1970
//! ```
//!
//! signed as the key signs.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::signed::{SignatureFault, Signer, SigningFailed, key_of};
use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::key::verify_by;

/// Where a device hands it in: `POST`, a [`Statement`] in, [`Recorded`] out.
pub const PATH: &str = "/v1/destruction";

/// A device's statement that its key is destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Its tenant.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// The certificate of the key, DER in base64.
    pub certificate: String,
    /// When it was stated, by the device's clock.
    pub at: Timestamp,
    /// The signature, base64.
    pub signature: String,
}

/// The platform's record of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The device.
    pub device: DeviceId,
    /// Since when it is known.
    pub recorded: Timestamp,
}

/// Why a statement does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatementFault {
    /// A part is no base64.
    #[error("its {0} is no base64; hint: hand in destruction.json as the agent wrote it")]
    Malformed(&'static str),
    /// The certificate's key did not sign this.
    #[error(
        "it is not signed by the key of its certificate ({0}); hint: hand in destruction.json as the agent wrote it"
    )]
    Signature(#[from] SignatureFault),
}

fn content(tenant: &TenantId, device: &DeviceId, certificate: &Fingerprint, at: Timestamp) -> Vec<u8> {
    format!(
        "countersign destruction 1\n{tenant}\n{device}\n{certificate}\n{}",
        at.unix_ms()
    )
    .into_bytes()
}

impl Statement {
    /// Makes it, on the device, before the key is destroyed.
    ///
    /// # Errors
    /// [`SigningFailed`].
    pub fn create(
        key: &dyn Signer,
        certificate: &[u8],
        tenant: TenantId,
        device: DeviceId,
        at: Timestamp,
    ) -> Result<Self, SigningFailed> {
        let signature = key.sign(&content(&tenant, &device, &Fingerprint::of(certificate), at))?;
        Ok(Self {
            tenant,
            device,
            certificate: STANDARD.encode(certificate),
            at,
            signature: STANDARD.encode(signature),
        })
    }

    /// Checks it: the certificate that it speaks of. Whether that is the device's, the registry knows.
    ///
    /// # Errors
    /// [`StatementFault`].
    pub fn check(&self) -> Result<Fingerprint, StatementFault> {
        let decode = |text: &str, what| STANDARD.decode(text).map_err(|_| StatementFault::Malformed(what));
        let certificate = decode(&self.certificate, "certificate")?;
        let signature = decode(&self.signature, "signature")?;
        let fingerprint = Fingerprint::of(&certificate);
        let content = content(&self.tenant, &self.device, &fingerprint, self.at);
        verify_by(&key_of(&certificate)?, &content, &signature)?;
        Ok(fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SoftwareKey;

    #[test]
    fn only_the_certificates_key_can_state_it_and_each_word_is_signed() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let signer = SoftwareKey::from_pkcs8(&key.serialize_der()).unwrap();
        let create = |signer: &SoftwareKey| {
            Statement::create(
                signer,
                certificate.der(),
                TenantId::default_tenant(),
                DeviceId::new("d1").unwrap(),
                Timestamp::from_unix_ms(1_800_000_000_000),
            )
            .unwrap()
        };
        let good = create(&signer);
        assert_eq!(good.check(), Ok(Fingerprint::of(certificate.der())));
        let changes: [&dyn Fn(&mut Statement); 5] = [
            &|s| s.tenant = TenantId::new("other").unwrap(),
            &|s| s.device = DeviceId::new("d2").unwrap(),
            &|s| s.at = s.at.plus(std::time::Duration::from_millis(1)),
            &|s| s.signature = create(&SoftwareKey::generate().unwrap()).signature,
            &|s| {
                s.certificate = STANDARD.encode(
                    params
                        .self_signed(&rcgen::KeyPair::generate().unwrap())
                        .unwrap()
                        .der(),
                )
            },
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(
                matches!(bad.check(), Err(StatementFault::Signature(_))),
                "{n}: {:?}",
                bad.check()
            );
        }
    }
}
