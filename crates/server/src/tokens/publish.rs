//! `POST /v1/publish/{topic}`: one message over HTTPS, under the same permit as over MQTT. A bearer token narrows what
//! the device of the connection may do; it must be bound to the certificate of this very connection (RFC 8705 section 3).

use std::sync::Arc;

use countersign_gateway::{AdmittedDevice, HttpPublish, TokenId};
use countersign_mqtt::QoS;
use countersign_policy::{Denial, DenialCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::json;

use super::form::decode;
use super::{Answer, thumbprint};
use crate::service::Service;

/// Where messages are published.
pub const PREFIX: &str = "/v1/publish/";

/// Why nothing was published.
enum NotPublished {
    /// A denial, which the session has kept.
    Denied(Denial),
    /// The request is none.
    Request(StatusCode, &'static str),
}

/// Answers one request.
pub async fn publish(service: &Arc<Service>, device: &AdmittedDevice, request: Request<Incoming>) -> Answer {
    match try_publish(service, device, request).await {
        Ok(()) => {
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer
        }
        Err(NotPublished::Request(status, title)) => problem(status, None, title),
        Err(NotPublished::Denied(denial)) => denied(denial.code),
    }
}

async fn try_publish(
    service: &Arc<Service>,
    device: &AdmittedDevice,
    request: Request<Incoming>,
) -> Result<(), NotPublished> {
    if request.method() != Method::POST {
        return Err(NotPublished::Request(
            StatusCode::METHOD_NOT_ALLOWED,
            "this takes POST",
        ));
    }
    let topic = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    let topic = decode(topic, false).ok_or(NotPublished::Request(
        StatusCode::BAD_REQUEST,
        "the topic is not percent-encoded UTF-8",
    ))?;
    let deny = |denial: Denial| {
        device.session.refused(denial.clone(), Some(&topic));
        NotPublished::Denied(denial)
    };
    let (qos, retain) = options(request.uri().query().unwrap_or_default())?;
    let token = bearer(service, device, request.headers()).map_err(deny)?;
    let body = Limited::new(request.into_body(), device.session.message_bytes_max());
    let payload = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => {
            return Err(deny(DenialCode::PacketTooLarge.into()));
        }
        Err(_) => {
            return Err(NotPublished::Request(
                StatusCode::BAD_REQUEST,
                "the body cannot be read",
            ));
        }
    };
    let publish = HttpPublish {
        topic: &topic,
        qos,
        retain,
        payload: &payload,
        token,
    };
    device.session.publish(publish).map_err(NotPublished::Denied)
}

/// `qos=0|1|2` and `retain=0|1`; anything else is refused, so that no wish goes unheard.
fn options(query: &str) -> Result<(QoS, bool), NotPublished> {
    let (mut qos, mut retain) = (QoS::AtMostOnce, false);
    for part in query.split('&').filter(|p| !p.is_empty()) {
        match part {
            "qos=0" => qos = QoS::AtMostOnce,
            "qos=1" => qos = QoS::AtLeastOnce,
            "qos=2" => qos = QoS::ExactlyOnce,
            "retain=0" | "retain=false" => retain = false,
            "retain=1" | "retain=true" => retain = true,
            _ => {
                return Err(NotPublished::Request(
                    StatusCode::BAD_REQUEST,
                    "the query may have qos=0, qos=1 and nothing else",
                ));
            }
        }
    }
    Ok((qos, retain))
}

/// The token that is shown, if one is.
fn bearer(
    service: &Service,
    device: &AdmittedDevice,
    headers: &HeaderMap,
) -> Result<Option<TokenId>, Denial> {
    let invalid = |what: String| Denial::new(DenialCode::TokenInvalid, what);
    let mut shown = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), second) = (shown.next(), shown.next()) else {
        return Ok(None);
    };
    let token = value
        .to_str()
        .ok()
        .filter(|_| second.is_none())
        .and_then(|v| v.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| invalid("the Authorization header is not one Bearer token".into()))?;
    let tokens = service
        .tokens()
        .ok_or_else(|| invalid("the server is starting".into()))?;
    let issuer = service.token_issuer();
    let claims = tokens
        .verify(token, &issuer, service.now())
        .map_err(|fault| invalid(fault.to_string()))?;
    if claims.aud != issuer {
        return Err(invalid(format!("the token is for {:?}", claims.aud)));
    }
    // The certificate of this connection, not of the session that the token was granted on.
    if claims.cnf.certificate != thumbprint(&device.fingerprint) {
        return Err(Denial::new(
            DenialCode::TokenOtherCertificate,
            format!("the token was issued to {}", claims.sub),
        ));
    }
    if claims.tenant != device.tenant || claims.client_id != device.device {
        return Err(invalid(format!("the token was issued to {}", claims.sub)));
    }
    let id = claims.jti.parse().map_err(|e: &str| invalid(e.to_owned()))?;
    Ok(Some(id))
}

fn denied(code: DenialCode) -> Answer {
    let status = match code {
        DenialCode::TopicInvalid | DenialCode::QosNotSupported | DenialCode::RetainNotSupported => 400,
        DenialCode::PacketTooLarge => 413,
        code => code.wire().http_status(),
    };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
    let mut answer = problem(status, Some(code), code.cause());
    let challenge = match code {
        DenialCode::TokenInvalid | DenialCode::TokenOtherCertificate => "Bearer error=\"invalid_token\"",
        DenialCode::TokenScope => "Bearer error=\"insufficient_scope\"",
        _ => return answer,
    };
    let value = HeaderValue::from_static(challenge);
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    answer
}

/// A problem document (RFC 9457).
fn problem(status: StatusCode, code: Option<DenialCode>, title: &str) -> Answer {
    let mut body = json!({ "type": "about:blank", "title": title, "status": status.as_u16() });
    if let Some(code) = code {
        body["code"] = code.as_str().into();
    }
    let mut answer = Response::new(Full::from(format!("{body}\n")));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("application/problem+json");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}
