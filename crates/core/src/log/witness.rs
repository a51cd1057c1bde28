//! Witnesses: others who watch that a log goes on from what it had, and cosign its checkpoints.
//!
//! A witness cosigns a checkpoint only if it goes on from the last one that it cosigned for this log
//! ([tlog-witness](https://c2sp.org/tlog-witness)). Two histories cannot both have the cosignatures of one honest
//! witness; whoever demands a quorum sees the one history that its members saw, without asking them.
//!
//! **In scope:** `cosignature/v1` of [tlog-cosignature](https://c2sp.org/tlog-cosignature) (Ed25519, signature type
//! 4), and the quorum that [tlog-policy](https://c2sp.org/tlog-policy) writes `group k of n`. **Not in scope:** signature
//! type 6 (ML-DSA-44), groups of groups.

use std::fmt;
use std::str::FromStr;

use signed_note::{Note, Signature, Verifier};
use tlog_tiles::Hash;

use super::checkpoint::{Accepts, Checkpoint, CheckpointError, open_note};
use super::key::{ALG_COSIGNATURE, LogName, LogVerifier, VerifierError, id, is_signed, parse, write};

/// Longest answer of a witness that is read, in bytes.
pub const MAX_ANSWER: usize = 16 * 1024;
/// Most witnesses in a quorum's list (tlog-policy, "Implementation limits").
pub const MAX_WITNESSES: usize = 32;

/// What a witness's cosignatures are verified with. Its text is a verifier key of signature type 4:
/// `witness.example.org/w1+c74f20a3+BFpc2QcU…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessVerifier {
    name: LogName,
    id: u32,
    key: [u8; 32],
}

impl WitnessVerifier {
    /// Of a name and a public key (RFC 8032).
    pub fn new(name: LogName, key: [u8; 32]) -> Self {
        Self { id: id(&name, ALG_COSIGNATURE, &key), name, key }
    }

    /// The witness's name.
    pub fn name(&self) -> &LogName {
        &self.name
    }

    /// Whether this signature claims to be its own.
    fn claims(&self, signature: &Signature) -> bool {
        (signature.name(), signature.id()) == (self.name.as_str(), self.id)
    }

    /// Verifies that this is its cosignature of a checkpoint's text.
    fn cosignature(&self, text: &[u8], signature: &Signature) -> Option<Cosignature> {
        let (at, _) = timestamped(signature.signature())?;
        let witness = self.name.clone();
        self.verify(text, signature.signature()).then(|| Cosignature {
            witness,
            at,
            signature: signature.clone(),
        })
    }
}

impl Verifier for WitnessVerifier {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    /// tlog-cosignature, "Ed25519 signed message".
    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let Some((at, signature)) = timestamped(signature) else { return false };
        let message = [format!("cosignature/v1\ntime {at}\n").as_bytes(), text].concat();
        is_signed(&self.key, &message, signature)
    }
}

/// The structure `timestamped_signature`: the time, which does not exceed 2^63 - 1, and the signature.
fn timestamped(signature: &[u8]) -> Option<(u64, &[u8])> {
    let (at, signature) = signature.split_first_chunk()?;
    let at = u64::from_be_bytes(*at);
    (i64::try_from(at).is_ok() && signature.len() == 64).then_some((at, signature))
}

impl fmt::Display for WitnessVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, &self.name, ALG_COSIGNATURE, &self.key)
    }
}

impl FromStr for WitnessVerifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        let (name, key) = parse(text, ALG_COSIGNATURE)?;
        Ok(Self::new(name, key))
    }
}

/// How many of which witnesses must have cosigned a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quorum {
    witnesses: Vec<WitnessVerifier>,
    needed: usize,
}

/// Why a quorum is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuorumError {
    /// More than there are, or none of them.
    #[error("a quorum of {needed} is not possible: {listed} witnesses are listed, and at least 1 is needed")]
    Size {
        /// How many it needs.
        needed: usize,
        /// How many there are.
        listed: usize,
    },
    /// Too many.
    #[error("{listed} witnesses are listed, more than {MAX_WITNESSES}")]
    TooMany {
        /// How many there are.
        listed: usize,
    },
    /// One key stands twice: its owner would count twice.
    #[error("the witnesses {one} and {other} have the same key: each counts once")]
    Duplicate {
        /// The name of the first.
        one: LogName,
        /// That of the second.
        other: LogName,
    },
}

