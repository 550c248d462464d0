//! Which key in which token: a PKCS#11 URI (RFC 7512).

use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::error::TokenError;

/// A PKCS#11 URI that names one private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUri {
    /// `module-path`: the module.
    pub module: PathBuf,
    /// `token`: its label.
    pub token: Option<String>,
    /// `serial`: the token's serial number.
    pub serial: Option<String>,
    /// `manufacturer`: the token's.
    pub manufacturer: Option<String>,
    /// `model`: the token's.
    pub model: Option<String>,
    /// `slot-id`: the slot.
    pub slot: Option<u64>,
    /// `object`: the key's CKA_LABEL.
    pub object: Option<String>,
    /// `id`: the key's CKA_ID.
    pub id: Option<Vec<u8>>,
    /// `pin-source`: where the PIN is; `None` for a token with a keypad or without login.
    pub pin: Option<PinSource>,
}

/// Where a PIN is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    /// A file that only its owner can read.
    File(PathBuf),
    /// A credential that systemd gives to the service (systemd.exec(5), LoadCredential=).
    Credential(String),
}

impl std::fmt::Display for PinSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
        }
    }
}

fn wrong(what: impl Into<String>) -> TokenError {
    TokenError::Uri(what.into())
}

/// Percent-decoding (RFC 3986 section 2.1).
fn decode(text: &str) -> Result<Vec<u8>, TokenError> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(wrong(format!("{text:?} has a % without two hexadecimal digits")));
        };
        out.extend(u8::try_from(high * 16 + low));
    }
    Ok(out)
}

fn text(value: &str) -> Result<String, TokenError> {
    String::from_utf8(decode(value)?).map_err(|_| wrong(format!("{value:?} is no UTF-8")))
}

impl FromStr for TokenUri {
    type Err = TokenError;

