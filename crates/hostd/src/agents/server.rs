//! The connections on the socket, and the bounds that keep any of them from exhausting the daemon.
//!
//! HTTP/2 is served by hyper itself rather than by tonic's server: that has no setting for the size of the
//! header table, whose entries hold on to whole read buffers, one or two for each of hundreds of agents.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hallmark_proto::agent::agent_identity_server::{AgentIdentityServer, SERVICE_NAME};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic_health::pb::health_server::{Health, HealthServer};

use super::caller::{AgentStream, Caller, Counted, Counter, Looks};
use super::socket::Socket;
use super::{Agents, Service, body};
use crate::metrics::metrics;
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

/// Serves the agents' API and gRPC health on `socket` until `stop` resolves and the connections have
/// ended.
pub async fn serve(agents: Arc<Agents>, socket: Socket, stop: impl Future<Output = ()> + Send + 'static) {
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_serving::<AgentIdentityServer<Service>>().await;
    let services = Services {
        agents: AgentIdentityServer::new(Service(agents.clone())).max_decoding_message_size(MAX_MESSAGE),
        health: health_server,
    };
    let stopping = CancellationToken::new();
    let connections = TaskTracker::new();
    let pulse = agents.state.server_pulse.clone();
    tokio::select! {
        () = pulse.while_doing(accept(socket, agents, services, &connections, stopping.clone())) => {}
        () = stop => {}
    }
    stopping.cancel();
    connections.close();
    connections.wait().await;
}

async fn accept<H: Health>(
    socket: Socket,
    agents: Arc<Agents>,
    services: Services<H>,
    connections: &TaskTracker,
    stopping: CancellationToken,
) {
    let counter = Counter::new();
    let digests = Arc::new(ImageDigests::new(IMAGES, agents.limits().max_image_bytes));
    let looks = Arc::new(Looks::default());
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
                let looking = (digests.clone(), looks.clone());
                let attended = attend(stream, counted, looking, services.clone(), stopping.clone());
                connections.spawn(attended);
            }
            None => {
                metrics().connection_refused();
                tracing::warn!(uid, open = counter.len(), "connection refused: too many are open");
            }
        }
    }
}

/// One connection, from the look at who made it to its end.
async fn attend<H: Health>(
    stream: UnixStream,
    counted: Counted,
    (digests, looks): (Arc<ImageDigests>, Arc<Looks>),
    services: Services<H>,
    stopping: CancellationToken,
) {
    let (stream, caller) = match Caller::of(stream, digests, &looks).await {
        Ok(looked) => looked,
        Err(error) => {
            tracing::error!(%error, "a caller could not be looked at");
            return;
        }
    };
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        services.clone().answer(request)
    });
    let io = TokioIo::new(AgentStream::new(stream, counted));
    let mut connection = std::pin::pin!(http2().serve_connection(io, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

fn http2() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .header_table_size(0)
        .max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(8)
        .max_send_buf_size(MAX_MESSAGE)
        .initial_stream_window_size(MAX_MESSAGE as u32)
        .initial_connection_window_size(2 * MAX_MESSAGE as u32);
    builder
}

struct Services<H> {
    agents: AgentIdentityServer<Service>,
    health: HealthServer<H>,
}

impl<H> Clone for Services<H> {
    fn clone(&self) -> Self {
        Self { agents: self.agents.clone(), health: self.health.clone() }
    }
}

impl<H: Health> Services<H> {
    async fn answer(mut self, request: http::Request<Incoming>) -> Result<http::Response<Body>, Infallible> {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        let answered = match service {
            SERVICE_NAME => {
                let answered = tokio::time::timeout(TIMEOUT, self.agents.call(request)).await;
                answered.map(|answer| answer.map(body::fill))
            }
            tonic_health::pb::health_server::SERVICE_NAME => {
                tokio::time::timeout(TIMEOUT, self.health.call(request)).await
            }
            _ => return Ok(Status::unimplemented("no such service here").into_http()),
        };
        answered.unwrap_or_else(|_| Ok(Status::deadline_exceeded("the answer took too long").into_http()))
    }
}
