//! Against a real TPM in software: swtpm, one for each test, and against tpm2-openssl and tpm2-tools on the same TPM.
#![cfg(feature = "tpm")]
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::time::{Duration, Instant};

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use common::Swtpm;
use countersign_identity::signed::{Signed, Signer};
use countersign_keystore_tpm::{TpmError, TpmKey, nv};
use der::{Decode, Encode};

impl Swtpm {
    fn openssl(&self, arguments: &str) -> String {
        self.run_line("openssl", arguments)
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }
}

/// Signs, and checks the signature by the public half that was read.
fn works(key: &TpmKey) {
    let content = b"a request for a certificate";
    let signature = key.sign(content).unwrap();
    let signed = Signed {
        content,
        algorithm: key.algorithm().oid,
        signature: &signature,
    };
    signed.verify(key.public_key()).unwrap();
    // The check is one.
    let other = Signed {
        content: b"another request",
        ..signed
    };
    other.verify(key.public_key()).unwrap_err();
}

fn point(key: &TpmKey) -> &[u8] {
    key.public_key().subject_public_key.as_bytes().unwrap()
}

fn public_pem(key: &TpmKey) -> String {
    let der = key.public_key().to_der().unwrap();
    der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, &der).unwrap()
}

fn bytes(pem: &str) -> Vec<u8> {
    der::pem::decode_vec(pem.as_bytes()).unwrap().1
}

fn fault<T: std::fmt::Debug>(result: Result<T, TpmError>) -> (TpmError, String) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("; hint: "), "{message}");
    (error, message)
}

#[test]
fn a_key_is_made_saved_opened_and_signs() {
    let tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    works(&key);
    let p = key.protection();
    assert!(p.made_in_tpm && p.fixed_tpm && p.fixed_parent, "{p:?}");
    let pem = key.to_pem();
    assert!(pem.starts_with("-----BEGIN TSS2 PRIVATE KEY-----\n"), "{pem}");
    assert!(TpmKey::is_tpm_key(&pem));
    drop(key);
    let again = TpmKey::open(&tpm.address(), &pem).unwrap();
    works(&again);
    assert_eq!(again.to_pem(), pem);
    let other = TpmKey::generate(&tpm.address()).unwrap();
    assert_ne!(other.public_key(), again.public_key());
    // The TPM's own word of what it holds.
    tpm.write("public.bin", public_part(&pem));
    let told = tpm.run("tpm2_print", &["-t", "TPM2B_PUBLIC", "public.bin"]);
    for word in [
        "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|sign\n",
        "NIST p256",
    ] {
        assert!(told.contains(word), "{told}");
    }
}

#[test]
fn whoever_may_use_the_tpm_cannot_take_the_key_out_of_it() {
    let tpm = Swtpm::start();
    let pem = TpmKey::generate(&tpm.address()).unwrap().to_pem();
    let parts = parts(&pem);
    tpm.write("public.bin", parts[parts.len() - 2].value());
    tpm.write("private.bin", parts[parts.len() - 1].value());
    let all = |lines: &str| {
        let run = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            tpm.try_run(words[0], &words[1..])
        };
        lines.lines().map(run).collect::<Vec<_>>()
    };
    let loaded = all(
        "tpm2_createprimary -Q -C o -G ecc256:null:aes128cfb -c parent.ctx \
         -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt
        tpm2_flushcontext -t
        tpm2_load -Q -C parent.ctx -u public.bin -r private.bin -c key.ctx
        tpm2_flushcontext -t
        tpm2_startauthsession --policy-session -S session.ctx
        tpm2_policycommandcode -Q -S session.ctx TPM2_CC_Duplicate",
    );
    assert!(loaded.iter().all(|output| output.status.success()), "{loaded:?}");
    // TPM2_Duplicate is the only command that puts a private part under another parent (TPM 2.0 part 3).
    let taken =
        all("tpm2_duplicate -C null -c key.ctx -G null -p session:session.ctx -r taken.bin -s seed.bin");
    assert!(!taken[0].status.success(), "{taken:?}");
    assert!(!tpm.path("taken.bin").exists());
    // The way itself works, for a key that may leave.
    let other = all("tpm2_flushcontext -t
        tpm2_policycommandcode -Q -S session.ctx -L policy TPM2_CC_Duplicate
        tpm2_create -Q -C parent.ctx -G ecc256 -u u -r r -L policy -a sensitivedataorigin|userwithauth|sign
        tpm2_flushcontext -t
        tpm2_load -Q -C parent.ctx -u u -r r -c other.ctx
        tpm2_flushcontext -t
        tpm2_duplicate -C null -c other.ctx -G null -p session:session.ctx -r taken.bin -s seed.bin");
    assert!(other[6].status.success(), "{other:?}");
    assert!(tpm.path("taken.bin").exists());
}

