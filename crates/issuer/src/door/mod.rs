//! The door: what a stranger on the network can hold or fill.
//!
//! A connection is counted before its handshake ([`gate`]), a request judged by its headers (`keeper`), a
//! body metered as it comes ([`body`]). The services behind it see hosts, and strangers that attest.

pub mod body;
pub mod gate;
mod gather;
pub(crate) mod http2;
mod keeper;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hallmark_proto::tls::{Acceptor, TlsConnection};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::Service as _;
use tonic::service::Routes;

pub use gate::{AttestationPermit, Gate};
use gate::{Full, Ticket};
use gather::Gathering;
use http2::Bounds;
use keeper::Doorkeeper;
pub(crate) use keeper::MAX_MESSAGE;

use crate::metrics::metrics;

/// What is refused is logged so often at the most: a log is a thing to fill, too.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Door {
    gate: Arc<Gate>,
    acceptor: Acceptor,
    routes: Routes,
    refusals: Refusals,
}

impl Door {
    /// A door to these services.
    pub fn new(gate: Arc<Gate>, acceptor: Acceptor, routes: Routes) -> Self {
        Self { gate, acceptor, routes: routes.prepare(), refusals: Refusals::default() }
    }

    /// Serves until `stop` resolves and the requests then under way have ended.
    pub async fn serve(self, tcp: TcpListener, stop: impl Future<Output = ()>) {
        let stopping = CancellationToken::new();
        let connections = TaskTracker::new();
        tokio::select! {
            () = Arc::new(self).accept(tcp, &connections, &stopping) => {}
            () = stop => {}
        }
        stopping.cancel();
        connections.close();
        connections.wait().await;
    }

    async fn accept(self: Arc<Self>, tcp: TcpListener, open: &TaskTracker, stopping: &CancellationToken) {
        loop {
            self.gate.handshake_room().await;
            match tcp.accept().await {
                Ok((socket, remote)) => match self.gate.arrive(remote, Instant::now()) {
                    Ok(ticket) => {
                        let door = self.clone();
                        open.spawn(door.attend(socket, remote, ticket, stopping.clone()));
                    }
                    Err(full) => self.refusals.note(remote, &full),
                },
                // Out of file descriptors, or a client that left at once: neither ends the server.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// One connection, from its handshake to its end.
    async fn attend(
        self: Arc<Self>,
        socket: TcpStream,
        remote: SocketAddr,
        mut ticket: Ticket,
        stopping: CancellationToken,
    ) {
        let timeout = self.gate.limits().handshake_timeout;
        let shaken = tokio::select! {
            shaken = self.acceptor.accept(socket, remote, timeout) => shaken,
            () = ticket.ended() => return self.refusals.note(remote, &Full::Strangers),
            () = stopping.cancelled() => return,
        };
        match shaken {
            Ok(stream) => match ticket.identify(stream.peer()) {
                Ok(()) => self.converse(stream, &ticket, &stopping).await,
                Err(full) => self.refusals.note(remote, &full),
            },
            Err(reason) => self.refusals.note(remote, &reason),
        }
    }

    async fn converse(&self, stream: TlsConnection, ticket: &Ticket, stopping: &CancellationToken) {
        let (peer, pass) = (stream.peer().clone(), ticket.pass());
        let bounds = if pass.is_stranger() { Bounds::STRANGER } else { Bounds::HOST };
        let keeper = Doorkeeper { routes: self.routes.clone(), peer: peer.clone(), pass: pass.clone() };
        let service = service_fn(move |request| keeper.clone().call(request));
        let connection =
            http2::server(bounds).serve_connection(TokioIo::new(Gathering::new(stream)), service);
        let mut connection = std::pin::pin!(connection);
        let overstayed =
            async { if pass.is_stranger() { pass.overstayed().await } else { std::future::pending().await } };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = ticket.ended() => return tracing::debug!(?peer, "connection ended to make room"),
            () = overstayed => return tracing::debug!(?peer, "connection ended: no attestation on it"),
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(?peer, %error, "a connection broke off");
        }
    }
}

/// Connections refused since the last line in the log.
#[derive(Debug, Default)]
struct Refusals(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    fn note(&self, remote: SocketAddr, reason: &dyn std::fmt::Display) {
        metrics().connection_refused();
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.1 += 1;
        if since.0.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            return;
        }
        let refused = std::mem::take(&mut since.1);
        since.0 = Some(Instant::now());
        drop(since);
        tracing::warn!(%remote, %reason, refused, "connection refused (this one, and others since the last such line)");
    }
}
