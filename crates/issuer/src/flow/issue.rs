//! Issuing agents' SVIDs: a batch from one host, each item granted or refused by itself.

use std::sync::Arc;
use std::time::Instant;

use hallmark_core::decide::{self, AgentStanding, Grant, KeyStanding, Pkcs11Assertion, Refusal};
use hallmark_core::evidence;
use hallmark_core::id::{AgentName, HostId, InstanceId};
use hallmark_core::pcr::PcrSelection;
use hallmark_core::registration::Registered;
use hallmark_core::selector::{Selector, SelectorSet};
use hallmark_core::tier::Tier;
use hallmark_core::trace::TraceParent;
use hallmark_core::x509::Csr;
use hallmark_proto::issuer as wire;
use hallmark_telemetry::Span;
use tonic::Status;

use super::Release;
use crate::ca::Signed;
use crate::issuer::{Issuer, Snapshot};
use crate::metrics::metrics;
use crate::record::{Entry, Kind, Record, UnmetEntry};
use crate::registry::Registry;
use crate::store::{Issue, Recorded, Stale, Write};

/// Most items in one call.
pub const MAX_BATCH: usize = 64;
/// Most selectors in one item.
const MAX_SELECTORS: usize = 256;
/// Most bytes of them: they stand in the record.
const MAX_SELECTOR_BYTES: usize = 16 * 1024;
/// Longest label of a token, in bytes (PKCS#11 section 3.2, CK_TOKEN_INFO).
const MAX_TOKEN_LABEL: usize = 32;
/// How often an item is decided anew because what it was decided upon has changed by the time it is recorded.
const ROUNDS: usize = 3;
/// A batch of more items than this, or any whose signatures come from a token, leaves the async threads.
const INLINE: usize = 2;

/// Issues or refuses each item, and returns once every decision's record is on disk.
///
/// # Errors
/// The batch as a whole is malformed, or the store failed: nothing was released.
pub async fn issue(
    issuer: &Arc<Issuer>,
    host: &HostId,
    items: Vec<wire::IssueItem>,
) -> Result<Vec<wire::IssueResult>, Status> {
    if items.is_empty() || items.len() > MAX_BATCH {
        return Err(Status::invalid_argument(format!(
            "{} items; a call carries 1 to {MAX_BATCH}",
            items.len()
        )));
    }
    let (begun, count) = (Instant::now(), items.len());
    let turn = issuer.store().place(count).await.map_err(|e| crate::status::store(&e))?;
    let mut results: Vec<Option<wire::IssueResult>> = items.iter().map(|_| None).collect();
    let mut waiting: Vec<Waiting> =
        items.into_iter().enumerate().map(|(place, item)| Waiting::new(host, place, item)).collect();
    for round in 0.. {
        // Load.
        let snapshot = issuer
            .snapshot(host)
            .ok_or_else(|| Status::permission_denied("this host is not enrolled here"))?;
        let (registry, standing_age) = (snapshot.registry.clone(), snapshot.standing_age());

        // Appraise, decide, sign.
        let deciding = Instant::now();
        let decided = if waiting.len() <= INLINE && !issuer.ca().blocks() {
            decide_all(issuer, &snapshot, waiting)
        } else {
            let issuer = issuer.clone();
            tokio::task::spawn_blocking(move || decide_all(&issuer, &snapshot, waiting))
                .await
                .map_err(|_| Status::internal("issuing failed"))?
        };

        metrics().decided(deciding);

        // Record.
        let (mut writes, mut outcomes) =
            (Vec::with_capacity(decided.len()), Vec::with_capacity(decided.len()));
        for Decided { place, item, trace, write, outcome } in decided {
            writes.push(write);
            let commit = trace.span.child("commit");
            outcomes.push((place, item, trace, commit, outcome));
        }
        let committed = issuer.store().commit(writes).await.map_err(|e| crate::status::store(&e))?;

        // Witnesses, where they are required.
        let records = turn.release(committed.records).await.map_err(|e| crate::status::store(&e))?;

        // Release; what is out of date by now goes round again.
        waiting = Vec::new();
        for ((place, item, mut trace, commit, outcome), recorded) in outcomes.into_iter().zip(records) {
            drop(commit);
            match recorded {
                Ok(recorded) => {
                    if let Some(result) = results.get_mut(place) {
                        let asked = Asked { agent: &item.agent, registry: &registry, standing_age };
                        *result = Some(release(issuer, outcome, recorded, &asked, &mut trace));
                    }
                }
                Err(stale) => waiting.push(Waiting { place, item, trace, denial: outdated(stale, round) }),
            }
        }
        if waiting.is_empty() {
            break;
        }
    }
    metrics().answered(count, begun);
    results.into_iter().map(|result| result.ok_or_else(|| Status::internal("issuing failed"))).collect()
}

