//! Event logs: real ones, and ones made to break the parser.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use hallmark_core::eventlog::{
    Comparison, LogError, LogFormat, MAX_EVENTS, MAX_LOG, Oddity, ReplayError, compare, parse, replay,
};
use hallmark_core::pcr::PcrValues;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const NO_ACTION: u32 = 3;
const SEPARATOR: u32 = 4;
const SHA1: u16 = 4;
const SHA256: u16 = 0x0b;
const SHA384: u16 = 0x0c;

fn data(name: &str) -> Option<Vec<u8>> {
    let file =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/eventlogs")).join(name);
    let bytes = std::fs::read(file).ok();
    if bytes.is_none() {
        println!("skipped: shared/data/eventlogs/{name} is absent");
    }
    bytes
}

fn sha1_event(pcr: u32, event_type: u32, data: &[u8]) -> Vec<u8> {
    let size = (data.len() as u32).to_le_bytes();
    [&pcr.to_le_bytes()[..], &event_type.to_le_bytes(), &[0; 20], &size, data].concat()
}

fn spec_id(algorithms: &[(u16, u16)]) -> Vec<u8> {
    let mut data = b"Spec ID Event03\0".to_vec();
    data.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    data.extend((algorithms.len() as u32).to_le_bytes());
    for (alg, size) in algorithms {
        data.extend(alg.to_le_bytes());
        data.extend(size.to_le_bytes());
    }
    data.push(0);
    data
}

fn header(algorithms: &[(u16, u16)]) -> Vec<u8> {
    sha1_event(0, NO_ACTION, &spec_id(algorithms))
}

