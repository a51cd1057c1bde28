//! Building a path from an EK certificate to a root. webpki cannot: it refuses the critical subjectAltName
//! with a directoryName that EK certificates have.
//!
//! Source: RFC 5280, section 6.1, without policies, name constraints (refused when critical) and revocation.

use std::collections::BTreeSet;

use aws_lc_rs::signature as aws;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

use super::certificate::{Certificate, Hash, Leniency, SignatureAlgorithm};
use super::{ANY_PURPOSE, EK_PURPOSE, EkError};

/// Longest path, leaf and root included.
pub(super) const MAX_DEPTH: usize = 6;
/// Most signatures checked for one appraisal: a host cannot make the verifier work without end.
const MAX_SIGNATURES: usize = 32;

/// A path that holds.
pub(super) struct Path<'a> {
    /// Where it ends.
    pub(super) anchor: &'a Certificate,
    /// What had to be overlooked along it.
    pub(super) leniencies: BTreeSet<Leniency>,
}

/// Finds a path from `leaf` to one of `anchors`. `candidates` are CAs that may stand between.
pub(super) fn build<'a>(
    leaf: &'a Certificate,
    candidates: &[&'a Certificate],
    anchors: &'a [Certificate],
    now: i64,
) -> Result<Path<'a>, EkError> {
    check_validity(leaf, now)?;
    let mut search = Search { candidates, anchors, now, signatures: 0, closest: None };
    let mut path = vec![leaf];
    match search.extend(&mut path) {
        Some(anchor) => {
            path.push(anchor);
            Ok(Path { anchor, leniencies: leniencies(&path) })
        }
        None => Err(search.closest.map(|(_, error)| error).unwrap_or_else(|| EkError::UnknownIssuer {
            subject: leaf.subject.clone(),
            issuer: leaf.issuer.clone(),
        })),
    }
}

fn leniencies(path: &[&Certificate]) -> BTreeSet<Leniency> {
    let mut all: BTreeSet<Leniency> = path.iter().flat_map(|c| c.leniencies.iter().copied()).collect();
    if path.windows(2).any(|pair| pair[0].issuer_name.der != pair[1].subject_name.der) {
        all.insert(Leniency::NameStringType);
    }
    all
}

struct Search<'a, 's> {
    candidates: &'s [&'a Certificate],
    anchors: &'a [Certificate],
    now: i64,
    signatures: usize,
    /// The failure that came closest to a root, with the length of its path.
    closest: Option<(usize, EkError)>,
}

impl<'a> Search<'a, '_> {
    fn extend(&mut self, path: &mut Vec<&'a Certificate>) -> Option<&'a Certificate> {
        let subject = *path.last()?;
        if path.len() >= MAX_DEPTH {
            self.note(path.len(), EkError::PathTooLong { max: MAX_DEPTH });
            return None;
        }
        let anchors = self.anchors;
        let mut named = false;
        for anchor in anchors.iter().filter(|a| subject.names_issuer(a)) {
            named = true;
            match self.check_link(path, anchor) {
                Ok(()) => return Some(anchor),
                Err(error) => self.note(path.len() + 1, error),
            }
        }
        let candidates = self.candidates;
        for issuer in candidates.iter().copied().filter(|c| subject.names_issuer(c)) {
            // A certificate stands at most once in a path; a self-issued one leads nowhere new.
            if issuer.is_self_issued() || path.iter().any(|c| c.der == issuer.der) {
                continue;
            }
            named = true;
            if let Err(error) = self.check_link(path, issuer) {
                self.note(path.len(), error);
                continue;
            }
            path.push(issuer);
            if let Some(anchor) = self.extend(path) {
                return Some(anchor);
            }
            path.pop();
        }
        if !named {
            let (subject, issuer) = (subject.subject.clone(), subject.issuer.clone());
            self.note(path.len(), EkError::UnknownIssuer { subject, issuer });
        }
        None
    }

    /// Whether `issuer` may be, and is, the issuer of the path's last certificate.
    fn check_link(&mut self, path: &[&Certificate], issuer: &Certificate) -> Result<(), EkError> {
        let Some(subject) = path.last() else { return Ok(()) };
        check_ca(issuer)?;
        check_validity(issuer, self.now)?;
        // RFC 5280, section 6.1.4 (l), (m): certificates between this one and the leaf, self-issued ones not
        // counted; the leaf itself is not counted either.
        let below = path.iter().skip(1).filter(|c| !c.is_self_issued()).count();
        if let Some(max) = issuer.path_len.filter(|max| below > *max as usize) {
            return Err(EkError::PathLength { subject: issuer.subject.clone(), max, below });
        }
        self.signatures += 1;
        if self.signatures > MAX_SIGNATURES {
            return Err(EkError::TooManyPaths { max: MAX_SIGNATURES });
        }
        check_signature(subject, issuer)
    }

    fn note(&mut self, depth: usize, error: EkError) {
        if self.closest.as_ref().is_none_or(|(closest, _)| depth > *closest) {
            self.closest = Some((depth, error));
        }
    }
}

