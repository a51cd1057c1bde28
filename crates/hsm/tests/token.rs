//! Finding a token, logging in to it, and what its pool of sessions bears.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use std::sync::Barrier;

use common::{config, open, open_as, openssl_verifies};
use hallmark_hsm::{Curve, HsmError, PinState, Token};
use hallmark_kit::softhsm::in_child;

#[test]
fn wrong_label_names_the_labels_found() {
    in_child("wrong_label_names_the_labels_found", |hsm| {
        hsm.add_token("second").unwrap();
        match open_as(hsm, "nowhere", hsm.pin()) {
            Err(HsmError::TokenNotFound { label, mut found, .. }) => {
                found.sort();
                assert_eq!((label.as_str(), found), ("nowhere", vec![hsm.label().into(), "second".into()]));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn duplicate_label_is_refused() {
    in_child("duplicate_label_is_refused", |hsm| {
        hsm.add_token("twin").unwrap();
        hsm.add_token("twin").unwrap();
        match open_as(hsm, "twin", hsm.pin()) {
            Err(HsmError::TokenAmbiguous { label, serials }) => {
                assert_eq!((label.as_str(), serials.len()), ("twin", 2));
                assert_ne!(serials[0], serials[1]);
            }
            other => panic!("{other:?}"),
        }
        assert!(open_as(hsm, hsm.label(), hsm.pin()).is_ok());
    });
}

#[test]
fn module_that_is_none() {
    in_child("module_that_is_none", |hsm| {
        let mut absent = config(hsm, hsm.label(), hsm.pin(), 1);
        absent.module = "/nonexistent/module.so".into();
        assert!(matches!(Token::open(absent), Err(HsmError::Load { .. })));
        let mut text = config(hsm, hsm.label(), hsm.pin(), 1);
        text.module = hsm.conf_path();
        assert!(matches!(Token::open(text), Err(HsmError::Load { .. })));
    });
}

#[test]
fn wrong_pin_is_an_error_of_its_own_and_shows_nowhere() {
    in_child("wrong_pin_is_an_error_of_its_own_and_shows_nowhere", |hsm| {
        let wrong = "0000-wrong";
        let error = open_as(hsm, hsm.label(), wrong).unwrap_err();
        assert!(matches!(&error, HsmError::PinIncorrect { label } if label == hsm.label()), "{error:?}");
        assert!(!error.is_transient());
        assert!(!format!("{error} {error:?}").contains(wrong));

        let right = config(hsm, hsm.label(), hsm.pin(), 1);
        assert!(!format!("{right:?}").contains(hsm.pin()));
        let token = Token::open(right).unwrap();
        assert!(!format!("{token:?}").contains(hsm.pin()));
        // The right one was tried after it, so the token counts from the start again.
        assert_eq!(token.info().unwrap().pin, PinState::Fresh);
    });
}

#[test]
fn second_opening_shares_the_login() {
    in_child("second_opening_shares_the_login", |hsm| {
        let first = open(hsm, 2);
        let second = open(hsm, 2);
        first.generate_ca_key("shared", &[1], Curve::P256).unwrap();
        second.ca_key("shared").unwrap().sign(b"m").unwrap();
        drop(first);
        second.ca_key("shared").unwrap().sign(b"m").unwrap();
    });
}

#[test]
fn info_and_list_say_what_is_there() {
    in_child("info_and_list_say_what_is_there", |hsm| {
        let token = open(hsm, 2);
        let info = token.info().unwrap();
        assert_eq!((info.label.as_str(), info.model.as_str()), (hsm.label(), "SoftHSM v2"));
        assert_eq!(info.serial.len(), 16);
        assert_eq!(token.list_keys().unwrap(), []);
        token.generate_ca_key("a", &[0xaa], Curve::P256).unwrap();
        token.generate_ca_key("b", &[0xbb], Curve::P384).unwrap();
        let _not_listed = token.generate_agent_key().unwrap();
        let mut keys = token.list_keys().unwrap();
        keys.sort_by(|x, y| x.label.cmp(&y.label));
        let seen: Vec<_> = keys.iter().map(|k| (k.label.as_str(), k.id.as_str(), k.curve)).collect();
        assert_eq!(seen, [("a", "aa", Some(Curve::P256)), ("b", "bb", Some(Curve::P384))]);
        assert!(keys.iter().all(|k| k.attributes.is_some_and(|a| a.never_extractable && a.local)));
    });
}

#[test]
fn pool_serves_32_threads_with_4_sessions() {
    in_child("pool_serves_32_threads_with_4_sessions", |hsm| {
        const THREADS: usize = 32;
        let token = open(hsm, 4);
        let key = token.generate_ca_key("busy", &[7], Curve::P256).unwrap();
        let before = token.counters();
        let barrier = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (key, token, barrier) = (key.clone(), token.clone(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for round in 0..10 {
                        let message = format!("{thread} {round}");
                        let signature = key.sign(message.as_bytes()).unwrap();
                        if round == 0 {
                            assert!(openssl_verifies(
                                key.spki_der(),
                                "sha256",
                                message.as_bytes(),
                                &signature
                            ));
                            let agent = token.generate_agent_key().unwrap();
                            agent.sign_digest(common::sha256(message.as_bytes())).unwrap();
                        }
                    }
                });
            }
        });
        let after = token.counters();
        assert!(after.sessions <= 4, "{after:?}");
        assert_eq!((after.connections, after.lookups), (before.connections, before.lookups));
        assert_eq!(token.agent_keys().unwrap(), 0);
    });
}
