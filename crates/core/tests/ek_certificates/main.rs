//! EK certificates attacked: each defect is refused for exactly its reason.
#![allow(clippy::unwrap_used)]

mod imports;
mod leniency;
mod maker;

use hallmark_core::ek::templates::{self, EkTemplate, TemplateError};
use hallmark_core::ek::{
    CertificateFault, EkError, EkRoots, RootRole, appraise_certificate, claims_simulated,
};
use hallmark_core::tpm::Public;
use hallmark_kit::faketpm::{FakeKey, FakeTpm, SHA384, Secret, Template, attr};
use maker::{Ca, NOW, YEAR, appraise, at, ca_params, ek, leaf_params, patch, tcg_san};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

#[test]
fn a_certificate_leads_to_its_root_over_what_the_host_sends() {
    let root = Ca::root("Vendor Root");
    let middle = root.below("Vendor Issuing");
    let leaf = middle.sign(&ek().1, leaf_params());
    let appraised = appraise(&[leaf.clone(), middle.der.clone()], &root.roots()).unwrap();
    assert!(!appraised.simulated);
    assert_eq!(appraised.manufacturer.as_deref(), Some("id:FFFFF1D0"));
    assert_eq!(appraised.issuer, "CN=Vendor Issuing");
    assert_eq!(appraised.root, "CN=Vendor Root");
    assert_eq!(appraised.not_after, NOW + YEAR);
    assert_eq!(appraised.leniencies, []);
    // Or over what was imported.
    let mut roots = root.roots();
    assert_eq!(roots.import_pem(&middle.pem(), NOW).accepted[0].role, RootRole::Intermediate);
    appraise(&[leaf], &roots).unwrap();
}

#[test]
fn an_unknown_ca_proves_nothing() {
    let root = Ca::root("Vendor Root");
    let own = Ca::root("My Own Root");
    let leaf = own.sign(&ek().1, leaf_params());
    // Sending the root along does not make it trusted.
    let refused = appraise(&[leaf, own.der.clone()], &root.roots()).unwrap_err();
    assert!(
        matches!(&refused, EkError::UnknownIssuer { issuer, .. } if issuer == "CN=My Own Root"),
        "{refused}"
    );
    assert_eq!(refused.code(), "ek-certificate-unknown-issuer");
}

#[test]
fn a_ca_of_the_vendors_name_is_not_the_vendor() {
    let root = Ca::root("Vendor Root");
    let imposter = Ca::root("Vendor Root");
    let mut params = leaf_params();
    params.use_authority_key_identifier_extension = false;
    let leaf = imposter.sign(&ek().1, params);
    let refused = appraise(&[leaf, imposter.der.clone()], &root.roots()).unwrap_err();
    assert!(matches!(refused, EkError::BadSignature { .. }), "{refused}");
}

#[test]
fn every_certificate_of_the_path_is_in_its_time() {
    let root = Ca::root("Vendor Root");
    let (spki, roots) = (ek().1, root.roots());
    let late = |params: &mut CertificateParams| params.not_after = at(NOW - 1);
    let early = |params: &mut CertificateParams| params.not_before = at(NOW + 1);

    let mut params = leaf_params();
    late(&mut params);
    let refused = appraise(&[root.sign(&spki, params)], &roots).unwrap_err();
    assert!(matches!(refused, EkError::Expired { now: NOW, .. }), "{refused}");
    let mut params = leaf_params();
    early(&mut params);
    let refused = appraise(&[root.sign(&spki, params)], &roots).unwrap_err();
    assert!(matches!(refused, EkError::NotYetValid { now: NOW, .. }), "{refused}");

    let mut params = ca_params("Vendor Issuing", None);
    late(&mut params);
    let middle = root.below_by(params);
    let refused = appraise(&[middle.sign(&spki, leaf_params()), middle.der.clone()], &roots).unwrap_err();
    assert!(
        matches!(&refused, EkError::Expired { subject, .. } if subject == "CN=Vendor Issuing"),
        "{refused}"
    );

    // The root was in its time when it was imported.
    let mut params = leaf_params();
    params.not_after = at(NOW + 9 * YEAR);
    let leaf = root.sign(&spki, params);
    let later = NOW + 2 * YEAR;
    let refused = appraise_certificate(&[leaf], &ek().0, &roots, &EkRoots::new(), later).unwrap_err();
    assert!(matches!(&refused, EkError::Expired { subject, .. } if subject == "CN=Vendor Root"), "{refused}");
}

