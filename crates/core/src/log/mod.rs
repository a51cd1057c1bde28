//! The transparency log: an append-only Merkle tree of decisions, in the forms of C2SP.
//!
//! **In scope:** the tree and its tiles ([tlog-tiles](https://c2sp.org/tlog-tiles)), signed checkpoints
//! ([tlog-checkpoint](https://c2sp.org/tlog-checkpoint), [signed-note](https://c2sp.org/signed-note), Ed25519),
//! proofs of inclusion and consistency (RFC 6962 section 2.1), bundles of entries; cosignatures of witnesses and their
//! quorum ([tlog-cosignature](https://c2sp.org/tlog-cosignature), [tlog-witness](https://c2sp.org/tlog-witness)); what
//! records say to SIEMs and to monitors.
//!
//! **Not in scope:** where tiles are kept, who serves them, and how witnesses are reached.
//!
//! A log is identified by its name, which is the origin of its checkpoints and the name of its key, and by that
//! key. Of two checkpoints with the same name and key, one must be a prefix of the other: whoever shows two that
//! are not has shown two histories, and both signatures prove it.

mod audit;
mod bundled;
mod checkpoint;
mod entries;
mod facts;
mod key;
mod proof;
mod reader;
mod record;
mod served;
pub mod siem;
mod tree;
mod watch;
mod witness;

pub use audit::{AuditError, Entries, Served, audit};
pub use bundled::{KeptProofError, check_proof, write_proof};
pub use checkpoint::{
    Accepts, Checkpoint, CheckpointError, MAX_CHECKPOINT, open_checkpoint, sign_checkpoint,
};
pub use entries::{BundleError, MAX_ENTRY, bundle, read_bundle};
pub use facts::{Contradiction, Facts};
pub use key::{LogKey, LogKeyError, LogName, LogVerifier, SoftwareLogKey, VerifierError};
pub use proof::{
    ProofError, Tiles, check_consistency, check_inclusion, consistency_tiles, inclusion_tiles,
    prove_consistency, prove_growth, prove_inclusion,
};
pub use reader::Reader;
pub use record::{Record, RecordError, Unmet};
pub use served::{PathError, ServedPath};
pub use tlog_tiles::Hash;
pub use tree::{FullTile, Tree, TreeError};
pub use watch::{Expectations, Unexpected, Unlisted, Watch, WatchFault};
pub use witness::{
    AnswerError, Cosignature, Cosigned, MAX_ANSWER, MAX_WITNESSES, Quorum, QuorumError, Trust,
    WitnessVerifier, Witnessed, add_checkpoint, read_size,
};

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: u16 = 256;
/// Height of a tile, in levels of the tree.
const TILE_HEIGHT: u8 = 8;

/// The leaf hash of an entry: SHA-256 of 0x00 and the entry (RFC 6962 section 2.1).
pub fn leaf_hash(entry: &[u8]) -> Hash {
    tlog_tiles::record_hash(entry)
}

/// The tiles that a log of `new` entries serves otherwise than one of `old`: new ones, and wider ones.
pub fn changed_tiles(old: u64, new: u64) -> Vec<TileId> {
    let tiles = tlog_tiles::Tile::new_tiles(TILE_HEIGHT, old, new);
    tiles.iter().map(|tile| TileId { level: tile.level(), number: tile.level_index() }).collect()
}

/// Which tile: of a level, counted from the leaves, in steps of eight levels of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    /// 0 for the tiles of leaf hashes.
    pub level: u8,
    /// From the left, from 0.
    pub number: u64,
}

impl TileId {
    /// How many hashes this tile has in a tree of `size` entries: 0 if it is not there yet.
    pub fn width_in(self, size: u64) -> u16 {
        let hashes = size.checked_shr(u32::from(TILE_HEIGHT) * u32::from(self.level)).unwrap_or(0);
        let before = self.number.saturating_mul(u64::from(TILE_WIDTH));
        let here = hashes.saturating_sub(before).min(u64::from(TILE_WIDTH));
        u16::try_from(here).unwrap_or(TILE_WIDTH)
    }

    /// Where it is served: `tile/<L>/<N>`, with `.p/<W>` where it is not full.
    ///
    /// # Panics
    /// The width is not 1 to 256, or the level over 63.
    pub fn path(self, width: u16) -> String {
        path(self.level, self.number, width, false)
    }
}

/// Where a bundle of entries is served: `tile/entries/<N>`, with `.p/<W>` where it is not full.
///
/// # Panics
/// The width is not 1 to 256.
pub fn bundle_path(number: u64, width: u16) -> String {
    path(0, number, width, true)
}

/// The crate writes the paths of Go's checksum database: with the height, which C2SP fixes, and `data` for entries.
fn path(level: u8, number: u64, width: u16, entries: bool) -> String {
    let path = tlog_tiles::Tile::new(TILE_HEIGHT, level, number, u32::from(width), entries).path();
    let rest = path.trim_start_matches("tile/8/");
    match rest.strip_prefix("data/") {
        Some(rest) => format!("tile/entries/{rest}"),
        None => format!("tile/{rest}"),
    }
}

#[cfg(test)]
mod tests;
