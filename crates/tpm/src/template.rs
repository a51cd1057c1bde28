//! The public templates of the keys made here.

use tss_esapi::Error;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::structures::{
    Digest, EccParameter, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Public,
    PublicBuilder, PublicEccParametersBuilder, SymmetricDefinitionObject,
};

/// The P-256 storage root key of the TCG TPM v2.0 Provisioning Guidance (7.5.1): the same on every start, for as long
/// as the owner hierarchy is not cleared, so that blobs made under it stay good.
pub(crate) fn storage_root() -> Result<Public, Error> {
    let attributes =
        fixed().with_user_with_auth(true).with_no_da(true).with_restricted(true).with_decrypt(true);
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    );
    p256(attributes, parameters, Digest::default())
}

/// The attestation key: restricted, so that it signs only what the TPM itself says. A primary key of the endorsement
/// hierarchy, and thus the same on every start; under the owner hierarchy its quotes would carry obfuscated counters
/// (Part 1, 36.7).
pub(crate) fn attestation() -> Result<Public, Error> {
    let attributes =
        fixed().with_user_with_auth(true).with_no_da(true).with_restricted(true).with_sign_encrypt(true);
    p256(attributes, signing().with_restricted(true), Digest::default())
}

/// A signing key. With a policy, only that authorises its use (`userWithAuth` clear); `adminWithPolicy` stays clear, so
/// that TPM2_Certify, whose object is authorised in the ADMIN role, still goes by the empty authorisation value.
pub(crate) fn signing_key(policy: Option<Digest>) -> Result<Public, Error> {
    let attributes = fixed().with_user_with_auth(policy.is_none()).with_no_da(true).with_sign_encrypt(true);
    p256(attributes, signing(), policy.unwrap_or_default())
}

fn fixed() -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
}

fn signing() -> PublicEccParametersBuilder {
    PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::Null)
        .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(true)
}

fn p256(
    attributes: ObjectAttributesBuilder,
    parameters: PublicEccParametersBuilder,
    policy: Digest,
) -> Result<Public, Error> {
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes.build()?)
        .with_auth_policy(policy)
        .with_ecc_parameters(parameters.build()?)
        .with_ecc_unique_identifier(EccPoint::new(
            EccParameter::try_from(vec![0; 32])?,
            EccParameter::try_from(vec![0; 32])?,
        ))
        .build()
}
