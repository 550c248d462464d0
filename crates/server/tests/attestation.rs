//! TPM attestation over the enrolment listener, by curl, with what a TPM would say made by hand: each way in which it can be
//! wrong is refused for its own reason. What real TPMs say is in `agent_tpm.rs`.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::attest::qualifying_data;
use countersign_factory::{CertificateRequest, SoftwareKey};
use countersign_identity::{DeviceId, TenantId};
use countersign_testkit::forged_tpm::{
    AK, DECRYPT, FIXED_TPM, ForgedTpm, KEY, RESTRICTED, SENSITIVE_DATA_ORIGIN, Statement, public_of,
};
use countersign_testkit::pki::Ca;
use countersign_testkit::server::{Server, listener};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use serde_json::{Value, json};

struct Place {
    folder: tempfile::TempDir,
    server: Server,
    url: String,
    maker: Ca,
}

/// HTTP status, and what was answered.
type Answer = (u16, String);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_countersign"));
        let server = Server::start(program, &folder.path().join("data"), &listener("enrol")).unwrap();
        let url = format!("https://localhost:{}", server.listener("enrol").unwrap().port());
        let place = Self {
            folder,
            server,
            url,
            maker: Ca::root("Maker of TPMs", None),
        };
        let root = place.cli(&["authority", "export", "platform"]);
        std::fs::write(place.path("root.pem"), root).unwrap();
        std::fs::write(place.path("maker.pem"), &place.maker.pem).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cli(&self, arguments: &[&str]) -> String {
        self.server.cli_ok(arguments).unwrap()
    }

    fn trust_maker(&self) {
        let file = self.path("maker.pem").display().to_string();
        self.cli(&["attestation", "authority", "add", "maker", &file]);
    }

    fn device(&self, id: &str) -> DeviceId {
        self.cli(&["device", "add", id]);
        DeviceId::new(id).unwrap()
    }

    fn secret(&self, device: &DeviceId) -> String {
        let text = self.cli(&["device", "secret", device.as_str()]);
        format!("{device}:{}", text.lines().next().unwrap())
    }

    fn curl(&self, path: &str, more: &[&str]) -> Answer {
        let output = Command::new("curl")
            .args(["-sS", "-w", "\n%{http_code}", "--max-time", "20", "--cacert"])
            .arg(self.path("root.pem"))
            .args(more)
            .arg(format!("{}{path}", self.url))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        (status.parse().unwrap(), body.to_owned())
    }

    fn post(&self, step: &str, body: &Value) -> Answer {
        let body = body.to_string();
        self.curl(&format!("/v1/attestation/{step}"), &["--data-binary", &body])
    }

    fn begin(&self, tpm: &ForgedTpm, device: &DeviceId, certificates: &[Vec<u8>]) -> Answer {
        let certificates: Vec<_> = certificates.iter().map(|c| b64(c)).collect();
        let body = json!({
            "tenant": "default", "device": device, "endorsement_key": b64(&tpm.endorsement_public()),
            "endorsement_certificates": certificates, "attestation_key": b64(&tpm.attestation_public()),
        });
        self.post("begin", &body)
    }

    /// A challenge that was given out.
    fn begun(&self, tpm: &ForgedTpm, device: &DeviceId) -> Value {
        let certificate = self.maker.endorse(&tpm.endorsement_info());
        let (status, body) = self.begin(tpm, device, &[certificate]);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// What would finish it, for a key that the TPM says it holds.
    fn finish(&self, tpm: &ForgedTpm, device: &DeviceId, begun: &Value, key: &[u8]) -> Value {
        let nonce = bytes(&begun["nonce"]).try_into().unwrap();
        let extra = qualifying_data(&nonce, &TenantId::default_tenant(), device);
        let secret = tpm.activate(&bytes(&begun["credential"]), &bytes(&begun["secret"]));
        let statement = Statement::of(key, &extra).bytes();
        json!({
            "challenge": begun["challenge"], "secret": b64(&secret.unwrap()), "key": b64(key),
            "statement": b64(&statement), "signature": b64(&tpm.signature(&statement)),
        })
    }

    /// The token of an attestation that holds.
    fn attested(&self, tpm: &ForgedTpm, device: &DeviceId, key: &SoftwareKey) -> String {
        let begun = self.begun(tpm, device);
        let finish = self.finish(tpm, device, &begun, &public_of(key, KEY));
        let (status, body) = self.post("finish", &finish);
        assert_eq!(status, 200, "{body}");
        let finished: Value = serde_json::from_str(&body).unwrap();
        finished["attestation"].as_str().unwrap().to_owned()
    }

    fn enrol(
        &self,
        device: &DeviceId,
        key: &SoftwareKey,
        cited: Option<&str>,
        secret: Option<&str>,
    ) -> Answer {
        let request = CertificateRequest::create(key, device).unwrap();
        let request = CertificateRequest::parse(request.as_bytes()).unwrap();
        let body = STANDARD.encode(request.der());
        let mut more = vec!["-H", "Content-Type: application/pkcs10", "--data-binary", &body];
        let header = cited.map(|token| format!("Countersign-Attestation: {token}"));
        if let Some(header) = &header {
            more.extend(["-H", header.as_str()]);
        }
        if let Some(secret) = secret {
            more.extend(["-u", secret]);
        }
        self.curl("/.well-known/est/simpleenroll", &more)
    }

    /// The custody of the newest certificate.
    fn custody(&self, device: &DeviceId) -> String {
        let text = self.cli(&["device", "show", device.as_str(), "--json"]);
        let shown: Value = serde_json::from_str(&text).unwrap();
        shown["credentials"][0]["custody"].as_str().unwrap().to_owned()
    }
}

