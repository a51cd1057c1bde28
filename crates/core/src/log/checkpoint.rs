//! Checkpoints: how many entries a log has and the root hash of its tree, signed.

use signed_note::{Note, NoteError, Signature, VerifierList};
use tlog_tiles::Hash;

use super::key::{LogKey, LogKeyError, LogVerifier};

/// Longest signed checkpoint that is read, in bytes: room for a hundred cosignatures.
pub const MAX_CHECKPOINT: usize = 32 * 1024;

/// What a log had at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checkpoint {
    /// Entries.
    pub size: u64,
    /// The root hash of their tree.
    pub root: Hash,
}

/// Why a checkpoint counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Longer than any that is read.
    #[error("the checkpoint has {found} bytes, more than {MAX_CHECKPOINT}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// Not a signed note.
    #[error("the checkpoint is not a signed note (c2sp.org/signed-note): {why}")]
    Note {
        /// What the parser said.
        why: String,
    },
    /// The log's key has not signed it.
    #[error("the checkpoint is not signed by {name}+{id:08x}")]
    Unsigned {
        /// The log's name.
        name: String,
        /// The key's id.
        id: u32,
    },
    /// A signature that claims to be the log's is none.
    #[error("the checkpoint's signature by {name} is false")]
    Forged {
        /// The log's name.
        name: String,
    },
    /// Its text is no checkpoint.
    #[error("the note is signed, but its text is no checkpoint (c2sp.org/tlog-checkpoint)")]
    Text,
    /// A cosignature that claims to be a witness's is none.
    #[error("the checkpoint's cosignature by the witness {witness} is false")]
    FalseCosignature {
        /// The witness's name.
        witness: String,
    },
    /// Too few of the witnesses have cosigned it.
    #[error(
        "the checkpoint of {size} entries lacks its quorum: {found} of the {needed} witnesses needed have cosigned it; not {}",
        missing.join(", ")
    )]
    Quorum {
        /// Entries at the checkpoint.
        size: u64,
        /// How many must have.
        needed: usize,
        /// How many have.
        found: usize,
        /// Names of those that have not.
        missing: Vec<String>,
    },
    /// It is another log's.
    #[error("the checkpoint is of the log {found:?}, not of {expected:?}")]
    Origin {
        /// The log that it should be of.
        expected: String,
        /// The log that it is of, cut to 255 characters.
        found: String,
    },
}

/// Signs a checkpoint: the note as it is served.
///
/// # Errors
/// The key cannot sign, or is not the verifier's.
pub fn sign_checkpoint(
    verifier: &LogVerifier,
    key: &dyn LogKey,
    checkpoint: &Checkpoint,
) -> Result<Vec<u8>, LogKeyError> {
    let bug = |what: &dyn std::fmt::Display| LogKeyError(format!("our own checkpoint is malformed: {what}"));
    let name = verifier.name().as_str();
    let text = tlog_tiles::Checkpoint::new(name, checkpoint.size, checkpoint.root, "")
        .map_err(|e| bug(&e))?
        .to_bytes();
    if !verifier.is_of(&key.public()) {
        return Err(LogKeyError("it is another key than the log's".to_owned()));
    }
    let signature = key.sign(&text)?;
    let signature = Signature::new(name.to_owned(), verifier.id(), signature).map_err(|e| bug(&e))?;
    Ok(Note::new(&text, &[signature]).map_err(|e| bug(&e))?.to_bytes())
}

/// What decides whether a signed checkpoint counts: a log's key alone, or that and a quorum of witnesses
/// ([`Trust`](super::Trust)).
pub trait Accepts {
    /// Reads a signed checkpoint and verifies what it must carry.
    ///
    /// # Errors
    /// It counts for nothing.
    fn open(&self, signed: &[u8]) -> Result<Checkpoint, CheckpointError>;
}

impl Accepts for LogVerifier {
    fn open(&self, signed: &[u8]) -> Result<Checkpoint, CheckpointError> {
        open_checkpoint(signed, self)
    }
}

/// Reads a signed checkpoint and verifies the log's signature. Others, as of witnesses, are not looked at.
///
/// # Errors
/// It is malformed, not signed by this log, or of another.
pub fn open_checkpoint(signed: &[u8], verifier: &LogVerifier) -> Result<Checkpoint, CheckpointError> {
    open_note(signed, verifier).map(|(_, _, checkpoint)| checkpoint)
}

/// As [`open_checkpoint`]; also the note, and the log's own signature on it.
pub(super) fn open_note(
    signed: &[u8],
    verifier: &LogVerifier,
) -> Result<(Note, Signature, Checkpoint), CheckpointError> {
    if signed.len() > MAX_CHECKPOINT {
        return Err(CheckpointError::TooLong { found: signed.len() });
    }
    let note = Note::from_bytes(signed).map_err(|e| CheckpointError::Note { why: e.to_string() })?;
    let name = || verifier.name().to_string();
    let unsigned = || CheckpointError::Unsigned { name: name(), id: verifier.id() };
    let verified = note.verify(&VerifierList::new(vec![Box::new(verifier.clone())]));
    let (own, _) = verified.map_err(|e| match e {
        NoteError::UnverifiedNote => unsigned(),
        NoteError::InvalidSignature { .. } => CheckpointError::Forged { name: name() },
        other => CheckpointError::Note { why: other.to_string() },
    })?;
    let own = own.into_iter().next().ok_or_else(unsigned)?;
    let checkpoint = tlog_tiles::Checkpoint::from_bytes(note.text()).map_err(|_| CheckpointError::Text)?;
    if checkpoint.origin() != verifier.name().as_str() {
        let found = checkpoint.origin().chars().take(255).collect();
        return Err(CheckpointError::Origin { expected: name(), found });
    }
    let checkpoint = Checkpoint { size: checkpoint.size(), root: *checkpoint.hash() };
    Ok((note, own, checkpoint))
}
