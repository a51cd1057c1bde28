//! Reading: rows as the rest of the issuer sees them.

use std::str::FromStr;

use hallmark_core::id::{AgentName, HostId, InstanceId, TrustDomain};
use hallmark_core::tier::{Hierarchy, Tier};

use super::db::{On, Pool, Row, query};
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
    /// Who issued it.
    pub issuer: String,
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

pub(super) async fn trust_domain(db: &mut On<'_>) -> Result<Option<TrustDomainRow>, StoreError> {
    let row = query("SELECT name, lab, dev, oid_arc, made_at FROM trust_domain").fetch_optional(db).await?;
    row.map(|row| {
        Ok(TrustDomainRow {
            name: TrustDomain::from_str(&row.get::<String>("name")?).map_err(unreadable("trust_domain"))?,
            lab: row.get::<i64>("lab")? != 0,
            dev: row.get::<i64>("dev")? != 0,
            oid_arc: row.get("oid_arc")?,
            made_at: row.get("made_at")?,
        })
    })
    .transpose()
}

pub(super) async fn hosts(db: &mut On<'_>) -> Result<Vec<HostRow>, StoreError> {
    let rows = query(
        "SELECT host_id, ek_digest, enrolled_at, standing, disabled FROM hosts WHERE removed_at IS NULL
         ORDER BY host_id",
    )
    .fetch_all(db)
    .await?;
    rows.iter().map(host_row).collect()
}

/// One host, if it is enrolled.
pub(super) async fn host(db: &mut On<'_>, host: &HostId) -> Result<Option<HostRow>, StoreError> {
    let row = query(
        "SELECT host_id, ek_digest, enrolled_at, standing, disabled FROM hosts
         WHERE host_id = $1 AND removed_at IS NULL",
    )
    .bind(host.as_str())
    .fetch_optional(db)
    .await?;
    row.as_ref().map(host_row).transpose()
}

fn host_row(row: &Row) -> Result<HostRow, StoreError> {
    Ok(HostRow {
        host_id: HostId::from_str(&row.get::<String>("host_id")?).map_err(unreadable("hosts"))?,
        ek_digest: row.get::<Option<Vec<u8>>>("ek_digest")?.map(|d| digest("hosts", d)).transpose()?,
        enrolled_at: row.get("enrolled_at")?,
        disabled: row.get("disabled")?,
        standing: row.get("standing")?,
    })
}

/// When a host was last removed, if ever.
pub(super) async fn last_removed(db: &mut On<'_>, host: &HostId) -> Result<Option<i64>, StoreError> {
    let at: Option<Option<i64>> = query("SELECT last_removed FROM hosts WHERE host_id = $1")
        .bind(host.as_str())
        .fetch_scalar(db)
        .await?;
    Ok(at.flatten())
}

/// Hosts that were removed, and when last.
pub(super) async fn removals(db: &mut On<'_>) -> Result<Vec<(HostId, i64)>, StoreError> {
    let rows =
        query("SELECT host_id, last_removed FROM hosts WHERE last_removed IS NOT NULL").fetch_all(db).await?;
    rows.iter()
        .map(|row| {
            let host = HostId::from_str(&row.get::<String>("host_id")?).map_err(unreadable("hosts"))?;
            Ok((host, row.get("last_removed")?))
        })
        .collect()
}

pub(super) async fn ek_was_simulated(db: &mut On<'_>, ek: &[u8; 32]) -> Result<bool, StoreError> {
    let simulated: Option<i64> = query("SELECT simulated FROM hosts WHERE ek_digest = $1")
        .bind(ek.as_slice())
        .fetch_scalar(db)
        .await?;
    Ok(simulated.is_some_and(|s| s != 0))
}

pub(super) async fn join_token(
    db: &mut On<'_>,
    hash: &[u8; 32],
    host: &HostId,
    at: i64,
) -> Result<Result<(), JoinTokenSpend>, StoreError> {
    let row = query("SELECT host_id, expires_at, spent_at FROM join_tokens WHERE token_sha256 = $1")
        .bind(hash.as_slice())
        .fetch_optional(db)
        .await?;
    let row = row.map(|row| change::TokenRow::read(&row)).transpose()?;
    Ok(change::join_token(row, host, at))
}

