//! Runs the platform: device port, admin listener, signals.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use countersign_gateway::{BindError, Gateway, GatewayOptions, ServerIdentity, SystemClock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::api::{self, Token};
use crate::client::ADDRESS_FILE;
use crate::config::Config;
use crate::failure::Failure;
use crate::service::Service;
use crate::{enrol, pki};

/// How long a stop waits for sessions to be told.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the server certificate is looked at, for renewal and for replaced files, and credentials are swept.
const LOOK: Duration = Duration::from_secs(60);

/// A running platform.
pub struct Running {
    /// What operators can do.
    pub service: Arc<Service>,
    /// The device port.
    pub gateway: Arc<Gateway>,
    /// The admin listener.
    pub admin: SocketAddr,
    /// The enrolment listener, if it is open.
    pub enrol: Option<SocketAddr>,
    /// The listener for revocation lists and answers, if it is open.
    pub pki: Option<SocketAddr>,
    address_file: PathBuf,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Opens a data directory, making what is missing, and both ports.
    ///
    /// # Errors
    /// [`Failure`] with its cure; then nothing is left running.
    pub async fn start(data: &Path, config: Config) -> Result<Self, Failure> {
        raise_open_files();
        let service = tokio::task::block_in_place(|| Service::create(data, config.clone()))?;
        let service = Arc::new(service);
        // Before anybody is admitted: what lapsed or was superseded while nothing ran.
        service.sweep().await?;
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
            listener: "devices".into(),
            host_names: config
                .server
                .host_names
                .iter()
                .map(|n| n.to_ascii_lowercase())
                .collect(),
            limits: config.limits.to_limits(),
        };
        let registry = service.registry().clone();
        let gateway = Gateway::start(
            config.server.listen,
            options,
            config.server.tls_minimum,
            identity,
            registry.facts().clone(),
            registry,
            Arc::new(SystemClock),
        )
        .map_err(|e| match &e {
            BindError::Address { .. } => Failure::unavailable(
                e.to_string(),
                "another process has the port, or it needs more rights: set server.listen",
            ),
            BindError::Tls(_) => Failure::invalid(e.to_string()),
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
                if let Err(e) = watched.sweep().await {
                    tracing::error!(error = %e, "credentials cannot be swept");
                }
            }
        });
        let lists = tokio::spawn(service.clone().watch_lists());
        let mut tasks = vec![serving, watching, lists];
        let enrol = match config.enrol.listen {
            None => None,
            Some(listen) => {
                let identity = gateway.identity().clone();
                let max = config.enrol.connections_max;
                let (address, task) = enrol::start(listen, max, identity, service.clone()).await?;
                tasks.push(task);
                Some(address)
            }
        };
        let pki = match config.pki.listen {
            None => None,
            Some(listen) => {
                let next_update = Duration::from_secs(config.pki.next_update_hours * 3600);
                let (address, task) = pki::start(listen, next_update, service.clone()).await?;
                tasks.push(task);
                Some(address)
            }
        };
        let _ = service.listeners.set([enrol, pki]);
        let address_file = data.join(ADDRESS_FILE);
        countersign_authority::folder::write_private(&address_file, admin.to_string().as_bytes())?;
        Ok(Self {
            service,
            gateway,
            admin,
            address_file,
            enrol,
            pki,
            tasks,
        })
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
    tracing::info!(
        devices = %running.gateway.local_addr(),
        admin = %running.admin,
        enrol = running.enrol.map(|a| a.to_string()),
        pki = running.pki.map(|a| a.to_string()),
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
