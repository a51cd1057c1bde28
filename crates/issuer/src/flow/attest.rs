//! Attesting a host: hello, challenge, evidence, and its credential. One stream, one page; the challenge
//! is a local value of it, so there is no session to guess or replay.

use std::sync::Arc;
use std::time::Instant;

use hallmark_core::decide::highest_tier;
use hallmark_core::ek;
use hallmark_core::evidence::{self, Expectation, HostAppraisal, HostEvidence};
use hallmark_core::id::HostId;
use hallmark_core::tpm::{self, Public};
use hallmark_core::x509::Csr;
use hallmark_proto::issuer as wire;
use prost::bytes::Bytes;
use rand_core::{OsRng, RngCore};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use zeroize::Zeroizing;

use super::{AttestRefusal, Release, retire, standing};
use crate::ca::SignedHost;
use crate::config::Enrolment;
use crate::issuer::{Issuer, Turn};
use crate::metrics::{Proving, metrics};
use crate::record::{Entry, Kind, Record};
use crate::standing::{HostState, Stored, StoredEkTrust, TpmState};
use crate::store::{AllowedEk, Change, Conflict, JoinTokenSpend, StoreError, Write};
use crate::{convert, sha256};

/// Longest certificate chain a host may send, and the longest certificate in it (NV padding included).
const MAX_CHAIN: usize = 6;
const MAX_CERTIFICATE: usize = 8192;
/// Largest event log.
const MAX_EVENT_LOG: usize = 2 << 20;
/// How long a stream may be open without a hello: strangers can open streams.
const HELLO_DEADLINE: std::time::Duration = std::time::Duration::from_secs(5);
/// Longest join token.
const MAX_TOKEN: usize = 256;

/// Where the answers go.
pub type Answers = mpsc::Sender<Result<wire::AttestResponse, Status>>;

/// Runs one attestation, records how it ended, and returns the credential if it ended well.
///
/// # Errors
/// The refusal, already recorded.
pub async fn attest(
    issuer: &Arc<Issuer>,
    remote: &str,
    mut requests: Streaming<wire::AttestRequest>,
    answers: &Answers,
) -> Result<wire::HostAttested, AttestRefusal> {
    let begun = Instant::now();
    let hello = tokio::time::timeout(HELLO_DEADLINE, hello(&mut requests))
        .await
        .map_err(|_| AttestRefusal::Protocol("no hello came".to_owned()))??;
    let host: HostId = hello.host_id.parse().map_err(|e| AttestRefusal::Protocol(format!("host id: {e}")))?;
    let version: String = hello.version.chars().filter(|c| !c.is_control()).take(64).collect();
    let shown = match &hello.proof {
        Some(wire::host_hello::Proof::JoinToken(_)) => "join-token",
        _ => "tpm",
    };
    let proof = async {
        match hello.proof {
            Some(wire::host_hello::Proof::Tpm(tpm)) => {
                by_tpm(issuer, &host, version, tpm, requests, answers).await
            }
            Some(wire::host_hello::Proof::JoinToken(token)) => {
                by_join_token(issuer, &host, version, token, requests, answers).await
            }
            None => Err(AttestRefusal::Protocol("the hello holds no proof".to_owned())),
        }
    };
    let deadline = issuer.config().limits.attestation_timeout;
    let result = tokio::time::timeout(deadline, proof).await.unwrap_or(Err(AttestRefusal::Deadline));
    metrics().proved(Proving::Attest, shown, result.as_ref().err().map(AttestRefusal::code), begun);
    if let Err(refusal) = &result {
        tracing::warn!(host_id = %host, remote, code = refusal.code(), reason = ?refusal.to_string(), "host refused");
        issuer.counters().refused();
        if let Some(unrecorded) = issuer.refusals().take(Instant::now()) {
            let _ = issuer.store().record(refused_entry(issuer, &host, refusal, unrecorded)).await;
        }
    }
    result
}

