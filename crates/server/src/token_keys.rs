//! Joins the two: [`countersign_authority`] asks for keys in tokens, [`countersign_keystore_pkcs11`] has them.

use countersign_authority::{KeyStoreError, TokenKeys};
use countersign_identity::signed::Signer;
use countersign_keystore_pkcs11::{BoundedKey, TokenError, TokenUri};

/// Keys in tokens, by PKCS#11. A token that does not answer is told, and not waited for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pkcs11Keys;

fn failed(e: TokenError) -> KeyStoreError {
    KeyStoreError::Token(e.to_string())
}

fn named(uri: &str, label_suffix: &str) -> Result<TokenUri, KeyStoreError> {
    uri.parse::<TokenUri>()
        .and_then(|uri| uri.with_suffix(label_suffix))
        .map_err(failed)
}

impl TokenKeys for Pkcs11Keys {
    fn open(&self, uri: &str, label_suffix: &str) -> Result<Box<dyn Signer>, KeyStoreError> {
        let key = BoundedKey::open(named(uri, label_suffix)?).map_err(failed)?;
        Ok(Box::new(key))
    }

    fn generate(&self, uri: &str, label_suffix: &str) -> Result<Option<Box<dyn Signer>>, KeyStoreError> {
        let key = BoundedKey::generate(named(uri, label_suffix)?).map_err(failed)?;
        Ok(key.map(|key| Box::new(key) as Box<dyn Signer>))
    }
}
