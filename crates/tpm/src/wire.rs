//! Bytes in and out: TPM structures as they are on the wire, signatures and public keys as X.509 has them.

use crate::error::{TpmError, command};
use tss_esapi::structures::{EccSignature, Public, Signature};
use tss_esapi::traits::Marshall;

/// TPMT_PUBLIC, TPMS_ATTEST or TPMT_SIGNATURE, without a size in front.
pub(crate) fn bytes(operation: &'static str, value: &impl Marshall) -> Result<Vec<u8>, TpmError> {
    value.marshall().map_err(command(operation))
}

/// The content of a TPM2B: its size field must say exactly what follows.
pub(crate) fn sized<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], TpmError> {
    let Some((size, content)) = bytes.split_first_chunk::<2>() else {
        return Err(TpmError::Malformed { what, stated: 0, actual: bytes.len() });
    };
    let stated = usize::from(u16::from_be_bytes(*size));
    if stated != content.len() {
        return Err(TpmError::Malformed { what, stated, actual: content.len() });
    }
    Ok(content)
}

/// ECDSA-Sig-Value (RFC 3279 §2.2.3) in DER.
pub(crate) fn ecdsa_der(operation: &'static str, signature: &Signature) -> Result<Vec<u8>, TpmError> {
    let Signature::EcDsa(signature) = signature else {
        return Err(TpmError::Unexpected { operation, what: "a signature that is not ECDSA" });
    };
    Ok(signature_der(signature))
}

/// SubjectPublicKeyInfo (RFC 5480 §2) of a P-256 key in DER.
pub(crate) fn p256_spki(operation: &'static str, public: &Public) -> Result<Vec<u8>, TpmError> {
    /// SEQUENCE { SEQUENCE { id-ecPublicKey, secp256r1 }, BIT STRING { uncompressed point …
    const PREFIX: [u8; 27] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
    ];
    let wrong = TpmError::Unexpected { operation, what: "a public key that is not on P-256" };
    let Public::Ecc { unique, .. } = public else { return Err(wrong) };
    let (Some(x), Some(y)) = (padded::<32>(unique.x().value()), padded::<32>(unique.y().value())) else {
        return Err(wrong);
    };
    Ok([&PREFIX[..], &x, &y].concat())
}

fn signature_der(signature: &EccSignature) -> Vec<u8> {
    let integers =
        [integer(signature.signature_r().value()), integer(signature.signature_s().value())].concat();
    tlv(0x30, &integers)
}

/// A non-negative INTEGER: no leading zeros but the one that keeps the sign bit clear.
fn integer(magnitude: &[u8]) -> Vec<u8> {
    let skip = magnitude.iter().take_while(|&&byte| byte == 0).count();
    let digits = &magnitude[skip..];
    let mut content = Vec::with_capacity(digits.len() + 1);
    if digits.first().is_none_or(|&first| first >= 0x80) {
        content.push(0);
    }
    content.extend_from_slice(digits);
    tlv(0x02, &content)
}

/// Up to 127 bytes of content, which two P-256 integers always are.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    debug_assert!(content.len() < 0x80);
    let mut out = vec![tag, content.len() as u8];
    out.extend_from_slice(content);
    out
}

fn padded<const N: usize>(number: &[u8]) -> Option<[u8; N]> {
    let mut out = [0; N];
    out.get_mut(N.checked_sub(number.len())?..)?.copy_from_slice(number);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_minimal_and_positive() {
        assert_eq!(vec![2, 1, 0], integer(&[]));
        assert_eq!(vec![2, 1, 0], integer(&[0, 0]));
        assert_eq!(vec![2, 1, 0x7f], integer(&[0, 0x7f]));
        assert_eq!(vec![2, 2, 0, 0x80], integer(&[0x80]));
    }

    #[test]
    fn a_size_field_that_lies_is_refused() {
        assert_eq!(&[7, 8], sized("x", &[0, 2, 7, 8]).unwrap());
        assert!(matches!(sized("x", &[0, 1, 7, 8]), Err(TpmError::Malformed { stated: 1, actual: 2, .. })));
        assert!(matches!(sized("x", &[0, 3, 7, 8]), Err(TpmError::Malformed { stated: 3, actual: 2, .. })));
        assert!(sized("x", &[0]).is_err());
    }

    #[test]
    fn coordinates_are_padded_on_the_left() {
        assert_eq!(Some([0, 0, 1]), padded::<3>(&[1]));
        assert_eq!(None, padded::<3>(&[1, 2, 3, 4]));
    }
}
