//! Keys in encrypted files, with OpenSSL on the other side.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_authority::keys::PassphraseSource;
use countersign_authority::{Hierarchy, IssuingAuthority, KeyStore, NoTokens};
use countersign_factory::SoftwareKey;
use countersign_factory::encrypted_key::{Cost, decrypt, encrypt};
use countersign_identity::Timestamp;

const NOW: Timestamp = Timestamp::from_unix_s(1_790_000_000);
const PASSPHRASE: &str = "a passphrase that is long";

fn openssl(arguments: &[&str]) -> (bool, Vec<u8>) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    (output.status.success(), output.stdout)
}

fn private(path: &Path, text: &[u8]) -> String {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

fn store(folder: &Path) -> (KeyStore, PathBuf) {
    let path = folder.join("passphrase");
    let text = private(&path, format!("{PASSPHRASE}\n").as_bytes());
    let passphrase = text.parse::<PassphraseSource>().unwrap();
    (KeyStore::Encrypted { passphrase }, path)
}

#[test]
fn openssl_opens_what_we_encrypt_and_we_open_what_openssl_does() {
    let folder = tempfile::tempdir().unwrap();
    let key = SoftwareKey::generate().unwrap();
    let ours = encrypt(key.to_pkcs8(), PASSPHRASE.as_bytes(), Cost::Ca).unwrap();
    let path = folder.path().join("ours.pem");
    let ours_path = private(&path, ours.as_bytes());
    let pass = format!("pass:{PASSPHRASE}");
    let (opened, der) = openssl(&[
        "pkcs8", "-topk8", "-nocrypt", "-in", &ours_path, "-passin", &pass, "-outform", "DER",
    ]);
    assert!(opened);
    let theirs = SoftwareKey::from_pkcs8(&der);
    assert!(theirs.is_ok(), "{theirs:?}");
    assert!(!openssl(&["pkey", "-in", &ours_path, "-passin", "pass:wrong one"]).0);
    // The same key and passphrase are never the same bytes: salt and IV are fresh.
    let again = encrypt(key.to_pkcs8(), PASSPHRASE.as_bytes(), Cost::Ca).unwrap();
    assert_ne!(ours, again);

    let plain = private(&folder.path().join("plain.pem"), key.to_pem().as_bytes());
    for how in [
        &["-scrypt"][..],
        &[
            "-v2",
            "aes-256-cbc",
            "-v2prf",
            "hmacWithSHA256",
            "-iter",
            "100000",
        ],
        &["-v2", "aes-128-cbc", "-v2prf", "hmacWithSHA512"],
    ] {
        let mut arguments = vec!["pkcs8", "-topk8", "-in", &plain, "-passout", &pass];
        arguments.extend(how);
        let (made, pem) = openssl(&arguments);
        assert!(made, "{how:?}");
        let der = decrypt(&pem, PASSPHRASE.as_bytes()).unwrap();
        assert!(SoftwareKey::from_pkcs8(&der).is_ok(), "{how:?}");
        let wrong = decrypt(&pem, b"another passphrase").unwrap_err().to_string();
        assert!(
            wrong.contains("passphrase") && wrong.contains("hint: "),
            "{wrong}"
        );
    }
}

#[test]
fn a_file_cannot_make_us_work_for_ever() {
    let key = SoftwareKey::generate().unwrap();
    let pem = encrypt(key.to_pkcs8(), PASSPHRASE.as_bytes(), Cost::Ca).unwrap();
    let (_, mut der) = der::pem::decode_vec(pem.as_bytes()).unwrap();
    // N = 2^14 is 02 02 40 00; 2^30 fits the same place only with two bytes more, so raise the lanes: 02 01 05.
    let at = der
        .windows(7)
        .position(|w| w == [0x02, 0x01, 0x08, 0x02, 0x01, 0x05, 0x30]);
    let at = at.unwrap();
    der[at + 2] = 0x7f;
    der[at + 5] = 0x7f;
    let planted = der::pem::encode_string("ENCRYPTED PRIVATE KEY", der::pem::LineEnding::LF, &der).unwrap();
    let refused = decrypt(planted.as_bytes(), b"x").unwrap_err().to_string();
    assert!(refused.contains("too much"), "{refused}");
    for text in [
        "",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        let refused = decrypt(text.as_bytes(), b"x").unwrap_err().to_string();
        assert!(refused.contains("hint: "), "{refused}");
    }
}

#[test]
fn an_authority_in_encrypted_files_opens_only_with_the_passphrase() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("ca");
    let (store, passphrase) = store(place.path());
    let made = IssuingAuthority::create_in(&folder, Hierarchy::Devices, "t", NOW, &store, &NoTokens).unwrap();
    made.check_key().unwrap();
    for name in ["root.key", "issuing.key"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.contains("BEGIN ENCRYPTED PRIVATE KEY"), "{text}");
    }
    let opened = IssuingAuthority::open(&folder, Hierarchy::Devices).unwrap();
    assert_eq!(opened.certificate(), made.certificate());
    assert_eq!(opened.key_store(), &store);
    opened.check_key().unwrap();
    // OpenSSL takes the same file with the same passphrase file.
    let (key, file) = (
        folder.join("issuing.key"),
        format!("file:{}", passphrase.display()),
    );
    assert!(
        openssl(&[
            "pkey",
            "-in",
            &key.display().to_string(),
            "-passin",
            &file,
            "-noout"
        ])
        .0
    );

    let fault = || {
        let fault = IssuingAuthority::open(&folder, Hierarchy::Devices)
            .unwrap_err()
            .to_string();
        assert!(fault.contains("hint: ") && !fault.contains(PASSPHRASE), "{fault}");
        fault
    };
    private(&passphrase, b"not this one, is it");
    assert!(fault().contains("does not open"));
    std::fs::set_permissions(&passphrase, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(fault().contains("chmod 600"));
    std::fs::remove_file(&passphrase).unwrap();
    assert!(fault().contains("No such file"));
    private(&passphrase, b"\n");
    assert!(fault().contains("is empty"));
    // Too short for a new key, while an old one may have any.
    private(&passphrase, b"short\n");
    let made = IssuingAuthority::create_in(
        &place.path().join("b"),
        Hierarchy::Devices,
        "t",
        NOW,
        &store,
        &NoTokens,
    );
    assert!(made.unwrap_err().to_string().contains("shorter than 12"));
}

