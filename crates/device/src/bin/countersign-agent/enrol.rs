//! `enrol` and `renew`.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use countersign_device::renewal;
use countersign_device::{
    DeviceKey, EnrolFault, Enrolment, EstServer, IdentityFault, IdentityFolder, KeyReuse, KeyStore, Proof,
    Secret,
};
use countersign_identity::{DeviceId, TenantId};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::{Agent, warn};

/// The longest secret that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 4096;

#[derive(Args)]
pub(crate) struct EnrolArguments {
    /// The platform's enrolment listener: HOST or HOST:PORT, port 8443 if none is given
    #[arg(long)]
    server: String,
    /// The platform's root, PEM (countersign authority export platform); not needed if the identity folder has it
    #[arg(long)]
    platform_root: Option<PathBuf>,
    /// The device id; with --certificate it may be left to the platform
    #[arg(long, required_unless_present = "certificate")]
    pub(crate) id: Option<DeviceId>,
    /// The tenant
    #[arg(long, default_value = "default")]
    tenant: TenantId,
    /// The certificate profile [default: the platform's first]
    #[arg(long)]
    profile: Option<String>,
    /// A file with the one-time secret (countersign device secret ID); - for standard input. A secret on the command line
    /// would be seen by everybody on this machine
    #[arg(long, required_unless_present_any = ["certificate", "attest"], conflicts_with = "certificate")]
    secret_file: Option<PathBuf>,
    /// The claim that the secret is of: it enrols the ids on its list
    #[arg(long, requires = "secret_file")]
    claim: Option<String>,
    /// The certificate to enrol by, such as the factory's, PEM, with those above it
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key, PEM; a file with the pkcs11: URI of it; or the file of a TPM's
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
    /// Have the TPM say how it holds the key, now and of each key after it (countersign-agent-tpm). Without a secret or a
    /// certificate that alone is what the device enrols by: then the platform must know that this TPM is in it
    #[arg(long, requires = "id")]
    pub(crate) attest: bool,
    /// Replace an identity that is there, once the new one has connected
    #[arg(long)]
    pub(crate) again: bool,
    /// Where the keys are made: `file`; encrypted:FILE or encrypted:credential:NAME, where the passphrase is; a pkcs11: URI that names the first key in a token
    /// (pkcs11:token=T;object=K?module-path=/PATH/MODULE.so&pin-source=/PATH/PIN); `tpm`, or tpm:ADDRESS such as
    /// tpm:device:/dev/tpmrm0 (countersign-agent-tpm); with +pcrs=sha256:0,2,4,7 behind it each key signs only while these PCRs
    /// are as they were when it was made [default: as before, else file]
    #[arg(long)]
    pub(crate) key_store: Option<KeyStore>,
}

pub(crate) async fn enrol(agent: &Agent, arguments: EnrolArguments) -> Result<(), EnrolFault> {
    let folder = &agent.folder;
    let platform_roots = match &arguments.platform_root {
        Some(path) => IdentityFolder::roots_in(path)?,
        None => Vec::new(),
    };
    let enrolment = Enrolment {
        server: EstServer {
            tenant: arguments.tenant.clone(),
            profile: arguments.profile.clone(),
            ..arguments.server.parse()?
        },
        platform_roots,
        proof: proof(&arguments)?,
        device: arguments.id,
        again: arguments.again,
        key_store: arguments.key_store,
        attest: arguments.attest,
    };
    let replaces = folder.has_identity();
    let profile = renewal::enrol(folder, &enrolment, &warn).await?;
    if replaces {
        agent.connect().await?.disconnect().await?;
    }
    let identity = folder.load()?;
    println!(
        "{}: enrolled, certificate {} until {}, connects to {}:{}",
        profile.id, identity.facts.serial, identity.facts.not_after, profile.host, profile.port
    );
    Ok(())
}

pub(crate) async fn renew(agent: &Agent, same_key: bool, no_connect: bool) -> Result<(), EnrolFault> {
    let reuse = if same_key { KeyReuse::Same } else { KeyReuse::New };
    let before = agent.folder.load()?.facts.fingerprint;
    // One that came before and has not connected yet is tried first.
    let next = match agent.folder.pending()? {
        Some(next) if next.facts.is_valid_at(next.clock.now()) => next.facts,
        other => {
            if let Some(ended) = other {
                agent.folder.discard(&ended.facts.fingerprint)?;
            }
            let renewed = renewal::renew(&agent.folder, reuse).await?;
            if let Some(why) = &renewed.unattested {
                warn(&format!("warning: no new key was attested: {why}"));
            }
            renewed.certificate
        }
    };
    if no_connect {
        println!(
            "certificate {} until {} is in use from the next connection on",
            next.serial, next.not_after
        );
        return Ok(());
    }
    agent.connect().await?.disconnect().await?;
    let identity = agent.folder.load()?;
    if next.fingerprint == before {
        println!(
            "{}: certificate {} stays in use until {}: for the same key the platform has no other yet",
            identity.profile.id, next.serial, next.not_after
        );
        return Ok(());
    }
    if identity.facts.fingerprint == before {
        return Err(EnrolFault::Usage(
            "the platform issued a certificate and does not admit it; hint: the old one is still in use; ask `countersign explain DEVICE` there".into(),
        ));
    }
    println!(
        "{}: renewed, certificate {} until {}",
        identity.profile.id, identity.facts.serial, identity.facts.not_after
    );
    Ok(())
}

fn proof(arguments: &EnrolArguments) -> Result<Proof, EnrolFault> {
    if let (Some(certificate), Some(key)) = (&arguments.certificate, &arguments.key) {
        let text = Zeroizing::new(read(key)?);
        return Ok(Proof::Certificate {
            chain: certificates(certificate)?,
            key: DeviceKey::read(&text, arguments.key_store.as_ref().unwrap_or(&KeyStore::File))
                .map_err(|e| unusable(key, &e))?,
        });
    }
    let (Some(file), Some(id)) = (&arguments.secret_file, &arguments.id) else {
        if arguments.attest {
            return Ok(Proof::Tpm);
        }
        return Err(EnrolFault::Usage(
            "give --id and --secret-file, or --certificate and --key".into(),
        ));
    };
    let mut secret = Zeroizing::new(String::new());
    let got = if file == Path::new("-") {
        std::io::stdin()
            .take(SECRET_BYTES_MAX)
            .read_to_string(&mut secret)
    } else {
        std::fs::File::open(file).and_then(|f| f.take(SECRET_BYTES_MAX).read_to_string(&mut secret))
    };
    got.map_err(|source| IdentityFault::Unreadable {
        path: file.clone(),
        source,
    })?;
    let secret = Zeroizing::new(secret.lines().next().unwrap_or_default().trim().to_owned());
    if secret.is_empty() {
        return Err(EnrolFault::Usage(format!(
            "there is no secret in {}",
            file.display()
        )));
    }
    let user = match &arguments.claim {
        Some(claim) => format!("claim/{claim}"),
        None => id.to_string(),
    };
    Ok(Proof::Secret(Secret { user, secret }))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, IdentityFault> {
    std::fs::read(path).map_err(|source| IdentityFault::Unreadable {
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn unusable(path: &Path, e: &dyn std::fmt::Display) -> IdentityFault {
    IdentityFault::Damaged {
        path: path.to_owned(),
        what: e.to_string(),
    }
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityFault> {
    let found = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| unusable(path, &e))?;
    if found.is_empty() {
        return Err(unusable(path, &"it holds no certificate in PEM"));
    }
    Ok(found)
}
