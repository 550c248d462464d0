//! Time as the registry keeps it: the newest time that is known to have been. While the clock is behind that mark
//! nothing is minted: a certificate, a list or an answer with a date from the past would be in force when it should not
//! be, or would undo a newer one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use countersign_identity::{Clock, Synchronisation, Timestamp};
use parking_lot::RwLock;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::change::Actor;
use crate::error::RegistryError;
use crate::store::Registry;
use crate::writer::{Committed, Scope};

/// The mark is not written more often than this.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// What the kernel says, which the time service told it (`adjtimex(2)`; nothing is adjusted).
    fn synchronisation(&self) -> Synchronisation {
        kernel_synchronisation()
    }
}

#[allow(unsafe_code, reason = "neither std nor rustix has adjtimex")]
fn kernel_synchronisation() -> Synchronisation {
    // SAFETY: all of `timex` are integers, so zeroes are a value of it; `modes` 0 asks and changes nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `timex` to where it is told, and keeps no pointer.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Synchronisation::Unknown(format!(
            "the kernel does not say: {}",
            std::io::Error::last_os_error()
        ));
    }
    // TIME_ERROR is said for other reasons too, such as a lost pulse; both must be fine.
    if state == libc::TIME_ERROR || timex.status & libc::STA_UNSYNC != 0 {
        Synchronisation::Unsynchronised
    } else {
        Synchronisation::Synchronised
    }
}

/// When nothing is minted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockRules {
    /// How far the clock may be behind the mark. Default 60 s: a time service may set it back a little.
    pub tolerance: Duration,
    /// Whether the clock must also be known to be synchronised. Default no.
    pub require_sync: bool,
}

impl Default for ClockRules {
    fn default() -> Self {
        Self {
            tolerance: Duration::from_secs(60),
            require_sync: false,
        }
    }
}

/// How the clock stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockView {
    /// What it says.
    pub now: Timestamp,
    /// The newest time that is known to have been.
    pub high_water: Timestamp,
    /// How far it is behind that, in milliseconds; 0 if it is not.
    pub behind_ms: u64,
    /// How far it may be behind, in milliseconds.
    pub tolerance_ms: u64,
    /// `synchronised`, `unsynchronised` or `unknown`.
    pub synchronisation: String,
    /// Whether it must be synchronised.
    pub require_sync: bool,
    /// Why nothing is minted now, if that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// When something was minted that is kept, to be handed out again: a list, the certificate of a key that signs answers.
/// [`Registry::still_holds`] says whether it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MintedAt {
    /// The time it was minted by.
    pub at: Timestamp,
    resets: u64,
}

/// The clock, and the mark.
pub(crate) struct Timekeeper {
    clock: Arc<dyn Clock>,
    mark: AtomicI64,
    /// How often the mark was lowered by this process.
    resets: AtomicU64,
    rules: RwLock<ClockRules>,
    refused_behind: AtomicU64,
    refused_unsynchronised: AtomicU64,
}

impl Timekeeper {
    /// Reads the mark.
    pub(crate) fn load(clock: Arc<dyn Clock>, db: &Connection) -> Result<Self, RegistryError> {
        let mark = db.query_row("SELECT high_water FROM clock", [], |r| r.get(0))?;
        Ok(Self {
            clock,
            mark: AtomicI64::new(mark),
            resets: AtomicU64::new(0),
            rules: RwLock::default(),
            refused_behind: AtomicU64::new(0),
            refused_unsynchronised: AtomicU64::new(0),
        })
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn mark(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.mark.load(Ordering::Acquire))
    }

    /// After the lower one is on disk.
    pub(crate) fn lower_mark(&self, to: Timestamp) {
        self.mark.store(to.unix_ms(), Ordering::Release);
        self.resets.fetch_add(1, Ordering::AcqRel);
    }

    fn check(&self, now: Timestamp) -> Result<(), RegistryError> {
        let (mark, rules) = (self.mark(), *self.rules.read());
        if mark.since(now) > rules.tolerance {
            return Err(RegistryError::ClockBehind { now, mark });
        }
        if rules.require_sync {
            match self.clock.synchronisation() {
                Synchronisation::Synchronised => {}
                Synchronisation::Unsynchronised => {
                    return Err(RegistryError::ClockUnsynchronised(
                        "the kernel says that nothing keeps the clock right".into(),
                    ));
                }
                Synchronisation::Unknown(why) => return Err(RegistryError::ClockUnsynchronised(why)),
            }
        }
        Ok(())
    }

    /// Refusals are counted.
    fn allow_minting(&self, now: Timestamp) -> Result<(), RegistryError> {
        let checked = self.check(now);
        match &checked {
            Err(RegistryError::ClockBehind { .. }) => &self.refused_behind,
            Err(_) => &self.refused_unsynchronised,
            Ok(()) => return checked,
        }
        .fetch_add(1, Ordering::Relaxed);
        checked
    }
}

