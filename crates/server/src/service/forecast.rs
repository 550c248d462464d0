//! What expires when: devices, and the authorities themselves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use countersign_factory::grant::SERVER_LIFETIME;
use countersign_identity::{AnchorState, CertificateFacts, TenantId, Timestamp};
use countersign_registry::{ForecastGroup, Windows};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::Service;
use crate::failure::Failure;

/// A registry of so few credentials is read in a moment.
const SMALL: usize = 20_000;
/// For so long a forecast is good enough for metrics: it reads all certificates.
const KEPT: Duration = Duration::from_secs(300);
/// `doctor` warns of what ends within this.
const SOON: Duration = Duration::from_secs(90 * 24 * 3600);

/// All that expires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// From when on it is told.
    pub now: Timestamp,
    /// Devices, by tenant, authority, batch and kind.
    pub devices: Vec<ForecastGroup>,
    /// Authorities, the platform's first.
    pub authorities: Vec<AuthorityForecast>,
}

/// When an authority ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityForecast {
    /// Its id; `platform` for the one that issues the server certificate.
    pub id: String,
    /// Its tenant; `None` for the platform.
    pub tenant: Option<String>,
    /// `managed` or `registered`.
    pub origin: String,
    /// Its state.
    pub state: AnchorState,
    /// The end of its certificate.
    pub not_after: Timestamp,
    /// The end of its root's certificate, if that is here.
    pub root_not_after: Option<Timestamp>,
    /// Of one that issues: for each profile, the last time at which a certificate can be issued.
    pub last_issue: Vec<LastIssue>,
}

/// The end of issuing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastIssue {
    /// The profile; `server` for the server certificate.
    pub profile: String,
    /// The last time: from then on the authority would end before what it issues.
    pub at: Timestamp,
}

/// What metrics tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Devices' certificates.
    pub devices: Windows,
    /// Of these, not renewed though it is time.
    pub unrenewed: u64,
    /// Authorities that admit or issue.
    pub authorities: Windows,
}

/// Totals that were made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    at: Timestamp,
    took: Duration,
    totals: Totals,
}

fn end_of(pem: &[u8]) -> Option<Timestamp> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    Some(CertificateFacts::parse(&der).ok()?.not_after)
}

impl Service {
    /// What expires when, of one tenant if one is named.
    ///
    /// # Errors
    /// [`Failure`] if the registry cannot be read.
    pub fn forecast(&self, tenant: Option<&TenantId>) -> Result<Forecast, Failure> {
        let now = self.now();
        let mut authorities = Vec::new();
        if tenant.is_none() {
            authorities.push(AuthorityForecast {
                id: "platform".into(),
                tenant: None,
                origin: "managed".into(),
                state: AnchorState::Active,
                not_after: self.platform.facts().not_after,
                root_not_after: CertificateFacts::parse(self.platform.root())
                    .ok()
                    .map(|f| f.not_after),
                last_issue: vec![LastIssue {
                    profile: "server".into(),
                    at: self.platform.last_issue(Some(SERVER_LIFETIME)),
                }],
            });
        }
        for view in self.registry.authorities()? {
            if tenant.is_some_and(|t| *t != view.tenant) {
                continue;
            }
            // One whose key is elsewhere tells its own end all the same.
            let ours = (view.origin == "managed" && view.state == AnchorState::Active)
                .then(|| self.authority_with_key(&view.id).ok())
                .flatten();
            let root = self.authority_folder(&view.id).join("root.crt");
            authorities.push(AuthorityForecast {
                root_not_after: std::fs::read(root).ok().and_then(|pem| end_of(&pem)),
                last_issue: ours
                    .iter()
                    .flat_map(|authority| {
                        self.config.profiles.iter().map(|profile| LastIssue {
                            profile: profile.name.clone(),
                            at: authority.last_issue(profile.lifetime()),
                        })
                    })
                    .collect(),
                id: view.id.to_string(),
                tenant: Some(view.tenant.to_string()),
                origin: view.origin,
                state: view.state,
                not_after: view.not_after,
            });
        }
        Ok(Forecast {
            now,
            devices: self.registry.forecast(now, tenant)?,
            authorities,
        })
    }