/// One item to be decided; refused already where the writer refused it.
struct Waiting {
    place: usize,
    item: wire::IssueItem,
    trace: Trace,
    denial: Option<Denial>,
}

impl Waiting {
    fn new(host: &HostId, place: usize, item: wire::IssueItem) -> Self {
        let trace = Trace::of(host, &item);
        Self { place, item, trace, denial: None }
    }
}

/// The trace that an item is part of, and the step that answers it.
struct Trace {
    parent: Option<TraceParent>,
    span: Span,
}

impl Trace {
    fn of(host: &HostId, item: &wire::IssueItem) -> Self {
        let parent = match item.traceparent.as_str() {
            "" => None,
            text => text.parse().map_err(|error| metrics().traceparent_refused(error)).ok(),
        };
        let mut span = Span::server("Issue", parent.as_ref());
        span.say("hallmark.host", host);
        Self { parent, span }
    }

    /// The trace's id for record and log: the one that the host named, or that of a trace that begins here.
    fn id(&self) -> Option<String> {
        self.parent.or_else(|| self.span.traceparent()).map(|parent| parent.trace_id_hex())
    }
}

/// One item on its way: what was decided, not yet on disk.
struct Decided {
    place: usize,
    item: wire::IssueItem,
    trace: Trace,
    write: Write,
    outcome: Result<Signed, Denial>,
}

/// What becomes of an item that the writer found out of date; none: it is decided anew.
fn outdated(stale: Stale, round: usize) -> Option<Denial> {
    let denial = |code, retryable| Denial { code, unmet: vec![wire_unmet(code, stale)], retryable };
    match stale {
        Stale::Registration | Stale::Host | Stale::Authority if round < ROUNDS => None,
        Stale::Registration | Stale::Host | Stale::Authority => Some(denial("changed-meanwhile", true)),
        Stale::Ended => Some(denial("instance-ended", false)),
        Stale::Taken | Stale::NotNew => Some(malformed("instance-id", stale)),
    }
}

/// Why an item was refused.
struct Denial {
    code: &'static str,
    unmet: Vec<wire::Unmet>,
    retryable: bool,
}

fn decide_all(issuer: &Issuer, snapshot: &Snapshot, waiting: Vec<Waiting>) -> Vec<Decided> {
    waiting.into_iter().map(|waiting| decide_one(issuer, snapshot, waiting)).collect()
}

