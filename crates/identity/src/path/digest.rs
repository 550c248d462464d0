//! A checked path as one number, by which it is known again.

use std::fmt;

use aws_lc_rs::digest;

use crate::anchor::Anchor;
use crate::certificate::CertificateFacts;

/// The certificates of one path, leaf first, and the registered authority at its end in one generation: SHA-256 over
/// all of them. Two paths that differ in anything have different digests.
///
/// It is what is remembered of a path whose signatures hold. A signature that held holds for ever, so whoever presents
/// the same path again need not have them verified; all else is checked each time. It is no secret, and worth exactly as
/// much as the place where it is kept: whoever can write there can have unsigned certificates believed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PathDigest([u8; 32]);

impl PathDigest {
    pub(crate) fn of<'a>(anchor: &Anchor, certificates: impl Iterator<Item = &'a CertificateFacts>) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        // Ids have no byte 0, so nothing can be read in two ways.
        for part in [
            "countersign path 1",
            anchor.tenant.as_str(),
            anchor.authority.as_str(),
        ] {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        context.update(&anchor.generation.0.to_be_bytes());
        context.update(anchor.facts.fingerprint.as_bytes());
        for certificate in certificates {
            context.update(certificate.fingerprint.as_bytes());
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        Self(out)
    }

    /// From its bytes, out of a place that nobody else can write.
    pub const fn assertion(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for PathDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PathDigest")
    }
}
