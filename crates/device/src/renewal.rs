//! Certificates for life: the first one, the next one before the last one ends, and the first connection of each.
//!
//! 1. [`enrol`]: the first certificate, by a one-time secret or by another certificate
//! 2. [`renew`]: the next one, by the one in use; it waits in its slot
//! 3. [`connect`]: the next one is tried first, and put in use when it was admitted
//! 4. [`Keeper`]: does 2 by itself while the device runs

mod keeper;
mod window;

pub use keeper::{Keeper, News};
pub use window::RenewalWindow;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_factory::est::Bundle;
use countersign_factory::{CertificateRequest, renewal_proof};
use countersign_identity::signed::Signer;
use countersign_identity::{CertificateFacts, DeviceId};
use rustls::pki_types::CertificateDer;

use crate::aside::Aside;
use crate::beside;
use crate::est::{EstClient, EstServer, Secret, Word, chain_above, device_of};
use crate::fault::{EnrolFault, LinkFault};
use crate::folder::{IdentityFolder, KeyReuse, Renewing, is_for};
use crate::identity::{DeviceIdentity, DeviceProfile, IdentityFault};
use crate::keys::{DeviceKey, KeyStore};
use crate::link::{Link, LinkOptions};

/// How long each step of an enrolment may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The longest that a renewal may take, with all its steps. Only a key that does not answer takes longer.
pub(crate) const RENEWAL_PATIENCE: Duration = Duration::from_secs(150);
/// The time is written down when it has moved on by so much: a flash has only so many writes.
const SAVE_TIME_AFTER: Duration = Duration::from_secs(3600);

/// By what a device asks for its first certificate.
#[derive(Debug)]
pub enum Proof {
    /// A one-time secret, or a claim's.
    Secret(Secret),
    /// A certificate that the platform admits: the factory's, or a claim's.
    Certificate {
        /// The certificate, and those above it.
        chain: Vec<CertificateDer<'static>>,
        /// Its key.
        key: DeviceKey,
    },
    /// What its TPM says, which the platform knows to be in this device.
    Tpm,
}

/// How a device enrols.
#[derive(Debug)]
pub struct Enrolment {
    /// Where.
    pub server: EstServer,
    /// Whom to believe to be the platform, where the folder pins nobody yet. Nothing is pinned before the platform that such a
    /// root vouches for has issued the certificate: a wrong one is simply replaced by the right one.
    pub platform_roots: Vec<CertificateDer<'static>>,
    /// As whom; what the certificate that comes says, if it is not given.
    pub device: Option<DeviceId>,
    /// By what.
    pub proof: Proof,
    /// Whether an identity that is there may be replaced, once the new one has connected.
    pub again: bool,
    /// Where its keys are made, from now on; where those of the identity that is replaced were, if nothing is said, and in
    /// the folder if there is none.
    pub key_store: Option<KeyStore>,
    /// Whether its TPM says how it holds the key, now and of each key after it.
    pub attest: bool,
}

impl Enrolment {
    /// A first one, with the keys in the folder.
    pub fn new(server: EstServer, proof: Proof) -> Self {
        Self {
            server,
            platform_roots: Vec::new(),
            device: None,
            proof,
            again: false,
            key_store: None,
            attest: false,
        }
    }

    /// With the roots to believe the platform by, where none are pinned.
    #[must_use]
    pub fn believing(mut self, roots: Vec<CertificateDer<'static>>) -> Self {
        self.platform_roots = roots;
        self
    }

    /// As this device, and no other.
    #[must_use]
    pub fn of(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }

    /// With the keys made there, now and at each renewal.
    #[must_use]
    pub fn keys_in(mut self, store: KeyStore) -> Self {
        self.key_store = Some(store);
        self
    }

    /// With each key attested by the TPM that it is in.
    #[must_use]
    pub fn attested(mut self) -> Self {
        self.attest = true;
        self
    }
}

