//! What operators can do, in one place: API, CLI and quickstart all come through here.

mod apart;
mod attestation;
mod authorities;
mod batches;
#[cfg(test)]
mod bulk_move_tests;
mod bulk_moves;
mod bulk_place;
mod claims;
#[cfg(test)]
mod clock_tests;
mod cutoffs;
mod doctor;
mod exposure;
#[cfg(test)]
mod exposure_tests;
mod forecast;
mod issuance;
mod lists;
mod manifest;
mod missing_key;
mod own_authorities;
mod policies;
mod receipts;
mod rotation;
mod server_certificate;
mod services;
mod simulation;
mod stations;
mod tokens;
mod why;

pub use apart::Shown;
pub use authorities::AuthorityDraft;
pub use batches::{BulkAnswer, BulkCertificate, BulkOutcome, BulkWanted, ConfirmAnswer, ItemRefusal};
pub use claims::ClaimDraft;
pub use cutoffs::SessionsReport;
pub use issuance::{Provisioned, Wanted};
pub use lists::as_pem;
pub use manifest::ManifestImport;
pub(crate) use policies::NOBODY;
pub use policies::{Configured, PolicyDraft};
pub use receipts::Told;
pub(crate) use receipts::{Deed, blocking};
pub(crate) use simulation::GROUPS_MAX;
pub use stations::StationDraft;
pub use why::{DataAction, WhyAsked};

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use countersign_authority::time::TimeSigner;
use countersign_authority::{Hierarchy, IssuingAuthority, NoTokens, folder};
use countersign_gateway::Gateway;
use countersign_identity::{
    AuthorityId, CertificateFacts, ChainFault, Clock, DeviceId, Fingerprint, TenantId, Timestamp,
};
use countersign_policy::lifecycle::Lifecycle;
use countersign_policy::{
    ClientIdMode, ExchangeRecord, FactSource, LifecycleMove, LifecycleState, Possession,
};
use countersign_registry::{
    Actor, Committed, ImportReport, MintedAt, Move, NewCredential, NewDevice, Registry, RegistryError,
    SystemClock,
};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use self::cutoffs::{Cutoffs, observer, sessions_of};
use crate::ca::link::CaLink;
use crate::config::Config;
use crate::failure::Failure;
use crate::listeners::Purpose;
use crate::tokens::Tokens;

/// The machine's clock, where there is no service at hand: what is minted takes [`Service::minting_time`].
pub fn now() -> Timestamp {
    SystemClock.now()
}

/// A listener that is open.
#[derive(Debug, Clone, Serialize)]
pub struct OpenListener {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its address.
    pub address: SocketAddr,
}

/// An open data directory, with a gateway if this process serves.
pub struct Service {
    data: PathBuf,
    config: Config,
    registry: Arc<Registry>,
    platform: IssuingAuthority,
    issuing: Mutex<HashMap<AuthorityId, Arc<IssuingAuthority>>>,
    time_signer: Mutex<Option<(MintedAt, TimeSigner)>>,
    /// The CA, if it is a process of its own.
    ca: Option<CaLink>,
    ended_told: Arc<apart::EndedTold>,
    own_kept: own_authorities::OwnAuthoritiesKept,
    challenge_key: attestation::ChallengeKey,
    gateway: OnceLock<Arc<Gateway>>,
    tokens: OnceLock<Tokens>,
    /// Where the listeners are, once they are open.
    pub listeners: OnceLock<Vec<OpenListener>>,
    cutoffs: Arc<Cutoffs>,
    /// The place of the one bulk move.
    bulk: Arc<bulk_place::BulkPlace>,
    /// Held while a backup is made.
    pub(crate) backup_running: Mutex<()>,
    forecast_kept: Mutex<Option<forecast::Kept>>,
    forecast_running: AtomicBool,
}

