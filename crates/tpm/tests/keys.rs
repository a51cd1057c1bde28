//! Quotes, keys and signatures, each checked by a program that is not ours.

#![allow(clippy::unwrap_used)]

mod common;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use common::{Rig, sha256, tpm2b, verify};
use hallmark_tpm::{Certification, HOST, KeySpec, Tpm, TpmError};
use std::fs;

fn bound_to(pcrs: &[u8]) -> KeySpec {
    KeySpec { policy_pcrs: pcrs.to_vec() }
}

/// The AK as PEM, which is what tpm2_checkquote wants.
async fn write_ak(rig: &Rig, tpm: &Tpm) {
    let host = tpm.identity().await.unwrap();
    fs::write(rig.swtpm.dir().join("ak.tpm2b"), tpm2b(&host.ak_public)).unwrap();
    rig.swtpm
        .tool("tpm2_print", ["-t", "TPM2B_PUBLIC", "-f", "pem", "ak.tpm2b"])
        .map(|pem| {
            fs::write(rig.swtpm.dir().join("ak.pem"), pem).unwrap();
        })
        .unwrap();
}

fn check_quote(rig: &Rig, nonce: &[u8; 32], quote: &hallmark_tpm::Quote) -> anyhow::Result<Vec<u8>> {
    let dir = rig.swtpm.dir();
    fs::write(dir.join("attest"), &quote.attest)?;
    fs::write(dir.join("signature"), &quote.signature)?;
    let arguments =
        ["-u", "ak.pem", "-m", "attest", "-s", "signature", "-g", "sha256", "-q", &hex::encode(nonce)];
    rig.swtpm.tool("tpm2_checkquote", arguments)
}

#[tokio::test]
async fn tpm2_checkquote_accepts_a_quote_and_its_values_are_the_quoted_ones() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    rig.swtpm.extend(7, &[7; 32]).unwrap();
    rig.swtpm.extend(16, &[1; 32]).unwrap();
    write_ak(&rig, &tpm).await;
    // More than one read of eight, out of order and one twice.
    let quote = tpm.quote([9; 32], &[16, 0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 7]).await.unwrap();
    check_quote(&rig, &[9; 32], &quote).unwrap();
    assert!(check_quote(&rig, &[8; 32], &quote).is_err(), "another nonce");

    assert_eq!(
        vec![0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 16],
        quote.pcrs.iter().map(|p| p.0).collect::<Vec<_>>()
    );
    let extended = sha256(&[[0; 32], [7; 32]].concat());
    assert_eq!(Some(&(7, extended)), quote.pcrs.iter().find(|p| p.0 == 7));
    assert_eq!(vec![(7, extended)], tpm.pcrs(&[7]).await.unwrap());
    let values: Vec<u8> = quote.pcrs.iter().flat_map(|p| p.1).collect();
    assert!(quote.attest.ends_with(&sha256(&values)), "the digest is the end of TPMS_QUOTE_INFO");

    let mut altered = quote.clone();
    *altered.attest.last_mut().unwrap() ^= 1;
    assert!(check_quote(&rig, &[9; 32], &altered).is_err());
}

#[tokio::test]
async fn pcrs_that_are_not_there_are_named() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    assert!(matches!(tpm.pcrs(&[24]).await, Err(TpmError::NoSuchPcr { index: 24 })));
    assert!(matches!(tpm.quote([0; 32], &[255]).await, Err(TpmError::NoSuchPcr { index: 255 })));
    // The bank is switched off at the next reset.
    rig.swtpm.tool("tpm2_pcrallocate", ["sha1:all+sha256:none"]).unwrap();
    rig.swtpm.reset().unwrap();
    assert!(matches!(tpm.pcrs(&[3, 4]).await, Err(TpmError::NoSha256Bank { index: 3 })));
}

/// The attestation is signed by the AK: TPMT_SIGNATURE is ECDSA, SHA-256, r and s.
fn check_certification(ak_public: &[u8], certification: &Certification) {
    let signature = &certification.signature;
    assert_eq!([0, 0x18, 0, 0x0b], signature[..4]);
    let (r, s) = (&signature[6..38], &signature[40..72]);
    // The point is the end of TPMT_PUBLIC.
    let unique = &ak_public[ak_public.len() - 68..];
    let point = [&[4][..], &unique[2..34], &unique[36..68]].concat();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .verify(&certification.attest, &[r, s].concat())
        .unwrap();
}

