//! A factory CA, a station below it, and what the account of a station's journal lets through.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_authority::{Hierarchy, IssuingAuthority, MintError};
use countersign_factory::station::account::Known;
use countersign_factory::station::challenge::{self, Proof};
use countersign_factory::station::journal::Ending;
use countersign_factory::station::{Account, Event, Head, JournalFault, StationCaGrant, StationFault, Terms};
use countersign_factory::{ExtraExtension, Profile, ProvenKey, SoftwareKey};
use countersign_identity::signed::Signer;
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, BatchId, CertificateFacts, ChainFault, DeviceId,
    Fingerprint, Generation, IdentityRule, StationId, TenantId, Timestamp, VerifiedChain,
};
use rcgen::string::PrintableString;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};

const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);
const HOUR: Duration = Duration::from_secs(3600);

fn terms() -> Terms {
    Terms {
        station: StationId::new("line-1").unwrap(),
        tenant: TenantId::default_tenant(),
        batch: BatchId::new("b1").unwrap(),
        batch_ids: "SN-*".parse().unwrap(),
        ids: "SN-000..SN-099".parse().unwrap(),
        quota: 3,
        from: NOW,
        to: NOW.plus(24 * HOUR),
        profile: Profile::default(),
    }
}

struct Line {
    factory: IssuingAuthority,
    station: IssuingAuthority,
    key: SoftwareKey,
    terms: Terms,
}

impl Line {
    fn new() -> Self {
        Self::with(terms())
    }

    fn with(terms: Terms) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let factory = IssuingAuthority::create_factory(folder.path(), "test", NOW).unwrap();
        let key = SoftwareKey::generate().unwrap();
        let grant = StationCaGrant::new(&terms, ProvenKey::of(&key)).unwrap();
        let issued = factory.issue_station(&grant, NOW).unwrap();
        let copy = SoftwareKey::from_pkcs8(key.to_pkcs8()).unwrap();
        let station = IssuingAuthority::station(
            Box::new(copy),
            issued.certificate().clone(),
            factory.certificate().clone(),
        )
        .unwrap();
        Self {
            factory,
            station,
            key,
            terms,
        }
    }

    fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<VerifiedChain, ChainFault> {
        let anchor = Anchor::new(
            TenantId::default_tenant(),
            AuthorityId::new("factory").unwrap(),
            AnchorState::Active,
            Generation(1),
            IdentityRule::default(),
            self.factory.certificate(),
        )
        .unwrap();
        let index = AnchorIndex::new([Arc::new(anchor)]);
        let facts = CertificateFacts::parse(&chain[0]).unwrap();
        VerifiedChain::verify(&index, None, facts, &chain[0], &chain[1..], NOW.plus(HOUR))
    }

    fn issue(&self, id: &str, key: &SoftwareKey) -> CertificateDer<'static> {
        self.issue_at(id, key, NOW.plus(HOUR))
    }

    fn issue_at(&self, id: &str, key: &SoftwareKey, at: Timestamp) -> CertificateDer<'static> {
        self.issue_by(id, key, at, self.terms.profile.clone())
    }

    fn issue_by(
        &self,
        id: &str,
        key: &SoftwareKey,
        at: Timestamp,
        profile: Profile,
    ) -> CertificateDer<'static> {
        let grant = countersign_factory::EnrolmentGrant::new(
            TenantId::default_tenant(),
            DeviceId::new(id).unwrap(),
            ProvenKey::of(key),
            profile,
        )
        .unwrap();
        self.station
            .issue_device(&grant, at)
            .unwrap()
            .certificate()
            .clone()
    }

    /// What whoever has the station's key can make with other tools.
    fn forge(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        let key = KeyPair::from_pem(&self.key.to_pem()).unwrap();
        let issuer = Issuer::from_ca_cert_der(self.station.certificate(), key).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let serial = PrintableString::try_from("SN-050").unwrap();
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationName, "default");
        name.push(DnType::CommonName, "SN-050");
        name.push(DnType::from_oid(&[2, 5, 4, 5]), DnValue::PrintableString(serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let (from, to) = days();
        params.not_before = from;
        params.not_after = to;
        change(&mut params);
        let leaf = KeyPair::generate().unwrap();
        params.signed_by(&leaf, &issuer).unwrap().der().clone()
    }
}

