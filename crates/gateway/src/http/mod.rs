//! HTTP on a device listener: the same connection, the same stages, another language after them.
//!
//! 1. `stream`: the TLS connection as a stream of bytes, for hyper
//! 2. `session`: what the device may do besides being answered: publish, and ask for tokens
//! 3. `connection`: the life of an HTTP connection: admitted at its first request, cut off like any session
//!
//! What is answered is not the gateway's business: [`DeviceHttp`] is filled in by the process.

pub(crate) mod connection;
mod session;
mod stream;

pub use session::{DeviceSession, HttpPublish};

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::DenialCode;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use rustls::pki_types::CertificateDer;

/// What a device is answered.
pub type Answer = Response<Full<Bytes>>;

/// Who asks: a device with a live session.
#[derive(Debug, Clone)]
pub struct AdmittedDevice {
    /// Its tenant.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// The credential it was admitted with.
    pub fingerprint: Fingerprint,
    /// The certificates it showed, leaf first; the leaf's key is proven to be held.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Its session.
    pub session: DeviceSession,
}

/// Who asks without a session: a device with a certificate that is for enrolment alone.
#[derive(Debug, Clone)]
pub struct EnrollingDevice {
    /// The certificates it showed, leaf first; the leaf's key is proven to be held.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Where it comes from.
    pub source: SocketAddr,
}

/// Answers HTTP requests. Each request comes from a device whose session is live at that moment; an answer that takes
/// longer than the session is not sent.
pub trait DeviceHttp: Send + Sync {
    /// Answers one request.
    fn answer(
        &self,
        device: AdmittedDevice,
        request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>>;

    /// Whether a request is for enrolment, which needs no session: a device may make it whose certificate opens none.
    fn is_enrolment(&self, _path: &str) -> bool {
        false
    }

    /// Answers such a request. Whoever does judges the certificate by itself: what was decided before is some time ago.
    fn enrol(
        &self,
        _device: EnrollingDevice,
        _request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(async { problem(StatusCode::NOT_FOUND, None, NOTHING) })
    }
}

const NOTHING: &str = "there is nothing here";

/// There is nothing for devices to ask.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHttp;

impl DeviceHttp for NoHttp {
    fn answer(
        &self,
        _device: AdmittedDevice,
        _request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(async { problem(StatusCode::NOT_FOUND, None, NOTHING) })
    }
}

/// A problem document (RFC 9457). The connection ends after a refusal by `code`.
pub(crate) fn problem(status: StatusCode, code: Option<DenialCode>, title: &str) -> Answer {
    // Codes and titles are ours, and need no escaping.
    let code_member = code.map_or(String::new(), |c| format!(",\"code\":\"{c}\""));
    let body = format!(
        "{{\"type\":\"about:blank\",\"title\":\"{title}\",\"status\":{}{code_member}}}\n",
        status.as_u16()
    );
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if code.is_some() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// What a refused device is told; with Retry-After (RFC 9110 section 10.2.3), in seconds, if coming again helps.
pub(crate) fn refusal(code: DenialCode, retry_after_s: Option<u32>) -> Answer {
    let status = StatusCode::from_u16(code.wire().http_status()).unwrap_or(StatusCode::FORBIDDEN);
    let mut answer = problem(status, Some(code), "not admitted");
    if let Some(seconds) = retry_after_s {
        answer
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}
