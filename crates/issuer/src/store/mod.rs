//! What an issuer must not forget, behind a narrow interface.
//!
//! Two databases can keep it: SQLite, one issuer's own file, or PostgreSQL, shared by several issuers (`db`,
//! `schema`, `shared`). Reads go to a small pool; every write goes through one writer task that gathers all requests
//! in flight into one transaction (`writer`). A write's future resolves only after its commit is on disk (SQLite: WAL,
//! `synchronous=FULL`; PostgreSQL: `synchronous_commit=on`): that is what makes a [`Durable`] worth its name, and with
//! its quorum of witnesses, where one is required, a [`Recorded`] (`witnessed`).

mod authority;
mod backup;
mod change;
mod copy;
pub mod cost;
mod db;
mod live;
mod log;
mod open;
mod regain;
mod rows;
mod schema;
mod shared;
mod witnessed;
mod write;
mod writer;

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hallmark_core::id::{AgentName, HostId, IssuerId};
use hallmark_core::log::{Checkpoint, LogVerifier, TileId};
use hallmark_core::tier::Tier;
use sqlx::postgres::PgListener;
use tokio::sync::{mpsc, oneshot};

pub use authority::{Authority, Change, name as authority_name};
pub use backup::{Held, Progress, Unpacked, backup};
use db::{Pool, query};
pub use live::{Live, Stale};
pub use log::{FoundBy, LogError, LogSigner, Proven};
pub use open::Location;
pub use regain::{Regained, ToDo};
pub use rows::{AllowedEk, HostRow, InstanceRow, RecordRow, RegistrationRow, Revocation, TrustDomainRow};
pub use shared::Heard;
use shared::{Delivery, Ear};
pub use witnessed::{Place, Recorded, Shown, Standing, Witnessing};
use write::{After, Request};
pub use write::{Durable, Ended, Ending, Issue, JoinTokenSpend, Stays, Who, Write, WriteOutcome};
use writer::{Parts, Writer};

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
    /// Somebody else writes as this issuer.
    #[error(
        "store: another hallmark-issuer with issuer_id {issuer:?} writes to this database: each issuer has an id of its own"
    )]
    IssuerInUse {
        /// The id.
        issuer: String,
    },
    /// The lock's file cannot be made.
    #[error("store: {}: {problem}", path.display())]
    Lock {
        /// The lock's file.
        path: std::path::PathBuf,
        /// Why.
        problem: std::io::Error,
    },
    /// The server may forget what it has confirmed.
    #[error(
        "store: the PostgreSQL server has {setting} = {is}: it may lose what it confirmed. Set it to on, and restart the server"
    )]
    NotDurable {
        /// Its setting.
        setting: &'static str,
        /// What it is set to.
        is: String,
    },
    /// A commit was given up; whether it came to be is not known.
    #[error("store: the database does not answer")]
    Deadline,
    /// The schema could not be brought up to date.
    #[error("store: schema: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The log does not go on.
    #[error("log: {0}")]
    Log(#[from] LogError),
    /// A backup's file.
    #[error("{}: {problem}", path.display())]
    File {
        /// Where it is.
        path: std::path::PathBuf,
        /// Why.
        problem: std::io::Error,
    },
    /// Not a backup of this store.
    #[error("not a backup to put back here: {0}")]
    NoBackup(String),
    /// There is something already.
    #[error("the store has records of this issuer already; a backup is put back where there are none")]
    NotEmpty,
    /// Another version of this program made the schema.
    #[error("the store's schema has version {found}, and this program's is {mine}: {remedy}")]
    Schema {
        /// The store's.
        found: i64,
        /// This program's.
        mine: i64,
        /// What to do.
        remedy: &'static str,
    },
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
    /// The witnesses that are required did not cosign in time.
    #[error("log: too few witnesses have cosigned its checkpoint in time; nothing was released: try again")]
    Unwitnessed,
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
    /// Somebody else changed in the meantime what was decided upon.
    #[error("it was changed through another issuer in the meantime: try again")]
    Overtaken,
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
    issuer: IssuerId,
    lock: Option<File>,
    writer: Pool,
    reads: Pool,
}

/// The issuer's state.
#[derive(Clone)]
pub struct Store {
    reads: Pool,
    signer: LogSigner,
    live: Arc<Live>,
    epochs: Arc<AtomicU64>,
    news: Arc<Delivery>,
    witnessing: Option<Arc<Witnessing>>,
    writes: mpsc::Sender<Request>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("reads", &self.reads).finish_non_exhaustive()
    }
}

/// How many write requests may wait before callers are held back.
const WRITE_QUEUE: usize = 1024;
/// How often other issuers' changes are asked for, should nobody be woken by them.
const POLL: Duration = Duration::from_secs(1);

