//! Reads what `device import` is given, before anything is sent: a wrong line stops it with nothing done.

use std::path::{Path, PathBuf};

use countersign_factory::manifest::ManifestEntry;
use countersign_identity::{CertificateFacts, IdentityRule};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use crate::api::ImportDevice;
use crate::failure::Failure;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    #[serde(default)]
    model: Option<String>,
    /// Names with `;` between them.
    #[serde(default)]
    groups: Option<String>,
    #[serde(default)]
    state: Option<String>,
    /// The authority whose certificates may be learned for it.
    #[serde(default)]
    authority: Option<String>,
    /// A PEM file, relative to the CSV file.
    #[serde(default)]
    certificate: Option<PathBuf>,
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| Failure::invalid(format!("cannot read {}: {e}", path.display())))
}

/// The devices of a CSV file, a folder of certificates, or a PEM file with many.
///
/// # Errors
/// [`Failure`] that names the file and the line.
pub fn devices(path: &Path, rule: &IdentityRule, groups: &[String]) -> Result<Vec<ImportDevice>, Failure> {
    let found = if path.is_dir() {
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
            .map_err(|e| Failure::invalid(format!("cannot read {}: {e}", path.display())))?;
        files.retain(|f| {
            f.extension()
                .is_some_and(|e| ["crt", "pem", "cer"].iter().any(|x| e == *x))
        });
        files.sort();
        let mut found = Vec::new();
        for file in files {
            // The first certificate of a file is the device's; what follows is its chain.
            let leaf = certificates(&file)?.into_iter().next();
            let leaf =
                leaf.ok_or_else(|| Failure::invalid(format!("{} holds no certificate", file.display())))?;
            found.push(of_certificate(&leaf, rule, groups, &file)?);
        }
        found
    } else if path.extension().is_some_and(|e| e == "csv") {
        of_csv(path)?
    } else {
        certificates(path)?
            .iter()
            .map(|c| of_certificate(c, rule, groups, path))
            .collect::<Result<_, _>>()?
    };
    if found.is_empty() {
        return Err(Failure::invalid(format!(
            "{} holds no devices; hint: a CSV file with the header id,model,groups,state,authority,certificate, a folder with *.crt, *.pem or *.cer files, or a PEM file",
            path.display()
        )));
    }
    Ok(found)
}

/// The entries of a manifest. One that has not the form of an entry at all stops it, with nothing done.
///
/// # Errors
/// [`Failure`] that names the file.
pub fn manifest(path: &Path) -> Result<Vec<ManifestEntry>, Failure> {
    let found: Vec<ManifestEntry> = serde_json::from_slice(&read(path)?).map_err(|e| {
        Failure::invalid(format!(
            "{} is no manifest: {e}; hint: a JSON list of entries with payload, protected and signature",
            path.display()
        ))
    })?;
    if found.is_empty() {
        return Err(Failure::invalid(format!(
            "{} has no entries; hint: get it again from the manufacturer",
            path.display()
        )));
    }
    Ok(found)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))
}

fn of_certificate(
    der: &CertificateDer<'_>,
    rule: &IdentityRule,
    groups: &[String],
    path: &Path,
) -> Result<ImportDevice, Failure> {
    let wrong = |e: String| Failure::invalid(format!("{}: {e}", path.display()));
    let facts = CertificateFacts::parse(der).map_err(|e| wrong(e.to_string()))?;
    let id = rule.read(&facts).map_err(|e| wrong(e.to_string()))?;
    Ok(ImportDevice {
        id,
        model: None,
        groups: groups.to_vec(),
        state: countersign_policy::LifecycleState::Active,
        authority: None,
        certificate: Some(countersign_factory::request::pem("CERTIFICATE", der)),
    })
}

fn of_csv(path: &Path) -> Result<Vec<ImportDevice>, Failure> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let bytes = read(path)?;
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(bytes.as_slice());
    let mut found = Vec::new();
    for (n, row) in reader.deserialize::<Row>().enumerate() {
        let wrong = |e: String| Failure::invalid(format!("{}, line {}: {e}", path.display(), n + 2));
        let row = row.map_err(|e| wrong(e.to_string()))?;
        let given = |text: Option<String>| text.filter(|t| !t.is_empty());
        let certificate = match row.certificate.filter(|p| !p.as_os_str().is_empty()) {
            Some(file) => {
                let bytes = read(&folder.join(file)).map_err(|e| wrong(e.message))?;
                Some(String::from_utf8(bytes).map_err(|_| wrong("the certificate is no PEM".into()))?)
            }
            None => None,
        };
        found.push(ImportDevice {
            id: row
                .id
                .parse()
                .map_err(|e: countersign_identity::IdError| wrong(e.to_string()))?,
            model: given(row.model),
            groups: given(row.groups)
                .map(|g| {
                    g.split(';')
                        .map(|g| g.trim().to_owned())
                        .filter(|g| !g.is_empty())
                        .collect()
                })
                .unwrap_or_default(),
            state: match given(row.state) {
                Some(text) => text.parse().map_err(wrong)?,
                None => countersign_policy::LifecycleState::Active,
            },
            authority: given(row.authority)
                .map(|a| {
                    a.parse()
                        .map_err(|e: countersign_identity::IdError| wrong(e.to_string()))
                })
                .transpose()?,
            certificate,
        });
    }
    Ok(found)
}
