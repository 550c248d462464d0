//! Attestation against a real TPM in software: swtpm with endorsement certificates as swtpm_setup makes them. The platform's
//! half is done by tpm2-tools here, with another TPM.
#![cfg(feature = "tpm")]
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use common::Swtpm;
use countersign_identity::signed::Signer;
use countersign_keystore_tpm::{Attestation, Certified, TpmError, TpmKey};
use tss_esapi::structures::{Attest, AttestInfo, Public, Signature};
use tss_esapi::traits::UnMarshall;

const RSA: &str = "0x1c00002";
const P256: &str = "0x1c0000a";
const P384: &str = "0x1c00016";

/// What a manufacturer does.
impl Swtpm {
    /// Takes the EK away that it keeps, so that it is derived.
    fn keep_no_keys(&self) {
        for line in self.run_line("tpm2_getcap", "handles-persistent").lines() {
            let number = line.trim_start_matches("- ");
            self.run_line("tpm2_evictcontrol", &format!("-C o -c {number}"));
        }
    }

    fn remove(&self, index: &str) {
        self.run_line("tpm2_nvundefine", &format!("-C p {index}"));
    }

    /// Keeps something, as a manufacturer does: everybody may read it.
    fn keep(&self, index: &str, bytes: &[u8], attributes: &str) {
        self.write("content", bytes);
        self.run_line(
            "tpm2_nvdefine",
            &format!("-C p -s {} -a {attributes} {index}", bytes.len()),
        );
        self.run_line("tpm2_nvwrite", &format!("-C p -i content {index}"));
    }

    /// A certificate for a public key in PEM, by some CA.
    fn certificate(&self, public: &str) -> Vec<u8> {
        self.run_line(
            "openssl",
            "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=ca",
        );
        self.run_line(
            "openssl",
            "req -new -newkey rsa:2048 -nodes -keyout any.key -subj /CN=ek -out any.csr",
        );
        self.run_line(
            "openssl",
            &format!(
                "x509 -req -in any.csr -CA ca.pem -CAkey ca.key -set_serial 1 -force_pubkey {public} -outform der -out ek.der"
            ),
        );
        self.read("ek.der")
    }

    /// A P-256 EK by the standard template: its public key in PEM.
    fn p256_endorsement(&self) -> &'static str {
        self.run_line("tpm2_createek", "-c ek.ctx -G ecc -u ek.pem -f pem");
        self.run("tpm2_flushcontext", &["-t"]);
        "ek.pem"
    }
}

const READ_BY_ALL: &str = "ppwrite|ppread|ownerread|authread|no_da|platformcreate";

