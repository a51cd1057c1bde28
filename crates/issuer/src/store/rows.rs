//! Reading: rows as the rest of the issuer sees them.

use std::collections::HashSet;
use std::str::FromStr;

use futures::TryStreamExt;
use hallmark_core::id::{AgentName, HostId, InstanceId, TrustDomain};
use hallmark_core::tier::{Hierarchy, Tier};
use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::live::{Live, REMEMBERED};
use super::write::JoinTokenSpend;
use super::{StoreError, change};

/// The trust domain, as `init` fixed it.
#[derive(Debug, Clone)]
pub struct TrustDomainRow {
    /// Its name.
    pub name: TrustDomain,
    /// Software TPMs may count above foundation.
    pub lab: bool,
    /// The CA keys are software keys.
    pub dev: bool,
    /// Arc of Hallmark's OIDs.
    pub oid_arc: String,
    /// When it was made.
    pub made_at: i64,
}

/// One enrolled host.
#[derive(Debug, Clone)]
pub struct HostRow {
    /// Its id.
    pub host_id: HostId,
    /// SHA-256 of its EK's SPKI; none for a join token.
    pub ek_digest: Option<[u8; 32]>,
    /// First enrolment.
    pub enrolled_at: i64,
    /// Why an operator disabled it, if one did.
    pub disabled: Option<String>,
    /// Versioned JSON, see `crate::standing`.
    pub standing: String,
}

/// One entry of the allow-list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedEk {
    /// SHA-256 of the EK's SPKI.
    pub ek_digest: [u8; 32],
    /// The only host id it may take.
    pub host_id: HostId,
    /// The operator's word that it is no software TPM.
    pub hardware: bool,
    /// The operator's words.
    pub note: String,
    /// When.
    pub allowed_at: i64,
}

/// One registration in canonical JSON.
#[derive(Debug, Clone)]
pub struct RegistrationRow {
    /// The agent's name.
    pub agent: String,
    /// Revision of the set when it last changed.
    pub revision: u64,
    /// Canonical JSON.
    pub body: String,
}

/// One run of an agent.
#[derive(Debug, Clone)]
pub struct InstanceRow {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its host.
    pub host_id: String,
    /// Custody of its key.
    pub custody: String,
    /// Serial of its newest credential.
    pub serial: Vec<u8>,
    /// When it got its newest.
    pub issued_at: i64,
    /// When the newest ends.
    pub not_after: i64,
    /// Why it has ended, if it has.
    pub end_reason: Option<String>,
}

/// One decision.
#[derive(Debug, Clone)]
pub struct RecordRow {
    /// Its number, from 1, without gaps.
    pub number: u64,
    /// When.
    pub at: i64,
    /// What was decided.
    pub kind: String,
    /// How.
    pub outcome: String,
    /// The canonical record, JSON.
    pub body: String,
}

/// One revoked certificate.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// Its serial.
    pub serial: Vec<u8>,
    /// The hierarchy that issued it.
    pub hierarchy: Hierarchy,
    /// Generation of its issuing CA.
    pub ca: u32,
    /// The host it was issued to.
    pub host_id: String,
    /// When it would have ended.
    pub not_after: i64,
    /// When it was revoked.
    pub revoked_at: i64,
    /// Why.
    pub reason: String,
}

pub(super) fn unreadable<E: std::fmt::Display>(table: &'static str) -> impl Fn(E) -> StoreError {
    move |e| StoreError::Unreadable { table, problem: e.to_string() }
}

fn digest(table: &'static str, bytes: Vec<u8>) -> Result<[u8; 32], StoreError> {
    let len = bytes.len();
    bytes.try_into().map_err(|_| StoreError::Unreadable { table, problem: format!("{len} bytes, not 32") })
}

pub(super) async fn trust_domain(db: &SqlitePool) -> Result<Option<TrustDomainRow>, StoreError> {
    let row =
        sqlx::query("SELECT name, lab, dev, oid_arc, made_at FROM trust_domain").fetch_optional(db).await?;
    row.map(|row| {
        Ok(TrustDomainRow {
            name: TrustDomain::from_str(row.try_get("name")?).map_err(unreadable("trust_domain"))?,
            lab: row.try_get("lab")?,
            dev: row.try_get("dev")?,
            oid_arc: row.try_get("oid_arc")?,
            made_at: row.try_get("made_at")?,
        })
    })
    .transpose()
}