impl Service {
    /// Makes what is missing in a data directory, and opens it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn create(data: &Path, config: Config) -> Result<Self, Failure> {
        Self::create_with_clock(data, config, Arc::new(SystemClock))
    }

    /// The same by a clock of the caller's: the program has one, tests move theirs.
    fn create_with_clock(data: &Path, config: Config, clock: Arc<dyn Clock>) -> Result<Self, Failure> {
        if crate::ca::store::exists(data) {
            return Err(Failure::invalid(format!(
                "{} is the folder of a CA: its keys are no business of this process; hint: name another data directory",
                data.display()
            )));
        }
        folder::create_private(data)?;
        let registry = Registry::create_with_clock(data, config.ledger.to_limits(), clock)?;
        registry.set_clock_rules(config.issuance.to_clock_rules());
        let platform_folder = data.join("authorities/platform");
        if !platform_folder.join("issuing.crt").exists() {
            let now = registry.minting_time()?;
            IssuingAuthority::create(&platform_folder, Hierarchy::Platform, "platform", now)?;
        }
        let service = Self::with(data, config, registry)?;
        let by = Actor("countersign".into());
        match &service.ca {
            None => service.ensure_device_authority(&by, &TenantId::default_tenant())?,
            // Devices that have their certificates are admitted without it.
            Some(ca) => {
                if let Err(e) = service.adopt_from_ca(ca, &by, None) {
                    let hint = e.hint.as_deref().unwrap_or_default();
                    tracing::warn!(cause = %e, hint, "the CA's authorities cannot be looked at: nothing is issued yet");
                }
            }
        }
        Ok(service)
    }

    /// Opens a data directory that `init` made.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn open(data: &Path, config: Config) -> Result<Self, Failure> {
        let registry = Registry::open(data, config.ledger.to_limits())?;
        Self::with(data, config, registry)
    }

    fn with(data: &Path, config: Config, registry: Registry) -> Result<Self, Failure> {
        let platform =
            missing_key::open_issuing(&data.join("authorities/platform"), Hierarchy::Platform, &NoTokens)?;
        let mut rules = config.issuance.to_rules();
        if config.ca.socket.is_some() {
            // It counts by itself, up to what its ca.toml says.
            rules.certificates_per_device_max = None;
        }
        registry.set_issuance_rules(rules);
        registry.set_enrol_only_profiles(config.enrol_only_profiles())?;
        registry.set_clock_rules(config.issuance.to_clock_rules());
        registry.set_receipts_max(config.receipts.keep_max);
        registry.conclude_receipts()?;
        let timeout = Duration::from_secs(config.ca.timeout_s);
        let ca = config
            .ca
            .socket
            .clone()
            .map(|socket| CaLink::new(socket, timeout, config.ca.status_requests_max));
        let own_kept = own_authorities::OwnAuthoritiesKept::of(&registry);
        Ok(Self {
            data: data.to_owned(),
            config,
            registry: Arc::new(registry),
            platform,
            issuing: Mutex::default(),
            time_signer: Mutex::default(),
            ca,
            ended_told: Arc::default(),
            own_kept,
            challenge_key: attestation::ChallengeKey::new()?,
            gateway: OnceLock::new(),
            tokens: OnceLock::new(),
            listeners: OnceLock::new(),
            cutoffs: Arc::default(),
            bulk: Arc::default(),
            backup_running: Mutex::default(),
            forecast_kept: Mutex::default(),
            forecast_running: AtomicBool::new(false),
        })
    }

    /// The registry.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.registry.now()
    }

    /// The time to mint by.
    ///
    /// # Errors
    /// [`Failure`] while the clock is behind, or not known to be right though it must be: nothing is to be minted.
    pub fn minting_time(&self) -> Result<Timestamp, Failure> {
        Ok(self.registry.minting_time()?)
    }

    /// Keeps the newest time that is known to have been, and says so while the clock is behind it.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn keep_time(&self) -> Result<(), Failure> {
        self.change(|r| r.keep_time()).await?;
        if let Some(refusal) = self.registry.clock_view().refusal {
            tracing::error!(cause = refusal.as_str(), "nothing is minted");
        }
        Ok(())
    }

    /// Takes the clock's time for right although it is behind.
    ///
    /// # Errors
    /// [`Failure`] without a reason.
    pub async fn reset_clock(&self, actor: Actor, reason: String) -> Result<Timestamp, Failure> {
        Ok(self.change(move |r| r.reset_clock(actor, reason)).await?.0)
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The CA, if it is a process of its own.
    pub fn ca(&self) -> Option<&CaLink> {
        self.ca.as_ref()
    }

    /// The gateway, if this process serves.
    pub fn gateway(&self) -> Option<&Arc<Gateway>> {
        self.gateway.get()
    }

    /// From now on every committed change is applied to the sessions of this gateway, whoever made the change.
    pub fn attach(&self, gateway: Arc<Gateway>) {
        self.registry
            .on_change(observer(self.cutoffs.clone(), gateway.clone()));
        let _ = self.gateway.set(gateway);
    }

    /// Forgets what changes did to sessions, once nobody asks for it any more.
    pub(crate) fn forget_cutoffs(&self) {
        self.cutoffs.forget(std::time::Instant::now());
    }

    /// Runs a change off the async threads: it waits for the disk.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Registry) -> Result<Committed<T>, RegistryError> + Send + 'static,
    ) -> Result<(T, SessionsReport), Failure> {
        let registry = self.registry.clone();
        let committed = tokio::task::spawn_blocking(move || run(&registry))
            .await
            .map_err(|e| Failure::internal(format!("the change failed: {e}")))??;
        let patience = Duration::from_secs(self.config.receipts.wait_s);
        let report = sessions_of(&self.cutoffs, committed.revision, &committed.changes, patience).await;
        Ok((committed.value, report))
    }

    // --- tenants and authorities

    /// Adds a tenant with an issuing authority of its own.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn add_tenant(&self, actor: Actor, id: TenantId, mode: ClientIdMode) -> Result<(), Failure> {
        // Without an authority of its own it would be of no use.
        self.minting_time()?;
        let (by, tenant) = (actor.clone(), id.clone());
        self.change(move |r| r.add_tenant(by, tenant, mode)).await?;
        tokio::task::block_in_place(|| match &self.ca {
            None => self.ensure_device_authority(&actor, &id),
            Some(ca) => self.adopt_from_ca(ca, &actor, None),
        })
    }

    /// Gives or takes a host name.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn set_host(
        &self,
        actor: Actor,
        tenant: TenantId,
        host: String,
        add: bool,
    ) -> Result<(), Failure> {
        if add {
            countersign_factory::grant::check_host_name(&host)
                .map_err(|e| Failure::invalid(e.to_string()))?;
            self.change(move |r| r.add_host(actor, tenant, host)).await?;
        } else {
            self.change(move |r| r.remove_host(actor, tenant, host)).await?;
        }
        Ok(())
    }

    // --- devices

    /// Adds a device.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn add_device(&self, actor: Actor, tenant: TenantId, new: NewDevice) -> Result<(), Failure> {
        starts(new.state)?;
        self.change(move |r| r.add_device(actor, tenant, new)).await?;
        Ok(())
    }

    /// Adds many devices with their certificates (PEM, leaf first).
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn import_devices(
        &self,
        actor: Actor,
        tenant: TenantId,
        devices: Vec<(NewDevice, Option<String>)>,
    ) -> Result<ImportReport, Failure> {
        let mut batch = Vec::with_capacity(devices.len());
        let mut unreadable = Vec::new();
        for (device, certificate) in devices {
            starts(device.state)?;
            let Some(text) = certificate else {
                batch.push((device, None));
                continue;
            };
            let read = CertificateDer::from_pem_slice(text.as_bytes())
                .map_err(|e| format!("its certificate is no PEM: {e}"))
                .and_then(|der| CertificateFacts::parse(&der).map_err(|e| e.to_string()));
            match read {
                Ok(certificate) => {
                    let credential = NewCredential::brought(certificate);
                    batch.push((device, Some(credential)));
                }
                Err(e) => unreadable.push((device.id, e)),
            }
        }
        let (mut report, _) = self
            .change(move |r| r.import_devices(actor, tenant, batch))
            .await?;
        report.refused.append(&mut unreadable);
        Ok(report)
    }

    /// Registers a self-signed certificate (PEM) for a device by its fingerprint.
    ///
    /// # Errors
    /// [`Failure`] if it is not self-signed, or not fit to authenticate a device.
    pub async fn pin_certificate(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        certificate: &str,
    ) -> Result<(Fingerprint, bool), Failure> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| Failure::invalid(format!("the certificate is no PEM: {e}")))?;
        let facts = CertificateFacts::parse(&der).map_err(|e| Failure::invalid(e.to_string()))?;
        countersign_identity::chain::check_pinned(&facts, &der).map_err(|fault| {
            let hint = match fault {
                ChainFault::UnknownCa { .. } => {
                    "only self-signed certificates are pinned; register the CA of others: countersign authority register"
                }
                _ => countersign_policy::DenialCode::of_chain(&fault).cure(),
            };
            Failure::invalid(format!("{fault}; hint: {hint}"))
        })?;
        if now() > facts.not_after {
            return Err(Failure::invalid(format!(
                "the certificate expired on {}; hint: let the device make a new one",
                facts.not_after
            )));
        }
        let fingerprint = facts.fingerprint;
        let (added, _) = self
            .change(move |r| r.pin_credential(actor, tenant, device, facts))
            .await?;
        Ok((fingerprint, added))
    }

    /// Moves a device through its lifecycle, and waits for the sessions that this ends.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn move_device(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        wanted: Move,
    ) -> Result<(Lifecycle, Told), Failure> {
        if matches!(
            wanted.attempted,
            LifecycleMove::Quarantine | LifecycleMove::Release | LifecycleMove::Decommission
        ) {
            receipts::need_reason(wanted.attempted.name(), &wanted.reason)?;
        }
        let deed = Deed {
            actor: actor.clone(),
            action: format!("device.{}", wanted.attempted.name()),
            tenant: Some(tenant.clone()),
            subject: device.to_string(),
            reason: wanted.reason.clone(),
        };
        self.deed(deed, move |r| r.move_device_as(actor, tenant, device, wanted))
            .await
    }

    /// Ends the suspensions and quarantines whose time is over.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn end_time_boxes(&self) -> Result<(), Failure> {
        while self.registry.is_time_box_over(self.now())? {
            let (ended, _) = self.change(|r| r.end_time_boxes()).await?;
            if ended == 0 {
                break;
            }
            tracing::info!(devices = ended, "time boxes ended");
        }
        Ok(())
    }

    /// Where devices connect.
    pub fn address(&self) -> (String, u16) {
        let host = self
            .config
            .server
            .host_names
            .first()
            .cloned()
            .unwrap_or_else(|| "localhost".into());
        let port = self
            .gateway()
            .map_or(self.config.device_address().port(), |g| g.local_addr().port());
        (host, port)
    }

    /// The port where devices enrol; `None` if they cannot.
    pub fn enrol_port(&self) -> Option<u16> {
        let open = self.listeners.get().map_or(&[][..], Vec::as_slice);
        let configured = self.config.listeners.iter().map(|l| (l.purpose, l.listen));
        open.iter()
            .map(|l| (l.purpose, l.address))
            .chain(configured)
            .find(|(purpose, address)| *purpose == Purpose::Enrol && address.port() != 0)
            .map(|(_, address)| address.port())
    }

    /// Ends the sessions of a device; it may connect again at once.
    ///
    /// # Errors
    /// [`Failure`] if there is no such device, or this process does not serve.
    pub async fn disconnect(
        &self,
        actor: Actor,
        tenant: &TenantId,
        device: &DeviceId,
    ) -> Result<Told, Failure> {
        if self.registry.device(tenant, device)?.is_none() {
            return Err(RegistryError::NoDevice {
                tenant: tenant.clone(),
                device: device.clone(),
            }
            .into());
        }
        let deed = Deed {
            actor,
            action: "session.disconnect".into(),
            tenant: Some(tenant.clone()),
            subject: device.to_string(),
            reason: String::new(),
        };
        let sessions = match self.gateway() {
            Some(gateway) => {
                let patience = Duration::from_secs(self.config.receipts.wait_s);
                gateway.disconnect(tenant, device).wait(patience).await.into()
            }
            None => SessionsReport::default(),
        };
        self.told(deed, sessions).await
    }

    // --- exchanges

    /// The exchanges that a text names: an exchange id, a fingerprint, a device id or a serial number.
    ///
    /// # Errors
    /// [`Failure`] if it names nothing.
    pub fn explain(
        &self,
        tenant: Option<&TenantId>,
        text: &str,
        limit: u32,
    ) -> Result<Vec<ExchangeRecord>, Failure> {
        let ledger = self.registry.ledger();
        ledger.flush();
        if let Ok(id) = text.parse()
            && let Some(exchange) = ledger.exchange(id)?
        {
            return Ok(vec![exchange]);
        }
        let mut found = Vec::new();
        if let Ok(fingerprint) = text.parse::<Fingerprint>() {
            found = ledger.of_fingerprint(&fingerprint, limit)?;
            if let Some(credential) = self.registry.facts().credential(&fingerprint) {
                let all = ledger.of_device(Some(&credential.tenant), &credential.device, limit)?;
                found.extend(all.into_iter().filter(|e| {
                    e.certificate
                        .as_ref()
                        .is_some_and(|c| c.fingerprint == fingerprint)
                }));
            }
        } else {
            if let Ok(device) = DeviceId::new(text) {
                found = ledger.of_device(tenant, &device, limit)?;
                // Refused inside TLS, before its id was read: tied to the device by its certificates.
                let tenant = tenant.cloned().unwrap_or_else(TenantId::default_tenant);
                for credential in self.registry.credentials(&tenant, &device)? {
                    let refused = ledger.of_fingerprint(&credential.fingerprint, limit)?;
                    found.extend(refused.into_iter().filter(|e| e.possession == Possession::Proven));
                }
            }
            if found.is_empty() {
                found = ledger.of_serial(text, limit)?;
                if let Some((tenant, device)) = self.registry.device_by_serial(text)? {
                    found.extend(ledger.of_device(Some(&tenant), &device, limit)?);
                }
            }
        }
        found.sort_by_key(|e| std::cmp::Reverse(e.id));
        found.dedup_by_key(|e| e.id);
        found.truncate(limit as usize);
        if found.is_empty() {
            let known = DeviceId::new(text).ok().is_some_and(|device| {
                let tenant = tenant.cloned().unwrap_or_else(TenantId::default_tenant);
                self.registry.facts().device(&tenant, &device).is_some()
            });
            return Err(Failure::not_found(
                if known {
                    format!("device {text} has not been seen yet: no exchange in which it proved its key")
                } else {
                    format!(
                        "{text} is no device, fingerprint, serial number or exchange that the ledger knows"
                    )
                },
                "countersign explain --recent shows the newest exchanges; what was refused before a certificate was proven is found by fingerprint or serial",
            ));
        }
        Ok(found)
    }
}

/// A device starts as pending or active; everything else is a move with a reason.
fn starts(state: LifecycleState) -> Result<(), Failure> {
    match state {
        LifecycleState::Pending | LifecycleState::Active => Ok(()),
        other => Err(Failure::invalid(format!(
            "a device starts as pending or active, not {other}"
        ))),
    }
}
