//! Session tokens (RFC 6749, 7009, 7662, 8705, 9068): a device that has proven its certificate takes a token that is
//! bound to it, and uses it on any of its connections, here and at resource servers.
//!
//! 1. [`keys`]: the only place with the keys that sign tokens
//! 2. [`jwt`]: how a token is written and read
//! 3. `form`: what is asked comes as a form, errors go as JSON
//! 4. [`endpoints`]: what a device asks: a token, and to take one back
//! 5. [`publish`]: publishing over HTTPS, with or without a token
//! 6. [`introspect`]: what a service asks: whether a token is good now
//! 7. [`listener`]: where services ask
//! 8. [`discovery`]: what anybody may know: keys and endpoints
//!
//! The token's life is the gateway's (`session::token`): it is a session, kept in memory. After a restart no token of
//! before is active.

pub mod discovery;
pub mod endpoints;
mod form;
pub mod introspect;
pub mod jwt;
pub mod keys;
pub mod listener;
pub mod publish;

use std::path::Path;
use std::sync::atomic::AtomicU64;

use countersign_identity::{Fingerprint, Timestamp};
use parking_lot::RwLock;

use crate::failure::Failure;
use jwt::{Claims, TokenFault};
use keys::{KeyRing, KeyRules};

/// What answers go as.
pub type Answer = countersign_gateway::http::Answer;

/// Signs and reads tokens, and counts what was asked about them.
#[derive(Debug)]
pub struct Tokens {
    ring: RwLock<KeyRing>,
    /// Introspections that found a token active.
    pub found_active: AtomicU64,
    /// Introspections that found none.
    pub found_inactive: AtomicU64,
    /// Introspections by somebody who may not ask.
    pub unauthorised: AtomicU64,
    /// Connections to the listeners for services by who is none.
    pub strangers: AtomicU64,
}

impl Tokens {
    /// Loads the keys of a data directory, or makes them.
    ///
    /// # Errors
    /// [`Failure`] if the file cannot be used.
    pub fn open(data: &Path, rules: KeyRules, now: Timestamp) -> Result<Self, Failure> {
        Ok(Self {
            ring: RwLock::new(KeyRing::open(data, rules, now)?),
            found_active: AtomicU64::new(0),
            found_inactive: AtomicU64::new(0),
            unauthorised: AtomicU64::new(0),
            strangers: AtomicU64::new(0),
        })
    }

    /// Takes the next key into use if it is time, and forgets keys by which no token can be left.
    ///
    /// # Errors
    /// [`Failure`] if the file cannot be written; then everything is as it was.
    pub fn turn(&self, now: Timestamp) -> Result<(), Failure> {
        self.ring.write().turn(now)
    }

    /// Signs with the key in use.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn sign(&self, claims: &Claims) -> Result<String, Failure> {
        jwt::sign(self.ring.read().current(), claims)
    }

    /// Reads a token of this issuer. Whether its session is live is another question.
    ///
    /// # Errors
    /// [`TokenFault`].
    pub fn verify(&self, token: &str, issuer: &str, now: Timestamp) -> Result<Claims, TokenFault> {
        jwt::verify(&self.ring.read(), token, issuer, now)
    }

    /// The public keys (RFC 7517).
    pub fn jwks(&self) -> serde_json::Value {
        self.ring.read().jwks()
    }
}

/// How a certificate is named in a token (RFC 8705 section 3.1): SHA-256 of its DER, base64url without padding.
pub fn thumbprint(fingerprint: &Fingerprint) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(fingerprint.as_bytes())
}

/// A scope by which a topic space may be published to.
const PUBLISH_PREFIX: &str = "publish:";

/// The scope of topic spaces (RFC 6749 section 3.3); a name that no scope can have is left out. `None` if nothing is left.
fn scope_of(spaces: &[String]) -> Option<String> {
    let fits = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    let scopes: Vec<String> = spaces
        .iter()
        .filter(|name| name.bytes().all(fits))
        .map(|name| format!("{PUBLISH_PREFIX}{name}"))
        .collect();
    (!scopes.is_empty()).then(|| scopes.join(" "))
}
