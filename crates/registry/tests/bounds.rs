//! What no requester gets past, whatever it has proven, and what of the past is not answered any more.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::Duration;

use countersign_factory::{
    Batch, CERTIFICATES_PER_DEVICE_MAX, DeviceStart, ProfileKind, RevocationReason, SigningWindow,
};
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, DeviceId, Fingerprint, IdentityRule, TenantId,
};
use countersign_policy::claim::{AllowList, ClaimId};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{Admission, ClaimRefusal, CredentialState, Custody, FactSource, LifecycleState};
use countersign_registry::{
    Actor, AuthorityMove, BulkIssue, BulkItem, ClaimProof, ClaimRequester, EndedCursor, IssuanceRules,
    IssueOutcome, IssueRequest, IssuedHere, LedgerLimits, NewAuthority, NewClaim, NewCredential, NewDevice,
    Origin, ProfileChoice, Registry, RegistryError, Requester, Revocation,
};
use rcgen::KeyPair;

const SECRET: &[u8] = b"secret";

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn authority(text: &str) -> AuthorityId {
    AuthorityId::new(text).unwrap()
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// Valid from so many days ago for so many days from now.
fn certificate(key: &KeyPair, since: i64, until: i64) -> CertificateFacts {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "d1");
    static SERIAL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1 << 40);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    params.serial_number = Some(rcgen::SerialNumber::from(serial));
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(since);
    params.not_after = now + time::Duration::days(until);
    CertificateFacts::parse(params.self_signed(key).unwrap().der()).unwrap()
}

/// As it is minted; its DER is its fingerprint, for short.
fn credential(certificate: CertificateFacts, profile: &str, kind: ProfileKind, by: &str) -> NewCredential {
    NewCredential {
        kind: match kind {
            ProfileKind::Factory => CredentialKind::Factory,
            ProfileKind::Operational => CredentialKind::Operational,
        },
        state: CredentialState::Issued,
        custody: Custody::Unknown,
        authority: Some(authority(by)),
        issued: Some(IssuedHere {
            certificate: certificate.fingerprint.as_bytes().to_vec(),
            profile: profile.into(),
            batch: None,
        }),
        certificate,
    }
}

fn bulk(device: &str, key: Fingerprint) -> BulkIssue {
    BulkIssue {
        tenant: tenant(),
        batch: BatchId::new("B-1").unwrap(),
        demands_new_key: false,
        replace: false,
        items: vec![BulkItem {
            device: id(device),
            key,
        }],
    }
}

struct World {
    _folder: tempfile::TempDir,
    registry: Arc<Registry>,
}

/// What is asked for, and what is minted then.
struct Ask<'a> {
    requester: Requester,
    key: &'a KeyPair,
    profile: &'a str,
    kind: ProfileKind,
    choice: ProfileChoice,
    authority: &'a str,
    named: Option<&'a str>,
    demands_new_key: bool,
    idempotency_key: Option<&'a str>,
    days: (i64, i64),
}

impl<'a> Ask<'a> {
    fn by(requester: Requester, key: &'a KeyPair) -> Self {
        Self {
            requester,
            key,
            profile: "operational",
            kind: ProfileKind::Operational,
            choice: ProfileChoice::First,
            authority: "first",
            named: None,
            demands_new_key: false,
            idempotency_key: None,
            days: (0, 90),
        }
    }

    /// By a named authority.
    fn of(self, name: &'a str) -> Self {
        Self {
            authority: name,
            named: Some(name),
            ..self
        }
    }

