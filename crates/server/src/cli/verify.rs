//! `countersign verify`: what the gateway would say of a certificate, without a server and without a data directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use countersign_identity::{
    Anchor, AnchorIndex, AnchorState, AuthorityId, CertificateFacts, ChainDemands, ChainFault, Generation,
    IdentityRule, Purpose, RevocationList, StoredIntermediate, TenantId, Timestamp, VerifiedChain,
};
use countersign_policy::DenialCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use serde_json::{Value, json};

use super::output::Output;
use crate::failure::Failure;
use crate::service::now;

/// The most bytes that are read from one file.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Args)]
pub struct VerifyArguments {
    /// The certificate, its intermediates after it if the device sends them; PEM or DER
    certificate: PathBuf,
    /// The authorities that may vouch for it: a file or folder, PEM or DER; may be given several times
    #[arg(long, required = true)]
    anchors: Vec<PathBuf>,
    /// Intermediates that are known besides, as by `authority intermediate`; may be given several times
    #[arg(long)]
    intermediates: Vec<PathBuf>,
    /// Revocation lists; with any, each certificate of the path must be covered by one. May be given several times
    #[arg(long)]
    crl: Vec<PathBuf>,
    /// The moment, RFC 3339 [default: now]
    #[arg(long, value_parser = moment)]
    at: Option<Timestamp>,
    /// The most intermediates between the certificate and the authority
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(0..=6))]
    max_depth: u8,
    /// What the certificate is to be used for
    #[arg(long, value_enum, default_value = "client")]
    purpose: PurposeArgument,
}

#[derive(Clone, Copy, ValueEnum)]
enum PurposeArgument {
    /// To authenticate a device
    Client,
    /// To authenticate a server
    Server,
}

pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse_rfc3339(text).ok_or_else(|| "write it as 2026-11-23T20:00:00Z".into())
}

/// Verdict on standard output; an error, so exit code 4, if the certificate is refused.
pub(super) fn run(arguments: &VerifyArguments, out: Output) -> Result<(), Failure> {
    let at = arguments.at.unwrap_or_else(now);
    // The offline check knows no tenants: all that it is given belongs to one.
    let tenant = TenantId::default_tenant();
    let mut index = AnchorIndex::default();
    let mut count = 0;
    for path in &arguments.anchors {
        for der in certificates(path)? {
            count += 1;
            let id =
                AuthorityId::new(&format!("anchor-{count}")).map_err(|e| Failure::internal(e.to_string()))?;
            let (generation, rule) = (Generation(0), IdentityRule::default());
            let anchor = Anchor::new(tenant.clone(), id, AnchorState::Active, generation, rule, &der)
                .map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?;
            index.insert(Arc::new(anchor));
        }
    }
    // What cannot be used leads nowhere and covers nobody; the verdict stands on the rest.
    let (mut lists, mut unusable) = (Vec::new(), Vec::new());
    for path in &arguments.intermediates {
        for der in certificates(path)? {
            match StoredIntermediate::new(tenant.clone(), &der) {
                Ok(stored) => index.insert_intermediate(Arc::new(stored)),
                Err(e) => unusable.push(format!("{}: {e}", path.display())),
            }
        }
    }
    for path in &arguments.crl {
        for der in revocation_lists(path)? {
            match RevocationList::parse(&der) {
                Ok(list) => lists.push(list),
                Err(e) => unusable.push(format!("{}: {e}", path.display())),
            }
        }
    }
    let demands = ChainDemands {
        purpose: match arguments.purpose {
            PurposeArgument::Client => Purpose::Client,
            PurposeArgument::Server => Purpose::Server,
        },
        intermediates_max: usize::from(arguments.max_depth),
        lists: (!arguments.crl.is_empty()).then_some(lists.as_slice()),
    };
    let chain = certificates(&arguments.certificate)?;
    let [leaf, above @ ..] = chain.as_slice() else {
        return Err(nothing(&arguments.certificate, "certificate"));
    };
    let verdict = CertificateFacts::parse(leaf)
        .map_err(|e| ChainFault::Malformed(e.to_string()))
        .and_then(|facts| VerifiedChain::verify_for(&demands, &index, Some(&tenant), facts, leaf, above, at));
    let mut answer = match &verdict {
        Ok(chain) => json!({
            "accepted": true,
            "subject": chain.leaf().subject_text,
            "serial": chain.leaf().serial,
            "fingerprint": chain.leaf().fingerprint,
            "intermediates": chain.intermediates(),
            "authority": chain.anchor().facts.subject_text,
        }),
        Err(fault) => {
            let code = DenialCode::of_chain(fault);
            json!({
                "accepted": false,
                "code": code,
                "detail": fault.to_string(),
                "cause": code.cause(),
                "cure": code.cure(),
            })
        }
    };
    answer["at"] = json!(at.to_string());
    answer["unusable"] = json!(unusable);
    out.say(&answer, words)?;
    match verdict {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::refused(format!(
            "{} is refused",
            arguments.certificate.display()
        ))),
    }
}

