//! The device's half of EST.

use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Decode, Reader, SliceReader, Tagged};

use super::base64_decode;

/// The largest answer that a device reads, in bytes.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Why an answer is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerFault {
    /// Not base64 of a CMS with certificates.
    #[error("the answer is no list of certificates (base64 of a CMS SignedData): {0}")]
    Malformed(String),
}

/// The certificates of a certs-only answer, DER, in the order they came (RFC 7030 section 4.1.3). It is a set: the order
/// means nothing. White space is ignored wherever it is.
///
/// # Errors
/// [`AnswerFault`].
pub fn certificates(body: &[u8]) -> Result<Vec<Vec<u8>>, AnswerFault> {
    let der = base64_decode(body).ok_or_else(|| AnswerFault::Malformed("no base64".into()))?;
    read(&der).map_err(|e| AnswerFault::Malformed(e.to_string()))
}

fn read(der: &[u8]) -> der::Result<Vec<Vec<u8>>> {
    // ContentInfo ::= SEQUENCE { contentType, [0] SignedData } (RFC 5652 sections 3 and 5.1)
    let info = AnyRef::from_der(der)?;
    let mut info = SliceReader::new(info.value())?;
    if ObjectIdentifier::decode(&mut info)? != super::SIGNED_DATA {
        return Err(der::ErrorKind::OidUnknown {
            oid: super::SIGNED_DATA,
        }
        .into());
    }
    let content = AnyRef::decode(&mut info)?;
    let signed = AnyRef::from_der(content.value())?;
    let mut signed = SliceReader::new(signed.value())?;
    // version, digestAlgorithms, encapContentInfo, then [0] certificates if there are any.
    for _ in 0..3 {
        AnyRef::decode(&mut signed)?;
    }
    let certificates = AnyRef::decode(&mut signed)?;
    if !certificates.tag().is_context_specific() {
        return Ok(vec![]);
    }
    let mut list = SliceReader::new(certificates.value())?;
    let mut found = Vec::new();
    while !list.is_finished() {
        found.push(list.tlv_bytes()?.to_vec());
    }
    Ok(found)
}

/// The value of Retry-After in seconds, if it is a number (RFC 9110 section 10.2.3); a date is not read: whoever waits
/// may have no clock.
pub fn retry_after_s(value: &str) -> Option<u64> {
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::est::{Lines, base64_encode, certs_only};

    #[test]
    fn what_the_server_answers_is_read() {
        let one = crate::tlv::sequence(&[&[5, 0]]);
        let two = crate::tlv::sequence(&[&[2, 1, 7]]);
        for lines in [Lines::One, Lines::Broken] {
            let body = base64_encode(&certs_only(&[&one, &two]), lines);
            assert_eq!(certificates(body.as_bytes()), Ok(vec![one.clone(), two.clone()]));
        }
        let none = base64_encode(&certs_only(&[]), Lines::One);
        assert_eq!(certificates(none.as_bytes()), Ok(vec![]));
        for bad in ["", "!", "MAA=", "aGVsbG8="] {
            assert!(certificates(bad.as_bytes()).is_err(), "{bad}");
        }
        // Cut anywhere: an error, never a panic.
        let der = certs_only(&[&one, &two]);
        for end in 0..der.len() {
            assert!(read(&der[..end]).is_err(), "{end}");
        }
        assert_eq!(retry_after_s(" 60 "), Some(60));
        assert_eq!(retry_after_s("Fri, 31 Dec 1999 23:59:59 GMT"), None);
    }
}
