//! What was issued after the backup that this registry was restored from, and that it never saw. Of certificates that had
//! ended the authority and the serial number are known, from a revocation list or from the registry that went on; of those in
//! use the latter tells device and key.

use countersign_identity::{AuthorityId, DeviceId, Fingerprint, TenantId};
use rusqlite::params;

use crate::error::RegistryError;
use crate::writer::Scope;

impl Scope<'_> {
    /// Whether the certificate of an authority is known to have ended, though it is not registered. `serial` is in
    /// lower-case hex.
    ///
    /// To be asked before any certificate is registered that was not minted in this very transaction, or a restore would
    /// bring back what had been revoked.
    pub(crate) fn is_lost(&self, authority: &AuthorityId, serial: &str) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM lost_revocations WHERE authority = ? AND serial = ?)",
            )?
            .query_row([authority.as_str(), serial], |r| r.get(0))?)
    }

    /// Whether any such certificate is known: of a registry that was never restored there is none.
    pub(crate) fn has_lost(&self) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM lost_revocations)")?
            .query_row([], |r| r.get(0))?)
    }

    /// Refuses such a certificate. One whose authority is not known is on nobody's list.
    ///
    /// # Errors
    /// [`RegistryError::RevokedBefore`].
    pub(crate) fn need_not_lost(
        &self,
        authority: Option<&AuthorityId>,
        serial: &str,
    ) -> Result<(), RegistryError> {
        match authority {
            Some(authority) if self.is_lost(authority, serial)? => Err(RegistryError::RevokedBefore {
                authority: authority.clone(),
                serial: serial.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a device is known to have been enrolled for another key, though that certificate is not registered. Not once
    /// a certificate was registered for it here, after the restore: what is so of the device is known again.
    pub(crate) fn was_enrolled(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        key: &Fingerprint,
    ) -> Result<bool, RegistryError> {
        Ok(self
            .tx
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM lost_enrolments l
                     WHERE l.tenant = ?1 AND l.device = ?2 AND l.public_key <> ?3
                     AND NOT EXISTS (SELECT 1 FROM credentials c
                                     WHERE c.tenant = ?1 AND c.device = ?2 AND c.created >= l.recorded))",
            )?
            .query_row(params![tenant.as_str(), device.as_str(), key.as_bytes()], |r| {
                r.get(0)
            })?)
    }
}
