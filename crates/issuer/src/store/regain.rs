//! What a backup lacks and the log's files have: the records of after it, and what follows from them.
//!
//! What a record does not say is decided against whoever it would favour: a host whose standing is unknown attests
//! anew, a registration that was changed since is applied anew, a join token made before may have been spent.

use std::collections::BTreeSet;

use hallmark_core::log::Checkpoint;
use serde::Deserialize;

use super::backup::Unpacked;
use super::change::REVOKE;
use super::db::{On, query};
use super::writer::insert_records;
use super::{StoreError, signed};
use crate::record::Entry;

/// A record, as far as it is needed here.
#[derive(Debug, Deserialize)]
pub struct Regained {
    at: i64,
    kind: String,
    outcome: String,
    host: Option<String>,
    agent: Option<String>,
    instance: Option<String>,
    tier: Option<String>,
    custody: Option<String>,
    ca: Option<i64>,
    serial: Option<String>,
    certificate_sha256: Option<String>,
    authority: Option<String>,
    #[serde(default)]
    revoked: Vec<String>,
    not_after: Option<i64>,
    ek_sha256: Option<String>,
    reason: Option<String>,
    note: Option<String>,
    registration_revision: Option<i64>,
    #[serde(skip)]
    body: String,
}

/// What an operator must do after it.
#[derive(Debug, Default)]
pub struct ToDo {
    /// Registrations that were changed since the backup: taken out until they are applied again.
    pub registrations: BTreeSet<String>,
    /// Hosts that enrolled, or were removed, since: an operator's order lets them in.
    pub hosts: BTreeSet<String>,
    /// CAs that were made, or changed, since: what they signed is not by a CA that this store knows as it is now.
    pub cas: BTreeSet<String>,
    /// The newest revision of the registrations that was in use.
    revision: i64,
}

impl Regained {
    /// Reads an entry of the log.
    ///
    /// # Errors
    /// It is no record.
    pub fn read(entry: &[u8]) -> Result<Self, String> {
        let mut regained: Self = serde_json::from_slice(entry).map_err(|e| e.to_string())?;
        regained.body = String::from_utf8(entry.to_vec()).map_err(|e| e.to_string())?;
        Ok(regained)
    }

    fn entry(&self) -> Entry {
        let bytes = |text: &Option<String>| text.as_deref().and_then(|text| hex::decode(text).ok());
        Entry {
            at: self.at,
            kind: self.kind.clone().into(),
            outcome: self.outcome.clone().into(),
            host_id: self.host.clone(),
            agent: self.agent.clone(),
            serial: bytes(&self.serial).and_then(|b| b.try_into().ok()),
            certificate: bytes(&self.certificate_sha256).and_then(|b| b.try_into().ok()),
            body: self.body.clone(),
        }
    }
}

impl Unpacked {
    /// Appends the records that the log has after this backup's, with the log's checkpoint, and what follows from
    /// them.
    ///
    /// # Errors
    /// The database fails.
    pub async fn regain(
        &mut self,
        records: &[Regained],
        checkpoint: Checkpoint,
        note: &[u8],
    ) -> Result<ToDo, StoreError> {
        let before = self.held.checkpoint.map_or(0, |checkpoint| checkpoint.size);
        let issuer = self.issuer().to_string();
        let mut session = self.pool().acquire().await?;
        let mut writing = session.begin().await?;
        let mut on = writing.on();
        let tx = &mut on;
        let entries: Vec<(u64, Entry)> =
            records.iter().zip(before + 1..).map(|(record, number)| (number, record.entry())).collect();
        insert_records(tx, &entries).await?;
        let mut todo = ToDo::default();
        for (record, number) in records.iter().zip(before + 1..) {
            take(tx, &issuer, number, record, &mut todo).await?;
        }
        query("DELETE FROM join_tokens").execute(tx).await?;
        for agent in &todo.registrations {
            query("DELETE FROM registrations WHERE agent = $1").bind(agent.as_str()).execute(tx).await?;
        }
        // Hosts compare it: none of the revisions that were in use comes again with other content.
        query("UPDATE registration_set SET revision = $1 WHERE revision <= $1")
            .bind(todo.revision + 1)
            .execute(tx)
            .await?;
        query("DELETE FROM log_checkpoint").execute(tx).await?;
        query("INSERT INTO log_checkpoint (one, size, root, note, indexed) VALUES (1, $1, $2, $3, 0)")
            .bind(signed(checkpoint.size))
            .bind(checkpoint.root.0.as_slice())
            .bind(note)
            .execute(tx)
            .await?;
        writing.commit().await?;
        self.held.checkpoint = Some(checkpoint);
        self.held.note = note.to_vec();
        Ok(todo)
    }
}

