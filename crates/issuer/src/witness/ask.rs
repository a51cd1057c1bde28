//! One witness is asked for its cosignature (c2sp.org/tlog-witness, "add-checkpoint").

use std::time::Duration;

use hallmark_core::log::{
    AnswerError, Checkpoint, Hash, ProofError, Tiles, add_checkpoint, consistency_tiles, prove_growth,
    read_size,
};
use http::StatusCode;
use hyper::body::Bytes;

use super::client::{Client, ClientError};
use crate::metrics::WitnessAnswer;
use crate::store::{Store, StoreError};

/// How often one asking begins anew because the witness is elsewhere than was thought.
const TURNS: usize = 3;

/// Why there is no cosignature.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Two histories, or a store that was put back.
    #[error(
        "it has cosigned {at} entries of this log that are not those of the {size} in this store: two histories were signed with this log's key. Keep store and files as they are; they are evidence"
    )]
    Fork { at: u64, size: u64 },
    #[error(
        "it has cosigned {at} entries of this log, and this store has {size}: an older copy of the store was put back, or somebody else signs with this log's key"
    )]
    Ahead { at: u64, size: u64 },
    #[error("it does not know this log: give its operator the log's key (hallmark log key)")]
    Unknown,
    #[error("it knows this log's name with another key: give its operator the log's key (hallmark log key)")]
    Key,
    #[error("it refuses with {0}")]
    Refused(StatusCode),
    #[error("it answers {status} and points to {to:?}: give that address if it is the right one")]
    Redirect { status: StatusCode, to: String },
    #[error("{0}")]
    Answer(#[from] AnswerError),
    #[error("it says 409, and not where it is")]
    NoSize,
    #[error("it names another size each time that it is asked")]
    Restless,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("it did not answer within {}", humantime::format_duration(*.0))]
    Slow(Duration),
    #[error("our own log: {0}")]
    Store(#[from] StoreError),
    #[error("our own log: {0}")]
    Proof(#[from] ProofError),
}

impl AskError {
    pub(super) fn counted(&self) -> WitnessAnswer {
        match self {
            Self::Fork { .. } | Self::Ahead { .. } => WitnessAnswer::Fork,
            Self::Unknown | Self::Key | Self::Refused(_) => WitnessAnswer::Refused,
            Self::Redirect { .. } | Self::Answer(_) | Self::NoSize | Self::Restless => {
                WitnessAnswer::Malformed
            }
            Self::Client(ClientError::Body(_)) => WitnessAnswer::Malformed,
            Self::Client(_) | Self::Slow(_) | Self::Store(_) | Self::Proof(_) => WitnessAnswer::Away,
        }
    }
}

/// Asks for a cosignature of this checkpoint, from the size that the witness is thought to be at. Gives its answer,
/// which is not verified yet.
pub(super) async fn ask(
    client: &mut Client,
    store: &Store,
    checkpoint: Checkpoint,
    note: &[u8],
    known: u64,
) -> Result<Vec<u8>, AskError> {
    let size = checkpoint.size;
    // It cannot be further than what is submitted; if it says so itself, that is another matter.
    let mut old = known.min(size);
    for _ in 0..TURNS {
        let proof = prove(store, &checkpoint, old).await?;
        let body = Bytes::from(add_checkpoint(old, &proof, note));
        let answer = client.post(&body).await?;
        match answer.status {
            StatusCode::OK => return Ok(answer.body),
            StatusCode::CONFLICT => match read_size(&answer.body) {
                // The same size, and another root.
                Some(at) if at == old && at == size => return Err(AskError::Fork { at, size }),
                Some(at) if at == old => return Err(AskError::Restless),
                Some(at) if at > size => return Err(AskError::Ahead { at, size }),
                Some(at) => old = at,
                // The specification has a size for a size that does not match; not for roots that do not.
                None if old == size => return Err(AskError::Fork { at: old, size }),
                None => return Err(AskError::NoSize),
            },
            // The proof is right, by our own tree: what the witness has is of another.
            StatusCode::UNPROCESSABLE_ENTITY => return Err(AskError::Fork { at: old, size }),
            StatusCode::NOT_FOUND => return Err(AskError::Unknown),
            StatusCode::FORBIDDEN => return Err(AskError::Key),
            status if status.is_redirection() => {
                return Err(AskError::Redirect { status, to: answer.location.unwrap_or_default() });
            }
            status => return Err(AskError::Refused(status)),
        }
    }
    Err(AskError::Restless)
}

/// Proves that the first `old` entries of the log are the beginning of this checkpoint's.
async fn prove(store: &Store, checkpoint: &Checkpoint, old: u64) -> Result<Vec<Hash>, AskError> {
    if old == 0 || old == checkpoint.size {
        return Ok(Vec::new());
    }
    let mut tiles = Tiles::new();
    for id in consistency_tiles(checkpoint.size, old)? {
        tiles.insert(id, store.log_tile(id, checkpoint.size).await?);
    }
    Ok(prove_growth(checkpoint, old, &tiles)?)
}
