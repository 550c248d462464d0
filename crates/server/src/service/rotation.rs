//! The report of a rotation: who stays out if an authority is closed, and why.

use std::collections::BTreeMap;

use countersign_identity::{AuthorityId, DeviceId, TenantId, Timestamp};
use countersign_policy::{ExchangeRecord, LifecycleState, Outcome, Stage};
use countersign_registry::{LeftBehind, RegistryError};
use serde::Serialize;

use super::Service;
use crate::failure::Failure;

/// The report of one authority.
#[derive(Debug, Clone, Serialize)]
pub struct RotationReport {
    /// Devices that closing the authority would lock out: what the rotation guard counts.
    pub count: u64,
    /// Devices that have no other way in, those that are out already included; at most as many as were asked for.
    pub devices: Vec<Straggler>,
    /// How many of all of them there are by the reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// What devices held against our own certificate, by code, in all exchanges that are kept. They ended the handshake
    /// before they said who they are, so they are in the list as `not-seen`.
    pub refused_by_devices: BTreeMap<String, u64>,
}

/// One device, and why it has not moved on.
#[derive(Debug, Clone, Serialize)]
pub struct Straggler {
    /// The device.
    pub id: DeviceId,
    /// The reason, a stable word: `certificate-expired`, `not-admitted`, `refused`, `not-renewed`, `not-seen`.
    pub why: &'static str,
    /// The particulars, and what to do.
    pub detail: String,
    /// The end of its certificate.
    pub not_after: Timestamp,
}

impl Service {
    /// Who would be left behind, and why.
    ///
    /// # Errors
    /// [`Failure`] if there is no such authority.
    pub fn rotation_report(&self, id: &AuthorityId, limit: usize) -> Result<RotationReport, Failure> {
        let view = self
            .registry
            .authorities()?
            .into_iter()
            .find(|a| a.id == *id)
            .ok_or_else(|| RegistryError::NoAuthority(id.to_string()))?;
        let (now, ledger) = (self.now(), self.registry.ledger());
        ledger.flush();
        let (count, _) = self.registry.dependents(id, now, 0)?;
        let mut devices = Vec::new();
        let mut reasons = BTreeMap::new();
        for left in self.registry.left_behind(id, now)? {
            let last = self.last_exchange(&view.tenant, &left)?;
            let device = straggler(left, last.as_ref(), now);
            *reasons.entry(device.why).or_insert(0) += 1;
            if devices.len() < limit {
                devices.push(device);
            }
        }
        Ok(RotationReport {
            count,
            devices,
            reasons,
            refused_by_devices: ledger.refused_by_devices()?,
        })
    }

    /// The newest exchange of a device: by its id, or, refused inside TLS, by its certificate.
    fn last_exchange(&self, tenant: &TenantId, left: &LeftBehind) -> Result<Option<ExchangeRecord>, Failure> {
        let ledger = self.registry.ledger();
        let by_id = ledger.of_device(Some(tenant), &left.device, 1)?;
        let by_certificate = ledger.of_fingerprint(&left.fingerprint, 1)?;
        Ok(by_id
            .into_iter()
            .chain(by_certificate)
            .max_by_key(|exchange| exchange.id))
    }
}

fn straggler(left: LeftBehind, last: Option<&ExchangeRecord>, now: Timestamp) -> Straggler {
    let LeftBehind {
        device,
        state,
        not_after,
        ..
    } = left;
    let (why, detail) = if not_after < now {
        let text = "its certificate expired; enrol it anew with a one-time secret (countersign device secret), or open the renewal lane";
        ("certificate-expired", text.to_owned())
    } else if state != LifecycleState::Active {
        let text = format!("the device is {state}: it cannot renew before it is active again");
        ("not-admitted", text)
    } else {
        match last {
            None => (
                "not-seen",
                "no exchange of it is known: it is offline, or it ends the handshake before it says who it is".into(),
            ),
            Some(exchange) => match (&exchange.denial, exchange.outcome) {
                // What was refused is a message, not the device: it was let in, and may renew.
                (Some(denial), _) if denial.code.stage() == Stage::FirstData => (
                    "not-renewed",
                    format!(
                        "it is let in, with this certificate (at {} only a message or subscription was refused, {}, which does not keep it from renewing): let it renew",
                        exchange.started, denial.code
                    ),
                ),
                (Some(denial), _) => (
                    "refused",
                    format!("last refused at {}: {}; {}", exchange.started, denial.code, denial.code.cure()),
                ),
                (None, Outcome::Admitted) => (
                    "not-renewed",
                    format!("last let in at {}, with this certificate: let it renew", exchange.started),
                ),
                (None, _) => (
                    "not-seen",
                    format!("went away in the middle of its last exchange, at {}", exchange.started),
                ),
            },
        }
    };
    Straggler {
        id: device,
        why,
        detail,
        not_after,
    }
}