fn decide_one(issuer: &Issuer, snapshot: &Snapshot, waiting: Waiting) -> Decided {
    let Waiting { place, item, trace, denial } = waiting;
    let instance = <[u8; 16]>::try_from(item.instance_id.as_ref()).ok().map(InstanceId::from_bytes);
    let result = match denial {
        Some(denial) => Err(denial),
        None => within(&trace, "appraise", || appraise(snapshot, &item, instance)).and_then(|appraised| {
            let decide = trace.span.child("decide");
            let granted = decide::decide(
                &appraised.registered,
                &snapshot.host.standing,
                &appraised.agent,
                &snapshot.rules,
                snapshot.now,
            );
            drop(decide);
            match granted {
                Ok(grant) => within(&trace, "sign", || sign(issuer, &grant, snapshot.now))
                    .map(|signed| (appraised, grant, signed)),
                Err(refusal) => Err(denied(refusal)),
            }
        }),
    };
    let (write, outcome) = match result {
        Ok((appraised, grant, signed)) => {
            let issue = Issue {
                entry: issued_entry(snapshot, &item, &trace, &appraised, &grant, &signed),
                instance: signed.instance(),
                agent: appraised.registered.registration.name().clone(),
                host: snapshot.host.host_id.clone(),
                tier: signed.tier(),
                ca: signed.ca(),
                held: signed.held(),
                custody: signed.custody().as_str(),
                issued_at: snapshot.now,
                not_after: signed.not_after(),
                registration_revision: appraised.registered.revision,
                host_epoch: snapshot.host.epoch,
            };
            (Write::Issue(Box::new(issue)), Ok(signed))
        }
        Err(denial) => {
            log_refused(snapshot, &item, &trace, instance, &denial);
            (Write::Record(refused_entry(snapshot, &item, &trace, instance, &denial)), Err(denial))
        }
    };
    Decided { place, item, trace, write, outcome }
}

/// One step of deciding, in a span of its own.
fn within<T>(trace: &Trace, step: &'static str, work: impl FnOnce() -> T) -> T {
    let _span = trace.span.child(step);
    work()
}

/// An item whose evidence holds; whether it suffices is not decided yet.
struct Appraised {
    registered: Arc<Registered>,
    agent: AgentStanding,
}

fn appraise(
    snapshot: &Snapshot,
    item: &wire::IssueItem,
    instance: Option<InstanceId>,
) -> Result<Appraised, Denial> {
    let name: AgentName = item.agent.parse().map_err(|e| malformed("agent-name", e))?;
    let instance = instance.ok_or_else(|| malformed("instance-id", "an instance id has 16 bytes"))?;
    let registered = snapshot.registry.agents.get(&name).cloned().ok_or_else(|| Denial {
        code: "no-registration",
        unmet: vec![wire_unmet("no-registration", format_args!("no registration is named {name}"))],
        retryable: false,
    })?;
    let csr = Csr::parse(&item.csr).map_err(|e| malformed("csr", e))?;
    csr.check_san(&snapshot.spiffe_id(&name)).map_err(|e| malformed("csr", e))?;
    if item.selectors.len() > MAX_SELECTORS {
        return Err(malformed(
            "selectors",
            format!("{} selectors, more than {MAX_SELECTORS}", item.selectors.len()),
        ));
    }
    let bytes: usize = item.selectors.iter().map(String::len).sum();
    if bytes > MAX_SELECTOR_BYTES {
        return Err(malformed(
            "selectors",
            format!("{bytes} bytes of selectors, more than {MAX_SELECTOR_BYTES}"),
        ));
    }
    let selectors = item
        .selectors
        .iter()
        .map(|s| s.parse::<Selector>())
        .collect::<Result<SelectorSet, _>>()
        .map_err(|e| malformed("selectors", e))?;
    let key = key_standing(snapshot, item, &csr)?;
    let agent = AgentStanding { instance, selectors, spki: csr.spki_der().to_vec(), key };
    Ok(Appraised { registered, agent })
}

