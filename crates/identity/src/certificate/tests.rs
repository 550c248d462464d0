use der::Encode;
use rcgen::{
    BasicConstraints as Basic, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use x509_cert::Certificate;

use super::*;

/// The same facts through the library's own types, which copy every part. What [`CertificateFacts::parse`] is held against.
fn by_the_library(der: &[u8]) -> Result<CertificateFacts, CertificateError> {
    let certificate = Certificate::from_der(der).map_err(fault)?;
    let tbs = certificate.tbs_certificate();
    let spki = tbs.subject_public_key_info();
    let (mut uris, mut dns, mut hardware) = (Vec::new(), Vec::new(), Vec::new());
    if let Some((_, names)) = tbs.get_extension::<SubjectAltName>().map_err(fault)? {
        for name in &names.0 {
            match name {
                GeneralName::UniformResourceIdentifier(uri) => uris.push(uri.to_string()),
                GeneralName::DnsName(name) => dns.push(name.to_string()),
                GeneralName::OtherName(other) if other.type_id == HARDWARE_MODULE_NAME => {
                    hardware.push(hardware_serial(&other.value).map_err(fault)?);
                }
                _ => {}
            }
        }
    }
    let ca = tbs
        .get_extension::<BasicConstraints>()
        .map_err(fault)?
        .and_then(|(_, b)| {
            b.ca.then_some(CaConstraint {
                path_length: b.path_len_constraint,
            })
        });
    let key_usage = tbs
        .get_extension::<KeyUsage>()
        .map_err(fault)?
        .map(|(_, u)| KeyUsageFacts {
            digital_signature: u.0.contains(KeyUsages::DigitalSignature),
            key_cert_sign: u.0.contains(KeyUsages::KeyCertSign),
            crl_sign: u.0.contains(KeyUsages::CRLSign),
        });
    let extended_key_usage = tbs
        .get_extension::<ExtendedKeyUsage>()
        .map_err(fault)?
        .map(|(_, e)| e.0.iter().map(ToString::to_string).collect());
    let authority_key_id = tbs
        .get_extension::<AuthorityKeyIdentifier>()
        .map_err(fault)?
        .and_then(|(_, a)| a.key_identifier.map(|k| k.as_bytes().to_vec()));
    let subject_key_id = tbs
        .get_extension::<SubjectKeyIdentifier>()
        .map_err(fault)?
        .map(|(_, s)| s.0.as_bytes().to_vec());
    Ok(CertificateFacts {
        fingerprint: Fingerprint::of(der),
        serial: serial_hex(tbs.serial_number().as_bytes()),
        subject_common_names: attribute_texts(tbs.subject(), ATTRIBUTE_COMMON_NAME),
        subject_serial_numbers: attribute_texts(tbs.subject(), ATTRIBUTE_SERIAL_NUMBER),
        san_uris: uris,
        san_dns_names: dns,
        hardware_serials: hardware,
        subject_text: tbs.subject().to_string(),
        issuer_text: tbs.issuer().to_string(),
        subject_der: tbs.subject().to_der().map_err(fault)?,
        issuer_der: tbs.issuer().to_der().map_err(fault)?,
        not_before: time_of(tbs.validity().not_before),
        not_after: time_of(tbs.validity().not_after),
        ca,
        key_usage,
        extended_key_usage,
        authority_key_id,
        subject_key_id,
        public_key_sha256: Fingerprint::of(&spki.to_der().map_err(fault)?),
        key_algorithm: KeyAlgorithm::of(spki),
        path: path_by_the_library(tbs),
    })
}
fn path_by_the_library(tbs: &x509_cert::TbsCertificate) -> PathFacts {
    let extensions = tbs.extensions().map(Vec::as_slice).unwrap_or_default();
    let mut facts = PathFacts::default();
    if tbs.version() != x509_cert::Version::V3 {
        facts.fault = Some("its version is not 3".into());
    }
    for (n, extension) in extensions.iter().enumerate() {
        let processed = match extension.extn_id.as_bytes() {
            [0x55, 0x1d, last] => {
                facts.constrains_names |= *last == 30;
                facts.constrains_policies |= *last == 33 || *last == 36;
                PROCESSED.contains(last)
            }
            _ => false,
        };
        if extension.critical && !processed {
            facts.fault = Some(format!("its critical extension {} is not known", extension.extn_id).into());
        }
        if extensions[..n].iter().any(|e| e.extn_id == extension.extn_id) {
            facts.fault = Some(format!("it has extension {} twice", extension.extn_id).into());
        }
    }
    facts
}

fn named(parts: &[(DnType, &str)]) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    for (kind, value) in parts {
        params
            .distinguished_name
            .push(kind.clone(), DnValue::Utf8String((*value).to_owned()));
    }
    params
}

/// A certificate of a name.
fn of_name(parts: &[(DnType, &str)]) -> Vec<u8> {
    named(parts)
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec()
}

