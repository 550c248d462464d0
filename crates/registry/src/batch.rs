//! Batches: planned, counted, closed. What may enter one is decided by [`countersign_factory::batch`].

use countersign_factory::{Batch, BatchStanding, BatchState, SigningWindow};
use countersign_identity::{AuthorityId, BatchId, DeviceId, Generation, TenantId, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, damaged};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// A batch, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchView {
    /// The plan.
    #[serde(flatten)]
    pub batch: Batch,
    /// Whether it takes any more.
    pub state: BatchState,
    /// How many devices it has.
    pub devices: u64,
    /// Its certificates by their state: issued (made, not confirmed), active, lapsed, superseded, revoked.
    pub credentials: std::collections::BTreeMap<String, u64>,
    /// The revision of its last change.
    pub generation: Generation,
    /// Since when.
    pub created: Timestamp,
}

const COLUMNS: &str =
    "tenant, id, model, profile, groups, devices_start, authority, id_pattern, quota, not_before,
    not_after, state, devices, revision, created";

struct Row {
    batch: Batch,
    standing: BatchStanding,
    generation: Generation,
    created: Timestamp,
}

/// Of a row of [`COLUMNS`].
fn row(r: &rusqlite::Row<'_>) -> Result<Row, RegistryError> {
    let text = |n: usize| -> Result<String, RegistryError> { Ok(r.get(n)?) };
    let batch = Batch {
        tenant: damaged(text(0)?.parse())?,
        id: damaged(text(1)?.parse())?,
        model: text(2)?,
        profile: text(3)?,
        groups: damaged(serde_json::from_str(&text(4)?))?,
        devices_start: damaged(text(5)?.parse())?,
        authority: r
            .get::<_, Option<String>>(6)?
            .map(|a| damaged(a.parse()))
            .transpose()?,
        id_pattern: damaged(text(7)?.parse())?,
        quota: r.get::<_, i64>(8)?.cast_unsigned(),
        window: SigningWindow {
            not_before: r.get::<_, Option<i64>>(9)?.map(Timestamp::from_unix_ms),
            not_after: r.get::<_, Option<i64>>(10)?.map(Timestamp::from_unix_ms),
        },
    };
    Ok(Row {
        batch,
        standing: BatchStanding {
            state: damaged(text(11)?.parse())?,
            devices: r.get::<_, i64>(12)?.cast_unsigned(),
        },
        generation: Generation(r.get::<_, i64>(13)?.cast_unsigned()),
        created: Timestamp::from_unix_ms(r.get(14)?),
    })
}

fn read_batch(db: &Connection, tenant: &TenantId, id: &BatchId) -> Result<Row, RegistryError> {
    db.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM batches WHERE tenant = ? AND id = ?"
    ))?
    .query_row([tenant.as_str(), id.as_str()], |r| Ok(row(r)))
    .optional()?
    .unwrap_or_else(|| {
        Err(RegistryError::NoBatch {
            tenant: tenant.clone(),
            batch: id.clone(),
        })
    })
}

fn view(db: &Connection, row: Row) -> Result<BatchView, RegistryError> {
    let mut statement = db.prepare_cached(
        "SELECT c.state, count(*) FROM devices d JOIN credentials c ON c.tenant = d.tenant AND c.device = d.id
         WHERE d.tenant = ?1 AND d.batch = ?2 AND c.batch = ?2 GROUP BY c.state",
    )?;
    let counts = statement.query_map([row.batch.tenant.as_str(), row.batch.id.as_str()], |r| {
        Ok((r.get(0)?, r.get::<_, i64>(1)?.cast_unsigned()))
    })?;
    Ok(BatchView {
        credentials: counts.collect::<Result<_, _>>()?,
        state: row.standing.state,
        devices: row.standing.devices,
        batch: row.batch,
        generation: row.generation,
        created: row.created,
    })
}

impl Scope<'_> {
    /// A batch and how it stands in this transaction; devices that stations may still make are counted in.
    pub(crate) fn batch(
        &self,
        tenant: &TenantId,
        id: &BatchId,
    ) -> Result<(Batch, BatchStanding), RegistryError> {
        let Row {
            batch, mut standing, ..
        } = read_batch(self.tx, tenant, id)?;
        // What stations may still make is spoken for.
        standing.devices += self.reserved_in_batch(tenant, id)?;
        Ok((batch, standing))
    }

    /// The batch that a device was made in; `None` inside if in none, outside if there is no such device.
    pub(crate) fn batch_of(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Option<Option<BatchId>>, RegistryError> {
        let found: Option<Option<String>> = self
            .tx
            .prepare_cached("SELECT batch FROM devices WHERE tenant = ? AND id = ?")?
            .query_row([tenant.as_str(), device.as_str()], |r| r.get(0))
            .optional()?;
        found
            .map(|batch| batch.map(|b| damaged(b.parse())).transpose())
            .transpose()
    }

    /// Counts devices that entered a batch in this transaction. The table's own check is the last guard of the quota.
    pub(crate) fn count_into_batch(
        &self,
        tenant: &TenantId,
        id: &BatchId,
        devices: u64,
        generation: Generation,
    ) -> Result<(), RegistryError> {
        self.tx
            .prepare_cached(
                "UPDATE batches SET devices = devices + ?3, revision = ?4 WHERE tenant = ?1 AND id = ?2",
            )?
            .execute(params![
                tenant.as_str(),
                id.as_str(),
                devices.cast_signed(),
                generation.0.cast_signed()
            ])?;
        Ok(())
    }
}

