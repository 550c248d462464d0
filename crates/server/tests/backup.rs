//! Backups of a server that runs, and what becomes of them: whole or not at all, and never taken for what went on.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::pki::Identity;
use countersign_testkit::server::{Server, http, listener};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn serve(&self, data: &str) -> Server {
        Server::start(program(), &self.path(data), &listener("pki")).unwrap()
    }

    fn restore(&self, backup: &str, data: &str, more: &[&str]) -> Output {
        Command::new(program())
            .arg("--data")
            .arg(self.path(data))
            .args(["--json", "restore"])
            .arg(self.path(backup))
            .args(more)
            .output()
            .unwrap()
    }

    fn restored(&self, backup: &str, data: &str, more: &[&str]) -> Value {
        let output = self.restore(backup, data, more);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A refusal: what it says, and that nothing was left.
    fn refused(&self, backup: &str, data: &str, more: &[&str]) -> String {
        let output = self.restore(backup, data, more);
        assert!(!output.status.success(), "{}", said(&output));
        assert!(!self.path(&format!("{data}.restoring")).exists());
        said(&output)
    }

    fn backup(&self, server: &Server, name: &str, more: &[&str]) -> Value {
        let path = self.path(name).display().to_string();
        let mut arguments = vec!["--json", "backup", &path];
        arguments.extend(more);
        serde_json::from_str(&server.cli_ok(&arguments).unwrap()).unwrap()
    }
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Adds a device, and provisions it into a folder.
fn provision(server: &Server, folder: &Path, id: &str) -> Identity {
    let out = folder.join(id);
    let out_text = out.display().to_string();
    server
        .cli_ok(&["device", "provision", id, "--out", &out_text])
        .unwrap();
    let pem = std::fs::read_to_string(out.join("device.crt")).unwrap();
    let key_pem = std::fs::read_to_string(out.join("device.key")).unwrap();
    Identity {
        chain: CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap(),
        key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap(),
        pem,
        key_pem,
    }
}

fn connack(server: &Server, id: &str, identity: &Identity) -> Option<u8> {
    Attempt::new(server.devices)
        .identity(identity)
        // And DISCONNECT, so that nobody waits for more.
        .send([connect(4, id), vec![0xe0, 0]].concat())
        .run()
        .connack()
}

fn device(server: &Server, id: &str) -> Value {
    server
        .ask("GET", &format!("/tenants/default/devices/{id}"), None)
        .unwrap()
}

fn doctor(server: &Server, name: &str) -> Value {
    let checks = server.ask("GET", "/doctor", None).unwrap();
    checks
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == name)
        .unwrap()
        .clone()
}

/// Serial numbers and states, by device, of what was answered.
#[derive(Default, Clone)]
struct Answered {
    issued: Vec<(String, String)>,
    suspended: Vec<String>,
}

/// Adds, provisions and suspends devices until told to stop.
fn load(
    server: &Server,
    prefix: &str,
    over: &Arc<AtomicBool>,
) -> (Arc<Mutex<Answered>>, Vec<std::thread::JoinHandle<()>>) {
    let answered: Arc<Mutex<Answered>> = Arc::default();
    let counter = Arc::new(AtomicU64::new(0));
    let workers = (0..3)
        .map(|_| {
            let (answered, over, counter) = (answered.clone(), over.clone(), counter.clone());
            let (admin, prefix) = (server.admin, prefix.to_owned());
            let token = std::fs::read_to_string(server.data.join("admin.token")).unwrap();
            std::thread::spawn(move || {
                let ask = |path: &str, body: Value| -> Option<Value> {
                    let path = format!("/api/v1/tenants/default/devices{path}");
                    let (status, text) = http(admin, "POST", &path, Some(token.trim()), Some(&body)).ok()?;
                    (status < 300).then(|| serde_json::from_str(&text).ok())?
                };
                while !over.load(Ordering::Relaxed) {
                    let id = format!("{prefix}-{}", counter.fetch_add(1, Ordering::Relaxed));
                    let request = json!({ "request": countersign_testkit::pki::request(&id) });
                    let Some(_) = ask("", json!({ "id": id })) else {
                        return;
                    };
                    let Some(issued) = ask(&format!("/{id}/certificates"), request) else {
                        return;
                    };
                    let serial = issued["serial"].as_str().unwrap().to_owned();
                    answered.lock().unwrap().issued.push((id.clone(), serial));
                    let Some(_) = ask(&format!("/{id}/moves"), json!({ "move": "suspend" })) else {
                        return;
                    };
                    answered.lock().unwrap().suspended.push(id);
                }
            })
        })
        .collect();
    (answered, workers)
}