fn key_standing(snapshot: &Snapshot, item: &wire::IssueItem, csr: &Csr) -> Result<KeyStanding, Denial> {
    match &item.key {
        Some(wire::issue_item::Key::Software(_)) => Ok(KeyStanding::Software),
        Some(wire::issue_item::Key::Tpm(tpm)) => {
            let ak = snapshot
                .host
                .ak
                .as_ref()
                .ok_or_else(|| malformed("key-evidence", "this host has no attested TPM"))?;
            let certification =
                tpm.certification.as_ref().ok_or_else(|| malformed("key-evidence", "no certification"))?;
            let pcrs = PcrSelection::new(tpm.policy_pcrs.iter().copied())
                .map_err(|e| malformed("key-evidence", e))?;
            let certification = evidence::KeyCertification {
                public: &certification.public,
                attest: &certification.attest,
                signature: &certification.signature,
            };
            let appraisal =
                evidence::appraise_key(&certification, ak, csr.spki_der(), &pcrs, &snapshot.host.pcrs)
                    .map_err(|e| Denial {
                        code: "key-evidence",
                        unmet: vec![wire_unmet(e.code(), e)],
                        retryable: false,
                    })?;
            Ok(KeyStanding::Tpm { policy_pcrs: appraisal.policy_pcrs.indices().clone() })
        }
        Some(wire::issue_item::Key::Pkcs11(p)) if p.token_label.len() > MAX_TOKEN_LABEL => {
            Err(malformed("key-evidence", format!("a token's label has at most {MAX_TOKEN_LABEL} bytes")))
        }
        Some(wire::issue_item::Key::Pkcs11(p)) => Ok(KeyStanding::Pkcs11(Pkcs11Assertion {
            token_label: p.token_label.clone(),
            sensitive: p.sensitive,
            always_sensitive: p.always_sensitive,
            never_extractable: p.never_extractable,
            local: p.local,
        })),
        None => Err(malformed("key-evidence", "the item does not say where its key lives")),
    }
}

fn sign(issuer: &Issuer, grant: &Grant, now: i64) -> Result<Signed, Denial> {
    issuer.ca().sign_agent(grant, now).map_err(|error| {
        tracing::error!(%error, instance = %grant.instance(), "signing failed; nothing is released");
        Denial {
            code: "ca-unavailable",
            unmet: vec![wire_unmet("ca-unavailable", "the issuer's CA key cannot sign at present")],
            retryable: true,
        }
    })
}

fn wire_unmet(code: &str, detail: impl std::fmt::Display) -> wire::Unmet {
    wire::Unmet { code: code.to_owned(), detail: detail.to_string() }
}

/// What a host says of itself is shown escaped: a line of the log stays one line.
fn log_refused(
    snapshot: &Snapshot,
    item: &wire::IssueItem,
    trace: &Trace,
    instance: Option<InstanceId>,
    denial: &Denial,
) {
    let agent: String = item.agent.chars().take(64).collect();
    let unmet: Vec<&str> = denial.unmet.iter().map(|u| u.code.as_str()).collect();
    tracing::info!(
        host_id = %snapshot.host.host_id, agent = ?agent, instance = instance.map(|i| i.to_string()),
        reason = denial.code, unmet = unmet.join(","), trace_id = trace.id(), "refused"
    );
}

fn malformed(code: &'static str, problem: impl std::fmt::Display) -> Denial {
    Denial { code: "malformed", unmet: vec![wire_unmet(code, problem)], retryable: false }
}

fn denied(refusal: Refusal) -> Denial {
    let retryable = refusal.retryable();
    Denial {
        code: Refusal::CODE,
        unmet: refusal.unmet.iter().map(crate::convert::unmet).collect(),
        retryable,
    }
}

fn issued_entry(
    snapshot: &Snapshot,
    item: &wire::IssueItem,
    trace: &Trace,
    appraised: &Appraised,
    grant: &Grant,
    signed: &Signed,
) -> Entry {
    let registered = &appraised.registered;
    Record {
        host: Some(snapshot.host.host_id.as_str()),
        agent: Some(&item.agent),
        instance: Some(signed.instance().to_string()),
        owner: Some(registered.registration.owner()),
        registration_revision: Some(registered.revision),
        registration_digest: Some(crate::hex(grant.registration_digest())),
        tier: Some(signed.tier().as_str()),
        custody: Some(signed.custody().as_str()),
        ca: Some(signed.ca()),
        certificate_sha256: Some(crate::hex(signed.sha256())),
        not_after: Some(signed.not_after()),
        evidence_sha256: Some(crate::hex(snapshot.host.standing.evidence_digest)),
        selectors: Some(&item.selectors),
        trace_id: trace.id(),
        lab: snapshot.rules.lab,
        ..Record::default()
    }
    .entry(snapshot.now, Kind::Svid, "issued", Some(*signed.serial().as_bytes()))
}

