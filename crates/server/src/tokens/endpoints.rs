//! What a device asks on the device port: a token (RFC 6749 section 4.4, client authentication by certificate as in
//! RFC 8705 section 2), and to take one back (RFC 7009).

use std::sync::Arc;
use std::time::Duration;

use countersign_gateway::{AdmittedDevice, TokenId, TokenRefusal, TokenWish};
use countersign_policy::DenialCode;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::json;

use super::form::{Form, OauthError, no_store};
use super::jwt::{BYTES_MAX, Claims, Confirmation, subject};
use super::{Answer, PUBLISH_PREFIX, Tokens, scope_of, thumbprint};
use crate::service::Service;

/// `POST /oauth2/token`
pub async fn token(service: &Arc<Service>, device: &AdmittedDevice, request: Request<Incoming>) -> Answer {
    match grant(service, device, request).await {
        Ok(answer) => answer,
        Err(e) => refused(device, "no token granted", e),
    }
}

/// `POST /oauth2/revoke`
pub async fn revoke(service: &Arc<Service>, device: &AdmittedDevice, request: Request<Incoming>) -> Answer {
    match take_back(service, device, request).await {
        Ok(answer) => answer,
        Err(e) => refused(device, "no token taken back", e),
    }
}

fn refused(device: &AdmittedDevice, what: &'static str, e: OauthError) -> Answer {
    tracing::warn!(
        tenant.id = %device.tenant,
        device.id = %device.device,
        source = %device.source,
        error = e.error,
        cause = e.description.as_str(),
        "{what}"
    );
    e.into_answer()
}

fn tokens(service: &Service) -> Result<&Tokens, OauthError> {
    service
        .tokens()
        .ok_or_else(|| OauthError::new("temporarily_unavailable", "the server is starting"))
}

/// The client is the device of the certificate; it must say so too (RFC 8705 section 2).
fn check_client(device: &AdmittedDevice, form: &Form, presence: Presence) -> Result<(), OauthError> {
    let said = match presence {
        Presence::Compulsory => Some(form.need("client_id")?),
        Presence::Optional => form.one("client_id")?,
    };
    match said {
        Some(said) if said != device.device.as_str() => Err(OauthError::new(
            "invalid_client",
            "client_id is not the device of the certificate",
        )),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy)]
enum Presence {
    Compulsory,
    Optional,
}

async fn grant(
    service: &Arc<Service>,
    device: &AdmittedDevice,
    request: Request<Incoming>,
) -> Result<Answer, OauthError> {
    let form = Form::read(request).await?;
    let kind = form.need("grant_type")?;
    if kind != "client_credentials" {
        return Err(OauthError::new(
            "unsupported_grant_type",
            "grant_type must be client_credentials",
        ));
    }
    check_client(device, &form, Presence::Compulsory)?;
    let issuer = service.token_issuer();
    let settings = &service.config().tokens;
    // RFC 8707: whom the token is for. One alone, so that nobody who takes it can use it elsewhere.
    let audience = match form.one("resource")? {
        None => issuer.clone(),
        Some(asked) if asked == issuer || settings.resources.iter().any(|r| r == asked) => asked.to_owned(),
        Some(_) => {
            let what = "resource is none of tokens.resources";
            return Err(OauthError::new("invalid_target", what));
        }
    };
    let asked = form.one("scope")?;
    let asked: Option<Vec<&str>> = asked
        .map(|text| {
            text.split(' ')
                .map(|scope| {
                    scope.strip_prefix(PUBLISH_PREFIX).ok_or_else(|| {
                        OauthError::new("invalid_scope", format!("there is no scope {}", shown(scope)))
                    })
                })
                .collect()
        })
        .transpose()?;
    // What signs anything with a date does it by the time that is known to be right.
    let now = service
        .minting_time()
        .map_err(|e| OauthError::new("temporarily_unavailable", e.message))?;
    let wish = TokenWish {
        scope: asked.as_deref(),
        lifetime: Duration::from_secs(settings.lifetime_s),
        now,
    };
    let granted = device.session.grant_token(wish).map_err(refusal)?;
    let scope = scope_of(&granted.scope);
    let claims = Claims {
        iss: issuer,
        sub: subject(&granted.tenant, &granted.device),
        aud: audience,
        exp: granted.expires.unix_s(),
        iat: granted.issued.unix_s(),
        jti: granted.id.to_string(),
        client_id: granted.device.clone(),
        scope: scope.clone(),
        tenant: granted.tenant.clone(),
        cnf: Confirmation {
            certificate: thumbprint(&granted.fingerprint),
        },
    };
    let signed = tokens(service)?.sign(&claims).map_err(|e| {
        // Nobody will ever show it.
        device.session.revoke_token(&granted.id);
        OauthError::new("temporarily_unavailable", e.message)
    })?;
    if signed.len() > BYTES_MAX {
        device.session.revoke_token(&granted.id);
        let what = "with so many scopes the token would be too large: ask for some of them";
        return Err(OauthError::new("invalid_scope", what));
    }
    let mut body = json!({
        "access_token": signed,
        "token_type": "Bearer",
        "expires_in": granted.expires.since(now).as_secs(),
    });
    if let Some(scope) = scope {
        body["scope"] = scope.into();
    }
    Ok(no_store(StatusCode::OK, &body))
}

/// The beginning of what somebody sent: enough to know it again.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

fn refusal(refusal: TokenRefusal) -> OauthError {
    match refusal {
        TokenRefusal::Scope(name) => OauthError::new(
            "invalid_scope",
            format!(
                "the device may not publish to {}, or there is no such topic space",
                shown(&name)
            ),
        ),
        TokenRefusal::Denied(denial) => {
            let error = match denial.code {
                DenialCode::TokenLimit => "slow_down",
                code if code.wire().http_status() == 503 => "temporarily_unavailable",
                _ => "invalid_client",
            };
            OauthError::new(error, format!("{}: {}", denial.code, denial.code.cause()))
        }
    }
}

async fn take_back(
    service: &Arc<Service>,
    device: &AdmittedDevice,
    request: Request<Incoming>,
) -> Result<Answer, OauthError> {
    let form = Form::read(request).await?;
    check_client(device, &form, Presence::Optional)?;
    let token = form.need("token")?;
    let read = tokens(service)?.verify(token, &service.token_issuer(), service.now());
    // What is none, or not any more, is as good as taken back (RFC 7009 section 2.2).
    if let Ok(claims) = read {
        if claims.tenant != device.tenant || claims.client_id != device.device {
            return Err(OauthError::new(
                "unauthorized_client",
                "the token was issued to another device",
            ));
        }
        if let Ok(id) = claims.jti.parse::<TokenId>() {
            device.session.revoke_token(&id);
        }
    }
    Ok(Response::new(Full::default()))
}
