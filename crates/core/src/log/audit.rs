//! Verifying a whole log from what is served: offline, trusting nobody but the log's key for its signature.
//!
//! Every entry is hashed and the tree is built anew; each tile as it is served is held against it, its root
//! against the signed checkpoint, and an earlier checkpoint against the root that the tree had then. A byte that
//! was changed anywhere is named by the tile or entry that it is in.

use tlog_tiles::HASH_SIZE;

use super::checkpoint::{Accepts, Checkpoint, CheckpointError};
use super::entries::BundleError;
use super::served::{read, read_entries, read_tile};
use super::{TILE_WIDTH, TileId, Tree, leaf_hash};

/// What a log serves, by path: `checkpoint`, `tile/…`. The error says why it cannot be read.
pub type Served<'a> = dyn FnMut(&str) -> Result<Vec<u8>, String> + 'a;

/// Is shown each entry with its index; its error ends the audit.
pub type Entries<'a> = dyn FnMut(u64, &[u8]) -> Result<(), String> + 'a;

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// Something that must be served is not.
    #[error("{path}: {why}")]
    Unserved {
        /// Where it should be.
        path: String,
        /// Why it cannot be read.
        why: String,
    },
    /// The checkpoint counts for nothing.
    #[error("checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The log was longer before.
    #[error("rolled back: the log has {now} entries, and had {then} at the earlier checkpoint")]
    RolledBack {
        /// Entries before.
        then: u64,
        /// Entries now.
        now: u64,
    },
    /// The earlier checkpoint is of another history.
    #[error(
        "two histories: the first {size} entries of this log are not those of the earlier checkpoint, and both are signed"
    )]
    Forked {
        /// Entries at the earlier checkpoint.
        size: u64,
    },
    /// A bundle cannot be read.
    #[error("{path}: {why}")]
    Bundle {
        /// Where it is.
        path: String,
        /// What is wrong.
        why: BundleError,
    },
    /// A tile has not as many hashes as it should.
    #[error("{path}: {found} bytes, {expected} were expected")]
    Width {
        /// Where it is.
        path: String,
        /// Bytes it should have.
        expected: usize,
        /// Bytes it has.
        found: usize,
    },
    /// An entry is not the one that the tile has the hash of.
    #[error("entry {index}: what {bundle} holds is not what {tile} says: one of them was changed")]
    Entry {
        /// Its index.
        index: u64,
        /// Where the entry is.
        bundle: String,
        /// Where its hash is.
        tile: String,
    },
    /// A tile above the leaves is not what the tiles below it lead to.
    #[error("{path}: hash {place} is not what the tiles below lead to: it was changed")]
    Tile {
        /// Where it is.
        path: String,
        /// Which of its hashes.
        place: usize,
    },
    /// Entries and tiles agree with each other, and not with the checkpoint.
    #[error(
        "the {size} entries and their tiles agree with each other, but not with the signed checkpoint: they were rewritten"
    )]
    Rewritten {
        /// Entries.
        size: u64,
    },
    /// A tile, and those above it, do not lead to the checkpoint.
    #[error(
        "{path}: with the tiles above, it does not lead to the signed checkpoint: one of them was changed ({why})"
    )]
    Unproven {
        /// Where it is.
        path: String,
        /// What the proof said.
        why: String,
    },
    /// Whoever looked at the entries found something wrong.
    #[error("entry {index}: {why}")]
    Content {
        /// The entry.
        index: u64,
        /// What is wrong.
        why: String,
    },
}

/// Verifies a log as it is served, with a checkpoint that `trust` accepts, and that it goes on from an earlier checkpoint if there is one. Gives the
/// checkpoint that it holds up to.
///
/// # Errors
/// The first thing that is wrong.
pub fn audit(
    served: &mut Served<'_>,
    trust: &dyn Accepts,
    since: Option<&Checkpoint>,
    entries: &mut Entries<'_>,
) -> Result<Checkpoint, AuditError> {
    let note = read(served, "checkpoint")?;
    let checkpoint = trust.open(&note)?;
    let size = checkpoint.size;
    if let Some(then) = since.map(|since| since.size).filter(|then| *then > size) {
        return Err(AuditError::RolledBack { then, now: size });
    }
    let mut auditor = Auditor { served, size, since, tree: Tree::new() };
    auditor.check_since()?;
    for number in 0..size.div_ceil(u64::from(TILE_WIDTH)) {
        auditor.bundle(number, entries)?;
    }
    auditor.edge()?;
    if auditor.tree.root() != checkpoint.root {
        return Err(AuditError::Rewritten { size });
    }
    Ok(checkpoint)
}

struct Auditor<'a, 'b> {
    served: &'a mut Served<'b>,
    size: u64,
    since: Option<&'a Checkpoint>,
    tree: Tree,
}

impl Auditor<'_, '_> {
    fn bundle(&mut self, number: u64, show: &mut Entries<'_>) -> Result<(), AuditError> {
        let (tile_path, tile) = self.tile(TileId { level: 0, number })?;
        let (path, entries) = read_entries(self.served, number, self.size)?;
        for (entry, hash) in entries.iter().zip(tile.chunks_exact(HASH_SIZE)) {
            let (index, leaf) = (self.tree.size(), leaf_hash(entry));
            if leaf.0 != hash {
                return Err(AuditError::Entry { index, bundle: path, tile: tile_path });
            }
            show(index, entry).map_err(|why| AuditError::Content { index, why })?;
            for full in self.tree.append(leaf) {
                if full.id.level > 0 {
                    self.compare(full.id, &full.hashes)?;
                }
            }
            self.check_since()?;
        }
        Ok(())
    }

    /// The tiles above the leaves that are not full.
    fn edge(&mut self) -> Result<(), AuditError> {
        for level in 1..self.tree.levels() {
            if let Some((id, hashes)) = self.tree.partial(level) {
                let hashes = hashes.to_vec();
                self.compare(id, &hashes)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, id: TileId, built: &[u8]) -> Result<(), AuditError> {
        let (path, tile) = self.tile(id)?;
        let mut pairs = tile.chunks_exact(HASH_SIZE).zip(built.chunks_exact(HASH_SIZE));
        match pairs.position(|(served, built)| served != built) {
            Some(place) => Err(AuditError::Tile { path, place }),
            None => Ok(()),
        }
    }

    fn check_since(&self) -> Result<(), AuditError> {
        match self.since {
            Some(since) if since.size == self.tree.size() && since.root != self.tree.root() => {
                Err(AuditError::Forked { size: since.size })
            }
            _ => Ok(()),
        }
    }

    fn tile(&mut self, id: TileId) -> Result<(String, Vec<u8>), AuditError> {
        read_tile(self.served, id, self.size)
    }
}
