//! Writes what `device provision` issued as the folder that the agent and other MQTT clients use.

use std::path::Path;

use countersign_authority::folder;

use crate::failure::Failure;
use crate::service::Provisioned;

/// Writes `device.crt`, `device.key` (if the server made it), `platform-root.crt` and `device.json`.
///
/// # Errors
/// [`Failure`] if a file cannot be written, or a key is there that would be lost.
pub fn write(path: &Path, provisioned: &Provisioned) -> Result<(), Failure> {
    folder::create_private(path)?;
    let key_file = path.join("device.key");
    if let Some(key) = &provisioned.key {
        if key_file.exists() {
            return Err(Failure::invalid(format!(
                "{} exists and is not overwritten; hint: choose another folder, or remove it if that identity is given up",
                key_file.display()
            )));
        }
        folder::write_private(&key_file, key.as_bytes())?;
    }
    folder::write_private(&path.join("device.crt"), provisioned.certificate.as_bytes())?;
    folder::write_private(
        &path.join("platform-root.crt"),
        provisioned.platform_root.as_bytes(),
    )?;
    let profile = serde_json::json!({
        "id": provisioned.device,
        "host": provisioned.host,
        "port": provisioned.port,
    });
    folder::write_private(&path.join("device.json"), format!("{profile:#}\n").as_bytes())?;
    Ok(())
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
