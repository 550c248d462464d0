//! Policies as versions: each accepted change of a tenant's policies or topic spaces is kept, in the transaction in which
//! it takes effect.

use std::sync::Arc;

use countersign_identity::{Fingerprint, Generation, TenantId, Timestamp};
use countersign_mqtt::topic::SpaceFilter;
use countersign_policy::decide::{PolicyFault, PolicyProblem, TenantPolicy, validate};
use countersign_policy::spaces::SPACES_MAX;
use countersign_policy::{ClientIdMode, TopicSpace, has_template};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, Change, damaged};
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// A version of a tenant's policies and topic spaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// Counts from 1 within the tenant.
    pub number: u64,
    /// When it took effect.
    pub at: Timestamp,
    /// Who changed them.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// SHA-256 of the policies' text, as `sha256sum` prints it.
    pub sha256: Fingerprint,
    /// The version that this one takes up again.
    pub reverts: Option<u64>,
    /// Whether it is the one by which is decided now.
    pub in_force: bool,
    /// Cedar.
    pub policies: String,
    /// The topic spaces, in the order in which policies count them.
    pub spaces: Vec<TopicSpace>,
}

/// A change of policies, topic spaces or both.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyChange {
    /// New policies; `None` keeps what is in force.
    pub policies: Option<String>,
    /// New topic spaces; `None` keeps what is in force.
    pub spaces: Option<Vec<TopicSpace>>,
    /// Why, for versions and audit.
    pub reason: String,
    /// The version that the change was made of and looked at; refused if another is in force by now.
    pub base: Option<u64>,
    /// The version that it takes up again.
    pub reverts: Option<u64>,
    /// New policies need not fit the schema.
    pub accept_unfit: bool,
    /// It needed a word, and that was given: for the audit.
    pub accepted: bool,
}

/// A version without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyHeading {
    /// Counts from 1 within the tenant.
    pub number: u64,
    /// When it took effect.
    pub at: Timestamp,
    /// Who changed them.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// SHA-256 of the policies' text, as `sha256sum` prints it.
    pub sha256: Fingerprint,
    /// The version that this one takes up again.
    pub reverts: Option<u64>,
    /// Whether it is the one by which is decided now.
    pub in_force: bool,
}

/// The longest text of policies, in bytes.
pub const POLICIES_BYTES_MAX: usize = 256 * 1024;
/// The longest name of a topic space, in bytes.
pub const SPACE_NAME_MAX: usize = 128;
/// The longest filter of a topic space, in bytes.
pub const SPACE_FILTER_MAX: usize = 1024;

/// Whether new policies and topic spaces are of a size that is taken.
///
/// # Errors
/// What is too long or too many, with the cure after `; hint: `.
pub fn bounded(policies: Option<&str>, spaces: Option<&[TopicSpace]>) -> Result<(), String> {
    if let Some(text) = policies.filter(|p| p.len() > POLICIES_BYTES_MAX) {
        return Err(format!(
            "the policies have {} bytes, and {POLICIES_BYTES_MAX} are the most; hint: name groups or models in place of single devices",
            text.len()
        ));
    }
    let spaces = spaces.unwrap_or_default();
    if spaces.len() > SPACES_MAX {
        return Err(format!(
            "there are {} topic spaces, and {SPACES_MAX} are the most; hint: put topics together under one filter",
            spaces.len()
        ));
    }
    for space in spaces {
        for (what, text, most) in [
            ("name", &space.name, SPACE_NAME_MAX),
            ("filter", &space.filter, SPACE_FILTER_MAX),
        ] {
            if text.len() > most {
                return Err(format!(
                    "a topic space has a {what} of {} bytes, and {most} are the most; hint: write a shorter one",
                    text.len()
                ));
            }
        }
    }
    Ok(())
}