#[tokio::test]
async fn a_key_is_certified_by_the_ak_and_signs() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let host = tpm.identity().await.unwrap();
    for spec in [KeySpec::default(), bound_to(&[7, 16])] {
        let (key, certification) = tpm.certified_key(&spec, [4; 32], HOST).await.unwrap();
        assert_eq!(key.public(), certification.public);
        check_certification(&host.ak_public, &certification);
        // TPMS_CERTIFY_INFO holds the name of the key, the nonce is in extraData.
        let name = [&[0, 0x0b][..], &sha256(key.public())].concat();
        assert!(certification.attest.windows(34).any(|w| w == name));
        assert!(certification.attest.windows(32).any(|w| w == [4; 32]));
        verify(&key, b"message", &tpm.sign(&key, sha256(b"message"), 1).await.unwrap());

        fs::write(rig.swtpm.dir().join("key.tpm2b"), tpm2b(key.public())).unwrap();
        let shown = rig.swtpm.tool("tpm2_print", ["-t", "TPM2B_PUBLIC", "key.tpm2b"]).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        let user = if spec.policy_pcrs.is_empty() { "userwithauth|" } else { "" };
        assert!(
            shown.contains(&format!("fixedtpm|fixedparent|sensitivedataorigin|{user}noda|sign\n")),
            "{shown}"
        );
    }
}

#[tokio::test]
async fn a_key_bound_to_pcrs_is_refused_by_the_tpm_itself_once_they_change() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let bound = tpm.create_key(&bound_to(&[16, 7]), HOST).await.unwrap();
    let free = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    assert_eq!([7, 16], bound.policy_pcrs());

    rig.swtpm.extend(11, &[1; 32]).unwrap();
    verify(&bound, b"m", &tpm.sign(&bound, sha256(b"m"), 1).await.unwrap());
    rig.swtpm.extend(16, &[1; 32]).unwrap();
    let refused = tpm.sign(&bound, sha256(b"m"), 1).await.unwrap_err();
    assert!(matches!(refused, TpmError::PolicyFailed { operation: "sign" }), "{refused:?}");
    verify(&free, b"m", &tpm.sign(&free, sha256(b"m"), 1).await.unwrap());

    // It can still be certified, which shows its policy; and a key for the new state can be made.
    tpm.certify(&bound, [0; 32], HOST).await.unwrap();
    let renewed = tpm.create_key(&bound_to(&[16, 7]), HOST).await.unwrap();
    verify(&renewed, b"m", &tpm.sign(&renewed, sha256(b"m"), 1).await.unwrap());
    let health = tpm.health().await.unwrap();
    assert_eq!((1, 0, 0), (health.transient_objects, health.loaded_sessions, health.lockout_counter));
}

#[tokio::test]
async fn a_key_of_another_tpm_is_of_no_use_here() {
    let (rig, other) = (Rig::new(), Rig::new());
    let (tpm, other) = (rig.open().await, other.open().await);
    let foreign = other.create_key(&KeySpec::default(), HOST).await.unwrap();
    assert!(matches!(tpm.sign(&foreign, [0; 32], 1).await, Err(TpmError::ForeignKey { .. })));
    assert!(matches!(tpm.certify(&foreign, [0; 32], HOST).await, Err(TpmError::ForeignKey { .. })));
}

#[tokio::test]
async fn clearing_the_tpm_ends_its_keys_and_not_its_identity() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let before = tpm.identity().await.unwrap();
    rig.swtpm.tool("tpm2_clear", ["-c", "p"]).unwrap();
    assert!(matches!(tpm.sign(&key, [0; 32], 1).await, Err(TpmError::ForeignKey { .. })));
    let after = tpm.identity().await.unwrap();
    assert_eq!((before.ek_public, before.ek_certificates), (after.ek_public, after.ek_certificates));
    let renewed = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    verify(&renewed, b"m", &tpm.sign(&renewed, sha256(b"m"), 1).await.unwrap());
}

#[tokio::test]
async fn properties_say_who_made_it() {
    let rig = Rig::new();
    let properties = rig.open().await.properties().await.unwrap();
    assert_eq!("IBM", properties.manufacturer);
    assert_eq!("SW   TPM", properties.vendor);
    assert!(properties.revision >= 138);
}
