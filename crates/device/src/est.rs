//! Enrolment over the network: EST over HTTPS with the pinned platform root.

use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::est::client::{ANSWER_BYTES_MAX, certificates, retry_after_s};
use countersign_factory::est::{BUNDLE_BYTES_MAX, Bundle, Extra, Lines, Operation, Target, base64_encode};
use countersign_factory::{attest, renewal_proof};
use countersign_identity::{CertificateFacts, DeviceId, TenantId};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::clock::DeviceClock;
use crate::fault::{EnrolFault, LinkFault};
use crate::renewal::PATIENCE;
use crate::trust::{Shown, tls};

/// Where to enrol, and as what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EstServer {
    /// The platform's host name, as in its certificate.
    pub host: String,
    /// The port for enrolment.
    pub port: u16,
    /// The tenant.
    pub tenant: TenantId,
    /// The profile; the platform's first if none is named.
    pub profile: Option<String>,
    /// The longest that opening, and then each answer, may take.
    pub patience: Duration,
}

impl FromStr for EstServer {
    type Err = EnrolFault;

    /// HOST or HOST:PORT, port 8443 if none is given; tenant `default`, the platform's first profile.
    fn from_str(text: &str) -> Result<Self, EnrolFault> {
        let wrong = || EnrolFault::Usage(format!("{text:?} is no HOST or HOST:PORT"));
        let (host, port) = match text.strip_prefix('[') {
            // [::1]:8443, or ::1 alone.
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
                (host, after.strip_prefix(':'))
            }
            None => match text.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ if text.is_empty() => return Err(wrong()),
                _ => (text, None),
            },
        };
        Ok(Self {
            host: host.to_owned(),
            port: port.map_or(Ok(8443), str::parse).map_err(|_| wrong())?,
            tenant: TenantId::default_tenant(),
            profile: None,
            patience: PATIENCE,
        })
    }
}

/// What the device has to say who it is, if it shows no certificate: its id, and a one-time secret.
pub struct Secret {
    /// The device id, or the claim's name.
    pub user: String,
    /// The secret.
    pub secret: Zeroizing<String>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret of {}", self.user)
    }
}

/// An open connection to the enrolment listener.
pub struct EstClient {
    server: EstServer,
    sender: SendRequest<Full<Bytes>>,
    root: CertificateDer<'static>,
}

impl std::fmt::Debug for EstClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EstClient")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

const PKCS10: &str = "application/pkcs10";

/// On whose word a certificate is asked for, beside the certificate that is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Word<'a> {
    /// A one-time secret.
    pub secret: Option<&'a Secret>,
    /// The old key's word ([`renewal_proof`]), for a CA that takes nobody's word but that of the key which it certified.
    pub word: Option<&'a [u8]>,
    /// What the TPM's attestation of the key is cited by.
    pub attestation: Option<&'a str>,
}

struct Question<'a> {
    method: &'a str,
    path: &'a str,
    by: Word<'a>,
    /// What it is, and what it says.
    body: Option<(&'static str, String)>,
    bytes_max: usize,
}

struct Answer {
    status: StatusCode,
    retry_after_s: Option<u64>,
    body: Bytes,
}

