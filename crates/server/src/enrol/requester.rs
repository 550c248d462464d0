//! On whose word a certificate is issued.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::est::{Operation, Target};
use countersign_factory::{CertificateRequest, renewal_proof};
use countersign_identity::{CertificateFacts, DeviceId, Fingerprint};
use countersign_policy::{ClaimId, Denial, DenialCode};
use countersign_registry::{ClaimProof, ClaimRequester, Requester};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use zeroize::Zeroizing;

use super::answer::Refusal;
use super::client::Peer;
use super::lane::{Outside, RenewalLane};
use crate::failure::Failure;
use crate::service::{Service, Shown};

/// The user name of a claim's secret is this and the claim's name. No device id has a slash.
const CLAIM_USER: &str = "claim/";

/// Whoever asks, with what it is known by.
pub(super) enum Asker {
    /// A device that may have whatever the operation gives.
    Device {
        device: DeviceId,
        requester: Requester,
        /// The profile that it is bound to.
        profile: Option<String>,
        /// What it showed, for a CA that judges it anew.
        shown: Shown,
    },
    /// A device whose certificate has expired: it can do nothing but re-enrol.
    Expired(Box<RenewalLane>),
}

pub(super) fn denied(denial: &Denial) -> Refusal {
    let code = denial.code;
    let text = format!("{code}: {}; hint: {}", code.cause(), code.cure());
    Refusal::new(StatusCode::FORBIDDEN, text)
}

fn unauthorised(text: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, text)
}

/// Whoever asks: by the certificate that is shown, else by a secret.
pub(super) async fn asker(
    service: &Arc<Service>,
    peer: &Peer,
    target: &Target,
    authorization: Option<&HeaderValue>,
    proof: Option<&HeaderValue>,
    csr: &CertificateRequest,
    is_attested: bool,
) -> Result<Asker, Refusal> {
    let renews = target.operation == Operation::SimpleReenroll;
    if let Some([leaf, ..]) = peer.chain.as_deref() {
        let claim = service
            .registry()
            .claim_of_certificate(&target.tenant, &Fingerprint::of(leaf))
            .map_err(Failure::from)?;
        return match claim {
            Some(claim) if !renews => by_claim_certificate(service, target, claim, leaf, csr),
            _ => {
                let shown = Shown::Certificate {
                    certificate: leaf.to_vec(),
                    proof: renewal_proof_of(proof)?,
                };
                by_certificate(service, peer, target, shown, csr).await
            }
        };
    }
    if renews {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "{}: show the certificate that is to be renewed",
                DenialCode::NoCertificate
            ),
        ));
    }
    let Some((user, secret)) = authorization.and_then(basic).or_else(|| challenge(service, csr)) else {
        if is_attested {
            return by_attestation(csr);
        }
        return Err(unauthorised("show a certificate, or a one-time secret"));
    };
    let hash = Fingerprint::of(secret.as_bytes());
    if let Some(claim) = user.strip_prefix(CLAIM_USER) {
        let claim: ClaimId = claim
            .parse()
            .map_err(|_| unauthorised("the user name must be claim/NAME"))?;
        return on_claim(service, target, claim, ClaimProof::Secret(hash), csr);
    }
    let device = DeviceId::new(&user)
        .map_err(|_| unauthorised("the user name must be the device id, or claim/NAME"))?;
    Ok(Asker::Device {
        device,
        requester: Requester::Secret(hash),
        profile: None,
        shown: Shown::Secret(secret),
    })
}

async fn by_certificate(
    service: &Arc<Service>,
    peer: &Peer,
    target: &Target,
    shown: Shown,
    csr: &CertificateRequest,
) -> Result<Asker, Refusal> {
    let renews = target.operation == Operation::SimpleReenroll;
    let now = service.now();
    match peer.identify(service.registry(), &target.tenant, now).await {
        Ok(known) => {
            if renews {
                same_subject(&known.certificate, csr)?;
            }
            Ok(Asker::Device {
                device: known.device,
                requester: Requester::Certificate(known.certificate.fingerprint),
                profile: None,
                shown,
            })
        }
        Err(denial) if renews && denial.code == DenialCode::CertificateExpired => {
            let lane =
                RenewalLane::enter(service, peer, &target.tenant, shown, now).map_err(|e| match e {
                    Outside::Denied(denial) => denied(&denial),
                    Outside::Refused(refusal) => Refusal::new(StatusCode::FORBIDDEN, refusal.to_string()),
                })?;
            same_subject(lane.certificate(), csr)?;
            Ok(Asker::Expired(Box::new(lane)))
        }
        Err(denial) => Err(denied(&denial)),
    }
}