async fn by_tpm(
    issuer: &Arc<Issuer>,
    host: &HostId,
    version: String,
    hello: wire::TpmHello,
    mut requests: Streaming<wire::AttestRequest>,
    answers: &Answers,
) -> Result<wire::HostAttested, AttestRefusal> {
    // Load.
    let config = issuer.config();
    let now = issuer.now();
    let ek = parse_public("EK", &hello.ek_public)?;
    let ak = parse_public("AK", &hello.ak_public)?;

    // Appraise the EK: who vouches for this TPM?
    let trust = trust_ek(issuer, host, &ek, &hello.ek_certificates, now).await?;
    evidence::appraise_ak(&ak, &ek)?;

    // Challenge: only the TPM that holds this EK and this AK can answer.
    let mut nonce = [0; 32];
    OsRng.fill_bytes(&mut nonce);
    let mut secret = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(secret.as_mut());
    let credential = tpm::make_credential(&ek, ak.name(), secret.as_ref(), &mut OsRng)
        .map_err(|e| AttestRefusal::Challenge(e.to_string()))?;
    let challenge = wire::Challenge {
        nonce: Bytes::copy_from_slice(&nonce),
        credential_blob: credential.id_object.into(),
        encrypted_secret: credential.encrypted_secret.into(),
        pcrs: config.attestation.pcrs.iter().map(u32::from).collect(),
    };
    send(answers, wire::attest_response::Step::Challenge(challenge)).await?;

    // Appraise the evidence.
    let shown = evidence_step(&mut requests).await?;
    let tpm =
        shown.tpm.ok_or_else(|| AttestRefusal::Protocol("the evidence holds no TPM part".to_owned()))?;
    let csr = Csr::parse(&shown.csr)?;
    csr.check_san(&spiffe_id(issuer, host))?;
    // From here to the end one at a time for each host, on what is known of it now.
    let turn = issuer.host_turn(host).await;
    let stands = Write::Stands { host_id: host.clone(), epoch: issuer.stands(host) };
    let trust = match issuer.allowed(&trust.ek_sha256) == trust.listed {
        true => trust,
        // An operator has spoken in the meantime.
        false => trust_ek(issuer, host, &ek, &hello.ek_certificates, now).await?,
    };
    let known = issuer.host(host);
    if let Some(reason) = known.as_ref().and_then(|h| h.standing.disabled.as_ref()) {
        return Err(AttestRefusal::disabled(host, reason));
    }
    let known = known.as_ref().and_then(|h| h.stored.tpm.as_ref());
    let expected = Expectation {
        nonce: &nonce,
        secret: secret.as_ref(),
        pcrs: &config.attestation.pcrs,
        bound_ek: known.map(|t| t.ek_sha256),
        previous_clock: known.map(|t| &t.clock),
    };
    let appraisal = appraise(&tpm, &ek, &ak, &csr, &shown.csr, &expected)?;
    let quote = appraisal.quote;

    // Sign, record, release.
    let leaf = sign(issuer, host, csr.spki_der(), now, config.attestation.host_svid_lifetime).await?;
    let state = TpmState {
        ek_sha256: trust.ek_sha256,
        ek_trust: trust.trust,
        simulated: trust.simulated,
        manufacturer: trust.manufacturer,
        ak_public: ak.as_bytes().to_vec(),
        clock: quote.clock,
        pcrs: quote.pcrs.iter().map(|(index, value)| (index, hex::encode(value))).collect(),
        event_log: convert::event_log(&quote.event_log),
    };
    let stored = Stored::new(Some(state), now, quote.evidence_digest, version, leaf.not_after());
    let enrolled = Enrolled {
        host,
        ek: Some(trust.ek_sha256),
        simulated: trust.shown_simulated,
        stored,
        leaf,
        reset: quote.change.reset,
    };
    release(issuer, turn, enrolled, vec![stands], now).await
}

async fn by_join_token(
    issuer: &Arc<Issuer>,
    host: &HostId,
    version: String,
    token: wire::JoinToken,
    mut requests: Streaming<wire::AttestRequest>,
    answers: &Answers,
) -> Result<wire::HostAttested, AttestRefusal> {
    let config = issuer.config();
    let now = issuer.now();
    let token = Zeroizing::new(token.token);
    if token.is_empty() || token.len() > MAX_TOKEN {
        return Err(AttestRefusal::Conflict(Conflict::JoinToken(JoinTokenSpend::Unknown)));
    }
    let token_sha256 = sha256(token.as_bytes());
    issuer.store().check_join_token(&token_sha256, host, now).await?;
    let mut nonce = [0; 32];
    OsRng.fill_bytes(&mut nonce);
    let challenge = wire::Challenge { nonce: Bytes::copy_from_slice(&nonce), ..wire::Challenge::default() };
    send(answers, wire::attest_response::Step::Challenge(challenge)).await?;
    let shown = evidence_step(&mut requests).await?;
    let csr = Csr::parse(&shown.csr)?;
    csr.check_san(&spiffe_id(issuer, host))?;

    // One at a time for each host; and the CA signs for no token that was spent in the meantime.
    let turn = issuer.host_turn(host).await;
    issuer.store().check_join_token(&token_sha256, host, now).await?;
    let leaf = sign(issuer, host, csr.spki_der(), now, config.attestation.join_token_svid_lifetime).await?;
    let evidence_digest = sha256(&[token_sha256.as_slice(), csr.spki_der()].concat());
    let stored = Stored::new(None, now, evidence_digest, version, leaf.not_after());
    let enrolled = Enrolled { host, ek: None, simulated: false, stored, leaf, reset: false };
    let spend = Write::SpendJoinToken { token_sha256, host_id: host.clone(), at: now };
    release(issuer, turn, enrolled, vec![spend], now).await
}

