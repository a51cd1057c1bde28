//! The log beside the records: the tree grows in the commit that appends, and its checkpoint is signed before.
//!
//! A checkpoint that was signed and whose commit failed has been seen by nobody: it is dropped, and the tree is
//! read anew from what the store holds.

use std::sync::Arc;
use std::time::Duration;

use hallmark_core::log::{
    Checkpoint, FullTile, Hash, LogKey, LogKeyError, LogVerifier, MAX_ENTRY, ProofError, TILE_WIDTH, TileId,
    Tiles, Tree, inclusion_tiles, leaf_hash, open_checkpoint, prove_inclusion, sign_checkpoint,
};
use tokio::sync::oneshot;

use super::db::{On, Pool, Session, query};
use super::{Shown, StoreError, signed};
use crate::record::Entry;

/// Records that are not found by their serial through `serials` yet, at most about so many: they are looked
/// through one by one.
const UNINDEXED: u64 = 2048;
/// Longest wait for one signature: a commit waits for it, and on a shared database other issuers with it.
const SIGNING: Duration = Duration::from_secs(5);
/// What a check of the key signs: no checkpoint, whose text ends with a newline.
const HEALTH: &[u8] = b"hallmark health check";
/// Entries read at once when a tree is made from records.
const READ: u64 = 8192;
/// From records to what they are found by.
const FILL_SERIALS: &str = "INSERT INTO serials (serial, number) SELECT serial, number FROM records
     WHERE number > $1 AND number <= $2 AND serial IS NOT NULL ORDER BY serial ON CONFLICT DO NOTHING";
const FILL_CERTIFICATES: &str = "INSERT INTO certificates (sha256, number) SELECT certificate, number FROM records
     WHERE number > $1 AND number <= $2 AND certificate IS NOT NULL ORDER BY certificate ON CONFLICT DO NOTHING";

/// The log's name and key.
#[derive(Clone, Debug)]
pub struct LogSigner {
    verifier: LogVerifier,
    key: Key,
}

#[derive(Clone, Debug)]
enum Key {
    InMemory(Arc<dyn LogKey>),
    InToken(Arc<Signing>),
}

/// The thread that signs. Whoever lets go of it last waits for its end: a token must not be in use when the process
/// ends, or its module falls over its own destructors.
#[derive(Debug)]
struct Signing(Option<std::sync::mpsc::Sender<Asked>>, Option<std::thread::JoinHandle<()>>);

impl Drop for Signing {
    fn drop(&mut self) {
        drop(self.0.take());
        if let Some(thread) = self.1.take() {
            // A panic of it has been reported.
            let _ = thread.join();
        }
    }
}

/// A checkpoint to be signed; none for a check of the key.
struct Asked(Option<Checkpoint>, oneshot::Sender<Result<Vec<u8>, LogKeyError>>);

/// Why the log does not go on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The checkpoint could not be signed.
    #[error(transparent)]
    Key(#[from] LogKeyError),
    /// There are fewer records than were signed for.
    #[error("the log's checkpoint is of {signed} records, and the store has {found}: records are missing")]
    Missing {
        /// Records under the checkpoint.
        signed: u64,
        /// Records there are.
        found: u64,
    },
    /// The records are not those that were signed for.
    #[error("the store's records do not lead to its own checkpoint of {size} records: they were changed")]
    Changed {
        /// Records under the checkpoint.
        size: u64,
    },
    /// The newest checkpoint is not the one that was signed last.
    #[error(
        "the store no longer holds the checkpoint of {size} records that was signed last: it was put back or changed beneath this issuer"
    )]
    Replaced {
        /// Records under the checkpoint signed last.
        size: u64,
    },
    /// The checkpoint is not this log's.
    #[error("the store's checkpoint is not signed by this log's key: {0}")]
    Checkpoint(String),
    /// An entry is longer than a log's entries can be.
    #[error("a record of {0} bytes is too long for the log")]
    TooLong(usize),
}

