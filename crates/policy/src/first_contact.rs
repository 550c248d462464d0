//! First contact: a device whose certificate is sound shows up, and the registry does not know that certificate yet.
//!
//! What may be learned then is the authority's [`Admission`]. The decision is a pure function; the registry takes it
//! inside the transaction that keeps what was learned, so that two first contacts at once cannot both succeed.

use std::sync::Arc;

pub use countersign_identity::IdPattern;
use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, TenantId};
use serde::{Deserialize, Serialize};

use crate::denial::{Denial, DenialCode};
use crate::lifecycle::LifecycleState;

/// What an authority's certificates may bring about when the registry does not know them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Admission {
    /// Nothing: only registered certificates are admitted. The default.
    #[default]
    RegisteredOnly,
    /// A registered device that is bound to this authority has its certificate learned, unless it has one already.
    KnownDevice,
    /// An id that never existed becomes a device as the template says; a device that is known is not touched.
    JustInTime(Arc<Template>),
}

impl Admission {
    /// The mode's name in store, API and output.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::RegisteredOnly => "registered-only",
            Self::KnownDevice => "known-device",
            Self::JustInTime(_) => "just-in-time",
        }
    }
}

/// What just-in-time devices start as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Their model.
    #[serde(default)]
    pub model: Option<String>,
    /// Their groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// `pending` (an operator activates each) or `active`.
    #[serde(default = "pending")]
    pub state: LifecycleState,
    /// Which ids may come.
    pub id_pattern: IdPattern,
    /// How many devices may come in all. There is no "unlimited": who holds the authority's key could make any number.
    pub quota: u64,
}

fn pending() -> LifecycleState {
    LifecycleState::Pending
}

/// A device that proved to hold the key of a sound certificate which nobody has registered.
#[derive(Clone, Debug)]
pub struct Contact {
    /// The tenant of the authority.
    pub tenant: TenantId,
    /// The id that the certificate names.
    pub device: DeviceId,
    /// The authority that the chain ended in.
    pub authority: AuthorityId,
    /// The certificate.
    pub certificate: CertificateFacts,
}

/// What the registry knows at that moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The device, if its id ever existed.
    pub device: Option<KnownDevice>,
    /// How many devices came by this authority's template already.
    pub came_by_authority: u64,
}

/// A device that exists, as far as first contact looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownDevice {
    /// Where it stands.
    pub state: LifecycleState,
    /// The authority it is bound to: only that one's certificates are learned for it.
    pub authority: Option<AuthorityId>,
    /// Whether it has a certificate that may be admitted.
    pub has_credential: bool,
}

/// What is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The certificate, for the device that exists.
    Credential,
    /// The device, by the template, and its certificate.
    Device(Arc<Template>),
}

/// Decides what a first contact brings about.
///
/// # Errors
/// The [`Denial`].
pub fn decide(admission: &Admission, contact: &Contact, known: &Known) -> Result<Learned, Denial> {
    let (id, authority) = (&contact.device, &contact.authority);
    let deny = |code, detail: String| Err(Denial::new(code, detail));
    match (&known.device, admission) {
        (Some(device), _) if device.state == LifecycleState::Decommissioned => deny(
            DenialCode::DeviceDecommissioned,
            format!("device {id} is decommissioned, and came with a new certificate"),
        ),
        (Some(_), Admission::RegisteredOnly | Admission::JustInTime(_)) => deny(
            DenialCode::UnknownCredential,
            format!(
                "device {id} is known, the certificate with serial {} is not; authority {authority} is {}",
                contact.certificate.serial,
                admission.name()
            ),
        ),
        (None, Admission::RegisteredOnly | Admission::KnownDevice) => deny(
            DenialCode::UnknownDevice,
            format!("tenant {} has no device {id}", contact.tenant),
        ),
        (Some(device), Admission::KnownDevice) if device.authority.as_ref() != Some(authority) => deny(
            DenialCode::FirstContactUnbound,
            match &device.authority {
                Some(bound) => format!("device {id} is bound to authority {bound}, not {authority}"),
                None => format!("device {id} is bound to no authority"),
            },
        ),
        (Some(device), Admission::KnownDevice) if device.has_credential => deny(
            DenialCode::FirstContactOtherKey,
            format!(
                "device {id} has a certificate already, and came with another of serial {}",
                contact.certificate.serial
            ),
        ),
        (Some(_), Admission::KnownDevice) => Ok(Learned::Credential),
        (None, Admission::JustInTime(template)) if !template.id_pattern.fits(id) => deny(
            DenialCode::FirstContactPattern,
            format!(
                "{id} does not fit {} of authority {authority}",
                template.id_pattern
            ),
        ),
        (None, Admission::JustInTime(template)) if known.came_by_authority >= template.quota => deny(
            DenialCode::FirstContactQuota,
            format!(
                "{} devices came by authority {authority}, its quota is {}",
                known.came_by_authority, template.quota
            ),
        ),
        (None, Admission::JustInTime(template)) => Ok(Learned::Device(template.clone())),
    }
}

/// Told how a first contact ended: `Ok` once what was learned is on disk and in the facts.
pub type Answer = Box<dyn FnOnce(Result<(), Denial>) + Send>;