impl Scope<'_> {
    /// The time to mint by.
    ///
    /// # Errors
    /// [`RegistryError::ClockBehind`], [`RegistryError::ClockUnsynchronised`]: nothing is to be minted.
    pub(crate) fn minting_time(&self) -> Result<Timestamp, RegistryError> {
        self.time.allow_minting(self.now)?;
        Ok(self.now)
    }

    /// Moves the mark up to now.
    pub(crate) fn keep_time(&mut self) -> Result<(), RegistryError> {
        if self.now.since(self.time.mark()) < MARK_EVERY {
            return Ok(());
        }
        self.tx
            .prepare_cached("UPDATE clock SET high_water = max(high_water, ?)")?
            .execute([self.now.unix_ms()])?;
        // In memory before it is on disk: it is a time that has been, whatever becomes of the commit.
        self.time.mark.fetch_max(self.now.unix_ms(), Ordering::AcqRel);
        Ok(())
    }
}

impl Registry {
    /// The clock that this registry was opened with.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        self.time.clock()
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        self.time.now()
    }

    /// Sets when nothing is minted, from now on.
    pub fn set_clock_rules(&self, rules: ClockRules) {
        *self.time.rules.write() = rules;
    }

    /// The time to mint by: whoever signs anything with a date takes it from here.
    ///
    /// # Errors
    /// [`RegistryError::ClockBehind`], [`RegistryError::ClockUnsynchronised`]: nothing is to be minted.
    pub fn minting_time(&self) -> Result<Timestamp, RegistryError> {
        let now = self.now();
        self.time.allow_minting(now)?;
        Ok(now)
    }

    /// The same for what is to be kept and handed out again.
    ///
    /// # Errors
    /// As for [`Registry::minting_time`].
    pub fn minted_at(&self) -> Result<MintedAt, RegistryError> {
        // Before the time is taken: what a reset overtakes does not hold.
        let resets = self.time.resets.load(Ordering::Acquire);
        let at = self.minting_time()?;
        Ok(MintedAt { at, resets })
    }

    /// Whether what was minted then may still be handed out as far as the clock goes. Not if it is of a time to come, for then
    /// the clock had been ahead: nobody would believe it, or its date would hide what is minted from now on. And not if the
    /// clock was reset since.
    pub fn still_holds(&self, minted: MintedAt) -> bool {
        let tolerance = self.time.rules.read().tolerance;
        minted.resets == self.time.resets.load(Ordering::Acquire) && minted.at <= self.now().plus(tolerance)
    }

    /// How often minting was refused because the clock was behind, and because it was not known to be synchronised.
    pub fn minting_refused(&self) -> [(&'static str, u64); 2] {
        [
            ("clock-behind", self.time.refused_behind.load(Ordering::Relaxed)),
            (
                "clock-unsynchronised",
                self.time.refused_unsynchronised.load(Ordering::Relaxed),
            ),
        ]
    }

    /// How the clock stands.
    pub fn clock_view(&self) -> ClockView {
        let (now, mark, rules) = (self.now(), self.time.mark(), *self.time.rules.read());
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        ClockView {
            now,
            high_water: mark,
            behind_ms: ms(mark.since(now)),
            tolerance_ms: ms(rules.tolerance),
            synchronisation: self.clock().synchronisation().name().into(),
            require_sync: rules.require_sync,
            refusal: self.time.check(now).err().map(|e| e.to_string()),
        }
    }

    /// Moves the mark up to now. To be called at every minute, so that the mark is never far behind.
    ///
    /// # Errors
    /// [`RegistryError`] if it cannot be written.
    pub fn keep_time(&self) -> Result<Committed<()>, RegistryError> {
        self.write(|scope| scope.keep_time())
    }

    /// Takes the clock's time for right although it is behind the mark: after the clock had been ahead by mistake. What
    /// was minted meanwhile keeps its dates; what is kept to be handed out again is minted anew ([`Registry::still_holds`]). The
    /// mark as it was.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] without a reason.
    pub fn reset_clock(&self, actor: Actor, reason: String) -> Result<Committed<Timestamp>, RegistryError> {
        let committed = self.write(move |scope| {
            if reason.trim().is_empty() {
                return Err(RegistryError::Refused(
                    "why is the earlier time the wrong one? hint: --reason TEXT, for the audit".into(),
                ));
            }
            let (from, to) = (scope.time.mark(), scope.now);
            scope
                .tx
                .execute("UPDATE clock SET high_water = ?", params![to.unix_ms()])?;
            let detail = json!({ "from": from.to_string(), "to": to.to_string(), "reason": reason });
            scope.audit(&actor, "clock.reset", "", "", &detail)?;
            Ok((from, to))
        })?;
        let (from, to) = committed.value;
        self.time.lower_mark(to);
        Ok(Committed {
            value: from,
            revision: committed.revision,
            changes: committed.changes,
        })
    }
}