/// Name of a key by its TPMT_PUBLIC, if its nameAlg is SHA-256 (TPM 2.0 part 1, section "Names").
fn name(public: &[u8]) -> Vec<u8> {
    [&[0, 0x0b], digest(&SHA256, public).as_ref()].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// What the platform does: a challenge for this EK and this AK, by another TPM. The contents of TPM2B_ID_OBJECT and
/// TPM2B_ENCRYPTED_SECRET.
fn challenge(platform: &Swtpm, attestation: &Attestation, secret: &[u8]) -> (Vec<u8>, Vec<u8>) {
    platform.write("ek.pub", sized(attestation.endorsement_public()));
    platform.write("secret", secret);
    let name = hex(&name(attestation.attestation_public()));
    platform.run_line(
        "tpm2_makecredential",
        &format!("-u ek.pub -s secret -n {name} -o challenge"),
    );
    platform.run("tpm2_flushcontext", &["-t"]);
    // After a magic number and a version.
    let file = platform.read("challenge");
    let take = |at: usize| {
        let size = usize::from(u16::from_be_bytes([file[at], file[at + 1]]));
        file[at + 2..at + 2 + size].to_vec()
    };
    let credential = take(8);
    let secret = take(8 + 2 + credential.len());
    (credential, secret)
}

/// Checks what the platform checks of a statement.
fn holds(attestation: &Attestation, certified: &Certified, nonce: &[u8]) {
    let Public::Ecc {
        object_attributes: attributes,
        unique,
        ..
    } = Public::unmarshall(attestation.attestation_public()).unwrap()
    else {
        panic!("the AK is on P-256")
    };
    assert!(attributes.restricted() && attributes.sign_encrypt() && !attributes.decrypt());
    assert!(attributes.fixed_tpm() && attributes.fixed_parent() && attributes.sensitive_data_origin());
    assert!(attributes.user_with_auth() && attributes.no_da());
    // TPM_GENERATED_VALUE and TPM_ST_ATTEST_CERTIFY.
    assert!(certified.info.starts_with(&[0xff, b'T', b'C', b'G', 0x80, 0x17]));
    let info = Attest::unmarshall(&certified.info).unwrap();
    assert_eq!(info.extra_data().value(), nonce);
    let AttestInfo::Certify { info } = info.attested() else {
        panic!("{info:?}")
    };
    assert_eq!(info.name().value(), name(&certified.public));
    let Signature::EcDsa(signature) = Signature::unmarshall(&certified.signature).unwrap() else {
        panic!("ECDSA")
    };
    let fixed = |parts: [&[u8]; 2]| parts.map(|n| [&[0; 32][n.len()..], n].concat()).concat();
    let point = [vec![4], fixed([unique.x().value(), unique.y().value()])].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point)
        .verify(
            &certified.info,
            &fixed([signature.signature_r().value(), signature.signature_s().value()]),
        )
        .unwrap();
}

/// All of it.
fn round(tpm: &Swtpm) -> Attestation {
    let platform = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    let attestation = Attestation::begin(&tpm.address()).unwrap();
    tpm.holds_nothing();
    let (credential, secret) = challenge(&platform, &attestation, b"a secret of the platform");
    assert_eq!(
        attestation.activate(&credential, &secret).unwrap(),
        b"a secret of the platform"
    );
    tpm.holds_nothing();
    let certified = attestation.certify(&key, b"nonce").unwrap();
    holds(&attestation, &certified, b"nonce");
    let Public::Ecc { unique, .. } = Public::unmarshall(&certified.public).unwrap() else {
        panic!("{certified:?}")
    };
    let point = key.public_key().subject_public_key.as_bytes().unwrap();
    assert!(point.ends_with(unique.y().value()));
    tpm.holds_nothing();
    // Again and again, though there are three slots only.
    for n in 0..4_u8 {
        holds(
            &attestation,
            &attestation.certify(&key, &[n; 64]).unwrap(),
            &[n; 64],
        );
        assert!(attestation.activate(&credential, &secret).is_ok());
    }
    tpm.holds_nothing();
    attestation
}

fn fault<T: std::fmt::Debug>(result: Result<T, TpmError>) -> (TpmError, String) {
    let error = result.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("; hint: "), "{message}");
    (error, message)
}

/// TPM_ALG_RSA or TPM_ALG_ECC.
fn type_of(public: &[u8]) -> u8 {
    public[1]
}

#[test]
fn a_tpm_as_it_comes_from_the_factory_attests_by_its_rsa_key() {
    let tpm = Swtpm::manufactured();
    let attestation = round(&tpm);
    assert_eq!(type_of(attestation.endorsement_public()), 0x01);
    let [certificate] = attestation.endorsement_certificates() else {
        panic!("{attestation:?}")
    };
    // OpenSSL and the CA have their say.
    tpm.write("ek.der", certificate);
    tpm.run_line("openssl", "x509 -inform der -in ek.der -out ek.pem");
    let told = tpm.run_line(
        "openssl",
        "verify -partial_chain -ignore_critical -trusted ca/issuercert.pem ek.pem",
    );
    assert_eq!(told, "ek.pem: OK\n");
}

