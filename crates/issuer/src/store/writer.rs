//! Writing: one task, one connection, one transaction for everything that waits.
//!
//! Requests that only append (decisions and the credentials they release) are the bulk: they go in as
//! multi-row statements of a few fixed sizes, so that SQLite keeps each prepared. Requests that can be
//! refused run first, each inside a savepoint of its own, so that one refusal undoes that request alone.
//! What the appending ones claim is then held against what is alive ([`super::live`]).

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hallmark_core::id::{HostId, InstanceId};
use sqlx::error::ErrorKind;
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{Arguments, Connection, SqliteConnection};
use tokio::sync::mpsc;

use super::change::{self, Turned};
use super::live::{Claim, Live};
use super::log::{self, Log, LogSigner};
use super::rows;
use super::transaction::{BEGIN, discard};
use super::write::{After, Issue, Recorded, Reply, Request, Write, WriteOutcome};
use super::{StoreError, unix_now};
use crate::record::Entry;

/// Most requests gathered into one commit.
const GROUP: usize = 256;
/// Longest that a commit waits for more to join it while more keeps coming.
const PATIENCE: Duration = Duration::from_millis(3);

/// The writer's own state.
pub(super) struct Writer {
    db: SqlitePool,
    live: Arc<Live>,
    log: Log,
    /// Held for as long as this writes.
    _lock: File,
    /// A commit failed: what is alive must be read anew before anything is held against it.
    reload: bool,
    /// Where hosts stood before the commit under way.
    before: Vec<(HostId, u64)>,
}

impl Writer {
    /// Reads the log and what is alive.
    pub(super) async fn new(
        db: SqlitePool,
        lock: File,
        live: Arc<Live>,
        signer: LogSigner,
    ) -> Result<Self, StoreError> {
        let log = Log::load(&db, signer).await?;
        rows::load_live(&db, &live, unix_now()).await?;
        Ok(Self { db, live, log, _lock: lock, reload: false, before: Vec::new() })
    }

    /// Serves write requests until every [`super::Store`] is gone.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(GROUP);
        while gather(&mut queue, &mut group).await {
            let (mut writes, mut answers) =
                (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
            for request in group.drain(..) {
                writes.push(request.writes);
                answers.push((request.after, request.reply));
            }
            match self.commit(writes).await {
                Ok(outcomes) => self.answer(answers, outcomes),
                Err(error) => {
                    self.reload = true;
                    self.undo();
                    tracing::error!(%error, requests = answers.len(), "store: a commit failed; nothing of it is released");
                    let text = error.to_string();
                    for (_, reply) in answers {
                        let error = sqlx::Error::Io(std::io::Error::other(text.clone()));
                        // A caller that has gone away has lost its answer, not its record.
                        let _ = reply.send(Err(StoreError::Database(error)));
                    }
                }
            }
        }
    }

    /// Memory follows the store first; then whoever asked hears of it.
    fn answer(&self, answers: Vec<(Option<After>, Reply)>, outcomes: Outcomes) {
        let mut replies = Vec::with_capacity(answers.len());
        for ((after, reply), outcome) in answers.into_iter().zip(outcomes) {
            if let (Some(after), Ok(outcome)) = (after, &outcome) {
                after(outcome);
            }
            replies.push((reply, outcome));
        }
        for (reply, outcome) in replies {
            // As above: whoever asked may be gone.
            let _ = reply.send(outcome);
        }
    }

    /// Hosts stand where they stood before the commit that failed.
    fn undo(&mut self) {
        let mut live = self.live.lock();
        for (host, epoch) in self.before.drain(..).rev() {
            live.turn(host, epoch);
        }
    }

    async fn commit(&mut self, requests: Vec<Vec<Write>>) -> Result<Outcomes, StoreError> {
        self.before.clear();
        if self.reload {
            self.log = Log::load(&self.db, self.log.signer()).await?;
            rows::load_live(&self.db, &self.live, unix_now()).await?;
            self.reload = false;
        }
        let mut connection = self.db.acquire().await?;
        let result = self.commit_on(&mut connection, requests).await;
        if result.is_err() {
            discard(connection).await;
        }
        result
    }