#[test]
fn a_certificate_for_another_key_is_another_tpms() {
    let root = Ca::root("Vendor Root");
    let other = FakeTpm::new("other host").ek.secret.spki().unwrap();
    let refused = appraise(&[root.sign(&other, leaf_params())], &root.roots()).unwrap_err();
    assert!(matches!(refused, EkError::OtherKey { .. }), "{refused}");
    assert_eq!(refused.code(), "ek-certificate-other-key");
}

#[test]
fn a_ca_is_no_ek_and_another_purpose_is_none() {
    let root = Ca::root("Vendor Root");
    let spki = ek().1;
    let mut params = leaf_params();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let refused = appraise(&[root.sign(&spki, params)], &root.roots()).unwrap_err();
    assert!(matches!(refused, EkError::IsACa { .. }), "{refused}");
    let mut params = leaf_params();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let refused = appraise(&[root.sign(&spki, params)], &root.roots()).unwrap_err();
    assert!(matches!(refused, EkError::IsACa { .. }), "{refused}");
    let mut params = leaf_params();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let refused = appraise(&[root.sign(&spki, params)], &root.roots()).unwrap_err();
    assert!(matches!(refused, EkError::Purpose { .. }), "{refused}");
    // The profile lets a vendor leave the purpose out.
    let mut params = leaf_params();
    params.extended_key_usages = vec![];
    appraise(&[root.sign(&spki, params)], &root.roots()).unwrap();
}

#[test]
fn only_a_ca_for_eks_issues() {
    let root = Ca::root("Vendor Root");
    let (spki, roots) = (ek().1, root.roots());
    let refused_under = |change: fn(&mut CertificateParams)| {
        let mut params = ca_params("Vendor Issuing", None);
        change(&mut params);
        let middle = root.below_by(params);
        appraise(&[middle.sign(&spki, leaf_params()), middle.der.clone()], &roots).unwrap_err()
    };
    for change in [
        (|p| p.is_ca = IsCa::NoCa) as fn(&mut CertificateParams),
        |p| p.is_ca = IsCa::ExplicitNoCa,
        |p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature],
        |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
    ] {
        let refused = refused_under(change);
        assert!(matches!(refused, EkError::NotACa { .. }), "{refused}");
    }
    // Another EK's certificate does not issue either: the classic hole.
    let vendor_leaf_key = KeyPair::generate().unwrap();
    let mut params = leaf_params();
    params.distinguished_name.push(DnType::CommonName, "another EK");
    let other_ek = params.signed_by(&vendor_leaf_key, &root.issuer).unwrap().der().to_vec();
    let forged = Ca { issuer: Issuer::new(params, vendor_leaf_key), der: other_ek.clone() };
    let leaf = forged.sign(&spki, leaf_params());
    let refused = appraise(&[leaf, other_ek], &roots).unwrap_err();
    assert!(matches!(refused, EkError::NotACa { .. }), "{refused}");
}

#[test]
fn path_lengths_and_depth_are_bounded() {
    let spki = ek().1;
    let root = Ca::root_by(ca_params("Vendor Root", Some(0)));
    appraise(&[root.sign(&spki, leaf_params())], &root.roots()).unwrap();
    let middle = root.below("Vendor Issuing");
    let refused =
        appraise(&[middle.sign(&spki, leaf_params()), middle.der.clone()], &root.roots()).unwrap_err();
    assert!(matches!(refused, EkError::PathLength { max: 0, below: 1, .. }), "{refused}");

    // Six certificates are a path, seven are not.
    let root = Ca::root("Vendor Root");
    let mut cas = vec![];
    for depth in 0..5 {
        let next = cas.last().unwrap_or(&root).below(&format!("Vendor CA {depth}"));
        cas.push(next);
    }
    for (length, holds) in [(4, true), (5, false)] {
        let mut chain = vec![cas[length - 1].sign(&spki, leaf_params())];
        chain.extend(cas[..length].iter().map(|ca| ca.der.clone()));
        let result = appraise(&chain, &root.roots());
        assert_eq!(result.is_ok(), holds, "{result:?}");
        if let Err(refused) = result {
            assert!(matches!(refused, EkError::PathTooLong { .. }), "{refused}");
        }
    }
    let many = vec![vec![0x30, 0]; 9];
    assert_eq!(appraise(&many, &root.roots()), Err(EkError::TooManyCertificates { found: 9 }));
    assert_eq!(appraise(&[], &root.roots()), Err(EkError::Absent));
}

