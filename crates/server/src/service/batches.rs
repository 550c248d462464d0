//! Batches of the factory: planned, issued in bulk, confirmed.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_factory::grant::ProfileMismatch;
use countersign_factory::request::pem;
use countersign_factory::{Batch, CertificateRequest, EnrolmentGrant, ProfileKind, RequestFault};
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialState, Custody};
use countersign_registry::{
    Actor, BatchView, BulkIssue, BulkItem, IssueOutcome, IssuedHere, NewCredential, RegistryError,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Service;
use crate::failure::Failure;

/// Devices per request, and so per transaction: enough to share one sync and the pages of the indexes, few enough that a
/// suspension that waits behind them is not late (they are minted before the transaction).
pub const REQUEST_MAX: usize = 1000;

/// One device of a bulk request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BulkWanted {
    /// Its id.
    pub id: DeviceId,
    /// Its PKCS#10, PEM.
    pub request: String,
}

/// Why one device was refused, or one certificate not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemRefusal {
    /// A stable code, for machines.
    pub code: String,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ItemRefusal {
    fn new(code: &str, text: &str) -> Self {
        let (reason, hint) = match text.split_once("; hint: ") {
            Some((reason, hint)) => (reason, Some(hint.to_owned())),
            None => (text, None),
        };
        Self {
            code: code.into(),
            reason: reason.into(),
            hint,
        }
    }
}

impl From<&RegistryError> for ItemRefusal {
    fn from(e: &RegistryError) -> Self {
        let code = match e {
            RegistryError::Batch(refusal) => refusal.code(),
            RegistryError::SharedKey(_) => "key.of-another-device",
            RegistryError::RevokedBefore { .. } => "certificate.revoked-before",
            RegistryError::ClockBehind { .. } => "clock.behind",
            RegistryError::ClockUnsynchronised(_) => "clock.unsynchronised",
            _ => "refused",
        };
        Self::new(code, &e.to_string())
    }
}

impl From<&RequestFault> for ItemRefusal {
    fn from(e: &RequestFault) -> Self {
        match e {
            RequestFault::Malformed(_) => Self::new(
                "request.malformed",
                &format!("{e}; hint: openssl req -in FILE -noout -text shows what it is"),
            ),
            RequestFault::Signature => Self::new(
                "request.not-proven",
                &format!("{e}; hint: make the request with the key that is on the device"),
            ),
            RequestFault::Key => Self::new("key.weak", &e.to_string().replace("; use", "; hint: use")),
        }
    }
}

impl From<&ProfileMismatch> for ItemRefusal {
    fn from(e: &ProfileMismatch) -> Self {
        let code = match e {
            ProfileMismatch::Weak => "key.weak",
            ProfileMismatch::Kind { .. } => "key.kind",
            ProfileMismatch::Name(_) => "name.invalid",
        };
        Self::new(code, &e.to_string())
    }
}

/// A certificate of a bulk answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkCertificate {
    /// The certificate, PEM; its issuer is in the answer's `issuers`.
    pub certificate: String,
    /// Its serial number, hex.
    pub serial: String,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// The authority that issued it.
    pub authority: AuthorityId,
    /// Whether it had been issued before for this key: nothing new was minted.
    pub repeated: bool,
}

/// The answer for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BulkOutcome {
    /// Its certificate.
    Issued(BulkCertificate),
    /// Why it has none. Nothing was minted.
    Refused(ItemRefusal),
}

/// The answer for one device, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkAnswerItem {
    /// The device.
    pub id: DeviceId,
    /// What it got.
    #[serde(flatten)]
    pub outcome: BulkOutcome,
}

/// The answer to a bulk request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BulkAnswer {
    /// In the order of the request.
    pub devices: Vec<BulkAnswerItem>,
    /// The issuing CAs' certificates, PEM.
    pub issuers: BTreeMap<AuthorityId, String>,
    /// What devices pin, PEM.
    pub platform_root: String,
    /// The tenant.
    pub tenant: TenantId,
    /// Where devices connect.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The port where they renew; `None` if they cannot over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrol_port: Option<u16>,
}

