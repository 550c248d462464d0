//! A CA's key that does not answer: whoever waits for it waits alone, and what it gives at last is kept only if it may be.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use countersign_factory::{Batch, ProfileKind};
use countersign_identity::{
    AuthorityId, BatchId, CertificateFacts, Clock, DeviceId, Fingerprint, TenantId, Timestamp,
};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialState, Custody, LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, BulkIssue, BulkItem, IssueOutcome, IssueRequest, IssuedHere, LedgerLimits, NewCredential,
    NewDevice, ProfileChoice, Registry, RegistryError, Requester,
};

const START: i64 = 1_800_000_000_000;
/// Somebody who waits for a key that hangs would wait for ever.
const AT_ONCE: Duration = Duration::from_secs(1);

struct Moved(AtomicI64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed))
    }
}

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn certificate(name: &str) -> CertificateFacts {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertificateFacts::parse(params.self_signed(&key).unwrap().der()).unwrap()
}

/// Another certificate for the same key.
fn signed_again(first: &CertificateFacts) -> CertificateFacts {
    let mut second = first.clone();
    second.fingerprint = Fingerprint::of(b"again");
    second.serial = "02".into();
    second
}

fn credential(certificate: CertificateFacts, batch: Option<BatchId>) -> NewCredential {
    NewCredential {
        kind: CredentialKind::Operational,
        state: CredentialState::Issued,
        custody: Custody::Unknown,
        authority: Some(AuthorityId::new("ca").unwrap()),
        issued: Some(IssuedHere {
            certificate: certificate.fingerprint.as_bytes().to_vec(),
            profile: "operational".into(),
            batch,
        }),
        certificate,
    }
}

/// A key that signs once it is told to.
struct HeldKey {
    asked: Sender<()>,
    answers: Receiver<()>,
}

fn held_key() -> (HeldKey, Receiver<()>, Sender<()>) {
    let ((asked, is_asked), (answer, answers)) = (channel(), channel());
    (HeldKey { asked, answers }, is_asked, answer)
}

impl HeldKey {
    fn sign(&self) {
        self.asked.send(()).unwrap();
        self.answers.recv().unwrap();
    }
}

struct Place {
    _folder: tempfile::TempDir,
    clock: Arc<Moved>,
    registry: Arc<Registry>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Moved(AtomicI64::new(START)));
        let made =
            Registry::create_with_clock(folder.path(), LedgerLimits::default(), clock.clone()).unwrap();
        for name in ["d1", "d2"] {
            let new = NewDevice {
                id: id(name),
                model: None,
                groups: vec![],
                state: LifecycleState::Active,
                authority: None,
            };
            made.add_device(actor(), tenant(), new).unwrap();
        }
        Self {
            _folder: folder,
            clock,
            registry: Arc::new(made),
        }
    }

    /// On a thread of its own, as a request of the API is.
    fn beside<T: Send + 'static>(&self, run: impl FnOnce(&Registry) -> T + Send + 'static) -> Receiver<T> {
        let (registry, (done, is_done)) = (self.registry.clone(), channel());
        std::thread::spawn(move || done.send(run(&registry)));
        is_done
    }

    fn issue(
        &self,
        certificate: &CertificateFacts,
        requester: Requester,
        key: HeldKey,
    ) -> Receiver<Result<IssueOutcome, RegistryError>> {
        let certificate = certificate.clone();
        self.beside(move |registry| {
            let request = IssueRequest {
                attestation: None,
                tenant: tenant(),
                device: id("d1"),
                key: certificate.public_key_sha256,
                profile: "operational".into(),
                kind: ProfileKind::Operational,
                choice: ProfileChoice::First,
                authority: None,
                demands_new_key: false,
                idempotency_key: Some("once".into()),
                requester,
            };
            let mint = move |_| {
                key.sign();
                Ok(credential(certificate, None))
            };
            registry.issue(actor(), request, mint).map(|c| c.value)
        })
    }

    fn suspend(&self, name: &'static str) {
        let suspended = self.beside(move |registry| {
            registry.move_device(
                actor(),
                tenant(),
                id(name),
                LifecycleMove::Suspend,
                "stolen".into(),
            )
        });
        let moved = suspended.recv_timeout(AT_ONCE);
        moved.expect("the suspension waits for the key").unwrap();
    }

    fn is_registered(&self, certificate: &CertificateFacts) -> bool {
        let found = self.registry.credentials(&tenant(), &id("d1")).unwrap();
        found.iter().any(|c| c.fingerprint == certificate.fingerprint)
    }
}

#[test]
fn a_key_that_does_not_answer_holds_up_no_suspension() {
    let place = Place::new();
    let wanted = certificate("d1");
    let (key, is_asked, answer) = held_key();
    let issued = place.issue(&wanted, Requester::Operator, key);
    is_asked.recv_timeout(Duration::from_secs(10)).unwrap();
    place.suspend("d2");
    assert!(!place.is_registered(&wanted));
    answer.send(()).unwrap();
    let outcome = issued.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert!(!outcome.repeated && outcome.certificate == wanted.fingerprint.as_bytes());
    assert!(place.is_registered(&wanted));
}

