//! The forms in which identities are handed to a line.

use std::path::{Path, PathBuf};

use countersign_authority::folder;
use countersign_factory::{SoftwareKey, pkcs12};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::arguments::Layout;
use crate::failure::Failure;
use crate::identity_folder;
use crate::service::Provisioned;

/// The longest text that the NVS library stores as a string, in bytes with its end.
const NVS_STRING_MAX: usize = 4000;
/// The NVS namespace that firmware opens.
const NVS_NAMESPACE: &str = "countersign";

/// One file of an identity: its path below the output folder, and what is in it.
pub type OutputFile = (PathBuf, Zeroizing<Vec<u8>>);

/// Reads the password of PKCS#12 files: the first line of a file that only its owner may read.
///
/// # Errors
/// [`Failure`] if others can read it, or it is no password.
pub fn password(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let bytes = Zeroizing::new(
        folder::read_private(path)
            .map_err(|e| Failure::invalid(e.to_string().replace("a private key", "a password")))?,
    );
    let text = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|t| t.lines().next())
        .unwrap_or_default();
    pkcs12::check_password(text).map_err(|e| Failure::invalid(format!("{}: {e}", path.display())))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The name under which an identity stands in the index.
pub fn name(layout: Layout, id: &str) -> String {
    match layout {
        Layout::PemFolders | Layout::Esp32 => id.to_owned(),
        Layout::Pkcs12 => format!("{id}.p12"),
        Layout::Archive => format!("identities.tar/{id}"),
    }
}

/// The files of one identity. `key` is `None` if the device has made it and keeps it.
///
/// # Errors
/// [`Failure`] if the layout cannot hold it.
pub fn files(
    layout: Layout,
    provisioned: &Provisioned,
    key: Option<&SoftwareKey>,
    password: Option<&str>,
) -> Result<Vec<OutputFile>, Failure> {
    let id = provisioned.device.as_str();
    let folder = Path::new(id);
    let own = |name: &str, bytes: &[u8]| (folder.join(name), Zeroizing::new(bytes.to_vec()));
    if layout == Layout::Pkcs12 {
        let (Some(key), Some(password)) = (key, password) else {
            return Err(Failure::invalid(
                "a PKCS#12 file holds a private key and has a password; hint: give --password-file, and let keys be made here, or use --layout pem-folders",
            ));
        };
        let certificates = CertificateDer::pem_slice_iter(provisioned.certificate.as_bytes())
            .map(|c| c.map(|c| c.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| Failure::internal(format!("the certificate cannot be read: {e}")))?;
        let file = pkcs12::encode(id, key.to_pkcs8(), &certificates, password)
            .map_err(|e| Failure::invalid(e.to_string()))?;
        return Ok(vec![(PathBuf::from(name(layout, id)), file)]);
    }
    let mut found: Vec<OutputFile> = Vec::new();
    if let Some(key) = key {
        found.push(own("device.key", key.to_pem().as_bytes()));
    }
    for (name, bytes) in identity_folder::files(provisioned)? {
        found.push(own(name, &bytes));
    }
    if layout == Layout::Esp32 {
        found.push(own("nvs.csv", nvs(provisioned, key)?.as_bytes()));
    }
    Ok(found)
}

/// The input of Espressif's NVS partition generator, which is run in the device's folder.
fn nvs(provisioned: &Provisioned, key: Option<&SoftwareKey>) -> Result<String, Failure> {
    for (what, text) in [
        ("the certificate with its issuer", &provisioned.certificate),
        ("the platform root", &provisioned.platform_root),
    ] {
        if text.len() >= NVS_STRING_MAX {
            return Err(Failure::invalid(format!(
                "{what} has {} bytes, an NVS string at most {NVS_STRING_MAX}; hint: use an authority with a smaller key, or --layout pem-folders",
                text.len()
            )));
        }
    }
    let mut text = format!(
        "key,type,encoding,value\n{NVS_NAMESPACE},namespace,,\ndevice_id,data,string,{}\nhost,data,string,{}\nport,data,u16,{}\ndevice_crt,file,string,device.crt\nplatform_root,file,string,platform-root.crt\n",
        provisioned.device, provisioned.host, provisioned.port,
    );
    if key.is_some() {
        text.push_str("device_key,file,string,device.key\n");
    }
    Ok(text)
}
