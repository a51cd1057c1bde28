//! Endorsement keys: the vendors' CAs, the certificate of an EK, and the templates an EK is made from.
//!
//! **In scope:** importing CAs, appraising an EK certificate as it lies in NV, telling software TPMs from
//! hardware by what signed them, and the attributes an EK must have. **Not in scope:** proving that a host
//! holds the EK; credential activation does ([`crate::tpm::make_credential`]). Revocation of EK
//! certificates is not checked: vendors publish little of it.
//!
//! Source: TCG EK Credential Profile for TPM Family 2.0, version 2.5; RFC 5280.

mod certificate;
mod chain;
mod der;
mod roots;
pub mod templates;

use sha2::{Digest, Sha256};

pub use certificate::{CertificateFault, Leniency};
pub use roots::{EkRoots, ImportReport, RefusedRoot, RootInfo, RootRefusal, RootRole};

use crate::tpm::{Public, SpkiError};
use certificate::Certificate;

/// tcg-kp-EKCertificate (TCG EK Credential Profile, clause 3.2.16).
const EK_PURPOSE: &str = "2.23.133.8.1";
/// anyExtendedKeyUsage (RFC 5280, section 4.2.1.12).
const ANY_PURPOSE: &str = "2.5.29.37.0";
/// What software TPMs (libtpms) state as their manufacturer: no hardware vendor has it in the TCG vendor
/// id registry's form.
const SIMULATED_MANUFACTURER: &str = "id:00001014";
/// Most certificates a host may send with its EK certificate.
pub const MAX_CHAIN: usize = 8;

/// An EK certificate that leads to a trusted root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EkCertificate {
    /// A software TPM: its root is among the simulated ones, or it says so itself.
    pub simulated: bool,
    /// Subject; empty in many real certificates.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// The root it leads to.
    pub root: String,
    /// Serial number, big-endian.
    pub serial: Vec<u8>,
    /// TPM manufacturer as the certificate states it, such as `id:53544D20`.
    pub manufacturer: Option<String>,
    /// TPM model.
    pub model: Option<String>,
    /// TPM firmware version at manufacture.
    pub version: Option<String>,
    /// End of validity, seconds since 1970.
    pub not_after: i64,
    /// What had to be overlooked in it and in the CAs above it.
    pub leniencies: Vec<Leniency>,
}

/// Why an EK certificate proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EkError {
    /// No certificate was sent.
    #[error("no EK certificate")]
    Absent,
    /// More certificates than any chain has.
    #[error("{found} certificates, at most {MAX_CHAIN} are read")]
    TooManyCertificates {
        /// How many.
        found: usize,
    },
    /// A certificate that cannot be used.
    #[error("certificate {number}: {fault}")]
    Certificate {
        /// Its place in what was sent, from 1.
        number: usize,
        /// What is wrong with it.
        fault: CertificateFault,
    },
    /// The certificate is for another key.
    #[error("the certificate is for key {certified}, the EK is key {ek}")]
    OtherKey {
        /// SHA-256 of the certificate's SubjectPublicKeyInfo, hex.
        certified: String,
        /// SHA-256 of the EK's, hex.
        ek: String,
    },
    /// The EK cannot be compared.
    #[error(transparent)]
    Spki(#[from] SpkiError),
    /// A CA certificate in an EK's place.
    #[error("the EK certificate ({subject}) is a CA's")]
    IsACa {
        /// Its subject.
        subject: String,
    },
    /// The extendedKeyUsage is for something else.
    #[error("the certificate is for {found:?}, not for an EK (2.23.133.8.1)")]
    Purpose {
        /// The purposes it states.
        found: Vec<String>,
    },
    /// No CA with the issuer's name is known.
    #[error("the issuer of {subject:?}, {issuer:?}, is not among the trusted CAs")]
    UnknownIssuer {
        /// The certificate.
        subject: String,
        /// The issuer it names.
        issuer: String,
    },
    /// The issuer's key did not sign it.
    #[error("{subject:?} is not signed by {issuer:?}")]
    BadSignature {
        /// The certificate.
        subject: String,
        /// The CA whose name it gives.
        issuer: String,
    },
    /// Past its end.
    #[error("{subject:?} expired at {not_after}, it is {now}")]
    Expired {
        /// The certificate.
        subject: String,
        /// Its end, seconds since 1970.
        not_after: i64,
        /// The time of the appraisal.
        now: i64,
    },
    /// Before its beginning.
    #[error("{subject:?} is valid from {not_before}, it is {now}")]
    NotYetValid {
        /// The certificate.
        subject: String,
        /// Its beginning, seconds since 1970.
        not_before: i64,
        /// The time of the appraisal.
        now: i64,
    },
    /// An issuer that is no CA.
    #[error("{subject:?} is no CA for EK certificates: {why}")]
    NotACa {
        /// The certificate.
        subject: String,
        /// What it lacks.
        why: &'static str,
    },
    /// A CA's pathLenConstraint is exceeded.
    #[error("{subject:?} allows {max} CAs below it, there are {below}")]
    PathLength {
        /// The CA.
        subject: String,
        /// Its constraint.
        max: u32,
        /// CAs between it and the EK certificate.
        below: usize,
    },
    /// No root within the longest path.
    #[error("no root within {max} certificates")]
    PathTooLong {
        /// The longest path.
        max: usize,
    },
    /// Too many CAs of one name.
    #[error("no root within {max} signature checks")]
    TooManyPaths {
        /// How many were made.
        max: usize,
    },
}

