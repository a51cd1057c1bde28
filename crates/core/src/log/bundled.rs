//! A proof of inclusion that can be kept: [tlog-proof](https://c2sp.org/tlog-proof), the index, the hashes and the
//! signed checkpoint in one text. Whoever has it, the entry and the log's verifier key needs nothing more, ever.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tlog_tiles::Hash;

use super::checkpoint::{Accepts, Checkpoint, CheckpointError, MAX_CHECKPOINT};
use super::leaf_hash;
use super::proof::{ProofError, check_inclusion};

const FIRST: &str = "c2sp.org/tlog-proof@v1";
/// Longest text that is read, in bytes.
const MAX: usize = MAX_CHECKPOINT + 16 * 1024;

/// Why a kept proof shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeptProofError {
    /// Not in the form of tlog-proof.
    #[error("not a proof in the form of c2sp.org/tlog-proof: {0}")]
    Form(&'static str),
    /// Its checkpoint counts for nothing.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log does not have the entry.
    #[error("the log does not have this entry: {0}")]
    Proof(#[from] ProofError),
}

/// Writes a proof and its signed checkpoint as one text.
pub fn write_proof(index: u64, proof: &[Hash], checkpoint: &[u8]) -> Vec<u8> {
    let mut text = format!("{FIRST}\nindex {index}\n");
    for hash in proof {
        text.push_str(&hash.to_string());
        text.push('\n');
    }
    text.push('\n');
    [text.as_bytes(), checkpoint].concat()
}

/// Verifies that the log had this entry when it signed the proof's checkpoint, which `trust` must accept. Gives the
/// entry's index and the checkpoint.
///
/// # Errors
/// The text is none, the checkpoint is not accepted, or the log did not have the entry.
pub fn check_proof(
    text: &[u8],
    entry: &[u8],
    trust: &dyn Accepts,
) -> Result<(u64, Checkpoint), KeptProofError> {
    if text.len() > MAX {
        return Err(KeptProofError::Form("it is too long"));
    }
    let text = std::str::from_utf8(text).map_err(|_| KeptProofError::Form("it is not UTF-8"))?;
    let (head, note) = text.split_once("\n\n").ok_or(KeptProofError::Form("no checkpoint follows"))?;
    let mut lines = head.split('\n').peekable();
    if lines.next() != Some(FIRST) {
        return Err(KeptProofError::Form("its first line is another"));
    }
    // Data for other purposes, which says nothing of the entry.
    lines.next_if(|line| line.starts_with("extra "));
    let index = lines.next().and_then(|line| line.strip_prefix("index "));
    let index = index.and_then(canonical).ok_or(KeptProofError::Form("it names no index"))?;
    let hash = |line| -> Option<Hash> { Some(Hash(BASE64_STANDARD.decode(line).ok()?.try_into().ok()?)) };
    let proof: Option<Vec<Hash>> = lines.map(hash).collect();
    let proof = proof.ok_or(KeptProofError::Form("one of its hashes is none"))?;
    let checkpoint = trust.open(note.as_bytes())?;
    check_inclusion(&checkpoint, index, leaf_hash(entry), &proof)?;
    Ok((index, checkpoint))
}

/// A number as it is written without leading zeros or signs.
fn canonical(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}
