//! Changes that can be refused: each is applied by the writer inside its request's savepoint.

use hallmark_core::id::{AgentName, HostId, InstanceId, IssuerId};
use hallmark_core::tier::Tier;

use super::db::{On, Row, query};
use super::live::{Live, REMEMBERED};
use super::rows::{AllowedEk, unreadable};
use super::shared::{self, News};
use super::write::{Ended, Ending, JoinTokenSpend, Write};
use super::{Conflict, StoreError, schema, signed};
use crate::record::{Entry, Kind, Record, Shown};

/// Most expired credentials dropped in one go: the next purge takes the rest.
const PURGE: i64 = 100_000;
/// Most serials in one record of an end; an instance that held more has several.
pub(super) const SERIALS: usize = 1000;
/// Revokes what an instance holds: `$1` at `$2` for `$3`.
pub(super) const REVOKE: &str = "INSERT INTO revocations
     (serial, issuer, instance_id, hierarchy, ca, host_id, not_after, revoked_at, reason)
     SELECT serial, issuer, instance_id, tier, ca, host_id, not_after, $2, $3
     FROM credentials WHERE instance_id = $1 AND not_after > $2
     ON CONFLICT (serial) DO NOTHING";
/// How long an expired certificate stays on the lists, in seconds (RFC 5280 section 3.3: at least one after its end).
const LISTED: i64 = 24 * 3600;

/// What a request's changes lead to.
#[derive(Debug, Default)]
pub(super) struct Turned {
    /// Decisions that follow from them.
    pub(super) entries: Vec<Entry>,
    /// The instances that end.
    pub(super) ended: Vec<Ended>,
    /// What other issuers must hear of.
    pub(super) news: Vec<News>,
    pub(super) effects: Vec<Effect>,
}

/// A change of what is alive.
#[derive(Debug)]
pub(super) enum Effect {
    End { ended: Box<Ended>, at: i64 },
    EndAhead { host: HostId, instances: Vec<InstanceId>, at: i64 },
    Register { agent: AgentName, revision: Option<u64> },
    Turn { host: HostId, epoch: u64 },
    Taint { tier: Tier, ca: u32 },
    Forget { now: i64 },
}

impl Turned {
    /// Changes the picture of what is alive; says which hosts stood at which epoch before.
    pub(super) fn take_effect(&mut self, live: &Live) -> Vec<(HostId, u64)> {
        let mut live = live.lock();
        let mut before = Vec::new();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::End { ended, at } => {
                    live.end(ended.instance, ended.agent, ended.host, ended.tier, at);
                }
                Effect::EndAhead { host, instances, at } => {
                    for id in instances {
                        live.end_ahead(&host, id, at);
                    }
                }
                Effect::Register { agent, revision } => live.register(agent, revision),
                Effect::Turn { host, epoch } => {
                    let was = live.turn(host.clone(), epoch);
                    before.push((host, was));
                }
                Effect::Taint { tier, ca } => live.taint(tier, ca),
                Effect::Forget { now } => live.forget(now),
            }
        }
        before
    }
}

/// Who changes, and what is alive as he sees it.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) issuer: &'a IssuerId,
    pub(super) live: &'a Live,
}

