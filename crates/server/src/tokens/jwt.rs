//! How a token is written and read: a JWT by the profile of RFC 9068, signed with ES256.
//!
//! Whoever reads takes nothing from the token that says how to read it (RFC 8725): one type, one algorithm, keys of ours.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use countersign_identity::{DeviceId, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use super::keys::{KeyRing, SigningKey};
use crate::failure::Failure;

/// The largest token, in bytes.
pub const BYTES_MAX: usize = 4096;
/// The media type of the token (RFC 9068 section 2.1).
const TYPE: &str = "at+jwt";
const ALGORITHM: &str = "ES256";

/// Any other member is refused: none of ours has `jku`, `x5u`, `jwk` or `crit`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    typ: String,
    alg: String,
    kid: String,
}

/// What the token is bound to (RFC 7800).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// The certificate (RFC 8705 section 3.1).
    #[serde(rename = "x5t#S256")]
    pub certificate: String,
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who issued it.
    pub iss: String,
    /// The device, in all tenants: `urn:countersign:TENANT:DEVICE`.
    pub sub: String,
    /// Whom it is for.
    pub aud: String,
    /// Until when, in seconds since 1970.
    pub exp: i64,
    /// Since when.
    pub iat: i64,
    /// Its id: the session's.
    pub jti: String,
    /// The device, in its tenant.
    pub client_id: DeviceId,
    /// What it may be used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The device's tenant.
    pub tenant: TenantId,
    /// What it is bound to.
    pub cnf: Confirmation,
}

/// The device as the subject of tokens.
pub fn subject(tenant: &TenantId, device: &DeviceId) -> String {
    format!("urn:countersign:{tenant}:{device}")
}

/// Why a text is no token of ours that is good now. For the operator: whoever showed it is told nothing of this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Larger than any of ours.
    #[error("the token has more than {BYTES_MAX} bytes")]
    TooLarge,
    /// Not three parts in base64url with JSON in the first two.
    #[error("the token is no JWT: {0}")]
    Malformed(&'static str),
    /// Another kind of JWT.
    #[error("the token is of type {0:?}, not {TYPE}")]
    Type(String),
    /// Signed in another way, or not at all.
    #[error("the token says it is signed with {0:?}, not {ALGORITHM}")]
    Algorithm(String),
    /// Signed by nobody we know.
    #[error("the token names the key {0:?}, which is none of those in use")]
    UnknownKey(String),
    /// It was altered, or signed by somebody else.
    #[error("the token's signature does not fit")]
    Signature,
    /// Signed for another name of this platform.
    #[error("the token was issued by {0:?}")]
    Issuer(String),
    /// Its time is over.
    #[error("the token expired on {0}")]
    Expired(Timestamp),
}

/// Signs claims.
///
/// # Errors
/// [`Failure`] if they cannot be signed.
pub fn sign(key: &SigningKey, claims: &Claims) -> Result<String, Failure> {
    let header = Header {
        typ: TYPE.into(),
        alg: ALGORITHM.into(),
        kid: key.kid.clone(),
    };
    let part = |json: Result<Vec<u8>, serde_json::Error>| {
        json.map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
            .map_err(|e| Failure::internal(e.to_string()))
    };
    let signed = format!(
        "{}.{}",
        part(serde_json::to_vec(&header))?,
        part(serde_json::to_vec(claims))?
    );
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes())?);
    Ok(format!("{signed}.{signature}"))
}

/// Reads a token that one of our keys signed for this issuer and that is not expired.
///
/// # Errors
/// [`TokenFault`].
pub fn verify(ring: &KeyRing, token: &str, issuer: &str, now: Timestamp) -> Result<Claims, TokenFault> {
    if token.len() > BYTES_MAX {
        return Err(TokenFault::TooLarge);
    }
    let (signed, signature) = token
        .rsplit_once('.')
        .ok_or(TokenFault::Malformed("it has not three parts"))?;
    let (header, claims) = signed
        .split_once('.')
        .filter(|(_, claims)| !claims.contains('.'))
        .ok_or(TokenFault::Malformed("it has not three parts"))?;
    let part = |text: &str| {
        URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| TokenFault::Malformed("a part is not base64url"))
    };
    let header: Header = serde_json::from_slice(&part(header)?)
        .map_err(|_| TokenFault::Malformed("its header has not typ, alg and kid alone"))?;
    if header.typ != TYPE {
        return Err(TokenFault::Type(header.typ));
    }
    if header.alg != ALGORITHM {
        return Err(TokenFault::Algorithm(header.alg));
    }
    let key = ring
        .by_kid(&header.kid)
        .ok_or(TokenFault::UnknownKey(header.kid))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key())
        .verify(signed.as_bytes(), &part(signature)?)
        .map_err(|_| TokenFault::Signature)?;
    let claims: Claims = serde_json::from_slice(&part(claims)?)
        .map_err(|_| TokenFault::Malformed("a claim is missing or of another type"))?;
    if claims.iss != issuer {
        return Err(TokenFault::Issuer(claims.iss));
    }
    // Our own clock signed it, so there is no skew to bear with.
    if now.unix_s() >= claims.exp {
        return Err(TokenFault::Expired(Timestamp::from_unix_s(claims.exp)));
    }
    Ok(claims)
}