fn event(pcr: u32, event_type: u32, digests: &[(u16, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut out =
        [pcr.to_le_bytes(), event_type.to_le_bytes(), (digests.len() as u32).to_le_bytes()].concat();
    for (alg, digest) in digests {
        out.extend(alg.to_le_bytes());
        out.extend_from_slice(digest);
    }
    out.extend((data.len() as u32).to_le_bytes());
    out.extend_from_slice(data);
    out
}

fn extend(value: [u8; 32], digest: [u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(value).chain_update(digest).finalize().into()
}

const BANKS: &[(u16, u16)] = &[(SHA1, 20), (SHA256, 32)];

/// A log with a header for SHA-1 and SHA-256.
fn log(events: &[Vec<u8>]) -> Vec<u8> {
    [header(BANKS), events.concat()].concat()
}

fn measured(pcr: u32, digest: [u8; 32]) -> Vec<u8> {
    event(pcr, 8, &[(SHA1, &[1; 20]), (SHA256, &digest)], b"measured")
}

#[test]
fn a_cloud_machines_log_is_read_and_replayed() {
    let Some(bytes) = data("coreos_36_shielded_vm_no_secure_boot_eventlog") else { return };
    let log = parse(&bytes).unwrap();
    assert_eq!(log.format, LogFormat::CryptoAgile);
    assert_eq!(log.events.len(), 75, "76 with the header");
    assert_eq!(log.oddities, []);
    let pcrs = replay(&log).unwrap();
    assert_eq!(pcrs.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]);
    // Against quoted values that are the log's own it accounts for all, but for one it never touched.
    let mut quoted: Vec<(u32, Vec<u8>)> = pcrs.iter().map(|(i, v)| (u32::from(*i), v.to_vec())).collect();
    quoted.push((11, vec![0x11; 32]));
    let values = |q: &[(u32, Vec<u8>)]| PcrValues::new(q.iter().map(|(i, v)| (*i, v.as_slice()))).unwrap();
    let all = compare(&pcrs, &values(&quoted));
    assert_eq!(all.matching, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]);
    assert!(all.firmware_mismatches.is_empty() && all.other_mismatches.is_empty());
    // One bit in a firmware PCR, and one in a later one.
    quoted[7].1[31] ^= 1;
    quoted[9].1[0] ^= 0x80;
    let off = compare(&pcrs, &values(&quoted));
    assert_eq!(off.firmware_mismatches.iter().map(|m| m.index).collect::<Vec<_>>(), [7]);
    assert_eq!(off.other_mismatches.iter().map(|m| m.index).collect::<Vec<_>>(), [9]);
}

#[test]
fn a_log_with_option_roms_is_read() {
    let Some(bytes) = data("option_rom_eventlog") else { return };
    let log = parse(&bytes).unwrap();
    assert_eq!(log.format, LogFormat::Sha1);
    assert_eq!(log.oddities, [Oddity::NoHeader, Oddity::InformativeOutsidePcrs { pcr: u32::MAX }]);
    assert!(log.events.len() > 20, "{}", log.events.len());
    assert_eq!(replay(&log), Err(ReplayError::Sha1Only));
}

#[test]
fn a_log_too_short_to_say_anything_says_so() {
    let Some(bytes) = data("short_no_action_eventlog") else { return };
    let log = parse(&bytes).unwrap();
    assert_eq!((log.format, log.events.len()), (LogFormat::Sha1, 1));
    assert_eq!(
        replay(&log).unwrap_err().to_string(),
        "the event log has SHA-1 digests only: the sha256 bank cannot be replayed"
    );
    for len in 0..bytes.len() {
        assert!(matches!(parse(&bytes[..len]), Err(LogError::Truncated { .. })));
    }
}

#[test]
fn replay_is_extend_after_extend() {
    let bytes = log(&[
        measured(0, [1; 32]),
        measured(4, [2; 32]),
        measured(0, [3; 32]),
        event(0, NO_ACTION, &[(SHA1, &[0; 20]), (SHA256, &[0; 32])], b"says something, extends nothing"),
    ]);
    let pcrs = replay(&parse(&bytes).unwrap()).unwrap();
    assert_eq!(pcrs[&0], extend(extend([0; 32], [1; 32]), [3; 32]));
    assert_eq!(pcrs[&4], extend([0; 32], [2; 32]));
    assert_eq!(pcrs.len(), 2);
    // A firmware PCR that the log never touched must be untouched; a later one may be anything.
    let quoted = [(1, [0; 32]), (2, [9; 32]), (9, [9; 32])];
    let quoted = PcrValues::new(quoted.iter().map(|(i, v)| (*i, v.as_slice()))).unwrap();
    let Comparison { matching, firmware_mismatches, other_mismatches } = compare(&pcrs, &quoted);
    assert_eq!(matching, [1]);
    assert_eq!(firmware_mismatches.len(), 1);
    assert_eq!(firmware_mismatches[0].index, 2);
    assert!(other_mismatches.is_empty());
}

#[test]
fn startup_locality_is_pcr_0s_first_value() {
    let digests: &[(u16, &[u8])] = &[(SHA1, &[0; 20]), (SHA256, &[0; 32])];
    let locality = |tail: &[u8]| event(0, NO_ACTION, digests, &[b"StartupLocality\0", tail].concat());
    for l in [0, 3, 4] {
        let bytes = log(&[locality(&[l]), measured(0, [1; 32])]);
        let mut start = [0; 32];
        start[31] = l;
        assert_eq!(replay(&parse(&bytes).unwrap()).unwrap()[&0], extend(start, [1; 32]));
    }
    for bad in [
        vec![locality(&[5])],
        vec![locality(&[])],
        vec![locality(&[3, 0])],
        vec![measured(0, [1; 32]), locality(&[3])],
        vec![locality(&[3]), locality(&[4])],
    ] {
        let bytes = log(&bad);
        assert!(matches!(replay(&parse(&bytes).unwrap()), Err(ReplayError::StartupLocality { .. })));
    }
}

#[test]
fn real_firmwares_oddities_are_named() {
    let digests: &[(u16, &[u8])] = &[(SHA1, &[0; 20]), (SHA256, &[0; 32])];
    for fill in [0x00, 0xff] {
        let bytes = [log(&[measured(0, [1; 32])]), vec![fill; 300]].concat();
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.events.len(), 1);
        assert_eq!(parsed.oddities, [Oddity::TrailingFill { bytes: 300 }]);
    }
    let bytes = log(&[event(u32::MAX, NO_ACTION, digests, b"vendor's")]);
    assert_eq!(parse(&bytes).unwrap().oddities, [Oddity::InformativeOutsidePcrs { pcr: u32::MAX }]);
}

