//! The changes there are. Each runs inside the writer's transaction, takes its revision there, and leaves its audit
//! entry beside it.

use std::sync::Arc;

use countersign_identity::{AuthorityId, BatchId, DeviceId, Fingerprint, Generation, TenantId, Timestamp};
use countersign_policy::decide::DEFAULT_POLICY;
use countersign_policy::lifecycle::Lifecycle;
use countersign_policy::spaces::default_spaces;
use countersign_policy::{ClientIdMode, DeviceFacts, LifecycleState};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;

use crate::audit;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// Who asked for a change, as the audit names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor(pub String);

/// What a committed change touched; live sessions of these are decided anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    /// A tenant's policies or client-id mode.
    Tenant(TenantId),
    /// An authority.
    Authority(AuthorityId),
    /// A device.
    Device(TenantId, DeviceId),
    /// A credential of a device.
    Credential(TenantId, DeviceId, Fingerprint),
}

/// A device to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDevice {
    /// Its id.
    pub id: DeviceId,
    /// Its model.
    pub model: Option<String>,
    /// Its groups, in any order.
    pub groups: Vec<String>,
    /// Where it starts: `pending` or `active`.
    pub state: LifecycleState,
    /// The authority whose certificates may be learned for it at first contact.
    pub authority: Option<AuthorityId>,
}

pub(crate) fn newest_revision(db: &Connection) -> Result<u64, RegistryError> {
    let n: Option<i64> = db
        .prepare_cached("SELECT max(revision) FROM revisions")?
        .query_row([], |r| r.get(0))?;
    Ok(u64::try_from(n.unwrap_or(0)).unwrap_or(0))
}

impl Scope<'_> {
    /// The next revision, for one subject.
    pub(crate) fn revise(
        &mut self,
        kind: &str,
        tenant: &str,
        subject: &str,
    ) -> Result<Generation, RegistryError> {
        self.tx
            .prepare_cached("INSERT INTO revisions (at, kind, tenant, subject) VALUES (?, ?, ?, ?)")?
            .execute(params![self.now.unix_ms(), kind, tenant, subject])?;
        Ok(Generation(
            u64::try_from(self.tx.last_insert_rowid()).unwrap_or(0),
        ))
    }

    pub(crate) fn audit(
        &mut self,
        actor: &Actor,
        action: &str,
        tenant: &str,
        subject: &str,
        detail: &serde_json::Value,
    ) -> Result<(), RegistryError> {
        audit::append(self.tx, self.now, &actor.0, action, tenant, subject, detail)
    }

    pub(crate) fn need_tenant(&self, tenant: &TenantId) -> Result<(), RegistryError> {
        let found: bool = self
            .tx
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM tenants WHERE id = ?)")?
            .query_row([tenant.as_str()], |r| r.get(0))?;
        if found {
            Ok(())
        } else {
            Err(RegistryError::NoTenant(tenant.clone()))
        }
    }

    pub(crate) fn need_authority(
        &self,
        tenant: &TenantId,
        authority: &AuthorityId,
    ) -> Result<(), RegistryError> {
        let found: bool = self
            .tx
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM authorities WHERE id = ? AND tenant = ?)")?
            .query_row([authority.as_str(), tenant.as_str()], |r| r.get(0))?;
        if found {
            Ok(())
        } else {
            Err(RegistryError::NoAuthority(format!(
                "{authority} in tenant {tenant}"
            )))
        }
    }

    /// Writes a device's row; its facts take effect with the commit.
    pub(crate) fn put_device(
        &mut self,
        tenant: &TenantId,
        device: &NewDevice,
        lifecycle: Lifecycle,
        created: Timestamp,
    ) -> Result<(), RegistryError> {
        let generation = self.revise("device", tenant.as_str(), device.id.as_str())?;
        let mut groups: Vec<Arc<str>> = device.groups.iter().map(|g| g.as_str().into()).collect();
        groups.sort_unstable();
        groups.dedup();
        let groups_text =
            serde_json::to_string(&groups).map_err(|e| RegistryError::Database(e.to_string()))?;
        let batch: Option<String> = self
            .tx
            .prepare_cached(
                "INSERT INTO devices (tenant, id, model, groups, state, before_quarantine, revision, created, authority,
                 suspended_until, quarantined_until)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                 ON CONFLICT (tenant, id) DO UPDATE SET
                 model = ?3, groups = ?4, state = ?5, before_quarantine = ?6, revision = ?7, authority = ?9,
                 suspended_until = ?10, quarantined_until = ?11
                 RETURNING batch",
            )?
            .query_row(params![
                tenant.as_str(),
                device.id.as_str(),
                device.model,
                groups_text,
                lifecycle.state.name(),
                lifecycle.before_quarantine.map(LifecycleState::name),
                generation.0.cast_signed(),
                created.unix_ms(),
                device.authority.as_ref().map(AuthorityId::as_str),
                lifecycle.suspended_until.map(Timestamp::unix_ms),
                lifecycle.quarantined_until.map(Timestamp::unix_ms),
            ], |r| r.get(0))?;
        self.facts.push(Fact::Device(Arc::new(DeviceFacts {
            tenant: tenant.clone(),
            id: device.id.clone(),
            model: device.model.as_deref().map(Into::into),
            groups: groups.into(),
            batch: batch.map(Into::into),
            state: lifecycle.state,
            generation,
        })));
        self.changes
            .push(Change::Device(tenant.clone(), device.id.clone()));
        Ok(())
    }

    /// Adds a device that is not there.
    pub(crate) fn add_device(
        &mut self,
        actor: &Actor,
        tenant: &TenantId,
        new: &NewDevice,
    ) -> Result<(), RegistryError> {
        self.put_device(tenant, new, Lifecycle::new(new.state), self.now)?;
        let detail = json!({ "model": new.model, "groups": new.groups, "state": new.state.name() });
        self.audit(actor, "device.add", tenant.as_str(), new.id.as_str(), &detail)
    }

    /// Puts a device that has none into a batch. Its facts are written once more: policies may speak of the batch.
    pub(crate) fn put_in_batch(
        &mut self,
        tenant: &TenantId,
        device: &DeviceId,
        batch: &BatchId,
    ) -> Result<(), RegistryError> {
        self.tx
            .prepare_cached("UPDATE devices SET batch = ?3 WHERE tenant = ?1 AND id = ?2")?
            .execute([tenant.as_str(), device.as_str(), batch.as_str()])?;
        match self.device(tenant, device)? {
            Some((row, lifecycle, created)) => self.put_device(tenant, &row, lifecycle, created),
            None => Ok(()),
        }
    }

    pub(crate) fn device(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Option<(NewDevice, Lifecycle, Timestamp)>, RegistryError> {
        read_device(self.tx, tenant, device)
    }
}