fn b64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

#[track_caller]
fn refused((status, body): Answer, code: &str) {
    assert_eq!(status, 403, "{body}");
    assert!(body.starts_with(&format!("{code}: ")), "{body}");
    assert!(body.contains("; hint: "), "{body}");
}

#[test]
fn an_attested_key_is_known_as_one() {
    let place = Place::new();
    place.trust_maker();
    let (device, tpm, key) = (
        place.device("d1"),
        ForgedTpm::default(),
        SoftwareKey::generate().unwrap(),
    );
    let token = place.attested(&tpm, &device, &key);
    // It says how the key is held, not whose the TPM is.
    refused(
        place.enrol(&device, &key, Some(&token), None),
        "attestation.not-enough",
    );
    let secret = place.secret(&device);
    let (status, first) = place.enrol(&device, &key, Some(&token), Some(&secret));
    assert_eq!(status, 200, "{first}");
    assert_eq!(place.custody(&device), "attested");
    // The answer was lost: the very same request again, the very same certificate.
    assert_eq!(
        place.enrol(&device, &key, Some(&token), Some(&secret)),
        (200, first)
    );
    let shown = place.cli(&["attestation", "show", "d1"]);
    assert!(shown.contains("vouched for by maker"), "{shown}");
    let keys = place.cli(&["attestation", "key", "list", "d1"]);
    assert!(keys.contains("attested"), "{keys}");

    // Another key of the same device is not attested by that.
    let other = SoftwareKey::generate().unwrap();
    let secret = place.secret(&device);
    refused(
        place.enrol(&device, &other, Some(&token), Some(&secret)),
        "attestation.replayed",
    );
    let (status, body) = place.enrol(&device, &other, None, Some(&secret));
    assert_eq!(status, 200, "{body}");
    assert_eq!(place.custody(&device), "unknown");
    // Attested later, the certificate that is there becomes so.
    let token = place.attested(&tpm, &device, &other);
    let (status, body) = place.enrol(&device, &other, Some(&token), Some(&secret));
    assert_eq!(status, 200, "{body}");
    assert_eq!(place.custody(&device), "attested");
}

#[test]
fn a_registered_tpm_lets_its_device_enrol_without_a_secret() {
    let place = Place::new();
    let (device, other) = (place.device("d1"), place.device("d2"));
    let (tpm, key) = (ForgedTpm::default(), SoftwareKey::generate().unwrap());
    let file = place.path("ek.pem");
    let pem = countersign_factory::request::pem("PUBLIC KEY", &tpm.endorsement_info());
    std::fs::write(&file, pem).unwrap();
    let file = file.display().to_string();
    place.cli(&["attestation", "key", "add", "d1", &file]);

    // No manufacturer is trusted, and none is needed.
    let token = place.attested(&tpm, &device, &key);
    let (status, body) = place.enrol(&device, &key, Some(&token), None);
    assert_eq!(status, 200, "{body}");
    assert_eq!(place.custody(&device), "attested");
    let shown = place.cli(&["attestation", "show", "d1"]);
    assert!(shown.contains("its registration for this device"), "{shown}");

    // For no other device, neither by challenge nor by token.
    refused(place.begin(&tpm, &other, &[]), "attestation.ek-of-other-device");
    let again = SoftwareKey::generate().unwrap();
    let token = place.attested(&tpm, &device, &again);
    refused(
        place.enrol(&other, &again, Some(&token), None),
        "attestation.unknown",
    );
    // The board is scrapped.
    let keys = place.cli(&["attestation", "key", "list", "d1", "--json"]);
    let keys: Value = serde_json::from_str(&keys).unwrap();
    let fingerprint = keys[0]["fingerprint"].as_str().unwrap();
    place.cli(&["attestation", "key", "remove", fingerprint]);
    refused(
        place.enrol(&device, &again, Some(&token), None),
        "attestation.ek-unknown",
    );
    refused(place.begin(&tpm, &device, &[]), "attestation.ek-unknown");
}

