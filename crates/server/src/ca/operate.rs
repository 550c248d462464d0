//! What the CA's own operator does: on the CA's folder, beside the running process or without it. None of it can be
//! reached over the socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_authority::{Hierarchy, IssuingAuthority, KeyStore, folder};
use countersign_factory::RevocationReason;
use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId, Timestamp, proof};
use countersign_policy::first_contact::IdPattern;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde_json::{Value, json};

use super::Keys;
use super::error::CaError;
use super::protocol::{End, Ended};
use super::rules;
use super::settings::{FILE, Settings};
use super::store::{self, Scope};
use crate::token_keys::Pkcs11Keys;

/// Who works on the folder.
fn actor() -> String {
    format!("operator uid {}", rustix::process::getuid().as_raw())
}

/// Makes a CA's folder: `ca.toml` and the store. Safe to repeat.
///
/// # Errors
/// [`CaError`] if the folder is a platform's data directory.
pub fn init(folder: &Path, socket: Option<PathBuf>, control_uids: Vec<u32>) -> Result<Settings, CaError> {
    if folder.join("registry.db").exists() {
        return Err(CaError::Invalid(format!(
            "{} is the data directory of a platform: whoever takes over that process would have the CA's keys; hint: name a folder of its own, best of a user of its own",
            folder.display()
        )));
    }
    folder::create_private(folder)?;
    let path = folder.join(FILE);
    if path.exists() {
        if socket.is_some() || !control_uids.is_empty() {
            return Err(CaError::Invalid(format!(
                "{} exists and is not overwritten; hint: edit it",
                path.display()
            )));
        }
    } else {
        let settings = Settings {
            socket,
            control_uids,
            ..Settings::default()
        };
        let text = toml::to_string(&settings).map_err(|e| CaError::Storage(e.to_string()))?;
        let head = "# The CA. docs/ca-role.md lists the keys; a restart takes changes in.\n\n";
        folder::write_private(&path, format!("{head}{text}").as_bytes())?;
    }
    let settings = Settings::load(folder)?;
    store::create(folder)?;
    Ok(settings)
}

fn need_free(folder: &Path, db: &Connection, id: &AuthorityId) -> Result<PathBuf, CaError> {
    let known: Option<i64> = db
        .query_row("SELECT 1 FROM authorities WHERE id = ?", [id.as_str()], |r| {
            r.get(0)
        })
        .optional()?;
    match known {
        Some(_) => Err(CaError::Exists(format!("authority {id}"))),
        None => Ok(Keys::folder_of(folder, id)),
    }
}

fn enter(
    scope: &Scope<'_>,
    id: &AuthorityId,
    tenant: &TenantId,
    made: &IssuingAuthority,
    succeeds: &[AuthorityId],
) -> Result<(), CaError> {
    scope.db.execute(
        "INSERT INTO authorities (id, tenant, state, certificate, root, list_number, created)
         VALUES (?, ?, 'open', ?, ?, 0, ?)",
        params![
            id.as_str(),
            tenant.as_str(),
            made.certificate().as_ref(),
            made.root().as_ref(),
            scope.now.unix_ms()
        ],
    )?;
    scope.log(
        "authority.add",
        id.as_str(),
        &json!({
            "tenant": tenant, "fingerprint": made.facts().fingerprint, "key_store": made.key_store().name(),
        }),
    )?;
    succeeds.iter().try_for_each(|of| succeed(scope, id, of))
}

/// From now on certificates of `of` are evidence at `id`.
fn succeed(scope: &Scope<'_>, id: &AuthorityId, of: &AuthorityId) -> Result<(), CaError> {
    let tenant = |id: &AuthorityId| {
        let found: Option<String> = scope
            .db
            .query_row(
                "SELECT tenant FROM authorities WHERE id = ?",
                [id.as_str()],
                |r| r.get(0),
            )
            .optional()?;
        found.ok_or_else(|| CaError::NoAuthority(id.clone()))
    };
    let (own, other) = (tenant(id)?, tenant(of)?);
    if id == of || own != other {
        return Err(CaError::Invalid(format!(
            "authority {id} of tenant {own} cannot succeed {of} of tenant {other}; hint: name an older authority of the same tenant"
        )));
    }
    let made = scope.db.execute(
        "INSERT OR IGNORE INTO successions (authority, succeeds, created) VALUES (?, ?, ?)",
        params![id.as_str(), of.as_str(), scope.now.unix_ms()],
    )?;
    if made == 0 {
        return Ok(());
    }
    scope.log("authority.succeeds", id.as_str(), &json!({ "succeeds": of }))
}