/// Checks policies and topic spaces as they would be when they take effect; what looks wrong is returned.
///
/// # Errors
/// What is wrong, one by one, each with its cure.
pub fn check_policies(
    policies: &str,
    spaces: &[TopicSpace],
) -> Result<Vec<PolicyProblem>, Vec<PolicyProblem>> {
    let mut problems: Vec<PolicyProblem> = spaces
        .iter()
        .filter_map(|space| {
            let fault = SpaceFilter::parse(&space.filter).err()?;
            Some(PolicyProblem {
                line: None,
                column: None,
                policy: None,
                message: format!(
                    "topic space {:?}: {:?} is no filter: {fault}",
                    space.name, space.filter
                ),
                cure: "write an MQTT topic filter; the level {id} is the device's own id".into(),
            })
        })
        .collect();
    match validate(policies, spaces) {
        Ok(warnings) if problems.is_empty() => Ok(warnings),
        Ok(_) => Err(problems),
        Err(fault) => {
            problems.extend(fault.problems());
            Err(problems)
        }
    }
}

fn refused(fault: &PolicyFault) -> RegistryError {
    RegistryError::Refused(fault.to_string())
}

impl Scope<'_> {
    /// Makes a tenant, with its first version.
    pub(crate) fn new_tenant(
        &mut self,
        actor: &Actor,
        id: &TenantId,
        mode: ClientIdMode,
        policies: &str,
        spaces: Vec<TopicSpace>,
    ) -> Result<(), RegistryError> {
        let change = PolicyChange {
            reason: "built-in".into(),
            ..PolicyChange::default()
        };
        let policy = self.compiled(id, policies, spaces, TenantPolicy::compile)?;
        self.tx
            .prepare_cached(
                "INSERT INTO tenants (id, client_id_mode, policy_version, revision, created) VALUES (?, ?, 1, ?, ?)",
            )?
            .execute(params![
                id.as_str(),
                mode.name(),
                policy.generation().0.cast_signed(),
                self.now.unix_ms()
            ])?;
        self.keep_version(actor, id, 1, policies, policy.spaces(), &change)?;
        self.tenant_fact(id, mode, policy);
        Ok(())
    }

    /// Compiles what is to be in force, under a new generation.
    fn compiled(
        &mut self,
        id: &TenantId,
        policies: &str,
        spaces: Vec<TopicSpace>,
        compile: fn(Generation, &str, Vec<TopicSpace>) -> Result<TenantPolicy, PolicyFault>,
    ) -> Result<TenantPolicy, RegistryError> {
        for space in &spaces {
            SpaceFilter::parse(&space.filter).map_err(|e| {
                RegistryError::Refused(format!(
                    "topic space {:?}: {} is no filter: {e}",
                    space.name, space.filter
                ))
            })?;
        }
        let generation = self.revise("tenant", id.as_str(), id.as_str())?;
        compile(generation, policies, spaces).map_err(|fault| refused(&fault))
    }

    fn tenant_fact(&mut self, id: &TenantId, mode: ClientIdMode, policy: TenantPolicy) {
        self.facts.push(Fact::Tenant {
            id: id.clone(),
            mode,
            policy: Arc::new(policy),
        });
        self.changes.push(Change::Tenant(id.clone()));
    }

    fn keep_version(
        &mut self,
        actor: &Actor,
        id: &TenantId,
        number: u64,
        policies: &str,
        spaces: &[TopicSpace],
        change: &PolicyChange,
    ) -> Result<(), RegistryError> {
        self.tx
            .prepare_cached(
                "INSERT INTO policy_versions (tenant, number, at, actor, reason, policies, spaces, sha256, reverts)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                id.as_str(),
                number.cast_signed(),
                self.now.unix_ms(),
                actor.0,
                change.reason,
                policies,
                serde_json::to_string(spaces).map_err(|e| RegistryError::Database(e.to_string()))?,
                Fingerprint::of(policies.as_bytes()).as_bytes(),
                change.reverts.map(u64::cast_signed),
            ])?;
        Ok(())
    }
}

