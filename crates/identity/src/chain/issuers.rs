//! Which registered anchors and stored intermediates a chain meets, each within a bound.

use std::borrow::Cow;
use std::sync::Arc;

use super::ChainFault;
use crate::anchor::{Anchor, AnchorIndex, StoredIntermediate};
use crate::certificate::CertificateFacts;
use crate::id::TenantId;
use crate::timestamp::Timestamp;

/// The most stored intermediates that one chain is completed with.
const COMPLETED_MAX: usize = 8;

/// The stored intermediates between what was sent and the anchors, for devices that send only their own certificate;
/// and whether there were more than one chain may meet. Nothing is added where an anchor is known already, so whoever
/// sends a whole chain pays nothing for it.
pub(super) fn completed(
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
pub(super) fn candidates(
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
    // Without a server name the anchor chooses the tenant, and one that admits nobody chooses none: whoever registered what he
    // has not proven, or has closed it, must not keep another tenant's devices out.
    if tenant.is_none() {
        let chooses = found.iter().find(|a| a.state.admits()).or(found.first());
        if let Some(tenant) = chooses.map(|a| a.tenant.clone()) {
            let admits = |a: &Arc<Anchor>| a.state.admits();
            let any = found.iter().any(admits);
            if found.iter().any(|a| a.tenant != tenant && (admits(a) || !any)) {
                return Err(ChainFault::AmbiguousTenant);
            }
            found.retain(|a| a.tenant == tenant);
        }
    }
    match tenant {
        _ if !found.is_empty() => Ok((found, truncated)),
        Some(asked) if foreign => Err(ChainFault::ForeignTenant { asked: asked.clone() }),
        _ if leaf.is_self_issued() => Err(ChainFault::SelfSigned),
        _ => Err(ChainFault::UnknownCa {
            issuer: leaf.issuer_text.clone(),
        }),
    }
}