/// What the SEQUENCE of a file holds. The last two are its public and its private part.
fn parts(pem: &str) -> Vec<der::Any> {
    let der = bytes(pem);
    let mut content = der::Any::from_der(&der).unwrap().value().to_vec();
    let mut parts = Vec::new();
    while !content.is_empty() {
        let (part, rest) = der::Any::from_der_partial(&content).unwrap();
        let rest = rest.to_vec();
        parts.push(part);
        content = rest;
    }
    parts
}

/// TPM2B_PUBLIC.
fn public_part(pem: &str) -> Vec<u8> {
    let parts = parts(pem);
    parts[parts.len() - 2].value().to_vec()
}

/// The file with another TPM2B_PUBLIC.
fn with_public(pem: &str, public: &[u8]) -> String {
    let mut parts = parts(pem);
    let at = parts.len() - 2;
    parts[at] = der::Any::new(der::Tag::OctetString, public).unwrap();
    let content: Vec<u8> = parts.iter().flat_map(|p| p.to_der().unwrap()).collect();
    let der = der::Any::new(der::Tag::Sequence, content)
        .unwrap()
        .to_der()
        .unwrap();
    tss2_pem(&der)
}

fn tss2_pem(der: &[u8]) -> String {
    der::pem::encode_string("TSS2 PRIVATE KEY", der::pem::LineEnding::LF, der).unwrap()
}

#[test]
fn the_file_is_of_no_use_to_another_tpm() {
    let (tpm, other) = (Swtpm::start(), Swtpm::start());
    let key = TpmKey::generate(&tpm.address()).unwrap();
    let (error, message) = fault(TpmKey::open(&other.address(), &key.to_pem()));
    assert!(matches!(error, TpmError::OtherTpm { .. }), "{error:?}");
    assert!(
        message.contains("not of the TPM at") && message.contains("0x1df"),
        "{message}"
    );
    // The refusal left nothing there, however often.
    for _ in 0..4 {
        fault(TpmKey::open(&other.address(), &key.to_pem()));
    }
    assert_eq!(other.transient(), "");
    // A TPM that is cleared is another one from then on.
    tpm.run("tpm2_clear", &["-c", "p"]);
    assert!(key.sign(b"x").unwrap_err().to_string().contains("cleared"));
    let (error, _) = fault(TpmKey::open(&tpm.address(), &key.to_pem()));
    assert!(matches!(error, TpmError::OtherTpm { .. }), "{error:?}");
}

#[test]
fn a_public_part_that_was_swapped_is_found_out() {
    let tpm = Swtpm::start();
    let (a, b) = (
        TpmKey::generate(&tpm.address()).unwrap(),
        TpmKey::generate(&tpm.address()).unwrap(),
    );
    let swapped = with_public(&a.to_pem(), &public_part(&b.to_pem()));
    let (error, _) = fault(TpmKey::open(&tpm.address(), &swapped));
    assert!(matches!(error, TpmError::OtherTpm { .. }), "{error:?}");
}

#[test]
fn tpm2_openssl_reads_our_file() {
    let tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    tpm.write("key.pem", key.to_pem());
    let public = tpm.openssl("pkey -provider tpm2 -provider base -in key.pem -pubout");
    assert_eq!(public, public_pem(&key));
    tpm.write("content", "signed by the other program");
    tpm.openssl(
        "dgst -provider tpm2 -provider default -propquery ?provider=tpm2 -sha256 -sign key.pem -out signature content",
    );
    let signature = std::fs::read(tpm.path("signature")).unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point(&key))
        .verify(b"signed by the other program", &signature)
        .unwrap();
    // And the other way round.
    tpm.write("signature", key.sign(b"signed by the other program").unwrap());
    tpm.write("public.pem", &public);
    let told = tpm.openssl("dgst -sha256 -verify public.pem -signature signature content");
    assert_eq!(told, "Verified OK\n");
}

