//! Who the TPM is, and that a credential reaches only the TPM it was made for.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, sha256, tpm2b};
use hallmark_kit::swtpm::{EkProfile, NV_EK_P384, NV_EK_RSA2048};
use hallmark_tpm::{EkAlgorithm, Tpm, TpmConfig, TpmError};
use std::fs;

async fn open_with(rig: &Rig, ek: EkAlgorithm) -> Tpm {
    Tpm::open(TpmConfig { ek: Some(ek), ..rig.config() }).await.unwrap()
}

#[tokio::test]
async fn each_kind_of_ek_is_found_and_activates_a_credential_made_by_tpm2_tools() {
    let rig = Rig::new();
    let p256 = rig.swtpm.add_p256_ek(&rig.ca, &EkProfile::default()).unwrap();
    let rsa = rig.swtpm.read_nv(NV_EK_RSA2048).unwrap();
    let p384 = rig.swtpm.read_nv(NV_EK_P384).unwrap();
    let mut ak = None;
    for (algorithm, certificate, from_nv) in [
        (EkAlgorithm::EccP256, &p256, NV_EK_RSA2048),
        (EkAlgorithm::EccP384, &p384, NV_EK_P384),
        (EkAlgorithm::Rsa2048, &rsa, NV_EK_RSA2048),
    ] {
        let tpm = open_with(&rig, algorithm).await;
        let host = tpm.identity().await.unwrap();
        assert_eq!(algorithm, host.ek_algorithm);
        assert_eq!(std::slice::from_ref(certificate), host.ek_certificates, "{from_nv:#x}");
        assert!(host.ek_certificate_matches);
        assert_eq!(ak.get_or_insert(host.ak_public.clone()), &host.ak_public, "the AK is always the same");

        let secret = [0x5a; 32];
        let (id_object, encrypted) = rig.credential_for(&host, &secret);
        assert_eq!(&secret[..], &tpm.activate_credential(&id_object, &encrypted).await.unwrap()[..]);
    }
}

#[tokio::test]
async fn eks_are_made_anew_where_none_is_persistent_and_are_the_same() {
    let rig = Rig::new();
    for (algorithm, handle) in [(EkAlgorithm::EccP384, "0x81010016"), (EkAlgorithm::Rsa2048, "0x81010001")] {
        let before = open_with(&rig, algorithm).await.identity().await.unwrap();
        rig.swtpm.tool("tpm2_evictcontrol", ["-C", "o", "-c", handle]).unwrap();
        let tpm = open_with(&rig, algorithm).await;
        let after = tpm.identity().await.unwrap();
        assert_eq!(before, after);
        let (id_object, encrypted) = rig.credential_for(&after, b"sixteen bytes ok");
        assert_eq!(b"sixteen bytes ok", &tpm.activate_credential(&id_object, &encrypted).await.unwrap()[..]);
    }
}

#[tokio::test]
async fn p256_is_preferred_then_p384_and_without_certificates_there_is_still_an_ek() {
    let rig = Rig::new();
    assert_eq!(EkAlgorithm::EccP384, rig.open().await.identity().await.unwrap().ek_algorithm);
    rig.swtpm.remove_nv(NV_EK_P384).unwrap();
    assert_eq!(EkAlgorithm::Rsa2048, rig.open().await.identity().await.unwrap().ek_algorithm);
    rig.swtpm.remove_nv(NV_EK_RSA2048).unwrap();
    let host = rig.open().await.identity().await.unwrap();
    assert_eq!(
        (EkAlgorithm::EccP256, 0, false),
        (host.ek_algorithm, host.ek_certificates.len(), host.ek_certificate_matches)
    );
    rig.swtpm.add_p256_ek(&rig.ca, &EkProfile::default()).unwrap();
    let with = rig.open().await.identity().await.unwrap();
    assert_eq!((&host.ek_public, true), (&with.ek_public, with.ek_certificate_matches));
}

#[tokio::test]
async fn template_and_nonce_in_nv_make_another_ek() {
    let rig = Rig::new();
    let default = open_with(&rig, EkAlgorithm::EccP256).await.identity().await.unwrap();
    rig.swtpm.write_nv(0x01c0_000b, &[0x77; 20]).unwrap();
    let nonce_only = open_with(&rig, EkAlgorithm::EccP256).await.identity().await.unwrap();
    assert_ne!(default.ek_public, nonce_only.ek_public);

    // The template as a platform maker would store it: the default one, with the unique field filled.
    let mut template = default.ek_public.clone();
    let unique = template.len() - 68;
    template[unique..].copy_from_slice(&[&[0u8, 32][..], &[0; 32], &[0, 32], &[0; 32]].concat());
    rig.swtpm.write_nv(0x01c0_000c, &template).unwrap();
    let tpm = open_with(&rig, EkAlgorithm::EccP256).await;
    let both = tpm.identity().await.unwrap();
    assert_eq!(nonce_only.ek_public, both.ek_public);
    let (id_object, encrypted) = rig.credential_for(&both, &[1; 32]);
    assert_eq!([1; 32], tpm.activate_credential(&id_object, &encrypted).await.unwrap()[..]);
}

