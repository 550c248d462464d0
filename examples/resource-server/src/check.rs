//! Whether a token is good, offline: RFC 9068 section 4, RFC 8705 section 3, RFC 8725. No I/O.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The clocks of issuer and backend may differ by so much, in seconds.
const SKEW_S: i64 = 60;
/// No token is larger, in bytes.
const BYTES_MAX: usize = 4096;

/// The issuer's public keys (RFC 7517).
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug, Clone, Deserialize)]
struct Key {
    kid: String,
    kty: String,
    crv: String,
    alg: String,
    x: String,
    y: String,
}

/// Of whom tokens are taken, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// The issuer, letter by letter.
    pub(crate) issuer: String,
    /// This backend's own name.
    pub(crate) audience: String,
}

/// Any other member is refused: what the token says about how to read it is not listened to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    typ: String,
    alg: String,
    kid: String,
}

#[derive(Deserialize)]
struct Confirmation {
    #[serde(rename = "x5t#S256")]
    certificate: String,
}

/// What the backend goes by.
#[derive(Deserialize)]
pub(crate) struct Claims {
    iss: String,
    aud: String,
    exp: i64,
    iat: i64,
    cnf: Confirmation,
    /// The device's tenant.
    pub(crate) tenant: String,
    /// The device.
    pub(crate) client_id: String,
}

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The key is not in the set at hand: it may be newer than that.
    UnknownKey,
    /// Anything else.
    Invalid(&'static str),
}

/// Checks a token that came over a connection whose client proved to hold the key of `leaf` (DER).
pub(crate) fn check(
    token: &str,
    leaf: &[u8],
    keys: &KeySet,
    expected: &Expected,
    now_s: i64,
) -> Result<Claims, Fault> {
    let invalid = Fault::Invalid;
    if token.len() > BYTES_MAX {
        return Err(invalid("too large"));
    }
    let parts: Vec<&str> = token.split('.').collect();
    let &[header, payload, signature] = parts.as_slice() else {
        return Err(invalid("not three parts"));
    };
    let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| invalid("not base64url"));
    let read: Header = serde_json::from_slice(&decode(header)?).map_err(|_| invalid("header"))?;
    // The type says that it is an access token and no other JWT; one algorithm, whatever the token says.
    if read.typ != "at+jwt" || read.alg != "ES256" {
        return Err(invalid("type or algorithm"));
    }
    let key = keys
        .keys
        .iter()
        .find(|k| k.kid == read.kid)
        .ok_or(Fault::UnknownKey)?;
    if key.kty != "EC" || key.crv != "P-256" || key.alg != "ES256" {
        return Err(invalid("key"));
    }
    let mut point = vec![4];
    point.extend(decode(&key.x)?);
    point.extend(decode(&key.y)?);
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point)
        .verify(format!("{header}.{payload}").as_bytes(), &decode(signature)?)
        .map_err(|_| invalid("signature"))?;
    let claims: Claims = serde_json::from_slice(&decode(payload)?).map_err(|_| invalid("claims"))?;
    if claims.iss != expected.issuer {
        return Err(invalid("issuer"));
    }
    if claims.aud != expected.audience {
        return Err(invalid("audience"));
    }
    if now_s >= claims.exp.saturating_add(SKEW_S) || claims.iat > now_s.saturating_add(SKEW_S) {
        return Err(invalid("time"));
    }
    // Bound to the certificate of this connection: a token that was copied is worth nothing to another.
    if claims.cnf.certificate != URL_SAFE_NO_PAD.encode(digest(&SHA256, leaf)) {
        return Err(invalid("certificate"));
    }
    Ok(claims)
}
