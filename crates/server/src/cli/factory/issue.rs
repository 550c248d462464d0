//! Bulk issue: keys on disk → certificates asked for → files on disk → index. Whatever moment a run is killed at, the
//! next one goes on: a key that is on disk is asked for again and gets the same certificate.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use countersign_authority::folder;
use countersign_factory::{CertificateRequest, SoftwareKey};
use countersign_identity::DeviceId;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::SHOWN_MAX;
use super::archive::{self, Archive};
use super::arguments::{IssueArguments, Layout};
use super::ids::{self, Wanted};
use super::index::Index;
use super::keys::WorkKeys;
use super::layout::{self, OutputFile};
use crate::api::BulkBody;
use crate::cli::output::Output;
use crate::client::Client;
use crate::failure::Failure;
use crate::identity_folder;
use crate::service::{BulkAnswer, BulkCertificate, BulkOutcome, BulkWanted, ItemRefusal, Provisioned};

/// Below the output folder: keys whose certificates are not on disk yet, and an archive that is not complete.
const WORK: &str = ".work";

/// What a run did.
#[derive(Default)]
struct Summary {
    issued: u64,
    /// Issued in an earlier run whose answer was not on disk yet.
    repeated: u64,
    /// On disk already.
    there: u64,
    refused: Vec<(DeviceId, ItemRefusal)>,
    /// What all identities lack, told once.
    warning: Option<String>,
}

struct Run<'a> {
    arguments: &'a IssueArguments,
    client: &'a Client,
    out: PathBuf,
    password: Option<Zeroizing<String>>,
    index: Index,
    keys: WorkKeys,
    /// If that is the layout, and it is not complete.
    archive: Option<Archive>,
    summary: Summary,
    /// Held for the time of the run; the kernel gives it back, however the run ends.
    _lock: File,
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(std::io::Error) -> Failure + 'a {
    move |e| {
        Failure::unavailable(
            format!("cannot {what} {}: {e}", path.display()),
            "see to the disk, then repeat the command: what is there is not made again",
        )
    }
}

/// `factory issue`
pub async fn run(arguments: IssueArguments, client: &Client, out: Output) -> Result<(), Failure> {
    let wanted = ids::wanted(&arguments)?;
    let password = match (arguments.layout, &arguments.password_file) {
        (Layout::Pkcs12, Some(path)) => Some(layout::password(path)?),
        (Layout::Pkcs12, None) => {
            return Err(Failure::invalid(
                "a PKCS#12 file has a password; hint: --password-file FILE, readable by its owner only",
            ));
        }
        (_, Some(_)) => {
            return Err(Failure::invalid(
                "--password-file goes with --layout pkcs12; hint: leave it out",
            ));
        }
        (_, None) => None,
    };
    if arguments.layout == Layout::Pkcs12 && wanted.iter().any(|w| w.csr.is_some()) {
        return Err(Failure::invalid(
            "a PKCS#12 file holds the private key, and devices with requests keep theirs; hint: --layout pem-folders",
        ));
    }
    // Before anything is written: is there such a batch?
    let batch = format!("/tenants/{}/batches/{}", arguments.tenant, arguments.batch);
    client.call("GET", &batch, None).await?;
    let folder = arguments
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(arguments.batch.as_str()));
    let mut run = Run::open(&arguments, client, folder, password)?;
    run.all(&wanted).await?;
    run.finish(wanted.len(), out)
}

