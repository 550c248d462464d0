//! Name constraints (RFC 5280 section 4.2.1.10).
//!
//! Distinguished names are compared after section 7.1 (case and white space folded, the string's type looked through):
//! an excluded name must not slip by in other letters. What cannot be judged is refused: a constraint on a form of name
//! that is not known here refuses every certificate that bears such a name.

use const_oid::ObjectIdentifier;
use der::{Decode, Tag, Tagged};
use x509_cert::Certificate;
use x509_cert::ext::pkix::constraints::name::GeneralSubtree;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{NameConstraints, SubjectAltName};
use x509_cert::name::Name;

use crate::chain::ChainFault;

const EMAIL_ADDRESS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.1");
/// The most comparisons of a path.
const COMPARISONS_MAX: usize = 16 * 1024;

/// One relative distinguished name, its attributes sorted.
type Rdn = Vec<(ObjectIdentifier, String)>;

/// A name in the form in which it is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Directory(Vec<Rdn>),
    Dns(String),
    Mail(String),
    Uri(String),
    Ip(Vec<u8>),
    /// Known by its number alone: otherName, ediPartyName, registeredID.
    Other(u8),
}

impl Form {
    fn of(name: &GeneralName) -> Self {
        match name {
            GeneralName::DirectoryName(n) => Self::Directory(directory(n)),
            GeneralName::DnsName(n) => Self::Dns(n.as_str().to_ascii_lowercase()),
            GeneralName::Rfc822Name(n) => Self::Mail(n.as_str().to_owned()),
            GeneralName::UniformResourceIdentifier(n) => Self::Uri(n.as_str().to_owned()),
            GeneralName::IpAddress(n) => Self::Ip(n.as_bytes().to_vec()),
            GeneralName::OtherName(_) => Self::Other(0),
            GeneralName::EdiPartyName(_) => Self::Other(5),
            GeneralName::RegisteredId(_) => Self::Other(8),
        }
    }

