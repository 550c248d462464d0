//! How the service stands, with the cure, for people and programs.

use std::fs;
use std::path::Path;

use countersign_identity::{DeviceId, Timestamp};
use serde::{Deserialize, Serialize};

use super::STATUS;
use crate::fault::EnrolFault;

/// Where the service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// On its way in.
    Connecting,
    /// Admitted.
    Connected,
    /// It failed, and tries again at a time that is told.
    Waiting,
    /// It was stopped.
    Stopped,
}

/// What went wrong last, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusFault {
    /// What happened.
    pub what: String,
    /// What to do.
    pub cure: Option<String>,
    /// The agent's exit code for it.
    pub exit_code: u8,
    /// When.
    pub at: Timestamp,
}

impl StatusFault {
    pub(super) fn of(fault: &EnrolFault, at: Timestamp) -> Self {
        Self::of_text(fault.to_string(), fault.exit_code(), at)
    }

    /// Of a text that may name its cure.
    pub(super) fn of_text(text: String, exit_code: u8, at: Timestamp) -> Self {
        let (what, cure) = match text.split_once("; hint: ") {
            Some((what, cure)) => (what.to_owned(), Some(cure.to_owned())),
            None => (text, None),
        };
        Self {
            what,
            cure,
            exit_code,
            at,
        }
    }
}

/// The condition of a service, as its identity folder has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The device.
    pub device: DeviceId,
    /// Where it connects: host and port.
    pub platform: String,
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// When it tries again, while it waits.
    pub retry_at: Option<Timestamp>,
    /// What went wrong last; nothing since it was connected for the first time, or again.
    pub fault: Option<StatusFault>,
    /// What cannot be written now, for one because the disk is full: messages that are handed in, the certificate that was
    /// admitted, the time, this status. It is tried again, and nothing once everything could be.
    #[serde(default)]
    pub disk_fault: Option<StatusFault>,
    /// Why the certificate could not be renewed, if the last try failed; it goes on trying.
    #[serde(default)]
    pub renewal_fault: Option<String>,
    /// The serial number of the certificate in use.
    pub certificate: String,
    /// Until when that is valid.
    pub certificate_until: Timestamp,
    /// When it is renewed; `None` if that is left to others.
    pub renewal_at: Option<Timestamp>,
    /// Where its key is.
    pub key: String,
    /// Messages that wait.
    pub waiting: u64,
    /// Messages that were delivered since the start.
    pub delivered: u64,
    /// Messages that the platform would not have since the start; they are laid aside in `queue/refused`.
    pub refused: u64,
}

impl Status {
    /// What the folder says.
    ///
    /// # Errors
    /// A text with its cure.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join(STATUS);
        let text = fs::read(&path).map_err(|e| {
            format!(
                "there is no status in {}: {e}; hint: countersign-agent run starts the service",
                folder.display()
            )
        })?;
        serde_json::from_slice(&text).map_err(|e| format!("{} is damaged: {e}", path.display()))
    }

    /// For people, a thought a line.
    pub fn lines(&self, now: Timestamp) -> Vec<String> {
        let mut lines = vec![match self.state {
            State::Connected => format!(
                "{}: connected to {} since {}",
                self.device, self.platform, self.since
            ),
            State::Connecting => format!(
                "{}: connecting to {} since {}",
                self.device, self.platform, self.since
            ),
            State::Waiting => match self.retry_at {
                Some(at) => format!(
                    "{}: not connected to {} since {}, tries again in {} s",
                    self.device,
                    self.platform,
                    self.since,
                    at.since(now).as_secs()
                ),
                None => format!("{}: not connected to {}", self.device, self.platform),
            },
            State::Stopped => format!("{}: stopped at {}", self.device, self.since),
        }];
        for fault in self.fault.iter().chain(&self.disk_fault) {
            lines.push(format!("fault: {} ({})", fault.what, fault.at));
            lines.extend(fault.cure.iter().map(|cure| format!("hint: {cure}")));
        }
        if let Some(fault) = &self.renewal_fault {
            let (what, cure) = fault.split_once("; hint: ").unwrap_or((fault, ""));
            lines.push(format!("fault: {what}"));
            lines.extend((!cure.is_empty()).then(|| format!("hint: {cure}")));
        }
        let renewal = match self.renewal_at {
            Some(at) => format!("renewed from {at} on"),
            None => "renewed by others".to_owned(),
        };
        lines.push(format!(
            "certificate: {} until {}, {renewal}; key {}",
            self.certificate, self.certificate_until, self.key
        ));
        lines.push(format!(
            "messages: {} wait, {} delivered, {} refused",
            self.waiting, self.delivered, self.refused
        ));
        lines
    }
}
