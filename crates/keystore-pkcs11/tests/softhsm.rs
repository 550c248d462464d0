//! Against a real token: SoftHSM. It finds its tokens by an environment variable that it reads once, so each test runs in
//! a process of its own: this very program again, with the variable set.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_identity::signed::{Signed, Signer};
use countersign_keystore_pkcs11::{TokenError, TokenKey, TokenUri};
use cryptoki::context::Pkcs11;
use cryptoki::session::UserType;

const PIN: &str = "123456";

/// The module, where Debian puts it.
fn module() -> PathBuf {
    let places = [
        "/usr/lib/softhsm/libsofthsm2.so",
        "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
        "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    ];
    let found = places.iter().map(Path::new).find(|p| p.exists());
    found.expect("apt-get install softhsm2").to_owned()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

struct Place(PathBuf);

impl Place {
    fn uri(&self, object: &str) -> TokenUri {
        self.text(object).parse().unwrap()
    }

    fn text(&self, object: &str) -> String {
        format!(
            "pkcs11:token=ca;object={object}?module-path={}&pin-source={}",
            module().display(),
            self.0.join("pin").display()
        )
    }

    fn set_pin(&self, pin: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.join("pin");
        std::fs::write(&path, format!("{pin}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn tool(&self, arguments: &[&str]) -> String {
        run(Command::new("pkcs11-tool")
            .args(["--module", &module().display().to_string()])
            .args(["--token-label", "ca", "--login", "--pin", PIN])
            .args(arguments))
    }
}

/// Runs a test with a fresh token named `ca`, in a process of its own.
fn with_token(name: &str, test: impl FnOnce(Place)) {
    const FOLDER: &str = "COUNTERSIGN_TEST_TOKEN";
    if let Some(folder) = std::env::var_os(FOLDER) {
        return test(Place(folder.into()));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("tokens")).unwrap();
    let conf = path.join("softhsm2.conf");
    std::fs::write(
        &conf,
        format!("directories.tokendir = {}\n", path.join("tokens").display()),
    )
    .unwrap();
    run(Command::new("softhsm2-util").env("SOFTHSM2_CONF", &conf).args([
        "--init-token",
        "--free",
        "--label",
        "ca",
        "--so-pin",
        "0000",
        "--pin",
        PIN,
    ]));
    Place(path.to_owned()).set_pin(PIN);
    run(Command::new(std::env::current_exe().unwrap())
        .env("SOFTHSM2_CONF", &conf)
        .env(FOLDER, path)
        .args(["--exact", name, "--nocapture"]));
}

/// Signs, and checks the signature by the public half that was read.
fn works(key: &TokenKey) {
    let content = [0x30, 0x00];
    let signature = key.sign(&content).unwrap();
    let signed = Signed {
        content: &content,
        algorithm: key.algorithm().oid,
        signature: &signature,
    };
    signed.verify(key.public_key()).unwrap();
}

fn fault(result: Result<TokenKey, TokenError>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(message.contains("hint: "), "{message}");
    assert!(!message.contains(PIN), "{message}");
    message
}

#[test]
fn a_key_is_made_in_the_token_stays_there_and_signs() {
    with_token("a_key_is_made_in_the_token_stays_there_and_signs", |place| {
        let key = TokenKey::generate(place.uri("issuing")).unwrap().unwrap();
        let p = key.protection();
        assert!(p.local && p.always_sensitive && p.never_extractable, "{p:?}");
        for _ in 0..200 {
            // Often enough that r or s begins with a zero or a high bit.
            works(&key);
        }
        assert!(
            TokenKey::generate(place.uri("issuing")).unwrap().is_none(),
            "there is one"
        );
        let again = TokenKey::open(place.uri("issuing")).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        works(&again);
        // Another tool sees what we asked for.
        let listed = place.tool(&["--list-objects", "--type", "privkey"]);
        assert!(
            listed.contains("sensitive") && listed.contains("never extractable") && listed.contains("local"),
            "{listed}"
        );
    });
}

#[test]
fn keys_that_other_tools_made_are_used() {
    with_token("keys_that_other_tools_made_are_used", |place| {
        for (curve, label) in [("EC:prime256v1", "p256"), ("EC:secp384r1", "p384")] {
            place.tool(&[
                "--keypairgen",
                "--key-type",
                curve,
                "--label",
                label,
                "--id",
                "07",
                "--usage-sign",
            ]);
            let id = place.text(label).replace("?", ";id=%07?");
            works(&TokenKey::open(id.parse().unwrap()).unwrap());
        }
        place.tool(&[
            "--keypairgen",
            "--key-type",
            "rsa:2048",
            "--label",
            "rsa",
            "--id",
            "08",
        ]);
        assert!(fault(TokenKey::open(place.uri("rsa"))).contains("elliptic-curve"));
    });
}

#[test]
fn many_threads_sign_at_once() {
    with_token("many_threads_sign_at_once", |place| {
        let key = TokenKey::generate(place.uri("issuing")).unwrap().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| (0..50).for_each(|_| works(&key)));
            }
        });
    });
}