/// Says that an authority takes the place of another one of its tenant: certificates of that one are evidence for its own.
/// Safe to repeat.
///
/// # Errors
/// [`CaError`] if one of them is not here, or they are of two tenants.
pub fn authority_succeeds(folder: &Path, id: &AuthorityId, of: &AuthorityId) -> Result<(), CaError> {
    let mut db = store::open_beside(folder)?;
    store::write_beside(&mut db, &actor(), |scope| succeed(scope, id, of))
}

/// Makes an authority, root and all. Safe to repeat after a cut.
///
/// # Errors
/// [`CaError`].
pub fn authority_add(
    folder: &Path,
    id: &AuthorityId,
    tenant: &TenantId,
    keys: &KeyStore,
    succeeds: &[AuthorityId],
) -> Result<(), CaError> {
    let mut db = store::open_beside(folder)?;
    let path = need_free(folder, &db, id)?;
    let made = if path.join("issuing.crt").exists() {
        IssuingAuthority::open_in(&path, Hierarchy::Devices, &Pkcs11Keys)?
    } else {
        let label = tenant.as_str();
        IssuingAuthority::create_in(&path, Hierarchy::Devices, label, store::now(), keys, &Pkcs11Keys)?
    };
    store::write_beside(&mut db, &actor(), |scope| {
        enter(scope, id, tenant, &made, succeeds)
    })
}

/// Makes the key of an authority whose certificate an external root is to issue: the request, PEM.
///
/// # Errors
/// [`CaError`].
pub fn authority_request(folder: &Path, id: &AuthorityId, keys: &KeyStore) -> Result<String, CaError> {
    let db = store::open_beside(folder)?;
    let path = need_free(folder, &db, id)?;
    Ok(IssuingAuthority::request_in(
        &path,
        Hierarchy::Devices,
        id.as_str(),
        keys,
        &Pkcs11Keys,
    )?)
}

/// Installs what the external root issued (PEM, the issuing CA first, the root last). Safe to repeat after a cut, with another
/// certificate too.
///
/// # Errors
/// [`CaError`]; then nothing is installed.
pub fn authority_install(
    folder: &Path,
    id: &AuthorityId,
    tenant: &TenantId,
    chain: &str,
    succeeds: &[AuthorityId],
) -> Result<(), CaError> {
    let mut db = store::open_beside(folder)?;
    let path = need_free(folder, &db, id)?;
    if IssuingAuthority::has_own_root(&path) {
        return Err(CaError::Invalid(format!(
            "authority {id} was made here, with a root of its own, and is not in use yet; hint: countersign ca authority add {id} finishes it"
        )));
    }
    if !IssuingAuthority::is_requested(&path) {
        return Err(CaError::NotFound(format!(
            "there is no request of authority {id}; hint: countersign ca authority add {id} --csr FILE makes one"
        )));
    }
    let checked = IssuingAuthority::check_install(&path, Hierarchy::Devices, chain.as_bytes(), &Pkcs11Keys)
        .map_err(|e| CaError::Invalid(e.to_string()))?;
    // What the platform would refuse is not taken in: the id would be lost to it.
    countersign_registry::check_authority(checked.certificate())
        .map_err(|e| CaError::Invalid(e.to_string()))?;
    let made = checked.write(&Pkcs11Keys)?;
    store::write_beside(&mut db, &actor(), |scope| {
        enter(scope, id, tenant, &made, succeeds)
    })
}

/// Writes the key of an authority's root to a file, as it is kept, and deletes it here. Nothing here needs it.
///
/// # Errors
/// [`CaError`] if it is not here, or the file exists.
pub fn take_root_offline(folder: &Path, id: &AuthorityId, out: &Path) -> Result<(), CaError> {
    let mut db = store::open_beside(folder)?;
    let key = Keys::folder_of(folder, id).join("root.key");
    if !key.exists() {
        return Err(CaError::NotFound(format!(
            "the root key of authority {id} is not in a file here; hint: it was taken offline, or is in a token (label with -root)"
        )));
    }
    if out.exists() {
        return Err(CaError::Exists(out.display().to_string()));
    }
    let bytes = zeroize::Zeroizing::new(folder::read_private(&key)?);
    folder::write_private(out, &bytes)?;
    // Deleted only once the other copy is on disk.
    std::fs::remove_file(&key)
        .map_err(|e| CaError::Storage(format!("cannot delete {}: {e}", key.display())))?;
    store::write_beside(&mut db, &actor(), |scope| {
        scope.log("authority.root-offline", id.as_str(), &json!({}))
    })
}

