//! A key for whoever must not wait for ever: a CA, whose token may be a box in the network. Every call has a deadline.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::signed::{Signer, SigningFailed};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

use crate::deadline::{self, CALLS_MAX, NoAnswer, OPENING, SIGNING};
use crate::error::TokenError;
use crate::key::TokenKey;
use crate::uri::TokenUri;

/// A [`TokenKey`] whose calls end, also if the token never answers: with [`TokenError::NoAnswer`], and once many of them have
/// not been answered with [`TokenError::Hangs`].
#[derive(Debug, Clone)]
pub struct BoundedKey {
    key: Arc<TokenKey>,
    uri: TokenUri,
}

impl BoundedKey {
    /// As [`TokenKey::open`], within a minute.
    ///
    /// # Errors
    /// As [`TokenKey::open`], or that the token does not answer.
    pub fn open(uri: TokenUri) -> Result<Self, TokenError> {
        let of = uri.clone();
        let key = ask(&uri, "be searched", OPENING, move || TokenKey::open(of))?;
        Ok(Self {
            key: Arc::new(key),
            uri,
        })
    }

    /// As [`TokenKey::generate`], within a minute.
    ///
    /// # Errors
    /// As [`TokenKey::generate`], or that the token does not answer: then it may make the key later.
    pub fn generate(uri: TokenUri) -> Result<Option<Self>, TokenError> {
        let of = uri.clone();
        let made = ask(&uri, "make a key", OPENING, move || TokenKey::generate(of))?;
        Ok(made.map(|key| Self {
            key: Arc::new(key),
            uri,
        }))
    }
}

impl Signer for BoundedKey {
    fn public_key(&self) -> &SubjectPublicKeyInfoOwned {
        self.key.public_key()
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        self.key.algorithm()
    }

    fn sign(&self, content: &[u8]) -> Result<Vec<u8>, SigningFailed> {
        let (key, content) = (self.key.clone(), content.to_vec());
        ask(&self.uri, "sign", SIGNING, move || key.try_sign(&content))
            .map_err(|e| SigningFailed(e.to_string()))
    }
}

fn ask<T: Send + 'static>(
    uri: &TokenUri,
    what: &'static str,
    limit: Duration,
    call: impl FnOnce() -> Result<T, TokenError> + Send + 'static,
) -> Result<T, TokenError> {
    let (token, module) = (uri.token_text(), uri.module.clone());
    let line = deadline::line((module.clone(), token.clone()));
    line.within(limit, call).unwrap_or_else(|none| {
        Err(match none {
            NoAnswer::Late => TokenError::NoAnswer {
                token,
                module,
                what,
                limit_s: limit.as_secs(),
            },
            NoAnswer::Hangs => TokenError::Hangs {
                token,
                module,
                what,
                calls: CALLS_MAX,
            },
            NoAnswer::Failed => TokenError::Failed {
                token,
                what,
                cause: "the call to its module failed".into(),
            },
        })
    })
}
