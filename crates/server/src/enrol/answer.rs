//! How answers and refusals look.

use countersign_factory::est::{self, Lines};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use zeroize::Zeroizing;

use super::client::Peer;
use crate::failure::Failure;

pub(super) type Answer = Response<Full<Bytes>>;

pub(super) const CERTS_ONLY: &str = "application/pkcs7-mime; smime-type=certs-only";

/// Between the parts of a server-made key's answer. It is no base64, so it cannot occur in them.
const BOUNDARY: &str = "_countersign_";

/// A refusal: status, and a line of text.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
    pub(super) retry_after_s: Option<u32>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
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
        let text = match e.hint {
            Some(hint) => format!("{}; hint: {hint}", e.message),
            None => e.message,
        };
        Self::new(status, text)
    }
}

impl Refusal {
    /// Logs it, once, with the cause.
    pub(super) fn logged(self, peer: &Peer, path: &str) -> Self {
        tracing::warn!(
            source = %peer.source,
            path,
            status = self.status.as_u16(),
            cause = self.text.as_str(),
            "enrolment refused"
        );
        self
    }

    pub(super) fn into_answer(self) -> Answer {
        let mut answer = plain(self.status, "text/plain; charset=utf-8", self.text + "\n");
        if self.status == StatusCode::UNAUTHORIZED {
            let value = HeaderValue::from_static("Basic realm=\"countersign\", charset=\"UTF-8\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        if let Some(seconds) = self.retry_after_s {
            answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        answer
    }
}

pub(super) fn plain(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// DER in base64, as every EST answer is. The header means nothing any more, and old clients want it (RFC 8951).
pub(super) fn encoded(kind: &'static str, der: &[u8], lines: Lines) -> Answer {
    let mut answer = plain(StatusCode::OK, kind, est::base64_encode(der, lines));
    let value = HeaderValue::from_static("base64");
    answer.headers_mut().insert("content-transfer-encoding", value);
    answer
}

/// A server-made key and its certificate (RFC 7030 section 4.4.2). The bytes of the key are wiped once they are sent.
pub(super) fn key_and_certificate(pkcs8: &[u8], certificate: &[u8], lines: Lines) -> Answer {
    let part = |kind: &str, body: &str| {
        format!(
            "--{BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n",
            body.trim_end()
        )
    };
    let key = Zeroizing::new(est::base64_encode(pkcs8, lines));
    let key = Zeroizing::new(part("application/pkcs8", &key));
    let certificate = part(
        CERTS_ONLY,
        &est::base64_encode(&est::certs_only(&[certificate]), lines),
    );
    // Of its final size from the start: it would leave copies behind if it grew.
    let mut body = Zeroizing::new(Vec::with_capacity(
        key.len() + certificate.len() + BOUNDARY.len() + 8,
    ));
    body.extend_from_slice(key.as_bytes());
    body.extend_from_slice(certificate.as_bytes());
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    let mut answer = Response::new(Full::new(Bytes::from_owner(body)));
    let kind = HeaderValue::from_static("multipart/mixed; boundary=_countersign_");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    let none = HeaderValue::from_static("no-store");
    answer.headers_mut().insert(header::CACHE_CONTROL, none);
    answer
}
