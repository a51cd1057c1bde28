//! What an issuer must not forget, behind a narrow interface.
//!
//! Reads go to a small pool; every write goes through one writer task that gathers all requests in
//! flight into one transaction (`writer`). A write's future resolves only after its commit is on disk
//! (WAL, `synchronous=FULL`): that is what makes a [`Recorded`] worth its name.

mod authority;
mod change;
mod live;
mod log;
mod rows;
mod transaction;
mod write;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hallmark_core::id::{AgentName, HostId};
use hallmark_core::log::{Checkpoint, LogVerifier, TileId};
use hallmark_core::tier::Tier;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::sync::{mpsc, oneshot};

pub use authority::{Authority, Change, name as authority_name};
pub use live::{Live, Stale};
pub use log::{LogError, LogSigner, Proven};
pub use rows::{AllowedEk, HostRow, InstanceRow, RecordRow, RegistrationRow, Revocation, TrustDomainRow};
use write::{After, Request};
pub use write::{Ended, Ending, Issue, JoinTokenSpend, Recorded, Stays, Who, Write, WriteOutcome};
use writer::Writer;

use crate::record::Entry;

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or failed.
    #[error("store: {0}")]
    Database(#[from] sqlx::Error),
    /// Somebody else writes here.
    #[error("store: another hallmark-issuer has {} open: stop it first", path.display())]
    InUse {
        /// The lock's file.
        path: std::path::PathBuf,
    },
    /// The lock's file cannot be made.
    #[error("store: {}: {problem}", path.display())]
    Lock {
        /// The lock's file.
        path: std::path::PathBuf,
        /// Why.
        problem: std::io::Error,
    },
    /// The schema could not be brought up to date.
    #[error("store: schema: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The log does not go on.
    #[error("log: {0}")]
    Log(#[from] LogError),
    /// A row holds what this version cannot read.
    #[error("store: {table}: {problem}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// What was wrong with the row.
        problem: String,
    },
    /// A uniqueness rule of the trust domain would be broken.
    #[error("{0}")]
    Conflict(Conflict),
    /// The writer has stopped: the process is ending, or its database failed for good.
    #[error("store: the writer has stopped")]
    Stopped,
}

/// A binding that is taken for ever.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The host id belongs to another EK.
    #[error("host id {host_id} is bound to another TPM (EK {bound_to}); a host id keeps its TPM for ever")]
    HostIdTaken {
        /// The host id asked for.
        host_id: String,
        /// Hex digest of the EK it is bound to, or `a join token`.
        bound_to: String,
    },
    /// The EK belongs to another host id.
    #[error("this TPM is enrolled as {enrolled_as} and cannot also be {host_id}")]
    EkTaken {
        /// The host id asked for.
        host_id: String,
        /// The host id that the EK is bound to.
        enrolled_as: String,
    },
    /// The join token bought nothing.
    #[error("{0}")]
    JoinToken(#[from] JoinTokenSpend),
    /// An operator disabled the host.
    #[error("host {host_id} is disabled: {reason} (hallmark host enable {host_id})")]
    Disabled {
        /// The host.
        host_id: String,
        /// The operator's words.
        reason: String,
    },
    /// An operator removed the host.
    #[error(
        "host {host_id} was removed; it may enrol again after `hallmark host allow {host_id} --ek-sha256 …`"
    )]
    Removed {
        /// The host.
        host_id: String,
    },
    /// No such host is enrolled, or it is disabled.
    #[error("host {host_id} is not enrolled here, or is disabled")]
    NotEnrolled {
        /// The host.
        host_id: String,
    },
    /// A CA is not where it was taken to be.
    #[error(
        "the {hierarchy} {role} CA {generation} is not {expected} any more: look again (hallmark ca list)"
    )]
    Authority {
        /// Its hierarchy.
        hierarchy: String,
        /// Root or issuing.
        role: &'static str,
        /// Its generation.
        generation: u32,
        /// The stage it was thought to be at.
        expected: &'static str,
    },
    /// The EK was shown to be a software TPM's; no word makes it hardware.
    #[error("the TPM of host {host_id} was shown to be a software TPM: it cannot be vouched for as hardware")]
    Simulated {
        /// The host.
        host_id: String,
    },
}

/// A store that is open and not written yet: who writes needs the log's key.
#[derive(Debug)]
pub struct Opened {
    lock: File,
    writer: SqlitePool,
    reads: SqlitePool,
}

