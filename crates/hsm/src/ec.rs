//! The two curves: their names, hashes and encodings on a token and in X.509.

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{self, EcdsaVerificationAlgorithm, UnparsedPublicKey};
use hallmark_core::x509::Curve;

use crate::HsmError;

/// CKA_EC_PARAMS: the named curve's OID in DER (PKCS#11-M §2.3.3; RFC 5480 §2.1.1.1).
pub(crate) fn params(curve: Curve) -> &'static [u8] {
    match curve {
        // 1.2.840.10045.3.1.7
        Curve::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        // 1.3.132.0.34
        Curve::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
    }
}

/// The curve that CKA_EC_PARAMS names, if it is one of ours.
pub(crate) fn from_params(der: &[u8]) -> Option<Curve> {
    [Curve::P256, Curve::P384].into_iter().find(|c| params(*c) == der)
}

fn field_len(curve: Curve) -> usize {
    match curve {
        Curve::P256 => 32,
        Curve::P384 => 48,
    }
}

fn digest_algorithm(curve: Curve) -> &'static digest::Algorithm {
    match curve {
        Curve::P256 => &digest::SHA256,
        Curve::P384 => &digest::SHA384,
    }
}

fn verification(curve: Curve) -> &'static EcdsaVerificationAlgorithm {
    match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_ASN1,
        Curve::P384 => &signature::ECDSA_P384_SHA384_ASN1,
    }
}

/// The hash of `message` that a key on `curve` signs.
pub(crate) fn digest(curve: Curve, message: &[u8]) -> Digest {
    digest::digest(digest_algorithm(curve), message)
}

/// Refuses a digest that is not of the curve's own hash. Tokens do not: CKM_ECDSA takes any length and
/// cuts or pads it (PKCS#11-M §2.3.6), and SoftHSM signs 400 bytes without complaint.
pub(crate) fn check_digest(curve: Curve, digest: &[u8]) -> Result<(), HsmError> {
    let expected = digest_algorithm(curve).output_len();
    if digest.len() == expected {
        Ok(())
    } else {
        Err(HsmError::DigestLength { curve, expected, found: digest.len() })
    }
}

/// A public key as the token gave it, checked to lie on its curve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PublicKey {
    pub(crate) curve: Curve,
    pub(crate) spki: Vec<u8>,
    point: Vec<u8>,
}

impl PublicKey {
    /// Reads CKA_EC_POINT: an uncompressed point in a DER OCTET STRING (PKCS#11-M §2.3.3), or bare, as some
    /// modules write it. The lengths tell the two apart.
    pub(crate) fn from_ec_point(curve: Curve, bytes: &[u8]) -> Result<Self, HsmError> {
        let point_len = 1 + 2 * field_len(curve);
        let refused = || HsmError::PublicPoint { curve, len: bytes.len() };
        let point = match bytes {
            [0x04, len, point @ ..] if point.len() == point_len && usize::from(*len) == point_len => point,
            bare if bare.len() == point_len => bare,
            _ => return Err(refused()),
        };
        UnparsedPublicKey::new(verification(curve), point).parse().map_err(|_| refused())?;
        Ok(Self { curve, spki: spki(curve, point), point: point.to_vec() })
    }

    /// Whether `signature` (DER) is this key's over `digest`.
    pub(crate) fn verifies(&self, digest: &[u8], signature: &[u8]) -> bool {
        Digest::import_less_safe(digest, digest_algorithm(self.curve)).is_ok_and(|digest| {
            UnparsedPublicKey::new(verification(self.curve), &self.point)
                .verify_digest(&digest, signature)
                .is_ok()
        })
    }
}

/// SubjectPublicKeyInfo (RFC 5480 §2).
fn spki(curve: Curve, point: &[u8]) -> Vec<u8> {
    const EC_PUBLIC_KEY: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    yasna::construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_sequence(|w| {
                w.next().write_der(EC_PUBLIC_KEY);
                w.next().write_der(params(curve));
            });
            w.next().write_bitvec_bytes(point, point.len() * 8);
        });
    })
}

/// ECDSA-Sig-Value (RFC 3279 §2.2.3) of the r‖s that CKM_ECDSA returns (PKCS#11-M §2.3.1).
pub(crate) fn der_signature(curve: Curve, raw: &[u8]) -> Result<Vec<u8>, HsmError> {
    let half = field_len(curve);
    if raw.len() != 2 * half {
        return Err(HsmError::SignatureForm { curve, expected: 2 * half, found: raw.len() });
    }
    let (r, s) = raw.split_at(half);
    Ok(yasna::construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_bigint_bytes(r, true);
            w.next().write_bigint_bytes(s, true);
        });
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_integers_are_minimal_and_positive() {
        let mut raw = [0_u8; 64];
        raw[31] = 0x80;
        raw[32] = 0xff;
        let der = der_signature(Curve::P256, &raw).unwrap();
        assert_eq!(der[..8], [0x30, 0x27, 0x02, 0x02, 0x00, 0x80, 0x02, 0x21]);
        assert_eq!(der[8..10], [0x00, 0xff]);
        assert_eq!(der.len(), 0x29);
    }

    #[test]
    fn signature_of_another_length_is_refused() {
        for len in [0, 63, 65, 96] {
            assert!(matches!(
                der_signature(Curve::P256, &vec![1; len]),
                Err(HsmError::SignatureForm { expected: 64, found, .. }) if found == len
            ));
        }
    }

    #[test]
    fn digest_of_another_length_is_refused() {
        for len in [0, 20, 31, 33, 48, 400] {
            assert!(check_digest(Curve::P256, &vec![0; len]).is_err(), "{len}");
        }
        assert!(check_digest(Curve::P256, &[0; 32]).is_ok());
        assert!(check_digest(Curve::P384, &[0; 32]).is_err());
        assert!(check_digest(Curve::P384, &[0; 48]).is_ok());
    }

    #[test]
    fn point_is_read_in_both_forms_and_must_lie_on_the_curve() {
        // The base point G of P-256 (SEC 2 §2.4.2).
        let g = hex::decode(concat!(
            "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
            "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
        ))
        .unwrap();
        let bare = PublicKey::from_ec_point(Curve::P256, &g).unwrap();
        let wrapped = [&[0x04, 0x41], &g[..]].concat();
        assert_eq!(PublicKey::from_ec_point(Curve::P256, &wrapped).unwrap(), bare);
        assert_eq!(bare.spki[..4], [0x30, 0x59, 0x30, 0x13]);
        assert!(bare.spki.ends_with(&g));

        let mut off = g.clone();
        off[64] ^= 1;
        for bad in [&off[..], &g[..64], &wrapped[..66], &[]] {
            assert!(PublicKey::from_ec_point(Curve::P256, bad).is_err());
        }
        assert!(PublicKey::from_ec_point(Curve::P384, &g).is_err());
    }
}
