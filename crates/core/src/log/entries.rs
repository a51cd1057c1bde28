//! Bundles of entries: each with its length before it, in two bytes (tlog-tiles, "Log entries").

/// Longest entry, in bytes.
pub const MAX_ENTRY: usize = u16::MAX as usize;

/// Why a bundle cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// An entry is longer than its length can say.
    #[error("an entry has {found} bytes, more than {MAX_ENTRY}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// It ends within an entry.
    #[error("the bundle ends within entry {entry}")]
    Truncated {
        /// Counted from 0 in this bundle.
        entry: usize,
    },
    /// It has not as many entries as it should.
    #[error("the bundle has {found} entries, {expected} were expected")]
    Count {
        /// How many it should have.
        expected: usize,
        /// How many it has.
        found: usize,
    },
}

/// Writes a bundle.
///
/// # Errors
/// An entry is too long.
pub fn bundle<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, BundleError> {
    let mut bundle = Vec::new();
    for entry in entries {
        let length = u16::try_from(entry.len()).map_err(|_| BundleError::TooLong { found: entry.len() })?;
        bundle.extend_from_slice(&length.to_be_bytes());
        bundle.extend_from_slice(entry);
    }
    Ok(bundle)
}

/// Reads a bundle of so many entries.
///
/// # Errors
/// It ends within an entry, or has more or fewer.
pub fn read_bundle(mut bundle: &[u8], expected: usize) -> Result<Vec<&[u8]>, BundleError> {
    let mut entries = Vec::new();
    while !bundle.is_empty() {
        let truncated = BundleError::Truncated { entry: entries.len() };
        let (length, rest) = bundle.split_first_chunk::<2>().ok_or_else(|| truncated.clone())?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, rest) = rest.split_at_checked(length).ok_or(truncated)?;
        entries.push(entry);
        bundle = rest;
    }
    match entries.len() {
        found if found == expected => Ok(entries),
        found => Err(BundleError::Count { expected, found }),
    }
}
