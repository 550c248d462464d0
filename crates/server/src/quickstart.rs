//! `countersign quickstart`: a throw-away platform, a few devices, three of which are turned away, and why.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_authority::{Hierarchy, IssuingAuthority};
use countersign_device::{DeviceIdentity, Link, LinkFault, LinkOptions};
use countersign_factory::{CertificateRequest, EnrolmentGrant, Profile};
use countersign_identity::{CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_mqtt::QoS;
use countersign_policy::{ExchangeRecord, LifecycleMove, LifecycleState};
use countersign_registry::{Actor, Move, NewDevice};

use crate::config::Config;
use crate::diagram;
use crate::failure::Failure;
use crate::identity_folder;
use crate::serve::Running;
use crate::service::{Provisioned, Wanted, now};

/// What it prints goes here, line by line.
pub type Print = fn(&str);

/// Where everything is made; removed at the end.
struct Place(PathBuf);

impl Place {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("countersign-quickstart-{}", std::process::id()));
        countersign_authority::folder::create_private(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn actor() -> Actor {
    Actor("quickstart".into())
}

fn device_id(text: &str) -> Result<DeviceId, Failure> {
    DeviceId::new(text).map_err(|e| Failure::internal(e.to_string()))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The well-known port if it is free, otherwise any.
fn free_or_any(port: u16) -> SocketAddr {
    match std::net::TcpListener::bind(loopback(port)) {
        Ok(_) => loopback(port),
        Err(_) => loopback(0),
    }
}

/// Runs it. With `once` it ends by itself.
///
/// # Errors
/// [`Failure`] if anything did not go as it should: a device that should be admitted was not, or the other way round.
pub async fn run(once: bool, print: Print) -> Result<(), Failure> {
    let place = Place::new()?;
    let mut config = Config::default();
    config.set_device_address(free_or_any(8883));
    config.admin.listen = free_or_any(9080);
    let data = place.0.join("data");
    let running = Running::start(&data, config).await?;
    let (host, port) = running.service.address();
    print(&format!(
        "countersign is open for devices at {host}:{port} (mutual TLS, MQTT 3.1.1 and 5)"
    ));
    print(&format!(
        "data directory (thrown away at the end): {}\n",
        data.display()
    ));
    let shown = show(&running, &place.0, print).await;
    match &shown {
        // Its folder is gone in a moment: nothing of it can be tried.
        Ok(_) if once => print("That is all. Without --once it stays, with a device for you to try."),
        Ok((device, folder)) => {
            your_turn(&running, &data, device, folder, print);
            let _ = tokio::signal::ctrl_c().await;
        }
        Err(_) => {}
    }
    running.stop().await;
    shown.map(drop)
}

fn your_turn(running: &Running, data: &Path, device: &Provisioned, folder: &Path, print: Print) {
    print(&format!(
        "Your turn. {} has a ready identity in {}:\n",
        device.device,
        folder.display()
    ));
    print(&format!(
        "  {}\n",
        identity_folder::mosquitto_line(folder, device)
    ));
    let program = std::env::current_exe().unwrap_or_else(|_| "countersign".into());
    let us = format!("  {} --data {}", program.display(), data.display());
    print(&format!("{us} explain {}", device.device));
    print(&format!("{us} device suspend {}\n", device.device));
    print(&format!("metrics: http://{}/metrics", running.admin));
    print("stop with Ctrl-C");
}

async fn show(running: &Running, place: &Path, print: Print) -> Result<(Provisioned, PathBuf), Failure> {
    let tenant = TenantId::default_tenant();
    let service = &running.service;

    print("1. The factory provisions three devices; each has its own key and certificate.");
    let mut folders = Vec::new();
    for name in ["sensor-1", "sensor-2", "sensor-3"] {
        let id = device_id(name)?;
        let new = NewDevice {
            id: id.clone(),
            model: Some("thermometer".into()),
            groups: vec!["demo".into()],
            state: LifecycleState::Active,
            authority: None,
        };
        service.add_device(actor(), tenant.clone(), new).await?;
        let folder = place.join("devices").join(name);
        let provisioned = service.provision(actor(), wanted(&tenant, &id, &folder)?).await?;
        identity_folder::write(&folder, &provisioned)?;
        print(&format!(
            "   {name}: certificate {} until {}",
            provisioned.serial, provisioned.not_after
        ));
        folders.push((provisioned, folder));
    }
    let (suspended, _) = &folders[1];
    service
        .move_device(
            actor(),
            tenant.clone(),
            suspended.device.clone(),
            Move::new(LifecycleMove::Suspend, "lost"),
        )
        .await?;

    print("\n2. sensor-1 connects and publishes.\n");
    admitted(&folders[0].1).await?;
    draw(running, "sensor-1", print).await?;

    print("3. sensor-2 was suspended: it proves who it is, and policy says no.\n");
    refused(&folders[1].1).await?;
    draw(running, "sensor-2", print).await?;

    print("4. A foreign device: its certificate is from a CA that nobody registered.\n");
    let fingerprint = foreign(place, &folders[0].0, &tenant)?;
    refused(&place.join("devices/foreign")).await?;
    draw(running, &fingerprint.to_string(), print).await?;

    print("5. sensor-3 comes with a certificate that expired yesterday.\n");
    let past = now().minus(Duration::from_secs(91 * 24 * 3600));
    let folder = place.join("devices/expired");
    let wanted = Wanted {
        dated: Some(past),
        ..wanted(&tenant, &folders[2].0.device, &folder)?
    };
    let expired = service.provision(actor(), wanted).await?;
    identity_folder::write(&folder, &expired)?;
    refused(&folder).await?;
    draw(running, &expired.fingerprint.to_string(), print).await?;
    Ok(folders.swap_remove(0))
}

async fn link(folder: &Path) -> Result<Result<Link, LinkFault>, Failure> {
    let identity = DeviceIdentity::load(folder).map_err(|e| Failure::internal(e.to_string()))?;
    Ok(Link::connect(&identity, &LinkOptions::default()).await)
}

async fn admitted(folder: &Path) -> Result<(), Failure> {
    let wrong = |e: LinkFault| Failure::internal(format!("a device that should be admitted was not: {e}"));
    let mut link = link(folder).await?.map_err(wrong)?;
    link.publish(
        "devices/sensor-1/telemetry",
        b"{\"temperature\": 21.5}",
        QoS::AtLeastOnce,
    )
    .await
    .map_err(wrong)?;
    link.disconnect().await.map_err(wrong)
}

async fn refused(folder: &Path) -> Result<(), Failure> {
    match link(folder).await? {
        Ok(_) => Err(Failure::internal("a device that should be refused was admitted")),
        Err(_) => Ok(()),
    }
}

fn request_of(folder: &Path, device: &DeviceId) -> Result<CertificateRequest, Failure> {
    let request = identity_folder::request(folder, device)?;
    CertificateRequest::parse(request.as_bytes()).map_err(|e| Failure::internal(e.to_string()))
}

fn wanted(tenant: &TenantId, device: &DeviceId, folder: &Path) -> Result<Wanted, Failure> {
    let request = request_of(folder, device)?;
    Ok(Wanted::new(tenant.clone(), device.clone(), request))
}

/// Somebody else's device: the same shape, another CA.
fn foreign(place: &Path, like: &Provisioned, tenant: &TenantId) -> Result<Fingerprint, Failure> {
    let internal = |e: &dyn std::fmt::Display| Failure::internal(e.to_string());
    let authority =
        IssuingAuthority::create(&place.join("foreign-ca"), Hierarchy::Devices, "foreign", now())?;
    let (device, folder) = (device_id("sensor-9")?, place.join("devices/foreign"));
    let request = request_of(&folder, &device)?;
    let grant = EnrolmentGrant::new(
        tenant.clone(),
        device.clone(),
        request.key().clone(),
        Profile::default(),
    )
    .map_err(|e| internal(&e))?;
    let issued = authority.issue_device(&grant, now())?;
    let facts: &CertificateFacts = issued.facts();
    let not_after: Timestamp = facts.not_after;
    identity_folder::write(
        &folder,
        &Provisioned {
            device,
            certificate: issued.chain_pem(),
            serial: facts.serial.clone(),
            fingerprint: facts.fingerprint,
            not_after,
            ..like.clone()
        },
    )?;
    Ok(facts.fingerprint)
}

/// The newest exchange of a subject, as a sequence.
async fn draw(running: &Running, subject: &str, print: Print) -> Result<(), Failure> {
    let service = running.service.clone();
    let subject = subject.to_owned();
    let found: Vec<ExchangeRecord> = tokio::task::spawn_blocking(move || service.explain(None, &subject, 1))
        .await
        .map_err(|e| Failure::internal(e.to_string()))??;
    for record in &found {
        for line in diagram::text(record).lines() {
            print(format!("   {line}").trim_end());
        }
        print("");
    }
    Ok(())
}
