//! Bulk moves: all devices that a selector finds, in small transactions, under one receipt.
//!
//! The writer is held for one chunk at a time, so that a single suspension in the middle of a bulk move waits for one
//! chunk at most. The receipt is on disk before the first device is moved, and says how far it has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::LifecycleState;
use countersign_policy::lifecycle::Lifecycle;
use countersign_registry::{Actor, BulkCount, Move, Receipt, ReceiptKey, ReceiptState, Selected, Selector};
use serde::Serialize;

use super::receipts::{Deed, Desk, blocking, need_reason};
use super::{Service, SessionsReport};
use crate::failure::Failure;

/// Devices of one transaction: some 10 ms of the writer.
const CHUNK: u32 = 200;

/// A bulk move, before it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BulkPlan {
    /// Devices that the selector finds.
    pub selected: u64,
    /// Of these, devices that would be moved.
    pub moves: u64,
    /// Of these, devices whose state does not have the move.
    pub refused: u64,
    /// The first of them in order of id.
    pub devices: Vec<Selected>,
    /// Where the list goes on; `None`: it is whole.
    pub next: Option<DeviceId>,
}

/// Frees the place of the one bulk move when it ends, however it ends.
struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn has_move(state: LifecycleState, wanted: &Move) -> bool {
    let lifecycle = Lifecycle {
        before_quarantine: Some(LifecycleState::Active),
        ..Lifecycle::new(state)
    };
    lifecycle.apply(wanted.attempted).is_ok()
}

fn check(selector: &Selector, wanted: &Move) -> Result<(), Failure> {
    if selector.is_empty() {
        return Err(Failure::invalid(
            "it is not said which devices; hint: --group, --model, --batch, --authority or --state",
        ));
    }
    need_reason("a bulk move", &wanted.reason)
}

impl Service {
    /// What a bulk move would do: how many, and the first `limit` after `after`.
    ///
    /// # Errors
    /// [`Failure`] if it names nothing, or makes no sense.
    pub fn plan_moves(
        &self,
        tenant: &TenantId,
        selector: &Selector,
        wanted: &Move,
        after: Option<&DeviceId>,
        limit: u32,
    ) -> Result<BulkPlan, Failure> {
        if selector.is_empty() {
            check(selector, wanted)?;
        }
        self.registry.check_move(wanted)?;
        let counts = self.registry.count_selected(tenant, selector)?;
        let selected = counts.iter().map(|(_, n)| n).sum();
        let moves = counts
            .iter()
            .filter(|(state, _)| has_move(*state, wanted))
            .map(|(_, n)| n)
            .sum();
        let devices = self.registry.select_devices(tenant, selector, after, limit)?;
        let next = (devices.len() == limit as usize)
            .then(|| devices.last().map(|d| d.id.clone()))
            .flatten();
        Ok(BulkPlan {
            selected,
            moves,
            refused: selected - moves,
            devices,
            next,
        })
    }

