//! From presented certificates to a [`VerifiedChain`], or a [`ChainFault`].
//!
//! * `demands`: what is asked of it
//! * `issuers`: which anchors and stored intermediates it meets
//! * `leaf`: what the device's own certificate must be, whoever issued it
//! * `fault`: what may be wrong with it
//! * `expired`: one whose own time is over, for the renewal lane
//!
//! `path` finds and checks the path (RFC 5280 section 6), the anchor's own state, dates and path length included.

mod demands;
mod expired;
mod fault;
mod issuers;
mod leaf;

use std::borrow::Cow;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

pub use self::demands::{ChainDemands, Purpose};
pub use self::expired::ExpiredChain;
pub use self::fault::ChainFault;
use self::issuers::{candidates, completed};
pub use self::leaf::check_pinned;
use self::leaf::{check_endorsement, check_leaf, check_pinned_facts};
use crate::anchor::{Anchor, AnchorIndex, AnchorState};
use crate::certificate::CertificateFacts;
use crate::id::{AuthorityId, DeviceId, Generation, TenantId};
use crate::path::{HeldPath, Node, PathDigest, Search, Terms};
use crate::rule::IdentityRule;
use crate::timestamp::Timestamp;

/// The most certificates a client may send.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;
/// The most bytes of certificates a client may send.
pub const CHAIN_BYTES_MAX: usize = 16 * 1024;

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
        let found = Search::new(nodes, &candidates, anchors, demands, terms)
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

#[cfg(test)]
mod tests;
