//! A restored registry is told from the one that went on, and learns from it what had ended.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use countersign_factory::{RevocationReason, Revoked};
use countersign_identity::{AuthorityId, Clock, DeviceId, Generation, TenantId, Timestamp};
use countersign_policy::{FactSource, LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, BackwardClock, LedgerLimits, NewDevice, Registry, RegistryError, RegistryFacts,
};

struct Moved(AtomicI64);

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed))
    }
}

const START: i64 = 1_800_000_000_000;

fn clock(ms: i64) -> Arc<Moved> {
    Arc::new(Moved(AtomicI64::new(ms)))
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

fn create(path: &Path, ms: i64) -> Registry {
    Registry::create_with_clock(path, LedgerLimits::default(), clock(ms)).unwrap()
}

fn add(registry: &Registry, name: &str) {
    let new = NewDevice {
        id: id(name),
        model: None,
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    };
    registry.add_device(actor(), tenant(), new).unwrap();
}

fn go(registry: &Registry, name: &str, attempted: LifecycleMove) {
    registry
        .move_device(actor(), tenant(), id(name), attempted, String::new())
        .unwrap();
}

fn generation(registry: &Registry, name: &str) -> Generation {
    registry.facts().device(&tenant(), &id(name)).unwrap().generation
}

/// A restored copy: its registry, at a time.
fn restored(backup: &Path, facts: &RegistryFacts, to: &Path, ms: i64) -> Registry {
    std::fs::create_dir(to).unwrap();
    for name in countersign_registry::DATABASES {
        std::fs::copy(backup.join(name), to.join(name)).unwrap();
    }
    let registry = Registry::open_with_clock(to, LedgerLimits::default(), clock(ms)).unwrap();
    let made = Timestamp::from_unix_ms(START);
    registry
        .begin_epoch(actor(), facts.clone(), made, BackwardClock::Refuse)
        .unwrap();
    registry
}

#[test]
fn no_generation_of_a_time_that_the_backup_does_not_know_equals_one_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    add(&old, "d1");
    let common = generation(&old, "d1");
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    assert_eq!((facts.epoch, facts.devices), (1, 1));
    // The old one goes on.
    let mut seen = vec![];
    for _ in 0..5 {
        for attempted in [LifecycleMove::Suspend, LifecycleMove::Resume] {
            go(&old, "d1", attempted);
            seen.push(generation(&old, "d1"));
        }
    }
    // The same backup is restored twice, a millisecond apart, and both go on as the old one did.
    for (n, ms) in [(1, START + 1), (2, START + 2)] {
        let new = restored(&path("backup"), &facts, &path(&format!("new{n}")), ms);
        assert_eq!(generation(&new, "d1"), common, "what both know is the same");
        assert_eq!(new.epoch().unwrap().epoch, 2);
        for _ in 0..5 {
            for attempted in [LifecycleMove::Suspend, LifecycleMove::Resume] {
                go(&new, "d1", attempted);
                let g = generation(&new, "d1");
                assert!(!seen.contains(&g), "{g:?} was there before");
                seen.push(g);
            }
        }
        assert_eq!(
            new.verify_audit().unwrap().unwrap(),
            facts.audit_entries as u64 + 11
        );
    }
    // And a restore of a restore.
    let again = Registry::open_with_clock(&path("new2"), LedgerLimits::default(), clock(START + 3));
    assert_eq!(
        again.unwrap().epoch().unwrap().restored_from.unwrap()["made"],
        START
    );
}

#[test]
fn a_clock_that_is_behind_the_backup_is_refused_or_accepted_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    add(&old, "d1");
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    let first = |name: &str| {
        let to = path(name);
        std::fs::create_dir(&to).unwrap();
        std::fs::copy(path("backup").join("registry.db"), to.join("registry.db")).unwrap();
        let registry =
            Registry::open_with_clock(&to, LedgerLimits::default(), clock(START - 86_400_000)).unwrap();
        let begin = |clock| {
            let made = Timestamp::from_unix_ms(START);
            registry.begin_epoch(actor(), facts.clone(), made, clock)
        };
        let refused = begin(BackwardClock::Refuse).unwrap_err();
        assert!(matches!(refused, RegistryError::ClockBehind { .. }), "{refused}");
        assert_eq!(registry.epoch().unwrap().epoch, 1);
        let first = begin(BackwardClock::Accept).unwrap().value.first_revision;
        registry.minting_time().unwrap();
        first
    };
    assert_ne!(first("a"), first("b"));
}

#[test]
fn what_had_ended_since_the_backup_is_told_and_ends_here_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("old")).unwrap();
    std::fs::create_dir_all(path("backup")).unwrap();
    let old = create(&path("old"), START);
    for name in ["suspended", "gone", "good", "resumed"] {
        add(&old, name);
    }
    go(&old, "resumed", LifecycleMove::Suspend);
    let facts = old
        .copy_to(&path("backup"), actor(), serde_json::json!({}))
        .unwrap();
    go(&old, "suspended", LifecycleMove::Suspend);
    go(&old, "gone", LifecycleMove::Decommission);
    go(&old, "resumed", LifecycleMove::Resume);
    add(&old, "later");
    go(&old, "later", LifecycleMove::Decommission);
    let ca = AuthorityId::new("ca").unwrap();
    let number = old.next_list_number(&ca).unwrap().value + 1;
    assert_eq!(old.next_list_number(&ca).unwrap().value, number);
    drop(old);

    let new = restored(&path("backup"), &facts, &path("new"), START + 1);
    let newer = new.newer_in_registry(&path("old").join("registry.db")).unwrap();
    let told: Vec<_> = newer
        .devices
        .iter()
        .map(|d| (d.id.as_str(), d.is.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("gone", "decommissioned"),
            ("later", "decommissioned"),
            ("suspended", "suspended")
        ]
    );
    assert_eq!(newer.devices[1].was, None);
    let list = [Revoked {
        serial: "abcd".into(),
        at: Timestamp::from_unix_ms(START),
        reason: RevocationReason::KeyCompromise,
    }];
    let mut all = newer;
    all.merge(new.newer_in_list(&ca, number + 7, &list).unwrap());
    assert!(!all.revoked[0].known);
    new.apply_newer(actor(), all).unwrap();
    drop(new);

    let new = Registry::open_with_clock(&path("new"), LedgerLimits::default(), clock(START + 2)).unwrap();
    let state = |name: &str| new.facts().device(&tenant(), &id(name)).unwrap().state;
    assert_eq!(state("suspended"), LifecycleState::Suspended);
    assert_eq!(state("gone"), LifecycleState::Decommissioned);
    assert_eq!(state("later"), LifecycleState::Decommissioned);
    assert_eq!(state("good"), LifecycleState::Active);
    // Whoever was let in again since is not: nobody is admitted on a guess.
    assert_eq!(state("resumed"), LifecycleState::Suspended);
    // A certificate that this registry never saw stays revoked for whoever asks, and numbers go on growing.
    assert_eq!(new.revoked_by(&ca, Timestamp::from_unix_ms(0)).unwrap(), list);
    assert_eq!(
        new.certificate_status(&ca, "abcd").unwrap(),
        Some(Some(list[0].clone()))
    );
    assert!(new.next_list_number(&ca).unwrap().value > number + 7);
    assert!(new.newer_in_list(&ca, 0, &list).unwrap().revoked.is_empty());
    new.verify_audit().unwrap().unwrap();
}
