//! Operators' orders about who may enrol: the EK allow-list and join tokens.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hallmark_core::id::HostId;
use rand::TryRngCore;
use zeroize::Zeroizing;

use crate::admin::Operator;
use crate::issuer::Issuer;
use crate::record::{Kind, Record};
use crate::store::{AllowedEk, StoreError, Write};

/// Longest life of a join token.
pub const MAX_JOIN_TOKEN_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of randomness in a join token: guessing is out of reach, so a plain hash in the store suffices.
const JOIN_TOKEN_BYTES: usize = 32;

/// Allows an EK to enrol as one host id.
///
/// # Errors
/// The host id or the EK is bound otherwise, or the store failed.
pub async fn allow(
    issuer: &Issuer,
    operator: &Operator,
    host_id: HostId,
    ek_digest: [u8; 32],
    note: String,
) -> Result<(), StoreError> {
    let now = issuer.now();
    let entry = Record {
        host: Some(host_id.as_str()),
        ek_sha256: Some(hex::encode(ek_digest)),
        operator: Some(operator.to_string()),
        reason: Some("ek-allowed".to_owned()),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(now, Kind::Enrolment, "allowed", None);
    let allowed = AllowedEk { ek_digest, host_id: host_id.clone(), note, allowed_at: now };
    issuer.store().commit(vec![Write::AllowEk(allowed), Write::Record(entry)]).await?;
    issuer.reload_allowed().await?;
    tracing::info!(%host_id, ek_sha256 = hex::encode(ek_digest), %operator, "host allowed");
    Ok(())
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
    let entry = Record {
        host: Some(host_id.as_str()),
        not_after: Some(expires_at),
        operator: Some(operator.to_string()),
        reason: Some("join-token-created".to_owned()),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(now, Kind::Enrolment, "allowed", None);
    let write = Write::JoinToken {
        token_sha256: crate::sha256(token.as_bytes()),
        host_id: host_id.clone(),
        expires_at,
    };
    issuer.store().commit(vec![write, Write::Record(entry)]).await?;
    tracing::info!(%host_id, expires_at, %operator, "join token created");
    Ok((token, expires_at))
}
