//! Revocation lists of registered authorities: uploaded, fetched, believed or not, stale, and what becomes of live sessions.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, Seen, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use countersign_testkit::server::Server;
use serde_json::{Value, json};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    ca: Ca,
}

/// The time in which a replaced list must be in force.
const IN_FORCE: Duration = Duration::from_secs(5);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Self::serve(folder.path());
        let ca = Ca::root("lists root", None);
        server
            .register("field", "default", &ca, &json!({ "mode": "registered-only" }))
            .unwrap();
        Self { folder, server, ca }
    }

    fn serve(folder: &Path) -> Server {
        Server::start(
            Path::new(env!("CARGO_BIN_EXE_countersign")),
            &folder.join("data"),
            "",
        )
        .unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        // In one step: the server may be reading it.
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
        self.path(name).display().to_string()
    }

    fn device(&self, id: &str) -> Identity {
        self.device_of(&self.ca, id, &[])
    }

    fn device_of(&self, ca: &Ca, id: &str, above: &[&Ca]) -> Identity {
        let identity = ca.issue(&Leaf::named(id), above);
        let body = json!({ "devices": [{ "id": id, "certificate": identity.pem }] });
        self.server
            .ask("POST", "/tenants/default/devices/import", Some(&body))
            .unwrap();
        identity
    }

    fn crl(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = self
            .server
            .cli(&[&["--json", "authority", "crl", "field"], arguments].concat())
            .unwrap();
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap());
        }
        assert_eq!(output.status.code(), Some(4));
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn attempt(&self, identity: &Identity, id: &str, patience: Duration) -> Attempt {
        let attempt = Attempt {
            patience,
            ..Attempt::new(self.server.devices)
        };
        attempt.identity(identity).send(connect(5, id))
    }

    fn connects(&self, identity: &Identity, id: &str) -> bool {
        self.seen(identity, id).connack() == Some(0)
    }

    fn seen(&self, identity: &Identity, id: &str) -> Seen {
        self.attempt(identity, id, Duration::from_millis(700)).run()
    }

    /// The alert, and the code that the ledger has.
    fn refusal(&self, identity: &Identity, id: &str) -> (Option<u8>, String) {
        let alert = self.seen(identity, id).alert;
        let serial: String = identity.serial().iter().map(|b| format!("{b:02x}")).collect();
        let path = format!("/exchanges?subject={serial}&limit=1");
        let found = self.server.ask("GET", &path, None).unwrap();
        (
            alert,
            found[0]["denial"]["code"].as_str().unwrap_or_default().to_owned(),
        )
    }

    /// A session that stays until it is ended, or for 20 s.
    fn live(&self, identity: &Identity, id: &str) -> JoinHandle<Seen> {
        let attempt = self.attempt(identity, id, Duration::from_secs(20));
        let session = std::thread::spawn(move || attempt.run());
        self.wait("the session is live", Duration::from_secs(10), || {
            let sessions = self.server.ask("GET", "/sessions", None).unwrap();
            sessions.as_array().unwrap().iter().any(|s| s["device"] == id)
        });
        session
    }

    fn wait(&self, what: &str, patience: Duration, mut condition: impl FnMut() -> bool) -> Duration {
        let started = Instant::now();
        while !condition() {
            assert!(started.elapsed() < patience, "{what}: not within {patience:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        started.elapsed()
    }

    fn doctor(&self) -> Value {
        let checks = self.server.ask("GET", "/doctor", None).unwrap();
        let found = checks
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"] == "revocation list");
        found.cloned().unwrap_or_default()
    }
}

fn was_disconnected(session: JoinHandle<Seen>) -> bool {
    let seen = session.join().unwrap();
    seen.packets()
        .iter()
        .any(|p| p.starts_with(&[0xe0]) && p.get(2) == Some(&0x98))
}

#[test]
fn an_uploaded_list_is_in_force_when_it_is_answered_and_ends_live_sessions() {
    let mut place = Place::new();
    let (bad, good) = (place.device("bad"), place.device("good"));
    let stranger = place.ca.issue(&Leaf::named("stranger"), &[]);
    assert!(place.connects(&bad, "bad"));
    let (session, other) = (place.live(&bad, "bad"), place.live(&good, "good"));
    let list = place.write(
        "1.pem",
        &place.ca.revocation_list(&[&bad, &stranger], 1, (-1, 60)),
    );
    let report = place.crl(&[&list]).unwrap();
    assert_eq!(
        (&report["taken"], &report["newly_revoked"], &report["credentials"]),
        (&json!(1), &json!(2), &json!(1))
    );
    assert_eq!(report["sessions"]["ended"], 1, "{report}");
    assert!(was_disconnected(session));
    let revoked = (Some(44), "chain.revoked".to_owned());
    assert_eq!(place.refusal(&bad, "bad"), revoked);
    // Nobody registered it, and it is refused as revoked all the same.
    assert_eq!(place.refusal(&stranger, "stranger"), revoked);
    let sessions = place.server.ask("GET", "/sessions", None).unwrap();
    assert!(
        sessions.as_array().unwrap().iter().any(|s| s["device"] == "good"),
        "{sessions}"
    );
    // It is kept.
    drop(other);
    place.server.kill();
    place.server = Place::serve(place.folder.path());
    assert_eq!(place.refusal(&bad, "bad"), revoked);
    assert!(place.connects(&good, "good"));
    // The same list once more is nothing new; a later one without it takes the hold back.
    assert_eq!(place.crl(&[&list]).unwrap()["unchanged"], 1);
    let list = place.write("2.pem", &place.ca.revocation_list(&[], 2, (-1, 60)));
    place.crl(&[&list]).unwrap();
    assert!(place.connects(&bad, "bad"));
    // Dropped: nobody is asked any more.
    let list = place.write("3.pem", &place.ca.revocation_list(&[&good], 3, (-1, 60)));
    place.crl(&[&list]).unwrap();
    assert_eq!(place.refusal(&good, "good"), revoked);
    place.crl(&["--off"]).unwrap();
    assert!(place.connects(&good, "good"));
}

#[test]
fn a_list_that_cannot_be_believed_changes_nothing() {
    let place = Place::new();
    let (bad, good) = (place.device("bad"), place.device("good"));
    let list = place.write("5.pem", &place.ca.revocation_list(&[&bad], 5, (-10, 60)));
    place.crl(&[&list]).unwrap();
    let refused = |text: String, why: &str| {
        let file = place.write("wrong.pem", &text);
        let error = place.crl(&[&file]).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(place.refusal(&bad, "bad").1, "chain.revoked");
        assert!(place.connects(&good, "good"));
    };
    refused(
        place.ca.twin().revocation_list(&[&good], 9, (-1, 60)),
        "not signed by the authority's key",
    );
    refused(
        Ca::root("somebody else", None).revocation_list(&[&good], 9, (-1, 60)),
        "neither the authority nor",
    );
    refused(
        place.ca.revocation_list(&[&good], 4, (-1, 60)),
        "older than the one that is here",
    );
    refused(
        place.ca.revocation_list(&[&good], 6, (-20, 60)),
        "older than the one that is here",
    );
    refused(
        place.ca.revocation_list(&[&good], 9, (10, 60)),
        "has not come yet",
    );
    refused("no list".into(), "there is no revocation list in it");
    // Two lists of which one is wrong: neither.
    let two = format!(
        "{}{}",
        place.ca.revocation_list(&[&good], 7, (-1, 60)),
        Ca::root("somebody else", None).revocation_list(&[], 1, (-1, 60))
    );
    refused(two, "neither the authority nor");
    // For our own certificates the registry is the authority.
    let output = place
        .server
        .cli(&["authority", "crl", "default-devices", &list])
        .unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stderr).contains("countersign credential revoke"));
}