/// The issuer's state.
#[derive(Clone, Debug)]
pub struct Store {
    reads: SqlitePool,
    signer: LogSigner,
    live: Arc<Live>,
    writes: mpsc::Sender<Request>,
}

/// How often, and how long between, the lock is tried.
const LOCK_TRIES: usize = 20;
const LOCK_WAIT: Duration = Duration::from_millis(50);
/// How many write requests may wait before callers are held back.
const WRITE_QUEUE: usize = 1024;

impl Opened {
    /// The trust domain, if `init` has made one here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn trust_domain(&self) -> Result<Option<TrustDomainRow>, StoreError> {
        rows::trust_domain(&self.reads).await
    }

    /// Whether anything was ever signed here as this log's.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn has_checkpoint(&self) -> Result<bool, StoreError> {
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM log_checkpoint").fetch_one(&self.reads).await?;
        Ok(count > 0)
    }

    /// Begins to write, and to log what is written, once the records are held against the log's checkpoint.
    ///
    /// # Errors
    /// The store cannot be read, or its records are not those that were signed for.
    pub async fn write_with(self, signer: LogSigner) -> Result<Store, StoreError> {
        let (writes, queue) = mpsc::channel(WRITE_QUEUE);
        let (live, kept) = (Arc::new(Live::default()), signer.clone());
        tokio::spawn(Writer::new(self.writer, self.lock, live.clone(), signer).await?.run(queue));
        Ok(Store { reads: self.reads, signer: kept, live, writes })
    }
}

impl Store {
    /// Opens the database file, making it when absent, and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, or its schema is newer than this program.
    pub async fn open(path: &Path) -> Result<Opened, StoreError> {
        let lock = lock(&path.with_extension("lock")).await?;
        let options = SqliteConnectOptions::from_str("sqlite://")?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .pragma("cache_size", "-2048")
            .pragma("wal_autocheckpoint", "4000");
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!().run(&writer).await?;
        let reads = SqlitePoolOptions::new()
            .max_connections(2)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await?;
        Ok(Opened { lock, writer, reads })
    }

    /// Proves that the log has the record of the certificate with this serial; none if there is no such record.
    ///
    /// # Errors
    /// The store cannot be read, or what it holds does not lead to its own checkpoint.
    pub async fn prove(&self, serial: &[u8]) -> Result<Option<Proven>, StoreError> {
        log::prove(&self.reads, serial).await
    }