pub(super) async fn allowed_eks(db: &mut On<'_>) -> Result<Vec<AllowedEk>, StoreError> {
    let rows =
        query("SELECT ek_digest, host_id, hardware, note, allowed_at FROM allowed_eks ORDER BY host_id")
            .fetch_all(db)
            .await?;
    rows.iter().map(allowed_row).collect()
}

/// A host's place on the allow-list.
pub(super) async fn allowed_ek(db: &mut On<'_>, host: &HostId) -> Result<Option<AllowedEk>, StoreError> {
    let row =
        query("SELECT ek_digest, host_id, hardware, note, allowed_at FROM allowed_eks WHERE host_id = $1")
            .bind(host.as_str())
            .fetch_optional(db)
            .await?;
    row.as_ref().map(allowed_row).transpose()
}

fn allowed_row(row: &Row) -> Result<AllowedEk, StoreError> {
    Ok(AllowedEk {
        ek_digest: digest("allowed_eks", row.get("ek_digest")?)?,
        host_id: HostId::from_str(&row.get::<String>("host_id")?).map_err(unreadable("allowed_eks"))?,
        hardware: row.get::<i64>("hardware")? != 0,
        note: row.get("note")?,
        allowed_at: row.get("allowed_at")?,
    })
}

/// The registration set's revision.
pub(super) async fn registrations_revision(db: &mut On<'_>) -> Result<u64, StoreError> {
    let revision: Option<i64> = query("SELECT revision FROM registration_set").fetch_scalar(db).await?;
    Ok(revision.unwrap_or_default().unsigned_abs())
}

pub(super) async fn registrations(db: &mut On<'_>) -> Result<Vec<RegistrationRow>, StoreError> {
    let rows = query("SELECT agent, revision, body FROM registrations ORDER BY agent").fetch_all(db).await?;
    rows.into_iter()
        .map(|row| {
            Ok(RegistrationRow {
                agent: row.get("agent")?,
                revision: row.get::<i64>("revision")?.unsigned_abs(),
                body: row.get("body")?,
            })
        })
        .collect()
}

pub(super) fn instance_id(row: &Row) -> Result<InstanceId, StoreError> {
    let id: Vec<u8> = row.get("instance_id")?;
    <[u8; 16]>::try_from(id).map(InstanceId::from_bytes).map_err(|_| StoreError::Unreadable {
        table: "credentials",
        problem: "instance id is not 16 bytes".to_owned(),
    })
}

/// Instances of one agent whose credentials are still kept, newest credential first.
pub(super) async fn instances(
    db: &mut On<'_>,
    agent: &AgentName,
    limit: usize,
) -> Result<Vec<InstanceRow>, StoreError> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = query(
        "SELECT c.instance_id, c.custody, c.not_after, c.host_id, c.serial, c.issued_at, e.reason
         FROM credentials c LEFT JOIN ended_instances e ON e.instance_id = c.instance_id
         WHERE c.agent = $1 AND NOT EXISTS
         (SELECT 1 FROM credentials n WHERE n.instance_id = c.instance_id AND
          (n.issued_at > c.issued_at OR
           (n.issued_at = c.issued_at AND (n.number > c.number OR (n.number = c.number AND n.issuer > c.issuer)))))
         ORDER BY c.issued_at DESC, c.number DESC LIMIT $2",
    )
    .bind(agent.as_str())
    .bind(limit)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(InstanceRow {
                instance_id: instance_id(row)?,
                host_id: row.get("host_id")?,
                custody: row.get("custody")?,
                serial: row.get("serial")?,
                issued_at: row.get("issued_at")?,
                not_after: row.get("not_after")?,
                end_reason: row.get("reason")?,
            })
        })
        .collect()
}

/// How many instances of each agent hold a valid credential at `now`.
pub(super) async fn live_by_agent(db: &mut On<'_>, now: i64) -> Result<Vec<(String, u64)>, StoreError> {
    let rows = query(
        "SELECT agent, count(DISTINCT instance_id) AS live FROM credentials c WHERE not_after > $1
         AND NOT EXISTS (SELECT 1 FROM ended_instances e WHERE e.instance_id = c.instance_id) GROUP BY agent",
    )
    .bind(now)
    .fetch_all(db)
    .await?;
    rows.iter().map(|row| Ok((row.get("agent")?, row.get::<i64>("live")?.unsigned_abs()))).collect()
}

