//! A token that goes away, and comes back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{open, openssl_verifies, sha256};
use hallmark_hsm::{Curve, HsmError};
use hallmark_kit::softhsm::in_child;

#[test]
fn away_is_an_error_and_back_works_again() {
    in_child("away_is_an_error_and_back_works_again", |hsm| {
        let token = open(hsm, 2);
        let key = token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        key.sign(b"before").unwrap();

        for round in 0..3 {
            hsm.vanish().unwrap();
            let error = key.sign(b"away").unwrap_err();
            println!("round {round}: {error}");
            assert!(error.is_transient(), "{error:?}");
            assert!(token.health(&key).is_err());

            hsm.restore().unwrap();
            let signature = until(|| key.sign(b"back"));
            assert!(openssl_verifies(key.spki_der(), "sha256", b"back", &signature));
            until(|| token.health(&key));
        }
    });
}

#[test]
fn many_threads_get_over_it_together() {
    in_child("many_threads_get_over_it_together", |hsm| {
        let token = open(hsm, 4);
        let key = token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        let round = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    // While the token comes and goes a signature is right or an error, and never wrong.
                    while round.load(Ordering::Acquire) < 4 {
                        let agent = token.generate_agent_key();
                        match key.sign(b"m") {
                            Ok(signature) => assert!(verifies(key.spki_der(), b"m", &signature)),
                            Err(e) => assert!(e.is_transient(), "{e:?}"),
                        }
                        if let Ok(agent) = agent
                            && let Ok(signature) = agent.sign_digest(sha256(b"a"))
                        {
                            assert!(verifies(agent.spki_der(), b"a", &signature));
                        }
                    }
                    until(|| key.sign(b"m"));
                });
            }
            for _ in 0..4 {
                hsm.vanish().unwrap();
                while key.sign(b"m").is_ok() {}
                hsm.restore().unwrap();
                until(|| key.sign(b"m"));
                round.fetch_add(1, Ordering::AcqRel);
            }
        });
        until(|| token.health(&key));
        assert_eq!(until(|| token.agent_keys()), 0);
        // One connection at first, and a bounded number for each time it came back.
        let counters = token.counters();
        assert!((5..=5 + 4 * 4).contains(&counters.connections), "{counters:?}");
    });
}

fn verifies(spki: &[u8], message: &[u8], signature: &[u8]) -> bool {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &spki[26..]).verify(message, signature).is_ok()
}

#[test]
fn another_token_with_the_same_names_is_not_taken_for_it() {
    in_child("another_token_with_the_same_names_is_not_taken_for_it", |hsm| {
        let token = open(hsm, 2);
        let key = token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        let writer = open(hsm, 2);
        // The key is made anew under its label by someone else.
        let tool = |args: &[&str]| {
            hallmark_kit::softhsm::run(hsm.pkcs11_tool(hsm.label()).args(args)).unwrap();
        };
        tool(&["--delete-object", "--type", "privkey", "--id", "01"]);
        tool(&["--delete-object", "--type", "pubkey", "--id", "01"]);
        tool(&[
            "--keypairgen",
            "--key-type",
            "EC:prime256v1",
            "--label",
            "root",
            "--id",
            "01",
            "--sensitive",
            "--usage-sign",
        ]);
        let error = key.sign(b"m").unwrap_err();
        assert!(matches!(&error, HsmError::KeyMismatch { label } if label == "root"), "{error:?}");
        // Asked for by its label it is a key like any other.
        assert_ne!(writer.ca_key("root").unwrap().spki_der(), key.spki_der());
    });
}

#[test]
fn agents_keys_end_or_work_but_never_lie() {
    in_child("agents_keys_end_or_work_but_never_lie", |hsm| {
        let token = open(hsm, 2);
        token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        let key = token.generate_agent_key().unwrap();
        hsm.vanish().unwrap();
        let _ = token.ca_key("root").unwrap_err();
        hsm.restore().unwrap();
        until(|| token.ca_key("root"));
        match key.sign_digest(sha256(b"m")) {
            Ok(signature) => assert!(openssl_verifies(key.spki_der(), "sha256", b"m", &signature)),
            Err(HsmError::AgentKeyLost { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
        until(|| token.generate_agent_key()).sign_digest([1; 32]).unwrap();
    });
}

/// Tries until it works: the token is back, and the connection learns of it at its own pace.
fn until<T>(mut attempt: impl FnMut() -> Result<T, HsmError>) -> T {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(e) if started.elapsed() > Duration::from_secs(20) => panic!("still {e:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
