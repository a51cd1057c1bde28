//! TPM structures, quotes, certifications, event logs and EK certificates: what a host sends to prove
//! itself.

use std::sync::LazyLock;

use hallmark_core::ek::{EkRoots, appraise_certificate, public_digest, templates};
use hallmark_core::eventlog;
use hallmark_core::evidence::{
    Expectation, HostEvidence, KeyCertification, Quote, appraise_ak, appraise_host, appraise_key,
    appraise_refresh,
};
use hallmark_core::pcr::{PcrSelection, PcrValues};
use hallmark_core::tpm::{Attest, ClockInfo, Public, Signature};

use super::certificates::NOW;
use super::parts::split;

/// What the issuer of the seeds asked for and knew.
pub const NONCE: [u8; 32] = [0x42; 32];
/// The secret in its credential.
pub const SECRET: [u8; 32] = [0x17; 32];
/// The PCRs it asked for.
pub const PCRS: [u32; 3] = [0, 4, 7];
/// The host it spoke with, in a refresh.
pub const HOST: &str = "host-1";

const EK: &[u8] = include_bytes!("../fixtures/ek_public");
const EK_ROOT: &str = include_str!("../fixtures/ek_root.pem");
const AK: &[u8] = include_bytes!("../fixtures/ak_public");
const EK_CERTIFICATES: &[&[u8]] = &[include_bytes!("../seeds/ek_certificate/padded")];
const HOSTS: &[&[u8]] = &[
    include_bytes!("../seeds/host_evidence/p256"),
    include_bytes!("../seeds/host_evidence/p384"),
    include_bytes!("../seeds/host_evidence/rsa"),
    include_bytes!("../seeds/host_evidence/with-log"),
];
const REFRESHES: &[&[u8]] = &[include_bytes!("../seeds/refresh/p256")];
const KEYS: &[&[u8]] =
    &[include_bytes!("../seeds/key_evidence/plain"), include_bytes!("../seeds/key_evidence/bound")];

static EK_PUBLIC: LazyLock<Public> = LazyLock::new(|| Public::parse(EK).expect("the fixture's EK"));
static AK_PUBLIC: LazyLock<Public> = LazyLock::new(|| Public::parse(AK).expect("the fixture's AK"));

/// A public area is kept as it was read; nothing that is asked of it fails but by saying so.
pub fn tpm_public(data: &[u8]) -> bool {
    let Ok(public) = Public::parse(data) else { return false };
    assert_eq!(public.as_bytes(), data);
    let _ = (public.spki_der(), public_digest(&public), templates::appraise(&public));
    let _ = appraise_ak(&public, &EK_PUBLIC);
    true
}

/// An attestation is kept as it was read.
pub fn tpm_attest(data: &[u8]) -> bool {
    let Ok(attest) = Attest::parse(data) else { return false };
    assert_eq!(attest.as_bytes(), data);
    true
}

/// A signature of any form verifies nothing that was not signed.
pub fn tpm_signature(data: &[u8]) -> bool {
    let Ok(signature) = Signature::parse(data) else { return false };
    assert!(signature.verify(&AK_PUBLIC, b"never signed").is_err());
    let _ = signature.verify(&EK_PUBLIC, b"never signed");
    true
}

/// A log's replay is bounded and has only PCRs that exist.
pub fn event_log(data: &[u8]) -> bool {
    let Ok(log) = eventlog::parse(data) else { return false };
    assert!(log.events.len() <= data.len() / 8, "an event has a PCR and a type at least");
    if let Ok(replayed) = eventlog::replay(&log) {
        assert!(replayed.keys().all(|&pcr| pcr < 24));
        let values = replayed.iter().map(|(&pcr, value)| (u32::from(pcr), value.as_slice()));
        let quoted = PcrValues::new(values).expect("replayed values");
        let comparison = eventlog::compare(&replayed, &quoted);
        assert!(comparison.firmware_mismatches.is_empty() && comparison.other_mismatches.is_empty());
    }
    true
}

/// An EK certificate counts only as its CA signed it; after it may stand one repeated byte of padding.
pub fn ek_certificate(data: &[u8]) -> bool {
    static VENDOR: LazyLock<EkRoots> = LazyLock::new(|| {
        let mut roots = EkRoots::new();
        roots.import_pem(EK_ROOT, NOW);
        assert!(!roots.is_empty());
        roots
    });
    if appraise_certificate(&[data.to_vec()], &EK_PUBLIC, &VENDOR, &EkRoots::new(), NOW).is_err() {
        return false;
    }
    let genuine = EK_CERTIFICATES.iter().any(|seed| seed.get(..der_len(seed)) == data.get(..der_len(data)));
    assert!(genuine, "an EK certificate that no CA signed was accepted");
    true
}

