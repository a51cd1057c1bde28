//! An OpenTelemetry collector: OTLP over gRPC, as OpenTelemetry's own code serves it, keeping what it is sent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// One span as it came.
#[derive(Debug, Clone)]
pub struct Spanned {
    /// `service.name`
    pub service: String,
    /// Its name.
    pub name: String,
    /// Trace, hex.
    pub trace: String,
    /// Its own id, hex.
    pub id: String,
    /// Its parent's id, hex; empty where there is none.
    pub parent: String,
    /// Traces that it is linked to, hex.
    pub links: Vec<String>,
    /// Attributes.
    pub attributes: Vec<(String, String)>,
    /// Why it failed; none if it did not.
    pub error: Option<String>,
    /// Begin and end, in nanoseconds.
    pub time: (u64, u64),
}

impl Spanned {
    /// The value of one attribute.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// A running collector; it ends with this.
pub struct Collector {
    spans: Arc<Mutex<Vec<Spanned>>>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    /// Listens on a port of its own.
    ///
    /// # Errors
    /// It cannot.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let spans = Arc::new(Mutex::new(Vec::new()));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let service = TraceServiceServer::new(Service(spans.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(Self { spans, address, _runtime: runtime })
    }

    /// The table of a daemon's configuration that leads here.
    pub fn config(&self) -> String {
        format!("[traces]\nendpoint = \"http://{}\"\n", self.address)
    }

    /// What came so far.
    pub fn spans(&self) -> Vec<Spanned> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What came of one trace.
    pub fn of_trace(&self, trace: &str) -> Vec<Spanned> {
        self.spans().into_iter().filter(|span| span.trace == trace).collect()
    }

    /// The one span of this name among `spans`.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn one<'a>(spans: &'a [Spanned], service: &str, name: &str) -> Result<&'a Spanned> {
        let mut found = spans.iter().filter(|span| span.service == service && span.name == name);
        let one = found.next().with_context(|| format!("no span {name} of {service} in {spans:#?}"))?;
        anyhow::ensure!(found.next().is_none(), "more than one span {name} of {service}");
        Ok(one)
    }
}

struct Service(Arc<Mutex<Vec<Spanned>>>);

#[tonic::async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default();
            let service = text(&resource.attributes, "service.name").unwrap_or_default();
            for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
                let attributes = span
                    .attributes
                    .iter()
                    .map(|a| (a.key.clone(), text(&span.attributes, &a.key).unwrap_or_default()));
                kept.push(Spanned {
                    service: service.clone(),
                    attributes: attributes.collect(),
                    trace: hex::encode(&span.trace_id),
                    id: hex::encode(&span.span_id),
                    parent: hex::encode(&span.parent_span_id),
                    links: span.links.iter().map(|link| hex::encode(&link.trace_id)).collect(),
                    error: span.status.filter(|status| status.code == 2).map(|status| status.message),
                    time: (span.start_time_unix_nano, span.end_time_unix_nano),
                    name: span.name,
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        other => Some(format!("{other:?}")),
    }
}
