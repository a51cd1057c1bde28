//! Writing: one task, one connection, one transaction for everything that waits.
//!
//! Requests that only append (decisions and the credentials they release) are the bulk: they go in as
//! multi-row statements of a few fixed sizes, so that SQLite keeps each prepared. Requests that can be
//! refused run first, each inside a savepoint of its own, so that one refusal undoes that request alone.
//! What the appending ones claim is then held against what is alive ([`super::live`]).

use std::fmt::Write as _;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hallmark_core::id::{AgentName, HostId, InstanceId, IssuerId};
use sqlx::error::ErrorKind;
use tokio::sync::mpsc;

use super::change::{self, Scene, Turned};
use super::db::{On, Pool, Session, query};
use super::live::{Claim, Live};
use super::log::{self, Log, LogSigner};
use super::rows;
use super::shared::{self, Ear};
use super::write::{After, Durable, Issue, Reply, Request, Write, WriteOutcome};
use super::{StoreError, signed, unix_now};
use crate::metrics::metrics;
use crate::record::Entry;

/// Most requests gathered into one commit.
const GROUP: usize = 256;
/// Longest that a commit waits for more to join it while more keeps coming.
const PATIENCE: Duration = Duration::from_millis(3);

/// Longest that a commit on a database elsewhere may take: then nothing of it is released, whatever became of it.
const DEADLINE: Duration = Duration::from_secs(20);

/// The writer's own state.
pub(super) struct Writer {
    issuer: IssuerId,
    db: Pool,
    live: Arc<Live>,
    log: Log,
    ear: Ear,
    /// Held for as long as this writes.
    _lock: Option<File>,
    /// A commit failed: what is alive must be read anew before anything is held against it.
    reload: bool,
    /// Where hosts stood before the commit under way.
    before: Vec<(HostId, u64)>,
}

/// What a writer is made of.
pub(super) struct Parts {
    pub(super) issuer: IssuerId,
    pub(super) db: Pool,
    pub(super) lock: Option<File>,
    pub(super) live: Arc<Live>,
    pub(super) ear: Ear,
}

