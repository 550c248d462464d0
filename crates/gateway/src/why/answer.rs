//! What an identity is answered: the layers, and what became of each.

use std::sync::Arc;

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use countersign_policy::{Denial, DenialCode, Stage};
use serde::Serialize;

/// A layer of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A path to a registered authority that is in force.
    Chain,
    /// The dates of the certificate and of all above it.
    Dates,
    /// Revoked here, or on a list of its issuer.
    Revocation,
    /// Device and credential are known, and belong together.
    Identify,
    /// Where the device stands.
    Lifecycle,
    /// Where the credential stands.
    Credential,
    /// The tenant's policies on `connect`.
    Policy,
    /// The client id.
    ClientId,
    /// What a session token would be good for. It refuses nobody: a token narrows what its device may do.
    Token,
    /// The tenant's policies on `publish` or `subscribe`, if a topic was asked about.
    Topic,
}

impl Layer {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::Chain,
        Self::Dates,
        Self::Revocation,
        Self::Identify,
        Self::Lifecycle,
        Self::Credential,
        Self::Policy,
        Self::ClientId,
        Self::Token,
        Self::Topic,
    ];

    /// The stage of an exchange that asks it.
    pub const fn stage(self) -> Stage {
        match self {
            Self::Chain | Self::Dates | Self::Revocation => Stage::ClientCertificate,
            Self::Identify => Stage::Identify,
            Self::Lifecycle | Self::Credential | Self::Policy => Stage::Policy,
            Self::ClientId => Stage::Greet,
            Self::Token => Stage::Grant,
            Self::Topic => Stage::FirstData,
        }
    }

    /// The layer that refuses with a code.
    pub(super) const fn of(code: DenialCode, at: Stage) -> Self {
        use DenialCode as C;
        match (at, code) {
            (
                Stage::ClientCertificate,
                C::CertificateExpired | C::CertificateNotYetValid | C::AuthorityExpired,
            ) => Self::Dates,
            (Stage::ClientCertificate, C::ChainRevoked | C::RevocationUnknown | C::CredentialRevoked) => {
                Self::Revocation
            }
            (Stage::ClientCertificate, _)
            | (_, C::UnknownCa | C::AuthorityRetired | C::AuthorityRevoked | C::AuthorityUnproven) => {
                Self::Chain
            }
            (_, C::CredentialRevoked) => Self::Revocation,
            (Stage::Identify, _)
            | (
                _,
                C::CredentialOfOther
                | C::UnknownDevice
                | C::UnknownCredential
                | C::NotReconciled
                | C::StationRevoked,
            ) => Self::Identify,
            (_, C::DevicePending | C::DeviceSuspended | C::DeviceQuarantined | C::DeviceDecommissioned) => {
                Self::Lifecycle
            }
            (_, C::CredentialSuperseded | C::CredentialLapsed | C::CertificateExpired | C::EnrolOnly) => {
                Self::Credential
            }
            (Stage::Greet, _) => Self::ClientId,
            (Stage::FirstData, _) => Self::Topic,
            _ => Self::Policy,
        }
    }
}

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing speaks against it.
    Passed,
    /// It refuses.
    Failed,
    /// An earlier one refused, or it was not asked about.
    NotReached,
    /// It cannot be told from what is kept here.
    NotKnown,
}

/// A layer with its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerVerdict {
    /// Which.
    pub layer: Layer,
    /// The stage of an exchange that asks it.
    pub stage: Stage,
    /// What became of it.
    pub verdict: Verdict,
    /// What it was decided on, for people.
    pub fact: String,
    /// The policies that determined it.
    pub policies: Vec<String>,
    /// Why it refuses.
    pub denial: Option<Denial>,
}

/// How it is known which authority a certificate leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthorityFrom {
    /// Its path was looked at.
    Path,
    /// It was registered with the certificate, which is not kept.
    Registered,
    /// The device's last exchange with this very certificate showed it.
    Exchange,
    /// Assumed: the one that the device is bound to.
    Bound,
    /// Assumed: no other of the tenant vouches for anybody.
    Only,
}

impl AuthorityFrom {
    /// What is said of a certificate that is not kept here.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Path => "its path shows it",
            Self::Registered => "the registry has it so",
            Self::Exchange => "its last exchange showed it",
            Self::Bound => "assumed, the device is bound to it",
            Self::Only => "assumed, no other of its tenant vouches for anybody",
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Why {
    /// Whether it would be let in, and could do what was asked about.
    pub admitted: bool,
    /// The tenant, once it is known.
    pub tenant: Option<TenantId>,
    /// The device, once it is known.
    pub device: Option<DeviceId>,
    /// The authority, once it is known.
    pub authority: Option<AuthorityId>,
    /// How it is known.
    pub authority_from: Option<AuthorityFrom>,
    /// The certificate's SHA-256.
    pub fingerprint: Option<Fingerprint>,
    /// Its serial number, hex, if it was shown.
    pub serial: Option<String>,
    /// Every layer, in order.
    pub layers: Vec<LayerVerdict>,
}

impl Why {
    /// Why it would be refused.
    pub fn denial(&self) -> Option<&Denial> {
        self.layers.iter().find_map(|l| l.denial.as_ref())
    }

    pub(super) fn new() -> Self {
        Self {
            admitted: false,
            tenant: None,
            device: None,
            authority: None,
            authority_from: None,
            fingerprint: None,
            serial: None,
            layers: Layer::ALL
                .map(|layer| LayerVerdict {
                    layer,
                    stage: layer.stage(),
                    verdict: Verdict::NotReached,
                    fact: String::new(),
                    policies: Vec::new(),
                    denial: None,
                })
                .into(),
        }
    }

    pub(super) fn set(&mut self, layer: Layer, verdict: Verdict, fact: impl Into<String>) {
        if let Some(l) = self.layers.iter_mut().find(|l| l.layer == layer) {
            (l.verdict, l.fact) = (verdict, fact.into());
        }
    }

    pub(super) fn policies(&mut self, layer: Layer, policies: &[Arc<str>]) {
        if let Some(l) = self.layers.iter_mut().find(|l| l.layer == layer) {
            l.policies = policies.iter().map(ToString::to_string).collect();
        }
    }

    /// A layer of a stage refuses: what comes before it in the same stage passed, or it would not have come to it.
    pub(super) fn fail(&mut self, denial: Denial, at: Stage) {
        let failed = Layer::of(denial.code, at);
        for l in &mut self.layers {
            if l.layer < failed && l.verdict == Verdict::NotReached {
                l.verdict = Verdict::Passed;
            } else if l.layer == failed {
                l.verdict = Verdict::Failed;
                l.fact.clone_from(&denial.detail);
                l.policies.clone_from(&denial.policies);
                l.denial = Some(denial.clone());
            }
        }
    }
}
