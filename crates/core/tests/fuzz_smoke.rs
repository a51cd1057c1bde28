//! A short run of the fuzz targets on the stable toolchain: every seed must be accepted; then each target
//! gets every seed with each of its bytes flipped once, and some ten thousand mutations of the seeds. They
//! are the same in each run; a failure prints the input. Coverage-guided runs: see `tests/fuzz/src/lib.rs`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/fuzz/src/lib.rs"]
pub mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use targets::{ALL, Target};

const MUTATIONS: usize = 20_000;

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz")
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(fuzz_dir().join("seeds").join(name))
        .unwrap_or_else(|e| panic!("no seeds for {name}: {e}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn smoke(name: &str) {
    let target: Target = ALL.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("no target {name}")).1;
    let seeds = seeds(name);
    assert!(!seeds.is_empty());
    for seed in &seeds {
        assert!(target(seed), "a seed of {name} is refused: {}", hex::encode(seed));
    }
    let holds = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            panic!("{name} fails on {} bytes: {}", input.len(), hex::encode(input));
        }
    };
    for seed in &seeds {
        for at in 0..seed.len() {
            let mut flipped = seed.clone();
            flipped[at] ^= 1 << (at % 8);
            holds(&flipped);
        }
    }
    let mut random = Random(0x5eed);
    (0..MUTATIONS).for_each(|_| holds(&random.mutate(&seeds)));
}

macro_rules! smoke {
    ($($name:ident)*) => {
        $(#[test] fn $name() { smoke(stringify!($name)); })*
        const TESTED: &[&str] = &[$(stringify!($name)),*];
    };
}

smoke! {
    agent_info capability chain crl csr ek_certificate ek_roots event_log host_evidence key_evidence
    log_bundle log_checkpoint log_cosigned log_event log_path log_proof log_record log_verifier refresh registration registration_json selector spiffe_id tpm_attest tpm_public tpm_signature witness_answer
}

/// A target that is left out of one list is fuzzed by nobody.
#[test]
fn every_target_has_a_driver_seeds_and_a_smoke_test() {
    let all: BTreeSet<String> = ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let listed = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz_dir().join(dir)).unwrap();
        entries.map(|e| e.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(TESTED.iter().map(ToString::to_string).collect::<BTreeSet<_>>(), all);
    assert_eq!(listed("fuzz_targets"), all);
    assert_eq!(listed("seeds"), all);
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 where that is 0.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[self.below(seeds.len())].clone();
        // Mostly one change, so that what lies behind it is still reached.
        let changes = 1 + [0, 0, 0, 1, 3, 7][self.below(6)];
        for _ in 0..changes {
            self.change(&mut data, seeds);
        }
        data
    }

    fn change(&mut self, data: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(data.len() + 1);
        let end = (at + 1 + self.below(16)).min(data.len());
        match self.below(10) {
            // One bit.
            0..=2 if at < data.len() => data[at] ^= 1 << self.below(8),
            // A byte that lengths, tags and text turn on.
            3 if at < data.len() => {
                data[at] = b"\x00\x01\x7f\x80\x81\x82\x84\xff\x30\x03\x04\"\n*/:.=[] "[self.below(21)];
            }
            // A length off by a little.
            4 if at < data.len() => data[at] = data[at].wrapping_add(self.below(9) as u8).wrapping_sub(4),
            // Cut off.
            5 => data.truncate(at),
            // Taken out, doubled.
            6 if at < end => drop(data.drain(at..end)),
            7 if at < end => {
                let again = data[at..end].to_vec();
                data.splice(at..at, again);
            }
            // A piece of a seed put in or over.
            8 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len());
                let to = (from + 1 + self.below(32)).min(other.len());
                let over = if self.below(2) == 0 { at } else { (at + to - from).min(data.len()) };
                data.splice(at..over, other[from..to].iter().copied());
            }
            // Something more.
            _ => {
                let byte = self.next() as u8;
                data.splice(at..at, std::iter::repeat_n(byte, 1 + self.next() as usize % 4));
            }
        }
    }
}
