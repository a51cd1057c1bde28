//! Keys certified by the attestation key: where a private key lives, proved.

use sha2::{Digest, Sha256};

use crate::pcr::{PcrSelection, PcrValues};
use crate::tpm::{
    Attest, Attested, HashAlg, Name, ObjectAttributes, ParseError, Public, Signature, SignatureError,
    SpkiError, policy_pcr_digest,
};

/// A key and its certification as they came.
#[derive(Debug, Clone, Copy)]
pub struct KeyCertification<'a> {
    /// `TPMT_PUBLIC`
    pub public: &'a [u8],
    /// `TPMS_ATTEST` of type certify
    pub attest: &'a [u8],
    /// `TPMT_SIGNATURE` by the AK
    pub signature: &'a [u8],
}

/// A key that lives in the AK's TPM and cannot leave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyAppraisal {
    /// Its SubjectPublicKeyInfo, DER: equals the CSR's.
    pub spki: Vec<u8>,
    /// Its name.
    pub name: Name,
    /// The PCRs (sha256 bank) its use is bound to; empty when it is bound to none.
    pub policy_pcrs: PcrSelection,
    /// Digest of the certification, for records and certificates.
    pub evidence_digest: [u8; 32],
}

/// Why a key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// The public area does not parse.
    #[error("public area: {0}")]
    Public(ParseError),
    /// The certification does not parse.
    #[error("certification: {0}")]
    Attest(ParseError),
    /// The signature does not parse.
    #[error("signature: {0}")]
    SignatureForm(ParseError),
    /// The AK of this host did not certify it.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It is another kind of attestation.
    #[error("not a certification of a key")]
    NotACertification,
    /// The certification is of another object.
    #[error("certified is object {certified}, the public area is of object {found}")]
    OtherObject {
        /// The name in the certification.
        certified: Name,
        /// The name of the public area.
        found: Name,
    },
    /// Attributes that a key of hardware custody has are absent.
    #[error("a key that cannot leave its TPM has {wanted}; this one lacks {lacking} (it has {found})")]
    Lacks {
        /// What such a key has.
        wanted: ObjectAttributes,
        /// What is absent.
        lacking: ObjectAttributes,
        /// What it has.
        found: ObjectAttributes,
    },
    /// It has an attribute that a client key must not have.
    #[error("a client key is neither restricted nor for decryption; this one has {found}")]
    Forbidden {
        /// Its attributes.
        found: ObjectAttributes,
    },
    /// Its policy is not the one declared.
    #[error("authPolicy is {found:?}; PCRs {pcrs:?} as quoted come to {expected:?}")]
    Policy {
        /// The PCRs declared; empty for none.
        pcrs: String,
        /// The policy they come to, hex; empty for none.
        expected: String,
        /// The key's authPolicy, hex.
        found: String,
    },
    /// Its policy can be stepped around with its authorisation value.
    #[error("the key is bound to PCRs but has userWithAuth: its authorisation value opens it without them")]
    PolicyOptional,
    /// A PCR it is said to be bound to was not quoted.
    #[error("the key is said to be bound to PCR {index}, which was not quoted")]
    PolicyPcrNotQuoted {
        /// The PCR.
        index: u8,
    },
    /// The CSR is for another key.
    #[error("the CSR is for key {csr}, certified is key {certified}")]
    OtherKey {
        /// SHA-256 of the CSR's SubjectPublicKeyInfo, hex.
        csr: String,
        /// SHA-256 of the certified key's, hex.
        certified: String,
    },
    /// The key cannot be written as SubjectPublicKeyInfo.
    #[error(transparent)]
    Spki(#[from] SpkiError),
}

impl KeyRefusal {
    /// One word for machines, and for strangers.
    pub fn code(&self) -> &'static str {
        match self {
            KeyRefusal::Public(_)
            | KeyRefusal::Attest(_)
            | KeyRefusal::SignatureForm(_)
            | KeyRefusal::NotACertification
            | KeyRefusal::Spki(_) => "key-certification-malformed",
            KeyRefusal::Signature(_) => "key-certification-signature",
            KeyRefusal::OtherObject { .. } => "key-certification-other-object",
            KeyRefusal::Lacks { .. } | KeyRefusal::Forbidden { .. } => "key-attributes",
            KeyRefusal::Policy { .. }
            | KeyRefusal::PolicyOptional
            | KeyRefusal::PolicyPcrNotQuoted { .. } => "key-policy",
            KeyRefusal::OtherKey { .. } => "key-not-in-csr",
        }
    }
}

