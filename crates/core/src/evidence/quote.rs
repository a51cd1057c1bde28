//! Quotes: PCR values, counters and event log under the attestation key's signature.

use super::evidence_digest;
use crate::eventlog::{self, LogError, LogMismatch, Oddity, ReplayError};
use crate::pcr::{PcrSelection, PcrValues};
use crate::tpm::{
    Attest, Attested, ClockInfo, HashAlg, Name, ParseError, PcrBankSelection, Public, RH_ENDORSEMENT,
    Signature, SignatureError,
};

/// A quote as it came.
#[derive(Debug, Clone, Copy)]
pub struct Quote<'a> {
    /// `TPMS_ATTEST`
    pub attest: &'a [u8],
    /// `TPMT_SIGNATURE`
    pub signature: &'a [u8],
    /// The values it is about.
    pub pcrs: &'a PcrValues,
    /// The firmware's event log; empty where there is none.
    pub event_log: &'a [u8],
}

/// A quote that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteAppraisal {
    /// The PCR values, now proved.
    pub pcrs: PcrValues,
    /// Clock and counters: the next quote's previous.
    pub clock: ClockInfo,
    /// What changed since the previous quote.
    pub change: ClockChange,
    /// What the event log is worth.
    pub event_log: EventLogFinding,
    /// Digest of the evidence, for records and certificates.
    pub evidence_digest: [u8; 32],
}

/// What happened to a TPM between two quotes. None of it is wrong by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockChange {
    /// The host was started anew.
    pub reset: bool,
    /// The host was resumed.
    pub restarted: bool,
    /// Other TPM firmware than before: the version it had.
    pub firmware_before: Option<u64>,
}

/// What an event log says of the quoted PCRs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventLogFinding {
    /// There is none.
    Absent,
    /// It is in the old form, which says nothing about the sha256 bank.
    Sha1Only,
    /// It accounts for every quoted firmware PCR.
    Consistent {
        /// How many events it has.
        events: usize,
        /// Quoted PCRs it accounts for.
        matching: Vec<u8>,
        /// Later PCRs it does not: the operating system may have extended them.
        other_mismatches: Vec<LogMismatch>,
        /// Departures from the specification that were overlooked.
        oddities: Vec<Oddity>,
    },
}