/// Asks for a certificate, and keeps it. Safe to repeat: the key is kept, and the same request gets the same answer. What the
/// device's people may want to know beside that is said.
///
/// # Errors
/// [`EnrolFault`].
pub async fn enrol(
    folder: &IdentityFolder,
    enrolment: &Enrolment,
    say: &(dyn Fn(&str) + Sync),
) -> Result<DeviceProfile, EnrolFault> {
    if folder.has_identity() && !enrolment.again {
        return Err(IdentityFault::Exists(folder.path().to_owned()).into());
    }
    let server = &enrolment.server;
    let (shown, secret) = match &enrolment.proof {
        Proof::Secret(secret) => (None, Some(secret)),
        Proof::Certificate { chain, key } => (Some((chain.as_slice(), key)), None),
        Proof::Tpm => (None, None),
    };
    let roots = folder.roots_or(&enrolment.platform_roots)?;
    let mut client = EstClient::connect(server, &roots, folder.clock(), shown).await?;
    let bundle = client.bundle().await?;
    let replaces = folder.has_identity();
    folder.make()?;
    let _renewing = renewing(folder).await?;
    let before = replaces.then(|| folder.profile()).transpose()?;
    let key_store = match (&enrolment.key_store, &before) {
        (Some(store), _) => store.clone(),
        (None, Some(before)) => before.key_store.clone(),
        (None, None) => KeyStore::File,
    };
    // A device whose keys are attested does not cease to be one by enrolling again.
    let was_attested = before.as_ref().is_some_and(|p| p.attest);
    let attest = enrolment.attest || was_attested && matches!(key_store, KeyStore::Tpm { .. });
    let key = if replaces {
        folder.begin_in(&key_store, KeyReuse::New)?
    } else {
        folder.first_key(&key_store)?
    };
    let name = match (&enrolment.device, secret, shown) {
        (Some(device), _, _) => device.to_string(),
        (None, Some(secret), _) => secret.user.clone(),
        (None, None, _) => "device".to_owned(),
    };
    let request = CertificateRequest::der_with_name(&*key, &name).map_err(key_fault)?;
    let attestation = if attest {
        let known = before.as_ref().map(|p| &p.id);
        let device = enrolment.device.as_ref().or(known).ok_or_else(|| {
            EnrolFault::Usage("an attestation is of one device; hint: name it by --id".into())
        })?;
        let waiting = folder.waiting_key(&key_store)?;
        Some(attested(&mut client, &waiting, &server.tenant, device).await?)
    } else {
        None
    };
    let by = Word {
        secret,
        word: None,
        attestation: attestation.as_deref(),
    };
    let leaf = client.enrol(&request, by).await?;
    let (chain, facts) = checked(leaf, &*key, &bundle)?;
    let device = device_of(&facts)
        .filter(|d| enrolment.device.as_ref().is_none_or(|asked| asked == d))
        .ok_or_else(|| IdentityFault::NotOurs(format!("it is for {}", facts.subject_text)))?;
    let profile = DeviceProfile {
        id: device,
        // The name that led here is one that the platform's certificate has.
        host: server.host.clone(),
        port: bundle.port,
        tenant: server.tenant.clone(),
        enrol_port: Some(server.port),
        certificate_profile: server.profile.clone(),
        key_store,
        attest,
    };
    // Before the identity is there: it is of no use without.
    pin(folder, &client, &bundle)?;
    if replaces {
        folder.complete_in(&profile.key_store, &chain)?;
        folder.save_profile(&profile)?;
    } else {
        folder.enrolled(&profile, &chain)?;
    }
    folder.save_time(folder.clock().now())?;
    if !replaces {
        beside::keep(&folder.load()?, None, say).await;
    }
    Ok(profile)
}

/// What a renewal brought.
#[derive(Debug, Clone)]
pub struct Renewed {
    /// The next certificate; the one in use, if the platform has no other for its key yet.
    pub certificate: CertificateFacts,
    /// Why its key was not attested, though it was to be.
    pub unattested: Option<String>,
}