#[test]
fn a_key_that_the_tpm_keeps_is_the_one_that_it_derives() {
    let tpm = Swtpm::manufactured();
    let kept = Attestation::begin(&tpm.address()).unwrap();
    tpm.keep_no_keys();
    let derived = round(&tpm);
    assert_eq!(kept.endorsement_public(), derived.endorsement_public());
    assert_ne!(kept.attestation_public(), derived.attestation_public());
}

#[test]
fn a_key_that_the_tpm_keeps_is_used() {
    let tpm = Swtpm::manufactured();
    // With a password of the endorsement hierarchy nothing is derived.
    tpm.run_line("tpm2_changeauth", "-c e abc");
    let kept = Attestation::begin(&tpm.address()).unwrap();
    assert_eq!(kept.endorsement_certificates().len(), 1);
    // Nor is the policy of the key satisfied.
    let (credential, secret) = challenge(&Swtpm::start(), &kept, b"secret");
    let (error, message) = fault(kept.activate(&credential, &secret));
    assert!(matches!(error, TpmError::EndorsementPassword { .. }), "{message}");
    tpm.run_line("tpm2_changeauth", "-c e -p abc");
    assert_eq!(kept.activate(&credential, &secret).unwrap(), b"secret");
    tpm.run_line("tpm2_changeauth", "-c e abc");
    tpm.keep_no_keys();
    let (error, message) = fault(Attestation::begin(&tpm.address()));
    assert!(matches!(error, TpmError::EndorsementPassword { .. }), "{message}");
    tpm.holds_nothing();
}

#[test]
fn another_key_that_the_tpm_keeps_is_passed_by() {
    let tpm = Swtpm::manufactured();
    tpm.keep_no_keys();
    // Neither one by another template, nor one by this template but of another hierarchy, which has no certificate.
    tpm.run_line("tpm2_createprimary", "-C e -G rsa2048 -c other.ctx");
    tpm.run_line("tpm2_evictcontrol", "-C o -c other.ctx 0x81010001");
    tpm.run("tpm2_flushcontext", &["-t"]);
    tpm.run_line("tpm2_startauthsession", "-S session.ctx");
    tpm.run_line("tpm2_policysecret", "-S session.ctx -c e -L policy");
    tpm.run_line("tpm2_flushcontext", "session.ctx");
    tpm.run_line(
        "tpm2_createprimary",
        "-C o -G rsa2048:null:aes128cfb -L policy -c owner.ctx \
         -a fixedtpm|fixedparent|sensitivedataorigin|adminwithpolicy|restricted|decrypt",
    );
    tpm.run_line("tpm2_evictcontrol", "-C o -c owner.ctx 0x81010002");
    tpm.run("tpm2_flushcontext", &["-t"]);
    let attestation = round(&tpm);
    assert_eq!(attestation.endorsement_certificates().len(), 1);
}

#[test]
fn a_tpm_with_a_p384_key_attests() {
    let tpm = Swtpm::manufactured();
    tpm.remove(RSA);
    let kept = round(&tpm);
    assert_eq!(type_of(kept.endorsement_public()), 0x23);
    assert_eq!(kept.endorsement_certificates().len(), 1);
    tpm.keep_no_keys();
    let derived = round(&tpm);
    assert_eq!(kept.endorsement_public(), derived.endorsement_public());
    // A lockout hits keys without noDA when they are used by their password, which this one could be.
    let (credential, secret) = challenge(&Swtpm::start(), &derived, b"secret");
    tpm.run_line(
        "tpm2_dictionarylockout",
        "-s --max-tries=1 --recovery-time=1000 --lockout-recovery-time=1000",
    );
    tpm.run_line("tpm2_createprimary", "-C o -p abc -c locked.ctx");
    for _ in 0..2 {
        let wrong = ["-C", "locked.ctx", "-P", "wrong", "-u", "u", "-r", "r"];
        assert!(!tpm.try_run("tpm2_create", &wrong).status.success());
        tpm.run("tpm2_flushcontext", &["-t"]);
    }
    let told = tpm.run_line("tpm2_getcap", "properties-variable");
    assert!(told.contains("inLockout:                 1"), "{told}");
    assert_eq!(derived.activate(&credential, &secret).unwrap(), b"secret");
}