#[test]
fn the_flow_under_an_external_root_keeps_its_encrypted_key() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("ca");
    let (store, _) = store(place.path());
    let ask = || IssuingAuthority::request_in(&folder, Hierarchy::Devices, "t", &store, &NoTokens).unwrap();
    let request = ask();
    let text = std::fs::read_to_string(folder.join("issuing.key")).unwrap();
    assert!(text.contains("BEGIN ENCRYPTED PRIVATE KEY"));
    ask();
    assert_eq!(
        std::fs::read_to_string(folder.join("issuing.key")).unwrap(),
        text,
        "the key stays"
    );
    assert!(IssuingAuthority::is_requested(&folder));
    let path = |name: &str| place.path().join(name).display().to_string();
    private(Path::new(&path("ca.csr")), request.as_bytes());
    let extensions = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
    private(Path::new(&path("ext")), extensions.as_bytes());
    let run = |arguments: &[&str]| assert!(openssl(arguments).0, "{arguments:?}");
    run(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-keyout",
        &path("r.key"),
        "-out",
        &path("r.crt"),
        "-subj",
        "/CN=external root",
        "-days",
        "3650",
    ]);
    run(&[
        "x509",
        "-req",
        "-in",
        &path("ca.csr"),
        "-CA",
        &path("r.crt"),
        "-CAkey",
        &path("r.key"),
        "-days",
        "900",
        "-extfile",
        &path("ext"),
        "-out",
        &path("i.crt"),
    ]);
    let chain = [
        std::fs::read(path("i.crt")).unwrap(),
        std::fs::read(path("r.crt")).unwrap(),
    ]
    .concat();
    let installed = IssuingAuthority::install(&folder, Hierarchy::Devices, &chain).unwrap();
    installed.check_key().unwrap();
    let again = IssuingAuthority::install(&folder, Hierarchy::Devices, &chain);
    assert!(again.unwrap_err().to_string().contains("never overwritten"));
}

#[test]
fn a_passphrase_source_is_a_path_or_a_credential() {
    for good in ["/etc/pass", "credential:ca-pass"] {
        assert!(good.parse::<PassphraseSource>().is_ok(), "{good}");
    }
    for bad in ["pass", "", "credential:", "credential:a/b", "credential:.."] {
        assert!(bad.parse::<PassphraseSource>().is_err(), "{bad}");
    }
}
