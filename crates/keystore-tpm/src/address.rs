//! Which TPM, in the words of tpm2-tools (their option `--tcti`).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::TpmError;

/// The default port of swtpm; its control channel is the next one.
const SWTPM_PORT: u16 = 2321;

/// Which TPM. As text, and from text:
///
/// * `device:/dev/tpmrm0`: a TPM of this machine. This path goes through the kernel's resource manager, so that several
///   programs may use the TPM at once; `/dev/tpm0` is for one program alone.
/// * `swtpm:host=127.0.0.1,port=2321`: a TPM in software, for tests. Both parts may be left out: these are the defaults.
///   The control channel is at the next port.
/// * `tabrmd`: a TPM of this machine through the daemon tpm2-abrmd, on the system bus.
///
/// The default is `device:/dev/tpmrm0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TpmAddress(Place);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// The path is text, for it goes into a TCTI string.
    Device(String),
    Swtpm {
        host: String,
        port: u16,
    },
    Tabrmd,
}

impl TpmAddress {
    pub(crate) fn place(&self) -> &Place {
        &self.0
    }
}

impl Default for TpmAddress {
    fn default() -> Self {
        Self(Place::Device("/dev/tpmrm0".into()))
    }
}

impl fmt::Display for TpmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Device(path) => write!(f, "device:{path}"),
            Place::Swtpm { host, port } => write!(f, "swtpm:host={host},port={port}"),
            Place::Tabrmd => f.write_str("tabrmd"),
        }
    }
}

impl FromStr for TpmAddress {
    type Err = TpmError;

    /// # Errors
    /// [`TpmError::Address`] with the fault.
    fn from_str(text: &str) -> Result<Self, TpmError> {
        let fault = |what: &str| Err(TpmError::Address(format!("{text:?}: {what}")));
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        match (kind, rest) {
            // Libraries differ in which device they take if none is named.
            ("device", None | Some("")) => fault("it names no device"),
            ("device", Some(path)) if !path.starts_with('/') => {
                fault("the path of the device is not absolute")
            }
            ("device", Some(path)) if path.contains(char::is_control) => {
                fault("there are control characters in the path of the device")
            }
            // What follows a + says how keys are made there.
            ("device", Some(path)) if path.contains('+') => fault("there is a + in the path of the device"),
            ("device", Some(path)) => Ok(Self(Place::Device(path.into()))),
            ("swtpm", rest) => match swtpm(rest.unwrap_or_default()) {
                Ok(place) => Ok(Self(place)),
                Err(what) => fault(what),
            },
            ("tabrmd", None) => Ok(Self(Place::Tabrmd)),
            ("tabrmd", Some(_)) => fault("tabrmd has no parts here: it is the one on the system bus"),
            _ => fault("it begins with none of device:, swtpm: and tabrmd"),
        }
    }
}

fn swtpm(rest: &str) -> Result<Place, &'static str> {
    let (mut host, mut port) = (None, None);
    for part in rest.split(',').filter(|_| !rest.is_empty()) {
        match part.split_once('=') {
            Some(("host", value)) if host.is_none() => host = Some(value),
            Some(("port", value)) if port.is_none() => port = Some(value),
            Some(("host" | "port", _)) => return Err("a part is there twice"),
            _ => return Err("its parts are host=... and port=..."),
        }
    }
    let host = host.unwrap_or("127.0.0.1");
    let is_name = |h: &str| {
        h.starts_with(|c: char| c.is_ascii_alphanumeric())
            && h.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c))
    };
    if host.parse::<IpAddr>().is_err() && !is_name(host) {
        return Err("the host is neither a name nor an IP address");
    }
    let port = match port.map(str::parse::<u16>) {
        None => SWTPM_PORT,
        Some(Ok(port @ 1..=65534)) => port,
        Some(_) => return Err("the port is not one from 1 to 65534 (the next one is for control)"),
    };
    Ok(Place::Swtpm {
        host: host.into(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, canonical) in [
            ("device:/dev/tpmrm0", "device:/dev/tpmrm0"),
            ("device:/dev/tpm0", "device:/dev/tpm0"),
            ("swtpm:host=127.0.0.1,port=2321", "swtpm:host=127.0.0.1,port=2321"),
            ("swtpm:port=7,host=tpm.test", "swtpm:host=tpm.test,port=7"),
            ("swtpm:port=65534", "swtpm:host=127.0.0.1,port=65534"),
            ("swtpm:host=::1", "swtpm:host=::1,port=2321"),
            ("swtpm:", "swtpm:host=127.0.0.1,port=2321"),
            ("swtpm", "swtpm:host=127.0.0.1,port=2321"),
            ("tabrmd", "tabrmd"),
        ] {
            let address: TpmAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), canonical);
            assert_eq!(canonical.parse::<TpmAddress>().unwrap(), address);
        }
        assert_eq!(TpmAddress::default().to_string(), "device:/dev/tpmrm0");
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_fault() {
        for (text, word) in [
            ("", "begins with none"),
            ("/dev/tpmrm0", "begins with none"),
            ("mssim:host=x", "begins with none"),
            ("cmd:sh -c id", "begins with none"),
            ("device", "no device"),
            ("device:", "no device"),
            ("device:tpm0", "absolute"),
            ("device:/dev/tpm\0", "control"),
            ("device:/dev/tpmrm0+pcr=sha256:0", "a +"),
            ("swtpm:path=/run/x", "parts are"),
            ("swtpm:host=a,", "parts are"),
            ("swtpm:port=1,port=2", "twice"),
            ("swtpm:port=0", "from 1"),
            ("swtpm:port=65535", "from 1"),
            ("swtpm:port=x", "from 1"),
            ("swtpm:host=", "neither"),
            ("swtpm:host=a b", "neither"),
            ("swtpm:host=-a", "neither"),
            ("tabrmd:bus_type=session", "system bus"),
        ] {
            let message = text.parse::<TpmAddress>().unwrap_err().to_string();
            assert!(message.contains(word), "{text}: {message}");
            assert!(message.contains("hint: device:/dev/tpmrm0"), "{message}");
        }
    }
}