/// Lets an authority issue nothing any more; its lists are still signed.
///
/// # Errors
/// [`CaError::NoAuthority`].
pub fn authority_close(folder: &Path, id: &AuthorityId) -> Result<(), CaError> {
    let mut db = store::open_beside(folder)?;
    store::write_beside(&mut db, &actor(), |scope| {
        let changed = scope.db.execute(
            "UPDATE authorities SET state = 'closed' WHERE id = ?",
            [id.as_str()],
        )?;
        if changed == 0 {
            return Err(CaError::NoAuthority(id.clone()));
        }
        scope.log("authority.close", id.as_str(), &json!({}))
    })
}

/// A batch that is about to be.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Its name.
    pub id: String,
    /// The authority that issues for it.
    pub authority: AuthorityId,
    /// The profile of its certificates; the first of `ca.toml` if none is named.
    pub profile: Option<String>,
    /// The ids that it covers.
    pub pattern: IdPattern,
    /// How many certificates.
    pub quota: u32,
    /// For how long.
    pub lifetime: Duration,
}

fn profile_name(settings: &Settings, named: Option<&str>) -> Result<String, CaError> {
    match (named, settings.profiles.first()) {
        (Some(name), _) => Ok(settings.profile(name)?.name.clone()),
        (None, Some(first)) => Ok(first.profile.name.clone()),
        (None, None) => Err(CaError::NoProfile(String::new())),
    }
}

fn need_authority(scope: &Scope<'_>, id: &AuthorityId) -> Result<(), CaError> {
    let known: Option<i64> = scope
        .db
        .query_row("SELECT 1 FROM authorities WHERE id = ?", [id.as_str()], |r| {
            r.get(0)
        })
        .optional()?;
    known.map(|_| ()).ok_or_else(|| CaError::NoAuthority(id.clone()))
}

/// Makes a batch. When it ends.
///
/// # Errors
/// [`CaError`].
pub fn batch_add(folder: &Path, new: &NewBatch) -> Result<Timestamp, CaError> {
    let profile = profile_name(&Settings::load(folder)?, new.profile.as_deref())?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    if new.id.is_empty() || new.id.len() > 64 || !new.id.bytes().all(fits) {
        return Err(CaError::Invalid(format!(
            "{:?} is no batch name: 1 to 64 of A-Z a-z 0-9 . _ : -",
            new.id
        )));
    }
    let mut db = store::open_beside(folder)?;
    store::write_beside(&mut db, &actor(), |scope| {
        need_authority(scope, &new.authority)?;
        let expires = scope.now.plus(new.lifetime);
        let made = scope.db.execute(
            "INSERT OR IGNORE INTO batches (id, authority, profile, pattern, quota, expires, state, created)
             VALUES (?, ?, ?, ?, ?, ?, 'open', ?)",
            params![
                new.id,
                new.authority.as_str(),
                profile,
                new.pattern.to_string(),
                new.quota,
                expires.unix_ms(),
                scope.now.unix_ms()
            ],
        )?;
        if made == 0 {
            return Err(CaError::Exists(format!("batch {}", new.id)));
        }
        scope.log(
            "batch.add",
            &new.id,
            &json!({
                "authority": new.authority, "profile": profile, "pattern": new.pattern.to_string(), "quota": new.quota,
                "expires": expires.to_string(),
            }),
        )?;
        Ok(expires)
    })
}

/// Ends a batch before its time.
///
/// # Errors
/// [`CaError::NotFound`].
pub fn batch_close(folder: &Path, id: &str) -> Result<(), CaError> {
    let mut db = store::open_beside(folder)?;
    store::write_beside(&mut db, &actor(), |scope| {
        let changed = scope
            .db
            .execute("UPDATE batches SET state = 'closed' WHERE id = ?", [id])?;
        if changed == 0 {
            return Err(CaError::NotFound(format!(
                "there is no batch {id}; hint: countersign ca batch list"
            )));
        }
        scope.log("batch.close", id, &json!({}))
    })
}