/// Why a quote is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuoteRefusal {
    /// The attestation does not parse.
    #[error("attestation: {0}")]
    Attest(ParseError),
    /// The signature does not parse.
    #[error("signature: {0}")]
    SignatureForm(ParseError),
    /// The AK did not sign it.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// It is another kind of attestation.
    #[error("not a quote")]
    NotAQuote,
    /// The AK is not a primary of the endorsement hierarchy, whose counters are not obfuscated.
    #[error("signed as {found}; the AK as a primary of the endorsement hierarchy is {expected}")]
    QualifiedSigner {
        /// Qualified name of the AK in the endorsement hierarchy.
        expected: Name,
        /// Qualified name in the attestation.
        found: Name,
    },
    /// It answers another challenge, or another CSR, AK or host.
    #[error("qualifying data is {found}, this challenge wants {expected}")]
    Nonce {
        /// The transcript's digest, hex.
        expected: String,
        /// What was quoted, hex.
        found: String,
    },
    /// It is not about the PCRs that were asked for.
    #[error("quoted are {found:?}, asked for was sha256:{expected}")]
    Selection {
        /// What was asked for, bank sha256.
        expected: PcrSelection,
        /// What was quoted.
        found: Vec<PcrBankSelection>,
    },
    /// The values sent are not those of the PCRs that were quoted.
    #[error("values came for PCRs {found}, asked for was {expected}")]
    Values {
        /// What was asked for.
        expected: PcrSelection,
        /// What values there are for.
        found: PcrSelection,
    },
    /// The values sent are not those that the TPM quoted.
    #[error("the values sent come to {computed}, the TPM quoted {quoted}")]
    PcrDigest {
        /// The digest in the quote, hex.
        quoted: String,
        /// The digest of the values, hex.
        computed: String,
    },
    /// Clock or counters ran backwards.
    #[error(transparent)]
    Clock(#[from] ClockRefusal),
    /// The event log does not parse.
    #[error("event log: {0}")]
    EventLog(#[from] LogError),
    /// The event log cannot be replayed.
    #[error("event log: {0}")]
    Replay(ReplayError),
    /// The event log does not account for firmware's PCRs.
    #[error("event log: {}", .0.iter().map(LogMismatch::to_string).collect::<Vec<_>>().join("; "))]
    EventLogMismatch(Vec<LogMismatch>),
}

impl QuoteRefusal {
    /// One word for machines, and for strangers.
    pub fn code(&self) -> &'static str {
        match self {
            QuoteRefusal::Attest(_) | QuoteRefusal::SignatureForm(_) | QuoteRefusal::NotAQuote => {
                "quote-malformed"
            }
            QuoteRefusal::Signature(_) => "quote-signature",
            QuoteRefusal::QualifiedSigner { .. } => "ak-not-under-endorsement",
            QuoteRefusal::Nonce { .. } => "quote-nonce",
            QuoteRefusal::Selection { .. } | QuoteRefusal::Values { .. } => "quote-pcr-selection",
            QuoteRefusal::PcrDigest { .. } => "quote-pcr-digest",
            QuoteRefusal::Clock(_) => "quote-counters-backwards",
            QuoteRefusal::EventLog(_) | QuoteRefusal::Replay(_) => "event-log-malformed",
            QuoteRefusal::EventLogMismatch(_) => "event-log-mismatch",
        }
    }
}

/// Clock or counters that ran backwards: not this TPM, an old quote, or a TPM that was cleared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockRefusal {
    /// Fewer resets than before.
    #[error(
        "reset count {found} is below {previous}: was the TPM cleared? then the host must be enrolled anew"
    )]
    ResetCount {
        /// Of the previous quote.
        previous: u32,
        /// Of this one.
        found: u32,
    },
    /// Fewer restarts than before since the same reset.
    #[error("restart count {found} is below {previous} since the same reset")]
    RestartCount {
        /// Of the previous quote.
        previous: u32,
        /// Of this one.
        found: u32,
    },
    /// An earlier time than before.
    #[error("clock {found} ms is below {previous} ms")]
    Clock {
        /// Of the previous quote.
        previous: u64,
        /// Of this one.
        found: u64,
    },
}

/// Holds clock and counters against those of the previous quote (Part 1, clause 36; Part 2, clause
/// 10.11.1). A new reset or restart is a change, not an error. Within one boot the clock never falls; over
/// a reset it may only where the TPM says that it is not safe, as after a power cut.
pub fn appraise_clock(previous: &ClockInfo, found: &ClockInfo) -> Result<ClockChange, ClockRefusal> {
    let reset = found.reset_count > previous.reset_count;
    if found.reset_count < previous.reset_count {
        return Err(ClockRefusal::ResetCount { previous: previous.reset_count, found: found.reset_count });
    }
    if !reset && found.restart_count < previous.restart_count {
        return Err(ClockRefusal::RestartCount {
            previous: previous.restart_count,
            found: found.restart_count,
        });
    }
    let same_boot = !reset && found.restart_count == previous.restart_count;
    if found.clock < previous.clock && (same_boot || found.safe) {
        return Err(ClockRefusal::Clock { previous: previous.clock, found: found.clock });
    }
    let other_firmware = previous.firmware_version != found.firmware_version;
    Ok(ClockChange {
        reset,
        restarted: !reset && !same_boot,
        firmware_before: other_firmware.then_some(previous.firmware_version),
    })
}

