//! From evidence to a certificate. Every grant is made here, from what the CA itself knows, and again inside the transaction
//! that keeps the certificate: it is signed between the two, while others may write.

use std::time::Duration;

use countersign_authority::{Issued, IssuingAuthority};
use countersign_factory::{
    CertificateRequest, EnrolmentGrant, Profile, ProfileKind, ProfileStep, RevocationReason, renewal_proof,
};
use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::first_contact::IdPattern;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;

use super::error::CaError;
use super::protocol::{Base64, End, Ended, Evidence, IssueCall, IssuedAnswer};
use super::settings::Settings;
use super::store::Scope;

/// What is asked, read once, before the transaction.
pub struct Asked {
    authority: AuthorityId,
    profile: Profile,
    request: CertificateRequest,
    key: Fingerprint,
    evidence: Evidence,
}

/// The one certificate that a request may need. A run that needs it and does not have it fails, and is undone; it is signed,
/// and the request is judged anew.
#[derive(Default)]
pub struct Minting {
    wanted: Option<(EnrolmentGrant, Timestamp)>,
    minted: Option<Result<Issued, String>>,
}

impl Minting {
    /// Signs what the last run needed. Whether it needed anything.
    pub fn mint(&mut self, authority: &IssuingAuthority) -> bool {
        let Some((grant, at)) = self.wanted.take() else {
            return false;
        };
        self.minted = Some(authority.issue_device(&grant, at).map_err(|e| e.to_string()));
        true
    }

    fn take(&mut self, grant: EnrolmentGrant, at: Timestamp) -> Result<Issued, CaError> {
        match self.minted.take() {
            Some(minted) => minted.map_err(CaError::Mint),
            None => {
                self.wanted = Some((grant, at));
                Err(CaError::Mint("it is not signed yet".into()))
            }
        }
    }
}

/// On what a certificate is issued, once the evidence holds.
enum Ground {
    Batch {
        batch: String,
        quota: u64,
    },
    Secret {
        hash: Fingerprint,
        is_used: bool,
    },
    Certificate {
        fingerprint: Fingerprint,
        is_same_key: bool,
    },
}

impl Ground {
    /// As it is kept beside the certificate.
    fn text(&self) -> String {
        match self {
            Self::Batch { batch, .. } => format!("batch:{batch}"),
            Self::Secret { .. } => "secret".into(),
            Self::Certificate { fingerprint, .. } => format!("certificate:{fingerprint}"),
        }
    }
}

/// One certificate of the store.
struct Row {
    authority: AuthorityId,
    device: String,
    profile: String,
    kind: ProfileKind,
    public_key: Fingerprint,
    certificate: Vec<u8>,
    not_before: Timestamp,
    not_after: Timestamp,
    created: Timestamp,
    state: String,
}

const COLUMNS: &str =
    "authority, device, profile, kind, public_key, certificate, not_before, not_after, created, state";

fn damaged<T, E: std::fmt::Display>(read: Result<T, E>) -> Result<T, CaError> {
    read.map_err(|e| CaError::Storage(format!("an entry cannot be read: {e}")))
}

pub(super) const fn kind_name(kind: ProfileKind) -> &'static str {
    match kind {
        ProfileKind::Factory => "factory",
        ProfileKind::Operational => "operational",
    }
}

fn rows(db: &Connection, clause: &str, values: impl rusqlite::Params) -> Result<Vec<Row>, CaError> {
    let mut statement = db.prepare_cached(&format!("SELECT {COLUMNS} FROM certificates WHERE {clause}"))?;
    let mut rows = statement.query(values)?;
    let mut found = Vec::new();
    while let Some(r) = rows.next()? {
        let kind: String = r.get(3)?;
        found.push(Row {
            authority: damaged(r.get::<_, String>(0)?.parse())?,
            device: r.get(1)?,
            profile: r.get(2)?,
            kind: match kind.as_str() {
                "factory" => ProfileKind::Factory,
                _ => ProfileKind::Operational,
            },
            public_key: Fingerprint::from_bytes(r.get(4)?),
            certificate: r.get(5)?,
            not_before: Timestamp::from_unix_ms(r.get(6)?),
            not_after: Timestamp::from_unix_ms(r.get(7)?),
            created: Timestamp::from_unix_ms(r.get(8)?),
            state: r.get(9)?,
        });
    }
    Ok(found)
}

