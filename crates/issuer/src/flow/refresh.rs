//! A fresh quote from a host that has a credential: what the advanced tier asks for at every renewal.

use std::sync::Arc;
use std::time::Instant;

use hallmark_core::decide::highest_tier;
use hallmark_core::evidence;
use hallmark_core::id::HostId;
use hallmark_proto::issuer as wire;
use prost::bytes::Bytes;
use rand_core::{OsRng, RngCore};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{AttestRefusal, retire, standing};
use crate::convert;
use crate::issuer::Issuer;
use crate::metrics::{Proving, metrics};
use crate::record::{Kind, Record};
use crate::standing::HostState;
use crate::store::Write;

/// Runs one refresh, records how it ended, and says until when the quote counts.
///
/// # Errors
/// The refusal, already recorded.
pub async fn refresh(
    issuer: &Arc<Issuer>,
    host: &HostId,
    requests: Streaming<wire::RefreshRequest>,
    answers: &mpsc::Sender<Result<wire::RefreshResponse, Status>>,
) -> Result<wire::RefreshAccepted, AttestRefusal> {
    let begun = Instant::now();
    let result = run(issuer, host, requests, answers).await;
    metrics().proved(Proving::Refresh, "quote", result.as_ref().err().map(AttestRefusal::code), begun);
    if let Err(refusal) = &result {
        tracing::warn!(host_id = %host, code = refusal.code(), reason = ?refusal.to_string(), "quote refused");
        issuer.counters().refused();
        let entry = Record {
            host: Some(host.as_str()),
            reason: Some(format!("{}: {refusal}", refusal.code())),
            lab: issuer.is_lab(),
            ..Record::default()
        }
        .entry(issuer.now(), Kind::HostQuote, "refused", None);
        let _ = issuer.store().record(entry).await;
    }
    result
}

async fn run(
    issuer: &Arc<Issuer>,
    host: &HostId,
    mut requests: Streaming<wire::RefreshRequest>,
    answers: &mpsc::Sender<Result<wire::RefreshResponse, Status>>,
) -> Result<wire::RefreshAccepted, AttestRefusal> {
    // Load.
    let protocol = |what: &str| AttestRefusal::Protocol(what.to_owned());
    let state = issuer.host(host).ok_or_else(|| protocol("this host is not enrolled here"))?;
    if state.ak.is_none() {
        return Err(protocol("this host has no TPM to quote with"));
    }
    let config = issuer.config();
    if !matches!(next(&mut requests).await?, wire::refresh_request::Step::Begin(_)) {
        return Err(protocol("a quote before the challenge"));
    }

    // Challenge. What the quote shows is no newer than this moment, however long the answer takes.
    let asked_at = issuer.now();
    let mut nonce = [0; 32];
    OsRng.fill_bytes(&mut nonce);
    let challenge = wire::RefreshChallenge {
        nonce: Bytes::copy_from_slice(&nonce),
        pcrs: config.attestation.pcrs.iter().map(u32::from).collect(),
    };
    let step = Some(wire::refresh_response::Step::Challenge(challenge));
    answers.send(Ok(wire::RefreshResponse { step })).await.map_err(|_| protocol("the host went away"))?;

    // Appraise.
    let wire::refresh_request::Step::Quote(quote) = next(&mut requests).await? else {
        return Err(protocol("no quote after the challenge"));
    };
    // From here to the end one at a time for each host, on what is known of it now.
    let turn = issuer.host_turn(host).await;
    let stands = issuer.stands(host);
    let state = issuer.host(host).ok_or_else(|| protocol("this host is not enrolled here"))?;
    let (Some(ak), Some(tpm)) = (&state.ak, &state.stored.tpm) else {
        return Err(protocol("this host has no TPM to quote with"));
    };
    if let Some(reason) = &state.standing.disabled {
        return Err(AttestRefusal::disabled(host, reason));
    }
    let pcrs = convert::pcr_values(&quote.pcrs).map_err(|e| AttestRefusal::Protocol(e.to_string()))?;
    let shown = evidence::Quote {
        attest: &quote.attest,
        signature: &quote.signature,
        pcrs: &pcrs,
        event_log: &quote.event_log,
    };
    let appraisal =
        evidence::appraise_refresh(&shown, ak, host.as_str(), &nonce, &config.attestation.pcrs, &tpm.clock)?;

    // Record, then let it count.
    let now = issuer.now();
    let mut stored = state.stored.clone();
    stored.quote_at = stored.quote_at.max(asked_at);
    stored.evidence_sha256 = appraisal.evidence_digest;
    if let Some(tpm) = &mut stored.tpm {
        tpm.clock = appraisal.clock;
        tpm.pcrs = appraisal.pcrs.iter().map(|(index, value)| (index, hex::encode(value))).collect();
    }
    let next = HostState::new(host.clone(), state.enrolled_at, stored, &config.attestation.pcr_policies)
        .map_err(AttestRefusal::Protocol)?;
    let (highest, unmet) = highest_tier(&next.standing, &issuer.rules(), now);
    let highest = highest.map_or("none", |t| t.as_str());
    let unmet: Vec<wire::Unmet> = unmet.iter().map(convert::unmet).collect();
    let entry = Record {
        host: Some(host.as_str()),
        tier: Some(highest),
        evidence_sha256: Some(hex::encode(appraisal.evidence_digest)),
        reason: appraisal.change.reset.then(|| "the TPM was reset since the last quote".to_owned()),
        unmet: unmet.iter().map(Into::into).collect(),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(now, Kind::HostQuote, "accepted", None);
    let epoch = issuer.next_epoch();
    let mut writes = vec![
        Write::Stands { host_id: host.clone(), epoch: stands },
        Write::Standing { host_id: host.clone(), standing: next.stored.to_json(), ordered: false, epoch },
        Write::Record(entry),
    ];
    writes.extend(standing::end_above(issuer, &next.standing, now));
    let memory = issuer.clone();
    let quote_at = next.stored.quote_at;
    let outcome = issuer
        .store()
        .commit_then(writes, move |outcome| {
            memory.put_host(next, epoch);
            memory.tell_of_ended(&outcome.ended);
            drop(turn);
        })
        .await?;
    retire::log(&outcome.ended, "host-standing", None);
    tracing::info!(host_id = %host, highest_tier = highest, reset = appraisal.change.reset, "quote accepted");
    let max_age = i64::try_from(config.attestation.max_age.as_secs()).unwrap_or(i64::MAX);
    Ok(wire::RefreshAccepted {
        quote_valid_until: quote_at.saturating_add(max_age),
        highest_tier: highest.to_owned(),
        unmet,
    })
}

async fn next(
    requests: &mut Streaming<wire::RefreshRequest>,
) -> Result<wire::refresh_request::Step, AttestRefusal> {
    let message =
        requests.message().await.map_err(|status| AttestRefusal::Protocol(status.message().to_owned()))?;
    message
        .and_then(|m| m.step)
        .ok_or_else(|| AttestRefusal::Protocol("the stream ended early, or a message is empty".to_owned()))
}