impl EkError {
    /// One word for machines, and for strangers.
    pub fn code(&self) -> &'static str {
        match self {
            EkError::Absent => "ek-certificate-absent",
            EkError::TooManyCertificates { .. } | EkError::Certificate { .. } | EkError::Spki(_) => {
                "ek-certificate-malformed"
            }
            EkError::OtherKey { .. } => "ek-certificate-other-key",
            EkError::IsACa { .. } | EkError::Purpose { .. } => "ek-certificate-wrong-purpose",
            EkError::UnknownIssuer { .. } => "ek-certificate-unknown-issuer",
            EkError::BadSignature { .. } => "ek-certificate-bad-signature",
            EkError::Expired { .. } => "ek-certificate-expired",
            EkError::NotYetValid { .. } => "ek-certificate-not-yet-valid",
            EkError::NotACa { .. }
            | EkError::PathLength { .. }
            | EkError::PathTooLong { .. }
            | EkError::TooManyPaths { .. } => "ek-certificate-bad-chain",
        }
    }
}

/// SHA-256 of the EK's SubjectPublicKeyInfo: equals `openssl pkey -pubin -outform DER | sha256sum`.
pub fn public_digest(ek: &Public) -> Result<[u8; 32], SpkiError> {
    Ok(Sha256::digest(ek.spki_der()?).into())
}

/// Appraises the certificate of `ek`. `chain` holds the EK certificate as read from NV, padding and all, then
/// any CAs the host has. `now` in seconds since 1970.
///
/// A vendor's root is tried first, then the simulated ones; which of them it was is in the result.
pub fn appraise_certificate(
    chain: &[Vec<u8>],
    ek: &Public,
    vendor: &EkRoots,
    simulated: &EkRoots,
    now: i64,
) -> Result<EkCertificate, EkError> {
    if chain.len() > MAX_CHAIN {
        return Err(EkError::TooManyCertificates { found: chain.len() });
    }
    let parsed = chain
        .iter()
        .enumerate()
        .map(|(i, bytes)| {
            Certificate::parse_padded(bytes).map_err(|fault| EkError::Certificate { number: i + 1, fault })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let (leaf, sent) = parsed.split_first().ok_or(EkError::Absent)?;
    check_leaf(leaf, ek)?;
    let (path, from_simulated) = match lead_to(leaf, sent, vendor, now) {
        Ok(path) => (path, false),
        Err(unknown @ EkError::UnknownIssuer { .. }) => match lead_to(leaf, sent, simulated, now) {
            Ok(path) => (path, true),
            // Where neither set knows the issuer, the vendors' answer names it.
            Err(EkError::UnknownIssuer { .. }) => return Err(unknown),
            Err(other) => return Err(other),
        },
        Err(other) => match lead_to(leaf, sent, simulated, now) {
            Ok(path) => (path, true),
            Err(_) => return Err(other),
        },
    };
    let [manufacturer, model, version] = leaf.tcg.clone();
    Ok(EkCertificate {
        simulated: from_simulated || says_software(leaf),
        subject: leaf.subject.clone(),
        issuer: leaf.issuer.clone(),
        root: path.anchor.subject.clone(),
        serial: leaf.serial.clone(),
        manufacturer,
        model,
        version,
        not_after: leaf.not_after,
        leniencies: path.leniencies.into_iter().collect(),
    })
}

/// Whether an EK certificate says of itself that its TPM is software, whoever signed it. One that cannot be read
/// says nothing. For an EK that is trusted in another way than by its certificate.
pub fn claims_simulated(certificate: &[u8]) -> bool {
    Certificate::parse_padded(certificate).is_ok_and(|certificate| says_software(&certificate))
}

fn says_software(leaf: &Certificate) -> bool {
    let [manufacturer, ..] = &leaf.tcg;
    manufacturer.as_ref().is_some_and(|m| m.eq_ignore_ascii_case(SIMULATED_MANUFACTURER))
}

fn check_leaf(leaf: &Certificate, ek: &Public) -> Result<(), EkError> {
    let spki = ek.spki_der()?;
    if leaf.spki != spki {
        return Err(EkError::OtherKey {
            certified: hex::encode(Sha256::digest(&leaf.spki)),
            ek: hex::encode(Sha256::digest(&spki)),
        });
    }
    if leaf.ca || leaf.key_cert_sign == Some(true) {
        return Err(EkError::IsACa { subject: leaf.subject.clone() });
    }
    match &leaf.purposes {
        Some(found) if !found.iter().any(|p| p == EK_PURPOSE) => {
            Err(EkError::Purpose { found: found.clone() })
        }
        _ => Ok(()),
    }
}

fn lead_to<'a>(
    leaf: &'a Certificate,
    sent: &'a [Certificate],
    roots: &'a EkRoots,
    now: i64,
) -> Result<chain::Path<'a>, EkError> {
    let candidates: Vec<&Certificate> = roots.intermediates.iter().chain(sent).collect();
    chain::build(leaf, &candidates, &roots.anchors, now)
}
