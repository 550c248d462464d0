//! A CA rotation of a fleet of 5,000 devices, with real handshakes: some are offline, some have a wrong clock, some have
//! expired. Nobody who can be reached is locked out, and of everybody else the report says why.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::{CertificateRequest, SoftwareKey};
use countersign_identity::Timestamp;
use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;

const FLEET: usize = 5000;
const OFFLINE: usize = 60;
const WRONG_CLOCK: usize = 50;
const EXPIRED: usize = 40;
const SUSPENDED: usize = 10;
/// Each as a device has its connection: one after the other.
const WORKERS: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Reachable,
    Offline,
    /// Its clock is years ahead: by it, our certificate has expired, and it ends the handshake.
    WrongClock,
    Expired,
    Suspended,
}

struct Device {
    id: String,
    kind: Kind,
    old: Identity,
    new: Mutex<Option<Identity>>,
}

fn kind(n: usize) -> Kind {
    let mut bound = 0;
    for (count, kind) in [
        (OFFLINE, Kind::Offline),
        (WRONG_CLOCK, Kind::WrongClock),
        (EXPIRED, Kind::Expired),
        (SUSPENDED, Kind::Suspended),
    ] {
        bound += count;
        if n < bound {
            return kind;
        }
    }
    Kind::Reachable
}

/// Runs `work` for each device, on a few threads.
fn each(devices: &[Device], work: impl Fn(&Device) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(device) = devices.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(device);
                }
            });
        }
    });
}

/// TLS and CONNECT; the CONNACK's code, or nothing.
fn comes_in(server: &Server, id: &str, identity: &Identity) -> Option<u8> {
    let attempt = Attempt {
        patience: Duration::from_secs(20),
        ..Attempt::new(server.devices)
    };
    // CONNECT and DISCONNECT in one breath: the server answers, and closes.
    let mut packets = connect(5, id);
    packets.extend([0xe0, 0]);
    attempt.identity(identity).send(packets).run().connack()
}

/// The device makes a new key, and asks for a certificate over the session that its old one still opens.
fn renews(server: &Server, device: &Device) -> Option<Identity> {
    let key = SoftwareKey::generate().unwrap();
    let request = CertificateRequest::create(&key, &device.id.parse().unwrap()).unwrap();
    let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap();
    let body = STANDARD.encode(der);
    let head = format!(
        "POST /.well-known/est/simplereenroll HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/pkcs10\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let attempt = Attempt {
        alpn: vec![b"http/1.1".to_vec()],
        patience: Duration::from_secs(20),
        ..Attempt::new(server.devices)
    };
    let seen = attempt.identity(&device.old).send(head).run();
    let text = String::from_utf8_lossy(&seen.data).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200"), "{}: {text}", device.id);
    let p7 = STANDARD.decode(body.trim()).unwrap();
    // Certs-only CMS with one certificate: it is the only SEQUENCE in it that parses as one.
    let certificate = (0..p7.len())
        .filter(|n| p7[*n..].starts_with(&[0x30, 0x82]))
        .find_map(|n| {
            let length = usize::from(u16::from_be_bytes([p7[n + 2], p7[n + 3]])) + 4;
            let der = p7.get(n..n + length)?;
            countersign_identity::CertificateFacts::parse(der)
                .ok()
                .map(|_| der.to_vec())
        })
        .unwrap();
    Some(Identity {
        chain: vec![CertificateDer::from(certificate)],
        key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec())),
        pem: String::new(),
        key_pem: String::new(),
    })
}

