//! `provision`, `install`, `prove`, `destroy`: both ends of a device's life.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_device::ending::{Ended, destroy as end};
use countersign_device::line::{self, Handed};
use countersign_device::{DeviceProfile, EnrolFault, IdentityFault, KeyStore};
use countersign_identity::DeviceId;

use super::enrol::{self, EnrolArguments, certificates, read, unusable};
use super::{Agent, warn};

/// The longest challenge that is read, in bytes: far more than a station writes.
const CHALLENGE_BYTES_MAX: u64 = 1024;

pub(crate) async fn provision(agent: &Agent, arguments: EnrolArguments) -> Result<(), EnrolFault> {
    let folder = &agent.folder;
    if folder.has_identity() && !arguments.again {
        // A try that was cut off came so far.
        let there = folder.load()?.profile.id;
        if arguments.id.as_ref().is_some_and(|asked| *asked != there) {
            return Err(IdentityFault::Exists(folder.path().to_owned()).into());
        }
    } else {
        enrol::enrol(agent, arguments).await?;
    }
    // As it lies on the disk, not as it came.
    let certificate = line::confirm(folder).await?;
    let identity = folder.load()?;
    println!(
        "{}: provisioned, certificate {certificate} confirmed, until {}",
        identity.profile.id, identity.facts.not_after
    );
    Ok(())
}

pub(crate) fn install(agent: &Agent, from: &Path, key_store: Option<KeyStore>) -> Result<(), EnrolFault> {
    let path = from.join("device.json");
    let mut profile: DeviceProfile =
        serde_json::from_slice(&read(&path)?).map_err(|e| unusable(&path, &e))?;
    if let Some(store) = key_store {
        profile.key_store = store;
    }
    let handed = Handed {
        profile,
        chain: certificates(&from.join("device.crt"))?,
        platform_roots: certificates(&from.join("platform-root.crt"))?,
    };
    let device = handed.profile.id.clone();
    let facts = line::install(&agent.folder, handed, &warn)?;
    println!(
        "{device}: certificate {} until {} is beside its key",
        facts.serial, facts.not_after
    );
    Ok(())
}

pub(crate) fn prove(agent: &Agent, challenge: &Path) -> Result<(), EnrolFault> {
    let mut text = String::new();
    let got = if challenge == Path::new("-") {
        std::io::stdin()
            .take(CHALLENGE_BYTES_MAX)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(challenge).and_then(|f| f.take(CHALLENGE_BYTES_MAX).read_to_string(&mut text))
    };
    got.map_err(|source| IdentityFault::Unreadable {
        path: challenge.to_owned(),
        source,
    })?;
    let signature = line::prove(&agent.folder, text.trim_end())?;
    println!("{}", STANDARD.encode(signature));
    Ok(())
}

pub(crate) async fn destroy(agent: &Agent, confirm: &DeviceId) -> Result<(), EnrolFault> {
    let folder = &agent.folder;
    let device = folder.device_id()?;
    if device != *confirm {
        return Err(EnrolFault::Usage(format!(
            "{} is the identity of {device}, not of {confirm}; hint: --confirm {device}",
            folder.path().display()
        )));
    }
    let Some(_alone) = folder.try_running()? else {
        return Err(EnrolFault::Usage(
            "the service runs on this identity; hint: stop it first (systemctl stop countersign-agent@…)"
                .into(),
        ));
    };
    match end(folder, &warn).await? {
        Ended::Recorded(recorded) => {
            println!(
                "{device}: its key is destroyed; the platform recorded it at {}, and that is final",
                recorded.recorded
            );
            Ok(())
        }
        Ended::Stated(fault) => {
            eprintln!(
                "{device}: its key is destroyed; the statement is in {}, still to be handed in: run this again, or give it to an operator (countersign device destroyed FILE)",
                folder.path().join("destruction.json").display()
            );
            Err(fault)
        }
    }
}