    fn from_str(uri: &str) -> Result<Self, TokenError> {
        let rest = uri
            .strip_prefix("pkcs11:")
            .ok_or_else(|| wrong("it does not begin with pkcs11:"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut found = Self {
            module: PathBuf::new(),
            token: None,
            serial: None,
            manufacturer: None,
            model: None,
            slot: None,
            object: None,
            id: None,
            pin: None,
        };
        let mut seen: Vec<&str> = Vec::new();
        let parts = path.split(';').chain(query.split('&')).filter(|p| !p.is_empty());
        for part in parts {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| wrong(format!("{part:?} has no =")))?;
            if seen.contains(&name) {
                return Err(wrong(format!("{name} is given twice")));
            }
            seen.push(name);
            match name {
                "token" => found.token = Some(text(value)?),
                "serial" => found.serial = Some(text(value)?),
                "manufacturer" => found.manufacturer = Some(text(value)?),
                "model" => found.model = Some(text(value)?),
                "object" => found.object = Some(text(value)?),
                "id" => found.id = Some(decode(value)?),
                "slot-id" => {
                    found.slot = Some(value.parse().map_err(|_| wrong("slot-id is no number"))?);
                }
                "type" if value == "private" => {}
                "type" => return Err(wrong("it names no private key (type=private)")),
                "module-path" => found.module = PathBuf::from(text(value)?),
                "pin-source" => found.pin = Some(pin_source(&text(value)?)?),
                // It would be in configuration, backups and process lists.
                "pin-value" => {
                    return Err(wrong(
                        "a PIN does not belong into it: put it into a file (pin-source)",
                    ));
                }
                other => return Err(wrong(format!("{other} is not known here"))),
            }
        }
        if !found.module.is_absolute() {
            return Err(wrong("module-path, the module's absolute path, is missing"));
        }
        if found.token.is_none() && found.serial.is_none() && found.slot.is_none() {
            return Err(wrong("it names no token (token=, serial= or slot-id=)"));
        }
        if found.object.is_none() && found.id.is_none() {
            return Err(wrong("it names no key (object= or id=)"));
        }
        Ok(found)
    }
}

/// Percent-encoding of all but the unreserved characters (RFC 3986 section 2.3) and the slash, which a query may have.
fn encode(value: &[u8], keep_slash: bool) -> String {
    value
        .iter()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(*b).to_string(),
            b'/' if keep_slash => "/".into(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

impl std::fmt::Display for TokenUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = |name: &str, value: &Option<String>| {
            value
                .as_ref()
                .map(|v| format!("{name}={}", encode(v.as_bytes(), false)))
        };
        let path = [
            named("token", &self.token),
            named("serial", &self.serial),
            named("manufacturer", &self.manufacturer),
            named("model", &self.model),
            self.slot.map(|s| format!("slot-id={s}")),
            named("object", &self.object),
            // All of it encoded, as RFC 7512 section 2.3 asks for binary data.
            self.id.as_ref().map(|id| {
                let octets: String = id.iter().map(|b| format!("%{b:02X}")).collect();
                format!("id={octets}")
            }),
        ];
        let path: Vec<String> = path.into_iter().flatten().collect();
        let module = encode(self.module.as_os_str().as_encoded_bytes(), true);
        write!(f, "pkcs11:{}?module-path={module}", path.join(";"))?;
        match &self.pin {
            Some(PinSource::File(path)) => {
                write!(
                    f,
                    "&pin-source={}",
                    encode(path.as_os_str().as_encoded_bytes(), true)
                )
            }
            Some(PinSource::Credential(name)) => {
                write!(f, "&pin-source=credential:{}", encode(name.as_bytes(), false))
            }
            None => Ok(()),
        }
    }
}

fn pin_source(value: &str) -> Result<PinSource, TokenError> {
    if let Some(name) = value.strip_prefix("credential:") {
        if name.is_empty() || name.contains('/') || name == ".." {
            return Err(wrong("pin-source=credential:NAME names no credential"));
        }
        return Ok(PinSource::Credential(name.to_owned()));
    }
    let path = value.strip_prefix("file:").unwrap_or(value);
    let path = path.strip_prefix("//").unwrap_or(path);
    if Path::new(path).is_absolute() {
        return Ok(PinSource::File(PathBuf::from(path)));
    }
    Err(wrong(
        "pin-source is neither an absolute path, file:/PATH, nor credential:NAME; programs are not run",
    ))
}

impl TokenUri {
    /// The same token, and the key whose label has `suffix` after it. The id is the first key's alone.
    ///
    /// # Errors
    /// [`TokenError::Uri`] if there is no label.
    pub fn with_suffix(mut self, suffix: &str) -> Result<Self, TokenError> {
        if suffix.is_empty() {
            return Ok(self);
        }
        let object = self
            .object
            .ok_or_else(|| wrong("two keys are needed, so name them by label (object=)"))?;
        self.object = Some(object + suffix);
        self.id = None;
        Ok(self)
    }

