//! Keys: the public ones certificates carry, and the CA keys that sign them.

use std::fmt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair as _, ParsedPublicKey,
};

/// The curves of Hallmark's certificates, each with the hash it signs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// NIST P-256 with SHA-256.
    P256,
    /// NIST P-384 with SHA-384.
    P384,
}

impl Curve {
    /// `P-256` or `P-384`.
    pub fn as_str(self) -> &'static str {
        match self {
            Curve::P256 => "P-256",
            Curve::P384 => "P-384",
        }
    }

    /// DER of a SubjectPublicKeyInfo up to the uncompressed point (RFC 5480 §2).
    fn spki_prefix(self) -> &'static [u8] {
        match self {
            Curve::P256 => &[
                0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
                0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
            ],
            Curve::P384 => &[
                0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05,
                0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
            ],
        }
    }

    fn point_len(self) -> usize {
        match self {
            Curve::P256 => 65,
            Curve::P384 => 97,
        }
    }

    pub(super) fn rcgen(self) -> &'static rcgen::SignatureAlgorithm {
        match self {
            Curve::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Curve::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        }
    }

    fn verification(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1,
            Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1,
        }
    }

    fn signing(self) -> &'static EcdsaSigningAlgorithm {
        match self {
            Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A P-256 or P-384 public key: a point on its curve, checked.
#[derive(Debug, Clone)]
pub struct PublicKey {
    curve: Curve,
    spki: Vec<u8>,
    parsed: ParsedPublicKey,
}

/// Why a SubjectPublicKeyInfo was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    /// Neither of the two encodings that this profile knows.
    #[error("the public key is not an uncompressed P-256 or P-384 point in DER (RFC 5480)")]
    Form,
    /// The point does not lie on the curve.
    #[error("the public key is not a point on {curve}")]
    Point {
        /// The curve named in the key.
        curve: Curve,
    },
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo: canonical DER, named curve, uncompressed point, nothing else.
    ///
    /// # Errors
    /// Any other key or encoding, or a point that is not on the curve.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, PublicKeyError> {
        for curve in [Curve::P256, Curve::P384] {
            if let Some(point) = der.strip_prefix(curve.spki_prefix()) {
                if point.len() != curve.point_len() || point[0] != 4 {
                    return Err(PublicKeyError::Form);
                }
                let parsed = ParsedPublicKey::new(curve.verification(), point)
                    .map_err(|_| PublicKeyError::Point { curve })?;
                return Ok(Self { curve, spki: der.to_vec(), parsed });
            }
        }
        Err(PublicKeyError::Form)
    }

    /// Its curve.
    pub fn curve(&self) -> Curve {
        self.curve
    }

    /// SubjectPublicKeyInfo, DER: equal keys have equal bytes.
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// Whether `signature` (DER ECDSA-Sig-Value) is this key's over `message`, with the curve's hash.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }

    /// The key identifier: leftmost 160 bits of the SHA-256 of the point (RFC 7093 §2, method 1).
    /// Used for every subject and authority key identifier that Hallmark writes.
    pub fn key_id(&self) -> [u8; 20] {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.point());
        let mut id = [0; 20];
        id.copy_from_slice(&digest.as_ref()[..20]);
        id
    }

    pub(super) fn point(&self) -> &[u8] {
        &self.spki[self.curve.spki_prefix().len()..]
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.spki == other.spki
    }
}
impl Eq for PublicKey {}

/// Why a CA key did not sign, or could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a private key in PKCS#8 form on P-256 or P-384.
    #[error("not a P-256 or P-384 private key in PKCS#8 form")]
    Form,
    /// The token, or what holds the key, is away: trying again later can help.
    #[error("{backend} is not available: {reason}")]
    Unavailable {
        /// What holds the key, as in `pkcs11`.
        backend: &'static str,
        /// What it said.
        reason: String,
    },
    /// The key refused to sign or is not what it should be: trying again does not help.
    #[error("{backend} did not sign: {reason}")]
    Failed {
        /// What holds the key, as in `pkcs11`.
        backend: &'static str,
        /// What it said.
        reason: String,
    },
}

/// A key that signs certificates, wherever it lives.
pub trait CaKey: Send + Sync {
    /// SubjectPublicKeyInfo, DER, uncompressed point.
    fn spki_der(&self) -> &[u8];
    /// Its curve, which fixes the hash: SHA-256 for P-256, SHA-384 for P-384.
    fn curve(&self) -> Curve;
    /// An ECDSA signature over `message`, which the implementor hashes: DER ECDSA-Sig-Value (RFC 3279
    /// §2.2.3).
    ///
    /// # Errors
    /// What holds the key is away or refuses.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;
}

/// A CA key in this process's memory: for `--dev` trust domains and tests only.
pub struct SoftwareCaKey {
    curve: Curve,
    spki: Vec<u8>,
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl SoftwareCaKey {
    /// Reads a PKCS#8 private key (RFC 5958), P-256 or P-384. The caller generates it; core has no
    /// randomness of its own.
    ///
    /// # Errors
    /// Anything else.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        for curve in [Curve::P256, Curve::P384] {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.signing(), der) {
                let spki = [curve.spki_prefix(), pair.public_key().as_ref()].concat();
                return Ok(Self { curve, spki, pair, random: SystemRandom::new() });
            }
        }
        Err(KeyError::Form)
    }
}

impl CaKey for SoftwareCaKey {
    fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    fn curve(&self) -> Curve {
        self.curve
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let failed = |_| KeyError::Failed { backend: "software", reason: "aws-lc could not sign".to_owned() };
        Ok(self.pair.sign(&self.random, message).map_err(failed)?.as_ref().to_vec())
    }
}

impl fmt::Debug for SoftwareCaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftwareCaKey").field("curve", &self.curve).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::testing::{pkcs8, software_key};

    #[test]
    fn keys_sign_and_verify() {
        for curve in [Curve::P256, Curve::P384] {
            let key = software_key(curve);
            assert_eq!(key.curve(), curve);
            let public = PublicKey::from_spki_der(key.spki_der()).unwrap();
            let signature = key.sign(b"message").unwrap();
            assert!(public.verifies(b"message", &signature));
            assert!(!public.verifies(b"massage", &signature));
        }
        assert!(matches!(SoftwareCaKey::from_pkcs8(b"no key"), Err(KeyError::Form)));
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert!(matches!(SoftwareCaKey::from_pkcs8(ed25519.serialized_der()), Err(KeyError::Form)));
    }

    #[test]
    fn one_encoding_of_a_public_key() {
        let key = SoftwareCaKey::from_pkcs8(&pkcs8(Curve::P256)).unwrap();
        let good = key.spki_der().to_vec();
        let refused = |der: &[u8]| PublicKey::from_spki_der(der).unwrap_err();
        assert_eq!(refused(&good[..good.len() - 1]), PublicKeyError::Form);
        assert_eq!(refused(&[&good[..], &[0]].concat()), PublicKeyError::Form);
        assert_eq!(refused(&[]), PublicKeyError::Form);
        let mut compressed = good.clone();
        compressed[26] = 2;
        assert_eq!(refused(&compressed), PublicKeyError::Form);
        let mut off_curve = good;
        off_curve[90] ^= 1;
        assert_eq!(refused(&off_curve), PublicKeyError::Point { curve: Curve::P256 });
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(refused(&rcgen::PublicKeyData::subject_public_key_info(&rsa)), PublicKeyError::Form);
    }
}
