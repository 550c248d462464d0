//! Whether the ids of a new grant are taken: what a station issues for one that is taken is refused when its journal is
//! reconciled, and by then the certificate is on a device.

use countersign_factory::station::Terms;
use countersign_identity::{DeviceId, StationId};
use countersign_policy::LifecycleState;
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::StationState;
use crate::change::damaged;
use crate::error::RegistryError;
use crate::writer::Scope;

/// So many ids are named.
const NAMED_MAX: usize = 3;

/// Whether a station may be granted ids that are taken, or that another station may give too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// It may not.
    #[default]
    Refused,
    /// It may: whoever is registered first keeps the id, and any other certificate for it is refused.
    Allowed,
}

/// # Errors
/// [`RegistryError::Refused`] if an id that is granted is taken, or another open grant has it too.
pub(super) fn need_none(scope: &Scope<'_>, terms: &Terms) -> Result<(), RegistryError> {
    let (count, named) = taken(scope, terms)?;
    if count > 0 {
        let more = if count > named.len() { ", …" } else { "" };
        let names: Vec<_> = named.iter().map(DeviceId::as_str).collect();
        return Err(RegistryError::Refused(format!(
            "{count} of the ids {} are devices already that have a certificate, are of another batch or are decommissioned ({}{more}): what the station issues for them is refused when its journal is reconciled (station.duplicate-id, station.decommissioned); hint: grant other ids with --ids, or take that upon you with --allow-overlap",
            terms.ids,
            names.join(", ")
        )));
    }
    if let Some((other, theirs)) = other_grant(scope, terms)? {
        return Err(RegistryError::Refused(format!(
            "station {}'s ids, {}, overlap those of station {other}, {}, whose grant is open: of two certificates for one id the first that is reconciled is registered, the other refused (station.duplicate-id); hint: grant other ids with --ids, let {other} close its grant and reconcile its journal first, or take that upon you with --allow-overlap",
            terms.station, terms.ids, theirs.ids
        )));
    }
    Ok(())
}

/// The devices for which no certificate of the station would be registered: how many, and the first.
fn taken(scope: &Scope<'_>, terms: &Terms) -> Result<(usize, Vec<DeviceId>), RegistryError> {
    let (from, to) = terms.ids.span();
    let mut statement = scope.tx.prepare_cached(
        "SELECT id FROM devices d WHERE tenant = ?1 AND id BETWEEN ?2 AND ?3 AND (state = ?4 OR batch <> ?5
           OR EXISTS (SELECT 1 FROM credentials c WHERE c.tenant = d.tenant AND c.device = d.id))
         ORDER BY id",
    )?;
    let mut rows = statement.query(params![
        terms.tenant.as_str(),
        from,
        to,
        LifecycleState::Decommissioned.name(),
        terms.batch.as_str()
    ])?;
    let (mut count, mut named) = (0, Vec::new());
    while let Some(r) = rows.next()? {
        let id: DeviceId = damaged(r.get::<_, String>(0)?.parse())?;
        if terms.ids.fits(&id) && terms.batch_ids.fits(&id) {
            count += 1;
            if named.len() < NAMED_MAX {
                named.push(id);
            }
        }
    }
    Ok((count, named))
}

/// Another station of the tenant that may give some of these ids.
fn other_grant(scope: &Scope<'_>, terms: &Terms) -> Result<Option<(StationId, Terms)>, RegistryError> {
    let mut statement = scope
        .tx
        .prepare_cached("SELECT terms FROM stations WHERE tenant = ? AND state = ? ORDER BY created, id")?;
    let mut rows = statement.query([terms.tenant.as_str(), StationState::Granted.name()])?;
    while let Some(r) = rows.next()? {
        let other: Terms = damaged(serde_json::from_str(&r.get::<_, String>(0)?))?;
        if other.ids.overlaps(&terms.ids) {
            return Ok(Some((other.station.clone(), other)));
        }
    }
    Ok(None)
}