pub(crate) fn read_device(
    db: &Connection,
    tenant: &TenantId,
    device: &DeviceId,
) -> Result<Option<(NewDevice, Lifecycle, Timestamp)>, RegistryError> {
    type Row = (
        Option<String>,
        String,
        String,
        Option<String>,
        i64,
        Option<String>,
        Option<i64>,
        Option<i64>,
    );
    let row: Option<Row> = db
        .prepare_cached(
            "SELECT model, groups, state, before_quarantine, created, authority, suspended_until, quarantined_until
             FROM devices WHERE tenant = ? AND id = ?",
        )?
        .query_row([tenant.as_str(), device.as_str()], |r| {
            Ok((
                r.get(0)?,
                r.get(1)?,
                r.get(2)?,
                r.get(3)?,
                r.get(4)?,
                r.get(5)?,
                r.get(6)?,
                r.get(7)?,
            ))
        })
        .optional()?;
    let Some((model, groups, state, before, created, authority, suspended, quarantined)) = row else {
        return Ok(None);
    };
    let state: LifecycleState = damaged(state.parse())?;
    let lifecycle = Lifecycle {
        state,
        before_quarantine: before.map(|b| damaged(b.parse())).transpose()?,
        suspended_until: suspended.map(Timestamp::from_unix_ms),
        quarantined_until: quarantined.map(Timestamp::from_unix_ms),
    };
    let groups: Vec<String> = damaged(serde_json::from_str(&groups))?;
    let device = NewDevice {
        id: device.clone(),
        model,
        groups,
        state,
        authority: authority.map(|a| damaged(a.parse())).transpose()?,
    };
    Ok(Some((device, lifecycle, Timestamp::from_unix_ms(created))))
}

