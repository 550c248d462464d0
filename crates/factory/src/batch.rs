//! Batches: a planned number of identities of one model, made before production.
//!
//! ```text
//! open ──close──▶ closed        (final: what was planned was made, or will not be)
//! ```
//!
//! What may enter is decided here from facts; the registry asks inside the transaction that keeps what was issued, so
//! that a quota cannot be overrun, however many lines ask at once.

use countersign_identity::{AuthorityId, BatchId, DeviceId, IdPattern, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

/// The longest model name, in bytes.
pub const MODEL_BYTES_MAX: usize = 64;
/// The most groups of one batch.
pub const GROUPS_MAX: usize = 32;

/// Whether devices of a batch may connect as soon as they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceStart {
    /// They may.
    #[default]
    Active,
    /// An operator activates each, for example when it is sold.
    Pending,
}

impl DeviceStart {
    /// The name in store, API and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pending => "pending",
        }
    }
}

impl std::str::FromStr for DeviceStart {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "active" => Ok(Self::Active),
            "pending" => Ok(Self::Pending),
            _ => Err(format!("a device starts as active or pending, not {s:?}")),
        }
    }
}

/// Whether a batch takes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchState {
    /// It does.
    Open,
    /// It does not, for good. What was issued stays, and is still told to whoever repeats a request.
    Closed,
}

impl BatchState {
    /// The name in store, API and CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

impl std::str::FromStr for BatchState {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "open" => Ok(Self::Open),
            "closed" => Ok(Self::Closed),
            _ => Err(format!("{s:?} is no state of a batch; there are open, closed")),
        }
    }
}

/// When a batch's certificates may be signed; an end that is not given does not limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigningWindow {
    /// Not before this time.
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// Not after this time.
    #[serde(default)]
    pub not_after: Option<Timestamp>,
}

/// A planned number of identities of one model in one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Its id.
    pub id: BatchId,
    /// The tenant of its devices.
    pub tenant: TenantId,
    /// The model of its devices.
    pub model: String,
    /// The profile of its certificates.
    pub profile: String,
    /// The groups of its devices.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What its devices start as.
    #[serde(default)]
    pub devices_start: DeviceStart,
    /// The authority that issues its certificates; `None`: the tenant's newest active one.
    #[serde(default)]
    pub authority: Option<AuthorityId>,
    /// Which ids its devices may have.
    pub id_pattern: IdPattern,
    /// How many devices it may have in all, 1 or more. There is no "unlimited".
    pub quota: u64,
    /// When its certificates may be signed.
    #[serde(default)]
    pub window: SigningWindow,
}

/// How a batch stands when it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchStanding {
    /// Whether it takes any more.
    pub state: BatchState,
    /// How many devices it has.
    pub devices: u64,
}

/// Why a batch does not take a device. Nothing was minted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchRefusal {
    /// It was closed.
    #[error("batch {0} is closed; hint: make a new batch (countersign factory batch add)")]
    Closed(BatchId),
    /// Its signing window has not begun.
    #[error(
        "the signing window of batch {batch} opens at {opens}; hint: wait, look at the clock, or make a batch with another window"
    )]
    WindowNotOpen {
        /// The batch.
        batch: BatchId,
        /// When.
        opens: Timestamp,
    },
    /// Its signing window is over.
    #[error(
        "the signing window of batch {batch} closed at {closed}; hint: make a new batch (countersign factory batch add)"
    )]
    WindowClosed {
        /// The batch.
        batch: BatchId,
        /// When.
        closed: Timestamp,
    },
    /// The id is not one of the batch's.
    #[error(
        "device id {device} does not fit the pattern {pattern} of batch {batch}; hint: look for a mistyped id, or name the right batch"
    )]
    OutsidePattern {
        /// The device.
        device: DeviceId,
        /// The batch.
        batch: BatchId,
        /// Which ids fit.
        pattern: IdPattern,
    },
    /// It has all the devices that were planned.
    #[error(
        "the quota of batch {batch} is used up: it has {quota} devices; hint: plan another batch, or look at who used it (countersign factory batch show {batch})"
    )]
    QuotaUsedUp {
        /// The batch.
        batch: BatchId,
        /// How many it may have.
        quota: u64,
    },
    /// The device is there already, and not of this batch.
    #[error(
        "device {device} exists already and belongs to {}, not to batch {batch}; hint: a batch makes new identities, give the hardware an id of its own",
        owner.as_ref().map_or("no batch".to_owned(), |o| format!("batch {o}"))
    )]
    OtherBatch {
        /// The device.
        device: DeviceId,
        /// The batch that was asked.
        batch: BatchId,
        /// The batch that it belongs to.
        owner: Option<BatchId>,
    },
    /// The device has a certificate for another key already: two pieces of hardware may have been given one id.
    #[error(
        "device {device} has a certificate for another key already ({state}); hint: use the folder that holds its key; if that key is lost and the certificate was never used, repeat with --replace"
    )]
    OtherKey {
        /// The device.
        device: DeviceId,
        /// The state of that certificate.
        state: &'static str,
    },
    /// The same id came twice in one request.
    #[error("device {0} is named twice in one request; hint: give each device an id of its own")]
    Twice(DeviceId),
}

