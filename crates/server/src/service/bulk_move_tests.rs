//! Bulk moves whose requester goes away, whose receipt gets no last word, or that ask for what there is not.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{DeviceId, TenantId};
use countersign_policy::{LifecycleMove, LifecycleState};
use countersign_registry::{
    Actor, BulkCount, Move, NewDevice, Receipt, ReceiptId, ReceiptKey, ReceiptState, Selector,
};

use super::bulk_moves::content;
use super::{Service, SessionsReport};
use crate::config::Config;
use crate::service::receipts::Deed;

fn actor() -> Actor {
    Actor("test".into())
}

fn tenant() -> TenantId {
    TenantId::default_tenant()
}

fn place(devices: usize) -> (tempfile::TempDir, Arc<Service>) {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::create(folder.path(), Config::default()).unwrap();
    let devices = (0..devices).map(|n| (device(n), None)).collect();
    let report = service
        .registry()
        .import_devices(actor(), tenant(), devices)
        .unwrap();
    assert!(report.value.refused.is_empty());
    (folder, Arc::new(service))
}

fn device(n: usize) -> NewDevice {
    NewDevice {
        id: DeviceId::new(&format!("d{n:03}")).unwrap(),
        model: Some("pump".into()),
        groups: vec![],
        state: LifecycleState::Active,
        authority: None,
    }
}

fn pumps() -> Selector {
    Selector {
        model: Some("pump".into()),
        ..Selector::default()
    }
}

fn suspend() -> Move {
    Move {
        attempted: LifecycleMove::Suspend,
        reason: "recall".into(),
        until: None,
        evidence: None,
    }
}

/// As a bulk move leaves it behind while it runs.
fn running(service: &Service, devices: BulkCount) -> Receipt {
    let deed = Deed {
        actor: actor(),
        action: "device.suspend".into(),
        tenant: Some(tenant()),
        subject: pumps().to_string(),
        reason: "recall".into(),
    };
    let receipt = service
        .desk()
        .receipt(deed, 1, SessionsReport::default())
        .unwrap();
    Receipt {
        state: ReceiptState::Running,
        devices: Some(devices),
        note: None,
        ..receipt
    }
}

async fn over(service: &Service, id: &ReceiptId) -> Receipt {
    for _ in 0..500 {
        let receipt = service.receipt(id.clone()).await.unwrap();
        if receipt.state != ReceiptState::Running {
            return receipt;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never ends: {:?}", service.receipt(id.clone()).await);
}

#[tokio::test]
async fn a_bulk_move_goes_on_when_whoever_asked_goes_away() {
    let (_folder, service) = place(3);
    let asker = service.clone();
    let asked =
        tokio::spawn(async move { asker.move_many(actor(), tenant(), pumps(), suspend(), None).await });
    // Gone while the first receipt is on its way to the disk.
    while !service.bulk.holding().has_receipt() {
        tokio::task::yield_now().await;
    }
    assert!(!asked.is_finished());
    asked.abort();
    let mut begun = Vec::new();
    while begun.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        begun = service.receipts(None, 10).await.unwrap();
    }
    let receipt = over(&service, &begun[0].id).await;
    assert_eq!(receipt.state, ReceiptState::Complete, "{receipt:?}");
    assert_eq!(receipt.devices.unwrap().moved, 3);
    // And the place is free again.
    let resume = Move {
        attempted: LifecycleMove::Resume,
        ..suspend()
    };
    let mut next = service
        .move_many(actor(), tenant(), pumps(), resume.clone(), None)
        .await;
    while next.as_ref().is_err_and(|e| e.status == 409) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        next = service
            .move_many(actor(), tenant(), pumps(), resume.clone(), None)
            .await;
    }
    let receipt = over(&service, &next.unwrap().id).await;
    assert_eq!(receipt.devices.unwrap().moved, 3, "{receipt:?}");
}

#[tokio::test]
async fn a_receipt_that_never_had_its_last_word_is_partial_and_goes_on_with_the_right_counts() {
    let (_folder, service) = place(3);
    let devices = BulkCount {
        selected: 3,
        moved: 2,
        refused: 0,
    };
    let first = running(&service, devices);
    let key = ReceiptKey {
        key: "recall-7".into(),
        content: content(&pumps(), &suspend()).unwrap(),
    };
    service.registry().keep_receipt(first.clone(), Some(key)).unwrap();
    let two = vec![device(0).id, device(1).id];
    service
        .registry()
        .move_devices(actor(), tenant(), two, suspend())
        .unwrap();

    let told = service.receipt(first.id.clone()).await.unwrap();
    assert!(told.is_cut_short(), "{told:?}");
    assert!(
        told.note
            .as_deref()
            .unwrap()
            .contains("hint: ask for the same again"),
        "{told:?}"
    );
    let listed = service.receipts(None, 10).await.unwrap();
    assert_eq!(listed, [told]);

    let again = service
        .move_many(actor(), tenant(), pumps(), suspend(), Some("recall-7".into()))
        .await
        .unwrap();
    assert_eq!(again.id, first.id);
    let receipt = over(&service, &first.id).await;
    assert_eq!(receipt.state, ReceiptState::Complete, "{receipt:?}");
    // The two that it had moved are found without the move now, and nobody refused them.
    let devices = BulkCount {
        selected: 3,
        moved: 3,
        refused: 0,
    };
    assert_eq!(receipt.devices, Some(devices), "{receipt:?}");
}

#[tokio::test]
async fn what_is_not_there_is_not_moved_with_success() {
    let (_folder, service) = place(1);
    let selectors = [
        Selector {
            batch: Some("B-1".parse().unwrap()),
            ..pumps()
        },
        Selector {
            authority: Some("no-such-ca".parse().unwrap()),
            ..pumps()
        },
    ];
    let nowhere = TenantId::new("nowhere").unwrap();
    let cases = selectors.map(|s| (tenant(), s)).into_iter();
    for (tenant, selector) in cases.chain([(nowhere, pumps())]) {
        let refused = service
            .move_many(actor(), tenant, selector.clone(), suspend(), None)
            .await
            .unwrap_err();
        assert_eq!(refused.status, 404, "{selector}: {refused}");
        assert_eq!(refused.exit_code(), 3);
    }
    assert_eq!(service.receipts(None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_key_stands_for_all_that_was_asked() {
    let (_folder, service) = place(1);
    let now = service.now();
    let until = |hours: u64| Move {
        until: Some(now.plus(Duration::from_secs(hours * 3600))),
        ..suspend()
    };
    let ask = |wanted: Move| {
        let key = Some("recall-7".to_owned());
        service.move_many(actor(), tenant(), pumps(), wanted, key)
    };
    let first = ask(until(2)).await.unwrap();
    // "For two hours" is another moment each time.
    assert_eq!(ask(until(3)).await.unwrap().id, first.id);
    let refused = ask(suspend()).await.unwrap_err();
    assert_eq!(refused.status, 409, "for ever is something else: {refused}");
    over(&service, &first.id).await;

    let release = |evidence: &str| Move {
        attempted: LifecycleMove::Release,
        evidence: Some(evidence.into()),
        ..suspend()
    };
    let content = |wanted: &Move| content(&pumps(), wanted).unwrap();
    assert_eq!(content(&release("scan 1")), content(&release("scan 1")));
    assert_ne!(content(&release("scan 1")), content(&release("scan 2")));
}
