//! Real vendors' CAs and a real EK certificate. The data lies beside the project, not in it; where it is
//! absent a test says so and passes.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use hallmark_core::ek::{
    EkError, EkRoots, ImportReport, Leniency, RootRefusal, RootRole, appraise_certificate, public_digest,
    templates,
};
use hallmark_core::tpm::{Public, PublicKey};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// 2026-06-01
const NOW: i64 = 1_780_272_000;
/// 2028-07-11 00:00:00, the end of the STMicroelectronics certificate.
const ST_END: i64 = 1_846_886_400;

fn data(path: &str) -> Option<Vec<u8>> {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")).join(path);
    let bytes = std::fs::read(file).ok();
    if bytes.is_none() {
        println!("skipped: shared/data/{path} is absent");
    }
    bytes
}

fn bundles() -> Option<(String, String)> {
    let text = |path| Some(String::from_utf8(data(path)?).unwrap());
    Some((text("ek-roots/tpm-ca-certificates.pem")?, text("ek-roots/tpm-intermediate-ca-certificates.pem")?))
}

fn vendors() -> Option<EkRoots> {
    let (cas, intermediates) = bundles()?;
    let mut roots = EkRoots::new();
    roots.import_pem(&cas, NOW);
    roots.import_pem(&intermediates, NOW);
    Some(roots)
}

fn subjects(report: &ImportReport) -> Vec<String> {
    report.refused.iter().map(|r| format!("{}: {}", r.subject, r.why)).collect()
}

#[test]
fn the_vendors_bundle_is_read_whole() {
    let Some((cas, intermediates)) = bundles() else { return };
    let mut roots = EkRoots::new();
    let report = roots.import_pem(&cas, NOW);
    // 23 of the 26 sign themselves, two are signed by one of those, and the last one's root is not in the
    // bundle.
    let anchors = report.accepted.iter().filter(|r| r.role == RootRole::Anchor).count();
    assert_eq!((anchors, report.accepted.len()), (23, 25), "{:#?}", subjects(&report));
    assert_eq!(report.refused.len(), 1);
    assert!(report.refused[0].subject.contains("CN=AMD Pluton Global Factory ICA"));
    let RootRefusal::IssuerAbsent { issuer } = &report.refused[0].why else { panic!("{:?}", report.refused) };
    assert!(issuer.contains("CN=AMD Root CA R4"));

    // 10 of the 143 hang on that last one.
    let report = roots.import_pem(&intermediates, NOW);
    assert_eq!(report.accepted.len(), 133, "{:#?}", subjects(&report));
    assert!(report.accepted.iter().all(|r| r.role == RootRole::Intermediate));
    assert_eq!(report.refused.len(), 10);
    for refused in &report.refused {
        assert!(refused.subject.contains("CN=AMD Pluton Per-Product Factory"), "{}", refused.subject);
        let RootRefusal::IssuerAbsent { issuer } = &refused.why else { panic!("{refused:?}") };
        assert!(issuer.contains("CN=AMD Pluton Global Factory ICA"));
    }

    // By the operator's word that one becomes an anchor, and the rest follows.
    let report = roots.import_anchors_pem(&cas, NOW);
    assert_eq!(report.accepted.len(), 1);
    assert_eq!(report.accepted[0].role, RootRole::Anchor);
    assert!(report.refused.iter().all(|r| r.why == RootRefusal::Duplicate));
    assert_eq!(roots.import_pem(&intermediates, NOW).accepted.len(), 10);
    assert_eq!(roots.iter().count(), 26 + 143);
}

#[test]
fn the_order_of_the_bundles_does_not_matter() {
    let Some((cas, intermediates)) = bundles() else { return };
    let mut roots = EkRoots::new();
    let report = roots.import_pem(&format!("{intermediates}\n{cas}"), NOW);
    assert_eq!((report.accepted.len(), report.refused.len()), (25 + 133, 1 + 10));
    let mut roots = EkRoots::new();
    let report = roots.import_anchors_pem(&format!("{intermediates}\n{cas}"), NOW);
    assert_eq!((report.accepted.len(), report.refused.len()), (26 + 143, 0));
    // What is kept reads back as the same set.
    let mut again = EkRoots::new();
    again.import_anchors_pem(&roots.to_pem(), NOW);
    assert!(again.iter().eq(roots.iter()));
}

#[test]
fn an_expired_root_takes_its_own_with_it() {
    let Some((cas, intermediates)) = bundles() else { return };
    // 2036-01-01: Nuvoton's 1110 root (2035-05-07) has ended.
    let later = 2_082_758_400;
    let mut roots = EkRoots::new();
    let report = roots.import_pem(&format!("{cas}\n{intermediates}"), later);
    let expired = report.refused.iter().find(|r| r.subject.contains("Nuvoton TPM Root CA 1110")).unwrap();
    assert!(matches!(expired.why, RootRefusal::Unfit(EkError::Expired { .. })), "{:?}", expired.why);
}

