//! The trace that an agent's call is part of, as the agent says: strictly read, and not looked at while traces
//! are off.

use hallmark_core::trace::TraceParent;
use hallmark_telemetry::{Span, traces};
use tonic::{Request, Status};

use crate::metrics::metrics;

/// The span that answers a call. What is malformed is counted and goes into no log.
pub(super) fn begin<T>(name: &'static str, request: &Request<T>) -> Span {
    if !traces::on() {
        return Span::default();
    }
    let values = request.metadata().get_all("traceparent");
    let parent =
        TraceParent::of(values.iter().map(|value| value.as_encoded_bytes())).unwrap_or_else(|error| {
            metrics().traceparent_refused(error);
            None
        });
    Span::server(name, parent.as_ref())
}

/// Says how the call was answered.
pub(super) fn answered<T>(mut span: Span, answer: Result<T, Status>) -> Result<T, Status> {
    if let Err(status) = &answer {
        span.fail(&format_args!("{:?}", status.code()));
    }
    answer
}
