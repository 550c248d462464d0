//! The registered authorities, as trust anchors that can be found without searching.

use std::collections::HashMap;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use crate::certificate::{CertificateError, CertificateFacts};
use crate::id::{AuthorityId, Fingerprint, Generation, TenantId};
use crate::path::{INTERMEDIATES_MAX, NameRules, STEPS_MAX};
use crate::raw::{RawCertificate, RawKey};
use crate::revocation::KeptLists;
use crate::rule::IdentityRule;

/// Whether certificates of an authority may be admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnchorState {
    /// Not admitted: whoever registered it has not proven yet to hold its key.
    Unproven,
    /// Admitted.
    Active,
    /// Still admitted; nothing new is issued.
    Retiring,
    /// No longer admitted.
    Retired,
    /// No longer admitted, because its key is no longer trusted.
    Revoked,
}

impl AnchorState {
    /// All states.
    pub const ALL: [Self; 5] = [
        Self::Unproven,
        Self::Active,
        Self::Retiring,
        Self::Retired,
        Self::Revoked,
    ];

    /// Whether a chain to this anchor may be admitted.
    pub fn admits(self) -> bool {
        matches!(self, Self::Active | Self::Retiring)
    }

    /// The state's name in store, API and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

/// One registered authority of one tenant's `devices` hierarchy, root or intermediate.
#[derive(Debug)]
pub struct Anchor {
    /// The tenant whose devices it may vouch for.
    pub tenant: TenantId,
    /// Its id in the registry.
    pub authority: AuthorityId,
    /// Its state in the registry.
    pub state: AnchorState,
    /// Its generation in the registry.
    pub generation: Generation,
    /// Where its certificates carry the device id.
    pub identity_rule: IdentityRule,
    /// What its certificate says. RFC 5280 section 6 looks at none of it in an anchor; the chain check does.
    pub facts: CertificateFacts,
    /// SubjectPublicKeyInfo.
    key: Box<[u8]>,
    names: Option<Box<NameRules>>,
    /// `None`: no revocation list is kept for it, and none is asked.
    lists: Option<Arc<KeptLists>>,
}

impl Anchor {
    /// Takes a CA certificate as an anchor.
    ///
    /// # Errors
    /// If the DER cannot be read as a certificate with a usable key.
    pub fn new(
        tenant: TenantId,
        authority: AuthorityId,
        state: AnchorState,
        generation: Generation,
        identity_rule: IdentityRule,
        der: &[u8],
    ) -> Result<Self, CertificateError> {
        let facts = CertificateFacts::parse(der)?;
        let raw = RawCertificate::parse(der).map_err(CertificateError::of_anchor)?;
        if !raw.key.is_usable() {
            return Err(CertificateError::of_anchor("no accepted algorithm uses its key"));
        }
        let key = raw.key.der.into();
        let names = match facts.path.constrains_names {
            true => NameRules::parse(der)
                .map_err(CertificateError::of_anchor)?
                .map(Box::new),
            false => None,
        };
        Ok(Self {
            tenant,
            authority,
            state,
            generation,
            identity_rule,
            facts,
            key,
            names,
            lists: None,
        })
    }

    /// With the revocation lists that are kept for it.
    #[must_use]
    pub fn with_lists(mut self, lists: Option<Arc<KeptLists>>) -> Self {
        self.lists = lists;
        self
    }

    pub(crate) fn lists(&self) -> Option<&KeptLists> {
        self.lists.as_deref()
    }

    pub(crate) fn key(&self) -> Result<RawKey<'_>, der::Error> {
        RawKey::parse(&self.key)
    }

    pub(crate) fn names(&self) -> Option<&NameRules> {
        self.names.as_deref()
    }
}

/// A CA certificate between an anchor and its devices, kept here for devices that send only their own.
#[derive(Debug)]
pub struct StoredIntermediate {
    /// The tenant that stored it.
    pub tenant: TenantId,
    /// What it says.
    pub facts: CertificateFacts,
    /// The certificate.
    pub der: CertificateDer<'static>,
}

impl StoredIntermediate {
    /// Takes a certificate.
    ///
    /// # Errors
    /// If the DER cannot be read as a certificate that a path may lead through.
    pub fn new(tenant: TenantId, der: &[u8]) -> Result<Self, CertificateError> {
        // One that no path can lead through would refuse every chain that it is added to.
        RawCertificate::parse(der).map_err(CertificateError::of_anchor)?;
        Ok(Self {
            tenant,
            facts: CertificateFacts::parse(der)?,
            der: CertificateDer::from(der.to_vec()),
        })
    }
}

/// A subject's DER and its key identifier.
type NameAndKey = (Box<[u8]>, Box<[u8]>);

/// Anchors by (subject name, key identifier), and by name alone for certificates without an authorityKeyIdentifier.
///
/// A linear search costs milliseconds at 100,000 anchors, and many anchors of one name would let a stranger spend our
/// signature checks: so a chain only ever meets the anchors that its own bytes point at, and never more than
/// [`AnchorIndex::CANDIDATES_MAX`] of them.
#[derive(Debug, Default)]
pub struct AnchorIndex {
    by_name_and_key: HashMap<NameAndKey, Vec<Arc<Anchor>>>,
    by_name: HashMap<Box<[u8]>, Vec<Arc<Anchor>>>,
    intermediates: HashMap<Box<[u8]>, Vec<Arc<StoredIntermediate>>>,
    count: usize,
}

