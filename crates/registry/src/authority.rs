//! Authorities of the `devices` hierarchy: registered, proven, configured, rotated.
//!
//! ```text
//! unproven ──possession proven──▶ active ⇄ retiring ──nobody depends on it any more──▶ retired
//!                                    └──────────────┴──────────── its key is lost ────▶ revoked
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;

use countersign_factory::RevocationReason;
use countersign_identity::proof::{self, CODE_LIFETIME};
use countersign_identity::{
    Anchor, AnchorState, AuthorityId, CertificateFacts, DeviceId, Generation, IdentityRule,
    StoredIntermediate, TenantId, Timestamp,
};
use countersign_policy::{Admission, LifecycleState};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::{Actor, Change, damaged};
use crate::error::RegistryError;
use crate::rotation::dependents;
use crate::store::Registry;
use crate::table::Fact;
use crate::writer::{Committed, Scope};

/// An authority to be registered.
#[derive(Debug, Clone)]
pub struct NewAuthority {
    /// Its id, unique across tenants.
    pub id: AuthorityId,
    /// The tenant whose devices it may vouch for.
    pub tenant: TenantId,
    /// Whether we hold its key.
    pub origin: Origin,
    /// Where its certificates carry the device id.
    pub rule: IdentityRule,
    /// What first contacts of its devices may bring about.
    pub admission: Admission,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
}

/// Who holds an authority's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// We do.
    Managed,
    /// We do, and it issues stations only: nothing of it is ever learned at first contact.
    Factory,
    /// Somebody else; it stays `unproven` until a certificate is shown that it issued for this code.
    Registered {
        /// The code, from [`proof::new_code`].
        code: String,
    },
}

impl Origin {
    fn name(&self) -> &'static str {
        match self {
            Self::Managed => "managed",
            Self::Factory => "factory",
            Self::Registered { .. } => "registered",
        }
    }
}

/// A move of an authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "move")]
pub enum AuthorityMove {
    /// `active → retiring`: nothing new is issued, its devices are still admitted.
    Retire,
    /// `retiring → active`.
    Reopen,
    /// `retiring → retired`, unless more devices than this depend on it.
    Close {
        /// How many devices may be locked out.
        #[serde(default)]
        leave_out: u64,
    },
    /// Any state `→ revoked`, at once, whoever depends on it.
    Revoke,
}

impl AuthorityMove {
    /// The name in audit and API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Retire => "retire",
            Self::Reopen => "reopen",
            Self::Close { .. } => "close",
            Self::Revoke => "revoke",
        }
    }

    /// As in "cannot be closed".
    const fn done(self) -> &'static str {
        match self {
            Self::Retire => "retired",
            Self::Reopen => "reopened",
            Self::Close { .. } => "closed",
            Self::Revoke => "revoked",
        }
    }

    fn from(self, state: AnchorState) -> Option<AnchorState> {
        use AnchorState as S;
        match (state, self) {
            (S::Active, Self::Retire) => Some(S::Retiring),
            (S::Retiring, Self::Reopen) => Some(S::Active),
            (S::Retiring, Self::Close { .. }) => Some(S::Retired),
            (S::Revoked, Self::Revoke) => None,
            (_, Self::Revoke) => Some(S::Revoked),
            _ => None,
        }
    }
}

/// One authority as the writer reads it.
pub(crate) struct Row {
    pub(crate) new: NewAuthority,
    pub(crate) state: AnchorState,
    code: Option<String>,
    code_expires: Timestamp,
}