impl BatchRefusal {
    /// A stable code, for machines.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Closed(_) => "batch.closed",
            Self::WindowNotOpen { .. } => "batch.window-not-open",
            Self::WindowClosed { .. } => "batch.window-closed",
            Self::OutsidePattern { .. } => "batch.outside-pattern",
            Self::QuotaUsedUp { .. } => "batch.quota-used-up",
            Self::OtherBatch { .. } => "batch.other-batch",
            Self::OtherKey { .. } => "batch.other-key",
            Self::Twice(_) => "batch.twice",
        }
    }
}

impl Batch {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    pub fn check(&self) -> Result<(), String> {
        let name_fits = |text: &str| {
            !text.is_empty() && text.len() <= MODEL_BYTES_MAX && !text.chars().any(char::is_control)
        };
        if !name_fits(&self.model) {
            return Err(format!(
                "{:?} is no model: 1 to {MODEL_BYTES_MAX} bytes without control characters",
                self.model
            ));
        }
        if self.groups.len() > GROUPS_MAX || !self.groups.iter().all(|g| name_fits(g)) {
            return Err(format!(
                "a batch has at most {GROUPS_MAX} groups, each of 1 to {MODEL_BYTES_MAX} bytes without control characters"
            ));
        }
        if self.quota == 0 || self.quota > i64::MAX.unsigned_abs() {
            return Err(
                "the quota of a batch is 1 or more; hint: --quota says how many devices are planned".into(),
            );
        }
        if let (Some(from), Some(to)) = (self.window.not_before, self.window.not_after)
            && from >= to
        {
            return Err(format!(
                "the signing window ends ({to}) before it begins ({from}); hint: exchange the two"
            ));
        }
        Ok(())
    }

    /// Whether certificates may be signed for this device now, new or known: state, window, pattern.
    ///
    /// # Errors
    /// [`BatchRefusal`].
    pub fn signs(&self, state: BatchState, device: &DeviceId, now: Timestamp) -> Result<(), BatchRefusal> {
        if state == BatchState::Closed {
            return Err(BatchRefusal::Closed(self.id.clone()));
        }
        if let Some(opens) = self.window.not_before.filter(|t| now < *t) {
            return Err(BatchRefusal::WindowNotOpen {
                batch: self.id.clone(),
                opens,
            });
        }
        if let Some(closed) = self.window.not_after.filter(|t| now > *t) {
            return Err(BatchRefusal::WindowClosed {
                batch: self.id.clone(),
                closed,
            });
        }
        if !self.id_pattern.fits(device) {
            return Err(BatchRefusal::OutsidePattern {
                device: device.clone(),
                batch: self.id.clone(),
                pattern: self.id_pattern.clone(),
            });
        }
        Ok(())
    }

    /// Whether it takes one more device.
    ///
    /// # Errors
    /// [`BatchRefusal`].
    pub fn admits(
        &self,
        standing: BatchStanding,
        device: &DeviceId,
        now: Timestamp,
    ) -> Result<(), BatchRefusal> {
        self.signs(standing.state, device, now)?;
        if standing.devices >= self.quota {
            return Err(BatchRefusal::QuotaUsedUp {
                batch: self.id.clone(),
                quota: self.quota,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        Batch {
            id: BatchId::new("B-1").unwrap(),
            tenant: TenantId::default_tenant(),
            model: "pump".into(),
            profile: "factory".into(),
            groups: vec!["eu".into()],
            devices_start: DeviceStart::Active,
            authority: None,
            id_pattern: "SN-????".parse().unwrap(),
            quota: 2,
            window: SigningWindow {
                not_before: Some(Timestamp::from_unix_s(100)),
                not_after: Some(Timestamp::from_unix_s(200)),
            },
        }
    }

    #[test]
    fn each_refusal_has_its_code_and_names_the_cure() {
        let ask = |state, devices, id: &str, at| {
            let asked = batch().admits(
                BatchStanding { state, devices },
                &DeviceId::new(id).unwrap(),
                Timestamp::from_unix_s(at),
            );
            asked.map_err(|e| {
                assert!(e.to_string().contains("; hint: "), "{e}");
                e.code()
            })
        };
        use BatchState::{Closed, Open};
        for (state, devices, id, at, expected) in [
            (Open, 0, "SN-0001", 100, Ok(())),
            (Open, 1, "SN-0001", 200, Ok(())),
            (Open, 2, "SN-0001", 150, Err("batch.quota-used-up")),
            (Open, u64::MAX, "SN-0001", 150, Err("batch.quota-used-up")),
            (Open, 0, "SN-00001", 150, Err("batch.outside-pattern")),
            (Open, 0, "SN-0001", 99, Err("batch.window-not-open")),
            (Open, 0, "SN-0001", 201, Err("batch.window-closed")),
            (Closed, 0, "SN-0001", 150, Err("batch.closed")),
        ] {
            assert_eq!(
                ask(state, devices, id, at),
                expected,
                "{state:?} {devices} {id} {at}"
            );
        }
    }

    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        type Change = fn(&mut Batch);
        assert_eq!(batch().check(), Ok(()));
        let bad: [(Change, &str); 5] = [
            (|b| b.model = String::new(), "model"),
            (|b| b.model = "a\nb".into(), "model"),
            (|b| b.quota = 0, "quota"),
            (|b| b.groups = vec![String::new()], "groups"),
            (
                |b| b.window.not_after = Some(Timestamp::from_unix_s(100)),
                "window",
            ),
        ];
        for (change, word) in bad {
            let mut b = batch();
            change(&mut b);
            assert!(b.check().unwrap_err().contains(word), "{word}");
        }
    }
}