/// Around the hour after [`NOW`], for 30 days.
fn days() -> (time::OffsetDateTime, time::OffsetDateTime) {
    let from = time::OffsetDateTime::from_unix_timestamp(NOW.plus(HOUR).unix_s()).unwrap();
    (from, from + time::Duration::days(30))
}

#[test]
fn a_stations_certificate_reaches_no_further_than_its_grant() {
    let line = Line::new();
    let facts = line.station.facts();
    assert_eq!(facts.ca.unwrap().path_length, Some(0));
    assert_eq!(
        facts.extended_key_usage.as_deref(),
        Some(&["1.3.6.1.5.5.7.3.2".to_owned()][..])
    );
    assert_eq!(facts.not_after, line.terms.not_after());
    let last = line.issue_at("SN-001", &key(), line.terms.to);
    let longest = CertificateFacts::parse(&last).unwrap();
    assert!(longest.not_after <= facts.not_after);
    // OpenSSL reads the constraints as we mean them.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("station.pem");
    let pem = countersign_factory::request::pem("CERTIFICATE", line.station.certificate());
    std::fs::write(&path, pem).unwrap();
    let output = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "X509v3 Name Constraints: critical",
        "DNS:",
        "IP:0.0.0.0/0.0.0.0",
        "IP:0:0:0:0:0:0:0:0/0:0:0:0:0:0:0:0",
        "CA:TRUE, pathlen:0",
        "TLS Web Client Authentication",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("DirName"), "{text}");
}

#[test]
fn only_a_factory_ca_issues_stations_and_never_longer_than_itself() {
    let line = Line::new();
    let proven = ProvenKey::of(&key());
    let grant = StationCaGrant::new(&line.terms, proven.clone()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ordinary = IssuingAuthority::create(folder.path(), Hierarchy::Devices, "test", NOW).unwrap();
    for other in [&ordinary, &line.station] {
        assert!(matches!(
            other.issue_station(&grant, NOW),
            Err(MintError::NoFactory)
        ));
    }
    let mut long = terms();
    long.to = line.factory.facts().not_after.minus(24 * HOUR);
    let grant = StationCaGrant::new(&long, proven.clone()).unwrap();
    assert!(matches!(
        line.factory.issue_station(&grant, NOW),
        Err(MintError::IssuerTooShort { .. })
    ));
    // A certificate without an end would outlive every station.
    let [_, factory_profile] = Profile::built_in().try_into().unwrap();
    let endless = Terms {
        profile: factory_profile,
        ..terms()
    };
    let refused = StationCaGrant::new(&endless, proven).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("hint: use a profile with lifetime_days"),
        "{refused}"
    );
}