/// Applies one change.
pub(super) async fn apply(
    tx: &mut On<'_>,
    scene: Scene<'_>,
    write: Write,
    turned: &mut Turned,
) -> Result<(), StoreError> {
    match write {
        Write::Record(_) | Write::Issue(_) => {}
        Write::TrustDomain(td) => {
            query("INSERT INTO trust_domain (one, name, lab, dev, oid_arc, made_at) VALUES (1, $1, $2, $3, $4, $5)")
                .bind(td.name.as_str())
                .bind(td.lab)
                .bind(td.dev)
                .bind(td.oid_arc)
                .bind(td.made_at)
                .execute(tx)
                .await?;
        }
        Write::Authority(authority) => {
            turned.news.push(News::Authorities);
            super::authority::insert(tx, *authority).await?;
        }
        Write::Change(change) => {
            if change.is_others_concern() {
                turned.news.push(News::Authorities);
            }
            super::authority::apply(tx, scene, change, turned).await?;
        }
        Write::Enrol { host_id, ek_digest, simulated, at, standing, epoch } => {
            enrol(tx, &host_id, ek_digest, simulated, at, &standing).await?;
            turned.news.push(News::Host(host_id.clone()));
            turned.effects.push(Effect::Turn { host: host_id, epoch });
        }
        Write::Standing { host_id, standing, ordered, epoch } => {
            let enrolled = query(
                "UPDATE hosts SET standing = $2
                 WHERE host_id = $1 AND removed_at IS NULL AND ($3 <> 0 OR disabled IS NULL)",
            )
            .bind(host_id.as_str())
            .bind(standing)
            .bind(ordered)
            .execute(tx)
            .await?;
            only_if(enrolled, &host_id)?;
            turned.news.push(News::Host(host_id.clone()));
            turned.effects.push(Effect::Turn { host: host_id, epoch });
        }
        Write::Stands { host_id, epoch } => {
            if scene.live.epoch(&host_id) != epoch {
                return Err(StoreError::Conflict(Conflict::Overtaken));
            }
        }
        Write::Turn { host_id, epoch } => turned.effects.push(Effect::Turn { host: host_id, epoch }),
        Write::DisableHost { host_id, reason, epoch } => {
            let enrolled = query("UPDATE hosts SET disabled = $2 WHERE host_id = $1 AND removed_at IS NULL")
                .bind(host_id.as_str())
                .bind(reason)
                .execute(tx)
                .await?;
            only_if(enrolled, &host_id)?;
            turned.news.push(News::Host(host_id.clone()));
            turned.effects.push(Effect::Turn { host: host_id, epoch });
        }
        Write::RemoveHost { host_id, at, epoch } => {
            remove_host(tx, &host_id, at).await?;
            turned.news.push(News::Host(host_id.clone()));
            turned.effects.push(Effect::Turn { host: host_id, epoch });
        }
        Write::AllowEk(ek) => {
            turned.news.push(News::Host(ek.host_id.clone()));
            allow_ek(tx, ek).await?;
        }
        Write::JoinToken { token_sha256, host_id, expires_at } => {
            query("INSERT INTO join_tokens (token_sha256, host_id, expires_at) VALUES ($1, $2, $3)")
                .bind(token_sha256.as_slice())
                .bind(host_id.as_str())
                .bind(expires_at)
                .execute(tx)
                .await?;
        }
        Write::SpendJoinToken { token_sha256, host_id, at } => spend(tx, &token_sha256, &host_id, at).await?,
        Write::Registration { agent, revision, body } => {
            query(
                "INSERT INTO registrations (agent, revision, body) VALUES ($1, $2, $3)
                 ON CONFLICT (agent) DO UPDATE SET revision = excluded.revision, body = excluded.body",
            )
            .bind(agent.as_str())
            .bind(signed(revision))
            .bind(body)
            .execute(tx)
            .await?;
            turned.effects.push(Effect::Register { agent, revision: Some(revision) });
        }
        Write::RemoveRegistration { agent } => {
            query("DELETE FROM registrations WHERE agent = $1").bind(agent.as_str()).execute(tx).await?;
            turned.effects.push(Effect::Register { agent, revision: None });
        }
        Write::RegistrationSet { revision } => {
            let next = query("UPDATE registration_set SET revision = $1 WHERE revision = $2")
                .bind(signed(revision))
                .bind(signed(revision) - 1)
                .execute(tx)
                .await?;
            if next != 1 {
                return Err(StoreError::Conflict(Conflict::Overtaken));
            }
            turned.news.push(News::Registrations);
        }
        Write::End(ending) => end(tx, scene, ending, turned).await?,
        Write::Heartbeat { at } => {
            query("UPDATE heartbeat SET at = $1").bind(at).execute(tx).await?;
        }
        Write::Purge { at } => {
            purge(tx, at).await?;
            turned.effects.push(Effect::Forget { now: at });
        }
    }
    Ok(())
}

fn only_if(enrolled: u64, host_id: &HostId) -> Result<(), StoreError> {
    match enrolled {
        0 => Err(StoreError::Conflict(Conflict::NotEnrolled { host_id: host_id.to_string() })),
        _ => Ok(()),
    }
}

fn bound_to(ek: Option<Vec<u8>>) -> String {
    ek.map_or_else(|| "a join token".to_owned(), hex::encode)
}

