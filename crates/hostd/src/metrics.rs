//! What the host daemon counts and times of itself (`hallmark_hostd_*`), for a monitoring system to read.
//!
//! A process has one set of them. Each label has a fixed, small set of values: tiers, custodies, and code words
//! of ours; nothing that an agent says can become one.

use std::fmt;
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use hallmark_core::tier::{Custody, Tier};
use hallmark_core::trace::TraceParentError;
use hallmark_telemetry::process::{self, counter, gauge};
use hallmark_telemetry::{COUNTS, SECONDS, traces};
use hallmark_tpm::Tpm;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::agents::{Agents, InstanceError, SelectError};
use crate::clock;
use crate::keys::KeyError;
use crate::link::issuer::AskError;

/// Prefix of every name but `process_*`.
const PREFIX: &str = "hallmark_hostd";

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
    agents: Family<[Label; 2], Gauge>,
    issued: Counters<2>,
    failed: Counters<1>,
    first: Histograms,
    sign: Histograms,
    sign_refused: Counters<1>,
    batch: Histogram,
    link_failures: Counter,
    connections: Gauge,
    connections_refused: Counter,
    attested_at: Gauge,
    quoted_at: Gauge,
    host_svid_end: Gauge,
    tpm: Histograms,
    tpm_failures: Counter,
    traceparents_refused: Counters<1>,
}

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// Why a signature was refused.
#[derive(Debug, Clone, Copy)]
pub enum SignRefusal {
    /// It is not 32 bytes.
    Digest,
    /// No key of this process has that handle.
    NoKey,
    /// `limits.sign_concurrency`.
    Concurrency,
    /// `limits.sign_per_second`.
    Rate,
    /// `limits.sign_per_second_per_user`.
    UserRate,
    /// The process has ended or replaced its image.
    Gone,
    /// Too many wait for the hardware.
    Busy,
    /// The hardware did not sign.
    Hardware,
    /// The key signs no more.
    KeyLost,
}

impl SignRefusal {
    const ALL: [Self; 9] = [
        Self::Digest,
        Self::NoKey,
        Self::Concurrency,
        Self::Rate,
        Self::UserRate,
        Self::Gone,
        Self::Busy,
        Self::Hardware,
        Self::KeyLost,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::NoKey => "no-key",
            Self::Concurrency => "concurrency",
            Self::Rate => "rate",
            Self::UserRate => "user-rate",
            Self::Gone => "gone",
            Self::Busy => "busy",
            Self::Hardware => "hardware",
            Self::KeyLost => "key-lost",
        }
    }
}

impl From<&KeyError> for SignRefusal {
    fn from(error: &KeyError) -> Self {
        match error {
            KeyError::Busy { .. } => Self::Busy,
            KeyError::Hardware { lost: true, .. } => Self::KeyLost,
            _ => Self::Hardware,
        }
    }
}

/// Why an identity was not given, or not renewed, in a word.
const FAILURES: [&str; 9] =
    ["no-match", "ambiguous", "limits", "not-ready", "refused", "key", "issuer-away", "answer", "ended"];

/// That word.
pub(crate) fn failure(error: &InstanceError) -> &'static str {
    match error {
        InstanceError::Select(SelectError::Ambiguous { .. }) => "ambiguous",
        InstanceError::Select(_) => "no-match",
        InstanceError::Full { .. } | InstanceError::Share(_) => "limits",
        InstanceError::NotReady { .. } => "not-ready",
        InstanceError::Refused { .. } => "refused",
        InstanceError::Key(_) => "key",
        InstanceError::Ask(AskError::Answer(_)) | InstanceError::Answer(_) => "answer",
        InstanceError::Ask(_) => "issuer-away",
        InstanceError::Ended(_) => "ended",
    }
}

/// What credentials are asked for.
const CAUSES: [&str; 4] = ["first", "renewal", "registration-changed", "key-lost"];

impl Metrics {
    fn new() -> Self {
        let metrics = Self {
            agents: Family::default(),
            issued: Family::default(),
            failed: Family::default(),
            first: Family::new_with_constructor(seconds),
            sign: Family::new_with_constructor(seconds),
            sign_refused: Family::default(),
            batch: Histogram::new(COUNTS),
            link_failures: Counter::default(),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            attested_at: Gauge::default(),
            quoted_at: Gauge::default(),
            host_svid_end: Gauge::default(),
            tpm: Family::new_with_constructor(seconds),
            tpm_failures: Counter::default(),
            traceparents_refused: Family::default(),
        };
        metrics.begin_at_zero();
        metrics
    }

