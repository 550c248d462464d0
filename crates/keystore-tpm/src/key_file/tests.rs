use super::*;

/// Written by tpm2-openssl 1.1.1: its TRUE is 01.
const OF_TPM2_OPENSSL: &str = "-----BEGIN TSS2 PRIVATE KEY-----
MIHwBgZngQUKAQOgAwEBAQIEQAAAAQRYAFYAIwALAAYAcgAAABAAEAADABAAIFoE
Q+DpbGIuOCD72oBE7swGB0/ROMeZUcYNLSu3Kdu2ACCd1qIRoRxx1GFSWKLm/7ru
4dzjjRFA/HjCOm1GdhUYOASBgAB+ACBBT1KTJNXNK4QiMsYKP/NBpk9fl72mak2w
wsJfg1RfQgAQFfo4d4+lAl8a83+IJXDrGl1jdLGxXomaijQnhopHmYWXe5e+4EmJ
OdD64/BZZOf5CU7HFhC6VkgsvOB73vKsxPm2NflSNROPW4hL1zpsyszF8SXNXvTz
uZbP
-----END TSS2 PRIVATE KEY-----
";

#[test]
fn a_file_of_tpm2_openssl_is_read_and_written() {
    assert!(is_tpm_key(OF_TPM2_OPENSSL));
    let file = KeyFile::parse(OF_TPM2_OPENSSL).unwrap();
    assert_eq!(file.parent, Parent::Owner);
    assert_eq!((file.public.len(), file.private.len()), (0x56, 0x7e));
    // TPM_ALG_ECC, and the private part's own integrity value.
    assert_eq!(
        (&file.public[..2], &file.private[..2]),
        (&[0, 0x23][..], &[0, 0x20][..])
    );
    let pem = file.to_pem().unwrap();
    assert_eq!(KeyFile::parse(&pem).unwrap(), file);
    // The one byte that differs: TRUE in DER.
    let bytes = |pem: &str| der::pem::decode_vec(pem.as_bytes()).unwrap().1;
    let (ours, theirs) = (bytes(&pem), bytes(OF_TPM2_OPENSSL));
    let differing: Vec<_> = ours.iter().zip(&theirs).filter(|(a, b)| a != b).collect();
    assert_eq!((ours.len(), differing), (theirs.len(), vec![(&0xff, &1)]));
}

#[test]
fn text_around_it_and_other_line_ends_are_passed_over() {
    let wanted = KeyFile::parse(OF_TPM2_OPENSSL).unwrap();
    let around = format!(
        "The key of a device\n-----BEGIN CERTIFICATE-----\n\n{OF_TPM2_OPENSSL}\n-----BEGIN CERTIFICATE-----\n"
    );
    for text in [around, OF_TPM2_OPENSSL.replace('\n', "\r\n")] {
        assert!(is_tpm_key(&text));
        assert_eq!(KeyFile::parse(&text).unwrap(), wanted);
    }
}

#[test]
fn other_files_are_told_apart() {
    for text in [
        "",
        "-----BEGIN PRIVATE KEY-----\nMIHw\n-----END PRIVATE KEY-----\n",
        "-----BEGIN TSS2 KEY BLOB-----\n",
        "a file with -----BEGIN TSS2 PRIVATE KEY----- in it",
    ] {
        assert!(!is_tpm_key(text), "{text}");
        assert!(matches!(KeyFile::parse(text), Err(TpmError::File(_))), "{text}");
    }
    // Damaged, but of that kind.
    assert!(is_tpm_key("-----BEGIN TSS2 PRIVATE KEY-----"));
}

/// What a file is made of here, to be changed.
struct Parts<'a> {
    written: TpmKeyDer<'a>,
}

fn parts<'a>() -> Parts<'a> {
    let octets = |bytes| OctetStringRef::new(bytes).unwrap();
    Parts {
        written: TpmKeyDer {
            kind: LOADABLE,
            empty_auth: Some(AnyRef::new(Tag::Boolean, &[0xff]).unwrap()),
            policy: None,
            secret: None,
            auth_policy: None,
            description: None,
            rsa_parent: None,
            parent: OWNER,
            pubkey: octets(&[0, 1, 7]),
            privkey: octets(&[0, 2, 8, 9]),
        },
    }
}

