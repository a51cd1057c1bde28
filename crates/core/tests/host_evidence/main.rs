//! Host evidence, whole and attacked: each attack fails for exactly its reason.
#![allow(clippy::unwrap_used)]

mod keys;
mod whole;

use hallmark_core::ek;
use hallmark_core::evidence::*;
use hallmark_core::pcr::{PcrSelection, PcrValues};
use hallmark_core::tpm::{ClockInfo, Name, Public, SignatureError};
use hallmark_kit::faketpm::{self, FakeKey, FakeTpm, Statement, Template};

const NONCE: [u8; 32] = [0x42; 32];
const SECRET: [u8; 32] = [0x17; 32];
const CSR: &[u8] = b"a certification request";
const PCRS: [u8; 3] = [0, 4, 7];

/// Everything that travels in one attestation, and what the issuer knows; honest until a test changes it.
struct Attestation {
    tpm: FakeTpm,
    ek: Vec<u8>,
    ak: Vec<u8>,
    secret: Vec<u8>,
    quote: Statement,
    pcrs: PcrValues,
    event_log: Vec<u8>,
    key_public: Vec<u8>,
    certified: Statement,
    csr: Vec<u8>,
    csr_spki: Vec<u8>,
    wanted: PcrSelection,
    bound_ek: Option<[u8; 32]>,
    previous: Option<ClockInfo>,
}

fn name_of(key: &FakeKey) -> Name {
    Public::parse(&key.public).unwrap().name().clone()
}

fn values(tpm: &FakeTpm, pcrs: &[u8]) -> PcrValues {
    PcrValues::new(pcrs.iter().map(|i| (u32::from(*i), tpm.pcrs[i].as_slice()))).unwrap()
}

impl Attestation {
    fn by(tpm: FakeTpm) -> Self {
        let key = tpm.key("host key", &Template::key());
        let quote = tpm.quote(&transcript(&NONCE, &name_of(&tpm.ak), CSR), &PCRS).unwrap();
        Self {
            ek: tpm.ek.public.clone(),
            ak: tpm.ak.public.clone(),
            secret: SECRET.to_vec(),
            quote,
            pcrs: values(&tpm, &PCRS),
            event_log: vec![],
            key_public: key.public.clone(),
            certified: tpm.certify(&key).unwrap(),
            csr: CSR.to_vec(),
            csr_spki: key.secret.spki().unwrap(),
            wanted: PcrSelection::new(PCRS.map(u32::from)).unwrap(),
            bound_ek: None,
            previous: None,
            tpm,
        }
    }

    fn honest() -> Self {
        Self::by(FakeTpm::new("host"))
    }

    /// The honest quote with some fields changed before the AK signs it.
    fn requote(&mut self, change: impl FnOnce(&mut faketpm::AttestFields)) {
        let nonce = transcript(&NONCE, &name_of(&self.tpm.ak), &self.csr);
        let mut fields = self.tpm.quote_fields(&nonce, &PCRS);
        change(&mut fields);
        self.quote = self.tpm.attest(&fields).unwrap();
    }

    /// The host key replaced by one of this template, honestly certified.
    fn rekey(&mut self, template: &Template) {
        let key = self.tpm.key("host key", template);
        self.key_public = key.public.clone();
        self.certified = self.tpm.certify(&key).unwrap();
    }

    fn appraise(&self) -> Result<HostAppraisal, HostRefusal> {
        let (ek, ak) = (Public::parse(&self.ek).unwrap(), Public::parse(&self.ak).unwrap());
        appraise_host(
            &HostEvidence {
                ek: &ek,
                ak: &ak,
                activated_secret: &self.secret,
                quote: Quote {
                    attest: &self.quote.attest,
                    signature: &self.quote.signature,
                    pcrs: &self.pcrs,
                    event_log: &self.event_log,
                },
                host_key: KeyCertification {
                    public: &self.key_public,
                    attest: &self.certified.attest,
                    signature: &self.certified.signature,
                },
                csr: &self.csr,
                csr_spki: &self.csr_spki,
            },
            &Expectation {
                nonce: &NONCE,
                secret: &SECRET,
                pcrs: &self.wanted,
                bound_ek: self.bound_ek,
                previous_clock: self.previous.as_ref(),
            },
        )
    }

    fn refusal(&self) -> HostRefusal {
        self.appraise().unwrap_err()
    }
}

#[test]
fn honest_evidence_holds() {
    let mut a = Attestation::honest();
    let appraisal = a.appraise().unwrap();
    assert_eq!(appraisal.host_key_spki, a.csr_spki);
    assert_eq!(appraisal.ak_name, name_of(&a.tpm.ak));
    assert_eq!(appraisal.quote.pcrs, a.pcrs);
    assert_eq!(appraisal.quote.event_log, EventLogFinding::Absent);
    assert_eq!(appraisal.quote.clock.reset_count, 7);
    assert_eq!(appraisal.quote.clock.firmware_version, 0x0001_0002_0003_0004);
    a.bound_ek = Some(appraisal.ek_digest);
    a.previous = Some(appraisal.quote.clock);
    assert_eq!(a.appraise().unwrap(), appraisal);
}

