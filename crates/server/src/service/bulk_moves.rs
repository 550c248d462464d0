//! Bulk moves: all devices that a selector finds, in small transactions, under one receipt.
//!
//! The writer is held for one chunk at a time, so that a single suspension in the middle of a bulk move waits for one
//! chunk at most. The receipt is on disk before the first device is moved, and says how far it has come.

use std::time::Duration;

use countersign_identity::{DeviceId, Fingerprint, TenantId};
use countersign_policy::LifecycleState;
use countersign_policy::lifecycle::Lifecycle;
use countersign_registry::{
    Actor, BulkCount, Move, NodeReceipt, Receipt, ReceiptId, ReceiptKey, ReceiptState, Registry,
    RegistryError, Selected, Selector,
};
use serde::Serialize;
use tokio::sync::oneshot;

use super::bulk_place::Taken;
use super::receipts::{Deed, Desk, blocking, need_reason};
use super::{Service, SessionsReport};
use crate::failure::Failure;

/// Devices of one transaction: some 10 ms of the writer.
const CHUNK: u32 = 200;
/// How long it is waited, each time, before the last word of a receipt is tried to be kept again.
const AGAIN: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

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

/// What an idempotency key stands for. A time is left out: "for two hours" asked again is the same request; whether it has
/// an end at all is not.
pub(super) fn content(selector: &Selector, wanted: &Move) -> Result<Fingerprint, Failure> {
    let mut asked =
        serde_json::to_string(&(selector, &wanted.evidence)).map_err(|e| Failure::internal(e.to_string()))?;
    if wanted.until.is_some() {
        asked.push_str(" for a time");
    }
    Ok(Fingerprint::of(
        format!("{} {asked}", wanted.attempted).as_bytes(),
    ))
}

impl Service {
    /// What a bulk move would do: how many, and the first `limit` after `after`.
    ///
    /// # Errors
    /// [`Failure`] if it names nothing, or makes no sense.
    pub async fn plan_moves(
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
        let (registry, tenant, selector) = (self.registry.clone(), tenant.clone(), selector.clone());
        let (wanted, after) = (wanted.clone(), after.cloned());
        blocking(move || plan(&registry, &tenant, &selector, &wanted, after.as_ref(), limit)).await
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
        let content = content(&selector, &wanted)?;
        let key = key.map(|key| ReceiptKey { key, content });
        // One that was cut short goes on under its receipt; what is done is not done again.
        if let Some(known) = self.asked_before(&tenant, key.as_ref()).await?
            && !known.is_cut_short()
        {
            return Ok(known);
        }
        let Some(place) = self.bulk.take() else {
            return Err(Failure::told(
                409,
                "another bulk move is under way; hint: countersign receipt list shows it; wait for it",
            ));
        };
        // With the place taken nobody else begins it, or goes on with it, any more.
        let before = self.asked_before(&tenant, key.as_ref()).await?;
        let desk = self.desk();
        let (mut receipt, key) = match before {
            Some(known) if !known.is_cut_short() => return Ok(known),
            // The key is kept beside it already.
            Some(known) => (known, None),
            None => {
                let deed = Deed {
                    actor: actor.clone(),
                    action: format!("device.{}", wanted.attempted.name()),
                    tenant: Some(tenant.clone()),
                    subject: selector.to_string(),
                    reason: wanted.reason.clone(),
                };
                let (registry, desk, of) = (self.registry.clone(), desk.clone(), tenant.clone());
                let (which, how) = (selector.clone(), wanted.clone());
                let new = blocking(move || {
                    let selected = plan(&registry, &of, &which, &how, None, 1)?.selected;
                    Ok(Receipt {
                        devices: Some(BulkCount {
                            selected,
                            ..BulkCount::default()
                        }),
                        ..desk.receipt(deed, registry.revision()?, SessionsReport::default())?
                    })
                });
                (new.await?, key)
            }
        };
        receipt.state = ReceiptState::Running;
        receipt.note = None;
        place.is_for(&receipt.id);
        let work = Work::new(desk, actor, tenant, selector, wanted, receipt);
        // From here on it is nobody's request: whoever asked may go away at any time.
        let (begun, answer) = oneshot::channel();
        tokio::spawn(supervise(place, work, key, begun));
        answer
            .await
            .map_err(|_| Failure::internal("the bulk move ended before it began"))?
    }