fn wait_for(answered: &Mutex<Answered>, n: usize) {
    let started = Instant::now();
    while answered.lock().unwrap().suspended.len() < n {
        assert!(started.elapsed() < Duration::from_secs(60), "no progress");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_backup_under_load_has_all_that_was_answered_before_it() {
    let place = Place::new();
    let mut server = place.serve("old");
    let identity = provision(&server, place.folder.path(), "sensor");
    let over = Arc::new(AtomicBool::new(false));
    let (answered, workers) = load(&server, "a", &over);
    wait_for(&answered, 30);
    let before = answered.lock().unwrap().clone();
    let made = place.backup(&server, "backup", &["--with-keys"]);
    let after = answered.lock().unwrap().suspended.len();
    wait_for(&answered, after + 5);
    server.kill();
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().unwrap();
    }
    let went_on = answered.lock().unwrap().clone();
    assert!(went_on.issued.len() > before.issued.len());

    let manifest = &made["manifest"];
    assert_eq!(manifest["registry"]["epoch"], 1);
    let restored = place.restored("backup", "new", &[]);
    assert_eq!(restored["epoch"], 2);
    assert_eq!(restored["missing_keys"], json!([]));
    let server = place.serve("new");
    let status = server.ask("GET", "/status", None).unwrap();
    assert_eq!(status["epoch"], 2);
    assert!(status["revision"].as_u64() > manifest["registry"]["revision"].as_u64());
    assert_eq!(doctor(&server, "audit")["ok"], true);
    for (id, serial) in &before.issued {
        assert_eq!(device(&server, id)["credentials"][0]["serial"], **serial, "{id}");
    }
    for id in &before.suspended {
        assert_eq!(device(&server, id)["device"]["state"], "suspended", "{id}");
    }
    assert_eq!(connack(&server, "sensor", &identity), Some(0));
    // It goes on as any other: and whatever was issued, before, meanwhile and since, no serial number came twice.
    let over = Arc::new(AtomicBool::new(false));
    let (since, workers) = load(&server, "b", &over);
    wait_for(&since, 20);
    over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().unwrap();
    }
    let serials: Vec<String> = [went_on, since.lock().unwrap().clone()]
        .into_iter()
        .flat_map(|a| a.issued)
        .map(|(_, serial)| serial)
        .collect();
    let distinct: BTreeSet<_> = serials.iter().collect();
    assert_eq!(distinct.len(), serials.len());
    assert_eq!(doctor(&server, "audit")["ok"], true);
}

