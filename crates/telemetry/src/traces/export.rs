//! Sending spans to a collector: OTLP over gRPC (opentelemetry-proto 1, `TraceService/Export`).

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::{TracesConfig, UNSENT};
use crate::process::unix_seconds;

/// How long a message, and the connection for it, may take.
const CALL: Duration = Duration::from_secs(4);
const CONNECT: Duration = Duration::from_secs(3);
/// A collector that does not answer is said so often, in seconds.
const SAY_EVERY: i64 = 60;

/// Why spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The address.
    #[error("traces.endpoint {endpoint}: {error}")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// What was wrong with it.
        error: tonic::transport::Error,
    },
    /// The roots.
    #[error("traces.ca {path}: {error}")]
    Ca {
        /// Their file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// The collector at the other end.
#[derive(Debug)]
pub(super) struct Collector {
    client: TraceServiceClient<Channel>,
    resource: ResourceAttributesWithSchema,
    said_at: AtomicI64,
}

impl Collector {
    /// Connects when there is something to send.
    pub(super) fn new(config: &TracesConfig) -> Result<Self, TracesError> {
        let wrong = |error| TracesError::Endpoint { endpoint: config.endpoint.clone(), error };
        let mut endpoint = Endpoint::from_shared(config.endpoint.clone())
            .map_err(wrong)?
            .connect_timeout(CONNECT)
            .timeout(CALL);
        if let Some(path) = &config.ca {
            let pem = std::fs::read(path).map_err(|error| TracesError::Ca { path: path.clone(), error })?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint = endpoint.tls_config(tls).map_err(wrong)?;
        }
        Ok(Self {
            client: TraceServiceClient::new(endpoint.connect_lazy()),
            resource: ResourceAttributesWithSchema::default(),
            said_at: AtomicI64::new(i64::MIN),
        })
    }

    /// Once a minute at most: a collector that is away for long would fill the log.
    fn say(&self, count: u64, status: &tonic::Status) {
        UNSENT.fetch_add(count, Ordering::Relaxed);
        let now = unix_seconds() as i64;
        if now.saturating_sub(self.said_at.load(Ordering::Relaxed)) >= SAY_EVERY {
            self.said_at.store(now, Ordering::Relaxed);
            tracing::warn!(
                code = ?status.code(), reason = status.message(), unsent = UNSENT.load(Ordering::Relaxed),
                "spans could not be sent to the collector (traces.endpoint)"
            );
        }
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        match self.client.clone().export(ExportTraceServiceRequest { resource_spans }).await {
            Ok(answer) => {
                let partial = answer.into_inner().partial_success.unwrap_or_default();
                if partial.rejected_spans > 0 {
                    let refused = tonic::Status::invalid_argument(partial.error_message);
                    self.say(partial.rejected_spans.unsigned_abs(), &refused);
                }
                Ok(())
            }
            Err(status) => {
                self.say(count, &status);
                Err(OTelSdkError::InternalFailure(status.code().to_string()))
            }
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]
mod tests {
    use std::path::Path;

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
        TraceService, TraceServiceServer,
    };
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::{Identity, Server, ServerTlsConfig};

    use super::*;

    struct Takes;

    #[tonic::async_trait]
    impl TraceService for Takes {
        async fn export(
            &self,
            _: tonic::Request<ExportTraceServiceRequest>,
        ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
            Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
        }
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "collectors");
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A collector behind TLS, as `localhost`, under `authority`.
    async fn collector(authority: &CertifiedIssuer<'static, KeyPair>) -> u16 {
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, authority).unwrap();
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(leaf.pem(), key.serialize_pem()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server::builder().tls_config(tls).unwrap().add_service(TraceServiceServer::new(Takes));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        port
    }

    async fn sent(port: u16, ca: &Path) -> OTelSdkResult {
        let endpoint = format!("https://localhost:{port}");
        let config = TracesConfig { endpoint, ca: Some(ca.to_owned()), sample: 1.0 };
        Collector::new(&config).unwrap().export(Vec::new()).await
    }

    #[tokio::test]
    async fn a_collector_far_away_proves_itself_or_gets_nothing() {
        let (ours, others) = (authority(), authority());
        let dir = tempfile::tempdir().unwrap();
        let (ca, other) = (dir.path().join("ca.pem"), dir.path().join("other.pem"));
        std::fs::write(&ca, ours.pem()).unwrap();
        std::fs::write(&other, others.pem()).unwrap();
        let port = collector(&ours).await;
        assert!(sent(port, &ca).await.is_ok());
        assert!(sent(port, &other).await.is_err(), "another authority's collector");
    }

    #[tokio::test]
    async fn a_ca_that_is_not_there_is_named() {
        let endpoint = "https://localhost:1".to_owned();
        let config = TracesConfig { endpoint, ca: Some("/no/such/ca.pem".into()), sample: 1.0 };
        let error = Collector::new(&config).unwrap_err().to_string();
        assert!(error.contains("traces.ca /no/such/ca.pem"), "{error}");
    }
}