/// A value in the database that no version of this program writes.
pub(crate) fn damaged<T, E: std::fmt::Display>(read: Result<T, E>) -> Result<T, RegistryError> {
    read.map_err(|e| RegistryError::Database(format!("the database is damaged: {e}")))
}

impl Registry {
    /// Adds a tenant with the built-in policies and topic spaces.
    ///
    /// # Errors
    /// [`RegistryError::Exists`].
    pub fn add_tenant(
        &self,
        actor: Actor,
        id: TenantId,
        mode: ClientIdMode,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            if scope.need_tenant(&id).is_ok() {
                return Err(RegistryError::Exists(format!("tenant {id}")));
            }
            scope.new_tenant(&actor, &id, mode, DEFAULT_POLICY, default_spaces())?;
            scope.audit(
                &actor,
                "tenant.add",
                id.as_str(),
                id.as_str(),
                &json!({ "client_id_mode": mode.name() }),
            )
        })
    }

    /// Gives a host name (SNI) to a tenant.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] if a tenant has it already.
    pub fn add_host(
        &self,
        actor: Actor,
        tenant: TenantId,
        host: String,
    ) -> Result<Committed<()>, RegistryError> {
        let host = host.to_ascii_lowercase();
        self.write(move |scope| {
            scope.need_tenant(&tenant)?;
            let owner: Option<String> = scope
                .tx
                .prepare_cached("SELECT tenant FROM hosts WHERE host = ?")?
                .query_row([&host], |r| r.get(0))
                .optional()?;
            if let Some(owner) = owner {
                return Err(RegistryError::Exists(format!(
                    "the host name {host}, of tenant {owner},"
                )));
            }
            scope.tx.execute(
                "INSERT INTO hosts (host, tenant) VALUES (?, ?)",
                [&host, tenant.as_str()],
            )?;
            scope.revise("tenant", tenant.as_str(), &host)?;
            scope.audit(&actor, "tenant.host-add", tenant.as_str(), &host, &json!({}))?;
            scope.facts.push(Fact::Host {
                host,
                tenant: Some(tenant),
            });
            Ok(())
        })
    }

    /// Takes a host name from a tenant.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] if the tenant does not have it.
    pub fn remove_host(
        &self,
        actor: Actor,
        tenant: TenantId,
        host: String,
    ) -> Result<Committed<()>, RegistryError> {
        let host = host.to_ascii_lowercase();
        self.write(move |scope| {
            let removed = scope.tx.execute(
                "DELETE FROM hosts WHERE host = ? AND tenant = ?",
                [&host, tenant.as_str()],
            )?;
            if removed == 0 {
                return Err(RegistryError::Refused(format!(
                    "tenant {tenant} does not have the host name {host}"
                )));
            }
            scope.revise("tenant", tenant.as_str(), &host)?;
            scope.audit(&actor, "tenant.host-remove", tenant.as_str(), &host, &json!({}))?;
            scope.facts.push(Fact::Host { host, tenant: None });
            Ok(())
        })
    }

    /// Adds one device without a credential.
    ///
    /// # Errors
    /// [`RegistryError::Exists`].
    pub fn add_device(
        &self,
        actor: Actor,
        tenant: TenantId,
        new: NewDevice,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            scope.need_tenant(&tenant)?;
            if scope.device(&tenant, &new.id)?.is_some() {
                return Err(RegistryError::Exists(format!(
                    "device {} of tenant {tenant}",
                    new.id
                )));
            }
            if let Some(authority) = &new.authority {
                scope.need_authority(&tenant, authority)?;
            }
            scope.add_device(&actor, &tenant, &new)
        })
    }

    /// Binds a device to the authority whose certificates may be learned for it at first contact; `None` unbinds it.
    ///
    /// # Errors
    /// [`RegistryError::NoDevice`]; [`RegistryError::NoAuthority`] if the tenant does not have it.
    pub fn bind_device(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        authority: Option<AuthorityId>,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let Some((mut row, lifecycle, created)) = scope.device(&tenant, &device)? else {
                return Err(RegistryError::NoDevice { tenant, device });
            };
            if let Some(authority) = &authority {
                scope.need_authority(&tenant, authority)?;
            }
            let detail = json!({ "from": row.authority, "to": authority });
            row.authority = authority;
            scope.put_device(&tenant, &row, lifecycle, created)?;
            scope.audit(&actor, "device.bind", tenant.as_str(), device.as_str(), &detail)
        })
    }
}
