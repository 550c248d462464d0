//! What a station may issue. Facts of the registry; the station carries a copy.

use countersign_identity::certificate::KeyAlgorithm;
use countersign_identity::{BatchId, DeviceId, Fingerprint, IdPattern, StationId, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use super::ids::IdRange;
use crate::grant::{EnrolmentGrant, ProfileMismatch};
use crate::profile::{KeyKind, Profile, SanTemplate};
use crate::request::ProvenKey;

/// The most certificates of one station: its journal is read whole when it is reconciled.
pub const QUOTA_MAX: u64 = 100_000;

/// What a station may issue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The station.
    pub station: StationId,
    /// The tenant of its devices.
    pub tenant: TenantId,
    /// The batch of its devices.
    pub batch: BatchId,
    /// The ids of the batch.
    pub batch_ids: IdPattern,
    /// Of these the ones that it may give.
    pub ids: IdRange,
    /// How many certificates it may issue in all.
    pub quota: u64,
    /// The first moment in which it may issue.
    pub from: Timestamp,
    /// The last moment in which it may issue.
    pub to: Timestamp,
    /// What its certificates hold.
    pub profile: Profile,
}

/// Why a station may not issue something, or may not have issued it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StationFault {
    /// Terms that make no sense.
    #[error("{0}")]
    Terms(String),
    /// More certificates than were granted.
    #[error(
        "the station may issue {quota} certificates, and has issued as many; hint: end this grant and ask for another one"
    )]
    Overrun {
        /// How many were granted.
        quota: u64,
    },
    /// An id that was not granted.
    #[error(
        "{device} is not among the ids that were granted, {ids}; hint: look at the serial number, or ask for a grant that has it"
    )]
    ForeignId {
        /// The id.
        device: DeviceId,
        /// What was granted.
        ids: IdRange,
        /// What the batch has.
        batch_ids: IdPattern,
    },
    /// Outside the signing window.
    #[error(
        "{at} is outside the signing window, {from} to {to}; hint: look at the clock, or ask for another grant"
    )]
    Window {
        /// When it was asked for.
        at: Timestamp,
        /// The first moment.
        from: Timestamp,
        /// The last moment.
        to: Timestamp,
    },
    /// The clock is behind what it showed before.
    #[error("the clock says {now}, and it was {newest} before; hint: set the clock")]
    ClockBehind {
        /// What it says now.
        now: Timestamp,
        /// The newest time that was recorded.
        newest: Timestamp,
    },
    /// The id has a certificate already, for another key.
    #[error(
        "{device} has a certificate for another key already; hint: every id is issued once: use its own key, or give this hardware another id"
    )]
    DuplicateId {
        /// The id.
        device: DeviceId,
    },
    /// The key belongs to another device.
    #[error("the key belongs to {other} already; hint: give each device a key of its own")]
    KeyOfOther {
        /// The device that has it.
        other: String,
    },
    /// A key that the profile does not accept, or an id that it cannot name.
    #[error(transparent)]
    Profile(#[from] ProfileMismatch),
    /// What was issued is not what the profile asks for.
    #[error(
        "the certificate is not as the profile of the grant has it: {0}; hint: whoever holds the station's key issued it by other means: revoke the station"
    )]
    Certificate(String),
    /// The device proved its key too late.
    #[error(
        "{device} proved its key at {confirmed}, and its certificate had lapsed at {lapsed}: that is final; hint: give the device a new identity (countersign device provision), and reconcile sooner, or make issuance.lapse_after_days longer"
    )]
    Lapsed {
        /// The id.
        device: DeviceId,
        /// When it proved its key, by the station's clock.
        confirmed: Timestamp,
        /// When the certificate lapsed.
        lapsed: Timestamp,
    },
    /// The certificate had ended before the registry was restored.
    #[error(
        "the certificate of {device} with the serial number {serial} had been revoked or replaced after the backup was made that the registry was restored from; hint: give the device a new identity: countersign device provision"
    )]
    RevokedBefore {
        /// The id.
        device: DeviceId,
        /// The certificate's serial number, hex.
        serial: String,
    },
    /// The device was decommissioned.
    #[error("{device} is decommissioned, and that is final; hint: give the hardware another id")]
    Decommissioned {
        /// The id.
        device: DeviceId,
    },
}

impl StationFault {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Terms(_) => "station.terms",
            Self::Overrun { .. } => "station.overrun",
            Self::ForeignId { .. } => "station.foreign-id",
            Self::Window { .. } => "station.window",
            Self::ClockBehind { .. } => "station.clock-behind",
            Self::DuplicateId { .. } => "station.duplicate-id",
            Self::KeyOfOther { .. } => "station.key-of-other",
            Self::Profile(ProfileMismatch::Name(_)) => "station.name",
            Self::Profile(_) => "station.key",
            Self::Certificate(_) => "station.certificate",
            Self::Lapsed { .. } => "station.lapsed",
            Self::RevokedBefore { .. } => "station.revoked-before",
            Self::Decommissioned { .. } => "station.decommissioned",
        }
    }
}

