//! A TBSCertificate (RFC 5280 section 4.1) read in place, by the same rules as the X.509 library's types, which copy every
//! part into memory of its own, and that costs as much as a signature.

use std::borrow::Cow;

use const_oid::{AssociatedOid, ObjectIdentifier};
use der::asn1::AnyRef;
use der::{Decode, ErrorKind, Tag, Tagged};
use spki::{AlgorithmIdentifierRef, SubjectPublicKeyInfoRef};
use x509_cert::certificate::{Rfc5280, Version};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Validity;

use crate::elements::{Elements, OCTET_STRING, SEQUENCE, SET, bits};

/// What a certificate says, borrowed from its bytes.
#[derive(Debug, Clone)]
pub struct CertificateView<'a> {
    /// v1, v2 or v3.
    pub version: Version,
    /// The serial number.
    pub serial_number: SerialNumber<Rfc5280>,
    /// The algorithm that it says it is signed with.
    pub signature: AlgorithmIdentifierRef<'a>,
    /// Who issued it.
    pub issuer: NameView<'a>,
    /// From when until when.
    pub validity: Validity<Rfc5280>,
    /// Whose it is.
    pub subject: NameView<'a>,
    /// The key.
    pub key: SubjectPublicKeyInfoRef<'a>,
    /// The key's DER, byte for byte.
    pub key_der: &'a [u8],
    /// The extensions in their order; empty if there are none.
    pub extensions: Vec<ExtensionView<'a>>,
}

/// One extension, its value not looked into.
#[derive(Debug, Clone, Copy)]
pub struct ExtensionView<'a> {
    /// Which.
    pub id: ObjectIdentifier,
    /// Whether who does not know it must refuse the certificate.
    pub critical: bool,
    /// The DER of its value.
    pub value: &'a [u8],
}

/// A name (RFC 5280 section 4.1.2.4).
#[derive(Debug, Clone)]
pub struct NameView<'a> {
    /// All of it, byte for byte.
    pub der: &'a [u8],
    /// Its attributes in their order.
    pub attributes: Vec<AttributeView<'a>>,
    /// Whether every RDN has one attribute, as all but a few have.
    is_flat: bool,
}

/// One attribute of a name.
#[derive(Debug, Clone, Copy)]
pub struct AttributeView<'a> {
    /// Which.
    pub id: ObjectIdentifier,
    /// Its value, usually text.
    pub value: AnyRef<'a>,
}

impl<'a> AttributeView<'a> {
    /// The value if it is text in one of the usual types; octets that are none become U+FFFD.
    pub fn text(&self) -> Option<Cow<'a, str>> {
        match self.value.tag() {
            Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
                Some(String::from_utf8_lossy(self.value.value()))
            }
            _ => None,
        }
    }
}

impl<'a> CertificateView<'a> {
    /// Of a whole certificate, with its outer signature.
    ///
    /// # Errors
    /// What is not one, as the library has it.
    pub fn of_certificate(der: &'a [u8]) -> der::Result<Self> {
        let mut whole = Elements::of_whole(der, SEQUENCE)?;
        let tbs = whole.whole()?;
        whole.algorithm()?;
        whole.bits()?;
        whole.finish()?;
        Self::of_tbs(tbs)
    }

    /// Of what is signed.
    ///
    /// # Errors
    /// What is not a TBSCertificate, as the library has it.
    pub fn of_tbs(der: &'a [u8]) -> der::Result<Self> {
        let mut fields = Elements::of_whole(der, SEQUENCE)?;
        let view = Self::fields(&mut fields)?;
        fields.finish()?;
        Ok(view)
    }

    fn fields(fields: &mut Elements<'a>) -> der::Result<Self> {
        const VERSION: u8 = 0xa0;
        const UNIQUE_IDS: [u8; 2] = [0x81, 0x82];
        const EXTENSIONS: u8 = 0xa3;
        let version = match fields.is_next(VERSION) {
            true => Version::from_der(fields.take(VERSION)?)?,
            false => Version::default(),
        };
        let serial_number = SerialNumber::from_der(fields.whole()?)?;
        let signature = fields.algorithm()?;
        let issuer = NameView::read(fields.whole()?)?;
        let validity = Validity::from_der(fields.whole()?)?;
        let subject = NameView::read(fields.whole()?)?;
        let key_der = fields.whole()?;
        let mut key = Elements::of_whole(key_der, SEQUENCE)?;
        let info = SubjectPublicKeyInfoRef {
            algorithm: key.algorithm()?,
            subject_public_key: key.bits()?,
        };
        key.finish()?;
        for unique_id in UNIQUE_IDS {
            if fields.is_next(unique_id) {
                bits(fields.take(unique_id)?)?;
            }
        }
        let extensions = match fields.is_next(EXTENSIONS) {
            true => extensions(fields.take(EXTENSIONS)?)?,
            false => Vec::new(),
        };
        Ok(Self {
            version,
            serial_number,
            signature,
            issuer,
            validity,
            subject,
            key: info,
            key_der,
            extensions,
        })
    }

