//! From presented certificates to a [`VerifiedChain`], or a [`ChainFault`].
//!
//! Here it is decided which anchors and stored intermediates a chain meets; `path` finds and checks the path (RFC 5280
//! section 6), the anchor's own state, dates and path length included.

use std::borrow::Cow;
use std::sync::Arc;

use const_oid::ObjectIdentifier;
use rustls_pki_types::CertificateDer;

use crate::anchor::{Anchor, AnchorIndex, AnchorState, StoredIntermediate};
use crate::certificate::{CertificateFacts, EKU_CLIENT_AUTH, EKU_ENDORSEMENT, EKU_SERVER_AUTH};
use crate::id::{AuthorityId, DeviceId, Generation, TenantId};
use crate::path::{HeldPath, INTERMEDIATES_MAX, Node, PathDigest, Search, Terms};
use crate::raw::RawCertificate;
use crate::revocation::RevocationList;
use crate::rule::IdentityRule;
use crate::timestamp::Timestamp;

/// The most certificates a client may send.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;
/// The most bytes of certificates a client may send.
pub const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// The most stored intermediates that one chain is completed with.
const COMPLETED_MAX: usize = 8;

/// Why a chain does not lead to a registered, usable anchor. Ordered as the checks are made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// More certificates or bytes than are read.
    #[error(
        "{certificates} certificates with {bytes} bytes were sent; at most {CHAIN_CERTIFICATES_MAX} and {CHAIN_BYTES_MAX} bytes are read"
    )]
    TooLarge {
        /// How many were sent.
        certificates: usize,
        /// Their bytes together.
        bytes: usize,
    },
    /// Not a certificate, or one with an extension that is critical and unknown.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// The leaf is a CA certificate.
    #[error("a CA certificate was presented as a device certificate")]
    CaAsLeaf,
    /// The leaf's subject is its issuer, and nothing of that name is registered.
    #[error("the certificate is self-signed")]
    SelfSigned,
    /// Nothing registered issued it.
    #[error("the issuer {issuer:?} is not registered")]
    UnknownCa {
        /// The issuer for people.
        issuer: String,
    },
    /// An anchor of that name exists but did not sign this.
    #[error("the certificate was not signed by the registered authority {authority}, whose name it bears")]
    BadSignature {
        /// The authority's id.
        authority: String,
    },
    /// Registered, but for another tenant than the server name asked for.
    #[error("the issuer is registered for another tenant than {asked}")]
    ForeignTenant {
        /// The tenant that the server name chose.
        asked: TenantId,
    },
    /// No server name was sent, and more than one tenant has this authority.
    #[error("no server name was sent, and more than one tenant has registered this authority")]
    AmbiguousTenant,
    /// A certificate of the path is past its notAfter.
    #[error("expired on {not_after}")]
    Expired {
        /// The last moment of validity.
        not_after: Timestamp,
    },
    /// A certificate of the path is before its notBefore.
    #[error("not valid before {not_before}")]
    NotYetValid {
        /// The first moment of validity.
        not_before: Timestamp,
    },
    /// extKeyUsage without the purpose, or keyUsage without digitalSignature.
    #[error("the certificate is not for this purpose ({0})")]
    WrongUsage(&'static str),
    /// An issuer of the path may not issue certificates.
    #[error("an issuer of the chain may not issue certificates: {0}")]
    IssuerNotCa(&'static str),
    /// More intermediates than an issuer allows, the anchor's own limit included.
    #[error("the chain is longer than its issuers allow")]
    PathLength,
    /// A name constraint excludes the certificate.
    #[error("a name constraint of an issuer excludes the certificate")]
    NameConstraint,
    /// An issuer demands a certificate policy that the path does not have.
    #[error("an issuer of the chain demands a certificate policy that the chain does not have")]
    Policy,
    /// Its issuer's revocation list names a certificate of the path.
    #[error("{subject:?} with serial {serial} is on its issuer's revocation list")]
    Revoked {
        /// Whose certificate, for people.
        subject: String,
        /// Its serial number.
        serial: String,
    },
    /// No list that may be used says whether a certificate of the path is revoked.
    #[error("no usable revocation list of {issuer:?} covers {subject:?}")]
    RevocationUnknown {
        /// Whose certificate, for people.
        subject: String,
        /// Whose list is missing or stale.
        issuer: String,
    },
    /// The key is too weak or of an unknown kind.
    #[error("the device's key is too weak or of an unknown kind")]
    WeakKey,
    /// A signature of the chain uses an algorithm that is not accepted.
    #[error("a signature in the chain uses an algorithm that is not accepted")]
    SignatureAlgorithm,
    /// The path search hit its bound.
    #[error("the chain is too costly to check")]
    Budget,
    /// The authority itself is past or before its dates.
    #[error("the authority {authority} is outside its own validity, which ended on {not_after}")]
    AnchorExpired {
        /// The authority's id.
        authority: String,
        /// Its last moment of validity.
        not_after: Timestamp,
    },
    /// Nobody has proven yet to hold the authority's key.
    #[error("possession of the key of authority {authority} has not been proven")]
    AuthorityUnproven {
        /// The authority's id.
        authority: String,
    },
    /// The authority is retired.
    #[error("the authority {authority} is retired")]
    AuthorityRetired {
        /// The authority's id.
        authority: String,
    },
    /// The authority is revoked.
    #[error("the authority {authority} is revoked")]
    AuthorityRevoked {
        /// The authority's id.
        authority: String,
    },
}

/// What a certificate is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To authenticate a TLS client: devices.
    #[default]
    Client,
    /// To authenticate a TLS server.
    Server,
    /// To say that a TPM is one: the certificate of its endorsement key, which signs nothing.
    Endorsement,
}