    async fn commit_on(
        &mut self,
        connection: &mut SqliteConnection,
        requests: Vec<Vec<Write>>,
    ) -> Result<Outcomes, StoreError> {
        let mut tx = connection.begin_with(BEGIN).await?;
        let mut batch = Batch { next: self.log.size() + 1, ..Batch::default() };
        let mut outcomes: Outcomes = Vec::with_capacity(requests.len());
        let mut appending: Vec<(usize, Vec<Write>)> = Vec::with_capacity(requests.len());
        for writes in requests {
            let (append, conditional): (Vec<_>, Vec<_>) =
                writes.into_iter().partition(|w| matches!(w, Write::Record(_) | Write::Issue(_)));
            let mut outcome = WriteOutcome::default();
            if !conditional.is_empty() {
                match self.change(&mut tx, conditional).await? {
                    Ok(turned) => {
                        for entry in turned.entries {
                            batch.append(entry);
                        }
                        outcome.ended = turned.ended;
                    }
                    Err(refused) => {
                        outcomes.push(Err(refused));
                        continue;
                    }
                }
            }
            appending.push((outcomes.len(), append));
            outcomes.push(Ok(outcome));
        }
        self.admit(appending, &mut batch, &mut outcomes);
        insert_records(&mut tx, &batch.entries).await?;
        insert_credentials(&mut tx, &batch.credentials).await?;
        let grown = match batch.entries.as_slice() {
            [] => None,
            entries => Some(self.log.append(&mut tx, log::leaves(entries)).await?),
        };
        tx.commit().await?;
        if let Some(grown) = grown {
            self.log.become_grown(grown);
        }
        Ok(outcomes)
    }

    /// Applies one request's conditional writes in a savepoint. The outer error is the database's, the
    /// inner one a refusal.
    async fn change(
        &mut self,
        tx: &mut SqliteConnection,
        writes: Vec<Write>,
    ) -> Result<Result<Turned, StoreError>, StoreError> {
        sqlx::query("SAVEPOINT request").execute(&mut *tx).await?;
        let mut turned = Turned::default();
        for write in writes {
            match change::apply(tx, &self.live, write, &mut turned).await {
                Ok(()) => {}
                Err(StoreError::Database(e)) if !is_refusal(&e) => return Err(StoreError::Database(e)),
                Err(refused) => return take_back(tx, refused).await,
            }
        }
        if let Some(long) = turned.entries.iter().find(|entry| log::is_too_long(entry)) {
            let refused = log::LogError::TooLong(long.body.len()).into();
            return take_back(tx, refused).await;
        }
        sqlx::query("RELEASE request").execute(&mut *tx).await?;
        self.before.extend(turned.take_effect(&self.live));
        Ok(Ok(turned))
    }

    /// Numbers what is appended, and holds each credential against what is alive.
    fn admit(&self, appending: Vec<(usize, Vec<Write>)>, batch: &mut Batch, outcomes: &mut Outcomes) {
        let mut live = self.live.lock();
        for (place, writes) in appending {
            if let Some(length) = writes.iter().find_map(too_long) {
                // Only this request is refused: another's records wait for nobody's mistake.
                if let Some(outcome) = outcomes.get_mut(place) {
                    *outcome = Err(log::LogError::TooLong(length).into());
                }
                continue;
            }
            let Some(Ok(outcome)) = outcomes.get_mut(place) else { continue };
            for write in writes {
                match write {
                    Write::Record(entry) => outcome.records.push(Ok(batch.append(entry))),
                    Write::Issue(issue) => outcome.records.push(match live.admit(&issue.claim()) {
                        Ok(()) => Ok(batch.issue(*issue)),
                        Err(stale) => Err(stale),
                    }),
                    _ => {}
                }
            }
        }
    }
}

/// Whether the database refused a row, rather than failed.
fn is_refusal(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| !matches!(e.kind(), ErrorKind::Other))
}

/// Undoes what a refused request has done.
async fn take_back(
    tx: &mut SqliteConnection,
    refused: StoreError,
) -> Result<Result<Turned, StoreError>, StoreError> {
    sqlx::query("ROLLBACK TO request").execute(&mut *tx).await?;
    sqlx::query("RELEASE request").execute(&mut *tx).await?;
    Ok(Err(refused))
}

fn too_long(write: &Write) -> Option<usize> {
    let entry = match write {
        Write::Record(entry) => entry,
        Write::Issue(issue) => &issue.entry,
        _ => return None,
    };
    log::is_too_long(entry).then_some(entry.body.len())
}

