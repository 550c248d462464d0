//! The renewal lane: the way for a device whose certificate expired while it was off. It is closed unless
//! `enrol.expired_days_max` opens it.
//!
//! [`RenewalLane`] is made from an [`ExpiredChain`], which nothing else takes, and has one method that does anything:
//! [`RenewalLane::reenrol`]. What it holds is private to this module, so a device in it reaches the next certificate, and
//! beside it what everybody may have on this listener: CA certificates, trust bundle and time.

use std::sync::Arc;

use countersign_factory::{CertificateRequest, ProfileKind};
use countersign_identity::{CertificateFacts, DeviceId, ExpiredChain, Fingerprint, TenantId, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::renewal_lane::{self, LaneKeys};
use countersign_policy::{Denial, DenialCode, FactSource, LaneRefusal};
use countersign_registry::{Actor, ExpiredRequester, IssueOutcome, RegistryError, Requester};

use super::client::Peer;
use crate::failure::Failure;
use crate::service::{Service, Shown, Wanted};

/// A device in the lane.
pub(super) struct RenewalLane {
    service: Arc<Service>,
    tenant: TenantId,
    device: DeviceId,
    certificate: CertificateFacts,
    /// For a CA that judges it anew.
    shown: Shown,
}

/// Why a device does not get into the lane.
pub(super) enum Outside {
    /// Something other than its end is wrong with the certificate.
    Denied(Denial),
    /// The lane itself refuses.
    Refused(LaneRefusal),
}

impl RenewalLane {
    /// Lets a device into the lane whose certificate is expired and sound in all else, and registered. Whether it may have
    /// the next one is decided when it asks.
    pub(super) fn enter(
        service: &Arc<Service>,
        peer: &Peer,
        tenant: &TenantId,
        shown: Shown,
        now: Timestamp,
    ) -> Result<Self, Outside> {
        if service.config().enrol.expired_days_max == 0 {
            return Err(Outside::Refused(LaneRefusal::Closed));
        }
        let Some([leaf, above @ ..]) = peer.chain.as_deref() else {
            return Err(Outside::Denied(DenialCode::NoCertificate.into()));
        };
        let facts = CertificateFacts::parse(leaf)
            .map_err(|e| Outside::Denied(Denial::new(DenialCode::ChainMalformed, e.to_string())))?;
        let table = service.registry().facts();
        let chain = ExpiredChain::verify(&table.anchors(), tenant, facts, leaf, above, now)
            .map_err(|fault| Outside::Denied(Denial::from(&fault)))?;
        let device = chain
            .anchor()
            .identity_rule
            .read(chain.leaf())
            .map_err(|fault| Outside::Denied(Denial::from(&fault)))?;
        // Nothing is learned here: an expired certificate is no first contact.
        table
            .credential(&chain.leaf().fingerprint)
            .filter(|c| c.tenant == *tenant && c.device == device)
            .ok_or(Outside::Refused(LaneRefusal::Unknown))?;
        Ok(Self {
            service: service.clone(),
            tenant: tenant.clone(),
            device,
            certificate: chain.leaf().clone(),
            shown,
        })
    }

    /// The expired certificate.
    pub(super) fn certificate(&self) -> &CertificateFacts {
        &self.certificate
    }

    /// The device.
    pub(super) fn device(&self) -> &DeviceId {
        &self.device
    }

    /// Asks for the next certificate, once.
    pub(super) async fn reenrol(
        self,
        actor: Actor,
        profile: Option<String>,
        request: CertificateRequest,
        attestation: Option<Fingerprint>,
    ) -> Result<IssueOutcome, Failure> {
        let rules = self.service.profile(profile.as_deref())?;
        let keys = if rules.lane_same_key {
            LaneKeys::Any
        } else {
            LaneKeys::New
        };
        let days_max = self.service.config().enrol.expired_days_max;
        let lane = renewal_lane::RenewalLane::open(days_max, keys)
            .ok_or_else(|| Failure::from(RegistryError::from(LaneRefusal::Closed)))?;
        let requester = ExpiredRequester {
            certificate: self.certificate.fingerprint,
            wanted: match rules.kind {
                ProfileKind::Factory => CredentialKind::Factory,
                ProfileKind::Operational => CredentialKind::Operational,
            },
            lane,
        };
        let wanted = Wanted {
            profile,
            requester: Requester::Expired(requester),
            shown: self.shown,
            attestation,
            ..Wanted::new(self.tenant, self.device, request)
        };
        self.service.issue(actor, wanted).await
    }
}

#[cfg(test)]
mod tests;