pub(super) async fn hosts(db: &SqlitePool) -> Result<Vec<HostRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT host_id, ek_digest, enrolled_at, standing, disabled FROM hosts WHERE removed_at IS NULL
         ORDER BY host_id",
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(HostRow {
                host_id: HostId::from_str(row.try_get("host_id")?).map_err(unreadable("hosts"))?,
                ek_digest: row
                    .try_get::<Option<Vec<u8>>, _>("ek_digest")?
                    .map(|d| digest("hosts", d))
                    .transpose()?,
                enrolled_at: row.try_get("enrolled_at")?,
                disabled: row.try_get("disabled")?,
                standing: row.try_get("standing")?,
            })
        })
        .collect()
}

/// Hosts that were removed, and when last.
pub(super) async fn removals(db: &SqlitePool) -> Result<Vec<(HostId, i64)>, StoreError> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT host_id, last_removed FROM hosts WHERE last_removed IS NOT NULL")
            .fetch_all(db)
            .await?;
    rows.into_iter()
        .map(|(host, at)| Ok((HostId::from_str(&host).map_err(unreadable("hosts"))?, at)))
        .collect()
}

pub(super) async fn ek_was_simulated(db: &SqlitePool, ek: &[u8; 32]) -> Result<bool, StoreError> {
    let simulated: Option<i64> = sqlx::query_scalar("SELECT simulated FROM hosts WHERE ek_digest = $1")
        .bind(ek.as_slice())
        .fetch_optional(db)
        .await?;
    Ok(simulated.is_some_and(|s| s != 0))
}

pub(super) async fn join_token(
    db: &SqlitePool,
    hash: &[u8; 32],
    host: &HostId,
    at: i64,
) -> Result<Result<(), JoinTokenSpend>, StoreError> {
    let row = sqlx::query_as("SELECT host_id, expires_at, spent_at FROM join_tokens WHERE token_sha256 = $1")
        .bind(hash.as_slice())
        .fetch_optional(db)
        .await?;
    Ok(change::join_token(row, host, at))
}

pub(super) async fn allowed_eks(db: &SqlitePool) -> Result<Vec<AllowedEk>, StoreError> {
    let rows = sqlx::query(
        "SELECT ek_digest, host_id, hardware, note, allowed_at FROM allowed_eks ORDER BY host_id",
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(AllowedEk {
                ek_digest: digest("allowed_eks", row.try_get("ek_digest")?)?,
                host_id: HostId::from_str(row.try_get("host_id")?).map_err(unreadable("allowed_eks"))?,
                hardware: row.try_get::<i64, _>("hardware")? != 0,
                note: row.try_get("note")?,
                allowed_at: row.try_get("allowed_at")?,
            })
        })
        .collect()
}

pub(super) async fn registrations(db: &SqlitePool) -> Result<Vec<RegistrationRow>, StoreError> {
    let rows =
        sqlx::query("SELECT agent, revision, body FROM registrations ORDER BY agent").fetch_all(db).await?;
    rows.into_iter()
        .map(|row| {
            Ok(RegistrationRow {
                agent: row.try_get("agent")?,
                revision: row.try_get::<i64, _>("revision")?.unsigned_abs(),
                body: row.try_get("body")?,
            })
        })
        .collect()
}

fn instance_id(row: &SqliteRow) -> Result<InstanceId, StoreError> {
    let id: Vec<u8> = row.try_get("instance_id")?;
    <[u8; 16]>::try_from(id).map(InstanceId::from_bytes).map_err(|_| StoreError::Unreadable {
        table: "credentials",
        problem: "instance id is not 16 bytes".to_owned(),
    })
}

/// Instances of one agent whose credentials are still kept, newest credential first.
pub(super) async fn instances(
    db: &SqlitePool,
    agent: &AgentName,
    limit: usize,
) -> Result<Vec<InstanceRow>, StoreError> {
    let mut rows = sqlx::query(
        "SELECT c.instance_id, c.custody, c.not_after, r.host_id, r.serial, r.at, e.reason
         FROM credentials c JOIN records r ON r.number = c.number
         LEFT JOIN ended_instances e ON e.instance_id = c.instance_id
         WHERE r.agent = $1 ORDER BY c.number DESC",
    )
    .bind(agent.as_str())
    .fetch(db);
    let (mut seen, mut instances) = (HashSet::new(), Vec::new());
    while let Some(row) = rows.try_next().await?
        && instances.len() < limit
    {
        let instance_id = instance_id(&row)?;
        if !seen.insert(instance_id) {
            continue;
        }
        instances.push(InstanceRow {
            instance_id,
            host_id: row.try_get("host_id")?,
            custody: row.try_get("custody")?,
            serial: row.try_get("serial")?,
            issued_at: row.try_get("at")?,
            not_after: row.try_get("not_after")?,
            end_reason: row.try_get("reason")?,
        });
    }
    Ok(instances)
}

