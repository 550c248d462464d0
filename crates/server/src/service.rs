//! What operators can do, in one place: API, CLI and quickstart all come through here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use countersign_authority::{Hierarchy, IssuingAuthority, folder};
use countersign_factory::request::pem;
use countersign_factory::{CertificateRequest, EnrolmentGrant, ProvenKey, ServerGrant, SoftwareKey};
use countersign_gateway::{Cutoff, CutoffReport, Gateway, ServerIdentity, Touched};
use countersign_identity::{
    AuthorityId, CertificateFacts, DeviceId, Fingerprint, IdentityRule, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{
    ClientIdMode, CredentialState, Custody, ExchangeRecord, FactSource, LifecycleMove, LifecycleState,
    TopicSpace,
};
use countersign_registry::{
    Actor, Change, Committed, ImportReport, NewAuthority, NewCredential, NewDevice, Registry, RegistryError,
};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::failure::Failure;

/// How long a change waits for the sessions that it ends.
const CUTOFF_PATIENCE: Duration = Duration::from_secs(5);
/// A managed server certificate is renewed when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// The clock of this process.
pub fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// What a change did to live sessions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionsReport {
    /// Closed.
    pub ended: usize,
    /// Not closed within the wait; they cannot act any more all the same.
    pub open: usize,
    /// Decided anew, and they may stay.
    pub kept: usize,
    /// From the change to the last close, in milliseconds.
    pub took_ms: f64,
}

impl From<CutoffReport> for SessionsReport {
    fn from(r: CutoffReport) -> Self {
        Self {
            ended: r.ended,
            open: r.open,
            kept: r.kept,
            took_ms: (r.took.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

/// A certificate that was issued, with all that the device needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provisioned {
    /// The device.
    pub device: DeviceId,
    /// Certificate and issuing CA, PEM.
    pub certificate: String,
    /// The private key, PEM; only if the server made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What the device pins, PEM.
    pub platform_root: String,
    /// The certificate's serial number, hex.
    pub serial: String,
    /// The certificate's fingerprint.
    pub fingerprint: Fingerprint,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// Where the device connects.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// One finding of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do, if it is not well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

type Cutoffs = Mutex<HashMap<(u64, Change), Cutoff>>;

/// An open data directory, with a gateway if this process serves.
pub struct Service {
    data: PathBuf,
    config: Config,
    registry: Arc<Registry>,
    platform: IssuingAuthority,
    devices: Mutex<HashMap<TenantId, Arc<IssuingAuthority>>>,
    gateway: OnceLock<Arc<Gateway>>,
    cutoffs: Arc<Cutoffs>,
}

impl Service {
    /// Makes what is missing in a data directory, and opens it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn create(data: &Path, config: Config) -> Result<Self, Failure> {
        folder::create_private(data)?;
        let registry = Registry::create(data, config.ledger.to_limits())?;
        let platform_folder = data.join("authorities/platform");
        if !platform_folder.join("issuing.crt").exists() {
            IssuingAuthority::create(&platform_folder, Hierarchy::Platform, "platform", now())?;
        }
        let service = Self::with(data, config, registry)?;
        service.ensure_device_authority(&Actor("countersign".into()), &TenantId::default_tenant())?;
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
        let platform = IssuingAuthority::open(&data.join("authorities/platform"), Hierarchy::Platform)?;
        Ok(Self {
            data: data.to_owned(),
            config,
            registry: Arc::new(registry),
            platform,
            devices: Mutex::default(),
            gateway: OnceLock::new(),
            cutoffs: Arc::default(),
        })
    }

    /// The registry.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The gateway, if this process serves.
    pub fn gateway(&self) -> Option<&Arc<Gateway>> {
        self.gateway.get()
    }

    /// From now on every committed change is applied to the sessions of this gateway, whoever made the change.
    pub fn attach(&self, gateway: Arc<Gateway>) {
        let (cutoffs, observed) = (self.cutoffs.clone(), gateway.clone());
        self.registry.on_change(move |revision, changes| {
            for change in changes {
                let cutoff = observed.reconsider(&touched(change));
                // Kept for whoever made the change and waits to tell how it went.
                if !cutoff.is_idle() {
                    cutoffs.lock().insert((revision, change.clone()), cutoff);
                }
            }
        });
        let _ = self.gateway.set(gateway);
    }

    /// What a change did to live sessions: waits until they are closed.
    async fn sessions_of<T>(&self, committed: &Committed<T>) -> SessionsReport {
        let mut report = SessionsReport::default();
        for change in &committed.changes {
            let cutoff = self.cutoffs.lock().remove(&(committed.revision, change.clone()));
            if let Some(cutoff) = cutoff {
                let part = SessionsReport::from(cutoff.wait(CUTOFF_PATIENCE).await);
                report.ended += part.ended;
                report.open += part.open;
                report.kept += part.kept;
                report.took_ms = report.took_ms.max(part.took_ms);
            }
        }
        report
    }

    /// Runs a change off the async threads: it waits for the disk.
    async fn change<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Registry) -> Result<Committed<T>, RegistryError> + Send + 'static,
    ) -> Result<(T, SessionsReport), Failure> {
        let registry = self.registry.clone();
        let committed = tokio::task::spawn_blocking(move || run(&registry))
            .await
            .map_err(|e| Failure::internal(format!("the change failed: {e}")))??;
        let report = self.sessions_of(&committed).await;
        Ok((committed.value, report))
    }

    // --- tenants and authorities

    /// Adds a tenant with an issuing authority of its own.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn add_tenant(&self, actor: Actor, id: TenantId, mode: ClientIdMode) -> Result<(), Failure> {
        let (by, tenant) = (actor.clone(), id.clone());
        self.change(move |r| r.add_tenant(by, tenant, mode)).await?;
        tokio::task::block_in_place(|| self.ensure_device_authority(&actor, &id))
    }

