//! Our TPM structures against another implementation's (`tpm2-protocol`), and against bytes no TPM would send.
#![allow(clippy::unwrap_used)]

use hallmark_core::tpm::{
    Attest, Attested, Name, ParseError, Public, PublicKey, Scheme, Signature, SignatureValue, Symmetric,
    make_credential,
};
use hallmark_kit::faketpm::{self, FakeKey, FakeTpm, SHA384, Secret, Template, attr};
use proptest::prelude::*;
use rand_core::OsRng;
use tpm2_protocol::data as theirs;
use tpm2_protocol::{TpmMarshal, TpmUnmarshal, TpmWriter};

/// Public areas of every kind we read.
fn publics() -> Vec<Vec<u8>> {
    let sha384 = |t: Template| Template { name_alg: SHA384, scheme_hash: SHA384, ..t };
    let storage = |secret| FakeKey::new(secret, &Template::ek()).public;
    let signing = |secret| FakeKey::new(secret, &Template::ak()).public;
    vec![
        storage(Secret::p256("a")),
        storage(Secret::rsa()),
        FakeKey::new(
            Secret::p384("a"),
            &Template { aes: Some(256), ..sha384(Template::ek().with_policy(&[5; 48])) },
        )
        .public,
        signing(Secret::p256("b")),
        signing(Secret::p384("b")),
        signing(Secret::rsa()),
        signing(Secret::rsa_pss(32)),
        FakeKey::new(Secret::p384("c"), &sha384(Template::ak())).public,
        FakeKey::new(Secret::p256("d"), &Template::key().with_policy(&[7; 32])).public,
        FakeKey::new(Secret::p256("e"), &Template { with_scheme: false, ..Template::key() }).public,
    ]
}

fn attests() -> Vec<Vec<u8>> {
    let tpm = FakeTpm::new("host");
    let key = tpm.key("key", &Template::key());
    let ak384 = FakeKey::new(
        Secret::p384("ak"),
        &Template { name_alg: SHA384, scheme_hash: SHA384, ..Template::ak() },
    );
    let tpm384 = FakeTpm::with_keys(tpm.ek.clone(), ak384);
    vec![
        tpm.quote(&[9; 32], &[0, 4, 7, 23]).unwrap().attest,
        tpm.quote(b"", &[]).unwrap().attest,
        tpm384.quote(&[9; 48], &[0]).unwrap().attest,
        tpm.certify(&key).unwrap().attest,
        tpm384.certify(&key).unwrap().attest,
    ]
}

fn signatures() -> Vec<Vec<u8>> {
    [Secret::p256("a"), Secret::p384("a"), Secret::rsa(), Secret::rsa_pss(32)]
        .into_iter()
        .map(|secret| FakeKey::new(secret, &Template::ak()).sign(b"message").unwrap())
        .collect()
}

/// What the other implementation reads, if it reads all of it; and it writes the same bytes again.
fn peer<T: TpmUnmarshal + TpmMarshal>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = T::unmarshal(bytes).ok()?;
    let mut buffer = vec![0; 4096];
    let mut writer = TpmWriter::new(&mut buffer);
    value.marshal(&mut writer).ok()?;
    let len = writer.len();
    assert_eq!(&buffer[..len], &bytes[..bytes.len() - rest.len()]);
    rest.is_empty().then_some(value)
}

fn peer_reads<T: TpmUnmarshal + TpmMarshal>(bytes: &[u8]) -> T {
    peer(bytes).unwrap_or_else(|| panic!("we read it, the peer does not: {}", hex::encode(bytes)))
}

/// Whatever we read, the other implementation reads, and to the same meaning.
fn public_agrees(bytes: &[u8]) -> bool {
    let Ok(ours) = Public::parse(bytes) else { return false };
    // The peer does not know the bits of later revisions.
    let bits = ours.attributes().bits();
    if bits & 0x0008_0300 != 0 {
        return true;
    }
    let theirs: theirs::TpmtPublic = peer_reads(bytes);
    assert_eq!(theirs.object_attributes.bits(), bits);
    assert_eq!(&*theirs.auth_policy, ours.auth_policy());
    assert_eq!(theirs.name_alg as u16, ours.name_alg().id());
    match (ours.key(), &theirs.unique) {
        (PublicKey::Rsa(a), theirs::TpmuPublicId::Rsa(b)) => assert_eq!(a.modulus, &**b),
        (PublicKey::Ecc(a), theirs::TpmuPublicId::Ecc(b)) => assert_eq!((&a.x[..], &a.y[..]), (&*b.x, &*b.y)),
        other => panic!("{other:?}"),
    }
    true
}

