//! What a log serves, by path, and how tiles and bundles are read from whoever serves them.

use std::str::FromStr;

use tlog_tiles::HASH_SIZE;

use super::audit::{AuditError, Served};
use super::entries::read_bundle;
use super::{TILE_WIDTH, TileId, bundle_path};

/// Longest name of something served: `tile/L/` and a number of 20 digits in threes, each after an `x`.
const MAX_PATH: usize = 64;

/// Something that a log serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedPath {
    /// The signed checkpoint.
    Checkpoint,
    /// A tile, this wide.
    Tile(TileId, u16),
    /// A bundle of entries, by its number, and so many.
    Entries(u64, u16),
}

/// Why a path names nothing that a log serves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a path of a log (c2sp.org/tlog-tiles): checkpoint, tile/<L>/<N>[.p/<W>] or tile/entries/<N>[.p/<W>]"
)]
pub struct PathError;

impl ServedPath {
    /// How many entries a log has at least that serves it so.
    pub fn entries(self) -> Option<u64> {
        let hashes = |number: u64, width: u16| number.checked_mul(256)?.checked_add(u64::from(width));
        match self {
            Self::Checkpoint => Some(0),
            Self::Entries(number, width) => hashes(number, width),
            Self::Tile(id, width) => {
                let (hashes, shift) = (hashes(id.number, width)?, 8 * u32::from(id.level));
                hashes.checked_shl(shift).filter(|size| size >> shift == hashes)
            }
        }
    }
}

impl std::fmt::Display for ServedPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Tile(id, width) => f.write_str(&id.path(*width)),
            Self::Entries(number, width) => f.write_str(&bundle_path(*number, *width)),
        }
    }
}

impl FromStr for ServedPath {
    type Err = PathError;

    fn from_str(path: &str) -> Result<Self, PathError> {
        if path == "checkpoint" {
            return Ok(Self::Checkpoint);
        }
        let rest = path.strip_prefix("tile/").filter(|_| path.len() <= MAX_PATH).ok_or(PathError)?;
        let (what, rest) = rest.split_once('/').ok_or(PathError)?;
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse().map_err(|_| PathError)?),
            None => (rest, TILE_WIDTH),
        };
        if !(1..=TILE_WIDTH).contains(&width) {
            return Err(PathError);
        }
        let digits: String = number.split('/').map(|group| group.trim_start_matches('x')).collect();
        let number = digits.parse().map_err(|_| PathError)?;
        let parsed = match what {
            "entries" => Self::Entries(number, width),
            level => {
                let level: u8 = level.parse().ok().filter(|level| *level < 64).ok_or(PathError)?;
                Self::Tile(TileId { level, number }, width)
            }
        };
        // One thing, one path: none that begins with zeros, or leaves out an `x`.
        if parsed.to_string() == path { Ok(parsed) } else { Err(PathError) }
    }
}

/// Reads a file.
pub(super) fn read(served: &mut Served<'_>, path: &str) -> Result<Vec<u8>, AuditError> {
    served(path).map_err(|why| AuditError::Unserved { path: path.to_owned(), why })
}

/// Reads a tile as it is in a log of `size` entries, and where it was found.
pub(super) fn read_tile(
    served: &mut Served<'_>,
    id: TileId,
    size: u64,
) -> Result<(String, Vec<u8>), AuditError> {
    let width = id.width_in(size);
    let (path, mut tile, held) = partial_or_full(served, width, |width| id.path(width))?;
    let expected = usize::from(held) * HASH_SIZE;
    if tile.len() != expected {
        return Err(AuditError::Width { path, expected, found: tile.len() });
    }
    tile.truncate(usize::from(width) * HASH_SIZE);
    Ok((path, tile))
}

/// Reads the entries of a bundle as it is in a log of `size` entries, and where it was found.
pub(super) fn read_entries(
    served: &mut Served<'_>,
    number: u64,
    size: u64,
) -> Result<(String, Vec<Vec<u8>>), AuditError> {
    let width = TileId { level: 0, number }.width_in(size);
    let (path, bytes, held) = partial_or_full(served, width, |width| bundle_path(number, width))?;
    let entries = read_bundle(&bytes, usize::from(held))
        .map_err(|why| AuditError::Bundle { path: path.clone(), why })?;
    let entries = entries.into_iter().take(usize::from(width)).map(<[u8]>::to_vec).collect();
    Ok((path, entries))
}

/// A log may drop what is partial once it is full (tlog-tiles, "Partial tiles").
fn partial_or_full(
    served: &mut Served<'_>,
    width: u16,
    path: impl Fn(u16) -> String,
) -> Result<(String, Vec<u8>, u16), AuditError> {
    let partial = path(width);
    match read(served, &partial) {
        Ok(bytes) => Ok((partial, bytes, width)),
        Err(error) if width < TILE_WIDTH => {
            let full = path(TILE_WIDTH);
            let bytes = read(served, &full).map_err(|_| error)?;
            Ok((full, bytes, TILE_WIDTH))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_they_are_written_and_no_others() {
        let tile = |level, number, width| ServedPath::Tile(TileId { level, number }, width);
        for (path, parsed) in [
            ("checkpoint", ServedPath::Checkpoint),
            ("tile/0/000", tile(0, 0, 256)),
            ("tile/0/x001/x234/067", tile(0, 1_234_067, 256)),
            ("tile/1/273.p/112", tile(1, 273, 112)),
            ("tile/entries/x001/x234/067.p/8", ServedPath::Entries(1_234_067, 8)),
            ("tile/63/000.p/1", tile(63, 0, 1)),
        ] {
            assert_eq!(path.parse(), Ok(parsed));
            assert_eq!(parsed.to_string(), path);
        }
        for path in [
            "",
            "/checkpoint",
            "checkpoint/",
            "tile/0",
            "tile/0/0",
            "tile/0/0000",
            "tile/0/x000/001",
            "tile/00/001",
            "tile/64/000",
            "tile/-1/000",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/257",
            "tile/0/000.p/01",
            "tile/0/001/067",
            "tile/0/../000",
            "tile/../0/000",
            "tile/entries/000/..",
            "tile/0/000.p/1/..",
            "tile/0/+01",
            "tile/0/x99/x999/x999/x999/x999/x999/999",
            "tile/entries/xx001/000",
        ] {
            assert_eq!(path.parse::<ServedPath>(), Err(PathError), "{path}");
        }
    }

    #[test]
    fn how_long_a_log_is_that_serves_it() {
        let entries = |path: &str| path.parse::<ServedPath>().unwrap().entries();
        assert_eq!(entries("tile/entries/001.p/3"), Some(259));
        assert_eq!(entries("tile/1/001.p/3"), Some(259 * 256));
        assert_eq!(entries("tile/63/000.p/1"), None, "no tree is so high");
    }
}