impl Scope<'_> {
    fn register_authority(
        &mut self,
        actor: &Actor,
        new: &NewAuthority,
    ) -> Result<AnchorState, RegistryError> {
        self.need_tenant(&new.tenant)?;
        check_admission(new)?;
        if new.id.is_pinned() {
            return Err(RegistryError::Refused(
                "the id \"pinned\" stands for certificates that are registered by fingerprint; hint: choose another id".into(),
            ));
        }
        let (state, code) = match &new.origin {
            Origin::Managed | Origin::Factory => (AnchorState::Active, None),
            Origin::Registered { code } => (AnchorState::Unproven, Some(code)),
        };
        let facts = check_authority(&new.certificate)?;
        self.tx
            .execute(
                "INSERT INTO authorities (id, tenant, origin, state, identity_rule, certificate, fingerprint,
                 revision, created, code, code_expires) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
                params![
                    new.id.as_str(),
                    new.tenant.as_str(),
                    new.origin.name(),
                    state.name(),
                    new.rule.to_string(),
                    new.certificate,
                    facts.fingerprint.as_bytes(),
                    self.now.unix_ms(),
                    code,
                    code.map(|_| self.now.plus(CODE_LIFETIME).unix_ms()),
                ],
            )
            .map_err(|e| match e.sqlite_error_code() {
                Some(rusqlite::ErrorCode::ConstraintViolation) => {
                    RegistryError::Exists(format!("authority {} or its certificate", new.id))
                }
                _ => e.into(),
            })?;
        self.put_authority(new, state)?;
        let detail = json!({
            "origin": new.origin.name(), "state": state.name(), "subject": facts.subject_text,
            "fingerprint": facts.fingerprint, "admission": new.admission.name(),
        });
        self.audit(
            actor,
            "authority.register",
            new.tenant.as_str(),
            new.id.as_str(),
            &detail,
        )?;
        Ok(state)
    }

    pub(crate) fn authority(&self, id: &AuthorityId) -> Result<Row, RegistryError> {
        let row = self
            .tx
            .prepare_cached(&format!("{SELECT} WHERE id = ?"))?
            .query_row([id.as_str()], |r| Ok(row(r)))
            .optional()?
            .transpose()?;
        row.map(|(row, _)| row)
            .ok_or_else(|| RegistryError::NoAuthority(id.to_string()))
    }

    /// Writes what may change of an authority; its facts take effect with the commit.
    pub(crate) fn put_authority(
        &mut self,
        new: &NewAuthority,
        state: AnchorState,
    ) -> Result<Generation, RegistryError> {
        let generation = self.revise("authority", new.tenant.as_str(), new.id.as_str())?;
        let lists = crate::revocation_list::kept(self.tx, &new.id)?;
        let anchor = anchor(new, state, generation)?.with_lists(lists);
        let admission =
            serde_json::to_string(&new.admission).map_err(|e| RegistryError::Database(e.to_string()))?;
        self.tx
            .prepare_cached(
                "UPDATE authorities SET state = ?2, identity_rule = ?3, admission = ?4, revision = ?5,
                 code = CASE WHEN ?2 = 'unproven' THEN code END WHERE id = ?1",
            )?
            .execute(params![
                new.id.as_str(),
                state.name(),
                new.rule.to_string(),
                admission,
                generation.0.cast_signed(),
            ])?;
        self.facts
            .push(Fact::Authority(Arc::new(anchor), new.admission.clone()));
        self.changes.push(Change::Authority(new.id.clone()));
        Ok(generation)
    }
}

const SELECT: &str =
    "SELECT id, tenant, origin, state, identity_rule, certificate, revision, admission, code,
    code_expires FROM authorities";

fn row(r: &rusqlite::Row<'_>) -> Result<(Row, Generation), RegistryError> {
    let code: Option<String> = r.get(8)?;
    let new = NewAuthority {
        id: damaged(r.get::<_, String>(0)?.parse())?,
        tenant: damaged(r.get::<_, String>(1)?.parse())?,
        origin: match r.get::<_, String>(2)?.as_str() {
            "managed" => Origin::Managed,
            "factory" => Origin::Factory,
            _ => Origin::Registered {
                code: code.clone().unwrap_or_default(),
            },
        },
        rule: damaged(r.get::<_, String>(4)?.parse())?,
        admission: damaged(serde_json::from_str(&r.get::<_, String>(7)?))?,
        certificate: r.get(5)?,
    };
    let row = Row {
        new,
        state: anchor_state(&r.get::<_, String>(3)?)?,
        code,
        code_expires: Timestamp::from_unix_ms(r.get::<_, Option<i64>>(9)?.unwrap_or(0)),
    };
    Ok((row, Generation(r.get::<_, i64>(6)?.cast_unsigned())))
}

