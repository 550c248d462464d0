//! The numbers of revocation lists: each issuer's grow, over restarts, restores and whatever the clock does.

use countersign_identity::AuthorityId;
use rusqlite::params;

use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

impl Scope<'_> {
    /// Takes it that the issuer has used all numbers up to this one.
    pub(crate) fn raise_list_number(&mut self, issuer: &str, number: u64) -> Result<(), RegistryError> {
        self.tx
            .prepare_cached(
                "INSERT INTO list_numbers (issuer, number) VALUES (?1, ?2)
                 ON CONFLICT (issuer) DO UPDATE SET number = max(number, ?2)",
            )?
            .execute(params![issuer, number.cast_signed()])?;
        Ok(())
    }
}

impl Registry {
    /// The number of an issuer's next revocation list: the time in milliseconds, and more than the last. It is on disk
    /// when it is told, and is told once.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be kept.
    pub fn next_list_number(&self, issuer: &AuthorityId) -> Result<Committed<u64>, RegistryError> {
        let issuer = issuer.clone();
        self.write(move |scope| {
            scope.keep_time()?;
            let number: i64 = scope
                .tx
                .prepare_cached(
                    "INSERT INTO list_numbers (issuer, number) VALUES (?1, ?2)
                     ON CONFLICT (issuer) DO UPDATE SET number = max(number + 1, ?2) RETURNING number",
                )?
                .query_row(params![issuer.as_str(), scope.now.unix_ms()], |r| r.get(0))?;
            Ok(number.cast_unsigned())
        })
    }
}
