//! Finds and checks a certification path (RFC 5280 section 6, path building after RFC 4158).
//!
//! Depth first from the leaf upwards, a signature checked at each step, so that a forged branch ends where it begins.
//! Whatever the certificates look like, the work is bounded: each signature is checked once per key, no more than
//! [`SIGNATURES_MAX`] of them, over no more than [`STEPS_MAX`] steps. All of it is pure; the algorithms are those of the
//! TLS library. The tests hold it against webpki and against NIST's PKITS.

mod digest;
mod held;
mod names;
mod policy;
mod registered;

use std::sync::Arc;

use crate::anchor::{Anchor, AnchorIndex, AnchorState};
use crate::certificate::CertificateFacts;
use crate::chain::{ChainDemands, ChainFault};
use crate::raw::{RawCertificate, RawFault, RawKey};
use crate::revocation::{CheckedLists, ListIssuer};
use crate::timestamp::Timestamp;

pub use digest::PathDigest;
pub use held::HeldPath;
pub(crate) use names::NameRules;
use names::Names;
use policy::{PolicyFacts, PolicyState};

/// The most signatures of certificates that one search checks: 32 cost about 2 ms.
pub(crate) const SIGNATURES_MAX: usize = 32;
/// The most steps of one search.
pub(crate) const STEPS_MAX: usize = 256;
/// The most intermediates of a path.
pub(crate) const INTERMEDIATES_MAX: usize = 6;

/// A certificate that a path may lead through.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) facts: &'a CertificateFacts,
    pub(crate) der: &'a [u8],
    raw: RawCertificate<'a>,
}

impl<'a> Node<'a> {
    pub(crate) fn new(facts: &'a CertificateFacts, der: &'a [u8]) -> Result<Self, ChainFault> {
        let raw = RawCertificate::parse(der).map_err(|e| ChainFault::Malformed(e.to_string()))?;
        Ok(Self { facts, der, raw })
    }
}

/// A path that holds.
pub(crate) struct Found {
    pub(crate) anchor: Arc<Anchor>,
    pub(crate) intermediates: usize,
    pub(crate) digest: PathDigest,
    pub(crate) held: Arc<HeldPath>,
    /// The last moment at which all of it is within its dates, by what lies above the leaf.
    pub(crate) above_ends: Timestamp,
}

/// What a search holds certificates against.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// What the leaf's own dates are held against.
    pub(crate) leaf_at: Timestamp,
    pub(crate) now: Timestamp,
    /// A path whose signatures were verified before: no other will do, and none of its signatures is verified again.
    pub(crate) verified: Option<PathDigest>,
}

impl Terms {
    /// Everything is checked, now.
    pub(crate) const fn at(now: Timestamp) -> Self {
        Self {
            leaf_at: now,
            now,
            verified: None,
        }
    }
}

/// One search for a path from `nodes[0]` over the other nodes to one of the anchors.
pub(crate) struct Search<'a> {
    nodes: Vec<Node<'a>>,
    anchors: &'a [Arc<Anchor>],
    /// All that is registered: what of it stands in the path may have ended.
    registered: &'a AnchorIndex,
    demands: &'a ChainDemands<'a>,
    terms: Terms,
    /// By node and signing key.
    signatures: Vec<(usize, &'a [u8], Result<(), RawFault>)>,
    steps: usize,
    lists: Option<CheckedLists<'a>>,
    /// Of several paths (cross-signed, overlapping roots) any that holds will do; the gravest fault is told if none does.
    fault: Option<ChainFault>,
    exhausted: bool,
}

impl<'a> Search<'a> {
    /// `nodes`: the leaf, then what may lie above it, in any order.
    pub(crate) fn new(
        nodes: Vec<Node<'a>>,
        anchors: &'a [Arc<Anchor>],
        registered: &'a AnchorIndex,
        demands: &'a ChainDemands<'a>,
        terms: Terms,
    ) -> Self {
        Self {
            nodes,
            anchors,
            registered,
            demands,
            terms,
            signatures: Vec::new(),
            steps: 0,
            lists: demands.lists.map(CheckedLists::new),
            fault: None,
            exhausted: false,
        }
    }