/// A CA may divide what it revokes among lists of several distribution points: one part says nothing of the rest.
#[test]
fn each_certificate_is_asked_for_in_the_list_of_its_own_distribution_point() {
    let place = Place::new();
    let point = |n: usize| format!("http://field.example/{n}.crl");
    let [one, two, none] = [Some(1), Some(2), None].map(|n| {
        let id = n.map_or("none".to_owned(), |n| format!("d{n}"));
        let leaf = Leaf {
            crl_point: n.map(point),
            ..Leaf::named(&id)
        };
        let identity = place.ca.issue(&leaf, &[]);
        let body = json!({ "devices": [{ "id": id, "certificate": identity.pem }] });
        let import = "/tenants/default/devices/import";
        place.server.ask("POST", import, Some(&body)).unwrap();
        identity
    });
    let list = |n: usize, revoked: &[&Identity], number: u64| {
        let text = place
            .ca
            .revocation_list_at(Some(&point(n)), revoked, number, (-60, 3600));
        place.write(&format!("{n}-{number}.pem"), &text)
    };
    let unknown = (Some(48), "chain.revocation-unknown".to_owned());
    let revoked = (Some(44), "chain.revoked".to_owned());
    place.crl(&[&list(1, &[&one], 1)]).unwrap();
    assert_eq!(place.refusal(&one, "d1"), revoked);
    assert_eq!(place.refusal(&two, "d2"), unknown);
    // The list of the other point, whatever its number, takes nothing back.
    place.crl(&[&list(2, &[], 7)]).unwrap();
    assert_eq!(place.refusal(&one, "d1"), revoked);
    assert!(place.connects(&two, "d2"));
    // One that names no point is on none of them.
    assert_eq!(place.refusal(&none, "none"), unknown);
    // A later one of its own point does, and an older one of it is none.
    place.crl(&[&list(1, &[], 3)]).unwrap();
    assert!(place.connects(&one, "d1"));
    let error = place.crl(&[&list(1, &[&one], 2)]).unwrap_err();
    assert!(error.contains("older than the one that is here"), "{error}");
    // One for all certificates is for these too.
    let whole = place.write("all.pem", &place.ca.revocation_list(&[&two], 9, (-1, 60)));
    place.crl(&[&whole]).unwrap();
    assert_eq!(place.refusal(&two, "d2"), revoked);
    assert!(place.connects(&none, "none"));
}

