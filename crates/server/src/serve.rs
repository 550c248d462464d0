//! Runs the platform: device port, admin listener, signals.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_gateway::{BindError, Foundation, Gateway, GatewayOptions, ServerIdentity, TicketKeys};
use countersign_identity::Timestamp;
use countersign_registry::{Change, Registry, RegistryError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::api::{self, Token};
use crate::client::ADDRESS_FILE;
use crate::config::Config;
use crate::failure::Failure;
use crate::listeners::Purpose;
use crate::service::{OpenListener, Service};
use crate::{clones, enrol, pki, tokens};

/// The keys of tickets, in the data directory. `countersign_gateway::TicketKeys` alone reads and writes it.
const TICKET_KEYS_FILE: &str = "ticket.keys";
/// How long a stop waits for sessions to be told.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the server certificate is looked at, for renewal and for replaced files, credentials are swept, and the
/// newest time that is known to have been is kept.
const LOOK: Duration = Duration::from_secs(60);
/// How often it is looked whether the overlap of a superseded certificate, a suspension or a quarantine is over.
const OVERLAP_LOOK: Duration = Duration::from_secs(1);

/// A running platform.
pub struct Running {
    /// What operators can do.
    pub service: Arc<Service>,
    /// What devices connect to.
    pub gateway: Arc<Gateway>,
    /// The admin listener.
    pub admin: SocketAddr,
    /// All other listeners.
    pub listeners: Vec<OpenListener>,
    address_file: PathBuf,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Opens a data directory, making what is missing, and all listeners.
    ///
    /// # Errors
    /// [`Failure`] with its cure; then nothing is left running.
    pub async fn start(data: &Path, config: Config) -> Result<Self, Failure> {
        raise_open_files();
        let service = tokio::task::block_in_place(|| Service::create(data, config.clone()))?;
        let service = Arc::new(service);
        // Before anybody is admitted: what lapsed or was superseded while nothing ran.
        service.keep_time().await?;
        service.sweep().await?;
        service.end_time_boxes().await?;
        tokio::task::block_in_place(|| service.open_tokens())?;
        let token = Token::load(data)?;
        let (chain, key) = service.server_certificate()?;
        let identity =
            Arc::new(ServerIdentity::new(chain, key).map_err(|e| Failure::invalid(e.to_string()))?);
        // Before the device port: a server that cannot be driven must not admit.
        let listener = TcpListener::bind(config.admin.listen).await.map_err(|e| {
            Failure::unavailable(
                format!("cannot listen on {}: {e}", config.admin.listen),
                "another process has the port: stop it, or set admin.listen",
            )
        })?;
        let admin = listener
            .local_addr()
            .map_err(|e| Failure::internal(e.to_string()))?;
        let options = GatewayOptions {
            host_names: config
                .server
                .host_names
                .iter()
                .map(|n| n.to_ascii_lowercase())
                .collect(),
            limits: config.limits.to_limits(),
            clones: config.clones.to_rules(),
            tickets: config.resumption.to_settings(),
        };
        let tickets = tokio::task::block_in_place(|| ticket_keys(data, &config, service.now()));
        let registry = service.registry().clone();
        let for_devices: Vec<_> = config
            .listeners
            .iter()
            .filter(|l| l.purpose == Purpose::Devices)
            .map(|l| l.to_device_listener())
            .collect();
        let foundation = Foundation {
            identity,
            tickets: tickets.clone(),
            facts: registry.facts().clone(),
            sink: Arc::new(clones::Sink::new(&service)),
            http: Arc::new(enrol::DevicePort::new(service.clone())),
            clock: service.registry().clock().clone(),
        };
        let gateway = Gateway::start(&for_devices, options, foundation).map_err(|e| match &e {
            BindError::Address { .. } => Failure::unavailable(
                e.to_string(),
                "another process has the port, or it needs more rights: change the listener",
            ),
            BindError::Tls(_) | BindError::None => Failure::invalid(e.to_string()),
        })?;
        let gateway = Arc::new(gateway);
        service.attach(gateway.clone());
        let router = api::router(service.clone(), token);
        let serving = tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                tracing::error!(error = %e, "the admin listener ended");
            }
        });
        let (watched, identity) = (service.clone(), gateway.identity().clone());
        let watching = tokio::spawn(async move {
            let mut look = tokio::time::interval(LOOK);
            look.tick().await;
            loop {
                look.tick().await;
                if let Err(e) = tokio::task::block_in_place(|| watched.reload_server_certificate(&identity)) {
                    tracing::error!(error = %e, "the server certificate cannot be loaded; the old one is served");
                }
                if let Err(e) = tokio::task::block_in_place(|| tickets.rotate(watched.now())) {
                    tracing::error!(error = %e, "ticket keys are not kept");
                }
                if let Err(e) = watched.keep_time().await {
                    tracing::error!(error = %e, "the time cannot be kept");
                }
                if let Err(e) = tokio::task::block_in_place(|| watched.turn_token_keys()) {
                    tracing::error!(error = %e, "the next key that signs tokens cannot be taken into use");
                }
                if let Err(e) = watched.sweep().await {
                    tracing::error!(error = %e, "credentials cannot be swept");
                }
            }
        });
        let swept = service.clone();
        let sweeping = tokio::spawn(async move {
            let mut look = tokio::time::interval(OVERLAP_LOOK);
            loop {
                look.tick().await;
                let due = tokio::task::block_in_place(|| swept.registry().is_sweep_due(swept.now()));
                // What the database says against it is told by the sweep of every minute.
                if due.unwrap_or(false)
                    && let Err(e) = swept.sweep().await
                {
                    tracing::error!(error = %e, "superseded credentials cannot be ended");
                }
                if let Err(e) = swept.end_time_boxes().await {
                    tracing::error!(error = %e, "time boxes cannot be ended");
                }
                swept.forget_cutoffs();
            }
        });
        let mut tasks = vec![
            serving,
            watching,
            sweeping,
            tokio::spawn(service.clone().watch_lists()),
        ];
        tasks.extend(tell_ca(&service));
        let mut listeners: Vec<_> = gateway
            .local_addrs()
            .iter()
            .map(|(name, address)| OpenListener {
                name: name.clone(),
                purpose: Purpose::Devices,
                address: *address,
            })
            .collect();
        for listener in &config.listeners {
            let (address, task) = match listener.purpose {
                Purpose::Devices => continue,
                Purpose::Enrol => {
                    let identity = gateway.identity().clone();
                    let places = config.enrol.places();
                    enrol::start(listener, places, identity, service.clone()).await?
                }
                Purpose::Services => {
                    let identity = gateway.identity().clone();
                    let places = config.tokens.places();
                    tokens::listener::start(listener, places, identity, service.clone()).await?
                }
                Purpose::Pki => pki::start(listener.listen, &config.pki, service.clone()).await?,
            };
            tasks.push(task);
            listeners.push(OpenListener {
                name: listener.name.clone(),
                purpose: listener.purpose,
                address,
            });
        }
        let _ = service.listeners.set(listeners.clone());
        let address_file = data.join(ADDRESS_FILE);
        countersign_authority::folder::write_private(&address_file, admin.to_string().as_bytes())?;
        Ok(Self {
            service,
            gateway,
            admin,
            listeners,
            address_file,
            tasks,
        })
    }

    /// The first listener of a purpose.
    #[cfg(test)]
    pub fn listener(&self, purpose: Purpose) -> Option<SocketAddr> {
        let found = self.listeners.iter().find(|l| l.purpose == purpose);
        found.map(|l| l.address)
    }

    /// Closes the ports and tells every session. Everything recorded is on disk afterwards.
    pub async fn stop(self) {
        let report = self.gateway.shut_down(DRAIN).await;
        for task in &self.tasks {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.address_file);
        let service = self.service.clone();
        let _ = tokio::task::spawn_blocking(move || service.registry().ledger().flush()).await;
        tracing::info!(
            sessions.ended = report.ended,
            sessions.open = report.open,
            "stopped"
        );
    }
}

