//! Elements that a manufacturer told of, as devices of a batch.

use countersign_factory::{BatchRefusal, DeviceStart};
use countersign_identity::{BatchId, DeviceId, TenantId};
use countersign_policy::LifecycleState;
use countersign_policy::lifecycle::Lifecycle;
use rusqlite::params;
use serde_json::json;

use crate::change::{Actor, NewDevice};
use crate::credential::NewCredential;
use crate::error::RegistryError;
use crate::import::{ImportReport, remarks_on};
use crate::store::Registry;
use crate::writer::{Committed, Scope};

impl Registry {
    /// Adds devices with certificates that were issued elsewhere to a batch, as its plan says. What is known already and
    /// agrees is left as it is; a device that is refused leaves nothing behind.
    ///
    /// # Errors
    /// [`RegistryError`] if nothing was imported; devices that were refused one by one are in the report.
    pub fn import_in_batch(
        &self,
        actor: Actor,
        tenant: TenantId,
        batch: BatchId,
        devices: Vec<(DeviceId, NewCredential)>,
    ) -> Result<Committed<ImportReport>, RegistryError> {
        self.write(move |scope| {
            scope.batch(&tenant, &batch)?;
            let mut report = ImportReport::default();
            for (device, credential) in &devices {
                match import_one(scope, &tenant, &batch, device, credential, &mut report) {
                    Ok(()) => report
                        .remarks
                        .extend(remarks_on(scope, &tenant, device, credential)),
                    Err(e) if e.ends_job() => return Err(e),
                    Err(e) => report.refused.push((device.clone(), e.to_string())),
                }
            }
            let detail = json!({
                "added": report.added,
                "unchanged": report.unchanged,
                "credentials_added": report.credentials_added,
                "refused": report.refused.len(),
                "remarked": report.remarks.len(),
            });
            scope.audit(&actor, "batch.import", tenant.as_str(), batch.as_str(), &detail)?;
            Ok(report)
        })
    }
}

/// Everything that may refuse comes before anything is written.
fn import_one(
    scope: &mut Scope<'_>,
    tenant: &TenantId,
    batch: &BatchId,
    device: &DeviceId,
    credential: &NewCredential,
    report: &mut ImportReport,
) -> Result<(), RegistryError> {
    let certificate = &credential.certificate;
    match scope.credential_owner(&certificate.fingerprint)? {
        None => {}
        Some((t, d)) if t == tenant.as_str() && d == device.as_str() => {
            report.unchanged += 1;
            return Ok(());
        }
        Some((t, d)) => {
            return Err(RegistryError::Refused(format!(
                "its certificate is registered for device {d} of tenant {t}; hint: one of the two has the wrong id"
            )));
        }
    }
    scope.may_register(tenant, device, credential)?;
    let (plan, standing) = scope.batch(tenant, batch)?;
    let owner = scope.batch_of(tenant, device)?;
    let is_new = owner.is_none();
    match owner {
        None => plan.admits(standing, device, scope.now)?,
        Some(owner) if owner.as_ref() == Some(batch) => {
            plan.signs(standing.state, device, scope.now)?;
            let live = scope.credentials_where(
                "tenant = ? AND device = ? AND state IN ('issued', 'active') AND not_after >= ?",
                params![tenant.as_str(), device.as_str(), scope.now.unix_ms()],
            )?;
            if let Some(other) = live.first() {
                return Err(BatchRefusal::OtherKey {
                    device: device.clone(),
                    state: other.state.name(),
                }
                .into());
            }
        }
        Some(owner) => {
            return Err(BatchRefusal::OtherBatch {
                device: device.clone(),
                batch: batch.clone(),
                owner,
            }
            .into());
        }
    }
    if is_new {
        let state = match plan.devices_start {
            DeviceStart::Active => LifecycleState::Active,
            DeviceStart::Pending => LifecycleState::Pending,
        };
        let new = NewDevice {
            id: device.clone(),
            model: Some(plan.model),
            groups: plan.groups,
            state,
            authority: None,
        };
        scope.put_device(tenant, &new, Lifecycle::new(state), scope.now)?;
        scope.put_in_batch(tenant, device, batch)?;
        let generation = scope.revise("batch", tenant.as_str(), batch.as_str())?;
        scope.count_into_batch(tenant, batch, 1, generation)?;
        report.added += 1;
    }
    scope.put_credential(tenant, device, credential)?;
    scope
        .tx
        .prepare_cached("UPDATE credentials SET batch = ?2 WHERE fingerprint = ?1")?
        .execute(params![certificate.fingerprint.as_bytes(), batch.as_str()])?;
    report.credentials_added += 1;
    Ok(())
}