impl LogSigner {
    /// Of a key in a token: it lasts, and may take its time.
    ///
    /// It signs on a thread of its own: a commit, for which everybody waits, does not queue behind what the
    /// async threads' helpers are given to do.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn in_token(verifier: LogVerifier, key: Arc<dyn LogKey>) -> std::io::Result<Self> {
        let (asking, asked) = std::sync::mpsc::channel::<Asked>();
        let with = verifier.clone();
        let thread = std::thread::Builder::new().name("log key".to_owned()).spawn(move || {
            for Asked(checkpoint, answer) in asked {
                let signed = match checkpoint {
                    Some(checkpoint) => sign_checkpoint(&with, &*key, &checkpoint),
                    None => key.sign(HEALTH),
                };
                // Whoever asked may have given up.
                let _ = answer.send(signed);
            }
        })?;
        Ok(Self { verifier, key: Key::InToken(Arc::new(Signing(Some(asking), Some(thread)))) })
    }

    /// Of a key that is made at each start (`--dev`): checkpoints of before are not its own.
    pub fn in_memory(verifier: LogVerifier, key: Arc<dyn LogKey>) -> Self {
        Self { verifier, key: Key::InMemory(key) }
    }

    /// What its checkpoints are verified with.
    pub fn verifier(&self) -> &LogVerifier {
        &self.verifier
    }

    /// Whether its key is the same at the next start.
    pub fn lasts(&self) -> bool {
        matches!(self.key, Key::InToken(_))
    }

    /// One real signature, of no checkpoint.
    ///
    /// # Errors
    /// What keeps the key from signing.
    pub async fn health(&self) -> Result<(), LogError> {
        match &self.key {
            Key::InMemory(_) => Ok(()),
            Key::InToken(thread) => ask(thread, None).await.map(drop),
        }
    }

    async fn sign(&self, checkpoint: Checkpoint) -> Result<Vec<u8>, LogError> {
        match &self.key {
            Key::InMemory(key) => Ok(sign_checkpoint(&self.verifier, &**key, &checkpoint)?),
            Key::InToken(thread) => ask(thread, Some(checkpoint)).await,
        }
    }
}

/// Asks the thread that signs.
async fn ask(thread: &Signing, what: Option<Checkpoint>) -> Result<Vec<u8>, LogError> {
    let failed = |why: &str| LogError::Key(LogKeyError(why.to_owned()));
    let (answer, answered) = oneshot::channel();
    let thread = thread.0.as_ref().ok_or_else(|| failed("its thread has ended"))?;
    thread.send(Asked(what, answer)).map_err(|_| failed("its thread has ended"))?;
    match tokio::time::timeout(SIGNING, answered).await {
        Ok(Ok(signed)) => Ok(signed?),
        Ok(Err(_)) => Err(failed("its thread has ended")),
        Err(_) => Err(failed("the token does not answer")),
    }
}

/// The log as the writer holds it.
#[derive(Debug)]
pub(super) struct Log {
    signer: LogSigner,
    tree: Tree,
    /// Records up to this number are found by `serials`.
    indexed: u64,
}

/// What a commit appends; it becomes the log once it is durable.
pub(super) struct Grown(Tree, u64);

impl Log {
    /// Reads the tree's edge, holds it against the checkpoint, and takes in records that no checkpoint covers
    /// yet: those of a store made before it had a log.
    pub(super) async fn load(db: &Pool, signer: LogSigner) -> Result<Self, StoreError> {
        let mut session = db.acquire().await?;
        let mut on = session.on();
        let newest: Option<i64> =
            query("SELECT number FROM records ORDER BY number DESC LIMIT 1").fetch_scalar(&mut on).await?;
        let found = newest.unwrap_or_default().unsigned_abs();
        let stored = checkpoint(&mut on).await?;
        let signed = stored.as_ref().map_or(0, |(checkpoint, _)| checkpoint.size);
        if signed > found {
            return Err(LogError::Missing { signed, found }.into());
        }
        let indexed = indexed(&mut on).await?;
        let mut log = Self { tree: edge(&mut on, signed).await?, signer, indexed };
        if let Some((checkpoint, note)) = &stored {
            if log.tree.root() != checkpoint.root {
                return Err(LogError::Changed { size: signed }.into());
            }
            log.recognise(checkpoint, note)?;
        }
        drop(session);
        log.catch_up(db, found).await?;
        Ok(log)
    }