/// Renews the certificate that is in use: the next one is in its slot afterwards, and in use after its first connection.
///
/// # Errors
/// [`EnrolFault`]; the one in use stays.
pub async fn renew(folder: &IdentityFolder, reuse: KeyReuse) -> Result<Renewed, EnrolFault> {
    let identity = folder.load()?;
    // One process renews at a time; whoever waited for another takes what that one got. One that cannot be read is none.
    let waiting = || folder.pending().ok().flatten().map(|p| p.facts);
    let before = waiting().map(|facts| facts.fingerprint);
    let _renewing = renewing(folder).await?;
    if let Some(certificate) = waiting()
        && before != Some(certificate.fingerprint)
    {
        return Ok(Renewed {
            certificate,
            unattested: None,
        });
    }
    let mut client = client_of(&identity).await?;
    let bundle = client.bundle().await?;
    pin(folder, &client, &bundle)?;
    let mut next = NextKey::begin(folder, &identity, &mut client, reuse).await?;
    let mut renewed = next.reenrol(&identity, &mut client).await;
    if next.unattested.is_some() && renewed.as_ref().is_err_and(is_final) {
        // The profile wants another key: one that nobody attested is better than none.
        folder.abandon()?;
        next.key = folder.begin(KeyReuse::New)?;
        renewed = next.reenrol(&identity, &mut client).await;
    }
    let leaf = match renewed {
        Ok(leaf) => leaf,
        Err(fault) => {
            // A definite no may be about the very key; the next try has another.
            if is_final(&fault) {
                folder.abandon()?;
            }
            return Err(fault);
        }
    };
    let (chain, certificate) = checked(leaf, &*next.key, &bundle)?;
    // The platform names devices in its own way: a certificate that was brought along may have had another subject.
    let is_ours = certificate.subject_der == identity.facts.subject_der
        || certificate.subject_common_names == [identity.profile.id.as_str()];
    if !is_ours {
        return Err(IdentityFault::NotOurs(format!("it is for {}", certificate.subject_text)).into());
    }
    if certificate.fingerprint == identity.facts.fingerprint {
        // For the same key there is no other before two thirds of its life: nothing waits for a connection.
        folder.abandon()?;
    } else {
        folder.complete(&chain)?;
    }
    Ok(Renewed {
        certificate,
        unattested: next.unattested,
    })
}

/// Whether the platform said no, and will again.
fn is_final(fault: &EnrolFault) -> bool {
    matches!(fault, EnrolFault::Refused { .. }) && !fault.is_passing()
}

/// The key of the next certificate.
struct NextKey {
    key: Arc<dyn Signer>,
    /// What its TPM's word is cited by.
    attestation: Option<String>,
    unattested: Option<String>,
}

