//! HTTP, as far as a witness needs it: one connection that is kept, over TLS where the address says so, answers bounded
//! in size, and never led elsewhere. Time is bounded by the caller.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use hallmark_core::log::MAX_ANSWER;
use http::header::{CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Most bytes of an answer's head.
const MAX_HEAD: usize = 16 * 1024;

/// Asks one witness.
pub(super) struct Client {
    url: Uri,
    authority: HeaderValue,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    kept: Option<SendRequest<Full<Bytes>>>,
}

/// What a witness answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Vec<u8>,
    /// Where it points to.
    pub(super) location: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("it cannot be reached: {0}")]
    Connect(#[from] std::io::Error),
    #[error("the exchange with it broke off: {0}")]
    Broken(#[from] hyper::Error),
    #[error("its answer has more than {MAX_ANSWER} bytes, or breaks off: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("our own request is malformed: {0}")]
    Request(#[from] http::Error),
}

impl Client {
    /// Of the witness at this submission prefix, whose server is known by the roots in a file, or the system's.
    pub(super) fn new(prefix: &Uri, ca: Option<&Path>) -> anyhow::Result<Self> {
        let host = prefix.host().context("no host")?.trim_matches(['[', ']']).to_owned();
        let secure = prefix.scheme_str() == Some("https");
        let name = ServerName::try_from(host.clone()).with_context(|| format!("{prefix}: its host"))?;
        let path = format!("{}/add-checkpoint", prefix.path().trim_end_matches('/'));
        let authority = prefix.authority().context("no host")?.as_str();
        Ok(Self {
            url: path.parse()?,
            authority: HeaderValue::from_str(authority)?,
            host,
            port: prefix.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            tls: if secure { Some((connector(ca)?, name)) } else { None },
            kept: None,
        })
    }

    /// Hands a request body over. A connection that was kept and is closed meanwhile is made anew.
    pub(super) async fn post(&mut self, body: &Bytes) -> Result<Answer, ClientError> {
        if let Some(mut kept) = self.kept.take()
            && kept.ready().await.is_ok()
            && let Ok(answer) = kept.send_request(self.request(body)?).await
        {
            return self.read(kept, answer).await;
        }
        let mut new = self.connect().await?;
        let answer = new.send_request(self.request(body)?).await?;
        self.read(new, answer).await
    }

    fn request(&self, body: &Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
        let request = Request::post(self.url.clone())
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "text/plain; charset=utf-8")
            .header(USER_AGENT, concat!("hallmark-issuer/", env!("CARGO_PKG_VERSION")));
        Ok(request.body(Full::new(body.clone()))?)
    }

    async fn read(
        &mut self,
        connection: SendRequest<Full<Bytes>>,
        answer: Response<Incoming>,
    ) -> Result<Answer, ClientError> {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(ClientError::Body)?;
        // Only one whose answer came to its end can be used again.
        self.kept = Some(connection);
        let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.map(|to| to.chars().take(255).collect());
        Ok(Answer { status: head.status, body: body.to_bytes().to_vec(), location })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        match &self.tls {
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await?;
                let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(sender)
            }
            None => {
                let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(sender)
            }
        }
    }
}

fn connector(ca: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match ca {
        // Those that cannot be read are left out, as everywhere on the system.
        None => roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        Some(file) => {
            let certificates =
                CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let certificates = certificates.with_context(|| format!("witness.at.ca {}", file.display()))?;
            ensure!(!certificates.is_empty(), "witness.at.ca {} has no certificate", file.display());
            roots.add_parsable_certificates(certificates)
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
