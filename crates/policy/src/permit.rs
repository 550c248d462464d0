//! Permits. Fields are private and constructors stay in [`crate::decide`]: whoever holds one was decided on.

use std::net::IpAddr;
use std::sync::Arc;

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, Generation, TenantId};

use crate::facts::{CredentialKind, Custody, Generations, TlsFacts};

/// This device may be connected, under these generations.
#[derive(Debug)]
pub struct AdmissionPermit {
    pub(crate) tenant: TenantId,
    pub(crate) device: DeviceId,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) generations: Generations,
    pub(crate) policies: Arc<[Arc<str>]>,
    pub(crate) kind: CredentialKind,
    pub(crate) custody: Custody,
    pub(crate) authority: AuthorityId,
    pub(crate) source: IpAddr,
    pub(crate) tls: TlsFacts,
}

impl AdmissionPermit {
    /// The tenant it is for.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The device it is for.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// The credential that was proven.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The generations it was decided under.
    pub fn generations(&self) -> Generations {
        self.generations
    }

    /// The policies that determined it.
    pub fn policies(&self) -> &[Arc<str>] {
        &self.policies
    }

    /// The generation of the policies that decided.
    pub(crate) fn policy_generation(&self) -> Generation {
        self.generations.policy
    }
}

/// The device of an admission may publish to this topic.
#[derive(Debug)]
pub struct PublishPermit<'s> {
    pub(crate) admission: &'s AdmissionPermit,
    pub(crate) topic: &'s str,
    pub(crate) policies: Arc<[Arc<str>]>,
}

impl<'s> PublishPermit<'s> {
    /// The tenant whose subscribers may get it.
    pub fn tenant(&self) -> &'s TenantId {
        &self.admission.tenant
    }

    /// The only topic it is good for.
    pub fn topic(&self) -> &'s str {
        self.topic
    }

    /// The policies that determined it.
    pub fn policies(&self) -> &[Arc<str>] {
        &self.policies
    }
}

/// The device of an admission may subscribe to this filter.
#[derive(Debug)]
pub struct SubscribePermit<'s> {
    pub(crate) admission: &'s AdmissionPermit,
    pub(crate) filter: &'s str,
    pub(crate) policies: Arc<[Arc<str>]>,
}

impl<'s> SubscribePermit<'s> {
    /// The tenant whose messages it may get.
    pub fn tenant(&self) -> &'s TenantId {
        &self.admission.tenant
    }

    /// The only filter it is good for.
    pub fn filter(&self) -> &'s str {
        self.filter
    }

    /// The policies that determined it.
    pub fn policies(&self) -> &[Arc<str>] {
        &self.policies
    }
}