/// Reads what is alive.
pub(super) async fn load_live(db: &Pool, live: &Live, now: i64) -> Result<(), StoreError> {
    let mut session = db.acquire().await?;
    let db = &mut session.on();
    let credentials = query(
        "SELECT instance_id, agent, host_id, tier, not_after FROM credentials WHERE not_after > $1
         ORDER BY issued_at, number",
    )
    .bind(now - REMEMBERED)
    .fetch_all(db)
    .await?;
    // An end is read for as long as a credential is that it ended: read without it, the instance would live.
    let ended = query(
        "SELECT instance_id, agent, host_id, ended_at FROM ended_instances
         WHERE ended_at > $1 OR instance_id IN (SELECT instance_id FROM credentials WHERE not_after > $1)",
    )
    .bind(now - REMEMBERED)
    .fetch_all(db)
    .await?;
    let registrations = query("SELECT agent, revision FROM registrations").fetch_all(db).await?;
    let tainted = super::authority::tainted(db).await?;
    let names = |row: &Row, table| -> Result<(AgentName, HostId), StoreError> {
        Ok((
            AgentName::from_str(&row.get::<String>("agent")?).map_err(unreadable(table))?,
            HostId::from_str(&row.get::<String>("host_id")?).map_err(unreadable(table))?,
        ))
    };
    let mut live = live.lock();
    live.clear();
    for row in &credentials {
        let (agent, host) = names(row, "credentials")?;
        let tier = Tier::from_str(&row.get::<String>("tier")?).map_err(unreadable("credentials"))?;
        live.load(instance_id(row)?, agent, host, tier, row.get("not_after")?);
    }
    for row in &ended {
        let (agent, host) = names(row, "ended_instances")?;
        live.end(instance_id(row)?, agent, host, Tier::Foundation, row.get("ended_at")?);
    }
    for row in &registrations {
        let agent = row.get::<String>("agent")?.parse().map_err(unreadable("registrations"))?;
        live.register(agent, Some(row.get::<i64>("revision")?.unsigned_abs()));
    }
    for (tier, ca) in tainted {
        live.taint(tier, ca);
    }
    Ok(())
}

pub(super) async fn records(
    db: &mut On<'_>,
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
    let rows = query(&sql)
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .bind(agent)
        .bind(host)
        .bind(i64::from(limit))
        .fetch_all(db)
        .await?;
    let mut records = rows
        .into_iter()
        .map(|row| {
            Ok(RecordRow {
                number: row.get::<i64>("number")?.unsigned_abs(),
                at: row.get("at")?,
                kind: row.get("kind")?,
                outcome: row.get("outcome")?,
                body: row.get("body")?,
            })
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    if latest {
        records.reverse();
    }
    Ok(records)
}

pub(super) async fn revocations(db: &mut On<'_>, now: i64) -> Result<Vec<Revocation>, StoreError> {
    let rows = query(
        "SELECT serial, issuer, hierarchy, ca, host_id, not_after, revoked_at, reason FROM revocations
         WHERE not_after > $1",
    )
    .bind(now)
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Revocation {
                serial: row.get("serial")?,
                issuer: row.get("issuer")?,
                hierarchy: Hierarchy::from_str(&row.get::<String>("hierarchy")?)
                    .map_err(unreadable("revocations"))?,
                ca: super::authority::generation(row.get("ca")?),
                host_id: row.get("host_id")?,
                not_after: row.get("not_after")?,
                revoked_at: row.get("revoked_at")?,
                reason: row.get("reason")?,
            })
        })
        .collect()
}

pub(super) async fn revoked_on(db: &mut On<'_>, host: &HostId, now: i64) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(query("SELECT serial FROM revocations WHERE host_id = $1 AND not_after > $2 AND reason <> $3")
        .bind(host.as_str())
        .bind(now)
        .bind(super::authority::SUPERSEDED)
        .fetch_scalars(db)
        .await?)
}
