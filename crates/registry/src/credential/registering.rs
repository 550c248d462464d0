//! Registering a certificate for a device: who may have it, the row and the fact; pinned ones.

use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, DeviceId, Fingerprint, Generation, TenantId,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialFacts, LifecycleState};
use rusqlite::{OptionalExtension, params};
use serde_json::json;

use super::NewCredential;
use crate::change::{Actor, Change};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

impl Scope<'_> {
    /// Whether a certificate may be registered for a device, before anything is written; the authority that it is of, if
    /// that is known. A key belongs to one device only, or a clone could not be told.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] if a station issued it, or a certificate for its key was revoked; [`RegistryError::SharedKey`];
    /// [`RegistryError::RevokedBefore`].
    pub(crate) fn may_register(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        new: &NewCredential,
    ) -> Result<Option<AuthorityId>, RegistryError> {
        let c = &new.certificate;
        if let Some(station) = self.station_by_subject(&c.issuer_der)? {
            return Err(RegistryError::Refused(format!(
                "the certificate was issued by factory station {station}, whose journal alone vouches for it; hint: countersign factory reconcile JOURNAL"
            )));
        }
        self.refuse_key_of_service(&c.public_key_sha256)?;
        if let Some((other_tenant, other)) = self.key_of_other(tenant, device, &c.public_key_sha256)? {
            return Err(RegistryError::SharedKey(format!(
                "{other} of tenant {other_tenant}"
            )));
        }
        // Another certificate for a stolen key is as good to the thief as the one that was revoked.
        self.refuse_revoked_key(device, &c.public_key_sha256)?;
        let authority = match &new.authority {
            Some(authority) => Some(authority.clone()),
            None if new.kind == CredentialKind::Pinned => None,
            None => self.table.issuer_of(tenant, c),
        };
        self.need_not_lost(authority.as_ref(), &c.serial)?;
        Ok(authority)
    }

    /// Registers a certificate for a device. Whoever goes on after a refusal asks [`Scope::may_register`] before it writes
    /// anything of that device.
    pub(crate) fn put_credential(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        new: &NewCredential,
    ) -> Result<(), RegistryError> {
        let c = &new.certificate;
        let authority = self.may_register(tenant, device, new)?;
        let generation = self.revise("credential", tenant.as_str(), &c.fingerprint.to_string())?;
        self.insert_credential(tenant, device, new, authority.as_ref(), generation)?;
        self.changes
            .push(Change::Credential(tenant.clone(), device.clone(), c.fingerprint));
        Ok(())
    }

    /// The row and the fact of a credential; no live session can be touched by one that is new.
    pub(crate) fn insert_credential(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        new: &NewCredential,
        authority: Option<&AuthorityId>,
        generation: Generation,
    ) -> Result<(), RegistryError> {
        // The last guard of whoever has not asked already.
        self.need_not_lost(authority, &new.certificate.serial)?;
        self.refuse_key_of_service(&new.certificate.public_key_sha256)?;
        self.put_row(tenant, device, new, authority, generation)
    }

    /// The same for who has asked in this transaction, or since which nothing has changed, that no list names the certificate and that
    /// its key is no service's.
    pub(crate) fn put_row(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        new: &NewCredential,
        authority: Option<&AuthorityId>,
        generation: Generation,
    ) -> Result<(), RegistryError> {
        let c = &new.certificate;
        self.tx
            .prepare_cached(
                "INSERT INTO credentials (fingerprint, tenant, device, kind, state, custody, serial, issuer,
                 public_key, not_before, not_after, revision, created, authority, certificate, profile, batch)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                c.fingerprint.as_bytes(),
                tenant.as_str(),
                device.as_str(),
                new.kind.name(),
                new.state.name(),
                new.custody.name(),
                c.serial,
                c.issuer_text,
                c.public_key_sha256.as_bytes(),
                c.not_before.unix_ms(),
                c.not_after.unix_ms(),
                generation.0.cast_signed(),
                self.now.unix_ms(),
                authority.map(AuthorityId::as_str),
                new.issued.as_ref().map(|i| i.certificate.as_slice()),
                new.issued.as_ref().map(|i| i.profile.as_str()),
                new.issued
                    .as_ref()
                    .and_then(|i| i.batch.as_ref())
                    .map(BatchId::as_str),
            ])
            .map_err(|e| match e.sqlite_error_code() {
                // Of the index over authority and serial of what was issued here: one in 2^80, or a broken random source.
                Some(rusqlite::ErrorCode::ConstraintViolation) if new.issued.is_some() => {
                    RegistryError::Refused(format!(
                        "the serial number {} was given out before by this authority: nothing was minted; hint: ask again, and if this comes again do not trust the machine's random source",
                        c.serial
                    ))
                }
                _ => e.into(),
            })?;
        if authority.is_none() && new.kind != CredentialKind::Pinned {
            self.facts.push(Fact::Placed(c.fingerprint, false));
        }
        self.facts.push(Fact::Credential(CredentialFacts {
            fingerprint: c.fingerprint,
            tenant: tenant.clone(),
            device: device.clone(),
            kind: new.kind,
            state: new.state,
            custody: new.custody,
            opens_data_sessions: self
                .table
                .opens_data_sessions(new.kind, new.issued.as_ref().map(|i| i.profile.as_str())),
            generation,
        }));
        Ok(())
    }

    /// The device that has a credential; `None` if nobody has it.
    pub(crate) fn credential_owner(
        &self,
        fingerprint: &Fingerprint,
    ) -> Result<Option<(String, String)>, RegistryError> {
        if self.facts.is_empty() && !self.table_is_behind && !self.table.knows(fingerprint) {
            return Ok(None);
        }
        Ok(self
            .tx
            .prepare_cached("SELECT tenant, device FROM credentials WHERE fingerprint = ?")?
            .query_row([fingerprint.as_bytes()], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?)
    }

    /// Whether a key has a certificate, whoever's.
    pub(crate) fn knows_key(&self, key: &Fingerprint) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM credentials
                 WHERE substr(public_key, 1, 8) = substr(?1, 1, 8) AND public_key = ?1)",
            )?
            .query_row([key.as_bytes()], |r| r.get(0))?)
    }

    /// Who else has a key.
    pub(crate) fn key_of_other(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        key: &Fingerprint,
    ) -> Result<Option<(String, String)>, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT tenant, device FROM credentials
                 WHERE substr(public_key, 1, 8) = substr(?1, 1, 8) AND public_key = ?1 AND NOT (tenant = ?2 AND device = ?3)
                 LIMIT 1",
            )?
            .query_row(
                params![
                    key.as_bytes(),
                    tenant.as_str(),
                    device.as_str()
                ],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .optional()?)
    }
}

