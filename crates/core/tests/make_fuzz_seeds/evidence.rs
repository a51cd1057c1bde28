//! Evidence, made by the TPM of software keys.

use hallmark_core::evidence::{refresh_transcript, transcript};
use hallmark_core::tpm::{Name, Public, policy_pcr_digest};
use hallmark_kit::faketpm::{FakeKey, FakeTpm, Secret, Statement, Template, attr};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{NOW, parts, write};

// As in `tests/fuzz/src/evidence.rs`.
const NONCE: [u8; 32] = [0x42; 32];
const SECRET: [u8; 32] = [0x17; 32];
const PCRS: [u8; 3] = [0, 4, 7];
const HOST: &str = "host-1";
const CSR: &[u8] = b"a certification request";

fn tpm() -> FakeTpm {
    with_values(FakeTpm::new("host"))
}

fn with_values(mut tpm: FakeTpm) -> FakeTpm {
    for (&pcr, value) in &mut tpm.pcrs {
        *value = [pcr; 32];
    }
    tpm
}

fn name_of(key: &FakeKey) -> Name {
    Public::parse(&key.public).unwrap().name().clone()
}

fn pcr_values(tpm: &FakeTpm) -> Vec<u8> {
    PCRS.iter().flat_map(|pcr| tpm.pcrs[pcr]).collect()
}

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn structures() {
    let tpm = tpm();
    write("fixtures/ek_public", &tpm.ek.public);
    write("fixtures/ak_public", &tpm.ak.public);
    let rsa = FakeKey::new(Secret::rsa(), &Template::ak());
    let p384 = FakeKey::new(Secret::p384("p384"), &Template::ak());
    for (name, key) in [("ek", &tpm.ek), ("ak", &tpm.ak), ("rsa", &rsa), ("p384", &p384)] {
        write(&format!("seeds/tpm_public/{name}"), &key.public);
        if name != "ek" {
            write(&format!("seeds/tpm_signature/{name}"), &key.sign(b"a message").unwrap());
        }
    }
    let key = tpm.key("agent", &Template::key());
    write("seeds/tpm_attest/quote", &tpm.quote(&[1; 32], &PCRS).unwrap().attest);
    write("seeds/tpm_attest/certify", &tpm.certify(&key).unwrap().attest);
}

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn hosts_and_keys() {
    let ek = tpm().ek;
    let with_ak = |ak: Secret| with_values(FakeTpm::with_keys(ek.clone(), FakeKey::new(ak, &Template::ak())));
    write("seeds/host_evidence/p256", &host(&tpm(), &[]));
    write("seeds/host_evidence/p384", &host(&with_ak(Secret::p384("ak")), &[]));
    write("seeds/host_evidence/rsa", &host(&with_ak(Secret::rsa()), &[]));
    let (log, values) = event_log();
    let mut logged = tpm();
    logged.pcrs.extend(PCRS.into_iter().zip(values));
    write("seeds/host_evidence/with-log", &host(&logged, &log));
    write("seeds/event_log/agile", &log);
    write("seeds/event_log/sha1", &sha1_log());

    let tpm = tpm();
    let nonce = refresh_transcript(&NONCE, &name_of(&tpm.ak), HOST);
    let quote = tpm.quote(&nonce, &PCRS).unwrap();
    write("seeds/refresh/p256", &parts::join(&[&quote.attest, &quote.signature, &pcr_values(&tpm)]));

    let policy = policy_pcr_digest(&[(0, tpm.pcrs[&0]), (7, tpm.pcrs[&7])]);
    let bound = Template::key().with_attributes(attr::KEY & !attr::USER_WITH_AUTH).with_policy(&policy);
    for (name, template, pcrs) in [("plain", Template::key(), &[][..]), ("bound", bound, &[0, 7])] {
        let key = tpm.key("agent", &template);
        let Statement { attest, signature } = tpm.certify(&key).unwrap();
        write(&format!("seeds/key_evidence/{name}"), &parts::join(&[&key.public, &attest, &signature, pcrs]));
    }
}

