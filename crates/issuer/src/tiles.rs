//! The log in files, as C2SP's tlog-tiles serves it: any web server on the directory will do, and
//! `hallmark log verify` reads it as it is.
//!
//! What the store holds is the log; the files follow it, at most a second behind; with witnesses, as soon as those have
//! answered, and where their quorum is required, as soon as it is there. The checkpoint is written last: whoever has read
//! it finds all that it covers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hallmark_core::log::{
    Checkpoint, TILE_WIDTH, TileId, Tiles, bundle, bundle_path, changed_tiles, consistency_tiles,
    open_checkpoint, prove_consistency,
};

use crate::init::replace_file;
use crate::issuer::Issuer;
use crate::metrics::metrics;
use crate::store::Store;

/// How often what is new is written.
const EVERY: Duration = Duration::from_secs(1);

/// Where the log is written, and how far it is.
#[derive(Debug)]
pub struct Tree {
    dir: PathBuf,
    published: u64,
    /// The checkpoint as it was written.
    note: Vec<u8>,
}

impl Tree {
    /// Looks at what was written before. With a checkpoint of this log's key, the store must go on from it.
    ///
    /// # Errors
    /// The store holds less than was published, or something else: it is an old copy that was put back, or was
    /// changed.
    pub async fn open(dir: PathBuf, store: &Store) -> anyhow::Result<Self> {
        let (note, published) = match tokio::fs::read(dir.join("checkpoint")).await {
            Ok(note) => {
                let published = open_checkpoint(&note, store.log_verifier());
                (note, published)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { dir, published: 0, note: Vec::new() });
            }
            Err(error) => return Err(error).with_context(|| dir.join("checkpoint").display().to_string()),
        };
        match published {
            Ok(published) => {
                goes_on(store, &published, &dir).await?;
                Ok(Self { dir, published: published.size, note })
            }
            Err(error) if store.log_signer().lasts() => bail!(
                "{}: {error}. If it was damaged, or is another log's, move {} away: it is written anew",
                dir.join("checkpoint").display(),
                dir.display()
            ),
            Err(error) => {
                // With `--dev` each start has another key.
                tracing::warn!(%error, dir = %dir.display(), "the log in files is not this log's: it is written anew");
                Ok(Self { dir, published: 0, note: Vec::new() })
            }
        }
    }

    /// The checkpoint that was written before, with the cosignatures that it had; empty if there is none.
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// Writes what is new, until the issuer drains.
    pub async fn run(mut self, issuer: Arc<Issuer>) {
        loop {
            if let Err(error) = self.publish(issuer.store()).await {
                tracing::error!(error = format!("{error:#}"), "the log's files could not be written");
            }
            if issuer.is_draining() {
                return;
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn publish(&mut self, store: &Store) -> anyhow::Result<()> {
        let newest = match store.witnessing() {
            None => store.checkpoint().await?,
            Some(witnessing) => witnessing.shown().map(|shown| (shown.checkpoint, shown.note.clone())),
        };
        let Some((checkpoint, note)) = newest else { return Ok(()) };
        let (old, new) = (self.published, checkpoint.size);
        // What is there already stays, unless witnesses have added to it.
        if new < old || note == self.note {
            return Ok(());
        }
        let width = u64::from(TILE_WIDTH);
        for number in old / width..new.div_ceil(width) {
            let id = TileId { level: 0, number };
            let from = number * width;
            let entries = store.log_entries(from, from + u64::from(id.width_in(new))).await?;
            let bundle = bundle(entries.iter().map(|entry| entry.as_bytes()))?;
            self.write(&bundle_path(number, id.width_in(new)), bundle).await?;
        }
        let changed = changed_tiles(old, new);
        for id in &changed {
            let tile = store.log_tile(*id, new).await?;
            self.write(&id.path(id.width_in(new)), tile).await?;
        }
        self.write("checkpoint", note.clone()).await?;
        (self.published, self.note) = (new, note);
        metrics().published(new);
        for id in changed {
            self.drop_narrower(id, new).await;
        }
        Ok(())
    }

    /// Partial tiles and bundles that a full one has replaced; a reader falls back to that.
    async fn drop_narrower(&self, id: TileId, size: u64) {
        if id.width_in(size) < TILE_WIDTH {
            return;
        }
        let bundle = (id.level == 0).then(|| bundle_path(id.number, 1));
        for path in [Some(id.path(1)), bundle].into_iter().flatten() {
            if let Some(partial) = self.dir.join(path).parent() {
                let _ = tokio::fs::remove_dir_all(partial).await;
            }
        }
    }

    async fn write(&self, path: &str, content: Vec<u8>) -> anyhow::Result<()> {
        let path = self.dir.join(path);
        tokio::task::spawn_blocking(move || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
            }
            replace_file(&path, &content)?;
            // Its name, too, is there before the checkpoint that covers it.
            let dir = path.parent().map(std::fs::File::open).transpose()?;
            dir.map_or(Ok(()), |dir| Ok(dir.sync_all()?))
        })
        .await?
    }
}

async fn goes_on(store: &Store, published: &Checkpoint, dir: &Path) -> anyhow::Result<()> {
    let now = store.checkpoint().await?.map(|(checkpoint, _)| checkpoint);
    let size = now.as_ref().map_or(0, |now| now.size);
    let remedy = format!(
        "Put the newer store back. If it is lost for good, move {} away: the log then goes on from what is here, and whoever kept a later checkpoint can prove that it lost records.",
        dir.display()
    );
    if size < published.size {
        bail!(
            "the store has {size} records, and {} were published: an older copy of it was put back. {remedy}",
            published.size
        );
    }
    let (Some(now), true) = (now, published.size > 0) else { return Ok(()) };
    let mut tiles = Tiles::new();
    for id in consistency_tiles(now.size, published.size)? {
        tiles.insert(id, store.log_tile(id, now.size).await?);
    }
    if prove_consistency(&now, published, &tiles).is_err() {
        bail!(
            "the store's records are not those of the published checkpoint of {} records: it is another history. {remedy}",
            published.size
        );
    }
    Ok(())
}
