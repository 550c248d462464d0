//! Devices move through their lifecycle: one at a time, many by a selector, and by themselves when a time box is over.

use countersign_identity::{AuthorityId, BatchId, DeviceId, TenantId, Timestamp};
use countersign_policy::lifecycle::Lifecycle;
use countersign_policy::{LifecycleMove, LifecycleState};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, damaged};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// The most devices that one transaction ends the time box of: the writer is held for some 20 ms.
const TIMED_MAX: usize = 256;
/// The greatest length of a reason or an evidence, in characters.
const TEXT_MAX: usize = 1000;

/// A move with all that is said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub attempted: LifecycleMove,
    /// Why, for the audit.
    pub reason: String,
    /// When it ends by itself; for a suspension and a quarantine only.
    pub until: Option<Timestamp>,
    /// What a release from quarantine is based on, for the audit.
    pub evidence: Option<String>,
}

impl Move {
    /// A move without an end.
    pub fn new(attempted: LifecycleMove, reason: impl Into<String>) -> Self {
        Self {
            attempted,
            reason: reason.into(),
            until: None,
            evidence: None,
        }
    }

    /// Whether it makes sense at all, whatever device it is for.
    fn check(&self, now: Timestamp) -> Result<(), RegistryError> {
        let wrong = |text: &str| Err(RegistryError::Refused(text.into()));
        if self.until.is_some_and(|until| until <= now) {
            return wrong("its end is in the past; hint: give a time that is to come");
        }
        if self.evidence.is_some() && self.attempted != LifecycleMove::Release {
            return wrong("evidence goes with a release from quarantine, and with nothing else");
        }
        let long = |text: &str| text.chars().count() > TEXT_MAX;
        if long(&self.reason) || self.evidence.as_deref().is_some_and(long) {
            return wrong("reason and evidence have 1000 characters at most; hint: name a document");
        }
        Ok(())
    }
}

/// Which devices a bulk move is for; what is given must all hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// In this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Of this model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Made in this batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// Bound to this authority, or with a certificate in force whose chain ends in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<AuthorityId>,
    /// In this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<LifecycleState>,
}

impl Selector {
    /// Whether it selects by nothing: then it means every device, and is refused.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            ("group", self.group.clone()),
            ("model", self.model.clone()),
            ("batch", self.batch.as_ref().map(ToString::to_string)),
            ("authority", self.authority.as_ref().map(ToString::to_string)),
            ("state", self.state.map(|s| s.to_string())),
        ];
        let given: Vec<String> = parts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} {}", value?)))
            .collect();
        f.write_str(&given.join(", "))
    }
}

/// A device that a selector found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selected {
    /// The device.
    pub id: DeviceId,
    /// Where it stands.
    pub state: LifecycleState,
}

/// What became of the devices of one bulk move.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MovedMany {
    /// Moved.
    pub moved: u64,
    /// Not moved: the table does not have the move from where they are, or they are gone.
    pub refused: Vec<DeviceId>,
}

impl Scope<'_> {
    pub(crate) fn move_device(
        &mut self,
        actor: &Actor,
        tenant: &TenantId,
        device: &DeviceId,
        wanted: &Move,
    ) -> Result<Lifecycle, RegistryError> {
        let Some((row, lifecycle, created)) = self.device(tenant, device)? else {
            return Err(RegistryError::NoDevice {
                tenant: tenant.clone(),
                device: device.clone(),
            });
        };
        let mut moved = lifecycle
            .apply(wanted.attempted)
            .map_err(|fault| RegistryError::Move {
                device: device.clone(),
                fault,
            })?;
        if let Some(until) = wanted.until {
            moved = moved
                .until(until)
                .map_err(|e| RegistryError::Refused(e.to_string()))?;
        }
        self.put_device(tenant, &row, moved, created)?;
        self.put_move(tenant, device, actor, &wanted.reason)?;
        let mut detail = json!({
            "from": lifecycle.state.name(), "to": moved.state.name(), "reason": wanted.reason,
        });
        if let Some(until) = wanted.until {
            detail["until"] = json!(until.to_string());
        }
        if let Some(evidence) = &wanted.evidence {
            detail["evidence"] = json!(evidence);
        }
        let action = format!("device.{}", wanted.attempted.name());
        self.audit(actor, &action, tenant.as_str(), device.as_str(), &detail)?;
        Ok(moved)
    }

    /// Who moved a device into its state, now, and why.
    fn put_move(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        actor: &Actor,
        reason: &str,
    ) -> Result<(), RegistryError> {
        self.tx
            .prepare_cached(
                "UPDATE devices SET moved = ?3, moved_by = ?4, moved_why = ?5 WHERE tenant = ?1 AND id = ?2",
            )?
            .execute(params![
                tenant.as_str(),
                device.as_str(),
                self.now.unix_ms(),
                actor.0,
                reason
            ])?;
        Ok(())
    }

    /// Everything that time has ended for one device.
    fn end_time_box(&mut self, tenant: &TenantId, device: &DeviceId) -> Result<bool, RegistryError> {
        let by = Actor("countersign".into());
        let Some((row, mut lifecycle, created)) = self.device(tenant, device)? else {
            return Ok(false);
        };
        let mut ended = false;
        while let Some((what, next)) = lifecycle.step_at(self.now) {
            let detail = json!({
                "from": lifecycle.state.name(), "to": next.state.name(),
                "returns_to": next.before_quarantine.map(LifecycleState::name),
                "reason": "its time was over",
            });
            self.audit(&by, what.action(), tenant.as_str(), device.as_str(), &detail)?;
            if next.state != lifecycle.state {
                self.put_move(tenant, device, &by, "its time was over")?;
            }
            (lifecycle, ended) = (next, true);
        }
        if ended {
            self.put_device(tenant, &row, lifecycle, created)?;
        }
        Ok(ended)
    }
}

