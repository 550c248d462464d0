//! A CA whose key is in a token that does not answer: only what needs a signature waits, and not for ever.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use countersign_testkit::server::{Server, listener};
use countersign_testkit::softhsm::{self, Softhsm};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    /// Devices `d1` and `d2`, and an authority whose key is in a token that can be held.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hsm = Softhsm::new(folder.path());
        let mut command = Command::new(program());
        command.env("SOFTHSM2_CONF", hsm.config());
        let data = folder.path().join("data");
        let server = Server::start_with(command, program(), &data, &listener("enrol")).unwrap();
        let uri = hsm.uri_by(&softhsm::module_that_can_be_held(folder.path()), "issuing");
        server
            .cli_ok(&[
                "authority",
                "create",
                "ca",
                "--key-store",
                "pkcs11",
                "--pkcs11-uri",
                &uri,
            ])
            .unwrap();
        for device in ["d1", "d2"] {
            server.cli_ok(&["device", "add", device]).unwrap();
        }
        Self { folder, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn provision(&self, device: &str) -> Child {
        Command::new(program())
            .arg("--data")
            .arg(self.path("data"))
            .args(["device", "provision", device, "--authority", "ca", "--out"])
            .arg(self.path(device))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What must not wait for a key.
    fn at_once(&self, arguments: &[&str]) {
        let started = Instant::now();
        self.server.cli_ok(arguments).unwrap();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(2), "{arguments:?} took {took:?}");
    }
}

#[test]
fn while_the_cas_token_does_not_answer_devices_are_suspended_and_revoked_and_who_waits_is_told_in_the_end() {
    let place = Place::new();
    let provisioned = place.provision("d1").wait_with_output().unwrap();
    assert!(provisioned.status.success(), "{provisioned:?}");
    std::fs::write(place.path("hold-sign"), "").unwrap();
    let waiting = place.provision("d2");
    std::thread::sleep(Duration::from_millis(500));
    place.at_once(&["device", "suspend", "d1", "--reason", "stolen"]);
    place.at_once(&["device", "revoke", "d1", "--reason", "stolen"]);
    let refused = waiting.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success()
            && text.contains("token named \"board\" gave no answer within 10 s when it was to sign\nhint: ")
            && text.contains("held.so --list-token-slots"),
        "{text}"
    );
    // It answers again: nothing has to be restarted.
    std::fs::remove_file(place.path("hold-sign")).unwrap();
    let provisioned = place.provision("d2").wait_with_output().unwrap();
    assert!(provisioned.status.success(), "{provisioned:?}");
}