impl Row {
    fn is_in_force(&self, now: Timestamp) -> bool {
        self.state == "issued" && now <= self.not_after
    }

    /// From two thirds of its life on, a new one may be had for the same key.
    fn is_due(&self, now: Timestamp) -> bool {
        let life = self.not_after.since(self.not_before);
        now >= self.not_before.plus(life / 3 * 2)
    }
}

/// The tenant of an authority that issues.
fn open_authority(db: &Connection, id: &AuthorityId) -> Result<TenantId, CaError> {
    let row: Option<(String, String)> = db
        .prepare_cached("SELECT tenant, state FROM authorities WHERE id = ?")?
        .query_row([id.as_str()], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    match row {
        None => Err(CaError::NoAuthority(id.clone())),
        Some((_, state)) if state != "open" => Err(CaError::AuthorityClosed(id.clone())),
        Some((tenant, _)) => damaged(tenant.parse()),
    }
}

/// Whether the CA's operator said that certificates of `older` are evidence at `newer`.
fn succeeds(db: &Connection, newer: &AuthorityId, older: &AuthorityId) -> Result<bool, CaError> {
    Ok(db
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM successions WHERE authority = ? AND succeeds = ?)")?
        .query_row([newer.as_str(), older.as_str()], |r| r.get(0))?)
}

/// How many certificates a device may have. By renewal, those that have ended count until their time is over: nothing
/// else would bound a control process that says "it lapsed, another one". A batch has its quota, a secret is for one.
fn need_room(
    device: &DeviceId,
    ground: &Ground,
    of_device: &[Row],
    settings: &Settings,
    now: Timestamp,
) -> Result<(), CaError> {
    let (device, most) = (device.clone(), settings.certificates_per_device_max);
    let count = |counts: &dyn Fn(&&Row) -> bool| of_device.iter().filter(counts).count();
    if count(&|row| row.is_in_force(now)) >= most as usize {
        return Err(CaError::TooMany { device, most });
    }
    let is_renewal = matches!(ground, Ground::Certificate { .. });
    if is_renewal && count(&|row| now <= row.not_after) >= most as usize {
        return Err(CaError::TooOften { device, most });
    }
    Ok(())
}

impl Asked {
    /// Reads a request and checks its signature; a batch's or a certificate's word is judged later.
    ///
    /// # Errors
    /// [`CaError`] if it is no request, does not prove its key, or names a profile that is not here.
    pub fn read(settings: &Settings, call: IssueCall) -> Result<Self, CaError> {
        let profile = settings.profile(&call.profile)?.clone();
        let request = CertificateRequest::parse(&call.request.0).map_err(CaError::Request)?;
        let key = request
            .key()
            .fingerprint()
            .map_err(|e| CaError::Malformed(e.to_string()))?;
        Ok(Self {
            authority: call.authority,
            profile,
            request,
            key,
            evidence: call.evidence,
        })
    }

    /// The authority that is asked.
    pub fn authority(&self) -> &AuthorityId {
        &self.authority
    }

    /// Whose certificate this is about, and on what ground. Nothing is changed.
    fn judge(
        &self,
        scope: &Scope<'_>,
        settings: &Settings,
        tenant: &TenantId,
    ) -> Result<(DeviceId, Ground), CaError> {
        match &self.evidence {
            Evidence::Batch { device, batch } => {
                let ground = self.batch(scope, device, batch.as_deref())?;
                Ok((device.clone(), ground))
            }
            Evidence::Secret { device, secret } => {
                let hash = Fingerprint::of(secret.reveal().as_bytes());
                let used: Option<Option<[u8; 32]>> = scope
                    .db
                    .prepare_cached(
                        "SELECT used_key FROM secrets WHERE hash = ? AND authority = ? AND device = ? AND profile = ?
                         AND expires >= ?",
                    )?
                    .query_row(
                        params![
                            hash.as_bytes(),
                            self.authority.as_str(),
                            device.as_str(),
                            self.profile.name,
                            scope.now.unix_ms()
                        ],
                        |r| r.get(0),
                    )
                    .optional()?;
                match used {
                    Some(used) if used.is_none_or(|key| key == *self.key.as_bytes()) => {
                        let is_used = used.is_some();
                        Ok((device.clone(), Ground::Secret { hash, is_used }))
                    }
                    _ => Err(CaError::Secret(device.clone())),
                }
            }
            Evidence::Certificate { certificate, proof } => {
                self.certificate(scope, settings, tenant, &certificate.0, proof.as_ref())
            }
        }
    }

