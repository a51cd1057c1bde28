//! Writing: one task, one connection, one transaction for everything that waits.
//!
//! Requests that only append (decisions and the credentials they released) are the bulk: they go in as
//! multi-row statements of a few fixed sizes, so that SQLite keeps each prepared. Requests that can be
//! refused run first, each inside a savepoint of its own, so that one refusal undoes that request alone.

use hallmark_core::id::{HostId, InstanceId};
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{Arguments, Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::rows::{AllowedEk, Authority, TrustDomainRow};
use super::{Conflict, StoreError};
use crate::record::Entry;

/// One change, or one decision to be recorded.
#[derive(Debug)]
pub enum Write {
    /// Appends a decision.
    Record(Entry),
    /// Notes an instance's newest credential.
    Instance(NewInstance),
    /// Fixes what the trust domain is; fails if it is fixed already.
    TrustDomain(TrustDomainRow),
    /// Adds a CA certificate.
    Authority(Authority),
    /// Binds a host to its EK (or to none), or confirms the binding, and keeps its standing.
    Enrol {
        /// The host.
        host_id: HostId,
        /// SHA-256 of its EK's SPKI; none for a join token.
        ek_digest: Option<[u8; 32]>,
        /// Now.
        at: i64,
        /// Versioned JSON.
        standing: String,
    },
    /// Keeps what a host's newest quote showed.
    Standing {
        /// The host.
        host_id: HostId,
        /// Versioned JSON.
        standing: String,
    },
    /// Adds an EK to the allow-list.
    AllowEk(AllowedEk),
    /// Keeps a join token's hash.
    JoinToken {
        /// SHA-256 of the token's text.
        token_sha256: [u8; 32],
        /// The host it is for.
        host_id: HostId,
        /// When it ends.
        expires_at: i64,
    },
    /// Spends a join token: succeeds once.
    SpendJoinToken {
        /// SHA-256 of the token's text.
        token_sha256: [u8; 32],
        /// The host that shows it.
        host_id: HostId,
        /// Now.
        at: i64,
    },
    /// Adds or replaces a registration.
    Registration {
        /// The agent.
        agent: String,
        /// The set's new revision.
        revision: u64,
        /// Canonical JSON.
        body: String,
    },
    /// Removes a registration.
    RemoveRegistration {
        /// The agent.
        agent: String,
    },
    /// Sets the registration set's revision.
    RegistrationSet {
        /// The new revision.
        revision: u64,
    },
    /// Ends an instance of this host and revokes its newest certificate where its tier has revocation.
    EndInstance {
        /// The instance.
        instance_id: InstanceId,
        /// Its host; another host's word changes nothing.
        host_id: HostId,
        /// Now.
        at: i64,
        /// Why.
        reason: String,
    },
}

/// The newest credential of an instance.
#[derive(Debug)]
pub struct NewInstance {
    /// Which run.
    pub instance_id: InstanceId,
    /// Its registration.
    pub agent: String,
    /// Its host.
    pub host_id: String,
    /// The credential's tier.
    pub tier: &'static str,
    /// The key's custody.
    pub custody: &'static str,
    /// The certificate's serial.
    pub serial: [u8; 16],
    /// Now.
    pub issued_at: i64,
    /// When the certificate ends.
    pub not_after: i64,
}

/// Why a join token bought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenSpend {
    /// No such token was ever made here.
    #[error("no such join token was made here")]
    Unknown,
    /// It was used before.
    #[error("the join token was used before; each works once")]
    Spent,
    /// Its time is over.
    #[error("the join token has expired")]
    Expired,
    /// It was made for another host id.
    #[error("the join token was made for another host id")]
    OtherHost,
}

/// Proof that a decision's record is on disk. Only the writer makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    number: u64,
}

