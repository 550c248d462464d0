//! Credentials: registered, issued so that asking twice is safe, used, superseded, lapsed, revoked.
//!
//! ```text
//! issued ──first use, or confirmed──▶ active ──a newer one is in use, then the overlap──▶ superseded
//!    └──never used in time──▶ lapsed          any of them ──▶ revoked
//! ```
//!
//! `lapsed` is final, but for one case: an offline station's journal tells later that the device had been confirmed in
//! time ([`crate::station`]).
//!
//! 1. `registering`: a certificate for a device; `issuing`: one that is minted here, `bounds`: whoever asks for it
//! 2. `moving`: from state to state; `sweeping`: what time ends; `revoking`: what an operator ends
//! 3. `reading`: facts, and what revocation lists and OCSP say

mod bounds;
mod issuing;
mod moving;
mod reading;
mod registering;
mod revoking;
mod sweeping;

pub(crate) use reading::{COLUMNS, credential_facts};

use std::time::Duration;

use countersign_factory::{CERTIFICATES_PER_DEVICE_MAX, ProfileKind, RevocationReason};
use countersign_identity::{AuthorityId, BatchId, CertificateFacts, DeviceId, Fingerprint, TenantId};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{ClaimId, CredentialState, Custody};
use serde::{Deserialize, Serialize};

use crate::claim::ClaimRequester;
use crate::lane::ExpiredRequester;
use crate::store::Registry;

/// A certificate to be registered for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCredential {
    /// What the certificate says.
    pub certificate: CertificateFacts,
    /// What it is for.
    pub kind: CredentialKind,
    /// `issued` or `active`.
    pub state: CredentialState,
    /// How its key is held.
    pub custody: Custody,
    /// The authority that its chain ends in, if that is known.
    pub authority: Option<AuthorityId>,
    /// What is kept of one that was issued here.
    pub issued: Option<IssuedHere>,
}

/// What is kept of a certificate that was issued here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedHere {
    /// The certificate, DER: a repeated request is answered with it.
    pub certificate: Vec<u8>,
    /// The profile it was issued by.
    pub profile: String,
    /// The batch it was issued in.
    pub batch: Option<BatchId>,
}

impl NewCredential {
    /// A certificate that was issued elsewhere, in use already.
    pub fn brought(certificate: CertificateFacts) -> Self {
        Self {
            certificate,
            kind: CredentialKind::Operational,
            state: CredentialState::Active,
            custody: Custody::Unknown,
            authority: None,
            issued: None,
        }
    }
}

/// How long things last in issuance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuanceRules {
    /// For so long a repeated request is answered with the same certificate, whatever its renewal point.
    pub replay_window: Duration,
    /// A certificate that nobody used or confirmed for so long lapses.
    pub lapse_after: Duration,
    /// After a newer certificate was first used, for so long the old one is still admitted.
    pub overlap: Duration,
    /// Certificates of one device in force at once, by whoever is no operator; `None` if a CA of its own counts them.
    pub certificates_per_device_max: Option<u32>,
}

impl Default for IssuanceRules {
    fn default() -> Self {
        Self {
            replay_window: Duration::from_secs(24 * 3600),
            lapse_after: Duration::from_secs(7 * 24 * 3600),
            overlap: Duration::from_secs(7 * 24 * 3600),
            certificates_per_device_max: Some(CERTIFICATES_PER_DEVICE_MAX),
        }
    }
}

/// A certificate is asked for.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// The tenant of the device.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub key: Fingerprint,
    /// The profile.
    pub profile: String,
    /// What its certificates are for.
    pub kind: ProfileKind,
    /// Whose choice it is.
    pub choice: ProfileChoice,
    /// The authority that was named; `None`: whichever of ours admits will do.
    pub authority: Option<AuthorityId>,
    /// Whether the profile demands a new key with every certificate.
    pub demands_new_key: bool,
    /// The requester's own key for this request: with other content it is refused.
    pub idempotency_key: Option<String>,
    /// Who asks.
    pub requester: Requester,
    /// The attestation of the key that it cites, by the SHA-256 of its token.
    pub attestation: Option<Fingerprint>,
}

/// Whose choice a profile is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProfileChoice {
    /// The platform's: it is the first one of the configuration, whether that was named or not.
    First,
    /// The requester's, who named another one.
    Named,
}

/// On whose word a certificate is issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requester {
    /// An operator's, whatever the device's state, short of decommissioned.
    Operator,
    /// The active device's own, by a one-time secret (its SHA-256).
    Secret(Fingerprint),
    /// The active device's own, by a certificate it proved to hold, which must be in force.
    Certificate(Fingerprint),
    /// The active device's own, by an expired certificate it proved to hold: the renewal lane.
    Expired(ExpiredRequester),
    /// Whoever holds a claim, for the ids on its list.
    Claim(ClaimRequester),
    /// The active device's own, by the attestation that the request cites, of a TPM that is registered for it.
    Attested,
    /// The active device's own, by evidence that the CA judges: a secret that only the CA knows.
    JudgedByCa,
}

/// The answer to an [`IssueRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssueOutcome {
    /// The certificate, DER.
    pub certificate: Vec<u8>,
    /// The authority that issued it.
    pub authority: AuthorityId,
    /// Whether it had been issued before: nothing new was minted.
    pub repeated: bool,
    /// Whether the device was added with it.
    pub added: bool,
}

/// What is done if there is no device that a certificate is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingDevice {
    /// The request is refused.
    #[default]
    Refused,
    /// It is added, active, in the transaction that keeps its certificate: without one there is no device either.
    Added,
}

/// A certificate that ended before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedCredential {
    /// Its serial number, hex.
    pub serial: String,
    /// Its state; still `active` or `issued` if it ended with its authority.
    pub state: CredentialState,
    /// Why, if a reason was given.
    pub reason: Option<RevocationReason>,
    /// The revision of the change that ended it.
    pub revision: u64,
}

/// How far somebody was told of an authority's ended certificates: the last one told. The default is before the first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndedCursor {
    /// [`EndedCredential::revision`]. One change may end many.
    pub revision: u64,
    /// [`EndedCredential::serial`].
    pub serial: String,
}

/// What a sweep found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Issued, and never used in time.
    pub lapsed: u64,
    /// Their overlap is over.
    pub superseded: u64,
}

/// Whose credentials are revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Revocation {
    /// One certificate.
    Credential(Fingerprint),
    /// All of a device.
    Device(TenantId, DeviceId),
    /// All that were issued in a batch.
    Batch(TenantId, BatchId),
    /// All that were issued on a claim.
    Claim(TenantId, ClaimId),
}

impl Registry {
    /// Sets how long things last in issuance, from now on.
    pub fn set_issuance_rules(&self, rules: IssuanceRules) {
        *self.rules.write() = rules;
    }

    pub(crate) fn issuance_rules(&self) -> IssuanceRules {
        *self.rules.read()
    }
}