#[test]
fn a_replaced_file_is_in_force_within_five_seconds() {
    let place = Place::new();
    let (bad, good) = (place.device("bad"), place.device("good"));
    let file = place.write("crl.pem", &place.ca.revocation_list(&[], 1, (-1, 60)));
    place.crl(&["--source", &file]).unwrap();
    let session = place.live(&bad, "bad");
    place.write("crl.pem", &place.ca.revocation_list(&[&bad], 2, (-1, 60)));
    place.wait("the live session ends", IN_FORCE, || session.is_finished());
    assert!(was_disconnected(session));
    assert_eq!(place.refusal(&bad, "bad"), (Some(44), "chain.revoked".into()));
    place.write("crl.pem", &place.ca.revocation_list(&[&bad, &good], 3, (-1, 60)));
    place.wait("the list is in force", IN_FORCE, || {
        !place.connects(&good, "good")
    });
    assert_eq!(place.refusal(&good, "good"), (Some(44), "chain.revoked".into()));
    // What is wrong with a source is told, and the list that is here stays in force.
    place.write("crl.pem", "gone");
    place.wait("the fault is told", IN_FORCE, || place.doctor()["ok"] == false);
    let doctor = place.doctor();
    assert!(
        doctor["detail"]
            .as_str()
            .unwrap()
            .contains("there is no revocation list in it"),
        "{doctor}"
    );
    assert_eq!(place.refusal(&bad, "bad").1, "chain.revoked");
    // And it recovers.
    place.write("crl.pem", &place.ca.revocation_list(&[&good], 4, (-1, 60)));
    place.wait("the list is in force", IN_FORCE, || place.connects(&bad, "bad"));
    assert_eq!(place.doctor()["ok"], true);
}