    /// The token, for people.
    pub fn token_text(&self) -> String {
        let part = |name: &str, value: &Option<String>| value.as_ref().map(|v| format!("{name} {v:?}"));
        let parts = [
            part("named", &self.token),
            part("with serial number", &self.serial),
            part("made by", &self.manufacturer),
            part("of model", &self.model),
            self.slot.map(|s| format!("in slot {s}")),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// The key, for people.
    pub fn key_text(&self) -> String {
        match (&self.object, &self.id) {
            (Some(object), None) => format!("{object:?}"),
            (object, Some(id)) => {
                let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
                format!("{:?} with id {id}", object.as_deref().unwrap_or_default())
            }
            (None, None) => String::new(),
        }
    }
}

impl PinSource {
    /// The PIN. A line end at its end is not part of it.
    ///
    /// # Errors
    /// [`TokenError::Pin`].
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, TokenError> {
        use std::os::unix::fs::MetadataExt;
        let failed = |what: String| TokenError::Pin(what);
        let path = match self {
            Self::File(path) => {
                let mode = std::fs::metadata(path)
                    .map_err(|e| {
                        failed(format!(
                            "{}: {e}; hint: put the PIN into this file, chmod 600",
                            path.display()
                        ))
                    })?
                    .mode();
                if mode & 0o077 != 0 {
                    return Err(failed(format!(
                        "others may read {}; hint: chmod 600 {}",
                        path.display(),
                        path.display()
                    )));
                }
                path.clone()
            }
            Self::Credential(name) => {
                let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    failed(format!(
                        "the service has no credentials; hint: LoadCredential={name}:FILE in its unit"
                    ))
                })?;
                PathBuf::from(folder).join(name)
            }
        };
        let mut bytes =
            Zeroizing::new(std::fs::read(&path).map_err(|e| failed(format!("{}: {e}", path.display())))?);
        while matches!(bytes.last(), Some(b'\n' | b'\r')) {
            bytes.pop();
        }
        if bytes.is_empty() {
            return Err(failed(format!(
                "{} is empty; hint: put the PIN into it",
                path.display()
            )));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_uri_is_read() {
        let uri: TokenUri = "pkcs11:token=The%20CA;object=issuing;id=%01%aB;type=private?module-path=/lib/m.so&pin-source=file:///etc/pin"
            .parse()
            .unwrap();
        assert_eq!(uri.token.as_deref(), Some("The CA"));
        assert_eq!(uri.object.as_deref(), Some("issuing"));
        assert_eq!(uri.id, Some(vec![1, 0xab]));
        assert_eq!(uri.module, PathBuf::from("/lib/m.so"));
        assert_eq!(uri.pin, Some(PinSource::File("/etc/pin".into())));
        let root = uri.with_suffix("-root").unwrap();
        assert_eq!((root.object.as_deref(), root.id), (Some("issuing-root"), None));
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for text in [
            "pkcs11:token=The%20CA%3B1;object=issuing;id=%01%aB?module-path=/lib/m.so&pin-source=file:///etc/a%20pin",
            "pkcs11:serial=7;slot-id=3;object=b%26c?module-path=/lib/m.so&pin-source=credential:pin",
            "pkcs11:model=m;manufacturer=%C3%BC;token=t;object=b?module-path=/lib/m%25.so",
        ] {
            let uri: TokenUri = text.parse().unwrap();
            assert_eq!(uri.to_string().parse::<TokenUri>().unwrap(), uri, "{uri}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_the_cause() {
        let module = "?module-path=/lib/m.so";
        for (uri, word) in [
            ("https://x".to_owned(), "begin"),
            ("pkcs11:token=a;object=b".into(), "module-path"),
            (format!("pkcs11:object=b{module}"), "no token"),
            (format!("pkcs11:token=a{module}"), "no key"),
            (format!("pkcs11:token=a;object=b{module}&pin-value=1234"), "file"),
            (
                format!("pkcs11:token=a;object=b{module}&pin-source=|cat"),
                "programs",
            ),
            (
                format!("pkcs11:token=a;object=b{module}&pin-source=credential:../x"),
                "credential",
            ),
            (format!("pkcs11:token=a;token=b;object=b{module}"), "twice"),
            (format!("pkcs11:token=a%2;object=b{module}"), "hexadecimal"),
            (format!("pkcs11:token=a;object=b;type=cert{module}"), "private"),
            (
                format!("pkcs11:token=a;object=b;library-version=2{module}"),
                "not known",
            ),
            (
                format!("pkcs11:token=a;object=b{module}&pin-source=pin"),
                "absolute",
            ),
        ] {
            let message = uri.parse::<TokenUri>().unwrap_err().to_string();
            assert!(
                message.contains(word) && message.contains("hint: "),
                "{uri}: {message}"
            );
            assert!(!message.contains("1234"), "{message}");
        }
    }
}
