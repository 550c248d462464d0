//! What each EST operation answers.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::est::{self, BODY_MAX, Extra, Lines, Operation, Target};
use countersign_factory::{CertificateRequest, SoftwareKey, attest, renewal_proof};
use countersign_identity::Fingerprint;
use countersign_policy::LifecycleState;
use countersign_registry::{Actor, IssueOutcome};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header;
use hyper::{Method, Request, StatusCode};

use super::answer::{Answer, CERTS_ONLY, Refusal, encoded, key_and_certificate, plain};
use super::client::Peer;
use super::requester::{Asker, asker};
use crate::failure::Failure;
use crate::service::{Service, Wanted};

/// Answers one request. Whatever is refused is logged once, with the cause.
pub(super) async fn answer(service: &Arc<Service>, peer: &Peer, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    operate(service, peer, request)
        .await
        .unwrap_or_else(|refusal| refusal.logged(peer, &path).into_answer())
}

const NOTHING_HERE: &str = "there is nothing at this path; hint: EST is below /.well-known/est/; on a device listener tokens are at /oauth2/token, and publishing is at /v1/publish/TOPIC";

async fn operate(service: &Arc<Service>, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Refusal> {
    if let Some(extra) = Extra::parse(request.uri().path()) {
        return beside(service, &extra, &request);
    }
    let target = Target::parse(request.uri().path())
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, NOTHING_HERE))?;
    if request.method().as_str() != target.operation.method() {
        let text = format!("this operation takes {}", target.operation.method());
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    let lines = lines_for(service, &request);
    match target.operation {
        Operation::CaCerts => {
            let certificates = tokio::task::block_in_place(|| service.ca_certificates(&target.tenant))?;
            let parts: Vec<&[u8]> = certificates.iter().map(Vec::as_slice).collect();
            Ok(encoded("application/pkcs7-mime", &est::certs_only(&parts), lines))
        }
        Operation::CsrAttrs => {
            let profile = service.profile(target.profile.as_deref())?;
            Ok(encoded(
                "application/csrattrs",
                &est::csr_attributes(&profile),
                lines,
            ))
        }
        Operation::SimpleEnroll | Operation::SimpleReenroll => {
            let asked = Asked::read(service, peer, target, request).await?;
            let certificate = asked.issue(service, peer).await?;
            Ok(encoded(CERTS_ONLY, &est::certs_only(&[&certificate]), lines))
        }
        Operation::ServerKeyGen => server_key(service, peer, target, request, lines).await,
        Operation::FullCmc => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "not offered: use simpleenroll",
        )),
    }
}

/// What is answered beside EST, to everybody.
fn beside(service: &Service, extra: &Extra, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    if request.method() != Method::GET {
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "this takes GET"));
    }
    match extra {
        Extra::Bundle(tenant) => {
            let bundle = tokio::task::block_in_place(|| service.bundle(tenant))?;
            let text = serde_json::to_string(&bundle)
                .map_err(|e| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
            Ok(plain(StatusCode::OK, "application/json", text))
        }
        Extra::Time(_) => {
            let query = request.uri().query().unwrap_or_default();
            let nonce = query.split('&').find_map(|p| p.strip_prefix("nonce="));
            let signed = service.signed_time(nonce.unwrap_or_default())?;
            Ok(plain(StatusCode::OK, "application/jose", signed))
        }
    }
}

