//! First contact: decided, kept and answered in one transaction, so that two at once cannot both succeed.

use std::sync::Arc;

use countersign_policy::first_contact::{self, Answer, Contact, Known, KnownDevice, Learned};
use countersign_policy::lifecycle::Lifecycle;
use countersign_policy::{CredentialFacts, Denial, DenialCode, DeviceFacts, FactSource};
use parking_lot::Mutex;
use rusqlite::params;
use serde_json::json;

use crate::change::{Actor, NewDevice};
use crate::credential::NewCredential;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::Scope;

impl Registry {
    pub(crate) fn first_contact(&self, contact: Contact, answer: Answer) {
        self.write_then(
            move |scope| learn(scope, &contact),
            |committed| {
                answer(match committed {
                    Ok(committed) => committed.value,
                    Err(e) => Err(Denial::new(DenialCode::RegistryUnavailable, e.to_string())),
                });
            },
        );
    }
}

impl Registry {
    /// What a first contact would bring about: device and credential as they would be, or why not. Nothing is kept.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    #[allow(clippy::type_complexity, reason = "an answer, or why there is none")]
    pub fn first_contact_check(
        &self,
        contact: Contact,
    ) -> Result<Result<(Arc<DeviceFacts>, CredentialFacts), Denial>, RegistryError> {
        let found = Arc::new(Mutex::new(None));
        let seen = found.clone();
        let undone = || RegistryError::Refused("only looked at".into());
        // Failing is what undoes the job.
        let checked = self.write(move |scope| -> Result<(), RegistryError> {
            let learned = learn(scope, &contact)?;
            let (mut device, mut credential) = (None, None);
            for fact in &scope.facts {
                match fact {
                    Fact::Device(d) => device = Some(d.clone()),
                    Fact::Credential(c) => credential = Some(c.clone()),
                    _ => {}
                }
            }
            let device = device.or_else(|| scope.table.device(&contact.tenant, &contact.device));
            let credential = credential.or_else(|| scope.table.credential(&contact.certificate.fingerprint));
            *seen.lock() = Some(learned.and_then(|()| {
                device
                    .zip(credential)
                    .ok_or_else(|| Denial::from(DenialCode::UnknownCredential))
            }));
            Err(undone())
        });
        match (found.lock().take(), checked) {
            (Some(found), _) => Ok(found),
            (None, Err(e)) => Err(e),
            (None, Ok(_)) => Err(undone()),
        }
    }
}

fn learn(scope: &mut Scope<'_>, contact: &Contact) -> Result<Result<(), Denial>, RegistryError> {
    let (tenant, id) = (&contact.tenant, &contact.device);
    // Somebody else's first contact of the same certificate may have come first.
    if scope
        .credential_owner(&contact.certificate.fingerprint)?
        .is_some()
    {
        return Ok(Ok(()));
    }
    // Whatever the authority's mode: a station's certificates are learned from its journal only.
    if let Some(station) = scope.station_by_subject(&contact.certificate.issuer_der)? {
        let facts = scope.table.station(tenant, &contact.certificate.issuer_der);
        // Of another tenant: it is as unknown here as its device.
        let denial = facts.map_or_else(
            || {
                Denial::new(
                    DenialCode::UnknownCredential,
                    format!("device {id} comes from factory station {station}"),
                )
            },
            |station| station.denial(id),
        );
        return Ok(Err(denial));
    }
    // A restore forgot the certificate, not that it was revoked.
    if scope.is_lost(&contact.authority, &contact.certificate.serial)? {
        return Ok(Err(Denial::new(
            DenialCode::FirstContactRevokedBefore,
            format!(
                "device {id} came with the certificate of serial {}, which had been revoked or replaced when this registry was restored",
                contact.certificate.serial
            ),
        )));
    }
    let device = match scope.device(tenant, id)? {
        None => None,
        Some((device, lifecycle, _)) => Some(KnownDevice {
            state: lifecycle.state,
            authority: device.authority,
            has_credential: scope
                .tx
                .prepare_cached(
                    "SELECT EXISTS (SELECT 1 FROM credentials WHERE tenant = ? AND device = ?
                     AND state IN ('issued', 'active') AND not_after >= ?)",
                )?
                .query_row(params![tenant.as_str(), id.as_str(), scope.now.unix_ms()], |r| {
                    r.get(0)
                })?,
        }),
    };
    let came: i64 = scope
        .tx
        .prepare_cached("SELECT came FROM authorities WHERE id = ?")?
        .query_row([contact.authority.as_str()], |r| r.get(0))?;
    let known = Known {
        device,
        came_by_authority: came.cast_unsigned(),
    };
    // The facts as this very transaction finds them: the writer is the only one who changes them.
    let admission = scope.table.admission(&contact.authority);
    let learned = match first_contact::decide(&admission, contact, &known) {
        Ok(learned) => learned,
        Err(denial) => return Ok(Err(denial)),
    };
    let shared: Option<(String, String)> =
        scope.key_of_other(tenant, id, &contact.certificate.public_key_sha256)?;
    if let Some((_, other)) = shared {
        return Ok(Err(Denial::new(
            DenialCode::FirstContactSharedKey,
            format!("device {id} came with the key of device {other}"),
        )));
    }
    if let Some(service) = scope.service_of_key(&contact.certificate.public_key_sha256)? {
        return Ok(Err(Denial::new(
            DenialCode::FirstContactSharedKey,
            format!("device {id} came with the key of service {service}, which is no device"),
        )));
    }
    if scope.is_revoked_key(&contact.certificate.public_key_sha256)? {
        return Ok(Err(Denial::new(
            DenialCode::FirstContactRevokedKey,
            format!("device {id} came with a new certificate for a key of which one was revoked"),
        )));
    }
    if let Learned::Device(template) = &learned {
        let new = NewDevice {
            id: id.clone(),
            model: template.model.clone(),
            groups: template.groups.clone(),
            state: template.state,
            authority: Some(contact.authority.clone()),
        };
        scope.put_device(tenant, &new, Lifecycle::new(template.state), scope.now)?;
        scope
            .tx
            .prepare_cached("UPDATE devices SET came_by = ? WHERE tenant = ? AND id = ?")?
            .execute([contact.authority.as_str(), tenant.as_str(), id.as_str()])?;
        scope
            .tx
            .prepare_cached("UPDATE authorities SET came = came + 1 WHERE id = ?")?
            .execute([contact.authority.as_str()])?;
    }
    let credential = NewCredential {
        authority: Some(contact.authority.clone()),
        ..NewCredential::brought(contact.certificate.clone())
    };
    scope.put_credential(tenant, id, &credential)?;
    let detail = json!({
        "admission": admission.name(),
        "authority": contact.authority,
        "fingerprint": contact.certificate.fingerprint,
        "serial": contact.certificate.serial,
        "device": if matches!(learned, Learned::Device(_)) { "new" } else { "known" },
    });
    let by = Actor("first-contact".into());
    scope.audit(&by, "device.first-contact", tenant.as_str(), id.as_str(), &detail)?;
    Ok(Ok(()))
}
