//! A TPM 2.0 in software, for tests: swtpm, on the loopback device.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A TPM with a state of its own, which ends with this value.
#[derive(Debug)]
pub struct Swtpm {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Swtpm {
    /// A new one.
    ///
    /// # Panics
    /// If it does not start; without the Debian package swtpm it cannot.
    pub fn start() -> Self {
        let there = Command::new("swtpm").arg("--version").output();
        there.expect("swtpm (Debian: swtpm)");
        // Somebody may take a port between the look and the start: then with others. After a test with thousands of
        // connections few ports are free, for a minute (TIME_WAIT).
        let started = Instant::now();
        loop {
            if let Some(tpm) = Self::try_start() {
                return tpm;
            }
            assert!(
                started.elapsed() < Duration::from_secs(90),
                "swtpm does not start"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_start() -> Option<Self> {
        let server = TcpListener::bind("127.0.0.1:0").ok()?;
        let port = server.local_addr().ok()?.port();
        let control = TcpListener::bind(("127.0.0.1", port.checked_add(1)?)).ok()?;
        drop((server, control));
        let folder = tempfile::tempdir().ok()?;
        let child = spawn(port, folder.path())?;
        Some(Self { child, port, folder })
    }

    /// One as it comes from a factory: with endorsement keys and their certificates, by a maker of its own
    /// ([`Swtpm::maker`]). `more`: options of swtpm_setup, such as `--ecc`.
    ///
    /// # Panics
    /// If it cannot be made; without the Debian package swtpm-tools it cannot.
    pub fn manufactured(more: &[&str]) -> Self {
        let mut tpm = Self::start();
        let folder = tpm.folder.path().to_owned();
        let place = folder.display();
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text).expect("a file");
        write("localca.options", String::new());
        write(
            "localca.conf",
            format!(
                "statedir = {place}/ca\nsigningkey = {place}/ca/signkey.pem\n\
                 issuercert = {place}/ca/issuercert.pem\ncertserial = {place}/ca/certserial\n"
            ),
        );
        write(
            "setup.conf",
            format!(
                "create_certs_tool = /usr/bin/swtpm_localca\n\
                 create_certs_tool_config = {place}/localca.conf\n\
                 create_certs_tool_options = {place}/localca.options\n"
            ),
        );
        std::fs::create_dir(folder.join("ca")).expect("a folder");
        std::fs::create_dir(folder.join("made")).expect("a folder");
        let made = Command::new("swtpm_setup")
            .args(["--tpm2", "--tpm-state", "made", "--create-ek-cert"])
            .args(["--config", "setup.conf"])
            .args(more)
            .current_dir(&folder)
            .output()
            .expect("swtpm_setup (Debian: swtpm-tools)");
        assert!(made.status.success(), "swtpm_setup: {made:?}");
        // Off for a moment only, or else somebody takes its port.
        tpm.stop();
        std::fs::copy(
            folder.join("made/tpm2-00.permall"),
            folder.join("tpm2-00.permall"),
        )
        .expect("its state");
        tpm.restart();
        tpm
    }

    /// The certificate (PEM) of whoever made it, if it was [`Swtpm::manufactured`].
    pub fn maker(&self) -> PathBuf {
        self.folder.path().join("ca/issuercert.pem")
    }

    /// As TCTI strings have it.
    pub fn address(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// A folder beside its state.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Lets it answer nothing until [`Swtpm::resume`], as one that takes its time.
    ///
    /// # Panics
    /// If it is gone.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it answer again.
    ///
    /// # Panics
    /// If it is gone.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.expect("an id"), signal).expect("swtpm is there");
    }

    /// Takes the power away.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Gives it power again: the same TPM, at the same address.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self) {
        self.stop();
        let again = (0..20).find_map(|_| spawn(self.port, self.folder.path()));
        self.child = again.expect("swtpm starts again");
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Comes back when it answers.
fn spawn(port: u16, folder: &Path) -> Option<Child> {
    let mut child = Command::new("swtpm")
        .args(["socket", "--tpm2"])
        .args(["--tpmstate", &format!("dir={}", folder.display())])
        .args(["--server", &format!("type=tcp,port={port}")])
        .args(["--ctrl", &format!("type=tcp,port={}", port + 1)])
        .args(["--flags", "not-need-init,startup-clear"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port + 1)).is_err() {
        if child.try_wait().ok()?.is_some() || started.elapsed() > Duration::from_secs(10) {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(child)
}
