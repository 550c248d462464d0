//! The end of a device, by its own word.

use countersign_factory::destruction::Statement;
use countersign_identity::{DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::{CredentialState, FactSource, LifecycleMove, LifecycleState};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, damaged};
use crate::error::RegistryError;
use crate::moves::Move;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// A destruction that a device declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestructionView {
    /// The certificate whose key is destroyed.
    pub certificate: Fingerprint,
    /// When it was stated, by the device's clock.
    pub stated: Timestamp,
    /// When it was recorded.
    pub recorded: Timestamp,
}

impl Scope<'_> {
    /// The state of a certificate's authority, if that admits nobody any more.
    fn ended_authority_of(&self, certificate: &Fingerprint) -> Result<Option<&'static str>, RegistryError> {
        let authority: Option<String> = self
            .tx
            .prepare_cached("SELECT authority FROM credentials WHERE fingerprint = ?")?
            .query_row([certificate.as_bytes()], |r| r.get(0))?;
        let Some(authority) = authority else {
            return Ok(None);
        };
        let anchor = self.table.anchor(&damaged(authority.parse())?);
        Ok(anchor.map(|a| a.state).filter(|s| !s.admits()).map(|s| s.name()))
    }
}

impl Registry {
    /// Records a device's statement, whose signature holds, that its key is destroyed: the device is decommissioned, and that is
    /// final. Safe to repeat: the time of the first record is answered.
    ///
    /// # Errors
    /// [`RegistryError::NoCredential`] if the certificate is not registered for that device; [`RegistryError::Refused`] if it
    /// is out of force while the device is in use: whoever has an old key must not end the device.
    pub fn declare_destruction(
        &self,
        actor: Actor,
        statement: Statement,
        certificate: Fingerprint,
    ) -> Result<Committed<Timestamp>, RegistryError> {
        self.write(move |scope| {
            let (tenant, device) = (&statement.tenant, &statement.device);
            let known = scope.read_credential(&certificate)?
                .filter(|c| c.tenant == *tenant && c.device == *device)
                .ok_or(RegistryError::NoCredential(certificate))?;
            let before: Option<i64> = scope
                .tx
                .prepare_cached(
                    "SELECT recorded FROM destructions WHERE tenant = ? AND device = ? AND fingerprint = ?",
                )?
                .query_row(
                    params![tenant.as_str(), device.as_str(), certificate.as_bytes()],
                    |r| r.get(0),
                )
                .optional()?;
            if let Some(before) = before {
                return Ok(Timestamp::from_unix_ms(before));
            }
            let Some((_, lifecycle, _)) = scope.device(tenant, device)? else {
                return Err(RegistryError::NoDevice {
                    tenant: tenant.clone(),
                    device: device.clone(),
                });
            };
            if lifecycle.state != LifecycleState::Decommissioned {
                // Its state does not say that it expired.
                let not_after: i64 = scope
                    .tx
                    .prepare_cached("SELECT not_after FROM credentials WHERE fingerprint = ?")?
                    .query_row([certificate.as_bytes()], |r| r.get(0))?;
                // As the door has it: on its issuer's revocation list is revoked.
                let state = scope.table.credential(&certificate).map_or(known.state, |c| c.state);
                let authority = scope.ended_authority_of(&certificate)?;
                let out_of_force = match (state, authority) {
                    (CredentialState::Issued | CredentialState::Active, _) if scope.now.unix_ms() > not_after => {
                        Some("expired".to_owned())
                    }
                    (CredentialState::Issued | CredentialState::Active, Some(ended)) => {
                        Some(format!("of an authority that is {ended}"))
                    }
                    (CredentialState::Issued | CredentialState::Active, None) => None,
                    (other, _) => Some(other.to_string()),
                };
                if let Some(how) = out_of_force {
                    return Err(RegistryError::Refused(format!(
                        "the certificate is {how}, so its key cannot end device {device}; hint: countersign device decommission {device}"
                    )));
                }
                let why = "its key is destroyed, by its own statement";
                let wanted = Move::new(LifecycleMove::Decommission, why);
                scope.move_device(&actor, tenant, device, &wanted)?;
            }
            scope
                .tx
                .prepare_cached(
                    "INSERT INTO destructions (tenant, device, fingerprint, stated, recorded, statement)
                     VALUES (?, ?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    tenant.as_str(),
                    device.as_str(),
                    certificate.as_bytes(),
                    statement.at.unix_ms(),
                    scope.now.unix_ms(),
                    json!(statement).to_string(),
                ])?;
            let detail = json!({ "certificate": certificate, "stated": statement.at.to_string() });
            scope.audit(
                &actor,
                "device.destroyed",
                tenant.as_str(),
                device.as_str(),
                &detail,
            )?;
            Ok(scope.now)
        })
    }

    /// What a device declared to be destroyed, newest first.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn destructions(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Vec<DestructionView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT fingerprint, stated, recorded FROM destructions WHERE tenant = ? AND device = ?
                 ORDER BY recorded DESC",
            )?;
            let found = statement.query_map([tenant.as_str(), device.as_str()], |r| {
                Ok(DestructionView {
                    certificate: Fingerprint::from_bytes(r.get(0)?),
                    stated: Timestamp::from_unix_ms(r.get(1)?),
                    recorded: Timestamp::from_unix_ms(r.get(2)?),
                })
            })?;
            Ok(found.collect::<Result<_, _>>()?)
        })
    }
}
