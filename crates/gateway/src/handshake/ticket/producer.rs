//! The ticket producer of one listener: what rustls calls, in the lent context of a connection.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{AuthorityId, CertificateFacts, Fingerprint, TenantId, Timestamp, VerifiedChain};
use countersign_policy::facts::TlsFacts;
use countersign_policy::{CredentialFacts, CredentialState, FactSource, Possession};
use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;

use super::facts::{self, TicketFacts, TicketVersion};
use super::{AGE_MAX, Decline, Resumed, TRIED_MAX, TicketCounts, TicketKeys, TicketSettings};
use crate::handshake::context::{self, HandshakeContext};
use crate::judge::{self, Circumstances};
use crate::metrics::count;
use crate::node::Node;

/// Makes and opens the tickets of one listener. Fails closed outside of a lent context: no ticket, none taken.
#[derive(Debug)]
pub struct DeviceTickets {
    listener: Arc<str>,
    keys: Arc<TicketKeys>,
    settings: TicketSettings,
    counts: Arc<TicketCounts>,
}

impl DeviceTickets {
    /// For the listener of this name.
    pub fn new(
        listener: Arc<str>,
        keys: Arc<TicketKeys>,
        settings: TicketSettings,
        counts: Arc<TicketCounts>,
    ) -> Self {
        Self {
            listener,
            keys,
            settings,
            counts,
        }
    }

    #[cfg(test)]
    pub(super) fn counts_for_test(&self) -> &TicketCounts {
        &self.counts
    }

    /// The certificate of a ticket of ours that may be taken now, as far as this is cheap to say. Nobody proved to have it:
    /// it says where a handshake stands that waits, and whether a device that comes far too often is behind it.
    pub(crate) fn opens(&self, ticket: &[u8], asked: Option<&TenantId>, node: &Node) -> Option<Fingerprint> {
        let (facts, ..) = self
            .current(ticket, asked, node.facts.as_ref(), node.now())
            .ok()?;
        Some(facts.fingerprint)
    }

    /// Opens a ticket, and checks its age, its authority and its credential.
    fn current(
        &self,
        ticket: &[u8],
        asked: Option<&TenantId>,
        known: &dyn FactSource,
        now: Timestamp,
    ) -> Result<(TicketFacts, CredentialFacts, Vec<u8>), Decline> {
        let (tenant, body) = self.keys.unseal(&self.listener, ticket)?;
        if asked.is_some_and(|asked| *asked != tenant) {
            return Err(Decline::OtherTenant);
        }
        if self.settings.tenants_off.contains(&tenant) {
            return Err(Decline::Off);
        }
        let facts = TicketFacts::decode(&body).ok_or(Decline::Malformed)?;
        self.check_age(facts.proven_at, now)?;
        // Equality, never order: a registry that was restored begins elsewhere.
        let authority = known.authority(&facts.authority);
        if !authority
            .is_some_and(|(state, generation)| state.admits() && generation == facts.authority_generation)
        {
            return Err(Decline::AuthorityChanged);
        }
        let credential = known
            .credential(&facts.fingerprint)
            .filter(|c| c.tenant == tenant && c.generation == facts.credential)
            .filter(|c| c.state == CredentialState::Active)
            .ok_or(Decline::CredentialChanged)?;
        Ok((facts, credential, body))
    }

    fn age_max(&self) -> Duration {
        self.settings.age_max.min(AGE_MAX)
    }

    /// How long a ticket of what `proven` says is still good; `None` if it is not.
    fn remaining(&self, context: &HandshakeContext, proven: &Proven<'_>) -> Option<Duration> {
        let (now, not_after) = (context.now, proven.chain.not_after());
        if now < proven.at || not_after < now {
            return None;
        }
        let left = self.age_max().checked_sub(now.since(proven.at))?;
        Some(left.min(not_after.since(now))).filter(|left| left.as_secs() > 0)
    }

    fn make(&self, context: &HandshakeContext, plain: &[u8]) -> Option<Vec<u8>> {
        let proven = Proven::of(context)?;
        self.remaining(context, &proven)?;
        let (leaf, anchor) = (proven.chain.leaf(), proven.chain.anchor());
        if self.settings.tenants_off.contains(&anchor.tenant) {
            return None;
        }
        // Not `issued`: its first use, which is under way, changes it, and the ticket would be declined.
        let credential = context.facts.credential(&leaf.fingerprint)?;
        if credential.tenant != anchor.tenant || credential.state != CredentialState::Active {
            return None;
        }
        let facts = TicketFacts {
            version: context.version,
            proven_at: proven.at,
            fingerprint: leaf.fingerprint,
            credential: credential.generation,
            authority: anchor.authority.clone(),
            authority_generation: anchor.generation,
            path: proven.chain.path(),
            // Were the library ever to keep them otherwise, there would be no tickets.
            chain_at: facts::find_chain(plain, context.leaf_der.as_deref()?)?,
        };
        let mut body = Vec::with_capacity(TicketFacts::BYTES + plain.len());
        facts.encode(&mut body);
        body.extend_from_slice(plain);
        self.keys.seal(&self.listener, &anchor.tenant, &body)
    }