#[test]
fn work_is_bounded_where_many_cas_share_a_name() {
    let root = Ca::root("Vendor Root");
    let mut roots = root.roots();
    let mut params = leaf_params();
    params.use_authority_key_identifier_extension = false;
    let twins: Vec<Ca> = (0..40).map(|_| root.below("Vendor Issuing")).collect();
    for twin in &twins {
        roots.import_pem(&twin.pem(), NOW);
    }
    let stranger = Ca::root("Vendor Issuing");
    let refused = appraise(&[stranger.sign(&ek().1, params)], &roots).unwrap_err();
    assert!(matches!(refused, EkError::BadSignature { .. } | EkError::TooManyPaths { .. }), "{refused}");
}

#[test]
fn critical_extensions_must_be_known() {
    let root = Ca::root("Vendor Root");
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 32473, 1], vec![5, 0]);
    unknown.set_criticality(true);
    let mut params = leaf_params();
    params.custom_extensions.push(unknown.clone());
    let refused = appraise(&[root.sign(&ek().1, params)], &root.roots()).unwrap_err();
    let EkError::Certificate { number: 1, fault: CertificateFault::CriticalExtension { oid } } = &refused
    else {
        panic!("{refused}")
    };
    assert_eq!(oid, "1.3.6.1.4.1.32473.1");
    // Not critical, it does not matter.
    unknown.set_criticality(false);
    let mut params = leaf_params();
    params.custom_extensions.push(unknown);
    appraise(&[root.sign(&ek().1, params)], &root.roots()).unwrap();
    // The same extension twice is ambiguous.
    let mut params = leaf_params();
    params.custom_extensions.push(tcg_san("id:00000000", false));
    let refused = appraise(&[root.sign(&ek().1, params)], &root.roots()).unwrap_err();
    assert!(
        matches!(&refused, EkError::Certificate { fault: CertificateFault::Extension { oid, .. }, .. } if oid == "2.5.29.17"),
        "{refused}"
    );
}

#[test]
fn software_tpms_are_told_apart() {
    let (vendor, lab) = (Ca::root("Vendor Root"), Ca::root("Lab Root"));
    let (ek, spki) = ek();
    let leaf = lab.sign(&spki, leaf_params());
    let none = EkRoots::new();
    let appraised =
        appraise_certificate(std::slice::from_ref(&leaf), &ek, &vendor.roots(), &lab.roots(), NOW).unwrap();
    assert!(appraised.simulated);
    assert!(appraise_certificate(&[leaf], &ek, &vendor.roots(), &none, NOW).is_err());
    // One that says it is software is believed, whoever signed it.
    for manufacturer in ["id:00001014", "ID:00001014"] {
        let mut params = leaf_params();
        params.custom_extensions = vec![tcg_san(manufacturer, true)];
        let leaf = vendor.sign(&spki, params);
        assert!(claims_simulated(&leaf) && claims_simulated(&[leaf.as_slice(), &[0xff; 9]].concat()));
        assert!(appraise_certificate(&[leaf], &ek, &vendor.roots(), &none, NOW).unwrap().simulated);
    }
    // A root in both sets counts as the vendor's: the operator said so.
    let leaf = vendor.sign(&spki, leaf_params());
    assert!(!claims_simulated(&leaf) && !claims_simulated(b"no certificate"));
    assert!(!appraise_certificate(&[leaf], &ek, &vendor.roots(), &vendor.roots(), NOW).unwrap().simulated);
}