/// A list that cannot be taken at first, for its issuer's clock is ahead, is taken when that has passed, though the file is
/// the same.
#[test]
fn a_list_that_was_not_taken_is_tried_again() {
    let place = Place::new();
    let bad = place.device("bad");
    let file = place.write("crl.pem", &place.ca.revocation_list(&[], 1, (-1, 60)));
    place.crl(&["--source", &file, "--interval-s", "1"]).unwrap();
    let session = place.live(&bad, "bad");
    let ahead = place.ca.revocation_list_of(&[&bad], 2, (6, 3600));
    place.write("crl.pem", &ahead);
    place.wait("the fault is told", IN_FORCE, || place.doctor()["ok"] == false);
    assert!(!session.is_finished());
    place.wait("the live session ends", Duration::from_secs(15), || {
        session.is_finished()
    });
    assert!(was_disconnected(session));
    assert_eq!(place.refusal(&bad, "bad"), (Some(44), "chain.revoked".into()));
    assert_eq!(place.doctor()["ok"], true);
}

/// A web server that answers everything with `body`, one request per connection.
fn web(body: Arc<Mutex<Vec<u8>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap_or(0);
            let found = request[..n].starts_with(b"GET /ca/field.crl HTTP/1.1");
            let body = body.lock().unwrap().clone();
            let status = if found { "200 OK" } else { "404 Not Found" };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    format!("http://{address}/ca/field.crl")
}

#[test]
fn a_list_is_fetched_from_a_url() {
    let place = Place::new();
    let bad = place.device("bad");
    let body = Arc::new(Mutex::new(
        place.ca.revocation_list(&[], 1, (-1, 60)).into_bytes(),
    ));
    let url = web(body.clone());
    place.crl(&["--source", &url, "--interval-s", "1"]).unwrap();
    assert!(place.connects(&bad, "bad"));
    *body.lock().unwrap() = place.ca.revocation_list(&[&bad], 2, (-1, 60)).into_bytes();
    place.wait("the list is in force", IN_FORCE, || !place.connects(&bad, "bad"));
    assert_eq!(place.refusal(&bad, "bad"), (Some(44), "chain.revoked".into()));
    let shown = place.crl(&[]).unwrap();
    assert_eq!(
        (&shown["source"], &shown["number"], &shown["stale"]),
        (&json!(url), &json!("02"), &json!(false))
    );
    // A source that brings no list is refused, and nothing is changed.
    for (source, why) in [
        (url.replace("http:", "https:"), "http:// URL"),
        (url.replace("field", "other"), "404"),
        (place.path("nowhere").display().to_string(), "No such file"),
    ] {
        let error = place.crl(&["--source", &source]).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(place.crl(&[]).unwrap()["source"], json!(url));
    }
}

/// A web server that answers the first request with `body`, and takes all others without a word. How many it has taken.
fn falls_silent(body: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            } else {
                held.push(stream);
            }
        }
    });
    (format!("http://{address}/silent.crl"), taken)
}

#[test]
fn a_replaced_file_is_in_force_within_five_seconds_beside_sources_that_hang() {
    let place = Place::new();
    let bad = place.device("bad");
    // One before it and others behind it in every order.
    let silent: Vec<_> = ["a-silent", "m-silent", "z-silent"]
        .map(|id| {
            let ca = Ca::root(id, None);
            place
                .server
                .register(id, "default", &ca, &json!({ "mode": "registered-only" }))
                .unwrap();
            let (url, taken) = falls_silent(ca.revocation_list(&[], 1, (-1, 60)).into_bytes());
            place
                .server
                .cli_ok(&["authority", "crl", id, "--source", &url, "--interval-s", "1"])
                .unwrap();
            taken
        })
        .into();
    let file = place.write("crl.pem", &place.ca.revocation_list(&[], 1, (-1, 60)));
    place.crl(&["--source", &file]).unwrap();
    place.wait("each of them hangs", Duration::from_secs(20), || {
        silent.iter().all(|taken| taken.load(Ordering::SeqCst) >= 2)
    });
    let mut number = 1;
    // Longer than one of them may hang.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(12) {
        number += 1;
        place.write("crl.pem", &place.ca.revocation_list(&[&bad], number, (-1, 60)));
        let shown = json!(format!("{number:02x}"));
        place.wait("the list is in force", IN_FORCE, || {
            place.crl(&[]).unwrap()["number"] == shown
        });
    }
    assert!(number > 3, "{number}");
    assert_eq!(place.refusal(&bad, "bad"), (Some(44), "chain.revoked".into()));
}