/// All batches.
///
/// # Errors
/// [`CaError`].
pub fn batches(folder: &Path) -> Result<Value, CaError> {
    let db = store::open_beside(folder)?;
    let mut statement = db.prepare(
        "SELECT id, authority, profile, pattern, quota, used, expires, state FROM batches ORDER BY created, id",
    )?;
    let now = store::now().unix_ms();
    let rows = statement.query_map([], |r| {
        let expires: i64 = r.get(6)?;
        let state: String = r.get(7)?;
        Ok(json!({
            "id": r.get::<_, String>(0)?, "authority": r.get::<_, String>(1)?, "profile": r.get::<_, String>(2)?,
            "pattern": r.get::<_, String>(3)?, "quota": r.get::<_, i64>(4)?, "used": r.get::<_, i64>(5)?,
            "expires": expires,
            "state": if state == "open" && expires < now { "expired" } else { state.as_str() },
        }))
    })?;
    Ok(Value::Array(rows.collect::<Result<_, _>>()?))
}

/// Makes a one-time secret: the operator's word that this device may have one certificate, whatever became of earlier
/// ones. It is shown once.
///
/// # Errors
/// [`CaError`].
pub fn secret(
    folder: &Path,
    authority: &AuthorityId,
    device: &DeviceId,
    profile: Option<&str>,
    lifetime: Duration,
) -> Result<(String, Timestamp), CaError> {
    let profile = profile_name(&Settings::load(folder)?, profile)?;
    let secret =
        proof::new_code().ok_or_else(|| CaError::Storage("the system's random source failed".into()))?;
    let hash = Fingerprint::of(secret.as_bytes());
    let mut db = store::open_beside(folder)?;
    let expires = store::write_beside(&mut db, &actor(), |scope| {
        need_authority(scope, authority)?;
        let expires = scope.now.plus(lifetime);
        scope
            .db
            .execute("DELETE FROM secrets WHERE expires < ?", [scope.now.unix_ms()])?;
        scope.db.execute(
            "INSERT INTO secrets (hash, authority, device, profile, expires, created) VALUES (?, ?, ?, ?, ?, ?)",
            params![
                hash.as_bytes(),
                authority.as_str(),
                device.as_str(),
                profile,
                expires.unix_ms(),
                scope.now.unix_ms()
            ],
        )?;
        let detail = json!({ "authority": authority, "profile": profile, "expires": expires.to_string() });
        scope.log("secret.add", device.as_str(), &detail)?;
        Ok(expires)
    })?;
    Ok((secret, expires))
}

/// Revokes a certificate, at the CA. Whether anything changed.
///
/// # Errors
/// [`CaError::NotFound`].
pub fn revoke(folder: &Path, fingerprint: &Fingerprint, reason: RevocationReason) -> Result<bool, CaError> {
    let mut db = store::open_beside(folder)?;
    store::write_beside(&mut db, &actor(), |scope| {
        let found: Option<(String, String)> = scope
            .db
            .query_row(
                "SELECT authority, serial FROM certificates WHERE fingerprint = ?",
                [fingerprint.as_bytes()],
                |r| Ok((r.get(0)?, r.get(1)?)),
            )
            .optional()?;
        let (authority, serial) = found.ok_or_else(|| {
            CaError::NotFound(format!(
                "the CA issued no certificate {fingerprint}; hint: countersign ca certificates"
            ))
        })?;
        let authority = authority
            .parse()
            .map_err(|e| CaError::Storage(format!("an entry cannot be read: {e}")))?;
        let ended = Ended {
            serial,
            how: End::Revoked,
            reason,
        };
        Ok(rules::end(scope, &authority, &[ended])?.0 == 1)
    })
}