fn refused_entry(
    snapshot: &Snapshot,
    item: &wire::IssueItem,
    trace: &Trace,
    instance: Option<InstanceId>,
    denial: &Denial,
) -> Entry {
    let registered =
        item.agent.parse::<AgentName>().ok().and_then(|name| snapshot.registry.agents.get(&name));
    // A name that no registration has is the host's word: kept short in the record.
    let agent: String = item.agent.chars().take(64).collect();
    Record {
        host: Some(snapshot.host.host_id.as_str()),
        agent: Some(&agent),
        instance: instance.map(|i| i.to_string()),
        owner: registered.map(|r| r.registration.owner()),
        registration_revision: registered.map(|r| r.revision),
        registration_digest: registered.map(|r| crate::hex(r.registration.digest())),
        evidence_sha256: Some(crate::hex(snapshot.host.standing.evidence_digest)),
        reason: Some(denial.code.to_owned()),
        unmet: denial.unmet.iter().map(UnmetEntry::from).collect(),
        trace_id: trace.id(),
        lab: snapshot.rules.lab,
        ..Record::default()
    }
    .entry(snapshot.now, Kind::Svid, "refused", None)
}

/// What a decision was about, for the counts.
struct Asked<'a> {
    agent: &'a str,
    registry: &'a Registry,
    standing_age: i64,
}

impl Asked<'_> {
    /// The tier that is registered; none for a name that is not.
    fn tier(&self) -> Option<Tier> {
        let name: AgentName = self.agent.parse().ok()?;
        self.registry.agents.get(&name).map(|registered| registered.registration.tier())
    }
}

fn release(
    issuer: &Issuer,
    outcome: Result<Signed, Denial>,
    recorded: Recorded,
    asked: &Asked<'_>,
    trace: &mut Trace,
) -> wire::IssueResult {
    trace.span.say("hallmark.agent", &asked.agent);
    trace.span.say("hallmark.record", &recorded.number());
    let outcome = match outcome {
        Ok(signed) => {
            let release = Release::new(signed, recorded);
            issuer.counters().issued(release.signed());
            metrics().issued(release.signed(), asked.standing_age);
            trace.span.say("hallmark.instance", &release.signed().instance());
            trace.span.say("hallmark.tier", &release.signed().tier());
            trace.span.say("hallmark.custody", &release.signed().custody());
            wire::issue_result::Outcome::Issued(issued(&release, trace.id()))
        }
        Err(denial) => {
            issuer.counters().refused();
            metrics().refused(asked.tier(), denial.code, denial.unmet.iter().map(|u| u.code.as_str()));
            trace.span.fail(&denial.code);
            wire::issue_result::Outcome::Refused(wire::Refused {
                code: denial.code.to_owned(),
                unmet: denial.unmet,
                retryable: denial.retryable,
            })
        }
    };
    wire::IssueResult { outcome: Some(outcome) }
}

fn issued(release: &Release<Signed>, trace_id: Option<String>) -> wire::Issued {
    let signed = release.signed();
    tracing::info!(
        host_id = %signed.host(), spiffe_id = %signed.spiffe_id(), instance = %signed.instance(), tier = %signed.tier(),
        custody = %signed.custody(), serial = %signed.serial(), record = release.record(), trace_id, "issued"
    );
    wire::Issued {
        chain: vec![signed.der().clone(), signed.issuing_der().clone()],
        tier: signed.tier().to_string(),
        custody: signed.custody().to_string(),
        spiffe_id: signed.spiffe_id().to_string(),
        not_before: signed.not_before(),
        not_after: signed.not_after(),
        serial: prost::bytes::Bytes::copy_from_slice(signed.serial().as_bytes()),
        record: release.record(),
    }
}