/// A claim's certificate is known by its fingerprint, whoever issued it; its dates still count.
fn by_claim_certificate(
    service: &Service,
    target: &Target,
    claim: ClaimId,
    leaf: &[u8],
    csr: &CertificateRequest,
) -> Result<Asker, Refusal> {
    let facts = CertificateFacts::parse(leaf)
        .map_err(|e| denied(&Denial::new(DenialCode::ChainMalformed, e.to_string())))?;
    if !facts.is_valid_at(service.now()) {
        return Err(denied(&DenialCode::CertificateExpired.into()));
    }
    on_claim(
        service,
        target,
        claim,
        ClaimProof::Certificate(facts.fingerprint),
        csr,
    )
}

fn on_claim(
    service: &Service,
    target: &Target,
    claim: ClaimId,
    proof: ClaimProof,
    csr: &CertificateRequest,
) -> Result<Asker, Refusal> {
    // One secret for many devices: which of them this is, the request says. The claim's list says whether it may be.
    let device = named(csr, "on a claim")?;
    let profile = service
        .registry()
        .profile_of_claim(&target.tenant, &claim)
        .map_err(Failure::from)?;
    Ok(Asker::Device {
        device,
        requester: Requester::Claim(ClaimRequester { claim, proof }),
        profile,
        shown: Shown::Nothing,
    })
}

/// By what its TPM said alone: which device it is, the request says. The registry knows which device the TPM is in.
fn by_attestation(csr: &CertificateRequest) -> Result<Asker, Refusal> {
    Ok(Asker::Device {
        device: named(csr, "by an attestation")?,
        requester: Requester::Attested,
        profile: None,
        shown: Shown::Nothing,
    })
}

/// The device that a request names.
fn named(csr: &CertificateRequest, by: &str) -> Result<DeviceId, Refusal> {
    csr.common_name()
        .and_then(|n| DeviceId::new(n).ok())
        .ok_or_else(|| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                format!("{by} the request's subject must have the device id as its only common name"),
            )
        })
}

/// The proof of possession of the old key that a CA in a process of its own asks for.
fn renewal_proof_of(header: Option<&HeaderValue>) -> Result<Option<Vec<u8>>, Refusal> {
    header
        .map(|value| STANDARD.decode(value.as_bytes().trim_ascii()))
        .transpose()
        .map_err(|_| {
            let text = format!("the header {} is no base64", renewal_proof::HEADER);
            Refusal::new(StatusCode::BAD_REQUEST, text)
        })
}

/// The request's subject must be that of the certificate (RFC 7030 section 4.2.2). Alternative names, of which that says the
/// same, are not compared: none is taken from a request.
fn same_subject(certificate: &CertificateFacts, csr: &CertificateRequest) -> Result<(), Refusal> {
    if csr.subject() == certificate.subject_text {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::BAD_REQUEST,
        format!(
            "the request's subject {:?} is not that of the certificate, {:?}",
            csr.subject(),
            certificate.subject_text
        ),
    ))
}

/// User and password (RFC 7617).
fn basic(value: &HeaderValue) -> Option<(String, Zeroizing<String>)> {
    let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = Zeroizing::new(String::from_utf8(STANDARD.decode(text.trim()).ok()?).ok()?);
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), Zeroizing::new(password.to_owned())))
}

/// A one-time secret as challengePassword, where that is configured; the device is the request's common name.
fn challenge(service: &Service, csr: &CertificateRequest) -> Option<(String, Zeroizing<String>)> {
    if !service.config().enrol.challenge_secrets {
        return None;
    }
    let secret = Zeroizing::new(csr.challenge_password()?.to_owned());
    Some((csr.common_name()?.to_owned(), secret))
}