/// RFC 5280, section 6.1.4 (k), (n): an issuer is a CA and its key may sign certificates. A CA with an
/// extendedKeyUsage must allow EK certificates.
pub(super) fn check_ca(issuer: &Certificate) -> Result<(), EkError> {
    let refuse = |why| Err(EkError::NotACa { subject: issuer.subject.clone(), why });
    if !issuer.ca {
        return refuse("its basicConstraints do not say so");
    }
    if issuer.key_cert_sign == Some(false) {
        return refuse("its keyUsage lacks keyCertSign");
    }
    if let Some(purposes) = &issuer.purposes
        && !purposes.iter().any(|p| p == EK_PURPOSE || p == ANY_PURPOSE)
    {
        return refuse("its extendedKeyUsage does not include EK certificates");
    }
    Ok(())
}

pub(super) fn check_validity(certificate: &Certificate, now: i64) -> Result<(), EkError> {
    let subject = || certificate.subject.clone();
    if now < certificate.not_before {
        return Err(EkError::NotYetValid { subject: subject(), not_before: certificate.not_before, now });
    }
    if now > certificate.not_after {
        return Err(EkError::Expired { subject: subject(), not_after: certificate.not_after, now });
    }
    Ok(())
}

/// Whether the key of `issuer` signed `subject`.
pub(super) fn check_signature(subject: &Certificate, issuer: &Certificate) -> Result<(), EkError> {
    let bad = || EkError::BadSignature { subject: subject.subject.clone(), issuer: issuer.subject.clone() };
    let algorithm = verification_algorithm(subject.signature_algorithm, issuer).ok_or_else(bad)?;
    let (_, spki) = SubjectPublicKeyInfo::from_der(&issuer.spki).map_err(|_| bad())?;
    aws::UnparsedPublicKey::new(algorithm, &spki.subject_public_key.data)
        .verify(&subject.tbs, &subject.signature)
        .map_err(|_| bad())
}

/// The kind of key a certificate holds, if it is one that may sign here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaKeyKind {
    /// RSA of 2048 bits or more
    Rsa,
    P256,
    P384,
    P521,
}

pub(super) fn ca_key_kind(certificate: &Certificate) -> Option<CaKeyKind> {
    let (_, spki) = SubjectPublicKeyInfo::from_der(&certificate.spki).ok()?;
    match spki.algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.1" => match spki.parsed().ok()? {
            x509_parser::public_key::PublicKey::RSA(key) => {
                let modulus = key.modulus.iter().skip_while(|b| **b == 0).count();
                (256..=1024).contains(&modulus).then_some(CaKeyKind::Rsa)
            }
            _ => None,
        },
        "1.2.840.10045.2.1" => {
            match spki.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string().as_str() {
                "1.2.840.10045.3.1.7" => Some(CaKeyKind::P256),
                "1.3.132.0.34" => Some(CaKeyKind::P384),
                "1.3.132.0.35" => Some(CaKeyKind::P521),
                _ => None,
            }
        }
        _ => None,
    }
}

fn verification_algorithm(
    algorithm: SignatureAlgorithm,
    issuer: &Certificate,
) -> Option<&'static dyn aws::VerificationAlgorithm> {
    use {CaKeyKind as K, Hash as H, SignatureAlgorithm as S};
    Some(match (ca_key_kind(issuer)?, algorithm) {
        (K::Rsa, S::RsaPkcs1(H::Sha256)) => &aws::RSA_PKCS1_2048_8192_SHA256,
        (K::Rsa, S::RsaPkcs1(H::Sha384)) => &aws::RSA_PKCS1_2048_8192_SHA384,
        (K::Rsa, S::RsaPkcs1(H::Sha512)) => &aws::RSA_PKCS1_2048_8192_SHA512,
        (K::Rsa, S::RsaPss(H::Sha256)) => &aws::RSA_PSS_2048_8192_SHA256,
        (K::Rsa, S::RsaPss(H::Sha384)) => &aws::RSA_PSS_2048_8192_SHA384,
        (K::Rsa, S::RsaPss(H::Sha512)) => &aws::RSA_PSS_2048_8192_SHA512,
        (K::P256, S::Ecdsa(H::Sha256)) => &aws::ECDSA_P256_SHA256_ASN1,
        (K::P256, S::Ecdsa(H::Sha384)) => &aws::ECDSA_P256_SHA384_ASN1,
        (K::P256, S::Ecdsa(H::Sha512)) => &aws::ECDSA_P256_SHA512_ASN1,
        (K::P384, S::Ecdsa(H::Sha256)) => &aws::ECDSA_P384_SHA256_ASN1,
        (K::P384, S::Ecdsa(H::Sha384)) => &aws::ECDSA_P384_SHA384_ASN1,
        (K::P384, S::Ecdsa(H::Sha512)) => &aws::ECDSA_P384_SHA512_ASN1,
        (K::P521, S::Ecdsa(H::Sha256)) => &aws::ECDSA_P521_SHA256_ASN1,
        (K::P521, S::Ecdsa(H::Sha384)) => &aws::ECDSA_P521_SHA384_ASN1,
        (K::P521, S::Ecdsa(H::Sha512)) => &aws::ECDSA_P521_SHA512_ASN1,
        _ => return None,
    })
}
