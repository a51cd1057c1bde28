//! The keys of the evidence: what an attestation key and a host key must be.

use hallmark_core::evidence::{AkRefusal, HostRefusal, KeyRefusal, QuoteRefusal};
use hallmark_core::tpm::SignatureError;
use hallmark_kit::faketpm::{self, FakeKey, FakeTpm, Secret, Template, attr};

use crate::Attestation;

#[test]
fn every_kind_of_attestation_key_holds() {
    let ek = FakeTpm::new("host").ek;
    let sha384 = Template { scheme_hash: faketpm::SHA384, ..Template::ak() };
    for (secret, template) in [
        (Secret::p384("ak"), Template { name_alg: faketpm::SHA384, ..sha384.clone() }),
        (Secret::p384("ak"), Template::ak()),
        (Secret::p256("ak"), sha384.clone()),
        (Secret::rsa(), Template::ak()),
        (Secret::rsa(), sha384.clone()),
        (Secret::rsa_pss(32), Template::ak()),
        (Secret::rsa_pss(48), sha384.clone()),
        // The longest salt that fits: 256 - 32 - 2, which older TPMs use.
        (Secret::rsa_pss(222), Template::ak()),
    ] {
        let a = Attestation::by(FakeTpm::with_keys(ek.clone(), FakeKey::new(secret, &template)));
        a.appraise().unwrap();
    }
}

#[test]
fn a_salt_of_another_length_is_no_tpms_signature() {
    let tpm = FakeTpm::with_keys(FakeTpm::new("host").ek, FakeKey::new(Secret::rsa_pss(20), &Template::ak()));
    let refusal = Attestation::by(tpm).refusal();
    assert!(
        matches!(refusal, HostRefusal::Quote(QuoteRefusal::Signature(SignatureError::Mismatch { .. }))),
        "{refusal}"
    );
}

#[test]
fn each_attribute_of_an_ak_is_demanded() {
    let ek = FakeTpm::new("host").ek;
    for bit in
        [attr::RESTRICTED, attr::SIGN, attr::FIXED_TPM, attr::FIXED_PARENT, attr::SENSITIVE_DATA_ORIGIN]
    {
        let ak = FakeKey::new(Secret::p256("ak"), &Template::ak().with_attributes(attr::AK & !bit));
        let refusal = Attestation::by(FakeTpm::with_keys(ek.clone(), ak)).refusal();
        let HostRefusal::Ak(AkRefusal::Lacks { lacking, .. }) = &refusal else { panic!("{refusal}") };
        assert_eq!(lacking.bits(), bit);
        assert_eq!(refusal.code(), "ak-attributes");
    }
}

#[test]
fn an_ak_that_decrypts_or_cannot_sign_is_none() {
    let ek = FakeTpm::new("host").ek;
    let ak = FakeKey::new(Secret::p256("ak"), &Template::ak().with_attributes(attr::AK | attr::DECRYPT));
    let refusal = Attestation::by(FakeTpm::with_keys(ek.clone(), ak)).refusal();
    assert!(matches!(refusal, HostRefusal::Ak(AkRefusal::Decrypts { .. })), "{refusal}");
    let ak = FakeKey::new(Secret::p256("ak"), &Template { with_scheme: false, ..Template::ak() });
    let refusal = Attestation::by(FakeTpm::with_keys(ek, ak)).refusal();
    assert!(matches!(refusal, HostRefusal::Ak(AkRefusal::Scheme { .. })), "{refusal}");
}

#[test]
fn the_ek_is_not_the_ak() {
    let mut a = Attestation::honest();
    // The same key with an AK's attributes is still the EK's key.
    let ak = FakeKey::new(a.tpm.ek.secret.clone(), &Template::ak());
    a.ak = ak.public;
    assert!(matches!(a.refusal(), HostRefusal::Ak(AkRefusal::IsTheEk { .. })));
}

#[test]
fn the_host_key_cannot_leave_its_tpm() {
    for bit in [attr::FIXED_TPM, attr::FIXED_PARENT, attr::SENSITIVE_DATA_ORIGIN, attr::SIGN] {
        let mut a = Attestation::honest();
        a.rekey(&Template::key().with_attributes(attr::KEY & !bit));
        let refusal = a.refusal();
        let HostRefusal::HostKey(KeyRefusal::Lacks { lacking, .. }) = &refusal else { panic!("{refusal}") };
        assert_eq!(lacking.bits(), bit);
        assert_eq!(refusal.code(), "key-attributes");
    }
    for bit in [attr::RESTRICTED, attr::DECRYPT] {
        let mut a = Attestation::honest();
        a.rekey(&Template::key().with_attributes(attr::KEY | bit));
        assert!(matches!(a.refusal(), HostRefusal::HostKey(KeyRefusal::Forbidden { .. })));
    }
}

#[test]
fn the_certification_is_this_aks_and_of_this_key() {
    // Certified by another host's AK.
    let mut a = Attestation::honest();
    let key = a.tpm.key("host key", &Template::key());
    a.certified = FakeTpm::new("other host").certify(&key).unwrap();
    let refusal = a.refusal();
    assert!(
        matches!(refusal, HostRefusal::HostKey(KeyRefusal::Signature(SignatureError::Mismatch { .. }))),
        "{refusal}"
    );
    // A public area with an attribute that the certified object does not have.
    let mut a = Attestation::honest();
    let exportable = a.tpm.key("host key", &Template::key().with_attributes(attr::KEY & !attr::FIXED_TPM));
    a.certified = a.tpm.certify(&exportable).unwrap();
    let refusal = a.refusal();
    assert!(matches!(refusal, HostRefusal::HostKey(KeyRefusal::OtherObject { .. })), "{refusal}");
    // A quote in a certification's place.
    let mut a = Attestation::honest();
    a.certified = a.quote.clone();
    assert_eq!(a.refusal(), HostRefusal::HostKey(KeyRefusal::NotACertification));
}

#[test]
fn a_software_csr_does_not_pass_for_the_certified_key() {
    let mut a = Attestation::honest();
    a.csr_spki = Secret::p256("software key").spki().unwrap();
    let refusal = a.refusal();
    assert!(matches!(refusal, HostRefusal::HostKey(KeyRefusal::OtherKey { .. })), "{refusal}");
    assert_eq!(refusal.code(), "key-not-in-csr");
}
