//! Imports of vendors' bundles: what is refused, and why.

use hallmark_core::ek::{CertificateFault, EkError, EkRoots, RootRefusal};
use rcgen::{IsCa, Issuer, KeyPair};

use crate::maker::{Ca, NOW, appraise, at, ca_params, ek, leaf_params, patch};

#[test]
fn broken_hashes_are_refused_before_anything_else() {
    // sha256WithRSAEncryption is 1.2.840.113549.1.1.11; the same arc holds the broken ones.
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let params = ca_params("Vendor Root", None);
    let der = params.self_signed(&key).unwrap().der().to_vec();
    let root = Ca { issuer: Issuer::new(params, key), der };
    let leaf = root.sign(&ek().1, leaf_params());
    appraise(std::slice::from_ref(&leaf), &root.roots()).unwrap();
    let oid = |arc| [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, arc];
    for (arc, name) in
        [(2, "md2WithRSAEncryption"), (4, "md5WithRSAEncryption"), (5, "sha1WithRSAEncryption")]
    {
        let refused = appraise(&[patch(&leaf, &oid(11), &oid(arc))], &root.roots()).unwrap_err();
        let EkError::Certificate { fault: CertificateFault::WeakSignature { algorithm }, .. } = refused
        else {
            panic!("{refused}")
        };
        assert_eq!(algorithm, name);
        // And not even as a root, where no one else vouches for it.
        let weak = patch(&root.der, &oid(11), &oid(arc));
        let report = EkRoots::new().import_pem(&pem::encode(&pem::Pem::new("CERTIFICATE", weak)), NOW);
        assert_eq!(
            report.refused[0].why,
            RootRefusal::Certificate(CertificateFault::WeakSignature { algorithm: name })
        );
    }
}

#[test]
fn imports_say_what_they_refuse_and_why() {
    let root = Ca::root("Vendor Root");
    let mut expired = ca_params("Expired Root", None);
    expired.not_after = at(NOW - 1);
    let expired = Ca::root_by(expired);
    let not_ca = {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params("No CA", None);
        params.is_ca = IsCa::NoCa;
        pem::encode(&pem::Pem::new("CERTIFICATE", params.self_signed(&key).unwrap().der().to_vec()))
    };
    let mut broken = root.der.clone();
    *broken.last_mut().unwrap() ^= 1;
    let broken = pem::encode(&pem::Pem::new("CERTIFICATE", broken));
    let orphan = Ca::root("Absent Root").below("Orphan");
    let bundle = [
        root.pem(),
        "commentary: between, blocks".into(),
        root.pem(),
        expired.pem(),
        not_ca,
        broken,
        orphan.pem(),
        pem::encode(&pem::Pem::new("CERTIFICATE", vec![0x30, 0x03, 1, 1, 0])),
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----".into(),
        "-----BEGIN CERTIFICATE-----\nMIIB".into(),
    ]
    .join("\n");
    let mut roots = EkRoots::new();
    let report = roots.import_pem(&bundle, NOW);
    assert_eq!(report.accepted.len(), 1);
    let refused: Vec<String> = report.refused.iter().map(|r| format!("{} | {}", r.subject, r.why)).collect();
    assert_eq!(refused.len(), 8, "{refused:#?}");
    let why = |subject: &str| &report.refused.iter().find(|r| r.subject == subject).unwrap().why;
    assert!(matches!(why("CN=Expired Root"), RootRefusal::Unfit(EkError::Expired { .. })));
    assert!(matches!(why("CN=No CA"), RootRefusal::Unfit(EkError::NotACa { .. })));
    assert!(matches!(why("CN=Orphan"), RootRefusal::IssuerAbsent { .. }));
    assert!(matches!(
        why("certificate 7 of the bundle"),
        RootRefusal::Certificate(CertificateFault::Malformed { .. })
    ));
    assert_eq!(why("certificate 8 of the bundle"), &RootRefusal::Pem);
    assert_eq!(why("certificate 9 of the bundle"), &RootRefusal::Pem);
    let of_root: Vec<_> = report.refused.iter().filter(|r| r.subject == "CN=Vendor Root").collect();
    assert_eq!(of_root.len(), 2);
    assert_eq!(of_root[0].why, RootRefusal::Duplicate);
    assert!(matches!(of_root[1].why, RootRefusal::Unfit(EkError::BadSignature { .. })));
    // An intermediate with a false signature by a known CA is not an orphan.
    let liar = Ca::root("Vendor Root").below("Liar");
    let report = roots.import_anchors_pem(&liar.pem(), NOW);
    assert!(report.accepted.is_empty(), "{report:?}");
    assert!(matches!(report.refused[0].why, RootRefusal::Unfit(EkError::BadSignature { .. })));
}

