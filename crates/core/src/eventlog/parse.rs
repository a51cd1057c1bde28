//! Parsing. The log is little-endian, its sizes are its own, and all of them are bounded here.

use super::{EV_NO_ACTION, Event, EventLog, LogFormat, Oddity};
use crate::pcr::PCR_COUNT;

/// Longest log read, in bytes.
pub const MAX_LOG: usize = 4 * 1024 * 1024;
/// Most events read.
pub const MAX_EVENTS: usize = 16_384;
/// Most banks a header may name.
const MAX_ALGORITHMS: u32 = 8;

const ALG_SHA256: u16 = 0x000b;
/// `TPM_ALG_ID` and digest length of every hash a bank can have.
const DIGEST_SIZES: [(u16, u16); 7] =
    [(0x0004, 20), (ALG_SHA256, 32), (0x000c, 48), (0x000d, 64), (0x0012, 32), (0x0027, 32), (0x0028, 48)];

/// Signature of a `TCG_EfiSpecIDEvent` of the crypto-agile log (PFP clause 10.4.5.1).
const SPEC_ID_03: &[u8; 16] = b"Spec ID Event03\0";
/// Signatures of the older forms, whose events carry SHA-1 digests only.
const SPEC_ID_OLD: [&[u8; 16]; 2] = [b"Spec ID Event00\0", b"Spec ID Event02\0"];

/// Why bytes are not an event log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Longer than any firmware's log.
    #[error("the event log has {len} bytes, at most {MAX_LOG} are read")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// More events than any firmware makes.
    #[error("the event log has more than {MAX_EVENTS} events")]
    TooManyEvents,
    /// It ends inside a field.
    #[error("event {number}: {field}: {wanted} bytes wanted at offset {offset}, {left} left")]
    Truncated {
        /// The event, from 1; the header is 0.
        number: usize,
        /// The field being read.
        field: &'static str,
        /// Where it begins.
        offset: usize,
        /// How many bytes it needs.
        wanted: usize,
        /// How many there are.
        left: usize,
    },
    /// A field with an impossible value.
    #[error("event {number}: {field} is {found:#x}: {rule}")]
    Invalid {
        /// The event, from 1; the header is 0.
        number: usize,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The rule it breaks.
        rule: &'static str,
    },
}

/// Reads a whole log: either form, nothing left over but unused space.
pub fn parse(bytes: &[u8]) -> Result<EventLog<'_>, LogError> {
    if bytes.len() > MAX_LOG {
        return Err(LogError::TooLong { len: bytes.len() });
    }
    let mut cursor = Cursor { input: bytes, at: 0, number: 0 };
    // Both forms open with an event in the old form; its data tells which form the rest has.
    let first = cursor.sha1_event()?;
    let mut log = EventLog { format: LogFormat::Sha1, events: Vec::new(), oddities: Vec::new() };
    let mut algorithms = Vec::new();
    if first.event_type == EV_NO_ACTION && first.data.starts_with(SPEC_ID_03) {
        log.format = LogFormat::CryptoAgile;
        algorithms = parse_spec_id(first.data)?;
    } else if first.event_type != EV_NO_ACTION || !SPEC_ID_OLD.iter().any(|s| first.data.starts_with(*s)) {
        log.oddities.push(Oddity::NoHeader);
        cursor.check_pcr(&first, &mut log.oddities)?;
        log.events.push(first);
    }
    while let Some(rest) = cursor.rest() {
        if rest.iter().all(|b| *b == 0xff) || rest.iter().all(|b| *b == 0) {
            log.oddities.push(Oddity::TrailingFill { bytes: rest.len() });
            break;
        }
        if log.events.len() == MAX_EVENTS {
            return Err(LogError::TooManyEvents);
        }
        cursor.number = log.events.len() + 1;
        let event = match log.format {
            LogFormat::CryptoAgile => cursor.agile_event(&algorithms)?,
            LogFormat::Sha1 => cursor.sha1_event()?,
        };
        cursor.check_pcr(&event, &mut log.oddities)?;
        log.events.push(event);
    }
    Ok(log)
}