#[test]
fn who_was_suspended_while_the_key_signed_gets_nothing_and_its_secret_is_unused() {
    let place = Place::new();
    let wanted = certificate("d1");
    let secret = Fingerprint::of(b"secret");
    let hour = Duration::from_secs(3600);
    place
        .registry
        .add_enrolment_secret(actor(), tenant(), id("d1"), secret, hour)
        .unwrap();
    let (key, is_asked, answer) = held_key();
    let issued = place.issue(&wanted, Requester::Secret(secret), key);
    is_asked.recv_timeout(Duration::from_secs(10)).unwrap();
    place.suspend("d1");
    answer.send(()).unwrap();
    let refused = issued.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(
        matches!(
            &refused,
            Err(RegistryError::NotActive {
                state: LifecycleState::Suspended,
                ..
            })
        ),
        "{refused:?}"
    );
    assert!(!place.is_registered(&wanted));
    // Nothing of the request was kept: the secret goes to another key.
    place
        .registry
        .move_device(actor(), tenant(), id("d1"), LifecycleMove::Resume, "found".into())
        .unwrap();
    let (key, _asked, answer) = held_key();
    answer.send(()).unwrap();
    let other = certificate("d1");
    let issued = place.issue(&other, Requester::Secret(secret), key);
    let refused = issued.recv_timeout(Duration::from_secs(10)).unwrap();
    // Its idempotency key too.
    assert!(refused.is_ok(), "{refused:?}");
}

#[test]
fn of_two_of_the_same_request_that_are_both_signed_one_is_kept_and_both_are_answered_with_it() {
    let place = Place::new();
    let first = certificate("d1");
    // The same key, signed twice.
    let second = signed_again(&first);
    let (one, one_asked, one_answer) = held_key();
    let (two, two_asked, two_answer) = held_key();
    let one = place.issue(&first, Requester::Operator, one);
    let two = place.issue(&second, Requester::Operator, two);
    for asked in [one_asked, two_asked] {
        asked
            .recv_timeout(Duration::from_secs(10))
            .expect("both are signed");
    }
    two_answer.send(()).unwrap();
    let kept = two.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    one_answer.send(()).unwrap();
    let again = one.recv_timeout(Duration::from_secs(10)).unwrap().unwrap();
    assert!(!kept.repeated && again.repeated);
    assert_eq!(kept.certificate, again.certificate);
    assert!(!place.is_registered(&first));
}

#[test]
fn what_a_batch_needs_only_after_it_was_decided_anew_is_not_signed_inside_the_transaction_either() {
    let place = Place::new();
    let batch = BatchId::new("B-1").unwrap();
    let plan = Batch {
        id: batch.clone(),
        tenant: tenant(),
        model: "pump".into(),
        profile: "operational".into(),
        groups: vec![],
        devices_start: Default::default(),
        authority: None,
        id_pattern: "SN-*".parse().unwrap(),
        quota: 10,
        window: Default::default(),
    };
    place.registry.add_batch(actor(), plan).unwrap();
    let (old, new) = (certificate("SN-1"), certificate("SN-2"));
    // The same key again, for the time that its first certificate is gone.
    let renewed = signed_again(&old);
    let request = |items: &[(&str, &CertificateFacts)]| BulkIssue {
        tenant: tenant(),
        batch: batch.clone(),
        demands_new_key: false,
        replace: false,
        items: items
            .iter()
            .map(|(name, c)| BulkItem {
                device: id(name),
                key: c.public_key_sha256,
            })
            .collect(),
    };
    let (first, kept) = (old.clone(), Some(batch.clone()));
    let mint = move |_, _| Ok(credential(first.clone(), kept.clone()));
    place
        .registry
        .issue_in_batch(actor(), request(&[("SN-1", &old)]), mint)
        .unwrap();
    let (key, is_asked, answer) = held_key();
    let (both, kept) = ([renewed.clone(), new.clone()], Some(batch.clone()));
    let wanted = request(&[("SN-1", &old), ("SN-2", &new)]);
    let issued = place.beside(move |registry| {
        let mint = move |n: usize, _| {
            key.sign();
            Ok(credential(both[n].clone(), kept.clone()))
        };
        registry.issue_in_batch(actor(), wanted, mint)
    });
    // SN-2's is signed; meanwhile SN-1's lapses, so it needs another one.
    is_asked.recv_timeout(Duration::from_secs(10)).unwrap();
    place.clock.0.fetch_add(30 * 86_400_000, Ordering::Relaxed);
    assert_eq!(place.registry.sweep_credentials().unwrap().value.lapsed, 1);
    answer.send(()).unwrap();
    is_asked
        .recv_timeout(Duration::from_secs(10))
        .expect("the other one is signed too");
    place.suspend("d2");
    answer.send(()).unwrap();
    let answers = issued
        .recv_timeout(Duration::from_secs(10))
        .unwrap()
        .unwrap()
        .value;
    let given: Vec<_> = answers.into_iter().map(|a| a.unwrap().certificate).collect();
    assert_eq!(
        given,
        [renewed.fingerprint.as_bytes(), new.fingerprint.as_bytes()]
    );
}
