//! What the issuer counts and times of itself (`hallmark_issuer_*`), for a monitoring system to read.
//!
//! A process has one set of them. Each label has a fixed, small set of values: tiers, custodies, hierarchies,
//! and the code words of refusals, which are `&'static str` so that nothing a caller says can become one.

use std::fmt;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use hallmark_core::decide::Requirement;
use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::trace::TraceParentError;
use hallmark_telemetry::process::{self, counter, gauge, gauges};
use hallmark_telemetry::{AGES, COUNTS, SECONDS, traces};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::admin::ca_status;
use crate::ca::Signed;
use crate::issuer::Issuer;
use crate::store::StoreError;

/// Prefix of every name but `process_*`.
const PREFIX: &str = "hallmark_issuer";

type Label = (&'static str, &'static str);
type Counters<const N: usize> = Family<[Label; N], Counter>;
type Histograms = Family<[Label; 1], Histogram, fn() -> Histogram>;

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// This process's metrics.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    issued: Counters<2>,
    refused: Counters<2>,
    unmet: Counters<2>,
    call: Histogram,
    call_items: Histogram,
    decide: Histogram,
    standing_age: Histograms,
    attested: Counters<1>,
    attest_refused: Counters<2>,
    attest: Histograms,
    ended: Counters<1>,
    connections_refused: Counter,
    keys_sign: Gauge,
    crl_written: Gauge,
    commit: Histogram,
    commit_requests: Histogram,
    commit_failures: Counter,
    queue: Gauge,
    log_entries: Gauge,
    log_published: Gauge,
    log_witnessed: Gauge,
    witness_answers: Counters<1>,
    unwitnessed: Counter,
    store_errors: Counters<1>,
    traceparents_refused: Counters<1>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

fn ages() -> Histogram {
    Histogram::new(AGES)
}

/// What a host proved itself anew by.
#[derive(Debug, Clone, Copy)]
pub enum Proving {
    /// A full attestation.
    Attest,
    /// A fresh quote.
    Refresh,
}

impl Proving {
    fn as_str(self) -> &'static str {
        match self {
            Proving::Attest => "attest",
            Proving::Refresh => "refresh",
        }
    }
}

/// What a witness answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WitnessAnswer {
    /// Its cosignature.
    Cosigned,
    /// It saw another history of this log, or a longer one.
    Fork,
    /// It does not know this log, or its key.
    Refused,
    /// Something else than the protocol has.
    Malformed,
    /// Nothing, or that it cannot now.
    Away,
}

impl WitnessAnswer {
    const ALL: [Self; 5] = [Self::Cosigned, Self::Fork, Self::Refused, Self::Malformed, Self::Away];

    fn as_str(self) -> &'static str {
        match self {
            Self::Cosigned => "cosigned",
            Self::Fork => "fork",
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Away => "away",
        }
    }
}

fn tier_word(tier: Option<Tier>) -> &'static str {
    tier.map_or("none", Tier::as_str)
}

impl Metrics {
    fn new() -> Self {
        let metrics = Self {
            issued: Family::default(),
            refused: Family::default(),
            unmet: Family::default(),
            call: seconds(),
            call_items: Histogram::new(COUNTS),
            decide: seconds(),
            standing_age: Family::new_with_constructor(ages),
            attested: Family::default(),
            attest_refused: Family::default(),
            attest: Family::new_with_constructor(seconds),
            ended: Family::default(),
            connections_refused: Counter::default(),
            keys_sign: Gauge::default(),
            crl_written: Gauge::default(),
            commit: seconds(),
            commit_requests: Histogram::new(COUNTS),
            commit_failures: Counter::default(),
            queue: Gauge::default(),
            log_entries: Gauge::default(),
            log_published: Gauge::default(),
            log_witnessed: Gauge::default(),
            witness_answers: Family::default(),
            unwitnessed: Counter::default(),
            store_errors: Family::default(),
            traceparents_refused: Family::default(),
        };
        metrics.begin_at_zero();
        metrics
    }

