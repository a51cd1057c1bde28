//! The TPM's key derivation functions.

use hmac::{Hmac, Mac};
use sha2::{Sha256, Sha384};
use zeroize::Zeroizing;

use super::name::HashAlg;

/// HMAC of the parts, one after the other.
pub(crate) fn hmac(alg: HashAlg, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    fn run<M: Mac + hmac::digest::KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        // HMAC takes a key of any length: the error cannot happen.
        let Ok(mut mac) = <M as Mac>::new_from_slice(key) else { return Vec::new() };
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().to_vec()
    }
    match alg {
        HashAlg::Sha256 => run::<Hmac<Sha256>>(key, parts),
        HashAlg::Sha384 => run::<Hmac<Sha384>>(key, parts),
    }
}

/// KDFa (Part 1, clause 11.4.10.2): SP 800-108 in counter mode with HMAC; the label carries its
/// terminating zero, the output length in bits closes each block. `bits` is a multiple of 8.
pub(crate) fn kdfa(
    alg: HashAlg,
    key: &[u8],
    label: &str,
    context_u: &[u8],
    context_v: &[u8],
    bits: u32,
) -> Zeroizing<Vec<u8>> {
    counted(bits, |counter| {
        hmac(alg, key, &[counter, label.as_bytes(), &[0], context_u, context_v, &bits.to_be_bytes()])
    })
}

/// KDFe (Part 1, clause 11.4.10.3): SP 800-56A's concatenation KDF over the x-coordinate `z`; the label
/// carries its terminating zero. `bits` is a multiple of 8.
pub(crate) fn kdfe(
    alg: HashAlg,
    z: &[u8],
    label: &str,
    party_u: &[u8],
    party_v: &[u8],
    bits: u32,
) -> Zeroizing<Vec<u8>> {
    counted(bits, |counter| alg.digest(&[counter, z, label.as_bytes(), &[0], party_u, party_v]))
}

fn counted(bits: u32, block: impl Fn(&[u8]) -> Vec<u8>) -> Zeroizing<Vec<u8>> {
    let len = (bits / 8) as usize;
    let mut out = Zeroizing::new(Vec::new());
    let mut counter = 0u32;
    while out.len() < len {
        counter += 1;
        out.extend_from_slice(&Zeroizing::new(block(&counter.to_be_bytes())));
    }
    out.truncate(len);
    out
}
