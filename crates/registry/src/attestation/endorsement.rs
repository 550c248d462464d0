//! Whose TPMs are trusted, and which device each is in.

use std::str::FromStr;
use std::sync::Arc;

use countersign_factory::attest::Refusal;
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, CertificateFacts, DeviceId, Fingerprint, Generation,
    IdentityRule, TenantId, Timestamp,
};
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, damaged};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// How it is known which device a TPM is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndorsementSource {
    /// An operator said so: an attestation by this TPM lets the device enrol without any other proof.
    Registered,
    /// The device enrolled with it: from then on it is no other's.
    Attested,
}

impl EndorsementSource {
    fn name(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Attested => "attested",
        }
    }
}

impl FromStr for EndorsementSource {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "registered" => Ok(Self::Registered),
            "attested" => Ok(Self::Attested),
            _ => Err(format!("{s:?} is no source of an endorsement key")),
        }
    }
}

/// An endorsement authority, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndorsementAuthorityView {
    /// Its id.
    pub id: AuthorityId,
    /// Its certificate's subject.
    pub subject: String,
    /// Its certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// Until when that is valid.
    pub not_after: Timestamp,
    /// Since when it is trusted.
    pub created: Timestamp,
}

/// A TPM that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndorsementKeyView {
    /// SHA-256 of the endorsement key's SubjectPublicKeyInfo.
    pub fingerprint: Fingerprint,
    /// The device it is in.
    pub device: DeviceId,
    /// How that is known.
    pub source: EndorsementSource,
    /// Since when.
    pub created: Timestamp,
}

impl Scope<'_> {
    /// The device that a TPM is in, if that is known.
    pub(super) fn endorsement_key(
        &self,
        tenant: &TenantId,
        key: &Fingerprint,
    ) -> Result<Option<(DeviceId, EndorsementSource)>, RegistryError> {
        let found: Option<(String, String)> = self
            .tx
            .prepare_cached(
                "SELECT device, source FROM endorsement_keys WHERE tenant = ? AND fingerprint = ?",
            )?
            .query_row(params![tenant.as_str(), key.as_bytes()], |r| {
                Ok((r.get(0)?, r.get(1)?))
            })
            .optional()?;
        let Some((device, source)) = found else {
            return Ok(None);
        };
        Ok(Some((damaged(DeviceId::new(&device))?, damaged(source.parse())?)))
    }

    /// Whether a tenant trusts an endorsement authority now.
    pub(super) fn trusts_endorsements_by(&self, tenant: &TenantId, id: &str) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM endorsement_authorities WHERE tenant = ? AND id = ?)",
            )?
            .query_row([tenant.as_str(), id], |r| r.get(0))?)
    }

    /// The device enrolled with this TPM: from now on it is no other's.
    pub(super) fn learn_endorsement_key(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        key: &Fingerprint,
    ) -> Result<(), RegistryError> {
        self.tx
            .prepare_cached(
                "INSERT OR IGNORE INTO endorsement_keys (tenant, fingerprint, device, source, created)
                 VALUES (?, ?, ?, ?, ?)",
            )?
            .execute(params![
                tenant.as_str(),
                key.as_bytes(),
                device.as_str(),
                EndorsementSource::Attested.name(),
                self.now.unix_ms()
            ])?;
        Ok(())
    }
}

impl Registry {
    /// Trusts a TPM manufacturer's CA (DER): TPMs whose endorsement certificates it issued, or a CA below it.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`]; [`RegistryError::Exists`]; [`RegistryError::Refused`] if it is no CA certificate.
    pub fn add_endorsement_authority(
        &self,
        actor: Actor,
        tenant: TenantId,
        id: AuthorityId,
        certificate: Vec<u8>,
    ) -> Result<Committed<()>, RegistryError> {
        let anchor = anchor(&tenant, &id, &certificate)?;
        if anchor.facts.ca.is_none() {
            return Err(RegistryError::Refused(
                "the certificate is no CA's; hint: an endorsement key alone is registered by countersign attestation key add"
                    .into(),
            ));
        }
        let fingerprint = anchor.facts.fingerprint;
        self.write(move |scope| {
            scope.need_tenant(&tenant)?;
            let added = scope
                .tx
                .prepare_cached(
                    "INSERT OR IGNORE INTO endorsement_authorities (tenant, id, certificate, created) VALUES (?, ?, ?, ?)",
                )?
                .execute(params![
                    tenant.as_str(),
                    id.as_str(),
                    certificate,
                    scope.now.unix_ms()
                ])?;
            if added == 0 {
                return Err(RegistryError::Exists(format!("endorsement authority {id}")));
            }
            let detail = json!({ "certificate": fingerprint });
            scope.audit(&actor, "endorsement-authority.add", tenant.as_str(), id.as_str(), &detail)
        })
    }

