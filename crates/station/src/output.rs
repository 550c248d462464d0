//! What the command line prints and writes.

use std::io::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign_authority::folder;
use countersign_factory::{ProvenKey, SoftwareKey};
use countersign_identity::Timestamp;
use countersign_identity::signed::Signer;
use countersign_station::{Fault, Handed};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use serde_json::{Value, json};

/// JSON or words.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// One answer: one line of JSON, or words.
    pub(crate) fn say(self, answer: Value, words: impl FnOnce(&Value) -> String) -> Result<(), Fault> {
        let text = if self.json {
            answer.to_string()
        } else {
            words(&answer)
        };
        bytes(format!("{text}\n").as_bytes())
    }

    /// A failure, on standard error: cause and cure on lines of their own.
    pub(crate) fn fault(self, fault: &Fault) {
        let text = fault.to_string();
        let (message, hint) = match text.split_once("; hint: ") {
            Some((message, hint)) => (message, Some(hint)),
            None => (text.as_str(), None),
        };
        if self.json {
            let error = json!({ "code": fault.code(), "message": message, "hint": hint });
            eprintln!("{}", json!({ "error": error }));
            return;
        }
        eprintln!("error: {message} [{}]", fault.code());
        if let Some(hint) = hint {
            eprintln!("hint: {hint}");
        }
    }
}

/// Bytes as they are. Whoever closes the pipe has read what they wanted.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fault::storage("write", "standard output")(e))
        }
        _ => Ok(()),
    }
}

pub(crate) fn value(answer: &impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(answer).map_err(|e| Fault::Failed(e.to_string()))
}

pub(crate) fn standing(v: &Value) -> String {
    let text = |name: &str| match &v[name] {
        Value::String(s) => s.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    };
    let time = |name: &str| {
        v[name]
            .as_i64()
            .map_or("-".into(), |ms| Timestamp::from_unix_ms(ms).to_string())
    };
    let unconfirmed: Vec<_> = v["unconfirmed"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .take(20)
        .collect();
    let mut lines = vec![format!("state        {}", text("state"))];
    if !v["station"].is_null() {
        lines.extend([
            format!("station      {}", text("station")),
            format!("batch        {}", text("batch")),
            format!("ids          {}", text("ids")),
            format!(
                "window       {} to {} ({})",
                time("from"),
                time("to"),
                text("window")
            ),
            format!("issued       {} of {}", text("issued"), text("quota")),
            format!("written      {}", text("written")),
            format!("confirmed    {}", text("confirmed")),
            format!("grant        {}", text("grant")),
            format!("journal      {} records, {}", text("records"), text("head")),
            format!("newest time  {}", time("newest")),
        ]);
    }
    if !unconfirmed.is_empty() {
        lines.push(format!("unconfirmed  {}", unconfirmed.join(" ")));
    }
    lines.join("\n")
}

fn folder_fault(e: folder::FolderError) -> Fault {
    match e {
        folder::FolderError::Io { what, path, source } => {
            Fault::storage(what, path.display().to_string())(source)
        }
        exposed => Fault::Invalid(exposed.to_string()),
    }
}

/// A file that is whole or not there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    folder::write_private(path, bytes).map_err(folder_fault)
}

fn load_key(file: &Path) -> Result<SoftwareKey, Fault> {
    let bytes = zeroize::Zeroizing::new(folder::read_private(file).map_err(folder_fault)?);
    let unusable = |e: &dyn std::fmt::Display| {
        Fault::Invalid(format!(
            "{} cannot be used: {e}; hint: give --csr, or choose another folder with --out",
            file.display()
        ))
    };
    let der = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|e| unusable(&e))?;
    SoftwareKey::from_pkcs8(der.secret_pkcs8_der()).map_err(|e| unusable(&e))
}

/// The key of an identity folder, made and durable if there is none.
pub(crate) fn device_key(path: &Path) -> Result<ProvenKey, Fault> {
    let file = path.join("device.key");
    if file.exists() {
        return Ok(ProvenKey::of(&load_key(&file)?));
    }
    folder::create_private(path).map_err(folder_fault)?;
    let key = SoftwareKey::generate()?;
    write(&file, key.to_pem().as_bytes())?;
    Ok(ProvenKey::of(&key))
}

/// The identity folder that the agent and other clients use.
pub(crate) fn identity(path: &Path, handed: &Handed) -> Result<(), Fault> {
    folder::create_private(path).map_err(folder_fault)?;
    write(&path.join("device.crt"), handed.certificate.as_bytes())?;
    write(&path.join("platform-root.crt"), handed.platform_root.as_bytes())?;
    let profile = json!({ "id": handed.device, "host": handed.host, "port": handed.port });
    write(&path.join("device.json"), format!("{profile:#}\n").as_bytes())
}

/// Signs a challenge with the key of an identity folder.
pub(crate) fn sign(identity: &Path, challenge: &str) -> Result<Vec<u8>, Fault> {
    load_key(&identity.join("device.key"))?
        .sign(challenge.as_bytes())
        .map_err(|e| Fault::Failed(e.to_string()))
}

/// Binary, or base64 with or without line breaks.
pub(crate) fn signature(bytes: Vec<u8>) -> Vec<u8> {
    let compact: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    STANDARD.decode(&compact).unwrap_or(bytes)
}