#[test]
fn a_leaf_of_a_station_has_a_path_to_the_factory_and_nothing_else_does() {
    let line = Line::new();
    let above = line.station.certificate().clone();
    let leaf = line.issue("SN-001", &key());
    let chain = line.verify(&[leaf.clone(), above.clone()]).unwrap();
    assert_eq!(
        (chain.intermediates(), chain.anchor().authority.as_str()),
        (1, "factory")
    );
    assert!(line.verify(&[leaf]).is_err(), "without its station's certificate");

    let fault = |der: CertificateDer<'static>| line.verify(&[der, above.clone()]).unwrap_err();
    let plain = line.forge(|_| {});
    line.verify(&[plain, above.clone()]).unwrap();
    let named = line.forge(|p| {
        p.subject_alt_names = vec![SanType::DnsName("gate.example".try_into().unwrap())];
    });
    assert_eq!(fault(named), ChainFault::NameConstraint);
    for address in ["127.0.0.1", "::1"] {
        let addressed = line.forge(|p| {
            p.subject_alt_names = vec![SanType::IpAddress(address.parse().unwrap())];
        });
        assert_eq!(fault(addressed), ChainFault::NameConstraint, "{address}");
    }
    let server = line.forge(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(matches!(fault(server.clone()), ChainFault::WrongUsage(_)));
    let any = line.forge(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]);
    assert!(matches!(fault(any), ChainFault::WrongUsage(_)));

    // As a server's, even where somebody trusts the factory CA for servers by mistake.
    let both = line.forge(|p| {
        p.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
    });
    let anchor = webpki::anchor_from_trusted_cert(line.factory.certificate()).unwrap();
    for der in [&server, &both] {
        let refused = webpki::EndEntityCert::try_from(der)
            .unwrap()
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                std::slice::from_ref(&anchor),
                std::slice::from_ref(&above),
                UnixTime::since_unix_epoch(Duration::from_secs(1_795_003_600)),
                webpki::KeyUsage::server_auth(),
                None,
                None,
            )
            .map(|_| ());
        assert!(refused.is_err(), "{refused:?}");
    }
}

#[test]
fn a_station_makes_no_other_ca() {
    let line = Line::new();
    let station_key = KeyPair::from_pem(&line.key.to_pem()).unwrap();
    let issuer = Issuer::from_ca_cert_der(line.station.certificate(), station_key).unwrap();
    let (from, to) = days();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "sub");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = from;
    params.not_after = to;
    let sub_key = KeyPair::generate().unwrap();
    let sub = params.signed_by(&sub_key, &issuer).unwrap().der().clone();
    let mut leaf = CertificateParams::new(vec![]).unwrap();
    leaf.distinguished_name = rcgen::DistinguishedName::new();
    leaf.distinguished_name.push(DnType::CommonName, "SN-001");
    leaf.use_authority_key_identifier_extension = true;
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    leaf.not_before = from;
    leaf.not_after = to;
    let leaf = leaf
        .signed_by(
            &KeyPair::generate().unwrap(),
            &Issuer::from_params(&params, &sub_key),
        )
        .unwrap()
        .der()
        .clone();
    let station = line.station.certificate().clone();
    let refused = line.verify(&[leaf, sub.clone(), station.clone()]).unwrap_err();
    assert_eq!(refused, ChainFault::PathLength);
    assert_eq!(
        line.verify(&[sub, station.clone()]).unwrap_err(),
        ChainFault::CaAsLeaf
    );
    assert_eq!(line.verify(&[station]).unwrap_err(), ChainFault::CaAsLeaf);
}

/// A journal that is written by hand.
struct Book<'a> {
    line: &'a Line,
    head: Head,
    bytes: Vec<u8>,
    now: Timestamp,
}

impl<'a> Book<'a> {
    fn new(line: &'a Line) -> Self {
        Self::begun(line, NOW.plus(HOUR))
    }

    fn begun(line: &'a Line, now: Timestamp) -> Self {
        let mut book = Self {
            line,
            head: Head::START,
            bytes: Vec::new(),
            now,
        };
        book.write(Event::Open {
            station: line.terms.station.clone(),
            grant: Fingerprint::of(b"grant"),
            certificate: line.station.facts().fingerprint,
        });
        book
    }

    fn write(&mut self, event: Event) {
        let (line, _, head) = self.head.append(self.now, event, &self.line.key).unwrap();
        self.bytes.extend(line);
        self.head = head;
    }

    fn issue(&mut self, id: &str, certificate: &CertificateDer<'_>) {
        self.write(Event::Issue {
            device: DeviceId::new(id).unwrap(),
            certificate: STANDARD.encode(certificate),
        });
    }

    fn export(&self) -> Vec<u8> {
        let (seal, ..) = self
            .head
            .append(self.now, Event::Seal {}, &self.line.key)
            .unwrap();
        [self.bytes.clone(), seal].concat()
    }

