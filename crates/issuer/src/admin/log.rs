//! The log as its files have it, for operators: to the second, and without a web server.

use hallmark_core::log::{ServedPath, TILE_WIDTH, bundle};
use tonic::Status;

use crate::status;
use crate::store::{Store, Witnessing};

/// What the log serves under this path.
pub(super) async fn read(store: &Store, path: &str) -> Result<Vec<u8>, Status> {
    let path: ServedPath =
        path.parse().map_err(|e: hallmark_core::log::PathError| Status::invalid_argument(e.to_string()))?;
    let newest = store.checkpoint().await.map_err(|e| status::admin(&e))?;
    let none = || Status::not_found(format!("the log serves no {path} yet"));
    let (checkpoint, note) = newest.ok_or_else(none)?;
    let size = path.entries().filter(|size| *size <= checkpoint.size).ok_or_else(none)?;
    match path {
        // With witnesses, the newest that is published: it has their cosignatures.
        ServedPath::Checkpoint => {
            Ok(store.witnessing().and_then(Witnessing::shown).map_or(note, |shown| shown.note.clone()))
        }
        ServedPath::Tile(id, _) => store.log_tile(id, size).await.map_err(|e| status::admin(&e)),
        ServedPath::Entries(number, _) => {
            let from = number * u64::from(TILE_WIDTH);
            let entries = store.log_entries(from, size).await.map_err(|e| status::admin(&e))?;
            let entries = entries.iter().map(|entry| entry.as_bytes());
            bundle(entries).map_err(|e| Status::internal(e.to_string()))
        }
    }
}