/// What was confirmed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmAnswer {
    /// Certificates that are active now and were not.
    pub confirmed: u64,
    /// Those that were active already.
    pub unchanged: u64,
    /// What was not confirmed, by fingerprint or device id.
    pub refused: Vec<(String, ItemRefusal)>,
}

/// What of a new certificate is told beside its bytes.
type Told = (String, Fingerprint, Timestamp);

impl Service {
    /// Plans a batch.
    ///
    /// # Errors
    /// [`Failure`] if profile, tenant or authority do not exist, or there is another plan of that id.
    pub async fn add_batch(&self, actor: Actor, batch: Batch) -> Result<BatchView, Failure> {
        self.profile(Some(&batch.profile))?;
        if let Some(authority) = &batch.authority {
            self.issuing_authority(&batch.tenant, Some(authority))?;
        }
        let (tenant, id) = (batch.tenant.clone(), batch.id.clone());
        self.change(move |r| r.add_batch(actor, batch)).await?;
        Ok(self.registry.batch(&tenant, &id)?)
    }

    /// Issues certificates for devices of a batch. What was issued for a key before is answered again; a device that is
    /// refused does not hold up the others.
    ///
    /// # Errors
    /// [`Failure`] if nothing was issued at all.
    pub async fn issue_in_batch(
        self: &Arc<Self>,
        actor: Actor,
        tenant: TenantId,
        batch: BatchId,
        replace: bool,
        wanted: Vec<BulkWanted>,
    ) -> Result<BulkAnswer, Failure> {
        if wanted.len() > REQUEST_MAX {
            return Err(Failure::invalid(format!(
                "{} devices in one request; hint: ask for at most {REQUEST_MAX} at once",
                wanted.len()
            )));
        }
        let service = self.clone();
        // It verifies signatures and waits for the disk.
        tokio::task::spawn_blocking(move || service.issue_wanted(&actor, &tenant, &batch, replace, &wanted))
            .await
            .map_err(|e| Failure::internal(format!("issuing failed: {e}")))?
    }

    fn issue_wanted(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        batch: &BatchId,
        replace: bool,
        wanted: &[BulkWanted],
    ) -> Result<BulkAnswer, Failure> {
        let plan = self.registry.batch(tenant, batch)?.batch;
        let devices = self.issue_part(actor, &plan, replace, wanted)?;
        let mut issuers = BTreeMap::new();
        for item in &devices {
            if let BulkOutcome::Issued(c) = &item.outcome
                && !issuers.contains_key(&c.authority)
            {
                let above = self.registry.authority_certificate(&c.authority)?;
                issuers.insert(c.authority.clone(), pem("CERTIFICATE", &above));
            }
        }
        let (host, port) = self.address();
        Ok(BulkAnswer {
            devices,
            issuers,
            platform_root: self.platform_root(),
            tenant: tenant.clone(),
            host,
            port,
            enrol_port: self.enrol_port(),
        })
    }

