//! A key that takes its time, or hangs: nothing but what needs it waits. SoftHSM behind a module that can be held.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use countersign_testkit::agent::{Agent, Running};
use countersign_testkit::server::{Server, listener};
use countersign_testkit::softhsm::{self, Softhsm};
use serde_json::Value;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

struct Place {
    folder: tempfile::TempDir,
    _server: Server,
    agent: Agent,
}

impl Place {
    /// A device that is enrolled, with its key in the token.
    fn new(device: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let text = |name: &str| path(name).display().to_string();
        let server = Server::start(program(), &path("data"), &listener("enrol")).unwrap();
        let root = server.cli_ok(&["authority", "export", "platform"]).unwrap();
        std::fs::write(path("root.pem"), root).unwrap();
        server.cli_ok(&["device", "add", device]).unwrap();
        let secret = server.cli_ok(&["device", "secret", device]).unwrap();
        std::fs::write(path("secret"), secret).unwrap();
        let hsm = Softhsm::new(folder.path());
        let module = softhsm::module_that_can_be_held(folder.path());
        let agent = Agent::new(program(), path(device)).with("SOFTHSM2_CONF", hsm.config());
        let store = hsm.uri_by(&module, device);
        agent.ok(&[
            "enrol",
            "--server",
            &format!("localhost:{}", server.listener("enrol").unwrap().port()),
            "--platform-root",
            &text("root.pem"),
            "--id",
            device,
            "--secret-file",
            &text("secret"),
            "--key-store",
            &store,
        ]);
        Self {
            folder,
            _server: server,
            agent,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn hold(&self, what: &str) {
        std::fs::write(self.path(what), "").unwrap();
    }

    fn release(&self, what: &str) {
        std::fs::remove_file(self.path(what)).unwrap();
    }

    /// The answer to a line on the socket, which must come at once.
    fn asked(&self, line: &str) -> Value {
        let started = Instant::now();
        let socket = UnixStream::connect(self.agent.folder.join("agent.sock")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        (&socket).write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        let read = BufReader::new(&socket).read_line(&mut answer);
        assert!(read.is_ok(), "{line}: nothing after {:?}", started.elapsed());
        serde_json::from_str(&answer).unwrap()
    }
}

#[test]
fn while_the_key_hangs_the_service_answers_takes_messages_and_ends_when_it_is_told_to() {
    let place = Place::new("pump-1");
    let notify = place.path("notify");
    let systemd = UnixDatagram::bind(&notify).unwrap();
    let signs_of_life = Arc::new(AtomicUsize::new(0));
    let counted = signs_of_life.clone();
    std::thread::spawn(move || {
        let mut word = [0; 512];
        while let Ok(n) = systemd.recv(&mut word) {
            counted.fetch_add(
                usize::from(word[..n].starts_with(b"WATCHDOG=1")),
                Ordering::Relaxed,
            );
        }
    });
    let watched = place
        .agent
        .clone()
        .with("NOTIFY_SOCKET", notify.clone())
        .with("WATCHDOG_USEC", "1000000".into());
    let mut service = Running::of(watched, place.path("words"));
    place.hold("hold-sign");
    service.start(&["run"]);
    for n in 1..=5 {
        let answer = place.asked(r#"{"payload": "1"}"#);
        assert_eq!(answer["waiting"], n, "{answer}");
        assert_eq!(place.asked(r#"{"status": true}"#)["state"], "connecting");
    }
    // Asked for one a second, it gives three.
    let before = signs_of_life.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(2));
    let lived = signs_of_life.load(Ordering::Relaxed) - before;
    assert!((3..12).contains(&lived), "{lived} signs of life in 2 s");
    // It hangs on: a stated condition, with its cure.
    let status = service.until("it says so", |code, s| {
        code == 3 && s["state"] == "waiting" && s["fault"]["cure"].is_string()
    });
    assert!(
        status["fault"].to_string().contains("does not answer"),
        "{status}"
    );
    // Tried again and again, by one thread.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(place.asked(r#"{"status": true}"#)["waiting"], 5);
    let threads = std::fs::read_dir(format!("/proc/{}/task", service.pid()))
        .unwrap()
        .count();
    assert!(threads <= 3, "{threads} threads");
    // And it ends, although the key does not.
    let started = Instant::now();
    assert!(service.terminate().success());
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    service.start(&["run"]);
    place.asked(r#"{"status": true}"#);
    place.release("hold-sign");
    service.until("connected and delivered", |code, s| {
        code == 0 && s["delivered"] == 5
    });
}

#[test]
fn while_a_renewal_waits_for_its_key_the_session_goes_on() {
    let place = Place::new("pump-2");
    let before = place.agent.certificate();
    place.hold("hold-make");
    let mut service = Running::of(place.agent.clone(), place.path("words"));
    service.start(&["--renew-at", "0-0", "run"]);
    service.until("connected", |code, _| code == 0);
    // The renewal is under way: its slot is there, and no key in it.
    let slot = place.agent.folder.join("slots/1");
    let started = Instant::now();
    while !slot.exists() {
        assert!(started.elapsed() < Duration::from_secs(20), "{}", service.words());
        std::thread::sleep(Duration::from_millis(10));
    }
    for n in 1..=5 {
        place.agent.ok(&["publish", "--queued", "1"]);
        service.until("delivered meanwhile", |code, s| code == 0 && s["delivered"] == n);
    }
    assert!(!slot.join("device.key").exists());
    assert_eq!(place.agent.certificate(), before);
    place.release("hold-make");
    let started = Instant::now();
    while place.agent.certificate() == before {
        assert!(started.elapsed() < Duration::from_secs(60), "{}", service.words());
        std::thread::sleep(Duration::from_millis(50));
    }
    service.until("by the new one", |code, s| {
        code == 0 && s["renewal_fault"].is_null()
    });
}