    /// Begins a bulk move, and answers with its receipt; it goes on by itself, and the receipt tells how far it is.
    ///
    /// # Errors
    /// [`Failure`] if it names nothing or makes no sense, if another one is under way, or if the idempotency key was
    /// used for something else.
    pub async fn move_many(
        &self,
        actor: Actor,
        tenant: TenantId,
        selector: Selector,
        wanted: Move,
        key: Option<String>,
    ) -> Result<Receipt, Failure> {
        check(&selector, &wanted)?;
        self.registry.check_move(&wanted)?;
        let asked = serde_json::to_string(&selector).map_err(|e| Failure::internal(e.to_string()))?;
        // A time is left out: "for two hours" asked again is the same request.
        let content = Fingerprint::of(format!("{} {asked}", wanted.attempted).as_bytes());
        let key = key.map(|key| ReceiptKey { key, content });
        let before = match &key {
            Some(key) => self.registry.receipt_of_key(&tenant, key)?,
            None => None,
        };
        // One that was cut short goes on under its receipt; what is done is not done again.
        if let Some(known) = &before
            && (known.state != ReceiptState::Partial || known.note.is_none())
        {
            return Ok(known.clone());
        }
        if self.bulk_running.swap(true, Ordering::AcqRel) {
            return Err(Failure::told(
                409,
                "another bulk move is under way; hint: countersign receipt list shows it; wait for it",
            ));
        }
        let running = Running(self.bulk_running.clone());
        let desk = self.desk();
        let mut receipt = match before {
            Some(known) => known,
            None => {
                let deed = Deed {
                    actor: actor.clone(),
                    action: format!("device.{}", wanted.attempted.name()),
                    tenant: Some(tenant.clone()),
                    subject: selector.to_string(),
                    reason: wanted.reason.clone(),
                };
                let selected = self.plan_moves(&tenant, &selector, &wanted, None, 1)?.selected;
                Receipt {
                    devices: Some(BulkCount {
                        selected,
                        ..BulkCount::default()
                    }),
                    ..desk.receipt(deed, self.registry.revision()?, SessionsReport::default())?
                }
            }
        };
        receipt.state = ReceiptState::Running;
        receipt.note = None;
        let (registry, first) = (self.registry.clone(), receipt.clone());
        blocking(move || registry.keep_receipt(first, key)).await?;
        let begun = receipt.clone();
        tokio::spawn(async move {
            let _running = running;
            run(desk, actor, tenant, selector, wanted, receipt).await;
        });
        Ok(begun)
    }
}

/// Chunk by chunk, to the end or to the first failure; the receipt is kept after each.
async fn run(
    desk: Desk,
    actor: Actor,
    tenant: TenantId,
    selector: Selector,
    wanted: Move,
    mut receipt: Receipt,
) {
    let mut sessions = SessionsReport::default();
    let failed = chunks(
        &desk,
        &actor,
        &tenant,
        &selector,
        &wanted,
        &mut receipt,
        &mut sessions,
    )
    .await
    .err();
    receipt.state = match (&failed, sessions.open) {
        (None, 0) => ReceiptState::Complete,
        _ => ReceiptState::Partial,
    };
    receipt.note = match failed {
        Some(e) => Some(format!(
            "it was cut short: {e}; what was moved stays moved; hint: ask for the same again"
        )),
        None if receipt.nodes.is_empty() => Some("no node was live: there were no sessions to end".into()),
        None => None,
    };
    if let Some(devices) = &mut receipt.devices {
        devices.refused = devices.selected.saturating_sub(devices.moved);
    }
    if let Err(e) = desk.keep(receipt).await {
        tracing::error!(cause = %e, "the receipt of a bulk move cannot be kept");
    }
}

async fn chunks(
    desk: &Desk,
    actor: &Actor,
    tenant: &TenantId,
    selector: &Selector,
    wanted: &Move,
    receipt: &mut Receipt,
    sessions: &mut SessionsReport,
) -> Result<(), Failure> {
    let mut after: Option<DeviceId> = None;
    loop {
        let (registry, from) = (desk.registry.clone(), after.clone());
        let (of, which) = (tenant.clone(), selector.clone());
        let found = blocking(move || registry.select_devices(&of, &which, from.as_ref(), CHUNK)).await?;
        let Some(last) = found.last() else {
            return Ok(());
        };
        after = Some(last.id.clone());
        let (registry, of, by, how) = (
            desk.registry.clone(),
            tenant.clone(),
            actor.clone(),
            wanted.clone(),
        );
        let ids: Vec<DeviceId> = found
            .into_iter()
            .filter(|d| has_move(d.state, wanted))
            .map(|d| d.id)
            .collect();
        if ids.is_empty() {
            continue;
        }
        let committed = blocking(move || registry.move_devices(by, of, ids, how)).await?;
        let part = desk.sessions_of(committed.revision, &committed.changes).await;
        sessions.add(part);
        receipt.revision = committed.revision;
        receipt.nodes = desk.nodes(*sessions);
        if let Some(devices) = &mut receipt.devices {
            devices.moved += committed.value.moved;
        }
        desk.keep(receipt.clone()).await?;
    }
}