    fn profile(self, profile: &'a str, kind: ProfileKind) -> Self {
        Self {
            profile,
            kind,
            choice: ProfileChoice::Named,
            ..self
        }
    }
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::create(folder.path(), LedgerLimits::default()).unwrap();
        let new = NewDevice {
            id: id("d1"),
            model: None,
            groups: vec![],
            state: LifecycleState::Active,
            authority: None,
        };
        registry.add_device(actor(), tenant(), new).unwrap();
        let world = Self {
            _folder: folder,
            registry: Arc::new(registry),
        };
        world.add_authority("first");
        world
    }

    fn add_batch(&self) {
        let plan = Batch {
            id: BatchId::new("B-1").unwrap(),
            tenant: tenant(),
            model: "pump".into(),
            profile: "operational".into(),
            groups: vec![],
            devices_start: DeviceStart::Active,
            authority: None,
            id_pattern: "SN-*".parse().unwrap(),
            quota: 9,
            window: SigningWindow::default(),
        };
        self.registry.add_batch(actor(), plan).unwrap();
    }

    fn add_authority(&self, name: &str) {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let new = NewAuthority {
            id: authority(name),
            tenant: tenant(),
            origin: Origin::Managed,
            rule: IdentityRule::default(),
            admission: Admission::RegisteredOnly,
            certificate: params.self_signed(&key()).unwrap().der().to_vec(),
        };
        self.registry.register_authority(actor(), new).unwrap();
    }

    fn move_authority(&self, name: &str, to: AuthorityMove) {
        self.registry
            .move_authority(actor(), authority(name), to, "a test".into())
            .unwrap();
    }

    fn issue(&self, ask: Ask<'_>) -> Result<(IssueOutcome, Fingerprint), RegistryError> {
        let certificate = certificate(ask.key, ask.days.0, ask.days.1);
        let request = IssueRequest {
            attestation: None,
            tenant: tenant(),
            device: id("d1"),
            key: certificate.public_key_sha256,
            profile: ask.profile.into(),
            kind: ask.kind,
            choice: ask.choice,
            authority: ask.named.map(authority),
            demands_new_key: ask.demands_new_key,
            idempotency_key: ask.idempotency_key.map(Into::into),
            requester: ask.requester,
        };
        let new = credential(certificate, ask.profile, ask.kind, ask.authority);
        let issued = self.registry.issue(actor(), request, move |_| Ok(new))?.value;
        let fingerprint = Fingerprint::from_bytes(issued.certificate.clone().try_into().unwrap());
        Ok((issued, fingerprint))
    }

    fn refused(&self, ask: Ask<'_>) -> String {
        self.issue(ask).unwrap_err().to_string()
    }

    fn secret(&self) -> Requester {
        let hash = Fingerprint::of(SECRET);
        let lifetime = Duration::from_secs(3600);
        self.registry
            .add_enrolment_secret(actor(), tenant(), id("d1"), hash, lifetime)
            .unwrap();
        Requester::Secret(hash)
    }

    fn claim(&self) -> Requester {
        let claim: ClaimId = "line".parse().unwrap();
        let proof = ClaimProof::Secret(Fingerprint::of(SECRET));
        let new = NewClaim {
            id: claim.clone(),
            proof,
            allow: AllowList::Ids(vec![id("d1")]),
            profile: None,
            model: None,
            groups: vec![],
            lifetime: Duration::from_secs(3600),
        };
        self.registry.add_claim(actor(), tenant(), new).unwrap();
        Requester::Claim(ClaimRequester { claim, proof })
    }
}

#[test]
fn nothing_leads_from_an_operational_certificate_to_the_factorys_nor_sideways() {
    let world = World::new();
    let first = key();
    let (_, operational) = world.issue(Ask::by(Requester::Operator, &first)).unwrap();
    let factory = Ask::by(Requester::Operator, &first).profile("factory", ProfileKind::Factory);
    let (_, factory) = world.issue(factory).unwrap();
    let second = key();
    let ask = |shown: Fingerprint| Ask::by(Requester::Certificate(shown), &second);
    let no_evidence = |ask: Ask<'_>| {
        let refused = world.refused(ask);
        assert!(refused.contains("is no evidence for one of profile"), "{refused}");
    };
    no_evidence(ask(operational).profile("factory", ProfileKind::Factory));
    no_evidence(ask(operational).profile("long", ProfileKind::Operational));
    no_evidence(ask(factory).profile("factory-2", ProfileKind::Factory));
    // Not even where the configuration has the factory's first.
    no_evidence(Ask {
        choice: ProfileChoice::First,
        ..ask(operational).profile("factory", ProfileKind::Factory)
    });
    // The factory's leads to any operational one, and each to the next of its own.
    world
        .issue(ask(factory).profile("long", ProfileKind::Operational))
        .unwrap();
    world.issue(ask(operational)).unwrap();
    world
        .issue(ask(factory).profile("factory", ProfileKind::Factory))
        .unwrap();
    // What the platform has first is its own choice: so a fleet moves to another profile.
    let moved = Ask {
        choice: ProfileChoice::First,
        ..ask(operational).profile("newer", ProfileKind::Operational)
    };
    world.issue(moved).unwrap();
}

