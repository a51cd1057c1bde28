//! Backups: a store in one SQLite file, whichever database it came from and whichever it goes into.
//!
//! A backup holds what the trust domain shares, and one issuer's records with the checkpoint over them. What follows
//! from the records (tiles, indexes) is made anew. It is verified when it is made and again when it is put back: its
//! records must lead to its checkpoint.

use std::path::Path;

use hallmark_core::id::IssuerId;
use hallmark_core::log::{Checkpoint, FullTile, LogVerifier, Tree, leaf_hash, open_checkpoint};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::db::{On, Pool, query};
use super::log::{self, LogError};
use super::schema::MIGRATIONS;
use super::{Location, StoreError, copy, open, rows, signed};
use crate::store::TrustDomainRow;

/// Records read at once.
const READ: u64 = 4096;

/// What a backup holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The trust domain.
    pub trust_domain: TrustDomainRow,
    /// Entries of the issuer's log; none in a store that never recorded anything.
    pub checkpoint: Option<Checkpoint>,
    /// The checkpoint as it is signed.
    pub note: Vec<u8>,
}

/// Is told how many records are done, and of how many.
pub type Progress<'a> = &'a mut (dyn FnMut(&'static str, u64, u64) + Send);

/// Writes a backup of what this issuer has into a new file, which must not exist. The issuer may run meanwhile: what
/// is written is of one moment.
///
/// # Errors
/// A database fails, the file is there, or the records do not lead to their checkpoint.
pub async fn backup(
    location: &Location,
    issuer: &IssuerId,
    file: &Path,
    verifier: Option<&LogVerifier>,
    progress: Progress<'_>,
) -> Result<Held, StoreError> {
    let source = open::reading(location, issuer).await?;
    let target = new_file(file).await?;
    let copied = copy_out(&source, &target, issuer, progress).await;
    let held = match copied {
        Ok(()) => verify(&target, verifier, progress).await,
        Err(error) => Err(error),
    };
    close(target).await;
    close(source).await;
    if held.is_err() {
        // Whatever is there is no backup.
        let _ = std::fs::remove_file(file);
    }
    held
}

async fn copy_out(
    source: &Pool,
    target: &Pool,
    issuer: &IssuerId,
    progress: Progress<'_>,
) -> Result<(), StoreError> {
    let mut reading = source.begin_reading().await?;
    let mut session = target.acquire().await?;
    let mut writing = session.begin().await?;
    let (mut from, mut to) = (reading.on(), writing.on());
    let all = newest(&mut from).await?;
    for table in copy::SHARED.into_iter().chain(copy::OWN) {
        let records = table == "records";
        let mut step = |done| {
            if records {
                progress("copying records", done, all);
            }
        };
        copy::table(table, &mut from, &mut to, &mut step).await?;
    }
    // Which of the issuers in it the records are of.
    query("UPDATE heartbeat SET at = 0").execute(&mut to).await?;
    query("DELETE FROM changes").execute(&mut to).await?;
    query("INSERT INTO changes (seq, issuer, at, kind, subject) VALUES (0, $1, 0, 'backup', '')")
        .bind(issuer.as_str())
        .execute(&mut to)
        .await?;
    writing.commit().await?;
    Ok(())
}

/// A backup that was read, verified and brought to this version's schema, and not put back yet.
#[derive(Debug)]
pub struct Unpacked {
    pool: Pool,
    issuer: IssuerId,
    /// What it holds.
    pub held: Held,
}

impl Unpacked {
    /// Reads a copy of a backup, which is changed: it is brought to this version's schema.
    ///
    /// # Errors
    /// It is no backup of this issuer, its schema is newer than this program, or its records do not lead to its
    /// checkpoint.
    pub async fn open(
        file: &Path,
        issuer: &IssuerId,
        verifier: Option<&LogVerifier>,
        progress: Progress<'_>,
    ) -> Result<Self, StoreError> {
        let pool = existing_file(file).await?;
        let of: Option<String> = {
            let mut session = pool.acquire().await?;
            let foreign: Option<i64> =
                query("SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')")
                    .fetch_scalar(&mut session.on())
                    .await?;
            if foreign != Some(0) {
                return Err(StoreError::NoBackup(
                    "it holds triggers or views, and no store has any".to_owned(),
                ));
            }
            query("SELECT issuer FROM changes WHERE seq = 0 AND kind = 'backup'")
                .fetch_scalar(&mut session.on())
                .await
                .unwrap_or_default()
        };
        match of {
            None => return Err(StoreError::NoBackup("it holds no store that was backed up".to_owned())),
            Some(of) if of != issuer.as_str() => {
                return Err(StoreError::NoBackup(format!("it is of issuer {of}, not of {issuer}")));
            }
            Some(_) => {}
        }
        let held = verify(&pool, verifier, progress).await?;
        Ok(Self { pool, issuer: issuer.clone(), held })
    }

    /// Forgets the join tokens in it.
    ///
    /// # Errors
    /// The database fails.
    pub async fn void_join_tokens(&self) -> Result<(), StoreError> {
        let mut session = self.pool.acquire().await?;
        query("DELETE FROM join_tokens").execute(&mut session.on()).await?;
        Ok(())
    }

    /// The store in it, to be completed before it is put back.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub(super) fn issuer(&self) -> &IssuerId {
        &self.issuer
    }

    /// Makes what follows from its records, and puts it where the issuer looks for its store. On PostgreSQL what
    /// the trust domain shares stays as it is there, if other issuers have it; then this gives true.
    ///
    /// # Errors
    /// There is a store already, or a database fails.
    pub async fn put(
        self,
        location: &Location,
        file: &Path,
        progress: Progress<'_>,
    ) -> Result<bool, StoreError> {
        derive(&self.pool, progress).await?;
        match location {
            Location::Sqlite(path) => {
                close(self.pool).await;
                std::fs::rename(file, path).map_err(|e| StoreError::Database(sqlx::Error::Io(e)))?;
                Ok(false)
            }
            Location::Postgres(_) => {
                let target = open::open(location, &self.issuer).await?;
                let kept = copy_in(&self.pool, &target.writer, self.issuer.as_str(), progress).await?;
                close(self.pool).await;
                Ok(kept)
            }
        }
    }
}

async fn copy_in(
    source: &Pool,
    target: &Pool,
    issuer: &str,
    progress: Progress<'_>,
) -> Result<bool, StoreError> {
    let mut reading = source.begin_reading().await?;
    let mut session = target.acquire().await?;
    let mut writing = session.begin().await?;
    let (mut from, mut to) = (reading.on(), writing.on());
    if newest(&mut to).await? > 0 {
        return Err(StoreError::NotEmpty);
    }
    let shared = rows::trust_domain(&mut to).await?.is_none();
    let all = newest(&mut from).await?;
    let shared = if shared { &copy::SHARED[..] } else { &[] };
    for table in shared.iter().chain(&copy::OWN).chain(&["log_tiles", "serials", "certificates"]) {
        let records = *table == "records";
        let mut step = |done| {
            if records {
                progress("putting records back", done, all);
            }
        };
        copy::table(table, &mut from, &mut to, &mut step).await?;
    }
    if shared.is_empty() {
        // What this issuer gave after the backup, by numbers that come again: revoked, and let go.
        let now = super::unix_now();
        query(
            "INSERT INTO revocations
             (serial, issuer, instance_id, hierarchy, ca, host_id, not_after, revoked_at, reason)
             SELECT serial, issuer, instance_id, tier, ca, host_id, not_after, $3, 'other' FROM credentials
             WHERE issuer = $1 AND number > $2 AND not_after > $3 ON CONFLICT (serial) DO NOTHING",
        )
        .bind(issuer)
        .bind(signed(all))
        .bind(now)
        .execute(&mut to)
        .await?;
        query("DELETE FROM credentials WHERE issuer = $1 AND number > $2")
            .bind(issuer)
            .bind(signed(all))
            .execute(&mut to)
            .await?;
    }
    writing.commit().await?;
    Ok(shared.is_empty())
}

/// Tiles and indexes, from the records.
async fn derive(pool: &Pool, progress: Progress<'_>) -> Result<(), StoreError> {
    let mut session = pool.acquire().await?;
    let mut writing = session.begin().await?;
    let mut on = writing.on();
    for table in ["log_tiles", "serials", "certificates", "changes"] {
        query(&format!("DELETE FROM {table}")).execute(&mut on).await?;
    }
    let all = newest(&mut on).await?;
    let mut tree = Tree::new();
    while tree.size() < all {
        let bodies = log::bodies(&mut on, tree.size(), (tree.size() + READ).min(all)).await?;
        for body in &bodies {
            for tile in tree.append(leaf_hash(body.as_bytes())) {
                log::keep_tile(&mut on, &tile).await?;
            }
        }
        progress("making the log's tiles", tree.size(), all);
    }
    log::index(&mut on, 0, all).await?;
    query("UPDATE log_checkpoint SET indexed = $1").bind(signed(all)).execute(&mut on).await?;
    writing.commit().await?;
    Ok(())
}

/// Holds the records against the checkpoint, from the first to the last.
async fn verify(
    pool: &Pool,
    verifier: Option<&LogVerifier>,
    progress: Progress<'_>,
) -> Result<Held, StoreError> {
    let mut reading = pool.begin_reading().await?;
    let mut on = reading.on();
    let trust_domain = rows::trust_domain(&mut on)
        .await?
        .ok_or_else(|| StoreError::NoBackup("it holds no trust domain".to_owned()))?;
    let found = newest(&mut on).await?;
    let Some((checkpoint, note)) = log::checkpoint(&mut on).await? else {
        if found > 0 {
            return Err(StoreError::NoBackup(format!("its {found} records have no checkpoint over them")));
        }
        return Ok(Held { trust_domain, checkpoint: None, note: Vec::new() });
    };
    if found != checkpoint.size {
        return Err(LogError::Missing { signed: checkpoint.size, found }.into());
    }
    let mut tree = Tree::new();
    while tree.size() < found {
        let bodies = log::bodies(&mut on, tree.size(), (tree.size() + READ).min(found)).await?;
        if bodies.is_empty() {
            return Err(LogError::Missing { signed: checkpoint.size, found: tree.size() }.into());
        }
        for body in &bodies {
            // The tiles themselves are made anew when it is put back.
            let _: Vec<FullTile> = tree.append(leaf_hash(body.as_bytes()));
        }
        progress("verifying records", tree.size(), found);
    }
    if tree.root() != checkpoint.root {
        return Err(LogError::Changed { size: checkpoint.size }.into());
    }
    if let Some(verifier) = verifier {
        match open_checkpoint(&note, verifier) {
            Ok(opened) if opened == checkpoint => {}
            Ok(_) => return Err(LogError::Changed { size: checkpoint.size }.into()),
            Err(why) => return Err(LogError::Checkpoint(why.to_string()).into()),
        }
    }
    Ok(Held { trust_domain, checkpoint: Some(checkpoint), note })
}

async fn newest(on: &mut On<'_>) -> Result<u64, StoreError> {
    let newest: Option<i64> =
        query("SELECT number FROM records ORDER BY number DESC LIMIT 1").fetch_scalar(on).await?;
    Ok(newest.unwrap_or_default().unsigned_abs())
}

async fn new_file(file: &Path) -> Result<Pool, StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    made.map_err(|problem| StoreError::File { path: file.to_owned(), problem })?;
    existing_file(file).await
}

async fn existing_file(file: &Path) -> Result<Pool, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .journal_mode(SqliteJournalMode::Truncate)
        .synchronous(SqliteSynchronous::Full);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    MIGRATIONS.run(&pool).await?;
    Ok(Pool::Sqlite(pool))
}

async fn close(pool: Pool) {
    match pool {
        Pool::Sqlite(pool) => pool.close().await,
        Pool::Postgres(pool) => pool.close().await,
    }
}
