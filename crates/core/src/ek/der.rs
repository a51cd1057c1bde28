//! The little DER that the certificate parser does not show: raw names and times, and the exact extent of
//! a certificate in a padded buffer.

/// Universal tags used here.
pub(super) const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BIT_STRING: u8 = 0x03;
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

fn sequence(input: &[u8]) -> Option<Element<'_>> {
    element(input).filter(|e| e.tag == SEQUENCE)
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
    // Only tbsCertificate is signed: the frame around it is held to the letter, or it could be altered.
    let tbs = sequence(sequence(der)?.content)?;
    let outer = sequence(tbs.rest)?;
    element(outer.rest).filter(|signature| signature.tag == BIT_STRING && signature.rest.is_empty())?;
    let version = element(tbs.content)?;
    let serial = element(if version.tag == 0xa0 { version.rest } else { tbs.content })?;
    let algorithm = sequence(serial.rest)?;
    let issuer = sequence(algorithm.rest)?;
    let validity = sequence(issuer.rest)?;
    let subject = sequence(validity.rest)?;
    let not_before = element(validity.content)?;
    let not_after = element(not_before.rest)?;
    Some(RawParts {
        issuer: issuer.whole,
        subject: subject.whole,
        strict_times: strict_time(&not_before) && strict_time(&not_after) && not_after.rest.is_empty(),
        algorithms_agree: algorithm.whole == outer.whole,
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

/// A name for comparison, and whether each RelativeDistinguishedName's SET is in DER order (X.690, clause
/// 11.6); `None` if it is no name.
///
/// RFC 5280, section 7.1 compares characters, not string types: a UTF8String is written as a PrintableString
/// here, which changes one byte and no length. Nothing else is folded: case and spaces count.
pub(super) fn comparable_name(name: &[u8]) -> Option<(Vec<u8>, bool)> {
    const UTF8_STRING: u8 = 0x0c;
    const PRINTABLE_STRING: u8 = 0x13;
    let mut comparable = name.to_vec();
    let mut ordered = true;
    let mut rdns = sequence(name)?.content;
    while !rdns.is_empty() {
        let rdn = element(rdns).filter(|e| e.tag == SET)?;
        rdns = rdn.rest;
        let (mut attributes, mut previous): (&[u8], &[u8]) = (rdn.content, &[]);
        while !attributes.is_empty() {
            let attribute = sequence(attributes)?;
            ordered &= previous <= attribute.whole;
            let value = element(element(attribute.content)?.rest)?;
            if value.tag == UTF8_STRING {
                // `value` ends where `attribute` ends, and what follows both is `attribute.rest` and `rdns`.
                let end = name.len() - rdns.len() - attribute.rest.len() - value.rest.len();
                *comparable.get_mut(end - value.whole.len())? = PRINTABLE_STRING;
            }
            (previous, attributes) = (attribute.whole, attribute.rest);
        }
    }
    Some((comparable, ordered))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RDN SET of attributes (2.5.4.n, string of this tag).
    fn rdn(attributes: &[(u8, u8, &str)]) -> Vec<u8> {
        let mut set = vec![];
        for (arc, tag, text) in attributes {
            let value = [&[*tag, text.len() as u8], text.as_bytes()].concat();
            let oid = [6, 3, 0x55, 4, *arc];
            set.extend([SEQUENCE, (oid.len() + value.len()) as u8]);
            set.extend(oid);
            set.extend(value);
        }
        [&[SET, set.len() as u8], set.as_slice()].concat()
    }

    fn name(rdns: &[Vec<u8>]) -> Vec<u8> {
        let content = rdns.concat();
        [&[SEQUENCE, content.len() as u8], content.as_slice()].concat()
    }

    #[test]
    fn names_compare_over_string_types_only() {
        let utf8 = name(&[rdn(&[(6, 0x13, "CH")]), rdn(&[(10, 0x0c, "Vendor")]), rdn(&[(3, 0x0c, "Root")])]);
        let printable =
            name(&[rdn(&[(6, 0x13, "CH")]), rdn(&[(10, 0x13, "Vendor")]), rdn(&[(3, 0x13, "Root")])]);
        let comparable = |n: &[u8]| comparable_name(n).unwrap().0;
        assert_ne!(utf8, printable);
        assert_eq!(comparable(&utf8), printable);
        assert_eq!(comparable(&printable), printable);
        // IA5String is neither, and one name for two RDNs is another name.
        assert_ne!(
            comparable(&name(&[rdn(&[(6, 0x16, "CH")])])),
            comparable(&name(&[rdn(&[(6, 0x13, "CH")])]))
        );
        let (a, b) = ((6, 0x0c, "CH"), (10, 0x0c, "Vendor"));
        assert_ne!(comparable(&name(&[rdn(&[a, b])])), comparable(&name(&[rdn(&[a]), rdn(&[b])])));
    }

    #[test]
    fn set_order_is_seen() {
        let ordered = |n: &[u8]| comparable_name(n).unwrap().1;
        assert!(ordered(&name(&[])));
        assert!(ordered(&name(&[rdn(&[(3, 0x13, "Root"), (10, 0x13, "Vendor")])])));
        assert!(!ordered(&name(&[rdn(&[(10, 0x13, "Vendor"), (3, 0x13, "Root")])])));
    }

    #[test]
    fn what_is_no_name_is_none() {
        let whole = name(&[rdn(&[(3, 0x0c, "Root")])]);
        for len in 0..whole.len() {
            assert!(comparable_name(&whole[..len]).is_none());
        }
        assert!(comparable_name(&[SET, 0]).is_none());
    }

    #[test]
    fn lengths_are_in_shortest_form() {
        assert_eq!(element(&[4, 1, 9, 8]).unwrap().rest, [8]);
        assert!(element(&[4, 0x81, 1, 9]).is_none());
        assert!(element(&[4, 0x82, 0, 1, 9]).is_none());
        assert!(element(&[4, 0x80, 0, 0]).is_none());
        assert!(element(&[4, 0x83, 0, 0, 1, 9]).is_none());
        assert!(element(&[0x1f, 0x81, 1]).is_none());
        assert!(element(&[4, 2, 9]).is_none());
        let long = [&[4, 0x82, 1, 0], [7; 256].as_slice()].concat();
        assert_eq!(element(&long).unwrap().content.len(), 256);
    }
}