#[test]
fn keys_that_tpm2_openssl_made_are_used() {
    let tpm = Swtpm::start();
    tpm.openssl("genpkey -provider tpm2 -algorithm EC -pkeyopt group:P-256 -out key.pem");
    let key = TpmKey::open(&tpm.address(), &tpm.text("key.pem")).unwrap();
    works(&key);
    assert_eq!(
        tpm.openssl("pkey -provider tpm2 -provider base -in key.pem -pubout"),
        public_pem(&key)
    );
    // Written anew by us, it is still theirs.
    tpm.write("again.pem", key.to_pem());
    assert_eq!(
        tpm.openssl("pkey -provider tpm2 -provider base -in again.pem -pubout"),
        public_pem(&key)
    );
}

#[test]
fn keys_under_a_persistent_parent_are_used() {
    let tpm = Swtpm::start();
    tpm.run(
        "tpm2_createprimary",
        &["-C", "o", "-G", "rsa2048", "-c", "parent.ctx"],
    );
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run(
        "tpm2_evictcontrol",
        &["-C", "o", "-c", "parent.ctx", "0x81000001"],
    );
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.openssl(
        "genpkey -provider tpm2 -algorithm EC -pkeyopt group:P-256 -pkeyopt parent:0x81000001 -out key.pem",
    );
    let key = TpmKey::open(&tpm.address(), &tpm.text("key.pem")).unwrap();
    (0..10).for_each(|_| works(&key));
    works(&TpmKey::open(&tpm.address(), &key.to_pem()).unwrap());
    assert_eq!(tpm.transient(), "");
    assert!(
        tpm.run("tpm2_getcap", &["handles-persistent"])
            .contains("0x81000001")
    );
    // Without its parent.
    let other = Swtpm::start();
    let (error, message) = fault(TpmKey::open(&other.address(), &key.to_pem()));
    assert!(matches!(error, TpmError::OtherTpm { .. }), "{error:?}");
    assert!(message.contains("no key at 0x81000001"), "{message}");
}

#[test]
fn fifty_signatures_leave_nothing_in_the_tpm() {
    let tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    for _ in 0..50 {
        // There are three slots. Often enough, too, that r or s begins with a zero or a high bit.
        works(&key);
    }
    tpm.holds_nothing();
    // What another program left there is not ours to flush, and leaves room for one signature at a time.
    tpm.run("tpm2_createprimary", &["-C", "o", "-c", "other.ctx"]);
    assert_eq!(tpm.transient().lines().count(), 1);
    (0..5).for_each(|_| works(&key));
    assert_eq!(tpm.transient().lines().count(), 1);
}

#[test]
fn full_slots_are_told_with_their_cure() {
    let tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    for name in ["1", "2", "3"] {
        tpm.run("tpm2_createprimary", &["-C", "o", "-c", name]);
    }
    let message = key.sign(b"x").unwrap_err().to_string();
    assert!(
        message.contains("0x902") && message.contains("hint: another program"),
        "{message}"
    );
    tpm.run("tpm2_flushcontext", &["-t"]);
    works(&key);
}

