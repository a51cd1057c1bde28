//! Operators' orders about who may enrol and who may stay: the EK allow-list, join tokens, hosts disabled and
//! removed.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hallmark_core::id::HostId;
use rand::TryRngCore;
use zeroize::Zeroizing;

use super::{retire, standing};
use crate::admin::Operator;
use crate::convert;
use crate::issuer::Issuer;
use crate::record::{Kind, Record};
use crate::standing::{HostState, StoredEkTrust};
use crate::store::{AllowedEk, Ended, Ending, StoreError, Who, Write};

/// Longest life of a join token.
pub const MAX_JOIN_TOKEN_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of randomness in a join token: guessing is out of reach, so a plain hash in the store suffices.
const JOIN_TOKEN_BYTES: usize = 32;

/// Allows an EK to enrol as one host id; with `hardware`, the operator also vouches that it is no software TPM.
/// For a host that is enrolled by the allow-list already, that word counts at once.
///
/// # Errors
/// The host id or the EK is bound otherwise, the EK was shown to be a software TPM's, or the store failed.
pub async fn allow(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    host_id: HostId,
    ek_digest: [u8; 32],
    hardware: bool,
    note: String,
) -> Result<(), StoreError> {
    let now = issuer.now();
    let turn = issuer.host_turn(&host_id).await;
    let stands = issuer.stands(&host_id);
    let reason = if hardware { "ek-allowed-as-hardware" } else { "ek-allowed" };
    let entry = Record {
        ek_sha256: Some(hex::encode(ek_digest)),
        ..order(issuer, operator, &host_id, reason, &note)
    }
    .entry(now, Kind::Enrolment, "allowed", None);
    let allowed = AllowedEk { ek_digest, host_id: host_id.clone(), hardware, note, allowed_at: now };
    let mut writes = vec![Write::AllowEk(allowed.clone()), Write::Record(entry)];
    let state = issuer.host(&host_id).and_then(|state| vouched(issuer, &state, hardware));
    let epoch = issuer.next_epoch();
    if let Some(state) = &state {
        let standing = state.stored.to_json();
        writes.insert(0, Write::Stands { host_id: host_id.clone(), epoch: stands });
        writes.push(Write::Standing { host_id: host_id.clone(), standing, ordered: true, epoch });
        writes.extend(standing::end_above(issuer, &state.standing, now));
    }
    let memory = issuer.clone();
    let outcome = issuer
        .store()
        .commit_then(writes, move |outcome| {
            memory.put_allowed(allowed);
            if let Some(state) = state {
                memory.put_host(state, epoch);
            }
            memory.tell_of_ended(&outcome.ended);
            drop(turn);
        })
        .await?;
    retire::log(&outcome.ended, "host-standing", Some(operator));
    issuer.hub().send(&host_id, convert::attest_now("allow-list-changed"));
    tracing::info!(%host_id, ek_sha256 = hex::encode(ek_digest), hardware, %operator, "host allowed");
    Ok(())
}

/// What an enrolled host stands on once the operator's word about its TPM is this; none if that changes nothing.
fn vouched(issuer: &Issuer, state: &HostState, hardware: bool) -> Option<HostState> {
    let mut stored = state.stored.clone();
    let tpm = stored.tpm.as_mut()?;
    let word = if hardware { StoredEkTrust::Vouched } else { StoredEkTrust::AllowList };
    if matches!(tpm.ek_trust, StoredEkTrust::Certificate) || tpm.ek_trust == word {
        return None;
    }
    // In a lab trust domain it counted as simulated for want of this word, or does so from here on; one that was
    // shown to be simulated is refused the word by the store.
    tpm.simulated = issuer.is_lab() && !hardware;
    tpm.ek_trust = word;
    let policies = &issuer.config().attestation.pcr_policies;
    HostState::new(state.host_id.clone(), state.enrolled_at, stored, policies).ok()
}

/// Disables a host, with the operator's words: nothing is issued through it, all its instances end, and it
/// cannot attest until it is enabled.
///
/// # Errors
/// It is not enrolled, or the store failed.
pub async fn disable(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    host_id: HostId,
    reason: String,
) -> Result<Vec<Ended>, StoreError> {
    let turn = issuer.host_turn(&host_id).await;
    let epoch = issuer.next_epoch();
    let entry = order(issuer, operator, &host_id, "host-disabled", &reason);
    let writes = vec![
        Write::DisableHost { host_id: host_id.clone(), reason: Some(reason.clone()), epoch },
        Write::Record(entry.entry(issuer.now(), Kind::Enrolment, "disabled", None)),
        end_all(issuer, operator, &host_id, "host-disabled"),
    ];
    let (memory, host) = (issuer.clone(), host_id.clone());
    let outcome = issuer
        .store()
        .commit_then(writes, move |outcome| {
            memory.put_disabled(&host, Some(reason), epoch);
            memory.tell_of_ended(&outcome.ended);
            memory.hub().close_one(&host);
            drop(turn);
        })
        .await?;
    retire::log(&outcome.ended, "host-disabled", Some(operator));
    tracing::warn!(%host_id, %operator, ended = outcome.ended.len(), "host disabled");
    Ok(outcome.ended)
}

