//! The socket, its connections, and the bounds that keep any of them from exhausting the daemon.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hallmark_proto::agent::agent_identity_server::AgentIdentityServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use super::caller::{AgentStream, Caller, Counted, Counter};
use super::{Agents, Service};
use crate::observe::ImageDigests;

/// Largest request: every one of them is a few dozen bytes.
const MAX_MESSAGE: usize = 64 * 1024;
/// Streams on one connection: a few identities, and signatures for some handshakes at once.
const MAX_STREAMS: u32 = 32;
/// Largest set of headers.
const MAX_HEADERS: u32 = 8 * 1024;
/// How long a request may take until its answer begins. A burst of keys made by a slow TPM fits in.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Digests of images kept.
const IMAGES: usize = 512;

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be made.
    #[error("{path}: {what}: {error}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Another daemon listens there.
    #[error("{path}: another process is listening on this socket; is the daemon running already?")]
    InUse {
        /// Its path.
        path: PathBuf,
    },
    /// The server failed.
    #[error("agent server: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// A bound socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds `path` with this mode and, if given, group. A socket left over by a daemon that is gone is
    /// replaced; one that is answered is not.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, ServeError> {
        let wrong = |what| move |error| ServeError::Socket { path: path.to_owned(), what, error };
        if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ServeError::InUse { path: path.to_owned() });
            }
            std::fs::remove_file(path).map_err(wrong("remove the old socket"))?;
        }
        // Bound in a directory of our own making, and shown only with its final mode and group: there is no
        // moment at which the wrong ones may connect. The name is short: a socket's path has 107 bytes.
        let parent = path.parent().unwrap_or(Path::new("/"));
        let hidden = parent.join(format!(".{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&hidden).map_err(wrong("make a directory beside it"))?;
        let bound = Self::bind_within(&hidden, path, mode, group);
        drop(std::fs::remove_dir_all(&hidden));
        let listener = bound.map_err(|(what, error)| wrong(what)(error))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    fn bind_within(
        hidden: &Path,
        path: &Path,
        mode: u32,
        group: Option<u32>,
    ) -> Result<UnixListener, (&'static str, io::Error)> {
        let step = |what| move |error| (what, error);
        let set_mode =
            |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        set_mode(hidden, 0o700).map_err(step("set the mode of the directory beside it"))?;
        let draft = hidden.join("s");
        let listener = UnixListener::bind(&draft).map_err(step("bind"))?;
        // Not asked for, not called: the unit denies the system call.
        if group.is_some() {
            std::os::unix::fs::chown(&draft, None, group).map_err(step("set the group"))?;
        }
        set_mode(&draft, mode).map_err(step("set the mode"))?;
        std::fs::rename(&draft, path).map_err(step("put it in place"))?;
        Ok(listener)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

/// Serves the agents' API and gRPC health on `socket` until `stop` resolves and the connections have
/// ended.
///
/// # Errors
/// The server failed.
pub async fn serve(
    agents: Arc<Agents>,
    socket: Socket,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<AgentIdentityServer<Service>>().await;
    let service = AgentIdentityServer::new(Service(agents.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    let (accepted, incoming) = mpsc::channel(16);
    let accepting = tokio::spawn(accept(socket, agents, accepted));
    let served = Server::builder()
        .accept_http1(false)
        .timeout(TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(8))
        .initial_stream_window_size(MAX_MESSAGE as u32)
        .initial_connection_window_size(2 * MAX_MESSAGE as u32)
        .add_service(health_service)
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop)
        .await;
    accepting.abort();
    served.map_err(Into::into)
}

async fn accept(socket: Socket, agents: Arc<Agents>, accepted: mpsc::Sender<Result<AgentStream, io::Error>>) {
    let counter = Counter::new();
    let digests = Arc::new(ImageDigests::new(IMAGES, agents.limits().max_image_bytes));
    loop {
        let (stream, uid) = match socket.listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) => (stream, peer.uid()),
                Err(_) => continue,
            },
            Err(error) => {
                // Out of descriptors, most likely: those who are being served go first.
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match counter.admit(uid, &agents.limits()) {
            Some(counted) => {
                tokio::spawn(introduce(stream, counted, digests.clone(), accepted.clone()));
            }
            None => tracing::warn!(uid, open = counter.len(), "connection refused: too many are open"),
        }
    }
}

async fn introduce(
    stream: UnixStream,
    counted: Counted,
    digests: Arc<ImageDigests>,
    accepted: mpsc::Sender<Result<AgentStream, io::Error>>,
) {
    match Caller::of(stream, digests).await {
        Ok((stream, caller)) => drop(accepted.send(Ok(AgentStream::new(stream, caller, counted))).await),
        Err(error) => tracing::error!(%error, "a caller could not be looked at"),
    }
}
