//! What of a checked path outlives the handshake: enough to see later that it does not hold any more.

use crate::anchor::{Anchor, AnchorIndex};
use crate::id::{AuthorityId, TenantId};
use crate::revocation::Status;
use crate::timestamp::Timestamp;

/// The certificates of a path but its anchor, by issuer and serial number, as revocation lists name them.
#[derive(Debug, PartialEq, Eq)]
pub struct HeldPath {
    tenant: TenantId,
    authority: AuthorityId,
    anchor_subject: Box<[u8]>,
    certificates: Box<[Named]>,
}

#[derive(Debug, PartialEq, Eq)]
struct Named {
    issuer: Box<[u8]>,
    serial: Box<[u8]>,
}

impl HeldPath {
    pub(crate) fn of<'a>(anchor: &Anchor, certificates: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let certificates = certificates
            .map(|(issuer, serial)| Named {
                issuer: issuer.into(),
                serial: serial.into(),
            })
            .collect();
        Self {
            tenant: anchor.tenant.clone(),
            authority: anchor.authority.clone(),
            anchor_subject: anchor.facts.subject_der.as_slice().into(),
            certificates,
        }
    }

    /// Whether a list that is kept for the authority now revokes one of the certificates.
    ///
    /// A list that is stale revokes nothing: it keeps new connections out, if so configured, and ends none.
    pub fn is_revoked(&self, anchors: &AnchorIndex, now: Timestamp) -> bool {
        let anchor = anchors.named(&self.anchor_subject, &self.tenant, &self.authority);
        let Some(lists) = anchor.and_then(|anchor| anchor.lists()) else {
            return false;
        };
        self.certificates
            .iter()
            .any(|c| lists.status(&c.issuer, &c.serial, false, now) == Status::Revoked)
    }
}
