use super::*;

#[test]
fn tpms_and_the_pcrs_that_bind_keys_are_read_and_written() {
    for (text, canonical) in [
        ("tpm", "tpm:device:/dev/tpmrm0"),
        ("tpm:tabrmd", "tpm:tabrmd"),
        (
            "tpm+pcrs=sha256:7,0,2",
            "tpm:device:/dev/tpmrm0+pcrs=sha256:0,2,7",
        ),
        (
            "tpm:device:/dev/tpm0+pcrs=sha256:7",
            "tpm:device:/dev/tpm0+pcrs=sha256:7",
        ),
        (
            "tpm:swtpm:port=7,host=tpm.test+pcrs=sha384:0,4",
            "tpm:swtpm:host=tpm.test,port=7+pcrs=sha384:0,4",
        ),
    ] {
        let store: KeyStore = text.parse().unwrap();
        assert_eq!(store.to_string(), canonical);
        assert_eq!(canonical.parse::<KeyStore>().unwrap(), store);
        // As device.json has it.
        let json = serde_json::to_string(&store).unwrap();
        assert_eq!(json, format!("{canonical:?}"));
        assert_eq!(serde_json::from_str::<KeyStore>(&json).unwrap(), store);
    }
}

#[test]
fn what_binds_no_key_is_refused_with_the_fault() {
    for (text, word) in [
        ("tpm+", "begins not with pcrs="),
        ("tpm+pcr=sha256:7", "begins not with pcrs="),
        ("tpm:tabrmd+sha256:7", "begins not with pcrs="),
        ("tpm+pcrs=", "no :"),
        ("tpm+pcrs=7", "no :"),
        ("tpm+pcrs=sha1:7", "bank"),
        ("tpm+pcrs=sha256:7+pcrs=sha384:7", "from 0 to 23"),
        ("tpm+pcrs=sha256:7 ", "from 0 to 23"),
        ("tpm:swtpm:port=0+pcrs=sha256:7", "the port"),
        // What a shell makes of a ; is not the worst of it.
        ("tpm;pcrs=sha256:7", "pkcs11:"),
        ("file+pcrs=sha256:7", "pkcs11:"),
    ] {
        let message = text.parse::<KeyStore>().unwrap_err().to_string();
        assert!(
            message.contains(word) && message.contains("hint: "),
            "{text}: {message}"
        );
    }
}

/// A key of sha256:16 and its file; the TPM is not asked here.
const BOUND: &str = include_str!("tests/bound.key");

#[test]
fn a_key_is_of_the_store_that_binds_it_as_it_is_bound() {
    let store = |text: &str| -> KeyStore { text.parse().unwrap() };
    let here = store("tpm:tabrmd+pcrs=sha256:16");
    let key = DeviceKey::read(format!("tpm:tabrmd\n{BOUND}").as_bytes(), &KeyStore::File).unwrap();
    assert_eq!(key.store(), here);
    assert!(here.is_of(&key));
    assert!(
        key.place().contains("tabrmd, bound to its PCRs sha256:16"),
        "{}",
        key.place()
    );
    for other in [
        "tpm:tabrmd",
        "tpm:tabrmd+pcrs=sha256:16,17",
        "tpm+pcrs=sha256:16",
        "file",
    ] {
        assert!(!store(other).is_of(&key), "{other}");
    }
    // A file that does not say which TPM.
    let key = DeviceKey::read(BOUND.as_bytes(), &here).unwrap();
    assert_eq!(key.store(), here);
}
