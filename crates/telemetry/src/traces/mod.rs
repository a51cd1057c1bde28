//! Traces: what became of one request, step by step, from the agent to the record, sent to an OpenTelemetry
//! collector. Off unless configured; then a [`Span`] is one null pointer, and making one is one load of memory.
//!
//! Spans are made with OpenTelemetry's own API and not from the log's (`tracing`): the log's level does not
//! decide what is traced, no line of the log changes, and one call that serves many agents can give each its own
//! parent.

mod config;
mod export;

use std::fmt::Display;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hallmark_core::trace::TraceParent;
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult, SdkTracer,
    SdkTracerProvider, ShouldSample, Span as SdkSpan, SpanLimits,
};

pub use config::{RawTraces, TracesConfig};
pub use export::TracesError;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Spans that wait to be sent; more are dropped, and nobody waits for them.
const QUEUE: usize = 2048;
/// Spans in one message.
const BATCH: usize = 256;
/// How long a span waits for company.
const LINGER: Duration = Duration::from_secs(1);
/// How long what is left may take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// Attributes of a span, at most; ours have fewer.
const ATTRIBUTES: u32 = 16;

static UNSENT: AtomicU64 = AtomicU64::new(0);

/// How many spans could not be sent since the start.
pub fn unsent() -> u64 {
    UNSENT.load(Ordering::Relaxed)
}

/// Whether traces are configured.
pub fn on() -> bool {
    TRACER.get().is_some()
}

/// What sends them; keep it until the daemon ends.
#[derive(Debug)]
pub struct Running(SdkTracerProvider);

/// Begins to trace, as `service`, which `instance` is one of. Within a tokio runtime, once in a process.
///
/// # Errors
/// The collector's address or CA is of no use. That it does not answer is none.
pub fn start(
    config: &TracesConfig,
    service: &'static str,
    instance: String,
    version: &'static str,
) -> Result<Running, TracesError> {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.namespace", "hallmark"),
            KeyValue::new("service.instance.id", instance),
            KeyValue::new("service.version", version),
        ])
        .build();
    // Everything is said here, so that no environment variable (OTEL_*) has a word in it.
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(LINGER)
        .build();
    let processor =
        BatchSpanProcessor::builder(export::Collector::new(config)?).with_batch_config(batch).build();
    let limits = SpanLimits {
        max_events_per_span: 0,
        max_attributes_per_span: ATTRIBUTES,
        max_links_per_span: 1,
        max_attributes_per_event: 0,
        max_attributes_per_link: 0,
    };
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Share(Sampler::TraceIdRatioBased(config.sample)))
        .with_span_limits(limits)
        .with_resource(resource)
        .build();
    // A second start in one process would be our own bug; the first one's spans go on.
    let _ = TRACER.set(provider.tracer("hallmark"));
    Ok(Running(provider))
}

impl Running {
    /// Sends what is left, for a few seconds at most.
    pub async fn stop(self) {
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FAREWELL)).await;
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last spans could not be sent in time");
        }
    }
}

/// Keeps its share of the traces that begin here, and of those that others keep; of a trace that its beginner does
/// not keep, nothing. The choice is by the trace's id: whoever keeps the same share keeps the same traces.
#[derive(Debug, Clone)]
struct Share(Sampler);

impl ShouldSample for Share {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let context = parent.map(|parent| parent.span().span_context().clone()).filter(SpanContext::is_valid);
        let decided = |decision| SamplingResult {
            decision,
            attributes: Vec::new(),
            trace_state: TraceState::default(),
        };
        match context {
            Some(context) if !context.is_sampled() => decided(SamplingDecision::Drop),
            Some(context) if !context.is_remote() => decided(SamplingDecision::RecordAndSample),
            _ => self.0.should_sample(parent, trace_id, name, kind, attributes, links),
        }
    }
}

/// One step of one request, until it is dropped. While traces are off it is nothing.
#[derive(Debug, Default)]
pub struct Span(Option<Box<SdkSpan>>);

impl Span {
    /// The answer to a request that was made in `parent`; without one, a trace begins.
    pub fn server(name: &'static str, parent: Option<&TraceParent>) -> Self {
        Self::begin(name, SpanKind::Server, || parent.map(remote), None)
    }

    /// The beginning of a trace of our own that goes back to `origin`.
    pub fn of_our_own(name: &'static str, origin: Option<&TraceParent>) -> Self {
        Self::begin(name, SpanKind::Internal, || None, origin)
    }

    /// A step within this one.
    pub fn child(&self, name: &'static str) -> Self {
        self.within(name, SpanKind::Internal)
    }

    /// A request to another within this one.
    pub fn client(&self, name: &'static str) -> Self {
        self.within(name, SpanKind::Client)
    }

    fn within(&self, name: &'static str, kind: SpanKind) -> Self {
        match &self.0 {
            Some(span) => Self::begin(name, kind, || Some(span.span_context().clone()), None),
            None => Self(None),
        }
    }

    fn begin(
        name: &'static str,
        kind: SpanKind,
        parent: impl FnOnce() -> Option<SpanContext>,
        origin: Option<&TraceParent>,
    ) -> Self {
        let Some(tracer) = TRACER.get() else { return Self(None) };
        let context = match parent() {
            // A context of its own, so that nothing is taken from the thread's.
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let mut builder = SpanBuilder::from_name(name).with_kind(kind);
        if let Some(origin) = origin {
            builder = builder.with_links(vec![Link::with_context(remote(origin))]);
        }
        Self(Some(Box::new(tracer.build_with_context(builder, &context))))
    }

    /// Says something of it.
    pub fn say(&mut self, key: &'static str, value: &dyn Display) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recording()) {
            span.set_attribute(KeyValue::new(key, value.to_string()));
        }
    }

    /// Says that it went wrong.
    pub fn fail(&mut self, why: &dyn Display) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recording()) {
            span.set_status(Status::error(why.to_string()));
        }
    }

    /// What a request made in this step is sent along with; none while traces are off.
    pub fn traceparent(&self) -> Option<TraceParent> {
        let context = self.0.as_ref()?.span_context();
        TraceParent::new(
            context.trace_id().to_bytes(),
            context.span_id().to_bytes(),
            context.trace_flags().to_u8(),
        )
        .ok()
    }
}

fn remote(parent: &TraceParent) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(*parent.trace_id()),
        SpanId::from_bytes(*parent.parent_id()),
        TraceFlags::new(parent.flags()),
        true,
        TraceState::default(),
    )
}

#[cfg(test)]
mod tests;
