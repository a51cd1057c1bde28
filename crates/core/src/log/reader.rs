//! Reading parts of a log, each held against its signed checkpoint: what comes out stands in the log.
//!
//! A bundle is held against its tile of leaf hashes, and that tile against the checkpoint by one proof of inclusion
//! of its first leaf. One proof is enough: its way from the leaf to the root passes all of the tile, so that each of
//! the tile's other hashes is within a hash that the proof takes from it, and SHA-256 lets none of them be another.
//! The tiles above are read for the proof alone and believed for nothing.

use std::collections::BTreeMap;

use tlog_tiles::{HASH_SIZE, Hash};

use super::audit::{AuditError, Served};
use super::checkpoint::{Accepts, Checkpoint};
use super::proof::{
    Tiles, consistency_tiles, inclusion_tiles, prove_consistency, prove_inclusion, root_of_first,
};
use super::served::{read, read_entries, read_tile};
use super::{TILE_WIDTH, TileId, leaf_hash};

/// Tiles above the leaves that are kept: the way from a leaf to the root has seven at most.
const KEPT: usize = 32;

/// A log as it is at one checkpoint.
#[derive(Debug, Clone)]
pub struct Reader {
    checkpoint: Checkpoint,
    note: Vec<u8>,
    /// Full tiles above the leaves, and where they were found.
    kept: BTreeMap<TileId, (String, Vec<u8>)>,
}

impl Reader {
    /// Reads the checkpoint, which `trust` must accept.
    ///
    /// # Errors
    /// There is none, or it counts for nothing.
    pub fn open(served: &mut Served<'_>, trust: &dyn Accepts) -> Result<Self, AuditError> {
        let note = read(served, "checkpoint")?;
        let checkpoint = trust.open(&note)?;
        Ok(Self { checkpoint, note, kept: BTreeMap::new() })
    }

    /// What the log has.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The checkpoint as it was signed.
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// How many bundles the log has.
    pub fn bundles(&self) -> u64 {
        self.checkpoint.size.div_ceil(u64::from(TILE_WIDTH))
    }

    /// Shows that the log goes on from an earlier checkpoint of its.
    ///
    /// # Errors
    /// It is shorter, or of another history, which both signatures then prove; or its tiles do not say.
    pub fn follows(&mut self, served: &mut Served<'_>, before: &Checkpoint) -> Result<(), AuditError> {
        let (then, now) = (before.size, self.checkpoint.size);
        if then > now {
            return Err(AuditError::RolledBack { then, now });
        }
        if then == 0 {
            return Ok(());
        }
        let mut root = self.checkpoint.root;
        if then < now {
            let wanted = consistency_tiles(now, then).map_err(|why| unproven("checkpoint", &why))?;
            let tiles = self.tiles(served, &wanted)?;
            let paths = wanted.iter().map(|id| id.path(id.width_in(now))).collect::<Vec<_>>().join(", ");
            root = root_of_first(then, &tiles).map_err(|why| unproven(&paths, &why))?;
            // What the tiles say of the earlier entries is proven first, and then compared: a changed tile is no
            // second history.
            prove_consistency(&self.checkpoint, &Checkpoint { size: then, root }, &tiles)
                .map_err(|why| unproven(&paths, &why))?;
        }
        if root == before.root { Ok(()) } else { Err(AuditError::Forked { size: then }) }
    }

    /// The entries of one bundle: up to 256, from index 256 times its number. None where the log ends before.
    ///
    /// # Errors
    /// They are not served, or are not those of the checkpoint.
    pub fn bundle(&mut self, served: &mut Served<'_>, number: u64) -> Result<Vec<Vec<u8>>, AuditError> {
        let size = self.checkpoint.size;
        let id = TileId { level: 0, number };
        if id.width_in(size) == 0 {
            return Ok(Vec::new());
        }
        let (tile_path, tile) = read_tile(served, id, size)?;
        let first = number * u64::from(TILE_WIDTH);
        self.prove_tile(served, id, &tile_path, &tile)?;
        let (bundle, entries) = read_entries(served, number, size)?;
        for ((index, entry), hash) in (first..).zip(&entries).zip(tile.chunks_exact(HASH_SIZE)) {
            if leaf_hash(entry).0 != hash {
                return Err(AuditError::Entry { index, bundle, tile: tile_path });
            }
        }
        Ok(entries)
    }

    fn prove_tile(
        &mut self,
        served: &mut Served<'_>,
        id: TileId,
        path: &str,
        tile: &[u8],
    ) -> Result<(), AuditError> {
        let first = id.number * u64::from(TILE_WIDTH);
        let leaf = tile.first_chunk().copied().map(Hash).unwrap_or_default();
        let mut wanted = inclusion_tiles(self.checkpoint.size, first).map_err(|why| unproven(path, &why))?;
        wanted.retain(|other| *other != id);
        let mut tiles = self.tiles(served, &wanted)?;
        tiles.insert(id, tile.to_vec());
        match prove_inclusion(&self.checkpoint, first, leaf, &tiles) {
            Ok(_) => Ok(()),
            Err(why) => {
                self.kept.clear();
                Err(unproven(path, &why))
            }
        }
    }

    /// Tiles as they are at the checkpoint. They are believed only once a proof made of them holds.
    fn tiles(&mut self, served: &mut Served<'_>, wanted: &[TileId]) -> Result<Tiles, AuditError> {
        let mut tiles = Tiles::new();
        for id in wanted {
            let tile = match self.kept.get(id) {
                Some((_, tile)) => tile.clone(),
                None => {
                    let (path, tile) = read_tile(served, *id, self.checkpoint.size)?;
                    if id.level > 0 {
                        while self.kept.len() >= KEPT {
                            self.kept.pop_first();
                        }
                        self.kept.insert(*id, (path, tile.clone()));
                    }
                    tile
                }
            };
            tiles.insert(*id, tile);
        }
        Ok(tiles)
    }
}

fn unproven(path: &str, why: &super::ProofError) -> AuditError {
    AuditError::Unproven { path: path.to_owned(), why: why.to_string() }
}
