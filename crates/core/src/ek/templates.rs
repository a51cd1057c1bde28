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

/// PolicySecret(TPM_RH_ENDORSEMENT) under SHA-256 (EK Credential Profile, annex B.3.2, "PolicyA").
pub const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd,
    0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
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
    // The L templates: adminWithPolicy with PolicyA. The H templates: userWithAuth and adminWithPolicy with
    // PolicyB.
    let low =
        found == REQUIRED.union(ObjectAttributes::ADMIN_WITH_POLICY) && ek.auth_policy() == POLICY_A_SHA256;
    let high =
        found == REQUIRED.union(ObjectAttributes::ADMIN_WITH_POLICY).union(ObjectAttributes::USER_WITH_AUTH);
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
