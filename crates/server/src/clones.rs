//! What is done when two seem to hold one key: it is audited, and where the tenant's policies chose so the device is
//! quarantined.

use std::sync::{Arc, Weak};

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use countersign_policy::clones::{CloneAction, CloneVerdict, Suspect};
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::{Answer, Contact};
use countersign_policy::{
    ExchangeId, ExchangeRecord, FactSource, LifecycleMove, LifecycleState, SessionRecord, StageRecord,
};
use countersign_registry::{Actor, Move, Registry};

use crate::service::Service;

/// Who acts, in the audit.
const ACTOR: &str = "countersign";

/// Hands what the gateway records to the registry, and acts on suspicions.
pub struct Sink {
    registry: Arc<Registry>,
    service: Weak<Service>,
}

impl Sink {
    /// For this service.
    pub fn new(service: &Arc<Service>) -> Self {
        Self {
            registry: service.registry().clone(),
            service: Arc::downgrade(service),
        }
    }
}

impl ExchangeSink for Sink {
    fn record(&self, exchange: ExchangeRecord) {
        ExchangeSink::record(&*self.registry, exchange);
    }

    fn first_data(&self, tenant: &TenantId, device: &DeviceId, exchange: ExchangeId, stage: StageRecord) {
        ExchangeSink::first_data(&*self.registry, tenant, device, exchange, stage);
    }

    fn session(&self, session: SessionRecord) {
        ExchangeSink::session(&*self.registry, session);
    }

    fn credential_used(&self, fingerprint: Fingerprint, authority: &AuthorityId) {
        ExchangeSink::credential_used(&*self.registry, fingerprint, authority);
    }

    fn first_contact(&self, contact: Contact, answer: Answer) {
        ExchangeSink::first_contact(&*self.registry, contact, answer);
    }

    fn clone_suspected(&self, suspect: Suspect, verdict: CloneVerdict) {
        if let Some(service) = self.service.upgrade() {
            tokio::spawn(async move {
                audit(&service, suspect.clone(), verdict.clone()).await;
                if verdict.action == CloneAction::Quarantine {
                    quarantine(&service, &suspect, &verdict).await;
                }
            });
        }
    }

    fn clone_quarantined(&self, suspect: Suspect, verdict: CloneVerdict) {
        if let Some(service) = self.service.upgrade() {
            tokio::spawn(async move { quarantine(&service, &suspect, &verdict).await });
        }
    }
}

fn actor() -> Actor {
    Actor(ACTOR.into())
}

/// What fails is logged: the suspicion stays in the log and the metric all the same.
async fn audit(service: &Service, suspect: Suspect, verdict: CloneVerdict) {
    let (tenant, device) = (suspect.tenant.clone(), suspect.device.clone());
    if let Some(failure) = &verdict.failure {
        tracing::error!(
            tenant.id = %tenant,
            device.id = %device,
            error = failure,
            "policies cannot be asked about a suspected clone: it is not quarantined"
        );
    }
    let audited = service.change(move |r| r.suspect_clone(actor(), suspect, verdict));
    if let Err(e) = audited.await {
        tracing::error!(tenant.id = %tenant, device.id = %device, error = %e, "a suspected clone cannot be audited");
    }
}

/// Quarantines the device. If that fails the next evidence, if both go on, has it tried again.
async fn quarantine(service: &Service, suspect: &Suspect, verdict: &CloneVerdict) {
    let (tenant, device) = (&suspect.tenant, &suspect.device);
    let facts = service.registry().facts().device(tenant, device);
    // Evidence that came while it was being quarantined: it is done.
    if facts.is_none_or(|d| d.state != LifecycleState::Active) {
        return;
    }
    let reason = format!(
        "two seem to hold the key of {}: {}; by policy {}",
        suspect.fingerprint,
        suspect.suspicion.evidence(),
        verdict.policies.join(", ")
    );
    let wanted = Move::new(LifecycleMove::Quarantine, reason);
    let moved = service.move_device(actor(), tenant.clone(), device.clone(), wanted);
    if let Err(e) = moved.await {
        tracing::error!(tenant.id = %tenant, device.id = %device, error = %e, "a suspected clone cannot be quarantined");
    }
}