impl Registry {
    /// Registers a self-signed certificate for a device by its fingerprint; whether it was not registered before. A device
    /// may have several: the next one is pinned before the last one is revoked.
    ///
    /// # Errors
    /// [`RegistryError::NoDevice`]; [`RegistryError::Refused`] if the certificate is registered otherwise;
    /// [`RegistryError::SharedKey`] if another device has its key.
    pub fn pin_credential(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        certificate: CertificateFacts,
    ) -> Result<Committed<bool>, RegistryError> {
        self.write(move |scope| {
            let Some((_, lifecycle, _)) = scope.device(&tenant, &device)? else {
                return Err(RegistryError::NoDevice { tenant, device });
            };
            if lifecycle.state == LifecycleState::Decommissioned {
                return Err(RegistryError::Refused(
                    "the device is decommissioned, and that is final".into(),
                ));
            }
            let fingerprint = certificate.fingerprint;
            if let Some(known) = scope.read_credential(&fingerprint)? {
                if known.kind == CredentialKind::Pinned && known.tenant == tenant && known.device == device {
                    return Ok(false);
                }
                return Err(RegistryError::Refused(format!(
                    "the certificate is registered already, as {} of device {} of tenant {}",
                    known.kind, known.device, known.tenant
                )));
            }
            let new = NewCredential {
                kind: CredentialKind::Pinned,
                ..NewCredential::brought(certificate)
            };
            scope.put_credential(&tenant, &device, &new)?;
            let detail = json!({ "fingerprint": fingerprint });
            scope.audit(
                &actor,
                "credential.pin",
                tenant.as_str(),
                device.as_str(),
                &detail,
            )?;
            Ok(true)
        })
    }
}
