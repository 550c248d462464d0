//! Which devices are to be issued for: a range, a list, or a folder of requests.

use std::path::{Path, PathBuf};

use countersign_factory::CertificateRequest;
use countersign_identity::DeviceId;
use serde::Deserialize;

use super::arguments::{IdFrom, IssueArguments};
use crate::failure::Failure;

/// The most devices of one run.
const RUN_MAX: u64 = 10_000_000;

/// One device, and its request if it brings its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its id.
    pub id: DeviceId,
    /// Its PKCS#10 file.
    pub csr: Option<PathBuf>,
}

/// How ids are made from numbers: text around one `{}` or `{:06}`.
struct IdFormat<'a> {
    before: &'a str,
    after: &'a str,
    width: usize,
}

impl<'a> IdFormat<'a> {
    fn parse(text: &'a str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::invalid(format!(
                "{text:?} is no id format; hint: write text around one {{}} or {{:06}}, such as SN-{{:06}}"
            ))
        };
        let (before, rest) = text.split_once('{').ok_or_else(wrong)?;
        let (place, after) = rest.split_once('}').ok_or_else(wrong)?;
        let width = match place.strip_prefix(":0") {
            Some(digits) => digits.parse().ok().filter(|w| (1..=20).contains(w)),
            None => place.is_empty().then_some(0),
        };
        if after.contains(['{', '}']) || before.contains('}') {
            return Err(wrong());
        }
        Ok(Self {
            before,
            after,
            width: width.ok_or_else(wrong)?,
        })
    }

    fn id(&self, n: u64) -> String {
        format!("{}{n:0width$}{}", self.before, self.after, width = self.width)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    /// A PEM file, relative to the list.
    #[serde(default)]
    csr: Option<PathBuf>,
}

fn id(text: &str, place: &dyn std::fmt::Display) -> Result<DeviceId, Failure> {
    DeviceId::new(text)
        .map_err(|e| Failure::invalid(format!("{place}: {e}; hint: give each device such an id")))
}

/// The devices that the command line names, in its order.
///
/// # Errors
/// [`Failure`] that names file and line; then nothing was asked for.
pub fn wanted(arguments: &IssueArguments) -> Result<Vec<Wanted>, Failure> {
    let found = match (&arguments.format, &arguments.list, &arguments.csr) {
        (Some(format), None, None) => of_range(format, arguments.from, arguments.count.unwrap_or(0))?,
        (None, Some(list), None) => of_list(list)?,
        (None, None, Some(folder)) => of_folder(folder, arguments.id_from)?,
        _ => {
            return Err(Failure::invalid(
                "it is not said for which devices; hint: --format 'SN-{:06}' --from 1 --count 100, or --list FILE, or --csr FOLDER",
            ));
        }
    };
    let mut seen = std::collections::HashSet::new();
    if let Some(twice) = found.iter().find(|w| !seen.insert(&w.id)) {
        return Err(Failure::invalid(format!(
            "device {} is named twice; hint: give each device an id of its own",
            twice.id
        )));
    }
    Ok(found)
}

fn of_range(format: &str, from: u64, count: u64) -> Result<Vec<Wanted>, Failure> {
    if count == 0 || count > RUN_MAX {
        return Err(Failure::invalid(format!(
            "a run makes 1 to {RUN_MAX} devices; hint: --count says how many"
        )));
    }
    let last = from
        .checked_add(count - 1)
        .ok_or_else(|| Failure::invalid("the range ends beyond the greatest number"))?;
    let parsed = IdFormat::parse(format)?;
    (from..=last)
        .map(|n| {
            Ok(Wanted {
                id: id(&parsed.id(n), &format!("--format {format}"))?,
                csr: None,
            })
        })
        .collect()
}

