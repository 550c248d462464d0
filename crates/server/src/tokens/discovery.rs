//! What anybody may know: the keys that sign tokens (RFC 7517), and where what is asked (RFC 8414).

use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::keys::CACHE;
use super::{Answer, PUBLISH_PREFIX};
use crate::listeners::Purpose;
use crate::service::Service;

/// Where the keys are.
pub const JWKS: &str = "/.well-known/jwks.json";
/// Where the endpoints are told.
pub const METADATA: &str = "/.well-known/oauth-authorization-server";

/// The document at a path, with its media type; `None` if there is none.
pub fn document(service: &Service, path: &str) -> Option<(&'static str, Value)> {
    match path {
        JWKS => Some(("application/jwk-set+json", service.tokens()?.jwks())),
        METADATA => Some(("application/json", metadata(service))),
        _ => None,
    }
}

/// Answers a GET of a document; `None` if the path is none of theirs.
pub fn answer(service: &Service, method: &Method, path: &str) -> Option<Answer> {
    let (kind, body) = document(service, path)?;
    let mut answer = if method == Method::GET {
        Response::new(Full::from(body.to_string()))
    } else {
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        return Some(answer);
    };
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(value) = HeaderValue::from_str(&cache_control()) {
        headers.insert(header::CACHE_CONTROL, value);
    }
    Some(answer)
}

/// How long these may be kept.
pub fn cache_control() -> String {
    format!("max-age={}", CACHE.as_secs())
}

fn metadata(service: &Service) -> Value {
    let issuer = service.token_issuer();
    let at = |path: &str| format!("{issuer}{path}");
    let open = service.listeners.get().map_or(&[][..], Vec::as_slice);
    let for_services = open.iter().find(|l| l.purpose == Purpose::Services);
    let mut document = json!({
        "issuer": issuer,
        "token_endpoint": at("/oauth2/token"),
        "token_endpoint_auth_methods_supported": ["tls_client_auth", "self_signed_tls_client_auth"],
        "revocation_endpoint": at("/oauth2/revoke"),
        "revocation_endpoint_auth_methods_supported": ["tls_client_auth", "self_signed_tls_client_auth"],
        "jwks_uri": at(JWKS),
        "grant_types_supported": ["client_credentials"],
        // There is no authorization endpoint (RFC 8414 section 2 wants the member all the same).
        "response_types_supported": [],
        "scopes_supported": [format!("{PUBLISH_PREFIX}SPACE")],
        "tls_client_certificate_bound_access_tokens": true,
    });
    if let Some(listener) = for_services {
        let (host, _) = service.address();
        let base = format!("https://{}:{}", bracketed(&host), listener.address.port());
        document["introspection_endpoint"] = format!("{base}/oauth2/introspect").into();
        document["introspection_endpoint_auth_methods_supported"] = json!(["self_signed_tls_client_auth"]);
        // Whoever may not come in as a device fetches the keys where services ask.
        document["jwks_uri"] = format!("{base}{JWKS}").into();
    }
    document
}

/// An IPv6 address as a URL has it.
pub fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}