async fn take(
    tx: &mut On<'_>,
    issuer: &str,
    number: u64,
    record: &Regained,
    todo: &mut ToDo,
) -> Result<(), StoreError> {
    match (record.kind.as_str(), record.outcome.as_str()) {
        ("svid", "issued") => credential(tx, issuer, number, record).await,
        ("instance-end", "ended") => end(tx, record).await,
        ("host-attestation", "attested") => binding(tx, record, todo).await,
        ("enrolment", outcome) => order(tx, record, outcome, todo).await,
        ("ca", outcome) => {
            todo.cas.extend(record.authority.clone());
            authority(tx, issuer, record, outcome).await
        }
        ("registration", _) => {
            todo.registrations.extend(record.agent.clone());
            todo.revision = todo.revision.max(record.registration_revision.unwrap_or_default());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What became of a CA after the backup. One that the backup knows goes the same way; of one that was made since only
/// the number is kept, as over: its key, which may be in the token still, is not taken for a new one's.
async fn authority(
    tx: &mut On<'_>,
    issuer: &str,
    record: &Regained,
    outcome: &str,
) -> Result<(), StoreError> {
    let Some((hierarchy, role, generation)) = record.authority.as_deref().and_then(named) else {
        return Ok(());
    };
    let moves = match outcome {
        "tainted" => "state = 'tainted', tainted_at = $4",
        "withdrawn" => "withdrawn_at = $4",
        "retired" => "state = 'retired', retired_at = $4",
        "replaced" => "state = 'retiring', replaced_at = $4",
        "leaves-revoked" => return superseded(tx, record).await,
        "made" | "requested" => {
            query(
                "INSERT INTO authorities (hierarchy, kind, generation, issuer, root, state, key_label, certificate,
                 made_at, renew_within, retired_at, last_not_after)
                 VALUES ($1, $2, $3, $4, 0, 'retired', '', $6, $5, 0, $5, 0) ON CONFLICT DO NOTHING",
            )
            .bind(hierarchy)
            .bind(role)
            .bind(generation)
            .bind(if role == "root" { "" } else { issuer })
            .bind(record.at)
            .bind(Vec::new())
            .execute(tx)
            .await?;
            return Ok(());
        }
        _ => return Ok(()),
    };
    let sql = format!(
        "UPDATE authorities SET {moves}
         WHERE hierarchy = $1 AND kind = $2 AND generation = $3 AND key_label <> ''"
    );
    query(&sql).bind(hierarchy).bind(role).bind(generation).bind(record.at).execute(tx).await?;
    Ok(())
}

/// Certificates of a tainted CA whose instances went on with others.
async fn superseded(tx: &mut On<'_>, record: &Regained) -> Result<(), StoreError> {
    for serial in record.revoked.iter().filter_map(|serial| hex::decode(serial).ok()) {
        query(
            "INSERT INTO revocations
             (serial, issuer, instance_id, hierarchy, ca, host_id, not_after, revoked_at, reason)
             SELECT serial, issuer, instance_id, tier, ca, host_id, not_after, $2, 'superseded'
             FROM credentials WHERE serial = $1 ON CONFLICT (serial) DO NOTHING",
        )
        .bind(serial)
        .bind(record.at)
        .execute(tx)
        .await?;
    }
    Ok(())
}

/// A CA by its name in records, as in `enterprise issuing CA 2` and `enterprise root 1`.
fn named(name: &str) -> Option<(&str, &'static str, i64)> {
    let (what, generation) = name.rsplit_once(' ')?;
    let (hierarchy, role) = match what.split_once(' ')? {
        (hierarchy, "root") => (hierarchy, "root"),
        (hierarchy, "issuing CA") => (hierarchy, "issuing"),
        _ => return None,
    };
    Some((hierarchy, role, generation.parse().ok()?))
}

async fn credential(tx: &mut On<'_>, issuer: &str, number: u64, record: &Regained) -> Result<(), StoreError> {
    let entry = record.entry();
    let instance = record.instance.as_deref().and_then(|id| hex::decode(id).ok());
    let (Some(instance), Some(serial)) = (instance, entry.serial) else { return Ok(()) };
    query(
        "INSERT INTO credentials
         (issuer, number, instance_id, agent, host_id, tier, custody, serial, issued_at, not_after, ca)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(issuer)
    .bind(signed(number))
    .bind(instance)
    .bind(record.agent.as_deref().unwrap_or_default())
    .bind(record.host.as_deref().unwrap_or_default())
    .bind(record.tier.as_deref().unwrap_or_default())
    .bind(record.custody.as_deref().unwrap_or_default())
    .bind(serial.as_slice())
    .bind(record.at)
    .bind(record.not_after.unwrap_or(record.at))
    .bind(record.ca.unwrap_or(1))
    .execute(tx)
    .await?;
    Ok(())
}

async fn end(tx: &mut On<'_>, record: &Regained) -> Result<(), StoreError> {
    let Some(instance) = record.instance.as_deref().and_then(|id| hex::decode(id).ok()) else {
        return Ok(());
    };
    let reason = record.reason.as_deref().unwrap_or("other");
    query(
        "INSERT INTO ended_instances (instance_id, agent, host_id, ended_at, reason) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (instance_id) DO NOTHING",
    )
    .bind(instance.as_slice())
    .bind(record.agent.as_deref().unwrap_or_default())
    .bind(record.host.as_deref().unwrap_or_default())
    .bind(record.at)
    .bind(reason)
    .execute(tx)
    .await?;
    query(REVOKE).bind(instance.as_slice()).bind(record.at).bind(reason).execute(tx).await?;
    Ok(())
}

/// A host that enrolled since the backup keeps its EK for ever. What it stood on is not in the record: it is as a
/// removed one, which comes back by an operator's order.
async fn binding(tx: &mut On<'_>, record: &Regained, todo: &mut ToDo) -> Result<(), StoreError> {
    let Some(host) = &record.host else { return Ok(()) };
    let ek = record.ek_sha256.as_deref().and_then(|ek| hex::decode(ek).ok());
    let new = query(
        "INSERT INTO hosts (host_id, ek_digest, enrolled_at, simulated, standing, removed_at, last_removed)
         VALUES ($1, $2, $3, 0, '{}', $3, $3) ON CONFLICT DO NOTHING",
    )
    .bind(host.as_str())
    .bind(ek.as_deref())
    .bind(record.at)
    .execute(tx)
    .await?;
    if new > 0 {
        todo.hosts.insert(host.clone());
    }
    Ok(())
}

async fn order(tx: &mut On<'_>, record: &Regained, outcome: &str, todo: &mut ToDo) -> Result<(), StoreError> {
    let Some(host) = &record.host else { return Ok(()) };
    match outcome {
        "disabled" | "enabled" => {
            let why = record.note.as_deref().or(record.reason.as_deref());
            query("UPDATE hosts SET disabled = $2 WHERE host_id = $1")
                .bind(host.as_str())
                .bind(why.filter(|_| outcome == "disabled"))
                .execute(tx)
                .await?;
        }
        "removed" => {
            query("UPDATE hosts SET removed_at = $2, last_removed = $2, disabled = NULL WHERE host_id = $1")
                .bind(host.as_str())
                .bind(record.at)
                .execute(tx)
                .await?;
            query("DELETE FROM allowed_eks WHERE host_id = $1").bind(host.as_str()).execute(tx).await?;
            todo.hosts.insert(host.clone());
        }
        "allowed" => {
            let Some(ek) = record.ek_sha256.as_deref().and_then(|ek| hex::decode(ek).ok()) else {
                return Ok(());
            };
            query("DELETE FROM allowed_eks WHERE host_id = $1 OR ek_digest = $2")
                .bind(host.as_str())
                .bind(ek.as_slice())
                .execute(tx)
                .await?;
            query(
                "INSERT INTO allowed_eks (ek_digest, host_id, hardware, note, allowed_at) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(ek.as_slice())
            .bind(host.as_str())
            .bind(record.reason.as_deref() == Some("ek-allowed-as-hardware"))
            .bind(record.note.as_deref().unwrap_or_default())
            .bind(record.at)
            .execute(tx)
            .await?;
            // It may come by itself.
            todo.hosts.remove(host);
        }
        _ => {}
    }
    Ok(())
}
