//! A vendor's CAs and EK certificates, honest until a test changes them.

use std::sync::OnceLock;

use hallmark_core::ek::{EkCertificate, EkError, EkRoots, appraise_certificate};
use hallmark_core::tpm::Public;
use hallmark_kit::faketpm::FakeTpm;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;

/// 2026-06-01
pub(crate) const NOW: i64 = 1_780_272_000;
pub(crate) const YEAR: i64 = 365 * 86_400;
const EK_PURPOSE: [u64; 5] = [2, 23, 133, 8, 1];

/// A CA with its key; `der` is what it shows.
pub(crate) struct Ca {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) der: Vec<u8>,
}

pub(crate) fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

pub(crate) fn ca_params(name: &str, path_len: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(NOW - YEAR);
    params.not_after = at(NOW + YEAR);
    params.is_ca = IsCa::Ca(path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Ca {
    pub(crate) fn root_by(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    pub(crate) fn root(name: &str) -> Self {
        Self::root_by(ca_params(name, None))
    }

    pub(crate) fn below_by(&self, params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self { issuer: Issuer::new(params, key), der }
    }

    pub(crate) fn below(&self, name: &str) -> Self {
        self.below_by(ca_params(name, None))
    }

    pub(crate) fn sign(&self, spki: &[u8], params: CertificateParams) -> Vec<u8> {
        let key = SubjectPublicKeyInfo::from_der(spki).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }

    pub(crate) fn pem(&self) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE", self.der.clone()))
    }

    pub(crate) fn roots(&self) -> EkRoots {
        let mut roots = EkRoots::new();
        let report = roots.import_pem(&self.pem(), NOW);
        assert_eq!(report.accepted.len(), 1, "{report:?}");
        roots
    }
}

/// A subjectAltName with one directoryName holding the TPM's manufacturer.
pub(crate) fn tcg_san(manufacturer: &str, critical: bool) -> CustomExtension {
    let content = yasna::construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_tagged(yasna::Tag::context(4), |w| {
                w.write_sequence(|w| {
                    w.next().write_set(|w| {
                        w.next().write_sequence(|w| {
                            w.next()
                                .write_oid(&yasna::models::ObjectIdentifier::from_slice(&[2, 23, 133, 2, 1]));
                            w.next().write_utf8_string(manufacturer);
                        });
                    });
                });
            });
        });
    });
    let mut san = CustomExtension::from_oid_content(&[2, 5, 29, 17], content);
    san.set_criticality(critical);
    san
}

pub(crate) fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = at(NOW - YEAR);
    params.not_after = at(NOW + YEAR);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK_PURPOSE.to_vec())];
    params.custom_extensions = vec![tcg_san("id:FFFFF1D0", true)];
    params
}

pub(crate) fn ek() -> (Public, Vec<u8>) {
    static EK: OnceLock<(Public, Vec<u8>)> = OnceLock::new();
    EK.get_or_init(|| {
        let ek = FakeTpm::new("host").ek;
        (Public::parse(&ek.public).unwrap(), ek.secret.spki().unwrap())
    })
    .clone()
}

pub(crate) fn appraise(chain: &[Vec<u8>], vendor: &EkRoots) -> Result<EkCertificate, EkError> {
    appraise_certificate(chain, &ek().0, vendor, &EkRoots::new(), NOW)
}

/// Replaces one byte string by another of the same length, wherever it is.
pub(crate) fn patch(der: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = der.to_vec();
    for at in 0..=der.len() - from.len() {
        if &der[at..at + from.len()] == from {
            out[at..at + to.len()].copy_from_slice(to);
        }
    }
    out
}
