//! Each leniency is as narrow as it says.

use hallmark_core::ek::{CertificateFault, EkError, Leniency};
use rcgen::{CustomExtension, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair};

use crate::maker::{Ca, appraise, ca_params, ek, leaf_params, tcg_san};

#[test]
fn padding_is_one_repeated_byte_and_nothing_else() {
    let root = Ca::root("Vendor Root");
    let leaf = root.sign(&ek().1, leaf_params());
    let padded = |tail: &[u8]| appraise(&[[leaf.as_slice(), tail].concat()], &root.roots());
    assert_eq!(padded(&[]).unwrap().leniencies, []);
    assert_eq!(padded(&[0xff; 500]).unwrap().leniencies, [Leniency::NvPadding { fill: 0xff }]);
    assert_eq!(padded(&[0; 500]).unwrap().leniencies, [Leniency::NvPadding { fill: 0 }]);
    for tail in [&[0xff, 0][..], &[0, 0xff], &[0xfe], &[0xff, 0xff, 1], &[0x30, 0]] {
        let refused = padded(tail).unwrap_err();
        let EkError::Certificate { number: 1, fault: CertificateFault::Trailing { len } } = refused else {
            panic!("{refused}")
        };
        assert_eq!(len, tail.len());
    }
    let refused = padded(&vec![0xff; 9000]).unwrap_err();
    assert!(
        matches!(refused, EkError::Certificate { fault: CertificateFault::TooLong { .. }, .. }),
        "{refused}"
    );
}

#[test]
fn oddities_are_named() {
    let root = Ca::root("Vendor Root");
    let mut params = leaf_params();
    params.custom_extensions = vec![tcg_san("id:FFFFF1D0", false)];
    let appraised = appraise(&[root.sign(&ek().1, params)], &root.roots()).unwrap();
    assert_eq!(appraised.leniencies, [Leniency::EmptySubjectPlainSan]);

    let mut params = leaf_params();
    params.is_ca = IsCa::NoCa;
    let written_out = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0]);
    params.custom_extensions.push(written_out);
    let appraised = appraise(&[root.sign(&ek().1, params)], &root.roots()).unwrap();
    assert_eq!(appraised.leniencies, [Leniency::ExplicitFalse]);

    // The root calls itself in PrintableString, its issuer field is in UTF8String.
    let key = KeyPair::generate().unwrap();
    let mut printable = ca_params("", None);
    printable.distinguished_name = DistinguishedName::new();
    let name = DnValue::PrintableString("Vendor Root".try_into().unwrap());
    printable.distinguished_name.push(DnType::CommonName, name);
    let der = printable.self_signed(&key).unwrap().der().to_vec();
    let printable = Ca { issuer: Issuer::new(ca_params("Vendor Root", None), key), der };
    let leaf = printable.sign(&ek().1, leaf_params());
    assert_eq!(appraise(&[leaf], &printable.roots()).unwrap().leniencies, [Leniency::NameStringType]);
    // Characters count: another case is another name.
    let mut other_case = Ca::root("vendor root");
    std::mem::swap(&mut other_case.der, &mut Ca::root("Vendor Root").der);
    let leaf = other_case.sign(&ek().1, leaf_params());
    assert!(matches!(appraise(&[leaf], &other_case.roots()), Err(EkError::UnknownIssuer { .. })));
}