#[test]
fn a_program_that_claims_to_be_a_tpm_is_refused() {
    let place = Place::new();
    place.trust_maker();
    let device = place.device("d1");
    // It has a real TPM's certificate and public key, which are no secrets.
    let (real, software) = (ForgedTpm::default(), ForgedTpm::default());
    let certificate = place.maker.endorse(&real.endorsement_info());
    let body = json!({
        "tenant": "default", "device": "d1", "endorsement_key": b64(&real.endorsement_public()),
        "endorsement_certificates": [b64(&certificate)], "attestation_key": b64(&software.attestation_public()),
    });
    let (status, body) = place.post("begin", &body);
    assert_eq!(status, 200, "{body}");
    let begun: Value = serde_json::from_str(&body).unwrap();
    // It cannot open the challenge; nor does the TPM for it, for an attestation key that is not its own.
    let (credential, secret) = (bytes(&begun["credential"]), bytes(&begun["secret"]));
    assert_eq!(software.activate(&credential, &secret), None);
    assert_eq!(real.activate(&credential, &secret), None);
    let key = public_of(&SoftwareKey::generate().unwrap(), KEY);
    let own = place.begun(&software, &device);
    let mut finish = place.finish(&software, &device, &own, &key);
    finish["challenge"] = begun["challenge"].clone();
    finish["secret"] = json!(b64(&[7; 32]));
    refused(place.post("finish", &finish), "attestation.not-activated");
    // With an endorsement key of its own nobody vouches for it; with another's certificate neither.
    refused(place.begin(&software, &device, &[]), "attestation.ek-unknown");
    let stranger = Ca::root("Maker of TPMs", None).endorse(&software.endorsement_info());
    refused(
        place.begin(&software, &device, &[stranger]),
        "attestation.ek-unknown",
    );
    refused(
        place.begin(&software, &device, &[certificate]),
        "attestation.ek-certificate",
    );
    // Of its own key the maker's CA has certified something else: for clients, for anything, for signing, or long ago.
    let info = software.endorsement_info();
    let (client, none) = (ExtendedKeyUsagePurpose::ClientAuth, vec![]);
    let signs = KeyUsagePurpose::DigitalSignature;
    let ek = ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1]);
    for (purposes, usages, days, said) in [
        (vec![client], vec![], (-1, 30), "tcg-kp-EKCertificate"),
        (none.clone(), vec![], (-1, 30), "tcg-kp-EKCertificate"),
        (none.clone(), vec![signs], (-1, 30), "tcg-kp-EKCertificate"),
        (
            vec![ek],
            vec![KeyUsagePurpose::KeyAgreement],
            (-30, -1),
            "expired",
        ),
    ] {
        let certificate = place.maker.endorse_as(&info, purposes, usages, days);
        let (status, body) = place.begin(&software, &device, &[certificate]);
        assert!(body.contains(said), "{body}");
        refused((status, body), "attestation.ek-unknown");
    }
    // Old endorsement certificates say it by a key usage alone.
    let old = place
        .maker
        .endorse_as(&info, none, vec![KeyUsagePurpose::KeyAgreement], (-1, 30));
    let (status, body) = place.begin(&software, &device, &[old]);
    assert_eq!(status, 200, "{body}");
}

