//! What the registry says of the CAs that a path leads through, whichever of them it ends in.
//!
//! One CA may be registered and its parent too, and one CA in several certificates of its name and key. Whoever ends a CA, or
//! keeps a revocation list for it, means it wherever it stands in a chain: it does not come back through its parent.

use std::sync::Arc;

use super::Node;
use crate::anchor::{Anchor, AnchorIndex, AnchorState};
use crate::chain::ChainFault;
use crate::id::{Fingerprint, TenantId};
use crate::revocation::Status;
use crate::timestamp::Timestamp;

/// A certificate of a path, as a revocation list names it, and its issuer's key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Issued<'a> {
    pub(super) issuer: &'a [u8],
    pub(super) issuer_key: &'a Fingerprint,
    pub(super) serial: &'a [u8],
}

impl Issued<'_> {
    pub(super) fn is_by(&self, anchor: &Anchor) -> bool {
        *self.issuer_key == anchor.facts.public_key_sha256
            && self.issuer == anchor.facts.subject_der.as_slice()
    }
}

/// The certificates of a path, leaf first, with their issuers' keys: each one's issuer is the next, the last one's the anchor.
pub(super) fn issued<'a>(nodes: &'a [Node<'a>], anchor: &'a Anchor) -> impl Iterator<Item = Issued<'a>> {
    let keys = nodes.iter().skip(1).map(|n| &n.facts.public_key_sha256);
    let keys = keys.chain(std::iter::once(&anchor.facts.public_key_sha256));
    nodes.iter().zip(keys).map(|(node, issuer_key)| Issued {
        issuer: &node.facts.issuer_der,
        issuer_key,
        serial: node.raw.serial,
    })
}

/// Registrations of one CA, by name and key.
struct Registrations<'a> {
    /// Those that admit: their lists are asked.
    admitting: Vec<&'a Arc<Anchor>>,
    /// Others: what their lists revoke stays revoked.
    ended: Vec<&'a Arc<Anchor>>,
}

impl<'a> Registrations<'a> {
    fn of(index: &'a AnchorIndex, tenant: &'a TenantId, certificate: Issued<'a>) -> Self {
        Self::among(index.registered_as(tenant, certificate.issuer, certificate.issuer_key))
    }

    fn among(all: impl Iterator<Item = &'a Arc<Anchor>>) -> Self {
        let (admitting, ended) = all.partition(|a| a.state.admits());
        Self { admitting, ended }
    }

    /// Why nothing that this CA issued is admitted; `None` if one of its registrations admits, or there is none that ended.
    /// One that nobody has proven yet is no word about a CA.
    fn fault(&self) -> Option<ChainFault> {
        if !self.admitting.is_empty() {
            return None;
        }
        self.ended.iter().find_map(|a| {
            let authority = a.authority.to_string();
            match a.state {
                AnchorState::Revoked => Some(ChainFault::AuthorityRevoked { authority }),
                AnchorState::Retired => Some(ChainFault::AuthorityRetired { authority }),
                AnchorState::Active | AnchorState::Retiring | AnchorState::Unproven => None,
            }
        })
    }
}

/// Why a path does not hold although its signatures do: a CA of it ended, or a list that is kept for one of them says so.
/// `met`: the anchors that the chain meets, among them those of the name and key of its last issuer.
pub(super) fn check(
    index: &AnchorIndex,
    met: &[Arc<Anchor>],
    nodes: &[Node<'_>],
    anchor: &Anchor,
    now: Timestamp,
) -> Result<(), ChainFault> {
    let certificates: Vec<Issued<'_>> = issued(nodes, anchor).collect();
    let last = certificates.len().saturating_sub(1);
    for (n, certificate) in certificates.iter().enumerate() {
        let registrations = match n == last {
            // No search of the index for what most chains are: one certificate below its anchor.
            true => Registrations::among(
                met.iter()
                    .filter(|a| certificate.is_by(a) && a.tenant == anchor.tenant),
            ),
            false => Registrations::of(index, &anchor.tenant, *certificate),
        };
        if let Some(fault) = registrations.fault() {
            return Err(fault);
        }
        for lists in registrations.ended.iter().filter_map(|a| a.lists()) {
            if let Some(node) = nodes
                .iter()
                .find(|n| lists.revoke(&n.facts.issuer_der, n.raw.serial))
            {
                return Err(revoked(node));
            }
        }
        for asked in &registrations.admitting {
            let Some(lists) = asked.lists() else { continue };
            for (node, certificate) in nodes.iter().zip(&certificates) {
                // It must have a list of its own; those of CAs below it are there if somebody gave them.
                let required = certificate.is_by(asked);
                let status = lists.status(certificate.issuer, certificate.serial, node.der, required, now);
                told(node, status)?;
            }
        }
    }
    Ok(())
}

fn revoked(node: &Node<'_>) -> ChainFault {
    ChainFault::Revoked {
        subject: node.facts.subject_text.clone(),
        serial: node.facts.serial.clone(),
    }
}

pub(super) fn told(node: &Node<'_>, status: Status) -> Result<(), ChainFault> {
    match status {
        Status::Good => Ok(()),
        Status::Revoked => Err(revoked(node)),
        Status::Unknown => Err(ChainFault::RevocationUnknown {
            subject: node.facts.subject_text.clone(),
            issuer: node.facts.issuer_text.clone(),
        }),
    }
}

/// The same of a path that held before, by what is known of it now. A list that is stale revokes nothing: it keeps new
/// connections out, if so configured, and ends none.
pub(super) fn fault_of<'a>(
    index: &'a AnchorIndex,
    tenant: &'a TenantId,
    certificates: impl Iterator<Item = Issued<'a>> + Clone,
) -> Option<ChainFault> {
    certificates.clone().find_map(|certificate| {
        let registrations = Registrations::of(index, tenant, certificate);
        registrations.fault().or_else(|| {
            let mut all = registrations.admitting.iter().chain(&registrations.ended);
            all.find_map(|anchor| {
                let lists = anchor.lists()?;
                let named = certificates.clone().find(|c| lists.revoke(c.issuer, c.serial))?;
                Some(ChainFault::Revoked {
                    subject: "a certificate of the chain".into(),
                    serial: crate::certificate::serial_hex(named.serial),
                })
            })
        })
    })
}
