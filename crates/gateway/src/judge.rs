//! What is decided about a device, layer by layer, over the facts of a moment: the one code for whoever connects
//! ([`crate::exchange`]), for live sessions after a change ([`crate::session`]), and for who is only asked about
//! ([`crate::why`]).
//!
//! Nothing here waits, and nothing is kept: facts in, a verdict out.

use std::net::IpAddr;
use std::sync::Arc;

use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, CertificateFacts, ChainFault, DeviceId, Fingerprint,
    Generation, IdentityFields, TenantId, Timestamp, VerifiedChain,
};
use countersign_policy::decide::{AdmissionPermit, TenantPolicy};
use countersign_policy::exchange::ShownCertificate;
use countersign_policy::facts::{ConnectFacts, CredentialKind, RegistryUnavailable, TlsFacts};
use countersign_policy::first_contact::Contact;
use countersign_policy::{
    Admission as FirstContacts, ClientIdMode, CredentialFacts, CredentialState, Denial, DenialCode,
    DeviceFacts, FactSource, StationFacts,
};
use rustls::pki_types::CertificateDer;

use crate::session::entry::Admission;
use crate::session::spaces;

/// Under what a device comes: where from, by which handshake, when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// Where the connection comes from.
    pub source: IpAddr,
    /// What the handshake agreed on.
    pub tls: TlsFacts,
    /// When.
    pub now: Timestamp,
}