fn parse(change: impl FnOnce(&mut TpmKeyDer<'static>)) -> Result<KeyFile, TpmError> {
    let mut parts = parts();
    change(&mut parts.written);
    let der = parts.written.to_der().unwrap();
    KeyFile::parse(&der::pem::encode_string(LABEL, LineEnding::LF, &der).unwrap())
}

fn empty_sequence() -> Option<AnyRef<'static>> {
    Some(AnyRef::new(Tag::Sequence, &[]).unwrap())
}

fn boolean(value: &'static [u8]) -> Option<AnyRef<'static>> {
    Some(AnyRef::new(Tag::Boolean, value).unwrap())
}

fn command() -> Vec<u8> {
    PcrPolicy::new("sha256:7".parse().unwrap(), &vec![(7, vec![5; 32])]).command()
}

/// With these commands as its policy.
fn with_policy(commands: &[(u32, &[u8])]) -> Result<KeyFile, TpmError> {
    let statements = commands.iter().map(|(command, parameters)| TpmPolicyDer {
        command: *command,
        parameters: OctetStringRef::new(parameters).unwrap(),
    });
    let der = statements.collect::<Vec<_>>().to_der().unwrap();
    let mut parts = parts();
    parts.written.policy = Some(AnyRef::from_der(&der).unwrap());
    let der = parts.written.to_der().unwrap();
    KeyFile::parse(&der::pem::encode_string(LABEL, LineEnding::LF, &der).unwrap())
}

#[test]
fn a_policy_of_pcrs_is_read_and_written() {
    let mut file = with_policy(&[(POLICY_PCR, &command())]).unwrap();
    assert_eq!(file.policy.as_ref().unwrap().command(), command());
    // Of another program: what the PCRs held is not known.
    assert_eq!(file.values, None);
    let pem = file.to_pem().unwrap();
    assert!(pem.starts_with(BEGIN), "{pem}");
    assert_eq!(KeyFile::parse(&pem).unwrap(), file);
    assert_eq!(pcrs_of(&pem).unwrap().to_string(), "sha256:7");
    assert_eq!(pcrs_of(OF_TPM2_OPENSSL), None);
    file.values = Some(vec![(7, vec![5; 32])]);
    let pem = file.to_pem().unwrap();
    assert!(pem.starts_with("sha256:7=0505") && is_tpm_key(&pem), "{pem}");
    assert_eq!(KeyFile::parse(&pem).unwrap(), file);
    // SEQUENCE { [1] { SEQUENCE OF { SEQUENCE { [0] 017f, [1] the parameters } } } } of the draft, byte by byte.
    let der = der::pem::decode_vec(&pem.as_bytes()[pem.find(BEGIN).unwrap()..])
        .unwrap()
        .1;
    let mut wanted = vec![
        0xa1, 0x3a, 0x30, 0x38, 0x30, 0x36, 0xa0, 4, 2, 2, 1, 0x7f, 0xa1, 0x2e, 4, 0x2c,
    ];
    wanted.extend(command());
    assert!(der.windows(wanted.len()).any(|part| part == wanted), "{der:02x?}");
}

#[test]
fn parents_and_optional_parts_are_read() {
    let file = parse(|_| {}).unwrap();
    assert_eq!((file.public, file.private), (vec![7], vec![8, 9]));
    for (handle, parent) in [
        (0, Parent::Owner),
        (OWNER, Parent::Owner),
        (0x8100_0001, Parent::Persistent(0x8100_0001)),
        (0x81ff_ffff, Parent::Persistent(0x81ff_ffff)),
    ] {
        assert_eq!(parse(|f| f.parent = handle).unwrap().parent, parent);
    }
    let file = parse(|f| {
        f.description = Some(AnyRef::new(Tag::Utf8String, b"the device's").unwrap());
        f.rsa_parent = boolean(&[0]);
    });
    assert!(file.is_ok());
    // A persistent parent is written as it was read.
    let file = parse(|f| f.parent = 0x8100_0001).unwrap();
    assert_eq!(KeyFile::parse(&file.to_pem().unwrap()).unwrap(), file);
}

#[test]
fn what_is_not_done_here_is_refused_with_the_cause() {
    for (result, word) in [
        (parse(|f| f.empty_auth = None), "password"),
        (parse(|f| f.empty_auth = boolean(&[0])), "password"),
        (parse(|f| f.policy = empty_sequence()), "policy"),
        (with_policy(&[]), "policy"),
        (with_policy(&[(POLICY_PCR, &[])]), "policy"),
        // TPM2_PolicyAuthValue.
        (with_policy(&[(0x016b, &[])]), "policy"),
        (with_policy(&[(POLICY_PCR, &command()), (0x016b, &[])]), "policy"),
        (with_policy(&[(0x016b, &command())]), "policy"),
        (parse(|f| f.auth_policy = empty_sequence()), "policy"),
        (
            parse(|f| f.secret = Some(AnyRef::new(Tag::OctetString, &[1]).unwrap())),
            "outside",
        ),
        (parse(|f| f.rsa_parent = boolean(&[1])), "RSA"),
        (parse(|f| f.kind = IMPORTABLE), "outside"),
        (parse(|f| f.kind = SEALED), "sealed"),
        // The null, endorsement and platform hierarchies; a transient handle.
        (parse(|f| f.parent = 0x4000_0007), "0x40000007"),
        (parse(|f| f.parent = 0x4000_000b), "0x4000000b"),
        (parse(|f| f.parent = 0x8000_0000), "0x80000000"),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, TpmError::Unsupported(_)), "{error:?}");
        let message = error.to_string();
        assert!(
            message.contains(word) && message.contains("hint: "),
            "{word}: {message}"
        );
    }
}

