//! The connections on the admin socket. Whoever can reach the socket can connect; who is no operator is
//! told so on the headers of the first call, and holds no more than a few connections for a few seconds.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;
use tonic::transport::server::{Connected, UdsConnectInfo};

use super::Admission;
use crate::door::body::{Metered, Purse};
use crate::door::http2::{self, Bounds};

/// Connections at one time, and of one user.
const CONNECTIONS: usize = 128;
const CONNECTIONS_PER_USER: usize = 32;
/// Connections at one time of users that are no operators, and how long one may last.
const STRANGERS: usize = 8;
const STRANGERS_TIME: Duration = Duration::from_secs(10);
/// Largest request.
pub(crate) const MAX_REQUEST: usize = 8 << 20;
/// Bytes of requests in flight on one connection.
const IN_FLIGHT: usize = 2 * MAX_REQUEST;
/// How long a request may take to come.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// Serves operators until `stop` resolves and the calls then under way have ended.
pub async fn serve(
    listener: UnixListener,
    admission: Admission,
    routes: Routes,
    stop: impl Future<Output = ()>,
) {
    let stopping = CancellationToken::new();
    let connections = TaskTracker::new();
    let house = House { admission, routes: routes.prepare(), open: Arc::default() };
    tokio::select! {
        () = house.accept(listener, &connections, &stopping) => {}
        () = stop => {}
    }
    stopping.cancel();
    connections.close();
    connections.wait().await;
}

#[derive(Clone)]
struct House {
    admission: Admission,
    routes: Routes,
    open: Arc<Mutex<Open>>,
}

/// Connections open, in all and by user; strangers' also under none.
#[derive(Debug, Default)]
struct Open(HashMap<Option<u32>, usize>, usize);

impl House {
    async fn accept(&self, listener: UnixListener, open: &TaskTracker, stopping: &CancellationToken) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    open.spawn(self.clone().attend(stream, stopping.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "admin: accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn attend(self, stream: UnixStream, stopping: CancellationToken) {
        let info = stream.connect_info();
        let Some(peer) = info.peer_cred else { return };
        let operator = self.admission.admit_peer(Some(&peer)).is_ok();
        let Some(_counted) = Counted::new(&self.open, peer.uid(), operator) else {
            tracing::debug!(uid = peer.uid(), operator, "admin: connection refused, too many are open");
            return;
        };
        let mut changes = self.admission.changes();
        let admission = self.admission.clone();
        let answering = Answering { house: self, info, purse: Purse::new(IN_FLIGHT) };
        let service = service_fn(move |request| answering.clone().answer(request));
        let connection = http2::server(Bounds::OPERATOR).serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let taken_off = async {
            while operator && changes.changed().await.is_ok() {
                if admission.admit_peer(Some(&peer)).is_err() {
                    return;
                }
            }
            tokio::time::sleep(STRANGERS_TIME).await;
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            // What is under way is finished: an order half carried out is nobody's wish.
            () = taken_off => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "admin: a connection broke off");
        }
    }
}

#[derive(Clone)]
struct Answering {
    house: House,
    info: UdsConnectInfo,
    purse: Purse,
}

impl Answering {
    async fn answer(mut self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        // The services ask once more; here it is asked before a byte of the body is read.
        if let Err(refusal) = self.house.admission.admit_peer(self.info.peer_cred.as_ref()) {
            return Ok(refusal.into_http());
        }
        let mut request = request
            .map(|body| Metered::new(body, self.purse.clone(), MAX_REQUEST, MAX_REQUEST + 5, REQUEST_TIME));
        request.extensions_mut().insert(self.info.clone());
        self.house.routes.call(request).await
    }
}

/// A connection's place, given back when it is dropped.
struct Counted {
    open: Arc<Mutex<Open>>,
    key: Option<u32>,
}

impl Counted {
    fn new(open: &Arc<Mutex<Open>>, uid: u32, operator: bool) -> Option<Self> {
        let (key, most) = if operator { (Some(uid), CONNECTIONS_PER_USER) } else { (None, STRANGERS) };
        let mut counts = open.lock().unwrap_or_else(PoisonError::into_inner);
        // A stranger must not be what fills the house for operators.
        let full = operator && counts.1 >= CONNECTIONS;
        if full || counts.0.get(&key).copied().unwrap_or(0) >= most {
            return None;
        }
        *counts.0.entry(key).or_default() += 1;
        counts.1 += usize::from(operator);
        drop(counts);
        Some(Self { open: open.clone(), key })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = counts.0.get_mut(&self.key) {
            *n -= 1;
            if *n == 0 {
                counts.0.remove(&self.key);
            }
        }
        counts.1 -= usize::from(self.key.is_some());
    }
}