/// Reads what is alive.
pub(super) async fn load_live(db: &SqlitePool, live: &Live, now: i64) -> Result<(), StoreError> {
    let credentials = sqlx::query(
        "SELECT c.instance_id, c.tier, c.not_after, r.agent, r.host_id
         FROM credentials c JOIN records r ON r.number = c.number WHERE c.not_after > $1 ORDER BY c.number",
    )
    .bind(now - REMEMBERED)
    .fetch_all(db)
    .await?;
    // An end is read for as long as a credential is that it ended: read without it, the instance would live.
    let ended = sqlx::query(
        "SELECT instance_id, agent, host_id, ended_at FROM ended_instances
         WHERE ended_at > $1 OR instance_id IN (SELECT instance_id FROM credentials WHERE not_after > $1)",
    )
    .bind(now - REMEMBERED)
    .fetch_all(db)
    .await?;
    let registrations: Vec<(String, i64)> =
        sqlx::query_as("SELECT agent, revision FROM registrations").fetch_all(db).await?;
    let tainted = super::authority::tainted(db).await?;
    let names = |row: &SqliteRow, table| -> Result<(AgentName, HostId), StoreError> {
        Ok((
            AgentName::from_str(row.try_get("agent")?).map_err(unreadable(table))?,
            HostId::from_str(row.try_get("host_id")?).map_err(unreadable(table))?,
        ))
    };
    let mut live = live.lock();
    live.clear();
    for row in &credentials {
        let (agent, host) = names(row, "records")?;
        let tier = Tier::from_str(row.try_get("tier")?).map_err(unreadable("credentials"))?;
        live.load(instance_id(row)?, agent, host, tier, row.try_get("not_after")?);
    }
    for row in &ended {
        let (agent, host) = names(row, "ended_instances")?;
        live.end(instance_id(row)?, agent, host, Tier::Foundation, row.try_get("ended_at")?);
    }
    for (agent, revision) in registrations {
        let agent = agent.parse().map_err(unreadable("registrations"))?;
        live.register(agent, Some(revision.unsigned_abs()));
    }
    for (tier, ca) in tainted {
        live.taint(tier, ca);
    }
    Ok(())
}

pub(super) async fn records(
    db: &SqlitePool,
    after: u64,
    limit: u32,
    agent: Option<&str>,
    host: Option<&str>,
) -> Result<Vec<RecordRow>, StoreError> {
    let latest = after == 0;
    let sql = format!(
        "SELECT number, at, kind, outcome, body FROM records
         WHERE number > $1 AND ($2 IS NULL OR agent = $2) AND ($3 IS NULL OR host_id = $3)
         ORDER BY number {} LIMIT $4",
        if latest { "DESC" } else { "ASC" }
    );
    let rows = sqlx::query(&sql)
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(agent)
        .bind(host)
        .bind(limit)
        .fetch_all(db)
        .await?;
    let mut records = rows
        .into_iter()
        .map(|row| {
            Ok(RecordRow {
                number: row.try_get::<i64, _>("number")?.unsigned_abs(),
                at: row.try_get("at")?,
                kind: row.try_get("kind")?,
                outcome: row.try_get("outcome")?,
                body: row.try_get("body")?,
            })
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    if latest {
        records.reverse();
    }
    Ok(records)
}

pub(super) async fn revocations(db: &SqlitePool, now: i64) -> Result<Vec<Revocation>, StoreError> {
    let rows = sqlx::query(
        "SELECT serial, hierarchy, ca, host_id, not_after, revoked_at, reason FROM revocations WHERE not_after > $1",
    )
    .bind(now)
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Revocation {
                serial: row.try_get("serial")?,
                hierarchy: Hierarchy::from_str(row.try_get("hierarchy")?)
                    .map_err(unreadable("revocations"))?,
                ca: super::authority::generation(row.try_get("ca")?),
                host_id: row.try_get("host_id")?,
                not_after: row.try_get("not_after")?,
                revoked_at: row.try_get("revoked_at")?,
                reason: row.try_get("reason")?,
            })
        })
        .collect()
}

pub(super) async fn revoked_on(db: &SqlitePool, host: &HostId, now: i64) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT serial FROM revocations WHERE host_id = $1 AND not_after > $2 AND reason <> $3",
    )
    .bind(host.as_str())
    .bind(now)
    .bind(super::authority::SUPERSEDED)
    .fetch_all(db)
    .await?)
}