/// DESIGN: a host id is bound to its EK at first enrolment, and an EK to its host id, for ever. A disabled
/// host stays out; a removed one comes back by an operator's order alone.
async fn enrol(
    tx: &mut On<'_>,
    host_id: &HostId,
    ek: Option<[u8; 32]>,
    simulated: bool,
    at: i64,
    standing: &str,
) -> Result<(), StoreError> {
    let ek = ek.as_ref().map(|d| d.as_slice());
    let there = query("SELECT ek_digest, disabled, removed_at FROM hosts WHERE host_id = $1")
        .bind(host_id.as_str())
        .fetch_optional(tx)
        .await?;
    if let Some(there) = there {
        let bound: Option<Vec<u8>> = there.get("ek_digest")?;
        if bound.as_deref() != ek {
            return Err(StoreError::Conflict(Conflict::HostIdTaken {
                host_id: host_id.to_string(),
                bound_to: bound_to(bound),
            }));
        }
        if let Some(reason) = there.get::<Option<String>>("disabled")? {
            return Err(StoreError::Conflict(Conflict::Disabled { host_id: host_id.to_string(), reason }));
        }
        // A join token is itself an operator's order, given after the removal: older ones went with the host.
        if there.get::<Option<i64>>("removed_at")?.is_some()
            && ek.is_some()
            && !is_allowed(tx, ek, host_id).await?
        {
            return Err(StoreError::Conflict(Conflict::Removed { host_id: host_id.to_string() }));
        }
    }
    if ek.is_some() {
        let other: Option<String> = query("SELECT host_id FROM hosts WHERE ek_digest = $1 AND host_id <> $2")
            .bind(ek)
            .bind(host_id.as_str())
            .fetch_scalar(tx)
            .await?;
        if let Some(enrolled_as) = other {
            return Err(StoreError::Conflict(Conflict::EkTaken {
                host_id: host_id.to_string(),
                enrolled_as,
            }));
        }
    }
    query(
        "INSERT INTO hosts (host_id, ek_digest, enrolled_at, simulated, standing) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (host_id) DO UPDATE SET standing = excluded.standing, removed_at = NULL,
         simulated = CASE WHEN excluded.simulated <> 0 THEN excluded.simulated ELSE hosts.simulated END",
    )
    .bind(host_id.as_str())
    .bind(ek)
    .bind(at)
    .bind(i64::from(simulated))
    .bind(standing)
    .execute(tx)
    .await?;
    Ok(())
}

async fn is_allowed(tx: &mut On<'_>, ek: Option<&[u8]>, host_id: &HostId) -> Result<bool, StoreError> {
    let count: Option<i64> = query("SELECT count(*) FROM allowed_eks WHERE ek_digest = $1 AND host_id = $2")
        .bind(ek)
        .bind(host_id.as_str())
        .fetch_scalar(tx)
        .await?;
    Ok(count.is_some_and(|count| count > 0))
}

async fn remove_host(tx: &mut On<'_>, host_id: &HostId, at: i64) -> Result<(), StoreError> {
    let enrolled = query(
        "UPDATE hosts SET removed_at = $2, last_removed = $2, disabled = NULL
         WHERE host_id = $1 AND removed_at IS NULL",
    )
    .bind(host_id.as_str())
    .bind(at)
    .execute(tx)
    .await?;
    let allowed =
        query("DELETE FROM allowed_eks WHERE host_id = $1").bind(host_id.as_str()).execute(tx).await?;
    query("DELETE FROM join_tokens WHERE host_id = $1 AND spent_at IS NULL")
        .bind(host_id.as_str())
        .execute(tx)
        .await?;
    only_if(enrolled + allowed, host_id)
}

