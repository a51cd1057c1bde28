//! `hallmark-issuer`: RATS verifier and certificate authority of a trust domain.
//!
//! **In scope:** attesting hosts, deciding, signing, recording, releasing; operators' orders; pushing what
//! changed to hosts. **Not in scope:** verification itself and every rule, which are in `hallmark-core`;
//! anything that speaks to a TPM.
//!
//! Start reading at [`flow`].
#![forbid(unsafe_code)]

pub mod admin;
pub mod authority;
pub mod backup;
pub mod ca;
pub mod config;
pub mod convert;
pub mod crl;
pub mod doctor;
pub mod door;
pub mod ek_roots;
pub mod flow;
pub mod init;
pub mod issuer;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod record;
pub mod registry;
pub mod run;
pub mod server;
pub mod standing;
pub mod status;
pub mod store;
pub mod tiles;
pub mod token;
pub mod witness;

/// Lower-case hexadecimal digits. `hex::encode` goes by way of characters; a record has 250 digits of these.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    let mut digits = vec![0; 2 * bytes.len()];
    // Twice as long as the bytes: it fits.
    let _ = hex::encode_to_slice(bytes, &mut digits);
    String::from_utf8(digits).unwrap_or_default()
}

/// SHA-256 of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}
