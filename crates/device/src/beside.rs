//! The certificates beside their key, in its token or TPM, for whoever looks for them there. The folder has them in any case,
//! and is what counts: nothing here is read to connect, and what does not fit is no more than a warning.

use std::panic::resume_unwind;

use crate::identity::DeviceIdentity;
use crate::keys::KeyStoreFault;

/// Keeps those of the certificate that is in use from now on, and takes away those of the one before it, if its key was
/// elsewhere: in the same place one replaces the other.
pub(crate) async fn keep(now: &DeviceIdentity, before: Option<&DeviceIdentity>, say: &(dyn Fn(&str) + Sync)) {
    let (key, chain) = (now.key.clone(), now.chain.clone());
    if let Err(e) = aside(move || key.keep_certificates(&chain)).await {
        say(&not_kept(&e));
    }
    if let Some(before) = before
        && !before.key.store().is_of(&now.key)
    {
        forget(before, say).await;
    }
}

/// Takes them away from a TPM. In a token they go with their key.
pub(crate) async fn forget(identity: &DeviceIdentity, say: &(dyn Fn(&str) + Sync)) {
    let (key, chain) = (identity.key.clone(), identity.chain.clone());
    if let Err(e) = aside(move || key.forget_certificates(&chain)).await {
        say(&format!("warning: a certificate stays beside its key: {e}"));
    }
}

pub(crate) fn not_kept(fault: &KeyStoreFault) -> String {
    format!("warning: the certificate is kept in the folder alone: {fault}")
}

/// A token or a TPM takes its time, and the runtime's threads have others to serve.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeyStoreFault> + Send + 'static,
) -> Result<(), KeyStoreFault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map(drop),
        Err(e) if e.is_panic() => resume_unwind(e.into_panic()),
        // The program ends; the next first connection tries it again.
        Err(_) => Ok(()),
    }
}
