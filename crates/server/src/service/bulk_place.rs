//! The place of the one bulk move: who has it, so that a receipt that only says `running` is told from one of a move that
//! runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use countersign_registry::ReceiptId;

/// Who had the place at a moment. Two that are equal: nothing began or ended in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holding {
    changes: u64,
    is_taken: bool,
    receipt: Option<ReceiptId>,
}

impl Holding {
    /// Whether the move with this receipt runs.
    pub(super) fn runs(&self, id: &ReceiptId) -> bool {
        self.receipt.as_ref() == Some(id)
    }

    /// Whether any runs, or is about to.
    #[cfg(test)]
    pub(super) fn has_receipt(&self) -> bool {
        self.receipt.is_some()
    }
}

/// The place.
#[derive(Default)]
pub(super) struct BulkPlace(Mutex<Holding>);

impl BulkPlace {
    fn lock(&self) -> MutexGuard<'_, Holding> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who has it.
    pub(super) fn holding(&self) -> Holding {
        self.lock().clone()
    }

    /// Takes it, if it is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<Taken> {
        let mut holding = self.lock();
        if holding.is_taken {
            return None;
        }
        holding.is_taken = true;
        holding.changes += 1;
        Some(Taken(self.clone()))
    }
}

/// Frees the place when the move ends, however it ends.
pub(super) struct Taken(Arc<BulkPlace>);

impl Taken {
    /// Says which move it is taken for; before its receipt says that it runs.
    pub(super) fn is_for(&self, receipt: &ReceiptId) {
        let mut holding = self.0.lock();
        holding.receipt = Some(receipt.clone());
        holding.changes += 1;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut holding = self.0.lock();
        holding.is_taken = false;
        holding.receipt = None;
        holding.changes += 1;
    }
}
