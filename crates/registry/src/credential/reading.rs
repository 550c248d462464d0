//! Reading: the facts of one, and what an authority's revocation list and OCSP say.

use std::collections::HashSet;

use countersign_factory::{RevocationReason, Revoked};
use countersign_identity::{AuthorityId, Fingerprint, Generation, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialFacts, CredentialState};
use rusqlite::{OptionalExtension, params};

use super::{EndedCredential, EndedCursor};
use crate::change::damaged;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::table::{Fact, FactTable};
use crate::writer::Scope;

/// The columns that [`credential_facts`] reads.
pub(crate) const COLUMNS: &str = "fingerprint, tenant, device, kind, state, custody, revision, profile";

impl Scope<'_> {
    pub(crate) fn read_credential(
        &self,
        fingerprint: &Fingerprint,
    ) -> Result<Option<CredentialFacts>, RegistryError> {
        self.tx
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM credentials WHERE fingerprint = ?"
            ))?
            .query_row([fingerprint.as_bytes()], |r| Ok(credential_facts(r, self.table)))
            .optional()?
            .transpose()
    }

    pub(crate) fn credentials_where(
        &self,
        clause: &str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<CredentialFacts>, RegistryError> {
        let mut statement = self
            .tx
            .prepare_cached(&format!("SELECT {COLUMNS} FROM credentials WHERE {clause}"))?;
        let mut rows = statement.query(values)?;
        let mut found = Vec::new();
        while let Some(r) = rows.next()? {
            found.push(credential_facts(r, self.table)?);
        }
        Ok(found)
    }
}

impl Registry {
    /// The next certificates of an authority that have ended, at most `limit`, for telling others: in the order of the
    /// changes that ended them, whatever the clock said. One that ends once more, harder, comes once more. First come those
    /// that a restore lost: a CA that runs apart still knows them as good.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn ended_after(
        &self,
        authority: &AuthorityId,
        after: &EndedCursor,
        limit: usize,
    ) -> Result<Vec<EndedCredential>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                // What was lost has no revision: it is of before the first of this epoch, and nothing is added to it while
                // anybody is being told.
                "SELECT serial, state, reason, ended_revision FROM credentials
                 WHERE authority = ?1 AND ended_revision IS NOT NULL AND (ended_revision, serial) > (?2, ?3)
                 UNION ALL SELECT serial, 'revoked', reason, 0 FROM lost_revocations
                 WHERE authority = ?1 AND (0, serial) > (?2, ?3)
                 ORDER BY 4, 1 LIMIT ?4",
            )?;
            let mut rows = statement.query(params![
                authority.as_str(),
                after.revision.cast_signed(),
                after.serial,
                i64::try_from(limit).unwrap_or(i64::MAX)
            ])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                let state: String = r.get(1)?;
                let reason: Option<u8> = r.get(2)?;
                found.push(EndedCredential {
                    serial: r.get(0)?,
                    state: damaged(state.parse())?,
                    reason: reason
                        .map(|code| damaged(RevocationReason::try_from(code)))
                        .transpose()?,
                    revision: r.get::<_, i64>(3)?.cast_unsigned(),
                });
            }
            Ok(found)
        })
    }

    /// What became of a certificate of an authority, by its serial number in hex; `None` if it issued none such, and
    /// inside that `None` if it is in force.
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn certificate_status(
        &self,
        authority: &AuthorityId,
        serial: &str,
    ) -> Result<Option<Option<Revoked>>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                "SELECT serial, ended, reason, state FROM credentials
                 WHERE serial = ?1 AND authority = ?2 AND station IS NULL
                 UNION ALL SELECT serial, ended, reason, state FROM stations WHERE serial = ?1 AND authority = ?2",
            )?;
            let mut rows = statement.query([serial, authority.as_str()])?;
            if let Some(r) = rows.next()? {
                return match r.get::<_, Option<i64>>(1)? {
                    None => Ok(Some(None)),
                    Some(_) => Ok(Some(Some(revoked_entry(r)?))),
                };
            }
            // Issued after the backup that was restored.
            let mut statement = db.prepare_cached(
                "SELECT serial, ended, reason, 'revoked' FROM lost_revocations WHERE serial = ? AND authority = ?",
            )?;
            let mut rows = statement.query([serial, authority.as_str()])?;
            match rows.next()? {
                None => Ok(None),
                Some(r) => Ok(Some(Some(revoked_entry(r)?))),
            }
        })
    }

    /// What an authority's revocation list holds: everything revoked or superseded, for ever (RFC 5280 section 3.3 asks
    /// for one list after the expiry; ours stay, and lapsed ones are on it too: they were handed out).
    ///
    /// # Errors
    /// [`RegistryError`] if the database cannot be read.
    pub fn revoked_by(
        &self,
        authority: &AuthorityId,
        not_expired_before: Timestamp,
    ) -> Result<Vec<Revoked>, RegistryError> {
        self.read(|db| {
            let mut statement = db.prepare_cached(
                // A station's certificates are another issuer's: the station itself is on the list.
                "SELECT serial, ended, reason, state FROM credentials
                 WHERE authority = ?1 AND ended IS NOT NULL AND not_after >= ?2 AND station IS NULL
                 UNION ALL SELECT serial, ended, reason, state FROM stations
                 WHERE authority = ?1 AND ended IS NOT NULL AND not_after >= ?2
                 UNION ALL SELECT serial, ended, reason, 'revoked' FROM lost_revocations WHERE authority = ?1
                 ORDER BY serial",
            )?;
            let mut rows = statement.query(params![authority.as_str(), not_expired_before.unix_ms()])?;
            let mut found = Vec::new();
            while let Some(r) = rows.next()? {
                found.push(revoked_entry(r)?);
            }
            Ok(found)
        })
    }
}