impl<'a> Run<'a> {
    fn open(
        arguments: &'a IssueArguments,
        client: &'a Client,
        out: PathBuf,
        password: Option<Zeroizing<String>>,
    ) -> Result<Self, Failure> {
        let work = out.join(WORK);
        folder::create_private(&work)?;
        let lock_path = work.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("make", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::unavailable(
                    format!("another run writes to {}", out.display()),
                    "wait for it, or choose another folder with --out",
                ));
            }
            Err(TryLockError::Error(e)) => return Err(failed("lock", &lock_path)(e)),
        }
        let layout_file = work.join("layout");
        let layout = format!(
            "{:?} {} {}\n",
            arguments.layout, arguments.tenant, arguments.batch
        );
        match fs::read_to_string(&layout_file) {
            Ok(text) if text == layout || text.is_empty() => {}
            Ok(text) => {
                return Err(Failure::invalid(format!(
                    "{} was begun with other arguments (layout, tenant, batch: {}); hint: choose another folder with --out",
                    out.display(),
                    text.trim()
                )));
            }
            Err(_) => {}
        }
        folder::write_private(&layout_file, layout.as_bytes())?;
        let index = Index::open(&out)?;
        let grows = arguments.layout == Layout::Archive && !archive::is_complete(&out);
        Ok(Self {
            keys: WorkKeys::open(&work, &index)?,
            archive: grows.then(|| Archive::open(&work, &index)).transpose()?,
            index,
            arguments,
            client,
            out,
            password,
            summary: Summary::default(),
            _lock: lock,
        })
    }

    async fn all(&mut self, wanted: &[Wanted]) -> Result<(), Failure> {
        let missing: Vec<&Wanted> = wanted.iter().filter(|w| !self.index.has(&w.id)).collect();
        self.summary.there = (wanted.len() - missing.len()) as u64;
        if self.arguments.layout == Layout::Archive && self.archive.is_none() && !missing.is_empty() {
            return Err(Failure::invalid(format!(
                "the archive in {} is complete and is not changed; hint: choose another folder with --out for more devices",
                self.out.display()
            )));
        }
        let bar = ProgressBar::with_draw_target(Some(wanted.len() as u64), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} eta {eta}") {
            bar.set_style(style);
        }
        bar.set_position(self.summary.there);
        for chunk in missing.chunks(usize::from(self.arguments.chunk.max(1))) {
            let refused = self.chunk(chunk).await?;
            bar.inc(chunk.len() as u64);
            // The batch takes no more: the rest would be refused one by one.
            let over = [
                "batch.closed",
                "batch.window-closed",
                "batch.window-not-open",
                "batch.quota-used-up",
            ];
            let last = self.summary.refused.last();
            if refused == chunk.len() && last.is_some_and(|(_, r)| over.contains(&r.code.as_str())) {
                break;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// Issues for some devices. How many were refused.
    async fn chunk(&mut self, chunk: &[&Wanted]) -> Result<usize, Failure> {
        let mut keys: BTreeMap<DeviceId, SoftwareKey> = BTreeMap::new();
        let mut devices = Vec::with_capacity(chunk.len());
        for one in chunk {
            let request = match &one.csr {
                Some(file) => ids::request(file)?,
                None => {
                    let key = self.keys.of(&one.id)?;
                    let request = CertificateRequest::create(&key, &one.id)
                        .map_err(|e| Failure::internal(e.to_string()))?;
                    keys.insert(one.id.clone(), key);
                    request
                }
            };
            devices.push(BulkWanted {
                id: one.id.clone(),
                request,
            });
        }
        // Nothing is asked for before its key would survive a power cut.
        self.keys.sync()?;
        let body = BulkBody {
            devices,
            replace: self.arguments.replace,
        };
        let body = serde_json::to_value(body).map_err(|e| Failure::internal(e.to_string()))?;
        let path = format!(
            "/tenants/{}/batches/{}/certificates",
            self.arguments.tenant, self.arguments.batch
        );
        let answer = self.client.call("POST", &path, Some(body)).await?;
        let answer: BulkAnswer = serde_json::from_value(answer)
            .map_err(|e| Failure::internal(format!("unexpected answer: {e}")))?;
        self.write(&answer, &keys)
    }

    /// All that was written to the output's file system is on disk.
    fn sync(&self) -> Result<(), Failure> {
        File::open(&self.out)
            .and_then(|f| rustix::fs::syncfs(&f).map_err(std::io::Error::from))
            .map_err(failed("sync", &self.out))
    }

    /// Writes what was issued: whole files or none, then the index, and only then are the work keys removed.
    fn write(
        &mut self,
        answer: &BulkAnswer,
        keys: &BTreeMap<DeviceId, SoftwareKey>,
    ) -> Result<usize, Failure> {
        let layout = self.arguments.layout;
        let mut rows = Vec::new();
        let mut refused = 0;
        for item in &answer.devices {
            let issued = match &item.outcome {
                BulkOutcome::Issued(issued) => issued,
                BulkOutcome::Refused(refusal) => {
                    refused += 1;
                    self.summary.refused.push((item.id.clone(), refusal.clone()));
                    continue;
                }
            };
            let provisioned = provisioned(&item.id, issued, answer)?;
            if layout != Layout::Pkcs12 && self.summary.warning.is_none() {
                self.summary.warning = identity_folder::no_renewal(&provisioned);
            }
            let password = self.password.as_ref().map(|p| p.as_str());
            let files = layout::files(layout, &provisioned, keys.get(&item.id), password)?;
            match &mut self.archive {
                Some(archive) => archive.add(&item.id, &files)?,
                None => write_files(&self.out, &files)?,
            }
            if issued.repeated {
                self.summary.repeated += 1;
            } else {
                self.summary.issued += 1;
            }
            rows.push([
                item.id.to_string(),
                issued.serial.clone(),
                issued.fingerprint.to_string(),
                issued.not_after.to_string(),
                issued.authority.to_string(),
                layout::name(layout, item.id.as_str()),
            ]);
        }
        if rows.is_empty() {
            return Ok(refused);
        }
        match &mut self.archive {
            Some(archive) => archive.sync()?,
            None => self.sync()?,
        }
        self.index.append(&self.out, &rows)?;
        self.keys.forget(&self.index)?;
        Ok(refused)
    }

    fn finish(self, wanted: usize, out: Output) -> Result<(), Failure> {
        let summary = &self.summary;
        if let (Some(archive), true) = (self.archive, summary.refused.is_empty()) {
            archive.complete(&self.out)?;
        }
        for (id, refusal) in summary.refused.iter().take(SHOWN_MAX) {
            eprintln!("refused: {id}: {} ({})", refusal.reason, refusal.code);
            if let Some(hint) = &refusal.hint {
                eprintln!("hint: {hint}");
            }
        }
        if let Some(warning) = &summary.warning {
            eprintln!("{warning}");
        }
        let done = summary.issued + summary.repeated + summary.there;
        let answer: Value = json!({
            "wanted": wanted, "issued": summary.issued, "repeated": summary.repeated, "there": summary.there,
            "refused": summary.refused.iter()
                .map(|(id, r)| json!({ "id": id, "code": r.code, "reason": r.reason, "hint": r.hint }))
                .collect::<Vec<_>>(),
            "folder": self.out,
        });
        out.say(&answer, |_| {
            let mut text = format!(
                "{done} of {wanted} identities are in {}: {} issued now, {} as issued before, {} were there",
                self.out.display(),
                summary.issued,
                summary.repeated,
                summary.there
            );
            if summary.issued > 0 {
                text.push_str(&format!(
                    "\nnext: when they are on their devices, countersign factory confirm --batch {} --list {}",
                    self.arguments.batch,
                    self.out.join("index.csv").display()
                ));
            }
            text
        })?;
        let missing = wanted as u64 - done;
        if missing == 0 {
            return Ok(());
        }
        Err(Failure::invalid(format!(
            "{missing} devices have no certificate; hint: see to the cause, and repeat the command: what is there is not made again"
        )))
    }
}

/// What goes into an identity folder.
fn provisioned(id: &DeviceId, issued: &BulkCertificate, answer: &BulkAnswer) -> Result<Provisioned, Failure> {
    let issuer = answer
        .issuers
        .get(&issued.authority)
        .ok_or_else(|| Failure::internal("the answer lacks the issuer's certificate"))?;
    Ok(Provisioned {
        device: id.clone(),
        certificate: format!("{}{issuer}", issued.certificate),
        platform_root: answer.platform_root.clone(),
        serial: issued.serial.clone(),
        fingerprint: issued.fingerprint,
        not_after: issued.not_after,
        authority: issued.authority.clone(),
        repeated: issued.repeated,
        // By the batch, which says nothing of it.
        added: false,
        tenant: answer.tenant.clone(),
        host: answer.host.clone(),
        port: answer.port,
        enrol_port: answer.enrol_port,
    })
}

/// Writes the files of one identity.
fn write_files(out: &Path, files: &[OutputFile]) -> Result<(), Failure> {
    let mut made = None;
    for (path, bytes) in files {
        let path = out.join(path);
        if let Some(folder) = path.parent()
            && made.as_deref() != Some(folder)
        {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed("make", folder))?;
            made = Some(folder.to_owned());
        }
        write_unsynced(&path, bytes)?;
    }
    Ok(())
}

/// Writes a file as its owner's only, under another name first; whoever looks sees a whole file or none. The caller
/// syncs many at once.
fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&new, path))
        .map_err(failed("write", path))
}