impl Quorum {
    /// That of a policy that demands no witnesses.
    pub fn none() -> Self {
        Self::default()
    }

    /// So many of these.
    ///
    /// # Errors
    /// It can never be reached, is always, or counts a key twice.
    pub fn new(witnesses: Vec<WitnessVerifier>, needed: usize) -> Result<Self, QuorumError> {
        let listed = witnesses.len();
        if listed > MAX_WITNESSES {
            return Err(QuorumError::TooMany { listed });
        }
        if needed == 0 || needed > listed {
            return Err(QuorumError::Size { needed, listed });
        }
        // tlog-policy, "Public key representation": the same key under another name is the same witness.
        for (at, other) in witnesses.iter().enumerate() {
            if let Some(one) = witnesses[..at].iter().find(|one| one.key == other.key) {
                return Err(QuorumError::Duplicate { one: one.name.clone(), other: other.name.clone() });
            }
        }
        Ok(Self { witnesses, needed })
    }

    /// The witnesses.
    pub fn witnesses(&self) -> &[WitnessVerifier] {
        &self.witnesses
    }

    /// How many of them.
    pub fn needed(&self) -> usize {
        self.needed
    }
}

/// One witness's word on a checkpoint, verified: only this module makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct Cosignature {
    witness: LogName,
    at: u64,
    signature: Signature,
}

impl Cosignature {
    /// Whose it is.
    pub fn witness(&self) -> &LogName {
        &self.witness
    }

    /// When the witness made it by its own clock, in seconds since 1970.
    pub fn at(&self) -> u64 {
        self.at
    }
}

/// A checkpoint that the log signed, and the cosignatures on it that are known to be their witnesses'.
#[derive(Debug)]
pub struct Cosigned {
    checkpoint: Checkpoint,
    text: Vec<u8>,
    own: Signature,
    cosignatures: Vec<Cosignature>,
}

/// Proof that a checkpoint has its quorum. Only [`Cosigned::reaches`] makes one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Witnessed(Checkpoint);

impl Witnessed {
    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.0
    }
}

impl Cosigned {
    /// Reads a signed checkpoint, verifies the log's signature and the cosignatures of these witnesses, and passes over
    /// all others. Several of one witness are one.
    ///
    /// # Errors
    /// As [`open_checkpoint`](super::open_checkpoint), or one that claims to be of these witnesses is none (signed-note:
    /// the whole note is then rejected).
    pub fn open(
        signed: &[u8],
        log: &LogVerifier,
        witnesses: &[WitnessVerifier],
    ) -> Result<Self, CheckpointError> {
        let (note, own, checkpoint) = open_note(signed, log)?;
        let mut cosigned = Self { checkpoint, text: note.text().to_vec(), own, cosignatures: Vec::new() };
        for signature in signatures(signed) {
            let Some(witness) = witnesses.iter().find(|witness| witness.claims(&signature)) else { continue };
            let verified = witness.cosignature(&cosigned.text, &signature);
            let false_one = || CheckpointError::FalseCosignature { witness: witness.name.to_string() };
            cosigned.keep(verified.ok_or_else(false_one)?);
        }
        Ok(cosigned)
    }

    /// Takes the witness's cosignature out of its answer to add-checkpoint. The lines of others are passed over.
    ///
    /// # Errors
    /// It is no answer, or holds no cosignature of this witness on this checkpoint.
    pub fn take(&mut self, witness: &WitnessVerifier, answer: &[u8]) -> Result<&Cosignature, AnswerError> {
        if answer.len() > MAX_ANSWER {
            return Err(AnswerError::TooLong);
        }
        // tlog-witness, "add-checkpoint": the lines are those of a note.
        let note = [&self.text, b"\n".as_slice(), answer].concat();
        Note::from_bytes(&note).map_err(|_| AnswerError::Form)?;
        let signature = signatures(&note).into_iter().find(|signature| witness.claims(signature));
        let signature = signature.ok_or(AnswerError::Absent)?;
        let verified = witness.cosignature(&self.text, &signature).ok_or(AnswerError::False)?;
        Ok(self.keep(verified))
    }

