use std::sync::Arc;

use countersign_factory::SoftwareKey;
use countersign_factory::destruction::Statement;
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

/// At whichever write the disk is full: the certificate in use stays, half a key lies nowhere, and with room it goes on from
/// where it was.
#[test]
fn the_disk_may_be_full_at_any_write_of_a_renewal_of_the_roots_and_of_the_time() {
    let mut room = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        let old = provisioned(place.path());
        let full = Arc::new(CutDisk::full_after(room));
        let folder = IdentityFolder {
            path: place.path().to_owned(),
            disk: Box::new(full.clone()),
        };
        let roots = folder.roots().unwrap();
        let twice = [roots.clone(), roots.clone()].concat();
        let later = Timestamp::from_unix_s(4_000_000_000);
        let run = folder
            .pin(&twice)
            .and_then(|()| folder.save_time(later))
            .and_then(|()| renew(&folder))
            .and_then(|()| renew(&folder));
        in_use(place.path());
        assert!([1, 2].contains(&folder.roots().unwrap().len()));
        assert!([Timestamp::from_unix_s(0), later].contains(&folder.saved_time()));
        let mut folders = vec![place.path().to_owned()];
        while let Some(at) = folders.pop() {
            for entry in fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                assert!(!name.ends_with(".new"), "{name} after {room}");
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                }
            }
        }
        let Err(fault) = run else {
            break;
        };
        let text = fault.to_string();
        assert!(
            text.contains("disk full") && text.contains("hint: make room"),
            "{text}"
        );
        full.make_room(usize::MAX);
        folder.pin(&roots).unwrap();
        folder.save_time(later).unwrap();
        renew(&folder).unwrap();
        assert_ne!(in_use(place.path()), old);
        assert_eq!(fs::read_dir(place.path().join(SLOTS)).unwrap().count(), 1);
        room += 1;
    }
    assert!(room > 30, "{room}");
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

/// The end of a device, cut between any two steps: while a key is left there is one to state it with or the statement is
/// there, and run again it comes to its end.
#[test]
fn the_power_may_be_cut_between_any_two_steps_of_the_end() {
    let end = |folder: &IdentityFolder| -> Outcome<()> {
        if folder.statement()?.is_none() {
            let identity = folder.load()?;
            let signer = identity.key.signer().unwrap().unwrap();
            let (tenant, device) = (identity.profile.tenant.clone(), identity.profile.id.clone());
            let statement =
                Statement::create(&*signer, &identity.chain[0], tenant, device, folder.clock().now())
                    .unwrap();
            folder.keep_statement(&statement)?;
        }
        folder.destroy_keys()
    };
    let keys = |path: &Path| {
        let mut found = usize::from(path.join(KEY).symlink_metadata().is_ok());
        for slot in fs::read_dir(path.join(SLOTS)).into_iter().flatten().flatten() {
            found += usize::from(slot.path().join(KEY).exists());
        }
        found
    };
    let mut steps = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        provisioned(place.path());
        // In slots, and with a next one begun.
        let whole = IdentityFolder::new(place.path());
        renew(&whole).unwrap();
        whole.begin(KeyReuse::New).unwrap();
        // What cuts of before left half written, and a key that others may read.
        let next = place.path().join(SLOTS).join(whole.next().to_string());
        for left in [place.path().join("device.key.new"), next.join("device.key.new")] {
            fs::write(left, "-----BEGIN PRIVATE KEY-----").unwrap();
        }
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs::set_permissions(next.join(KEY), open).unwrap();
        let cut = Arc::new(CutDisk::after(steps));
        let folder = IdentityFolder {
            path: place.path().to_owned(),
            disk: Box::new(cut.clone()),
        };
        let ended = end(&folder);
        if ended.is_ok() {
            // The statement is handed in now. What comes back after a cut must be no key.
            cut.make_room(0);
            folder.sync(place.path()).unwrap_err();
            assert_eq!(keys(place.path()), 0, "the end was not durable");
        }
        let after = IdentityFolder::new(place.path());
        let stated = after.statement().unwrap();
        if stated.is_none() {
            after.load().unwrap();
        }
        end(&after).unwrap();
        assert_eq!(keys(place.path()), 0, "after a cut at step {steps}");
        assert!(!place.path().join("device.key.new").exists() && !next.exists());
        let statement = after.statement().unwrap().unwrap();
        statement.check().unwrap();
        assert!(stated.is_none_or(|first| first == statement));
        // Where it is to be handed in is still known.
        assert_eq!(after.device_id().unwrap().as_str(), "d1");
        assert_eq!(after.roots().unwrap().len(), 1);
        match ended {
            Ok(()) => break,
            Err(_) => steps += 1,
        }
    }
    assert!(steps > 8, "{steps}");
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
    let roots_in = IdentityFolder::roots_in;
    assert!(roots_in(&place.path().join("empty")).is_err());
    assert!(roots_in(&place.path().join("missing")).is_err());
    let given = roots_in(&root).unwrap();
    // To be given is not to be pinned.
    assert_eq!(folder.roots_or(&given).unwrap(), given);
    assert!(folder.roots_or(&[]).is_err() && folder.roots().is_err());
    for _ in 0..2 {
        folder.pin_first(&given).unwrap();
    }
    assert_eq!(folder.roots_or(&[]).unwrap(), given);
    let pinned = folder.roots().unwrap();
    let fault = folder
        .pin_first(&roots_in(&other).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        fault.contains("another platform root") && fault.contains("hint: "),
        "{fault}"
    );
    assert_eq!(folder.roots().unwrap(), pinned);
}
