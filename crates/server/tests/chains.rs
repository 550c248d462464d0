//! A CA and its parent, both registered, and one CA in two tenants: what ended does not come back by another way, and who admits
//! nobody keeps nobody out.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use countersign_testkit::client::{Attempt, LastSession, Link, Seen, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    root: Ca,
}

impl Place {
    /// With a root that is registered.
    fn new(admission: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), "").unwrap();
        let root = Ca::root("chains root", None);
        let how = match admission {
            "just-in-time" => json!({ "mode": admission, "state": "active", "id_pattern": "*", "quota": 10 }),
            _ => json!({ "mode": admission }),
        };
        server.register("root", "default", &root, &how).unwrap();
        Self { folder, server, root }
    }

    fn known(&self, id: &str, ca: &Ca) -> Identity {
        let identity = ca.issue(&Leaf::named(id), &[ca]);
        let body = json!({ "devices": [{ "id": id, "certificate": identity.pem }] });
        let import = "/tenants/default/devices/import";
        self.server.ask("POST", import, Some(&body)).unwrap();
        identity
    }

    fn attempt(&self, identity: &Identity, id: &str) -> Attempt {
        let attempt = Attempt {
            patience: Duration::from_millis(800),
            ..Attempt::new(self.server.devices)
        };
        attempt.identity(identity).send(connect(5, id))
    }

    fn seen(&self, identity: &Identity, id: &str) -> Seen {
        self.attempt(identity, id).run()
    }

    fn live(&self, identity: &Identity, id: &str) -> Link {
        self.attempt(identity, id).open().unwrap()
    }

    fn register(&self, id: &str, tenant: &str, ca: &Ca) {
        let mode = json!({ "mode": "registered-only" });
        self.server.register(id, tenant, ca, &mode).unwrap();
    }

    /// Of which authority a device's last exchange was.
    fn authority_of(&self, id: &str) -> Value {
        let path = format!("/exchanges?subject={id}&limit=1");
        self.server.ask("GET", &path, None).unwrap()[0]["authority"].clone()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

fn why(server: &Server, what: &str) -> String {
    let out = server.cli(&["why", what]).unwrap();
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn an_authority_that_ended_does_not_come_back_through_its_parent() {
    let ends: [(&[&str], u8, &str); 2] = [
        (
            &["authority", "revoke", "issuing", "--reason", "stolen"],
            44,
            "authority.revoked",
        ),
        (
            &["authority", "close", "issuing", "--leave-out", "5"],
            48,
            "authority.retired",
        ),
    ];
    for (end, alert, code) in ends {
        let place = Place::new("registered-only");
        let issuing = place.root.below("chains issuing", Some(0));
        let (one, two) = (place.known("d1", &issuing), place.known("d2", &issuing));
        // Before the issuing CA is registered, its devices are the root's.
        let mut by_root = place.live(&one, "d1");
        assert_eq!(place.authority_of("d1"), "root");
        place.register("issuing", "default", &issuing);
        let session = Arc::new(LastSession::default());
        let resuming = place.attempt(&two, "d2").remembering(session.clone());
        let mut by_issuing = resuming.open().unwrap();
        assert_eq!(place.authority_of("d2"), "issuing");

        if end[1] == "close" {
            place.server.cli_ok(&["authority", "retire", "issuing"]).unwrap();
        }
        let told = place.server.cli_ok(end).unwrap();
        assert!(told.contains("2 session(s) ended"), "{told}");
        for link in [&mut by_root, &mut by_issuing] {
            assert_eq!(link.packet().unwrap()[0], 0xe0);
        }
        for (identity, id) in [(&one, "d1"), (&two, "d2")] {
            let seen = place.seen(identity, id);
            assert_eq!((seen.connack(), seen.alert), (None, Some(alert)), "{seen:?}");
            let shown = place.write("shown.pem", &format!("{}{}", identity.pem, issuing.pem));
            for what in [&shown, "d2"] {
                let told = why(&place.server, what);
                assert!(told.contains(code), "{told}");
            }
        }
        // Its ticket is declined, and the full handshake that follows refused.
        assert!(session.is_some());
        let seen = resuming.run();
        assert_eq!((seen.connack(), seen.alert), (None, Some(alert)), "{seen:?}");
        // What the root issued itself has nothing to do with it.
        let own = place.known("d3", &place.root);
        assert_eq!(place.seen(&own, "d3").connack(), Some(0));
    }
}

#[test]
fn what_an_authoritys_list_revokes_does_not_come_back_through_its_parent() {
    let place = Place::new("just-in-time");
    let issuing = place.root.below("chains issuing", Some(0));
    place.register("issuing", "default", &issuing);
    let (bad, good) = (Leaf::named("bad"), Leaf::named("good"));
    let (bad, good) = (
        issuing.issue(&bad, &[&issuing]),
        issuing.issue(&good, &[&issuing]),
    );
    let list = place.write("list.pem", &issuing.revocation_list(&[&bad], 1, (-1, 60)));
    place
        .server
        .cli_ok(&["authority", "crl", "issuing", &list])
        .unwrap();
    let seen = place.seen(&bad, "bad");
    assert_eq!((seen.connack(), seen.alert), (None, Some(44)), "{seen:?}");
    assert!(
        place
            .server
            .ask("GET", "/tenants/default/devices/bad", None)
            .is_err(),
        "nobody was made"
    );
    assert_eq!(place.seen(&good, "good").alert, None);
    // The list is missing, then: nothing says that anybody is good, by whichever way.
    let stale = place.write("stale.pem", &issuing.revocation_list_of(&[&bad], 2, (-1, 1)));
    place
        .server
        .cli_ok(&["authority", "crl", "issuing", &stale])
        .unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(place.seen(&good, "good").alert, Some(48));
}

/// Whoever has a CA's certificate may register it, and it is public.
#[test]
fn an_authority_that_admits_nobody_keeps_no_other_tenants_devices_out() {
    let place = Place::new("registered-only");
    let issuing = place.root.below("chains issuing", Some(0));
    place.register("issuing", "default", &issuing);
    let identity = place.known("d1", &issuing);
    let lonely = Identity {
        chain: identity.chain[..1].to_vec(),
        ..identity.clone()
    };
    place
        .server
        .ask("POST", "/tenants", Some(&json!({ "id": "other" })))
        .unwrap();
    let is_in = || {
        for shown in [&identity, &lonely] {
            let seen = place.seen(shown, "d1");
            assert_eq!(seen.connack(), Some(0), "{seen:?}");
        }
    };
    for (id, ca) in [("other-root", &place.root), ("other-issuing", &issuing)] {
        let body = json!({ "id": id, "tenant": "other", "certificate": ca.pem, "admission": { "mode": "registered-only" } });
        place.server.ask("POST", "/authorities", Some(&body)).unwrap();
        is_in();
    }
    // Once both tenants' admit, nothing says whose device it is.
    place
        .server
        .ask("POST", "/tenants", Some(&json!({ "id": "third" })))
        .unwrap();
    place.register("third-issuing", "third", &issuing);
    assert_eq!(place.seen(&identity, "d1").alert, Some(48));
    place
        .server
        .cli_ok(&["authority", "revoke", "third-issuing", "--reason", "test"])
        .unwrap();
    is_in();
}
