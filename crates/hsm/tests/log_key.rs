//! The log's key: Ed25519 on the token, as others see it, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use std::process::Command;

use common::open;
use hallmark_core::log::{Checkpoint, LogKey, LogVerifier, leaf_hash, open_checkpoint, sign_checkpoint};
use hallmark_hsm::{Curve, HsmError};
use hallmark_kit::softhsm::{in_child, run};

#[test]
fn signs_checkpoints_that_the_core_and_openssl_verify() {
    in_child("signs_checkpoints_that_the_core_and_openssl_verify", |hsm| {
        let token = open(hsm, 2);
        let made = token.generate_log_key("log", b"log").unwrap();
        let key = token.log_key("log").unwrap();
        assert_eq!(made.public(), key.public());
        let verifier = LogVerifier::new("log.example.org/1".parse().unwrap(), LogKey::public(&key));
        let checkpoint = Checkpoint { size: 1, root: leaf_hash(b"entry") };
        let signed = sign_checkpoint(&verifier, &key, &checkpoint).unwrap();
        assert_eq!(open_checkpoint(&signed, &verifier), Ok(checkpoint));

        // SubjectPublicKeyInfo of RFC 8410.
        let spki = [&hex::decode("302a300506032b6570032100").unwrap()[..], &key.public()].concat();
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let signature = key.sign(b"to be signed").unwrap();
        let said = run(Command::new("openssl")
            .args(["pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER", "-inkey"])
            .arg(put("key", &spki))
            .arg("-sigfile")
            .arg(put("signature", &signature))
            .arg("-in")
            .arg(put("message", b"to be signed")))
        .unwrap();
        assert!(said.contains("Signature Verified Successfully"), "{said}");
    });
}

#[test]
fn another_key_or_one_that_can_leave_is_refused() {
    in_child("another_key_or_one_that_can_leave_is_refused", |hsm| {
        let token = open(hsm, 2);
        assert!(matches!(token.log_key("none"), Err(HsmError::KeyNotFound { .. })));
        token.generate_ca_key("ca", b"ca", Curve::P256).unwrap();
        assert!(matches!(token.log_key("ca"), Err(HsmError::KeyNotEd25519 { .. })));
        assert!(matches!(token.generate_log_key("ca", b"x"), Err(HsmError::KeyExists { .. })));
        run(hsm.pkcs11_tool(hsm.label()).args([
            "--keypairgen",
            "--key-type",
            "EC:edwards25519",
            "--label",
            "loose",
            "--id",
            "77",
            "--extractable",
        ]))
        .unwrap();
        assert!(matches!(token.log_key("loose"), Err(HsmError::KeyExportable { .. })));
    });
}

#[test]
fn a_key_made_anew_under_the_same_label_is_another() {
    in_child("a_key_made_anew_under_the_same_label_is_another", |hsm| {
        let token = open(hsm, 2);
        let key = token.generate_log_key("log", b"log").unwrap();
        for kind in ["privkey", "pubkey"] {
            run(hsm.pkcs11_tool(hsm.label()).args(["--delete-object", "--type", kind, "--label", "log"]))
                .unwrap();
        }
        token.generate_log_key("log", b"log").unwrap();
        assert!(
            matches!(key.sign(b"text"), Err(HsmError::KeyMismatch { .. })),
            "a false history could be signed"
        );
    });
}
