//! `TPMS_ATTEST`: what a TPM signs about itself (Part 2, clause 10.12).

use std::collections::BTreeSet;

use super::name::{HashAlg, Name};
use super::wire::{ParseError, Reader};

/// Longest `TPMS_ATTEST` read: a quote with SHA-384 names and several banks stays below 300 bytes.
const MAX_ATTEST: usize = 512;
/// `TPM_GENERATED_VALUE`: no restricted key signs data from outside that begins so (Part 2, clause 6.2).
const GENERATED: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE` (Part 2, clause 6.9).
const ST_ATTEST_QUOTE: u16 = 0x8018;
/// `TPM_ST_ATTEST_CERTIFY`
const ST_ATTEST_CERTIFY: u16 = 0x8017;
/// Longest qualifying data: `TPM2B_DATA` holds a `TPMT_HA` (Part 2, clause 10.4.3).
const MAX_EXTRA_DATA: usize = 66;
/// Most banks in a selection; `HASH_COUNT` of the largest implementations.
const MAX_BANKS: u32 = 16;

/// `TPMS_CLOCK_INFO` (Part 2, clause 10.11.1) with the firmware version that stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct ClockInfo {
    /// Milliseconds the TPM has been powered since it was last cleared.
    pub clock: u64,
    /// How often the TPM was reset since it was last cleared.
    pub reset_count: u32,
    /// How often it was resumed or restarted since the last reset.
    pub restart_count: u32,
    /// Whether `clock` is certainly not below a value reported before.
    pub safe: bool,
    /// Vendor's firmware version.
    pub firmware_version: u64,
}

/// One bank of a `TPML_PCR_SELECTION` (Part 2, clause 10.9.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcrBankSelection {
    /// `TPM_ALG_ID` of the bank.
    pub alg: u16,
    /// Indices selected.
    pub indices: BTreeSet<u8>,
}

/// Hashes a bank can have: SHA-1, SHA-256, SHA-384, SHA-512, SM3 and the SHA-3 family (Part 2, clause 6.3).
const BANKS: [u16; 8] = [0x0004, 0x000b, 0x000c, 0x000d, 0x0012, 0x0027, 0x0028, 0x0029];

/// What was attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attested {
    /// TPM2_Quote (`TPMS_QUOTE_INFO`)
    Quote {
        /// Which PCRs, in which banks.
        selection: Vec<PcrBankSelection>,
        /// Digest of their values, by the hash of the signing scheme.
        pcr_digest: Vec<u8>,
    },
    /// TPM2_Certify (`TPMS_CERTIFY_INFO`)
    Certify {
        /// Name of the certified object.
        name: Name,
        /// Its qualified name.
        qualified_name: Name,
    },
}

/// A parsed `TPMS_ATTEST`, with the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attest {
    raw: Vec<u8>,
    /// Qualified name of the key that signed.
    pub qualified_signer: Name,
    /// The caller's qualifying data.
    pub extra_data: Vec<u8>,
    /// Clock, counters and firmware.
    pub clock: ClockInfo,
    /// The statement.
    pub attested: Attested,
}

impl Attest {
    /// Reads a quote or a certification, nothing left over. A wrong magic is an error: then no TPM made it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new("TPMS_ATTEST", bytes, MAX_ATTEST)?;
        let magic = r.u32("magic")?;
        if magic != GENERATED {
            return Err(ParseError::Unsupported { field: "magic", found: magic.into() });
        }
        let kind = r.u16("type")?;
        let qualified_signer = parse_name(&mut r, "qualifiedSigner")?;
        let extra_data = r.sized("extraData", MAX_EXTRA_DATA)?.to_vec();
        let clock = parse_clock(&mut r)?;
        let attested = match kind {
            ST_ATTEST_QUOTE => {
                let selection = parse_selection(&mut r)?;
                let pcr_digest = r.sized("pcrDigest", HashAlg::Sha384.digest_len())?.to_vec();
                Attested::Quote { selection, pcr_digest }
            }
            ST_ATTEST_CERTIFY => Attested::Certify {
                name: parse_name(&mut r, "name")?,
                qualified_name: parse_name(&mut r, "qualifiedName")?,
            },
            other => return Err(ParseError::Unsupported { field: "type", found: other.into() }),
        };
        r.end("TPMS_ATTEST")?;
        Ok(Self { raw: bytes.to_vec(), qualified_signer, extra_data, clock, attested })
    }

    /// The signed bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }
}

fn parse_name(r: &mut Reader<'_>, field: &'static str) -> Result<Name, ParseError> {
    Name::parse(r.sized(field, 2 + HashAlg::Sha384.digest_len())?)
}

fn parse_clock(r: &mut Reader<'_>) -> Result<ClockInfo, ParseError> {
    Ok(ClockInfo {
        clock: r.u64("clock")?,
        reset_count: r.u32("resetCount")?,
        restart_count: r.u32("restartCount")?,
        // TPMI_YES_NO: nothing but 0 and 1 (Part 2, clause 9.2).
        safe: match r.u8("safe")? {
            0 => false,
            1 => true,
            other => return Err(ParseError::Unsupported { field: "safe", found: other.into() }),
        },
        firmware_version: r.u64("firmwareVersion")?,
    })
}

/// `TPML_PCR_SELECTION` (Part 2, clause 10.9.7).
fn parse_selection(r: &mut Reader<'_>) -> Result<Vec<PcrBankSelection>, ParseError> {
    let count = r.u32("pcrSelect.count")?;
    if count > MAX_BANKS {
        return Err(ParseError::TooLong {
            field: "pcrSelect.count",
            found: count as usize,
            max: MAX_BANKS as usize,
        });
    }
    let mut banks = Vec::new();
    for _ in 0..count {
        let alg = r.u16("pcrSelect.hash")?;
        if !BANKS.contains(&alg) {
            return Err(ParseError::Unsupported { field: "pcrSelect.hash", found: alg.into() });
        }
        // PC Client TPMs have 24 PCRs; the reference code admits up to 32.
        let size = usize::from(r.u8("pcrSelect.sizeofSelect")?);
        if size > 4 {
            return Err(ParseError::TooLong { field: "pcrSelect.sizeofSelect", found: size, max: 4 });
        }
        let bitmap = r.take("pcrSelect.pcrSelect", size)?;
        let indices =
            (0..size as u8 * 8).filter(|i| bitmap[usize::from(i / 8)] & (1 << (i % 8)) != 0).collect();
        banks.push(PcrBankSelection { alg, indices });
    }
    Ok(banks)
}
