//! The whole table of refusals with real clients (curl with OpenSSL), against certificates that this platform dated back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use countersign_factory::request::pem;
use countersign_factory::{CertificateRequest, Profile, RevocationReason};
use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::{LifecycleMove, LifecycleState};
use countersign_registry::{Actor, AuthorityMove, Move, NewDevice, Revocation};
use countersign_testkit::client::{Attempt, connect};
use countersign_testkit::pki::{Ca, Identity, Leaf};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Config;
use crate::listeners::{Listener, Purpose};
use crate::serve::Running;
use crate::service::{AuthorityDraft, Wanted, now};

const DAY: Duration = Duration::from_secs(86_400);

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
    running: Running,
}

impl Place {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        let any = "127.0.0.1:0".parse().unwrap();
        config.admin.listen = any;
        config.listeners = vec![Listener::devices(any), Listener::enrol(any)];
        config.issuance.overlap_hours = 0;
        config.enrol.expired_days_max = 30;
        let keeps = Profile {
            name: "keeps".into(),
            lane_same_key: true,
            server_keys: true,
            ..Profile::default()
        };
        config.profiles.push(keeps);
        change(&mut config);
        let running = Running::start(&folder.path().join("data"), config).await.unwrap();
        let place = Self { folder, running };
        std::fs::write(place.path("root.pem"), place.running.service.platform_root()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A new key in `NAME.key`, and a request for it with the subject that our certificates of the device have.
    fn request(&self, name: &str, device: &str) -> Vec<u8> {
        let (key, csr) = (
            self.text(&format!("{name}.key")),
            self.text(&format!("{name}.csr")),
        );
        if !Path::new(&key).exists() {
            openssl(&[
                "ecparam",
                "-name",
                "prime256v1",
                "-genkey",
                "-noout",
                "-out",
                &key,
            ]);
        }
        let subject = format!("/O=default/CN={device}/serialNumber={device}");
        openssl(&[
            "req", "-new", "-key", &key, "-subj", &subject, "-outform", "DER", "-out", &csr,
        ]);
        std::fs::read(csr).unwrap()
    }

    /// A certificate for `NAME.key`, in `NAME.pem`, that expired so many days ago.
    async fn expired(&self, name: &str, device: &str, days: u64) -> Fingerprint {
        self.issued(name, device, None, Some(90 + days)).await
    }

    async fn issued(
        &self,
        name: &str,
        device: &str,
        profile: Option<&str>,
        dated_days_ago: Option<u64>,
    ) -> Fingerprint {
        let request = CertificateRequest::parse(&self.request(name, device)).unwrap();
        let wanted = Wanted {
            profile: profile.map(Into::into),
            dated: dated_days_ago.map(|days| now().minus(DAY * u32::try_from(days).unwrap())),
            ..Wanted::new(tenant(), id(device), request)
        };
        let issued = self.running.service.issue(actor(), wanted).await.unwrap();
        let file = self.path(&format!("{name}.pem"));
        std::fs::write(file, pem("CERTIFICATE", &issued.certificate)).unwrap();
        Fingerprint::of(&issued.certificate)
    }

    /// A device with a certificate that was in use and expired so many days ago, in `DEVICE.pem`.
    async fn device(&self, device: &str, days: u64) -> Fingerprint {
        self.device_by(device, None, days).await
    }

    async fn device_by(&self, device: &str, profile: Option<&str>, days: u64) -> Fingerprint {
        let new = NewDevice {
            id: id(device),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        self.running
            .service
            .add_device(actor(), tenant(), new)
            .await
            .unwrap();
        let fingerprint = self.issued(device, device, profile, Some(90 + days)).await;
        self.running.service.confirm(actor(), fingerprint).await.unwrap();
        fingerprint
    }

    /// By curl, with a certificate: status and body.
    fn curl(&self, path: &str, shown: &str, body: Option<&[u8]>) -> (String, String) {
        let port = self.running.listener(Purpose::Enrol).unwrap().port();
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--max-time", "20", "-w", "\n%{http_code}"])
            .args(["--cacert", &self.text("root.pem")])
            .args(["--cert", &self.text(&format!("{shown}.pem"))])
            .args(["--key", &self.text(&format!("{shown}.key"))]);
        if let Some(body) = body {
            let file = self.path("body");
            std::fs::write(&file, body).unwrap();
            command
                .args(["-H", "Content-Type: application/pkcs10"])
                .args(["--data-binary", &format!("@{}", file.display())]);
        }
        let output = command
            .arg(format!("https://localhost:{port}/.well-known/{path}"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
        (status.to_owned(), body.to_owned())
    }

    fn refused(&self, shown: &str, request: &[u8], status: &str, code: &str) {
        self.refused_at("est/simplereenroll", shown, request, status, code);
    }

    fn refused_at(&self, path: &str, shown: &str, request: &[u8], status: &str, code: &str) {
        let (got, body) = self.curl(path, shown, Some(request));
        assert!(
            got == status && body.contains(code),
            "{shown}, {code}: {got} {body}"
        );
    }

    /// Asks for renewal, and is given a certificate: in `NAME.pem`.
    fn renewed(&self, path: &str, shown: &str, request: &[u8], name: &str) -> Vec<u8> {
        let (status, body) = self.curl(path, shown, Some(request));
        assert_eq!(status, "200", "{shown}: {body}");
        let der = countersign_factory::est::client::certificates(body.as_bytes())
            .unwrap()
            .remove(0);
        std::fs::write(self.path(&format!("{name}.pem")), pem("CERTIFICATE", &der)).unwrap();
        der
    }

    fn identity(&self, certificate: &str, key: &str) -> Identity {
        let read = |name: String| std::fs::read_to_string(self.path(&name)).unwrap();
        let (pem, key_pem) = (read(format!("{certificate}.pem")), read(format!("{key}.key")));
        Identity {
            chain: vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()],
            key: PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).unwrap(),
            pem,
            key_pem,
        }
    }

    fn audited(&self, action: &str) -> usize {
        let all = self.running.service.registry().audit(10_000).unwrap();
        all.iter().filter(|e| e.action == action).count()
    }
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_device_gets_its_next_certificate_once_and_reaches_nothing_else() {
    let place = Place::new(|_| {}).await;
    place.device("d1", 10).await;
    let request = place.request("next", "d1");
    // The device port is not the lane: certificate_expired.
    let device_port = place.running.gateway.local_addr();
    let attempt = Attempt::new(device_port).send(connect(5, "d1"));
    let seen = attempt.clone().identity(&place.identity("d1", "d1")).run();
    assert_eq!(seen.alert, Some(45), "{seen:?}");
    // Nor does it lead to anything else on its own listener.
    for operation in ["simpleenroll", "serverkeygen", "default.keeps/serverkeygen"] {
        place.refused_at(
            &format!("est/{operation}"),
            "d1",
            &request,
            "403",
            "chain.expired",
        );
    }
    for open in [
        "est/cacerts",
        "est/csrattrs",
        "countersign/bundle",
        "countersign/time?nonce=x",
    ] {
        assert_eq!(place.curl(open, "d1", None).0, "200", "{open}");
    }
    assert_eq!(place.audited("credential.renewal-lane"), 0);

    let first = place.renewed("est/simplereenroll", "d1", &request, "next");
    assert_eq!(place.audited("credential.renewal-lane"), 1);
    // The answer was lost: the same again. It is no second success.
    assert_eq!(place.renewed("est/simplereenroll", "d1", &request, "next"), first);
    assert_eq!(place.audited("credential.renewal-lane"), 1);
    let other = place.request("other", "d1");
    place.refused("d1", &other, "403", "lane.used");
    // In use, the new one is a certificate like any other, and the old one is the past.
    let seen = attempt.identity(&place.identity("next", "next")).run();
    assert_eq!(seen.connack(), Some(0), "{seen:?}");
    place.renewed("est/simplereenroll", "next", &other, "other");
    place.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_quite_the_case_is_refused_with_its_own_code() {
    let place = Place::new(|_| {}).await;
    let service = place.running.service.clone();
    let ask = |device: &str| place.request(&format!("{device}-next"), device);

    place.device("late", 31).await;
    place.refused("late", &ask("late"), "403", "lane.too-late");

    let revoked = place.device("revoked", 1).await;
    let whose = Revocation::Credential(revoked);
    let reason = RevocationReason::KeyCompromise;
    service
        .revoke(actor(), whose, reason, String::new())
        .await
        .unwrap();
    place.refused("revoked", &ask("revoked"), "403", "lane.credential-state");

    // A newer one is in use: first it is merely the latest, then the old one's overlap is over.
    place.device("replaced", 1).await;
    let newer = place.issued("replaced-newer", "replaced", None, None).await;
    service.confirm(actor(), newer).await.unwrap();
    place.refused("replaced", &ask("replaced"), "403", "lane.not-latest");
    service.sweep().await.unwrap();
    place.refused("replaced", &ask("replaced"), "403", "lane.credential-state");

    // Two expired ones: only the latest.
    place.device("two", 20).await;
    let second = place.expired("two-second", "two", 2).await;
    service.confirm(actor(), second).await.unwrap();
    place.refused("two", &ask("two"), "403", "lane.not-latest");
    place.renewed("est/simplereenroll", "two-second", &ask("two"), "two-next");

    // Issued, and never in use.
    place.device("unused", 40).await;
    place.expired("unused-second", "unused", 1).await;
    place.refused("unused-second", &ask("unused"), "403", "lane.credential-state");

    for attempted in [
        LifecycleMove::Suspend,
        LifecycleMove::Quarantine,
        LifecycleMove::Decommission,
    ] {
        let device = format!("d-{}", attempted.name());
        place.device(&device, 1).await;
        let moved = service.move_device(actor(), tenant(), id(&device), Move::new(attempted, "a test"));
        moved.await.unwrap();
        place.refused(&device, &ask(&device), "403", "lane.device-state");
    }

    place.device("same", 1).await;
    let same = place.request("same", "same");
    place.refused("same", &same, "403", "lane.same-key");
    // The profile of the certificate allows it, not one that the device chooses for it.
    let chosen = "est/default.keeps/simplereenroll";
    place.refused_at(
        chosen,
        "same",
        &same,
        "403",
        "a certificate of profile operational",
    );
    place.device_by("keeps", Some("keeps"), 1).await;
    place.renewed(chosen, "keeps", &place.request("keeps", "keeps"), "keeps-next");

    place.device("kind", 1).await;
    let request = ask("kind");
    place.refused_at(
        "est/default.factory/simplereenroll",
        "kind",
        &request,
        "403",
        "lane.other-kind",
    );
    // Another device's subject, and another device's key.
    let subject = place.request("else", "somebody-else");
    place.refused("kind", &subject, "400", "is not that of the certificate");
    let shared = place.request("late", "kind");
    place.refused("kind", &shared, "409", "registered for device late");
    // Refused is not used up.
    place.renewed("est/simplereenroll", "kind", &request, "kind-next");
    assert_eq!(place.audited("credential.renewal-lane"), 3);

    // Whoever has only the certificate, which is no secret, does not even finish the handshake.
    place.device("copied", 1).await;
    let enrol = place.running.listener(Purpose::Enrol).unwrap();
    let seen = Attempt::new(enrol)
        .identity(&place.identity("copied", "else"))
        .send("x")
        .run();
    assert_eq!(seen.alert, Some(51), "decrypt_error: {seen:?}");
    place.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_is_checked_as_at_the_device_port_but_for_the_leafs_end() {
    let place = Place::new(|_| {}).await;
    let service = place.running.service.clone();
    let write = |name: &str, identity: &Identity| {
        std::fs::write(place.path(&format!("{name}.pem")), &identity.pem).unwrap();
        std::fs::write(place.path(&format!("{name}.key")), &identity.key_pem).unwrap();
    };
    let expired = |name: &str| Leaf {
        days: (-60, -5),
        ..Leaf::named(name)
    };
    let request = place.request("request", "x1");
    // Nobody registered its CA.
    write("stranger", &Ca::root("nobody", None).issue(&expired("x1"), &[]));
    place.refused("stranger", &request, "403", "chain.unknown-ca");

    // A registered CA, and a certificate that is not.
    let ca = Ca::root("brought", None);
    let draft = AuthorityDraft {
        id: "brought".parse().unwrap(),
        tenant: tenant(),
        rule: Default::default(),
        admission: Default::default(),
        key_store: Default::default(),
    };
    let registered = service.register_authority(actor(), draft, &ca.pem).await.unwrap();
    let proof = ca.prove(&registered.code.unwrap());
    service
        .prove_authority(actor(), registered.id.clone(), &proof)
        .await
        .unwrap();
    write("unknown", &ca.issue(&expired("x1"), &[]));
    place.refused("unknown", &request, "403", "lane.unknown-credential");
    write(
        "server",
        &ca.issue(
            &Leaf {
                usage: Some(vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
                ..expired("x1")
            },
            &[],
        ),
    );
    place.refused("server", &request, "403", "chain.wrong-usage");
    // Not yet valid is not expired.
    write(
        "early",
        &ca.issue(
            &Leaf {
                days: (5, 60),
                ..Leaf::named("x1")
            },
            &[],
        ),
    );
    place.refused("early", &request, "403", "chain.not-yet-valid");

    // Registered: brought certificates have the lane too.
    let brought = ca.issue(&expired("x2"), &[]);
    write("brought", &brought);
    let new = NewDevice {
        id: id("x2"),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    let import = vec![(new, Some(brought.pem.clone()))];
    let report = service.import_devices(actor(), tenant(), import).await.unwrap();
    assert_eq!(report.credentials_added, 1, "{report:?}");
    openssl(&[
        "ecparam",
        "-name",
        "prime256v1",
        "-genkey",
        "-noout",
        "-out",
        &place.text("x2.key"),
    ]);
    openssl(&[
        "req",
        "-new",
        "-key",
        &place.text("x2.key"),
        "-subj",
        "/CN=x2",
        "-outform",
        "DER",
        "-out",
        &place.text("x2.csr"),
    ]);
    let request = std::fs::read(place.path("x2.csr")).unwrap();
    // Its authority's state is that of now, whenever the certificate was good.
    let revoke = service.move_authority(
        actor(),
        registered.id.clone(),
        AuthorityMove::Revoke,
        String::new(),
    );
    let renewed = place.renewed("est/simplereenroll", "brought", &request, "x2");
    assert!(!renewed.is_empty());
    revoke.await.unwrap();
    place.refused("brought", &request, "403", "authority.revoked");
    place.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_comes_back_by_itself_after_its_certificate_has_expired() {
    let place = Place::new(|_| {}).await;
    place.device("slept", 7).await;
    let folder = place.path("slept");
    std::fs::create_dir(&folder).unwrap();
    for (from, to) in [("slept.pem", "device.crt"), ("root.pem", "platform-root.crt")] {
        std::fs::copy(place.path(from), folder.join(to)).unwrap();
    }
    // OpenSSL wrote the key in the old form; the agent reads PKCS#8.
    let key = folder.join("device.key").display().to_string();
    openssl(&[
        "pkcs8",
        "-topk8",
        "-nocrypt",
        "-in",
        &place.text("slept.key"),
        "-out",
        &key,
    ]);
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let profile = serde_json::json!({
        "id": "slept", "host": "localhost", "port": place.running.gateway.local_addr().port(),
        "enrol_port": place.running.listener(Purpose::Enrol).unwrap().port(),
    });
    std::fs::write(folder.join("device.json"), profile.to_string()).unwrap();
    let folder = countersign_device::IdentityFolder::new(&folder);
    let options = countersign_device::LinkOptions::default();
    let say = |_: &str| {};
    let fault = countersign_device::renewal::connect(&folder, &options, &say)
        .await
        .unwrap_err();
    assert_eq!(fault.exit_code(), 6, "{fault}");
    let renewed = countersign_device::renewal::renew(&folder, countersign_device::KeyReuse::New)
        .await
        .unwrap();
    let (link, identity) = countersign_device::renewal::connect(&folder, &options, &say)
        .await
        .unwrap();
    assert_eq!(identity.facts.fingerprint, renewed.certificate.fingerprint);
    link.disconnect().await.unwrap();
    place.running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_being_opened_there_is_no_lane() {
    assert_eq!(Config::default().enrol.expired_days_max, 0);
    let place = Place::new(|config| config.enrol.expired_days_max = 0).await;
    place.device("d1", 1).await;
    let request = place.request("next", "d1");
    place.refused("d1", &request, "403", "lane.closed");
    assert_eq!(place.audited("credential.renewal-lane"), 0);
    place.running.stop().await;
}

#[test]
fn the_page_of_enrolment_has_every_code() {
    let page = include_str!("../../../../../docs/enrolment.md");
    let lane = countersign_policy::LaneRefusal::ALL.map(|r| r.code());
    let claim = countersign_policy::ClaimRefusal::ALL.map(|r| r.code());
    for code in lane.iter().chain(&claim) {
        assert!(page.contains(&format!("| `{code}` |")), "{code}");
    }
}