impl Registry {
    /// Replaces what is given of a tenant's client-id mode, policies and topic spaces. Returns the version that is then
    /// in force; policies and spaces that are in force already make none.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`]; [`RegistryError::Refused`] if the policies do not compile, or do not fit the schema and
    /// that is not accepted;
    /// [`RegistryError::PolicyMoved`] if somebody else changed them meanwhile. Then nothing changes.
    pub fn configure_tenant(
        &self,
        actor: Actor,
        id: TenantId,
        mode: Option<ClientIdMode>,
        change: Option<PolicyChange>,
    ) -> Result<Committed<u64>, RegistryError> {
        self.write(move |scope| {
            let old_mode: Option<String> = scope
                .tx
                .prepare_cached("SELECT client_id_mode FROM tenants WHERE id = ?")?
                .query_row([id.as_str()], |r| r.get(0))
                .optional()?;
            let Some(old_mode) = old_mode else {
                return Err(RegistryError::NoTenant(id));
            };
            let current = in_force(scope.tx, &id)?;
            let change = change.unwrap_or_default();
            if change.base.is_some_and(|base| base != current.number) {
                return Err(RegistryError::PolicyMoved {
                    base: change.base.unwrap_or_default(),
                    current: current.number,
                });
            }
            let policies = change.policies.as_ref().unwrap_or(&current.policies);
            let spaces = change.spaces.as_ref().unwrap_or(&current.spaces);
            let is_new = *policies != current.policies || *spaces != current.spaces;
            let number = if is_new { current.number + 1 } else { current.number };
            if is_new || mode.is_some() {
                let mode = match mode {
                    Some(mode) => mode,
                    None => damaged(old_mode.parse())?,
                };
                // What is in force was accepted as it is; a template is by nobody any more.
                if *policies != current.policies && has_template(policies) {
                    let fault = validate(policies, spaces).err();
                    return Err(RegistryError::Refused(fault.map(|f| f.to_string()).unwrap_or_default()));
                }
                let may_be_unfit = change.accept_unfit || *policies == current.policies;
                let compile = match may_be_unfit {
                    true => TenantPolicy::compile_unfit,
                    false => TenantPolicy::compile,
                };
                let policy = scope.compiled(&id, policies, spaces.clone(), compile)?;
                if is_new {
                    scope.keep_version(&actor, &id, number, policies, spaces, &change)?;
                }
                scope
                    .tx
                    .prepare_cached(
                        "UPDATE tenants SET client_id_mode = ?2, policy_version = ?3, revision = ?4 WHERE id = ?1",
                    )?
                    .execute(params![
                        id.as_str(),
                        mode.name(),
                        number.cast_signed(),
                        policy.generation().0.cast_signed()
                    ])?;
                scope.tenant_fact(&id, mode, policy);
            }
            if mode.is_some() {
                let detail = json!({ "client_id_mode": mode.map(ClientIdMode::name) });
                scope.audit(&actor, "tenant.configure", id.as_str(), id.as_str(), &detail)?;
            }
            if is_new {
                let mut detail = json!({
                    "version": number,
                    "reason": change.reason,
                    "reverts": change.reverts,
                    "policies_sha256": Fingerprint::of(policies.as_bytes()),
                    "spaces": change.spaces,
                    "fits": validate(policies, spaces).is_ok(),
                });
                if change.accepted {
                    detail["accept_lock_out"] = json!(true);
                }
                let action = if change.reverts.is_some() { "policy.revert" } else { "policy.set" };
                scope.audit(&actor, action, id.as_str(), id.as_str(), &detail)?;
            }
            Ok(number)
        })
    }