/// What is written down of the certificates that were shown, and what the first of them says.
pub fn shown(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> (ShownCertificate, Result<CertificateFacts, Denial>) {
    let chain_length = u8::try_from(intermediates.len() + 1).unwrap_or(u8::MAX);
    match CertificateFacts::parse(end_entity) {
        Ok(leaf) => {
            let shown = ShownCertificate {
                fingerprint: leaf.fingerprint,
                serial: leaf.serial.clone(),
                subject: leaf.subject_text.clone(),
                issuer: leaf.issuer_text.clone(),
                chain_length,
            };
            (shown, Ok(leaf))
        }
        Err(e) => {
            let shown = ShownCertificate {
                fingerprint: Fingerprint::of(end_entity),
                serial: String::new(),
                subject: String::new(),
                issuer: String::new(),
                chain_length,
            };
            let denial = Denial::new(DenialCode::ChainMalformed, e.to_string());
            (shown, Err(denial))
        }
    }
}

/// Judges a certificate with what was shown beside it: path, dates, revocation. `path` checks a path to one of the
/// anchors: [`VerifiedChain::verify`], or what comes to the same.
///
/// # Errors
/// The [`Denial`].
pub fn chain(
    facts: &dyn FactSource,
    asked: Option<&TenantId>,
    leaf: CertificateFacts,
    end_entity: &CertificateDer<'_>,
    now: Timestamp,
    path: impl FnOnce(&AnchorIndex, CertificateFacts) -> Result<VerifiedChain, ChainFault>,
) -> Result<VerifiedChain, Denial> {
    // Self-signed certificates alone are looked up before they are judged: registered ones vouch for themselves.
    let pinned = leaf
        .is_self_issued()
        .then(|| facts.credential(&leaf.fingerprint))
        .flatten()
        .filter(|c| c.kind == CredentialKind::Pinned);
    let chain = match pinned {
        Some(c) => VerifiedChain::pinned(&c.tenant, asked, c.device, leaf, end_entity, now),
        None => path(&facts.anchors(), leaf),
    }
    .map_err(|fault| Denial::from(&fault))?;
    let credential = facts.credential(&chain.leaf().fingerprint);
    if let Some(credential) = credential.filter(|c| c.state == CredentialState::Revoked) {
        return Err(Denial::new(
            DenialCode::CredentialRevoked,
            format!(
                "the certificate of device {} with serial {} is revoked",
                credential.device,
                chain.leaf().serial
            ),
        ));
    }
    Ok(chain)
}

/// The device that a certificate is of: by the authority's identity rule, or as it was registered.
///
/// # Errors
/// The [`Denial`] if it names none.
pub fn device_id(chain: &VerifiedChain) -> Result<DeviceId, Denial> {
    match chain.pinned_device() {
        // What a self-signed certificate calls itself means nothing.
        Some(device) => Ok(device.clone()),
        None => chain
            .anchor()
            .identity_rule
            .read(chain.leaf())
            .map_err(|fault| Denial::from(&fault)),
    }
}

/// Whether a certificate names the device still, by the identity rule that its authority has now. What is kept of a certificate
/// that vouches for itself is nothing.
///
/// # Errors
/// The [`Denial`] if it names none, or another.
pub fn names_still(
    facts: &dyn FactSource,
    authority: &AuthorityId,
    certificate: Option<&IdentityFields>,
    device: &DeviceId,
) -> Result<(), Denial> {
    let Some(certificate) = certificate else {
        return Ok(());
    };
    let anchor = facts.anchor(authority).ok_or(DenialCode::UnknownCa)?;
    let rule = &anchor.identity_rule;
    let named = rule
        .read_kept(certificate)
        .map_err(|fault| Denial::from(&fault))?;
    if named == *device {
        return Ok(());
    }
    Err(Denial::new(
        DenialCode::CredentialOfOther,
        format!("by {rule} the certificate names {named}, and its session is of {device}"),
    ))
}

/// Looks up device and credential. `None`: the credential is not known, and may be learned, which is asked for once
/// (`may_learn`).
///
/// # Errors
/// The [`Denial`].
pub fn identify(
    facts: &dyn FactSource,
    chain: &VerifiedChain,
    id: &DeviceId,
    may_learn: bool,
) -> Result<Option<(Arc<DeviceFacts>, CredentialFacts)>, Denial> {
    let (leaf, anchor) = (chain.leaf(), chain.anchor());
    let device = facts.device(&anchor.tenant, id);
    let registered = facts.credential(&leaf.fingerprint);
    let is_registered = registered.is_some();
    let credential = registered.filter(|c| c.tenant == anchor.tenant);
    match (device, credential) {
        (_, Some(c)) if c.device != *id => Err(Denial::new(
            DenialCode::CredentialOfOther,
            format!("the certificate names {id} but is registered for {}", c.device),
        )),
        (Some(device), Some(credential)) => Ok(Some((device, credential))),
        // Once is enough: what was learned is in the facts before it is answered.
        _ if !is_registered
            && may_learn
            && chain.pinned_device().is_none()
            && facts.admission(&anchor.authority) != FirstContacts::RegisteredOnly =>
        {
            Ok(None)
        }
        (device, _) => {
            // Nothing but its journal registers what a station issued.
            let station = facts.station(&anchor.tenant, &leaf.issuer_der);
            Err(match (station, device) {
                (Some(station), _) if !is_registered => station.denial(id),
                (_, Some(_)) => Denial::new(
                    DenialCode::UnknownCredential,
                    format!(
                        "device {id} is known, the certificate with serial {} is not",
                        leaf.serial
                    ),
                ),
                (_, None) => Denial::new(
                    DenialCode::UnknownDevice,
                    format!("tenant {} has no device {id}", anchor.tenant),
                ),
            })
        }
    }
}

/// What the registry is asked at first contact.
///
/// # Errors
/// The [`Denial`] if the certificate names no device.
pub fn contact(chain: &VerifiedChain) -> Result<Contact, Denial> {
    let anchor = chain.anchor();
    Ok(Contact {
        tenant: anchor.tenant.clone(),
        device: device_id(chain)?,
        authority: anchor.authority.clone(),
        certificate: chain.leaf().clone(),
    })
}

/// Lifecycle, credential state, policies: may a known device with a known credential come in?
///
/// # Errors
/// The [`Denial`]; also when facts cannot be trusted now.
pub fn connect(
    facts: &dyn FactSource,
    device: &DeviceFacts,
    credential: &CredentialFacts,
    authority: (&AuthorityId, Generation),
    circumstances: Circumstances,
) -> Result<(AdmissionPermit, Arc<TenantPolicy>), Denial> {
    facts
        .health()
        .map_err(|e| Denial::new(DenialCode::RegistryUnavailable, e.to_string()))?;
    let policy = facts.policy(&device.tenant).ok_or_else(|| {
        Denial::new(
            DenialCode::PolicyNoPermit,
            format!("tenant {} has no policies", device.tenant),
        )
    })?;
    let permit = policy.connect(&ConnectFacts {
        device,
        credential,
        authority: authority.0,
        authority_generation: authority.1,
        source: circumstances.source,
        tls: circumstances.tls,
        now: circumstances.now,
    })?;
    Ok((permit, policy))
}

/// Decides about a device by what was proven before, over the facts as they are now: what a live session is measured by
/// after a change.
///
/// # Errors
/// The [`Denial`].
pub fn anew(
    facts: &dyn FactSource,
    tenant: &TenantId,
    device: &DeviceId,
    fingerprint: &Fingerprint,
    authority: &AuthorityId,
    circumstances: Circumstances,
) -> Result<Admission, Denial> {
    facts
        .health()
        .map_err(|e| Denial::new(DenialCode::RegistryUnavailable, e.to_string()))?;
    let device = facts
        .device(tenant, device)
        .ok_or_else(|| Denial::new(DenialCode::UnknownDevice, format!("device {device} is gone")))?;
    of_device(facts, device, fingerprint, authority, circumstances)
}

/// The same of a device that is given, as it is or as it might be.
///
/// # Errors
/// The [`Denial`].
pub fn of_device(
    facts: &dyn FactSource,
    device: Arc<DeviceFacts>,
    fingerprint: &Fingerprint,
    authority: &AuthorityId,
    circumstances: Circumstances,
) -> Result<Admission, Denial> {
    let credential = facts
        .credential(fingerprint)
        .filter(|c| c.tenant == device.tenant && c.device == device.id)
        .ok_or(DenialCode::UnknownCredential)?;
    let (state, generation) = facts.authority(authority).ok_or(DenialCode::UnknownCa)?;
    if !state.admits() {
        let code = match state {
            AnchorState::Retired => DenialCode::AuthorityRetired,
            _ => DenialCode::AuthorityRevoked,
        };
        return Err(Denial::new(
            code,
            format!("the authority {authority} is {}", state.name()),
        ));
    }
    let (permit, policy) = connect(
        facts,
        &device,
        &credential,
        (authority, generation),
        circumstances,
    )?;
    admission(permit, device, policy)
}

/// Whether a device's tickets are declined for the sake of policies: these refuse it for coming by resumption, and let it in
/// by a full handshake. Where they read key exchange or cipher suite as well, which are not agreed on when a ticket is
/// opened, no ticket is taken.
pub fn needs_full_handshake(
    facts: &dyn FactSource,
    tenant: &TenantId,
    device: &DeviceId,
    fingerprint: &Fingerprint,
    authority: &AuthorityId,
    circumstances: Circumstances,
) -> bool {
    let reads = facts
        .policy(tenant)
        .map(|p| p.connect_reads())
        .unwrap_or_default();
    if !reads.resumed || reads.agreed {
        return reads.resumed;
    }
    let comes = |tls: TlsFacts| {
        let circumstances = Circumstances { tls, ..circumstances };
        anew(facts, tenant, device, fingerprint, authority, circumstances).is_ok()
    };
    let tls = circumstances.tls;
    !comes(tls.as_resumed()) && comes(tls.as_full())
}

/// A permit with what data is decided by.
///
/// # Errors
/// The [`Denial`] if a topic space of the policies has no valid filter.
pub fn admission(
    permit: AdmissionPermit,
    device: Arc<DeviceFacts>,
    policy: Arc<TenantPolicy>,
) -> Result<Admission, Denial> {
    let spaces = spaces::compiled(&policy)?;
    Ok(Admission {
        permit,
        device,
        policy,
        spaces,
    })
}

/// Whether a client id is one that the device may use.
///
/// # Errors
/// The [`Denial`].
pub fn client_id(mode: ClientIdMode, device: &DeviceId, asked: &str) -> Result<(), Denial> {
    let own = match mode {
        ClientIdMode::Strict => asked == device.as_str(),
        ClientIdMode::Prefix => {
            asked == device.as_str()
                || asked
                    .strip_prefix(device.as_str())
                    .is_some_and(|rest| rest.starts_with(':'))
        }
        ClientIdMode::Assigned => asked.is_empty() || asked == device.as_str(),
        ClientIdMode::Free => true,
    };
    if own {
        return Ok(());
    }
    Err(Denial::new(
        DenialCode::ClientIdMismatch,
        format!("device {device} asked for client id {asked:?}; the tenant's mode is {mode}"),
    ))
}

/// The facts with other policies for one tenant: what would be decided if these were in force.
pub struct Proposed<'a> {
    /// The facts as they are.
    pub facts: &'a dyn FactSource,
    /// The tenant.
    pub tenant: &'a TenantId,
    /// Its policies.
    pub policy: Arc<TenantPolicy>,
}