fn attest_agrees(bytes: &[u8]) -> bool {
    let Ok(ours) = Attest::parse(bytes) else { return false };
    let theirs: theirs::TpmsAttest = peer_reads(bytes);
    assert_eq!(&*theirs.qualified_signer, ours.qualified_signer.as_bytes());
    assert_eq!(&*theirs.extra_data, ours.extra_data);
    assert_eq!(theirs.clock_info.clock.value(), ours.clock.clock);
    assert_eq!(theirs.clock_info.reset_count.value(), ours.clock.reset_count);
    assert_eq!(theirs.clock_info.restart_count.value(), ours.clock.restart_count);
    assert_eq!(theirs.firmware_version.value(), ours.clock.firmware_version);
    match (&ours.attested, &theirs.attested) {
        (Attested::Quote { pcr_digest, .. }, theirs::TpmuAttest::Quote(quote)) => {
            assert_eq!(&*quote.pcr_digest, pcr_digest);
        }
        (Attested::Certify { name, qualified_name }, theirs::TpmuAttest::Certify(certify)) => {
            assert_eq!(&*certify.name, name.as_bytes());
            assert_eq!(&*certify.qualified_name, qualified_name.as_bytes());
        }
        other => panic!("{other:?}"),
    }
    true
}

fn signature_agrees(bytes: &[u8]) -> bool {
    let Ok(ours) = Signature::parse(bytes) else { return false };
    let theirs: theirs::TpmtSignature = peer_reads(bytes);
    match (&ours.value, &theirs.signature) {
        (SignatureValue::Rsa(a), theirs::TpmuSignature::Rsassa(b) | theirs::TpmuSignature::Rsapss(b)) => {
            assert_eq!(a, &*b.sig);
        }
        (SignatureValue::Ecc { r, s }, theirs::TpmuSignature::Ecdsa(b)) => {
            assert_eq!((&r[..], &s[..]), (&*b.signature_r, &*b.signature_s));
        }
        other => panic!("{other:?}"),
    }
    true
}

#[test]
fn every_kind_is_read_alike() {
    assert!(publics().iter().all(|bytes| public_agrees(bytes)));
    assert!(attests().iter().all(|bytes| attest_agrees(bytes)));
    assert!(signatures().iter().all(|bytes| signature_agrees(bytes)));
}

#[test]
fn parts_and_extras_are_never_read_as_whole() {
    let never = |samples: Vec<Vec<u8>>, reads: fn(&[u8]) -> bool| {
        for bytes in samples {
            for len in 0..bytes.len() {
                assert!(!reads(&bytes[..len]));
            }
            assert!(!reads(&[bytes.as_slice(), &[0]].concat()));
            assert!(!reads(&[bytes.as_slice(), &[0; 100_000]].concat()));
        }
    };
    never(publics(), |b| Public::parse(b).is_ok());
    never(attests(), |b| Attest::parse(b).is_ok());
    never(signatures(), |b| Signature::parse(b).is_ok());
}

#[test]
fn public_areas_say_what_they_hold() {
    let public = Public::parse(&publics()[0]).unwrap();
    assert_eq!(public.symmetric(), Symmetric::AesCfb { bits: 128 });
    assert_eq!(public.scheme(), Scheme::Null);
    assert_eq!(public.attributes().bits(), attr::EK);
    assert_eq!(
        public.attributes().to_string(),
        "fixedTPM|fixedParent|sensitiveDataOrigin|adminWithPolicy|restricted|decrypt"
    );
    for secret in [Secret::p256("a"), Secret::p384("a"), Secret::rsa()] {
        let key = FakeKey::new(secret, &Template::ak());
        let public = Public::parse(&key.public).unwrap();
        assert_eq!(public.spki_der().unwrap(), key.secret.spki().unwrap());
        assert_eq!(public.name().as_bytes(), key.name());
        assert_eq!(
            public.name().qualified_under(faketpm::ENDORSEMENT).as_bytes(),
            key.qualified_name(faketpm::ENDORSEMENT)
        );
    }
}

#[test]
fn each_rule_of_a_public_area_is_kept() {
    let ecc = FakeKey::new(Secret::p256("a"), &Template::ak()).public;
    let rsa = FakeKey::new(Secret::rsa(), &Template::ak()).public;
    let refused = |base: &[u8], at: usize, bytes: &[u8]| {
        let mut changed = base.to_vec();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        match Public::parse(&changed).unwrap_err() {
            ParseError::Unsupported { field, .. }
            | ParseError::Invalid { field, .. }
            | ParseError::TooLong { field, .. }
            | ParseError::Truncated { field, .. } => field,
            other => panic!("{other}"),
        }
    };
    // Offsets: type 0, nameAlg 2, attributes 4, policy size 8, symmetric 10, scheme 12, hash 14, then for ECC
    // curve 16, kdf 18, x 20; for RSA keyBits 16, exponent 18, modulus 22.
    assert_eq!(refused(&ecc, 0, &[0x00, 0x08]), "type");
    assert_eq!(refused(&ecc, 2, &[0x00, 0x04]), "nameAlg");
    assert_eq!(refused(&ecc, 4, &[0x80]), "objectAttributes");
    assert_eq!(refused(&ecc, 8, &[0x00, 0x01]), "authPolicy");
    assert_eq!(refused(&ecc, 8, &[0x00, 0x21]), "authPolicy");
    assert_eq!(refused(&ecc, 10, &[0x00, 0x25]), "symmetric");
    assert_eq!(refused(&ecc, 12, &[0x00, 0x1a]), "scheme");
    assert_eq!(refused(&ecc, 14, &[0x00, 0x04]), "scheme.hashAlg");
    assert_eq!(refused(&ecc, 16, &[0x00, 0x10]), "curveID");
    assert_eq!(refused(&ecc, 18, &[0x00, 0x20]), "kdf");
    assert_eq!(refused(&ecc, 20, &[0x00, 0x21]), "unique.ecc.x");
    assert_eq!(refused(&ecc, 30, &[ecc[30] ^ 1]), "unique.ecc");
    assert_eq!(refused(&rsa, 16, &[0x04, 0x00]), "keyBits");
    assert_eq!(refused(&rsa, 18, &[0, 0, 0, 3]), "exponent");
    assert_eq!(refused(&rsa, 24, &[0x00]), "unique.rsa");
    assert_eq!(refused(&rsa, rsa.len() - 1, &[rsa[rsa.len() - 1] ^ 1]), "unique.rsa");
    let storage = FakeKey::new(Secret::p256("a"), &Template::ek().with_policy(&[])).public;
    assert_eq!(refused(&storage, 12, &[0x00, 0xc0]), "symmetric.keyBits");
    assert_eq!(refused(&storage, 14, &[0x00, 0x42]), "symmetric.mode");
}

