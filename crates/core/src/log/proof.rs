//! Proofs: that an entry is in a tree, and that a tree is the beginning of another.

use std::cell::RefCell;
use std::collections::HashMap;

use tlog_tiles::{HASH_SIZE, Hash, HashReader, Tile};

use super::{Checkpoint, TILE_HEIGHT, TILE_WIDTH, TileId};

/// Tiles by where they are, each at least as wide as it is in the tree in question.
pub type Tiles = HashMap<TileId, Vec<u8>>;

/// Most hashes in a proof: a tree has at most 64 levels, and a proof one hash for each and one more.
const MAX_PROOF: usize = 65;

/// Why a proof cannot be made, or does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The tree has no such entry.
    #[error("entry {index} is not in a tree of {size} entries")]
    NotInTree {
        /// Index of the entry.
        index: u64,
        /// Entries in the tree.
        size: u64,
    },
    /// The older tree is empty or larger than the newer.
    #[error("a tree of {new} entries cannot follow one of {old}")]
    Sizes {
        /// Entries in the older tree.
        old: u64,
        /// Entries in the newer.
        new: u64,
    },
    /// A tile is missing or too short.
    #[error("tile {level}/{number} is missing or has too few hashes")]
    Tile {
        /// Its level.
        level: u8,
        /// Its number.
        number: u64,
    },
    /// What the tiles say is not what the checkpoint says.
    #[error("the tiles do not lead to the checkpoint's root hash")]
    Tampered,
    /// The proof has more hashes than any proof can have.
    #[error("the proof has {found} hashes, more than {MAX_PROOF}")]
    TooLong {
        /// How many.
        found: usize,
    },
    /// The proof leads elsewhere.
    #[error("the proof does not lead to the root hash")]
    Wrong,
}

/// The tiles from which inclusion in a tree of `size` entries can be proven.
///
/// # Errors
/// There is no such entry in it.
pub fn inclusion_tiles(size: u64, index: u64) -> Result<Vec<TileId>, ProofError> {
    in_tree(size, index)?;
    Ok(Recorder::run(|reader| drop(tlog_tiles::prove_record(size, index, reader))))
}

/// Proves that the checkpoint's tree has this leaf hash at this index. The proof is checked: what comes out is
/// right, or nothing does.
///
/// # Errors
/// There is no such entry, a tile is missing, or what they say is not what the checkpoint says.
pub fn prove_inclusion(
    checkpoint: &Checkpoint,
    index: u64,
    leaf: Hash,
    tiles: &Tiles,
) -> Result<Vec<Hash>, ProofError> {
    in_tree(checkpoint.size, index)?;
    let given = Given { tiles, missing: RefCell::default() };
    let proof = tlog_tiles::prove_record(checkpoint.size, index, &given).map_err(|_| given.why())?;
    check_inclusion(checkpoint, index, leaf, &proof).map_err(|_| ProofError::Tampered)?;
    Ok(proof)
}

/// Whether `proof` shows that the checkpoint's tree has this leaf hash at this index.
///
/// # Errors
/// It does not.
pub fn check_inclusion(
    checkpoint: &Checkpoint,
    index: u64,
    leaf: Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    in_tree(checkpoint.size, index)?;
    let proof = bounded(proof)?;
    tlog_tiles::check_record(&proof, checkpoint.size, checkpoint.root, index, leaf)
        .map_err(|_| ProofError::Wrong)
}

/// What tiles say that the root hash of the first `size` entries is. It is proven by nothing yet.
pub(super) fn root_of_first(size: u64, tiles: &Tiles) -> Result<Hash, ProofError> {
    let given = Given { tiles, missing: RefCell::default() };
    tlog_tiles::tree_hash(size, &given).map_err(|_| given.why())
}

/// The tiles from which it can be proven that a tree of `old` entries is the beginning of one of `new`.
///
/// # Errors
/// The sizes allow none.
pub fn consistency_tiles(new: u64, old: u64) -> Result<Vec<TileId>, ProofError> {
    in_order(old, new)?;
    Ok(Recorder::run(|reader| {
        drop(tlog_tiles::prove_tree(new, old, reader));
        // And what the older tree's root hash is made of.
        drop(tlog_tiles::tree_hash(old, reader));
    }))
}

