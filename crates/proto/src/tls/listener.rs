//! Accepting TLS connections for a tonic server.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;

use super::accept::explain;
use super::{CappedStream, PeerInfo, SwappableCert};

/// One accepted connection.
pub type TlsConnection = CappedStream<TlsStream<TcpStream>>;

/// The limits of a [`Listener`].
#[derive(Debug, Clone)]
pub struct ListenerOptions {
    /// A handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// Handshakes under way at one time; more wait in the kernel's queue.
    pub max_handshakes: usize,
    /// Connections open at one time; more wait in the kernel's queue.
    pub max_connections: usize,
    /// The longest a connection lives, certificates aside.
    pub max_age: Option<Duration>,
}

impl Default for ListenerOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 256,
            max_connections: 16_384,
            max_age: None,
        }
    }
}

/// A TCP listener that speaks TLS.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    acceptor: Acceptor,
    options: ListenerOptions,
}

/// The server's part of one TLS handshake. A [`Listener`] has one; a server that counts its connections
/// itself uses it alone.
#[derive(Debug, Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    identity: Arc<SwappableCert>,
    max_age: Option<Duration>,
}

impl Listener {
    /// Accepts on `tcp` by `config`. `identity` is the certificate that `config` shows: connections end
    /// with it.
    pub fn new(
        tcp: TcpListener,
        config: Arc<ServerConfig>,
        identity: Arc<SwappableCert>,
        options: ListenerOptions,
    ) -> Self {
        Self { tcp, acceptor: Acceptor::new(config, identity, options.max_age), options }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The accepted connections, for tonic's `serve_with_incoming`. Accepting ends when it is dropped.
    /// Must be called within a tokio runtime.
    pub fn incoming(self) -> Incoming {
        let (sender, receiver) = mpsc::channel(64);
        let task = tokio::spawn(accept_loop(self.tcp, self.acceptor, self.options, sender));
        Incoming { receiver, task: task.abort_handle() }
    }
}

/// The connections of a [`Listener`]. It never yields an error: a connection that fails is logged, and the
/// others go on.
#[derive(Debug)]
pub struct Incoming {
    receiver: mpsc::Receiver<TlsConnection>,
    task: AbortHandle,
}

impl Stream for Incoming {
    type Item = io::Result<TlsConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receiver.poll_recv(cx).map(|c| c.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept_loop(
    tcp: TcpListener,
    acceptor: Acceptor,
    options: ListenerOptions,
    sender: mpsc::Sender<TlsConnection>,
) {
    let connections = Arc::new(Semaphore::new(options.max_connections));
    let handshakes = Arc::new(Semaphore::new(options.max_handshakes));
    // The semaphores are never closed.
    while let (Ok(connection), Ok(handshake)) =
        (connections.clone().acquire_owned().await, handshakes.clone().acquire_owned().await)
    {
        match tcp.accept().await {
            Ok((socket, remote)) => {
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    let accepted = acceptor.accept(socket, remote, options.handshake_timeout).await;
                    drop(handshake);
                    match accepted {
                        Ok(stream) => drop(sender.send(stream.with_permit(connection)).await),
                        Err(reason) => tracing::info!(%remote, %reason, "TLS connection refused"),
                    }
                });
            }
            // Out of file descriptors, or a client that left at once: neither ends the server.
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Acceptor {
    /// Shakes hands by `config`. `identity` is the certificate that `config` shows: connections end with
    /// it, and after `max_age`.
    pub fn new(config: Arc<ServerConfig>, identity: Arc<SwappableCert>, max_age: Option<Duration>) -> Self {
        Self { config, identity, max_age }
    }

    /// Shakes hands with whoever connected from `remote`.
    ///
    /// # Errors
    /// The handshake fails, or takes longer than `timeout`.
    pub async fn accept(
        &self,
        socket: TcpStream,
        remote: SocketAddr,
        timeout: Duration,
    ) -> io::Result<TlsConnection> {
        socket.set_nodelay(true)?;
        // Read before the handshake: should the certificate be swapped meanwhile, the earlier end counts.
        let own_not_after = self.identity.not_after();
        let handshake = TlsAcceptor::from(self.config.clone()).accept(socket);
        let stream = tokio::time::timeout(timeout, handshake)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long"))?
            .map_err(explain)?;
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = PeerInfo::of_verified(certificates, Some(remote)).map_err(io::Error::other)?;
        let time = self.config.time_provider.clone();
        Ok(CappedStream::new(stream, peer, own_not_after, self.max_age, time))
    }
}
