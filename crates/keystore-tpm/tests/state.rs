//! Keys that are bound to the state of the device, by PCRs, against a real TPM in software. PCRs 16 and 23 can be changed and
//! reset by programs; what starts a device changes the others.
#![cfg(feature = "tpm")]
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};

use common::Swtpm;
use countersign_identity::signed::{Signed, Signer};
use countersign_keystore_tpm::{Attestation, Pcrs, TpmError, TpmKey, pcrs_of};
use der::{Any, Decode, Encode};
use tss_esapi::structures::Public;
use tss_esapi::traits::UnMarshall;

fn bound(tpm: &Swtpm, pcrs: &str) -> TpmKey {
    TpmKey::generate_bound(&tpm.address(), Some(pcrs.parse().unwrap())).unwrap()
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
}

/// As firmware that is another one does it.
fn measure(tpm: &Swtpm, pcr: u8) {
    let what = "5a".repeat(32);
    tpm.run("tpm2_pcrextend", &[&format!("{pcr}:sha256={what}")]);
}

fn reset(tpm: &Swtpm, pcr: u8) {
    tpm.run("tpm2_pcrreset", &[&pcr.to_string()]);
}

/// Which PCRs are said to be other ones.
fn differing(result: Result<TpmKey, TpmError>) -> Option<Vec<u8>> {
    let error = result.unwrap_err();
    assert!(error.to_string().contains("hint: "), "{error}");
    match error {
        TpmError::State { differing, .. } => differing,
        other => panic!("{other}"),
    }
}

/// What the SEQUENCE of a file holds.
fn parts(pem: &str) -> Vec<Any> {
    let der = der::pem::decode_vec(&pem.as_bytes()[pem.find("-----").unwrap()..])
        .unwrap()
        .1;
    Vec::from_der(&der).unwrap()
}

fn with_parts(parts: &Vec<Any>) -> String {
    let der = parts.to_der().unwrap();
    der::pem::encode_string("TSS2 PRIVATE KEY", der::pem::LineEnding::LF, &der).unwrap()
}

/// Its two parts, for tpm2-tools.
fn write_parts(tpm: &Swtpm, key: &TpmKey) {
    let parts = parts(&key.to_pem());
    tpm.write("public.bin", parts[parts.len() - 2].value());
    tpm.write("private.bin", parts[parts.len() - 1].value());
    tpm.run_line(
        "tpm2_createprimary",
        "-Q -C o -G ecc256:null:aes128cfb -c parent.ctx \
         -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt",
    );
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run_line(
        "tpm2_load",
        "-Q -C parent.ctx -u public.bin -r private.bin -c key.ctx",
    );
    tpm.run("tpm2_flushcontext", &["-t"]);
}

#[test]
fn a_bound_key_signs_in_its_state_and_in_no_other() {
    let mut tpm = Swtpm::start();
    let at = tpm.address();
    let (key, free) = (bound(&tpm, "sha256:7,16,23"), TpmKey::generate(&at).unwrap());
    assert_eq!(key.pcrs().unwrap().to_string(), "sha256:7,16,23");
    assert_eq!(free.pcrs(), None);
    let pem = key.to_pem();
    assert_eq!(pcrs_of(&pem), key.pcrs());
    let p = key.protection();
    assert!(p.made_in_tpm && p.fixed_tpm && p.fixed_parent, "{p:?}");
    // There are three slots for keys, and as many for sessions.
    (0..10).for_each(|_| works(&key));
    works(&TpmKey::open(&at, &pem).unwrap());
    tpm.holds_nothing();

    measure(&tpm, 16);
    let message = key.sign(b"x").unwrap_err().to_string();
    assert!(
        message.contains("the PCR sha256:16 is another one now") && message.contains("enrol --again"),
        "{message}"
    );
    assert_eq!(differing(TpmKey::open(&at, &pem)), Some(vec![16]));
    // Others are not concerned, nor is a PCR that was not chosen.
    works(&free);
    works(&bound(&tpm, "sha256:23"));
    works(&bound(&tpm, "sha256:16"));
    tpm.holds_nothing();

    measure(&tpm, 23);
    assert_eq!(differing(TpmKey::open(&at, &pem)), Some(vec![16, 23]));
    // A file of another program, or one whose lines were changed: it is not told which.
    let other = &pem[pem.find("-----").unwrap()..];
    assert_eq!(differing(TpmKey::open(&at, other)), None);
    assert_eq!(
        differing(TpmKey::open(&at, &pem.replace("sha256:16=0", "sha256:16=1"))),
        None
    );

    reset(&tpm, 16);
    reset(&tpm, 23);
    works(&key);
    works(&TpmKey::open(&at, other).unwrap());
    tpm.restart();
    works(&key);
    tpm.holds_nothing();
}