impl Recorded {
    /// The record's number at this issuer.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// What a commit did.
#[derive(Debug, Default)]
pub struct WriteOutcome {
    /// One for each record of the request, in order.
    pub records: Vec<Recorded>,
}

pub(super) type Request = (Vec<Write>, oneshot::Sender<Result<WriteOutcome, StoreError>>);

/// Most requests gathered into one commit.
const GROUP: usize = 256;

pub(super) async fn next_record_number(db: &SqlitePool) -> Result<u64, StoreError> {
    let newest: Option<i64> = sqlx::query_scalar("SELECT max(number) FROM records").fetch_one(db).await?;
    Ok(newest.unwrap_or(0).unsigned_abs() + 1)
}

/// Serves write requests until every [`super::Store`] is gone.
pub(super) async fn run(db: SqlitePool, mut queue: mpsc::Receiver<Request>, mut next: u64) {
    let mut group = Vec::with_capacity(GROUP);
    while queue.recv_many(&mut group, GROUP).await > 0 {
        let requests = std::mem::take(&mut group);
        let (writes, replies): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        match commit_group(&db, writes, next).await {
            Ok((outcomes, after)) => {
                next = after;
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // A caller that has gone away has lost its answer, not its record.
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                tracing::error!(%error, requests = replies.len(), "store: a commit failed; nothing of it is released");
                let text = error.to_string();
                for reply in replies {
                    let _ = reply.send(Err(StoreError::Database(sqlx::Error::Io(std::io::Error::other(
                        text.clone(),
                    )))));
                }
            }
        }
    }
}

type Outcomes = Vec<Result<WriteOutcome, StoreError>>;

async fn commit_group(
    db: &SqlitePool,
    requests: Vec<Vec<Write>>,
    first: u64,
) -> Result<(Outcomes, u64), StoreError> {
    let mut connection = db.acquire().await?;
    let mut tx = connection.begin().await?;
    let mut next = first;
    let mut outcomes: Outcomes = Vec::with_capacity(requests.len());
    let mut entries: Vec<(u64, Entry)> = Vec::new();
    let mut instances: Vec<NewInstance> = Vec::new();
    for writes in requests {
        let mut outcome = WriteOutcome::default();
        let mut kept_entries = Vec::new();
        let mut kept_instances = Vec::new();
        let mut conditional = Vec::new();
        for write in writes {
            match write {
                Write::Record(entry) => kept_entries.push(entry),
                Write::Instance(instance) => kept_instances.push(instance),
                other => conditional.push(other),
            }
        }
        if !conditional.is_empty()
            && let Err(refused) = apply_all(&mut tx, conditional).await?
        {
            outcomes.push(Err(refused));
            continue;
        }
        for entry in kept_entries {
            outcome.records.push(Recorded { number: next });
            entries.push((next, entry));
            next += 1;
        }
        instances.extend(kept_instances);
        outcomes.push(Ok(outcome));
    }
    insert_records(&mut tx, &entries).await?;
    upsert_instances(&mut tx, &instances).await?;
    tx.commit().await?;
    Ok((outcomes, next))
}

/// Applies one request's conditional writes in a savepoint. The outer error is the database's, the
/// inner one a refusal.
async fn apply_all(
    tx: &mut SqliteConnection,
    writes: Vec<Write>,
) -> Result<Result<(), StoreError>, StoreError> {
    sqlx::query("SAVEPOINT request").execute(&mut *tx).await?;
    for write in writes {
        match apply(tx, write).await {
            Ok(()) => {}
            Err(StoreError::Database(e)) if e.as_database_error().is_none() => {
                return Err(StoreError::Database(e));
            }
            Err(refused) => {
                sqlx::query("ROLLBACK TO request").execute(&mut *tx).await?;
                sqlx::query("RELEASE request").execute(&mut *tx).await?;
                return Ok(Err(refused));
            }
        }
    }
    sqlx::query("RELEASE request").execute(&mut *tx).await?;
    Ok(Ok(()))
}

async fn apply(tx: &mut SqliteConnection, write: Write) -> Result<(), StoreError> {
    match write {
        Write::Record(_) | Write::Instance(_) => {}
        Write::TrustDomain(td) => {
            sqlx::query("INSERT INTO trust_domain (one, name, lab, dev, oid_arc, made_at) VALUES (1, ?1, ?2, ?3, ?4, ?5)")
                .bind(td.name.as_str())
                .bind(td.lab)
                .bind(td.dev)
                .bind(td.oid_arc)
                .bind(td.made_at)
                .execute(tx)
                .await?;
        }
        Write::Authority(a) => {
            sqlx::query(
                "INSERT INTO authorities (hierarchy, kind, generation, key_label, certificate) VALUES (?1, ?2, ?3, ?4, ?5)",
            )
            .bind(a.hierarchy.as_str())
            .bind(a.kind.as_str())
            .bind(a.generation)
            .bind(a.key_label)
            .bind(a.certificate)
            .execute(tx)
            .await?;
        }
        Write::Enrol { host_id, ek_digest, at, standing } => {
            enrol(tx, &host_id, ek_digest, at, &standing).await?
        }
        Write::Standing { host_id, standing } => {
            sqlx::query("UPDATE hosts SET standing = ?2 WHERE host_id = ?1")
                .bind(host_id.as_str())
                .bind(standing)
                .execute(tx)
                .await?;
        }
        Write::AllowEk(ek) => allow_ek(tx, ek).await?,
        Write::JoinToken { token_sha256, host_id, expires_at } => {
            sqlx::query("INSERT INTO join_tokens (token_sha256, host_id, expires_at) VALUES (?1, ?2, ?3)")
                .bind(token_sha256.as_slice())
                .bind(host_id.as_str())
                .bind(expires_at)
                .execute(tx)
                .await?;
        }
        Write::SpendJoinToken { token_sha256, host_id, at } => spend(tx, &token_sha256, &host_id, at).await?,
        Write::Registration { agent, revision, body } => {
            sqlx::query(
                "INSERT INTO registrations (agent, revision, body) VALUES (?1, ?2, ?3)
                 ON CONFLICT (agent) DO UPDATE SET revision = excluded.revision, body = excluded.body",
            )
            .bind(agent)
            .bind(i64::try_from(revision).unwrap_or(i64::MAX))
            .bind(body)
            .execute(tx)
            .await?;
        }
        Write::RemoveRegistration { agent } => {
            sqlx::query("DELETE FROM registrations WHERE agent = ?1").bind(agent).execute(tx).await?;
        }
        Write::RegistrationSet { revision } => {
            sqlx::query("UPDATE registration_set SET revision = ?1")
                .bind(i64::try_from(revision).unwrap_or(i64::MAX))
                .execute(tx)
                .await?;
        }
        Write::EndInstance { instance_id, host_id, at, reason } => {
            end_instance(tx, &instance_id, &host_id, at, &reason).await?;
        }
    }
    Ok(())
}

/// DESIGN: a host id is bound to its EK at first enrolment, and an EK to its host id, for ever.
async fn enrol(
    tx: &mut SqliteConnection,
    host_id: &HostId,
    ek: Option<[u8; 32]>,
    at: i64,
    standing: &str,
) -> Result<(), StoreError> {
    let ek = ek.as_ref().map(|d| d.as_slice());
    let bound: Option<Option<Vec<u8>>> = sqlx::query_scalar("SELECT ek_digest FROM hosts WHERE host_id = ?1")
        .bind(host_id.as_str())
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(bound) = bound
        && bound.as_deref() != ek
    {
        let bound_to = bound.map_or_else(|| "a join token".to_owned(), hex::encode);
        return Err(StoreError::Conflict(Conflict::HostIdTaken { host_id: host_id.to_string(), bound_to }));
    }
    if ek.is_some() {
        let other: Option<String> =
            sqlx::query_scalar("SELECT host_id FROM hosts WHERE ek_digest = ?1 AND host_id <> ?2")
                .bind(ek)
                .bind(host_id.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(enrolled_as) = other {
            return Err(StoreError::Conflict(Conflict::EkTaken {
                host_id: host_id.to_string(),
                enrolled_as,
            }));
        }
    }
    sqlx::query(
        "INSERT INTO hosts (host_id, ek_digest, enrolled_at, standing) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (host_id) DO UPDATE SET standing = excluded.standing",
    )
    .bind(host_id.as_str())
    .bind(ek)
    .bind(at)
    .bind(standing)
    .execute(tx)
    .await?;
    Ok(())
}

async fn allow_ek(tx: &mut SqliteConnection, ek: AllowedEk) -> Result<(), StoreError> {
    let bound: Option<Option<Vec<u8>>> = sqlx::query_scalar("SELECT ek_digest FROM hosts WHERE host_id = ?1")
        .bind(ek.host_id.as_str())
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(bound) = bound
        && bound.as_deref() != Some(ek.ek_digest.as_slice())
    {
        let bound_to = bound.map_or_else(|| "a join token".to_owned(), hex::encode);
        return Err(StoreError::Conflict(Conflict::HostIdTaken {
            host_id: ek.host_id.to_string(),
            bound_to,
        }));
    }
    let elsewhere: Option<String> =
        sqlx::query_scalar("SELECT host_id FROM allowed_eks WHERE ek_digest = ?1 AND host_id <> ?2")
            .bind(ek.ek_digest.as_slice())
            .bind(ek.host_id.as_str())
            .fetch_optional(&mut *tx)
            .await?;
    if let Some(enrolled_as) = elsewhere {
        return Err(StoreError::Conflict(Conflict::EkTaken { host_id: ek.host_id.to_string(), enrolled_as }));
    }
    sqlx::query("DELETE FROM allowed_eks WHERE host_id = ?1")
        .bind(ek.host_id.as_str())
        .execute(&mut *tx)
        .await?;
    sqlx::query("INSERT INTO allowed_eks (ek_digest, host_id, note, allowed_at) VALUES (?1, ?2, ?3, ?4)")
        .bind(ek.ek_digest.as_slice())
        .bind(ek.host_id.as_str())
        .bind(ek.note)
        .bind(ek.allowed_at)
        .execute(tx)
        .await?;
    Ok(())
}

/// One statement finds and spends: between looking and taking there is no moment for a second taker.
async fn spend(tx: &mut SqliteConnection, hash: &[u8; 32], host: &HostId, at: i64) -> Result<(), StoreError> {
    let spent = sqlx::query(
        "UPDATE join_tokens SET spent_at = ?3
         WHERE token_sha256 = ?1 AND host_id = ?2 AND spent_at IS NULL AND expires_at > ?3",
    )
    .bind(hash.as_slice())
    .bind(host.as_str())
    .bind(at)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if spent == 1 {
        return Ok(());
    }
    let row: Option<(String, i64, Option<i64>)> =
        sqlx::query_as("SELECT host_id, expires_at, spent_at FROM join_tokens WHERE token_sha256 = ?1")
            .bind(hash.as_slice())
            .fetch_optional(tx)
            .await?;
    let why = match row {
        None => JoinTokenSpend::Unknown,
        Some((for_host, _, _)) if for_host != host.as_str() => JoinTokenSpend::OtherHost,
        Some((_, _, Some(_))) => JoinTokenSpend::Spent,
        Some(_) => JoinTokenSpend::Expired,
    };
    Err(StoreError::Conflict(Conflict::JoinToken(why)))
}

async fn end_instance(
    tx: &mut SqliteConnection,
    instance: &InstanceId,
    host: &HostId,
    at: i64,
    reason: &str,
) -> Result<(), StoreError> {
    let ended = sqlx::query(
        "UPDATE instances SET ended_at = ?3, end_reason = ?4
         WHERE instance_id = ?1 AND host_id = ?2 AND ended_at IS NULL",
    )
    .bind(instance.as_bytes().as_slice())
    .bind(host.as_str())
    .bind(at)
    .bind(reason)
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if ended == 1 {
        // Foundation certificates carry noRevAvail (RFC 9608): there is no list to put them on.
        sqlx::query(
            "INSERT OR IGNORE INTO revocations (serial, hierarchy, not_after, revoked_at, reason)
             SELECT serial, tier, not_after, ?2, ?3 FROM instances
             WHERE instance_id = ?1 AND tier <> 'foundation' AND not_after > ?2",
        )
        .bind(instance.as_bytes().as_slice())
        .bind(at)
        .bind(reason)
        .execute(tx)
        .await?;
    }
    Ok(())
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

async fn upsert_instances(tx: &mut SqliteConnection, instances: &[NewInstance]) -> Result<(), StoreError> {
    for chunk in chunks(instances) {
        let sql = format!(
            "INSERT INTO instances (instance_id, agent, host_id, tier, custody, serial, first_issued_at, issued_at, not_after)
             VALUES {}
             ON CONFLICT (instance_id) DO UPDATE SET serial = excluded.serial, tier = excluded.tier,
               custody = excluded.custody, issued_at = excluded.issued_at, not_after = excluded.not_after
             WHERE instances.agent = excluded.agent AND instances.host_id = excluded.host_id",
            values(chunk.len(), 9)
        );
        let mut arguments = SqliteArguments::default();
        for instance in chunk {
            arguments.add(instance.instance_id.as_bytes().as_slice()).map_err(bind_failed)?;
            arguments.add(instance.agent.as_str()).map_err(bind_failed)?;
            arguments.add(instance.host_id.as_str()).map_err(bind_failed)?;
            arguments.add(instance.tier).map_err(bind_failed)?;
            arguments.add(instance.custody).map_err(bind_failed)?;
            arguments.add(instance.serial.as_slice()).map_err(bind_failed)?;
            arguments.add(instance.issued_at).map_err(bind_failed)?;
            arguments.add(instance.issued_at).map_err(bind_failed)?;
            arguments.add(instance.not_after).map_err(bind_failed)?;
        }
        sqlx::query_with(&sql, arguments).execute(&mut *tx).await?;
    }
    Ok(())
}