    /// One transaction.
    fn issue_part(
        &self,
        actor: &Actor,
        plan: &Batch,
        replace: bool,
        wanted: &[BulkWanted],
    ) -> Result<Vec<BulkAnswerItem>, Failure> {
        let profile = self.profile(Some(&plan.profile))?;
        let authority_id = self.issuing_authority(&plan.tenant, plan.authority.as_ref())?;
        if self.is_held_by_ca(&authority_id) {
            return Err(Failure::refused(format!(
                "authority {authority_id} is held by the CA process, which issues one device at a time, by its own batches; hint: countersign ca batch add, on the CA, then countersign device provision for each device"
            )));
        }
        let authority = self.authority_with_key(&authority_id)?;
        let mut outcomes: Vec<Option<BulkOutcome>> = Vec::with_capacity(wanted.len());
        let (mut items, mut grants) = (Vec::new(), Vec::new());
        for one in wanted {
            let granted = CertificateRequest::parse(one.request.as_bytes())
                .map_err(|e| ItemRefusal::from(&e))
                .and_then(|request| {
                    let key = request.key().clone();
                    let fingerprint = key
                        .fingerprint()
                        .map_err(|e| ItemRefusal::new("request.malformed", &e.to_string()))?;
                    EnrolmentGrant::new(plan.tenant.clone(), one.id.clone(), key, profile.clone())
                        .map(|grant| (fingerprint, grant))
                        .map_err(|e| ItemRefusal::from(&e))
                });
            match granted {
                Ok((key, grant)) => {
                    items.push(BulkItem {
                        device: one.id.clone(),
                        key,
                    });
                    grants.push(grant);
                    outcomes.push(None);
                }
                Err(refusal) => outcomes.push(Some(BulkOutcome::Refused(refusal))),
            }
        }
        let request = BulkIssue {
            tenant: plan.tenant.clone(),
            batch: plan.id.clone(),
            demands_new_key: profile.new_key,
            replace,
            items,
        };
        let kind = match profile.kind {
            ProfileKind::Factory => CredentialKind::Factory,
            ProfileKind::Operational => CredentialKind::Operational,
        };
        let (name, batch) = (profile.name, plan.id.clone());
        let told: Arc<Mutex<BTreeMap<usize, Told>>> = Arc::default();
        let tell = told.clone();
        let answers = self
            .registry
            .issue_in_batch(actor.clone(), request, move |n, now| {
                let (facts, der) = authority
                    .issue_device(&grants[n], now)
                    .map_err(|e| e.to_string())?
                    .into_parts();
                tell.lock()
                    .insert(n, (facts.serial.clone(), facts.fingerprint, facts.not_after));
                Ok(NewCredential {
                    certificate: facts,
                    kind,
                    state: CredentialState::Issued,
                    custody: Custody::Unknown,
                    authority: Some(authority_id.clone()),
                    issued: Some(IssuedHere {
                        certificate: der,
                        profile: name.clone(),
                        batch: Some(batch.clone()),
                    }),
                })
            })?
            .value;
        let mut told = std::mem::take(&mut *told.lock());
        let mut answers = answers.into_iter().enumerate();
        wanted
            .iter()
            .zip(outcomes)
            .map(|(one, refused)| {
                let outcome = match refused {
                    Some(refused) => refused,
                    None => match answers.next() {
                        Some((n, Ok(issued))) => BulkOutcome::Issued(certificate(issued, told.remove(&n))?),
                        Some((_, Err(e))) => BulkOutcome::Refused(ItemRefusal::from(&e)),
                        None => return Err(Failure::internal("a device was not answered")),
                    },
                };
                Ok(BulkAnswerItem {
                    id: one.id.clone(),
                    outcome,
                })
            })
            .collect()
    }

    /// The line's confirm step: written to the device, and challenged there.
    ///
    /// # Errors
    /// [`Failure`]; what was refused one by one is in the answer.
    pub async fn confirm_in_batch(
        &self,
        actor: Actor,
        tenant: TenantId,
        batch: BatchId,
        fingerprints: Vec<Fingerprint>,
        devices: Vec<DeviceId>,
    ) -> Result<ConfirmAnswer, Failure> {
        let (done, _) = self
            .change(move |r| r.confirm_in_batch(actor, tenant, batch, fingerprints, devices))
            .await?;
        Ok(ConfirmAnswer {
            confirmed: done.confirmed,
            unchanged: done.unchanged,
            refused: done
                .refused
                .iter()
                .map(|(name, e)| (name.clone(), ItemRefusal::from(e)))
                .collect(),
        })
    }
}

fn certificate(issued: IssueOutcome, told: Option<Told>) -> Result<BulkCertificate, Failure> {
    // What was told of one that was thrown away, because another request came first, is of no certificate.
    let (serial, fingerprint, not_after) = match told.filter(|_| !issued.repeated) {
        Some(told) => told,
        None => {
            let facts =
                CertificateFacts::parse(&issued.certificate).map_err(|e| Failure::internal(e.to_string()))?;
            (facts.serial, facts.fingerprint, facts.not_after)
        }
    };
    Ok(BulkCertificate {
        certificate: pem("CERTIFICATE", &issued.certificate),
        serial,
        fingerprint,
        not_after,
        authority: issued.authority,
        repeated: issued.repeated,
    })
}
