//! Offline factory stations: granted, reconciled, revoked.

use countersign_factory::station::account::Known;
use countersign_factory::station::journal::{Ending, Event, Record};
use countersign_factory::station::{Account, GrantFile, IdRange, StationCaGrant, Terms};
use countersign_factory::{CertificateRequest, RevocationReason};
use countersign_identity::{AuthorityId, BatchId, StationId, TenantId, Timestamp};
use countersign_registry::{Actor, MintedStation, Overlap, Reconciled, RegistryError};

use super::{Deed, Service, Told};
use crate::failure::Failure;

/// A station that is about to be granted.
#[derive(Debug, Clone)]
pub struct StationDraft {
    /// Its id.
    pub id: StationId,
    /// The tenant of its devices.
    pub tenant: TenantId,
    /// Their batch.
    pub batch: BatchId,
    /// Its request, whose signature holds.
    pub request: CertificateRequest,
    /// The ids it may give; the batch's if none are named.
    pub ids: Option<IdRange>,
    /// How many certificates it may issue.
    pub quota: u64,
    /// The first moment in which it may issue.
    pub from: Timestamp,
    /// The last one.
    pub to: Timestamp,
    /// The factory CA; the tenant's newest if none is named.
    pub authority: Option<AuthorityId>,
    /// Whether ids may be granted that are taken.
    pub overlap: Overlap,
}

impl Service {
    /// Grants a station, and answers with its grant file.
    ///
    /// # Errors
    /// [`Failure`]; then nothing was minted.
    pub async fn add_station(&self, actor: Actor, draft: StationDraft) -> Result<Vec<u8>, Failure> {
        let batch = self.registry.batch(&draft.tenant, &draft.batch)?.batch;
        let profile = self.profile(Some(&batch.profile))?;
        let terms = Terms {
            station: draft.id,
            tenant: draft.tenant.clone(),
            batch: draft.batch,
            ids: draft.ids.unwrap_or(IdRange::Pattern(batch.id_pattern.clone())),
            batch_ids: batch.id_pattern,
            quota: draft.quota,
            from: draft.from,
            to: draft.to,
            profile,
        };
        if terms.to <= self.now() {
            return Err(Failure::invalid(format!(
                "the signing window is over: it ends {}; hint: choose one that is to come",
                terms.to
            )));
        }
        let authority = match draft.authority {
            Some(authority) => authority,
            None => self.registry.factory_authority(&draft.tenant)?.ok_or_else(|| {
                Failure::invalid(format!(
                    "tenant {} has no factory CA; hint: countersign authority create ID --factory makes one",
                    draft.tenant
                ))
            })?,
        };
        let key = draft.request.key().clone();
        let fingerprint = key.fingerprint().map_err(|e| Failure::internal(e.to_string()))?;
        let grant = StationCaGrant::new(&terms, key).map_err(|e| Failure::invalid(e.to_string()))?;
        let factory = self.authority_with_key(&authority)?;
        let platform_root = self.platform_root();
        let (host, port) = self.address();
        let (kept, overlap) = (terms.clone(), draft.overlap);
        let (file, _) = self
            .change(move |r| {
                r.add_station(actor, authority, kept, fingerprint, overlap, move |now| {
                    let issued = factory.issue_station(&grant, now).map_err(|e| e.to_string())?;
                    let file = GrantFile {
                        format: GrantFile::FORMAT.into(),
                        terms,
                        chain: issued.chain_pem(),
                        platform_root,
                        host,
                        port,
                    };
                    Ok(MintedStation {
                        certificate: issued.certificate().to_vec(),
                        grant_file: serde_json::to_vec_pretty(&file).map_err(|e| e.to_string())?,
                    })
                })
            })
            .await?;
        Ok(file)
    }

    /// A station of a tenant.
    ///
    /// # Errors
    /// [`Failure`] if the tenant has none such.
    pub fn need_station(&self, tenant: &TenantId, id: &StationId) -> Result<(), Failure> {
        match self.registry.station(id) {
            Ok(station) if station.terms.tenant == *tenant => Ok(()),
            Ok(_) => Err(RegistryError::NoStation(id.clone()).into()),
            Err(e) => Err(e.into()),
        }
    }

    /// Revokes a station, and waits for the sessions that this ends. How many certificates were revoked.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn revoke_station(
        &self,
        actor: Actor,
        id: StationId,
        code: RevocationReason,
        reason: String,
        with_devices: bool,
    ) -> Result<(u64, Told), Failure> {
        let deed = Deed {
            actor: actor.clone(),
            action: "station.revoke".into(),
            tenant: Some(self.registry.station(&id)?.terms.tenant),
            subject: id.to_string(),
            reason: reason.clone(),
        };
        self.deed(deed, move |r| {
            r.revoke_station(actor, id, code, reason, with_devices)
        })
        .await
    }

    /// Reconciles a station's journal. What is refused is in the report, with its code.
    ///
    /// # Errors
    /// [`Failure`] if it cannot be written; what was registered by then stays, and the journal is simply handed in again.
    pub fn reconcile(&self, actor: Actor, journal: &[u8], ending: Ending) -> Result<Reconciled, Failure> {
        let refuse = |id: Option<StationId>, code: &str, message: String| {
            Ok(self
                .registry
                .refuse_journal(actor.clone(), Reconciled::refused(id, code, message))?)
        };
        let Some(id) = station_of(journal) else {
            let fault = countersign_factory::station::JournalFault::NotOpened;
            return refuse(None, fault.code(), fault.to_string());
        };
        let (terms, certificate, grant) = match self.registry.station_terms(&id) {
            Ok(known) => known,
            Err(e @ RegistryError::NoStation(_)) => {
                return refuse(Some(id), "station.unknown", e.to_string());
            }
            Err(e) => return Err(e.into()),
        };
        let known = Known {
            terms: &terms,
            grant,
            certificate: &certificate,
            now: self.now(),
        };
        let account = match Account::of(journal, &known, ending) {
            Ok(account) => account,
            Err(fault) => return refuse(Some(id), fault.code(), fault.to_string()),
        };
        let start = self
            .registry
            .batch(&terms.tenant, &terms.batch)?
            .batch
            .devices_start;
        Ok(self.registry.reconcile_station(actor, id, account, start)?)
    }
}

/// The station that a journal says it is of. Nothing of it is verified yet.
fn station_of(journal: &[u8]) -> Option<StationId> {
    let line = journal.split(|b| *b == b'\n').next()?;
    let json = std::str::from_utf8(line).ok()?.splitn(3, ' ').nth(2)?;
    match serde_json::from_str::<Record>(json).ok()?.event {
        Event::Open { station, .. } => Some(station),
        _ => None,
    }
}