    fn account(&self) -> Result<Account, JournalFault> {
        Account::of(
            &self.export(),
            &known(self.line, b"grant", NOW.plus(48 * HOUR)),
            Ending::Sealed,
        )
    }

    fn codes(&self) -> Vec<(u64, &'static str)> {
        let account = self.account().unwrap();
        account
            .refused
            .iter()
            .map(|r| (r.number, r.fault.code()))
            .collect()
    }
}

fn known<'a>(line: &'a Line, grant: &[u8], now: Timestamp) -> Known<'a> {
    Known {
        terms: &line.terms,
        grant: Fingerprint::of(grant),
        certificate: line.station.certificate(),
        now,
    }
}

fn key() -> SoftwareKey {
    SoftwareKey::generate().unwrap()
}

#[test]
fn an_account_follows_each_identity_to_its_confirmation() {
    let line = Line::new();
    let mut book = Book::new(&line);
    let keys = [key(), key()];
    for (id, key) in ["SN-001", "SN-004"].iter().zip(&keys) {
        book.issue(id, &line.issue(id, key));
    }
    let account = book.account().unwrap();
    let device = DeviceId::new("SN-001").unwrap();
    let fingerprint = account.entries[0].facts.fingerprint;
    book.write(Event::Written {
        device: device.clone(),
        fingerprint,
    });
    let challenge = challenge::text(&device, &fingerprint, &"0f".repeat(32));
    // By another key it proves nothing.
    for (signer, confirmed) in [(&keys[1], false), (&keys[0], true)] {
        book.write(Event::Confirmed {
            device: device.clone(),
            fingerprint,
            proof: Proof {
                challenge: challenge.clone(),
                signature: STANDARD.encode(signer.sign(challenge.as_bytes()).unwrap()),
            },
        });
        let account = book.account().unwrap();
        assert_eq!(account.entries[0].confirmed.is_some(), confirmed);
        assert_eq!(account.doubtful, [4]);
    }
    let account = book.account().unwrap();
    assert!(account.entries[0].written.is_some() && account.entries[1].written.is_none());
    let ids = account.entries.iter().map(|e| &e.device);
    assert_eq!(
        line.terms.ids.gaps(ids, 9),
        (2, vec!["SN-002".into(), "SN-003".into()])
    );
}

#[test]
fn what_breaks_the_terms_is_refused_by_its_own_code() {
    let line = Line::new();
    let issue = |id: &str| line.issue(id, &key());

    let mut book = Book::new(&line);
    for id in ["SN-001", "SN-002", "SN-003", "SN-004"] {
        book.issue(id, &issue(id));
    }
    assert_eq!(book.codes(), [(4, "station.overrun")]);

    let mut book = Book::new(&line);
    book.issue("SN-100", &issue("SN-100"));
    book.issue("SN-001", &issue("SN-002"));
    assert_eq!(
        book.codes(),
        [(1, "station.foreign-id"), (2, "station.certificate")]
    );

    let shared = key();
    let mut book = Book::new(&line);
    book.issue("SN-005", &line.issue("SN-005", &shared));
    book.issue("SN-006", &line.issue("SN-006", &shared));
    book.issue("SN-005", &issue("SN-005"));
    assert_eq!(
        book.codes(),
        [(2, "station.key-of-other"), (3, "station.duplicate-id")]
    );

    for at in [NOW.minus(HOUR), line.terms.to.plus(Duration::from_secs(60))] {
        let mut book = Book::begun(&line, at);
        book.issue("SN-001", &line.issue_at("SN-001", &key(), at));
        assert_eq!(book.codes(), [(1, "station.window")]);
    }
    // Dated otherwise than the journal says.
    let mut book = Book::new(&line);
    book.issue("SN-001", &line.issue_at("SN-001", &key(), NOW.plus(3 * HOUR)));
    assert_eq!(book.codes(), [(1, "station.certificate")]);
}