    /// A rate is known from the first event on only where there was a zero before.
    fn begin_at_zero(&self) {
        for tier in Tier::ALL {
            for cause in CAUSES {
                drop(self.issued.get_or_create(&[("tier", tier.as_str()), ("cause", cause)]));
            }
        }
        for reason in FAILURES {
            drop(self.failed.get_or_create(&[("reason", reason)]));
        }
        for reason in TraceParentError::CODES {
            drop(self.traceparents_refused.get_or_create(&[("reason", reason)]));
        }
        for reason in SignRefusal::ALL {
            drop(self.sign_refused.get_or_create(&[("reason", reason.as_str())]));
        }
        for (tier, custody) in [
            (Tier::Foundation, Custody::Software),
            (Tier::Enterprise, Custody::Software),
            (Tier::Advanced, Custody::TpmCertified),
        ] {
            drop(self.agents.get_or_create(&held_as(tier, custody)));
            drop(self.first.get_or_create(&[("custody", custody.as_str())]));
        }
        drop(self.sign.get_or_create(&[("custody", Custody::TpmCertified.as_str())]));
    }

    /// All of them as they are shown, and what is read of `agents` and the TPM at that moment.
    pub fn registry(&self, agents: &Arc<Agents>, tpm: Option<Tpm>) -> Registry {
        let mut registry = Registry::default();
        process::register(&mut registry, PREFIX, env!("CARGO_PKG_VERSION"));
        self.show(registry.sub_registry_with_prefix(PREFIX), tpm.is_some());
        let now = registry.sub_registry_with_prefix(PREFIX);
        now.register_collector(Box::new(Now { agents: Arc::downgrade(agents), tpm }));
        registry
    }

    fn show(&self, to: &mut Registry, has_tpm: bool) {
        let seconds = Unit::Seconds;
        to.register(
            "agents",
            "Instances of agents that hold an identity, by tier and key custody",
            self.agents.clone(),
        );
        to.register(
            "issued",
            "Credentials obtained, by tier and by what they were asked for",
            self.issued.clone(),
        );
        to.register("issue_failures", "Credentials that were not obtained, by why", self.failed.clone());
        let help = "From an agent's call to its first identity";
        to.register_with_unit("first_svid_duration", help, seconds.clone(), self.first.clone());
        let help = "Signatures with keys held here, the wait for the hardware included";
        to.register_with_unit("sign_duration", help, seconds.clone(), self.sign.clone());
        to.register("sign_refused", "Signatures refused or not made, by why", self.sign_refused.clone());
        to.register("issue_items", "Requests in one call to the issuer", self.batch.clone());
        let help = "Times that the link to an issuer could not be made, or broke";
        to.register("link_failures", help, self.link_failures.clone());
        to.register("connections", "Open connections of agents", self.connections.clone());
        to.register("connections_refused", "Connections of agents refused", self.connections_refused.clone());
        let help = "When the host was last attested, since 1970; 0 if not yet";
        to.register_with_unit("attestation_timestamp", help, seconds.clone(), self.attested_at.clone());
        let help = "When a quote of this host was last accepted, since 1970; 0 if not yet";
        to.register_with_unit("quote_timestamp", help, seconds.clone(), self.quoted_at.clone());
        let help = "When the host's own credential ends, since 1970; 0 if it has none";
        to.register_with_unit("host_svid_end_timestamp", help, seconds.clone(), self.host_svid_end.clone());
        let help = "Malformed traceparents of agents, passed over";
        to.register("traceparents_refused", help, self.traceparents_refused.clone());
        if has_tpm {
            let help = "Operations of the TPM, without the wait for it";
            to.register_with_unit("tpm_operation_duration", help, seconds, self.tpm.clone());
            to.register("tpm_failures", "Operations of the TPM that failed", self.tpm_failures.clone());
        }
    }

    /// A credential was obtained.
    pub fn issued(&self, tier: Tier, cause: &'static str) {
        self.issued.get_or_create(&[("tier", tier.as_str()), ("cause", cause)]).inc();
    }

    /// It was an instance's first, of a key in this custody, so long after the agent asked.
    pub fn first(&self, custody: Custody, took: Duration) {
        self.first.get_or_create(&[("custody", custody.as_str())]).observe(took.as_secs_f64());
    }

    /// A credential was not obtained.
    pub fn not_issued(&self, error: &InstanceError) {
        self.failed.get_or_create(&[("reason", failure(error))]).inc();
    }