/// Why an EK is trusted.
struct Trusted {
    ek_sha256: [u8; 32],
    /// Its entry of the allow-list, under whichever host id.
    listed: Option<AllowedEk>,
    trust: StoredEkTrust,
    simulated: bool,
    /// It was shown to be a software TPM's, now or ever.
    shown_simulated: bool,
    manufacturer: Option<String>,
}

/// EK certificate against the roots, or EK digest on the allow-list; and who may enrol as what.
async fn trust_ek(
    issuer: &Issuer,
    host: &HostId,
    ek: &Public,
    chain: &[Bytes],
    now: i64,
) -> Result<Trusted, AttestRefusal> {
    ek::templates::appraise(ek).map_err(|e| AttestRefusal::EkForm(e.to_string()))?;
    let ek_sha256 = ek::public_digest(ek).map_err(|e| AttestRefusal::EkForm(e.to_string()))?;
    let shown = || hex::encode(ek_sha256);
    if chain.len() > MAX_CHAIN || chain.iter().any(|c| c.len() > MAX_CERTIFICATE) {
        return Err(AttestRefusal::Protocol(format!(
            "more than {MAX_CHAIN} EK certificates, or one over {MAX_CERTIFICATE} bytes"
        )));
    }
    let chain: Vec<Vec<u8>> = chain.iter().map(|c| c.to_vec()).collect();
    let roots = issuer.roots();
    let certificate = (!chain.is_empty())
        .then(|| ek::appraise_certificate(&chain, ek, &roots.vendor, &roots.simulated, now));
    let listed = issuer.allowed(&ek_sha256);
    let entry = listed.as_ref().filter(|a| a.host_id == *host);
    let (allowed, vouched) = (entry.is_some(), entry.is_some_and(|a| a.hardware));
    let once = issuer.store().ek_was_simulated(&ek_sha256).await?;
    let bound =
        issuer.host(host).is_some_and(|h| h.stored.tpm.as_ref().is_some_and(|t| t.ek_sha256 == ek_sha256));
    let trusted = match certificate {
        Some(Ok(certificate)) => Trusted {
            ek_sha256,
            listed,
            trust: StoredEkTrust::Certificate,
            simulated: once || certificate.simulated,
            shown_simulated: certificate.simulated,
            manufacturer: certificate.manufacturer,
        },
        // The operator lets this EK in by name: what its certificate lacks does not count, but what it says
        // against itself does, and what it ever said. In a lab trust domain one that nobody vouches for
        // counts as simulated; elsewhere it counts for nothing above foundation.
        _ if allowed => {
            let says = chain.first().is_some_and(|leaf| ek::claims_simulated(leaf));
            let hardware = vouched && !says && !once;
            Trusted {
                ek_sha256,
                listed,
                trust: if hardware { StoredEkTrust::Vouched } else { StoredEkTrust::AllowList },
                simulated: says || once || (issuer.is_lab() && !hardware),
                shown_simulated: says,
                manufacturer: None,
            }
        }
        Some(Err(error)) => return Err(error.into()),
        None => return Err(AttestRefusal::EkUnknown { host_id: host.clone(), ek_sha256: shown() }),
    };
    // A host id that is bound to another EK is refused as such, before anything is said of lists.
    if let Some(there) = issuer.host(host)
        && !bound
    {
        let bound_to =
            there.stored.tpm.as_ref().map_or_else(|| "a join token".to_owned(), |t| hex::encode(t.ek_sha256));
        return Err(AttestRefusal::Conflict(Conflict::HostIdTaken { host_id: host.to_string(), bound_to }));
    }
    if issuer.config().attestation.enrolment == Enrolment::AllowList && !allowed && !bound {
        return Err(AttestRefusal::NotAllowed { host_id: host.clone(), ek_sha256: shown() });
    }
    Ok(trusted)
}

