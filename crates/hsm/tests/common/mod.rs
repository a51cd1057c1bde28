//! What the tests on real SoftHSM tokens share.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use hallmark_hsm::{HsmError, Token, TokenConfig};
use hallmark_kit::softhsm::{SoftHsm, run};

pub(crate) fn config(hsm: &SoftHsm, label: &str, pin: &str, max_sessions: usize) -> TokenConfig {
    TokenConfig {
        module: hsm.module_path().to_owned(),
        label: label.to_owned(),
        pin: pin.to_owned().into(),
        max_sessions,
    }
}

pub(crate) fn open(hsm: &SoftHsm, max_sessions: usize) -> Token {
    Token::open(config(hsm, hsm.label(), hsm.pin(), max_sessions)).unwrap()
}

pub(crate) fn open_as(hsm: &SoftHsm, label: &str, pin: &str) -> Result<Token, HsmError> {
    Token::open(config(hsm, label, pin, 2))
}

/// OpenSSL's word on a signature.
pub(crate) fn openssl_verifies(spki: &[u8], hash: &str, message: &[u8], signature: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let verified = run(Command::new("openssl")
        .args(["dgst", &format!("-{hash}"), "-keyform", "DER", "-verify"])
        .arg(put("key", spki))
        .arg("-signature")
        .arg(put("signature", signature))
        .arg(put("message", message)));
    matches!(verified, Ok(said) if said.contains("Verified OK"))
}

pub(crate) fn sha256(message: &[u8]) -> [u8; 32] {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, message).as_ref().try_into().unwrap()
}
