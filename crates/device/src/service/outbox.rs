//! Takes messages at any time, also while the platform is away.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::status::{Status, StatusFault};
use crate::clock::DeviceClock;
use crate::fault::NOT_TAKEN;
use crate::queue::{Queue, QueueFault};

/// Takes messages for the platform.
#[derive(Debug, Clone)]
pub struct Outbox {
    pub(super) queue: Arc<Mutex<Queue>>,
    pub(super) more: Arc<Notify>,
    /// The service's, which says what could not be kept.
    pub(super) shown: Arc<Mutex<Status>>,
    pub(super) clock: DeviceClock,
}

impl Outbox {
    /// Takes a message: it is on disk when this returns, and is delivered when the platform is there. How many wait then.
    ///
    /// # Errors
    /// [`QueueFault`]: then it was not taken.
    pub fn push(&self, topic: &str, payload: &[u8]) -> Result<usize, QueueFault> {
        let pushed = self.locked().push(topic, payload);
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match &pushed {
            Ok(waiting) => {
                shown.waiting = *waiting as u64;
                // Whatever else could not be written is not told by this.
                if shown
                    .disk_fault
                    .as_ref()
                    .is_some_and(|f| f.exit_code == NOT_TAKEN)
                {
                    shown.disk_fault = None;
                }
            }
            Err(fault @ QueueFault::Disk { .. }) => {
                let (text, code) = (fault.to_string(), fault.exit_code());
                shown.disk_fault = Some(StatusFault::of_text(text, code, self.clock.now()));
            }
            Err(_) => {}
        }
        drop(shown);
        self.more.notify_one();
        pushed
    }

    /// [`Outbox::push`] from a task: the disk is written aside, so that the other tasks of its thread go on meanwhile.
    ///
    /// # Errors
    /// As for [`Outbox::push`].
    pub async fn hand_in(&self, topic: &str, payload: &[u8]) -> Result<usize, QueueFault> {
        let (outbox, topic, payload) = (self.clone(), topic.to_owned(), payload.to_owned());
        let pushing = tokio::task::spawn_blocking(move || outbox.push(&topic, &payload));
        match pushing.await {
            Ok(pushed) => pushed,
            Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
            // The runtime ends, and with it whoever waits here.
            Err(_) => std::future::pending().await,
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.locked().len()
    }

    pub(super) fn locked(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