#[test]
fn what_is_damaged_is_refused_and_nothing_is_overwritten() {
    let place = Place::new();
    let server = place.serve("old");
    provision(&server, place.folder.path(), "sensor");
    place.backup(&server, "backup", &["--with-keys"]);
    let path = place.path("backup");
    // What exists, what lies in the data directory, and what has no place.
    for target in [path.clone(), place.path("old/x"), place.path("nowhere/x")] {
        let output = server.cli(&["backup", &target.display().to_string()]).unwrap();
        assert!(
            !output.status.success() && said(&output).contains("hint:"),
            "{}",
            said(&output)
        );
    }
    // Nobody but its owner reads it.
    use std::os::unix::fs::PermissionsExt;
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in ["registry.db", "manifest.json", "authorities/platform/issuing.key"] {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }

    std::fs::create_dir(place.path("full")).unwrap();
    std::fs::write(place.path("full/file"), "mine").unwrap();
    let text = place.refused("backup", "full", &[]);
    assert!(text.contains("is not empty") && text.contains("hint:"), "{text}");
    assert_eq!(std::fs::read_to_string(place.path("full/file")).unwrap(), "mine");

    type Harm = fn(&Path);
    let damage: [(&str, Harm); 5] = [
        ("was changed", |p| {
            let file = p.join("registry.db");
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(file, bytes).unwrap();
        }),
        ("is missing", |p| {
            std::fs::remove_file(p.join("authorities/platform/root.crt")).unwrap();
        }),
        ("bytes, not", |p| {
            std::fs::write(p.join("countersign.toml"), "").unwrap();
        }),
        ("is no backup", |p| {
            std::fs::remove_file(p.join("manifest.json")).unwrap();
        }),
        ("leads out of it", |p| {
            let file = p.join("manifest.json");
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(
                file,
                text.replace("\"countersign.toml\"", "\"../countersign.toml\""),
            )
            .unwrap();
        }),
    ];
    for (n, (word, harm)) in damage.into_iter().enumerate() {
        let name = format!("damaged{n}");
        let copied = Command::new("cp")
            .arg("-a")
            .args([&path, &place.path(&name)])
            .status()
            .unwrap();
        assert!(copied.success());
        harm(&place.path(&name));
        let text = place.refused(&name, "new", &[]);
        assert!(text.contains(word) && text.contains("hint:"), "{word}: {text}");
        assert!(!place.path("new").exists());
    }

    // Somebody who can write manifests all the same cannot write the audit.
    let name = "forged";
    assert!(
        Command::new("cp")
            .arg("-a")
            .args([&path, &place.path(name)])
            .status()
            .unwrap()
            .success()
    );
    let file = place.path(name).join("registry.db");
    let db = rusqlite::Connection::open(&file).unwrap();
    db.execute_batch(
        "DROP TRIGGER audit_is_append_only_update; UPDATE audit SET actor = 'nobody' WHERE seq = 3",
    )
    .unwrap();
    drop(db);
    let sum = Command::new("sha256sum").arg(&file).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap()[..64].to_owned();
    let manifest_file = place.path(name).join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&manifest_file).unwrap()).unwrap();
    manifest["files"]["registry.db"] =
        json!({ "bytes": std::fs::metadata(&file).unwrap().len(), "sha256": sum });
    std::fs::write(manifest_file, manifest.to_string()).unwrap();
    let text = place.refused(name, "new", &[]);
    assert!(text.contains("entry 3 does not follow"), "{text}");
}

