//! `POST /oauth2/introspect` (RFC 7662): whether a token is good now, decided over the facts as they are at this moment.
//! Services alone may ask, each about devices of its tenants; about all else they learn that it is not active.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use countersign_identity::{CertificateFacts, Fingerprint};
use countersign_policy::FactSource;
use countersign_registry::ServiceView;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::form::{Form, OauthError, no_store};
use super::{Answer, Tokens, scope_of};
use crate::service::{Service, blocking};

/// Answers one request of whoever showed this certificate, its key proven to be held.
pub async fn introspect(
    service: &Arc<Service>,
    leaf: Option<&CertificateDer<'_>>,
    request: Request<Incoming>,
) -> Answer {
    let Some(tokens) = service.tokens() else {
        return OauthError::new("temporarily_unavailable", "the server is starting").into_answer();
    };
    match try_introspect(service, tokens, leaf, request).await {
        Ok(answer) => answer,
        Err(e) => {
            if e.error == "invalid_client" {
                tokens.unauthorised.fetch_add(1, Ordering::Relaxed);
            }
            tracing::warn!(
                certificate.fingerprint = leaf.map(|l| Fingerprint::of(l).to_string()).unwrap_or_default(),
                error = e.error,
                cause = e.description.as_str(),
                "introspection refused"
            );
            e.into_answer()
        }
    }
}

async fn try_introspect(
    service: &Arc<Service>,
    tokens: &Tokens,
    leaf: Option<&CertificateDer<'_>>,
    request: Request<Incoming>,
) -> Result<Answer, OauthError> {
    let asker = asker(service, leaf).await?;
    let form = Form::read(request).await?;
    let token = form.need("token")?;
    let found = active(service, tokens, &asker, token)?;
    let counter = match found {
        Some(_) => &tokens.found_active,
        None => &tokens.found_inactive,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    let body = found.unwrap_or_else(|| json!({ "active": false }));
    Ok(no_store(StatusCode::OK, &body))
}

/// The service that is known by this certificate, and not revoked.
pub(super) async fn asker(
    service: &Service,
    leaf: Option<&CertificateDer<'_>>,
) -> Result<ServiceView, OauthError> {
    let unknown = |why: &str| OauthError::new("invalid_client", why);
    let leaf = leaf.ok_or_else(|| unknown("no certificate was shown"))?;
    let facts = CertificateFacts::parse(leaf).map_err(|_| unknown("the certificate cannot be read"))?;
    if !facts.is_valid_at(service.now()) {
        return Err(unknown("the certificate is expired or not yet valid"));
    }
    let registry = service.registry().clone();
    let found = blocking(move || registry.service_of(&facts.fingerprint));
    found
        .await
        .map_err(|e| OauthError::new("temporarily_unavailable", e.message))?
        .ok_or_else(|| unknown("no service is registered by this certificate"))
}

/// What is told of a token that is good now; `None` says nothing of why not.
fn active(
    service: &Service,
    tokens: &Tokens,
    asker: &ServiceView,
    token: &str,
) -> Result<Option<Value>, OauthError> {
    let registry = service.registry();
    if let Err(e) = registry.facts().health() {
        return Err(OauthError::new("temporarily_unavailable", e.to_string()));
    }
    let Ok(claims) = tokens.verify(token, &service.token_issuer(), service.now()) else {
        return Ok(None);
    };
    if !asker.introspects.contains(&claims.tenant) {
        return Ok(None);
    }
    let (Some(gateway), Ok(id)) = (service.gateway(), claims.jti.parse()) else {
        return Ok(None);
    };
    let Some(view) = gateway.token(&claims.tenant, &claims.client_id, &id) else {
        return Ok(None);
    };
    let mut body = json!({
        "active": true,
        "iss": claims.iss,
        "sub": claims.sub,
        "aud": claims.aud,
        "client_id": claims.client_id,
        "tenant": claims.tenant,
        "token_type": "Bearer",
        "exp": claims.exp,
        "iat": claims.iat,
        "jti": claims.jti,
        "cnf": claims.cnf,
    });
    // What is permitted now, which may be less than what the token says.
    if let Some(scope) = scope_of(&view.scope) {
        body["scope"] = scope.into();
    }
    Ok(Some(body))
}