#[test]
fn a_tpm_with_a_p256_key_attests() {
    let tpm = Swtpm::start();
    let mut certificate = tpm.certificate(tpm.p256_endorsement());
    let bare = certificate.clone();
    // More than is read at once, and padding.
    certificate.resize(2000, 0xff);
    tpm.keep(P256, &certificate, READ_BY_ALL);
    let attestation = round(&tpm);
    assert_eq!(type_of(attestation.endorsement_public()), 0x23);
    assert_eq!(
        attestation.endorsement_certificates(),
        std::slice::from_ref(&bare)
    );
    // Kept where most programs keep it; and an index that the owner only may read.
    tpm.remove(P256);
    tpm.keep(P256, &bare, "ppwrite|ppread|ownerread|no_da|platformcreate");
    tpm.run_line("tpm2_createek", "-c 0x81010002 -G ecc -u ek.pem -f pem");
    tpm.run_line("tpm2_changeauth", "-c e abc");
    let attestation = Attestation::begin(&tpm.address()).unwrap();
    assert_eq!(attestation.endorsement_certificates(), [bare]);
    tpm.holds_nothing();
}

#[test]
fn a_key_by_the_manufacturers_own_template_attests() {
    // TPMT_PUBLIC, as the standard ones but with userWithAuth: type, nameAlg, attributes, policy, parameters, unique.
    let policy = "0020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa";
    let rsa = format!(
        "0001000b000300f2{policy}00060080004300100800000000000100{}",
        "00".repeat(256)
    );
    let ecc = format!(
        "0023000b000300f2{policy}0006008000430010000300100020{0}0020{0}",
        "00".repeat(32)
    );
    let nonce = b"a nonce of the manufacturer 0123";
    // As tpm2_createprimary takes them: TPM2B_PUBLIC_KEY_RSA and TPMS_ECC_POINT as C structures. (tpm2_createek --template
    // makes another key each time if there is a nonce.)
    let in_rsa = [[0, 1].as_slice(), nonce, &[0; 224]].concat();
    let in_ecc = [[32, 0].as_slice(), nonce, &[0; 96], &[32, 0], &[0; 128]].concat();
    for (kind, certificate, nonce_at, template_at, template, unique) in [
        ("rsa2048:null", RSA, "0x1c00003", "0x1c00004", rsa, in_rsa),
        ("ecc256:null", P256, "0x1c0000b", "0x1c0000c", ecc, in_ecc),
    ] {
        let tpm = Swtpm::start();
        tpm.keep(template_at, &unhex(&template), READ_BY_ALL);
        tpm.keep(nonce_at, nonce, READ_BY_ALL);
        tpm.write("unique", unique);
        tpm.write("policy", &unhex(policy)[2..]);
        tpm.run_line(
            "tpm2_createprimary",
            &format!(
                "-C e -G {kind}:aes128cfb -L policy -u unique -c ek.ctx \
                 -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|adminwithpolicy|restricted|decrypt"
            ),
        );
        tpm.run_line("tpm2_readpublic", "-c ek.ctx -f pem -o ek.pem");
        tpm.run("tpm2_flushcontext", &["-t"]);
        let der = tpm.certificate("ek.pem");
        // Without the certificate nobody says that this is its template.
        let without = Attestation::begin(&tpm.address()).unwrap();
        tpm.keep(certificate, &der, READ_BY_ALL);
        let attestation = round(&tpm);
        assert_eq!(attestation.endorsement_certificates(), [der]);
        assert_ne!(attestation.endorsement_public(), without.endorsement_public());
    }
}

