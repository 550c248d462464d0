//! What we add to a ticket: of fixed size, with a version, in front of what rustls puts into it.

use countersign_identity::{AuthorityId, Fingerprint, Generation, PathDigest, Timestamp};

/// The version of the layout.
const VERSION: u8 = 1;
const AUTHORITY_BYTES: usize = AuthorityId::MAX_BYTES;

/// A TLS version with tickets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TicketVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    #[default]
    Tls13,
}

/// What the certificate was believed on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TicketFacts {
    /// The version of TLS.
    pub version: TicketVersion,
    /// When the full handshake began in which the key was proven. A chain of resumptions never makes it later.
    pub proven_at: Timestamp,
    /// The device's certificate.
    pub fingerprint: Fingerprint,
    /// The generation of that credential.
    pub credential: Generation,
    /// The authority that the path ended in.
    pub authority: AuthorityId,
    /// Its generation.
    pub authority_generation: Generation,
    /// The path whose signatures were verified.
    pub path: PathDigest,
    /// Where in the rest the certificates begin.
    pub chain_at: u32,
}

impl TicketFacts {
    /// The size of its encoding.
    pub const BYTES: usize = 1 + 1 + 8 + 32 + 8 + 1 + AUTHORITY_BYTES + 8 + 32 + 4;

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.push(match self.version {
            TicketVersion::Tls12 => 2,
            TicketVersion::Tls13 => 3,
        });
        out.extend(self.proven_at.unix_ms().to_be_bytes());
        out.extend(self.fingerprint.as_bytes());
        out.extend(self.credential.0.to_be_bytes());
        let authority = self.authority.as_str().as_bytes();
        let mut field = [0; AUTHORITY_BYTES];
        field[..authority.len()].copy_from_slice(authority);
        out.push(u8::try_from(authority.len()).unwrap_or(u8::MAX));
        out.extend(field);
        out.extend(self.authority_generation.0.to_be_bytes());
        out.extend(self.path.as_bytes());
        out.extend(self.chain_at.to_be_bytes());
    }

    /// Reads it from the start of `bytes`; `None` if it is of another version or layout.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.get(..Self::BYTES)?;
        if take::<1>(&mut rest)? != [VERSION] {
            return None;
        }
        let version = match take::<1>(&mut rest)? {
            [2] => TicketVersion::Tls12,
            [3] => TicketVersion::Tls13,
            _ => return None,
        };
        let proven_at = Timestamp::from_unix_ms(i64::from_be_bytes(take(&mut rest)?));
        let fingerprint = Fingerprint::from_bytes(take(&mut rest)?);
        let credential = Generation(u64::from_be_bytes(take(&mut rest)?));
        let [length] = take(&mut rest)?;
        let field: [u8; AUTHORITY_BYTES] = take(&mut rest)?;
        let authority = std::str::from_utf8(field.get(..usize::from(length))?).ok()?;
        let authority = AuthorityId::new(authority).ok()?;
        Some(Self {
            version,
            proven_at,
            fingerprint,
            credential,
            authority,
            authority_generation: Generation(u64::from_be_bytes(take(&mut rest)?)),
            path: PathDigest::assertion(take(&mut rest)?),
            chain_at: u32::from_be_bytes(take(&mut rest)?),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

/// Where in what rustls wants to keep the list of certificates begins that `leaf` is the first of (RFC 9846 section
/// 4.5.2 without the extensions: lengths of three bytes); `None` if there is no such list.
pub fn find_chain(plain: &[u8], leaf: &[u8]) -> Option<u32> {
    if leaf.is_empty() {
        return None;
    }
    let at = plain.windows(leaf.len()).position(|w| w == leaf)?;
    let at = at.checked_sub(6)?;
    let (first, _) = certificates(plain, at)?;
    (first == leaf).then_some(u32::try_from(at).ok()?)
}

/// The certificates in the list at `at`: the leaf, and what is above it.
pub fn certificates(plain: &[u8], at: usize) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut list = plain.get(at..)?;
    let list = &mut list;
    let total = length(list)?;
    let mut rest = list.get(..total)?;
    let leaf = certificate(&mut rest)?;
    let mut above = Vec::new();
    while !rest.is_empty() {
        above.push(certificate(&mut rest)?);
    }
    Some((leaf, above))
}

fn length(rest: &mut &[u8]) -> Option<usize> {
    let [a, b, c] = take(rest)?;
    Some(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
}

fn certificate<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = length(rest)?;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}