    /// Opens a ticket, and checks everything that TLS skips if it is taken.
    fn take(&self, context: &mut HandshakeContext, ticket: &[u8]) -> Result<Vec<u8>, Decline> {
        // What a ticket before this one in the same ClientHello brought was not taken.
        context.resumed = None;
        context.tickets_tried += 1;
        if context.tickets_tried > TRIED_MAX {
            return Err(Decline::TooMany);
        }
        let (known, now) = (context.facts.clone(), context.now);
        let (facts, credential, mut body) =
            self.current(ticket, context.asked.as_ref(), known.as_ref(), now)?;
        if facts.version != context.version {
            return Err(Decline::TlsVersion);
        }
        let tenant = credential.tenant.clone();
        let plain = body.split_off(TicketFacts::BYTES);
        let chain_at = usize::try_from(facts.chain_at).map_err(|_| Decline::Malformed)?;
        let (leaf_der, above) = facts::certificates(&plain, chain_at).ok_or(Decline::Malformed)?;
        let chain = chain_again(context, &facts, credential, leaf_der, &above)?;
        if is_held_against(context, &tenant, &chain) {
            return Err(Decline::Policy);
        }
        context.leaf_der = Some(leaf_der.into());
        context.resumed = Some(Resumed {
            chain,
            proven_at: facts.proven_at,
            chain_length: u8::try_from(above.len() + 1).unwrap_or(u8::MAX),
        });
        Ok(plain)
    }

    fn check_age(&self, proven_at: Timestamp, now: Timestamp) -> Result<(), Decline> {
        if now < proven_at {
            Err(Decline::ClockBehind)
        } else if now.since(proven_at) >= self.age_max() {
            Err(Decline::Age)
        } else {
            Ok(())
        }
    }
}

/// The path at this moment: dates, states, lists, all but the signatures, which are those of the ticket's path.
fn chain_again(
    context: &HandshakeContext,
    facts: &TicketFacts,
    credential: CredentialFacts,
    leaf_der: &[u8],
    above: &[&[u8]],
) -> Result<VerifiedChain, Decline> {
    let leaf = CertificateFacts::parse(leaf_der).map_err(|_| Decline::Malformed)?;
    if leaf.fingerprint != facts.fingerprint {
        return Err(Decline::Malformed);
    }
    let (leaf_der, tenant) = (CertificateDer::from(leaf_der), &credential.tenant);
    // As in a full handshake: without a server name the anchor chooses, and one that two tenants have chooses none.
    let asked = context.asked.as_ref();
    let chain = if facts.authority == AuthorityId::pinned() {
        let device = credential.device;
        VerifiedChain::pinned_again(tenant, asked, device, leaf, &leaf_der, context.now, facts.path)
    } else {
        let above: Vec<_> = above.iter().map(|der| CertificateDer::from(*der)).collect();
        let anchors = context.facts.anchors();
        VerifiedChain::verify_again(&anchors, asked, leaf, &leaf_der, &above, context.now, facts.path)
    };
    let chain = chain.map_err(|_| Decline::Chain)?;
    if chain.anchor().tenant != *tenant {
        return Err(Decline::Chain);
    }
    Ok(chain)
}

/// Whether policies would refuse the session for being resumed. Of the handshake no more than the version is known yet.
fn is_held_against(context: &HandshakeContext, tenant: &TenantId, chain: &VerifiedChain) -> bool {
    let facts = context.facts.as_ref();
    // One that names nobody is refused in its own words.
    let Ok(device) = judge::device_id(chain) else {
        return false;
    };
    let circumstances = Circumstances {
        source: context.source,
        tls: match context.version {
            TicketVersion::Tls13 => TlsFacts::ASSUMED,
            TicketVersion::Tls12 => TlsFacts::ASSUMED_TLS12,
        },
        now: context.now,
    };
    let (fingerprint, authority) = (&chain.leaf().fingerprint, &chain.anchor().authority);
    judge::needs_full_handshake(facts, tenant, &device, fingerprint, authority, circumstances)
}

/// Who is at the other end, and since when that is known.
struct Proven<'a> {
    chain: &'a VerifiedChain,
    at: Timestamp,
}

impl<'a> Proven<'a> {
    /// By a full handshake with possession proven, or by the ticket that was taken; `None` if by neither.
    fn of(context: &'a HandshakeContext) -> Option<Self> {
        match (&context.verdict, &context.resumed, context.possession) {
            (Some(Ok(chain)), _, Possession::Proven) => Some(Self {
                chain,
                at: context.now,
            }),
            (None, Some(resumed), _) => Some(Self {
                chain: &resumed.chain,
                at: resumed.proven_at,
            }),
            _ => None,
        }
    }
}

impl ProducesTickets for DeviceTickets {
    fn enabled(&self) -> bool {
        true
    }

    /// Asked right after a ticket was made: what is left of its time, which a chain of resumptions never prolongs.
    fn lifetime(&self) -> u32 {
        let left =
            context::with(|context| Proven::of(context).and_then(|proven| self.remaining(context, &proven)));
        let left = left.flatten().unwrap_or_else(|| self.age_max());
        u32::try_from(left.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let ticket = context::with(|context| self.make(context, plain)).flatten();
        count(match ticket {
            Some(_) => &self.counts.issued,
            None => &self.counts.withheld,
        });
        ticket
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        context::with(|context| match self.take(context, ticket) {
            Ok(plain) => {
                count(&self.counts.opened);
                Some(plain)
            }
            Err(why) => {
                self.counts.declined(why);
                context.declined = Some(why);
                None
            }
        })
        .flatten()
    }
}