    /// Whether this constraint speaks of names of that form.
    fn concerns(&self, name: &Self) -> bool {
        match (self, name) {
            (Self::Other(a), Self::Other(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(name),
        }
    }
}

/// What a CA's certificate says of the names below it.
#[derive(Debug)]
pub(crate) struct NameRules {
    permitted: Vec<Form>,
    excluded: Vec<Form>,
}

impl NameRules {
    /// `None`: the extension is absent.
    pub(crate) fn parse(der: &[u8]) -> Result<Option<Self>, String> {
        let certificate = Certificate::from_der(der).map_err(|e| e.to_string())?;
        let constraints: Option<(bool, NameConstraints)> = certificate
            .tbs_certificate()
            .get_extension()
            .map_err(|e: der::Error| e.to_string())?;
        let Some((_, constraints)) = constraints else {
            return Ok(None);
        };
        let forms = |trees: &Option<Vec<GeneralSubtree>>| -> Result<Vec<Form>, String> {
            let trees = trees.as_deref().unwrap_or_default();
            if trees.iter().any(|t| t.minimum != 0 || t.maximum.is_some()) {
                return Err("a name constraint has a minimum or maximum".into());
            }
            Ok(trees.iter().map(|t| Form::of(&t.base)).collect())
        };
        Ok(Some(Self {
            permitted: forms(&constraints.permitted_subtrees)?,
            excluded: forms(&constraints.excluded_subtrees)?,
        }))
    }
}

/// All names of a certificate that a constraint may speak of: subject, e-mail addresses in it, alternative names.
pub(super) struct Names(Vec<Form>);

impl Names {
    pub(super) fn parse(der: &[u8]) -> Result<Self, ChainFault> {
        let malformed = |e: der::Error| ChainFault::Malformed(e.to_string());
        let certificate = Certificate::from_der(der).map_err(malformed)?;
        let tbs = certificate.tbs_certificate();
        let mut names = Vec::new();
        let subject = directory(tbs.subject());
        for (oid, text) in subject.iter().flatten() {
            if *oid == EMAIL_ADDRESS {
                names.push(Form::Mail(text.clone()));
            }
        }
        if !subject.is_empty() {
            names.push(Form::Directory(subject));
        }
        if let Some((_, SubjectAltName(list))) = tbs.get_extension().map_err(malformed)? {
            names.extend(list.iter().map(Form::of));
        }
        Ok(Self(names))
    }

    /// Checks them against the constraints of all CAs above. `spent` counts comparisons over a whole path.
    pub(super) fn check(&self, rules: &[&NameRules], spent: &mut usize) -> Result<(), ChainFault> {
        for name in &self.0 {
            for rule in rules {
                *spent += rule.permitted.len() + rule.excluded.len();
                if *spent > COMPARISONS_MAX {
                    return Err(ChainFault::Budget);
                }
                let mut concerned = rule.permitted.iter().filter(|p| p.concerns(name)).peekable();
                if concerned.peek().is_some() && !concerned.any(|p| lies_within(name, p)) {
                    return Err(ChainFault::NameConstraint);
                }
                let hit = |e: &Form| e.concerns(name) && (overlaps(name, e) || !can_be_judged(name, e));
                if rule.excluded.iter().any(hit) {
                    return Err(ChainFault::NameConstraint);
                }
            }
        }
        Ok(())
    }
}

fn directory(name: &Name) -> Vec<Rdn> {
    name.iter_rdn()
        .map(|rdn| {
            let mut attributes: Rdn = rdn.iter().map(|a| (a.oid, folded(&a.value))).collect();
            attributes.sort();
            attributes
        })
        .collect()
}

/// A value for comparison (section 7.1): case folded, white space pressed; hex if it is no text.
fn folded(value: &der::Any) -> String {
    let bytes = value.value();
    let text = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString | Tag::NumericString => {
            std::str::from_utf8(bytes).ok().map(str::to_owned)
        }
        Tag::TeletexString => Some(bytes.iter().map(|b| char::from(*b)).collect()),
        Tag::BmpString => {
            let units: Vec<u16> = bytes
                .chunks_exact(2)
                .map(|c| u16::from_be_bytes([c[0], c[1]]))
                .collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
    };
    match text {
        Some(text) => text
            .split_whitespace()
            .map(str::to_lowercase)
            .collect::<Vec<_>>()
            .join(" "),
        None => format!("#{:?}{}", value.tag(), hex::encode(bytes)),
    }
}

/// Whether a name lies within a subtree.
fn lies_within(name: &Form, base: &Form) -> bool {
    match (name, base) {
        (Form::Directory(n), Form::Directory(b)) => n.len() >= b.len() && n[..b.len()] == b[..],
        (Form::Dns(n), Form::Dns(b)) => host_within(n.strip_prefix("*.").unwrap_or(n), b, true),
        (Form::Mail(n), Form::Mail(b)) => mail_within(n, b),
        (Form::Uri(n), Form::Uri(b)) => host_of(n).is_some_and(|host| host_within(&host, b, false)),
        (Form::Ip(n), Form::Ip(b)) => {
            b.len() == 2 * n.len()
                && n.iter()
                    .zip(&b[..n.len()])
                    .zip(&b[n.len()..])
                    .all(|((n, address), mask)| n & mask == address & mask)
        }
        _ => false,
    }
}

/// Whether a name, or one that it stands for, lies within an excluded subtree.
fn overlaps(name: &Form, base: &Form) -> bool {
    lies_within(name, base)
        || match (name, base) {
            // A wildcard stands for the excluded name too.
            (Form::Dns(n), Form::Dns(b)) => n
                .strip_prefix("*.")
                .is_some_and(|rest| host_within(b, rest, true)),
            _ => false,
        }
}

/// Whether it can be told that a name is outside of a subtree.
fn can_be_judged(name: &Form, base: &Form) -> bool {
    match (name, base) {
        (Form::Uri(n), Form::Uri(_)) => host_of(n).is_some(),
        (Form::Mail(n), Form::Mail(_)) => n.contains('@'),
        (Form::Ip(n), Form::Ip(b)) => [4, 16].contains(&n.len()) && [8, 32].contains(&b.len()),
        (Form::Other(_), Form::Other(_)) => false,
        _ => true,
    }
}

/// `.example.com` means everything below; `example.com` itself and, for DNS names, everything below.
fn host_within(host: &str, base: &str, with_below: bool) -> bool {
    let (host, base) = (
        host.trim_end_matches('.').to_ascii_lowercase(),
        base.trim_end_matches('.').to_ascii_lowercase(),
    );
    if base.is_empty() {
        return true;
    }
    match base.strip_prefix('.') {
        Some(_) => host.len() > base.len() && host.ends_with(&base),
        None => {
            host == base
                || (with_below && host.ends_with(&base) && host[..host.len() - base.len()].ends_with('.'))
        }
    }
}

/// A mailbox, all mailboxes of a host, or of all hosts below a domain.
fn mail_within(mail: &str, base: &str) -> bool {
    let Some((local, host)) = mail.rsplit_once('@') else {
        return false;
    };
    match base.rsplit_once('@') {
        // The local part of an address in a subject is folded already: compared without case, which excludes more.
        Some((l, h)) => l.eq_ignore_ascii_case(local) && h.eq_ignore_ascii_case(host),
        None => host_within(host, base, false),
    }
}

/// The host of a URI with an authority; `None` if there is none or it is an address.
fn host_of(uri: &str) -> Option<String> {
    let rest = uri.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    let host = host.split(':').next()?;
    let is_name = !host.is_empty() && !host.starts_with('[') && host.parse::<std::net::Ipv4Addr>().is_err();
    is_name.then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &Form, permitted: &[Form], excluded: &[Form]) -> Result<(), ChainFault> {
        let rules = NameRules {
            permitted: permitted.to_vec(),
            excluded: excluded.to_vec(),
        };
        Names(vec![name.clone()]).check(&[&rules], &mut 0)
    }

    fn dns(text: &str) -> Form {
        Form::Dns(text.into())
    }

    fn mail(text: &str) -> Form {
        Form::Mail(text.into())
    }

    fn uri(text: &str) -> Form {
        Form::Uri(text.into())
    }

    /// Whether `name` may stand below a CA that permits `base` alone, and below one that excludes it.
    #[test]
    fn each_form_is_judged_by_its_own_rules() {
        for (name, base, within) in [
            (dns("a.example"), dns("example"), true),
            (dns("example"), dns("example"), true),
            (dns("notexample"), dns("example"), false),
            (dns("example"), dns(".example"), false),
            (dns("a.Example."), dns("eXample"), true),
            (dns("a.example"), dns(""), true),
            (mail("me@host.example"), mail("host.example"), true),
            (mail("me@below.host.example"), mail("host.example"), false),
            (mail("me@below.host.example"), mail(".host.example"), true),
            (mail("me@host.example"), mail("me@HOST.example"), true),
            (mail("you@host.example"), mail("me@host.example"), false),
            (uri("https://host.example:8443/x"), uri("host.example"), true),
            (uri("https://me@host.example/x"), uri("host.example"), true),
            (uri("https://a.host.example/"), uri("host.example"), false),
            (uri("https://a.host.example/"), uri(".host.example"), true),
            (
                Form::Ip(vec![10, 1, 2, 3]),
                Form::Ip(vec![10, 0, 0, 0, 255, 0, 0, 0]),
                true,
            ),
            (
                Form::Ip(vec![11, 1, 2, 3]),
                Form::Ip(vec![10, 0, 0, 0, 255, 0, 0, 0]),
                false,
            ),
        ] {
            let only = check(&name, std::slice::from_ref(&base), &[]);
            assert_eq!(only.is_ok(), within, "{name:?} in {base:?}");
            let none = check(&name, &[], std::slice::from_ref(&base));
            assert_eq!(none.is_ok(), !within, "{name:?} out of {base:?}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        // A wildcard stands for the excluded name too.
        assert!(check(&dns("*.example"), &[], &[dns("secret.example")]).is_err());
        assert!(check(&dns("*.example"), &[dns("example")], &[]).is_ok());
        // No host, or none that is a name.
        for name in ["urn:dev:1", "https://192.0.2.1/", "https://[::1]/"] {
            assert!(check(&uri(name), &[], &[uri("example")]).is_err(), "{name}");
            assert!(check(&uri(name), &[uri("example")], &[]).is_err(), "{name}");
        }
        assert!(check(&mail("no address"), &[], &[mail("example")]).is_err());
        assert!(check(&Form::Ip(vec![1; 16]), &[], &[Form::Ip(vec![0; 7])]).is_err());
        assert!(check(&Form::Other(0), &[], &[Form::Other(0)]).is_err());
        assert!(check(&Form::Other(0), &[Form::Other(0)], &[]).is_err());
        // A constraint on another form says nothing.
        assert!(check(&dns("a.example"), &[mail("example")], &[uri("example")]).is_ok());
        // Too many.
        let many = vec![dns("other"); COMPARISONS_MAX + 1];
        assert_eq!(check(&dns("a.example"), &[], &many), Err(ChainFault::Budget));
    }

    #[test]
    fn an_excluded_directory_does_not_slip_by_in_other_letters() {
        let name = |tag: Tag, text: &[u8]| {
            let value = der::Any::new(tag, text).unwrap();
            vec![vec![(EMAIL_ADDRESS, folded(&value))]]
        };
        let plain = name(Tag::PrintableString, b"Evil Corp");
        for other in [
            name(Tag::Utf8String, b"EVIL  corp "),
            name(Tag::TeletexString, b"evil corp"),
            name(Tag::BmpString, b"\0e\0v\0i\0l\0 \0c\0o\0r\0p"),
        ] {
            let result = check(&Form::Directory(other), &[], &[Form::Directory(plain.clone())]);
            assert_eq!(result, Err(ChainFault::NameConstraint));
        }
    }
}