/// The keys of tickets, from the file if there are any. Nothing that is wrong with it keeps the server from starting: devices
/// then make full handshakes.
fn ticket_keys(data: &Path, config: &Config, now: Timestamp) -> Arc<TicketKeys> {
    let rotation = Duration::from_secs(config.resumption.key_rotation_s);
    let path = data.join(TICKET_KEYS_FILE);
    let (keys, faults) = TicketKeys::open(path, rotation, config.resumption.keys_kept, now);
    for fault in faults {
        tracing::error!(error = %fault, "ticket keys: tickets of before are declined, and full handshakes follow");
    }
    Arc::new(keys)
}

/// Keeps the CA told of what has ended here, if it is a process of its own.
fn tell_ca(service: &Arc<Service>) -> Option<JoinHandle<()>> {
    service.ca()?;
    let news = Arc::new(Notify::new());
    let noticed = news.clone();
    service.registry().on_change(move |_, changes| {
        if changes
            .iter()
            .any(|c| matches!(c, Change::Credential(..) | Change::Authority(_)))
        {
            noticed.notify_one();
        }
    });
    let service = service.clone();
    Some(tokio::spawn(async move {
        let mut is_down = false;
        // At once, then with every change: whoever asks for a certificate first does not wait for the whole history.
        loop {
            let of = service.clone();
            let result = tokio::task::spawn_blocking(move || of.tell_ca()).await;
            match result {
                Ok(Ok(())) => is_down = false,
                // Once per outage: it is tried again with every change, and every minute.
                Ok(Err(e)) if !is_down => {
                    is_down = true;
                    tracing::error!(error = %e, "the CA cannot be told what has ended");
                }
                _ => {}
            }
            let _ = tokio::time::timeout(LOOK, news.notified()).await;
        }
    }))
}

