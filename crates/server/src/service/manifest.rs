//! Import of manifests: each entry is verified by itself, and becomes a device with a certificate, or is refused by its
//! name.

use countersign_factory::manifest::{ManifestEntry, ManifestSigner};
use countersign_identity::{BatchId, DeviceId, IdentityRule, TenantId};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{Custody, LifecycleState};
use countersign_registry::{Actor, NewCredential, NewDevice};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::{Service, now};
use crate::failure::Failure;

/// Where the elements of a manifest go.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestImport {
    /// The entries.
    pub entries: Vec<ManifestEntry>,
    /// The certificate of whoever signed them, PEM.
    pub signer: String,
    /// The batch that the devices are made in.
    #[serde(default)]
    pub batch: Option<BatchId>,
    /// Without a batch: the model of the devices.
    #[serde(default)]
    pub model: Option<String>,
    /// Where the certificate carries the device id; without it the unique id is the device id.
    #[serde(default)]
    pub identity_rule: Option<IdentityRule>,
    /// Which key's certificate is taken; without it the first that has one.
    #[serde(default)]
    pub key: Option<String>,
}

/// How an import of a manifest went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestReport {
    /// Devices that were added.
    pub added: u64,
    /// Devices that were known and are as they were.
    pub unchanged: u64,
    /// Certificates that were registered.
    pub credentials_added: u64,
    /// Entries that were refused, by their unique id or device id, each with the reason.
    pub refused: Vec<(String, String)>,
}

impl Service {
    /// Takes the elements of a manifest as devices.
    ///
    /// # Errors
    /// [`Failure`] if nothing was taken, such as for a signer that is not in force; entries that were refused one by one
    /// are in the report.
    pub async fn import_manifest(
        &self,
        actor: Actor,
        tenant: TenantId,
        import: ManifestImport,
    ) -> Result<ManifestReport, Failure> {
        let der = CertificateDer::from_pem_slice(import.signer.as_bytes())
            .map_err(|e| Failure::invalid(format!("the signer's certificate is no PEM: {e}")))?;
        let signer = ManifestSigner::new(&der, now()).map_err(|e| Failure::invalid(e.to_string()))?;
        if import.batch.is_some() && import.model.is_some() {
            return Err(Failure::invalid(
                "a batch has its model; hint: leave the model out, or the batch",
            ));
        }
        let mut report = ManifestReport::default();
        let mut taken = Vec::with_capacity(import.entries.len());
        for entry in &import.entries {
            let read = entry
                .verify(&signer, import.key.as_deref())
                .map_err(|e| e.to_string())
                .and_then(|element| {
                    let id = match &import.identity_rule {
                        Some(rule) => rule.read(&element.certificate).map_err(|e| e.to_string())?,
                        None => DeviceId::new(&element.unique_id).map_err(|e| e.to_string())?,
                    };
                    let credential = NewCredential {
                        kind: CredentialKind::Factory,
                        custody: Custody::Declared,
                        ..NewCredential::brought(element.certificate)
                    };
                    Ok((id, credential))
                });
            match read {
                Ok(one) => taken.push(one),
                Err(reason) => report.refused.push((entry.name().to_owned(), reason)),
            }
        }
        let (part, _) = match import.batch {
            Some(batch) => {
                self.change(move |r| r.import_in_batch(actor, tenant, batch, taken))
                    .await?
            }
            None => {
                let model = import.model;
                let devices = taken
                    .into_iter()
                    .map(|(id, credential)| {
                        let device = NewDevice {
                            id,
                            model: model.clone(),
                            groups: vec![],
                            state: LifecycleState::Active,
                            authority: None,
                        };
                        (device, Some(credential))
                    })
                    .collect();
                self.change(move |r| r.import_devices(actor, tenant, devices))
                    .await?
            }
        };
        report.added = part.added;
        report.unchanged = part.unchanged;
        report.credentials_added = part.credentials_added;
        report.refused.extend(
            part.refused
                .into_iter()
                .map(|(id, reason)| (id.to_string(), reason)),
        );
        Ok(report)
    }
}
