//! The evidence as bytes: nothing in it can change, and the event log belongs to the quote.

use hallmark_core::evidence::{EventLogFinding, HostRefusal, QuoteRefusal};
use hallmark_core::tpm::Public;
use hallmark_kit::faketpm::FakeTpm;

use crate::{Attestation, PCRS};

/// A crypto-agile log that extends these digests, one event each.
fn event_log(events: &[(u32, [u8; 32])]) -> Vec<u8> {
    let event = |pcr: u32, kind: u32, middle: &[u8], data: &[u8]| {
        let size = (data.len() as u32).to_le_bytes();
        [&pcr.to_le_bytes()[..], &kind.to_le_bytes(), middle, &size, data].concat()
    };
    let spec_id = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0b\0\x20\0\0";
    let mut log = event(0, 3, &[0; 20], spec_id);
    for (pcr, digest) in events {
        log.extend(event(*pcr, 8, &[&[1, 0, 0, 0, 0x0b, 0], digest.as_slice()].concat(), b""));
    }
    log
}

#[test]
fn an_event_log_is_held_against_the_quote() {
    use sha2::{Digest, Sha256};
    let extended = |digest: [u8; 32]| -> [u8; 32] {
        Sha256::new().chain_update([0; 32]).chain_update(digest).finalize().into()
    };
    let mut tpm = FakeTpm::new("host");
    for (pcr, digest) in [(0, [1; 32]), (4, [2; 32]), (7, [3; 32])] {
        tpm.pcrs.insert(pcr, extended(digest));
    }
    let mut a = Attestation::by(tpm);
    let honest = [(0, [1; 32]), (4, [2; 32]), (7, [3; 32])];
    a.event_log = event_log(&honest);
    let finding = a.appraise().unwrap().quote.event_log;
    let EventLogFinding::Consistent { events: 3, matching, .. } = finding else { panic!("{finding:?}") };
    assert_eq!(matching, PCRS);

    // One event more, less, or other.
    for events in [
        vec![honest[0], honest[1], honest[2], (7, [9; 32])],
        honest[..2].to_vec(),
        vec![honest[0], honest[1], (7, [4; 32])],
    ] {
        a.event_log = event_log(&events);
        let refusal = a.refusal();
        let HostRefusal::Quote(QuoteRefusal::EventLogMismatch(mismatches)) = &refusal else {
            panic!("{refusal}")
        };
        assert_eq!(mismatches.iter().map(|m| m.index).collect::<Vec<_>>(), [7]);
        assert_eq!(refusal.code(), "event-log-mismatch");
    }
    // A log that does not parse is a lie, not an absence.
    a.event_log = event_log(&honest);
    a.event_log.truncate(100);
    assert!(matches!(a.refusal(), HostRefusal::Quote(QuoteRefusal::EventLog(_))));
    // One in the old form says nothing of this bank.
    a.event_log = [&[0; 4][..], &[8, 0, 0, 0], &[0; 20], &[0; 4]].concat();
    assert_eq!(a.appraise().unwrap().quote.event_log, EventLogFinding::Sha1Only);
}

#[test]
fn no_bit_of_the_evidence_can_change() {
    let honest = Attestation::honest();
    let flipped = |pick: fn(&mut Attestation) -> &mut Vec<u8>| {
        let mut a = Attestation::honest();
        for at in 0..pick(&mut a).len() {
            for bit in 0..8 {
                pick(&mut a)[at] ^= 1 << bit;
                let fell = match (Public::parse(&a.ek), Public::parse(&a.ak)) {
                    (Ok(_), Ok(_)) => a.appraise().is_err(),
                    _ => true,
                };
                assert!(fell, "bit {bit} of byte {at} changed, and the evidence still holds");
                pick(&mut a)[at] ^= 1 << bit;
            }
        }
        assert_eq!(a.quote, honest.quote);
    };
    flipped(|a| &mut a.quote.attest);
    flipped(|a| &mut a.quote.signature);
    flipped(|a| &mut a.ak);
    flipped(|a| &mut a.key_public);
    flipped(|a| &mut a.certified.attest);
    flipped(|a| &mut a.certified.signature);
    flipped(|a| &mut a.secret);
    flipped(|a| &mut a.csr);
    flipped(|a| &mut a.csr_spki);
}

#[test]
fn evidence_cut_short_or_long_never_holds() {
    fn pick(a: &mut Attestation, part: usize) -> &mut Vec<u8> {
        match part {
            0 => &mut a.quote.attest,
            1 => &mut a.quote.signature,
            2 => &mut a.key_public,
            3 => &mut a.certified.attest,
            _ => &mut a.certified.signature,
        }
    }
    for part in 0..5 {
        let mut a = Attestation::honest();
        let whole = pick(&mut a, part).clone();
        for len in 0..whole.len() {
            *pick(&mut a, part) = whole[..len].to_vec();
            assert!(a.appraise().is_err(), "part {part} cut to {len} bytes");
        }
        for tail in [vec![0], vec![0xff; 5], vec![0; 70_000]] {
            *pick(&mut a, part) = [whole.as_slice(), &tail].concat();
            assert!(a.appraise().is_err(), "part {part} with {} bytes more", tail.len());
        }
    }
}