#[test]
fn malformed_files_are_refused_with_the_fault() {
    let octets = |bytes| OctetStringRef::new(bytes).unwrap();
    let pem = |der: &[u8]| der::pem::encode_string(LABEL, LineEnding::LF, der).unwrap();
    let der = parts().written.to_der().unwrap();
    let mut longer = der.clone();
    longer.push(0);
    let big = format!("{OF_TPM2_OPENSSL}{}", " ".repeat(FILE_BYTES_MAX));
    for (result, word) in [
        (KeyFile::parse(&OF_TPM2_OPENSSL[..200]), "END TSS2"),
        (KeyFile::parse(&OF_TPM2_OPENSSL.replace("MIHw", "MI!w")), "Base64"),
        (KeyFile::parse(&OF_TPM2_OPENSSL.replace("uZbP\n", "")), "DER"),
        (KeyFile::parse(&big), "more than"),
        (KeyFile::parse(&pem(&longer)), "trailing data"),
        (KeyFile::parse(&pem(&der[..der.len() - 1])), "DER"),
        (KeyFile::parse(&pem(&[])), "Base64"),
        (parse(|f| f.empty_auth = empty_sequence()), "BOOLEAN"),
        (parse(|f| f.empty_auth = boolean(&[0xff, 0])), "BOOLEAN"),
        (
            parse(|f| f.kind = ObjectIdentifier::new_unwrap("1.2.3")),
            "no type",
        ),
        (parse(|f| f.pubkey = octets(&[])), "public part"),
        (parse(|f| f.pubkey = octets(&[0, 0])), "public part"),
        (parse(|f| f.pubkey = octets(&[0, 2, 1])), "public part"),
        (parse(|f| f.privkey = octets(&[0, 1, 1, 1])), "private part"),
        (parse(|f| f.privkey = octets(&[0])), "private part"),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, TpmError::File(_)), "{word}: {error:?}");
        let message = error.to_string();
        assert!(
            message.contains(word) && message.contains("hint: "),
            "{word}: {message}"
        );
    }
}