    /// Each witness has one: the latest.
    fn keep(&mut self, new: Cosignature) -> &Cosignature {
        let same = |old: &Cosignature| {
            (old.signature.name(), old.signature.id()) == (new.signature.name(), new.signature.id())
        };
        let at = match self.cosignatures.iter().position(same) {
            Some(at) if self.cosignatures[at].at >= new.at => at,
            Some(at) => {
                self.cosignatures[at] = new;
                at
            }
            None => {
                self.cosignatures.push(new);
                self.cosignatures.len() - 1
            }
        };
        &self.cosignatures[at]
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What its witnesses said.
    pub fn cosignatures(&self) -> &[Cosignature] {
        &self.cosignatures
    }

    /// This witness's.
    pub fn of(&self, witness: &WitnessVerifier) -> Option<&Cosignature> {
        self.cosignatures.iter().find(|cosignature| witness.claims(&cosignature.signature))
    }

    /// The note as it is served: the log's signature, then the witnesses'.
    pub fn note(&self) -> Vec<u8> {
        let mut note = [&self.text, b"\n".as_slice(), &self.own.to_bytes()].concat();
        for cosignature in &self.cosignatures {
            note.extend_from_slice(&cosignature.signature.to_bytes());
        }
        note
    }

    /// Whether enough of the quorum's witnesses have cosigned it.
    ///
    /// # Errors
    /// Too few have.
    pub fn reaches(&self, quorum: &Quorum) -> Result<Witnessed, CheckpointError> {
        let missing: Vec<_> = quorum.witnesses.iter().filter(|witness| self.of(witness).is_none()).collect();
        let found = quorum.witnesses.len() - missing.len();
        if found < quorum.needed {
            return Err(CheckpointError::Quorum {
                size: self.checkpoint.size,
                needed: quorum.needed,
                found,
                missing: missing.iter().map(|witness| witness.name.to_string()).collect(),
            });
        }
        Ok(Witnessed(self.checkpoint))
    }
}

/// The signatures of a note that was parsed before.
fn signatures(note: &[u8]) -> Vec<Signature> {
    let note = std::str::from_utf8(note).unwrap_or_default();
    let lines = note.rsplit_once("\n\n").map_or("", |(_, lines)| lines).lines();
    lines.filter_map(|line| Signature::from_bytes(line.as_bytes()).ok()).collect()
}

/// Whose checkpoints count: those of a log that a quorum of witnesses has cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The log's key.
    pub log: LogVerifier,
    /// The witnesses.
    pub quorum: Quorum,
}

impl Accepts for Trust {
    fn open(&self, signed: &[u8]) -> Result<Checkpoint, CheckpointError> {
        let cosigned = Cosigned::open(signed, &self.log, self.quorum.witnesses())?;
        cosigned.reaches(&self.quorum).map(|witnessed| witnessed.0)
    }
}

/// Why a witness's answer is no cosignature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Longer than any that is read.
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLong,
    /// Not lines of signatures.
    #[error("the answer is not lines of signatures (c2sp.org/tlog-witness)")]
    Form,
    /// None is of this witness's key.
    #[error("no signature in the answer is of the witness's key")]
    Absent,
    /// It is of another checkpoint, or forged.
    #[error("the cosignature in the answer does not verify for this checkpoint")]
    False,
}

/// The body of an add-checkpoint request: the proof that the checkpoint goes on from `old` entries, and the note.
pub fn add_checkpoint(old: u64, proof: &[Hash], note: &[u8]) -> Vec<u8> {
    let mut head = format!("old {old}\n");
    for hash in proof {
        head.push_str(&hash.to_string());
        head.push('\n');
    }
    head.push('\n');
    [head.as_bytes(), note].concat()
}

/// The size in the answer to an add-checkpoint request whose `old` was another: decimal, and a newline.
pub fn read_size(answer: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(answer).ok()?.strip_suffix('\n')?;
    digits.parse().ok().filter(|size: &u64| size.to_string() == digits)
}