fn host(tpm: &FakeTpm, log: &[u8]) -> Vec<u8> {
    let quote = tpm.quote(&transcript(&NONCE, &name_of(&tpm.ak), CSR), &PCRS).unwrap();
    let key = tpm.key("host key", &Template::key());
    let certified = tpm.certify(&key).unwrap();
    parts::join(&[
        &tpm.ak.public,
        &SECRET,
        &quote.attest,
        &quote.signature,
        &pcr_values(tpm),
        log,
        &key.public,
        &certified.attest,
        &certified.signature,
        CSR,
    ])
}

/// A crypto-agile log (TCG PC Client Platform Firmware Profile, clause 10.2) of banks sha1 and sha256, and
/// what it leaves in the PCRs asked for.
fn event_log() -> (Vec<u8>, Vec<[u8; 32]>) {
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2, 2, 0, 0, 0, 0x04, 0, 20, 0, 0x0b, 0, 32, 0, 0]);
    let mut log = sha1_event(0, 3, &spec);
    let mut values = vec![];
    let mut locality = b"StartupLocality\0".to_vec();
    locality.push(3);
    log.extend(agile_event(0, 3, [0; 32], &locality));
    for pcr in PCRS {
        let mut value = [0; 32];
        value[31] = if pcr == 0 { 3 } else { 0 };
        for (event_type, data) in [(8u32, &b"firmware"[..]), (0x8000_0001, b"a variable"), (4, &[0; 4])] {
            let digest: [u8; 32] = Sha256::digest(data).into();
            log.extend(agile_event(pcr.into(), event_type, digest, data));
            value = Sha256::digest([value, digest].concat()).into();
        }
        values.push(value);
    }
    log.extend([0xff; 16]);
    (log, values)
}

fn sha1_log() -> Vec<u8> {
    [sha1_event(0, 3, b"Spec ID Event02\0"), sha1_event(0, 8, b"firmware"), sha1_event(4, 4, &[0; 4])]
        .concat()
}

fn sha1_event(pcr: u32, event_type: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&pcr.to_le_bytes()[..], &event_type.to_le_bytes(), &[0; 20], &len, data].concat()
}

fn agile_event(pcr: u32, event_type: u32, sha256: [u8; 32], data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_le_bytes();
    let mut event = [&pcr.to_le_bytes()[..], &event_type.to_le_bytes(), &2u32.to_le_bytes()].concat();
    event.extend([0x04, 0]);
    event.extend([0; 20]);
    event.extend([0x0b, 0]);
    event.extend(sha256);
    event.extend(len);
    event.extend(data);
    event
}

#[test]
#[ignore = "writes tests/fuzz/seeds"]
fn endorsement_certificates() {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_before = OffsetDateTime::from_unix_timestamp(NOW - 3600).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(NOW + 3600).unwrap();
        params
    };
    let mut root = params("A vendor's root");
    root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root_key = KeyPair::generate().unwrap();
    let root_cert = root.self_signed(&root_key).unwrap();
    write("fixtures/ek_root.pem", root_cert.pem().as_bytes());
    let mut other = params("Another vendor's root");
    other.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    other.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let other = other.self_signed(&KeyPair::generate().unwrap()).unwrap();
    write("seeds/ek_roots/two", [root_cert.pem(), other.pem()].concat().as_bytes());

    let mut leaf = params("A TPM");
    // tcg-kp-EKCertificate
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![2, 23, 133, 8, 1])];
    leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    let spki = Public::parse(&tpm().ek.public).unwrap().spki_der().unwrap();
    let spki = rcgen::SubjectPublicKeyInfo::from_der(&spki).unwrap();
    let cert = leaf.signed_by(&spki, &rcgen::Issuer::new(root, &root_key)).unwrap();
    let mut padded = cert.der().to_vec();
    padded.extend([0xff; 40]);
    write("seeds/ek_certificate/padded", &padded);
}