    /// The versions of a tenant's policies, newest first.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`]; [`RegistryError`] if the database cannot be read.
    pub fn policy_versions(&self, id: &TenantId) -> Result<Vec<PolicyVersion>, RegistryError> {
        let found = self.read(|db| {
            let sql = format!("{SELECT} WHERE v.tenant = ? ORDER BY v.number DESC");
            let mut statement = db.prepare_cached(&sql)?;
            let mut rows = statement.query([id.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(version(r)?);
            }
            Ok(found)
        })?;
        if found.is_empty() {
            return Err(RegistryError::NoTenant(id.clone()));
        }
        Ok(found)
    }

    /// The versions of a tenant's policies without their texts, newest first.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`]; [`RegistryError`] if the database cannot be read.
    pub fn policy_headings(&self, id: &TenantId) -> Result<Vec<PolicyHeading>, RegistryError> {
        let found = self.read(|db| {
            // Versions of before there were hashes have none.
            let mut statement = db.prepare_cached(
                "SELECT v.number, v.at, v.actor, v.reason, v.sha256, v.reverts, v.number = t.policy_version,
                        CASE WHEN v.sha256 IS NULL THEN v.policies END
                 FROM policy_versions v JOIN tenants t ON t.id = v.tenant
                 WHERE v.tenant = ? ORDER BY v.number DESC",
            )?;
            let mut rows = statement.query([id.as_str()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let text: Option<String> = r.get(7)?;
                found.push(PolicyHeading {
                    number: r.get::<_, i64>(0)?.cast_unsigned(),
                    at: Timestamp::from_unix_ms(r.get(1)?),
                    actor: r.get(2)?,
                    reason: r.get(3)?,
                    sha256: match r.get::<_, Option<[u8; 32]>>(4)? {
                        Some(kept) => Fingerprint::from_bytes(kept),
                        None => Fingerprint::of(text.unwrap_or_default().as_bytes()),
                    },
                    reverts: r.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned),
                    in_force: r.get(6)?,
                });
            }
            Ok(found)
        })?;
        if found.is_empty() {
            return Err(RegistryError::NoTenant(id.clone()));
        }
        Ok(found)
    }

    /// One version of a tenant's policies; the one in force if none is named.
    ///
    /// # Errors
    /// [`RegistryError::NoTenant`], [`RegistryError::NoPolicyVersion`].
    pub fn policy_version(&self, id: &TenantId, number: Option<u64>) -> Result<PolicyVersion, RegistryError> {
        self.read(|db| match number {
            None => in_force(db, id),
            Some(number) => {
                in_force(db, id)?;
                one(db, "v.number = ?2", params![id.as_str(), number.cast_signed()])?.ok_or(
                    RegistryError::NoPolicyVersion {
                        tenant: id.clone(),
                        number,
                    },
                )
            }
        })
    }
}

const SELECT: &str = "SELECT v.number, v.at, v.actor, v.reason, v.policies, v.spaces, v.sha256, v.reverts,
    v.number = t.policy_version FROM policy_versions v JOIN tenants t ON t.id = v.tenant";

fn one(
    db: &Connection,
    condition: &str,
    values: &[&dyn rusqlite::ToSql],
) -> Result<Option<PolicyVersion>, RegistryError> {
    let sql = format!("{SELECT} WHERE v.tenant = ?1 AND {condition}");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(values)?;
    rows.next()?.map(version).transpose()
}

/// The version by which a tenant's devices are decided on.
pub(crate) fn in_force(db: &Connection, id: &TenantId) -> Result<PolicyVersion, RegistryError> {
    one(db, "v.number = t.policy_version", params![id.as_str()])?.ok_or(RegistryError::NoTenant(id.clone()))
}

fn version(r: &Row<'_>) -> Result<PolicyVersion, RegistryError> {
    let policies: String = r.get(4)?;
    let sha256 = Fingerprint::of(policies.as_bytes());
    if let Some(kept) = r.get::<_, Option<[u8; 32]>>(6)?
        && kept != *sha256.as_bytes()
    {
        return damaged(Err(format!(
            "policy version {} is not what its SHA-256 says",
            r.get::<_, i64>(0)?
        )));
    }
    Ok(PolicyVersion {
        number: r.get::<_, i64>(0)?.cast_unsigned(),
        at: Timestamp::from_unix_ms(r.get(1)?),
        actor: r.get(2)?,
        reason: r.get(3)?,
        sha256,
        reverts: r.get::<_, Option<i64>>(7)?.map(i64::cast_unsigned),
        in_force: r.get(8)?,
        policies,
        spaces: damaged(serde_json::from_str(&r.get::<_, String>(5)?))?,
    })
}
