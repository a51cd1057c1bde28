//! Reading: rows as the rest of the issuer sees them.

use std::str::FromStr;

use hallmark_core::id::{AgentName, HostId, InstanceId, TrustDomain};
use hallmark_core::tier::Hierarchy;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{FromRow, Row};

use super::StoreError;

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

/// Root or issuing CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthorityKind {
    /// Self-signed.
    Root,
    /// Signs leaves.
    Issuing,
}

impl AuthorityKind {
    /// `root` or `issuing`.
    pub fn as_str(self) -> &'static str {
        match self {
            AuthorityKind::Root => "root",
            AuthorityKind::Issuing => "issuing",
        }
    }
}

/// One CA certificate.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Which hierarchy it belongs to.
    pub hierarchy: Hierarchy,
    /// Root or issuing.
    pub kind: AuthorityKind,
    /// Counts rotations, from 1.
    pub generation: u32,
    /// Label of its key in the token.
    pub key_label: String,
    /// DER.
    pub certificate: Vec<u8>,
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
    /// Versioned JSON, see `crate::standing`.
    pub standing: String,
}

/// One entry of the allow-list.
#[derive(Debug, Clone)]
pub struct AllowedEk {
    /// SHA-256 of the EK's SPKI.
    pub ek_digest: [u8; 32],
    /// The only host id it may take.
    pub host_id: HostId,
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
    /// Its registration.
    pub agent: String,
    /// Its host.
    pub host_id: String,
    /// Tier of its newest credential.
    pub tier: String,
    /// Custody of its key.
    pub custody: String,
    /// Serial of its newest credential.
    pub serial: Vec<u8>,
    /// When it got its first credential.
    pub first_issued_at: i64,
    /// When it got its newest.
    pub issued_at: i64,
    /// When the newest ends.
    pub not_after: i64,
    /// When it was retired.
    pub ended_at: Option<i64>,
    /// Why.
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
    /// The hierarchy whose CRL lists it.
    pub hierarchy: Hierarchy,
    /// When it would have ended.
    pub not_after: i64,
    /// When it was revoked.
    pub revoked_at: i64,
    /// Why.
    pub reason: String,
}

fn unreadable<E: std::fmt::Display>(table: &'static str) -> impl Fn(E) -> StoreError {
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

pub(super) async fn authorities(db: &SqlitePool) -> Result<Vec<Authority>, StoreError> {
    let rows = sqlx::query(
        "SELECT hierarchy, kind, generation, key_label, certificate FROM authorities
         ORDER BY kind DESC, hierarchy, generation",
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Authority {
                hierarchy: Hierarchy::from_str(row.try_get("hierarchy")?)
                    .map_err(unreadable("authorities"))?,
                kind: match row.try_get("kind")? {
                    "root" => AuthorityKind::Root,
                    _ => AuthorityKind::Issuing,
                },
                generation: row.try_get("generation")?,
                key_label: row.try_get("key_label")?,
                certificate: row.try_get("certificate")?,
            })
        })
        .collect()
}

pub(super) async fn hosts(db: &SqlitePool) -> Result<Vec<HostRow>, StoreError> {
    let rows = sqlx::query("SELECT host_id, ek_digest, enrolled_at, standing FROM hosts ORDER BY host_id")
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
                standing: row.try_get("standing")?,
            })
        })
        .collect()
}

pub(super) async fn host_of_ek(db: &SqlitePool, ek: &[u8; 32]) -> Result<Option<HostId>, StoreError> {
    let id: Option<String> = sqlx::query_scalar("SELECT host_id FROM hosts WHERE ek_digest = ?1")
        .bind(ek.as_slice())
        .fetch_optional(db)
        .await?;
    id.map(|id| id.parse().map_err(unreadable("hosts"))).transpose()
}

pub(super) async fn allowed_eks(db: &SqlitePool) -> Result<Vec<AllowedEk>, StoreError> {
    let rows = sqlx::query("SELECT ek_digest, host_id, note, allowed_at FROM allowed_eks ORDER BY host_id")
        .fetch_all(db)
        .await?;
    rows.into_iter()
        .map(|row| {
            Ok(AllowedEk {
                ek_digest: digest("allowed_eks", row.try_get("ek_digest")?)?,
                host_id: HostId::from_str(row.try_get("host_id")?).map_err(unreadable("allowed_eks"))?,
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

impl FromRow<'_, SqliteRow> for InstanceRow {
    fn from_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let id: Vec<u8> = row.try_get("instance_id")?;
        let id: [u8; 16] =
            id.try_into().map_err(|_| sqlx::Error::Decode("instance id is not 16 bytes".into()))?;
        Ok(Self {
            instance_id: InstanceId::from_bytes(id),
            agent: row.try_get("agent")?,
            host_id: row.try_get("host_id")?,
            tier: row.try_get("tier")?,
            custody: row.try_get("custody")?,
            serial: row.try_get("serial")?,
            first_issued_at: row.try_get("first_issued_at")?,
            issued_at: row.try_get("issued_at")?,
            not_after: row.try_get("not_after")?,
            ended_at: row.try_get("ended_at")?,
            end_reason: row.try_get("end_reason")?,
        })
    }
}

pub(super) async fn instances(
    db: &SqlitePool,
    agent: Option<&AgentName>,
    limit: u32,
) -> Result<Vec<InstanceRow>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM instances WHERE ?1 IS NULL OR agent = ?1 ORDER BY issued_at DESC LIMIT ?2",
    )
    .bind(agent.map(AgentName::as_str))
    .bind(limit)
    .fetch_all(db)
    .await?)
}

pub(super) async fn live_instances(db: &SqlitePool, now: i64) -> Result<Vec<InstanceRow>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM instances WHERE ended_at IS NULL AND not_after > ?1")
        .bind(now)
        .fetch_all(db)
        .await?)
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
         WHERE number > ?1 AND (?2 IS NULL OR agent = ?2) AND (?3 IS NULL OR host_id = ?3)
         ORDER BY number {} LIMIT ?4",
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
        "SELECT serial, hierarchy, not_after, revoked_at, reason FROM revocations WHERE not_after > ?1",
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
                not_after: row.try_get("not_after")?,
                revoked_at: row.try_get("revoked_at")?,
                reason: row.try_get("reason")?,
            })
        })
        .collect()
}
