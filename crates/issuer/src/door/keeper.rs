//! Who may go where, decided on a request's headers: before a byte of its body is read.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::service::Routes;

use super::body::Metered;
use super::gate::Pass;
use crate::config::MAX_ATTESTATION;
use hallmark_proto::tls::PeerInfo;

/// The one method for hosts that have no credential yet.
pub(crate) const ATTEST: &str = "/hallmark.issuer.v1.HostAttestation/Attest";
/// Another conversation, with waits for the host in it.
const REFRESH: &str = "/hallmark.issuer.v1.HostAttestation/Refresh";
/// Longest hello: an EK, an AK and a chain of EK certificates.
pub(crate) const MAX_HELLO: usize = 64 << 10;
/// Largest message from a host: 64 items, each with evidence, or one event log.
pub(crate) const MAX_MESSAGE: usize = 8 << 20;

/// Stands before the services of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Doorkeeper {
    /// The services.
    pub routes: Routes,
    /// Who is at the other end.
    pub peer: PeerInfo,
    /// What they hold is counted on it.
    pub pass: Pass,
}

impl Doorkeeper {
    /// Lets a request in, its body metered, or says why not.
    fn admit(&self, request: Request<Incoming>) -> Result<Request<Metered<Incoming, Pass>>, Status> {
        let path = request.uri().path();
        if self.pass.is_stranger() && path != ATTEST {
            return Err(Status::unauthenticated("this method needs mutual TLS with a host SVID"));
        }
        let limits = self.pass.limits();
        let (first, most, time) = match path {
            // Both have a deadline of their own, from which the host learns more.
            ATTEST | REFRESH => {
                (MAX_HELLO, MAX_ATTESTATION + MAX_HELLO, limits.attestation_timeout + BACKSTOP)
            }
            _ => (MAX_MESSAGE, MAX_MESSAGE + PREFIX, limits.request_timeout),
        };
        let permit = match path {
            ATTEST => Some(self.pass.begin_attestation().map_err(|full| {
                tracing::debug!(remote = ?self.peer.remote_addr, limit = %full, "attestation refused");
                Status::resource_exhausted("too many attestations at once; try again")
            })?),
            _ => None,
        };
        let mut request = request.map(|body| self.metered(body, first, most, time));
        request.extensions_mut().insert(self.peer.clone());
        if let Some(permit) = permit {
            request.extensions_mut().insert(Arc::new(permit));
        }
        Ok(request)
    }

    fn metered(&self, body: Incoming, first: usize, most: usize, time: Duration) -> Metered<Incoming, Pass> {
        Metered::new(body, self.pass.clone(), first, most, time)
    }
}

/// What a conversation's body gets beyond the conversation's own deadline.
const BACKSTOP: Duration = Duration::from_secs(5);
/// Before each message: its flags and its length.
const PREFIX: usize = 5;

impl Service<Request<Incoming>> for Doorkeeper {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        match self.admit(request) {
            Ok(request) => Box::pin(self.routes.call(request)),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}