/// The devices whose time box is over at `?1`.
const TIMED: &str = "SELECT tenant, id FROM devices WHERE suspended_until <= ?1
    UNION SELECT tenant, id FROM devices WHERE quarantined_until <= ?1";

impl Registry {
    /// Moves a device through its lifecycle.
    ///
    /// # Errors
    /// [`RegistryError::Move`] if the table does not have the move.
    pub fn move_device(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        attempted: LifecycleMove,
        reason: String,
    ) -> Result<Committed<Lifecycle>, RegistryError> {
        self.move_device_as(actor, tenant, device, Move::new(attempted, reason))
    }

    /// The same with an end, or with evidence.
    ///
    /// # Errors
    /// As for [`Registry::move_device`]; [`RegistryError::Refused`] if the end is in the past, or the move takes none.
    pub fn move_device_as(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        wanted: Move,
    ) -> Result<Committed<Lifecycle>, RegistryError> {
        self.write(move |scope| {
            wanted.check(scope.now)?;
            scope.move_device(&actor, &tenant, &device, &wanted)
        })
    }

    /// Moves many devices in one transaction. One that cannot be moved does not hold up the others.
    ///
    /// # Errors
    /// [`RegistryError`] if the move itself makes no sense, or it cannot be written: then none is moved.
    pub fn move_devices(
        &self,
        actor: Actor,
        tenant: TenantId,
        devices: Vec<DeviceId>,
        wanted: Move,
    ) -> Result<Committed<MovedMany>, RegistryError> {
        self.write(move |scope| {
            wanted.check(scope.now)?;
            let mut many = MovedMany::default();
            for device in devices {
                match scope.move_device(&actor, &tenant, &device, &wanted) {
                    Ok(_) => many.moved += 1,
                    // Nothing was written for it: the table is asked before anything is.
                    Err(RegistryError::Move { .. } | RegistryError::NoDevice { .. }) => {
                        many.refused.push(device);
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(many)
        })
    }

    /// Refuses a move that makes no sense for any device, before a bulk run of it begins.
    ///
    /// # Errors
    /// [`RegistryError::Refused`].
    pub fn check_move(&self, wanted: &Move) -> Result<(), RegistryError> {
        wanted.check(self.now())?;
        let takes_end = matches!(
            wanted.attempted,
            LifecycleMove::Suspend | LifecycleMove::Quarantine
        );
        if wanted.until.is_some() && !takes_end {
            return Err(RegistryError::Refused(
                "only a suspension and a quarantine take a time".into(),
            ));
        }
        Ok(())
    }

    /// Refuses a selector that names what the tenant does not have: a mistyped name would select nothing, and look like a
    /// success.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`]; [`RegistryError::NoBatch`]; [`RegistryError::NoAuthority`].
    pub fn check_selector(&self, tenant: &TenantId, selector: &Selector) -> Result<(), RegistryError> {
        let is_there = |sql: &str, values: &[&str]| {
            self.read(|db| {
                let values = rusqlite::params_from_iter(values);
                Ok(db
                    .prepare_cached(sql)?
                    .query_row(values, |r| r.get::<_, bool>(0))?)
            })
        };
        if !is_there(
            "SELECT EXISTS (SELECT 1 FROM tenants WHERE id = ?)",
            &[tenant.as_str()],
        )? {
            return Err(RegistryError::NoTenant(tenant.clone()));
        }
        if let Some(batch) = &selector.batch
            && !is_there(
                "SELECT EXISTS (SELECT 1 FROM batches WHERE tenant = ? AND id = ?)",
                &[tenant.as_str(), batch.as_str()],
            )?
        {
            return Err(RegistryError::NoBatch {
                tenant: tenant.clone(),
                batch: batch.clone(),
            });
        }
        if let Some(authority) = &selector.authority
            && !is_there(
                "SELECT EXISTS (SELECT 1 FROM authorities WHERE tenant = ? AND id = ?)",
                &[tenant.as_str(), authority.as_str()],
            )?
        {
            return Err(RegistryError::NoAuthority(authority.to_string()));
        }
        Ok(())
    }

    /// The devices that a selector finds after `after` in order of id, at most `limit`.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn select_devices(
        &self,
        tenant: &TenantId,
        selector: &Selector,
        after: Option<&DeviceId>,
        limit: u32,
    ) -> Result<Vec<Selected>, RegistryError> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached(&format!("SELECT id, state {SELECTED} ORDER BY id LIMIT ?8"))?;
            let mut rows = statement.query(params![
                tenant.as_str(),
                after.map_or("", DeviceId::as_str),
                selector.group,
                selector.model,
                selector.batch.as_ref().map(BatchId::as_str),
                selector.authority.as_ref().map(AuthorityId::as_str),
                selector.state.map(LifecycleState::name),
                limit
            ])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(Selected {
                    id: damaged(r.get::<_, String>(0)?.parse())?,
                    state: damaged(r.get::<_, String>(1)?.parse())?,
                });
            }
            Ok(found)
        })
    }

    /// How many devices a selector finds, by state.
    ///
    /// # Errors
    /// As for [`Registry::select_devices`].
    pub fn count_selected(
        &self,
        tenant: &TenantId,
        selector: &Selector,
    ) -> Result<Vec<(LifecycleState, u64)>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(&format!(
                "SELECT state, count(*) {SELECTED} GROUP BY state ORDER BY state"
            ))?;
            let mut rows = statement.query(params![
                tenant.as_str(),
                "",
                selector.group,
                selector.model,
                selector.batch.as_ref().map(BatchId::as_str),
                selector.authority.as_ref().map(AuthorityId::as_str),
                selector.state.map(LifecycleState::name)
            ])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let state = damaged(r.get::<_, String>(0)?.parse())?;
                found.push((state, r.get::<_, i64>(1)?.cast_unsigned()));
            }
            Ok(found)
        })
    }

    /// Ends the suspensions and quarantines whose time is over, some hundred at most; how many devices that were. More
    /// are left while [`Registry::is_time_box_over`].
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be written.
    pub fn end_time_boxes(&self) -> Result<Committed<u64>, RegistryError> {
        self.write(|scope| {
            let due = timed(scope.tx, scope.now)?;
            let mut ended = 0;
            for (tenant, device) in due {
                ended += u64::from(scope.end_time_box(&tenant, &device)?);
            }
            Ok(ended)
        })
    }

    /// Whether a suspension or a quarantine is over at `now`.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn is_time_box_over(&self, now: Timestamp) -> Result<bool, RegistryError> {
        self.read(|db| {
            Ok(db
                .prepare_cached(&format!("SELECT EXISTS ({TIMED})"))?
                .query_row([now.unix_ms()], |r| r.get(0))?)
        })
    }
}

const SELECTED: &str = "FROM devices d WHERE tenant = ?1 AND id > ?2
    AND (?3 IS NULL OR EXISTS (SELECT 1 FROM json_each(d.groups) WHERE value = ?3))
    AND (?4 IS NULL OR model = ?4) AND (?5 IS NULL OR batch = ?5)
    AND (?6 IS NULL OR d.authority = ?6 OR EXISTS (SELECT 1 FROM credentials c WHERE c.tenant = d.tenant
        AND c.device = d.id AND c.authority = ?6 AND c.state IN ('issued', 'active')))
    AND (?7 IS NULL OR state = ?7)";

fn timed(db: &Connection, now: Timestamp) -> Result<Vec<(TenantId, DeviceId)>, RegistryError> {
    let mut statement = db.prepare_cached(&format!("{TIMED} LIMIT ?2"))?;
    let mut rows = statement.query(params![now.unix_ms(), TIMED_MAX as i64])?;
    let mut found = Vec::new();
    while let Some(r) = rows.next()? {
        found.push((
            damaged(r.get::<_, String>(0)?.parse())?,
            damaged(r.get::<_, String>(1)?.parse())?,
        ));
    }
    Ok(found)
}
