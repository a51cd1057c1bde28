//! CA keys: what the token holds, as others see it, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use common::{open, openssl_verifies};
use hallmark_hsm::{Curve, HsmError};
use hallmark_kit::softhsm::{SoftHsm, in_child, run};

#[test]
fn both_curves_sign_what_openssl_verifies() {
    in_child("both_curves_sign_what_openssl_verifies", |hsm| {
        let token = open(hsm, 2);
        for (label, curve, hash) in [("p256", Curve::P256, "sha256"), ("p384", Curve::P384, "sha384")] {
            let made = token.generate_ca_key(label, label.as_bytes(), curve).unwrap();
            let found = token.ca_key(label).unwrap();
            assert_eq!(made.spki_der(), found.spki_der());
            assert_eq!(found.curve(), curve);
            for message in [&b""[..], b"to be signed", &[0x5a; 5000]] {
                let signature = found.sign(message).unwrap();
                assert!(openssl_verifies(found.spki_der(), hash, message, &signature));
                assert!(!openssl_verifies(found.spki_der(), hash, b"another", &signature));
            }
            token.health(&found).unwrap();
        }
    });
}

#[test]
fn pkcs11_tool_sees_keys_that_only_sign_and_stay() {
    in_child("pkcs11_tool_sees_keys_that_only_sign_and_stay", |hsm| {
        let token = open(hsm, 2);
        let key = token.generate_ca_key("root-enterprise", &[0x12, 0x34], Curve::P256).unwrap();
        let seen = run(hsm.pkcs11_tool(hsm.label()).arg("--list-objects")).unwrap();
        let part = |kind: &str| {
            let at = seen.find(kind).unwrap_or_else(|| panic!("no {kind} in {seen}"));
            seen[at..].split("Key Object").next().unwrap().to_owned()
                + seen[at..].split("Key Object").nth(1).unwrap()
        };
        let private = part("Private Key Object");
        for line in
            ["root-enterprise", "1234", "sign", "sensitive, always sensitive, never extractable, local"]
        {
            assert!(private.contains(line), "no {line:?} in {private}");
        }
        for usage in ["decrypt", "unwrap", "derive", "signRecover"] {
            assert!(!private.contains(usage), "{usage:?} in {private}");
        }
        let public = part("Public Key Object");
        // The SPKI ends with the point that the tool prints.
        let point = hex::encode(&key.spki_der()[26..]);
        assert!(public.replace([' ', '\n'], "").contains(&point), "no {point} in {public}");

        // The same key used by another program gives a signature of the same key.
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::write(&input, common::sha256(b"by the tool")).unwrap();
        run(hsm
            .pkcs11_tool(hsm.label())
            .args(["--sign", "--mechanism", "ECDSA", "--signature-format", "openssl", "--id", "1234", "-i"])
            .arg(&input)
            .arg("-o")
            .arg(&output))
        .unwrap();
        let signature = std::fs::read(output).unwrap();
        assert!(openssl_verifies(key.spki_der(), "sha256", b"by the tool", &signature));
    });
}

#[test]
fn is_a_ca_key_to_the_core() {
    in_child("is_a_ca_key_to_the_core", |hsm| {
        use hallmark_core::x509::{CaKey, KeyError, PublicKey};
        let token = open(hsm, 2);
        for (label, curve) in [("p256", Curve::P256), ("p384", Curve::P384)] {
            let key: Box<dyn CaKey> =
                Box::new(token.generate_ca_key(label, label.as_bytes(), curve).unwrap());
            let public = PublicKey::from_spki_der(key.spki_der()).unwrap();
            assert_eq!((public.curve(), public.spki_der()), (key.curve(), key.spki_der()));
            assert!(public.verifies(b"tbs", &key.sign(b"tbs").unwrap()));
        }
        let key: Box<dyn CaKey> = Box::new(token.ca_key("p256").unwrap());
        hsm.vanish().unwrap();
        assert!(matches!(key.sign(b"tbs"), Err(KeyError::Unavailable { backend: "pkcs11", .. })));
    });
}

#[test]
fn a_taken_label_is_refused_and_the_key_kept() {
    in_child("a_taken_label_is_refused_and_the_key_kept", |hsm| {
        let token = open(hsm, 2);
        let first = token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        let error = token.generate_ca_key("root", &[2], Curve::P384).unwrap_err();
        assert!(matches!(&error, HsmError::KeyExists { label, .. } if label == "root"), "{error:?}");
        assert_eq!(token.ca_key("root").unwrap().spki_der(), first.spki_der());
        assert_eq!(token.list_keys().unwrap().len(), 1);
    });
}

#[test]
fn the_value_of_a_ca_key_cannot_be_read() {
    in_child("the_value_of_a_ca_key_cannot_be_read", |hsm| {
        let token = open(hsm, 2);
        token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        // The module itself, asked for CKA_VALUE by this process's own login.
        use cryptoki::context::Pkcs11;
        use cryptoki::object::{Attribute, AttributeType, ObjectClass};
        let module = Pkcs11::new(hsm.module_path()).unwrap();
        let slot = module
            .get_slots_with_token()
            .unwrap()
            .into_iter()
            .find(|s| module.get_token_info(*s).unwrap().label() == hsm.label());
        let session = module.open_ro_session(slot.unwrap()).unwrap();
        let key = session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]).unwrap()[0];
        assert!(session.get_attributes(key, &[AttributeType::Value]).unwrap().is_empty());
        // Nor can it be made readable afterwards.
        assert!(session.update_attributes(key, &[Attribute::Sensitive(false)]).is_err());
        let writer = module.open_rw_session(slot.unwrap()).unwrap();
        assert!(writer.update_attributes(key, &[Attribute::Extractable(true)]).is_err());
        assert!(writer.update_attributes(key, &[Attribute::Sensitive(false)]).is_err());
    });
}