#[test]
fn what_happens_when_it_is_stale_is_chosen_and_shown() {
    let place = Place::new();
    let (bad, good) = (place.device("bad"), place.device("good"));
    // Nothing came yet: the default refuses.
    place.crl(&["--when-stale", "refuse"]).unwrap();
    assert_eq!(
        place.refusal(&good, "good"),
        (Some(48), "chain.revocation-unknown".into())
    );
    place.crl(&["--when-stale", "last-known"]).unwrap();
    assert!(place.connects(&good, "good"));
    let list = place.write("old.pem", &place.ca.revocation_list(&[&bad], 1, (-60, -1)));
    place.crl(&[&list]).unwrap();
    assert!(place.connects(&good, "good"));
    assert_eq!(place.refusal(&bad, "bad").1, "chain.revoked");
    let listed = |what: &str| {
        let table = place.server.cli_ok(&["authority", "list"]).unwrap();
        assert!(
            table.lines().any(|l| l.contains(" field ") && l.contains(what)),
            "{table}"
        );
    };
    listed("stale (last-known)");
    let doctor = place.doctor();
    assert!(
        doctor["ok"] == false
            && doctor["detail"]
                .as_str()
                .unwrap()
                .contains("when stale: last-known"),
        "{doctor}"
    );
    let session = place.live(&good, "good");
    place.crl(&["--when-stale", "refuse"]).unwrap();
    listed("stale (refuse)");
    assert_eq!(
        place.refusal(&good, "good"),
        (Some(48), "chain.revocation-unknown".into())
    );
    assert_eq!(place.refusal(&bad, "bad").1, "chain.revoked");
    // Live sessions stay: they were admitted on what was known.
    let sessions = place.server.ask("GET", "/sessions", None).unwrap();
    assert_eq!(sessions.as_array().unwrap().len(), 1, "{sessions}");
    drop(session);
    let list = place.write("new.pem", &place.ca.revocation_list(&[&bad], 2, (-1, 60)));
    place.crl(&[&list]).unwrap();
    assert!(place.connects(&good, "good"));
    listed("current (refuse)");
    assert_eq!(place.doctor()["ok"], true);
}

#[test]
fn an_intermediate_is_revoked_by_its_issuer_and_revokes_by_its_own_list() {
    let place = Place::new();
    let below = place.ca.below("lists issuing", Some(0));
    let file = place.write("below.pem", &below.pem);
    place
        .server
        .cli_ok(&["authority", "intermediate", &file])
        .unwrap();
    let (bad, good) = (
        place.device_of(&below, "bad", &[&below]),
        place.device_of(&below, "good", &[]),
    );
    let both = |number: u64, revoked: &[&Identity], above: String| {
        format!("{}{above}", below.revocation_list(revoked, number, (-1, 60)))
    };
    let file = place.write(
        "both.pem",
        &both(1, &[&bad], place.ca.revocation_list(&[], 1, (-1, 60))),
    );
    assert_eq!(place.crl(&[&file]).unwrap()["taken"], 2);
    assert_eq!(place.refusal(&bad, "bad"), (Some(44), "chain.revoked".into()));
    assert!(place.connects(&good, "good"));
    let session = place.live(&good, "good");
    // Now the root revokes the CA below it: everything below goes.
    let as_identity = Identity {
        chain: vec![below.certificate().clone()],
        ..good.clone()
    };
    let file = place.write(
        "root.pem",
        &place.ca.revocation_list(&[&as_identity], 2, (-1, 60)),
    );
    let report = place.crl(&[&file]).unwrap();
    assert_eq!(report["sessions"]["ended"], 1, "{report}");
    assert!(was_disconnected(session));
    assert_eq!(place.refusal(&good, "good"), (Some(44), "chain.revoked".into()));
}
