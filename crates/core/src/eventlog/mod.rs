//! The TCG event log: what the firmware says it measured, held against the PCRs the TPM quoted.
//!
//! **In scope:** the crypto-agile log (TCG PC Client Platform Firmware Profile, revision 1.05, clause 10.2,
//! `TCG_PCR_EVENT2`), the older SHA-1 log (`TCG_PCClientPCREvent`), and replay of the sha256 bank.
//! **Not in scope:** what each event means. The log is the attester's word, that is an attacker's input,
//! until its replay equals a quoted value.

mod parse;

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest, Sha256};

pub use parse::{LogError, MAX_EVENTS, MAX_LOG, parse};

use crate::pcr::{PCR_COUNT, PcrValue, PcrValues};

/// `EV_NO_ACTION`: informative, never extended (PFP clause 10.4.1).
const EV_NO_ACTION: u32 = 0x0000_0003;
/// Signature of a `TCG_EfiStartupLocalityEvent` (PFP clause 10.4.5.3).
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// PCRs that firmware alone extends; from 8 on the operating system may go on after the log ends (PFP
/// clause 3.3.4).
const FIRMWARE_PCRS: std::ops::RangeInclusive<u8> = 0..=7;

/// A parsed log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLog<'a> {
    /// Which of the two forms it has.
    pub format: LogFormat,
    /// Its events, without the header.
    pub events: Vec<Event<'a>>,
    /// Departures from the specification that real firmware shows and that cannot change the replay.
    pub oddities: Vec<Oddity>,
}

/// The two forms of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// A digest for each active bank.
    CryptoAgile,
    /// SHA-1 digests only.
    Sha1,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// The PCR it was extended into.
    pub pcr: u32,
    /// Its type (PFP clause 10.4.1).
    pub event_type: u32,
    /// What was extended into the sha256 bank.
    pub sha256: Option<PcrValue>,
    /// The event's data.
    pub data: &'a [u8],
}

/// A tolerated departure from the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oddity {
    /// The buffer goes on after the last event with nothing but 0x00 or nothing but 0xFF: the table's
    /// unused space.
    TrailingFill {
        /// How many bytes.
        bytes: usize,
    },
    /// An informative event (never extended) names a PCR that does not exist, as 0xFFFFFFFF does.
    InformativeOutsidePcrs {
        /// The index it names.
        pcr: u32,
    },
    /// A log in the SHA-1 form that does not open with a Spec ID event.
    NoHeader,
}

/// Why a parsed log cannot be replayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// A log in the old form: it holds SHA-1 digests only.
    #[error("the event log has SHA-1 digests only: the sha256 bank cannot be replayed")]
    Sha1Only,
    /// An event without a sha256 digest.
    #[error("event {number} (type {event_type:#x}, PCR {pcr}) has no sha256 digest")]
    NoSha256 {
        /// Its place in the log, from 1.
        number: usize,
        /// Its type.
        event_type: u32,
        /// Its PCR.
        pcr: u32,
    },
    /// A startup locality that is malformed, unknown, or named too late.
    #[error("event {number}: {why}")]
    StartupLocality {
        /// Its place in the log, from 1.
        number: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// The sha256 values that the log accounts for: one for each PCR it extends.
pub fn replay(log: &EventLog<'_>) -> Result<BTreeMap<u8, PcrValue>, ReplayError> {
    if log.format == LogFormat::Sha1 {
        return Err(ReplayError::Sha1Only);
    }
    let mut pcrs: BTreeMap<u8, PcrValue> = BTreeMap::new();
    for (at, event) in log.events.iter().enumerate() {
        let number = at + 1;
        if event.event_type == EV_NO_ACTION {
            if let Some(start) = startup_locality(event, number)?
                && pcrs.insert(0, start).is_some()
            {
                let why = "the startup locality follows an extend of PCR 0, or is named twice";
                return Err(ReplayError::StartupLocality { number, why });
            }
            continue;
        }
        let digest = event.sha256.ok_or(ReplayError::NoSha256 {
            number,
            event_type: event.event_type,
            pcr: event.pcr,
        })?;
        // The parser admits no other index here.
        let Some(index) = u8::try_from(event.pcr).ok().filter(|i| *i < PCR_COUNT) else { continue };
        let value = pcrs.entry(index).or_default();
        *value = Sha256::new().chain_update(*value).chain_update(digest).finalize().into();
    }
    Ok(pcrs)
}

/// PFP clause 10.4.5.3: the locality TPM2_Startup came from is the last byte of PCR 0's first value.
fn startup_locality(event: &Event<'_>, number: usize) -> Result<Option<PcrValue>, ReplayError> {
    if event.pcr != 0 || !event.data.starts_with(STARTUP_LOCALITY) {
        return Ok(None);
    }
    let mut start = [0u8; 32];
    match event.data.get(STARTUP_LOCALITY.len()..) {
        Some([locality @ (0 | 3 | 4)]) => start[31] = *locality,
        Some([_]) => {
            let why = "the startup locality is none of 0, 3 and 4";
            return Err(ReplayError::StartupLocality { number, why });
        }
        _ => {
            let why = "the startup locality is not one byte";
            return Err(ReplayError::StartupLocality { number, why });
        }
    }
    Ok(Some(start))
}

/// A quoted PCR that the log does not account for.
#[derive(Clone, PartialEq, Eq)]
pub struct LogMismatch {
    /// The PCR.
    pub index: u8,
    /// What the log comes to.
    pub replayed: PcrValue,
    /// What the TPM quoted.
    pub quoted: PcrValue,
}

impl fmt::Display for LogMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (replayed, quoted) = (hex::encode(self.replayed), hex::encode(self.quoted));
        write!(f, "PCR {}: the log comes to {replayed}, the TPM quotes {quoted}", self.index)
    }
}

impl fmt::Debug for LogMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A replay held against quoted values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// PCRs the log accounts for.
    pub matching: Vec<u8>,
    /// Firmware's PCRs (0 to 7) that it does not: the log or the quote is false.
    pub firmware_mismatches: Vec<LogMismatch>,
    /// Later PCRs that it does not: the operating system may have extended them.
    pub other_mismatches: Vec<LogMismatch>,
}

/// Compares a replay with quoted values. A firmware PCR the log never extends must still be at its reset
/// value; a later one is compared only if the log extends it.
pub fn compare(replayed: &BTreeMap<u8, PcrValue>, quoted: &PcrValues) -> Comparison {
    let mut result = Comparison::default();
    for (index, value) in quoted.iter() {
        let firmware = FIRMWARE_PCRS.contains(&index);
        let from_log = match replayed.get(&index) {
            Some(from_log) => *from_log,
            None if firmware => [0; 32],
            None => continue,
        };
        if from_log == *value {
            result.matching.push(index);
            continue;
        }
        let mismatch = LogMismatch { index, replayed: from_log, quoted: *value };
        if firmware {
            result.firmware_mismatches.push(mismatch);
        } else {
            result.other_mismatches.push(mismatch);
        }
    }
    result
}