    fn batch(&self, scope: &Scope<'_>, device: &DeviceId, named: Option<&str>) -> Result<Ground, CaError> {
        let mut statement = scope.db.prepare_cached(
            "SELECT id, pattern, quota, used FROM batches WHERE authority = ?1 AND profile = ?2 AND state = 'open'
             AND expires >= ?3 AND (?4 IS NULL OR id = ?4) ORDER BY created, id",
        )?;
        let mut rows = statement.query(params![
            self.authority.as_str(),
            self.profile.name,
            scope.now.unix_ms(),
            named
        ])?;
        let mut nearest = CaError::NoBatch {
            device: device.clone(),
            authority: self.authority.clone(),
            profile: self.profile.name.clone(),
        };
        while let Some(r) = rows.next()? {
            let (batch, pattern): (String, String) = (r.get(0)?, r.get(1)?);
            let (quota, used) = (
                r.get::<_, i64>(2)?.cast_unsigned(),
                r.get::<_, i64>(3)?.cast_unsigned(),
            );
            let fits: IdPattern = damaged(pattern.parse())?;
            if !fits.fits(device) {
                if named.is_some() {
                    let device = device.clone();
                    nearest = CaError::Pattern {
                        device,
                        batch,
                        pattern,
                    };
                }
            } else if used >= quota {
                // Perhaps another one has room; and what was issued before is answered all the same.
                nearest = CaError::Quota { batch, quota };
            } else {
                return Ok(Ground::Batch { batch, quota });
            }
        }
        match nearest {
            // A repeated request is answered from a batch that is used up since.
            CaError::Quota { batch, quota } => Ok(Ground::Batch { batch, quota }),
            other => Err(other),
        }
    }

    fn certificate(
        &self,
        scope: &Scope<'_>,
        settings: &Settings,
        tenant: &TenantId,
        der: &[u8],
        proof: Option<&Base64>,
    ) -> Result<(DeviceId, Ground), CaError> {
        let fingerprint = Fingerprint::of(der);
        let shown = rows(
            scope.db,
            "fingerprint = ? AND tenant = ?",
            params![fingerprint.as_bytes(), tenant.as_str()],
        )?;
        let shown = shown.into_iter().next().ok_or(CaError::NotIssuedHere)?;
        // Possession first: who does not hold the key learns nothing of how the certificate stands.
        let is_same_key = shown.public_key == self.key;
        if !is_same_key {
            let proof = proof.ok_or(CaError::NotProven)?;
            renewal_proof::verify(der, self.request.der(), &proof.0).map_err(|_| CaError::NotProven)?;
        }
        if shown.state != "issued" {
            return Err(CaError::EvidenceEnded(shown.state));
        }
        let lane = Duration::from_secs(settings.renewal_lane_days * 86_400);
        if scope.now > shown.not_after.plus(lane) {
            return Err(CaError::EvidenceExpired(shown.not_after));
        }
        // An authority of the same tenant may be for something else: only the CA's operator says that one succeeds another.
        if shown.authority != self.authority && !succeeds(scope.db, &self.authority, &shown.authority)? {
            return Err(CaError::NotSucceeded {
                of: shown.authority,
                by: self.authority.clone(),
            });
        }
        // The factory's certificate leads to the operational ones that follow it, never the other way round, nor sideways. And
        // none leads to a factory's, which may have no end: not even its own, or it would go on outside its batch.
        let step = ProfileStep::between(
            (&shown.profile, shown.kind),
            (&self.profile.name, self.profile.kind),
        );
        let leads = match step {
            ProfileStep::Same => self.profile.kind == ProfileKind::Operational,
            ProfileStep::Down => settings.may_follow(&self.profile.name, &shown.profile),
            ProfileStep::Sideways | ProfileStep::Up => false,
        };
        if !leads {
            return Err(CaError::ProfileStep {
                from: shown.profile,
                to: self.profile.name.clone(),
            });
        }
        let device = damaged(shown.device.parse())?;
        Ok((
            device,
            Ground::Certificate {
                fingerprint,
                is_same_key,
            },
        ))
    }

