//! Time boxes end by themselves and survive a restart; bulk moves find what they name; receipts are found again.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use countersign_identity::{AuthorityId, Clock, DeviceId, Fingerprint, Synchronisation, TenantId, Timestamp};
use countersign_policy::{FactSource, LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, LedgerLimits, Move, NewDevice, Receipt, ReceiptId, ReceiptKey, ReceiptState, Registry,
    RegistryError, Selector,
};

/// A clock that the test moves.
struct Moved(AtomicI64);

const START: i64 = 1_800_000_000_000;

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.0.load(Ordering::Relaxed))
    }

    fn synchronisation(&self) -> Synchronisation {
        Synchronisation::Synchronised
    }
}

fn open(path: &Path, clock: &Arc<Moved>) -> Registry {
    Registry::create_with_clock(path, LedgerLimits::default(), clock.clone()).unwrap()
}

fn actor() -> Actor {
    Actor("alice".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn add(registry: &Registry, name: &str, model: Option<&str>, groups: &[&str]) {
    let new = NewDevice {
        id: id(name),
        model: model.map(Into::into),
        groups: groups.iter().map(|g| (*g).into()).collect(),
        state: LifecycleState::Active,
        authority: None,
    };
    registry.add_device(actor(), tenant(), new).unwrap();
}

fn until(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp::from_unix_ms(START + seconds * 1000))
}

fn go(registry: &Registry, name: &str, attempted: LifecycleMove, seconds: Option<i64>) {
    let wanted = Move {
        until: seconds.and_then(until),
        ..Move::new(attempted, "a reason")
    };
    registry
        .move_device_as(actor(), tenant(), id(name), wanted)
        .unwrap();
}

fn state(registry: &Registry, name: &str) -> LifecycleState {
    registry.facts().device(&tenant(), &id(name)).unwrap().state
}

#[test]
fn a_suspension_ends_by_itself_at_its_time_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Moved(AtomicI64::new(START)));
    let registry = open(folder.path(), &clock);
    for name in ["boxed", "unboxed", "apart", "short"] {
        add(&registry, name, None, &[]);
    }
    go(&registry, "boxed", LifecycleMove::Suspend, Some(100));
    go(&registry, "unboxed", LifecycleMove::Suspend, None);
    // Its suspension ends while it is apart: release will return it to active.
    go(&registry, "apart", LifecycleMove::Suspend, Some(100));
    go(&registry, "apart", LifecycleMove::Quarantine, None);
    go(&registry, "short", LifecycleMove::Quarantine, Some(50));
    // A change of the device does not lose its end.
    registry
        .bind_device(actor(), tenant(), id("boxed"), None)
        .unwrap();
    drop(registry);
    let registry = open(folder.path(), &clock);
    let now = || registry.now();
    assert!(!registry.is_time_box_over(now()).unwrap());
    assert_eq!(registry.end_time_boxes().unwrap().value, 0);
    clock.0.store(START + 99_999, Ordering::Relaxed);
    assert_eq!(registry.end_time_boxes().unwrap().value, 1);
    assert_eq!(state(&registry, "short"), LifecycleState::Active);
    assert_eq!(state(&registry, "boxed"), LifecycleState::Suspended);
    clock.0.store(START + 100_000, Ordering::Relaxed);
    assert!(registry.is_time_box_over(now()).unwrap());
    let ended = registry.end_time_boxes().unwrap();
    assert_eq!((ended.value, ended.changes.len()), (2, 2));
    assert!(!registry.is_time_box_over(now()).unwrap());
    assert_eq!(state(&registry, "boxed"), LifecycleState::Active);
    assert_eq!(state(&registry, "unboxed"), LifecycleState::Suspended);
    assert_eq!(state(&registry, "apart"), LifecycleState::Quarantined);
    go(&registry, "apart", LifecycleMove::Release, None);
    assert_eq!(state(&registry, "apart"), LifecycleState::Active);

    let view = registry.device(&tenant(), &id("boxed")).unwrap().unwrap();
    let moved = view.moved.unwrap();
    assert_eq!(
        (moved.by.as_str(), moved.since),
        ("countersign", Timestamp::from_unix_ms(START + 100_000))
    );
    let view = registry.device(&tenant(), &id("unboxed")).unwrap().unwrap();
    assert_eq!(
        (view.moved.unwrap().by.as_str(), view.suspended_until),
        ("alice", None)
    );
    let entries = registry.audit(100).unwrap();
    let by_time: Vec<_> = entries
        .iter()
        .filter(|e| e.actor == "countersign" && e.action.contains("ended"))
        .collect();
    assert_eq!(by_time.len(), 3, "{by_time:?}");
    assert!(registry.verify_audit().is_ok());
}

#[test]
fn an_end_that_makes_no_sense_is_refused_and_nothing_changes() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Moved(AtomicI64::new(START)));
    let registry = open(folder.path(), &clock);
    add(&registry, "d", None, &[]);
    let refused = |wanted: Move| {
        let e = registry
            .move_device_as(actor(), tenant(), id("d"), wanted)
            .unwrap_err();
        assert!(matches!(e, RegistryError::Refused(_)), "{e}");
        assert_eq!(state(&registry, "d"), LifecycleState::Active);
    };
    refused(Move {
        until: until(0),
        ..Move::new(LifecycleMove::Suspend, "")
    });
    refused(Move {
        until: until(9),
        ..Move::new(LifecycleMove::Decommission, "")
    });
    refused(Move {
        evidence: Some("a scan".into()),
        ..Move::new(LifecycleMove::Suspend, "")
    });
    refused(Move::new(LifecycleMove::Suspend, "x".repeat(1001)));
}

