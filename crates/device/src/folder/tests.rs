use std::sync::Arc;

use countersign_factory::SoftwareKey;
use der::Encode;
use rcgen::{CertificateParams, DnType, Issuer, KeyPair, SubjectPublicKeyInfo};

use super::*;
use crate::disk::CutDisk;

/// A certificate for a key, as an authority would issue it.
fn certificate(key: &dyn Signer, name: &str) -> Vec<u8> {
    let public = SubjectPublicKeyInfo::from_der(&key.public_key().to_der().unwrap()).unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let authority = KeyPair::generate().unwrap();
    let issuer = Issuer::new(CertificateParams::new(vec![]).unwrap(), authority);
    params.signed_by(&public, &issuer).unwrap().der().to_vec()
}

/// A folder as `device provision` writes it, with the fingerprint of its certificate.
fn provisioned(path: &Path) -> String {
    let key = SoftwareKey::generate().unwrap();
    let der = certificate(&key, "d1");
    replace(&RealDisk, &path.join(KEY), key.to_pem().as_bytes()).unwrap();
    for name in [CERTIFICATE, ROOTS] {
        replace(&RealDisk, &path.join(name), pem("CERTIFICATE", &der).as_bytes()).unwrap();
    }
    let profile = br#"{"id":"d1","host":"h","port":1}"#;
    replace(&RealDisk, &path.join(PROFILE), profile).unwrap();
    in_use(path)
}

/// The certificate in use; it must load, and key and certificate must belong together.
fn in_use(path: &Path) -> String {
    let identity = DeviceIdentity::load(path).unwrap();
    belongs(&identity);
    // Other programs read the two files by their names.
    assert_eq!(
        certificates(&path.join(CERTIFICATE)).unwrap(),
        identity.chain,
        "device.crt is the one in use"
    );
    identity.facts.fingerprint.to_string()
}

fn belongs(identity: &DeviceIdentity) {
    let key = identity.key.signer().unwrap().unwrap();
    is_for(Some(&identity.chain[0].to_vec()), &*key).unwrap();
}

fn renew(folder: &IdentityFolder) -> Outcome<()> {
    let key = folder.begin(KeyReuse::New)?;
    let der = certificate(&*key, "d1");
    folder.complete(std::slice::from_ref(&der))?;
    folder.promote(&Fingerprint::of(&der))
}

#[test]
fn the_power_may_be_cut_between_any_two_steps_of_a_renewal() {
    let mut steps = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        let old = provisioned(place.path());
        // The second renewal, from slots, has other steps than the first, from plain files: both are cut everywhere.
        let cut = Arc::new(CutDisk::after(steps));
        let folder = IdentityFolder {
            path: place.path().to_owned(),
            disk: Box::new(cut.clone()),
        };
        let first = renew(&folder);
        let second = first.and_then(|()| renew(&folder));
        // The power is back: there is an identity, whole, whatever was under way.
        in_use(place.path());
        let after = IdentityFolder::new(place.path());
        if let Some(pending) = after.pending().unwrap() {
            belongs(&pending);
        }
        // And what was under way can be done again.
        let begun = after.begin(KeyReuse::New).unwrap();
        let again = after.begin(KeyReuse::New).unwrap();
        assert_eq!(
            begun.public_key(),
            again.public_key(),
            "asked for again: the same key"
        );
        let der = certificate(&*begun, "d1");
        after.complete(std::slice::from_ref(&der)).unwrap();
        after.promote(&Fingerprint::of(&der)).unwrap();
        assert_ne!(in_use(place.path()), old);
        assert_eq!(
            fs::read_dir(place.path().join(SLOTS)).unwrap().count(),
            1,
            "old keys are gone"
        );
        match second {
            Ok(()) => {
                assert!(cut.left() > 0 || steps > 40);
                break;
            }
            Err(_) => steps += 1,
        }
    }
    assert!(steps > 30, "{steps}");
}