#[test]
fn each_false_word_is_refused_for_its_own_reason() {
    let place = Place::new();
    place.trust_maker();
    let (device, key) = (place.device("d1"), SoftwareKey::generate().unwrap());
    let certified = |tpm: &ForgedTpm| vec![place.maker.endorse(&tpm.endorsement_info())];

    // The attestation key could sign a statement that no TPM made; or could be elsewhere; or is for other uses.
    for (attributes, code) in [
        (AK & !RESTRICTED, "attestation.ak-unrestricted"),
        (AK & !FIXED_TPM, "attestation.ak-attributes"),
        (AK & !SENSITIVE_DATA_ORIGIN, "attestation.ak-attributes"),
        (AK | DECRYPT, "attestation.ak-attributes"),
    ] {
        let mut tpm = ForgedTpm::default();
        tpm.ak_attributes = attributes;
        refused(place.begin(&tpm, &device, &certified(&tpm)), code);
    }

    let tpm = ForgedTpm::default();
    let public = public_of(&key, KEY);
    let said = |change: &dyn Fn(&mut Statement), public: &[u8]| {
        let begun = place.begun(&tpm, &device);
        let mut finish = place.finish(&tpm, &device, &begun, public);
        let nonce = bytes(&begun["nonce"]).try_into().unwrap();
        let extra = qualifying_data(&nonce, &TenantId::default_tenant(), &device);
        let mut statement = Statement::of(public, &extra);
        change(&mut statement);
        let statement = statement.bytes();
        finish["statement"] = json!(b64(&statement));
        finish["signature"] = json!(b64(&tpm.signature(&statement)));
        place.post("finish", &finish)
    };
    refused(said(&|s| s.magic = 0xff54_4348, &public), "attestation.magic");
    refused(said(&|s| s.kind = 0x8018, &public), "attestation.statement-type");
    refused(said(&|s| s.extra = vec![7; 32], &public), "attestation.nonce");
    let other = public_of(&SoftwareKey::generate().unwrap(), KEY);
    refused(
        said(&|s| s.name = Statement::of(&other, &[]).name, &public),
        "attestation.key-name",
    );
    // The key came from outside, may leave, is restricted, or decrypts.
    for attributes in [
        KEY & !SENSITIVE_DATA_ORIGIN,
        KEY & !FIXED_TPM,
        KEY | RESTRICTED,
        KEY | DECRYPT,
    ] {
        refused(
            said(&|_| {}, &public_of(&key, attributes)),
            "attestation.key-attributes",
        );
    }

    // A statement for another device's challenge, though the nonce is right.
    let begun = place.begun(&tpm, &device);
    let stranger = DeviceId::new("d2").unwrap();
    let finish = place.finish(&tpm, &stranger, &begun, &public);
    refused(place.post("finish", &finish), "attestation.nonce");
    // Signed by another attestation key.
    let mut finish = place.finish(&tpm, &device, &begun, &public);
    finish["signature"] = json!(b64(&ForgedTpm::default().signature(&bytes(&finish["statement"]))));
    refused(place.post("finish", &finish), "attestation.signature");
    // A challenge that was not given out here.
    let mut finish = place.finish(&tpm, &device, &begun, &public);
    let text = finish["challenge"].as_str().unwrap();
    finish["challenge"] = json!(text.chars().rev().collect::<String>());
    refused(place.post("finish", &finish), "attestation.challenge");
    // The right one, and then again.
    let finish = place.finish(&tpm, &device, &begun, &public);
    let (status, body) = place.post("finish", &finish);
    assert_eq!(status, 200, "{body}");
    let token = serde_json::from_str::<Value>(&body).unwrap()["attestation"].clone();
    refused(place.post("finish", &finish), "attestation.replayed");

    // The certified key is not the request's.
    let secret = place.secret(&device);
    let other = SoftwareKey::generate().unwrap();
    refused(
        place.enrol(&device, &other, token.as_str(), Some(&secret)),
        "attestation.key-differs",
    );
    refused(
        place.enrol(&device, &key, Some("made up"), Some(&secret)),
        "attestation.unknown",
    );
    let (status, body) = place.enrol(&device, &key, token.as_str(), Some(&secret));
    assert_eq!(status, 200, "{body}");

    // The TPM is known to be in that device now.
    let other = place.device("d3");
    refused(
        place.begin(&tpm, &other, &certified(&tpm)),
        "attestation.ek-of-other-device",
    );
}

#[test]
fn what_cannot_be_read_is_told() {
    let place = Place::new();
    place.trust_maker();
    let device = place.device("d1");
    let tpm = ForgedTpm::default();
    let begin = json!({
        "tenant": "default", "device": "d1", "endorsement_key": b64(&tpm.endorsement_public()),
        "endorsement_certificates": [b64(&place.maker.endorse(&tpm.endorsement_info()))],
        "attestation_key": b64(&tpm.attestation_public()),
    });
    for (field, value) in [
        ("endorsement_key", json!("no base64")),
        ("endorsement_key", json!("")),
        ("attestation_key", json!(b64(&tpm.attestation_public()[1..]))),
        (
            "attestation_key",
            json!(b64(&[tpm.attestation_public(), vec![0]].concat())),
        ),
        ("endorsement_certificates", json!(vec![b64(b"no DER"); 1])),
        ("endorsement_certificates", json!(vec![b64(b"x"); 9])),
        ("device", json!("no/id")),
        ("more", json!(1)),
    ] {
        let mut begin = begin.clone();
        begin[field] = value;
        let (status, body) = place.post("begin", &begin);
        assert_eq!(status, 400, "{field}: {body}");
    }
    let begun = place.begun(&tpm, &device);
    let finish = place.finish(
        &tpm,
        &device,
        &begun,
        &public_of(&SoftwareKey::generate().unwrap(), KEY),
    );
    for field in ["key", "statement", "signature"] {
        let mut finish = finish.clone();
        let whole = bytes(&finish[field]);
        finish[field] = json!(b64(&whole[..whole.len() - 1]));
        let (status, body) = place.post("finish", &finish);
        assert!(body.starts_with("attestation.malformed: "), "{field}: {body}");
        assert_eq!(status, 400, "{body}");
    }
    let (status, body) = place.curl("/v1/attestation/begin", &[]);
    assert_eq!(status, 405, "{body}");
}