/// Proves that the older checkpoint's tree is the beginning of the newer's. The proof is checked: what comes
/// out is right, or nothing does.
///
/// # Errors
/// The sizes allow none, a tile is missing, or what they say is not what the checkpoints say.
pub fn prove_consistency(new: &Checkpoint, old: &Checkpoint, tiles: &Tiles) -> Result<Vec<Hash>, ProofError> {
    in_order(old.size, new.size)?;
    let given = Given { tiles, missing: RefCell::default() };
    let proof = tlog_tiles::prove_tree(new.size, old.size, &given).map_err(|_| given.why())?;
    check_consistency(new, old, &proof).map_err(|_| ProofError::Tampered)?;
    Ok(proof)
}

/// As [`prove_consistency`] with a checkpoint of which only its size is known: proves the first `old` entries of the
/// newer checkpoint's tree, whatever their root hash is.
///
/// # Errors
/// As [`prove_consistency`].
pub fn prove_growth(new: &Checkpoint, old: u64, tiles: &Tiles) -> Result<Vec<Hash>, ProofError> {
    in_order(old, new.size)?;
    if old == new.size {
        return Ok(Vec::new());
    }
    prove_consistency(new, &Checkpoint { size: old, root: root_of_first(old, tiles)? }, tiles)
}

/// Whether `proof` shows that the older checkpoint's tree is the beginning of the newer's.
///
/// # Errors
/// It does not.
pub fn check_consistency(new: &Checkpoint, old: &Checkpoint, proof: &[Hash]) -> Result<(), ProofError> {
    in_order(old.size, new.size)?;
    let proof = bounded(proof)?;
    tlog_tiles::check_tree(&proof, new.size, new.root, old.size, old.root).map_err(|_| ProofError::Wrong)
}

fn in_tree(size: u64, index: u64) -> Result<(), ProofError> {
    if index < size { Ok(()) } else { Err(ProofError::NotInTree { index, size }) }
}

fn in_order(old: u64, new: u64) -> Result<(), ProofError> {
    if (1..=new).contains(&old) { Ok(()) } else { Err(ProofError::Sizes { old, new }) }
}

fn bounded(proof: &[Hash]) -> Result<Vec<Hash>, ProofError> {
    if proof.len() > MAX_PROOF {
        return Err(ProofError::TooLong { found: proof.len() });
    }
    Ok(proof.to_vec())
}

/// The tile that holds a hash of the tree, by the library's count of hashes.
fn holder(index: u64) -> TileId {
    let tile = Tile::from_index(TILE_HEIGHT, index);
    TileId { level: tile.level(), number: tile.level_index() }
}

/// Notes which tiles are asked for, and has none.
#[derive(Default)]
struct Recorder(RefCell<Vec<TileId>>);

impl Recorder {
    fn run(prove: impl FnOnce(&Self)) -> Vec<TileId> {
        let recorder = Self::default();
        prove(&recorder);
        let mut asked = recorder.0.into_inner();
        asked.sort_unstable();
        asked.dedup();
        asked
    }
}

impl HashReader for Recorder {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        self.0.borrow_mut().extend(indexes.iter().map(|index| holder(*index)));
        Err(tlog_tiles::Error::IndexesNotInTree)
    }
}

/// Reads from the tiles given, and trusts them: the library's own reader is meant to hold them against the root
/// hash, but (in 0.2.0; the original in Go no longer) passes over full tiles where one tile holds several of the root's
/// parts. So each proof is checked when it is made.
struct Given<'a> {
    tiles: &'a Tiles,
    missing: RefCell<Option<TileId>>,
}

impl Given<'_> {
    fn why(&self) -> ProofError {
        match self.missing.take() {
            Some(TileId { level, number }) => ProofError::Tile { level, number },
            None => ProofError::Tampered,
        }
    }

    fn read(&self, index: u64) -> Option<Hash> {
        let id = holder(index);
        let hashes = self.tiles.get(&id)?;
        let width = (hashes.len() / HASH_SIZE).min(usize::from(TILE_WIDTH));
        let width = u32::try_from(width).ok().filter(|width| *width > 0)?;
        Tile::new(TILE_HEIGHT, id.level, id.number, width, false).hash_at_index(hashes, index).ok()
    }
}

impl HashReader for Given<'_> {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let read = |index: &u64| {
            self.read(*index).ok_or_else(|| {
                self.missing.replace(Some(holder(*index)));
                tlog_tiles::Error::InvalidTile
            })
        };
        indexes.iter().map(read).collect()
    }
}