async fn allow_ek(tx: &mut On<'_>, ek: AllowedEk) -> Result<(), StoreError> {
    let bound: Option<Option<Vec<u8>>> = query("SELECT ek_digest FROM hosts WHERE host_id = $1")
        .bind(ek.host_id.as_str())
        .fetch_scalar(tx)
        .await?;
    if let Some(bound) = bound
        && bound.as_deref() != Some(ek.ek_digest.as_slice())
    {
        return Err(StoreError::Conflict(Conflict::HostIdTaken {
            host_id: ek.host_id.to_string(),
            bound_to: bound_to(bound),
        }));
    }
    let elsewhere: Option<String> = query(
        "SELECT host_id FROM allowed_eks WHERE ek_digest = $1 AND host_id <> $2
         UNION SELECT host_id FROM hosts WHERE ek_digest = $1 AND host_id <> $2",
    )
    .bind(ek.ek_digest.as_slice())
    .bind(ek.host_id.as_str())
    .fetch_scalar(tx)
    .await?;
    if let Some(enrolled_as) = elsewhere {
        return Err(StoreError::Conflict(Conflict::EkTaken { host_id: ek.host_id.to_string(), enrolled_as }));
    }
    let simulated: Option<i64> = query("SELECT simulated FROM hosts WHERE ek_digest = $1")
        .bind(ek.ek_digest.as_slice())
        .fetch_scalar(tx)
        .await?;
    if ek.hardware && simulated.is_some_and(|s| s != 0) {
        return Err(StoreError::Conflict(Conflict::Simulated { host_id: ek.host_id.to_string() }));
    }
    query("DELETE FROM allowed_eks WHERE host_id = $1").bind(ek.host_id.as_str()).execute(tx).await?;
    query(
        "INSERT INTO allowed_eks (ek_digest, host_id, hardware, note, allowed_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(ek.ek_digest.as_slice())
    .bind(ek.host_id.as_str())
    .bind(i64::from(ek.hardware))
    .bind(ek.note)
    .bind(ek.allowed_at)
    .execute(tx)
    .await?;
    Ok(())
}

/// One statement finds and spends: between looking and taking there is no moment for a second taker.
async fn spend(tx: &mut On<'_>, hash: &[u8; 32], host: &HostId, at: i64) -> Result<(), StoreError> {
    let spent = query(
        "UPDATE join_tokens SET spent_at = $3
         WHERE token_sha256 = $1 AND host_id = $2 AND spent_at IS NULL AND expires_at > $3",
    )
    .bind(hash.as_slice())
    .bind(host.as_str())
    .bind(at)
    .execute(tx)
    .await?;
    if spent == 1 {
        return Ok(());
    }
    let row = query("SELECT host_id, expires_at, spent_at FROM join_tokens WHERE token_sha256 = $1")
        .bind(hash.as_slice())
        .fetch_optional(tx)
        .await?;
    let row = row.map(|row| TokenRow::read(&row)).transpose()?;
    // Unspent, for this host and in time it would have been spent above.
    let why = join_token(row, host, at).err().unwrap_or(JoinTokenSpend::Expired);
    Err(StoreError::Conflict(Conflict::JoinToken(why)))
}

/// A join token as it is kept.
pub(super) struct TokenRow {
    host_id: String,
    expires_at: i64,
    spent_at: Option<i64>,
}

impl TokenRow {
    pub(super) fn read(row: &Row) -> sqlx::Result<Self> {
        Ok(Self {
            host_id: row.get("host_id")?,
            expires_at: row.get("expires_at")?,
            spent_at: row.get("spent_at")?,
        })
    }
}

/// What a join token's row would buy this host now.
pub(super) fn join_token(row: Option<TokenRow>, host: &HostId, at: i64) -> Result<(), JoinTokenSpend> {
    match row {
        None => Err(JoinTokenSpend::Unknown),
        Some(row) if row.host_id != host.as_str() => Err(JoinTokenSpend::OtherHost),
        Some(TokenRow { spent_at: Some(_), .. }) => Err(JoinTokenSpend::Spent),
        Some(row) if row.expires_at <= at => Err(JoinTokenSpend::Expired),
        Some(_) => Ok(()),
    }
}

pub(super) async fn end(
    tx: &mut On<'_>,
    scene: Scene<'_>,
    ending: Ending,
    turned: &mut Turned,
) -> Result<(), StoreError> {
    let Ending { who, at, reason, operator, lab } = ending;
    if tx.is_postgres() {
        shared::bring_in(tx, scene.live, &who, at).await?;
    }
    let chosen = scene.live.lock().chosen(who.instances.as_deref(), |instance| {
        who.agent.as_ref().is_none_or(|agent| *agent == instance.agent)
            && who.host.as_ref().is_none_or(|host| *host == instance.host)
            && who.above.is_none_or(|tier| Some(instance.tier) > tier)
    });
    for (id, instance) in chosen {
        let ended = held(tx, scene, id, instance.agent, instance.host, instance.tier, at).await?;
        if who.unless.as_ref().is_some_and(|stays| stays(&ended)) {
            continue;
        }
        query(
            "INSERT INTO ended_instances (instance_id, agent, host_id, ended_at, reason) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (instance_id) DO NOTHING",
        )
        .bind(id.as_bytes().as_slice())
        .bind(ended.agent.as_str())
        .bind(ended.host.as_str())
        .bind(at)
        .bind(reason)
        .execute(tx)
        .await?;
        // Foundation certificates carry noRevAvail (RFC 9608): no list names them, but their host is told.
        query(REVOKE).bind(id.as_bytes().as_slice()).bind(at).bind(reason).execute(tx).await?;
        let none: [&[Vec<u8>]; 1] = [&[]];
        let parts: Vec<&[Vec<u8>]> = ended.serials.chunks(SERIALS).collect();
        for serials in if parts.is_empty() { &none[..] } else { &parts } {
            let entry = Record {
                host: Some(ended.host.as_str()),
                agent: Some(ended.agent.as_str()),
                instance: Some(id.to_string()),
                owner: ended.owner.as_deref(),
                tier: Some(ended.tier.as_str()),
                reason: Some(reason.to_owned()),
                revoked: serials.iter().map(hex::encode).collect(),
                operator: operator.clone(),
                lab,
                ..Record::default()
            };
            turned.entries.push(entry.entry(at, Kind::InstanceEnd, "ended", None));
        }
        turned.news.push(News::Ended(id));
        turned.effects.push(Effect::End { ended: Box::new(ended.clone()), at });
        turned.ended.push(ended);
    }
    if let (None, Some(host), Some(instances)) = (who.agent, who.host, who.instances) {
        turned.effects.push(Effect::EndAhead { host, instances, at });
    }
    Ok(())
}

/// What an instance holds at `at`, and what its newest credential's record says of it.
async fn held(
    tx: &mut On<'_>,
    scene: Scene<'_>,
    instance: InstanceId,
    agent: AgentName,
    host: HostId,
    tier: Tier,
    at: i64,
) -> Result<Ended, StoreError> {
    let rows = query(
        "SELECT issuer, number, serial, not_after FROM credentials
         WHERE instance_id = $1 ORDER BY issued_at, number",
    )
    .bind(instance.as_bytes().as_slice())
    .fetch_all(tx)
    .await?;
    let mut ended =
        Ended { instance, agent, host, tier, owner: None, selectors: Vec::new(), serials: Vec::new() };
    if let Some(newest) = rows.last() {
        let (issuer, number) = (newest.get::<String>("issuer")?, newest.get::<i64>("number")?);
        let records = schema::records_of(&issuer, scene.issuer.as_str());
        let sql = format!("SELECT body FROM {records} WHERE number = $1");
        let body = if issuer == scene.issuer.as_str() {
            query(&sql).bind(number).fetch_scalar::<String>(tx).await?
        } else {
            of_another(tx, &sql, number).await?
        };
        if let Some(body) = body {
            let shown: Shown = serde_json::from_str(&body).map_err(unreadable("records"))?;
            ended.owner = shown.owner;
            ended.selectors = shown.selectors;
        }
    }
    for row in &rows {
        if row.get::<i64>("not_after")? > at {
            ended.serials.push(row.get("serial")?);
        }
    }
    Ok(ended)
}

/// Another issuer's record: it may be kept from this one, or be gone with its issuer, and the instance ends all the same.
async fn of_another(tx: &mut On<'_>, sql: &str, number: i64) -> Result<Option<String>, StoreError> {
    query("SAVEPOINT peek").execute(tx).await?;
    let body = query(sql).bind(number).fetch_scalar::<String>(tx).await;
    match body {
        Ok(body) => {
            query("RELEASE SAVEPOINT peek").execute(tx).await?;
            Ok(body)
        }
        Err(sqlx::Error::Database(error)) => {
            tracing::warn!(%error, number, "another issuer's record cannot be read here: the end is recorded without its owner");
            query("ROLLBACK TO SAVEPOINT peek").execute(tx).await?;
            query("RELEASE SAVEPOINT peek").execute(tx).await?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn purge(tx: &mut On<'_>, at: i64) -> Result<(), StoreError> {
    // In order of number, which is nearly the order of their ends: only what is old is looked at. Each issuer's are
    // looked at by each: one that is gone for good leaves nothing behind.
    let issuers: Vec<String> = query("SELECT issuer FROM issuers").fetch_scalars(tx).await?;
    for issuer in &issuers {
        query(
            "DELETE FROM credentials WHERE issuer = $3 AND not_after < $1 AND number IN
             (SELECT number FROM credentials WHERE issuer = $3 ORDER BY number LIMIT $2)",
        )
        .bind(at - REMEMBERED)
        .bind(PURGE)
        .bind(issuer.as_str())
        .execute(tx)
        .await?;
    }
    for drop_old in [
        "DELETE FROM ended_instances WHERE ended_at < $1",
        "DELETE FROM revocations WHERE not_after < $1",
        "DELETE FROM join_tokens WHERE expires_at < $1",
        // Without gaps, whatever each issuer's clock said; and never all.
        "DELETE FROM changes WHERE seq < (SELECT min(seq) FROM changes WHERE at >= $1)",
    ] {
        query(drop_old).bind(at - LISTED).execute(tx).await?;
    }
    Ok(())
}