#[test]
fn a_journal_that_breaks_its_terms_without_end_does_not_count() {
    let line = Line::new();
    let limit = 2 * line.terms.quota + 100;
    let fingerprint = Fingerprint::of(b"nobody's");
    let doubt = |n: u64| Event::Written {
        device: DeviceId::new(&format!("SN-{n}")).unwrap(),
        fingerprint,
    };
    let mut book = Book::new(&line);
    book.issue("SN-100", &line.issue("SN-100", &key()));
    // What is told of a refused one is of no interest, however often.
    for _ in 0..limit + 10 {
        book.write(doubt(100));
    }
    for n in 1..limit {
        book.write(doubt(1000 + n));
    }
    let account = book.account().unwrap();
    assert_eq!((account.refused.len() + account.doubtful.len()) as u64, limit);
    book.write(doubt(1000));
    let number = book.head.records - 1;
    let fault = book.account().unwrap_err();
    assert_eq!(fault, JournalFault::BeyondTerms { number, limit });
    assert!(fault.to_string().contains("; hint: "), "{fault}");
}

#[test]
fn what_a_stolen_key_made_otherwise_is_no_certificate_of_the_profile() {
    type Change = fn(&mut CertificateParams);
    let line = Line::new();
    let forged: [(&str, Change); 7] = [
        ("uri", |p| {
            p.subject_alt_names = vec![SanType::URI("urn:x:1".try_into().unwrap())];
        }),
        ("mail", |p| {
            p.subject_alt_names = vec![SanType::Rfc822Name("a@b".try_into().unwrap())];
        }),
        ("purpose", |p| {
            p.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }),
        ("no purpose", |p| p.extended_key_usages = vec![]),
        ("another organization", |p| {
            p.distinguished_name.push(DnType::OrganizationName, "other");
        }),
        ("an extension", |p| {
            p.custom_extensions = vec![CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 4, 1, 99999, 2],
                vec![5, 0],
            )];
        }),
        ("unit", |p| {
            p.distinguished_name
                .push(DnType::OrganizationalUnitName, "admins");
        }),
    ];
    for (what, change) in forged {
        let mut book = Book::new(&line);
        book.issue("SN-050", &line.forge(change));
        assert_eq!(book.codes(), [(1, "station.certificate")], "{what}");
    }
    // The same tools, as the profile has it: it is the journal that vouches.
    let mut book = Book::new(&line);
    book.issue("SN-050", &line.forge(|_| {}));
    assert_eq!(book.codes(), []);
    // Signed by somebody else, in the station's name.
    let other = Line::new();
    let mut book = Book::new(&line);
    book.issue("SN-050", &other.issue("SN-050", &key()));
    assert_eq!(book.codes(), [(1, "station.certificate")]);
}

#[test]
fn a_journal_of_another_grant_or_station_or_time_does_not_count() {
    let (line, other) = (Line::new(), Line::new());
    let export = Book::new(&other).export();
    let code = |known: &Known<'_>| {
        Account::of(&export, known, Ending::Sealed)
            .map(|_| ())
            .map_err(|f| f.code())
    };
    let later = NOW.plus(2 * HOUR);
    assert_eq!(code(&known(&other, b"grant", later)), Ok(()));
    assert_eq!(code(&known(&line, b"grant", later)), Err("journal.twin"));
    assert_eq!(
        code(&known(&other, b"another", later)),
        Err("journal.other-grant")
    );
    // Of times that are yet to come.
    assert_eq!(code(&known(&other, b"grant", NOW)), Err("journal.clock"));
}

