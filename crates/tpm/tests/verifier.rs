//! What this crate collects, appraised by the verifier that the issuer uses: real TPMs on one side, `hallmark-core` on
//! the other, and nothing in between but bytes.

#![allow(clippy::unwrap_used)]

mod common;

use common::Rig;
use hallmark_core::ek::{EkRoots, appraise_certificate};
use hallmark_core::evidence::{
    Expectation, HostEvidence, HostRefusal, KeyCertification, KeyRefusal, Quote, QuoteRefusal, appraise_ak,
    appraise_host, appraise_key, appraise_refresh, refresh_transcript, transcript,
};
use hallmark_core::pcr::{PcrSelection, PcrValues};
use hallmark_core::tpm::{self, ClockInfo, Name, Public};
use hallmark_kit::swtpm::EkProfile;
use hallmark_tpm::{Certification, EkAlgorithm, HOST, HostTpm, KeySpec, Tpm, TpmConfig, TpmKey};
use rand_core::OsRng;

const PCRS: [u8; 5] = [0, 1, 2, 7, 14];
const CSR: &[u8] = b"stands for the CSR, which is opaque to the evidence";

/// Everything a host sends, as it came from the TPM.
struct Collected {
    host: HostTpm,
    secret: Vec<u8>,
    quote: hallmark_tpm::Quote,
    key: TpmKey,
    certification: Certification,
}

async fn collect(tpm: &Tpm, nonce: &[u8; 32], secret: &[u8]) -> Collected {
    let host = tpm.identity().await.unwrap();
    let (ek, ak) = (Public::parse(&host.ek_public).unwrap(), Public::parse(&host.ak_public).unwrap());
    appraise_ak(&ak, &ek).unwrap();
    assert_eq!(ak.name(), &Name::parse(&host.ak_name).unwrap());
    let credential = tpm::make_credential(&ek, ak.name(), secret, &mut OsRng).unwrap();
    let secret =
        tpm.activate_credential(&credential.id_object, &credential.encrypted_secret).await.unwrap().to_vec();
    let quote = tpm.quote(transcript(nonce, ak.name(), CSR), &PCRS).await.unwrap();
    let (key, certification) = tpm.certified_key(&KeySpec::default(), [0; 32], HOST).await.unwrap();
    Collected { host, secret, quote, key, certification }
}

fn values(quote: &hallmark_tpm::Quote) -> PcrValues {
    PcrValues::new(quote.pcrs.iter().map(|(index, value)| (u32::from(*index), &value[..]))).unwrap()
}

fn selection(pcrs: &[u8]) -> PcrSelection {
    PcrSelection::new(pcrs.iter().map(|&index| u32::from(index))).unwrap()
}

fn certified(certification: &Certification) -> KeyCertification<'_> {
    KeyCertification {
        public: &certification.public,
        attest: &certification.attest,
        signature: &certification.signature,
    }
}

fn appraise(
    collected: &Collected,
    nonce: &[u8; 32],
    secret: &[u8],
    previous: Option<&ClockInfo>,
) -> Result<ClockInfo, HostRefusal> {
    let ek = Public::parse(&collected.host.ek_public).unwrap();
    let ak = Public::parse(&collected.host.ak_public).unwrap();
    let pcrs = values(&collected.quote);
    let (attest, signature) = (&collected.quote.attest[..], &collected.quote.signature[..]);
    let evidence = HostEvidence {
        ek: &ek,
        ak: &ak,
        activated_secret: &collected.secret,
        quote: Quote { attest, signature, pcrs: &pcrs, event_log: &[] },
        host_key: certified(&collected.certification),
        csr: CSR,
        csr_spki: collected.key.spki_der(),
    };
    let expected =
        Expectation { nonce, secret, pcrs: &selection(&PCRS), bound_ek: None, previous_clock: previous };
    appraise_host(&evidence, &expected).map(|appraisal| appraisal.quote.clock)
}

#[tokio::test]
async fn a_host_with_each_kind_of_ek_appraises_and_its_certificate_is_told_simulated() {
    let rig = Rig::new();
    rig.swtpm.add_p256_ek(&rig.ca, &EkProfile::default()).unwrap();
    let (vendor, mut simulated) = (EkRoots::new(), EkRoots::new());
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let pem = [rig.ca.root_path(), rig.ca.issuer_path()]
        .map(|path| std::fs::read_to_string(path).unwrap())
        .concat();
    assert_eq!(2, simulated.import_pem(&pem, now).accepted.len());

    for ek in [EkAlgorithm::Rsa2048, EkAlgorithm::EccP256, EkAlgorithm::EccP384] {
        let tpm = Tpm::open(TpmConfig { ek: Some(ek), ..rig.config() }).await.unwrap();
        let collected = collect(&tpm, &[1; 32], &[2; 32]).await;
        appraise(&collected, &[1; 32], &[2; 32], None).unwrap();
        let public = Public::parse(&collected.host.ek_public).unwrap();
        let certificate =
            appraise_certificate(&collected.host.ek_certificates, &public, &vendor, &simulated, now).unwrap();
        assert!(certificate.simulated);
    }
}