impl Opened {
    /// The trust domain, if `init` has made one here.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn trust_domain(&self) -> Result<Option<TrustDomainRow>, StoreError> {
        rows::trust_domain(&mut self.reads.acquire().await?.on()).await
    }

    /// All CAs, roots first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        authority::all(&mut self.reads.acquire().await?.on()).await
    }

    /// Whether anything was ever signed here as this log's.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn has_checkpoint(&self) -> Result<bool, StoreError> {
        let mut session = self.reads.acquire().await?;
        let size: Option<i64> =
            query("SELECT size FROM log_checkpoint").fetch_scalar(&mut session.on()).await?;
        Ok(size.is_some())
    }

    /// Begins to write, and to log what is written, once the records are held against the log's checkpoint.
    ///
    /// # Errors
    /// The store cannot be read, or its records are not those that were signed for.
    pub async fn write_with(self, signer: LogSigner) -> Result<Store, StoreError> {
        let (writes, queue) = mpsc::channel(WRITE_QUEUE);
        let store = Store {
            reads: self.reads,
            signer: signer.clone(),
            live: Arc::default(),
            // 0 is where a host stands at the start.
            epochs: Arc::new(AtomicU64::new(1)),
            news: Arc::default(),
            witnessing: None,
            writes,
        };
        let ear = Ear::new(store.epochs.clone(), store.news.clone());
        let parts = Parts {
            issuer: self.issuer.clone(),
            db: self.writer,
            lock: self.lock,
            live: store.live.clone(),
            ear,
        };
        tokio::spawn(Writer::new(parts, signer).await?.run(queue));
        if let Pool::Postgres(_) = store.reads {
            tokio::spawn(listen(store.reads.clone(), self.issuer, store.writes.downgrade()));
        }
        Ok(store)
    }
}

/// Has the writer look at what other issuers have changed: when they say so, and now and then.
async fn listen(reads: Pool, me: IssuerId, writes: mpsc::WeakSender<Request>) {
    let Pool::Postgres(pool) = reads else { return };
    let mut listener = None;
    loop {
        if listener.is_none() {
            listener = match PgListener::connect_with(&pool).await {
                Ok(mut new) => new.listen(shared::CHANNEL).await.is_ok().then_some(new),
                Err(error) => {
                    tracing::debug!(%error, "store: other issuers are asked, for now, and do not call");
                    None
                }
            };
        }
        match &mut listener {
            Some(listening) => match tokio::time::timeout(POLL, listening.recv()).await {
                Ok(Ok(call)) if call.payload() == me.as_str() => continue,
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(_)) => listener = None,
            },
            None => tokio::time::sleep(POLL).await,
        }
        if !look(&writes).await {
            return;
        }
    }
}

/// A commit of nothing looks. False: nobody writes any more.
async fn look(writes: &mpsc::WeakSender<Request>) -> bool {
    let Some(writes) = writes.upgrade() else { return false };
    let (reply, answer) = oneshot::channel();
    let look = Request { writes: Vec::new(), after: None, reply };
    if writes.send(look).await.is_err() {
        return false;
    }
    drop(writes);
    // A commit that fails has said so.
    let _ = answer.await;
    true
}

impl Store {
    /// Opens the database, making it when absent, and brings its schema up to date.
    ///
    /// # Errors
    /// It cannot be opened, its schema is newer than this program, or somebody else writes to it as this issuer.
    pub async fn open(location: &Location, issuer: &IssuerId) -> Result<Opened, StoreError> {
        open::open(location, issuer).await
    }

    /// Has `observer` take in what other issuers change, from here on; called once.
    pub fn observe(&self, observer: impl Fn(&Heard) + Send + Sync + 'static) {
        self.news.observe(Box::new(observer));
    }