    /// One extension, and whether it is critical; `None` if it is not there.
    ///
    /// # Errors
    /// If it is there twice, or its value is malformed.
    pub fn extension<E>(&self) -> der::Result<Option<(bool, E)>>
    where
        E: Decode<'a, Error = der::Error> + AssociatedOid,
    {
        let mut all = self.extensions.iter().filter(|e| e.id == E::OID);
        match (all.next(), all.next()) {
            (None, _) => Ok(None),
            (Some(one), None) => Ok(Some((one.critical, E::from_der(one.value)?))),
            (Some(_), Some(_)) => Err(ErrorKind::Failed.into()),
        }
    }
}

/// SEQUENCE OF Extension.
fn extensions(der: &[u8]) -> der::Result<Vec<ExtensionView<'_>>> {
    let mut left = Elements::of_whole(der, SEQUENCE)?;
    // A device's has four or five.
    let mut all = Vec::with_capacity(6);
    while !left.is_finished() {
        let mut extension = Elements::of(left.take(SEQUENCE)?);
        all.push(ExtensionView {
            id: extension.oid()?,
            critical: extension.flag()?,
            value: extension.take(OCTET_STRING)?,
        });
        extension.finish()?;
    }
    Ok(all)
}

impl<'a> NameView<'a> {
    fn read(der: &'a [u8]) -> der::Result<Self> {
        let mut rdns = Elements::of_whole(der, SEQUENCE)?;
        let (mut attributes, mut is_flat) = (Vec::with_capacity(4), true);
        while !rdns.is_finished() {
            let mut rdn = Elements::of(rdns.take(SET)?);
            let before = attributes.len();
            while !rdn.is_finished() {
                let mut attribute = Elements::of(rdn.take(SEQUENCE)?);
                attributes.push(AttributeView {
                    id: attribute.oid()?,
                    value: attribute.last()?,
                });
            }
            is_flat &= attributes.len() == before + 1;
        }
        if !is_flat {
            // Several attributes of one RDN have an order, which the library knows.
            x509_cert::name::Name::from_der(der)?;
        }
        Ok(Self {
            der,
            attributes,
            is_flat,
        })
    }

    /// The name for people (RFC 4514), as the library writes it. The library looks each attribute up in the list of all
    /// object identifiers that it knows, which costs more than the rest of the certificate; for names of plain text in the
    /// usual attributes it is not asked.
    pub(super) fn text(&self) -> String {
        self.plain_text().unwrap_or_else(|| {
            x509_cert::name::Name::from_der(self.der)
                .map_or_else(|_| hex::encode(self.der), |n| n.to_string())
        })
    }

    /// `None` if an attribute is not one of the usual, or its value has anything to escape.
    fn plain_text(&self) -> Option<String> {
        if !self.is_flat {
            return None;
        }
        let mut out = String::with_capacity(64);
        // RFC 4514 section 2.1: the last comes first.
        for attribute in self.attributes.iter().rev() {
            let (_, key) = USUAL.iter().find(|(id, _)| *id == attribute.id)?;
            if !matches!(attribute.value.tag(), Tag::Utf8String | Tag::PrintableString) {
                return None;
            }
            let text = std::str::from_utf8(attribute.value.value()).ok()?;
            let is_plain = |c: char| !c.is_control() && !"\"+,;<>\\#".contains(c);
            if text.is_empty() || !text.chars().all(is_plain) || text.starts_with(' ') || text.ends_with(' ')
            {
                return None;
            }
            if !out.is_empty() {
                out.push(',');
            }
            out.push_str(key);
            out.push('=');
            out.push_str(text);
        }
        Some(out)
    }
}

/// The attributes that most names are of.
const USUAL: [(ObjectIdentifier, &str); 4] = [
    (super::ATTRIBUTE_COMMON_NAME, "CN"),
    (super::ATTRIBUTE_SERIAL_NUMBER, "SERIALNUMBER"),
    (ObjectIdentifier::new_unwrap("2.5.4.10"), "O"),
    (ObjectIdentifier::new_unwrap("2.5.4.11"), "OU"),
];
