//! The chain of a certificate whose own time is over, for the renewal lane.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::{ChainDemands, ChainFault, VerifiedChain};
use crate::anchor::{Anchor, AnchorIndex};
use crate::certificate::CertificateFacts;
use crate::id::TenantId;
use crate::path::Terms;
use crate::timestamp::Timestamp;

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
