//! What is done when two seem to hold one key: it is audited, and by the tenant's setting the device is quarantined.

use std::sync::{Arc, Weak};

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use countersign_policy::clones::Suspect;
use countersign_policy::exchange::ExchangeSink;
use countersign_policy::first_contact::{Answer, Contact};
use countersign_policy::{ExchangeId, ExchangeRecord, LifecycleMove, SessionRecord, StageRecord};
use countersign_registry::{Actor, Move, Registry};
use serde::{Deserialize, Serialize};

use crate::service::Service;

/// Who acts, in the audit.
const ACTOR: &str = "countersign";

/// What is done about a suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CloneAction {
    /// Audit, log, metric: somebody looks at it.
    #[default]
    Alert,
    /// The device is quarantined too, so neither holder goes on.
    Quarantine,
}

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

    fn clone_suspected(&self, suspect: Suspect) {
        let Some(service) = self.service.upgrade() else {
            return;
        };
        tokio::spawn(act(service, suspect));
    }
}

/// Audits, then acts. What fails is logged: the suspicion stays in the log and the metric all the same.
async fn act(service: Arc<Service>, suspect: Suspect) {
    let (tenant, device) = (suspect.tenant.clone(), suspect.device.clone());
    let reason = format!(
        "two seem to hold the key of {}: {}",
        suspect.fingerprint,
        suspect.suspicion.evidence()
    );
    let actor = || Actor(ACTOR.into());
    if let Err(e) = service.change(move |r| r.suspect_clone(actor(), suspect)).await {
        tracing::error!(tenant.id = %tenant, device.id = %device, error = %e, "a suspected clone cannot be audited");
    }
    if service.config().clones.action_for(&tenant) != CloneAction::Quarantine {
        return;
    }
    let moved = service
        .move_device(
            actor(),
            tenant.clone(),
            device.clone(),
            Move::new(LifecycleMove::Quarantine, reason),
        )
        .await;
    if let Err(e) = moved {
        tracing::error!(tenant.id = %tenant, device.id = %device, error = %e, "a suspected clone cannot be quarantined");
    }
}