/// `TCG_EfiSpecIDEvent` (PFP clause 10.4.5.1): which banks each later event has a digest for.
fn parse_spec_id(data: &[u8]) -> Result<Vec<(u16, u16)>, LogError> {
    let mut r = Cursor { input: data, at: 0, number: 0 };
    // signature, platformClass, specVersionMinor, specVersionMajor, specErrata, uintnSize
    r.take("specIDEvent", 16 + 4 + 4)?;
    let count = r.u32("numberOfAlgorithms")?;
    if count == 0 || count > MAX_ALGORITHMS {
        return Err(r.invalid("numberOfAlgorithms", count.into(), "1 to 8 banks can be named"));
    }
    let mut algorithms: Vec<(u16, u16)> = Vec::new();
    for _ in 0..count {
        let alg = r.u16("algorithmId")?;
        let size = r.u16("digestSize")?;
        if !DIGEST_SIZES.contains(&(alg, size)) {
            return Err(r.invalid("algorithmId", alg.into(), "not a hash with a digest of the stated size"));
        }
        if algorithms.iter().any(|(known, _)| *known == alg) {
            return Err(r.invalid("algorithmId", alg.into(), "the bank is named twice"));
        }
        algorithms.push((alg, size));
    }
    let vendor = usize::from(r.u8("vendorInfoSize")?);
    r.take("vendorInfo", vendor)?;
    match r.rest() {
        None => Ok(algorithms),
        Some(rest) => {
            Err(r.invalid("specIDEvent", rest.len() as u64, "bytes are left over after vendorInfo"))
        }
    }
}

struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    number: usize,
}

impl<'a> Cursor<'a> {
    /// What is left, if anything is.
    fn rest(&self) -> Option<&'a [u8]> {
        self.input.get(self.at..).filter(|rest| !rest.is_empty())
    }

    fn take(&mut self, field: &'static str, wanted: usize) -> Result<&'a [u8], LogError> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let taken = rest.get(..wanted).ok_or(LogError::Truncated {
            number: self.number,
            field,
            offset: self.at,
            wanted,
            left: rest.len(),
        })?;
        self.at += wanted;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], LogError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(field, N)?);
        Ok(out)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, LogError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, LogError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, LogError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    fn invalid(&self, field: &'static str, found: u64, rule: &'static str) -> LogError {
        LogError::Invalid { number: self.number, field, found, rule }
    }

    fn event_data(&mut self) -> Result<&'a [u8], LogError> {
        let size = self.u32("eventSize")?;
        self.take("event", size as usize)
    }

    /// `TCG_PCClientPCREvent` (PFP clause 10.2.1).
    fn sha1_event(&mut self) -> Result<Event<'a>, LogError> {
        let pcr = self.u32("pcrIndex")?;
        let event_type = self.u32("eventType")?;
        self.take("digest", 20)?;
        let data = self.event_data()?;
        Ok(Event { pcr, event_type, sha256: None, data })
    }

    /// `TCG_PCR_EVENT2` (PFP clause 10.2.2): at most one digest for each bank the header names.
    fn agile_event(&mut self, algorithms: &[(u16, u16)]) -> Result<Event<'a>, LogError> {
        let pcr = self.u32("pcrIndex")?;
        let event_type = self.u32("eventType")?;
        let count = self.u32("digests.count")?;
        if count as usize > algorithms.len() {
            return Err(self.invalid("digests.count", count.into(), "more digests than banks in the header"));
        }
        let mut sha256 = None;
        let mut seen = Vec::new();
        for _ in 0..count {
            let alg = self.u16("digests.hashAlg")?;
            let Some((_, size)) = algorithms.iter().find(|(known, _)| *known == alg) else {
                return Err(self.invalid("digests.hashAlg", alg.into(), "a bank the header does not name"));
            };
            if seen.contains(&alg) {
                return Err(self.invalid("digests.hashAlg", alg.into(), "two digests for one bank"));
            }
            seen.push(alg);
            let digest = self.take("digests.digest", usize::from(*size))?;
            if alg == ALG_SHA256 {
                sha256 = digest.try_into().ok();
            }
        }
        let data = self.event_data()?;
        Ok(Event { pcr, event_type, sha256, data })
    }

    /// An extended event names a PCR that exists.
    fn check_pcr(&self, event: &Event<'_>, oddities: &mut Vec<Oddity>) -> Result<(), LogError> {
        if event.pcr < u32::from(PCR_COUNT) {
            return Ok(());
        }
        if event.event_type == EV_NO_ACTION {
            oddities.push(Oddity::InformativeOutsidePcrs { pcr: event.pcr });
            return Ok(());
        }
        Err(self.invalid("pcrIndex", event.pcr.into(), "a TPM has PCRs 0 to 23"))
    }
}
