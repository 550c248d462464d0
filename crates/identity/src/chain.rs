//! From presented certificates to a [`VerifiedChain`], or a [`ChainFault`].
//!
//! webpki builds and checks the path (RFC 5280 section 6); what it does not look at is checked here: the anchor's own
//! state, dates and path length, keyUsage bits, and that the chain's tenant is the one that was asked for.

use std::cell::RefCell;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::anchor::{Anchor, AnchorIndex, AnchorState, StoredIntermediate};
use crate::certificate::CertificateFacts;
use crate::id::TenantId;
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
    /// extKeyUsage without clientAuth, or keyUsage without digitalSignature.
    #[error("the certificate is not for client authentication ({0})")]
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

/// A device certificate with a checked path to a registered anchor of one tenant, at one moment.
///
/// Made only by [`VerifiedChain::verify`]. It does not say that the peer holds the key: the handshake does.
#[derive(Debug, Clone)]
pub struct VerifiedChain {
    leaf: CertificateFacts,
    anchor: Arc<Anchor>,
    intermediates: usize,
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
        Self::verify_at(anchors, tenant, leaf, leaf_der, intermediates, now, now)
    }

    /// The same with the leaf's dates held against another moment than `now`.
    fn verify_at(
        anchors: &AnchorIndex,
        tenant: Option<&TenantId>,
        leaf: CertificateFacts,
        leaf_der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        leaf_at: Timestamp,
        now: Timestamp,
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
            .map(|der| CertificateFacts::parse(der).map_err(|e| ChainFault::Malformed(e.to_string())))
            .collect::<Result<Vec<_>, _>>()?;
        if leaf.ca.is_some() {
            return Err(ChainFault::CaAsLeaf);
        }
        let completed = completed(anchors, tenant, &leaf, &above);
        let intermediates: Vec<_> = intermediates
            .iter()
            .chain(completed.iter().map(|i| &i.der))
            .map(|der| CertificateDer::from(der.as_ref()))
            .collect();
        let above: Vec<_> = above.iter().chain(completed.iter().map(|i| &i.facts)).collect();
        let candidates = candidates(anchors, tenant, &leaf, &above)?;
        let trust: Vec<_> = candidates.iter().map(|a| a.trust().clone()).collect();
        let end_entity = EndEntityCert::try_from(leaf_der).map_err(|e| fault_of(e, &leaf, &candidates))?;
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            leaf_at.unix_s().max(0).unsigned_abs(),
        ));
        // Of several paths (cross-signed, overlapping roots) any that holds will do; the first fault is told if none does.
        let first_fault = RefCell::new(None);
        let examine = |path: &VerifiedPath<'_>| {
            examine(path, &candidates, &intermediates, &above, now).map_err(|fault| {
                first_fault.borrow_mut().get_or_insert(fault);
                webpki::Error::UnknownIssuer
            })
        };
        let path = end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &trust,
                &intermediates,
                time,
                KeyUsage::client_auth(),
                None,
                Some(&examine),
            )
            .map_err(|e| {
                first_fault
                    .take()
                    .unwrap_or_else(|| fault_of(e, &leaf, &candidates))
            })?;
        let anchor = anchor_of(&path, &candidates).ok_or_else(|| ChainFault::UnknownCa {
            issuer: leaf.issuer_text.clone(),
        })?;
        let used = path.intermediate_certificates().count();
        check_leaf(&leaf)?;
        Ok(Self {
            leaf,
            anchor,
            intermediates: used,
        })
    }

    /// What the device's certificate says.
    pub fn leaf(&self) -> &CertificateFacts {
        &self.leaf
    }

    /// The registered authority that the path ends in.
    pub fn anchor(&self) -> &Arc<Anchor> {
        &self.anchor
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
        let end = leaf.not_after;
        VerifiedChain::verify_at(anchors, Some(tenant), leaf, leaf_der, intermediates, end, now).map(Self)
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

/// The stored intermediates between what was sent and the anchors, for devices that send only their own certificate.
/// Nothing is added where an anchor is known already, so whoever sends a whole chain pays nothing for it.
fn completed(
    anchors: &AnchorIndex,
    tenant: Option<&TenantId>,
    leaf: &CertificateFacts,
    above: &[CertificateFacts],
) -> Vec<Arc<StoredIntermediate>> {
    let mut added: Vec<Arc<StoredIntermediate>> = Vec::new();
    let is_known = |c: &CertificateFacts| {
        anchors.issuers_of(c).next().is_some() || above.iter().any(|a| a.subject_der == c.issuer_der)
    };
    for start in std::iter::once(leaf).chain(above) {
        if is_known(start) {
            continue;
        }
        let mut open = vec![start.clone()];
        while let Some(certificate) = open.pop() {
            for stored in anchors.stored_issuers_of(tenant, &certificate) {
                if added.len() >= COMPLETED_MAX {
                    return added;
                }
                if added.iter().any(|a| Arc::ptr_eq(a, stored)) {
                    continue;
                }
                added.push(stored.clone());
                if !is_known(&stored.facts) {
                    open.push(stored.facts.clone());
                }
            }
        }
    }
    added
}

/// The anchors that the presented certificates point at, the leaf's issuer first.
fn candidates(
    anchors: &AnchorIndex,
    tenant: Option<&TenantId>,
    leaf: &CertificateFacts,
    above: &[&CertificateFacts],
) -> Result<Vec<Arc<Anchor>>, ChainFault> {
    let mut found: Vec<Arc<Anchor>> = Vec::new();
    let mut foreign = false;
    for certificate in std::iter::once(leaf).chain(above.iter().copied()) {
        for anchor in anchors.issuers_of(certificate) {
            if tenant.is_some_and(|t| *t != anchor.tenant) {
                foreign = true;
            } else if found.len() < AnchorIndex::CANDIDATES_MAX
                && !found.iter().any(|a| Arc::ptr_eq(a, anchor))
            {
                found.push(anchor.clone());
            }
        }
    }
    // What may be admitted is tried first.
    found.sort_by_key(|a| !a.state.admits());
    match (found.first(), tenant) {
        (Some(first), None) if found.iter().any(|a| a.tenant != first.tenant) => {
            Err(ChainFault::AmbiguousTenant)
        }
        (Some(_), _) => Ok(found),
        (None, Some(asked)) if foreign => Err(ChainFault::ForeignTenant { asked: asked.clone() }),
        (None, _) if leaf.is_self_issued() => Err(ChainFault::SelfSigned),
        (None, _) => Err(ChainFault::UnknownCa {
            issuer: leaf.issuer_text.clone(),
        }),
    }
}

fn anchor_of(path: &VerifiedPath<'_>, candidates: &[Arc<Anchor>]) -> Option<Arc<Anchor>> {
    candidates.iter().find(|a| a.trust() == path.anchor()).cloned()
}

/// What webpki leaves out of a path.
fn examine(
    path: &VerifiedPath<'_>,
    candidates: &[Arc<Anchor>],
    intermediates: &[CertificateDer<'_>],
    above: &[&CertificateFacts],
    now: Timestamp,
) -> Result<(), ChainFault> {
    let mut used = 0;
    // keyUsage of the issuers: webpki 0.103 does not look at it.
    for issuer in path.intermediate_certificates() {
        used += 1;
        let der = issuer.der();
        let facts = intermediates
            .iter()
            .zip(above)
            .find(|(d, _)| d.as_ref() == der.as_ref())
            .map(|(_, f)| f)
            .ok_or(ChainFault::Budget)?;
        if facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
            return Err(ChainFault::IssuerNotCa("keyUsage lacks keyCertSign"));
        }
        // The library held its dates against the leaf's moment, which may be another than now.
        if !facts.is_valid_at(now) {
            return Err(ChainFault::Expired {
                not_after: facts.not_after,
            });
        }
    }
    let anchor = anchor_of(path, candidates).ok_or(ChainFault::Budget)?;
    check_anchor(&anchor, used, now)
}

/// What webpki leaves out of an anchor (`VerifiedPath` knows only its name, key and name constraints).
fn check_anchor(anchor: &Anchor, intermediates: usize, now: Timestamp) -> Result<(), ChainFault> {
    let authority = anchor.authority.to_string();
    match anchor.state {
        AnchorState::Active | AnchorState::Retiring => {}
        AnchorState::Unproven => return Err(ChainFault::AuthorityUnproven { authority }),
        AnchorState::Retired => return Err(ChainFault::AuthorityRetired { authority }),
        AnchorState::Revoked => return Err(ChainFault::AuthorityRevoked { authority }),
    }
    if !anchor.facts.is_valid_at(now) {
        return Err(ChainFault::AnchorExpired {
            authority,
            not_after: anchor.facts.not_after,
        });
    }
    let Some(constraint) = anchor.facts.ca else {
        return Err(ChainFault::IssuerNotCa("the registered authority is no CA"));
    };
    if anchor.facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
        return Err(ChainFault::IssuerNotCa(
            "the registered authority's keyUsage lacks keyCertSign",
        ));
    }
    if constraint
        .path_length
        .is_some_and(|max| intermediates > usize::from(max))
    {
        return Err(ChainFault::PathLength);
    }
    if !anchor.facts.allows_client_auth() {
        return Err(ChainFault::WrongUsage(
            "the authority's extKeyUsage lacks clientAuth",
        ));
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

fn fault_of(e: webpki::Error, leaf: &CertificateFacts, candidates: &[Arc<Anchor>]) -> ChainFault {
    use webpki::Error as E;
    let time = |t: UnixTime| Timestamp::from_unix_s(i64::try_from(t.as_secs()).unwrap_or(i64::MAX / 1000));
    match e {
        E::CertExpired { not_after, .. } => ChainFault::Expired {
            not_after: time(not_after),
        },
        E::CertNotValidYet { not_before, .. } => ChainFault::NotYetValid {
            not_before: time(not_before),
        },
        E::CaUsedAsEndEntity => ChainFault::CaAsLeaf,
        E::EndEntityUsedAsCa => ChainFault::IssuerNotCa("a certificate that is no CA signed another"),
        E::PathLenConstraintViolated => ChainFault::PathLength,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => {
            ChainFault::WrongUsage("extKeyUsage lacks clientAuth")
        }
        E::InvalidSignatureForPublicKey => ChainFault::BadSignature {
            authority: candidates
                .first()
                .map(|a| a.authority.to_string())
                .unwrap_or_default(),
        },
        E::NameConstraintViolation | E::UnsupportedNameType | E::MalformedNameConstraint => {
            ChainFault::NameConstraint
        }
        E::MaximumSignatureChecksExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumNameConstraintComparisonsExceeded => ChainFault::Budget,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => ChainFault::SignatureAlgorithm,
        E::UnknownIssuer => ChainFault::UnknownCa {
            issuer: leaf.issuer_text.clone(),
        },
        other => ChainFault::Malformed(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