    /// The log's newest checkpoint, and as it is signed; none before the first record.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn checkpoint(&self) -> Result<Option<(Checkpoint, Vec<u8>)>, StoreError> {
        log::newest(&self.reads).await
    }

    /// A tile of the log as it is when it has `size` entries.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn log_tile(&self, id: TileId, size: u64) -> Result<Vec<u8>, StoreError> {
        log::served_tile(&self.reads, id, size).await
    }

    /// The log's entries from index `from` to before `to`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn log_entries(&self, from: u64, to: u64) -> Result<Vec<String>, StoreError> {
        log::entries(&self.reads, from, to).await
    }

    /// What the log's checkpoints are verified with.
    pub fn log_verifier(&self) -> &LogVerifier {
        self.signer.verifier()
    }

    /// The log's name and key.
    pub fn log_signer(&self) -> &LogSigner {
        &self.signer
    }

    /// Commits `writes` as a whole, together with whatever else is waiting, and returns once they are
    /// durable. The last word on conflicts: a refused write leaves none of this request's traces.
    ///
    /// # Errors
    /// A conflict, or a database failure; in both cases nothing of this request was kept.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<WriteOutcome, StoreError> {
        self.ask(writes, None).await
    }

    /// As [`Store::commit`]; once it is durable, and before anybody hears of it, `after` is run, in the order
    /// of the commits. It is run even if the caller has gone away: memory cannot fall behind the store.
    ///
    /// # Errors
    /// As [`Store::commit`]; `after` was not run.
    pub async fn commit_then(
        &self,
        writes: Vec<Write>,
        after: impl FnOnce(&WriteOutcome) + Send + 'static,
    ) -> Result<WriteOutcome, StoreError> {
        self.ask(writes, Some(Box::new(after))).await
    }

    async fn ask(&self, writes: Vec<Write>, after: Option<After>) -> Result<WriteOutcome, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes.send(Request { writes, after, reply }).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// What is alive, as the writer sees it.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Records one decision that changes nothing else.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn record(&self, entry: Entry) -> Result<Recorded, StoreError> {
        let outcome = self.commit(vec![Write::Record(entry)]).await?;
        // A plain record is never stale.
        outcome.records.into_iter().next().and_then(Result::ok).ok_or(StoreError::Stopped)
    }

    /// The trust domain, if `init` has made one here.
    pub async fn trust_domain(&self) -> Result<Option<TrustDomainRow>, StoreError> {
        rows::trust_domain(&self.reads).await
    }

    /// All CAs, roots first.
    pub async fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        authority::all(&self.reads).await
    }

    /// How many unexpired credentials of a tier this issuing CA has signed.
    pub async fn signed_by(&self, tier: Tier, ca: u32, now: i64) -> Result<u64, StoreError> {
        authority::signed_by(&self.reads, tier, ca, now).await
    }

    /// All enrolled hosts.
    pub async fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        rows::hosts(&self.reads).await
    }

    /// Hosts that were removed, and when last.
    pub async fn removals(&self) -> Result<Vec<(HostId, i64)>, StoreError> {
        rows::removals(&self.reads).await
    }

    /// Whether an EK was ever shown to be a software TPM's.
    pub async fn ek_was_simulated(&self, ek_digest: &[u8; 32]) -> Result<bool, StoreError> {
        rows::ek_was_simulated(&self.reads, ek_digest).await
    }

    /// Whether a join token would be accepted from this host at `now`. Only spending it takes it.
    ///
    /// # Errors
    /// It would buy nothing, or the store cannot be read.
    pub async fn check_join_token(&self, hash: &[u8; 32], host: &HostId, now: i64) -> Result<(), StoreError> {
        rows::join_token(&self.reads, hash, host, now)
            .await?
            .map_err(|why| StoreError::Conflict(Conflict::JoinToken(why)))
    }

    /// The allow-list.
    pub async fn allowed_eks(&self) -> Result<Vec<AllowedEk>, StoreError> {
        rows::allowed_eks(&self.reads).await
    }

    /// All registrations, by name.
    pub async fn registrations(&self) -> Result<Vec<RegistrationRow>, StoreError> {
        rows::registrations(&self.reads).await
    }

    /// The registration set's revision.
    pub async fn registrations_revision(&self) -> Result<u64, StoreError> {
        let revision: i64 =
            sqlx::query_scalar("SELECT revision FROM registration_set").fetch_one(&self.reads).await?;
        Ok(revision.unsigned_abs())
    }

    /// Instances of one agent, newest first, at most `limit`.
    pub async fn instances(&self, agent: &AgentName, limit: usize) -> Result<Vec<InstanceRow>, StoreError> {
        rows::instances(&self.reads, agent, limit).await
    }

    /// Records after number `after`, oldest first, at most `limit`; with 0 the latest ones.
    pub async fn records(
        &self,
        after: u64,
        limit: u32,
        agent: Option<&str>,
        host: Option<&str>,
    ) -> Result<Vec<RecordRow>, StoreError> {
        rows::records(&self.reads, after, limit, agent, host).await
    }

    /// Revocations of certificates that are still within their validity at `now`.
    pub async fn revocations(&self, now: i64) -> Result<Vec<Revocation>, StoreError> {
        rows::revocations(&self.reads, now).await
    }

    /// Serials of a host's revoked certificates that are still within their validity at `now`.
    pub async fn revoked_on(&self, host: &HostId, now: i64) -> Result<Vec<Vec<u8>>, StoreError> {
        rows::revoked_on(&self.reads, host, now).await
    }

    /// Time of the newest record, in seconds since 1970.
    pub async fn newest_record_at(&self) -> Result<Option<i64>, StoreError> {
        Ok(sqlx::query_scalar("SELECT at FROM records ORDER BY number DESC LIMIT 1")
            .fetch_optional(&self.reads)
            .await?)
    }
}

/// Takes the store for this process alone: two writers would count records each by itself. One that is ending has
/// a moment to let go.
async fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |problem| StoreError::Lock { path: path.to_owned(), problem };
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_WAIT).await,
            Err(TryLockError::Error(problem)) => return Err(failed(problem)),
        }
    }
    Err(StoreError::InUse { path: path.to_owned() })
}

/// A number as the database holds it.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Seconds since 1970, by this machine's clock.
pub(crate) fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
