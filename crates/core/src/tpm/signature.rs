//! `TPMT_SIGNATURE` (Part 2, clause 11.3.4) and its verification.

use aws_lc_rs::signature as aws;
use rsa::traits::SignatureScheme as _;

use super::name::{HashAlg, Name};
use super::public::{Curve, EccPublic, Public, PublicKey, RsaPublic, Scheme};
use super::wire::{ParseError, Reader};

/// Longest `TPMT_SIGNATURE` read: RSA-4096.
const MAX_SIGNATURE: usize = 2 + 2 + 2 + 512;

/// `TPM_ALG_ID` of the signing schemes.
const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAPSS: u16 = 0x0016;
const ALG_ECDSA: u16 = 0x0018;

/// The signing schemes accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignatureScheme {
    /// RSASSA-PKCS1-v1_5
    RsaSsa,
    /// RSASSA-PSS
    RsaPss,
    /// ECDSA
    Ecdsa,
}

/// The signature's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureValue {
    /// `TPMS_SIGNATURE_RSA`
    Rsa(Vec<u8>),
    /// `TPMS_SIGNATURE_ECC`
    Ecc {
        /// r, big-endian
        r: Vec<u8>,
        /// s, big-endian
        s: Vec<u8>,
    },
}

/// A parsed `TPMT_SIGNATURE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The scheme.
    pub scheme: SignatureScheme,
    /// Its hash.
    pub hash: HashAlg,
    /// The signature.
    pub value: SignatureValue,
}

/// Why a signature does not verify.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The key is bound to another scheme or has none.
    #[error("key {key} signs with {expected:?}, the signature says {scheme:?} with {hash}")]
    Scheme {
        /// The key.
        key: Name,
        /// The scheme in its public area.
        expected: Scheme,
        /// The scheme of the signature.
        scheme: SignatureScheme,
        /// The hash of the signature.
        hash: HashAlg,
    },
    /// The key did not sign these bytes.
    #[error("not a signature by key {key} over these bytes")]
    Mismatch {
        /// The key.
        key: Name,
    },
}