#[test]
fn a_tpm_without_certificates_attests_by_its_rsa_key() {
    let tpm = Swtpm::start();
    let attestation = round(&tpm);
    assert!(attestation.endorsement_certificates().is_empty());
    assert_eq!(type_of(attestation.endorsement_public()), 0x01);
    // An index where nothing was written yet, and one that needs a policy, are as good as none.
    tpm.run_line("tpm2_nvdefine", &format!("-C p -s 64 -a {READ_BY_ALL} {RSA}"));
    tpm.run_line(
        "tpm2_nvdefine",
        &format!("-C p -s 64 -a ppwrite|policyread|no_da|platformcreate {P256}"),
    );
    tpm.write("content", [1; 64]);
    tpm.run_line("tpm2_nvwrite", &format!("-C p -i content {P256}"));
    let again = Attestation::begin(&tpm.address()).unwrap();
    assert!(again.endorsement_certificates().is_empty());
    assert_eq!(again.endorsement_public(), attestation.endorsement_public());
}

#[test]
fn the_chain_of_the_certificate_is_told() {
    let tpm = Swtpm::manufactured();
    let [issuer, root] = ["ca/issuercert.pem", "ca/swtpm-localca-rootca-cert.pem"].map(|name| {
        let pem = String::from_utf8(tpm.read(name)).unwrap();
        // After a text for people.
        let begin = pem.find("-----BEGIN").unwrap();
        der::pem::decode_vec(&pem.as_bytes()[begin..]).unwrap().1
    });
    // In more indices than are asked for at once, and padded.
    let all = [issuer.clone(), root.clone(), vec![0xff; 40]].concat();
    for (index, part) in (0x01c0_0100..).zip(all.chunks(all.len().div_ceil(70))) {
        tpm.keep(&format!("{index:#x}"), part, READ_BY_ALL);
    }
    let attestation = Attestation::begin(&tpm.address()).unwrap();
    let [_, rest @ ..] = attestation.endorsement_certificates() else {
        panic!("{attestation:?}")
    };
    assert_eq!(rest, [issuer, root]);
}

#[test]
fn a_certificate_of_another_key_is_told() {
    let tpm = Swtpm::manufactured();
    tpm.run_line("openssl", "genrsa -out other.key 2048");
    tpm.run_line("openssl", "rsa -in other.key -pubout -out other.pem");
    let certificate = tpm.certificate("other.pem");
    tpm.remove(RSA);
    tpm.keep(RSA, &certificate, READ_BY_ALL);
    // There is another that is right.
    let attestation = Attestation::begin(&tpm.address()).unwrap();
    assert_eq!(type_of(attestation.endorsement_public()), 0x23);
    tpm.keep("0x1c00017", b"no template", READ_BY_ALL);
    let (_, message) = fault(Attestation::begin(&tpm.address()));
    assert!(
        message.contains("beside the certificate in 0x1c00016 is no template"),
        "{message}"
    );
    tpm.remove(P384);
    tpm.keep(P384, b"no certificate", READ_BY_ALL);
    let (error, message) = fault(Attestation::begin(&tpm.address()));
    assert!(matches!(error, TpmError::Endorsement { .. }), "{error:?}");
    assert!(
        message.contains("in 0x1c00002 is of another key") && message.contains("no certificate in 0x1c00016"),
        "{message}"
    );
    tpm.holds_nothing();
}