#[test]
fn neither_a_secret_nor_a_claim_is_for_the_factorys_profile() {
    let world = World::new();
    let key = key();
    let factory = |by: Requester| Ask::by(by, &key).profile("factory", ProfileKind::Factory);
    let secret = world.secret();
    let refused = world.refused(factory(secret.clone()));
    assert!(refused.contains("is the factory's"), "{refused}");
    let claim = world.claim();
    let refused = world.refused(factory(claim.clone()));
    assert!(refused.contains("does not enrol by profile factory"), "{refused}");
    // A claim without a profile has the first one, a secret any operational one; neither was spent by what was refused.
    let refused = world.refused(Ask::by(claim, &key).profile("long", ProfileKind::Operational));
    assert!(refused.contains("does not enrol by profile long"), "{refused}");
    world
        .issue(Ask::by(secret, &key).profile("long", ProfileKind::Operational))
        .unwrap();
}

#[test]
fn what_an_authority_issued_that_admits_nobody_any_more_is_not_answered() {
    let world = World::new();
    world.add_authority("second");
    let key = key();
    let ask = || Ask::by(Requester::Operator, &key);
    let by_second = || Ask {
        authority: "second",
        ..ask()
    };
    let (_, first) = world.issue(ask()).unwrap();
    // It is still good while its authority retires.
    world.move_authority("first", AuthorityMove::Retire);
    let (again, same) = world.issue(by_second()).unwrap();
    assert!(again.repeated && same == first);
    for over in [AuthorityMove::Close { leave_out: 1 }, AuthorityMove::Revoke] {
        world.move_authority("first", over);
        let refused = world.refused(Ask {
            demands_new_key: true,
            ..by_second()
        });
        assert!(
            refused.contains("of authority first, which admits nobody"),
            "{refused}"
        );
    }
    let (new, second) = world.issue(by_second()).unwrap();
    assert!(!new.repeated && new.authority == authority("second") && second != first);
    assert!(world.issue(by_second()).unwrap().0.repeated);
}

#[test]
fn another_authority_than_the_named_one_is_no_answer() {
    let world = World::new();
    world.add_authority("second");
    let key = key();
    let ask = || Ask::by(Requester::Operator, &key);
    let (_, first) = world.issue(ask()).unwrap();
    let refused = world.refused(Ask {
        demands_new_key: true,
        ..ask().of("second")
    });
    assert!(refused.contains("is not the one that was named"), "{refused}");
    let (new, second) = world.issue(ask().of("second")).unwrap();
    assert!(!new.repeated && second != first);
    // Each is answered to who names it, whichever came last, and the newest to who names none.
    for (ask, expected) in [
        (ask().of("first"), first),
        (ask().of("second"), second),
        (ask(), second),
    ] {
        let (again, same) = world.issue(ask).unwrap();
        assert!(again.repeated && same == expected);
    }
    // It is part of what an idempotency key is for.
    let keyed = |ask: Ask<'_>| {
        world.issue(Ask {
            idempotency_key: Some("k"),
            ..ask
        })
    };
    keyed(ask().of("first")).unwrap();
    let other = keyed(ask().of("second")).unwrap_err();
    assert!(matches!(other, RegistryError::Exists(_)), "{other}");
}

/// The rotation guard: a device that could only enrol would be locked out.
#[test]
fn a_certificate_that_only_enrols_is_no_other_way_in() {
    let world = World::new();
    world.add_authority("second");
    for (key, kind, by) in [
        (key(), ProfileKind::Factory, "second"),
        (key(), ProfileKind::Operational, "first"),
    ] {
        let profile = match kind {
            ProfileKind::Factory => "factory",
            ProfileKind::Operational => "operational",
        };
        let ask = Ask::by(Requester::Operator, &key).of(by).profile(profile, kind);
        let (_, fingerprint) = world.issue(ask).unwrap();
        world.registry.confirm_credential(actor(), fingerprint).unwrap();
    }
    let left = || {
        let (of, now) = (
            authority("first"),
            countersign_identity::Timestamp::from_unix_s(1_800_000_000),
        );
        let left = world.registry.left_behind(&of, now).unwrap().len();
        assert_eq!(world.registry.dependents(&of, now, 9).unwrap().0, left as u64);
        left
    };
    assert_eq!(left(), 0);
    let only = ["factory".to_owned()].into();
    world.registry.set_enrol_only_profiles(only).unwrap();
    assert_eq!(left(), 1);
}