fn appraise(
    shown: &wire::TpmEvidence,
    ek: &Public,
    ak: &Public,
    csr: &Csr,
    csr_der: &[u8],
    expected: &Expectation<'_>,
) -> Result<HostAppraisal, AttestRefusal> {
    let missing = |what: &str| AttestRefusal::Protocol(format!("the evidence lacks {what}"));
    let quote = shown.quote.as_ref().ok_or_else(|| missing("a quote"))?;
    let key = shown.host_key.as_ref().ok_or_else(|| missing("the host key's certification"))?;
    if quote.event_log.len() > MAX_EVENT_LOG {
        return Err(AttestRefusal::Protocol(format!("event log over {MAX_EVENT_LOG} bytes")));
    }
    let pcrs = convert::pcr_values(&quote.pcrs).map_err(|e| AttestRefusal::Protocol(e.to_string()))?;
    let evidence = HostEvidence {
        ek,
        ak,
        activated_secret: &shown.activated_secret,
        quote: evidence::Quote {
            attest: &quote.attest,
            signature: &quote.signature,
            pcrs: &pcrs,
            event_log: &quote.event_log,
        },
        host_key: evidence::KeyCertification {
            public: &key.public,
            attest: &key.attest,
            signature: &key.signature,
        },
        csr: csr_der,
        csr_spki: csr.spki_der(),
    };
    Ok(evidence::appraise_host(&evidence, expected)?)
}

async fn sign(
    issuer: &Issuer,
    host: &HostId,
    spki: &[u8],
    now: i64,
    lifetime: std::time::Duration,
) -> Result<SignedHost, AttestRefusal> {
    // One of before its removal is dead for ever: the new one must not look like it.
    let now = issuer.last_removed(host).map_or(now, |removed| now.max(removed + 1));
    // One signature an attestation: `block_in_place` keeps a slow token off the other tasks' thread.
    tokio::task::block_in_place(|| issuer.ca().sign_host(host, spki, now, lifetime))
        .map_err(AttestRefusal::Sign)
}

/// A host about to be let in.
struct Enrolled<'a> {
    host: &'a HostId,
    ek: Option<[u8; 32]>,
    simulated: bool,
    stored: Stored,
    leaf: SignedHost,
    reset: bool,
}

async fn release(
    issuer: &Arc<Issuer>,
    turn: Turn,
    enrolled: Enrolled<'_>,
    mut writes: Vec<Write>,
    now: i64,
) -> Result<wire::HostAttested, AttestRefusal> {
    let Enrolled { host, ek, simulated, stored, leaf, reset } = enrolled;
    let enrolled_at = issuer.host(host).map_or(now, |h| h.enrolled_at);
    let state = HostState::new(host.clone(), enrolled_at, stored, &issuer.config().attestation.pcr_policies)
        .map_err(AttestRefusal::Protocol)?;
    let (highest, unmet) = highest_tier(&state.standing, &issuer.rules(), now);
    let highest = highest.map_or("none", |t| t.as_str());
    let epoch = issuer.next_epoch();
    writes.push(Write::Enrol {
        host_id: host.clone(),
        ek_digest: ek,
        simulated,
        at: now,
        standing: state.stored.to_json(),
        epoch,
    });
    let unmet: Vec<wire::Unmet> = unmet.iter().map(convert::unmet).collect();
    writes.push(Write::Record(attested_entry(issuer, &state, &leaf, highest, &unmet, reset, now)));
    writes.push(Write::Change(Change::Signed { generation: leaf.ca(), not_after: leaf.not_after() }));
    writes.extend(standing::end_above(issuer, &state.standing, now));
    let software = state.stored.tpm.as_ref().is_some_and(|t| t.simulated);
    let memory = issuer.clone();
    let place = issuer.store().place(1).await?;
    let outcome = issuer
        .store()
        .commit_then(writes, move |outcome| {
            memory.put_host(state, epoch);
            memory.tell_of_ended(&outcome.ended);
            drop(turn);
        })
        .await?;
    // The entry of a plain record is never stale: it is there.
    retire::log(&outcome.ended, "host-standing", None);
    let recorded =
        place.release(outcome.records).await?.pop().and_then(Result::ok).ok_or(StoreError::Stopped)?;
    let release = Release::new(leaf, recorded);
    let leaf = release.signed();
    tracing::info!(
        host_id = %host, proof = if ek.is_some() { "tpm" } else { "join-token" }, highest_tier = highest,
        simulated = software, reset, serial = %leaf.serial(), record = release.record(), "host attested"
    );
    let max_age = i64::try_from(issuer.config().attestation.max_age.as_secs()).unwrap_or(i64::MAX);
    Ok(wire::HostAttested {
        host_svid: vec![Bytes::copy_from_slice(leaf.der()), leaf.issuing_der().clone()],
        bundles: Some(convert::bundles(issuer.trust_domain().name.as_str(), issuer.ca())),
        attest_again_at: now + (leaf.not_after() - now) / 2,
        quote_valid_until: if ek.is_some() { now.saturating_add(max_age) } else { 0 },
        highest_tier: highest.to_owned(),
        unmet,
    })
}

