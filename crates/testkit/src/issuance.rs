//! What bulk issuing costs: CPU time of the whole process, beside what its cryptography alone costs in the same run.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use countersign_authority::{Hierarchy, IssuingAuthority};
use countersign_factory::{
    Batch, CertificateRequest, DeviceStart, EnrolmentGrant, Profile, ProvenKey, SigningWindow, SoftwareKey,
};
use countersign_identity::{AuthorityId, BatchId, DeviceId, IdentityRule, TenantId, Timestamp};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{Admission, CredentialState, Custody};
use countersign_registry::{
    Actor, BulkIssue, BulkItem, IssuedHere, LedgerLimits, NewAuthority, NewCredential, Origin, Registry,
};
use rustix::time::{ClockId, clock_gettime};

/// Devices per transaction, as the server has it.
const TRANSACTION: usize = 1000;
/// How many signatures the floor is taken over.
const FLOOR_ROUNDS: u32 = 4000;

/// Microseconds of CPU time.
#[derive(Debug, Clone, Copy)]
pub struct IssuanceCost {
    /// One P-256 signature and one verification, by themselves.
    pub floor_us: f64,
    /// One certificate with a given key: decided, linted, signed, parsed and verified again, kept and synced.
    pub issue_us: f64,
    /// Beside that: reading a request and verifying its signature.
    pub request_us: f64,
    /// Certificates that the registry held at the end.
    pub registered: usize,
}

/// CPU time of all threads of this process.
fn cpu() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

fn per<T>(count: u32, run: impl FnOnce() -> Result<T>) -> Result<f64> {
    let before = cpu();
    run()?;
    Ok((cpu() - before).as_secs_f64() * 1e6 / f64::from(count))
}

/// One signature and one verification over as many bytes as a certificate has to be signed.
fn floor() -> Result<f64> {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref())?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref());
    let mut content = [0u8; 400];
    per(FLOOR_ROUNDS, || {
        for n in 0..FLOOR_ROUNDS {
            content[..4].copy_from_slice(&n.to_be_bytes());
            let signature = pair.sign(&random, &content)?;
            key.verify(&content, signature.as_ref())?;
        }
        Ok(())
    })
}

/// Issues `count` certificates into a registry in `place` that has `before` of them already.
///
/// # Errors
/// If anything is refused.
pub fn measure(place: &Path, before: usize, count: usize) -> Result<IssuanceCost> {
    let actor = Actor("bench".into());
    let tenant = TenantId::default_tenant();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = Timestamp::from_unix_ms(i64::try_from(now.as_millis())?);
    let authority = IssuingAuthority::create(&place.join("ca"), Hierarchy::Devices, "bench", now)?;
    let data = place.join("data");
    std::fs::create_dir_all(&data)?;
    let registry = Registry::create(&data, LedgerLimits::default())?;
    let authority_id = AuthorityId::new("ca")?;
    registry.register_authority(
        actor.clone(),
        NewAuthority {
            id: authority_id.clone(),
            tenant: tenant.clone(),
            origin: Origin::Managed,
            rule: IdentityRule::default(),
            admission: Admission::RegisteredOnly,
            certificate: authority.certificate().to_vec(),
        },
    )?;
    let batch = BatchId::new("B-1")?;
    registry.add_batch(
        actor.clone(),
        Batch {
            id: batch.clone(),
            tenant: tenant.clone(),
            model: "pump".into(),
            profile: "operational".into(),
            groups: vec!["eu".into(), "line-1".into()],
            devices_start: DeviceStart::Active,
            authority: None,
            id_pattern: "SN-*".parse().map_err(anyhow::Error::msg)?,
            quota: (before + count) as u64,
            window: SigningWindow::default(),
        },
    )?;
    let authority = std::sync::Arc::new(authority);
    let profile = Profile::default();
    let issue = |from: usize, keys: &[ProvenKey]| -> Result<()> {
        for (n, part) in keys.chunks(TRANSACTION).enumerate() {
            let mut items = Vec::with_capacity(part.len());
            let mut grants = Vec::with_capacity(part.len());
            for (k, key) in part.iter().enumerate() {
                let device = DeviceId::new(&format!("SN-{:08}", from + n * TRANSACTION + k))?;
                items.push(BulkItem {
                    device: device.clone(),
                    key: key.fingerprint()?,
                });
                grants.push(EnrolmentGrant::new(
                    tenant.clone(),
                    device,
                    key.clone(),
                    profile.clone(),
                )?);
            }
            let request = BulkIssue {
                tenant: tenant.clone(),
                batch: batch.clone(),
                demands_new_key: false,
                replace: false,
                items,
            };
            let (authority, authority_id, batch) = (authority.clone(), authority_id.clone(), batch.clone());
            let answers = registry.issue_in_batch(actor.clone(), request, move |n, now| {
                let (certificate, der) = authority
                    .issue_device(&grants[n], now)
                    .map_err(|e| e.to_string())?
                    .into_parts();
                Ok(NewCredential {
                    certificate,
                    kind: CredentialKind::Operational,
                    state: CredentialState::Issued,
                    custody: Custody::Unknown,
                    authority: Some(authority_id.clone()),
                    issued: Some(IssuedHere {
                        certificate: der,
                        profile: "operational".into(),
                        batch: Some(batch.clone()),
                    }),
                })
            })?;
            for answer in answers.value {
                answer?;
            }
        }
        Ok(())
    };
    let keys = |n: usize| -> Result<Vec<ProvenKey>> {
        (0..n)
            .map(|_| Ok(ProvenKey::of(&SoftwareKey::generate()?)))
            .collect()
    };
    issue(0, &keys(before)?)?;
    let given = keys(count)?;
    let floor_before = floor()?;
    let issue_us = per(u32::try_from(count)?, || issue(before, &given))?;
    let floor_after = floor()?;
    let requests = (0..1000)
        .map(|n| {
            let id = DeviceId::new(&format!("SN-{n}"))?;
            Ok(CertificateRequest::create(&SoftwareKey::generate()?, &id)?)
        })
        .collect::<Result<Vec<_>>>()?;
    let request_us = per(1000, || {
        for text in &requests {
            CertificateRequest::parse(text.as_bytes())?;
        }
        Ok(())
    })?;
    let registered = registry.facts().credential_count();
    ensure!(registered == before + count, "{registered} are registered");
    let view = registry.batch(&tenant, &batch).context("the batch")?;
    ensure!(
        view.devices == (before + count) as u64,
        "the quota was miscounted"
    );
    Ok(IssuanceCost {
        floor_us: (floor_before + floor_after) / 2.0,
        issue_us,
        request_us,
        registered,
    })
}