#[test]
fn terms_are_asked_before_anything_is_signed() {
    let terms = terms();
    let proven = ProvenKey::of(&key());
    let permit = |id: &str, at, issued| {
        terms
            .permit(DeviceId::new(id).unwrap(), proven.clone(), at, issued)
            .map(|_| ())
            .map_err(|f: StationFault| f.code())
    };
    assert_eq!(permit("SN-001", NOW, 0), Ok(()));
    assert_eq!(permit("SN-001", NOW, 3), Err("station.overrun"));
    assert_eq!(permit("SN-1", NOW, 0), Err("station.foreign-id"));
    assert_eq!(permit("SN-001", NOW.minus(HOUR), 0), Err("station.window"));
    assert_eq!(permit("SN-001", NOW.plus(25 * HOUR), 0), Err("station.window"));
}

/// A line whose devices are named, and marked, otherwise than by the built-in profile.
#[test]
fn a_station_mints_the_names_and_extensions_of_its_profile_and_no_other_certificate_counts() {
    let profile = Profile {
        organization: "Acme {tenant}".into(),
        organizational_unit: "pumps".into(),
        serial_number: false,
        san: vec![
            "uri:urn:dev:{tenant}:{id}".parse().unwrap(),
            "hardware-module-name:1.3.6.1.4.1.99999.1".parse().unwrap(),
        ],
        extensions: vec![ExtraExtension {
            oid: "1.3.6.1.4.1.99999.2".parse().unwrap(),
            value: vec![0x0c, 2, b'h', b'i'],
            critical: false,
        }],
        ..Profile::default()
    };
    let line = Line::with(Terms {
        profile: profile.clone(),
        ..terms()
    });
    let issued = line.issue("SN-001", &key());
    let facts = CertificateFacts::parse(&issued).unwrap();
    assert_eq!(facts.subject_text, "CN=SN-001,OU=pumps,O=Acme default");
    assert_eq!(facts.san_uris, ["urn:dev:default:SN-001"]);
    assert_eq!(facts.hardware_serials, ["SN-001"]);
    // Neither kind of name is one that the station's constraints exclude.
    let above = [issued.clone(), line.station.certificate().clone()];
    line.verify(&above).unwrap();
    let mut book = Book::new(&line);
    book.issue("SN-001", &issued);
    // With the station's key, by other profiles than the grant's.
    let others = [
        Profile::default(),
        Profile {
            extensions: vec![],
            ..profile.clone()
        },
        Profile {
            extensions: vec![ExtraExtension {
                value: vec![5, 0],
                ..profile.extensions[0].clone()
            }],
            ..profile.clone()
        },
        Profile {
            san: vec![
                profile.san[0].clone(),
                "hardware-module-name:1.3.6.1.4.1.99999.3".parse().unwrap(),
            ],
            ..profile
        },
    ];
    for (n, other) in others.into_iter().enumerate() {
        let id = format!("SN-01{n}");
        let mut book = Book::new(&line);
        book.issue(&id, &line.issue_by(&id, &key(), NOW.plus(HOUR), other));
        assert_eq!(book.codes(), [(1, "station.certificate")], "{n}");
    }
    assert_eq!(book.codes(), []);
}

#[test]
fn a_station_is_granted_no_profile_that_it_could_not_keep() {
    let fault = |profile: Profile| {
        let terms = Terms { profile, ..terms() };
        StationCaGrant::new(&terms, ProvenKey::of(&key())).unwrap_err()
    };
    let host = fault(Profile {
        san: vec!["dns:{id}.devices.example.com".parse().unwrap()],
        ..Profile::default()
    });
    assert!(
        host.to_string()
            .contains("no certificate below a station names a host"),
        "{host}"
    );
    for profile in [
        Profile {
            crl_urls: vec!["http://pki.example.com/crl/{authority}.crl".into()],
            ..Profile::default()
        },
        Profile {
            ocsp_urls: vec!["http://pki.example.com/ocsp".into()],
            ..Profile::default()
        },
        Profile {
            ca_issuer_urls: vec!["http://pki.example.com/ca/{authority}.crt".into()],
            ..Profile::default()
        },
    ] {
        let url = fault(profile);
        assert!(url.to_string().contains("a station's CA is offline"), "{url}");
    }
}