    /// The first path that holds.
    ///
    /// # Errors
    /// Why none does: what concerns the leaf alone first, then the first fault of a path whose signatures hold, then a
    /// signature that does not.
    pub(crate) fn run(&mut self) -> Result<Found, ChainFault> {
        let Some(leaf) = self.nodes.first().copied() else {
            return Err(ChainFault::Malformed("no certificate".into()));
        };
        sound(leaf.facts)?;
        in_time(leaf.facts, self.terms.leaf_at)?;
        if !leaf.facts.allows(&self.demands.purpose.usage()) {
            return Err(ChainFault::WrongUsage(self.demands.purpose.lacks()));
        }
        let mut path = vec![0];
        match self.extend(&mut path) {
            Some(found) => Ok(found),
            None if self.exhausted => Err(ChainFault::Budget),
            None => Err(self.fault.take().unwrap_or_else(|| ChainFault::UnknownCa {
                issuer: leaf.facts.issuer_text.clone(),
            })),
        }
    }

    fn note(&mut self, fault: ChainFault) {
        let is_signature = |f: &ChainFault| {
            matches!(
                f,
                ChainFault::BadSignature { .. } | ChainFault::SignatureAlgorithm
            )
        };
        match &self.fault {
            None => self.fault = Some(fault),
            Some(old) if is_signature(old) && !is_signature(&fault) => self.fault = Some(fault),
            Some(_) => {}
        }
    }

