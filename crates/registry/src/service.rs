//! Services: backends of the fleet, each known by one certificate. A service is never a device, nor a device a service:
//! no key is ever both.

use countersign_identity::{CertificateFacts, Fingerprint, ServiceId, TenantId, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, damaged};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// A service, as it is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Its id.
    pub id: ServiceId,
    /// `active` or `revoked`.
    pub state: String,
    /// The tenants about whose tokens it may ask.
    pub introspects: Vec<TenantId>,
    /// The certificate it is known by.
    pub fingerprint: Fingerprint,
    /// The certificate's subject, for people.
    pub subject: String,
    /// Until when the certificate is valid.
    pub not_after: Timestamp,
    /// Since when it is registered.
    pub created: Timestamp,
    /// Since when it is revoked.
    pub revoked: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
}

impl Scope<'_> {
    /// The service whose key this is.
    pub(crate) fn service_of_key(&self, public_key: &Fingerprint) -> Result<Option<String>, RegistryError> {
        Ok(self
            .tx
            .prepare_cached("SELECT id FROM services WHERE public_key = ?")?
            .query_row([public_key.as_bytes()], |r| r.get(0))
            .optional()?)
    }

    /// Refuses a certificate whose key is a service's: a device it must not become.
    pub(crate) fn refuse_key_of_service(&self, public_key: &Fingerprint) -> Result<(), RegistryError> {
        match self.service_of_key(public_key)? {
            None => Ok(()),
            Some(service) => Err(RegistryError::Refused(format!(
                "the key of this certificate is that of service {service}, and no service is a device; hint: give the device a key of its own"
            ))),
        }
    }
}

impl Registry {
    /// Registers a service by its certificate.
    ///
    /// # Errors
    /// [`RegistryError::Exists`]; [`RegistryError::NoTenant`]; [`RegistryError::Refused`] if the key is a device's, or no
    /// tenant is named.
    pub fn add_service(
        &self,
        actor: Actor,
        id: ServiceId,
        certificate: CertificateFacts,
        introspects: Vec<TenantId>,
    ) -> Result<Committed<()>, RegistryError> {
        if introspects.is_empty() {
            return Err(RegistryError::Refused(
                "no tenant is named, so the service could do nothing; hint: name one or more tenants".into(),
            ));
        }
        self.write(move |scope| {
            for tenant in &introspects {
                scope.need_tenant(tenant)?;
            }
            let c = &certificate;
            let device: Option<(String, String)> = scope
                .tx
                .prepare_cached(
                    "SELECT tenant, device FROM credentials
                     WHERE (substr(public_key, 1, 8) = substr(?1, 1, 8) AND public_key = ?1) OR fingerprint = ?2 LIMIT 1",
                )?
                .query_row(
                    params![c.public_key_sha256.as_bytes(), c.fingerprint.as_bytes()],
                    |r| Ok((r.get(0)?, r.get(1)?)),
                )
                .optional()?;
            if let Some((tenant, device)) = device {
                return Err(RegistryError::Refused(format!(
                    "the key of this certificate is that of device {device} of tenant {tenant}, and no device is a service; hint: give the service a key of its own"
                )));
            }
            let added = scope
                .tx
                .prepare_cached(
                    "INSERT INTO services (id, certificate, public_key, subject, not_after, created)
                     VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                )?
                .execute(params![
                    id.as_str(),
                    c.fingerprint.as_bytes(),
                    c.public_key_sha256.as_bytes(),
                    c.subject_text,
                    c.not_after.unix_ms(),
                    scope.now.unix_ms(),
                ])?;
            if added == 0 {
                return Err(RegistryError::Exists(format!("service {id}, or one by this certificate,")));
            }
            let mut statement = scope.tx.prepare_cached(
                "INSERT OR IGNORE INTO service_permissions (service, tenant, permission) VALUES (?, ?, 'introspect')",
            )?;
            for tenant in &introspects {
                statement.execute([id.as_str(), tenant.as_str()])?;
            }
            drop(statement);
            let detail = json!({ "certificate": c.fingerprint, "introspects": introspects });
            scope.audit(&actor, "service.add", "", id.as_str(), &detail)
        })
    }

    /// Revokes a service: from now on it may ask nothing. Its name and certificate stay taken.
    ///
    /// # Errors
    /// [`RegistryError::NoService`].
    pub fn revoke_service(
        &self,
        actor: Actor,
        id: ServiceId,
        reason: String,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let known: bool = scope
                .tx
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM services WHERE id = ?)")?
                .query_row([id.as_str()], |r| r.get(0))?;
            if !known {
                return Err(RegistryError::NoService(id));
            }
            let moved = scope
                .tx
                .prepare_cached(
                    "UPDATE services SET revoked = ?2, reason = ?3 WHERE id = ?1 AND revoked IS NULL",
                )?
                .execute(params![id.as_str(), scope.now.unix_ms(), reason])?;
            if moved > 0 {
                scope.audit(
                    &actor,
                    "service.revoke",
                    "",
                    id.as_str(),
                    &json!({ "reason": reason }),
                )?;
            }
            Ok(())
        })
    }

    /// Forgets a service: name and certificate are free again.
    ///
    /// # Errors
    /// [`RegistryError::NoService`].
    pub fn remove_service(&self, actor: Actor, id: ServiceId) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let removed = scope
                .tx
                .prepare_cached("DELETE FROM services WHERE id = ?")?
                .execute([id.as_str()])?;
            if removed == 0 {
                return Err(RegistryError::NoService(id));
            }
            scope.audit(&actor, "service.remove", "", id.as_str(), &json!({}))
        })
    }

    /// All services, in order of id.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn services(&self) -> Result<Vec<ServiceView>, RegistryError> {
        self.read(|db| select(db, "1 ORDER BY id", &[]))
    }

    /// The service that is known by a certificate and not revoked.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn service_of(&self, certificate: &Fingerprint) -> Result<Option<ServiceView>, RegistryError> {
        self.read(|db| {
            let found = select(
                db,
                "certificate = ? AND revoked IS NULL",
                &[certificate.as_bytes()],
            )?;
            Ok(found.into_iter().next())
        })
    }
}

fn select(db: &Connection, condition: &str, values: &[&[u8; 32]]) -> Result<Vec<ServiceView>, RegistryError> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT id, certificate, subject, not_after, created, revoked, reason,
         (SELECT json_group_array(tenant) FROM (SELECT tenant FROM service_permissions p
          WHERE p.service = s.id AND permission = 'introspect' ORDER BY tenant))
         FROM services s WHERE {condition}"
    ))?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    let mut found = Vec::new();
    while let Some(r) = rows.next()? {
        let revoked: Option<i64> = r.get(5)?;
        let tenants: String = r.get(7)?;
        found.push(ServiceView {
            id: damaged(r.get::<_, String>(0)?.parse())?,
            state: if revoked.is_some() { "revoked" } else { "active" }.into(),
            introspects: damaged(serde_json::from_str(&tenants))?,
            fingerprint: Fingerprint::from_bytes(r.get(1)?),
            subject: r.get(2)?,
            not_after: Timestamp::from_unix_ms(r.get(3)?),
            created: Timestamp::from_unix_ms(r.get(4)?),
            revoked: revoked.map(Timestamp::from_unix_ms),
            reason: r.get(6)?,
        });
    }
    Ok(found)
}