impl NextKey {
    /// A new one, attested where that is wanted. If the platform believes this TPM no more, whose maker it may have ceased to
    /// trust, the key in use serves once more: what is known of that one is known.
    async fn begin(
        folder: &IdentityFolder,
        identity: &DeviceIdentity,
        client: &mut EstClient,
        reuse: KeyReuse,
    ) -> Result<Self, EnrolFault> {
        let profile = &identity.profile;
        let mut next = Self {
            key: folder.begin(reuse)?,
            attestation: None,
            unattested: None,
        };
        if reuse == KeyReuse::New && profile.attest {
            let waiting = folder.waiting_key(&profile.key_store)?;
            match attested(client, &waiting, &profile.tenant, &profile.id).await {
                Ok(attestation) => next.attestation = Some(attestation),
                Err(fault) if is_final(&fault) => {
                    folder.abandon()?;
                    next.key = folder.begin(KeyReuse::Same)?;
                    next.unattested = Some(fault.to_string());
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(next)
    }

    async fn reenrol(
        &self,
        identity: &DeviceIdentity,
        client: &mut EstClient,
    ) -> Result<Vec<u8>, EnrolFault> {
        let request =
            CertificateRequest::with_subject(&*self.key, &identity.facts.subject_der).map_err(key_fault)?;
        let word = word_of(identity, &request);
        let by = Word {
            secret: None,
            word: word.as_deref(),
            attestation: self.attestation.as_deref(),
        };
        client.reenrol(&request, by).await
    }
}

#[cfg(feature = "tpm")]
use crate::attest::attest as attested;

/// Without TPMs there is none that could say anything.
#[cfg(not(feature = "tpm"))]
async fn attested(
    _: &mut EstClient,
    _: &DeviceKey,
    _: &countersign_identity::TenantId,
    _: &DeviceId,
) -> Result<String, EnrolFault> {
    std::future::ready(Err(EnrolFault::Key(crate::keys::KeyStoreFault::NoTpm))).await
}

/// [`renew`], while the caller's thread goes on.
pub(crate) async fn renew_aside(
    aside: &Aside,
    folder: &Path,
    reuse: KeyReuse,
) -> Result<Renewed, EnrolFault> {
    let folder = IdentityFolder::new(folder);
    let renewing = move || async move { renew(&folder, reuse).await };
    aside.run(RENEWAL_PATIENCE, renewing).await?
}

/// [`update_roots`], while the caller's thread goes on.
async fn update_roots_aside(aside: &Aside, folder: &Path) -> Result<usize, EnrolFault> {
    let folder = IdentityFolder::new(folder);
    let updating = move || async move { update_roots(&folder).await };
    aside.run(RENEWAL_PATIENCE, updating).await?
}

/// The right to renew, once no other process has it.
async fn renewing(folder: &IdentityFolder) -> Result<Renewing, EnrolFault> {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(right) = folder.try_renewing()? {
            return Ok(right);
        }
        if tokio::time::Instant::now() >= end {
            return Err(EnrolFault::Usage(
                "another process renews this identity, and does not end; hint: look for it, then try again"
                    .into(),
            ));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The old key's word for the request. TLS proves that key to the platform's server; a CA behind it may want to see for
/// itself. `None` for a key of another kind than we make: then the server's word must do.
fn word_of(identity: &DeviceIdentity, request: &[u8]) -> Option<Vec<u8>> {
    let old = identity.key.signer().ok()??;
    renewal_proof::create(&*old, identity.chain.first()?, request).ok()
}

/// Fetches the trust bundle, and pins what it says: which of our roots is new, if any.
///
/// # Errors
/// [`EnrolFault`]; the roots that were pinned stay.
pub async fn update_roots(folder: &IdentityFolder) -> Result<usize, EnrolFault> {
    let identity = folder.load()?;
    let mut client = client_of(&identity).await?;
    let bundle = client.bundle().await?;
    pin(folder, &client, &bundle)
}

pub(crate) async fn client_of(identity: &DeviceIdentity) -> Result<EstClient, EnrolFault> {
    let profile = &identity.profile;
    let Some(port) = profile.enrol_port else {
        return Err(EnrolFault::Usage(
            "device.json names no enrol_port, so nothing can be renewed over the network; hint: have the platform open a listener of purpose enrol, and write its port into device.json".into(),
        ));
    };
    let server = EstServer {
        host: profile.host.clone(),
        port,
        tenant: profile.tenant.clone(),
        profile: profile.certificate_profile.clone(),
        patience: PATIENCE,
    };
    let shown = Some((identity.chain.as_slice(), &identity.key));
    EstClient::connect(&server, &identity.platform_roots, identity.clock, shown).await
}

/// Pins the bundle's roots. It came over a connection that a pinned root vouched for; that root stays, so that the next
/// connection to the same server still holds, and whoever has none of our roots cannot bring one in.
fn pin(folder: &IdentityFolder, client: &EstClient, bundle: &Bundle) -> Result<usize, EnrolFault> {
    let mut roots: Vec<CertificateDer<'static>> = bundle
        .platform_roots()
        .map_err(|e| EnrolFault::Answer(e.to_string()))?
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    if !roots.contains(client.authenticated_by()) {
        roots.push(client.authenticated_by().clone());
    }
    // None, or none that can be read, before the first enrolment.
    let old = folder.roots().unwrap_or_default();
    let new = roots.iter().filter(|r| !old.contains(r)).count();
    if new > 0 || roots.len() != old.len() {
        folder.pin(&roots)?;
    }
    Ok(new)
}

/// The certificate with what is above it, if it is for our key.
fn checked(
    leaf: Vec<u8>,
    key: &dyn Signer,
    bundle: &Bundle,
) -> Result<(Vec<Vec<u8>>, CertificateFacts), EnrolFault> {
    let facts = is_for(Some(&leaf), key)?;
    let set = bundle
        .device_authorities()
        .map_err(|e| EnrolFault::Answer(e.to_string()))?;
    let mut chain = vec![leaf];
    chain.extend(chain_above(&facts, &set));
    Ok((chain, facts))
}

fn key_fault(e: countersign_factory::key::KeyFault) -> EnrolFault {
    EnrolFault::Usage(format!("the request cannot be made: {e}"))
}

/// Connects by the next certificate, if one waits for its first connection, else by the one in use. Once the platform
/// has admitted the next one, it is in use, and the old key is gone. If it refuses the next one and admits the old one, the
/// next one is thrown away, and is renewed anew.
///
/// # Errors
/// [`EnrolFault`] with what the connection or the folder says.
pub async fn connect(
    folder: &IdentityFolder,
    options: &LinkOptions,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(Link, DeviceIdentity), EnrolFault> {
    let admitted = admit(folder, options, say).await?;
    if let Some(fault) = admitted.unkept {
        say(&format!("warning: {fault}"));
    }
    Ok((admitted.link, admitted.identity))
}

/// A device that was admitted.
pub(crate) struct Admitted {
    pub(crate) link: Link,
    pub(crate) identity: DeviceIdentity,
    /// What could not be written down of it; [`keep_admitted`] is to be tried again.
    pub(crate) unkept: Option<IdentityFault>,
}

/// As [`connect`]. A disk that takes no writes is no reason to give up a session.
pub(crate) async fn admit(
    folder: &IdentityFolder,
    options: &LinkOptions,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Admitted, EnrolFault> {
    let mut refused = None;
    let next = match folder.pending() {
        Ok(next) => next,
        // The one in use may be sound all the same.
        Err(fault) => {
            say(&format!(
                "the new certificate cannot be used: {fault}; trying the old one"
            ));
            None
        }
    };
    if let Some(next) = next {
        match Link::connect(&next, options).await {
            Ok(link) => {
                // Before the old key is gone from the folder: then its place is known.
                beside::keep(&next, folder.load().ok().as_ref(), say).await;
                say(&format!(
                    "the new certificate {} is in use, until {}",
                    next.facts.serial, next.facts.not_after
                ));
                let unkept = keep_admitted(folder, &next).err();
                return Ok(Admitted {
                    link,
                    identity: next,
                    unkept,
                });
            }
            // Its token or TPM is away. The old key may be elsewhere; the new one is not given up for it.
            Err(fault @ LinkFault::Key(_)) => {
                say(&format!(
                    "the new certificate cannot be used: {fault}; trying the old one"
                ));
            }
            // Says nothing about the certificate: the old one would fare no better.
            Err(fault) if fault.is_passing() => return Err(fault.into()),
            Err(fault) => {
                say(&format!(
                    "the new certificate was not admitted: {fault}; trying the old one"
                ));
                refused = Some(next.facts.fingerprint);
            }
        }
    }
    let identity = folder.load()?;
    let link = Link::connect(&identity, options).await?;
    // If it stays, it is tried, refused and discarded once more at the next connection.
    let discarded = refused.map_or(Ok(()), |refused| folder.discard(&refused));
    let unkept = discarded.and_then(|()| keep_admitted(folder, &identity)).err();
    Ok(Admitted {
        link,
        identity,
        unkept,
    })
}

/// Writes down that a certificate was admitted: if it is the next one, it is in use from now on; and the time.
///
/// # Errors
/// [`IdentityFault`]; until it succeeds the next certificate stays the one that is tried first.
pub(crate) fn keep_admitted(folder: &IdentityFolder, identity: &DeviceIdentity) -> Result<(), IdentityFault> {
    folder.promote(&identity.facts.fingerprint)?;
    save_time(folder, identity)
}

fn save_time(folder: &IdentityFolder, identity: &DeviceIdentity) -> Result<(), IdentityFault> {
    let now = identity.clock.now();
    if now.since(folder.saved_time()) >= SAVE_TIME_AFTER {
        folder.save_time(now)?;
    }
    Ok(())
}

/// Whether a fault of a link says that another certificate is needed.
pub fn needs_renewal(fault: &LinkFault) -> bool {
    // certificate_expired (RFC 8446 section 6.2)
    matches!(fault, LinkFault::CertificateRefused { number: 45, .. })
}