#[test]
fn what_is_measured_meanwhile_into_other_pcrs_stops_no_signature() {
    let tpm = Swtpm::start();
    let key = bound(&tpm, "sha256:7");
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // As a system does that measures what it starts (IMA). A change of PCR 16 would end no session.
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    measure(&tpm, 10);
                }
            });
        }
        let all = std::panic::catch_unwind(AssertUnwindSafe(|| (0..100).for_each(|_| works(&key))));
        is_done.store(true, Ordering::Relaxed);
        all.unwrap();
    });
    tpm.holds_nothing();
}

#[test]
fn nothing_else_lets_a_bound_key_sign() {
    let tpm = Swtpm::start();
    let key = bound(&tpm, "sha256:16,23");
    write_parts(&tpm, &key);
    // By tools that know nothing of this: the policy is the one that they make.
    tpm.run_line("tpm2_createpolicy", "-Q --policy-pcr -l sha256:16,23 -L policy");
    let public = Public::unmarshall(&tpm.read("public.bin")[2..]).unwrap();
    assert_eq!(public.auth_policy().value(), tpm.read("policy"));
    let told = tpm.run("tpm2_print", &["-t", "TPM2B_PUBLIC", "public.bin"]);
    assert!(
        told.contains("fixedtpm|fixedparent|sensitivedataorigin|noda|sign\n"),
        "{told}"
    );
    tpm.write("content", "content");
    let signs = |by: &str| {
        let line = format!("-c key.ctx -g sha256 -s ecdsa -o signature{by} content");
        let output = tpm.try_run("tpm2_sign", &line.split(' ').collect::<Vec<_>>());
        tpm.run("tpm2_flushcontext", &["-t"]);
        output.status.success()
    };
    let by_policy = " -p pcr:sha256:16,23";
    assert!(signs(by_policy));
    // With the empty password, by a policy of other PCRs, and by this one in another state.
    assert!(!signs(""));
    assert!(!signs(" -p pcr:sha256:16"));
    measure(&tpm, 23);
    assert!(!signs(by_policy));
    reset(&tpm, 23);
    assert!(signs(by_policy));
}

#[test]
fn a_bound_key_is_certified_in_every_state() {
    let tpm = Swtpm::start();
    let key = bound(&tpm, "sha256:16");
    for _ in 0..2 {
        let attestation = Attestation::begin(&tpm.address()).unwrap();
        let certified = attestation.certify(&key, b"nonce").unwrap();
        let public = Public::unmarshall(&certified.public).unwrap();
        assert!(!public.object_attributes().user_with_auth() && !public.auth_policy().is_empty());
        tpm.holds_nothing();
        measure(&tpm, 16);
    }
}

#[test]
fn all_pcrs_are_read_and_those_of_a_bank_that_is_off_are_refused() {
    let mut tpm = Swtpm::start();
    let all: Vec<String> = (0..24).map(|n| n.to_string()).collect();
    for bank in ["sha256", "sha384", "sha512"] {
        let key = bound(&tpm, &format!("{bank}:{}", all.join(",")));
        works(&key);
        works(&TpmKey::open(&tpm.address(), &key.to_pem()).unwrap());
    }
    tpm.run_line("tpm2_pcrallocate", "sha1:none+sha256:all+sha384:none+sha512:none");
    tpm.restart();
    let off: Pcrs = "sha384:0".parse().unwrap();
    let error = TpmKey::generate_bound(&tpm.address(), Some(off)).unwrap_err();
    assert!(matches!(error, TpmError::NoPcrs { .. }), "{error:?}");
    assert!(
        error.to_string().contains("sha384:0; hint: tpm2_getcap pcrs"),
        "{error}"
    );
    works(&bound(&tpm, "sha256:0"));
    tpm.holds_nothing();
}

#[test]
fn a_file_that_tells_another_policy_than_its_key_has_is_refused() {
    let tpm = Swtpm::start();
    let at = tpm.address();
    let (key, free) = (bound(&tpm, "sha256:16"), TpmKey::generate(&at).unwrap());
    let (of_key, of_free) = (parts(&key.to_pem()), parts(&free.to_pem()));
    let of_other = parts(&bound(&tpm, "sha256:23").to_pem());
    assert_eq!(with_parts(&of_free), free.to_pem());
    let policy = 2;
    let mut without = of_key.clone();
    without.remove(policy);
    let mut other = of_key.clone();
    other[policy] = of_other[policy].clone();
    let mut for_show = of_free;
    for_show.insert(policy, of_key[policy].clone());
    for (parts, word) in [
        (without, "a policy that its file does not tell"),
        (other, "its policy is another one than its file tells"),
        (for_show, "binds it to nothing"),
    ] {
        let error = TpmKey::open(&at, &with_parts(&parts)).unwrap_err();
        assert!(matches!(error, TpmError::Unsupported(_)), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
}
