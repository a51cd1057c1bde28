//! The little DER that the certificate parser does not show: raw names and times, and the exact extent of
//! a certificate in a padded buffer.

/// Universal tags used here.
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// One element: its tag, its whole encoding, its content, and what follows. Lengths in DER's shortest form
/// only (X.690, clause 10.1), below 64 KiB.
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) whole: &'a [u8],
    pub(super) content: &'a [u8],
    pub(super) rest: &'a [u8],
}

pub(super) fn element(input: &[u8]) -> Option<Element<'_>> {
    let (tag, after_tag) = input.split_first()?;
    // No multi-byte tags in the parts of a certificate that are read here.
    if tag & 0x1f == 0x1f {
        return None;
    }
    let (first, after) = after_tag.split_first()?;
    let (len, header) = match first {
        0..=0x7f => (usize::from(*first), 2),
        0x81 => (after.first().copied().filter(|l| *l >= 0x80)?.into(), 3),
        0x82 => {
            let len = u16::from_be_bytes([*after.first()?, *after.get(1)?]);
            (usize::from(Some(len).filter(|l| *l >= 0x100)?), 4)
        }
        _ => return None,
    };
    let whole = input.get(..header + len)?;
    Some(Element { tag: *tag, whole, content: whole.get(header..)?, rest: input.get(header + len..)? })
}

/// The parts of a certificate that are compared or checked as raw bytes (RFC 5280, section 4.1).
pub(super) struct RawParts<'a> {
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// Both times are in the form RFC 5280, section 4.1.2.5 demands.
    pub(super) strict_times: bool,
    /// Inner and outer AlgorithmIdentifier are the same bytes (section 4.1.1.2).
    pub(super) algorithms_agree: bool,
}

pub(super) fn raw_parts(der: &[u8]) -> Option<RawParts<'_>> {
    let tbs = element(element(der)?.content)?;
    let outer_algorithm = element(tbs.rest)?.whole;
    let version = element(tbs.content)?;
    let serial = element(if version.tag == 0xa0 { version.rest } else { tbs.content })?;
    let algorithm = element(serial.rest)?;
    let issuer = element(algorithm.rest)?;
    let validity = element(issuer.rest)?;
    let subject = element(validity.rest)?;
    let not_before = element(validity.content)?;
    let not_after = element(not_before.rest)?;
    Some(RawParts {
        issuer: issuer.whole,
        subject: subject.whole,
        strict_times: strict_time(&not_before) && strict_time(&not_after) && not_after.rest.is_empty(),
        algorithms_agree: algorithm.whole == outer_algorithm,
    })
}

fn strict_time(time: &Element<'_>) -> bool {
    let digits = match time.tag {
        UTC_TIME => 12,
        GENERALIZED_TIME => 14,
        _ => return false,
    };
    matches!(time.content.split_last(), Some((b'Z', rest)) if rest.len() == digits && rest.iter().all(u8::is_ascii_digit))
}

/// Whether each RelativeDistinguishedName's SET is in DER order (X.690, clause 11.6); `None` if it is no name.
pub(super) fn name_in_order(name: &[u8]) -> Option<bool> {
    let mut rdns = element(name).filter(|e| e.tag == SEQUENCE)?.content;
    let mut ordered = true;
    while !rdns.is_empty() {
        let rdn = element(rdns).filter(|e| e.tag == SET)?;
        rdns = rdn.rest;
        let (mut attributes, mut previous): (&[u8], &[u8]) = (rdn.content, &[]);
        while !attributes.is_empty() {
            let attribute = element(attributes)?;
            ordered &= previous <= attribute.whole;
            (previous, attributes) = (attribute.whole, attribute.rest);
        }
    }
    Some(ordered)
}