/// libest reads only broken lines, strongSwan only one.
fn lines_for(service: &Service, request: &Request<Incoming>) -> Lines {
    let agent = request
        .headers()
        .get(header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    if service.config().enrol.base64_lines || agent.contains("libest") || agent.contains("cisco") {
        Lines::Broken
    } else {
        Lines::One
    }
}

/// A certificate that is asked for, by somebody who is known.
struct Asked {
    target: Target,
    asker: Asker,
    csr: CertificateRequest,
    /// The attestation that is cited, by the SHA-256 of its token.
    attestation: Option<Fingerprint>,
}

impl Asked {
    async fn read(
        service: &Arc<Service>,
        peer: &Peer,
        target: Target,
        request: Request<Incoming>,
    ) -> Result<Self, Refusal> {
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.split(';').next())
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        if kind != "application/pkcs10" {
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body must be application/pkcs10",
            ));
        }
        let authorization = request.headers().get(header::AUTHORIZATION).cloned();
        let proof = request.headers().get(renewal_proof::HEADER).cloned();
        let cited = request.headers().get(attest::messages::HEADER);
        let attestation = cited.map(|token| Fingerprint::of(token.as_bytes()));
        let body = Limited::new(request.into_body(), BODY_MAX)
            .collect()
            .await
            .map_err(|e| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, e.to_string()))?
            .to_bytes();
        let csr =
            est::read_request(&body).map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.to_string()))?;
        let asker = asker(
            service,
            peer,
            &target,
            authorization.as_ref(),
            proof.as_ref(),
            &csr,
            attestation.is_some(),
        )
        .await?;
        Ok(Self {
            target,
            asker,
            csr,
            attestation,
        })
    }

    /// Issues it: the certificate, DER.
    async fn issue(self, service: &Arc<Service>, peer: &Peer) -> Result<Vec<u8>, Refusal> {
        let linkage = linkage(peer, &self.csr);
        let lane = matches!(self.asker, Asker::Expired(_));
        let (device, issued) = match self.asker {
            Asker::Expired(lane) => {
                let device = lane.device().clone();
                let actor = Actor(format!("est:{device}"));
                let issued = lane
                    .reenrol(actor, self.target.profile, self.csr, self.attestation)
                    .await;
                (device, issued)
            }
            // An id is the registry's to give. What the request says otherwise is passed over.
            Asker::Device {
                device,
                requester,
                profile,
                shown,
            } => {
                let wanted = Wanted {
                    profile: self.target.profile.or(profile),
                    requester,
                    shown,
                    attestation: self.attestation,
                    ..Wanted::new(self.target.tenant, device.clone(), self.csr)
                };
                let issued = service.issue(Actor(format!("est:{device}")), wanted).await;
                (device, issued)
            }
        };
        let issued: IssueOutcome = issued.map_err(|e| waits(service, e))?;
        tracing::info!(
            source = %peer.source,
            device.id = %device,
            credential.repeated = issued.repeated,
            credential.linkage = linkage,
            lane,
            "enrolled"
        );
        Ok(issued.certificate)
    }
}

/// Somebody is to approve it first: the device asks again, with the very same request.
fn waits(service: &Service, e: Failure) -> Refusal {
    match e.state {
        Some(LifecycleState::Pending) => Refusal {
            retry_after_s: Some(service.config().enrol.retry_after_s),
            ..Refusal::new(StatusCode::ACCEPTED, "waits for approval")
        },
        // Nothing is wrong with the request: the clock is behind, or storage fails.
        _ if e.status == 503 => Refusal {
            retry_after_s: Some(service.config().enrol.retry_after_s),
            ..Refusal::from(e)
        },
        _ => Refusal::from(e),
    }
}

/// Whether the request says that it belongs to this TLS connection (RFC 7030 section 3.5, RFC 9266). It is not demanded:
/// TLS 1.3 has no tls-unique, and no EST document names what stands for it.
fn linkage(peer: &Peer, csr: &CertificateRequest) -> &'static str {
    match (csr.challenge_password(), peer.binding) {
        (None, _) => "none",
        (Some(password), Some(binding)) if password == STANDARD.encode(binding) => "linked",
        (Some(_), _) => "unknown",
    }
}

/// A key made here, for a device that cannot make one: it is sent, and is nowhere afterwards.
async fn server_key(
    service: &Arc<Service>,
    peer: &Peer,
    target: Target,
    request: Request<Incoming>,
    lines: Lines,
) -> Result<Answer, Refusal> {
    let mut asked = Asked::read(service, peer, target, request).await?;
    let (Asker::Device { device, profile, .. }, named) = (&asked.asker, &asked.target.profile) else {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "an expired certificate is for simplereenroll alone",
        ));
    };
    let profile = service.profile(named.as_deref().or(profile.as_deref()))?;
    if !profile.server_keys {
        return Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            format!(
                "profile {} lets the server make no keys: make the key on the device, and use simpleenroll",
                profile.name
            ),
        ));
    }
    if asked.csr.wants_encrypted_key() {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "keys are not encrypted beyond TLS here: leave the DecryptKeyIdentifier out, or make the key on the device",
        ));
    }
    let failed = |e: &dyn std::fmt::Display| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string());
    let key = SoftwareKey::generate().map_err(|e| failed(&e))?;
    let own = CertificateRequest::create(&key, device).map_err(|e| failed(&e))?;
    asked.csr = CertificateRequest::parse(own.as_bytes()).map_err(|e| failed(&e))?;
    let certificate = asked.issue(service, peer).await?;
    Ok(key_and_certificate(key.to_pkcs8(), &certificate, lines))
}
