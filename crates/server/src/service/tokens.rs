//! Session tokens: keys, issuer.

use std::time::Duration;

use super::Service;
use crate::failure::Failure;
use crate::tokens::Tokens;
use crate::tokens::discovery::bracketed;
use crate::tokens::keys::KeyRules;

impl Service {
    /// Loads the keys that sign tokens, or makes them. From then on [`Service::tokens`] is there.
    ///
    /// # Errors
    /// [`Failure`] if their file cannot be used.
    pub fn open_tokens(&self) -> Result<(), Failure> {
        let rules = KeyRules {
            period: Duration::from_secs(self.config.tokens.key_days * 86_400),
        };
        // Looked at, not asked for: nothing is minted here, so nothing is refused if the clock is not right.
        let clock = self.registry.clock_view();
        let tokens = Tokens::open(&self.data, rules, clock.now)?;
        if clock.refusal.is_none() {
            tokens.turn(clock.now)?;
        }
        let _ = self.tokens.set(tokens);
        Ok(())
    }

    /// What signs and reads tokens, if this process serves.
    pub fn tokens(&self) -> Option<&Tokens> {
        self.tokens.get()
    }

    /// Takes the next key into use if it is time; not by a clock that is behind, or not known to be right though it must be.
    ///
    /// # Errors
    /// [`Failure`] if the file of the keys cannot be written.
    pub fn turn_token_keys(&self) -> Result<(), Failure> {
        match (self.tokens(), self.minting_time()) {
            (Some(tokens), Ok(now)) => tokens.turn(now),
            _ => Ok(()),
        }
    }

    /// What tokens name as their issuer.
    pub fn token_issuer(&self) -> String {
        if !self.config.tokens.issuer.is_empty() {
            return self.config.tokens.issuer.clone();
        }
        let (host, port) = self.address();
        format!("https://{}:{port}", bracketed(&host))
    }
}
