//! Thousands of devices in one change: idempotent, all or nothing per device, told device by device what was refused.

use std::collections::BTreeSet;

use countersign_identity::{AuthorityId, DeviceId, TenantId};
use countersign_policy::LifecycleState;
use countersign_policy::facts::CredentialKind;
use countersign_policy::lifecycle::Lifecycle;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, NewDevice, damaged};
use crate::credential::NewCredential;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// How an import went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// Devices that were added.
    pub added: u64,
    /// Devices that were known and are as they were.
    pub unchanged: u64,
    /// Certificates that were registered.
    pub credentials_added: u64,
    /// Devices that were left out, each with the reason.
    pub refused: Vec<(DeviceId, String)>,
    /// What is to be said of certificates that were taken.
    #[serde(default)]
    pub remarks: Vec<Remark>,
}

/// A certificate that was taken, though its device does not come in by it as things are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remark {
    /// The device.
    pub device: DeviceId,
    /// What it is about.
    pub about: RemarkAbout,
    /// In words, with the cure.
    pub text: String,
}

/// What a [`Remark`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RemarkAbout {
    /// The certificate has expired.
    Expired,
    /// No authority of the tenant is known to be above it.
    UnknownIssuer,
}

/// What is to be said of a certificate that an import brings: none of it is a reason to refuse it, since the authority may be
/// registered later, and an expired one may open the renewal lane.
pub(crate) fn remarks_on(
    scope: &Scope<'_>,
    tenant: &TenantId,
    device: &DeviceId,
    credential: &NewCredential,
) -> Vec<Remark> {
    let certificate = &credential.certificate;
    let mut found = Vec::new();
    let mut remark = |about, text| {
        found.push(Remark {
            device: device.clone(),
            about,
            text,
        });
    };
    if scope.now > certificate.not_after {
        remark(
            RemarkAbout::Expired,
            format!(
                "its certificate expired at {}; hint: enrol it anew (countersign device secret {device}), or open the renewal lane",
                certificate.not_after
            ),
        );
    }
    let is_known = credential.authority.is_some() || scope.table.has_issuer(tenant, certificate);
    if !is_known && credential.kind != CredentialKind::Pinned {
        remark(
            RemarkAbout::UnknownIssuer,
            format!(
                "the issuer of its certificate, {}, leads to no authority of tenant {tenant}; hint: countersign authority register takes the devices' CA, authority intermediate what lies between; a self-signed certificate is registered by device pin",
                certificate.issuer_text
            ),
        );
    }
    found
}

impl Registry {
    /// Adds devices with their certificates. What is known already and agrees is left as it is, so an import that was
    /// cut off is simply repeated.
    ///
    /// # Errors
    /// [`RegistryError`] if nothing was imported; devices that were refused one by one are in the report.
    pub fn import_devices(
        &self,
        actor: Actor,
        tenant: TenantId,
        devices: Vec<(NewDevice, Option<NewCredential>)>,
    ) -> Result<Committed<ImportReport>, RegistryError> {
        self.write(move |scope| {
            scope.need_tenant(&tenant)?;
            let authorities = scope.authorities_of(&tenant)?;
            let mut report = ImportReport::default();
            for (device, credential) in &devices {
                if let Some(authority) = &device.authority
                    && !authorities.contains(authority)
                {
                    report
                        .refused
                        .push((device.id.clone(), no_authority(authority, &tenant, &authorities)));
                    continue;
                }
                match import_one(scope, &tenant, device, credential.as_ref(), &mut report) {
                    Ok(()) => {
                        let remarks = credential
                            .iter()
                            .flat_map(|c| remarks_on(scope, &tenant, &device.id, c));
                        report.remarks.extend(remarks);
                    }
                    Err(e) if e.ends_job() => return Err(e),
                    Err(e) => report.refused.push((device.id.clone(), e.to_string())),
                }
            }
            let detail = json!({
                "added": report.added,
                "unchanged": report.unchanged,
                "credentials_added": report.credentials_added,
                "refused": report.refused.len(),
                "remarked": report.remarks.len(),
            });
            scope.audit(&actor, "device.import", tenant.as_str(), "", &detail)?;
            Ok(report)
        })
    }
}