/// Appraises one quote. First who signed, then whether it answers this challenge, then what it says.
pub(super) fn appraise(
    quote: &Quote<'_>,
    ak: &Public,
    qualifying_data: &[u8; 32],
    wanted: &PcrSelection,
    previous: Option<&ClockInfo>,
) -> Result<QuoteAppraisal, QuoteRefusal> {
    let attest = Attest::parse(quote.attest).map_err(QuoteRefusal::Attest)?;
    let signature = Signature::parse(quote.signature).map_err(QuoteRefusal::SignatureForm)?;
    signature.verify(ak, attest.as_bytes())?;
    check_signer(&attest, ak)?;
    if attest.extra_data != qualifying_data {
        return Err(QuoteRefusal::Nonce {
            expected: hex::encode(qualifying_data),
            found: hex::encode(&attest.extra_data),
        });
    }
    let Attested::Quote { selection, pcr_digest } = &attest.attested else {
        return Err(QuoteRefusal::NotAQuote);
    };
    check_values(selection, pcr_digest, signature.hash, quote.pcrs, wanted)?;
    let change = match previous {
        Some(previous) => appraise_clock(previous, &attest.clock)?,
        None => ClockChange::default(),
    };
    Ok(QuoteAppraisal {
        pcrs: quote.pcrs.clone(),
        clock: attest.clock,
        change,
        event_log: appraise_log(quote.event_log, quote.pcrs)?,
        evidence_digest: evidence_digest(quote, quote.pcrs, ak.name()),
    })
}

/// Only under the endorsement (or platform) hierarchy does an attestation carry true counters and firmware
/// version (Part 3, clause 18.1).
fn check_signer(attest: &Attest, ak: &Public) -> Result<(), QuoteRefusal> {
    let expected = ak.name().qualified_under(RH_ENDORSEMENT);
    if attest.qualified_signer != expected {
        return Err(QuoteRefusal::QualifiedSigner { expected, found: attest.qualified_signer.clone() });
    }
    Ok(())
}

/// The quote is about exactly the PCRs asked for, and the values sent are those it is about. The digest is by
/// the hash of the signing scheme (Part 3, clause 18.4.1).
fn check_values(
    quoted: &[PcrBankSelection],
    digest: &[u8],
    hash: HashAlg,
    values: &PcrValues,
    wanted: &PcrSelection,
) -> Result<(), QuoteRefusal> {
    let as_asked =
        matches!(quoted, [bank] if bank.alg == HashAlg::Sha256.id() && bank.indices == *wanted.indices());
    if !as_asked || wanted.is_empty() {
        return Err(QuoteRefusal::Selection { expected: wanted.clone(), found: quoted.to_vec() });
    }
    if values.selection() != *wanted {
        return Err(QuoteRefusal::Values { expected: wanted.clone(), found: values.selection() });
    }
    let computed = hash.digest(&[&values.concatenated()]);
    if computed != digest {
        return Err(QuoteRefusal::PcrDigest { quoted: hex::encode(digest), computed: hex::encode(computed) });
    }
    Ok(())
}

fn appraise_log(log: &[u8], quoted: &PcrValues) -> Result<EventLogFinding, QuoteRefusal> {
    if log.is_empty() {
        return Ok(EventLogFinding::Absent);
    }
    let log = eventlog::parse(log)?;
    let replayed = match eventlog::replay(&log) {
        Ok(replayed) => replayed,
        Err(ReplayError::Sha1Only) => return Ok(EventLogFinding::Sha1Only),
        Err(other) => return Err(QuoteRefusal::Replay(other)),
    };
    let comparison = eventlog::compare(&replayed, quoted);
    if !comparison.firmware_mismatches.is_empty() {
        return Err(QuoteRefusal::EventLogMismatch(comparison.firmware_mismatches));
    }
    Ok(EventLogFinding::Consistent {
        events: log.events.len(),
        matching: comparison.matching,
        other_mismatches: comparison.other_mismatches,
        oddities: log.oddities,
    })
}
