//! What happened, what to do, and a code: as C reads it.

use std::any::Any;
use std::ffi::{CString, c_int};

use countersign_device::service::StatusFault;
use countersign_device::{EnrolFault, IdentityFault, QueueFault};

use crate::boundary::{CS_FAILED, CS_IDENTITY, CS_NOT_PERMITTED, CS_QUEUE_FULL, CS_USAGE};

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: c_int,
    pub(crate) what: CString,
    pub(crate) cure: Option<CString>,
}

impl Fault {
    pub(crate) fn new(code: c_int, what: &str, cure: Option<&str>) -> Self {
        Self {
            code,
            what: c_text(what),
            cure: cure.map(c_text),
        }
    }

    /// Of a text that may name its cure.
    fn of_text(code: c_int, text: &str) -> Self {
        match text.split_once("; hint: ") {
            Some((what, cure)) => Self::new(code, what, Some(cure)),
            None => Self::new(code, text, None),
        }
    }

    pub(crate) fn usage(what: &str, cure: &str) -> Self {
        Self::new(CS_USAGE, what, Some(cure))
    }

    /// What ended a call or the service, and never should.
    pub(crate) fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("it says nothing");
        Self::new(
            CS_FAILED,
            &format!("a fault of this library: {text}"),
            Some("report it, with what it wrote to standard error; messages that wait are on disk"),
        )
    }
}

impl From<&StatusFault> for Fault {
    fn from(fault: &StatusFault) -> Self {
        Self::new(c_int::from(fault.exit_code), &fault.what, fault.cure.as_deref())
    }
}

impl From<EnrolFault> for Fault {
    fn from(fault: EnrolFault) -> Self {
        Self::of_text(c_int::from(fault.exit_code()), &fault.to_string())
    }
}

impl From<IdentityFault> for Fault {
    fn from(fault: IdentityFault) -> Self {
        EnrolFault::from(fault).into()
    }
}

impl From<QueueFault> for Fault {
    fn from(fault: QueueFault) -> Self {
        let text = fault.to_string();
        match fault {
            // Its own cure speaks of the agent's command line.
            QueueFault::Full { .. } => Self::new(
                CS_QUEUE_FULL,
                text.split("; hint: ").next().unwrap_or(&text),
                Some(
                    "the platform is away, cs_status_read tells why: keep the message and try later, or open with a larger queue",
                ),
            ),
            QueueFault::Topic(..) => Self::new(
                CS_USAGE,
                &text,
                Some("a topic to publish to has no + and no #; NULL is telemetry of this device"),
            ),
            QueueFault::TooLarge { .. } => Self::of_text(CS_NOT_PERMITTED, &text),
            QueueFault::Disk { .. } => Self::of_text(CS_IDENTITY, &text),
        }
    }
}

/// A text for C, which ends at the first zero octet; ours have none.
pub(crate) fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cure_is_apart_and_a_full_queue_has_its_own() {
        let fault = Fault::of_text(7, "refused; hint: ask there");
        assert_eq!(fault, Fault::new(7, "refused", Some("ask there")));
        assert_eq!(Fault::of_text(9, "cut").cure, None);
        let full = Fault::from(QueueFault::Full {
            messages: 3,
            bytes: 5,
        });
        assert_eq!(full.code, CS_QUEUE_FULL);
        assert!(!format!("{full:?}").contains("--queue"), "{full:?}");
        assert_eq!(c_text("a\0b").as_bytes(), "a\u{fffd}b".as_bytes());
    }
}
