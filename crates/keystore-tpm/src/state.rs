//! The state that a device is in, by the TPM's PCRs, and whether it is the one that a key is bound to.

use std::collections::BTreeMap;

use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, PcrSelectionList, PcrSlot};
use tss_esapi::{Context, Error};

use crate::address::TpmAddress;
use crate::error::TpmError;
use crate::key_file::KeyFile;
use crate::pcrs::{Bank, PcrPolicy, Pcrs, Values};
use crate::tpm;

const READ: &str = "read its PCRs";

impl From<Bank> for HashingAlgorithm {
    fn from(bank: Bank) -> Self {
        match bank {
            Bank::Sha256 => Self::Sha256,
            Bank::Sha384 => Self::Sha384,
            Bank::Sha512 => Self::Sha512,
        }
    }
}

fn list(bank: Bank, numbers: impl Iterator<Item = u8>) -> Result<PcrSelectionList, Error> {
    let slots = numbers.map(|n| PcrSlot::try_from(1_u32 << n));
    PcrSelectionList::builder()
        .with_selection(bank.into(), &slots.collect::<Result<Vec<_>, _>>()?)
        .build()
}

/// What the PCRs hold now.
///
/// # Errors
/// [`TpmError::NoPcrs`] if the TPM keeps not all of them: a policy over such would hold in every state.
pub(crate) fn read(context: &mut Context, address: &TpmAddress, pcrs: Pcrs) -> Result<Values, TpmError> {
    let failed = |e: Error| tpm::failed(address, READ, e);
    let mut values = BTreeMap::new();
    loop {
        let left = || pcrs.numbers().filter(|n| !values.contains_key(n));
        if left().next().is_none() {
            return Ok(values.into_iter().collect());
        }
        let asked = list(pcrs.bank, left()).map_err(failed)?;
        // It answers with the first of them, as many as it likes.
        let (_, told, digests) =
            tpm::patiently(|| context.execute_without_session(|c| c.pcr_read(asked.clone())))
                .map_err(failed)?;
        let slots = told.get_selections().iter().flat_map(|bank| bank.selected());
        let numbers = slots.filter_map(|slot| u8::try_from(u32::from(slot).trailing_zeros()).ok());
        let read: Values = numbers
            .zip(digests.value().iter().map(|digest| digest.value().to_vec()))
            .collect();
        if read.is_empty() {
            return Err(TpmError::NoPcrs {
                address: address.clone(),
                pcrs,
            });
        }
        values.extend(read);
    }
}

/// Whether the device is in the state that a key is bound to, if it is bound to one.
///
/// # Errors
/// [`TpmError::State`] if it is in another one.
pub(crate) fn check(context: &mut Context, address: &TpmAddress, file: &KeyFile) -> Result<(), TpmError> {
    let Some(policy) = &file.policy else {
        return Ok(());
    };
    let now = read(context, address, policy.pcrs)?;
    if PcrPolicy::new(policy.pcrs, &now) == *policy {
        return Ok(());
    }
    Err(TpmError::State {
        address: address.clone(),
        pcrs: policy.pcrs,
        differing: file.values.as_ref().map(|then| {
            let pairs = now.iter().zip(then);
            pairs.filter(|(a, b)| a != b).map(|((n, _), _)| *n).collect()
        }),
    })
}

/// Tells the TPM, in a session, what the policy wants to hear.
pub(crate) fn satisfy(context: &mut Context, session: AuthSession, policy: &PcrPolicy) -> Result<(), Error> {
    let session = PolicySession::try_from(session)?;
    let digest = Digest::try_from(policy.digest.as_slice())?;
    let pcrs = list(policy.pcrs.bank, policy.pcrs.numbers())?;
    context.execute_without_session(|c| c.policy_pcr(session, digest.clone(), pcrs.clone()))
}