#[test]
fn a_key_that_can_leave_or_derive_is_refused() {
    in_child("a_key_that_can_leave_or_derive_is_refused", |hsm| {
        keygen(hsm, "EC:prime256v1", "exportable", "01", &["--extractable", "--usage-sign"]);
        keygen(hsm, "EC:prime256v1", "derives", "02", &["--sensitive", "--usage-sign", "--usage-derive"]);
        keygen(hsm, "rsa:2048", "rsa", "03", &["--sensitive", "--usage-sign"]);
        keygen(hsm, "EC:secp521r1", "p521", "04", &["--sensitive", "--usage-sign"]);
        keygen(hsm, "EC:prime256v1", "twice", "05", &["--sensitive", "--usage-sign"]);
        keygen(hsm, "EC:prime256v1", "twice", "06", &["--sensitive", "--usage-sign"]);
        keygen(hsm, "EC:prime256v1", "bereft", "07", &["--sensitive", "--usage-sign"]);
        run(hsm.pkcs11_tool(hsm.label()).args(["--delete-object", "--type", "pubkey", "--id", "07"]))
            .unwrap();

        let token = open(hsm, 2);
        let refused = |label: &str| token.ca_key(label).unwrap_err();
        let error = refused("exportable");
        assert!(matches!(error, HsmError::KeyExportable { extractable: true, .. }), "{error:?}");
        let error = refused("derives");
        assert!(matches!(&error, HsmError::KeyUsage { derive: true, .. }), "{error:?}");
        assert!(matches!(refused("rsa"), HsmError::KeyCurve { .. }));
        assert!(matches!(refused("p521"), HsmError::KeyCurve { .. }));
        assert!(matches!(refused("twice"), HsmError::KeyAmbiguous { count: 2, .. }));
        assert!(matches!(refused("bereft"), HsmError::PublicKeyMissing { .. }));
        assert!(matches!(refused("absent"), HsmError::KeyNotFound { .. }));
    });
}

#[test]
fn a_public_key_that_is_not_its_own_is_noticed() {
    in_child("a_public_key_that_is_not_its_own_is_noticed", |hsm| {
        let token = open(hsm, 2);
        token.generate_ca_key("a", &[0xa], Curve::P256).unwrap();
        token.generate_ca_key("b", &[0xb], Curve::P256).unwrap();
        let tool = |args: &[&str]| run(hsm.pkcs11_tool(hsm.label()).args(args)).unwrap();
        // The public key of b takes the place of a's.
        tool(&["--delete-object", "--type", "pubkey", "--id", "0a"]);
        tool(&["--set-id", "0a", "--type", "pubkey", "--id", "0b"]);
        let error = token.ca_key("a").unwrap_err();
        assert!(matches!(&error, HsmError::KeyMismatch { label } if label == "a"), "{error:?}");
    });
}

#[test]
fn only_a_digest_of_the_curves_own_hash_is_signed() {
    in_child("only_a_digest_of_the_curves_own_hash_is_signed", |hsm| {
        let token = open(hsm, 2);
        let key = token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        key.sign_digest(&[1; 32]).unwrap();
        for len in [0, 20, 31, 33, 48, 400] {
            let error = key.sign_digest(&vec![1; len]).unwrap_err();
            assert!(
                matches!(error, HsmError::DigestLength { expected: 32, found, .. } if found == len),
                "{error:?}"
            );
        }
    });
}

#[test]
fn the_handle_is_looked_up_once() {
    in_child("the_handle_is_looked_up_once", |hsm| {
        let token = open(hsm, 2);
        token.generate_ca_key("root", &[1], Curve::P256).unwrap();
        let key = token.ca_key("root").unwrap();
        let clone = key.clone();
        let before = token.counters().lookups;
        for _ in 0..50 {
            key.sign(b"m").unwrap();
            clone.sign(b"m").unwrap();
        }
        assert_eq!(token.counters().lookups, before);
    });
}

fn keygen(hsm: &SoftHsm, kind: &str, label: &str, id: &str, usage: &[&str]) {
    let mut tool = hsm.pkcs11_tool(hsm.label());
    tool.args(["--keypairgen", "--key-type", kind, "--label", label, "--id", id]).args(usage);
    run(&mut tool).unwrap();
}

#[test]
fn a_destroyed_key_is_gone_and_takes_no_other_with_it() {
    in_child("a_destroyed_key_is_gone_and_takes_no_other_with_it", |hsm| {
        let token = open(hsm, 2);
        let key = token.generate_ca_key("old", b"old", Curve::P256).unwrap();
        let other = token.generate_ca_key("old 2", b"old 2", Curve::P256).unwrap();
        token.destroy_key("old").unwrap();
        assert!(matches!(token.ca_key("old"), Err(HsmError::KeyNotFound { .. })));
        assert!(key.sign(b"message").is_err(), "a key that was found before signs on");
        other.sign(b"message").unwrap();
        let seen = run(hsm.pkcs11_tool(hsm.label()).arg("--list-objects")).unwrap();
        assert_eq!(seen.matches("Key Object").count(), 2, "{seen}");
        // It is over; its label may be used again.
        token.destroy_key("old").unwrap();
        token.generate_ca_key("old", b"old", Curve::P256).unwrap();
    });
}