#[test]
fn a_replayed_quote_has_another_nonce() {
    let mut a = Attestation::honest();
    let old = transcript(&[0x41; 32], &name_of(&a.tpm.ak), CSR);
    a.quote = a.tpm.quote(&old, &PCRS).unwrap();
    let refusal = a.refusal();
    assert!(matches!(refusal, HostRefusal::Quote(QuoteRefusal::Nonce { .. })), "{refusal}");
    assert_eq!(refusal.code(), "quote-nonce");
}

#[test]
fn a_quote_made_for_another_csr_does_not_count() {
    let mut a = Attestation::honest();
    a.csr = b"another request".to_vec();
    assert!(matches!(a.refusal(), HostRefusal::Quote(QuoteRefusal::Nonce { .. })));
}

#[test]
fn a_refresh_quote_does_not_attest_a_host() {
    let mut a = Attestation::honest();
    a.quote = a.tpm.quote(&refresh_transcript(&NONCE, &name_of(&a.tpm.ak), "host-1"), &PCRS).unwrap();
    assert!(matches!(a.refusal(), HostRefusal::Quote(QuoteRefusal::Nonce { .. })));
}

#[test]
fn a_quote_by_another_ak_is_not_signed_by_this_one() {
    let mut a = Attestation::honest();
    let other = FakeTpm::new("other host");
    a.quote = other.quote(&transcript(&NONCE, &name_of(&a.tpm.ak), CSR), &PCRS).unwrap();
    let refusal = a.refusal();
    assert!(
        matches!(refusal, HostRefusal::Quote(QuoteRefusal::Signature(SignatureError::Mismatch { .. }))),
        "{refusal}"
    );
}

#[test]
fn a_signature_by_another_scheme_is_not_this_aks() {
    let mut a = Attestation::honest();
    // The hash stands behind the algorithm: SHA-384 instead of SHA-256.
    a.quote.signature[3] = 0x0c;
    let refusal = a.refusal();
    assert!(
        matches!(refusal, HostRefusal::Quote(QuoteRefusal::Signature(SignatureError::Scheme { .. }))),
        "{refusal}"
    );
}

#[test]
fn an_ak_under_another_hierarchy_has_false_counters() {
    let mut a = Attestation::honest();
    let under_owner = a.tpm.ak.qualified_name(faketpm::OWNER);
    a.requote(|f| f.signer = under_owner);
    let refusal = a.refusal();
    assert!(matches!(refusal, HostRefusal::Quote(QuoteRefusal::QualifiedSigner { .. })), "{refusal}");
}

#[test]
fn the_secret_must_be_the_one_that_was_sent() {
    let mut a = Attestation::honest();
    for secret in [vec![], SECRET[..31].to_vec(), vec![0x18; 32], [SECRET.as_slice(), &[0]].concat()] {
        a.secret = secret;
        assert!(matches!(a.refusal(), HostRefusal::Secret { .. }));
    }
}

#[test]
fn another_ek_cannot_take_a_host_id() {
    let mut a = Attestation::honest();
    let owner = Public::parse(&FakeTpm::new("first owner").ek.public).unwrap();
    a.bound_ek = Some(ek::public_digest(&owner).unwrap());
    let refusal = a.refusal();
    assert!(matches!(refusal, HostRefusal::OtherEk { .. }), "{refusal}");
    assert_eq!(refusal.code(), "host-bound-to-other-ek");
}

#[test]
fn a_pcr_value_off_by_one_bit_is_not_what_was_quoted() {
    let mut a = Attestation::honest();
    for bit in [0, 7, 255] {
        let mut tampered = a.tpm.clone();
        tampered.pcrs.get_mut(&7).unwrap()[bit / 8] ^= 1 << (bit % 8);
        a.pcrs = values(&tampered, &PCRS);
        let refusal = a.refusal();
        assert!(matches!(refusal, HostRefusal::Quote(QuoteRefusal::PcrDigest { .. })), "{refusal}");
    }
}

#[test]
fn the_quote_is_about_exactly_the_pcrs_asked_for() {
    let nonce = transcript(&NONCE, &name_of(&FakeTpm::new("host").ak), CSR);
    // Fewer, more, another, and none; each with the values that belong to it.
    for pcrs in [&[0, 4][..], &[0, 4, 7, 8], &[0, 4, 8], &[]] {
        let mut a = Attestation::honest();
        a.quote = a.tpm.quote(&nonce, pcrs).unwrap();
        a.pcrs = values(&a.tpm, pcrs);
        let refusal = a.refusal();
        assert!(matches!(refusal, HostRefusal::Quote(QuoteRefusal::Selection { .. })), "{refusal}");
    }
    // Another bank, or a second one beside it.
    for banks in [vec![(0x000c, &PCRS[..])], vec![(0x000b, &PCRS[..]), (0x0004, &PCRS[..])]] {
        let mut a = Attestation::honest();
        a.requote(|f| {
            let digest = f.attested.split_off(f.attested.len() - 34);
            f.attested = [faketpm::pcr_selection(&banks), digest].concat();
        });
        assert!(matches!(a.refusal(), HostRefusal::Quote(QuoteRefusal::Selection { .. })));
    }
    // Nothing asked for is nothing proved.
    let mut a = Attestation::honest();
    a.quote = a.tpm.quote(&nonce, &[]).unwrap();
    a.pcrs = values(&a.tpm, &[]);
    a.wanted = PcrSelection::default();
    assert!(matches!(a.refusal(), HostRefusal::Quote(QuoteRefusal::Selection { .. })));
}

