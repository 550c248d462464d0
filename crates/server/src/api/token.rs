//! The token of the admin API: 256 random bits in a file that only its owner can read.

use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use countersign_authority::folder;
use subtle::ConstantTimeEq;

use crate::failure::Failure;

/// The token. Never logged or shown.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// Reads the token of a data directory, or makes it.
    ///
    /// # Errors
    /// [`Failure`] if the file cannot be used.
    pub fn load(data: &Path) -> Result<Self, Failure> {
        let path = data.join("admin.token");
        if !path.exists() {
            let mut bytes = [0; 32];
            SystemRandom::new()
                .fill(&mut bytes)
                .map_err(|_| Failure::internal("no random numbers"))?;
            folder::write_private(&path, hex::encode(bytes).as_bytes())?;
        }
        let bytes = folder::read_private(&path)?;
        let text =
            String::from_utf8(bytes).map_err(|_| Failure::invalid("admin.token is damaged; delete it"))?;
        Ok(Self(text.trim().into()))
    }

    /// Whether `shown` is the token, in a time that does not depend on where they differ.
    pub fn is(&self, shown: &str) -> bool {
        self.0.as_bytes().ct_eq(shown.as_bytes()).into()
    }

    /// As the header's value.
    pub fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}