#[test]
fn an_intermediate_does_not_outlive_its_root_as_an_anchor() {
    let mut params = ca_params("Short Root", None);
    params.not_after = at(NOW + 1);
    let root = Ca::root_by(params);
    let middle = root.below("Long Issuing");
    let last = middle.below("Long Last");
    let mut roots = root.roots();
    roots.import_pem(&[middle.pem(), last.pem()].join("\n"), NOW);
    let kept = roots.to_pem();
    let mut again = EkRoots::new();
    assert_eq!(again.import_anchors_pem(&kept, NOW + 1).accepted.len(), 3);
    // Once the root has ended, what is read back holds nothing.
    let mut later = EkRoots::new();
    let report = later.import_anchors_pem(&kept, NOW + 2);
    assert!(report.accepted.is_empty() && later.is_empty());
    let why: Vec<_> = report.refused.iter().map(|r| &r.why).collect();
    assert!(matches!(
        why[..],
        [
            RootRefusal::Unfit(EkError::Expired { .. }),
            RootRefusal::IssuerRefused { .. },
            RootRefusal::IssuerRefused { .. }
        ]
    ));
}

#[test]
fn a_ca_has_a_key_that_may_sign_here() {
    let root = Ca::root("Vendor Root");
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let der = ca_params("Ed25519 CA", None).signed_by(&key, &root.issuer).unwrap().der().to_vec();
    let mut roots = root.roots();
    let report = roots.import_pem(&pem::encode(&pem::Pem::new("CERTIFICATE", der)), NOW);
    assert_eq!(report.refused[0].why, RootRefusal::Key);
    let der = ca_params("Ed25519 Root", None).self_signed(&key).unwrap().der().to_vec();
    let report = roots.import_pem(&pem::encode(&pem::Pem::new("CERTIFICATE", der)), NOW);
    assert!(matches!(
        report.refused[0].why,
        RootRefusal::Certificate(CertificateFault::SignatureAlgorithm { .. })
    ));
}

#[test]
fn a_bundle_without_end_is_not_read() {
    let endless = "-----BEGIN CERTIFICATE-----\n".repeat(400_000);
    let report = EkRoots::new().import_pem(&endless, NOW);
    assert_eq!(report.refused.len(), 1);
    assert!(matches!(report.refused[0].why, RootRefusal::BundleTooLong { .. }));
    assert!(EkRoots::new().import_pem("no certificate at all", NOW).refused.is_empty());
}

#[test]
fn only_version_3_and_strict_times_are_read() {
    let root = Ca::root("Vendor Root");
    let leaf = root.sign(&ek().1, leaf_params());
    let fault = |der: Vec<u8>| match appraise(&[der], &root.roots()).unwrap_err() {
        EkError::Certificate { number: 1, fault } => fault,
        other => panic!("{other}"),
    };
    let version_2 = patch(&leaf, &[0xa0, 3, 2, 1, 2], &[0xa0, 3, 2, 1, 1]);
    assert_eq!(fault(version_2), CertificateFault::Version { found: 2 });
    // UTCTime with a zone instead of Z, which some parsers take.
    let zoned = patch(&leaf, b"00Z", b"+00");
    assert!(matches!(fault(zoned), CertificateFault::Malformed { .. }));
}
