//! A PKCS#11 token in software, for tests: SoftHSM.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The PIN of its user.
pub const PIN: &str = "246810";

/// The source of [`module_that_can_be_held`].
const HELD_MODULE: &str = r#"
#include <dlfcn.h>
#include <unistd.h>
typedef unsigned long CK;
/* PKCS#11 2.40, CK_FUNCTION_LIST: a version, then the functions in order. */
struct list { unsigned char version[sizeof(void *)]; void *function[68]; };
enum { SIGN = 43, GENERATE_KEY_PAIR = 59 };
static struct list ours, *theirs;
static void held(const char *by) { while (access(by, F_OK) == 0) usleep(10000); }
static CK sign(CK session, void *data, CK length, void *signature, CK *signature_length) {
    held(HELD "/hold-sign");
    return ((CK (*)(CK, void *, CK, void *, CK *))theirs->function[SIGN])(session, data, length, signature, signature_length);
}
static CK make(CK session, void *mechanism, void *public, CK publics, void *private, CK privates, CK *a, CK *b) {
    held(HELD "/hold-make");
    return ((CK (*)(CK, void *, void *, CK, void *, CK, CK *, CK *))theirs->function[GENERATE_KEY_PAIR])(
        session, mechanism, public, publics, private, privates, a, b);
}
CK C_GetFunctionList(struct list **list) {
    void *module = dlopen(SOFTHSM, RTLD_NOW);
    CK (*get)(struct list **) = module ? (CK (*)(struct list **))dlsym(module, "C_GetFunctionList") : 0;
    if (!get || get(&theirs)) return 5; /* CKR_GENERAL_ERROR */
    ours = *theirs;
    ours.function[SIGN] = (void *)sign;
    ours.function[GENERATE_KEY_PAIR] = (void *)make;
    *list = &ours;
    return 0;
}
"#;

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

/// Builds a module that hands everything on to SoftHSM; but while the folder has a file `hold-sign` or `hold-make`, signing or
/// making a key waits.
///
/// # Panics
/// Without a C compiler.
pub fn module_that_can_be_held(folder: &Path) -> PathBuf {
    let (source, held) = (folder.join("held.c"), folder.join("held.so"));
    std::fs::write(&source, HELD_MODULE).expect("a file");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC"])
        .arg(format!("-DSOFTHSM=\"{}\"", module()))
        .arg(format!("-DHELD=\"{}\"", folder.display()))
        .arg("-o")
        .args([&held, &source])
        .arg("-ldl")
        .output()
        .expect("cc (Debian: gcc)");
    assert!(built.status.success(), "cc: {built:?}");
    held
}