#[test]
fn credentials_open_for_the_right_tpm_and_name() {
    let ak = FakeTpm::new("host").ak;
    let ak_name = Name::parse(&ak.name()).unwrap();
    let sha384 = Template { name_alg: SHA384, aes: Some(256), ..Template::ek().with_policy(&[5; 48]) };
    let eks = [
        FakeKey::new(Secret::p256("ek"), &Template::ek()),
        FakeKey::new(Secret::p384("ek"), &sha384),
        FakeKey::new(Secret::rsa(), &Template::ek()),
        FakeKey::new(Secret::rsa(), &sha384),
    ];
    for ek in eks {
        let public = Public::parse(&ek.public).unwrap();
        let tpm = FakeTpm::with_keys(ek, ak.clone());
        for secret in [vec![1], vec![2; 16], vec![3; 32]] {
            let made = make_credential(&public, &ak_name, &secret, &mut OsRng).unwrap();
            assert_eq!(tpm.activate(&made.id_object, &made.encrypted_secret).unwrap(), secret);
            // Not for another AK, not for another TPM, not with a bit changed.
            let other_ak = FakeTpm::with_keys(tpm.ek.clone(), FakeTpm::new("other").ak);
            assert!(other_ak.activate(&made.id_object, &made.encrypted_secret).is_err());
            let other_tpm = FakeTpm::with_keys(FakeTpm::new("other").ek, ak.clone());
            assert!(other_tpm.activate(&made.id_object, &made.encrypted_secret).is_err());
            let mut swapped = made.id_object.clone();
            *swapped.last_mut().unwrap() ^= 1;
            assert!(tpm.activate(&swapped, &made.encrypted_secret).is_err());
        }
        let once = make_credential(&public, &ak_name, &[3; 32], &mut OsRng).unwrap();
        let twice = make_credential(&public, &ak_name, &[3; 32], &mut OsRng).unwrap();
        assert_ne!(once.encrypted_secret, twice.encrypted_secret);
        assert!(tpm.activate(&once.id_object, &twice.encrypted_secret).is_err(), "swapped credential blob");
    }
}

#[test]
fn credentials_are_made_for_storage_keys_only() {
    let name = Name::parse(&FakeTpm::new("host").ak.name()).unwrap();
    let make = |template: Template, secret: &[u8]| {
        let public = Public::parse(&FakeKey::new(Secret::p256("ek"), &template).public).unwrap();
        make_credential(&public, &name, secret, &mut OsRng).map_err(|e| e.to_string())
    };
    make(Template::ek(), &[1; 32]).unwrap();
    for template in [
        Template::ak(),
        Template { aes: None, ..Template::ek() },
        Template::ek().with_attributes(attr::EK & !attr::RESTRICTED),
        Template::ek().with_attributes(attr::EK & !attr::DECRYPT),
    ] {
        assert!(make(template, &[1; 32]).unwrap_err().contains("no storage key"));
    }
    assert!(make(Template::ek(), &[]).is_err());
    assert!(make(Template::ek(), &[1; 33]).is_err());
}

fn mutated(samples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (
        proptest::sample::select(samples),
        proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4),
        any::<bool>(),
    )
        .prop_map(|(mut bytes, changes, near_start)| {
            for (at, value) in changes {
                // Structure lies at the front, keys and digests behind.
                let span = if near_start { bytes.len().min(32) } else { bytes.len() };
                bytes[at % span] = value;
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_we_read_the_peer_reads_alike(
        public in mutated(publics()),
        attest in mutated(attests()),
        signature in mutated(signatures()),
    ) {
        public_agrees(&public);
        attest_agrees(&attest);
        signature_agrees(&signature);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Public::parse(&bytes);
        let _ = Attest::parse(&bytes);
        let _ = Signature::parse(&bytes);
        let _ = Name::parse(&bytes);
    }
}