    fn device_folder(&self, tenant: &TenantId) -> PathBuf {
        self.data.join("authorities/devices").join(tenant.as_str())
    }

    /// Makes and registers a tenant's issuing authority if it has none. Safe to repeat after a cut between the two.
    fn ensure_device_authority(&self, actor: &Actor, tenant: &TenantId) -> Result<(), Failure> {
        let path = self.device_folder(tenant);
        let authority = if path.join("issuing.crt").exists() {
            IssuingAuthority::open(&path, Hierarchy::Devices)?
        } else {
            IssuingAuthority::create(&path, Hierarchy::Devices, tenant.as_str(), now())?
        };
        // The issuing CA is the anchor, not its root: a chain below another issuing CA of the root is not ours.
        let new = NewAuthority {
            id: AuthorityId::new(&format!("{tenant}-devices"))
                .map_err(|e| Failure::invalid(e.to_string()))?,
            tenant: tenant.clone(),
            managed: true,
            rule: IdentityRule::CommonName,
            certificate: authority.certificate().to_vec(),
        };
        match self.registry.register_authority(actor.clone(), new) {
            Ok(_) | Err(RegistryError::Exists(_)) => {}
            Err(e) => return Err(e.into()),
        }
        self.devices.lock().insert(tenant.clone(), Arc::new(authority));
        Ok(())
    }

    fn device_authority(&self, tenant: &TenantId) -> Result<Arc<IssuingAuthority>, Failure> {
        if let Some(authority) = self.devices.lock().get(tenant) {
            return Ok(authority.clone());
        }
        let path = self.device_folder(tenant);
        if !path.join("issuing.crt").exists() {
            return Err(Failure::from(RegistryError::NoTenant(tenant.clone())));
        }
        let authority = Arc::new(IssuingAuthority::open(&path, Hierarchy::Devices)?);
        self.devices.lock().insert(tenant.clone(), authority.clone());
        Ok(authority)
    }