    /// Whether the evidence holds, without anything following from it.
    ///
    /// # Errors
    /// [`CaError`] if it does not.
    pub fn check(&self, scope: &Scope<'_>, settings: &Settings) -> Result<(), CaError> {
        let tenant = open_authority(scope.db, &self.authority)?;
        self.judge(scope, settings, &tenant).map(|_| ())
    }

    /// The certificate: the one that was issued before for this key, or a new one.
    ///
    /// # Errors
    /// [`CaError`]; then nothing was minted.
    pub fn issue(
        &self,
        scope: &Scope<'_>,
        settings: &Settings,
        minting: &mut Minting,
    ) -> Result<IssuedAnswer, CaError> {
        let tenant = open_authority(scope.db, &self.authority)?;
        let (device, ground) = self.judge(scope, settings, &tenant)?;
        let of_key = rows(
            scope.db,
            "public_key = ? ORDER BY created DESC",
            [self.key.as_bytes()],
        )?;
        let of_device = rows(
            scope.db,
            "tenant = ? AND device = ? ORDER BY created DESC",
            [tenant.as_str(), device.as_str()],
        )?;
        // A key of another tenant's device of the same name is another's key all the same.
        let own = |row: &Row| of_device.iter().any(|d| d.certificate == row.certificate);
        if let Some(other) = of_key.iter().find(|row| !own(row)) {
            return Err(CaError::KeyOfOther(other.device.clone()));
        }
        if of_key.iter().any(|row| row.state == "revoked") {
            return Err(CaError::Revoked(device));
        }
        let window = Duration::from_secs(settings.replay_window_hours * 3600);
        let of_profile = || of_key.iter().filter(|row| row.profile == self.profile.name);
        // The authority that is asked is open; one of another would be an answer to another question.
        let of_authority = of_profile().find(|row| row.authority == self.authority);
        if let Some(row) = of_authority.filter(|row| row.is_in_force(scope.now)) {
            let is_young = scope.now.since(row.created) < window;
            if is_young || !row.is_due(scope.now) {
                return Ok(IssuedAnswer {
                    certificate: Base64(row.certificate.clone()),
                    authority: row.authority.clone(),
                    kind: row.kind,
                    repeated: true,
                });
            }
        }
        if of_profile().next().is_some() && self.profile.new_key {
            return Err(CaError::NewKeyDemanded(self.profile.name.clone()));
        }
        self.fits_ground(scope, &device, &ground, &of_key, &of_device)?;
        need_room(&device, &ground, &of_device, settings, scope.now)?;
        self.keep(scope, minting, tenant, device, &ground)
    }

    /// What each ground allows beyond what was issued before.
    fn fits_ground(
        &self,
        scope: &Scope<'_>,
        device: &DeviceId,
        ground: &Ground,
        of_key: &[Row],
        of_device: &[Row],
    ) -> Result<(), CaError> {
        match ground {
            Ground::Batch { batch, quota } => {
                // Once revoked, only the CA's operator brings it back: by a secret for a new key.
                if of_device.iter().any(|row| row.state == "revoked") {
                    return Err(CaError::Revoked(device.clone()));
                }
                if of_device.iter().any(|row| row.public_key != self.key) {
                    return Err(CaError::HasAnotherKey(device.clone()));
                }
                // Certificates are counted, not ids: who says "lapsed, another one" pays for it.
                let counted = scope
                    .db
                    .prepare_cached("UPDATE batches SET used = used + 1 WHERE id = ? AND used < quota")?
                    .execute([batch])?;
                if counted == 0 {
                    return Err(CaError::Quota {
                        batch: batch.clone(),
                        quota: *quota,
                    });
                }
            }
            Ground::Secret { hash, is_used } => {
                if *is_used {
                    return Err(CaError::Secret(device.clone()));
                }
                scope
                    .db
                    .prepare_cached("UPDATE secrets SET used_key = ? WHERE hash = ?")?
                    .execute(params![self.key.as_bytes(), hash.as_bytes()])?;
            }
            // A request that was recorded once must not go on minting: its key's own certificate is the evidence now.
            Ground::Certificate {
                is_same_key: false, ..
            } if !of_key.is_empty() => {
                return Err(CaError::NotTheNewest);
            }
            Ground::Certificate { .. } => {}
        }
        Ok(())
    }