    /// A number that no host's standing has had in this process.
    pub fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::Relaxed)
    }

    /// With witnesses.
    #[must_use]
    pub fn witnessed_by(self, witnessing: Arc<Witnessing>) -> Self {
        Self { witnessing: Some(witnessing), ..self }
    }

    /// How far the log is witnessed; none without witnesses.
    pub fn witnessing(&self) -> Option<&Witnessing> {
        self.witnessing.as_deref()
    }

    /// A place for so many records that are to be released once they are durable.
    ///
    /// # Errors
    /// The witnesses that are required are away. Nothing was recorded.
    pub async fn place(&self, records: usize) -> Result<Place<'_>, StoreError> {
        Place::take(self.witnessing(), records).await
    }

    /// As [`Place::release`], with all the time that it takes.
    pub async fn release_whenever(
        &self,
        durable: Vec<Result<Durable, Stale>>,
    ) -> Vec<Result<Recorded, Stale>> {
        witnessed::release_whenever(self.witnessing(), durable).await
    }

    /// Proves that the log has this record, under the newest checkpoint that is published if it covers it; none if there is no such record.
    ///
    /// # Errors
    /// The store cannot be read, or what it holds does not lead to its own checkpoint.
    pub async fn prove(&self, by: FoundBy<'_>) -> Result<Option<Proven>, StoreError> {
        log::prove(&self.reads, by, self.witnessing.as_ref().and_then(|w| w.shown())).await
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
    pub async fn record(&self, entry: Entry) -> Result<Durable, StoreError> {
        let outcome = self.commit(vec![Write::Record(entry)]).await?;
        // A plain record is never stale.
        outcome.records.into_iter().next().and_then(Result::ok).ok_or(StoreError::Stopped)
    }

    /// The trust domain, if `init` has made one here.
    pub async fn trust_domain(&self) -> Result<Option<TrustDomainRow>, StoreError> {
        rows::trust_domain(&mut self.reads.acquire().await?.on()).await
    }

    /// All CAs, roots first.
    pub async fn authorities(&self) -> Result<Vec<Authority>, StoreError> {
        authority::all(&mut self.reads.acquire().await?.on()).await
    }

    /// How many unexpired credentials of a tier this issuing CA has signed.
    pub async fn signed_by(&self, tier: Tier, ca: u32, now: i64) -> Result<u64, StoreError> {
        authority::signed_by(&mut self.reads.acquire().await?.on(), tier, ca, now).await
    }

    /// All enrolled hosts.
    pub async fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        rows::hosts(&mut self.reads.acquire().await?.on()).await
    }

    /// Hosts that were removed, and when last.
    pub async fn removals(&self) -> Result<Vec<(HostId, i64)>, StoreError> {
        rows::removals(&mut self.reads.acquire().await?.on()).await
    }

    /// Whether an EK was ever shown to be a software TPM's.
    pub async fn ek_was_simulated(&self, ek_digest: &[u8; 32]) -> Result<bool, StoreError> {
        rows::ek_was_simulated(&mut self.reads.acquire().await?.on(), ek_digest).await
    }

    /// Whether a join token would be accepted from this host at `now`. Only spending it takes it.
    ///
    /// # Errors
    /// It would buy nothing, or the store cannot be read.
    pub async fn check_join_token(&self, hash: &[u8; 32], host: &HostId, now: i64) -> Result<(), StoreError> {
        rows::join_token(&mut self.reads.acquire().await?.on(), hash, host, now)
            .await?
            .map_err(|why| StoreError::Conflict(Conflict::JoinToken(why)))
    }

    /// The allow-list.
    pub async fn allowed_eks(&self) -> Result<Vec<AllowedEk>, StoreError> {
        rows::allowed_eks(&mut self.reads.acquire().await?.on()).await
    }

    /// All registrations, by name.
    pub async fn registrations(&self) -> Result<Vec<RegistrationRow>, StoreError> {
        rows::registrations(&mut self.reads.acquire().await?.on()).await
    }

    /// The registration set's revision.
    pub async fn registrations_revision(&self) -> Result<u64, StoreError> {
        rows::registrations_revision(&mut self.reads.acquire().await?.on()).await
    }

    /// How many instances of each agent hold a valid credential at `now`.
    pub async fn live_by_agent(&self, now: i64) -> Result<HashMap<String, u64>, StoreError> {
        let mut session = self.reads.acquire().await?;
        Ok(rows::live_by_agent(&mut session.on(), now).await?.into_iter().collect())
    }

    /// How many instances hold a valid credential at `now`.
    pub async fn live_count(&self, now: i64) -> Result<u64, StoreError> {
        Ok(self.live_by_agent(now).await?.values().sum())
    }

    /// Instances of one agent, newest first, at most `limit`.
    pub async fn instances(&self, agent: &AgentName, limit: usize) -> Result<Vec<InstanceRow>, StoreError> {
        rows::instances(&mut self.reads.acquire().await?.on(), agent, limit).await
    }

    /// Records after number `after`, oldest first, at most `limit`; with 0 the latest ones.
    pub async fn records(
        &self,
        after: u64,
        limit: u32,
        agent: Option<&str>,
        host: Option<&str>,
    ) -> Result<Vec<RecordRow>, StoreError> {
        rows::records(&mut self.reads.acquire().await?.on(), after, limit, agent, host).await
    }

    /// Revocations of certificates that are still within their validity at `now`.
    pub async fn revocations(&self, now: i64) -> Result<Vec<Revocation>, StoreError> {
        rows::revocations(&mut self.reads.acquire().await?.on(), now).await
    }

    /// Serials of a host's revoked certificates that are still within their validity at `now`.
    pub async fn revoked_on(&self, host: &HostId, now: i64) -> Result<Vec<Vec<u8>>, StoreError> {
        rows::revoked_on(&mut self.reads.acquire().await?.on(), host, now).await
    }

    /// Time of the newest record, in seconds since 1970.
    pub async fn newest_record_at(&self) -> Result<Option<i64>, StoreError> {
        let mut session = self.reads.acquire().await?;
        let newest = query("SELECT at FROM records ORDER BY number DESC LIMIT 1");
        Ok(newest.fetch_scalar(&mut session.on()).await?)
    }
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
mod backup_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
