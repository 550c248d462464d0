//! What of a checked path outlives the handshake: enough to see later that it does not hold any more.

use super::registered::{self, Issued};
use crate::anchor::{Anchor, AnchorIndex};
use crate::chain::ChainFault;
use crate::id::{Fingerprint, TenantId};

/// The certificates of a path but its anchor, as revocation lists name them, and the keys of the CAs that it leads through.
#[derive(Debug, PartialEq, Eq)]
pub struct HeldPath {
    tenant: TenantId,
    certificates: Box<[Named]>,
}

#[derive(Debug, PartialEq, Eq)]
struct Named {
    issuer: Box<[u8]>,
    issuer_key: Fingerprint,
    serial: Box<[u8]>,
}

impl HeldPath {
    pub(super) fn of<'a>(anchor: &Anchor, certificates: impl Iterator<Item = Issued<'a>>) -> Self {
        let certificates = certificates
            .map(|c| Named {
                issuer: c.issuer.into(),
                issuer_key: *c.issuer_key,
                serial: c.serial.into(),
            })
            .collect();
        Self {
            tenant: anchor.tenant.clone(),
            certificates,
        }
    }

    fn issued(&self) -> impl Iterator<Item = Issued<'_>> + Clone {
        self.certificates.iter().map(|c| Issued {
            issuer: &c.issuer,
            issuer_key: &c.issuer_key,
            serial: &c.serial,
        })
    }

    /// Why it does not hold any more, by what is registered now: one of its CAs was retired or revoked, or a list that is kept for
    /// one of them revokes one of the certificates.
    ///
    /// A list that is stale revokes nothing: it keeps new connections out, if so configured, and ends none.
    pub fn fault(&self, anchors: &AnchorIndex) -> Option<ChainFault> {
        registered::fault_of(anchors, &self.tenant, self.issued())
    }

    /// Whether it leads through a CA below its anchor, which may be registered too.
    pub fn has_intermediates(&self) -> bool {
        self.certificates.len() > 1
    }

    /// Whether it leads through `anchor`, or ends in it.
    pub fn leads_through(&self, anchor: &Anchor) -> bool {
        self.tenant == anchor.tenant && self.issued().any(|c| c.is_by(anchor))
    }
}