#[tokio::test]
async fn counters_go_forward_over_resets_and_never_back() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let first = collect(&tpm, &[1; 32], &[2; 32]).await;
    let before = appraise(&first, &[1; 32], &[2; 32], None).unwrap();
    rig.swtpm.reset().unwrap();
    let second = collect(&tpm, &[3; 32], &[2; 32]).await;
    let after = appraise(&second, &[3; 32], &[2; 32], Some(&before)).unwrap();
    assert_eq!(
        before.reset_count + 1,
        after.reset_count,
        "true counters: the AK is in the endorsement hierarchy"
    );

    let replayed = appraise(&first, &[1; 32], &[2; 32], Some(&after)).unwrap_err();
    assert!(matches!(replayed, HostRefusal::Quote(QuoteRefusal::Clock(_))), "{replayed:?}");
    let stale = appraise(&second, &[1; 32], &[2; 32], None).unwrap_err();
    assert!(matches!(stale, HostRefusal::Quote(QuoteRefusal::Nonce { .. })), "{stale:?}");

    let ak = Public::parse(&second.host.ak_public).unwrap();
    let fresh = tpm.quote(refresh_transcript(&[4; 32], ak.name(), "host-1"), &PCRS).await.unwrap();
    let pcrs = values(&fresh);
    let quote = Quote { attest: &fresh.attest, signature: &fresh.signature, pcrs: &pcrs, event_log: &[] };
    appraise_refresh(&quote, &ak, "host-1", &[4; 32], &selection(&PCRS), &after).unwrap();
    assert!(appraise_refresh(&quote, &ak, "host-2", &[4; 32], &selection(&PCRS), &after).is_err());
}

#[tokio::test]
async fn parts_of_two_hosts_do_not_add_up_to_one() {
    let (rig, other_rig) = (Rig::new(), Rig::new());
    let (tpm, other_tpm) = (rig.open().await, other_rig.open().await);
    let good = async || collect(&tpm, &[1; 32], &[2; 32]).await;
    let other = collect(&other_tpm, &[1; 32], &[2; 32]).await;
    appraise(&good().await, &[1; 32], &[2; 32], None).unwrap();

    let foreign_quote = Collected { quote: other.quote.clone(), ..good().await };
    let refused = appraise(&foreign_quote, &[1; 32], &[2; 32], None).unwrap_err();
    assert!(matches!(refused, HostRefusal::Quote(QuoteRefusal::Signature(_))), "{refused:?}");

    let foreign_key =
        Collected { key: other.key.clone(), certification: other.certification.clone(), ..good().await };
    let refused = appraise(&foreign_key, &[1; 32], &[2; 32], None).unwrap_err();
    assert!(matches!(refused, HostRefusal::HostKey(KeyRefusal::Signature(_))), "{refused:?}");

    let foreign_csr = Collected { key: other.key.clone(), ..good().await };
    let refused = appraise(&foreign_csr, &[1; 32], &[2; 32], None).unwrap_err();
    assert!(matches!(refused, HostRefusal::HostKey(KeyRefusal::OtherKey { .. })), "{refused:?}");
}

#[tokio::test]
async fn a_keys_pcr_policy_is_the_one_the_verifier_computes() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    rig.swtpm.extend(14, &[9; 32]).unwrap();
    let ak = Public::parse(&tpm.identity().await.unwrap().ak_public).unwrap();
    let quote = tpm.quote([0; 32], &PCRS).await.unwrap();
    let spec = KeySpec { policy_pcrs: vec![14, 7] };
    let (key, certification) = tpm.certified_key(&spec, [0; 32], HOST).await.unwrap();
    let check = |pcrs: &[u8], quote: &hallmark_tpm::Quote| {
        appraise_key(&certified(&certification), &ak, key.spki_der(), &selection(pcrs), &values(quote))
    };
    assert_eq!(selection(&[7, 14]), check(&[7, 14], &quote).unwrap().policy_pcrs);
    assert!(check(&[7], &quote).is_err(), "bound to more than it says");
    assert!(check(&[], &quote).is_err(), "bound, and says it is not");
    rig.swtpm.extend(14, &[9; 32]).unwrap();
    let changed = tpm.quote([0; 32], &PCRS).await.unwrap();
    assert!(check(&[7, 14], &changed).is_err(), "bound to values that are no more");

    let (free, free_certification) = tpm.certified_key(&KeySpec::default(), [0; 32], HOST).await.unwrap();
    let unbound = appraise_key(
        &certified(&free_certification),
        &ak,
        free.spki_der(),
        &selection(&[7]),
        &values(&changed),
    );
    assert!(unbound.is_err(), "not bound, and says it is");
}

#[tokio::test]
async fn one_flipped_byte_in_a_real_tpms_evidence_never_appraises() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let good = collect(&tpm, &[1; 32], &[2; 32]).await;
    appraise(&good, &[1; 32], &[2; 32], None).unwrap();
    let parts: [fn(&mut Collected) -> &mut Vec<u8>; 6] = [
        |c| &mut c.quote.attest,
        |c| &mut c.quote.signature,
        |c| &mut c.certification.public,
        |c| &mut c.certification.attest,
        |c| &mut c.certification.signature,
        |c| &mut c.secret,
    ];
    for (n, part) in parts.iter().enumerate() {
        let mut evidence = Collected {
            host: good.host.clone(),
            secret: good.secret.clone(),
            quote: good.quote.clone(),
            key: good.key.clone(),
            certification: good.certification.clone(),
        };
        for at in 0..part(&mut evidence).len() {
            part(&mut evidence)[at] ^= 1 << (at % 8);
            assert!(appraise(&evidence, &[1; 32], &[2; 32], None).is_err(), "part {n}, byte {at}");
            part(&mut evidence)[at] ^= 1 << (at % 8);
        }
    }
}
