//! The templates EKs are made from.
//!
//! Source: TCG EK Credential Profile for TPM Family 2.0, version 2.5, annex B.3 (L templates) and B.4 (H
//! templates).

use crate::tpm::{Curve, HashAlg, ObjectAttributes, Public, PublicKey, Scheme, Symmetric};

/// Which template an EK follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EkTemplate {
    /// L-1: RSA 2048, PolicySecret, AES-128
    L1Rsa2048,
    /// L-2: P-256, PolicySecret, AES-128
    L2P256,
    /// H-1: RSA 2048, user authorisation and policy B
    H1Rsa2048,
    /// H-2: P-256
    H2P256,
    /// H-3: P-384, AES-256
    H3P384,
    /// H-6: RSA 3072, AES-256
    H6Rsa3072,
    /// Its own template, kept in the TPM's NV: the attributes are an EK's, the rest is the vendor's choice.
    FromNv,
}

/// Why a key is not an endorsement key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Attributes that every EK has are absent.
    #[error("an EK has {wanted}; this key lacks {lacking} (it has {found})")]
    Lacks {
        /// What every EK has.
        wanted: ObjectAttributes,
        /// What is absent.
        lacking: ObjectAttributes,
        /// What it has.
        found: ObjectAttributes,
    },
    /// It may sign.
    #[error("an EK does not sign; this key has {found}")]
    Signs {
        /// Its attributes.
        found: ObjectAttributes,
    },
    /// No symmetric algorithm: credentials cannot be protected.
    #[error("the key protects nothing: it has no symmetric algorithm")]
    NoSymmetric,
}

/// What every EK has: it decrypts TPM structures only, was made in this TPM and never leaves it.
const REQUIRED: ObjectAttributes = ObjectAttributes::RESTRICTED
    .union(ObjectAttributes::DECRYPT)
    .union(ObjectAttributes::FIXED_TPM)
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN);

/// L templates: use demands PolicyA.
const LOW: ObjectAttributes = REQUIRED.union(ObjectAttributes::ADMIN_WITH_POLICY);
/// H templates: use demands the authorisation value or PolicyB.
const HIGH: ObjectAttributes = LOW.union(ObjectAttributes::USER_WITH_AUTH);

/// PolicySecret(TPM_RH_ENDORSEMENT) under SHA-256 (EK Credential Profile, annex B.3.2, "PolicyA").
pub const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// PolicyOR(PolicyA, PolicyC) under SHA-256 (EK Credential Profile, annex B.4.3, "PolicyB").
pub const POLICY_B_SHA256: [u8; 32] = [
    0xca, 0x3d, 0x0a, 0x99, 0xa2, 0xb9, 0x39, 0x06, 0xf7, 0xa3, 0x34, 0x24, 0x14, 0xef, 0xcf, 0xb3, 0xa3,
    0x85, 0xd4, 0x4c, 0xd1, 0xfd, 0x45, 0x90, 0x89, 0xd1, 0x9b, 0x50, 0x71, 0xc0, 0xb7, 0xa0,
];

/// PolicyB under SHA-384.
pub const POLICY_B_SHA384: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a, 0x07,
    0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47,
    0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];

/// Holds an EK's public area against the TCG's default templates. A key that follows none of them is accepted
/// as one from NV if it has an EK's attributes.
pub fn appraise(ek: &Public) -> Result<EkTemplate, TemplateError> {
    let found = ek.attributes();
    let lacking = found.lacking(REQUIRED);
    if lacking.bits() != 0 {
        return Err(TemplateError::Lacks { wanted: REQUIRED, lacking, found });
    }
    if found.intersects(ObjectAttributes::SIGN) {
        return Err(TemplateError::Signs { found });
    }
    let Symmetric::AesCfb { bits } = ek.symmetric() else { return Err(TemplateError::NoSymmetric) };
    if ek.scheme() != Scheme::Null {
        return Ok(EkTemplate::FromNv);
    }
    let low = found == LOW && ek.auth_policy() == POLICY_A_SHA256;
    let high = found == HIGH
        && match ek.name_alg() {
            HashAlg::Sha256 => ek.auth_policy() == POLICY_B_SHA256,
            HashAlg::Sha384 => ek.auth_policy() == POLICY_B_SHA384,
        };
    Ok(match (ek.key(), ek.name_alg(), bits) {
        (PublicKey::Rsa(k), HashAlg::Sha256, 128) if low && k.bits == 2048 => EkTemplate::L1Rsa2048,
        (PublicKey::Ecc(k), HashAlg::Sha256, 128) if low && k.curve == Curve::P256 => EkTemplate::L2P256,
        (PublicKey::Rsa(k), HashAlg::Sha256, 128) if high && k.bits == 2048 => EkTemplate::H1Rsa2048,
        (PublicKey::Ecc(k), HashAlg::Sha256, 128) if high && k.curve == Curve::P256 => EkTemplate::H2P256,
        (PublicKey::Ecc(k), HashAlg::Sha384, 256) if high && k.curve == Curve::P384 => EkTemplate::H3P384,
        (PublicKey::Rsa(k), HashAlg::Sha384, 256) if high && k.bits == 3072 => EkTemplate::H6Rsa3072,
        _ => EkTemplate::FromNv,
    })
}

impl TemplateError {
    /// One word for machines, and for strangers.
    pub fn code(&self) -> &'static str {
        match self {
            TemplateError::Lacks { .. } | TemplateError::Signs { .. } => "ek-attributes",
            TemplateError::NoSymmetric => "ek-not-storage-key",
        }
    }
}