#[test]
fn the_signature_algorithm_is_known_and_said_twice_alike() {
    let root = Ca::root("Vendor Root");
    let leaf = root.sign(&ek().1, leaf_params());
    let unknown =
        patch(&leaf, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 9]);
    let refused = appraise(&[unknown], &root.roots()).unwrap_err();
    assert!(
        matches!(refused, EkError::Certificate { fault: CertificateFault::SignatureAlgorithm { .. }, .. }),
        "{refused}"
    );
    // Inner and outer algorithm must agree: patch the outer alone.
    let mut outer = leaf.clone();
    let oid = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
    let last = (0..leaf.len() - 8).rev().find(|at| leaf[*at..*at + 8] == oid).unwrap();
    outer[last + 7] = 3;
    let refused = appraise(&[outer], &root.roots()).unwrap_err();
    assert!(
        matches!(refused, EkError::Certificate { fault: CertificateFault::Malformed { .. }, .. }),
        "{refused}"
    );
}

#[test]
fn no_byte_of_a_certificate_can_change() {
    let root = Ca::root("Vendor Root");
    let leaf = root.sign(&ek().1, leaf_params());
    let roots = root.roots();
    for at in 0..leaf.len() {
        // Every bit of the frame around what is signed, one bit of each byte within.
        let frame = at < 16 || at + 100 > leaf.len();
        for bit in if frame { 0..8 } else { at % 8..at % 8 + 1 } {
            let mut flipped = leaf.clone();
            flipped[at] ^= 1 << bit;
            let result = appraise(&[flipped], &roots);
            assert!(result.is_err(), "bit {bit} of byte {at} flipped, and still {result:?}");
        }
    }
    for len in 0..leaf.len() {
        assert!(appraise(&[leaf[..len].to_vec()], &roots).is_err());
    }
}

#[test]
fn eks_follow_their_templates() {
    let of = |secret: Secret, template: Template| {
        templates::appraise(&Public::parse(&FakeKey::new(secret, &template).public).unwrap())
    };
    let high = |template: Template| template.with_attributes(attr::EK | attr::USER_WITH_AUTH);
    let h256 = || high(Template::ek().with_policy(&templates::POLICY_B_SHA256));
    let h384 = || Template {
        name_alg: SHA384,
        aes: Some(256),
        ..high(Template::ek().with_policy(&templates::POLICY_B_SHA384))
    };
    assert_eq!(of(Secret::p256("ek"), Template::ek()), Ok(EkTemplate::L2P256));
    assert_eq!(of(Secret::rsa(), Template::ek()), Ok(EkTemplate::L1Rsa2048));
    assert_eq!(of(Secret::p256("ek"), h256()), Ok(EkTemplate::H2P256));
    assert_eq!(of(Secret::rsa(), h256()), Ok(EkTemplate::H1Rsa2048));
    assert_eq!(of(Secret::p384("ek"), h384()), Ok(EkTemplate::H3P384));
    // Any other policy, key or hash: a vendor's own template, if it has an EK's attributes.
    assert_eq!(of(Secret::p384("ek"), Template::ek()), Ok(EkTemplate::FromNv));
    assert_eq!(of(Secret::p256("ek"), Template::ek().with_policy(&[7; 32])), Ok(EkTemplate::FromNv));
    for bit in
        [attr::RESTRICTED, attr::DECRYPT, attr::FIXED_TPM, attr::FIXED_PARENT, attr::SENSITIVE_DATA_ORIGIN]
    {
        let refused = of(Secret::p256("ek"), Template::ek().with_attributes(attr::EK & !bit));
        let Err(TemplateError::Lacks { lacking, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(lacking.bits(), bit);
    }
    let refused = of(Secret::p256("ek"), Template::ek().with_attributes(attr::EK | attr::SIGN));
    assert!(matches!(refused, Err(TemplateError::Signs { .. })));
    let refused = of(Secret::p256("ek"), Template { aes: None, ..Template::ek() });
    assert_eq!(refused, Err(TemplateError::NoSymmetric));
}
