//! `ca.toml`, the CA's own configuration. Every key has a default, unknown keys are refused, units are in the names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_factory::{CERTIFICATES_PER_DEVICE_MAX, Profile, ProfileKind};
use serde::{Deserialize, Serialize};

use super::error::CaError;
use crate::config::LogConfig;

/// The file's name.
pub const FILE: &str = "ca.toml";

/// How the CA is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The unix socket; `ca.sock` in the CA's folder if it is not named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The user ids that may ask, besides the CA's own.
    pub control_uids: Vec<u32>,
    /// Connections at once.
    pub connections_max: usize,
    /// How long one request or answer may take to come or go, in seconds.
    pub transfer_timeout_s: u64,
    /// For so long a repeated request is answered with the same certificate, whatever its renewal point, in hours.
    pub replay_window_hours: u64,
    /// For so long after its expiry a certificate is still evidence for its device's next one, in days.
    pub renewal_lane_days: u64,
    /// Certificates of one device in force at once; by renewal, also those that have ended and are not expired count.
    pub certificates_per_device_max: u32,
    /// The longest that a revocation list or an OCSP answer is good, in hours.
    pub next_update_hours_max: u32,
    /// The log.
    pub log: LogConfig,
    /// What certificates hold.
    pub profiles: Vec<CaProfile>,
}

/// A profile, and what leads to it besides a batch and a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct CaProfile {
    /// What its certificates hold.
    #[serde(flatten)]
    pub profile: Profile,
    /// The factory profiles whose certificates are evidence for one of this profile; `None`: any of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<Vec<String>>,
}

/// By hand, for `flatten` and the refusal of unknown keys exclude each other.
impl TryFrom<toml::Table> for CaProfile {
    type Error = toml::de::Error;
    fn try_from(mut table: toml::Table) -> Result<Self, Self::Error> {
        let follows = table.remove("follows").map(toml::Value::try_into).transpose()?;
        let profile = toml::Value::Table(table).try_into()?;
        Ok(Self { profile, follows })
    }
}

impl From<Profile> for CaProfile {
    fn from(profile: Profile) -> Self {
        let follows = None;
        Self { profile, follows }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: None,
            control_uids: Vec::new(),
            connections_max: 32,
            transfer_timeout_s: 10,
            replay_window_hours: 24,
            renewal_lane_days: 0,
            certificates_per_device_max: CERTIFICATES_PER_DEVICE_MAX,
            next_update_hours_max: 168,
            log: LogConfig::default(),
            profiles: Profile::built_in().into_iter().map(CaProfile::from).collect(),
        }
    }
}

impl Settings {
    /// Reads and checks the file of a CA's folder.
    ///
    /// # Errors
    /// [`CaError`] with its cure.
    pub fn load(folder: &Path) -> Result<Self, CaError> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(|e| {
            CaError::NotFound(format!(
                "cannot read {}: {e}; hint: countersign ca init --data {}",
                path.display(),
                folder.display()
            ))
        })?;
        let wrong = |what: &dyn std::fmt::Display| {
            CaError::Invalid(format!(
                "{}: {what}; hint: docs/ca-role.md lists the keys",
                path.display()
            ))
        };
        let settings: Self = toml::from_str(&text).map_err(|e| wrong(&e.to_string().trim_end()))?;
        if let Some(what) = settings
            .profiles
            .iter()
            .find_map(|p| p.profile.check().and_then(|()| settings.check_follows(p)).err())
        {
            return Err(wrong(&what));
        }
        let names: std::collections::HashSet<_> = settings.profiles.iter().map(|p| &p.profile.name).collect();
        if names.len() != settings.profiles.len() || names.is_empty() {
            return Err(wrong(&"there is no profile, or two have one name"));
        }
        let positive = [
            ("connections_max", settings.connections_max as u64),
            ("transfer_timeout_s", settings.transfer_timeout_s),
            (
                "certificates_per_device_max",
                settings.certificates_per_device_max.into(),
            ),
            ("next_update_hours_max", settings.next_update_hours_max.into()),
        ];
        match positive.into_iter().find(|(_, n)| *n == 0) {
            Some((key, _)) => Err(wrong(&format!("{key} is 0, so nothing could be done"))),
            None => Ok(settings),
        }
    }

    /// Where the socket is.
    pub fn socket_in(&self, folder: &Path) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| folder.join("ca.sock"))
    }

    /// How long a transfer may take.
    pub fn transfer_timeout(&self) -> Duration {
        Duration::from_secs(self.transfer_timeout_s)
    }

    /// A profile by its name.
    ///
    /// # Errors
    /// [`CaError::NoProfile`].
    pub fn profile(&self, name: &str) -> Result<&Profile, CaError> {
        self.profiles
            .iter()
            .map(|p| &p.profile)
            .find(|p| p.name == name)
            .ok_or_else(|| CaError::NoProfile(name.chars().take(64).collect()))
    }

    /// Whether a certificate of the factory profile `from` is evidence for one of the operational profile `to`.
    pub fn may_follow(&self, to: &str, from: &str) -> bool {
        let wanted = self.profiles.iter().find(|p| p.profile.name == to);
        wanted.is_some_and(|p| match &p.follows {
            Some(follows) => follows.iter().any(|name| name == from),
            None => true,
        })
    }

    fn check_follows(&self, of: &CaProfile) -> Result<(), String> {
        let (Some(follows), name) = (&of.follows, &of.profile.name) else {
            return Ok(());
        };
        if of.profile.kind == ProfileKind::Factory {
            return Err(format!(
                "profile {name}: a factory certificate follows from a batch or a secret alone; leave out follows"
            ));
        }
        let is_factory = |name: &String| self.profile(name).is_ok_and(|p| p.kind == ProfileKind::Factory);
        match follows.iter().find(|name| !is_factory(name)) {
            Some(other) => Err(format!(
                "profile {name}: follows names {other:?}, which is no factory profile here"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_names_factory_profiles_that_it_follows_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let load = |text: &str| {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            Settings::load(folder.path()).map_err(|e| e.to_string())
        };
        let born = "[[profiles]]\nname = \"born\"\nkind = \"factory\"\n";
        let follows = |follows: &str| format!("{born}[[profiles]]\nname = \"used\"\nfollows = {follows}\n");
        let settings = load(&follows("[\"born\"]")).unwrap();
        assert!(settings.may_follow("used", "born") && !settings.may_follow("used", "other"));
        assert!(!load(&follows("[]")).unwrap().may_follow("used", "born"));
        let absent = load(&format!("{born}[[profiles]]\nname = \"used\"\n")).unwrap();
        assert!(absent.may_follow("used", "born"));
        for (text, why) in [
            (follows("[\"used\"]"), "no factory profile"),
            (follows("[\"none\"]"), "no factory profile"),
            (follows("\"born\""), "expected a sequence"),
            (follows("[]\nmore = 1"), "unknown field"),
            (format!("{born}follows = []\n"), "from a batch or a secret alone"),
        ] {
            let refused = load(&text).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        // What init writes is read back as it was meant.
        let text = toml::to_string(&Settings::default()).unwrap();
        assert_eq!(load(&text).unwrap(), Settings::default());
    }
}
