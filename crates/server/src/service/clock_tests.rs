//! With a clock that is behind nothing is minted, whatever is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use countersign_factory::{CertificateRequest, SoftwareKey};
use countersign_identity::revocation::RevocationList;
use countersign_identity::{AuthorityId, CertificateFacts, Clock, DeviceId, TenantId, Timestamp};
use countersign_policy::{ClientIdMode, LifecycleState};
use countersign_registry::{Actor, ClockRules, NewDevice, SystemClock};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::{Service, Wanted};
use crate::config::Config;
use crate::pki;

/// The machine's clock, moved by some milliseconds.
#[derive(Default)]
struct Moved(AtomicI64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(SystemClock.now().unix_ms() + self.0.load(Ordering::Relaxed))
    }
}

const DAY: i64 = 86_400_000;

struct Place {
    folder: tempfile::TempDir,
    clock: Arc<Moved>,
    service: Arc<Service>,
    pki: Router,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Moved::default());
        let service = Service::create_with_clock(folder.path(), Config::default(), clock.clone()).unwrap();
        let service = Arc::new(service);
        let pki = pki::router(service.clone(), Duration::from_secs(3600));
        Self {
            folder,
            clock,
            service,
            pki,
        }
    }

    fn set(&self, by_ms: i64) {
        self.clock.0.store(by_ms, Ordering::Relaxed);
    }

    async fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = self.pki.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        (
            status,
            answer.into_body().collect().await.unwrap().to_bytes().to_vec(),
        )
    }

    async fn ocsp(&self, request: Vec<u8>) -> Vec<u8> {
        let request = Request::post("/ocsp").body(Body::from(request)).unwrap();
        let answer = self.pki.clone().oneshot(request).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes().to_vec()
    }
}

fn actor() -> Actor {
    Actor("test".into())
}

fn wanted(id: &str) -> Wanted {
    let device = DeviceId::new(id).unwrap();
    let key = SoftwareKey::generate().unwrap();
    let request = CertificateRequest::create(&key, &device).unwrap();
    let request = CertificateRequest::parse(request.as_bytes()).unwrap();
    Wanted::new(TenantId::default_tenant(), device, request)
}