fn words(answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    let mut lines = match answer["accepted"].as_bool() {
        Some(true) => vec![
            format!("accepted: {}", text("subject")),
            format!("  serial       {}", text("serial")),
            format!("  fingerprint  {}", text("fingerprint")),
            format!(
                "  authority    {}, {} intermediate(s) below",
                text("authority"),
                answer["intermediates"]
            ),
        ],
        _ => vec![
            format!("refused: {}", text("code")),
            format!("  found  {}", text("detail")),
            format!("  cause  {}", text("cause")),
            format!("  cure   {}", text("cure")),
        ],
    };
    for file in answer["unusable"].as_array().into_iter().flatten() {
        lines.push(format!("  not used  {}", file.as_str().unwrap_or_default()));
    }
    lines.push(format!("  at     {}", text("at")));
    lines.join("\n")
}

fn nothing(path: &Path, what: &str) -> Failure {
    Failure::invalid(format!(
        "{} holds no {what}; hint: give it as PEM or DER",
        path.display()
    ))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    objects(path, "certificate", |pem| {
        CertificateDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .ok()
    })
}

fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Failure> {
    objects(path, "revocation list", |pem| {
        CertificateRevocationListDer::pem_slice_iter(pem)
            .collect::<Result<Vec<_>, _>>()
            .ok()
    })
}

/// All objects of a file, or of the files of a folder in the order of their names.
fn objects<T: From<Vec<u8>>>(
    path: &Path,
    what: &str,
    from_pem: impl Fn(&[u8]) -> Option<Vec<T>> + Copy,
) -> Result<Vec<T>, Failure> {
    let unreadable = |e: std::io::Error| Failure::invalid(format!("cannot read {}: {e}", path.display()));
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if about.is_dir() {
        let mut files = std::fs::read_dir(path)
            .map_err(unreadable)?
            .map(|entry| entry.map(|e| e.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(unreadable)?;
        files.retain(|f| f.is_file());
        files.sort();
        let mut all = Vec::new();
        for file in files {
            all.extend(objects(&file, what, from_pem)?);
        }
        return Ok(all);
    }
    if about.len() > FILE_BYTES_MAX {
        return Err(Failure::invalid(format!(
            "{} is larger than {FILE_BYTES_MAX} bytes",
            path.display()
        )));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let found = match bytes.first() {
        Some(0x30) => split_der(&bytes).map(|all| all.into_iter().map(|der| T::from(der.to_vec())).collect()),
        _ => from_pem(&bytes),
    };
    match found {
        Some(found) if !found.is_empty() => Ok(found),
        _ => Err(nothing(path, what)),
    }
}

/// DER values one after the other.
fn split_der(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while let [_, first, rest @ ..] = bytes {
        let (head, length) = match usize::from(*first) {
            short @ 0..=0x7f => (2, short),
            long @ 0x81..=0x84 => {
                let octets = rest.get(..long - 0x80)?;
                let length = octets.iter().fold(0_usize, |n, o| n << 8 | usize::from(*o));
                (2 + octets.len(), length)
            }
            _ => return None,
        };
        let (one, left) = bytes.split_at_checked(head.checked_add(length)?)?;
        all.push(one);
        bytes = left;
    }
    bytes.is_empty().then_some(all)
}