    /// A rate is known from the first event on only where there was a zero before.
    fn begin_at_zero(&self) {
        use hallmark_core::decide::Refusal;
        for tier in Tier::ALL {
            for custody in Custody::ALL {
                drop(self.issued.get_or_create(&issued_as(tier, custody)));
            }
            drop(self.refused.get_or_create(&[("tier", tier.as_str()), ("reason", Refusal::CODE)]));
            for requirement in Requirement::ALL {
                let labels = [("tier", tier.as_str()), ("requirement", requirement.code())];
                drop(self.unmet.get_or_create(&labels));
            }
            drop(self.standing_age.get_or_create(&[("tier", tier.as_str())]));
        }
        for reason in ["no-registration", "malformed"] {
            drop(self.refused.get_or_create(&[("tier", "none"), ("reason", reason)]));
        }
        for proof in ["tpm", "join-token", "quote"] {
            drop(self.attested.get_or_create(&[("proof", proof)]));
        }
        for kind in [Proving::Attest, Proving::Refresh] {
            drop(self.attest.get_or_create(&[("kind", kind.as_str())]));
            for reason in ["protocol", "store-unavailable", "ca-unavailable"] {
                drop(self.attest_refused.get_or_create(&[("kind", kind.as_str()), ("reason", reason)]));
            }
        }
        for error in ["database", "log", "other"] {
            drop(self.store_errors.get_or_create(&[("error", error)]));
        }
        for answer in WitnessAnswer::ALL {
            drop(self.witness_answers.get_or_create(&[("answer", answer.as_str())]));
        }
        for reason in TraceParentError::CODES {
            drop(self.traceparents_refused.get_or_create(&[("reason", reason)]));
        }
        self.keys_sign.set(1);
    }

    /// All of them as they are shown, and what is read of `issuer` at that moment.
    pub fn registry(&self, issuer: &Arc<Issuer>) -> Registry {
        let mut registry = Registry::default();
        process::register(&mut registry, PREFIX, env!("CARGO_PKG_VERSION"));
        self.show(registry.sub_registry_with_prefix(PREFIX));
        let now = registry.sub_registry_with_prefix(PREFIX);
        now.register_collector(Box::new(Now(Arc::downgrade(issuer))));
        registry
    }

    fn show(&self, to: &mut Registry) {
        let seconds = Unit::Seconds;
        to.register("issued", "Credentials of agents released, by tier and key custody", self.issued.clone());
        to.register(
            "refused",
            "Requests for agents' credentials refused, by the tier registered and the refusal's code",
            self.refused.clone(),
        );
        to.register("unmet", "Requirements not met in those refusals", self.unmet.clone());
        let help = "From an Issue call's arrival to its answer, every record on disk";
        to.register_with_unit("issue_duration", help, seconds.clone(), self.call.clone());
        to.register("issue_items", "Requests in one Issue call", self.call_items.clone());
        let help = "Appraising, deciding and signing the requests of one call";
        to.register_with_unit("decide_duration", help, seconds.clone(), self.decide.clone());
        let help = "Age of the host's last attestation or quote when a credential rested on it";
        to.register_with_unit("attestation_age", help, seconds.clone(), self.standing_age.clone());
        to.register("attestations", "Proofs of hosts accepted, by what proved", self.attested.clone());
        to.register(
            "attestations_refused",
            "Proofs of hosts refused, by the refusal's code",
            self.attest_refused.clone(),
        );
        let help = "From a host's first word to its result, the host's own time included";
        to.register_with_unit("attestation_duration", help, seconds.clone(), self.attest.clone());
        to.register("ended", "Instances of agents that ended, by why", self.ended.clone());
        let help = "Connections of hosts and strangers refused at the door";
        to.register("connections_refused", help, self.connections_refused.clone());
        to.register(
            "keys_sign",
            "Whether the CA keys and the log's signed when last tried",
            self.keys_sign.clone(),
        );
        let help = "When CRLs were last written without a fault, since 1970";
        to.register_with_unit("crl_written_timestamp", help, seconds.clone(), self.crl_written.clone());
        let help = "One commit of the store, all requests in it and the disk";
        to.register_with_unit("store_commit_duration", help, seconds.clone(), self.commit.clone());
        to.register("store_commit_requests", "Requests in one commit", self.commit_requests.clone());
        to.register(
            "store_commit_failures",
            "Commits that failed; nothing of them was released",
            self.commit_failures.clone(),
        );
        to.register(
            "store_queue_requests",
            "Requests that waited when the last commit began",
            self.queue.clone(),
        );
        to.register("store_errors", "Answers that failed for the store's sake", self.store_errors.clone());
        let help = "Malformed traceparents of hosts, passed over";
        to.register("traceparents_refused", help, self.traceparents_refused.clone());
        to.register("log_entries", "Entries of this issuer's log", self.log_entries.clone());
        let help = "Entries that the log in files covers";
        to.register("log_published_entries", help, self.log_published.clone());
        let help = "Entries under the newest checkpoint that has its quorum of witnesses";
        to.register("log_witnessed_entries", help, self.log_witnessed.clone());
        let help = "Answers of witnesses; a fork says that the witness saw another history of this log";
        to.register("witness_answers", help, self.witness_answers.clone());
        let help = "Requests not answered because the witnesses required did not cosign in time";
        to.register("unwitnessed", help, self.unwitnessed.clone());
    }