#[test]
fn programs_of_another_test_hold_up_no_tpm() {
    let (tpm, other) = (Swtpm::start(), Swtpm::start());
    let key = TpmKey::generate(&tpm.address()).unwrap();
    let begun = Instant::now();
    let programs = std::thread::scope(|scope| {
        scope.spawn(|| (0..30).for_each(|_| works(&key)));
        // While connections to the TPM are open.
        let started = (0..30).map(|_| other.program("sleep").arg("20").spawn().unwrap());
        started.collect::<Vec<_>>()
    });
    let took = begun.elapsed();
    for mut program in programs {
        program.kill().unwrap();
        program.wait().unwrap();
    }
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn many_threads_sign_at_once() {
    let tpm = Swtpm::start();
    let keys = [
        TpmKey::generate(&tpm.address()).unwrap(),
        TpmKey::generate(&tpm.address()).unwrap(),
    ];
    std::thread::scope(|scope| {
        for thread in 0..12 {
            let key = &keys[thread % 2];
            scope.spawn(move || (0..8).for_each(|_| works(key)));
        }
    });
    assert_eq!(tpm.transient(), "");
}

/// Whether 32 bytes in a row somewhere are the private key of this point.
fn holds_the_scalar(bytes: &[u8], point: &[u8]) -> bool {
    bytes.windows(32).any(|window| {
        let key = PrivateKey::from_private_key(&ECDH_P256, window);
        key.is_ok_and(|key| key.compute_public_key().unwrap().as_ref() == point)
    })
}

#[test]
fn the_private_key_is_nowhere_in_the_file() {
    let tpm = Swtpm::start();
    // The search finds one where there is one.
    tpm.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out soft.pem");
    let public = bytes(&tpm.openssl("pkey -in soft.pem -pubout"));
    let info = spki::SubjectPublicKeyInfoOwned::from_der(&public).unwrap();
    let soft_point = info.subject_public_key.as_bytes().unwrap();
    assert!(holds_the_scalar(&bytes(&tpm.text("soft.pem")), soft_point));
    let key = TpmKey::generate(&tpm.address()).unwrap();
    let pem = key.to_pem();
    assert!(!holds_the_scalar(&bytes(&pem), point(&key)));
    assert!(!pem.contains("BEGIN PRIVATE KEY") && !pem.contains("BEGIN EC PRIVATE KEY"));
    // And openssl alone can do nothing with it, as PEM or as DER.
    tpm.write("key.pem", &pem);
    tpm.write("key.der", bytes(&pem));
    for file in ["key.pem", "key.der"] {
        assert!(!tpm.try_run("openssl", &["pkey", "-in", file]).status.success());
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_cause() {
    let tpm = Swtpm::start();
    for (arguments, word) in [
        ("EC -pkeyopt group:P-384", "not on P-256"),
        ("RSA -pkeyopt bits:2048", "no elliptic-curve key"),
        ("EC -pkeyopt group:P-256 -pkeyopt user-auth:abc", "password"),
    ] {
        tpm.openssl(&format!(
            "genpkey -provider tpm2 -algorithm {arguments} -out key.pem"
        ));
        let (error, message) = fault(TpmKey::open(&tpm.address(), &tpm.text("key.pem")));
        assert!(matches!(error, TpmError::Unsupported(_)), "{error:?}");
        assert!(message.contains(word), "{message}");
    }
    // Cut in the middle of its parts, or with more in them than they say.
    let pem = TpmKey::generate(&tpm.address()).unwrap().to_pem();
    let (error, _) = fault(TpmKey::open(&tpm.address(), &pem[..pem.len() / 2]));
    assert!(matches!(error, TpmError::File(_)), "{error:?}");
    let public = public_part(&pem);
    let mut longer = public.clone();
    longer[1] += 1;
    longer.push(0);
    // The size of x: one more, so that y begins a byte later.
    let mut crooked = public.clone();
    crooked[public.len() - 67] = 33;
    // An attribute that is there no more, by which the key could be moved: the TPM does not take it for the same key.
    let mut loose = public.clone();
    loose[9] &= !2;
    assert_eq!(with_public(&pem, &public), pem);
    for (public, is_malformed) in [(longer, true), (crooked, true), (loose, false)] {
        let (error, _) = fault(TpmKey::open(&tpm.address(), &with_public(&pem, &public)));
        let told = match is_malformed {
            true => matches!(error, TpmError::File(_)),
            false => matches!(error, TpmError::OtherTpm { .. }),
        };
        assert!(told, "{error:?}");
    }
}

/// A key with a password, whose file says that it has none.
fn with_hidden_password(tpm: &Swtpm) -> String {
    tpm.openssl(
        "genpkey -provider tpm2 -algorithm EC -pkeyopt group:P-256 -pkeyopt user-auth:abc -out key.pem",
    );
    let mut der = bytes(&tpm.text("key.pem"));
    // tpm2-openssl writes FALSE here, as one byte.
    let head = [0xa0, 3, 1, 1, 0];
    let at = der.windows(head.len()).position(|w| w == head).unwrap();
    der[at + 4] = 0xff;
    tss2_pem(&der)
}

#[test]
fn a_password_is_not_tried_twice_and_a_lockout_is_told() {
    let tpm = Swtpm::start();
    let unhurt = TpmKey::generate(&tpm.address()).unwrap();
    tpm.run(
        "tpm2_dictionarylockout",
        &[
            "-s",
            "--max-tries=3",
            "--recovery-time=1000",
            "--lockout-recovery-time=1000",
        ],
    );
    let pem = with_hidden_password(&tpm);
    let key = TpmKey::open(&tpm.address(), &pem).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let message = key.sign(b"x").unwrap_err().to_string();
                assert!(message.contains("password"), "{message}");
            });
        }
    });
    let counted = |n: u32| {
        let told = tpm.run("tpm2_getcap", &["properties-variable"]);
        told.contains(&format!("TPM2_PT_LOCKOUT_COUNTER: {n:#X}").replace("0X", "0x"))
    };
    assert!(counted(1), "twenty calls are one try");
    // Others lock it.
    let mut messages = Vec::new();
    for _ in 0..3 {
        let again = TpmKey::open(&tpm.address(), &pem);
        messages.push(match again {
            Ok(key) => key.sign(b"x").unwrap_err().to_string(),
            Err(e) => e.to_string(),
        });
    }
    let last = messages.pop().unwrap();
    assert!(
        last.contains("0x921") && last.contains("hint: wait"),
        "{messages:?} {last}"
    );
    assert_eq!(tpm.transient(), "");
    // A key that is made here is not hit.
    works(&unhurt);
    works(&TpmKey::generate(&tpm.address()).unwrap());
}