#[test]
fn one_file_and_no_keys() {
    let place = Place::new();
    let server = place.serve("old");
    let identity = provision(&server, place.folder.path(), "sensor");
    // One whose key only a passphrase opens: that file is no secret's place in a backup either, but says where it is.
    let passphrase = place.path("passphrase");
    std::fs::write(&passphrase, "not a very long one, but long enough").unwrap();
    std::fs::set_permissions(&passphrase, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let passphrase = passphrase.display().to_string();
    server
        .cli_ok(&[
            "authority",
            "create",
            "locked",
            "--key-store",
            "encrypted",
            "--passphrase",
            &passphrase,
        ])
        .unwrap();
    place.backup(&server, "backup.tar", &[]);
    let listed = Command::new("tar")
        .arg("-tf")
        .arg(place.path("backup.tar"))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.starts_with("manifest.json\n") && listed.contains("registry.db"),
        "{listed}"
    );
    assert!(!listed.contains(".key") && !listed.contains("token"), "{listed}");
    let (status, _) = server.stop().unwrap();
    assert!(status.success());

    // An empty folder will do.
    std::fs::create_dir(place.path("new")).unwrap();
    let restored = place.restored("backup.tar", "new", &[]);
    let missing: Vec<&str> = restored["missing_keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|k| k.as_str().unwrap())
        .collect();
    assert_eq!(
        missing,
        [
            "authorities/devices/default-devices/issuing.key",
            "authorities/devices/locked/issuing.key",
            "authorities/platform/issuing.key"
        ]
    );
    // Without them: which file, why, and what to do. The platform's first, then that of each authority as it is needed.
    let run = |arguments: &[&str]| {
        let output = Command::new("timeout")
            .arg("20")
            .arg(program())
            .arg("--data")
            .arg(place.path("new"))
            .args(arguments)
            .output()
            .unwrap();
        (output.status.code(), said(&output))
    };
    let put_back = |key: &str| {
        std::fs::copy(place.path("old").join(key), place.path("new").join(key)).unwrap();
    };
    let is_told = |(code, text): (Option<i32>, String), key: &str| {
        assert_eq!(code, Some(5), "{text}");
        let file = place.path("new").join(key).display().to_string();
        for part in ["private key", &file, "is not there", "hint: ", "--with-keys"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    };
    for command in ["serve", "doctor"] {
        is_told(run(&[command]), missing[2]);
    }
    put_back(missing[2]);
    is_told(run(&["serve"]), missing[0]);
    put_back(missing[0]);
    let server = place.serve("new");
    let check = doctor(&server, "key of locked");
    assert_eq!(check["ok"], false, "{check}");
    let (detail, hint) = (check["detail"].as_str().unwrap(), check["hint"].as_str().unwrap());
    assert!(
        detail.contains(missing[1]) && hint.contains("--with-keys") && hint.contains("authority revoke"),
        "{check}"
    );
    assert!(server.stop().unwrap().0.success());
    // One whose key is lost is revoked, and is then in nobody's way.
    std::fs::remove_file(place.path("new").join(missing[0])).unwrap();
    let (code, text) = run(&["authority", "revoke", "default-devices", "--reason", "lost"]);
    assert_eq!(code, Some(0), "{text}");
    place.restored("backup.tar", "without", &[]);
    assert!(place.serve("new").stop().unwrap().0.success());
    std::fs::remove_dir_all(place.path("new")).unwrap();
    std::fs::rename(place.path("without"), place.path("new")).unwrap();
    for key in missing {
        put_back(key);
    }
    let server = place.serve("new");
    assert_eq!(connack(&server, "sensor", &identity), Some(0));
    // The key is still opened by its passphrase: what said so was in the backup.
    let out = place.path("by-locked").display().to_string();
    server
        .cli_ok(&[
            "device",
            "provision",
            "by-locked",
            "--authority",
            "locked",
            "--out",
            &out,
        ])
        .unwrap();

    // A tar file that is none of ours.
    std::fs::write(place.path("evil"), "x").unwrap();
    let made = Command::new("tar")
        .args(["-C", &place.folder.path().display().to_string(), "-P", "-cf"])
        .arg(place.path("evil.tar"))
        .args(["--transform", "s,^,../,", "evil"])
        .status()
        .unwrap();
    assert!(made.success());
    let text = place.refused("evil.tar", "other", &[]);
    assert!(text.contains("leads out of it"), "{text}");
}

/// The list of the platform's own devices CA, as anybody fetches it.
fn fetch_list(server: &Server, to: &Path) -> u64 {
    let url = format!(
        "http://{}/crl/default-devices.crl",
        server.listener("pki").unwrap()
    );
    let fetched = Command::new("curl")
        .args(["-sSf", "-o"])
        .arg(to)
        .arg(&url)
        .status()
        .unwrap();
    assert!(fetched.success());
    let output = Command::new("openssl")
        .args(["crl", "-inform", "DER", "-noout", "-crlnumber", "-in"])
        .arg(to)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    u64::from_str_radix(
        text.trim()
            .trim_start_matches("crlNumber=0x")
            .trim_start_matches("crlNumber="),
        16,
    )
    .unwrap()
}

#[test]
fn what_was_revoked_after_the_backup_is_told_and_stays_revoked() {
    let place = Place::new();
    let server = place.serve("old");
    let folder = place.folder.path().to_owned();
    let kept = provision(&server, &folder, "kept");
    let revoked = provision(&server, &folder, "revoked");
    let suspended = provision(&server, &folder, "suspended");
    server.cli_ok(&["device", "secret", "kept"]).unwrap();
    let claim = "factory claim add line-1 --id-pattern CL-* --quota 5";
    server.cli_ok(&claim.split(' ').collect::<Vec<_>>()).unwrap();
    place.backup(&server, "backup", &["--with-keys"]);
    // What goes on: one is revoked, one comes and is revoked, one comes and stays, one is suspended.
    server
        .cli_ok(&["device", "revoke", "revoked", "--code", "key-compromise"])
        .unwrap();
    provision(&server, &folder, "come-and-gone");
    server
        .cli_ok(&["device", "revoke", "come-and-gone", "--code", "superseded"])
        .unwrap();
    let later = provision(&server, &folder, "later");
    server.cli_ok(&["device", "suspend", "suspended"]).unwrap();
    std::fs::write(
        place.path("newer.cedar"),
        "@id(\"newer\") permit (principal, action, resource);\n",
    )
    .unwrap();
    let newer = place.path("newer.cedar").display().to_string();
    server
        .cli_ok(&["policy", "set", &newer, "--reason", "of late"])
        .unwrap();
    let number = fetch_list(&server, &place.path("old.crl"));
    let serial = |id: &str| {
        device(&server, id)["credentials"][0]["serial"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (revoked_serial, gone_serial, later_serial) =
        (serial("revoked"), serial("come-and-gone"), serial("later"));
    // While it runs nobody compares with it.
    let old = place.path("old").display().to_string();
    let text = place.refused("backup", "new", &["--compare", &old]);
    assert!(text.contains("a server is running on"), "{text}");
    drop(server);

    // Without anything to compare with nobody knows.
    let blind = place.restored("backup", "blind", &[]);
    assert_eq!(
        (&blind["compared"], &blind["revoked"]),
        (&json!(false), &json!([]))
    );
    // A one-time secret may have been used since.
    assert_eq!(blind["secrets_void"], 1);
    // So may a claim.
    assert_eq!(blind["claims_revoked"], json!(["default/line-1"]));

    // By the list.
    let list = place.path("old.crl").display().to_string();
    let by_list = place.restored("backup", "by-list", &["--crl", &list]);
    let told = |report: &Value| -> BTreeSet<(String, bool)> {
        report["revoked"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| {
                (
                    r["serial"].as_str().unwrap().to_owned(),
                    r["known"].as_bool().unwrap(),
                )
            })
            .collect()
    };
    let both = BTreeSet::from([(revoked_serial.clone(), true), (gone_serial.clone(), false)]);
    assert_eq!(told(&by_list), both);
    // By the lost data directory, which also tells of devices and of what was issued.
    let by_folder = place.restored("backup", "by-folder", &["--compare", &old, "--crl", &list]);
    assert_eq!(told(&by_folder), both);
    assert_eq!(by_folder["devices"][0]["id"], "suspended");
    assert_eq!(
        by_folder["issued"],
        json!([format!("default/later {later_serial}")])
    );
    // Policies are told, and kept aside.
    let policies = &by_folder["policies"][0];
    assert_eq!(
        (&policies["was"], &policies["is"], &policies["reason"]),
        (&json!(1), &json!(2), &json!("of late"))
    );
    assert_eq!(by_list["policies"], json!([]));
    let kept_text = place.path("by-folder/newer-policies/default-2.cedar");
    assert_eq!(
        std::fs::read_to_string(kept_text).unwrap(),
        std::fs::read_to_string(&newer).unwrap()
    );
    // Only told, if so asked.
    let only = place.restored("backup", "only", &["--compare", &old, "--only-report"]);
    assert_eq!((told(&only), &only["applied"]), (both, &json!(false)));

    for (data, revoked_here, suspended_here) in [
        ("blind", false, false),
        ("by-list", true, false),
        ("by-folder", true, true),
        ("only", false, false),
    ] {
        let server = place.serve(data);
        assert_eq!(connack(&server, "kept", &kept), Some(0), "{data}");
        let claims = server.cli_ok(&["factory", "claim", "list"]).unwrap();
        assert!(
            claims.contains("line-1") && claims.contains("revoked"),
            "{data}: {claims}"
        );
        assert_eq!(
            connack(&server, "revoked", &revoked).is_none(),
            revoked_here,
            "{data}"
        );
        assert_eq!(
            connack(&server, "suspended", &suspended) == Some(0),
            !suspended_here,
            "{data}"
        );
        // What is not known is not admitted, whatever the signature says.
        assert_ne!(connack(&server, "later", &later), Some(0), "{data}");
        let file = place.path(&format!("{data}.crl"));
        let new_number = fetch_list(&server, &file);
        assert!(new_number > number, "{data}: {new_number} after {number}");
        let text = Command::new("openssl")
            .args(["crl", "-inform", "DER", "-noout", "-text", "-in"])
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8(text.stdout).unwrap().to_lowercase();
        for serial in [&revoked_serial, &gone_serial] {
            assert_eq!(text.contains(serial.as_str()), revoked_here, "{data}: {text}");
        }
        assert_eq!(doctor(&server, "audit")["ok"], true, "{data}");
    }

    // A list of somebody else, and what is no list.
    for (file, word) in [
        ("backup/registry.db", "no revocation list"),
        ("kept/device.crt", "no revocation list"),
    ] {
        let path = place.path(file).display().to_string();
        let text = place.refused("backup", "x", &["--crl", &path]);
        assert!(
            text.contains("hint: give a revocation list that this platform issued"),
            "{word}: {text}"
        );
    }
}

#[test]
fn a_restore_that_is_killed_is_there_whole_or_not_at_all() {
    let place = Place::new();
    let server = place.serve("old");
    provision(&server, place.folder.path(), "sensor");
    // Enough to take a moment.
    for n in 0..4 {
        let devices: Vec<Value> = (0..5000).map(|d| json!({ "id": format!("d-{n}-{d}") })).collect();
        server
            .ask(
                "POST",
                "/tenants/default/devices/import",
                Some(&json!({ "devices": devices })),
            )
            .unwrap();
    }
    place.backup(&server, "backup", &["--with-keys"]);
    drop(server);
    let spawn = || {
        Command::new(program())
            .arg("--data")
            .arg(place.path("new"))
            .arg("restore")
            .arg(place.path("backup"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let started = Instant::now();
    assert!(spawn().wait().unwrap().success());
    let whole = started.elapsed();
    std::fs::remove_dir_all(place.path("new")).unwrap();
    let (mut absent, mut there) = (0, 0);
    for n in 0..20 {
        let mut child = spawn();
        // From its first moment to a little after its last.
        std::thread::sleep(whole.mul_f64(f64::from(n) / 17.0));
        let _ = child.kill();
        let _ = child.wait();
        if !place.path("new").exists() {
            absent += 1;
            continue;
        }
        there += 1;
        let output = Command::new(program())
            .arg("--data")
            .arg(place.path("new"))
            .args(["--json", "doctor"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let output = Command::new(program())
            .arg("--data")
            .arg(place.path("new"))
            .args(["device", "show", "d-3-4999"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        std::fs::remove_dir_all(place.path("new")).unwrap();
    }
    assert!(absent > 3, "{absent} absent, {there} there");
    // What the killed ones left is in nobody's way.
    assert!(place.restored("backup", "new", &[])["epoch"] == 2);
    assert!(!place.path("new.restoring").exists());
}

#[test]
fn a_server_that_is_killed_leaves_no_half_backup() {
    let place = Place::new();
    for n in 0..10u32 {
        let mut server = place.serve("data");
        let name = format!("backup-{n}");
        let target = place.path(&name);
        let mut asking = Command::new(program())
            .arg("--data")
            .arg(place.path("data"))
            .arg("backup")
            .arg(&target)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(n) * 12));
        server.kill();
        let _ = asking.wait();
        // The command may have found no server any more, and have made the backup by itself: that is whole too.
        if target.exists() {
            place.restored(&name, &format!("new-{n}"), &[]);
        }
    }
    let server = place.serve("data");
    place.backup(&server, "last", &[]);
    place.restored("last", "new-last", &[]);
    // What a killed one left is none, and the next of the same name takes it away.
    let part = place.path(".cut.making");
    std::fs::create_dir(&part).unwrap();
    std::fs::write(part.join("registry.db"), "half").unwrap();
    let text = place.refused(".cut.making", "new-cut", &[]);
    assert!(text.contains("is no backup"), "{text}");
    place.backup(&server, "cut", &[]);
    assert!(!part.exists());
    place.restored("cut", "new-cut", &[]);
}

/// The page cache survives a kill, so the kills alone prove little: before each rename that puts a backup or a data
/// directory in its place, all files in it and the folders with their names are synced; after it, the folder above.
#[test]
fn all_is_synced_before_it_is_put_in_its_place() {
    let place = Place::new();
    let server = place.serve("old");
    provision(&server, place.folder.path(), "sensor");
    server.stop().unwrap();
    let folder = place.folder.path().canonicalize().unwrap();
    for (arguments, data, staging, target) in [
        (["backup", "backup"], "old", ".backup.making", "backup"),
        (["restore", "backup"], "new", "new.restoring", "new"),
    ] {
        let trace = place.path(&format!("{target}.trace"));
        let output = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-yy",
                "-e",
                "trace=fsync,fdatasync,rename,renameat,renameat2",
                "-o",
            ])
            .arg(&trace)
            .arg(program())
            .arg("--data")
            .arg(folder.join(data))
            .arg(arguments[0])
            .arg(folder.join(arguments[1]))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let text = std::fs::read_to_string(&trace).unwrap();
        let staging = folder.join(staging).display().to_string();
        let lines: Vec<&str> = text.lines().collect();
        let put = lines
            .iter()
            .position(|l| l.contains(&format!("\"{staging}\", ")) && l.contains("rename"))
            .unwrap_or_else(|| panic!("no rename: {text}"));
        let synced = |lines: &[&str], path: &str| {
            lines
                .iter()
                .any(|l| l.contains("sync(") && l.contains(&format!("<{path}>")))
        };
        let mut seen = 0;
        let mut folders = vec![folder.join(target)];
        while let Some(path) = folders.pop() {
            let name =
                path.display()
                    .to_string()
                    .replacen(&folder.join(target).display().to_string(), &staging, 1);
            assert!(synced(&lines[..put], &name), "{name}: {text}");
            for entry in std::fs::read_dir(&path).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{name}/{}", entry.file_name().to_string_lossy());
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                    continue;
                }
                // A file that is written under another name and renamed is synced under that.
                let renamed = lines[..put]
                    .iter()
                    .any(|l| l.contains("rename") && l.contains(&format!("\"{name}\"")));
                assert!(renamed || synced(&lines[..put], &name), "{name}: {text}");
                seen += 1;
            }
        }
        assert!(seen > 6, "{seen}");
        assert!(synced(&lines[put..], &folder.display().to_string()), "{text}");
    }
}