#[test]
fn names_out_of_der_order_are_read_and_named() {
    let Some(nuvoton) = data("ek-certs/nuvoton_tpm_root_2110_set_order.der") else { return };
    let mut roots = EkRoots::new();
    let text = pem::encode(&pem::Pem::new("CERTIFICATE", nuvoton));
    let report = roots.import_pem(&text, NOW);
    assert_eq!(report.accepted.len(), 1, "{:#?}", subjects(&report));
    assert_eq!(report.accepted[0].leniencies, [Leniency::NameSetOrder]);
    assert_eq!(report.accepted[0].role, RootRole::Anchor);
}

/// The EK of the STMicroelectronics certificate, by the template its TPM uses.
fn st_ek(der: &[u8]) -> Public {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let spki = certificate.public_key().parsed().unwrap();
    let x509_parser::public_key::PublicKey::RSA(rsa) = spki else { panic!("not RSA") };
    let modulus = &rsa.modulus[rsa.modulus.len() - 256..];
    let mut area = vec![0x00, 0x01, 0x00, 0x0b, 0x00, 0x03, 0x00, 0xb2, 0x00, 0x20];
    area.extend(templates::POLICY_A_SHA256);
    area.extend([0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x08, 0x00, 0, 0, 0, 0, 0x01, 0x00]);
    area.extend(modulus);
    Public::parse(&area).unwrap()
}

#[test]
fn a_real_ek_certificate_leads_to_its_vendors_root() {
    let (Some(der), Some(vendors)) = (data("ek-certs/st_ek_rsa_padded_nv.der"), vendors()) else { return };
    let ek = st_ek(&der);
    assert!(matches!(ek.key(), PublicKey::Rsa(_)));
    assert_eq!(templates::appraise(&ek), Ok(templates::EkTemplate::L1Rsa2048));
    assert_eq!(public_digest(&ek).unwrap().as_slice(), &Sha256::digest(ek.spki_der().unwrap())[..]);
    let appraised =
        appraise_certificate(std::slice::from_ref(&der), &ek, &vendors, &EkRoots::new(), NOW).unwrap();
    assert!(!appraised.simulated);
    assert_eq!(appraised.subject, "");
    assert!(appraised.issuer.contains("CN=STM TPM EK Intermediate CA 05"));
    assert!(appraised.root.contains("CN=GlobalSign Trusted Platform Module Root CA"));
    assert_eq!(appraised.manufacturer.as_deref(), Some("id:53544D20"));
    assert_eq!(appraised.model.as_deref(), Some("ST33HTPHAHB4"));
    assert_eq!(appraised.version.as_deref(), Some("id:00490004"));
    assert_eq!(appraised.not_after, ST_END);
    assert_eq!(
        appraised.leniencies,
        [Leniency::NvPadding { fill: 0xff }],
        "exactly what had to be overlooked"
    );
}

#[test]
fn a_real_ek_certificate_ends_when_it_ends() {
    let (Some(der), Some(vendors)) = (data("ek-certs/st_ek_rsa_padded_nv.der"), vendors()) else { return };
    let ek = st_ek(&der);
    let chain = [der];
    let at = |now| appraise_certificate(&chain, &ek, &vendors, &EkRoots::new(), now);
    at(ST_END).unwrap();
    assert!(matches!(at(ST_END + 1), Err(EkError::Expired { .. })));
    // 2018-07-10: before it began.
    assert!(matches!(at(1_531_180_800), Err(EkError::NotYetValid { .. })));
    // Without its intermediate, or without its root, it leads nowhere.
    let (cas, intermediates) = bundles().unwrap();
    let mut only_roots = EkRoots::new();
    only_roots.import_pem(&cas, NOW);
    let refused = appraise_certificate(&chain, &ek, &only_roots, &EkRoots::new(), NOW).unwrap_err();
    assert!(matches!(refused, EkError::UnknownIssuer { .. }), "{refused}");
    let mut no_roots = EkRoots::new();
    assert!(no_roots.import_pem(&intermediates, NOW).accepted.is_empty());
    let refused = appraise_certificate(&chain, &ek, &no_roots, &EkRoots::new(), NOW).unwrap_err();
    assert!(matches!(refused, EkError::UnknownIssuer { .. }), "{refused}");
}

#[test]
fn no_byte_of_a_real_ek_certificate_can_change() {
    let (Some(der), Some(vendors)) = (data("ek-certs/st_ek_rsa_padded_nv.der"), vendors()) else { return };
    let ek = st_ek(&der);
    for at in 0..der.len() {
        let mut flipped = der.clone();
        flipped[at] ^= 1 << (at % 8);
        let result = appraise_certificate(&[flipped], &ek, &vendors, &EkRoots::new(), NOW);
        assert!(result.is_err(), "byte {at} flipped and still {result:?}");
    }
}