/// An OCSP request about one serial number of the authority (RFC 6960 section 4.1.1).
fn question(service: &Service, serial: &str) -> Vec<u8> {
    use aws_lc_rs::digest::{SHA256, digest};
    use countersign_factory::tlv::{sequence, tlv};
    let id = AuthorityId::new("default-devices").unwrap();
    let authority = service.authority_with_key(&id).unwrap();
    let key = countersign_identity::signed::key_of(authority.certificate()).unwrap();
    let name = digest(&SHA256, &authority.facts().subject_der);
    let bits = digest(&SHA256, key.subject_public_key.as_bytes().unwrap());
    let sha256 = [
        0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01,
    ];
    let certificate = sequence(&[
        &sha256,
        &tlv(0x04, &[name.as_ref()]),
        &tlv(0x04, &[bits.as_ref()]),
        &tlv(0x02, &[&hex::decode(serial).unwrap()]),
    ]);
    sequence(&[&sequence(&[&sequence(&[&sequence(&[&certificate])])])])
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_no_list_and_no_answer_while_the_clock_is_behind() {
    let place = Place::new();
    let service = &place.service;
    let tenant = TenantId::default_tenant();
    for id in ["d1", "d2"] {
        let new = NewDevice {
            id: DeviceId::new(id).unwrap(),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        service.add_device(actor(), tenant.clone(), new).await.unwrap();
    }
    let (first, _) = tokio::task::block_in_place(|| service.server_certificate()).unwrap();
    let issued = service.provision(actor(), wanted("d1")).await.unwrap();
    let request = question(service, &issued.serial);
    assert_eq!(place.get("/crl/default-devices.crl").await.0, 200);
    assert_eq!(place.ocsp(request.clone()).await[4..7], [0x0a, 1, 0]);
    let (credentials, authorities) = (
        service.registry().facts().credential_count(),
        service.registry().authorities().unwrap().len(),
    );

    place.set(-DAY - DAY / 2);
    let behind = |text: &str| text.contains("the clock is behind") && text.contains("1 d");
    let refused = service.issue(actor(), wanted("d2")).await.unwrap_err();
    assert!(refused.status == 503 && behind(&refused.message), "{refused:?}");
    assert!(refused.hint.unwrap().contains("countersign clock reset"));
    // A revocation takes effect all the same; only its list cannot be made now, and an old one would hide it.
    let whose = countersign_registry::Revocation::Device(tenant.clone(), issued.device.clone());
    service
        .revoke(actor(), whose, Default::default(), String::new())
        .await
        .unwrap();
    let (status, body) = place.get("/crl/default-devices.crl").await;
    assert!(
        status == 503 && behind(&String::from_utf8_lossy(&body)),
        "{status} {}",
        String::from_utf8_lossy(&body)
    );
    // RFC 6960 section 2.3: tryLater.
    assert_eq!(place.ocsp(request.clone()).await, [0x30, 3, 0x0a, 1, 3]);
    let other = TenantId::new("other").unwrap();
    let refused = service
        .add_tenant(actor(), other.clone(), ClientIdMode::Strict)
        .await
        .unwrap_err();
    assert!(behind(&refused.message), "{refused:?}");
    assert_eq!(service.registry().tenants().unwrap().len(), 1);
    // The server certificate that is there goes on; one that is missing is not made.
    let (same, _) = tokio::task::block_in_place(|| service.server_certificate()).unwrap();
    assert_eq!(same, first);
    std::fs::remove_file(place.folder.path().join("server/server.crt")).unwrap();
    let refused = tokio::task::block_in_place(|| service.server_certificate()).unwrap_err();
    assert!(behind(&refused.message), "{refused:?}");
    assert!(!place.folder.path().join("server/server.crt").exists());
    assert_eq!(service.registry().facts().credential_count(), credentials);
    assert_eq!(service.registry().authorities().unwrap().len(), authorities);
    let refused: u64 = service.registry().minting_refused().iter().map(|(_, n)| n).sum();
    assert!(refused >= 5, "{refused}");
    let check = service.doctor().into_iter().find(|c| c.name == "clock").unwrap();
    assert!(!check.ok && behind(&check.detail), "{check:?}");

    // Set right again, all of it works.
    place.set(0);
    service.issue(actor(), wanted("d2")).await.unwrap();
    assert_eq!(place.get("/crl/default-devices.crl").await.0, 200);
    assert_eq!(place.ocsp(request).await[4..7], [0x0a, 1, 0]);
    tokio::task::block_in_place(|| {
        service.server_certificate().unwrap();
    });
    service
        .add_tenant(actor(), other, ClientIdMode::Strict)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_certificate_that_is_due_goes_on_while_the_clock_is_behind() {
    let place = Place::new();
    let (first, _) = tokio::task::block_in_place(|| place.service.server_certificate()).unwrap();
    // 70 days on it is due, and the mark is there; then the clock says 65 days.
    place.set(70 * DAY);
    place.service.keep_time().await.unwrap();
    place.set(65 * DAY);
    let (same, _) = tokio::task::block_in_place(|| place.service.server_certificate()).unwrap();
    assert_eq!(same, first);
    place.set(70 * DAY);
    let (renewed, _) = tokio::task::block_in_place(|| place.service.server_certificate()).unwrap();
    assert_ne!(renewed, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_must_be_synchronised_and_is_not_mints_nothing() {
    let mut config = Config::default();
    config.issuance.require_clock_sync = true;
    let folder = tempfile::tempdir().unwrap();
    // This clock cannot tell, which is not taken for a yes.
    let clock = Arc::new(Moved::default());
    let refused = Service::create_with_clock(folder.path(), config, clock)
        .err()
        .unwrap();
    assert!(
        refused.status == 503 && refused.message.contains("not known to be synchronised"),
        "{refused:?}"
    );
    assert!(refused.hint.unwrap().contains("require_clock_sync off"));
    assert!(!folder.path().join("authorities/platform/issuing.crt").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_not_known_to_be_right_turns_no_key_that_signs_tokens() {
    let place = Place::new();
    place.service.open_tokens().unwrap();
    let keys = || std::fs::read(place.folder.path().join("tokens/keys.json")).unwrap();
    let first = keys();
    let rules = |require_sync| {
        place.service.registry().set_clock_rules(ClockRules {
            require_sync,
            ..ClockRules::default()
        });
    };
    // Far ahead, as after a battery that ran out; at a start, and while it serves.
    place.set(1000 * DAY);
    rules(true);
    place.service.open_tokens().unwrap();
    place.service.turn_token_keys().unwrap();
    assert_eq!(keys(), first);
    rules(false);
    place.service.open_tokens().unwrap();
    assert_ne!(keys(), first);
}

/// The first certificate within some DER.
fn certificate_in(der: &[u8]) -> CertificateFacts {
    let found = (0..der.len() - 4).find_map(|at| {
        let [0x30, 0x82, high, low] = der[at..at + 4] else {
            return None;
        };
        let end = at + 4 + usize::from(u16::from_be_bytes([high, low]));
        CertificateFacts::parse(der.get(at..end)?).ok()
    });
    found.unwrap()
}

/// What is signed and kept is of the time that it is handed out in: a list, the certificates of the keys that sign OCSP answers
/// and the time.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_clock_that_was_ahead_has_signed_is_signed_anew_once_it_is_right() {
    let place = Place::new();
    let service = &place.service;
    let new = NewDevice {
        id: DeviceId::new("d1").unwrap(),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let tenant = TenantId::default_tenant();
    service.add_device(actor(), tenant, new).await.unwrap();
    let issued = service.provision(actor(), wanted("d1")).await.unwrap();
    let request = question(service, &issued.serial);
    // Since when each of the three is valid.
    let begins = async || {
        let (status, list) = place.get("/crl/default-devices.crl").await;
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&list));
        let list = RevocationList::parse(&list).unwrap();
        let responder = certificate_in(&place.ocsp(request.clone()).await);
        let signed = service.signed_time("n").unwrap();
        let header = URL_SAFE_NO_PAD.decode(signed.split('.').next().unwrap()).unwrap();
        let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
        let key = STANDARD.decode(header["x5c"][0].as_str().unwrap()).unwrap();
        let key = CertificateFacts::parse(&key).unwrap();
        [list.this_update, responder.not_before, key.not_before]
    };
    place.set(3 * DAY);
    let ahead = begins().await;
    let wrong = SystemClock.now().plus(Duration::from_secs(2 * 86_400));
    assert!(ahead.iter().all(|begin| *begin > wrong), "{ahead:?}");

    // Set right: what is of a time to come is not handed out any more, and nothing is minted yet.
    place.set(0);
    service.keep_time().await.unwrap();
    assert_eq!(place.get("/crl/default-devices.crl").await.0, 503);
    assert_eq!(place.ocsp(request.clone()).await, [0x30, 3, 0x0a, 1, 3]);
    assert_eq!(service.signed_time("n").unwrap_err().status, 503);
    let why = || "the battery was flat".to_owned();
    service.reset_clock(actor(), why()).await.unwrap();
    let right = begins().await;
    let now = SystemClock.now();
    assert!(right.iter().all(|begin| *begin <= now), "{right:?} after {now}");

    // A reset lets go also of what is ahead by less than the tolerance.
    place.set(50_000);
    let revoked = countersign_registry::Revocation::Device(issued.tenant.clone(), issued.device.clone());
    let kept = begins().await;
    assert_eq!(kept[1..], right[1..]);
    service
        .revoke(actor(), revoked, Default::default(), String::new())
        .await
        .unwrap();
    let ahead = begins().await;
    assert!(ahead[0] > SystemClock.now(), "{ahead:?}");
    place.set(0);
    service.reset_clock(actor(), why()).await.unwrap();
    let right = begins().await;
    assert!(right[0] <= SystemClock.now(), "{right:?}");
}
