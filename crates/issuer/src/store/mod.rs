//! What an issuer must not forget, behind a narrow interface.
//!
//! Reads go to a small pool; every write goes through one writer task that gathers all requests in
//! flight into one transaction (`writer`). A write's future resolves only after its commit is on disk
//! (WAL, `synchronous=FULL`): that is what makes a [`Recorded`] worth its name.

mod rows;
mod writer;

use std::path::Path;
use std::str::FromStr;

use hallmark_core::id::{AgentName, HostId};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::sync::{mpsc, oneshot};

pub use rows::{
    AllowedEk, Authority, AuthorityKind, HostRow, InstanceRow, RecordRow, RegistrationRow, Revocation,
    TrustDomainRow,
};
pub use writer::{JoinTokenSpend, NewInstance, Recorded, Write, WriteOutcome};

use crate::record::Entry;

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or failed.
    #[error("store: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("store: schema: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
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
}

/// The issuer's state.
#[derive(Clone, Debug)]
pub struct Store {
    reads: SqlitePool,
    writes: mpsc::Sender<writer::Request>,
}

/// How many write requests may wait before callers are held back.
const WRITE_QUEUE: usize = 1024;

impl Store {
    /// Opens the database file, making it when absent, and brings its schema up to date.
    ///
    /// # Errors
    /// The file cannot be opened, or its schema is newer than this program.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str("sqlite://")?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(std::time::Duration::from_secs(10))
            .pragma("cache_size", "-2048")
            .pragma("wal_autocheckpoint", "4000");
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!().run(&writer).await?;
        let reads = SqlitePoolOptions::new()
            .max_connections(2)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await?;
        let (writes, queue) = mpsc::channel(WRITE_QUEUE);
        let next = writer::next_record_number(&writer).await?;
        tokio::spawn(writer::run(writer, queue, next));
        Ok(Self { reads, writes })
    }

    /// Commits `writes` as a whole, together with whatever else is waiting, and returns once they are
    /// durable. The last word on conflicts: a refused write leaves none of this request's traces.
    ///
    /// # Errors
    /// A conflict, or a database failure; in both cases nothing of this request was kept.
    pub async fn commit(&self, writes: Vec<Write>) -> Result<WriteOutcome, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes.send((writes, reply)).await.map_err(|_| StoreError::Stopped)?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    /// Records one decision that changes nothing else.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn record(&self, entry: Entry) -> Result<Recorded, StoreError> {
        let outcome = self.commit(vec![Write::Record(entry)]).await?;
        outcome.records.into_iter().next().ok_or(StoreError::Stopped)
    }

    /// The trust domain, if `init` has made one here.
    pub async fn trust_domain(&self) -> Result<Option<TrustDomainRow>, StoreError> {
        rows::trust_domain(&self.reads).await
    }

    /// All CA certificates, roots first.
    pub async fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        rows::authorities(&self.reads).await
    }

    /// All enrolled hosts.
    pub async fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        rows::hosts(&self.reads).await
    }

    /// The host that an EK is bound to.
    pub async fn host_of_ek(&self, ek_digest: &[u8; 32]) -> Result<Option<HostId>, StoreError> {
        rows::host_of_ek(&self.reads, ek_digest).await
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

    /// Instances of one agent, or of all, newest first, at most `limit`.
    pub async fn instances(
        &self,
        agent: Option<&AgentName>,
        limit: u32,
    ) -> Result<Vec<InstanceRow>, StoreError> {
        rows::instances(&self.reads, agent, limit).await
    }

    /// Instances that have not ended and whose credential is valid at `now`.
    pub async fn live_instances(&self, now: i64) -> Result<Vec<InstanceRow>, StoreError> {
        rows::live_instances(&self.reads, now).await
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

    /// Time of the newest record, in seconds since 1970.
    pub async fn newest_record_at(&self) -> Result<Option<i64>, StoreError> {
        Ok(sqlx::query_scalar("SELECT at FROM records ORDER BY number DESC LIMIT 1")
            .fetch_optional(&self.reads)
            .await?)
    }
}

#[cfg(test)]
mod tests;