pub(crate) fn anchor_state(text: &str) -> Result<AnchorState, RegistryError> {
    AnchorState::ALL
        .into_iter()
        .find(|s| s.name() == text)
        .ok_or_else(|| RegistryError::Database(format!("the database is damaged: authority state {text:?}")))
}

/// A factory CA's devices come by the journals of its stations, and by nothing else; a first contact of any other's makes a
/// device that waits for approval, or one that is let in.
fn check_admission(new: &NewAuthority) -> Result<(), RegistryError> {
    if let Admission::JustInTime(template) = &new.admission
        && !matches!(template.state, LifecycleState::Pending | LifecycleState::Active)
    {
        return Err(RegistryError::Refused(format!(
            "a just-in-time device starts as pending or active, not {}; hint: give the template one of these",
            template.state
        )));
    }
    if new.origin == Origin::Factory && new.admission != Admission::RegisteredOnly {
        return Err(RegistryError::Refused(format!(
            "authority {} is a factory CA: its devices are let in once their station's journal is reconciled, never at first contact; hint: leave its admission at registered-only",
            new.id
        )));
    }
    Ok(())
}

/// Whether a certificate can be that of an authority which devices' certificates are under; what it says.
///
/// # Errors
/// [`RegistryError::Refused`] with what is wrong with it.
pub fn check_authority(certificate: &[u8]) -> Result<CertificateFacts, RegistryError> {
    let facts = CertificateFacts::parse(certificate).map_err(|e| RegistryError::Refused(e.to_string()))?;
    // OpenSSL makes one of version 1 where it is not told of extensions.
    if facts.ca.is_none()
        && let Some(fault) = facts.path_fault()
    {
        return Err(RegistryError::Refused(format!(
            "the certificate of {} is no CA certificate: {fault}; hint: make one of version 3, with the same key and subject: openssl req -x509 -key CA.key -subj SUBJECT -days 3650 -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign -out CA.crt",
            facts.subject_text
        )));
    }
    if facts.ca.is_none() || facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
        return Err(RegistryError::Refused(format!(
            "the certificate of {} is no CA certificate; hint: register the CA that issued the devices' certificates",
            facts.subject_text
        )));
    }
    if !facts.allows_client_auth() {
        return Err(RegistryError::Refused(
            "the CA's extKeyUsage lacks clientAuth: it cannot vouch for devices; hint: use one without extKeyUsage, or with clientAuth in it".into(),
        ));
    }
    if !facts.key_algorithm.is_strong_enough() {
        return Err(RegistryError::Refused(
            "the CA's key is too weak or of an unknown kind; hint: use P-256, P-384, Ed25519 or RSA of 2048 bits or more".into(),
        ));
    }
    Ok(facts)
}

fn anchor(new: &NewAuthority, state: AnchorState, generation: Generation) -> Result<Anchor, RegistryError> {
    Anchor::new(
        new.tenant.clone(),
        new.id.clone(),
        state,
        generation,
        new.rule.clone(),
        &new.certificate,
    )
    .map_err(|e| RegistryError::Refused(format!("authority {}: {e}", new.id)))
}

/// Reads all authorities and stored intermediates.
pub(crate) fn load(db: &Connection, facts: &mut Vec<Fact>) -> Result<(), RegistryError> {
    let mut statement = db.prepare(SELECT)?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let (row, generation) = row(r)?;
        let lists = crate::revocation_list::kept(db, &row.new.id)?;
        let anchor = anchor(&row.new, row.state, generation)?.with_lists(lists);
        facts.push(Fact::Authority(Arc::new(anchor), row.new.admission));
    }
    let mut statement = db.prepare("SELECT tenant, certificate FROM intermediates")?;
    let mut rows = statement.query([])?;
    while let Some(r) = rows.next()? {
        let tenant = damaged(r.get::<_, String>(0)?.parse())?;
        let stored = damaged(StoredIntermediate::new(tenant, &r.get::<_, Vec<u8>>(1)?))?;
        facts.push(Fact::Intermediate(Arc::new(stored)));
    }
    Ok(())
}