/// The whole length of the DER value that `data` begins with; its own length field has two bytes.
fn der_len(data: &[u8]) -> usize {
    match data {
        [0x30, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => data.len(),
    }
}

/// A bundle of roots: everything in it is accepted or refused by name, and what is kept can be read again.
pub fn ek_roots(data: &[u8]) -> bool {
    let Ok(pem) = std::str::from_utf8(data) else { return false };
    let mut roots = EkRoots::new();
    let report = roots.import_pem(pem, NOW);
    assert!(report.accepted.len() + report.refused.len() <= 1 + pem.matches("-----BEGIN").count());
    let mut again = EkRoots::new();
    let second = again.import_anchors_pem(&roots.to_pem(), NOW);
    assert!(second.refused.is_empty(), "{second:?}");
    assert_eq!(again.iter().count(), roots.iter().count());
    !report.accepted.is_empty()
}

/// A host's whole evidence: AK, secret, quote, its signature, PCR values, event log, host key, its
/// certification, its signature, CSR. Accepted only as it was made, but for what no signature covers.
pub fn host_evidence(data: &[u8]) -> bool {
    let Some([ak, secret, attest, signature, pcrs, event_log, public, certify, certify_signature, csr]) =
        split(data)
    else {
        return false;
    };
    let (Ok(ak), Some(pcrs)) = (Public::parse(ak), values(pcrs)) else { return false };
    // Whatever key comes, the request is for it: what must stop it is the certification.
    let csr_spki = Public::parse(public).ok().and_then(|p| p.spki_der().ok()).unwrap_or_default();
    let evidence = HostEvidence {
        ek: &EK_PUBLIC,
        ak: &ak,
        activated_secret: secret,
        quote: Quote { attest, signature, pcrs: &pcrs, event_log },
        host_key: KeyCertification { public, attest: certify, signature: certify_signature },
        csr,
        csr_spki: &csr_spki,
    };
    let wanted = PcrSelection::new(PCRS).expect("PCRs");
    let expected =
        Expectation { nonce: &NONCE, secret: &SECRET, pcrs: &wanted, bound_ek: None, previous_clock: None };
    if appraise_host(&evidence, &expected).is_err() {
        return false;
    }
    // An event log is the host's own word: its descriptions may change as long as its replay does not.
    let signed = |data| split::<10>(data).map(|[a, b, c, d, e, _, f, g, h, i]| [a, b, c, d, e, f, g, h, i]);
    assert!(HOSTS.iter().any(|seed| signed(seed) == signed(data)), "evidence that no TPM made was accepted");
    true
}

/// A refresh: quote, signature, PCR values.
pub fn refresh(data: &[u8]) -> bool {
    let Some([attest, signature, pcrs]) = split(data) else { return false };
    let Some(pcrs) = values(pcrs) else { return false };
    let quote = Quote { attest, signature, pcrs: &pcrs, event_log: &[] };
    let wanted = PcrSelection::new(PCRS).expect("PCRs");
    let before = ClockInfo { clock: 1, reset_count: 1, restart_count: 0, safe: true, firmware_version: 1 };
    if appraise_refresh(&quote, &AK_PUBLIC, HOST, &NONCE, &wanted, &before).is_err() {
        return false;
    }
    assert!(REFRESHES.contains(&data), "a quote that no TPM made was accepted");
    true
}

/// A key's evidence: its public area, certification, signature; after them the PCRs it is said to be bound
/// to, one byte each.
pub fn key_evidence(data: &[u8]) -> bool {
    let selection = |bound: &[u8]| PcrSelection::new(bound.iter().map(|&pcr| pcr.into())).ok();
    let Some([public, attest, signature, bound]) = split(data) else { return false };
    let Some(bound) = selection(bound) else { return false };
    let csr_spki = Public::parse(public).ok().and_then(|p| p.spki_der().ok()).unwrap_or_default();
    let certification = KeyCertification { public, attest, signature };
    let quoted: Vec<[u8; 32]> = PCRS.map(value_of).to_vec();
    let quoted = PcrValues::new(PCRS.into_iter().zip(quoted.iter().map(<[u8; 32]>::as_slice))).expect("PCRs");
    if appraise_key(&certification, &AK_PUBLIC, &csr_spki, &bound, &quoted).is_err() {
        return false;
    }
    let said = |data| split::<4>(data).map(|[a, b, c, bound]| (a, b, c, selection(bound)));
    assert!(KEYS.iter().any(|seed| said(seed) == said(data)), "a key that no TPM certified was accepted");
    true
}

/// What the seeds' TPM has in a PCR.
pub fn value_of(pcr: u32) -> [u8; 32] {
    [pcr as u8; 32]
}

fn values(data: &[u8]) -> Option<PcrValues> {
    let (chunks, rest) = data.as_chunks::<32>();
    (rest.is_empty() && chunks.len() == PCRS.len()).then_some(())?;
    PcrValues::new(PCRS.into_iter().zip(chunks.iter().map(<[u8; 32]>::as_slice))).ok()
}