impl Purpose {
    pub(crate) fn usage(self) -> ObjectIdentifier {
        match self {
            Self::Client => EKU_CLIENT_AUTH,
            Self::Server => EKU_SERVER_AUTH,
            Self::Endorsement => EKU_ENDORSEMENT,
        }
    }

    pub(crate) fn lacks(self) -> &'static str {
        match self {
            Self::Client => "extKeyUsage lacks clientAuth",
            Self::Server => "extKeyUsage lacks serverAuth",
            Self::Endorsement => "extKeyUsage lacks tcg-kp-EKCertificate",
        }
    }

    pub(crate) fn authority_lacks(self) -> &'static str {
        match self {
            Self::Client => "the authority's extKeyUsage lacks clientAuth",
            Self::Server => "the authority's extKeyUsage lacks serverAuth",
            Self::Endorsement => "the authority's extKeyUsage lacks tcg-kp-EKCertificate",
        }
    }
}

/// What is asked of a chain. The default is what a device's chain must meet.
#[derive(Debug, Clone, Copy)]
pub struct ChainDemands<'a> {
    /// What for.
    pub purpose: Purpose,
    /// The most intermediates of a path, up to 6.
    pub intermediates_max: usize,
    /// Every certificate of the path must be covered by one of these; `None` asks no list.
    pub lists: Option<&'a [RevocationList]>,
}

impl Default for ChainDemands<'_> {
    fn default() -> Self {
        Self {
            purpose: Purpose::Client,
            intermediates_max: INTERMEDIATES_MAX,
            lists: None,
        }
    }
}

/// A device certificate with a checked path to a registered anchor of one tenant, at one moment.
///
/// Made only by [`VerifiedChain::verify`] and its kin here, each of which checks everything; those that are told of a path
/// whose signatures were verified before leave out these signatures and nothing else. It does not say that the peer holds the key: the handshake does.
#[derive(Debug, Clone)]
pub struct VerifiedChain {
    leaf: CertificateFacts,
    anchor: Arc<Anchor>,
    intermediates: usize,
    path: PathDigest,
    held: Option<Arc<HeldPath>>,
    not_after: Timestamp,
    /// Registered by fingerprint: the device that it is registered for.
    pinned: Option<DeviceId>,
}