/// Takes what waits, and lets every task that is ready to run go first: what those ask for joins the same
/// commit. A request that comes alone is kept waiting by nothing. False: nobody is left to ask.
async fn gather(queue: &mut mpsc::Receiver<Request>, group: &mut Vec<Request>) -> bool {
    if queue.recv_many(group, GROUP).await == 0 {
        return false;
    }
    let begun = Instant::now();
    loop {
        let before = group.len();
        tokio::task::yield_now().await;
        while group.len() < GROUP
            && let Ok(request) = queue.try_recv()
        {
            group.push(request);
        }
        if group.len() == before || group.len() >= GROUP || begun.elapsed() >= PATIENCE {
            return true;
        }
    }
}

impl Issue {
    fn claim(&self) -> Claim<'_> {
        Claim {
            instance: self.instance,
            agent: &self.agent,
            host: &self.host,
            tier: self.tier,
            ca: self.ca,
            registration_revision: self.registration_revision,
            host_epoch: self.host_epoch,
            now: self.issued_at,
            not_after: self.not_after,
        }
    }
}

type Outcomes = Vec<Result<WriteOutcome, StoreError>>;

/// Rows to be appended in one commit.
#[derive(Default)]
struct Batch {
    next: u64,
    entries: Vec<(u64, Entry)>,
    credentials: Vec<Credential>,
}

struct Credential {
    number: u64,
    instance: InstanceId,
    tier: &'static str,
    ca: u32,
    custody: &'static str,
    not_after: i64,
}

impl Batch {
    fn append(&mut self, entry: Entry) -> Recorded {
        let number = self.next;
        self.entries.push((number, entry));
        self.next += 1;
        Recorded::new(number)
    }

    fn issue(&mut self, issue: Issue) -> Recorded {
        let Issue { entry, instance, tier, ca, custody, not_after, .. } = issue;
        let recorded = self.append(entry);
        let number = recorded.number();
        let tier = tier.as_str();
        self.credentials.push(Credential { number, instance, tier, ca, custody, not_after });
        recorded
    }
}

/// Rows a statement: each size is one prepared statement.
const CHUNKS: [usize; 7] = [64, 32, 16, 8, 4, 2, 1];

fn chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = CHUNKS.into_iter().find(|size| *size <= rows.len())?;
        let (now, later) = rows.split_at(size);
        rows = later;
        Some(now)
    })
}

fn values(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    vec![row; rows].join(",")
}

fn bind_failed(e: sqlx::error::BoxDynError) -> StoreError {
    StoreError::Database(sqlx::Error::Encode(e))
}

async fn insert_records(tx: &mut SqliteConnection, entries: &[(u64, Entry)]) -> Result<(), StoreError> {
    for chunk in chunks(entries) {
        let sql = format!(
            "INSERT INTO records (number, at, kind, outcome, host_id, agent, serial, body) VALUES {}",
            values(chunk.len(), 8)
        );
        let mut arguments = SqliteArguments::default();
        for (number, entry) in chunk {
            let number = i64::try_from(*number).unwrap_or(i64::MAX);
            arguments.add(number).map_err(bind_failed)?;
            arguments.add(entry.at).map_err(bind_failed)?;
            arguments.add(entry.kind).map_err(bind_failed)?;
            arguments.add(entry.outcome).map_err(bind_failed)?;
            arguments.add(entry.host_id.as_deref()).map_err(bind_failed)?;
            arguments.add(entry.agent.as_deref()).map_err(bind_failed)?;
            arguments.add(entry.serial.as_ref().map(|s| s.as_slice())).map_err(bind_failed)?;
            arguments.add(entry.body.as_str()).map_err(bind_failed)?;
        }
        sqlx::query_with(&sql, arguments).execute(&mut *tx).await?;
    }
    Ok(())
}

async fn insert_credentials(tx: &mut SqliteConnection, credentials: &[Credential]) -> Result<(), StoreError> {
    for chunk in chunks(credentials) {
        let sql = format!(
            "INSERT INTO credentials (number, instance_id, tier, ca, custody, not_after) VALUES {}",
            values(chunk.len(), 6)
        );
        let mut arguments = SqliteArguments::default();
        for credential in chunk {
            let number = i64::try_from(credential.number).unwrap_or(i64::MAX);
            arguments.add(number).map_err(bind_failed)?;
            arguments.add(credential.instance.as_bytes().as_slice()).map_err(bind_failed)?;
            arguments.add(credential.tier).map_err(bind_failed)?;
            arguments.add(i64::from(credential.ca)).map_err(bind_failed)?;
            arguments.add(credential.custody).map_err(bind_failed)?;
            arguments.add(credential.not_after).map_err(bind_failed)?;
        }
        sqlx::query_with(&sql, arguments).execute(&mut *tx).await?;
    }
    Ok(())
}