fn attested_entry(
    issuer: &Issuer,
    state: &HostState,
    leaf: &SignedHost,
    highest: &str,
    unmet: &[wire::Unmet],
    reset: bool,
    now: i64,
) -> Entry {
    Record {
        host: Some(state.host_id.as_str()),
        tier: Some(highest),
        certificate_sha256: Some(hex::encode(sha256(leaf.der()))),
        not_after: Some(leaf.not_after()),
        evidence_sha256: Some(hex::encode(state.stored.evidence_sha256)),
        ek_sha256: state.stored.tpm.as_ref().map(|t| hex::encode(t.ek_sha256)),
        reason: reset.then(|| "the TPM was reset since the last attestation".to_owned()),
        unmet: unmet.iter().map(Into::into).collect(),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(now, Kind::HostAttestation, "attested", Some(*leaf.serial().as_bytes()))
}

fn refused_entry(issuer: &Issuer, host: &HostId, refusal: &AttestRefusal, unrecorded: u64) -> Entry {
    Record {
        unrecorded,
        host: Some(host.as_str()),
        reason: Some(format!("{}: {refusal}", refusal.code())),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(issuer.now(), Kind::HostAttestation, "refused", None)
}

fn spiffe_id(issuer: &Issuer, host: &HostId) -> hallmark_core::id::SpiffeId {
    hallmark_core::id::SpiffeId::new(
        issuer.trust_domain().name.clone(),
        hallmark_core::id::Subject::Host(host.clone()),
    )
}

fn parse_public(what: &str, bytes: &[u8]) -> Result<Public, AttestRefusal> {
    Public::parse(bytes).map_err(|e| AttestRefusal::Protocol(format!("{what} public: {e}")))
}

async fn hello(requests: &mut Streaming<wire::AttestRequest>) -> Result<wire::HostHello, AttestRefusal> {
    match next(requests).await? {
        wire::attest_request::Step::Hello(hello) => Ok(hello),
        wire::attest_request::Step::Evidence(_) => {
            Err(AttestRefusal::Protocol("evidence before hello".to_owned()))
        }
    }
}

async fn evidence_step(
    requests: &mut Streaming<wire::AttestRequest>,
) -> Result<wire::HostEvidence, AttestRefusal> {
    match next(requests).await? {
        wire::attest_request::Step::Evidence(evidence) => Ok(evidence),
        wire::attest_request::Step::Hello(_) => Err(AttestRefusal::Protocol("a second hello".to_owned())),
    }
}

async fn next(
    requests: &mut Streaming<wire::AttestRequest>,
) -> Result<wire::attest_request::Step, AttestRefusal> {
    let message =
        requests.message().await.map_err(|status| AttestRefusal::Protocol(status.message().to_owned()))?;
    message
        .and_then(|m| m.step)
        .ok_or_else(|| AttestRefusal::Protocol("the stream ended early, or a message is empty".to_owned()))
}

async fn send(answers: &Answers, step: wire::attest_response::Step) -> Result<(), AttestRefusal> {
    let answer = wire::AttestResponse { step: Some(step) };
    answers.send(Ok(answer)).await.map_err(|_| AttestRefusal::Protocol("the host went away".to_owned()))
}
