//! First contact: a device whose certificate is sound shows up, and the registry does not know that certificate yet.
//!
//! What may be learned then is the authority's [`Admission`]. The decision is a pure function; the registry takes it
//! inside the transaction that keeps what was learned, so that two first contacts at once cannot both succeed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

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
    /// The same, and an id that never existed becomes a device as the template says.
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

/// Which device ids fit: `*` stands for any number of characters, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdPattern(String);

impl IdPattern {
    /// Whether an id fits, as a whole. Linear in the product of both lengths, which are at most 64.
    pub fn fits(&self, id: &DeviceId) -> bool {
        // reached[i]: the pattern read so far can end at i.
        let id = id.as_str().as_bytes();
        let mut reached = vec![false; id.len() + 1];
        reached[0] = true;
        for p in self.0.bytes() {
            if p == b'*' {
                let first = reached.iter().position(|r| *r).unwrap_or(reached.len());
                reached[first..].fill(true);
            } else {
                for i in (0..id.len()).rev() {
                    reached[i + 1] = reached[i] && (p == b'?' || p == id[i]);
                }
                reached[0] = false;
            }
        }
        reached[id.len()]
    }
}

impl FromStr for IdPattern {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._:-*?".contains(&b);
        if s.is_empty() || s.len() > 64 || !s.bytes().all(fits) {
            return Err(format!(
                "{s:?} is no id pattern: 1 to 64 of A-Z a-z 0-9 . _ : - with * and ? as wildcards"
            ));
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for IdPattern {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<IdPattern> for String {
    fn from(p: IdPattern) -> Self {
        p.0
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_a_whole() {
        for (pattern, id, fits) in [
            ("SN-*", "SN-1", true),
            ("SN-*", "SN-", true),
            ("SN-*", "xSN-1", false),
            ("SN-????", "SN-1234", true),
            ("SN-????", "SN-12345", false),
            ("*-eu-*", "a-eu-b-eu-c", true),
            ("*a*b", "aab", true),
            ("*a*b", "aba", false),
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "x", true),
            ("**", "x", true),
        ] {
            let p: IdPattern = pattern.parse().unwrap();
            assert_eq!(p.fits(&DeviceId::new(id).unwrap()), fits, "{pattern} {id}");
        }
        for bad in ["", "a/b", "a#", "ü"] {
            assert!(bad.parse::<IdPattern>().is_err(), "{bad}");
        }
    }
}