impl Registry {
    /// Adds a batch, open. The same plan again changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`], [`RegistryError::NoAuthority`]; [`RegistryError::Exists`] if there is one of that
    /// id with another plan; [`RegistryError::Refused`] if the plan cannot be.
    pub fn add_batch(&self, actor: Actor, mut batch: Batch) -> Result<Committed<()>, RegistryError> {
        batch.check().map_err(RegistryError::Refused)?;
        batch.groups.sort_unstable();
        batch.groups.dedup();
        self.write(move |scope| {
            scope.need_tenant(&batch.tenant)?;
            if let Some(authority) = &batch.authority {
                scope.need_authority(&batch.tenant, authority)?;
            }
            match scope.batch(&batch.tenant, &batch.id) {
                Ok((same, _)) if same == batch => return Ok(()),
                Ok(_) => {
                    return Err(RegistryError::Exists(format!(
                        "batch {} of tenant {}, with another plan,",
                        batch.id, batch.tenant
                    )));
                }
                Err(RegistryError::NoBatch { .. }) => {}
                Err(e) => return Err(e),
            }
            let generation = scope.revise("batch", batch.tenant.as_str(), batch.id.as_str())?;
            let groups =
                serde_json::to_string(&batch.groups).map_err(|e| RegistryError::Database(e.to_string()))?;
            scope
                .tx
                .prepare_cached(&format!(
                    "INSERT INTO batches ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)"
                ))?
                .execute(params![
                    batch.tenant.as_str(),
                    batch.id.as_str(),
                    batch.model,
                    batch.profile,
                    groups,
                    batch.devices_start.name(),
                    batch.authority.as_ref().map(AuthorityId::as_str),
                    batch.id_pattern.to_string(),
                    batch.quota.cast_signed(),
                    batch.window.not_before.map(Timestamp::unix_ms),
                    batch.window.not_after.map(Timestamp::unix_ms),
                    BatchState::Open.name(),
                    generation.0.cast_signed(),
                    scope.now.unix_ms(),
                ])?;
            scope.audit(
                &actor,
                "batch.add",
                batch.tenant.as_str(),
                batch.id.as_str(),
                &json!({
                    "model": batch.model, "profile": batch.profile, "groups": batch.groups,
                    "devices_start": batch.devices_start, "authority": batch.authority,
                    "id_pattern": batch.id_pattern, "quota": batch.quota, "window": batch.window,
                }),
            )
        })
    }

    /// Closes a batch, for good. Closing a closed one changes nothing.
    ///
    /// # Errors
    /// [`RegistryError::NoBatch`].
    pub fn close_batch(
        &self,
        actor: Actor,
        tenant: TenantId,
        id: BatchId,
        reason: String,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let (batch, standing) = scope.batch(&tenant, &id)?;
            if standing.state == BatchState::Closed {
                return Ok(());
            }
            let generation = scope.revise("batch", tenant.as_str(), id.as_str())?;
            scope
                .tx
                .prepare_cached("UPDATE batches SET state = ?3, revision = ?4 WHERE tenant = ?1 AND id = ?2")?
                .execute(params![
                    tenant.as_str(),
                    id.as_str(),
                    BatchState::Closed.name(),
                    generation.0.cast_signed()
                ])?;
            let detail = json!({ "reason": reason, "devices": standing.devices, "quota": batch.quota });
            scope.audit(&actor, "batch.close", tenant.as_str(), id.as_str(), &detail)
        })
    }

    /// A batch.
    ///
    /// # Errors
    /// [`RegistryError::NoBatch`].
    pub fn batch(&self, tenant: &TenantId, id: &BatchId) -> Result<BatchView, RegistryError> {
        self.read(|db| view(db, read_batch(db, tenant, id)?))
    }

    /// All batches of a tenant, newest first.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn batches(&self, tenant: &TenantId) -> Result<Vec<BatchView>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM batches WHERE tenant = ? ORDER BY created DESC, id"
            ))?;
            let mut rows = statement.query([tenant.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(view(db, row(r)?)?);
            }
            Ok(found)
        })
    }

    /// The batch that a device was made in.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn batch_of(&self, tenant: &TenantId, device: &DeviceId) -> Result<Option<BatchId>, RegistryError> {
        let found: Option<String> = self.read(|db| {
            Ok(db
                .prepare_cached("SELECT batch FROM devices WHERE tenant = ? AND id = ?")?
                .query_row([tenant.as_str(), device.as_str()], |r| r.get(0))
                .optional()?
                .flatten())
        })?;
        found.map(|b| damaged(b.parse())).transpose()
    }
}