#[test]
fn the_old_certificate_stays_until_the_next_one_has_connected() {
    let place = tempfile::tempdir().unwrap();
    let old = provisioned(place.path());
    let folder = IdentityFolder::new(place.path());
    let key = folder.begin(KeyReuse::New).unwrap();
    assert!(folder.pending().unwrap().is_none());
    // For another key: refused, and nothing is pending.
    let foreign = certificate(&SoftwareKey::generate().unwrap(), "d1");
    assert!(matches!(
        folder.complete(&[foreign]),
        Err(IdentityFault::NotOurs(_))
    ));
    assert!(folder.pending().unwrap().is_none());
    folder.complete(&[certificate(&*key, "d1")]).unwrap();
    assert_eq!(in_use(place.path()), old);
    let next = folder.pending().unwrap().unwrap().facts.fingerprint;
    folder.discard(&next).unwrap();
    assert!(folder.pending().unwrap().is_none());
    assert_eq!(in_use(place.path()), old);
    let key = folder.begin(KeyReuse::Same).unwrap();
    let der = certificate(&*key, "d1");
    folder.complete(std::slice::from_ref(&der)).unwrap();
    // Another process that connected by what was thrown away moves nothing, nor does one that comes too late.
    folder.promote(&next).unwrap();
    assert_eq!(in_use(place.path()), old);
    let used = Fingerprint::of(&der);
    for _ in 0..2 {
        folder.promote(&used).unwrap();
        assert_eq!(in_use(place.path()), used.to_string());
    }
    folder.discard(&used).unwrap();
    assert_eq!(in_use(place.path()), used.to_string());
    // One renews at a time.
    let right = folder.try_renewing().unwrap();
    assert!(right.is_some() && folder.try_renewing().unwrap().is_none());
    drop(right);
    assert!(folder.try_renewing().unwrap().is_some());
    let mode = fs::metadata(place.path().join("slots/1/device.key"))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn files_that_somebody_puts_over_the_links_are_in_use() {
    let place = tempfile::tempdir().unwrap();
    provisioned(place.path());
    renew(&IdentityFolder::new(place.path())).unwrap();
    let other = provisioned(place.path());
    assert_eq!(in_use(place.path()), other);
    renew(&IdentityFolder::new(place.path())).unwrap();
    assert_ne!(in_use(place.path()), other);
    assert_eq!(fs::read_dir(place.path().join(SLOTS)).unwrap().count(), 1);
}

#[test]
fn the_floor_is_what_was_saved_or_the_start_of_the_certificate() {
    let place = tempfile::tempdir().unwrap();
    provisioned(place.path());
    let folder = IdentityFolder::new(place.path());
    assert!(!folder.clock().is_behind());
    let ahead = Timestamp::from_unix_s(4_000_000_000);
    folder.save_time(ahead).unwrap();
    assert!(folder.clock().is_behind() && folder.clock().now() >= ahead);
}

#[test]
fn the_first_root_is_pinned_from_a_file_and_no_other_takes_its_place() {
    let place = tempfile::tempdir().unwrap();
    let folder = IdentityFolder::new(&place.path().join("device"));
    let file = |name: &str| {
        let der = certificate(&SoftwareKey::generate().unwrap(), name);
        let path = place.path().join(name);
        fs::write(&path, pem("CERTIFICATE", &der)).unwrap();
        path
    };
    let (root, other) = (file("root"), file("other"));
    fs::write(place.path().join("empty"), "").unwrap();
    assert!(folder.pin_file(&place.path().join("empty")).is_err());
    assert!(folder.pin_file(&place.path().join("missing")).is_err());
    for _ in 0..2 {
        folder.pin_file(&root).unwrap();
    }
    let pinned = folder.roots().unwrap();
    let fault = folder.pin_file(&other).unwrap_err().to_string();
    assert!(
        fault.contains("another platform root") && fault.contains("hint: "),
        "{fault}"
    );
    assert_eq!(folder.roots().unwrap(), pinned);
}