impl EstClient {
    /// Connects to a platform that a pinned root vouches for, with or without a certificate of our own.
    ///
    /// # Errors
    /// [`EnrolFault::Link`].
    pub(crate) async fn connect(
        server: &EstServer,
        roots: &[CertificateDer<'static>],
        clock: DeviceClock,
        shown: Shown<'_>,
    ) -> Result<Self, EnrolFault> {
        let opening = Self::open(server, roots, clock, shown);
        let opened = tokio::time::timeout(server.patience, opening).await;
        Ok(opened.unwrap_or_else(|_| Err(silence(server.patience)))?)
    }

    async fn open(
        server: &EstServer,
        roots: &[CertificateDer<'static>],
        clock: DeviceClock,
        shown: Shown<'_>,
    ) -> Result<Self, LinkFault> {
        let (config, pinned) = tls(roots, clock, shown, b"http/1.1")?;
        let unreachable = |source| LinkFault::Unreachable {
            host: server.host.clone(),
            port: server.port,
            source,
        };
        let socket = TcpStream::connect((server.host.as_str(), server.port))
            .await
            .map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let name = ServerName::try_from(server.host.clone()).map_err(broken)?;
        let stream = TlsConnector::from(config)
            .connect(name, socket)
            .await
            .map_err(LinkFault::of_io)?;
        let root = pinned
            .authenticated_by()
            .ok_or_else(|| LinkFault::Broken("the platform was not authenticated".into()))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends when the sender is dropped.
        tokio::spawn(connection);
        Ok(Self {
            server: server.clone(),
            sender,
            root,
        })
    }

    /// The pinned root that the platform's certificate chained to.
    pub fn authenticated_by(&self) -> &CertificateDer<'static> {
        &self.root
    }

    async fn ask(&mut self, question: Question<'_>) -> Result<Answer, EnrolFault> {
        let mut request = Request::builder()
            .method(question.method)
            .uri(question.path)
            .header(header::HOST, format!("{}:{}", self.server.host, self.server.port))
            .header(
                header::USER_AGENT,
                concat!("countersign-agent/", env!("CARGO_PKG_VERSION")),
            );
        if let Some((kind, _)) = &question.body {
            request = request.header(header::CONTENT_TYPE, *kind);
            if *kind == PKCS10 {
                request = request.header("content-transfer-encoding", "base64");
            }
        }
        if let Some(Secret { user, secret }) = question.by.secret {
            let pair = Zeroizing::new(format!("{user}:{}", secret.as_str()));
            let basic = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
            request = request.header(header::AUTHORIZATION, secret_header(&basic)?);
        }
        if let Some(word) = question.by.word {
            request = request.header(renewal_proof::HEADER, STANDARD.encode(word));
        }
        if let Some(attestation) = question.by.attestation {
            request = request.header(attest::messages::HEADER, secret_header(attestation)?);
        }
        let (body, bytes_max) = (question.body.map(|(_, body)| body), question.bytes_max);
        let request = request
            .body(Full::from(body.unwrap_or_default()))
            .map_err(broken)?;
        let asking = async {
            let answer = self.sender.send_request(request).await.map_err(of_http)?;
            let status = answer.status();
            let retry_after_s = answer
                .headers()
                .get(header::RETRY_AFTER)
                .and_then(|v| v.to_str().ok())
                .and_then(retry_after_s);
            let body = Limited::new(answer.into_body(), bytes_max)
                .collect()
                .await
                .map_err(|e| LinkFault::Broken(format!("the answer cannot be read: {e}")))?
                .to_bytes();
            Ok::<_, LinkFault>(Answer {
                status,
                retry_after_s,
                body,
            })
        };
        let answered = tokio::time::timeout(self.server.patience, asking).await;
        Ok(answered.unwrap_or_else(|_| Err(silence(self.server.patience)))?)
    }

    fn target(&self, operation: Operation) -> String {
        Target {
            tenant: self.server.tenant.clone(),
            profile: self.server.profile.clone(),
            operation,
        }
        .path()
    }

    /// Asks for a first certificate: the one that was issued, DER.
    ///
    /// # Errors
    /// [`EnrolFault::Waits`] if somebody is to approve it: then the same is asked again later. Others as they say.
    pub async fn enrol(&mut self, request: &[u8], by: Word<'_>) -> Result<Vec<u8>, EnrolFault> {
        self.certificate(Operation::SimpleEnroll, request, by).await
    }

    /// Asks for the next certificate, by the one that is shown.
    ///
    /// # Errors
    /// As [`EstClient::enrol`].
    pub async fn reenrol(&mut self, request: &[u8], by: Word<'_>) -> Result<Vec<u8>, EnrolFault> {
        self.certificate(Operation::SimpleReenroll, request, by).await
    }

    async fn certificate(
        &mut self,
        operation: Operation,
        request: &[u8],
        by: Word<'_>,
    ) -> Result<Vec<u8>, EnrolFault> {
        let question = Question {
            method: operation.method(),
            path: &self.target(operation),
            by,
            body: Some((PKCS10, base64_encode(request, Lines::One))),
            bytes_max: ANSWER_BYTES_MAX,
        };
        let answer = accepted(self.ask(question).await?)?;
        let found = certificates(&answer.body).map_err(|e| EnrolFault::Answer(e.to_string()))?;
        found
            .into_iter()
            .next()
            .ok_or_else(|| EnrolFault::Answer("the answer holds no certificate".into()))
    }

    /// Says something in JSON, and hears of it in JSON.
    pub(crate) async fn tell<T: serde::de::DeserializeOwned>(
        &mut self,
        path: &str,
        what: &impl serde::Serialize,
    ) -> Result<T, EnrolFault> {
        let body = serde_json::to_string(what).map_err(broken)?;
        let question = Question {
            method: "POST",
            path,
            by: Word::default(),
            body: Some(("application/json", body)),
            bytes_max: attest::messages::BYTES_MAX,
        };
        let answer = accepted(self.ask(question).await?)?;
        serde_json::from_slice(&answer.body).map_err(|e| EnrolFault::Answer(e.to_string()))
    }

    /// What the device is to trust, and where it connects.
    ///
    /// # Errors
    /// [`EnrolFault`].
    pub async fn bundle(&mut self) -> Result<Bundle, EnrolFault> {
        let path = Extra::Bundle(self.server.tenant.clone()).path();
        let question = Question {
            method: "GET",
            path: &path,
            by: Word::default(),
            body: None,
            bytes_max: BUNDLE_BYTES_MAX,
        };
        let answer = accepted(self.ask(question).await?)?;
        serde_json::from_slice(&answer.body).map_err(|e| EnrolFault::Answer(e.to_string()))
    }
}

/// The certificates above a leaf, from a set, up to the last that is not self-signed: what a peer sends along.
pub(crate) fn chain_above(leaf: &CertificateFacts, set: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let known: Vec<_> = set
        .iter()
        .filter_map(|der| Some((der, CertificateFacts::parse(der).ok()?)))
        .collect();
    let mut chain: Vec<Vec<u8>> = Vec::new();
    let mut below = leaf.clone();
    while let Some((der, facts)) = known.iter().find(|(der, f)| {
        f.subject_der == below.issuer_der
            && (below.authority_key_id.is_none() || f.subject_key_id == below.authority_key_id)
            && !f.is_self_issued()
            && !chain.contains(der)
    }) {
        chain.push((*der).clone());
        below = facts.clone();
    }
    chain
}

/// The device id that a certificate is for, as far as its common name says.
pub(crate) fn device_of(facts: &CertificateFacts) -> Option<DeviceId> {
    match facts.subject_common_names.as_slice() {
        [one] => DeviceId::new(one).ok(),
        _ => None,
    }
}

fn accepted(answer: Answer) -> Result<Answer, EnrolFault> {
    match answer.status {
        StatusCode::OK => Ok(answer),
        StatusCode::ACCEPTED => Err(EnrolFault::Waits {
            retry_after: Duration::from_secs(answer.retry_after_s.unwrap_or(60).clamp(1, 86_400)),
        }),
        status => {
            let text: String = String::from_utf8_lossy(&answer.body)
                .trim()
                .chars()
                .filter(|c| !c.is_control())
                .take(500)
                .collect();
            Err(EnrolFault::refused(status.as_u16(), text, answer.retry_after_s))
        }
    }
}

/// The value of a header that no log shows.
fn secret_header(text: &str) -> Result<HeaderValue, LinkFault> {
    let mut value = HeaderValue::from_str(text).map_err(broken)?;
    value.set_sensitive(true);
    Ok(value)
}

fn silence(patience: Duration) -> LinkFault {
    LinkFault::Broken(format!("no answer within {patience:?}"))
}

fn broken(e: impl std::fmt::Display) -> LinkFault {
    LinkFault::Broken(e.to_string())
}

/// In TLS 1.3 a refused certificate is learnt on the first read after the handshake.
fn of_http(e: hyper::Error) -> LinkFault {
    let mut source = std::error::Error::source(&e);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>()
            && let Some(tls) = io.get_ref().and_then(|i| i.downcast_ref::<rustls::Error>())
        {
            return LinkFault::of_tls(tls);
        }
        source = cause.source();
    }
    broken(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_perhaps_a_port() {
        for (text, expected) in [
            ("gate.example.com", Some(("gate.example.com", 8443))),
            ("gate.example.com:443", Some(("gate.example.com", 443))),
            ("[::1]:443", Some(("::1", 443))),
            ("[::1]", Some(("::1", 8443))),
            ("::1", Some(("::1", 8443))),
            ("", None),
            ("gate.example.com:", None),
            ("gate.example.com:99999", None),
            ("[::1:443", None),
        ] {
            let server = text.parse::<EstServer>().ok().map(|s| (s.host, s.port));
            assert_eq!(server.as_ref().map(|(h, p)| (h.as_str(), *p)), expected, "{text}");
        }
    }
}