#[tokio::test]
async fn a_credential_for_another_ek_or_ak_or_altered_is_refused() {
    let (rig, other) = (Rig::new(), Rig::new());
    for algorithm in [EkAlgorithm::EccP384, EkAlgorithm::Rsa2048, EkAlgorithm::EccP256] {
        let (tpm, other_tpm) = (open_with(&rig, algorithm).await, open_with(&other, algorithm).await);
        let (host, stranger) = (tpm.identity().await.unwrap(), other_tpm.identity().await.unwrap());

        let for_other_ek = rig.make_credential(&stranger.ek_public, &host.ak_name, &[7; 32]);
        let for_other_ak = rig.make_credential(&host.ek_public, &stranger.ak_name, &[7; 32]);
        let mut altered = rig.credential_for(&host, &[7; 32]);
        *altered.0.last_mut().unwrap() ^= 1;
        for (id_object, encrypted) in [for_other_ek, for_other_ak, altered] {
            let refused = tpm.activate_credential(&id_object, &encrypted).await.unwrap_err();
            assert!(matches!(refused, TpmError::CredentialRefused { .. }), "{algorithm:?}: {refused:?}");
        }
        let (id_object, encrypted) = rig.credential_for(&host, &[7; 32]);
        let cut = tpm.activate_credential(&id_object[..id_object.len() - 1], &encrypted).await.unwrap_err();
        assert!(matches!(cut, TpmError::Malformed { what: "TPM2B_ID_OBJECT", .. }), "{cut:?}");
        let empty = tpm.activate_credential(&id_object, &[]).await.unwrap_err();
        assert!(matches!(empty, TpmError::Malformed { what: "TPM2B_ENCRYPTED_SECRET", .. }), "{empty:?}");
        assert_eq!(32, tpm.activate_credential(&id_object, &encrypted).await.unwrap().len());
    }
}

#[tokio::test]
async fn an_ek_certificate_for_another_key_is_noticed_and_still_sent() {
    let (rig, other) = (Rig::new(), Rig::new());
    let foreign = other.swtpm.read_nv(NV_EK_P384).unwrap();
    rig.swtpm.write_nv(NV_EK_P384, &foreign).unwrap();
    let host = rig.open().await.identity().await.unwrap();
    assert_eq!((vec![foreign], false), (host.ek_certificates, host.ek_certificate_matches));
}

#[tokio::test]
async fn padding_after_a_certificate_is_left_to_the_verifier_and_a_chain_is_split() {
    let rig = Rig::new();
    let certificate = rig.swtpm.read_nv(NV_EK_P384).unwrap();
    let padded = [&certificate[..], &[0xff; 300]].concat();
    rig.swtpm.write_nv(NV_EK_P384, &padded).unwrap();
    let chain = [rig.ca.issuer_der(), rig.ca.root_der()].concat();
    rig.swtpm.write_nv(0x01c0_0100, &chain[..200]).unwrap();
    rig.swtpm.write_nv(0x01c0_0101, &chain[200..]).unwrap();
    let host = rig.open().await.identity().await.unwrap();
    assert_eq!(vec![padded, rig.ca.issuer_der().to_vec(), rig.ca.root_der().to_vec()], host.ek_certificates);
    assert!(host.ek_certificate_matches);
}

#[tokio::test]
async fn the_ak_has_the_attributes_the_verifier_demands_and_the_name_of_its_public_area() {
    let rig = Rig::new();
    let host = rig.open().await.identity().await.unwrap();
    assert_eq!([&[0, 0x0b][..], &sha256(&host.ak_public)].concat(), host.ak_name);
    fs::write(rig.swtpm.dir().join("ak.tpm2b"), tpm2b(&host.ak_public)).unwrap();
    let shown = rig.swtpm.tool("tpm2_print", ["-t", "TPM2B_PUBLIC", "ak.tpm2b"]).unwrap();
    let shown = String::from_utf8(shown).unwrap();
    assert!(
        shown.contains("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"),
        "{shown}"
    );
}

#[tokio::test]
async fn hierarchies_with_an_authorisation_are_used_with_it_and_refused_without() {
    let rig = Rig::new();
    rig.swtpm.tool("tpm2_changeauth", ["-c", "e", "endorsed"]).unwrap();
    rig.swtpm.tool("tpm2_changeauth", ["-c", "o", "owned"]).unwrap();
    let refused = Tpm::open(rig.config()).await.unwrap_err();
    assert!(matches!(refused, TpmError::AuthorisationFailed { .. }), "{refused:?}");

    let mut config = TpmConfig { ek: Some(EkAlgorithm::Rsa2048), ..rig.config() };
    config.owner_auth = b"owned".to_vec().into();
    let tpm = Tpm::open(config.clone()).await.unwrap();
    let refused = tpm.identity().await.unwrap_err();
    assert!(matches!(refused, TpmError::AuthorisationFailed { .. }), "{refused:?}");

    config.endorsement_auth = b"endorsed".to_vec().into();
    let tpm = Tpm::open(config).await.unwrap();
    let host = tpm.identity().await.unwrap();
    let (id_object, encrypted) = rig.credential_for(&host, &[3; 32]);
    assert_eq!([3; 32], tpm.activate_credential(&id_object, &encrypted).await.unwrap()[..]);
    assert_eq!(0, tpm.health().await.unwrap().loaded_sessions);
}