    /// Looks for what issued the last certificate of the path.
    fn extend(&mut self, path: &mut Vec<usize>) -> Option<Found> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            self.exhausted = true;
        }
        let child = *path.last()?;
        let issuer = self.nodes[child].facts.issuer_der.as_slice();
        for anchor in self.anchors {
            if self.exhausted {
                return None;
            }
            if anchor.facts.subject_der != issuer {
                continue;
            }
            let Ok(key) = anchor.key() else { continue };
            match self.signed(child, &key) {
                None => {}
                Some(Err(RawFault::Algorithm)) => self.note(ChainFault::SignatureAlgorithm),
                Some(Err(RawFault::Invalid)) => self.note(ChainFault::BadSignature {
                    authority: anchor.authority.to_string(),
                }),
                Some(Ok(())) => match self.check(path, anchor) {
                    Ok(digest) => {
                        let above = || path.iter().skip(1).map(|n| &self.nodes[*n]);
                        let ends = above().map(|n| n.facts.not_after);
                        let nodes: Vec<Node<'a>> = path.iter().map(|n| self.nodes[*n]).collect();
                        return Some(Found {
                            anchor: anchor.clone(),
                            intermediates: path.len() - 1,
                            digest,
                            held: Arc::new(HeldPath::of(anchor, registered::issued(&nodes, anchor))),
                            above_ends: ends.fold(anchor.facts.not_after, Timestamp::min),
                        });
                    }
                    Err(fault) => self.note(fault),
                },
            }
        }
        for (n, parent) in self.nodes.clone().into_iter().enumerate().skip(1) {
            if self.exhausted {
                return None;
            }
            if parent.facts.subject_der != issuer {
                continue;
            }
            // A path goes through a name and key once (RFC 4158 section 5.2).
            let seen = |p: &usize| {
                let other = &self.nodes[*p];
                other.facts.subject_der == parent.facts.subject_der
                    && other.facts.public_key_sha256 == parent.facts.public_key_sha256
            };
            if path.iter().any(seen) {
                continue;
            }
            if path.len() > self.demands.intermediates_max.min(INTERMEDIATES_MAX) {
                self.note(ChainFault::PathLength);
                continue;
            }
            if let Err(fault) = self.is_issuer(&parent) {
                self.note(fault);
                continue;
            }
            match self.signed(child, &parent.raw.key) {
                None => {}
                Some(Err(RawFault::Algorithm)) => self.note(ChainFault::SignatureAlgorithm),
                Some(Err(RawFault::Invalid)) => self.note(ChainFault::BadSignature {
                    authority: parent.facts.subject_text.clone(),
                }),
                Some(Ok(())) => {
                    path.push(n);
                    if let Some(found) = self.extend(path) {
                        return Some(found);
                    }
                    path.pop();
                }
            }
        }
        None
    }

    /// Whether a certificate is signed by a key; `None` if the budget is spent.
    fn signed(&mut self, child: usize, key: &RawKey<'a>) -> Option<Result<(), RawFault>> {
        // That it is the path whose signatures hold is seen at its end.
        if self.terms.verified.is_some() {
            return Some(Ok(()));
        }
        let known = |(c, k, _): &&(usize, &[u8], _)| *c == child && *k == key.der;
        if let Some((_, _, result)) = self.signatures.iter().find(known) {
            return Some(*result);
        }
        if self.signatures.len() >= SIGNATURES_MAX {
            self.exhausted = true;
            return None;
        }
        let result = self.nodes[child].raw.signed.verify(key);
        self.signatures.push((child, key.der, result));
        Some(result)
    }

    /// What a certificate must be to issue another (section 6.1.4 (k), (n), and its dates).
    fn is_issuer(&self, node: &Node<'_>) -> Result<(), ChainFault> {
        let facts = node.facts;
        sound(facts)?;
        if facts.ca.is_none() {
            return Err(ChainFault::IssuerNotCa(
                "a certificate that is no CA signed another",
            ));
        }
        if facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
            return Err(ChainFault::IssuerNotCa("keyUsage lacks keyCertSign"));
        }
        in_time(facts, self.terms.now)?;
        if !facts.allows(&self.demands.purpose.usage()) {
            return Err(ChainFault::WrongUsage(self.demands.purpose.lacks()));
        }
        Ok(())
    }

    /// Section 6.1 over a path whose signatures hold and whose issuers are CAs: `path` goes from the leaf upwards.
    fn check(&mut self, path: &[usize], anchor: &'a Arc<Anchor>) -> Result<PathDigest, ChainFault> {
        let digest = PathDigest::of(anchor, path.iter().map(|n| self.nodes[*n].facts));
        if self.terms.verified.is_some_and(|verified| verified != digest) {
            return Err(ChainFault::BadSignature {
                authority: anchor.authority.to_string(),
            });
        }
        check_anchor(anchor, self.demands, self.terms.now)?;
        let nodes: Vec<Node<'a>> = path.iter().map(|n| self.nodes[*n]).collect();
        path_length(&nodes, anchor)?;
        name_constraints(&nodes, anchor)?;
        policies(&nodes)?;
        registered::check(self.registered, self.anchors, &nodes, anchor, self.terms.now)?;
        self.revocation(&nodes, anchor)?;
        Ok(digest)
    }

    /// Every certificate of the path is on no list, and the lists say so.
    fn revocation(&mut self, nodes: &[Node<'a>], anchor: &'a Anchor) -> Result<(), ChainFault> {
        let Some(lists) = &mut self.lists else {
            return Ok(());
        };
        let malformed = |e: der::Error| ChainFault::Malformed(e.to_string());
        for (n, node) in nodes.iter().enumerate().rev() {
            // Certificates above bear one name twice where the CA changed its key; each was checked as part of this path.
            let mut issuers: Vec<_> = nodes[n + 1..]
                .iter()
                .filter(|above| above.facts.subject_der == node.facts.issuer_der)
                .map(|above| ListIssuer {
                    facts: above.facts,
                    key: above.raw.key,
                })
                .collect();
            if anchor.facts.subject_der == node.facts.issuer_der {
                issuers.push(ListIssuer {
                    facts: &anchor.facts,
                    key: anchor.key().map_err(malformed)?,
                });
            }
            let status = lists
                .status(node.facts, node.der, node.raw.serial, &issuers, self.terms.now)
                .map_err(malformed)?;
            registered::told(node, status)?;
        }
        Ok(())
    }
}

