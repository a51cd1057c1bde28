//! MakeCredential in software: a secret that only the TPM with this EK, holding this AK, can open
//! (Part 1, clause 24, "Credential Protection"; Part 3, clause 12.6, TPM2_MakeCredential).

use aes::cipher::{AsyncStreamCipher, KeyIvInit};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rand_core::CryptoRngCore;
use rsa::traits::PaddingScheme as _;
use zeroize::Zeroizing;

use super::attributes::ObjectAttributes;
use super::kdf::{hmac, kdfa, kdfe};
use super::name::{HashAlg, Name};
use super::public::{Curve, EccPublic, Public, PublicKey, RsaPublic, Symmetric};
use super::wire::put_sized;

/// Longest secret: TPM2_MakeCredential takes a digest, and the shortest here is SHA-256's.
pub const MAX_SECRET: usize = 32;

/// What TPM2_ActivateCredential takes, each with its 16-bit size in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// `TPM2B_ID_OBJECT`
    pub id_object: Vec<u8>,
    /// `TPM2B_ENCRYPTED_SECRET`
    pub encrypted_secret: Vec<u8>,
}

/// Why no credential could be made for this EK.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Not a restricted decryption key: its TPM would refuse, and another holder might not.
    #[error("object {name} is no storage key: it has {attributes}")]
    NotStorageKey {
        /// The object.
        name: Name,
        /// Its attributes.
        attributes: ObjectAttributes,
    },
    /// The secret is empty or too long.
    #[error("a secret of {len} bytes: 1 to {MAX_SECRET} fit every EK")]
    SecretLength {
        /// Length in bytes.
        len: usize,
    },
    /// The public key cannot be encrypted to.
    #[error("the key of object {name} cannot be encrypted to")]
    Key {
        /// The object.
        name: Name,
    },
}

/// Protects `secret` for the TPM that holds `ek`, to be released only where an object named `ak_name` is
/// loaded beside it. Equals TPM2_MakeCredential.
pub fn make_credential(
    ek: &Public,
    ak_name: &Name,
    secret: &[u8],
    rng: &mut impl CryptoRngCore,
) -> Result<Credential, CredentialError> {
    let storage = ObjectAttributes::RESTRICTED.union(ObjectAttributes::DECRYPT);
    let aes_bits = match ek.symmetric() {
        Symmetric::AesCfb { bits } if ek.attributes().contains(storage) => bits,
        _ => {
            return Err(CredentialError::NotStorageKey {
                name: ek.name().clone(),
                attributes: ek.attributes(),
            });
        }
    };
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(CredentialError::SecretLength { len: secret.len() });
    }
    let alg = ek.name_alg();
    let (seed, encrypted_seed) = match ek.key() {
        PublicKey::Rsa(key) => seed_by_rsa(alg, key, rng),
        PublicKey::Ecc(key) => seed_by_ecdh(alg, key, rng),
    }
    .ok_or_else(|| CredentialError::Key { name: ek.name().clone() })?;

    // Part 1, clause 24.4: the symmetric key is bound to the object's name.
    let key = kdfa(alg, &seed, "STORAGE", ak_name.as_bytes(), &[], aes_bits.into());
    let mut identity = Zeroizing::new(Vec::new());
    put_sized(&mut identity, secret);
    aes_cfb_zero_iv(&key, &mut identity).ok_or_else(|| CredentialError::Key { name: ek.name().clone() })?;

    // Part 1, clause 24.5: encrypt then MAC, over the ciphertext and the name.
    let mac_key = kdfa(alg, &seed, "INTEGRITY", &[], &[], alg.digest_len() as u32 * 8);
    let mac = hmac(alg, &mac_key, &[&identity, ak_name.as_bytes()]);
    let mut body = Vec::new();
    put_sized(&mut body, &mac);
    body.extend_from_slice(&identity);

    let mut credential = Credential { id_object: Vec::new(), encrypted_secret: Vec::new() };
    put_sized(&mut credential.id_object, &body);
    put_sized(&mut credential.encrypted_secret, &encrypted_seed);
    Ok(credential)
}

/// A random seed under RSAES-OAEP with the name algorithm's hash and the label "IDENTITY\0" (Part 1,
/// annex B.4 and B.10.4).
fn seed_by_rsa(
    alg: HashAlg,
    key: &RsaPublic,
    rng: &mut impl CryptoRngCore,
) -> Option<(Zeroizing<Vec<u8>>, Vec<u8>)> {
    let public =
        rsa::RsaPublicKey::new(rsa::BigUint::from_bytes_be(&key.modulus), key.exponent.into()).ok()?;
    let mut seed = Zeroizing::new(vec![0; alg.digest_len()]);
    rng.fill_bytes(&mut seed);
    let label = "IDENTITY\0";
    let padding = match alg {
        HashAlg::Sha256 => rsa::Oaep::new_with_label::<sha2::Sha256, _>(label),
        HashAlg::Sha384 => rsa::Oaep::new_with_label::<sha2::Sha384, _>(label),
    };
    let encrypted = padding.encrypt(rng, &public, &seed).ok()?;
    Some((seed, encrypted))
}

/// A seed from one-pass ECDH and KDFe with the label "IDENTITY" (Part 1, annex C.6.1 and C.6.4). The
/// party info of the EK is its x-coordinate as the public area has it.
fn seed_by_ecdh(
    alg: HashAlg,
    key: &EccPublic,
    rng: &mut impl CryptoRngCore,
) -> Option<(Zeroizing<Vec<u8>>, Vec<u8>)> {
    let (z, ephemeral) = match key.curve {
        Curve::P256 => {
            let public = p256::PublicKey::from_sec1_bytes(&key.sec1()).ok()?;
            let secret = p256::ecdh::EphemeralSecret::random(rng);
            let shared = secret.diffie_hellman(&public);
            let z = Zeroizing::new(shared.raw_secret_bytes().to_vec());
            (z, secret.public_key().to_encoded_point(false).as_bytes().to_vec())
        }
        Curve::P384 => {
            let public = p384::PublicKey::from_sec1_bytes(&key.sec1()).ok()?;
            let secret = p384::ecdh::EphemeralSecret::random(rng);
            let shared = secret.diffie_hellman(&public);
            let z = Zeroizing::new(shared.raw_secret_bytes().to_vec());
            (z, secret.public_key().to_encoded_point(false).as_bytes().to_vec())
        }
    };
    let (x, y) = ephemeral.get(1..)?.split_at_checked(key.curve.coordinate_len())?;
    let seed = kdfe(alg, &z, "IDENTITY", x, &key.x, alg.digest_len() as u32 * 8);
    // TPMS_ECC_POINT
    let mut point = Vec::new();
    put_sized(&mut point, x);
    put_sized(&mut point, y);
    Some((seed, point))
}

/// AES-CFB with a zero initialisation vector (Part 1, clause 24.4); the key is fresh each time.
fn aes_cfb_zero_iv(key: &[u8], data: &mut [u8]) -> Option<()> {
    let iv = [0u8; 16];
    match key.len() {
        16 => cfb_mode::Encryptor::<aes::Aes128>::new_from_slices(key, &iv).ok()?.encrypt(data),
        32 => cfb_mode::Encryptor::<aes::Aes256>::new_from_slices(key, &iv).ok()?.encrypt(data),
        _ => return None,
    }
    Some(())
}