#[test]
fn values_come_for_the_quoted_pcrs_and_no_others() {
    for pcrs in [&[0, 4][..], &[0, 4, 7, 8]] {
        let mut a = Attestation::honest();
        a.pcrs = values(&a.tpm, pcrs);
        assert!(matches!(a.refusal(), HostRefusal::Quote(QuoteRefusal::Values { .. })));
    }
}

#[test]
fn only_a_tpms_own_quote_counts() {
    let mut a = Attestation::honest();
    a.requote(|f| f.magic = 0xff54_4348);
    assert!(matches!(a.refusal(), HostRefusal::Quote(QuoteRefusal::Attest(_))));
    // A certification with the right nonce in a quote's place.
    let mut a = Attestation::honest();
    let key_name = a.tpm.ak.name();
    a.requote(|f| {
        f.kind = 0x8017;
        let sized = [&[0, 34], key_name.as_slice()].concat();
        f.attested = [sized.clone(), sized].concat();
    });
    assert_eq!(a.refusal(), HostRefusal::Quote(QuoteRefusal::NotAQuote));
}

#[test]
fn counters_never_run_backwards() {
    let mut a = Attestation::honest();
    let last = a.appraise().unwrap().quote.clock;
    let refusal = |previous: ClockInfo, a: &mut Attestation| {
        a.previous = Some(previous);
        match a.refusal() {
            HostRefusal::Quote(QuoteRefusal::Clock(refusal)) => refusal,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(
        refusal(ClockInfo { reset_count: 8, ..last }, &mut a),
        ClockRefusal::ResetCount { previous: 8, found: 7 }
    ));
    assert!(matches!(
        refusal(ClockInfo { restart_count: 3, ..last }, &mut a),
        ClockRefusal::RestartCount { previous: 3, found: 2 }
    ));
    assert!(matches!(
        refusal(ClockInfo { clock: last.clock + 1, ..last }, &mut a),
        ClockRefusal::Clock { .. }
    ));
    // Even over a reset the clock holds what it says is safe.
    assert!(matches!(
        refusal(ClockInfo { clock: last.clock + 1, reset_count: 6, ..last }, &mut a),
        ClockRefusal::Clock { .. }
    ));
}

#[test]
fn resets_and_restarts_are_reported_not_refused() {
    let mut a = Attestation::honest();
    let last = a.appraise().unwrap().quote.clock;
    let mut change = |previous: ClockInfo| {
        a.previous = Some(previous);
        a.appraise().unwrap().quote.change
    };
    assert_eq!(change(last), ClockChange::default());
    // A restart count starts again at a reset.
    let reset = change(ClockInfo { reset_count: 6, restart_count: 9, ..last });
    assert_eq!(reset, ClockChange { reset: true, ..Default::default() });
    let restarted = change(ClockInfo { restart_count: 1, ..last });
    assert_eq!(restarted, ClockChange { restarted: true, ..Default::default() });
    assert_eq!(change(ClockInfo { firmware_version: 1, ..last }).firmware_before, Some(1));
    // After a power cut the clock may be behind, and the TPM says so.
    a.requote(|f| f.safe = 0);
    a.previous = Some(ClockInfo { clock: last.clock + 1, reset_count: 6, ..last });
    assert!(a.appraise().unwrap().quote.change.reset);
}

#[test]
fn a_refresh_speaks_for_its_host_and_moment() {
    let a = Attestation::honest();
    let last = a.appraise().unwrap().quote.clock;
    let ak = Public::parse(&a.ak).unwrap();
    let statement = a.tpm.quote(&refresh_transcript(&NONCE, ak.name(), "host-1"), &PCRS).unwrap();
    let quote =
        Quote { attest: &statement.attest, signature: &statement.signature, pcrs: &a.pcrs, event_log: &[] };
    appraise_refresh(&quote, &ak, "host-1", &NONCE, &a.wanted, &last).unwrap();
    let refused = |ak: &Public, host: &str, nonce: &[u8; 32], previous: &ClockInfo| {
        appraise_refresh(&quote, ak, host, nonce, &a.wanted, previous).unwrap_err().code()
    };
    assert_eq!(refused(&ak, "host-2", &NONCE, &last), "quote-nonce");
    assert_eq!(refused(&ak, "host-1", &[0; 32], &last), "quote-nonce");
    let other = Public::parse(&FakeTpm::new("other host").ak.public).unwrap();
    assert_eq!(refused(&other, "host-1", &NONCE, &last), "quote-signature");
    let ahead = ClockInfo { reset_count: last.reset_count + 1, ..last };
    assert_eq!(refused(&ak, "host-1", &NONCE, &ahead), "quote-counters-backwards");
}
