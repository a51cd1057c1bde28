//! The connection to the host daemon's socket.

use std::path::{Path, PathBuf};

use hallmark_core::trace::TraceParent;
use hallmark_proto::agent::agent_identity_client::AgentIdentityClient;
use hallmark_proto::agent::{SignRequest, WatchIdentityRequest, WhoAmIRequest, WhoAmIResponse};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::error::{ClientError, io_cause};
use crate::identity::Identity;
use crate::source::IdentitySource;

/// Where the host daemon listens, unless [`SOCKET_ENV`] says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/hallmark-hostd/agent.sock";
/// Names another path for the host daemon's socket.
pub const SOCKET_ENV: &str = "HALLMARK_AGENT_SOCKET";

/// The socket of this process: [`SOCKET_ENV`], else [`DEFAULT_SOCKET`].
pub fn default_socket() -> PathBuf {
    std::env::var_os(SOCKET_ENV)
        .filter(|v| !v.is_empty())
        .map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}

/// A connection to this host's daemon. The daemon knows the calling process from the kernel; nothing
/// that is sent says who asks.
#[derive(Debug, Clone)]
pub struct HallmarkClient {
    socket: PathBuf,
    channel: Channel,
    trace: Option<TraceParent>,
}

impl HallmarkClient {
    /// Connects to [`default_socket`].
    ///
    /// # Errors
    /// The socket is missing, closed to this process, or nobody listens.
    pub async fn connect() -> Result<Self, ClientError> {
        Self::connect_to(default_socket()).await
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// The socket is missing, closed to this process, or nobody listens.
    pub async fn connect_to(path: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let socket = path.into();
        let channel = channel(&socket).await?;
        Ok(Self { socket, channel, trace: None })
    }

    /// The same connection, with calls that are part of the caller's trace (W3C Trace Context): the host daemon
    /// and the issuer, where they trace, continue it, and the record of the decision names it. What
    /// [`watch`](Self::watch) asks for and signs is part of it for as long as the source lives.
    ///
    /// ```no_run
    /// # async fn agent(client: hallmark_client::HallmarkClient) -> Result<(), Box<dyn std::error::Error>> {
    /// let here = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse()?;
    /// let identity = client.in_trace(here).watch()?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn in_trace(&self, parent: TraceParent) -> Self {
        Self { trace: Some(parent), ..self.clone() }
    }

    /// The path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The identity of this process, kept fresh by a background thread until the last clone of the
    /// source, and of every TLS configuration made from it, is gone.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn watch(&self) -> Result<IdentitySource, ClientError> {
        IdentitySource::start(self.socket.clone(), String::new(), self.trace)
    }

    /// As [`watch`](Self::watch), for one of several registrations that match this process.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn watch_as(&self, agent: &str) -> Result<IdentitySource, ClientError> {
        IdentitySource::start(self.socket.clone(), agent.to_owned(), self.trace)
    }

    /// One identity, now. A daemon may retire an instance whose streams have all ended, so a key in
    /// hardware should not be expected to sign for it afterwards: use [`watch`](Self::watch) for that.
    ///
    /// # Errors
    /// The daemon refuses, cannot serve yet, or sent something that is no identity.
    pub async fn identity(&self, agent: &str) -> Result<Identity, ClientError> {
        let request = WatchIdentityRequest { agent: agent.to_owned() };
        let mut stream = self
            .rpc()
            .watch_identity(traced(request, self.trace))
            .await
            .map_err(|s| ClientError::from_status(&self.socket, &s))?
            .into_inner();
        let first = stream.message().await.map_err(|s| ClientError::from_status(&self.socket, &s))?;
        Ok(Identity::accept(first.ok_or(ClientError::StreamEnded)?, None)?)
    }

    /// What the host daemon sees of this process.
    ///
    /// # Errors
    /// The daemon is away or answers with an error.
    pub async fn who_am_i(&self) -> Result<WhoAmIResponse, ClientError> {
        let answer = self.rpc().who_am_i(traced(WhoAmIRequest {}, self.trace)).await;
        Ok(answer.map_err(|s| ClientError::from_status(&self.socket, &s))?.into_inner())
    }

    /// One ECDSA signature (DER, RFC 3279 section 2.2.3) over a SHA-256 digest by this process's own
    /// hardware-held key.
    ///
    /// # Errors
    /// The handle is not this process's, or the hardware is busy or gone.
    pub async fn sign(&self, key_handle: &[u8], digest: &[u8; 32]) -> Result<Vec<u8>, ClientError> {
        sign(&self.socket, self.channel.clone(), self.trace, key_handle, digest).await
    }

    fn rpc(&self) -> AgentIdentityClient<Channel> {
        AgentIdentityClient::new(self.channel.clone())
    }
}

/// The request as part of a trace.
pub(crate) fn traced<T>(request: T, trace: Option<TraceParent>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    // A traceparent is ASCII, and so always fits.
    if let Some(value) = trace.and_then(|parent| parent.to_string().parse().ok()) {
        request.metadata_mut().insert("traceparent", value);
    }
    request
}

pub(crate) async fn sign(
    socket: &Path,
    channel: Channel,
    trace: Option<TraceParent>,
    key_handle: &[u8],
    digest: &[u8; 32],
) -> Result<Vec<u8>, ClientError> {
    let request =
        SignRequest { key_handle: key_handle.to_vec().into(), digest: digest.as_slice().to_vec().into() };
    let answer = AgentIdentityClient::new(channel).sign(traced(request, trace)).await;
    Ok(answer.map_err(|s| ClientError::from_status(socket, &s))?.into_inner().signature.to_vec())
}

/// A channel over the Unix socket at `socket`, connected.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, ClientError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The authority is a formality of HTTP/2: a Unix socket has none.
    let endpoint = Endpoint::from_static("http://hostd.local");
    endpoint.connect_with_connector(connector).await.map_err(|error| match io_cause(&error) {
        Some(io) => ClientError::from_io(socket, io),
        None => ClientError::Unreachable { path: socket.to_owned(), why: error.to_string() },
    })
}