impl Writer {
    /// Reads the log and what is alive.
    pub(super) async fn new(parts: Parts, signer: LogSigner) -> Result<Self, StoreError> {
        let Parts { issuer, db, lock, live, mut ear } = parts;
        let mut session = db.acquire().await?;
        shared::join(&mut session.on(), &issuer).await?;
        ear.begin(&mut session.on()).await?;
        drop(session);
        let log = Log::load(&db, signer).await?;
        rows::load_live(&db, &live, unix_now()).await?;
        Ok(Self { issuer, db, live, log, ear, _lock: lock, reload: false, before: Vec::new() })
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
            metrics().taken(answers.len(), queue.len());
            let begun = Instant::now();
            let committed = self.commit(writes).await;
            metrics().committed(begun.elapsed(), committed.is_ok(), self.log.size());
            match committed {
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
        if matches!(self.db, Pool::Postgres(_)) {
            let reloaded = tokio::time::timeout(DEADLINE, self.reload()).await;
            reloaded.unwrap_or(Err(StoreError::Deadline))?;
        } else {
            self.reload().await?;
        }
        let mut session = self.db.acquire().await?;
        let result = if session.on().is_postgres() {
            let committed = tokio::time::timeout(DEADLINE, self.commit_on(&mut session, requests)).await;
            committed.unwrap_or(Err(StoreError::Deadline))
        } else {
            self.commit_on(&mut session, requests).await
        };
        if result.is_err() {
            session.discard().await;
        }
        result
    }

    /// After a commit that failed: reads anew what decisions are held against.
    async fn reload(&mut self) -> Result<(), StoreError> {
        if self.reload {
            let log = Log::load(&self.db, self.log.signer()).await?;
            // A database that lost what it had promised to keep, as a copy that took over too early would.
            self.log.is_continued_by(&log)?;
            self.log = log;
            rows::load_live(&self.db, &self.live, unix_now()).await?;
            self.reload = false;
        }
        Ok(())
    }

    async fn commit_on(
        &mut self,
        session: &mut Session,
        requests: Vec<Vec<Write>>,
    ) -> Result<Outcomes, StoreError> {
        let mut transaction = session.begin().await?;
        let mut on = transaction.on();
        let tx = &mut on;
        if tx.is_postgres() {
            let alone = requests.iter().flatten().any(Write::is_others_concern);
            self.ear.hear(tx, &self.live, alone).await?;
        }
        let mut batch = Batch { next: self.log.size() + 1, ..Batch::default() };
        let mut outcomes: Outcomes = Vec::with_capacity(requests.len());
        let mut appending: Vec<(usize, Vec<Write>)> = Vec::with_capacity(requests.len());
        let mut news = Vec::new();
        for writes in requests {
            let (append, conditional): (Vec<_>, Vec<_>) =
                writes.into_iter().partition(|w| matches!(w, Write::Record(_) | Write::Issue(_)));
            let mut outcome = WriteOutcome::default();
            if !conditional.is_empty() {
                match self.change(tx, conditional).await? {
                    Ok(turned) => {
                        for entry in turned.entries {
                            batch.append(entry);
                        }
                        news.extend(turned.news);
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
        if tx.is_postgres() {
            self.look_up_strangers(tx, &appending).await?;
        }
        self.admit(appending, &mut batch, &mut outcomes);
        insert_records(tx, &batch.entries).await?;
        insert_credentials(tx, self.issuer.as_str(), &batch.credentials).await?;
        let grown = match batch.entries.as_slice() {
            [] => None,
            entries => Some(self.log.append(tx, log::leaves(entries)).await?),
        };
        let told = if tx.is_postgres() { self.ear.tell(tx, &self.issuer, &news).await? } else { None };
        transaction.commit().await?;
        if let Some(grown) = grown {
            self.log.become_grown(grown);
        }
        if let Some(told) = told {
            self.ear.told(told);
        }
        Ok(outcomes)
    }

    /// Applies one request's conditional writes in a savepoint. The outer error is the database's, the
    /// inner one a refusal.
    async fn change(
        &mut self,
        tx: &mut On<'_>,
        writes: Vec<Write>,
    ) -> Result<Result<Turned, StoreError>, StoreError> {
        query("SAVEPOINT request").execute(tx).await?;
        let mut turned = Turned::default();
        let scene = Scene { issuer: &self.issuer, live: &self.live };
        for write in writes {
            match change::apply(tx, scene, write, &mut turned).await {
                Ok(()) => {}
                Err(StoreError::Database(e)) if !is_refusal(&e) => return Err(StoreError::Database(e)),
                Err(refused) => return take_back(tx, refused).await,
            }
        }
        if let Some(long) = turned.entries.iter().find(|entry| log::is_too_long(entry)) {
            let refused = log::LogError::TooLong(long.body.len()).into();
            return take_back(tx, refused).await;
        }
        query("RELEASE request").execute(tx).await?;
        self.before.extend(turned.take_effect(&self.live));
        Ok(Ok(turned))
    }

    /// Instances that were not seen here may have been given credentials by another issuer.
    async fn look_up_strangers(
        &self,
        tx: &mut On<'_>,
        appending: &[(usize, Vec<Write>)],
    ) -> Result<(), StoreError> {
        let strangers: Vec<InstanceId> = {
            let live = self.live.lock();
            let issues = appending.iter().flat_map(|(_, writes)| writes).filter_map(|write| match write {
                Write::Issue(issue) => Some(issue.instance),
                _ => None,
            });
            issues.filter(|id| !live.knows(*id)).collect()
        };
        shared::look_up(tx, &self.live, &strangers).await
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
async fn take_back(tx: &mut On<'_>, refused: StoreError) -> Result<Result<Turned, StoreError>, StoreError> {
    query("ROLLBACK TO SAVEPOINT request").execute(tx).await?;
    query("RELEASE SAVEPOINT request").execute(tx).await?;
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
    agent: AgentName,
    host: HostId,
    tier: &'static str,
    ca: u32,
    custody: &'static str,
    serial: [u8; 16],
    issued_at: i64,
    not_after: i64,
}

impl Batch {
    fn append(&mut self, entry: Entry) -> Durable {
        let number = self.next;
        self.entries.push((number, entry));
        self.next += 1;
        Durable::new(number)
    }

    fn issue(&mut self, issue: Issue) -> Durable {
        let Issue { entry, instance, agent, host, tier, ca, custody, issued_at, not_after, .. } = issue;
        let serial = entry.serial.unwrap_or_default();
        let recorded = self.append(entry);
        self.credentials.push(Credential {
            number: recorded.number(),
            instance,
            agent,
            host,
            tier: tier.as_str(),
            ca,
            custody,
            serial,
            issued_at,
            not_after,
        });
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

/// `($1,$2),($3,$4)`
pub(super) fn values(rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 5);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { "),(" });
        for column in 1..=columns {
            let comma = if column == 1 { "" } else { "," };
            // Writing to a string does not fail.
            let _ = write!(text, "{comma}${}", row * columns + column);
        }
    }
    text.push(')');
    text
}

pub(super) async fn insert_records(tx: &mut On<'_>, entries: &[(u64, Entry)]) -> Result<(), StoreError> {
    for chunk in chunks(entries) {
        let sql = format!(
            "INSERT INTO records (number, at, kind, outcome, host_id, agent, serial, certificate, body) VALUES {}",
            values(chunk.len(), 9)
        );
        let mut insert = query(&sql).with_room(chunk.len() * 9);
        for (number, entry) in chunk {
            insert = insert
                .bind(signed(*number))
                .bind(entry.at)
                .bind(entry.kind.as_ref())
                .bind(entry.outcome.as_ref())
                .bind(entry.host_id.as_deref())
                .bind(entry.agent.as_deref())
                .bind(entry.serial.as_ref().map(<[u8; 16]>::as_slice))
                .bind(entry.certificate.as_ref().map(<[u8; 32]>::as_slice))
                .bind(entry.body.as_str());
        }
        insert.execute(tx).await?;
    }
    Ok(())
}

async fn insert_credentials(
    tx: &mut On<'_>,
    issuer: &str,
    credentials: &[Credential],
) -> Result<(), StoreError> {
    for chunk in chunks(credentials) {
        let sql = format!(
            "INSERT INTO credentials (issuer, number, instance_id, agent, host_id, tier, ca, custody, serial, issued_at, not_after) VALUES {}",
            values(chunk.len(), 11)
        );
        let mut insert = query(&sql).with_room(chunk.len() * 11);
        for credential in chunk {
            insert = insert
                .bind(issuer)
                .bind(signed(credential.number))
                .bind(credential.instance.as_bytes().as_slice())
                .bind(credential.agent.as_str())
                .bind(credential.host.as_str())
                .bind(credential.tier)
                .bind(i64::from(credential.ca))
                .bind(credential.custody)
                .bind(credential.serial.as_slice())
                .bind(credential.issued_at)
                .bind(credential.not_after);
        }
        insert.execute(tx).await?;
    }
    Ok(())
}