/// So many authorities are named.
const NAMED_MAX: usize = 10;

fn no_authority(authority: &AuthorityId, tenant: &TenantId, known: &BTreeSet<AuthorityId>) -> String {
    let names: Vec<_> = known.iter().take(NAMED_MAX).map(AuthorityId::as_str).collect();
    let more = if known.len() > NAMED_MAX { ", …" } else { "" };
    format!(
        "tenant {tenant} has no authority {authority}, it has {}{more}; hint: correct it, or register it first: countersign authority register",
        names.join(", ")
    )
}

impl Scope<'_> {
    fn authorities_of(&self, tenant: &TenantId) -> Result<BTreeSet<AuthorityId>, RegistryError> {
        let mut statement = self
            .tx
            .prepare_cached("SELECT id FROM authorities WHERE tenant = ?")?;
        let mut rows = statement.query([tenant.as_str()])?;
        let mut found = BTreeSet::new();
        while let Some(r) = rows.next()? {
            found.insert(damaged(r.get::<_, String>(0)?.parse())?);
        }
        Ok(found)
    }
}

/// What would be refused at every connection is refused here, where there is still time to give the device another one.
fn is_of_use(
    scope: &Scope<'_>,
    device: &DeviceId,
    credential: &NewCredential,
    authority: Option<&AuthorityId>,
) -> Result<(), RegistryError> {
    let certificate = &credential.certificate;
    if let Some(why) = certificate.path_fault() {
        return Err(RegistryError::Refused(format!(
            "no device is admitted by its certificate: {why}; hint: issue it anew, as version 3 with its extensions (openssl x509 -req needs -extfile or -copy_extensions)"
        )));
    }
    if certificate.ca.is_some() && credential.kind != CredentialKind::Pinned {
        return Err(RegistryError::Refused(
            "its certificate is a CA's; hint: countersign authority register takes the devices' CA, authority intermediate what lies between"
                .into(),
        ));
    }
    let anchor = authority.and_then(|id| scope.table.anchor(id));
    if let Some(anchor) = anchor
        && let Ok(named) = anchor.identity_rule.read(certificate)
        && named != *device
    {
        return Err(RegistryError::Refused(format!(
            "by the rule of authority {} ({}) its certificate is device {named}'s; hint: countersign device import --identity-rule {1}, or countersign authority set {0} --identity-rule RULE",
            anchor.authority, anchor.identity_rule
        )));
    }
    Ok(())
}

fn import_one(
    scope: &mut Scope<'_>,
    tenant: &TenantId,
    device: &NewDevice,
    credential: Option<&NewCredential>,
    report: &mut ImportReport,
) -> Result<(), RegistryError> {
    // Everything that may refuse comes before anything is written, so a refused device leaves nothing behind.
    let known = scope.device(tenant, &device.id)?;
    let mut new_credential = None;
    if let Some(credential) = credential {
        match scope.credential_owner(&credential.certificate.fingerprint)? {
            None => {
                let authority = scope.may_register(tenant, &device.id, credential)?;
                is_of_use(scope, &device.id, credential, authority.as_ref())?;
                new_credential = Some(credential);
            }
            Some((t, d)) if t == tenant.as_str() && d == device.id.as_str() => {}
            Some((t, d)) => {
                return Err(RegistryError::Refused(format!(
                    "its certificate is registered for device {d} of tenant {t}"
                )));
            }
        }
    }
    match known {
        None => {
            scope.put_device(tenant, device, Lifecycle::new(device.state), scope.now)?;
            report.added += 1;
        }
        Some((row, lifecycle, _)) => {
            if lifecycle.state == LifecycleState::Decommissioned {
                return Err(RegistryError::Refused(
                    "it is decommissioned, and that is final".into(),
                ));
            }
            if device.model.is_some() && row.model != device.model {
                return Err(RegistryError::Refused(format!(
                    "it is registered with model {:?}, the import says {:?}",
                    row.model, device.model
                )));
            }
            report.unchanged += 1;
        }
    }
    if let Some(credential) = new_credential {
        scope.put_credential(tenant, &device.id, credential)?;
        report.credentials_added += 1;
    }
    Ok(())
}