    /// The same in a few numbers, some minutes old: it is made anew beside whoever asks, and takes at most a hundredth of
    /// one processor. `None` until it is there.
    pub fn forecast_totals(self: &Arc<Self>) -> Option<Totals> {
        let kept = *self.forecast_kept.lock();
        let now = self.now();
        let is_good = kept.is_some_and(|k| k.at <= now && now.since(k.at) < KEPT.max(k.took * 100));
        if is_good || self.forecast_running.swap(true, Ordering::AcqRel) {
            return kept.map(|k| k.totals);
        }
        let service = self.clone();
        let make = move || {
            let started = Instant::now();
            match service.make_totals() {
                Ok(totals) => {
                    let took = started.elapsed();
                    *service.forecast_kept.lock() = Some(Kept {
                        at: now,
                        took,
                        totals,
                    });
                }
                Err(e) => tracing::error!(error = %e, "the forecast cannot be made"),
            }
            service.forecast_running.store(false, Ordering::Release);
        };
        // The first of a small registry is not worth the wait for the next scrape.
        if kept.is_none() && self.registry.facts().credential_count() <= SMALL {
            make();
            return self.forecast_kept.lock().map(|k| k.totals);
        }
        tokio::task::spawn_blocking(make);
        kept.map(|k| k.totals)
    }

    fn make_totals(&self) -> Result<Totals, Failure> {
        let forecast = self.forecast(None)?;
        let mut totals = Totals::default();
        for group in &forecast.devices {
            totals.devices.add(&group.windows);
            totals.unrenewed += group.unrenewed;
        }
        for authority in forecast.authorities.iter().filter(|a| a.state.admits()) {
            let end = authority
                .root_not_after
                .map_or(authority.not_after, |root| root.min(authority.not_after));
            totals.authorities.count(forecast.now, end);
        }
        Ok(totals)
    }

    pub(super) fn check_expiry_of_devices(&self) -> Result<String, (String, String)> {
        let groups = match self.registry.forecast(self.now(), None) {
            Ok(groups) => groups,
            Err(e) => return Err((e.to_string(), "look at the disk".into())),
        };
        let mut all = Windows::default();
        let mut unrenewed = 0;
        for group in &groups {
            all.add(&group.windows);
            unrenewed += group.unrenewed;
        }
        if all.overdue + unrenewed == 0 {
            return Ok("no device is late with its renewal".into());
        }
        Ok(format!(
            "{} device(s) live on a certificate that has expired, {unrenewed} should have renewed theirs, {} expire within 7 days; hint: countersign forecast shows of which authority and batch",
            all.overdue, all.days_7
        ))
    }

    pub(super) fn check_expiry_of_authorities(&self) -> Result<String, (String, String)> {
        let forecast = match self.forecast(None) {
            Ok(forecast) => forecast,
            Err(e) => return Err((e.message, e.hint.unwrap_or_default())),
        };
        let soon = forecast.now.plus(SOON);
        let mut late = Vec::new();
        for authority in forecast.authorities.iter().filter(|a| a.state.admits()) {
            let id = &authority.id;
            // What an authority issues by default is what counts; a longer-lived profile may never be used.
            match authority.last_issue.first() {
                Some(last) if last.at < soon => {
                    late.push(format!(
                        "{id} cannot issue by profile {} from {} on",
                        last.profile, last.at
                    ));
                }
                _ if authority.not_after < soon => {
                    late.push(format!("{id} ends on {}", authority.not_after));
                }
                _ => match authority.root_not_after {
                    Some(root) if root < soon => late.push(format!("the root of {id} ends on {root}")),
                    _ => {}
                },
            }
        }
        if late.is_empty() {
            return Ok(format!("{} last longer than 90 days", forecast.authorities.len()));
        }
        Ok(format!(
            "{}; hint: make a new one in time (countersign authority create), let the devices renew under it, then retire the old one",
            late.join("; ")
        ))
    }
}