    /// The receipt that was given for a key.
    async fn asked_before(
        &self,
        tenant: &TenantId,
        key: Option<&ReceiptKey>,
    ) -> Result<Option<Receipt>, Failure> {
        let Some(key) = key.cloned() else {
            return Ok(None);
        };
        let tenant = tenant.clone();
        let found = self.told_apart(move |r| Ok(r.receipt_of_key(&tenant, &key)?.into_iter().collect()));
        Ok(found.await?.into_iter().next())
    }

    /// A receipt by its id.
    ///
    /// # Errors
    /// [`Failure`] if there is none, or none any more.
    pub async fn receipt(&self, id: ReceiptId) -> Result<Receipt, Failure> {
        let gone = RegistryError::NoReceipt(id.to_string());
        let found = self.told_apart(move |r| Ok(vec![r.receipt(&id)?])).await?;
        found.into_iter().next().ok_or_else(|| gone.into())
    }

    /// The newest receipts, newest first, of one tenant if one is named.
    ///
    /// # Errors
    /// [`Failure`] if they cannot be read.
    pub async fn receipts(&self, tenant: Option<TenantId>, limit: u32) -> Result<Vec<Receipt>, Failure> {
        self.told_apart(move |r| r.receipts(tenant.as_ref(), limit)).await
    }

    /// Reads receipts, and says of none that it runs if nothing runs: its last word may never have come to the disk, and
    /// whoever follows it would do so for ever.
    async fn told_apart(
        &self,
        read: impl Fn(&Registry) -> Result<Vec<Receipt>, RegistryError> + Send + 'static,
    ) -> Result<Vec<Receipt>, Failure> {
        let (registry, bulk) = (self.registry.clone(), self.bulk.clone());
        blocking(move || {
            loop {
                let holding = bulk.holding();
                let mut found = read(&registry)?;
                let is_stale = |r: &Receipt| r.state == ReceiptState::Running && !holding.runs(&r.id);
                // A move that began or ended meanwhile: it is not known what was read.
                if found.iter().any(is_stale) && bulk.holding() != holding {
                    continue;
                }
                for receipt in found.iter_mut().filter(|r| is_stale(r)) {
                    receipt.cut_short("it ended without a last word");
                }
                return Ok(found);
            }
        })
        .await
    }
}