    /// Trusts it no more. What was attested stays so: revoke credentials whose evidence is no longer believed.
    ///
    /// # Errors
    /// [`RegistryError::NoAuthority`].
    pub fn remove_endorsement_authority(
        &self,
        actor: Actor,
        tenant: TenantId,
        id: AuthorityId,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let removed = scope
                .tx
                .prepare_cached("DELETE FROM endorsement_authorities WHERE tenant = ? AND id = ?")?
                .execute([tenant.as_str(), id.as_str()])?;
            if removed == 0 {
                return Err(RegistryError::NoEndorsementAuthority(id));
            }
            scope.audit(
                &actor,
                "endorsement-authority.remove",
                tenant.as_str(),
                id.as_str(),
                &json!({}),
            )
        })
    }

    /// The endorsement authorities of a tenant, in order of id.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn endorsement_authorities(
        &self,
        tenant: &TenantId,
    ) -> Result<Vec<EndorsementAuthorityView>, RegistryError> {
        let rows = self.endorsement_rows(tenant)?;
        rows.into_iter()
            .map(|(id, certificate, created)| {
                let facts = damaged(CertificateFacts::parse(&certificate))?;
                Ok(EndorsementAuthorityView {
                    id,
                    subject: facts.subject_text,
                    fingerprint: facts.fingerprint,
                    not_after: facts.not_after,
                    created,
                })
            })
            .collect()
    }

    /// The same, to hold endorsement certificates against.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn endorsement_anchors(&self, tenant: &TenantId) -> Result<AnchorIndex, RegistryError> {
        let rows = self.endorsement_rows(tenant)?;
        let anchors = rows
            .into_iter()
            .map(|(id, certificate, _)| anchor(tenant, &id, &certificate).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(AnchorIndex::new(anchors))
    }

    fn endorsement_rows(
        &self,
        tenant: &TenantId,
    ) -> Result<Vec<(AuthorityId, Vec<u8>, Timestamp)>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT id, certificate, created FROM endorsement_authorities WHERE tenant = ? ORDER BY id",
            )?;
            let mut rows = statement.query([tenant.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let id = damaged(r.get::<_, String>(0)?.parse())?;
                found.push((id, r.get(1)?, Timestamp::from_unix_ms(r.get(2)?)));
            }
            Ok(found)
        })
    }

    /// Says which device a TPM is in: from now on it lets that device enrol. Safe to repeat.
    ///
    /// # Errors
    /// [`RegistryError::NoDevice`]; [`RegistryError::Attestation`] if it is another's.
    pub fn add_endorsement_key(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        key: Fingerprint,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            if scope.device(&tenant, &device)?.is_none() {
                return Err(RegistryError::NoDevice { tenant, device });
            }
            match scope.endorsement_key(&tenant, &key)? {
                Some((other, _)) if other != device => {
                    return Err(Refusal::EkOfOtherDevice.because(format!("device {other}")).into());
                }
                Some((_, EndorsementSource::Registered)) => return Ok(()),
                Some((_, EndorsementSource::Attested)) | None => {}
            }
            scope
                .tx
                .prepare_cached(
                    "INSERT OR REPLACE INTO endorsement_keys (tenant, fingerprint, device, source, created)
                     VALUES (?, ?, ?, ?, ?)",
                )?
                .execute(params![
                    tenant.as_str(),
                    key.as_bytes(),
                    device.as_str(),
                    EndorsementSource::Registered.name(),
                    scope.now.unix_ms()
                ])?;
            let detail = json!({ "endorsement_key": key });
            scope.audit(
                &actor,
                "endorsement-key.add",
                tenant.as_str(),
                device.as_str(),
                &detail,
            )
        })
    }

    /// Forgets which device a TPM is in: the board was moved, or scrapped.
    ///
    /// # Errors
    /// [`RegistryError::NoEndorsementKey`].
    pub fn remove_endorsement_key(
        &self,
        actor: Actor,
        tenant: TenantId,
        key: Fingerprint,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let Some((device, _)) = scope.endorsement_key(&tenant, &key)? else {
                return Err(RegistryError::NoEndorsementKey(key));
            };
            scope
                .tx
                .prepare_cached("DELETE FROM endorsement_keys WHERE tenant = ? AND fingerprint = ?")?
                .execute(params![tenant.as_str(), key.as_bytes()])?;
            let detail = json!({ "endorsement_key": key });
            scope.audit(
                &actor,
                "endorsement-key.remove",
                tenant.as_str(),
                device.as_str(),
                &detail,
            )
        })
    }

    /// The TPMs of a device.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn endorsement_keys(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Vec<EndorsementKeyView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT fingerprint, source, created FROM endorsement_keys WHERE tenant = ? AND device = ?
                 ORDER BY created",
            )?;
            let mut rows = statement.query([tenant.as_str(), device.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(EndorsementKeyView {
                    fingerprint: Fingerprint::from_bytes(r.get(0)?),
                    device: device.clone(),
                    source: damaged(r.get::<_, String>(1)?.parse())?,
                    created: Timestamp::from_unix_ms(r.get(2)?),
                });
            }
            Ok(found)
        })
    }

    /// The device that a TPM is in, if that is known, and how.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn device_of_endorsement_key(
        &self,
        tenant: &TenantId,
        key: &Fingerprint,
    ) -> Result<Option<(DeviceId, EndorsementSource)>, RegistryError> {
        let found: Option<(String, String)> = self.read(|db| {
            Ok(db
                .prepare_cached(
                    "SELECT device, source FROM endorsement_keys WHERE tenant = ? AND fingerprint = ?",
                )?
                .query_row(params![tenant.as_str(), key.as_bytes()], |r| {
                    Ok((r.get(0)?, r.get(1)?))
                })
                .optional()?)
        })?;
        let Some((device, source)) = found else {
            return Ok(None);
        };
        Ok(Some((damaged(DeviceId::new(&device))?, damaged(source.parse())?)))
    }
}

fn anchor(tenant: &TenantId, id: &AuthorityId, certificate: &[u8]) -> Result<Anchor, RegistryError> {
    Anchor::new(
        tenant.clone(),
        id.clone(),
        AnchorState::Active,
        Generation(0),
        IdentityRule::default(),
        certificate,
    )
    .map_err(|e| RegistryError::Refused(e.to_string()))
}