#[test]
fn what_is_minted_while_its_authority_ends_is_not_kept() {
    for over in [
        AuthorityMove::Retire,
        AuthorityMove::Close { leave_out: 0 },
        AuthorityMove::Revoke,
    ] {
        let world = World::new();
        world.add_batch();
        if matches!(over, AuthorityMove::Close { .. }) {
            world.move_authority("first", AuthorityMove::Retire);
        }
        // The authority was looked up before, and ends between that and the transaction that keeps.
        let (during, minted) = (world.registry.clone(), certificate(&key(), 0, 90));
        let request = bulk("SN-1", minted.public_key_sha256);
        let answers = world.registry.issue_in_batch(actor(), request, move |_, _| {
            during
                .move_authority(actor(), authority("first"), over, "a test".into())
                .unwrap();
            Ok(credential(
                minted.clone(),
                "operational",
                ProfileKind::Operational,
                "first",
            ))
        });
        let refused = answers.unwrap().value.remove(0).unwrap_err().to_string();
        assert!(
            refused.contains("authority first has become") && refused.contains("hint: "),
            "{refused}"
        );
        assert_eq!(world.registry.facts().device(&tenant(), &id("SN-1")), None);
        let refused = world.refused(Ask::by(Requester::Operator, &key()));
        assert!(refused.contains("authority first has become"), "{refused}");
        world.add_authority("second");
        let key = key();
        let by_second = Ask {
            authority: "second",
            ..Ask::by(Requester::Operator, &key)
        };
        world.issue(by_second).unwrap();
    }
}

#[test]
fn a_key_of_which_a_certificate_was_revoked_is_not_certified_again() {
    let revoke = |world: &World, fingerprint: Fingerprint, reason: RevocationReason| {
        world
            .registry
            .revoke(
                actor(),
                Revocation::Credential(fingerprint),
                reason,
                String::new(),
            )
            .unwrap();
    };
    let is_refused = |refused: &str| {
        assert!(refused.contains("for this key was revoked; hint: "), "{refused}");
    };
    let key = key();
    let other_profile = || Ask::by(Requester::Operator, &key).profile("other", ProfileKind::Operational);

    // Of whatever profile, though a later certificate of this one is good; but not one that was merely replaced.
    for reason in [RevocationReason::Superseded, RevocationReason::KeyCompromise] {
        let world = World::new();
        let (_, first) = world.issue(other_profile()).unwrap();
        world.issue(Ask::by(Requester::Operator, &key)).unwrap();
        revoke(&world, first, reason);
        let again = world.issue(Ask::by(Requester::Operator, &key));
        match reason {
            RevocationReason::Superseded => assert!(again.unwrap().0.repeated),
            _ => is_refused(&again.unwrap_err().to_string()),
        }
    }

    // One that was brought.
    let world = World::new();
    let brought = certificate(&key, 0, 90);
    let fingerprint = brought.fingerprint;
    world
        .registry
        .pin_credential(actor(), tenant(), id("d1"), brought)
        .unwrap();
    world.issue(Ask::by(Requester::Operator, &key)).unwrap();
    revoke(&world, fingerprint, RevocationReason::Unspecified);
    is_refused(&world.refused(Ask::by(Requester::Operator, &key)));

    // In bulk.
    let world = World::new();
    world.add_batch();
    let in_batch = || {
        let minted = certificate(&key, 0, 90);
        let request = bulk("SN-1", minted.public_key_sha256);
        let mint = move |_: usize, _| {
            Ok(credential(
                minted.clone(),
                "operational",
                ProfileKind::Operational,
                "first",
            ))
        };
        let answers = world.registry.issue_in_batch(actor(), request, mint).unwrap();
        answers.value.into_iter().next().unwrap()
    };
    let first = in_batch().unwrap();
    let pinned = certificate(&key, 0, 90);
    let fingerprint = pinned.fingerprint;
    world
        .registry
        .pin_credential(actor(), tenant(), id("SN-1"), pinned)
        .unwrap();
    assert_eq!(in_batch().unwrap().certificate, first.certificate);
    revoke(&world, fingerprint, RevocationReason::KeyCompromise);
    is_refused(&in_batch().unwrap_err().to_string());
}

