//! Receipts: whoever cuts sessions off is told in writing how it went, and can ask again later.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::TenantId;
use countersign_registry::{
    Actor, Change, Committed, NodeReceipt, Receipt, ReceiptId, ReceiptState, Registry, RegistryError,
};
use serde_json::{Value, json};

use super::cutoffs::{Cutoffs, sessions_of};
use super::{Service, SessionsReport};
use crate::failure::Failure;

/// Beyond the drain timeout: how much later than its deadline a connection may be looked at (two ticks of the wheel),
/// and some time to run.
const CLOSE_MARGIN: Duration = Duration::from_secs(1);

/// A change as its receipt names it.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    pub(crate) actor: Actor,
    /// As in the audit, such as `device.suspend`.
    pub(crate) action: String,
    pub(crate) tenant: Option<TenantId>,
    pub(crate) subject: String,
    pub(crate) reason: String,
}

/// What a change did to live sessions.
#[derive(Debug, Clone)]
pub struct Told {
    /// In numbers.
    pub sessions: SessionsReport,
    /// In writing; on disk.
    pub receipt: Receipt,
}

impl Told {
    /// Adds it to an answer.
    pub fn into(self, mut answer: Value) -> Value {
        answer["sessions"] = json!(self.sessions);
        answer["receipt"] = json!(self.receipt);
        answer
    }
}

/// Writes receipts; shared with what goes on after a request is gone.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) registry: Arc<Registry>,
    pub(super) cutoffs: Arc<Cutoffs>,
    /// The node of this process, if its gateway is open.
    node: Option<String>,
    patience: Duration,
    closes_within: Duration,
}

impl Desk {
    /// Waits for the sessions that a committed change ends.
    pub(super) async fn sessions_of(&self, revision: u64, changes: &[Change]) -> SessionsReport {
        sessions_of(&self.cutoffs, revision, changes, self.patience).await
    }

    /// What this node has to say; nothing if it is not live.
    pub(super) fn nodes(&self, sessions: SessionsReport) -> Vec<NodeReceipt> {
        let node = |name: &String| NodeReceipt {
            node: name.clone(),
            confirmed: sessions.open == 0,
            ended: sessions.ended as u64,
            open: sessions.open as u64,
            kept: sessions.kept as u64,
            worst_ms: sessions.took_ms,
            over_by: (sessions.open > 0).then(|| self.registry.now().plus(self.closes_within)),
        };
        self.node.iter().map(node).collect()
    }

    /// What this node had said before, to go on from; and what others had, which stays. What was open and is over by now
    /// has ended.
    pub(super) fn said_before(&self, nodes: Vec<NodeReceipt>) -> (SessionsReport, Vec<NodeReceipt>) {
        let (own, others): (Vec<_>, Vec<_>) = nodes
            .into_iter()
            .partition(|n| self.node.as_ref() == Some(&n.node));
        let mut sessions = SessionsReport::default();
        for n in own {
            let is_over = n.over_by.is_some_and(|over_by| over_by <= self.registry.now());
            let (ended, open) = if is_over {
                (n.ended + n.open, 0)
            } else {
                (n.ended, n.open)
            };
            sessions.add(SessionsReport {
                ended: usize::try_from(ended).unwrap_or(usize::MAX),
                open: usize::try_from(open).unwrap_or(usize::MAX),
                kept: usize::try_from(n.kept).unwrap_or(usize::MAX),
                took_ms: n.worst_ms,
            });
        }
        (sessions, others)
    }

    /// A receipt of a change that was committed with `revision`. It is not kept yet.
    pub(super) fn receipt(
        &self,
        deed: Deed,
        revision: u64,
        sessions: SessionsReport,
    ) -> Result<Receipt, RegistryError> {
        Ok(Receipt {
            id: ReceiptId::random()?,
            revision,
            at: self.registry.now(),
            tenant: deed.tenant,
            actor: deed.actor.0,
            action: deed.action,
            subject: deed.subject,
            reason: deed.reason,
            state: if sessions.open == 0 {
                ReceiptState::Complete
            } else {
                ReceiptState::Partial
            },
            nodes: self.nodes(sessions),
            devices: None,
            note: self
                .node
                .is_none()
                .then(|| "no node was live: there were no sessions to end".into()),
        })
    }

    async fn run<T: Send + 'static>(
        self,
        deed: Deed,
        run: impl FnOnce(&Registry) -> Result<Committed<T>, RegistryError> + Send + 'static,
    ) -> Result<(T, Told), Failure> {
        let registry = self.registry.clone();
        let committed = blocking(move || run(&registry)).await?;
        let sessions = self.sessions_of(committed.revision, &committed.changes).await;
        let receipt = self
            .keep(self.receipt(deed, committed.revision, sessions)?)
            .await?;
        Ok((committed.value, Told { sessions, receipt }))
    }

    /// Keeps a receipt.
    pub(super) async fn keep(&self, receipt: Receipt) -> Result<Receipt, Failure> {
        let (registry, kept) = (self.registry.clone(), receipt.clone());
        blocking(move || registry.keep_receipt(kept, None))
            .await
            .map_err(|e| Failure {
                message: format!(
                    "the change of revision {} is made and in force, but its receipt cannot be kept: {}",
                    receipt.revision, e.message
                ),
                ..e
            })?;
        Ok(receipt)
    }
}

/// Runs off the async threads what waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|e| Failure::internal(format!("the change failed: {e}")))?
        .map_err(Failure::from)
}

/// What cannot be taken back, lets a device out of quarantine, or is about many, says why.
pub(super) fn need_reason(what: &str, reason: &str) -> Result<(), Failure> {
    if reason.trim().is_empty() {
        return Err(Failure::invalid(format!(
            "{what} needs a reason, for the audit; hint: --reason TEXT"
        )));
    }
    Ok(())
}

impl Service {
    pub(super) fn desk(&self) -> Desk {
        Desk {
            registry: self.registry.clone(),
            cutoffs: self.cutoffs.clone(),
            node: self.gateway().map(|_| self.config.server.node.clone()),
            patience: Duration::from_secs(self.config.receipts.wait_s),
            closes_within: Duration::from_secs(self.config.limits.drain_timeout_s) + CLOSE_MARGIN,
        }
    }

    /// Makes a change, waits for the sessions that it ends, and keeps the receipt. It goes on to its end even if whoever
    /// asked goes away.
    pub(crate) async fn deed<T: Send + 'static>(
        &self,
        deed: Deed,
        run: impl FnOnce(&Registry) -> Result<Committed<T>, RegistryError> + Send + 'static,
    ) -> Result<(T, Told), Failure> {
        tokio::spawn(self.desk().run(deed, run))
            .await
            .map_err(|e| Failure::internal(format!("the change failed: {e}")))?
    }

    /// The receipt of what ended sessions without a change of facts.
    pub(super) async fn told(&self, deed: Deed, sessions: SessionsReport) -> Result<Told, Failure> {
        let desk = self.desk();
        let by = desk.clone();
        let receipt = blocking(move || by.receipt(deed, by.registry.revision()?, sessions)).await?;
        let receipt = desk.keep(receipt).await?;
        Ok(Told { sessions, receipt })
    }
}
