//! Renews by itself while the device runs.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{RenewalWindow, Renewed, renew_aside, update_roots_aside};
use crate::aside::Aside;
use crate::backoff::Backoff;
use crate::fault::EnrolFault;
use crate::folder::{IdentityFolder, KeyReuse};

/// Two renewals are never closer than this, whatever the certificates' dates say.
const RENEWALS_APART: Duration = Duration::from_secs(60);
/// How often the trust bundle is fetched, up to half of it more at random: a new platform root is here long before it is
/// used.
const BUNDLE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// After one that could not be fetched or kept, the next try, up to twice that at random: a platform that was away at that
/// moment, or a disk that was full, must not cost a day.
const BUNDLE_AGAIN: Duration = Duration::from_secs(1800);
/// Where the platform has no other certificate for the same key yet, it is asked again after this, up to twice that at random.
const SAME_AGAIN: Duration = Duration::from_secs(1800);
/// A wait is cut into parts of this: the clock may be set in between.
const LOOK: Duration = Duration::from_secs(600);

/// What a [`Keeper`] tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// There is a new certificate.
    Renewed,
    /// A renewal failed; it tries again.
    NotRenewed,
    /// Something else.
    Other,
}

/// Renews in the background for as long as it lives.
#[derive(Debug)]
pub struct Keeper {
    task: JoinHandle<()>,
    renewed: mpsc::Receiver<()>,
}

impl Keeper {
    /// Starts it. It needs an identity folder whose platform enrols; without one it has nothing to do.
    pub fn start(
        folder: &Path,
        window: RenewalWindow,
        reuse: KeyReuse,
        say: impl Fn(News, &str) + Send + Sync + 'static,
    ) -> Self {
        let (sender, renewed) = mpsc::channel(1);
        let folder = IdentityFolder::new(folder);
        let task = tokio::spawn(async move { keep(&folder, window, reuse, &sender, &say).await });
        Self { task, renewed }
    }

    /// Waits until the next certificate is there: then whoever is connected connects anew, by [`super::connect`].
    pub async fn renewed(&mut self) {
        if self.renewed.recv().await.is_none() {
            // It ended: nothing will ever come.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(
    folder: &IdentityFolder,
    window: RenewalWindow,
    reuse: KeyReuse,
    renewed: &mpsc::Sender<()>,
    say: &(dyn Fn(News, &str) + Send + Sync),
) {
    let aside = Aside::new();
    let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(3600));
    let mut bundle_in = jittered(BUNDLE_EVERY / 2, BUNDLE_EVERY);
    loop {
        let identity = match folder.load() {
            Ok(identity) if identity.profile.enrol_port.is_some() => identity,
            Ok(_) => return,
            // A disk or a descriptor that fails for a moment must not end renewals for years.
            Err(e) => {
                say(News::NotRenewed, &format!("certificates are not renewed: {e}"));
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        let left = window.due(&identity.facts).since(identity.clock.now());
        // The next one waits for its first connection: nothing to renew.
        let waits = matches!(folder.pending(), Ok(Some(_)));
        if !left.is_zero() || waits {
            let sleep = if waits { RENEWALS_APART } else { left.min(LOOK) }.min(bundle_in);
            tokio::time::sleep(sleep).await;
            bundle_in = bundle_in.saturating_sub(sleep);
            if bundle_in.is_zero() {
                bundle_in = jittered(BUNDLE_EVERY, BUNDLE_EVERY / 2);
                match update_roots_aside(&aside, folder.path()).await {
                    Ok(0) => {}
                    Ok(new) => say(News::Other, &format!("{new} new platform root(s) pinned")),
                    Err(e) => {
                        bundle_in = jittered(BUNDLE_AGAIN, BUNDLE_AGAIN);
                        say(
                            News::Other,
                            &format!("the trust bundle could not be fetched and kept: {e}"),
                        );
                    }
                }
            }
            continue;
        }
        match renew_aside(&aside, folder.path(), reuse).await {
            Ok(Renewed {
                certificate: facts,
                unattested,
            }) => {
                backoff.reset();
                if let Some(why) = unattested {
                    say(News::Other, &format!("warning: no new key was attested: {why}"));
                }
                if facts.fingerprint == identity.facts.fingerprint {
                    tokio::time::sleep(jittered(SAME_AGAIN, SAME_AGAIN)).await;
                    continue;
                }
                say(
                    News::Renewed,
                    &format!("renewed: certificate {} until {}", facts.serial, facts.not_after),
                );
                if renewed.send(()).await.is_err() {
                    return;
                }
                tokio::time::sleep(RENEWALS_APART).await;
            }
            Err(fault) => {
                let least = match &fault {
                    EnrolFault::Waits { retry_after } => *retry_after,
                    EnrolFault::Refused {
                        retry_after: Some(after),
                        ..
                    } => *after,
                    _ => Duration::from_secs(1),
                };
                let wait = least + backoff.wait();
                say(
                    News::NotRenewed,
                    &format!(
                        "the certificate could not be renewed, trying again in {:.0} s: {fault}",
                        wait.as_secs_f64()
                    ),
                );
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// `base`, and up to `more` at random.
fn jittered(base: Duration, more: Duration) -> Duration {
    let mut bytes = [0; 4];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        return base;
    }
    base + more.mul_f64(f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}