/// That a data directory was prepared, by `init`, by a restore, or by hand with a configuration: the platform that a misspelt
/// name would make has other roots and no devices, and all the same opens its ports and is healthy.
///
/// # Errors
/// [`Failure`] if nobody prepared it.
pub fn need_prepared(data: &Path) -> Result<(), Failure> {
    // The folder of a CA is refused as what it is, when it is opened.
    let is_prepared =
        Registry::exists(data) || data.join("countersign.toml").exists() || crate::ca::store::exists(data);
    match is_prepared {
        true => Ok(()),
        false => Err(RegistryError::Missing(data.to_owned()).into()),
    }
}

/// `countersign serve`: until SIGTERM or SIGINT. SIGHUP loads the server certificate again.
///
/// # Errors
/// [`Failure`] if it cannot start.
pub async fn serve(data: &Path, config: Config) -> Result<(), Failure> {
    let signals = || -> std::io::Result<_> {
        Ok((
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::hangup())?,
        ))
    };
    let (mut terminate, mut interrupt, mut hangup) =
        signals().map_err(|e| Failure::internal(format!("signals cannot be handled: {e}")))?;
    let running = Running::start(data, config).await?;
    for listener in &running.listeners {
        tracing::info!(
            listener.name = listener.name.as_str(),
            listener.purpose = listener.purpose.name(),
            address = %listener.address,
            "listening"
        );
    }
    tracing::info!(
        devices = %running.gateway.local_addr(),
        admin = %running.admin,
        data = %data.display(),
        pid = std::process::id(),
        "ready"
    );
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                let result =
                    tokio::task::block_in_place(|| running.service.reload_server_certificate(running.gateway.identity()));
                if let Err(e) = result {
                    tracing::error!(error = %e, "the server certificate cannot be loaded; the old one is served");
                }
            }
        }
    }
    running.stop().await;
    Ok(())
}

/// A session is an open file: takes as many as the system lets this user have.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        );
    }
}
