//! After a renewal both certificates are admitted for the stated time, then only the new one.

use std::time::{Duration, Instant};

use countersign_factory::{CertificateRequest, SoftwareKey};
use countersign_identity::{DeviceId, TenantId};
use countersign_policy::{ClientIdMode, LifecycleState};
use countersign_registry::{Actor, IssuanceRules, NewDevice};
use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::pki::Identity;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Config;
use crate::serve::Running;
use crate::service::Wanted;

const OVERLAP: Duration = Duration::from_secs(2);

async fn issue(running: &Running, device: &DeviceId) -> Identity {
    let key = SoftwareKey::generate().unwrap();
    let request = CertificateRequest::create(&key, device).unwrap();
    let request = CertificateRequest::parse(request.as_bytes()).unwrap();
    let wanted = Wanted::new(TenantId::default_tenant(), device.clone(), request);
    let issued = running.service.issue(Actor("test".into()), wanted).await.unwrap();
    Identity {
        chain: vec![CertificateDer::from(issued.certificate)],
        key: PrivateKeyDer::Pkcs8(key.to_pkcs8().to_vec().into()),
        pem: String::new(),
        key_pem: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_certificate_is_refused_and_its_live_session_ended_when_the_overlap_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    let any = "127.0.0.1:0".parse().unwrap();
    config.admin.listen = any;
    config.set_device_address(any);
    let running = Running::start(&folder.path().join("data"), config).await.unwrap();
    let service = running.service.clone();
    service.registry().set_issuance_rules(IssuanceRules {
        overlap: OVERLAP,
        ..IssuanceRules::default()
    });
    // Several sessions of one device, so that the new certificate's session does not take over the old one's.
    let (tenant, by) = (TenantId::default_tenant(), Actor("test".into()));
    let mode = Some(ClientIdMode::Prefix);
    service
        .configure_tenant(by.clone(), tenant.clone(), mode, None)
        .await
        .unwrap();
    let device = DeviceId::new("d1").unwrap();
    let new = NewDevice {
        id: device.clone(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    service.add_device(by, tenant.clone(), new).await.unwrap();
    let old = issue(&running, &device).await;
    let attempt = |identity: &Identity, client: &str, patience: Duration| Attempt {
        patience,
        ..Attempt::new(running.gateway.local_addr())
            .identity(identity)
            .send(connect(5, client))
    };
    let short = Duration::from_millis(300);
    let first = attempt(&old, "d1:first", short).run();
    assert_eq!(first.connack(), Some(0), "{first:?}");

    // A session under the old certificate, for as long as it is let.
    let lives = attempt(&old, "d1:lives", Duration::from_secs(30));
    let lives = std::thread::spawn(move || (lives.run(), Instant::now()));
    let new = issue(&running, &device).await;
    let used = Instant::now();
    let seen = attempt(&new, "d1:new", short).run();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    let seen = attempt(&old, "d1:again", short).run();
    assert_eq!(seen.connack(), Some(0), "within the overlap: {seen:?}");

    let (seen, ended) = lives.join().unwrap();
    assert!(!seen.silent, "the session was not ended: {seen:?}");
    let packets = seen.packets();
    assert_eq!(packets.first().map(|p| p[0]), Some(0x20), "{seen:?}");
    assert_eq!(
        packets.last().map(|p| p[0]),
        Some(0xe0),
        "DISCONNECT with the reason: {seen:?}"
    );
    let lasted = ended - used;
    assert!(lasted >= OVERLAP && lasted < OVERLAP * 3, "{lasted:?}");
    let seen = attempt(&old, "d1:late", short).run();
    assert!(seen.connack() != Some(0) && !seen.silent, "after it: {seen:?}");
    let seen = attempt(&new, "d1:new", short).run();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    running.stop().await;
}