#[test]
fn a_rotation_of_5000_devices_locks_nobody_out_who_can_be_reached() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
    let config = "[limits]\nconnections_per_source_max = 10000\nsource_connect_burst = 100000\n";
    let server = Server::start(program, &folder.path().join("data"), config).unwrap();

    // The old world: a CA that was brought along, and its fleet.
    let old = Ca::root("factory CA of 2024", None);
    server
        .register("old", "default", &old, &json!({ "mode": "registered-only" }))
        .unwrap();
    let fleet: Vec<Device> = (0..FLEET)
        .map(|n| {
            let id = format!("lamp-{n:04}");
            let kind = kind(n);
            let leaf = Leaf {
                days: if kind == Kind::Expired {
                    (-30, -1)
                } else {
                    (-30, 30)
                },
                ..Leaf::named(&id)
            };
            Device {
                old: old.issue(&leaf, &[]),
                id,
                kind,
                new: Mutex::default(),
            }
        })
        .collect();
    let bundle: String = fleet.iter().map(|d| d.old.pem.as_str()).collect();
    std::fs::write(folder.path().join("fleet.pem"), bundle).unwrap();
    let file = folder.path().join("fleet.pem").display().to_string();
    server.cli_ok(&["device", "import", &file]).unwrap();
    for device in fleet.iter().filter(|d| d.kind == Kind::Suspended) {
        server.cli_ok(&["device", "suspend", &device.id]).unwrap();
    }

    // The rotation begins. Our own authority issues from now on; the old one issues nothing, and still admits.
    server.cli_ok(&["authority", "retire", "old"]).unwrap();
    let closing = |leave_out: usize| {
        let leave_out = leave_out.to_string();
        server
            .cli(&["authority", "close", "old", "--leave-out", &leave_out])
            .unwrap()
    };
    let refused = closing(100);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && told.contains(&(FLEET - EXPIRED).to_string()),
        "{told}"
    );

    // Half of the fleet renews, and the guard still refuses: it counts what is in use, not what was issued.
    let renew = |device: &Device| match device.kind {
        Kind::Reachable => {
            let new = renews(&server, device).unwrap();
            assert_eq!(comes_in(&server, &device.id, &new), Some(0), "{}", device.id);
            *device.new.lock().unwrap() = Some(new);
        }
        Kind::WrongClock => {
            let attempt = Attempt {
                clock: Some(Timestamp::parse_rfc3339("2045-01-01T00:00:00Z").unwrap()),
                patience: Duration::from_secs(20),
                ..Attempt::new(server.devices)
            };
            let seen = attempt.identity(&device.old).run();
            assert!(seen.data.is_empty(), "{}", device.id);
        }
        Kind::Expired => {
            let seen = Attempt::new(server.devices)
                .identity(&device.old)
                .send(connect(5, &device.id))
                .run();
            assert_eq!(seen.alert, Some(45), "{}", device.id);
        }
        Kind::Suspended => {
            assert_eq!(
                comes_in(&server, &device.id, &device.old),
                Some(0x87),
                "{}",
                device.id
            );
        }
        Kind::Offline => {}
    };
    let (first, second) = fleet.split_at(FLEET / 2);
    each(first, renew);
    assert!(!closing(100).status.success());
    each(second, renew);

    // Now only those are left who cannot be reached, and the guard says how many.
    let left = OFFLINE + WRONG_CLOCK + SUSPENDED;
    assert!(!closing(left - 1).status.success());
    let closed = closing(left);
    assert!(
        closed.status.success(),
        "{}",
        String::from_utf8_lossy(&closed.stderr)
    );

    // Every device that could be reached is in, by its new certificate; no old one opens anything.
    each(&fleet, |device| {
        if let Some(new) = &*device.new.lock().unwrap() {
            assert_eq!(comes_in(&server, &device.id, new), Some(0), "{}", device.id);
        }
    });
    let probe = fleet.iter().rev().find(|d| d.kind == Kind::Reachable).unwrap();
    assert_eq!(comes_in(&server, &probe.id, &probe.old), None);

    // The report: who stays out, and why.
    let report = server
        .ask("GET", "/authorities/old/dependents?limit=10000", None)
        .unwrap();
    assert_eq!(report["count"], left);
    let mut why: BTreeMap<String, String> = BTreeMap::new();
    for device in report["devices"].as_array().unwrap() {
        let text = |key: &str| device[key].as_str().unwrap().to_owned();
        why.insert(text("id"), text("why"));
    }
    for device in &fleet {
        let expected = match device.kind {
            Kind::Reachable => None,
            Kind::Offline | Kind::WrongClock => Some("not-seen"),
            Kind::Expired => Some("certificate-expired"),
            Kind::Suspended => Some("not-admitted"),
        };
        assert_eq!(why.get(&device.id).map(String::as_str), expected, "{}", device.id);
    }
    let by_devices: u64 = report["refused_by_devices"]
        .as_object()
        .unwrap()
        .values()
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!(by_devices, WRONG_CLOCK as u64, "{report}");
    assert_eq!(
        report["refused_by_devices"]["device-alert.certificate-expired"],
        WRONG_CLOCK
    );
    let told = server
        .cli_ok(&["authority", "dependents", "old", "--limit", "1000"])
        .unwrap();
    assert!(
        told.contains(&format!("not-seen: {}", OFFLINE + WRONG_CLOCK)) && told.contains("device secret"),
        "{told}"
    );
}