#[test]
fn a_password_of_the_owner_is_told() {
    let tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    tpm.run("tpm2_changeauth", &["-c", "o", "abc"]);
    let (error, message) = fault(TpmKey::generate(&tpm.address()));
    assert!(matches!(error, TpmError::OwnerPassword { .. }), "{message}");
    assert!(
        key.sign(b"x")
            .unwrap_err()
            .to_string()
            .contains("owner hierarchy")
    );
}

#[test]
fn no_tpm_there_is_told_with_its_cure() {
    let mut tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    tpm.stop();
    let (error, message) = fault(TpmKey::open(&tpm.address(), &key.to_pem()));
    assert!(matches!(error, TpmError::NoTpm { .. }), "{error:?}");
    assert!(
        message.contains("refused") && message.contains("start swtpm"),
        "{message}"
    );
    let message = key.sign(b"x").unwrap_err().to_string();
    assert!(message.contains("there is no TPM at swtpm:"), "{message}");
    for (address, word) in [
        ("device:/dev/no-such-tpm", "No such file"),
        ("device:/dev/null", "device:/dev/null"),
    ] {
        let (_, message) = fault(TpmKey::generate(&address.parse().unwrap()));
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_tpm_that_comes_back_is_used_again() {
    let mut tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    works(&key);
    tpm.restart();
    works(&key);
    works(&TpmKey::open(&tpm.address(), &key.to_pem()).unwrap());
}

const INDEX: u32 = 0x0180_0100;

#[test]
fn certificates_are_kept_read_and_removed() {
    let mut tpm = Swtpm::start();
    let at = tpm.address();
    assert_eq!(nv::read(&at, INDEX).unwrap(), None);
    assert!(!nv::remove(&at, INDEX).unwrap());
    // More than is written at once, then less; each replaces what was there.
    let long: Vec<u8> = (0..2000_u32).map(|n| n.to_be_bytes()[3]).collect();
    for bytes in [&long, &b"short".to_vec(), &b"shor7".to_vec(), &long, &long] {
        nv::write(&at, INDEX, bytes).unwrap();
        assert_eq!(nv::read(&at, INDEX).unwrap().as_ref(), Some(bytes));
        tpm.run("tpm2_nvread", &["-o", "kept", "0x1800100"]);
        assert_eq!(&std::fs::read(tpm.path("kept")).unwrap(), bytes);
    }
    tpm.restart();
    assert_eq!(nv::read(&at, INDEX).unwrap().as_ref(), Some(&long));
    // With a password of the owner hierarchy it is still read, and what is there already need not be written.
    tpm.run("tpm2_changeauth", &["-c", "o", "abc"]);
    assert_eq!(nv::read(&at, INDEX).unwrap().as_ref(), Some(&long));
    nv::write(&at, INDEX, &long).unwrap();
    for result in [nv::write(&at, INDEX, b"other"), nv::remove(&at, INDEX).map(drop)] {
        assert!(fault(result).1.contains("owner hierarchy has a password"));
    }
    tpm.run("tpm2_changeauth", &["-c", "o", "-p", "abc"]);
    assert_eq!(nv::read(&at, INDEX).unwrap().as_ref(), Some(&long));
    assert!(nv::remove(&at, INDEX).unwrap());
    assert_eq!(nv::read(&at, INDEX).unwrap(), None);
    assert_eq!(tpm.run("tpm2_getcap", &["handles-nv-index"]), "");
    // As if the power went away before anything was written, and before the beginning was.
    let attributes = "ownerread|ownerwrite|authread|no_da";
    tpm.run(
        "tpm2_nvdefine",
        &["-C", "o", "-s", "8", "-a", attributes, "0x1800100"],
    );
    assert_eq!(nv::read(&at, INDEX).unwrap(), None);
    tpm.write("content", "end");
    tpm.run(
        "tpm2_nvwrite",
        &["-C", "o", "-i", "content", "--offset", "5", "0x1800100"],
    );
    assert_eq!(nv::read(&at, INDEX).unwrap().unwrap(), b"\xff\xff\xff\xff\xffend");
    nv::write(&at, INDEX, b"whole").unwrap();
    assert_eq!(nv::read(&at, INDEX).unwrap().unwrap(), b"whole");
}

#[test]
fn no_room_in_the_tpm_is_told_and_nothing_is_lost() {
    let tpm = Swtpm::start();
    let at = tpm.address();
    nv::write(&at, INDEX, b"kept").unwrap();
    for bytes in [Vec::new(), vec![1; 5000], vec![1; 70000]] {
        let (error, _) = fault(nv::write(&at, INDEX, &bytes));
        assert!(matches!(error, TpmError::NoRoom { .. }), "{error:?}");
    }
    // Until all is full.
    let full = (1..200).find_map(|n| nv::write(&at, INDEX + n, &[1; 2000]).err());
    assert!(matches!(full, Some(TpmError::NoRoom { .. })), "{full:?}");
    let (error, _) = fault(nv::write(&at, INDEX, &[1; 2000]));
    assert!(matches!(error, TpmError::NoRoom { .. }), "{error:?}");
    assert_eq!(nv::read(&at, INDEX).unwrap().unwrap(), b"kept");
}

#[test]
fn what_others_keep_in_the_tpm_is_left_alone() {
    let tpm = Swtpm::start();
    let at = tpm.address();
    tpm.run(
        "tpm2_nvdefine",
        &["-C", "o", "-s", "8", "-a", "ownerread|ownerwrite", "0x1800100"],
    );
    for index in [INDEX, 0x01c0_0002, 0x0100_0000, 0x017f_ffff, 0x8100_0001] {
        for result in [nv::write(&at, index, b"x"), nv::remove(&at, index).map(drop)] {
            let (error, _) = fault(result);
            assert!(matches!(error, TpmError::Index { .. }), "{error:?}");
        }
    }
    // Nothing was written there yet.
    assert_eq!(nv::read(&at, INDEX).unwrap(), None);
    tpm.write("content", "8 bytes.");
    tpm.run("tpm2_nvwrite", &["-C", "o", "-i", "content", "0x1800100"]);
    assert_eq!(nv::read(&at, INDEX).unwrap().unwrap(), b"8 bytes.");
    let (error, _) = fault(nv::read(&at, 0x8100_0001));
    assert!(matches!(error, TpmError::Index { .. }), "{error:?}");
}