impl Signature {
    /// Reads a `TPMT_SIGNATURE`, nothing left over.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new("TPMT_SIGNATURE", bytes, MAX_SIGNATURE)?;
        let scheme = match r.u16("sigAlg")? {
            ALG_RSASSA => SignatureScheme::RsaSsa,
            ALG_RSAPSS => SignatureScheme::RsaPss,
            ALG_ECDSA => SignatureScheme::Ecdsa,
            other => return Err(ParseError::Unsupported { field: "sigAlg", found: other.into() }),
        };
        let hash = HashAlg::from_id("hash", r.u16("hash")?)?;
        let value = match scheme {
            SignatureScheme::RsaSsa | SignatureScheme::RsaPss => {
                SignatureValue::Rsa(r.sized("sig", 512)?.to_vec())
            }
            SignatureScheme::Ecdsa => SignatureValue::Ecc {
                r: r.sized("signatureR", 48)?.to_vec(),
                s: r.sized("signatureS", 48)?.to_vec(),
            },
        };
        r.end("TPMT_SIGNATURE")?;
        Ok(Self { scheme, hash, value })
    }

    /// Whether `key`, under the very scheme of its public area, signed `message`.
    pub fn verify(&self, key: &Public, message: &[u8]) -> Result<(), SignatureError> {
        let bound = match (key.scheme(), self.scheme) {
            (Scheme::RsaSsa(h), SignatureScheme::RsaSsa)
            | (Scheme::RsaPss(h), SignatureScheme::RsaPss)
            | (Scheme::Ecdsa(h), SignatureScheme::Ecdsa) => h == self.hash,
            _ => false,
        };
        if !bound {
            return Err(SignatureError::Scheme {
                key: key.name().clone(),
                expected: key.scheme(),
                scheme: self.scheme,
                hash: self.hash,
            });
        }
        let valid = match (key.key(), &self.value) {
            (PublicKey::Rsa(rsa), SignatureValue::Rsa(sig)) => self.verify_rsa(rsa, message, sig),
            (PublicKey::Ecc(ecc), SignatureValue::Ecc { r, s }) => self.verify_ecdsa(ecc, message, r, s),
            _ => false,
        };
        valid.then_some(()).ok_or_else(|| SignatureError::Mismatch { key: key.name().clone() })
    }

    fn verify_rsa(&self, key: &RsaPublic, message: &[u8], sig: &[u8]) -> bool {
        let exponent = key.exponent.to_be_bytes();
        let e: &[u8] = match exponent.iter().position(|b| *b != 0) {
            Some(first) => &exponent[first..],
            None => return false,
        };
        let public = aws::RsaPublicKeyComponents { n: key.modulus.as_slice(), e };
        let parameters = match (self.scheme, self.hash) {
            (SignatureScheme::RsaSsa, HashAlg::Sha256) => &aws::RSA_PKCS1_2048_8192_SHA256,
            (SignatureScheme::RsaSsa, HashAlg::Sha384) => &aws::RSA_PKCS1_2048_8192_SHA384,
            (SignatureScheme::RsaPss, HashAlg::Sha256) => &aws::RSA_PSS_2048_8192_SHA256,
            (SignatureScheme::RsaPss, HashAlg::Sha384) => &aws::RSA_PSS_2048_8192_SHA384,
            (SignatureScheme::Ecdsa, _) => return false,
        };
        public.verify(parameters, message, sig).is_ok()
            || (self.scheme == SignatureScheme::RsaPss && self.verify_pss_longest_salt(key, message, sig))
    }

    /// TPMs sign RSAPSS either with a salt as long as the digest, which aws-lc verifies, or with the
    /// longest that fits the key (Part 1, annex B.7).
    fn verify_pss_longest_salt(&self, key: &RsaPublic, message: &[u8], sig: &[u8]) -> bool {
        let modulus = rsa::BigUint::from_bytes_be(&key.modulus);
        let Ok(public) = rsa::RsaPublicKey::new(modulus, key.exponent.into()) else { return false };
        let Some(salt) = key.modulus.len().checked_sub(self.hash.digest_len() + 2) else { return false };
        let scheme = match self.hash {
            HashAlg::Sha256 => rsa::Pss::new_with_salt::<sha2::Sha256>(salt),
            HashAlg::Sha384 => rsa::Pss::new_with_salt::<sha2::Sha384>(salt),
        };
        scheme.verify(&public, &self.hash.digest(&[message]), sig).is_ok()
    }

    fn verify_ecdsa(&self, key: &EccPublic, message: &[u8], r: &[u8], s: &[u8]) -> bool {
        let len = key.curve.coordinate_len();
        if r.len() > len || s.len() > len {
            return false;
        }
        let algorithm = match (key.curve, self.hash) {
            (Curve::P256, HashAlg::Sha256) => &aws::ECDSA_P256_SHA256_ASN1,
            (Curve::P256, HashAlg::Sha384) => &aws::ECDSA_P256_SHA384_ASN1,
            (Curve::P384, HashAlg::Sha256) => &aws::ECDSA_P384_SHA256_ASN1,
            (Curve::P384, HashAlg::Sha384) => &aws::ECDSA_P384_SHA384_ASN1,
        };
        let signature = ecdsa_sig_value(r, s);
        aws::UnparsedPublicKey::new(algorithm, key.sec1()).verify(message, &signature).is_ok()
    }
}

/// ECDSA-Sig-Value (RFC 3279, section 2.2.3), DER, of numbers no longer than 48 bytes.
fn ecdsa_sig_value(r: &[u8], s: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for number in [r, s] {
        let first = number.iter().position(|b| *b != 0).unwrap_or(number.len());
        let digits = &number[first..];
        let pad = digits.first().is_none_or(|b| b & 0x80 != 0);
        body.extend([2, digits.len() as u8 + u8::from(pad)]);
        body.extend(std::iter::repeat_n(0, usize::from(pad)));
        body.extend_from_slice(digits);
    }
    let mut der = vec![0x30, body.len() as u8];
    der.extend(body);
    der
}