impl Registry {
    /// Registers an authority: active if we hold its key, else unproven.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] if the id or, in the same tenant, the certificate is known;
    /// [`RegistryError::Refused`] if the certificate is no CA's, or for a template that makes neither pending nor active
    /// devices.
    pub fn register_authority(
        &self,
        actor: Actor,
        new: NewAuthority,
    ) -> Result<Committed<AnchorState>, RegistryError> {
        self.write(move |scope| scope.register_authority(&actor, &new))
    }

    /// Whether [`Registry::register_authority`] would; nothing is kept.
    ///
    /// # Errors
    /// As [`Registry::register_authority`].
    pub fn register_authority_check(&self, actor: Actor, new: NewAuthority) -> Result<(), RegistryError> {
        self.try_out(move |scope| scope.register_authority(&actor, &new).map(|_| ()))
    }

    /// Shows a certificate that the authority issued for its code: the authority becomes active. A code is used once.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] if the proof does not hold, or there is nothing to prove.
    pub fn prove_authority(
        &self,
        actor: Actor,
        id: AuthorityId,
        proof: Vec<u8>,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let row = scope.authority(&id)?;
            let (AnchorState::Unproven, Some(code)) = (row.state, &row.code) else {
                return Err(RegistryError::Refused(format!(
                    "authority {id} is {}: there is nothing to prove",
                    row.state.name()
                )));
            };
            if scope.now > row.code_expires {
                return Err(RegistryError::Refused(format!(
                    "the code of authority {id} expired on {}; hint: countersign authority code {id} gives a new one",
                    row.code_expires
                )));
            }
            proof::check(&row.new.certificate, &proof, code, scope.now)
                .map_err(|e| RegistryError::Refused(format!("{e}; hint: issue a certificate with common name {code} by this CA")))?;
            scope.put_authority(&row.new, AnchorState::Active)?;
            let fingerprint = countersign_identity::Fingerprint::of(&proof);
            scope.audit(
                &actor,
                "authority.prove",
                row.new.tenant.as_str(),
                id.as_str(),
                &json!({ "proof": fingerprint }),
            )
        })
    }

    /// Gives an unproven authority a new code.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] if it is proven already.
    pub fn renew_code(
        &self,
        actor: Actor,
        id: AuthorityId,
        code: String,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let row = scope.authority(&id)?;
            if row.state != AnchorState::Unproven {
                return Err(RegistryError::Refused(format!(
                    "authority {id} is {}: there is nothing to prove",
                    row.state.name()
                )));
            }
            scope.tx.execute(
                "UPDATE authorities SET code = ?2, code_expires = ?3 WHERE id = ?1",
                params![id.as_str(), code, scope.now.plus(CODE_LIFETIME).unix_ms()],
            )?;
            scope.audit(
                &actor,
                "authority.code",
                row.new.tenant.as_str(),
                id.as_str(),
                &json!({}),
            )
        })
    }

    /// Replaces what is given of an authority's identity rule and admission.
    ///
    /// # Errors
    /// [`RegistryError::NoAuthority`]; [`RegistryError::Refused`] for a template that makes neither pending nor active
    /// devices.
    pub fn configure_authority(
        &self,
        actor: Actor,
        id: AuthorityId,
        rule: Option<IdentityRule>,
        admission: Option<Admission>,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            let Row { mut new, state, .. } = scope.authority(&id)?;
            let detail = json!({ "identity_rule": rule, "admission": admission });
            new.rule = rule.unwrap_or(new.rule);
            new.admission = admission.unwrap_or(new.admission);
            check_admission(&new)?;
            scope.put_authority(&new, state)?;
            scope.audit(
                &actor,
                "authority.configure",
                new.tenant.as_str(),
                id.as_str(),
                &detail,
            )
        })
    }

    /// Moves an authority. Closing one is refused while more devices depend on it than may be left out.
    ///
    /// # Errors
    /// [`RegistryError::Dependents`] with count and examples; [`RegistryError::Refused`] for a move that is none.
    pub fn move_authority(
        &self,
        actor: Actor,
        id: AuthorityId,
        attempted: AuthorityMove,
        reason: String,
    ) -> Result<Committed<AnchorState>, RegistryError> {
        self.write(move |scope| {
            let Row { new, state, .. } = scope.authority(&id)?;
            let Some(to) = attempted.from(state) else {
                return Err(RegistryError::Refused(format!(
                    "authority {id} is {}: it cannot be {}; hint: active → retire → close, or revoke",
                    state.name(),
                    attempted.done()
                )));
            };
            let (count, examples) = dependents(scope.tx, scope.table, &id, scope.now, 5)?;
            if let AuthorityMove::Close { leave_out } = attempted
                && count > leave_out
            {
                return Err(RegistryError::Dependents {
                    authority: id,
                    count,
                    limit: leave_out,
                    examples,
                });
            }
            let generation = scope.put_authority(&new, to)?;
            if to == AnchorState::Revoked {
                // For the lists: nothing this authority signed is to be trusted by anyone.
                scope.tx.execute(
                    "UPDATE credentials SET ended = ?2, reason = ?3, ended_revision = ?4
                     WHERE authority = ?1 AND ended IS NULL",
                    params![
                        id.as_str(),
                        scope.now.unix_ms(),
                        RevocationReason::CaCompromise.code(),
                        generation.0.cast_signed()
                    ],
                )?;
            }
            let detail = json!({
                "from": state.name(), "to": to.name(), "dependents": count, "reason": reason,
            });
            let action = format!("authority.{}", attempted.name());
            scope.audit(&actor, &action, new.tenant.as_str(), id.as_str(), &detail)?;
            Ok(to)
        })
    }

    /// Keeps a CA certificate between an anchor of the tenant and its devices, for devices that send only their own.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] if it is no CA certificate, or its issuer is not known in the tenant.
    pub fn store_intermediate(
        &self,
        actor: Actor,
        tenant: TenantId,
        certificate: Vec<u8>,
    ) -> Result<Committed<()>, RegistryError> {
        self.write(move |scope| {
            scope.need_tenant(&tenant)?;
            let stored = StoredIntermediate::new(tenant.clone(), &certificate)
                .map_err(|e| RegistryError::Refused(e.to_string()))?;
            let facts = &stored.facts;
            if facts.ca.is_none() {
                return Err(RegistryError::Refused(format!(
                    "{} is no CA certificate; hint: store what lies between the registered authority and its devices",
                    facts.subject_text
                )));
            }
            let inserted = scope.tx.execute(
                "INSERT OR IGNORE INTO intermediates (fingerprint, tenant, certificate, created) VALUES (?, ?, ?, ?)",
                params![
                    facts.fingerprint.as_bytes(),
                    tenant.as_str(),
                    certificate,
                    scope.now.unix_ms()
                ],
            )?;
            if inserted == 0 {
                return Ok(());
            }
            let detail = json!({ "subject": facts.subject_text, "fingerprint": facts.fingerprint });
            scope.audit(&actor, "authority.intermediate", tenant.as_str(), "", &detail)?;
            scope.facts.push(Fact::Intermediate(Arc::new(stored)));
            Ok(())
        })
    }

    /// The devices that hold certificates in force of this authority which would not name them by `rule`. Those that were issued
    /// here are looked at: of others only the fingerprint is kept.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn unnamed_by(
        &self,
        id: &AuthorityId,
        rule: &IdentityRule,
        now: Timestamp,
    ) -> Result<BTreeSet<DeviceId>, RegistryError> {
        self.read(|db| {
            let mut unnamed = BTreeSet::new();
            let mut statement = db.prepare_cached(
                "SELECT device, certificate FROM credentials WHERE authority = ?1 AND certificate IS NOT NULL
                 AND state IN ('issued', 'active') AND not_after >= ?2",
            )?;
            let mut rows = statement.query(params![id.as_str(), now.unix_ms()])?;
            while let Some(row) = rows.next()? {
                let device: String = row.get(0)?;
                let device = damaged(DeviceId::new(&device))?;
                let certificate: Vec<u8> = row.get(1)?;
                let facts = damaged(CertificateFacts::parse(&certificate))?;
                if rule.read(&facts) != Ok(device.clone()) {
                    unnamed.insert(device);
                }
            }
            Ok(unnamed)
        })
    }
}
