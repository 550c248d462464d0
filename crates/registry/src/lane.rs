//! The renewal lane: decided by `policy::renewal_lane`, on the facts as the very transaction finds them.

use countersign_identity::{Fingerprint, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::renewal_lane::{LaneFacts, LanePass, LaneUse};
use countersign_policy::{LaneRefusal, RenewalLane};
use rusqlite::{OptionalExtension, params};
use serde_json::json;

use crate::change::Actor;
use crate::credential::IssueRequest;
use crate::error::RegistryError;
use crate::writer::Scope;

/// A device shows an expired certificate whose key it has proven to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpiredRequester {
    /// The expired certificate.
    pub certificate: Fingerprint,
    /// What is asked for is for this.
    pub wanted: CredentialKind,
    /// The lane's rules.
    pub lane: RenewalLane,
}

impl Scope<'_> {
    /// Decides, and notes that the lane was used.
    pub(crate) fn enter_lane(
        &mut self,
        actor: &Actor,
        request: &IssueRequest,
        requester: &ExpiredRequester,
    ) -> Result<LanePass, RegistryError> {
        let (tenant, device) = (&request.tenant, &request.device);
        let credential = self
            .read_credential(&requester.certificate)?
            .filter(|c| c.tenant == *tenant && c.device == *device)
            .ok_or(LaneRefusal::Unknown)?;
        let Some((_, lifecycle, _)) = self.device(tenant, device)? else {
            return Err(LaneRefusal::Unknown.into());
        };
        let (not_after, public_key, has_newer): (i64, [u8; 32], bool) = self
            .tx
            .prepare_cached(
                "SELECT c.not_after, c.public_key, EXISTS (SELECT 1 FROM credentials n
                     WHERE n.tenant = c.tenant AND n.device = c.device AND n.kind = c.kind
                     AND (n.created, n.not_after) > (c.created, c.not_after)
                     AND n.state <> 'lapsed' AND NOT (n.state = 'issued' AND n.public_key = ?2))
                 FROM credentials c WHERE c.fingerprint = ?1",
            )?
            .query_row(
                params![requester.certificate.as_bytes(), request.key.as_bytes()],
                |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)),
            )?;
        let used: Option<[u8; 32]> = self
            .tx
            .prepare_cached("SELECT key FROM renewal_lane WHERE credential = ?")?
            .query_row([requester.certificate.as_bytes()], |r| r.get(0))
            .optional()?;
        let facts = LaneFacts {
            device: lifecycle.state,
            kind: credential.kind,
            state: credential.state,
            not_after: Timestamp::from_unix_ms(not_after),
            // After a restore it may not be known here.
            has_newer: has_newer || self.was_enrolled(tenant, device, &request.key)?,
            used: match used {
                None => LaneUse::Unused,
                Some(key) if key == *request.key.as_bytes() => LaneUse::ForThisKey,
                Some(_) => LaneUse::ForOtherKey,
            },
            wanted: requester.wanted,
            is_same_key: public_key == *request.key.as_bytes(),
        };
        let pass = requester.lane.decide(&facts, self.now)?;
        if pass == LanePass::Issue {
            self.tx
                .prepare_cached("INSERT INTO renewal_lane (credential, key, at) VALUES (?, ?, ?)")?
                .execute(params![
                    requester.certificate.as_bytes(),
                    request.key.as_bytes(),
                    self.now.unix_ms()
                ])?;
            let detail = json!({
                "fingerprint": requester.certificate,
                "expired": facts.not_after.to_string(),
                "key": request.key,
            });
            self.audit(
                actor,
                "credential.renewal-lane",
                tenant.as_str(),
                device.as_str(),
                &detail,
            )?;
        }
        Ok(pass)
    }
}