impl Terms {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`StationFault::Terms`] or [`StationFault::Window`], for the operator.
    pub fn check(&self) -> Result<(), StationFault> {
        let wrong = |text: String| Err(StationFault::Terms(text));
        if self.quota == 0 || self.quota > QUOTA_MAX {
            return wrong(format!(
                "a station's quota is 1 to {QUOTA_MAX}; hint: make several stations"
            ));
        }
        if self.from >= self.to {
            return wrong(format!(
                "the signing window ends before it begins: {} to {}",
                self.from, self.to
            ));
        }
        if self.profile.lifetime().is_none() {
            return wrong(format!(
                "the certificates of profile {} have no end, and the station's own does: no certificate is good beyond its issuer's; hint: use a profile with lifetime_days",
                self.profile.name
            ));
        }
        if let IdRange::Run { first, last } = &self.ids
            && let Some(outside) = [first, last].into_iter().find(|id| !self.batch_ids.fits(id))
        {
            return wrong(format!(
                "{outside} does not fit the ids of the batch, {}; hint: choose ids of the batch",
                self.batch_ids
            ));
        }
        // Its CA may name no host, and is offline: it has no list, and nobody answers for it.
        if self
            .profile
            .san
            .iter()
            .any(|san| matches!(san, SanTemplate::Dns(_)))
        {
            return wrong(format!(
                "profile {} has dns: in san, and no certificate below a station names a host; hint: use a profile without it",
                self.profile.name
            ));
        }
        if self.profile.has_urls() {
            return wrong(format!(
                "profile {} has crl_urls, ocsp_urls or ca_issuer_urls, and a station's CA is offline: it has no revocation list, and nobody answers for it; hint: use a profile without them",
                self.profile.name
            ));
        }
        self.profile.check().map_err(StationFault::Terms)
    }

    /// The end of the longest certificate that it can issue: its own certificate ends then.
    pub fn not_after(&self) -> Timestamp {
        let end = self.to.plus(self.profile.lifetime().unwrap_or_default());
        Timestamp::from_unix_s(end.unix_s())
    }

    /// Whether it may issue, or might have issued, the certificate number `issued + 1` to `device` at `at`.
    ///
    /// # Errors
    /// The first [`StationFault`].
    pub fn allow(&self, device: &DeviceId, at: Timestamp, issued: u64) -> Result<(), StationFault> {
        if at < self.from || at > self.to {
            return Err(StationFault::Window {
                at,
                from: self.from,
                to: self.to,
            });
        }
        if !self.ids.fits(device) || !self.batch_ids.fits(device) {
            return Err(StationFault::ForeignId {
                device: device.clone(),
                ids: self.ids.clone(),
                batch_ids: self.batch_ids.clone(),
            });
        }
        if issued >= self.quota {
            return Err(StationFault::Overrun { quota: self.quota });
        }
        Ok(())
    }

    /// The grant for one device. Asks [`Terms::allow`]; that id and key are nobody else's is the caller's to check.
    ///
    /// # Errors
    /// The first [`StationFault`].
    pub fn permit(
        &self,
        device: DeviceId,
        key: ProvenKey,
        at: Timestamp,
        issued: u64,
    ) -> Result<EnrolmentGrant, StationFault> {
        self.allow(&device, at, issued)?;
        Ok(EnrolmentGrant::new(
            self.tenant.clone(),
            device,
            key,
            self.profile.clone(),
        )?)
    }
}

/// A station may be issued a CA certificate for a key it was proven to hold: an operator's decision.
#[derive(Debug)]
pub struct StationCaGrant {
    station: StationId,
    key: ProvenKey,
    not_after: Timestamp,
}

impl StationCaGrant {
    /// For the station of these terms.
    ///
    /// # Errors
    /// [`StationFault`] if the terms make no sense, or the key is neither P-256 nor P-384.
    pub fn new(terms: &Terms, key: ProvenKey) -> Result<Self, StationFault> {
        terms.check()?;
        match KeyKind::of(KeyAlgorithm::of(key.info())) {
            Some(KeyKind::P256 | KeyKind::P384) => Ok(Self {
                station: terms.station.clone(),
                key,
                not_after: terms.not_after(),
            }),
            _ => Err(StationFault::Terms(
                "a station's key is P-256 or P-384; hint: countersign-station init makes one".into(),
            )),
        }
    }

    /// The station.
    pub fn station(&self) -> &StationId {
        &self.station
    }

    /// Its key.
    pub fn key(&self) -> &ProvenKey {
        &self.key
    }

    /// The end of its certificate.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// What the grant file holds. It is told apart from others by the SHA-256 of its bytes, which the registry keeps and
/// the journal's first record names.
///
/// It is not signed: the registry decides by its own copy of the terms, so a changed file gains nobody anything, and
/// the factory CA's key signs certificates and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantFile {
    /// `countersign-station-grant-1`.
    pub format: String,
    /// The terms.
    pub terms: Terms,
    /// The station's certificate, then the factory CA's, PEM.
    pub chain: String,
    /// What devices pin, PEM.
    pub platform_root: String,
    /// Where devices connect.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl GrantFile {
    /// The only format there is.
    pub const FORMAT: &'static str = "countersign-station-grant-1";

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Fingerprint), String> {
        let file: Self = serde_json::from_slice(bytes).map_err(|e| format!("not a grant file: {e}"))?;
        if file.format != Self::FORMAT {
            return Err(format!(
                "a grant file of the format {:?}; this program reads {}",
                file.format,
                Self::FORMAT
            ));
        }
        file.terms.check().map_err(|e| e.to_string())?;
        Ok((file, Fingerprint::of(bytes)))
    }
}