#[test]
fn stale_sessions_are_opened_anew() {
    with_token("stale_sessions_are_opened_anew", |place| {
        let key = TokenKey::generate(place.uri("issuing")).unwrap().unwrap();
        works(&key);
        // Another part of the program logs out: login is the token's, so the key's sessions are logged out too.
        let context = Pkcs11::new(module()).unwrap();
        let slot = context.get_slots_with_initialized_token().unwrap()[0];
        context.open_ro_session(slot).unwrap().logout().unwrap();
        works(&key);
        // And finalises the module: every session and handle is gone.
        context.finalize().unwrap();
        works(&key);
        // Taken out: told, and no more than that. Back again: it works.
        let tokens = place.0.join("tokens");
        std::fs::rename(&tokens, place.0.join("away")).unwrap();
        std::fs::create_dir(&tokens).unwrap();
        Pkcs11::new(module()).unwrap().finalize().unwrap();
        let message = key.sign(b"x").unwrap_err().to_string();
        assert!(
            message.contains("no token named \"ca\"") && message.contains("hint: "),
            "{message}"
        );
        std::fs::remove_dir_all(&tokens).unwrap();
        std::fs::rename(place.0.join("away"), &tokens).unwrap();
        Pkcs11::new(module()).unwrap().finalize().unwrap();
        works(&key);
    });
}

#[test]
fn a_wrong_pin_is_tried_once() {
    with_token("a_wrong_pin_is_tried_once", |place| {
        TokenKey::generate(place.uri("issuing")).unwrap().unwrap();
        place.set_pin("999999");
        for _ in 0..50 {
            let message = fault(TokenKey::open(place.uri("issuing")));
            assert!(message.contains("wrong"), "{message}");
        }
        // Were it tried each time, PinIncorrect would have been counted 50 times. SoftHSM counts nothing, so count calls
        // instead: with the right PIN set by somebody else in the token, a second try of the old file would succeed.
        let context = Pkcs11::new(module()).unwrap();
        let slot = context.get_slots_with_initialized_token().unwrap()[0];
        let session = context.open_rw_session(slot).unwrap();
        let pin = |text: &str| cryptoki::types::AuthPin::new(text.to_owned().into());
        session.login(UserType::User, Some(&pin(PIN))).unwrap();
        session.set_pin(&pin(PIN), &pin("999999")).unwrap();
        session.logout().unwrap();
        drop(session);
        assert!(fault(TokenKey::open(place.uri("issuing"))).contains("not tried again"));
        // Another content of the file is another try.
        place.set_pin("888888");
        assert!(fault(TokenKey::open(place.uri("issuing"))).contains("wrong"));
        place.set_pin("999999");
        works(&TokenKey::open(place.uri("issuing")).unwrap());
    });
}

#[test]
fn what_is_missing_is_named_with_its_cure() {
    with_token("what_is_missing_is_named_with_its_cure", |place| {
        TokenKey::generate(place.uri("issuing")).unwrap().unwrap();
        assert!(fault(TokenKey::open(place.uri("other"))).contains("no private key \"other\""));
        let other = place
            .text("issuing")
            .replace("token=ca", "token=cb")
            .parse()
            .unwrap();
        assert!(fault(TokenKey::open(other)).contains("the module sees \"ca\""));
        let gone = place.text("issuing").replace(".so", ".gone").parse().unwrap();
        assert!(fault(TokenKey::open(gone)).contains("cannot be loaded"));
        let path = place.0.join("pin");
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        assert!(fault(TokenKey::open(place.uri("issuing"))).contains("others may read"));
        std::fs::remove_file(&path).unwrap();
        assert!(fault(TokenKey::open(place.uri("issuing"))).contains("No such file"));
        let bare: TokenUri = place.text("issuing").split('&').next().unwrap().parse().unwrap();
        assert!(fault(TokenKey::open(bare)).contains("pin-source"));
    });
}
