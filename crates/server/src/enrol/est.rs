//! What each EST operation answers.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::est::{self, BODY_MAX, Lines, Operation, Target};
use countersign_factory::{CertificateRequest, renewal_proof};
use countersign_identity::{CertificateFacts, DeviceId, Fingerprint};
use countersign_policy::{DenialCode, LifecycleState};
use countersign_registry::{Actor, Requester};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};

use super::client::Peer;
use crate::failure::Failure;
use crate::service::{Service, Shown, Wanted, now};

type Answer = Response<Full<Bytes>>;

const CERTS_ONLY: &str = "application/pkcs7-mime; smime-type=certs-only";

/// A refusal: status, and a line of text.
struct Refusal {
    status: StatusCode,
    text: String,
    retry_after_s: Option<u32>,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            retry_after_s: None,
        }
    }
}

impl From<Failure> for Refusal {
    fn from(e: Failure) -> Self {
        // What a request holds is 400 here (RFC 7030 section 4.2.3), and 401 would ask for a password.
        let status = match e.status {
            401 => StatusCode::UNAUTHORIZED,
            422 => StatusCode::BAD_REQUEST,
            other => StatusCode::from_u16(other).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        Self::new(status, e.message)
    }
}

/// Answers one request. Whatever is refused is logged once, with the cause.
pub(super) async fn answer(service: &Arc<Service>, peer: &Peer, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    match operate(service, peer, request).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::warn!(
                source = %peer.source,
                path = path.as_str(),
                status = refusal.status.as_u16(),
                cause = refusal.text.as_str(),
                "enrolment refused"
            );
            let mut answer = plain(refusal.status, "text/plain; charset=utf-8", refusal.text + "\n");
            if refusal.status == StatusCode::UNAUTHORIZED {
                let value = HeaderValue::from_static("Basic realm=\"countersign\", charset=\"UTF-8\"");
                answer.headers_mut().insert(header::WWW_AUTHENTICATE, value);
            }
            if let Some(seconds) = refusal.retry_after_s {
                answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            answer
        }
    }
}

fn plain(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// DER in base64, as every EST answer is. The header means nothing any more, and old clients want it (RFC 8951).
fn encoded(kind: &'static str, der: &[u8], lines: Lines) -> Answer {
    let mut answer = plain(StatusCode::OK, kind, est::base64_encode(der, lines));
    let value = HeaderValue::from_static("base64");
    answer.headers_mut().insert("content-transfer-encoding", value);
    answer
}

async fn operate(service: &Arc<Service>, peer: &Peer, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let target = Target::parse(request.uri().path())
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "there is no such EST operation"))?;
    if request.method().as_str() != target.operation.method() {
        let text = format!("this operation takes {}", target.operation.method());
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text));
    }
    let lines = lines_for(service, &request);
    match target.operation {
        Operation::CaCerts => {
            let certificates = service.ca_certificates(&target.tenant)?;
            let parts: Vec<&[u8]> = certificates.iter().map(Vec::as_slice).collect();
            Ok(encoded("application/pkcs7-mime", &est::certs_only(&parts), lines))
        }
        Operation::CsrAttrs => Ok(encoded("application/csrattrs", &est::csr_attributes(), lines)),
        Operation::SimpleEnroll | Operation::SimpleReenroll => {
            let certificate = enrol(service, peer, target, request).await?;
            Ok(encoded(CERTS_ONLY, &est::certs_only(&[&certificate]), lines))
        }
        Operation::ServerKeyGen | Operation::FullCmc => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "not offered: make the key on the device, and use simpleenroll",
        )),
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

async fn enrol(
    service: &Arc<Service>,
    peer: &Peer,
    target: Target,
    request: Request<Incoming>,
) -> Result<Vec<u8>, Refusal> {
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
    let shown = shown(
        peer,
        authorization.as_ref(),
        request.headers().get(renewal_proof::HEADER),
    )?;
    let body = Limited::new(request.into_body(), BODY_MAX)
        .collect()
        .await
        .map_err(|e| Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, e.to_string()))?
        .to_bytes();
    let csr = est::read_request(&body).map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, e.to_string()))?;
    let (device, requester) = requester(service, peer, &target, authorization.as_ref(), &csr).await?;
    // An id is the registry's to give. One in the request that says otherwise is a mistake better told than passed over.
    let wanted = Wanted {
        profile: target.profile,
        requester,
        shown,
        ..Wanted::new(target.tenant, device.clone(), csr)
    };
    let actor = Actor(format!("est:{device}"));
    let issued = service.issue(actor, wanted).await.map_err(|e| match e.state {
        // Somebody is to approve it first: the device asks again, with the very same request.
        Some(LifecycleState::Pending) => Refusal {
            retry_after_s: Some(service.config().enrol.retry_after_s),
            ..Refusal::new(StatusCode::ACCEPTED, "waits for approval")
        },
        _ => Refusal::from(e),
    })?;
    tracing::info!(
        source = %peer.source,
        device.id = %device,
        credential.repeated = issued.repeated,
        "enrolled"
    );
    Ok(issued.certificate)
}

/// On whose word: the certificate that is shown, else a one-time secret.
async fn requester(
    service: &Arc<Service>,
    peer: &Peer,
    target: &Target,
    authorization: Option<&HeaderValue>,
    csr: &CertificateRequest,
) -> Result<(DeviceId, Requester), Refusal> {
    if peer.chain.is_some() {
        let known = peer
            .identify(service.registry(), &target.tenant, now())
            .await
            .map_err(|denial| {
                Refusal::new(
                    StatusCode::FORBIDDEN,
                    format!("{}: {}", denial.code, denial.code.cause()),
                )
            })?;
        if target.operation == Operation::SimpleReenroll {
            same_subject(&known.certificate, csr)?;
        }
        return Ok((
            known.device,
            Requester::Certificate(known.certificate.fingerprint),
        ));
    }
    if target.operation == Operation::SimpleReenroll {
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!(
                "{}: show the certificate that is to be renewed",
                DenialCode::NoCertificate
            ),
        ));
    }
    let (user, secret) = authorization.and_then(basic).ok_or_else(|| {
        Refusal::new(
            StatusCode::UNAUTHORIZED,
            "show a certificate, or a one-time secret",
        )
    })?;
    let device = DeviceId::new(&user)
        .map_err(|_| Refusal::new(StatusCode::UNAUTHORIZED, "the user name must be the device id"))?;
    Ok((device, Requester::Secret(Fingerprint::of(secret.as_bytes()))))
}

/// What was shown, for a CA that judges it anew: the certificate before the secret, as [`requester`] has it.
fn shown(
    peer: &Peer,
    authorization: Option<&HeaderValue>,
    proof: Option<&HeaderValue>,
) -> Result<Shown, Refusal> {
    if let Some(leaf) = peer.chain.as_ref().and_then(|chain| chain.first()) {
        let proof = proof
            .map(|value| STANDARD.decode(value.as_bytes().trim_ascii()))
            .transpose()
            .map_err(|_| {
                let text = format!("the header {} is no base64", renewal_proof::HEADER);
                Refusal::new(StatusCode::BAD_REQUEST, text)
            })?;
        return Ok(Shown::Certificate {
            certificate: leaf.to_vec(),
            proof,
        });
    }
    Ok(match authorization.and_then(basic) {
        Some((_, secret)) => Shown::Secret(secret.into()),
        None => Shown::Nothing,
    })
}

/// Subject and alternative names of the request must be those of the certificate (RFC 7030 section 4.2.2).
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
fn basic(value: &HeaderValue) -> Option<(String, String)> {
    let (scheme, text) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(text.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