    /// Replaces what is given of a tenant's settings.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn configure_tenant(
        &self,
        actor: Actor,
        id: TenantId,
        mode: Option<ClientIdMode>,
        policies: Option<String>,
        spaces: Option<Vec<TopicSpace>>,
    ) -> Result<SessionsReport, Failure> {
        Ok(self
            .change(move |r| r.configure_tenant(actor, id, mode, policies, spaces))
            .await?
            .1)
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

    /// Registers an authority that was brought along.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn register_authority(
        &self,
        actor: Actor,
        id: AuthorityId,
        tenant: TenantId,
        rule: IdentityRule,
        certificate: &str,
    ) -> Result<(), Failure> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| Failure::invalid(format!("the authority's certificate is no PEM: {e}")))?;
        let new = NewAuthority {
            id,
            tenant,
            managed: false,
            rule,
            certificate: der.to_vec(),
        };
        self.change(move |r| r.register_authority(actor, new)).await?;
        Ok(())
    }

    /// What devices pin: the platform root, PEM.
    pub fn platform_root(&self) -> String {
        pem("CERTIFICATE", self.platform.root())
    }

    /// A tenant's own issuing CA and its root, PEM.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn device_ca(&self, tenant: &TenantId) -> Result<String, Failure> {
        let authority = self.device_authority(tenant)?;
        Ok(format!(
            "{}{}",
            pem("CERTIFICATE", authority.certificate()),
            pem("CERTIFICATE", authority.root())
        ))
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
                    let credential = NewCredential {
                        certificate,
                        kind: CredentialKind::Operational,
                        state: CredentialState::Active,
                        custody: Custody::Unknown,
                    };
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

    /// Moves a device through its lifecycle, and waits for the sessions that this ends.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn move_device(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        attempted: LifecycleMove,
        reason: String,
    ) -> Result<(LifecycleState, SessionsReport), Failure> {
        let (lifecycle, report) = self
            .change(move |r| r.move_device(actor, tenant, device, attempted, reason))
            .await?;
        Ok((lifecycle.state, report))
    }

    /// Issues a certificate: for the key of a request, or for a key made here.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn provision(
        &self,
        actor: Actor,
        tenant: TenantId,
        device: DeviceId,
        request: Option<String>,
        issued_at: Option<Timestamp>,
    ) -> Result<Provisioned, Failure> {
        let authority = self.device_authority(&tenant)?;
        let (proven, made) = match request {
            Some(text) => {
                let request = CertificateRequest::parse(text.as_bytes())
                    .map_err(|e| Failure::invalid(e.to_string()))?;
                (request.key().clone(), None)
            }
            None => {
                let key = SoftwareKey::generate().map_err(|e| Failure::internal(e.to_string()))?;
                let proven = ProvenKey::of(&key).map_err(|e| Failure::internal(e.to_string()))?;
                (proven, Some(key.to_pem()))
            }
        };
        let (t, d) = (tenant.clone(), device.clone());
        let (issued, _) = self
            .change(move |r| {
                r.provision(actor, t.clone(), d.clone(), move |now| {
                    let grant = EnrolmentGrant::by_operator(t, d, proven);
                    let issued = authority
                        .issue_device(&grant, issued_at.unwrap_or(now))
                        .map_err(|e| e.to_string())?;
                    let credential = NewCredential {
                        certificate: issued.facts().clone(),
                        kind: CredentialKind::Operational,
                        state: CredentialState::Issued,
                        custody: Custody::Unknown,
                    };
                    Ok((credential, issued))
                })
            })
            .await?;
        let (host, port) = self.address();
        Ok(Provisioned {
            device,
            certificate: issued.chain_pem(),
            key: made.map(|k| k.to_string()),
            platform_root: self.platform_root(),
            serial: issued.facts().serial.clone(),
            fingerprint: issued.facts().fingerprint,
            not_after: issued.facts().not_after,
            host,
            port,
        })
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
            .map_or(self.config.server.listen.port(), |g| g.local_addr().port());
        (host, port)
    }

    /// Revokes a credential, and waits for the sessions that this ends.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn revoke(
        &self,
        actor: Actor,
        fingerprint: Fingerprint,
        reason: String,
    ) -> Result<SessionsReport, Failure> {
        Ok(self
            .change(move |r| r.revoke_credential(actor, fingerprint, reason))
            .await?
            .1)
    }

    /// Ends the sessions of a device; it may connect again at once.
    ///
    /// # Errors
    /// [`Failure`] if there is no such device, or this process does not serve.
    pub async fn disconnect(&self, tenant: &TenantId, device: &DeviceId) -> Result<SessionsReport, Failure> {
        if self.registry.device(tenant, device)?.is_none() {
            return Err(RegistryError::NoDevice {
                tenant: tenant.clone(),
                device: device.clone(),
            }
            .into());
        }
        let Some(gateway) = self.gateway() else {
            return Ok(SessionsReport::default());
        };
        Ok(gateway
            .disconnect(tenant, device)
            .wait(CUTOFF_PATIENCE)
            .await
            .into())
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

    // --- the server's own certificate

    fn server_files(&self) -> (PathBuf, PathBuf, bool) {
        match (&self.config.server.certificate, &self.config.server.key) {
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone(), false),
            _ => (
                self.data.join("server/server.crt"),
                self.data.join("server/server.key"),
                true,
            ),
        }
    }

    /// Loads the server certificate; a managed one is issued anew when it is missing, about to expire, or lacks a
    /// configured name.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn server_certificate(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Failure> {
        let (certificate, key, managed) = self.server_files();
        if managed && !self.is_server_certificate_good(&certificate, &key) {
            let new = SoftwareKey::generate().map_err(|e| Failure::internal(e.to_string()))?;
            let proven = ProvenKey::of(&new).map_err(|e| Failure::internal(e.to_string()))?;
            let grant = ServerGrant::new(&self.config.server.host_names, proven)
                .map_err(|e| Failure::invalid(e.to_string()))?;
            let issued = self.platform.issue_server(&grant, now())?;
            folder::create_private(&self.data.join("server"))?;
            folder::write_private(&key, new.to_pem().as_bytes())?;
            folder::write_private(&certificate, issued.chain_pem().as_bytes())?;
        }
        let unusable = |path: &Path, what: String| {
            Failure::invalid(format!("{} cannot be used: {what}", path.display()))
        };
        let chain = CertificateDer::pem_slice_iter(&folder::read(&certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| unusable(&certificate, e.to_string()))?;
        if chain.is_empty() {
            return Err(unusable(&certificate, "it holds no certificate in PEM".into()));
        }
        let bytes = zeroize::Zeroizing::new(folder::read_private(&key)?);
        let private = PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| unusable(&key, e.to_string()))?;
        Ok((chain, private))
    }

    fn is_server_certificate_good(&self, certificate: &Path, key: &Path) -> bool {
        let facts = folder::read(certificate)
            .ok()
            .filter(|_| key.exists())
            .and_then(|bytes| CertificateDer::from_pem_slice(&bytes).ok())
            .and_then(|der| CertificateFacts::parse(&der).ok());
        facts.is_some_and(|facts| {
            let names = &self.config.server.host_names;
            let dns = names.iter().filter(|n| n.parse::<std::net::IpAddr>().is_err());
            facts.not_after > now().plus(RENEW_BEFORE)
                && facts.issuer_der == self.platform.facts().subject_der
                && dns.eq(facts.san_dns_names.iter())
        })
    }

    /// Loads the server certificate and serves it from now on.
    ///
    /// # Errors
    /// [`Failure`]; then the one that is served stays.
    pub fn reload_server_certificate(&self, identity: &ServerIdentity) -> Result<bool, Failure> {
        let (chain, key) = self.server_certificate()?;
        if identity.leaf().as_ref() == chain.first() {
            return Ok(false);
        }
        identity
            .replace(chain, key)
            .map_err(|e| Failure::invalid(e.to_string()))?;
        tracing::info!("the server certificate was replaced");
        Ok(true)
    }

    // --- health

    /// Looks at everything that is known to go wrong.
    pub fn doctor(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        let mut add = |name: &str, result: Result<String, (String, String)>| {
            let (ok, detail, hint) = match result {
                Ok(detail) => (true, detail, None),
                Err((detail, hint)) => (false, detail, Some(hint)),
            };
            checks.push(Check {
                name: name.into(),
                ok,
                detail,
                hint,
            });
        };
        let facts = self.registry.facts();
        add(
            "registry",
            match facts.health() {
                Ok(()) => Ok(format!(
                    "{} devices, {} credentials",
                    facts.device_count(),
                    facts.credential_count()
                )),
                Err(e) => Err((
                    e.to_string(),
                    "free disk space, check permissions, then restart the server".into(),
                )),
            },
        );
        add(
            "audit",
            match self.registry.verify_audit() {
                Ok(Ok(n)) => Ok(format!("{n} entries, the chain of hashes holds")),
                Ok(Err(fault)) => Err((
                    fault.to_string(),
                    "compare with a backup: somebody wrote to registry.db".into(),
                )),
                Err(e) => Err((e.to_string(), "look at the disk".into())),
            },
        );
        add(
            "server certificate",
            match self.server_certificate() {
                Ok((chain, _)) => match chain.first().map(|c| CertificateFacts::parse(c)) {
                    Some(Ok(f)) if f.is_valid_at(now()) => Ok(format!("valid until {}", f.not_after)),
                    Some(Ok(f)) => Err((
                        format!(
                            "valid from {} to {}, the clock says {}",
                            f.not_before,
                            f.not_after,
                            now()
                        ),
                        "set the clock, or replace the certificate".into(),
                    )),
                    _ => Err(("it cannot be read".into(), "replace it".into())),
                },
                Err(e) => Err((e.message, e.hint.unwrap_or_default())),
            },
        );
        add(
            "clock",
            match self.registry.audit(1) {
                Ok(newest) => match newest.first() {
                    Some(entry) if entry.at > now().plus(Duration::from_secs(60)) => Err((
                        format!(
                            "the clock says {}, the last change was made at {}",
                            now(),
                            entry.at
                        ),
                        "set the clock: it went back".into(),
                    )),
                    _ => Ok(format!("{}", now())),
                },
                Err(e) => Err((e.to_string(), "look at the disk".into())),
            },
        );
        let ledger = self.registry.ledger();
        add(
            "ledger",
            match ledger.dropped() {
                0 => Ok(format!("{} exchanges written since start", ledger.written())),
                n => Err((
                    format!("{n} exchanges were lost since start"),
                    "look at the disk's speed and space".into(),
                )),
            },
        );
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let wanted = self.config.limits.connections_max as u64 + 256;
        add(
            "open files",
            match files {
                Some(n) if n < wanted => Err((
                    format!("{n} may be open, limits.connections_max asks for {wanted}"),
                    "raise the limit (ulimit -n, LimitNOFILE=), or lower limits.connections_max".into(),
                )),
                n => Ok(n.map_or("no limit".into(), |n| format!("{n} may be open"))),
            },
        );
        add(
            "serving",
            match self.gateway() {
                Some(gateway) => Ok(format!(
                    "{}, {} sessions",
                    gateway.local_addr(),
                    gateway.session_count()
                )),
                None => Ok("this data directory is not being served now".into()),
            },
        );
        checks
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

fn touched(change: &Change) -> Touched {
    match change.clone() {
        Change::Tenant(tenant) => Touched::Tenant(tenant),
        Change::Authority(authority) => Touched::Authority(authority),
        Change::Device(tenant, device) => Touched::Device(tenant, device),
        Change::Credential(tenant, device, fingerprint) => Touched::Credential(tenant, device, fingerprint),
    }
}