/// Enables a host again: it attests anew when it next comes.
///
/// # Errors
/// It is not enrolled, or the store failed.
pub async fn enable(issuer: &Arc<Issuer>, operator: &Operator, host_id: HostId) -> Result<(), StoreError> {
    let turn = issuer.host_turn(&host_id).await;
    let epoch = issuer.next_epoch();
    let entry = order(issuer, operator, &host_id, "host-enabled", "");
    let writes = vec![
        Write::DisableHost { host_id: host_id.clone(), reason: None, epoch },
        Write::Record(entry.entry(issuer.now(), Kind::Enrolment, "enabled", None)),
    ];
    let (memory, host) = (issuer.clone(), host_id.clone());
    issuer
        .store()
        .commit_then(writes, move |_| {
            memory.put_disabled(&host, None, epoch);
            drop(turn);
        })
        .await?;
    tracing::info!(%host_id, %operator, "host enabled");
    Ok(())
}

/// Removes a host: its standing, its place on the allow-list and its unspent join tokens; all its instances
/// end. Its id stays bound to its TPM: it may enrol again, as new, once an operator allows it.
///
/// # Errors
/// There is no such host, or the store failed.
pub async fn remove(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    host_id: HostId,
) -> Result<Vec<Ended>, StoreError> {
    let turn = issuer.host_turn(&host_id).await;
    let (now, epoch) = (issuer.now(), issuer.next_epoch());
    let entry = order(issuer, operator, &host_id, "host-removed", "");
    let writes = vec![
        Write::RemoveHost { host_id: host_id.clone(), at: now, epoch },
        Write::Record(entry.entry(now, Kind::Enrolment, "removed", None)),
        end_all(issuer, operator, &host_id, "host-removed"),
    ];
    let (memory, host) = (issuer.clone(), host_id.clone());
    let outcome = issuer
        .store()
        .commit_then(writes, move |outcome| {
            memory.drop_host(&host, now);
            memory.drop_allowed(&host);
            memory.tell_of_ended(&outcome.ended);
            memory.hub().close_one(&host);
            drop(turn);
        })
        .await?;
    retire::log(&outcome.ended, "host-removed", Some(operator));
    tracing::warn!(%host_id, %operator, ended = outcome.ended.len(), "host removed");
    Ok(outcome.ended)
}

fn end_all(issuer: &Issuer, operator: &Operator, host_id: &HostId, reason: &'static str) -> Write {
    Write::End(Ending {
        who: Who { host: Some(host_id.clone()), ..Who::default() },
        at: issuer.now(),
        reason,
        operator: Some(operator.to_string()),
        lab: issuer.is_lab(),
    })
}

fn order<'a>(
    issuer: &Issuer,
    operator: &Operator,
    host_id: &'a HostId,
    reason: &str,
    note: &str,
) -> Record<'a> {
    Record {
        host: Some(host_id.as_str()),
        operator: Some(operator.to_string()),
        reason: Some(reason.to_owned()),
        note: (!note.is_empty()).then(|| note.to_owned()),
        lab: issuer.is_lab(),
        ..Record::default()
    }
}

/// Makes a join token for one host id, and returns its text and its end. Only its hash is kept.
///
/// # Errors
/// The store failed.
pub async fn create_join_token(
    issuer: &Issuer,
    operator: &Operator,
    host_id: HostId,
    ttl: Duration,
) -> Result<(Zeroizing<String>, i64), StoreError> {
    let now = issuer.now();
    let expires_at =
        now.saturating_add(i64::try_from(ttl.min(MAX_JOIN_TOKEN_TTL).as_secs()).unwrap_or(i64::MAX));
    let mut bytes = Zeroizing::new([0; JOIN_TOKEN_BYTES]);
    rand::rngs::OsRng
        .try_fill_bytes(bytes.as_mut())
        .map_err(|e| StoreError::Database(sqlx::Error::Io(std::io::Error::other(e.to_string()))))?;
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()));
    let entry =
        Record { not_after: Some(expires_at), ..order(issuer, operator, &host_id, "join-token-created", "") }
            .entry(now, Kind::Enrolment, "allowed", None);
    let write = Write::JoinToken {
        token_sha256: crate::sha256(token.as_bytes()),
        host_id: host_id.clone(),
        expires_at,
    };
    // It buys a credential, and is released as one is.
    let place = issuer.store().place(1).await?;
    let made = issuer.store().commit(vec![write, Write::Record(entry)]).await?;
    place.release(made.records).await?;
    tracing::info!(%host_id, expires_at, %operator, "join token created");
    Ok((token, expires_at))
}