    /// A key held here has signed.
    pub fn signed(&self, custody: Custody, begun: Instant) {
        self.sign.get_or_create(&[("custody", custody.as_str())]).observe(begun.elapsed().as_secs_f64());
    }

    /// A signature was refused.
    pub fn sign_refused(&self, why: SignRefusal) {
        self.sign_refused.get_or_create(&[("reason", why.as_str())]).inc();
    }

    /// The issuer is asked for so many credentials in one call.
    pub fn asked(&self, items: usize) {
        self.batch.observe(items as f64);
    }

    /// The link to an issuer could not be made, or broke.
    pub fn link_failed(&self) {
        self.link_failures.inc();
    }

    /// So many connections are open.
    pub fn connections(&self, open: usize) {
        self.connections.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// A connection was refused.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// The host was attested, and has a credential until `end`.
    pub fn attested(&self, now: i64, end: i64) {
        self.attested_at.set(now);
        self.quoted_at.set(now);
        self.host_svid_end.set(end);
    }

    /// A quote was accepted.
    pub fn quoted(&self, now: i64) {
        self.quoted_at.set(now);
    }

    /// The TPM has done something, or failed to.
    pub fn tpm_done(&self, operation: &'static str, took: Duration, well: bool) {
        self.tpm.get_or_create(&[("operation", operation)]).observe(took.as_secs_f64());
        if !well {
            self.tpm_failures.inc();
        }
    }

    /// A traceparent was passed over.
    pub fn traceparent_refused(&self, why: TraceParentError) {
        self.traceparents_refused.get_or_create(&[("reason", why.code())]).inc();
    }

    /// Counts one instance that holds an identity, until what is returned is dropped.
    pub fn holds(&self, tier: Tier, custody: Custody) -> Held {
        let gauge = self.agents.get_or_create_owned(&held_as(tier, custody));
        gauge.inc();
        Held(gauge)
    }
}

fn held_as(tier: Tier, custody: Custody) -> [Label; 2] {
    [("tier", tier.as_str()), ("custody", custody.as_str())]
}

/// One instance in the count.
#[derive(Debug)]
pub struct Held(Gauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is read of the daemon when somebody looks.
#[derive(Debug)]
struct Now {
    agents: Weak<Agents>,
    tpm: Option<Tpm>,
}

impl Collector for Now {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(agents) = self.agents.upgrade() else { return Ok(()) };
        let standing = agents.state().standing.borrow().clone();
        let flag = |yes: bool| if yes { 1.0 } else { 0.0 };
        gauge(&mut to, "link_up", "Whether the issuer is connected", None, flag(standing.connected))?;
        gauge(&mut to, "attested", "Whether the host's attestation stands", None, flag(standing.attested))?;
        gauge(
            &mut to,
            "disabled",
            "Whether an operator has disabled the host",
            None,
            flag(standing.disabled),
        )?;
        let help = "Until when the last quote counts for the advanced tier, since 1970; 0 for none";
        let until = standing.quote_valid_until as f64;
        gauge(&mut to, "quote_end_timestamp", help, Some(&Unit::Seconds), until)?;
        let registrations = agents.state().registrations.borrow().as_ref().map_or(0, |r| r.len());
        gauge(&mut to, "registrations", "Registrations of this host", None, registrations as f64)?;
        gauge(
            &mut to,
            "instances",
            "Instances of agents, those included that wait for an identity",
            None,
            agents.live() as f64,
        )?;
        gauge(
            &mut to,
            "key_handles",
            "Keys in hardware that may be signed with",
            None,
            agents.handles() as f64,
        )?;
        let help = "Time until the first of the agents' present credentials ends; negative if one has ended";
        if let Some(end) = agents.soonest_end() {
            let left = (end - clock::now()) as f64;
            gauge(&mut to, "soonest_svid_end", help, Some(&Unit::Seconds), left)?;
        }
        let unsent = traces::unsent() as f64;
        counter(&mut to, "spans_unsent", "Spans that could not be sent to the collector", None, unsent)?;
        let Some(tpm) = &self.tpm else { return Ok(()) };
        gauge(&mut to, "tpm_queue_requests", "Requests that wait for the TPM", None, tpm.queued() as f64)?;
        let served = tpm.served() as f64;
        counter(&mut to, "tpm_requests", "Requests taken to the TPM", None, served)?;
        let reopened = tpm.reopened() as f64;
        counter(&mut to, "tpm_reopened", "Times that the TPM had to be opened anew", None, reopened)
    }
}
