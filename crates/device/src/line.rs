//! On the factory line: a certificate that others had issued is put beside the key, the key is proven, the platform is told.

use countersign_factory::confirmation::{Confirm, Confirmed, PATH};
use countersign_factory::station::challenge;
use countersign_identity::{CertificateFacts, Fingerprint};
use rustls::pki_types::CertificateDer;

use crate::beside;
use crate::fault::EnrolFault;
use crate::folder::{IdentityFolder, is_for};
use crate::identity::{DeviceProfile, IdentityFault};
use crate::renewal::client_of;

/// What was issued elsewhere for the key that waits in the folder.
#[derive(Debug, Clone)]
pub struct Handed {
    /// Who the device is, and where it connects.
    pub profile: DeviceProfile,
    /// The certificate, and those above it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The platform's roots.
    pub platform_roots: Vec<CertificateDer<'static>>,
}

/// Puts what was issued elsewhere beside the key that waits for it. Safe to repeat: what is there already is not touched. A token
/// or TPM without room for the certificate is said.
///
/// # Errors
/// [`IdentityFault::NotOurs`] if it is for another key or device, [`IdentityFault::Exists`] if there is another certificate;
/// nothing was changed then.
pub fn install(
    folder: &IdentityFolder,
    handed: Handed,
    say: &dyn Fn(&str),
) -> Result<CertificateFacts, EnrolFault> {
    let mut profile = handed.profile;
    let leaf = handed
        .chain
        .first()
        .ok_or_else(|| IdentityFault::NotOurs("there is no certificate".into()))?;
    let facts = CertificateFacts::parse(leaf).map_err(|e| IdentityFault::NotOurs(e.to_string()))?;
    if folder.has_identity() {
        let there = folder.load()?;
        if there.facts.fingerprint == facts.fingerprint {
            return Ok(facts);
        }
        return Err(IdentityFault::Exists(folder.path().to_owned()).into());
    }
    if facts.subject_common_names != [profile.id.as_str()] {
        return Err(IdentityFault::NotOurs(format!(
            "device.json says {}, the certificate is for {}",
            profile.id, facts.subject_text
        ))
        .into());
    }
    let key = folder.waiting_key(&profile.key_store)?;
    let signer = key.signer().map_err(EnrolFault::Key)?;
    let signer = signer.ok_or_else(|| {
        EnrolFault::Usage("the key is no P-256 key; hint: make one with countersign-agent request".into())
    })?;
    let chain: Vec<Vec<u8>> = handed.chain.iter().map(|der| der.to_vec()).collect();
    is_for(chain.first(), &*signer)?;
    if profile.key_store.is_file() {
        // The next keys are made where this one was.
        profile.key_store = key.store();
    }
    folder.pin_first(&handed.platform_roots)?;
    folder.enrolled(&profile, &chain)?;
    let identity = folder.load()?;
    if let Err(e) = identity.key.keep_certificates(&identity.chain) {
        say(&beside::not_kept(&e));
    }
    Ok(facts)
}

/// Signs a station's challenge with the key of the certificate that is in use, and nothing that is not one for it.
///
/// # Errors
/// [`EnrolFault::Usage`] if it is none, or for another certificate.
pub fn prove(folder: &IdentityFolder, text: &str) -> Result<Vec<u8>, EnrolFault> {
    let identity = folder.load()?;
    let prefix = challenge::text(&identity.profile.id, &identity.facts.fingerprint, "");
    let nonce = text.strip_prefix(&prefix).unwrap_or_default();
    if nonce.is_empty() || !nonce.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(EnrolFault::Usage(format!(
            "this is no challenge for {} and the certificate {}; hint: countersign-station challenge {0}",
            identity.profile.id, identity.facts.fingerprint
        )));
    }
    let signer = identity.key.signer().map_err(EnrolFault::Key)?;
    let signer = signer.ok_or_else(|| {
        EnrolFault::Usage("the key is no P-256 key; hint: let openssl sign the challenge".into())
    })?;
    signer
        .sign(text.as_bytes())
        .map_err(|e| EnrolFault::Link(crate::fault::LinkFault::Key(e.0)))
}

/// Shows the platform the certificate as it lies in the folder: the handshake proves the key over a fresh challenge, and from
/// then on the certificate does not lapse.
///
/// # Errors
/// [`EnrolFault`]; then the same can be done again.
pub async fn confirm(folder: &IdentityFolder) -> Result<Fingerprint, EnrolFault> {
    let identity = folder.load()?;
    let tenant = identity.profile.tenant.clone();
    let mut client = client_of(&identity).await?;
    let confirmed: Confirmed = client.tell(PATH, &Confirm { tenant }).await?;
    if confirmed.device != identity.profile.id || confirmed.certificate != identity.facts.fingerprint {
        return Err(EnrolFault::Answer(format!(
            "it confirms device {} and certificate {}",
            confirmed.device, confirmed.certificate
        )));
    }
    Ok(confirmed.certificate)
}