/// What a move of these devices would do. It waits for the registry's reader.
fn plan(
    registry: &Registry,
    tenant: &TenantId,
    selector: &Selector,
    wanted: &Move,
    after: Option<&DeviceId>,
    limit: u32,
) -> Result<BulkPlan, RegistryError> {
    registry.check_selector(tenant, selector)?;
    let counts = registry.count_selected(tenant, selector)?;
    let selected = counts.iter().map(|(_, n)| n).sum();
    let moves = counts
        .iter()
        .filter(|(state, _)| has_move(*state, wanted))
        .map(|(_, n)| n)
        .sum();
    let devices = registry.select_devices(tenant, selector, after, limit)?;
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

/// Keeps the receipt, answers with it, and has the move run to its end, or to its fault.
async fn supervise(
    place: Taken,
    work: Work,
    key: Option<ReceiptKey>,
    begun: oneshot::Sender<Result<Receipt, Failure>>,
) {
    let (desk, receipt) = (work.desk.clone(), work.receipt.clone());
    let (registry, first) = (desk.registry.clone(), receipt.clone());
    let kept = blocking(move || registry.keep_receipt(first, key)).await;
    let is_kept = kept.is_ok();
    let id = receipt.id.clone();
    let _ = begun.send(kept.map(|()| receipt));
    if is_kept && let Err(e) = tokio::spawn(work.run()).await {
        tracing::error!(receipt = %id, cause = %e, "a bulk move failed");
        let registry = desk.registry.clone();
        match blocking(move || registry.receipt(&id)).await {
            Ok(mut receipt) => {
                receipt.cut_short("it was cut short by a fault of the program, which is in the log");
                keep_at_last(&desk, receipt).await;
            }
            Err(e) => tracing::error!(cause = %e, "the receipt of a bulk move cannot be read"),
        }
    }
    drop(place);
}

/// The last word of a receipt is worth some tries: the disk may be full for a moment.
async fn keep_at_last(desk: &Desk, receipt: Receipt) {
    let mut waits = AGAIN.into_iter();
    while let Err(e) = desk.keep(receipt.clone()).await {
        tracing::error!(receipt = %receipt.id, cause = %e, "the receipt of a bulk move cannot be kept");
        match waits.next() {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return,
        }
    }
}

/// A bulk move under way.
struct Work {
    desk: Desk,
    actor: Actor,
    tenant: TenantId,
    selector: Selector,
    wanted: Move,
    receipt: Receipt,
    /// What this node did, with what it had done before it was cut short.
    sessions: SessionsReport,
    /// What other nodes had done before.
    others: Vec<NodeReceipt>,
    /// Devices that this pass found without the move.
    without_move: u64,
    /// Of these, devices that were moved before it was cut short, and are found again.
    found_again: u64,
}

impl Work {
    fn new(
        desk: Desk,
        actor: Actor,
        tenant: TenantId,
        selector: Selector,
        wanted: Move,
        receipt: Receipt,
    ) -> Self {
        let (sessions, others) = desk.said_before(receipt.nodes.clone());
        // By a state, a device is not found again: every move leads to another.
        let found_again = match (selector.state, receipt.devices) {
            (None, Some(devices)) => devices.moved,
            _ => 0,
        };
        Self {
            desk,
            actor,
            tenant,
            selector,
            wanted,
            receipt,
            sessions,
            others,
            without_move: 0,
            found_again,
        }
    }

    /// Chunk by chunk, to the end or to the first failure; the receipt is kept after each.
    async fn run(mut self) {
        let failed = self.chunks().await.err();
        let selected = self.receipt.devices.map_or(0, |d| d.selected);
        let receipt = &mut self.receipt;
        receipt.note = None;
        receipt.state = match self.sessions.open {
            0 => ReceiptState::Complete,
            _ => ReceiptState::Partial,
        };
        match failed {
            Some(e) => receipt.cut_short(&format!("it was cut short: {e}")),
            // What is partial and has a note goes on when it is asked for again: this is at its end.
            None if receipt.state == ReceiptState::Partial => {}
            None if selected == 0 => {
                receipt.note = Some("no device was selected: nothing was moved".into());
            }
            None if receipt.nodes.is_empty() => {
                receipt.note = Some("no node was live: there were no sessions to end".into());
            }
            None => {}
        }
        keep_at_last(&self.desk, self.receipt).await;
    }

    async fn chunks(&mut self) -> Result<(), Failure> {
        let mut after: Option<DeviceId> = None;
        loop {
            let (registry, from) = (self.desk.registry.clone(), after.clone());
            let (of, which) = (self.tenant.clone(), self.selector.clone());
            let found = blocking(move || registry.select_devices(&of, &which, from.as_ref(), CHUNK)).await?;
            let Some(last) = found.last() else {
                return Ok(());
            };
            after = Some(last.id.clone());
            let (movable, rest): (Vec<Selected>, Vec<Selected>) =
                found.into_iter().partition(|d| has_move(d.state, &self.wanted));
            self.count(0, rest.len());
            if movable.is_empty() {
                continue;
            }
            let ids = movable.into_iter().map(|d| d.id).collect();
            let (registry, of) = (self.desk.registry.clone(), self.tenant.clone());
            let (by, how) = (self.actor.clone(), self.wanted.clone());
            let committed = blocking(move || registry.move_devices(by, of, ids, how)).await?;
            self.count(committed.value.moved, committed.value.refused.len());
            self.receipt.revision = committed.revision;
            let part = self
                .desk
                .sessions_of(committed.revision, &committed.changes)
                .await;
            self.sessions.add(part);
            self.receipt.nodes = self.desk.nodes(self.sessions);
            self.receipt.nodes.extend(self.others.iter().cloned());
            self.desk.keep(self.receipt.clone()).await?;
        }
    }

    /// Refusals are counted as they occur: what was not come to was not refused.
    fn count(&mut self, moved: u64, without_move: usize) {
        self.without_move += without_move as u64;
        if let Some(devices) = &mut self.receipt.devices {
            devices.moved += moved;
            devices.refused = self.without_move.saturating_sub(self.found_again);
        }
    }
}