/// What was merely replaced turns out to be stolen: lists say so, since when it was replaced, and its key gets nothing more.
#[test]
fn that_a_key_is_compromised_may_become_known_after_its_certificate_was_revoked() {
    let key = key();
    let world = World::new();
    let (_, first) = world
        .issue(Ask::by(Requester::Operator, &key).profile("other", ProfileKind::Operational))
        .unwrap();
    let revoke = |whose: Revocation, reason| {
        let done = world.registry.revoke(actor(), whose, reason, String::new());
        done.unwrap().value
    };
    let one = || Revocation::Credential(first);
    let listed = || {
        let by = authority("first");
        let listed = world
            .registry
            .revoked_by(&by, countersign_identity::Timestamp::from_unix_s(0));
        listed
            .unwrap()
            .into_iter()
            .next()
            .map(|r| (r.at, r.reason))
            .unwrap()
    };
    assert_eq!(revoke(one(), RevocationReason::Superseded), 1);
    let (since, _) = listed();
    assert_eq!(
        revoke(one(), RevocationReason::PrivilegeWithdrawn),
        0,
        "no reason to change it"
    );
    assert!(world.issue(Ask::by(Requester::Operator, &key)).is_ok());

    std::thread::sleep(Duration::from_millis(5));
    let told_before = world
        .registry
        .ended_after(&authority("first"), &EndedCursor::default(), 10)
        .unwrap();
    assert_eq!(revoke(one(), RevocationReason::KeyCompromise), 1);
    assert_eq!(listed(), (since, RevocationReason::KeyCompromise));
    let told = world
        .registry
        .ended_after(&authority("first"), &EndedCursor::default(), 10)
        .unwrap();
    assert!(
        told[0].revision > told_before[0].revision,
        "a CA that runs apart is told too"
    );
    let refused = world.refused(Ask::by(Requester::Operator, &key));
    assert!(refused.contains("for this key was revoked"), "{refused}");

    // It stays so.
    for reason in [RevocationReason::Superseded, RevocationReason::CaCompromise] {
        assert_eq!(revoke(one(), reason), 0);
    }
    let whole = Revocation::Device(tenant(), id("d1"));
    assert_eq!(
        revoke(whole, RevocationReason::KeyCompromise),
        1,
        "the certificate that came after"
    );
    assert_eq!(listed(), (since, RevocationReason::KeyCompromise));
}

#[test]
fn a_claim_renews_nothing() {
    let renewed = |days: (i64, i64)| {
        let (world, key) = (World::new(), key());
        let claim = world.claim();
        world.registry.set_issuance_rules(IssuanceRules {
            replay_window: Duration::ZERO,
            ..IssuanceRules::default()
        });
        let ask = || Ask {
            days,
            ..Ask::by(claim.clone(), &key)
        };
        let (_, first) = world.issue(ask()).unwrap();
        if days.1 > 0 {
            assert!(world.issue(ask()).unwrap().0.repeated, "not in use yet");
        }
        world.registry.confirm_credential(actor(), first).unwrap();
        let again = world.issue(ask()).map(|(issued, _)| issued.repeated);
        (world, again)
    };
    assert!(renewed((0, 90)).1.unwrap());
    for days in [(80, 10), (90, -1)] {
        let (world, again) = renewed(days);
        let refused = again.unwrap_err();
        assert!(
            matches!(refused, RegistryError::Claim(ClaimRefusal::Renewal)),
            "{refused}"
        );
        assert_eq!(
            world
                .registry
                .minted_on(&tenant(), &"line".parse().unwrap())
                .unwrap()
                .len(),
            1
        );
    }
}

#[test]
fn a_device_does_not_gather_certificates_without_an_operator() {
    let world = World::new();
    let first = key();
    let (_, shown) = world.issue(Ask::by(Requester::Operator, &first)).unwrap();
    let ask = |key: &KeyPair| world.issue(Ask::by(Requester::Certificate(shown), key));
    let mut last = (key(), shown);
    for _ in 1..CERTIFICATES_PER_DEVICE_MAX {
        let next = key();
        let (_, fingerprint) = ask(&next).unwrap();
        last = (next, fingerprint);
    }
    let next = key();
    let refused = ask(&next).unwrap_err().to_string();
    assert!(
        refused.contains("has 8 certificates in force") && refused.contains("hint: revoke"),
        "{refused}"
    );
    assert!(ask(&last.0).unwrap().0.repeated, "nothing new");
    // An operator may, and one that has expired takes no room.
    let expired = Ask {
        days: (90, -1),
        ..Ask::by(Requester::Operator, &next)
    };
    world.issue(expired).unwrap();
    world.refused(Ask::by(Requester::Certificate(shown), &next));
    let whose = Revocation::Credential(last.1);
    world
        .registry
        .revoke(actor(), whose, RevocationReason::Superseded, String::new())
        .unwrap();
    assert!(!ask(&next).unwrap().0.repeated);
}
