//! The end of a device: its key states that it is destroyed, is destroyed, and the statement is handed in.
//!
//! ```text
//! destruction.json is on disk ─▶ every key is destroyed, then every certificate removed ─▶ the platform has recorded it
//!                                (what a TPM keeps of certificates before, while it is known which TPM it is)
//! ```
//!
//! Each step is durable before the next, and a cut anywhere leaves what can simply be run again: while there is a key there is
//! one to state it with, and no statement is handed in while a key is left.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_factory::destruction::{PATH, Recorded, Statement};

use crate::beside;
use crate::est::{EstClient, EstServer};
use crate::fault::EnrolFault;
use crate::folder::IdentityFolder;
use crate::identity::{DeviceIdentity, DeviceProfile, IdentityFault};
use crate::keys::DeviceKey;
use crate::renewal::PATIENCE;

/// How far it came.
#[derive(Debug)]
pub enum Ended {
    /// The platform has recorded it.
    Recorded(Recorded),
    /// The keys are gone, and the statement is still to be handed in: by this again, or by an operator.
    Stated(EnrolFault),
}

/// Ends the device. There is no way back. A certificate that cannot be removed from a TPM is said: without its key it is of no
/// use, and is no reason to leave a key.
///
/// # Errors
/// [`EnrolFault`] if a key is left.
pub async fn destroy(folder: &IdentityFolder, say: &(dyn Fn(&str) + Sync)) -> Result<Ended, EnrolFault> {
    // Of one that was cut off later, the key is gone, and so is what a TPM kept.
    let there = folder.load().ok();
    let statement = match (folder.statement()?, &there) {
        // An earlier try came to nothing, and the device went on with another certificate: an old one ends nobody.
        (Some(statement), Some(identity)) if statement.certificate != certificate_of(identity)? => {
            state(folder)?
        }
        (Some(statement), _) => statement,
        (None, _) => state(folder)?,
    };
    if let Some(identity) = &there {
        beside::forget(identity, say).await;
    }
    folder.destroy_keys()?;
    let profile = folder.profile()?;
    Ok(match hand_in(folder, &profile, &statement).await {
        Ok(recorded) => Ended::Recorded(recorded),
        Err(fault) => Ended::Stated(fault),
    })
}

fn state(folder: &IdentityFolder) -> Result<Statement, EnrolFault> {
    let identity = folder.load()?;
    if matches!(identity.key, DeviceKey::Token { is_ours: false, .. }) {
        return Err(folder.of_others(&folder.key_path(), &identity.key).into());
    }
    let signer = identity.key.signer().map_err(EnrolFault::Key)?;
    let signer = signer.ok_or_else(|| {
        EnrolFault::Usage(
            "the key is no P-256 key; hint: remove it by hand, and countersign device decommission there"
                .into(),
        )
    })?;
    let leaf = leaf_of(&identity)?;
    let (tenant, device) = (identity.profile.tenant.clone(), identity.profile.id.clone());
    let statement = Statement::create(&*signer, leaf, tenant, device, identity.clock.now())
        .map_err(|e| EnrolFault::Link(crate::fault::LinkFault::Key(e.0)))?;
    folder.keep_statement(&statement)?;
    Ok(statement)
}

fn leaf_of(identity: &DeviceIdentity) -> Result<&[u8], EnrolFault> {
    let leaf = identity.chain.first();
    Ok(leaf.ok_or_else(|| IdentityFault::NotOurs("there is no certificate".into()))?)
}

/// As a statement has it.
fn certificate_of(identity: &DeviceIdentity) -> Result<String, EnrolFault> {
    Ok(STANDARD.encode(leaf_of(identity)?))
}

async fn hand_in(
    folder: &IdentityFolder,
    profile: &DeviceProfile,
    statement: &Statement,
) -> Result<Recorded, EnrolFault> {
    let Some(port) = profile.enrol_port else {
        return Err(EnrolFault::Usage(
            "device.json names no enrol_port; hint: give destruction.json to an operator: countersign device destroyed FILE".into(),
        ));
    };
    let server = EstServer {
        host: profile.host.clone(),
        port,
        tenant: profile.tenant.clone(),
        profile: None,
        patience: PATIENCE,
    };
    let mut client = EstClient::connect(&server, &folder.roots()?, folder.clock(), None).await?;
    client.tell(PATH, statement).await
}
