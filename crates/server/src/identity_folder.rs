//! Writes what `device provision` issued as the folder that the agent and other MQTT clients use.

use std::path::Path;

use countersign_authority::folder;
use countersign_device::{DeviceProfile, KeyStore};
use countersign_factory::key::KeyFault;
use countersign_factory::{CertificateRequest, SoftwareKey};
use countersign_identity::DeviceId;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

use crate::failure::Failure;
use crate::service::Provisioned;

/// Makes sure that an identity folder can be written, and is no other device's.
///
/// # Errors
/// [`Failure`] with the cure; then nothing in it was changed.
pub fn prepare(path: &Path, device: &DeviceId) -> Result<(), Failure> {
    let elsewhere = "choose another folder with --out";
    let refused = |e: folder::FolderError| Failure {
        hint: Some(elsewhere.into()),
        ..Failure::from(e)
    };
    folder::create_private(path).map_err(refused)?;
    let probe = path.join(".countersign-probe");
    folder::write_private(&probe, b"").map_err(refused)?;
    let _ = std::fs::remove_file(&probe);
    let before: Option<serde_json::Value> = std::fs::read(path.join("device.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match before.as_ref().and_then(|profile| profile["id"].as_str()) {
        Some(id) if id != device.as_str() => Err(Failure::invalid(format!(
            "{} is the identity folder of device {id}; hint: {elsewhere}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// A certificate request for the key of an identity folder; the key is made if there is none.
///
/// # Errors
/// [`Failure`] if the folder cannot be written, or its key cannot be read.
pub fn request(path: &Path, device: &DeviceId) -> Result<String, Failure> {
    let internal = |e: KeyFault| Failure::internal(e.to_string());
    folder::create_private(path)?;
    let file = path.join("device.key");
    let key = if file.exists() {
        let bytes = zeroize::Zeroizing::new(folder::read_private(&file)?);
        let unusable = |e: &dyn std::fmt::Display| {
            Failure::invalid(format!(
                "{} is not overwritten and cannot be used: {e}; hint: choose another folder with --out, or give --csr",
                file.display()
            ))
        };
        let der = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(|e| unusable(&e))?;
        SoftwareKey::from_pkcs8(der.secret_pkcs8_der()).map_err(|e| unusable(&e))?
    } else {
        let key = SoftwareKey::generate().map_err(internal)?;
        folder::write_private(&file, key.to_pem().as_bytes())?;
        key
    };
    CertificateRequest::create(&key, device).map_err(internal)
}

/// What an identity folder holds beside the key: `device.crt`, `platform-root.crt` and `device.json`, the last last.
///
/// # Errors
/// [`Failure`] if the profile cannot be encoded.
pub fn files(provisioned: &Provisioned) -> Result<[(&'static str, Vec<u8>); 3], Failure> {
    let profile = DeviceProfile {
        id: provisioned.device.clone(),
        host: provisioned.host.clone(),
        port: provisioned.port,
        tenant: provisioned.tenant.clone(),
        enrol_port: provisioned.enrol_port,
        certificate_profile: None,
        key_store: KeyStore::File,
        attest: false,
    };
    let text = serde_json::to_string_pretty(&profile).map_err(|e| Failure::internal(e.to_string()))?;
    Ok([
        ("device.crt", provisioned.certificate.clone().into_bytes()),
        (
            "platform-root.crt",
            provisioned.platform_root.clone().into_bytes(),
        ),
        ("device.json", format!("{text}\n").into_bytes()),
    ])
}

/// Writes [`files`].
///
/// # Errors
/// [`Failure`] if a file cannot be written.
pub fn write(path: &Path, provisioned: &Provisioned) -> Result<(), Failure> {
    folder::create_private(path)?;
    for (name, bytes) in files(provisioned)? {
        folder::write_private(&path.join(name), &bytes)?;
    }
    Ok(())
}

/// What is said where `device.json` has no port for enrolment: the agent goes on until the certificate ends, and then is
/// refused. `None` if there is one.
pub fn no_renewal(provisioned: &Provisioned) -> Option<String> {
    provisioned.enrol_port.is_none().then(|| {
        format!(
            "warning: there is no listener of purpose enrol, so device.json names no enrol_port: the agent cannot renew the certificate, which ends at {}\nhint: open one ([[listeners]] in countersign.toml, purpose = \"enrol\"; restart) and repeat the command, or write enrol_port into device.json; a device that renews by other means needs none",
            provisioned.not_after
        )
    })
}

/// The `mosquitto_pub` line that publishes with an identity folder.
pub fn mosquitto_line(path: &Path, provisioned: &Provisioned) -> String {
    let file = |name: &str| path.join(name).display().to_string();
    format!(
        "mosquitto_pub -h {} -p {} --cafile {} --cert {} --key {} -i {id} -q 1 -t devices/{id}/telemetry -m '{{\"temperature\": 21.5}}'",
        provisioned.host,
        provisioned.port,
        file("platform-root.crt"),
        file("device.crt"),
        file("device.key"),
        id = provisioned.device,
    )
}
