//! The growing edge of the tree: all that is needed to append and to tell the root.

use tlog_tiles::{HASH_SIZE, Hash, HashReader, Tile};

use super::{TILE_HEIGHT, TILE_WIDTH, TileId};

/// A tree, as far as it is needed to append to it: at each level the tile that is not full yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// Hashes of the last tile of each level, one after the other; fewer than 256.
    edge: Vec<Vec<u8>>,
}

/// A tile that has become full: it never changes again.
#[derive(Debug, Clone, PartialEq)]
pub struct FullTile {
    /// Which.
    pub id: TileId,
    /// Its 256 hashes, 8,192 bytes.
    pub hashes: Vec<u8>,
    /// What it stands for in the tile above: the root of its part of the tree.
    pub root: Hash,
}

/// Why tiles do not make the edge of a tree of this size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// A tile has not as many hashes as it should.
    #[error(
        "the last tile of level {level} has {found} bytes of hashes; a tree of {size} entries has {expected} there"
    )]
    Width {
        /// Its level.
        level: u8,
        /// Entries in the tree.
        size: u64,
        /// Bytes it should have.
        expected: usize,
        /// Bytes it has.
        found: usize,
    },
}

impl Tree {
    /// The tree without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tiles that make the edge of a tree of `size` entries: the last of each level, where it is not full.
    pub fn edge_of(size: u64) -> Vec<TileId> {
        let level = |level: u8| {
            let hashes = size.checked_shr(u32::from(TILE_HEIGHT) * u32::from(level))?;
            let id = TileId { level, number: hashes / u64::from(TILE_WIDTH) };
            (hashes > 0).then_some(id)
        };
        (0..).map_while(level).filter(|id| id.width_in(size) > 0).collect()
    }

    /// Puts a tree of `size` entries together from the last tile of each level, as `edge` gives it; what it gives
    /// for a level without one is not looked at.
    ///
    /// # Errors
    /// A tile has not as many hashes as it should.
    pub fn load(size: u64, mut edge: impl FnMut(TileId) -> Vec<u8>) -> Result<Self, TreeError> {
        let mut tree = Self { size, edge: Vec::new() };
        let mut level = 0;
        while let Some(hashes) = size.checked_shr(u32::from(TILE_HEIGHT) * u32::from(level))
            && hashes > 0
        {
            let id = TileId { level, number: hashes / u64::from(TILE_WIDTH) };
            let expected = usize::from(id.width_in(size)) * HASH_SIZE;
            let tile = if expected == 0 { Vec::new() } else { edge(id) };
            if tile.len() != expected {
                return Err(TreeError::Width { level, size, expected, found: tile.len() });
            }
            tree.edge.push(tile);
            level += 1;
        }
        Ok(tree)
    }

    /// Entries in the tree.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends an entry by its leaf hash; gives the tiles that are full now, lowest first.
    pub fn append(&mut self, leaf: Hash) -> Vec<FullTile> {
        let (mut full, mut hash, mut level) = (Vec::new(), leaf, 0_u8);
        self.size += 1;
        loop {
            if self.edge.len() == usize::from(level) {
                self.edge.push(Vec::new());
            }
            let tile = &mut self.edge[usize::from(level)];
            tile.extend_from_slice(&hash.0);
            if tile.len() < usize::from(TILE_WIDTH) * HASH_SIZE {
                return full;
            }
            let hashes = std::mem::take(tile);
            hash = Tile::subtree_hash(&hashes);
            let number = (self.size >> (u32::from(TILE_HEIGHT) * (u32::from(level) + 1))) - 1;
            full.push(FullTile { id: TileId { level, number }, hashes, root: hash });
            level += 1;
        }
    }

    /// The root hash (RFC 6962 section 2.1); of no entries, the hash of nothing.
    pub fn root(&self) -> Hash {
        // The edge holds whatever the library asks for: it asks for the left parts of the right edge.
        tlog_tiles::tree_hash(self.size, self).unwrap_or_default()
    }

    /// The tile of a level that is not full yet, with its hashes; none if there is none.
    pub fn partial(&self, level: u8) -> Option<(TileId, &[u8])> {
        let hashes = self.edge.get(usize::from(level)).filter(|hashes| !hashes.is_empty())?;
        let number = self.size >> (u32::from(TILE_HEIGHT) * (u32::from(level) + 1));
        Some((TileId { level, number }, hashes))
    }

    /// Levels of tiles.
    pub fn levels(&self) -> u8 {
        u8::try_from(self.edge.len()).unwrap_or(u8::MAX)
    }
}

impl HashReader for Tree {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let hash = |index: &u64| {
            let wanted = Tile::from_index(TILE_HEIGHT, *index);
            let (id, hashes) = self.partial(wanted.level()).ok_or(tlog_tiles::Error::IndexesNotInTree)?;
            let width = u32::try_from(hashes.len() / HASH_SIZE).unwrap_or_default();
            Tile::new(TILE_HEIGHT, id.level, id.number, width, false).hash_at_index(hashes, *index)
        };
        indexes.iter().map(hash).collect()
    }
}