/// Takes the clock's time for right although later ones were seen: after the clock had been ahead by mistake. What was
/// signed meanwhile keeps its dates. The latest time that was seen.
///
/// # Errors
/// [`CaError::Invalid`] without a reason.
pub fn clock_reset(folder: &Path, reason: &str) -> Result<Timestamp, CaError> {
    if reason.trim().is_empty() {
        return Err(CaError::Invalid(
            "why is the later time the wrong one? hint: --reason TEXT, for the log".into(),
        ));
    }
    let mut db = store::open_beside(folder)?;
    store::write_beside(&mut db, &actor(), |scope| {
        let before = scope.reset_clock()?;
        let detail = json!({ "from": before.to_string(), "to": scope.now.to_string(), "reason": reason });
        scope.log("clock.reset", "", &detail)?;
        Ok(before)
    })
}

/// The newest certificates, newest first.
///
/// # Errors
/// [`CaError`].
pub fn certificates(folder: &Path, device: Option<&DeviceId>, limit: u32) -> Result<Value, CaError> {
    let db = store::open_beside(folder)?;
    let mut statement = db.prepare(
        "SELECT device, tenant, authority, serial, fingerprint, profile, state, not_after, evidence, created
         FROM certificates WHERE ?1 IS NULL OR device = ?1 ORDER BY created DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![device.map(DeviceId::as_str), limit], |r| {
        Ok(json!({
            "device": r.get::<_, String>(0)?, "tenant": r.get::<_, String>(1)?, "authority": r.get::<_, String>(2)?,
            "serial": r.get::<_, String>(3)?, "fingerprint": Fingerprint::from_bytes(r.get(4)?),
            "profile": r.get::<_, String>(5)?, "state": r.get::<_, String>(6)?, "not_after": r.get::<_, i64>(7)?,
            "evidence": r.get::<_, String>(8)?, "created": r.get::<_, i64>(9)?,
        }))
    })?;
    Ok(Value::Array(rows.collect::<Result<_, _>>()?))
}

/// One finding of [`status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

/// Looks at everything that is known to go wrong: keys, log, clock, who may ask.
///
/// # Errors
/// [`CaError`] if there is no CA.
pub fn status(folder: &Path) -> Result<Vec<Finding>, CaError> {
    let db = store::open_beside(folder)?;
    let settings = Settings::load(folder)?;
    let mut findings = Vec::new();
    let mut add = |name: String, result: Result<String, String>| {
        let ok = result.is_ok();
        let detail = result.unwrap_or_else(|e| e);
        findings.push(Finding { name, ok, detail });
    };
    let count = |sql: &str| db.query_row(sql, [], |r| r.get::<_, i64>(0));
    add(
        "certificates".into(),
        Ok(format!(
            "{} issued, {} of them ended",
            count("SELECT count(*) FROM certificates")?,
            count("SELECT count(*) FROM certificates WHERE ended IS NOT NULL")?
        )),
    );
    add(
        "log".into(),
        match store::verify_log(&db)? {
            Ok(n) => Ok(format!("{n} entries, the chain of hashes holds")),
            Err(seq) => Err(format!(
                "it was tampered with: entry {seq} does not follow from the one before it; hint: compare with a backup"
            )),
        },
    );
    let seen = Timestamp::from_unix_ms(count("SELECT seen FROM clock")?);
    let now = store::now();
    add(
        "clock".into(),
        if now.plus(store::CLOCK_SLACK) < seen {
            Err(CaError::ClockBehind { now, before: seen }.to_string())
        } else {
            Ok(now.to_string())
        },
    );
    let own = rustix::process::getuid().as_raw();
    add(
        "separation".into(),
        if settings.control_uids.iter().any(|uid| *uid != own) {
            Ok(format!(
                "user ids {:?} may ask, the keys are user id {own}'s",
                settings.control_uids
            ))
        } else {
            Err("only the CA's own user may ask: then the control process is that user too, and could read the keys; hint: run the CA as a user of its own, and name the other in control_uids of ca.toml".into())
        },
    );
    let keys = Keys::new(folder);
    let mut statement = db.prepare("SELECT id, state FROM authorities ORDER BY created")?;
    let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?)))?;
    for row in rows {
        let (id, state) = row?;
        let tried = AuthorityId::new(&id).map_err(|e| e.to_string()).and_then(|id| {
            let authority = keys.authority(&id).map_err(|e| e.to_string())?;
            authority.check_key().map_err(|e| e.to_string())?;
            Ok(format!(
                "{state}, it signs, store {}",
                authority.key_store().name()
            ))
        });
        add(format!("key of {id}"), tried);
    }
    Ok(findings)
}