/// What a key of hardware custody has: it was made in its TPM, stays there, and signs.
const KEY_ATTRIBUTES: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .union(ObjectAttributes::SIGN);
const KEY_FORBIDDEN: ObjectAttributes = ObjectAttributes::RESTRICTED.union(ObjectAttributes::DECRYPT);

/// Appraises a key certified by `ak` (Part 3, clause 18.2, TPM2_Certify).
///
/// `csr_spki` is the SubjectPublicKeyInfo of the CSR it is to be certified for. `policy_pcrs` are the PCRs its
/// use is said to be bound to, empty for none; `pcrs` the values of the host's last accepted quote, which the
/// policy must demand. A certification carries no nonce: what it says of a name holds for ever, and the CSR's
/// signature shows that the key is at hand.
pub fn appraise_key(
    certification: &KeyCertification<'_>,
    ak: &Public,
    csr_spki: &[u8],
    policy_pcrs: &PcrSelection,
    pcrs: &PcrValues,
) -> Result<KeyAppraisal, KeyRefusal> {
    let public = Public::parse(certification.public).map_err(KeyRefusal::Public)?;
    let attest = Attest::parse(certification.attest).map_err(KeyRefusal::Attest)?;
    let signature = Signature::parse(certification.signature).map_err(KeyRefusal::SignatureForm)?;
    signature.verify(ak, attest.as_bytes())?;
    let Attested::Certify { name, .. } = &attest.attested else {
        return Err(KeyRefusal::NotACertification);
    };
    if name != public.name() {
        return Err(KeyRefusal::OtherObject { certified: name.clone(), found: public.name().clone() });
    }
    check_attributes(public.attributes())?;
    check_policy(&public, policy_pcrs, pcrs)?;
    let spki = public.spki_der()?;
    if spki != csr_spki {
        return Err(KeyRefusal::OtherKey {
            csr: hex::encode(Sha256::digest(csr_spki)),
            certified: hex::encode(Sha256::digest(&spki)),
        });
    }
    let parts: [&[u8]; 3] = [certification.public, certification.attest, certification.signature];
    Ok(KeyAppraisal {
        spki,
        name: name.clone(),
        policy_pcrs: policy_pcrs.clone(),
        evidence_digest: super::tagged_digest("hallmark key evidence v1", &parts),
    })
}

fn check_attributes(found: ObjectAttributes) -> Result<(), KeyRefusal> {
    let lacking = found.lacking(KEY_ATTRIBUTES);
    if lacking.bits() != 0 {
        return Err(KeyRefusal::Lacks { wanted: KEY_ATTRIBUTES, lacking, found });
    }
    if found.intersects(KEY_FORBIDDEN) {
        return Err(KeyRefusal::Forbidden { found });
    }
    Ok(())
}

/// A key bound to PCRs has just the policy that the quoted values come to, and no way around it; a key that
/// is not has no policy at all.
fn check_policy(public: &Public, policy_pcrs: &PcrSelection, pcrs: &PcrValues) -> Result<(), KeyRefusal> {
    let mut values = Vec::new();
    for index in policy_pcrs.iter() {
        values.push((index, *pcrs.value(index).ok_or(KeyRefusal::PolicyPcrNotQuoted { index })?));
    }
    let expected = if values.is_empty() { Vec::new() } else { policy_pcr_digest(&values).to_vec() };
    // A digest of SHA-256's length under another name algorithm would not be PolicyPCR's.
    if public.auth_policy() != expected || (!values.is_empty() && public.name_alg() != HashAlg::Sha256) {
        return Err(KeyRefusal::Policy {
            pcrs: policy_pcrs.to_string(),
            expected: hex::encode(&expected),
            found: hex::encode(public.auth_policy()),
        });
    }
    if !values.is_empty() && public.attributes().intersects(ObjectAttributes::USER_WITH_AUTH) {
        return Err(KeyRefusal::PolicyOptional);
    }
    Ok(())
}