    /// The checkpoint in the store must be one that this log's key signed.
    fn recognise(&self, stored: &Checkpoint, note: &[u8]) -> Result<(), LogError> {
        if !self.signer.lasts() {
            return Ok(());
        }
        match open_checkpoint(note, self.signer.verifier()) {
            Ok(opened) if opened == *stored => Ok(()),
            Ok(_) => Err(LogError::Changed { size: stored.size }),
            Err(why) => Err(LogError::Checkpoint(why.to_string())),
        }
    }

    /// A log that was read anew must go on from what this one knows to be durable.
    pub(super) fn is_continued_by(&self, anew: &Log) -> Result<(), LogError> {
        let (signed, found) = (self.tree.size(), anew.tree.size());
        if found < signed {
            return Err(LogError::Missing { signed, found });
        }
        if found == signed && anew.tree.root() != self.tree.root() {
            return Err(LogError::Changed { size: signed });
        }
        Ok(())
    }

    async fn catch_up(&mut self, db: &Pool, found: u64) -> Result<(), StoreError> {
        while self.tree.size() < found {
            let mut session = db.acquire().await?;
            let to = (self.tree.size() + READ).min(found);
            match self.take_in(&mut session, to).await {
                Ok(grown) => self.become_grown(grown),
                Err(error) => {
                    session.discard().await;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Appends the records there are, up to number `to`.
    async fn take_in(&self, session: &mut Session, to: u64) -> Result<Grown, StoreError> {
        let mut tx = session.begin().await?;
        let from = self.tree.size();
        let bodies = bodies(&mut tx.on(), from, to).await?;
        if bodies.len() as u64 != to - from {
            return Err(LogError::Missing { signed: to, found: from + bodies.len() as u64 }.into());
        }
        let grown = self.append(&mut tx.on(), bodies.iter().map(String::as_str)).await?;
        tx.commit().await?;
        Ok(grown)
    }

    /// Appends these entries in a transaction; nothing is changed here until it is durable.
    pub(super) async fn append(
        &self,
        tx: &mut On<'_>,
        entries: impl Iterator<Item = &str>,
    ) -> Result<Grown, StoreError> {
        let (mut tree, mut full) = (self.tree.clone(), Vec::new());
        for entry in entries {
            full.extend(tree.append(leaf_hash(entry.as_bytes())));
        }
        let checkpoint = Checkpoint { size: tree.size(), root: tree.root() };
        let note = self.signer.sign(checkpoint).await?;
        for tile in &full {
            keep_tile(tx, tile).await?;
        }
        let indexed = if checkpoint.size - self.indexed < UNINDEXED {
            self.indexed
        } else {
            index(tx, self.indexed, checkpoint.size).await?;
            checkpoint.size
        };
        // The first one is made; each later one takes the place of the one that this issuer signed last, and of no
        // other.
        let sql = match self.tree.size() {
            0 => "INSERT INTO log_checkpoint (one, size, root, note, indexed) VALUES (1, $1, $2, $3, $4)",
            _ => {
                "UPDATE log_checkpoint SET size = $1, root = $2, note = $3, indexed = $4
                 WHERE size = $5 AND root = $6"
            }
        };
        let mut keep = query(sql)
            .bind(signed(checkpoint.size))
            .bind(checkpoint.root.0.as_slice())
            .bind(note)
            .bind(signed(indexed));
        let root = self.tree.root();
        if self.tree.size() > 0 {
            keep = keep.bind(signed(self.tree.size())).bind(root.0.as_slice());
        }
        if keep.execute(tx).await? != 1 {
            return Err(LogError::Replaced { size: self.tree.size() }.into());
        }
        Ok(Grown(tree, indexed))
    }

    /// What was appended is durable.
    pub(super) fn become_grown(&mut self, grown: Grown) {
        (self.tree, self.indexed) = (grown.0, grown.1);
    }

    /// Entries in the log.
    pub(super) fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Its name and key, to begin anew with.
    pub(super) fn signer(&self) -> LogSigner {
        self.signer.clone()
    }
}

/// Whether a log cannot have this entry.
pub(super) fn is_too_long(entry: &Entry) -> bool {
    entry.body.len() > MAX_ENTRY
}

/// Entries of the batch, as the log has them.
pub(super) fn leaves(entries: &[(u64, Entry)]) -> impl Iterator<Item = &str> {
    entries.iter().map(|(_, entry)| entry.body.as_str())
}

/// Keeps a tile that is full.
pub(super) async fn keep_tile(tx: &mut On<'_>, tile: &FullTile) -> Result<(), StoreError> {
    query("INSERT INTO log_tiles (level, number, root, hashes) VALUES ($1, $2, $3, $4)")
        .bind(i64::from(tile.id.level))
        .bind(signed(tile.id.number))
        .bind(tile.root.0.as_slice())
        .bind(tile.hashes.as_slice())
        .execute(tx)
        .await?;
    Ok(())
}

/// Has records after number `from`, up to `to`, found by serial and by certificate.
pub(super) async fn index(tx: &mut On<'_>, from: u64, to: u64) -> Result<(), StoreError> {
    for fill in [FILL_SERIALS, FILL_CERTIFICATES] {
        query(fill).bind(signed(from)).bind(signed(to)).execute(tx).await?;
    }
    Ok(())
}

/// The newest checkpoint, and as it is signed.
pub(super) async fn newest(db: &Pool) -> Result<Option<(Checkpoint, Vec<u8>)>, StoreError> {
    checkpoint(&mut db.acquire().await?.on()).await
}

/// A tile as it is served by a log of `size` entries.
pub(super) async fn served_tile(db: &Pool, id: TileId, size: u64) -> Result<Vec<u8>, StoreError> {
    tile(&mut db.acquire().await?.on(), id, size).await
}

/// Entries from index `from` to before `to`.
pub(super) async fn entries(db: &Pool, from: u64, to: u64) -> Result<Vec<String>, StoreError> {
    bodies(&mut db.acquire().await?.on(), from, to).await
}

/// A record, and the proof that the log has it.
#[derive(Debug, Clone)]
pub struct Proven {
    /// Its index in the log: its number less one.
    pub index: u64,
    /// The entry.
    pub body: String,
    /// Hashes from the leaf to the root (RFC 6962 section 2.1.1).
    pub proof: Vec<Hash>,
    /// The signed checkpoint.
    pub checkpoint: Vec<u8>,
}

/// What a record is found by.
#[derive(Debug, Clone, Copy)]
pub enum FoundBy<'a> {
    /// The certificate's serial.
    Serial(&'a [u8]),
    /// SHA-256 of the certificate.
    Certificate(&'a [u8; 32]),
}

/// Proves that the log has this record; none if there is no such record.
pub(super) async fn prove(
    db: &Pool,
    by: FoundBy<'_>,
    shown: Option<Arc<Shown>>,
) -> Result<Option<Proven>, StoreError> {
    // One transaction: records and checkpoint are of the same moment.
    let mut tx = db.begin_reading().await?;
    let mut tx = tx.on();
    let tx = &mut tx;
    let indexed = indexed(tx).await?;
    let (sql, key): (_, &[u8]) = match by {
        FoundBy::Serial(serial) => (
            "SELECT number, body FROM records WHERE number =
             coalesce((SELECT number FROM serials WHERE serial = $1),
                      (SELECT number FROM records WHERE number > $2 AND serial = $1))",
            serial,
        ),
        FoundBy::Certificate(sha256) => (
            "SELECT number, body FROM records WHERE number =
             coalesce((SELECT number FROM certificates WHERE sha256 = $1),
                      (SELECT number FROM records WHERE number > $2 AND certificate = $1))",
            sha256,
        ),
    };
    let row = query(sql).bind(key).bind(signed(indexed)).fetch_optional(tx).await?;
    let (Some(row), Some((checkpoint, note))) = (row, checkpoint(tx).await?) else { return Ok(None) };
    let index = row.get::<i64>("number")?.unsigned_abs().saturating_sub(1);
    // With the cosignatures there are, unless it is too new for them.
    let (checkpoint, note) = match shown.filter(|shown| shown.checkpoint.size > index) {
        Some(shown) => (shown.checkpoint, shown.note.clone()),
        None => (checkpoint, note),
    };
    let body: String = row.get("body")?;
    let mut tiles = Tiles::new();
    let wanted = inclusion_tiles(checkpoint.size, index).map_err(broken)?;
    for id in wanted {
        tiles.insert(id, tile(tx, id, checkpoint.size).await?);
    }
    let proof = prove_inclusion(&checkpoint, index, leaf_hash(body.as_bytes()), &tiles).map_err(broken)?;
    Ok(Some(Proven { index, body, proof, checkpoint: note }))
}

fn broken(error: ProofError) -> StoreError {
    StoreError::Unreadable { table: "log_tiles", problem: error.to_string() }
}

/// The newest checkpoint, and as it is signed.
pub(super) async fn checkpoint(db: &mut On<'_>) -> Result<Option<(Checkpoint, Vec<u8>)>, StoreError> {
    let row = query("SELECT size, root, note FROM log_checkpoint").fetch_optional(db).await?;
    row.map(|row| {
        let root: Vec<u8> = row.get("root")?;
        let unreadable = || StoreError::Unreadable { table: "log_checkpoint", problem: "root".to_owned() };
        let root = Hash(root.try_into().map_err(|_| unreadable())?);
        let size = row.get::<i64>("size")?.unsigned_abs();
        Ok((Checkpoint { size, root }, row.get("note")?))
    })
    .transpose()
}

async fn indexed(db: &mut On<'_>) -> Result<u64, StoreError> {
    let indexed: Option<i64> = query("SELECT indexed FROM log_checkpoint").fetch_scalar(db).await?;
    Ok(indexed.unwrap_or_default().unsigned_abs())
}

/// The growing edge of a tree of `size` entries.
async fn edge(db: &mut On<'_>, size: u64) -> Result<Tree, StoreError> {
    let mut edge = Tiles::new();
    for id in Tree::edge_of(size) {
        edge.insert(id, tile(db, id, size).await?);
    }
    Tree::load(size, |id| edge.remove(&id).unwrap_or_default())
        .map_err(|e| StoreError::Unreadable { table: "log_tiles", problem: e.to_string() })
}

/// A tile as it is in a tree of `size` entries.
async fn tile(db: &mut On<'_>, id: TileId, size: u64) -> Result<Vec<u8>, StoreError> {
    let width = id.width_in(size);
    if width == TILE_WIDTH {
        let row: Option<Vec<u8>> = query("SELECT hashes FROM log_tiles WHERE level = $1 AND number = $2")
            .bind(i64::from(id.level))
            .bind(signed(id.number))
            .fetch_scalar(db)
            .await?;
        return Ok(row.unwrap_or_default());
    }
    let from = id.number * u64::from(TILE_WIDTH);
    let to = from + u64::from(width);
    match id.level.checked_sub(1) {
        None => {
            let bodies = bodies(db, from, to).await?;
            Ok(bodies.iter().flat_map(|body| leaf_hash(body.as_bytes()).0).collect())
        }
        Some(below) => {
            let rows: Vec<Vec<u8>> = query(
                "SELECT root FROM log_tiles WHERE level = $1 AND number >= $2 AND number < $3 ORDER BY number",
            )
            .bind(i64::from(below))
            .bind(signed(from))
            .bind(signed(to))
            .fetch_scalars(db)
            .await?;
            Ok(rows.concat())
        }
    }
}

/// Entries from index `from` to before `to`.
pub(super) async fn bodies(db: &mut On<'_>, from: u64, to: u64) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT body FROM records WHERE number > $1 AND number <= $2 ORDER BY number";
    Ok(query(sql).bind(signed(from)).bind(signed(to)).fetch_scalars(db).await?)
}