fn sound(facts: &CertificateFacts) -> Result<(), ChainFault> {
    match &facts.path.fault {
        Some(why) => Err(ChainFault::Malformed(why.to_string())),
        None => Ok(()),
    }
}

fn in_time(facts: &CertificateFacts, now: Timestamp) -> Result<(), ChainFault> {
    if now.unix_s() < facts.not_before.unix_s() {
        return Err(ChainFault::NotYetValid {
            not_before: facts.not_before,
        });
    }
    if now.unix_s() > facts.not_after.unix_s() {
        return Err(ChainFault::Expired {
            not_after: facts.not_after,
        });
    }
    Ok(())
}

/// What RFC 5280 leaves to us about an anchor: its state, its own dates, and what it says of itself.
fn check_anchor(anchor: &Anchor, demands: &ChainDemands<'_>, now: Timestamp) -> Result<(), ChainFault> {
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
    if anchor.facts.ca.is_none() {
        return Err(ChainFault::IssuerNotCa("the registered authority is no CA"));
    }
    if anchor.facts.key_usage.is_some_and(|u| !u.key_cert_sign) {
        return Err(ChainFault::IssuerNotCa(
            "the registered authority's keyUsage lacks keyCertSign",
        ));
    }
    if !anchor.facts.allows(&demands.purpose.usage()) {
        return Err(ChainFault::WrongUsage(demands.purpose.authority_lacks()));
    }
    Ok(())
}

/// Section 6.1.4 (l), (m): self-issued certificates do not count; the anchor's own limit does.
fn path_length(nodes: &[Node<'_>], anchor: &Anchor) -> Result<(), ChainFault> {
    let limit_of = |facts: &CertificateFacts| facts.ca.and_then(|c| c.path_length).map(usize::from);
    let mut left = limit_of(&anchor.facts).unwrap_or(usize::MAX);
    for issuer in nodes.iter().skip(1).rev() {
        if !issuer.facts.is_self_issued() {
            left = left.checked_sub(1).ok_or(ChainFault::PathLength)?;
        }
        left = left.min(limit_of(issuer.facts).unwrap_or(usize::MAX));
    }
    Ok(())
}

/// Section 6.1.3 (b), (c) and 6.1.4 (g).
fn name_constraints(nodes: &[Node<'_>], anchor: &Anchor) -> Result<(), ChainFault> {
    if anchor.names().is_none() && !nodes.iter().any(|n| n.facts.path.constrains_names) {
        return Ok(());
    }
    let own = nodes
        .iter()
        .map(|n| match n.facts.path.constrains_names {
            true => NameRules::parse(n.der).map_err(ChainFault::Malformed),
            false => Ok(None),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut rules: Vec<&NameRules> = anchor.names().into_iter().collect();
    let mut spent = 0;
    for (n, node) in nodes.iter().enumerate().rev() {
        if !rules.is_empty() && (n == 0 || !node.facts.is_self_issued()) {
            Names::parse(node.der)?.check(&rules, &mut spent)?;
        }
        rules.extend(&own[n]);
    }
    Ok(())
}

/// Section 6.1.3 (d) to (f), 6.1.4 (a), (b), (h) to (j), 6.1.5.
fn policies(nodes: &[Node<'_>]) -> Result<(), ChainFault> {
    if !nodes.iter().any(|n| n.facts.path.constrains_policies) {
        return Ok(());
    }
    let mut state = PolicyState::new(nodes.len());
    for (n, node) in nodes.iter().enumerate().rev() {
        let facts = PolicyFacts::parse(node.der)?;
        let self_issued = node.facts.is_self_issued();
        state.certificate(&facts, self_issued, n == 0)?;
        if n == 0 {
            return state.wrap_up(&facts);
        }
        state.descend(&facts, self_issued)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