#[test]
fn a_selector_finds_what_holds_in_all_of_it_and_a_bulk_move_leaves_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Moved(AtomicI64::new(START)));
    let registry = open(folder.path(), &clock);
    for n in 0..20 {
        let model = if n % 2 == 0 { "pump" } else { "valve" };
        let groups: &[&str] = if n < 10 { &["eu", "a\"b"] } else { &["us"] };
        add(&registry, &format!("d{n:02}"), Some(model), groups);
    }
    go(&registry, "d02", LifecycleMove::Decommission, None);
    let select = |selector: &Selector| -> Vec<String> {
        let found = registry.select_devices(&tenant(), selector, None, 100).unwrap();
        found.into_iter().map(|d| d.id.to_string()).collect()
    };
    let eu_pumps = Selector {
        group: Some("eu".into()),
        model: Some("pump".into()),
        ..Selector::default()
    };
    assert_eq!(select(&eu_pumps), ["d00", "d02", "d04", "d06", "d08"]);
    let quoted = Selector {
        group: Some("a\"b".into()),
        ..Selector::default()
    };
    assert_eq!(select(&quoted).len(), 10);
    let active = Selector {
        state: Some(LifecycleState::Active),
        ..eu_pumps.clone()
    };
    assert_eq!(select(&active), ["d00", "d04", "d06", "d08"]);
    let nobody = Selector {
        authority: Some(AuthorityId::new("nobody").unwrap()),
        ..Selector::default()
    };
    assert_eq!(select(&nobody), [""; 0]);
    let page = registry
        .select_devices(&tenant(), &eu_pumps, Some(&id("d02")), 2)
        .unwrap();
    assert_eq!(
        page.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(),
        ["d04", "d06"]
    );
    assert_eq!(
        registry.count_selected(&tenant(), &eu_pumps).unwrap(),
        [(LifecycleState::Active, 4), (LifecycleState::Decommissioned, 1)]
    );
    let ids = select(&eu_pumps).iter().map(|t| id(t)).collect();
    let moved = registry
        .move_devices(
            actor(),
            tenant(),
            ids,
            Move::new(LifecycleMove::Suspend, "recall"),
        )
        .unwrap();
    assert_eq!((moved.value.moved, moved.value.refused), (4, vec![id("d02")]));
    assert_eq!(moved.changes.len(), 4);
    assert_eq!(state(&registry, "d04"), LifecycleState::Suspended);
    assert_eq!(state(&registry, "d05"), LifecycleState::Active);
}

fn receipt(registry: &Registry, state: ReceiptState) -> Receipt {
    Receipt {
        id: ReceiptId::random().unwrap(),
        revision: 7,
        at: registry.now(),
        tenant: Some(tenant()),
        actor: "alice".into(),
        action: "device.suspend".into(),
        subject: "d".into(),
        reason: String::new(),
        state,
        nodes: vec![],
        devices: None,
        note: None,
    }
}

#[test]
fn receipts_are_kept_over_a_restart_up_to_their_limit_and_a_key_names_one() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Moved(AtomicI64::new(START)));
    let registry = open(folder.path(), &clock);
    let key = ReceiptKey {
        key: "k".into(),
        content: Fingerprint::of(b"one"),
    };
    let first = receipt(&registry, ReceiptState::Running);
    registry.keep_receipt(first.clone(), Some(key.clone())).unwrap();
    drop(registry);
    let registry = open(folder.path(), &clock);
    assert_eq!(registry.receipt(&first.id).unwrap(), first);
    registry.conclude_receipts().unwrap();
    let cut = registry.receipt_of_key(&tenant(), &key).unwrap().unwrap();
    assert_eq!(
        (cut.id.clone(), cut.state),
        (first.id.clone(), ReceiptState::Partial)
    );
    let other = ReceiptKey {
        content: Fingerprint::of(b"two"),
        ..key
    };
    assert!(matches!(
        registry.receipt_of_key(&tenant(), &other),
        Err(RegistryError::Exists(_))
    ));
    registry.set_receipts_max(3);
    let kept: Vec<_> = (0..5)
        .map(|_| {
            let receipt = receipt(&registry, ReceiptState::Complete);
            registry.keep_receipt(receipt.clone(), None).unwrap();
            receipt.id
        })
        .collect();
    let listed: Vec<_> = registry
        .receipts(Some(&tenant()), 10)
        .unwrap()
        .into_iter()
        .map(|r| r.id)
        .collect();
    assert_eq!(listed, [kept[4].clone(), kept[3].clone(), kept[2].clone()]);
    assert_eq!(registry.receipts_forgotten(), 3);
    assert!(matches!(
        registry.receipt(&first.id),
        Err(RegistryError::NoReceipt(_))
    ));
}

#[test]
fn a_receipt_that_is_running_is_not_forgotten_before_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let registry = open(folder.path(), &Arc::new(Moved(AtomicI64::new(START))));
    let key = ReceiptKey {
        key: "k".into(),
        content: Fingerprint::of(b"one"),
    };
    let mut first = receipt(&registry, ReceiptState::Running);
    registry.keep_receipt(first.clone(), Some(key.clone())).unwrap();
    registry.set_receipts_max(2);
    let more = || {
        for _ in 0..3 {
            registry
                .keep_receipt(receipt(&registry, ReceiptState::Complete), None)
                .unwrap();
        }
    };
    more();
    let known = registry.receipt_of_key(&tenant(), &key).unwrap();
    assert_eq!(known.as_ref(), Some(&first));
    first.state = ReceiptState::Complete;
    registry.keep_receipt(first.clone(), None).unwrap();
    more();
    assert!(registry.receipt(&first.id).is_err());
    assert_eq!(registry.receipts(None, 10).unwrap().len(), 2);
}
