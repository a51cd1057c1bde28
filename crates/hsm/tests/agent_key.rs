//! Agents' keys: on the token, for one run, and gone afterwards.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use common::{open, openssl_verifies, sha256};
use hallmark_hsm::Curve;
use hallmark_kit::softhsm::{in_child, run};

#[test]
fn signs_asserts_and_is_in_no_store() {
    in_child("signs_asserts_and_is_in_no_store", |hsm| {
        let token = open(hsm, 2);
        let key = token.generate_agent_key().unwrap();
        let signature = key.sign_digest(sha256(b"hello")).unwrap();
        assert!(openssl_verifies(key.spki_der(), "sha256", b"hello", &signature));

        let said = key.assertion();
        assert!(said.sensitive && said.always_sensitive && said.never_extractable && said.local);
        let info = token.info().unwrap();
        assert_eq!(
            (&said.token_label, &said.token_model, &said.token_serial),
            (&info.label, &info.model, &info.serial)
        );
        let others = run(hsm.pkcs11_tool(hsm.label()).arg("--list-objects")).unwrap();
        assert!(!others.contains("Key Object"), "{others}");
    });
}

#[test]
fn each_is_its_own_and_ends_when_dropped() {
    in_child("each_is_its_own_and_ends_when_dropped", |hsm| {
        let token = open(hsm, 1);
        let keys: Vec<_> = (0..100).map(|_| token.generate_agent_key().unwrap()).collect();
        let mut spkis: Vec<_> = keys.iter().map(|k| k.spki_der().to_vec()).collect();
        spkis.sort();
        spkis.dedup();
        assert_eq!(spkis.len(), 100);
        assert_eq!(token.agent_keys().unwrap(), 100);
        drop(keys);
        assert_eq!(token.agent_keys().unwrap(), 0);
    });
}

#[test]
fn dropped_before_any_session_of_the_pool_is_open() {
    in_child("dropped_before_any_session_of_the_pool_is_open", |hsm| {
        let token = open(hsm, 1);
        drop(token.generate_agent_key().unwrap());
        assert_eq!(token.counters().sessions, 0);
        assert_eq!(token.agent_keys().unwrap(), 0);
    });
}

#[test]
fn outlives_the_sessions_that_use_it() {
    in_child("outlives_the_sessions_that_use_it", |hsm| {
        let token = open(hsm, 1);
        let key = token.generate_agent_key().unwrap();
        // A failing call costs the pool's only session; the key was made on another.
        assert!(token.generate_ca_key(&"x".repeat(10), &[1], Curve::P256).is_ok());
        key.sign_digest([1; 32]).unwrap();
        drop(token);
        key.sign_digest([2; 32]).unwrap();
    });
}