/// A CSV file with the header `id` or `id,csr`, or a file with one id a line.
fn of_list(path: &Path) -> Result<Vec<Wanted>, Failure> {
    let text = super::super::commands::read(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let header = text.lines().next().unwrap_or_default();
    let is_csv = header.split(',').any(|h| h.trim() == "id");
    let mut found = Vec::new();
    if is_csv {
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes());
        for (n, row) in reader.deserialize::<Row>().enumerate() {
            let place = format!("{}, line {}", path.display(), n + 2);
            let row = row.map_err(|e| Failure::invalid(format!("{place}: {e}")))?;
            found.push(Wanted {
                id: id(&row.id, &place)?,
                csr: row
                    .csr
                    .filter(|p| !p.as_os_str().is_empty())
                    .map(|p| folder.join(p)),
            });
        }
    } else {
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            found.push(Wanted {
                id: id(line, &format!("{}, line {}", path.display(), n + 1))?,
                csr: None,
            });
        }
    }
    if found.is_empty() {
        return Err(Failure::invalid(format!(
            "{} names no device; hint: one id a line, or a CSV file with the header id or id,csr",
            path.display()
        )));
    }
    Ok(found)
}

fn of_folder(path: &Path, from: IdFrom) -> Result<Vec<Wanted>, Failure> {
    let unreadable = |e| Failure::invalid(format!("cannot read {}: {e}", path.display()));
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(unreadable)?;
    files.retain(|f| {
        f.extension()
            .is_some_and(|e| ["csr", "p10", "req", "pem"].iter().any(|x| e == *x))
    });
    files.sort();
    if files.is_empty() {
        return Err(Failure::invalid(format!(
            "{} holds no requests; hint: files *.csr, *.p10, *.req or *.pem, each a PKCS#10",
            path.display()
        )));
    }
    files
        .into_iter()
        .map(|file| {
            let name = match from {
                IdFrom::FileName => file
                    .file_stem()
                    .map(|s| s.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                IdFrom::CommonName => common_name(&file)?,
            };
            Ok(Wanted {
                id: id(&name, &file.display())?,
                csr: Some(file),
            })
        })
        .collect()
}

fn common_name(file: &Path) -> Result<String, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::invalid(format!("{}: {e}", file.display()));
    let bytes = std::fs::read(file).map_err(|e| wrong(&e))?;
    let request = CertificateRequest::parse(&bytes).map_err(|e| wrong(&e))?;
    match request.common_names() {
        [one] => Ok(one.clone()),
        _ => Err(wrong(
            &"the request does not name exactly one common name; hint: --id-from file-name",
        )),
    }
}

/// The request of a device's own file, PEM. Also DER is taken.
///
/// # Errors
/// [`Failure`] if it cannot be read; what is in it is the server's to judge.
pub fn request(path: &Path) -> Result<String, Failure> {
    let bytes =
        std::fs::read(path).map_err(|e| Failure::invalid(format!("cannot read {}: {e}", path.display())))?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => countersign_factory::request::pem("CERTIFICATE REQUEST", e.as_bytes()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_make_ids_or_say_what_is_wrong() {
        for (format, n, expected) in [
            ("SN-{:06}", 42, "SN-000042"),
            ("{}", 7, "7"),
            ("a{}b", 12, "a12b"),
            ("{:02}", 123, "123"),
        ] {
            assert_eq!(IdFormat::parse(format).unwrap().id(n), expected, "{format}");
        }
        for bad in ["SN", "{", "{}{}", "{:x}", "{:00}", "{:099}", "}{", "{:6}"] {
            let failure = IdFormat::parse(bad).err().unwrap();
            assert!(failure.hint.is_some(), "{bad}");
        }
    }

    #[test]
    fn a_range_is_whole_or_refused() {
        let ids: Vec<_> = of_range("SN-{:03}", 9, 3)
            .unwrap()
            .into_iter()
            .map(|w| w.id.to_string())
            .collect();
        assert_eq!(ids, ["SN-009", "SN-010", "SN-011"]);
        assert!(of_range("SN-{}", 1, 0).is_err());
        assert!(of_range("SN-{}", u64::MAX, 2).is_err());
        assert!(of_range("SN/{}", 1, 1).is_err());
    }
}
