//! A PKCS#11 token in software, for tests: SoftHSM.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The PIN of its user.
pub const PIN: &str = "246810";

/// A token named `board`, with tokens, configuration and PIN in a folder of its own.
#[derive(Debug)]
pub struct Softhsm {
    folder: PathBuf,
}

/// The module, where Debian puts it.
///
/// # Panics
/// Without the Debian package softhsm2.
pub fn module() -> &'static str {
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ];
    let found = places.into_iter().find(|p| Path::new(p).exists());
    found.expect("apt-get install softhsm2")
}

impl Softhsm {
    /// A new one in a folder.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new(folder: &Path) -> Self {
        let hsm = Self {
            folder: folder.to_owned(),
        };
        let tokens = folder.join("tokens");
        std::fs::create_dir(&tokens).expect("a folder");
        let config = format!("directories.tokendir = {}\n", tokens.display());
        std::fs::write(hsm.config(), config).expect("a file");
        let pin = folder.join("pin");
        std::fs::write(&pin, format!("{PIN}\n")).expect("a file");
        std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o600))
            .expect("a file of the owner's");
        let made = hsm
            .command("softhsm2-util")
            .args(["--init-token", "--free", "--label", "board"])
            .args(["--pin", PIN, "--so-pin", "13579"])
            .output()
            .expect("softhsm2-util (Debian: softhsm2)");
        assert!(made.status.success(), "softhsm2-util: {made:?}");
        hsm
    }

    /// What `SOFTHSM2_CONF` names.
    pub fn config(&self) -> PathBuf {
        self.folder.join("softhsm.conf")
    }

    /// Another program, with this token.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.config());
        command
    }

    /// `pkcs11-tool`, logged in.
    ///
    /// # Panics
    /// Without the Debian package opensc.
    pub fn tool(&self, arguments: &[&str]) -> Output {
        self.command("pkcs11-tool")
            .args(["--module", module(), "--token-label", "board"])
            .args(["--login", "--pin", PIN])
            .args(arguments)
            .output()
            .expect("pkcs11-tool (Debian: opensc)")
    }

    /// The URI of a key (RFC 7512).
    pub fn uri(&self, key: &str) -> String {
        self.uri_by(Path::new(module()), key)
    }

    /// The same by another module before SoftHSM's.
    pub fn uri_by(&self, module: &Path, key: &str) -> String {
        format!(
            "pkcs11:token=board;object={key}?module-path={}&pin-source={}",
            module.display(),
            self.folder.join("pin").display()
        )
    }

    /// The labels of the private keys in it, sorted.
    pub fn keys(&self) -> Vec<String> {
        let listed = self.tool(&["--list-objects", "--type", "privkey"]).stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let labels = listed.lines().filter_map(|l| l.trim().strip_prefix("label:"));
        let mut labels: Vec<String> = labels.map(|l| l.trim().to_owned()).collect();
        labels.sort();
        labels
    }
}