fn device() -> Vec<u8> {
    let mut params = named(&[
        (DnType::OrganizationName, "default"),
        (DnType::CommonName, "SN-1"),
        (DnType::CustomDnType(vec![2, 5, 4, 5]), "SN-1"),
    ]);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.subject_alt_names = vec![
        SanType::URI(rcgen::string::Ia5String::try_from("urn:x:1").unwrap()),
        SanType::DnsName(rcgen::string::Ia5String::try_from("a.example").unwrap()),
        SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], "x".to_owned().into())),
    ];
    params
        .self_signed(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec()
}

fn authority() -> Vec<u8> {
    let mut params = named(&[(DnType::CountryName, "DE"), (DnType::CommonName, "a, \"root\"")]);
    params.is_ca = IsCa::Ca(Basic::Constrained(2));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    unknown.set_criticality(true);
    params.custom_extensions = vec![unknown];
    params
        .self_signed(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap())
        .unwrap()
        .der()
        .to_vec()
}

#[test]
fn names_are_written_as_the_library_writes_them() {
    for parts in [
        vec![(DnType::CommonName, "SN-1")],
        vec![
            (DnType::OrganizationName, "default"),
            (DnType::OrganizationalUnitName, "line 1"),
            (DnType::CommonName, "SN-1: ü"),
            (DnType::CustomDnType(vec![2, 5, 4, 5]), "SN-1"),
        ],
        vec![(DnType::CommonName, "a,b")],
        vec![(DnType::CommonName, " a")],
        vec![(DnType::CommonName, "#a")],
        vec![(DnType::CountryName, "DE"), (DnType::CommonName, "a")],
        vec![],
    ] {
        let der = of_name(&parts);
        let certificate = Certificate::from_der(&der).unwrap();
        let text = certificate.tbs_certificate().subject().to_string();
        assert_eq!(CertificateFacts::parse(&der).unwrap().subject_text, text);
    }
}

/// Whatever octet of a certificate is another one: we read what the library reads, refuse what it refuses, and say the same.
#[test]
fn every_octet_is_read_as_the_library_reads_it() {
    let (mut taken, mut refused) = (0, 0);
    for der in [device(), authority(), of_name(&[(DnType::CommonName, "SN-1")])] {
        assert_eq!(CertificateFacts::parse(&der), by_the_library(&der));
        for place in 0..der.len() {
            for other in [
                0x00,
                0x01,
                0x7f,
                0x80,
                0xff,
                der[place] ^ 1,
                der[place] ^ 0x20,
                der[place].wrapping_add(1),
            ] {
                let mut changed = der.clone();
                changed[place] = other;
                let (ours, theirs) = (CertificateFacts::parse(&changed), by_the_library(&changed));
                match (&ours, &theirs) {
                    (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs, "octet {place} is {other:#x}"),
                    (Err(_), Err(_)) => refused += 1,
                    _ => panic!("octet {place} is {other:#x}: {ours:?}, the library has {theirs:?}"),
                }
                taken += usize::from(ours.is_ok());
            }
            let cut = &der[..place];
            assert!(CertificateFacts::parse(cut).is_err() && by_the_library(cut).is_err());
        }
        let longer = [der.as_slice(), &[0]].concat();
        assert!(CertificateFacts::parse(&longer).is_err() && by_the_library(&longer).is_err());
    }
    assert!(taken > 1000 && refused > 1000, "{taken} taken, {refused} refused");
}

/// Several attributes in one RDN, which rcgen does not make: spliced into a name of the same length.
#[test]
fn an_rdn_of_several_attributes_is_read_as_the_library_reads_it() {
    let attribute = |id: u8, text: &str| {
        let mut out = vec![
            0x30,
            5 + 2 + text.len() as u8,
            6,
            3,
            0x55,
            4,
            id,
            0x0c,
            text.len() as u8,
        ];
        out.extend_from_slice(text.as_bytes());
        out
    };
    let der = of_name(&[(DnType::CommonName, "0123456789abcdefghij")]);
    let plain = [vec![0x31, 29], attribute(3, "0123456789abcdefghij")].concat();
    let parts = [attribute(3, "a"), attribute(3, "b"), vec![]];
    for order in [[0, 1, 2], [1, 0, 2]] {
        let mut set: Vec<u8> = order.iter().flat_map(|n| parts[*n].clone()).collect();
        let rest = 29 - set.len();
        set.extend(attribute(10, &"x".repeat(rest - 9)));
        let several = [vec![0x31, 29], set].concat();
        let mut changed = der.clone();
        let at = changed.windows(plain.len()).rposition(|w| w == plain).unwrap();
        changed.splice(at..at + plain.len(), several);
        let (ours, theirs) = (
            CertificateFacts::parse(&changed).unwrap(),
            by_the_library(&changed).unwrap(),
        );
        assert_eq!(ours.subject_text, theirs.subject_text);
        let sorted = |names: &[String]| {
            let mut names = names.to_vec();
            names.sort_unstable();
            names
        };
        assert_eq!(
            sorted(&ours.subject_common_names),
            sorted(&theirs.subject_common_names)
        );
        assert_eq!(ours.subject_common_names.len(), 2);
    }
}