/// Of a row `serial, ended, reason, state` that has ended.
fn revoked_entry(r: &rusqlite::Row<'_>) -> Result<Revoked, RegistryError> {
    let lapsed = r.get::<_, String>(3)? == CredentialState::Lapsed.name();
    Ok(Revoked {
        serial: r.get(0)?,
        at: Timestamp::from_unix_ms(r.get(1)?),
        reason: match r.get::<_, Option<u8>>(2)? {
            Some(code) => damaged(RevocationReason::try_from(code))?,
            None if lapsed => RevocationReason::CessationOfOperation,
            None => RevocationReason::Unspecified,
        },
    })
}

/// Of a row of [`COLUMNS`].
pub(crate) fn credential_facts(
    r: &rusqlite::Row<'_>,
    table: &FactTable,
) -> Result<CredentialFacts, RegistryError> {
    let text = |n: usize| -> Result<String, RegistryError> { Ok(r.get(n)?) };
    let kind: CredentialKind = damaged(text(3)?.parse())?;
    let profile = r.get_ref(7)?.as_str_or_null().map_err(rusqlite::Error::from)?;
    Ok(CredentialFacts {
        fingerprint: Fingerprint::from_bytes(r.get(0)?),
        tenant: damaged(text(1)?.parse())?,
        device: damaged(text(2)?.parse())?,
        kind,
        state: damaged(text(4)?.parse())?,
        custody: damaged(text(5)?.parse())?,
        opens_data_sessions: table.opens_data_sessions(kind, profile),
        generation: Generation(r.get::<_, i64>(6)?.cast_unsigned()),
    })
}

impl Registry {
    /// Sets which factory profiles are for enrolment alone, by name. Called before anybody is admitted: a session that is
    /// live already is not asked again.
    ///
    /// # Errors
    /// [`RegistryError`] if their credentials cannot be read.
    pub fn set_enrol_only_profiles(&self, profiles: HashSet<String>) -> Result<(), RegistryError> {
        let before = self.facts().set_enrol_only(profiles.clone());
        for profile in before.union(&profiles) {
            let profile = profile.clone();
            // By the writer, so that it falls between changes.
            self.write(move |scope| {
                let found = scope.credentials_where("profile = ?", [profile.as_str()])?;
                scope.facts.extend(found.into_iter().map(Fact::Credential));
                Ok(())
            })?;
        }
        Ok(())
    }
}