impl FactSource for Proposed<'_> {
    fn health(&self) -> Result<(), RegistryUnavailable> {
        self.facts.health()
    }

    fn anchors(&self) -> Arc<AnchorIndex> {
        self.facts.anchors()
    }

    fn tenant_by_host(&self, host: &str) -> Option<TenantId> {
        self.facts.tenant_by_host(host)
    }

    fn credential(&self, fingerprint: &Fingerprint) -> Option<CredentialFacts> {
        self.facts.credential(fingerprint)
    }

    fn device(&self, tenant: &TenantId, device: &DeviceId) -> Option<Arc<DeviceFacts>> {
        self.facts.device(tenant, device)
    }

    fn station(&self, tenant: &TenantId, issuer: &[u8]) -> Option<StationFacts> {
        self.facts.station(tenant, issuer)
    }

    fn authority(&self, authority: &AuthorityId) -> Option<(AnchorState, Generation)> {
        self.facts.authority(authority)
    }

    fn anchor(&self, authority: &AuthorityId) -> Option<Arc<Anchor>> {
        self.facts.anchor(authority)
    }

    fn admission(&self, authority: &AuthorityId) -> FirstContacts {
        self.facts.admission(authority)
    }

    fn client_id_mode(&self, tenant: &TenantId) -> ClientIdMode {
        self.facts.client_id_mode(tenant)
    }

    fn policy(&self, tenant: &TenantId) -> Option<Arc<TenantPolicy>> {
        if tenant == self.tenant {
            return Some(self.policy.clone());
        }
        self.facts.policy(tenant)
    }
}