impl AnchorIndex {
    /// The most anchors that one chain is tried against.
    pub const CANDIDATES_MAX: usize = 8;

    /// Builds the index.
    pub fn new(anchors: impl IntoIterator<Item = Arc<Anchor>>) -> Self {
        let mut index = Self::default();
        for anchor in anchors {
            index.insert(anchor);
        }
        index
    }

    /// Adds one anchor.
    pub fn insert(&mut self, anchor: Arc<Anchor>) {
        let name: Box<[u8]> = anchor.facts.subject_der.as_slice().into();
        if let Some(key) = &anchor.facts.subject_key_id {
            self.by_name_and_key
                .entry((name.clone(), key.as_slice().into()))
                .or_default()
                .push(anchor.clone());
        }
        self.by_name.entry(name).or_default().push(anchor);
        self.count += 1;
    }

    /// Adds one intermediate.
    pub fn insert_intermediate(&mut self, intermediate: Arc<StoredIntermediate>) {
        let name: Box<[u8]> = intermediate.facts.subject_der.as_slice().into();
        self.intermediates.entry(name).or_default().push(intermediate);
    }

    /// The stored intermediates of a tenant (of any, if none is named) that may have issued `certificate`.
    pub(crate) fn stored_issuers_of<'a>(
        &'a self,
        tenant: Option<&'a TenantId>,
        certificate: &'a CertificateFacts,
    ) -> impl Iterator<Item = &'a Arc<StoredIntermediate>> {
        self.intermediates
            .get(certificate.issuer_der.as_slice())
            .map(Vec::as_slice)
            .unwrap_or_default()
            .iter()
            .filter(move |i| tenant.is_none_or(|t| *t == i.tenant))
            .filter(
                |i| match (&certificate.authority_key_id, &i.facts.subject_key_id) {
                    (Some(wanted), Some(key)) => wanted == key,
                    _ => true,
                },
            )
    }

    /// The anchors of a tenant with this name and key: one CA may be registered in several certificates.
    pub(crate) fn registered_as<'a>(
        &'a self,
        tenant: &'a TenantId,
        subject_der: &[u8],
        key: &'a Fingerprint,
    ) -> impl Iterator<Item = &'a Arc<Anchor>> {
        let named = self
            .by_name
            .get(subject_der)
            .map(Vec::as_slice)
            .unwrap_or_default();
        named
            .iter()
            .filter(move |a| a.facts.public_key_sha256 == *key && a.tenant == *tenant)
    }

    /// The anchor of an authority, as it is now. All are looked at: for what happens seldom.
    pub fn of_authority(&self, authority: &AuthorityId) -> Option<&Arc<Anchor>> {
        self.by_name
            .values()
            .flatten()
            .find(|a| a.authority == *authority)
    }

    /// How many anchors there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none: then nobody is admitted.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The anchors that may have issued `certificate`. An anchor without a subjectKeyIdentifier is found by name.
    pub fn issuers_of<'a>(&'a self, certificate: &CertificateFacts) -> impl Iterator<Item = &'a Arc<Anchor>> {
        let exact = certificate.authority_key_id.as_deref().map(|key| {
            let key = (certificate.issuer_der.as_slice().into(), key.into());
            self.by_name_and_key
                .get(&key)
                .map(Vec::as_slice)
                .unwrap_or_default()
        });
        let named = self
            .by_name
            .get(certificate.issuer_der.as_slice())
            .map(Vec::as_slice)
            .unwrap_or_default();
        let has_key_id = exact.is_some();
        exact.unwrap_or_default().iter().chain(
            named
                .iter()
                .filter(move |a| !has_key_id || a.facts.subject_key_id.is_none()),
        )
    }

    /// The anchors of a tenant that a certificate's chain may end in, by what certificates say of their issuers: its own, and
    /// those of the stored intermediates above it. No signature is verified.
    pub fn anchors_above(&self, tenant: &TenantId, certificate: &CertificateFacts) -> Vec<Arc<Anchor>> {
        let mut found: Vec<Arc<Anchor>> = Vec::new();
        let mut level = vec![certificate];
        for _ in 0..=INTERMEDIATES_MAX {
            let mut above = Vec::new();
            for certificate in level {
                for anchor in self.issuers_of(certificate).filter(|a| a.tenant == *tenant) {
                    if !found.iter().any(|a| a.authority == anchor.authority) {
                        found.push(anchor.clone());
                    }
                }
                let stored = self.stored_issuers_of(Some(tenant), certificate);
                above.extend(stored.map(|i| &i.facts).filter(|f| !f.is_self_issued()));
            }
            // Many of one name and key are looked at once.
            above.dedup_by_key(|f| f.fingerprint);
            above.truncate(STEPS_MAX);
            level = above;
        }
        found
    }
}