    /// A credential was released, on a standing of this age in seconds.
    pub fn issued(&self, signed: &Signed, standing_age: i64) {
        self.issued.get_or_create(&issued_as(signed.tier(), signed.custody())).inc();
        let age = standing_age.max(0) as f64;
        self.standing_age.get_or_create(&[("tier", signed.tier().as_str())]).observe(age);
    }

    /// A request was refused; `unmet` are the codes of what was missing.
    pub fn refused<'a>(&self, tier: Option<Tier>, code: &'static str, unmet: impl Iterator<Item = &'a str>) {
        let tier = tier_word(tier);
        self.refused.get_or_create(&[("tier", tier), ("reason", code)]).inc();
        for code in unmet {
            // Only words of our own become labels.
            if let Some(known) = Requirement::ALL.into_iter().find(|r| r.code() == code) {
                self.unmet.get_or_create(&[("tier", tier), ("requirement", known.code())]).inc();
            }
        }
    }

    /// An Issue call of so many requests is answered.
    pub fn answered(&self, items: usize, begun: Instant) {
        self.call.observe(begun.elapsed().as_secs_f64());
        self.call_items.observe(items as f64);
    }

    /// The requests of one call were appraised, decided and signed.
    pub fn decided(&self, begun: Instant) {
        self.decide.observe(begun.elapsed().as_secs_f64());
    }

    /// A host's proof came to its end; the code word of the refusal if it is one.
    pub fn proved(&self, kind: Proving, proof: &'static str, refused: Option<&'static str>, begun: Instant) {
        match refused {
            None => self.attested.get_or_create(&[("proof", proof)]).inc(),
            Some(code) => {
                self.attest_refused.get_or_create(&[("kind", kind.as_str()), ("reason", code)]).inc()
            }
        };
        self.attest.get_or_create(&[("kind", kind.as_str())]).observe(begun.elapsed().as_secs_f64());
    }

    /// Instances ended.
    pub fn ended(&self, reason: &'static str, instances: usize) {
        self.ended.get_or_create(&[("reason", reason)]).inc_by(instances as u64);
    }

    /// A connection was refused.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// Whether all keys signed.
    pub fn keys_sign(&self, all: bool) {
        self.keys_sign.set(all.into());
    }

    /// CRLs were written.
    pub fn crl_written(&self, now: i64) {
        self.crl_written.set(now);
    }

    /// The writer has taken so many requests into a commit, and left so many waiting.
    pub fn taken(&self, requests: usize, waiting: usize) {
        self.commit_requests.observe(requests as f64);
        self.queue.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// A commit is on disk, or failed; the log has so many entries.
    pub fn committed(&self, took: Duration, well: bool, entries: u64) {
        self.commit.observe(took.as_secs_f64());
        if !well {
            self.commit_failures.inc();
        }
        self.log_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// The log's files cover so many entries.
    pub fn published(&self, entries: u64) {
        self.log_published.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// A checkpoint of so many entries has its quorum.
    pub fn witnessed(&self, entries: u64) {
        self.log_witnessed.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    /// A witness has answered, or has not.
    pub fn witness_answered(&self, answer: WitnessAnswer) {
        self.witness_answers.get_or_create(&[("answer", answer.as_str())]).inc();
    }

    /// Somebody was not answered because the witnesses did not cosign in time.
    pub fn unwitnessed(&self) {
        self.unwitnessed.inc();
    }

    /// A traceparent was passed over.
    pub fn traceparent_refused(&self, why: TraceParentError) {
        self.traceparents_refused.get_or_create(&[("reason", why.code())]).inc();
    }

    /// Somebody was answered with a failure of the store.
    pub fn store_error(&self, error: &StoreError) {
        let error = match error {
            // A refusal, and no failure.
            StoreError::Conflict(_) => return,
            // Counted where it happens.
            StoreError::Unwitnessed => return,
            StoreError::Database(_) => "database",
            StoreError::Log(_) => "log",
            _ => "other",
        };
        self.store_errors.get_or_create(&[("error", error)]).inc();
    }
}

fn issued_as(tier: Tier, custody: Custody) -> [Label; 2] {
    [("tier", tier.as_str()), ("custody", custody.as_str())]
}

/// What is read of the issuer when somebody looks.
#[derive(Debug)]
struct Now(Weak<Issuer>);

impl Collector for Now {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(issuer) = self.0.upgrade() else { return Ok(()) };
        let (mut connected, mut away, mut disabled, mut oldest) = (0.0, 0.0, 0.0, None::<i64>);
        for host in issuer.hosts() {
            if host.standing.disabled.is_some() {
                disabled += 1.0;
            } else if issuer.hub().is_open(&host.host_id) {
                connected += 1.0;
                let at = host.stored.attested_at.max(host.stored.quote_at);
                oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
            } else {
                away += 1.0;
            }
        }
        let states = [("connected", connected), ("away", away), ("disabled", disabled)];
        gauges(&mut to, ("hosts", "Enrolled hosts", None), "state", states)?;
        // None connected: none is old.
        let oldest = oldest.unwrap_or_else(|| issuer.now()) as f64;
        let help = "The oldest of the connected hosts' last attestations or quotes, since 1970";
        gauge(&mut to, "oldest_attestation_timestamp", help, Some(&Unit::Seconds), oldest)?;
        let registrations = issuer.registry().agents.len() as f64;
        gauge(&mut to, "registrations", "Registrations in force", None, registrations)?;
        let live = issuer.store().live().count(issuer.now()) as f64;
        gauge(
            &mut to,
            "instances",
            "Instances of agents that hold a credential that has not expired",
            None,
            live,
        )?;
        witnesses(&mut to, &issuer)?;
        let unsent = traces::unsent() as f64;
        counter(&mut to, "spans_unsent", "Spans that could not be sent to the collector", None, unsent)?;
        let cas = authorities(&issuer);
        let not_before = ("ca_not_before_timestamp", "Begin of a CA certificate's validity, since 1970");
        of_authorities(&mut to, not_before, cas.iter().map(|ca| (ca.hierarchy, ca.role, ca.not_before)))?;
        let not_after = ("ca_not_after_timestamp", "End of a CA certificate's validity, since 1970");
        of_authorities(&mut to, not_after, cas.iter().map(|ca| (ca.hierarchy, ca.role, ca.not_after)))
    }
}

/// How far each witness is, by its name in the configuration.
fn witnesses(to: &mut DescriptorEncoder<'_>, issuer: &Issuer) -> Result<(), fmt::Error> {
    let Some(witnessing) = issuer.store().witnessing() else { return Ok(()) };
    let board = witnessing.board().clone();
    let help = "Entries at the last checkpoint that the witness cosigned.";
    let mut family = to.encode_descriptor("witness_cosigned_entries", help, None, MetricType::Gauge)?;
    for standing in &board {
        let labels = [("witness", standing.name.as_str())];
        let size = i64::try_from(standing.size).unwrap_or(i64::MAX);
        ConstGauge::new(size).encode(family.encode_family(&labels)?)?;
    }
    let (name, help) = ("witness_cosigned_timestamp", "When that was, by the witness's clock, since 1970.");
    let mut family = to.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
    for standing in &board {
        let labels = [("witness", standing.name.as_str())];
        let at = i64::try_from(standing.at).unwrap_or(i64::MAX);
        ConstGauge::new(at).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

struct Authority {
    hierarchy: &'static str,
    role: &'static str,
    not_before: i64,
    not_after: i64,
}

/// The issuing CA of each hierarchy that signs, and the newest of its roots.
fn authorities(issuer: &Issuer) -> Vec<Authority> {
    let in_force = issuer.ca().in_force();
    let mut all = Vec::new();
    for hierarchy in Hierarchy::ALL {
        let roots = in_force.roots(hierarchy);
        let issuing = in_force.active(hierarchy).map(|active| ("issuing", &active.der));
        for (role, der) in issuing.into_iter().chain(roots.iter().map(|der| ("root", der))) {
            let shown = ca_status(hierarchy, role, der, "");
            let ca = Authority {
                hierarchy: hierarchy.as_str(),
                role,
                not_before: shown.not_before,
                not_after: shown.not_after,
            };
            match all.iter_mut().find(|a: &&mut Authority| (a.hierarchy, a.role) == (ca.hierarchy, ca.role)) {
                Some(known) if known.not_before < ca.not_before => *known = ca,
                Some(_) => {}
                None => all.push(ca),
            }
        }
    }
    all
}

fn of_authorities(
    to: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    values: impl Iterator<Item = (&'static str, &'static str, i64)>,
) -> Result<(), fmt::Error> {
    let mut family =
        to.encode_descriptor(name, &format!("{help}."), Some(&Unit::Seconds), MetricType::Gauge)?;
    for (hierarchy, role, at) in values {
        let labels = [("hierarchy", hierarchy), ("role", role)];
        ConstGauge::new(at).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
