//! Requests are forms, errors are JSON (RFC 6749 sections 5.2 and B).

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Answer;

/// The largest form, in bytes: a token that is percent-encoded, and a few words.
const BYTES_MAX: usize = 16 * 1024;
/// How long a form may take to come, after its head.
const BODY: Duration = Duration::from_secs(10);
/// When to ask again, in seconds.
const RETRY_AFTER_S: u32 = 60;

/// A refusal as OAuth has it.
#[derive(Debug)]
pub(super) struct OauthError {
    pub(super) status: StatusCode,
    pub(super) error: &'static str,
    pub(super) description: String,
}

impl OauthError {
    pub(super) fn new(error: &'static str, description: impl Into<String>) -> Self {
        let status = match error {
            "invalid_client" => StatusCode::UNAUTHORIZED,
            "slow_down" => StatusCode::TOO_MANY_REQUESTS,
            "temporarily_unavailable" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self {
            status,
            error,
            description: description.into(),
        }
    }

    pub(super) fn into_answer(self) -> Answer {
        // What a description may not have (RFC 6749 section 5.2).
        let fits = |c: char| matches!(c, ' ' | '!' | '#'..='[' | ']'..='~');
        let description: String = self
            .description
            .chars()
            .map(|c| if fits(c) { c } else { '\'' })
            .collect();
        let body = json!({ "error": self.error, "error_description": description });
        let mut answer = no_store(self.status, &body);
        if matches!(self.status.as_u16(), 429 | 503) {
            answer
                .headers_mut()
                .insert(header::RETRY_AFTER, RETRY_AFTER_S.into());
        }
        answer
    }
}

/// JSON that nobody keeps (RFC 6749 section 5.1).
pub(super) fn no_store(status: StatusCode, body: &Value) -> Answer {
    let mut answer = Response::new(Full::from(body.to_string()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    answer
}

/// A form, decoded.
#[derive(Debug)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads a POST of a form by a client that authenticates by its certificate alone.
    pub(super) async fn read(request: Request<Incoming>) -> Result<Self, OauthError> {
        if request.method() != Method::POST {
            return Err(OauthError {
                status: StatusCode::METHOD_NOT_ALLOWED,
                ..OauthError::new("invalid_request", "this takes POST")
            });
        }
        let kind = request.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(OauthError {
                status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ..OauthError::new(
                    "invalid_request",
                    "the body must be application/x-www-form-urlencoded",
                )
            });
        }
        // RFC 6749 section 2.3: not more than one way in each request.
        if request.headers().contains_key(header::AUTHORIZATION) {
            return Err(OauthError::new(
                "invalid_request",
                "the certificate is the authentication: send no Authorization header",
            ));
        }
        let body = Limited::new(request.into_body(), BYTES_MAX).collect();
        let body = timeout(BODY, body).await.map_err(|_| OauthError {
            status: StatusCode::REQUEST_TIMEOUT,
            ..OauthError::new(
                "invalid_request",
                format!("the body did not come within {} s", BODY.as_secs()),
            )
        })?;
        let body = body.map_err(|e| OauthError {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            ..OauthError::new("invalid_request", e.to_string())
        })?;
        Self::parse(&body.to_bytes())
    }

    fn parse(body: &[u8]) -> Result<Self, OauthError> {
        let text = std::str::from_utf8(body).map_err(|_| OauthError::new("invalid_request", "no UTF-8"))?;
        let mut fields = vec![];
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = decode(name, true).zip(decode(value, true));
            let (name, value) =
                decoded.ok_or_else(|| OauthError::new("invalid_request", "the form cannot be decoded"))?;
            fields.push((name, value));
        }
        for secret in ["client_secret", "client_assertion", "client_assertion_type"] {
            if fields.iter().any(|(name, _)| name == secret) {
                return Err(OauthError::new(
                    "invalid_request",
                    format!("the certificate is the authentication: send no {secret}"),
                ));
            }
        }
        Ok(Self(fields))
    }

    /// A parameter; one without a value is as if it were not there, and none may come twice (RFC 6749 section 3.2).
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, OauthError> {
        let mut found = self.0.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let (first, second) = (found.next(), found.next());
        if second.is_some() {
            return Err(OauthError::new(
                "invalid_request",
                format!("{name} is there twice"),
            ));
        }
        Ok(first.filter(|v| !v.is_empty()))
    }

    /// A parameter that must be there.
    pub(super) fn need(&self, name: &str) -> Result<&str, OauthError> {
        self.one(name)?
            .ok_or_else(|| OauthError::new("invalid_request", format!("{name} is missing")))
    }
}

/// Undoes percent-encoding; in a form a plus is a space. `None` if it is none, or no UTF-8.
pub(super) fn decode(text: &str, is_form: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if is_form => b' ',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::{Form, decode};

    #[test]
    fn a_form_is_decoded_and_what_is_none_is_refused() {
        let form = Form::parse(b"a=1+2%2B&b=&c=%C3%A9&d=x&d=y&e").unwrap();
        assert_eq!(form.one("a").unwrap(), Some("1 2+"));
        assert_eq!(form.one("b").unwrap(), None);
        assert_eq!(form.one("c").unwrap(), Some("é"));
        assert!(form.one("d").is_err() && form.need("e").is_err());
        for text in [
            &b"a=%"[..],
            b"a=%2",
            b"a=%zz",
            b"a=%ff",
            b"a=\xff",
            b"client_secret=x",
        ] {
            assert!(Form::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(decode("a+b", false).as_deref(), Some("a+b"));
    }
}