    fn keep(
        &self,
        scope: &Scope<'_>,
        minting: &mut Minting,
        tenant: TenantId,
        device: DeviceId,
        ground: &Ground,
    ) -> Result<IssuedAnswer, CaError> {
        scope.need_clock()?;
        let kind = self.profile.kind;
        let grant = EnrolmentGrant::new(
            tenant.clone(),
            device.clone(),
            self.request.key().clone(),
            self.profile.clone(),
        )
        .map_err(CaError::Profile)?;
        let issued = minting.take(grant, scope.now)?;
        let facts: &CertificateFacts = issued.facts();
        scope
            .db
            .prepare_cached(
                "INSERT INTO certificates (authority, serial, fingerprint, tenant, device, profile, kind, public_key,
                 certificate, not_before, not_after, evidence, created, state)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'issued')",
            )?
            .execute(params![
                self.authority.as_str(),
                facts.serial,
                facts.fingerprint.as_bytes(),
                tenant.as_str(),
                device.as_str(),
                self.profile.name,
                kind_name(kind),
                self.key.as_bytes(),
                issued.certificate().as_ref(),
                facts.not_before.unix_ms(),
                facts.not_after.unix_ms(),
                ground.text(),
                scope.now.unix_ms(),
            ])?;
        scope.log(
            "certificate.issue",
            device.as_str(),
            &json!({
                "tenant": tenant, "authority": self.authority, "serial": facts.serial, "fingerprint": facts.fingerprint,
                "profile": self.profile.name, "evidence": ground.text(), "not_after": facts.not_after.to_string(),
            }),
        )?;
        Ok(IssuedAnswer {
            certificate: Base64(issued.certificate().to_vec()),
            authority: self.authority.clone(),
            kind,
            repeated: false,
        })
    }
}

/// Ends certificates; what has ended may only end harder. How many changed, and how many are not known.
///
/// # Errors
/// [`CaError`].
pub fn end(
    scope: &Scope<'_>,
    authority: &AuthorityId,
    certificates: &[Ended],
) -> Result<(u64, u64), CaError> {
    let (mut changed, mut unknown) = (0, 0);
    for entry in certificates {
        let serial = entry.serial.to_ascii_lowercase();
        let row: Option<(String, String, Option<u8>)> = scope
            .db
            .prepare_cached(
                "SELECT state, device, reason FROM certificates WHERE authority = ? AND serial = ?",
            )?
            .query_row([authority.as_str(), serial.as_str()], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?))
            })
            .optional()?;
        let Some((state, device, reason_before)) = row else {
            unknown += 1;
            continue;
        };
        let hardness = |name: &str| {
            [End::Lapsed, End::Superseded, End::Revoked]
                .iter()
                .position(|e| e.name() == name)
        };
        // That somebody else has the key may become known of one that was revoked already.
        let was_compromise = reason_before
            .is_some_and(|r| RevocationReason::try_from(r).is_ok_and(RevocationReason::is_compromise));
        let is_news = entry.how == End::Revoked && entry.reason.is_compromise() && !was_compromise;
        if !is_news && hardness(&state).is_some_and(|now| Some(now) >= hardness(entry.how.name())) {
            continue;
        }
        let reason = match entry.how {
            End::Lapsed => RevocationReason::CessationOfOperation,
            End::Superseded => RevocationReason::Superseded,
            End::Revoked => entry.reason,
        };
        scope
            .db
            .prepare_cached(
                "UPDATE certificates SET state = ?3, ended = coalesce(ended, ?4), reason = ?5
                 WHERE authority = ?1 AND serial = ?2",
            )?
            .execute(params![
                authority.as_str(),
                serial,
                entry.how.name(),
                scope.now.unix_ms(),
                reason.code()
            ])?;
        scope.log(
            "certificate.end",
            &device,
            &json!({ "authority": authority, "serial": serial, "how": entry.how.name(), "reason": reason.name() }),
        )?;
        changed += 1;
    }
    Ok((changed, unknown))
}
