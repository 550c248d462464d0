//! Certificates are minted while others may write: a key in a token takes its time, or hangs, and a suspension must not
//! wait for it.
//!
//! ```text
//! decide ─▶ undone, but for what it needs ─▶ minted on the caller's thread ─▶ decide again, keep
//! ```
//!
//! A job that needs a certificate asks [`Minting`] for it and, as long as that has none, fails: the writer undoes it. It is
//! run again once there is one. So all that decides is decided in the very transaction that keeps the certificate, by the
//! same code, whatever has changed meanwhile; what is not wanted any more is thrown away, and nobody has seen it.

use std::collections::HashMap;
use std::sync::Arc;

use countersign_identity::Timestamp;
use parking_lot::Mutex;

use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// What a job needs minted, and what was minted for it. Items are numbered by the job.
pub(crate) struct Minting<M> {
    wanted: Vec<(usize, Timestamp)>,
    minted: HashMap<usize, Result<M, String>>,
}

impl<M> Minting<M> {
    pub(crate) fn new() -> Self {
        Self {
            wanted: Vec::new(),
            minted: HashMap::new(),
        }
    }

    /// Asks for an item, dated `at`. Whether it is there.
    pub(crate) fn has(&mut self, item: usize, at: Timestamp) -> bool {
        let has = self.minted.contains_key(&item);
        if !has {
            self.wanted.push((item, at));
        }
        has
    }

    /// Whether this run asked for anything that is not there.
    pub(crate) fn lacks(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The one item of a job that needs no other, dated `at`.
    ///
    /// # Errors
    /// As [`Minting::take`]; [`unminted`] is to be handed on.
    pub(crate) fn one(&mut self, at: Timestamp) -> Result<M, RegistryError> {
        match self.has(0, at) {
            true => self.take(0),
            false => Err(unminted()),
        }
    }

    /// Takes an item that [`Minting::has`] said is there. A job takes only once it lacks nothing: what a run that is undone
    /// has taken is lost.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] with what minting failed of; [`unminted`] if it is not there.
    pub(crate) fn take(&mut self, item: usize) -> Result<M, RegistryError> {
        match self.minted.remove(&item) {
            Some(minted) => minted.map_err(RegistryError::Refused),
            None => Err(unminted()),
        }
    }
}

/// What a job fails with to be run again. Nobody is told it.
pub(crate) fn unminted() -> RegistryError {
    RegistryError::Refused("nothing was minted".into())
}

impl Registry {
    /// Runs a job of the writer that needs things minted: `mint` is called on this thread, with no transaction open.
    pub(crate) fn write_minting<T: Send + 'static, M: Send + 'static>(
        &self,
        mut mint: impl FnMut(usize, Timestamp) -> Result<M, String>,
        job: impl FnMut(&mut Scope<'_>, &mut Minting<M>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<Committed<T>, RegistryError> {
        let shared = Arc::new(Mutex::new((job, Minting::new())));
        loop {
            let run = shared.clone();
            let answer = self.write(move |scope| {
                let (job, minting) = &mut *run.lock();
                job(scope, minting)
            });
            let minting = &mut shared.lock().1;
            // Each round mints at least one item more, and what is minted stays: there is an end.
            let wanted = std::mem::take(&mut minting.wanted);
            if answer.is_ok() || wanted.is_empty() {
                return answer;
            }
            for (item, at) in wanted {
                let minted = mint(item, at);
                minting.minted.insert(item, minted);
            }
        }
    }

    /// The same for a job that needs one item, the first.
    pub(crate) fn write_minting_one<T: Send + 'static, M: Send + 'static>(
        &self,
        mint: impl FnOnce(Timestamp) -> Result<M, String>,
        job: impl FnMut(&mut Scope<'_>, &mut Minting<M>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<Committed<T>, RegistryError> {
        let mut mint = Some(mint);
        let mint = move |_, at| match mint.take() {
            Some(mint) => mint(at),
            None => Err("it was minted already".into()),
        };
        self.write_minting(mint, job)
    }
}
