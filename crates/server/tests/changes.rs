//! What committed changes do to the sessions that are live: how soon, and what their receipts say of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, Link, connect, subscribe_all};
use countersign_testkit::hold::Held;
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::{Server, http};
use serde_json::{Value, json};

struct Place {
    _folder: tempfile::TempDir,
    ca: Ca,
    server: Server,
}

impl Place {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), config).unwrap();
        let ca = Ca::root("fleet", None);
        let only = json!({ "mode": "registered-only" });
        server.register("fleet", "default", &ca, &only).unwrap();
        Self {
            _folder: folder,
            ca,
            server,
        }
    }

    /// Imports devices with certificates of `ca`.
    fn import(&self, tenant: &str, ca: &Ca, rows: &[(String, &[&str])]) -> Vec<(String, Identity)> {
        let (identities, rows): (Vec<_>, Vec<_>) = rows
            .iter()
            .map(|(id, groups)| {
                let identity = ca.issue(&Leaf::named(id), &[]);
                let row = json!({ "id": id, "groups": groups, "certificate": identity.pem });
                ((id.clone(), identity), row)
            })
            .unzip();
        let path = format!("/tenants/{tenant}/devices/import");
        let report = self.server.ask("POST", &path, Some(&json!({ "devices": rows })));
        assert_eq!(report.unwrap()["refused"], json!([]));
        identities
    }

    fn link(&self, id: &str, identity: &Identity) -> Link {
        let attempt = Attempt::new(self.server.devices).identity(identity);
        attempt.send(connect(5, id)).open().unwrap()
    }

    fn metric(&self, name: &str) -> u64 {
        let (_, text) = http(self.server.admin, "GET", "/metrics", None, None).unwrap();
        let value = text.lines().find_map(|l| l.strip_prefix(&format!("{name} ")));
        value.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    }
}

fn node(answer: &Value) -> Value {
    answer["receipt"]["nodes"][0].clone()
}

/// Subscriptions of a hundred sessions are asked about, 64 decisions each that cannot be kept; a suspension in another tenant
/// is as fast as ever meanwhile, and the receipt of either is exact.
#[test]
fn a_change_in_one_tenant_holds_up_no_suspension_in_another() {
    const SESSIONS: usize = 100;
    const LOSE: usize = 10;
    const OTHERS: usize = 12;
    /// 50 ms are promised; this is a debug build beside other tests.
    const SUSPENDED_WITHIN: Duration = Duration::from_millis(1500);
    let place = Place::new("[limits]\nsession_sweep_s = 1\n[receipts]\nwait_s = 60\n");
    let server = &place.server;
    server
        .ask("POST", "/tenants", Some(&json!({ "id": "other" })))
        .unwrap();
    let only = json!({ "mode": "registered-only" });
    let other_ca = Ca::root("other", None);
    server.register("others", "other", &other_ca, &only).unwrap();
    let spaces: Vec<Value> = (0..32)
        .map(|n| json!({ "name": format!("s{n}"), "filter": format!("{{id}}/{n}/#") }))
        .collect();
    let permit = "permit (principal, action, resource) when { principal.state == \"active\" };\n";
    let set = |policies: &str| {
        let body = json!({ "policies": policies, "spaces": spaces, "reason": "test" });
        node(&server.ask("PATCH", "/tenants/default", Some(&body)).unwrap())
    };
    set(permit);

    let rows: Vec<(String, &[&str])> = (0..SESSIONS)
        .map(|n| (format!("d{n}"), if n < LOSE { &["lose"][..] } else { &[] }))
        .collect();
    let fleet: Vec<(usize, Link)> = place
        .import("default", &place.ca, &rows)
        .iter()
        .enumerate()
        .map(|(n, (id, identity))| {
            let mut link = place.link(id, identity);
            let filters = (0..64).map(|n| (format!("{id}/{}/x", n / 2), n % 2));
            link.send(&subscribe_all(5, filters.map(|(f, qos)| (f, qos as u8))))
                .unwrap();
            let answer = link.packet().unwrap();
            assert_eq!((answer[0], answer.len()), (0x90, 2 + 3 + 64));
            (n, link)
        })
        .collect();
    let rows: Vec<(String, &[&str])> = (0..OTHERS).map(|n| (format!("x{n}"), &[][..])).collect();
    let mut others: Vec<(String, Held)> = place
        .import("other", &other_ca, &rows)
        .into_iter()
        .map(|(id, identity)| {
            let held = Held::open(server.devices, &identity, &id).unwrap();
            (id, held)
        })
        .collect();

    let (told, during) = std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            set(&format!(
                "{permit}forbid (principal, action == Action::\"subscribe\", resource) when {{ \
                 principal in Group::\"lose\" && context.source.isInRange(ip(\"127.0.0.0/8\")) }};"
            ))
        });
        let mut during = 0;
        for (id, held) in &mut others {
            let began = Instant::now();
            let path = format!("/tenants/other/devices/{id}/moves");
            let answer = server.ask(
                "POST",
                &path,
                Some(&json!({ "move": "suspend", "reason": "test" })),
            );
            let told = node(&answer.unwrap());
            let took = held.closed().unwrap() - began;
            assert!(took < SUSPENDED_WITHIN, "{id}: {took:?}");
            assert_eq!((&told["ended"], &told["open"]), (&json!(1), &json!(0)), "{told}");
            during += usize::from(!changing.is_finished());
            std::thread::sleep(Duration::from_millis(100));
        }
        (changing.join().unwrap(), during)
    });
    assert!(
        during > OTHERS / 2,
        "the policies were set in the time of {during} suspension(s)"
    );
    let kept = SESSIONS - LOSE;
    assert_eq!(
        (&told["ended"], &told["kept"]),
        (&json!(LOSE), &json!(kept)),
        "{told}"
    );
    for (n, mut link) in fleet {
        let _ = link.send(&[0xc0, 0]);
        let answer = link.packet().unwrap();
        let expected = if n < LOSE { 0xe0 } else { 0xd0 };
        assert_eq!(answer[0], expected, "{n}: {answer:x?}");
    }
    assert!(place.metric("countersign_session_sweeps_total") > 1);
    assert_eq!(place.metric("countersign_session_sweep_found_total"), 0);
}