/// Each of these breaks one rule.
#[test]
fn what_breaks_a_rule_is_refused_for_it() {
    let field = |bytes: &[u8]| match parse(bytes) {
        Err(LogError::Invalid { field, .. } | LogError::Truncated { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(&[]), "pcrIndex");
    assert_eq!(field(&log(&[event(24, SEPARATOR, &[(SHA256, &[0; 32])], b"")])), "pcrIndex");
    assert_eq!(field(&log(&[event(0, 8, &[(SHA384, &[0; 48])], b"")])), "digests.hashAlg");
    assert_eq!(field(&log(&[event(0, 8, &[(SHA1, &[0; 20]), (SHA1, &[0; 20])], b"")])), "digests.hashAlg");
    let three: &[(u16, &[u8])] = &[(SHA1, &[0; 20]), (SHA256, &[0; 32]), (SHA256, &[0; 32])];
    assert_eq!(field(&log(&[event(0, 8, three, b"")])), "digests.count");
    assert_eq!(field(&header(&[])), "numberOfAlgorithms");
    assert_eq!(field(&header(&[(SHA1, 20); 9])), "numberOfAlgorithms");
    assert_eq!(field(&header(&[(SHA256, 20)])), "algorithmId");
    assert_eq!(field(&header(&[(0x10, 0)])), "algorithmId");
    assert_eq!(field(&header(&[(SHA256, 32), (SHA256, 32)])), "algorithmId");
    let left_over = sha1_event(0, NO_ACTION, &[spec_id(BANKS), vec![0]].concat());
    assert_eq!(field(&left_over), "specIDEvent");
    // A size that reaches beyond the log, up to the largest there is.
    for size in [9u32, 1 << 20, u32::MAX] {
        let mut bytes = log(&[measured(0, [1; 32])]);
        let at = bytes.len() - 8 - 4;
        bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
        assert_eq!(field(&bytes), "event");
    }
    assert_eq!(parse(&vec![0; MAX_LOG + 1]), Err(LogError::TooLong { len: MAX_LOG + 1 }));
    let endless = log(&vec![event(1, SEPARATOR, &[], b""); MAX_EVENTS + 1]);
    assert_eq!(parse(&endless), Err(LogError::TooManyEvents));
    let without = log(&[event(0, 8, &[(SHA1, &[0; 20])], b"")]);
    assert!(matches!(replay(&parse(&without).unwrap()), Err(ReplayError::NoSha256 { number: 1, .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes).map(|log| replay(&log));
        let with_header = [header(BANKS), bytes].concat();
        let _ = parse(&with_header).map(|log| replay(&log));
    }

    /// A changed byte in a measured digest changes the replay; any change either fails or is seen, or lies in
    /// what is not extended.
    #[test]
    fn a_changed_digest_never_replays_alike(at in 0usize..32, bit in 0u8..8, other in any::<[u8; 32]>()) {
        let honest = log(&[measured(0, other), measured(7, [2; 32])]);
        let mut digest = other;
        digest[at] ^= 1 << bit;
        let changed = log(&[measured(0, digest), measured(7, [2; 32])]);
        let replayed = |bytes: &[u8]| replay(&parse(bytes).unwrap()).unwrap();
        prop_assert_ne!(replayed(&honest)[&0], replayed(&changed)[&0]);
        prop_assert_eq!(replayed(&honest)[&7], replayed(&changed)[&7]);
    }

    #[test]
    fn a_truncated_log_is_never_read_as_whole(cut in 1usize..100) {
        let whole = log(&[measured(0, [1; 32]), measured(4, [5; 32])]);
        prop_assume!(cut < whole.len());
        let short = &whole[..whole.len() - cut];
        if let Ok(parsed) = parse(short) {
            prop_assert!(parsed.events.len() < 2);
        }
    }
}