#[test]
fn a_challenge_for_another_is_refused() {
    let platform = Swtpm::start();
    let (tpm, other) = (Swtpm::manufactured(), Swtpm::manufactured());
    for step in ["RSA", "P-384"] {
        let attestation = Attestation::begin(&tpm.address()).unwrap();
        let earlier = Attestation::begin(&tpm.address()).unwrap();
        let elsewhere = Attestation::begin(&other.address()).unwrap();
        for of in [&earlier, &elsewhere] {
            let (credential, secret) = challenge(&platform, of, b"secret");
            let (error, message) = fault(attestation.activate(&credential, &secret));
            assert!(matches!(error, TpmError::Challenge { .. }), "{step}: {error:?}");
            assert!(message.contains("not for this attestation"), "{message}");
        }
        let (credential, secret) = challenge(&platform, &attestation, b"secret");
        let damaged = |bytes: &[u8], at: usize| {
            let mut bytes = bytes.to_vec();
            bytes[at] ^= 1;
            bytes
        };
        let last = credential.len() - 1;
        for (credential, secret) in [
            (damaged(&credential, 5), secret.clone()),
            (damaged(&credential, last), secret.clone()),
            (damaged(&credential, 0), secret.clone()),
            (credential.clone(), damaged(&secret, 20)),
            (credential[..9].to_vec(), secret.clone()),
            (credential.clone(), secret[..9].to_vec()),
            (Vec::new(), secret.clone()),
            (credential.clone(), Vec::new()),
            (vec![0; 5000], secret.clone()),
            (credential.clone(), vec![0; 5000]),
        ] {
            let (error, _) = fault(attestation.activate(&credential, &secret));
            assert!(matches!(error, TpmError::Challenge { .. }), "{step}: {error:?}");
        }
        // It is none the worse for it.
        assert_eq!(attestation.activate(&credential, &secret).unwrap(), b"secret");
        tpm.holds_nothing();
        tpm.try_run("tpm2_nvundefine", &["-C", "p", RSA]);
        other.try_run("tpm2_nvundefine", &["-C", "p", RSA]);
    }
}

#[test]
fn a_key_of_another_tpm_is_not_certified() {
    let (tpm, other) = (Swtpm::start(), Swtpm::start());
    let attestation = Attestation::begin(&tpm.address()).unwrap();
    let key = TpmKey::generate(&other.address()).unwrap();
    assert_eq!(key.address(), &other.address());
    let (error, _) = fault(attestation.certify(&key, b"nonce"));
    assert!(matches!(error, TpmError::OtherTpm { .. }), "{error:?}");
    // A nonce that is too long is told, and none is none.
    let key = TpmKey::generate(&tpm.address()).unwrap();
    let (_, message) = fault(attestation.certify(&key, &[0; 65]));
    assert!(
        message.contains("65 bytes") && message.contains("64 bytes"),
        "{message}"
    );
    holds(&attestation, &attestation.certify(&key, b"").unwrap(), b"");
    // After it was cleared, the TPM is another one.
    let (credential, secret) = challenge(&other, &attestation, b"secret");
    tpm.run_line("tpm2_clear", "-c p");
    for error in [
        fault(attestation.certify(&key, b"nonce")).0,
        fault(attestation.activate(&credential, &secret)).0,
    ] {
        assert!(matches!(error, TpmError::OtherTpm { .. }), "{error:?}");
    }
    tpm.holds_nothing();
}

#[test]
fn a_key_under_a_persistent_parent_is_certified() {
    let tpm = Swtpm::start();
    tpm.run_line("tpm2_createprimary", "-C o -G rsa2048 -c parent.ctx");
    tpm.run_line("tpm2_evictcontrol", "-C o -c parent.ctx 0x81000001");
    tpm.run("tpm2_flushcontext", &["-t"]);
    let made = tpm.run_line(
        "openssl",
        "genpkey -provider tpm2 -algorithm EC -pkeyopt group:P-256 -pkeyopt parent:0x81000001",
    );
    let key = TpmKey::open(&tpm.address(), &made).unwrap();
    let attestation = Attestation::begin(&tpm.address()).unwrap();
    holds(&attestation, &attestation.certify(&key, b"n").unwrap(), b"n");
    tpm.holds_nothing();
}

#[test]
fn full_slots_are_told() {
    let tpm = Swtpm::start();
    let key = TpmKey::generate(&tpm.address()).unwrap();
    let attestation = Attestation::begin(&tpm.address()).unwrap();
    for name in ["1", "2"] {
        tpm.run("tpm2_createprimary", &["-C", "o", "-c", name]);
    }
    let (_, message) = fault(attestation.certify(&key, b"n"));
    assert!(
        message.contains("0x902") && message.contains("hint: another program"),
        "{message}"
    );
    tpm.run("tpm2_flushcontext", &["-t"]);
    holds(&attestation, &attestation.certify(&key, b"n").unwrap(), b"n");
}