impl VerifiedChain {
    /// Checks the certificates a client presented, leaf first, against the anchors of `tenant` at `now`.
    ///
    /// Without a tenant (no server name was sent) the anchor chooses it, if exactly one tenant has it.
    ///
    /// # Errors
    /// The first [`ChainFault`] in the order of that type.
    pub fn verify(
        anchors: &AnchorIndex,
        tenant: Option<&TenantId>,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> Result<Self, ChainFault> {
        let demands = ChainDemands::default();
        Self::verify_for(&demands, anchors, tenant, leaf, leaf_der, intermediates, now)
    }

    /// The same, for other demands.
    ///
    /// # Errors
    /// As [`VerifiedChain::verify`].
    pub fn verify_for(
        demands: &ChainDemands<'_>,
        anchors: &AnchorIndex,
        tenant: Option<&TenantId>,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> Result<Self, ChainFault> {
        Self::verify_at(
            demands,
            anchors,
            tenant,
            leaf,
            leaf_der,
            intermediates,
            Terms::at(now),
        )
    }

    /// As [`VerifiedChain::verify`], without the signatures of the path `verified`, which was verified before: everything
    /// else is checked, and no other path will do. Any change of the authority since then makes it another path.
    ///
    /// # Errors
    /// As [`VerifiedChain::verify`]; [`ChainFault::BadSignature`] if there is another path only.
    pub fn verify_again(
        anchors: &AnchorIndex,
        tenant: Option<&TenantId>,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: Timestamp,
        verified: PathDigest,
    ) -> Result<Self, ChainFault> {
        let (demands, terms) = (
            ChainDemands::default(),
            Terms {
                verified: Some(verified),
                ..Terms::at(now)
            },
        );
        Self::verify_at(&demands, anchors, tenant, leaf, leaf_der, intermediates, terms)
    }

    /// The same on other terms: what the leaf's own dates are held against, and what is known already.
    fn verify_at(
        demands: &ChainDemands<'_>,
        anchors: &AnchorIndex,
        tenant: Option<&TenantId>,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        terms: Terms,
    ) -> Result<Self, ChainFault> {
        let bytes = leaf_der.len() + intermediates.iter().map(|c| c.len()).sum::<usize>();
        if intermediates.len() + 1 > CHAIN_CERTIFICATES_MAX || bytes > CHAIN_BYTES_MAX {
            return Err(ChainFault::TooLarge {
                certificates: intermediates.len() + 1,
                bytes,
            });
        }
        let above = intermediates
            .iter()
            .map(|der| {
                CertificateFacts::parse(der)
                    .map(|facts| (Cow::Owned(facts), der.as_ref()))
                    .map_err(|e| ChainFault::Malformed(e.to_string()))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if leaf.ca.is_some() {
            return Err(ChainFault::CaAsLeaf);
        }
        let (completed, truncated) = completed(anchors, tenant, &leaf, &above, terms.now);
        let above: Vec<(Cow<'_, CertificateFacts>, &[u8])> = above
            .into_iter()
            .chain(
                completed
                    .iter()
                    .map(|i| (Cow::Borrowed(&i.facts), i.der.as_ref())),
            )
            .collect();
        let (candidates, crowded) = candidates(anchors, tenant, &leaf, &above)?;
        let nodes = std::iter::once(Node::new(&leaf, leaf_der))
            .chain(above.iter().map(|(facts, der)| Node::new(facts, der)))
            .collect::<Result<Vec<_>, _>>()?;
        let found = Search::new(nodes, &candidates, demands, terms)
            .run()
            // Perhaps there is a path among what was left out: that is another answer than "there is none".
            .map_err(|fault| match fault {
                ChainFault::UnknownCa { .. } | ChainFault::BadSignature { .. } if truncated || crowded => {
                    ChainFault::Budget
                }
                other => other,
            })?;
        match demands.purpose {
            Purpose::Client | Purpose::Server => check_leaf(&leaf)?,
            Purpose::Endorsement => check_endorsement(&leaf)?,
        }
        drop(above);
        Ok(Self {
            not_after: leaf.not_after.min(found.above_ends),
            leaf,
            anchor: found.anchor,
            intermediates: found.intermediates,
            path: found.digest,
            held: Some(found.held),
            pinned: None,
        })
    }

    /// Takes a self-signed certificate that is registered by its fingerprint for a device of `tenant`: there is no path, and
    /// nothing in it is believed but its key, its dates and what it says it is for. That it calls itself a CA, as tools
    /// do by default, means nothing: nothing is issued by it.
    ///
    /// The caller has looked the fingerprint up; an unregistered certificate never comes here.
    ///
    /// # Errors
    /// [`ChainFault`]: of another tenant than was asked for, outside its dates, for another purpose, or with a weak key.
    pub fn pinned(
        tenant: &TenantId,
        asked: Option<&TenantId>,
        device: DeviceId,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        now: Timestamp,
    ) -> Result<Self, ChainFault> {
        Self::pinned_at(tenant, asked, device, leaf, leaf_der, Terms::at(now))
    }

    /// As [`VerifiedChain::pinned`], without its signature by its own key, which was verified before.
    ///
    /// # Errors
    /// As [`VerifiedChain::pinned`]; [`ChainFault::BadSignature`] if `verified` is another one.
    pub fn pinned_again(
        tenant: &TenantId,
        asked: Option<&TenantId>,
        device: DeviceId,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        now: Timestamp,
        verified: PathDigest,
    ) -> Result<Self, ChainFault> {
        let terms = Terms {
            verified: Some(verified),
            ..Terms::at(now)
        };
        Self::pinned_at(tenant, asked, device, leaf, leaf_der, terms)
    }

    fn pinned_at(
        tenant: &TenantId,
        asked: Option<&TenantId>,
        device: DeviceId,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        Terms { now, verified, .. }: Terms,
    ) -> Result<Self, ChainFault> {
        if let Some(asked) = asked.filter(|asked| *asked != tenant) {
            return Err(ChainFault::ForeignTenant { asked: asked.clone() });
        }
        match verified {
            None => check_pinned(&leaf, leaf_der)?,
            Some(_) => check_pinned_facts(&leaf)?,
        }
        if !leaf.is_valid_at(now) {
            return Err(if now.unix_s() < leaf.not_before.unix_s() {
                ChainFault::NotYetValid {
                    not_before: leaf.not_before,
                }
            } else {
                ChainFault::Expired {
                    not_after: leaf.not_after,
                }
            });
        }
        let anchor = Anchor::new(
            tenant.clone(),
            AuthorityId::pinned(),
            AnchorState::Active,
            Generation(0),
            IdentityRule::default(),
            leaf_der,
        )
        .map_err(|e| ChainFault::Malformed(e.to_string()))?;
        let path = PathDigest::of(&anchor, std::iter::once(&leaf));
        if verified.is_some_and(|verified| verified != path) {
            return Err(ChainFault::BadSignature {
                authority: anchor.authority.to_string(),
            });
        }
        Ok(Self {
            not_after: leaf.not_after,
            leaf,
            anchor: Arc::new(anchor),
            intermediates: 0,
            path,
            held: None,
            pinned: Some(device),
        })
    }

    /// The device that a certificate was registered for by its fingerprint; `None` if a chain vouches for it.
    pub fn pinned_device(&self) -> Option<&DeviceId> {
        self.pinned.as_ref()
    }

    /// What the device's certificate says.
    pub fn leaf(&self) -> &CertificateFacts {
        &self.leaf
    }

    /// The registered authority that the path ends in.
    pub fn anchor(&self) -> &Arc<Anchor> {
        &self.anchor
    }

    /// The path, to be known again by [`VerifiedChain::verify_again`].
    pub fn path(&self) -> PathDigest {
        self.path
    }

    /// The last second at which all of the path is within its dates: the leaf's end, or an earlier one of what is above it.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// What can be held against revocation lists later; `None` of a certificate that vouches for itself.
    pub fn held(&self) -> Option<&Arc<HeldPath>> {
        self.held.as_ref()
    }

    /// How many intermediates lie between leaf and anchor.
    pub fn intermediates(&self) -> usize {
        self.intermediates
    }

    /// Gives up the parts, for the session that outlives the handshake.
    pub fn into_parts(self) -> (CertificateFacts, Arc<Anchor>) {
        (self.leaf, self.anchor)
    }
}

/// A device certificate that has expired, and that everything else is right with: at the last moment of its validity it
/// led to an authority that is registered and in force *now*.
///
/// It is no [`VerifiedChain`], and there is no way from one to the other, so that whatever lets devices in cannot take it:
///
/// ```compile_fail
/// use countersign_identity::{ExpiredChain, VerifiedChain};
/// fn let_in(_: VerifiedChain) {}
/// fn try_it(expired: ExpiredChain) { let_in(expired) }
/// ```
///
/// ```compile_fail
/// use countersign_identity::{ExpiredChain, VerifiedChain};
/// fn try_it(expired: ExpiredChain) -> VerifiedChain { expired.0 }
/// ```
#[derive(Debug, Clone)]
pub struct ExpiredChain(VerifiedChain);

impl ExpiredChain {
    /// Checks the certificates of a client whose own has expired, leaf first: all that [`VerifiedChain::verify`] checks,
    /// with the dates of everything above the leaf held against `now`.
    ///
    /// # Errors
    /// [`ChainFault::NotYetValid`] if the leaf is not expired at all; else the first fault in the order of that type.
    pub fn verify(
        anchors: &AnchorIndex,
        tenant: &TenantId,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> Result<Self, ChainFault> {
        if now.unix_s() <= leaf.not_after.unix_s() {
            return Err(ChainFault::NotYetValid {
                not_before: leaf.not_before,
            });
        }
        let (demands, end) = (ChainDemands::default(), leaf.not_after);
        VerifiedChain::verify_at(
            &demands,
            anchors,
            Some(tenant),
            leaf,
            leaf_der,
            intermediates,
            Terms {
                leaf_at: end,
                ..Terms::at(now)
            },
        )
        .map(Self)
    }

    /// What the expired certificate says.
    pub fn leaf(&self) -> &CertificateFacts {
        self.0.leaf()
    }

    /// The registered authority that the path ends in.
    pub fn anchor(&self) -> &Arc<Anchor> {
        self.0.anchor()
    }
}

/// The stored intermediates between what was sent and the anchors, for devices that send only their own certificate;
/// and whether there were more than one chain may meet. Nothing is added where an anchor is known already, so whoever
/// sends a whole chain pays nothing for it.
fn completed(
    anchors: &AnchorIndex,
    tenant: Option<&TenantId>,
    leaf: &CertificateFacts,
    above: &[(Cow<'_, CertificateFacts>, &[u8])],
    now: Timestamp,
) -> (Vec<Arc<StoredIntermediate>>, bool) {
    let mut added: Vec<Arc<StoredIntermediate>> = Vec::new();
    let mut truncated = false;
    let is_known = |c: &CertificateFacts| {
        anchors.issuers_of(c).next().is_some() || above.iter().any(|(a, _)| a.subject_der == c.issuer_der)
    };
    for start in std::iter::once(leaf).chain(above.iter().map(|(a, _)| a.as_ref())) {
        if is_known(start) {
            continue;
        }
        let mut open = vec![Cow::Borrowed(start)];
        while let Some(certificate) = open.pop() {
            let stored = anchors.stored_issuers_of(tenant, &certificate);
            // Those that can hold a path now come first, and take the few places there are.
            let (usable, rest): (Vec<_>, Vec<_>) = stored.partition(|i| i.facts.is_valid_at(now));
            for stored in usable.into_iter().chain(rest) {
                if added.iter().any(|a| Arc::ptr_eq(a, stored)) {
                    continue;
                }
                if added.len() >= COMPLETED_MAX {
                    truncated = true;
                    break;
                }
                added.push(stored.clone());
                if !is_known(&stored.facts) {
                    open.push(Cow::Owned(stored.facts.clone()));
                }
            }
        }
    }
    (added, truncated)
}

/// The anchors that the presented certificates point at, the leaf's issuer first; and whether there were more than one
/// chain may meet.
fn candidates(
    anchors: &AnchorIndex,
    tenant: Option<&TenantId>,
    leaf: &CertificateFacts,
    above: &[(Cow<'_, CertificateFacts>, &[u8])],
) -> Result<(Vec<Arc<Anchor>>, bool), ChainFault> {
    let mut found: Vec<Arc<Anchor>> = Vec::new();
    let (mut foreign, mut truncated) = (false, false);
    // What may be admitted is tried first, and takes the few places there are.
    for admits in [true, false] {
        for certificate in std::iter::once(leaf).chain(above.iter().map(|(a, _)| a.as_ref())) {
            for anchor in anchors
                .issuers_of(certificate)
                .filter(|a| a.state.admits() == admits)
            {
                if tenant.is_some_and(|t| *t != anchor.tenant) {
                    foreign = true;
                } else if found.iter().any(|a| Arc::ptr_eq(a, anchor)) {
                } else if found.len() < AnchorIndex::CANDIDATES_MAX {
                    found.push(anchor.clone());
                } else {
                    truncated = true;
                }
            }
        }
    }
    match (found.first(), tenant) {
        (Some(first), None) if found.iter().any(|a| a.tenant != first.tenant) => {
            Err(ChainFault::AmbiguousTenant)
        }
        (Some(_), _) => Ok((found, truncated)),
        (None, Some(asked)) if foreign => Err(ChainFault::ForeignTenant { asked: asked.clone() }),
        (None, _) if leaf.is_self_issued() => Err(ChainFault::SelfSigned),
        (None, _) => Err(ChainFault::UnknownCa {
            issuer: leaf.issuer_text.clone(),
        }),
    }
}

/// Whether a certificate may be registered by its fingerprint: self-signed, for clients, with a strong key.
///
/// # Errors
/// [`ChainFault`].
pub fn check_pinned(leaf: &CertificateFacts, leaf_der: &[u8]) -> Result<(), ChainFault> {
    let raw = RawCertificate::parse(leaf_der).map_err(|e| ChainFault::Malformed(e.to_string()))?;
    let key = raw.key;
    if !leaf.is_self_issued() || raw.signed.verify(&key).is_err() {
        return Err(ChainFault::UnknownCa {
            issuer: leaf.issuer_text.clone(),
        });
    }
    check_pinned_facts(leaf)
}

fn check_pinned_facts(leaf: &CertificateFacts) -> Result<(), ChainFault> {
    if let Some(why) = &leaf.path.fault {
        return Err(ChainFault::Malformed(why.to_string()));
    }
    if !leaf.allows_client_auth() {
        return Err(ChainFault::WrongUsage(Purpose::Client.lacks()));
    }
    check_leaf(leaf)
}

/// An endorsement key decrypts; what kind of key it must be, attestation says. A certificate must say that it is of one: by
/// its extKeyUsage, or, as old ones do, by a keyUsage without digitalSignature. Else any certificate of that CA would do.
fn check_endorsement(leaf: &CertificateFacts) -> Result<(), ChainFault> {
    let signs_nothing = leaf.key_usage.is_some_and(|u| !u.digital_signature);
    if leaf.extended_key_usage.is_none() && !signs_nothing {
        return Err(ChainFault::WrongUsage(Purpose::Endorsement.lacks()));
    }
    Ok(())
}

fn check_leaf(leaf: &CertificateFacts) -> Result<(), ChainFault> {
    if leaf.key_usage.is_some_and(|u| !u.digital_signature) {
        return Err(ChainFault::WrongUsage("keyUsage lacks digitalSignature"));
    }
    if !leaf.key_algorithm.is_strong_enough() {
        return Err(ChainFault::WeakKey);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
